"""Sampling from a Gaussian that a tanh squashes into the action bounds: one kernel forward and one backward."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr
from triton.language import tensor as array

from rlcore.kernels.common import first_order, num_blocks, power_of_two

_TILE = 1024


@triton.jit
def _drawn(
    output: array, noise: array, row: array, B: array,
    A: constexpr, LOW: constexpr, HIGH: constexpr, COLS: constexpr,
) -> Any:  # fmt: skip
    """Return where a tile has numbers, the raw action, what the noise added to its mean, and the bounded log_std."""
    col = tl.arange(0, COLS)
    inside = (row < B)[:, None] & (col < A)[None, :]
    at = row.to(tl.int64)[:, None] * (2 * A) + col[None, :]
    log_std = tl.load(output + at + A, mask=inside, other=0.0).to(tl.float32)
    # Comparisons are arranged such that NaN stays NaN, and the step that it spoils is skipped.
    log_std = tl.where(log_std < LOW, LOW, tl.where(log_std > HIGH, HIGH, log_std))
    eps = tl.load(noise + row.to(tl.int64)[:, None] * A + col[None, :], mask=inside, other=0.0)
    added = tl.exp(log_std) * eps
    raw = tl.load(output + at, mask=inside, other=0.0).to(tl.float32) + added
    return inside, raw, added, log_std, eps


@triton.jit
def _squash_kernel(
    output: array, noise: array, action_bias: array, action_scale: array, action: array, log_prob: array, B: array,
    A: constexpr, LOW: constexpr, HIGH: constexpr, ROWS: constexpr, COLS: constexpr,
) -> None:  # fmt: skip
    """Make actions [B, A] and log densities [B] of ROWS samples."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, COLS)
    inside, raw, _, log_std, eps = _drawn(output, noise, row, B, A, LOW, HIGH, COLS)
    bias = tl.load(action_bias + col, mask=col < A, other=0.0)
    scale = tl.load(action_scale + col, mask=col < A, other=1.0)
    x = -2 * raw
    softplus = tl.where(x < 0, 0.0, x) + tl.log(1 + tl.exp(-tl.abs(x)))
    log_2, half_log_2pi = 0.6931471805599453, 0.9189385332046727
    slope = tl.log(scale)[None, :] + 2 * (log_2 - raw - softplus)
    density = -0.5 * eps * eps - log_std - half_log_2pi - slope
    squashed = bias[None, :] + scale[None, :] * (2 * tl.sigmoid(2 * raw) - 1)
    tl.store(action + row.to(tl.int64)[:, None] * A + col[None, :], squashed, mask=inside)
    tl.store(log_prob + row, tl.sum(tl.where(inside, density, 0.0), 1), mask=row < B)


@triton.jit
def _unsquash_kernel(
    output: array, noise: array, action_scale: array, d_action: array, d_log_prob: array, d_output: array, B: array,
    A: constexpr, LOW: constexpr, HIGH: constexpr, ROWS: constexpr, COLS: constexpr,
) -> None:  # fmt: skip
    """Make the gradient by output [B, 2 A] from those by action and log density."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, COLS)
    inside, raw, added, _, _ = _drawn(output, noise, row, B, A, LOW, HIGH, COLS)
    scale = tl.load(action_scale + col, mask=col < A, other=1.0)
    given = tl.load(d_action + row.to(tl.int64)[:, None] * A + col[None, :], mask=inside, other=0.0)
    density = tl.load(d_log_prob + row, mask=row < B, other=0.0)[:, None]
    tanh = 2 * tl.sigmoid(2 * raw) - 1
    d_raw = given * scale[None, :] * (1 - tanh * tanh) + 2 * density * tanh
    at = row.to(tl.int64)[:, None] * (2 * A) + col[None, :]
    free = tl.load(output + at + A, mask=inside, other=0.0).to(tl.float32)
    d_log_std = tl.where((free < LOW) | (free > HIGH), 0.0, d_raw * added - density)
    tl.store(d_output + at, d_raw, mask=inside)
    tl.store(d_output + at + A, d_log_std, mask=inside)


class _Squashed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        noise: Tensor,
        log_std_range: tuple[float, float],
        action_scale: Tensor,
        action_bias: Tensor,
    ) -> tuple[Tensor, Tensor]:
        output = output.contiguous()
        rows, actions = noise.shape
        action, log_prob = torch.empty_like(noise), noise.new_empty(rows)
        cols = power_of_two(actions, 1)
        ctx.tile = (actions, *log_std_range, max(1, _TILE // cols), cols)
        _squash_kernel[(num_blocks(rows, ctx.tile[3]),)](
            output, noise, action_bias, action_scale, action, log_prob, rows, *ctx.tile
        )
        ctx.save_for_backward(output, noise, action_scale)
        return action, log_prob

    @staticmethod
    @first_order
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        output, noise, action_scale = ctx.saved_tensors
        d_action, d_log_prob = (gradient.contiguous() for gradient in gradients)
        d_output = torch.empty_like(output)
        _unsquash_kernel[(num_blocks(len(noise), ctx.tile[3]),)](
            output, noise, action_scale, d_action, d_log_prob, d_output, len(noise), *ctx.tile
        )
        return d_output, None, None, None, None


def tanh_gaussian(
    output: Tensor, noise: Tensor, log_std_range: tuple[float, float], action_scale: Tensor, action_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """See ``distributions.tanh_gaussian``."""
    return _Squashed.apply(output, noise, log_std_range, action_scale, action_bias)
