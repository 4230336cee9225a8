"""``rlcore adapt``: from a run to a file that acts in one task."""

from __future__ import annotations

import glob
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from rlcore.envs import make_env
from rlcore.export import OnnxPolicy
from rlcore.maml import MAML, MAMLConfig
from rlcore.train.adapting import Adapted, adapt, learner, one_task
from rlcore.train.cli import main

TRAIN = (
    "train --task Navigation-2D --algo maml --num-envs 12 --num-iterations 1 --eval-envs 4 --agent.num-tasks 3 "
    "--agent.adapt-steps 2 --env.max_episode_length 6 --agent.actor.hidden-dims 8 8 --seed 1 --threads 1"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    assert main([*TRAIN.split(), "--runs-dir", str(folder)]) == 0
    (found,) = glob.glob(f"{folder}/Navigation-2D/maml/*")
    return Path(found)


def test_a_drawn_task_is_adapted_to_and_exported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapt", "--run", str(run), "--seed", "7", "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    record = json.loads((run / "adapted" / "adapt.json").read_text())
    assert [part["step"] for part in record["curve"]] == [0, 1, 2]
    assert record["episodes"] == 4 and record["parity"] <= 1e-6
    assert record["best"] == max(record["curve"], key=lambda part: part["return_mean"])["step"]
    goal = [record["env"][f"randomize.goal_{axis}"] for axis in "xy"]
    assert f"adapting to  goal_x {goal[0]:.4g}, goal_y {goal[1]:.4g}, by 4 episodes before each step" in printed
    assert all(-0.5 <= x <= 0.5 and x != 0 for x in goal)
    facts = OnnxPolicy(run / "adapted" / "policy.onnx").metadata
    assert facts["adapted"]["steps"] == record["best"] and facts["env_options"]["randomize.goal_x"] == goal[0]
    assert main(["eval", "--onnx", str(run / "adapted" / "policy.onnx"), "--num-envs", "4", "--threads", "1"]) == 0
    assert f"goal_x {goal[0]:g} to {goal[0]:g}" in capsys.readouterr().out
    assert main(["adapt", "--run", str(run), "--seed", "8", "--threads", "1"]) == 0
    again = json.loads((run / "adapted" / "adapt.json").read_text())
    assert again["env"]["randomize.goal_x"] != goal[0]


def test_a_spelled_task_with_more_steps_goes_where_it_is_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"--steps 4 --num-envs 5 --threads 1 --output {tmp_path}/x.onnx"
    goal = "--env.randomize.goal_x 0.4 --env.randomize.goal_y -0.3"
    assert main(["adapt", "--run", str(run), *words.split(), *goal.split()]) == 0
    printed = capsys.readouterr().out
    assert "adapting to  goal_x 0.4, goal_y -0.3, by 5 episodes" in printed
    assert "it was trained for 2 steps; further ones are as large as the last" in printed
    assert (tmp_path / "x.onnx").is_file() and len(json.loads((tmp_path / "adapt.json").read_text())["curve"]) == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "--run is missing"),
        ("--run {run} --steps 0", "--steps is 0; give 1 or more"),
        ("--run {run} --env.randomize.goal 1", "there is no such parameter; did you mean 'goal_"),
        ("--run {run} --task Pendulum", "Pendulum"),
        ("--run {run} --output {run}", "which is a folder; name a file in it"),
        ("--run {run} --stepz 3", "did you mean --steps"),
        ("--run {run}/checkpoints/000001.pt --checkpoint last", "is one itself; leave --checkpoint out"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(
    words: str, message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["adapt", *words.format(run=run).split()]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1


def test_a_run_that_cannot_adapt_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "train --task Null --num-envs 4 --num-iterations 1 --agent.num-minibatches 1 --export false --eval-interval 0"
    )
    assert main([*words.split(), "--runs-dir", str(tmp_path), "--threads", "1"]) == 0
    (found,) = glob.glob(f"{tmp_path}/Null/ppo/*")
    capsys.readouterr()
    assert main(["adapt", "--run", found]) == 2
    assert "--run is of ppo, whose policies do not adapt; train one with --algo maml" in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapt", "--help"]) == 0
    assert "Steps of adaptation" in capsys.readouterr().out
    assert main([]) == 0
    assert "rlcore adapt --run RUN" in capsys.readouterr().out


def test_the_commands_of_the_page_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "docs" / "adaptation.md").read_text(encoding="utf-8")
    (block,) = [found for found in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL) if "rlcore adapt" in found]
    train, *adapting = block.splitlines()
    assert len(adapting) == 2
    few = "--num-iterations 1 --num-envs 32 --eval-envs 4 --env.max_episode_length 5 --threads 1"
    assert main([*shlex.split(train)[1:], *few.split()]) == 0
    for line in adapting:
        words = [found for word in shlex.split(line)[1:] for found in glob.glob(word) or [word]]
        assert main([*words, "--threads", "1"]) == 0
    assert glob.glob("runs/Navigation-2D/maml/*-first/adapted/policy.onnx")


