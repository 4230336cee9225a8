"""Perceptrons whose backward pass is written out, for a CPU.

Autograd keeps an account of each operator and gives each gradient memory of its own, from where it is copied to the
optimizer's buffer. Here it is written there at once, by the operators that autograd runs, so the bits are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlcore.dispatch import written_out_runs
from rlcore.networks import IN_PLACE, MLP, Network
from rlcore.optimizer import FlatAdam

_SELU = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946  # alpha and scale, arXiv:1706.02515
_aten = torch.ops.aten
_DERIVATIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "elu": lambda gradient, output: _aten.elu_backward(gradient, 1, 1, 1, True, output),
    "relu": lambda gradient, output: _aten.threshold_backward(gradient, output, 0),
    "tanh": lambda gradient, output: _aten.tanh_backward(gradient, output),
    "leaky_relu": lambda gradient, output: _aten.leaky_relu_backward(gradient, output, 0.01, True),
    "selu": lambda gradient, output: _aten.elu_backward(gradient, *_SELU, 1, True, output),
}
"""Of the functions of ``IN_PLACE``, by what they give."""


class Perceptron:
    """Hidden layers and a linear head."""

    def __init__(self, trunk: Network, head: nn.Linear) -> None:
        mlp = trunk.mlp
        assert isinstance(mlp, MLP)
        self.layers = [(layer.weight, layer.bias) for layer in (*mlp.linear(), head)]
        self.function, self.derivative = IN_PLACE[mlp.activation], _DERIVATIVES[mlp.activation]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return ``x`` ``[..., K]`` as rows, and what each layer makes of it, the head's last."""
        outputs = [x.reshape(-1, x.shape[-1])]
        for weight, bias in self.layers[:-1]:
            outputs.append(self.function(F.linear(outputs[-1], weight, bias)))
        return [*outputs, F.linear(outputs[-1], *self.layers[-1])]

    def backward(self, outputs: list[Tensor], gradient: Tensor) -> None:
        """Write the parameters' gradients, by that of the head's output, over those that they have."""
        for i in reversed(range(len(self.layers))):
            weight, bias = self.layers[i]
            torch.sum(gradient, 0, out=bias.grad)
            torch.mm(gradient.t(), outputs[i], out=weight.grad)
            if i > 0:
                gradient = self.derivative(gradient.mm(weight), outputs[i])


def is_perceptron(network: Network) -> bool:
    """Whether ``Perceptron`` is for the network."""
    return isinstance(network.mlp, MLP) and network.mlp.known and not network.recurrent and network.encoders is None


def unhindered(optimizer: FlatAdam) -> bool:
    """Whether all of its parameters are to be learned, and nobody listens to their gradients."""
    return all(p.requires_grad and not p._backward_hooks for p in optimizer.parameters)


class WrittenOut:
    """Networks that read the same, differentiated by their outputs alone: what is below these is written out.

    Args:
        trunks: hidden layers of each of C networks, for which ``is_perceptron`` holds.
        heads: last layer of each.
        optimizer: of their parameters, and of no others.
    """

    def __init__(self, trunks: Sequence[Network], heads: Sequence[nn.Linear], optimizer: FlatAdam) -> None:
        self.networks = [Perceptron(trunk, head) for trunk, head in zip(trunks, heads, strict=True)]
        self.optimizer = optimizer
        self._passed: tuple[Tensor, list[list[Tensor]]] | None = None  # the latest output, and what led to it

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor | None:
        """Map ``[B, K]`` to ``[C, B, outputs]``, for one ``backward``; None where autograd is to do it."""
        if not written_out_runs(x) or not unhindered(self.optimizer):
            return None
        layers = [network.forward(x) for network in self.networks]
        self._passed = torch.stack([outputs[-1] for outputs in layers]).requires_grad_(), layers
        return self._passed[0]

    def backward(self, loss: Tensor) -> bool:
        """Write the gradients by a loss of the latest output, and forget that; False where there is none."""
        if self._passed is None:
            return False
        (output, layers), self._passed = self._passed, None
        (gradient,) = torch.autograd.grad(loss, [output], self.optimizer.one)
        self.optimizer.gather()
        with torch.no_grad():
            for network, outputs, part in zip(self.networks, layers, gradient.unbind(), strict=True):
                network.backward(outputs, part)
        return True
