"""rlcore: reinforcement learning for robots, on batches of environments in PyTorch."""

from rlcore._version import __version__
from rlcore.config import ConfigError
from rlcore.env import EnvSpec, VecEnv, spec_of
from rlcore.networks import NetworkConfig
from rlcore.ppo import PPO, PPOConfig
from rlcore.types import Agent, Policy, Step

__all__ = [
    "PPO",
    "Agent",
    "ConfigError",
    "EnvSpec",
    "NetworkConfig",
    "PPOConfig",
    "Policy",
    "Step",
    "VecEnv",
    "__version__",
    "spec_of",
]
