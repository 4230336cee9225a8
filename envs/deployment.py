"""What a robot's controller has to know of a simulated task, read from the simulator's managers."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rlcore.env import WIDEST_ACTION
from rlcore.envs.sim_joints import UNLIMITED, joint_table
from rlcore.envs.sim_terms import Joints, action_terms, commands_of, observation_terms, row_of, terms_of


def describe(core: Any, names: dict[str, list[str]], sizes: dict[str, list[int]]) -> dict[str, Any]:
    """Facts for the exported file; see ``EnvSpec.deployment`` and docs/deployment.md.

    Args:
        core: the simulator's env.
        names: of the parts of each observation group, used where there is no observation manager.
        sizes: of those parts.
    """
    facts: dict[str, Any] = {}
    decimation = getattr(getattr(core, "cfg", None), "decimation", None)
    for fact, value in (("control_dt", getattr(core, "step_dt", None)), ("physics_dt", _physics_dt(core))):
        if isinstance(value, (int, float)):
            facts[fact] = float(value)
    if isinstance(decimation, int):
        facts["decimation"] = decimation
    joints = Joints(core)
    observed = {group: observation_terms(core, group, names[group], sizes[group], joints) for group in names}
    driven = action_terms(core, joints)
    if not joints.assets:  # a task without managers: its robots, without what it does with them
        for name in getattr(getattr(core, "scene", None), "articulations", None) or ():
            joints.asset(name)
    facts["observation_terms"] = {group: joints.written(terms) for group, terms in observed.items()}
    if driven:
        facts["action_terms"] = joints.written(driven)
    table = [
        {**row, "name": joints.called(owner, row["name"])}
        for owner, asset in joints.assets.items()
        for row in joint_table(core, asset)
    ]
    slides = {row["name"] for row in table if row.get("unit") == "m"}
    for terms in facts["observation_terms"].values():
        for term in terms:
            if slides & set(term.get("joints", ())):
                term.pop("unit", None)  # it differs by joint, and ``joints`` tells it
    commands = commands_of(core)
    return facts | ({"joints": table} if table else {}) | ({"commands": commands} if commands else {})


def _physics_dt(core: Any) -> Any:
    """Seconds of a physics step, by which name it goes."""
    cfg = getattr(getattr(core, "cfg", None), "sim", None)
    places = ((core, "physics_dt"), (cfg, "dt"), (getattr(cfg, "mujoco", None), "timestep"))
    return next((getattr(place, name) for place, name in places if hasattr(place, name)), None)


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
    for name, term in terms_of(core).items():
        size = int(term.action_dim)
        rows, reason = _term_limits(term)
        if rows is not None:
            scale, offset = (
                np.asarray(row_of(getattr(term, key, d)), np.float64) for key, d in (("_scale", 1.0), ("_offset", 0.0))
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


def _term_limits(term: Any) -> tuple[NDArray[np.float64] | None, str]:
    """Limits ``[A, 2]`` in the unit of the joint, and what they are."""
    clip = getattr(term, "_clip", None)
    if isinstance(clip, Tensor) and clip.dim() == 3:
        return np.asarray(row_of(clip), np.float64), "its clip"
    absolute = any(cls.__name__ == "JointPositionAction" for cls in type(term).__mro__)
    asset = getattr(term, "_asset", None) or getattr(term, "_entity", None)
    limits = getattr(getattr(asset, "data", None), "soft_joint_pos_limits", None)
    limits = getattr(limits, "torch", limits)
    if not absolute or not isinstance(limits, Tensor):
        return None, "±1 × scale"
    joints = getattr(term, "_joint_ids", None)
    joints = getattr(term, "_target_ids", slice(None)) if joints is None else joints
    return np.asarray(limits[0][joints].tolist(), np.float64), "soft joint limits"
