"""HalfCheetah-Vel and -Dir: gymnasium's physics, and rewards that follow from goals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlcore.env_check import StepCheck
from rlcore.envs import make_env
from rlcore.family import is_family

pytest.importorskip("mujoco")


@pytest.mark.parametrize("task", ["HalfCheetah-Vel", "HalfCheetah-Dir"])
def test_rewards_follow_from_goals_and_physics_is_gymnasiums(task: str) -> None:
    env: Any = make_env(task, 3, seed=1, max_episode_length=5)
    plain = make_env("gym:HalfCheetah-v5", 3, seed=1, max_episode_steps=5)
    assert is_family(env) and env.max_episode_length == 5
    obs, other = env.reset(1), plain.reset(1)
    assert torch.equal(obs["policy"], other["policy"])
    env.hold_tasks()
    goal, check = next(iter(env.task_values().values())), StepCheck(env)
    for index in range(5):
        action = 1.5 * torch.rand(3, 6) - 0.75
        step, same = env.step(action), plain.step(action)
        check(step)
        assert torch.equal(step.obs["policy"], same.obs["policy"])
        assert step.final_obs is not None
        speed = (step.final_obs if index == 4 else step.obs)["policy"][:, 8]
        gain = -(speed - goal).abs() if task.endswith("Vel") else speed * goal.sign()
        torch.testing.assert_close(step.reward, gain - 0.05 * action.square().sum(1))
        assert (step.truncated == (index == 4)).all()


def test_physics_may_differ_beside_the_goal() -> None:
    options: dict[str, Any] = {"randomize.velocity": 2.0, "randomize.gravity": [0.8, 1.2]}
    env: Any = make_env("HalfCheetah-Vel", 2, seed=1, **options)
    env.reset(1)
    values = env.task_values()
    assert (values["velocity"] == 2.0).all() and values["gravity"][0] != values["gravity"][1]
    subs = env.env.env.env.unwrapped.envs
    found = [sub.unwrapped.model.opt.gravity[2] for sub in subs]
    assert found == pytest.approx((-9.81 * values["gravity"]).tolist())
