"""Risk of a violation: what a critic of it is to predict, how far it is from that, and what came of steps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def risk_target(violation: Tensor, terminated: Tensor, next_risk: Tensor, gamma: float) -> Tensor:
    """Discounted probability of a violation: ``y = v + (1 - v) (1 - done) gamma Q(s', a')``.

    Equation 2 of arXiv:2010.15920, with the first violation as the end of what counts.

    Args:
        violation: v, 0 or 1, ``[B]``.
        terminated: bool ``[B]``: nothing follows.
        next_risk: Q of a target critic for what is done next, ``[B]``, or of each, ``[2, B]``.
        gamma: discount per step.
    """
    return violation + (1 - violation) * torch.where(terminated, 0.0, gamma * next_risk)


def risk_loss(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Binary cross entropy of critics ``[2, B]`` (log-odds) against probabilities ``[2, B]``, the sum over critics.

    Samples count by weight ``[B]``, in the mean over those that do.
    """
    error = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (weight * error).sum() / weight.sum().clamp(min=1.0)


def outcomes(violation: Tensor, terminated: Tensor, cut: Tensor, gamma: float, horizon: int) -> tuple[Tensor, Tensor]:
    """What ``risk_target`` estimates, as it came: ``gamma^k`` with k steps to the first violation, else 0.

    Args:
        violation: 0 or 1, ``[T, N]``.
        terminated: bool ``[T, N]``.
        cut: bool ``[T, N]``, where what came next is not known.
        gamma: discount per step.
        horizon: steps that have to be known after one, unless its episode ends.

    Returns:
        ``[T, N]``, and bool ``[T, N]`` where it is known.
    """
    future = torch.zeros_like(violation[0])  # [N]
    known = torch.zeros_like(future)  # steps
    rows: list[Tensor] = []
    lengths: list[Tensor] = []
    columns = (reversed(column.unbind()) for column in (violation, terminated, cut))
    for v, over, lost in zip(*columns, strict=True):
        future = risk_target(v, over | lost, future, gamma)
        known = torch.where(over, float(horizon), torch.where(lost, 0.0, known + 1))
        rows.append(future)
        lengths.append(known)
    return torch.stack(rows[::-1]), torch.stack(lengths[::-1]) >= horizon
