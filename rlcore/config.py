"""Strict configuration: frozen dataclasses filled from YAML, with errors that name the key and the remedy."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

import dacite
import yaml

from rlcore.files import whole_file
from rlcore.names import nearest_names

T = TypeVar("T")

LARGEST_FILE = 1_000_000
"""Bytes of a configuration file; more is no configuration, and would take long to read."""

DEEPEST = 50
"""Levels of nesting in YAML."""

MOST_VALUES = 100_000
"""Values in YAML, where one that is repeated by an alias counts each time."""

ALONE = {"safety": "limits on costs need ppo, sac or ddpg"}
"""Groups of settings that not every algorithm has, and what to do for them."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message is one line that names the key and what to do."""


def closest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that a mistyped one probably means, whatever the case of its letters; None when none is close."""
    return next(iter(nearest_names(name, valid, 1, cutoff=0.6)), None)


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a hint that names the closest valid name, or all of them when none is close."""
    valid = sorted(valid)
    close = closest(name, valid)
    return f"did you mean '{close}'?" if close is not None else f"valid: {', '.join(valid)}"


def shown(value: object, most: int = 80) -> str:
    """A value in the words of Python for a message of one line, cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python writes no number of more than 4,300 digits
        text = f"a {type(value).__name__} that is too large to show"
    return text if len(text) <= most else f"{text[: most // 2]}... ({len(text):,} characters)"


def check(condition: bool, key: str, value: object, remedy: str) -> None:
    """Refuse an impossible value.

    Raises:
        ConfigError: ``condition`` is false.
    """
    if not condition:
        raise ConfigError(f"{key}: {shown(value)} is not possible; {remedy}")


def check_positive(settings: object, *keys: str, none: bool = False) -> None:
    """Refuse settings that are not positive and finite; ``none`` may be among them, if so given.

    Raises:
        ConfigError: one of them is something else.
    """
    for key in keys:
        value = getattr(settings, key)
        remedy = "set a positive number" + " or none" * none
        check((none and value is None) or 0 < value < math.inf, key, value, remedy)


def check_below(settings: object, lower: str, upper: str) -> None:
    """Refuse a setting that is not below another; where one of the two has its default, it is the other that is wrong.

    Raises:
        ConfigError: names what was given, and what it does not go with.
    """
    low, high, usual = getattr(settings, lower), getattr(settings, upper), type(settings)
    if low < high:
        return
    if high == getattr(usual, upper):
        remedy = f"give less than {upper}, whose default is {shown(high)}, or set {upper} as well"
    elif low == getattr(usual, lower):
        remedy = f"give more than {lower}, whose default is {shown(low)}, or set {lower} as well"
        lower, low = upper, high
    else:
        remedy = f"give less than {upper}, {shown(high)}"
    check(False, lower, low, remedy)


def is_none(value: object) -> bool:
    """Whether a value, of a file or of the command line, is to say that there is none."""
    return value is None or (isinstance(value, str) and value.lower() in ("none", "null"))


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options of a task that are settings of the run, which every env is made with.

    Raises:
        ConfigError: names the first, its value and what to write instead.
    """
    for name in ("task", "num_envs", "device", "seed"):
        if name in options:
            remedy = f"{name} is no option of a task but a setting of the command; write it without 'env.'"
            raise ConfigError(f"env.{name}: {shown(options[name])} is not possible; {remedy}")


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
    return _built(cls, data, source, "")


def named_groups(hint: Any) -> Any:
    """The dataclass of each group, where a setting is a table of groups with names of the user's; else None."""
    of = typing.get_args(hint)
    return of[1] if typing.get_origin(hint) is dict and dataclasses.is_dataclass(of[1]) else None


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
    data = parse_yaml(path, PlainLoader)
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"configuration file '{path}' must hold 'key: value' lines, not {type(data).__name__}")
    wrong = next((key for key in data if not isinstance(key, str)), None)
    if wrong is not None:
        raise ConfigError(f"configuration file '{path}': the key {shown(wrong)} is not a text; write names of settings")
    return data


def parse_yaml(path: str | Path, loader: type[PlainLoader]) -> Any:
    """What is in a YAML file, read by a loader that executes nothing.

    Raises:
        ConfigError: the file is missing, is not YAML, or holds what ``PlainLoader`` refuses; the message names the
            place in it.
    """
    path = Path(path)
    if path.is_dir():
        inside = path / "config.yaml"
        remedy = f"give {inside}" if inside.is_file() else "give a file in it"
        raise ConfigError(f"configuration file '{path}' is a folder; {remedy}")
    if not path.is_file():
        raise ConfigError(f"configuration file '{path}' does not exist; check the path")
    if path.stat().st_size > LARGEST_FILE:
        raise ConfigError(f"'{path}' has {path.stat().st_size:,} bytes, which is no configuration; check the path")
    try:
        return parse_text(path.read_text(encoding="utf-8"), loader)
    except UnicodeDecodeError:
        reason = "it is not text in UTF-8"
    except ValueError as error:
        reason = str(error)
    raise ConfigError(f"configuration file '{path}' is not plain YAML: {reason}")


