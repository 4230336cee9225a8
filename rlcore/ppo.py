"""Proximal Policy Optimization (Schulman et al. 2017, arXiv:1707.06347) for batches of environments.

Everything from observation to optimizer step stays on the device: no value is read by the host, no shape depends on
data, and what other implementations decide with ``if`` (learning rate, early stop, skipping a broken step) is decided
here with tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rlcore.config import ConfigError, check
from rlcore.distributions import CategoricalHead, Distribution, GaussianHead
from rlcore.env import EnvSpec, VecEnv, spec_of
from rlcore.learn import Progress, learn
from rlcore.networks import NetworkConfig, choose_groups, concatenate, feature_size, mlp, orthogonal_
from rlcore.normalization import NoNormalizer, RunningNormalizer
from rlcore.returns import gae, next_values
from rlcore.rollout import Rollout
from rlcore.types import Metrics, Obs, Policy, State, Step


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """Settings of PPO; the defaults suit thousands of simulated robots."""

    num_steps: int = 24
    """Vector steps between two updates (T)."""
    num_epochs: int = 5
    """Passes over the rollout in one update."""
    num_minibatches: int = 4
    """Parts that a pass is cut into; must divide num_envs * num_steps."""
    learning_rate: float = 1e-3
    """Adam's step size, at the start if a schedule moves it."""
    lr_schedule: Literal["adaptive", "linear", "constant"] = "adaptive"
    """adaptive: follow desired_kl, minibatch by minibatch; linear: down to 0 at the last iteration."""
    desired_kl: float = 0.01
    """KL(old, new) in nats that the adaptive schedule aims at."""
    kl_factor: float = 1.5
    """The adaptive schedule divides or multiplies the learning rate by this much."""
    kl_band: tuple[float, float] = (0.5, 2.0)
    """The adaptive schedule acts outside these multiples of desired_kl."""
    lr_min: float = 1e-5
    """Lower bound of the adaptive learning rate."""
    lr_max: float = 1e-2
    """Upper bound of the adaptive learning rate."""
    target_kl: float | None = None
    """Skip the rest of an update once a minibatch's KL exceeds this; none for never."""
    gamma: float = 0.99
    """Discount per step."""
    gae_lambda: float = 0.95
    """Weight of longer advantage estimates (arXiv:1506.02438)."""
    timeout_bootstrap: Literal["final_obs", "value", "none"] = "final_obs"
    """What a time-out is worth: V of the true last observation (else, where the env hides it, as value); V of the
    observation before it, as rsl_rl does; or nothing."""
    clip_range: float = 0.2
    """Probability ratios are clipped to 1 +- this."""
    value_coef: float = 1.0
    """Weight of the mean squared value error (not halved)."""
    clip_value_loss: bool = True
    """Also limit how far a value moves from the old one, to +- clip_range, and take the larger error."""
    entropy_coef: float = 0.005
    """Weight of the entropy bonus, summed over action dimensions."""
    bounds_loss_coef: float = 0.0
    """Weight of the squared distance of action means beyond +- bounds_loss_limit."""
    bounds_loss_limit: float = 1.1
    """Where the bounds loss begins."""
    normalize_advantage: Literal["batch", "minibatch", "none"] = "batch"
    """Over what advantages are brought to zero mean and unit deviation."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    grad_clip: Literal["joint", "separate"] = "joint"
    """One norm over all parameters, or one for the actor and one for the critic."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this before learning; logs show them unscaled."""
    reward_clip: float | None = None
    """Scaled rewards are limited to +- this; none for no limit."""
    normalize_obs: bool = True
    """Bring observations to zero mean and unit deviation, by running statistics inside the policy."""
    clip_obs: float | None = 10.0
    """Largest magnitude of a normalized observation; none for no limit."""
    normalize_value: bool = False
    """Let the critic predict returns brought to zero mean and unit deviation."""
    actor: NetworkConfig = NetworkConfig()
    """Hidden layers of the actor."""
    critic: NetworkConfig = NetworkConfig()
    """Hidden layers of the critic; unused if the trunk is shared."""
    share_trunk: bool = False
    """Actor and critic share the actor's hidden layers."""
    actor_obs: tuple[str, ...] | None = None
    """Observation groups of the actor; none: 'policy', else 'actor'."""
    critic_obs: tuple[str, ...] | None = None
    """Observation groups of the critic; none: 'critic', else the actor's."""
    init_std: float = 1.0
    """Standard deviation of actions at the start."""
    min_std: float = 0.01
    """Floor of the standard deviation."""
    max_std: float = 100.0
    """Ceiling of the standard deviation."""
    state_dependent_std: bool = False
    """Learn a standard deviation per state, not one for all."""
    clip_actions: float | None = None
    """Limit actions to +- this, inside the policy; finite bounds of the env's action space always hold."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        for key in ("num_steps", "num_epochs", "num_minibatches"):
            check(getattr(self, key) >= 1, key, getattr(self, key), "set at least 1")
        for key in ("learning_rate", "desired_kl", "lr_min", "max_grad_norm", "min_std", "reward_scale", "clip_range"):
            check(getattr(self, key) > 0, key, getattr(self, key), "set a positive number")
        for key in ("target_kl", "reward_clip", "clip_obs", "clip_actions"):
            value = getattr(self, key)
            check(value is None or value > 0, key, value, "set a positive number or none")
        for key in ("value_coef", "entropy_coef", "bounds_loss_coef", "bounds_loss_limit"):
            check(getattr(self, key) >= 0, key, getattr(self, key), "set 0 or more")
        for key in ("gamma", "gae_lambda"):
            check(0 <= getattr(self, key) <= 1, key, getattr(self, key), "set a number from 0 to 1")
        check(self.lr_min <= self.lr_max, "lr_max", self.lr_max, f"set at least lr_min ({self.lr_min})")
        check(self.kl_factor > 1, "kl_factor", self.kl_factor, "set more than 1")
        check(0 <= self.kl_band[0] < self.kl_band[1], "kl_band", self.kl_band, "set two rising multiples")
        check(self.min_std < self.init_std, "init_std", self.init_std, f"set more than min_std ({self.min_std})")
        check(self.init_std <= self.max_std, "max_std", self.max_std, f"set at least init_std ({self.init_std})")


class PPOPolicy(Policy):
    """The actor: normalizer, hidden layers, distribution head, action limits."""

    low: Tensor  # [A], where actions are continuous
    high: Tensor  # [A]

    def __init__(self, spec: EnvSpec, config: PPOConfig) -> None:
        super().__init__()
        self.groups, _ = choose_groups(spec.observation_sizes, config.actor_obs, config.critic_obs)
        self.observation_sizes = {group: spec.observation_sizes[group] for group in self.groups}
        size = sum(self.observation_sizes.values())
        self.normalizer = _normalizer(size, config)
        self.trunk = mlp(size, config.actor)
        features = feature_size(size, config.actor)
        self.head: GaussianHead | CategoricalHead
        if spec.discrete:
            self.head = CategoricalHead(features, spec.action_size)
        else:
            self.head = GaussianHead(
                features, spec.action_size, config.init_std, config.min_std, config.max_std, config.state_dependent_std
            )
            limit = config.clip_actions if config.clip_actions is not None else torch.inf
            # Not in the state: they follow from the configuration and the env.
            self.register_buffer("low", torch.tensor(spec.action_low).clamp(min=-limit), persistent=False)
            self.register_buffer("high", torch.tensor(spec.action_high).clamp(max=limit), persistent=False)
        self.limited = not spec.discrete and bool((self.low > -torch.inf).any() or (self.high < torch.inf).any())
        if config.actor.init == "orthogonal":
            orthogonal_(self.head.mean, 0.01)

    def distribution(self, normalized: Tensor) -> Distribution:
        """Map normalized observations ``[B, O]`` to the action distribution."""
        return self.head(self.trunk(normalized))  # type: ignore[no-any-return]

    def limit(self, action: Tensor) -> Tensor:
        """Bring actions within their bounds, ``[N, A]``."""
        return torch.clamp(action, self.low, self.high) if self.limited else action

    def forward(self, obs: Obs, state: State = ()) -> tuple[Tensor, State]:
        """Return the most likely action within its bounds, and the state unchanged."""
        normalized = self.normalizer(concatenate(obs, self.groups))
        return self.limit(self.distribution(normalized).mode), state


class Critic(nn.Module):
    """State values from its own observation groups, or from the actor's features."""

    def __init__(self, spec: EnvSpec, config: PPOConfig, policy: PPOPolicy) -> None:
        super().__init__()
        _, self.groups = choose_groups(spec.observation_sizes, config.actor_obs, config.critic_obs)
        same = self.groups == policy.groups
        if config.share_trunk and not same:
            raise ConfigError(
                f"share_trunk: the actor reads {policy.groups} and the critic {self.groups}; a shared trunk needs the "
                "same groups, set critic_obs to the actor's or share_trunk to false"
            )
        size = sum(spec.observation_sizes[group] for group in self.groups)
        self.normalizer = policy.normalizer if same else _normalizer(size, config)
        self.trunk = policy.trunk if config.share_trunk else mlp(size, config.critic)
        self.value = nn.Linear(feature_size(size, config.actor if config.share_trunk else config.critic), 1)
        if config.critic.init == "orthogonal":
            orthogonal_(self.value, 1.0)

    def forward(self, normalized: Tensor) -> Tensor:
        """Map normalized observations ``[..., O]`` to values ``[...]``."""
        return self.value(self.trunk(normalized)).squeeze(-1)  # type: ignore[no-any-return]


