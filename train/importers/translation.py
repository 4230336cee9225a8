"""The bookkeeping of one conversion: which key of another library became what, and that none was forgotten."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from rlcore.config import ConfigError, shown
from rlcore.names import nearest_names
from rlcore.train.config import read_config
from rlcore.train.groups import leaves
from rlcore.train.importers.values import one_of, plain, positive

Status = Literal["kept", "changed", "dropped", "default"]

STYLES: dict[Status, str] = {"changed": "yellow", "dropped": "red", "default": "dim", "kept": "green"}
"""What may become of a key, in the order in which it is shown, and the color that it has."""

ASSUMED_NUM_ENVS = 4096
"""Copies of the task where nobody says how many, as Isaac Lab's tasks have them."""

UNKNOWN = "unknown key"
"""How the note of a key begins that nobody knows."""

MOST_SAMPLES = 10**12
"""A rollout of more samples is a slip of the pen, and its divisors take long to find."""

GUARDS = (1e-3, 1e3)
"""Limits of the standard deviation beyond these guard against zero and infinity; they are not choices."""


@dataclass(frozen=True)
class Row:
    """What became of one key."""

    key: str
    """Dotted name in the source; in parentheses where the source library does it without being asked."""
    value: Any
    """Value in the source or, with status default, what the source library takes instead."""
    ours: str | None
    """Setting of rlcore and its value, as ``agent.gamma = 0.99``; None where there is none."""
    status: Status
    """kept: same meaning; changed: differs as the note says; dropped: has no effect; default: absent in the source."""
    note: str


BY_GROUP = "rlcore normalizes by group, and actor and critic read one in common, or theirs are not named"
"""Why what is normalized for one network alone is not so here."""


