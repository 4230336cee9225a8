"""For buffers that may not fit: how much memory a device has left, and host memory that a GPU can use."""

from __future__ import annotations

import mmap
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rlcore.config import ConfigError

# Of both versions of cgroups: the line of /proc/self/cgroup, where the tree is, the files with limit and use, and what
# names in memory.stat begin with.
_GROUPS = (
    (r"^0::/*(.*)$", "", "memory.max", "memory.current", ""),
    (r"^\d+:[^:]*\bmemory\b[^:]*:/*(.*)$", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
)


def size_text(num_bytes: float) -> str:
    """A size for people, such as ``1.5 GiB``."""
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 / 10 else f"{num_bytes / 2**20:.1f} MiB"


def free_memory(device: torch.device, root: Path = Path("/")) -> int | None:
    """Bytes that this process can still have on a device; None if the system does not say.

    Of the host's memory it is the least of what the machine has without swapping, what the limits of a container leave
    (cgroups of both versions), and what is left of the address space (``ulimit -v``).

    Args:
        device: where.
        root: the folder with ``proc`` and ``sys``.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_left_on_host(root), default=None)


def _left_on_host(root: Path) -> Iterator[int]:
    proc = root / "proc"
    available = _number(proc / "meminfo", "MemAvailable")
    if available is not None:
        yield available
    limit, used = _number(proc / "self/limits", "Max address space"), _number(proc / "self/status", "VmSize")
    if limit is not None and used is not None:
        yield max(0, limit - used)
    own = _text(proc / "self/cgroup")
    for line, place, most, now, prefix in _GROUPS:
        found = re.search(line, own, re.MULTILINE)
        tree = root / "sys/fs/cgroup" / place
        # A limit may stand on any group around this one. Inside a container the named ones may be missing, and the
        # tree begins with the container's own.
        group = tree / (found[1] if found else "")
        for folder in (group, *group.parents):
            limit, used = _number(folder / most), _number(folder / now)
            if limit is not None and used is not None:
                # Files that were read count as use and are given up first, as MemAvailable takes into account too.
                files = (_number(folder / "memory.stat", f"{prefix}{age}_file") or 0 for age in ("active", "inactive"))
                yield max(0, limit - used + sum(files))
            if folder == tree:
                break


def _number(file: Path, name: str = "") -> int | None:
    """The number behind a name in a file of the system, in bytes; None if there is no such file, name or number."""
    found = re.search(rf"^{name}:?[ \t]*(\d+)( kB)?", _text(file), re.MULTILINE)
    return None if found is None else int(found[1]) * (1024 if found[2] else 1)


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, ValueError):
        return ""


Needs = dict[torch.device, int]
"""Bytes by the place that is to give them."""


class Room(NamedTuple):
    """What a replay memory needs, and what to say where it cannot be had."""

    capacity: int
    """Transitions that are asked for."""
    least: int
    """Transitions with which it would still be of use."""
    needs: Needs
    others: dict[str, Needs]
    """What could be set besides, in words, and what that would need."""

    def check(self) -> None:
        """Refuse what does not fit, before it is taken.

        Raises:
            ConfigError: with what would fit.
        """
        short = _short(self.needs)
        if short is None:
            return
        device, free = short
        needed = self.needs[device]
        # Advice stays below the limit: not all of what is needed shrinks with the size, and what is free changes.
        advice = int(self.capacity * 0.85 * free / needed)
        smaller = [f"buffer_size to {advice} or less"] if advice >= self.least else []
        has = f"{_name(device)} has {size_text(free)} left for this process"
        raise self._error(f"take {size_text(needed)} and {has}", smaller)

    def refused(self, error: Exception) -> ConfigError:
        """What to say where the system does not give what it seemed to have."""
        sizes = " and ".join(f"{size_text(size)} on {_name(device)}" for device, size in self.needs.items())
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        return self._error(f"take {sizes}, which cannot be had ({reason})", ["buffer_size to less"])

    def _error(self, problem: str, smaller: list[str]) -> ConfigError:
        remedies = smaller + [setting for setting, needs in self.others.items() if _short(needs) is None]
        advice = f"set {', or '.join(remedies)}" if remedies else "make room there"
        return ConfigError(f"buffer_size: {self.capacity} transitions {problem}; {advice}")


def _short(needs: Needs) -> tuple[torch.device, int] | None:
    """The place that has least of what is needed, and how much, if that is too little."""
    rooms = ((device, free_memory(device)) for device in needs)
    tight = [(device, free) for device, free in rooms if free is not None and needs[device] > 0.9 * free]
    return min(tight, key=lambda room: room[1] / needs[room[0]], default=None)


def _name(device: torch.device) -> str:
    return "the host" if device.type == "cpu" else str(device)


def pinned_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros in host memory that kernels on a CUDA device read and write under the same address.

    PyTorch's own pinned memory comes in powers of two, which for most of a machine's memory is too much.

    Args:
        shape: of the tensor.
        dtype: of its numbers.
        device: the GPU.

    Raises:
        MemoryError: the system has not as much memory to give, or does not let the GPU use it.
    """
    count = torch.Size(shape).numel()
    try:
        pages = _Pages(-1, max(1, count * dtype.itemsize))
        pages.pin(device)
    except (OSError, RuntimeError) as error:
        size = size_text(count * dtype.itemsize)
        raise MemoryError(f"{size} of host memory cannot be had for {device}: {error}") from None
    return torch.frombuffer(pages, dtype=dtype, count=count).view(shape)


class _Pages(mmap.mmap):
    """Host memory, all zero, that a GPU can use for as long as a tensor refers to it.

    Whole pages of its own, since what is pinned must not share one with anything else; and shared with processes that
    are forked, which would otherwise part the host's view of it from the GPU's.
    """

    device: torch.device | None = None
    address = 0

    def pin(self, device: torch.device) -> None:
        """Let the GPU use it."""
        self.address = torch.frombuffer(self, dtype=torch.uint8).data_ptr()
        with torch.cuda.device(device):
            runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            torch.cuda.check_error(runtime.cudaHostRegister(self.address, len(self), 0))
        self.device = device

    def __del__(self) -> None:
        if self.device is not None and not sys.is_finalizing():
            torch.cuda.synchronize(self.device)  # kernels may still be at it
            torch.cuda.cudart().cudaHostUnregister(self.address)  # type: ignore[no-untyped-call]
