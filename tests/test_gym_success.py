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

    def __init__(self, name: str | None) -> None:
        self.name, self.time = name, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        info = {} if self.name is None else {self.name: bool(action)}
        return np.full(1, self.time, np.float32), 0.0, False, self.time == 3, info


def vector(kind: str, name: str | None) -> Any:
    makers = [lambda: Tells(name)] * 2
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


def test_a_reset_forgets_the_episodes_at_hand_and_who_tells_nothing_logs_nothing() -> None:
    env = GymnasiumEnv(vector("each", "success"))
    env.reset(0)
    assert env.step(torch.tensor([1, 1])).log["success"].tolist() == [1.0, 1.0]  # type: ignore[union-attr]
    env.reset()
    assert env.step(torch.tensor([0, 0])).log["success"].tolist() == [0.0, 0.0]  # type: ignore[union-attr]
    silent = GymnasiumEnv(vector("each", None))
    silent.reset(0)
    assert silent.step(torch.tensor([1, 1])).log == {}
