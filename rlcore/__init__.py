"""rlcore: reinforcement learning for robots, on batches of environments in PyTorch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rlcore._version import __version__

if TYPE_CHECKING:
    from rlcore.agent import Agent as Agent
    from rlcore.agent import Algorithm as Algorithm
    from rlcore.agent import Policy as Policy
    from rlcore.agent import Preset as Preset
    from rlcore.config import ConfigError as ConfigError
    from rlcore.ddpg import DDPG as DDPG
    from rlcore.ddpg import DDPGConfig as DDPGConfig
    from rlcore.dispatch import kernels_off as kernels_off
    from rlcore.env import EnvSpec as EnvSpec
    from rlcore.env import VecEnv as VecEnv
    from rlcore.env import spec_of as spec_of
    from rlcore.maml import MAML as MAML
    from rlcore.maml import MAMLConfig as MAMLConfig
    from rlcore.networks import NetworkConfig as NetworkConfig
    from rlcore.ppo import PPO as PPO
    from rlcore.ppo_config import PPOConfig as PPOConfig
    from rlcore.sac import SAC as SAC
    from rlcore.sac import SACConfig as SACConfig
    from rlcore.types import Step as Step
else:
    _HOMES = {
        "agent": ("Agent", "Algorithm", "Policy", "Preset"),
        "config": ("ConfigError",),
        "ddpg": ("DDPG", "DDPGConfig"),
        "dispatch": ("kernels_off",),
        "env": ("EnvSpec", "VecEnv", "spec_of"),
        "maml": ("MAML", "MAMLConfig"),
        "networks": ("NetworkConfig",),
        "ppo": ("PPO",),
        "ppo_config": ("PPOConfig",),
        "sac": ("SAC", "SACConfig"),
        "types": ("Step",),
    }

    def __getattr__(name: str) -> Any:
        """Import on first use: the command line must answer ``--help`` before PyTorch has loaded."""
        for home, names in _HOMES.items():
            if name in names:
                return getattr(import_module(f"rlcore.{home}"), name)
        raise AttributeError(f"module 'rlcore' has no attribute '{name}'")


__all__ = [
    "DDPG",
    "MAML",
    "PPO",
    "SAC",
    "Agent",
    "Algorithm",
    "ConfigError",
    "DDPGConfig",
    "EnvSpec",
    "MAMLConfig",
    "NetworkConfig",
    "PPOConfig",
    "Policy",
    "Preset",
    "SACConfig",
    "Step",
    "VecEnv",
    "__version__",
    "kernels_off",
    "spec_of",
]


def __dir__() -> list[str]:
    """What is offered, imported so far or not."""
    return sorted({*globals(), *__all__})
