"""PPO, SAC and DDPG in Stable-Baselines3 (``sb3``) and its JAX twin SBX (``sbx``), on gymnasium's tasks and a CPU.

Both step the task by their own vector env, as their users do; batches, networks and gradient steps are rlcore's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from peers import Peer, version
from work import Mark, ReplayWork, Subject, Turn, Work, ignore

from rlcore.env import VecEnv


def refuse(task: str, device: str, names: tuple[str, ...] | list[str]) -> None:
    """Tell what these libraries are not set up for here.

    Raises:
        ValueError: one of them is named, and the task is not gymnasium's or the device no CPU.
    """
    for name in names:
        if name in ("sb3", "sbx") and not (task.startswith("gym:") and device == "cpu"):
            raise ValueError(
                f"--peers {name}: it is timed on a CPU and gymnasium's tasks, not on {task} on {device}; "
                "give --device cpu --task gym:HalfCheetah-v5, or another id"
            )


def ppo(library: str, work: Work) -> Subject:
    """``PPO.learn``, with a learning rate that stays."""
    samples = work.num_envs * work.num_steps
    network = {"activation_fn": _elu(library), "net_arch": {"pi": list(work.hidden), "vf": list(work.hidden)}}
    settings: dict[str, Any] = {
        "n_steps": work.num_steps,
        "batch_size": samples // work.minibatches,
        "n_epochs": work.epochs,
    }
    settings |= {"learning_rate": 1e-3, "ent_coef": 0.005, "policy_kwargs": network}
    return _subject(library, "PPO", work, settings, samples)


def replay(library: str, work: ReplayWork) -> Subject:
    """``SAC.learn`` or ``DDPG.learn``, a vector step and its gradient steps at a time."""
    settings: dict[str, Any] = {"gradient_steps": work.updates, "batch_size": work.batch, "buffer_size": work.buffer}
    settings |= {"train_freq": 1, "learning_starts": 0, "learning_rate": 3e-4}
    settings["policy_kwargs"] = {"net_arch": {"pi": list(work.actor), "qf": list(work.critic)}}
    return _subject(library, work.algo.upper(), work, settings, work.num_envs)


def _elu(library: str) -> Any:
    if library == "sbx":
        from flax import linen

        return linen.elu
    from torch import nn

    return nn.ELU


def _subject(library: str, algorithm: str, work: Turn, settings: dict[str, Any], steps: int) -> Subject:
    """A model whose ``learn`` takes ``steps`` env steps an iteration and ends each with ``train``."""
    if library == "sbx":
        os.environ["JAX_PLATFORMS"] = "cpu"
        if work.threads == 1:
            os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        import sbx as models
    else:
        import stable_baselines3 as models
    from stable_baselines3.common.env_util import make_vec_env

    envs = make_vec_env(work.task.removeprefix("gym:"), n_envs=work.num_envs, seed=0)
    model = getattr(models, algorithm)("MlpPolicy", envs, seed=0, device="cpu", **settings)
    facts: dict[str, float] = {}
    if "buffer_size" in settings:
        memory = model.replay_buffer
        memory.full = True
        stored = (memory.observations, memory.next_observations, memory.actions, memory.rewards, memory.dones)
        size = sum(part.nbytes for part in stored if part is not None)
        facts["bytes_per_transition"] = size / (memory.buffer_size * work.num_envs)
    mark: Mark = ignore

    train = model.train

    def timed_train(*values: Any, **named: Any) -> None:
        mark("collect")
        train(*values, **named)
        mark("learn")

    model.train = timed_train

    def run(num_iterations: int, new_mark: Mark) -> None:
        nonlocal mark
        mark = new_mark
        model.learn(num_iterations * steps)

    package = {"sb3": "stable-baselines3", "sbx": "sbx-rl"}[library]
    return Subject(version(package), f"{algorithm}.learn on a DummyVecEnv; learn is {algorithm}.train", run, {}, facts)


def _peer(name: str, module: str, package: str, tested: str) -> Peer:
    def build(env: VecEnv, work: Work, scratch: str) -> Subject:
        return ppo(name, work)

    return Peer(module, package, tested, build)


PEERS = {
    "sb3": _peer("sb3", "stable_baselines3", "stable-baselines3", "2.9.2"),
    "sbx": _peer("sbx", "sbx", "sbx-rl", "0.28.0"),
}
"""Of PPO, by the name that ``--peers`` takes."""


def _replay_builder(name: str) -> Callable[[VecEnv, ReplayWork, str], Subject]:
    return lambda env, work, scratch: replay(name, work)


BUILD = {name: _replay_builder(name) for name in PEERS}
"""Of SAC and DDPG, by the same names."""
