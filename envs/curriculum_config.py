"""Settings of curricula: what they say, and what they make of an env's parameters or levels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from rlcore.config import ConfigError, check, check_below, from_dict, nearest
from rlcore.env import VecEnv, is_randomizable
from rlcore.envs.costs import put
from rlcore.envs.disturb import KINDS, PUSH_INTERVAL, Disturbed, disturbances
from rlcore.envs.terrain import TerrainLevels

MOST_LEVELS = 10_000

READ_BY = {
    "promote": ("threshold",), "demote": ("threshold",), "episodes": ("threshold",),
    "kappa": ("success",), "target": ("success",), "window": ("success",),
    "temperature": ("plr",), "staleness": ("plr",), "average": ("plr",),
    "success_share": ("threshold", "per_env", "success"), "success_return": ("threshold", "per_env", "success"),
}  # fmt: skip
"""Settings that not every strategy reads."""


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig:
    """Levels, and how envs are given them. An env begins each episode at a level and stays there until it ends."""

    levels: int | None = None
    """How many; none: as many as a list of ``parameters`` has values, those that the env has of its own, or 10."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """By name, [easiest, hardest], with what lies between on a line, or a value for each level. None: the env has
    levels of its own, such as those of a terrain."""
    strategy: Literal["threshold", "per_env", "success", "plr"] = "threshold"
    """Who is given which level: all the same one, which moves on when it is mastered (threshold); each its own, one up
    after a success and one down after a failure (per_env); draws that prefer levels which succeed about half of the
    time (success); or those from which there is most to learn by the advantages of PPO (plr)."""
    uniform: float = 0.05
    """Share of episodes at any level, all alike, so that none is forgotten."""
    success_share: float = 0.5
    """An episode is a success where the env's ``success``, which may be a share of its goals, is at least this."""
    success_return: float | None = None
    """An episode is a success where its return is at least this; none: where the env's ``success`` says so."""
    promote: float = 0.8
    """Share of successes from which on the next level follows."""
    demote: float = 0.4
    """Share of successes below which the level before does."""
    episodes: int = 100
    """Episodes of the present level, at least, by which that is decided: those that begin after the last decision, once
    what has not ended cannot change it."""
    kappa: float = 4.0
    """How much levels of other success rates than the target are left out; 0: not at all."""
    target: float = 0.5
    """Success rate of the levels that are looked for."""
    window: int = 10
    """Episodes of a level that its success rate is about."""
    temperature: float = 0.1
    """Of draws by rank of score; the smaller, the more often the first."""
    staleness: float = 0.1
    """Share of draws by how long ago a level was played."""
    push_interval: float = PUSH_INTERVAL
    """Between pushes, where ``push`` is a parameter: seconds, or steps where the env does not tell the time of one."""
    average: float = 0.1
    """Weight of the latest rollout in a level's score."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        check(self.levels is None or 2 <= self.levels <= MOST_LEVELS, "levels", self.levels, f"give 2 to {MOST_LEVELS}")
        for key in ("uniform", "success_share", "promote", "demote", "target", "staleness", "average"):
            value = getattr(self, key)
            check(0 <= value <= 1, key, value, "give a number from 0 to 1")
        check(self.success_share > 0, "success_share", self.success_share, "all would be one: give more than 0")
        check(self.average > 0, "average", self.average, "nothing would be learned of: give more than 0")
        check_below(self, "demote", "promote")
        check(0 <= self.kappa < math.inf, "kappa", self.kappa, "give 0 or more")
        check(0 < self.temperature < math.inf, "temperature", self.temperature, "give more than 0")
        for key in ("episodes", "window"):
            check(getattr(self, key) >= 1, key, getattr(self, key), "give 1 or more")
        known = self.success_return is None or math.isfinite(self.success_return)
        check(known, "success_return", self.success_return, "give a number")


def disturbed(env: VecEnv, config: CurriculumConfig, seed: int | None = None) -> VecEnv:
    """The env with the disturbances that are among the parameters of a curriculum, if any.

    Raises:
        ValueError: it cannot have one of them; see ``rlcore.envs.disturb.Disturbed``.
    """
    own = env.parameters if is_randomizable(env) else {}
    names = [name for name in config.parameters if name.partition("/")[0] in KINDS and name not in own]
    if not names:
        return env
    delays = [x for name in names if name.endswith("_delay") for x in numbers_of(config, name, "env.curriculum")]
    longest = max(1, math.ceil(max(delays, default=1.0)))
    return Disturbed(env, names, max_delay=longest, push_interval=config.push_interval, seed=seed)


def numbers_of(config: CurriculumConfig, name: str, where: str) -> list[float]:
    """The values that are given for a parameter.

    Raises:
        ConfigError: they are no list of at least two numbers.
    """
    values = config.parameters[name]
    listed = isinstance(values, (list, tuple)) and len(values) >= 2
    finite = listed and all(type(x) in (int, float) and math.isfinite(x) for x in values)
    check(finite, f"{where}.parameters.{name}", values, "give [easiest, hardest], or a number for each level")
    return [float(x) for x in values]


def table_of(env: VecEnv, config: CurriculumConfig, where: str) -> Tensor:
    """Values of each parameter at each level, ``[P, L]``."""
    if not is_randomizable(env):
        raise ConfigError(f"{where}.parameters: the env has none that can be set; rlcore.env.Randomizable tells how")
    given, number = {}, config.levels
    for name, values in config.parameters.items():
        key = f"{where}.parameters.{name}"
        if name not in env.parameters:
            hint = nearest(name, {**env.parameters, **disturbances(env)})
            raise ConfigError(f"{key}: the env has no such parameter; {hint}")
        drawn = name in getattr(getattr(env, "randomized", None), "parameters", ())
        check(not drawn, key, values, f"env.randomize.{name} draws it; leave one of them out")
        given[name] = numbers_of(config, name, where)
        sound = min(given[name]) > 0 or not env.parameters[name].positive
        check(sound, key, values, "give values above 0")
        if len(values) > 2:
            number = len(values) if number is None else number
    number = 10 if number is None else number
    for name, values in given.items():
        key, remedy = f"{where}.parameters.{name}", f"give 2 values, or one for each of {number} levels"
        check(len(values) in (2, number), key, values, remedy)
    lines = [torch.linspace(x[0], x[1], number) if len(x) == 2 else torch.tensor(x) for x in given.values()]
    return torch.stack(lines)


def own_levels_of(env: VecEnv, config: CurriculumConfig, where: str) -> tuple[TerrainLevels, int]:
    """The levels that the env has of its own, and how many they are."""
    terrain: TerrainLevels | None = getattr(env, "own_levels", None)
    if terrain is None:
        names = f"one of {', '.join(env.parameters)}" if is_randomizable(env) else "the env has no parameters either"
        raise ConfigError(f"{where}.parameters: none are given, and the env has no levels of its own; give {names}")
    check(terrain.number >= 2, f"{where}.levels", terrain.number, "the env's terrain has one level; there is no choice")
    fits, remedy = config.levels in (None, terrain.number), f"the env's terrain has {terrain.number}; leave it out"
    check(fits, f"{where}.levels", config.levels, remedy)
    return terrain, terrain.number


def split_curriculum(options: Mapping[str, Any]) -> tuple[CurriculumConfig, dict[str, Any]]:
    """The curriculum among the options of a task, ``curriculum.SETTING`` or a mapping, and the other options.

    Raises:
        ConfigError: a setting is unknown, impossible, or read by other strategies alone.
    """
    own = {key: value for key, value in options.items() if key.partition(".")[0] == "curriculum"}
    tables: dict[str, Any] = {}
    for key, value in sorted(own.items()):  # a whole mapping before settings of it
        put(tables, key.split("."), value)
    table = tables["curriculum"]
    check(isinstance(table, Mapping), "env.curriculum", table, "write curriculum.levels, .parameters.NAME, .strategy")
    config = from_dict(CurriculumConfig, table, "env.curriculum")
    for name in table:
        if config.strategy not in READ_BY.get(name, (config.strategy,)):
            by = " and ".join(READ_BY[name])
            raise ConfigError(f"env.curriculum.{name} is read by {by}, not by {config.strategy}; leave it out")
    return config, {key: value for key, value in options.items() if key not in own}
