"""The examination of a run folder: what its curves say of the training. Nothing in it is executed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rlcore.train.doctor import bands
from rlcore.train.doctor.findings import Examination, Finding, listed, plural
from rlcore.train.groups import leaves
from rlcore.train.reports.run import Numbers, RunFacts, read_run


def examine_run(path: Path) -> Examination:
    """Look at what a run folder has: settings and curves.

    Raises:
        ConfigError: its config.yaml cannot be read.
    """
    facts = read_run(path)
    into = Examination()
    curves = Curves(facts)
    into.facts["run"] = f"{facts.task}, {facts.algorithm}, {plural(curves.rows, 'row')} of metrics.csv"
    into.numbers = {name: facts.metrics.last(name) for name in facts.metrics.names}
    into.add(_notes(facts))
    into.add(_numbers(facts, curves))
    if curves.rows < bands.FEWEST_ROWS:
        into.findings.append(
            Finding(
                severity="note",
                check="run.short",
                what=f"metrics.csv has {plural(curves.rows, 'row')}",
                value=float(curves.rows),
                why=f"trends need {bands.FEWEST_ROWS} or more",
                remedy="train for longer, or with a smaller --log-interval",
            )
        )
        return into
    for check in (_returns, _updates, _critic, _exploration, _rates, _replay, _limits):
        into.add(check(curves))
    return into


class Curves:
    """Columns of a run and its settings, with what is asked of them."""

    def __init__(self, facts: RunFacts) -> None:
        self.columns = facts.metrics.columns
        self.rows = len(facts.metrics.steps)
        self.settings = dict(leaves(facts.config))

    def __getitem__(self, name: str) -> Numbers:
        """The finite values of a metric, in order; empty where there is none."""
        column = self.columns.get(name, np.empty(0))
        found: Numbers = column[np.isfinite(column)]
        return found

    def half(self, name: str, last: bool = True) -> Numbers:
        """Those of the last, or else the first, half of the rows."""
        column = self.columns.get(name, np.empty(0))
        part = column[self.rows // 2 :] if last else column[: self.rows // 2]
        found: Numbers = part[np.isfinite(part)]
        return found

    def late(self, name: str) -> float | None:
        """The median of the last half."""
        values = self.half(name)
        return float(np.median(values)) if len(values) else None

    def setting(self, name: str, default: Any = None) -> Any:
        """A setting by its dotted name."""
        return self.settings.get(name, default)

    def number(self, name: str) -> float | None:
        """A setting that is a number; None where it is none."""
        value = self.setting(name)
        known = isinstance(value, (int, float)) and not isinstance(value, bool)
        return float(value) if known and math.isfinite(value) else None

    @property
    def steps(self) -> float | None:
        """Steps of an iteration."""
        envs, steps = self.number("num_envs"), self.number("agent.num_steps")
        return None if envs is None or steps is None else envs * steps


def smooth(values: Numbers) -> Numbers:
    """Means of neighboring values, of about a tenth of them each."""
    width = max(1, len(values) // 10)
    found: Numbers = np.convolve(values, np.ones(width) / width, mode="valid")
    return found


def _notes(facts: RunFacts) -> Iterator[Finding]:
    if facts.metrics.notes:
        yield Finding(
            severity="warning",
            check="run.metrics",
            what=listed(facts.metrics.notes),
            why="what cannot be read is not examined",
            remedy="train anew, or copy the folder whole",
        )
    wanted, iterations = facts.config.get("num_iterations"), facts.metrics.columns.get("iteration")
    done = None if iterations is None or not len(iterations) else float(np.nanmax(iterations))
    if isinstance(wanted, int) and done is not None and done < wanted:
        yield Finding(
            severity="note",
            check="run.unfinished",
            what=f"{done:.0f} of {wanted} iterations are done",
            value=done / wanted,
            why="what follows holds as far as the run has come",
            remedy=f"rlcore train --resume {facts.path}",
        )


def _numbers(facts: RunFacts, curves: Curves) -> Iterator[Finding]:
    """What was not finite, or left out."""
    bad = facts.metrics.not_finite
    if bad:
        yield Finding(
            severity="error",
            check="run.nan",
            what=f"{listed(list(bad))} {'was' if len(bad) == 1 else 'were'} not finite in "
            f"{plural(sum(bad.values()), 'row')}",
            value=float(sum(bad.values())),
            why="something of the training has diverged, or the env gives such numbers",
            remedy="rlcore doctor --task TASK tells which of them are the env's; else a smaller --agent.learning-rate",
        )
    every, steps = curves.number("log_interval") or 1.0, curves.steps
    for name in ("rollout/dropped", "replay/dropped"):
        dropped = float(curves[name].sum())
        if dropped > 0 and steps:
            share = dropped / (steps * every * max(1, len(curves[name])))
            yield Finding(
                severity="error" if share > bands.DROPPED else "warning",
                check="run.dropped",
                what=f"{plural(int(dropped), 'step')} were left out of learning ({name}, {share:.2g} of all)",
                value=share,
                why="a number that they need is not finite, or can only come of a fault",
                remedy="the training said which; rlcore doctor --task TASK finds it as well",
            )
    skipped = curves["policy/skipped_minibatches"]
    if len(skipped) and float(skipped.sum()) > 0:
        yield from _skipped(curves, skipped)


def _skipped(curves: Curves, skipped: Numbers) -> Iterator[Finding]:
    passes, parts = curves.number("agent.num_epochs"), curves.number("agent.num_minibatches")
    number = (passes or 1.0) * (parts or 1.0)
    share = float(skipped.mean()) / number
    if curves.setting("agent.target_kl") is None:
        yield Finding(
            severity="error",
            check="run.skipped",
            what=f"{float(skipped.mean()):.3g} of {number:.0f} gradient steps of an update were skipped on average",
            value=share,
            why="the loss was not finite",
            remedy="a smaller --agent.learning-rate, or --agent.max-grad-norm; look at observations and rewards first",
        )
    elif share > bands.SKIPPED:
        yield Finding(
            severity="note",
            check="run.skipped",
            what=f"target_kl skips {share:.0%} of the gradient steps",
            value=share,
            why="most of each update is not done",
            remedy="less --agent.num-epochs or --agent.learning-rate, which make the same of less time",
        )


def _returns(curves: Curves) -> Iterator[Finding]:
    returns = smooth(curves["rollout/episode_return"])
    if len(returns) >= bands.FEWEST_ROWS // 2:
        best, gained = float(returns.max()), float(returns.max() - returns[: int(returns.argmax()) + 1].min())
        fall = best - float(returns[-1])
        noise = float(np.std(np.diff(curves["rollout/episode_return"]))) if len(returns) > 1 else 0.0
        if gained > 0 and fall > bands.RETURN_FELL * gained and fall > 2 * noise:
            yield Finding(
                severity="warning",
                check="run.return_fell",
                what=f"the return came to {best:.4g} and fell to {float(returns[-1]):.4g}",
                value=fall / gained,
                why="the policy unlearns: updates are too large, or the critic has lost track",
                remedy="a smaller --agent.learning-rate or --agent.lr-schedule adaptive (PPO); best.pt has the policy "
                "of before",
            )
    evaluated = curves["eval/return"]
    trained = curves.half("rollout/episode_return")
    every = curves["rollout/episode_return"]
    if len(evaluated) and len(trained) and len(every) > 1:
        span = float(every.max() - every.min())
        short = float(np.median(trained)) - float(evaluated[-1])
        if span > 0 and short > bands.EVALUATED_LESS * span:
            yield Finding(
                severity="warning",
                check="run.evaluation",
                what=f"the last evaluation has a return of {float(evaluated[-1]):.4g}, training "
                f"{np.median(trained):.4g}",
                value=short / span,
                why="the policy without exploration does something else than what was trained: it leans on its noise, "
                "or evaluations are of other episodes",
                remedy="less --agent.entropy-coef or a lower --agent.init-std; look at --eval-stage and at random "
                "starts",
            )


def _updates(curves: Curves) -> Iterator[Finding]:
    kl = curves.late("policy/kl")
    if kl is not None and kl > bands.LARGE_KL:
        yield Finding(
            severity="warning",
            check="run.kl_large",
            what=f"KL(old, new) of an update is {kl:.3g} (median of the last half)",
            value=kl,
            why="beyond that the clipped loss says little of the policy that comes out",
            remedy="--agent.lr-schedule adaptive, a smaller --agent.learning-rate, or --agent.target-kl 0.03",
        )
    if kl is not None and kl < bands.SMALL_KL and curves.setting("agent.lr_schedule") != "linear":
        yield Finding(
            severity="warning",
            check="run.kl_small",
            what=f"KL(old, new) of an update is {kl:.3g} (median of the last half)",
            value=kl,
            why="the policy stands still",
            remedy="a larger --agent.learning-rate; look whether the reward varies (rlcore doctor --task TASK)",
        )
    clipped = curves.late("policy/clip_fraction")
    if clipped is not None and clipped > bands.CLIPPED:
        yield Finding(
            severity="warning",
            check="run.clipped",
            what=f"{clipped:.0%} of the samples are clipped (median of the last half)",
            value=clipped,
            why="what is clipped has no gradient: most of the batch is not learned from",
            remedy="a smaller --agent.learning-rate, or less --agent.num-epochs",
        )
    limit, norm = curves.number("agent.max_grad_norm"), curves.late("policy/gradient_norm")
    if limit and norm is not None and norm > bands.CLIPPED_NORM * limit:
        huge = norm > bands.HUGE_NORM * limit
        yield Finding(
            severity="warning" if huge else "note",
            check="run.gradient_norm",
            what=f"gradients have a norm of {norm:.3g} (median of the last half), and are scaled down to {limit:g}",
            value=norm / limit,
            why="each step has the length of the limit, whatever the loss says; with one norm over all, the critic's "
            "drowns the policy's",
            remedy="--agent.normalize-value True, --agent.grad-clip separate, or --agent.reward-scale",
        )


def _critic(curves: Curves) -> Iterator[Finding]:
    explained = curves.late("policy/explained_variance")
    if explained is not None and explained <= bands.POORLY_EXPLAINED:
        useless = explained <= bands.UNEXPLAINED
        yield Finding(
            severity="warning" if useless else "note",
            check="run.explained_variance",
            what=f"the critic explains {explained:.2g} of the variance of returns (median of the last half)",
            value=explained,
            why="it is no better than a constant, so that advantages are all noise of the returns"
            if useless
            else "advantages are mostly returns; where these are noisy, or a policy is perfect, that is all there is",
            remedy="--agent.normalize-value True, a larger --agent.value-coef or --agent.critic.hidden-dims, or "
            "observations that the critic alone sees (a group 'critic')",
        )
    loss = curves["loss/value"]
    if len(loss) >= bands.FEWEST_ROWS:
        first, last = float(np.median(loss[: len(loss) // 4])), float(np.median(loss[-len(loss) // 4 :]))
        if first > 0 and last > bands.LOSS_GREW * first:
            grown = smooth(np.abs(curves["rollout/episode_return"]))
            more = float(grown[-1] / grown[0]) ** 2 if len(grown) and grown[0] > 0 else 1.0
            if last > bands.LOSS_GREW * first * max(1.0, more):  # returns that grow make errors grow with their square
                yield Finding(
                    severity="warning",
                    check="run.value_loss",
                    what=f"the value loss grew from {first:.3g} to {last:.3g}",
                    value=last / first,
                    why="the critic diverges",
                    remedy="a smaller --agent.learning-rate, --agent.normalize-value True (PPO) or a smaller "
                    "--agent.tau (SAC, DDPG)",
                )


def _exploration(curves: Curves) -> Iterator[Finding]:
    std = curves["policy/std"]
    if len(std) >= bands.FEWEST_ROWS:
        first, last = float(std[0]), float(np.median(std[-max(1, len(std) // 10) :]))
        if first > 0 and last < bands.STD_FELL * first:
            yield Finding(
                severity="warning",
                check="run.std_collapsed",
                what=f"the policy's deviation fell from {first:.3g} to {last:.3g}",
                value=last / first,
                why="nothing is explored any more, and gradients grow as one over its square",
                remedy="a larger --agent.entropy-coef or --agent.min-std",
            )
        if first > 0 and last > bands.STD_GREW * first:
            yield Finding(
                severity="warning",
                check="run.std_exploded",
                what=f"the policy's deviation grew from {first:.3g} to {last:.3g}",
                value=last / first,
                why="the entropy bonus outweighs what actions earn: the policy learns to be random",
                remedy="less --agent.entropy-coef, or a lower --agent.max-std",
            )
    entropy = curves["policy/entropy"]
    early = curves.half("policy/entropy", last=False)
    if not len(std) and len(early) and float(entropy[0]) > 0 and curves.setting("algo", "ppo") == "ppo":
        part = float(early[-1] / entropy[0])
        if part < bands.ENTROPY_FELL:
            yield Finding(
                severity="warning",
                check="run.entropy_collapsed",
                what=f"in the first half of the run the entropy of choices fell to {part:.1%} of the first",
                value=part,
                why="the policy settled on one choice before it could know",
                remedy="a larger --agent.entropy-coef, or a smaller --agent.learning-rate",
            )


def _rates(curves: Curves) -> Iterator[Finding]:
    rate = curves.half("policy/learning_rate")
    if not len(rate) or curves.setting("agent.lr_schedule") != "adaptive":
        return
    for name, which in (("agent.lr_min", "lowest"), ("agent.lr_max", "highest")):
        bound = curves.number(name)
        share = 0.0 if bound is None else float(np.mean(np.isclose(rate, bound, rtol=0.01)))
        if bound is not None and share > bands.AT_BOUND:
            low = which == "lowest"
            yield Finding(
                severity="warning" if low else "note",
                check="run.learning_rate",
                what=f"the adaptive learning rate is at its {which}, {bound:g}, in {share:.0%} of the last half",
                value=share,
                why="the KL is too large even so: the schedule has nothing left to lower"
                if low
                else "the policy moves less than desired_kl allows",
                remedy="look at the scale of rewards and observations; less --agent.num-epochs, or a lower "
                "--agent.lr-min"
                if low
                else "none is needed where the return is what it can be; else --agent.lr-max",
            )


def _replay(curves: Curves) -> Iterator[Finding]:
    lost = curves.late("replay/lost")
    if lost is not None and lost > bands.LOST:
        yield Finding(
            severity="warning",
            check="run.replay_lost",
            what=f"{lost:.1%} of the samples count for nothing (replay/lost)",
            value=lost,
            why="last observations of truncated episodes have been overwritten",
            remedy="raise --agent.final-capacity, or correct the env's max_episode_length",
        )
    batch, steps = curves.number("agent.batch_size"), curves.steps
    updates, ratio = curves.number("agent.num_updates"), curves.number("agent.update_ratio")
    if batch is not None and steps and (updates is not None or ratio is not None):
        number = updates if updates is not None else (ratio or 0.0) * steps
        drawn = number * batch / steps
        if drawn > bands.REPLAYED:
            yield Finding(
                severity="note",
                check="run.replay_ratio",
                what=f"{drawn:.3g} samples are drawn for each new step ({number:.0f} x {batch:.0f} for {steps:.0f})",
                value=drawn,
                why="the classic settings for one env; with many envs the learner takes nearly all the time",
                remedy="none is needed with one or a few envs; else --preset gpu, or less --agent.update-ratio",
            )


def _limits(curves: Curves) -> Iterator[Finding]:
    for key in [key for key in curves.columns if key.startswith("safety/") and key.endswith("_limit")]:
        name = key.removeprefix("safety/").removesuffix("_limit")
        cost, limit = curves.late(f"safety/{name}_cost"), curves.late(key)
        if cost is not None and limit is not None and limit > 0 and cost > bands.OVER_LIMIT * limit:
            yield Finding(
                severity="warning",
                check="run.limit",
                what=f"the cost {name} is {cost:.4g}, {cost / limit:.3g} times its limit of {limit:g}",
                value=cost,
                why="no policy with this noise meets the limit, or the multiplier has outgrown the reward",
                remedy="a limit that can be met, or limits on a policy that was trained without: --init-from RUN",
            )
