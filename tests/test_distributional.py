"""Categorical critics against a reference in float64 that moves one atom after the other."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import error
from torch import Tensor

from rlcore.losses import Reduce, categorical_loss, expected_value, project

CUDA = torch.device("cuda")
REDUCES: tuple[Reduce, ...] = ("min", "mean", "own")
SUPPORT = (-5.0, 5.0)
Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def batch(critics: int, rows: int, atoms: int, targets: int = 2, low: float = -5.0, high: float = 5.0) -> Batch:
    """Logits, next logits, shift, discount and weight: all discounts, shifts to beyond the support, some weights 0."""
    shift = 0.7 * (high - low) * torch.randn(rows)
    discount = torch.rand(rows).sqrt()
    usual = torch.tensor([0.0, 1.0, 0.99, 0.97, 0.5, 1e-3, 1e-30, 0.25])
    discount[: len(usual)] = usual[:rows]
    weight = torch.rand(rows) * (torch.rand(rows) < 0.9)
    return 2 * torch.randn(critics, rows, atoms), 2 * torch.randn(targets, rows, atoms), shift, discount, weight


def moved(p: list[float], shift: float, discount: float, low: float, high: float) -> list[float]:
    """Algorithm 1 of Bellemare et al. 2017, for one distribution, scattering."""
    width = (high - low) / (len(p) - 1)
    result = [0.0] * len(p)
    for i, mass in enumerate(p):
        place = (min(max(shift + discount * (low + i * width), low), high) - low) / width
        below, above = math.floor(place), math.ceil(place)
        if below == above:
            result[below] += mass
        else:
            result[below] += mass * (above - place)
            result[above] += mass * (place - below)
    return result


def slow_loss(inputs: Batch, low: float, high: float, reduce: Reduce) -> tuple[float, list[float], Tensor]:
    """Loss, values and the gradient ``[C, B, K]``, in Python."""
    logits, next_logits, *rest = (t.double().cpu() for t in inputs)
    shift, discount, weight = (t.tolist() for t in rest)
    critics, rows, atoms = logits.shape
    support = torch.linspace(low, high, atoms, dtype=torch.float64)
    p, q = next_logits.softmax(-1), logits.softmax(-1)
    loss, gradient = 0.0, torch.zeros_like(logits)
    for b in range(rows):
        means = [float((dist * support).sum()) for dist in p[:, b]]
        projected = [moved(dist.tolist(), shift[b], discount[b], low, high) for dist in p[:, b]]
        for c in range(critics):
            if reduce == "min":
                target = projected[means.index(min(means))]
            elif reduce == "mean":
                target = [sum(masses) / len(masses) for masses in zip(*projected, strict=True)]
            else:
                target = projected[c]
            wanted = torch.tensor(target, dtype=torch.float64)
            loss -= weight[b] / rows * float((wanted * q[c, b].log()).sum())
            gradient[c, b] = weight[b] / rows * (q[c, b] - wanted)
    return loss, [float((q[c] * support).sum(-1).mean()) for c in range(critics)], gradient


def run(inputs: Batch, low: float, high: float, reduce: Reduce, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, values and gradient."""
    logits = inputs[0].clone().requires_grad_()
    loss, values = categorical_loss(logits, *inputs[1:], low, high, reduce)
    (scale * loss).backward()
    assert logits.grad is not None
    assert not values.requires_grad
    return loss.detach(), values, logits.grad


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize(("critics", "targets"), [(2, 2), (1, 1), (3, 3), (1, 2)])
@pytest.mark.parametrize("atoms", [2, 11, 51])
def test_loss_values_and_gradient_equal_the_slow_reference(
    reduce: Reduce, critics: int, targets: int, atoms: int
) -> None:
    if reduce == "own" and critics != targets:
        pytest.skip("refused, as another test shows")
    low, high = -3.0, 7.0
    inputs = batch(critics, 24, atoms, targets, low, high)
    wide = tuple(t.double() for t in inputs)
    loss, values, gradient = run(wide, low, high, reduce)  # type: ignore[arg-type]
    expected, means, slope = slow_loss(inputs, low, high, reduce)
    assert float(loss) == pytest.approx(expected, rel=1e-10)
    assert values.tolist() == pytest.approx(means, rel=1e-10)
    torch.testing.assert_close(gradient, slope, rtol=1e-9, atol=1e-14)
    loss, values, gradient = run(inputs, low, high, reduce)
    assert loss.dtype == values.dtype == torch.float32
    assert error(loss, torch.tensor(expected)) < 1e-5
    assert error(gradient, slope) < 1e-5


