"""Parameters that left an optimizer's buffer are found at the next update."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlcore import DDPG, PPO, SAC, DDPGConfig, EnvSpec, NetworkConfig, PPOConfig, SACConfig
from rlcore.critics import Critics
from rlcore.envs import make_env
from rlcore.policies import ActorPolicy
from rlcore.recurrent import RNNConfig
from rlcore.sac import build_policy as sac_policy

SMALL = {"num_steps": 8, "learning_starts": 16, "batch_size": 16, "buffer_size": 512, "num_updates": 2}
AGENTS: dict[str, Callable[[Any], Any]] = {
    "ppo": lambda env: PPO(env, PPOConfig(num_steps=8, num_minibatches=2, normalize_value=True), seed=1),
    "sac": lambda env: SAC(env, SACConfig(**SMALL), seed=1),
    "ddpg": lambda env: DDPG(env, DDPGConfig(**SMALL), seed=1),
}


def moved(agent: Any) -> None:
    for module in networks(agent):
        module.double().float()


def assigned(agent: Any) -> None:
    for module in networks(agent):
        module.load_state_dict(copy.deepcopy(module.state_dict()), assign=True)


def networks(agent: Any) -> list[nn.Module]:
    return [value for value in vars(agent).values() if isinstance(value, nn.Module)]


def trained(name: str, between: Callable[[Any], None] | None) -> Any:
    env = make_env("Pendulum", num_envs=8, seed=1)
    agent = AGENTS[name](env)
    progress = agent.learn(6)
    if between is not None:
        between(agent)
    agent.learn(12, progress=progress)
    return agent


@pytest.mark.parametrize("between", [moved, assigned])
@pytest.mark.parametrize("name", AGENTS)
def test_a_run_goes_on_with_parameters_that_were_moved_or_replaced(
    name: str, between: Callable[[Any], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Bit for bit as without it: the values are the same, and the optimizer's moments stay."""
    expected, found = trained(name, None), trained(name, between)
    for one, other in zip(networks(expected), networks(found), strict=True):
        state = other.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in one.state_dict().items())
    assert "were moved or replaced" in caplog.text


@pytest.mark.parametrize("part", ["policy", "policy.head"])
@pytest.mark.parametrize("name", AGENTS)
def test_a_module_in_the_place_of_another_is_named(name: str, part: str) -> None:
    def replaced(agent: Any) -> None:
        owner, _, last = f"agent.{part}".rpartition(".")
        owner = agent if owner == "agent" else agent.policy
        setattr(owner, last, copy.deepcopy(getattr(owner, last)))

    with pytest.raises(RuntimeError, match=rf"^{part} has been replaced by another module.*; load its parameters"):
        trained(name, replaced)


@pytest.mark.parametrize("name", AGENTS)
def test_freezing_and_thawing_under_the_feet_of_an_optimizer_is_named(name: str) -> None:
    """Adam's moments would move a frozen parameter on, and no optimizer has one that was frozen at first."""
    with pytest.raises(
        RuntimeError, match=r"^policy\.\S+ is frozen .* and was learned when .*; set requires_grad back"
    ):
        trained(name, lambda agent: agent.policy.head.requires_grad_(False))


def test_another_shape_is_named() -> None:
    def grown(agent: Any) -> None:
        agent.policy.low = torch.zeros(3)

    with pytest.raises(RuntimeError, match=r"^policy.low is of shape \(3,\) and was of shape \(1,\)"):
        trained("sac", grown)


def test_acting_between_two_updates_reads_what_was_assigned() -> None:
    """And so do evaluations and exports then: an agent's networks act as a copy does that was loaded anew."""
    env = make_env("Pendulum", num_envs=8, seed=1)
    agents = [PPO(env, PPOConfig(num_steps=8, num_minibatches=2), seed=seed) for seed in (1, 2)]
    wanted, found = (agent.policy for agent in agents)
    found.load_state_dict(copy.deepcopy(wanted.state_dict()), assign=True)
    obs = {"policy": torch.randn(8, 3)}
    assert torch.equal(found(obs)[0], wanted(obs)[0])


