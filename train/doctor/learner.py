"""Whether the settings of a run fit the env: actions of a new policy, batches, horizons, and where the time goes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rlcore.agent import Agent
from rlcore.config import ConfigError
from rlcore.env import EnvSpec, VecEnv, spec_of
from rlcore.export.metadata import ExportError, build_metadata, encode_metadata
from rlcore.learn import learn
from rlcore.ppo_config import PPOConfig, small_minibatches
from rlcore.report import Report
from rlcore.train.algorithms import find
from rlcore.train.config import TrainConfig, settings_as_typed
from rlcore.train.doctor import bands
from rlcore.train.doctor.findings import Examination, Finding, listed, plural, setting
from rlcore.train.doctor.recording import WIDEST, Recording
from rlcore.train.evaluate import ENDLESS
from rlcore.train.threads import use_threads

ACTS = 8
"""Actions of each env by which a new policy's are told."""

AT_BOUND = 1e-3
"""An action is at a bound within this part of the bounds' width: tanh comes near and never there."""

ITERATIONS = 3
"""Of which the last one is timed: before it graphs are recorded, and memory is taken."""

PATIENCE = 6.0
"""Seconds after which no more of them is begun."""


@dataclasses.dataclass
class Speed:
    """Seconds of an iteration of a run."""

    env: float
    """In steps of the env."""
    collect: float
    """In the rollout, steps of the env included."""
    learn: float
    """In the update."""
    steps: int
    """Steps of single envs in it."""


def examine_learner(env: VecEnv, config: TrainConfig, recording: Recording, into: Examination) -> None:
    """Build the agent of a configuration, look at its first actions, and time it on the env.

    Args:
        env: with as many copies as the run would have.
        config: of the run.
        recording: of the env, for lengths of episodes and the time of a step.
        into: what is found.

    Raises:
        ConfigError: a training with these settings would not begin.
    """
    passes = _passes(env, config)
    agent = _agent(env, config, passes)
    use_threads(config.threads, config.agent.samples_at_once(env.num_envs), agent.policy, torch.device(env.device))
    spec = spec_of(env)
    if not spec.discrete:
        actions = first_actions(agent, env)
        into.facts["actions"] = action_facts(actions, spec)
        into.add(action_findings(actions, spec, config.agent))
    into.facts["rollout"] = horizon_facts(config, agent.num_steps, env.num_envs, recording)
    into.add(batch_findings(config, agent.num_steps, env.num_envs, recording))
    reports: list[Report] = []
    learn(
        env, agent, ITERATIONS, on_report=reports.append, seed=config.seed, capture_env=config.capture_env,
        should_stop=lambda: sum(map(_seconds, reports)) > PATIENCE,
    )  # fmt: skip
    metrics = reports[-1].metrics
    speed = Speed(
        recording.seconds * agent.num_steps, metrics["time/collect_s"], passes * metrics["time/learn_s"],
        agent.num_steps * env.num_envs,
    )  # fmt: skip
    into.facts["speed"] = speed_facts(speed, config, env.num_envs)
    into.numbers["speed"] = dataclasses.asdict(speed)
    into.add(speed_findings(speed, env.num_envs / max(recording.seconds, 1e-9)))


def _seconds(report: Report) -> float:
    return report.metrics["time/collect_s"] + report.metrics["time/learn_s"]


def _passes(env: VecEnv, config: TrainConfig) -> int:
    """Passes over a rollout that one is timed for: they take the same time, which is long for a GRU on a CPU."""
    alone = isinstance(config.agent, PPOConfig) and torch.device(env.device).type == "cpu"
    return config.agent.num_epochs if alone else 1


def _agent(env: VecEnv, config: TrainConfig, passes: int) -> Agent:
    """The agent; one with a replay memory with a small one, and learning from the first step on.

    Args:
        env: that it is for.
        config: of the run.
        passes: by how many fewer it goes over a rollout.
    """
    settings: Any = config.agent
    if passes > 1:
        settings = dataclasses.replace(settings, num_epochs=1)
    if hasattr(settings, "buffer_size"):
        steps = env.num_envs * settings.num_steps
        rows = max(settings.batch_size, 16 * steps * setting(settings, "n_step", 1))
        settings = dataclasses.replace(
            settings,
            buffer_size=min(settings.buffer_size, 2 * rows),
            learning_starts=min(steps, settings.learning_starts),
        )
    with settings_as_typed(settings):
        agent: Agent = find(config.algo).agent(env, settings, seed=config.seed, num_iterations=config.num_iterations)
    return agent


