"""Soft Actor-Critic (Haarnoja et al. 2018, arXiv:1812.05905) with twin critics and an automatic temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlcore.config import check, check_positive, settings_of
from rlcore.critics import encoded, frozen
from rlcore.distributions import sample_tanh_gaussian
from rlcore.env import EnvSpec, VecEnv
from rlcore.losses import actor_loss, critic_loss, temperature_gradient
from rlcore.off_policy import OffPolicy
from rlcore.off_policy_config import OffPolicyConfig
from rlcore.optimizer import polyak_update
from rlcore.policies import SquashedPolicy
from rlcore.replay import Batch
from rlcore.types import Metrics


@dataclass(frozen=True, kw_only=True)
class SACConfig(OffPolicyConfig):
    """Settings of SAC; the defaults are the classic ones, for one or a few envs."""

    init_temperature: float = 1.0
    """Weight of the entropy at the start."""
    learn_temperature: bool = True
    """Adapt the temperature so that the entropy meets its target."""
    temperature_learning_rate: float | None = None
    """Adam's step size for the logarithm of the temperature; none: learning_rate."""
    target_entropy: float | None = None
    """Entropy to keep, in nats and in the env's own action units; none: minus the number of action dimensions for
    actions scaled to within +-1, as in the paper, whatever their bounds are."""
    target_std: float | None = None
    """Instead of target_entropy: that of a normal distribution of this deviation, in half widths of the bounds."""
    target_std_end: float | None = None
    """What target_std falls to over the run, its logarithm along half a cosine; none: it stays."""
    center_entropy: bool = False
    """Count the entropy that is part of a value from the target on. It is then worth nothing where the target is met,
    and values stay about those of the rewards however many actions there are, as a value_range wants it."""
    init_std: float | None = None
    """Deviation before the tanh at the start, about; none: what the initial weights give."""
    log_std_range: tuple[float, float] = (-20.0, 2.0)
    """Bounds of the logarithm of the standard deviation before the tanh."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        super().__post_init__()
        check_positive(self, "init_temperature")
        check_positive(self, "temperature_learning_rate", "target_std", "target_std_end", "init_std", none=True)
        known = self.target_entropy is None or math.isfinite(self.target_entropy)
        check(known, "target_entropy", self.target_entropy, "set a number or none")
        single = self.target_std is None or self.target_entropy is None
        check(single, "target_std", self.target_std, "leave either it or target_entropy at none")
        reachable = self.target_std is None or self.target_std < _UNIFORM_STD
        check(
            reachable, "target_std", self.target_std, f"no policy explores more than with {_UNIFORM_STD:.2f}; set less"
        )
        there = self.target_std_end is None or self.target_std is not None
        check(there, "target_std_end", self.target_std_end, "set target_std, which it is the end of, as well")
        falls = self.target_std_end is None or self.target_std is None or self.target_std_end <= self.target_std
        check(falls, "target_std_end", self.target_std_end, f"set at most target_std ({self.target_std})")
        low, high = self.log_std_range
        check(low < high, "log_std_range", self.log_std_range, "set two rising numbers")

    def scheduled(self) -> str:
        """What falls over the run, in words; empty where nothing does."""
        return super().scheduled() or ("" if self.target_std_end is None else "target deviation")

    @classmethod
    def presets(cls) -> dict[str, dict[str, Any]]:
        """See ``OffPolicyConfig.presets``; ``gpu`` explores as FlashSAC does, but wide at first and narrow at last."""
        common = super().presets()
        return common | {"gpu": common["gpu"] | GPU}


_UNIFORM_STD = 2 / math.sqrt(2 * math.pi * math.e)
"""Deviation, in half widths, of the normal distribution that has the entropy of a uniform one over both."""

GPU: dict[str, Any] = {
    "init_temperature": 0.01,
    "target_std": 0.3,
    "target_std_end": 0.05,
    "center_entropy": True,
    "init_std": 0.5,
    "log_std_range": (-10.0, 2.0),
}


class SAC(OffPolicy):
    """SAC on a vector env.

    Args:
        env: what to learn on; its actions need finite bounds, or ``action_low`` and ``action_high`` in the settings.
        config: settings.
        seed: for weights, exploration and the env; None leaves PyTorch's generator as it is.
        num_iterations: planned length of the run, for the cosine schedule and ``target_std_end``.

    Raises:
        ConfigError: the settings do not fit the env.
    """

    config: SACConfig

    def __init__(
        self, env: VecEnv, config: SACConfig | None = None, seed: int | None = None, num_iterations: int | None = None
    ) -> None:
        config = settings_of(config, SACConfig)
        super().__init__(env, config, build_policy, seed, num_iterations)
        self.target_entropy: float | Tensor = self._target_entropy(config.target_std)
        if config.target_std_end is not None:
            ends = self.target_entropy, self._target_entropy(config.target_std_end)
            self._targets = torch.stack([torch.as_tensor(end, device=self.device) for end in ends])
            self.target_entropy = self._targets[0].clone()
        tasks = self.policy.tasks
        shape = () if tasks is None else (tasks.count,)  # a temperature for each task
        start = torch.full(shape, math.log(config.init_temperature), device=self.device)
        self.log_temperature = nn.Parameter(start)
        self.temperature_optimizer = self._adam([self.log_temperature])
        if config.temperature_learning_rate is not None:
            rate = torch.tensor(config.temperature_learning_rate, device=self.device)
            self.temperature_optimizer.learning_rate = rate

    def _target_entropy(self, deviation: float | None) -> float | Tensor:
        """In the env's units, in which bounds of half width ``scale`` have ``log(scale)`` more than those of +-1.

        Of several tasks ``[K]``.

        Raises:
            ConfigError: no distribution within the bounds has as much, so that the temperature would rise without end.
        """
        number: Any = self.policy.actions
        scale: Any = float(self.policy.action_scale.log().sum())
        if self.policy.tasks is not None:
            own = self.config.target_entropy
            check(own is None, "target_entropy", own, "tasks differ in their actions; set target_std, or none")
            number, scale = self.policy.tasks.sizes, self.policy.tasks.log_scale
        if deviation is not None:
            return number * (0.5 * math.log(2 * math.pi * math.e) + math.log(deviation)) + scale  # type: ignore[no-any-return]
        if self.config.target_entropy is None:
            return scale - number  # type: ignore[no-any-return]
        most = number * math.log(2) + scale  # of a uniform distribution
        remedy = f"actions within their bounds have less than {most:.4g}; set less, or none"
        check(self.config.target_entropy < most, "target_entropy", self.config.target_entropy, remedy)
        return self.config.target_entropy

    def _schedules(self) -> list[str]:
        return super()._schedules() + ([] if self.config.target_std_end is None else ["target_std_end"])

    def _improve(self, phase: int) -> Metrics:
        if self.config.target_std_end is None or not isinstance(self.target_entropy, Tensor):
            return super()._improve(phase)
        self.target_entropy.copy_(torch.lerp(self._targets[0], self._targets[1], self._fallen()))
        return super()._improve(phase) | {"policy/target_entropy": self.target_entropy.mean()}

    def _sample(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Draw actions ``[B, A]`` and their log density ``[B]``, for what the actor reads ``[B, O]``."""
        policy = self.policy
        if policy.tasks is not None:
            return policy.tasks.sample(policy.output(features), features, self.config.log_std_range)
        bounds = policy.action_scale, policy.action_bias
        return sample_tanh_gaussian(policy.output(features), self.config.log_std_range, *bounds)

    def _explore(self, features: Tensor) -> Tensor:
        return self.policy.drawn(self.policy.output(features), self.held.draw(), features)

    def _gradient_step(self, batch: Batch, with_actor: bool) -> Metrics:
        """Equations of arXiv:1812.05905; with n steps the entropy of those in between is left out."""
        config, weight = self.config, batch.weight
        seen, next_seen = batch.actor_obs, batch.next_actor_obs  # without images, as the gate has it
        batch = encoded(batch, self.policy, self.critics, self.policy, self.target_critics)
        # The soft value of what comes next, eq. 3: what target critics say, and the entropy bonus.
        with torch.no_grad():
            temperature = self._of_task(self.log_temperature.exp(), seen)
            next_action, next_log_prob = self._sample(batch.next_actor_obs)
            next_action = self.safety_critic.followed(next_seen, batch.next_actor_obs, next_action)
            if config.center_entropy:
                next_log_prob = next_log_prob + self._of_task(self.target_entropy, seen)
            bonus = -(temperature * next_log_prob)
            next_output = self.target_critics.output(batch.next_critic_obs, next_action)
        # The soft Bellman target, eq. 2, and the critics' distance from it, eq. 5.
        output = self._critic_output(batch.critic_obs, batch.action)
        fixed = batch.reward, batch.discount, weight, bonus
        loss, value = critic_loss(output, next_output, *fixed, reduce=config.q_reduce, support=self.critics.support)
        metrics = self._critic_step(loss, value)
        if (costs := self.costs) is not None:
            # What actions cost: the same by the larger of two critics, and without the entropy.
            metrics |= costs.improve(batch, next_action)
        if with_actor:
            # The actor's loss, eq. 9, through actions that are differentiable by the policy's output.
            action, log_prob = self._sample(batch.actor_obs)
            with frozen(self.critic_optimizer.parameters):
                values = self.critics(batch.critic_obs.detach(), action)
            weight = self.safety_critic.counted(seen, action, weight)
            loss, entropy = self._actor_loss(values, weight, log_prob, temperature, seen)
            if costs is not None:  # under limits, by multipliers that follow what episodes cost
                loss = costs.limited(loss, batch, action, weight)
            loss = self.safety_critic.with_danger(loss, seen, action)
            metrics |= self._actor_step(loss)
            if config.learn_temperature:
                # The temperature's loss, eq. 18: its derivative is all that the step needs.
                self.log_temperature.grad = gradient = temperature_gradient(entropy, self.target_entropy)
                self.temperature_optimizer.step(gradient if gradient.dim() == 0 else gradient.sum())
            metrics |= self._told(entropy)
        polyak_update(self.target_critic_buffer, self.critic_optimizer, config.tau)
        if costs is not None:
            polyak_update(costs.target_buffer, costs.optimizer, config.tau)
        return metrics

    def _of_task(self, value: float | Tensor, features: Tensor) -> Any:
        """A number of each task ``[K]`` for the rows ``[B]`` of what the actor reads; any other as it is."""
        tasks = self.policy.tasks
        return value if tasks is None or not isinstance(value, Tensor) else value[tasks.index(features)]

    def _actor_loss(
        self, values: Tensor, weight: Tensor, log_prob: Tensor, temperature: Tensor, features: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``losses.actor_loss`` and entropy; of several tasks ``[K]``, with the temperature ``[B]`` of each row's."""
        reduce, tasks = self.config.q_reduce, self.policy.tasks
        if tasks is None:
            return actor_loss(values, weight, reduce, log_prob, temperature)
        loss, _ = actor_loss(values, weight, reduce, temperature * log_prob, torch.ones_like(self.log_temperature[0]))
        entropy = tasks.mean_of(-log_prob.detach(), weight, tasks.index(features), self.target_entropy)
        return loss, entropy

    def _told(self, entropy: Tensor) -> Metrics:
        """Entropy and temperature, of several tasks by their names."""
        temperature = self.log_temperature.detach().exp()
        if self.policy.tasks is None:
            return {"policy/entropy": entropy, "policy/temperature": temperature}
        both = {"entropy": entropy, "temperature": temperature}
        names = list(self.env.tasks)  # type: ignore[attr-defined]
        return {f"policy/{k}_{n}": x for k, part in both.items() for n, x in zip(names, part.unbind(), strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Everything that learning depends on between two iterations."""
        return super().state_dict() | {
            "log_temperature": self.log_temperature.detach(),
            "temperature_optimizer": self.temperature_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``'s result; see ``OffPolicy.load_state_dict``."""
        super().load_state_dict(state)
        self.log_temperature.detach().copy_(state["log_temperature"])
        self.temperature_optimizer.load_state_dict(state["temperature_optimizer"])


def build_policy(spec: EnvSpec, config: SACConfig) -> SquashedPolicy:
    """Build an untrained policy, whose action is the squashed mean; one in a checkpoint loads without an env."""
    policy = SquashedPolicy(spec, config, outputs=2, log_std_range=config.log_std_range)
    if config.init_std is not None:
        with torch.no_grad():
            policy.head.bias.view(-1, 2 * policy.actions)[:, policy.actions :] = math.log(config.init_std)
    return policy
