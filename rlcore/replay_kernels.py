"""The replay memory as kernels: storing a vector step, where windows end and what they earn, observations around them.

All functions run Triton kernels on CUDA tensors and plain PyTorch elsewhere; see ``rlcore.launcher`` for what holds of
all of them. Written out, a vector step is some thirty launches and a window eighty; see ``Replay`` for what is stored.

Rings of observations and actions may lie in host memory that a GPU can address (``rlcore.memory``): the kernels are the
same, only that rows then come over the bus. Where kernels run is therefore asked of tensors that are never in a ring.

What is not finite is stored as 0, which spoils no loss, and its step as ``BROKEN``: no window that reads it counts. So
are rewards that are too large for anything but a fault, by the rule of ``normalization.broken_rewards``.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlcore.launcher import array, arrays, available, constexpr, kernel, nothing, num_blocks, power_of_two, tl
from rlcore.normalization import REWARD_LIMIT, UNUSABLE, reward_limit

Timeout = Literal["final_obs", "value", "none"]

GOING, TERMINATED, HIDDEN, CUT, BROKEN = -1, -2, -3, -4, -5
"""What a step led to, where it is not the number of the final observation of a truncated one: the episode goes on; it
was terminated; it was truncated and its final observation is not known; the next row does not follow, since the env was
reset in mid-episode or the observation there is not finite; or the step itself has a number that is not finite."""

_BLOCK = 64
_WRITE_BLOCK = 1024


class Outcomes(NamedTuple):
    """What a replay memory knows of its steps, beside observations and actions."""

    reward: Tensor  # [C, N]
    end: Tensor  # [C, N] int32, number of the final observation of a truncated step, or one of the codes above
    num_written: Tensor  # [1], final observations so far
    row: Tensor  # [1], where the next step goes
    size: Tensor  # [1], rows written


class Windows(NamedTuple):
    """Windows of up to n steps of one episode, B of them; positions are ``row * N + env``."""

    begin: Tensor  # [B], position of the first step
    after: Tensor  # [B], position of the observation after the last step; -1 - slot for a final observation
    reward: Tensor  # [B], sum of gamma^i r_i
    discount: Tensor  # [B], gamma^(steps taken), 0 where nothing follows
    weight: Tensor  # [B], 0 where the observation after it has been lost or a step is broken, else 1


def _window_kernel(
    start: array, env: array, reward: array, end: array, num_written: array, newest: array, size: array,
    begin: array, after: array, total: array, discount: array, weight: array,
    B: array, C: array, N: array, FINALS: array,
    GAMMA: constexpr, STEPS: constexpr, TIMEOUT: constexpr, DRAWN: constexpr,
    GOES_ON: constexpr, OVER: constexpr, RESET: constexpr, BLOCK: constexpr,
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
    code = tl.full((BLOCK,), GOES_ON, tl.int32)  # what the window's last step led to
    for i in tl.static_range(STEPS):
        here = (row + i) % C * N + column
        earned = tl.load(reward + here, mask=valid, other=0.0)
        led_to = tl.load(end + here, mask=valid, other=GOES_ON)
        last = tl.where(going, here, last)
        code = tl.where(going, led_to, code)
        sum_of_rewards += tl.where(going, factor * earned, 0.0)
        factor = tl.where(going, factor * GAMMA, factor)
        going = going & (led_to == GOES_ON)
    stopped = code == OVER
    cut = (code != GOES_ON) & (code != OVER)
    number = code.to(tl.int64)
    follows = (last + N) % (C * N)
    if TIMEOUT == "final_obs":
        lost = cut & ((number < 0) | (number < tl.load(num_written) - FINALS))
        follows = tl.where(cut, -1 - tl.maximum(number, 0) % FINALS, follows)
    else:
        lost = cut & (code <= RESET)
        follows = tl.where(cut, last, follows)
    if TIMEOUT == "none":
        stopped = stopped | cut
    tl.store(after + lane, follows, mask=valid)
    tl.store(total + lane, sum_of_rewards, mask=valid)
    tl.store(discount + lane, tl.where(stopped, 0.0, factor), mask=valid)
    tl.store(weight + lane, tl.where(lost, 0.0, 1.0), mask=valid)


def read_windows(
    outcomes: Outcomes, start: Tensor, env: Tensor, gamma: float, n_step: int, timeout: Timeout, num_finals: int,
    drawn: bool = False,
) -> Windows:  # fmt: skip
    """Follow windows of steps to their ends.

    Args:
        outcomes: of all steps in memory.
        start: ``[B]``, row in which each window begins; or if ``drawn`` random numbers from 0 to 2**62 that choose
            among the rows whose window and next observation have been written.
        env: ``[B]``.
        gamma: discount per step.
        n_step: longest window.
        timeout: what follows a truncated step: its final observation, the one before it, or nothing.
        num_finals: final observations that are kept.
        drawn: see ``start``.
    """
    if not available(start.device):
        return read_windows_reference(outcomes, start, env, gamma, n_step, timeout, num_finals, drawn)
    rows, envs = outcomes.reward.shape
    begin, after = torch.empty_like(start), torch.empty_like(start)
    reward, discount, weight = (torch.empty_like(start, dtype=torch.float32) for _ in range(3))
    kernel(_window_kernel)[(num_blocks(len(start), _BLOCK),)](
        start, env, *outcomes, begin, after, reward, discount, weight, len(start), rows, envs, num_finals,
        gamma, n_step, timeout, drawn, GOING, TERMINATED, CUT, _BLOCK, num_warps=2,
    )  # fmt: skip
    return Windows(begin, after, reward, discount, weight)


def read_windows_reference(
    outcomes: Outcomes, start: Tensor, env: Tensor, gamma: float, n_step: int, timeout: Timeout, num_finals: int,
    drawn: bool = False,
) -> Windows:  # fmt: skip
    """Do as ``read_windows`` does in plain PyTorch, or NumPy."""
    rows, envs = outcomes.reward.shape
    xp, start, env, rewards, ends, num_written, row, size = arrays(start, env, *outcomes)
    rewards, ends = rewards.reshape(-1), ends.reshape(-1)
    if drawn:
        room = size - n_step
        start = (row - size + start % (room + (room < 1) * (1 - room))) % rows
    begin = start * envs + env  # [B]
    last, code, reward = begin, ends[begin], rewards[begin]
    going, discount = code == GOING, xp.full_like(reward, gamma)  # going: the window has not ended before the next step
    for i in range(1, n_step):
        here = (start + i) % rows * envs + env  # [B]
        led_to = ends[here]
        last, code = xp.where(going, here, last), xp.where(going, led_to, code)
        reward += xp.where(going, discount * rewards[here], 0.0)
        discount = xp.where(going, discount * gamma, discount)
        going = going & (led_to == GOING)
    terminated = code == TERMINATED
    truncated = ~(going | terminated)
    after = (last + envs) % (rows * envs)
    if timeout == "final_obs":
        lost = truncated & ((code < 0) | (code < num_written - num_finals))
        after = xp.where(truncated, -1 - code * (code > 0) % num_finals, after)
    else:
        lost = truncated & (code <= CUT)
        after = xp.where(truncated, last, after)
    over = terminated | truncated if timeout == "none" else terminated
    found = begin, after, reward, xp.where(over, 0.0, discount), xp.where(lost, 0.0, xp.ones_like(reward))
    return Windows(*map(torch.as_tensor, found))


def _ends_kernel(
    ring: array, side: array, begin: array, after: array, obs: array, next_obs: array, B: array,
    W: constexpr, ROWS: constexpr, COLS: constexpr,
) -> None:  # fmt: skip
    """Make obs [B, W] = ring[begin] and next_obs [B, W] = ring[after], or where that is negative side[-1 - after]."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, COLS)
    valid = row < B
    inside = valid[:, None] & (col < W)[None, :]
    at = row.to(tl.int64)[:, None] * W + col[None, :]
    first = tl.load(begin + row, mask=valid, other=0)
    last = tl.load(after + row, mask=valid, other=0)
    stored = inside & (last >= 0)[:, None]
    aside = inside & (last < 0)[:, None]
    here = tl.load(ring + first[:, None] * W + col[None, :], mask=inside, other=0.0).to(tl.float32)
    there = tl.load(ring + last[:, None] * W + col[None, :], mask=stored, other=0.0).to(tl.float32)
    kept = tl.load(side + (-1 - last)[:, None] * W + col[None, :], mask=aside, other=0.0).to(tl.float32)
    tl.store(obs + at, here, mask=inside)
    tl.store(next_obs + at, tl.where(aside, kept, there), mask=inside)


