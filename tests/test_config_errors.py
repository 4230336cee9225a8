"""Whatever is wrong with a command line, a file or a run: exit code 2 and one line that names it and the remedy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import rlcore
from rlcore.train.cli import main

TINY = [
    "--task",
    "CartPole",
    "--num-envs",
    "4",
    "--num-iterations",
    "2",
    "--eval-envs",
    "4",
    "--agent.num-steps",
    "8",
    "--agent.num-minibatches",
    "2",
    "--agent.actor.hidden-dims",
    "8",
    "--agent.critic.hidden-dims",
    "8",
    "--env.max_episode_length",
    "20",
]

COMMAND_LINES = {
    "mistyped command": ("trian --task CartPole", ["trian", "did you mean 'train'"]),
    "unknown command": ("fly", ["fly", "commands are train"]),
    "a task without its flag": ("train CartPole", ["unexpected word 'CartPole'", "--task CartPole"]),
    "two tasks after one flag": ("train --task CartPole Pendulum", ["'Pendulum'", "such as --task Pendulum"]),
    "two tasks in one word": ("train --task CartPole,Pendulum", ["no comma", "--task once for each"]),
    "a setting of the run as the task's": (
        "train --task CartPole --env.num_envs 5",
        ["env.num_envs: 5", "without 'env.'"],
    ),
    "the same of another command": ("eval --run runs --env.seed 5", ["env.seed: 5", "without 'env.'"]),
    "resume without a run": ("train --resume", ["--resume needs a value", "--resume RUN"]),
    "a fraction as a number of envs": ("train --task CartPole --num-envs 1.5e0", ["'1.5e0' is not a whole number"]),
    "a word as a number or none": (
        "train --task Pendulum --algo sac --agent.target_entropy auto",
        ["--agent.target-entropy: 'auto' is not a number or None; correct it"],
    ),
    "a word in a range": ("train --task Pendulum --algo sac --agent.value_range 1 b", ["'1 b' does not fit FLOAT"]),
    "rsl_rl's way to resume": ("train --task CartPole --load_run x", ["--load_run", "--resume RUN"]),
    "rsl_rl's checkpoint": ("train --task CartPole --checkpoint model_1.pt", ["--checkpoint", "--resume RUN/check"]),
    "another library's logger": (
        "train --task CartPole --logger neptune",
        ["logger", "'neptune'", "tensorboard, wandb"],
    ),
    "a flag for a logger": ("train --task CartPole --wandb", ["--wandb", "--logger tensorboard wandb"]),
    "a condition without a number": (
        "train --task CartPole --stop-at eval/return>=high",
        ["stop_at", "eval/success>=0.95"],
    ),
    "a figure that no evaluation tells": (
        "train --task CartPole --stop-at eval/sucess>=0.9",
        ["stop_at", "'eval/sucess'", "did you mean 'eval/success'?"],
    ),
    "a condition without evaluations": (
        "train --task CartPole --stop-no-progress 3 --eval-interval 0",
        ["stop_no_progress", "eval_interval is 0"],
    ),
    "a time of unknown units": ("train --task CartPole --stop-after 3w", ["stop_after", "'3w'", "such as 30m"]),
    "Isaac Lab's flag without Isaac Lab": ("train --task CartPole --headless", ["--headless", "leave it out"]),
    "Isaac Lab's video": ("train --task CartPole --video --video_length 9", ["--video", "rlcore play --run RUN"]),
    "rsl_rl's lam": ("train --task CartPole agent.algorithm.lam=0.9", ["lam", "did you mean --agent.gae-lambda?"]),
    "SB3's total_timesteps": ("train --task CartPole --total_timesteps 9", ["--num-iterations", "agent.num_steps"]),
    "SB3's entropy weight of SAC": (
        "train --task Pendulum --algo sac --agent.ent_coef auto",
        ["did you mean --agent.init-temperature?"],
    ),
    "SB3's entropy weight of PPO": ("train --task Pendulum --agent.ent_coef 0", ["did you mean --agent.entropy-coef?"]),
    "SB3's train_freq": ("train --task Pendulum --algo sac --train_freq 4", ["did you mean --agent.num-steps?"]),
    "SB3's noise, which SAC has not": (
        "train --task Pendulum --algo sac --agent.action_noise 1",
        ["--agent.action_noise; --help lists the settings"],
    ),
    "unknown flag that is like another in its group alone": (
        "train --task Pendulum --algo sac --agent.use_sde True",
        ["--agent.use_sde; --help lists the settings"],
    ),
    "configuration of a task for another algorithm": (
        "config --task gym:CartPole-v1 --algo sac",
        ["gym:CartPole-v1 has discrete actions", "use ppo"],
    ),
    "configuration of no task": ("config --task gym:NoSuch-v1", ["gym:NoSuch-v1", "doesn't exist"]),
    "a word as a number of steps": (
        "train --task CartPole --env.max_episode_length ten",
        ["max_episode_length is 'ten'", "whole number"],
    ),
    "a word as a number of symbols": (
        "train --task Memory --env.num_symbols few",
        ["num_symbols is 'few'", "whole number"],
    ),
    "a word as a size": ("train --task Null --env.obs_size big", ["obs_size is 'big'", "whole number"]),
    "no task": ("train", ["--task is missing", "rlcore tasks"]),
    "near miss of a task": ("train --task CartPoel", ["CartPoel", "did you mean", "CartPole"]),
    "task without its prefix": ("train --task CartPole-v1", ["CartPole-v1", "gym:CartPole-v1"]),
    "unknown gymnasium id": ("train --task gym:CartPoles-v1", ["CartPoles", "CartPole"]),
    "unknown flag": ("train --task CartPole --agent.gama 0.9", ["--agent.gama", "did you mean --agent.gamma?"]),
    "unknown key": ("train --task CartPole agent.gama=0.9", ["--agent.gama", "did you mean --agent.gamma?"]),
    "flag without its group": ("train --task CartPole --gamma 0.9", ["--gamma", "did you mean --agent.gamma?"]),
    "unknown flag at the top": ("train --task CartPole --num-env 4", ["--num-env", "did you mean --num-envs?"]),
    "group without a setting": ("train --task CartPole --agent 4", ["--agent", "--agent.NAME VALUE"]),
    "stray word": ("train CartPole", ["CartPole", "--setting value"]),
    "no value": ("train --task CartPole --seed", ["--seed", "needs a value"]),
    "text for a float": (
        "train --task CartPole --agent.gamma high",
        ["--agent.gamma: 'high' is not a number; correct it"],
    ),
    "text for an int": ("train --task CartPole --num-envs many", ["--num-envs: 'many' is not a whole number"]),
    "fraction for an int": ("train --task CartPole --seed 1.5", ["--seed: '1.5' is not a whole number"]),
    "text for a yes or no": ("train --task CartPole --agent.normalize-obs maybe", ["normalize_obs", "maybe", "True"]),
    "value for a negation": ("train --task CartPole --no-export=3", ["--no-export", "takes no value"]),
    "text in a list": (
        "train --task CartPole --agent.actor.hidden-dims 64 x",
        ["hidden-dims", "'64 x' is not a list of whole"],
    ),
    "unknown choice": ("train --task CartPole --agent.lr-schedule fast", ["lr-schedule", "'fast'", "linear"]),
    "unknown algorithm": ("train --task CartPole --algo dqn", ["--algo", "'dqn'", "ppo"]),
    "negative steps": ("train --task CartPole --agent.num-steps -3", ["num_steps", "-3", "at least 1"]),
    "negative iterations": ("train --task CartPole --num-iterations -1", ["num_iterations", "-1", "1 or more"]),
    "no envs": ("train --task CartPole --num-envs 0", ["num_envs", "0", "1 or more"]),
    "no log interval": ("train --task CartPole --log-interval 0", ["log_interval", "0", "1 or more"]),
    "gamma above one": ("train --task CartPole --agent.gamma 1.5", ["gamma", "1.5"]),
    "negative learning rate": ("train --task CartPole --agent.learning-rate -1", ["learning_rate", "-1"]),
    "minibatches that do not divide": (
        "train --task CartPole --num-envs 4 --agent.num-steps 8 --agent.num-minibatches 7",
        ["num_minibatches", "7", "divide"],
    ),
    "unknown observation group": (
        "train --task CartPole --agent.actor-obs camera",
        ["error: agent.actor_obs:", "camera", "policy"],
    ),
    "bounds of actions beyond the env's": (
        "train --task Pendulum --algo sac --agent.action-low -3",
        ["error: agent.action_low: [-3.0] to [2.0] leaves the env's"],
    ),
    "bounds of actions the wrong way round": (
        "train --task Pendulum --algo ddpg --agent.action-low 1 --agent.action-high -1",
        ["error: agent.action_low: [1.0] is not possible; set less than action_high"],
    ),
    "too many bounds of actions": (
        "train --task Pendulum --algo sac --agent.action-high 1 1",
        ["error: agent.action_high: (1.0, 1.0) is not possible; give 1 number"],
    ),
    "no memory to speak of": (
        "train --task Pendulum --algo sac --num-envs 9 --agent.buffer-size 9 --agent.learning-starts 9",
        ["error: agent.buffer_size: 9 is not possible"],
    ),
    "discrete actions": ("train --task CartPole --algo sac", ["error: algo: CartPole has discrete actions"]),
    "unknown device": ("train --task CartPole --device tpu", ["device", "tpu", "cpu"]),
    "device that is not there": ("train --task CartPole --device cuda:99", ["cuda:99", "--device cpu"]),
    "unknown option of a task": ("train --task CartPole --env.lenght 3", ["lenght", "max_episode_length"]),
    "task option without a name": ("train --task CartPole --env 3", ["--env", "--env.OPTION"]),
    "impossible option of a task": ("train --task CartPole env.max_episode_length=0", ["max_episode_length", "0"]),
    "name with a slash": ("train --task CartPole --name a/b", ["name", "a/b", "letters"]),
    "missing configuration file": ("train --task CartPole --config none.yaml", ["none.yaml", "check the path"]),
    "resume and config": ("train --config a.yaml --resume b", ["--config", "--resume", "leave one out"]),
    "resume of an empty variable": ("train --task Pendulum --resume=", ["--resume is empty", "leave it out"]),
    "resume of nothing": ("train --resume nowhere", ["nowhere", "run folder"]),
    "eval of nothing": ("eval", ["--run RUN", "--onnx FILE"]),
    "eval of a missing run": ("eval --run nowhere", ["nowhere", "run folder"]),
    "eval of two things": ("eval --run a --onnx b", ["--run RUN", "--onnx FILE"]),
    "eval of no envs": ("eval --run a --num-envs 0", ["--num-envs", "0", "1 or more"]),
    "missing ONNX file": ("eval --onnx none.onnx", ["none.onnx"]),
    "preset over a file": ("config --file a.yaml --preset gpu", ["--preset is 'gpu'", "a.yaml", "leave one out"]),
    "export of nothing": ("export", ["--run", "missing"]),
    "unknown flag of export": ("export --rnu x", ["--rnu", "did you mean --run?"]),
    "Isaac Lab's video of play": ("play --run a --video a.mp4", ["did you mean --output?"]),
    "play to a text file": ("play --run a --output a.txt", ["a.txt", ".gif"]),
    "filter without a match": ("tasks Cartpool", ["Cartpool", "CartPole"]),
    "two filters": ("tasks a b", ["'b'", "FILTER"]),
}

FILES = {
    "unknown key": ("num_env: 4", ["num_env", "num_envs"]),
    "unknown key in a group": ("agent: {gama: 0.9}", ["agent.gama", "gamma"]),
    "unknown key in a group in a group": ("agent: {actor: {hidden: [8]}}", ["hidden", "hidden_dims"]),
    "a setting outside of its group": ("gamma: 0.9", ["unknown key 'gamma'; write it under 'agent:'"]),
    "a setting of the run as the task's": ("env: {num_envs: 5}", ["env.num_envs: 5", "without 'env.'"]),
    "wrong type": ("num_envs: many", ["num_envs", "many"]),
    "yes for a number": ("num_envs: true", ["num_envs", "True"]),
    "number for a yes or no": ("agent: {normalize_obs: 3}", ["normalize_obs", "3"]),
    "unknown choice": ("agent: {lr_schedule: fast}", ["lr_schedule", "fast", "linear"]),
    "impossible value": ("agent: {num_steps: -3}", ["num_steps", "-3"]),
    "value for a group": ("agent: 3", ["agent", "3"]),
    "broken YAML": ("agent: {gamma: 0.9", ["YAML"]),
    "a tab": ("agent:\n\tgamma: 0.9", ["line 2, column 1: a tab; indent with spaces"]),
    "a bracket too many": ("agent: {gamma: 0.9}}", ["line 1, column 20"]),
    "another library's": (
        "num_steps_per_env: 24\nmax_iterations: 9\nalgorithm: {gamma: 0.9}",
        ["unknown key", "of rsl_rl", "rlcore config --file my.yaml --output"],
    ),
    "a list": ("- 1\n- 2", ["key: value"]),
    "code": ("task: !!python/object/apply:os.system ['true']", ["YAML"]),
    "number for the task": ("task: 3", ["task", "3", "rlcore tasks"]),
    "unknown option of a task": ("env: {lenght: 3}", ["lenght", "max_episode_length"]),
}


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must be refused, and return its one line."""
    code = main(words)
    output = capsys.readouterr()
    assert code == 2
    lines = output.err.strip().splitlines()
    assert len(lines) == 1, output.err
    assert "Traceback" not in output.err
    known = ("train", "eval", "export", "play", "tasks", "config", "report", "doctor", "robustness")
    command = words[0] if words[0] in known else ""
    assert lines[0].startswith(f"rlcore {command}".strip() + ": error: ")
    return lines[0]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RLCORE_DEBUG", raising=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    runs = tmp_path_factory.mktemp("runs")
    assert main(["train", *TINY, "--no-export", "--runs-dir", str(runs)]) == 0
    (path,) = runs.glob("CartPole/ppo/*")
    return path


