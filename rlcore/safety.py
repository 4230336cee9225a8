"""Limits on what an env's steps cost: by multipliers that follow the measured cost, or by ending episodes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from rlcore.config import check, check_positive
from rlcore.distributed import largest, total, world
from rlcore.gate import GateConfig
from rlcore.returns import moments, standardized
from rlcore.types import Metrics

DELAY = 10
"""Updates over which the PID controller sees a cost rise, as in OmniSafe's ``pid_d_delay``."""

SMOOTHING = 0.95
"""Of the error and of the cost between updates, for the proportional and the derivative part; as in OmniSafe."""


@dataclass(frozen=True, kw_only=True)
class CostConfig:
    """A signal of the env that is to stay within a limit, see ``Step.signals``."""

    limit: float
    """How much it may be on average; 0: nothing at all, as for violations. It has no default."""
    kind: Literal["episode", "per_step", "probability"] = "episode"
    """What is limited: its sum over an episode, measured where episodes end; its mean over the steps of a rollout
    (per_step), which suits episodes that last for many rollouts; or the share of episodes in which it was above 0 in
    any step (probability), from each of whose steps the policy then lowers the chance that it is."""
    scale: float | None = None
    """What an excess counts as 1 for the PID controller; none: as large as the limit, or 1 where that is 0."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        check(math.isfinite(self.limit), "limit", self.limit, "set a number")
        check_positive(self, "scale", none=True)
        share = self.kind != "probability" or 0 <= self.limit < 1
        check(share, "limit", self.limit, "a share of episodes is 0 or more, and below 1; set kind for another measure")

    @property
    def unit(self) -> float:
        """What an excess counts as 1."""
        return self.scale or abs(self.limit) or 1.0

    @property
    def text(self) -> str:
        """The limit for people."""
        if self.kind == "probability":
            return f"in at most {100 * self.limit:g} % of episodes"
        return f"at most {self.limit:g} {'an episode' if self.kind == 'episode' else 'a step'}"


@dataclass(frozen=True, kw_only=True)
class SafetyConfig:
    """Limits on costs."""

    costs: dict[str, CostConfig] = field(default_factory=dict)
    """Signals of the env that are limited, by name: costs.NAME.limit and so on."""
    method: Literal["pid", "lagrange", "p3o", "cat"] = "pid"
    """How a cost's multiplier follows its excess over the limit: a PID controller (Stooke et al. 2020), or gradient
    ascent by Adam (lagrange), which turns later and swings wider. Or without multipliers a penalty where a limit would
    be passed (p3o, Zhang et al. 2022), or constraints as terminations (cat, Chane-Sane et al. 2024), for limits of
    single steps: what is over one ends the future, as far as the policy learns, with a chance that grows with the
    excess; it wants rewards that are positive on the whole."""
    proportional: float = 2.5
    """Gain of the PID controller on the excess, smoothed, in multiples of the cost's scale."""
    integral: float = 0.25
    """Its gain on the sum of excesses so far, which does not fall below 0."""
    derivative: float = 0.25
    """Its gain on the rise of the cost, smoothed, over 10 updates."""
    excess_max: float = math.inf
    """Largest excess and rise that count for the PID controller, in multiples of the cost's scale; 1 keeps the sum of
    excesses from winding up where a cost begins far above its limit, as that of an untrained policy may."""
    multiplier_rate: float = 0.035
    """Adam's step size on a multiplier."""
    penalty: float = 20.0
    """With p3o, what an excess counts in the loss; both advantages are standardized."""
    termination_max: float = 0.25
    """With cat, the chance that the worst excess ends the future."""
    multiplier_max: float = 100.0
    """Largest multiplier: what a cost's advantage counts against that of the reward."""
    gate: GateConfig = field(default_factory=GateConfig)
    """A critic that tells how likely an action is to end in a violation, and what is done in place of risky ones."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        for key in ("proportional", "integral", "derivative"):
            check(0 <= getattr(self, key) < math.inf, key, getattr(self, key), "set 0 or more")
        check_positive(self, "multiplier_rate", "multiplier_max", "penalty")
        check(self.excess_max > 0, "excess_max", self.excess_max, "set more than 0, or inf for no limit")
        check(0 < self.termination_max <= 1, "termination_max", self.termination_max, "set more than 0, at most 1")
        for name, cost in self.costs.items():
            # Of a file they are by now; what is written in Python may be anything.
            check(isinstance(cost, CostConfig), f"costs.{name}", cost, "give a CostConfig(limit=...)")
            single = self.method != "cat" or cost.kind == "per_step"
            check(single, f"costs.{name}.kind", cost.kind, "cat limits single steps; set per_step, or method pid")

    @property
    def violations(self) -> dict[str, float]:
        """Signals that are a violation where they are above a number: limited ones, and those that the gate names."""
        limits = {name: cost.limit if cost.kind == "per_step" else 0.0 for name, cost in self.costs.items()}
        names = self.costs if self.gate.costs is None else self.gate.costs
        return {name: limits.get(name, 0.0) for name in names}


class PID(nn.Module):
    """Multipliers by a PID controller (Stooke et al. 2020, arXiv:2007.03964).

    Error and cost are in multiples of the cost's scale, so that gains suit any limit, and smoothed as in OmniSafe.

    Args:
        config: settings.
        limit: ``[K]``.
        scale: ``[K]``.
    """

    limit: Tensor
    scale: Tensor
    error: Tensor
    total: Tensor
    cost: Tensor
    history: Tensor

    def __init__(self, config: SafetyConfig, limit: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("limit", limit, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        for name in ("error", "total", "cost"):
            self.register_buffer(name, torch.zeros_like(limit))  # [K]
        self.register_buffer("history", torch.zeros(DELAY, len(limit)))  # smoothed costs, the oldest first

    def forward(self, multiplier: Tensor, cost: Tensor) -> dict[str, Tensor]:
        """What the state becomes, by name, once costs ``[K]`` have been measured; ``multiplier`` is that to act by."""
        config = self.config
        now = ((cost - self.limit) / self.scale).clamp(max=config.excess_max)
        error = SMOOTHING * self.error + (1 - SMOOTHING) * now
        total = (self.total + config.integral * now).clamp(0.0, config.multiplier_max)
        smooth = SMOOTHING * self.cost + (1 - SMOOTHING) * cost / self.scale
        rise = (smooth - self.history[0]).clamp(0.0, config.excess_max)
        multiplier = config.proportional * error + total + config.derivative * rise
        history = torch.cat([self.history[1:], smooth.unsqueeze(0)])
        return {
            "multiplier": multiplier.clamp(0.0, config.multiplier_max),
            "error": error,
            "total": total,
            "cost": smooth,
            "history": history,
        }


class Lagrange(nn.Module):
    """Multipliers by gradient ascent on the Lagrangian, whose slope is cost - limit, with Adam (arXiv:1412.6980).

    Args:
        config: settings.
        limit: ``[K]``.
        scale: ``[K]``, which Adam's step does not depend on.
    """

    limit: Tensor
    first: Tensor
    second: Tensor
    steps: Tensor

    def __init__(self, config: SafetyConfig, limit: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("limit", limit, persistent=False)
        for name in ("first", "second", "steps"):
            self.register_buffer(name, torch.zeros_like(limit))  # [K]

    def forward(self, multiplier: Tensor, cost: Tensor) -> dict[str, Tensor]:
        """What the state becomes, by name, once costs ``[K]`` have been measured; ``multiplier`` is that to act by."""
        slope = cost - self.limit
        steps = self.steps + 1
        first, second = 0.9 * self.first + 0.1 * slope, 0.999 * self.second + 0.001 * slope.square()
        step = first / (1 - torch.pow(0.9, steps)) / ((second / (1 - torch.pow(0.999, steps))).sqrt() + 1e-8)
        multiplier = (multiplier + self.config.multiplier_rate * step).clamp(0.0, self.config.multiplier_max)
        return {"multiplier": multiplier, "first": first, "second": second, "steps": steps}


class Safety(nn.Module):
    """The costs that are limited, K of them in the order of the settings, each with its multiplier.

    All of it is device tensors that change in place inside the update, and none is read by the host.

    Args:
        config: settings.
        num_envs: N.
        standardize: bring advantages to zero mean and unit variance before they are weighed against each other.
    """

    per_step: Tensor
    chance: Tensor
    limit: Tensor
    running: Tensor
    multiplier: Tensor
    worst: Tensor
    excess: Tensor
    controller: PID | Lagrange

    def __init__(self, config: SafetyConfig, num_envs: int, standardize: bool) -> None:
        super().__init__()
        self.names = tuple(config.costs)
        self.config, self.standardize = config, standardize
        self.priced = () if config.method == "cat" else self.names
        """Costs that have a column of the critic, and a multiplier but with p3o."""
        self.chances = tuple(name for name, cost in config.costs.items() if cost.kind == "probability")
        if not self.names:
            return
        costs = config.costs.values()
        limit = torch.tensor([cost.limit for cost in costs])
        scale = torch.tensor([cost.unit for cost in costs])
        self.register_buffer("per_step", torch.tensor([cost.kind == "per_step" for cost in costs]), persistent=False)
        self.register_buffer("chance", torch.tensor([cost.kind == "probability" for cost in costs]), persistent=False)
        self.register_buffer("running", torch.zeros(len(limit), num_envs))  # of the episodes in flight
        self.register_buffer("limit", limit, persistent=False)
        if config.method == "cat":
            self.register_buffer("worst", torch.zeros_like(limit))  # excess over the limit, smoothed
            return
        if config.method == "p3o":
            self.register_buffer("excess", torch.zeros_like(limit))  # over the limit, as ``losses.penalty`` has it
            return
        self.register_buffer("multiplier", torch.zeros_like(limit))
        self.controller = (PID if config.method == "pid" else Lagrange)(config, limit, scale)

    @property
    def columns(self) -> tuple[tuple[str, ...], ...]:
        """Names of costs as ``SignalColumns`` takes them: with a column of the critic, all, limited by probability."""
        return self.priced, self.names, self.chances

    def __len__(self) -> int:
        """K, 0 where nothing is limited."""
        return len(self.names)

    def begin(self) -> None:
        """All episodes begin anew."""
        if self.names:
            self.running.zero_()

    def weigh(
        self, data: Mapping[str, Tensor], advantages: Tensor, of_costs: Tensor, learned: Tensor, gammas: Sequence[float]
    ) -> tuple[Tensor, Tensor | None, Metrics]:
        """Move the multipliers by what a rollout cost, and weigh the advantages of costs against the reward's.

        ``(A - sum_k lambda_k A_k) / (1 + sum_k lambda_k)``, of Stooke et al. 2020 (arXiv:2007.03964) for K costs; the
        divisor keeps the size of a policy's step what it is without costs.

        Args:
            data: the rollout's columns, ``[T, N]`` each.
            advantages: of the reward, ``[T, N]``.
            of_costs: those of the costs, ``[K, T, N]``.
            learned: bool ``[T, N]``, which steps are learned from.
            gammas: discounts of the K costs.

        Returns:
            The advantages to learn from ``[T, N]``; with p3o besides, in whose loss they are weighed, those of the
            costs ``[T, N, K]``, else None; and what to log.
        """
        cost = self.measure(data)
        if self.config.method == "p3o":
            return self._apart(cost, advantages, of_costs, learned, gammas)
        # A multiplier waits where no episode ended: the same excess, counted again and again, would wind it up.
        self.move(cost, cost.isfinite())
        if self.standardize:
            advantages = standardized(advantages, learned)
            of_costs = torch.stack([standardized(column, learned) for column in of_costs.unbind()])
        priced = (self.multiplier.view(-1, 1, 1) * of_costs).sum(0)
        metrics = self.named(multiplier=self.multiplier.clone(), cost=cost, limit=self.limit)
        return (advantages - priced) / (1 + self.multiplier.sum()), None, metrics

    def _apart(
        self, cost: Tensor, advantages: Tensor, of_costs: Tensor, learned: Tensor, gammas: Sequence[float]
    ) -> tuple[Tensor, Tensor, Metrics]:
        """What P3O's loss takes: both advantages, and the excess of costs ``[K]`` in the unit of their advantages.

        An episode's excess counts by 1 - gamma in each of its steps (Zhang et al. 2022, arXiv:2205.11814), a step's as
        it is. Where no episode ended the one before stays.
        """
        share = [
            1.0 if x.kind == "per_step" else 1 - g for x, g in zip(self.config.costs.values(), gammas, strict=True)
        ]
        excess = torch.stack([part * over for part, over in zip(share, (cost - self.limit).unbind(), strict=True)])
        if self.standardize:
            advantages = standardized(advantages, learned)
            excess = excess / torch.stack([moments(column, learned)[1] for column in of_costs.unbind()])
            of_costs = torch.stack([standardized(column, learned) for column in of_costs.unbind()])
        self.excess.copy_(torch.where(excess.isfinite(), excess, self.excess))
        return advantages, of_costs.movedim(0, -1).contiguous(), self.named(cost=cost, limit=self.limit)

    def move(self, cost: Tensor, due: Tensor) -> None:
        """Move the multipliers by costs ``[K]``, where ``due``, bool ``[K]``."""
        for name, value in self.controller(self.multiplier, cost).items():
            buffer = self.multiplier if name == "multiplier" else getattr(self.controller, name)
            buffer.copy_(torch.where(due, value, buffer))

    def terminate(self, data: Mapping[str, Tensor], reward: Tensor) -> tuple[Tensor, Tensor | None, Metrics]:
        """Constraints as terminations (Chane-Sane et al. 2024, arXiv:2403.18765).

        The chance to end is ``p max_k clip(excess_k / worst_k, 0, 1)``, worst_k being the largest excess of a rollout,
        smoothed over rollouts. A reward is lost with it where it is positive: to lose a negative one would pay. So does
        an end, all the same, where what is to come is worth less than nothing: rewards should be positive on the whole.

        Args:
            data: the rollout's columns, ``[T, N]`` each.
            reward: ``[T, N]``.

        Returns:
            Rewards, the chance that an episode goes on after each step ``[T, N]``, and what to log; with other methods
            the reward as it is, None and nothing.
        """
        if self.priced or not self.names:
            return reward, None, {}
        cost = torch.stack([data[f"signal_{name}"] for name in self.names])  # [K, T, N]
        excess = (cost - self.limit.view(-1, 1, 1)).clamp(min=0.0).nan_to_num(0.0, 0.0)
        if "valid" in data:
            excess = excess.where(data["valid"], 0.0)
        most = largest(excess.amax((1, 2)))  # of all ranks
        self.worst.copy_(torch.where(self.worst > 0, SMOOTHING * self.worst + (1 - SMOOTHING) * most, most))
        share = (excess / self.worst.clamp(min=1e-30).view(-1, 1, 1)).clamp(max=1.0)
        survival = 1 - self.config.termination_max * share.amax(0)
        over = (excess > 0).float().mean((1, 2))
        metrics = self.named(cost=self.measure(data), limit=self.limit, violations=over)
        return torch.where(reward > 0, survival * reward, reward), survival, metrics

    def named(self, **rows: Tensor) -> Metrics:
        """Metrics of values ``[K]``."""
        return {
            f"safety/{name}_{row}": value
            for row, values in rows.items()
            for name, value in zip(self.names, values.unbind(), strict=True)
        }

    def measure(self, data: Mapping[str, Tensor]) -> Tensor:
        """What a rollout's columns ``[T, N]`` cost ``[K]``: an episode that ended, or a step; NaN where none did.

        Of the rollouts of all ranks, where there are several, so that multipliers are the same on all.
        """
        costs, number = self.spent(data)
        if world().several:
            costs, number = total(torch.stack([costs, number.to(costs)])).unbind()
        return costs / number

    def spent(self, data: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What a rollout's columns ``[T, N]`` cost in all ``[K]``, and in how many episodes that ended, or steps.

        What is not a number takes with it the episodes of its env that ended in this rollout.
        """
        costs = torch.stack([data[f"signal_{name}"] for name in self.names])  # [K, T, N]
        done = data["terminated"] | data["truncated"]  # [T, N]
        costs = self._first(costs, done, data) if self.chances else costs
        ends, steps = done, costs.isfinite()
        if "valid" in data:  # what is no step costs nothing, and ends no episode
            ends, steps = done & data["valid"], steps & data["valid"]
            costs = costs.where(data["valid"], 0.0)
        by_step = costs.where(steps, 0.0).sum((1, 2)), steps.sum((1, 2))
        complete = done.flip(0).cumsum(0).flip(0) > 0  # [T, N], steps of episodes that ended in this rollout
        ended = complete[0]  # [N]
        sums = torch.where(ended, self.running, 0.0) + costs.where(complete, 0.0).sum(1)  # [K, N]
        self.running.copy_(torch.where(ended, 0.0, self.running) + costs.where(~complete, 0.0).sum(1))
        sound = sums.isfinite()
        by_episode = sums.where(sound, 0.0).sum(1), (sound * ends.sum(0)).sum(1)
        costs, number = (torch.where(self.per_step, *pair) for pair in zip(by_step, by_episode, strict=True))
        return costs, number

    def _first(self, costs: Tensor, done: Tensor, data: Mapping[str, Tensor]) -> Tensor:
        """In the place of costs ``[K, T, N]`` whose probability is limited, 1 where one is above 0 for the first time.

        Their sum over an episode is 1 where there was any, and their mean over episodes the share of those.
        """
        above = (costs > 0).float()
        above = above.where(data["valid"], 0.0) if "valid" in data else above
        before = above.cumsum(1) - above  # [K, T, N], how many there were in earlier steps of this rollout
        begins = torch.cat([torch.zeros_like(done[:1]), done[:-1]])  # [T, N]
        # Of episodes that ended; counts do not fall, so that the largest at a beginning is that of the latest one.
        others = before.where(begins, 0.0).cummax(1).values
        flight = self.running.unsqueeze(1).where(begins.cumsum(0) == 0, 0.0)
        first = torch.where(before - others + flight == 0, above, 0.0)
        return torch.where(self.chance.view(-1, 1, 1), first + 0 * costs, costs)  # what is no number stays none
