"""The training loop: act, step, record, update. One loop for every algorithm."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from rlcore.capture import Captured
from rlcore.checkpoint import fitting
from rlcore.env import StepCheck, VecEnv, check_obs
from rlcore.faults import PREFIX, culprits
from rlcore.recurrent import cleared
from rlcore.stage import Stage, reset_at, saved_stage, stage_of
from rlcore.statistics import EpisodeStatistics as EpisodeStatistics
from rlcore.types import Agent, Metrics, Obs, State, begins, detached, detached_step

_log = logging.getLogger(__name__)
_DROPPED = ("rollout/dropped", "replay/dropped")  # metrics that count steps with broken numbers


@dataclass
class Progress:
    """Where a run stands between two iterations."""

    iteration: int
    env_steps: int
    """Steps of single envs."""
    seconds: float
    """Wall-clock spent in the loop."""
    obs: Obs = field(repr=False)
    """The latest observations, by which the next actions are chosen."""
    state: State = field(repr=False)
    """The actor's recurrent state for that."""
    episodes: EpisodeStatistics = field(repr=False)
    """Returns and lengths so far of the episodes in flight."""
    underway: _Stopwatch | None = field(default=None, repr=False)
    """Of the latest iteration, while its time is not yet part of ``seconds``."""
    broken_off: Literal["", "rollout", "update"] = ""
    """Where an exception has ended ``learn``. After a rollout that was broken off, agent and counters stand after the
    last finished iteration and ``snapshot`` saves them, but for the episodes in flight, which start anew; what an
    update that was broken off leaves is neither the one iteration nor the next."""

    def restart(self, env: VecEnv, agent: Agent, obs: Obs | None = None) -> None:
        """Begin new episodes, as after something else has used the env; ``obs`` where they have begun already."""
        self.obs, self.state = detached(env.reset() if obs is None else obs), agent.initial_state()
        self.broken_off = ""
        check_obs(env, self.obs, "reset")
        self.episodes.returns.zero_()
        self.episodes.lengths.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Counters, and the episodes in flight."""
        return {
            "iteration": self.iteration,
            "env_steps": self.env_steps,
            "seconds": self.seconds + (0.0 if self.underway is None else sum(self.underway.seconds())),
            "obs": None if self.broken_off else dict(self.obs),
            "state": list(self.state),
            "returns": self.episodes.returns,
            "lengths": self.episodes.lengths,
        }


@dataclass(frozen=True)
class Report:
    """What one iteration has to say."""

    iteration: int
    env_steps: int
    """Steps of single envs since the run began."""
    metrics: dict[str, float]
    """By name, such as ``loss/policy``. What has no value is left out: a mean return where no episode ended, a loss
    where every step was skipped."""
    culprits: tuple[str, ...] = ()
    """Which numbers of which env could not be learned from, or were limited, in words."""


def begin(env: VecEnv, agent: Agent, seed: int | None = None, stage: Stage | None = None) -> Progress:
    """Reset the env, at a stage if one is given, and stand before the first iteration."""
    obs = reset_at(env, stage, seed)
    check_obs(env, obs, "reset")
    obs = detached(obs)
    episodes = EpisodeStatistics(env.num_envs, torch.device(env.device), agent.mode)
    return Progress(0, 0, 0.0, obs, agent.initial_state(), episodes)


def resume(env: VecEnv, agent: Agent, content: dict[str, Any]) -> tuple[Progress, bool]:
    """Restore agent, env and counters from a checkpoint's content.

    Args:
        env: of the same task and number of envs as the one that was saved.
        agent: built with the same settings on that env.
        content: what ``snapshot`` returned, as ``rlcore.checkpoint.load_checkpoint`` reads it.

    Returns:
        Where the run stands, and whether episodes in flight go on; those that cannot be put back start anew.

    Raises:
        CheckpointError: a ValueError: the content does not fit the agent or the env.
    """
    with fitting(None, "build the agent with the algorithm, settings and env of the run that wrote the file"):
        return restore(env, agent, content)


def restore(env: VecEnv, agent: Agent, content: dict[str, Any]) -> tuple[Progress, bool]:
    """``resume`` that ends in whatever comes of content that does not fit, for callers that know its file."""
    saved = content["progress"]
    own = content["env"] is not None and hasattr(env, "load_state_dict")
    exact = own and getattr(env, "exact_state", True) and saved["obs"] is not None
    if own and not exact and getattr(env, "exact_state", True):
        env.load_state_dict(content["env"])  # type: ignore[attr-defined]  # its generator and what a reset may read
    progress = begin(env, agent, stage=None if exact else saved_stage(env, content))
    agent.load_state_dict(content["agent"])
    progress.iteration, progress.env_steps, progress.seconds = saved["iteration"], saved["env_steps"], saved["seconds"]
    if exact:
        env.load_state_dict(content["env"])  # type: ignore[attr-defined]
        progress.obs, progress.state = saved["obs"], tuple(saved["state"])
        progress.episodes.returns.copy_(saved["returns"])
        progress.episodes.lengths.copy_(saved["lengths"])
    else:
        progress.state = agent.initial_state()  # once more: what was loaded belongs to episodes that do not go on
    torch.set_rng_state(content["rng"]["cpu"].cpu())
    if "cuda" in content["rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(content["rng"]["cuda"].cpu(), torch.device(env.device))
    return progress, exact


def snapshot(env: VecEnv, agent: Agent, progress: Progress) -> dict[str, Any]:
    """Everything that ``resume`` needs, and a recording to check an export with.

    Raises:
        RuntimeError: an exception has broken off an update, so that there is nothing consistent to save.
    """
    if progress.broken_off == "update":
        raise RuntimeError(f"the update of iteration {progress.iteration + 1} was broken off")
    device = torch.device(env.device)
    rng = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        rng["cuda"] = torch.cuda.get_rng_state(device)
    return {
        "agent": agent.state_dict(),
        "progress": progress.state_dict(),
        **_state_of(env, progress),
        "recording": agent.recording(),
        "rng": rng,
    }


def _state_of(env: VecEnv, progress: Progress) -> dict[str, Any]:
    try:
        return {"env": env.state_dict() if hasattr(env, "state_dict") else None, "stage": stage_of(env)}
    except Exception:
        if not progress.broken_off:
            raise
        return {"env": None, "stage": None}  # an env that has failed may do so again


def learn(
    env: VecEnv,
    agent: Agent,
    num_iterations: int,
    *,
    progress: Progress | None = None,
    on_report: Callable[[Report], None] | None = None,
    on_iteration: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    seed: int | None = None,
    capture_env: bool | None = None,
) -> Progress:
    """Train an agent on an env.

    Args:
        env: N envs on one device.
        agent: what learns.
        num_iterations: iterations in all, those of ``progress`` included.
        progress: where to go on; None begins anew. It is kept up to date, so that after an exception it says where the
            run stands, see ``Progress.broken_off``.
        on_report: called with each iteration's metrics. On CUDA they arrive while the next iteration runs, so that
            neither waits for the other. Without it, what they show to be broken is logged as a warning, once.
        on_iteration: called after each iteration, before its report, for checkpoints and evaluations.
        should_stop: asked after each iteration; True ends the run early.
        seed: for the env's first reset, if the run begins anew.
        capture_env: record the whole rollout, env included, as one CUDA graph; None does so where the env allows it.

    Returns:
        Where the run stands, from which it can go on.

    Raises:
        ValueError: ``num_iterations`` is not a positive whole number, or ``capture_env`` is asked for and the env does
            not allow it.
    """
    if num_iterations != int(num_iterations) or num_iterations < 1:
        raise ValueError(f"num_iterations: {num_iterations!r} is not possible; give a positive whole number")
    device = torch.device(env.device)
    if progress is None:
        progress = begin(env, agent, seed)
    if progress.broken_off:
        progress.restart(env, agent)
        progress.episodes.read()
    mark = _Mark(agent.moved())
    collect = _collector(env, agent, progress.episodes, capture_env)
    report_to = on_report or Faults().log
    underway: _Mail | None = None
    try:
        while progress.iteration < num_iterations:
            watch = _Stopwatch(device)
            mark.set()
            try:
                progress.broken_off = "rollout"
                progress.obs, progress.state = collect(progress.obs, progress.state)
                progress.broken_off = "update"
                watch.mark()
                metrics = progress.episodes.read() | agent.update()
                watch.mark()
                progress.iteration += 1
                progress.env_steps += agent.num_steps * env.num_envs
                progress.broken_off = ""
            except BaseException:
                with suppress(Exception):  # after an error of CUDA nothing works; the first error is the one to tell
                    if progress.broken_off == "rollout":
                        mark.go_back()
                raise
            mail, underway = underway, _Mail(progress, metrics, watch, env, agent)
            if mail is not None:
                mail.deliver(progress, report_to)
            progress.underway = watch
            if on_iteration is not None:
                on_iteration(progress)
            if device.type != "cuda":  # nothing runs on beside us
                mail, underway = underway, None
                mail.deliver(progress, report_to)
            if should_stop is not None and should_stop():
                break
    except BaseException:
        with suppress(Exception):
            if underway is not None:  # of an iteration that is finished, and may be saved
                underway.deliver(progress, report_to)
        raise
    if underway is not None:
        underway.deliver(progress, report_to)
    return progress


class _Mark:
    """A copy of tensors to go back to, taken in one operation for each type: it is taken at every iteration."""

    def __init__(self, tensors: list[Tensor]) -> None:
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for tensor in {id(tensor): tensor for tensor in tensors}.values():
            by_type.setdefault(tensor.dtype, []).append(tensor)
        self.pairs = [(group, [torch.empty_like(tensor) for tensor in group]) for group in by_type.values()]

    @torch.no_grad()
    def set(self) -> None:
        for live, copies in self.pairs:
            torch._foreach_copy_(copies, live)

    @torch.no_grad()
    def go_back(self) -> None:
        for live, copies in self.pairs:
            torch._foreach_copy_(live, copies)


class Faults:
    """What reports show to be broken, each thing once; what is left out or limited at growing intervals."""

    def __init__(self) -> None:
        self._learning = self._stored_broken = False
        self._known: set[str] = set()
        self._affected = 0  # iterations in which numbers could not be learned from, or were limited

    def new(self, report: Report) -> list[str]:
        """Tell what is wrong for the first time; metrics that are not a number are not in a report."""
        metrics, found = report.metrics, []
        dropped = [metrics[name] for name in _DROPPED if name in metrics]
        # Without dropped steps there is no reward where every env began anew in place of a step.
        if "rollout/reward" not in metrics and (any(dropped) or not dropped):
            found.append("rewards of the env are not a number (NaN)")
        self._stored_broken |= any(dropped)  # and drawn from the replay memory for long
        if not self._stored_broken and metrics.get("replay/lost", 0.0) > 0.01:
            found.append(
                "more than 1 % of the samples count for nothing: last observations of truncated episodes have been "
                "overwritten (replay/lost); raise agent.final_capacity, or correct the env's max_episode_length"
            )
        if metrics.get("policy/skipped_minibatches") and "loss/policy" not in metrics:
            found.append("the update was skipped whole: observations, rewards or the loss are not finite")
        elif self._learning and "loss/value" not in metrics:
            found.append("gradient steps were skipped: observations, rewards or the loss are not finite")
        self._learning |= "loss/value" in metrics
        fresh = [f"iteration {report.iteration}: {text}; it is said once" for text in found if text not in self._known]
        self._known.update(found)
        return self._left_out(report) + fresh

    def _left_out(self, report: Report) -> list[str]:
        """Name what was left out or limited, the 1st, 2nd, 4th, 8th... time."""
        dropped = [name for name in _DROPPED if report.metrics.get(name)]
        if not dropped and not report.culprits:
            return []
        self._affected += 1
        if self._affected & (self._affected - 1):
            return []
        numbers = {name: report.metrics[name] for name in dropped}
        samples = {name: "1 sample is" if n == 1 else f"{n:,.0f} samples are" for name, n in numbers.items()}
        parts = [f"{text} left out of learning ({name})" for name, text in samples.items()]
        times = "" if self._affected == 1 else f"; so it was in {self._affected:,} iterations by now"
        return [f"iteration {report.iteration}: {'; '.join((*parts, *report.culprits))}{times}"]

    def log(self, report: Report) -> None:
        """Warn of what is new."""
        for text in self.new(report):
            _log.warning(text)


def _collector(
    env: VecEnv, agent: Agent, episodes: EpisodeStatistics, capture_env: bool | None
) -> Callable[[Obs, State], tuple[Obs, State]]:
    """The rollout between two updates: from observation and state to those after it."""
    check = StepCheck(env)  # of a rollout that is recorded as one graph, while that is done

    def collect(obs: Obs, state: State) -> tuple[Obs, State]:
        for _ in range(agent.num_steps):
            action, extras, next_state = agent.act(obs, state)
            step = env.step(action)
            check(step)
            step = detached_step(step)
            agent.record(obs, action, extras, state, step)
            episodes.record(step)
            obs, state = step.obs, cleared(next_state, begins(step)) if next_state else ()
        return obs, state

    possible = bool(getattr(env, "capturable", False))
    if capture_env and not possible:
        raise ValueError(f"capture_env: {type(env).__name__} cannot be recorded as a CUDA graph; leave capture_env out")
    if not possible or capture_env is False:
        return collect
    return Captured(collect, agent.mode, torch.device(env.device), [env.generator])  # type: ignore[attr-defined]


class _Stopwatch:
    """Seconds between marks, in the device's own time."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        # Looked up once: an event that has to ask for it takes ten times as long.
        self.stream = torch.cuda.current_stream(device) if self.cuda else None
        self.marks: list[Any] = []
        self.mark()

    def mark(self) -> None:
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record(self.stream)
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Time between each mark and the next; waits until the device has passed them."""
        if self.cuda:
            self.marks[-1].synchronize()
        spans = zip(self.marks, self.marks[1:], strict=False)
        return [a.elapsed_time(b) / 1000 if self.cuda else b - a for a, b in spans]


class _Mail:
    """An iteration's metrics on their way to the host, in one transfer that nobody waits for."""

    def __init__(self, progress: Progress, metrics: Metrics, watch: _Stopwatch, env: VecEnv, agent: Agent) -> None:
        self.iteration, self.env_steps, self.env, self.agent = progress.iteration, progress.env_steps, env, agent
        self.steps = agent.num_steps * env.num_envs
        self.names = list(metrics)
        self.watch = watch
        self.values = torch.stack([value.float() for value in metrics.values()]).detach()
        if watch.cuda:
            pinned = torch.empty(self.values.shape, pin_memory=True)
            self.values = pinned.copy_(self.values, non_blocking=True)
            self.arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.arrived.record(watch.stream)

    def deliver(self, progress: Progress, on_report: Callable[[Report], None]) -> None:
        """Wait until the metrics have arrived, and report those that have a value."""
        if self.watch.cuda:
            self.arrived.synchronize()
        collect, learn = self.watch.seconds()
        progress.seconds += collect + learn
        progress.underway = None
        values = {name: x for name, x in zip(self.names, self.values.tolist(), strict=True) if not math.isnan(x)}
        found = {name: values.pop(name) for name in self.names if name.startswith(PREFIX) and name in values}
        told = culprits(found, getattr(self.agent, "fault_groups", {}), self.env) if any(found.values()) else ()
        values |= {"time/collect_s": collect, "time/learn_s": learn}
        values |= {"time/steps_per_s": self.steps / (collect + learn), "time/total_s": progress.seconds}
        on_report(Report(self.iteration, self.env_steps, values, told))