@pytest.mark.parametrize("reduce", REDUCES)
def test_gradient_is_that_of_autograd_and_none_reaches_the_targets(reduce: Reduce) -> None:
    inputs = [t.double().requires_grad_() for t in batch(2, 6, 7)]
    loss, _ = categorical_loss(*inputs, *SUPPORT, reduce)  # type: ignore[arg-type, call-arg, misc]
    loss.backward()
    assert all(t.grad is None for t in inputs[1:])
    assert torch.autograd.gradcheck(
        lambda logits: categorical_loss(logits, *inputs[1:], *SUPPORT, reduce)[0],  # type: ignore[call-arg, arg-type]
        inputs[0].detach().requires_grad_(),
    )


def test_min_learns_from_the_lower_critic_of_each_sample() -> None:
    _, next_logits, shift, discount, weight = batch(2, 30, 21)
    lowest = expected_value(next_logits, *SUPPORT).argmin(0)
    assert 0 < int(lowest.sum()) < 30  # either is the lower one somewhere
    logits = torch.randn(1, 30, 21)
    for b in range(30):
        one = [t[b : b + 1] for t in (shift, discount, weight)]
        both = categorical_loss(logits[:, b : b + 1], next_logits[:, b : b + 1], *one, *SUPPORT, "min")
        alone = next_logits[lowest[b] : lowest[b] + 1, b : b + 1]
        torch.testing.assert_close(both, categorical_loss(logits[:, b : b + 1], alone, *one, *SUPPORT, "own"))


def test_projection_keeps_all_mass_and_inside_the_support_the_mean() -> None:
    low, high = SUPPORT
    p = torch.randn(40, 51, dtype=torch.float64).mul(2).softmax(-1)
    support = torch.linspace(low, high, 51, dtype=torch.float64)
    discount = torch.rand(40, dtype=torch.float64)
    free = (1 - discount) * high  # how far a shift can go before anything leaves the support
    shift = free * (2 * torch.rand(40, dtype=torch.float64) - 1)
    inside = project(p, shift, discount, low, high)
    torch.testing.assert_close(inside.sum(-1), torch.ones_like(shift))
    torch.testing.assert_close((inside * support).sum(-1), shift + discount * (p * support).sum(-1))
    assert (inside >= 0).all()
    outside = project(p, 40 * shift, discount, low, high)
    torch.testing.assert_close(outside.sum(-1), torch.ones_like(shift))


@pytest.mark.parametrize(("shift", "atom"), [(99.0, 10), (-99.0, 0), (math.inf, 10), (-math.inf, 0)])
@pytest.mark.parametrize("discount", [0.0, 0.3, 1.0])
def test_what_leaves_the_support_ends_in_the_outermost_atom(
    device: torch.device, shift: float, atom: int, discount: float
) -> None:
    assert target_of(device, shift, discount) == pytest.approx([float(i == atom) for i in range(11)], abs=1e-6)


def test_nothing_after_the_last_step_leaves_the_reward_alone(device: torch.device) -> None:
    assert target_of(device, 1.25, 0.0) == pytest.approx([0, 0, 0, 0, 0, 0, 0.75, 0.25, 0, 0, 0], abs=1e-6)
    assert target_of(device, 2.0, 0.0) == pytest.approx([0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], abs=1e-6)


def test_a_shift_by_whole_atoms_moves_the_distribution_as_it_is(device: torch.device) -> None:
    p = first_target()
    assert target_of(device, 0.0, 1.0) == pytest.approx(p, abs=1e-6)
    assert target_of(device, 2.0, 1.0) == pytest.approx([0, 0, *p[:8], p[8] + p[9] + p[10]], abs=1e-6)
    assert target_of(device, -1.0, 1.0) == pytest.approx([p[0] + p[1], *p[2:], 0], abs=1e-6)


def first_target() -> list[float]:
    p: list[float] = torch.arange(11.0).sin().softmax(0).tolist()
    return p


def target_of(device: torch.device, shift: float, discount: float) -> list[float]:
    """What a critic of 11 atoms one apart learns: where its probabilities are known, the gradient tells."""
    logits = torch.zeros(1, 1, 11, device=device, requires_grad=True)
    next_logits = torch.arange(11.0, device=device).sin().view(1, 1, 11)
    numbers = [torch.full((1,), x, device=device) for x in (shift, discount, 1.0)]
    loss, _ = categorical_loss(logits, next_logits, *numbers, *SUPPORT, "own")
    loss.backward()
    assert logits.grad is not None
    assert float(loss.detach()) == pytest.approx(math.log(11), rel=1e-5)  # the mass is 1
    found: list[float] = (1 / 11 - logits.grad).flatten().tolist()
    return found


