"""PPO's loss with Gaussian actions, and its gradients in the same pass over the samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr
from triton.language import tensor as array

from rlcore.distributions import Gaussian
from rlcore.kernels.common import first_order, num_blocks, power_of_two
from rlcore.losses import METRICS
from rlcore.rollout import Samples

_LOSS_ROWS = 64


@triton.jit
def _loss_kernel(
    mean: array, std: array, value: array, action: array, old_log_prob: array, old_mean: array, old_std: array,
    old_value: array, advantage: array, returns: array, weight: array, d_mean: array, d_std: array, d_value: array,
    partial: array, live: array, B: array,
    A: constexpr, S: constexpr, OLD_S: constexpr, CLIP: constexpr, VALUE: constexpr, ENTROPY: constexpr,
    LIVE: constexpr, CLIP_VALUE: constexpr, M: constexpr, ROWS: constexpr, COLS: constexpr,
) -> None:  # fmt: skip
    """Loss terms and gradients of ROWS samples; S and OLD_S are row strides, 0 for one std for all samples.

    Every sample is read once. partial [programs, M + A] receives the sums of the metrics, in the
    order of METRICS, and of the std gradient. With LIVE clip range and entropy weight are read from live [2].
    """
    if LIVE:
        clip = tl.load(live)
        entropy_coef = tl.load(live + 1)
    else:
        clip = CLIP
        entropy_coef = ENTROPY
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, COLS)
    valid = row < B
    inside = valid[:, None] & (col < A)[None, :]
    at = row.to(tl.int64)[:, None] * A + col[None, :]
    w = tl.load(weight + row, mask=valid, other=0.0)
    m = tl.load(mean + at, mask=inside, other=0.0)
    s = tl.load(std + row.to(tl.int64)[:, None] * S + col[None, :], mask=inside, other=1.0)
    old_s = tl.load(old_std + row.to(tl.int64)[:, None] * OLD_S + col[None, :], mask=inside, other=1.0)
    inverse = 1 / s
    z = (tl.load(action + at, mask=inside, other=0.0) - m) * inverse
    log_s = tl.log(s)
    half_log_2pi = 0.9189385332046727
    log_prob = tl.sum(tl.where(inside, -0.5 * z * z - log_s - half_log_2pi, 0.0), 1)
    shared = tl.where(valid, 1.0, 0.0) if S == 0 else w  # one std for all has one entropy, whatever counts
    entropy = tl.where(inside, log_s + (0.5 + half_log_2pi), 0.0)
    spread = old_s * inverse
    shift = (tl.load(old_mean + at, mask=inside, other=0.0) - m) * inverse
    kl = tl.where(inside, 0.5 * (spread * spread + shift * shift - 1) - tl.log(spread), 0.0)

    # Comparisons are arranged such that NaN stays NaN: PPO skips a step whose loss is not finite.
    ratio = tl.exp(log_prob - tl.load(old_log_prob + row, mask=valid, other=0.0))
    adv = tl.load(advantage + row, mask=valid, other=0.0)
    clipped = tl.where(ratio < 1 - clip, 1 - clip, tl.where(ratio > 1 + clip, 1 + clip, ratio))
    free = ratio * adv
    limited = clipped * adv
    surrogate = tl.where(valid, w * tl.where(limited < free, limited, free), 0.0)
    d_log_prob = tl.where(limited < free, 0.0, -w * free / B)
    moved = tl.where(valid & (tl.abs(ratio - 1) > clip), w, 0.0)

    v = tl.load(value + row, mask=valid, other=0.0)
    target = tl.load(returns + row, mask=valid, other=0.0)
    error = (v - target) * (v - target)
    d_v = 2 * (v - target)
    if CLIP_VALUE:
        old_v = tl.load(old_value + row, mask=valid, other=0.0)
        step = v - old_v
        near = old_v + tl.where(step < -clip, -clip, tl.where(step > clip, clip, step))
        far = (near - target) * (near - target)
        d_v = tl.where((tl.abs(step) > clip) & (far > error), 0.0, d_v)
        error = tl.where(error > far, error, far)
    tl.store(d_value + row, w * d_v * (VALUE / B), mask=valid)
    tl.store(d_mean + at, d_log_prob[:, None] * z * inverse, mask=inside)
    d_s = tl.where(inside, (d_log_prob[:, None] * (z * z - 1) - (entropy_coef / B) * shared[:, None]) * inverse, 0.0)
    out = partial + tl.program_id(0) * (M + A)
    if S == 0:
        tl.store(out + M + col, tl.sum(d_s, 0), mask=col < A)
    else:
        tl.store(d_std + at, d_s, mask=inside)
        tl.store(out + M + col, tl.zeros((COLS,), tl.float32), mask=col < A)
    tl.store(out, -tl.sum(surrogate, 0) / B)
    tl.store(out + 1, tl.sum(w * error, 0) / B)
    tl.store(out + 2, tl.sum(shared * tl.sum(entropy, 1), 0) / B)
    tl.store(out + 3, tl.sum(w * tl.sum(kl, 1), 0) / B)
    tl.store(out + 4, tl.sum(moved, 0) / B)
    tl.store(out + 5, tl.sum(tl.sum(tl.where(inside, old_s, 0.0), 1), 0) / B / A)


@triton.jit
def _total_kernel(
    partial: array, metrics: array, d_std: array, loss: array, live: array, programs: array,
    P: constexpr, M: constexpr, VALUE: constexpr, ENTROPY: constexpr, LIVE: constexpr, ROWS: constexpr, COLS: constexpr,
) -> None:  # fmt: skip
    """Column sums of partial [programs, P], which are metrics [M] and d_std [P - M], and the loss; in one program."""
    col = tl.arange(0, COLS)
    total = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(0, programs, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < programs)[:, None] & (col < P)[None, :]
        total += tl.load(partial + row[:, None] * P + col[None, :], mask=inside, other=0.0)
    result = tl.sum(total, 0)
    tl.store(metrics + col, result, mask=col < M)
    tl.store(d_std + col - M, result, mask=(col >= M) & (col < P))
    policy = tl.sum(tl.where(col == 0, result, 0.0), 0)
    value = tl.sum(tl.where(col == 1, result, 0.0), 0)
    entropy = tl.sum(tl.where(col == 2, result, 0.0), 0)
    if LIVE:
        tl.store(loss, policy + VALUE * value - tl.load(live + 1) * entropy)
    else:
        tl.store(loss, policy + VALUE * value - ENTROPY * entropy)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mean: Tensor, std: Tensor, value: Tensor, fixed: Sequence[Tensor], options: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor]:
        rows, size = mean.shape
        clip_range, value_coef, entropy_coef, clip_value = options
        live, scheduled = mean, any(isinstance(option, Tensor) for option in options)
        if scheduled:
            both = (x if isinstance(x, Tensor) else mean.new_full((), x) for x in (clip_range, entropy_coef))
            live, clip_range, entropy_coef = torch.stack(list(both)), 0.0, 0.0
        action, old_log_prob, old_mean, old_std, *others = map(_rows, fixed)
        std, full = _rows(std), std.shape
        strides = [0 if t.dim() == 1 else t.stride(0) for t in (std, old_std)]
        # One buffer, so that the backward pass scales it in one go.
        counts = [rows * size, rows, rows * size if strides[0] else 0, size]
        buffer = mean.new_empty(sum(counts))
        d_mean, d_value, d_std, d_std_sum = torch.split(buffer, counts)
        programs, count = num_blocks(rows, _LOSS_ROWS), len(METRICS)
        partial = mean.new_empty(programs, count + size)
        loss, metrics = mean.new_empty(()), mean.new_empty(count)
        _loss_kernel[(programs,)](
            mean.contiguous(), std, value.contiguous(), action, old_log_prob, old_mean, old_std, *others,
            d_mean, d_std, d_value, partial, live, rows, size, *strides, clip_range, value_coef, entropy_coef,
            scheduled, bool(clip_value), count, _LOSS_ROWS, power_of_two(size, 1), num_warps=2,
        )  # fmt: skip
        _total_kernel[(1,)](
            partial, metrics, d_std_sum, loss, live, programs, count + size, count, value_coef, entropy_coef,
            scheduled, 64, power_of_two(count + size), num_warps=8,
        )  # fmt: skip
        ctx.save_for_backward(buffer)
        ctx.counts, ctx.shape, ctx.std_shape = counts, mean.shape, full
        ctx.mark_non_differentiable(metrics)
        return loss, metrics

    @staticmethod
    @first_order
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scaled: Tensor = ctx.saved_tensors[0] * gradients[0]
        d_mean, d_value, d_std, d_std_sum = torch.split(scaled, ctx.counts)
        if len(ctx.std_shape) == 1:
            d_std = d_std_sum
        elif not len(d_std):  # of a vector that was expanded beforehand: equal shares that add up to the sum
            d_std = (d_std_sum / len(d_value)).expand(ctx.std_shape)
        return d_mean.view(ctx.shape), d_std.view(ctx.std_shape), d_value, None, None


def _rows(t: Tensor) -> Tensor:
    """Bring ``[B, A]`` to rows without gaps, or to ``[A]`` if they are all one."""
    if t.dim() == 2 and t.stride(0) == 0:
        return t[0].contiguous()
    return t.contiguous()


def ppo_loss(
    distribution: Gaussian,
    value: Tensor,
    samples: Samples,
    *,
    clip_range: float | Tensor,
    value_coef: float,
    entropy_coef: float | Tensor,
    clip_value_loss: bool,
    **unused: Any,
) -> tuple[Tensor, dict[str, Tensor]]:
    """See ``losses.ppo_loss``; a deviation ``[A]`` for all samples is faster than one for each."""
    mean, std = (part.flatten(0, 1) if part.dim() > 1 else part for part in distribution)
    columns = (samples.action, samples.log_prob, *samples.old)  # of which the last two are mean and deviation
    columns += (samples.value, samples.advantage, samples.returns, samples.weight)
    fixed = [column.flatten(0, 1) for column in columns]
    options = (clip_range, value_coef, entropy_coef, clip_value_loss)
    loss, metrics = _Loss.apply(mean, std, value.flatten(0, 1), fixed, options)
    return loss, dict(zip(METRICS, metrics.unbind(), strict=True))
