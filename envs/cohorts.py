"""Which episodes decide: all of those that began in turn, whichever of them end first."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlcore.distributed import total


class Verdict(NamedTuple):
    """What cohorts say, ``[K]`` each."""

    least: Tensor
    """Mean success if all that is in flight fails; minus infinity where a cohort says nothing yet."""
    most: Tensor
    """Mean success if all of that succeeds; infinity where a cohort says nothing yet."""
    over: Tensor
    """Whether there is nothing to wait for: all has ended, or some of it was broken off."""
    told: Tensor
    """Episodes that have ended and their success, whatever they are of, ``[2]``."""


class Cohorts:
    """Groups of episodes of K kinds, by whose mean success something is decided again and again, such as a level.

    The first episodes to end are not those that began first but the short ones: failures where a robot falls, successes
    where it arrives. So a cohort is all episodes of its kind that begin after the last decision, until ``take`` finds
    them to be enough; none that begins later is of it, and all of it is waited for, as far as it can change what is
    decided. Episodes that are broken off have no outcome, and the cohorts that they were of begin anew.

    A step has nothing to do but to say which kind begins, in ``of``, and to sum up by ``of`` what has ended.

    Args:
        kinds: K.
        num_envs: N.
        episodes: of a cohort at least, by several ranks together.
        device: where everything lives.
    """

    def __init__(self, kinds: int, num_envs: int, episodes: int, device: torch.device) -> None:
        self.none, self.rows, self.episodes = kinds, 2 * kinds + 1, episodes
        self.of = torch.full((num_envs,), kinds, device=device)
        """Of the episode in flight, int64 ``[N]``: its kind, K for none, K + 1 + kind if its cohort takes no more."""
        self.sums = torch.zeros(2, kinds, device=device)
        """Episodes of each cohort that have ended, and their success, ``[2, K]``; the same on all ranks."""
        self.lost = torch.zeros(self.rows, device=device)
        """Episodes that were broken off since ``take``, by what they were of, ``[2 K + 1]``."""
        self.kept = {"of": self.of, "sums": self.sums, "lost": self.lost}
        self._one = torch.ones(num_envs, device=device)
        self._marks = torch.arange(self.rows, device=device)

    def none_begun(self) -> dict[str, Tensor]:
        """What is kept where there is no episode in any cohort."""
        nothing = {name: torch.zeros_like(value) for name, value in self.kept.items()}
        return nothing | {"of": torch.full_like(self.of, self.none)}

    def begin_anew(self) -> None:
        """Have no episodes in any cohort."""
        for name, value in self.none_begun().items():
            self.kept[name].copy_(value)

    def broken_off(self, ended: Tensor) -> None:
        """Know that no episode in flight will end; how many have ended since ``take``, ``[2 K + 1]``, is lost too."""
        self.lost.add_(self._in_flight()).add_(ended)

    def take(self, ended: Tensor) -> Verdict:
        """Take in what has ended since the last call, on all ranks together; ``renew`` follows.

        Args:
            ended: episodes and their success by what they were of, ``[2, 2 K + 1]``.
        """
        told = total(torch.cat((ended, self._in_flight()[None], self.lost[None])))  # [4, 2 K + 1]
        self.lost.zero_()
        free, waiting = told[:, : self.none], told[:, self.none + 1 :]  # [4, K], of cohorts that take more or wait
        waits = waiting[0] + waiting[2] > 0
        number, successes, left, _ = torch.where(waits, waiting, free)
        number, successes = self.sums.add_(torch.stack((number, successes))).clone()
        begun = number + left
        enough, lost = waits | (begun >= self.episodes), free[3] + waiting[3] > 0
        closed = torch.where(enough & ~waits, self._marks[self.none + 1 :], self._marks[: self.none])
        self.of.copy_(torch.cat((closed, self._marks[self.none :]))[self.of])
        silent = ~enough | lost | (begun == 0)
        least = (successes / begun).masked_fill(silent, -torch.inf)
        most = ((successes + left) / begun).masked_fill(silent, torch.inf)
        return Verdict(least, most, lost | (enough & (left == 0)), told[:2].sum(1))

    def renew(self, over: Tensor) -> None:
        """Begin new cohorts where ``over`` ``[K]``, of episodes that begin from here on."""
        self.sums.masked_fill_(over, 0.0)
        marks = self._marks.masked_fill(torch.cat((over, over.new_zeros(1), over)), self.none)
        self.of.copy_(marks[self.of])

    def _in_flight(self) -> Tensor:
        """Episodes by what they are of, ``[2 K + 1]``."""
        return torch.zeros_like(self.lost).index_add_(0, self.of, self._one)
