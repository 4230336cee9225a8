"""Replay memory: a ring of vector steps on the env's device or in host memory, read as n-step transitions."""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlcore.arrays import arrays
from rlcore.capture import tree_map
from rlcore.config import ConfigError, check
from rlcore.device_memory import Needs, Room, pinned_zeros, size_text
from rlcore.dispatch import kernels_run
from rlcore.encoders import Shape
from rlcore.replay_rows import (
    BROKEN,
    CUT,
    GOING,
    Finals,
    Outcomes,
    Windows,
    read_ends,
    read_windows,
    signal_sums,
    write_outcomes,
    write_rows,
)
from rlcore.returns import room_for_timeouts
from rlcore.rollout import gather
from rlcore.types import Obs, Timeout

Home = Literal["env", "host"]

_log = logging.getLogger(__name__)


class Transitions(NamedTuple):
    """Samples of the replay memory, B of them; each spans up to n steps of one episode."""

    obs: Obs  # [B, O] by group, or [B, C, H, W]
    action: Tensor  # [B, A]
    reward: Tensor  # [B], sum of gamma^i r_i over the steps taken
    discount: Tensor  # [B], gamma^(steps taken), 0 where nothing follows
    next_obs: Obs  # as obs; what the discount multiplies the value of
    weight: Tensor  # [B], 1, or 0 where next_obs has been lost or a step is broken: no value is learned
    signals: Tensor | None = None  # [B, S], sums over the same steps, each column by its own discount; none: S is 0


class Batch(NamedTuple):
    """Transitions as networks read them, B of them: vectors of observations joined and normalized, images beside."""

    actor_obs: Tensor  # [B, O]
    critic_obs: Tensor  # [B, O], may be the actor's
    next_actor_obs: Tensor
    next_critic_obs: Tensor
    action: Tensor  # [B, A]
    reward: Tensor  # [B], normalized if so configured
    discount: Tensor  # [B]
    weight: Tensor  # [B], with a mean of 1 over all that were drawn together
    raw: Obs = {}  # noqa: RUF012  # images by group, [B, C, H, W]; never changed
    next_raw: Obs = {}  # noqa: RUF012
    costs: Tensor | None = None  # [B, K], of those with limits, in multiples of their size; none: K is 0


def minibatches(batch: Batch, number: int) -> list[Batch]:
    """Cut samples into so many equal parts, which are views."""
    if number == 1:
        return [batch]
    size = len(batch.weight) // number
    return [tree_map(batch, operator.itemgetter(slice(i * size, (i + 1) * size))) for i in range(number)]


