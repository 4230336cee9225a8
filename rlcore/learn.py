"""The training loop: act, step, record, update. One loop for every algorithm."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from rlcore.agent import Agent
from rlcore.capture import Captured
from rlcore.config import ConfigError
from rlcore.env import VecEnv, generators_of, is_adaptive, is_capturable, is_scored, name_of
from rlcore.env_check import StepCheck
from rlcore.faults import PREFIX, culprits
from rlcore.recurrent import cleared
from rlcore.report import Faults as Faults
from rlcore.report import Report as Report
from rlcore.report import Stopwatch
from rlcore.resume import Progress as Progress
from rlcore.resume import begin as begin
from rlcore.resume import resume as resume
from rlcore.resume import snapshot as snapshot
from rlcore.statistics import EpisodeStatistics as EpisodeStatistics
from rlcore.types import Metrics, Obs, State, Step, begins, detached_step


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

    An agent that has ``renew(step) -> step`` is asked after each step of the env, and may begin new episodes
    everywhere: it resets the env, and what it returns has the observations of these, and ends those in flight.

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
        ValueError: ``num_iterations`` is not a positive whole number, ``capture_env`` is asked for and the env does
            not allow it, or the env goes by advantages, which the agent has none of.
    """
    if num_iterations != int(num_iterations) or num_iterations < 1:
        raise ValueError(f"num_iterations: {num_iterations!r} is not possible; give a positive whole number")
    device = torch.device(env.device)
    check_scored(env, agent)
    if is_scored(env):
        env.score_levels(agent.num_steps)
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
            watch = Stopwatch(device)
            mark.set()
            try:
                progress.broken_off = "rollout"
                progress.obs, progress.state = collect(progress.obs, progress.state)
                progress.broken_off = "update"
                watch.mark()
                metrics = progress.episodes.read() | agent.update()
                if is_scored(env):
                    env.take_advantages(*agent.advantages)  # type: ignore[attr-defined]
                if is_adaptive(env):
                    metrics |= env.adapt()
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


def check_scored(env: VecEnv, agent: Agent) -> None:
    """Refuse an env that goes by advantages beside an agent that has none.

    Raises:
        ConfigError: names both.
    """
    if is_scored(env) and not hasattr(agent, "advantages"):
        raise ConfigError(
            f"{name_of(env)}: env.curriculum.strategy is 'plr', which scores levels by the advantages of rollouts, and "
            f"{type(agent).__name__} has none; use success, threshold or per_env, or ppo"
        )


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


def _collector(
    env: VecEnv, agent: Agent, episodes: EpisodeStatistics, capture_env: bool | None
) -> Callable[[Obs, State], tuple[Obs, State]]:
    """The rollout between two updates: from observation and state to those after it."""
    check = StepCheck(env)  # of a rollout that is recorded as one graph, while that is done
    renew: Callable[[Step], Step] | None = getattr(agent, "renew", None)

    def collect(obs: Obs, state: State) -> tuple[Obs, State]:
        for _ in range(agent.num_steps):
            action, next_state = agent.act(obs, state)
            step = env.step(action)
            check(step)
            step = detached_step(step)
            if renew is not None:
                step = renew(step)
            agent.record(obs, action, state, step)
            episodes.record(step)
            obs, state = step.obs, cleared(next_state, begins(step)) if next_state else ()
        return obs, state

    if is_capturable(env) and capture_env is not False:
        return Captured(collect, agent.mode, torch.device(env.device), generators_of(env))
    if capture_env:
        raise ValueError(f"capture_env: {type(env).__name__} cannot be recorded as a CUDA graph; leave capture_env out")
    return collect


class _Mail:
    """An iteration's metrics on their way to the host, in one transfer that nobody waits for."""

    def __init__(self, progress: Progress, metrics: Metrics, watch: Stopwatch, env: VecEnv, agent: Agent) -> None:
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
        told = culprits(found, self.agent.fault_groups, self.env) if any(found.values()) else ()
        values |= {"time/collect_s": collect, "time/learn_s": learn}
        values |= {"time/steps_per_s": self.steps / (collect + learn), "time/total_s": progress.seconds}
        on_report(Report(self.iteration, self.env_steps, values, told))
