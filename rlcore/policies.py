"""The deterministic policies that are evaluated and exported, with what they are learned by inside.

``ActorPolicy`` learns from rollouts (PPO), ``SquashedPolicy`` from a replay memory (SAC, DDPG, TD3).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rlcore.action_scale import about_one, action_scaling, bounded
from rlcore.actor_critic_config import ActorCriticConfig
from rlcore.agent import Policy
from rlcore.classifier import make_classifier
from rlcore.config import check
from rlcore.distributions import CategoricalHead, Distribution, Gaussian, GaussianHead
from rlcore.encoders import Encoders
from rlcore.env import EnvSpec
from rlcore.gate import Gate, Gated
from rlcore.networks import Network, network_output, orthogonal_
from rlcore.observations import (
    as_read,
    check_normalized,
    choose_groups,
    concatenate,
    groups_of,
    images,
    vectors,
)
from rlcore.off_policy_config import OffPolicyConfig
from rlcore.off_policy_config import action_bounds as action_bounds
from rlcore.safety import SafetyConfig
from rlcore.squashed_tasks import SquashedTasks
from rlcore.tasks import TASK_GROUP, TaskActions, check_tasks, normalizer_for, several, with_task
from rlcore.types import Obs, State

_NEAR_BOUND = 0.9  # of the way to a bound: as near as an actor begins, for a tanh that still moves


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
        chosen, others = choose_groups(groups_of(spec), config.actor_obs, config.critic_obs)
        chosen = with_task(spec, chosen)
        self.observation_sizes, image_shapes = vectors(spec, chosen), images(spec, chosen)
        self.groups = tuple(self.observation_sizes)
        check_tasks(spec, config)
        self.tasks: TaskActions | None = None
        if spec.tasks:
            self.tasks = TaskActions(spec, config.action_scale, config.clip_actions, config.actor.task_heads)
        actions = spec.action_size if self.tasks is None else self.tasks.outputs
        self.mask = config.action_mask
        if self.mask is not None:
            _check_mask(spec, self.mask)
        self.raw_shapes = {**image_shapes, **({} if self.mask is None else {self.mask: (spec.action_size,)})}
        size = sum(self.observation_sizes.values())
        check_normalized(spec, (*chosen, *others), config.normalize_obs)
        self.classifier = make_classifier(spec, config, size - len(spec.tasks))
        self.normalizer = normalizer_for(
            spec, self.observation_sizes, *config.normalization, by_task=self.classifier is None
        )
        self.trunk = Network(size, config.actor, image_shapes)
        features = self.trunk.size
        self.head: GaussianHead | CategoricalHead
        if spec.discrete:
            self.head = CategoricalHead(features, spec.action_parts or actions)
        else:
            self.head = GaussianHead(
                features,
                actions,
                config.init_std,
                config.min_std,
                config.max_std,
                config.state_dependent_std,
                config.std_type,
            )
            # Not in the state: they follow from the configuration and the env.
            self.register_buffer("low", torch.tensor(spec.action_low), persistent=False)
            self.register_buffer("high", torch.tensor(spec.action_high), persistent=False)
        scaling = action_scaling(spec, config.action_scale) if self.tasks is None else None  # which has them by task
        # In the state: a policy keeps the units that it learned in.
        self.register_buffer("action_scale", None if scaling is None else torch.tensor(scaling[0]))
        self.register_buffer("action_bias", None if scaling is None else torch.tensor(scaling[1]))
        self.spec, self.config, self.size = spec, config, size
        self.limited = False
        if not spec.discrete and self.tasks is None:
            self._set_limits()
            self.limited = bool((self.low > -torch.inf).any() or (self.high < torch.inf).any())
        if config.actor.init == "orthogonal":
            orthogonal_(self.head.linear, 0.01)
            if isinstance(self.head, GaussianHead):
                self.head.reset_std()
        self.give_task(self.classifier is None)

    def give_task(self, given: bool = True) -> None:
        """Take the task as an input, or let the classifier infer it, which there has to be then."""
        self.inferred_tasks = () if given else tuple(self.spec.tasks)
        sizes = vectors(self.spec, self.groups)
        self.observation_sizes = {name: size for name, size in sizes.items() if given or name != TASK_GROUP}

    def initial_state(self, num_envs: int) -> State:
        """Zero state for ``num_envs`` envs, of the classifier and the recurrent layer; ``()`` without these."""
        own = self.classifier.initial_state(num_envs) if self.classifier and self.inferred_tasks else ()
        return (*own, *self.trunk.initial_state(num_envs))

    def distribution(
        self, normalized: Tensor, state: State = (), keep: Tensor | None = None, raw: Obs | None = None
    ) -> tuple[Distribution, State]:
        """Map a sequence of observations, or those of one step, to action distributions and the next state.

        Args:
            normalized: vectors ``[T, N, O]``, or ``[N, O]`` of one step.
            state: before the first step.
            keep: ``[T, N, 1]``, 0 where an episode begins.
            raw: the groups of ``raw_shapes``, ``[T, N, ...]`` each, or ``[N, ...]``.
        """
        return self.outputs(normalized, state, keep, raw)[:2]

    def outputs(
        self,
        normalized: Tensor,
        state: State = (),
        keep: Tensor | None = None,
        raw: Obs | None = None,
        told: Tensor | None = None,
    ) -> tuple[Distribution, State, Tensor | None]:
        """What ``distribution`` returns, and logits of the task ``[T, N, K]`` where it is inferred.

        ``told`` ``[T, N, K]`` is the probability of each task that the policy acted by; see ``TaskClassifier.told``.
        """
        if self.classifier is None or not self.inferred_tasks:
            return (*self._decided(normalized, state, keep, raw), None)
        normalized, logits, own, state = self.classifier.with_probabilities(normalized, state, keep, told)
        distribution, state = self._decided(normalized, state, keep, raw)
        return distribution, (*own, *state), logits

    def _decided(
        self, normalized: Tensor, state: State, keep: Tensor | None, raw: Obs | None
    ) -> tuple[Distribution, State]:
        output, state = self.trunk(normalized, self.head.linear, state, keep, raw)
        if self.tasks is not None:
            return self.tasks.distribution(self.head, output, normalized), state
        if isinstance(self.head, GaussianHead):
            return self.head(output), state
        if self.mask is None:
            return self.head(output), state
        if raw is None:
            raise ValueError(f"action_mask: '{self.mask}' is not given; pass raw with all of raw_shapes")
        return self.head(output, raw[self.mask]), state

    def sample(self, distribution: Distribution, normalized: Tensor) -> Tensor:
        """Draw actions ``[N, A]`` from what ``distribution`` gave for normalized vectors ``[N, O]``."""
        return distribution.sample() if self.tasks is None else self.tasks.sample(distribution, normalized)

    def limit(self, action: Tensor, normalized: Tensor | None = None) -> Tensor:
        """Bring the distribution's actions ``[N, A]`` into the env's bounds: scaled to them if so set, then cut off.

        With several tasks into those of the task that normalized vectors ``[N, O]`` tell.
        """
        if self.tasks is not None:
            assert normalized is not None, "with several tasks normalized is needed"
            return self.tasks.limit(action, normalized)
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
        if spec.tasks:
            return ()
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
        normalized, distribution, state, _ = self._read(obs, state)
        return self.limit(distribution.mode, normalized), state

    def inferring(self, obs: Obs, state: State = ()) -> tuple[Tensor, Tensor, State]:
        """See ``Policy.inferring``."""
        normalized, distribution, state, logits = self._read(obs, state)
        assert logits is not None, "the policy is told its task"
        return self.limit(distribution.mode, normalized), logits.softmax(-1), state

    def judged(self, obs: Obs, state: State = ()) -> tuple[Gated, State]:
        """See ``Policy.judged``."""
        assert self.gate is not None, "the policy has no gate"
        normalized, distribution, state, _ = self._read(obs, state)
        drawn = self.drawn(distribution, self.gate.noise)
        return self.gate(normalized, self.limit(distribution.mode, normalized), drawn), state

    def output_of(self, vectors: Tensor) -> Distribution:
        """See ``Policy.output_of``: the distribution."""
        return self.distribution(vectors)[0]

    def drawn(self, output: Distribution, noise: Tensor) -> Tensor:
        """See ``Policy.drawn``."""
        assert isinstance(output, Gaussian), "choices are not drawn by a normal"
        return self.limit(output.mean + output.std * noise)

    def _read(self, obs: Obs, state: State) -> tuple[Tensor, Distribution, State, Tensor | None]:
        """Normalized vectors ``[N, O]``, what ``outputs`` gives for them without steps."""
        vector = concatenate(obs, tuple(self.observation_sizes))
        if self.inferred_tasks:  # nobody tells it; what stands there is not read
            vector = torch.cat([vector, vector.new_zeros(vector.shape[0], len(self.inferred_tasks))], -1)
        normalized = self.normalizer(vector)
        state = state or self.initial_state(normalized.shape[0])
        distribution, state, logits = self.outputs(normalized, state, None, as_read(obs, self.raw_shapes))
        return normalized, distribution, state, logits


def _check_mask(spec: EnvSpec, group: str) -> None:
    check(spec.discrete, "action_mask", group, "the env's actions are no choices; set none")
    size = spec.observation_sizes.get(group)
    vectors_there = ", ".join(spec.observation_sizes) or "none"
    check(
        size is not None, "action_mask", group, f"the env has no such vector among its observations ({vectors_there})"
    )
    remedy = f"that group has {size} numbers, and there are {spec.action_size} choices; name one of as many"
    check(size == spec.action_size, "action_mask", group, remedy)


def build_policy(spec: EnvSpec, config: ActorCriticConfig) -> ActorPolicy:
    """Build an untrained policy; the one in a checkpoint loads into it without an env."""
    policy, safety = ActorPolicy(spec, config), getattr(config, "safety", None)
    if isinstance(safety, SafetyConfig) and safety.gate.threshold is not None:
        check(not spec.discrete, "safety.gate.threshold", safety.gate.threshold, "choices have no gate; set none")
        policy.gate = Gate(safety.gate, safety.violations, policy.size, policy.low, policy.high, spec)
    return policy


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
        self.tasks = tasks = SquashedTasks(spec, config.actor.task_heads) if several(spec, config) else None
        one = torch.ones(spec.action_size)
        low, high = action_bounds(spec, config) if tasks is None else (-one, one)  # which tasks stretch
        chosen, others = choose_groups(groups_of(spec), config.actor_obs, config.critic_obs)
        chosen = with_task(spec, chosen)
        self.observation_sizes, image_shapes = vectors(spec, chosen), images(spec, chosen)
        self.groups, self.raw_shapes = tuple(self.observation_sizes), image_shapes
        size = sum(self.observation_sizes.values())
        check_normalized(spec, (*chosen, *others), config.normalize_obs)
        self.normalizer = normalizer_for(spec, self.observation_sizes, *config.normalization)
        encoders = Encoders(image_shapes, config.actor.cnn, config.actor.init)
        self.trunk = Network(encoders.size + size, config.actor)
        heads = tasks.count if tasks is not None and tasks.heads else 1
        self.head = nn.Linear(self.trunk.size, heads * outputs * spec.action_size)
        self.encoders = encoders  # behind what kernels want to find side by side, see ``optimizer.flat``
        if config.init_head_scale != 1:
            zero = (high + low) / (low - high)  # [A], or [K, A], where in -1..1 it lies
            if tasks is not None:
                zero = -tasks.bias / tasks.scale.where(tasks.active > 0, 1.0) if tasks.heads else torch.zeros_like(one)
            zero = torch.clamp(zero, -_NEAR_BOUND, _NEAR_BOUND)
            with torch.no_grad():
                self.head.weight.mul_(config.init_head_scale)
                self.head.bias.zero_()
                self.head.bias.view(heads, -1)[:, : spec.action_size] = torch.atanh(zero)
        for group, (_, height, width) in image_shapes.items():
            remedy = f"images of '{group}' are {height}x{width}, and would be moved out of sight; set less"
            check(config.random_shift < min(height, width), "random_shift", config.random_shift, remedy)
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
        if self.tasks is not None:
            return "those of each task"
        bounds = [f"{low:g} to {high:g}" for low, high in zip(self.low.tolist(), self.high.tolist(), strict=True)]
        return ", ".join(bounds if len(set(bounds)) > 1 else bounds[:1])

    def output(self, features: Tensor) -> Tensor:
        """Map features of images and normalized vectors, joined, ``[B, O]`` to the head's output."""
        output = network_output(self.trunk, self.head, features)
        return output if self.tasks is None else self.tasks.output(output, features)

    def squash(self, raw: Tensor, features: Tensor | None = None) -> Tensor:
        """Bring ``[..., A]`` of any size into the action bounds; with several tasks those that features tell."""
        return self.stretched(torch.tanh(raw), features)

    def stretched(self, unit: Tensor, features: Tensor | None = None) -> Tensor:
        """Bring -1..1 ``[..., A]`` to the action bounds; with several tasks to those that features tell."""
        if self.tasks is not None:
            assert features is not None, "with several tasks features are needed"
            return self.tasks.stretched(unit, features)
        return self.action_bias + self.action_scale * unit

    def limit(self, action: Tensor) -> Tensor:
        """Clip actions ``[N, A]`` to the bounds."""
        return torch.clamp(action, self.low, self.high)

    def forward(self, obs: Obs, state: State = ()) -> tuple[Tensor, State]:
        """Return the actor's central action, or what the gate has in its place, and no state."""
        if self.gate is not None:
            return self.judged(obs)[0].action, ()
        vectors, output = self._read(obs)
        return self.squash(output[..., : self.actions], vectors), ()

    def judged(self, obs: Obs, state: State = ()) -> tuple[Gated, State]:
        """See ``Policy.judged``."""
        assert self.gate is not None, "the policy has no gate"
        vectors, output = self._read(obs)
        return self.gate(vectors, self.squash(output[..., : self.actions]), self.drawn(output, self.gate.noise)), ()

    def _read(self, obs: Obs) -> tuple[Tensor, Tensor]:
        """Normalized vectors ``[N, O]``, and the head's output for them and the images beside them."""
        vectors = self.normalizer(concatenate(obs, self.groups))
        return vectors, self.output(self.encoders(as_read(obs, self.raw_shapes), vectors))

    def output_of(self, vectors: Tensor) -> Tensor:
        """See ``Policy.output_of``."""
        return self.output(vectors)

    def drawn(self, output: Tensor, noise: Tensor, features: Tensor | None = None) -> Tensor:
        """See ``Policy.drawn`` and ``squash``; the deviation is that which the head gives, else that of exploration."""
        mean, log_std = output[..., : self.actions], output[..., self.actions :]
        if self.stochastic:
            return self.squash(mean + log_std.clamp(*self.log_std_range).exp() * noise, features)
        return self.limit(self.squash(mean) + self.action_scale * self.spread * noise)
