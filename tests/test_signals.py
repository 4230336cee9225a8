"""Values of every step beside the reward."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rlcore import PPO, SAC, PPOConfig, SACConfig, Step
from rlcore.envs.classic import Pendulum
from rlcore.envs.null import Null
from rlcore.learn import EpisodeStatistics, resume, snapshot

CONFIG = PPOConfig(num_steps=5, num_minibatches=1)


class Priced(Pendulum):
    """A Pendulum whose torque costs, and which tells how high it stands."""

    def step(self, action: Tensor) -> Step:
        step = super().step(action)
        return step._replace(signals={"effort": action[:, 0].abs(), "height": step.obs["policy"][:, 0]})


def step(signals: dict[str, list[float]], done: list[bool], valid: list[bool] | None = None) -> Step:
    ends = torch.tensor(done)
    return Step(
        {"policy": torch.zeros(len(done), 1)},
        torch.zeros(len(done)),
        ends,
        torch.zeros_like(ends),
        None,
        {},
        None if valid is None else torch.tensor(valid),
        {name: torch.tensor(values) for name, values in signals.items()},
    )


def test_means_over_steps_and_sums_over_episodes() -> None:
    episodes = EpisodeStatistics(2, torch.device("cpu"))
    episodes.record(step({"a": [1.0, 2.0], "b": [0.0, 10.0]}, [False, False]))
    episodes.record(step({"a": [3.0, 4.0], "b": [0.0, 20.0]}, [True, False]))
    first = episodes.read()
    assert [first[f"signal/{name}"] for name in ("a", "b", "a_episode", "b_episode")] == [2.5, 7.5, 4.0, 0.0]
    episodes.record(step({"a": [5.0, 6.0], "b": [1.0, 30.0]}, [True, True]))
    second = episodes.read()
    assert [second[f"signal/{name}"] for name in ("a", "b", "a_episode", "b_episode")] == [5.5, 15.5, 8.5, 30.5]
    episodes.record(step({"a": [0.0, 0.0], "b": [0.0, 0.0]}, [False, False]))
    assert math.isnan(episodes.read()["signal/a_episode"])


def test_what_is_not_finite_or_no_step_is_left_out() -> None:
    episodes = EpisodeStatistics(3, torch.device("cpu"))
    episodes.record(step({"a": [math.nan, 1.0, 50.0]}, [False, False, False], [True, True, False]))
    episodes.record(step({"a": [1.0, 2.0, 6.0]}, [True, True, True], [True, True, True]))
    means = episodes.read()
    assert means["signal/a"] == (1 + 1 + 2 + 6) / 4
    assert means["signal/a_episode"] == (3 + 6) / 2
    episodes.record(step({"a": [4.0, 0.0, 0.0]}, [True, False, False], [True, True, True]))
    assert episodes.read()["signal/a_episode"] == 4.0


@pytest.mark.parametrize("agent", [PPO, SAC])
def test_signals_change_nothing_and_are_reported(agent: Any) -> None:
    config = CONFIG if agent is PPO else SACConfig(learning_starts=16, batch_size=16, buffer_size=512)
    reports: list[dict[str, float]] = []
    policies = []
    for env in (Pendulum(8, seed=1), Priced(8, seed=1)):
        learner = agent(env, config, seed=1)
        learner.learn(10, on_report=lambda report: reports.append(report.metrics))
        policies.append(learner.policy.state_dict())
    assert all(torch.equal(value, policies[1][name]) for name, value in policies[0].items())
    assert 0 < reports[-1]["signal/effort"] <= 2 and -1 <= reports[-1]["signal/height"] <= 1
    assert not any(name.startswith("signal/") for report in reports[:10] for name in report)


def test_sums_of_episodes_in_flight_go_on_after_a_resume() -> None:
    whole: list[dict[str, float]] = []
    halves: list[dict[str, float]] = []
    PPO(Priced(4, seed=1), CONFIG, seed=1).learn(42, on_report=lambda report: whole.append(report.metrics))
    env = Priced(4, seed=1)
    agent = PPO(env, CONFIG, seed=1)
    content = snapshot(env, agent, agent.learn(20, on_report=lambda report: halves.append(report.metrics)))
    env = Priced(4, seed=9)
    agent = PPO(env, CONFIG)
    progress, exact = resume(env, agent, content)
    agent.learn(42, progress=progress, on_report=lambda report: halves.append(report.metrics))
    keys = [key for key in whole[-1] if key.startswith("signal/")]
    assert exact and [row.get(k) for row in whole for k in keys] == [row.get(k) for row in halves for k in keys]
    assert any("signal/effort_episode" in row for row in whole[20:])


WRONG = {
    "shape": ({"a": torch.zeros(4, 1)}, r"the signal 'a' is torch.float32 of shape \(4, 1\).*of shape \(4,\)"),
    "type": ({"a": torch.zeros(4, dtype=torch.float64)}, "the signal 'a' is torch.float64.*return torch.float32"),
    "number": ({"a": 1.0}, "the signal 'a' is float; return a tensor"),
    "list": ([torch.zeros(4)], "signals are list; return a dict of tensors by name"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_signal_is_named(case: str) -> None:
    signals, message = WRONG[case]

    class Wrong(Null):
        def step(self, action: Tensor) -> Step:
            return super().step(action)._replace(signals=signals)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="Null: .*" + message):
        PPO(Wrong(4, obs_size=3, action_size=2), CONFIG, seed=0).learn(1)


def test_signals_are_the_same_in_every_step() -> None:
    class Sometimes(Null):
        taken = 0

        def step(self, action: Tensor) -> Step:
            self.taken += 1
            names = ["a", "b"] if self.taken < 3 else ["a"]
            return super().step(action)._replace(signals={name: torch.zeros(4) for name in names})

    with pytest.raises(ValueError, match=r"gave the signals \(a, b\) before and \(a\) now; return the same"):
        PPO(Sometimes(4, obs_size=3, action_size=2), CONFIG, seed=0).learn(1)
