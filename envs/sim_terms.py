"""What a simulator's managers know of observations, actions and commands, for whoever has to do the same on a robot."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlcore.envs.arrays import view_of
from rlcore.envs.sim_joints import short

_OBSERVATION_FACTS = ("scale", "clip", "history_length", "delay_min_lag", "delay_max_lag")


class Quantity(NamedTuple):
    """What an observation function measures."""

    name: str
    unit: str = ""
    frame: str = ""


_QUANTITIES = {
    "base_pos_z": Quantity("height", "m", "world"),
    "base_lin_vel": Quantity("linear_velocity", "m/s", "base"),
    "base_ang_vel": Quantity("angular_velocity", "rad/s", "base"),
    "projected_gravity": Quantity("projected_gravity", "", "base"),
    "root_pos_w": Quantity("position", "m", "env"),
    "root_quat_w": Quantity("orientation", "", "world"),
    "root_lin_vel_w": Quantity("linear_velocity", "m/s", "world"),
    "root_ang_vel_w": Quantity("angular_velocity", "rad/s", "world"),
    "joint_pos": Quantity("joint_position", "rad"),
    "joint_pos_rel": Quantity("joint_position", "rad"),
    "joint_pos_limit_normalized": Quantity("joint_position", "rad"),
    "joint_vel": Quantity("joint_velocity", "rad/s"),
    "joint_vel_rel": Quantity("joint_velocity", "rad/s"),
    "joint_effort": Quantity("joint_effort", "N m"),
    "body_incoming_wrench": Quantity("wrench"),
    "last_action": Quantity("last_action"),
    "generated_commands": Quantity("command"),
    "height_scan": Quantity("height_scan", "m", "world"),
    "imu_orientation": Quantity("orientation", "", "world"),
    "imu_projected_gravity": Quantity("projected_gravity", "", "imu"),
    "imu_ang_vel": Quantity("angular_velocity", "rad/s", "imu"),
    "imu_lin_acc": Quantity("linear_acceleration", "m/s^2", "imu"),
}
"""By name of functions in the simulators' own libraries, of which Isaac Lab and mjlab mean the same."""

_SENSORS = {
    "GYRO": Quantity("angular_velocity", "rad/s"),
    "VELOCIMETER": Quantity("linear_velocity", "m/s"),
    "ACCELEROMETER": Quantity("linear_acceleration", "m/s^2"),
    "FRAMEQUAT": Quantity("orientation"),
    "FRAMEPOS": Quantity("position", "m"),
}
"""MuJoCo's, which mjlab reads by name."""

_KINDS = {
    "JointPositionAction": "position",
    "RelativeJointPositionAction": "relative_position",
    "JointVelocityAction": "velocity",
    "JointEffortAction": "effort",
    "BinaryJointPositionAction": "binary_position",
    "BinaryJointVelocityAction": "binary_velocity",
    "NonHolonomicAction": "twist",
}
_POSES = ("DifferentialInverseKinematicsAction", "DifferentialIKAction")

_COMMANDS = {
    "UniformVelocityCommand": ({"lin_vel_x": "m/s", "lin_vel_y": "m/s", "ang_vel_z": "rad/s"}, "base"),
    "UniformPoseCommand": ({"pos_x": "m", "pos_y": "m", "pos_z": "m", "quat": ""}, "base"),
    "UniformPose2dCommand": ({"pos_x": "m", "pos_y": "m", "pos_z": "m", "heading": "rad"}, "base"),
}  # fmt: skip
"""Components of commands by class, with their units, and the frame that they are in; ``quat`` is four numbers."""


