"""How many CPU threads PyTorch gets for a run: what its work is worth, and no more.

By its own choice PyTorch takes all cores for every product, however small. With small networks most of the time then
goes into waking threads and waiting for the last of them, many times over where other programs want the same cores.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from rlcore.encoders import CNN

PER_THREAD = 2**24
"""Multiplications of a pass through a network that a thread is worth: a fifth of a millisecond or more for each of
them, beside some 10 microseconds to wake it and to wait for it."""

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of all cores in a period, or "max"


def usable_cores() -> int:
    """Cores that this process may use, by its affinity and the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = _QUOTA.read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


@torch.no_grad()
def threads_for(rows: int, network: nn.Module, cores: int) -> int:
    """Threads for passes of ``rows`` samples through a network.

    Each parameter is used once a sample, and those of a convolution once for every place of its kernel.
    """
    work = sum(parameter.numel() for parameter in network.parameters())
    for cnn in (module for module in network.modules() if isinstance(module, CNN)):
        x = torch.zeros(1, *cnn.shape, device=next(cnn.parameters()).device)
        for layer in cnn.convolutions:
            x = layer(x)
            if isinstance(layer, nn.Conv2d):
                work += (x[0, 0].numel() - 1) * layer.weight.numel()
    return max(1, min(cores, rows * work // PER_THREAD))


def use_threads(given: int | None, rows: int, network: nn.Module, device: torch.device) -> list[str]:
    """Set PyTorch's number of threads for this process, where the CPU does the work or a number is given.

    Args:
        given: the user's number; None chooses by ``threads_for``, unless OMP_NUM_THREADS has chosen already.
        rows: samples of a pass.
        network: what they pass through.
        device: where it is.

    Returns:
        A line that says so, or none.
    """
    if given is None and device.type != "cpu":
        return []
    if given is None and "OMP_NUM_THREADS" in os.environ:
        return [f"CPU threads: {torch.get_num_threads()}, from OMP_NUM_THREADS"]
    cores = usable_cores()
    number = threads_for(rows, network, cores) if given is None else given
    torch.set_num_threads(number)
    why = f"for {rows:,} samples at a time; --threads N sets another number" if given is None else "from --threads"
    return [f"CPU threads: {number} of {cores}, {why}"]
