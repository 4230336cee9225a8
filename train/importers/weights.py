"""What is read of another library's checkpoint: its tensors by the names that they have here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from rlcore.config import ConfigError, shown
from rlcore.names import nearest_names

Moments = tuple[Tensor, Tensor]
"""Adam's running means of a parameter's gradient and of its square."""


@dataclass(frozen=True)
class Piece:
    """A tensor, and what Adam knows of it."""

    theirs: str
    """Its name in the file, or those of its parts."""
    value: Tensor
    moments: Moments | None = None

    def scaled(self, factor: Tensor | float) -> Piece:
        """The piece times a factor, with the moments of gradients by the product."""
        moments = None if self.moments is None else (self.moments[0] / factor, self.moments[1] / factor**2)
        return replace(self, value=self.value * factor, moments=moments)


@dataclass
class Weights:
    """All that a checkpoint holds and rlcore can use."""

    library: str
    file: str
    algo: str = "ppo"
    pieces: dict[str, Piece] = field(default_factory=dict)
    """By our names, as ``policy.trunk.mlp.layers.0.weight``; those of a part of the agent that is no module alike. The
    deviation itself is ``policy.head.std``, ``[A]``."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the agent, that the file alone tells; nested."""
    shapes: dict[str, Any] = field(default_factory=dict)
    """Of the agent, that follow from shapes, and that a configuration may tell as well; nested."""
    source: dict[str, Any] = field(default_factory=dict)
    """Settings in the library's own words, as far as the file tells them."""
    activation: str = "elu"
    """What the networks' nonlinearity usually is, which tensors do not tell."""
    known_activation: bool = False
    steps: dict[str, int] = field(default_factory=dict)
    """Of Adam, by the part of the agent: ``policy``, ``critic``; none of one whose Adam begins anew."""
    learning_rate: float | None = None
    progress: str = ""
    """How far it was trained, in words."""
    notes: list[str] = field(default_factory=list)


