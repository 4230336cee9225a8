"""What single values of other libraries' settings are in rlcore, and their objects as plain mappings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

ACTIVATIONS = {
    "elu": "elu",
    "relu": "relu",
    "tanh": "tanh",
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "selu": "selu",
    "lrelu": "leaky_relu",
    "leakyrelu": "leaky_relu",
    "leaky_relu": "leaky_relu",
}
"""Names that the libraries use, in lower case and without ``nn.``, by the name of the same function here."""


def number(value: Any) -> float:
    """A float, also from text, because YAML 1.1 reads ``1e-3`` as text; NaN and truth values are refused."""
    try:
        given = math.nan if isinstance(value, bool) or not isinstance(value, (int, float, str)) else float(value)
    except (ValueError, OverflowError):
        given = math.nan
    if math.isnan(given):
        raise ValueError("give a number")
    return given


def whole(value: Any) -> int:
    """An int, also from ``1e6`` or text."""
    if abs(number(value)) > 1e18 or number(value) != int(number(value)):
        raise ValueError("give a whole number" + " below 10^18" * (abs(number(value)) > 1e18))
    return int(number(value))


def positive(value: Any) -> int:
    """An int of at least 1."""
    if whole(value) < 1:
        raise ValueError("give 1 or more")
    return whole(value)


def pair(value: Any) -> tuple[float, float]:
    """Two numbers."""
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("give two numbers")
    return number(value[0]), number(value[1])


def flag(value: Any) -> bool:
    """A truth value, never a number."""
    if not isinstance(value, bool):
        raise ValueError("give true or false")
    return value


def empty(value: Any) -> bool:
    """Whether a value stands for nothing, as do the texts "None" and "null"."""
    return value is None or (isinstance(value, str) and value.lower() in ("none", "null", ""))


def optional(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Like ``convert``, but nothing stays None."""
    return lambda value: None if empty(value) else convert(value)


def one_of(choices: Mapping[Any, Any]) -> Callable[[Any], Any]:
    """Translate by a table."""

    def convert(value: Any) -> Any:
        if not isinstance(value, (str, bool, type(None))) or value not in choices:
            raise ValueError(f"known are {', '.join(map(repr, choices))}")
        return choices[value]

    return convert


def widths(value: Any) -> list[int]:
    """Hidden layer sizes."""
    return [whole(width) for width in (value if isinstance(value, list) else [value])]


def activation(value: Any) -> str:
    """The name of an activation here, from any library's name for it."""
    name = str(value).rpartition(":")[2].rpartition(".")[2].lower()  # nn.ELU, torch.nn.modules.activation:ELU
    if name not in ACTIVATIONS:
        raise ValueError(f"rlcore has {', '.join(sorted(set(ACTIVATIONS.values())))}")
    return ACTIVATIONS[name]


def names(value: Any) -> list[str] | None:
    """Names of observation groups; None for an empty list."""
    return [str(name) for name in ([value] if isinstance(value, str) else value)] or None


def plain(value: Any) -> Any:
    """Turn nested objects into dicts and lists, leaving out what was never set; nothing is called or evaluated."""
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, Mapping):
        return _plain_items(value.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value if not _missing(item)]
    if isinstance(value, type) or callable(value):
        return f"{value.__module__}:{getattr(value, '__qualname__', type(value).__qualname__)}"
    if dataclasses.is_dataclass(value):
        found = {field.name: getattr(value, field.name, dataclasses.MISSING) for field in dataclasses.fields(value)}
        return _plain_items({**vars(value), **found}.items())
    # A plain object keeps its defaults in its class.
    attributes = {name: getattr(value, name) for name in dir(value) if not name.startswith("_")}
    return _plain_items((name, item) for name, item in attributes.items() if not callable(item))


def _plain_items(items: Any) -> dict[str, Any]:
    return {str(key): plain(value) for key, value in items if not _missing(value) and not str(key).startswith("__")}


def _missing(value: Any) -> bool:
    # Isaac Lab copies the marker deeply, so that it is not the same object any more.
    return isinstance(value, type(dataclasses.MISSING)) or (isinstance(value, str) and value == "???")
