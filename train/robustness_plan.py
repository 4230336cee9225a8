"""What a policy is tried against: types of disturbances, and their magnitudes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlcore.config import nearest
from rlcore.env import Parameter, VecEnv, is_pushable, is_randomizable, name_of
from rlcore.envs.disturb import SHARES

PUSH, NOISE, DELAY, MODEL = "external_force", "sensor_noise", "actuator_delay", "model_uncertainty"
TYPES = (PUSH, NOISE, DELAY, MODEL)
"""What is tried where nobody says: pushes, noise on all observations, late actions, and all physical parameters."""

ALIASES = {NOISE: "noise", DELAY: "action_delay"}
"""Types that are one parameter of ``rlcore.envs.disturb``."""

POINTS = 6
"""Magnitudes of a type where nobody says how many."""

MAGNITUDES = {
    NOISE: (0.0, 0.1, 0.2, 0.3, 0.4, 0.5),
    DELAY: (0.0, 1.0, 2.0, 3.0, 4.0, 5.0),
    MODEL: (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
}
_PUSHES = {"m/s": (0.0, 0.4, 0.8, 1.2, 1.6, 2.0)}  # by unit; others:
_TURNS = (0.0, 0.6, 1.2, 1.8, 2.4, 3.0)

Cell = Mapping[str, float]
"""Magnitudes by type; what it does not name is nominal."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One type of disturbance at several magnitudes."""

    name: str
    unit: str
    nominal: float
    magnitudes: tuple[float, ...]
    """Rising, the nominal one among them unless it is part of a grid."""
    parameters: tuple[str, ...] = ()
    """What it sets; none for a push. Several are drawn within their ranges, the magnitude being the share of these."""

    def values(self, magnitude: float, known: Mapping[str, Parameter], draws: Tensor) -> dict[str, Tensor]:
        """Of each parameter that it sets values ``[E]``.

        Args:
            magnitude: of this type.
            known: the parameters of the env.
            draws: uniform in -1..1, ``[P, E]``, the same at every magnitude.
        """
        if self.name != MODEL:
            return {name: torch.full_like(draws[0], magnitude) for name in self.parameters}
        found = {}
        for name, u in zip(self.parameters, draws, strict=False):
            p = known[name]
            found[name] = p.nominal + magnitude * torch.where(u < 0, u * (p.nominal - p.low), u * (p.high - p.nominal))
        return found


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be measured."""

    sweeps: tuple[Sweep, ...]
    grid: tuple[Sweep, ...] = ()
    """Types whose magnitudes are tried in all combinations."""

    @property
    def cells(self) -> list[Cell]:
        """All but the nominal one, each once."""
        found: list[Cell] = [{s.name: m} for s in self.sweeps for m in s.magnitudes if m != s.nominal]
        return found + [cell for cell in self.grid_cells if cell not in found and self.is_disturbed(cell)]

    @property
    def grid_cells(self) -> list[Cell]:
        """The combinations, in the order of the first type, then the next."""
        found: list[Cell] = [{}] if self.grid else []
        for sweep in self.grid:
            found = [{**cell, sweep.name: m} for cell in found for m in sweep.magnitudes]
        return found

    @property
    def by_name(self) -> dict[str, Sweep]:
        """Types by name."""
        return {sweep.name: sweep for sweep in (*self.sweeps, *self.grid)}

    def is_disturbed(self, cell: Cell) -> bool:
        """Whether anything in a cell is not nominal."""
        return any(magnitude != self.by_name[name].nominal for name, magnitude in cell.items())


def planned(
    env: VecEnv,
    disturbances: Mapping[str, Parameter],
    types: Sequence[str] | None,
    grid: Sequence[str] = (),
    magnitudes: Sequence[float] | None = None,
) -> tuple[Plan, list[str]]:
    """Choose types and magnitudes for an env.

    Args:
        env: the bare env.
        disturbances: parameters that any env gets by a wrapper.
        types: ``NAME``, ``NAME=LOW:HIGH`` or ``NAME=LOW:HIGH:POINTS``; None is ``TYPES``, as far as the env can.
        grid: the same, of what is tried in all combinations.
        magnitudes: of all types that have none of their own; None is what suits each.

    Returns:
        The plan, and a line for each type that was left out.

    Raises:
        ValueError: a type that was asked for cannot be done; the message says what can.
    """
    sweeps, notes = [], []
    for word in TYPES if types is None else types:
        try:
            sweeps.append(_sweep(word, env, disturbances, magnitudes))
        except ValueError as error:
            if types is not None:
                raise
            notes.append(f"left out     {error}")
    plan = Plan(
        sweeps=tuple(sweeps), grid=tuple(_sweep(word, env, disturbances, magnitudes, alone=False) for word in grid)
    )
    for names in ([s.name for s in plan.sweeps], [s.name for s in plan.grid]):
        double = next((name for name in names if names.count(name) > 1), None)
        if double is not None:
            raise ValueError(f"{double} is given twice; give each type once")
    if not plan.by_name:
        raise ValueError(f"{name_of(env)}: there is nothing that can be tried; " + "; ".join(notes))
    return plan, notes


def _sweep(
    word: str,
    env: VecEnv,
    disturbances: Mapping[str, Parameter],
    magnitudes: Sequence[float] | None,
    alone: bool = True,
) -> Sweep:
    """What a word asks for; with the nominal magnitude among the others where it is tried ``alone``."""
    name, _, given = word.partition("=")
    task = name_of(env)
    own: Mapping[str, Parameter] = env.parameters if is_randomizable(env) else {}
    known = {**own, **disturbances}
    unit, nominal = "", 0.0
    parameters: tuple[str, ...] = (ALIASES.get(name, name),)
    if name == PUSH:
        if not is_pushable(env):
            raise ValueError(f"{PUSH}: {task} has no push(); its robots cannot be pushed")
        unit, parameters = env.push_unit, ()
        default: Sequence[float] = _PUSHES.get(unit, _TURNS)
    elif name == MODEL:
        parameters = tuple(sorted(own))
        if not own:
            raise ValueError(f"{MODEL}: {task} has no physical parameters that can be set")
        default, unit = MAGNITUDES[MODEL], "of the ranges"
    elif parameters[0] in known:
        parameter = known[parameters[0]]
        nominal, unit = parameter.nominal, "σ" if name in (NOISE, "noise") else parameter.unit
        if name in ALIASES:
            default, unit = MAGNITUDES[name], "steps" if name == DELAY else unit
        else:
            default = _spaced(parameter.low, parameter.high, POINTS)
            if not (given or magnitudes or parameter.low < parameter.high):
                raise ValueError(f"{name} has no range of its own; write {name}=LOW:HIGH")
    elif name in ALIASES:
        raise ValueError(f"{name}: {task} has no vectors or actions that it could be put on")
    else:
        every = [*TYPES, *known]
        raise ValueError(f"{task} has no '{name}'; {nearest(name, every)}")
    chosen = _range(name, given) if given else tuple(magnitudes or default)
    most = 1.0 if name in SHARES and name not in own else math.inf
    late = name.endswith("_delay") and name not in own
    least = 0.0 if most == 1 or late or name in (PUSH, NOISE, DELAY, MODEL) else -math.inf
    bad = next((m for m in chosen if not math.isfinite(m) or not least <= m <= most), None)
    if bad is not None:
        remedy = "a number" if not math.isfinite(bad) else "0 or more" if most == math.inf else "0 to 1"
        raise ValueError(f"{name}: magnitude {bad:g} is not one; give {remedy}")
    for part in own.keys() & parameters:
        told = own[part]
        least = min(chosen) if name != MODEL else told.nominal - max(chosen) * (told.nominal - told.low)
        if told.positive and least <= 0:
            raise ValueError(f"{name}: {part} would be {least:g}, which is not possible; keep it above 0")
    return Sweep(
        name=name, unit=unit, nominal=nominal, parameters=parameters,
        magnitudes=tuple(sorted({*map(float, chosen), *([nominal] if alone else [])})),
    )  # fmt: skip


def _range(name: str, text: str) -> tuple[float, ...]:
    parts = text.split(":")
    try:
        low, high = float(parts[0]), float(parts[1])
        points = int(parts[2]) if len(parts) == 3 else POINTS
        if len(parts) > 3 or not low < high or points < 2:
            raise ValueError
    except (ValueError, IndexError):
        remedy = f"write {name}=LOW:HIGH or {name}=LOW:HIGH:POINTS, LOW below HIGH, 2 POINTS or more"
        raise ValueError(f"{name}={text}: {remedy}") from None
    return _spaced(low, high, points)


def _spaced(low: float, high: float, points: int) -> tuple[float, ...]:
    return tuple(round(low + (high - low) * i / (points - 1), 10) for i in range(points))
