"""Log-probabilities, entropies and KL against torch.distributions, closed forms and sampling."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, Normal, kl_divergence

from rlcore.distributions import Categorical, CategoricalHead, Gaussian, GaussianHead, MultiCategorical, StdType


def gaussians() -> tuple[Gaussian, Gaussian]:
    g = torch.Generator().manual_seed(0)
    mean, std = torch.randn(2, 50, 6, generator=g, dtype=torch.float64), torch.rand(2, 50, 6, generator=g) * 2 + 0.05
    return Gaussian(mean[0], std[0].double()), Gaussian(mean[1], std[1].double())


def test_gaussian_agrees_with_torch_distributions() -> None:
    p, q = gaussians()
    reference_p, reference_q = Independent(Normal(*p), 1), Independent(Normal(*q), 1)
    action = torch.randn(50, 6, dtype=torch.float64)
    torch.testing.assert_close(p.log_prob(action), reference_p.log_prob(action))
    torch.testing.assert_close(p.entropy(), reference_p.entropy())
    torch.testing.assert_close(p.kl(q), kl_divergence(reference_p, reference_q))


def test_gaussian_kl_is_zero_on_itself_and_known_for_a_shift() -> None:
    p, _ = gaussians()
    assert p.kl(p).abs().max() < 1e-12
    shifted = Gaussian(p.mean + p.std, p.std)  # one deviation in each of 6 dimensions: 6 * 1/2 nat
    torch.testing.assert_close(p.kl(shifted), torch.full((50,), 3.0, dtype=torch.float64))


def test_gaussian_samples_have_the_stated_moments() -> None:
    torch.manual_seed(0)
    p = Gaussian(torch.tensor([1.0, -2.0]).expand(200_000, 2), torch.tensor([0.5, 3.0]).expand(200_000, 2))
    x = p.sample()
    torch.testing.assert_close(x.mean(0), torch.tensor([1.0, -2.0]), rtol=0, atol=0.03)
    torch.testing.assert_close(x.std(0), torch.tensor([0.5, 3.0]), rtol=0.01, atol=0)


def test_categorical_agrees_with_torch_distributions() -> None:
    logits = torch.randn(2, 50, 5, dtype=torch.float64)
    p, q = (Categorical(x.log_softmax(-1)) for x in logits)
    reference_p, reference_q = (TorchCategorical(logits=x) for x in logits)
    action = torch.randint(0, 5, (50,))
    torch.testing.assert_close(p.log_prob(action), reference_p.log_prob(action))
    torch.testing.assert_close(p.entropy(), reference_p.entropy())
    torch.testing.assert_close(p.kl(q), kl_divergence(reference_p, reference_q))
    assert torch.equal(p.mode, logits[0].argmax(-1))


def test_categorical_samples_have_the_stated_frequencies() -> None:
    torch.manual_seed(0)
    probabilities = torch.tensor([0.7, 0.2, 0.1, 0.0])
    p = Categorical((probabilities + 1e-12).log().log_softmax(-1).expand(200_000, 4))
    frequency = torch.bincount(p.sample(), minlength=4) / 200_000
    torch.testing.assert_close(frequency, probabilities, rtol=0, atol=0.004)


def multi(seed: int, mask: torch.Tensor | None = None) -> tuple[MultiCategorical, list[TorchCategorical]]:
    """A distribution over 3, 2 and 4 choices, and the same as one of PyTorch's for each dimension."""
    torch.manual_seed(seed)
    logits = torch.randn(50, 9, dtype=torch.float64)
    distribution = CategoricalHead(8, (3, 2, 4))(logits, mask)
    assert isinstance(distribution, MultiCategorical)
    if mask is not None:
        logits = logits.masked_fill(mask == 0, -torch.inf)
    return distribution, [TorchCategorical(logits=part) for part in logits.split((3, 2, 4), -1)]


MASK = torch.tensor([1.0, 0, 1, 1, 1, 0, 0, 1, 1])


@pytest.mark.parametrize("mask", [None, MASK])
def test_several_choices_agree_with_torch_distributions(mask: torch.Tensor | None) -> None:
    (p, reference_p), (q, reference_q) = multi(0, mask), multi(1, mask)
    action = p.sample()
    assert action.shape == (50, 3) and action.dtype == torch.int64
    expected = torch.stack([part.log_prob(action[:, d]) for d, part in enumerate(reference_p)], -1).sum(-1)
    torch.testing.assert_close(p.log_prob(action), expected)
    entropy = [-(part.probs * part.probs.clamp(min=1e-300).log()).sum(-1) for part in reference_p]
    torch.testing.assert_close(p.entropy(), torch.stack(entropy).sum(0))
    divergence = [kl_divergence(a, b) for a, b in zip(reference_p, reference_q, strict=True)]
    torch.testing.assert_close(p.kl(q), torch.stack(divergence).sum(0))
    assert torch.equal(p.mode, torch.stack([part.probs.argmax(-1) for part in reference_p], -1))


