"""How parameters are drawn: from fixed ranges, or from ranges that grow as far as what is learned in them succeeds.

Positions ``[P, N]`` are from 0, the lower limit of a parameter, to 1, the upper one; each parameter has its own row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlcore.capture import Captured
from rlcore.dispatch import accelerated
from rlcore.distributed import joined_rows, of_main, total, world
from rlcore.distributions import beta_entropy_and_kl, log_beta
from rlcore.types import Metrics


@dataclass(frozen=True)
class Row:
    """A parameter as drawing knows it."""

    name: str
    start: float
    """Position of its nominal value, in 0..1."""


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
    that are changed in place.
    """

    def __init__(self, rows: list[Row], num_envs: int, device: torch.device) -> None:
        self.shape, self.device = (len(rows), num_envs), device
        self.kept: dict[str, Tensor] = {}

    def draw(self, generator: torch.Generator, where: Tensor) -> Tensor:
        """Positions ``[P, N]`` for all envs; episodes begin with them in the envs ``where`` ``[N]``."""
        return torch.rand(self.shape, generator=generator, device=self.device)

    def record(self, position: Tensor, done: Tensor, success: Tensor) -> None:
        """Take in episodes that ended ``[N]`` at ``[P, N]``, before the next are drawn; nothing to be done here."""


class AutomaticRanges:
    """Automatic domain randomization: Akkaya et al. 2019, arXiv:1910.07113, algorithm 1.

    Each parameter is uniform between two bounds, which begin at its nominal value. Half of the episodes are played with
    one parameter at one of its bounds. When so many of those of a bound have ended, it moves out by a step if their
    mean success is at least ``high``, and back by one if it is at most ``low``; never past the nominal value, nor past
    the limits. Episodes that were begun with a bound that has moved meanwhile do not count.

    Args:
        rows: the parameters.
        num_envs: N.
        device: where everything lives.
        step: in parts of the range.
        low: success below which a bound comes back.
        high: success above which it goes on.
        episodes: that are needed to decide.
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
        self.step, self.low, self.high, self.episodes = step, low, high, episodes
        self.start = torch.tensor([row.start for row in rows], device=device)  # [P]
        self.bounds = self.start.repeat(2, 1)  # [2, P]
        count = len(rows)
        self.played = torch.full((num_envs,), 2 * count, device=device)  # [N], bound of the episode; 2P: none
        self.sums = torch.zeros(2, 2 * count, device=device)  # episodes and successes of each bound
        # Those of each env that are in no sum yet, by bound; the last is of what has not ended.
        self.tally = torch.zeros(2, 2 * count + 2, num_envs, device=device)
        self.kept = {"bounds": self.bounds, "played": self.played, "sums": self.sums, "tally": self.tally}
        self._one = torch.ones(num_envs, device=device)
        self._last = torch.tensor(2 * count + 1, device=device)
        self._limits = torch.arange(1, 2 * count + 1, device=device) / (4 * count)  # [2P], of numbers that choose
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

    def adapt(self) -> Metrics:
        """Move the bounds of which enough is known, on all ranks together."""
        told = total(self.tally[:, :-1].sum(2))  # [2, 2P + 1]
        self.tally.zero_()
        self.sums.add_(told[:, :-1])
        number, successes = self.sums.view(2, 2, -1)  # [2, P] each
        known = number >= self.episodes
        mean = successes / number.clamp(min=1.0)
        out = ((mean >= self.high).float() - (mean <= self.low).float()).where(known, 0.0)
        lower = torch.minimum((self.bounds[0] - self.step * out[0]).clamp(min=0.0), self.start)
        upper = torch.maximum((self.bounds[1] + self.step * out[1]).clamp(max=1.0), self.start)
        moved = torch.stack((lower, upper)) != self.bounds
        self.bounds.copy_(torch.stack((lower, upper)))
        self.sums.masked_fill_(known.view(1, -1), 0.0)
        none = torch.cat((moved.flatten(), moved.new_zeros(1)))  # [2P + 1]
        self.played.masked_fill_(none[self.played], 2 * len(self.rows))
        self.loaded()
        ended, succeeded = told.sum(1)
        return {"randomize/success": succeeded / ended}  # 0 / 0 is no number

    def merged(self) -> list[Tensor]:
        """What is the same on all ranks."""
        return [self.bounds, self.sums]

    def ends(self) -> Tensor:
        """Lower and upper ends of what is drawn, ``[2, P]``."""
        return self.bounds

    def stage(self) -> list[list[float]]:
        """The distribution of each parameter in plain numbers."""
        return self.bounds.t().tolist()

    def load_stage(self, stage: list[list[float]]) -> None:
        """Draw from the distributions of ``stage`` from now on."""
        self.bounds.copy_(torch.tensor(stage).t())
        self.loaded()

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
    """
    place = torch.where(done, played, last)
    tally.scatter_add_(1, place.expand(2, 1, -1), torch.stack((one, success))[:, None])