def test_a_step_goes_towards_the_goal_and_leaves_the_run_as_it_was() -> None:
    torch.manual_seed(0)
    config = MAMLConfig(num_tasks=1, adapt_steps=1, step_size=0.2, normalize_obs=False)
    for index, goal in enumerate([(0.4, 0.3), (-0.4, 0.1), (0.1, -0.5)]):
        options: dict[str, Any] = {f"randomize.goal_{axis}": value for axis, value in zip("xy", goal, strict=True)}
        env = make_env("Navigation-2D", 400, seed=index, max_episode_length=2, **options)
        state: dict[str, Any] = MAML(env, config, seed=index).state_dict()
        agent = learner(env, config, state, None, index)
        before = {name: value.clone() for name, value in agent.policy.state_dict().items()}
        result = adapt(env, agent, index)
        assert all(torch.equal(value, before[name]) for name, value in agent.policy.state_dict().items())
        start = {"policy": torch.zeros(1, 2)}
        moved = result.policy(agent.policy, 1)(start)[0] - agent.policy(start)[0]
        assert torch.cosine_similarity(moved, torch.tensor([goal])).item() > 0.95


def test_the_step_that_did_best_is_the_one_that_is_kept() -> None:
    result = Adapted([torch.tensor([-3.0, -1.0]), torch.tensor([-1.0, -0.5]), torch.tensor([-4.0, 0.0])], [[], [], []])
    assert result.best == 1
    assert result.lines()[2].endswith("best") and result.as_dict()[1]["return_mean"] == -0.75


def test_the_first_episode_of_every_env_counts() -> None:
    options: dict[str, Any] = {"randomize.length": True}
    env = make_env("CartPole", 6, seed=1, **options)
    config = MAMLConfig(num_tasks=1, adapt_steps=1, num_steps=200)
    result = adapt(env, learner(env, config, MAML(env, config, seed=1).state_dict(), None, 1), 1)
    # A random policy falls long before 200 steps, of which each is worth 1.
    assert all(5 < float(returns.mean()) < 100 for returns in result.returns)


def test_one_task_of_a_family_holds_what_was_drawn() -> None:
    given = {"randomize.mass": [0.7, 1.5], "randomize.length.range": [1.0, 2.0], "max_episode_length": 9}
    options = one_task("Pendulum", given, torch.device("cpu"), 3)
    assert options.keys() == {"randomize.mass", "randomize.length", "max_episode_length"}
    assert 0.7 <= options["randomize.mass"] <= 1.5 and 1.0 <= options["randomize.length"] <= 2.0
    assert options == one_task("Pendulum", given, torch.device("cpu"), 3)
    assert one_task("Null", {}, torch.device("cpu"), 3) == {}
