"""What a file tells, in the layout of unitree_rl_lab's ``deploy.yaml``, which its C++ controllers read.

| entry | meaning there |
|---|---|
| ``joint_ids_map`` | place of each joint among the motors of the robot's SDK |
| ``step_dt`` | seconds of a control step |
| ``stiffness``, ``damping`` | by motor; 0 for motors without a joint |
| ``default_joint_pos`` | by joint |
| ``commands`` | ``base_velocity`` with its ranges; others under their own names |
| ``actions`` | by class of the term: scale, offset, clip for each number, and places of the joints, null for all |
| ``observations`` | in order, by name of the function: scale for each number, clip, history, parameters |

The layout has one vector of observations, terms one after the other with their histories, oldest first, and no
recurrent state; what it cannot say is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from rlcore.config import nearest
from rlcore.export.metadata import ExportError, heading
from rlcore.export.schema import clip_pairs

_ACTIONS = {"position": "JointPositionAction", "velocity": "JointVelocityAction"}
_FAR = 1e9
_VELOCITY = ["lin_vel_x", "lin_vel_y", "ang_vel_z"]


def deploy_yaml(metadata: Mapping[str, Any], motors: Sequence[str] = ()) -> str:
    """The text of a ``deploy.yaml``.

    Args:
        metadata: of the file, as ``read_metadata`` gives it.
        motors: names of the joints in the order of the robot's SDK, ``same`` alone where that is the simulator's order;
            empty where the file itself tells, as of tasks whose robot has ``joint_sdk_names``.

    Raises:
        ExportError: the file does not tell enough, the layout has no place for something, or ``motors`` are not the
            file's joints.
    """
    _refuse(metadata)
    joints = metadata["joints"]
    places = _places(joints, motors)
    count = max(places) + 1
    gains: dict[str, list[float]] = {}
    for fact in ("stiffness", "damping"):
        gains[fact] = [0.0] * count
        for place, joint in zip(places, joints, strict=True):
            gains[fact][place] = float(joint.get(fact, 0.0))
    names = [joint["name"] for joint in joints]
    commands = {}
    for command in metadata.get("commands") or ():
        velocity = command.get("components") == _VELOCITY
        commands["base_velocity" if velocity else command["name"]] = {"ranges": command.get("ranges", {})}
    content: dict[str, Any] = {
        "joint_ids_map": places,
        "step_dt": metadata["control_dt"],
        **gains,
        "default_joint_pos": [joint["default_position"] for joint in joints],
        "commands": commands,
        "actions": {_ACTIONS[term["kind"]]: _action(term, names) for term in metadata["action_terms"]},
        "observations": {},
    }
    for term in metadata["observation_terms"]:
        name, entry = _observation(term, names, metadata)
        if name in content["observations"]:
            raise ExportError(f"deploy.yaml cannot be written: two observation terms would be called '{name}' there")
        content["observations"][name] = entry
    text: str = yaml.dump(content, Dumper=_Dumper, default_flow_style=None, sort_keys=False, width=110)
    return f"# {heading(metadata)}\n{text}"


class _Dumper(yaml.SafeDumper):
    """Without anchors: the C++ side reads each entry by itself."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write what comes twice twice."""
        return True


def _refuse(metadata: Mapping[str, Any]) -> None:
    """Refuse files that the layout cannot describe, or that do not tell enough."""
    fault = None
    if metadata.get("action_kind") == "discrete":
        fault = "the policy's actions are choices, and the layout has joints"
    elif metadata.get("image_groups") or metadata.get("action_mask"):
        fault = "the policy reads images or a mask of choices beside its vector"
    elif any(name.startswith("h_") for name in metadata.get("inputs") or ()):
        fault = "the policy is recurrent, and its controllers keep no state"
    elif metadata.get("observation_delay_steps") or any("modifiers" in t for t in metadata["observation_terms"]):
        fault = "observations are delayed or filtered in training, which the layout cannot say"
    missing = [name for name in ("joints", "control_dt") if not metadata.get(name)]
    missing += [f"default_position of {j['name']}" for j in metadata.get("joints") or () if "default_position" not in j]
    if fault is None and missing:
        fault = (
            f"the file does not tell {missing[0]}; export a task of Isaac Lab, mjlab or an arm that tells its joints"
        )
    gains = {"position": ("stiffness", "damping"), "velocity": ("damping",)}
    known = {joint["name"]: joint for joint in metadata.get("joints") or ()}
    for term in metadata.get("action_terms") or ():
        for joint, gain in ((j, g) for j in term.get("joints") or () for g in gains.get(str(term.get("kind")), ())):
            if fault is None and known.get(joint, {}).get(gain) is None:
                fault = f"the file does not tell the {gain} of '{joint}', and 0 would let it hang; let the env tell it"
        if fault is None and (term.get("kind") not in _ACTIONS or not term.get("joints")):
            fault = (
                f"the action term '{term['name']}' is of kind {term.get('kind', 'unknown')}, and its controllers take "
                f"{' and '.join(_ACTIONS)} of joints"
            )
    kinds = [term.get("kind") for term in metadata.get("action_terms") or ()]
    if fault is None and len(set(kinds)) < len(kinds):
        fault = f"there are several action terms of kind {kinds[0]}, and the layout has one of each"
    if fault is not None:
        raise ExportError(f"deploy.yaml cannot be written: {fault}")


