"""An unbiased estimate of what a policy achieves."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlcore.agent import Policy
from rlcore.env import VecEnv, is_staggered
from rlcore.env_check import StepCheck, check_obs
from rlcore.envs.multi_task import SHARE
from rlcore.envs.trials import RETURN
from rlcore.normalization import UNUSABLE
from rlcore.stage import Stage, reset_at
from rlcore.train.controller import ActionFunction as ActionFunction
from rlcore.train.controller import Controller as Controller
from rlcore.train.intervals import ratio_interval, t_interval, wilson_interval
from rlcore.types import Step, begins, detached_step

GUESS_STEPS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""After so many steps of an episode it is told how often a policy that infers its task is right."""

ENDLESS = 100_000
"""A time limit of this many steps or more is none: what has not ended after a tenth of it is left unfinished."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The first complete episode of every env."""

    returns: Tensor  # [E] float64
    lengths: Tensor  # [E] int64, steps
    unfinished: int = 0
    """Envs whose episode did not end in time; they are not in the figures."""
    broken: int = 0
    """Envs that gave a reward which is not finite, or can only come of a fault; neither are they."""
    successes: float | None = None
    """Goals reached; None where the task does not report success."""
    goals: int | None = None
    signals: Mapping[str, Tensor] = field(default_factory=dict)
    """Sum of each signal of the env over an episode, ``[E]`` float64; see ``Step.signals``."""
    violations: Tensor | None = None
    """Steps of an episode that were a violation, ``[E]`` float64; None where nothing is known to be one."""
    takeovers: Tensor | None = None
    """Steps in which the policy's gate put another action in the place of its own, ``[E]`` float64; None without."""
    guesses: Mapping[int, Tensor] = field(default_factory=dict)
    """Where a policy infers its task, whether it was right after so many steps, 0 or 1 ``[E]`` float64 of the episodes
    that lasted so long."""
    trial: Tensor | None = None
    """Return of each episode of a trial, ``[E, episodes]`` float64; None where episodes are no trials."""
    tasks: Mapping[str, Evaluation] = field(default_factory=dict)
    """Of each task by itself, where the env is of several."""

    @property
    def episodes(self) -> int:
        """Episodes that count."""
        return len(self.returns)

    @property
    def mean_return(self) -> float:
        """Mean of the undiscounted returns."""
        return float(self.returns.mean()) if self.episodes else math.nan

    @property
    def success(self) -> float | None:
        """Fraction of the goals that were reached."""
        return None if self.successes is None or not self.goals else self.successes / self.goals

    @property
    def score(self) -> float:
        """What checkpoints are compared by: success where the task reports it, else the mean return."""
        value = self.mean_return if self.success is None else self.success
        return -math.inf if math.isnan(value) else value

    def as_dict(self) -> dict[str, Any]:
        """Figures as plain values for eval.json."""
        result: dict[str, Any] = {"episodes": self.episodes, "unfinished": self.unfinished}
        if self.broken:
            result["broken"] = self.broken
        if self.episodes:
            result |= {
                "return_mean": self.mean_return,
                "return_ci95": _finite(t_interval(self.returns)),
                "return_std": float(self.returns.std()) if self.episodes > 1 else 0.0,
                "return_min": float(self.returns.min()),
                "return_max": float(self.returns.max()),
                "length_mean": float(self.lengths.double().mean()),
            }
        if self.success is not None and self.goals is not None:
            result["success"] = self.success
            result["success_ci95"] = list(wilson_interval(self.success, self.goals))
            result["goals"] = self.goals
        if self.guesses:
            result["task_accuracy"] = {str(step): float(right.mean()) for step, right in self.guesses.items()}
        if self.trial is not None and self.episodes:
            columns = self.trial.unbind(1)
            result["trial_returns"] = [{"mean": float(x.mean()), "ci95": _finite(t_interval(x))} for x in columns]
        for name, steps in self._shares().items():
            share, low, high = ratio_interval(steps, self.lengths)
            result |= {f"{name}_share": share, f"{name}_share_ci95": _finite((low, high))}
        for name, sums in self.known_signals.items():
            result |= {f"signal_{name}_mean": float(sums.mean()), f"signal_{name}_ci95": _finite(t_interval(sums))}
        return result | ({"tasks": {k: part.as_dict() for k, part in self.tasks.items()}} if self.tasks else {})

    def lines(self) -> list[str]:
        """``summary``, what is known of trials and guesses, and a line for each task where there are several."""
        lines = [self.summary()]
        for number, returns in enumerate([] if self.trial is None else self.trial.unbind(1), 1):
            lines.append(f"episode {number} of a trial: return {_with_interval(returns)}")
        if self.guesses:
            told = ", ".join(f"{step}: {float(right.mean()):.1%}" for step, right in self.guesses.items())
            lines.append(f"right guesses of the task by steps seen: {told}")
        return [*lines, *(f"{name}: {part.summary()}" for name, part in self.tasks.items())]

    def _shares(self) -> dict[str, Tensor]:
        """Steps ``[E]`` that are told as a share of all, by name, where they are known."""
        steps = {"violation": self.violations, "gate": self.takeovers} if self.episodes else {}
        return {name: value for name, value in steps.items() if value is not None}

    @property
    def known_signals(self) -> dict[str, Tensor]:
        """Of each signal the episodes in which all of it was finite, where there are any."""
        finite = {name: sums[sums.isfinite()] for name, sums in self.signals.items()}
        return {name: sums for name, sums in finite.items() if len(sums)}

    def summary(self) -> str:
        """One line for people."""
        numbers = {"unfinished": self.unfinished, "with a reward that is not finite or absurd": self.broken}
        left_out = ", ".join(f"{number} {what} and left out" for what, number in numbers.items() if number)
        if not self.episodes:
            return f"no episode {'counts' if self.broken else 'ended'}; {left_out}"
        parts = [f"return {_with_interval(self.returns)}"]
        if self.success is not None and self.goals is not None:
            bottom, top = wilson_interval(self.success, self.goals)
            parts.append(f"success {self.success:.1%} ({bottom:.1%} to {top:.1%}, {self.goals} goals)")
        for name, sums in self.known_signals.items():
            least, most = t_interval(sums)
            interval = f" ({least:.4g} to {most:.4g})" if len(sums) > 1 else ""
            parts.append(f"{name} {float(sums.mean()):.4g}{interval}")
        for name, steps in self._shares().items():
            share, least, most = ratio_interval(steps, self.lengths)
            what = {"violation": "violations in", "gate": "the gate acted in"}[name]
            interval = f" ({least:.3%} to {most:.3%})" if self.episodes > 1 else ""
            parts.append(f"{what} {share:.3%} of steps{interval}")
        parts.append(f"length {float(self.lengths.double().mean()):.1f}")
        parts.append(f"{self.episodes} episode{'s' * (self.episodes != 1)}")
        return ", ".join([*parts, left_out] if left_out else parts)


