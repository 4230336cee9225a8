"""The same random numbers for every block of a batch of envs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_MADE = (torch.rand, torch.randn, torch.randint)
_FILLED = tuple(
    getattr(Tensor, f"{name}_") for name in ("uniform", "normal", "exponential", "random", "geometric", "log_normal")
)
_OTHERS = (
    *(torch.rand_like, torch.randn_like, torch.randint_like, torch.normal, torch.bernoulli, Tensor.bernoulli),
    *(Tensor.bernoulli_, Tensor.cauchy_, torch.multinomial, Tensor.multinomial, torch.randperm, torch.poisson),
)


class SharedDraws(TorchFunctionMode):
    """While it is entered, what is drawn for a batch of ``blocks * rows`` envs is drawn for ``rows`` and repeated.

    Row i of every block then sees the numbers that row i of a batch of ``rows`` envs would, as far as an env draws in
    the way of those that a CUDA graph may record: by ``torch.rand``, ``randn`` and ``randint``, or in place by
    ``uniform_``, ``normal_`` and their like, tensors that have one dimension of the number of envs.

    Args:
        blocks: C.
        rows: E, envs of a block.
    """

    unshared: set[str]
    """Functions that drew for the batch in a way that cannot be repeated: blocks have numbers of their own there."""

    def __init__(self, blocks: int, rows: int) -> None:
        super().__init__()
        self.blocks, self.rows = blocks, rows
        self.unshared = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Called by PyTorch in the place of each of its functions."""
        kwargs = dict(kwargs or {})
        if func in _MADE:
            where, size = _size(args, kwargs)
            small = self._of_a_block(size)
            if small is not None:
                return self._repeated(func(*where(small), **kwargs), size)
            self._note(func, size)
        elif func in _FILLED:
            target, *rest = args
            small = self._of_a_block(target.shape)
            if small is not None:
                return target.copy_(self._repeated(func(target.new_empty(small), *rest, **kwargs), target.shape))
            self._note(func, target.shape)
        elif func in _OTHERS:
            shapes = [value.shape for value in args if isinstance(value, Tensor)]
            self._note(func, shapes[0] if shapes else [value for value in args[:1] if isinstance(value, int)])
        return func(*args, **kwargs)

    def _of_a_block(self, size: Sequence[int]) -> list[int] | None:
        """The shape for one block; None where it is not of the batch, or that cannot be told."""
        number = self.blocks * self.rows
        return [self.rows if n == number else n for n in size] if list(size).count(number) == 1 else None

    def _repeated(self, small: Tensor, size: Sequence[int]) -> Tensor:
        return small.repeat([self.blocks if n == self.blocks * self.rows else 1 for n in size])

    def _note(self, func: Callable[..., Any], size: Sequence[int]) -> None:
        if any(n and n % (self.blocks * self.rows) == 0 for n in size):
            self.unshared.add(func.__name__)


def _size(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Callable[[list[int]], list[Any]], Sequence[int]]:
    """What puts another size in the place of the one in arguments, and that one."""
    if "size" in kwargs:
        size: Sequence[int] = kwargs.pop("size")
        return (lambda small: [*args, small]), size
    if args and isinstance(args[-1], (tuple, list)):
        *before, size = args
        return (lambda small: [*before, small]), size
    return (lambda small: [small]), [int(n) for n in args]
