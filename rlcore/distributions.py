"""Action distributions and the network heads that produce them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlcore.dispatch import accelerated

LOG_2PI = math.log(2 * math.pi)


class Gaussian(NamedTuple):
    """Independent normal distributions over ``A`` action dimensions; ``std`` is positive."""

    mean: Tensor  # [..., A]
    std: Tensor  # [..., A], or [A] for all

    @property
    def mode(self) -> Tensor:
        """Most likely action, ``[..., A]``."""
        return self.mean

    def sample(self) -> Tensor:
        """Draw from the device's default generator, ``[..., A]``."""
        return self.mean + self.std * torch.randn_like(self.mean)

    def log_prob(self, action: Tensor) -> Tensor:
        """Log density of ``action``, summed over dimensions, ``[...]``."""
        z = (action - self.mean) / self.std
        return (-0.5 * (z * z + LOG_2PI) - self.std.log()).sum(-1)

    def entropy(self) -> Tensor:
        """Differential entropy in nats, summed over dimensions, ``[...]``; a scalar with one ``std`` for all."""
        return (self.std.log() + 0.5 * (1 + LOG_2PI)).sum(-1)

    def kl(self, new: Gaussian) -> Tensor:
        """KL(self || new) in nats, closed form, ``[...]``."""
        ratio = self.std / new.std
        shift = (self.mean - new.mean) / new.std
        return (0.5 * (ratio * ratio + shift * shift - 1) - ratio.log()).sum(-1)

    def backward(self, action: Tensor, by_log_prob: Tensor, by_entropy: Tensor | None) -> tuple[Tensor, Tensor]:
        """Gradients by mean and deviation, of one ``std`` for all; see ``Categorical.backward``."""
        z, outer = (action - self.mean) / self.std, by_log_prob.unsqueeze(-1)
        by_z = -(outer * z)
        by_std = outer.expand_as(z).neg().flatten(0, -2).sum(0) / self.std
        if by_entropy is not None:
            by_std = by_entropy / self.std + by_std
        return -(by_z / self.std), by_std + (-by_z * (z / self.std)).flatten(0, -2).sum(0)


class Categorical(NamedTuple):
    """One of K choices; ``log_probs`` are normalized."""

    log_probs: Tensor  # [..., K]

    @property
    def mode(self) -> Tensor:
        """Most likely choice, ``[...]`` int64."""
        return self.log_probs.argmax(-1)

    def sample(self) -> Tensor:
        """Draw by the Gumbel-max trick, which needs no host synchronization, ``[...]`` int64."""
        exponential = torch.empty_like(self.log_probs).exponential_()
        return (self.log_probs - exponential.log()).argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Log probability of choices ``[...]``."""
        return self.log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """Entropy in nats, ``[...]``."""
        return -(self.log_probs.exp() * self.log_probs).sum(-1)

    def kl(self, new: Categorical) -> Tensor:
        """KL(self || new) in nats, ``[...]``."""
        return (self.log_probs.exp() * (self.log_probs - new.log_probs)).sum(-1)

    def backward(self, action: Tensor, by_log_prob: Tensor, by_entropy: Tensor | None) -> tuple[Tensor]:
        """Gradient by the parameters, in the order and to the bits of autograd.

        Args:
            action: ``[...]``, whose ``log_prob`` there is a gradient by.
            by_log_prob: ``[...]``, that gradient.
            by_entropy: that by ``entropy``, of its shape; None: there is none.

        Returns:
            One ``[..., K]`` for each parameter.
        """
        place, gradient = action.unsqueeze(-1), by_log_prob.unsqueeze(-1)
        if by_entropy is None:
            return (torch.zeros_like(self.log_probs).scatter_(-1, place, gradient),)
        p, outer = self.log_probs.exp(), -by_entropy.unsqueeze(-1)
        return ((outer * p + outer * self.log_probs * p).scatter_add_(-1, place, gradient),)


class MultiCategorical(NamedTuple):
    """One of K choices in each of D dimensions, independently; those of fewer choices are filled with impossible ones.

    ``log_probs`` are normalized in each dimension.
    """

    log_probs: Tensor  # [..., D, K]

    @property
    def mode(self) -> Tensor:
        """Most likely choices, ``[..., D]`` int64."""
        return self.log_probs.argmax(-1)

    def sample(self) -> Tensor:
        """Draw by the Gumbel-max trick, ``[..., D]`` int64."""
        return Categorical(self.log_probs).sample()

    def log_prob(self, action: Tensor) -> Tensor:
        """Log probability of choices ``[..., D]``, summed over dimensions, ``[...]``."""
        return Categorical(self.log_probs).log_prob(action).sum(-1)

    def entropy(self) -> Tensor:
        """Entropy in nats, summed over dimensions, ``[...]``."""
        return Categorical(self.log_probs).entropy().sum(-1)

    def kl(self, new: MultiCategorical) -> Tensor:
        """KL(self || new) in nats, summed over dimensions, ``[...]``."""
        return Categorical(self.log_probs).kl(Categorical(new.log_probs)).sum(-1)


@accelerated("tanh_gaussian:tanh_gaussian")
def tanh_gaussian(
    output: Tensor, noise: Tensor, log_std_range: tuple[float, float], action_scale: Tensor, action_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Actions of a tanh-squashed Gaussian within bounds, and their log density, differentiably by ``output``.

    Haarnoja et al. 2018 (arXiv:1812.05905), appendix C, with the width of the bounds in the Jacobian.

    Args:
        output: ``[B, 2 A]``, means and logarithms of the standard deviations before the tanh.
        noise: ``[B, A]``, standard normal.
        log_std_range: bounds of the latter.
        action_scale: ``[A]``, half the width of the action bounds.
        action_bias: ``[A]``, their middle.

    Returns:
        Actions ``[B, A]``, and their log density ``[B]`` in the env's action units.
    """
    mean, log_std = output.chunk(2, -1)
    log_std = log_std.clamp(*log_std_range)
    raw = mean + log_std.exp() * noise
    # log(1 - tanh(raw)^2) in a form that does not overflow.
    slope = action_scale.log() + 2 * (math.log(2) - raw - F.softplus(-2 * raw))
    # The Gaussian's, whose deviation from the mean is known to be the noise.
    density = -0.5 * (noise * noise + LOG_2PI) - log_std - slope
    return action_bias + action_scale * torch.tanh(raw), density.sum(-1)


