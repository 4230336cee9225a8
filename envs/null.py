"""An environment that costs next to nothing, for benchmarks and tests of everything around it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlcore.types import Obs, Step

_BANK_STEPS = 64  # steps after which observations repeat


class Null:
    """Random observations and rewards that ignore the action.

    Everything random is drawn once: observations ``[N + 64, O]``, rewards and ends ``[N + 64]``. Step t shows the
    window that starts at row ``t % 64``, a view without a copy, so a step runs only the few kernels that count
    episode lengths. Numbers are drawn on the CPU: a seed gives the same ones on every device.
    """

    task = "Null"

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
        sizes = {"num_envs": num_envs, "obs_size": obs_size, "action_size": action_size}
        for name, value in (sizes | {"episode_length": episode_length}).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"Null: {name} is {value!r}; it must be a whole number of at least 1")
        if not isinstance(termination_rate, (int, float)) or not 0.0 <= termination_rate <= 1.0:
            raise ValueError(f"Null: termination_rate is {termination_rate}; it must be in 0..1")
        self.num_envs = num_envs
        self.max_episode_length = episode_length
        self.observation_spaces: Mapping[str, spaces.Box] = {
            "policy": spaces.Box(-math.inf, math.inf, (obs_size,), dtype=np.float32)
        }
        self.action_space: spaces.Space[Any] = spaces.Box(-math.inf, math.inf, (action_size,), dtype=np.float32)
        self._obs_size = obs_size
        self._action_shape = (num_envs, action_size)
        self._termination_rate = termination_rate
        self._steps = torch.zeros(num_envs, dtype=torch.int64, device=device)  # [N]
        self.device = self._steps.device
        self._fill_bank(0 if seed is None else seed)

    def reset(self, seed: int | None = None) -> Obs:
        """Start over at the first row; a seed draws a new bank."""
        if seed is not None and seed != self._seed:
            self._fill_bank(seed)
        self._cursor = 0
        self._steps.zero_()
        return {"policy": self._observations[: self.num_envs]}

    @torch.no_grad()
    def step(self, action: Tensor) -> Step:
        """Show the next rows; see ``VecEnv.step``.

        Raises:
            ValueError: the action is not ``[N, A]``.
        """
        if action.shape != self._action_shape:
            raise ValueError(f"Null: action has shape {tuple(action.shape)}; expected {self._action_shape}")
        self._cursor = (self._cursor + 1) % _BANK_STEPS
        rows = slice(self._cursor, self._cursor + self.num_envs)
        terminated = self._terminations[rows]  # [N]
        self._steps.add_(1)
        truncated = self._steps >= self.max_episode_length  # [N]
        self._steps.masked_fill_(terminated | truncated, 0)
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
        return {"seed": self._seed, "cursor": self._cursor, "steps": self._steps.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where ``state_dict`` was taken.

        Raises:
            ValueError: it was taken with another number of envs.
        """
        if state["steps"].shape != self._steps.shape:
            saved = state["steps"].shape[0]
            raise ValueError(f"Null: the saved state has {saved} envs, this env has {self.num_envs}")
        if state["seed"] != self._seed:
            self._fill_bank(state["seed"])
        self._cursor = state["cursor"]
        self._steps.copy_(state["steps"])

    def close(self) -> None:
        """Nothing to release."""

    def _fill_bank(self, seed: int) -> None:
        self._seed = seed
        self._cursor = 0
        generator = torch.Generator().manual_seed(seed)
        rows = self.num_envs + _BANK_STEPS
        observations = torch.randn(2, rows, self._obs_size, generator=generator)
        self._observations, self._final_observations = observations.to(self.device).unbind(0)  # [N + 64, O]
        self._rewards = torch.randn(rows, generator=generator).to(self.device)  # [N + 64]
        self._terminations = (torch.rand(rows, generator=generator) < self._termination_rate).to(self.device)
