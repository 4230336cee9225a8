"""Adam on flat buffers: one kernel for the norm, one for the step, whatever the number of parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rlcore.unit_rows import UnitRows
from rlcore.update_kernels import clipped_adam

_ALIGN = 64  # numbers; matrix units want their operands at multiples of 16 bytes


def padded(size: int) -> int:
    """Numbers that a tensor of ``size`` takes up in a flat buffer."""
    return size + -size % _ALIGN


def joined(tensors: Sequence[Tensor]) -> Tensor | None:
    """Return the flat buffer that holds these tensors, ``padded`` each, and nothing else; None if there is none."""
    place, storage = 0, tensors[0].untyped_storage()
    for tensor in tensors:
        here = tensor.untyped_storage().data_ptr() == storage.data_ptr() and tensor.storage_offset() == place
        if not here or not tensor.is_contiguous():
            return None
        place += padded(tensor.numel())
    if storage.nbytes() != place * tensors[0].element_size():
        return None
    return torch.as_strided(tensors[0].detach(), (place,), (1,))


def flat(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the flat buffer that the parameters are views of; if they are none yet, they become so.

    Tensors that stand at multiples of 64 numbers, with zeros between them.
    """
    whole = joined(parameters)
    if whole is None:
        sizes = [padded(p.numel()) for p in parameters]
        whole = torch.zeros(sum(sizes), device=parameters[0].device)
        for parameter, part in zip(parameters, torch.split(whole, sizes), strict=True):
            view = part[: parameter.numel()].view_as(parameter)
            view.copy_(parameter.detach())
            parameter.data = view
    return whole


class FlatAdam:
    """Adam (Kingma & Ba 2015, arXiv:1412.6980) that clips the gradient's norm and can be told to skip a step.

    The parameters become views of one buffer. Everything changes in place and nothing is read by the host, so a CUDA
    graph can capture ``step``.

    Args:
        parameters: what to learn; a parameter without a gradient keeps still.
        learning_rate: a scalar tensor, read at every step.
        max_norm: gradients are scaled down to this norm.
        unit: weights among the parameters whose rows are brought to unit length, at once and after every step that is
            taken; Adam's own moments are left alone.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        learning_rate: Tensor,
        max_norm: float,
        unit: Sequence[Tensor] = (),
    ) -> None:
        self.parameters, self.learning_rate, self.max_norm = list(parameters), learning_rate, max_norm
        self.value = flat(self.parameters)
        self.moment = torch.zeros_like(self.value)
        self.square = torch.zeros_like(self.value)
        self.count = torch.zeros((), device=learning_rate.device)  # steps taken
        self.one = torch.ones((), device=learning_rate.device)  # derivative of a loss by itself, not to be made anew
        self.unit = UnitRows(self.value, unit) if unit else None
        if self.unit is not None:
            self.unit.project(self.one)
        self.gradient = torch.zeros_like(self.value)  # where gradients gather that are not in one buffer of their own
        parts = torch.split(self.gradient, [padded(p.numel()) for p in self.parameters])
        self._parts = [part[: p.numel()].view_as(p) for part, p in zip(parts, self.parameters, strict=True)]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """Clip and step, unless ``allowed`` is false, or a loss or gradient that is not finite: then nothing changes.

        Args:
            allowed: scalar, whether to take the step, or the loss that is to be finite.

        Returns:
            The gradient's norm before clipping, and 1 if the step was taken, else 0; scalars.
        """
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        whole = joined(gradients)  # some kernels write them so
        if whole is None:
            whole = self.gradient
            torch._foreach_copy_(self._parts, gradients)
        norm, taken = clipped_adam(
            self.value,
            whole,
            self.moment,
            self.square,
            self.count,
            self.learning_rate,
            allowed,
            max_norm=self.max_norm,
        )
        if self.unit is not None:
            self.unit.project(taken)
        return norm, taken

    def state_dict(self) -> dict[str, Tensor]:
        """Moments and the number of steps; the parameters are their modules' to save."""
        return {"moment": self.moment, "square": self.square, "count": self.count}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore ``state_dict``'s result, in place."""
        for name, value in self.state_dict().items():
            value.copy_(state[name])


def descend(optimizer: FlatAdam, loss: Tensor) -> Tensor:
    """Take a step down the loss, unless it is not finite; the gradient's norm."""
    optimizer.zero_grad()
    parameters = optimizer.parameters
    # Only for this optimizer's parameters: what else the loss went through is to stay as it is.
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters, optimizer.one), strict=True):
        parameter.grad = gradient
    return optimizer.step(loss.detach())[0]
