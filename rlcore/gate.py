"""A gate between a policy and the env: where an action is likely to end in a violation, another takes its place.

The gate is part of the policy, so that training, evaluation, play and the exported file have the same one. What it
knows of risk is learned beside the policy, see ``safety_critic.SafetyCritic``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from rlcore.config import ConfigError, check, check_positive
from rlcore.env import EnvSpec
from rlcore.networks import Network, NetworkConfig, network_output, network_outputs

OPEN = 2.0
"""A threshold that no risk exceeds."""

FAR = 1e9
"""A distance, in half ranges of actions, that no action is apart."""

SAFE_ACTION = "safe_action"
"""In ``EnvSpec.deployment``, the action ``[A]`` by which a robot holds still or stops, where that is not 0."""


def _network() -> NetworkConfig:
    return NetworkConfig(hidden_dims=(64, 64), activation="relu", init="default")


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """A critic of violations, and what is done in place of actions that it finds too risky."""

    threshold: float | None = None
    """Risk above which the gate acts, such as 0.1; none: there is no gate, and nothing is learned for one."""
    fallback: Literal["candidates", "recovery", "pose", "none"] = "candidates"
    """What takes the place of an action: of num_candidates samples of the policy, num_around actions around its own and
    the pose, the one nearest to its own of those within the threshold, or, where there is none, the one of least risk;
    the action of an actor that learns to have the least (recovery); the pose; or none, and the risk is only told."""
    costs: tuple[str, ...] | None = None
    """Signals of the env that are a violation where they are above 0; none: those of safety.costs. One that is limited
    there per_step is a violation where it is above its limit."""
    horizon: float = 7.0
    """Steps that a risk looks ahead, about: a violation k steps away counts (1 - 1 / horizon)^k."""
    warmup: int = 1000
    """Gradient steps of the safety critic before the gate acts: until then it learns what the policy does by itself."""
    pose: tuple[float, ...] | None = None
    """Action to hold still with, one number for all dimensions or one each; none: what the env tells, else 0."""
    num_candidates: int = 16
    """Samples of the policy that candidates chooses from."""
    num_around: int = 16
    """Actions around the policy's own that it chooses from besides: in fixed directions, from an eighth of the action's
    half range to twice that away, cut off at its bounds. The samples of a policy that is sure of itself hold no way
    around."""
    cost_shaping: float = 0.0
    """What a risk above the threshold takes from the reward, times the excess: the alternative to a fallback, such as
    10."""
    network: NetworkConfig = field(default_factory=_network)
    """Hidden layers of each of the two critics, and of the recovery actor."""
    learning_rate: float = 1e-3
    """Adam's step size."""
    num_updates: int | None = None
    """Gradient steps an iteration; none: one for 64 new steps of single envs, at least 1 and at most 32."""
    batch_size: int | None = None
    """Samples of a gradient step; none: such that each new step is drawn twice, at least 256."""
    buffer_size: int = 100_000
    """Steps of single envs that the safety critic learns from, the latest ones."""
    tau: float = 0.05
    """Part of the way that the target critics go at each gradient step."""
    held_out: float = 1 / 16
    """Share of the envs that it never learns from, which tell how well it is calibrated; one env at least, where there
    are two."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        check_positive(self, "learning_rate", "horizon")
        check_positive(self, "num_updates", "batch_size", none=True)
        threshold = self.threshold
        check(threshold is None or 0 < threshold < 1, "threshold", threshold, "set a number between 0 and 1, or none")
        check(self.horizon >= 1, "horizon", self.horizon, "set at least 1")
        check(self.warmup >= 0, "warmup", self.warmup, "set 0 or more")
        check(self.num_candidates >= 1, "num_candidates", self.num_candidates, "set at least 1")
        check(self.num_around >= 0, "num_around", self.num_around, "set 0 or more")
        check(self.buffer_size >= 1, "buffer_size", self.buffer_size, "set at least 1")
        check(0 <= self.cost_shaping < math.inf, "cost_shaping", self.cost_shaping, "set 0 or more")
        check(0 < self.tau <= 1, "tau", self.tau, "set more than 0, at most 1")
        check(0 <= self.held_out < 1, "held_out", self.held_out, "set 0 or more, less than 1")
        kind = self.network.rnn.type
        check(kind == "none", "network.rnn.type", kind, "the safety critic has no memory; set none")
        named = self.costs is None or len(self.costs) > 0
        check(named, "costs", self.costs, "name one signal or more, or set none for those of safety.costs")
        unset = self.cost_shaping == 0 and self.costs is None and self.pose is None and self.fallback == "candidates"
        told = self.threshold is not None or unset
        check(told, "threshold", threshold, "other settings of the gate need one; set a number such as 0.1")

    @property
    def gamma(self) -> float:
        """Discount of a violation per step."""
        return 1 - 1 / self.horizon


class Gated(NamedTuple):
    """What the gate makes of N actions."""

    action: Tensor  # [N, A], what is to be done
    risk: Tensor  # [N], of the action that was proposed, 0 to 1
    acted: Tensor  # bool [N], whether another has taken its place
    margin: Tensor  # [N], how far it is from deciding otherwise, in logits, over the larger of 1 and the largest logit


class Gate(nn.Module):
    """Two critics of the risk, of which the larger counts, and the fallback.

    Its parameters are frozen for all but ``SafetyCritic``, so that no optimizer of the policy's takes them for its own.

    Args:
        config: settings, with a threshold.
        violations: signals that are a violation where they are above a bound, by name.
        size: numbers of an observation (O) as the policy reads it, normalized; images are not among them.
        low: lowest action ``[A]``, -inf where there is no bound.
        high: highest action ``[A]``.
        spec: of the env.

    Raises:
        ConfigError: there is no vector to read, no cost is named, or the pose does not fit.
    """

    pose: Tensor  # [A]
    middle: Tensor  # [A], of the action bounds, 0 where there are not two
    half_width: Tensor  # [A], half their width, else 1
    low: Tensor  # [A]
    high: Tensor  # [A]
    noise: Tensor  # [K, 1, A], of the candidates that a policy without chance chooses from
    around: Tensor  # [W, 1, A], from the policy's action to those around it, in half ranges
    limit: Tensor  # scalar, risk above which the gate acts now

    def __init__(
        self,
        config: GateConfig,
        violations: Mapping[str, float],
        size: int,
        low: Tensor,
        high: Tensor,
        spec: EnvSpec,
    ) -> None:
        super().__init__()
        if not violations:
            raise ConfigError("safety.gate.costs: none is named, nor in safety.costs; name signals of the env")
        if size == 0:
            raise ConfigError("safety.gate.threshold: a gate reads vectors, and the actor reads images alone; set none")
        self.config, self.violations, self.actions = config, dict(violations), len(low)
        inputs = size + self.actions
        self.trunks = nn.ModuleList(Network(inputs, config.network) for _ in range(2))
        self.heads = nn.ModuleList(nn.Linear(trunk.size, 1) for trunk in self.trunks)  # type: ignore[arg-type]
        for head in self.heads:
            nn.init.constant_(head.bias, -3.0)  # type: ignore[arg-type]  # a risk of 0.05: rare until it is seen
        self.actor = Network(size, config.network) if config.fallback == "recovery" else None
        self.actor_head = None if self.actor is None else nn.Linear(self.actor.size, self.actions)
        bounded = low.isfinite() & high.isfinite()
        self.register_buffer("middle", torch.where(bounded, (low + high) / 2, 0.0), persistent=False)
        self.register_buffer("half_width", torch.where(bounded, (high - low) / 2, 1.0), persistent=False)
        self.register_buffer("low", low.clone(), persistent=False)
        self.register_buffer("high", high.clone(), persistent=False)
        self.register_buffer("pose", _pose(config, spec).clamp(low, high))
        chooses, generator = config.fallback == "candidates", torch.Generator().manual_seed(0)
        number = config.num_candidates if chooses else 0
        self.register_buffer("noise", torch.randn(number, 1, self.actions, generator=generator))
        around = _around(config.num_around if chooses else 0, self.actions, generator)
        self.register_buffer("around", around, persistent=False)  # checkpoints from before it was there load as well
        self.register_buffer("limit", torch.tensor(OPEN))
        self.requires_grad_(False)

    def logits(self, obs: Tensor, action: Tensor) -> Tensor:
        """What each critic says of actions ``[B, A]``, by observations ``[B, O]``: log-odds of the risk, ``[2, B]``."""
        scaled = (action - self.middle) / self.half_width
        return network_outputs(list(self.trunks), list(self.heads), obs, scaled).squeeze(-1)  # type: ignore[arg-type]

    def logit(self, obs: Tensor, action: Tensor) -> Tensor:
        """The larger of the two, ``[B]``."""
        return self.logits(obs, action).amax(0)

    def risk(self, obs: Tensor, action: Tensor) -> Tensor:
        """Discounted probability of a violation, ``[B]``, 0 to 1."""
        return torch.sigmoid(self.logit(obs, action))

    def recover(self, obs: Tensor) -> Tensor:
        """Actions ``[B, A]`` of the recovery actor, within bounds, or within +-1 where there are none."""
        assert self.actor is not None and self.actor_head is not None, "there is no recovery actor"
        return self.middle + self.half_width * torch.tanh(network_output(self.actor, self.actor_head, obs))

    def forward(self, obs: Tensor, proposed: Tensor, candidates: Tensor) -> Gated:
        """Judge actions, and replace those that are too risky.

        Args:
            obs: ``[N, O]``, normalized.
            proposed: ``[N, A]``, what the policy would do.
            candidates: ``[K, N, A]``, what it might do besides.
        """
        logit = self.logit(obs, proposed)
        risk = torch.sigmoid(logit)
        acted = risk > self.limit
        scale = logit.abs().clamp(min=1.0)
        margin = (logit - self.threshold_logit).abs() / scale  # [N]
        other = proposed
        if self.config.fallback == "recovery":
            other = self.recover(obs)
        elif self.config.fallback == "pose":
            other = self.pose.expand_as(proposed)
        elif self.config.fallback == "candidates":
            other, apart = self._chosen(obs, proposed, candidates)
            margin = torch.where(acted, torch.minimum(margin, apart), margin)
        return Gated(torch.where(acted.unsqueeze(-1), other, proposed), risk, acted, margin)

    def _chosen(self, obs: Tensor, proposed: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """The candidate that takes the place of an action ``[N, A]``, and how far it is from being another ``[N]``."""
        around = torch.clamp(proposed + self.half_width * self.around, self.low, self.high)  # [W, N, A]
        options = torch.cat([candidates, around, self.pose.expand_as(proposed).unsqueeze(0)])  # [K + W + 1, N, A]
        count = self.config.num_candidates + self.config.num_around + 1
        rows = obs.unsqueeze(0).expand(count, -1, -1)  # [K + W + 1, N, O]
        logits = self.logit(rows.flatten(0, 1), options.flatten(0, 1)).view(count, -1)
        distance = ((options - proposed) / self.half_width).square().sum(-1).sqrt()  # [K + W + 1, N]
        within = torch.sigmoid(logits) <= self.limit
        near, nearest = torch.where(within, distance, FAR).topk(2, 0, largest=False)  # [2, N]
        least, safest = logits.topk(2, 0, largest=False)
        some = near[0] < FAR
        place = torch.where(some, nearest[0], safest[0])
        # Not squeezed, which would be a condition in an exported file that takes any batch.
        other = options.gather(0, place.view(1, -1, 1).expand(-1, -1, self.actions)).flatten(0, 1)
        nearer = (near[1] - near[0]) / near[1].clamp(min=1.0)
        safer = (least[1] - least[0]) / least.abs().amax(0).clamp(min=1.0)
        # Another would be chosen, too, were this one above the threshold, or one that is nearer within.
        matters = ~some | (distance <= near[0])
        sure = (logits - self.threshold_logit).abs() / logits.abs().clamp(min=1.0)
        sure = torch.where(matters, sure, FAR).amin(0)
        return other, torch.minimum(sure, torch.where(some, nearer, safer))

    @property
    def threshold(self) -> float:
        """As configured."""
        assert self.config.threshold is not None, "a gate is built with a threshold"
        return self.config.threshold

    @property
    def threshold_logit(self) -> float:
        """Its log-odds."""
        return math.log(self.threshold / (1 - self.threshold))

    @property
    def waits(self) -> bool:
        """Whether it is to act, and has not begun to."""
        return self.config.fallback != "none" and not bool(self.limit < OPEN)

    @property
    def notes(self) -> tuple[str, ...]:
        """A line that a run prints of it when it begins."""
        what = "the risk is told" if self.config.fallback == "none" else f"replaced ({self.config.fallback})"
        when = f"after {self.config.warmup:,} gradient steps of the safety critic"
        return (f"actions with a risk of a violation above {self.threshold:g}: {what}, {when}",)

    def described(self) -> dict[str, object]:
        """What an exported file says of it; ``acts`` is false where it only tells the risk, so far or for good."""
        config, acts = self.config, bool(self.limit < OPEN)
        return {"threshold": self.threshold, "fallback": config.fallback, "horizon": config.horizon, "acts": acts}


def _around(number: int, size: int, generator: torch.Generator) -> Tensor:
    """Offsets ``[number, 1, size]`` whose lengths rise from 1/8 to 2, no two the same; each second one goes back."""
    drawn = torch.randn(-(-number // 2), size, generator=generator)
    directions: Tensor = torch.stack([drawn, -drawn], 1).flatten(0, 1)[:number]
    lengths = torch.logspace(-3, 1, number, base=2.0).unsqueeze(1)
    return (lengths * nn.functional.normalize(directions, dim=1)).unsqueeze(1)


def _pose(config: GateConfig, spec: EnvSpec) -> Tensor:
    """Action ``[A]`` to hold still with."""
    told: Sequence[float] = spec.deployment.get(SAFE_ACTION, ())
    pose = config.pose or tuple(told) or (0.0,)
    wanted = "1 number" if spec.action_size == 1 else f"1 or {spec.action_size} numbers"
    check(len(pose) in (1, spec.action_size), "safety.gate.pose", pose, f"give {wanted}")
    return torch.tensor(pose, dtype=torch.float32).expand(spec.action_size).clone()
