"""What a simulator knows of a robot's joints: pose, drives and limits, of Isaac Lab and of mjlab.

Numbers are those that the simulator was built with, before anything is randomized, where it keeps them apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlcore.envs.arrays import view_of

UNLIMITED = 1e4
"""Joint limits from here on, in rad, m, rad/s or m/s, stand for none."""
_NO_EFFORT_LIMIT = 1e6  # N m or N; PhysX has 1e9, and the largest float
_SLIDE, _HINGE = 2, 3  # mjtJoint
_SAME_JOINTS = 2  # mjtEq: a joint follows another's polynomial
_NEWTON_UNITS = {0: "m", 1: "rad"}  # JointType.PRISMATIC and REVOLUTE

Row = NDArray[np.float64]


def joint_table(core: Any, asset: Any) -> list[dict[str, Any]]:
    """A row for each joint in the simulator's order: ``name``, and what is known of ``JOINT_FACTS`` in the schema."""
    names = [str(name) for name in getattr(asset, "joint_names", None) or ()]
    if not names:
        return []
    data = asset.data
    columns: dict[str, Row] = {}
    limits = _row(getattr(data, "joint_pos_limits", None))  # [J, 2]
    for fact, source in (("default_position", "default_joint_pos"), ("default_velocity", "default_joint_vel")):
        values = _row(getattr(data, source, None))
        if values is not None:
            columns[fact] = values
    mujoco = hasattr(getattr(core, "sim", None), "mj_model") and hasattr(asset, "indexing")
    for fact, values in (_of_mjlab(core, asset) if mujoco else _of_isaaclab(asset, names)).items():
        columns[fact] = values
    motors = list(getattr(getattr(asset, "cfg", None), "joint_sdk_names", None) or ())  # as Unitree's robots have
    units = _units(core, asset) if mujoco else _units_of_newton(asset, names)
    follows = _mimics(core, asset, names) if mujoco else {}
    rows: list[dict[str, Any]] = []
    for j, name in enumerate(names):
        row: dict[str, Any] = {"name": name}
        if units[j] is not None:
            row["unit"] = units[j]
        for fact, values in columns.items():
            known = len(values) == len(names) and math.isfinite(values[j])
            most = _NO_EFFORT_LIMIT if fact == "effort_limit" else UNLIMITED if fact == "velocity_limit" else math.inf
            if known and abs(values[j]) < most and not (fact == "default_velocity" and values[j] == 0):
                row[fact] = short(values[j])
        if limits is not None and limits.shape == (len(names), 2) and (np.abs(limits[j]) < UNLIMITED).all():
            row["position_limits"] = [short(x) for x in limits[j]]
        if name in follows and "stiffness" not in row:
            row["mimic"] = follows[name]
        if name in motors:
            row["motor"] = motors.index(name)
        rows.append(row)
    return rows


def short(value: float) -> float:
    """A float32 with the fewest digits that still give it."""
    return float(str(np.float32(value)))


def _row(value: Any) -> Row | None:
    """Numbers of env 0; None of what is no array."""
    tensor = view_of(value)
    return None if tensor is None or tensor.dim() < 2 else np.asarray(tensor[0].tolist(), np.float64)


def _of_isaaclab(asset: Any, names: Sequence[str]) -> dict[str, Row]:
    columns: dict[str, Row] = {}
    data = vars(asset.data)
    for actuator in (getattr(asset, "actuators", None) or {}).values():
        own = [names.index(name) for name in getattr(actuator, "joint_names", ()) if name in names]
        for fact in ("stiffness", "damping", "effort_limit", "velocity_limit", "armature"):
            # Isaac Lab 3 has limits of actuators under another name, and warns of this one.
            name = f"actuator_{fact}" if hasattr(actuator, f"actuator_{fact}") else fact
            values = _row(getattr(actuator, name, None))
            if values is not None and values.shape == (len(own),):
                columns.setdefault(fact, np.full(len(names), np.nan))[own] = values
    for fact in ("stiffness", "damping", "armature"):  # which events leave alone; Isaac Lab 3 has none such
        values = _row(data.get(f"default_joint_{fact}"))
        if values is not None:
            columns[fact] = values
    return columns


