"""Backward passes written out for a CPU against autograd's, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlcore import DDPG, SAC, DDPGConfig, NetworkConfig, SACConfig
from rlcore.dispatch import kernels_off
from rlcore.envs import make_env
from rlcore.networks import ACTIVATIONS, Network
from rlcore.optimizer import NO_LIMIT, FlatAdam
from rlcore.perceptrons import WrittenOut

NET = NetworkConfig(hidden_dims=(24, 9))

RUNS: dict[str, tuple[type[SAC] | type[DDPG], dict[str, Any]]] = {
    "sac": (SAC, {"q_reduce": "min"}),
    "sac, clipped, three critics": (SAC, {"num_critics": 3, "max_grad_norm": 0.5, "num_updates": 2}),
    "ddpg": (DDPG, {}),
    "td3": (DDPG, {"num_critics": 2, "policy_delay": 2, "target_noise": 0.2}),
    "categorical": (SAC, {"value_loss": "categorical", "value_range": (-9.0, 9.0), "num_atoms": 7}),
}


def build(name: str = "sac", **changes: Any) -> SAC | DDPG:
    kind, settings = RUNS[name]
    common: dict[str, Any] = {"learning_starts": 8, "buffer_size": 500, "batch_size": 31, "actor": NET, "critic": NET}
    config = (SACConfig if kind is SAC else DDPGConfig)(**(common | settings | changes))
    return kind(make_env("Pendulum", 4, seed=0), config, seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("rows", [1, 31, 300])
def test_gradients_are_those_of_autograd(rows: int, activation: str) -> None:
    config = NetworkConfig(hidden_dims=(24, 9), activation=activation)
    trunks, heads = [Network(5, config) for _ in range(2)], [nn.Linear(9, 3) for _ in range(2)]
    parameters = [p for trunk, head in zip(trunks, heads, strict=True) for m in (trunk, head) for p in m.parameters()]
    x, target = torch.randn(rows, 5), torch.randn(2, rows, 3)
    output = torch.stack([trunk(x, head, ())[0] for trunk, head in zip(trunks, heads, strict=True)])
    expected = torch.autograd.grad((output - target).square().mean(), parameters)
    written = WrittenOut(trunks, heads, FlatAdam(parameters, torch.tensor(1e-3), NO_LIMIT))
    found = written.forward(x)
    assert found is not None and torch.equal(found, output)
    assert written.backward((found - target).square().mean())
    assert all(p.grad is not None and torch.equal(p.grad, e) for p, e in zip(parameters, expected, strict=True))
    assert not written.backward(found.sum()), "one output, one backward pass"


@pytest.mark.parametrize("name", RUNS)
def test_a_run_has_the_same_bits_with_it_and_without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    agents = [build(name) for _ in range(2)]
    agents[1]._written = None
    passed: list[bool] = []
    backward = WrittenOut.backward
    monkeypatch.setattr(WrittenOut, "backward", lambda *args: passed.append(backward(*args)) or passed[-1])
    metrics: list[dict[str, Tensor]] = []
    for agent in agents:
        torch.manual_seed(1)
        agent.learn(9)
        metrics.append(agent.update())
    assert len(passed) >= 7 and all(passed)
    for part in ("critic_optimizer", "actor_optimizer"):
        assert torch.equal(getattr(agents[0], part).value, getattr(agents[1], part).value)
    assert metrics[0].keys() == metrics[1].keys()
    assert all(torch.equal(metrics[0][key].nan_to_num(), metrics[1][key].nan_to_num()) for key in metrics[0])


def test_what_it_is_not_written_for_is_left_to_autograd() -> None:
    for critic in (
        NetworkConfig(hidden_dims=(8,), layer_norm=True),
        NetworkConfig(kind="residual", hidden_dims=(8,)),
        NetworkConfig(hidden_dims=(8,), activation="silu"),
    ):
        assert build(critic=critic)._written is None


def test_frozen_parameters_hooks_and_switched_off_kernels_leave_it_to_autograd() -> None:
    agent = build()
    assert agent._written is not None
    x, weight = torch.randn(31, 4), agent.critics.heads[0].weight
    with kernels_off():
        assert agent._written.forward(x) is None
    seen: list[Tensor] = []
    hook = weight.register_hook(seen.append)
    agent.learn(4)
    assert seen
    hook.remove()
    assert agent._written.forward(x) is not None
    weight.requires_grad_(False)
    assert agent._written.forward(x) is None


def test_a_loss_that_is_not_finite_leaves_the_critics() -> None:
    agent = build()
    before = agent.critic_optimizer.value.clone()
    output = agent._critic_output(torch.randn(31, 3), torch.randn(31, 1))
    agent._critic_step(output.sum() * torch.inf, torch.tensor(0.0))
    assert torch.equal(agent.critic_optimizer.value, before)
    output = agent._critic_output(torch.randn(31, 3), torch.randn(31, 1))
    agent._critic_step(output.square().sum(), torch.tensor(0.0))
    assert not torch.equal(agent.critic_optimizer.value, before)