class Joints:
    """Names of joints, with the robot's where there are several robots."""

    def __init__(self, core: Any) -> None:
        self.core = core
        self.assets: dict[str, Any] = {}
        """Robots that something was asked of."""

    def asset(self, name: str) -> Any:
        """A robot of the scene; None where it has no joints."""
        try:
            asset = self.core.scene[name]
        except (KeyError, AttributeError, TypeError):
            return None
        if not getattr(asset, "joint_names", None):
            return None
        self.assets[name] = asset
        return asset

    def written(self, terms: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Terms with the names of their joints as the file has them, when all robots are known."""
        for term in terms:
            owner = term.pop("asset", None)
            if "joints" in term:
                term["joints"] = [self.called(owner, joint) for joint in term["joints"]]
        return terms

    def called(self, owner: str | None, joint: str) -> str:
        """The name of a joint in the file."""
        return joint if owner is None or len(self.assets) < 2 else f"{owner}/{joint}"


def observation_terms(
    core: Any, group: str, names: list[str], sizes: list[int], joints: Joints
) -> list[dict[str, Any]]:
    """Terms of a group in order; ``names`` and ``sizes`` of its parts where there is no manager, or none can tell."""
    plain = [{"name": name, "size": size} for name, size in zip(names, sizes, strict=True)]
    manager: Any = getattr(core, "observation_manager", None)
    active = getattr(manager, "active_terms", {}).get(group)
    if active is None:
        return plain
    shapes = getattr(manager, "group_obs_term_dim", None) or manager._group_obs_term_dim  # mjlab has only the latter
    shapes = shapes[group]
    configs = getattr(manager, "_group_obs_term_cfgs", {}).get(group, [None] * len(active))
    if sum(int(np.prod(shape)) for shape in shapes) != sum(sizes):  # joined along another axis than the last
        return plain
    if len(names) == 1 and len(active) > 1 and any(int(np.prod(shape[:-1])) > 1 for shape in shapes):
        return plain  # joined frame by frame: no term is in one piece
    terms = []
    for name, shape, config in zip(active, shapes, configs, strict=True):
        term: dict[str, Any] = {"name": name, "size": int(np.prod(shape))}
        for fact in _OBSERVATION_FACTS:
            value = getattr(config, fact, None)
            if value is not None and not (isinstance(value, int) and value == 0):
                term[fact] = _numbers(value)
        if "history_length" in term:
            term["history_order"] = "oldest_first"
        terms.append(term | _measured(core, config, joints))
    return terms


def _measured(core: Any, config: Any, joints: Joints) -> dict[str, Any]:
    """What a term measures, of what, and how it is disturbed in training."""
    facts: dict[str, Any] = {}
    noise, modifiers = _noise(getattr(config, "noise", None)), getattr(config, "modifiers", None)
    if noise:
        facts["noise"] = noise
    if modifiers:
        facts["modifiers"] = [getattr(x.func, "__name__", type(x.func).__name__) for x in modifiers]
    function = getattr(config, "func", None)
    if function is None:
        return facts
    module = str(getattr(function, "__module__", ""))
    name = str(getattr(function, "__name__", type(function).__name__))
    facts["function"] = f"{module}.{name}"
    params = dict(getattr(config, "params", None) or {})
    quantity = _QUANTITIES.get(name) if module.startswith(("isaaclab.envs.mdp", "mjlab.envs.mdp")) else None
    if quantity is None and module.startswith("mjlab.envs.mdp"):
        quantity = _of_sensor(core, name, params)
    if quantity is None:  # Isaac Lab's descriptors tell units of functions that nobody here knows
        unit = getattr(getattr(function, "_descriptor", None), "units", None)
        told = {key: _plain(value) for key, value in params.items() if _plain(value) is not None}
        return facts | ({"unit": unit} if isinstance(unit, str) else {}) | ({"params": told} if told else {})
    facts |= {"quantity": quantity.name}
    facts |= {key: value for key, value in (("unit", quantity.unit), ("frame", quantity.frame)) if value}
    if quantity.name == "orientation":
        facts["components"] = list(_quaternions(module))
    if name.endswith("_rel"):
        facts["relative_to"] = "default"
    if quantity.name.startswith("joint_"):
        facts |= _joints_of(function, params, joints)
    if name == "joint_pos_limit_normalized":
        facts |= _range_of(facts, joints)
    if quantity.name == "wrench":
        facts |= _bodies_of(core, params)
    if quantity.name == "command" and "command_name" in params:
        facts["command"] = params["command_name"]
    if quantity.name == "last_action" and params.get("action_name"):
        facts["action"] = params["action_name"]
    return facts


def _quaternions(module: str) -> str:
    """The order of a quaternion's numbers: Isaac Lab 3 has its real part last, whatever its descriptors tell."""
    if not module.startswith("isaaclab."):
        return "wxyz"
    math: Any = importlib.import_module("isaaclab.utils.math")
    nothing = torch.zeros(1)
    identity = math.quat_from_euler_xyz(nothing, nothing, nothing)
    return "wxyz" if float(identity[0, 0]) == 1 else "xyzw"


def _joints_of(function: Any, params: dict[str, Any], joints: Joints) -> dict[str, Any]:
    """The joints that a function reads, and their robot."""
    chosen: Any = params.get("asset_cfg")
    if chosen is None:
        default = inspect.signature(function).parameters.get("asset_cfg")
        chosen = None if default is None else default.default
    asset = joints.asset(getattr(chosen, "name", ""))
    if asset is None:
        return {}
    names, ids = list(asset.joint_names), getattr(chosen, "joint_ids", slice(None))
    own = names[ids] if isinstance(ids, slice) else [names[int(i)] for i in ids]
    return {"joints": own, "asset": chosen.name}


def _range_of(facts: dict[str, Any], joints: Joints) -> dict[str, Any]:
    """The positions that a function calls -1 and 1: Isaac Lab's soft limits."""
    asset = joints.assets.get(facts.get("asset", ""))
    limits = view_of(getattr(getattr(asset, "data", None), "soft_joint_pos_limits", None))
    if asset is None or limits is None:
        return {}
    own = [list(asset.joint_names).index(name) for name in facts["joints"]]
    return {"range": _numbers(limits[:1, own])} if bool(torch.isfinite(limits[0, own]).all()) else {}


def _bodies_of(core: Any, params: dict[str, Any]) -> dict[str, Any]:
    """The bodies that a function reads of a robot or a sensor, in order."""
    chosen: Any = params.get("sensor_cfg") or params.get("asset_cfg")
    try:
        names = list(core.scene[chosen.name].body_names)
    except (KeyError, AttributeError, TypeError):
        return {}
    ids = chosen.body_ids
    return {"bodies": [str(name) for name in (names[ids] if isinstance(ids, slice) else [names[int(i)] for i in ids])]}


def _plain(value: Any) -> Any:
    """A number, a text or a list of such, as it is; None of all else."""
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)) and all(_plain(x) is not None for x in value):
        return [_plain(x) for x in value]
    return None


