"""Take out of an exported graph what PyTorch's exporter writes and no robot needs.

The exporter writes shapes as it meets them: read by Shape, taken apart by Gather, put together by Concat, though every
one of them is known. Runtimes and code generators for small computers refuse such graphs, or go slow on them. Here the
file is run once (with a dynamic batch for two sizes of it), which tells each value's shape and type. Then

- what depends on weights and shapes alone, and is the same for all batches, becomes a constant;
- a shape that depends on the batch in one place becomes a constant with -1 there;
- what changes nothing goes: a cast to the type that it has, a slice of all, a reshape to the same shape, a split that
  is joined again, a join that is split again, a product with 1, a choice that is always the same, a softmax before the
  choice of the largest;
- a product and the sum after it become Gemm.

What remains computes what it did, in the same order and to the same rounding but for that sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BATCH = "batch"
Values = Mapping[str, NDArray[Any]]
RESHAPES = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")


def trial(model: Any, rows: int = 1) -> dict[str, NDArray[Any]]:
    """Run a model once and return every value in it by name, with ones for inputs.

    Args:
        model: as ``onnx`` has loaded it.
        rows: what a batch without a fixed size is taken as.
    """
    import onnx
    import onnxruntime

    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    known = {output.name for output in opened.graph.output}
    for node in opened.graph.node:
        names = [name for name in node.output if name and name not in known]
        opened.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(opened.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {
        i.name: np.ones([n if isinstance(n, int) else rows for n in i.shape], "u1" if "uint8" in i.type else "f4")
        for i in session.get_inputs()
    }
    names = [output.name for output in session.get_outputs()]
    return {**feed, **dict(zip(names, session.run(names, feed), strict=True))}


def tidy(model: Any, dynamic_batch: bool) -> None:
    """Simplify a graph in place; see the module's text.

    Args:
        model: as ``onnx`` has loaded it, of opset 11.
        dynamic_batch: whether its inputs have a dimension that is not fixed.
    """
    runs = [trial(model, rows) for rows in ((2, 3) if dynamic_batch else (1,))]
    graph = model.graph
    _name_dimensions(graph, runs)
    _Tidy(graph, runs).run()
    del graph.value_info[:]  # the exporter's, which name dimensions that there are no more


def _name_dimensions(graph: Any, runs: Sequence[Values]) -> None:
    """Give each dimension of the outputs its size, or the batch's name."""
    for value in graph.output:
        sizes = zip(*(run[value.name].shape for run in runs), strict=True)
        for dimension, known in zip(value.type.tensor_type.shape.dim, sizes, strict=True):
            dimension.Clear()
            if len(set(known)) == 1:
                dimension.dim_value = known[0]
            else:
                dimension.dim_param = BATCH


