"""Hidden layers: multi-layer perceptrons, residual networks, and what comes before and after them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlcore.activations import MODULES, Activation
from rlcore.capture import side_by_side
from rlcore.config import ConfigError, check, nearest
from rlcore.dispatch import accelerated
from rlcore.encoders import CNNConfig, Encoders, Shape
from rlcore.own_network import OwnNetwork
from rlcore.recurrent import RNN, RNNConfig
from rlcore.types import Obs, State
from rlcore.user_code import is_place, written_as

# In place, as nothing else reads what a layer's product leaves: no new memory, which would be as large as the layer.
IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu_,
    "relu": F.relu_,
    "tanh": torch.tanh_,
    "leaky_relu": F.leaky_relu_,
    "selu": F.selu_,
}
ACTIVATIONS = frozenset(IN_PLACE)
"""Activations of ``mlp``: those whose derivative follows from their output."""

KINDS = ("mlp", "residual")
"""Networks that there are; others are a user's own."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """A multi-layer perceptron, residual blocks, or a network of one's own."""

    kind: str = "mlp"
    """mlp: hidden layers one after the other; residual: blocks that each add to what they are given, see ``Residual``;
    or one of your own, FILE.py:Class or module:Class, which reads of these settings what it likes: ``own_network``."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of a network of your own."""
    hidden_dims: tuple[int, ...] = (256, 128, 64)
    """Width of each hidden layer; of each residual block, which are all as wide as the first."""
    layer_norm: bool = False
    """Normalize what enters each activation of a perceptron (Ba et al. 2016, arXiv:1607.06450); residual blocks always
    do."""
    expansion: int = 4
    """Width of the hidden layer inside a residual block, in widths of the block."""
    unit_norm: Literal["none", "hidden", "all"] = "none"
    """Bring each row of a residual network's weights to unit length, at the start and after every step of Adam: those
    of hidden layers, or all, the last layer's too (SimbaV2, arXiv:2502.15280; FlashSAC). Biases are free. SAC and DDPG
    alone have it; their target networks are averages, whose rows are a little shorter."""
    activation: Activation = "elu"
    """Nonlinearity after each hidden layer."""
    init: Literal["orthogonal", "default"] = "orthogonal"
    """Initial weights: orthogonal (gain sqrt 2, outputs 0.01 for actions and 1 for values), or PyTorch's default."""
    rnn: RNNConfig = field(default_factory=RNNConfig)
    """A recurrent layer, for tasks where the present observation is not enough."""
    cnn: CNNConfig = field(default_factory=CNNConfig)
    """Convolutions for image groups; their features go before the vectors, to all other layers."""
    task_heads: bool = True
    """With several tasks: a last layer for each; false: one for all, which knows the task from its input alone."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        own = self.kind not in KINDS
        if own:
            remedy = f"{nearest(self.kind, KINDS)}; one of your own is FILE.py:Class or module:Class"
            check(is_place(self.kind), "kind", self.kind, remedy)
            object.__setattr__(self, "kind", written_as(self.kind))
        remedy = "they are for a network of your own, which kind names; leave them out"
        check(own or not self.options, "options", self.options, remedy)
        check(all(d > 0 for d in self.hidden_dims), "hidden_dims", self.hidden_dims, "widths are at least 1")
        check(self.expansion >= 1, "expansion", self.expansion, "set at least 1")
        if self.kind == "residual":
            same = len(set(self.hidden_dims)) == 1
            check(same, "hidden_dims", self.hidden_dims, "residual blocks are equally wide, such as [256, 256]")
        # A perceptron's gain is the length of its rows, and layer_norm has weights that would have to be held as well.
        fits = self.unit_norm == "none" or self.kind == "residual"
        check(fits, "unit_norm", self.unit_norm, "a perceptron needs the length of its rows; set kind to residual")


def _rounds(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: str, precision: str, *_: Any, **__: Any
) -> bool:
    return precision != "fp32"


@accelerated("mlp:mlp", when=_rounds)
def mlp(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activation: str,
    precision: str = "fp32",
    head: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Apply hidden layers ``y = act(y @ w.T + b)`` one after the other, and a linear head, differentiably.

    Args:
        x: input ``[..., K]``, float32 (or bfloat16 where the precision is).
        weights: float32 ``[N, K]`` of each layer.
        biases: float32 ``[N]`` of each layer.
        activation: one of ``ACTIVATIONS``.
        precision: on CUDA ``tf32``, products of numbers in TF32, to which outputs of layers are rounded, weights and
            ``x`` cut off; ``bf16``, products and stored outputs of the layers in bfloat16; ``fp32``, as PyTorch is set,
            which is what a CPU does. Sums, head, result and gradients are float32 in all. What cuBLAS does follows
            PyTorch's own setting for TF32 besides.
        head: weight ``[A, N]`` and bias ``[A]`` of a last layer without activation; its gradients cost next to nothing.

    Returns:
        Features ``[..., N]`` of the last layer, or the head's output ``[..., A]``, float32.
    """
    shape = x.shape[:-1]
    x = x.to(weights[0].dtype)
    x = x if len(shape) == 1 else x.reshape(-1, x.shape[-1])  # of more dimensions products are views
    if x.is_cuda and precision == "bf16":
        with torch.autocast("cuda", torch.bfloat16):
            x = _hidden(x, weights, biases, activation).float()
    else:
        x = _hidden(x, weights, biases, activation)
    y = F.linear(x, *head) if head is not None else x
    return y if len(shape) == 1 else y.view(*shape, y.shape[-1])


