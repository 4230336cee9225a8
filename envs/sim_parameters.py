"""What Isaac Lab and mjlab share of physical parameters and pushes of robots, and the ranges of a task's own events."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlcore.config import nearest
from rlcore.env import Parameter
from rlcore.envs.parameters import STAGE_ENTRY, ParameterRows, PushDraws

RANGES = {
    "mass": (0.8, 1.2),
    "friction": (0.5, 1.5),
    "stiffness": (0.8, 1.2),
    "damping": (0.8, 1.2),
    "effort_limit": (0.7, 1.1),
    "armature": (0.7, 1.3),
    "joint_damping": (0.5, 1.5),
    "joint_friction": (0.5, 1.5),
    "gravity": (0.9, 1.1),
}
"""Of factors on what the task has."""

ENCODER_BIAS = 0.05
PAYLOAD = 0.2
"""The largest, in rad, and as a part of the robot's mass."""


def factors(names: Sequence[str]) -> dict[str, Parameter]:
    """Parameters that are factors."""
    ranges = {name: RANGES[name] for name in names}
    return {name: Parameter(nominal=1.0, low=x[0], high=x[1], positive=name == "mass") for name, x in ranges.items()}


class SimulatorPhysics:
    """Keeps the values of parameters, and has a simulator's function write those that change.

    Args:
        task: name for messages.
        parameters: by name.
        num_envs: N.
        device: of the simulator.
        write: gets the names whose values changed, the envs ``[K]`` in which, and all values.
        shove: gets envs ``[K]`` and what to add to the horizontal velocities of their roots, ``[K, 2]`` in m/s; None
            where roots do not move.
    """

    def __init__(
        self,
        task: str,
        parameters: Mapping[str, Parameter],
        num_envs: int,
        device: torch.device,
        write: Callable[[list[str], Tensor, ParameterRows], None],
        shove: Callable[[Tensor, Tensor], None] | None,
    ) -> None:
        self.parameters = dict(parameters)
        self.movable = shove is not None
        self._rows = ParameterRows(task, parameters, num_envs, device)
        self._write, self._shove = write, shove
        self._draw_push = PushDraws(num_envs, device, None)

    @torch.no_grad()
    def set(self, values: Mapping[str, Tensor], where: Tensor) -> None:
        """See ``rlcore.env.Randomizable.set_parameters``; asks the host which envs are meant, as simulators do."""
        where = where.to(self._rows.values.device)
        self._rows.set({name: value.to(where.device) for name, value in values.items()}, where)
        envs = where.nonzero().flatten()
        if len(envs):
            self._write(list(values), envs, self._rows)

    @torch.no_grad()
    def push(self, speed: Tensor) -> None:
        """See ``rlcore.env.Pushable.push``: ``[N]`` in m/s, of the root, in a horizontal direction that is drawn."""
        speed = speed.to(self._rows.values.device)
        angle = math.pi * self._draw_push()
        envs = (speed != 0).nonzero().flatten()
        if len(envs):
            assert self._shove is not None
            self._shove(envs, (speed * torch.stack((angle.cos(), angle.sin()))).t()[envs])

    def seed(self, seed: int | None) -> None:
        """Begin the directions of pushes anew, unless it is None."""
        if seed is not None:
            self._draw_push.seed(seed)

    def stage(self) -> dict[str, Any]:
        """What was set, as a part of a stage; see ``rlcore.stage``."""
        return {STAGE_ENTRY: self._rows.state()} if self._rows.named else {}

    @torch.no_grad()
    def load(self, state: Mapping[str, Any]) -> None:
        """Put back what ``stage`` gave."""
        self._rows.load(state.get(STAGE_ENTRY, {}))
        if self._rows.named:
            everywhere = torch.arange(self._rows.values.shape[1], device=self._rows.values.device)
            self._write(sorted(self._rows.named), everywhere, self._rows)

    def hold(self) -> Callable[[], None]:
        """Remember what was set, and give what puts it back."""
        stage, pushes = self.stage(), self._draw_push.state.clone()

        def put_back() -> None:
            self.load(stage)
            self._draw_push.state.copy_(pushes)

        return put_back


def entity_of(scene: Any, kinds: Sequence[str]) -> Any:
    """The robot of a scene: what is called so, else the first that has joints; None where there is none."""
    found: dict[str, Any] = {}
    for kind in kinds:
        found |= getattr(scene, kind, None) or {}
    with_joints = [entity for entity in found.values() if getattr(entity, "num_joints", 0)]
    return found.get("robot", with_joints[0] if with_joints else None)


def event_ranges(core: Any) -> dict[str, tuple[float, float]]:
    """Ranges that a task's own events draw from at resets and intervals, as ``TERM/SETTING`` and what is below it.

    Such as ``push_robot/velocity_range/x``. Those of events at startup are left out: they have been drawn.
    """
    return {path: (float(table[key][0]), float(table[key][1])) for path, table, key in _event_ranges(core)}


def set_event_range(core: Any, name: str, low: float, high: float) -> None:
    """Change a range of ``event_ranges``; it is drawn from as soon as the event happens again.

    It is part of a stage, as all settings of terms that were changed are; see ``rlcore.envs.stages.Curricula``.

    Raises:
        ValueError: there is no such range, or low is above high.
    """
    places = {path: (table, key) for path, table, key in _event_ranges(core)}
    if name not in places:
        raise ValueError(f"no event has a range '{name}'; {nearest(name, places)}")
    if not low <= high:
        raise ValueError(f"the range of {name} is {low} to {high}; the first must not be above the second")
    table, key = places[name]
    table[key] = type(table[key])((low, high))


def _event_ranges(core: Any) -> Iterator[tuple[str, Any, Any]]:
    manager = getattr(core, "event_manager", None)
    terms: Mapping[str, Sequence[str]] = getattr(manager, "active_terms", None) or {}
    for mode in ("reset", "interval"):
        for term in terms.get(mode, ()):
            yield from _ranges_in(manager.get_term_cfg(term).params, term)  # type: ignore[union-attr]


def _ranges_in(table: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _ranges_in(value, f"{path}/{key}")
        elif isinstance(value, (tuple, list)) and len(value) == 2 and all(type(x) in (int, float) for x in value):
            yield f"{path}/{key}", table, key
