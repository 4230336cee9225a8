"""What a step of adaptation of many tasks at once needs: a network for each, its loss, and a baseline."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rlcore.activations import MODULES
from rlcore.distributions import Distribution, GaussianHead
from rlcore.networks import MLP
from rlcore.policies import ActorPolicy
from rlcore.returns import gae
from rlcore.rollout import Samples

_RIDGE = 1e-5  # of the least squares, per sample


class TaskNetwork:
    """A policy's network with parameters of each task: products of M matrices at once.

    Args:
        policy: whose hidden layers and head it has.
    """

    def __init__(self, policy: ActorPolicy) -> None:
        hidden = policy.trunk.mlp
        assert isinstance(hidden, MLP)
        layers = [*hidden.linear(), policy.head.linear]
        self.parameters: list[nn.Parameter] = [p for layer in layers for p in layer.parameters()]
        """Weight and bias of each layer, and the deviation where it is one for all states."""
        self.head, self.layers, self.activation = policy.head, len(layers), MODULES[policy.config.actor.activation]()
        self.own_std = isinstance(self.head, GaussianHead) and self.head.raw_std is not None
        if self.own_std:
            self.parameters.append(self.head.raw_std)  # type: ignore[arg-type]

    def __call__(self, parameters: Sequence[Tensor], x: Tensor) -> Distribution:
        """Distributions of actions for normalized observations ``[M, B, O]``, by parameters ``[M, ...]`` each."""
        for layer in range(self.layers):
            weight, bias = parameters[2 * layer : 2 * layer + 2]  # [M, out, in], [M, out]
            x = torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
            if layer < self.layers - 1:
                x = self.activation(x)
        if self.own_std:
            return functional_call(self.head, {"raw_std": parameters[-1].unsqueeze(1)}, (x,))  # type: ignore[no-any-return]
        return self.head(x)  # type: ignore[no-any-return]


def surrogate(distribution: Distribution, samples: Samples) -> Tensor:
    """The loss of each task that a step of adaptation follows, ``[M]``, of samples ``[M, B]``.

    The mean of -ratio * advantage, whose ratio of probabilities is 1 where the data is from these parameters: its first
    derivative is the policy gradient, and its second the low-variance curvature of ProMP (arXiv:1810.06784, section 5),
    which the logarithm in the place of the ratio would get wrong.
    """
    ratio = (distribution.log_prob(samples.action) - samples.log_prob).exp()
    return -(samples.weight * ratio * samples.advantage).mean(1)


def advantages(
    obs: Tensor, reward: Tensor, done: Tensor, learned: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Advantages by a baseline of each task, standardized over the task, and the weights of samples.

    The baseline is linear in the observation, its square and powers of the time (Duan et al. 2016, arXiv:1604.06778),
    fitted to the task's own returns by least squares: nothing that would have to be adapted. Episodes and rollouts end
    without a bootstrap, as the baseline knows the time that is left.

    Args:
        obs: ``[H, K, M, R, O]``: H steps of K rollouts in R envs of M tasks.
        reward: ``[H, K, M, R]``.
        done: bool, the same; where an episode ends.
        learned: bool, the same; which steps count.
        gamma: discount per step.
        gae_lambda: of generalized advantage estimation.

    Returns:
        ``[K, M, H * R]`` each; the weights have a mean of 1 over each task.
    """
    done = torch.cat((done[:-1], torch.ones_like(done[:1])))
    none = torch.zeros_like(reward)

    def estimated(values: Tensor, following: Tensor, factor: float) -> Tensor:
        parts = (reward.flatten(1), values.flatten(1), following.flatten(1), done.flatten(1))  # [H, K * M * R] each
        return gae(*parts, gamma, factor)[0].view_as(reward)

    time = torch.linspace(0.0, 1.0, len(obs), device=obs.device, dtype=obs.dtype).view(-1, 1, 1, 1, 1)
    time = time.expand(*obs.shape[:-1], 1)
    features = torch.cat((obs, obs.square(), time, time.square(), time**3, torch.ones_like(time)), -1)
    x = joined(features).double()  # [K, M, H * R, F]
    counted = joined(learned).double().unsqueeze(-1)
    weighted = (x * counted).transpose(-1, -2)  # [K, M, F, H * R]
    ridge = _RIDGE * x.shape[2] * torch.eye(x.shape[-1], device=x.device, dtype=x.dtype)
    root, _ = torch.linalg.cholesky_ex(weighted @ x + ridge)
    returns = joined(estimated(none, none, 1.0)).double().unsqueeze(-1)
    half = torch.linalg.solve_triangular(root, weighted @ returns, upper=False)
    solution = torch.linalg.solve_triangular(root.mT, half, upper=True)  # by libraries that a CUDA graph may record
    fitted = (x @ solution).to(reward.dtype)  # [K, M, H * R, 1]
    values = fitted.view(*fitted.shape[:2], len(obs), -1).movedim(2, 0)  # [H, K, M, R]
    following = torch.cat((values[1:], none[:1])).masked_fill(done, 0.0)
    advantage = joined(estimated(values, following, gae_lambda))
    weight = (counted / counted.mean(2, keepdim=True).clamp(min=1e-6)).squeeze(-1).to(reward.dtype)
    mean = (weight * advantage).mean(2, keepdim=True)
    std = (weight * (advantage - mean).square()).mean(2, keepdim=True).sqrt()
    return (advantage - mean) / (std + 1e-8), weight


def joined(x: Tensor) -> Tensor:
    """``[H, K, M, R, ...]`` as samples of each task, ``[K, M, H * R, ...]``."""
    return x.movedim(0, 2).flatten(2, 3)
