"""The training loop: act, step, record, update. One loop for every algorithm."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress

import torch

from rlcore.agent import Agent
from rlcore.capture import Captured
from rlcore.config import ConfigError
from rlcore.distributed import most, world
from rlcore.env import VecEnv, generators_of, is_adaptive, is_capturable, is_scored, name_of
from rlcore.env_check import StepCheck
from rlcore.faults import PREFIX, culprits
from rlcore.mark import Mark
from rlcore.ranks import Ranks
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
        should_stop: asked after each iteration; True ends the run early, on all ranks where there are several.
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
    mark = Mark(agent.moved())
    ranks = Ranks(env, agent, should_stop) if world().several else None
    collect = _collector(env, agent, progress.episodes, capture_env)
    report_to = on_report or Faults().log
    underway: _Mail | None = None
    try:
        while progress.iteration < num_iterations:
            watch = Stopwatch(device)
            mark.set()
            try:
                progress.broken_off = "rollout"
                if ranks is not None:
                    ranks.begin()
                progress.obs, progress.state = collect(progress.obs, progress.state)
                if ranks is not None:
                    progress.episodes.share()
                    ranks.merge()
                progress.broken_off = "update"
                watch.mark()
                metrics = progress.episodes.read() | agent.update()
                if is_scored(env):
                    env.take_advantages(*agent.advantages)  # type: ignore[attr-defined]
                if is_adaptive(env):
                    metrics |= env.adapt()
                if ranks is not None:
                    metrics = ranks.metrics(metrics)
                    ranks.compare(progress.iteration + 1)
                watch.mark()
                progress.iteration += 1
                progress.env_steps += agent.num_steps * env.num_envs * world().size
                progress.broken_off = ""
            except BaseException:
                with suppress(Exception):  # after an error of CUDA nothing works; the first error is the one to tell
                    if ranks is not None and progress.broken_off == "update":
                        ranks.undo()
                        progress.broken_off = "rollout"
                    if progress.broken_off == "rollout":
                        mark.go_back()
                raise
            mail, underway = underway, _Mail(progress, metrics, watch, env, agent, ranks)
            if mail is not None:
                mail.deliver(progress, report_to)
            progress.underway = watch
            if on_iteration is not None:
                on_iteration(progress)
            if device.type != "cuda":  # nothing runs on beside us
                mail, underway = underway, None
                mail.deliver(progress, report_to)
            if most(int(should_stop is not None and should_stop())):  # one that stops, stops all
                break
    except BaseException as error:
        with suppress(Exception):
            if underway is not None:  # of an iteration that is finished, and may be saved
                underway.settle(progress, report_to, error)
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

    def __init__(
        self, progress: Progress, metrics: Metrics, watch: Stopwatch, env: VecEnv, agent: Agent, ranks: Ranks | None
    ) -> None:
        self.iteration, self.env_steps, self.env, self.agent = progress.iteration, progress.env_steps, env, agent
        self.steps, self.ranks = agent.num_steps * env.num_envs * world().size, ranks
        self.names = list(metrics)
        self.watch = watch
        self.values = torch.stack([value.float() for value in metrics.values()]).detach()
        if watch.cuda:
            pinned = torch.empty(self.values.shape, pin_memory=True)
            self.values = pinned.copy_(self.values, non_blocking=True)
            self.arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.arrived.record(watch.stream)

    def settle(self, progress: Progress, on_report: Callable[[Report], None], error: BaseException) -> None:
        """Deliver after an error; but an iteration that its GPU never came to the end of has not been."""
        if self.watch.cuda and self.ranks is not None:
            before, progress.broken_off = progress.broken_off, "update"  # until it is known to be whole
            if not self.ranks.came_to_its_end(self.arrived, error):
                progress.iteration, progress.env_steps = progress.iteration - 1, progress.env_steps - self.steps
                progress.broken_off = "rollout"
                return
            progress.broken_off = before
        self.deliver(progress, on_report)

    def deliver(self, progress: Progress, on_report: Callable[[Report], None]) -> None:
        """Wait until the metrics have arrived, and report those that have a value."""
        if self.watch.cuda and self.ranks is not None:
            self.ranks.wait(self.arrived)
        elif self.watch.cuda:
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
