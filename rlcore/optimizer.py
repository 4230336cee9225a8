"""Adam on flat buffers, whatever the number of parameters, and weights that it keeps at unit length."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlcore.dispatch import accelerated
from rlcore.distributed import average, world

NO_LIMIT = 1e30
"""Of a gradient's norm: ``clipped_adam`` with this one does not clip; a kernel takes it as a constant."""

TINY = 1e-12  # a row shorter than this has no direction, and one of zeros stays as it is
_ALIGN = 64  # numbers; matrix units want their operands at multiples of 16 bytes


def padded(size: int) -> int:
    """Numbers that a tensor of ``size`` takes up in a flat buffer."""
    return size + -size % _ALIGN


def joined(tensors: Sequence[Tensor], alone: bool = True) -> Tensor | None:
    """Return the flat buffer that holds these tensors, ``padded`` each; None if there is none.

    Args:
        tensors: in the order in which they stand there.
        alone: whether it is to hold nothing else; or there may be more behind them, which is not returned.
    """
    place, storage = 0, tensors[0].untyped_storage()
    for tensor in tensors:
        here = tensor.untyped_storage().data_ptr() == storage.data_ptr() and tensor.storage_offset() == place
        if not here or not tensor.is_contiguous():
            return None
        place += padded(tensor.numel())
    size = place * tensors[0].element_size()
    if storage.nbytes() < size or (alone and storage.nbytes() > size):
        return None
    return torch.as_strided(tensors[0].detach(), (place,), (1,))


def learned(module: nn.Module) -> list[nn.Parameter]:
    """Parameters that are to be learned, in order: all but those that somebody froze (``requires_grad_(False)``)."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def flat(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the flat buffer that the parameters are views of; if they are none yet, they become so.

    Tensors that stand at multiples of 64 numbers, with zeros between them. Where they are the first of those that an
    optimizer has, as the layers of critics before their encoders, it is the first part of its buffer.
    """
    whole = joined(parameters, alone=False)
    if whole is None:
        sizes = [padded(p.numel()) for p in parameters]
        whole = torch.zeros(sum(sizes), device=parameters[0].device)
        for parameter, part in zip(parameters, torch.split(whole, sizes), strict=True):
            view = part[: parameter.numel()].view_as(parameter)
            view.copy_(parameter.detach())
            parameter.data = view
    return whole


