"""Losses as pure functions of tensors.

An equation stands here once; a kernel that computes it is tested against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlcore.capture import compiling
from rlcore.distributions import Distribution, Gaussian
from rlcore.launcher import available
from rlcore.returns import standardized
from rlcore.types import Metrics
from rlcore.update_kernels import METRICS, gaussian_ppo_loss


def ppo_loss(
    distribution: Distribution,
    old: Distribution,
    value: Tensor,
    sample: Mapping[str, Tensor],
    *,
    clip_range: float,
    value_coef: float,
    entropy_coef: float,
    clip_value_loss: bool,
    standardize_advantage: bool = False,
    bounds: tuple[float, float] = (0.0, 0.0),
) -> tuple[Tensor, Metrics]:
    """The clipped surrogate with value loss and entropy bonus, equations 7 and 9 of arXiv:1707.06347.

    Args:
        distribution: of actions, by the present policy, for samples ``[L, B]``.
        old: by the policy that chose them.
        value: V by the present critic, ``[L, B]``.
        sample: ``action`` and its ``log_prob`` under ``old``, ``advantage``, ``returns``, ``value`` (the critic's when
            the rollout was collected) and ``weight`` (0 for what is not to be learned from, with a mean of 1 over all),
            ``[L, B, ...]``.
        clip_range: how far the ratio of probabilities counts.
        value_coef: weight of the squared error of values.
        entropy_coef: weight of the entropy.
        clip_value_loss: count the larger error of the value and of one that moved by ``clip_range`` at most.
        standardize_advantage: bring the advantages of these samples to zero mean and unit deviation first.
        bounds: weight of the squared distance of means beyond +- a limit, and that limit, before actions are scaled.

    Returns:
        The loss, and what to log of it, scalars.
    """
    common = bounds[0] == 0 and not standardize_advantage and isinstance(distribution, Gaussian)
    if common and available(value.device) and not compiling():
        return _by_kernel(
            distribution,
            value,
            sample,
            clip_range=clip_range,
            value_coef=value_coef,
            entropy_coef=entropy_coef,
            clip_value_loss=clip_value_loss,
        )
    advantage, weight = sample["advantage"], sample["weight"]
    if standardize_advantage:
        advantage = standardized(advantage, weight > 0)
    ratio = (distribution.log_prob(sample["action"]) - sample["log_prob"]).exp()
    clipped = ratio.detach().clamp(1 - clip_range, 1 + clip_range)
    # The lower of the two, as min would have it, which adds up two halves of the gradient where they are the same, in
    # three times as many operators.
    gain, bounded = ratio * advantage, clipped * advantage
    policy_loss = -(weight * torch.where(gain > bounded, bounded, gain)).mean()  # eq. 7
    error = (value - sample["returns"]).square()
    if clip_value_loss:
        near = sample["value"] + (value - sample["value"]).clamp(-clip_range, clip_range)
        other = (near - sample["returns"]).square()
        error = torch.where(other > error, other, error)
    value_loss = (weight * error).mean()
    entropy = distribution.entropy()
    entropy = entropy if entropy_coef != 0 else entropy.detach()  # without a gradient that comes to nothing
    entropy = (weight * entropy).mean() if entropy.dim() > 0 else entropy  # the same for all
    loss = policy_loss + value_coef * value_loss - entropy_coef * entropy  # eq. 9
    metrics = {"loss/policy": policy_loss, "loss/value": value_loss, "policy/entropy": entropy}
    coef, limit = bounds
    if coef > 0 and "old_mean" in sample:
        beyond = (distribution.mode.abs() - limit).clamp(min=0)
        metrics["loss/bounds"] = (weight * beyond.square().sum(-1)).mean()
        loss = loss + coef * metrics["loss/bounds"]
    with torch.no_grad():
        metrics["policy/kl"] = (weight * old.kl(distribution)).mean()  # type: ignore[arg-type]
        metrics["policy/clip_fraction"] = (weight * ((ratio - 1).abs() > clip_range)).mean()
    if "old_std" in sample:
        metrics["policy/std"] = sample["old_std"].mean()
    return loss, metrics


def _by_kernel(
    distribution: Distribution, value: Tensor, sample: Mapping[str, Tensor], **settings: Any
) -> tuple[Tensor, Metrics]:
    """What ``ppo_loss`` computes from here on, for the common settings, in one kernel."""
    names = ("action", "log_prob", "old_mean", "old_std", "value", "advantage", "returns", "weight")
    loss, metrics = gaussian_ppo_loss(
        *(part.flatten(0, 1) if part.dim() > 1 else part for part in distribution),
        *(part.flatten(0, 1) for part in (value, *(sample[name] for name in names))),
        **settings,
    )
    return loss, dict(zip(METRICS, metrics.unbind(), strict=True))
