"""Losses of critics and actor against a loop over samples in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rlcore.dispatch import plain
from rlcore.losses import Reduce, actor_loss, td_loss

REDUCES: list[Reduce] = ["min", "mean", "own"]


def samples(critics: int, rows: int) -> list[Tensor]:
    """Values, next_values, reward, discount, weight, bonus; the last three samples have no weight."""
    weight = torch.rand(rows)
    weight[-3:] = 0
    return [*torch.randn(2, critics, rows), torch.randn(rows), torch.rand(rows), weight, torch.randn(rows)]


def chosen(each: list[float], reduce: Reduce, own: int) -> float:
    return {"min": min(each), "mean": sum(each) / len(each), "own": each[own]}[reduce]


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("with_bonus", [True, False])
def test_td_loss_is_a_loop_over_samples(reduce: Reduce, with_bonus: bool) -> None:
    values, next_values, reward, discount, weight, bonus = (t.double() for t in samples(3, 17))
    loss, mean = td_loss(values, next_values, reward, discount, weight, bonus if with_bonus else None, reduce)
    total = 0.0
    for i in range(17):
        for c in range(3):
            future = chosen(next_values[:, i].tolist(), reduce, c) + with_bonus * float(bonus[i])
            error = float(values[c, i]) - (float(reward[i]) + float(discount[i]) * future)
            total += float(weight[i]) * error**2 / 17
    assert float(loss) == pytest.approx(total)
    assert float(mean) == pytest.approx(float(values.mean()))


@pytest.mark.parametrize("reduce", REDUCES)
def test_actor_loss_is_a_loop_over_samples(reduce: Reduce) -> None:
    values, log_prob, weight = torch.randn(2, 9).double(), torch.randn(9).double(), torch.rand(9).double()
    weight[4] = 0
    loss, entropy = actor_loss(values, weight, reduce, log_prob, torch.tensor(0.3).double())
    plain, nothing = actor_loss(values, weight, reduce)
    climbed = [chosen(values[:, i].tolist(), "min" if reduce == "min" else "mean", 0) for i in range(9)]
    assert float(loss) == pytest.approx(
        sum(float(weight[i]) * (0.3 * float(log_prob[i]) - climbed[i]) for i in range(9)) / 9
    )
    assert float(plain) == pytest.approx(-sum(float(w) * value for w, value in zip(weight, climbed, strict=True)) / 9)
    assert float(entropy) == pytest.approx(-float((weight * log_prob).mean()))
    assert nothing == 0


def test_no_gradient_reaches_what_critics_are_to_learn() -> None:
    values, next_values = torch.randn(2, 2, 9).requires_grad_().unbind()
    values.retain_grad()
    next_values.retain_grad()
    reward, discount, weight = torch.rand(3, 9)
    td_loss(values, next_values, reward, discount, weight, None, "min")[0].backward()
    assert values.grad is not None and next_values.grad is None


def gradients(fn: Any, leaves: list[Tensor], *fixed: Any) -> list[Tensor]:
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    loss, other = fn(*leaves, *fixed)
    return [loss.detach(), other, *torch.autograd.grad(1.7 * loss, leaves)]


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize(("critics", "rows"), [(2, 256), (1, 5), (3, 3000)])
@pytest.mark.parametrize("with_bonus", [True, False])
def test_td_loss_kernel_is_right(
    reduce: Reduce, critics: int, rows: int, with_bonus: bool, kernel_device: torch.device
) -> None:
    values, *fixed = samples(critics, rows)
    fixed = fixed if with_bonus else fixed[:-1]
    end: list[Any] = [reduce] if with_bonus else [None, reduce]
    got = gradients(td_loss, [values.to(kernel_device)], *(t.to(kernel_device) for t in fixed), *end)
    again = gradients(td_loss, [values.to(kernel_device)], *(t.to(kernel_device) for t in fixed), *end)
    expected = gradients(plain(td_loss), [values.double()], *(t.double() for t in fixed), *end)
    for a, b, c in zip(got, expected, again, strict=True):
        torch.testing.assert_close(a.cpu().double(), b, rtol=1e-5, atol=1e-5 / rows)
        assert torch.equal(a, c)


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize(("critics", "rows"), [(2, 256), (1, 5), (3, 3000)])
@pytest.mark.parametrize("soft", [True, False])
def test_actor_loss_kernel_is_right(
    reduce: Reduce, critics: int, rows: int, soft: bool, kernel_device: torch.device
) -> None:
    values, log_prob, temperature = torch.randn(critics, rows), torch.randn(rows), torch.tensor(0.3)
    weight = samples(critics, rows)[4]
    values[:, 1] = 0.5  # equal ones share the gradient

    def run(fn: Any, kind: torch.dtype, device: torch.device) -> list[Tensor]:
        leaves = [t.to(device, kind) for t in ([values, log_prob] if soft else [values])]
        price, share = temperature.to(device, kind), weight.to(device, kind)
        if soft:
            return gradients(lambda v, p: fn(v, share, reduce, p, price), leaves)
        return gradients(lambda v: fn(v, share, reduce, None, None), leaves)

    got, again = (run(actor_loss, torch.float32, kernel_device) for _ in range(2))
    expected = run(plain(actor_loss), torch.float64, torch.device("cpu"))
    for a, b, c in zip(got, expected, again, strict=True):
        torch.testing.assert_close(a.cpu().double(), b, rtol=1e-5, atol=1e-6)
        assert torch.equal(a, c)


@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize("reduce", REDUCES)
def test_loss_is_not_finite_where_an_input_is_not(place: int, reduce: Reduce, kernel_device: torch.device) -> None:
    given = [t.to(kernel_device) for t in samples(2, 40)]
    given[place].view(-1)[-40] = torch.nan  # of the last critic, where there are two
    assert not torch.isfinite(td_loss(*given, reduce)[0])
    if place == 0:
        assert not torch.isfinite(actor_loss(given[0], torch.ones_like(given[4]), reduce)[0])
