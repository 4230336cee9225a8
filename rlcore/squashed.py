"""Sampling from a Gaussian that a tanh squashes into the action bounds, as one kernel forward and one backward.

``squashed_sample`` runs Triton kernels on CUDA tensors and plain PyTorch elsewhere; see ``rlcore.launcher`` for what
holds of all of them. The arithmetic is that of Soft Actor-Critic (Haarnoja et al. 2018, arXiv:1812.05905, appendix C).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rlcore.distributions import LOG_2PI
from rlcore.launcher import array, available, constexpr, kernel, num_blocks, power_of_two, tl

_TILE = 1024

_HELPERS = ("_drawn",)


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


def _squash_kernel(
    output: array, noise: array, center: array, half: array, action: array, log_prob: array, B: array,
    A: constexpr, LOW: constexpr, HIGH: constexpr, ROWS: constexpr, COLS: constexpr,
) -> None:  # fmt: skip
    """Make actions [B, A] and log densities [B] of ROWS samples."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, COLS)
    inside, raw, _, log_std, eps = _drawn(output, noise, row, B, A, LOW, HIGH, COLS)
    middle = tl.load(center + col, mask=col < A, other=0.0)
    reach = tl.load(half + col, mask=col < A, other=1.0)
    x = -2 * raw
    softplus = tl.where(x < 0, 0.0, x) + tl.log(1 + tl.exp(-tl.abs(x)))
    log_2, half_log_2pi = 0.6931471805599453, 0.9189385332046727
    slope = tl.log(reach)[None, :] + 2 * (log_2 - raw - softplus)
    density = -0.5 * eps * eps - log_std - half_log_2pi - slope
    squashed = middle[None, :] + reach[None, :] * (2 * tl.sigmoid(2 * raw) - 1)
    tl.store(action + row.to(tl.int64)[:, None] * A + col[None, :], squashed, mask=inside)
    tl.store(log_prob + row, tl.sum(tl.where(inside, density, 0.0), 1), mask=row < B)


def _unsquash_kernel(
    output: array, noise: array, half: array, d_action: array, d_log_prob: array, d_output: array, B: array,
    A: constexpr, LOW: constexpr, HIGH: constexpr, ROWS: constexpr, COLS: constexpr,
) -> None:  # fmt: skip
    """Make the gradient by output [B, 2 A] from those by action and log density."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, COLS)
    inside, raw, added, _, _ = _drawn(output, noise, row, B, A, LOW, HIGH, COLS)
    reach = tl.load(half + col, mask=col < A, other=1.0)
    given = tl.load(d_action + row.to(tl.int64)[:, None] * A + col[None, :], mask=inside, other=0.0)
    density = tl.load(d_log_prob + row, mask=row < B, other=0.0)[:, None]
    tanh = 2 * tl.sigmoid(2 * raw) - 1
    d_raw = given * reach[None, :] * (1 - tanh * tanh) + 2 * density * tanh
    at = row.to(tl.int64)[:, None] * (2 * A) + col[None, :]
    free = tl.load(output + at + A, mask=inside, other=0.0).to(tl.float32)
    d_log_std = tl.where((free < LOW) | (free > HIGH), 0.0, d_raw * added - density)
    tl.store(d_output + at, d_raw, mask=inside)
    tl.store(d_output + at + A, d_log_std, mask=inside)


class _Squashed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, output: Tensor, noise: Tensor, log_std_range: tuple[float, float], center: Tensor, half: Tensor
    ) -> tuple[Tensor, Tensor]:
        output = output.contiguous()
        rows, actions = noise.shape
        action, log_prob = torch.empty_like(noise), noise.new_empty(rows)
        cols = power_of_two(actions, 1)
        ctx.tile = (actions, *log_std_range, max(1, _TILE // cols), cols)
        kernel(_squash_kernel)[(num_blocks(rows, ctx.tile[3]),)](
            output, noise, center, half, action, log_prob, rows, *ctx.tile
        )
        ctx.save_for_backward(output, noise, half)
        return action, log_prob

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        output, noise, half = ctx.saved_tensors
        d_action, d_log_prob = (gradient.contiguous() for gradient in gradients)
        d_output = torch.empty_like(output)
        kernel(_unsquash_kernel)[(num_blocks(len(noise), ctx.tile[3]),)](
            output, noise, half, d_action, d_log_prob, d_output, len(noise), *ctx.tile
        )
        return d_output, None, None, None, None


def squashed_sample(
    output: Tensor, log_std_range: tuple[float, float], center: Tensor, half: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw actions from squashed Gaussians with the device's default generator, differentiably by ``output``.

    Args:
        output: ``[B, 2 A]``, means and logarithms of the standard deviations before the tanh.
        log_std_range: bounds of the latter.
        center: ``[A]``, of the action bounds.
        half: ``[A]``, half the width of the action bounds.

    Returns:
        Actions ``[B, A]``, and their log density ``[B]`` in the env's action units, with the width of the bounds in
        the Jacobian.
    """
    kind = torch.float64 if output.dtype == torch.float64 else torch.float32
    noise = torch.randn(len(output), output.shape[1] // 2, device=output.device, dtype=kind)
    if not available(output.device):
        return squashed_sample_reference(output, noise, log_std_range, center, half)
    return _Squashed.apply(output, noise, log_std_range, center, half)  # type: ignore[no-any-return, no-untyped-call]


def squashed_sample_reference(
    output: Tensor, noise: Tensor, log_std_range: tuple[float, float], center: Tensor, half: Tensor
) -> tuple[Tensor, Tensor]:
    """Do as ``squashed_sample`` does in plain PyTorch, with the noise ``[B, A]`` given."""
    mean, log_std = output.chunk(2, -1)
    log_std = log_std.clamp(*log_std_range)
    raw = mean + log_std.exp() * noise
    # log(1 - tanh(raw)^2) in a form that does not overflow.
    slope = half.log() + 2 * (math.log(2) - raw - F.softplus(-2 * raw))
    # The Gaussian's, whose deviation from the mean is known to be the noise.
    density = -0.5 * (noise * noise + LOG_2PI) - log_std - slope
    return center + half * torch.tanh(raw), density.sum(-1)
