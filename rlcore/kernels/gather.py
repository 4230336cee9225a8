"""Rows picked by index."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr
from triton.language import tensor as array

from rlcore.kernels.common import num_blocks, power_of_two


@triton.jit
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


def gather(value: Tensor, index: Tensor) -> Tensor:
    """See ``rollout.gather``; the field may lie in host memory that the GPU can address."""
    value = value.contiguous()
    out = value.new_empty(len(index), *value.shape[1:], device=index.device)
    width = value[0].numel()
    cols = power_of_two(width, 1)
    rows = max(1, 2048 // cols)
    _gather_kernel[(num_blocks(len(index), rows),)](value, index, out, len(index), width, rows, cols)
    return out
