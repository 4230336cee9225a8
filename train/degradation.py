"""What a table of results under growing disturbances comes to: ratios, breakdown, area, recovery."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

RESAMPLES = 2000
"""Bootstrap samples of an interval."""

WORST = 0.1
"""Share of episodes that the conditional value at risk is the mean of."""

SETTLED = 5
"""Steps in a row that a reward has to be back within its band."""


def return_ratio(mean: Tensor, nominal: Tensor) -> Tensor:
    """Share of the nominal return that is left, elementwise; NaN where it has no meaning.

    Of a positive nominal return R₀ that is R / R₀. A negative one is a cost, and R₀ / R the share: half is left where
    the cost has doubled. Above R = 0 nothing of the cost is left, and the share is infinite; a nominal return of 0 has
    no share.
    """
    costs = torch.where(mean < 0, nominal / mean, math.inf)
    shares = torch.where(nominal > 0, mean / nominal, costs)
    return torch.where(nominal == 0, math.nan, shares)


def ratio_bootstrap(
    values: Tensor, nominal: Tensor, *, paired: bool, seed: int = 0, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the ratio of mean returns; Efron and Tibshirani, Introduction to the Bootstrap, ch. 13.

    Args:
        values: returns ``[E]``; NaN where an episode does not count.
        nominal: ``[E]`` or, where they are not paired, ``[K]``.
        paired: whether episode i of both had the same random numbers: both are drawn together then.
        seed: of the resampling.
        confidence: of the interval.
    """
    generator = torch.Generator().manual_seed(seed)
    if paired:
        both = values.isfinite() & nominal.isfinite()
        values, nominal = values[both], nominal[both]
    else:
        values, nominal = values[values.isfinite()], nominal[nominal.isfinite()]
    if len(values) < 2 or len(nominal) < 2:
        return -math.inf, math.inf
    chosen = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    others = chosen if paired else torch.randint(len(nominal), (RESAMPLES, len(nominal)), generator=generator)
    ratios = return_ratio(values[chosen].mean(1), nominal[others].mean(1))
    tail = (1 - confidence) / 2
    if not ratios.isfinite().all():  # the mean may be of either sign: quantiles of what is known, by order
        ratios = ratios[~ratios.isnan()]
        if not len(ratios):
            return -math.inf, math.inf
    ordered = ratios.sort().values
    last = len(ordered) - 1
    return float(ordered[math.floor(tail * last)]), float(ordered[math.ceil((1 - tail) * last)])


def falling_fit(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The sequence that never rises and is closest to ``values`` in weighted squares: pool adjacent violators.

    Barlow, Bartholomew, Bremner and Brunk, Statistical Inference under Order Restrictions (1972), section 1.2.
    """
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(values, weights, strict=True):
        mean, total, length = float(value), float(weight), 1
        while blocks and blocks[-1][0] <= mean:
            other, more, longer = blocks.pop()
            mean = (mean * total + other * more) / (total + more)
            total, length = total + more, length + longer
        blocks.append((mean, total, length))
    return [mean for mean, _, length in blocks for _ in range(length)]


def crossing(distances: Sequence[float], scores: Sequence[float], threshold: float) -> float | None:
    """The first distance at which scores, that never rise, are below a threshold, interpolated linearly.

    Args:
        distances: rising.
        scores: at each of them.
        threshold: of the score.

    Returns:
        None where they never are.
    """
    for i, score in enumerate(scores):
        if score < threshold:
            if i == 0:
                return distances[0]
            share = (scores[i - 1] - threshold) / (scores[i - 1] - score)
            return distances[i - 1] + share * (distances[i] - distances[i - 1])
    return None


def area(places: Sequence[float], scores: Sequence[float]) -> float:
    """Mean height of the curve through points, by the trapezoid rule; the only score where there is one place."""
    if len(places) < 2:
        return float(scores[0]) if scores else math.nan
    pieces = zip(places, places[1:], scores, scores[1:], strict=False)
    return sum((b - a) * (x + y) / 2 for a, b, x, y in pieces) / (places[-1] - places[0])


def value_at_risk(values: Tensor, worst: float = WORST) -> float:
    """Conditional value at risk: mean of the worst share of values ``[E]``, the last of them in part.

    Rockafellar and Uryasev, Conditional value-at-risk for general loss distributions (2002), proposition 8.
    """
    if not len(values):
        return math.nan
    number = worst * len(values)
    ordered = values.double().sort().values
    whole = min(math.floor(number + 1e-9), len(values))
    rest = number - whole if whole < len(values) else 0.0
    total = float(ordered[:whole].sum()) + (rest * float(ordered[whole]) if rest > 1e-9 else 0.0)
    return total / number


def nominal_band(rewards: Tensor, share: float = 0.05) -> tuple[Tensor, float]:
    """The lower edge of what is nominal at each step, ``[T]``, and how far below it a reward still counts as nominal.

    The edge is what all but ``share`` of the nominal episodes exceed at that step, NaN where no episode goes on. The
    distance is ``share`` of the spread of all nominal rewards, from their quantile ``share`` to that of ``1 - share``:
    where all episodes are alike, as upright pendulums are, a trace of a deviation is no disturbance.

    Args:
        rewards: of whole episodes, ``[T, E]``, NaN where an episode is over.
        share: below the band.
    """
    rewards = rewards.double()
    low, high = np.nanquantile(rewards.numpy(), (share, 1 - share))  # of more numbers than torch takes
    return rewards.nanquantile(share, dim=1), share * float(high - low)


def recovery_steps(rewards: Tensor, edge: Tensor, width: float, twins: Tensor | None = None) -> Tensor:
    """Steps from a push until what it did to the reward is over, ``[E]``: 0 where it did nothing, else infinite.

    A reward is out where it is below the edge of the nominal band by more than ``width``, and as far below that of its
    twin, the same episode without a push, where that is known. What a push did begins with the first step out, which
    may be long after it, as when a robot falls, and is over with the first of ``SETTLED`` steps in a row that are not.

    Args:
        rewards: from the step of the push on, ``[T, E]``, NaN where an episode is over.
        edge: of the nominal band, ``[T]``; NaN where it is not known.
        width: see above.
        twins: rewards ``[T, E]``, NaN where an episode is over.
    """
    lowest = edge[:, None].expand_as(rewards)  # [T, E]
    if twins is not None:
        lowest = torch.where(twins < lowest, twins, lowest)
    within = ~(rewards < lowest - width)  # where nothing is known nothing is out
    ended = rewards.isnan() & ~edge.isnan()[:, None]
    if twins is not None:
        ended &= ~twins.isnan()  # where the twin is over, too, it was not the push
    within &= ~ended
    out = ~within
    settled = torch.zeros_like(within)
    if len(within) >= SETTLED:
        settled[: len(within) - SETTLED + 1] = within.unfold(0, SETTLED, 1).all(2)
    back = settled & out.cumsum(0).bool()  # after the first step out
    steps = torch.where(back.any(0), back.double().argmax(0).double(), math.inf)
    return torch.where(out.any(0), steps, 0.0)
