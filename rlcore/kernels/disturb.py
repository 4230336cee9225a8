"""What comes late and what is noisy, of all envs in one launch each; written out it is up to seven."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr
from triton.language import tensor as array

from rlcore.kernels.common import num_blocks

_BLOCK = 1024  # numbers of a program


@triton.jit
def _late_kernel(
    queue: array, now: array, final: array, begun: array, around: array, fraction: array, obs: array, seen: array,
    N: array, WIDTH: constexpr, ROWS: constexpr, FINAL: constexpr, SEEN: constexpr, BLOCK: constexpr,
) -> None:  # fmt: skip
    """Do as ``disturb_rows.late`` does; each number is read and written by one program, so that it is safe in place."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < N * WIDTH
    env = at // WIDTH
    new = tl.load(begun + env, mask=inside, other=0) != 0
    first = tl.load(around + env, mask=inside, other=0)
    second = tl.load(around + N + env, mask=inside, other=0)
    share = tl.load(fraction + env, mask=inside, other=0.0)
    present = tl.load(now + at, mask=inside, other=0.0)
    line = present
    if FINAL:
        line = tl.where(new, tl.load(final + at, mask=inside, other=0.0), present)
    near = line
    far = line
    for row in tl.static_range(ROWS):
        older = tl.load(queue + at, mask=inside, other=0.0)
        near = tl.where(first == row, line, near)
        far = tl.where(second == row, line, far)
        tl.store(queue + at, tl.where(new, present, line), mask=inside)
        line = older
        queue += N * WIDTH
    # The half that torch.lerp takes, so that whole steps are exact.
    between = tl.where(share < 0.5, near + share * (far - near), far - (far - near) * (1.0 - share))
    if SEEN:
        tl.store(seen + at, between, mask=inside)
    tl.store(obs + at, tl.where(new, present, between), mask=inside)


def _late(
    queue: Tensor, now: Tensor, final: Tensor | None, begun: Tensor, lag: Any, keep: bool
) -> tuple[Tensor, Tensor]:
    now = now.contiguous()
    final = None if final is None else final.contiguous()
    obs = torch.empty_like(now)
    seen = torch.empty_like(now) if keep else obs
    rows, envs, size = queue.shape
    _late_kernel[(num_blocks(envs * size, _BLOCK),)](
        queue, now, now if final is None else final, begun.contiguous().view(torch.uint8), lag.around, lag.fraction,
        obs, seen, envs, size, rows, final is not None, keep, _BLOCK,
    )  # fmt: skip
    return obs, seen


def late(queue: Tensor, now: Tensor, final: Tensor | None, begun: Tensor, lag: Any) -> tuple[Tensor, Tensor]:
    """See ``disturb_rows.late``."""
    return _late(queue, now, final, begun, lag, True)


def sent(queue: Tensor, new: Tensor, fresh: Tensor, lag: Any) -> Tensor:
    """See ``disturb_rows.sent``."""
    return _late(queue, new, None, fresh, lag, False)[0]


@triton.jit
def _shown_kernel(
    raw: array, final: array, sigma: array, bias: array, unit: array, white: array, drawn: array, begun: array,
    obs: array, before: array, N: array,
    WIDTH: constexpr, FINAL: constexpr, NOISE: constexpr, BIAS: constexpr, DRAWN: constexpr, BLOCK: constexpr,
) -> None:  # fmt: skip
    """Do as ``disturb_rows.shown`` does."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < N * WIDTH
    value = tl.load(raw + at, mask=inside, other=0.0)
    last = value
    if FINAL:
        last = tl.load(final + at, mask=inside, other=0.0)
    if BIAS:
        most = tl.load(bias + at, mask=inside, other=0.0)
        share = tl.load(unit + at, mask=inside, other=0.0)
        last += most * share
        if DRAWN:
            new = tl.load(begun + at // WIDTH, mask=inside, other=0) != 0
            share = tl.where(new, tl.load(drawn + at, mask=inside, other=0.0), share)
            tl.store(unit + at, share, mask=inside)
        value += most * share
    if NOISE:
        noise = tl.load(sigma + at, mask=inside, other=0.0) * tl.load(white + at, mask=inside, other=0.0)
        last += noise
        value += noise
    if FINAL:
        tl.store(before + at, last, mask=inside)
    tl.store(obs + at, value, mask=inside)


def shown(
    raw: Tensor, final: Tensor | None, errors: Any, white: Tensor | None, drawn: Tensor | None, begun: Tensor
) -> tuple[Tensor, Tensor | None]:
    """See ``disturb_rows.shown``."""
    raw = raw.contiguous()
    obs = torch.empty_like(raw)
    before = None if final is None else torch.empty_like(raw)
    noisy, biased = errors.sigma is not None and white is not None, errors.bias is not None
    given = [final, errors.sigma, errors.bias, errors.unit, white, drawn]
    parts = [raw if part is None else part.contiguous() for part in given]  # what is not read may be anything
    envs, size = raw.shape
    _shown_kernel[(num_blocks(envs * size, _BLOCK),)](
        raw, *parts, begun.contiguous().view(torch.uint8), obs, obs if before is None else before, envs,
        size, final is not None, noisy, biased, biased and drawn is not None, _BLOCK,
    )  # fmt: skip
    return obs, before
