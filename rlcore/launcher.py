"""What all Triton kernels of rlcore share: where they run, and how a function becomes one.

A module with kernels has a plain PyTorch twin for each, which runs elsewhere and is the reference in tests. Triton is
imported at the first launch, so machines without it never miss it. No kernel uses atomics: sums over the batch are
stored per part and added in a fixed order, so equal inputs give equal bits. Shapes are known at launch and nothing is
read by the host, so CUDA graphs can capture every function.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

# What modules with kernels import: parameters that are settled when a kernel is compiled, tensors and other parameters,
# and Triton's language. Loading a module's kernels puts Triton's own in their place there.
constexpr = Any
array = Any
tl: Any = None

_KERNELS: dict[Any, Any] = {}


def available(device: torch.device) -> bool:
    """Tell whether kernels run on the device; elsewhere their twins do."""
    return device.type == "cuda" and shared_memory(device) > 0


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes that a program may use of a multiprocessor's own memory; 0 where the kernels cannot run."""
    if importlib.util.find_spec("triton") is None or torch.version.cuda is None:
        return 0
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", 1 << 16) if properties.major >= 8 else 0


@functools.cache
def copies_tiles(device: torch.device) -> bool:
    """Tell whether programs use descriptors of tiles, which the GPU copies by itself: on Hopper, where that was timed.

    For ``tiled``; GPUs since have that unit too, but less memory or other matrix units.
    """
    if not available(device) or torch.cuda.get_device_properties(device).major != 9:
        return False
    return importlib.util.find_spec("triton.tools.tensor_descriptor") is not None


def arrays(first: Tensor, *others: Tensor | None) -> tuple[Any, ...]:
    """NumPy, and arrays that share the tensors' memory, where these are on a CPU; elsewhere torch and the tensors.

    For texts on a few numbers that either can run: an operator of NumPy takes a fraction of the time that PyTorch takes
    to begin one of its own. None stays None.
    """
    if not first.is_cpu:
        return (torch, first, *others)
    return (np, first.numpy(), *[None if tensor is None else tensor.numpy() for tensor in others])


def nothing(flags: Tensor) -> bool:
    """Tell whether the host may look, and sees that nothing is set: on a CPU, where nothing runs ahead of it."""
    return flags.is_cpu and not np.count_nonzero(flags.numpy())


def tiled(tensor: Tensor, *block: int) -> Any:
    """Return a descriptor of a matrix, by which a kernel reads or writes tiles of this size; zero beyond the edges.

    The matrix begins, and each of its rows does, at a multiple of 16 bytes.
    """
    descriptor = importlib.import_module("triton.tools.tensor_descriptor").TensorDescriptor
    return descriptor.from_tensor(tensor, list(block))


def kernel(fn: Any) -> Any:
    """Return a module's function as a Triton kernel, ``kernel(fn)[grid](...)``.

    The module imports ``tl``, ``constexpr`` and ``array`` from here, which Triton's own replace there. ``_HELPERS`` has
    the names of functions that its kernels call, if they call any.
    """
    if fn not in _KERNELS:
        _load(fn.__module__)
        _KERNELS[fn] = importlib.import_module("triton").jit(fn)
    return _KERNELS[fn]


def _load(name: str) -> None:
    """Put Triton's names, and helpers that its kernels can call, in the place of a module's own."""
    module = vars(sys.modules[name])
    if module["tl"] is not None:
        return
    triton, language = importlib.import_module("triton"), importlib.import_module("triton.language")
    module.update(tl=language, constexpr=language.constexpr, array=language.tensor)
    for helper in module.get("_HELPERS", ()):
        home = module[helper].__module__
        if home == name:
            module[helper] = triton.jit(module[helper])
        else:  # imported, and used as it is there
            _load(home)
            module[helper] = vars(sys.modules[home])[helper]


def num_blocks(size: int, block: int) -> int:
    """Blocks that cover ``size``."""
    return -(-size // block)


def power_of_two(size: int, least: int = 16) -> int:
    """The least power of two that holds ``size``, as Triton wants its tiles."""
    return max(least, 1 << (size - 1).bit_length())


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a @ b`` in float32, for what cuBLAS does best: weight gradients, whose sums run over all samples."""
    if a.dtype == torch.float32:
        return a @ b
    try:
        return torch.mm(a, b, out_dtype=torch.float32)
    except TypeError:  # PyTorch before 2.8
        return (a @ b).float()
