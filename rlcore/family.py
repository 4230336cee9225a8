"""Families of tasks: envs whose rows play tasks that a policy is not told, and that differ in goals or in physics."""

from __future__ import annotations

from typing import Protocol, TypeGuard

from torch import Tensor

from rlcore.env import VecEnv


class Family(VecEnv, Protocol):
    """An env that draws a task for each row, by default when an episode begins, and can be told when else.

    A task is a set of values for parameters (``rlcore.env.Randomizable``): goals are such as masses are. They are
    drawn from the ranges of ``rlcore.envs.randomize.Randomized``, which is a family, of whatever env it is around. What
    was drawn is the observation group ``dynamics``, for an agent that is to be told: ``actor_obs policy,dynamics``.
    """

    def hold_tasks(self, rows: int = 1) -> None:
        """From now on draw tasks in ``draw_tasks`` and ``reset(seed)`` alone, and now.

        Args:
            rows: so many neighboring rows share a task; it divides N.

        Raises:
            ValueError: it does not.
        """
        ...

    def draw_tasks(self, where: Tensor) -> Tensor:
        """Give rows new tasks, which count from their next step on; nothing is asked of the host.

        Args:
            where: bool ``[N]``, the rows that they are for.

        Returns:
            The group ``dynamics`` ``[N, P]`` after it.
        """
        ...

    def task_values(self) -> dict[str, Tensor]:
        """What makes the task of each row, ``[N]`` of each parameter by name."""
        ...


def is_family(env: VecEnv) -> TypeGuard[Family]:
    """Whether an env draws tasks, and can be told when."""
    return hasattr(env, "hold_tasks")
