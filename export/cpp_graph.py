"""The graph of an ONNX file as C++ statements over arrays of fixed size, for one observation at a time.

The file is run once with every value in it as an output. That tells all shapes, and whatever does not depend on an
input is a constant. What only moves numbers is followed by numbers of places: where they stay in a row nothing is
written for it. All values are float32 in C++, indices and truth values, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlcore.export.cpp_layout import MOVES, number, panels
from rlcore.export.metadata import ExportError
from rlcore.export.tidy import trial

ALIGNMENT = 16  # numbers

UNARY = {
    *("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "IsNaN", "Log", "Neg", "Not", "Reciprocal", "Relu", "Sigmoid"),
    *("Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Tanh"),
}
BINARY = ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "PRelu", "Greater", "Less", "Equal", "And", "Or")
PARAMETERS: dict[str, tuple[tuple[str, float], ...]] = {
    "Elu": (("alpha", 1.0),),
    "LeakyRelu": (("alpha", 0.01),),
    "Selu": (("alpha", 1.6732632), ("gamma", 1.050701)),
    "HardSigmoid": (("alpha", 0.2), ("beta", 0.5)),
}
REDUCTIONS = {"ReduceMean": "Add", "ReduceSum": "Add", "ReduceMax": "Max", "ReduceMin": "Min", "ReduceProd": "Mul"}


class Value(NamedTuple):
    """A tensor of the graph in C++."""

    shape: tuple[int, ...]
    base: str
    """Name of the array that it is in; empty for a constant that no statement has used yet."""
    offset: int = 0
    constant: NDArray[Any] | None = None

    @property
    def size(self) -> int:
        """Number of its numbers."""
        return int(np.prod(self.shape))

    @property
    def text(self) -> str:
        """Where it begins, as a C++ expression."""
        return f"{self.base} + {self.offset}" if self.offset else self.base


@dataclass
class Program:
    """What has been written."""

    statements: list[str] = field(default_factory=list)
    constants: list[tuple[str, NDArray[Any]]] = field(default_factory=list)
    """Arrays by name, float32 or int32."""
    memory: int = 0
    """Numbers that the statements write to, in the array ``m``."""
    outputs: dict[str, Value] = field(default_factory=dict)
    parameters: int = 0
    """Numbers in the weights of linear layers."""


def translate(model: Any, inputs: Mapping[str, str]) -> Program:
    """Write a model as statements that call what is in ``rlcore_policy.hpp``.

    Args:
        model: as ``onnx`` has loaded it; a batch without a fixed size is taken as 1.
        inputs: name of the C++ array with each of its inputs.

    Raises:
        ExportError: it has an operator that is not in ``rlcore_policy.hpp``; the message names it.
    """
    return _Translation(model, inputs).run()


class _Translation:
    """At work on one model."""

    def __init__(self, model: Any, inputs: Mapping[str, str]) -> None:
        import onnx

        self.graph, self.found = model.graph, trial(model)
        self.program = Program()
        self.stored: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self.values = {name: Value(self.found[name].shape, place) for name, place in inputs.items()}
        for weight in self.graph.initializer:
            self._constant(weight.name, onnx.numpy_helper.to_array(weight))
        self.readers: dict[str, list[Any]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def run(self) -> Program:
        import onnx

        for node in self.graph.node:
            if any(name in self.values for name in node.output):
                continue  # part of one before
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            read = [self.values[name] for name in node.input if name]
            if node.op_type == "Shape" or all(value.constant is not None for value in read):
                for name in node.output:
                    self._constant(name, self.found[name])
            else:
                self._node(node, attributes)
        self.program.outputs = {o.name: self._placed(self.values[o.name]) for o in self.graph.output}
        return self.program

    def _node(self, node: Any, attributes: dict[str, Any]) -> None:
        kind, shape = node.op_type, self.found[node.output[0]].shape
        inputs = [self.values[name] if name else None for name in node.input]
        x = inputs[0]
        assert x is not None
        if kind in MOVES:
            self._move(node, attributes)
        elif kind == "Cast":
            before, after = (self.found[name].dtype for name in (node.input[0], node.output[0]))
            if after.kind == "b" and before.kind != "b":
                self._map(node, x, "True{}")
            elif after.kind in "iu" and before.kind == "f":
                self._map(node, x, "Truncate{}")
            else:
                self.values[node.output[0]] = x
        elif kind in UNARY:
            self._map(node, x, f"{kind}{{}}")
        elif kind in PARAMETERS:
            given = ", ".join(number(attributes.get(name, default)) for name, default in PARAMETERS[kind])
            self._map(node, x, f"{kind}{{{given}}}")
        elif kind == "Clip":
            low, high = (-np.inf, np.inf)
            for i, value in enumerate(inputs[1:3]):
                limit = _scalar(value)
                if limit is None and value is not None:
                    raise _unknown(node, "with a limit that is computed")
                low, high = (low if i or limit is None else limit, limit if i and limit is not None else high)
            self._map(node, x, f"Clip{{{number(low)}, {number(high)}}}")
        elif kind == "IsInf":
            signs = [bool(attributes.get(f"detect_{name}", 1)) for name in ("positive", "negative")]
            self._map(node, x, f"IsInf{{{', '.join(str(sign).lower() for sign in signs)}}}")
        elif kind == "Pow" and _scalar(inputs[1]) == 2:
            self._map(node, x, "Square{}")
        elif kind in BINARY:
            total = x
            for other in inputs[1:] or [None]:
                assert other is not None
                place = self._new(self.found[node.output[0]].shape)
                (a, step_a), (b, step_b) = (self._spread(value, place.shape) for value in (total, other))
                self._say(f"zip<{place.size}, {step_a}, {step_b}>({place.text}, {a.text}, {b.text}, {kind}{{}});")
                total = place
            self.values[node.output[0]] = total
            if kind == "Div" and self.found[node.output[0]].dtype.kind in "iu":  # of whole numbers, towards 0
                self._map(node, total, "Truncate{}")
        elif kind == "Where":
            place = self._new(shape)
            spread = [self._spread(value, shape) for value in inputs if value is not None]
            steps, texts = ", ".join(str(s) for _, s in spread), ", ".join(value.text for value, _ in spread)
            self._say(f"where<{place.size}, {steps}>({place.text}, {texts});")
            self.values[node.output[0]] = place
        elif kind in ("Gemm", "MatMul"):
            self._linear(node, attributes, inputs)
        elif kind in REDUCTIONS:
            axes = attributes.get("axes", list(range(len(x.shape))))
            outer, count, inner = _parts(node, x.shape, axes)
            x, place = self._placed(x), self._new(shape)
            function = f"{REDUCTIONS[kind]}{{}}" + (f", {number(1 / count)}" if kind == "ReduceMean" else "")
            self._say(f"reduce<{outer}, {count}, {inner}>({place.text}, {x.text}, {function});")
            self.values[node.output[0]] = place
        elif kind in ("ArgMax", "ArgMin"):
            sizes = ", ".join(map(str, _parts(node, x.shape, [attributes.get("axis", 0)])))
            place, largest = self._new(shape), str(kind == "ArgMax").lower()
            self._say(f"arg<{sizes}, {largest}>({place.text}, {x.text});")
            self.values[node.output[0]] = place
        elif kind == "TopK":
            axis = attributes.get("axis", -1)
            sizes, most, places = ", ".join(map(str, _parts(node, x.shape, [axis]))), self._new(shape), self._new(shape)
            call = f"top<{sizes}, {shape[axis]}, {str(bool(attributes.get('largest', 1))).lower()}>"
            self._say(f"{call}({most.text}, {places.text}, {x.text});")
            self.values |= dict(zip(node.output, (most, places), strict=True))
        elif kind == "GatherElements":
            axis, index = attributes.get("axis", 0), inputs[1]
            assert index is not None
            outer, count, inner = _parts(node, x.shape, [axis])
            taken = _parts(node, index.shape, [axis])
            if (outer, inner) != (taken[0], taken[2]):
                raise _unknown(node, f"of {list(x.shape)} by {list(index.shape)}")
            x, index, place = self._placed(x), self._placed(index), self._new(shape)
            self._say(f"gather_along<{outer}, {count}, {inner}, {taken[1]}>({place.text}, {x.text}, {index.text});")
            self.values[node.output[0]] = place
        elif kind in ("Softmax", "LogSoftmax"):  # opset 11 takes all dimensions from the axis on as one
            axis = attributes.get("axis", 1) % max(len(x.shape), 1)
            rows, place = int(np.prod(x.shape[:axis])), self._new(shape)
            logarithm = str(kind == "LogSoftmax").lower()
            self._say(f"softmax<{rows}, {x.size // rows}, {logarithm}>({place.text}, {x.text});")
            self.values[node.output[0]] = place
        elif kind in ("LSTM", "GRU"):
            self._cell(node, attributes, inputs)
        else:
            raise _unknown(node)

    def _map(self, node: Any, x: Value, function: str) -> None:
        place = self._new(x.shape)
        self._say(f"map<{place.size}>({place.text}, {x.text}, {function});")
        self.values[node.output[0]] = place

    def _linear(self, node: Any, attributes: dict[str, Any], inputs: Sequence[Value | None]) -> None:
        x, w = inputs[0], inputs[1]
        assert x is not None and w is not None
        if w.constant is None or w.constant.ndim != 2 or len(x.shape) < 1 or attributes.get("transA"):
            raise _unknown(node, "of two values that are both computed")
        weight = w.constant.T if not attributes.get("transB") else w.constant  # [Out, In]
        weight = weight * np.float32(attributes.get("alpha", 1.0))
        bias, name = np.zeros(len(weight), np.float32), node.output[0]
        if len(inputs) > 2 and inputs[2] is not None:
            given = inputs[2].constant
            if given is None or given.size not in (1, len(weight)):
                raise _unknown(node, "with a bias that is computed")
            bias = bias + given.reshape(-1) * np.float32(attributes.get("beta", 1.0))
        readers = self.readers.get(name, [])
        if len(readers) == 1 and readers[0].op_type == "Add" and name not in {o.name for o in self.graph.output}:
            others = [self.values.get(other) for other in readers[0].input if other != name]
            added = others[0].constant if len(others) == 1 and others[0] is not None else None
            if added is not None and added.shape == bias.shape:
                bias, name = bias + added, readers[0].output[0]
        self.values[name] = self._layer(x, weight, bias, self.found[name].shape)

    def _layer(self, x: Value, weight: NDArray[Any], bias: NDArray[Any], shape: tuple[int, ...]) -> Value:
        """The numbers ``[..., In]`` times a weight ``[Out, In]`` plus a bias, of the shape ``[..., Out]``."""
        x, place = self._placed(x), self._new(shape)
        outputs, inputs = weight.shape
        w, b = (self._store(array, "w") for array in panels(weight, bias))
        self.program.parameters += weight.size + bias.size
        self._say(f"linear<{place.size // outputs}, {inputs}, {outputs}>({place.text}, {x.text}, {w}, {b});")
        return place

    def _cell(self, node: Any, attributes: dict[str, Any], inputs: Sequence[Value | None]) -> None:
        """One step of the operators LSTM and GRU, as ONNX defines them, of one direction and its own activations."""
        x, w, r, b, lengths, h, c, *peepholes = [*inputs, *[None] * 8][:8]
        assert x is not None and w is not None and r is not None
        lstm, n = node.op_type == "LSTM", int(attributes["hidden_size"])
        gates = 4 if lstm else 3
        plain = set(attributes) <= {"hidden_size", "linear_before_reset", "direction", "input_forget"}
        plain &= attributes.get("direction", b"forward") == b"forward" and not attributes.get("input_forget")
        plain &= lstm or attributes.get("linear_before_reset") == 1
        plain &= x.shape[0] == 1 and not any(value is not None for value in (lengths, *peepholes))
        if not plain or w.constant is None or r.constant is None or (b is not None and b.constant is None):
            raise _unknown(node, "other than one step of one direction with its usual activations")
        zero = Value((n,), "", 0, np.zeros(n, np.float32))
        h, c = (self._placed(state or zero) for state in (h, c))
        biases = np.zeros((2, gates * n), np.float32) if b is None or b.constant is None else b.constant.reshape(2, -1)
        by_input = self._layer(x, w.constant[0], biases[0], (gates * n,))
        by_state = self._layer(h, r.constant[0], biases[1], (gates * n,))
        after = self._new((1, 1, n))
        if lstm:
            total, cell = self._new((gates * n,)), self._new((1, 1, n))
            self._say(f"zip<{gates * n}, 1, 1>({total.text}, {by_input.text}, {by_state.text}, Add{{}});")
            self._say(f"lstm<{n}>({after.text}, {cell.text}, {total.text}, {c.text});")
        else:
            cell = after
            self._say(f"gru<{n}>({after.text}, {by_input.text}, {by_state.text}, {h.text});")
        for name, value in zip(node.output, (after, after, cell), strict=False):
            if name:
                self.values[name] = value._replace(shape=self.found[name].shape)

    # Numbers that move

    def _move(self, node: Any, attributes: dict[str, Any]) -> None:
        read = [self.values[name] for name in node.input if name]
        sources = read if node.op_type == "Concat" else read[:1]
        if any(value.constant is None for value in read[len(sources) :]):
            raise _unknown(node, "by a place that is computed")
        starts = np.cumsum([0, *(value.size for value in sources)])
        places = [np.arange(v.size).reshape(v.shape) + start for v, start in zip(sources, starts, strict=False)]
        moved_from = places if node.op_type == "Concat" else places[0]
        others = [value.constant for value in read[len(sources) :]]
        shapes = [self.found[name].shape for name in node.output]
        for name, moved in zip(node.output, MOVES[node.op_type](moved_from, others, attributes, shapes), strict=True):
            self.values[name] = self._gathered(sources, moved, node)

    def _gathered(self, sources: Sequence[Value], places: NDArray[Any], node: Any = None) -> Value:
        """A value whose numbers are those at the places among the sources', which are counted on one after another."""
        flat, shape = places.reshape(-1), places.shape
        starts = np.cumsum([0, *(value.size for value in sources)])
        if len(flat) == 0:
            raise _unknown(node, "of nothing")
        owner = np.searchsorted(starts, flat, side="right") - 1
        if len(set(owner)) == 1:
            source, first = sources[owner[0]], int(flat[0] - starts[owner[0]])
            if (np.diff(flat) == 1).all() and source.constant is None:
                return Value(shape, source.base, source.offset + first)
        breaks = np.flatnonzero((np.diff(flat) != 1) | (np.diff(owner) != 0)) + 1
        begins = np.concatenate([[0], breaks])
        lengths = np.diff([*begins, len(flat)])
        target = self._new(shape)
        for which in sorted(set(owner)):
            source = self._placed(sources[which])
            mine = owner[begins] == which
            to, at, n = begins[mine], flat[begins[mine]] - starts[which], lengths[mine]
            steps = [set(np.diff(part)) for part in (to, at)]
            if len(set(n)) == 1 and all(len(step) <= 1 for step in steps):
                step_to, step_at = (int(next(iter(step), 0)) for step in steps)
                call = f"copy<{len(n)}, {n[0]}, {step_to}, {step_at}>"
                self._say(f"{call}({_moved(target, to[0])}, {_moved(source, at[0])});")
            elif len(n) > 8 and len(set(owner)) == 1:
                table = self._store((flat - starts[which]).astype(np.int32), "at")
                self._say(f"gather<{len(flat)}>({target.text}, {source.text}, {table});")
            else:
                for i, j, count in zip(to, at, n, strict=True):
                    self._say(f"copy<1, {count}, 0, 0>({_moved(target, i)}, {_moved(source, j)});")
        return target

    def _spread(self, value: Value, shape: tuple[int, ...]) -> tuple[Value, int]:
        """The value as an operand of a loop over the shape, and its step: 0 where one number stands for all."""
        if value.size == 1:
            return self._placed(value), 0
        if value.constant is not None:
            return self._placed(Value(shape, "", 0, np.broadcast_to(value.constant, shape))), 1
        if value.size == int(np.prod(shape)):
            return value, 1
        places = np.broadcast_to(np.arange(value.size).reshape(value.shape), shape)
        return self._gathered([value], places), 1

    # Memory

    def _say(self, statement: str) -> None:
        self.program.statements.append(statement)

    def _new(self, shape: tuple[int, ...]) -> Value:
        place = Value(tuple(int(n) for n in shape), "m", self.program.memory)
        self.program.memory += -(-place.size // ALIGNMENT) * ALIGNMENT
        return place

    def _constant(self, name: str, array: NDArray[Any]) -> None:
        self.values[name] = Value(array.shape, "", 0, array)

    def _placed(self, value: Value) -> Value:
        """The value with a place in memory, which constants get as they are needed."""
        if value.base or value.constant is None:
            return value
        return value._replace(base=self._store(value.constant.astype(np.float32), "k"))

    def _store(self, array: NDArray[Any], prefix: str) -> str:
        array = np.ascontiguousarray(array).reshape(-1)
        key = (prefix, array.shape, array.tobytes())
        if key not in self.stored:
            self.stored[key] = f"{prefix}{len(self.program.constants)}"
            self.program.constants.append((self.stored[key], array))
        return self.stored[key]


def _scalar(value: Value | None) -> float | None:
    if value is None or value.constant is None or value.size != 1:
        return None
    return float(value.constant.reshape(()))


def _moved(value: Value, by: int) -> str:
    return value._replace(offset=value.offset + int(by)).text


def _parts(node: Any, shape: tuple[int, ...], axes: Sequence[int]) -> tuple[int, int, int]:
    """Sizes before, along and behind axes that lie side by side."""
    chosen = sorted(axis % len(shape) for axis in axes) if shape else []
    if chosen and chosen != list(range(chosen[0], chosen[-1] + 1)):
        raise _unknown(node, f"over axes {chosen}, which are not side by side")
    first, end = (chosen[0], chosen[-1] + 1) if chosen else (0, 0)
    return tuple(int(np.prod(part)) for part in (shape[:first], shape[first:end], shape[end:]))  # type: ignore[return-value]


def _unknown(node: Any, what: str = "") -> ExportError:
    named = f"{node.op_type} {what}".strip()
    return ExportError(
        f"the file has the operator {named} (node '{node.name}'), which rlcore_policy.hpp lacks; use another, or run "
        "the ONNX file itself"
    )