@pytest.mark.parametrize("choices", [9, (3, 2, 4)])
def test_masked_choices_are_never_made_and_have_no_gradient(choices: int | tuple[int, ...]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(5000, 9, requires_grad=True)
    distribution = CategoricalHead(8, choices)(logits, MASK)
    action = distribution.sample()
    if isinstance(choices, tuple):
        action = action + torch.tensor([0, 3, 5])
    assert set(action.flatten().tolist()) == {0, 2, 3, 4, 7, 8}
    drawn = distribution.sample()
    (distribution.log_prob(drawn).sum() + distribution.entropy().sum() + distribution.kl(distribution).sum()).backward()  # type: ignore[arg-type,no-untyped-call]
    assert logits.grad is not None and torch.isfinite(logits.grad).all()
    assert (logits.grad[:, MASK == 0] == 0).all() and (logits.grad[:, MASK > 0] != 0).any()


def test_where_nothing_is_allowed_everything_is() -> None:
    p = CategoricalHead(8, 4)(torch.randn(3, 4), torch.zeros(4))
    torch.testing.assert_close(p.log_probs.exp(), torch.full((3, 4), 0.25))
    several = CategoricalHead(8, (3, 2, 4))(torch.randn(5000, 9), torch.tensor([1.0, 0, 1, 0, 0, 0, 0, 0, 0]))
    assert several.log_probs[:, 1].exp().tolist() == [[0.5, 0.5, 0, 0]] * 5000  # no choices that are none
    assert several.sample().amax(0).tolist() == [2, 1, 3]


STD_TYPES: tuple[StdType, ...] = ("softplus", "log", "scalar")


@pytest.mark.parametrize("std_type", STD_TYPES)
@pytest.mark.parametrize("state_dependent", [False, True])
@pytest.mark.parametrize("init_std", [0.02, 0.3, 1.0, 50.0])
def test_head_starts_at_the_configured_deviation(init_std: float, state_dependent: bool, std_type: StdType) -> None:
    head = GaussianHead(8, 3, init_std, 0.01, 100.0, state_dependent, std_type)
    distribution = head(head.linear(torch.randn(16, 8)))
    std = distribution.std.expand_as(distribution.mean)
    torch.testing.assert_close(std, torch.full((16, 3), init_std), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("std_type", STD_TYPES)
@pytest.mark.parametrize("raw", [-1e6, -100.0, 0.0, 100.0, 1e6])
def test_deviation_stays_positive_and_finite_whatever_the_parameter(raw: float, std_type: StdType) -> None:
    head = GaussianHead(8, 3, 1.0, 0.01, 100.0, False, std_type)
    assert head.raw_std is not None
    head.raw_std.data.fill_(raw)
    std = head(head.linear(torch.randn(4, 8))).std
    assert (std >= 0.01).all() and (std <= 100.0).all()
    std.sum().backward()
    assert head.raw_std.grad is not None and torch.isfinite(head.raw_std.grad).all()


@pytest.mark.parametrize(("std_type", "slope"), [("softplus", 1 - math.exp(-0.3)), ("log", 0.3), ("scalar", 1.0)])
def test_deviation_of_0_3_follows_its_parameter_as_its_type_says(std_type: StdType, slope: float) -> None:
    head = GaussianHead(8, 3, 1.0, 1e-6, 100.0, False, std_type)
    assert head.raw_std is not None
    low, high = -10.0, 10.0
    for _ in range(60):  # bisection
        head.raw_std.data.fill_((low + high) / 2)
        low, high = (
            ((low + high) / 2, high) if float(head(torch.zeros(3)).std[0].detach()) < 0.3 else (low, (low + high) / 2)
        )
    head(torch.zeros(3)).std.sum().backward()
    assert head.raw_std.grad is not None
    torch.testing.assert_close(head.raw_std.grad, torch.full((3,), slope), rtol=0.005, atol=0)


def test_state_dependent_deviation_depends_on_the_state_once_trained() -> None:
    head = GaussianHead(8, 3, 1.0, 0.01, 100.0, True)
    torch.nn.init.normal_(head.linear.weight)
    std = head(head.linear(torch.randn(16, 8))).std
    assert std.std(0).min() > 0.1


def test_uniform_categorical_head_entropy_is_log_k() -> None:
    head = CategoricalHead(8, 4)
    torch.nn.init.zeros_(head.linear.weight)
    torch.nn.init.zeros_(head.linear.bias)
    torch.testing.assert_close(head(head.linear(torch.randn(3, 8))).entropy(), torch.full((3,), math.log(4)))
