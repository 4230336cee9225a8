"""The examination of an env under the settings of a run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from rlcore.config import ConfigError
from rlcore.env import VecEnv, spec_of, want_final_obs
from rlcore.envs import make_env
from rlcore.envs.launch import simulator_of
from rlcore.train.ahead import TIMEOUTS
from rlcore.train.algorithms import find
from rlcore.train.config import TrainConfig, resolve_device
from rlcore.train.doctor.control import control_findings
from rlcore.train.doctor.episodes import episode_facts, episode_findings, reward_facts, reward_findings
from rlcore.train.doctor.findings import Examination, Finding, setting
from rlcore.train.doctor.learner import deployment_findings, examine_learner, refused
from rlcore.train.doctor.observations import observation_facts, observation_findings
from rlcore.train.doctor.recording import Recording, play
from rlcore.train.evaluate import ENDLESS, whole_episodes
from rlcore.types import Timeout

LEAST_STEPS, MOST_STEPS = 200, 2000
"""Of the recording: what statistics need, and what is enough of any task."""

ENDLESS_STEPS = 1000
"""The same for a task without a time limit."""

TRACE = 0.3
"""Part of the time for the recording that the traces of the same actions may take together."""

LONGEST_TRACE = 250
"""Steps of each of them."""


def examine_env(config: TrainConfig, seconds: float, say: Callable[[str], None] = lambda text: None) -> Examination:
    """Make the env of a configuration, play it, and look at all that was seen.

    Args:
        config: of the run that is to be: task, options, number of copies, algorithm and its settings.
        seconds: for the recording, after which it is broken off.
        say: told what is being done.

    Raises:
        ValueError: the env cannot be made; the message is one line.
    """
    device = resolve_device(config.device)
    say(f"making {config.task}")

    def make() -> VecEnv:
        return make_env(config.task, config.num_envs, device, seed=config.seed, **config.env)

    begun = time.perf_counter()
    env = make()
    slow = time.perf_counter() - begun > seconds
    into = Examination()
    try:
        with whole_episodes(env), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            _examine(env, config, seconds, None if slow or simulator_of(config.task) == "isaaclab" else make, say, into)
    finally:
        env.close()
    return into


def _examine(
    env: VecEnv,
    config: TrainConfig,
    seconds: float,
    another: Callable[[], VecEnv] | None,
    say: Callable[[str], None],
    into: Examination,
) -> None:
    spec = spec_of(env)
    into.facts["spaces"] = f"observations {spec.observation_text}; action {spec.action_text}"
    want_final_obs(env, env.observation_spaces)
    limit = env.max_episode_length
    steps = ENDLESS_STEPS if limit >= ENDLESS else 2 * limit + 2
    steps = min(MOST_STEPS, max(LEAST_STEPS, steps))
    mask: str | None = setting(config.agent, "action_mask") or "action_mask"
    recording = play(
        env, config.seed, steps, seconds, mask, lambda done: say(f"random actions, step {done:,} of {steps:,}")
    )
    if recording.failure is not None:
        into.findings.append(_failure(recording))
    if recording.steps == 0:
        return
    agent: Any = config.agent
    into.facts["episodes"] = episode_facts(recording)
    into.facts["reward"] = reward_facts(recording, float(setting(agent, "gamma", 0.99)))
    into.terms = observation_facts(recording)
    into.numbers["steps"], into.numbers["envs"] = recording.steps, env.num_envs
    into.numbers["log"] = dict(recording.log)
    into.add(observation_findings(recording, agent))
    into.add(reward_findings(recording, agent, find(config.algo).on_policy))
    if recording.failure is not None:
        return
    bootstrap = bootstrap_of(config)
    if bootstrap != "final_obs":
        into.facts["time-outs"] = TIMEOUTS[bootstrap]
    into.add(episode_findings(recording, bootstrap))
    length = _trace_length(recording, seconds)
    try:
        found = list(control_findings(env, config.task, config.seed, length, mask, another, say))
    except Exception as error:  # as in ``play``
        into.findings.append(_failed("fails", f"{type(error).__name__}: {error}", recording.steps))
        return
    # That a reward is constant is said already.
    constant = any(finding.check == "reward.constant" for finding in into.findings)
    into.add(f for f in found if not (constant and f.check == "reward.ignores_action"))
    say("a few iterations of the learner")
    try:
        into.add(deployment_findings(spec, config))
        examine_learner(env, config, recording, into)
    except ConfigError as error:
        into.findings.append(refused(error))


def bootstrap_of(config: TrainConfig) -> Timeout:
    """What a time-out is worth to the algorithm: as its class says, else its settings, else ``final_obs``."""
    own, settings = find(config.algo).agent, config.agent
    said = (getattr(place, "timeout_bootstrap", None) for place in (own, settings))
    return next((value for value in said if value in TIMEOUTS), "final_obs")


def _trace_length(recording: Recording, seconds: float) -> int:
    """Steps of a trace: an episode, or what there is time for."""
    room = int(TRACE * seconds / 4 / max(recording.seconds, 1e-6))
    longest = int(recording.lengths.max()) if len(recording.lengths) else LONGEST_TRACE
    return max(8, min(room, LONGEST_TRACE, math.ceil(1.1 * longest) + 1, recording.steps))


def _failure(recording: Recording) -> Finding:
    kind, text = recording.failure or ("fails", "")
    return _failed(kind, text, recording.steps)


def _failed(kind: str, text: str, steps: int) -> Finding:
    line = text.splitlines()[0]
    return Finding(
        severity="error",
        check=f"env.{kind}",
        what=f"after {steps:,} steps: {line}",
        value=float(steps),
        why="a training ends there",
        remedy="the message says what to return"
        if kind == "contract"
        else "correct it where it is raised; RLCORE_DEBUG=1 rlcore train shows the traceback",
    )
