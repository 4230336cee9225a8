"""The safety critic: how likely an action is to end in a violation soon, learned beside any algorithm.

The risk is that of an action which is followed by the policy with its gate in force, as in SQRL (Srinivasan et al.
2020, arXiv:2010.14603) and Recovery RL (Thananjeyan et al. 2021, arXiv:2010.15920). That of the policy alone would be
high wherever it heads for a violation that the gate could still prevent, and a gate that acted there would never learn
better.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlcore.agent import Policy
from rlcore.capture import Captured
from rlcore.config import check
from rlcore.distributed import average, total, world
from rlcore.env import VecEnv
from rlcore.gate import OPEN, Gate, Gated
from rlcore.normalization import UNUSABLE
from rlcore.observations import concatenate
from rlcore.optimizer import FlatAdam, descend, flat, polyak_update
from rlcore.risk import outcomes, risk_loss, risk_target
from rlcore.rollout import Rollout
from rlcore.safety import SafetyConfig
from rlcore.signals import chosen
from rlcore.statistics import means_of
from rlcore.types import Metrics, Mode, Obs, Step

BINS = 10
"""Of risks from 0 to 1, within each of which predictions are held against what came of them."""

MEMORY = 1_000
"""Samples over which the calibration is taken, about; older ones are forgotten."""


class Steps(NamedTuple):
    """Samples of what the safety critic learns from, B of them."""

    obs: Tensor  # [B, O], normalized
    action: Tensor  # [B, A], as it was done
    violation: Tensor  # [B], 0 or 1
    terminated: Tensor  # [B] bool
    next_obs: Tensor  # [B, O]
    next_action: Tensor  # [B, A]
    weight: Tensor  # [B], 0 where what came next is not known, else 1


class SafetyCritic:
    """Learns the risk that a policy's gate judges by; without a gate it does nothing, and costs nothing.

    It keeps the latest steps by itself, on the device of the env: what a critic of risk learns from has to be of about
    the present policy, and the actions in it those that were done.

    Args:
        policy: whose gate it is.
        config: settings.
        env: what acts on it.
        num_steps: vector steps of an iteration.
        mode: how recording runs on CUDA; what else there is runs inside the agent's own functions.
    """

    def __init__(self, policy: Policy, config: SafetyConfig, env: VecEnv, num_steps: int, mode: Mode) -> None:
        self.gate: Gate | None = policy.gate
        if self.gate is None:
            return
        self.policy: Any = policy
        self.config, self.num_steps, self.num_envs = config.gate, num_steps, env.num_envs
        self.violations = config.violations
        device, gate, count = torch.device(env.device), self.gate, env.num_envs
        held = min(max(1, round(self.config.held_out * count)), count - 1) if self.config.held_out > 0 else 0
        self.num_learned = count - held
        self.tail = math.ceil(3 * self.config.horizon)  # steps that settle what came of one, within 5 %
        ranks = world().size  # which share steps, batches and the memory
        new = num_steps * self.num_learned * ranks
        self.num_updates = self.config.num_updates or min(32, max(1, new // 64))
        batch_size = self.config.batch_size or max(256, -(-2 * new // self.num_updates))
        self.batch_size = -(-batch_size // ranks)
        rate = torch.tensor(self.config.learning_rate, device=device)
        self.optimizer = FlatAdam(_critics(gate), rate, 1.0)
        recovery = [p for part in (gate.actor, gate.actor_head) if part is not None for p in part.parameters()]
        self.recovery = FlatAdam(recovery, rate, 1.0) if recovery else None
        self.target = copy.deepcopy(gate)  # with the gate in force from the beginning
        self.target.actor, self.target.actor_head = gate.actor, gate.actor_head
        if self.config.fallback != "none":
            self.target.limit.fill_(gate.threshold)
        self.memoryless = not policy.initial_state(1) and not policy.raw_shapes
        self.target_buffer = flat(_critics(self.target))
        rows = max(self.config.buffer_size // (count * ranks), num_steps + self.tail, num_steps + 1)
        self.ring = Rollout(rows, count, device)
        self.size = torch.zeros(1, dtype=torch.int64, device=device)  # rows written, at most all
        self.acted = torch.zeros(count, dtype=torch.bool, device=device)  # [N], in the latest step
        self.bins = torch.zeros(3, BINS, device=device)  # samples, sums of predictions and of what came
        self._record = Captured(self._store, mode, device)

    def __bool__(self) -> bool:
        """Whether there is a gate."""
        return self.gate is not None

    def act(self, vectors: Tensor, output: Any, action: Tensor) -> Tensor:
        """Let the gate judge exploring actions.

        Args:
            vectors: ``[N, O]``, normalized.
            output: what they were drawn from, see ``Policy.output_of``.
            action: ``[N, A]``.

        Returns:
            What is to be done, ``[N, A]``.
        """
        if self.gate is None:
            return action
        gated = self._judged(vectors, output, action)
        self.acted.copy_(gated.acted)
        return gated.action

    def explored(self, vectors: Tensor, features: Tensor, action: Tensor) -> Tensor:
        """As ``act``, of a policy whose actor reads ``features`` ``[N, O]``, images joined to the vectors."""
        return action if self.gate is None else self.act(vectors, self.policy.output(features), action)

    @torch.no_grad()
    def followed(self, vectors: Tensor, features: Tensor, action: Tensor) -> Tensor:
        """What would be done where a policy that learns from a replay memory would choose actions ``[B, A]``.

        Else a value would count on actions that the gate does not let pass, which nothing corrects.

        Args:
            vectors: ``[B, O]``, normalized.
            features: what the actor reads, ``[B, O]``, images joined.
            action: ``[B, A]``.
        """
        return action if self.gate is None else self._judged(vectors, self.policy.output(features), action).action

    @torch.no_grad()
    def counted(self, vectors: Tensor, action: Tensor, weight: Tensor) -> Tensor:
        """Weights ``[B]`` of an actor's actions in its loss: 0 where another would be done, with the same mean."""
        if self.gate is None:
            return weight
        own = self.gate.risk(vectors, action) <= self.gate.limit  # [B]
        return weight * own / average(own.float().mean()).clamp(min=1 / own.numel())

    def with_danger(self, loss: Tensor, vectors: Tensor, action: Tensor) -> Tensor:
        """An actor's loss, and in the place of what does not count there -log(1 - risk), in the mean over all.

        So an actor whose actions are replaced learns to be let pass.
        """
        if self.gate is None:
            return loss
        logit = self.gate.logit(vectors, action)
        return loss + F.softplus(logit).where(torch.sigmoid(logit) > self.gate.limit, 0.0).mean()

    def _judged(self, vectors: Tensor, output: Any, action: Tensor) -> Gated:
        assert self.gate is not None
        noise = torch.randn(len(self.gate.noise), *action.shape, device=action.device)
        return self.gate(vectors, action, self.policy.drawn(output, noise))  # type: ignore[no-any-return]

    def record(self, obs: Obs, action: Tensor, step: Step) -> Step:
        """Keep a vector step, and return it with the reward that is to be learned from.

        Raises:
            ConfigError: the env does not give a signal that is to tell of violations.
        """
        if self.gate is None:
            return step
        signals = chosen(self.violations, step.signals, "agent.safety.gate.costs")
        seen = {group: obs[group] for group in self.policy.observation_sizes}
        reward = self._record(seen, action, step._replace(obs={}, final_obs=None, log={}, signals=signals))
        return step if self.config.cost_shaping == 0 else step._replace(reward=reward)

    @torch.no_grad()
    def _store(self, obs: Obs, action: Tensor, step: Step) -> Tensor:
        assert self.gate is not None and step.signals is not None
        vectors = concatenate(obs, list(obs))
        over = torch.stack([step.signals[name] > bound for name, bound in self.violations.items()]).any(0)
        sound = (vectors.abs() < UNUSABLE).all(1) & (action.abs() < UNUSABLE).all(1)  # false for NaN, too
        sound &= torch.stack([step.signals[name].isfinite() for name in self.violations]).all(0)
        cut = step.truncated & ~step.terminated
        if step.valid is not None:  # what is no step ends there
            sound, cut = sound & step.valid, cut | ~step.valid
        row = {"obs": vectors.where(sound.unsqueeze(1), 0.0), "action": action.where(sound.unsqueeze(1), 0.0)}
        row |= {"violation": over.float(), "terminated": step.terminated, "cut": cut, "sound": sound}
        self.ring.write({**row, "acted": self.acted})
        self.ring.advance()
        self.size.add_(self.size < self.ring.num_steps)
        if self.config.cost_shaping == 0:
            return step.reward
        normalized = self.policy.normalizer(row["obs"])
        excess = (self.gate.risk(normalized, row["action"]) - self.gate.threshold).clamp(min=0.0)
        return step.reward - self.config.cost_shaping * excess

    def cut(self) -> None:
        """Note that what is recorded next does not follow what was recorded last."""
        if self.gate is not None and self.ring.data:
            latest = (self.ring.row - 1) % self.ring.num_steps
            self.ring.data["cut"].index_fill_(0, latest, True)

    def own(self, learned: Tensor) -> Tensor:
        """Of the steps of a rollout that are learned from, ``[T, N]``, those whose action was the policy's."""
        return learned if self.gate is None else learned & ~self._latest("acted", len(learned))

    def masked(self, own: Tensor, advantages: Tensor, of_costs: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Advantages ``[T, N]``, and those of costs ``[T, N, K]``, with 0 where an action was not the policy's own."""
        if self.gate is None:
            return advantages, of_costs
        of_costs = None if of_costs is None else of_costs.where(own.unsqueeze(-1), 0.0)
        return advantages.where(own, 0.0), of_costs

    @torch.no_grad()
    def _latest(self, name: str, count: int, first: int = 0) -> Tensor:
        """The last rows ``[count, N - first, ...]`` of a column, in order, of envs from ``first`` on."""
        order = (self.ring.row + torch.arange(-count, 0, device=self.size.device)) % self.ring.num_steps
        column: Tensor = self.ring.data[name][:, first:]
        return column.index_select(0, order)

    def improve(self) -> Metrics:
        """Take this iteration's gradient steps, and let the gate act once it has learned enough; what to log."""
        if self.gate is None:
            return {}
        gate, config = self.gate, self.config
        samples, logs = self._draw(self.num_updates * self.batch_size), []
        for i in range(self.num_updates):
            part = slice(i * self.batch_size, (i + 1) * self.batch_size)
            logs.append(self._gradient_step(Steps(*(value[part] for value in samples))))
        with torch.no_grad():
            if config.fallback != "none":
                closed = torch.full_like(gate.limit, gate.threshold)
                gate.limit.copy_(torch.where(self.optimizer.count >= config.warmup, closed, OPEN))
            metrics = means_of(logs)
            metrics["safety/violations"] = self._latest("violation", self.num_steps).mean()
            metrics["safety/gate_share"] = self._latest("acted", self.num_steps).float().mean()
            if self.num_learned < self.num_envs:
                metrics["safety/calibration_error"] = self._calibrate()
        return metrics

    @torch.no_grad()
    def _draw(self, number: int) -> Steps:
        """Steps of envs that it learns from, uniformly; what follows the latest row is not known yet."""
        rows, device, data = self.ring.num_steps, self.size.device, self.ring.data
        drawn = torch.randint(2**62, (number,), device=device)
        env = torch.randint(self.num_learned, (number,), device=device)
        row = (self.ring.row - self.size + drawn % (self.size - 1).clamp(min=1)) % rows
        here, after = row * self.num_envs + env, (row + 1) % rows * self.num_envs + env
        flat = {name: value.flatten(0, 1) for name, value in data.items()}
        now = {name: flat[name].index_select(0, here) for name in ("obs", "action", "violation", "terminated", "cut")}
        # Whether a step counts must not depend on whether it is a violation: those before a time-out never do.
        followed = ~now["cut"] & flat["sound"].index_select(0, after)
        known = flat["sound"].index_select(0, here) & (now["terminated"] | followed)
        return Steps(
            self.policy.normalizer(now["obs"]),
            now["action"],
            now["violation"],
            now["terminated"],
            self.policy.normalizer(flat["obs"].index_select(0, after)),
            flat["action"].index_select(0, after),
            known.float(),
        )

    def _gradient_step(self, samples: Steps) -> Metrics:
        assert self.gate is not None
        gate, weight = self.gate, samples.weight
        with torch.no_grad():
            # Each from its own target: the larger of two, again and again, would grow with every step.
            next_risk = torch.sigmoid(self.target.logits(samples.next_obs, self._next_action(samples)))
            target = risk_target(samples.violation, samples.terminated, next_risk, self.config.gamma)
        with _learned(self.optimizer.parameters):
            logits = gate.logits(samples.obs, samples.action)
            loss = risk_loss(logits, target, weight)
            descend(self.optimizer, loss)
        metrics = {"loss/risk": loss.detach(), "safety/risk": torch.sigmoid(logits.detach().amax(0)).mean()}
        polyak_update(self.target_buffer, self.optimizer, self.config.tau)
        if self.recovery is not None:
            with _learned(self.recovery.parameters):
                # -log(1 - risk), whose slope does not vanish where the risk is nearly 1.
                danger = F.softplus(gate.logit(samples.obs, gate.recover(samples.obs)))
                cost = (weight * danger).sum() / weight.sum().clamp(min=1.0)
                descend(self.recovery, cost)
            metrics["loss/recovery"] = cost.detach()
        return metrics

    def _next_action(self, samples: Steps) -> Tensor:
        """What the policy would do next, with the gate in force, ``[B, A]``.

        Of one that has a memory or reads images that is not known anew, and what was done counts.
        """
        if not self.memoryless:
            return samples.next_action
        shape = len(self.target.noise) + 1, *samples.action.shape
        drawn = self.policy.drawn(self.policy.output_of(samples.next_obs), torch.randn(shape, device=self.size.device))
        gated = self.target(samples.next_obs, drawn[0], drawn[1:])
        return gated.action  # type: ignore[no-any-return]

    def _calibrate(self) -> Tensor:
        """Expected calibration error on the envs that are held out (Naeini et al. 2015, with bins of equal width).

        The mean over samples of how far, within a bin of predictions, their mean is from that of what came.
        """
        assert self.gate is not None
        count, first = self.num_steps + self.tail, self.num_learned
        window = {name: self._latest(name, count, first) for name in self.ring.data}  # [T + tail, H, ...]
        lost = window["cut"] | ~window["sound"]
        came, known = outcomes(window["violation"], window["terminated"], lost, self.config.gamma, self.tail)
        obs, action = (window[name][: self.num_steps].flatten(0, 1) for name in ("obs", "action"))  # [T * H, ...]
        in_force = self.gate.limit < OPEN if self.config.fallback != "none" else torch.ones_like(self.size) > 0
        known = (known & window["sound"] & in_force)[: self.num_steps].flatten()
        risk, came = self.gate.risk(self.policy.normalizer(obs), action), came[: self.num_steps].flatten()
        place = (risk * BINS).long().clamp(0, BINS - 1)
        inside = (place == torch.arange(BINS, device=place.device).unsqueeze(1)) & known  # [BINS, T * H]
        rows = torch.stack([torch.ones_like(risk), risk, came])  # [3, T * H]
        counts, fresh = known.sum(), rows @ inside.float().t()
        if world().several:
            sums = total(torch.cat([fresh.flatten(), counts.view(1)]))
            fresh, counts = sums[:-1].view_as(fresh), sums[-1]
        kept = (1 - counts / MEMORY).clamp(min=0.0)
        self.bins.mul_(kept).add_(fresh)
        number, predicted, seen = self.bins
        error: Tensor = (predicted - seen).abs().sum() / number.sum()
        return error

    def moved(self) -> list[Tensor]:
        """What acting and recording change, see ``agent.Agent``; rows are written over before they are read."""
        return [] if self.gate is None else [self.ring.row, self.size]

    def state_dict(self) -> dict[str, Any]:
        """Everything that learning depends on, but for the gate itself, which is the policy's; without one nothing."""
        if self.gate is None:
            return {}
        recovery = None if self.recovery is None else self.recovery.state_dict()
        return {
            "optimizer": self.optimizer.state_dict(),
            "recovery": recovery,
            "target": self.target_buffer,
            "ring": self.ring.state_dict(),
            "size": self.size,
            "bins": self.bins,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``'s result.

        Raises:
            ConfigError: it was saved with room for another number of steps.
        """
        if self.gate is None:
            return
        saved = state["ring"].get("cut", self.acted.expand(self.ring.num_steps, -1)).shape  # or none has been written
        remedy = f"it was saved with {saved[0]} steps of {saved[1]} envs; set {saved.numel()}, and as many envs"
        fits = tuple(saved) == (self.ring.num_steps, self.num_envs)
        check(fits, "safety.gate.buffer_size", self.config.buffer_size, remedy)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.recovery is not None:
            self.recovery.load_state_dict(state["recovery"])
        self.ring.load_state_dict(state["ring"])
        for name, value in (("target", self.target_buffer), ("size", self.size), ("bins", self.bins)):
            value.copy_(state[name])


def _critics(gate: Gate) -> list[nn.Parameter]:
    return [*gate.trunks.parameters(), *gate.heads.parameters()]


@contextmanager
def _learned(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let these alone be learned meanwhile, of a gate whose parameters are frozen."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