def evaluation_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of an env for evaluations: whole episodes, whatever the training began with, and as many of each task."""
    kept = {name: value for name, value in options.items() if name.rpartition(".")[1:] != (".", SHARE)}
    for name, value in kept.items():
        if name.rpartition(".")[2] == "randomize_start":
            kept[name] = False
        elif isinstance(value, Mapping) and name != "costs":  # of one of several tasks
            kept[name] = {key: part for key, part in evaluation_options(value).items() if key != SHARE}
    return kept


@contextmanager
def whole_episodes(env: VecEnv) -> Iterator[None]:
    """Let no episode begin in the middle, where an evaluation borrows the training env."""
    if not is_staggered(env):
        yield
        return
    before, env.randomize_start = env.randomize_start, False
    try:
        yield
    finally:
        env.randomize_start = before


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Put random generators back afterwards, so that an evaluation leaves no trace in the training.

    Those of Python and NumPy too, which simulators seed with each evaluation's seed.
    """
    of_python, of_numpy = random.getstate(), np.random.get_state()  # the one that others use
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


def evaluate(
    env: VecEnv,
    policy: Policy | ActionFunction,
    seed: int,
    *,
    rounds: int = 1,
    stage: Stage | None = None,
    violations: Mapping[str, float] | None = None,
    before: Callable[[int], None] | None = None,
) -> Evaluation:
    """Run every env to the end of its first episode, and count each of these episodes once.

    Counting instead the first K episodes to end, whichever envs they come from, favors short episodes: where
    failing is quick, it reports more failures than there are, and where success is quick, more successes.

    Args:
        env: a separate copy of the task; it is reset here, and left in the middle of an episode.
        policy: a policy module, or a function from observations to actions such as an exported file.
        seed: makes the estimate repeatable; round r resets with ``seed + r * num_envs``, as gymnasium's env i adds i.
        rounds: times that all envs start anew; each gives ``env.num_envs`` episodes.
        stage: where the env's curricula stand as each round begins; None is wherever they are.
        violations: signals that are a violation where they are above a number, by name; those that the env does not
            give are left out.
        before: see ``run_episodes``.

    Raises:
        ValueError: the env returns something of a wrong type or shape.
    """
    seeds = range(seed, seed + rounds * env.num_envs, env.num_envs)
    results = [run_episodes(env, policy, own, stage, violations, before=before) for own in seeds]
    return estimated(results, getattr(env, "tasks", ()))


