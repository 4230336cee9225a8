"""Spaces of gymnasium as flat groups: choices one-hot, tuples and nested dicts side by side."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, iterate
from numpy.typing import NDArray

LARGEST = 100_000
"""Numbers that an observation may become."""

KINDS = "a Box, Discrete, MultiDiscrete, MultiBinary, or a Tuple or Dict of such"
"""What observations may be, in words."""


def refusal(space: spaces.Space[Any]) -> str | None:
    """Why a space cannot be laid out flat, or None where it can."""
    wrong = [part for part in _leaves(space) if not isinstance(part, _SIMPLE)]
    if wrong:
        return f"is {space}; rlcore takes {KINDS}"
    if spaces.flatdim(space) > LARGEST:
        return f"is {space}, {spaces.flatdim(space):,} numbers when laid out; rlcore takes at most {LARGEST:,}"
    return None


def flat_box(space: spaces.Space[Any]) -> spaces.Box:
    """The space of ``flatten``'s result."""
    box = spaces.flatten_space(space)
    assert isinstance(box, spaces.Box)
    return box


def flatten(space: spaces.Space[Any], value: Any) -> NDArray[np.float32]:
    """One observation as a vector: a choice of n as n numbers, of which one is 1."""
    return np.asarray(spaces.flatten(space, value), dtype=np.float32)


def flatten_batch(space: spaces.Space[Any], values: Any, num_envs: int) -> NDArray[np.float32]:
    """The observations of a vector env as ``[N, O]``."""
    rows: Iterable[Any] = iterate(batch_space(space, num_envs), values)
    return np.stack([flatten(space, row) for row in rows])


def terms_of(group: str, space: spaces.Space[Any]) -> list[dict[str, Any]]:
    """What the numbers of a group are, for the exported file: the members of a tuple or dict, in order."""
    members: list[tuple[str, spaces.Space[Any]]] = [(group, space)]
    if isinstance(space, spaces.Tuple):
        members = [(f"{group}_{i}", part) for i, part in enumerate(space.spaces)]
    elif isinstance(space, spaces.Dict):
        members = list(space.spaces.items())
    return [{"name": name, "size": spaces.flatdim(part), "space": str(part)} for name, part in members]


_SIMPLE = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def _leaves(space: spaces.Space[Any]) -> list[spaces.Space[Any]]:
    if isinstance(space, (spaces.Tuple, spaces.Dict)):
        parts = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
        return [leaf for part in parts for leaf in _leaves(part)]
    return [space]


def parts_of(space: spaces.Space[Any]) -> dict[str, spaces.Space[Any]]:
    """The space of each observation group: the keys of a ``Dict``, else ``policy``."""
    return dict(space.spaces) if isinstance(space, spaces.Dict) else {"policy": space}


def group_spaces(task: str, space: spaces.Space[Any]) -> dict[str, spaces.Box]:
    """Each observation group of an env as a flat float32 ``Box``; warns of one that has another shape.

    Raises:
        ValueError: a space that cannot be laid out flat; the message names it and the remedy.
    """
    groups: dict[str, spaces.Box] = {}
    for group, part in parts_of(space).items():
        if not isinstance(part, spaces.Box):
            reason = refusal(part)
            if reason is not None:
                raise ValueError(f"{task}: observation '{group}' {reason}; wrap the env (--env.wrappers module:Class)")
            groups[group] = _flat_box(flat_box(part))
            continue
        if len(part.shape) != 1:
            size = int(np.prod(part.shape))
            warnings.warn(
                f"{task}: observation '{group}' of shape {part.shape} is flattened to {size} numbers", stacklevel=3
            )
        groups[group] = _flat_box(part)
    return groups


def flat_action_space(task: str, space: spaces.Space[Any]) -> spaces.Box | spaces.Discrete:
    """The actions of an env as a flat ``Box``, or as choices.

    Raises:
        ValueError: a space of another kind; the message names it.
    """
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(int(space.n))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return _flat_box(space)
    raise ValueError(f"{task}: action space {space} is not supported; rlcore takes a float Box or Discrete")


def _flat_box(box: spaces.Box) -> spaces.Box:
    """The same bounds, flat and float32; bounds beyond float32 become infinite."""
    with np.errstate(over="ignore"):
        low, high = (np.asarray(bound, dtype=np.float32).reshape(-1) for bound in (box.low, box.high))
    return spaces.Box(low, high, dtype=np.float32)