def _of_mjlab(core: Any, entity: Any) -> dict[str, Row]:
    model, names = core.sim.mj_model, list(entity.joint_names)
    dofs = entity.indexing.joint_v_adr.tolist()
    columns = {"armature": np.asarray(model.dof_armature, np.float64)[dofs]}
    for joints, facts in _drives(model, entity, names):
        for fact, values in facts.items():
            columns.setdefault(fact, np.full(len(names), np.nan))[joints] = values
    return columns


def _drives(model: Any, entity: Any, names: list[str]) -> Iterator[tuple[list[int], dict[str, Row]]]:
    """Joints of each drive, and their gains and limits.

    MuJoCo's force is gain * control + bias[0] + bias[1] * position + bias[2] * velocity, times gear; drives that mjlab
    computes itself have gains of their own.
    """
    for drive in getattr(entity, "actuators", ()):
        own = [names.index(name) for name in drive.target_names if name in names]
        if not own or len(own) != len(drive.target_names):
            continue  # of tendons or sites
        ids = drive.global_ctrl_ids.reshape(
            -1, len(own)
        ).tolist()  # a drive with two controls a joint has all of one kind first
        gear = np.asarray(model.actuator_gear, np.float64)[ids, 0]
        bias = np.asarray(model.actuator_biasprm, np.float64)[ids]  # [controls, joints, 10]
        facts = {"stiffness": (-bias[..., 1] * gear**2).sum(0), "damping": (-bias[..., 2] * gear**2).sum(0)}
        for fact in ("stiffness", "damping"):
            computed = _row(getattr(drive, f"default_{fact}", None))
            if computed is not None:
                facts[fact] = computed
        force = np.asarray(model.actuator_forcerange, np.float64)[ids, 1] * np.abs(gear)
        limited = np.asarray(model.actuator_forcelimited, bool)[ids]
        joint_ids = entity.indexing.joint_ids[own].tolist()
        of_joint = np.asarray(model.jnt_actfrcrange, np.float64)[joint_ids, 1]
        joint_limited = np.asarray(model.jnt_actfrclimited, bool)[joint_ids]
        facts["effort_limit"] = np.minimum(
            np.where(limited, force, np.inf).sum(0), np.where(joint_limited, of_joint, np.inf)
        )
        speed = getattr(drive.cfg, "velocity_limit", None)
        if isinstance(speed, (int, float)):
            facts["velocity_limit"] = np.full(len(own), float(speed))
        yield own, facts


def _mimics(core: Any, entity: Any, names: list[str]) -> dict[str, dict[str, Any]]:
    """Joints that an equality ties to another: number = multiplier * the other's + offset, either way around."""
    model, ids = core.sim.mj_model, entity.indexing.joint_ids.tolist()
    found: dict[str, dict[str, Any]] = {}
    for i in range(int(model.neq)):
        pair = (int(model.eq_obj1id[i]), int(model.eq_obj2id[i]))
        constant, slope, *curved = (float(x) for x in model.eq_data[i][:5])
        if int(model.eq_type[i]) != _SAME_JOINTS or not set(pair) <= set(ids) or any(curved) or slope == 0:
            continue
        first, second = (names[ids.index(j)] for j in pair)
        at, other_at = (float(model.qpos0[int(model.jnt_qposadr[j])]) for j in pair)
        offset = at + constant - slope * other_at  # MuJoCo's polynomial is of what both are away from qpos0
        found[first] = {"joint": second, "multiplier": short(slope), "offset": short(offset)}
        found[second] = {"joint": first, "multiplier": short(1 / slope), "offset": short(-offset / slope)}
    return found


def _units(core: Any, entity: Any) -> list[str | None]:
    kinds = np.asarray(core.sim.mj_model.jnt_type)[entity.indexing.joint_ids.tolist()]
    return [{_SLIDE: "m", _HINGE: "rad"}.get(int(kind)) for kind in kinds]


def _units_of_newton(asset: Any, names: Sequence[str]) -> list[str | None]:
    """Units by the joints' types in Newton's model; none of another simulator's."""
    view = getattr(asset, "root_view", None)
    model = getattr(view, "model", None)
    if model is None or not hasattr(view, "get_attribute"):
        return [None] * len(names)
    kinds = view.get_attribute("joint_type", model).numpy().reshape(-1)  # type: ignore[union-attr]
    units = {str(name): _NEWTON_UNITS.get(int(kind)) for name, kind in zip(view.joint_names, kinds)}  # type: ignore[union-attr]  # noqa: B905  # kinds are of all envs
    return [units.get(name) for name in names]
