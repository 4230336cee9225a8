"""What is drawn for episodes that begin, in one launch; written out it is up to nine."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr
from triton.language import tensor as array

from rlcore.kernels.common import num_blocks, power_of_two

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
    tally: array, played: array, done: array, success: array, STRIDE: array, N: array,
    ROWS: constexpr, BLOCK: constexpr,
) -> None:  # fmt: skip
    """Do as ``ranges.add_ended`` does; each env has a column of its own."""
    env = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ended = (env < N) & (tl.load(done + env, mask=env < N, other=0) != 0)
    at = tally + tl.load(played + env, mask=ended, other=0) * N + env
    tl.store(at, tl.load(at, mask=ended, other=0.0) + 1.0, mask=ended)
    at += ROWS * N
    succeeded = tl.load(success + env * STRIDE, mask=ended, other=0.0)
    succeeded = tl.where(succeeded == succeeded, succeeded, 0.0)  # NaN is none
    tl.store(at, tl.load(at, mask=ended, other=0.0) + succeeded, mask=ended)


def add_ended(tally: Tensor, played: Tensor, done: Tensor, success: Tensor, one: Tensor, last: Tensor) -> None:
    """See ``ranges.add_ended``; the success may be a column of a matrix, which a copy of it would cost a launch."""
    envs = tally.shape[2]
    _ended_kernel[(num_blocks(envs, _BLOCK),)](
        tally, played, done.contiguous().view(torch.uint8), success, success.stride(0), envs, tally.shape[1], _BLOCK
    )


@triton.jit
def _inverted_kernel(
    uniform: array, cumulative: array, density: array, where: array, kept: array, position: array, N: array,
    P: constexpr, ROWS: constexpr, CELLS: constexpr, ROUNDS: constexpr, BLOCK: constexpr,
) -> None:  # fmt: skip
    """Do as ``ranges.inverted`` does, for all parameters of BLOCK envs side by side.

    Loads that wait for each other are what takes time. So a cell is found by quarters, whose three limits are loaded at
    once, in half the rounds of halving.
    """
    env = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.arange(0, ROWS)[:, None]
    inside = (row < P) & (env < N)[None, :]
    at = row * N + env[None, :]  # [ROWS, BLOCK]
    wanted = tl.load(uniform + at, mask=inside, other=0.0)
    share = tl.load(uniform + P * N + at, mask=inside, other=0.0)
    begins = tl.load(where + env, mask=env < N, other=0) != 0
    before = tl.load(kept + env, mask=env < N, other=0.0)
    table = tl.minimum(row, P - 1) * CELLS
    cell = tl.zeros((ROWS, BLOCK), tl.int32)  # how many of the cells end below
    part = 4**ROUNDS
    for _ in tl.static_range(ROUNDS):
        part = part // 4
        below = tl.zeros((ROWS, BLOCK), tl.int32)
        for quarter in tl.static_range(1, 4):
            last = tl.minimum(cell + (quarter * part - 1), CELLS - 1)  # it is above any number
            below += (tl.load(cumulative + table + last) < wanted).to(tl.int32)
        cell += below * part
    total = tl.sum(tl.where(row < P, tl.load(density + table + cell), 0.0), 0)
    tl.store(position + at, (cell.to(tl.float32) + share) / CELLS, mask=inside)
    tl.store(kept + env, tl.where(begins, total, before), mask=env < N)


def inverted(uniform: Tensor, cumulative: Tensor, density: Tensor, where: Tensor, kept: Tensor) -> Tensor:
    """See ``ranges.inverted``."""
    _, rows, envs = uniform.shape
    position, cells = uniform.new_empty(rows, envs), density.shape[1]
    tile = power_of_two(rows, 1)
    block = max(128 // tile, 16)
    _inverted_kernel[(num_blocks(envs, block),)](
        uniform.contiguous(), cumulative.contiguous(), density.contiguous(), where.contiguous().view(torch.uint8), kept,
        position, envs,
        rows, tile, cells, num_blocks((cells - 1).bit_length(), 2), block,
    )  # fmt: skip
    return position


@triton.jit
def _remember_kernel(
    seen: array, cursors: array, position: array, density: array, success: array, STRIDE: array, done: array,
    N: array, SIZE: array, P: constexpr, SHARE: constexpr, BLOCK: constexpr, COUNTED: constexpr,
) -> None:  # fmt: skip
    """Do as ``ranges.remember`` does; each program writes what ended in SHARE envs, and its own cursor.

    Episodes are numbered in the order of their envs: each program counts by itself what ended in the envs before.
    """
    first = tl.program_id(0) * SHARE
    latest = tl.load(cursors + tl.program_id(0))
    earlier, total = 0, 0
    for begin in range(0, N, COUNTED):
        env = begin + tl.arange(0, COUNTED)
        ended = (tl.load(done + env, mask=env < N, other=0) != 0).to(tl.int32)
        earlier += tl.sum(tl.where(env < first, ended, 0), 0)
        total += tl.sum(ended, 0)
    place = (latest % SIZE).to(tl.int32) + earlier  # of the episode before the first here
    for begin in range(0, SHARE, BLOCK):
        env = first + begin + tl.arange(0, BLOCK)
        ended = (env < N) & (tl.load(done + env, mask=env < N, other=0) != 0)
        succeeded = tl.load(success + env * STRIDE, mask=ended, other=0.0)
        succeeded = tl.where(succeeded == succeeded, succeeded, 0.0)  # NaN is none
        likely = tl.load(density + env, mask=ended, other=0.0)
        mine = place + tl.cumsum(ended.to(tl.int32), 0)
        row = seen + tl.where(mine < SIZE, mine, mine - SIZE).to(tl.int64) * (P + 2)  # no more end than there are rows
        for i in range(P):
            tl.store(row + i, tl.load(position + i * N + env, mask=ended, other=0.0), mask=ended)
        tl.store(row + P, likely, mask=ended)
        tl.store(row + P + 1, succeeded, mask=ended)
        place += tl.sum(ended.to(tl.int32), 0)
    tl.store(cursors + tl.program_id(0), latest + total)


def remember(
    seen: Tensor, cursors: Tensor, position: Tensor, density: Tensor, success: Tensor, done: Tensor, waste: Tensor
) -> None:
    """See ``ranges.remember``; of the success see ``add_ended``."""
    rows, envs = position.shape
    programs = len(cursors)
    share = power_of_two(num_blocks(envs, programs))
    _remember_kernel[(programs,)](
        seen, cursors, position.contiguous(), density, success, success.stride(0), done.contiguous().view(torch.uint8),
        envs, len(seen) - 1, rows, share, min(share, 1024), min(power_of_two(envs), 4096),
    )  # fmt: skip
