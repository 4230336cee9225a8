"""What a file tells under mjlab's own names and in its own layout, so that programs for mjlab's files read ours.

Lists are texts with commas, lists within by semicolons. What mjlab's layout cannot say of a policy is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlcore.export.schema import clip_pairs


def mjlab_properties(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Properties by mjlab's names, of facts in the schema; ``joint_names`` and the like as lists.

    There are none where the robot's joints are not known.
    """
    joints = facts.get("joints") or []
    terms = facts.get("observation_terms") or []
    if not joints:
        return {}
    found: dict[str, Any] = {"joint_names": [row["name"] for row in joints]}
    driven = [row for row in joints if "stiffness" in row and "damping" in row]
    if driven:
        for fact in ("stiffness", "damping"):
            found[f"joint_{fact}"] = _joined([row[fact] for row in driven])
    if all("default_position" in row for row in joints):
        found["default_joint_pos"] = _joined([row["default_position"] for row in joints])
    found["command_names"] = [row["name"] for row in facts.get("commands") or ()]
    found["observation_names"] = [term["name"] for term in terms]
    found["observation_terms_scale"] = _joined([term.get("scale", 1.0) for term in terms])
    clips = [clip_pairs(term.get("clip") or (None, None)) for term in terms]
    if all(len(pairs) == 1 for pairs in clips):
        found["observation_terms_clip"] = _joined([_clip(*pairs) for (pairs,) in clips])
    found["observation_terms_history_length"] = _joined([int(term.get("history_length", 0)) for term in terms])
    found["observation_terms_flatten_history_dim"] = ",".join("True" for _ in terms)
    scale = _scale(facts)
    return found | ({} if scale is None else {"action_scale": scale})


def _scale(facts: Mapping[str, Any]) -> str | None:
    """Scale of joint positions about the default ones, which is all that a program for mjlab's files does."""
    actions = facts.get("action_terms") or []
    defaults = {row["name"]: row.get("default_position") for row in facts["joints"]}
    if len(actions) != 1 or actions[0].get("kind") != "position" or "clip" in actions[0]:
        return None
    offset, size = actions[0].get("offset", 0.0), int(actions[0]["size"])
    offsets = offset if isinstance(offset, list) else [offset] * size
    if offsets != [defaults.get(joint) for joint in actions[0].get("joints") or ()]:
        return None
    scale = actions[0].get("scale", 1.0)
    return _joined(scale if isinstance(scale, list) else [scale] * size)


def _clip(low: float | None, high: float | None) -> list[float]:
    return [float("-inf") if low is None else low, float("inf") if high is None else high]


def _joined(values: Sequence[Any]) -> str:
    return ",".join(";".join(map(_text, x)) if isinstance(x, (list, tuple)) else _text(x) for x in values)


def _text(value: Any) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)
