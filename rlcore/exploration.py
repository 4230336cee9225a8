"""Exploration noise: held for some steps, or of a standard deviation that differs by env."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn


class HeldNoise(nn.Module):
    """Standard normal noise ``[N, A]`` that each env keeps for a random number of steps.

    The number k has a probability proportional to 1 / k^2, up to ``longest``: mostly fresh noise, at times a long push
    in one direction (Zeta(2), as Dabney et al. 2021, arXiv:2006.01782, do it for discrete actions). Every env has a
    counter of its own, and draws anew when an episode begins.

    Args:
        num_envs: N.
        actions: A.
        longest: largest number of steps; 1 for fresh noise at every step.
    """

    noise: Tensor  # [N, A]
    left: Tensor  # [N], steps for which it is kept
    cdf: Tensor  # [longest], probability of that many steps or fewer

    def __init__(self, num_envs: int, actions: int, longest: int) -> None:
        super().__init__()
        self.longest = longest
        self.register_buffer("noise", torch.zeros(num_envs, actions))
        self.register_buffer("left", torch.zeros(num_envs, dtype=torch.int64))
        weight = torch.arange(1, longest + 1, dtype=torch.float64) ** -2.0
        self.register_buffer("cdf", (weight.cumsum(0) / weight.sum()).float(), persistent=False)

    def draw(self) -> Tensor:
        """Return this step's noise, ``[N, A]``, from the device's default generator."""
        if self.longest == 1:
            return torch.randn_like(self.noise)
        over = self.left <= 0  # [N]
        self.noise.copy_(torch.where(over.unsqueeze(1), torch.randn_like(self.noise), self.noise))
        steps = torch.searchsorted(self.cdf, torch.rand_like(self.noise[:, 0])).clamp(max=self.longest - 1) + 1
        self.left.copy_(torch.where(over, steps, self.left) - 1)
        return self.noise

    def end(self, done: Tensor) -> None:
        """Draw anew where an episode ended, ``[N]``."""
        if self.longest > 1:
            self.left.masked_fill_(done, 0)


class Deviation(nn.Module):
    """Standard deviations of exploration noise ``[N, 1]`` that differ by env: some explore widely and some hardly.

    Args:
        num_envs: N.
        low: smallest.
        high: largest.
        spread: ``envs``, evenly over the envs for good (PQL, arXiv:2307.12983); ``episodes``, drawn uniformly for each
            episode (FastTD3, arXiv:2505.22642).
    """

    value: Tensor  # [N, 1]

    def __init__(self, num_envs: int, low: float, high: float, spread: Literal["envs", "episodes"]) -> None:
        super().__init__()
        self.low, self.high, self.spread = low, high, spread
        even = torch.linspace(low, high, num_envs) if num_envs > 1 else torch.tensor([(low + high) / 2])
        self.register_buffer("value", even.unsqueeze(1))

    @torch.no_grad()
    def end(self, done: Tensor) -> None:
        """Draw anew where an episode ended, ``[N]``, if they are spread over episodes."""
        if self.spread == "episodes":
            fresh = self.low + (self.high - self.low) * torch.rand_like(self.value)
            self.value.copy_(torch.where(done.unsqueeze(1), fresh, self.value))
