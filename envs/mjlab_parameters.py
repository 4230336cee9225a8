"""Physical parameters of a robot in mjlab, through fields of the simulator's model that differ by env."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlcore.env import Parameter
from rlcore.envs.gym_mujoco import touches
from rlcore.envs.parameters import ParameterRows
from rlcore.envs.sim_parameters import ENCODER_BIAS, PAYLOAD, SimulatorPhysics, entity_of, factors

_DERIVED = (
    "body_subtreemass",
    "dof_invweight0",
    "body_invweight0",
    "tendon_length0",
    "tendon_invweight0",
    "actuator_acc0",
)
"""What the simulator works out from masses and armatures."""

_INERTIAL = ("mass", "payload", "armature")


class _Place(NamedTuple):
    """Numbers of the robot in a field of the model: those of some rows, all of these or one of each."""

    field: str
    rows: Tensor
    column: int | None = None

    def at(self, envs: Tensor) -> tuple[Any, ...]:
        """Of the numbers ``[K, rows, ...]`` of some envs."""
        place = (envs[:, None], self.rows)
        return place if self.column is None else (*place, self.column)


class MjlabParameters:
    """What can be varied of the robot of an env, relative to what the env has when it is first varied.

    Factors on the robot's own: ``mass`` of its bodies with their inertias, ``friction`` of its geoms, ``stiffness``,
    ``damping`` and ``effort_limit`` of its drives, ``armature``, ``joint_damping`` and ``joint_friction``; and
    ``gravity``. ``payload`` is a point mass at the center of mass of its root, kg, and ``encoder_bias`` is added to the
    biases of all encoders, rad, which counts where observations or actions of the task heed them. One is left out where
    a factor would change nothing, where the drives are of a kind that mjlab itself does not vary so, or where an event
    of the task sets the same field at resets or intervals, which ``notes`` tell: see ``SimulatorEnv.event_ranges``.

    A field of the model is made to differ by env when it is first varied, which makes the simulator record its CUDA
    graphs once more; from then on it is written in place. Masses and armatures make it work out its constants anew,
    in all envs: with thousands of them that is a good part of a step.

    Args:
        core: the env as made.
        notes: gets a line for each parameter that an event is in the way of.
    """

    def __init__(self, core: Any, notes: list[str]) -> None:
        self.core = core
        self.robot: Any = entity_of(core.scene, ("entities",))
        self.places: dict[str, list[_Place]] = {}
        self.drives: dict[str, list[tuple[Any, str]]] = {}  # those that are not the simulator's own, and a tensor there
        self._first: dict[str, list[Tensor]] = {}  # as it was before it was varied
        self._constants: dict[str, Tensor] = {}
        if self.robot is None:
            return
        self._find()
        taken = dict(_taken(core))
        for name in [*self.places]:
            events = [taken[place.field] for place in self.places[name] if place.field in taken]
            if events:
                del self.places[name]
                self.drives.pop(name, None)
                notes.append(f"{name} is no parameter: the event {events[0]} of the task sets it while it runs")
        self._taken_bias = taken.get("encoder_bias")

    def parameters(self) -> dict[str, Parameter]:
        """By name."""
        if self.robot is None:
            return {}
        found = factors([name for name in self.places if self._counts(name)])
        if "mass" in found:
            total = float(torch.as_tensor(self.core.sim.mj_model.body_mass)[self.robot.indexing.body_ids.cpu()].sum())
            found["payload"] = Parameter(nominal=0.0, low=0.0, high=round(PAYLOAD * total, 2), unit="kg")
        if any(self.core.sim.mj_model.opt.gravity):
            found |= factors(["gravity"])
        if hasattr(self.robot.data, "encoder_bias") and self._taken_bias is None:
            found["encoder_bias"] = Parameter(nominal=0.0, low=-ENCODER_BIAS, high=ENCODER_BIAS, unit="rad")
        return found

    def write(self, names: list[str], envs: Tensor, rows: ParameterRows) -> None:
        """Bring the model of some envs ``[K]`` up to date."""
        if "payload" in names and "mass" not in names:
            names = ["mass", *names]
        self._prepare(names)
        model = self.core.sim.model
        for name in names:
            if name == "payload":
                continue  # with the mass
            value = rows[name][envs]  # [K]
            if name == "gravity":
                model.opt.gravity[envs] = self._first[name][0][envs] * value[:, None]
            elif name == "encoder_bias":
                self.robot.data.encoder_bias[envs] = self._first[name][0][envs] + value[:, None]
            for place, first in zip(self.places.get(name, ()), self._first[name], strict=False):
                new = first[envs] * value.view(-1, *[1] * (first.dim() - 1))
                if place.field == "body_mass":
                    new[:, 0] += rows["payload"][envs]
                getattr(model, place.field)[place.at(envs)] = new
            drives = self.drives.get(name, ())
            for (drive, kind), first in zip(drives, self._first[name][len(self.places.get(name, ())) :], strict=False):
                getattr(drive, kind)[envs] = first[envs] * value[:, None]
        if set(names) & set(_INERTIAL):
            self._work_out(rows)

    def shove(self, envs: Tensor, change: Tensor) -> None:
        """Add ``[K, 2]`` m/s to the horizontal velocities of the roots of envs ``[K]``."""
        velocity = self.robot.data.root_link_vel_w[envs].clone()
        velocity[:, :2] += change
        self.robot.write_root_link_velocity_to_sim(velocity, env_ids=envs)

    def _find(self) -> None:
        indexing = self.robot.indexing
        self.places = {
            "mass": [_Place(field, indexing.body_ids) for field in ("body_mass", "body_inertia")],
            "friction": [_Place("geom_friction", indexing.geom_ids)],
            "armature": [_Place("dof_armature", indexing.joint_v_adr)],
            "joint_damping": [_Place("dof_damping", indexing.joint_v_adr)],
            "joint_friction": [_Place("dof_frictionloss", indexing.joint_v_adr)],
        }
        places: dict[str, list[_Place]] = {"stiffness": [], "damping": [], "effort_limit": []}
        drives: dict[str, list[tuple[Any, str]]] = {name: [] for name in places}
        for drive in self.robot.actuators:
            kinds = [kind.__name__ for kind in type(drive).__mro__]
            position = "XmlActuator" in kinds and getattr(drive, "command_field", None) == "position"
            if position or "BuiltinPositionActuator" in kinds:
                own = drive.global_ctrl_ids
                places["stiffness"] += [_Place("actuator_gainprm", own, 0), _Place("actuator_biasprm", own, 1)]
                places["damping"].append(_Place("actuator_biasprm", own, 2))
                places["effort_limit"].append(_Place("actuator_forcerange", own))
            elif "IdealPdActuator" in kinds:
                for name, kind in (("stiffness", "stiffness"), ("damping", "damping"), ("effort_limit", "force_limit")):
                    drives[name].append((drive, kind))
            else:
                return  # some of the drives alone are no parameter
        if self.robot.actuators:
            self.places |= places
            self.drives = drives

    def _counts(self, name: str) -> bool:
        """Whether a factor would change anything."""
        model = self.core.sim.mj_model
        if name == "friction":
            own = self.robot.indexing.geom_ids.cpu().numpy()
            if not touches(model, own):
                return False
        numbers = [torch.as_tensor(getattr(model, x.field))[x.rows.cpu()] for x in self.places[name]]
        numbers += [getattr(drive, kind).cpu() for drive, kind in self.drives.get(name, ())]
        return any(bool((x.isfinite() & (x != 0)).any()) for x in numbers)

    def _prepare(self, names: list[str]) -> None:
        """Make fields differ by env, and remember what is in them."""
        new = [name for name in names if name not in self._first]
        if not new:
            return
        sim, envs = self.core.sim, torch.arange(self.core.num_envs, device=self.core.device)
        fields = {place.field for name in new for place in self.places.get(name, ())}
        if set(new) & set(_INERTIAL):
            fields |= {field for field in _DERIVED if hasattr(sim.mj_model, field)}
        sim.expand_model_fields(tuple(sorted(fields - set(sim.expanded_fields))))
        if "gravity" in new:
            self._expand_gravity()
        for field in fields & set(_DERIVED) - self._constants.keys():
            self._constants[field] = getattr(sim.model, field)[envs].clone()
        for name in new:
            numbers = [getattr(sim.model, x.field)[x.at(envs)].clone() for x in self.places.get(name, ())]
            numbers += [getattr(drive, kind).clone() for drive, kind in self.drives.get(name, ())]
            if name == "gravity":
                numbers = [sim.model.opt.gravity[envs].clone()]
            elif name == "encoder_bias":
                numbers = [self.robot.data.encoder_bias.clone()]
            self._first[name] = numbers

    def _expand_gravity(self) -> None:
        sim = self.core.sim
        options = sim.wp_model.opt
        if options.gravity.shape[0] == self.core.num_envs:
            return
        warp: Any = importlib.import_module("warp")
        rows = options.gravity.numpy().repeat(self.core.num_envs, 0)
        options.gravity = warp.array(rows, dtype=warp.vec3, device=options.gravity.device)
        sim.model.clear_cache()
        sim.create_graph()  # the one that was recorded reads the old array

    def _work_out(self, rows: ParameterRows) -> None:
        """What the simulator has from masses and armatures; where they are nominal, to the last bit as it was."""
        levels: Any = importlib.import_module("mjlab.managers.event_manager").RecomputeLevel
        self.core.sim.recompute_constants(levels.set_const)
        nominal = torch.ones(self.core.num_envs, dtype=torch.bool, device=self.core.device)
        for name in _INERTIAL:
            if name in rows.parameters:
                nominal &= rows[name] == rows.parameters[name].nominal
        envs = nominal.nonzero().flatten()
        for field, first in self._constants.items():
            getattr(self.core.sim.model, field)[envs] = first[envs]


def _taken(core: Any) -> Iterator[tuple[str, str]]:
    """Fields that events of the task set at resets and later, and the event's name."""
    manager = getattr(core, "event_manager", None)
    for mode, terms in (getattr(manager, "active_terms", None) or {}).items():
        for term in terms if mode != "startup" else ():
            function = manager.get_term_cfg(term).func  # type: ignore[union-attr]
            fields = [field for field in getattr(function, "model_fields", ()) if field not in _DERIVED]
            if getattr(function, "__name__", "") == "encoder_bias":
                fields.append("encoder_bias")
            yield from ((field, term) for field in fields)


def mjlab_physics(task: str, core: Any, notes: list[str]) -> SimulatorPhysics | None:
    """Of an env of mjlab's with a robot; None of others."""
    if not hasattr(getattr(core, "sim", None), "expand_model_fields"):
        return None
    writer = MjlabParameters(core, notes)
    parameters = writer.parameters()
    if not parameters:
        return None
    shove = None if writer.robot.is_fixed_base else writer.shove
    return SimulatorPhysics(task, parameters, int(core.num_envs), torch.device(core.device), writer.write, shove)
