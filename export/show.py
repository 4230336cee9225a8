"""What a file tells a controller, for people: aligned, with units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlcore.export.schema import clip_pairs

_COLUMNS = ("default_position", "position_limits", "velocity_limit", "effort_limit", "stiffness", "damping", "armature")
_HEADS = ("at rest", "from", "to", "speed", "effort", "stiffness", "damping", "armature")


def shown(metadata: Mapping[str, Any]) -> str:
    """Lines on times, joints, observations, actions and commands; what the file does not tell is left out."""
    parts = [_head(metadata), _joints(metadata), _observations(metadata), _actions(metadata), _commands(metadata)]
    return "\n\n".join(part for part in parts if part)


def _head(metadata: Mapping[str, Any]) -> str:
    rows = [["task", str(metadata.get("task", "unknown"))]]
    made = [str(metadata[key]) for key in ("algorithm", "rlcore_version") if key in metadata]
    if made:
        rows.append(["made by", ", rlcore ".join(made)])
    if "control_dt" in metadata:
        step = f"{_text(metadata['control_dt'])} s, {1 / metadata['control_dt']:.4g} Hz"
        if "physics_dt" in metadata and "decimation" in metadata:
            step += f" = {metadata['decimation']} physics steps of {_text(metadata['physics_dt'])} s"
        rows.append(["control step", step])
    for name in ("inputs", "outputs"):
        shapes = (f"{key} {list(shape)}" for key, shape in (metadata.get(name) or {}).items())
        if metadata.get(name):
            rows.append([name, ", ".join(shapes)])
    rows += [["gate", _gate(metadata["gate"])]] if metadata.get("gate") else []
    rows += [[key, str(metadata[key])] for key in ("frame", "quaternions") if key in metadata]
    if "parity_max_abs_error" in metadata:
        rows.append(["parity", f"{metadata['parity_max_abs_error']:.2g} at most"])
    return _table(rows)


def _gate(gate: Any) -> str:
    if not isinstance(gate, Mapping):
        return f"{gate}; nothing keeps the file from risky actions"
    threshold, horizon = _text(gate["threshold"]), _text(gate["horizon"])
    if gate["acts"]:
        risk = f"a risk above {threshold} of a violation within {horizon} steps"
        return f"replaces actions of {risk} ({gate['fallback']})"
    return f"tells the risk, and replaces nothing (threshold {threshold}, {horizon} steps)"


def _joints(metadata: Mapping[str, Any]) -> str:
    joints = metadata.get("joints") or []
    if not joints:
        return ""
    rows = [["joint", *_HEADS]]
    for joint in joints:
        numbers: list[str] = []
        for fact in _COLUMNS:
            value = joint.get(fact)
            if fact == "position_limits":
                numbers += [_text(x) for x in value or (None, None)]
            else:
                numbers.append(_text(value))
        rows.append([joint["name"], *numbers])
    meters = [joint["name"] for joint in joints if joint.get("unit") == "m"]
    of = f"; {', '.join(meters)}: m, m/s, N, N/m, N s/m, kg" if meters else ""
    return f"joints (rad, rad/s, N m, N m/rad, N m s/rad, kg m²{of})\n{_table(rows, right=1)}"


def _observations(metadata: Mapping[str, Any]) -> str:
    joints = [joint["name"] for joint in metadata.get("joints") or ()]
    rows = [["obs", "term", "what", "unit", "frame", "clip", "scale", "history", "noise"]]
    for term in metadata.get("observation_terms") or ():
        what = str(term.get("quantity", "")).replace("_", " ")
        what += f" of {term['body']}" if "body" in term else ""
        what += f" '{term['command']}'" if "command" in term else ""
        what += f" - {term['relative_to']}" if "relative_to" in term else ""
        what += " within its range" if "range" in term else ""
        if "joints" in term and term["joints"] != joints:
            what += f" ({', '.join(term['joints'])})"
        history = f"{term['history_length']} steps" if term.get("history_length") else ""
        named = f"{term['group']}/{term['name']}"
        numbers = [_text(term.get(key), "") for key in ("clip", "scale")]
        place = (what, term.get("unit", ""), term.get("frame", ""))
        rows.append([_slice(term), named, *place, *numbers, history, _noise(term.get("noise"))])
    return f"observations: first the clip, then the scale, then the history\n{_table(_used(rows))}"


def _actions(metadata: Mapping[str, Any]) -> str:
    rows = [["actions", "term", "kind", "joint", "scale", "offset", "clip", "from", "to"]]
    lows, highs = (metadata.get(key) or [] for key in ("action_low", "action_high"))
    for term in metadata.get("action_terms") or ():
        joints, size = term.get("joints") or [], int(term["size"])
        kind = term.get("kind") or term.get("class", "")
        if "body" in term:
            kind += f" of {term['body']}"
        for k in range(size):
            i = term["slice"][0] + k
            joint = joints[k] if len(joints) == size else ", ".join(joints) if k == 0 else ""
            numbers = [_one(term.get(key), k) for key in ("scale", "offset")]
            numbers.append(_one(None if term.get("clip") is None else clip_pairs(term["clip"]), k))
            bounds = [_text(bound[i] if i < len(bound) else None, "") for bound in (lows, highs)]
            rows.append([str(i), term["name"] if k == 0 else "", kind if k == 0 else "", joint, *numbers, *bounds])
    how = "action within from..to, × scale + offset, then the clip"
    return f"actions: {how}\n{_table(_used(rows))}" if len(rows) > 1 else ""


def _commands(metadata: Mapping[str, Any]) -> str:
    rows = []
    for command in metadata.get("commands") or ():
        units = dict(zip(command.get("components", ()), command.get("units", ()), strict=False))
        ranges = command.get("ranges", {})
        for name in dict.fromkeys([*units, *ranges]):
            low, high = ranges.get(name, (None, None))
            span = f"{_text(low)} to {_text(high)}" if name in ranges else ""
            rows.append([command["name"], name, units.get(name, ""), span, command.get("frame", "")])
        if not units and not ranges:
            rows.append([command["name"], f"{command.get('size', '?')} numbers", "", "", ""])
    return f"commands\n{_table(_used([['command', 'of', 'unit', 'range', 'frame'], *rows]))}" if rows else ""


def _used(rows: list[list[str]]) -> list[list[str]]:
    """Without columns that are empty below their heads."""
    kept = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    return [[row[i] for i in kept] for row in rows]


def _table(rows: Sequence[Sequence[str]], right: int | None = None) -> str:
    """Aligned columns; from the given one on to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        pads = enumerate(zip(row, widths, strict=True))
        cells = [text.rjust(w) if right is not None and i >= right else text.ljust(w) for i, (text, w) in pads]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def _slice(term: Mapping[str, Any]) -> str:
    first, end = term["slice"]
    return f"{first}:{end}"


def _noise(noise: Mapping[str, Any] | None) -> str:
    if not noise:
        return ""
    numbers = [f"{key} {_text(value)}" for key, value in noise.items() if isinstance(value, (int, float, list))]
    return " ".join([str(noise.get("kind", "")), *numbers])


def _one(value: Any, k: int) -> str:
    """Of what is one for all or one each, the one of number k."""
    return _text(value[k if len(value) > 1 else 0] if isinstance(value, list) else value, "")


def _text(value: Any, nothing: str = "-") -> str:
    if value is None:
        return nothing
    if isinstance(value, list):
        short = [_text(x) for x in value]
        return (
            short[0]
            if len(set(short)) == 1 and len(short) > 2
            else f"{short[0]}..{short[1]}"
            if len(short) == 2
            else " ".join(short)
        )
    return f"{value:.4g}" if isinstance(value, float) else str(value)
