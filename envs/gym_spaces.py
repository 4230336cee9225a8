"""Spaces of gymnasium as groups: choices one-hot, tuples and nested dicts side by side, images with channels first."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, iterate
from numpy.typing import NDArray
from torch import Tensor

from rlcore.types import Obs

Arrays = dict[str, NDArray[Any]]
"""Observation groups, ``[N, ...]`` each."""

LARGEST = 100_000
"""Numbers that an observation may become."""

SMALLEST_IMAGE = 8
"""Height and width in pixels below which 0..255 are no image but the squares of a board, say."""

MOST_CHANNELS = 4
"""Of an image of floats; with more, 0..1 are rather features of the squares of a board."""

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


@dataclass(frozen=True)
class Layout:
    """How an observation of an env becomes a row of a group."""

    space: spaces.Space[Any]
    """What the env gives."""
    box: spaces.Box
    """What is in the group: numbers ``[O]`` of float32, or an image ``[C, H, W]`` of uint8 or float32."""
    axes: tuple[int, ...] | None = None
    """Of an image, the axes of what the env gives in the order frames, channels, height, width; None for others."""

    @property
    def converts(self) -> bool:
        """Whether it is more than to write all numbers in a row."""
        return self.axes is not None or not isinstance(self.space, spaces.Box)

    def row(self, value: Any) -> NDArray[Any]:
        """One observation: a choice of n as n numbers, of which one is 1.

        Raises:
            ValueError: an image of another shape than its space.
        """
        if self.axes is None:
            return np.asarray(spaces.flatten(self.space, value), dtype=np.float32)
        if np.shape(value) != self.space.shape:
            raise ValueError(f"an image has shape {np.shape(value)}, its space {self.space.shape}")
        return np.transpose(value, self.axes).reshape(self.box.shape)

    def rows(self, values: Any, num_envs: int) -> NDArray[Any]:
        """The observations of a vector env, ``[N, O]`` or ``[N, C, H, W]``."""
        if self.axes is not None:
            return np.transpose(values, (0, *(axis + 1 for axis in self.axes))).reshape(num_envs, *self.box.shape)
        rows: Iterable[Any] = iterate(batch_space(self.space, num_envs), values)
        return np.stack([self.row(row) for row in rows])


def image_axes(space: spaces.Space[Any]) -> tuple[int, ...] | None:
    """The axes of an image in the order frames, channels, height, width, or None where the space is no image's.

    Images are of uint8, 0 to 255: ``(H, W)``, ``(H, W, C)``, ``(C, H, W)``, and a stack of either of the latter,
    ``(S, H, W, C)`` or ``(S, C, H, W)``; or of floats, 0 to 1: ``(H, W, C)`` and ``(C, H, W)`` of up to four channels.
    """
    if not isinstance(space, spaces.Box) or not 2 <= len(space.shape) <= 4:
        return None
    floats = bool(np.issubdtype(space.dtype, np.floating))
    if not floats and space.dtype != np.uint8:
        return None
    if (space.low != 0).any() or (space.high != (1 if floats else 255)).any():
        return None
    axes = channels_first(space.shape)
    if floats and (axes is None or len(axes) != 3 or space.shape[axes[0]] > MOST_CHANNELS):
        return None
    return axes


def channels_first(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The axes of an image of this shape in the order frames, channels, height, width, or None where it is too small.

    The last axis is that of the channels if it is the shortest of the last three.
    """
    last = len(shape) - 1
    if not 1 <= last <= 3:
        return None
    if last == 1:
        axes: tuple[int, ...] = (0, 1)
    elif shape[last] < min(shape[last - 2 : last]):
        axes = (*range(last - 2), last, last - 2, last - 1)
    else:
        axes = tuple(range(last + 1))
    return axes if min(shape[axis] for axis in axes[-2:]) >= SMALLEST_IMAGE else None


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


