"""Families of tasks: drawn by row, kept until told otherwise, shared by neighbors; and the task Navigation-2D."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rlcore.config import ConfigError
from rlcore.env import DYNAMICS
from rlcore.env_check import StepCheck, check_obs
from rlcore.envs import make_env
from rlcore.envs.navigation import Navigation
from rlcore.envs.randomize import Randomized
from rlcore.family import is_family


def goals(env: Any) -> Tensor:
    """``[N, 2]``, where the env really has them."""
    inner = env.env
    assert isinstance(inner, Navigation)
    return inner._values.values.t().clone()


def test_navigation_does_what_it_says() -> None:
    env: Any = make_env("Navigation-2D", 6, seed=3, max_episode_length=4)
    obs = env.reset(3)
    check_obs(env, obs, "reset")
    assert (obs["policy"] == 0).all()
    goal, check = goals(env), StepCheck(env)
    assert (goal.abs() <= 0.5).all() and len(set(goal.flatten().tolist())) == 12
    position = torch.zeros(6, 2)
    for index in range(4):
        action = torch.randn(6, 2)
        position = position + action.clamp(-0.1, 0.1)
        step = env.step(action)
        check(step)
        torch.testing.assert_close(step.reward, -((position - goal) ** 2).sum(1))
        assert not step.terminated.any() and (step.truncated == (index == 3)).all()
    torch.testing.assert_close(step.final_obs["policy"], position)
    assert (step.obs["policy"] == 0).all()


def test_an_oracle_reaches_goals_and_its_success_is_told() -> None:
    env: Any = make_env("Navigation-2D", 512, seed=1)
    env.reset(1)
    total = torch.zeros(512)
    for _ in range(100):
        step = env.step((goals(env) - env.env.position).clamp(-0.1, 0.1))
        total += step.reward
    # Of each coordinate |g| uniform in 0..0.5 the distance left is |g| - 0.1 k: the mean of the sum of its squares.
    each = sum(max(0.5 - 0.1 * k, 0.0) ** 3 / 3 for k in range(1, 6)) / 0.5
    assert total.mean().item() == pytest.approx(-2 * each, rel=0.05)
    assert (step.log["success"] == 1).all()


def test_tasks_are_drawn_by_episode_until_they_are_held() -> None:
    env: Any = make_env("Navigation-2D", 8, seed=1, max_episode_length=3)
    assert is_family(env)
    env.reset(1)
    before = goals(env)
    for _ in range(3):
        env.step(torch.zeros(8, 2))
    assert (goals(env) != before).all()
    env.hold_tasks()
    before = goals(env)
    for _ in range(7):
        step = env.step(torch.zeros(8, 2))
    env.reset()
    assert torch.equal(goals(env), before)
    torch.testing.assert_close(step.obs[DYNAMICS], before / 0.5)
    env.reset(1)
    assert (goals(env) != before).all()


def test_rows_are_given_new_tasks_where_told_and_neighbors_share_them() -> None:
    env: Any = make_env("Navigation-2D", 12, seed=1)
    env.reset(1)
    env.hold_tasks(rows=4)
    before = goals(env)
    grouped = before.view(3, 4, 2)
    assert (grouped == grouped[:, :1]).all() and len(set(before[:, 0].tolist())) == 3
    where = torch.arange(12) // 4 == 1
    seen = env.draw_tasks(where)
    after = goals(env)
    assert torch.equal(after[~where], before[~where])
    assert (after[where] != before[where]).all() and (after[where] == after[4]).all()
    torch.testing.assert_close(seen, after / 0.5)
    torch.testing.assert_close(env.step(torch.zeros(12, 2)).reward, -(after**2).sum(1))


@pytest.mark.parametrize("rows", [0, 5])
def test_rows_that_do_not_divide_the_envs_are_refused(rows: int) -> None:
    env: Any = make_env("Navigation-2D", 12)
    with pytest.raises(ConfigError, match=rf"rows: {rows} is not possible; it must divide the 12 envs"):
        env.hold_tasks(rows)


def test_held_tasks_are_saved_and_put_back() -> None:
    env: Any = make_env("Navigation-2D", 4, seed=1)
    env.reset(1)
    env.hold_tasks(2)
    state, before = env.state_dict(), goals(env)
    env.draw_tasks(torch.ones(4, dtype=torch.bool))
    other: Any = make_env("Navigation-2D", 4, seed=2)
    other.hold_tasks(2)
    other.load_state_dict(state)
    assert torch.equal(goals(other), before)
    everywhere = torch.ones(4, dtype=torch.bool)
    env.load_state_dict(state)
    assert torch.equal(env.draw_tasks(everywhere), other.draw_tasks(everywhere))


def test_a_task_of_the_family_is_spelled_and_the_family_switched_off() -> None:
    options: dict[str, Any] = {"randomize.goal_x": 0.25, "randomize.goal_y": [-0.5, -0.4]}
    env: Any = make_env("Navigation-2D", 3, **options)
    env.reset(0)
    assert (goals(env)[:, 0] == 0.25).all()
    assert ((goals(env)[:, 1] >= -0.5) & (goals(env)[:, 1] <= -0.4)).all()
    off: dict[str, Any] = {"randomize.goal_x": False, "randomize.goal_y": None}
    plain = make_env("Navigation-2D", 3, **off)
    assert isinstance(plain, Navigation) and not is_family(plain)


def test_physics_is_a_family_too() -> None:
    options: dict[str, Any] = {"randomize.mass": True}
    env: Any = make_env("Pendulum", 4, seed=1, **options)
    assert Randomized in type(env).mro()
    env.reset(1)
    env.hold_tasks(rows=2)
    mass = env.env._values["mass"].clone()
    assert mass[0] == mass[1] != mass[2] == mass[3]
