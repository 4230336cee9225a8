"""What is to be timed, and a library that is ready to do it: what all benchmarks of speed agree on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch

from rlcore.env import VecEnv
from rlcore.types import Mode

Algo = Literal["sac", "ddpg"]
Precision = Literal["fp32", "tf32", "bf16"]
Preset = Literal["classic", "gpu"]

Mark = Callable[[str], None]
"""Called with ``collect`` when the last step of a rollout is stored and with ``learn`` when the update is over."""


class Subject(NamedTuple):
    """One library, ready to run."""

    version: str
    timing: str
    """Where its iteration was cut into collect and learn."""
    run: Callable[[int, Mark], None]
    """Does that many iterations, marking the end of each phase."""
    reported: dict[str, list[float]]
    """Phase times in milliseconds by the library's own clock, appended at each iteration; no synchronization added."""
    facts: Mapping[str, float] = MappingProxyType({})
    """What else is to be known of it."""


Prepared = tuple[VecEnv, Subject]


def ignore(phase: str) -> None:
    """The mark before there is a clock."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """What every timing has."""

    task: str = "Null"
    """A task of `rlcore tasks`; Null costs next to nothing, so that the library is timed and not the simulator."""
    obs: int = 48
    """Size of the observation of the Null task."""
    actions: int = 12
    """Size of the action of the Null task."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where envs and networks live."""
    threads: int | None = None
    """CPU threads of torch; its own choice by default."""
    iterations: int = 20
    """Iterations to time, each way and in each round; beyond 4,096 envs fewer in proportion, but at least 5."""
    warmup: int = 5
    """Iterations before the first that counts; rlcore records its graphs in the third."""


@dataclass(frozen=True, kw_only=True)
class Turn(Base):
    """What one process is to time, whatever the algorithm."""

    num_envs: int
    precision: Precision
    mode: Mode = "graph"
    """Of rlcore."""
    capture_env: bool = True
    """Of rlcore: whether the env may be recorded together with the rollout."""


@dataclass(frozen=True, kw_only=True)
class Common(Base):
    """What all libraries and all numbers of envs share."""

    num_steps: int = 24
    """Vector steps an iteration."""
    epochs: int = 5
    """Passes over what was collected."""
    minibatches: int = 4
    """Updates a pass."""
    hidden: tuple[int, ...] = (512, 256, 128)
    """Hidden layers of actor and critic, ELU."""
    rnn: Literal["none", "lstm", "gru"] = "none"
    """Recurrent layer of 256 before the hidden layers of actor and critic; rlcore and rsl_rl only."""
    normalize_obs: bool = False
    """Normalize observations, in every library."""


@dataclass(frozen=True, kw_only=True)
class Work(Common, Turn):
    """What one process is to time of PPO."""


@dataclass(frozen=True, kw_only=True)
class Shape(Base):
    """What all libraries share."""

    obs: int = 123
    """Size of the observation of the Null task."""
    actions: int = 37
    """Size of the action of the Null task."""
    iterations: int = 50
    """Vector steps to time, each way and in each round."""
    warmup: int = 10
    """Vector steps before the first that counts; rlcore records its graphs in them."""
    batch: int = 8192
    """Samples of a gradient step."""
    buffer: int = 1_000_000
    """Transitions in the replay memory."""
    actor: tuple[int, ...] = (512, 256, 128)
    """Hidden layers of the actor, ReLU."""
    critic: tuple[int, ...] = (1024, 512, 256)
    """Hidden layers of each critic, ReLU."""


@dataclass(frozen=True, kw_only=True)
class ReplayWork(Shape, Turn):
    """What one process is to time."""

    algo: Algo
    preset: Preset
    updates: int
    """Gradient steps after a vector step."""
