"""The examination of envs and runs: each planted fault is found by name, and what is healthy is let through."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import faulty
import numpy as np
import pytest
import torch

from rlcore.config import save_yaml
from rlcore.envs import make_env
from rlcore.report import Report
from rlcore.train.algorithms import find
from rlcore.train.cli import main
from rlcore.train.defaults import default_config
from rlcore.train.doctor import learner
from rlcore.train.doctor.control import trace
from rlcore.train.doctor.env import bootstrap_of, examine_env
from rlcore.train.doctor.episodes import discounted
from rlcore.train.doctor.findings import Examination
from rlcore.train.doctor.learner import saturated
from rlcore.train.doctor.recording import RandomActions, kept_rows, play
from rlcore.train.doctor.run import examine_run
from rlcore.train.logger import MetricsFile

ROOT = Path(__file__).parents[1]

FAULTS = {
    "Dead": "observation.dead",
    "ConstantTerm": "observation.constant",
    "Unscaled": "observation.scale",
    "Tiny": "observation.small",
    "FarObservation": "observation.outliers",
    "Twice": "observation.duplicated",
    "NotANumber": "observation.nan",
    "FrozenRow": "rows.frozen",
    "NextRow": "rows.leak",
    "TwinRows": "rows.duplicated",
    "NaNReward": "reward.nan",
    "ConstantReward": "reward.constant",
    "IgnoredAction": "reward.ignores_action",
    "NoEffect": "reward.ignores_action",
    "Unmoved": "action.no_effect",
    "FarReward": "reward.outliers",
    "LargeReward": "reward.large",
    "LateReward": "reward.delayed",
    "LimitTerminates": "episode.timeout_terminated",
    "OneStep": "episode.short",
    "Endless": "episode.never_ends",
    "WrongLimit": "episode.limit",
    "FinalIsFirst": "episode.final_obs_reset",
    "FinalIsOld": "episode.final_obs_stale",
    "Unseeded": "env.nondeterministic",
    "WrongTerms": "deployment.refused",
    "NarrowBounds": "action.saturated",
    "WideBounds": "action.unused",
    "Slow": "speed.env",
    "Crash": "env.fails",
    "WrongShape": "env.contract",
    "SetNowhere": "parameters.no_effect",
    "SetEverywhere": "parameters.where",
}
"""Envs of ``faulty`` and the one error or warning that each is to cause."""

SHORT = {task: {"max_episode_length": 100} for task in ("CartPole", "CartPole-Pixels")}
"""Random actions let the pole fall long before; of twice the limit, which a recording has, most shows nothing new."""

ALSO = {"OneStep": {"observation.dead"}, "Unmoved": {"reward.constant"}}
"""What comes with a fault: where no episode goes on, nothing has a velocity."""


def examined(task: str, seconds: float = 60.0, envs: int = 32, **agent: Any) -> Examination:
    """What is found of a task; enough time is given for whole episodes on a busy machine."""
    config, _ = default_config(task)
    number = envs if task.startswith("python:") else min(config.num_envs, envs)
    env = {**config.env, **SHORT.get(task, {})}
    config = replace(config, num_envs=number, env=env, device="cpu", threads=1, agent=replace(config.agent, **agent))
    return examine_env(config, seconds)


def wrong(examination: Examination) -> set[str]:
    """The checks that found an error or a warning."""
    return {found.check for found in examination.findings if found.severity != "note"}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_and_nothing_else(name: str) -> None:
    seconds, envs = (3.0, 8) if name == "Slow" else (60.0, 32)
    settings = {"gamma": 0.9} if name == "LateReward" else {}
    examination = examined(f"python:faulty:{name}", seconds, envs, **settings)
    assert wrong(examination) - ALSO.get(name, set()) == {FAULTS[name]}
    assert examination.code() == 1
    for found in examination.findings:
        assert found.what and found.why and found.remedy


def test_every_faulty_env_is_examined() -> None:
    known = {name for name, value in vars(faulty).items() if isinstance(value, type) and value.__module__ == "faulty"}
    assert known == {*FAULTS, "Healthy", "Weighed"}


def test_what_is_found_names_the_term_the_env_and_the_number() -> None:
    (unscaled,) = (f for f in examined("python:faulty:Unscaled").findings if f.severity != "note")
    assert "policy/extra" in unscaled.what
    assert unscaled.value is not None and unscaled.value > 5000
    (frozen,) = (f for f in examined("python:faulty:FrozenRow").findings if f.severity != "note")
    assert "env 3 (1 of 32)" in frozen.what


@pytest.mark.parametrize("name", ["Healthy", "Weighed"])
def test_a_healthy_env_is_healthy(name: str) -> None:
    examination = examined(f"python:faulty:{name}")
    assert examination.findings == []
    assert examination.code(strict=True) == 0
    assert set(examination.facts) == {"spaces", "episodes", "reward", "actions", "rollout", "speed"}
    assert [term.term for term in examination.terms] == ["policy/position", "policy/velocity", "policy/extra"]


BUILT_IN = (
    "CartPole", "Pendulum", "Pendulum-HiddenVelocity", "Memory", "Budget", "Detour", "Navigation-2D", "Corner-NE",
    "Reach-UR5e-JointPos", "Reach-UR10-Torque", "Reach-UR5e-JointVel-Box", "Reach-UR5e-IK-Delayed",
)  # fmt: skip
"""One of each kind; the others differ from these in a number."""


@pytest.mark.parametrize("task", [*BUILT_IN, pytest.param("CartPole-Pixels", marks=pytest.mark.slow)])
def test_built_in_tasks_are_healthy(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlcore.train.doctor.env.LONGEST_TRACE", 100)  # five of them; planted faults have all of it
    assert wrong(examined(task)) == set()


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCarContinuous-v0"])
def test_classics_of_gymnasium_are_healthy(name: str) -> None:
    assert wrong(examined(f"gym:{name}", envs=8)) == set()  # stepped one by one


@pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="needs gymnasium[mujoco]")
@pytest.mark.parametrize("name", ["HalfCheetah-Vel", "HalfCheetah-Dir"])
def test_built_in_tasks_of_mujoco_are_healthy(name: str) -> None:
    assert wrong(examined(name)) == set()


@pytest.mark.skipif(importlib.util.find_spec("mjlab") is None, reason="needs mjlab")
def test_a_task_of_mjlab_is_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--task", "Mjlab-Cartpole-Balance", "--num-envs", "256", "--device", "cpu", "--seconds", "20"]
    assert main(["doctor", *words]) == 0, capsys.readouterr().out


def test_null_has_no_use_for_actions_and_is_told_so() -> None:
    assert wrong(examined("Null", 5.0, num_steps=64)) == {"reward.ignores_action"}


def test_a_sparse_reward_that_is_never_met_is_told() -> None:
    assert wrong(examined("gym:MountainCar-v0")) <= {"reward.constant"}


@pytest.mark.parametrize("algo", ["sac", "ddpg"])
def test_algorithms_with_a_replay_memory_are_examined(algo: str) -> None:
    config, _ = default_config("Pendulum", algo=algo)
    examination = examine_env(replace(config, num_envs=4, device="cpu", threads=1), 30.0)
    assert wrong(examination) == set()
    assert "learning" in examination.facts["speed"]


def test_settings_that_do_not_fit_are_a_finding() -> None:
    assert "settings.refused" in wrong(examined("python:faulty:Healthy", num_minibatches=7))
    assert "batch.minibatch" in wrong(examined("python:faulty:Healthy", num_minibatches=48))
    assert "batch.less_than_episode" in wrong(examined("python:faulty:Healthy", num_steps=1, num_minibatches=1))


def test_without_a_normalizer_scales_are_judged_more_strictly() -> None:
    assert wrong(examined("python:faulty:Tiny", normalize_obs=False)) == {"observation.small"}
    found = wrong(examined("python:faulty:Unscaled", normalize_obs=False))
    assert found == {"observation.scale", "action.saturated"}  # what enters unscaled leaves so


def test_the_command_says_and_writes_what_was_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "doctor.json"
    words = ["--num-envs", "32", "--device", "cpu", "--seconds", "60", "--json", str(file)]
    assert main(["doctor", "--task", "python:faulty:Dead", *words]) == 1
    out = capsys.readouterr().out
    assert "warning      observation.dead: policy/extra is always 0" in out
    assert "remedy: fill it" in out and "not healthy  1 warning" in out
    record = json.loads(file.read_text())
    assert record["code"] == 1 and record["task"] == "python:faulty:Dead" and record["run"] is None
    assert record["env"]["counts"] == {"error": 0, "warning": 1, "note": 0}
    assert record["env"]["findings"][0]["check"] == "observation.dead"
    assert record["env"]["observation_terms"][2]["remark"] == "never changes"
    assert main(["doctor", "--task", "python:faulty:Healthy", *words]) == 0
    assert json.loads(file.read_text())["env"]["healthy"] is True


@pytest.mark.parametrize("env", ["LimitTerminates", "FinalIsFirst"])
def test_to_an_algorithm_without_bootstrap_time_outs_and_last_observations_are_all_the_same(env: str) -> None:
    config, _ = default_config(f"python:faulty:{env}")
    for algo, agent in (("ppo", replace(config.agent, timeout_bootstrap="none")), ("maml", find("maml").config())):
        own = replace(default_config(f"python:faulty:{env}", algo=algo)[0], agent=agent)
        assert bootstrap_of(own) == "none"
    assert bootstrap_of(config) == "final_obs"
    into = examine_env(replace(config, agent=replace(config.agent, timeout_bootstrap="none")), seconds=2)
    assert not {"episode.timeout_terminated", "episode.final_obs_reset"} & {f.check for f in into.findings}
    assert into.facts["time-outs"] == "worth nothing, like failures (none)"


def test_one_pass_of_ppo_stands_for_all_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    config, _ = default_config("CartPole")
    config = replace(config, num_envs=8, agent=replace(config.agent, num_epochs=7, num_minibatches=2))
    epochs: list[int] = []

    def timed(env: Any, agent: Any, *_: Any, on_report: Any, **__: Any) -> None:
        epochs.append(agent.config.num_epochs)
        on_report(Report(1, 1, {"time/collect_s": 1.0, "time/learn_s": 2.0}))

    monkeypatch.setattr(learner, "learn", timed)
    into = examine_env(config, seconds=0.1)
    assert epochs == [1] and into.numbers["speed"]["learn"] == 14.0 and into.numbers["speed"]["collect"] == 1.0


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "--task is missing; give one, such as --task CartPole, or --run RUN"),
        (["--run", "nowhere"], "no run at 'nowhere'"),
        (["--task", "CartPole", "--seconds", "0"], "--seconds is 0.0; give more than 0"),
        (
            ["--task", "CartPole", "--json", "."],
            "--json is '.', which is a folder; name a file in it, such as doctor.json",
        ),
        (["--task", "CartPole", "--num-envs", "0"], "--num-envs is 0; give 1 or more"),
        (["--run", "nowhere", "--env.x", "1"], "without --task no env is examined"),
        (["--run", "nowhere", "--algo", "sac"], "--algo is for the env, and without --task none is examined"),
        (["--config", "nowhere.yaml"], "configuration file 'nowhere.yaml' does not exist"),
        (["--task", "CartPol"], "unknown task 'CartPol': did you mean CartPole"),
    ],
)
def test_wrong_words_give_one_line(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *words]) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1


def test_a_file_of_settings_names_the_task_and_the_algorithm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("{task: Pendulum, algo: sac, num_envs: 2, env: {max_episode_length: 20}}")
    main(["doctor", "--config", str(file), "--seconds", "0.3", "--device", "cpu"])
    assert capsys.readouterr().out.startswith("Pendulum, sac, seed 1\n")
    file.write_text("{task: Pendulum, agent: {gama: 0.9}}")
    assert main(["doctor", "--config", str(file)]) == 2
    assert "agent.gama'; did you mean 'gamma'?" in capsys.readouterr().err
    file.write_text("{num_envs: 2}")
    assert main(["doctor", "--config", str(file)]) == 2
    assert "--task is missing" in capsys.readouterr().err


# --- Runs ------------------------------------------------------------------------------------------------------------

ROWS = 20


def make_run(folder: Path, curves: dict[str, Any], **settings: Any) -> Path:
    """A run of CartPole whose curves are healthy but for those that are given, by the share of the run that is over."""
    healthy: dict[str, Any] = {
        "rollout/episode_return": lambda x: 20 + 400 * x,
        "eval/return": lambda x: 25 + 450 * x,
        "loss/value": lambda x: 50 - 20 * x,
        "policy/kl": lambda x: 0.008,
        "policy/clip_fraction": lambda x: 0.12,
        "policy/explained_variance": lambda x: 0.2 + 0.7 * x,
        "policy/entropy": lambda x: 0.69 - 0.4 * x,
        "policy/learning_rate": lambda x: 1e-3 * (1 - x),
        "policy/gradient_norm": lambda x: 1.5,
        "rollout/dropped": lambda x: 0.0,
    }
    config, _ = default_config("CartPole")
    agent = replace(config.agent, **settings)
    (folder / "checkpoints").mkdir(parents=True)
    save_yaml(folder / "config.yaml", replace(config, num_iterations=ROWS, log_interval=1, agent=agent))
    file = MetricsFile(folder / "metrics.csv")
    for i in range(1, ROWS + 1):
        row = {name: float(curve((i - 1) / (ROWS - 1))) for name, curve in (healthy | curves).items()}
        file.write(i, 4096 * i, row)
    return folder


FAULTY_RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "run.kl_large": ({"policy/kl": lambda x: 0.3}, {}),
    "run.kl_small": ({"policy/kl": lambda x: 1e-7}, {"lr_schedule": "constant"}),
    "run.clipped": ({"policy/clip_fraction": lambda x: 0.6}, {}),
    "run.explained_variance": ({"policy/explained_variance": lambda x: -0.2}, {}),
    "run.value_loss": ({"loss/value": lambda x: 1e-2 * 1e6**x, "rollout/episode_return": lambda x: 20 + x}, {}),
    "run.std_collapsed": ({"policy/std": lambda x: 0.01**x}, {}),
    "run.std_exploded": ({"policy/std": lambda x: 1 + 9 * x}, {}),
    "run.entropy_collapsed": ({"policy/entropy": lambda x: 0.69 * 1e-4**x}, {}),
    "run.learning_rate": ({"policy/learning_rate": lambda x: 1e-5}, {"lr_schedule": "adaptive"}),
    "run.gradient_norm": ({"policy/gradient_norm": lambda x: 1e4}, {}),
    "run.return_fell": ({"rollout/episode_return": lambda x: 400 * math.sin(math.pi * x)}, {}),
    "run.evaluation": ({"eval/return": lambda x: 10.0}, {}),
    "run.dropped": ({"rollout/dropped": lambda x: 100.0}, {}),
    "run.skipped": ({"policy/skipped_minibatches": lambda x: 3.0}, {}),
    "run.limit": ({"safety/heat_cost": lambda x: 40 - 10 * x, "safety/heat_limit": lambda x: 6.0}, {}),
    "run.nan": ({"loss/policy": lambda x: math.nan if x > 0.5 else 0.1}, {}),
    "run.replay_lost": ({"replay/lost": lambda x: 0.2}, {}),
}


@pytest.mark.parametrize("check", FAULTY_RUNS)
def test_what_is_wrong_with_a_run_is_found_and_nothing_else(check: str, tmp_path: Path) -> None:
    curves, settings = FAULTY_RUNS[check]
    assert wrong(examine_run(make_run(tmp_path / "run", curves, **settings))) == {check}


def test_a_cost_that_came_to_its_limit_is_healthy(tmp_path: Path) -> None:
    cost = {"safety/heat_cost": lambda x: 60 * 0.01**x + 6, "safety/heat_limit": lambda x: 6.0}
    assert wrong(examine_run(make_run(tmp_path / "run", cost))) == set()


def test_a_healthy_run_is_healthy_and_no_env_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rlcore.train.doctor.env.make_env", None)
    run, file = make_run(tmp_path / "run", {}), tmp_path / "doctor.json"
    assert main(["doctor", "--run", str(run), "--json", str(file)]) == 0, capsys.readouterr().out
    record = json.loads(file.read_text())
    assert record["task"] is None and record["run"]["healthy"] is True and "env" not in record


def test_a_real_run_is_healthy_and_its_env_is_examined_under_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    train = ["--num-iterations", "10", "--log-interval", "1", "--num-envs", "48", "--no-export", "--no-report"]
    assert main(["train", "--task", "CartPole", *train, "--device", "cpu", "--env.max-episode-length", "100"]) == 0
    (run,) = Path("runs/CartPole/ppo").iterdir()
    capsys.readouterr()
    assert main(["doctor", "--task", "CartPole", "--run", str(run), "--seconds", "60", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "48 envs x 64 steps" in out and "a limit of 100 steps" in out
    assert out.count("healthy      ") == 2


def test_a_damaged_table_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {})
    (run / "metrics.csv").write_text("nonsense")
    assert wrong(examine_run(run)) == {"run.metrics"}


def test_a_short_run_is_told_and_healthy(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {})
    lines = (run / "metrics.csv").read_text().splitlines(True)
    (run / "metrics.csv").write_text("".join(lines[:4]))
    examination = examine_run(run)
    assert {found.check for found in examination.findings} == {"run.short", "run.unfinished"}
    assert examination.code() == 0 and examination.code(strict=True) == 1


# --- The page ---------------------------------------------------------------------------------------------------------


def test_the_page_lists_every_check_with_its_severity() -> None:
    page = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(\w+\.\w+)` \| (\w+) \|", page, flags=re.MULTILINE))
    source = "".join(path.read_text() for path in (ROOT / "train" / "doctor").glob("*.py"))
    checks = set(re.findall(r'check="([\w.]+)"', source)) | {"env.fails", "env.contract"}
    assert set(listed) == checks
    told = set(FAULTS.values()) | {*FAULTY_RUNS}
    assert all(listed[check] in ("error", "warning") for check in told - {"run.gradient_norm"})


# --- What is measured ------------------------------------------------------------------------------------------------


def test_random_actions_fill_bounds_and_are_held() -> None:
    env = make_env("Pendulum", 64, seed=1)
    actions = RandomActions(env, seed=1)
    drawn = torch.stack([actions({}, t) for t in range(64)])  # [T, N, 1]
    assert drawn.min() < -1.9 and drawn.max() > 1.9 and drawn.abs().max() <= 2.0
    changed = (drawn[1:] != drawn[:-1]).squeeze(2).sum(0)  # [N]
    assert changed[:8].tolist() == [63, 63, 63, 63, 15, 15, 3, 3]


def test_a_mask_is_kept_to() -> None:
    env = make_env("CartPole", 16, seed=1)
    env.observation_spaces = {**env.observation_spaces, "action_mask": env.observation_spaces["policy"]}  # type: ignore[misc]
    actions = RandomActions(env, seed=1, mask="action_mask")
    mask = torch.tensor([[0.0, 1.0]]).expand(16, 2)
    assert all(bool((actions({"action_mask": mask}, t) == 1).all()) for t in range(8))


def test_kept_envs_are_neighbors_from_all_over() -> None:
    rows = kept_rows(4096, 48)
    assert len(rows) == 64 and rows[0] == 0 and rows[-1] == 4095
    assert ((rows[1::2] - rows[::2]) == 1).all()
    assert kept_rows(8, 48).tolist() == list(range(8))
    assert len(kept_rows(4096, 10_000)) == 2


def test_discounted_sums_are_those_of_their_definition() -> None:
    env = make_env("CartPole", 4, seed=1)
    recording = play(env, 1, 60, 60.0)
    found = discounted(recording, 0.9)
    for r in range(4):
        for t in range(recording.steps):
            total, weight = 0.0, 1.0
            for later in range(t, recording.steps):
                total += weight * float(recording.reward[later, r])
                weight *= 0.9
                if recording.done[later, r]:
                    break
            assert float(found[t, r]) == pytest.approx(total, rel=1e-5)


def test_lengths_of_episodes_are_those_between_ends() -> None:
    recording = play(make_env("CartPole", 8, seed=1), 1, 100, 60.0)
    expected = []
    for r in range(8):
        ends = np.flatnonzero(recording.done[:, r].numpy())
        expected += np.diff(np.concatenate([[-1], ends])).tolist()
    assert recording.lengths.tolist() == expected
    assert not recording.limits.any()


def test_saturation_is_the_share_at_bounds() -> None:
    from rlcore.env import spec_of

    spec = spec_of(make_env("Pendulum", 2))
    actions = torch.tensor([[-2.0], [2.0], [0.0], [1.0]])
    assert saturated(actions, spec).tolist() == [0.5]


def test_traces_of_the_same_actions_are_the_same_and_of_others_are_not() -> None:
    env = make_env("Pendulum", 4, seed=1)
    first, again, other = trace(env, 3, 20, 1), trace(env, 3, 20, 1), trace(env, 3, 20, 2)
    assert first.difference(again) is None
    found = first.difference(other)
    assert found is not None and found[0] == 1 and found[1] > 0
    sooner = first.difference(trace(env, 4, 20, 1))
    assert sooner is not None and sooner[0] == 0


@pytest.mark.gpu
@pytest.mark.parametrize("task", ["CartPole", "Reach-UR5e-JointPos"])
def test_tasks_are_healthy_on_a_gpu(task: str) -> None:
    config, _ = default_config(task)
    examination = examine_env(replace(config, device="cuda"), 10.0)
    assert wrong(examination) == set()
    assert "learning" in examination.facts["speed"]