@pytest.mark.parametrize("case", COMMAND_LINES)
def test_a_wrong_command_line_is_refused_in_one_line(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, parts = COMMAND_LINES[case]
    line = refused(words.split(), capsys)
    for part in parts:
        assert part in line
    assert not Path("runs").exists()  # nothing was begun


def test_a_folder_of_runs_is_answered_with_its_latest_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["train", "--resume"], ["eval", "--run"], ["export", "--run"]):
        assert f"but 1 below it; name one, the latest is {run}" in refused([*words, str(run.parents[1])], capsys)


def test_a_folder_in_place_of_a_file_is_refused_before_anything_is_done(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, flag, example in (
        (["export", "--run", str(run)], "--output", "policy.onnx"),
        (["export", "--run", str(run)], "--deploy-yaml", "deploy.yaml"),
        (["eval", "--run", str(run)], "--output", "eval.json"),
        (["report", str(run)], "--output", "report.html"),
        (["config", "--task", "CartPole"], "--output", "agent.yaml"),
        (["doctor", "--task", "CartPole"], "--json", "doctor.json"),
    ):
        line = refused([*words, flag, str(run)], capsys)
        assert f"{flag} is '{run}', which is a folder; name a file in it, such as {run / example}" in line
    file = str(run / "config.yaml")
    for words, flag in ((["export"], "--cpp"), (["robustness"], "--output")):
        line = refused([*words, "--run", str(run), flag, file], capsys)
        assert f"{flag} is '{file}', which is a file; name a folder" in line
    for flag in ("--show", "--cpp"):
        words = ["export", "--onnx", str(run), flag, *(["cpp"] if flag == "--cpp" else [])]
        assert f"'{run}' is a folder; name the file in it, such as policy.onnx" in refused(words, capsys)


def test_settings_of_rlcore_need_no_conversion(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(run / "config.yaml")
    assert f"rlcore already; train with rlcore train --config {file}" in refused(["config", "--file", file], capsys)
    line = refused(["config", "--file", file, "--from", "rsl_rl"], capsys)
    assert "rlcore already; give the file of rsl_rl" in line


def test_settings_of_another_library_are_told_whatever_is_wrong_with_them_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text("logger: wandb\nnum_steps_per_env: 24\nalgorithm: {class_name: PPO}\n")
    line = refused(["train", "--task", "Pendulum", "--config", str(file)], capsys)
    assert f"looks like one of rsl_rl: convert it first, rlcore config --file {file}" in line
    assert "valid:" not in line  # names of rlcore's, which that file is not about
    line = refused(["config", "--config", str(file)], capsys)
    assert f"names no task; it looks like one of rsl_rl: convert it first, rlcore config --file {file}" in line


def test_settings_of_rlcore_are_told_from_another_librarys_in_spite_of_a_mistake(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("mine.yaml").write_text("{task: CartPole, num_env: 3, agent: {gamma: 0.9}}")
    line = refused(["config", "--file", "mine.yaml"], capsys)
    assert "mine.yaml: these look like settings of rlcore; see what they come to with --config mine.yaml" in line


def test_a_run_that_is_given_as_an_exported_file_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["eval", "--onnx", str(run)], capsys)
    assert f"--onnx is '{run}', a folder; name the file in it, or give a run's folder to --run" in line


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("eval --run runs --stage ned", "--stage: 'ned' is not possible; did you mean 'end'?"),
        ("train --task Pendulum --env.randomze.mass 2", "unknown option 'randomze.mass': did you mean randomize.mass?"),
        ("train --task Pendulum --env.randomize.mass [2,1]", "env.randomize.mass.range: [2.0, 1.0] is not possible"),
        ("train --task Pendulum --env.randomize.mass.rnge [1,2]", "unknown key 'mass.rnge'; did you mean 'range'?"),
        ("train --task Pendulum --logger none,wandb", "logger: 'none' is not possible; it stands alone"),
        ("train --task CartPole --agent.safety.costs.x.limit 1", "env.costs.NAME makes one of what it observes"),
        ("train --task CartPole --algo reinforc", "'reinforc' is no algorithm; did you mean 'reinforce.py'?"),
        ("train --task CartPole --algo pp", "no algorithm; did you mean 'ppo'? Or name a FILE.py of your own"),
    ],
)
def test_what_is_nearly_right_is_answered_with_what_was_meant(
    words: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "reinforce.py").touch()
    monkeypatch.chdir(tmp_path)
    assert error in refused(words.split(), capsys)


