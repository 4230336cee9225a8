"""Tensors as they were, to go back to."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Mark:
    """A copy of tensors to go back to, taken in one operation for each type: it is taken at every iteration."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for tensor in {id(tensor): tensor for tensor in tensors}.values():
            by_type.setdefault(tensor.dtype, []).append(tensor)
        self.pairs = [(group, [torch.empty_like(tensor) for tensor in group]) for group in by_type.values()]

    @torch.no_grad()
    def set(self) -> None:
        """Remember the tensors as they are."""
        for live, copies in self.pairs:
            torch._foreach_copy_(copies, live)

    @torch.no_grad()
    def go_back(self) -> None:
        """Bring them back to what they were."""
        for live, copies in self.pairs:
            torch._foreach_copy_(live, copies)
