"""Parameters drawn from the widest distributions in which a policy succeeds often enough."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rlcore.capture import Captured
from rlcore.dispatch import accelerated
from rlcore.distributed import joined_rows, of_main, total, world
from rlcore.distributions import beta_entropy_and_kl, log_beta
from rlcore.envs.ranges import Row
from rlcore.types import Metrics

_CELLS = 1024
_LARGEST_WEIGHT = 20.0
_ADAM_STEPS = 50
_RATE = 0.03
_PRICE = 30.0  # of what a constraint is broken by, in nats
_FEWEST = 64  # episodes that say something
_CURSORS = 32  # see remember


class MaximumEntropy:
    """DORAEMON: the widest distribution in which a policy succeeds often enough; Tiboni et al., arXiv:2311.01885.

    Each parameter has a Beta distribution over its range. Every so often they are changed such that the sum of their
    entropies becomes as large as possible while the success that is expected, by importance weights of the episodes
    that have ended, stays at least ``success_rate``, and the KL divergence from the distributions of before at most
    ``max_kl``. Where nothing within that divergence succeeds often enough, they are changed to what succeeds most.

    Of the episodes that end after a reset the first are the short ones. So nothing changes before all that began at the
    reset have ended. Where those began in the middle, they do not count, nor does what ended beside them. From then on
    long episodes end as often as they begin; with starts in step that is so over any time as long as the longest.

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
        self._points = torch.tensor([row.point for row in rows], device=device)  # [P], with no range to grow
        self.shape[:, self._points] = 1.0  # no part of a density, nor of what one change may be
        size = max(-(-episodes // world().size), num_envs)
        self.seen = torch.full((size + 1, count + 2), 0.5, device=device)  # position, log density, success; last: waste
        self.seen[:, count] = torch.inf  # of a weight of 0
        self._cursors = torch.full((_CURSORS,), -1, device=device)
        self.cursor = self._cursors[0]  # number of the latest episode
        self.told = torch.tensor(-1, device=device)  # and of the one that was told last
        self.log_density = self.of_episodes = torch.zeros(num_envs, device=device)  # [N], of the position of each env
        # Log densities of the episodes in flight that began at a reset, [N]; minus infinity for the others.
        self.first = torch.full((num_envs,), -torch.inf, device=device)
        self.waits = torch.zeros((), device=device)  # how many those are, of all ranks
        self.calls = torch.zeros((), dtype=torch.int64)  # on the host
        self.kept = {
            "shape": self.shape, "seen": self.seen, "cursor": self.cursor, "log_density": self.log_density,
            "told": self.told, "calls": self.calls, "first": self.first,
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
        remember(self.seen, self._cursors, position, self.log_density, success, done, self._not_ended)

    def broken_off(self) -> None:
        """Leave out what has ended since ``adapt``, which may be another's use of the env; see ``ranges.Fixed``."""
        self.seen[:-1, -2].masked_fill_(self._recent()[0], torch.inf)

    def began_at_reset(self, whole: bool) -> None:
        """Wait for the episodes in flight; see ``ranges.Fixed``."""
        if not whole:
            self.log_density.fill_(torch.inf)
        self.first.copy_(self.log_density)

    def adapt(self) -> Metrics:
        """Change the distributions, every so often."""
        self.first.masked_fill_(self.first != self.log_density, -torch.inf)  # those have ended
        in_the_middle = self.first.isposinf().any()  # began one that goes on
        self.seen[:-1, -2].masked_fill_(self._recent()[0] & in_the_middle, torch.inf)
        self.waits.copy_(total((~self.first.isneginf()).sum().float()))
        self.calls += 1
        if int(self.calls) % self.interval == 0:
            self.shape.copy_(of_main(self._improve()))  # GPUs of other kinds might differ in the last bit
            self.loaded()
        entropy, _ = beta_entropy_and_kl(self.shape.double(), self.shape.double())
        return {"randomize/success": self._success(), "randomize/entropy": entropy.float()}

    def _recent(self) -> tuple[Tensor, Tensor]:
        """Which rows are of episodes since it was told last, ``[M]``, and how many those are."""
        size = len(self.seen) - 1
        number = (self.cursor - self.told).clamp(max=size)
        return (self.cursor - torch.arange(size, device=self.device)) % size < number, number

    def _success(self) -> Tensor:
        """Mean of the episodes since it was told last, as far as they are remembered; no number where none ended."""
        recent, number = self._recent()
        self.told.copy_(self.cursor)
        successes = self.seen[:-1, -1].where(recent, 0.0).sum()
        if world().several:
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
            slope = torch.autograd.grad(loss, free)[0].masked_fill(self._points, 0.0)
            allowed = torch.where(lacks > 0, expected.detach() - 1e6, entropy.detach())
            score = torch.where((distance <= self.max_kl) & allowed.isfinite(), allowed, -torch.inf)
            best = torch.where(score > best_score, free.detach().exp(), best)
            best_score = torch.maximum(score, best_score)
            mean.lerp_(slope, 0.1)
            square.lerp_(slope.square(), 0.01)
            move = mean / (1 - 0.9 ** (step + 1)) / ((square / (1 - 0.99 ** (step + 1))).sqrt() + 1e-9)
            free = (free.detach() - _RATE * move).clamp(0.0, 9.0).requires_grad_()  # a and b from 1: no poles
        enough = (log_density.isfinite().sum() >= _FEWEST) & (self.waits == 0)
        return torch.where(enough, best, before).float()

    def merged(self) -> list[Tensor]:
        """What is the same on all ranks."""
        return [self.shape]

    def ends(self) -> Tensor:
        """5 % and 95 % quantiles of what is drawn, ``[2, P]``."""
        return self._quantiles(self._cumulative)

    def ends_of(self, stage: list[list[float]]) -> Tensor:
        """``ends`` of what ``stage`` gave."""
        return self._quantiles(self._chances(torch.tensor(stage, device=self.device).t()).cumsum(1).float())

    def _quantiles(self, cumulative: Tensor) -> Tensor:
        return (torch.searchsorted(cumulative, self._levels).t() + 0.5) / _CELLS

    def stage(self) -> list[list[float]]:
        """The distribution of each parameter in plain numbers, a and b."""
        return self.shape.t().tolist()

    def load_stage(self, stage: list[list[float]]) -> None:
        """Draw from the distributions of ``stage`` from now on."""
        self.shape.copy_(torch.tensor(stage).t())
        self.loaded()

    def completed(self, kept: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """See ``ranges.Fixed``; where nothing was waited for, all has begun anew."""
        return {"first": torch.full_like(self.first, -torch.inf), **kept} if "seen" in kept else kept

    def loaded(self) -> None:
        """Work out the cells of the distributions that are kept, and be where they are in the episodes."""
        self._cursors.copy_(self.cursor.clone())
        chance = self._chances(self.shape)
        self._density.copy_((chance * _CELLS).log())
        self._cumulative.copy_(chance.cumsum(1))
        self._cumulative[:, -1] = torch.inf  # whatever is rounded

    def _chances(self, shape: Tensor) -> Tensor:
        """Probability of each cell, float64 ``[P, cells]``, of distributions ``[2, P]``."""
        a, b = shape.double()[..., None] - 1.0  # [P, 1] each
        chances: Tensor = (a * self._centers.log() + b * (-self._centers).log1p()).softmax(1)
        return chances


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
    seen: Tensor, cursors: Tensor, position: Tensor, density: Tensor, success: Tensor, done: Tensor, waste: Tensor
) -> None:
    """Write ``position`` ``[P, N]``, log density and success of episodes that are ``done`` over the oldest.

    ``seen`` has the latest M >= N in its rows, ``[M + 1, P + 2]``; what has not ended goes to the last row, of number
    ``waste``. ``cursors`` ``[C]`` are each the number of the latest episode, from -1, and follow in place: each
    program of the kernel has its own, so none changes what another has yet to read. NaN is no success.
    """
    number = torch.cumsum(done, 0).add_(cursors[0])  # [N], of the episodes that ended
    place = torch.where(done, number % (len(seen) - 1), waste)
    seen.index_copy_(0, place, torch.cat((position, density[None], success.nan_to_num(0.0)[None])).t())
    cursors.copy_(number[-1])
