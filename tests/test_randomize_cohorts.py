"""Ranges whose episodes differ in length by how they end: what moves them is a slow count of who began, by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from rlcore.env import Parameter
from rlcore.envs.randomize import ParameterRange, RandomizeConfig, Randomized
from rlcore.envs.torch_env import TorchEnv
from rlcore.types import Step

EDGE = 0.7


class Walk(TorchEnv):
    """Episodes whose outcome is drawn as they begin, with a chance that falls at 0.7, and with it their length."""

    task = "Walk"
    observation_spaces: Mapping[str, spaces.Box] = {"policy": spaces.Box(-1, 1, (1,))}
    action_space: spaces.Space[Any] = spaces.Box(-1, 1, (1,))
    parameters: ClassVar[dict[str, Parameter]] = {"load": Parameter(nominal=0.35, low=0.0, high=1.0)}
    _buffers = ("steps", "load", "success", "length")

    def __init__(self, num_envs: int, *, success: int, failure: int, chances: tuple[float, float] = (0.9, 0.2)):
        super().__init__(num_envs, "cpu", 0, max(success, failure))
        self.lengths, self.chances = (failure, success), chances
        self.load, self.success = torch.full((num_envs,), 0.35), torch.zeros(num_envs)
        self.length = torch.zeros(num_envs, dtype=torch.int64)
        self.age = torch.zeros(num_envs, dtype=torch.int64)
        self.begun: list[tuple[int, float]] = []  # env and load, in the order that they began

    def set_parameters(self, values: Mapping[str, Tensor], where: Tensor) -> None:
        self.load.copy_(torch.where(where, values["load"], self.load))
        self._start(where)  # an episode begins with what was drawn for it

    def _start(self, where: Tensor) -> None:
        chance = torch.where(self.load < EDGE, *self.chances)
        success = (torch.rand(self.num_envs, generator=self.generator) < chance).float()
        self.success.copy_(torch.where(where, success, self.success))
        self.length.copy_(torch.where(self.success > 0, self.lengths[1], self.lengths[0]))
        self.age.masked_fill_(where, 0)

    def step(self, action: Tensor) -> Step:
        self.age += 1
        over, log = self.age >= self.length, {"success": self.success.clone()}
        obs = {"policy": torch.zeros(self.num_envs, 1)}
        return Step(obs, torch.zeros(self.num_envs), over, torch.zeros_like(over), obs, log)

    def _begin(self) -> dict[str, Tensor]:
        return {"policy": torch.zeros(self.num_envs, 1)}


class Staggered(Walk):
    """The same, with first episodes that begin somewhere in the middle where that is asked for."""

    randomize_start = True

    def reset(self, seed: int | None = None) -> dict[str, Tensor]:
        obs = super().reset(seed)
        if self.randomize_start:
            self.age.copy_((torch.rand(self.num_envs, generator=self.generator) * self.length).long())
        return obs


def of(env: Any, **settings: Any) -> Any:
    return Randomized(env, RandomizeConfig(**{"mode": "adr", "parameters": {"load": ParameterRange()}} | settings), 0)


def upper(env: Any, iterations: int, steps: int = 10) -> list[float]:
    action, found = torch.zeros(env.num_envs, 1), []
    for _ in range(iterations):
        for _ in range(steps):
            env.step(action)
        found.append(float(env.adapt()["randomize/load_high"]))
    return found


@pytest.mark.parametrize(("success", "failure"), [(100, 5), (5, 100)], ids=["failing ends it", "arriving ends it"])
@pytest.mark.parametrize("staggered", [False, True])
def test_a_bound_settles_where_success_ends_however_long_episodes_are(
    success: int, failure: int, staggered: bool
) -> None:
    env = of((Staggered if staggered else Walk)(512, success=success, failure=failure), boundary_episodes=10, step=0.04)
    env.reset(0)
    bounds = upper(env, 220)
    first = next(i for i, bound in enumerate(bounds) if bound > EDGE - 0.05)
    assert bounds[:first] == sorted(bounds[:first])  # on its way it never comes back
    assert first <= 150 and min(bounds[first:]) >= EDGE - 0.05 and max(bounds) <= EDGE + 0.05
