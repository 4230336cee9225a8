"""What steps of gymnasium's envs cost, by ``info["cost"]``, as Safety-Gymnasium has it, and its velocity tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import WrapperSpec
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray
from torch import Tensor

COST = "cost"
"""The entry of an env's info, and the signal that it becomes."""

SPEED_LIMITS = {
    "HalfCheetah": 3.2096,
    "Hopper": 0.7402,
    "Swimmer": 0.2282,
    "Walker2d": 2.3415,
    "Ant": 2.6222,
    "Humanoid": 1.4149,
}
"""In m/s, of Safety-Gymnasium's velocity tasks (Ji et al. 2023, arXiv:2310.12567)."""

PLANAR = ("Ant", "Humanoid")
"""Robots that may run in any direction; the others' speed is that forward."""


class SpeedLimit(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Tells ``info["cost"]``: 1 in a step in which the robot is faster than a limit, else 0.

    Args:
        env: one of gymnasium's MuJoCo tasks, whose info tells ``x_velocity`` and, for ``planar``, ``y_velocity``.
        limit: in m/s.
        planar: count speed in the plane instead of that along x.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], limit: float, planar: bool = False) -> None:
        RecordConstructorArgs.__init__(self, limit=limit, planar=planar)
        super().__init__(env)
        self.limit, self.planar = limit, planar

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the env."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        speed = math.hypot(info["x_velocity"], info["y_velocity"]) if self.planar else info["x_velocity"]
        return observation, reward, terminated, truncated, info | {COST: float(speed > self.limit)}


def register_velocity_tasks() -> None:
    """Make ``gymnasium.make`` know ``SafetyHalfCheetahVelocity-v1`` and its like, by the names of Safety-Gymnasium.

    They are gymnasium's tasks of version 5 with a ``SpeedLimit``; an id that somebody registered before stays as it is.
    """
    for robot, limit in SPEED_LIMITS.items():
        name, base = f"Safety{robot}Velocity-v1", gymnasium.registry.get(f"{robot}-v5")
        if name in gymnasium.registry or base is None:
            continue
        wrapper = WrapperSpec("SpeedLimit", f"{__name__}:SpeedLimit", {"limit": limit, "planar": robot in PLANAR})
        gymnasium.register(
            name,
            base.entry_point,
            max_episode_steps=base.max_episode_steps,
            kwargs=dict(base.kwargs),
            additional_wrappers=(wrapper,),
        )


register_velocity_tasks()


class StepCosts:
    """Whether an env gives costs, which its first step tells, and then those of every step.

    Args:
        task: for messages.
        num_envs: N.
    """

    def __init__(self, task: str, num_envs: int) -> None:
        self.task, self.num_envs = task, num_envs
        self.given: bool | None = None
        self._latest: NDArray[np.float32] | None = None  # [N]

    def signals(self, device: torch.device) -> dict[str, Tensor] | None:
        """Those of the latest step as ``Step.signals``; None where the env gives none."""
        return None if self._latest is None else {COST: torch.from_numpy(self._latest).to(device)}

    def of_each(self, infos: Sequence[Mapping[str, Any]]) -> None:
        """Take those of N envs that were stepped one by one.

        Raises:
            ValueError: it gives some in some steps or envs alone, or what is no number.
        """
        if self.given is False:
            return
        there = [COST in info for info in infos]
        self._take([info.get(COST, 0.0) for info in infos], np.array(there))

    def of_vector(self, infos: Mapping[str, Any], done: NDArray[np.bool_], begun: NDArray[np.bool_] | None) -> None:
        """Take those of a vector env's step.

        Args:
            infos: of all envs, where ``final_info`` has those of episodes that ended, if they have begun anew.
            done: ``[N]``, where an episode ended.
            begun: ``[N]``, where an env began anew instead of taking a step, which costs nothing; None for nowhere.

        Raises:
            ValueError: as ``of_each``.
        """
        if self.given is False:
            return
        cost, there = self._column(infos)
        final = infos.get("final_info")
        if isinstance(final, Mapping):
            last, known = self._column(final)
            cost, there = np.where(done, last, cost), np.where(done, known, there)
        if begun is not None:
            cost, there = np.where(begun, 0.0, cost), there | begun if self.given else there
        self._take(cost, there)

    def _column(self, infos: Mapping[str, Any]) -> tuple[Any, NDArray[np.bool_]]:
        none = np.zeros(self.num_envs, np.bool_)
        if COST not in infos:
            return np.zeros(self.num_envs), none
        return infos[COST], np.asarray(infos.get(f"_{COST}", ~none))

    def _take(self, cost: Any, there: NDArray[np.bool_]) -> None:
        if self.given is None:
            self.given = bool(there.any())
        if not self.given:
            return
        if not there.all():
            raise ValueError(
                f"{self.task}: info['{COST}'] is missing in a step of env {np.argmin(there)}; give it always"
            )
        try:
            column = np.array(cost, dtype=np.float32)
        except (TypeError, ValueError):
            column = np.empty(0, np.float32)
        if column.shape != (self.num_envs,):
            raise ValueError(f"{self.task}: info['{COST}'] is {cost[0]!r}; give one number in each step")
        self._latest = column
