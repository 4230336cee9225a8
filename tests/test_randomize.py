"""Randomization: what is drawn, ranges that follow success against what is known of them, resume bit for bit."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from rlcore import PPO, SAC, PPOConfig, SACConfig
from rlcore.config import ConfigError
from rlcore.distributions import beta_entropy_and_kl
from rlcore.env import Parameter, is_adaptive, is_randomizable, spec_of
from rlcore.envs import make_env
from rlcore.envs.classic import Pendulum
from rlcore.envs.disturb import Disturbed
from rlcore.envs.randomize import ParameterRange, RandomizeConfig, Randomized, randomized, split_randomize
from rlcore.envs.ranges import AutomaticRanges, Row
from rlcore.envs.torch_env import TorchEnv
from rlcore.networks import NetworkConfig
from rlcore.observations import choose_groups
from rlcore.resume import resume, snapshot
from rlcore.stage import reset_at, same_stage, stage_figures, stage_of, stage_text
from rlcore.train.config import with_options
from rlcore.types import Step

KNOWN = 0.7


class Threshold(TorchEnv):
    """Episodes of one step, a success where its parameter is below 0.7."""

    task = "Threshold"
    observation_spaces: Mapping[str, spaces.Box] = {"policy": spaces.Box(-1, 1, (1,))}
    action_space: spaces.Space[Any] = spaces.Box(-1, 1, (1,))
    parameters: ClassVar[dict[str, Parameter]] = {
        "load": Parameter(nominal=0.35, low=0.0, high=1.0, unit="kg"),
        "grip": Parameter(nominal=1.0, low=0.1, high=10.0),
    }
    _buffers = ("steps", "load", "grip")

    def __init__(self, num_envs: int, device: Any = "cpu", seed: int | None = None, tells: bool = True) -> None:
        super().__init__(num_envs, device, seed, 1)
        self.load, self.grip = torch.full((num_envs,), 0.35), torch.ones(num_envs)
        self.tells = tells

    def set_parameters(self, values: Mapping[str, Tensor], where: Tensor) -> None:
        for name, value in values.items():
            getattr(self, name).copy_(torch.where(where, value, getattr(self, name)))

    def step(self, action: Tensor) -> Step:
        success = (self.load < KNOWN).float()
        over = torch.ones(self.num_envs, dtype=torch.bool)
        obs = torch.rand(self.num_envs, 1, generator=self.generator)
        log: dict[str, Tensor | float] = {"success": success} if self.tells else {}
        return Step({"policy": obs}, 10 * success, over, ~over, {"policy": obs}, log)

    def _begin(self) -> dict[str, Tensor]:
        return {"policy": torch.rand(self.num_envs, 1, generator=self.generator)}


def of(env: Any, mode: str = "fixed", seed: int | None = 0, **settings: Any) -> Any:
    names = {k: v for k, v in settings.items() if not hasattr(RandomizeConfig, k)}
    others = {f"randomize.{k}": v for k, v in settings.items() if k not in names}
    config, rest = split_randomize({f"randomize.{k.replace('__', '/')}": v for k, v in names.items()} | others)
    assert config is not None and not rest
    return randomized(env, replace(config, mode=mode), seed)  # type: ignore[arg-type]


def run(env: Any, iterations: int, steps: int = 4) -> list[dict[str, float]]:
    action = torch.zeros(env.num_envs, 1)
    told = []
    for _ in range(iterations):
        for _ in range(steps):
            env.step(action)
        told.append({name: float(x) for name, x in env.adapt().items()})
    return told


def chance(stage: list[float], below: float = KNOWN) -> float:
    """Of a Beta distribution, by integration."""
    x = (np.arange(20000) + 0.5) / 20000
    density = x ** (stage[0] - 1) * (1 - x) ** (stage[1] - 1)
    return float(density[x < below].sum() / density.sum())


def entropy(a: float, b: float) -> float:
    """Of a Beta distribution over 0..1, by integration."""
    x = (np.arange(20000) + 0.5) / 20000
    density = x ** (a - 1) * (1 - x) ** (b - 1)
    density /= density.mean()
    return -float((density * np.log(density)).mean())


def test_entropy_and_divergence_of_beta_distributions() -> None:
    shapes = torch.tensor([[2.0, 1.5], [5.0, 1.0]], dtype=torch.float64)
    others = torch.tensor([[3.0, 1.0], [2.0, 4.0]], dtype=torch.float64)
    found = beta_entropy_and_kl(shapes, others)
    x = (np.arange(200000) + 0.5) / 200000
    divergence = 0.0
    for (a, b), (c, d) in zip(shapes.T.tolist(), others.T.tolist(), strict=True):
        one, two = x ** (a - 1) * (1 - x) ** (b - 1), x ** (c - 1) * (1 - x) ** (d - 1)
        one, two = one / one.mean(), two / two.mean()
        divergence += float((one * np.log(one / two)).mean())
    assert float(found[0]) == pytest.approx(entropy(2, 5) + entropy(1.5, 1), abs=1e-4)
    assert float(found[1]) == pytest.approx(divergence, rel=1e-3)


@pytest.mark.parametrize("wanted", [0.8, 0.9])
def test_doraemon_settles_at_the_wanted_success_and_the_widest_distribution(wanted: float) -> None:
    best = max(
        entropy(a, b) for a in np.geomspace(0.5, 3, 24) for b in np.geomspace(0.5, 6, 32) if chance([a, b]) >= wanted
    )
    env = of(Threshold(512), "doraemon", load=True, success_rate=wanted, interval=1)
    env.reset(0)
    run(env, 16)
    rates, widths = [], []
    for _ in range(6):
        told = run(env, 1)[0]
        stage = env.stage_dict()["randomize"]["load"]
        rates.append(chance(stage))
        widths.append(math.exp(entropy(*stage)))
        assert told["randomize/entropy"] == pytest.approx(entropy(*stage), abs=1e-3)
        low, high = told["randomize/load_low"], told["randomize/load_high"]
        assert chance(stage, low) == pytest.approx(0.05, abs=0.005)
        assert chance(stage, high) == pytest.approx(0.95, abs=0.005)
    assert max(abs(rate - wanted) for rate in rates) <= 0.03
    assert np.mean(widths) >= 0.95 * math.exp(best)


def test_doraemon_goes_back_to_where_it_succeeds_and_waits_for_episodes() -> None:
    env = of(Threshold(256), "doraemon", load=True, success_rate=0.9, interval=1)
    env.reset(0)
    first = env.stage_dict()["randomize"]["load"]
    assert sum(first) == pytest.approx(200) and first[0] / 200 == pytest.approx(0.35)
    env.adapt()  # no episode has ended
    assert env.stage_dict()["randomize"]["load"] == first
    env.load_stage_dict({"randomize": {"load": [8.0, 3.0]}})  # .38 of it succeeds
    env.reset(0)
    before = chance([8.0, 3.0])
    run(env, 8)
    after = chance(env.stage_dict()["randomize"]["load"])
    assert before < 0.45 and after > 0.87


def test_doraemon_draws_from_its_distribution() -> None:
    env = of(Threshold(4096), "doraemon", load=[0.0, 2.0], interval=1)
    env.load_stage_dict({"randomize": {"load": [2.0, 5.0]}})
    env.reset(0)
    drawn = env.env.load / 2
    assert float(drawn.mean()) == pytest.approx(2 / 7, abs=0.01)
    assert float(drawn.var()) == pytest.approx(10 / (49 * 8), rel=0.05)
    for level in (0.05, 0.2, 0.5, 0.9):
        assert float((drawn < level).float().mean()) == pytest.approx(chance([2.0, 5.0], level), abs=0.025)


def test_adr_bound_settles_where_success_ends() -> None:
    env = of(Threshold(128), "adr", load=True, boundary_episodes=40)
    env.reset(0)
    told = run(env, 60)
    bounds = [row["randomize/load_high"] for row in told[-30:]]
    assert min(bounds) >= KNOWN - 0.05 and max(bounds) <= KNOWN + 0.05
    assert told[-1]["randomize/load_low"] == 0.0
    assert told[0]["randomize/load_high"] == pytest.approx(0.37) and told[0]["randomize/success"] == 1.0


@pytest.mark.parametrize("mode", ["adr", "doraemon"])
def test_an_episode_whose_success_is_no_number_is_none_and_stops_nothing(mode: str) -> None:
    class Torn(Threshold):
        def step(self, action: Tensor) -> Step:
            step = super().step(action)
            success = step.log["success"]
            assert isinstance(success, Tensor)
            success[:2] = torch.nan  # of envs that are broken for good
            return step

    settings = {"boundary_episodes": 40} if mode == "adr" else {"interval": 1, "success_rate": 0.8}
    env = of(Torn(128), mode, load=True, **settings)
    env.reset(0)
    told = run(env, 30)
    assert all(row["randomize/success"] <= 1 for row in told)
    assert told[-1]["randomize/load_high"] > 0.6


def test_adr_plays_bounds_in_half_of_the_episodes_and_never_passes_nominal() -> None:
    env = of(Threshold(8000), "adr", load=True, grip={"range": [0.1, 10.0], "distribution": "log_uniform"})
    env.reset(0)
    assert torch.allclose(env.env.load, torch.tensor(0.35)) and torch.allclose(env.env.grip, torch.tensor(1.0))
    env.load_stage_dict({"randomize": {"load": [0.1, 0.6], "grip": [0.25, 0.75]}})
    env.reset(0)
    at = [env.env.load == 0.1, (env.env.load - 0.6).abs() < 1e-6]
    at += [(env.env.grip.log10() - x).abs() < 1e-5 for x in (-0.5, 0.5)]
    for mask in at:
        assert float(mask.float().mean()) == pytest.approx(1 / 8, abs=0.015)
    inside = ~torch.stack(at).any(0)
    assert float(inside.float().mean()) == pytest.approx(0.5, abs=0.02)
    assert float(env.env.load[inside].std()) == pytest.approx(0.5 / 12**0.5, rel=0.04)
    assert float(env.env.grip[inside].log10().std()) == pytest.approx(1 / 12**0.5, rel=0.04)
    hopeless = of(Threshold(256), "adr", load=[0.3, 0.9], success_return=11.0, boundary_episodes=10)
    hopeless.reset(0)
    run(hopeless, 5)
    low, high = hopeless.stage_dict()["randomize"]["load"]
    assert low == high == pytest.approx(0.05 / 0.6)


@pytest.mark.parametrize(("successes", "steps"), [(10, 1), (8, 1), (7, 0), (6, 0), (5, -1), (0, -1)])
@pytest.mark.parametrize("end", [0, 1])
def test_a_bound_moves_from_the_limits_of_its_success_on(end: int, successes: int, steps: int) -> None:
    """Out where it is at least ``high``, and back where it is at most ``low``; algorithm 1 of arXiv:1910.07113."""
    row = Row("load", 0.5, False)
    ranges = AutomaticRanges([row], 10, torch.device("cpu"), step=0.125, low=0.5, high=0.8, episodes=10)
    ranges.load_stage([[0.25, 0.75]])
    ranges.tally[0, end] = 1.0  # an episode of each env has ended at this bound, and none goes on
    ranges.tally[1, end, :successes] = 1.0
    told = ranges.adapt()
    assert float(told["randomize/success"]) == pytest.approx(successes / 10)
    expected = [0.25, 0.75]
    expected[end] += 0.125 * steps * (1 if end else -1)
    assert ranges.stage() == [expected]


def test_what_a_reset_breaks_off_takes_its_cohort_with_it() -> None:
    """Else the short episodes of it, which have ended, would stand for all."""
    row = Row("load", 0.5, False)
    ranges = AutomaticRanges([row], 10, torch.device("cpu"), step=0.125, low=0.5, high=0.8, episodes=12)
    ranges.played.fill_(1)  # all are at the upper bound, where four have ended before
    ranges.tally[:, 1, :4] = 1.0
    ranges.adapt()
    assert ranges.cohorts.sums.tolist() == [[0.0, 4.0], [0.0, 4.0]]
    ranges.broken_off()
    ranges.played.fill_(2)  # what begins is at no bound
    ranges.adapt()
    assert not ranges.cohorts.sums.any() and ranges.stage() == [[0.5, 0.5]]


def test_adr_does_not_count_episodes_of_a_bound_that_has_moved() -> None:
    env = of(Threshold(64), "adr", load=True, boundary_episodes=5)
    env.reset(0)
    for moved in (False, True):  # half of the first cohort goes on, and so does what began after it
        env.step(torch.zeros(64, 1))
        played = env._ranges.played.clone()
        env.adapt()
        assert (played < 2).any() and (env._ranges.played == 2).all() == moved
        low, high = env.stage_dict()["randomize"]["load"]
        assert (high > low) == moved


@pytest.mark.parametrize("mode", ["fixed", "adr", "doraemon"])
def test_an_episode_has_what_was_drawn_for_it(mode: str) -> None:
    env = of(Threshold(200), mode, load=[0.2, 0.6], grip={"range": [0.1, 10.0], "distribution": "log_uniform"})
    assert is_adaptive(env) == (mode != "fixed") and hasattr(env, "stage_dict") == (mode != "fixed")
    assert spec_of(env).observation_sizes == {"policy": 1, "dynamics": 2}
    seen = env.reset(3)["dynamics"]
    for _ in range(5):
        torch.testing.assert_close(env.env.load, 0.4 + 0.2 * seen[:, 1])  # by name
        torch.testing.assert_close(env.env.grip.log10(), seen[:, 0], atol=1e-5, rtol=0)
        step = env.step(torch.zeros(200, 1))
        assert step.final_obs is not None and torch.equal(step.final_obs["dynamics"], seen)
        assert mode == "adr" or not torch.isclose(step.obs["dynamics"], seen).all(1).any()
        seen = step.obs["dynamics"]
        if mode == "fixed":
            assert seen.abs().max() <= 1 and float(seen.std()) == pytest.approx(2 / 12**0.5, rel=0.1)


def test_only_envs_whose_episode_ended_draw_anew() -> None:
    class Uneven(Threshold):
        def step(self, action: Tensor) -> Step:
            step = super().step(action)
            return step._replace(terminated=torch.arange(self.num_envs) % 2 == 0)

    env = of(Uneven(10), load=True)
    before = env.reset(0)["dynamics"]
    step = env.step(torch.zeros(10, 1))
    assert ((step.obs["dynamics"] != before).flatten() == (torch.arange(10) % 2 == 0)).all()


def test_a_range_of_one_value_is_bitwise_the_env_with_that_value() -> None:
    bare, env = Pendulum(4, seed=0), of(Pendulum(4, seed=0), noise=[0.0, 0.0], action_delay=[0, 0])
    for t in range(210):
        if t == 0:
            first, obs = bare.reset(5), env.reset(5)
            assert torch.equal(first["policy"], obs["policy"]) and (obs["dynamics"] == 0).all()
        action = torch.randn(4, 1)
        one, other = bare.step(action), env.step(action)
        assert torch.equal(one.obs["policy"], other.obs["policy"]) and torch.equal(one.reward, other.reward)
    point = of(Threshold(3), load=[0.4, 0.4])
    point.reset()
    assert (point.env.load == 0.4).all()


def test_a_range_of_one_value_takes_nothing_from_those_that_grow() -> None:
    def made(mode: str, **more: Any) -> Any:
        told = {"randomize.mode": mode, "randomize.success_return": -1e9, "randomize.length": [0.7, 1.5], **more}
        env: Any = make_env("Pendulum", 64, seed=1, max_episode_length=3, **told)
        env.reset(1)
        return env

    settings = {"randomize.interval": 1, "randomize.episodes": 256}
    alone, beside = made("doraemon", **settings), made("doraemon", **settings, **{"randomize.mass": 1.2})
    for _ in range(10):
        for env in (alone, beside):
            for _ in range(3):
                env.step(torch.zeros(64, 1))
            env.adapt()
    assert beside._names == ("length", "mass")
    assert beside._ranges.shape[:, 1].tolist() == [1.0, 1.0]
    assert float(alone._ranges.shape.sum()) < 20
    assert torch.allclose(beside._ranges.shape[:, :1], alone._ranges.shape, rtol=1e-3)

    adr = made("adr", **{"randomize.mass": 1.2})
    played: list[Tensor] = []
    for _ in range(60):
        adr.step(torch.zeros(64, 1))
        played.append(adr._ranges.played.clone())
    numbers = torch.cat(played)
    assert sorted(numbers[numbers < 4].unique().tolist()) == [0, 2]  # the bounds of the length
    assert 0.4 < float((numbers == 4).float().mean()) < 0.6


def test_the_return_decides_where_the_env_does_not_tell_success() -> None:
    for mode in ("adr", "doraemon"):
        env = of(Threshold(16, tells=False), mode, load=True)
        env.reset(0)
        with pytest.raises(ConfigError, match=f"mode is {mode}, and Threshold does not tell .*success_return"):
            env.step(torch.zeros(16, 1))
    env = of(Threshold(16, tells=False), "adr", load=True, success_return=10.0)
    env.reset(0)
    assert run(env, 1)[0]["randomize/success"] == 1.0
    env = of(Pendulum(4, max_episode_length=3), "adr", noise=True, success_return=-30.0)
    env.reset(0)
    total = torch.zeros(4)
    for _ in range(3):
        total += env.step(torch.zeros(4, 1)).reward
    assert float(env.adapt()["randomize/success"]) == float((total >= -30).float().mean())
    assert (env._return == 0).all() and math.isnan(float(env.adapt()["randomize/success"]))
    env.step(torch.zeros(4, 1))
    assert env._return.all()
    env.reset()  # no episode has what another one earned
    assert not env._return.any()


class ToldLate(Threshold):
    """Episodes of three steps, of which the last alone tells success, as ``info["is_success"]`` may."""

    capturable = False

    def __init__(self, num_envs: int, tells: bool = True) -> None:
        super().__init__(num_envs, tells=tells)
        self.max_episode_length, self.age = 3, 0

    def step(self, action: Tensor) -> Step:
        step, self.age = super().step(action), (self.age + 1) % 3
        over = step.terminated & (self.age == 0)
        return step._replace(terminated=over, log=step.log if self.age == 0 else {})


def test_success_that_the_end_of_an_episode_tells_is_waited_for() -> None:
    env = of(ToldLate(64), "adr", load=True, boundary_episodes=10, step=0.1)
    env.reset(0)
    told = run(env, 12, steps=3)
    assert told[-1]["randomize/load_high"] > told[0]["randomize/load_high"] and told[-1]["randomize/success"] > 0.5
    silent = of(ToldLate(8, tells=False), "adr", load=True)
    silent.reset(0)
    for _ in range(3):
        silent.step(torch.zeros(8, 1))
    with pytest.raises(ConfigError, match="does not tell which episodes succeed"):
        silent.step(torch.zeros(8, 1))


@pytest.mark.parametrize("mode", ["fixed", "adr", "doraemon"])
def test_saved_and_put_back_it_goes_on_bitwise(mode: str) -> None:
    def made() -> Any:
        return of(Threshold(64), mode, None, load=True, noise=[0.0, 0.1], interval=2, boundary_episodes=8)

    env, other = made(), made()
    assert env.state_dict().keys() == {"env", "kept", "generator"}
    env.reset(1)
    other.reset(2)
    action = torch.zeros(64, 1)
    for i in range(12):
        for _ in range(3):
            step = env.step(action)
            if i >= 5:
                again = other.step(action)
                assert all(torch.equal(step.obs[g], again.obs[g]) for g in step.obs)
        if mode != "fixed":
            told = env.adapt()
            if i >= 5:
                assert all(torch.equal(x, y) for x, y in zip(told.values(), other.adapt().values(), strict=True))
        if i == 4:
            other.load_state_dict(env.state_dict())
    assert mode == "fixed" or env.stage_dict() == other.stage_dict() != made().stage_dict()


@pytest.mark.parametrize("mode", ["adr", "doraemon"])
def test_training_in_two_halves_is_training_in_one(mode: str) -> None:
    config = PPOConfig(num_steps=4, num_minibatches=1, num_epochs=1, critic_obs=("policy", "dynamics"))

    def made() -> Any:
        env = of(Threshold(32, seed=7), mode, 7, load=True, interval=2, boundary_episodes=4, success_rate=0.8)
        return PPO(env, config, seed=0)

    whole = made()
    whole.learn(12)
    half = made()
    progress = half.learn(6)
    content, rest = snapshot(half.env, half, progress), made()
    going, exact = resume(rest.env, rest, content)
    assert exact
    rest.learn(12, progress=going)
    for one, other in zip(whole.optimizers, rest.optimizers, strict=True):
        assert torch.equal(one.value, other.value)
    assert whole.env.stage_dict() == rest.env.stage_dict() != half.env.stage_dict()


def test_ranges_are_a_stage_for_any_number_of_envs() -> None:
    env, small = of(Threshold(64), "adr", load=True, boundary_episodes=8), of(Threshold(1), "adr", load=True)
    env.reset(0)
    start = stage_of(env)
    run(env, 6, steps=8)  # so few are in flight at the end of an iteration that they cannot change what it decides
    stage = stage_of(env)
    assert not same_stage(start, stage)
    assert stage is not None and stage["state"]["randomize"]["load"] == pytest.approx([0.23, 0.47])
    told = stage_figures(stage, small)["randomize/load"]
    assert (told.pop("unit"), told) == ("kg", pytest.approx({"min": 0.23, "max": 0.47}))
    assert stage_text(stage, small) == "randomize/load 0.23 to 0.47 kg"
    reset_at(small, stage, 0)
    assert same_stage(stage_of(small), {**stage, "num_envs": 1})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"the run's ranges are of load, and here of grip; .* --init-from"):
        reset_at(of(Threshold(2), "adr", grip=True), stage)


@pytest.mark.parametrize(("mode", "drawn"), [("adr", [0.0, 0.5]), ("doraemon", [2.0, 2.0])])
def test_a_stage_is_told_in_the_units_of_its_parameters(mode: str, drawn: list[float]) -> None:
    env = of(Threshold(4, seed=0), mode, load=[0.2, 3.2], grip={"range": [1.0, 16.0], "distribution": "log_uniform"})
    state = {"randomize": {"load": drawn, "grip": drawn}}
    env.load_stage_dict(state)
    told = env.adapt()  # what is logged of it
    env.load_stage_dict({"randomize": {"load": [1.0, 1.0], "grip": [1.0, 1.0]}})  # told of a stage, not of the present
    figures = stage_figures({"num_envs": 4, "clocks": [], "state": state}, env)
    for name, unit in (("load", "kg"), ("grip", "times")):
        ends = [float(told[f"randomize/{name}_{end}"]) for end in ("low", "high")]
        assert figures[f"randomize/{name}"] == {"min": ends[0], "max": ends[1], "unit": unit}
    if mode == "adr":  # half of 0.2 to 3.2, and of the logarithm of 1 to 16
        text = stage_text({"num_envs": 4, "clocks": [], "state": state}, env)
        assert text == "randomize/grip 1 to 4 times; randomize/load 0.2 to 1.7 kg"


def test_ranges_and_the_stage_of_the_env_go_together() -> None:
    class Levels(Threshold):
        clocks = ("count",)

        def __init__(self, num_envs: int, selects: bool) -> None:
            super().__init__(num_envs)
            self.levels, self.adapted = torch.zeros(num_envs), 0
            if selects:
                self.at_stage = self._at_stage

        def stage_dict(self) -> dict[str, Any]:
            return {"levels": self.levels.clone(), "count": 3}

        def load_stage_dict(self, state: dict[str, Any]) -> None:
            assert set(state) == {"levels", "count"}
            self.levels.copy_(state["levels"])

        def _at_stage(self, state: dict[str, Any]) -> Any:
            import contextlib

            self.load_stage_dict(state)
            return contextlib.nullcontext()

        def adapt(self) -> dict[str, Tensor]:
            self.adapted += 1
            return {"levels": self.levels.mean()}

    for selects in (False, True):
        env = of(Levels(4, selects), "adr", load=True, boundary_episodes=1)
        env.reset(0)
        env.env.levels.fill_(2.0)
        told = run(env, 3)
        assert env.env.adapted == 3 and told[0]["levels"] == 2.0
        stage = stage_of(env)
        assert stage is not None and stage["clocks"] == ["count"]
        other = of(Levels(4, selects), "adr", load=True)
        reset_at(other, stage)
        assert (other.env.levels == 2).all() and other.stage_dict()["randomize"] == env.stage_dict()["randomize"]
    plain = of(Levels(4, False), load=True)
    assert set(plain.stage_dict()) == {"levels", "count"} and is_adaptive(plain)


@pytest.mark.parametrize("mode", ["fixed", "adr"])
def test_the_stage_of_a_simulator_is_its_own_whatever_is_around_it(mode: str) -> None:
    class Simulator(Threshold):
        """Saves what curricula have done, and no episodes."""

        exact_state = False

        def __init__(self) -> None:
            super().__init__(4)
            self.count = 0

        def state_dict(self) -> dict[str, Any]:
            return {"common_step_counter": self.count}

        def load_state_dict(self, state: Any) -> None:
            self.count = state["common_step_counter"]

        @contextlib.contextmanager
        def at_stage(self, state: Any) -> Any:
            self.load_state_dict(state)
            yield
            self.load_state_dict(state)

    env = of(Disturbed(Simulator(), ["noise"], seed=0), mode, load=True, noise=[0.0, 0.1])
    env.env.env.count = 7
    stage = stage_of(env)
    assert stage is not None and stage["state"]["common_step_counter"] == 7
    assert set(stage["state"]) == {"common_step_counter"} | ({"randomize"} if mode == "adr" else set())
    plain = Simulator()
    reset_at(plain, stage)
    assert plain.count == 7
    other = of(Disturbed(Simulator(), ["noise"], seed=0), mode, load=True, noise=[0.0, 0.1])
    reset_at(other, stage)
    assert other.env.env.count == 7


def test_settings_that_the_mode_does_not_read_are_told() -> None:
    given = {"randomize.mass": [0.5, 1.5], "randomize.step": 0.1, "randomize.success_return": -400.0}
    both = "has no effect: env.randomize.mode is fixed, and not adr"
    for mode, told in (
        ("fixed", [f"randomize.success_return -400.0 {both} or doraemon",
                   f"randomize.step 0.1 {both}"]),
        ("adr", []),
        ("doraemon", ["randomize.step 0.1 has no effect: env.randomize.mode is doraemon, and not adr"]),
    ):  # fmt: skip
        env: Any = make_env("Pendulum", 3, seed=0, **given, **{"randomize.mode": mode})
        assert [note for note in env.notes if "effect" in note] == [f"env.{line}" for line in told]


def test_make_env_takes_ranges() -> None:
    options: dict[str, Any] = {
        "randomize.noise": [0.0, 0.1],
        "randomize.noise/angular_velocity": [0.5, 1.0],
        "randomize.action_delay": [0, 2.5],
        "randomize.push_interval": 1.0,
        "max_episode_length": 9,
    }
    env: Any = make_env("Pendulum", 3, seed=0, **options)
    assert isinstance(env, Randomized) and isinstance(env.env, Disturbed)
    assert env.env._max_delay == 3 and env.max_episode_length == 9 and env.task == "Pendulum"
    assert env.notes[-1] == (
        "randomized   action_delay 0 to 2.5 steps, noise 0 to 0.1 of the scale, "
        "noise/angular_velocity 0.5 to 1 of the term"
    )
    assert is_randomizable(env) and "noise" in env.parameters
    nested = {"randomize": {"noise": [0, 1], "mode": "adr"}, "randomize.noise.distribution": "uniform"}
    config, others = split_randomize(nested | {"costs.a.above": 1})
    assert config is not None and config.mode == "adr" and others == {"costs.a.above": 1}
    assert config.parameters == {"noise": ParameterRange(range=(0.0, 1.0))} or config.parameters["noise"].range is None
    costs = {"costs.all.observation": "policy", "randomize.noise": True}
    both = make_env("Pendulum", 2, **costs)
    both.reset()
    step = both.step(torch.zeros(2, 1))
    assert set(step.obs) == {"policy", "dynamics"} and set(step.signals or {}) == {"all"}
    for none in ({"randomize.noise": False}, {"randomize.noise": "none"}, {"randomize": "none"}, {"randomize": None}):
        off: Any = make_env("Pendulum", 2, **none)
        assert not hasattr(off, "randomized")


def test_none_takes_away_all_that_a_run_randomized() -> None:
    before = {"randomize.mode": "adr", "randomize.mass": [1, 2], "A.randomize.mass": [1, 2], "max_episode_length": 9}
    for none in ("none", "None", None, False):
        assert with_options(before, {"randomize": none}) == {"A.randomize.mass": [1, 2], "max_episode_length": 9}
    assert with_options(before, {"A.randomize": None, "randomize.mass": 1}) == {
        "randomize.mode": "adr", "randomize.mass": 1, "max_episode_length": 9,
    }  # fmt: skip


def test_ranges_that_will_not_move_in_the_time_that_is_left_are_told() -> None:
    options = {"randomize.mass": True, "randomize.length": True, "randomize.success_return": -1.0}
    slow: Any = make_env("Pendulum", 64, **options, **{"randomize.mode": "adr", "randomize.boundary_episodes": 20})
    assert slow.range_warnings(700) == []  # 64 / (4 x 2 x 200) begin in a step: 20 in 500, and the longest lasts 200
    (told,) = slow.range_warnings(699)
    assert told.startswith("it may be that no range moves: 699 steps of all envs are left") and "about 700;" in told
    more = {"randomize.mode": "adr", "randomize.boundary_episodes": 20, "randomize.noise": 0.1}
    same: Any = make_env("Pendulum", 64, **options, **more)  # one value has no ends
    assert same.range_warnings(700) == [] and len(same.range_warnings(699)) == 1
    fixed: Any = make_env("Pendulum", 64, **options)
    assert fixed.range_warnings(0) == []


def test_names_that_there_are_not_are_told_apart_from_settings() -> None:
    with pytest.raises(ConfigError, match=r"no such parameter; valid: [^;]*mass[^;]*; settings are mode, .*push_inter"):
        make_env("Pendulum", 2, **{"randomize.zzzzzz": [1, 2]})

    class Half(Threshold):
        set_parameters = property()  # type: ignore[assignment]  # of which hasattr says that there is none

    told = r"env.randomize.load: .*among the env's parameters, and not to be set without set_parameters\(values, where"
    with pytest.raises(ConfigError, match=told):
        randomized(Half(2), RandomizeConfig(parameters={"load": ParameterRange(range=(0.0, 1.0))}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nois": [0, 1]}, r"Pendulum: env.randomize.nois: there is no such parameter; did you mean 'noise'"),
        (
            {"sucess_return": 1},
            "env.randomize.sucess_return: there is no such parameter; did you mean 'success_return'",
        ),
        ({"noise/angl": [0, 1]}, r"no disturbance 'noise/angl'; did you mean 'noise/\w+angle'"),
        ({"noise": [1, 0]}, r"noise.range: \[1.0, 0.0\] is not possible; give \[low, high\] with low <= high"),
        ({"noise": [1, 2, 3]}, r"env.randomize.noise: \[1, 2, 3\] is not possible; write '\[low, high\]'"),
        ({"noise": [-1, 0]}, r"env.randomize.noise: \[-1.0, 0.0\] is not possible; give a range from 0 on"),
        ({"dropout": [0, 2]}, r"env.randomize.dropout: \[0.0, 2.0\] is not possible; give a range within 0..1"),
        ({"noise/cos_angle": True}, r"env.randomize.noise/cos_angle has no range of its own; give '\[low, high\]'"),
        ({"noise": {"distribution": "log_uniform"}}, "noise: log_uniform needs a lower limit above 0, not 0"),
        ({"noise": {"range": [0, 1], "distribution": "log_uniform"}}, "log_uniform needs low above 0"),
        ({"noise": {"rang": [0, 1]}}, r"unknown key 'noise.rang'; did you mean 'range'"),
        ({"noise": True, "mode": "ard"}, "mode: 'ard' is not one of 'fixed', 'adr', 'doraemon'"),
        ({"mode": "adr"}, r"name what is drawn: randomize.PARAMETER"),
        ({"noise": True, "narrow_below": 0.9}, "narrow_below: 0.9 is not possible; give less than widen_above, whose"),
        ({"noise": True, "widen_above": 0.4}, "randomize.widen_above: 0.4 is not possible; give more than narrow_be"),
        ({"noise": True, "narrow_below": -0.1}, "randomize.narrow_below: -0.1 is not possible; set 0 or more"),
        ({"noise": True, "success_rate": 0}, "success_rate: 0.0 is not possible"),
        ({"noise": True, "interval": 0}, "interval: 0 is not possible; set 1 or more"),
        ({"mass": [0, 1.5]}, r"Pendulum: env.randomize.mass: \[0.0, 1.5\] is not possible; give a range above 0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError if "disturbance" not in message else ValueError, match=message) as error:
        make_env("Pendulum", 2, **{f"randomize.{key}": value for key, value in options.items()})
    assert "\n" not in str(error.value)


def test_what_an_episode_reads_before_it_begins_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"randomize.command_range is read before an episode begins; give it to"):
        make_env("Reach-UR5e-JointPos", 2, **{"randomize.command_range": [0.5, 1]})


def test_a_group_of_the_same_name_is_refused() -> None:
    class Twice(Threshold):
        observation_spaces = {"dynamics": spaces.Box(-1, 1, (1,))}  # noqa: RUF012

    for mode in ("adr", "doraemon"):
        with pytest.raises(ConfigError, match=f"mode is {mode}, and of grip, load there is one value alone"):
            of(Threshold(4), mode, load=[0.5, 0.5], grip=2.0)
    with pytest.raises(ConfigError, match="has an observation group 'dynamics' already"):
        of(Twice(2), load=True)


def test_nobody_reads_dynamics_unasked_and_it_is_not_normalized() -> None:
    assert choose_groups(("state", "dynamics"), None, None) == (("state",), ("state",))
    agent = PPO(of(Threshold(8), load=True), PPOConfig(num_steps=4, num_minibatches=1), seed=0)
    assert "dynamics" not in agent.policy.groups and any("dynamics" in note for note in agent.notes)
    config = PPOConfig(num_steps=4, num_minibatches=1, critic_obs=("policy", "dynamics"))
    agent = PPO(of(Threshold(8), load=True), config, seed=0)
    agent.learn(3)
    normalizer: Any = agent.critic.normalizer
    x = torch.tensor([[0.3, 0.9]])
    assert float(normalizer(x)[0, 1]) == pytest.approx(0.9) and float(normalizer(x)[0, 0]) != pytest.approx(0.3)


def test_sac_learns_from_dynamics_of_the_step() -> None:
    net = NetworkConfig(hidden_dims=(16,))
    config = SACConfig(
        num_steps=2, buffer_size=400, batch_size=16, learning_starts=4, actor=net, critic=net,
        critic_obs=("policy", "dynamics"),
    )  # fmt: skip
    env = of(Pendulum(8, seed=0, max_episode_length=5), noise=True)
    agent = SAC(env, config, seed=0)
    agent.learn(30)
    assert agent.critic_groups == ("policy", "dynamics") and "dynamics" not in agent.policy.groups
    batch = agent.replay.sample(64, 0.99)
    assert torch.equal(batch.obs["dynamics"], batch.next_obs["dynamics"])  # of one episode, its last one included
    assert batch.obs["dynamics"].unique().numel() > 8


@pytest.mark.parametrize("options", [
    ["--env.randomize.mode", "adr", "--env.randomize.mass", "true"],
    ["--env.randomize.mode", "doraemon", "--env.randomize.mass", "true"],
    ["--env.curriculum.parameters.mass", "[0.7, 1.5]"],
])  # fmt: skip
def test_what_follows_success_where_nothing_tells_it_is_refused_before_there_is_a_run(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rlcore.train.cli import main

    words = f"train --task Pendulum --num-envs 8 --eval-envs 4 --device cpu --runs-dir {tmp_path}".split()
    assert main([*words, *options]) == 2
    said = capsys.readouterr()
    assert re.search(r"env\.(randomize|curriculum)\.success_return", said.err) and not said.out
    assert not list(tmp_path.iterdir())


def test_train_and_eval_say_what_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rlcore.train.cli import main

    words = (
        "train --task Pendulum --num-envs 8 --num-iterations 2 --agent.num-steps 8 --agent.num-minibatches 1 "
        f"--eval-envs 4 --device cpu --runs-dir {tmp_path} --name a --env.max_episode_length 20 "
        "--env.randomize.mode adr --env.randomize.success_return -100"
    )
    assert main([*words.split(), "--env.randomize.noise", "[0, 0.5]", "--env.randomize.action_delay", "true"]) == 0
    said = capsys.readouterr().out
    assert "action_delay 0 to 2 steps, noise 0 to 0.5 of the scale at most, by adr" in said
    assert "warning      it may be that no range moves: 16 steps of all envs are left" in said
    run_folder = next(tmp_path.rglob("config.yaml")).parent
    assert "randomize/noise_high" in (run_folder / "metrics.csv").read_text()
    assert main(["eval", "--run", str(run_folder), "--device", "cpu"]) == 0
    assert re.search(r"stage        trained: randomize/action_delay 0( to [\d.]+)? steps; ", capsys.readouterr().out)
    words = f"eval --run {run_folder} --device cpu --env.randomize.mode fixed --env.randomize.noise".split()
    assert main([*words, "[1, 2]"]) == 0
    said = capsys.readouterr().out
    assert "randomized   action_delay 0 to 2 steps, noise 1 to 2" in said and "stage  " not in said
    assert main(["eval", "--run", str(run_folder), "--device", "cpu", "--env.randomize", "none"]) == 0
    assert "randomize" not in capsys.readouterr().out
    assert main(["train", "--task", "Pendulum", "--help"]) == 0
    assert "randomize.PARAMETER" in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["fixed", "adr", "doraemon"])
def test_recorded_training_equals_eager_and_waits_for_nothing(mode: str) -> None:
    net = NetworkConfig(hidden_dims=(32,))
    config = PPOConfig(
        num_steps=8, num_epochs=1, num_minibatches=2, actor=net, critic=net, precision="fp32",
        critic_obs=("policy", "dynamics"),
    )  # fmt: skip
    flat, stages = [], []
    settings = {"success_return": -20.0, "interval": 2, "boundary_episodes": 4, "success_rate": 0.8}
    for capture in (True, False):
        bare = Pendulum(256, "cuda", seed=0, max_episode_length=10)
        env = of(bare, mode, 0, noise=True, bias=True, action_delay=True, **settings)
        agent = PPO(env, config, seed=0)
        agent.learn(40, capture_env=capture)
        flat.append(torch.cat([optimizer.value for optimizer in agent.optimizers]))
        stages.append(stage_of(env))
    assert torch.equal(*flat)
    assert stages[0] == stages[1]
    action = torch.zeros(256, 1, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            env.step(action)
            if mode != "fixed":
                env.adapt()
    finally:
        torch.cuda.set_sync_debug_mode("default")
