"""Replay memory: a ring of vector steps on the env's device, read as n-step transitions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rlcore.config import ConfigError
from rlcore.replay_kernels import CUT, NONE, Outcomes, Windows, read_ends, read_windows
from rlcore.replay_kernels import Timeout as Timeout
from rlcore.types import Obs
from rlcore.update_kernels import gather


class Transitions(NamedTuple):
    """Samples of the replay memory, B of them; each spans up to n steps of one episode."""

    obs: Obs  # [B, O] by group
    action: Tensor  # [B, A]
    reward: Tensor  # [B], sum of gamma^i r_i over the steps taken
    discount: Tensor  # [B], gamma^(steps taken), 0 where nothing follows
    next_obs: Obs  # [B, O] by group; what the discount multiplies the value of
    weight: Tensor  # [B], 1, or 0 where next_obs has been lost and the sample must not count


class Replay:
    """The latest vector steps, time-major ``[C, N, ...]``, each observation stored once.

    The observation after a step is that of the next row. Where a step was truncated the next row begins another
    episode, so its true last observation goes to a second, smaller ring. Every shape is fixed and every position is a
    device tensor: writing and sampling can be recorded as CUDA graphs.

    Args:
        capacity: transitions to hold; rounded down to whole vector steps C.
        num_envs: N.
        observation_sizes: size of each observation group to store.
        action_size: A.
        max_episode_length: steps of an episode, which tells how many final observations to expect.
        device: where the ring lives.
        dtype: how observations are stored.
        final_capacity: final observations to hold; None for four times what full-length episodes would need.

    Raises:
        ConfigError: the memory does not fit the device, or is too small for the number of envs.
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
    ) -> None:
        self.num_rows, self.num_envs, self.device = capacity // num_envs, num_envs, device
        if self.num_rows < 2:
            raise ConfigError(f"buffer_size: {capacity!r} is not possible; {num_envs} envs need {2 * num_envs} or more")
        total = self.num_rows * num_envs
        expected = 4 * total // max(1, max_episode_length) + num_envs
        self.num_finals = min(total, expected) if final_capacity is None else final_capacity
        if self.num_finals < num_envs:
            raise ConfigError(f"final_capacity: {final_capacity!r} is not possible; set at least num_envs ({num_envs})")
        row = sum(observation_sizes.values()) * dtype.itemsize
        self.num_bytes = total * (row + 4 * action_size + 4 + 1 + 1 + 4) + (self.num_finals + 1) * row
        _check_memory(capacity, self.num_bytes, device)

        def ring(*shape: int, kind: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros((self.num_rows, num_envs, *shape), dtype=kind, device=device)

        self.obs = {group: ring(size, kind=dtype) for group, size in observation_sizes.items()}  # [C, N, O]
        self.action = ring(action_size)  # [C, N, A]
        self.reward = ring()  # [C, N]
        self.terminated = ring(kind=torch.bool)  # [C, N]
        self.truncated = ring(kind=torch.bool)  # [C, N], and not terminated
        self.final = ring(kind=torch.int32)  # [C, N], number of the final observation, or NONE or CUT
        # One row more than is used: what has no place is written there, so that every write has the same shape.
        self.final_obs = {
            group: torch.zeros(self.num_finals + 1, size, dtype=dtype, device=device)
            for group, size in observation_sizes.items()
        }
        self.row = torch.zeros(1, dtype=torch.int64, device=device)  # where the next step goes
        self.size = torch.zeros(1, dtype=torch.int64, device=device)  # rows written, at most C
        self.num_written = torch.zeros(1, dtype=torch.int64, device=device)  # final observations so far

    @torch.no_grad()
    def write(
        self, obs: Obs, action: Tensor, reward: Tensor, terminated: Tensor, truncated: Tensor, final_obs: Obs | None
    ) -> None:
        """Store one vector step: observations, actions ``[N, A]`` and what the env answered; see ``types.Step``."""
        ended = truncated & ~terminated  # [N]
        for group, ring in self.obs.items():
            ring.index_copy_(0, self.row, obs[group].to(ring.dtype).unsqueeze(0))
        number = torch.full_like(self.final[0], NONE)
        if final_obs is not None:
            order = self.num_written + ended.cumsum(0) - 1  # [N]
            slot = torch.where(ended, order % self.num_finals, self.num_finals)
            for group, ring in self.final_obs.items():
                ring.index_copy_(0, slot, final_obs[group].to(ring.dtype))
            number = torch.where(ended, order.to(number.dtype), number)
            self.num_written += ended.sum()
        for ring, value in (
            (self.action, action),
            (self.reward, reward),
            (self.terminated, terminated),
            (self.truncated, ended),
            (self.final, number),
        ):
            ring.index_copy_(0, self.row, value.unsqueeze(0))
        self.row.add_(1).remainder_(self.num_rows)
        self.size.add_(1).clamp_(max=self.num_rows)

    @torch.no_grad()
    def cut(self) -> None:
        """Note that the next row does not follow the latest one, as when the env was reset in between."""
        latest = (self.row - 1) % self.num_rows
        going = ~(self.terminated.index_select(0, latest) | self.truncated.index_select(0, latest))  # [1, N]
        self.truncated.index_copy_(0, latest, self.truncated.index_select(0, latest) | going)
        self.final.index_copy_(0, latest, self.final.index_select(0, latest).masked_fill(going, CUT))

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
        env = torch.randint(self.num_envs, (number,), device=self.device)
        return self._read(read_windows(self.outcomes, draw, env, gamma, n_step, timeout, self.num_finals, drawn=True))

    @torch.no_grad()
    def window(
        self, start: Tensor, env: Tensor, gamma: float, n_step: int = 1, timeout: Timeout = "final_obs"
    ) -> Transitions:
        """Read the transitions that begin in the given rows ``[B]`` and envs ``[B]``; see ``sample``."""
        return self._read(read_windows(self.outcomes, start, env, gamma, n_step, timeout, self.num_finals))

    @property
    def outcomes(self) -> Outcomes:
        """What came of every step, and which of them are in memory."""
        flags = (self.terminated, self.truncated, self.final)
        return Outcomes(self.reward, *flags, self.num_written, self.row, self.size)

    def _read(self, windows: Windows) -> Transitions:
        ends = {group: read_ends(ring, self.final_obs[group], windows) for group, ring in self.obs.items()}
        return Transitions(
            {group: obs for group, (obs, _) in ends.items()},
            gather({"action": self.action.flatten(0, 1)}, windows.begin)["action"],
            windows.reward,
            windows.discount,
            {group: next_obs for group, (_, next_obs) in ends.items()},
            windows.weight,
        )

    def state_dict(self, rows: int) -> dict[str, Tensor]:
        """What has been written; ``rows`` is their number, which the host has to know."""
        whole = rows >= self.num_rows
        kept = {name: value if whole else value[:rows].clone() for name, value in self._rings().items()}
        return kept | self._finals() | {"row": self.row, "size": self.size, "num_written": self.num_written}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore ``state_dict``'s result, in place."""
        for name, value in self._rings().items():
            value[: len(state[name])].copy_(state[name])
        for name, value in self._finals().items():
            value.copy_(state[name])
        for name in ("row", "size", "num_written"):
            getattr(self, name).copy_(state[name])

    def _rings(self) -> dict[str, Tensor]:
        own = {name: getattr(self, name) for name in ("action", "reward", "terminated", "truncated", "final")}
        return {f"obs_{group}": ring for group, ring in self.obs.items()} | own

    def _finals(self) -> dict[str, Tensor]:
        return {f"final_obs_{group}": ring for group, ring in self.final_obs.items()}


def size_text(num_bytes: float) -> str:
    """A size for people, such as ``1.5 GiB``."""
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 / 10 else f"{num_bytes / 2**20:.1f} MiB"


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had on a device; None if the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _check_memory(capacity: int, needed: int, device: torch.device) -> None:
    free = free_memory(device)
    if free is not None and needed > 0.9 * free:
        raise ConfigError(
            f"buffer_size: {capacity} transitions take {size_text(needed)} and {device} has {size_text(free)} left; "
            f"set buffer_size to {int(capacity * 0.9 * free / needed)} or less, or store_obs to bf16"
        )
