"""Observation groups: which of them feed the actor and which the critic, and how they get there."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from rlcore.config import ConfigError, check, nearest
from rlcore.encoders import Shape
from rlcore.env import DYNAMICS, EnvSpec
from rlcore.types import Obs


def concatenate(obs: Obs, groups: Sequence[str]) -> Tensor:
    """Join observation groups in the given order, ``[..., O]``; without any, ``[N, 0]``."""
    if not groups:
        any_group = next(iter(obs.values()))
        return any_group.new_empty((any_group.shape[0], 0), dtype=torch.float32)
    return obs[groups[0]] if len(groups) == 1 else torch.cat([obs[group] for group in groups], dim=-1)


def choose_groups(
    there: Collection[str], actor: Sequence[str] | None, critic: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Settle which observation groups feed the actor and which the critic.

    Unless configured, the actor reads ``policy``, else ``actor``, else the only group there is; the critic reads
    ``critic``, else what the actor reads.

    Args:
        there: the groups that there are.
        actor: groups that are configured for the actor; None for the default.
        critic: those for the critic.

    Returns:
        The actor's groups and the critic's, each in the order in which they are joined.

    Raises:
        ConfigError: a configured group does not exist or is named twice, none is named, or there is no default for the
            actor.
    """
    for key, groups in (("actor_obs", actor), ("critic_obs", critic)):
        if groups is not None:
            distinct = 0 < len(groups) == len(set(groups))
            check(distinct, key, groups, f"name one or more of {', '.join(there)}, each once")
        for group in groups or ():
            if group not in there:
                raise ConfigError(f"{key}: the env has no observation group '{group}'; {nearest(group, there)}")
    if actor is None:
        default = next((group for group in ("policy", "actor") if group in there), None)
        if default is None and len(own := [group for group in there if group != DYNAMICS]) == 1:
            default = own[0]
        if default is None:
            raise ConfigError(f"actor_obs: the env has no group 'policy' or 'actor'; choose from {', '.join(there)}")
        actor = (default,)
    if critic is None:
        critic = ("critic",) if "critic" in there else actor
    return tuple(actor), tuple(critic)


def groups_of(spec: EnvSpec) -> tuple[str, ...]:
    """All observation groups of an env, vectors first."""
    return (*spec.observation_sizes, *spec.image_shapes)


def vectors(spec: EnvSpec, groups: Sequence[str]) -> dict[str, int]:
    """Size of each of the groups that is a vector, in their order."""
    return {group: spec.observation_sizes[group] for group in groups if group in spec.observation_sizes}


def images(spec: EnvSpec, groups: Sequence[str]) -> dict[str, Shape]:
    """Channels, height and width of each of the groups that is an image, in their order."""
    return {group: (c, h, w) for group in groups for c, h, w in [spec.image_shapes.get(group, (0, 0, 0))] if c}


def check_normalized(spec: EnvSpec, read: Iterable[str], wanted: bool | Sequence[str]) -> None:
    """Refuse ``normalize_obs`` of the settings where it names what nobody reads; images may be named to no effect.

    Args:
        spec: of the env.
        read: groups that actor and critic read.
        wanted: the setting.

    Raises:
        ConfigError: one of its groups is none of the env's, or read by nobody.
    """
    read = tuple(read)
    for group in () if isinstance(wanted, bool) else wanted:
        if group not in groups_of(spec):
            hint = nearest(group, groups_of(spec))
            raise ConfigError(f"normalize_obs: '{group}' is no observation group, True or False; {hint}")
        check(group in read, "normalize_obs", group, "nobody reads it; name it in actor_obs or critic_obs as well")


def as_stored(obs: Obs, groups: Iterable[str]) -> Obs:
    """The groups that a network reads as they come, images and masks, with 0 for what is not a number."""
    return {g: x if x.dtype == torch.uint8 else torch.nan_to_num(x, 0.0, 0.0, 0.0) for g in groups for x in [obs[g]]}


def as_read(obs: Obs, groups: Iterable[str]) -> Obs:
    """What ``as_stored`` gives, to the bit, by comparisons that every runtime of an exported file has."""
    return {
        g: x if x.dtype == torch.uint8 else torch.where(x.abs() < math.inf, x, 0.0) for g in groups for x in [obs[g]]
    }


def unread(spec: EnvSpec, read: Iterable[str]) -> list[str]:
    """A line that names the groups that no network reads; nothing where there are none."""
    left = [group for group in groups_of(spec) if group not in set(read)]
    if not left:
        return []
    return [
        f"observation groups that nobody reads: {', '.join(left)}; name them in actor_obs or critic_obs to use them"
    ]
