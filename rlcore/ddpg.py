"""Deep Deterministic Policy Gradient (Lillicrap et al. 2016, arXiv:1509.02971), and what makes it TD3.

With ``num_critics: 2``, ``policy_delay: 2`` and ``target_noise: 0.2`` it is TD3 (Fujimoto et al. 2018,
arXiv:1802.09477), which is what the preset ``td3`` sets; each of the three can also be had alone.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from rlcore.anchors import Anchors
from rlcore.config import ConfigError, check, settings_of
from rlcore.critics import encoded, frozen
from rlcore.env import EnvSpec, VecEnv
from rlcore.exploration import Deviation
from rlcore.losses import actor_loss, critic_loss
from rlcore.off_policy import OffPolicy
from rlcore.off_policy_config import OffPolicyConfig
from rlcore.optimizer import flat, learned, polyak_update
from rlcore.policies import SquashedPolicy
from rlcore.replay import Batch
from rlcore.types import Metrics


@dataclass(frozen=True, kw_only=True)
class DDPGConfig(OffPolicyConfig):
    """Settings of DDPG; the defaults are the classic ones, for one or a few envs."""

    schedulable: ClassVar[tuple[str, ...]] = ("learning_rate", "noise_std")

    num_critics: int = 1
    """Critics, which learn side by side; TD3 has two. The actor maximizes the first."""
    noise: Literal["gaussian", "ou"] = "gaussian"
    """Exploration: independent at each step, or an Ornstein-Uhlenbeck process that begins anew with each episode."""
    noise_std: float = 0.1
    """Deviation of the noise that is added to actions, in half widths of their bounds; of each increment with ou."""
    noise_decay: float = 0.15
    """Part that the Ornstein-Uhlenbeck process loses at each step: its theta times the step's length."""
    noise_range: tuple[float, float] | None = None
    """Deviations of the noise that the envs are spread over, in place of noise_std for all."""
    noise_spread: Literal["envs", "episodes"] = "envs"
    """Whether each env keeps its deviation for good, evenly over noise_range, or draws one for each episode."""
    target_noise: float = 0.0
    """Deviation of the noise on the actions that targets are computed with, in half widths of their bounds (TD3)."""
    target_noise_clip: float = 0.5
    """Largest such noise, in half widths of the bounds."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        super().__post_init__()
        for key in ("noise_std", "target_noise", "target_noise_clip"):
            check(getattr(self, key) >= 0, key, getattr(self, key), "set 0 or more")
        if self.noise_range is not None:
            low, high = self.noise_range
            check(0 <= low <= high, "noise_range", self.noise_range, "set two numbers from 0 on, the smaller one first")
        alike = self.noise_range is None or "noise_std" not in self.schedules
        remedy = "schedules.noise_std is of one deviation for all; leave either out"
        check(alike, "noise_range", self.noise_range, remedy)
        fresh = self.noise == "gaussian" or self.noise_hold == 1
        check(fresh, "noise_hold", self.noise_hold, "an Ornstein-Uhlenbeck process lasts by itself; set 1")
        check(0 <= self.noise_decay <= 1, "noise_decay", self.noise_decay, "set a number from 0 to 1")

    @classmethod
    def presets(cls) -> dict[str, dict[str, Any]]:
        """See ``OffPolicyConfig.presets``; ``td3`` makes of the classic settings TD3, and ``gpu`` has that in it."""
        common = super().presets()
        return common | {"td3": TD3, "gpu": common["gpu"] | TD3 | GPU}


TD3: dict[str, Any] = {"num_critics": 2, "policy_delay": 2, "target_noise": 0.2, "target_noise_clip": 0.5}
GPU: dict[str, Any] = {"target_noise": 0.05, "noise_range": (0.05, 0.5)}


class DDPG(OffPolicy):
    """DDPG on a vector env.

    Args:
        env: what to learn on; its actions need finite bounds, or ``action_low`` and ``action_high`` in the settings.
        config: settings.
        seed: for weights, exploration and the env; None leaves PyTorch's generator as it is.
        num_iterations: planned length of the run, for the cosine schedule.

    Raises:
        ConfigError: the settings do not fit the env.
    """

    config: DDPGConfig

    def __init__(
        self, env: VecEnv, config: DDPGConfig | None = None, seed: int | None = None, num_iterations: int | None = None
    ) -> None:
        config = settings_of(config, DDPGConfig)
        super().__init__(env, config, build_policy, seed, num_iterations)
        # With the encoders of the target critics, where the actor has those of the critics.
        copied = dict(zip(map(id, self.critics.modules()), self.target_critics.modules(), strict=True))
        self.target_policy = copy.deepcopy(self.policy, copied)
        self.target_policy_buffer = flat(learned(self.target_policy))  # without these
        self.target_policy.requires_grad_(False)
        self.target_policy.gate = None  # which judges what is done, and not what is imagined
        low, high = config.noise_range or (config.noise_std, config.noise_std)
        self.deviation = Deviation(env.num_envs, low, high, config.noise_spread).to(self.device)
        self.noise = torch.zeros(env.num_envs, self.policy.actions, device=self.device)  # [N, A], of the process
        self.anchors = Anchors(self)  # which has a target policy as well by now

    def _explore(self, features: Tensor) -> Tensor:
        policy = self.policy
        action = policy.squash(policy.output(features))
        noise = self.schedules.values.get("noise_std", self.deviation.value) * self.held.draw()
        if self.config.noise == "ou":
            noise = self.noise.mul_(1 - self.config.noise_decay).add_(noise)
        return policy.limit(action + policy.action_scale * noise)

    def _end_episodes(self, done: Tensor) -> None:
        self.noise.masked_fill_(done.unsqueeze(1), 0.0)
        if self.config.noise_range is not None:
            self.deviation.end(done)

    def _gradient_step(self, batch: Batch, with_actor: bool) -> Metrics:
        """Equations of arXiv:1509.02971, and of TD3 (arXiv:1802.09477) with its settings."""
        config, policy, weight = self.config, self.target_policy, batch.weight
        seen, next_seen = batch.actor_obs, batch.next_actor_obs  # without images, as the gate has it
        batch = encoded(batch, self.policy, self.critics, policy, self.target_critics)
        # What target networks do next and say of it.
        with torch.no_grad():
            next_action = policy.squash(policy.output(batch.next_actor_obs))
            if config.target_noise > 0:  # target policy smoothing, TD3 section 5.3
                noise = config.target_noise * torch.randn_like(next_action)
                noise = noise.clamp(-config.target_noise_clip, config.target_noise_clip)
                next_action = policy.limit(next_action + policy.action_scale * noise)
            next_action = self.safety_critic.followed(next_seen, batch.next_actor_obs, next_action)
            next_output = self.target_critics.output(batch.next_critic_obs, next_action)
        # The target, eq. 5, or the lower of two critics', TD3 eq. 10; and the critics' distance from it, eq. 4.
        output = self._critic_output(batch.critic_obs, batch.action)
        fixed = batch.reward, batch.discount, weight
        loss, value = critic_loss(output, next_output, *fixed, reduce=config.q_reduce, support=self.critics.support)
        metrics = self._critic_step(loss, value)
        if (costs := self.costs) is not None:
            # What actions cost: the same by the larger of two critics.
            metrics |= costs.improve(batch, next_action)
        if with_actor:  # less often than the critics, and the targets wait for it too: TD3 section 5.2
            # Up the first critic along the deterministic policy gradient, eq. 6.
            action = self.policy.squash(self.policy.output(batch.actor_obs))
            with frozen(self.critic_optimizer.parameters):
                values = self.critics(batch.critic_obs.detach(), action, count=1)
            weight = self.safety_critic.counted(seen, action, weight)
            loss = actor_loss(values, weight, "mean")[0]
            if costs is not None:  # under limits, by multipliers that follow what episodes cost
                loss = costs.limited(loss, batch, action, weight)
                polyak_update(costs.target_buffer, costs.optimizer, config.tau)
            loss = self.safety_critic.with_danger(loss, seen, action)
            metrics |= self._actor_step(loss)
            polyak_update(self.target_critic_buffer, self.critic_optimizer, config.tau)
            polyak_update(self.target_policy_buffer, self.actor_optimizer, config.tau)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Everything that learning depends on between two iterations."""
        return super().state_dict() | {
            "target_policy": self.target_policy.state_dict(),
            "noise": self.noise,
            "deviation": self.deviation.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``'s result; see ``OffPolicy.load_state_dict``."""
        super().load_state_dict(state)
        self.target_policy.load_state_dict(state["target_policy"])
        self.noise.copy_(state["noise"])
        self.deviation.load_state_dict(state["deviation"])


def build_policy(spec: EnvSpec, config: DDPGConfig) -> SquashedPolicy:
    """Build an untrained policy; the one in a checkpoint loads into it without an env."""
    if spec.tasks:
        raise ConfigError(f"algo: {spec.task} is several tasks, which ddpg and td3 do not learn; use ppo or sac")
    return SquashedPolicy(spec, config, outputs=1, spread=max(config.noise_range or (config.noise_std,)))
