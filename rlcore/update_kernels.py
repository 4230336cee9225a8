"""The rest of a PPO update as kernels: loss, optimizer step and shuffling, each with a plain PyTorch twin.

``gaussian_ppo_loss``, ``clipped_adam`` and ``gather`` run Triton kernels on CUDA tensors and their twin elsewhere; see
``rlcore.launcher`` for what holds of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlcore.distributions import Gaussian
from rlcore.launcher import array, available, constexpr, kernel, num_blocks, power_of_two, tl

NO_LIMIT = 1e30
"""Of a gradient's norm: ``clipped_adam`` with this one does not clip; a kernel takes it as a constant."""

METRICS = ("loss/policy", "loss/value", "policy/entropy", "policy/kl", "policy/clip_fraction", "policy/std")
"""What the second result of ``gaussian_ppo_loss`` holds, in order."""

_LOSS_ROWS = 64
_ADAM_BLOCK = 1024


# --- Loss ------------------------------------------------------------------------------------------------------------


def _loss_kernel(
    mean: array, std: array, value: array, action: array, old_log_prob: array, old_mean: array, old_std: array,
    old_value: array, advantage: array, returns: array, weight: array, d_mean: array, d_std: array, d_value: array,
    partial: array, B: array,
    A: constexpr, S: constexpr, OLD_S: constexpr, CLIP: constexpr, VALUE: constexpr, ENTROPY: constexpr,
    CLIP_VALUE: constexpr, ROWS: constexpr, COLS: constexpr,
) -> None:  # fmt: skip
    """Loss terms and gradients of ROWS samples; S and OLD_S are row strides, 0 for one std for all samples.

    Every sample is read once. partial [programs, 6 + A] receives the sums of the metrics and of the std gradient.
    """
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
    clipped = tl.where(ratio < 1 - CLIP, 1 - CLIP, tl.where(ratio > 1 + CLIP, 1 + CLIP, ratio))
    free = ratio * adv
    limited = clipped * adv
    surrogate = tl.where(valid, w * tl.where(limited < free, limited, free), 0.0)
    d_log_prob = tl.where(limited < free, 0.0, -w * free / B)
    moved = tl.where(valid & (tl.abs(ratio - 1) > CLIP), w, 0.0)

    v = tl.load(value + row, mask=valid, other=0.0)
    target = tl.load(returns + row, mask=valid, other=0.0)
    error = (v - target) * (v - target)
    d_v = 2 * (v - target)
    if CLIP_VALUE:
        old_v = tl.load(old_value + row, mask=valid, other=0.0)
        step = v - old_v
        near = old_v + tl.where(step < -CLIP, -CLIP, tl.where(step > CLIP, CLIP, step))
        far = (near - target) * (near - target)
        d_v = tl.where((tl.abs(step) > CLIP) & (far > error), 0.0, d_v)
        error = tl.where(error > far, error, far)
    tl.store(d_value + row, w * d_v * (VALUE / B), mask=valid)
    tl.store(d_mean + at, d_log_prob[:, None] * z * inverse, mask=inside)
    d_s = tl.where(inside, (d_log_prob[:, None] * (z * z - 1) - (ENTROPY / B) * shared[:, None]) * inverse, 0.0)
    out = partial + tl.program_id(0) * (6 + A)
    if S == 0:
        tl.store(out + 6 + col, tl.sum(d_s, 0), mask=col < A)
    else:
        tl.store(d_std + at, d_s, mask=inside)
        tl.store(out + 6 + col, tl.zeros((COLS,), tl.float32), mask=col < A)
    tl.store(out, -tl.sum(surrogate, 0) / B)
    tl.store(out + 1, tl.sum(w * error, 0) / B)
    tl.store(out + 2, tl.sum(shared * tl.sum(entropy, 1), 0) / B)
    tl.store(out + 3, tl.sum(w * tl.sum(kl, 1), 0) / B)
    tl.store(out + 4, tl.sum(moved, 0) / B)
    tl.store(out + 5, tl.sum(tl.sum(tl.where(inside, old_s, 0.0), 1), 0) / B / A)


