"""A step of Adam on flat buffers: one launch for the gradient's norm, one for the step."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr
from triton.language import tensor as array

from rlcore.kernels.common import num_blocks, power_of_two
from rlcore.optimizer import TINY, UnitRows

_ADAM_BLOCK = 1024


@triton.jit
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


@triton.jit
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
    max_norm: float, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See ``optimizer.clipped_adam``; constants are compiled in."""
    size = parameter.numel()
    programs = num_blocks(size, _ADAM_BLOCK)
    partial, control = parameter.new_empty(programs), parameter.new_empty(5)
    logs = math.log(beta1), math.log(beta2)
    _square_kernel[(programs,)](gradient, step, rate, partial, control, size, *logs, _ADAM_BLOCK)
    loss = allowed.is_floating_point()
    _adam_kernel[(programs,)](
        parameter, gradient, moment, square, step, allowed if loss else allowed.view(torch.uint8), partial, control,
        size, programs, max_norm, beta1, beta2, eps, loss, _ADAM_BLOCK, min(power_of_two(programs), 1024),
    )  # fmt: skip
    return control[0], control[1]


_UNIT_BLOCK = 1024  # numbers of a row that a program holds at a time


@triton.jit
def _unit_kernel(
    flat: array, starts: array, lengths: array, wanted: array, LONGEST: constexpr, TINY: constexpr, BLOCK: constexpr
) -> None:
    """Divide lengths[i] numbers from flat[starts[i]] on by their norm; nothing is written unless wanted."""
    start = tl.load(starts + tl.program_id(0))
    length = tl.where(tl.load(wanted) != 0, tl.load(lengths + tl.program_id(0)), 0)
    squares = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, LONGEST, BLOCK):
        at = first + tl.arange(0, BLOCK)
        value = tl.load(flat + start + at, mask=at < length, other=0.0)
        squares += value * value
    norm = tl.sqrt(tl.sum(squares, 0))
    factor = 1 / tl.where(norm < TINY, TINY, norm)
    for first in range(0, LONGEST, BLOCK):
        at = first + tl.arange(0, BLOCK)
        value = tl.load(flat + start + at, mask=at < length, other=0.0)  # still in the cache
        tl.store(flat + start + at, value * factor, mask=at < length)


def unit_rows(rows: UnitRows, wanted: Tensor) -> None:
    """See ``optimizer.UnitRows.project``; one launch for all rows."""
    sizes = (rows.longest, TINY, _UNIT_BLOCK)
    _unit_kernel[(len(rows.starts),)](rows.flat, rows.starts, rows.lengths, wanted, *sizes)