@pytest.mark.parametrize("name", AGENTS)
def test_a_graph_that_acts_looks_first_for_what_was_assigned(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """What runs before each replay puts values where the graph reads them, and refuses another module."""
    agent = AGENTS[name](make_env("Pendulum", num_envs=8, seed=1))
    look, policy = agent._act.before, agent.policy
    mine = dict(policy.named_parameters())
    look()
    assert not caplog.records
    other = {key: value + 1 for key, value in policy.state_dict().items()}
    policy.load_state_dict(copy.deepcopy(other), assign=True)
    look()
    assert "were moved or replaced" in caplog.text
    for key, parameter in policy.named_parameters():
        assert parameter is mine[key] and torch.equal(parameter, other[key])
    agent.policy = copy.deepcopy(policy)
    with pytest.raises(RuntimeError, match=r"^policy has been replaced"):
        look()
    agent.policy, policy.head = policy, copy.deepcopy(policy.head)
    with pytest.raises(RuntimeError, match=r"^policy\.head has been replaced"):
        look()


@pytest.mark.gpu
def test_a_graph_acts_by_what_was_assigned() -> None:
    env = make_env("Pendulum", num_envs=8, device="cuda", seed=1)
    agent = DDPG(env, DDPGConfig(**SMALL | {"learning_starts": 0}, noise_std=0.0), seed=1)
    obs, other = env.reset(1), DDPG(env, DDPGConfig(**SMALL), seed=2).policy
    for _ in range(4):
        before, _ = agent.act(obs, ())
        torch.testing.assert_close(before, agent.policy(obs)[0])
    assert agent._act.graph is not None
    agent.policy.load_state_dict(copy.deepcopy(other.state_dict()), assign=True)
    torch.testing.assert_close(agent.act(obs, ())[0], other(obs)[0])


SPEC = EnvSpec(
    task="", observation_sizes={"policy": 3}, discrete=False, action_size=2, action_low=[-1, -2], action_high=[1, 2]
)
OBS = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
NETWORKS = {
    "mlp": NetworkConfig(hidden_dims=(8, 8)),
    "normalized": NetworkConfig(hidden_dims=(8, 8), layer_norm=True),
    "residual": NetworkConfig(kind="residual", hidden_dims=(8, 8)),
    "recurrent": NetworkConfig(hidden_dims=(8,), rnn=RNNConfig(type="gru", hidden_size=4)),
}
ALONE: dict[str, Callable[[], nn.Module]] = {
    **{name: lambda net=net: ActorPolicy(SPEC, PPOConfig(actor=net)) for name, net in NETWORKS.items()},  # type: ignore[misc]
    "sac": lambda: sac_policy(SPEC, SACConfig()),
    "critics": lambda: Critics(SPEC, SACConfig(), sac_policy(SPEC, SACConfig())),
}


@pytest.mark.parametrize("how", ["assigned", "moved", "replaced"])
@pytest.mark.parametrize("name", ALONE)
def test_a_policy_alone_reads_the_parameters_that_it_has(name: str, how: str) -> None:
    """Nothing that was looked up when it was built is used once others are in the place of that."""
    wanted, found = ALONE[name](), ALONE[name]()

    def outputs(module: nn.Module) -> Tensor:
        result = module(OBS, OBS[:, :2]) if name == "critics" else module({"policy": OBS})[0]
        assert isinstance(result, Tensor)
        return result.detach()

    first = outputs(found)
    assert not torch.equal(first, outputs(wanted))
    if how == "moved":
        found.double().float()
        with torch.no_grad():
            for parameter in found.parameters():
                parameter.zero_()
        assert outputs(found).abs().max() < first.abs().max() / 2
        return
    if how == "assigned":
        found.load_state_dict(copy.deepcopy(wanted.state_dict()), assign=True)
    else:
        layers = dict(wanted.named_modules())
        for path, layer in list(found.named_modules()):
            if isinstance(layer, (nn.Linear, nn.GRUCell)):
                owner, _, last = path.rpartition(".")
                setattr(found.get_submodule(owner), last, copy.deepcopy(layers[path]))
    assert torch.equal(outputs(found), outputs(wanted))
    assert torch.equal(outputs(copy.deepcopy(found)), outputs(wanted))
