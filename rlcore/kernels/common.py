"""What launching kernels takes: sizes of tiles and grids, descriptors, and products that cuBLAS does best."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlcore.dispatch import kernels_run


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Let a backward pass refuse to be differentiated itself.

    What it computes is no part of any graph, and a second derivative would lack the terms that go through it.
    ``torch.autograd.function.once_differentiable`` lets pass what does not depend on the incoming gradient, as for a
    loss whose own is 1. With gradients recorded in a backward pass somebody wants the second.
    """

    @functools.wraps(backward)
    def once(ctx: Any, *gradients: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"{type(ctx).__name__.removesuffix('Backward')}: create_graph=True is not possible, this backward pass "
                "launches kernels, which cannot be differentiated again; run inside rlcore.kernels_off(), or with "
                "RLCORE_KERNELS=0 in the environment"
            )
        return backward(ctx, *gradients)

    return once


@functools.cache
def copies_tiles(device: torch.device) -> bool:
    """Tell whether programs use descriptors of tiles, which the GPU copies by itself: on Hopper, where that was timed.

    For ``tiled``; GPUs since have that unit too, but less memory or other matrix units.
    """
    if device.type != "cuda" or not kernels_run(device) or torch.cuda.get_device_properties(device).major != 9:
        return False
    return importlib.util.find_spec("triton.tools.tensor_descriptor") is not None


def tiled(tensor: Tensor, *block: int) -> Any:
    """Return a descriptor of a matrix, by which a kernel reads or writes tiles of this size; zero beyond the edges.

    The matrix begins, and each of its rows does, at a multiple of 16 bytes.
    """
    descriptor = importlib.import_module("triton.tools.tensor_descriptor").TensorDescriptor
    return descriptor.from_tensor(tensor, list(block))


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
