"""Strict configuration: frozen dataclasses filled from YAML, with errors that name the key and the remedy."""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

import dacite
import yaml

from rlcore.files import whole_file

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message is one line that names the key and what to do."""


def closest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that a mistyped one probably means, whatever the case of its letters; None when none is close."""
    folded = {v.lower(): v for v in valid}
    found = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.6)
    return folded[found[0]] if found else None


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a hint that names the closest valid name, or all of them when none is close."""
    valid = sorted(valid)
    close = closest(name, valid)
    return f"did you mean '{close}'?" if close is not None else f"valid: {', '.join(valid)}"


def check(condition: bool, key: str, value: object, remedy: str) -> None:
    """Refuse an impossible value.

    Raises:
        ConfigError: ``condition`` is false.
    """
    if not condition:
        raise ConfigError(f"{key}: {value!r} is not possible; {remedy}")


def check_positive(settings: object, *keys: str, none: bool = False) -> None:
    """Refuse settings that are not positive and finite; ``none`` may be among them, if so given.

    Raises:
        ConfigError: one of them is something else.
    """
    for key in keys:
        value = getattr(settings, key)
        remedy = "set a positive number" + " or none" * none
        check((none and value is None) or 0 < value < math.inf, key, value, remedy)


def settings_of(config: T | None, cls: type[T]) -> T:
    """The settings that an agent was given, held to the same types as those of a file; its defaults for None.

    Raises:
        ConfigError: those of another algorithm, no settings at all, or a value of the wrong type.
    """
    if config is not None and not isinstance(config, cls):
        raise ConfigError(f"config: {type(config).__name__} is given; give a {cls.__name__}(...)")
    return cls() if config is None else from_dict(cls, to_dict(config), cls.__name__)


def from_dict(cls: type[T], data: Mapping[str, Any], source: str = "configuration") -> T:
    """Build a configuration dataclass from plain values.

    Numbers are converted by the field's type, because YAML 1.1 reads ``3e-4`` as a string.

    Args:
        cls: a dataclass, possibly nested.
        data: values by field name.
        source: the file or place that ``data`` came from, for messages.

    Raises:
        ConfigError: an unknown key, a wrong type or an impossible value.
    """
    _refuse_unknown(cls, data, source, "")
    settings = dacite.Config(strict=True, cast=[tuple], type_hooks={float: _to_float, int: to_int})
    try:
        return dacite.from_dict(cls, dict(data), settings)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    except dacite.MissingValueError as error:
        raise ConfigError(f"{source}: '{error.field_path}' is missing; set it") from None
    except (dacite.WrongTypeError, dacite.UnionMatchError) as error:
        expected = _type_name(error.field_type)
        raise ConfigError(f"{source}: {error.field_path}: {error.value!r} is not {expected}; correct it") from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source}: {error}") from None


def to_dict(config: Any) -> dict[str, Any]:
    """Return a dataclass as plain values that YAML and checkpoints can hold."""
    plain = _plain(dataclasses.asdict(config))
    assert isinstance(plain, dict)
    return plain


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping; nothing in the file is executed.

    Raises:
        ConfigError: the file is missing, is not YAML, or does not hold a mapping.
    """
    data = parse_yaml(path, yaml.SafeLoader)
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ConfigError(f"configuration file '{path}' must hold 'key: value' lines, not {type(data).__name__}")
    return data


def parse_yaml(path: str | Path, loader: type[yaml.SafeLoader]) -> Any:
    """What is in a YAML file, read by a loader that executes nothing.

    Raises:
        ConfigError: the file is missing or is not YAML; the message names the place in it.
    """
    path = Path(path)
    if path.is_dir():
        inside = path / "config.yaml"
        remedy = f"give {inside}" if inside.is_file() else "give a file in it"
        raise ConfigError(f"configuration file '{path}' is a folder; {remedy}")
    if not path.is_file():
        raise ConfigError(f"configuration file '{path}' does not exist; check the path")
    try:
        return yaml.load(path.read_text(encoding="utf-8"), loader)
    except yaml.MarkedYAMLError as error:
        where = error.problem_mark or error.context_mark
        place = "" if where is None else f"line {where.line + 1}, column {where.column + 1}: "
        reason = f"{place}{' '.join((error.problem or error.context or 'it cannot be read').split())}"
        if "'\\t'" in reason:
            reason = f"{place}a tab; indent with spaces"
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
    raise ConfigError(f"configuration file '{path}' is not plain YAML: {reason}")


def save_yaml(path: str | Path, config: Any) -> None:
    """Write a configuration dataclass so that ``from_dict(cls, load_yaml(path))`` gives it back."""
    with whole_file(path) as file:
        file.write(yaml.safe_dump(to_dict(config), sort_keys=False))


def _refuse_unknown(cls: Any, data: Any, source: str, prefix: str) -> None:
    """Walk nested dataclasses, so that the message can name the nearest field at the right level."""
    if not isinstance(data, Mapping):
        key = prefix.rstrip(".") or cls.__name__
        raise ConfigError(f"{source}: {key}: {data!r} is not a group of settings; write 'key: value' lines under it")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls) if f.init]
    for key, value in data.items():
        if key not in names:
            raise ConfigError(f"{source}: unknown key '{prefix}{key}'; {nearest(str(key), names)}")
        kind = str(hints[key])
        if "tuple[" in kind and not isinstance(value, (list, tuple)) and not (value is None and "None" in kind):
            remedy = f"write [{value}]" if isinstance(value, (str, int, float)) else "write [first, second, ...]"
            raise ConfigError(f"{source}: {prefix}{key}: {value!r} is not a list; {remedy}")
        if dataclasses.is_dataclass(hints[key]):
            _refuse_unknown(hints[key], value, source, f"{prefix}{key}.")


def _to_float(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value)  # to Python a bool is a number, so as itself it would pass the type check
    try:
        return float(value) if isinstance(value, (str, Real)) else value
    except (ValueError, OverflowError):
        return value  # left for the type check, which knows the field's name


def to_int(value: Any) -> Any:
    """A whole number as an int, be it NumPy's, a float or a text, as YAML reads 1e6; anything else as it is."""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int) or not isinstance(value, (str, Real)):
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    return int(number) if math.isfinite(number) and number == int(number) else value


def _type_name(expected: Any) -> str:
    if typing.get_origin(expected) is typing.Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(expected))
    text = getattr(expected, "__name__", None) if isinstance(expected, type) else str(expected)
    return f"of type {text}".replace("typing.", "")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
