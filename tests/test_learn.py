"""The training loop and its episode statistics."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rlcore import PPO, NetworkConfig, PPOConfig, Step
from rlcore.envs.null import Null
from rlcore.learn import EpisodeStatistics, Report

SMALL = NetworkConfig(hidden_dims=(8,))
CONFIG = PPOConfig(num_steps=5, num_epochs=1, num_minibatches=1, actor=SMALL, critic=SMALL)


def step(reward: list[float], done: list[bool], log: dict[str, Tensor | float] | None = None) -> Step:
    ends = torch.tensor(done)
    return Step({}, torch.tensor(reward), ends, torch.zeros_like(ends), None, log or {})


def test_returns_and_lengths_of_ended_episodes_only() -> None:
    episodes = EpisodeStatistics(2, torch.device("cpu"))
    episodes.record(step([1.0, 10.0], [False, False]))
    episodes.record(step([2.0, 20.0], [True, False]))
    episodes.record(step([4.0, 40.0], [False, True]))
    episodes.record(step([8.0, 80.0], [False, False]))
    means = episodes.read()
    assert means["rollout/episodes"] == 2
    assert means["rollout/episode_return"] == (3 + 70) / 2
    assert means["rollout/episode_length"] == (2 + 3) / 2
    assert means["rollout/reward"] == 165 / 8
    # Episodes in flight survive the read; what was read does not come again.
    episodes.record(step([0.0, 0.0], [True, False]))
    again = episodes.read()
    assert (again["rollout/episodes"], again["rollout/episode_return"]) == (1, 12)


def test_nothing_ended_means_no_value() -> None:
    episodes = EpisodeStatistics(2, torch.device("cpu"))
    episodes.record(step([1.0, 1.0], [False, False]))
    assert math.isnan(episodes.read()["rollout/episode_return"])


def test_log_values_count_where_episodes_ended() -> None:
    episodes = EpisodeStatistics(3, torch.device("cpu"))
    per_env = torch.tensor([5.0, math.nan, 7.0])
    episodes.record(step([0.0] * 3, [True, False, True], {"x": per_env, "y": 1.0}))
    episodes.record(step([0.0] * 3, [False, True, False], {"x": torch.tensor([0.0, 1.0, 0.0]), "y": 4.0}))
    episodes.record(step([0.0] * 3, [False, False, False], {"x": torch.full((3,), 99.0), "y": 99.0}))
    means = episodes.read()
    torch.testing.assert_close(means["env/x"], torch.tensor((5 + 7 + 1) / 3))
    torch.testing.assert_close(means["env/y"], torch.tensor((1 + 1 + 4) / 3))  # by episodes, not by steps


def test_success_is_weighted_by_the_number_of_goals() -> None:
    episodes = EpisodeStatistics(2, torch.device("cpu"))
    log: dict[str, Tensor | float] = {"success": torch.tensor([1.0, 0.0]), "num_goals": torch.tensor([3.0, 1.0])}
    episodes.record(step([0.0, 0.0], [True, True], log))
    assert episodes.read()["rollout/success"] == 0.75


def test_loop_counts_reports_and_stops() -> None:
    reports: list[Report] = []
    iterations: list[int] = []
    agent = PPO(Null(4, obs_size=3, action_size=2, episode_length=7), CONFIG, seed=0)
    hooks: dict[str, Any] = {"on_report": reports.append, "on_iteration": lambda p: iterations.append(p.iteration)}
    progress = agent.learn(10, **hooks, should_stop=lambda: len(iterations) == 3)
    assert [r.iteration for r in reports] == iterations == [1, 2, 3]
    assert progress.env_steps == reports[-1].env_steps == 3 * 5 * 4
    assert "rollout/episode_return" not in reports[0].metrics  # no episode of 7 steps ends within 5
    assert reports[1].metrics["rollout/episode_length"] == 7
    assert reports[0].metrics["time/steps_per_s"] > 0
    progress = agent.learn(5, progress=progress, **hooks)
    assert progress.iteration == 5


def test_an_env_that_cannot_be_captured_is_refused() -> None:
    agent = PPO(Null(4, obs_size=3, action_size=2), CONFIG, seed=0)
    with pytest.raises(ValueError, match="capture_env: Null"):
        agent.learn(1, capture_env=True)