def _total_kernel(
    partial: array, metrics: array, d_std: array, loss: array, programs: array,
    P: constexpr, VALUE: constexpr, ENTROPY: constexpr, ROWS: constexpr, COLS: constexpr,
) -> None:  # fmt: skip
    """Column sums of partial [programs, P], which are metrics [6] and d_std [P - 6], and the loss; in one program."""
    col = tl.arange(0, COLS)
    total = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(0, programs, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < programs)[:, None] & (col < P)[None, :]
        total += tl.load(partial + row[:, None] * P + col[None, :], mask=inside, other=0.0)
    result = tl.sum(total, 0)
    tl.store(metrics + col, result, mask=col < 6)
    tl.store(d_std + col - 6, result, mask=(col >= 6) & (col < P))
    policy = tl.sum(tl.where(col == 0, result, 0.0), 0)
    value = tl.sum(tl.where(col == 1, result, 0.0), 0)
    entropy = tl.sum(tl.where(col == 2, result, 0.0), 0)
    tl.store(loss, policy + VALUE * value - ENTROPY * entropy)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mean: Tensor, std: Tensor, value: Tensor, fixed: Sequence[Tensor], options: tuple[float, ...]
    ) -> tuple[Tensor, Tensor]:
        rows, size = mean.shape
        clip_range, value_coef, entropy_coef, clip_value = options
        action, old_log_prob, old_mean, old_std, *others = map(_rows, fixed)
        std, full = _rows(std), std.shape
        strides = [0 if t.dim() == 1 else t.stride(0) for t in (std, old_std)]
        # One buffer, so that the backward pass scales it in one go.
        counts = [rows * size, rows, rows * size if strides[0] else 0, size]
        buffer = mean.new_empty(sum(counts))
        d_mean, d_value, d_std, d_std_sum = torch.split(buffer, counts)
        programs = num_blocks(rows, _LOSS_ROWS)
        partial = mean.new_empty(programs, 6 + size)
        loss, metrics = mean.new_empty(()), mean.new_empty(6)
        kernel(_loss_kernel)[(programs,)](
            mean.contiguous(), std, value.contiguous(), action, old_log_prob, old_mean, old_std, *others,
            d_mean, d_std, d_value, partial, rows, size, *strides, clip_range, value_coef, entropy_coef,
            bool(clip_value), _LOSS_ROWS, power_of_two(size, 1), num_warps=2,
        )  # fmt: skip
        kernel(_total_kernel)[(1,)](
            partial, metrics, d_std_sum, loss, programs, 6 + size, value_coef, entropy_coef, 64, power_of_two(6 + size),
            num_warps=8,
        )  # fmt: skip
        ctx.save_for_backward(buffer)
        ctx.counts, ctx.shape, ctx.std_shape = counts, mean.shape, full
        ctx.mark_non_differentiable(metrics)
        return loss, metrics

    @staticmethod
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


