"""Categorical critics: expected values, and the cross entropy with its gradient in the same pass."""

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


@triton.jit
def _softmax(logits: array, K: constexpr, COLS: constexpr) -> Any:
    """Read K logits; return them, their probabilities, and the logarithm of the sum of their exponentials."""
    col = tl.arange(0, COLS)
    x = tl.load(logits + col, mask=col < K, other=-float("inf")).to(tl.float32)
    top = tl.max(x, 0)
    e = tl.exp(x - top)
    total = tl.sum(e, 0)
    return x, e / total, top + tl.log(total)


@triton.jit
def _expected_value_kernel(
    logits: array, value: array, slope: array, low: array, high: array,
    K: constexpr, NEEDED: constexpr, COLS: constexpr,
) -> None:  # fmt: skip
    """One program makes one expected value, and if NEEDED its derivative by the logits."""
    row = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, COLS)
    _, p, _ = _softmax(logits + row * K, K, COLS)
    atom = low + (high - low) / (K - 1) * col
    mean = tl.sum(p * atom, 0)
    tl.store(value + row, mean)
    if NEEDED:
        tl.store(slope + row * K + col, p * (atom - mean), mask=col < K)


class _ExpectedValue(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, low: float, high: float) -> Tensor:
        atoms = logits.shape[-1]
        value = logits.new_empty(logits.shape[:-1], dtype=torch.float32)
        needed = ctx.needs_input_grad[0]
        slope = torch.empty_like(logits, memory_format=torch.contiguous_format) if needed else value
        _expected_value_kernel[(value.numel(),)](
            logits.contiguous(), value, slope, low, high, atoms, needed, power_of_two(atoms), num_warps=1
        )
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    @first_order
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return (slope * gradients[0].unsqueeze(-1)).to(slope.dtype), None, None


@triton.jit
def _unit(x: array) -> Any:
    """Cut off below 0 and above 1; NaN stays NaN."""
    return tl.where(x < 0, 0.0, tl.where(x > 1, 1.0, x))


@triton.jit
def _next(
    logits: array, row: array, B: array, OWN: constexpr, low: array, high: array,
    C2: constexpr, K: constexpr, REDUCE: constexpr, COLS: constexpr,
) -> Any:  # fmt: skip
    """Return the probabilities that a critic learns from: of its own target, of the lowest, or the mean of all."""
    if REDUCE == "own":
        _, p, _ = _softmax(logits + (OWN * B + row) * K, K, COLS)
    else:
        atom = low + (high - low) / (K - 1) * tl.arange(0, COLS)
        _, p, _ = _softmax(logits + row * K, K, COLS)
        least = tl.sum(p * atom, 0)
        for c in tl.static_range(1, C2):
            _, other, _ = _softmax(logits + (c * B + row) * K, K, COLS)
            if REDUCE == "mean":
                p += other
            else:
                mean = tl.sum(other * atom, 0)
                better = (mean < least) | (mean != mean)  # a NaN is to be seen
                p = tl.where(better, other, p)
                least = tl.where(better, mean, least)
        if REDUCE == "mean":
            p = p / C2
    return p


@triton.jit
def _projected(p: array, offset: array, slope: array, K: constexpr, COLS: constexpr) -> Any:
    """Move the mass of atom i to ``offset + slope * i``, in units of atoms, and share it among its two neighbors.

    Each atom j collects what arrives closer to it than 1. These are neighbors, at most 2 / slope of them, and the first
    is known: no sums in memory, and for the usual discounts three or four steps.
    """
    col = tl.arange(0, COLS)
    place = offset + slope * col
    first = tl.floor(tl.minimum(tl.maximum((col - 1 - offset) / slope, -1.0), K * 1.0)).to(tl.int32)
    steps = (tl.minimum(tl.ceil(2 / slope), K * 1.0) + 1).to(tl.int32)
    # Without slope all the mass, which is 1, arrives in one place.
    steps = tl.where(slope == 0, 0, steps)
    result = tl.where(slope == 0, _unit(1 - tl.abs(offset - col)), 0.0)
    for step in range(steps):
        i = first + step
        known = tl.minimum(tl.maximum(i, 0), K - 1)
        share = _unit(1 - tl.abs(offset + slope * i - col))
        result += tl.where(i == known, share * tl.gather(p, known, 0), 0.0)
    # What would leave the support stays in the outermost atoms.
    result = tl.where(col == 0, tl.sum(p * _unit(1 - place), 0), result)
    result = tl.where(col == K - 1, tl.sum(p * _unit(place - (K - 2)), 0), result)
    return tl.where(col < K, result, 0.0)


@triton.jit
def _categorical_loss_kernel(
    logits: array, next_logits: array, shift: array, discount: array, weight: array, gradient: array, partial: array,
    B: array, low: array, high: array,
    C: constexpr, C2: constexpr, K: constexpr, REDUCE: constexpr, COLS: constexpr,
) -> None:  # fmt: skip
    """One program makes the terms and gradients of one sample, from what it reads once.

    partial [1 + C, B] receives the sample's part of the loss and of the mean values.
    """
    row = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, COLS)
    width = (high - low) / (K - 1)
    slope = tl.load(discount + row).to(tl.float32)
    offset = (tl.load(shift + row).to(tl.float32) + slope * low - low) / width
    scale = tl.load(weight + row).to(tl.float32) / B
    loss = 0.0
    if REDUCE != "own":
        p = _next(next_logits, row, B, 0, low, high, C2, K, REDUCE, COLS)
        target = _projected(p, offset, slope, K, COLS)
    for c in tl.static_range(C):
        if REDUCE == "own":
            p = _next(next_logits, row, B, c, low, high, C2, K, REDUCE, COLS)
            target = _projected(p, offset, slope, K, COLS)
        x, q, log_total = _softmax(logits + (c * B + row) * K, K, COLS)
        loss += scale * tl.sum(tl.where(col < K, target * (log_total - x), 0.0), 0)
        tl.store(gradient + (c * B + row) * K + col, scale * (q - target), mask=col < K)
        tl.store(partial + (1 + c) * B + row, tl.sum(q * (low + width * col), 0) / B)
    tl.store(partial + row, loss)


class _CategoricalLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, next_logits: Tensor, shift: Tensor, discount: Tensor, weight: Tensor,
        low: float, high: float, reduce: Reduce,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        critics, rows, atoms = logits.shape
        gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
        partial = logits.new_empty(1 + critics, rows, dtype=torch.float32)
        _categorical_loss_kernel[(rows,)](
            logits.contiguous(), next_logits.contiguous(), shift.contiguous(), discount.contiguous(),
            weight.contiguous(), gradient, partial, rows, low, high,
            critics, len(next_logits), atoms, reduce, power_of_two(atoms), num_warps=1,
        )  # fmt: skip
        ctx.save_for_backward(gradient)
        total = partial.sum(1)
        loss, values = total[0], total[1:]
        ctx.mark_non_differentiable(values)
        return loss, values

    @staticmethod
    @first_order
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (ctx.saved_tensors[0] * gradients[0], *[None] * 7)


def expected_value(logits: Tensor, low: float, high: float) -> Tensor:
    """See ``losses.expected_value``."""
    return _ExpectedValue.apply(logits, low, high)


def cross_entropy(
    logits: Tensor, next_logits: Tensor, shift: Tensor, discount: Tensor, weight: Tensor, low: float, high: float,
    reduce: Reduce,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See ``losses.cross_entropy``."""
    fixed = (part.detach() for part in (next_logits, shift, discount, weight))
    return _CategoricalLoss.apply(logits, *fixed, low, high, reduce)