def read_ends(ring: Tensor, side: Tensor, windows: Windows) -> tuple[Tensor, Tensor]:
    """Read the observations at both ends of windows.

    Args:
        ring: ``[C, N, O]``, float32 or bfloat16.
        side: ``[F, O]``, final observations by slot.
        windows: where.

    Returns:
        Observations before the first and after the last step, ``[B, O]`` each, float32, where ``windows`` is.
    """
    device = windows.begin.device
    if not available(device):
        return read_ends_reference(ring, side, windows)
    size, width = len(windows.begin), ring.shape[-1]
    obs, next_obs = (torch.empty(size, width, device=device) for _ in range(2))
    cols = power_of_two(width, 1)
    rows = max(1, 1024 // cols)
    kernel(_ends_kernel)[(num_blocks(size, rows),)](
        ring, side, windows.begin, windows.after, obs, next_obs, size, width, rows, cols
    )
    return obs, next_obs


def read_ends_reference(ring: Tensor, side: Tensor, windows: Windows) -> tuple[Tensor, Tensor]:
    """Do as ``read_ends`` does in plain PyTorch."""
    flat = ring.flatten(0, 1)
    aside = windows.after < 0  # [B]
    if nothing(aside):
        return flat.index_select(0, windows.begin).float(), flat.index_select(0, windows.after).float()
    there = flat.index_select(0, windows.after.clamp(min=0))
    kept = side.index_select(0, (-1 - windows.after).clamp(min=0))
    return flat.index_select(0, windows.begin).float(), torch.where(aside.unsqueeze(1), kept, there).float()


# --- Writing ---------------------------------------------------------------------------------------------------------


def _outcome_kernel(
    reward: array, terminated: array, truncated: array, rewards: array, ends: array, num_written: array, newest: array,
    size: array, level: array, slot: array, place: array, C: array, FINALS: array,
    N: constexpr, FINAL: constexpr, GOES_ON: constexpr, OVER: constexpr, UNKNOWN: constexpr, SPOILED: constexpr,
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
        code = tl.where(over, OVER, tl.where(cut, UNKNOWN, GOES_ON))
        earned = tl.load(reward + env, mask=valid, other=0.0)
        sound = tl.abs(earned) <= limit  # false for NaN, too
        tl.store(ends + row * N + env, tl.where(sound, tl.where(kept > 0, number, code), SPOILED), mask=valid)
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
    """Store what came of one vector step, and move the memory on by a row.

    Args:
        outcomes: of all steps in memory; changed in place.
        level: ``[2]``, see ``normalization.reward_limit``; changed in place.
        num_finals: final observations that are kept.
        reward: ``[N]``.
        terminated: ``[N]``.
        truncated: ``[N]``; counts where the step was not terminated as well.
        final: whether final observations are known.

    Returns:
        Row that the step takes, ``[1]``, and slot of every env's final observation, ``[N]``, or ``num_finals`` where
        there is none.
    """
    if not available(reward.device):
        return write_outcomes_reference(outcomes, level, num_finals, reward, terminated, truncated, final)
    rows, envs = outcomes.reward.shape
    slot = torch.empty(envs, dtype=torch.int64, device=reward.device)
    place = torch.empty_like(outcomes.row)
    # Bytes, as Triton wants booleans.
    flags = (flag.contiguous().view(torch.uint8) for flag in (terminated, truncated))
    kernel(_outcome_kernel)[(1,)](
        reward.contiguous(), *flags, *outcomes, level, slot, place, rows, num_finals,
        envs, final, GOING, TERMINATED, HIDDEN, BROKEN, REWARD_LIMIT, min(4096, power_of_two(envs, 128)), num_warps=8,
    )  # fmt: skip
    return place, slot


def write_outcomes_reference(
    outcomes: Outcomes, level: Tensor, num_finals: int, reward: Tensor, terminated: Tensor, truncated: Tensor,
    final: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Do as ``write_outcomes`` does in plain PyTorch, or NumPy."""
    limit, place = reward_limit(level, reward), outcomes.row.clone()
    xp, rewards, ends, num_written, row, size, *step = arrays(*outcomes, reward, terminated, truncated, limit)
    reward, terminated, truncated, limit = step
    rows = len(rewards)
    cut = truncated & ~terminated  # [N]
    sound = abs(reward) <= limit
    if xp is np and sound.all() and not (cut | terminated).any():  # the same in few operators, as is usual
        end, slot = GOING, np.full(len(reward), num_finals)
    else:
        count = cut.cumsum(0)  # [N]
        number = num_written + (count - 1) if final else xp.full_like(count, HIDDEN)
        end = xp.where(sound, xp.where(cut, number, xp.where(terminated, TERMINATED, GOING)), BROKEN)
        slot = xp.where(cut, number % num_finals, num_finals) if final else xp.full_like(count, num_finals)
        reward = xp.where(sound, reward, 0.0)
        if final:
            num_written += count[-1]
    _put(ends, place, end)
    _put(rewards, place, reward)
    row += 1
    row %= rows
    size += size < rows
    return place, torch.as_tensor(slot)


def _put(ring: Any, place: Tensor, value: Any) -> None:
    """Write a row ``[N, ...]`` into a ring ``[C, N, ...]``, both as ``launcher.arrays`` has them or both tensors."""
    if not place.is_cpu:
        ring.index_copy_(0, place, value.to(ring.dtype).unsqueeze(0))
    elif isinstance(ring, Tensor):
        ring[place.item()].copy_(value)
    else:
        ring[place.item()] = value


def _row_kernel(
    value: array, ring: array, place: array, final: array, slot: array, side: array, end: array, N: array, C: array,
    FINALS: array, W: constexpr, LED_TO: constexpr, GOES_ON: constexpr, RESET: constexpr, SPOILED: constexpr,
    LIMIT: constexpr, BLOCK: constexpr,
) -> None:  # fmt: skip
    """Make ring[place] = value [N, W], where slot [N] is less than FINALS side[slot] = final [N, W], and mark steps."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < N * W
    row = tl.load(place)
    if tl.program_id(1) == 0:
        number = tl.load(value + at, mask=inside, other=0.0)
        sound = tl.abs(number) < LIMIT  # false for NaN, too
        tl.store(ring + row * N * W + at, tl.where(sound, number, 0.0), mask=inside)
        tl.store(end + row * N + at // W, SPOILED, mask=inside & ~sound)
        if LED_TO:
            before = end + (row + C - 1) % C * N + at // W
            code = tl.load(before, mask=inside & ~sound, other=RESET)
            tl.store(before, RESET, mask=code == GOES_ON)
    else:
        there = tl.load(slot + at // W, mask=inside, other=FINALS)
        wanted = inside & (there < FINALS)
        last = tl.load(final + at, mask=wanted, other=0.0)
        known = tl.abs(last) < LIMIT
        tl.store(side + there * W + at % W, tl.where(known, last, 0.0), mask=wanted)
        tl.store(end + row * N + at // W, SPOILED, mask=wanted & ~known)


class Finals(NamedTuple):
    """Final observations of one vector step, and where they go."""

    value: Tensor  # [N, W]
    slot: Tensor  # [N], F where the row means nothing
    ring: Tensor  # [F + 1, W]; what the last row holds means nothing


def write_rows(
    ring: Tensor, value: Tensor, place: Tensor, end: Tensor, led_to: bool = False, finals: Finals | None = None
) -> None:
    """Store a tensor of one vector step, and with it that of the episodes which ended.

    Args:
        ring: ``[C, N, W]``, float32 or bfloat16.
        value: ``[N, W]``.
        place: ``[1]``, row that it takes.
        end: ``[C, N]``, what steps led to, of ``Outcomes``; changed where a number is not finite, or not below
            ``UNUSABLE``, which is stored as 0.
        led_to: whether the value is what the row before led to, as an observation is.
        finals: what is stored aside.
    """
    if not available(value.device):
        write_rows_reference(ring, value, place, end, led_to, finals)
        return
    envs, width = value.shape
    value = value.contiguous()
    aside = (value, place, ring) if finals is None else (finals.value.contiguous(), finals.slot, finals.ring)
    kernel(_row_kernel)[(num_blocks(envs * width, _WRITE_BLOCK), 1 if finals is None else 2)](
        value, ring, place, *aside, end, envs, len(end), len(aside[-1]) - 1, width, led_to, GOING, CUT, BROKEN,
        UNUSABLE, _WRITE_BLOCK,
    )  # fmt: skip


def write_rows_reference(
    ring: Tensor, value: Tensor, place: Tensor, end: Tensor, led_to: bool = False, finals: Finals | None = None
) -> None:
    """Do as ``write_rows`` does in plain PyTorch."""
    if (broken := _broken(value)) is not None:
        value = value.where(value.abs() < UNUSABLE, 0.0)
        _mark(end, place, broken, BROKEN)
        if led_to:
            before = (place - 1) % len(end)
            _mark(end, before, broken & (end.index_select(0, before) == GOING), CUT)
    _put(ring, place, value)
    if finals is not None and not nothing(finals.slot < len(finals.ring) - 1):
        last = finals.value
        if (broken := _broken(last)) is not None:
            last = last.where(last.abs() < UNUSABLE, 0.0)
            _mark(end, place, broken & (finals.slot < len(finals.ring) - 1), BROKEN)
        finals.ring.index_copy_(0, finals.slot, last.to(finals.ring.dtype))


def _broken(value: Tensor) -> Tensor | None:
    """Tell which rows ``[N]`` of ``[N, ...]`` have a number that cannot be used; None where the host sees: none."""
    # On the CPU nothing runs ahead of the host, so that it may look; where squares come to much it looks closer.
    if value.is_cpu and np.vdot(numbers := value.numpy(), numbers) < UNUSABLE**2:
        return None
    return ~(value.abs() < UNUSABLE).view(len(value), -1).all(1)


def _mark(end: Tensor, place: Tensor, where: Tensor, code: int) -> None:
    end.index_copy_(0, place, end.index_select(0, place).masked_fill(where, code))