def _hidden(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: str) -> Tensor:
    for w, b in zip(weights, biases, strict=True):
        x = IN_PLACE[activation](F.linear(x, w, b))
    return x


class MLP(nn.Module):
    """Hidden layers.

    Args:
        inputs: size of the input.
        config: widths, activation, initial weights.
    """

    def __init__(self, inputs: int, config: NetworkConfig) -> None:
        super().__init__()
        self.size = config.hidden_dims[-1] if config.hidden_dims else inputs
        """Size of the output."""
        self.precision = "fp32"
        """How CUDA multiplies: fp32, tf32, or bf16; inputs, outputs and weights are float32 in any case."""
        self.fused = False
        """Whether CUDA runs the hidden layers as ``mlp`` does, whose kernels have activations inside the products."""
        self.known = config.activation in ACTIVATIONS and len(config.hidden_dims) > 0 and not config.layer_norm
        """Whether ``mlp`` can do it."""
        self.activation = config.activation
        self.layers = nn.Sequential()
        for width in config.hidden_dims:
            self.layers.append(nn.Linear(inputs, width))
            if config.layer_norm:
                self.layers.append(nn.LayerNorm(width))
            self.layers.append(MODULES[config.activation]())
            inputs = width
        self._held = self.layers._modules
        if config.init == "orthogonal":
            orthogonal_(self, math.sqrt(2))

    def linear(self) -> list[nn.Linear]:
        """Return the layers that have weights, normalizations aside."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def forward(self, x: Tensor, head: nn.Linear | None = None) -> Tensor:
        """Map ``[..., inputs]`` to ``[..., size]``, or to a linear head's output."""
        # On a CPU it spares the calls of a module for each layer and activation, and of autocast.
        if self.known and (self.fused or not x.is_cuda):
            # From the modules' own tables, at each call: others may have been put in their place, and a module takes as
            # long to find its weight as a small product does.
            weights: list[Any] = []
            biases: list[Any] = []
            for layer in self._held.values():
                if table := layer._parameters:
                    weights.append(table["weight"])
                    biases.append(table["bias"])
            last = None if head is None else (head.weight, head.bias)
            return mlp(x, weights, biases, self.activation, self.precision, last)
        with torch.autocast("cuda", torch.bfloat16, enabled=x.is_cuda and self.precision == "bf16"):
            features = self.layers(x).float()
        return features if head is None else head(features)  # type: ignore[no-any-return]


