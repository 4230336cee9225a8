"""HalfCheetah-Vel and -Dir: gymnasium's physics, and rewards that follow from goals."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from rlcore.env_check import StepCheck
from rlcore.envs import make_env
from rlcore.family import is_family

needs_mujoco = pytest.mark.skipif(find_spec("mujoco") is None, reason="mujoco is not installed")
needs_envpool = pytest.mark.skipif(find_spec("envpool") is None, reason="envpool is not installed")


@needs_mujoco
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


@needs_mujoco
def test_physics_may_differ_beside_the_goal() -> None:
    options: dict[str, Any] = {"randomize.velocity": 2.0, "randomize.gravity": [0.8, 1.2]}
    env: Any = make_env("HalfCheetah-Vel", 2, seed=1, **options)
    env.reset(1)
    values = env.task_values()
    assert (values["velocity"] == 2.0).all() and values["gravity"][0] != values["gravity"][1]
    subs = env.env.env.env.unwrapped.envs
    found = [sub.unwrapped.model.opt.gravity[2] for sub in subs]
    assert found == pytest.approx((-9.81 * values["gravity"]).tolist())


@needs_envpool
def test_a_pool_has_the_same_rewards_and_begins_episodes_in_the_step_that_ended_others() -> None:
    env: Any = make_env("HalfCheetah-Vel", 3, seed=1, vectorization="envpool", max_episode_length=5)
    assert is_family(env) and env.max_episode_length == 5
    env.hold_tasks()
    env.reset(1)
    goal, check = env.task_values()["velocity"], StepCheck(env)
    for index in range(10):
        action = 3 * torch.rand(3, 6) - 1.5
        step = env.step(action)
        check(step)
        assert step.valid is None and step.final_obs is not None
        speed = step.final_obs["policy"][:, 8]
        cost = 0.05 * action.clamp(-1, 1).square().sum(1)
        torch.testing.assert_close(step.reward, -(speed - goal).abs() - cost)
        assert (step.truncated == (index % 5 == 4)).all()
        if index == 4:
            assert (step.obs["policy"][:, 8] - speed).abs().max() > 0
            assert step.obs["policy"].abs().max() < 1  # near rest
    trials: Any = make_env(
        "HalfCheetah-Vel", 2, seed=1, vectorization="envpool", max_episode_length=5, trial_episodes=2
    )
    trials.reset(1)
    ends = [bool(trials.step(torch.zeros(2, 6)).truncated.all()) for _ in range(10)]
    assert ends == [False] * 9 + [True]


@needs_mujoco
@needs_envpool
def test_a_pools_physics_is_gymnasiums_from_the_same_state() -> None:
    env: Any = make_env("HalfCheetah-Vel", 2, seed=1, vectorization="envpool")
    seen = env.reset(1)["policy"].double().numpy()
    subs: list[Any] = [gymnasium.make("HalfCheetah-v5").unwrapped for _ in range(2)]
    for sub, row in zip(subs, seen, strict=True):
        sub.reset(seed=0)
        sub.set_state(np.concatenate([[0.0], row[:8]]), row[8:])
    for _ in range(5):  # what float32 has rounded grows from step to step
        action = 2 * torch.rand(2, 6) - 1
        own = env.step(action).obs["policy"].numpy()
        for sub, row, move in zip(subs, own, action.numpy(), strict=True):
            np.testing.assert_allclose(row, sub.step(move)[0], rtol=1e-3, atol=1e-3)
