"""An environment that costs next to nothing, for benchmarks and tests of everything around it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlcore.envs.torch_env import TorchEnv, check_whole
from rlcore.types import Obs, Step

_BANK_STEPS = 64  # steps after which observations repeat


class Null(TorchEnv):
    """Random observations and rewards that ignore the action.

    Everything random is drawn once: observations ``[N + 64, O]``, rewards and ends ``[N + 64]``. Step t shows the
    window that starts at row ``t % 64``, a view without a copy, so a step runs only the few kernels that count
    episode lengths. Numbers are drawn on the CPU: a seed gives the same ones on every device.
    """

    task = "Null"
    capturable = False  # where the window starts is a number of the host's

    def __init__(
        self,
        num_envs: int,
        device: str | torch.device = "cpu",
        seed: int | None = None,
        obs_size: int = 48,
        action_size: int = 12,
        episode_length: int = 1000,
        termination_rate: float = 0.0,
    ) -> None:
        """Draw the bank.

        Args:
            num_envs: N.
            device: where the tensors live.
            seed: of the bank; ``None`` is 0, so that benchmarks repeat.
            obs_size: O, of the one group ``policy``.
            action_size: A, of an unbounded Box.
            episode_length: steps after which episodes are truncated.
            termination_rate: chance in 0..1 that a step terminates its episode.

        Raises:
            ValueError: a size below 1, or a rate outside 0..1.
        """
        check_whole("Null", obs_size=obs_size, action_size=action_size, episode_length=episode_length)
        if not isinstance(termination_rate, (int, float)) or not 0.0 <= termination_rate <= 1.0:
            raise ValueError(f"Null: termination_rate is {termination_rate}; it must be in 0..1")
        super().__init__(num_envs, device, seed, episode_length)
        self.observation_spaces = {"policy": spaces.Box(-math.inf, math.inf, (obs_size,), dtype=np.float32)}
        self.action_space = spaces.Box(-math.inf, math.inf, (action_size,), dtype=np.float32)
        self._obs_size = obs_size
        self._termination_rate = termination_rate
        self._fill_bank(0 if seed is None else seed)

    def reset(self, seed: int | None = None) -> Obs:
        """Start over at the first row; a seed draws a new bank."""
        if seed is not None and seed != self._seed:
            self._fill_bank(seed)
        self._cursor = 0
        self.steps.zero_()
        return {"policy": self._observations[: self.num_envs]}

    @torch.no_grad()
    def step(self, action: Tensor) -> Step:
        """Show the next rows; see ``VecEnv.step``.

        Raises:
            ValueError: the action is not ``[N, A]`` float.
        """
        self._check_action(action)
        self._cursor = (self._cursor + 1) % _BANK_STEPS
        rows = slice(self._cursor, self._cursor + self.num_envs)
        terminated = self._terminations[rows]  # [N]
        self.steps.add_(1)
        truncated = self.steps >= self.max_episode_length  # [N]
        self.steps.masked_fill_(terminated | truncated, 0)
        return Step(
            {"policy": self._observations[rows]},
            self._rewards[rows],
            terminated,
            truncated,
            {"policy": self._final_observations[rows]},
            {},
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything the future depends on."""
        return {"seed": self._seed, "cursor": self._cursor, "steps": self.steps.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where ``state_dict`` was taken.

        Raises:
            ValueError: it was taken with another number of envs.
        """
        self._check_saved(state, ("seed", "cursor", "steps"))
        if state["seed"] != self._seed:
            self._fill_bank(state["seed"])
        self._cursor = state["cursor"]
        self.steps.copy_(state["steps"])

    def _fill_bank(self, seed: int) -> None:
        self._seed = seed
        self._cursor = 0
        generator = torch.Generator().manual_seed(seed)
        rows = self.num_envs + _BANK_STEPS
        observations = torch.randn(2, rows, self._obs_size, generator=generator)
        self._observations, self._final_observations = observations.to(self.device).unbind(0)  # [N + 64, O]
        self._rewards = torch.randn(rows, generator=generator).to(self.device)  # [N + 64]
        self._terminations = (torch.rand(rows, generator=generator) < self._termination_rate).to(self.device)