class Residual(nn.Module):
    """Residual blocks in the manner of SimBa (Lee et al. 2024, arXiv:2410.09754).

    A linear layer leads to the width of the blocks. A block normalizes, widens, activates, narrows and adds the result
    to what it was given; what leaves the last block is normalized once more. Normalizations have no weights of their
    own, because a linear layer follows each, and the narrowing layers no biases, each of whose gradients would be one
    more sum over the batch.

    Args:
        inputs: size of the input.
        config: number and width of blocks, expansion, activation, initial weights.
    """

    def __init__(self, inputs: int, config: NetworkConfig) -> None:
        super().__init__()
        self.size = config.hidden_dims[0]
        """Size of the output."""
        self.precision = "fp32"
        """As for ``MLP``."""
        self.fused = False
        """Not used: there are no kernels of our own for it."""
        wide = config.expansion * self.size
        self.entry = nn.Linear(inputs, self.size)
        self.widen = nn.ModuleList(nn.Linear(self.size, wide) for _ in config.hidden_dims)
        self.narrow = nn.ModuleList(nn.Linear(wide, self.size, bias=False) for _ in config.hidden_dims)
        self.activation = MODULES[config.activation]()
        if config.init == "orthogonal":
            orthogonal_(self, math.sqrt(2))

    def forward(self, x: Tensor, head: nn.Linear | None = None) -> Tensor:
        """Map ``[..., inputs]`` to ``[..., size]``, or to a linear head's output."""
        parameters: Sequence[Tensor] = list(self.parameters())
        if x.is_cuda and self.precision == "bf16":
            # Not by autocast, which would normalize in float32 and convert back and forth.
            x, parameters = x.bfloat16(), _Rounded.apply(*parameters)  # type: ignore[no-untyped-call]
        # In the order of the layers above: weight and bias of entry, then of each widening, then narrowing weights.
        weight, bias, *rest = parameters
        x = F.linear(x, weight, bias)
        count = len(self.narrow)
        for i in range(count):
            wide = self.activation(F.linear(F.layer_norm(x, (self.size,)), rest[2 * i], rest[2 * i + 1]))
            x = x + F.linear(wide, rest[2 * count + i])
        features = F.layer_norm(x, (self.size,)).float()
        return features if head is None else head(features)


class _Rounded(torch.autograd.Function):
    """Tensors in bfloat16, and their gradients in float32: one kernel each, however many tensors there are."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        rounded = [torch.empty_like(tensor, dtype=torch.bfloat16) for tensor in tensors]
        torch._foreach_copy_(rounded, tensors)
        return tuple(rounded)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        full = [torch.empty_like(gradient, dtype=torch.float32) for gradient in gradients]
        torch._foreach_copy_(full, gradients)
        return tuple(full)


class Network(nn.Module):
    """Hidden layers, with a recurrent layer before or after them if configured.

    Args:
        inputs: size of the vectors that it reads.
        config: see ``NetworkConfig``.
        images: shapes of the image groups that it reads besides.
    """

    def __init__(self, inputs: int, config: NetworkConfig, images: Mapping[str, Shape] | None = None) -> None:
        super().__init__()
        rnn = config.rnn
        self.encoders = Encoders(images, config.cnn, config.init) if images else None
        inputs += 0 if self.encoders is None else self.encoders.size
        before, after = (rnn.type != "none" and rnn.position == place for place in ("before", "after"))
        self.before = RNN(inputs, rnn) if before else None
        build = {"mlp": MLP, "residual": Residual}.get(config.kind, OwnNetwork)
        layers = build(rnn.hidden_size if before else inputs, config)
        assert isinstance(layers, (MLP, Residual, OwnNetwork))
        self.mlp = layers
        own_state = isinstance(layers, OwnNetwork) and layers.recurrent
        if own_state and rnn.type != "none":
            raise ConfigError(f"network '{config.kind}': it has a state itself; set its rnn.type ({rnn.type}) to none")
        self.after = RNN(self.mlp.size, rnn) if after else None
        self.size = rnn.hidden_size if after else self.mlp.size
        """Size of the output."""
        self.recurrent = before or after or own_state

    def initial_state(self, num_envs: int) -> State:
        """Zero state for ``num_envs`` envs; ``()`` without a recurrent layer."""
        rnn = self.before or self.after or self.mlp
        return () if isinstance(rnn, (MLP, Residual)) else rnn.initial_state(num_envs)

    def forward(
        self, x: Tensor, head: nn.Linear, state: State, keep: Tensor | None = None, raw: Obs | None = None
    ) -> tuple[Tensor, State]:
        """Map a sequence, or one step, to a linear head's output and the next state; see ``RNN.forward``.

        Args:
            x: ``[T, N, inputs]``, or ``[N, inputs]`` of one step.
            head: what follows the last layer.
            state: before the first step.
            keep: ``[T, N, 1]``, 0 where an episode begins.
            raw: images ``[T, N, C, H, W]``, or ``[N, C, H, W]``, by group, where it reads any; it may hold others.
        """
        if self.encoders is not None:
            if raw is None:
                raise ValueError(f"images {self.encoders.groups} are not given; pass raw with all of raw_shapes")
            x = self.encoders(raw, x)
        if self.before is not None:
            x, state = self.before(x, state, keep, self.mlp.precision)
        if isinstance(self.mlp, OwnNetwork) and self.mlp.recurrent:
            x, state = self.mlp.unroll(x, state, keep)
            return head(x), state
        if self.after is None:
            return self.mlp(x, head), state
        x, state = self.after(self.mlp(x), state, keep, self.mlp.precision)
        return head(x), state


_MOST_ROWS, _MOST_INPUTS, _WIDEST = 512, 1024, 512
"""Up to here one kernel for all layers is taken to be faster than one for each; counted by launches, not measured. The
features of an image are often more."""


def _small(trunk: Network, x: Tensor) -> bool:
    mlp = trunk.mlp
    if not (isinstance(mlp, MLP) and mlp.known) or trunk.recurrent or mlp.precision not in ("fp32", "tf32"):
        return False
    few = x.dim() == 2 and x.shape[0] <= _MOST_ROWS and x.shape[1] <= _MOST_INPUTS
    return few and all(layer.out_features <= _WIDEST for layer in mlp.linear())


def _small_one(trunk: Network, head: nn.Linear, x: Tensor) -> bool:
    return _small(trunk, x)


def _small_ones(trunks: Sequence[Network], heads: Sequence[nn.Linear], x: Tensor, *_: Any, **__: Any) -> bool:
    return _small(trunks[0], x)


@accelerated("ensemble:network_output", of=2, when=_small_one)
def network_output(trunk: Network, head: nn.Linear, x: Tensor) -> Tensor:
    """Map ``[B, inputs]`` to a linear head's output ``[B, outputs]``, by a network without a recurrent layer."""
    return trunk(x, head, ())[0]  # type: ignore[no-any-return]