class Replay:
    """The latest vector steps, time-major ``[C, N, ...]``, each observation stored once.

    The observation after a step is that of the next row. Where a step was truncated the next row begins another
    episode, so its true last observation goes to a second, smaller ring. Every shape is fixed and every position is a
    device tensor: writing and sampling can be recorded as CUDA graphs.

    Images of uint8 are stored and read as such.

    With ``home`` "host" on CUDA, observations and actions lie in pinned host memory, which kernels read and write over
    the bus in whole rows. Rewards and ends, 8 bytes a step that windows read one by one, stay on the device. Without
    CUDA both homes are the same.

    Args:
        capacity: transitions to hold; rounded down to whole vector steps C.
        num_envs: N.
        observation_sizes: size of each vector group to store.
        action_size: A.
        max_episode_length: steps of an episode, which tells how many final observations to expect.
        device: where it is written from and sampled to.
        dtype: how observations are stored, other than images of uint8.
        final_capacity: final observations to hold; None for what ``room_for_timeouts`` says.
        home: where observations and actions are stored.
        images: shape of each image group to store.
        image_types: of them, ``uint8`` or ``float32``; float32 where nothing is said.
        signals: discount per step of each signal to store, by name.

    Raises:
        ConfigError: the memory does not fit, or is too small for the number of envs, or the device cannot use that of
            the host.
    """

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        observation_sizes: Mapping[str, int],
        action_size: int,
        max_episode_length: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        final_capacity: int | None = None,
        home: Home = "env",
        images: Mapping[str, Shape] = MappingProxyType({}),
        image_types: Mapping[str, str] = MappingProxyType({}),
        signals: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self.num_rows, self.num_envs, self.device = capacity // num_envs, num_envs, device
        if self.num_rows < 2:
            raise ConfigError(f"buffer_size: {capacity!r} is not possible; {num_envs} envs need {2 * num_envs} or more")
        total = self.num_rows * num_envs
        expected = num_envs * room_for_timeouts(self.num_rows, max_episode_length)
        self.num_finals = min(total, expected if final_capacity is None else final_capacity)
        if self.num_finals < num_envs:
            raise ConfigError(f"final_capacity: {final_capacity!r} is not possible; set at least num_envs ({num_envs})")
        self.strata: int | None = None
        """Where several tasks lie side by side: each so many samples that follow one another are of envs in equal
        distances, shifted at random, so of every task as many as it has envs. None: each is of any env."""
        self.images = images
        widths = {**observation_sizes, **{group: math.prod(shape) for group, shape in images.items()}}
        kinds = {group: torch.uint8 if image_types.get(group) == "uint8" else dtype for group in widths}
        self.on_host = home == "host" and device.type == "cuda"
        if self.on_host and not kernels_run(device):
            raise ConfigError(
                f"buffer_device: 'host' is not possible; {device} reads host memory by Triton kernels, and Triton is "
                "not installed, does not run there or is switched off (RLCORE_KERNELS=0); install triton, or set "
                "buffer_device to env"
            )
        places = total + self.num_finals + 1
        seen = places * sum(width * kinds[group].itemsize for group, width in widths.items())
        halved = places * sum(width for group, width in widths.items() if kinds[group] == torch.float32)
        large, small = seen + total * 4 * action_size, total * (4 + 4 + 4 * len(signals))
        self.num_bytes = large + small
        needs = {torch.device("cpu"): large, device: small} if self.on_host else {device: self.num_bytes}
        others: dict[str, Needs] = {}  # what else could be set, and what that needs
        if halved:
            main = next(iter(needs))
            others["store_obs to bf16"] = {**needs, main: needs[main] - 2 * halved}
        if self.on_host:
            others["buffer_device to env"] = {device: self.num_bytes}
        elif device.type == "cuda" and kernels_run(device):
            others["buffer_device to host"] = {torch.device("cpu"): large, device: small}
        room = Room(capacity, 2 * num_envs, needs, others)
        room.check()
        if self.on_host:
            where = f"{size_text(large)} in pinned host memory and {size_text(small)} on {device}"
        else:
            where = f"{size_text(self.num_bytes)} on {device}"
        # Said before it is taken: what leaves too little for everything else can bring a machine to a standstill.
        _log.info("replay memory of %s transitions, %s", f"{total:,}", where)

        def zeros(*shape: int, kind: torch.dtype = torch.float32, pinned: bool = self.on_host) -> Tensor:
            try:
                return pinned_zeros(shape, kind, device) if pinned else torch.zeros(shape, dtype=kind, device=device)
            except (MemoryError, RuntimeError) as error:
                raise room.refused(error) from error

        shape = self.num_rows, num_envs
        # Images lie flat, so that all groups are written and read alike.
        self.obs = {group: zeros(*shape, width, kind=kinds[group]) for group, width in widths.items()}  # [C, N, O]
        self.action = zeros(*shape, action_size)  # [C, N, A]
        # One row more than is used: what has no slot may be written there, so that every write has the same shape.
        self.final_obs = {
            group: zeros(self.num_finals + 1, width, kind=kinds[group]) for group, width in widths.items()
        }
        self.reward = zeros(*shape, pinned=False)  # [C, N]
        self.end = zeros(*shape, kind=torch.int32, pinned=False).fill_(GOING)  # [C, N]; see ``Outcomes``
        self.signal_names = tuple(signals)
        self.signals = zeros(*shape, len(signals), pinned=False) if signals else None  # [C, N, S]
        self.signal_gammas = torch.tensor(list(signals.values()), device=device)  # [S]
        self.row = torch.zeros(1, dtype=torch.int64, device=device)  # where the next step goes
        self.size = torch.zeros(1, dtype=torch.int64, device=device)  # rows written, at most C
        self.num_written = torch.zeros(1, dtype=torch.int64, device=device)  # final observations so far
        self.level = torch.zeros(2, device=device)  # logarithm of what rewards usually are, and steps that it is from

    def write(
        self,
        obs: Obs,
        action: Tensor,
        reward: Tensor,
        terminated: Tensor,
        truncated: Tensor,
        final_obs: Obs | None,
        signals: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Store one vector step: observations, actions ``[N, A]`` and what the env answered; see ``types.Step``.

        Of signals those are stored whose discounts it was built with.

        A step that has a number which is not finite is broken, or a reward beyond 10,000 times the usual one: no window
        that reads it counts, nor one that would end in its observation. Otherwise one such number would make the loss
        of every batch that draws it useless.
        """
        known = final_obs is not None
        place, slot = write_outcomes(self.outcomes, self.level, self.num_finals, reward, terminated, truncated, known)
        for group, ring in self.obs.items():
            finals = None if final_obs is None else Finals(final_obs[group].flatten(1), slot, self.final_obs[group])
            write_rows(ring, obs[group].flatten(1), place, self.end, led_to=True, finals=finals)
        write_rows(self.action, action, place, self.end)
        if self.signals is not None:
            assert signals is not None, "a memory of signals is given none"
            columns = torch.stack([signals[name] for name in self.signal_names], -1)  # [N, S]
            write_rows(self.signals, columns, place, self.end)

    @torch.no_grad()
    def cut(self, where: Tensor | None = None) -> None:
        """Note that the next row does not follow the latest one, as when the env was reset in between.

        Args:
            where: bool ``[N]``, in which envs; None: in all.
        """
        latest = (self.row - 1) % self.num_rows
        end = self.end.index_select(0, latest)  # [1, N]
        going = end == GOING if where is None else (end == GOING) & where
        self.end.index_copy_(0, latest, end.masked_fill(going, CUT))

    @torch.no_grad()
    def broken(self, rows: int) -> Tensor:
        """Tell which steps of the latest ``rows`` are broken, the last first, ``[rows, N]``."""
        xp, end, row = arrays(self.end, self.row)
        some = {} if xp is np else {"device": self.device}
        back = xp.arange(1, 1 + min(rows, self.num_rows), **some)
        return torch.as_tensor(end[(row - back) % self.num_rows] == BROKEN)

    @torch.no_grad()
    def sample(self, number: int, gamma: float, n_step: int = 1, timeout: Timeout = "final_obs") -> Transitions:
        """Draw transitions uniformly, with the device's default generator; at least ``n_step + 1`` rows must be there.

        A window ends after ``n_step`` steps or with its episode. Only steps whose window and next observation have
        been written can be drawn, so a window never reaches over the seam between newest and oldest row.

        Args:
            number: B.
            gamma: discount per step.
            n_step: longest window.
            timeout: next observation of a truncated step: its final one, or the one before it; or no future.
        """
        draw = torch.randint(2**62, (number,), device=self.device)
        if self.strata is None:
            env = torch.randint(self.num_envs, (number,), device=self.device)
        else:
            place = torch.arange(number, device=self.device) % self.strata + torch.rand(number, device=self.device)
            env = (place * (self.num_envs / self.strata)).long().clamp(max=self.num_envs - 1)
        places = draw, env, gamma, n_step, timeout, self.num_finals
        return self._read(read_windows(self.outcomes, *places, drawn=True), n_step)

    @torch.no_grad()
    def window(
        self, start: Tensor, env: Tensor, gamma: float, n_step: int = 1, timeout: Timeout = "final_obs"
    ) -> Transitions:
        """Read the transitions that begin in the given rows ``[B]`` and envs ``[B]``; see ``sample``."""
        places = start, env, gamma, n_step, timeout, self.num_finals
        return self._read(read_windows(self.outcomes, *places), n_step)

    @property
    def outcomes(self) -> Outcomes:
        """What came of every step, and which of them are in memory."""
        return Outcomes(self.reward, self.end, self.num_written, self.row, self.size)

    def _read(self, windows: Windows, n_step: int) -> Transitions:
        ends = {group: read_ends(ring, self.final_obs[group], windows) for group, ring in self.obs.items()}
        for group, shape in self.images.items():
            obs, next_obs = ends[group]
            ends[group] = obs.view(-1, *shape), next_obs.view(-1, *shape)
        return Transitions(
            {group: obs for group, (obs, _) in ends.items()},
            gather(self.action.flatten(0, 1), windows.begin),
            windows.reward,
            windows.discount,
            {group: next_obs for group, (_, next_obs) in ends.items()},
            windows.weight,
            None if self.signals is None else signal_sums(self.signals, self.end, windows, self.signal_gammas, n_step),
        )

    def state_dict(self, rows: int) -> dict[str, Tensor]:
        """What has been written; ``rows`` is their number, which the host has to know.

        Tensors in host memory are not copied: save them before anything else is written.
        """
        self._wait()
        kept = {name: value if rows >= self.num_rows else _first(value, rows) for name, value in self._rings().items()}
        places = {"row": self.row, "size": self.size, "num_written": self.num_written}
        return kept | self._finals() | places | {"level": self.level}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore ``state_dict``'s result, in place.

        Raises:
            ConfigError: it was saved with room for another number of steps or of final observations, or with other
                signals.
        """
        saved_signals = state["signals"].shape[-1] if "signals" in state else 0
        remedy = f"the replay memory was saved with {saved_signals}; learn from as many, or begin anew"
        check(saved_signals == len(self.signal_names), "signals", self.signal_names, remedy)
        for name in self._finals():
            saved = len(state[name]) - 1
            remedy = (
                f"the replay memory was saved with room for {saved} last observations; set final_capacity to {saved}"
            )
            check(saved == self.num_finals, "final_capacity", self.num_finals, remedy)
        row, size = int(state["row"]), int(state["size"])
        # Where a ring has come round, its rows are in order for one of as many alone.
        fits = len(state["end"]) <= self.num_rows and row < self.num_rows and (row == size or size == self.num_rows)
        remedy = f"a replay memory of another size was saved, with {size} vector steps; set that run's"
        check(fits, "buffer_size", self.num_rows * self.num_envs, remedy)
        self._wait()
        for name, value in self._rings().items():
            value[: len(state[name])].copy_(state[name])
        for name, value in self._finals().items():
            value.copy_(state[name])
        for name in ("row", "size", "num_written"):
            getattr(self, name).copy_(state[name])
        if "level" in state:  # since version 0.2
            self.level.copy_(state["level"])

    def _wait(self) -> None:
        """Let kernels come to their end that the host knows nothing of when it touches its own memory."""
        if self.on_host:
            torch.cuda.synchronize(self.device)

    def _rings(self) -> dict[str, Tensor]:
        names = ("action", "reward", "end") if self.signals is None else ("action", "reward", "end", "signals")
        own = {name: getattr(self, name) for name in names}
        return {f"obs_{group}": ring for group, ring in self.obs.items()} | own

    def _finals(self) -> dict[str, Tensor]:
        return {f"final_obs_{group}": ring for group, ring in self.final_obs.items()}


def _first(ring: Tensor, rows: int) -> Tensor:
    """A ring's first rows as a tensor of their own, since a slice would be saved with all the memory it is part of."""
    if ring.device.type != "cpu" or rows == 0:
        return ring[:rows].clone()
    return torch.from_numpy(ring[:rows].view(torch.uint8).numpy()).view(ring.dtype)
