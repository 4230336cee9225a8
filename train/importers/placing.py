"""Another library's weights in an agent of ours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rlcore.config import ConfigError
from rlcore.distributions import GaussianHead
from rlcore.optimizer import FlatAdam, padded
from rlcore.train.importers.weights import Piece, Weights, shape_text

PARTS = (
    "policy", "critic", "critics", "target_critics", "value_normalizer", "critic_normalizer", "log_temperature",
    "step_sizes", "context",
)  # fmt: skip
"""What of an agent has weights, by the attribute that holds it."""

_OWN = ("policy.action_scale", "policy.action_bias", "policy.gate.")
"""Beginnings of names of what follows from the env and the settings."""


def tensors_of(agent: Any) -> dict[str, Tensor]:
    """The tensors of an agent by dotted name, as ``policy.trunk.mlp.layers.0.weight``; to be changed in place."""
    found: dict[str, Tensor] = {}
    for part in PARTS:
        value = getattr(agent, part, None)
        if isinstance(value, nn.Module):
            found |= {f"{part}.{name}": tensor for name, tensor in value.state_dict().items()}
        elif isinstance(value, Tensor):
            found[part] = value.detach()
    return found


def optimizers_of(agent: Any) -> list[FlatAdam]:
    """Every Adam of an agent."""
    values = [item for value in vars(agent).values() for item in (value if isinstance(value, list) else [value])]
    return [value for value in values if isinstance(value, FlatAdam)]


@torch.no_grad()
def place(agent: Any, weights: Weights, remedy: str) -> list[str]:
    """Put weights, statistics and Adam's state into an agent.

    Args:
        agent: whose networks are built with the settings that the weights tell.
        weights: of another library.
        remedy: what to do where the env is another.

    Returns:
        What is to be said of it.

    Raises:
        ConfigError: names the first tensor that does not fit, its shape and what was expected.
    """
    pieces = dict(weights.pieces)
    _share_normalizer(agent, pieces)
    if "policy.head.std" in pieces:
        pieces["policy.head.raw_std"] = raw_std(agent.policy.head, pieces.pop("policy.head.std"), weights.file)
    own = tensors_of(agent)
    written: set[int] = set()
    for name, piece in pieces.items():
        if name not in own:
            raise ConfigError(
                f"'{weights.file}': {piece.theirs} {shape_text(piece.value)} does not fit: with these settings the "
                f"agent has no {name}; {remedy}"
            )
        if own[name].shape != piece.value.shape:
            raise ConfigError(
                f"'{weights.file}': {piece.theirs} is {shape_text(piece.value)}, and {shape_text(own[name])} was "
                f"expected ({name}); {remedy}"
            )
        if not bool(piece.value.isfinite().all()):
            raise ConfigError(
                f"'{weights.file}': {piece.theirs} comes to numbers that are not finite ({name}); give an earlier "
                "checkpoint"
            )
        own[name].copy_(piece.value)
        written.add(own[name].data_ptr())
    for name, tensor in own.items():
        if tensor.data_ptr() not in written and not name.startswith(_OWN):
            raise ConfigError(
                f"'{weights.file}' has no tensor for {name} {shape_text(tensor)}, which these settings want; {remedy}"
            )
    return _place_moments(agent, weights, pieces)


def _share_normalizer(agent: Any, pieces: dict[str, Piece]) -> None:
    """Let the critic do with the actor's statistics, where it reads the same groups and its library has two.

    Where they differ, as with statistics of the actor's alone, the critic's first layer takes in the difference.
    """
    critic = getattr(agent, "critic", None)
    if critic is None or critic.normalizer is not agent.policy.normalizer:
        return
    theirs = {net: _scale(pieces, f"{net}.normalizer", agent.config.obs_epsilon) for net in ("policy", "critic")}
    given = "critic.normalizer.mean" in pieces
    for part in ("mean", "var", "count", "huge"):
        piece = pieces.pop(f"critic.normalizer.{part}", None)
        if piece is not None and theirs["policy"] is None:
            pieces[f"policy.normalizer.{part}"] = piece  # says that it has no place
    if not given and agent.config.clip_obs is not None:  # one for both there
        return
    (mean, std), (own_mean, own_std) = (
        theirs[net] or (torch.zeros(()), torch.ones(())) for net in ("policy", "critic")
    )
    same = torch.equal(mean, own_mean) and torch.equal(std, own_std)
    first = next((name for name in pieces if name.startswith("critic.") and pieces[name].value.dim() == 2), None)
    if same or first is None:
        return
    if agent.config.clip_obs is not None:
        raise ConfigError(
            "actor and critic have other statistics of the same observations, and limit them; give other groups"
        )
    bias = first.replace("weight", "bias")
    weight, shift = pieces[first].value, pieces[bias].value
    pieces[first] = Piece(pieces[first].theirs, weight * (std / own_std))
    pieces[bias] = Piece(pieces[bias].theirs, shift + weight @ ((mean - own_mean) / own_std).expand(weight.shape[1]))


def _scale(pieces: Mapping[str, Piece], name: str, epsilon: float) -> tuple[Tensor, Tensor] | None:
    if f"{name}.mean" not in pieces:
        return None
    return pieces[f"{name}.mean"].value, pieces[f"{name}.var"].value.sqrt() + epsilon


def raw_std(head: Any, piece: Piece, file: str) -> Piece:
    """What ``GaussianHead`` learns, for a deviation ``[A]``; the moments follow by the chain rule at that point."""
    if not isinstance(head, GaussianHead) or head.raw_std is None:
        raise ConfigError(
            f"'{file}': {piece.theirs} {shape_text(piece.value)} has no place: the env's actions are choices"
        )
    above = piece.value.double() - head.min_std
    if head.std_type == "log":
        raw, slope = above.log(), above / piece.value  # their logarithm by ours
    else:
        scaled = head.sharpness * above
        raw, slope = (scaled + torch.log(-torch.expm1(-scaled))) / head.sharpness, -torch.expm1(-scaled)
    slope = slope.float()
    moments = None if piece.moments is None else (piece.moments[0] * slope, piece.moments[1] * slope**2)
    return replace(piece, value=raw.float(), moments=moments)


def _place_moments(agent: Any, weights: Weights, pieces: Mapping[str, Piece]) -> list[str]:
    named: dict[int, str] = {}
    for name, tensor in tensors_of(agent).items():
        if name in pieces:
            named.setdefault(tensor.data_ptr(), name)
    notes = list(weights.notes)
    for optimizer in optimizers_of(agent):
        names = [named.get(parameter.data_ptr()) for parameter in optimizer.parameters]
        known = [pieces[name] for name in names if name is not None]
        steps = {weights.steps.get((name or "").partition(".")[0]) for name in names}
        if len(known) < len(names) or any(p.moments is None for p in known) or len(steps) != 1 or None in steps:
            if not any("Adam begins anew" in note for note in notes):
                notes.append("the optimizer's state is not of these parameters one by one; Adam begins anew")
            continue
        sizes = [padded(parameter.numel()) for parameter in optimizer.parameters]
        for i, buffer in enumerate((optimizer.moment, optimizer.square)):
            for piece, part in zip(known, torch.split(buffer, sizes), strict=True):
                assert piece.moments is not None
                part[: piece.value.numel()] = piece.moments[i].flatten()
        optimizer.count.fill_(float(next(iter(steps)) or 0))
    rate = weights.learning_rate
    # One that an adaptive schedule had come to is no rate to stay at.
    if rate is not None and math.isfinite(rate) and getattr(agent.config, "lr_schedule", "") == "adaptive":
        agent.learning_rate.fill_(min(max(rate, agent.config.lr_min), agent.config.lr_max))
    return notes
