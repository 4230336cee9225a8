"""Advantages and returns over a rollout. Nothing here crosses the end of an episode."""

from __future__ import annotations

import torch
from torch import Tensor


def next_values(values: Tensor, terminated: Tensor, truncated: Tensor, timeout_values: Tensor) -> Tensor:
    """Value of what follows each step, as its bootstrap may use it.

    Args:
        values: V of the rollout's states and of the one after it, ``[T + 1, N]``.
        terminated: bool ``[T, N]``; nothing follows, whatever ``truncated`` says.
        truncated: bool ``[T, N]``; the episode was cut, ``values[t + 1]`` belongs to the next one.
        timeout_values: V of the state that the cut hid, ``[T, N]``; read where truncated.
    """
    following = torch.where(truncated, timeout_values, values[1:])
    return torch.where(terminated, torch.zeros_like(following), following)


def gae(
    rewards: Tensor, values: Tensor, following: Tensor, done: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation, equation 16 of Schulman et al. 2016 (arXiv:1506.02438).

    Args:
        rewards: ``[T, N]``.
        values: V(s_t), ``[T, N]``.
        following: value after each step, ``[T, N]``, from ``next_values``.
        done: bool ``[T, N]``, terminated or truncated: the sum stops here.
        gamma: discount per step.
        gae_lambda: weight of longer estimates; 0 is one-step TD, 1 is Monte Carlo.

    Returns:
        Advantages and returns (advantage + value), ``[T, N]`` each.
    """
    delta = rewards + gamma * following - values  # [T, N]
    decay = gamma * gae_lambda * (~done).to(values.dtype)  # [T, N]
    advantages = torch.empty_like(delta)
    tail = torch.zeros_like(delta[0])  # [N]
    for t in range(delta.shape[0] - 1, -1, -1):
        tail = delta[t] + decay[t] * tail
        advantages[t] = tail
    return advantages, advantages + values
