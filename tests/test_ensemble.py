"""Networks of equal shape as one kernel against a loop over them in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlcore import NetworkConfig
from rlcore.networks import Network, network_outputs
from rlcore.optimizer import FlatAdam, joined

CUDA = torch.device("cuda")
LIMITS = {"fp32": 1e-5, "tf32": 5e-3}
SHAPES = [  # samples, observation, action, hidden layers, outputs, networks
    (256, 17, 6, (256, 256), 1, 2),
    (256, 17, 0, (256, 256), 12, 1),
    (1, 11, 0, (256, 256), 3, 1),
    (37, 130, 5, (33, 140, 20), 7, 3),
    (50, 3, 1, (64,), 1, 2),
]


class Networks(nn.Module):
    """Hidden layers of all networks, then last layers, as ``Critics`` has them."""

    def __init__(self, inputs: int, hidden: tuple[int, ...], outputs: int, count: int, activation: Any) -> None:
        super().__init__()
        config = NetworkConfig(hidden_dims=hidden, activation=activation, init="default")
        self.trunks = nn.ModuleList(Network(inputs, config) for _ in range(count))
        self.heads = nn.ModuleList(nn.Linear(hidden[-1], outputs) for _ in range(count))

    def one_by_one(self, x: Tensor, count: int | None = None) -> Tensor:
        pairs = list(zip(self.trunks, self.heads, strict=True))[:count]
        return torch.stack([head(trunk.mlp.layers(x)) for trunk, head in pairs])

    def forward(self, x: Tensor, action: Tensor | None, precision: str, count: int | None) -> Tensor:
        for trunk in self.trunks:
            trunk.mlp.precision = precision
        return network_outputs(list(self.trunks), list(self.heads), x, action, count)  # type: ignore[arg-type]


def check(
    device: torch.device, shape: tuple[int, int, int, tuple[int, ...], int, int], activation: str, precision: str,
    count: int | None = None, learned: bool = True,
) -> None:  # fmt: skip
    rows, size, actions, hidden, outputs, networks = shape
    model = Networks(size + actions, hidden, outputs, networks, activation)
    exact = copy.deepcopy(model).double().requires_grad_(learned)
    model = model.to(device).requires_grad_(learned)
    x, action = torch.randn(rows, size), torch.randn(rows, actions)
    upstream = torch.randn(count or networks, rows, outputs)
    joint = torch.cat([x, action], 1).double().requires_grad_()
    expected = exact.one_by_one(joint, count)
    expected.backward(upstream.double())
    given = action.to(device).requires_grad_() if actions else None
    got = model(x.to(device), given, precision, count)
    if actions or learned:
        got.backward(upstream.to(device))
    assert joint.grad is not None
    pairs = [(got, expected)]
    pairs += [] if given is None else [(given.grad, joint.grad[:, size:])]
    if learned:
        pairs += [
            (p.grad, torch.zeros_like(q) if q.grad is None else q.grad)
            for p, q in zip(model.parameters(), exact.parameters(), strict=True)
            if not (q.grad is None and p.grad is None)
        ]
    else:
        assert all(p.grad is None for p in model.parameters())
    for ours, theirs in pairs:
        assert ours is not None
        scale = float(theirs.detach().norm()) + 1e-12
        assert float((ours.detach().double().cpu() - theirs.detach()).norm()) <= LIMITS[precision] * scale


@pytest.mark.parametrize("activation", ["relu", "elu"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_plain_function_is_a_loop_over_the_networks(
    shape: tuple[int, int, int, tuple[int, ...], int, int], activation: str
) -> None:
    check(torch.device("cpu"), shape, activation, "fp32")


@pytest.mark.parametrize(
    ("activation", "precision"),
    # Not relu with tf32: next to zero, rounding decides about its slope, and gradients differ by percents.
    [("relu", "fp32"), ("elu", "fp32"), ("elu", "tf32"), ("tanh", "fp32"), ("tanh", "tf32")],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_are_right(
    shape: tuple[int, int, int, tuple[int, ...], int, int], activation: str, precision: str, kernel_device: torch.device
) -> None:
    if shape[0] > 200 and kernel_device.type == "cpu":
        pytest.skip("the interpreter is slow")
    check(kernel_device, shape, activation, precision)


@pytest.mark.parametrize("learned", [True, False])
def test_some_networks_alone_and_fixed_ones(learned: bool, kernel_device: torch.device) -> None:
    check(kernel_device, SHAPES[3], "elu", "fp32", count=2, learned=learned)


@pytest.mark.gpu
def test_gradients_lie_in_one_buffer_with_zeros_between_whatever_memory_held_before() -> None:
    model, x = Networks(7, (33, 20), 3, 2, "relu").to(CUDA), torch.randn(40, 7, device=CUDA)
    optimizer = FlatAdam(list(model.parameters()), torch.tensor(0.1, device=CUDA), 1.0)
    wholes = []
    for fill in (0.0, torch.nan):
        junk = [torch.full((1 << size,), fill, device=CUDA) for size in range(8, 20)]
        del junk  # back to the allocator, which hands it out below
        gradients = torch.autograd.grad(model(x, None, "fp32", None).sum(), list(model.parameters()))
        whole = joined(gradients)
        assert whole is not None and whole.shape == optimizer.value.shape
        wholes.append(whole)
        assert float(whole.norm()) == pytest.approx(float(torch.cat([g.flatten() for g in gradients]).norm()), rel=1e-5)
    assert torch.equal(*wholes)
    assert joined([p.detach() for p in model.parameters()]) is not None


@pytest.mark.gpu
def test_what_is_not_finite_is_passed_on() -> None:
    model, x = Networks(7, (33, 20), 3, 2, "relu").to(CUDA), torch.randn(40, 7, device=CUDA)
    x[3, 2] = torch.nan
    y = model(x, None, "fp32", None)
    assert torch.isfinite(y).all(2).all(0).tolist() == [row != 3 for row in range(40)]
