"""Physical parameters of a robot in Isaac Lab, through what its articulation writes to the simulator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlcore.env import Parameter
from rlcore.envs.parameters import ParameterRows
from rlcore.envs.sim_parameters import PAYLOAD, SimulatorPhysics, entity_of, factors

_DRIVES = {
    "stiffness": "write_joint_stiffness_to_sim",
    "damping": "write_joint_damping_to_sim",
    "effort_limit": "write_joint_effort_limit_to_sim",
}
"""Names in an actuator, and what writes those of one that the simulator computes itself."""

_JOINTS = {
    "armature": ("joint_armature", "write_joint_armature_to_sim"),
    "joint_friction": ("joint_friction_coeff", "write_joint_friction_coefficient_to_sim"),
}
"""Names in an articulation's data, and what writes them."""

_TAKEN_BY = {
    "randomize_rigid_body_mass": ("mass",),
    "randomize_actuator_gains": ("stiffness", "damping"),
    "randomize_joint_parameters": tuple(_JOINTS),
}
"""Isaac Lab's own events, and what they set."""


NONE_OF_ISAACLAB3 = (
    "no physical parameters with Isaac Lab 3, whose articulations are written by other functions than those of Isaac "
    "Lab 2; disturbances of sensors and motors can be had, such as noise, action_delay and action_gain"
)
"""A note of its envs."""


class IsaacLabParameters:
    """What can be varied of the robot of an env of Isaac Lab 2, relative to what it is when it is first varied.

    Factors: ``mass`` of its bodies with their inertias, ``stiffness``, ``damping`` and ``effort_limit`` of its drives,
    ``armature`` and ``joint_friction``; and ``payload``, a point mass at the center of mass of its first body, kg. Not
    there are materials, whose number PhysX limits, and gravity, which is one for all envs; what the articulation does
    not write; what a factor would not change; and what an event of the task sets at resets or intervals, as ``notes``
    tell. Isaac Lab 3 has none yet, as ``NONE_OF_ISAACLAB3`` says: data are arrays of Warp's
    there, and its functions end in ``_index`` and ``_mask``.

    Args:
        core: the env as made.
        notes: gets a line for each parameter that an event is in the way of.
    """

    def __init__(self, core: Any, notes: list[str]) -> None:
        self.core = core
        self.robot: Any = entity_of(getattr(core, "scene", None), ("articulations",))
        self._first: dict[str, Tensor] = {}
        self._notes = notes

    def parameters(self) -> dict[str, Parameter]:
        """By name."""
        robot = self.robot
        if robot is None:
            return {}
        if not isinstance(getattr(robot.data, "joint_pos", None), Tensor):
            if hasattr(getattr(robot.data, "joint_pos", None), "torch"):
                self._notes.append(NONE_OF_ISAACLAB3)
            return {}
        view, drives = getattr(robot, "root_physx_view", None), list((getattr(robot, "actuators", None) or {}).values())
        there = ["mass"] if hasattr(view, "get_masses") and hasattr(view, "set_inertias") else []
        for name, write in _DRIVES.items():
            numbers = [getattr(drive, name, None) for drive in drives]
            if hasattr(robot, write) and numbers and all(isinstance(x, Tensor) for x in numbers):
                there += [name] if any(_counts(x) for x in numbers) else []
        for name, (data, write) in _JOINTS.items():
            if hasattr(robot, write) and _counts(getattr(robot.data, data, None)):
                there.append(name)
        for name, event in _taken(self.core):
            if name in there:
                there.remove(name)
                self._notes.append(f"{name} is no parameter: the event {event} of the task sets it while it runs")
        found = factors(there)
        if "mass" in found:
            high = round(PAYLOAD * float(view.get_masses()[0].sum()), 2)  # type: ignore[union-attr]
            found["payload"] = Parameter(nominal=0.0, low=0.0, high=high, unit="kg")
        return found

    def write(self, names: list[str], envs: Tensor, rows: ParameterRows) -> None:
        """Bring the robots of some envs ``[K]`` up to date."""
        if {"mass", "payload"} & set(names):
            self._write_masses(envs, rows)
        for name in names:
            if name in _DRIVES:
                self._write_drives(name, envs, rows[name][envs, None])
            elif name in _JOINTS:
                data, write = _JOINTS[name]
                first = self._once(name, partial(getattr, self.robot.data, data))
                getattr(self.robot, write)(first[envs] * rows[name][envs, None], env_ids=envs)

    def shove(self, envs: Tensor, change: Tensor) -> None:
        """Add ``[K, 2]`` m/s to the horizontal velocities of the roots of envs ``[K]``."""
        velocity = self.robot.data.root_vel_w[envs].clone()
        velocity[:, :2] += change
        self.robot.write_root_velocity_to_sim(velocity, env_ids=envs)

    def _write_masses(self, envs: Tensor, rows: ParameterRows) -> None:
        view = self.robot.root_physx_view  # PhysX keeps masses on the host
        masses = self._once("mass", view.get_masses)
        inertias = self._once("inertia", view.get_inertias)
        envs = envs.to(masses.device)
        factor = rows["mass"].to(masses.device)[envs, None]
        new, turning = view.get_masses().clone(), view.get_inertias().clone()
        new[envs] = masses[envs] * factor
        new[envs, 0] += rows["payload"].to(masses.device)[envs]
        turning[envs] = inertias[envs] * factor.view(-1, *[1] * (inertias.dim() - 1))
        view.set_masses(new, envs)
        view.set_inertias(turning, envs)

    def _write_drives(self, name: str, envs: Tensor, factor: Tensor) -> None:
        for key, drive in self.robot.actuators.items():
            first = self._once(f"{name}/{key}", partial(getattr, drive, name))
            new = first[envs] * factor
            getattr(drive, name)[envs] = new
            if any(kind.__name__ == "ImplicitActuator" for kind in type(drive).__mro__):
                getattr(self.robot, _DRIVES[name])(new, joint_ids=drive.joint_indices, env_ids=envs)

    def _once(self, name: str, read: Callable[[], Tensor]) -> Tensor:
        """What was there when it was asked for first."""
        if name not in self._first:
            self._first[name] = read().clone()
        return self._first[name]


def _counts(numbers: Any) -> bool:
    return isinstance(numbers, Tensor) and bool((numbers.isfinite() & (numbers != 0)).any())


def _taken(core: Any) -> Iterator[tuple[str, str]]:
    """Parameters that events of the task set at resets and later, and the event's name."""
    manager = getattr(core, "event_manager", None)
    for mode, terms in (getattr(manager, "active_terms", None) or {}).items():
        for term in terms if mode in ("reset", "interval") else ():
            function = manager.get_term_cfg(term).func  # type: ignore[union-attr]
            kind = getattr(function, "__name__", type(function).__name__)
            yield from ((name, term) for name in _TAKEN_BY.get(kind, ()))


def isaaclab_physics(task: str, core: Any, notes: list[str]) -> SimulatorPhysics | None:
    """Of an env of Isaac Lab's with a robot that can be varied or pushed; None of others."""
    writer = IsaacLabParameters(core, notes)
    parameters = writer.parameters()
    if not parameters:
        return None
    fixed = getattr(writer.robot, "is_fixed_base", True) or not hasattr(writer.robot, "write_root_velocity_to_sim")
    shove = None if fixed else writer.shove
    return SimulatorPhysics(task, parameters, int(core.num_envs), torch.device(core.device), writer.write, shove)
