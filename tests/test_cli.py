"""The commands, from training to the exported file."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from PIL import Image

import rlcore
from rlcore.checkpoint import load_checkpoint
from rlcore.envs import make_env
from rlcore.export import ExportError, read_metadata
from rlcore.train import arguments
from rlcore.train.cli import main
from rlcore.train.config import TrainConfig
from rlcore.train.ending import PATIENCE

ROOT = Path(rlcore.__file__).parents[1]

TINY = [
    "train",
    "--task",
    "CartPole",
    "--num-envs",
    "4",
    "--eval-envs",
    "4",
    "--log-interval",
    "1",
    "--agent.num-steps",
    "8",
    "--agent.num-minibatches",
    "2",
    "--agent.lr-schedule",
    "adaptive",
    "--agent.normalize-value",
    "--agent.actor.hidden-dims",
    "8",
    "--agent.critic.hidden-dims",
    "8",
    "--env.max_episode_length",
    "20",
]


def train(folder: Path, *words: str) -> Path:
    """Train in this process; the run folder."""
    assert main([*TINY, "--runs-dir", str(folder), *words]) == 0
    (run,) = folder.glob("CartPole/ppo/*")
    return run


def start(*words: str, folder: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "rlcore", *words]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two nested states are not bitwise the same."""
    if isinstance(a, torch.Tensor):
        same = isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
        return [] if same else [path]
    if isinstance(a, dict):
        if not isinstance(b, dict) or a.keys() != b.keys():
            return [path]
        return [found for key in a for found in differences(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [path]
        return [found for i in range(len(a)) for found in differences(a[i], b[i], f"{path}/{i}")]
    return [] if a == b else [path]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 6 iterations, evaluated every 2."""
    return train(
        tmp_path_factory.mktemp("runs"), "--num-iterations", "6", "--eval-interval", "2", "--save-interval", "2"
    )


# Train


def test_a_run_leaves_the_files_that_it_promises(run: Path) -> None:
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "000002.pt",
        "000004.pt",
        "000006.pt",
        "best.pt",
    ]
    for name in ("config.yaml", "metrics.csv", "eval.json", "export/policy.onnx"):
        assert (run / name).is_file()


def test_metrics_have_a_row_per_interval_with_figures_that_fit(run: Path) -> None:
    rows = rows_of(run)
    assert [int(row["iteration"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [int(row["env_steps"]) for row in rows] == [32, 64, 96, 128, 160, 192]
    assert all(float(row["rollout/reward"]) == 1.0 for row in rows)
    assert [bool(row["eval/return"]) for row in rows] == [False, True, False, True, False, True]
    for key in ("loss/policy", "loss/value", "policy/kl", "policy/learning_rate", "time/steps_per_s"):
        assert all(row[key] for row in rows)


def test_tensorboard_counts_env_steps(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run))
    events.Reload()
    points = events.Scalars("loss/value")
    assert [point.step for point in points] == [32, 64, 96, 128, 160, 192]
    assert [point.value for point in points] == pytest.approx([float(row["loss/value"]) for row in rows_of(run)])
    assert all(later.wall_time >= earlier.wall_time for earlier, later in pairwise(points))


def test_the_best_checkpoint_is_the_one_that_evaluated_best(run: Path) -> None:
    scores = {int(row["iteration"]): float(row["eval/return"]) for row in rows_of(run) if row["eval/return"]}
    best = load_checkpoint(run / "checkpoints" / "best.pt")
    assert best["score"] == max(scores.values())
    assert scores[best["progress"]["iteration"]] == best["score"]


def test_the_closing_figures_are_in_eval_json_for_policy_and_file(run: Path) -> None:
    record = json.loads((run / "eval.json").read_text(encoding="utf-8"))
    assert record["task"] == "CartPole"
    assert record["episodes"] == record["onnx"]["episodes"] == 4
    low, high = record["return_ci95"]
    assert low <= record["return_mean"] <= high
    assert record["return_mean"] == record["length_mean"] <= 20
    assert record["onnx"]["parity"] <= 1e-5


def test_the_configuration_of_a_run_repeats_it_bit_by_bit(run: Path, tmp_path: Path) -> None:
    words = ["train", "--config", str(run / "config.yaml"), "--runs-dir", str(tmp_path), "--no-export"]
    assert main(words) == 0
    (again,) = tmp_path.glob("CartPole/ppo/*")
    a, b = (load_checkpoint(path / "checkpoints" / "000006.pt") for path in (run, again))
    for key in ("agent", "env", "rng"):
        assert differences(a[key], b[key]) == []


def test_evaluations_leave_no_trace_in_the_training(run: Path, tmp_path: Path) -> None:
    rare = train(tmp_path, "--num-iterations", "6", "--eval-interval", "0", "--eval-envs", "2", "--no-export")
    a, b = (load_checkpoint(path / "checkpoints" / "000006.pt") for path in (run, rare))
    assert differences(a["agent"], b["agent"]) == []
    assert differences(a["rng"], b["rng"]) == []


def test_the_options_of_a_task_reach_it_from_the_command_line(run: Path) -> None:
    content = load_checkpoint(run / "checkpoints" / "best.pt")
    assert content["config"]["env"] == {"max_episode_length": 20}


def test_a_terminal_gets_a_bar_and_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any output for a terminal
    monkeypatch.setenv("COLUMNS", "120")
    import io
    import sys as system

    screen = io.StringIO()
    monkeypatch.setattr(system, "stdout", screen)
    train(tmp_path, "--num-iterations", "3", "--no-export")
    text = screen.getvalue()
    for word in ("3/3", "steps/s", "ETA", "episode length", "value loss", "KL", "learning rate"):
        assert word in text


# Resume


def test_twenty_iterations_equal_ten_and_ten_bit_by_bit(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", "--num-iterations", "20", "--no-export")
    halves = train(tmp_path / "halves", "--num-iterations", "10", "--no-export")
    assert main(["train", "--resume", str(halves), "--num-iterations", "20"]) == 0
    a, b = (load_checkpoint(path / "checkpoints" / "000020.pt") for path in (whole, halves))
    for key in ("agent", "env", "rng", "recording"):
        assert differences(a[key], b[key]) == []
    assert differences(a["progress"], b["progress"]) == ["/seconds"]
    assert [row["iteration"] for row in rows_of(halves)] == [str(i) for i in range(1, 21)]
    deciding = [key for key in rows_of(whole)[0] if not key.startswith(("time/", "eval/"))]
    for one, two in zip(rows_of(whole), rows_of(halves), strict=True):
        assert [one[key] for key in deciding] == [two[key] for key in deciding]


def test_resuming_an_earlier_checkpoint_sets_later_ones_aside_and_repeats_them(tmp_path: Path) -> None:
    run = train(tmp_path, "--num-iterations", "6", "--save-interval", "2", "--no-export")
    last = load_checkpoint(run / "checkpoints" / "000006.pt")
    assert main(["train", "--resume", str(run / "checkpoints" / "000002.pt")]) == 0
    assert differences(last["agent"], load_checkpoint(run / "checkpoints" / "000006.pt")["agent"]) == []
    assert (run / "checkpoints" / "000006.pt.old").is_file()
    assert [row["iteration"] for row in rows_of(run)] == ["1", "2", "3", "4", "5", "6"]


def test_a_finished_run_that_is_resumed_is_evaluated_and_exported_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path, "--num-iterations", "2", "--no-export")
    capsys.readouterr()
    assert main(["train", "--resume", str(run), "--export"]) == 0
    assert "all 2 iterations are done" in " ".join(capsys.readouterr().out.split())
    assert (run / "export" / "policy.onnx").is_file()
    assert len(rows_of(run)) == 2


def test_an_env_that_cannot_be_saved_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--task gym:CartPole-v1 --num-envs 2 --eval-envs 2 --agent.num-steps 8 --agent.num-minibatches 2"
    words += f" --num-iterations 1 --env.max_episode_steps 15 --no-export --runs-dir {tmp_path}"
    assert main(["train", *words.split()]) == 0
    (run,) = tmp_path.glob("gym_CartPole-v1/ppo/*")
    assert main(["train", "--resume", str(run), "--num-iterations", "2"]) == 0
    assert "start anew" in capsys.readouterr().out


# Interruption


def wait_for(path: Path, pattern: str, process: subprocess.Popen[str]) -> Path:
    while not (found := sorted(path.glob(pattern))):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return found[0]


def test_ctrl_c_writes_a_checkpoint_and_the_run_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    process = start(*TINY, "--num-iterations", "100000", "--save-interval", "3", folder=tmp_path)
    run = wait_for(tmp_path, "runs/CartPole/ppo/*/checkpoints/000006.pt", process).parents[1]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert "finishing the iteration" in err
    assert f"rlcore train --resume {run.relative_to(tmp_path)}" in out
    last = max(int(path.stem) for path in (run / "checkpoints").glob("0*.pt"))
    assert f"stopped after iteration {last}" in out
    assert int(rows_of(run)[-1]["iteration"]) == last

    assert main(["train", "--resume", str(run), "--num-iterations", str(last + 3), "--no-export"]) == 0
    whole = train(tmp_path / "whole", "--num-iterations", str(last + 3), "--no-export", "--log-interval", "100")
    a, b = (load_checkpoint(path / "checkpoints" / f"{last + 3:06d}.pt") for path in (run, whole))
    assert differences(a["agent"], b["agent"]) == []


def test_a_second_signal_stops_at_once_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    # An iteration that takes long, so that both signals arrive in one.
    slow = ["--agent.num-epochs", "1000000", "--num-iterations", "2"]
    process = start(*TINY, *slow, folder=tmp_path)
    wait_for(tmp_path, "runs/CartPole/ppo/*/metrics.csv", process)
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    # The second comes before anybody can have read what it would do.
    for wait, hint in ((0.0, "once more to stop at once"), (PATIENCE + 0.1, "too soon after the first to count")):
        while hint not in process.stderr.readline():
            pass
        time.sleep(wait)
        process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 143
    assert "stopped, in iteration 1; there is no checkpoint to go on from" in err
    assert not list(tmp_path.rglob("*.tmp"))


# Eval, export, play, tasks


@pytest.mark.parametrize("command", ["eval", "play"])
@pytest.mark.parametrize("fails", [False, True])
def test_env_is_closed_however_a_command_ends(
    command: str, fails: bool, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def step(env: Any, action: Any) -> Any:
        events.append("step")
        if fails:
            raise ValueError("the robot is on fire")
        return stepped(env, action)

    env = type(make_env("CartPole", 1))
    stepped = env.step
    monkeypatch.setattr(env, "step", step)
    monkeypatch.setattr(env, "close", lambda env: events.append("closed"))
    output = tmp_path / ("figures.json" if command == "eval" else "play.gif")
    words = f"{command} --run {run} --output {output} " + ("--num-envs 2" if command == "eval" else "--steps 3")
    assert (main(words.split()) != 0) == fails  # a failure of its own in each command
    assert events.count("closed") == 1 and events[-1] == "closed"


def test_eval_measures_a_run_and_writes_the_figures(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "figures.json"
    words = f"eval --run {run} --checkpoint last --num-envs 3 --episodes 8 --output {output}"
    assert main(words.split()) == 0
    record = json.loads(output.read_text(encoding="utf-8"))
    assert record["episodes"] == 9  # whole rounds of 3
    assert record["policy"].endswith("000006.pt")
    printed = capsys.readouterr().out
    assert "95% interval" in printed
    assert "Student's t" in printed


def test_eval_of_the_file_alone_agrees_with_eval_of_the_run(run: Path, tmp_path: Path) -> None:
    file, options = run / "export" / "policy.onnx", ["--num-envs", "5", "--env.max_episode_length", "20"]
    for name, source in (("a", ["--run", str(run)]), ("b", ["--onnx", str(file)])):
        assert main(["eval", *source, *options, "--output", str(tmp_path / name)]) == 0
    a, b = (json.loads((tmp_path / name).read_text(encoding="utf-8")) for name in "ab")
    assert a.pop("policy") != b.pop("policy")
    assert a == b


def test_the_file_alone_runs_in_the_env_it_was_trained_in_and_is_exported_alike_again(tmp_path: Path) -> None:
    options = ["--env.max_episode_length", "13", "--env.hidden", "cos", "--num-envs", "4", "--num-iterations", "1"]
    words = ["--task", "Pendulum-HiddenVelocity", "--device", "cpu", "--runs-dir", str(tmp_path), *options]
    assert main(["train", *words]) == 0
    (file,) = tmp_path.glob("*/ppo/*/export/policy.onnx")
    assert main(["eval", "--onnx", str(file), "--num-envs", "3"]) == 0
    record = json.loads((file.parent / "eval.json").read_text(encoding="utf-8"))
    assert (record["length_mean"], record["env"]) == (13, {"max_episode_length": 13, "hidden": "cos"})
    assert main(["eval", "--onnx", str(file), "--num-envs", "3", "--env.hidden", "vel"]) == 2
    content = file.read_bytes()
    assert main(["export", "--run", str(file.parents[1])]) == 0
    assert file.read_bytes() == content


def test_export_needs_no_env(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_simulator(*args: object, **options: object) -> None:
        raise AssertionError("the env was built")

    monkeypatch.setattr("rlcore.envs.make_env", no_simulator)
    output = tmp_path / "new" / "policy.onnx"
    assert main(["export", "--run", str(run), "--checkpoint", "4", "--output", str(output), "--dynamic-batch"]) == 0
    model = onnx.load(output)
    onnx.checker.check_model(model)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert (facts["task"], facts["iteration"], facts["algorithm"]) == ("CartPole", "4", "ppo")


def test_an_export_may_be_told_how_far_a_file_may_differ(run: Path, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "policy.onnx"
    words = ["export", "--run", str(run), "--output", str(output), "--tolerance"]
    assert main([*words, "3e-5"]) == 0 and read_metadata(output)["parity_tolerance"] == 3e-5
    assert main([*words, "2"]) == 2
    assert "--tolerance is 2; give a number above 0 and below 1" in capsys.readouterr().err
    assert main(["export", "--onnx", str(output), "--show", "--tolerance", "3e-5"]) == 2


def test_a_refused_export_is_told_by_its_own_exit_code(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise ExportError("the file would act otherwise")

    monkeypatch.setattr("rlcore.train.conclude.export_checkpoint", refuse)
    assert main(["export", "--run", str(run)]) == 1
    assert capsys.readouterr().err == "rlcore export: refused: the file would act otherwise\n"


def test_what_was_written_is_told_before_what_could_not_be(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def full(file: Path, folder: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    monkeypatch.setattr("rlcore.export.write_cpp", full)
    shutil.copytree(run, tmp_path / "run")
    assert main(["export", "--run", str(tmp_path / "run"), "--cpp", "there"]) == 2
    said = capsys.readouterr()
    assert "exported  " in said.out
    assert said.err == "rlcore export: error: [Errno 13] Permission denied: 'there'\n"  # not the ONNX file


@pytest.mark.parametrize("source", ["run", "onnx"])
def test_play_writes_an_animation(run: Path, source: str, tmp_path: Path) -> None:
    path = run if source == "run" else run / "export" / "policy.onnx"
    output = tmp_path / "play.gif"
    assert main(["play", f"--{source}", str(path), "--steps", "10", "--output", str(output)]) == 0
    with Image.open(output) as picture:
        assert picture.n_frames == 4  # type: ignore[attr-defined]  # every third of ten steps of 20 ms
        assert picture.info["duration"] == 60


def test_mp4_needs_ffmpeg(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["play", "--run", str(run), "--output", str(tmp_path / "play.mp4")]) == 2
    assert "ffmpeg" in capsys.readouterr().err


def test_mp4_frames_reach_ffmpeg(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = tmp_path / "ffmpeg"  # takes what ffmpeg takes, and writes the raw frames
    stand_in.write_text('#!/bin/sh\nfor last; do :; done\nexec cat > "$last"\n', encoding="utf-8")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    output = tmp_path / "play.mp4"
    assert main(["play", "--run", str(run), "--steps", "6", "--output", str(output)]) == 0
    assert output.stat().st_size == 2 * 300 * 400 * 3


def test_tasks_lists_names_with_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    line = next(line for line in lines if line.startswith("CartPole "))
    assert line.split() == ["CartPole", "policy", "4", "2", "choices", "500", "steps"]
    assert any("gym:Pendulum-v1" in line for line in lines)


def test_tasks_can_be_filtered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "pendulum-v1"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["gym:Pendulum-v1", "policy", "3", "1", "number", "200", "steps"] in lines
    assert not any(line and line[0] == "CartPole" for line in lines)


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    process = start("tasks", folder=tmp_path)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait() == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""


# Help


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"]):
        assert main(words) == 0
        assert "rlcore train --task" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"rlcore {rlcore.__version__}"


def test_help_of_train_shows_the_defaults_of_the_task_and_every_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--task", "gym:Pendulum-v1", "--resume", "nowhere", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Discount per step. (default: 0.9)" in text
    assert "gym_Pendulum-v1.yaml" in text
    for flag in ("--resume", "--config", "--num-envs", "--agent.actor.hidden-dims"):
        assert flag in text


@pytest.mark.parametrize(
    ("task", "parts"),
    [
        ("Reach-UR5e-IK-Delayed", ["ik_damping", "(default: 0.05)", "delay steps. (default: 3)"]),
        ("gym:Pendulum-v1", ["vectorization", "others for `gymnasium.make`"]),
        ("Mjlab-Any", ["final_obs how to get", "groups observation groups", "others fields of the configuration"]),
        ("Isaac-Any-v0", ["presets of Isaac Lab 3", "others fields of the configuration"]),
    ],
)
def test_help_of_train_lists_the_options_of_the_task(
    task: str, parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--task", task, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"env options of {task}, written --env.NAME VALUE" in text
    assert "num_envs" not in text.partition("env options of")[2]
    for part in (*parts, "--from {None}|STR"):
        assert part in text
    assert "--library" not in text


def test_help_of_train_without_a_task_says_where_its_options_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "rlcore train --task TASK --help" in printed
    text = " ".join(printed.replace("│", " ").split())
    assert "`rlcore tasks` lists them. (required)" in text and "Tasks have defaults of their own" in text
    assert "(default: TASK)" not in text
    assert main(["train", "--task", "Pendulum", "--help"]) == 0
    assert "lists them. (default: Pendulum)" in " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize("command", ["train", "eval", "export", "play", "tasks"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"rlcore {command}" in capsys.readouterr().out


def test_whole_numbers_may_be_written_with_an_exponent() -> None:
    words = ["--num_envs", "1e3", "--agent.actor.hidden_dims", "1e1", "8", "--agent.sequence_length", "1.2e1"]
    pairs = arguments.split_words(words, TrainConfig, free="env")
    config = arguments.parse(TrainConfig, pairs, TrainConfig(task="Null"), "rlcore train")
    assert (config.num_envs, config.agent.actor.hidden_dims, config.agent.sequence_length) == (1000, (10, 8), 12)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--agent.normalize-obs", True),
        ("--agent.normalize-obs true --seed 2", True),
        ("--agent.no-normalize-obs", False),
        ("agent.normalize_obs=False", False),
        ("--agent.normalize-obs policy critic", ("policy", "critic")),
        ("agent.normalize_obs=[policy,critic]", ("policy", "critic")),
    ],
)
def test_a_switch_that_may_be_a_list(words: str, expected: bool | tuple[str, ...]) -> None:
    pairs = arguments.split_words(words.split(), TrainConfig, free="env")
    config = arguments.parse(TrainConfig, pairs, TrainConfig(task="Null"), "rlcore train")
    assert config.agent.normalize_obs == expected
