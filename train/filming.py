"""Videos of evaluations: one episode in an env of their own, small, and without a trace in the training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from rlcore.agent import Policy
from rlcore.env import VecEnv, is_renderable, name_of, spec_of, want_final_obs
from rlcore.envs import make_env
from rlcore.envs.launch import TASKS_PREFIX, simulator_of
from rlcore.stage import Stage, can_take
from rlcore.train.config import TrainConfig
from rlcore.train.evaluate import evaluation_options, undisturbed
from rlcore.train.play import FPS, Frame, find_renderer, frames, stride, write_animation

LONGEST = 300
"""Steps of an episode that are shown."""

HEIGHT = 240
"""Pixels; higher pictures are made smaller."""


class Film:
    """Films the policy in every n-th evaluation of a run.

    Args:
        config: of the run.
        device: of the env, which is one copy of the task.
    """

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self._every, self._seed, self._device = config.eval_video, config.seed, device
        self._count = 0
        self._env: VecEnv | None = None
        self.fault = ""
        """Why nothing is filmed, in words; empty where nothing hinders it."""
        try:
            with undisturbed(device):
                self._env = _env(config, device)
        except Exception as error:
            self.fault = _told(error)

    def due(self) -> bool:
        """Whether the evaluation that comes next is filmed."""
        self._count += 1
        return self._env is not None and (self._count - 1) % self._every == 0

    def take(self, path: Path, policy: Policy, stage: Stage | None) -> bool:
        """Write an episode as a GIF; False, and a ``fault`` from then on, where the env cannot be drawn.

        Args:
            path: of the file.
            policy: what acts.
            stage: where the curricula of the env are to stand, if it can take them.
        """
        env = self._env
        assert env is not None
        try:
            with undisturbed(self._device):
                stage = stage if stage is not None and can_take(env, stage) else None
                steps = min(env.max_episode_length, LONGEST)
                control_dt = float(spec_of(env).deployment.get("control_dt", 1 / FPS))
                pictures = frames(env, policy, steps, self._seed, control_dt, stage)
                write_animation(path, _small(pictures), control_dt * stride(control_dt))
        except Exception as error:  # of a graphics library, or a simulator: training goes on without
            self.fault = _told(error)
            self.close()
        return not self.fault

    def close(self) -> None:
        """Close the env."""
        env, self._env = self._env, None
        if env is not None:
            env.close()


def _env(config: TrainConfig, device: torch.device) -> VecEnv:
    """One copy of the task that can be drawn.

    Raises:
        ValueError: it cannot.
    """
    simulator = simulator_of(config.task)
    if simulator == "isaaclab":
        raise ValueError("Isaac Sim has one scene per process, which training uses; see rlcore play --run RUN")
    if config.task.startswith(TASKS_PREFIX):
        raise ValueError("a video is of one task; see rlcore play --run RUN --task TASK")
    find_renderer(config.task)
    options = evaluation_options(config.env)
    if simulator != "builtin":
        options = {"render_mode": "rgb_array"} | options
    env = make_env(config.task, 1, device, seed=config.seed, **options)
    want_final_obs(env, ())
    if not is_renderable(env):
        env.close()
        raise ValueError(f"{name_of(env)} has no render()")
    return env


def _small(pictures: Iterator[Frame]) -> Iterator[Frame]:
    """The same pictures, no higher than ``HEIGHT``."""
    from PIL import Image

    for picture in pictures:
        height, width = picture.shape[:2]
        if height > HEIGHT:
            size = max(1, width * HEIGHT // height), HEIGHT
            picture = np.asarray(Image.fromarray(picture).resize(size))
        yield picture


def _told(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"
