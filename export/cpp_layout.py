"""How numbers lie in C++: where operators that only move them take them from, weights in panels, and as text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

PANEL = 64  # outputs, as in rlcore_policy.hpp
Places = NDArray[np.int64]


def _sliced(places: Places, others: Sequence[Any], attributes: Mapping[str, Any], shapes: Any) -> list[Places]:
    starts, ends, axes, steps = [*(np.asarray(other).tolist() for other in others), None, None][:4]
    index = [slice(None)] * places.ndim
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis, step = (axes[i] if axes else i), (steps[i] if steps else 1)
        # A negative step that ends before the first cannot say so with a number from the front.
        index[axis] = slice(start, None if step < 0 and end < -places.shape[axis] else end, step)
    return [places[tuple(index)]]


def _split(places: Places, others: Sequence[Any], attributes: Mapping[str, Any], shapes: Any) -> list[Places]:
    axis = attributes.get("axis", 0)
    return np.split(places, np.cumsum([shape[axis] for shape in shapes])[:-1], axis)


def _reshaped(places: Places, others: Sequence[Any], attributes: Mapping[str, Any], shapes: Any) -> list[Places]:
    return [places.reshape(shapes[0])]


def _taken(places: Places, others: Sequence[Any], attributes: Mapping[str, Any], shapes: Any) -> list[Places]:
    return [np.take(places, np.asarray(others[0]).astype(int), attributes.get("axis", 0))]


MOVES: dict[str, Callable[[Any, Sequence[Any], Mapping[str, Any], Any], list[Places]]] = {
    **dict.fromkeys(("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout"), _reshaped),
    "Slice": _sliced,
    "Split": _split,
    "Gather": _taken,
    "Concat": lambda places, others, attributes, shapes: [np.concatenate(places, attributes["axis"])],
    "Transpose": lambda places, others, attributes, shapes: [np.transpose(places, attributes.get("perm"))],
    "Expand": lambda places, others, attributes, shapes: [np.broadcast_to(places, shapes[0])],
    "Tile": lambda places, others, attributes, shapes: [np.tile(places, np.asarray(others[0]).astype(int))],
}
"""What only moves numbers, as a function of their places, constant inputs, attributes and shapes of what comes out."""


def panels(weight: NDArray[Any], bias: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A layer's weight ``[Out, In]`` and bias ``[Out]`` in the order in which ``rlcore_policy.hpp`` reads them."""
    rows = -(-len(weight) // 8) * 8
    w, b = np.zeros((rows, weight.shape[1]), np.float32), np.zeros(rows, np.float32)
    w[: len(weight)], b[: len(bias)] = weight, bias
    return np.concatenate([w[i : i + PANEL].T.reshape(-1) for i in range(0, rows, PANEL)]), b


def number(value: float) -> str:
    """A float32 in C++, to the bit."""
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    text = f"{np.float32(value):.9g}"
    return f"{text}f" if any(mark in text for mark in ".en") else f"{text}.0f"
