"""The schema of what a file tells a controller: names, kinds and units of facts, and what is refused.

docs/deployment.md explains each. A reader takes what it knows and leaves the rest; ``schema_version`` goes up when
something that was there means something else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlcore.config import nearest

SCHEMA_VERSION = 1

OBSERVATION = {
    "group": "text", "name": "text", "size": "count", "slice": "pair",
    "quantity": "text", "components": "names", "unit": "text", "frame": "text",
    "relative_to": "text", "range": "limits", "joints": "names", "body": "text", "bodies": "names",
    "command": "text", "action": "text", "function": "text", "params": "table",
    "clip": "limits", "scale": "numbers", "history_length": "count", "history_order": "text",
    "delay_min_lag": "count", "delay_max_lag": "count", "noise": "table", "modifiers": "names",
}  # fmt: skip
ACTION = {
    "name": "text", "size": "count", "slice": "pair",
    "kind": "text", "class": "text", "joints": "names", "body": "text", "frame": "text",
    "scale": "numbers", "offset": "numbers", "clip": "limits", "open": "numbers", "closed": "numbers",
}  # fmt: skip
JOINT = {
    "name": "text", "unit": "text", "default_position": "number", "default_velocity": "number",
    "position_limits": "pair", "velocity_limit": "number", "effort_limit": "number",
    "stiffness": "number", "damping": "number", "armature": "number", "motor": "count", "mimic": "table",
}  # fmt: skip
COMMAND = {
    "name": "text", "class": "text", "size": "count", "components": "names", "units": "names", "frame": "text",
    "ranges": "table", "resampling_time": "pair",
}  # fmt: skip
TABLES = {"observation_terms": OBSERVATION, "action_terms": ACTION, "joints": JOINT, "commands": COMMAND}
"""Facts of each row of a table by name, with what they are."""

VALUES = {"schema_version": "count", "control_dt": "number", "physics_dt": "number", "decimation": "count"}
"""Facts beside the tables."""

LARGEST = 2**53
"""Whole numbers below it are numbers in every language."""

DIRECT = ("position", "velocity", "effort", "relative_position")
"""Kinds of actions that have one number for each joint."""

KINDS = (*DIRECT, "binary_position", "binary_velocity", "twist", "pose", "relative_pose")
"""Kinds of actions; one that is none of these has a ``class`` alone."""


class SchemaError(ValueError):
    """Facts of an env that contradict each other, or are not what their names say."""


def check_facts(facts: Mapping[str, Any]) -> None:
    """Refuse what no controller could follow; facts that the schema does not have are left alone.

    Raises:
        SchemaError: the message names the table, the row and the fact.
    """
    for name, kind in VALUES.items():
        if name in facts and not (_is(kind, facts[name]) and 0 < facts[name] < math.inf):
            raise SchemaError(f"{name} is {facts[name]!r}; give a {kind} above 0")
    for table, known in TABLES.items():
        rows = facts.get(table) or []
        needed = ["name", "size"] if table.endswith("_terms") else ["name"]
        if "schema_version" in facts:  # else nobody has placed them yet
            needed += {"observation_terms": ["slice", "group"], "action_terms": ["slice"]}.get(table, [])
        if not isinstance(rows, (list, tuple)) or not all(isinstance(row, Mapping) for row in rows):
            raise SchemaError(f"{table} is no list of tables; export the policy anew")
        for row in rows:
            lacking = [name for name in needed if row.get(name) is None]
            if lacking:
                raise SchemaError(f"{table}: a row is {dict(row)!r:.80}; each needs a '{lacking[0]}'")
            for name, value in row.items():
                if name in known and value is not None and not _is(known[name], value):
                    raise SchemaError(f"{table}: {_called(row)} has {name} {value!r}; give {_WANTED[known[name]]}")
    joints = [row["name"] for row in facts.get("joints") or ()]
    doubled = [name for i, name in enumerate(joints) if name in joints[:i]]
    if doubled:
        raise SchemaError(f"joints: '{doubled[0]}' is there twice; name each joint once")
    commands = [row["name"] for row in facts.get("commands") or ()]
    for table in ("observation_terms", "action_terms"):
        end = 0
        for row in facts.get(table) or ():
            _check_term(table, row, joints, commands)
            first, end = end, end + row["size"]
            if "slice" in row and list(row["slice"]) != [first, end]:  # who writes a file has it follow from the sizes
                raise SchemaError(
                    f"{table}: {_called(row)} has the slice {row['slice']}; by the sizes up to it, it is {[first, end]}"
                )


def _check_term(table: str, row: Mapping[str, Any], joints: Sequence[str], commands: Sequence[str]) -> None:
    size, history = int(row["size"]), int(row.get("history_length") or 1)
    where = f"{table}: {_called(row)}"
    if size % history:
        raise SchemaError(f"{where} has {size} numbers, which are no {history} steps of history; fix its size")
    width = size // history
    if table == "action_terms" and row.get("kind") not in (None, *KINDS):
        hint = nearest(row["kind"], KINDS)
        raise SchemaError(f"{where} is of kind '{row['kind']}'; {hint}, or give what it is as its class")
    own = row.get("joints")
    for joint in own or () if joints else ():
        if joint not in joints:
            raise SchemaError(f"{where} has the joint '{joint}', which is none of joints; {nearest(joint, joints)}")
    one_each = str(row.get("quantity", "")).startswith("joint_") or row.get("kind") in DIRECT
    if own is not None and one_each and len(own) != width:
        raise SchemaError(f"{where} has {width} numbers and {len(own)} joints; name one for each number")
    for fact in ("scale", "offset"):
        if row.get(fact) is not None and np.size(row[fact]) not in (1, width):
            raise SchemaError(f"{where} has {np.size(row[fact])} numbers in {fact}; give 1 or {width}")
    if row.get("range") is not None and np.shape(row["range"]) != (width, 2):
        raise SchemaError(f"{where} has the range {row['range']}; give a low and a high number for each of {width}")
    if row.get("clip") is not None and np.shape(row["clip"]) not in ((2,), (1, 2), (width, 2)):
        raise SchemaError(f"{where} has the clip {row['clip']}; give a low and a high number, or {width} such")
    if commands and row.get("command") is not None and row["command"] not in commands:
        raise SchemaError(f"{where} reads the command '{row['command']}'; {nearest(row['command'], commands)}")


def check_version(facts: Mapping[str, Any]) -> None:
    """Refuse facts of a file that another version has written, in which they may mean something else.

    Raises:
        SchemaError: names both versions, to be told of the file.
    """
    version = facts.get("schema_version")
    if version != SCHEMA_VERSION:
        raise SchemaError(
            f"has schema_version {version!s:.40}, and this is {SCHEMA_VERSION}; export it anew with --run RUN"
        )


def clip_pairs(clip: Any) -> list[list[float | None]]:
    """A clip as pairs of low and high, one for all numbers or one each, None where there is no limit.

    Raises:
        ValueError: it is no such pairs.
    """
    pairs: list[list[float | None]] = np.reshape(np.asarray(clip, dtype=object), (-1, 2)).tolist()
    return pairs


_WANTED = {
    "text": "text",
    "count": "a whole number of 0 or more",
    "number": "a number",
    "pair": "two numbers",
    "numbers": "a number or a list of such",
    "limits": "a low and a high number, or such for each; null: none",
    "names": "a list of texts",
    "table": "a table",
}


def _called(row: Mapping[str, Any]) -> str:
    return f"'{row.get('name', row)}'"


def _is(kind: str, value: Any) -> bool:
    if kind == "text":
        return isinstance(value, str)
    if kind == "table":
        return isinstance(value, Mapping)
    if kind == "names":
        return isinstance(value, (list, tuple)) and all(isinstance(x, str) for x in value)
    if kind == "numbers":
        return _is_number(value) or (isinstance(value, (list, tuple)) and all(map(_is_number, value)))
    if kind == "limits":
        return _is("pair", value) or (isinstance(value, (list, tuple)) and all(_is("pair", x) for x in value))
    if kind == "pair":
        return isinstance(value, (list, tuple)) and len(value) == 2 and all(x is None or _is_number(x) for x in value)
    return _is_number(value) and (kind == "number" or (isinstance(value, int) and value >= 0))


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < LARGEST if isinstance(value, int) else not math.isnan(value)
