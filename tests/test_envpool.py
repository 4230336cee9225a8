"""Pools of envpool's: a stand-in that behaves as they do, and the library itself where it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from rlcore import PPO, PPOConfig
from rlcore.env_check import check_step
from rlcore.envs import make_env
from rlcore.envs.envpool import with_reset_seed
from rlcore.envs.gymnasium import NO_TIME_LIMIT, GymnasiumEnv
from rlcore.learn import Report
from rlcore.train.cli import main
from rlcore.train.defaults import shipped_config

needs_envpool = pytest.mark.skipif(importlib.util.find_spec("envpool") is None, reason="envpool is not installed")


class PoolSpec:
    """Settings of a pool."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = SimpleNamespace(**config, _fields=tuple(config))

    @staticmethod
    def gen_config(**config: Any) -> dict[str, Any]:
        return config


class CountingPool(VectorEnv[Any, Any, Any]):
    """Env i ends after ``i + 2`` steps: terminated if i is even, else truncated. Seeds are fixed as it is made."""

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012  as the base has it

    def __init__(self, spec: PoolSpec) -> None:
        self.spec: Any = spec
        self.ended = np.zeros(spec.config.num_envs, np.bool_)
        self.config = {name: value for name, value in vars(spec.config).items() if name != "_fields"}
        self.num_envs = self.config["num_envs"]
        self.all_env_ids = np.arange(self.num_envs)
        box = spaces.Box(-np.inf, np.inf, (3,), dtype=np.float64)
        named = spaces.Dict({"position": box, "room": spaces.Discrete(4)})
        actions = {"discrete": spaces.Discrete(3), "box": spaces.Box(-1, 1, (2,), dtype=np.float64)}
        self.single_observation_space = named if self.config["named"] else box
        self.single_action_space = actions[self.config["action"]]
        self.is_open = True
        self.generator = np.random.default_rng(self.config["seed"])
        self.numbers = np.zeros((self.num_envs, 3))  # steps, the last action, something random of the episode

    send = recv = None

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        assert seed is None  # the library warns of one, and ignores it
        where = (options or {}).get("reset_mask", np.full(self.num_envs, True))
        assert where.any()  # of none the library complains
        self.begin(where)
        obs = self.observation()
        rows = {name: x[where] for name, x in obs.items()} if isinstance(obs, dict) else obs[where]
        return rows, {"env_id": self.all_env_ids[where]}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        assert self.is_open
        assert actions.dtype == self.single_action_space.dtype
        ended = self.ended.copy()
        self.numbers[:, 0] += 1
        self.numbers[:, 1] = actions.reshape(self.num_envs, -1)[:, 0]
        self.begin(ended)  # the step after an end has neither action nor reward
        self.ended = self.numbers[:, 0] == self.all_env_ids + 2
        even = self.all_env_ids % 2 == 0
        return self.observation(), np.where(ended, 0.0, 1.0), self.ended & even, self.ended & ~even, {}

    def begin(self, where: Any) -> None:
        self.ended = np.zeros(self.num_envs, np.bool_)
        self.numbers[where] = 0.0
        self.numbers[where, 2] = self.generator.random(where.sum())

    def observation(self) -> Any:
        """The same memory each time, as is worst."""
        return {"position": self.numbers, "room": np.full(self.num_envs, 2)} if self.config["named"] else self.numbers

    def close_extras(self, **_: Any) -> None:
        self.is_open = False


class DeepMindPool:
    """One of another ``env_type``."""

    config: ClassVar[dict[str, Any]] = {"num_envs": 2}
    all_env_ids = send = recv = None


DEFAULTS = {"num_envs": 3, "batch_size": 3, "seed": 42, "env_seed": [], "max_episode_steps": 9}