class Tensors:
    """The tensors of a file, each of which is to be used once.

    Args:
        content: by name; what is no tensor of numbers is refused.
        weights: what they become.
        moments: Adam's, by the name of the parameter.
    """

    def __init__(self, content: Any, weights: Weights, moments: Mapping[str, Moments] | None = None) -> None:
        if not isinstance(content, Mapping) or not content:
            raise ConfigError(f"'{weights.file}' has {shown(content)} where {weights.library} has a network's tensors")
        for name, value in content.items():
            if not isinstance(name, str) or not isinstance(value, Tensor) or value.is_sparse or value.is_quantized:
                raise ConfigError(f"'{weights.file}': {shown(name)} is {shown(value)}, and no tensor; check the file")
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise ConfigError(
                    f"'{weights.file}': {name} has values that are not finite; give an earlier checkpoint"
                )
        self.content: dict[str, Tensor] = {name: value.detach() for name, value in content.items()}
        self.weights, self.moments = weights, dict(moments or {})
        self.left = dict.fromkeys(self.content)

    def __contains__(self, name: str) -> bool:
        return name in self.content

    def names(self, prefix: str) -> list[str]:
        """Names that begin so, in the file's order."""
        return [name for name in self.content if name.startswith(prefix)]

    def piece(self, name: str, dims: int | None = None) -> Piece:
        """A tensor, of so many dimensions.

        Raises:
            ConfigError: it is missing, or has another number of dimensions.
        """
        if name not in self.content:
            near = nearest_names(name, list(self.left), 1)
            hint = f"; the nearest is {near[0]}" if near else ""
            raise ConfigError(f"'{self.weights.file}' has no tensor {name}, as {self.weights.library} has it{hint}")
        value = self.content[name]
        if dims is not None and value.dim() != dims:
            raise self.unfit(name, f"{('a number', 'a vector', 'a matrix')[dims]} was expected")
        self.left.pop(name, None)
        return Piece(name, value.float(), self.moments.get(name))

    def exact(self, name: str) -> Tensor:
        """A tensor of statistics, float64."""
        self.piece(name)
        return self.content[name].double()

    def unfit(self, name: str, why: str) -> ConfigError:
        """The error of a tensor that does not fit."""
        return ConfigError(f"'{self.weights.file}': {name} {shape_text(self.content[name])} does not fit: {why}")

    def put(self, ours: str, theirs: str, dims: int | None = None) -> Piece:
        """Use a tensor as it is."""
        piece = self.weights.pieces[ours] = self.piece(theirs, dims)
        return piece

    def linear(self, ours: str, theirs: str) -> int:
        """Use a linear layer; returns its outputs."""
        weight = self.put(f"{ours}.weight", f"{theirs}.weight", 2).value
        self.put(f"{ours}.bias", f"{theirs}.bias", 1)
        return len(weight)

    def layers(self, prefix: str) -> list[str]:
        """Names of the linear layers ``prefix.0``, ``prefix.2`` and so on, in order."""
        found = {int(m[1]) for n in self.content if (m := re.fullmatch(rf"{re.escape(prefix)}\.(\d+)\.weight", n))}
        return [f"{prefix}.{i}" for i in sorted(found)]

    def perceptron(self, ours: str, layers: Sequence[str]) -> list[int]:
        """Use linear layers as the hidden layers of a network; returns their widths."""
        return [self.linear(f"{ours}.mlp.layers.{2 * i}", layer) for i, layer in enumerate(layers)]

    def recurrent(self, ours: str, theirs: str) -> dict[str, Any]:
        """Use the layers of a ``torch.nn.LSTM`` or ``GRU``; returns the settings, without its place."""
        weight = self.piece(f"{theirs}.weight_hh_l0", 2).value
        hidden = weight.shape[1]
        kinds = {4 * hidden: "lstm", 3 * hidden: "gru"}
        if len(weight) not in kinds:
            raise self.unfit(f"{theirs}.weight_hh_l0", "neither an LSTM nor a GRU has such a matrix")
        count = 0
        while f"{theirs}.weight_ih_l{count}" in self.content:
            for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                self.put(f"{ours}.cells.{count}.{part}", f"{theirs}.{part}_l{count}")
            count += 1
        return {"type": kinds[len(weight)], "hidden_size": hidden, "num_layers": count}

    def normalizer(self, ours: str, names: tuple[str, str, str], epsilon: float, inside: bool) -> None:
        """Use running statistics of mean, variance and count, so that what is divided by is the same to the bit or so.

        Here that is ``std + obs_epsilon``; where theirs is ``sqrt(var + epsilon)``, the deviation is taken less by
        ``obs_epsilon = sqrt(epsilon)``, which is never more than it.

        Args:
            ours: name of the normalizer.
            names: of mean, variance and count.
            epsilon: what the library adds.
            inside: whether it adds it to the variance, and not to the deviation.
        """
        mean, var, count = (self.exact(name) for name in names)
        mean, var = mean.flatten(), var.flatten()
        if mean.shape != var.shape or count.numel() != 1 or bool((var < 0).any()):
            raise self.unfit(names[1], f"{names[0]} is {shape_text(mean)}, and variances are 0 or more")
        if inside:
            var = ((var + epsilon).sqrt() - epsilon**0.5).square()
        put_statistics(self.weights, ours, names, mean, var, float(count))

    def finish(self, ignored: Iterable[str] = ()) -> None:
        """Refuse the first tensor that nobody used.

        Args:
            ignored: beginnings of names of those that say nothing.
        """
        for name in self.left:
            if not name.startswith(tuple(ignored)):
                raise self.unfit(name, "rlcore's networks have no such part")


def put_statistics(weights: Weights, ours: str, names: Sequence[str], mean: Tensor, var: Tensor, count: float) -> None:
    """Add the pieces of a running normalizer; mean and variance ``[size]``."""
    for part, theirs, value in (("mean", names[0], mean), ("var", names[1], var)):
        weights.pieces[f"{ours}.{part}"] = Piece(theirs, value.float())
    counts = torch.full_like(mean, max(count, 0.0), dtype=torch.float64)
    weights.pieces[f"{ours}.count"] = Piece(names[2], counts)
    weights.pieces[f"{ours}.huge"] = Piece(names[2], torch.zeros_like(mean, dtype=torch.float32))


