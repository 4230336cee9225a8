"""Cohorts, against a list of all episodes that is gone through by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from rlcore.envs.cohorts import Cohorts

CPU = torch.device("cpu")


@dataclass
class Episode:
    """One that has begun, as a list of them knows it."""

    kind: int
    counts: bool = True
    success: float | None = None  # once it has ended


class ByHand:
    """The same as ``Cohorts``: each kind's cohort is a list of episodes."""

    def __init__(self, kinds: int, episodes: int) -> None:
        self.episodes = episodes
        self.members: list[list[Episode]] = [[] for _ in range(kinds)]
        self.closed = [False] * kinds
        self.lost = [False] * kinds

    def begin(self, kind: int) -> Episode:
        episode = Episode(kind, counts=kind < len(self.members) and not self.closed[kind])
        if episode.counts:
            self.members[kind].append(episode)
        return episode

    def break_off(self, episode: Episode) -> None:
        if any(episode is member for member in self.members[episode.kind] if episode.counts):
            self.lost[episode.kind] = True

    def take(self) -> list[tuple[float, float, bool]]:
        found = []
        for kind, members in enumerate(self.members):
            self.closed[kind] = self.closed[kind] or len(members) >= self.episodes
            if self.lost[kind] or not self.closed[kind]:
                found.append((-math.inf, math.inf, self.lost[kind]))
                continue
            good, left = sum(e.success or 0.0 for e in members), sum(e.success is None for e in members)
            found.append((good / len(members), (good + left) / len(members), left == 0))
        return found

    def renew(self, kind: int) -> None:
        self.members[kind], self.closed[kind], self.lost[kind] = [], False, False


@pytest.mark.parametrize("num_envs", [1, 5, 64])
@pytest.mark.parametrize("resets", [False, True])
def test_they_are_who_began_after_the_last_decision(num_envs: int, resets: bool) -> None:
    kinds, draw = 3, torch.Generator().manual_seed(num_envs)
    cohorts, by_hand = Cohorts(kinds, num_envs, 6, CPU), ByHand(kinds, 6)
    flight: list[Episode] = []
    decided = torch.zeros(kinds)

    def begin(env: int) -> None:
        kind = int(torch.randint(kinds + 1, (1,), generator=draw))  # the last is none
        cohorts.of[env] = kind
        flight[env:] = [by_hand.begin(kind), *flight[env + 1 :]]

    for env in range(num_envs):
        begin(env)
    for iteration in range(400):
        ended = torch.zeros(2, cohorts.rows)
        for _ in range(4):
            for env in range(num_envs):
                chance = (0.5, 0.05)[env % 2]  # of its end in this step; odd envs succeed, and take longer
                if float(torch.rand(1, generator=draw)) < chance:
                    success = float(env % 2 if iteration % 3 else 1 - env % 2)
                    flight[env].success = success
                    ended[:, cohorts.of[env]] += torch.tensor([1.0, success])
                    begin(env)
        if resets and iteration % 29 == 28:
            for episode in flight:
                if episode.kind < kinds:
                    by_hand.break_off(episode)
            for kind, members in enumerate(by_hand.members):  # what has ended since the last look goes with them
                known = float(cohorts.sums[0, kind])
                by_hand.lost[kind] |= sum(e.success is not None for e in members) > known
            cohorts.broken_off(ended[0])
            ended.zero_()
            for env in range(num_envs):
                begin(env)
        least, most, over, told = cohorts.take(ended)
        assert told.tolist() == ended.sum(1).tolist()
        wanted = by_hand.take()
        for kind in range(kinds):
            assert float(least[kind]) == pytest.approx(wanted[kind][0]), (iteration, kind)
            assert float(most[kind]) == pytest.approx(wanted[kind][1]) and bool(over[kind]) == wanted[kind][2]
        out, back = least >= 0.8, most <= 0.3
        decided += (out | back | over).float()
        cohorts.renew(out | back | over)
        for kind in (out | back | over).nonzero().flatten().tolist():
            by_hand.renew(kind)
    assert (decided > 10).all()


@pytest.mark.parametrize(
    ("ended", "successes", "mean", "over"), [(99, 99, None, False), (100, 80, 0.8, True), (250, 199, 0.796, True)]
)
def test_fewer_than_wanted_say_nothing(ended: int, successes: int, mean: float | None, over: bool) -> None:
    cohorts = Cohorts(1, 4, 100, CPU)
    verdict = cohorts.take(torch.tensor([[ended, 0, 0], [successes, 0, 0]], dtype=torch.float32))
    assert bool(verdict.over) == over
    expected = (-math.inf, math.inf) if mean is None else (pytest.approx(mean), pytest.approx(mean))
    assert (float(verdict.least), float(verdict.most)) == expected
    cohorts.renew(verdict.over)
    assert float(cohorts.sums[0]) == (0 if over else ended)


def test_what_is_in_flight_counts_as_either() -> None:
    cohorts = Cohorts(2, 6, 4, CPU)
    cohorts.of.copy_(torch.tensor([0, 0, 0, 1, 2, 2]))
    least, most, over, _ = cohorts.take(torch.tensor([[3.0, 1.0, 9.0, 0.0, 0.0], [3.0, 0.0, 9.0, 0.0, 0.0]]))
    assert least.tolist() == [0.5, -math.inf] and most.tolist() == [1.0, math.inf] and not over.any()
    assert cohorts.of.tolist() == [3, 3, 3, 1, 2, 2]  # the first takes no more
    cohorts.of[5] = 0  # so this one is of none
    least, most, over, _ = cohorts.take(torch.tensor([[5.0, 0.0, 0.0, 0.0, 0.0], [5.0, 0.0, 0.0, 0.0, 0.0]]))
    assert least[0] == 0.5 and most[0] == 1.0
    cohorts.of[:3] = 0
    least, most, over, _ = cohorts.take(torch.tensor([[5.0, 0.0, 0.0, 3.0, 0.0], [5.0, 0.0, 0.0, 1.0, 0.0]]))
    assert least[0] == most[0] == pytest.approx(4 / 6) and over.tolist() == [True, False]
    cohorts.renew(over)
    assert cohorts.of.tolist() == [2, 2, 2, 1, 2, 2]
