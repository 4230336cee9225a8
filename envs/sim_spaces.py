"""Spaces of Isaac Lab and mjlab as ours: terms side by side in a vector, pictures of cameras with channels first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rlcore.encoders import scaled
from rlcore.env import dtype_of
from rlcore.envs import unknown_option
from rlcore.envs.arrays import as_tensor
from rlcore.envs.gym_spaces import channels_first

_Path = tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """One box of what a simulator hands out, which is a group of its own or one of its terms."""

    path: _Path
    """Keys that lead to it; the first is the simulator's group."""
    space: Any
    """Its box: gymnasium's, or mjlab's own."""
    axes: tuple[int, ...] | None
    """Of pictures, its axes in the order frames, channels, height, width; None for all else."""
    bytes: bool
    """Whether they are pictures of uint8."""

    @property
    def name(self) -> str:
        """What the term is called in the exported file."""
        return "/".join(self.path[1:]) or self.path[0]

    @property
    def size(self) -> int:
        """Numbers that it has."""
        return int(np.prod(self.space.shape))

    @property
    def sides(self) -> tuple[int, ...]:
        """Height and width of a picture."""
        return tuple(self.space.shape[axis] for axis in (self.axes or ())[-2:])


@dataclass(frozen=True)
class Group:
    """An observation group: vectors side by side, or pictures of one size with their channels one after the other."""

    parts: tuple[Part, ...]
    box: spaces.Box
    """Of shape ``[O]``, or ``[C, H, W]``."""

    @property
    def source(self) -> str:
        """The simulator's group."""
        return self.parts[0].path[0]

    def read(self, observation: Mapping[str, Any], num_envs: int, device: torch.device) -> Tensor:
        """A copy ``[N, O]`` float32, or ``[N, C, H, W]`` float32 or uint8, on a device."""
        values = []
        for part in self.parts:
            value: Any = observation
            for key in part.path:
                value = value[key]
            value = as_tensor(value)
            if part.axes is not None:
                value = value.permute(0, *(axis + 1 for axis in part.axes)).reshape(num_envs, -1, *part.sides)
                # Isaac Lab's spaces say float32 of pictures in bytes, too.
                values.append(value if self.box.dtype == np.uint8 else scaled(value))
            else:
                values.append(value.reshape(num_envs, -1))
        whole = values[0] if len(values) == 1 else torch.cat(values, 1)
        return whole.to(device, dtype_of(self.box), copy=len(values) == 1, memory_format=torch.contiguous_format)


def read_groups(task: str, core: Any, wanted: Sequence[str] | None, notes: list[str]) -> dict[str, Group]:
    """The observation groups of a simulator's env.

    A group of unconcatenated terms is joined in the order of its terms: vectors to a vector, pictures of one size to
    one picture with all their channels. Pictures beside vectors, or of several sizes, are groups ``<group>/<term>``.

    Args:
        task: for messages.
        core: the simulator's env.
        wanted: groups to read; None for all.
        notes: takes a line on what is laid out in another way than the simulator does.

    Raises:
        ValueError: an unknown group, or a space that is neither a box nor a dict of them.
    """
    found = dict(core.single_observation_space.spaces)
    for group in wanted or ():
        if group not in found:
            raise ValueError(unknown_option(task, f"groups={group}", [f"groups={name}" for name in found]))
    terms = getattr(getattr(core, "observation_manager", None), "active_terms", {})
    groups: dict[str, Group] = {}
    for group in wanted or found:
        # In the env's order: gymnasium sorts the keys of a Dict.
        leaves = _leaves(f"{task}: observation '{group}'", found[group], (group,), terms.get(group))
        parts = [_part(core, path, space) for path, space in leaves]
        pictures = [part for part in parts if part.axes is not None]
        vectors = tuple(part for part in parts if part.axes is None)
        if vectors:
            groups[group] = _vector(vectors)
            if len(parts) == 1 and len(parts[0].space.shape) != 1:
                shape, size = tuple(parts[0].space.shape), parts[0].size
                notes.append(f"observation '{group}' of shape {shape} is flattened to {size} numbers")
        if pictures and not vectors and len({part.sides for part in pictures}) == 1:
            groups[group] = _picture(pictures)
            if len(pictures) > 1:
                names = ", ".join(part.name for part in pictures)
                notes.append(f"observation '{group}': {names} are channels of one picture")
        elif pictures:
            apart = {f"{group}/{part.name}": _picture([part]) for part in pictures}
            groups |= apart
            notes.append(f"observation '{group}': pictures are groups of their own, {', '.join(apart)}")
    return groups


def _vector(parts: tuple[Part, ...]) -> Group:
    lows, highs = zip(*(bounds_of(part.space) for part in parts), strict=True)
    return Group(parts, spaces.Box(np.concatenate(lows), np.concatenate(highs), dtype=np.float32))


def _picture(parts: Sequence[Part]) -> Group:
    sides = parts[0].sides
    shape = (sum(part.size for part in parts) // (sides[0] * sides[1]), *sides)
    if all(part.bytes for part in parts):
        return Group(tuple(parts), spaces.Box(0, 255, shape, dtype=np.uint8))
    return Group(tuple(parts), spaces.Box(-np.inf, np.inf, shape, dtype=np.float32))


def _part(core: Any, path: _Path, space: Any) -> Part:
    axes = channels_first(tuple(space.shape)) if len(space.shape) > 2 else None
    of_bytes = str(getattr(space, "dtype", None)) == "uint8" or _hands_out_bytes(core, path)
    return Part(path, space, axes, axes is not None and of_bytes)


def _hands_out_bytes(core: Any, path: _Path) -> bool:
    """Whether Isaac Lab 3 knows of terms that they are uint8, and nothing is done to them; spaces do not tell."""
    manager = getattr(core, "observation_manager", None)
    types = getattr(manager, "_term_output_specs", {})
    group, *inner = path
    names = list(getattr(manager, "active_terms", {}).get(group, ()))
    configs = dict(zip(names, getattr(manager, "_group_obs_term_cfgs", {}).get(group, ()), strict=False))
    terms = inner or names
    plain = all(
        getattr(configs.get(term), step, None) is None for term in terms for step in ("modifiers", "noise", "scale")
    )
    return bool(terms) and plain and all((types.get((group, term)) or (0, 0))[1] == torch.uint8 for term in terms)


def _leaves(where: str, space: Any, path: _Path, order: Sequence[str] | None = None) -> list[tuple[_Path, Any]]:
    parts = getattr(space, "spaces", None)
    if isinstance(parts, Mapping):
        names = list(order) if order is not None and set(order) == set(parts) else list(parts)
        return [leaf for name in names for leaf in _leaves(where, parts[name], (*path, name))]
    if not hasattr(space, "low"):
        raise ValueError(
            f"{where} is {space}; rlcore takes boxes, or dicts of them: change it in the task's configuration"
        )
    return [(path, space)]


def bounds_of(box: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Lower and upper bounds of a box, flat."""
    low, high = (np.broadcast_to(np.asarray(x, dtype=np.float32), box.shape).reshape(-1) for x in (box.low, box.high))
    return low, high


def read_action_space(task: str, space: Any) -> tuple[spaces.Box | spaces.Discrete, tuple[int, ...]]:
    """A simulator's action space as a flat box or as choices, and the shape of the action that it takes.

    Raises:
        ValueError: a space of another kind.
    """
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(int(space.n)), (1,)
    if hasattr(space, "low"):
        low, high = bounds_of(space)
        return spaces.Box(low, high, dtype=np.float32), tuple(space.shape)
    raise ValueError(f"{task}: action space {space} is not supported; rlcore takes a Box or Discrete")
