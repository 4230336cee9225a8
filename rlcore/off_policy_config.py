"""Settings of learning from a replay memory, and those that were chosen together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from rlcore.config import ConfigError, check, check_positive, nearest
from rlcore.distributed import world
from rlcore.env import WIDEST_ACTION, EnvSpec, VecEnv
from rlcore.losses import Reduce
from rlcore.networks import NetworkConfig
from rlcore.observations import images, vectors
from rlcore.replay import Home, Replay
from rlcore.safety import SafetyConfig
from rlcore.schedules import ScheduleConfig, check_schedules, spread
from rlcore.signals import SignalConfig
from rlcore.types import Timeout

C = TypeVar("C", bound="OffPolicyConfig")

# Many envs on one GPU, after FlashSAC (Kim et al. 2026, github.com/Holiday-Robot/FlashSAC) and FastTD3 (Seo et al.
# 2025, arXiv:2505.22642): wide batches and few of them, n-step targets, and categorical critics of normalized rewards,
# so that no range of values has to be known beforehand.
GPU: dict[str, Any] = {
    "num_updates": 4,
    "batch_size": 2048,
    "buffer_size": 10_000_000,
    "learning_starts": 100_000,
    "save_buffer": False,
    "n_step": 3,
    "tau": 0.01,
    "policy_delay": 2,
    "lr_schedule": "cosine",
    "lr_end": 1.5e-4,
    "value_loss": "categorical",
    "normalize_reward": True,
    "normalize_obs": True,
    "init_head_scale": 0.01,
    "noise_hold": 16,
    "actor": NetworkConfig(kind="residual", hidden_dims=(128, 128), activation="relu", init="orthogonal"),
    "critic": NetworkConfig(kind="residual", hidden_dims=(512, 512), activation="relu", init="orthogonal"),
    "precision": "bf16",
}


def _network() -> NetworkConfig:
    return NetworkConfig(hidden_dims=(256, 256), activation="relu", init="default")


_MOST_SAMPLES = 1000  # drawn for one new step before a warning; 256 in the classic preset, 8 in the other


@dataclass(frozen=True, kw_only=True)
class LimitsConfig(SafetyConfig):
    """Limits on costs, as SAC and DDPG hold them."""

    excess_max: float = 1.0
    """Largest excess and rise that count for the PID controller, in multiples of the cost's scale. What is learned from
    a replay memory follows late, and may be over a limit many times by then; a multiplier that rose with that would
    take as many more moves to come down, since a cost falls short of its limit by no more than the limit."""
    interval: int = 1000
    """Gradient steps between two moves of a multiplier, which follows what was measured meanwhile; it waits on where no
    episode has ended."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        super().__post_init__()
        known = self.method in ("pid", "lagrange")
        check(known, "method", self.method, "SAC and DDPG have multipliers alone; set pid or lagrange, or take ppo")
        for name, cost in self.costs.items():
            summed = cost.kind in ("episode", "per_step")
            check(summed, f"costs.{name}.kind", cost.kind, "critics of SAC and DDPG sum costs; set episode or per_step")
        check(self.interval >= 1, "interval", self.interval, "set at least 1")


