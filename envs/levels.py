"""How curricula choose among levels, as functions of what came of them; ``[L]`` for L levels, the easiest first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rlcore.distributed import average, largest, total, world
from rlcore.env import Parameter
from rlcore.envs.parameters import unit_of
from rlcore.stage import Told

GOLDEN = 0.6180339887498949


def success_weights(rate: Tensor, kappa: float, target: float) -> Tensor:
    """Weights of levels by their success rates ρ, largest at τ: ``ρ^(κ τ) (1 - ρ)^(κ (1 - τ))``.

    The sampling by target rate of Isaac Lab 3.0's success monitor, without its softmax; with τ of 1/2 and κ of 2 the
    variance ``ρ (1 - ρ)`` of the outcome.

    Args:
        rate: ``[L]``, 0..1.
        kappa: κ, how much levels of other rates are left out.
        target: τ, the rate that is looked for.
    """
    return rate.pow(kappa * target) * (1 - rate).pow(kappa * (1 - target)) + 1e-8


def rank_weights(score: Tensor, temperature: float) -> Tensor:
    """Weights of levels by the rank of their scores, ``rank^(-1/β)``: equation 2 of arXiv:2010.03934.

    Args:
        score: ``[L]``, what is to be learned at each; infinite where that is not known, which ranks first.
        temperature: β.
    """
    order = score.argsort(descending=True, stable=True)  # of equals the easier first
    rank = torch.empty_like(score).scatter_(0, order, torch.arange(1, len(score) + 1, device=score.device).to(score))
    return rank.pow(-1 / temperature)


def replay_distribution(score: Tensor, age: Tensor, temperature: float, staleness: float) -> Tensor:
    """Probabilities of levels by score and staleness, equations 1 to 3 of arXiv:2010.03934.

    Args:
        score: as for ``rank_weights``, ``[L]``.
        age: updates since a level was played last, ``[L]``, 0 or more.
        temperature: β.
        staleness: ρ, the share of draws by age.
    """
    by_score, total = rank_weights(score, temperature), age.sum()
    by_score = by_score / by_score.sum()
    return torch.where(total > 0, (1 - staleness) * by_score + staleness * age / total.clamp(min=1.0), by_score)


def with_floor(weights: Tensor, uniform: float) -> Tensor:
    """Probabilities by weights ``[L]``, of which a share is the same for all levels, against forgetting."""
    return (1 - uniform) * weights / weights.sum() + uniform / len(weights)


def values_at(
    table: Tensor, level: Tensor, parameters: Mapping[str, Parameter], names: Sequence[str]
) -> dict[str, Told]:
    """What parameters of these names are at levels ``[N]``, by a ``table`` ``[P, L]``, as people are told."""
    rows = table[:, level.to(table.device)]  # [P, N]
    return {name: Told(row, unit_of(parameters[name])) for name, row in zip(names, rows, strict=True)}


def among(which: str, like: Tensor) -> Tensor:
    """Probabilities ``[L]`` of the hardest level alone (``end``), or the same for all (``all``)."""
    weights = torch.zeros_like(like)
    weights[-1 if which == "end" else slice(None)] = 1.0
    return weights / weights.sum()


def spread(probabilities: Tensor, num: int) -> Tensor:
    """Levels ``[num]`` int64 that stand for draws by probabilities ``[L]``: the same each time, in no order.

    Quantiles at multiples of the golden ratio, which any part of the envs has about evenly.
    """
    places = (torch.arange(num, device=probabilities.device, dtype=torch.float64) + 0.5) * GOLDEN % 1
    return drawn(summed(probabilities.double()), places)


def summed(probabilities: Tensor) -> Tensor:
    """Cumulative probabilities ``[L]`` for ``drawn``; whatever the rounding, the last level is the last."""
    return torch.cat((probabilities.cumsum(0)[:-1], torch.full_like(probabilities[:1], torch.inf)))


def drawn(cumulative: Tensor, places: Tensor) -> Tensor:
    """Levels ``[N]`` int64 at places ``[N]`` in 0..1 of ``summed`` probabilities ``[L]``."""
    return torch.searchsorted(cumulative, places, right=True)


def running_rate(rate: Tensor, known: Tensor, outcomes: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Success rates over about the latest ``window`` episodes of each level.

    Args:
        rate: so far, ``[L]``.
        known: of how many episodes that is, ``[L]``, at most ``window``.
        outcomes: episodes that ended since, and how many of them were a success, ``[2, L]``.
        window: episodes.

    Returns:
        ``rate`` and ``known``, anew.
    """
    episodes, successes = outcomes
    number = known + episodes
    mean = torch.where(number > 0, (known * rate + successes) / number.clamp(min=1.0), rate)
    return mean, number.clamp(max=float(window))


def one_apart(own: Tensor, level: Tensor, success: Tensor, counted: Tensor, highest: int) -> Tensor:
    """Each env's own level ``[N]`` after episodes at ``level`` ``[N]``.

    One up where an episode at a level at least as hard as its own was a success, one down where one at most as hard was
    none; what an easier level's success or a harder one's failure says was known.

    Args:
        own: so far, int64 ``[N]``.
        level: of the episodes, which may be another, drawn against forgetting.
        success: bool ``[N]``.
        counted: bool ``[N]``, where an episode ended that counts.
        highest: level.
    """
    up = counted & success & (level >= own)
    down = counted & ~success & (level <= own)
    return (own + up.long() - down.long()).clamp(0, highest)


def mean_magnitudes(level: Tensor, advantages: Tensor, weight: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Mean magnitude of the advantages at each level, on all ranks together, and how many those are, ``[L]``.

    Args:
        level: that steps were played at, int64 ``[T, N]``.
        advantages: ``[T, N]``.
        weight: 0 where a step is not learned from, ``[T, N]``.
        number: of levels, L.
    """
    known = weight.flatten() > 0
    magnitude = advantages.flatten().double().abs().where(known, 0.0)
    sums = torch.zeros(2, number, dtype=torch.float64, device=level.device)
    sums.index_add_(1, level.flatten(), torch.stack((magnitude, known.double())))
    whole, steps = total(sums)
    return whole / steps, steps


def level_figures(level: Tensor, number: int) -> dict[str, Tensor]:
    """What there is to tell of levels, on all ranks together.

    Args:
        level: of the episodes in flight, int64 ``[N]``.
        number: of levels, L.

    Returns:
        ``level_mean``, ``level_min``, ``level_max``; ``level_top``, the share of envs at the hardest; and
        ``level_entropy``, 0 where all are at one and 1 where they are evenly over all.
    """
    share = (level == torch.arange(number, device=level.device).unsqueeze(1)).float().mean(1)  # [L]
    level = level.float()
    least, most = level.min(), level.max()
    if world().several:
        share, (least, most) = average(share), largest(torch.stack((-least, most))).unbind()
        least = -least
    entropy = -torch.xlogy(share, share).sum() / math.log(number)
    figures = {"level_mean": level.mean(), "level_min": least, "level_max": most, "level_top": share[-1]}
    return figures | {"level_entropy": entropy}
