"""Ranges and levels of episodes that are short if they fail, or if they succeed: neither is taken for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from rlcore.env import Parameter
from rlcore.envs.curriculum import Curriculum
from rlcore.envs.curriculum_config import CurriculumConfig
from rlcore.envs.randomize import ParameterRange, RandomizeConfig, Randomized
from rlcore.envs.torch_env import TorchEnv
from rlcore.stage import lent, reset_at, same_stage, stage_of
from rlcore.types import Step

EDGE = 0.7


class Walk(TorchEnv):
    """Episodes whose outcome is drawn as they begin, with a chance that falls at 0.7, and with it their length."""

    task = "Walk"
    observation_spaces: Mapping[str, spaces.Box] = {"policy": spaces.Box(-1, 1, (1,))}
    action_space: spaces.Space[Any] = spaces.Box(-1, 1, (1,))
    parameters: ClassVar[dict[str, Parameter]] = {"load": Parameter(nominal=0.35, low=0.0, high=1.0)}
    _buffers = ("steps", "load", "success", "length", "age")

    def __init__(self, num_envs: int, *, success: int, failure: int, chances: tuple[float, float] = (0.9, 0.2)):
        super().__init__(num_envs, "cpu", 0, max(success, failure))
        self.lengths, self.chances = (failure, success), chances
        self.load, self.success = torch.full((num_envs,), 0.35), torch.zeros(num_envs)
        self.length = torch.zeros(num_envs, dtype=torch.int64)
        self.age = torch.zeros(num_envs, dtype=torch.int64)

    def set_parameters(self, values: Mapping[str, Tensor], where: Tensor) -> None:
        self.load.copy_(torch.where(where, values["load"], self.load))
        self._start(where)  # an episode begins with what was drawn for it

    def _start(self, where: Tensor) -> None:
        chance = torch.where(self.load < EDGE, *self.chances)
        success = (torch.rand(self.num_envs, generator=self.generator) < chance).float()
        self.success.copy_(torch.where(where, success, self.success))
        self.length.copy_(torch.where(self.success > 0, self.lengths[1], self.lengths[0]))
        self.age.masked_fill_(where, 0)

    def step(self, action: Tensor) -> Step:
        self.age += 1
        over, obs = self.age >= self.length, {"policy": torch.zeros(self.num_envs, 1)}
        log: dict[str, Tensor | float] = {"success": self.success.clone()}
        return Step(obs, torch.zeros(self.num_envs), over, torch.zeros_like(over), obs, log)

    def _begin(self) -> dict[str, Tensor]:
        return {"policy": torch.zeros(self.num_envs, 1)}


class Staggered(Walk):
    """The same, with first episodes that begin somewhere in the middle where that is asked for."""

    randomize_start = True

    def reset(self, seed: int | None = None) -> dict[str, Tensor]:
        obs = super().reset(seed)
        if self.randomize_start:
            self.age.copy_((torch.rand(self.num_envs, generator=self.generator) * self.length).long())
        return obs


def of(env: Any, **settings: Any) -> Any:
    return Randomized(env, RandomizeConfig(**{"mode": "adr", "parameters": {"load": ParameterRange()}} | settings), 0)


def upper(env: Any, iterations: int, steps: int = 10) -> list[float]:
    action, found = torch.zeros(env.num_envs, 1), []
    for _ in range(iterations):
        for _ in range(steps):
            env.step(action)
        found.append(float(env.adapt()["randomize/load_high"]))
    return found


@pytest.mark.parametrize(("success", "failure"), [(100, 5), (5, 100)], ids=["failing ends it", "arriving ends it"])
@pytest.mark.parametrize("staggered", [False, True])
def test_a_bound_settles_where_success_ends_however_long_episodes_are(
    success: int, failure: int, staggered: bool
) -> None:
    env = of((Staggered if staggered else Walk)(512, success=success, failure=failure), boundary_episodes=10, step=0.04)
    env.reset(0)
    bounds = upper(env, 220)
    first = next(i for i, bound in enumerate(bounds) if bound > EDGE - 0.05)
    assert bounds[:first] == sorted(bounds[:first])  # on its way it never comes back
    assert first <= 150 and min(bounds[first:]) >= EDGE - 0.05 and max(bounds) <= EDGE + 0.05


def test_few_envs_with_many_ends_decide_as_well() -> None:
    class Four(Walk):
        parameters: ClassVar[dict[str, Parameter]] = {
            name: Parameter(nominal=0.5, low=0.0, high=1.0) for name in ("load", "grip", "push", "heat")
        }

    every = {name: ParameterRange() for name in Four.parameters}
    env = of(Four(64, success=20, failure=5, chances=(0.95, 0.95)), parameters=every)
    env.reset(0)
    upper(env, 150)  # in which each of 64 envs plays about five episodes at each of 8 ends, and 100 of them decide
    low, high = zip(*env.stage_dict()["randomize"].values(), strict=True)
    assert max(low) <= 0.46 + 1e-6 and min(high) >= 0.54 - 1e-6


@pytest.mark.parametrize(("success", "failure"), [(100, 5), (5, 100)], ids=["failing ends it", "arriving ends it"])
def test_a_level_is_left_when_it_is_mastered_however_long_episodes_are(success: int, failure: int) -> None:
    config = CurriculumConfig(levels=6, episodes=20, uniform=0.0, parameters={"load": [0.4, 0.9]})
    env = Curriculum(Walk(512, success=success, failure=failure), config)
    env.reset(0)
    action, levels = torch.zeros(512, 1), []
    for _ in range(100):
        for _ in range(10):
            env.step(action)
        env.adapt()
        levels.append(int(env._reached))
    first = levels.index(2)  # a load of 0.6; that of 0.7 is missed
    assert levels[:first] == sorted(levels[:first]) and first < 45
    assert {2, 3} == set(levels[first:])


@pytest.mark.parametrize(("env", "chance"), [(Walk, 0.3), (Staggered, 0.8)])
def test_doraemon_does_not_take_the_first_to_end_for_all(env: type[Walk], chance: float) -> None:
    lengths = (5, 100) if env is Walk else (100, 5)  # successes look like all that there is, or failures do
    walk = env(256, success=lengths[0], failure=lengths[1], chances=(chance, chance))  # whatever the load
    randomized = of(walk, mode="doraemon", success_rate=0.6, interval=1)
    randomized.reset(0)
    widths = []
    for _ in range(30):
        upper(randomized, 1)
        widths.append(1 / sum(randomized.stage_dict()["randomize"]["load"]))
    assert set(widths[:9]) == {widths[0]} and widths[0] == pytest.approx(1 / 200)  # until the first have all ended
    assert min(widths) >= 1 / 201 if chance > 0.7 else max(widths) < 1 / 150
    assert chance < 0.7 or widths[-1] > 10 * widths[0]


def test_episodes_that_began_in_the_middle_decide_nothing() -> None:
    for whole in (False, True):
        env = of(Staggered(64, success=40, failure=40))
        env.env.randomize_start = not whole
        env.reset(0)
        assert bool((env._ranges.played < 2).any()) == whole
    ring = of(Staggered(64, success=40, failure=40), mode="doraemon")
    ring.reset(0)
    ring.step(torch.zeros(64, 1))
    ring.adapt()
    assert ring._ranges.seen[:-1, -2].isinf().all()


def test_an_episode_that_is_broken_off_blocks_nothing_and_counts_nowhere() -> None:
    env = of(Walk(256, success=100, failure=5, chances=(0.65, 0.65)), boundary_episodes=10)
    env.reset(0)
    upper(env, 2)
    ranges = env._ranges
    assert (ranges.played > 2).any() and ranges.cohorts.sums[0].min() > 4  # failures, all of them
    env.reset()
    upper(env, 1)
    assert not ranges.cohorts.sums.any() and (ranges.played < 3).all()
    env = of(Walk(64, success=100, failure=5, chances=(1.0, 1.0)), boundary_episodes=10)
    env.reset(0)
    upper(env, 5)
    env.reset()
    assert upper(env, 30)[-1] > 0.35


@pytest.mark.parametrize("mode", ["adr", "doraemon"])
def test_a_cohort_goes_on_where_it_was_saved(mode: str) -> None:
    def made() -> Any:
        return of(Walk(64, success=30, failure=5), mode=mode, boundary_episodes=10, interval=2)

    env, other = made(), made()
    env.reset(0)
    other.reset(1)
    upper(env, 2)
    env.step(torch.zeros(64, 1))  # between two looks
    other.load_state_dict(env.state_dict())
    assert mode == "doraemon" or (env._ranges.played > 2).any()
    assert upper(env, 30) == upper(other, 30)
    assert all(torch.equal(value, other._ranges.kept[name]) for name, value in env._ranges.kept.items())


def test_a_run_that_knew_no_cohorts_goes_on_with_new_ones() -> None:
    env, other = (of(Walk(16, success=30, failure=5)) for _ in range(2))
    env.reset(0)
    upper(env, 3)
    state = env.state_dict()
    kept = state["kept"]
    kept |= {"bounds": torch.tensor([[0.2], [0.6]]), "tally": torch.zeros(2, 4, 16), "sums": torch.ones(2, 2)}
    del kept["lost"]
    other.load_state_dict(state)
    assert other.stage_dict()["randomize"]["load"] == pytest.approx([0.2, 0.6])
    assert (other._ranges.played == 2).all() and not other._ranges.cohorts.sums.any()
    upper(other, 20)
    env, other = (of(Walk(16, success=30, failure=5), mode="doraemon") for _ in range(2))
    env.reset(0)
    upper(env, 3)
    state = env.state_dict()
    del state["kept"]["first"]
    other.load_state_dict(state)
    assert torch.equal(other._ranges.seen, env._ranges.seen)
    old = CurriculumConfig(parameters={"load": [0.4, 0.9]})
    level, again = (Curriculum(Walk(16, success=30, failure=5), old) for _ in range(2))
    level.reset(0)
    saved = level.state_dict()
    kept = {name: value for name, value in saved["curriculum"].items() if not name.startswith("cohort_")}
    kept |= {"block": torch.ones(1, 2, 1), "outcomes": torch.ones(2, 10), "reached": torch.tensor([[3]])}
    again.load_state_dict({**saved, "curriculum": kept})
    assert int(again._reached) == 3 and again._cohorts is not None and (again._cohorts.of == 10).all()
    again.step(torch.zeros(16, 1))
    again.adapt()


def test_rows_that_share_a_task_play_the_same_bound() -> None:
    env = of(Walk(64, success=30, failure=5))
    env.load_stage_dict({"randomize": {"load": [0.2, 0.6]}})
    env.hold_tasks(4)
    env.draw_tasks(torch.ones(64, dtype=torch.bool))
    load, played = env.env.load.view(16, 4), env._ranges.played.view(16, 4)
    assert (load == load[:, :1]).all() and (played == played[:, :1]).all()
    for bound, value in enumerate((0.2, 0.6)):
        assert torch.equal(played == bound, torch.isclose(load, torch.tensor(value)))


@pytest.mark.parametrize("mode", ["adr", "doraemon"])
def test_an_evaluation_on_the_training_env_decides_nothing(mode: str) -> None:
    env = of(Walk(64, success=30, failure=5, chances=(0.0, 0.0)), mode=mode, boundary_episodes=5, interval=1)
    env.load_stage_dict({"randomize": {"load": [0.2, 0.6] if mode == "adr" else [20.0, 20.0]}})
    env.reset(0)
    upper(env, 1, steps=1)
    stage, action = stage_of(env), torch.zeros(64, 1)
    with lent(env, lambda obs: None):  # which cannot put its episodes back
        env.env.chances = (1.0, 1.0)
        reset_at(env, stage, 1)
        for _ in range(90):
            env.step(action)
        env.env.chances = (0.0, 0.0)
    env.adapt()
    assert same_stage(stage, stage_of(env))
    if mode == "doraemon":
        assert env._ranges.seen[:-1, -2].isinf().all()
    else:
        assert not env._ranges.cohorts.sums.any()
        upper(env, 8)
        assert env.stage_dict()["randomize"]["load"] == pytest.approx([0.28, 0.52], abs=0.05)