def layouts_of(task: str, space: spaces.Space[Any]) -> dict[str, Layout]:
    """The observation groups of an env, the keys of a ``Dict``, else ``policy``; warns of a box that is flattened.

    Raises:
        ValueError: a space that cannot be laid out flat; the message names it and the remedy.
    """
    layouts: dict[str, Layout] = {}
    for group, part in (space.spaces if isinstance(space, spaces.Dict) else {"policy": space}).items():
        if not isinstance(part, spaces.Box):
            reason = refusal(part)
            if reason is not None:
                raise ValueError(f"{task}: observation '{group}' {reason}; wrap the env (--env.wrappers module:Class)")
            flat = spaces.flatten_space(part)
            assert isinstance(flat, spaces.Box)
            layouts[group] = Layout(part, _flat_box(flat))
            continue
        axes = image_axes(part)
        if axes is not None:
            height, width = (part.shape[axis] for axis in axes[-2:])
            shape = (int(np.prod(part.shape)) // (height * width), height, width)
            image = part.dtype == np.uint8
            layouts[group] = Layout(
                part, spaces.Box(0, 255 if image else 1, shape, np.uint8 if image else np.float32), axes
            )
            continue
        if len(part.shape) != 1:
            size = int(np.prod(part.shape))
            warnings.warn(
                f"{task}: observation '{group}' of {part.dtype} and shape {part.shape} is flattened to {size} numbers; "
                f"if it is an image, let it be uint8 of 0 to 255 or float32 of 0 to 1, {SMALLEST_IMAGE} pixels or more "
                "wide and high (--env.wrappers module:Class)",
                stacklevel=3,
            )
        layouts[group] = Layout(part, _flat_box(part))
    return layouts


def flat_action_space(task: str, space: spaces.Space[Any]) -> spaces.Box | spaces.Discrete | spaces.MultiDiscrete:
    """The actions of an env as a flat ``Box``, or as choices that begin with 0.

    Raises:
        ValueError: a space of another kind; the message names it.
    """
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        return spaces.MultiDiscrete(space.nvec.reshape(-1))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return _flat_box(space)
    raise ValueError(
        f"{task}: action space {space} is not supported; rlcore takes a float Box, Discrete or MultiDiscrete"
    )


def _flat_box(box: spaces.Box) -> spaces.Box:
    """The same bounds, flat and float32; bounds beyond float32 become infinite."""
    with np.errstate(over="ignore"):
        low, high = (np.asarray(bound, dtype=np.float32).reshape(-1) for bound in (box.low, box.high))
    return spaces.Box(low, high, dtype=np.float32)


def to_torch(
    boxes: Mapping[str, spaces.Box],
    groups: Arrays,
    others: Sequence[NDArray[Any]],
    device: torch.device,
    own: bool = False,
) -> tuple[Obs, tuple[Tensor, ...]]:
    """Copies of observation groups, rewards ``[N]`` and flags ``[N]``, all but images in one transfer to a GPU.

    Args:
        boxes: space of each group.
        groups: ``[N, ...]`` each.
        others: rewards, then flags; or nothing.
        device: where they go.
        own: nobody else writes into these arrays, so that on a CPU they need not be copied.
    """
    if device.type == "cpu":
        taken = np.asarray if own else np.array
        obs = {}
        for group, box in boxes.items():
            value = taken(groups[group], box.dtype, order="C")
            obs[group] = torch.from_numpy(value.reshape(len(value), *box.shape))
        rest = [taken(x, np.bool_ if i else np.float32) for i, x in enumerate(others)]
        return obs, tuple(map(torch.from_numpy, rest))
    images = {group: np.array(groups[group], order="C") for group, box in boxes.items() if box.dtype == np.uint8}
    vectors = [group for group in boxes if group not in images]
    arrays = [np.asarray(groups[group]).reshape(-1) for group in vectors] + list(others)
    # concatenate copies: vector envs may write their next observations into the same arrays.
    flat = np.concatenate([*arrays, np.empty(0)], dtype=np.float32, casting="unsafe")  # of pictures alone nothing
    parts = torch.from_numpy(flat).to(device).split_with_sizes([len(array) for array in arrays])
    moved = {group: torch.from_numpy(image).to(device) for group, image in images.items()}
    moved |= {group: part.view(-1, *boxes[group].shape) for group, part in zip(vectors, parts, strict=False)}
    others_there = (part != 0 if i else part for i, part in enumerate(parts[len(vectors) :]))
    return {group: moved[group] for group in boxes}, tuple(others_there)
