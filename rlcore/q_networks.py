"""Settings, actor and action values for learning from a replay memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from rlcore.config import ConfigError, check
from rlcore.env import EnvSpec
from rlcore.networks import Network, NetworkConfig, choose_groups, concatenate
from rlcore.normalization import NoNormalizer, RunningNormalizer
from rlcore.replay import Timeout
from rlcore.types import Mode, Obs, Policy, State

_WIDEST = 10.0  # action bounds beyond +- this are hardly meant


def _network() -> NetworkConfig:
    return NetworkConfig(hidden_dims=(256, 256), activation="relu", init="default")


@dataclass(frozen=True, kw_only=True)
class OffPolicyConfig:
    """Settings of learning from a replay memory; the defaults are the classic ones, for one or a few envs."""

    num_steps: int = 1
    """Vector steps between two updates."""
    update_ratio: float = 1.0
    """Gradient steps per step of a single env; an update takes update_ratio * num_steps * num_envs of them."""
    learning_starts: int = 10_000
    """Steps of single envs before learning begins; until then actions are drawn uniformly."""
    buffer_size: int = 1_000_000
    """Transitions in the replay memory."""
    batch_size: int = 256
    """Samples of a gradient step (B)."""
    save_buffer: bool = True
    """Keep the replay memory in checkpoints. Without it a resumed run is not the same: it first fills a new one."""
    store_obs: Literal["fp32", "bf16"] = "fp32"
    """How the replay memory stores observations; bf16 takes half the room and keeps 8 bits of mantissa."""
    learning_rate: float = 3e-4
    """Adam's step size."""
    gamma: float = 0.99
    """Discount per step."""
    n_step: int = 1
    """Rewards summed before a target critic takes over; windows end with their episode."""
    timeout_bootstrap: Timeout = "final_obs"
    """What follows a time-out: the true last observation (else, where the env hides it, as value); the observation
    before it; or nothing."""
    tau: float = 0.005
    """Part of the way that target networks go towards the learned ones at each step."""
    policy_delay: int = 1
    """Critic steps per actor step."""
    max_grad_norm: float | None = None
    """Gradients are scaled down to this norm; none for no limit."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this before learning; logs show them unscaled."""
    normalize_obs: bool = False
    """Bring observations to zero mean and unit deviation, by running statistics inside the policy."""
    clip_obs: float | None = 10.0
    """Largest magnitude of a normalized observation; none for no limit."""
    actor: NetworkConfig = field(default_factory=_network)
    """Hidden layers of the actor."""
    critic: NetworkConfig = field(default_factory=_network)
    """Hidden layers of each critic."""
    actor_obs: tuple[str, ...] | None = None
    """Observation groups of the actor; none: 'policy', else 'actor'."""
    critic_obs: tuple[str, ...] | None = None
    """Observation groups of the critic; none: 'critic', else the actor's."""
    action_low: tuple[float, ...] | None = None
    """Lower action bounds, one for all dimensions or one each; none: those of the env."""
    action_high: tuple[float, ...] | None = None
    """Upper action bounds, one for all dimensions or one each; none: those of the env."""
    mode: Mode = "graph"
    """How acting and learning run on CUDA: recorded as graphs, or as written (eager)."""
    precision: Literal["fp32", "tf32"] = "fp32"
    """Matrix products on CUDA."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        for key in ("num_steps", "buffer_size", "batch_size", "n_step", "policy_delay"):
            check(getattr(self, key) >= 1, key, getattr(self, key), "set at least 1")
        for key in ("learning_rate", "update_ratio", "reward_scale"):
            check(getattr(self, key) > 0, key, getattr(self, key), "set a positive number")
        for key in ("clip_obs", "max_grad_norm"):
            value = getattr(self, key)
            check(value is None or value > 0, key, value, "set a positive number or none")
        check(0 <= self.gamma <= 1, "gamma", self.gamma, "set a number from 0 to 1")
        check(0 < self.tau <= 1, "tau", self.tau, "set more than 0, at most 1")
        fits = 0 <= self.learning_starts <= self.buffer_size
        check(fits, "learning_starts", self.learning_starts, f"set 0 to buffer_size ({self.buffer_size})")
        for name in ("actor", "critic"):
            kind = getattr(self, name).rnn.type
            check(kind == "none", f"{name}.rnn.type", kind, "recurrent layers need ppo; set none")


class SquashedPolicy(Policy):
    """The actor: normalizer, hidden layers, and a tanh that is rescaled to the action bounds.

    Args:
        spec: of the env.
        config: settings.
        outputs: numbers per action dimension; the first A are what goes through the tanh.
    """

    center: Tensor  # [A]
    reach: Tensor  # [A], half the width of the bounds

    def __init__(self, spec: EnvSpec, config: OffPolicyConfig, outputs: int) -> None:
        super().__init__()
        low, high = action_bounds(spec, config)
        self.groups, _ = choose_groups(spec.observation_sizes, config.actor_obs, config.critic_obs)
        self.observation_sizes = {group: spec.observation_sizes[group] for group in self.groups}
        size = sum(self.observation_sizes.values())
        self.normalizer = make_normalizer(size, config)
        self.trunk = Network(size, config.actor)
        self.head = nn.Linear(self.trunk.size, outputs * spec.action_size)
        self.actions = spec.action_size
        # Not in the state: they follow from the configuration and the env.
        self.register_buffer("center", (high + low) / 2, persistent=False)
        self.register_buffer("reach", (high - low) / 2, persistent=False)

    def output(self, normalized: Tensor) -> Tensor:
        """Map normalized observations ``[B, O]`` to the head's output."""
        return self.trunk(normalized, self.head, ())[0]  # type: ignore[no-any-return]

    def squash(self, raw: Tensor) -> Tensor:
        """Bring ``[..., A]`` of any size into the action bounds."""
        return self.center + self.reach * torch.tanh(raw)

    def limit(self, action: Tensor) -> Tensor:
        """Cut actions off at the bounds."""
        return torch.clamp(action, self.center - self.reach, self.center + self.reach)

    def forward(self, obs: Obs, state: State = ()) -> tuple[Tensor, State]:
        """Return the actor's central action, and no state."""
        output = self.output(self.normalizer(concatenate(obs, self.groups)))
        return self.squash(output[..., : self.actions]), ()


