"""Advantages and returns over a rollout. Nothing here crosses the end of an episode."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlcore.dispatch import accelerated
from rlcore.distributed import total, world


def room_for_timeouts(steps: int, max_episode_length: int) -> int:
    """How many time-outs of one env to make room for in so many steps.

    Four times those of its limit, and no fewer than with a limit of 100 steps: an env may know of no limit, or cut
    episodes for reasons of its own. And one besides, of an episode that had begun before.
    """
    return 1 + math.ceil(4 * steps / min(max(1, max_episode_length), 100))


def scaled_reward(reward: Tensor, scale: float, limit: float | None) -> Tensor:
    """Scale rewards ``[...]``, then clip them to +- ``limit``; what is not finite becomes NaN, so that it is found."""
    reward = reward if scale == 1 else reward * scale
    return reward if limit is None else reward.clamp(-limit, limit) + (reward - reward)


def bootstrap_values(values: Tensor, terminated: Tensor, truncated: Tensor, timeout_values: Tensor) -> Tensor:
    """The next value of each step, as the bootstrap may use it, ``[T, N]``.

    Args:
        values: V of the rollout's states and of the one after it, ``[T + 1, N]``.
        terminated: bool ``[T, N]``; nothing follows, whatever ``truncated`` says.
        truncated: bool ``[T, N]``; the episode was cut, ``values[t + 1]`` belongs to the next one.
        timeout_values: V of the state that the cut hid, ``[T, N]``; read where truncated.
    """
    after = torch.where(truncated, timeout_values, values[1:])
    return torch.where(terminated, torch.zeros_like(after), after)


@accelerated("gae:gae", when=lambda *args: len(args) < 7 or args[6] is None)
def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    done: Tensor,
    gamma: float,
    gae_lambda: float,
    survival: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation, equation 16 of Schulman et al. 2016 (arXiv:1506.02438).

    Args:
        rewards: ``[T, N]``.
        values: V(s_t), ``[T, N]``.
        next_values: V(s_t+1) as the bootstrap may use it, ``[T, N]``, from ``bootstrap_values``.
        done: bool ``[T, N]``, terminated or truncated: the sum stops here.
        gamma: discount per step.
        gae_lambda: weight of longer estimates; 0 is one-step TD, 1 is Monte Carlo.
        survival: probability that the episode goes on after each step, ``[T, N]``, a factor of the discount; None: 1.

    Returns:
        Advantages and returns (advantage + value), ``[T, N]`` each.
    """
    if survival is not None:
        next_values = survival * next_values
    delta = rewards + gamma * next_values - values  # [T, N]
    tail = torch.zeros_like(delta[0])  # [N]
    tails: list[Tensor] = []
    chances = [None] * len(delta) if survival is None else list(survival.unbind())
    for step, over, chance in zip(reversed(delta.unbind()), reversed(done.unbind()), reversed(chances), strict=True):
        following = tail if chance is None else chance * tail
        tail = torch.where(over, step, torch.add(step, following, alpha=gamma * gae_lambda))
        tails.append(tail)
    advantages = torch.stack(tails[::-1])
    return advantages, advantages + values


def standardized(x: Tensor, learned: Tensor) -> Tensor:
    """Bring ``x`` ``[...]``, where bool ``learned`` says so, to zero mean and unit variance."""
    mean, std = moments(x, learned)
    return (x - mean) / std


def moments(x: Tensor, learned: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, which is not 0, of ``x`` ``[...]`` where bool ``learned`` says so; scalars.

    Those of all ranks, where there are several.
    """
    if world().several:
        sums = torch.stack([learned.sum().to(x.dtype), x.where(learned, 0.0).sum()])
        number, whole = total(sums).unbind()
        mean = whole / number
        return mean, (total((x - mean).where(learned, 0.0).square().sum()) / number).sqrt() + 1e-8
    number = learned.sum()
    mean = x.where(learned, 0.0).sum() / number
    std = x.where(learned, mean).std(correction=0) * (x.numel() / number).sqrt()
    return mean, std + 1e-8


def filled(x: Tensor, learned: Tensor) -> Tensor:
    """Fill ``x`` ``[...]`` with its mean where it is not ``learned`` from, which adds nothing to the variance."""
    return x.where(learned, x.where(learned, 0.0).sum() / learned.sum())


def explained_variance(returns: Tensor, values: Tensor, learned: Tensor) -> Tensor:
    """Explained variance, 1 - Var(returns - values) / Var(returns), over ``[...]`` where bool ``learned``; a scalar."""
    errors = filled(returns - values, learned).var()
    return 1 - errors / filled(returns, learned).var().clamp(min=1e-8)