def pool_of(num_envs: int = 3, **settings: Any) -> CountingPool:
    config = DEFAULTS | {"num_envs": num_envs, "batch_size": num_envs, "action": "discrete", "named": False} | settings
    return CountingPool(PoolSpec(PoolSpec.gen_config(**config)))


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    def make(env_id: str, env_type: str, **options: Any) -> CountingPool:
        assert (env_id, env_type) == ("Count-v1", "gymnasium")
        wrong = [name for name in options if name not in DEFAULTS]
        if wrong:
            raise TypeError(f"Config.__new__() got an unexpected keyword argument '{wrong[0]}'")
        return pool_of(**options)

    def make_for_me(num_envs: int, seed: int = 42, named: bool = False) -> CountingPool:
        return pool_of(num_envs, seed=seed, named=named)

    module, mine = ModuleType("envpool"), ModuleType("pools_of_mine")
    vars(module).update(make=make, list_all_envs=lambda: ["Count-v1"], make_spec=lambda _: pool_of().spec)
    vars(mine).update(make=make_for_me, other=lambda: pool_of())
    monkeypatch.setitem(sys.modules, "envpool", module)
    monkeypatch.setitem(sys.modules, "pools_of_mine", mine)
    yield module


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("action", ["discrete", "box"])
def test_the_row_in_which_a_pool_resets_is_no_step_and_the_last_observation_is_kept(action: str, named: bool) -> None:
    pool = pool_of(action=action, named=named)
    env = GymnasiumEnv(pool)
    assert env.max_episode_length == 9
    group = "position" if named else "policy"
    seen = env.reset()[group]
    t, ended = torch.zeros(3), torch.zeros(3, dtype=torch.bool)
    assert torch.equal(seen[:, 0], t)
    length = torch.arange(3) + 2
    for i in range(12):
        chosen = torch.full((3,), i % 3) if action == "discrete" else torch.full((3, 2), i / 12)
        step = env.step(chosen)
        check_step(env, step)
        t = torch.where(ended, 0.0, t + 1)
        assert step.valid is not None and step.final_obs is not None
        assert torch.equal(step.valid, ~ended)
        assert torch.equal(step.reward, (~ended).float())
        ended = (t == length) & ~ended
        assert torch.equal(step.terminated, ended & torch.tensor([True, False, True]))
        assert torch.equal(step.truncated, ended & torch.tensor([False, True, False]))
        assert torch.equal(step.obs[group][:, 0], t)
        assert torch.equal(step.final_obs[group][ended][:, 0], length[ended].float())
        acted = torch.where(step.valid, chosen.reshape(3, -1)[:, 0].float(), 0.0)
        assert torch.equal(step.obs[group][:, 1], acted)
        if named:
            assert step.obs["room"].tolist() == [[0.0, 0.0, 1.0, 0.0]] * 3
    env.close()
    assert not pool.is_open


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("named", [False, True])
def test_an_episode_may_begin_in_the_step_that_ended_another(named: bool) -> None:
    pool = pool_of(named=named)
    env: Any = GymnasiumEnv(with_reset_seed(pool, same_step=True))
    group = "position" if named else "policy"
    env.reset()
    t, length = torch.zeros(3), torch.arange(3) + 2
    for _ in range(12):
        step = env.step(torch.ones(3, dtype=torch.int64))
        check_step(env, step)
        t += 1
        ended = t == length
        assert step.valid is None and step.final_obs is not None and (step.reward == 1).all()
        assert torch.equal(step.terminated | step.truncated, ended)
        assert torch.equal(step.final_obs[group][:, 0], t)
        t = torch.where(ended, 0.0, t)
        assert torch.equal(step.obs[group][:, 0], t)
        assert torch.equal(step.obs[group][:, 1], (~ended).float())
    with pytest.raises(ValueError, match="autoreset is 'never'; use 'next_step' or 'same_step'"):
        make_env("envpool:Count-v1", 2, autoreset="never")
    trials: Any = make_env("envpool:Count-v1", 2, autoreset="same_step", trial_episodes=2)
    trials.reset(1)
    ends = torch.stack([trials.step(torch.zeros(2, dtype=torch.int64)).terminated for _ in range(8)])
    assert ends[:, 0].tolist() == [False, False, False, True] * 2  # each of its episodes has two steps


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_seed_repeats_the_episodes_though_a_pool_has_its_own(wrapped: bool) -> None:
    pool = pool_of(env_seed=[1, 2, 3])
    vars(pool)["_render_mode"] = "rgb_array"
    env = GymnasiumEnv(gymnasium.wrappers.vector.RecordEpisodeStatistics(pool) if wrapped else pool)
    first = [env.reset(seed=2**31 + 7)["policy"] for _ in range(2)]
    then = env.step(torch.zeros(3, dtype=torch.int64)).obs["policy"]
    other, again = env.reset(seed=8)["policy"], env.reset(seed=2**31 + 7)["policy"]
    assert torch.equal(first[0], first[1]) and torch.equal(first[0], again)
    assert not torch.equal(first[0], other)
    assert torch.equal(then, env.step(torch.zeros(3, dtype=torch.int64)).obs["policy"])
    present: Any = env.env.unwrapped
    assert not pool.is_open  # it was given away
    assert present.config["env_seed"] == []
    assert vars(present)["_render_mode"] == "rgb_array"


