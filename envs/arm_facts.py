"""What a robot's controller has to know of the built-in arms; see docs/deployment.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from rlcore.envs.arm import JOINT_NAMES, ArmModel
from rlcore.envs.drives import DECIMATION, PHYSICS_DT

_FRAME = "base_link"

_TERMS: Mapping[str, Mapping[str, Any]] = {
    "joint_pos_rel": {"quantity": "joint_position", "unit": "rad", "relative_to": "default"},
    "ee_position": {"quantity": "position", "unit": "m", "frame": _FRAME, "body": "end_effector"},
    "ee_orientation": {"quantity": "orientation", "components": [*"wxyz"], "frame": _FRAME, "body": "end_effector"},
    "pose_command": {"quantity": "command", "command": "pose"},
    "joint_vel_rel": {"quantity": "joint_velocity", "unit": "rad/s"},
    "last_action": {"quantity": "last_action"},
}
_ACTIONS: Mapping[str, Mapping[str, Any]] = {
    "joint_position": {"kind": "position", "joints": list(JOINT_NAMES)},
    "joint_velocity": {"kind": "velocity", "joints": list(JOINT_NAMES)},
    "relative_pose": {"kind": "relative_pose", "joints": list(JOINT_NAMES), "body": "end_effector", "frame": _FRAME},
    "joint_effort": {"kind": "effort", "joints": list(JOINT_NAMES)},
}


def arm_facts(
    model: ArmModel,
    stiffness: float,
    damping: float,
    low: tuple[float, ...],
    span: tuple[float, ...],
    seconds: list[float],
) -> dict[str, Any]:
    """Joints, times, frame and command of an arm.

    Args:
        model: the arm.
        stiffness: of the drives, N m/rad.
        damping: of the drives, N m s/rad, or the joints' own where there are no drives.
        low: of the place where commands are drawn, m.
        span: from there on, m.
        seconds: how long a command lasts, least and most.
    """
    columns = (JOINT_NAMES, model.home, model.position_limit, model.effort_limit, model.velocity_limit)
    rows = [
        {
            "name": name,
            "unit": "rad",
            "default_position": home,
            "position_limits": [-limit, limit],
            "stiffness": stiffness,
            "damping": damping,
            "effort_limit": effort,
            "velocity_limit": speed,
        }
        for name, home, limit, effort, speed in zip(*columns, strict=True)
    ]
    times = {"control_dt": PHYSICS_DT * DECIMATION, "physics_dt": PHYSICS_DT, "decimation": DECIMATION}
    commands = [_pose_command(low, span, seconds)]
    return {**times, "joints": rows, "commands": commands, "frame": _FRAME, "quaternions": "w, x, y, z with x >= 0"}


def observed(name: str, size: int, noise: float) -> dict[str, Any]:
    """An observation term of the arms; noise is uniform, and of joints alone."""
    facts: dict[str, Any] = {"name": name, "size": size, **_TERMS[name]}
    if facts["quantity"].startswith("joint_"):
        facts["joints"] = list(JOINT_NAMES)
        if noise:
            facts["noise"] = {"kind": "uniform", "operation": "add", "low": -noise, "high": noise}
    return facts


def driven(name: str, scale: list[float], offset: list[float]) -> dict[str, Any]:
    """The action term of the arms."""
    return {"name": name, "size": len(scale), **_ACTIONS[name], "scale": scale, "offset": offset}


def _pose_command(low: tuple[float, ...], span: tuple[float, ...], seconds: list[float]) -> dict[str, Any]:
    """The command: a pose of the tool, which points down, drawn anew after a number of seconds in a range."""
    places = {f"pos_{axis}": [a, a + b] for axis, a, b in zip("xyz", low, span, strict=True)}
    angles = {"roll": [-math.pi, -math.pi], "pitch": [0.0, 0.0], "yaw": [-math.pi, math.pi]}
    return {
        "name": "pose",
        "size": 7,
        "components": [*places, "quat_w", "quat_x", "quat_y", "quat_z"],
        "units": ["m", "m", "m", "", "", "", ""],
        "frame": _FRAME,
        "ranges": {**places, **angles},
        "resampling_time": seconds,
    }


class _Arms(Protocol):
    task: str
    command: Tensor
    command_left: Tensor


def hold_pose(arms: _Arms, name: str, values: Tensor) -> None:
    """Write a command given by hand ``[7]`` into those of all envs, but for what is NaN.

    Raises:
        ValueError: it is of another name or size.
    """
    if name != "pose" or values.shape != (7,):
        raise ValueError(f"{arms.task}: the command '{name}' {list(values.shape)} came; steer 'pose', of 7 numbers")
    values = values.to(arms.command)
    torch.where(values.isnan(), arms.command, values, out=arms.command)
    arms.command_left.fill_(2.0)  # control steps: it does not end while it is held anew in each
