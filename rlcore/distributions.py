"""Action distributions and the network heads that produce them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LOG_2PI = math.log(2 * math.pi)


class Gaussian(NamedTuple):
    """Independent normal distributions over ``A`` action dimensions; ``std`` is positive."""

    mean: Tensor  # [..., A]
    std: Tensor  # [..., A]

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
        """Differential entropy in nats, summed over dimensions, ``[...]``."""
        return (self.std.log() + 0.5 * (1 + LOG_2PI)).sum(-1)

    def kl(self, new: Gaussian) -> Tensor:
        """KL(self || new) in nats, closed form, ``[...]``."""
        ratio = self.std / new.std
        shift = (self.mean - new.mean) / new.std
        return (0.5 * (ratio * ratio + shift * shift - 1) - ratio.log()).sum(-1)


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


Distribution = Gaussian | Categorical


class GaussianHead(nn.Module):
    """Linear mean, and a standard deviation that cannot reach zero, change sign or overflow.

    Args:
        features: size of the input.
        actions: A.
        init_std: standard deviation at the start.
        min_std: floor, approached smoothly.
        max_std: ceiling.
        state_dependent: a deviation per state from a second linear layer, else one learned vector.
    """

    def __init__(
        self, features: int, actions: int, init_std: float, min_std: float, max_std: float, state_dependent: bool
    ) -> None:
        super().__init__()
        self.min_std = min_std
        self.max_std = max_std
        self.mean = nn.Linear(features, actions)
        # softplus is close to the identity for large values and never below zero, so the floor needs no clamp
        # whose gradient would vanish.
        raw = init_std - min_std + math.log(-math.expm1(min_std - init_std))
        self.raw_std: nn.Linear | nn.Parameter
        if state_dependent:
            self.raw_std = nn.Linear(features, actions)
            nn.init.zeros_(self.raw_std.weight)
            nn.init.constant_(self.raw_std.bias, raw)
        else:
            self.raw_std = nn.Parameter(torch.full((actions,), raw))

    def forward(self, features: Tensor) -> Gaussian:
        """Map features ``[..., F]`` to the action distribution."""
        mean = self.mean(features)
        raw = self.raw_std(features) if isinstance(self.raw_std, nn.Linear) else self.raw_std.expand_as(mean)
        return Gaussian(mean, (self.min_std + F.softplus(raw)).clamp(max=self.max_std))


class CategoricalHead(nn.Module):
    """Linear logits over K choices."""

    def __init__(self, features: int, actions: int) -> None:
        super().__init__()
        self.mean = nn.Linear(features, actions)

    def forward(self, features: Tensor) -> Categorical:
        """Map features ``[..., F]`` to the action distribution."""
        return Categorical(F.log_softmax(self.mean(features), dim=-1))
