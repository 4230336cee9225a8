"""Actors of learning from a replay memory: a tanh that is rescaled to the action bounds."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rlcore.agent import Policy
from rlcore.config import ConfigError, check
from rlcore.encoders import Encoders
from rlcore.env import WIDEST_ACTION, EnvSpec
from rlcore.gate import Gate, Gated
from rlcore.networks import Network, network_output
from rlcore.normalization import make_normalizer
from rlcore.observations import choose_groups, concatenate, groups_of, images, vectors
from rlcore.off_policy_config import OffPolicyConfig
from rlcore.types import Obs, State

_NEAR_BOUND = 0.9  # of the way to a bound: as near as an actor begins, for a tanh that still moves


class SquashedPolicy(Policy):
    """The actor: normalizer, encoders of images, hidden layers, and a tanh that is rescaled to the action bounds.

    Args:
        spec: of the env.
        config: settings.
        outputs: numbers per action dimension; the first A are what goes through the tanh.
        log_std_range: bounds of the second A, the logarithm of the deviation before the tanh.
        spread: deviation of candidates for the gate in half widths of the bounds, where there is no second A.
    """

    action_scale: Tensor  # [A], half the width of the bounds
    action_bias: Tensor  # [A], their middle
    low: Tensor  # [A], the bounds as these two give them
    high: Tensor  # [A]

    def __init__(
        self,
        spec: EnvSpec,
        config: OffPolicyConfig,
        outputs: int,
        log_std_range: tuple[float, float] = (0.0, 0.0),
        spread: float = 0.0,
    ) -> None:
        super().__init__()
        low, high = action_bounds(spec, config)
        chosen, _ = choose_groups(groups_of(spec), config.actor_obs, config.critic_obs)
        self.observation_sizes, image_shapes = vectors(spec, chosen), images(spec, chosen)
        self.groups, self.raw_shapes = tuple(self.observation_sizes), image_shapes
        size = sum(self.observation_sizes.values())
        self.normalizer = make_normalizer(size, config.normalize_obs, config.clip_obs)
        encoders = Encoders(image_shapes, config.actor.cnn, config.actor.init)
        self.trunk = Network(encoders.size + size, config.actor)
        self.head = nn.Linear(self.trunk.size, outputs * spec.action_size)
        self.encoders = encoders  # behind what kernels want to find side by side, see ``optimizer.flat``
        if config.init_head_scale != 1:
            zero = torch.clamp((high + low) / (low - high), -_NEAR_BOUND, _NEAR_BOUND)  # [A], where in -1..1 it lies
            with torch.no_grad():
                self.head.weight.mul_(config.init_head_scale)
                self.head.bias.zero_()
                self.head.bias[: spec.action_size] = torch.atanh(zero)
        self.actions = spec.action_size
        # Not in the state: they follow from the configuration and the env.
        self.register_buffer("action_scale", (high - low) / 2, persistent=False)
        self.register_buffer("action_bias", (high + low) / 2, persistent=False)
        self.register_buffer("low", self.action_bias - self.action_scale, persistent=False)
        self.register_buffer("high", self.action_bias + self.action_scale, persistent=False)
        self.stochastic, self.log_std_range, self.spread = outputs > 1, log_std_range, spread
        if config.safety.gate.threshold is not None:
            self.gate = Gate(config.safety.gate, config.safety.violations, size, self.low, self.high, spec)

    @property
    def bounds_text(self) -> str:
        """The action bounds in words: one for all dimensions, or each in order."""
        bounds = [f"{low:g} to {high:g}" for low, high in zip(self.low.tolist(), self.high.tolist(), strict=True)]
        return ", ".join(bounds if len(set(bounds)) > 1 else bounds[:1])

    def output(self, features: Tensor) -> Tensor:
        """Map features of images and normalized vectors, joined, ``[B, O]`` to the head's output."""
        return network_output(self.trunk, self.head, features)

    def squash(self, raw: Tensor) -> Tensor:
        """Bring ``[..., A]`` of any size into the action bounds."""
        return self.action_bias + self.action_scale * torch.tanh(raw)

    def limit(self, action: Tensor) -> Tensor:
        """Cut actions off at the bounds."""
        return torch.clamp(action, self.low, self.high)

    def forward(self, obs: Obs, state: State = ()) -> tuple[Tensor, State]:
        """Return the actor's central action, or what the gate has in its place, and no state."""
        if self.gate is not None:
            return self.judged(obs)[0].action, ()
        output = self.output(self.encoders(obs, self.normalizer(concatenate(obs, self.groups))))
        return self.squash(output[..., : self.actions]), ()

    def judged(self, obs: Obs, state: State = ()) -> tuple[Gated, State]:
        """See ``Policy.judged``."""
        assert self.gate is not None, "the policy has no gate"
        vectors = self.normalizer(concatenate(obs, self.groups))
        output = self.output(self.encoders(obs, vectors))
        return self.gate(vectors, self.squash(output[..., : self.actions]), self.drawn(output, self.gate.noise)), ()

    def output_of(self, vectors: Tensor) -> Tensor:
        """See ``Policy.output_of``."""
        return self.output(vectors)

    def drawn(self, output: Tensor, noise: Tensor) -> Tensor:
        """See ``Policy.drawn``; the deviation is that which the head gives, else that of exploration."""
        mean, log_std = output[..., : self.actions], output[..., self.actions :]
        if self.stochastic:
            return self.squash(mean + log_std.clamp(*self.log_std_range).exp() * noise)
        return self.limit(self.squash(mean) + self.action_scale * self.spread * noise)


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
            if abs(widest) > WIDEST_ACTION:
                raise ConfigError(
                    f"{key}: actions of {spec.task} reach to {widest:g}, and beyond +-{WIDEST_ACTION:g} exploration "
                    f"rarely meets what is useful; {remedy}, or to these very bounds"
                )
            given = own
        wanted = "1 number" if spec.action_size == 1 else f"1 or {spec.action_size} numbers"
        check(len(given) in (1, spec.action_size), key, given, f"give {wanted}")
        bounds.append(torch.tensor(given, dtype=torch.float32).expand(spec.action_size))
    low, high = bounds
    check(bool((low < high).all()), "action_low", low.tolist(), f"set less than action_high ({high.tolist()})")
    beyond = (low < torch.tensor(spec.action_low)) | (high > torch.tensor(spec.action_high))
    if bool(beyond.any()):
        raise ConfigError(
            f"action_low: {low.tolist()} to {high.tolist()} leaves the env's {spec.action_low} to {spec.action_high}; "
            "stay inside, or lift bounds that were taken from a simulator's joint limits: --env.clip_actions None"
        )
    return low.clone(), high.clone()
