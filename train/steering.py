"""Commands from the keyboard: which keys change which number of a command, and reading keys from the terminal."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import select
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from rlcore.env import VecEnv
from rlcore.envs.steer import is_steerable

QUIT = ("x", "escape")
KEYS = {"w": (0, 1), "s": (0, -1), "a": (1, 1), "d": (1, -1), "q": (2, 1), "e": (2, -1)}
"""Key to a number of the command that can be steered, and which way."""
ARROWS = {"up": "w", "down": "s", "left": "q", "right": "e"}
"""Of windows whose letters mean something else."""
REST = "space"
STEPS = 10
"""Keystrokes from one end of a range to the other."""

_SEQUENCES = {"\x1b[A": "up", "\x1b[B": "down", "\x1b[D": "left", "\x1b[C": "right", "\x1b": "escape", " ": REST}


class Steering:
    """A command that keys change within the ranges that it was trained with.

    Args:
        facts: of the command, as ``deployment["commands"]`` has them.
    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self.name = str(facts["name"])
        components, ranges = list(facts.get("components") or ()), facts.get("ranges") or {}
        units = dict(zip(components, facts.get("units") or (), strict=False))
        self._parts = [
            (i, part, units.get(part, ""), *map(float, ranges[part]))
            for i, part in enumerate(components)
            if part in ranges and ranges[part][0] < ranges[part][1]
        ][:3]
        self._rest = [0.0 if low <= 0 <= high else (low + high) / 2 for *_, low, high in self._parts]
        self.values = torch.full((int(facts.get("size", len(components))),), math.nan)
        self.press(REST)

    @property
    def possible(self) -> bool:
        """Whether there is anything that keys could change."""
        return bool(self._parts)

    def press(self, key: str) -> bool:
        """Change the command as a key means it, and tell whether it means anything."""
        key = ARROWS.get(key, key)
        if key == REST:
            for (i, *_), value in zip(self._parts, self._rest, strict=True):
                self.values[i] = value
            return True
        k, way = KEYS.get(key, (len(self._parts), 0))
        if k >= len(self._parts):
            return False
        i, _, _, low, high = self._parts[k]
        step = float(self.values[i]) + way * (high - low) / STEPS
        step = 0.0 if abs(step) < 1e-6 * (high - low) else step
        self.values[i] = min(max(step, low), high)
        return True

    def __str__(self) -> str:
        """The command now."""
        parts = (f"{part} {float(self.values[i]):+.2f} {unit}".rstrip() for i, part, unit, *_ in self._parts)
        return f"{self.name}: {', '.join(parts)}"

    @property
    def help(self) -> str:
        """Which keys do what."""
        pairs = (f"{pair} {part}" for pair, (_, part, *_) in zip(("w/s", "a/d", "q/e"), self._parts, strict=False))
        return f"keys: {', '.join(pairs)}, space to rest, x to end; arrows for w/s and q/e"


def steering_of(env: VecEnv) -> Steering | None:
    """Steering of the first command of an env that keys can change; None where there is none."""
    if not is_steerable(env):
        return None
    for facts in getattr(env, "deployment", {}).get("commands") or ():
        steering = Steering(facts)
        if steering.possible:
            return steering
    return None


@contextlib.contextmanager
def terminal_keys() -> Iterator[Callable[[], list[str]]]:
    """While the context is open, a function that gives the keys pressed in the terminal since it was last called.

    There are none where standard input is no terminal. Ctrl-C stays what it is.
    """
    try:
        termios: Any = importlib.import_module("termios")
        file = sys.stdin.fileno()
        before = termios.tcgetattr(file)
    except (
        ImportError,
        ValueError,
        OSError,
        AttributeError,
    ):  # Windows, or no terminal; termios.error is an OSError's kin
        yield list
        return
    except Exception as error:
        if type(error).__module__ != "termios":
            raise
        yield list
        return
    raw = termios.tcgetattr(file)
    raw[3] &= ~(termios.ICANON | termios.ECHO)
    termios.tcsetattr(file, termios.TCSADRAIN, raw)
    try:
        yield lambda: keys_in(_waiting(file))
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, before)


def _waiting(file: int) -> str:
    text = b""
    while select.select([file], [], [], 0)[0]:
        more = os.read(file, 64)
        text += more
        if not more:
            break
    return text.decode(errors="ignore")


def keys_in(text: str) -> list[str]:
    """Keys by name in what a terminal sends for them."""
    keys = []
    while text:
        sequence = next((s for s in _SEQUENCES if text.startswith(s)), text[0])
        keys.append(_SEQUENCES.get(sequence, sequence.lower()))
        text = text[len(sequence) :]
    return keys