def _of_sensor(core: Any, name: str, params: dict[str, Any]) -> Quantity | None:
    """What one of MuJoCo's sensors measures, in the frame of its site."""
    if name not in ("builtin_sensor", "projected_gravity_from_sensor") or "sensor_name" not in params:
        return None
    try:
        sensor = core.sim.mj_model.sensor(params["sensor_name"])
        mujoco: Any = importlib.import_module("mujoco")
        kind = mujoco.mjtSensor(int(sensor.type[0])).name.removeprefix("mjSENS_")
        place = (sensor.reftype if kind.startswith("FRAME") else sensor.objtype, sensor.refid, sensor.objid)
        frame_id = int((place[1] if kind.startswith("FRAME") else place[2])[0])
        frame = mujoco.mj_id2name(core.sim.mj_model, int(place[0][0]), frame_id) or "world"
    except (KeyError, AttributeError, ValueError):
        return None
    frame = frame.rpartition("/")[2]
    if name == "projected_gravity_from_sensor":
        return Quantity("projected_gravity", "", frame)
    return _SENSORS[kind]._replace(frame=frame) if kind in _SENSORS else None


def _noise(noise: Any) -> dict[str, Any] | None:
    """Noise of training as a table: its kind, how it is applied, and its numbers."""
    if noise is None:
        return None
    facts: dict[str, Any] = {"kind": type(noise).__name__.removesuffix("Cfg").removesuffix("Noise").lower()}
    for name in ("operation", "n_min", "n_max", "mean", "std", "bias"):
        value = getattr(noise, name, None)
        if isinstance(value, (int, float, str, tuple, list, Tensor)):
            facts[{"n_min": "low", "n_max": "high"}.get(name, name)] = _numbers(value)
    for name in ("noise_cfg", "bias_noise_cfg"):
        inner = _noise(getattr(noise, name, None))
        if inner is not None:
            facts[name.removesuffix("_cfg")] = inner
    return facts


def terms_of(core: Any) -> dict[str, Any]:
    """The action terms of an env by name; none where it has no manager."""
    manager = getattr(core, "action_manager", None)
    return {name: manager.get_term(name) for name in manager.active_terms} if manager is not None else {}