@pytest.mark.parametrize("shape", [(7,), (2, 300, 51), (3, 101), (2, 5, 251), (4, 2)])
def test_expected_value_and_its_gradient(device: torch.device, shape: tuple[int, ...]) -> None:
    leaves = [torch.randn(shape, device=device, requires_grad=True) for _ in range(2)]
    leaves[1] = leaves[0].detach().double().requires_grad_()
    atoms = torch.linspace(-2, 6, shape[-1], device=device, dtype=torch.float64)
    got, expected = expected_value(leaves[0], -2.0, 6.0), leaves[1].softmax(-1) @ atoms
    upstream = torch.randn(shape[:-1], device=device)
    got.backward(upstream)
    expected.backward(upstream.double())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-5, atol=1e-5, check_dtype=False)


def test_impossible_input_is_refused() -> None:
    logits, next_logits, *rest = batch(2, 4, 5)
    for message, change in {
        "support": {"high": -5.0},
        "reduce": {"reduce": "max"},
        "next_logits": {"logits": logits[:1], "reduce": "own"},
        "discount": {"discount": rest[1].unsqueeze(1)},
    }.items():
        names = ("logits", "next_logits", "shift", "discount", "weight", "low", "high", "reduce")
        given = dict(zip(names, (logits, next_logits, *rest, *SUPPORT, "min"), strict=True))
        with pytest.raises(ValueError, match=message):
            categorical_loss(**{**given, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("critic", [0, -1])
def test_loss_is_not_finite_where_an_input_is_not(
    device: torch.device, place: int, reduce: Reduce, critic: int
) -> None:
    inputs = [t.to(device) for t in batch(2, 10, 11)]
    inputs[place][critic if place < 2 else slice(None)].view(-1)[3] = torch.nan
    loss, _ = categorical_loss(*inputs, *SUPPORT, reduce)  # type: ignore[arg-type, call-arg, misc]
    assert not torch.isfinite(loss)


@pytest.mark.gpu
@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize(("low", "high"), [SUPPORT, (-10.0, 0.5), (0.0, 500.0)])
@pytest.mark.parametrize(
    ("critics", "rows", "atoms"), [(2, 2048, 101), (2, 777, 51), (2, 300, 251), (1, 64, 2), (3, 5, 33), (2, 1, 101)]
)
def test_kernel_is_right(critics: int, rows: int, atoms: int, low: float, high: float, reduce: Reduce) -> None:
    inputs = batch(critics, rows, atoms, critics, low, high)
    got = run(tuple(t.to(CUDA) for t in inputs), low, high, reduce, 1.5)  # type: ignore[arg-type]
    expected = run(tuple(t.double() for t in inputs), low, high, reduce, 1.5)  # type: ignore[arg-type]
    for a, b in zip(got, expected, strict=True):
        assert error(a, b) < 2e-5
    again = run(tuple(t.to(CUDA) for t in inputs), low, high, reduce, 1.5)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@pytest.mark.gpu
def test_bfloat16_is_only_how_logits_and_their_gradient_are_stored() -> None:
    inputs = batch(2, 500, 101)
    logits, next_logits = (t.to(CUDA, torch.bfloat16) for t in inputs[:2])
    rest = [t.to(CUDA) for t in inputs[2:]]
    got = run((logits, next_logits, *rest), *SUPPORT, "min")  # type: ignore[arg-type]
    expected = run((logits.float(), next_logits.float(), *rest), *SUPPORT, "min")  # type: ignore[arg-type]
    assert got[2].dtype == torch.bfloat16
    torch.testing.assert_close(got[:2], expected[:2])
    torch.testing.assert_close(got[2], expected[2].bfloat16(), rtol=1e-2, atol=0)
    torch.testing.assert_close(expected_value(logits, *SUPPORT), expected_value(logits.float(), *SUPPORT))


@pytest.mark.gpu
def test_a_recorded_loss_computes_what_a_plain_one_does() -> None:
    inputs = [t.to(CUDA) for t in batch(2, 512, 101)]
    logits = inputs[0].requires_grad_()

    def step() -> list[Tensor]:
        loss, values = categorical_loss(logits, *inputs[1:], *SUPPORT, "min")  # type: ignore[arg-type, call-arg]
        value = expected_value(logits, *SUPPORT)
        return [loss, values, value, *torch.autograd.grad(loss - value.mean(), [logits])]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        plain = [t.detach().clone() for t in step()]
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = step()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(plain, recorded, strict=True))
