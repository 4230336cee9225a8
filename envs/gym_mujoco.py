"""Physical parameters of gymnasium's MuJoCo tasks, in the model of each sub-env, and pushes of their roots."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlcore.env import Parameter
from rlcore.envs.parameters import STAGE_ENTRY, ParameterRows, PushDraws

RANGES = {
    "mass": (0.7, 1.3),
    "friction": (0.5, 1.5),
    "damping": (0.5, 1.5),
    "armature": (0.7, 1.3),
    "gain": (0.8, 1.2),
    "gravity": (0.8, 1.2),
}
"""Of factors on what the task's model has."""

_FIELDS = {
    "mass": ("body_mass", "body_inertia"),  # the same shape of another density
    "friction": ("geom_friction", "pair_friction"),
    "damping": ("dof_damping",),
    "armature": ("dof_armature",),
    "gain": ("actuator_gainprm", "actuator_biasprm"),
}
_INERTIAL = ("mass", "armature")
_STEEP = 0.5  # a root that slides along an axis with more of it upwards is not pushed there


class MujocoPhysics:
    """Sets parameters of the models of sub-envs, each of which has a model of its own.

    All are factors: ``mass`` on the masses and inertias of all bodies, ``friction`` on all coefficients of contacts,
    ``damping`` and ``armature`` on those of all joints, ``gain`` on the forces of all actuators, and ``gravity``. One
    is left out where a factor would change nothing, as the model has only zeros, or nothing that touches anything;
    and ``gain`` with muscles.

    A push changes the horizontal velocity of the root, where it floats or slides, in a direction that is drawn.

    Args:
        task: name for messages.
        sub_envs: unwrapped, with ``model`` and ``data`` of MuJoCo's.
        seed: of directions of pushes.
    """

    def __init__(self, task: str, sub_envs: Sequence[Any], seed: int | None) -> None:
        self._subs = list(sub_envs)
        self._mujoco: Any = importlib.import_module("mujoco")
        model = self._subs[0].model
        self._nominal: dict[str, list[tuple[str, NDArray[np.float64]]]] = {
            name: [(field, np.array(getattr(model, field))) for field in fields] for name, fields in _FIELDS.items()
        }
        self._gravity = np.array(model.opt.gravity)
        there = {name: any(array.any() for _, array in arrays) for name, arrays in self._nominal.items()}
        muscle = int(self._mujoco.mjtGain.mjGAIN_MUSCLE)
        there["friction"] &= touches(model, slice(None))
        there |= {"gain": there["gain"] and muscle not in model.actuator_gaintype, "gravity": bool(self._gravity.any())}
        self.parameters = {
            name: Parameter(nominal=1.0, low=low, high=high, positive=name == "mass")
            for name, (low, high) in RANGES.items()
            if there[name]
        }
        self._rows = ParameterRows(task, self.parameters, len(self._subs), torch.device("cpu"))
        self._scratch = self._mujoco.MjData(model)
        self.root = _root_axes(self._mujoco, model)
        """Degrees of freedom that are pushed, and their directions ``[2]``."""
        self._draw_push = PushDraws(len(self._subs), torch.device("cpu"), seed)

    def set(self, values: Mapping[str, Tensor], where: Tensor) -> None:
        """See ``rlcore.env.Randomizable.set_parameters``."""
        before = self._rows.values.clone()
        self._rows.set({name: value.cpu() for name, value in values.items()}, where.cpu())
        self._write(before)

    def push(self, speed: Tensor) -> None:
        """See ``rlcore.env.Pushable.push``; ``[N]`` in m/s."""
        angles = math.pi * self._draw_push()  # [N]
        for sub, angle, size in zip(self._subs, angles.tolist(), speed.tolist(), strict=True):
            way = np.array([math.cos(angle), math.sin(angle)])
            if len(self.root) == 1:  # one way or the other
                way = np.sign(way @ self.root[0][1]) * self.root[0][1]
            for dof, axis in self.root:
                sub.data.qvel[dof] += size * (way @ axis)

    def seed(self, seed: int | None) -> None:
        """Begin the directions of pushes anew, unless it is None."""
        if seed is not None:
            self._draw_push.seed(seed)

    def stage(self) -> dict[str, Any]:
        """What was set, as a part of a stage; see ``rlcore.stage``."""
        return {STAGE_ENTRY: self._rows.state()} if self._rows.named else {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Put back what ``stage`` gave."""
        before = self._rows.values.clone()
        self._rows.load(state.get(STAGE_ENTRY, {}))
        self._write(before)

    def _write(self, before: Tensor) -> None:
        """Bring the models of the sub-envs whose values ``[P, N]`` are no longer those of before up to date."""
        values = self._rows.values
        for i in (before != values).any(0).nonzero().flatten().tolist():
            model = self._subs[i].model
            for name, factor, old in zip(self.parameters, values[:, i].tolist(), before[:, i].tolist(), strict=True):
                if factor == old:
                    continue
                if name == "gravity":
                    model.opt.gravity[:] = factor * self._gravity
                for field, array in self._nominal.get(name, ()):
                    getattr(model, field)[:] = factor * array
            changed = [name for name, row in zip(self.parameters, before[:, i] != values[:, i], strict=True) if row]
            if set(changed) & set(_INERTIAL):  # what solvers and actuators take from masses
                self._mujoco.mj_setConst(model, self._scratch)


def touches(model: Any, geoms: Any) -> bool:
    """Whether any of some geoms of a model may collide with any geom, by the bits of their types and affinities."""
    types, affinities = (
        [int(np.bitwise_or.reduce(bits[rows], initial=0)) for rows in (geoms, slice(None))]
        for bits in (model.geom_contype, model.geom_conaffinity)
    )
    return bool(types[0] & affinities[1] | types[1] & affinities[0])


def with_physics(adapter: Any, env: Any, seed: int | None) -> MujocoPhysics | None:
    """Make the adapter of a vector env of MuJoCo's tasks ``Randomizable``, and ``Pushable`` if it can be.

    Sub-envs have to be in this process, as those of a ``SyncVectorEnv`` are; of others nothing is changed.
    """
    subs = [getattr(sub, "unwrapped", None) for sub in getattr(env.unwrapped, "envs", None) or ()]
    parts = [type(getattr(sub, part, None)) for sub in subs for part in ("model", "data")]
    if not subs or any(part.__module__.partition(".")[0] != "mujoco" for part in parts):
        return None
    physics = MujocoPhysics(adapter.task, subs, seed)
    adapter.parameters, adapter.set_parameters = physics.parameters, physics.set
    if physics.root:
        adapter.push, adapter.push_unit = physics.push, "m/s"
    return physics


def _root_axes(mujoco: Any, model: Any) -> list[tuple[int, NDArray[np.float64]]]:
    joints = [j for j in range(model.njnt) if model.jnt_bodyid[j] == model.jnt_bodyid[0]]
    if joints and model.jnt_type[0] == mujoco.mjtJoint.mjJNT_FREE:
        first = int(model.jnt_dofadr[0])
        return [(first, np.array([1.0, 0.0])), (first + 1, np.array([0.0, 1.0]))]
    slides = [j for j in joints if model.jnt_type[j] == mujoco.mjtJoint.mjJNT_SLIDE]
    return [
        (int(model.jnt_dofadr[j]), np.array(model.jnt_axis[j][:2]))
        for j in slides
        if abs(model.jnt_axis[j][2]) < _STEEP
    ]
