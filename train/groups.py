"""Settings with names of the user's, such as limits on costs: how they are found, added and taken out again."""

from __future__ import annotations

import copy
import dataclasses
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar

from rlcore.config import ConfigError, named_groups, nearest
from rlcore.config import is_none as is_none

T = TypeVar("T")

NAME = "NAME"
"""In the name of a setting: what the user names."""


def flag_of(key: str) -> str:
    """A setting's flag as help, pages and messages write it; options of a task keep their names in Python."""
    return f"--{key if key.startswith('env.') else key.replace('_', '-')}"


def leaves(data: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted name."""
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def general_name(key: str, settings: Collection[str]) -> str:
    """The name of a setting with ``NAME`` in the place of what the user named; as it is, where there is no such."""
    parts = key.split(".")
    tries = (".".join([*parts[:i], NAME, *parts[i + 1 :]]) for i in range(1, len(parts) - 1))
    return key if key in settings else next((general for general in tries if general in settings), key)


def table_of(key: str, settings: Collection[str]) -> tuple[str, str | None] | None:
    """The table that a dotted name means, and the group in it, if it means one; None where it is another setting's."""
    tables = {name.partition(f".{NAME}.")[0] for name in settings if f".{NAME}." in name}
    table, _, name = key.rpartition(".")
    if key in tables:
        return key, None
    return (table, name) if table in tables else None


def how_to_write(key: str, value: str, settings: Collection[str]) -> str:
    """What to write in the place of ``--KEY VALUE``, where the name is that of a table or of a group."""
    found = table_of(key, settings)
    assert found is not None, "no table"
    first = next(name for name in settings if name.startswith(f"{found[0]}.{NAME}.")).rpartition(".")[2]
    group = f"{key}.{NAME}" if found[1] is None else key
    return (
        f"write {flag_of(f'{group}.{first}')} {value or 'VALUE'}, or {flag_of(key)} none to take "
        f"{'all' if found[1] is None else 'it'} out"
    )


def with_group(config: T, parts: list[str]) -> T:
    """Settings with the group that a dotted name asks for; one that they lack begins with its own defaults.

    What has no default is 0 in it, until it is given. Nothing is checked before all that is given is in it: neither
    that 0 nor the name, which is ``NAME`` for help, need be possible.
    """
    first, *rest = parts
    value = getattr(config, first)
    if isinstance(value, dict):
        each = named_groups(typing.get_type_hints(type(config))[first])
        hints = typing.get_type_hints(each)
        value = {**value, rest[0]: value.get(rest[0]) or each(**{name: hints[name]() for name in required(each)})}
    else:
        value = with_group(value, rest)
    found = copy.copy(config)
    object.__setattr__(found, first, value)
    return found


def required(cls: type[Any]) -> list[str]:
    """Settings of a group that have no default."""
    none = dataclasses.MISSING
    return [own.name for own in dataclasses.fields(cls) if own.default is none and own.default_factory is none]


def lacks(config: Any, key: str, given: Collection[str]) -> str | None:
    """What a group that a setting ``key`` begins, and that the settings lack, needs besides what is given."""
    group, (*path, table, name, _) = key.rpartition(".")[0], key.split(".")
    for part in path:
        config = getattr(config, part)
    if name in getattr(config, table):
        return None
    each = named_groups(typing.get_type_hints(type(config))[table])
    return next((f"{group}.{own}" for own in required(each) if f"{group}.{own}" not in given), None)


def without(config: T, table: str, name: str | None, place: str = "") -> T:
    """Settings without a group of a table, or without any.

    Raises:
        ConfigError: the table has no such group.
    """
    first, _, rest = table.partition(".")
    value: Any = getattr(config, first)
    value = without(value, rest, name, f"{place}{first}.") if rest else taken_out(value, name, f"{place}{first}")
    return dataclasses.replace(config, **{first: value})  # type: ignore[type-var]


def taken_out(table: Mapping[str, Any], name: str | None, place: str) -> dict[str, Any]:
    """A table without the group of a name, or empty.

    Raises:
        ConfigError: the table has no such group.
    """
    if name is not None and name not in table:
        hint = nearest(name, table) if table else "there is none"
        raise ConfigError(f"{place}.{name} cannot be taken out, since it is not there; {hint}")
    return {key: group for key, group in table.items() if name not in (None, key)}


def merged(base: Mapping[str, Any], over: Mapping[str, Any], cls: Any = None, place: str = "") -> dict[str, Any]:
    """``base`` with the values of ``over``, section by section.

    Args:
        base: plain values by name.
        over: the same; in a table none, or nothing, takes out what ``base`` has there.
        cls: the dataclass whose settings they are, without which there are no tables.
        place: in front of names in messages, such as a file and the name of a section.

    Raises:
        ConfigError: what is to be taken out is not there.
    """
    hints = typing.get_type_hints(cls) if dataclasses.is_dataclass(cls) else {}
    result = dict(base)
    for key, value in over.items():
        old, hint = result.get(key), hints.get(key)
        if not isinstance(old, Mapping):
            result[key] = value
        elif named_groups(hint) is None:
            result[key] = merged(old, value, hint, f"{place}{key}.") if isinstance(value, Mapping) else value
        elif is_none(value) or value == {}:
            result[key] = {}
        elif isinstance(value, Mapping):
            out = [name for name, group in value.items() if is_none(group)]
            left = dict(old)
            for name in out:
                left = taken_out(left, name, place + key)
            result[key] = merged(left, {name: group for name, group in value.items() if name not in out})
        else:
            result[key] = value
    return result
