"""What a robot's controller has to know of a simulated task, read from the simulator's managers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rlcore.env import WIDEST_ACTION

UNLIMITED = 1e4
"""Joint limits from here on, in rad or m, stand for none."""

_OBSERVATION_FACTS = ("scale", "clip", "history_length", "delay_min_lag", "delay_max_lag")


def describe(core: Any, names: dict[str, list[str]], sizes: dict[str, list[int]]) -> dict[str, Any]:
    """Facts for the exported file; see ``EnvSpec.deployment``.

    Args:
        core: the simulator's env.
        names: of the parts of each observation group, used where there is no observation manager.
        sizes: of those parts.
    """
    facts: dict[str, Any] = {}
    if isinstance(getattr(core, "step_dt", None), (int, float)):
        facts["control_dt"] = float(core.step_dt)
    facts["observation_terms"] = {group: _observation_terms(core, group, names[group], sizes[group]) for group in names}
    actions = _action_terms(core)
    if actions:
        facts["action_terms"] = [{k: v for k, v in term.items() if k != "joints"} for term in actions]
        joints = [joint for term in actions for joint in term["joints"]]
        if joints:
            facts["joint_names"] = joints
    return facts


def suggested_bounds(core: Any, box: spaces.Box) -> tuple[NDArray[np.float32], NDArray[np.float32], str]:
    """Finite action bounds for a task that sets none.

    Bounds of the space stay. Else a term's own clip or, where it sets joint positions, the joints' soft limits are
    divided by its scale, which gives at most ±10 of the latter. What is left gets ±1, ± its scale in the joint's unit.

    Returns:
        Lower and upper bounds ``[A]``, and what they come from.
    """
    low, high = np.full(box.shape, -1.0, np.float32), np.full(box.shape, 1.0, np.float32)
    reasons: list[str] = []
    start = 0
    for name, term in _terms_of(core).items():
        size = int(term.action_dim)
        rows, reason = _term_limits(term)
        if rows is not None:
            scale, offset = (
                np.asarray(_row(getattr(term, key, d)), np.float64) for key, d in (("_scale", 1.0), ("_offset", 0.0))
            )
            with np.errstate(all="ignore"):
                raw = np.sort((rows - np.reshape(offset, (-1, 1))) / np.reshape(scale, (-1, 1)), axis=1)
            finite = np.isfinite(raw).all(1) & (np.abs(rows) < UNLIMITED).all(1)
            if getattr(term, "_clip", None) is None:  # with a small scale, limits are many times what a policy uses
                far = finite & (np.abs(raw) > WIDEST_ACTION).any(1)
                reason += f", at most ±{WIDEST_ACTION:g}" if far.any() else ""
                raw = np.clip(raw, -WIDEST_ACTION, WIDEST_ACTION)
                finite &= raw[:, 0] < raw[:, 1]
            low[start : start + size] = np.where(finite, raw[:, 0], -1.0)
            high[start : start + size] = np.where(finite, raw[:, 1], 1.0)
            reason = reason if finite.all() else f"{reason}, ±1 × scale where there is none"
        reasons.append(f"{reason} ({name})")
        start += size
    own = np.isfinite(box.low) & np.isfinite(box.high)
    if own.all():
        reasons = ["the bounds of its action space"]
    return np.where(own, box.low, low), np.where(own, box.high, high), "; ".join(reasons) or "±1"


def _observation_terms(core: Any, group: str, names: list[str], sizes: list[int]) -> list[dict[str, Any]]:
    manager: Any = getattr(core, "observation_manager", None)
    active = getattr(manager, "active_terms", {}).get(group)
    if active is None:
        return [{"name": name, "size": size} for name, size in zip(names, sizes, strict=True)]
    shapes = getattr(manager, "group_obs_term_dim", None) or manager._group_obs_term_dim  # mjlab has only the latter
    shapes = shapes[group]
    configs = getattr(manager, "_group_obs_term_cfgs", {}).get(group, [None] * len(active))
    terms = []
    for name, shape, config in zip(active, shapes, configs, strict=True):
        term: dict[str, Any] = {"name": name, "size": int(np.prod(shape))}
        for fact in _OBSERVATION_FACTS:
            value = getattr(config, fact, None)
            if value is not None and not (isinstance(value, int) and value == 0):
                term[fact] = _row(value)
        terms.append(term)
    if sum(term["size"] for term in terms) != sum(sizes):  # terms joined along another axis than the last
        return [{"name": name, "size": size} for name, size in zip(names, sizes, strict=True)]
    return terms


def _terms_of(core: Any) -> dict[str, Any]:
    manager = getattr(core, "action_manager", None)
    return {name: manager.get_term(name) for name in manager.active_terms} if manager is not None else {}


def _action_terms(core: Any) -> list[dict[str, Any]]:
    terms = []
    for name, action in _terms_of(core).items():
        term: dict[str, Any] = {"name": name, "size": int(action.action_dim), "kind": type(action).__name__}
        for fact in ("scale", "offset", "clip"):
            value = getattr(action, f"_{fact}", None)
            if isinstance(value, (int, float, Tensor)):
                term[fact] = _row(value)
        joints: Sequence[str] = getattr(action, "_joint_names", None) or getattr(action, "_target_names", None) or ()
        terms.append({**term, "joints": list(joints)})
    return terms


def _term_limits(term: Any) -> tuple[NDArray[np.float64] | None, str]:
    """Limits ``[A, 2]`` in the unit of the joint, and what they are."""
    clip = getattr(term, "_clip", None)
    if isinstance(clip, Tensor) and clip.dim() == 3:
        return np.asarray(_row(clip), np.float64), "its clip"
    absolute = any(cls.__name__ == "JointPositionAction" for cls in type(term).__mro__)
    asset = getattr(term, "_asset", None) or getattr(term, "_entity", None)
    limits = getattr(getattr(asset, "data", None), "soft_joint_pos_limits", None)
    limits = getattr(limits, "torch", limits)
    if not absolute or not isinstance(limits, Tensor):
        return None, "±1 × scale"
    joints = getattr(term, "_joint_ids", None)
    joints = getattr(term, "_target_ids", slice(None)) if joints is None else joints
    return np.asarray(limits[0][joints].tolist(), np.float64), "soft joint limits"


def _row(value: Any) -> Any:
    """Plain numbers; of a tensor with a row for each env, those of env 0."""
    if isinstance(value, Tensor):
        return value[0].tolist() if value.dim() > 1 else value.tolist()
    return list(value) if isinstance(value, tuple) else value