def gaussian_ppo_loss(
    mean: Tensor,
    std: Tensor,
    value: Tensor,
    action: Tensor,
    old_log_prob: Tensor,
    old_mean: Tensor,
    old_std: Tensor,
    old_value: Tensor,
    advantage: Tensor,
    returns: Tensor,
    weight: Tensor,
    *,
    clip_range: float,
    value_coef: float,
    entropy_coef: float,
    clip_value_loss: bool,
) -> tuple[Tensor, Tensor]:
    """PPO's loss with Gaussian actions, and its gradients in the same pass over the samples.

    Args:
        mean: ``[B, A]``, receives a gradient, as do ``std`` and ``value``.
        std: ``[B, A]``, or ``[A]`` for all samples, which is faster.
        value: ``[B]``.
        action: ``[B, A]``.
        old_log_prob: ``[B]``, of the action under the policy that took it.
        old_mean: ``[B, A]`` of that policy.
        old_std: ``[B, A]`` or ``[A]`` of that policy.
        old_value: ``[B]``, the critic's value then.
        advantage: ``[B]``.
        returns: ``[B]``, what the critic learns.
        weight: ``[B]``, of each sample in all means but that of an entropy that is one for all.
        clip_range: limit of the ratio's distance from 1, and of the value's from the old one.
        value_coef: weight of the mean squared value error.
        entropy_coef: weight of the entropy bonus.
        clip_value_loss: also take the error of the limited value, if larger.

    Returns:
        The loss, a scalar, and what ``METRICS`` names, ``[6]``, without gradient.
    """
    fixed = (action, old_log_prob, old_mean, old_std, old_value, advantage, returns, weight)
    options = (clip_range, value_coef, entropy_coef, clip_value_loss)
    if not available(mean.device):
        return gaussian_ppo_loss_reference(mean, std, value, fixed, options)
    return _Loss.apply(mean, std, value, fixed, options)  # type: ignore[no-any-return, no-untyped-call]


