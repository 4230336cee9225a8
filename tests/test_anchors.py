"""Parameters that left an optimizer's buffer are found at the next update."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from rlcore import DDPG, PPO, SAC, DDPGConfig, PPOConfig, SACConfig
from rlcore.envs import make_env

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


def test_another_shape_is_named() -> None:
    def grown(agent: Any) -> None:
        agent.policy.low = torch.zeros(3)

    with pytest.raises(RuntimeError, match=r"^policy.low is of shape \(3,\) and was of shape \(1,\)"):
        trained("sac", grown)