def parse_text(text: str, loader: type[PlainLoader] | None = None) -> Any:
    """What is in a YAML text, read by a loader that executes nothing.

    Raises:
        ValueError: it is not YAML, or holds what ``PlainLoader`` refuses; the message names the place in it.
    """
    try:
        return yaml.load(text, loader or PlainLoader)
    except yaml.MarkedYAMLError as error:
        where = error.problem_mark or error.context_mark
        place = "" if where is None else f"line {where.line + 1}, column {where.column + 1}: "
        reason = " ".join((error.problem or error.context or "it cannot be read").split())
        if "'\\t'" in reason:
            reason = "a tab; indent with spaces"
        reason = place + reason
    except yaml.reader.ReaderError as error:
        reason = f"the character #x{error.character:04x} at position {error.position} is none of a text"
    except Exception as error:  # what a value with a tag ends in depends on the tag
        reason = f"a value cannot be read ({type(error).__name__})"
    raise ValueError(reason if len(reason) <= 300 else reason[:300] + "...")


class PlainLoader(yaml.SafeLoader):
    """Plain values; refuses what settings never have, which would take long, or be understood otherwise than meant.

    That is nesting deeper than ``DEEPEST``, a value inside itself, more than ``MOST_VALUES`` values once aliases are
    written out, and one key twice.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._depth = 0
        self._count = 0
        self._sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Count depth and values on the way; an alias counts as all that it stands for."""
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        alias, before = self.check_event(yaml.AliasEvent), self._count
        self._depth += 1
        if self._depth > DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"nested more than {DEEPEST} deep", mark)
        node = super().compose_node(parent, index)
        assert node is not None
        self._depth -= 1
        if alias and node not in self._sizes:
            raise yaml.composer.ComposerError(None, None, "an alias of what it is in", mark)
        self._count += self._sizes[node] if alias else 1
        if self._count > MOST_VALUES:
            raise yaml.composer.ComposerError(None, None, f"more than {MOST_VALUES:,} values, aliases included", mark)
        if not alias:
            self._sizes[node] = self._count - before
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Refuse a key that is there twice, of which YAML takes the last."""
        node = super().compose_mapping_node(anchor)
        known: dict[tuple[str, str], yaml.Node] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                first = known.setdefault((key.tag, key.value), key)
                if first is not key:
                    line = first.start_mark.line + 1
                    problem = f"the key {shown(key.value)} is there already, in line {line}; leave one out"
                    raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
        return node


def save_yaml(path: str | Path, config: Any) -> None:
    """Write a configuration dataclass so that ``from_dict(cls, load_yaml(path))`` gives it back."""
    with whole_file(path) as file:
        file.write(yaml.safe_dump(to_dict(config), sort_keys=False))


def _group_of(key: object, cls: type[Any]) -> str | None:
    """What to write where a setting stands beside the group that it belongs to, the outermost that has it."""
    hints = typing.get_type_hints(cls)
    for name in (field.name for field in dataclasses.fields(cls) if dataclasses.is_dataclass(hints[field.name])):
        if key in {field.name for field in dataclasses.fields(hints[name])}:
            return f"write it under '{name}:'"
    return None


def _built(cls: type[T], data: Any, source: str, prefix: str) -> T:
    """Build nested dataclasses from the innermost on, so that every message can name the whole path of a setting."""
    if not isinstance(data, Mapping):
        key = prefix.rstrip(".") or cls.__name__
        remedy = "write 'key: value' lines under it"
        raise ConfigError(f"{source}: {key}: {shown(data)} is not a group of settings; {remedy}")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls) if f.init]  # type: ignore[arg-type]
    values = dict(data)
    for key, value in data.items():
        if key not in names:
            hint = ALONE.get(str(key)) or _group_of(key, cls) or nearest(str(key)[:80], names)
            raise ConfigError(f"{source}: unknown key {shown(f'{prefix}{key}')}; {hint}")
        kind = str(hints[key])
        if "tuple[" in kind and not _fits(value, kind):
            one = isinstance(value, (str, int, float)) and len(shown(value)) <= 40
            remedy = f"write [{value}]" if one else "write [first, second, ...]"
            remedy += ", true or false" * ("bool" in kind)
            raise ConfigError(f"{source}: {prefix}{key}: {shown(value)} is not a list; {remedy}")
        if dataclasses.is_dataclass(hints[key]):
            values[key] = _built(hints[key], value, source, f"{prefix}{key}.")
        elif (each := named_groups(hints[key])) is not None and isinstance(value, Mapping):
            place = f"{prefix}{key}"
            values[key] = {name: _built(each, group, source, f"{place}.{name}.") for name, group in value.items()}
    settings = dacite.Config(strict=True, cast=[tuple], type_hooks={float: _to_float, int: to_int})
    try:
        return dacite.from_dict(cls, values, settings)
    except ConfigError as error:
        raise ConfigError(f"{source}: {prefix}{error}") from None
    except dacite.MissingValueError as error:
        raise ConfigError(f"{source}: '{prefix}{error.field_path}' is missing; set it") from None
    except (dacite.WrongTypeError, dacite.UnionMatchError) as error:
        place, expected = f"{prefix}{error.field_path}", _type_name(error.field_type)
        raise ConfigError(f"{source}: {place}: {shown(error.value)} is not {expected}; correct it") from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source}: {prefix}{error}") from None


def _fits(value: Any, kind: str) -> bool:
    """Whether a value may be what a type that is written with a tuple stands for, as far as its outer form goes."""
    either = (value is None and "None" in kind) or (isinstance(value, bool) and "bool" in kind)
    return either or isinstance(value, (list, tuple))


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