def gaussian_ppo_loss_reference(
    mean: Tensor, std: Tensor, value: Tensor, fixed: Sequence[Tensor], options: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """Do as ``gaussian_ppo_loss`` does in plain PyTorch (Schulman et al. 2017, arXiv:1707.06347, eq. 7 and 9)."""
    action, old_log_prob, old_mean, old_std, old_value, advantage, returns, weight = fixed
    clip_range, value_coef, entropy_coef, clip_value_loss = options
    policy, old = Gaussian(mean, std.expand_as(mean)), Gaussian(old_mean, old_std.expand_as(mean))
    ratio = (policy.log_prob(action) - old_log_prob).exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    policy_loss = -(weight * torch.min(ratio * advantage, clipped * advantage)).mean()
    error = (value - returns).square()
    if clip_value_loss:
        near = old_value + (value - old_value).clamp(-clip_range, clip_range)
        error = torch.max(error, (near - returns).square())
    value_loss = (weight * error).mean()
    entropy = (policy.entropy() if std.dim() == 1 or std.stride(0) == 0 else weight * policy.entropy()).mean()
    loss = policy_loss + value_coef * value_loss - entropy_coef * entropy
    moved = (weight * ((ratio - 1).abs() > clip_range)).mean()
    kl = (weight * old.kl(policy)).mean()
    metrics = torch.stack([policy_loss, value_loss, entropy, kl, moved, old.std.mean()])
    return loss, metrics.detach()


# --- Optimizer step and shuffling ------------------------------------------------------------------------------------


def _square_kernel(
    g: array, step: array, rate: array, partial: array, control: array, size: array,
    LOG_BETA1: constexpr, LOG_BETA2: constexpr, BLOCK: constexpr,
) -> None:  # fmt: skip
    """Sum of squares of each block of the gradient; control [5] gets what of a step is known beforehand.

    Those are its number, the step size and the factor of sqrt(v), behind what ``_adam_kernel`` finds out.
    """
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(g + at, mask=at < size, other=0.0)
    tl.store(partial + tl.program_id(0), tl.sum(value * value, 0))
    if tl.program_id(0) == 0:
        count = tl.load(step) + 1
        # In double precision, as 1 - beta^t loses digits for the first steps.
        correction1 = 1 - tl.exp(count.to(tl.float64) * LOG_BETA1)
        correction2 = 1 - tl.exp(count.to(tl.float64) * LOG_BETA2)
        tl.store(control + 2, count)
        tl.store(control + 3, (tl.load(rate).to(tl.float64) / correction1).to(tl.float32))
        tl.store(control + 4, (1 / tl.sqrt(correction2)).to(tl.float32))


def _adam_kernel(
    p: array, g: array, m: array, v: array, step: array, allowed: array, partial: array, control: array,
    size: array, programs: array,
    MAX_NORM: constexpr, BETA1: constexpr, BETA2: constexpr, EPS: constexpr, LOSS: constexpr, BLOCK: constexpr,
    SUMS: constexpr,
) -> None:  # fmt: skip
    """One element of every buffer per lane; nothing is written if the step is not taken.

    Every program adds up the norm for itself, in the same order, which spares a launch between the two.
    """
    total = tl.zeros((SUMS,), tl.float32)
    for start in range(0, programs, SUMS):
        part = start + tl.arange(0, SUMS)
        total += tl.load(partial + part, mask=part < programs, other=0.0)
    norm = tl.sqrt(tl.sum(total, 0))
    permit = tl.load(allowed)
    taken = (norm < float("inf")) & (tl.abs(permit) < float("inf") if LOSS else permit != 0)
    if tl.program_id(0) == 0:
        tl.store(control, norm)
        tl.store(control + 1, tl.where(taken, 1.0, 0.0))
        tl.store(step, tl.load(control + 2), mask=taken)
    factor = MAX_NORM / (norm + 1e-6)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < tl.where(taken, size, 0)
    grad = tl.load(g + at, mask=inside, other=0.0) * tl.where(factor < 1, factor, 1.0)
    first = tl.load(m + at, mask=inside, other=0.0)
    first += (1 - BETA1) * (grad - first)
    second = BETA2 * tl.load(v + at, mask=inside, other=0.0) + (1 - BETA2) * grad * grad
    change = first / (tl.sqrt(second) * tl.load(control + 4) + EPS) * tl.load(control + 3)
    tl.store(p + at, tl.load(p + at, mask=inside, other=0.0) - change, mask=inside)
    tl.store(m + at, first, mask=inside)
    tl.store(v + at, second, mask=inside)


def clipped_adam(
    parameter: Tensor, gradient: Tensor, moment: Tensor, square: Tensor, step: Tensor, rate: Tensor, allowed: Tensor,
    *, max_norm: float, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Limit a gradient's norm and take a step of Adam (Kingma & Ba 2015, arXiv:1412.6980), in place.

    Args:
        parameter: ``[P]``, all parameters in one buffer.
        gradient: ``[P]``, unchanged.
        moment: ``[P]``, running mean of gradients.
        square: ``[P]``, running mean of their squares.
        step: scalar, steps taken so far.
        rate: scalar, learning rate.
        allowed: scalar; false, or a loss that is not finite, leaves everything as it is, and so does a gradient that
            is not finite.
        max_norm: gradients are scaled down to this norm.
        beta1: weight of the past in ``moment``.
        beta2: weight of the past in ``square``.
        eps: added to the root of the mean square.

    Returns:
        The gradient's norm before, and 1 if the step was taken, else 0; scalars.
    """
    if not available(parameter.device):
        fused = parameter.device.type == "cpu" and hasattr(torch, "_fused_adam_")
        take = _clipped_adam_cpu if fused else clipped_adam_reference
        return take(parameter, gradient, moment, square, step, rate, allowed, max_norm, beta1, beta2, eps)
    size = parameter.numel()
    programs = num_blocks(size, _ADAM_BLOCK)
    partial, control = parameter.new_empty(programs), parameter.new_empty(5)
    logs = math.log(beta1), math.log(beta2)
    kernel(_square_kernel)[(programs,)](gradient, step, rate, partial, control, size, *logs, _ADAM_BLOCK)
    loss = allowed.is_floating_point()
    kernel(_adam_kernel)[(programs,)](
        parameter, gradient, moment, square, step, allowed if loss else allowed.view(torch.uint8), partial, control,
        size, programs, max_norm, beta1, beta2, eps, loss, _ADAM_BLOCK, min(power_of_two(programs), 1024),
    )  # fmt: skip
    return control[0], control[1]


@torch.no_grad()
def _clipped_adam_cpu(
    parameter: Tensor, gradient: Tensor, moment: Tensor, square: Tensor, step: Tensor, rate: Tensor, allowed: Tensor,
    max_norm: float, beta1: float, beta2: float, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Do as ``clipped_adam`` does by PyTorch's own fused step: one pass over the buffers and not ten."""
    norm = torch.linalg.vector_norm(gradient)
    # The host may look: nothing runs ahead of it here. Numbers are float32 as the twin's are.
    size, permit = norm.numpy()[()], allowed.numpy()[()]
    if not (size < math.inf and (abs(permit) < math.inf if allowed.is_floating_point() else permit)):
        return norm, torch.zeros_like(norm)
    factor = np.float32(max_norm) * (1 / (size + np.float32(1e-6))) if max_norm < NO_LIMIT else 1.0
    if factor < 1:
        gradient = gradient * float(factor)
    step.add_(1)
    torch._fused_adam_(
        [parameter], [gradient], [moment], [square], [], [step], lr=rate, beta1=beta1, beta2=beta2, weight_decay=0.0,
        eps=eps, amsgrad=False, maximize=False,
    )  # fmt: skip
    return norm, torch.ones_like(norm)


@torch.no_grad()
def clipped_adam_reference(
    parameter: Tensor, gradient: Tensor, moment: Tensor, square: Tensor, step: Tensor, rate: Tensor, allowed: Tensor,
    max_norm: float, beta1: float, beta2: float, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Do as ``clipped_adam`` does in plain PyTorch."""
    norm = gradient.norm()
    taken = norm.isfinite() & (allowed.isfinite() if allowed.is_floating_point() else allowed)
    gradient = gradient * (max_norm / (norm + 1e-6)).clamp(max=1)
    count = step + taken
    first = torch.lerp(moment, gradient, 1 - beta1)
    second = beta2 * square + (1 - beta2) * gradient * gradient
    scale = (1 - beta2 ** count.double()).sqrt().to(rate.dtype)
    change = rate / (1 - beta1 ** count.double()).to(rate.dtype) * first / (second.sqrt() / scale + eps)
    for target, new in ((parameter, parameter - change), (moment, first), (square, second), (step, count)):
        target.copy_(torch.where(taken, new, target))
    return norm, taken.to(norm.dtype)


def _gather_kernel(
    source: array, index: array, out: array, B: array, W: constexpr, ROWS: constexpr, COLS: constexpr
) -> None:
    """Make out [B, W] = source[index]; rows of a tile are read side by side, many at a time to hide the latency."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, COLS)
    take = tl.load(index + row, mask=row < B, other=0).to(tl.int64)
    inside = (row < B)[:, None] & (col < W)[None, :]
    value = tl.load(source + take[:, None] * W + col[None, :], mask=inside, other=0.0)
    tl.store(out + row.to(tl.int64)[:, None] * W + col[None, :], value, mask=inside)


def gather(fields: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    """Pick samples ``[B]`` by index from fields ``[N, ...]``; a field whose samples are all one memory stays as it is.

    Where two names share one tensor, so do their results.
    """
    done: dict[int, Tensor] = {}
    for value in fields.values():
        if id(value) not in done:
            done[id(value)] = _gathered(value, index)
    return {name: done[id(value)] for name, value in fields.items()}


def _gathered(value: Tensor, index: Tensor) -> Tensor:
    if value.stride(0) == 0:
        return value[:1].expand(len(index), *value.shape[1:])
    if not available(index.device):  # fields may lie in host memory that the GPU can address
        return value.index_select(0, index)
    value = value.contiguous()
    out = value.new_empty(len(index), *value.shape[1:], device=index.device)
    width = value[0].numel()
    cols = power_of_two(width, 1)
    rows = max(1, 2048 // cols)
    kernel(_gather_kernel)[(num_blocks(len(index), rows),)](value, index, out, len(index), width, rows, cols)
    return out