def refused(error: ConfigError) -> Finding:
    """What a training says that does not begin."""
    what, _, remedy = str(error).rpartition("; ")
    return Finding(
        severity="error",
        check="settings.refused",
        what=what or str(error),
        why="a training with these settings does not begin",
        remedy=remedy if what else "correct the setting",
    )


def deployment_findings(spec: EnvSpec, config: TrainConfig) -> Iterator[Finding]:
    """What the env tells of itself and an export, which comes after the training, refuses.

    Raises:
        ConfigError: the settings are not for such an env.
    """
    with settings_as_typed(config.agent):
        policy = find(config.algo).policy(spec, config.agent)
    try:
        encode_metadata(build_metadata(spec, policy))
    except ExportError as error:
        yield Finding(
            severity="error",
            check="deployment.refused",
            what=str(error).removesuffix("; fix the env"),
            why="the policy could be trained, but not exported",
            remedy="correct `deployment` of the env; docs/deployment.md has what it may hold",
        )


def first_actions(agent: Agent, env: VecEnv) -> Tensor:
    """Exploring actions of a new policy, ``[S, A]`` on the CPU."""
    obs, found = env.reset(), []
    for _ in range(ACTS):  # each as if it were the first, since none is recorded
        found.append(agent.act(obs, agent.initial_state())[0].detach().cpu().clone())
    return torch.cat(found)


def _bounds(spec: EnvSpec) -> tuple[Tensor, Tensor, Tensor]:
    low, high = torch.tensor(spec.action_low), torch.tensor(spec.action_high)
    return low, high, (low.abs() < WIDEST) & (high.abs() < WIDEST)


def saturated(actions: Tensor, spec: EnvSpec) -> Tensor:
    """Share of actions ``[S, A]`` at a bound, ``[A]``; 0 where there is none."""
    low, high, bounded = _bounds(spec)
    near = AT_BOUND * torch.where(bounded, high - low, torch.zeros_like(low))
    return (((actions <= low + near) | (actions >= high - near)) & bounded).double().mean(0)


def action_findings(actions: Tensor, spec: EnvSpec, agent: Any) -> Iterator[Finding]:
    """What is wrong with the actions ``[S, A]`` that a new policy explores with."""
    low, high, bounded = _bounds(spec)
    at_bound = saturated(actions, spec)
    many = (at_bound > bands.SATURATED).nonzero().flatten().tolist()
    if many:
        worst = float(at_bound.max())
        yield Finding(
            severity="warning",
            check="action.saturated",
            what=f"{worst:.0%} of a new policy's actions are at a bound in {_names(many, spec)}, whose bounds are "
            f"{_range(low, high, many)} beside a deviation of {float(setting(agent, 'init_std', 1.0)):g}",
            value=worst,
            why="what is cut off is all the same to the env: most actions are two, and their gradients are noise",
            remedy="--agent.action-scale bounds stretches the policy to them; or --agent.init-std, or actions of about "
            "-1 to 1 in the env",
        )
    wide = (high - low) / 2
    still = [
        i
        for i in bounded.nonzero().flatten().tolist()
        if i not in many and float(wide[i]) > 0 and float(actions[:, i].double().std() / wide[i]) < bands.UNUSED
    ]
    if still:
        yield Finding(
            severity="warning",
            check="action.unused",
            what=f"a new policy's actions use under {bands.UNUSED:.0%} of {_range(low, high, still)} in "
            f"{_names(still, spec)}",
            value=float((actions.double().std(0) / wide)[still].min()),
            why="exploration never comes to most of what the env allows",
            remedy="--agent.action-scale bounds, or bounds in the env that are meant",
        )


def _names(columns: list[int], spec: EnvSpec) -> str:
    names: list[str] = []
    for term in spec.deployment.get("action_terms", ()):
        size = int(term.get("size", 1))
        names += [str(term["name"])] if size == 1 else [f"{term['name']}[{i}]" for i in range(size)]
    return listed([names[i] if len(names) == spec.action_size else f"action[{i}]" for i in columns])


def _range(low: Tensor, high: Tensor, columns: list[int]) -> str:
    return f"{float(low[columns].min()):.4g} to {float(high[columns].max()):.4g}"


def action_facts(actions: Tensor, spec: EnvSpec) -> str:
    """The line of what a new policy does."""
    low, high, bounded = _bounds(spec)
    span = f"bounds {_range(low, high, bounded.nonzero().flatten().tolist())}" if bounded.any() else "no bounds"
    return (
        f"{span}; a new policy: mean {float(actions.mean()):.3g}, std {float(actions.std()):.3g}, "
        f"{float(saturated(actions, spec).mean()):.0%} at a bound"
    )