@dataclass(frozen=True, kw_only=True)
class OffPolicyConfig:
    """Settings of learning from a replay memory; the defaults are the classic ones, for one or a few envs."""

    schedulable: ClassVar[tuple[str, ...]] = ("learning_rate",)
    """Settings that may have a schedule."""

    num_steps: int = 1
    """Vector steps between two updates."""
    update_ratio: float = 1.0
    """Gradient steps per step of a single env; an update takes update_ratio * num_steps * num_envs of them."""
    num_updates: int | None = None
    """Gradient steps of an update, however many envs there are; none: as update_ratio says."""
    learning_starts: int = 10_000
    """Steps of single envs before learning begins; until then actions are drawn uniformly."""
    buffer_size: int = 1_000_000
    """Transitions in the replay memory."""
    batch_size: int = 256
    """Samples of a gradient step (B)."""
    save_buffer: bool = True
    """Keep the replay memory in checkpoints. Without it a resumed run is not the same: it first fills a new one."""
    store_obs: Literal["fp32", "bf16"] = "fp32"
    """How the replay memory stores observations; bf16 takes half the room and keeps 8 bits of mantissa. Images of
    uint8 stay what they are."""
    buffer_device: Home = "env"
    """Where the replay memory keeps observations and actions: on the env's device, or on the host, in pinned memory
    that a GPU reads as it samples, for more than its own memory holds. Without a GPU both are the same."""
    final_capacity: int | None = None
    """Last observations of truncated episodes that the replay memory keeps; samples whose own is overwritten count for
    nothing (replay/lost). None: enough for episodes of 25 steps on average, or of a quarter of the env's limit."""
    learning_rate: float = 3e-4
    """Adam's step size."""
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """Whether the step size falls over the run, from learning_rate to lr_end, along half a cosine."""
    lr_end: float = 0.0
    """Step size at the end of a cosine schedule."""
    schedules: dict[str, ScheduleConfig] = field(default_factory=dict)
    """What changes over the run, by name: schedules.learning_rate.end and so on; with ddpg of noise_std as well."""
    gamma: float = 0.99
    """Discount per step."""
    n_step: int = 1
    """Rewards summed before a target critic takes over; windows end with their episode."""
    signals: dict[str, SignalConfig] = field(default_factory=dict)
    """What is learned from values that the env gives beside the reward, by name: each times its signals.NAME.weight is
    added to the reward, with a gamma of its own over the n_step steps that are summed."""
    safety: LimitsConfig = field(default_factory=LimitsConfig)
    """Limits on what steps cost, by name: safety.costs.NAME.limit and so on; and what judges actions before they are
    done: safety.gate.threshold and so on."""
    timeout_bootstrap: Timeout = "final_obs"
    """What follows a time-out: the true last observation (else, where the env hides it, as value); the observation
    before it; or nothing."""
    tau: float = 0.005
    """Step of the polyak update: target networks move this part of the way to the learned ones, each critic step."""
    policy_delay: int = 1
    """Critic steps per actor step."""
    num_critics: int = 2
    """Number of critics."""
    q_reduce: Reduce = "min"
    """How target critics become one target: their minimum, their mean, or each critic by its own. SAC's actor maximizes
    the minimum with min, else the mean."""
    value_loss: Literal["mse", "categorical"] = "mse"
    """What a critic predicts: the mean return, or probabilities of num_atoms returns (C51, arXiv:1707.06887)."""
    num_atoms: int = 101
    """Atoms of a categorical critic."""
    value_range: tuple[float, float] = (-5.0, 5.0)
    """Lowest and highest atom; of normalized rewards, where they are. Returns beyond count as the end of the
    range, so SAC needs center_entropy and a small init_temperature too: its entropy is part of the return."""
    max_grad_norm: float | None = None
    """Gradients are scaled down to this norm; none for no limit."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this before learning; logs show them unscaled."""
    normalize_reward: bool = False
    """Divide rewards such that discounted returns have about unit variance and none exceeds the upper end of
    value_range; by the statistics at the time of sampling, so that what is stored does not age."""
    normalize_obs: bool | tuple[str, ...] = False
    """Bring observations to zero mean and unit variance, by running statistics inside the policy: all vectors, none
    (false), or those of the groups that are named. Images are scaled by their encoder in any case."""
    clip_obs: float | None = 10.0
    """Largest magnitude of a normalized observation; none for no limit."""
    obs_epsilon: float = 0.01
    """Added to the standard deviation that an observation is divided by."""
    actor: NetworkConfig = field(default_factory=_network)
    """Hidden layers of the actor, and the convolutions that it shares with the critics."""
    critic: NetworkConfig = field(default_factory=_network)
    """Hidden layers of each critic."""
    init_head_scale: float = 1.0
    """Factor of the initial weights of the actor's last layer. Other than 1, the actor begins near action 0, a robot's
    default pose, or near the bound next to it."""
    noise_hold: int = 1
    """Largest number of steps for which an env keeps its exploration noise; k has a probability like 1 / k^2."""
    actor_obs: tuple[str, ...] | None = None
    """Observation groups of the actor; none: 'policy', else 'actor'."""
    critic_obs: tuple[str, ...] | None = None
    """Observation groups of the critic; none: 'critic', else the actor's."""
    random_shift: int = 4
    """Most pixels by which images are moved each way when they are drawn to learn from (DrQ-v2, arXiv:2107.09645); 0
    leaves them as they are."""
    action_low: tuple[float, ...] | None = None
    """Lower action bounds, one for all dimensions or one each; none: those of the env."""
    action_high: tuple[float, ...] | None = None
    """Upper action bounds, one for all dimensions or one each; none: those of the env."""
    mode: Literal["graph", "eager"] = "graph"
    """How acting and learning run on CUDA: recorded as graphs, or as written."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Matrix products on CUDA. With bf16 those of hidden layers, while last layers are multiplied as with tf32, and
    losses, log densities and Adam stay float32."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        for key in ("num_steps", "buffer_size", "batch_size", "n_step", "policy_delay", "num_critics", "noise_hold"):
            check(getattr(self, key) >= 1, key, getattr(self, key), "set at least 1")
        check_positive(self, "learning_rate", "update_ratio", "reward_scale", "init_head_scale", "obs_epsilon")
        check_positive(self, "clip_obs", "max_grad_norm", "num_updates", none=True)
        for name, signal in self.signals.items():
            summed = signal.gae_lambda is None
            check(summed, f"signals.{name}.gae_lambda", signal.gae_lambda, "SAC and DDPG sum n_step steps; set none")
            remedy = "the sum of SAC and DDPG ends with the episode; set true"
            check(signal.episodic, f"signals.{name}.episodic", signal.episodic, remedy)
        for name in self.safety.costs:
            signal = self.signals.get(name, SignalConfig())
            remedy = f"safety.costs.{name} weighs it; leave it out"
            check(signal.weight == 0, f"signals.{name}.weight", signal.weight, remedy)
            remedy = "SAC and DDPG discount a cost with a limit like the reward; leave it out"
            check(signal.gamma is None, f"signals.{name}.gamma", signal.gamma, remedy)
        check_schedules(self.schedules, self, self.schedulable)
        check(self.random_shift >= 0, "random_shift", self.random_shift, "set 0 or more")
        check(0 <= self.gamma <= 1, "gamma", self.gamma, "set a number from 0 to 1")
        check(0 < self.tau <= 1, "tau", self.tau, "set more than 0, at most 1")
        check(0 <= self.lr_end < math.inf, "lr_end", self.lr_end, "set 0 or more")
        check(self.num_atoms >= 2, "num_atoms", self.num_atoms, "set at least 2")
        remedy = "networks have kernels of their own; set graph or eager"
        check(self.mode in ("graph", "eager"), "mode", self.mode, remedy)
        low, high = self.value_range
        check(-math.inf < low < high < math.inf, "value_range", self.value_range, "set two rising numbers")
        known = not (self.normalize_reward or self.safety.costs) or high > 0
        remedy = "with normalize_reward or limits on costs its upper end must be positive"
        check(known, "value_range", self.value_range, remedy)
        fits = 0 <= self.learning_starts <= self.buffer_size
        check(fits, "learning_starts", self.learning_starts, f"set 0 to buffer_size ({self.buffer_size})")
        for name in ("actor", "critic"):
            kind = getattr(self, name).rnn.type
            check(kind == "none", f"{name}.rnn.type", kind, "recurrent layers need ppo; set none")
        free = self.actor.unit_norm != "all" or self.init_head_scale == 1
        remedy = "actor.unit_norm all sets the length of these weights; set 1, or actor.unit_norm to hidden"
        check(free, "init_head_scale", self.init_head_scale, remedy)
        # Features are sqrt(width) long, so a unit row makes no more of them: enough for logits, not for returns.
        wide = self.critic.unit_norm != "all" or self.value_loss == "categorical"
        remedy = "with value_loss mse it would limit values to the root of the width; set hidden"
        check(wide, "critic.unit_norm", self.critic.unit_norm, remedy)

    @property
    def normalization(self) -> tuple[bool | tuple[str, ...], float | None, float]:
        """How observations are normalized: the arguments of ``normalization.make_normalizer`` after the sizes."""
        return self.normalize_obs, self.clip_obs, self.obs_epsilon

    def of_rank(self: C) -> C:
        """The settings of one of several ranks: batches, replay memory and first random steps are shared among them.

        As many gradient steps follow a step of an env as in one process, and each is of as many samples, of all ranks.

        Raises:
            ConfigError: a batch cannot be shared evenly.
        """
        size = world().size
        if size == 1:
            return self
        remedy = f"{size} ranks share it evenly; give {max(1, self.batch_size // size) * size}"
        check(self.batch_size % size == 0, "batch_size", self.batch_size, remedy)
        starts = min(-(-self.learning_starts // size), self.buffer_size // size)
        share: dict[str, Any] = {"batch_size": self.batch_size // size, "buffer_size": self.buffer_size // size}
        return replace(self, **share, learning_starts=starts, update_ratio=self.update_ratio * size)

    def samples_at_once(self, num_envs: int) -> int:
        """Samples of a gradient step."""
        return self.batch_size

    def scheduled(self) -> str:
        """The learning rate, if it falls over the run, or what else changes."""
        return "learning rate" if self.lr_schedule == "cosine" else spread(self.schedules)

    @classmethod
    def presets(cls) -> dict[str, dict[str, Any]]:
        """Settings by the name of the preset they belong to; what is not named is as in the dataclass."""
        return {"classic": {}, "gpu": dict(GPU)}

    @classmethod
    def preset(cls: type[C], name: str, **changes: Any) -> C:
        """Settings that were chosen together: ``classic`` for one or a few envs, ``gpu`` for hundreds and more.

        Args:
            name: of the preset; ``presets`` lists them.
            changes: settings that are to differ from it.

        Raises:
            ConfigError: there is no such preset, or the settings do not fit together.
        """
        known = cls.presets()
        if name not in known:
            raise ConfigError(f"preset: '{name}' is no preset of {cls.__name__}; {nearest(name, known)}")
        return cls(**{**known[name], **changes})


def all_envs(env: VecEnv) -> int:
    """The envs of all ranks."""
    return env.num_envs * world().size


def memory(
    config: OffPolicyConfig, env: VecEnv, spec: EnvSpec, groups: tuple[str, ...], signals: Mapping[str, SignalConfig],
    first_rows: int,
) -> Replay:  # fmt: skip
    """Build the replay memory.

    Args:
        config: settings.
        env: whose steps it is to hold.
        spec: of it.
        groups: of observations, that are stored.
        signals: those that are stored.
        first_rows: vector steps that it has to hold before learning begins.

    Raises:
        ConfigError: it does not fit, or holds too little.
    """
    kind = torch.bfloat16 if config.store_obs == "bf16" else torch.float32
    replay = Replay(
        config.buffer_size, env.num_envs, vectors(spec, groups), spec.action_size, env.max_episode_length,
        torch.device(env.device), kind, config.final_capacity, config.buffer_device, images(spec, groups),
        spec.image_types,
        {name: config.gamma if signal.gamma is None else signal.gamma for name, signal in signals.items()},
    )  # fmt: skip
    remedy = f"it holds {replay.num_rows} vector steps and learning begins after {first_rows}; raise it"
    check(replay.num_rows >= first_rows, "buffer_size", config.buffer_size, remedy)
    replay.strata = config.batch_size if spec.tasks else None
    return replay


def steps_note(num_updates: int, when: str) -> str:
    """What a run says of its gradient steps."""
    steps = "1 gradient step" if num_updates == 1 else f"{num_updates} gradient steps"
    return f"{steps} an iteration, {when}"


def warnings(
    config: OffPolicyConfig, num_envs: int, num_updates: int, missing_rows: int, num_iterations: int
) -> list[str]:
    """What makes a run slow or useless.

    Args:
        config: settings of this rank; what is told is of all ranks.
        num_envs: copies of the task on this rank.
        num_updates: gradient steps an iteration.
        missing_rows: vector steps until learning begins.
        num_iterations: that are left.
    """
    num_envs, batch_size = num_envs * world().size, config.batch_size * world().size
    steps, samples, told = config.num_steps * num_envs, num_updates * batch_size, []
    if samples > _MOST_SAMPLES * steps:
        told.append(
            f"every iteration draws {samples:,} samples for its {steps:,} new steps; give more --num-envs, or less "
            "--agent.num-updates or --agent.batch-size"
        )
    if 0 < num_iterations * config.num_steps < missing_rows:
        told.append(
            f"nothing will be learned: {num_iterations * steps:,} steps are left, and learning begins after "
            f"{missing_rows * num_envs:,}; give more --num-iterations or less --agent.learning-starts"
        )
    return told


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