def put_value_scale(
    weights: Weights, names: Sequence[str], mean: Tensor, var: Tensor, count: float, std: Tensor
) -> None:
    """Add a normalizer of returns: the critic's last layer is scaled such that its values stay what they were.

    Args:
        weights: with the critic's pieces.
        names: of its statistics.
        mean: ``[1]``, float64.
        var: ``[1]``, float64.
        count: of returns in it.
        std: ``[1]``, by which the library multiplies what its critic says.
    """
    factor = (std / (var.sqrt() + 1e-2)).float()
    if factor.shape != (1,) or not bool((factor > 0).all() and factor.isfinite().all() and mean.isfinite().all()):
        raise ConfigError(f"'{weights.file}': {names[1]} is no variance of returns above 0; check the file")
    put_statistics(weights, "value_normalizer", names, mean, var, count)
    for part in ("weight", "bias"):
        name = f"critic.value.{part}"
        weights.pieces[name] = weights.pieces[name].scaled(factor)
    weights.settings["normalize_value"] = True


def joined(pieces: Sequence[Piece]) -> Piece:
    """Pieces one above the other, as one."""
    moments = [piece.moments for piece in pieces]
    both: Moments | None = None
    if all(m is not None for m in moments):
        both = torch.cat([m[0] for m in moments if m]), torch.cat([m[1] for m in moments if m])
    return Piece(" and ".join(p.theirs for p in pieces), torch.cat([p.value for p in pieces]), both)


def adam(
    weights: Weights, content: Any, parameters: Sequence[tuple[str, Tensor]], parts: Sequence[str]
) -> dict[str, Moments]:
    """Adam's moments by the names of parameters, in whose order the optimizer was given them; none if they do not fit.

    Args:
        weights: gets the number of steps and the learning rate, or a note that says what does not fit.
        content: ``state_dict`` of a ``torch.optim.Adam``.
        parameters: names and tensors.
        parts: of the agent, that they become.
    """
    if not isinstance(content, Mapping) or not isinstance(content.get("state"), Mapping):
        weights.notes.append("the file has no state of an optimizer; Adam begins anew")
        return {}
    state, groups = content["state"], content.get("param_groups") or []
    found: dict[str, Moments] = {}
    order: list[Any] = (
        [i for g in groups if isinstance(g, Mapping) for i in g.get("params", ())] if isinstance(groups, list) else []
    )
    steps: set[int] = set()
    for index, (name, value) in zip(order, parameters, strict=False):
        entry = state.get(index)
        if entry is None:  # of a parameter without a gradient
            continue
        both: list[Any] = [entry.get("exp_avg"), entry.get("exp_avg_sq")] if isinstance(entry, Mapping) else [None]
        fits = all(isinstance(part, Tensor) and part.shape == value.shape for part in both)
        if not fits or not all(bool(part.isfinite().all()) for part in both) or bool((both[1] < 0).any()):
            weights.notes.append(f"the optimizer's state does not fit {name} {shape_text(value)}; Adam begins anew")
            return {}
        steps.add(int(entry.get("step", 0)))
        found[name] = (both[0].float(), both[1].float())
    if len(order) != len(parameters) or len(steps) != 1:
        weights.notes.append(
            f"the optimizer has {len(order)} parameters and the networks {len(parameters)}, or they took different "
            "numbers of steps; Adam begins anew"
            if steps
            else "the optimizer has taken no step; Adam begins anew"
        )
        return {}
    weights.steps |= dict.fromkeys(parts, steps.pop())
    rates = [group.get("lr") for group in groups if isinstance(group, Mapping)]
    if rates and isinstance(rates[0], (int, float, Tensor)):
        weights.learning_rate = float(rates[0])
    return found


def shape_text(value: Tensor) -> str:
    """``[16, 3]``."""
    return f"[{', '.join(map(str, value.shape))}]"
