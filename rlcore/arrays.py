"""Short ways for a CPU, where an operator of PyTorch takes longer to begin than a few numbers take to compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def arrays(first: Tensor, *others: Tensor | None) -> tuple[Any, ...]:
    """NumPy, and arrays that share the tensors' memory, where these are on a CPU; elsewhere torch and the tensors.

    For texts on a few numbers that either can run: an operator of NumPy takes a fraction of the time that PyTorch takes
    to begin one of its own. None stays None.
    """
    if not first.is_cpu:
        return (torch, first, *others)
    return (np, first.numpy(), *[None if tensor is None else tensor.numpy() for tensor in others])


def none_set(flags: Tensor) -> bool:
    """Tell whether the host may look, and sees that nothing is set: on a CPU, where nothing runs ahead of it."""
    return flags.is_cpu and not np.count_nonzero(flags.numpy())
