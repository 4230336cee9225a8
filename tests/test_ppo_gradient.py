"""The gradient of PPO's loss written out for a CPU against autograd's, to the bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from rlcore import PPO, NetworkConfig, PPOConfig
from rlcore.dispatch import kernels_off
from rlcore.distributions import Categorical, CategoricalHead, Gaussian, GaussianHead, StdType
from rlcore.envs.null import Null
from rlcore.networks import ACTIVATIONS
from rlcore.ppo_gradient import PPOGradient
from rlcore.recurrent import RNNConfig
from rlcore.rollout import Samples
from rlcore.types import Metrics

NET = NetworkConfig(hidden_dims=(24, 9))
SIZES = [1, 7, 64, 257, 5000]

TAKEN: dict[str, dict[str, Any]] = {
    "default": {},
    "unclipped value": {"clip_value_loss": False},
    "minibatch advantage": {"normalize_advantage": "minibatch", "value_coef": 0.7},
    "no entropy": {"entropy_coef": 0.0, "grad_clip": "separate"},
    "mean entropy": {"entropy_reduction": "mean", "entropy_coef": 0.03},
    "logarithm of the deviation": {"std_type": "log", "max_std": 1.1},
    "deviation itself": {"std_type": "scalar"},
} | {
    name: {"actor": replace(NET, activation=name), "critic": replace(NET, activation=name)}
    for name in sorted(ACTIVATIONS)
}

LEFT: dict[str, dict[str, Any]] = {
    "shared trunk": {"share_trunk": True},
    "state-dependent std": {"state_dependent_std": True},
    "bounds loss": {"bounds_loss_coef": 0.1},
    "no hidden layers": {"critic": NetworkConfig(hidden_dims=())},
    "layer norm": {"actor": replace(NET, layer_norm=True)},
    "residual": {"critic": NetworkConfig(kind="residual", hidden_dims=(8,))},
    "recurrent": {"actor": replace(NET, rnn=RNNConfig(type="gru", hidden_size=8))},
    "an activation that the output does not tell": {"critic": replace(NET, activation="silu")},
}


def build(changes: dict[str, Any], discrete: bool = False, kind: type[PPO] = PPO) -> PPO:
    env = Null(8, obs_size=5, action_size=3)
    if discrete:
        env.action_space = spaces.Discrete(4)
    settings = {"num_steps": 4, "num_minibatches": 1, "actor": NET, "critic": NET, "normalize_obs": False} | changes
    return kind(env, PPOConfig(**settings), seed=0)


@torch.no_grad()
def draw(agent: PPO, number: int) -> Samples:
    """Samples on all sides of every limit, a fifth of them without weight."""
    obs = torch.randn(1, number, 5)
    new, _ = agent.policy.distribution(obs)
    value, _ = agent.critic(obs)
    parts = [part + 0.3 * torch.randn_like(part) for part in new]
    old: Any = Gaussian(parts[0], (1.2 * new[1]).expand_as(parts[0])) if isinstance(new, Gaussian) else None
    old = old or Categorical(parts[0].log_softmax(-1))
    action = old.sample()
    before = value + 0.3 * torch.randn_like(value)
    advantage, returns = torch.randn(2, 1, number)
    weight = (torch.rand(1, number) < 0.8) / 0.8
    return Samples(action, old, old.log_prob(action), before, advantage, returns, weight, actor_obs=obs)


def by_autograd(agent: PPO, samples: Samples) -> tuple[Tensor, Metrics, list[Tensor]]:
    parameters = [p for optimizer in agent.optimizers for p in optimizer.parameters]
    loss, metrics = agent._evaluate(samples)
    return loss.detach(), metrics, list(torch.autograd.grad(loss, parameters))


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(a.nan_to_num(7e7), b.nan_to_num(7e7)))


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("name", TAKEN)
def test_it_is_what_autograd_gives(name: str, discrete: bool) -> None:
    agent = build(TAKEN[name], discrete)
    assert agent._gradient is not None
    for number in SIZES:
        samples = draw(agent, number)
        assert agent._gradient.takes(samples)
        loss, metrics = agent._gradient(samples)
        parameters = [p for optimizer in agent.optimizers for p in optimizer.parameters]
        found = [p.grad.clone() for p in parameters if p.grad is not None]
        expected_loss, expected_metrics, gradients = by_autograd(agent, samples)
        assert same(loss, expected_loss) and list(metrics) == list(expected_metrics)
        assert all(same(metrics[key], expected_metrics[key]) for key in metrics)
        assert len(found) == len(gradients) and all(map(same, found, gradients))
        assert number == 1 or any(bool(x.any()) for x in found)


def test_it_honors_a_mask_of_choices() -> None:
    agent = build({}, discrete=True)
    assert agent._gradient is not None
    agent.policy.mask = agent._gradient.mask = "mask"
    samples = draw_masked(agent)
    loss, _ = agent._gradient(samples)
    found = [p.grad.clone() for p in agent.optimizers[0].parameters if p.grad is not None]
    expected, _, gradients = by_autograd(agent, samples)
    assert same(loss, expected) and all(map(same, found, gradients))


def draw_masked(agent: PPO) -> Samples:
    mask = torch.ones(1, 50, 4)
    mask[0, ::2, 3] = 0
    obs = torch.randn(1, 50, 5)
    with torch.no_grad():
        old = agent.policy.distribution(obs, (), None, {"mask": mask})[0]
    assert isinstance(old, Categorical)
    action, (value, advantage, returns) = old.sample(), torch.randn(3, 1, 50)
    weight = torch.ones(1, 50)
    return Samples(action, old, old.log_prob(action), value, advantage, returns, weight, obs, raw={"mask": mask})


@pytest.mark.parametrize("name", LEFT)
def test_what_it_is_not_written_for_is_left_to_autograd(name: str) -> None:
    assert build(LEFT[name])._gradient is None


@pytest.mark.parametrize("discrete", [False, True])
def test_a_run_has_the_same_bits_with_it_and_without(discrete: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[bool] = []
    takes = PPOGradient.takes
    monkeypatch.setattr(PPOGradient, "takes", lambda *args: (taken.append(takes(*args)), taken[-1])[1])
    agents = [build({"num_steps": 16, "num_minibatches": 2, "max_grad_norm": 0.05}, discrete) for _ in range(2)]
    agents[1]._gradient = None
    for agent in agents:
        torch.manual_seed(1)
        agent.learn(3)
    assert taken == [True] * 3 * 2 * agents[0].config.num_epochs
    assert torch.equal(agents[0].optimizers[0].value, agents[1].optimizers[0].value)
    assert torch.equal(agents[0].learning_rate, agents[1].learning_rate)


def test_a_sample_that_is_no_number_makes_the_loss_one_and_warns_of_nothing() -> None:
    agent = build({})
    samples = draw(agent, 64)
    samples.advantage[0, 3] = torch.inf
    samples.returns[0, 5] = torch.nan
    before = agent.optimizers[0].value.clone()
    agent.stopped = torch.tensor(False)
    metrics = agent._minibatch(samples)
    assert metrics["loss/value"].isnan() and metrics["applied"] == 0
    assert torch.equal(before, agent.optimizers[0].value)


def test_frozen_parameters_hooks_and_switched_off_kernels_leave_it_to_autograd() -> None:
    agent = build({})
    assert agent._gradient is not None
    samples, weight = draw(agent, 64), agent.policy.head.linear.weight
    with kernels_off():
        assert not agent._gradient.takes(samples)
    agent.stopped = torch.tensor(False)
    weight.requires_grad_(False)
    before, others = weight.clone(), agent.critic.value.weight.clone()
    agent._minibatch(samples)
    assert torch.equal(weight, before) and not torch.equal(agent.critic.value.weight, others)
    weight.requires_grad_(True)
    seen: list[Tensor] = []
    hook = weight.register_hook(seen.append)
    agent._minibatch(samples)
    assert len(seen) == 1
    hook.remove()
    assert agent._gradient.takes(samples)


def test_an_algorithm_with_a_loss_of_its_own_learns_by_that() -> None:
    class Own(PPO):
        def _evaluate(self, samples: Samples) -> tuple[Tensor, Metrics]:
            loss, metrics = super()._evaluate(samples)
            return 2 * loss, metrics

    agent = build({}, kind=Own)
    assert agent._gradient is None


@pytest.mark.parametrize("actions", [1, 2, 3, 7, 17])
@pytest.mark.parametrize("priced", [True, False])
def test_distributions_differentiate_as_autograd_does(actions: int, priced: bool) -> None:
    for number in SIZES:
        mean, noise, gradient = torch.randn(1, number, actions), torch.randn(1, number, actions), torch.randn(1, number)
        std = 0.1 + torch.rand(actions)
        choices = torch.randn(1, number, actions + 1).log_softmax(-1)
        cases: list[tuple[Any, Tensor]] = [
            (Gaussian(mean.requires_grad_(), std.requires_grad_()), noise),
            (Categorical(choices.requires_grad_()), torch.randint(actions + 1, (1, number))),
        ]
        for distribution, action in cases:
            outputs = [distribution.log_prob(action), distribution.entropy()][: 1 + priced]
            gradients = [gradient, torch.randn_like(outputs[-1])][: 1 + priced]
            expected = torch.autograd.grad(outputs, list(distribution), gradients)
            with torch.no_grad():
                found = distribution.backward(action, gradient, gradients[1] if priced else None)
            assert len(found) == len(expected) and all(map(same, found, expected))


@pytest.mark.parametrize("std_type", ["softplus", "log", "scalar"])
@pytest.mark.parametrize("shift", [-30.0, 0.0, 30.0])  # beyond the floor, and beyond the ceiling
def test_heads_differentiate_as_autograd_does(std_type: StdType, shift: float) -> None:
    head = GaussianHead(4, 3, 0.5, 0.01, 2.0, False, std_type)
    assert head.raw_std is not None
    with torch.no_grad():
        head.raw_std += shift + torch.randn(3)
    gradient = torch.randn(3)
    (expected,) = torch.autograd.grad(head(torch.randn(5, 3)).std, head.raw_std, gradient)
    with torch.no_grad():
        assert same(head.backward(gradient), expected)

    choices = CategoricalHead(4, 6)
    output, mask = torch.randn(1, 9, 6, requires_grad=True), torch.randint(2, (1, 9, 6))
    for limits in ([], [mask]):
        distribution, gradient = choices(output, *limits), torch.randn(1, 9, 6)
        (expected,) = torch.autograd.grad(distribution.log_probs, output, gradient)
        with torch.no_grad():
            assert same(choices.backward(distribution, gradient, *limits), expected)
