"""What is drawn for episodes that begin, in one launch; written out it is up to nine."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr
from triton.language import tensor as array

from rlcore.kernels.common import num_blocks

_BLOCK = 256  # numbers of a program


@triton.jit
def _redrawn_kernel(
    kept: array, position: array, where: array, low: array, span: array, logarithmic: array, points: array,
    values: array, seen: array, before: array, N: array,
    P: constexpr, LOGARITHMIC: constexpr, POINTS: constexpr, BLOCK: constexpr,
) -> None:  # fmt: skip
    """Do as ``ranges.redrawn`` does."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < N * P
    row, env = at // N, at % N
    old = tl.load(kept + at, mask=inside, other=0.0)
    new = tl.load(position + at, mask=inside, other=0.0)
    if POINTS:
        new = tl.where(tl.load(points + row, mask=inside, other=0) != 0, 0.5, new)
    value = tl.load(low + row, mask=inside, other=0.0) + tl.load(span + row, mask=inside, other=0.0) * new
    if LOGARITHMIC:
        value = tl.where(tl.load(logarithmic + row, mask=inside, other=0) != 0, tl.exp(value), value)
    now = tl.where(tl.load(where + env, mask=inside, other=0) != 0, new, old)
    tl.store(values + at, value, mask=inside)
    tl.store(kept + at, now, mask=inside)
    tl.store(seen + env * P + row, 2.0 * now - 1.0, mask=inside)
    tl.store(before + env * P + row, 2.0 * old - 1.0, mask=inside)


def redrawn(kept: Tensor, position: Tensor, where: Tensor, scale: Any) -> tuple[Tensor, Tensor, Tensor]:
    """See ``ranges.redrawn``."""
    position = position.contiguous()
    rows, envs = kept.shape
    values, seen, before = torch.empty_like(kept), kept.new_empty(envs, rows), kept.new_empty(envs, rows)
    masks = [where if mask is None else mask.contiguous() for mask in (where, scale.logarithmic, scale.points)]
    _redrawn_kernel[(num_blocks(rows * envs, _BLOCK),)](
        kept, position, masks[0].view(torch.uint8), scale.low.contiguous(), scale.span.contiguous(),
        *(mask.view(torch.uint8) for mask in masks[1:]), values, seen, before, envs, rows,
        scale.logarithmic is not None, scale.points is not None, _BLOCK,
    )  # fmt: skip
    return values, seen, before


@triton.jit
def _chosen_kernel(
    uniform: array, limits: array, between: array, where: array, played: array, position: array, N: array,
    P: constexpr, BOUNDS: constexpr, BLOCK: constexpr,
) -> None:  # fmt: skip
    """Do as ``ranges.chosen`` does, for BLOCK envs."""
    env = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = env < N
    choice = tl.load(uniform + P * N + env, mask=inside, other=0.0)
    bound = tl.zeros((BLOCK,), tl.int64)
    for i in range(BOUNDS - 1):
        bound += (tl.load(limits + i) <= choice).to(tl.int64)
    before = tl.load(played + env, mask=inside, other=0)
    new = tl.load(where + env, mask=inside, other=0) != 0
    tl.store(played + env, tl.where(new, bound, before), mask=inside)
    for row in range(P):
        low = tl.load(between + row * BOUNDS + bound, mask=inside, other=0.0)
        high = tl.load(between + (P + row) * BOUNDS + bound, mask=inside, other=0.0)
        share = tl.load(uniform + row * N + env, mask=inside, other=0.0)
        value = tl.where(share < 0.5, low + share * (high - low), high - (high - low) * (1.0 - share))  # as torch.lerp
        tl.store(position + row * N + env, value, mask=inside)


def chosen(uniform: Tensor, limits: Tensor, between: Tensor, where: Tensor, played: Tensor) -> Tensor:
    """See ``ranges.chosen``."""
    rows, envs = uniform.shape[0] - 1, uniform.shape[1]
    position = uniform.new_empty(rows, envs)
    _chosen_kernel[(num_blocks(envs, _BLOCK),)](
        uniform.contiguous(), limits.contiguous(), between.contiguous(), where.contiguous().view(torch.uint8), played,
        position, envs, rows, len(limits) + 1, _BLOCK,
    )  # fmt: skip
    return position


