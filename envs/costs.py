"""Signals of one's own for any env: bounds on what it shows, such as costs that are to be limited."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeGuard

import torch
from torch import Tensor

from rlcore.config import ConfigError, check, from_dict, nearest
from rlcore.env import VecEnv, signal_names, want_final_obs
from rlcore.envs.wrappers import Wrapper
from rlcore.types import Obs, Step, begins

Kind = Literal["reward", "state"]


@dataclass(frozen=True, kw_only=True)
class CostSource:
    """Where a signal comes from, one of ``observation``, ``reward`` and ``state``, and what of it counts.

    Of the numbers that these are in a step the largest magnitude is the signal; or, with a bound, whether any magnitude
    is above it, or by how much.
    """

    observation: str | None = None
    """A term of the observations by name, GROUP/TERM where several groups have it, or a whole group. As it is observed:
    scaled, with noise, and of all steps of its history. A last observation that the env hides counts nothing."""
    reward: str | None = None
    """A term of the reward of a manager-based task of Isaac Lab or mjlab by name: what its function gives, before it is
    multiplied by its weight and the time of a step. With a weight of 0 the simulator computes none."""
    state: str | None = None
    """What the built-in arms tell (joint_position, joint_velocity, applied_effort), or, in Isaac Lab and mjlab, data of
    the robot by its name there, such as joint_vel, or ENTITY.NAME of another entity: as rewards see it, at the end of
    a step, before episodes that ended begin anew."""
    index: tuple[int, ...] | None = None
    """Which of the numbers count, from 0; none: all."""
    above: tuple[float, ...] | None = None
    """The bound on magnitudes, one for all or one each."""
    excess: bool = False
    """Whether the signal is by how much the bound is passed, by that which passes it most, in place of 1."""

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        given = [name for name in ("observation", "reward", "state") if getattr(self, name) is not None]
        if len(given) != 1:
            told = f"{' and '.join(given)} are given" if given else "nothing to read is given"
            raise ConfigError(f"{told}; give one of observation, reward and state")
        for bound in self.above or ():
            check(0 <= bound < math.inf, "above", bound, "magnitudes are bounded: set 0 or more")
        check(self.above is not None or not self.excess, "excess", self.excess, "it is over a bound: set above")

    @property
    def source(self) -> tuple[Kind | None, str]:
        """What tells it, None for the observations, and the name there."""
        kinds: tuple[Kind, Kind] = ("reward", "state")
        return next(((kind, name) for kind in kinds if (name := getattr(self, kind))), (None, str(self.observation)))


class Watchable(VecEnv, Protocol):
    """An env that tells more of its steps than it returns."""

    def watch(self, kind: Kind, name: str) -> Callable[[], Tensor]:
        """What gives, after each step, ``[N, ...]`` of it as it was before episodes that ended began anew.

        Raises:
            ValueError: there is nothing of that name.
        """
        ...


def is_watchable(env: VecEnv) -> TypeGuard[Watchable]:
    """Whether an env tells more of its steps than it returns."""
    return hasattr(env, "watch")


class WithSignals(Wrapper):
    """An env with signals of one's own beside those that it gives, see ``CostSource``.

    Args:
        env: any env.
        sources: of each signal by name.

    Raises:
        ValueError: the env has nothing of a name; the message has the nearest that it has.
    """

    def __init__(self, env: VecEnv, sources: Mapping[str, CostSource]) -> None:
        super().__init__(env)
        told = signal_names(env)
        self.signal_names = None if told is None else (*told, *sources)
        self.sources = dict(sources)
        self._readers = {name: _reader(env, f"{self.task}: costs.{name}", source) for name, source in sources.items()}

    def step(self, action: Tensor) -> Step:
        """Step the inner env; see ``VecEnv.step``.

        Raises:
            ValueError: the env gives a signal of that name itself.
        """
        step = self.env.step(action)
        signals = dict(step.signals or {})
        for name, read in self._readers.items():
            if name in signals:
                raise ValueError(f"{self.task}: costs.{name}: the env gives a signal '{name}'; choose another name")
            value = read(step)
            signals[name] = value if step.valid is None else value.where(step.valid, 0.0)
        return step._replace(signals=signals)

    def reset(self, seed: int | None = None) -> Obs:
        """Start a new episode in every env."""
        return self.env.reset(seed)


def split_sources(options: Mapping[str, Any]) -> tuple[dict[str, CostSource], dict[str, Any]]:
    """The sources among the options of a task, ``costs.NAME.SETTING`` or a mapping ``costs``, and the other options.

    Raises:
        ConfigError: a setting is unknown or impossible.
    """
    own = {key: value for key, value in options.items() if key == "costs" or key.startswith("costs.")}
    tables: dict[str, Any] = {}
    for key, value in sorted(own.items()):  # a whole mapping before settings of it
        put(tables, key.split("."), value)
    found: dict[str, CostSource] = {}
    costs = tables.get("costs", {})
    check(isinstance(costs, Mapping), "env.costs", costs, "write costs.NAME.observation, .reward or .state")
    for name, table in costs.items():
        check(isinstance(table, Mapping), f"env.costs.{name}", table, "write .observation, .reward or .state")
        listed = {k: [v] if k in ("index", "above") and isinstance(v, (int, float)) else v for k, v in table.items()}
        found[name] = from_dict(CostSource, listed, f"env.costs.{name}")
    return found, {key: value for key, value in options.items() if key not in own}


def put(table: dict[str, Any], path: list[str], value: Any) -> None:
    """Put a value into nested tables, where there may be another before."""
    for key in path[:-1]:
        inner = table.get(key)
        table[key] = table = dict(inner) if isinstance(inner, Mapping) else {}
    table[path[-1]] = value


def _reader(env: VecEnv, where: str, source: CostSource) -> Callable[[Step], Tensor]:
    """What turns a step into a signal ``[N]``."""
    kind, name = source.source
    if kind is None:
        read, size = _observed(env, where, name)
    else:
        if not is_watchable(env):
            raise ValueError(f"{where}.{kind}: the task tells none; name a term of its observations")
        try:
            watched = env.watch(kind, name)
        except ValueError as error:
            raise ValueError(f"{where}.{kind}: {error}") from error

        def read(step: Step) -> Tensor:
            return watched().reshape(env.num_envs, -1)

        size = watched().numel() // env.num_envs
    chosen = list(range(size)) if source.index is None else list(source.index)
    for number in chosen:
        check(0 <= number < size, f"{where}.index", number, f"'{name}' has {size} numbers, the first is 0")
    above = source.above
    if above is not None:
        check(len(above) in (1, len(chosen)), f"{where}.above", list(above), f"give one bound, or {len(chosen)}")
    columns = None if source.index is None else torch.tensor(chosen, device=env.device)
    bound = None if above is None else torch.tensor(above, dtype=torch.float32, device=env.device)

    def signal(step: Step) -> Tensor:
        values = read(step) if columns is None else read(step).index_select(1, columns)
        magnitude = values.abs()  # [N, D]
        largest = magnitude.amax(1)
        if bound is None:
            return largest
        if source.excess:
            return (magnitude - bound).amax(1).clamp(min=0.0)
        return (magnitude > bound).any(1) + 0 * largest  # what is no number stays none

    return signal


def _observed(env: VecEnv, where: str, name: str) -> tuple[Callable[[Step], Tensor], int]:
    """What a step shows of a term or a group, before a reset, ``[N, D]``; and D."""
    places: dict[str, list[tuple[str, int, int]]] = {}  # group, first and last number by name
    terms: Mapping[str, Any] = getattr(env, "deployment", {}).get("observation_terms", {})
    for group, space in env.observation_spaces.items():
        if len(space.shape) != 1:
            continue
        places.setdefault(group, []).append((group, 0, space.shape[0]))
        start = 0
        for term in terms.get(group, []):
            place = (group, start, start + int(term["size"]))
            places.setdefault(term["name"], []).append(place)
            places[f"{group}/{term['name']}"] = [place]
            start = place[2]
    if name not in places:
        raise ValueError(f"{where}.observation: there is no '{name}'; {nearest(name, places)}")
    if len(places[name]) > 1:
        full = " or ".join(f"{group}/{name}" for group, _, _ in places[name])
        raise ValueError(f"{where}.observation: several groups have '{name}'; write {full}")
    (group, first, last) = places[name][0]
    want_final_obs(env, [group])

    def read(step: Step) -> Tensor:
        now, done = step.obs[group][:, first:last], begins(step).unsqueeze(1)
        if step.final_obs is None:
            return now.masked_fill(done, 0.0)
        return torch.where(done, step.final_obs[group][:, first:last], now)

    return read, last - first


def with_signals(env: VecEnv, sources: Mapping[str, CostSource]) -> VecEnv:
    """The env, with signals of one's own if there are any.

    Raises:
        ValueError: see ``WithSignals``; the env has been closed then.
    """
    if not sources:
        return env
    try:
        return WithSignals(env, sources)
    except ValueError:
        env.close()
        raise
