"""Costs that gymnasium's envs tell by their info."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from rlcore import PPO, PPOConfig
from rlcore.envs import make_env
from rlcore.envs.gym_costs import SPEED_LIMITS, SpeedLimit
from rlcore.envs.gymnasium import GymnasiumEnv
from rlcore.safety import CostConfig, SafetyConfig


class Costly(gymnasium.Env[Any, Any]):
    """Its t-th step costs t + 100 * episode; an episode is cut after three."""

    observation_space: spaces.Space[Any] = spaces.Box(-1.0, 1.0, (1,), dtype=np.float32)
    action_space: spaces.Space[Any] = spaces.Discrete(2)

    def __init__(self, give: str = "always") -> None:
        self.give = give
        self.t, self.episode = 0, -1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.t, self.episode = 0, self.episode + 1
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        cost: Any = "much" if self.give == "text" else float(self.t + 100 * self.episode)
        gives = {"always": True, "text": True, "never": False, "first": self.t == 1, "late": self.t > 1}[self.give]
        return np.zeros(1, np.float32), 0.0, False, self.t == 3, {"cost": cost} if gives else {}


@pytest.fixture(autouse=True)
def costly_id() -> Iterator[None]:
    gymnasium.register("RlcoreCostly-v0", entry_point=Costly, disable_env_checker=True)
    yield
    del gymnasium.registry["RlcoreCostly-v0"]


def costs_of(env: Any, steps: int) -> list[list[float]]:
    """Those of steps that were taken, by env."""
    env.reset(seed=0)
    found: list[list[float]] = [[] for _ in range(env.num_envs)]
    for _ in range(steps):
        step = env.step(torch.zeros(env.num_envs, dtype=torch.int64))
        for i, cost in enumerate(step.signals["cost"].tolist()):
            if step.valid is None or step.valid[i]:
                found[i].append(cost)
            else:
                assert cost == 0
    return found


EPISODES = [1.0, 2.0, 3.0, 101.0, 102.0, 103.0, 201.0]


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_info_cost_is_a_signal(vectorization: str) -> None:
    env = make_env("gym:RlcoreCostly-v0", 2, vectorization=vectorization)
    assert costs_of(env, 7) == [EPISODES, EPISODES]
    env.close()


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
def test_every_autoreset_mode_tells_the_cost_of_the_last_step(mode: AutoresetMode, kind: Any) -> None:
    env = GymnasiumEnv(kind([Costly, Costly], autoreset_mode=mode))
    assert costs_of(env, 9)[1][:7] == EPISODES
    env.close()


def test_without_costs_there_is_no_signal() -> None:
    env = make_env("gym:RlcoreCostly-v0", 2, give="never")
    env.reset(seed=0)
    assert all(env.step(torch.zeros(2, dtype=torch.int64)).signals is None for _ in range(4))


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize(
    ("give", "message"),
    [
        ("first", r"gym:RlcoreCostly-v0: info\['cost'\] is missing in a step of env 0; give it always"),
        ("text", r"gym:RlcoreCostly-v0: info\['cost'\] is 'much'; give one number in each step"),
    ],
)
def test_a_cost_that_is_not_in_every_step_is_refused(give: str, message: str, vectorization: str) -> None:
    env = make_env("gym:RlcoreCostly-v0", 2, vectorization=vectorization, give=give)
    with pytest.raises(ValueError, match=message):
        costs_of(env, 4)
    env.close()


def test_a_cost_that_comes_late_is_none() -> None:
    env = make_env("gym:RlcoreCostly-v0", 2, give="late")
    env.reset(seed=0)
    assert all(env.step(torch.zeros(2, dtype=torch.int64)).signals is None for _ in range(4))


def test_ppo_measures_them() -> None:
    safety = SafetyConfig(costs={"cost": CostConfig(limit=5.0)})
    rows: list[dict[str, float]] = []
    agent = PPO(make_env("gym:RlcoreCostly-v0", 2), PPOConfig(num_steps=6, num_minibatches=1, safety=safety), seed=0)
    agent.learn(2, on_report=lambda report: rows.append(report.metrics))
    assert rows[0]["safety/cost_cost"] == (6 + 306) / 2
    assert rows[1]["safety/cost_cost"] == (606 + 906) / 2
    assert rows[1]["safety/cost_multiplier"] > rows[0]["safety/cost_multiplier"] > 0


class Runner(gymnasium.Env[Any, Any]):
    """Tells the speeds that it was given, as gymnasium's MuJoCo tasks do."""

    observation_space: spaces.Space[Any] = spaces.Box(-1.0, 1.0, (1,), dtype=np.float32)
    action_space: spaces.Space[Any] = spaces.Discrete(2)

    def __init__(self, speeds: list[dict[str, float]]) -> None:
        self.speeds = iter(speeds)

    def step(self, action: Any) -> Any:
        return np.zeros(1, np.float32), 0.0, False, False, dict(next(self.speeds))


@pytest.mark.parametrize(("planar", "costs"), [(False, [0.0, 1.0, 0.0, 0.0]), (True, [0.0, 1.0, 1.0, 1.0])])
def test_what_is_faster_than_the_limit_costs_1(planar: bool, costs: list[float]) -> None:
    speeds = [(1.4, 0.0), (1.6, 0.0), (-1.6, 0.0), (1.1, 1.1)]
    env = SpeedLimit(Runner([{"x_velocity": x, "y_velocity": y} for x, y in speeds]), 1.5, planar)
    assert [env.step(0)[4]["cost"] for _ in speeds] == costs


def test_velocity_tasks_are_known_by_the_names_of_safety_gymnasium() -> None:
    names = [f"Safety{robot}Velocity-v1" for robot in SPEED_LIMITS]
    specs = [gymnasium.spec(name) for name in names]
    assert [spec.max_episode_steps for spec in specs] == 6 * [1000]
    assert {spec.id: spec.additional_wrappers[0].kwargs for spec in specs}["SafetyAntVelocity-v1"] == {
        "limit": 2.6222,
        "planar": True,
    }
    with pytest.raises(ValueError, match="did you mean gym:SafetyAntVelocity-v1"):
        make_env("SafetyAntVelocity-v1", 1)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_velocity_task_costs_what_its_speed_says(vectorization: str) -> None:
    pytest.importorskip("mujoco")
    env = make_env("gym:SafetySwimmerVelocity-v1", 2, seed=0, vectorization=vectorization)
    single = gymnasium.make("Swimmer-v5")
    env.reset()
    single.reset(seed=1)
    costs = []
    for t in range(60):
        action = torch.tensor([[0.0, 0.0], [np.sin(0.5 * t), np.cos(0.5 * t)]], dtype=torch.float32)
        step = env.step(action)
        assert step.signals is not None
        costs.append(float(single.step(action[1].numpy())[4]["x_velocity"] > 0.2282))
        assert step.signals["cost"][1] == costs[-1]
    assert 5 < sum(costs) < 55
    env.close()
