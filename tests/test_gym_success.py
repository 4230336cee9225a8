"""Whether episodes of gymnasium's envs succeeded."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rlcore.envs.gymnasium import GymnasiumEnv


class Tells(gymnasium.Env[Any, Any]):
    """Three steps long; its first action of 1 is a success in that step, and is told by an entry of info."""

    observation_space = spaces.Box(0.0, 3.0, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, name: str | None, late: bool = False) -> None:
        self.name, self.late, self.time = name, late, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        silent = self.name is None or (self.late and self.time < 3)
        info = {} if silent else {self.name: bool(action)}
        return np.full(1, self.time, np.float32), 0.0, False, self.time == 3, info


def vector(kind: str, name: str | None, late: bool = False) -> Any:
    makers = [lambda: Tells(name, late)] * 2
    if kind == "each":
        return SyncVectorEnv(makers)
    mode = {"same": AutoresetMode.SAME_STEP, "next": AutoresetMode.NEXT_STEP}[kind]
    return gymnasium.wrappers.vector.RecordEpisodeStatistics(SyncVectorEnv(makers, autoreset_mode=mode))


@pytest.mark.parametrize("kind", ["each", "same", "next"])
@pytest.mark.parametrize("name", ["success", "is_success"])
def test_success_counts_in_any_step_or_in_the_last_as_its_name_says(kind: str, name: str) -> None:
    env = GymnasiumEnv(vector(kind, name))
    env.reset(0)
    for actions in ([[1, 0], [0, 0], [0, 1]], [[0, 0], [0, 0], [0, 0]], [[0, 1], [1, 1], [1, 0]]):
        for row in actions:
            step = env.step(torch.tensor(row))
        assert step.truncated.all()
        expected = actions[-1] if name == "is_success" else np.max(actions, axis=0)
        assert step.log["success"].tolist() == [float(x) for x in expected]  # type: ignore[union-attr]
        if kind == "next":
            env.step(torch.tensor([1, 1]))  # begins the next episodes, and is none of a success


@pytest.mark.parametrize("kind", ["each", "same", "next"])
def test_what_is_told_where_an_episode_ends_alone_is_heard(kind: str) -> None:
    env = GymnasiumEnv(vector(kind, "is_success", late=True))
    env.reset(0)
    for actions in ([1, 0], [0, 1], [0, 0]):
        for row in ([1, 1], [1, 1], actions):
            step = env.step(torch.tensor(row))
        assert step.truncated.all()
        assert step.log["success"].tolist() == actions  # type: ignore[union-attr]
        if kind == "next":
            env.step(torch.tensor([1, 1]))


def test_a_reset_forgets_the_episodes_at_hand_and_who_tells_nothing_logs_nothing() -> None:
    env = GymnasiumEnv(vector("each", "success"))
    env.reset(0)
    assert env.step(torch.tensor([1, 1])).log["success"].tolist() == [1.0, 1.0]  # type: ignore[union-attr]
    env.reset()
    assert env.step(torch.tensor([0, 0])).log["success"].tolist() == [0.0, 0.0]  # type: ignore[union-attr]
    silent = GymnasiumEnv(vector("each", None))
    silent.reset(0)
    assert silent.step(torch.tensor([1, 1])).log == {}
