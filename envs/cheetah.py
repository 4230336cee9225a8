"""The half cheetah that is to run at a speed, or in a direction, which it is not told: families for meta-learning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from rlcore.env import Parameter, VecEnv, is_randomizable
from rlcore.envs.envpool import make_envpool
from rlcore.envs.gym_make import make_gymnasium
from rlcore.envs.parameters import ParameterRows
from rlcore.envs.wrappers import OwnState
from rlcore.types import Obs, Step

GOALS = {
    "velocity": Parameter(nominal=1.5, low=0.0, high=3.0, unit="m/s"),
    "direction": Parameter(nominal=1.0, low=-1.0, high=1.0),
}
"""What is wanted, by the name of its parameter; of a direction the sign alone counts."""

_SPEED = 8  # among the 17 numbers of the observation: that of the root, along x
_CONTROL = 0.05  # what a squared action costs


class HalfCheetah(OwnState):
    """Gymnasium's ``HalfCheetah-v5`` with a goal in the place of its reward; of Finn et al. 2017, arXiv:1703.03400.

    The reward of a step is ``-|v - velocity|``, or ``sign(direction) * v``, minus 0.05 times the squared action. The
    speed v (m/s) is that of the root where the step ends, as the observation has it; gymnasium's own is the mean over
    the step, which the observation does not tell. Physical parameters are the inner env's, see ``MujocoPhysics``.

    Args:
        goal: ``velocity`` or ``direction``.
        num_envs: N.
        device: where observations and rewards go.
        seed: of the envs.
        max_episode_length: steps after which an episode is cut.
        vectorization: of ``make_gymnasium``: ``sync``, or ``async`` for a process each; or ``envpool``, whose threads
            step the same physics several times as fast, but cannot change its parameters.

    Raises:
        ValueError: gymnasium[mujoco] or envpool is not installed, or a number is out of range.
    """

    def __init__(
        self,
        goal: Literal["velocity", "direction"] = "velocity",
        num_envs: int = 1,
        device: str | torch.device = "cpu",
        seed: int | None = None,
        max_episode_length: int = 200,
        vectorization: str = "sync",
    ) -> None:
        options: dict[str, Any] = {"max_episode_steps": max_episode_length}
        if vectorization == "envpool":  # trials of several episodes cannot have steps that are no steps
            env: VecEnv = make_envpool("HalfCheetah-v5", num_envs, device, seed, autoreset="same_step", **options)
        else:
            env = make_gymnasium("HalfCheetah-v5", num_envs, device, seed, vectorization=vectorization, **options)
        super().__init__(env, seed)
        self.task = {"velocity": "HalfCheetah-Vel", "direction": "HalfCheetah-Dir"}[goal]
        self.goal = goal
        self._rows = ParameterRows(self.task, {goal: GOALS[goal]}, num_envs, self.device)
        self._kept["goal"] = self._rows.values
        self._physics = env if is_randomizable(env) else None
        inner = {} if self._physics is None else self._physics.parameters
        self.parameters: Mapping[str, Parameter] = {**inner, goal: GOALS[goal]}

    def set_parameters(self, values: Mapping[str, Tensor], where: Tensor) -> None:
        """See ``rlcore.env.Randomizable``.

        Raises:
            ValueError: there is no parameter of a name, or something is not ``[N]``.
        """
        own = {name: value for name, value in values.items() if name == self.goal or self._physics is None}
        others = {name: value for name, value in values.items() if name not in own}
        if own:
            self._rows.set(own, where)
        if others and self._physics is not None:
            self._physics.set_parameters(others, where)

    def reset(self, seed: int | None = None) -> Obs:
        """Start a new episode in every env; goals stay as they are."""
        self._reseed(seed)
        return self.env.reset(seed)

    @torch.no_grad()
    def step(self, action: Tensor) -> Step:
        """Advance every env by one control step; see ``VecEnv.step``."""
        step = self.env.step(action)
        done, seen = step.terminated | step.truncated, step.obs["policy"]
        if step.final_obs is not None:
            seen = torch.where(done.unsqueeze(1), step.final_obs["policy"], seen)
        speed, wanted = seen[:, _SPEED], self._rows[self.goal]  # [N]
        gain = -(speed - wanted).abs() if self.goal == "velocity" else torch.where(wanted < 0, -speed, speed)
        return step._replace(reward=gain - _CONTROL * action.clamp(-1.0, 1.0).square().sum(1))
