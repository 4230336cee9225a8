"""Squashed Gaussians against the density of a transformed variable, by numbers in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import AffineTransform, Normal, TanhTransform, TransformedDistribution

from rlcore.dispatch import plain
from rlcore.distributions import sample_tanh_gaussian, tanh_gaussian

CUDA = torch.device("cuda")
RANGE = (-4.0, 1.0)


def inputs(rows: int, actions: int) -> tuple[Tensor, Tensor, Tensor]:
    """Output of a head, some of it beyond the bounds of the deviation, and action bounds."""
    output = torch.randn(rows, 2 * actions) * torch.tensor([1.5, 3.0]).repeat_interleave(actions)
    return output, torch.randn(actions), torch.rand(actions) * 3 + 0.1


def test_density_is_that_of_the_transformed_variable_and_noise_that_of_the_generator() -> None:
    output, bias, scale = (t.double() for t in inputs(200, 4))
    torch.manual_seed(4)
    action, log_prob = sample_tanh_gaussian(output, RANGE, scale, bias)
    torch.manual_seed(4)
    noise = torch.randn(200, 4, dtype=torch.float64)
    mean, log_std = output[:, :4], output[:, 4:].clamp(*RANGE)
    # Where tanh is not yet 1 in float64, whose inverse the other side needs.
    usual = (mean + log_std.exp() * noise).abs().amax(1) < 6
    assert int(usual.sum()) > 100
    base = Normal(mean, log_std.exp())
    expected = TransformedDistribution(base, [TanhTransform(), AffineTransform(bias, scale)]).log_prob(action)
    torch.testing.assert_close(log_prob[usual], expected.sum(1)[usual], rtol=1e-6, atol=1e-6)
    assert torch.isfinite(log_prob).all()
    torch.testing.assert_close(action, bias + scale * torch.tanh(mean + log_std.exp() * noise))


def test_gradient_of_action_and_density_is_that_of_their_differences_for_the_same_noise() -> None:
    _, bias, scale = (t.double() for t in inputs(6, 3))
    means, log_stds = torch.randn(6, 3).double(), torch.tensor([-5.0, -3.0, 0.0, 0.5, 0.9, 2.0]).double()
    output = torch.cat([means, log_stds.unsqueeze(1).expand(6, 3)], 1).requires_grad_()
    noise = torch.randn(6, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: tanh_gaussian(x, noise, RANGE, scale, bias), output)


@pytest.mark.gpu
@pytest.mark.parametrize(("rows", "actions"), [(8192, 37), (333, 1), (1, 6), (100, 8), (70, 130)])
@pytest.mark.parametrize("scale", [1.0, 40.0])  # of the means; the second saturates the tanh
def test_kernels_are_right(rows: int, actions: int, scale: float) -> None:
    output, bias, scale = inputs(rows, actions)
    output[:, :actions] *= scale
    upstream = torch.randn(rows, actions), torch.randn(rows)
    results = []
    for kind in (torch.float32, torch.float64):
        leaf = output.detach().to(CUDA, kind).clone().requires_grad_()
        bounds = [t.to(CUDA, kind) for t in (scale, bias)]
        torch.manual_seed(2)
        if kind == torch.float32:
            action, log_prob = sample_tanh_gaussian(leaf, RANGE, *bounds)
        else:
            noise = torch.randn(rows, actions, device=CUDA).double()
            action, log_prob = plain(tanh_gaussian)(leaf, noise, RANGE, *bounds)
        torch.autograd.backward([action, log_prob], [t.to(CUDA, kind) for t in upstream])
        results.append([action.detach(), log_prob.detach(), leaf.grad])
    for got, expected in zip(*results, strict=True):
        assert got is not None and expected is not None
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=2e-5, atol=2e-5 * float(expected.abs().mean()) + 1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("place", [0, 3])
def test_log_density_is_not_finite_where_an_input_is_not(place: int) -> None:
    output, bias, scale = (t.to(CUDA) for t in inputs(10, 3))
    output[4, place] = torch.nan
    _, log_prob = sample_tanh_gaussian(output, RANGE, scale, bias)
    assert torch.isfinite(log_prob).tolist() == [row != 4 for row in range(10)]
