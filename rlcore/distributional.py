"""Categorical critics: the distribution of returns on fixed atoms (C51, Bellemare et al. 2017, arXiv:1707.06887).

A critic gives logits of K atoms, evenly spaced from ``low`` to ``high``. ``expected_value`` and ``categorical_loss``
run Triton kernels on CUDA tensors and plain PyTorch elsewhere; see ``rlcore.launcher`` for what holds of all of them.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from rlcore.launcher import array, available, constexpr, kernel, power_of_two, tl

Reduce = Literal["min", "mean", "own"]

_HELPERS = ("_softmax", "_unit", "_next", "_projected")

# --- Expected value --------------------------------------------------------------------------------------------------


def _softmax(logits: array, K: constexpr, COLS: constexpr) -> Any:
    """Read K logits; return them, their probabilities, and the logarithm of the sum of their exponentials."""
    col = tl.arange(0, COLS)
    x = tl.load(logits + col, mask=col < K, other=-float("inf")).to(tl.float32)
    top = tl.max(x, 0)
    e = tl.exp(x - top)
    total = tl.sum(e, 0)
    return x, e / total, top + tl.log(total)


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
        kernel(_expected_value_kernel)[(value.numel(),)](
            logits.contiguous(), value, slope, low, high, atoms, needed, power_of_two(atoms), num_warps=1
        )
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return (slope * gradients[0].unsqueeze(-1)).to(slope.dtype), None, None


def expected_value(logits: Tensor, low: float, high: float) -> Tensor:
    """Mean of each distribution, differentiably.

    Args:
        logits: ``[..., K]``, float32 or bfloat16.
        low: lowest atom.
        high: highest atom.

    Returns:
        ``[...]``, float32.
    """
    if not available(logits.device):
        return expected_value_reference(logits, low, high)
    return _ExpectedValue.apply(logits, low, high)  # type: ignore[no-any-return, no-untyped-call]


def expected_value_reference(logits: Tensor, low: float, high: float) -> Tensor:
    """Do as ``expected_value`` does in plain PyTorch; float64 stays float64."""
    p = torch.softmax(_wide(logits), -1)
    return (p * _atoms(p, low, high)).sum(-1)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _atoms(like: Tensor, low: float, high: float) -> Tensor:
    """Return the values ``[K]`` of the atoms."""
    return torch.linspace(low, high, like.shape[-1], dtype=like.dtype, device=like.device)


# --- Loss ------------------------------------------------------------------------------------------------------------


def _unit(x: array) -> Any:
    """Cut off below 0 and above 1; NaN stays NaN."""
    return tl.where(x < 0, 0.0, tl.where(x > 1, 1.0, x))


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
        kernel(_categorical_loss_kernel)[(rows,)](
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
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (ctx.saved_tensors[0] * gradients[0], *[None] * 7)


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
        reduce: what a critic learns from: ``min``, the target critic of least expected value at that sample (Fujimoto
            et al. 2018, arXiv:1802.09477); ``mean``, the average of all target critics' distributions; ``own``, the
            target critic of its own number.

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
    given = (logits, next_logits.detach(), shift.detach(), discount.detach(), weight.detach(), low, high, reduce)
    if not available(logits.device):
        return categorical_loss_reference(*given)
    return _CategoricalLoss.apply(*given)  # type: ignore[no-any-return, no-untyped-call]


def categorical_loss_reference(
    logits: Tensor, next_logits: Tensor, shift: Tensor, discount: Tensor, weight: Tensor, low: float, high: float,
    reduce: Reduce,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Do as ``categorical_loss`` does in plain PyTorch; float64 stays float64."""
    log_q = torch.log_softmax(_wide(logits), -1)  # [C, B, K]
    p = torch.softmax(_wide(next_logits), -1)  # [C2, B, K]
    if reduce == "min":
        lowest = expected_value_reference(next_logits, low, high).argmin(0)  # [B]
        p = p[lowest, torch.arange(len(lowest), device=p.device)].unsqueeze(0)  # [1, B, K]
    elif reduce == "mean":
        p = p.mean(0, keepdim=True)
    target = project(p, shift, discount, low, high)  # [1 or C, B, K]
    loss = -(weight * (target * log_q).sum(-1)).mean(1).sum()
    values = expected_value_reference(logits.detach(), low, high).mean(1)
    return loss, values


def project(p: Tensor, shift: Tensor, discount: Tensor, low: float, high: float) -> Tensor:
    """Shift and shrink distributions ``[..., B, K]`` by ``[B]`` and put them on the atoms again, in plain PyTorch."""
    last = p.shape[-1] - 1
    atoms = _atoms(p, low, high)
    moved = shift.unsqueeze(-1) + discount.unsqueeze(-1) * atoms  # [B, K]
    place = ((moved - low) * (last / (high - low))).clamp(0, last)
    left = place.floor().clamp(0, last - 1)  # the atom below; the uppermost place counts as right of the last but one
    upper = (place - left) * p
    index = left.nan_to_num().long().expand_as(p)  # a NaN goes on in the mass
    return torch.zeros_like(p).scatter_add(-1, index, p - upper).scatter_add(-1, index + 1, upper)
