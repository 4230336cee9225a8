"""A policy file as C++ source: ``policy.hpp`` with the weights as constants, and what it needs beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlcore.export.cpp_graph import Program, Value, translate
from rlcore.export.cpp_layout import number
from rlcore.export.golden import decoded
from rlcore.export.metadata import ExportError, load_model, read_metadata

SOURCE = Path(__file__).parent / "cpp"
HEADERS = ("rlcore_joints.hpp", "rlcore_policy.hpp", "rlcore_runner.hpp", "rlcore_watch.hpp")
EXAMPLES = ("self_test.cpp", "robot.cpp", "Makefile", "CMakeLists.txt")


@dataclass(frozen=True)
class CppReport:
    """What was written."""

    folder: Path
    written: tuple[str, ...]
    """Names of files."""
    kept: tuple[str, ...]
    """Examples that were there already, and were left as they are."""
    parameters: int
    memory: int
    """Bytes that a ``Policy`` holds beside the constants."""


def write_cpp(onnx: str | os.PathLike[str], folder: str | os.PathLike[str]) -> CppReport:
    """Write a policy file as C++17 source that needs nothing but a compiler.

    ``policy.hpp`` has weights, normalizer, sizes and metadata as constants, and the struct ``policy::Policy``;
    ``policy_trace.hpp`` the steps that ``self_test`` replays. Beside them go the headers of ``export/cpp`` and, where
    there are none of these names yet, its examples.

    Args:
        onnx: a file that ``export_onnx`` has written, or another with the same inputs and outputs; of one that takes
            any batch the program takes one observation at a time.
        folder: where to, made where missing.

    Raises:
        ExportError: it reads images, or has an operator that the headers lack.
        ValueError: there is no such file, or it is no policy.
    """
    model, metadata, folder = load_model(onnx), read_metadata(onnx), Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"'{folder}' is a file; name a folder for the C++ source")
    inputs = {i.name: [d.dim_value or 1 for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    inputs = {name: shape for name, shape in inputs.items() if name not in {w.name for w in model.graph.initializer}}
    images = [name for name, shape in inputs.items() if len(shape) == 4]
    if images:
        raise ExportError(
            f"the policy reads images ({', '.join(images)}), which the C++ source cannot; run its ONNX file"
        )
    kinds = {i.name: i.type.tensor_type.elem_type for i in model.graph.input}
    if others := [name for name in inputs if kinds[name] != 1]:
        raise ExportError(f"the policy reads {', '.join(others)}, which is not float32; run the ONNX file itself")
    masks = [name for name in inputs if name not in ("obs", "h_in", "c_in")]
    outputs = {output.name for output in model.graph.output}
    if "obs" not in inputs or "actions" not in outputs or len(masks) > 1:
        raise ValueError(
            f"'{os.fspath(onnx)}' has inputs {list(inputs)} and outputs {sorted(outputs)}; it is no policy"
        )
    states = [name for name in ("h", "c") if f"{name}_in" in inputs]
    names = {"obs": "obs", **dict.fromkeys(masks, "mask"), **{f"{name}_in": name for name in states}}
    try:
        program = translate(model, names)
    except ExportError as error:
        if metadata.get("tasks"):
            raise ExportError(f"{error}; of several tasks a file for one can be written: --for-task NAME") from error
        raise
    folder.mkdir(parents=True, exist_ok=True)
    written = {"policy.hpp": _policy(program, metadata, inputs, masks), **{h: _source(h) for h in HEADERS}}
    trace = decoded(metadata.get("golden_trace"))
    if trace is not None:
        written["policy_trace.hpp"] = _trace(trace)
    kept = [name for name in EXAMPLES if (folder / name).exists()]
    written |= {name: _source(f"examples/{name}") for name in EXAMPLES if name not in kept}
    for name, text in written.items():
        (folder / name).write_text(text)
    size = 4 * (program.memory + sum(int(np.prod(inputs[f"{name}_in"])) for name in states))
    return CppReport(folder, tuple(written), tuple(kept), program.parameters, size)


def _source(name: str) -> str:
    return (SOURCE / name).read_text()


def _policy(
    program: Program, metadata: Mapping[str, Any], inputs: Mapping[str, Sequence[int]], masks: Sequence[str]
) -> str:
    """The text of ``policy.hpp``."""
    action, discrete = program.outputs["actions"], metadata.get("action_kind") == "discrete"
    states = [name for name in ("h", "c") if f"{name}_in" in inputs]
    sizes = {name: int(np.prod(inputs[f"{name}_in"])) for name in states}
    gate = metadata.get("gate")
    acts = isinstance(gate, dict) and gate.get("acts") is True and "risk" in program.outputs
    threshold = number(gate["threshold"]) if isinstance(gate, dict) and acts else "rlcore::inf"
    kind = "std::int64_t" if discrete else "float"
    arguments = "const float* obs" + (", const float* mask" if masks else "")
    risk, guess = program.outputs.get("risk"), program.outputs.get("task_probability")
    tasks = 0 if guess is None else guess.size
    description = _Description(metadata, inputs["obs"][-1], action.size)
    terms = description.text()
    lines = [
        f"// {metadata.get('task', 'A policy')}, written by rlcore {metadata.get('rlcore_version', '')}; do not edit.",
        "#ifndef RLCORE_EXPORTED_POLICY_HPP",
        "#define RLCORE_EXPORTED_POLICY_HPP",
        "",
        '#include "rlcore_policy.hpp"',
        "",
        "namespace policy {",
        "",
        "namespace constants {",
        "constexpr float inf = rlcore::inf;",
        *(_array(name, array) for name, array in program.constants),
        *description.arrays,
        "}  // namespace constants",
        "",
        "struct Policy {",
        f"  using Action = {kind};",
        f"  static constexpr int observation_size = {inputs['obs'][-1]};",
        f"  static constexpr int mask_size = {inputs[masks[0]][-1] if masks else 0};  // choices that may be forbidden",
        f"  static constexpr int action_size = {action.size};",
        f"  static constexpr int state_size = {sum(sizes.values())};",
        f"  static constexpr bool discrete = {str(discrete).lower()};",
        f"  static constexpr bool gated = {str(risk is not None).lower()};",
        f"  static constexpr float threshold = {threshold};",
        f"  static constexpr int num_tasks = {tasks};  // which it tells apart",
        "",
        terms,
        "",
        "  Policy() noexcept { reset(); }",
        "",
        "  // An episode begins: what was remembered is forgotten.",
        "  void reset() noexcept {",
        *(f"    for (float& x : {name}) x = 0.0f;" for name in states),
        "  }",
        "",
        "  // From observation_size numbers (and mask_size, 0 for what must not be chosen) to action_size; these stay",
        "  // until the next call.",
        f"  const Action* act({arguments}) noexcept {{",
        "    using namespace rlcore;",
        "    using namespace constants;",
        *(f"    {statement}" for statement in program.statements),
        *([] if risk is None else [f"    risk = *({risk.text});"]),
        *([] if guess is None else [f"    copy<1, {tasks}, 0, 0>(task_probability, {guess.text});"]),
        *(_state(name, program.outputs[f"{name}_out"], sizes[name]) for name in states),
        *_result(action, discrete),
        "    return actions;",
        "  }",
        "",
        "  // Of the latest action that was proposed, 0 to 1; 0 without a gate.",
        "  float risk = 0.0f;",
        "  bool acted() const noexcept { return risk > threshold; }",
        "",
        *(
            []
            if guess is None
            else ["  // Of each task, as the latest step has it.", f"  float task_probability[{tasks}] = {{}};"]
        ),
        "  Action actions[action_size] = {};",
        *(f"  float {name}[{size}];" for name, size in sizes.items()),
        "",
        " private:",
        f"  alignas(64) float m[{max(program.memory, 1)}] = {{}};",
        "};",
        "",
        "}  // namespace policy",
        "",
        "#endif",
    ]
    return "\n".join(lines) + "\n"


def _state(name: str, value: Value, size: int) -> str:
    return f"    copy<1, {size}, 0, 0>({name}, {value.text});"


def _result(action: Value, discrete: bool) -> list[str]:
    if not discrete:
        return [f"    copy<1, {action.size}, 0, 0>(actions, {action.text});"]
    call = f"static_cast<std::int64_t>(({action.text})[i])"
    return [f"    for (int i = 0; i < action_size; ++i) actions[i] = {call};"]


def _array(name: str, array: NDArray[Any]) -> str:
    """A constant, ten numbers a line."""
    if array.dtype == np.int32:
        kind, texts = "int", [str(x) for x in array.tolist()]
    else:
        kind, texts = "float", [number(x) for x in array.tolist()]
    rows = ",\n".join(", ".join(texts[i : i + 10]) for i in range(0, len(texts), 10))
    return f"alignas(64) inline constexpr {kind} {name}[{len(texts)}] = {{\n{rows}}};"


def quoted(text: str) -> str:
    """A string of C++, in ASCII: other letters are written as their bytes in UTF-8."""
    raw = "".join(
        c if 32 <= ord(c) < 127 and c not in '"\\?' else "".join(f"\\{b:03o}" for b in c.encode()) for c in text
    )
    return f'"{raw}"'


class _Description:
    """Terms of observation and action as constants."""

    def __init__(self, metadata: Mapping[str, Any], observations: int, actions: int) -> None:
        self.metadata, self.observations, self.actions = metadata, observations, actions
        self.arrays: list[str] = []

    def text(self) -> str:
        """The metadata as C++; what the file does not say is 0, empty or null."""
        metadata = self.metadata
        whole = [{"group": "obs", "name": "obs", "size": self.observations, "slice": [0, self.observations]}]
        terms = metadata.get("observation_terms") or whole
        known = {"task", "algorithm", "rlcore_version", "config_hash"}
        facts = {name: str(metadata.get(name, "")) for name in sorted(known)}
        driven = [joint for term in metadata.get("action_terms") or () for joint in term.get("joints") or ()]
        joints = driven or metadata.get("joint_names") or []  # the latter alone in files of before
        mask = (metadata.get("action_mask") or {}).get("name", "")
        pose = metadata.get("safe_action") or []
        lines = [
            *(f"  static constexpr char {name}[] = {quoted(text)};" for name, text in facts.items()),
            f"  static constexpr double control_dt = {float(metadata.get('control_dt') or 0.0)!r};  // s; 0: not known",
            f"  static constexpr char mask_name[] = {quoted(mask)};",
            _list("rlcore::ObservationTerm", "observation_terms", [self._observation(term) for term in terms]),
        ]
        actions = metadata.get("action_terms") or []
        if metadata.get("action_kind") == "discrete":
            actions = []
        names = [quoted(name) for name in joints] if len(joints) == self.actions else []
        lines += [
            _list("rlcore::ActionTerm", "action_terms", [self._action(term) for term in actions]),
            "  // Joints in the order of the action; none where the file does not tell, or they are not one each.",
            _list("const char*", "joint_names", names),
            "  // Poses, drives and limits of all of the robot's joints, in the simulator's order.",
            _list("rlcore::Joint", "joints", [_joint(row) for row in metadata.get("joints") or ()]),
            "  // Action by which the robot holds still, as the env tells.",
            _list("float", "safe_action", [number(x) for x in pose] if len(pose) == self.actions else []),
        ]
        for key in ("observation_mean", "observation_std"):
            values = metadata.get(key) or []
            if len(values) != self.observations or None in values:
                values = []
            lines.append(_list("float", key, [number(x) for x in values]))
        return "\n".join(lines)

    def _observation(self, term: Mapping[str, Any]) -> str:
        first, end = term["slice"]
        history = int(term.get("history_length") or 1)
        if (end - first) % history:
            raise ExportError(
                f"observation term '{term['name']}' has {end - first} numbers, which are no {history} steps of "
                "history; fix observation_terms of the env"
            )
        width = (end - first) // history
        low, high = self._limits(term, width)
        names = [quoted(name) for name in term.get("joints") or []]
        if len(names) == width:
            listed = ", ".join(names)
            self.arrays.append(f"inline constexpr const char* joints{len(self.arrays)}[] = {{{listed}}};")
            joints = f"constants::joints{len(self.arrays) - 1}"
        else:
            joints = "nullptr"
        group = quoted(str(term.get("group", "")))
        parts = (first, end - first, history, self._each(term, "scale", width), low, high, joints)
        return f"{{{group}, {quoted(term['name'])}, {', '.join(map(str, parts))}}}"

    def _action(self, term: Mapping[str, Any]) -> str:
        first, end = term["slice"]
        scale, offset = (self._each(term, key, end - first) for key in ("scale", "offset"))
        low, high = self._limits(term, end - first)
        parts = (first, end - first, scale, offset, low, high)
        return f"{{{quoted(term['name'])}, {quoted(str(term.get('kind', '')))}, {', '.join(map(str, parts))}}}"

    def _each(self, term: Mapping[str, Any], key: str, size: int) -> str:
        value = term.get(key)
        return "nullptr" if value is None else self._numbers(term, key, value, size)

    def _limits(self, term: Mapping[str, Any], size: int) -> tuple[str, str]:
        """Lower and upper limits of a clip, ``[2]`` for all or ``[size, 2]``."""
        clip = term.get("clip")
        if clip is None:
            return "nullptr", "nullptr"
        try:
            pairs = [(-np.inf if a is None else a, np.inf if b is None else b) for a, b in np.reshape(clip, (-1, 2))]
        except ValueError:
            raise ExportError(
                f"term '{term['name']}' has the clip {clip}; give a low and a high number, or {size} such"
            ) from None
        return tuple(self._numbers(term, "clip", [pair[i] for pair in pairs], size) for i in range(2))  # type: ignore[return-value]

    def _numbers(self, term: Mapping[str, Any], key: str, value: Any, size: int) -> str:
        values = np.asarray(value, np.float64).reshape(-1)
        if len(values) not in (1, size):
            raise ExportError(f"term '{term['name']}' has {len(values)} numbers in {key}; give 1 or {size}")
        name = f"t{len(self.arrays)}"
        self.arrays.append(_array(name, np.broadcast_to(values, size).astype(np.float32)))
        return f"constants::{name}"


def _joint(row: Mapping[str, Any]) -> str:
    low, high = row.get("position_limits") or (None, None)
    facts = [row.get(fact) for fact in ("default_position", "stiffness", "damping")]
    limits = [row.get(fact) for fact in ("velocity_limit", "effort_limit")]
    numbers = [number(0.0 if x is None else x) for x in facts]
    numbers += [number(-np.inf if low is None else low), number(np.inf if high is None else high)]
    numbers += [number(np.inf if x is None else x) for x in limits]
    numbers = [text.replace("inf", "constants::inf") for text in numbers]
    return f"{{{quoted(row['name'])}, {', '.join(numbers)}, {quoted(str(row.get('unit', '')))}}}"


def _list(kind: str, name: str, items: Sequence[str]) -> str:
    """A member array and its length; an empty one, which C++ has none of, holds one item that stands for nothing."""
    nothing = {"float": "0.0f", "const char*": "nullptr"}.get(kind, "{}")
    rows = ",\n      ".join(items) or nothing
    length = f"  static constexpr int num_{name} = {len(items)};"
    return f"{length}\n  static constexpr {kind} {name}[] = {{\n      {rows}}};"


def _trace(trace: Mapping[str, NDArray[Any]]) -> str:
    """The text of ``policy_trace.hpp``."""
    steps = len(trace["actions"])
    lines = [
        "// Steps that the exporter has recorded from the file, for self_test.cpp.",
        "#ifndef RLCORE_POLICY_TRACE_HPP",
        "#define RLCORE_POLICY_TRACE_HPP",
        "",
        "#include <limits>",
        "",
        "namespace policy_trace {",
        "",
        f"constexpr int num_steps = {steps};",
        "// Steps before which the state is cleared.",
        f"constexpr int resets[] = {{{', '.join(map(str, trace['resets'].tolist()))}}};",
        *(_array(key, trace[key].astype(np.float32).reshape(-1)) for key in ("obs", "actions")),
        *(_array(key, trace[key].astype(np.float32).reshape(-1)) for key in ("mask", "risk") if key in trace),
        f"#define RLCORE_TRACE_MASK {int('mask' in trace)}",
        f"#define RLCORE_TRACE_RISK {int('risk' in trace)}",
        "",
        "}  // namespace policy_trace",
        "",
        "#endif",
    ]
    return "\n".join(lines) + "\n"
