"""The replay memory: storing a vector step, where windows end and what they earn, observations around them.

Written out, a vector step is some thirty launches and a window eighty. Rings of observations and actions may lie in
host memory that a GPU can address (``rlcore.device_memory``): the kernels are the same, only that rows then come over
the bus.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr
from triton.language import tensor as array

from rlcore.kernels.common import num_blocks, power_of_two
from rlcore.normalization import REWARD_LIMIT, UNUSABLE
from rlcore.replay_rows import BROKEN, CUT, GOING, HIDDEN, TERMINATED, Finals, Outcomes, Windows, read_as
from rlcore.types import Timeout

_BLOCK = 64

_WRITE_BLOCK = 1024

_MOST_COLUMNS = 4096  # that a program reads of a row; images are wider


@triton.jit
def _window_kernel(
    start: array, env: array, reward: array, end: array, num_written: array, newest: array, size: array,
    begin: array, after: array, total: array, discount: array, weight: array,
    B: array, C: array, N: array, FINALS: array,
    GAMMA: constexpr, STEPS: constexpr, TIMEOUT: constexpr, DRAWN: constexpr,
    GOING: constexpr, TERMINATED: constexpr, CUT: constexpr, BLOCK: constexpr,
) -> None:  # fmt: skip
    """One lane reads one window. All its steps are read at once: waiting for each end before the next is slower."""
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = lane < B
    row = tl.load(start + lane, mask=valid, other=0)
    column = tl.load(env + lane, mask=valid, other=0)
    if DRAWN:
        count = tl.load(size)
        row = (tl.load(newest) - count + C + row % tl.maximum(count - STEPS, 1)) % C
    last = row * N + column
    tl.store(begin + lane, last, mask=valid)
    sum_of_rewards = tl.zeros((BLOCK,), tl.float32)
    factor = sum_of_rewards + 1
    going = valid
    code = tl.full((BLOCK,), GOING, tl.int32)  # what the window's last step led to
    for i in tl.static_range(STEPS):
        here = (row + i) % C * N + column
        earned = tl.load(reward + here, mask=valid, other=0.0)
        led_to = tl.load(end + here, mask=valid, other=GOING)
        last = tl.where(going, here, last)
        code = tl.where(going, led_to, code)
        sum_of_rewards += tl.where(going, factor * earned, 0.0)
        factor = tl.where(going, factor * GAMMA, factor)
        going = going & (led_to == GOING)
    over = code == TERMINATED
    truncated = (code != GOING) & (code != TERMINATED)
    number = code.to(tl.int64)
    after_row = (last + N) % (C * N)
    if TIMEOUT == "final_obs":
        lost = truncated & ((number < 0) | (number < tl.load(num_written) - FINALS))
        after_row = tl.where(truncated, -1 - tl.maximum(number, 0) % FINALS, after_row)
    else:
        lost = truncated & (code <= CUT)
        after_row = tl.where(truncated, last, after_row)
    if TIMEOUT == "none":
        over = over | truncated
    tl.store(after + lane, after_row, mask=valid)
    tl.store(total + lane, sum_of_rewards, mask=valid)
    tl.store(discount + lane, tl.where(over, 0.0, factor), mask=valid)
    tl.store(weight + lane, tl.where(lost, 0.0, 1.0), mask=valid)


def read_windows(
    outcomes: Outcomes, start: Tensor, env: Tensor, gamma: float, n_step: int, timeout: Timeout, num_finals: int,
    drawn: bool = False,
) -> Windows:  # fmt: skip
    """See ``replay_rows.read_windows``."""
    rows, envs = outcomes.reward.shape
    begin, after = torch.empty_like(start), torch.empty_like(start)
    reward, discount, weight = (torch.empty_like(start, dtype=torch.float32) for _ in range(3))
    _window_kernel[(num_blocks(len(start), _BLOCK),)](
        start, env, *outcomes, begin, after, reward, discount, weight, len(start), rows, envs, num_finals,
        gamma, n_step, timeout, drawn, GOING, TERMINATED, CUT, _BLOCK, num_warps=2,
    )  # fmt: skip
    return Windows(begin, after, reward, discount, weight)


@triton.jit
def _ends_kernel(
    ring: array, side: array, begin: array, after: array, obs: array, next_obs: array, B: array,
    W: constexpr, ROWS: constexpr, COLS: constexpr,
) -> None:  # fmt: skip
    """Make obs [B, W] = ring[begin] and next_obs [B, W] = ring[after], or where that is negative side[-1 - after]."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    valid = row < B
    inside = valid[:, None] & (col < W)[None, :]
    at = row.to(tl.int64)[:, None] * W + col[None, :]
    first = tl.load(begin + row, mask=valid, other=0)
    last = tl.load(after + row, mask=valid, other=0)
    stored = inside & (last >= 0)[:, None]
    aside = inside & (last < 0)[:, None]
    kind: constexpr = obs.dtype.element_ty
    here = tl.load(ring + first[:, None] * W + col[None, :], mask=inside, other=0.0).to(kind)
    there = tl.load(ring + last[:, None] * W + col[None, :], mask=stored, other=0.0).to(kind)
    kept = tl.load(side + (-1 - last)[:, None] * W + col[None, :], mask=aside, other=0.0).to(kind)
    tl.store(obs + at, here, mask=inside)
    tl.store(next_obs + at, tl.where(aside, kept, there), mask=inside)


