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
        kept, position, masks[0].view(torch.uint8), scale.low, scale.span, *(m.view(torch.uint8) for m in masks[1:]),
        values, seen, before, envs, rows, scale.logarithmic is not None, scale.points is not None, _BLOCK,
    )  # fmt: skip
    return values, seen, before
