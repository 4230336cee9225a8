"""What is left of an exported graph, and what must not change in it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from test_cpp import KINDS

from rlcore import NetworkConfig, PPOConfig
from rlcore.env import spec_of
from rlcore.envs import make_env
from rlcore.export import OnnxPolicy, export_onnx
from rlcore.export.observations import still_inputs
from rlcore.export.one_task import OneTask
from rlcore.export.tidy import tidy, trial
from rlcore.policies import build_policy

SHAPES = {"Shape", "Gather", "ConstantOfShape", "Constant", "Expand", "If", "Cast", "Identity"}
CASES = ("mlp", "layer norm", "lstm", "gru", "sac", "discrete", "gate recovery")


def exported(kind: str, folder: Path, **options: Any) -> Any:
    torch.manual_seed(0)
    policy, spec = KINDS[kind]()
    report = export_onnx(policy, spec, folder / "policy.onnx", recording=None, **options)
    assert report.parity.error <= 1e-6
    return onnx.load(str(report.path))


def operators(model: Any) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("kind", CASES)
def test_no_shape_is_computed_and_products_are_gemm(kind: str, dynamic: bool, tmp_path: Path) -> None:
    model = exported(kind, tmp_path, dynamic_batch=dynamic)
    found = operators(model)
    assert not SHAPES & set(found)
    assert "MatMul" not in found
    weights = {weight.name for weight in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("Slice", "Reshape"):
            assert set(node.input[1:]) <= weights  # by places that are known
    for value in (*model.graph.input, *model.graph.output):
        sizes = [n.dim_param or n.dim_value for n in value.type.tensor_type.shape.dim]
        assert sizes.count("batch") == int(dynamic)
        assert all(size == "batch" or size >= 1 for size in sizes)  # type: ignore[operator]


def test_a_perceptron_is_its_layers_alone(tmp_path: Path) -> None:
    assert [node.op_type for node in exported("discrete", tmp_path).graph.node] == [
        "Sub", "Div", "Clip", "Gemm", "Elu", "Gemm", "Elu", "Gemm", "ArgMax",
    ]  # fmt: skip


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_recurrent_layer_is_one_operator_or_none(cell: str, tmp_path: Path) -> None:
    layers = {"lstm": 2, "gru": 1}[cell]
    whole = exported(cell, tmp_path)
    assert operators(whole)[cell.upper()] == layers
    parts = exported(cell, tmp_path, cells="decomposed")
    assert not {"LSTM", "GRU", *SHAPES} & set(operators(parts))
    first = OnnxPolicy(tmp_path / "policy.onnx")
    onnx.save(whole, str(tmp_path / "whole.onnx"))
    second = OnnxPolicy(tmp_path / "whole.onnx")
    generator = np.random.default_rng(0)
    for _ in range(50):
        obs = generator.standard_normal(first.observation_size).astype(np.float32)
        np.testing.assert_allclose(first(obs), second(obs), atol=1e-6)


def test_a_file_for_one_of_several_tasks_does_not_ask_for_the_task(tmp_path: Path) -> None:
    spec = spec_of(make_env("tasks:Pendulum+Reach-UR5e-JointPos", 4, seed=0))
    policy = build_policy(spec, PPOConfig(actor=NetworkConfig(hidden_dims=(8,))))
    one = OneTask(policy, spec, "Pendulum").eval()
    report = export_onnx(one, one.spec, tmp_path / "policy.onnx", recording=None)
    assert report.parity.error <= 1e-6
    assert not {"ArgMax", "Gather", "Split", *SHAPES} & set(operators(onnx.load(str(report.path))))


def test_a_file_for_one_of_several_tasks_tells_of_its_inputs_as_they_are_divided(tmp_path: Path) -> None:
    spec = spec_of(make_env("tasks:Pendulum+Reach-UR5e-JointPos", 4, seed=0))
    policy = build_policy(spec, PPOConfig(actor=NetworkConfig(hidden_dims=(8,)), obs_epsilon=1e-4))
    normalizer: Any = policy.normalizer
    normalizer.statistics.var.fill_(0.1**2)
    one = OneTask(policy, spec, "Pendulum").eval()
    report = export_onnx(one, one.spec, tmp_path / "policy.onnx", recording=None)
    assert report.metadata["observation_epsilon"] == 1e-4
    normalizer.statistics.var.fill_(1e-4**2)  # far from still beside 1e-4, and still beside 1e-2
    assert still_inputs(OneTask(policy, spec, "Pendulum"), report.metadata["observation_terms"]) is None


def test_a_gate_that_takes_any_batch_has_no_condition(tmp_path: Path) -> None:
    found = operators(exported("gate candidates", tmp_path, dynamic_batch=True))
    assert not {"If", "ConstantOfShape", "Equal", "Constant"} & set(found)


# Graphs of one's own


def graph(nodes: list[Any], weights: dict[str, Any], rows: int | str = 1, outputs: int = 4) -> Any:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 4])]
    result = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, outputs])]
    arrays = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    made = helper.make_graph(nodes, "g", inputs, result, arrays)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)


def run(model: Any, rows: int) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((rows, 4)).astype(np.float32)
    return session.run(["y"], {"x": x})[0]  # type: ignore[no-any-return]


def made(model: Any, rows: int = 1, dynamic: bool = False) -> list[str]:
    """What is left, once it is seen to do the same."""
    before = run(model, rows)
    tidy(model, dynamic)
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_allclose(run(model, rows), before, rtol=1e-6)
    return [node.op_type for node in model.graph.node]


ONE, ZERO, MANY = np.ones(1, np.float32), np.zeros(1, np.int64), np.arange(4, dtype=np.int64)
node = helper.make_node


@pytest.mark.parametrize(
    ("nodes", "weights", "left"),
    [
        pytest.param(
            [node("Cast", ["x"], ["a"], to=TensorProto.FLOAT), node("Relu", ["a"], ["y"])], {}, ["Relu"], id="cast"
        ),
        pytest.param(
            [node("Split", ["x"], ["a", "b"], axis=1), node("Concat", ["a", "b"], ["c"], axis=1),
             node("Relu", ["c"], ["y"])], {}, ["Relu"], id="split and joined",
        ),
        pytest.param(
            [node("Split", ["x"], ["a", "b"], axis=1), node("Concat", ["b", "a"], ["y"], axis=1)], {},
            ["Split", "Concat"], id="joined the other way round",
        ),
        pytest.param(
            [node("Relu", ["x"], ["a"]), node("Unsqueeze", ["a"], ["b"], axes=[0]),
             node("Squeeze", ["b"], ["y"], axes=[0])], {}, ["Relu"], id="a dimension to and fro, at the end",
        ),
        pytest.param([node("Slice", ["x", "s", "e", "t"], ["a"]), node("Relu", ["a"], ["y"])],
            {"s": ZERO, "e": MANY[-1:] + 1, "t": ZERO + 1}, ["Relu"], id="a slice of all"),
        pytest.param([node("Slice", ["x", "s", "e", "t", "r"], ["y"])],
            {"s": MANY[-1:], "e": ZERO - 9, "t": ZERO + 1, "r": ZERO - 1}, ["Slice"], id="a slice that turns round"),
        pytest.param([node("Mul", ["x", "o"], ["a"]), node("Relu", ["a"], ["y"])], {"o": ONE}, ["Relu"], id="one"),
        pytest.param([node("Mul", ["x", "o"], ["y"])], {"o": 2 * ONE}, ["Mul"], id="two"),
        pytest.param([node("MatMul", ["x", "w"], ["a"]), node("Add", ["b", "a"], ["y"])],
            {"w": np.eye(4, dtype=np.float32), "b": np.ones(4, np.float32)}, ["Gemm"], id="product and sum"),
        pytest.param([node("MatMul", ["x", "w"], ["a"]), node("Add", ["b", "a"], ["y"])],
            {"w": np.ones((4, 1), np.float32), "b": np.ones(4, np.float32)}, ["MatMul", "Add"],
            id="a product that many are added to"),
        pytest.param([node("MatMul", ["x", "w"], ["a"]), node("Add", ["a", "b"], ["c"]),
            node("Add", ["a", "c"], ["y"])],
            {"w": np.eye(4, dtype=np.float32), "b": np.ones(4, np.float32)},
            ["MatMul", "Add", "Add"], id="a product that others read"),
        pytest.param([node("Relu", ["x"], ["r"]), node("Concat", ["r", "w"], ["c"], axis=1),
            node("Split", ["c"], ["a", "b"], axis=1, split=[4, 2]), node("ReduceSum", ["b"], ["n"], axes=[1]),
            node("Mul", ["a", "n"], ["y"])], {"w": np.full((1, 2), 2, np.float32)}, ["Relu", "Mul"],
            id="a constant that is joined and taken apart"),
        pytest.param([node("Concat", ["x", "w"], ["c"], axis=1), node("Slice", ["c", "s", "e", "t"], ["b"]),
            node("Mul", ["x", "b"], ["y"])],
            {"w": np.full((1, 1), 2, np.float32), "s": ZERO - 1, "e": ZERO + 2**62, "t": ZERO - 1}, ["Mul"],
            id="the part of a constant"),
        pytest.param([node("Concat", ["x", "x"], ["c"], axis=1), node("Slice", ["c", "s", "e", "t"], ["y"])],
            {"s": ZERO + 1, "e": ZERO + 5, "t": ZERO + 1}, ["Concat", "Slice"], id="a part of each"),
        pytest.param([node("Relu", ["x"], ["r"]), node("Where", ["t", "r", "x"], ["y"])], {"t": [[True] * 4]}, ["Relu"],
            id="always the first"),
        pytest.param([node("Relu", ["x"], ["r"]), node("Where", ["t", "r", "x"], ["y"])],
            {"t": [[True, False] * 2]}, ["Relu", "Where"], id="now the first and now the second"),
        pytest.param([node("Identity", ["x"], ["y"])], {}, ["Identity"], id="an input that is the output"),
        pytest.param([node("Softmax", ["x"], ["p"], axis=1), node("ArgMax", ["p"], ["i"], axis=1, keepdims=1),
            node("Cast", ["i"], ["f"], to=TensorProto.FLOAT), node("Add", ["x", "f"], ["y"])], {},
            ["ArgMax", "Cast", "Add"], id="a softmax before the largest"),
        pytest.param([node("Softmax", ["x"], ["p"], axis=0), node("ArgMax", ["p"], ["i"], axis=0, keepdims=1),
            node("Cast", ["i"], ["f"], to=TensorProto.FLOAT), node("Add", ["x", "f"], ["y"])], {},
            ["Softmax", "ArgMax", "Cast", "Add"], id="over all dimensions"),
    ],
)  # fmt: skip
def test_what_changes_nothing_goes_and_nothing_else(nodes: list[Any], weights: dict[str, Any], left: list[str]) -> None:
    assert made(graph(nodes, weights)) == left


def test_a_shape_that_follows_the_batch_is_a_constant() -> None:
    nodes = [
        node("Shape", ["x"], ["s"]), node("Gather", ["s", "zero"], ["n"], axis=0),
        node("Concat", ["n", "two", "two"], ["t"], axis=0), node("Reshape", ["x", "t"], ["a"]),
        node("Relu", ["a"], ["b"]), node("Reshape", ["b", "flat"], ["y"]),
    ]  # fmt: skip
    weights = {"zero": ZERO, "two": ZERO + 2, "flat": np.array([-1, 4])}
    assert made(graph(nodes, weights, "batch"), 3, dynamic=True) == ["Reshape", "Relu", "Reshape"]


def test_what_is_not_the_same_for_all_batches_stays() -> None:
    nodes = [node("Shape", ["x"], ["s"]), node("Cast", ["s"], ["f"], to=TensorProto.FLOAT)]
    nodes += [node("Slice", ["f", "zero", "one"], ["n"]), node("Mul", ["x", "n"], ["y"])]
    weights = {"zero": ZERO, "one": ZERO + 1}
    assert made(graph(nodes, weights, "batch"), 3, dynamic=True) == ["Shape", "Cast", "Slice", "Mul"]
    assert made(graph(nodes, weights, 3), 3) == ["Mul"]


def test_trial_takes_a_batch_of_any_size(tmp_path: Path) -> None:
    model = exported("mlp", tmp_path, dynamic_batch=True)
    assert trial(model, 3)["actions"].shape == (3, 4)