def _clipped_adam_cpu(
    parameter: Tensor, gradient: Tensor, moment: Tensor, square: Tensor, step: Tensor, rate: Tensor, allowed: Tensor,
    max_norm: float, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Do as ``clipped_adam`` does by PyTorch's own fused step: one pass over the buffers and not ten."""
    norm = torch.linalg.vector_norm(gradient)
    # The host may look: nothing runs ahead of it here. Numbers are float32 as the plain text's are.
    size, permit = norm.numpy()[()], allowed.numpy()[()]
    if not (size < math.inf and (abs(permit) < math.inf if allowed.is_floating_point() else permit)):
        return norm, torch.zeros_like(norm)
    factor = np.float32(max_norm) * (1 / (size + np.float32(1e-6))) if max_norm < NO_LIMIT else 1.0
    if factor < 1:
        gradient = gradient * float(factor)
    step.add_(1)
    torch._fused_adam_(
        [parameter], [gradient], [moment], [square], [], [step], lr=rate, beta1=beta1, beta2=beta2, weight_decay=0.0,
        eps=eps, amsgrad=False, maximize=False,
    )  # fmt: skip
    return norm, torch.ones_like(norm)


@accelerated("adam:clipped_adam", cpu=_clipped_adam_cpu if hasattr(torch, "_fused_adam_") else None)
def clipped_adam(
    parameter: Tensor, gradient: Tensor, moment: Tensor, square: Tensor, step: Tensor, rate: Tensor, allowed: Tensor,
    max_norm: float, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Limit a gradient's norm and take a step of Adam (Kingma & Ba 2015, arXiv:1412.6980), in place.

    Args:
        parameter: ``[P]``, all parameters in one buffer.
        gradient: ``[P]``, unchanged.
        moment: ``[P]``, running mean of gradients.
        square: ``[P]``, running mean of their squares.
        step: scalar, steps taken so far.
        rate: scalar, learning rate.
        allowed: scalar; false, or a loss that is not finite, leaves everything as it is, and so does a gradient that
            is not finite.
        max_norm: gradients are scaled down to this norm.
        beta1: weight of the past in ``moment``.
        beta2: weight of the past in ``square``.
        eps: added to the root of the mean square.

    Returns:
        The gradient's norm before, and 1 if the step was taken, else 0; scalars.
    """
    norm = gradient.norm()
    taken = norm.isfinite() & (allowed.isfinite() if allowed.is_floating_point() else allowed)
    gradient = gradient * (max_norm / (norm + 1e-6)).clamp(max=1)
    count = step + taken
    first = torch.lerp(moment, gradient, 1 - beta1)
    second = beta2 * square + (1 - beta2) * gradient * gradient
    scale = (1 - beta2 ** count.double()).sqrt().to(rate.dtype)
    change = rate / (1 - beta1 ** count.double()).to(rate.dtype) * first / (second.sqrt() / scale + eps)
    for target, new in ((parameter, parameter - change), (moment, first), (square, second), (step, count)):
        target.copy_(torch.where(taken, new, target))
    return norm, taken.to(norm.dtype)


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
    @accelerated("adam:unit_rows", of=1)
    def project(self, wanted: Tensor) -> None:
        """Divide every row by its norm, in place and without a read by the host.

        Args:
            wanted: scalar; 0 leaves everything as it is, to the bit.
        """
        for weight in self.weights:
            weight.copy_(torch.where(wanted != 0, F.normalize(weight, dim=1, eps=TINY), weight))


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
        self.moving: Tensor | None = None  # bool [P], where parameters may change; None: everywhere
        self.fixed_rate: Tensor | None = None  # the learning rate instead, where it is more than 0
        self._parts: list[Tensor] = []
        self._addresses: list[int] = []
        self._own_parts()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def _own_parts(self) -> list[Tensor]:
        """The gradient's buffer by parameter; anew where ``module.double()`` has moved those that were ``grad``."""
        if not self._parts or [part.data_ptr() for part in self._parts] != self._addresses:
            parts = torch.split(self.gradient, [padded(p.numel()) for p in self.parameters])
            self._parts = [part[: p.numel()].view_as(p) for part, p in zip(parts, self.parameters, strict=True)]
            self._addresses = [part.data_ptr() for part in self._parts]
        return self._parts

    def gather(self) -> None:
        """Let gradients be written to where ``step`` wants them: each ``grad`` becomes a part of one buffer."""
        for parameter, part in zip(self.parameters, self._own_parts(), strict=True):
            parameter.grad = part

    @torch.no_grad()
    def hold(self, still: Sequence[Tensor], rate: Tensor | None = None) -> None:
        """Let some of the parameters keep still, to the bit, until the next call; so do their moments.

        The first call belongs before anything is recorded as a graph, later ones may come whenever.

        Args:
            still: those; others may be among them.
            rate: learning rate meanwhile, a scalar; None: the usual one.
        """
        if self.moving is None or self.fixed_rate is None:
            self.moving = torch.ones_like(self.value, dtype=torch.bool)
            self.fixed_rate = torch.zeros_like(self.learning_rate)
        places = {tensor.data_ptr() for tensor in still}
        sizes = [padded(parameter.numel()) for parameter in self.parameters]
        for parameter, part in zip(self.parameters, torch.split(self.moving, sizes), strict=True):
            part.fill_(parameter.data_ptr() not in places)
        self.fixed_rate.fill_(0.0) if rate is None else self.fixed_rate.copy_(rate)

    def reset(self) -> None:
        """Begin anew: no moments, no steps taken."""
        for part in self.state_dict().values():
            part.zero_()

    @torch.no_grad()
    def collected(self) -> Tensor:
        """The gradient in one buffer ``[P]``."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        whole: Tensor | None = self.gradient
        if not all(map(operator.is_, gradients, self._parts)):
            whole = joined(gradients)  # some kernels write them so
        if whole is None:
            whole = self.gradient
            torch._foreach_copy_(self._own_parts(), gradients)
        return whole

    @torch.no_grad()
    def step(self, allowed: Tensor, shared: bool = False) -> tuple[Tensor, Tensor]:
        """Clip and step, unless ``allowed`` is false, or a loss or gradient that is not finite: then nothing changes.

        With several ranks the gradient is its mean over them, and what is not allowed on one is so on none.

        Args:
            allowed: scalar, whether to take the step, or the loss that is to be finite.
            shared: whether gradient and ``allowed`` are those of all ranks already; see
                ``distributed.share_gradients``.

        Returns:
            The gradient's norm before clipping, and 1 if the step was taken, else 0; scalars.
        """
        whole = self.collected()
        if not shared and world().several:
            loss = allowed.to(whole.dtype) if allowed.is_floating_point() else torch.where(allowed, 0.0, torch.nan)
            together = average(torch.cat([whole, loss.view(1)]))
            whole, allowed = together[:-1], together[-1]
        if self.moving is None or self.fixed_rate is None:
            return self._step(whole, self.learning_rate, allowed)
        changed = self.value, self.moment, self.square
        before = [buffer.clone() for buffer in changed]
        rate = torch.where(self.fixed_rate > 0, self.fixed_rate, self.learning_rate)
        result = self._step(whole * self.moving, rate, allowed)
        for buffer, old in zip(changed, before, strict=True):
            buffer.copy_(torch.where(self.moving, buffer, old))
        return result

    def _step(self, gradient: Tensor, rate: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        norm, taken = clipped_adam(
            self.value, gradient, self.moment, self.square, self.count, rate, allowed, max_norm=self.max_norm
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


def step_all(optimizers: Sequence[FlatAdam], allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Take a step with each optimizer, whose gradients are those of all ranks; see ``FlatAdam.step``.

    Returns:
        The norm of all gradients together, before clipping, and 1 if all steps were taken, else 0; scalars.
    """
    results = [optimizer.step(allowed, shared=True) for optimizer in optimizers]
    if len(results) == 1:
        return results[0]
    norms, taken = torch.stack([torch.stack(result) for result in results]).unbind(1)
    return norms.norm(), taken.amin()


@torch.no_grad()
def polyak_update(target: Tensor, source: FlatAdam, tau: float) -> None:
    """Polyak update of target networks: ``target <- (1 - tau) target + tau source`` (arXiv:1509.02971, section 3).

    Averages of rows of unit length are left as they are, at most 1 long, as in SimbaV2 and FlashSAC.

    Args:
        target: ``[P]``, the flat buffer of the target networks' parameters; changed in place.
        source: the optimizer of the learned networks, whose buffer has the same layout.
        tau: from 0 to 1.
    """
    target.lerp_(source.value, tau)


def descend(optimizer: FlatAdam, loss: Tensor) -> Tensor:
    """Take a gradient step on a scalar loss, unless it is not finite; returns the gradient's norm before clipping."""
    optimizer.zero_grad()
    parameters = optimizer.parameters
    # Only for this optimizer's parameters: what else the loss went through is to stay as it is.
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters, optimizer.one), strict=True):
        parameter.grad = gradient
    return optimizer.step(loss.detach())[0]
