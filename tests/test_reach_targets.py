"""What is asked of an arm, as parameters: where commands lie, when they are met, and what the reward weighs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rlcore import Step
from rlcore.envs import make_env
from rlcore.envs.reach import TARGETS, Reach
from rlcore.envs.reach_box import BOX_HIGH, ReachBox


def everywhere(env: Any, **values: float | Tensor) -> None:
    rows = {name: torch.as_tensor(value).float().expand(env.num_envs) for name, value in values.items()}
    env.set_parameters(rows, torch.ones(env.num_envs, dtype=torch.bool))


def steps(env: Any, number: int) -> list[Step]:
    generator = torch.Generator().manual_seed(0)
    return [env.step(torch.randn(env.num_envs, 6, generator=generator)) for _ in range(number)]


def test_commands_lie_in_the_share_of_the_episode_in_which_they_are_drawn() -> None:
    env, share = Reach(num_envs=300, seed=0), torch.tensor([0.1, 0.5, 1.0]).repeat(100)
    env.reset(0)
    everywhere(env, command_range=share)
    middle, half = torch.tensor([0.4, 0.0, 0.325]), torch.tensor([0.1, 0.3, 0.075])

    def farthest() -> tuple[Tensor, Tensor]:
        """By share, of the box and of the circle of yaws."""
        away = ((env.command[:, :3] - middle) / half).abs().amax(1)
        yaw = 2 * torch.atan2(env.command[:, 5], env.command[:, 4]).abs() / math.pi
        return tuple(torch.stack([x[share == s].max() for s in (0.1, 0.5, 1.0)]) for x in (away, yaw))  # type: ignore[return-value]

    steps(env, 200)  # new commands of the episodes in flight, which began before
    for found in farthest():
        assert (found > 0.8).all()
    steps(env, 160)
    assert (env.steps == 0).all() and torch.equal(env.command_range, share)
    for found in farthest():
        assert (found <= torch.tensor([0.1, 0.5, 1.0]) + 1e-5).all() and (found > 0.8 * share[:3]).all()
    everywhere(env, command_range=1.0)
    steps(env, 150)
    for found in farthest():
        assert (found <= torch.tensor([0.1, 0.5, 1.0]) + 1e-5).all()
    box = ReachBox(num_envs=100, seed=0)
    everywhere(box, command_range=0.1)
    box.reset(0)
    assert (box.command[:, 1].abs() >= BOX_HIGH[1]).all()  # still beside it


def test_tolerance_and_weights_count_at_once() -> None:
    plain, lax = (make_env("Reach-UR5e-JointPos", 4, seed=0) for _ in range(2))
    plain.reset(0)
    lax.reset(0)
    everywhere(lax, tolerance=100.0, velocity_weight=torch.tensor([1.0, 0.0, 3.0, 1.0]))
    for one, other in zip(steps(plain, 359), steps(lax, 359), strict=True):
        assert torch.equal(one.reward[[0, 3]], other.reward[[0, 3]])
        spent = one.reward[1:3] - other.reward[1:3]
        assert spent[0] <= 0 <= spent[1]
        met = (other.log["success"] == 1) | (other.log["num_goals"] == 0)
        assert met.all()
    assert spent.abs().min() > 0


def test_what_was_set_goes_on_after_a_resume_and_older_states_are_taken() -> None:
    first, second = Reach(num_envs=3, seed=0), Reach(num_envs=3, seed=1)
    first.reset(0)
    everywhere(first, command_range=0.2, fine_weight=2.0)
    steps(first, 200)
    state = first.state_dict()
    second.load_state_dict(state)
    for one, other in zip(steps(first, 200), steps(second, 200), strict=True):
        assert torch.equal(one.obs["policy"], other.obs["policy"]) and torch.equal(one.reward, other.reward)
    del state["command_range"]  # as it was written before
    second.load_state_dict(state)
    assert second.command_range.tolist() == [1.0] * 3


def test_what_a_recorded_step_does_not_compute_is_refused() -> None:
    env = Reach(num_envs=2, seed=0)
    env._recorded = True
    everywhere(env, damping=1.1)
    for name in TARGETS:
        with pytest.raises(ValueError, match=f"{name} is set for the first time.*set it once, nominal if need be"):
            everywhere(env, **{name: 1.0})