class Translation:
    """A configuration on its way from another library to rlcore.

    The functions that know a library read from it with ``use``, ``same`` and ``drop``; what they never asked for comes
    out as unknown.

    Args:
        source: nested configuration: a mapping, or an object with attributes.
        library: name of the library, for messages.
        num_envs: copies of the task that the run will have, on which much depends; None: what the source says of it,
            else 4,096.
        task: what will be trained.
        version: of the library, such as ``(1, 4)``; None: as the source's layout tells.
    """

    def __init__(
        self,
        source: Any,
        library: str,
        num_envs: int | None,
        task: str | None,
        version: tuple[int, ...] | None = None,
    ) -> None:
        try:
            self.source = plain(source)
        except RecursionError:
            raise ConfigError(f"{library}: the configuration refers to itself; write it out") from None
        self.num_envs_known, num_envs = num_envs is not None, num_envs or ASSUMED_NUM_ENVS
        self.library, self.num_envs, self.task, self.version = library, num_envs, task, version
        self.config: dict[str, Any] = {"task": task} if task is not None else {}
        self.config |= {"algo": "ppo", "num_envs": num_envs, "agent": {}}
        self.rows: list[Row] = []
        self._done: set[str] = set()
        self._origin: dict[str, tuple[str, Any]] = {}
        if not isinstance(self.source, dict):
            raise ConfigError(f"{library}: {shown(self.source)} is not a configuration; give a mapping or an object")

    def has(self, key: str) -> bool:
        """Whether the source sets a dotted key; an empty mapping, as Isaac Lab writes what is missing, sets none."""
        return _find(self.source, key) not in (_ABSENT, {})

    def get(self, key: str, default: Any = None) -> Any:
        """Look at a value without marking it as translated."""
        return _find(self.source, key) if self.has(key) else default

    def section(self, key: str) -> dict[str, Any]:
        """Look at a group of keys; empty if it is none."""
        value = self.get(key)
        return value if isinstance(value, dict) else {}

    def read(self, key: str, default: Any, convert: Callable[[Any], Any]) -> Any:
        """Look at a value and convert it, without marking it as translated.

        Raises:
            ConfigError: the value cannot be converted; the message names the source's key.
        """
        raw = self.get(key, default)
        try:
            return convert(raw)
        except ConfigError:
            raise
        except (ValueError, TypeError, OverflowError) as error:
            raise ConfigError(f"{self.library}: {key}: {shown(raw)} cannot be converted: {error}") from None

    def use(
        self,
        key: str,
        ours: str,
        default: Any,
        convert: Callable[[Any], Any],
        note: str = "",
        changed: bool = False,
    ) -> Any:
        """Translate one value.

        Args:
            key: dotted key in the source.
            ours: dotted setting of rlcore.
            default: what the library takes if the key is absent.
            convert: from the source's value to ours; raises ValueError for what cannot be meant.
            note: why it is not quite the same.
            changed: the meaning differs.

        Returns:
            Our value.

        Raises:
            ConfigError: the value cannot be converted; the message names the source's key.
        """
        raw, value = self.get(key, default), self.read(key, default, convert)
        status: Status = "changed" if changed else "kept" if self.has(key) else "default"
        self.set(ours, value, key, raw)
        self.row(key, raw, status, note, f"{ours} = {_text(value)}")
        return value

    def builtin(self, what: str, value: Any, ours: str, our_value: Any, note: str = "", changed: bool = False) -> None:
        """Say what the library always does, and set what comes closest here."""
        self.set(ours, our_value, what, value)
        self.row(f"({what})", value, "changed" if changed else "default", note, f"{ours} = {_text(our_value)}")

    def same(self, key: str, note: str = "") -> None:
        """Say of a key, if present and not yet spoken of, that rlcore does the same without a setting."""
        value = _find(self.source, key)
        if value is not _ABSENT and key not in self._done:
            self.row(key, value, "kept", note)

    def drop(self, key: str, note: str, off: tuple[Any, ...] = ()) -> None:
        """Say of a key, if present and not yet spoken of, that it has no effect here.

        Holding one of the values in ``off`` is no loss.
        """
        value = _find(self.source, key)
        if value is _ABSENT or key in self._done:
            return
        if any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in off):
            self.row(key, value, "kept", "the same here")
        else:
            self.row(key, value, "dropped", note)

    def drop_all(
        self, notes: Mapping[str, str], prefix: str = "", off: Mapping[str, tuple[Any, ...]] = MappingProxyType({})
    ) -> None:
        """``drop`` every key of a table."""
        for key, note in notes.items():
            self.drop(prefix + key, note, off.get(key, ()))

    def row(self, key: str, value: Any, status: Status, note: str, ours: str | None = None) -> None:
        """Note the fate of a key and of all keys below it."""
        self._done.add(key)
        self.rows.append(Row(key, value, ours, status, note))

    def set(self, ours: str, value: Any, key: str, raw: Any) -> None:
        """Set one of our settings, remembering where it came from."""
        *sections, name = ours.split(".")
        place = self.config
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
        self._origin[ours] = (key, raw)

    def normalize_one(self, key: str, critic: bool) -> bool:
        """Normalize the observations of one network alone, where that is what is meant; tell whether it is.

        Args:
            key: what says whether the critic's are normalized; ``agent.normalize_obs`` is set by the actor's.
            critic: what it says.

        Returns:
            Whether the two differ, and their groups are known and none is read by both, so that it can be done.
        """
        agent = self.config["agent"]
        actor = agent["normalize_obs"]
        groups = [agent.get(f"{name}_obs") for name in ("actor", "critic")]
        if critic == actor or not all(groups) or set(groups[0]) & set(groups[1]):
            return False
        own, raw = groups[0 if actor else 1], self.get(key)
        self.set("agent.normalize_obs", own, key, raw)
        self.row(key, raw, "kept" if self.has(key) else "default", "", f"agent.normalize_obs = {_text(own)}")
        return True

    def refuse(self, key: str, value: Any) -> ConfigError:
        """Make the error for an algorithm that rlcore does not have."""
        return ConfigError(
            f"{self.library}: {key}: {shown(value)} is not PPO, SAC, DDPG or TD3, and nothing else can be converted; "
            "write an rlcore configuration for this task"
        )

    def prefer_num_envs(self, number: int) -> None:
        """Take the source's own number of envs, unless the user gave one."""
        if not self.num_envs_known:
            self.num_envs = self.config["num_envs"] = number
            self.num_envs_known = True

    def minibatches(self, key: str, count: float, note: str = "", length: int = 1) -> None:
        """Set the number of minibatches, the nearest to ``count`` that cuts the rollout into equal parts.

        Args:
            key: where it comes from.
            count: as the library has it.
            note: what differs besides.
            length: steps that must stay together, for recurrent networks.
        """
        if not 0 < count < math.inf:
            raise ConfigError(f"{self.library}: {key}: {shown(self.get(key))} cannot be used: give 1 or more")
        total = max(1, self.num_envs * int(self.config["agent"]["num_steps"]) // length)
        if total > MOST_SAMPLES:
            raise ConfigError(f"{self.library}: more than 10^12 {_unit(length)} fit no memory; give fewer steps")
        wanted = min(max(1, round(count)), total)
        divisors = {d for n in range(1, math.isqrt(total) + 1) if total % n == 0 for d in (n, total // n)}
        best = min(sorted(divisors), key=lambda n: abs(n - wanted))
        value, changed = self.get(key, count), best != count
        if changed:
            note = f"{count:.6g} minibatches do not cut {total} {_unit(length)} into equal parts; " + note
        status: Status = "changed" if changed else "kept" if self.has(key) else "default"
        self.set("agent.num_minibatches", best, key, value)
        self.row(key, value, status, note.rstrip("; "), f"agent.num_minibatches = {best}")

    def recurrent(self, net: str, kind: str, size: str, layers: str, position: str) -> None:
        """Translate a recurrent layer, given the keys of its cell, width and depth."""
        cells = {"lstm": "lstm", "gru": "gru", "LSTM": "lstm", "GRU": "gru"}
        self.use(kind, f"agent.{net}.rnn.type", "lstm", one_of(cells))
        self.use(size, f"agent.{net}.rnn.hidden_size", 256, positive)
        self.use(layers, f"agent.{net}.rnn.num_layers", 1, positive)
        self.config["agent"][net]["rnn"]["position"] = position

    def std_bounds(self, key: str, low: float, high: float) -> None:
        """Translate limits of the standard deviation; mere guards give way to ours."""
        start = self.config["agent"]["init_std"]
        low = low if low >= GUARDS[0] else min(0.01, start / 2)
        high = high if high <= GUARDS[1] else max(100.0, start)
        note = "the deviation approaches its floor smoothly, and cannot reach zero"
        status: Status = "changed" if self.has(key) else "default"
        self.set("agent.min_std", low, key, self.get(key))
        self.set("agent.max_std", high, key, self.get(key))
        self.row(key, self.get(key), status, note, f"agent.min_std = {low:.4g}, agent.max_std = {high:.4g}")

    def initial_weights(self) -> None:
        """Let both networks begin as PyTorch's layers do, for a library that leaves it at that."""
        for net in ("actor", "critic"):
            self.builtin(f"initial weights of the {net}", "PyTorch's", f"agent.{net}.init", "default")

    def finish(self) -> None:
        """Report the keys that nobody asked for, and let rlcore check the result.

        Raises:
            ConfigError: rlcore refuses a value, and the message names the source's key; or no key is the library's.
        """
        known = [row.key for row in self.rows if not row.key.startswith("(")]
        given = dict(leaves(self.source))
        unknown = [key for key in given if not any(key == done or key.startswith(done + ".") for done in self._done)]
        if given and len(unknown) == len(given):
            raise ConfigError(
                f"{self.library}: no key is one of {self.library}'s ({shown(', '.join(unknown))}); give its whole "
                "configuration, or name another library with --from"
            )
        for key, value in given.items():
            if key in unknown:
                unset = [k for k in known if not self.has(k)]
                close = nearest_names(key, unset, 1, cutoff=0.8) or nearest_names(key, known, 1, cutoff=0.8)
                hint = f"; did you mean '{close[0]}'?" if close else ""
                self.rows.append(Row(key, value, None, "dropped", UNKNOWN + hint))
        try:
            read_config({"task": "?", **self.config})
        except ConfigError as error:
            raise ConfigError(self._explain(str(error).removeprefix("configuration: "))) from None

    def _explain(self, message: str) -> str:
        match = re.match(r"([\w.]+):", message)
        name = match[1] if match else ""
        for ours, (key, raw) in self._origin.items():
            if ours == name or ours.endswith("." + name):
                return f"{self.library}: {key}: {shown(raw)} cannot be used: {message}"
        return f"{self.library}: {message}"


_ABSENT: Any = object()


def _find(source: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(source, dict) or part not in source:
            return _ABSENT
        source = source[part]
    return source


def _unit(length: int) -> str:
    return "samples (num_envs x steps)" if length == 1 else f"sequences of {length} steps"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def short(value: Any) -> str:
    """A value for a table."""
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