@triton.jit
def _ended_kernel(
    tally: array, played: array, done: array, success: array, N: array, ROWS: constexpr, BLOCK: constexpr
) -> None:
    """Do as ``ranges.add_ended`` does; each env has a column of its own."""
    env = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ended = (env < N) & (tl.load(done + env, mask=env < N, other=0) != 0)
    at = tally + tl.load(played + env, mask=ended, other=0) * N + env
    tl.store(at, tl.load(at, mask=ended, other=0.0) + 1.0, mask=ended)
    at += ROWS * N
    tl.store(at, tl.load(at, mask=ended, other=0.0) + tl.load(success + env, mask=ended, other=0.0), mask=ended)


def add_ended(tally: Tensor, played: Tensor, done: Tensor, success: Tensor, one: Tensor, last: Tensor) -> None:
    """See ``ranges.add_ended``."""
    envs = tally.shape[2]
    _ended_kernel[(num_blocks(envs, _BLOCK),)](
        tally, played, done.contiguous().view(torch.uint8), success.contiguous(), envs, tally.shape[1], _BLOCK
    )


@triton.jit
def _inverted_kernel(
    uniform: array, cumulative: array, density: array, where: array, kept: array, position: array, N: array,
    P: constexpr, CELLS: constexpr, HALVINGS: constexpr, BLOCK: constexpr,
) -> None:  # fmt: skip
    """Do as ``ranges.inverted`` does, for BLOCK envs; cells are found by halving."""
    env = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = env < N
    total = tl.zeros((BLOCK,), tl.float32)
    for row in range(P):
        wanted = tl.load(uniform + row * N + env, mask=inside, other=0.0)
        low = tl.zeros((BLOCK,), tl.int32)
        high = low + CELLS
        for _ in range(HALVINGS):  # the first cell whose cumulative probability is not below
            middle = (low + high) // 2
            open_ = low < high
            below = open_ & (tl.load(cumulative + row * CELLS + tl.minimum(middle, CELLS - 1)) < wanted)
            low = tl.where(below, middle + 1, low)
            high = tl.where(open_ & ~below, middle, high)
        cell = tl.minimum(low, CELLS - 1)
        total += tl.load(density + row * CELLS + cell)
        share = tl.load(uniform + (P + row) * N + env, mask=inside, other=0.0)
        tl.store(position + row * N + env, (cell.to(tl.float32) + share) / CELLS, mask=inside)
    new = tl.load(where + env, mask=inside, other=0) != 0
    tl.store(kept + env, tl.where(new, total, tl.load(kept + env, mask=inside, other=0.0)), mask=inside)


def inverted(uniform: Tensor, cumulative: Tensor, density: Tensor, where: Tensor, kept: Tensor) -> Tensor:
    """See ``ranges.inverted``."""
    _, rows, envs = uniform.shape
    position, cells = uniform.new_empty(rows, envs), density.shape[1]
    _inverted_kernel[(num_blocks(envs, _BLOCK),)](
        uniform.contiguous(), cumulative.contiguous(), density.contiguous(), where.contiguous().view(torch.uint8), kept,
        position, envs,
        rows, cells, cells.bit_length(), _BLOCK,
    )  # fmt: skip
    return position


@triton.jit
def _remember_kernel(
    seen: array, cursor: array, position: array, density: array, success: array, done: array, N: array, SIZE: array,
    P: constexpr, BLOCK: constexpr,
) -> None:  # fmt: skip
    """Do as ``ranges.remember`` does, in one program: episodes are numbered in the order of their envs."""
    number = tl.load(cursor)
    for begin in range(0, N, BLOCK):
        env = begin + tl.arange(0, BLOCK)
        ended = (env < N) & (tl.load(done + env, mask=env < N, other=0) != 0)
        rank = tl.cumsum(ended.to(tl.int32), 0)
        row = seen + (number + rank) % SIZE * (P + 2)
        for i in range(P):
            tl.store(row + i, tl.load(position + i * N + env, mask=ended, other=0.0), mask=ended)
        tl.store(row + P, tl.load(density + env, mask=ended, other=0.0), mask=ended)
        tl.store(row + P + 1, tl.load(success + env, mask=ended, other=0.0), mask=ended)
        number += tl.sum(ended.to(tl.int32), 0)
    tl.store(cursor, number)


def remember(
    seen: Tensor, cursor: Tensor, position: Tensor, density: Tensor, success: Tensor, done: Tensor, waste: Tensor
) -> None:
    """See ``ranges.remember``."""
    rows, envs = position.shape
    _remember_kernel[(1,)](
        seen, cursor, position.contiguous(), density, success.contiguous(), done.contiguous().view(torch.uint8), envs,
        len(seen) - 1, rows, min(4096, triton.next_power_of_2(envs)), num_warps=8,
    )  # fmt: skip