class _Tidy:
    """At work on one graph."""

    def __init__(self, graph: Any, runs: Sequence[Values]) -> None:
        self.graph, self.runs = graph, runs
        self.weights = {weight.name: weight for weight in graph.initializer}
        self.outputs = {output.name for output in graph.output}
        self.inside = {name for node in graph.node for name in _read_inside(node)}
        """What subgraphs read by name, which therefore keeps its name."""

    def run(self) -> None:
        before = None
        while before != (before := self._picture()):
            self._fold()
            self.producer = {name: node for node in self.graph.node for name in node.output}
            self.readers: dict[str, list[Any]] = {}
            for node in self.graph.node:
                for name in node.input:
                    self.readers.setdefault(name, []).append(node)
            for node in self.graph.node:
                self._simplify(node)
            self._sweep()

    def _picture(self) -> list[tuple[str, ...]]:
        return [(node.op_type, *node.input, *node.output) for node in self.graph.node]

    # Constants

    def _fold(self) -> None:
        """Turn into constants what depends on weights and shapes alone."""
        still = set(self.weights)
        for node in self.graph.node:
            shaped = node.op_type in ("Shape", "Size")
            if (shaped or all(not name or name in still for name in node.input)) and not _subgraphs(node):
                still |= set(node.output)
        for node in self.graph.node:
            for i, name in enumerate(node.input):
                if name in still and name not in self.weights:
                    self._make_constant(node, i)
        self._sweep()

    def _make_constant(self, node: Any, place: int) -> None:
        """Let a node read a number instead of a computation, if that gives the same for all batches."""
        name = node.input[place]
        values = [run[name] for run in self.runs]
        array = values[0]
        if any(not np.array_equal(value, array) for value in values):
            shapes = np.array([run[node.output[0]].shape for run in self.runs])
            moving = np.flatnonzero(shapes[0] != shapes[-1])
            if node.op_type != "Reshape" or len(moving) != 1:
                return
            array = shapes[0]
            array[moving] = -1
            name = f"{name}_{node.output[0]}"  # others may need the sizes themselves
        node.input[place] = self._weight(name, array)

    def _weight(self, name: str, array: NDArray[Any]) -> str:
        """Keep an array beside the graph under a name that no computation has."""
        import onnx

        name = name if name in self.weights else f"{name}_constant"
        if name not in self.weights:
            weight = onnx.numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
            self.weights[name] = self.graph.initializer.add()
            self.weights[name].CopyFrom(weight)
        return name

    # Nodes that change nothing

    def _simplify(self, node: Any) -> None:
        kind = node.op_type
        if kind == "Gemm" or not node.input:
            return
        first = node.input[0]
        if kind == "ArgMax" and self._kind(first) in ("LogSoftmax", "Softmax"):
            softmax = self.producer[first]
            last = len(self._shapes(first)[0]) - 1
            if _axis(node, 0) % (last + 1) == _axis(softmax, 1) % (last + 1) == last:
                node.input[0] = softmax.input[0]
        elif kind == "MatMul":
            self._to_gemm(node)
        elif kind in ("Split", "Slice") and self._kind(first) == "Concat" and (parts := self._parts(node)):
            for name, part in zip(node.output, parts, strict=True):
                self._pass(node, part, name)
        elif (source := self._same(node)) is not None:
            self._pass(node, source)
        elif kind in RESHAPES and self._kind(first) in RESHAPES:
            origin = first
            while self._kind(origin) in RESHAPES:
                origin = self.producer[origin].input[0]
                if self._shapes(origin) == self._shapes(node.output[0]):
                    self._pass(node, origin)
                    return

    def _same(self, node: Any) -> str | None:
        """The input that a node gives as it is; None where it gives something else."""
        kind, first, after = node.op_type, node.input[0], node.output[0]
        if kind in ("Identity", "Dropout") or (kind == "Concat" and len(node.input) == 1):
            return str(first)
        if kind == "Split" and len(node.output) == 1:
            return str(first)
        if kind == "Concat":
            split = self.producer.get(first)
            if split is not None and split.op_type == "Split" and list(split.output) == list(node.input):
                rank = len(self._shapes(first)[0])
                return str(split.input[0]) if _axis(split, 0) % rank == _axis(node, 0) % rank else None
        unchanged = self._shapes(first) == self._shapes(after)
        if kind == "Cast" and self._found(first)[0].dtype == self._found(after)[0].dtype:
            return str(first)
        if kind in (*RESHAPES, "Expand") and unchanged:
            return str(first)
        if (
            kind == "Where"
            and first in self.weights
            and len(set(chosen := self._number(first).flatten().tolist())) == 1
        ):
            taken = str(node.input[1 if chosen[0] else 2])
            return taken if self._shapes(taken) == self._shapes(after) else None
        if kind in ("Mul", "Div") and unchanged and self._is_one(node.input[1]):
            return str(first)
        forward = len(node.input) < 5 or (node.input[4] in self.weights and (self._number(node.input[4]) > 0).all())
        return str(first) if kind == "Slice" and unchanged and forward else None

    def _parts(self, node: Any) -> list[str]:
        """What was joined to the value that a node takes apart, if it gives just that; else nothing."""
        join = self.producer[node.input[0]]
        rank = len(self._shapes(node.input[0])[0])
        axis = _axis(join, 0) % rank
        widths = [{shape[axis] for shape in self._shapes(name)} for name in join.input]
        if any(len(width) > 1 for width in widths):
            return []
        ends = np.cumsum([width.pop() for width in widths]).tolist()
        places = dict(zip(zip([0, *ends], ends, strict=False), join.input, strict=True))
        if node.op_type == "Split":
            sizes = [{shape[axis] for shape in self._shapes(name)} for name in node.output]
            cut = np.cumsum([size.pop() for size in sizes]).tolist()
            same = _axis(node, 0) % rank == axis and cut == ends
            return list(join.input) if same else []
        if len(node.input) < 4 or not set(node.input[1:]) <= set(self.weights):
            return []
        numbers = [self._number(name).tolist() for name in node.input[1:]]
        if (
            any(len(number) != 1 for number in numbers)
            or numbers[2][0] % rank != axis
            or numbers[3:] not in ([], [[1]])
        ):
            return []
        start, end, _ = slice(numbers[0][0], numbers[1][0]).indices(ends[-1])
        return [places[start, end]] if (start, end) in places else []

    def _pass(self, node: Any, source: str, name: str | None = None) -> None:
        """Let all that read a node's output read its source; its first output unless ``name`` says another."""
        name = name or node.output[0]
        if name in self.inside:
            return
        if name in self.outputs:
            # The graph's own output keeps its name, so what makes the source has to take it.
            maker = self.producer.get(source)
            if maker is None or source in self.outputs or source in self.inside:
                return
            for reader in self.readers.get(source, []):
                _rename(reader.input, source, name)
            _rename(maker.output, source, name)
            _rename(node.output, name, f"{name}_unused")
            for run in self.runs:
                run.setdefault(name, run[source])  # type: ignore[attr-defined]
            self.producer[name] = maker
            self.readers[name] = self.readers.get(name, []) + self.readers.pop(source, [])
            return
        for reader in self.readers.get(name, []):
            _rename(reader.input, name, source)
        self.readers.setdefault(source, []).extend(self.readers.pop(name, []))

    def _to_gemm(self, node: Any) -> None:
        """Make Gemm of a product with a weight and the only sum that reads it."""
        product = node.output[0]
        readers = self.readers.get(product, [])
        weight = node.input[1]
        if len(readers) != 1 or readers[0].op_type != "Add" or product in self.outputs | self.inside:
            return
        if weight not in self.weights or any(len(self._shapes(name)[0]) != 2 for name in (node.input[0], weight)):
            return
        (add,) = readers
        bias = next((name for name in add.input if name != product), product)
        if bias not in self.weights or len(self._number(bias).shape) != 1:
            return
        if self._shapes(product) != self._shapes(add.output[0]):  # one number is added to many: Gemm has no such sum
            return
        node.op_type = "Gemm"
        node.input.append(bias)
        node.output[0], add.output[0] = add.output[0], f"{product}_unused"
        del add.input[:]

    # What is known

    def _found(self, name: str) -> list[NDArray[Any]]:
        return [self._number(name)] if name in self.weights else [run[name] for run in self.runs]

    def _shapes(self, name: str) -> list[tuple[int, ...]]:
        found = [value.shape for value in self._found(name)]
        return found * len(self.runs) if name in self.weights else found

    def _number(self, name: str) -> NDArray[Any]:
        import onnx

        array: NDArray[Any] = onnx.numpy_helper.to_array(self.weights[name])
        return array

    def _is_one(self, name: str) -> bool:
        return name in self.weights and bool((self._number(name) == 1).all())

    def _kind(self, name: str) -> str:
        return self.producer[name].op_type if name in self.producer else ""

    def _sweep(self) -> None:
        """Drop nodes and weights that nobody reads."""
        needed, kept = self.outputs | self.inside, []
        for node in reversed(self.graph.node):
            if needed & set(node.output):
                needed |= set(node.input)
                kept.append(node)
        kept.reverse()
        weights = [weight for weight in self.graph.initializer if weight.name in needed]
        copies = [type(item)() for item in (*kept, *weights)]
        for copy, item in zip(copies, (*kept, *weights), strict=True):
            copy.CopyFrom(item)
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(copies[: len(kept)])
        self.graph.initializer.extend(copies[len(kept) :])
        self.weights = {weight.name: weight for weight in self.graph.initializer}


def _axis(node: Any, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "axis"), default)


def _rename(names: Any, before: str, after: str) -> None:
    for i, name in enumerate(names):
        if name == before:
            names[i] = after


def _subgraphs(node: Any) -> list[Any]:
    return [a.g for a in node.attribute if a.HasField("g")]


def _read_inside(node: Any) -> set[str]:
    return {name for graph in _subgraphs(node) for inner in graph.node for name in (*inner.input, *_read_inside(inner))}
