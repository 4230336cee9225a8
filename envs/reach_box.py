"""Reach with a wall between the commands and a limit on the speed of joints: a task to learn limits on costs with."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from rlcore.envs.reach import Reach

BOX_LOW, BOX_HIGH = (0.2, -0.1, 0.0), (0.6, 0.1, 0.3)
"""Opposite corners of the box that the end effector must stay out of, m, x y z in ``base_link``."""
GAP = 0.03
"""Commands keep this far from the box, m."""


class ReachBox(Reach):
    """``Reach`` whose commands lie to both sides of a box, over which the end effector has to pass.

    Signals ``[N]``: ``box``, 1 in a step that ends with the end effector inside, and ``joint_speed``, 1 in one that
    ends with any joint faster than ``speed_limit``. Neither changes the reward, an episode or the observations: the
    box is where it is, and the straight way from side to side leads through it. Commands are those of ``Reach`` but
    for y, of which -0.3..0.3 m is moved to 0.13..0.3 m on either side.
    """

    signal_names: ClassVar[tuple[str, ...]] = ("box", "joint_speed")

    def __init__(
        self,
        arm: str = "UR5e",
        control: str = "JointPos",
        num_envs: int = 1,
        device: str | torch.device = "cpu",
        seed: int | None = None,
        *,
        speed_limit: float = 2.5,
    ) -> None:
        """Build the arms; call ``reset`` before ``step``.

        Args:
            arm: as for ``Reach``, as are the others.
            control: see there.
            num_envs: N.
            device: where everything lives.
            seed: of the random generator; random when not given.
            speed_limit: of each joint, rad/s.

        Raises:
            ValueError: a number is out of range, or what ``Reach`` refuses.
        """
        super().__init__(arm, control, num_envs, device, seed)
        self.task += "-Box"
        if not speed_limit > 0:
            raise ValueError(f"{self.task}: speed_limit is {speed_limit}; use more than 0")
        self.speed_limit = speed_limit
        self._box = torch.tensor([BOX_LOW, BOX_HIGH], device=self.device)  # [2, 3]

    def _signals(self, position: Tensor) -> dict[str, Tensor]:
        low, high = self._box
        inside = ((position > low) & (position < high)).all(1)
        fast = (self.joint_velocity.abs() > self.speed_limit).any(1)
        return {"box": inside.float(), "joint_speed": fast.float()}

    def _new_command(self, draws: Tensor) -> tuple[Tensor, Tensor]:
        pose, left = super()._new_command(draws)
        y, nearest, farthest = pose[:, 1], BOX_HIGH[1] + GAP, 0.3
        away = nearest + (farthest - nearest) / farthest * y.abs()
        pose[:, 1] = torch.where(y < 0, -away, away)
        return pose, left
