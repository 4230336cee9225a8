"""Settings of domain randomization, and how they are written among the options of a task."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from rlcore.config import ConfigError, check, check_below, from_dict, is_none
from rlcore.envs.disturb import PUSH_INTERVAL


@dataclass(frozen=True, kw_only=True)
class ParameterRange:
    """From what a parameter is drawn."""

    range: tuple[float, float] | None = None
    """Lower and upper limit; none: the range that the env or the disturbance has for it."""
    distribution: Literal["uniform", "log_uniform"] = "uniform"
    """Whether the value or its logarithm is uniform where all of the range is drawn from."""

    def __post_init__(self) -> None:
        """Refuse what is no range."""
        if self.range is None:
            return
        low, high = self.range if len(self.range) == 2 else (math.nan, math.nan)
        check(-math.inf < low <= high < math.inf, "range", list(self.range), "give [low, high] with low <= high")
        logarithm = self.distribution == "log_uniform"
        check(low > 0 or not logarithm, "range", list(self.range), "log_uniform needs low above 0")


@dataclass(frozen=True, kw_only=True)
class RandomizeConfig:
    """What is randomized, and how ranges follow what is achieved in them."""

    mode: Literal["fixed", "adr", "doraemon"] = "fixed"
    """fixed: all of the ranges. adr: each end begins at the nominal value and moves by the success of episodes that are
    played there (Akkaya et al. 2019, arXiv:1910.07113). doraemon: Beta distributions of the largest entropy at a wanted
    rate of success (Tiboni et al. 2024, arXiv:2311.01885). The ranges are the limits of both."""
    parameters: dict[str, ParameterRange] = field(default_factory=dict)
    """By name."""
    success_return: float | None = None
    """Return from which on an episode is a success; none: as the env tells it."""
    push_interval: float = PUSH_INTERVAL
    """Between pushes: seconds, or steps where the env does not tell the time of one."""
    widen_above: float = 0.8
    """Of adr: mean success at an end from which on it moves out."""
    narrow_below: float = 0.5
    """Of adr: mean success at an end up to which it moves back."""
    step: float = 0.02
    """Of adr: how far an end moves, in parts of the range, by one decision: at most one in the time in which
    ``boundary_episodes`` begin at it and the longest of them ends."""
    boundary_episodes: int = 100
    """Of adr: episodes at an end that decide, at least: those that begin there after its last decision, and all of
    them, so that short ones do not count for more."""
    success_rate: float = 0.5
    """Of doraemon: success that is to be expected at least."""
    max_kl: float = 0.1
    """Of doraemon: how far the distributions change at once, in nats."""
    interval: int = 16
    """Of doraemon: iterations from one change to the next; the first is when all that began at a reset has ended."""
    episodes: int = 2048
    """Of doraemon: the latest so many episodes tell what succeeds; at least one for each env."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        for key in ("push_interval", "step", "max_kl"):
            check(0 < getattr(self, key) < math.inf, key, getattr(self, key), "set a positive number")
        for key in ("boundary_episodes", "interval", "episodes"):
            check(getattr(self, key) >= 1, key, getattr(self, key), "set 1 or more")
        check(0 < self.success_rate <= 1, "success_rate", self.success_rate, "set a number above 0, at most 1")
        check(self.widen_above <= 1, "widen_above", self.widen_above, "set a number up to 1, or it never widens")
        check(self.narrow_below >= 0, "narrow_below", self.narrow_below, "set 0 or more, or it never narrows")
        check_below(self, "narrow_below", "widen_above")
        value = self.success_return
        check(value is None or math.isfinite(value), "success_return", value, "set a number, or none")


SETTINGS = tuple(setting.name for setting in fields(RandomizeConfig) if setting.name != "parameters")
"""What among ``randomize.NAME`` is no parameter."""

READ_BY = {
    "success_return": ("adr", "doraemon"), "widen_above": ("adr",), "narrow_below": ("adr",), "step": ("adr",),
    "boundary_episodes": ("adr",), "success_rate": ("doraemon",), "max_kl": ("doraemon",), "interval": ("doraemon",),
    "episodes": ("doraemon",),
}  # fmt: skip
"""Settings that not every mode reads."""


def told_of_unread(config: RandomizeConfig) -> list[str]:
    """What is to be said of settings that the mode does not read: a line for those of each other mode."""
    usual = RandomizeConfig()
    unread: dict[tuple[str, ...], list[str]] = {}
    for name, modes in READ_BY.items():
        if config.mode not in modes and getattr(config, name) != getattr(usual, name):
            unread.setdefault(modes, []).append(f"env.randomize.{name} {getattr(config, name)}")
    why = f"no effect: env.randomize.mode is {config.mode}"
    return [
        f"{', '.join(names)} {'has' if len(names) == 1 else 'have'} {why}, and not {' or '.join(modes)}"
        for modes, names in unread.items()
    ]


def split_randomize(options: Mapping[str, Any]) -> tuple[RandomizeConfig | None, dict[str, Any]]:
    """What is to be randomized, of the options of a task ``randomize.NAME`` or a mapping ``randomize``; and the others.

    Raises:
        ConfigError: a setting is impossible, or nothing is randomized.
    """
    own = {key: value for key, value in options.items() if key.partition(".")[0] == "randomize"}
    if not own:
        return None, dict(options)
    table: dict[str, Any] = {}
    for key, value in sorted(own.items()):  # a whole mapping before settings of it
        path = key.split(".", 2)[1:]
        if not path:
            whole = {} if _is_off(value) else value
            check(isinstance(whole, Mapping), "env.randomize", value, "write randomize.PARAMETER '[low, high]' or none")
            table |= whole
        elif len(path) == 1:
            table[path[0]] = value
        else:
            before = table.get(path[0])
            table[path[0]] = {**(before if isinstance(before, Mapping) else {}), path[1]: value}
    settings = {key: value for key, value in table.items() if key in SETTINGS}
    ranges = {key: _range(key, value) for key, value in sorted(table.items()) if key not in SETTINGS}
    ranges = {key: value for key, value in ranges.items() if value is not None}
    try:
        config = from_dict(RandomizeConfig, {**settings, "parameters": ranges}, "env.randomize")
    except ConfigError as error:  # by the names that they were given
        told = re.sub(r"^env\.randomize: (?!unknown key)", "env.randomize.", str(error)).replace("parameters.", "", 1)
        raise ConfigError(told) from None
    others = {key: value for key, value in options.items() if key not in own}
    if not ranges and not settings:  # all of them were switched off
        return None, others
    told = ", ".join(f"{name} {value}" for name, value in settings.items())
    check(bool(ranges), "env.randomize", told, "name what is drawn: randomize.PARAMETER '[low, high]'")
    return config, others


def _is_off(value: Any) -> bool:
    return is_none(value) or value is False


def _range(name: str, value: Any) -> dict[str, Any] | None:
    """A range in whatever way it is written; None where it is switched off."""
    if _is_off(value):
        return None
    if value is True:
        return {}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (int, float)):
        return {"range": [value, value]}
    remedy = "write '[low, high]', true for its own range, one number, or .range and .distribution"
    check(isinstance(value, (list, tuple)) and len(value) == 2, f"env.randomize.{name}", value, remedy)
    return {"range": list(value)}
