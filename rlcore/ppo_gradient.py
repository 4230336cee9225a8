"""The gradient of PPO's loss written out, for perceptrons on a CPU.

Autograd takes longer over each operator than a processor takes over some hundred samples. Products, functions and sums
are PyTorch's here, the arithmetic between them NumPy's, which begins sooner. Every number is computed as autograd
computes it, so that the bits are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlcore.critics import Critic
from rlcore.dispatch import written_out_runs
from rlcore.distributions import CategoricalHead, Gaussian, GaussianHead
from rlcore.optimizer import FlatAdam
from rlcore.perceptrons import Perceptron, is_perceptron, unhindered
from rlcore.policies import ActorPolicy
from rlcore.returns import standardized
from rlcore.rollout import Samples
from rlcore.types import Metrics

_MOST = 2**15  # samples; with more PyTorch adds up the parts of a sum in another order, and autograd costs little


def written_out(
    policy: ActorPolicy, critic: Critic, optimizers: Sequence[FlatAdam], settings: dict[str, Any]
) -> PPOGradient | None:
    """The gradient for these networks; None where they are others than it is written for.

    It is for a CPU, one task, perceptrons of their own, actions that are choices or have one deviation for all states,
    and a value of the reward alone, without a loss of bounds.

    Args:
        policy: whose distribution the loss is of.
        critic: whose value it is of.
        optimizers: of their parameters.
        settings: of ``losses.ppo_loss``.
    """
    head, networks = policy.head, (policy.trunk, critic.trunk)
    simple = head.shape is None if isinstance(head, CategoricalHead) else head.raw_std is not None
    own = policy.trunk is not critic.trunk and critic.value.out_features == 1
    here = optimizers[0].value.is_cpu and settings["bounds"][0] == 0 and policy.tasks is None
    if here and simple and own and all(map(is_perceptron, networks)):
        return PPOGradient(policy, critic, optimizers, settings)
    return None


class PPOGradient:
    """What autograd makes of ``losses.ppo_loss``; see ``written_out``."""

    def __init__(
        self, policy: ActorPolicy, critic: Critic, optimizers: Sequence[FlatAdam], settings: dict[str, Any]
    ) -> None:
        self.actor, self.critic = Perceptron(policy.trunk, policy.head.linear), Perceptron(critic.trunk, critic.value)
        self.head, self.mask, self.optimizers, self.settings = policy.head, policy.mask, optimizers, settings

    def takes(self, samples: Samples) -> bool:
        """Whether it is to be used: no more samples and terms than it is for, and all parameters to be learned."""
        alone = samples.signal_returns is None and samples.cost_advantage is None  # no other terms in the loss
        few = samples.weight.numel() <= _MOST
        return alone and few and written_out_runs(samples.weight) and all(map(unhindered, self.optimizers))

    @torch.no_grad()
    @np.errstate(all="ignore")
    def __call__(self, samples: Samples) -> tuple[Tensor, Metrics]:
        """Leave gradients in the optimizers' buffers, and return the loss and its metrics."""
        clip_range, entropy_coef = (float(self.settings[name]) for name in ("clip_range", "entropy_coef"))  # scheduled
        shape, mask = samples.weight.shape, None if self.mask is None else samples.raw[self.mask]
        hidden = self.actor.forward(samples.actor_obs)
        valued = self.critic.forward(samples.actor_obs if samples.critic_obs is None else samples.critic_obs)
        output = hidden[-1].view(*shape, -1)
        distribution = self.head(output) if mask is None else self.head(output, mask)
        entropy, weight, returns = distribution.entropy(), samples.weight.numpy(), samples.returns.numpy()
        of_all, apart = samples.advantage, self.settings["standardize_advantage"]
        advantage = (standardized(of_all, samples.weight > 0) if apart else of_all).numpy()
        one, number = weight.dtype.type(1), weight.dtype.type(weight.size)
        terms = np.empty((5, weight.size), weight.dtype)
        losses, errors, entropies, divergences, outside = terms.reshape(5, *shape)

        # By the log density: no gradient where the clipped term is the lower one.
        ratio = (distribution.log_prob(samples.action) - samples.log_prob).exp_().numpy()
        gain, bounded = ratio * advantage, np.minimum(np.maximum(ratio, 1 - clip_range), 1 + clip_range) * advantage
        lower = gain > bounded
        np.multiply(weight, -np.where(lower, bounded, gain), out=losses)
        by_log_prob = np.where(lower, 0, weight * (-one / number)) * advantage * ratio
        np.multiply(weight, np.abs(ratio - 1) > clip_range, out=outside)

        # By the value: none where the larger error is that of a value that is held back.
        value = valued[-1].view(shape).numpy()
        error = value - returns
        squared, each = error * error, weight * (one * self.settings["value_coef"] / number)
        by_value = each * (2 * error)
        if self.settings["clip_value_loss"]:
            before = samples.value.numpy()
            moved = value - before
            held = np.minimum(np.maximum(moved, -clip_range), clip_range)
            error = before + held - returns
            other = error * error
            larger = other > squared
            squared = np.where(larger, other, squared)
            by_value = np.where(larger, np.where(held == moved, each * (2 * error), 0), by_value)
        np.multiply(weight, squared, out=errors)

        by_entropy = None
        if entropy_coef != 0:
            price = -one * entropy_coef
            by_entropy = torch.as_tensor(weight * (price / number) if entropy.dim() > 0 else price)
        gradients = distribution.backward(samples.action, torch.from_numpy(by_log_prob), by_entropy)
        for optimizer in self.optimizers:
            optimizer.gather()
        by_output = gradients[0]
        if isinstance(self.head, GaussianHead):
            assert self.head.raw_std is not None and self.head.raw_std.grad is not None
            self.head.raw_std.grad.copy_(self.head.backward(gradients[1]))
        else:
            by_output = self.head.backward(distribution, by_output, mask)
        self.actor.backward(hidden, by_output.view_as(hidden[-1]))
        self.critic.backward(valued, torch.from_numpy(by_value).view_as(valued[-1]))

        np.multiply(weight, entropy.numpy(), out=entropies)
        np.multiply(weight, samples.old.kl(distribution).numpy(), out=divergences)
        means = torch.from_numpy(terms).mean(1)
        numbers = means.numpy()
        if entropy.dim() == 0:  # the same for all
            numbers[2] = entropy.numpy()
        loss = numbers[:1] + self.settings["value_coef"] * numbers[1:2] - entropy_coef * numbers[2:3]
        names = ("loss/policy", "loss/value", "policy/entropy", "policy/kl", "policy/clip_fraction")
        metrics = dict(zip(names, means.unbind(), strict=True))
        if isinstance(samples.old, Gaussian):
            metrics["policy/std"] = samples.old.std.mean()
        return torch.from_numpy(loss).view(()), metrics
