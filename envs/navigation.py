"""Navigation: a point that has to go to a goal which it does not see; the family that meta-learning is shown on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlcore.env import Parameter
from rlcore.envs.torch_env import PhysicalEnv
from rlcore.types import Obs, Step


class Navigation(PhysicalEnv):
    """Go to a hidden goal in a square of 1 m; the 2-D navigation of Finn et al. 2017, arXiv:1703.03400, section 5.3.

    Observation group ``policy`` ``[N, 2]``: position (m). Action ``[N, 2]``: displacement of a step, within ±0.1 m each
    way. Episodes start in the middle and are cut after ``max_episode_length`` steps. The reward of a step is minus the
    squared distance (m²) between the goal and where the step ends. ``Step.log["success"]`` ``[N]``: whether an episode
    ended within 0.1 m of the goal. The parameters ``goal_x`` and ``goal_y`` say where that is.

    There the episode ends within 0.01 m of the goal as well, which makes haste worth less than it is here.
    """

    task = "Navigation-2D"
    signal_names: ClassVar[tuple[str, ...]] = ()
    parameters: Mapping[str, Parameter] = {
        name: Parameter(nominal=0.0, low=-0.5, high=0.5, unit="m") for name in ("goal_x", "goal_y")
    }
    deployment: ClassVar[dict[str, Any]] = {
        "observation_terms": {"policy": [{"name": "position", "size": 2}]},
    }
    _buffers: ClassVar[tuple[str, ...]] = ("position", "steps")

    reach = 0.1  # m, of a step
    near = 0.1  # m

    def __init__(
        self,
        num_envs: int = 1,
        device: str | torch.device = "cpu",
        seed: int | None = None,
        max_episode_length: int = 100,
    ) -> None:
        """Build the envs; call ``reset`` before ``step``.

        Args:
            num_envs: N.
            device: where everything lives.
            seed: of the random generator; random when not given.
            max_episode_length: steps after which an episode is cut.

        Raises:
            ValueError: a number out of range.
        """
        super().__init__(num_envs, device, seed, max_episode_length)
        self.observation_spaces = {"policy": spaces.Box(-np.inf, np.inf, (2,), dtype=np.float32)}
        self.action_space = spaces.Box(-self.reach, self.reach, (2,), dtype=np.float32)
        self.position = torch.zeros(num_envs, 2, device=self.device)  # [N, 2]

    @torch.no_grad()
    def step(self, action: Tensor) -> Step:
        """Advance every env by one control step; see ``VecEnv.step``.

        Raises:
            ValueError: the action has the wrong shape or kind of number.
        """
        self._check_action(action)
        reached = self.position + action.clamp(-self.reach, self.reach)
        square = (reached - self._values.values.t()).square().sum(1)  # [N]
        steps = self.steps + 1  # [N]
        truncated = steps >= self.max_episode_length  # [N]
        self.position.copy_(reached.masked_fill(truncated.unsqueeze(1), 0.0))
        self.steps.copy_(steps.masked_fill(truncated, 0))
        log: dict[str, Tensor | float] = {"success": (square < self.near**2).float()}
        seen = {"policy": self.position.clone()}
        return Step(seen, -square, torch.zeros_like(truncated), truncated, {"policy": reached}, log)

    def _begin(self) -> Obs:
        self.position.zero_()
        self.steps.zero_()
        return {"policy": self.position.clone()}
