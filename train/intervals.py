"""Confidence intervals of means, shares and proportions."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

T = TypeVar("T", float, NDArray[np.float64])


def t_interval(values: Tensor, confidence: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean; for fewer than two values it is everything."""
    n = len(values)
    if n < 2:
        return -math.inf, math.inf
    mean, std = float(values.mean()), float(values.std())
    half = half_width(std, n, confidence)
    return mean - half, mean + half


def half_width(std: T, n: int, confidence: float = 0.95) -> T:
    """Half of Student's t interval of the mean of ``n`` values, two or more, of a deviation, or of an array of such."""
    return t_quantile(0.5 + confidence / 2, n - 1) * std / math.sqrt(n)


def ratio_interval(numbers: Tensor, of: Tensor, confidence: float = 0.95) -> tuple[float, float, float]:
    """Share that ``numbers [E]`` are of ``of [E]``, and its interval within 0..1, by the ratio estimator.

    Cochran, Sampling Techniques (1977), chapter 6, with Student's t: episodes are independent, their steps are not.
    """
    total = of.double()
    share = float(numbers.sum() / total.sum())
    low, high = t_interval((numbers - share * total) / total.mean(), confidence)
    return share, max(0.0, share + low), min(1.0, share + high)


def t_quantile(p: float, dof: int) -> float:
    """Quantile of Student's t: exact for one and two degrees of freedom, else within 0.3 %.

    Cornish-Fisher expansion in 1/dof, Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    if dof == 1:
        return math.tan(math.pi * (p - 0.5))
    if dof == 2:
        return (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))
    z = NormalDist().inv_cdf(p)
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    g4 = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + g1 / dof + g2 / dof**2 + g3 / dof**3 + g4 / dof**4


def wilson_interval(fraction: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927), which stays inside 0..1 at both ends."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    center = (fraction + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(fraction * (1 - fraction) / n + z * z / (4 * n * n))
    # At none and at all an end is exact, which the difference of the two is not.
    return 0.0 if fraction == 0 else max(0.0, center - half), 1.0 if fraction == 1 else min(1.0, center + half)
