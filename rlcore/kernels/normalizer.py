"""Running statistics: two launches for a batch, and one that normalizes it; written out they are some forty."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr
from triton.language import tensor as array

from rlcore.kernels.common import num_blocks, power_of_two
from rlcore.normalization import FLOOR, HUGE, MEMORY, TOLD, UNUSABLE, WIDE, RunningNormalizer

_ROWS, _COLS = 64, 32

_PARTS = 9  # what a program tells of each column; see _moments_kernel


@triton.jit
def _moments_kernel(
    x: array, mean: array, var: array, count: array, partial: array, N: array,
    D: constexpr, PARTS: constexpr, HUGE: constexpr, FLOOR: constexpr, WIDE: constexpr, TOLD: constexpr,
    EPSILON: constexpr, WARMUP: constexpr, ROWS: constexpr, COLS: constexpr,
) -> None:  # fmt: skip
    """Sum up ROWS rows and COLS columns in partial [programs, PARTS, D].

    These are: number, mean as distance from the running mean, and squared deviations of what counts; the same if what
    is too far away counts as well; how many are too far away; how many are beyond a limit, and the last such row.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    held = col < D
    inside = (row < N)[:, None] & held[None, :]
    deviation = tl.sqrt(tl.load(var + col, mask=held, other=1.0))
    limit = tl.maximum(HUGE * deviation, FLOOR)
    settled = tl.load(count + col, mask=held, other=0.0) + N > WARMUP * N
    near = tl.where(settled, WIDE * (deviation + EPSILON), float("inf"))
    value = tl.load(x + row.to(tl.int64)[:, None] * D + col[None, :], mask=inside, other=0.0)
    delta = value - tl.load(mean + col, mask=held, other=0.0)[None, :]
    far = tl.abs(delta)
    known = inside & (far < float("inf"))  # false for NaN, too
    counts = known & (far <= limit[None, :])
    beyond = known & (far > tl.minimum(TOLD * near, limit)[None, :])
    back = tl.where(delta < 0, -near[None, :], near[None, :])
    limited = tl.where(far > near[None, :], back, delta)
    out = partial + tl.program_id(0) * PARTS * D + col
    for variant in tl.static_range(2):
        take = counts if variant == 0 else known
        number = tl.sum(tl.where(take, 1.0, 0.0), 0)
        middle = tl.sum(tl.where(take, limited, 0.0), 0) / tl.maximum(number, 1.0)
        apart = tl.where(take, limited - middle[None, :], 0.0)
        tl.store(out + (3 * variant) * D, number, mask=held)
        tl.store(out + (3 * variant + 1) * D, middle, mask=held)
        tl.store(out + (3 * variant + 2) * D, tl.sum(apart * apart, 0), mask=held)
    tl.store(out + 6 * D, tl.sum(tl.where(known & ~counts, 1.0, 0.0), 0), mask=held)
    tl.store(out + 7 * D, tl.sum(tl.where(beyond, 1.0, 0.0), 0), mask=held)
    tl.store(out + 8 * D, tl.max(tl.where(beyond, row[:, None], -1), 0).to(tl.float32), mask=held)


@triton.jit
def _merge_kernel(
    partial: array, mean: array, var: array, count: array, huge: array, outliers: array, N: array, programs: array,
    D: constexpr, PARTS: constexpr, MEMORY: constexpr, ROWS: constexpr, COLS: constexpr,
) -> None:  # fmt: skip
    """Merge partial [programs, PARTS, D] into the statistics of COLS columns."""
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)
    held = col < D
    zero = tl.zeros((ROWS, COLS), tl.float32)
    number, total, number_all, total_all, too_far, beyond, latest = zero, zero, zero, zero, zero, zero, zero - 1
    for start in range(0, programs, ROWS):
        part = start + tl.arange(0, ROWS)
        inside = (part < programs)[:, None] & held[None, :]
        at = partial + part[:, None] * PARTS * D + col[None, :]
        n = tl.load(at, mask=inside, other=0.0)
        number += n
        total += n * tl.load(at + D, mask=inside, other=0.0)
        n = tl.load(at + 3 * D, mask=inside, other=0.0)
        number_all += n
        total_all += n * tl.load(at + 4 * D, mask=inside, other=0.0)
        too_far += tl.load(at + 6 * D, mask=inside, other=0.0)
        beyond += tl.load(at + 7 * D, mask=inside, other=0.0)
        latest = tl.maximum(latest, tl.load(at + 8 * D, mask=inside, other=-1.0))
    share_far = tl.load(huge + col, mask=held, other=0.0)
    share_far = (MEMORY * share_far + tl.sum(too_far, 0)) / (MEMORY + N)
    accept = share_far > 0.5
    new = tl.where(accept, tl.sum(number_all, 0), tl.sum(number, 0))
    delta = tl.where(accept, tl.sum(total_all, 0), tl.sum(total, 0)) / tl.maximum(new, 1.0)
    squares = zero
    for start in range(0, programs, ROWS):
        part = start + tl.arange(0, ROWS)
        inside = (part < programs)[:, None] & held[None, :]
        at = partial + part[:, None] * PARTS * D + col[None, :] + tl.where(accept, 3 * D, 0)[None, :]
        apart = tl.load(at + D, mask=inside, other=0.0) - delta[None, :]
        squares += tl.load(at + 2 * D, mask=inside, other=0.0)
        squares += tl.load(at, mask=inside, other=0.0) * apart * apart
    before = tl.load(count + col, mask=held, other=0.0)
    after = before + new
    share = (new / tl.maximum(after, 1.0)).to(tl.float32)
    old_mean = tl.load(mean + col, mask=held, other=0.0)
    old_var = tl.load(var + col, mask=held, other=1.0)
    spread = tl.sum(squares, 0) / tl.maximum(new, 1.0) + (1 - share) * delta * delta
    sound = held & (spread < float("inf")) & (new > 0)  # squares may overflow
    tl.store(mean + col, old_mean + share * delta, mask=sound)
    tl.store(var + col, old_var + share * (spread - old_var), mask=sound)
    tl.store(count + col, after, mask=sound)
    tl.store(huge + col, share_far, mask=held)
    tl.store(outliers + col, tl.load(outliers + col, mask=held, other=0.0) + tl.sum(beyond, 0), mask=held)
    row = tl.max(latest, 0)
    tl.store(outliers + D + col, row, mask=held & (row >= 0))


