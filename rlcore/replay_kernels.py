"""Reading the replay memory as kernels: where windows end and what they earn, and the observations around them.

Both functions run Triton kernels on CUDA tensors and plain PyTorch elsewhere; see ``rlcore.launcher`` for what holds of
all of them. Written out, the arithmetic of a window is some eighty launches; see ``Replay`` for what is stored.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from rlcore.launcher import available, kernel, num_blocks, power_of_two

Timeout = Literal["final_obs", "value", "none"]

NONE, CUT = -1, -2
"""In place of the number of a final observation: not stored; the env was reset in mid-episode."""

_BLOCK = 64

# As in rlcore.kernels: loading Triton puts its own names in their place.
constexpr = Any
array = Any
tl: Any = None
_HELPERS: tuple[str, ...] = ()


class Outcomes(NamedTuple):
    """What a replay memory knows of its steps, beside observations and actions."""

    reward: Tensor  # [C, N]
    terminated: Tensor  # [C, N]
    truncated: Tensor  # [C, N], and not terminated
    final: Tensor  # [C, N], number of the final observation, or NONE or CUT
    num_written: Tensor  # [1], final observations so far
    row: Tensor  # [1], where the next step goes
    size: Tensor  # [1], rows written


class Windows(NamedTuple):
    """Windows of up to n steps of one episode, B of them; positions are ``row * N + env``."""

    begin: Tensor  # [B], position of the first step
    after: Tensor  # [B], position of the observation after the last step; -1 - slot for a final observation
    reward: Tensor  # [B], sum of gamma^i r_i
    discount: Tensor  # [B], gamma^(steps taken), 0 where nothing follows
    weight: Tensor  # [B], 0 where the observation after it has been lost, else 1


def _window_kernel(
    start: array, env: array, reward: array, terminated: array, truncated: array, final: array, num_written: array,
    newest: array, size: array, begin: array, after: array, total: array, discount: array, weight: array,
    B: array, C: array, N: array, FINALS: array,
    GAMMA: constexpr, STEPS: constexpr, TIMEOUT: constexpr, DRAWN: constexpr, CUT_MARK: constexpr, BLOCK: constexpr,
) -> None:  # fmt: skip
    """One lane reads one window. All its steps are read at once: waiting for each end before the next is slower."""
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = lane < B
    row = tl.load(start + lane, mask=valid, other=0)
    column = tl.load(env + lane, mask=valid, other=0)
    if DRAWN:
        count = tl.load(size)
        row = (tl.load(newest) - count + C + row % tl.maximum(count - STEPS, 1)) % C
    end = row * N + column
    tl.store(begin + lane, end, mask=valid)
    sum_of_rewards = tl.zeros((BLOCK,), tl.float32)
    factor = sum_of_rewards + 1
    going, stopped, cut = valid, ~valid, ~valid
    for i in tl.static_range(STEPS):
        here = (row + i) % C * N + column
        earned = tl.load(reward + here, mask=valid, other=0.0)
        last = tl.load(terminated + here, mask=valid, other=0) != 0
        limit = tl.load(truncated + here, mask=valid, other=0) != 0
        end = tl.where(going, here, end)
        sum_of_rewards += tl.where(going, factor * earned, 0.0)
        factor = tl.where(going, factor * GAMMA, factor)
        stopped = stopped | (going & last)
        cut = cut | (going & limit)
        going = going & ~(last | limit)
    number = tl.load(final + end, mask=valid, other=0).to(tl.int64)
    follows = (end + N) % (C * N)
    if TIMEOUT == "final_obs":
        lost = cut & ((number < 0) | (number < tl.load(num_written) - FINALS))
        follows = tl.where(cut, -1 - tl.maximum(number, 0) % FINALS, follows)
    else:
        lost = cut & (number == CUT_MARK)
        follows = tl.where(cut, end, follows)
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
    # Bytes, as Triton wants booleans.
    flags = [ring.view(torch.uint8) for ring in (outcomes.terminated, outcomes.truncated)]
    kernel(_window_kernel)[(num_blocks(len(start), _BLOCK),)](
        start, env, outcomes.reward, *flags, outcomes.final, outcomes.num_written, outcomes.row, outcomes.size,
        begin, after, reward, discount, weight, len(start), rows, envs, num_finals,
        gamma, n_step, timeout, drawn, CUT, _BLOCK, num_warps=2,
    )  # fmt: skip
    return Windows(begin, after, reward, discount, weight)


def read_windows_reference(
    outcomes: Outcomes, start: Tensor, env: Tensor, gamma: float, n_step: int, timeout: Timeout, num_finals: int,
    drawn: bool = False,
) -> Windows:  # fmt: skip
    """Do as ``read_windows`` does in plain PyTorch."""
    rows, envs = outcomes.reward.shape
    if drawn:
        start = (outcomes.row - outcomes.size + start % (outcomes.size - n_step).clamp(min=1)) % rows
    reward = torch.zeros(start.shape, device=start.device)
    discount = torch.ones_like(reward)
    going = torch.ones_like(start, dtype=torch.bool)  # [B], the window has not ended before this step
    begin = start * envs + env  # [B]
    end, terminated, truncated = begin, ~going, ~going
    for i in range(n_step):
        here = (start + i) % rows * envs + env if i else begin  # [B]
        end = torch.where(going, here, end)
        reward += torch.where(going, discount * outcomes.reward.flatten().index_select(0, here), 0.0)
        discount *= torch.where(going, gamma, 1.0)
        terminated = terminated | (going & outcomes.terminated.flatten().index_select(0, here))
        truncated = truncated | (going & outcomes.truncated.flatten().index_select(0, here))
        going = going & ~(terminated | truncated)
    number = outcomes.final.flatten().index_select(0, end).long()  # [B]
    after = (end + envs) % (rows * envs)
    if timeout == "final_obs":
        lost = truncated & ((number < 0) | (number < outcomes.num_written - num_finals))
        after = torch.where(truncated, -1 - number.clamp(min=0) % num_finals, after)
    else:
        lost = truncated & (number == CUT)
        after = torch.where(truncated, end, after)
    over = terminated | truncated if timeout == "none" else terminated
    return Windows(begin, after, reward, discount.masked_fill(over, 0.0), (~lost).float())


def _ends_kernel(
    ring: array, final: array, begin: array, after: array, obs: array, next_obs: array, B: array,
    W: constexpr, ROWS: constexpr, COLS: constexpr,
) -> None:  # fmt: skip
    """Make obs [B, W] = ring[begin] and next_obs [B, W] = ring[after], or where that is negative final[-1 - after]."""
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
    kept = tl.load(final + (-1 - last)[:, None] * W + col[None, :], mask=aside, other=0.0).to(tl.float32)
    tl.store(obs + at, here, mask=inside)
    tl.store(next_obs + at, tl.where(aside, kept, there), mask=inside)


def read_ends(ring: Tensor, final: Tensor, windows: Windows) -> tuple[Tensor, Tensor]:
    """Read the observations at both ends of windows.

    Args:
        ring: ``[C, N, O]``, float32 or bfloat16.
        final: ``[F, O]``, final observations by slot.
        windows: where.

    Returns:
        Observations before the first and after the last step, ``[B, O]`` each, float32.
    """
    if not available(ring.device):
        return read_ends_reference(ring, final, windows)
    size, width = len(windows.begin), ring.shape[-1]
    obs, next_obs = (torch.empty(size, width, device=ring.device) for _ in range(2))
    cols = power_of_two(width, 1)
    rows = max(1, 1024 // cols)
    kernel(_ends_kernel)[(num_blocks(size, rows),)](
        ring, final, windows.begin, windows.after, obs, next_obs, size, width, rows, cols
    )
    return obs, next_obs


def read_ends_reference(ring: Tensor, final: Tensor, windows: Windows) -> tuple[Tensor, Tensor]:
    """Do as ``read_ends`` does in plain PyTorch."""
    flat = ring.flatten(0, 1)
    aside = windows.after < 0  # [B]
    there = flat.index_select(0, windows.after.clamp(min=0))
    kept = final.index_select(0, (-1 - windows.after).clamp(min=0))
    return flat.index_select(0, windows.begin).float(), torch.where(aside.unsqueeze(1), kept, there).float()
