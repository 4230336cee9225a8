"""rlcore: reinforcement learning for robots, on batches of environments in PyTorch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rlcore._version import __version__

if TYPE_CHECKING:
    from rlcore.agent import Agent, Policy
    from rlcore.config import ConfigError
    from rlcore.ddpg import DDPG, DDPGConfig
    from rlcore.dispatch import kernels_off
    from rlcore.env import EnvSpec, VecEnv, spec_of
    from rlcore.networks import NetworkConfig
    from rlcore.ppo import PPO
    from rlcore.ppo_config import PPOConfig
    from rlcore.sac import SAC, SACConfig
    from rlcore.types import Step

_HOMES = {
    "PPO": "ppo",
    "PPOConfig": "ppo_config",
    "SAC": "sac",
    "SACConfig": "sac",
    "DDPG": "ddpg",
    "DDPGConfig": "ddpg",
    "NetworkConfig": "networks",
    "ConfigError": "config",
    "kernels_off": "dispatch",
    "EnvSpec": "env",
    "VecEnv": "env",
    "spec_of": "env",
    "Agent": "agent",
    "Policy": "agent",
    "Step": "types",
}

__all__ = [
    "DDPG",
    "PPO",
    "SAC",
    "Agent",
    "ConfigError",
    "DDPGConfig",
    "EnvSpec",
    "NetworkConfig",
    "PPOConfig",
    "Policy",
    "SACConfig",
    "Step",
    "VecEnv",
    "__version__",
    "kernels_off",
    "spec_of",
]


def __getattr__(name: str) -> Any:
    """Import on first use: the command line must answer ``--help`` before PyTorch has loaded."""
    if name not in _HOMES:
        raise AttributeError(f"module 'rlcore' has no attribute '{name}'")
    return getattr(import_module(f"rlcore.{_HOMES[name]}"), name)
