"""Losses as pure functions of tensors: each equation stands here once.

Those with a kernel are its reference and what runs without it, see ``rlcore.dispatch``.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor

from rlcore.dispatch import accelerated, plain
from rlcore.distributions import Distribution, Gaussian
from rlcore.returns import standardized
from rlcore.rollout import Samples
from rlcore.types import Metrics

Reduce = Literal["min", "mean", "own"]
"""How target critics become one target: their minimum (clipped double Q-learning, Fujimoto et al. 2018,
arXiv:1802.09477), their mean, or each its own target critic."""

METRICS = ("loss/policy", "loss/value", "policy/entropy", "policy/kl", "policy/clip_fraction", "policy/std")
"""What ``ppo_loss`` reports with Gaussian actions, in the order in which its kernel stores them. One more is a name
here, its value in ``ppo_loss``, one line in the kernel, which stores its sum, and one in ``ppo_gradient``."""

# --- PPO -------------------------------------------------------------------------------------------------------------


def _common(distribution: Distribution, *_: Any, **settings: Any) -> bool:
    common = settings.get("bounds", (0.0, 0.0))[0] == 0 and not settings.get("standardize_advantage", False)
    return common and isinstance(distribution, Gaussian)


@accelerated("ppo_loss:ppo_loss", of=1, when=_common)
def ppo_loss(
    distribution: Distribution,
    value: Tensor,
    samples: Samples,
    *,
    clip_range: float | Tensor,
    value_coef: float,
    entropy_coef: float | Tensor,
    clip_value_loss: bool,
    standardize_advantage: bool = False,
    bounds: tuple[float, float] = (0.0, 0.0),
) -> tuple[Tensor, Metrics]:
    """The clipped surrogate with value loss and entropy bonus: Schulman et al. 2017 (arXiv:1707.06347), eq. 7 and 9.

    Args:
        distribution: of actions, by the present policy, for samples ``[L, B]``.
        value: V by the present critic, ``[L, B]``.
        samples: actions, old distributions, advantages, returns; see ``Samples``. Observations and states are not read.
        clip_range: epsilon; the ratio of probabilities is clipped to 1 +- this. A scalar tensor where it is scheduled.
        value_coef: weight of the squared error of values.
        entropy_coef: weight of the entropy; likewise.
        clip_value_loss: take the larger error of the value and of one clipped to the old value +- ``clip_range``.
        standardize_advantage: bring the advantages of these samples to zero mean and unit variance first.
        bounds: weight of the squared distance of means beyond +- a limit, and that limit, before actions are scaled.

    Returns:
        The loss, and what to log of it, scalars: ``METRICS`` and, with bounds, ``loss/bounds``.
    """
    advantage, weight, old = samples.advantage, samples.weight, samples.old
    epsilon: Any = clip_range  # of either type: PyTorch declares them apart
    if standardize_advantage:
        advantage = standardized(advantage, weight > 0)
    ratio = (distribution.log_prob(samples.action) - samples.log_prob).exp()
    clipped = ratio.detach().clamp(1 - epsilon, 1 + epsilon)
    # The lower of the two, as min would have it, which adds up two halves of the gradient where they are the same, in
    # three times as many operators.
    gain, bounded = ratio * advantage, clipped * advantage
    policy_loss = -(weight * torch.where(gain > bounded, bounded, gain)).mean()  # eq. 7
    error = (value - samples.returns).square()
    if clip_value_loss:
        near = samples.value + (value - samples.value).clamp(-epsilon, epsilon)
        other = (near - samples.returns).square()
        error = torch.where(other > error, other, error)
    value_loss = (weight * error).mean()
    entropy = distribution.entropy()
    if not isinstance(entropy_coef, Tensor) and entropy_coef == 0:
        entropy = entropy.detach()  # without a gradient that comes to nothing
    entropy = (weight * entropy).mean() if entropy.dim() > 0 else entropy  # the same for all
    loss = policy_loss + value_coef * value_loss - entropy_coef * entropy  # eq. 9
    metrics = {"loss/policy": policy_loss, "loss/value": value_loss, "policy/entropy": entropy}
    coef, limit = bounds
    if coef > 0 and isinstance(distribution, Gaussian):
        beyond = (distribution.mode.abs() - limit).clamp(min=0)
        metrics["loss/bounds"] = (weight * beyond.square().sum(-1)).mean()
        loss = loss + coef * metrics["loss/bounds"]
    with torch.no_grad():
        metrics["policy/kl"] = (weight * old.kl(distribution)).mean()  # type: ignore[arg-type]
        metrics["policy/clip_fraction"] = (weight * ((ratio - 1).abs() > clip_range)).mean()
    if isinstance(old, Gaussian):
        metrics["policy/std"] = old.std.mean()
    return loss, metrics


def signal_loss(values: Tensor, returns: Tensor, weight: Tensor) -> Tensor:
    """Mean squared error of values ``[L, B, C]`` against returns, samples by weight ``[L, B]``, summed over columns."""
    return (weight.unsqueeze(-1) * (values - returns).square()).mean((0, 1)).sum()


def cost_penalty(distribution: Distribution, samples: Samples, excess: Tensor, clip_range: float | Tensor) -> Tensor:
    """P3O's penalty of K costs (Zhang et al. 2022, arXiv:2205.11814), before its factor kappa, which is 20 there.

    ``sum_k ReLU(E[max(r A_k, clip(r) A_k)] + excess_k)`` with ratios r of probabilities and the excess over the limit
    ``(1 - gamma) (J_k - d_k)`` in the unit of the advantages, ``[K]``: 0 where the step keeps within the limit.
    """
    ratio, advantage = (distribution.log_prob(samples.action) - samples.log_prob).exp(), samples.cost_advantage
    assert advantage is not None  # [L, B, K]
    ratio, epsilon = ratio.unsqueeze(-1), cast(Any, clip_range)
    worst = torch.maximum(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage)
    return ((samples.weight.unsqueeze(-1) * worst).mean((0, 1)) + excess).relu().sum()


# --- Critics that predict the mean return ----------------------------------------------------------------------------


def reduced(values: Tensor, reduce: Reduce) -> Tensor:
    """Reduce the critics' values ``[C, B]`` to ``[B]``; with ``own`` they stay as they are."""
    if reduce == "min":
        return values.amin(0)
    return values.mean(0) if reduce == "mean" else values


