"""An env of one's own: a drone that climbs to a height and stays there, in PyTorch alone.

    rlcore train --config examples/hover.yaml --name first
    rlcore eval --run runs/*/ppo/*-first

That takes about 30 s on one CPU core and ends with a success rate of 100 %. The env has all that the contract
(``rlcore/env.py``) knows of beside the least: a group for the critic alone, observations from before a reset, time-outs
apart from failures, a signal beside the reward, parameters for randomization and curricula, success, its own state, and
what an exported file tells a controller. All of it is tensors that change in place, so that a GPU records it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlcore import Step
from rlcore.env import Parameter
from rlcore.types import Obs

GRAVITY = 9.81  # m/s²
DT = 0.05  # s
MIDDLE = 2.0  # m, height at which episodes begin
CEILING = 4.0  # m


class Hover:
    """Climb to a height within 4 m and stay there; implements ``rlcore.env.VecEnv``.

    Action ``[N, 1]``: thrust beside that which carries the nominal mass, -1 none at all, 1 twice as much. Observation
    group ``policy`` ``[N, 3]``: error (m, of the goal from the height), velocity (m/s), height (m); ``critic``
    ``[N, 5]`` sees mass and wind as well. An episode ends on the ground or at the ceiling, and is cut after 5 s. The
    reward of a step is ``1 - |error| - speed_weight * velocity²``. Signal ``fast``: 1 above 1 m/s.

    Args:
        num_envs: N.
        device: where everything lives.
        seed: of the random generator; random when not given.
        speed_weight: of the squared velocity in the reward.
        max_episode_length: steps after which an episode is cut.
    """

    signal_names: ClassVar[tuple[str, ...]] = ("fast",)
    parameters: ClassVar[dict[str, Parameter]] = {
        "mass": Parameter(nominal=1.0, low=0.6, high=1.5, unit="kg", positive=True),
        "wind": Parameter(nominal=0.0, low=-3.0, high=3.0, unit="m/s²"),
        "goal_range": Parameter(nominal=1.5, low=0.1, high=1.5, unit="m", next_episode=True),
    }
    deployment: ClassVar[dict[str, Any]] = {
        "control_dt": DT,
        "observation_terms": {
            "policy": [{"name": name, "size": 1} for name in ("error", "velocity", "height")],
            "critic": [{"name": name, "size": 1} for name in ("error", "velocity", "height", "mass", "wind")],
        },
        "action_terms": [{"name": "thrust", "size": 1, "scale": GRAVITY, "offset": GRAVITY}],  # N
    }
    capturable = True

    def __init__(
        self,
        num_envs: int,
        device: str | torch.device = "cpu",
        seed: int | None = None,
        speed_weight: float = 0.0,
        max_episode_length: int = 100,
    ) -> None:
        self.num_envs, self.max_episode_length, self.speed_weight = num_envs, max_episode_length, speed_weight
        self.observation_spaces = {
            "policy": spaces.Box(-np.inf, np.inf, (3,), dtype=np.float32),
            "critic": spaces.Box(-np.inf, np.inf, (5,), dtype=np.float32),
        }
        self.action_space = spaces.Box(-1.0, 1.0, (1,), dtype=np.float32)
        self.height, self.velocity, self.goal = torch.zeros(3, num_envs, device=device).unbind()  # [N] each
        self.steps = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self.device = self.steps.device
        self.values = {
            name: torch.full((num_envs,), parameter.nominal, device=device)
            for name, parameter in self.parameters.items()
        }
        self.generator = torch.Generator(self.device)
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)

    def reset(self, seed: int | None = None) -> Obs:
        """Start a new episode in every env."""
        if seed is not None:
            self.generator.manual_seed(seed)
        self._begin(torch.ones_like(self.steps, dtype=torch.bool))
        return self._observe()

    @torch.no_grad()
    def step(self, action: Tensor) -> Step:
        """Advance every env by 0.05 s, and begin anew where an episode ended."""
        action = action[:, 0].clamp(-1.0, 1.0)  # [N]
        acceleration = GRAVITY * (1.0 + action) / self.values["mass"] - GRAVITY + self.values["wind"]
        self.velocity += DT * (acceleration - 0.5 * self.velocity)
        self.height += DT * self.velocity
        self.steps += 1
        error = (self.goal - self.height).abs()
        terminated = (self.height <= 0.0) | (self.height >= CEILING)  # there is no future
        truncated = ~terminated & (self.steps >= self.max_episode_length)  # there is, but nobody sees it
        reward = 1.0 - error - self.speed_weight * self.velocity.square()
        signals = {"fast": (self.velocity.abs() > 1.0).float()}
        log: dict[str, Tensor | float] = {"success": (truncated & (error < 0.1)).float()}  # read where one ended
        final_obs = self._observe()
        self._begin(terminated | truncated)
        return Step(self._observe(), reward, terminated, truncated, final_obs, log, signals=signals)

    def close(self) -> None:
        """Nothing to release."""

    def set_parameters(self, values: dict[str, Tensor], where: Tensor) -> None:
        """Give envs other parameters from the next step on; see ``rlcore.env.Randomizable``."""
        for name, value in values.items():
            self.values[name].copy_(torch.where(where, value, self.values[name]))

    def state_dict(self) -> dict[str, Any]:
        """Everything that the future depends on, so that a resumed run goes on to the bit."""
        return {name: tensor.clone() for name, tensor in self._tensors().items()} | {
            "generator": self.generator.get_state()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where ``state_dict`` was taken."""
        for name, tensor in self._tensors().items():
            tensor.copy_(state[name])
        self.generator.set_state(state["generator"].cpu())

    def _tensors(self) -> dict[str, Tensor]:
        own = {"height": self.height, "velocity": self.velocity, "goal": self.goal, "steps": self.steps}
        return own | self.values

    def _begin(self, where: Tensor) -> None:
        """New episodes in some envs; all draw, so that shapes stay the same."""
        draw = torch.rand(self.num_envs, generator=self.generator, device=self.device)
        goal = MIDDLE + self.values["goal_range"] * (2.0 * draw - 1.0)
        self.goal.copy_(torch.where(where, goal, self.goal))
        self.height.masked_fill_(where, MIDDLE)
        self.velocity.masked_fill_(where, 0.0)
        self.steps.masked_fill_(where, 0)

    def _observe(self) -> Obs:
        policy = torch.stack([self.goal - self.height, self.velocity, self.height], 1)  # [N, 3]
        hidden = torch.stack([self.values["mass"], self.values["wind"]], 1)  # [N, 2]
        return {"policy": policy, "critic": torch.cat([policy, hidden], 1)}
