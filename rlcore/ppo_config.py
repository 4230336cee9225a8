"""Settings of PPO."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from rlcore.actor_critic_config import ActorCriticConfig
from rlcore.arrays import arrays
from rlcore.config import check, check_positive
from rlcore.distributed import world
from rlcore.env import EnvSpec
from rlcore.safety import SafetyConfig
from rlcore.schedules import ScheduleConfig, Schedules, check_schedules, spread
from rlcore.signals import SignalConfig
from rlcore.types import Mode

_log = logging.getLogger(__name__)

SMALL_MINIBATCH = 32
"""Samples under which a minibatch's gradient and the standardized advantages in it are mostly noise."""


@dataclass(frozen=True, kw_only=True)
class PPOConfig(ActorCriticConfig):
    """Settings of PPO; the defaults suit thousands of simulated robots."""

    num_steps: int = 24
    """Vector steps between two updates (T)."""
    num_epochs: int = 5
    """Passes over the rollout in one update."""
    num_minibatches: int = 4
    """Parts that a pass is cut into; must divide num_envs * num_steps, or with a recurrent layer the sequences."""
    sequence_length: int | None = None
    """Steps that a recurrent layer is trained over at a time; must divide num_steps; none: all of them."""
    burn_in: int = 0
    """First steps of a sequence that only refresh the recurrent state and are not learned from."""
    learning_rate: float = 1e-3
    """Adam's step size, at the start if a schedule moves it."""
    lr_schedule: Literal["adaptive", "linear", "constant"] = "adaptive"
    """adaptive: follow desired_kl, minibatch by minibatch; linear: down to 0, reached after the last iteration;
    constant: as it is, or as schedules.learning_rate says."""
    schedules: dict[str, ScheduleConfig] = field(default_factory=dict)
    """What changes over the run, by name: schedules.entropy_coef.end and so on, of learning_rate, entropy_coef and
    clip_range."""
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
    """Lambda of generalized advantage estimation (arXiv:1506.02438)."""
    timeout_bootstrap: Literal["final_obs", "value", "none"] = "final_obs"
    """How a time-out bootstraps: from V of the true last observation (as value where the env hides it, and where a
    rollout has more of them than its length and the time limit explain); from V of the one before it, as in rsl_rl; or
    not at all."""
    clip_range: float = 0.2
    """Probability ratios are clipped to 1 +- this."""
    value_coef: float = 1.0
    """Weight of the mean squared value error (not halved)."""
    clip_value_loss: bool = True
    """Also limit how far a value moves from the old one, to +- clip_range, and take the larger error."""
    signals: dict[str, SignalConfig] = field(default_factory=dict)
    """What is learned from values that the env gives beside the reward, by name: signals.NAME.weight and so on."""
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    """Limits on what steps cost, by name: safety.costs.NAME.limit and so on."""
    entropy_coef: float = 0.005
    """Weight of the entropy bonus."""
    entropy_reduction: Literal["sum", "mean"] = "sum"
    """Entropy of several continuous actions: their sum, or, as in skrl before 2.1, their mean."""
    bounds_loss_coef: float = 0.0
    """Weight of the squared distance of action means, before they are scaled, beyond +- bounds_loss_limit."""
    bounds_loss_limit: float = 1.1
    """Where the bounds loss begins."""
    normalize_advantage: Literal["batch", "minibatch", "none"] = "batch"
    """Bring advantages to zero mean and unit variance over the whole rollout, over each minibatch, or not at all."""
    balance: Literal["none", "advantage", "success"] = "none"
    """With several tasks: learn from advantages and returns as they are (none), or brought to zero mean and unit
    variance within each task (advantage), those of tasks that fail more often weighing more (success)."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    grad_clip: Literal["joint", "separate"] = "joint"
    """One norm over all parameters, or one for the actor and one for the critic."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this before learning; logs show them unscaled."""
    reward_clip: float | None = None
    """Scaled rewards are limited to +- this; none for no limit, but one 10,000 times the usual one is left out."""
    normalize_value: bool = False
    """Let the critic predict returns brought to zero mean and unit variance."""
    mode: Mode = "graph"
    """How rollout and update run on CUDA: recorded as graphs, fused by torch.compile, both, or as written (eager)."""
    precision: Literal["fp32", "tf32", "bf16"] = "tf32"
    """Matrix products on CUDA; bf16 concerns hidden and recurrent layers: heads, loss and optimizer stay in fp32."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        super().__post_init__()
        for key in ("num_steps", "num_epochs", "num_minibatches"):
            check(getattr(self, key) >= 1, key, getattr(self, key), "set at least 1")
        length = self.num_steps if self.sequence_length is None else self.sequence_length
        fits = length >= 1 and self.num_steps % length == 0
        check(fits, "sequence_length", length, f"it must divide num_steps ({self.num_steps})")
        check(0 <= self.burn_in < length, "burn_in", self.burn_in, f"set 0 or more, less than {length}")
        check_positive(self, "learning_rate", "desired_kl", "lr_min", "lr_max", "reward_scale", "clip_range")
        check_positive(self, "target_kl", "reward_clip", none=True)
        check(self.max_grad_norm > 0, "max_grad_norm", self.max_grad_norm, "set a positive number, or inf for no limit")
        for key in ("value_coef", "entropy_coef", "bounds_loss_coef", "bounds_loss_limit"):
            check(0 <= getattr(self, key) < math.inf, key, getattr(self, key), "set 0 or more")
        for key in ("gamma", "gae_lambda"):
            check(0 <= getattr(self, key) <= 1, key, getattr(self, key), "set a number from 0 to 1")
        check(self.lr_min <= self.lr_max, "lr_max", self.lr_max, f"set at least lr_min ({self.lr_min})")
        for name in self.safety.costs:
            weight = self.signals[name].weight if name in self.signals else 0.0
            check(weight == 0, f"signals.{name}.weight", weight, f"safety.costs.{name} weighs it; leave it out")
        check_schedules(self.schedules, self, ("learning_rate", "entropy_coef", "clip_range"), ("clip_range",))
        check(1 < self.kl_factor < math.inf, "kl_factor", self.kl_factor, "set more than 1")
        check(0 <= self.kl_band[0] < self.kl_band[1], "kl_band", self.kl_band, "set two rising multiples")

    def samples_at_once(self, num_envs: int) -> int:
        """Samples of a minibatch."""
        return num_envs * self.num_steps // self.num_minibatches

    def scheduled(self) -> str:
        """The learning rate, if it falls over the run, or what else changes."""
        return "learning rate" if self.lr_schedule == "linear" else spread(self.schedules)


def sequences_of(config: PPOConfig, num_envs: int, recurrent: bool) -> tuple[int, int]:
    """Steps of a sequence, and how many sequences a rollout has; warns of small minibatches.

    A feed-forward network learns from sequences of one step, so that there is one text for both.

    Raises:
        ConfigError: minibatches cannot be of equal size.
    """
    length = (config.sequence_length or config.num_steps) if recurrent else 1
    number = num_envs * config.num_steps // length
    where = "a rollout" if world().size == 1 else f"the rollout of each of {world().size} ranks"
    remedy = f"it must divide the {number} sequences of {length} steps in {where}"
    check(number % config.num_minibatches == 0, "num_minibatches", config.num_minibatches, remedy)
    if too_small := small_minibatches(config, num_envs * world().size):
        _log.warning(too_small)
    return length, number


def small_minibatches(config: PPOConfig, num_envs: int) -> str:
    """What is wrong with minibatches of fewer than 32 samples, and the remedy; empty where nothing is.

    Args:
        config: settings.
        num_envs: copies of the task (N), on which the size of a minibatch depends.
    """
    total = num_envs * config.num_steps
    size = config.samples_at_once(num_envs)
    if size >= SMALL_MINIBATCH:
        return ""
    recurrent = any(net.rnn.type != "none" for net in (config.actor, config.critic))
    parts = total // ((config.sequence_length or config.num_steps) if recurrent else 1)
    most = next((n for n in range(total // SMALL_MINIBATCH, 0, -1) if parts % n == 0), 0)
    remedy = f"set {most}" if most else "give more num_envs or num_steps"
    return (
        f"num_minibatches is {config.num_minibatches}, which cuts {num_envs} envs x {config.num_steps} steps into "
        f"minibatches of {size} sample{'s' * (size != 1)}; under {SMALL_MINIBATCH} gradients are mostly noise: {remedy}"
    )


def scheduled(config: PPOConfig, spec: EnvSpec, learning_rate: Tensor) -> tuple[Schedules, dict[str, Any]]:
    """What changes over a run, ``lr_schedule`` included, and keyword arguments of ``losses.ppo_loss``.

    Of the latter those that change are scalar tensors on the device. The entropy's weight is that of the sum over
    actions in any case.
    """
    averaged = config.entropy_reduction == "mean" and not spec.discrete
    parts = spec.action_size if averaged else 1
    tables = {"learning_rate": ScheduleConfig(end=0.0)} if config.lr_schedule == "linear" else {}
    tables |= config.schedules
    schedules = Schedules(tables, config, learning_rate.device, {"entropy_coef": parts}, learning_rate=learning_rate)
    settings = {
        "clip_range": config.clip_range,
        "value_coef": config.value_coef,
        "entropy_coef": config.entropy_coef / parts,
        "clip_value_loss": config.clip_value_loss,
        "standardize_advantage": config.normalize_advantage == "minibatch",
        "bounds": (config.bounds_loss_coef, config.bounds_loss_limit),
    }
    return schedules, settings | {name: x for name, x in schedules.values.items() if name in settings}


def rate_by_kl(rate: Tensor, kl: Tensor, config: PPOConfig) -> Tensor:
    """The adaptive learning rate: lower where the policy moved too far, higher where too little.

    Args:
        rate: the present one, a scalar.
        kl: how far the policy moved from the one that collected the rollout, a scalar.
        config: settings; ``kl_band`` times ``desired_kl`` is neither.
    """
    xp, before, divergence = arrays(rate.view(1), kl.view(1))
    slower = xp.clip(before / config.kl_factor, config.lr_min, None)
    faster = xp.clip(before * config.kl_factor, None, config.lr_max)
    too_far = divergence > config.kl_band[1] * config.desired_kl
    too_near = (divergence < config.kl_band[0] * config.desired_kl) & (divergence > 0)
    return torch.as_tensor(xp.where(too_far, slower, xp.where(too_near, faster, before))).view(())