def build_policy(spec: EnvSpec, config: PPOConfig) -> PPOPolicy:
    """Build an untrained policy; the one in a checkpoint loads into it without an env."""
    return PPOPolicy(spec, config)


class PPO:
    """PPO on a vector env.

    ``act`` and ``record`` take turns, ``num_steps`` times, then ``update``; ``learn`` does all of it.

    Args:
        env: what to learn on.
        config: settings.
        seed: for weights, exploration and the env; None leaves PyTorch's generator as it is.
        num_iterations: planned length of the run, for the linear schedule.

    Raises:
        ConfigError: the settings do not fit the env.
    """

    def __init__(
        self, env: VecEnv, config: PPOConfig | None = None, seed: int | None = None, num_iterations: int | None = None
    ) -> None:
        self.env, self.config, self.seed, self.num_iterations = env, config or PPOConfig(), seed, num_iterations
        config = self.config
        self.num_steps, self.iteration = config.num_steps, 0
        self.batch_size = env.num_envs * config.num_steps
        check(
            self.batch_size % config.num_minibatches == 0,
            "num_minibatches",
            config.num_minibatches,
            f"it must divide num_envs * num_steps = {self.batch_size}",
        )
        if seed is not None:
            torch.manual_seed(seed)
        device = torch.device(env.device)
        spec = spec_of(env)
        self.policy = build_policy(spec, config).to(device)
        self.critic = Critic(spec, config, self.policy).to(device)
        self.value_normalizer = RunningNormalizer(1).to(device) if config.normalize_value else None
        # dict.fromkeys: with a shared trunk both modules list its parameters.
        parameters = list(dict.fromkeys([*self.policy.parameters(), *self.critic.parameters()]))
        actor = list(self.policy.parameters())
        self.clip_groups = [parameters] if config.grad_clip == "joint" else [actor, parameters[len(actor) :]]
        self.learning_rate = torch.tensor(config.learning_rate, device=device)
        self.optimizer = torch.optim.Adam(
            parameters, lr=self.learning_rate, fused=True, capturable=device.type == "cuda"
        )
        self.rollout = Rollout(config.num_steps, env.num_envs, device)
        self.trace = Rollout(config.num_steps, min(env.num_envs, 8), device)  # raw, of a few envs
        self.timeout_bootstrap = config.timeout_bootstrap

    def learn(self, num_iterations: int, **kwargs: Any) -> Progress:
        """Train until ``num_iterations`` iterations in all; further arguments as ``rlcore.learn.learn``."""
        self.num_iterations = num_iterations
        return learn(self.env, self, num_iterations, seed=self.seed, **kwargs)

    def initial_state(self) -> State:
        """Feed-forward: there is none."""
        return ()

    @torch.no_grad()
    def act(self, obs: Obs, state: State) -> tuple[Tensor, None, State]:
        """Sample an action, learn the observation's statistics, and write both into the rollout's present row."""
        actor_obs = concatenate(obs, self.policy.groups)
        critic_obs = concatenate(obs, self.critic.groups)
        self.policy.normalizer.update(actor_obs)
        if self.critic.normalizer is not self.policy.normalizer:
            self.critic.normalizer.update(critic_obs)
        # Stored as the network saw them: the statistics move on, and the ratio of the first minibatch must be 1.
        row = {"actor_obs": self.policy.normalizer(actor_obs)}
        if self.critic.groups != self.policy.groups:
            row["critic_obs"] = self.critic.normalizer(critic_obs)
        distribution = self.policy.distribution(row["actor_obs"])
        action = distribution.sample()
        row |= {"action": action, "log_prob": distribution.log_prob(action)}
        row |= {f"old_{name}": value for name, value in distribution._asdict().items()}
        self.rollout.write(row)
        self.trace.write({group: value[: self.trace.num_envs] for group, value in obs.items()})
        return self.policy.limit(action), None, state

    @torch.no_grad()
    def record(self, obs: Obs, action: Tensor, extras: None, state: State, step: Step) -> None:
        """Complete the rollout's present row with what the env answered."""
        reward = step.reward * self.config.reward_scale
        if self.config.reward_clip is not None:
            reward = reward.clamp(-self.config.reward_clip, self.config.reward_clip)
        row = {"reward": reward, "terminated": step.terminated, "truncated": step.truncated}
        if self.timeout_bootstrap == "final_obs" and step.final_obs is None:
            self.timeout_bootstrap = "value"
        if self.timeout_bootstrap == "final_obs":
            assert step.final_obs is not None
            row["final_obs"] = self.critic.normalizer(concatenate(step.final_obs, self.critic.groups))
        self.rollout.write(row)
        self.trace.write({"done": (step.terminated | step.truncated)[: self.trace.num_envs]})
        self.rollout.advance()
        self.trace.advance()
        self.next_obs = concatenate(step.obs, self.critic.groups)  # [N, O]

    def update(self) -> Metrics:
        """Learn from a full rollout."""
        if self.config.lr_schedule == "linear":
            if self.num_iterations is None:
                raise ConfigError("lr_schedule: 'linear' needs the length of the run; pass num_iterations")
            remaining = max(0.0, 1 - self.iteration / self.num_iterations)
            self.learning_rate.fill_(self.config.learning_rate * remaining)
        self.iteration += 1
        return self._update(self.next_obs)

    def _update(self, next_obs: Tensor) -> Metrics:
        batch, metrics = self._targets(next_obs)
        total: Metrics = {}
        self.stopped = torch.zeros((), dtype=torch.bool, device=next_obs.device)
        for _ in range(self.config.num_epochs):
            order = torch.randperm(self.batch_size, device=next_obs.device)
            for index in order.chunk(self.config.num_minibatches):
                sample = {name: value.index_select(0, index) for name, value in batch.items()}
                for name, value in self._minibatch(sample).items():
                    total[name] = total[name] + value if name in total else value
        applied = total.pop("applied")
        metrics |= {name: value / applied.clamp(min=1) for name, value in total.items()}
        metrics["policy/skipped_minibatches"] = self.config.num_epochs * self.config.num_minibatches - applied
        metrics["policy/learning_rate"] = self.learning_rate.clone()
        return metrics

    @torch.no_grad()
    def _targets(self, next_obs: Tensor) -> tuple[dict[str, Tensor], Metrics]:
        """Compute advantages and returns, and lay the rollout out as samples ``[T * N, ...]``."""
        data = self.rollout.data
        data.setdefault("critic_obs", data["actor_obs"])
        values = self.critic(torch.cat([data["critic_obs"], self.critic.normalizer(next_obs).unsqueeze(0)]))
        values = self._denormalize(values)  # [T + 1, N]
        timeout_values = torch.zeros_like(values[:-1])
        if self.timeout_bootstrap == "final_obs":
            timeout_values = self._denormalize(self.critic(data["final_obs"]))
        elif self.timeout_bootstrap == "value":
            timeout_values = values[:-1]
        following = next_values(values, data["terminated"], data["truncated"], timeout_values)
        done = data["terminated"] | data["truncated"]
        config = self.config
        advantages, returns = gae(data["reward"], values[:-1], following, done, config.gamma, config.gae_lambda)
        unexplained = (returns - values[:-1]).var() / returns.var().clamp(min=1e-8)
        if self.value_normalizer is not None:
            old = values[:-1].reshape(-1, 1)
            self.value_normalizer.update(returns.reshape(-1, 1))
            values, returns = self.value_normalizer(old), self.value_normalizer(returns.reshape(-1, 1))
        else:
            values = values[:-1]
        if config.normalize_advantage == "batch":
            advantages = _standardize(advantages)
        kept = {name: value.flatten(0, 1) for name, value in data.items() if name not in _ROLLOUT_ONLY}
        kept |= {"value": values.reshape(-1), "advantage": advantages.reshape(-1), "returns": returns.reshape(-1)}
        return kept, {"policy/explained_variance": 1 - unexplained}

    def _minibatch(self, sample: dict[str, Tensor]) -> Metrics:
        """Take one optimizer step on samples ``[B, ...]``, unless it is to be skipped."""
        config = self.config
        distribution = self.policy.distribution(sample["actor_obs"])
        old = type(distribution)(*(sample[f"old_{name}"] for name in distribution._fields))
        value = self.critic(sample["critic_obs"])  # [B]
        advantage = sample["advantage"]
        if config.normalize_advantage == "minibatch":
            advantage = _standardize(advantage)

        ratio = (distribution.log_prob(sample["action"]) - sample["log_prob"]).exp()
        clipped = ratio.clamp(1 - config.clip_range, 1 + config.clip_range)
        policy_loss = -torch.min(ratio * advantage, clipped * advantage).mean()  # PPO eq. 7
        error = (value - sample["returns"]).square()
        if config.clip_value_loss:
            near = sample["value"] + (value - sample["value"]).clamp(-config.clip_range, config.clip_range)
            error = torch.max(error, (near - sample["returns"]).square())
        value_loss = error.mean()
        entropy = distribution.entropy().mean()
        loss = policy_loss + config.value_coef * value_loss - config.entropy_coef * entropy
        metrics = {"loss/policy": policy_loss, "loss/value": value_loss, "policy/entropy": entropy}
        if config.bounds_loss_coef > 0 and "old_mean" in sample:
            beyond = (distribution.mode.abs() - config.bounds_loss_limit).clamp(min=0)
            metrics["loss/bounds"] = beyond.square().sum(-1).mean()
            loss = loss + config.bounds_loss_coef * metrics["loss/bounds"]

        self.optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            norms = [nn.utils.clip_grad_norm_(group, config.max_grad_norm) for group in self.clip_groups]
            kl = old.kl(distribution).mean()  # type: ignore[arg-type]
            if config.lr_schedule == "adaptive":
                self._adapt_learning_rate(kl)
            if config.target_kl is not None:
                self.stopped = self.stopped | (kl > config.target_kl)
            finite = torch.isfinite(loss) & torch.stack(norms).isfinite().all()
            applied = finite & ~self.stopped
            # Adam's own switch: with found_inf set, it leaves parameters, moments and step count alone.
            self.optimizer.found_inf = (~applied).float()  # type: ignore[attr-defined]
            self.optimizer.step()
            metrics |= {
                "policy/kl": kl,
                "policy/clip_fraction": ((ratio - 1).abs() > config.clip_range).float().mean(),
                "policy/gradient_norm": torch.stack(norms).norm(),
            }
            if "old_std" in sample:
                metrics["policy/std"] = sample["old_std"].mean()
            zero = torch.zeros_like(loss)
            metrics = {name: torch.where(applied, value.detach(), zero) for name, value in metrics.items()}
            metrics["applied"] = applied.float()
        return metrics

    def _adapt_learning_rate(self, kl: Tensor) -> None:
        """Slow down when the policy moved too far and speed up when too little, before this minibatch's step."""
        config, rate = self.config, self.learning_rate
        slower = (rate / config.kl_factor).clamp(min=config.lr_min)
        faster = (rate * config.kl_factor).clamp(max=config.lr_max)
        too_far = kl > config.kl_band[1] * config.desired_kl
        too_near = (kl < config.kl_band[0] * config.desired_kl) & (kl > 0)
        rate.copy_(torch.where(too_far, slower, torch.where(too_near, faster, rate)))

    def _denormalize(self, values: Tensor) -> Tensor:
        if self.value_normalizer is None:
            return values
        return self.value_normalizer.inverse(values.unsqueeze(-1)).squeeze(-1)

    def recording(self) -> dict[str, Tensor]:
        """Raw observations ``[T, M, O]`` by group and ``done`` ``[T, M]`` of the last rollout's first few envs."""
        return {name: value.clone() for name, value in self.trace.data.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything that learning depends on between two iterations."""
        return {
            "policy": self.policy.state_dict(),
            "critic": self.critic.state_dict(),
            "value_normalizer": self.value_normalizer.state_dict() if self.value_normalizer else None,
            "optimizer": self.optimizer.state_dict(),
            "learning_rate": self.learning_rate,
            "iteration": self.iteration,
            "timeout_bootstrap": self.timeout_bootstrap,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``'s result."""
        self.policy.load_state_dict(state["policy"])
        self.critic.load_state_dict(state["critic"])
        if self.value_normalizer is not None:
            self.value_normalizer.load_state_dict(state["value_normalizer"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.learning_rate.copy_(state["learning_rate"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate  # loading put a copy there, which the schedule would not move
        self.iteration = state["iteration"]
        self.timeout_bootstrap = state["timeout_bootstrap"]


_ROLLOUT_ONLY = {"reward", "terminated", "truncated", "final_obs"}


def _normalizer(size: int, config: PPOConfig) -> RunningNormalizer | NoNormalizer:
    return RunningNormalizer(size, clip=config.clip_obs) if config.normalize_obs else NoNormalizer()


def _standardize(x: Tensor) -> Tensor:
    return (x - x.mean()) / (x.std(correction=0) + 1e-8)