def estimated(results: Sequence[Rows], tasks: Iterable[str]) -> Evaluation:
    """Episodes of several rounds, or parts of one, as one estimate, with one of each of several ``tasks``."""
    own = {name: counted([r.part(r.task == k) for r in results]) for k, name in enumerate(tasks)}
    return replace(counted(results), tasks=own)


def counted(results: Sequence[Rows]) -> Evaluation:
    """The episodes of several rounds that ended and were sound, as one estimate."""
    known = [r for r in results if r.goals is not None]
    return Evaluation(
        returns=torch.cat([r.returns[r.finished] for r in results]),
        lengths=torch.cat([r.lengths[r.finished] for r in results]),
        unfinished=sum(int((~r.finished & r.sound).sum()) for r in results),
        broken=sum(int((~r.sound).sum()) for r in results),
        successes=sum(float(r.successes.sum()) for r in known if r.successes is not None) if known else None,
        goals=sum(round(float(r.goals.sum())) for r in known if r.goals is not None) if known else None,
        signals={name: torch.cat([r.signals[name][r.finished] for r in results]) for name in results[0].signals},
        guesses={step: x[x.isfinite()] for step, x in _by_step(results).items() if bool(x.isfinite().any())},
        trial=_joined([r.of_finished(r.trial) for r in results]),
        violations=_joined([r.of_finished(r.violations) for r in results]),
        takeovers=_joined([r.of_finished(r.takeovers) for r in results]),
    )


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known) if len(known) == len(parts) else None


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The first episode of every env, in the order of the envs, on the CPU."""

    returns: Tensor  # [N] float64, undiscounted
    lengths: Tensor  # [N] int64, steps
    finished: Tensor  # [N] bool, ended in time and sound
    sound: Tensor  # [N] bool, without a reward that can only come of a fault
    successes: Tensor | None = None  # [N] float64, goals reached; None where the task does not report success
    goals: Tensor | None = None  # [N] float64
    signals: Mapping[str, Tensor] = field(default_factory=dict)  # [N] float64 each, sums
    violations: Tensor | None = None  # [N] float64, steps
    takeovers: Tensor | None = None  # [N] float64, steps
    guesses: Mapping[int, Tensor] = field(default_factory=dict)  # [N] float64 each, NaN where the episode was over
    trial: Tensor | None = None  # [N, episodes] float64
    task: Tensor = field(default_factory=lambda: torch.zeros(()))  # [N] int64, where there are several

    def of_finished(self, values: Tensor | None) -> Tensor | None:
        """Those of values ``[N]`` whose episode is finished."""
        return None if values is None else values[self.finished]

    def part(self, where: Tensor) -> Rows:
        """Those of some envs, bool ``[N]``."""
        kept = {name: value[where] for name, value in vars(self).items() if isinstance(value, Tensor) and value.ndim}
        signals = {name: value[where] for name, value in self.signals.items()}
        return replace(self, **kept, signals=signals, guesses={k: x[where] for k, x in self.guesses.items()})


def run_episodes(
    env: VecEnv,
    policy: Policy | ActionFunction,
    seed: int,
    stage: Stage | None = None,
    bounds: Mapping[str, float] | None = None,
    *,
    before: Callable[[int], None] | None = None,
    after: Callable[[int, Step, Tensor], None] | None = None,
) -> Rows:
    """Run every env to the end of its first episode; see ``evaluate``.

    Args:
        env: it is reset here, and left in the middle of an episode.
        policy: a policy module, or a function from observations to actions.
        seed: of the reset.
        stage: where the env's curricula stand; None is wherever they are.
        bounds: signals that are a violation where they are above a number, by name.
        before: called before each step with its number, from 0.
        after: called after each step with its number, what it returned, and bool ``[N]``, the envs whose first episode
            it belongs to.
    """
    bounds = bounds or {}
    n, device = env.num_envs, env.device
    returns = torch.zeros(n, dtype=torch.float64, device=device)  # [N]
    lengths = torch.zeros(n, dtype=torch.int64, device=device)  # [N]
    successes = torch.zeros(n, dtype=torch.float64, device=device)  # [N]
    goals = torch.zeros(n, dtype=torch.float64, device=device)  # [N]
    running, sound = torch.ones(2, n, dtype=torch.bool, device=device)  # [N] each
    reports_success = False
    signals: dict[str, Tensor] = {}  # [N] each
    violations, takeovers = torch.zeros(2, n, dtype=torch.float64, device=device)  # [N] each
    known: set[str] = set()
    guesses: dict[int, Tensor] = {}  # [N] each
    trial: dict[str, Tensor] = {}  # [N] each

    controller = Controller(policy, env)
    obs, check = reset_at(env, stage, seed), StepCheck(env)
    check_obs(env, obs, "reset")
    limit = env.max_episode_length if env.max_episode_length < ENDLESS else ENDLESS // 10
    for t in range(limit + 1):
        action = controller.act(obs)
        if before is not None:
            before(t)
        step = env.step(action)
        check(step)
        step = detached_step(step)
        if after is not None:
            after(t, step, running)
        if controller.acted is not None:
            takeovers += running & controller.acted
        if controller.guessed is not None and t in GUESS_STEPS:
            guesses[t] = torch.where(running, controller.guessed.double(), torch.nan).cpu()
        over = [value > bounds[name] for name, value in (step.signals or {}).items() if name in bounds]  # [N] each
        known |= bounds.keys() & (step.signals or {}).keys()
        violations += running & torch.stack(over).any(0) if over else 0.0
        done = step.terminated | step.truncated  # [N]
        returns += torch.where(running, step.reward.double(), 0.0)
        lengths += running
        for name, value in (step.signals or {}).items():
            signals[name] = signals.get(name, torch.zeros_like(returns)) + torch.where(running, value.double(), 0.0)
        sound &= (step.reward.abs() < UNUSABLE) | ~running  # false for NaN, too
        ended = running & done & sound
        if "success" in step.log:
            reports_success = True
            success = _per_env(step.log["success"], n, device)
            tells = ended & ~success.isnan()  # NaN is nothing, as in training: a task of several may have no success
            number = torch.where(tells, _per_env(step.log.get("num_goals", 1.0), n, device), 0.0)
            successes += torch.where(tells, success * number, 0.0)
            goals += number
        for name, told in step.log.items():  # of a task its name is before
            if (key := name.rpartition("/")[2]).startswith(RETURN):
                own = torch.as_tensor(told, dtype=torch.float64, device=device)  # [N]
                trial[key] = torch.where(ended & own.isfinite(), own, trial.get(key, torch.zeros_like(returns)))
        running = running & ~done
        controller.forget(begins(step))
        obs = step.obs
        if not running.any():
            break
    return Rows(
        returns=returns.cpu(),
        lengths=lengths.cpu(),
        finished=(~running & sound).cpu(),
        sound=sound.cpu(),
        successes=successes.cpu() if reports_success else None,
        goals=goals.cpu() if reports_success else None,
        signals={name: sums.cpu() for name, sums in signals.items()},
        violations=violations.cpu() if known else None,
        takeovers=None if controller.acted is None else takeovers.cpu(),
        guesses=guesses,
        trial=torch.stack(list(trial.values()), 1).cpu() if trial else None,
        task=torch.as_tensor(getattr(env, "task_index", 0)).cpu(),
    )


def _per_env(value: Tensor | float, n: int, device: torch.device) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64, device=device).expand(n)  # [N]


def _by_step(results: Sequence[Rows]) -> dict[int, Tensor]:
    """Guesses of all rounds by steps."""
    steps = dict.fromkeys(step for r in results for step in r.guesses)
    return {step: torch.cat([r.guesses[step] for r in results if step in r.guesses]) for step in steps}


def _with_interval(values: Tensor) -> str:
    low, high = t_interval(values)
    interval = f" (95% interval {low:.4g} to {high:.4g})" if len(values) > 1 else ""  # of one there is none
    return f"{float(values.mean()):.4g}{interval}"


def _finite(values: tuple[float, float]) -> list[float | None]:
    """For JSON, which has no infinity."""
    return [value if math.isfinite(value) else None for value in values]