def _places(joints: Sequence[Mapping[str, Any]], motors: Sequence[str]) -> list[int]:
    """Place of each joint among the motors."""
    names = [str(joint["name"]) for joint in joints]
    if list(motors) == ["same"]:
        return list(range(len(names)))
    if not motors:
        if not all("motor" in joint for joint in joints):
            raise ExportError(
                "deploy.yaml cannot be written: the order of the robot's motors is not known; name the joints in the "
                "order of its SDK with --motors, or --motors same where that is the simulator's order: "
                + ", ".join(names)
            )
        places = [int(joint["motor"]) for joint in joints]
        if len({*places}) < len(places):
            raise ExportError(f"deploy.yaml cannot be written: two joints are of one motor, {places} of {names}")
        return places
    unknown = [name for name in motors if name not in names]
    missing = [name for name in names if name not in motors]
    if unknown:
        raise ExportError(f"--motors: '{unknown[0]}' is no joint of the file's; {nearest(unknown[0], names)}")
    if missing or len(motors) != len(names):
        doubled = next((name for i, name in enumerate(motors) if name in motors[:i]), "")
        raise ExportError(
            f"--motors: '{missing[0]}' is missing; name all {len(names)} joints" if missing else
            f"--motors: '{doubled}' comes twice; name each joint once"
        )  # fmt: skip
    return [list(motors).index(name) for name in names]


def _action(term: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    size, own = int(term["size"]), list(term["joints"])
    pairs = None if term.get("clip") is None else clip_pairs(term["clip"])
    return {
        "clip": None if pairs is None else [_finite(pair) for pair in pairs * (size if len(pairs) == 1 else 1)],
        "joint_names": own,
        "scale": _each(term.get("scale", 1.0), size),
        "offset": _each(term.get("offset", 0.0), size),
        "joint_ids": None if own == names else [names.index(joint) for joint in own],
    }


def _observation(term: Mapping[str, Any], names: list[str], metadata: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    history = max(1, int(term.get("history_length", 0)))
    params: dict[str, Any] = {}
    own = term.get("joints")
    if own is not None and list(own) != names:
        params["asset_cfg"] = {"joint_ids": [names.index(joint) for joint in own]}
    velocity = [c["name"] for c in metadata.get("commands") or () if c.get("components") == _VELOCITY]
    if term.get("quantity") == "command" and "command" in term:
        params["command_name"] = "base_velocity" if term["command"] in velocity else term["command"]
    pairs = None if term.get("clip") is None else clip_pairs(term["clip"])
    if pairs is not None and any(pair != pairs[0] for pair in pairs):
        raise ExportError(
            f"deploy.yaml cannot be written: '{term['name']}' has a clip for each number, and the layout one for all"
        )
    return _called(term, velocity), {
        "params": params,
        "clip": None if pairs is None else _finite(pairs[0]),
        "scale": _each(term.get("scale", 1.0), int(term["size"]) // history),
        "history_length": history,
    }


def _called(term: Mapping[str, Any], velocity: Sequence[str]) -> str:
    """The name under which the controllers know a term, of those that they have; else the term's own."""
    relative = "_rel" if term.get("relative_to") == "default" or term.get("quantity") == "joint_velocity" else ""
    known = {
        "linear_velocity": "base_lin_vel",
        "angular_velocity": "base_ang_vel",
        "projected_gravity": "projected_gravity",
        "joint_position": f"joint_pos{relative}",
        "joint_velocity": f"joint_vel{relative}",
        "last_action": "last_action",
    }
    if "range" in term:
        return str(term["name"])
    if term.get("quantity") == "command":
        return "velocity_commands" if term.get("command") in velocity else str(term["name"])
    return known.get(str(term.get("quantity")), str(term["name"])) if term.get("frame") != "world" else term["name"]


def _finite(pair: Sequence[float | None]) -> list[float]:
    """A clip with large numbers for none, which its reader has no word for."""
    return [-_FAR if pair[0] is None else pair[0], _FAR if pair[1] is None else pair[1]]


def _each(value: Any, size: int) -> list[float]:
    numbers = value if isinstance(value, list) else [value]
    return [float(x) for x in (numbers if len(numbers) == size else numbers * size)]
