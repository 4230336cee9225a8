"""Actor and critic for on-policy learning, from observation groups to actions and values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rlcore.action_scale import about_one, action_scaling, bounded
from rlcore.agent import Policy
from rlcore.config import ConfigError, check, check_positive
from rlcore.distributions import CategoricalHead, Distribution, Gaussian, GaussianHead, StdType, unstacked
from rlcore.env import EnvSpec
from rlcore.gate import Gate, Gated
from rlcore.networks import Network, NetworkConfig, orthogonal_
from rlcore.normalization import make_normalizer
from rlcore.observations import choose_groups, concatenate, groups_of, images, vectors
from rlcore.recurrent import cleared
from rlcore.safety import SafetyConfig
from rlcore.types import Obs, State


@dataclass(frozen=True, kw_only=True)
class ActorCriticConfig:
    """What actor and critic read, and how they are built."""

    normalize_obs: bool = True
    """Bring observations to zero mean and unit deviation, by running statistics inside the policy."""
    clip_obs: float | None = 10.0
    """Largest magnitude of a normalized observation; none for no limit."""
    actor: NetworkConfig = field(default_factory=NetworkConfig)
    """Hidden layers of the actor."""
    critic: NetworkConfig = field(default_factory=NetworkConfig)
    """Hidden layers of the critic; with share_trunk it has the actor's instead."""
    share_trunk: bool = False
    """Actor and critic share the actor's hidden layers."""
    actor_obs: tuple[str, ...] | None = None
    """Observation groups of the actor; none: 'policy', else 'actor'."""
    critic_obs: tuple[str, ...] | None = None
    """Observation groups of the critic; none: 'critic', else the actor's."""
    action_mask: str | None = None
    """Observation group that tells which choices there are now, 1 for each that is and 0 for each that is not."""
    init_std: float = 1.0
    """Standard deviation of actions at the start, before they are scaled."""
    std_type: StdType = "softplus"
    """What is learned of it: the deviation itself (scalar, as in rsl_rl, but kept above min_std), its logarithm (log,
    as in skrl and rl_games), or the number whose softplus it is (softplus), which lies between the two."""
    min_std: float = 0.01
    """Floor of the standard deviation."""
    max_std: float = 100.0
    """Ceiling of the standard deviation."""
    state_dependent_std: bool = False
    """Learn a standard deviation per state, not one for all."""
    action_scale: Literal["auto", "bounds", "none"] = "auto"
    """Stretch the policy's -1..1 to the env's action bounds, inside the policy. bounds: in each dimension that has two;
    none: nowhere; auto: as bounds, unless all of them are about -1..1 already (within a quarter) or the env scales
    actions itself (action terms of Isaac Lab and mjlab), and bounds of a million and more are taken for none."""
    clip_actions: float | None = None
    """Limit actions to +- this before they are scaled; finite bounds of the env's action space always hold."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        check_positive(self, "min_std")
        check_positive(self, "clip_obs", "clip_actions", none=True)
        for name in ("actor", "critic"):
            unit = getattr(self, name).unit_norm
            check(unit == "none", f"{name}.unit_norm", unit, "weights of unit length need sac or ddpg; set none")
        check(self.min_std < self.init_std, "init_std", self.init_std, f"set more than min_std ({self.min_std})")
        check(self.init_std <= self.max_std, "max_std", self.max_std, f"set at least init_std ({self.init_std})")


class ActorPolicy(Policy):
    """The actor: normalizer, hidden layers, distribution head, action limits.

    Args:
        spec: of the env.
        config: settings.

    Raises:
        ConfigError: an observation group of the settings is none of the env's, or there is no default for the actor.
    """

    low: Tensor  # [A], where actions are continuous
    high: Tensor  # [A]
    action_scale: Tensor | None  # [A], None where actions are those of the distribution
    action_bias: Tensor | None  # [A]

    def __init__(self, spec: EnvSpec, config: ActorCriticConfig) -> None:
        super().__init__()
        chosen, _ = choose_groups(groups_of(spec), config.actor_obs, config.critic_obs)
        self.observation_sizes, image_shapes = vectors(spec, chosen), images(spec, chosen)
        self.groups = tuple(self.observation_sizes)
        self.mask = config.action_mask
        if self.mask is not None:
            _check_mask(spec, self.mask)
        self.raw_shapes = {**image_shapes, **({} if self.mask is None else {self.mask: (spec.action_size,)})}
        size = sum(self.observation_sizes.values())
        self.normalizer = make_normalizer(size, config.normalize_obs, config.clip_obs)
        self.trunk = Network(size, config.actor, image_shapes)
        features = self.trunk.size
        self.head: GaussianHead | CategoricalHead
        if spec.discrete:
            self.head = CategoricalHead(features, spec.action_parts or spec.action_size)
        else:
            self.head = GaussianHead(
                features,
                spec.action_size,
                config.init_std,
                config.min_std,
                config.max_std,
                config.state_dependent_std,
                config.std_type,
            )
            # Not in the state: they follow from the configuration and the env.
            self.register_buffer("low", torch.tensor(spec.action_low), persistent=False)
            self.register_buffer("high", torch.tensor(spec.action_high), persistent=False)
        scaling = action_scaling(spec, config.action_scale)
        # In the state: a policy keeps the units that it learned in.
        self.register_buffer("action_scale", None if scaling is None else torch.tensor(scaling[0]))
        self.register_buffer("action_bias", None if scaling is None else torch.tensor(scaling[1]))
        self.spec, self.config, self.size = spec, config, size
        self.limited = False
        if not spec.discrete:
            self._set_limits()
            self.limited = bool((self.low > -torch.inf).any() or (self.high < torch.inf).any())
        if config.actor.init == "orthogonal":
            orthogonal_(self.head.linear, 0.01)
            if isinstance(self.head, GaussianHead):
                self.head.reset_std()

    def initial_state(self, num_envs: int) -> State:
        """Zero recurrent state for ``num_envs`` envs; ``()`` for a feed-forward policy."""
        return self.trunk.initial_state(num_envs)

    def distribution(
        self, normalized: Tensor, state: State = (), keep: Tensor | None = None, raw: Obs | None = None
    ) -> tuple[Distribution, State]:
        """Map a sequence of observations to action distributions and the next state.

        Args:
            normalized: vectors ``[T, N, O]``.
            state: before the first step.
            keep: ``[T, N, 1]``, 0 where an episode begins.
            raw: the groups of ``raw_shapes``, ``[T, N, ...]`` each.
        """
        output, state = self.trunk(normalized, self.head.linear, state, keep, raw)
        if isinstance(self.head, GaussianHead):
            return self.head(output), state
        return self.head(output, None if self.mask is None or raw is None else raw[self.mask]), state

    def limit(self, action: Tensor) -> Tensor:
        """Bring the distribution's actions ``[N, A]`` into the env's bounds: scaled to them if so set, then cut off."""
        if self.action_scale is not None and self.action_bias is not None:
            action = torch.addcmul(self.action_bias, action, self.action_scale)
        return torch.clamp(action, self.low, self.high) if self.limited else action

    def _set_limits(self) -> None:
        """Cut off where the env's bounds are, or ``clip_actions`` if that is nearer."""
        low, high = torch.tensor(self.spec.action_low), torch.tensor(self.spec.action_high)
        if self.config.clip_actions is not None:
            scale = torch.ones_like(low) if self.action_scale is None else self.action_scale.cpu()
            bias = torch.zeros_like(low) if self.action_bias is None else self.action_bias.cpu()
            low = low.maximum(bias - scale * self.config.clip_actions)
            high = high.minimum(bias + scale * self.config.clip_actions)
        self.low.copy_(low)
        self.high.copy_(high)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if self.action_scale is not None and prefix + "action_scale" not in state_dict:
            # Written before there was a scale: what was learned acts as it did.
            state_dict[prefix + "action_scale"] = torch.ones_like(self.action_scale)
            state_dict[prefix + "action_bias"] = torch.zeros_like(self.action_scale)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.action_scale is not None:
            self._set_limits()

    @property
    def notes(self) -> tuple[str, ...]:
        """What becomes of actions, in a line, where the env's bounds are not about -1..1."""
        spec, choice = self.spec, self.config.action_scale
        both = bounded(spec)
        if all(about_one(*pair) for pair in both.values()):
            return ()
        pairs = list(dict.fromkeys(f"{low:g}..{high:g}" for low, high in both.values()))
        bounds = f"the env's bounds {', '.join(pairs[:4])}{', ...' * (len(pairs) > 4)}"
        scaling = {name: value for name, value in self.state_dict().items() if name.startswith("action_")}
        if not scaling or (bool((scaling["action_scale"] == 1).all()) and not scaling["action_bias"].any()):
            why = f"agent.action_scale {choice}" if not scaling else "as when this policy began to learn"
            return (f"actions are cut off at {bounds}, and not scaled to them ({why})",)
        return (f"actions are scaled to {bounds} (agent.action_scale {choice}; none cuts them off there instead)",)

    def forward(self, obs: Obs, state: State = ()) -> tuple[Tensor, State]:
        """Return the most likely action within its bounds, or what the gate has in its place, and the next state."""
        if self.gate is not None:
            gated, state = self.judged(obs, state)
            return gated.action, state
        _, distribution, state = self._read(obs, state)
        return self.limit(distribution.mode), state

    def judged(self, obs: Obs, state: State = ()) -> tuple[Gated, State]:
        """See ``Policy.judged``."""
        assert self.gate is not None, "the policy has no gate"
        normalized, distribution, state = self._read(obs, state)
        drawn = self.drawn(distribution, self.gate.noise)
        return self.gate(normalized, self.limit(distribution.mode), drawn), state

    def output_of(self, vectors: Tensor) -> Distribution:
        """See ``Policy.output_of``: the distribution."""
        return self.distribution(vectors)[0]

    def drawn(self, output: Distribution, noise: Tensor) -> Tensor:
        """See ``Policy.drawn``."""
        assert isinstance(output, Gaussian), "choices are not drawn by a normal"
        return self.limit(output.mean + output.std * noise)

    def _read(self, obs: Obs, state: State) -> tuple[Tensor, Distribution, State]:
        """Normalized vectors ``[N, O]``, the distribution of actions for them, and the next state."""
        normalized = self.normalizer(concatenate(obs, self.groups))
        state = state or self.initial_state(normalized.shape[0])
        raw = {group: obs[group].unsqueeze(0) for group in self.raw_shapes}
        distribution, state = self.distribution(normalized.unsqueeze(0), state, None, raw)
        return normalized, unstacked(distribution), state


