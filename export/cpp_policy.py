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
from rlcore.export.metadata import ExportError, broken_in, heading, load_model, read_metadata
from rlcore.export.schema import SchemaError, check_facts, check_version, clip_pairs
from rlcore.files import whole_file

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
        ExportError: it reads images, has an operator that the headers lack, keeps weights elsewhere or has broken ones,
            or its metadata are of another version or contradict themselves.
        ValueError: there is no such file, or it is no policy.
    """
    model, metadata, folder = load_model(onnx), read_metadata(onnx), Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"'{folder}' is a file; name a folder for the C++ source")
    _check(model, metadata, os.fspath(onnx))
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
    discrete = any(output.name == "actions" and output.type.tensor_type.elem_type != 1 for output in model.graph.output)
    written = {"policy.hpp": _policy(program, metadata, inputs, masks, discrete), **{h: _source(h) for h in HEADERS}}
    trace = decoded(metadata.get("golden_trace"))
    if trace is not None:
        _check_trace(trace, {"obs": inputs["obs"][-1], "actions": program.outputs["actions"].size})
        written["policy_trace.hpp"] = _trace(trace)
    folder.mkdir(parents=True, exist_ok=True)
    kept = [name for name in EXAMPLES if (folder / name).exists()]
    written |= {name: _source(f"examples/{name}") for name in EXAMPLES if name not in kept}
    if trace is None:
        (folder / "policy_trace.hpp").unlink(missing_ok=True)  # that of another file
    for name, text in written.items():
        with whole_file(folder / name) as file:
            file.write(text)
    size = 4 * (program.memory + sum(int(np.prod(inputs[f"{name}_in"])) for name in states))
    return CppReport(folder, tuple(written), tuple(kept), program.parameters, size)


def _check(model: Any, metadata: Mapping[str, Any], file: str) -> None:
    """Refuse what could only become a wrong program, or one that no compiler takes."""
    if elsewhere := [w.name for w in model.graph.initializer if w.data_location == w.EXTERNAL]:
        raise ExportError(
            f"'{file}' keeps weights in another file ({', '.join(elsewhere[:3])}); write it with all of them inside"
        )
    if broken := broken_in(model):
        raise ExportError(f"'{file}' has weights that are not a number (NaN) in {', '.join(broken[:3])}; export anew")
    try:
        if "schema_version" in metadata:  # others have written it that have none
            check_version(metadata)
        check_facts(metadata)
    except SchemaError as error:
        raise ExportError(f"'{file}': {error}") from error


def _check_trace(trace: Mapping[str, NDArray[Any]], sizes: Mapping[str, int]) -> None:
    for name, size in sizes.items():
        if len(trace["resets"]) == 0 or name not in trace or trace[name].shape[-1] != size:
            shape = list(trace[name].shape) if name in trace else "missing"
            raise ExportError(f"golden_trace: '{name}' is {shape}, and of {size} numbers a step; export anew")


def _source(name: str) -> str:
    return (SOURCE / name).read_text(encoding="utf-8")


def _policy(
    program: Program,
    metadata: Mapping[str, Any],
    inputs: Mapping[str, Sequence[int]],
    masks: Sequence[str],
    discrete: bool,
) -> str:
    """The text of ``policy.hpp``."""
    action = program.outputs["actions"]
    states = [name for name in ("h", "c") if f"{name}_in" in inputs]
    sizes = {name: int(np.prod(inputs[f"{name}_in"])) for name in states}
    gate = metadata.get("gate")
    told = gate.get("threshold") if isinstance(gate, dict) and gate.get("acts") is True else None
    threshold = number(told) if isinstance(told, float) and "risk" in program.outputs else "rlcore::inf"
    kind = "std::int64_t" if discrete else "float"
    arguments = "const float* obs" + (", const float* mask" if masks else "")
    risk, guess = program.outputs.get("risk"), program.outputs.get("task_probability")
    tasks = 0 if guess is None else guess.size
    description = _Description(metadata, inputs["obs"][-1], action.size, discrete)
    terms = description.text()
    lines = [
        f"// {heading(metadata)}; do not edit.",
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

    def __init__(self, metadata: Mapping[str, Any], observations: int, actions: int, discrete: bool) -> None:
        self.metadata, self.observations, self.actions, self.discrete = metadata, observations, actions, discrete
        self.arrays: list[str] = []

    def text(self) -> str:
        """The metadata as C++; what the file does not say is 0, empty or null."""
        metadata = self.metadata
        terms = metadata.get("observation_terms") or [{"group": "obs", "name": "obs", "size": self.observations}]
        known = {"task", "algorithm", "rlcore_version", "config_hash"}
        facts = {name: str(metadata.get(name, "")) for name in sorted(known)}
        driven = [joint for term in metadata.get("action_terms") or () for joint in term.get("joints") or ()]
        joints = driven or metadata.get("joint_names") or []  # the latter alone in files of before
        mask = metadata.get("action_mask")
        mask = str(mask.get("name", "")) if isinstance(mask, dict) else ""
        lines = [
            *(f"  static constexpr char {name}[] = {quoted(text)};" for name, text in facts.items()),
            f"  static constexpr double control_dt = {float(metadata.get('control_dt') or 0.0)!r};  // s; 0: not known",
            f"  static constexpr char mask_name[] = {quoted(mask)};",
            _list("rlcore::ObservationTerm", *self._rows("observation_terms", terms, self.observations)),
        ]
        actions = [] if self.discrete else metadata.get("action_terms") or []
        names = [quoted(name) for name in joints] if len(joints) == self.actions else []
        lines += [
            _list("rlcore::ActionTerm", *self._rows("action_terms", actions, self.actions)),
            "  // Joints in the order of the action; none where the file does not tell, or they are not one each.",
            _list("const char*", "joint_names", names),
            "  // Poses, drives and limits of all of the robot's joints, in the simulator's order.",
            _list("rlcore::Joint", "joints", [_joint(row) for row in metadata.get("joints") or ()]),
            "  // Action by which the robot holds still, as the env tells.",
            _list("float", "safe_action", _numbers_of(metadata.get("safe_action"), self.actions)),
            *(
                _list("float", key, _numbers_of(metadata.get(key), self.observations))
                for key in ("observation_mean", "observation_std")
            ),
        ]
        (epsilon,) = _numbers_of([metadata.get("observation_epsilon")], 1) or ["0.01f"]  # as before it was told
        lines.append(f"  static constexpr float observation_epsilon = {epsilon};  // the normalizer adds it to these")
        return "\n".join(lines)

    def _rows(self, table: str, terms: Sequence[Mapping[str, Any]], size: int) -> tuple[str, list[str]]:
        """A table's name, and its terms one after the other, which are to fill so many numbers."""
        write = self._observation if table == "observation_terms" else self._action
        starts = np.cumsum([0, *(term["size"] for term in terms)]).tolist()
        if terms and starts[-1] != size:
            raise ExportError(f"{table} of the file add up to {starts[-1]}, and there are {size}; export anew")
        return table, [write(term, first) for term, first in zip(terms, starts, strict=False)]

    def _observation(self, term: Mapping[str, Any], first: int) -> str:
        size, history = term["size"], int(term.get("history_length") or 1)
        width = size // history
        low, high = self._limits(term, width)
        names = [quoted(name) for name in term.get("joints") or []]
        if len(names) == width:
            listed = ", ".join(names)
            self.arrays.append(f"inline constexpr const char* joints{len(self.arrays)}[] = {{{listed}}};")
            joints = f"constants::joints{len(self.arrays) - 1}"
        else:
            joints = "nullptr"
        group = quoted(str(term.get("group", "")))
        parts = (first, size, history, self._each(term, "scale", width), low, high, joints)
        return f"{{{group}, {quoted(term['name'])}, {', '.join(map(str, parts))}}}"

    def _action(self, term: Mapping[str, Any], first: int) -> str:
        size = term["size"]
        scale, offset = (self._each(term, key, size) for key in ("scale", "offset"))
        low, high = self._limits(term, size)
        parts = (first, size, scale, offset, low, high)
        return f"{{{quoted(term['name'])}, {quoted(str(term.get('kind', '')))}, {', '.join(map(str, parts))}}}"

    def _each(self, term: Mapping[str, Any], key: str, size: int) -> str:
        value = term.get(key)
        return "nullptr" if value is None else self._numbers(value, size)

    def _limits(self, term: Mapping[str, Any], size: int) -> tuple[str, str]:
        """Lower and upper limits of a clip, ``[2]`` for all or ``[size, 2]``."""
        if term.get("clip") is None:
            return "nullptr", "nullptr"
        pairs = clip_pairs(term["clip"])
        low = [-np.inf if pair[0] is None else pair[0] for pair in pairs]
        high = [np.inf if pair[1] is None else pair[1] for pair in pairs]
        return self._numbers(low, size), self._numbers(high, size)

    def _numbers(self, value: Any, size: int) -> str:
        """An array of one number or as many as ``size``, which ``check_facts`` has seen to."""
        values = np.asarray(value, np.float64).reshape(-1)
        self.arrays.append(_array(f"t{len(self.arrays)}", np.broadcast_to(values, size).astype(np.float32)))
        return f"constants::t{len(self.arrays) - 1}"


def _numbers_of(values: Any, size: int) -> list[str]:
    """So many finite numbers as C++ has them; none where the metadata have something else."""
    fits = isinstance(values, list) and len(values) == size
    known = fits and all(isinstance(x, (int, float)) and abs(x) < float(np.finfo(np.float32).max) for x in values)
    return [number(x) for x in values] if known else []


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
