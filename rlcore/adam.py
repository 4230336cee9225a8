"""Adam on flat buffers: one kernel for the norm, one for the step, whatever the number of parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rlcore.update_kernels import clipped_adam

_ALIGN = 64  # numbers; matrix units want their operands at multiples of 16 bytes


class FlatAdam:
    """Adam (Kingma & Ba 2015, arXiv:1412.6980) that clips the gradient's norm and can be told to skip a step.

    The parameters become views of one buffer. Everything changes in place and nothing is read by the host, so a CUDA
    graph can capture ``step``.

    Args:
        parameters: what to learn; a parameter without a gradient keeps still.
        learning_rate: a scalar tensor, read at every step.
        max_norm: gradients are scaled down to this norm.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], learning_rate: Tensor, max_norm: float) -> None:
        self.parameters, self.learning_rate, self.max_norm = list(parameters), learning_rate, max_norm
        sizes = [p.numel() + -p.numel() % _ALIGN for p in self.parameters]
        self.value = torch.zeros(sum(sizes), device=learning_rate.device)
        self.moment = torch.zeros_like(self.value)
        self.square = torch.zeros_like(self.value)
        self.count = torch.zeros((), device=learning_rate.device)  # steps taken
        for parameter, part in zip(self.parameters, torch.split(self.value, sizes), strict=True):
            view = part[: parameter.numel()].view_as(parameter)
            view.copy_(parameter.detach())
            parameter.data = view
        self._gaps = [self.value.new_zeros(size - p.numel()) for p, size in zip(self.parameters, sizes, strict=True)]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """Clip and step, unless ``allowed`` is false or a gradient is not finite: then nothing changes.

        Returns:
            The gradient's norm before clipping, and 1 if the step was taken, else 0; scalars.
        """
        parts: list[Tensor] = []
        for parameter, gap in zip(self.parameters, self._gaps, strict=True):
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parts += [gradient.flatten(), gap]
        return clipped_adam(
            self.value,
            torch.cat(parts),
            self.moment,
            self.square,
            self.count,
            self.learning_rate,
            allowed,
            max_norm=self.max_norm,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Moments and the number of steps; the parameters are their modules' to save."""
        return {"moment": self.moment, "square": self.square, "count": self.count}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore ``state_dict``'s result, in place."""
        for name, value in self.state_dict().items():
            value.copy_(state[name])
