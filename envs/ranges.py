"""How parameters are drawn: from fixed ranges, or from ranges that grow as far as what is learned in them succeeds.

Positions ``[P, N]`` are from 0, the lower limit of a parameter, to 1, the upper one; each parameter has its own row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rlcore.dispatch import accelerated
from rlcore.envs.cohorts import Cohorts
from rlcore.types import Metrics


@dataclass(frozen=True)
class Row:
    """A parameter as drawing knows it."""

    name: str
    start: float
    """Position of its nominal value, in 0..1."""
    point: bool = False
    """Whether there is one value alone, so that no range of it can grow."""


class Scale(NamedTuple):
    """What a position of each parameter is worth, ``[P, 1]`` each."""

    low: Tensor
    """At 0; its logarithm where that is uniform."""
    span: Tensor
    """From 0 to 1."""
    logarithmic: Tensor | None
    """Where it is the logarithm; None if nowhere."""
    points: Tensor | None
    """Where there is one value alone, and the position 0.5; None if nowhere."""
    lowest: Tensor
    """-1, what is seen of 0, as a tensor."""

    def values(self, position: Tensor) -> Tensor:
        """Of positions ``[P, ...]``."""
        values = torch.addcmul(self.low, self.span, position)
        return values if self.logarithmic is None else torch.where(self.logarithmic, values.exp(), values)


@accelerated("ranges:redrawn")
def redrawn(kept: Tensor, position: Tensor, where: Tensor, scale: Scale) -> tuple[Tensor, Tensor, Tensor]:
    """Take other positions ``[P, N]`` in place of those that are kept, in the envs ``where`` ``[N]``.

    Returns:
        The values ``[P, N]`` of ``position``, in all envs; and ``kept`` as observations ``[N, P]`` within -1..1, as it
        is now, and as it was.
    """
    before = torch.add(scale.lowest, kept, alpha=2.0).t()
    if scale.points is not None:
        position = position.masked_fill(scale.points, 0.5)
    torch.where(where, position, kept, out=kept)
    return scale.values(position), torch.add(scale.lowest, kept, alpha=2.0).t(), before


class Fixed:
    """Uniform over all of the range.

    ``draw`` and ``record``, here and below, run inside of recordings; ``kept`` is what the future depends on, tensors
    that are changed in place, and ``of_episodes`` what comes with the positions of an env, ``[N]``. ``broken_off`` and
    ``began_at_reset`` come before and after the draws of a reset.
    """

    def __init__(self, rows: list[Row], num_envs: int, device: torch.device) -> None:
        self.shape, self.device = (len(rows), num_envs), device
        self.kept: dict[str, Tensor] = {}
        self.of_episodes: Tensor | None = None

    def draw(self, generator: torch.Generator, where: Tensor) -> Tensor:
        """Positions ``[P, N]`` for all envs; episodes begin with them in the envs ``where`` ``[N]``."""
        return torch.rand(self.shape, generator=generator, device=self.device)

    def record(self, position: Tensor, done: Tensor, success: Tensor) -> None:
        """Take in episodes that ended ``[N]`` at ``[P, N]``, before the next are drawn; nothing to be done here."""

    def broken_off(self) -> None:
        """Know that no episode in flight will end; nothing to be done here."""

    def began_at_reset(self, whole: bool) -> None:
        """Know that the episodes in flight began at a reset, ``whole`` or in the middle; nothing to be done here."""

    def completed(self, kept: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What was saved, with what version 0.2.0 did not; nothing to be done here."""
        return kept