def sample_tanh_gaussian(
    output: Tensor, log_std_range: tuple[float, float], action_scale: Tensor, action_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """``tanh_gaussian`` with noise from the device's default generator: actions ``[B, A]`` and log density ``[B]``."""
    kind = torch.float64 if output.dtype == torch.float64 else torch.float32
    noise = torch.randn(len(output), output.shape[1] // 2, device=output.device, dtype=kind)
    return tanh_gaussian(output, noise, log_std_range, action_scale, action_bias)


Distribution = Gaussian | Categorical | MultiCategorical


def unstacked(distribution: Distribution) -> Distribution:
    """That of a sequence of one step, without the dimension of steps; a deviation for all states ``[A]`` has none."""
    return type(distribution)(*(part.squeeze(0) if part.dim() > 1 else part for part in distribution))


IMPOSSIBLE = -1e8
"""Logit of what cannot be chosen: its probability is exactly 0, and 0 times its logarithm is 0 and not NaN."""


StdType = Literal["softplus", "log", "scalar"]
"""What is learned of a standard deviation: the number whose softplus it is, its logarithm, or itself."""


class GaussianHead(nn.Module):
    """Linear mean, and a standard deviation that cannot reach zero, change sign or overflow.

    ``linear`` is applied by the caller, which may fuse it with the layers before.

    Args:
        features: size of the input.
        actions: A.
        init_std: standard deviation at the start.
        min_std: floor, approached smoothly.
        max_std: ceiling.
        state_dependent: a standard deviation per state from the linear layer too, else one learned vector.
        std_type: what is learned. Adam moves that by about its step size, whatever the gradient: a deviation that is
            learned itself falls by as much, one of 0.3 by a quarter of it with softplus and a third with log.
    """

    def __init__(
        self,
        features: int,
        actions: int,
        init_std: float,
        min_std: float,
        max_std: float,
        state_dependent: bool,
        std_type: StdType = "softplus",
    ) -> None:
        super().__init__()
        self.kind = Gaussian
        self.actions, self.min_std, self.max_std, self.std_type = actions, min_std, max_std, std_type
        self.linear = nn.Linear(features, 2 * actions if state_dependent else actions)
        # A softplus is close to the identity for large values and never below zero, so the floor needs no clamp whose
        # gradient would vanish. A sharp one is the identity but for the neighborhood of the floor.
        self.sharpness = 20 / init_std if std_type == "scalar" else 1.0
        above = self.sharpness * (init_std - min_std)
        self.initial = (
            math.log(above) if std_type == "log" else (above + math.log(-math.expm1(-above))) / self.sharpness
        )
        self.raw_std = None if state_dependent else nn.Parameter(torch.full((actions,), self.initial))
        self.reset_std()

    @torch.no_grad()
    def reset_std(self) -> None:
        """Set a state-dependent deviation back to its start, as after the linear layer was initialized anew."""
        if self.raw_std is None:
            self.linear.weight[self.actions :] = 0.0
            self.linear.bias[self.actions :] = self.initial

    def forward(self, output: Tensor) -> Gaussian:
        """Turn the linear layer's output ``[..., A or 2A]`` into the action distribution."""
        if self.raw_std is None:
            mean, raw = output.chunk(2, -1)
        else:
            mean, raw = output, self.raw_std
        if self.std_type == "log":
            above = raw.clamp(max=math.log(self.max_std)).exp()  # before exp, whose overflow has no gradient
        else:
            above = F.softplus(raw, self.sharpness)
        return Gaussian(mean, (self.min_std + above).clamp(max=self.max_std))

    def backward(self, by_std: Tensor) -> Tensor:
        """Gradient by ``raw_std``, from that by one deviation for all ``[A]``; to the bits of autograd."""
        raw, limit = self.raw_std, math.log(self.max_std)
        assert raw is not None, "a deviation for each state is part of the output"
        above = raw.clamp(max=limit).exp() if self.std_type == "log" else F.softplus(raw, self.sharpness)
        by_std = torch.where(self.min_std + above <= self.max_std, by_std, 0.0)
        if self.std_type == "log":
            return torch.where(raw <= limit, by_std * above, 0.0)
        return torch.ops.aten.softplus_backward(by_std, raw, self.sharpness, 20)  # type: ignore[no-any-return]


class CategoricalHead(nn.Module):
    """Linear logits over choices; ``linear`` is applied by the caller.

    Args:
        features: size of the input.
        choices: K, or those of each dimension.
    """

    def __init__(self, features: int, choices: int | Sequence[int]) -> None:
        super().__init__()
        sizes = [choices] if isinstance(choices, int) else list(choices)
        self.linear = nn.Linear(features, sum(sizes))
        self.kind: type[Categorical | MultiCategorical] = Categorical if isinstance(choices, int) else MultiCategorical
        self.shape: tuple[int, int] | None = None if isinstance(choices, int) else (len(sizes), max(sizes))
        # Where in the output each dimension's choices stand; what fills it up is anywhere.
        places = [sum(sizes[:d]) + min(k, size - 1) for d, size in enumerate(sizes) for k in range(max(sizes))]
        filled = [[k >= size for k in range(max(sizes))] for size in sizes]
        self.register_buffer("places", torch.tensor(places), persistent=False)
        self.register_buffer("filled", torch.tensor(filled), persistent=False)

    places: Tensor  # [D * K]
    filled: Tensor  # [D, K] bool

    def forward(self, output: Tensor, mask: Tensor | None = None) -> Categorical | MultiCategorical:
        """Turn the linear layer's output into the action distribution.

        Args:
            output: ``[..., K]``, of all dimensions one after the other where there are several.
            mask: of the same shape, 0 for what must not be chosen now; a dimension of zeros alone is as one of ones.
        """
        if mask is not None:
            output = torch.where(mask > 0, output, IMPOSSIBLE)
        if self.shape is None:
            return Categorical(F.log_softmax(output, dim=-1))
        # By reshape: opset 11 of ONNX has no unflatten.
        logits = output.index_select(-1, self.places).reshape(*output.shape[:-1], *self.shape)
        # Further down than what a mask forbids: where it forbids all, what fills up stays impossible.
        return MultiCategorical(F.log_softmax(logits.masked_fill(self.filled, 2 * IMPOSSIBLE), dim=-1))

    def backward(self, distribution: Categorical, gradient: Tensor, mask: Tensor | None = None) -> Tensor:
        """Gradient by the output ``[..., K]`` of one dimension, from that by ``log_probs``; to the bits of autograd."""
        backward = torch.ops.aten._log_softmax_backward_data
        by_output: Tensor = backward(gradient, distribution.log_probs, -1, gradient.dtype)
        return by_output if mask is None else torch.where(mask > 0, by_output, 0.0)


def log_beta(shape: Tensor) -> Tensor:
    """Logarithm of the Beta function ``[P]`` of a and b ``[2, P]``."""
    return shape.lgamma().sum(0) - shape.sum(0).lgamma()


def beta_entropy_and_kl(shape: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy of Beta distributions, and their KL divergence from others, in nats, summed over all; a and b ``[2, P]``.

    By ``E[ln x] = psi(a) - psi(a + b)``, and the same of 1 - x with b.
    """
    mean_log = shape.digamma() - shape.sum(0).digamma()  # [2, P]
    entropy = log_beta(shape).sum() - ((shape - 1.0) * mean_log).sum()
    return entropy, (log_beta(other) - log_beta(shape)).sum() + ((shape - other) * mean_log).sum()
