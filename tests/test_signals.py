"""Values of every step beside the reward."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rlcore import PPO, SAC, ConfigError, NetworkConfig, PPOConfig, SACConfig, Step
from rlcore.config import from_dict
from rlcore.envs.classic import Pendulum
from rlcore.envs.null import Null
from rlcore.learn import EpisodeStatistics, Report, resume, snapshot
from rlcore.signals import SignalConfig
from rlcore.train.arguments import UsageError, parse, split_words
from rlcore.train.config import TrainConfig

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


def test_where_a_rollout_was_broken_off_new_episodes_begin_as_the_env_would_have_begun_them() -> None:
    agent = PPO(Priced(4, seed=1), CONFIG, seed=1)
    progress = agent.learn(2)
    progress.broken_off = "rollout"
    content = snapshot(agent.env, agent, progress)
    env, other = Priced(4, seed=9), Priced(4, seed=5)
    progress, exact = resume(env, PPO(env, CONFIG, seed=1), content)
    other.load_state_dict(content["env"])
    assert not exact and torch.equal(progress.obs["policy"], other.reset()["policy"])


def test_a_restart_forgets_the_sums_of_episodes_in_flight() -> None:
    agent = PPO(Priced(4, seed=1), CONFIG, seed=1)
    progress = agent.learn(1)
    assert set(progress.episodes.signals) == {"effort", "height"}
    assert all(sums.all() for sums in progress.episodes.signals.values())
    progress.restart(agent.env, agent)
    assert not any(sums.any() for sums in progress.episodes.signals.values())


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


def priced(**signals: SignalConfig) -> PPOConfig:
    return PPOConfig(num_steps=10, num_minibatches=2, signals=dict(signals), normalize_advantage="none")


def test_a_signal_of_weight_0_changes_nothing() -> None:
    runs = []
    for signals in ({}, {"effort": SignalConfig(weight=0.0), "height": SignalConfig()}):
        agent = PPO(Priced(8, seed=1), priced(**signals), seed=1)
        agent.learn(4)
        runs.append({**agent.policy.state_dict(), **{f"v.{k}": v for k, v in agent.critic.state_dict().items()}})
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())


CASES: dict[str, dict[str, Any]] = {
    "final_obs": {},
    "value": {"timeout_bootstrap": "value"},
    "none": {"timeout_bootstrap": "none"},
    "normalized": {"normalize_value": True},
}


@pytest.mark.parametrize("case", CASES)
def test_advantages_and_returns_by_column_are_those_of_a_float64_loop(case: str) -> None:
    """With time-outs in the rollout, each column with a discount and a lambda of its own, one across episodes."""
    signals = {
        "effort": SignalConfig(weight=-0.5, gamma=0.8, gae_lambda=0.7),
        "height": SignalConfig(weight=2.0, gamma=0.9, episodic=False),
    }
    config = dataclasses.replace(priced(**signals), **{"normalize_value": False, **CASES[case]})
    agent = PPO(Priced(8, seed=1, max_episode_length=7), config, seed=1)
    agent.learn(3)
    obs, state = agent.env.reset(2), agent.initial_state()
    steps = []
    for _ in range(agent.num_steps):
        action, state = agent.act(obs, state)
        steps.append(agent.env.step(action))
        agent.record(obs, action, state, steps[-1])
        obs = steps[-1].obs
    found: list[Any] = []
    unroll = agent.critic.unroll
    agent.critic.unroll = lambda *args: found.append(unroll(*args)) or found[-1]  # type: ignore[method-assign,func-returns-value,assignment]
    old = copy.deepcopy(agent.signals.normalizer)
    batch, _ = agent._targets(agent.next_obs)
    values, timeouts = found[0][0].double(), found[0][1].double()  # [T + 1, N, 3], [T, N, 3]
    if old is not None:
        assert agent.value_normalizer is not None
        values[..., 1:] = old.inverse(found[0][0][..., 1:]).double()
        timeouts[..., 1:] = old.inverse(found[0][1][..., 1:]).double()
    total = torch.zeros(10, 8, dtype=torch.float64)
    returns = torch.zeros(10, 8, 2, dtype=torch.float64)
    assert sum(int(step.truncated.sum()) for step in steps) >= 8
    for column, (name, config_of) in enumerate(signals.items(), 1):
        gamma, decay = config_of.gamma or 0.99, 0.95 if config_of.gae_lambda is None else config_of.gae_lambda
        for n in range(8):
            tail = 0.0
            for t in reversed(range(10)):
                step, signal = steps[t], steps[t].signals
                assert signal is not None
                over = bool(step.truncated[n]) and config_of.episodic
                following = float(values[t + 1, n, column])
                if over:
                    following = 0.0 if case == "none" else float(timeouts[t, n, column])
                delta = float(signal[name][n]) + gamma * following - float(values[t, n, column])
                tail = delta + (0.0 if over else gamma * decay * tail)
                total[t, n] += config_of.weight * tail
                returns[t, n, column - 1] = tail + float(values[t, n, column])
    assert batch.signal_returns is not None
    inside = batch.signal_returns.view(10, 8, 2)
    if agent.signals.normalizer is not None:
        inside = agent.signals.normalizer.inverse(inside)
    torch.testing.assert_close(inside.double(), returns, rtol=1e-4, atol=1e-4)
    plain = PPO(Priced(8, seed=1, max_episode_length=7), config, seed=1)
    reward = torch.stack([step.reward for step in steps]).double()
    following = values[1:, :, 0].clone()
    if agent.value_normalizer is None:
        ends = torch.stack([step.truncated for step in steps])
        following[ends] = 0.0 if case == "none" else timeouts[..., 0][ends]
        tail, own = torch.zeros(8, dtype=torch.float64), []
        for t in reversed(range(10)):
            delta = reward[t] + plain.config.gamma * following[t] - values[t, :, 0]
            tail = delta + torch.where(ends[t], 0.0, plain.config.gamma * plain.config.gae_lambda * tail)
            own.append(tail)
        expected = torch.stack(own[::-1]) + total
        torch.testing.assert_close(batch.advantage.view(10, 8).double(), expected, rtol=1e-4, atol=1e-4)


def test_a_priced_signal_is_avoided() -> None:
    """Torque costs more than standing upright is worth: the pendulum is left to hang."""
    efforts, net = [], NetworkConfig(hidden_dims=(32, 32))
    for weight in (0.0, -20.0):
        signals = {"effort": SignalConfig(weight=weight)}
        config = PPOConfig(num_steps=16, num_minibatches=4, learning_rate=3e-3, signals=signals, actor=net, critic=net)
        reports: list[Report] = []
        PPO(Priced(64, seed=1), config, seed=1).learn(15, on_report=reports.append)
        efforts.append(sum(report.metrics["signal/effort"] for report in reports[-5:]) / 5)
    assert efforts[1] < 0.8 * efforts[0]


def test_a_checkpoint_has_the_columns() -> None:
    config = dataclasses.replace(priced(effort=SignalConfig(weight=-1.0)), normalize_value=True)
    agent = PPO(Priced(8, seed=1), config, seed=1)
    agent.learn(2)
    other = PPO(Priced(8, seed=1), config, seed=5)
    other.load_state_dict(agent.state_dict())
    for name in ("critic", "signals"):
        state = getattr(other, name).state_dict()
        assert all(torch.equal(value, state[key]) for key, value in getattr(agent, name).state_dict().items())
    assert agent.critic.value.weight.shape[0] == 2 and agent.signals.normalizer is not None


def test_a_signal_that_the_env_does_not_give_is_named() -> None:
    with pytest.raises(ConfigError, match=r"agent\.signals: the env gives no signal 'efort'; did you mean 'effort'"):
        PPO(Priced(8, seed=1), priced(efort=SignalConfig(weight=1.0)), seed=1).learn(1)
    with pytest.raises(ConfigError, match="the env gives no signal 'cost'; it gives none"):
        PPO(Pendulum(8, seed=1), priced(cost=SignalConfig(weight=1.0)), seed=1).learn(1)


def test_a_broken_signal_is_left_out() -> None:
    class Sick(Priced):
        def step(self, action: Tensor) -> Step:
            step = super().step(action)
            assert step.signals is not None
            step.signals["effort"][2] = math.nan
            return step

    agent = PPO(Sick(8, seed=1), priced(effort=SignalConfig(weight=-1.0)), seed=1)
    rows: list[dict[str, float]] = []
    agent.learn(3, on_report=lambda report: rows.append(report.metrics))
    assert rows[-1]["rollout/dropped"] == 10
    assert all(torch.isfinite(value).all() for value in agent.critic.state_dict().values())


def test_signals_are_set_by_name_on_the_command_line_and_in_files() -> None:
    words = "--agent.signals.effort.weight -0.5 --agent.signals.height.weight=2 agent.signals.height.episodic=False"
    base = TrainConfig(task="Pendulum", agent=PPOConfig(signals={"effort": SignalConfig(gamma=0.5)}))
    pairs = split_words(words.split(), TrainConfig, free="env")
    signals = parse(TrainConfig, pairs, base, "rlcore train").agent.signals
    assert signals["effort"] == SignalConfig(weight=-0.5, gamma=0.5)
    assert signals["height"] == SignalConfig(weight=2.0, episodic=False)
    with pytest.raises(ConfigError, match=r"file: unknown key 'signals\.a\.wight'; did you mean 'weight'"):
        from_dict(PPOConfig, {"signals": {"a": {"wight": 1}}}, "file")
    with pytest.raises(ConfigError, match=r"file: signals\.a\.gamma: 2.0 is not possible"):
        from_dict(PPOConfig, {"signals": {"a": {"gamma": 2}}}, "file")
    with pytest.raises(UsageError, match=r"unknown setting --agent\.signals\.a\.wight; did you mean"):
        split_words(["--agent.signals.a.wight", "3"], TrainConfig, free="env")
