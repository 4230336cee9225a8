"""Where a run stands between two iterations, and how it goes on from there in another process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from rlcore.agent import Agent
from rlcore.checkpoint import fitting
from rlcore.distributed import world
from rlcore.env import VecEnv, is_exact, is_stateful
from rlcore.env_check import check_obs
from rlcore.report import Stopwatch
from rlcore.stage import Stage, reset_at, saved_stage, stage_of
from rlcore.statistics import EpisodeStatistics
from rlcore.types import Obs, State, detached


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
    recording: dict[str, Tensor] = field(default_factory=dict, repr=False)
    """What stands for the agent's recording before it has one, as in a run that was imported."""
    underway: Stopwatch | None = field(default=None, repr=False)
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
        for sums in self.episodes.signals.values():
            sums.zero_()

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
            "signals": dict(self.episodes.signals),
        }


def begin(env: VecEnv, agent: Agent, seed: int | None = None, stage: Stage | None = None) -> Progress:
    """Reset the env, at a stage if one is given, and stand before the first iteration.

    From here on the random numbers of ranks differ, after those of the networks, which do not.
    """
    if world().rank > 0:
        torch.manual_seed(world().seed(torch.initial_seed() % 2**31 if seed is None else seed))
    obs = reset_at(env, stage, None if seed is None else world().seed(seed))
    check_obs(env, obs, "reset")
    obs = detached(obs)
    tasks = (env.task_index, list(env.tasks)) if hasattr(env, "task_index") and hasattr(env, "tasks") else None
    episodes = EpisodeStatistics(env.num_envs, torch.device(env.device), agent.mode, tasks)
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
    whole = is_stateful(env) and is_exact(env) and content["env"] is not None
    exact = whole and saved["obs"] is not None
    if whole and not exact and is_stateful(env):
        env.load_state_dict(content["env"])  # its generator and what a reset may read
    progress = begin(env, agent, stage=None if exact else saved_stage(env, content))
    agent.load_state_dict(content["agent"])
    progress.recording = {} if saved["iteration"] else content.get("recording", {})
    progress.iteration, progress.env_steps, progress.seconds = saved["iteration"], saved["env_steps"], saved["seconds"]
    if exact and is_stateful(env):
        env.load_state_dict(content["env"])
        progress.obs, progress.state = saved["obs"], tuple(saved["state"])
        progress.episodes.returns.copy_(saved["returns"])
        progress.episodes.lengths.copy_(saved["lengths"])
        signals = saved.get("signals", {})  # since version 0.2
        progress.episodes.expect(tuple(signals))
        for name, sums in signals.items():
            progress.episodes.signals[name].copy_(sums)
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
        "recording": agent.recording() or progress.recording,
        "rng": rng,
    }


def _state_of(env: VecEnv, progress: Progress) -> dict[str, Any]:
    try:
        return {"env": env.state_dict() if is_stateful(env) else None, "stage": stage_of(env)}
    except Exception:
        if not progress.broken_off:
            raise
        return {"env": None, "stage": None}  # an env that has failed may do so again
