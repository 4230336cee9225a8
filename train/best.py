"""Which checkpoint of a run is the best, and why: scores of different stages or rewards are never compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rlcore.agent import Policy
from rlcore.env import EnvSpec
from rlcore.safety import CostConfig, SafetyConfig
from rlcore.stage import Stage, same_stage
from rlcore.train.algorithms import find
from rlcore.train.config import TrainConfig
from rlcore.train.evaluate import Evaluation


class Best:
    """The best policy so far, kept so that it can be measured anew under what holds by then.

    That is done once in each evaluation at another stage than the one before, and in the first after a run was
    continued: its reward or its env may have changed meanwhile, which nothing would tell.

    Where costs are limited a policy within the limits is better than one that is over, and of two that are over, the
    one that is less so; the score decides between others.

    Of several tasks the score is the mean of theirs: the success of a task that tells it, else where its mean return
    lies between the lowest and the highest that the run's evaluations have found, 0 to 1. These limits move, so that
    the best is scored anew with each evaluation.

    Args:
        config: of the run.
        spec: of its env.
        device: where policies are run.
    """

    def __init__(self, config: TrainConfig, spec: EnvSpec, device: torch.device) -> None:
        self._build: Callable[[], Policy] = lambda: find(config.algo).policy(spec, config.agent).to(device).eval()
        self._costs = getattr(config.agent, "safety", SafetyConfig()).costs
        self._weights: dict[str, Tensor] | None = None
        self._stage: Stage | None = None
        self._resumed = False
        self._evaluations = self._anew = 0
        self._resumed_from: int | None = None
        self.iteration = 0
        self.better = False
        """Whether the latest policy did better than all before it, and not only as well."""
        self.result: Evaluation | None = None
        self.score = self.excess = 0.0
        self.ranges: dict[str, tuple[float, float]] = {}
        """Of each of several tasks the lowest and the highest mean return that was found."""

    def take_ranges(self, content: Mapping[str, Any]) -> None:
        """Know what evaluations had found when a checkpoint was written: the latest, as the best was found before."""
        self.ranges = {name: (low, high) for name, (low, high) in content.get("ranges", {}).items()}

    def resume(self, content: dict[str, Any]) -> None:
        """Go on with the best checkpoint of the run that is continued."""
        self._weights = {name: value.cpu() for name, value in content["agent"]["policy"].items()}
        self.iteration = self._resumed_from = int(content["progress"]["iteration"])
        self.score = float(content.get("score", 0.0))
        self._resumed = True

    def measured(self, stage: Stage | None, measure: Callable[[Policy], Evaluation]) -> str | None:
        """Bring the score up to what holds now, if it may have been something else.

        Args:
            stage: at which evaluations happen now.
            measure: evaluates a policy there.

        Returns:
            What is worth saying about it: that a continued run's best no longer does what it did.
        """
        if self._weights is None or not (self._resumed or not same_stage(stage, self._stage)):
            return None
        before = self.score
        self.result = measure(self.with_weights(self._weights))
        self.ranges = wider(self.ranges, self.result)
        self.score, self.excess, self._stage = score(self.result, self.ranges), excess(self.result, self._costs), stage
        self._anew += not self._resumed
        said = None
        if self._resumed and abs(self.score - before) > 1e-6 * max(1.0, abs(before)):
            said = (
                f"best.pt, of iteration {self.iteration}, scored {before:.4g} when it was chosen and {self.score:.4g} "
                "now: the stage, the reward, the env or the evaluation is another; the latter counts"
            )
        self._resumed = False
        return said

    def with_weights(self, weights: Mapping[str, Tensor]) -> Policy:
        """A policy of the run with these weights."""
        policy = self._build()
        policy.load_state_dict(weights)
        return policy

    def replaced_by(self, iteration: int, result: Evaluation, stage: Stage | None, policy: Policy) -> bool:
        """Take the present policy, measured where ``measured`` measured the best, if it does as well or better."""
        self._evaluations += 1
        over = excess(result, self._costs)
        self.ranges = wider(self.ranges, result)
        new = score(result, self.ranges)
        if self.result is not None:
            self.score = score(self.result, self.ranges)
        self.better = self._weights is None or (-over, new) > (-self.excess, self.score)
        # A later one that does as well has seen more: ties go to it.
        if self._weights is not None and (-over, new) < (-self.excess, self.score):
            return False
        self._weights = {name: value.detach().cpu().clone() for name, value in policy.state_dict().items()}
        self.iteration, self.result, self._stage = iteration, result, stage
        self.score, self.excess = new, over
        return True

    def why(self) -> str | None:
        """What makes it the best, in one line; None where nothing was evaluated."""
        if self.result is None:
            return None
        kind = "return" if self.result.success is None else "success"
        value = self.result.mean_return if self.result.success is None else self.result.success
        count = self._evaluations + (self._resumed_from is not None)
        most = "the only one evaluated" if count == 1 else f"the highest of {count} policies evaluated"
        of = f", of {count} policies evaluated" * (count > 1)
        if self._costs:
            told = [f"{k} {x:.4g}, {self._costs[k].text}" for k, x in spent(self.result, self._costs).items()]
            most = "the least over the limits on costs" if self.excess > 0 else "the highest within the limits"
            most += f" ({'; '.join(told)}){of}" if told else of
        if self.result.tasks:
            kind, value = f"score over {len(self.result.tasks)} tasks", self.score
        text = f"iteration {self.iteration}: {kind} {value:.4g}, {most}"
        if self._anew:
            often = "once" if self._anew == 1 else f"{self._anew} times"
            text += f"; the best before was measured anew at the stage of each evaluation, {often}"
        if self._resumed_from is not None:
            text += f"; that of before the run was continued, of iteration {self._resumed_from}, was measured anew"
        return text


def figures(result: Evaluation, ranges: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """What an evaluation adds to the metrics; for ``ranges`` see ``score``."""
    found = {"eval/return": result.mean_return}
    if result.tasks:
        found["eval/score"] = score(result, ranges)
    if result.episodes:
        found["eval/length"] = float(result.lengths.double().mean())
    if result.success is not None:
        found["eval/success"] = result.success
    found |= {f"eval/return_{name}": part.mean_return for name, part in result.tasks.items()}
    found |= {f"eval/success_{k}": part.success for k, part in result.tasks.items() if part.success is not None}
    return found | {f"eval/signal_{name}": float(sums.mean()) for name, sums in result.known_signals.items()}


def score(result: Evaluation, ranges: Mapping[str, tuple[float, float]]) -> float:
    """What policies are compared by, the higher the better; see ``Best`` for several tasks.

    Args:
        result: of an evaluation.
        ranges: of each task the lowest and the highest mean return so far.
    """
    if not result.tasks:
        return result.score
    total = 0.0
    for name, part in result.tasks.items():
        low, high = ranges.get(name, (0.0, 0.0))
        if part.success is not None:
            total += part.success
        elif part.episodes:  # else none ended, or none counts
            total += (part.mean_return - low) / (high - low) if high > low else 1.0
    return total / len(result.tasks)


def wider(ranges: Mapping[str, tuple[float, float]], result: Evaluation) -> dict[str, tuple[float, float]]:
    """Ranges of mean returns by task, with those of another evaluation in them."""
    found = dict(ranges)
    for name, part in result.tasks.items():
        if part.episodes:
            low, high = ranges.get(name, (part.mean_return, part.mean_return))
            found[name] = (min(low, part.mean_return), max(high, part.mean_return))
    return found


def spent(result: Evaluation, costs: Mapping[str, CostConfig]) -> dict[str, float]:
    """What an evaluation cost, by name, as the kinds of the limits measure it; without what no episode tells."""
    found = {}
    for name, cost in costs.items():
        sums = result.signals.get(name, result.returns[:0])
        known = sums.isfinite()
        if known.any():
            of = sums[known]
            of = (of > 0).double() if cost.kind == "probability" else of  # costs are not negative
            number = result.lengths[known].sum() if cost.kind == "per_step" else known.sum()
            found[name] = float(of.sum() / number)
    return found


def excess(result: Evaluation, costs: Mapping[str, CostConfig]) -> float:
    """By how much an evaluation is over limits on costs, each in multiples of its scale; 0 where it is within all."""
    return sum(max(0.0, value - costs[k].limit) / costs[k].unit for k, value in spent(result, costs).items())


def told_of_stages(first: Stage | None, which: str) -> list[str]:
    """What a run says of its evaluations when it begins: nothing where the env has no stage."""
    if first is None:
        return []
    if which == "start":
        return ["curricula    stand in evaluations where the env begins (--eval-stage trained: where training stands)"]
    if which in ("end", "all"):
        where = "with all envs at the hardest level" if which == "end" else "evenly over all levels"
        return [f"curricula    stand in evaluations {where} (--eval-stage trained: where training stands)"]
    return [
        "curricula    stand in evaluations where training stands (--eval-stage start: where the env begins);",
        "             where they have moved, the best policy so far is evaluated anew beside the present one",
    ]