def test_a_pool_without_a_time_limit() -> None:
    assert GymnasiumEnv(pool_of(max_episode_steps=2**31 - 1)).max_episode_length == NO_TIME_LIMIT


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        (DeepMindPool(), "DeepMindPool is no gymnasium VectorEnv; make it by envpool.make"),
        (pool_of(batch_size=2), "batch_size is 2 of 3 envs; leave it out"),
        (pool_of(max_num_players=2), "max_num_players is 2; give a task of one player"),
    ],
)
def test_a_pool_that_cannot_work_is_refused_with_the_remedy(pool: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GymnasiumEnv(pool)


@pytest.mark.usefixtures("library")
def test_tasks_and_functions_of_ones_own_make_pools(capsys: pytest.CaptureFixture[str]) -> None:
    for task, options in (
        ("envpool:Count-v1", {"max_episode_steps": 7}),
        ("python:pools_of_mine:make", {"named": True}),
    ):
        env, same, other = (make_env(task, 2, seed=seed, **options) for seed in (3, 3, 4))
        assert env.task == task  # type: ignore[attr-defined]
        assert env.num_envs == 2
        obs = [next(iter(x.reset().values())) for x in (env, same, other)]
        assert torch.equal(obs[0], obs[1])
        assert not torch.equal(obs[0], obs[2])
        assert env.max_episode_length == options.get("max_episode_steps", 9)
    free = [make_env("envpool:Count-v1", 2).reset()["policy"] for _ in range(2)]
    assert not torch.equal(free[0], free[1])
    assert shipped_config("envpool:CartPole-v1") == shipped_config("gym:CartPole-v1")
    assert main(["train", "--task", "python:pools_of_mine:make", "--help"]) == 0
    assert "named" in capsys.readouterr().out


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("envpool:Cont-v1", {}, "envpool has no 'Cont-v1'; did you mean Count-v1"),
        (
            "envpool:Count-v1",
            {"max_episod_steps": 3},
            "unknown option 'max_episod_steps': did you mean max_episode_steps",
        ),
        ("envpool:Count-v1", {"batch_size": 1}, "batch_size is 1 of 2 envs"),
        ("python:pools_of_mine:other", {}, "or let a function take num_envs and return one"),
        ("python:pools_of_mine:make", {"nmed": 1}, "unknown option 'nmed': did you mean named"),
    ],
)
def test_what_cannot_be_made_is_said_in_one_line(task: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as told:
        make_env(task, 2, **options)
    assert "\n" not in str(told.value)


def test_without_the_library_its_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(ValueError, match="envpool is not installed; run: pip install envpool"):
        make_env("envpool:CartPole-v1", 2)


@needs_envpool
@pytest.mark.filterwarnings("ignore:.*precision lowered")
def test_the_library_itself_equals_a_pool_stepped_by_hand_and_is_trained_on() -> None:
    envpool: Any = importlib.import_module("envpool")
    env = make_env("envpool:CartPole-v1", 8, seed=1, max_episode_steps=15)
    hand = envpool.make("CartPole-v1", env_type="gymnasium", num_envs=8, seed=5, max_episode_steps=15)
    np.testing.assert_array_equal(env.reset(seed=5)["policy"].numpy(), hand.reset()[0])
    generator, ended, ends = torch.Generator().manual_seed(0), np.zeros(8, np.bool_), 0
    for _ in range(60):
        action = torch.randint(0, 2, (8,), generator=generator)
        step = env.step(action)
        # by hand with other actions where it resets, which take no part
        obs, reward, terminated, truncated, info = hand.step(np.where(ended, 1 - action.numpy(), action.numpy()))
        assert step.valid is not None and step.final_obs is not None
        np.testing.assert_array_equal(step.final_obs["policy"].numpy(), obs)
        np.testing.assert_array_equal(step.reward.numpy(), reward)
        np.testing.assert_array_equal(step.terminated.numpy(), terminated)
        np.testing.assert_array_equal(step.truncated.numpy(), truncated)
        np.testing.assert_array_equal(step.valid.numpy(), info["elapsed_step"] > 0)
        np.testing.assert_array_equal(step.valid.numpy(), ~ended)
        np.testing.assert_array_equal(info["env_id"], np.arange(8))
        assert not reward[ended].any()
        ended = terminated | truncated
        ends += int(ended.sum())
    assert ends > 8
    reports: list[Report] = []
    PPO(env, PPOConfig(num_steps=32, num_minibatches=2, num_epochs=1), seed=0).learn(2, on_report=reports.append)
    assert reports[-1].metrics["rollout/reward"] == pytest.approx(1.0)  # of steps alone; a reset has none
    env.close()