def read_ends(ring: Tensor, side: Tensor, windows: Windows) -> tuple[Tensor, Tensor]:
    """See ``replay_rows.read_ends``."""
    device = windows.begin.device
    size, width = len(windows.begin), ring.shape[-1]
    obs, next_obs = (torch.empty(size, width, dtype=read_as(ring), device=device) for _ in range(2))
    cols = min(_MOST_COLUMNS, power_of_two(width, 1))
    rows = max(1, 1024 // cols)
    _ends_kernel[(num_blocks(size, rows), num_blocks(width, cols))](
        ring, side, windows.begin, windows.after, obs, next_obs, size, width, rows, cols
    )
    return obs, next_obs


@triton.jit
def _outcome_kernel(
    reward: array, terminated: array, truncated: array, rewards: array, ends: array, num_written: array, newest: array,
    size: array, level: array, slot: array, place: array, C: array, FINALS: array,
    N: constexpr, FINAL: constexpr, GOING: constexpr, TERMINATED: constexpr, HIDDEN: constexpr, BROKEN: constexpr,
    LIMIT: constexpr, BLOCK: constexpr,
) -> None:  # fmt: skip
    """Store what came of a vector step and number its final observations in the order of envs; in one program."""
    logs = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, N, BLOCK):
        env = first + tl.arange(0, BLOCK)
        size_of = tl.abs(tl.load(reward + env, mask=env < N, other=0.0))
        logs += tl.where((size_of > 1) & (size_of < float("inf")), tl.log(tl.where(size_of > 1, size_of, 1.0)), 0.0)
    steps = tl.minimum(tl.load(level + 1) + 1, 1000.0)
    usual = tl.load(level)
    usual += (tl.sum(logs, 0) / N - usual) / steps
    limit = LIMIT * tl.exp(usual)
    row = tl.load(newest)
    written = tl.load(num_written)
    for first in range(0, N, BLOCK):
        env = first + tl.arange(0, BLOCK)
        valid = env < N
        over = tl.load(terminated + env, mask=valid, other=0) != 0
        cut = (tl.load(truncated + env, mask=valid, other=0) != 0) & ~over
        kept = tl.where(cut & FINAL, 1, 0)
        number = written + tl.cumsum(kept, 0) - 1
        code = tl.where(over, TERMINATED, tl.where(cut, HIDDEN, GOING))
        earned = tl.load(reward + env, mask=valid, other=0.0)
        sound = tl.abs(earned) <= limit  # false for NaN, too
        tl.store(ends + row * N + env, tl.where(sound, tl.where(kept > 0, number, code), BROKEN), mask=valid)
        tl.store(rewards + row * N + env, tl.where(sound, earned, 0.0), mask=valid)
        tl.store(slot + env, tl.where(kept > 0, number % FINALS, FINALS), mask=valid)
        written += tl.sum(kept, 0)
    count = tl.load(size)
    tl.debug_barrier()  # until every warp has read what is overwritten now
    tl.store(place, row)
    tl.store(newest, (row + 1) % C)
    tl.store(size, tl.minimum(count + 1, C))
    tl.store(num_written, written)
    tl.store(level, usual)
    tl.store(level + 1, steps)


