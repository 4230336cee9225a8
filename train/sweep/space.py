"""The space of a sweep: settings, and what each may be."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlcore.config import ConfigError, load_yaml, shown

FORMS = "float:LOW:HIGH, log:LOW:HIGH, int:LOW:HIGH or choice:A,B,C"
"""How a dimension is written."""

WORD = re.compile(r"(?:--)?([A-Za-z_][\w.-]*)=((?:float|log|int|choice):.*)", re.DOTALL)
"""A dimension with its name, ``NAME=FORM``."""

OWN = {
    "seed": "--seeds N trains every trial with N seeds",
    "task": "returns of several tasks cannot be compared; sweep each of them",
    "name": "trials have names of their own",
    "runs_dir": "trials are in the folder of the sweep",
    "config": "give its settings, or sweep each of them",
    "resume": "trials begin anew",
}
"""Settings of ``rlcore train`` that no trial can choose, and what to do instead."""

MOST_CHOICES = 1000


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """A setting, and what it may be: numbers from ``low`` to ``high``, or one of ``choices``."""

    name: str
    kind: str
    """``float``, ``log`` (drawn by the logarithm), ``int`` or ``choice``."""
    low: float = 0.0
    high: float = 0.0
    choices: tuple[str, ...] = ()
    """As they are written on a command line."""

    @property
    def ends(self) -> tuple[str, ...]:
        """Values with which all others are possible, too: the ends of a range, or all choices."""
        return self.choices or (self.text(self.low), self.text(self.high))

    def text(self, value: object) -> str:
        """A value as it is written on a command line, with all its digits."""
        return str(int(value)) if self.kind == "int" else str(value)  # type: ignore[call-overload]


def dimension(name: str, form: str) -> Dimension:
    """Read one dimension.

    Args:
        name: of a setting of ``rlcore train``, such as ``agent.learning_rate``.
        form: what it may be, such as ``log:1e-4:1e-2``.

    Raises:
        ConfigError: it is none; the message names it and says how one is written.
    """
    name = name.replace("-", "_")
    if name in OWN:
        raise ConfigError(f"--sweep: {name} cannot be swept: {OWN[name]}")
    kind, _, rest = form.partition(":")
    place = f"--sweep: {name}={form[:100]}"
    if kind == "choice":
        # Commas within brackets belong to a list.
        choices = tuple(part.strip() for part in re.split(r",(?![^\[(]*[\])])", rest))
        if not all(choices) or len(set(choices)) != len(choices) or not 1 < len(choices) <= MOST_CHOICES:
            raise ConfigError(f"{place}: give two or more different choices, such as choice:0.98,0.99")
        return Dimension(name=name, kind=kind, choices=choices)
    ends = rest.split(":")
    if kind not in ("float", "log", "int") or len(ends) != 2:
        raise ConfigError(f"{place} is no range and no choice; write {FORMS}")
    try:
        low, high = map(float, ends)
    except ValueError:
        raise ConfigError(f"{place}: LOW and HIGH have to be numbers; write {FORMS}") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"{place}: give two finite numbers, LOW below HIGH")
    if kind == "log" and low <= 0:
        raise ConfigError(f"{place}: there is no logarithm of {ends[0]}; give LOW above 0, or float:LOW:HIGH")
    if kind == "int" and not (low.is_integer() and high.is_integer()):
        raise ConfigError(f"{place}: give whole numbers, or float:LOW:HIGH")
    return Dimension(name=name, kind=kind, low=low, high=high)


def space_of(forms: Mapping[str, str]) -> tuple[Dimension, ...]:
    """The dimensions of a space, by their forms.

    Raises:
        ConfigError: one is wrong.
    """
    return tuple(dimension(name, form) for name, form in forms.items())


def forms_in(words: Sequence[str], file: Path | None = None) -> dict[str, str]:
    """Forms by name, of the words of ``--sweep`` and of a file of ``--space``.

    Raises:
        ConfigError: a word or a line is none, a setting is there twice, or there is nothing.
    """
    found = {} if file is None else forms_of_file(file)
    for word in words:
        match = WORD.fullmatch(word)
        if match is None:
            forms = FORMS.replace(", ", ", NAME=").replace(" or ", " or NAME=")
            raise ConfigError(f"--sweep: '{word[:100]}' is no dimension; write NAME={forms}")
        name = match[1].replace("-", "_")
        if name in found:
            raise ConfigError(f"--sweep: {name} is swept twice; leave one out")
        found[name] = match[2]
    if not found:
        raise ConfigError("nothing is swept; add --sweep agent.learning_rate=log:1e-4:1e-2, or --space FILE")
    return found


def forms_of_file(path: Path) -> dict[str, str]:
    """Forms by name of a YAML file with lines ``NAME: FORM`` or ``NAME: [A, B]``.

    Raises:
        ConfigError: it cannot be read, or holds anything else.
    """
    found: dict[str, str] = {}
    for name, form in load_yaml(path).items():
        if isinstance(form, list) and form and not any(isinstance(item, Mapping) for item in form):
            form = "choice:" + ",".join(map(_written, form))
        if not isinstance(form, str):
            raise ConfigError(f"{path}: {name}: {shown(form)} is not what a setting may be; write {FORMS}, or [A, B]")
        key = str(name).replace("-", "_")
        if key in found:
            raise ConfigError(f"{path}: {key} is there twice; leave one out")
        found[key] = form
    return found


def _written(item: Any) -> str:
    return f"[{','.join(map(_written, item))}]" if isinstance(item, list) else str(item)
