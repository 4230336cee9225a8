"""Which of two texts runs: a plain function, or the kernel that is registered for it.

The plain function is what a reader finds, what runs where kernels do not, and what a kernel is tested against. Kernels
are in ``rlcore.kernels``, which is imported at the first launch, so machines without Triton never miss it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from rlcore.capture import compiling

F = TypeVar("F", bound=Callable[..., Any])

_wanted = os.environ.get("RLCORE_KERNELS", "1") != "0"
_interpreted = False  # whether they run on a CPU too, by Triton's interpreter; for tests


def accelerated(
    kernel: str, of: int = 0, when: Callable[..., bool] | None = None, cpu: Callable[..., Any] | None = None
) -> Callable[[F], F]:
    """Register a kernel for the function that follows.

    At each call the kernel runs if kernels run on the device of one of the arguments (see ``kernels_run``), it takes
    these arguments, and ``torch.compile``, which cannot trace it, is not tracing; else the function itself, which stays
    reachable by ``plain``. A method is registered as a function is, its object being argument 0.

    Args:
        kernel: ``module:name`` in ``rlcore.kernels``; called with the same arguments.
        of: which positional argument is the tensor whose device decides, or a tuple that begins with it.
        when: tells from the same arguments whether the kernel takes them; None: it always does.
        cpu: runs in its place on a CPU, by an operator of PyTorch that does it all; None: nothing does.
    """

    def register(plain: F) -> F:
        @functools.wraps(plain)
        def choose(*args: Any, **kwargs: Any) -> Any:
            tensor = args[of]
            if isinstance(tensor, tuple):
                tensor = tensor[0]
            if tensor.is_cuda or _interpreted:
                if not compiling() and kernels_run(tensor.device) and (when is None or when(*args, **kwargs)):
                    return _load(kernel)(*args, **kwargs)
            elif cpu is not None and _wanted:
                return cpu(*args, **kwargs)
            return plain(*args, **kwargs)

        choose.plain = plain  # type: ignore[attr-defined]
        return choose  # type: ignore[return-value]

    return register


def plain(fn: F) -> F:
    """Return the text of a function that has a kernel."""
    return fn.plain  # type: ignore[attr-defined, no-any-return]


@functools.cache
def _load(kernel: str) -> Callable[..., Any]:
    module, _, name = kernel.partition(":")
    return getattr(importlib.import_module(f"rlcore.kernels.{module}"), name)  # type: ignore[no-any-return]


def kernels_run(device: torch.device) -> bool:
    """Tell whether kernels run on the device: a GPU of compute capability 8 or more, with Triton, and not switched off.

    ``RLCORE_KERNELS=0`` in the environment and ``kernels_off`` switch them off.
    """
    return _wanted and (_interpreted or (device.type == "cuda" and shared_memory(device) > 0))


def written_out_runs(tensor: Tensor) -> bool:
    """Tell whether what is written out for a CPU runs in place of the plain text, by a tensor that it is given."""
    return tensor.is_cpu and _wanted and not _interpreted and not compiling()


@contextmanager
def kernels_off() -> Iterator[None]:
    """Let every function run as it is written, on a GPU too: slower, and differentiable twice.

    What was recorded as a CUDA graph before is replayed as it was: build an agent inside to have it learn so.
    """
    global _wanted
    before, _wanted = _wanted, False
    try:
        yield
    finally:
        _wanted = before


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes that a program may use of a multiprocessor's own memory; 0 where the kernels cannot run."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None or torch.version.cuda is None:
        return 0
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", 1 << 16) if properties.major >= 8 else 0