def _check_mask(spec: EnvSpec, group: str) -> None:
    check(spec.discrete, "action_mask", group, "the env's actions are no choices; set none")
    size = spec.observation_sizes.get(group)
    vectors_there = ", ".join(spec.observation_sizes) or "none"
    check(
        size is not None, "action_mask", group, f"the env has no such vector among its observations ({vectors_there})"
    )
    remedy = f"that group has {size} numbers, and there are {spec.action_size} choices; name one of as many"
    check(size == spec.action_size, "action_mask", group, remedy)


class Critic(nn.Module):
    """State values from its own observation groups, or from the actor's features.

    Args:
        spec: of the env.
        config: settings.
        policy: the actor, whose normalizer is shared where both read the same groups.
        signals: how many columns it has beside that of the reward, S; they begin at 0.

    Raises:
        ConfigError: ``share_trunk`` with groups other than the actor's, or with a recurrent actor.
    """

    def __init__(self, spec: EnvSpec, config: ActorCriticConfig, policy: ActorPolicy, signals: int = 0) -> None:
        super().__init__()
        actor, chosen = choose_groups(groups_of(spec), config.actor_obs, config.critic_obs)
        if config.share_trunk and actor != chosen:
            raise ConfigError(
                f"share_trunk: the actor reads {actor} and the critic {chosen}; a shared trunk needs the "
                "same groups, set critic_obs to the actor's or share_trunk to false"
            )
        if config.share_trunk and policy.trunk.recurrent:
            raise ConfigError("share_trunk: a recurrent actor cannot share its trunk; set share_trunk to false")
        sizes, self.raw_shapes = vectors(spec, chosen), images(spec, chosen)
        self.groups, size = tuple(sizes), sum(sizes.values())
        same = self.groups == policy.groups
        self.normalizer = policy.normalizer if same else make_normalizer(size, config.normalize_obs, config.clip_obs)
        self.trunk = policy.trunk if config.share_trunk else Network(size, config.critic, self.raw_shapes)
        self.value = nn.Linear(self.trunk.size, 1)
        if config.critic.init == "orthogonal":
            orthogonal_(self.value, 1.0)
        if signals:  # one layer for all columns
            first, self.value = self.value, nn.Linear(self.trunk.size, 1 + signals)
            with torch.no_grad():
                for wide, narrow in zip(self.value.parameters(), first.parameters(), strict=True):
                    wide.zero_()[:1] = narrow

    def initial_state(self, num_envs: int) -> State:
        """Zero recurrent state for ``num_envs`` envs; ``()`` for a feed-forward critic."""
        return self.trunk.initial_state(num_envs)

    def forward(
        self, normalized: Tensor, state: State = (), keep: Tensor | None = None, raw: Obs | None = None
    ) -> tuple[Tensor, State]:
        """Map a sequence of observations to values and the next state; see ``ActorPolicy.distribution``.

        Values are ``[T, N]``, or ``[T, N, 1 + S]`` with signals, the first column being that of the reward.
        """
        output, state = self.trunk(normalized, self.value, state, keep, raw)
        return output.squeeze(-1), state

    def unroll(
        self,
        obs: Tensor,
        final_obs: Tensor | None,
        timed_out: Tensor,
        num_timeouts: int,
        carried: State,
        keep: Tensor,
        length: int,
        raw: Obs | None = None,
        final_raw: Obs | None = None,
    ) -> tuple[Tensor, Tensor, State]:
        """Value a whole rollout, normalized.

        Args:
            obs: the rollout's observations and the one after it, ``[T + 1, N, O]``.
            final_obs: what preceded each reset, ``[T, N, O]``; None if time-outs are not valued.
            timed_out: bool ``[T, N]``, where ``final_obs`` is to be valued. Elsewhere its value would be wasted, and in
                a rollout it is rarely wanted.
            num_timeouts: how many of them at most; a step beyond has the value of its own observation instead.
            carried: recurrent state at the rollout's start, moved on in place to the next one's.
            keep: ``[T + 1, N, 1]``, 0 where an episode begins.
            length: steps of the sequences that will be learned from.
            raw: images that come with ``obs``, by group.
            final_raw: those that come with ``final_obs``.

        Returns:
            Values of ``obs`` ``[T + 1, N]`` and, where timed out, of ``final_obs`` ``[T, N]``, with one more dimension
            of columns where there are signals; and the recurrent states where sequences begin, ``[T / length, N,
            layers, hidden]`` each.
        """
        steps = len(obs) - 1
        raw, final_raw = raw or {}, final_raw or {}
        starts: list[State] = []
        after: list[State] = []
        if not self.trunk.recurrent:
            values, state = self.forward(obs, raw=raw)
        else:
            # Step by step: the value of a time-out needs the state that its episode ended with.
            state, rows, begins = carried, [], keep == 0
            for t in range(steps + 1):
                state = cleared(state, begins[t])
                if t == steps:
                    for target, part in zip(carried, state, strict=True):
                        target.copy_(part)
                elif t % length == 0:
                    starts.append(state)
                value, state = self.forward(obs[t : t + 1], state, None, {g: x[t : t + 1] for g, x in raw.items()})
                rows.append(value)
                after.append(state)
            values = torch.cat(rows)
            state = tuple(torch.cat(parts, 1) for parts in zip(*after[:-1], strict=True))  # [layers, T * N, hidden]
        timeout_values = values[:-1]
        if final_obs is not None:
            flags = timed_out.flatten()  # [T * N]
            place = torch.where(flags, flags.cumsum(0) - 1, num_timeouts).clamp(max=num_timeouts)
            # One entry more than is valued, for what has no place.
            chosen = torch.zeros(num_timeouts + 1, dtype=torch.int64, device=place.device)
            chosen.scatter_(0, place, torch.arange(len(place), device=place.device))
            chosen = chosen[:-1]
            state = tuple(part.index_select(1, chosen) for part in state)
            last, *seen = (
                x.flatten(0, 1).index_select(0, chosen).unsqueeze(0) for x in (final_obs, *final_raw.values())
            )
            found = self.forward(last, state, None, dict(zip(final_raw, seen, strict=True)))[0]
            found = found.squeeze(0).index_select(0, place.clamp(max=num_timeouts - 1)).view_as(timeout_values)
            known = (place < num_timeouts).view(*timed_out.shape, *[1] * (values.dim() - 2))
            timeout_values = torch.where(known, found, timeout_values)
        begun = (torch.stack([part.transpose(0, 1) for part in parts]) for parts in zip(*starts, strict=True))
        return values, timeout_values, tuple(begun)


def build_policy(spec: EnvSpec, config: ActorCriticConfig) -> ActorPolicy:
    """Build an untrained policy; the one in a checkpoint loads into it without an env."""
    policy, safety = ActorPolicy(spec, config), getattr(config, "safety", None)
    if isinstance(safety, SafetyConfig) and safety.gate.threshold is not None:
        check(not spec.discrete, "safety.gate.threshold", safety.gate.threshold, "choices have no gate; set none")
        policy.gate = Gate(safety.gate, safety.violations, policy.size, policy.low, policy.high, spec)
    return policy
