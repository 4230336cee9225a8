"""Corner: a point mass that has to reach one of four corners, which nothing that it sees tells apart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rlcore.envs.torch_env import TorchEnv, drawn
from rlcore.types import Obs, Step

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CORNERS = {"NE": (1.0, 1.0), "NW": (-1.0, 1.0), "SW": (-1.0, -1.0), "SE": (1.0, -1.0)}
"""Where each is, m."""


class Corner(TorchEnv):
    """Push a point mass to a corner of a square of 2 m; implements ``rlcore.env.VecEnv``.

    Four tasks in one world, for learning many tasks with one policy: observations, actions and physics are the same,
    the goals are opposite, and ``reward_scale`` makes the rewards as different as those of different tasks are.

    Observation group ``policy`` ``[N, 4]``: position (m), velocity (m/s). Action ``[N, 2]``: force in -1..1, which
    accelerates by 4 m/s² against a drag of 2 /s. Episodes start at rest within 0.3 m of the middle, and are cut after
    ``max_episode_length`` steps of 0.1 s. The reward of a step is ``reward_scale * (1 - distance / sqrt 2)``: nothing
    in the middle, 1 in the corner, -1 in the opposite one. ``Step.log["success"]`` ``[N]``: whether an episode ended
    within 0.2 m of the corner.
    """

    _buffers: ClassVar[tuple[str, ...]] = ("state", "steps")

    dt = 0.1  # s
    force = 4.0  # m/s², per unit of action
    drag = 2.0  # 1/s
    start = 0.3  # m, half-width
    near = 0.2  # m

    def __init__(
        self,
        corner: str = "NE",
        num_envs: int = 1,
        device: str | torch.device = "cpu",
        seed: int | None = None,
        reward_scale: float = 1.0,
        max_episode_length: int = 50,
    ) -> None:
        """Build the envs; call ``reset`` before ``step``.

        Args:
            corner: one of ``CORNERS``.
            num_envs: N.
            device: where everything lives.
            seed: of the random generator; random when not given.
            reward_scale: factor of the reward.
            max_episode_length: steps after which an episode is cut.

        Raises:
            ValueError: a number out of range.
        """
        self.task = f"Corner-{corner}"
        super().__init__(num_envs, device, seed, max_episode_length)
        if not isinstance(reward_scale, (int, float)) or not 0 < reward_scale < math.inf:
            raise ValueError(f"{self.task}: reward_scale is {reward_scale!r}; use a number above 0")
        self.reward_scale = float(reward_scale)
        self.observation_spaces = {"policy": spaces.Box(-np.inf, np.inf, (4,), dtype=np.float32)}
        self.action_space = spaces.Box(-1.0, 1.0, (2,), dtype=np.float32)
        self.deployment: dict[str, Any] = {
            "control_dt": self.dt,
            "observation_terms": {"policy": [{"name": "position", "size": 2}, {"name": "velocity", "size": 2}]},
            "action_terms": [{"name": "force", "size": 2, "scale": self.force, "offset": 0.0}],
        }
        self.state = torch.zeros(num_envs, 4, device=self.device)  # [N, 4]
        self._goal = torch.tensor(CORNERS[corner], device=self.device)  # [2]

    @torch.no_grad()
    def step(self, action: Tensor) -> Step:
        """Advance every env by one control step; see ``VecEnv.step``.

        Raises:
            ValueError: the action has the wrong shape or kind of number.
        """
        self._check_action(action)
        position, velocity = self.state.chunk(2, 1)  # [N, 2] each
        velocity = velocity + self.dt * (self.force * action.clamp(-1.0, 1.0) - self.drag * velocity)
        position = position + self.dt * velocity
        distance = (position - self._goal).norm(dim=1)  # [N]
        steps = self.steps + 1  # [N]
        truncated = steps >= self.max_episode_length  # [N]
        reached = torch.cat((position, velocity), 1)
        self.state.copy_(torch.where(truncated.unsqueeze(1), self._start_states(), reached))
        self.steps.copy_(steps.masked_fill(truncated, 0))
        reward = self.reward_scale * (1.0 - distance / math.sqrt(2.0))
        success = (distance < self.near).float()
        terminated = torch.zeros_like(truncated)
        return Step(
            {"policy": self.state.clone()}, reward, terminated, truncated, {"policy": reached}, {"success": success}
        )

    def render(self) -> NDArray[np.uint8]:
        """Picture of env 0, ``[300, 400, 3]``: the mass, and a ring about its corner."""
        return drawn(self._paint)

    def _paint(self, figure: Figure) -> None:
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set(aspect="equal", xlim=(-1.8, 1.8), ylim=(-1.35, 1.35))
        axes.set_axis_off()
        axes.plot(*zip(*CORNERS.values(), strict=True), "o", color="0.8", markersize=12)
        axes.plot(*self._goal.tolist(), "o", color="tab:green", markersize=24, fillstyle="none")
        axes.plot(*self.state[0, :2].tolist(), "o", color="tab:blue", markersize=10)

    def _begin(self) -> Obs:
        self.state.copy_(self._start_states())
        self.steps.zero_()
        return {"policy": self.state.clone()}

    def _start_states(self) -> Tensor:
        uniform = torch.rand(self.num_envs, 2, generator=self.generator, device=self.device)  # [N, 2]
        return torch.cat(((2.0 * uniform - 1.0) * self.start, torch.zeros_like(uniform)), 1)
