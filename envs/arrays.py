"""Arrays of simulators as tensors, without copying where that is possible.

Isaac Lab 3 hands out arrays of warp, and proxies of them that have the tensor as ``.torch``.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

import torch
from torch import Tensor


def is_array(value: Any) -> bool:
    """Whether something is a simulator's array, or a proxy of one; a tensor is none."""
    kind = type(value)
    return hasattr(kind, "torch") or (kind.__name__ == "array" and kind.__module__.partition(".")[0] == "warp")


def view_of(value: Any) -> Tensor | None:
    """A tensor, or a simulator's array as one in the same memory; None for everything else, arrays of structs too."""
    if isinstance(value, Tensor):
        return value
    inner = None
    if is_array(value):
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            inner = value.torch if hasattr(value, "torch") else importlib.import_module("warp").to_torch(value)
    return inner if isinstance(inner, Tensor) else None


def as_tensor(value: Any) -> Tensor:
    """``view_of``, or a tensor of whatever else holds numbers."""
    view = view_of(value)
    return torch.as_tensor(value) if view is None else view
