"""Running mean and variance, kept on the device and updated without looking at them from the host."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RunningNormalizer(nn.Module):
    """Shift and scale each feature to zero mean and unit deviation over everything seen so far.

    Statistics change only in ``update``, never in ``forward``: evaluation and export see them frozen.

    Args:
        size: number of features.
        epsilon: added to the deviation, so that a constant feature becomes 0 and not NaN.
        clip: largest magnitude of a normalized value; None for no limit.
    """

    mean: Tensor  # [size]
    var: Tensor  # [size]
    count: Tensor  # []

    def __init__(self, size: int, epsilon: float = 1e-2, clip: float | None = None) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.clip = clip
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("var", torch.ones(size))
        # float64: at 2^24 samples a float32 counter stops moving for single envs.
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take a batch ``[B, size]`` into the statistics.

        The pairwise form of Welford's method: Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for
        computing sample variances" (1979), equations 2.1. Where a feature of the batch is not finite, its statistics
        stay as they are: one broken env must not spoil them for good.
        """
        batch_var, batch_mean = torch.var_mean(x.to(self.mean.dtype), dim=0, correction=0)  # [size] each
        self.count += x.shape[0]
        share = (x.shape[0] / self.count).float()
        delta = batch_mean - self.mean
        var = torch.addcmul(batch_var, (1 - share) * delta, delta)
        sound = var < torch.inf  # false for NaN, too
        # On the first batch share is 1, which replaces the initial unit variance.
        self.mean.lerp_(torch.where(sound, batch_mean, self.mean), share)
        self.var.lerp_(torch.where(sound, var, self.var), share)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``[..., size]``."""
        y = (x - self.mean) / (self.var.sqrt() + self.epsilon)
        return y if self.clip is None else y.clamp(-self.clip, self.clip)

    def inverse(self, y: Tensor) -> Tensor:
        """Undo ``forward`` (but for what the clip cut off)."""
        return y * (self.var.sqrt() + self.epsilon) + self.mean


class ReturnScale(nn.Module):
    """What rewards are divided by so that returns have about unit deviation and stay within a limit.

    The larger of the deviation of discounted returns and of their largest magnitude over the limit, both over all that
    was seen (SimbaV2, Lee et al. 2025, arXiv:2502.15280). Returns are counted forward in time,
    ``G_t = r_t + gamma G_(t-1)``, anew in each episode.

    Args:
        num_envs: N.
        gamma: discount per step.
        limit: what no return is to exceed after division.
    """

    running: Tensor  # [N]
    largest: Tensor  # []

    def __init__(self, num_envs: int, gamma: float, limit: float) -> None:
        super().__init__()
        self.gamma, self.limit = gamma, limit
        self.statistics = RunningNormalizer(1)
        self.register_buffer("running", torch.zeros(num_envs))
        self.register_buffer("largest", torch.zeros(()))

    @torch.no_grad()
    def update(self, reward: Tensor, done: Tensor) -> None:
        """Take in a vector step: rewards ``[N]``, and where an episode ended with them ``[N]``."""
        self.running.mul_(self.gamma).add_(reward.nan_to_num(0.0, 0.0, 0.0))
        self.statistics.update(self.running.unsqueeze(1))
        torch.maximum(self.largest, self.running.abs().amax(), out=self.largest)
        self.running.masked_fill_(done, 0.0)

    def forward(self) -> Tensor:
        """Return the divisor, a scalar."""
        deviation = self.statistics.var.sqrt().squeeze(0)
        return torch.maximum(deviation, self.largest / self.limit).clamp(min=1e-8)


class NoNormalizer(nn.Module):
    """Stands where a normalizer is switched off."""

    def update(self, x: Tensor) -> None:
        """Learn nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the input."""
        return x


def make_normalizer(size: int, wanted: bool, clip: float | None) -> RunningNormalizer | NoNormalizer:
    """The normalizer of observations ``[..., size]``, or what stands in its place."""
    return RunningNormalizer(size, clip=clip) if wanted else NoNormalizer()
