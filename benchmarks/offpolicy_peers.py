"""The same SAC and DDPG work in skrl, driven through its own runner; see ``peers.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium_peers
from gymnasium import spaces
from peers import SkrlEnv, version
from work import Mark, ReplayWork, Subject, ignore

from rlcore.env import VecEnv

_BOTH = "concatenate([OBSERVATIONS, ACTIONS])"


def skrl(env: VecEnv, work: ReplayWork, scratch: str) -> Subject:
    """``Runner`` with a ``SequentialTrainer``, twin critics for SAC and one for DDPG."""
    from skrl.utils.runner.torch import Runner

    wrapped = SkrlEnv(env)
    if work.task == "Null":
        wrapped.action_space = spaces.Box(-1.0, 1.0, (work.actions,))
    actor = [{"name": "net", "input": "OBSERVATIONS", "layers": list(work.actor), "activations": "relu"}]
    values = [{"name": "net", "input": _BOTH, "layers": list(work.critic), "activations": "relu"}]
    value = {"class": "DeterministicMixin", "clip_actions": False, "network": values, "output": "ONE"}
    settings: dict[str, Any] = {
        "gradient_steps": work.updates,
        "batch_size": work.batch,
        "discount_factor": 0.99,
        "polyak": 0.005,
        "learning_rate": 3e-4,
        "observation_preprocessor": None,
        "state_preprocessor": None,
        "random_timesteps": 0,
        "learning_starts": 0,
        "experiment": {"directory": scratch, "write_interval": 0, "checkpoint_interval": 0},
    }
    models: dict[str, Any] = {"separate": True}
    if work.algo == "sac":
        policy = {"class": "GaussianMixin", "clip_actions": True, "initial_log_std": 0.0}
        models["policy"] = {**policy, "network": actor, "output": "ACTIONS"}
        for number in ("1", "2"):
            models |= {f"critic_{number}": dict(value), f"target_critic_{number}": dict(value)}
        settings |= {"class": "SAC", "learn_entropy": True, "initial_entropy_value": 1.0}
    else:
        policy = {"class": "DeterministicMixin", "clip_actions": False, "network": actor, "output": "tanh(ACTIONS)"}
        models |= {"policy": dict(policy), "target_policy": dict(policy), "critic": value, "target_critic": dict(value)}
        noise = {"exploration_noise": "GaussianNoise", "exploration_noise_kwargs": {"mean": 0.0, "std": 0.1}}
        settings |= {"class": "DDPG", **noise}
    config = {
        "seed": 0,
        "models": models,
        "memory": {"class": "RandomMemory", "memory_size": work.buffer // work.num_envs},
        "agent": settings,
        "trainer": {
            "class": "SequentialTrainer",
            "timesteps": 1,
            "disable_progressbar": True,
            "headless": True,
            "close_environment_at_exit": False,
        },
    }
    runner = Runner(wrapped, config)
    agent, trainer = runner.agent, runner.trainer
    memory = agent.memory
    memory.filled = True
    reported: dict[str, list[float]] = {"learn": agent.tracking_data["Stats / Algorithm update time (ms)"]}
    stored = sum(memory.get_tensor_by_name(name).nbytes for name in memory.get_tensor_names())
    size = stored / (memory.memory_size * memory.num_envs)
    mark: Mark = ignore

    update = agent.update

    def timed_update(**values: Any) -> None:
        mark("collect")
        update(**values)
        mark("learn")

    agent.update = timed_update

    def run(num_iterations: int, new_mark: Mark) -> None:
        nonlocal mark
        mark = new_mark
        trainer.cfg.timesteps = num_iterations
        trainer.train()

    timing = f"SequentialTrainer.train; learn is {settings['class']}.update, nothing written"
    return Subject(version("skrl"), timing, run, reported, {"bytes_per_transition": size})


BUILD: dict[str, Callable[[VecEnv, ReplayWork, str], Subject]] = {"skrl": skrl, **gymnasium_peers.BUILD}
"""By the name that ``--peers`` takes."""
