"""What a replay memory stores of a vector step, where windows end and what they earn, and observations around them.

See ``Replay`` for what is stored. Rings of observations and actions may lie in host memory that a GPU can address
(``rlcore.device_memory``). Where kernels run is therefore asked of tensors that are never in a ring.

What is not finite is stored as 0, which spoils no loss, and its step as ``BROKEN``: no window that reads it counts. So
are rewards that are too large for anything but a fault, by the rule of ``normalization.broken_rewards``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlcore.arrays import arrays, none_set
from rlcore.dispatch import accelerated
from rlcore.normalization import UNUSABLE, reward_limit
from rlcore.types import Timeout

GOING, TERMINATED, HIDDEN, CUT, BROKEN = -1, -2, -3, -4, -5
"""What a step led to, where it is not the number of the final observation of a truncated one: the episode goes on; it
was terminated; it was truncated and its final observation is not known; the next row does not follow, since the env was
reset in mid-episode or the observation there is not finite; or the step itself has a number that is not finite."""


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


@accelerated("replay:read_windows", of=1)
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
    after = (last + envs) % (rows * envs)
    if xp is np and going.all():  # the same in few operators, as is usual
        return Windows(*map(torch.as_tensor, (begin, after, reward, discount, np.ones_like(reward))))
    terminated = code == TERMINATED
    truncated = ~(going | terminated)
    if timeout == "final_obs":
        lost = truncated & ((code < 0) | (code < num_written - num_finals))
        after = xp.where(truncated, -1 - code * (code > 0) % num_finals, after)
    else:
        lost = truncated & (code <= CUT)
        after = xp.where(truncated, last, after)
    over = terminated | truncated if timeout == "none" else terminated
    found = begin, after, reward, xp.where(over, 0.0, discount), xp.where(lost, 0.0, xp.ones_like(reward))
    return Windows(*map(torch.as_tensor, found))


@accelerated("replay:read_ends", of=2)
def read_ends(ring: Tensor, side: Tensor, windows: Windows) -> tuple[Tensor, Tensor]:
    """Read the observations at both ends of windows.

    Args:
        ring: ``[C, N, O]``, float32, bfloat16 or uint8.
        side: ``[F, O]``, final observations by slot.
        windows: where.

    Returns:
        Observations before the first and after the last step, ``[B, O]`` each, uint8 as they are, else float32, where
        ``windows`` is.
    """
    flat, kind = ring.flatten(0, 1), read_as(ring)
    aside = windows.after < 0  # [B]
    if none_set(aside):
        return flat.index_select(0, windows.begin).to(kind), flat.index_select(0, windows.after).to(kind)
    there = flat.index_select(0, windows.after.clamp(min=0))
    kept = side.index_select(0, (-1 - windows.after).clamp(min=0))
    return flat.index_select(0, windows.begin).to(kind), torch.where(aside.unsqueeze(1), kept, there).to(kind)


def read_as(ring: Tensor) -> torch.dtype:
    """Type of what is read from a ring."""
    return torch.uint8 if ring.dtype == torch.uint8 else torch.float32


def signal_sums(ring: Tensor, end: Tensor, windows: Windows, gammas: Tensor, n_step: int) -> Tensor:
    """Sum signals over the steps of windows, as ``read_windows`` sums rewards.

    Args:
        ring: ``[C, N, S]``, signals of all steps in memory.
        end: ``[C, N]``, of ``Outcomes``.
        windows: where.
        gammas: ``[S]``, discount per step of each.
        n_step: longest window.

    Returns:
        ``[B, S]``, sum of gamma^i s_i.
    """
    rows, envs = end.shape
    later = torch.arange(n_step, device=end.device).unsqueeze(1)  # [n, 1]
    here = (windows.begin + envs * later) % (rows * envs)  # [n, B]
    going = end.flatten()[here[:-1]] == GOING  # [n - 1, B], whether the next step is of the same episode
    taken = torch.cat([torch.ones_like(here[:1]), going.long().cumprod(0)])  # [n, B]
    factors = gammas**later  # [n, S]
    return (ring.flatten(0, 1)[here] * factors.unsqueeze(1) * taken.unsqueeze(-1)).sum(0)


@accelerated("replay:write_outcomes", of=3)
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


class Finals(NamedTuple):
    """Final observations of one vector step, and where they go."""

    value: Tensor  # [N, W]
    slot: Tensor  # [N], F where the row means nothing
    ring: Tensor  # [F + 1, W]; what the last row holds means nothing


@accelerated("replay:write_rows", of=1)
def write_rows(
    ring: Tensor, value: Tensor, place: Tensor, end: Tensor, led_to: bool = False, finals: Finals | None = None
) -> None:
    """Store a tensor of one vector step, and with it that of the episodes which ended.

    Args:
        ring: ``[C, N, W]``, float32, bfloat16 or uint8.
        value: ``[N, W]``, float32, or uint8 where the ring is.
        place: ``[1]``, row that it takes.
        end: ``[C, N]``, what steps led to, of ``Outcomes``; changed where a number is not finite, or not below
            ``UNUSABLE``, which is stored as 0.
        led_to: whether the value is what the row before led to, as an observation is.
        finals: what is stored aside.
    """
    if (broken := _broken(value)) is not None:
        value = value.where(value.abs() < UNUSABLE, 0.0)
        _mark(end, place, broken, BROKEN)
        if led_to:
            before = (place - 1) % len(end)
            _mark(end, before, broken & (end.index_select(0, before) == GOING), CUT)
    _put(ring, place, value)
    if finals is not None and not none_set(finals.slot < len(finals.ring) - 1):
        last = finals.value
        if (broken := _broken(last)) is not None:
            last = last.where(last.abs() < UNUSABLE, 0.0)
            _mark(end, place, broken & (finals.slot < len(finals.ring) - 1), BROKEN)
        finals.ring.index_copy_(0, finals.slot, last.to(finals.ring.dtype))


def _put(ring: Any, place: Tensor, value: Any) -> None:
    """Write a row ``[N, ...]`` into a ring ``[C, N, ...]``, both as ``arrays`` has them or both tensors."""
    if not place.is_cpu:
        ring.index_copy_(0, place, value.to(ring.dtype).unsqueeze(0))
    elif isinstance(ring, Tensor):
        ring[int(place.numpy()[0])].copy_(value)
    else:
        ring[place.numpy()[0]] = value


def _broken(value: Tensor) -> Tensor | None:
    """Tell which rows ``[N]`` of ``[N, ...]`` have a number that cannot be used; None where the host knows: none."""
    if value.dtype == torch.uint8:
        return None
    # On the CPU nothing runs ahead of the host, so that it may look; where squares come to much it looks closer.
    if value.is_cpu and np.vdot(numbers := value.numpy(), numbers) < UNUSABLE**2:
        return None
    return ~(value.abs() < UNUSABLE).view(len(value), -1).all(1)


def _mark(end: Tensor, place: Tensor, where: Tensor, code: int) -> None:
    end.index_copy_(0, place, end.index_select(0, place).masked_fill(where, code))
