"""Generalized advantage estimation: one program follows some envs from the last step to the first."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr
from triton.language import tensor as array

from rlcore.kernels.common import num_blocks

_BLOCK = 32  # envs of a program: with few of them the way through memory takes longest, so many programs share it


@triton.jit
def _gae_kernel(
    rewards: array, values: array, next_values: array, done: array, advantages: array, returns: array, N: array,
    T: constexpr, GAMMA: constexpr, DECAY: constexpr, BLOCK: constexpr,
) -> None:  # fmt: skip
    """Do as ``returns.gae`` does; one program follows BLOCK envs from the last step to the first."""
    env = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = env < N
    tail = tl.zeros((BLOCK,), tl.float32)
    at = env.to(tl.int64) + (T - 1) * N
    for _ in range(T):
        value = tl.load(values + at, mask=inside, other=0.0)
        delta = tl.load(rewards + at, mask=inside, other=0.0) + GAMMA * tl.load(
            next_values + at, mask=inside, other=0.0
        )
        going = tl.load(done + at, mask=inside, other=1) == 0
        tail = delta - value + tl.where(going, DECAY * tail, 0.0)
        tl.store(advantages + at, tail, mask=inside)
        tl.store(returns + at, tail + value, mask=inside)
        at -= N


def gae(
    rewards: Tensor, values: Tensor, next_values: Tensor, done: Tensor, gamma: float, gae_lambda: float,
    survival: None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See ``returns.gae``."""
    parts = [part.contiguous() for part in (rewards, values, next_values)]
    advantages, returns = torch.empty_like(parts[0]), torch.empty_like(parts[0])
    steps, envs = rewards.shape
    _gae_kernel[(num_blocks(envs, _BLOCK),)](
        *parts, done.contiguous().view(torch.uint8), advantages, returns, envs,
        steps, gamma, gamma * gae_lambda, _BLOCK, num_warps=1,
    )  # fmt: skip
    return advantages, returns