class AutomaticRanges:
    """Automatic domain randomization: Akkaya et al. 2019, arXiv:1910.07113, algorithm 1.

    Each parameter is uniform between two bounds, which begin at its nominal value. Half of the episodes are played with
    one parameter at one of its bounds. A bound moves out by a step if the mean success there is at least ``high``, and
    back by one if it is at most ``low``; never past the nominal value, nor past the limits.

    The mean is that of a cohort, see ``rlcore.envs.cohorts``: of the episodes that begin at a bound after its last
    decision.

    Args:
        rows: the parameters.
        num_envs: N.
        device: where everything lives.
        step: in parts of the range.
        low: success up to which a bound comes back.
        high: success from which on it goes on.
        episodes: of a cohort at least, by several ranks together.
    """

    def __init__(
        self,
        rows: list[Row],
        num_envs: int,
        device: torch.device,
        *,
        step: float,
        low: float,
        high: float,
        episodes: int,
    ) -> None:
        self.rows, self.device = rows, device
        self.step, self.low, self.high = step, low, high
        self.start = torch.tensor([row.start for row in rows], device=device)  # [P]
        self.bounds = self.start.repeat(2, 1)  # [2, P]
        count = len(rows)
        self.cohorts = Cohorts(2 * count, num_envs, episodes, device)
        self.played = self.of_episodes = self.cohorts.of  # [N]
        # Episodes and successes of each env since ``adapt``, by what they were; the last is of what has not ended.
        self.tally = torch.zeros(2, self.cohorts.rows + 1, num_envs, device=device)
        kept = {"played": self.played, "sums": self.cohorts.sums, "lost": self.cohorts.lost}
        self.kept = {"bounds": self.bounds, "tally": self.tally, **kept}
        self._one = torch.ones(num_envs, device=device)
        self._last = torch.tensor(self.cohorts.rows, device=device)
        movable = torch.tensor([not row.point for row in rows], device=device).repeat(2).cumsum(0)  # [2P]
        self._limits = movable / (2 * movable[-1].clamp(min=1))  # [2P], of numbers that choose
        # Between what each parameter is drawn where a bound is played, or none, [2, P, 2P + 1].
        self._between = torch.zeros(2, count, 2 * count + 1, device=device)
        self.loaded()

    def draw(self, generator: torch.Generator, where: Tensor) -> Tensor:
        """See ``Fixed``."""
        size = (len(self.rows) + 1, len(self.played))
        uniform = torch.rand(size, generator=generator, device=self.device)
        return chosen(uniform, self._limits, self._between, where, self.played)

    def record(self, position: Tensor, done: Tensor, success: Tensor) -> None:
        """See ``Fixed``; what is told of each env is summed up in ``adapt``, which is not in every step."""
        add_ended(self.tally, self.played, done, success, self._one, self._last)

    def broken_off(self) -> None:
        """See ``Fixed``."""
        self.cohorts.broken_off(self.tally[0, :-1].sum(1))
        self.tally.zero_()

    def began_at_reset(self, whole: bool) -> None:
        """Take no part of an episode for one; see ``Fixed``."""
        if not whole:
            self.played.fill_(self.cohorts.none)

    def adapt(self) -> Metrics:
        """Move the bounds whose cohorts have decided, on all ranks together."""
        least, most, over, told = self.cohorts.take(self.tally[:, :-1].sum(2))
        self.tally.zero_()
        out, back = least >= self.high, most <= self.low  # [2P]
        step = self.step * (out.float() - back.float()).view(2, -1)
        self.bounds[0].copy_(torch.minimum((self.bounds[0] - step[0]).clamp(min=0.0), self.start))
        self.bounds[1].copy_(torch.maximum((self.bounds[1] + step[1]).clamp(max=1.0), self.start))
        self.cohorts.renew(out | back | over)
        self.loaded()
        return {"randomize/success": told[1] / told[0]}  # 0 / 0 is no number

    def merged(self) -> list[Tensor]:
        """What is the same on all ranks."""
        return [self.bounds, self.cohorts.sums]

    def ends(self) -> Tensor:
        """Lower and upper ends of what is drawn, ``[2, P]``."""
        return self.bounds

    def ends_of(self, stage: list[list[float]]) -> Tensor:
        """``ends`` of what ``stage`` gave."""
        return torch.tensor(stage, device=self.device).t()

    def stage(self) -> list[list[float]]:
        """The distribution of each parameter in plain numbers."""
        return self.bounds.t().tolist()

    def load_stage(self, stage: list[list[float]]) -> None:
        """Draw from the distributions of ``stage`` from now on, with new cohorts."""
        self.bounds.copy_(torch.tensor(stage).t())
        self.cohorts.begin_anew()
        self.tally.zero_()
        self.loaded()

    def completed(self, kept: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """See ``Fixed``; where there were no cohorts, new ones begin."""
        if "bounds" not in kept or "lost" in kept:
            return kept
        new = self.cohorts.none_begun()
        new["played"] = new.pop("of")
        return {**kept, **new, "tally": torch.zeros_like(self.tally)}

    def loaded(self) -> None:
        """Work out what is drawn from by what is kept: a bound that is played is both ends of its parameter."""
        self._between.copy_(self.bounds[..., None].expand_as(self._between))
        count = len(self.rows)
        self._between[1].diagonal().copy_(self.bounds[0])
        self._between[0, :, count:].diagonal().copy_(self.bounds[1])


@accelerated("ranges:chosen")
def chosen(uniform: Tensor, limits: Tensor, between: Tensor, where: Tensor, played: Tensor) -> Tensor:
    """Positions ``[P, N]`` with one of B bounds played, or none, the last of them; ``played`` follows in place.

    Args:
        uniform: in 0..1, ``[P + 1, N]``; the last row chooses.
        limits: of the numbers that choose a bound each, ``[B - 1]``.
        between: between what a parameter is drawn by what is played, ``[2, P, B]``.
        where: in which envs an episode begins, ``[N]``.
        played: int64 ``[N]``.
    """
    bound = torch.bucketize(uniform[-1], limits, right=True)
    torch.where(where, bound, played, out=played)
    low, high = between.index_select(2, bound)  # [P, N]
    return torch.lerp(low, high, uniform[:-1])


@accelerated("ranges:add_ended")
def add_ended(tally: Tensor, played: Tensor, done: Tensor, success: Tensor, one: Tensor, last: Tensor) -> None:
    """Add 1 and the success ``[N]`` of episodes that are ``done`` to ``tally`` ``[2, B + 1, N]``, where they belong.

    The last row, of number ``last``, is of no use to anybody: what has not ended goes there. ``one`` is 1, ``[N]``.
    NaN is no success: it would stay in what decides.
    """
    place = torch.where(done, played, last)
    tally.scatter_add_(1, place.expand(2, 1, -1), torch.stack((one, success.nan_to_num(0.0)))[:, None])
