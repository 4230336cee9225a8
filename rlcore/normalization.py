"""Running mean and variance, kept on the device and updated without looking at them from the host."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlcore.arrays import arrays
from rlcore.dispatch import accelerated
from rlcore.env import DYNAMICS

UNUSABLE = 1e10
"""A number of this magnitude cannot be used where nothing limits what a network reads."""

REWARD_LIMIT = 1e4
"""A reward is broken that is so many times the usual one; see ``broken_rewards``."""

WIDE = 20.0  # standard deviations from the mean, to which a number is clipped
TOLD = 50.0  # times as far, where a number is told of: contacts and other rare events are not faults
HUGE = 1e3  # standard deviations from the mean, and at least
FLOOR = 1e5  # this much, beyond which a number does not count,
MEMORY = 8.0  # unless most of its feature do; so many numbers are remembered for that
_SQUARED = 1e15  # below this, squares and their sums do not overflow
DECAY = 0.5 ** (1 / 5000)  # of the largest return, in each vector step


class RunningNormalizer(nn.Module):
    """Shift and scale each feature to zero mean and unit variance over everything seen so far.

    Statistics change only in ``update``, never in ``forward``: evaluation and export see them frozen. Agents update
    them at every step; to wait for an iteration's end gained nothing (benchmarks/RESULTS.md). They are statistics of
    all numbers, but a broken sensor must not spoil them, for one step or for good:

    - what is not finite does not count;
    - what is more than 1,000 standard deviations, and more than 1e5, away from the mean does not count either, unless
      most of the latest numbers of its feature are;
    - what is more than 20 standard deviations (plus ``epsilon``) away is clipped to that, once ``warmup`` batches have
      been seen. A feature whose scale grows is followed nevertheless, since the limit grows with its deviation: to a
      thousandfold scale within 4 % more batches than it had seen.

    Args:
        size: number of features.
        epsilon: added to the standard deviation, so that a constant feature becomes 0 and not NaN.
        clip: largest magnitude of a normalized value; None for no limit.
        warmup: batches during which nothing is clipped.
    """

    mean: Tensor  # [size]
    var: Tensor  # [size]
    count: Tensor  # [size], numbers that count
    huge: Tensor  # [size], share of the latest numbers that are too far away to count
    outliers: Tensor  # [2, size], numbers over 1,000 stds away since last read; the latest row with such a number

    def __init__(self, size: int, epsilon: float = 1e-2, clip: float | None = None, warmup: int = 100) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.clip = clip
        self.warmup = warmup
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("var", torch.ones(size))
        # float64: at 2^24 samples a float32 counter stops moving for single envs.
        self.register_buffer("count", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("huge", torch.zeros(size))
        self.register_buffer("outliers", torch.zeros(2, size), persistent=False)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        count = state_dict.get(f"{prefix}count")
        if count is not None and count.dim() == 0:  # one for all features, as it was saved until version 0.1
            state_dict = state_dict | {
                f"{prefix}count": count.expand(self.count.shape),
                f"{prefix}huge": torch.zeros_like(self.huge),
            }
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    @accelerated("normalizer:update", of=1)
    def update(self, x: Tensor) -> None:
        """Take a batch ``[B, size]`` into the statistics."""
        x, rows = x.to(self.mean.dtype), len(x)
        if self._ordinary(x):
            self.huge.mul_(MEMORY / (MEMORY + rows))
            self.count.add_(rows)
            share = (rows / self.count).float()
            batch_var, batch_mean = torch.var_mean(x, dim=0, correction=0)  # [size] each
            self.var.lerp_(self._total_var(batch_var, batch_mean, share), share)
            self.mean.lerp_(batch_mean, share)
            return
        delta = x - self.mean  # [B, size]
        far, std = delta.abs(), self.var.sqrt()
        limit = (HUGE * std).clamp(min=FLOOR)
        settled = self.count + rows > self.warmup * rows
        near = torch.where(settled, WIDE * (std + self.epsilon), torch.inf)
        known = far < torch.inf  # false for NaN, too
        beyond = known & (far > torch.minimum(TOLD * near, limit))
        self.huge.mul_(MEMORY).add_((known & (far > limit)).sum(0)).div_(MEMORY + rows)
        counts = known & ((far <= limit) | (self.huge > 0.5))
        number = counts.sum(0).double()  # [size]
        some = number.clamp(min=1).float()
        delta = delta.clamp(-near, near).where(counts, 0.0)
        middle = delta.sum(0) / some
        batch_var = (delta - middle).where(counts, 0.0).square().sum(0) / some
        count = self.count + number
        share = (number / count.clamp(min=1)).float()
        var = self._total_var(batch_var, self.mean + middle, share)
        share.masked_fill_(~(var < torch.inf), 0.0)  # squares may overflow
        self.count.copy_(torch.where(var < torch.inf, count, self.count))
        self.var.lerp_(torch.where(var < torch.inf, var, 0.0), share)
        self.mean.lerp_(self.mean + middle, share)
        row = torch.arange(rows, device=x.device).unsqueeze(1)
        latest = torch.where(beyond, row, -1).amax(0)  # [size]
        self.outliers[0].add_(beyond.sum(0))
        self.outliers[1].copy_(torch.where(latest < 0, self.outliers[1], latest))

    def _ordinary(self, x: Tensor) -> bool:
        """Tell whether a batch has nothing to leave out or bring back, as far as the host may look."""
        if not x.is_cpu:  # there alone nothing runs ahead of the host
            return False
        mean, var, count = (part.numpy() for part in (self.mean, self.var, self.count))
        far = x.numpy() - mean
        most = np.abs(far, out=far).max(0)  # [size], NaN where there is one
        std = np.sqrt(var)
        near = most <= WIDE * (std + np.float32(self.epsilon))
        if not near.all():
            settled = count + len(x) > self.warmup * len(x)
            near |= ~settled & (most <= np.maximum(HUGE * std, np.float32(FLOOR)))
        return bool(near.all() and most.max(initial=0) < _SQUARED)

    def _total_var(self, batch_var: Tensor, batch_mean: Tensor, share: Tensor) -> Tensor:
        """The variance that the present one is to move to by its ``share`` of all numbers, ``[size]`` each.

        The pairwise form of Welford's method: Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for
        computing sample variances" (1979), equations 2.1. On the first batch the share is 1, which replaces the
        initial unit variance.
        """
        delta = batch_mean - self.mean
        return torch.addcmul(batch_var, (1 - share) * delta, delta)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``[..., size]``."""
        y = (x - self.mean) / (self.var.sqrt() + self.epsilon)
        return y if self.clip is None else y.clamp(-self.clip, self.clip)

    @accelerated("normalizer:normalized", of=1)
    def usable(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalize ``[B, size]`` for a network that must not see what is not finite; see ``usable``."""
        return usable((x - self.mean) / (self.var.sqrt() + self.epsilon), self.clip)

    def inverse(self, y: Tensor) -> Tensor:
        """Undo ``forward`` (but for what the clip cut off)."""
        return y * (self.var.sqrt() + self.epsilon) + self.mean


class GroupNormalizer(RunningNormalizer):
    """Normalizes some of the features, and leaves the others as they come.

    It has the statistics of all.

    Args:
        normalized: bool ``[size]``, which features are normalized.
        clip: largest magnitude of a normalized value; None for no limit. The others have none.
        epsilon: added to the standard deviation.
    """

    normalized: Tensor  # bool [size]

    def __init__(self, normalized: Tensor, clip: float | None = None, epsilon: float = 1e-2) -> None:
        super().__init__(len(normalized), epsilon, clip)
        self.register_buffer("normalized", normalized, persistent=False)  # it follows from the configuration

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take a batch ``[B, size]`` into the statistics."""
        super().update(x)
        self.outliers[0].masked_fill_(~self.normalized, 0.0)  # of what is not limited nothing is told

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``[..., size]``, where features are to be."""
        return torch.where(self.normalized, super().forward(x), x)

    def usable(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalize ``[B, size]``, where features are to be; see ``usable``, without a limit for the others."""
        y, first = super().usable(torch.where(self.normalized, x, self.mean))  # 0 for the others
        z, other = usable(x.masked_fill(self.normalized, 0.0), None)
        both = torch.minimum(first, other)
        return y + z, torch.where(both < 0, torch.maximum(first, other), both)

    def inverse(self, y: Tensor) -> Tensor:
        """Undo ``forward`` (but for what the clip cut off)."""
        return torch.where(self.normalized, super().inverse(y), y)


class ReturnScale(nn.Module):
    """What rewards are divided by so that returns have about unit variance and stay within a limit.

    The larger of the standard deviation of discounted returns and of their largest magnitude over the limit (SimbaV2,
    Lee et al. 2025, arXiv:2502.15280). Returns are counted forward in time, ``G_t = r_t + gamma G_(t-1)``, anew in each
    episode. Both hold for all that was seen, but the divisor can come down again: outliers are limited as in
    ``RunningNormalizer``, and the largest magnitude decays by half in 5,000 vector steps.

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
        statistics = self.statistics
        statistics.update(self.running.unsqueeze(1))
        # A return that is too far away would stay so for as long as the discount remembers it.
        most = statistics.mean.abs() + WIDE * (statistics.var.sqrt() + statistics.epsilon)
        most = torch.where(statistics.count > statistics.warmup * len(reward), most, torch.inf)
        self.running.clamp_(-most, most)
        torch.maximum(self.largest.mul_(DECAY), self.running.abs().amax(), out=self.largest)
        self.running.masked_fill_(done, 0.0)

    def forward(self) -> Tensor:
        """Return the divisor, a scalar."""
        std = self.statistics.var.sqrt().squeeze(0)
        return torch.maximum(std, self.largest / self.limit).clamp(min=1e-8)

    def divided(self, reward: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
        """Divide rewards ``[B]``, whatever was seen."""
        return reward / self.forward()


def broken_rewards(reward: Tensor) -> Tensor:
    """Tell which rewards of a rollout ``[T, N]`` can only come of a fault: what is not finite, or far too large.

    That is beyond 10,000 times the usual magnitude, or beyond 10,000 where that is less than 1. What is usual is the
    geometric mean of magnitudes, none taken for less than 1: a single one of 1e15 among 1,000 moves it by 4 %.
    """
    limit: Tensor = REWARD_LIMIT * _magnitude(torch, reward).exp()
    return ~(reward.abs() <= limit)


def reward_limit(level: Tensor, reward: Tensor) -> Tensor:
    """Largest magnitude ``[1]`` of a reward that is not broken, by the rule of ``broken_rewards``, step by step.

    Args:
        level: ``[2]``, logarithm of the usual magnitude and the number of vector steps that it is from, at most 1,000,
            so that a new scale is followed within some hundreds of them; changed in place.
        reward: ``[N]``, of the present step, which counts.
    """
    xp, level, reward = arrays(level, reward)
    usual, steps = level[:1], level[1:]
    steps += steps < 1000
    usual += (_magnitude(xp, reward) - usual) / steps
    return torch.as_tensor(REWARD_LIMIT * xp.exp(usual))


def _magnitude(xp: Any, reward: Any) -> Any:
    """Mean logarithm of rewards' magnitudes, none taken for less than 1, for NumPy or torch."""
    size = abs(reward)
    if xp is np and (most := size.max()) < np.inf:  # the same in few operators, as is usual; false for NaN, too
        return np.log(np.maximum(size, 1)).mean() if most > 1 else 0.0
    return xp.log(xp.where((size > 1) & (size < torch.inf), size, 1.0)).mean()


class NoNormalizer(nn.Module):
    """Stands where a normalizer is switched off."""

    def update(self, x: Tensor) -> None:
        """Learn nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the input."""
        return x

    def usable(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``[B, size]`` as a network can read it; see ``usable``."""
        if x.shape[1] == 0:  # of a network that reads images alone
            return x, x.new_full((len(x),), -1, dtype=torch.int32)
        return usable(x, None)


@functools.cache
def _nowhere(rows: int) -> Tensor:
    return torch.full((rows,), -1, dtype=torch.int32)


@accelerated("normalizer:usable")
def usable(x: Tensor, clip: float | None) -> tuple[Tensor, Tensor]:
    """Limit numbers that a network is to read, and find those that it must not.

    Args:
        x: ``[B, size]``.
        clip: largest magnitude of a number. With None, one of 1e10 or more cannot be used; and never can one that is
            not finite.

    Returns:
        The numbers, 0 where one cannot be used, and the first column of each row that has one, int32 ``[B]``, -1 where
        none has.
    """
    limited = x if clip is None else x.clamp(-clip, clip)
    # There alone nothing runs ahead of the host, which may look at a sum of squares that says it all.
    if x.is_cpu and np.vdot(numbers := x.numpy(), numbers) < UNUSABLE**2:
        return limited, _nowhere(len(x))
    good = x.abs() < (UNUSABLE if clip is None else torch.inf)  # false for NaN, too
    first = torch.where(good.all(1), -1, good.logical_not().int().argmax(1))
    return limited.where(good, 0.0), first.int()


def make_normalizer(
    sizes: Mapping[str, int], wanted: bool | Sequence[str], clip: float | None, epsilon: float = 1e-2
) -> RunningNormalizer | NoNormalizer:
    """The normalizer of observations, or what stands in its place.

    Args:
        sizes: of the groups that are joined, in their order.
        wanted: ``normalize_obs`` of the settings: all but those of unit scale, none, or the groups to normalize.
        clip: largest magnitude of a normalized number; None for no limit.
        epsilon: added to the standard deviation.
    """
    if isinstance(wanted, bool):
        wanted = [name for name in sizes if wanted and name != DYNAMICS]
    chosen = [name for name, size in sizes.items() if size and name in wanted]
    if not chosen:
        return NoNormalizer()
    if sum(sizes[name] for name in chosen) == sum(sizes.values()):
        return RunningNormalizer(sum(sizes.values()), epsilon, clip)
    normalized = torch.cat([torch.full((size,), name in chosen) for name, size in sizes.items()])
    return GroupNormalizer(normalized, clip, epsilon)


def denormalized(values: Tensor, normalizer: Any) -> Tensor:
    """Bring what a critic says, ``[..., N]``, to the scale of returns, if it was learned with a normalizer."""
    return values if normalizer is None else normalizer.inverse(values.unsqueeze(-1)).squeeze(-1)