_CELLS = 1024
_LARGEST_WEIGHT = 20.0
_ADAM_STEPS = 50
_RATE = 0.03
_PRICE = 30.0  # of what a constraint is broken by, in nats
_FEWEST = 64  # episodes that say something


class MaximumEntropy:
    """DORAEMON: the widest distribution in which a policy succeeds often enough; Tiboni et al., arXiv:2311.01885.

    Each parameter has a Beta distribution over its range. Every so often they are changed such that the sum of their
    entropies becomes as large as possible while the success that is expected, by importance weights of the episodes
    that have ended, stays at least ``success_rate``, and the KL divergence from the distributions of before at most
    ``max_kl``. Where nothing within that divergence succeeds often enough, they are changed to what succeeds most.

    This is done by Adam on a penalty, and the best of the points that it passes is taken; the distributions stay if
    none is allowed and better. Densities are those of 1024 cells of the range, within which positions are uniform.

    Args:
        rows: the parameters.
        num_envs: N.
        device: where everything lives.
        success_rate: what is to be expected at least.
        max_kl: of one change, in nats.
        episodes: the latest so many are remembered, at least N; by several ranks together.
        interval: calls of ``adapt`` from one change to the next.
    """

    def __init__(
        self,
        rows: list[Row],
        num_envs: int,
        device: torch.device,
        *,
        success_rate: float,
        max_kl: float,
        episodes: int,
        interval: int,
    ) -> None:
        self.rows, self.device = rows, device
        self.success_rate, self.max_kl, self.interval = success_rate, max_kl, interval
        count = len(rows)
        mean = torch.tensor([min(max(row.start, 0.05), 0.95) for row in rows], device=device)
        self.shape = 200.0 * torch.stack((mean, 1.0 - mean))  # [2, P], a and b
        size = max(-(-episodes // world().size), num_envs)
        self.seen = torch.full((size + 1, count + 2), 0.5, device=device)  # position, log density, success; last: waste
        self.seen[:, count] = torch.inf  # of a weight of 0
        self.cursor = torch.tensor(-1, device=device)  # number of the latest episode
        self.told = torch.tensor(-1, device=device)  # and of the one that was told last
        self.log_density = torch.zeros(num_envs, device=device)  # [N], of the position of each env
        self.calls = torch.zeros((), dtype=torch.int64)  # on the host
        self.kept = {
            "shape": self.shape, "seen": self.seen, "cursor": self.cursor, "log_density": self.log_density,
            "told": self.told, "calls": self.calls,
        }  # fmt: skip
        centers = (torch.arange(_CELLS, device=device, dtype=torch.float64) + 0.5) / _CELLS
        self._centers = centers
        self._levels = torch.tensor([0.05, 0.95], device=device).repeat(count, 1)  # [P, 2]
        self._density = torch.zeros(count, _CELLS, device=device)  # logarithms
        self._cumulative = torch.zeros(count, _CELLS, device=device)
        self._not_ended = torch.tensor(size, device=device)
        self._improve = Captured(self._improved, "graph", device)
        self.loaded()

    def draw(self, generator: torch.Generator, where: Tensor) -> Tensor:
        """See ``Fixed``."""
        size = (2, len(self.rows), len(self.log_density))
        uniform = torch.rand(size, generator=generator, device=self.device)
        return inverted(uniform, self._cumulative, self._density, where, self.log_density)

    def record(self, position: Tensor, done: Tensor, success: Tensor) -> None:
        """See ``Fixed``."""
        remember(self.seen, self.cursor, position, self.log_density, success, done, self._not_ended)

    def adapt(self) -> Metrics:
        """Change the distributions, every so often."""
        self.calls += 1
        if int(self.calls) % self.interval == 0:
            self.shape.copy_(of_main(self._improve()))  # GPUs of other kinds might differ in the last bit
            self.loaded()
        entropy, _ = beta_entropy_and_kl(self.shape.double(), self.shape.double())
        return {"randomize/success": self._success(), "randomize/entropy": entropy.float()}

    def _success(self) -> Tensor:
        """Mean of the episodes since it was told last, as far as they are remembered; no number where none ended."""
        size = len(self.seen) - 1
        number = (self.cursor - self.told).clamp(max=size)
        recent = (self.cursor - torch.arange(size, device=self.device)) % size < number
        self.told.copy_(self.cursor)
        successes = self.seen[:-1, -1].where(recent, 0.0).sum()
        if world().joined:
            successes, number = total(torch.stack([successes, number.to(successes)])).unbind()
        return successes / number  # 0 / 0 is no number

    def _improved(self) -> Tensor:
        """Shapes ``[2, P]`` of the next distributions."""
        seen = joined_rows(self.seen[:-1]).double()
        log_density, success = seen[:, -2], seen[:, -1]
        position = seen[:, :-2].clamp(1e-7, 1.0 - 1e-7)
        logs = torch.cat((position.log(), (-position).log1p()), 1)  # [M, 2P]
        before = self.shape.double()
        best, best_score = before, torch.full_like(success[0], -torch.inf)
        free = before.log().requires_grad_()  # [2, P]
        mean, square = torch.zeros_like(before), torch.zeros_like(before)
        for step in range(_ADAM_STEPS + 1):
            with torch.enable_grad():
                shape = free.exp()
                ratio = logs @ (shape - 1.0).flatten() - log_beta(shape).sum() - log_density  # of densities, logarithm
                weight = ratio.exp().clamp(max=_LARGEST_WEIGHT)
                expected = (weight * success).sum() / weight.sum().clamp(min=1e-9)
                entropy, distance = beta_entropy_and_kl(shape, before)
                lacks, over = (self.success_rate - expected).clamp(min=0.0), (distance - self.max_kl).clamp(min=0.0)
                loss = _PRICE * (lacks + over) - entropy * (lacks == 0)
            (slope,) = torch.autograd.grad(loss, free)
            allowed = torch.where(lacks > 0, expected.detach() - 1e6, entropy.detach())
            score = torch.where((distance <= self.max_kl) & allowed.isfinite(), allowed, -torch.inf)
            best = torch.where(score > best_score, free.detach().exp(), best)
            best_score = torch.maximum(score, best_score)
            mean.lerp_(slope, 0.1)
            square.lerp_(slope.square(), 0.01)
            move = mean / (1 - 0.9 ** (step + 1)) / ((square / (1 - 0.99 ** (step + 1))).sqrt() + 1e-9)
            free = (free.detach() - _RATE * move).clamp(0.0, 9.0).requires_grad_()  # a and b from 1: no poles
        enough = log_density.isfinite().sum() >= _FEWEST
        return torch.where(enough, best, before).float()

    def merged(self) -> list[Tensor]:
        """What is the same on all ranks."""
        return [self.shape]

    def ends(self) -> Tensor:
        """5 % and 95 % quantiles of what is drawn, ``[2, P]``."""
        return (torch.searchsorted(self._cumulative, self._levels).t() + 0.5) / _CELLS

    def stage(self) -> list[list[float]]:
        """The distribution of each parameter in plain numbers, a and b."""
        return self.shape.t().tolist()

    def load_stage(self, stage: list[list[float]]) -> None:
        """Draw from the distributions of ``stage`` from now on."""
        self.shape.copy_(torch.tensor(stage).t())
        self.loaded()

    def loaded(self) -> None:
        """Work out the cells of the distributions that are kept."""
        a, b = self.shape.double()[..., None] - 1.0  # [P, 1] each
        chance = (a * self._centers.log() + b * (-self._centers).log1p()).softmax(1)  # [P, cells]
        self._density.copy_((chance * _CELLS).log())
        self._cumulative.copy_(chance.cumsum(1))
        self._cumulative[:, -1] = torch.inf  # whatever is rounded


@accelerated("ranges:inverted")
def inverted(uniform: Tensor, cumulative: Tensor, density: Tensor, where: Tensor, kept: Tensor) -> Tensor:
    """Positions ``[P, N]`` from distributions over cells, by inversion; ``kept`` ``[N]`` is their log density in place.

    Args:
        uniform: in 0..1, ``[2, P, N]``: which cell, and where in it.
        cumulative: probability up to the end of each cell, ``[P, cells]``; the last is above any uniform number.
        density: its logarithm in each cell, ``[P, cells]``.
        where: in which envs an episode begins, ``[N]``.
        kept: of the episodes in flight.
    """
    cell = torch.searchsorted(cumulative, uniform[0])  # [P, N]
    torch.where(where, density.gather(1, cell).sum(0), kept, out=kept)
    return (cell + uniform[1]) / density.shape[1]


@accelerated("ranges:remember")
def remember(
    seen: Tensor, cursor: Tensor, position: Tensor, density: Tensor, success: Tensor, done: Tensor, waste: Tensor
) -> None:
    """Write ``position`` ``[P, N]``, log density and success of episodes that are ``done`` over the oldest.

    ``seen`` has the latest M >= N in its rows, ``[M + 1, P + 2]``; what has not ended goes to the last row, of number
    ``waste``. ``cursor`` is the number of the latest episode, from -1, and follows in place.
    """
    number = torch.cumsum(done, 0).add_(cursor)  # [N], of the episodes that ended
    place = torch.where(done, number % (len(seen) - 1), waste)
    seen.index_copy_(0, place, torch.cat((position, density[None], success[None])).t())
    cursor.copy_(number[-1])


def stage_of_rows(ranges: AutomaticRanges | MaximumEntropy) -> dict[str, Any]:
    """The distribution of each parameter by its name."""
    return {row.name: values for row, values in zip(ranges.rows, ranges.stage(), strict=True)}