def test_config_prints_what_a_file_comes_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("{task: Pendulum, algo: sac, num_envs: 3, agent: {gamma: 0.9}, env: {max_episode_length: 20}}")
    assert main(["config", "--config", str(file)]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["task"], printed["algo"], printed["num_envs"]) == ("Pendulum", "sac", 3)
    assert (printed["agent"]["gamma"], printed["env"]) == (0.9, {"max_episode_length": 20})
    assert "tau" in printed["agent"]  # what the file does not say is as shipped
    file.write_text("{num_envs: 3}")
    assert "own.yaml names no task; add --task TASK" in refused(["config", "--config", str(file)], capsys)
    line = refused(["config", "--config", str(file), "--file", "other.yaml"], capsys)
    assert "--file 'other.yaml' is converted; leave one out" in line


def test_a_folder_in_place_of_a_file_is_answered_with_the_file_in_it(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"is a folder; give {run}/config.yaml" in refused(["train", "--config", str(run)], capsys)
    assert "is a folder; give a file in it" in refused(["config", "--file", "."], capsys)


@pytest.mark.parametrize(
    ("algo", "part"),
    [
        ("sac", "--algo is 'ddpg', and my.yaml has the settings of 'sac'; leave one out"),
        ("[1]", "my.yaml: algo: [1] is no algorithm; valid: ddpg, maml, ppo, sac"),
    ],
)
def test_a_file_of_another_algorithm_is_refused_as_such(
    algo: str, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("my.yaml").write_text(f"algo: {algo}\n", encoding="utf-8")
    assert part in refused(["train", "--task", "Pendulum", "--config", "my.yaml", "--algo", "ddpg"], capsys)


@pytest.mark.parametrize("case", FILES)
def test_a_wrong_file_is_refused_in_one_line_that_names_it(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    text, parts = FILES[case]
    Path("my.yaml").write_text(text, encoding="utf-8")
    task = [] if text.startswith("task") else ["--task", "CartPole"]
    line = refused(["train", *task, "--config", "my.yaml"], capsys)
    for part in parts if case.endswith("of a task") else ["my.yaml", *parts]:
        assert part in line
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ("agent.gamma=0.5", ["agent.gamma", "0.5", "leave it out"]),
        ("--seed 9", ["seed", "9", "leave it out"]),
        ("--num-envs 8", ["num_envs", "8", "leave it out"]),
        ("--task Pendulum", ["task", "Pendulum", "leave it out"]),
        ("--num-iterations 1", ["num_iterations", "1", "--num-iterations 2"]),
    ],
)
def test_a_resumed_run_refuses_what_would_change_it(
    run: Path, flags: str, parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    line = refused(["train", "--resume", str(run), *flags.split()], capsys)
    for part in parts:
        assert part in line
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_missing_checkpoint_is_refused_with_those_there_are(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("eval", "export", "play"):
        line = refused([command, "--run", str(run), "--checkpoint", "7"], capsys)
        assert "'7'" in line
        assert "best, 2" in line


def test_a_damaged_checkpoint_is_refused_and_left_alone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = run / "checkpoints" / "000001.pt"
    damaged.write_bytes((run / "checkpoints" / "000002.pt").read_bytes()[:1000])
    try:
        for words in (["train", "--resume", str(damaged)], ["eval", "--run", str(run), "--checkpoint", "1"]):
            line = refused(words, capsys)
            assert "000001.pt" in line
            assert "earlier" in line
        assert len(damaged.read_bytes()) == 1000
    finally:
        damaged.unlink()


def test_a_file_that_is_no_onnx_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("policy.onnx").write_bytes(b"nothing")
    assert "policy.onnx" in refused(["eval", "--onnx", "policy.onnx"], capsys)


def test_a_run_is_not_evaluated_on_another_task(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["eval", "--run", str(run), "--task", "Pendulum"], capsys)
    assert "Pendulum" in line
    assert "CartPole" in line


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RLCORE_DEBUG", "1")
    assert main(["train", "--task", "CartPoel"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("flags", ["train --task CartPoel", "export --run nowhere"])
def test_the_process_exits_with_2_and_one_line(flags: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(rlcore.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "rlcore", *flags.split()], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert "error: " in done.stderr


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--seed", "-4"], ["--seed is -4", "from 0"]),
        (["--seed", "9" * 30], ["--seed is 999", "from 0"]),
        (["--device", "gpu"], ["--device is 'gpu'", "cpu"]),
    ],
)
def test_eval_refuses_what_no_evaluation_can_have(
    words: list[str], parts: list[str], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(["eval", "--run", str(run), *words], capsys)
    assert all(part in line for part in parts), line


def test_a_pattern_that_fits_two_runs_is_explained(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["eval", "--run", str(run), str(run.parent)], capsys)
    assert "--run takes one path" in line
    assert "name one" in line


def test_an_exported_file_is_not_taken_for_its_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run / "export" / "policy.onnx"
    file.parent.mkdir(exist_ok=True)
    file.touch()
    assert "--onnx" in refused(["eval", "--run", str(file)], capsys)


def test_figures_that_cannot_be_written_end_in_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["eval", "--run", str(run), "--num-envs", "2", "--output", str(tmp_path / "file" / "eval.json")]) == 2
    error = capsys.readouterr().err
    assert f"'{tmp_path / 'file'}'" in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("broken", [False, True])
def test_a_ctrl_c_that_an_import_swallows_still_ends_the_command(broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlcore.train.commands import eval as command

    started: list[str] = []

    def swallow(words: list[str]) -> object:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1.0)
        except KeyboardInterrupt:  # as C extensions do while they are imported
            if broken:
                raise AttributeError("half imported") from None
        return lambda: started.append("job") or 0

    monkeypatch.setattr(command, "eval_command", swallow)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    try:
        assert main(["eval"]) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert not started