@accelerated("ensemble:network_outputs", of=2, when=_small_ones)
def network_outputs(
    trunks: Sequence[Network],
    heads: Sequence[nn.Linear],
    x: Tensor,
    action: Tensor | None = None,
    count: int | None = None,
) -> Tensor:
    """Map the same input through networks of equal shape without recurrent layers, differentiably.

    Args:
        trunks: hidden layers of each of C networks, one or more.
        heads: last layer of each, without activation.
        x: ``[B, K]``, float32.
        action: ``[B, A]``, joined to it; or none.
        count: networks to ask, from the first on; none: all.

    Returns:
        ``[count, B, outputs]``.
    """
    x = x if action is None else torch.cat([x, action], -1)
    return torch.stack(_each(trunks, heads, x, 0, len(heads) if count is None else count))


def _each(trunks: Sequence[Network], heads: Sequence[nn.Linear], x: Tensor, first: int, last: int) -> list[Tensor]:
    if last - first == 1:
        trunk, head = trunks[first], heads[first]
        # Our kernels take in a head of few outputs; a wide one is better left to cuBLAS.
        return [head(trunk.mlp(x)) if head.out_features > 1 else trunk(x, head, ())[0]]
    one, others = side_by_side(
        lambda: _each(trunks, heads, x, first, first + 1), lambda: _each(trunks, heads, x, first + 1, last), len(x)
    )
    return one + others


def orthogonal_(module: nn.Module, gain: float) -> None:
    """Set every linear layer in ``module`` to orthogonal weights and zero bias (Saxe et al. 2014, arXiv:1312.6120)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def unit_weights(network: nn.Module, config: NetworkConfig) -> list[Tensor]:
    """Weights ``[outputs, inputs]`` whose rows are to be of unit length, see ``NetworkConfig.unit_norm``.

    Args:
        network: hidden layers and what comes after them.
        config: of the hidden layers.
    """
    if config.unit_norm == "none":
        return []
    parts = [m for m in network.modules() if isinstance(m, Residual)] if config.unit_norm == "hidden" else [network]
    return [layer.weight for part in parts for layer in part.modules() if isinstance(layer, nn.Linear)]
