"""The recurrent layer's kernels against its plain twin in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import error
from torch import Tensor

from rlcore import NetworkConfig
from rlcore.networks import Network
from rlcore.recurrent import RNN, RNNConfig

CUDA = torch.device("cuda")
LIMITS = {"fp32": 1e-5, "tf32": 2e-3, "bf16": 2e-2}
pytestmark = pytest.mark.gpu


class Case:
    """A layer on the CPU, what goes in, and the weights of a loss of all that comes out."""

    def __init__(self, kind: Any, steps: int, rows: int, inputs: int, hidden: int, mask: str, layers: int = 1) -> None:
        self.rnn = RNN(inputs, RNNConfig(type=kind, hidden_size=hidden, num_layers=layers))
        self.state = [torch.randn_like(part) for part in self.rnn.initial_state(rows)]
        # As in an update: parts of larger tensors, cut along the envs.
        self.x = torch.randn(steps, 3 * rows, inputs)[:, rows : 2 * rows]
        kept = torch.rand(steps, 3 * rows, 1)[:, :rows] > {"some": 0.3, "none": 2.0}.get(mask, 0.0)
        self.keep = None if mask == "all" else kept.float()
        self.weights = [torch.randn(steps, rows, hidden), *(torch.randn_like(part) for part in self.state)]

    def run(self, device: str, dtype: torch.dtype, precision: str, differentiate_inputs: bool = True) -> list[Tensor]:
        """Output, last state, and gradients of inputs and parameters."""
        rnn = self.rnn.to(device, dtype)
        leaves = [v.to(device, dtype).detach().requires_grad_(differentiate_inputs) for v in (self.x, *self.state)]
        keep = None if self.keep is None else self.keep.to(device, dtype)
        y, after = rnn(leaves[0], tuple(leaves[1:]), keep, precision)
        loss = sum((a * b.to(device, dtype)).sum() for a, b in zip((y, *after), self.weights, strict=True))
        wanted = [*(leaves if differentiate_inputs else []), *rnn.parameters()]
        return [v.detach() for v in (y, *after, *torch.autograd.grad(loss, wanted))]


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize(
    "case",
    [
        (6, 1024, 48, 256, "some"),
        (3, 333, 47, 33, "some"),
        (5, 70, 5, 8, "some"),
        (5, 70, 5, 8, "none"),
        (5, 70, 5, 8, "all"),
        (1, 1, 130, 100, "some"),
        (2, 40, 96, 64, "all", 2),
    ],
)
def test_outputs_states_and_gradients_are_right_to_the_precision(case: Any, kind: str, precision: str) -> None:
    case = Case(kind, *case)
    expected = case.run("cpu", torch.float64, "fp32")
    torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
    try:
        got = case.run("cuda", torch.float32, precision)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    for number, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a.dtype == torch.float32
        assert error(a, b) < LIMITS[precision], number


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_equal_inputs_give_equal_bits_whatever_memory_held_before(kind: str, precision: str) -> None:
    case = Case(kind, 6, 1024, 48, 256, "some")
    first = case.run("cuda", torch.float32, precision, differentiate_inputs=False)
    poison = [torch.full((size,), torch.nan, device=CUDA) for size in (1 << 22, 1 << 20, 1 << 18, 1 << 16) * 4]
    del poison  # back to the allocator, which hands it out below
    second = case.run("cuda", torch.float32, precision, differentiate_inputs=False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.isfinite(a).all() for a in second)


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("kind", ["lstm", "gru"])
@torch.no_grad()
def test_steps_one_by_one_without_gradients_equal_the_sequence(kind: str, precision: str) -> None:
    case = Case(kind, 6, 333, 48, 96, "some")
    assert case.keep is not None
    rnn, x, keep = case.rnn.to(CUDA), case.x.to(CUDA), case.keep.to(CUDA)
    start = state = tuple(part.to(CUDA) for part in case.state)
    with torch.enable_grad():
        expected, after = rnn(x, start, keep, precision)
    rows = []
    for t in range(6):
        y, state = rnn(x[t : t + 1], tuple(part * keep[t] for part in state), None, precision)
        rows.append(y)
    limit = {"fp32": 1e-6, "tf32": 1e-4, "bf16": 1e-3}[precision]  # a last bit can tip the next product's rounding
    assert error(torch.cat(rows), expected) < limit
    assert all(error(a, b) < limit for a, b in zip(state, after, strict=True))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_no_two_gradients_share_memory(kind: str) -> None:
    case = Case(kind, 3, 20, 5, 32, "some")
    rnn = case.rnn.to(CUDA)
    rnn(case.x.to(CUDA), rnn.initial_state(20))[0].sum().backward()
    places = [p.grad.data_ptr() for p in rnn.parameters() if p.grad is not None]
    assert len(set(places)) == 4


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_nan_is_passed_on(kind: str, precision: str) -> None:
    rnn = RNN(5, RNNConfig(type=kind, hidden_size=32)).to(CUDA)  # type: ignore[arg-type]
    x = torch.randn(3, 20, 5, device=CUDA)
    x[1, 7] = torch.nan
    y, _ = rnn(x, rnn.initial_state(20), None, precision)
    broken = y.isnan().all(-1)
    assert broken[1:, 7].all() and broken.sum() == 2 and y.isnan().sum() == 2 * 32


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_float64_is_not_rounded_to_less(kind: str) -> None:
    case = Case(kind, 4, 20, 5, 8, "some")
    for a, b in zip(case.run("cuda", torch.float64, "bf16"), case.run("cpu", torch.float64, "fp32"), strict=True):
        assert error(a, b) < 1e-12


@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
@torch.no_grad()
def test_a_network_hands_its_precision_to_the_layer(kind: Any, position: Any) -> None:
    config = NetworkConfig(hidden_dims=(64,), rnn=RNNConfig(type=kind, hidden_size=64, position=position))
    net, head = Network(48, config).to(CUDA), torch.nn.Linear(64, 3).to(CUDA)
    x, state = torch.randn(4, 100, 48, device=CUDA), net.initial_state(100)
    outputs = {}
    for precision in LIMITS:
        net.mlp.precision, net.mlp.fused = precision, precision != "fp32"
        outputs[precision] = net(x, head, state)[0]
    errors = [error(outputs[precision], outputs["fp32"]) for precision in ("tf32", "bf16")]
    assert 1e-6 < errors[0] < LIMITS["tf32"] < errors[1] < 2 * LIMITS["bf16"]