def write_outcomes(
    outcomes: Outcomes, level: Tensor, num_finals: int, reward: Tensor, terminated: Tensor, truncated: Tensor,
    final: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See ``replay_rows.write_outcomes``."""
    rows, envs = outcomes.reward.shape
    slot = torch.empty(envs, dtype=torch.int64, device=reward.device)
    place = torch.empty_like(outcomes.row)
    # Bytes, as Triton wants booleans.
    flags = (flag.contiguous().view(torch.uint8) for flag in (terminated, truncated))
    _outcome_kernel[(1,)](
        reward.contiguous(), *flags, *outcomes, level, slot, place, rows, num_finals,
        envs, final, GOING, TERMINATED, HIDDEN, BROKEN, REWARD_LIMIT, min(4096, power_of_two(envs, 128)), num_warps=8,
    )  # fmt: skip
    return place, slot


@triton.jit
def _row_kernel(
    value: array, ring: array, place: array, final: array, slot: array, side: array, end: array, N: array, C: array,
    FINALS: array, W: constexpr, LED_TO: constexpr, GOING: constexpr, CUT: constexpr, BROKEN: constexpr,
    LIMIT: constexpr, BLOCK: constexpr,
) -> None:  # fmt: skip
    """Make ring[place] = value [N, W], where slot [N] is less than FINALS side[slot] = final [N, W], and mark steps."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < N * W
    row = tl.load(place)
    if tl.program_id(1) == 0:
        number = tl.load(value + at, mask=inside, other=0.0).to(tl.float32)
        sound = tl.abs(number) < LIMIT  # false for NaN, too
        tl.store(ring + row * N * W + at, tl.where(sound, number, 0.0), mask=inside)
        tl.store(end + row * N + at // W, BROKEN, mask=inside & ~sound)
        if LED_TO:
            before = end + (row + C - 1) % C * N + at // W
            code = tl.load(before, mask=inside & ~sound, other=CUT)
            tl.store(before, CUT, mask=code == GOING)
    else:
        there = tl.load(slot + at // W, mask=inside, other=FINALS)
        wanted = inside & (there < FINALS)
        last = tl.load(final + at, mask=wanted, other=0.0).to(tl.float32)
        known = tl.abs(last) < LIMIT
        tl.store(side + there * W + at % W, tl.where(known, last, 0.0), mask=wanted)
        tl.store(end + row * N + at // W, BROKEN, mask=wanted & ~known)


def write_rows(
    ring: Tensor, value: Tensor, place: Tensor, end: Tensor, led_to: bool = False, finals: Finals | None = None
) -> None:
    """See ``replay_rows.write_rows``."""
    envs, width = value.shape
    value = value.contiguous()
    aside = (value, place, ring) if finals is None else (finals.value.contiguous(), finals.slot, finals.ring)
    _row_kernel[(num_blocks(envs * width, _WRITE_BLOCK), 1 if finals is None else 2)](
        value, ring, place, *aside, end, envs, len(end), len(aside[-1]) - 1, width, led_to, GOING, CUT, BROKEN,
        UNUSABLE, _WRITE_BLOCK,
    )  # fmt: skip
