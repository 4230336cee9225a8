"""Values of every step beside the reward in a replay memory: sums by column, and what SAC and DDPG make of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import Place
from torch import Tensor

from rlcore import DDPG, SAC, ConfigError, DDPGConfig, SACConfig, Step
from rlcore.envs.classic import Pendulum
from rlcore.learn import resume, snapshot
from rlcore.replay import Replay
from rlcore.signals import SignalConfig

AGENTS: dict[Any, Any] = {SAC: SACConfig, DDPG: DDPGConfig}
CPU = torch.device("cpu")


class Priced(Pendulum):
    """A Pendulum whose torque costs, and which tells how high it stands; one env may tell what is no number."""

    def __init__(self, sick: bool = False) -> None:
        super().__init__(4, seed=1, max_episode_length=7)
        self.sick = sick

    def step(self, action: Tensor) -> Step:
        step = super().step(action)
        effort = action[:, 0].abs()
        if self.sick:
            effort[2] = math.nan
        return step._replace(signals={"effort": effort, "height": step.obs["policy"][:, 0]})


def agent(kind: Any, env: Any = None, seed: int = 1, **changes: Any) -> Any:
    common = {"learning_starts": 24, "batch_size": 16, "buffer_size": 400, "num_updates": 1, "n_step": 3}
    return kind(Priced() if env is None else env, AGENTS[kind](**{**common, **changes}), seed=seed)


@pytest.mark.parametrize("n_step", [1, 3, 5])
@pytest.mark.parametrize("count", [6, 9, 30])  # not full, full, and many times over
def test_sums_by_column_equal_the_reference(place: Place, count: int, n_step: int) -> None:
    """Step by step in double precision: each by its own discount, to the end of the episode however it ends."""
    envs, rows, gammas = 3, 9, {"cost": 0.5, "speed": 1.0}
    replay = Replay(rows * envs, envs, {"a": 1}, 1, 5, place.device, home=place.home, signals=gammas)
    history: list[dict[str, Tensor]] = []
    for _ in range(count):
        over = torch.rand(2, envs) < 0.15
        row = {"terminated": over[0], "truncated": over[1], **{name: torch.randn(envs) for name in gammas}}
        history.append(row)
        there = {name: value.to(place.device) for name, value in row.items()}
        obs, blank = {"a": torch.zeros(envs, 1, device=place.device)}, torch.zeros(envs, device=place.device)
        ends = there["terminated"], there["truncated"]
        signals = {name: there[name] for name in reversed(gammas)}  # by name, not in their order
        replay.write(obs, blank.unsqueeze(1), blank, *ends, obs, signals | {"unread": blank})
    kinds = set()
    for t in range(max(0, count - rows), count - n_step):
        for n in range(envs):
            expected = torch.zeros(2, dtype=torch.float64)
            for i in range(n_step):
                step = history[t + i]
                for column, (name, gamma) in enumerate(gammas.items()):
                    expected[column] += gamma**i * step[name][n].double()
                if step["terminated"][n] or step["truncated"][n]:
                    kinds.add("terminated" if step["terminated"][n] else "truncated")
                    break
            start, env = (torch.tensor([i], device=place.device) for i in (t % rows, n))
            found = replay.window(start, env, 0.9, n_step).signals
            assert found is not None and found.shape == (1, 2)
            torch.testing.assert_close(found[0].cpu().double(), expected, rtol=1e-5, atol=1e-6)
    assert len(kinds) == 2 or count < 30


def test_signals_are_part_of_what_the_memory_needs() -> None:
    without, having = (Replay(900, 9, {"a": 2}, 1, 50, CPU, signals=s) for s in ({}, {"cost": 0.9, "speed": 1.0}))
    assert having.signals is not None and without.signals is None
    assert having.num_bytes - without.num_bytes == having.signals.nbytes == 4 * 2 * 900
    flags, zeros = torch.zeros(9, dtype=torch.bool), torch.zeros(9)
    for _ in range(3):
        without.write({"a": torch.zeros(9, 2)}, zeros.unsqueeze(1), zeros, flags, flags, None, {"cost": zeros})
    assert without.sample(4, 0.9).signals is None and "signals" not in without.state_dict(3)


@pytest.mark.parametrize("kind", AGENTS)
def test_without_weight_results_are_bitwise_those_without_signals(kind: Any) -> None:
    class Plain(Priced):
        def step(self, action: Tensor) -> Step:
            return super().step(action)._replace(signals=None)

    zero = {"effort": SignalConfig(), "height": SignalConfig(weight=0.0, gamma=0.5)}
    learners = []
    for env, signals in ((Plain(), {}), (Priced(), {}), (Priced(), zero)):
        learners.append(agent(kind, env, signals=signals))
        learners[-1].learn(20)
    for name in ("policy", "critics"):
        for found in zip(*(getattr(learner, name).parameters() for learner in learners), strict=True):
            assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("kind", AGENTS)
def test_the_target_has_the_weighted_sum(kind: Any) -> None:
    """The same as if the env had added them to its reward, where the discount is that of the reward."""

    class Paid(Priced):
        def step(self, action: Tensor) -> Step:
            step = super().step(action)
            assert step.signals is not None
            return step._replace(reward=step.reward - 0.5 * step.signals["effort"] + 2 * step.signals["height"])

    weights = {"effort": SignalConfig(weight=-0.5), "height": SignalConfig(weight=2.0)}
    for settings in ({"reward_scale": 3.0}, {"normalize_reward": True}):
        batches = []
        for env, signals in ((Paid(), {}), (Priced(), weights)):
            learner = agent(kind, env, signals=signals, **settings)
            learner.learn(6)  # before the first gradient step, which rounding would set apart
            torch.manual_seed(3)
            batches.append(learner._batch(learner.replay.sample(64, 0.99, 3)))
        torch.testing.assert_close(batches[1].reward, batches[0].reward, rtol=1e-5, atol=1e-5)
    own = agent(kind, signals={"effort": SignalConfig(weight=-0.5, gamma=0.0), "height": SignalConfig(weight=2.0)})
    assert own.replay.signal_gammas.tolist() == pytest.approx([0.0, 0.99])


@pytest.mark.parametrize("kind", AGENTS)
def test_a_run_with_signals_goes_on_bitwise_and_other_signals_are_refused(kind: Any) -> None:
    signals = {"effort": SignalConfig(weight=-0.5, gamma=0.9)}
    whole = agent(kind, signals=signals)
    whole.learn(20)
    half = agent(kind, signals=signals)
    content = snapshot(half.env, half, half.learn(12))
    other = agent(kind, seed=5, signals=signals)
    progress, _ = resume(other.env, other, content)
    other.learn(20, progress=progress)
    pairs = zip(whole.critics.parameters(), other.critics.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(ConfigError, match=r"signals: .* the replay memory was saved with 1; learn from as many"):
        agent(kind).load_state_dict(content["agent"])


def test_what_cannot_be_is_named_and_what_is_no_number_left_out() -> None:
    with pytest.raises(
        ConfigError, match=r"signals\.effort\.gae_lambda: 0\.9 is not possible; SAC and DDPG sum n_step"
    ):
        agent(SAC, signals={"effort": SignalConfig(weight=1.0, gae_lambda=0.9)})
    with pytest.raises(ConfigError, match=r"signals\.effort\.episodic: False is not possible"):
        agent(SAC, signals={"effort": SignalConfig(weight=1.0, episodic=False)})
    with pytest.raises(ConfigError, match=r"agent\.signals: the env gives no signal 'efort'; did you mean 'effort'"):
        agent(SAC, signals={"efort": SignalConfig(weight=1.0)}).learn(1)
    dropped: list[float] = []
    sick = agent(SAC, Priced(sick=True), signals={"effort": SignalConfig(weight=-1.0)})
    sick.learn(12, on_report=lambda report: dropped.append(report.metrics["replay/dropped"]))
    assert dropped == [1.0] * 12
    assert all(torch.isfinite(value).all() for value in sick.critics.state_dict().values())