def action_terms(core: Any, joints: Joints) -> list[dict[str, Any]]:
    """Action terms in order."""
    terms = []
    for name, action in terms_of(core).items():
        term: dict[str, Any] = {"name": name, "size": int(action.action_dim), "class": type(action).__name__}
        kind = _kind_of(action)
        if kind is not None:
            term["kind"] = kind
        for fact in ("scale", "offset", "clip"):
            value = getattr(action, f"_{fact}", None)
            if isinstance(value, (int, float, Tensor)):
                term[fact] = _numbers(value)
        for fact, source in (("open", "_open_command"), ("closed", "_close_command")):
            value = getattr(action, source, None)
            if isinstance(value, Tensor):
                term[fact] = _numbers(value)
        body = getattr(action, "_body_name", None) or getattr(getattr(action, "cfg", None), "frame_name", None)
        if body:
            term["body"] = body if isinstance(body, str) else next(iter(body))
        term |= _driven(action, joints)
        cfg: Any = getattr(action, "cfg", None)
        if kind == "relative_pose" and "scale" not in term and hasattr(cfg, "delta_pos_scale"):
            both = [cfg.delta_pos_scale] * 3 + [cfg.delta_ori_scale] * 3
            term["scale"] = [float(x) for x in both[: term["size"]]]
        terms.append(term)
    return terms


def _driven(action: Any, joints: Joints) -> dict[str, Any]:
    """The joints that a term drives, in order, and their robot."""
    cfg = getattr(action, "cfg", None)
    owner = getattr(cfg, "asset_name", None) or getattr(cfg, "entity_name", None)
    asset = joints.asset(owner) if isinstance(owner, str) else None
    if getattr(getattr(cfg, "transmission_type", None), "value", "joint") != "joint":
        return {}
    names: Sequence[str] = getattr(action, "_joint_names", None) or getattr(action, "_target_names", None) or ()
    ids = getattr(action, "_joint_ids", None)
    if not names and asset is not None and isinstance(ids, Tensor):
        names = [asset.joint_names[i] for i in ids.tolist()]
    if not names:
        return {}
    return {"joints": [str(name) for name in names]} | ({} if asset is None else {"asset": owner})


def _kind_of(action: Any) -> str | None:
    """What a term does with its numbers, by the class that says so; None of a class that nobody here knows."""
    steps = ("process_actions", "apply_actions")
    named = [cls for cls in type(action).__mro__ if any(step in vars(cls) for step in steps)]
    name = (named[0] if named else type(action)).__name__
    if name in _POSES:
        cfg = action.cfg
        relative = getattr(getattr(cfg, "controller", cfg), "use_relative_mode", False)
        return "relative_pose" if relative else "pose"
    return _KINDS.get(name)


def commands_of(core: Any) -> list[dict[str, Any]]:
    """Commands by name, with their components, and ranges as the configuration has them now."""
    manager = getattr(core, "command_manager", None)
    found = []
    for name in getattr(manager, "active_terms", None) or ():
        term, value = manager.get_term(name), manager.get_command(name)  # type: ignore[union-attr]
        facts: dict[str, Any] = {"name": name, "class": type(term).__name__}
        if isinstance(value, Tensor) and value.dim() > 1:
            facts["size"] = int(value[0].numel())
        kind = next((cls for cls in type(term).__mro__ if cls.__name__ in _COMMANDS), None)
        if kind is not None:
            known = _COMMANDS[kind.__name__]
            quaternion = [f"quat_{axis}" for axis in _quaternions(kind.__module__)]
            parts = {p: unit for part, unit in known[0].items() for p in (quaternion if part == "quat" else [part])}
            if facts.get("size") == len(parts):
                facts |= {"components": list(parts), "units": list(parts.values()), "frame": known[1]}
        ranges = getattr(term.cfg, "ranges", None)
        pairs = {key: pair for key, pair in (vars(ranges) if ranges is not None else {}).items() if _is_pair(pair)}
        if pairs:
            facts["ranges"] = {key: [float(x) for x in pair] for key, pair in pairs.items()}
        every: Any = getattr(term.cfg, "resampling_time_range", None)
        if _is_pair(every):
            facts["resampling_time"] = [float(x) for x in every]
        found.append(facts)
    return found


def _is_pair(value: Any) -> bool:
    numbers = isinstance(value, (tuple, list)) and len(value) == 2
    return numbers and all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in value)


def row_of(value: Any) -> Any:
    """Plain numbers; of a tensor with a row for each env, those of env 0."""
    if isinstance(value, Tensor):
        return value[0].tolist() if value.dim() > 1 else value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _numbers(value: Any) -> Any:
    """``row_of`` with as few digits as float32 needs."""
    return _shortened(row_of(value)) if isinstance(value, Tensor) else row_of(value)


def _shortened(value: Any) -> Any:
    return [_shortened(x) for x in value] if isinstance(value, list) else short(value)
