"""Benchmarks of MT10, of HalfCheetah-Vel, of MAML and of several tasks in one policy: what needs no simulator."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import meta_gradient
import meta_world
import pytest
import several_tasks
import torch
import velocity

from rlcore.envs import make_env
from rlcore.maml import MAML, MAMLConfig
from rlcore.train.adapting import adapt
from rlcore.train.evaluate import Evaluation


def arguments(folder: Path) -> argparse.Namespace:
    return argparse.Namespace(
        preset="gpu", threads=4, batch=8, updates=2, seed=1, iterations=10, save=5, out=folder, device="cuda:0",
        alone_on="cuda:1", further=[],
    )  # fmt: skip


def test_the_one_policy_and_those_of_a_task_have_equal_shares(tmp_path: Path) -> None:
    joint = meta_world.words_of(meta_world.JOINT, arguments(tmp_path))
    alone = meta_world.words_of("Push", arguments(tmp_path))
    assert joint.count("--task") == 10 and alone.count("--task") == 1
    for name in ("--num-envs", "--agent.batch-size", "--agent.learning-starts", "--agent.buffer-size"):
        assert int(joint[joint.index(name) + 1]) == 10 * int(alone[alone.index(name) + 1])
    assert joint[joint.index("--agent.num-updates") + 1] == alone[alone.index("--agent.num-updates") + 1] == "2"
    assert joint[joint.index("--env.envpool:MetaWorld/Push-v3.partially_observable") + 1] == "false"


def test_checkpoints_of_a_run_are_found_by_iteration_and_successes_told(tmp_path: Path) -> None:
    folder = tmp_path / "envpool_MetaWorld_Push-v3" / "sac" / "20261130-000000-Push" / "checkpoints"
    folder.mkdir(parents=True)
    for name in ("000005.pt", "000010.pt", "best.pt"):
        (folder / name).touch()
    assert sorted(meta_world.checkpoints(tmp_path, "Push")) == [5, 10]
    assert not meta_world.checkpoints(tmp_path, "Reach")
    lengths = torch.ones(4, dtype=torch.int64)
    found = {
        meta_world.name_of(task): Evaluation(
            returns=torch.full((4,), 7.0).double(), lengths=lengths, successes=float(k % 5), goals=4
        )
        for k, task in enumerate(meta_world.MT10)
    }
    lines = meta_world.table(found, found, 1000)
    assert lines[0].startswith("| success in %, 1,000 steps of each task")
    assert lines[3].startswith("| Push | 25 (") and "return 7" in lines[3]
    # Shares of 0, 1/4, 1/2, 3/4 and 1 of 4 goals, each of two tasks: their mean varies by its goals.
    half = 1.96 * sum(2 * share * (1 - share) / 4 for share in (0, 0.25, 0.5, 0.75, 1)) ** 0.5 / 10
    assert lines[12] == f"| mean | **50.0** ± {100 * half:.1f} | **50.0** ± {100 * half:.1f} |"


def test_a_curve_is_that_of_the_last_episode_or_step(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "000001.pt").touch()
    table = tmp_path / "metrics.csv"
    table.write_text(
        "env_steps,rollout/episode_return,env/episode_return_1,env/episode_return_2\n10,-9,,\n20,-8,-5,-3\n"
    )
    assert velocity.curve(tmp_path) == ([20], [-3.0], "env/episode_return_2")
    table.write_text("env_steps,rollout/episode_return\n10,-9\n20,-8\n")
    assert velocity.curve(tmp_path) == ([10, 20], [-9.0, -8.0], "rollout/episode_return")
    table.write_text("env_steps,loss/policy\n10,1\n")
    with pytest.raises(ValueError, match="has no returns"):
        velocity.curve(tmp_path)


def test_an_adapted_policy_is_evaluated_on_the_goals_that_it_was_adapted_to() -> None:
    # It hardly explores and hardly moves: its episodes are the same with and without, if the goals are.
    env: Any = make_env("Navigation-2D", 12, seed=1, max_episode_length=9)
    config = MAMLConfig(num_tasks=4, adapt_steps=2, init_std=1e-4, min_std=1e-5, step_size=1e-12)
    agent = MAML(env, config, seed=1)
    env.reset(5)
    goals = env.task_values()["goal_x"]
    exploring, quiet = velocity.by_step(env, agent, 5)
    assert exploring.shape == quiet.shape == (3, 12) and exploring[0].std() > 0.1
    torch.testing.assert_close(quiet, exploring, rtol=0.01, atol=0.01)
    assert torch.equal(env.task_values()["goal_x"], goals)


def test_parameters_after_each_step_are_told_of_every_task() -> None:
    env: Any = make_env("Navigation-2D", 12, seed=1, max_episode_length=9)
    agent = MAML(env, MAMLConfig(num_tasks=4, adapt_steps=2), seed=1)
    found = adapt(env, agent, 5).parameters
    for k, own in enumerate(found):
        assert all(mine.shape == (4, *p.shape) for mine, p in zip(own, agent.network.parameters, strict=True))
        assert all(bool((mine[1] == mine[0]).all()) == (k == 0) for mine in own)
    assert all(torch.equal(mine, last) for mine, last in zip(found[-1], agent.adapted, strict=True))


def test_updates_with_second_derivatives_and_without_are_timed(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = "--num-envs 4 --num-tasks 2 --steps 3 --adapt-steps 1 --epochs 1 --updates 1"
    meta_gradient.main(["--device", "cpu", *sizes.split()[:-1], "3"])
    head, _, _, second, first = capsys.readouterr().out.splitlines()
    assert "1 gradients of 24 samples, 2 tasks" in head
    assert second.startswith("| second | eager | ") and first.startswith("| first | eager | ")
    for line in (first, second):
        middle, quartiles = (cell.split() for cell in line.split("|")[3:5])
        assert 0 < float(quartiles[0]) <= float(middle[0]) <= float(quartiles[2])


def test_an_update_for_several_tasks_is_timed_beside_those_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    several_tasks.main(["--device", "cpu", "--num-envs", "6", "--rounds", "2"])
    head, _, _, *rows = capsys.readouterr().out.splitlines()
    assert "an update of 6 envs x 24 steps, 2 rounds" in head
    names = [row.split("|")[1].strip() for row in rows]
    assert names == ["one policy", "Go1", "G1", "Lift-Cube"] and all(float(row.split("|")[2]) > 0 for row in rows)
    assert rows[0].split("|")[4].strip() == "1.00 (1.00 to 1.00)"  # by round, beside itself
