"""Losses of critics that predict the mean return, and of the actor that climbs them; each with its gradient.

A single program adds up the batch, so nothing has to be added up in a second launch.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr
from triton.language import tensor as array

from rlcore.kernels.common import first_order, power_of_two
from rlcore.losses import Reduce

_BLOCK = 1024


@triton.jit
def _least(values: array, sample: array, valid: array, B: array, C: constexpr) -> Any:
    """Return the lowest of C values of each sample; NaN is to be seen."""
    least = tl.load(values + sample, mask=valid, other=0.0)
    for c in tl.static_range(1, C):
        other = tl.load(values + c * B + sample, mask=valid, other=0.0)
        least = tl.where((other < least) | (other != other), other, least)
    return least


@triton.jit
def _td_kernel(
    values: array, next_values: array, reward: array, discount: array, weight: array, bonus: array, gradient: array,
    result: array, B: array,
    C: constexpr, C2: constexpr, REDUCE: constexpr, BONUS: constexpr, BLOCK: constexpr,
) -> None:  # fmt: skip
    """Make gradient [C, B], and in result [2] the loss and the mean of the values."""
    loss = tl.zeros((BLOCK,), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, B, BLOCK):
        sample = start + tl.arange(0, BLOCK)
        valid = sample < B
        scale = tl.load(weight + sample, mask=valid, other=0.0) / B
        factor = tl.load(discount + sample, mask=valid, other=0.0)
        base = tl.load(reward + sample, mask=valid, other=0.0)
        if BONUS:
            base += factor * tl.load(bonus + sample, mask=valid, other=0.0)
        future = _least(next_values, sample, valid, B, C2 if REDUCE == "min" else 1)
        if REDUCE == "mean":
            for c in tl.static_range(1, C2):
                future += tl.load(next_values + c * B + sample, mask=valid, other=0.0)
            future = future / C2
        for c in tl.static_range(C):
            if REDUCE == "own":
                future = tl.load(next_values + c * B + sample, mask=valid, other=0.0)
            value = tl.load(values + c * B + sample, mask=valid, other=0.0)
            error = value - (base + factor * future)
            loss += scale * error * error
            total += value
            tl.store(gradient + c * B + sample, 2 * scale * error, mask=valid)
    tl.store(result, tl.sum(loss, 0))
    tl.store(result + 1, tl.sum(total, 0) / (C * B))


@triton.jit
def _actor_kernel(
    values: array, log_prob: array, temperature: array, weight: array, gradient: array, result: array, B: array,
    C: constexpr, REDUCE: constexpr, SOFT: constexpr, BLOCK: constexpr,
) -> None:  # fmt: skip
    """Make gradient [C + SOFT, B] by values and log_prob, and in result [2] the loss and the entropy."""
    loss = tl.zeros((BLOCK,), tl.float32)
    density = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, B, BLOCK):
        sample = start + tl.arange(0, BLOCK)
        valid = sample < B
        share = tl.load(weight + sample, mask=valid, other=0.0)
        value = _least(values, sample, valid, B, C if REDUCE == "min" else 1)
        if REDUCE == "min":
            count = tl.zeros((BLOCK,), tl.float32)  # of those that are lowest, which share the gradient
            for c in tl.static_range(C):
                count += tl.where(tl.load(values + c * B + sample, mask=valid, other=0.0) == value, 1.0, 0.0)
            for c in tl.static_range(C):
                lowest = tl.load(values + c * B + sample, mask=valid, other=0.0) == value
                tl.store(gradient + c * B + sample, tl.where(lowest, -share / (count * B), 0.0), mask=valid)
        else:
            for c in tl.static_range(1, C):
                value += tl.load(values + c * B + sample, mask=valid, other=0.0)
            value = value / C
            for c in tl.static_range(C):
                tl.store(gradient + c * B + sample, -share / (C * B * 1.0), mask=valid)
        loss -= share * value
        if SOFT:
            price = tl.load(temperature)
            likely = share * tl.load(log_prob + sample, mask=valid, other=0.0)
            loss += price * likely
            density += likely
            tl.store(gradient + C * B + sample, share * price / B, mask=valid)
    tl.store(result, tl.sum(loss, 0) / B)
    tl.store(result + 1, -tl.sum(density, 0) / B)


class _TDLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, next_values: Tensor, reward: Tensor, discount: Tensor, weight: Tensor,
        bonus: Tensor | None, reduce: Reduce,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        critics, rows = values.shape
        gradient, result = torch.empty_like(values, memory_format=torch.contiguous_format), values.new_empty(2)
        _td_kernel[(1,)](
            values.contiguous(), next_values.contiguous(), reward.contiguous(), discount.contiguous(),
            weight.contiguous(), reward if bonus is None else bonus.contiguous(), gradient, result, rows,
            critics, len(next_values), reduce, bonus is not None, min(_BLOCK, power_of_two(rows)), num_warps=8,
        )  # fmt: skip
        ctx.save_for_backward(gradient)
        ctx.set_materialize_grads(False)  # the second result has none
        loss, mean = result.unbind()
        ctx.mark_non_differentiable(mean)
        return loss, mean

    @staticmethod
    @first_order
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (ctx.saved_tensors[0] * gradients[0], *[None] * 6)


class _ActorLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, log_prob: Tensor | None, temperature: Tensor | None, weight: Tensor, reduce: Reduce
    ) -> tuple[Tensor, Tensor]:
        critics, rows = values.shape
        soft = log_prob is not None
        gradient, result = values.new_empty(critics + soft, rows), values.new_empty(2)
        _actor_kernel[(1,)](
            values.contiguous(), values if log_prob is None else log_prob.contiguous(),
            values if temperature is None else temperature, weight.contiguous(), gradient, result, rows,
            critics, reduce, soft, min(_BLOCK, power_of_two(rows)), num_warps=8,
        )  # fmt: skip
        ctx.save_for_backward(gradient)
        ctx.set_materialize_grads(False)  # the second result has none
        ctx.critics = critics
        loss, entropy = result.unbind()
        ctx.mark_non_differentiable(entropy)
        return loss, entropy

    @staticmethod
    @first_order
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scaled: Tensor = ctx.saved_tensors[0] * gradients[0]
        log_prob = scaled[ctx.critics] if len(scaled) > ctx.critics else None
        return scaled[: ctx.critics], log_prob, None, None, None


def td_loss(
    values: Tensor, next_values: Tensor, reward: Tensor, discount: Tensor, weight: Tensor, bonus: Tensor | None,
    reduce: Reduce,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See ``losses.td_loss``."""
    return _TDLoss.apply(values, next_values.detach(), reward, discount, weight, bonus, reduce)


def actor_loss(
    values: Tensor,
    weight: Tensor,
    reduce: Reduce,
    log_prob: Tensor | None = None,
    temperature: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See ``losses.actor_loss``."""
    return _ActorLoss.apply(values, log_prob, temperature, weight, reduce)
