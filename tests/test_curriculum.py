"""Curricula: which level an episode is played at, what moves it on, and that nothing of it is lost or made up."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from gymnasium import spaces
from test_stage import LENGTH, LEVELS, Env
from torch import Tensor

from rlcore import PPO, SAC, ConfigError, NetworkConfig, PPOConfig, SACConfig, Step
from rlcore.checkpoint import load_checkpoint
from rlcore.env import Parameter, VecEnv
from rlcore.envs import make_env
from rlcore.envs.curriculum import Curriculum
from rlcore.envs.curriculum_config import CurriculumConfig, split_curriculum
from rlcore.envs.levels import (
    drawn,
    one_apart,
    rank_weights,
    replay_distribution,
    running_rate,
    spread,
    success_weights,
    summed,
    with_floor,
)
from rlcore.envs.torch_env import TorchEnv
from rlcore.learn import learn
from rlcore.resume import resume, snapshot
from rlcore.stage import lent, reset_at, same_stage, stage_of, stage_text, stage_where
from rlcore.train.cli import main
from rlcore.types import Obs

STRATEGIES = ("threshold", "per_env", "success", "plr")
NETWORK = NetworkConfig(hidden_dims=(8,))
SMALL = PPOConfig(num_steps=6, num_epochs=1, num_minibatches=1, actor=NETWORK, critic=NETWORK)


class Ladder(TorchEnv):
    """Name the height: an episode of ``length`` steps is a success where its last action is near it.

    ``height`` counts at once. ``start`` is drawn from as an episode begins, and is what the first observation shows.
    """

    task = "Ladder"
    _buffers: ClassVar[tuple[str, ...]] = ("steps", "height", "start", "from_here")
    parameters: ClassVar[Mapping[str, Parameter]] = {
        "height": Parameter(nominal=0.0, low=0.0, high=1.0, unit="m"),
        "start": Parameter(nominal=0.0, low=0.0, high=1.0, next_episode=True),
    }
    action_space: spaces.Space[Any] = spaces.Box(-1, 1, (1,), dtype=np.float32)

    def __init__(
        self, num_envs: int, device: str | torch.device = "cpu", seed: int | None = None, length: int = 4
    ) -> None:
        super().__init__(num_envs, device, seed, length)
        self.observation_spaces = {"policy": spaces.Box(-9, 9, (2,), dtype=np.float32)}
        self.height, self.start, self.from_here = torch.zeros(3, num_envs, device=self.device)  # [N] each

    def set_parameters(self, values: Mapping[str, Tensor], where: Tensor) -> None:
        for name, value in values.items():
            mine: Tensor = getattr(self, name)
            torch.where(where, value, mine, out=mine)

    def _see(self) -> Obs:
        return {"policy": torch.stack((self.steps / self.max_episode_length, self.from_here), 1)}

    def _begin(self) -> Obs:
        self.steps.zero_()
        self.from_here.copy_(self.start)
        return self._see()

    @torch.no_grad()
    def step(self, action: Tensor) -> Step:
        away = (action.squeeze(1).clamp(-1, 1) - self.height).abs()
        self.steps.add_(1)
        done = self.steps >= self.max_episode_length
        last = self._see()
        self.steps.masked_fill_(done, 0)
        torch.where(done, self.start, self.from_here, out=self.from_here)
        success = torch.where(done, (away < 0.3).float(), torch.nan)
        return Step(self._see(), 1 - away, done, torch.zeros_like(done), last, {"success": success})


def of(env: VecEnv, **settings: Any) -> Curriculum:
    return Curriculum(env, CurriculumConfig(**({"parameters": {"height": [0.0, 1.0]}} | settings)))


def played(env: Curriculum, action: Tensor | float = 0.0, steps: int = 4) -> Step:
    action = torch.full((env.num_envs, 1), action) if isinstance(action, float) else action
    for _ in range(steps):
        step = env.step(action)
    return step


def ended(env: Curriculum) -> tuple[int, int]:
    failures, successes = env._outcomes.sum(1).tolist()
    return int(failures + successes), int(successes)


# Formulas


def test_weights_by_success_peak_at_the_target() -> None:
    rate = torch.linspace(0, 1, 101, dtype=torch.float64)
    for target, kappa in ((0.5, 2.0), (0.5, 4.0), (0.8, 3.0)):
        weights = success_weights(rate, kappa, target)
        slow = [x ** (kappa * target) * (1 - x) ** (kappa * (1 - target)) for x in rate.tolist()]
        torch.testing.assert_close(weights, torch.tensor(slow, dtype=torch.float64), atol=2e-8, rtol=0)
        assert rate[weights.argmax()] == pytest.approx(target)
    # With nothing achieved anywhere all levels are alike, and none is lost to a division by 0.
    assert with_floor(success_weights(torch.zeros(4), 4.0, 0.5), 0.05).tolist() == pytest.approx([0.25] * 4)


def test_replay_goes_by_rank_and_age() -> None:
    score = torch.tensor([0.1, 0.7, math.inf, 0.7, 0.2], dtype=torch.float64)
    age = torch.tensor([3.0, 0.0, 1.0, 0.0, 6.0], dtype=torch.float64)
    order = sorted(range(5), key=lambda i: (-score[i], i))
    rank = [order.index(i) + 1 for i in range(5)]
    by_score = [r ** (-1 / 0.4) for r in rank]
    assert rank_weights(score, 0.4).tolist() == pytest.approx(by_score)
    slow = [0.7 * s / sum(by_score) + 0.3 * a / 10.0 for s, a in zip(by_score, age.tolist(), strict=True)]
    found = replay_distribution(score, age, 0.4, 0.3)
    assert found.tolist() == pytest.approx(slow) and found.sum() == pytest.approx(1)
    assert replay_distribution(score, 0 * age, 0.4, 0.3).tolist() == pytest.approx(
        [x / sum(by_score) for x in by_score]
    )


def test_running_rates_are_means_at_first_and_forget_what_is_older_than_the_window() -> None:
    generator = torch.Generator().manual_seed(0)
    rate, known = torch.full((3,), 0.5, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    slow: list[tuple[float, float]] = [(0.5, 0.0)] * 3
    for _ in range(9):
        episodes = torch.randint(0, 5, (3,), generator=generator).double()
        episodes[2] = 0
        successes = (episodes * torch.rand(3, generator=generator)).floor()
        rate, known = running_rate(rate, known, torch.stack((episodes, successes)), window=10)
        for i, (r, n) in enumerate(slow):
            k, s = float(episodes[i]), float(successes[i])
            slow[i] = ((n * r + s) / (n + k) if n + k else r, min(n + k, 10.0))
    assert rate.tolist() == pytest.approx([r for r, _ in slow]) and known.tolist() == [10.0, 10.0, 0.0]
    assert rate[2] == 0.5  # what nobody has tried may be what is looked for


def test_draws_and_what_stands_for_them_follow_the_probabilities() -> None:
    probabilities = with_floor(torch.tensor([0.0, 3.0, 1.0, 0.0]), 0.2)
    assert probabilities.tolist() == pytest.approx([0.05, 0.65, 0.25, 0.05])
    for levels in (spread(probabilities, 400), spread(probabilities, 1200)[::3]):
        share = torch.bincount(levels, minlength=4) / len(levels)
        assert (share - probabilities).abs().max() < 0.02
    places = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    share = torch.bincount(drawn(summed(probabilities), places), minlength=4) / 20_000
    assert (share - probabilities).abs().max() < 4 * math.sqrt(0.25 / 20_000)
    assert drawn(summed(torch.tensor([0.5, 0.4999])), torch.tensor([0.0, 0.5, 1.0])).tolist() == [0, 1, 1]  # rounding


def test_own_levels_move_by_one_on_what_tells_something() -> None:
    cases = list(itertools.product(range(4), range(4), (False, True), (False, True)))
    own, level = (torch.tensor([case[i] for case in cases]) for i in (0, 1))
    success, counted = (torch.tensor([case[i] for case in cases]) for i in (2, 3))
    for (o, at, good, counts), new in zip(cases, one_apart(own, level, success, counted, 3).tolist(), strict=True):
        step = 0
        if counts and good and at >= o:
            step = 1
        if counts and not good and at <= o:
            step = -1
        assert new == min(3, max(0, o + step))


# Episodes and their levels


def test_parameters_are_those_of_the_level_from_the_first_episode_on() -> None:
    base = Ladder(64, seed=0)
    env = of(base, strategy="success", levels=5, uniform=1.0)
    assert env.level.unique().tolist() == [0, 1, 2, 3, 4]
    env.reset(1)
    for _ in range(3):
        assert torch.equal(base.height, env.level / 4)
        levels = env.level.clone()
        played(env, 0.5, steps=3)
        assert torch.equal(env.level, levels)  # until the episode ends
        played(env, 0.5, steps=1)
        assert not torch.equal(env.level, levels)
    failures, successes = env._outcomes
    assert ended(env)[0] == 192 and (failures + successes).min() > 15
    near = torch.tensor([False, True, True, True, False])  # heights of which 0.5 is within 0.3
    assert not failures[near].any() and not successes[~near].any()


def test_a_list_is_a_value_for_each_level_and_two_are_the_ends_of_a_line() -> None:
    both = {"height": [0.0, 0.1, 1.0], "start": [2, 4]}
    assert of(Ladder(2), parameters=both).table.tolist() == [[0.0, pytest.approx(0.1), 1.0], [2.0, 3.0, 4.0]]
    assert of(Ladder(2)).table.shape == (1, 10)


def test_what_counts_from_the_next_episode_is_set_before_it_begins() -> None:
    env = of(Ladder(32, seed=0), strategy="success", parameters={"start": [0.0, 1.0]}, levels=3, uniform=1.0)
    seen = env.reset(1)["policy"][:, 1]
    changed = 0
    for _ in range(5):
        assert torch.equal(seen, env.level / 2)  # what the episode began with, although the next is set already
        before = env.level.clone()
        seen = played(env).obs["policy"][:, 1]
        changed += int((env.level != before).sum())
    assert changed > 50


@pytest.mark.parametrize("strategy", ["success", "threshold", "per_env"])
def test_what_counts_at_once_is_of_the_same_level_as_what_counts_from_the_next_episode_on(strategy: Any) -> None:
    both = {"height": [0.0, 1.0], "start": [0.0, 1.0]}
    env = of(Ladder(32, seed=0), strategy=strategy, parameters=both, levels=3, uniform=0.9)
    inner: Any = env.env
    env.reset(1)
    for t in range(60):
        env.step(torch.zeros(32, 1))
        if t % 7 == 6:
            env.adapt()
        if t % 25 == 24:
            env.reset()
        assert torch.equal(inner.height, env.level / 2), t
        assert torch.equal(inner.from_here, env.level / 2), t
    assert len(env.level.unique()) == 3
    saved = env.state_dict()
    other = of(Ladder(32, seed=3), strategy=strategy, parameters=both, levels=3, uniform=0.9)
    other.load_state_dict(saved)
    assert torch.equal(other.env.height, env.level / 2)  # type: ignore[attr-defined]
    assert torch.equal(other.step(torch.zeros(32, 1)).obs["policy"], env.step(torch.zeros(32, 1)).obs["policy"])
    assert torch.equal(other.level, env.level)


def test_what_ended_while_an_env_was_lent_does_not_count() -> None:
    env = of(Ladder(8, seed=0), strategy="success")
    env.reset(1)
    env.adapt()
    with lent(env, lambda obs: None):
        played(env, steps=9)
    assert ended(env) == (0, 0)


def test_with_one_apart_and_parameters_of_the_next_episode_levels_stay_those_played() -> None:
    env = of(Ladder(4, seed=0), strategy="per_env", parameters={"start": [0.0, 1.0]}, levels=9, uniform=0.0)
    seen = env.reset(1)["policy"][:, 1]
    for _ in range(40):
        assert torch.equal(seen, env.level / 8)
        seen = played(env, 0.0).obs["policy"][:, 1]  # a height of 0 all along: always a success
    assert env.level.tolist() == [8] * 4


# What others got wrong: first resets that promote, distances from where a robot stood, strategies that do nothing, and
# levels that no checkpoint has


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_resets_promote_nobody(strategy: Any) -> None:
    env = of(Ladder(32, seed=0), strategy=strategy, uniform=0.0)
    levels = env.level.clone()
    for seed in range(3):
        env.reset(seed)
        played(env, steps=3)
        assert ended(env) == (0, 0) and torch.equal(env.level, levels)
    if strategy != "plr":
        env.adapt()
        assert torch.equal(env.level, levels)


class Staggered(Ladder):
    randomize_start = True

    def _begin(self) -> Obs:
        super()._begin()
        if self.randomize_start:
            self.steps.copy_(torch.arange(self.num_envs) % self.max_episode_length)
        return self._see()


def test_episodes_that_began_in_the_middle_do_not_count() -> None:
    env = of(Staggered(8, seed=0), strategy="per_env", uniform=0.0)
    env.reset(1)
    played(env, 0.0, steps=4)
    assert ended(env) == (0, 0) and env.level.max() == 0
    played(env, 0.0, steps=4)
    assert ended(env) == (8, 8) and env._own.tolist() == [1] * 8
    env.env.randomize_start = False  # type: ignore[attr-defined]
    env.reset(1)
    played(env, 0.0, steps=4)
    assert ended(env) == (16, 16)


class Silent(Ladder):
    """Tells of no success."""

    capturable = False

    def step(self, action: Tensor) -> Step:
        return super().step(action)._replace(log={})


def test_an_env_without_success_is_refused_and_not_left_at_its_first_level() -> None:
    env = of(Silent(4))
    env.reset(1)
    with pytest.raises(ConfigError, match=r"Ladder: env\.curriculum\.success_return is not given, and the env tells"):
        played(env, steps=5)  # in an episode at the latest

    class Recorded(Silent):
        capturable = True

    env = of(Recorded(4))
    env.reset(1)
    with pytest.raises(ConfigError, match="success_return"):
        env.step(torch.zeros(4, 1))  # a recorded step says what it says at once


def test_returns_of_whole_episodes_are_a_success_where_nothing_else_is() -> None:
    env = of(Silent(4), strategy="per_env", success_return=3.0, uniform=0.0)
    env.reset(1)
    played(env, torch.tensor([[0.0], [0.2], [0.3], [1.0]]))  # returns of 4, 3.2, 2.8 and 0
    assert env._own.tolist() == [1, 1, 0, 0] and ended(env) == (4, 2)
    played(env, torch.tensor([[0.0], [1.0], [0.0], [0.0]]))  # from 0 anew
    assert env._own.tolist() == [2, 0, 1, 1]
    env.step(torch.zeros(4, 1))
    assert env._returns.all()
    env.reset()  # no episode has what another one earned
    assert not env._returns.any()


class Goals(Ladder):
    """Tells what share of its goals was met; the first env had none."""

    def step(self, action: Tensor) -> Step:
        step = super().step(action)
        share = torch.tensor([0.0, 0.25, 0.5, 0.75])
        return step._replace(log={"success": share, "num_goals": torch.tensor([0.0, 4.0, 4.0, 4.0])})


@pytest.mark.parametrize(("share", "own"), [(0.5, [1, 0, 2, 2]), (0.6, [1, 0, 0, 2]), (0.25, [1, 2, 2, 2])])
def test_shares_of_goals_are_a_success_from_a_share_on_and_no_goals_say_nothing(share: float, own: list[int]) -> None:
    env = of(Goals(4), strategy="per_env", success_share=share, uniform=0.0)
    env._own.fill_(1)
    env._next.fill_(1)
    env.reset(1)
    played(env)
    assert env._own.tolist() == own and ended(env) == (3, sum(x == 2 for x in own))


def test_scalars_in_the_log_stand_for_all_that_ended() -> None:
    class Scalar(Ladder):
        def step(self, action: Tensor) -> Step:
            return super().step(action)._replace(log={"success": 1.0})

    env = of(Scalar(4), strategy="per_env", uniform=0.0)
    env.reset(1)
    played(env)
    assert env._own.tolist() == [1] * 4


# Strategies


def test_the_threshold_needs_its_episodes_and_finds_its_way_back() -> None:
    env = of(Ladder(40, seed=0), levels=6, uniform=0.0)  # heights of 0, 0.2, ...
    env.reset(1)

    def after(action: float, rounds: int) -> tuple[int, float]:
        for _ in range(rounds):
            played(env, action)
            metrics = env.adapt()
        return int(env._reached), float(metrics["curriculum/level_mean"])

    assert after(0.0, 2) == (0, 0.0)  # 80 episodes
    assert after(0.0, 1) == (1, 0.0)  # 120; the episodes in flight began at level 0
    played(env, 1.0)
    env.adapt()
    assert env._cohorts is not None and not env._cohorts.sums.any()  # they were not of level 1
    assert env.level.tolist() == [1] * 40
    assert after(0.2, 3) == (2, 1.0)
    played(env, 0.2)
    assert after(1.0, 1) == (2, 2.0)
    assert after(1.0, 1) == (1, 2.0)  # a height of 0.4 is missed: 80 of 120, whatever becomes of those in flight
    played(env, 1.0)
    for name in ("level_top", "level_entropy"):
        assert env.adapt()[f"curriculum/{name}"] == 0
    assert env.adapt()["curriculum/success"].isnan()


def test_a_share_of_successes_at_its_limit_goes_up_and_does_not_go_down() -> None:
    """From 0.8 on the next level follows, and below 0.4 the one before, as the settings say."""
    env = of(Ladder(10, seed=0, length=1), levels=3, uniform=0.0, episodes=10)  # heights of 0, 0.5 and 1
    env.reset(1)

    def levels(successes: int) -> list[int]:
        """Where the curriculum stands over ten rounds of one episode in each env, or until it moves."""
        found = [int(env._reached)]
        while len(found) < 10 and found[-1] == found[0]:
            action = torch.full((10, 1), -1.0)  # which misses all
            action[:successes] = found[-1] / 2
            env.step(action)
            env.adapt()
            found.append(int(env._reached))
        return found

    assert levels(7) == [0] * 10
    assert levels(8)[-1] == 1
    assert levels(4) == levels(7) == [1] * 10
    assert levels(3)[-1] == 0


def test_the_floor_plays_every_level_at_its_share() -> None:
    for strategy in ("threshold", "per_env"):
        env = of(Ladder(2000, seed=0, length=1), strategy=strategy, levels=4, uniform=0.2)
        env.reset(1)
        counts = torch.zeros(4)
        for _ in range(4):
            env.step(-torch.ones(2000, 1))  # which misses all
            counts += torch.bincount(env.level, minlength=4)
        assert (counts / 8000 - torch.tensor([0.85, 0.05, 0.05, 0.05])).abs().max() < 0.012, strategy


def test_metrics_tell_the_distribution() -> None:
    env = of(Ladder(4), levels=4, strategy="per_env")
    env.level.copy_(torch.tensor([0, 1, 3, 3]))
    env._outcomes[:, 1] = torch.tensor([1.0, 3.0])
    found = {name.removeprefix("curriculum/"): float(value) for name, value in env.adapt().items()}
    entropy = (0.5 * math.log(2) + 2 * 0.25 * math.log(4)) / math.log(4)
    assert found == pytest.approx(
        {
            "level_mean": 1.75,
            "level_min": 0,
            "level_max": 3,
            "level_top": 0.5,
            "level_entropy": entropy,
            "success": 0.75,
            "height": 1.75 / 3,
        }
    )


class Learner(TorchEnv):
    """A learner of skill s: an episode at difficulty d succeeds with σ(s - d), and teaches where that is in .2..8."""

    task = "Learner"
    _buffers: ClassVar[tuple[str, ...]] = ("steps", "difficulty")
    parameters: ClassVar[Mapping[str, Parameter]] = {"difficulty": Parameter(nominal=0.0, low=0.0, high=10.0)}
    action_space: spaces.Space[Any] = spaces.Box(-1, 1, (1,), dtype=np.float32)

    def __init__(self, num_envs: int, seed: int) -> None:
        super().__init__(num_envs, "cpu", seed, 1)
        self.observation_spaces = {"policy": spaces.Box(0, 1, (1,), dtype=np.float32)}
        self.difficulty, self.skill = torch.zeros(num_envs), 0.0

    def set_parameters(self, values: Mapping[str, Tensor], where: Tensor) -> None:
        torch.where(where, values["difficulty"], self.difficulty, out=self.difficulty)

    def _begin(self) -> Obs:
        return {"policy": torch.zeros(self.num_envs, 1)}

    def step(self, action: Tensor) -> Step:
        chance = torch.sigmoid(self.skill - self.difficulty)
        success = (torch.rand(self.num_envs, generator=self.generator) < chance).float()
        self.skill += 0.003 * int(((chance > 0.2) & (chance < 0.8)).sum())
        done = torch.ones(self.num_envs, dtype=torch.bool)
        return Step(self._begin(), success, done, ~done, self._begin(), {"success": success})


def episodes_to_the_top(seed: int, **settings: Any) -> int:
    learner = Learner(16, seed)
    env = of(learner, parameters={"difficulty": [0, 10]}, levels=11, **settings)
    env.reset()
    for step in itertools.count(1):
        env.step(torch.zeros(16, 1))
        if learner.skill >= 10:
            return 16 * step
        if step % 4 == 0:
            env.adapt()


def test_draws_by_success_reach_the_top_in_half_the_episodes_of_uniform_ones() -> None:
    uniform = [episodes_to_the_top(seed, strategy="success", uniform=1.0) for seed in range(3)]
    for strategy in ("success", "per_env"):
        drawn_so = [episodes_to_the_top(seed, strategy=strategy) for seed in range(3)]
        assert max(drawn_so) <= 0.5 * min(uniform), (strategy, drawn_so, uniform)


# Advantages


def test_scores_are_the_mean_magnitude_of_advantages_where_they_were_played() -> None:
    env = of(Ladder(6, seed=0), strategy="plr", levels=4, uniform=0.0, average=0.25)
    env.reset(1)
    env.score_levels(6)
    generator = torch.Generator().manual_seed(0)
    score, age = [math.inf] * 4, [0.0] * 4
    for rollout in range(4):
        rows = []
        for _ in range(6):  # episodes of 4 steps end within rollouts
            rows.append(env.level.clone())
            env.step(torch.zeros(6, 1))
        level = torch.stack(rows)  # [T, N]
        advantage = torch.randn(6, 6, generator=generator) * (1 + level)
        weight = (torch.rand(6, 6, generator=generator) < 0.8).float() * 1.25
        advantage[weight == 0] = torch.nan
        env.take_advantages(advantage, weight)
        for at in range(4):
            values = [
                abs(float(a)) for a, w, x in zip(advantage.flatten(), weight.flatten(), level.flatten(), strict=True)
                if w > 0 and x == at
            ]  # fmt: skip
            age[at] = 0.0 if values else age[at] + 1
            if values:
                mean = sum(values) / len(values)
                score[at] = mean if math.isinf(score[at]) else 0.75 * score[at] + 0.25 * mean
        assert env._score.tolist() == pytest.approx(score, rel=1e-5), rollout
        assert env._age.tolist() == age
        env.adapt()
        expected = replay_distribution(torch.tensor(score), torch.tensor(age), 0.1, 0.1)
        assert env.probabilities.tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_ppo_tells_the_advantages_of_the_latest_rollout() -> None:
    env = of(Ladder(4, seed=0, length=1), strategy="plr", levels=3)
    agent = PPO(env, replace(SMALL, normalize_value=False), seed=0)
    taken: list[tuple[Tensor, Tensor]] = []
    values: list[Tensor] = []
    take, update = env.take_advantages, agent.update

    def updated() -> Any:
        with torch.no_grad():  # by the critic before it learns
            values.append(torch.stack([agent.critic(obs, (), None, {})[0] for obs in agent.rollout.data["actor_obs"]]))
        return update()

    def told(advantages: Tensor, weight: Tensor) -> None:
        taken.append((advantages, weight))
        take(advantages, weight)

    agent.update, env.take_advantages = updated, told  # type: ignore[method-assign]
    learn(env, agent, 3, seed=1)
    assert len(taken) == 3 and env._score.isfinite().all()
    advantages, weight = taken[-1]
    assert advantages.shape == (6, 4) and (weight == 1).all()
    # Episodes of one step, after which nothing follows.
    torch.testing.assert_close(advantages, agent.rollout.data["reward"] - values[-1])


def test_without_advantages_plr_is_refused_by_name(tmp_path: Path) -> None:
    env = of(Ladder(2), strategy="plr")
    agent = SAC(env, SACConfig(actor=NETWORK, critic=NETWORK), seed=0)
    with pytest.raises(ConfigError, match=r"Ladder: env\.curriculum\.strategy is 'plr'.*SAC has none; use success"):
        learn(env, agent, 1)


def test_off_policy_learns_with_the_others() -> None:
    env = of(Ladder(4, seed=0), strategy="success")
    agent = SAC(env, SACConfig(actor=NETWORK, critic=NETWORK, batch_size=8, learning_starts=16), seed=0)
    seen: list[Any] = []
    learn(env, agent, 12, on_report=lambda report: seen.append(report.metrics))
    assert any("curriculum/success" in metrics for metrics in seen)
    assert all("curriculum/level_mean" in metrics for metrics in seen)


# Kept and put back


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", ["height", "start"])
def test_two_halves_are_one_run(strategy: Any, name: str) -> None:
    def made() -> tuple[Curriculum, PPO]:
        settings = {"strategy": strategy, "levels": 5, "episodes": 20, "uniform": 0.2}
        settings |= {"parameters": {name: [0.0, 1.0]}}
        env = of(Ladder(8, seed=3), **settings)
        return env, PPO(env, SMALL, seed=3)

    env, agent = made()
    learn(env, agent, 10, seed=3)
    first, early = made()
    content = snapshot(first, early, learn(first, early, 4, seed=3))
    second, late = made()
    second.step(torch.zeros(8, 1))  # whatever it did before
    progress, exact = resume(second, late, content)
    assert exact
    learn(second, late, 10, progress=progress)
    assert same(env.state_dict(), second.state_dict())
    assert same(agent.policy.state_dict(), late.policy.state_dict())
    assert not same(first.state_dict()["curriculum"], env.state_dict()["curriculum"])


def test_stages_are_handed_on_to_any_number_of_envs_and_compared_by_what_begins() -> None:
    env = of(Ladder(64, seed=0), strategy="threshold", levels=4, episodes=50)
    env.reset(1)
    for action in (0.0, 0.0, 1 / 3, 1 / 3):
        played(env, action)
        env.adapt()
    stage = stage_of(env)
    assert int(env._reached) == 2 and stage_text(stage, env) == (
        "curriculum_level 1.969 (0 to 3); curriculum/height 0.6562 (0 to 1) m"
    )
    played(env)
    assert same_stage(stage, stage_of(env))  # further episodes at the same draws
    for number in (1, 4, 100):  # 4 is the number of levels, too
        other = of(Ladder(number), strategy="threshold", levels=4, episodes=50)
        reset_at(other, stage, 5)
        assert torch.equal(other.env.height, other.table[0, other.level])  # type: ignore[attr-defined]
        assert int(other._reached) == 2 and (other.level == 2).float().mean() > 0.9
        assert torch.equal(other._rate, env._rate)
    start, end, all_levels = stage_of(of(Ladder(8), levels=4)), stage_where(env, "end"), stage_where(env, "all")
    assert not same_stage(stage, start) and not same_stage(stage, end)
    other = of(Ladder(100), strategy="threshold", levels=4)
    for which, mean in ((start, 0.075), (end, 3.0), (all_levels, 1.5)):
        reset_at(other, which, 5)
        assert float(other.level.float().mean()) == pytest.approx(mean, abs=0.04)
        assert torch.equal(other.env.height, other.table[0, other.level])  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="the saved levels are 4, these 5"):
        reset_at(of(Ladder(8), levels=5), stage)


def test_each_env_keeps_its_own_level_in_a_stage() -> None:
    env = of(Ladder(8, seed=0), strategy="per_env", parameters={"start": [0, 1]}, levels=9)
    env._own.copy_(torch.arange(8))
    other = of(Ladder(4, seed=0), strategy="per_env", parameters={"start": [0, 1]}, levels=9)
    obs = reset_at(other, stage_of(env), 5)
    assert other.level.tolist() == [1, 3, 5, 7] and torch.equal(obs["policy"][:, 1], other.level / 8)


LADDER = f"python:{__file__}:Ladder"
TRAIN = (
    f"train --task {LADDER} --num-envs 32 --num-iterations 12 --eval-interval 4 --eval-envs 20 --no-export "
    "--device cpu "
    "--agent.num-steps 8 --env.curriculum.levels 3 --env.curriculum.episodes 40 --env.curriculum.promote 0.15 "
    "--env.curriculum.demote 0.01 --env.length 4 --env.curriculum.parameters.height [0,0.1]"
).split()


def test_a_run_evaluates_where_training_stands_and_eval_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*TRAIN, "--name", "one"]) == 0
    said = capsys.readouterr().out
    (folder,) = (tmp_path / "runs").glob("*/ppo/*-one")
    assert "curricula    stand in evaluations where training stands" in said
    assert "stage        trained: curriculum_level" in said
    header = (folder / "metrics.csv").read_text().splitlines()[0]
    wanted = ("level_mean", "level_min", "level_max", "level_top", "level_entropy", "success", "height")
    assert {f"curriculum/{name}" for name in wanted} <= set(header.split(","))
    checkpoint = load_checkpoint(folder / "checkpoints" / "best.pt")
    assert "curriculum_level" in checkpoint["stage"]["state"] and "curriculum" in checkpoint["env"]
    last = json.loads((folder / "eval.json").read_text())["stage"]
    assert last["which"] == "trained" and last["curriculum_level"]["max"] == 2
    means = {}
    for which in ("trained", "start", "end", "all"):
        assert main(["eval", "--run", str(folder), "--num-envs", "50", "--stage", which, "--device", "cpu"]) == 0
        record = json.loads((folder / "eval.json").read_text())["stage"]
        assert record["which"] == which
        means[which] = record["curriculum_level"]["mean"]
    assert means["start"] < 0.2 and means["end"] == 2.0 and means["all"] == pytest.approx(1.0, abs=0.1)
    assert means["trained"] == pytest.approx(last["curriculum_level"]["mean"], abs=0.1) and means["trained"] > 1.5
    assert "stage        end: curriculum_level 2; curriculum/height 0.1 m\n" in capsys.readouterr().out


def test_a_run_in_two_parts_is_one_and_may_be_measured_at_the_hardest_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*TRAIN, "--eval-stage", "end"]
    assert main([*words, "--name", "whole"]) == 0
    assert "curricula    stand in evaluations with all envs at the hardest level" in capsys.readouterr().out
    assert main([*words, "--name", "half", "--num-iterations", "5"]) == 0
    (whole,) = (tmp_path / "runs").glob("*/ppo/*-whole")
    (half,) = (tmp_path / "runs").glob("*/ppo/*-half")
    assert main(["train", "--resume", str(half), "--num-iterations", "12"]) == 0
    one, two = (load_checkpoint(next((run / "checkpoints").glob("*12.pt"))) for run in (whole, half))
    assert same(one["env"], two["env"]) and same(one["agent"]["policy"], two["agent"]["policy"])
    assert json.loads((whole / "eval.json").read_text())["stage"]["curriculum_level"]["min"] == 2


def test_where_there_are_no_levels_their_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="stage 'end' needs levels, and the env tells of none"):
        stage_where(make_env("CartPole", 1), "end")


# Terrain


def on_terrain(num_envs: int, types: int = 1, **settings: Any) -> Curriculum:
    return Curriculum(Env(num_envs, types), CurriculumConfig(**({"success_return": 1.0} | settings)))


def test_levels_of_terrain_are_those_that_episodes_begin_at() -> None:
    env = on_terrain(24, types=3, strategy="success", uniform=1.0)
    assert env.num_levels == LEVELS
    env.reset(1)
    core = env.core
    seen = set()
    for _ in range(4):
        assert torch.equal(core.levels, env.level)  # in spite of the task's own curriculum
        origins = core.scene.terrain.terrain_origins[env.level, core.scene.terrain.terrain_types]
        assert torch.equal(core.scene.terrain.env_origins, origins) and core.distance().eq(0).all()
        seen.add(tuple(env.level.tolist()))
        played(env, steps=LENGTH)
    assert len(seen) == 3 and ended(env) == (96, 96)  # the second was chosen as the first began: the same


def test_the_stage_of_terrain_is_the_simulators_with_what_draws_go_by() -> None:
    env = on_terrain(16, types=2, strategy="threshold", episodes=10)
    env.reset(1)
    for _ in range(8):  # episodes of a new level begin as those end that were in flight
        played(env, steps=LENGTH)
        env.adapt()
    assert int(env._reached) == 4
    stage = stage_of(env)
    other = on_terrain(6, types=2, strategy="threshold", episodes=10)
    reset_at(other, stage, 3)
    assert int(other._reached) == 4 and other.core.distance().eq(0).all()
    assert torch.equal(other.core.levels, other.level) and (other.level == 4).sum() >= 5
    reset_at(other, stage_where(other, "end"), 3)
    assert other.core.levels.tolist() == [9] * 6
    reset_at(other, stage_where(Env(6, 2), "all"), 3)  # the simulator's own, without a curriculum of ours
    assert len(set(other.core.levels.tolist())) >= 5


@pytest.mark.parametrize("bodies", [True, False])
def test_an_evaluation_on_the_training_env_leaves_levels_as_they_were(bodies: bool) -> None:
    env = on_terrain(16, strategy="success")
    env.core.sim = None if bodies else SimpleNamespace()
    env.reset(1)
    played(env, steps=LENGTH + 5)
    before, flight, stage = env._learned(), env._flight(), stage_of(env)
    with lent(env, lambda obs: None):
        reset_at(env, stage_where(env, "end"), 7)
        assert env.level.tolist() == [9] * 16
        played(env, steps=LENGTH)
        env.adapt()
    assert same(env._learned(), before) and same_stage(stage, stage_of(env))
    assert torch.equal(env.core.levels, env.level)
    if bodies:
        assert same(env._flight(), flight)


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parameters.hight": [0, 1]}, "parameters.hight: the env has no such parameter; did you mean 'height'?"),
        ({"parameters.height": 3}, "parameters.height: 3 is not possible; give .easiest, hardest."),
        ({"parameters.height": [1]}, "give .easiest, hardest., or a number for each level"),
        ({"parameters.height": [0, "a"]}, "give .easiest, hardest."),
        ({"parameters.height": [0, 1, 2], "levels": 4}, "give 2 values, or one for each of 4 levels"),
        ({"parameters.height": [0, 1, 2], "parameters.start": [0, 1, 2, 3]}, "give 2 values, or one for each of 3"),
        ({"levels": 1}, "levels: 1 is not possible; give 2 to"),
        ({"levels": 10}, "parameters: none are given, and the env has no levels of its own; give one of height, start"),
        ({"strategy": "treshold"}, "strategy: 'treshold' is not one of 'threshold'"),
        ({"kapa": 2}, "unknown key 'kapa'; did you mean 'kappa'?"),
        ({"kappa": 2}, "kappa is read by success, not by threshold; leave it out"),
        ({"strategy": "plr", "success_return": 2}, "is read by threshold and per_env and success, not by plr"),
        ({"promote": 0.3}, "curriculum.*promote: 0.3 is not possible; give more than demote, whose default is 0.4, or"),
        ({"demote": 0.9}, "demote: 0.9 is not possible; give less than promote, whose default is 0.8, or set promote"),
        ({"demote": 0.5, "promote": 0.3}, "demote: 0.5 is not possible; give less than promote, 0.3"),
        ({"uniform": 1.5}, "uniform: 1.5 is not possible; give a number from 0 to 1"),
        ({"": 3}, "env.curriculum: 3 is not possible; write curriculum.levels"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    options = {f"curriculum.{key}" if key else "curriculum": value for key, value in settings.items()}
    with pytest.raises(ConfigError, match=message):
        make_env(LADDER, 2, **options)


def test_options_are_split_off_and_the_rest_is_the_tasks() -> None:
    own = {"curriculum": {"levels": 3, "parameters": {"height": [0, 1]}}, "curriculum.parameters.noise/x": [0, 2]}
    config, rest = split_curriculum({**own, "length": 7})
    assert config.levels == 3 and config.parameters == {"height": [0, 1], "noise/x": [0, 2]} and rest == {"length": 7}
    env = make_env(LADDER, 2, **{"curriculum.parameters.height": [0, 1], "costs.all.observation": "policy"})
    assert env.reset(0) and env.step(torch.zeros(2, 1)).signals is not None
    assert env.adapt() and env.num_levels == 10  # type: ignore[attr-defined]
    assert not isinstance(make_env(LADDER, 2), Curriculum)
    with pytest.raises(ConfigError, match=r"the env has none that can be set; rlcore\.env\.Randomizable tells how"):
        make_env("Null", 2, **{"curriculum.parameters.mass": [0, 1]})
    with pytest.raises(ConfigError, match="no levels of its own; give the env has no parameters either"):
        make_env("Null", 2, **{"curriculum.levels": 4})


def test_disturbances_are_parameters_of_any_env() -> None:
    options = {"curriculum.parameters.noise": [0.0, 0.5], "curriculum.parameters.action_delay": [0, 2]}
    options |= {"curriculum.strategy": "success", "curriculum.uniform": 1.0, "curriculum.levels": 3}
    env, bare = make_env(LADDER, 30, seed=3, **options), make_env(LADDER, 30, seed=3)
    seen = env.reset(5)["policy"] - bare.reset(5)["policy"]
    level = env.level  # type: ignore[attr-defined]
    assert (seen[level == 0] == 0).all() and seen[level == 2].std() > 1.5 * seen[level == 1].std() > 0
    refused = {"curriculum.parameters.action_gain": [1, 2], "randomize.action_gain": [0.5, 2]}
    with pytest.raises(ConfigError, match=r"env\.randomize\.action_gain draws it; leave one of them out"):
        make_env(LADDER, 2, **refused)
    both = {"curriculum.parameters.height": [0, 1], "randomize.action_gain": [0.5, 2], "randomize.mode": "adr"}
    wrapped = make_env(LADDER, 4, **both)
    wrapped.reset(0)
    wrapped.step(torch.zeros(4, 1))
    assert {"curriculum/level_mean"} < set(wrapped.adapt())  # type: ignore[attr-defined]
    assert same_stage(stage_of(wrapped), stage_of(wrapped)) and reset_at(wrapped, stage_where(wrapped, "end"))
    assert wrapped.level.tolist() == [9] * 4  # type: ignore[attr-defined]


# GPU


@pytest.mark.gpu
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_recorded_rollouts_equal_those_as_written(strategy: Any) -> None:
    def trained(mode: Any) -> tuple[Any, Any]:
        env = of(Ladder(64, "cuda", seed=0), strategy=strategy, levels=5, uniform=0.2)
        agent = PPO(env, replace(SMALL, mode=mode), seed=0)
        agent.learn(20, seed=0)
        return env.state_dict(), agent.policy.state_dict()

    assert all(same(a, b) for a, b in zip(trained("graph"), trained("eager"), strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_is_asked_of_the_host(strategy: Any) -> None:
    env = of(Ladder(64, "cuda", seed=0), strategy=strategy, levels=5)
    env.reset(0)
    action = torch.zeros(64, 1, device="cuda")
    if strategy == "plr":
        env.score_levels(6)
    parts = torch.rand(2, 6, 64, device="cuda").unbind()
    env.step(action)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(6):
            env.step(action)
        if strategy == "plr":
            env.take_advantages(*parts)
        env.adapt()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_levels_of_a_mass_are_above_zero() -> None:
    with pytest.raises(ConfigError, match=r"parameters\.mass: \[0, 1\] is not possible; give values above 0"):
        make_env("Pendulum", 2, **{"curriculum.parameters.mass": [0, 1], "curriculum.success_return": -1000})
