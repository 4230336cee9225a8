"""The training loop: act, step, record, update. One loop for every algorithm."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlcore.env import VecEnv
from rlcore.types import Agent, Metrics, Obs, State, Step


class EpisodeStatistics:
    """Returns and lengths of the episodes that ended since the last read, summed on the device.

    All episodes that end count once, so the mean favors short ones less than a window of the latest would; an
    unbiased estimate is the business of an evaluation.
    """

    def __init__(self, num_envs: int, device: torch.device) -> None:
        self.returns = torch.zeros(num_envs, device=device)  # [N], of the episode in flight
        self.lengths = torch.zeros(num_envs, device=device)  # [N]
        self.sums: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}

    def record(self, step: Step) -> None:
        """Take in one vector step."""
        done = step.terminated | step.truncated  # [N]
        ended = done.float()
        self.returns += step.reward
        self.lengths += 1
        self._add("rollout/reward", step.reward, torch.ones_like(step.reward))
        self._add("rollout/episode_return", self.returns, ended)
        self._add("rollout/episode_length", self.lengths, ended)
        self._add("rollout/episodes", ended.sum(), None)
        goals = step.log.get("num_goals")
        for name, value in step.log.items():
            value = torch.as_tensor(value, dtype=torch.float32, device=ended.device)
            key = "rollout/success" if name == "success" else f"env/{name}"
            weight = ended * goals if name == "success" and isinstance(goals, Tensor) else ended
            # A scalar stands for all episodes that ended in this step.
            self._add(key, value, weight if value.dim() else weight.sum())
        self.returns = torch.where(done, 0.0, self.returns)
        self.lengths = torch.where(done, 0.0, self.lengths)

    def _add(self, key: str, value: Tensor, weight: Tensor | None) -> None:
        if key not in self.sums:
            self.sums[key] = torch.zeros((), device=self.returns.device)
            self.weights[key] = torch.zeros((), device=self.returns.device)
        if weight is None:
            self.sums[key] += value
            self.weights[key].fill_(1.0)
        else:
            # where: a value outside its episode's end may be anything, NaN included.
            self.sums[key] += torch.where(weight > 0, value * weight, 0.0).sum()
            self.weights[key] += weight.sum()

    def read(self) -> Metrics:
        """Return means as device scalars, NaN where nothing ended, and start anew."""
        means = {key: self.sums[key] / self.weights[key] for key in self.sums}
        self.sums, self.weights = {}, {}
        return means


@dataclass
class Progress:
    """Where a run stands between two iterations."""

    iteration: int
    env_steps: int
    """Steps of single envs."""
    seconds: float
    """Wall-clock spent in the loop."""
    obs: Obs
    state: State
    episodes: EpisodeStatistics

    def state_dict(self) -> dict[str, Any]:
        """Counters, and the episodes in flight."""
        return {
            "iteration": self.iteration,
            "env_steps": self.env_steps,
            "seconds": self.seconds,
            "obs": dict(self.obs),
            "state": list(self.state),
            "returns": self.episodes.returns,
            "lengths": self.episodes.lengths,
        }


@dataclass(frozen=True)
class Report:
    """What one iteration has to say."""

    iteration: int
    env_steps: int
    metrics: dict[str, float]


def begin(env: VecEnv, agent: Agent, seed: int | None = None) -> Progress:
    """Reset the env and stand before the first iteration."""
    obs = env.reset(seed)
    return Progress(0, 0, 0.0, obs, agent.initial_state(), EpisodeStatistics(env.num_envs, torch.device(env.device)))


def resume(env: VecEnv, agent: Agent, content: dict[str, Any]) -> tuple[Progress, bool]:
    """Restore agent, env and counters from a checkpoint's content.

    Returns:
        Where the run stands, and whether episodes in flight go on; if the env cannot save itself, they start anew.
    """
    agent.load_state_dict(content["agent"])
    saved = content["progress"]
    exact = content["env"] is not None and hasattr(env, "load_state_dict")
    progress = begin(env, agent)
    progress.iteration, progress.env_steps, progress.seconds = saved["iteration"], saved["env_steps"], saved["seconds"]
    if exact:
        env.load_state_dict(content["env"])  # type: ignore[attr-defined]
        progress.obs, progress.state = saved["obs"], tuple(saved["state"])
        progress.episodes.returns, progress.episodes.lengths = saved["returns"], saved["lengths"]
    torch.set_rng_state(content["rng"]["cpu"].cpu())
    if "cuda" in content["rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(content["rng"]["cuda"].cpu(), torch.device(env.device))
    return progress, exact


def snapshot(env: VecEnv, agent: Agent, progress: Progress) -> dict[str, Any]:
    """Everything that ``resume`` needs, and a recording to check an export with."""
    device = torch.device(env.device)
    rng = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        rng["cuda"] = torch.cuda.get_rng_state(device)
    return {
        "agent": agent.state_dict(),
        "progress": progress.state_dict(),
        "env": env.state_dict() if hasattr(env, "state_dict") else None,
        "recording": agent.recording(),
        "rng": rng,
    }


def learn(
    env: VecEnv,
    agent: Agent,
    num_iterations: int,
    *,
    progress: Progress | None = None,
    on_iteration: Callable[[Report, Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    seed: int | None = None,
) -> Progress:
    """Train an agent on an env.

    Args:
        env: N envs on one device.
        agent: what learns.
        num_iterations: iterations in all, those of ``progress`` included.
        progress: where to go on; None begins anew.
        on_iteration: called after each iteration, for logs, checkpoints and evaluations.
        should_stop: asked after each iteration; True ends the run early.
        seed: for the env's first reset, if the run begins anew.

    Returns:
        Where the run stands, from which it can go on.
    """
    if progress is None:
        progress = begin(env, agent, seed)
    while progress.iteration < num_iterations:
        start = time.perf_counter()
        for _ in range(agent.num_steps):
            action, extras, next_state = agent.act(progress.obs, progress.state)
            step = env.step(action)
            agent.record(progress.obs, action, extras, progress.state, step)
            progress.episodes.record(step)
            progress.obs, progress.state = step.obs, _reset_state(next_state, step)
        _synchronize(env.device)
        middle = time.perf_counter()
        metrics = progress.episodes.read() | agent.update()
        values = _read(metrics)  # waits for the device
        end = time.perf_counter()
        progress.iteration += 1
        progress.env_steps += agent.num_steps * env.num_envs
        progress.seconds += end - start
        values["time/collect_s"] = middle - start
        values["time/learn_s"] = end - middle
        values["time/steps_per_s"] = agent.num_steps * env.num_envs / (end - start)
        values["time/total_s"] = progress.seconds
        if on_iteration is not None:
            on_iteration(Report(progress.iteration, progress.env_steps, values), progress)
        if should_stop is not None and should_stop():
            break
    return progress


def _reset_state(state: State, step: Step) -> State:
    """Zero the recurrent state of envs that began a new episode; states are ``[layers, N, hidden]``."""
    going = ~(step.terminated | step.truncated)
    return tuple(part * going[None, :, None] for part in state)


def _read(metrics: Metrics) -> dict[str, float]:
    """Bring all metrics to the host in one transfer, leaving out what has no value in this iteration."""
    values = torch.stack([value.detach().float() for value in metrics.values()]).tolist()
    return {name: value for name, value in zip(metrics, values, strict=True) if value == value}


def _synchronize(device: torch.device) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