def batch_findings(config: TrainConfig, num_steps: int, num_envs: int, recording: Recording) -> Iterator[Finding]:
    """What is wrong with the sizes of rollouts, minibatches and memories beside episodes."""
    agent: Any = config.agent
    steps = num_envs * num_steps
    limit = recording.env.max_episode_length
    length = float(recording.lengths.double().mean()) if len(recording.lengths) else float(limit)
    if isinstance(agent, PPOConfig):
        if words := small_minibatches(agent, num_envs):
            what, _, remedy = words.rpartition(": ")
            yield Finding(
                severity="warning",
                check="batch.minibatch",
                what=what,
                value=float(agent.samples_at_once(num_envs)),
                why="the policy follows noise",
                remedy=f"--agent.num-minibatches: {remedy}",
            )
        if steps < length and length < ENDLESS:
            yield Finding(
                severity="warning",
                check="batch.less_than_episode",
                what=f"an iteration has {plural(steps, 'step')} ({num_envs} envs x {num_steps}), and an episode "
                f"{length:,.0f}",
                value=steps / length,
                why="an update sees less than one episode, and whatever part of it the envs are in",
                remedy="more --num-envs or --agent.num-steps",
            )
        elif steps < bands.SMALL_BATCH:
            yield Finding(
                severity="note",
                check="batch.small",
                what=f"an iteration has {plural(steps, 'step')}",
                value=float(steps),
                why="gradients of so few steps are noisy",
                remedy="more --num-envs or --agent.num-steps, unless the learning rate is small",
            )
    memory = setting(agent, "buffer_size")
    if memory is not None:
        if memory < num_envs * min(length, ENDLESS) and length < ENDLESS:
            yield Finding(
                severity="warning",
                check="batch.memory",
                what=f"the replay memory has {memory:,} steps, and one episode of {num_envs:,} envs "
                f"{num_envs * length:,.0f}",
                value=memory / (num_envs * length),
                why="it forgets an episode before that is over",
                remedy="raise --agent.buffer-size, or give less --num-envs",
            )
        if setting(agent, "learning_starts", 0) >= config.num_iterations * steps:
            yield Finding(
                severity="error",
                check="batch.never_learns",
                what=f"learning begins after {agent.learning_starts:,} steps, and the run has "
                f"{config.num_iterations * steps:,}",
                value=float(agent.learning_starts),
                why="nothing will be learned",
                remedy="more --num-iterations, or less --agent.learning-starts",
            )


def horizon_facts(config: TrainConfig, num_steps: int, num_envs: int, recording: Recording) -> str:
    """The line of rollout, batch and horizon beside the length of episodes."""
    agent: Any = config.agent
    gamma = float(setting(agent, "gamma", 0.99))
    length = float(recording.lengths.double().mean()) if len(recording.lengths) else None
    horizon = "no end" if gamma >= 1 else f"{1 / (1 - gamma):.3g} steps"
    text = (
        f"{num_envs:,} envs x {num_steps} steps = {num_envs * num_steps:,} an iteration, minibatches of "
        f"{agent.samples_at_once(num_envs):,}; gamma {gamma:g} sees {horizon}"
    )
    return text if length is None else f"{text}, an episode has {length:.4g}"


def speed_facts(speed: Speed, config: TrainConfig, num_envs: int) -> str:
    """The line of where the time goes."""
    total = speed.collect + speed.learn
    env = min(speed.env, speed.collect)
    acting = speed.collect - env
    whole = total * config.num_iterations
    return (
        f"env alone {speed.steps / max(speed.env, 1e-9):,.0f} steps/s, with the learner {speed.steps / total:,.0f}: "
        f"{env / total:.0%} env, {acting / total:.0%} acting, {speed.learn / total:.0%} learning; about "
        f"{_duration(whole)} for {plural(config.num_iterations, 'iteration')}"
    )


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def speed_findings(speed: Speed, rate: float) -> Iterator[Finding]:
    """Whether the env is too slow to learn on.

    Args:
        speed: of an iteration.
        rate: steps of single envs a second of the env alone.
    """
    if rate < bands.SLOW:
        share = min(1.0, speed.env / (speed.collect + speed.learn))
        yield Finding(
            severity="warning",
            check="speed.env",
            what=f"the env makes {rate:,.0f} steps a second, and is {share:.0%} of an iteration",
            value=rate,
            why=f"a million steps take {1e6 / max(rate, 1e-9) / 3600:.1f} h",
            remedy="step its copies side by side (--env.vectorization async for gymnasium's, tensors for your own), "
            "use a GPU for a simulator that is made for one, or find what takes the time with a profiler",
        )
