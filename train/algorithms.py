"""The algorithms by name: one line each in every table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlcore import ddpg, sac
from rlcore.actor_critic import build_policy
from rlcore.ppo import PPO
from rlcore.types import Policy

AGENTS: dict[str, Callable[..., Any]] = {"ppo": PPO, "sac": sac.SAC, "ddpg": ddpg.DDPG}
"""From env, settings, ``seed`` and ``num_iterations`` to what learns."""

POLICIES: dict[str, Callable[..., Policy]] = {"ppo": build_policy, "sac": sac.build_policy, "ddpg": ddpg.build_policy}
"""From an env's description and settings to an untrained policy."""