def update(normalizer: RunningNormalizer, x: Tensor) -> None:
    """See ``RunningNormalizer.update``."""
    x = x.to(normalizer.mean.dtype)
    rows, size = x.shape
    mean, var, count = normalizer.mean, normalizer.var, normalizer.count
    programs = num_blocks(rows, _ROWS)
    partial = x.new_empty(programs, _PARTS, size)
    _moments_kernel[(programs, num_blocks(size, _COLS))](
        x.contiguous(), mean, var, count, partial, rows, size, _PARTS, HUGE, FLOOR, WIDE, TOLD,
        normalizer.epsilon, normalizer.warmup, _ROWS, _COLS,
    )  # fmt: skip
    cols = 8
    _merge_kernel[(num_blocks(size, cols),)](
        partial, mean, var, count, normalizer.huge, normalizer.outliers, rows, programs, size, _PARTS, MEMORY,
        min(power_of_two(programs, 1), 128), cols,
    )  # fmt: skip


@triton.jit
def _usable_kernel(
    x: array, mean: array, var: array, y: array, broken: array, N: array,
    D: constexpr, NORMALIZE: constexpr, EPSILON: constexpr, CLIP: constexpr, UNUSABLE: constexpr, ROWS: constexpr,
    COLS: constexpr,
) -> None:  # fmt: skip
    """Make y [N, D] of x, and broken [N] the first column of each row that cannot be used, or -1."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = tl.full((ROWS,), D, tl.int32)
    for start in range(0, D, COLS):
        col = start + tl.arange(0, COLS)
        inside = (row < N)[:, None] & (col < D)[None, :]
        at = row.to(tl.int64)[:, None] * D + col[None, :]
        value = tl.load(x + at, mask=inside, other=0.0)
        if NORMALIZE:
            middle = tl.load(mean + col, mask=col < D, other=0.0)
            scale = tl.sqrt(tl.load(var + col, mask=col < D, other=1.0)) + EPSILON
            value = (value - middle[None, :]) / scale[None, :]
        good = tl.abs(value) < (UNUSABLE if CLIP == 0 else float("inf"))  # false for NaN, too
        if CLIP > 0:
            value = tl.where(value > CLIP, CLIP, tl.where(value < -CLIP, -CLIP, value))
        tl.store(y + at, tl.where(good, value, 0.0), mask=inside)
        first = tl.minimum(first, tl.min(tl.where(inside & ~good, col[None, :], D), 1))
    tl.store(broken + row, tl.where(first < D, first, -1), mask=row < N)


def normalized(normalizer: RunningNormalizer, x: Tensor) -> tuple[Tensor, Tensor]:
    """See ``RunningNormalizer.usable``."""
    return _usable(x, normalizer.mean, normalizer.var, normalizer.epsilon, normalizer.clip)


def usable(x: Tensor, clip: float | None) -> tuple[Tensor, Tensor]:
    """See ``normalization.usable``."""
    return _usable(x, None, None, 0.0, clip)


def _usable(
    x: Tensor, mean: Tensor | None, var: Tensor | None, epsilon: float, clip: float | None
) -> tuple[Tensor, Tensor]:
    rows, size = x.shape
    x = x.contiguous()
    y, broken = torch.empty_like(x), torch.empty(rows, dtype=torch.int32, device=x.device)
    cols = min(power_of_two(size, 1), 128)
    tile = max(1, 1024 // cols)
    _usable_kernel[(num_blocks(rows, tile),)](
        x, x if mean is None else mean, x if var is None else var, y, broken, rows,
        size, mean is not None, epsilon, clip or 0.0, UNUSABLE, tile, cols,
    )  # fmt: skip
    return y, broken