def td_target(next_values: Tensor, reward: Tensor, discount: Tensor, bonus: Tensor | None, reduce: Reduce) -> Tensor:
    """The critics' target: ``reward + discount * (next value + bonus)``.

    With one step it is ``y`` of DDPG (arXiv:1509.02971, eq. 5), with the lowest of two critics TD3's (arXiv:1802.09477,
    eq. 10), and with the bonus ``-temperature * log_prob`` the soft Bellman target (arXiv:1812.05905, eq. 2 and 3).
    With n steps, ``reward`` is their discounted sum and ``discount`` is gamma^n.

    Args:
        next_values: ``[C, B]``, of the target critics in the next state.
        reward: ``[B]``.
        discount: ``[B]``, of the next value; 0 where nothing follows, as after a termination.
        bonus: ``[B]``, entropy bonus of the next state; or none.
        reduce: how target critics become one target.

    Returns:
        ``[B]``, or ``[C, B]`` with ``own``.
    """
    next_value = reduced(next_values, reduce)
    return reward + discount * (next_value if bonus is None else next_value + bonus)


@accelerated("q_losses:td_loss")
def td_loss(
    values: Tensor, next_values: Tensor, reward: Tensor, discount: Tensor, weight: Tensor, bonus: Tensor | None,
    reduce: Reduce,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Squared error of critics against ``td_target``, differentiably by their values.

    DDPG's loss (arXiv:1509.02971, eq. 4) and SAC's (arXiv:1812.05905, eq. 5, without its factor of 1/2).

    Args:
        values: ``[C, B]``.
        next_values: see ``td_target``, as are the others.
        reward: ``[B]``.
        discount: ``[B]``.
        weight: ``[B]``, of each sample.
        bonus: ``[B]``, or none.
        reduce: how target critics become one target.

    Returns:
        The sum over critics of mean squared errors, and the mean of all values, without gradient; scalars.
    """
    target = td_target(next_values.detach(), reward, discount, bonus, reduce)
    return (weight * (values - target).square()).mean(1).sum(), values.detach().mean()


def critic_loss(
    output: Tensor,
    next_output: Tensor,
    reward: Tensor,
    discount: Tensor,
    weight: Tensor,
    bonus: Tensor | None = None,
    *,
    reduce: Reduce,
    support: tuple[float, float] | None = None,
) -> tuple[Tensor, Tensor]:
    """The critics' loss: squared error, or cross entropy where they are categorical.

    Args:
        output: ``[C, B, 1]``, their values; or with a support ``[C, B, K]``, logits of categorical critics.
        next_output: ``[C2, B, ...]`` of the target critics, in the next state.
        reward: ``[B]``, as ``discount``, ``weight`` and ``bonus``; see ``td_target``.
        discount: ``[B]``.
        weight: ``[B]``, of each sample.
        bonus: ``[B]``, or none.
        reduce: how target critics become one target.
        support: lowest and highest atom of categorical critics; none: they predict the mean return.

    Returns:
        ``td_loss`` or ``categorical_loss``, and the mean of all values, without gradient; scalars.
    """
    if support is None:
        return td_loss(output.squeeze(-1), next_output.squeeze(-1), reward, discount, weight, bonus, reduce)
    shift = reward if bonus is None else reward + discount * bonus
    loss, values = categorical_loss(output, next_output, shift, discount, weight, *support, reduce)
    return loss, values.mean()


# --- Actor and temperature of SAC and DDPG ---------------------------------------------------------------------------


@accelerated("q_losses:actor_loss")
def actor_loss(
    values: Tensor,
    weight: Tensor,
    reduce: Reduce,
    log_prob: Tensor | None = None,
    temperature: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The actor's loss: minus the value of its actions, and with ``log_prob`` minus their entropy, by the temperature.

    With ``log_prob`` it is SAC's (arXiv:1812.05905, eq. 9). Without, its gradient is the deterministic policy gradient
    (arXiv:1509.02971, eq. 6).

    Args:
        values: ``[C, B]``, of its actions.
        weight: ``[B]``, of each sample, in both results.
        reduce: ``min`` for the lowest critic, else their mean.
        log_prob: ``[B]``, of the actions; none for an actor without noise.
        temperature: scalar, alpha.

    Returns:
        The loss, differentiable by values and log_prob, and the entropy, without gradient; scalars.
    """
    value = reduced(values, "min" if reduce == "min" else "mean")
    if log_prob is None or temperature is None:
        return -(weight * value).mean(), value.new_zeros(())
    return (weight * (temperature * log_prob - value)).mean(), -(weight * log_prob.detach()).mean()


def temperature_loss(log_temperature: Tensor, entropy: Tensor, target_entropy: float | Tensor) -> Tensor:
    """SAC's loss of the temperature (arXiv:1812.05905, eq. 18), a scalar, by its logarithm as in the authors' program.

    ``entropy``, a scalar, is the expectation of ``-log_prob`` there.
    """
    return log_temperature * (entropy - target_entropy)


def temperature_gradient(entropy: Tensor, target_entropy: float | Tensor) -> Tensor:
    """Derivative of ``temperature_loss`` by the logarithm, a scalar, known without a backward pass."""
    return entropy - target_entropy


# --- Costs with limits -----------------------------------------------------------------------------------------------


def cost_target(next_values: Tensor, cost: Tensor, discount: Tensor) -> Tensor:
    """What critics of costs are to predict, each cost in a column: ``cost + discount * the larger next value``.

    As ``td_target`` with two critics, of which the one that expects more counts, since too little is what harms.

    Args:
        next_values: ``[2, B, K]``, what target critics say of what comes next.
        cost: ``[B, K]``, with n steps their discounted sums.
        discount: ``[B]``, of what comes next; 0 where nothing does.
    """
    return cost + discount.unsqueeze(-1) * next_values.amax(0)


def cost_loss(values: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Squared error of critics of costs ``[2, B, K]``, samples by weight ``[B]``, summed over critics and costs."""
    return (weight.unsqueeze(-1) * (values - target).square()).mean(1).sum()


def limited_loss(loss: Tensor, values: Tensor, weight: Tensor, multiplier: Tensor, price: Tensor) -> Tensor:
    """The Lagrangian that an actor descends where costs have limits: ``(loss + sum_k l_k Q_k) / (1 + sum_k l_k)``.

    With SAC's loss it is ``(alpha log_prob - (Q - sum_k l_k Q_k)) / (1 + sum_k l_k)``, in the mean; the
    divisor is that of Stooke et al. 2020 (arXiv:2007.03964).

    Args:
        loss: scalar, of the reward alone; see ``actor_loss``.
        values: ``[2, B, K]``, what critics of costs say of the actor's actions; the larger counts.
        weight: ``[B]``, of each sample.
        multiplier: l, ``[K]``.
        price: scalar, what a cost of 1 counts in reward under a multiplier of 1.
    """
    cost = (weight.unsqueeze(-1) * values.amax(0)).mean(0)  # [K]
    return (loss + price * (multiplier * cost).sum()) / (1 + multiplier.sum())


# --- Categorical critics ---------------------------------------------------------------------------------------------


@accelerated("categorical:expected_value")
def expected_value(logits: Tensor, low: float, high: float) -> Tensor:
    """Mean of each distribution (C51, Bellemare et al. 2017, arXiv:1707.06887), differentiably.

    Args:
        logits: ``[..., K]`` of atoms that are evenly spaced, float32 or bfloat16; float64 stays float64.
        low: lowest atom.
        high: highest atom.

    Returns:
        ``[...]``, float32.
    """
    p = torch.softmax(_wide(logits), -1)
    return (p * _atoms(p, low, high)).sum(-1)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _atoms(like: Tensor, low: float, high: float) -> Tensor:
    """Return the values ``[K]`` of the atoms."""
    return torch.linspace(low, high, like.shape[-1], dtype=like.dtype, device=like.device)


def categorical_loss(
    logits: Tensor,
    next_logits: Tensor,
    shift: Tensor,
    discount: Tensor,
    weight: Tensor,
    low: float,
    high: float,
    reduce: Reduce,
) -> tuple[Tensor, Tensor]:
    """Cross entropy between critics and the projected distribution of what follows, and its gradient in the same pass.

    Atom z moves to ``shift + discount * z``, cut off at the support, and is shared among the two atoms around it
    (arXiv:1707.06887, algorithm 1).

    Args:
        logits: ``[C, B, K]`` of the critics, float32 or bfloat16; alone receives a gradient.
        next_logits: ``[C2, B, K]`` of the target critics.
        shift: ``[B]``, what every return begins with: reward, and discounted entropy bonus if there is one.
        discount: ``[B]``, from 0, where nothing follows, to 1.
        weight: ``[B]``, of each sample.
        low: lowest atom.
        high: highest atom.
        reduce: ``min``, the target critic of least expected value at that sample (Fujimoto et al. 2018,
            arXiv:1802.09477); ``mean``, the average of all target critics' distributions; ``own``, the target critic of
            the same index.

    Returns:
        The loss, a scalar: the sum over critics of the mean over samples of weight × cross entropy. And the mean
        expected value of each critic's ``logits``, ``[C]``, without gradient.

    Raises:
        ValueError: a shape, the support or ``reduce`` is not possible.
    """
    if not low < high or logits.shape[-1] < 2:
        raise ValueError(
            f"support: {logits.shape[-1]} atoms from {low} to {high} are not possible; set 2 or more, and low < high"
        )
    if reduce not in ("min", "mean", "own"):
        raise ValueError(f"reduce: '{reduce}' is not possible; set min, mean or own")
    if logits.shape[1:] != next_logits.shape[1:] or (reduce == "own" and len(logits) != len(next_logits)):
        raise ValueError(
            f"next_logits: {list(next_logits.shape)} does not fit logits {list(logits.shape)}; give as many samples "
            "and atoms, and with reduce 'own' as many critics"
        )
    for name, value in (("shift", shift), ("discount", discount), ("weight", weight)):
        if value.shape != logits.shape[1:2]:
            raise ValueError(f"{name}: {list(value.shape)} is not possible; give {list(logits.shape[1:2])}")
    return cross_entropy(logits, next_logits, shift, discount, weight, low, high, reduce)


@accelerated("categorical:cross_entropy")
def cross_entropy(
    logits: Tensor, next_logits: Tensor, shift: Tensor, discount: Tensor, weight: Tensor, low: float, high: float,
    reduce: Reduce,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See ``categorical_loss``, of what is possible; float64 stays float64."""
    next_logits, shift, discount, weight = (t.detach() for t in (next_logits, shift, discount, weight))
    log_q = torch.log_softmax(_wide(logits), -1)  # [C, B, K]
    p = torch.softmax(_wide(next_logits), -1)  # [C2, B, K]
    if reduce == "min":
        lowest = (p * _atoms(p, low, high)).sum(-1).argmin(0)  # [B]
        p = p[lowest, torch.arange(len(lowest), device=p.device)].unsqueeze(0)  # [1, B, K]
    elif reduce == "mean":
        p = p.mean(0, keepdim=True)
    target = project(p, shift, discount, low, high)  # [1 or C, B, K]
    loss = -(weight * (target * log_q).sum(-1)).mean(1).sum()
    values = plain(expected_value)(logits.detach(), low, high).mean(1)
    return loss, values


def project(p: Tensor, shift: Tensor, discount: Tensor, low: float, high: float) -> Tensor:
    """Shift and shrink distributions ``[..., B, K]`` by ``[B]`` and put them on the atoms again."""
    last = p.shape[-1] - 1
    atoms = _atoms(p, low, high)
    moved = shift.unsqueeze(-1) + discount.unsqueeze(-1) * atoms  # [B, K]
    place = ((moved - low) * (last / (high - low))).clamp(0, last)
    left = place.floor().clamp(0, last - 1)  # the atom below; the uppermost place counts as right of the last but one
    upper = (place - left) * p
    index = left.nan_to_num().long().expand_as(p)  # a NaN goes on in the mass
    return torch.zeros_like(p).scatter_add(-1, index, p - upper).scatter_add(-1, index + 1, upper)