class Critics(nn.Module):
    """One or more independent action values."""

    def __init__(self, inputs: int, config: NetworkConfig, count: int) -> None:
        super().__init__()
        self.trunks = nn.ModuleList(Network(inputs, config) for _ in range(count))
        self.heads = nn.ModuleList(nn.Linear(trunk.size, 1) for trunk in self.trunks)  # type: ignore[arg-type]

    def forward(self, normalized: Tensor, action: Tensor) -> Tensor:
        """Value actions ``[B, A]`` in normalized observations ``[B, O]``, ``[critics, B]``."""
        x = torch.cat([normalized, action], -1)
        values = [trunk(x, head, ())[0] for trunk, head in zip(self.trunks, self.heads, strict=True)]
        return torch.stack(values).squeeze(-1)


def action_bounds(spec: EnvSpec, config: OffPolicyConfig) -> tuple[Tensor, Tensor]:
    """Lowest and highest action ``[A]``, from the settings or else the env.

    Raises:
        ConfigError: actions are discrete, or without bounds, or the env's bounds are so wide that hardly an action in
            them can be meant.
    """
    if spec.discrete:
        raise ConfigError(f"algo: {spec.task} has discrete actions, which SAC and DDPG cannot choose; use ppo")
    bounds = []
    for key, own in (("action_low", spec.action_low), ("action_high", spec.action_high)):
        given = getattr(config, key)
        if given is None:
            widest = max(own, key=abs)
            remedy = "set agent.action_low and agent.action_high to the range that the robot needs, such as -1 and 1"
            if math.isinf(widest):
                raise ConfigError(f"{key}: actions of {spec.task} have no bounds, which a tanh needs; {remedy}")
            if abs(widest) > _WIDEST:
                raise ConfigError(
                    f"{key}: actions of {spec.task} reach to {widest:g}, and beyond +-{_WIDEST:g} exploration rarely "
                    f"meets what is useful; {remedy}, or to these very bounds"
                )
            given = own
        check(len(given) in (1, spec.action_size), key, given, f"give 1 or {spec.action_size} numbers")
        bounds.append(torch.tensor(given, dtype=torch.float32).expand(spec.action_size))
    low, high = bounds
    check(bool((low < high).all()), "action_low", low.tolist(), f"set less than action_high ({high.tolist()})")
    beyond = (low < torch.tensor(spec.action_low)) | (high > torch.tensor(spec.action_high))
    if bool(beyond.any()):
        raise ConfigError(
            f"action_low: {low.tolist()} to {high.tolist()} leaves the env's {spec.action_low} to {spec.action_high}; "
            "stay inside"
        )
    return low.clone(), high.clone()


def make_normalizer(size: int, config: OffPolicyConfig) -> RunningNormalizer | NoNormalizer:
    """The normalizer of a group of observations, or what stands in its place."""
    return RunningNormalizer(size, clip=config.clip_obs) if config.normalize_obs else NoNormalizer()
