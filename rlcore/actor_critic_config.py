"""Settings of an actor and a critic that learn from rollouts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rlcore.classifier import ClassifierConfig
from rlcore.config import check, check_positive
from rlcore.distributions import StdType
from rlcore.networks import NetworkConfig


@dataclass(frozen=True, kw_only=True)
class ActorCriticConfig:
    """What actor and critic read, and how they are built."""

    normalize_obs: bool | tuple[str, ...] = True
    """Bring observations to zero mean and unit variance, by running statistics inside the policy: all vectors, none
    (false), or those of the groups that are named. Images are scaled by their encoder in any case."""
    clip_obs: float | None = 10.0
    """Largest magnitude of a normalized observation; none for no limit."""
    obs_epsilon: float = 0.01
    """Added to the standard deviation that an observation is divided by."""
    actor: NetworkConfig = field(default_factory=NetworkConfig)
    """Hidden layers of the actor."""
    critic: NetworkConfig = field(default_factory=NetworkConfig)
    """Hidden layers of the critic; with share_trunk it has the actor's instead."""
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    """With several tasks: infer which one it is, in place of being told."""
    share_trunk: bool = False
    """Actor and critic share the actor's hidden layers."""
    actor_obs: tuple[str, ...] | None = None
    """Observation groups of the actor; none: 'policy', else 'actor'."""
    critic_obs: tuple[str, ...] | None = None
    """Observation groups of the critic; none: 'critic', else the actor's."""
    action_mask: str | None = None
    """Observation group that tells which choices there are now, 1 for each that is and 0 for each that is not; all are
    where all are 0."""
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
        check_positive(self, "min_std", "obs_epsilon")
        check_positive(self, "clip_obs", "clip_actions", none=True)
        for name in ("actor", "critic"):
            unit = getattr(self, name).unit_norm
            check(unit == "none", f"{name}.unit_norm", unit, "weights of unit length need sac or ddpg; set none")
        check(self.min_std < self.init_std, "init_std", self.init_std, f"set more than min_std ({self.min_std})")
        check(self.init_std <= self.max_std, "max_std", self.max_std, f"set at least init_std ({self.init_std})")

    @property
    def normalization(self) -> tuple[bool | tuple[str, ...], float | None, float]:
        """How observations are normalized: the arguments of ``normalization.make_normalizer`` after the sizes."""
        return self.normalize_obs, self.clip_obs, self.obs_epsilon
