"""For buffers that may not fit: how much memory a device has left, and host memory that a GPU can use."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import torch
from torch import Tensor

from rlcore.config import ConfigError


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


def pinned_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros in host memory that kernels on a CUDA device read and write under the same address.

    PyTorch's own pinned memory comes in powers of two, which for most of a machine's memory is too much.

    Args:
        shape: of the tensor.
        dtype: of its numbers.
        device: the GPU.

    Raises:
        ConfigError: the system has not as much memory to give, or does not let the GPU use it.
    """
    count = torch.Size(shape).numel()
    try:
        pages = _Pages(-1, max(1, count * dtype.itemsize))
        pages.pin(device)
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"{size_text(count * dtype.itemsize)} of host memory cannot be had for {device} ({error}); "
            "set a smaller buffer_size, or buffer_device to env"
        ) from None
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
