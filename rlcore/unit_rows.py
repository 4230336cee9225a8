"""Rows of weights that are brought to unit length: one kernel for all of them, with a plain PyTorch twin.

See ``rlcore.launcher`` for what holds of all kernels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rlcore.launcher import array, available, constexpr, kernel, tl

_BLOCK = 1024  # numbers of a row that a program holds at a time
_TINY = 1e-12  # a row shorter than this has no direction, and one of zeros stays as it is


def _unit_kernel(
    flat: array, starts: array, lengths: array, wanted: array, LONGEST: constexpr, TINY: constexpr, BLOCK: constexpr
) -> None:
    """Divide lengths[i] numbers from flat[starts[i]] on by their norm; nothing is written unless wanted."""
    start = tl.load(starts + tl.program_id(0))
    length = tl.where(tl.load(wanted) != 0, tl.load(lengths + tl.program_id(0)), 0)
    squares = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, LONGEST, BLOCK):
        at = first + tl.arange(0, BLOCK)
        value = tl.load(flat + start + at, mask=at < length, other=0.0)
        squares += value * value
    norm = tl.sqrt(tl.sum(squares, 0))
    factor = 1 / tl.where(norm < TINY, TINY, norm)
    for first in range(0, LONGEST, BLOCK):
        at = first + tl.arange(0, BLOCK)
        value = tl.load(flat + start + at, mask=at < length, other=0.0)  # still in the cache
        tl.store(flat + start + at, value * factor, mask=at < length)


class UnitRows:
    """Weights whose rows are to have unit length (SimbaV2, Lee et al. 2025, arXiv:2502.15280; FlashSAC).

    Args:
        flat: ``[P]``, the buffer that holds them.
        weights: ``[outputs, inputs]`` each, views of it; every output has a row of its own.
    """

    def __init__(self, flat: Tensor, weights: Sequence[Tensor]) -> None:
        self.flat, self.weights = flat, [weight.detach() for weight in weights]
        rows = [(w.storage_offset() + i * w.shape[1], w.shape[1]) for w in self.weights for i in range(w.shape[0])]
        self.longest = max(length for _, length in rows)
        self.starts, self.lengths = torch.tensor(rows, device=flat.device).t().contiguous()  # [rows] each, int64

    @torch.no_grad()
    def project(self, wanted: Tensor) -> None:
        """Divide every row by its norm, in place and without a read by the host.

        Args:
            wanted: scalar; 0 leaves everything as it is, to the bit.
        """
        if not available(self.flat.device):
            unit_rows_reference(self.weights, wanted)
            return
        sizes = (self.longest, _TINY, _BLOCK)
        kernel(_unit_kernel)[(len(self.starts),)](self.flat, self.starts, self.lengths, wanted, *sizes)


def unit_rows_reference(weights: Sequence[Tensor], wanted: Tensor) -> None:
    """Do as ``UnitRows.project`` does in plain PyTorch."""
    for weight in weights:
        weight.copy_(torch.where(wanted != 0, F.normalize(weight, dim=1, eps=_TINY), weight))
