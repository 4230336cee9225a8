"""What delays, noise and biases make of rows of numbers: the arithmetic of ``rlcore.envs.disturb``."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlcore.dispatch import accelerated


class Lag(NamedTuple):
    """How late each of N envs is, worked out when a delay is set; ``[0]`` of a queue is the latest."""

    around: Tensor  # int64 [2, N], the steps around; the same where nothing lies between
    fraction: Tensor  # [N, 1], of the way to the second
    whole: Tensor | None  # int64 [1, N], the nearest step; where something comes late by whole steps

    def set(self, steps: Tensor) -> None:
        """Be late by ``steps`` ``[N]``, which the queue holds."""
        near, far = self.around
        near.copy_(steps)  # cut off
        far.copy_(steps.ceil())
        torch.sub(steps, near, out=self.fraction[:, 0])
        if self.whole is not None:
            self.whole[0].copy_(steps + 0.5)


def interpolates(queue: Tensor) -> bool:
    """Whether rows ``[delay + 1, N, ...]`` come late by fractions of steps: vectors do, images and choices do not."""
    return queue.dim() == 3 and queue.dtype == torch.float32


def delayed(queue: Tensor, lag: Lag) -> Tensor:
    """Rows of a queue ``[delay + 1, N, ...]``, by the delay of each env."""
    if not interpolates(queue):
        assert lag.whole is not None
        flat = queue.reshape(*queue.shape[:2], -1)  # [delay + 1, N, O]
        return flat.gather(0, lag.whole[..., None].expand(-1, -1, flat.shape[2])).reshape(queue.shape[1:])
    near, far = queue.gather(0, lag.around[..., None].expand(-1, -1, queue.shape[2])).unbind()
    return torch.lerp(near, far, lag.fraction)


def _vectors(queue: Tensor, *_: object) -> bool:
    return interpolates(queue) and queue.is_contiguous()


@accelerated("disturb:sent", when=_vectors)
def sent(queue: Tensor, new: Tensor, fresh: Tensor, lag: Lag) -> Tensor:
    """What leaves a queue ``[delay + 1, N, ...]`` that ``new`` ``[N, ...]`` goes into, in place.

    Where ``fresh`` ``[N]``, all of the queue becomes ``new``.
    """
    torch.where(like(fresh, new), new, torch.cat((new[None], queue[:-1])), out=queue)
    return delayed(queue, lag)


@accelerated("disturb:late", when=_vectors)
def late(queue: Tensor, now: Tensor, final: Tensor | None, begun: Tensor, lag: Lag) -> tuple[Tensor, Tensor]:
    """What is seen of observations after resets, and before; puts them in the queue ``[delay + 1, N, ...]`` in place.

    Args:
        queue: latest first.
        now: after resets, ``[N, ...]``.
        final: before, where that is known.
        begun: where an episode has begun, ``[N]``.
        lag: of each env.
    """
    new = like(begun, now)
    last = now if final is None else torch.where(new, final, now)
    line = torch.cat((last[None], queue[:-1]))
    seen = delayed(line, lag)
    torch.where(new, now, line, out=queue)
    return torch.where(new, now, seen), seen


class Errors(NamedTuple):
    """Of a sensor in each of N envs, ``[N, O]``; None where there are none of a kind."""

    sigma: Tensor | None
    """Standard deviation of its noise."""
    bias: Tensor | None
    """Largest of its offset."""
    unit: Tensor | None
    """The offset of the episode in parts of that, -1..1; changed in place."""

    def on(self, raw: Tensor, white: Tensor | None) -> Tensor:
        """What it shows of ``raw`` ``[N, O]``, given standard normal numbers."""
        off = raw if self.bias is None or self.unit is None else torch.addcmul(raw, self.bias, self.unit)
        return off if self.sigma is None or white is None else torch.addcmul(off, self.sigma, white)


def _rows(raw: Tensor, *_: object) -> bool:
    return raw.dtype == torch.float32


@accelerated("disturb:shown", when=_rows)
def shown(
    raw: Tensor, final: Tensor | None, errors: Errors, white: Tensor | None, drawn: Tensor | None, begun: Tensor
) -> tuple[Tensor, Tensor | None]:
    """What a sensor shows of ``raw`` ``[N, O]`` after resets, and of ``final`` before.

    Args:
        raw: as it is.
        final: where that is known.
        errors: of the sensor; the offsets become ``drawn`` ``[N, O]`` where an episode has ``begun`` ``[N]``.
        white: standard normal numbers, where there is noise.
        drawn: uniform in -1..1, where there is a bias.
        begun: where an episode has begun.
    """
    before = None if final is None else errors.on(final, white)
    if errors.unit is not None and drawn is not None:
        torch.where(begun[:, None], drawn, errors.unit, out=errors.unit)
    return errors.on(raw, white), before


def like(mask: Tensor, value: Tensor) -> Tensor:
    """A mask ``[N]`` that fits a tensor ``[N, ...]``."""
    return mask.view(-1, *[1] * (value.dim() - 1))
