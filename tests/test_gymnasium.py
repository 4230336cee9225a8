from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from rlcore import PPO, SAC, NetworkConfig, PPOConfig, SACConfig
from rlcore.env import VecEnv, spec_of
from rlcore.env_check import check_step
from rlcore.envs import make_env
from rlcore.envs.gymnasium import NO_TIME_LIMIT, GymnasiumEnv
from rlcore.envs.wrappers import Delayed
from rlcore.learn import Report


class Counter(gymnasium.Env[Any, Any]):
    """Counts its steps and episodes in its observation; truncated or terminated after ``length`` steps."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 30}

    def __init__(
        self,
        length: int = 3,
        terminates: bool = False,
        layout: str = "dict",
        reuse: bool = False,
        action: str = "discrete",
        render_mode: str | None = None,
    ) -> None:
        box = spaces.Box(-np.inf, np.inf, (2,), dtype=np.float64)
        critic = spaces.Box(-1, 100, (3,), dtype=np.int64)
        layouts: dict[str, spaces.Space[Any]] = {
            "dict": spaces.Dict({"policy": box, "critic": critic}),
            "box": box,
            "float32": spaces.Box(-np.inf, np.inf, (2,), dtype=np.float32),
            "matrix": spaces.Box(-np.inf, np.inf, (2, 2), dtype=np.float32),
            "nested": spaces.Dict({"policy": spaces.Dict({"inner": box})}),
            "text": spaces.Text(4),
            "many": spaces.Discrete(1_000_000),
        }
        actions: dict[str, spaces.Space[Any]] = {
            "discrete": spaces.Discrete(3, start=1),
            "box": spaces.Box(-1, 1, (2,), dtype=np.float64),
            "matrix": spaces.Box(-1, 1, (2, 3), dtype=np.float32),
            "multi": spaces.MultiBinary(2),
        }
        self.observation_space, self.action_space = layouts[layout], actions[action]
        self.length, self.terminates, self.layout, self.reuse = length, terminates, layout, reuse
        self.render_mode = render_mode
        self.t, self.episode = 0, -1
        self.buffer = np.zeros(2)
        self.actions: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.episode = 0, self.episode + 1
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        self.actions.append(action)
        over = self.t >= self.length
        return self._observe(), self.t / 3, over and self.terminates, over and not self.terminates, {"t": self.t}

    def render(self) -> Any:
        return np.full((4, 5, 3), self.t, dtype=np.uint8)

    def _observe(self) -> Any:
        vector = self.buffer if self.reuse else np.zeros(2, dtype=self.observation_space.dtype)
        vector[:] = self.t, self.episode
        if self.layout == "matrix":
            return np.array([[self.t, self.episode], [0, 1]], dtype=np.float32)
        return {"policy": vector, "critic": np.full(3, self.t)} if self.layout == "dict" else vector


@pytest.fixture(autouse=True)
def counter_id() -> Iterator[None]:
    gymnasium.register("RlcoreCounter-v0", entry_point=Counter)
    yield
    del gymnasium.registry["RlcoreCounter-v0"]


def sync(num_envs: int = 2, mode: AutoresetMode = AutoresetMode.SAME_STEP, **options: Any) -> VectorEnv[Any, Any, Any]:
    return SyncVectorEnv([lambda: Counter(**options) for _ in range(num_envs)], autoreset_mode=mode)


def actions_for(env: VecEnv, generator: torch.Generator) -> torch.Tensor:
    if isinstance(env.action_space, spaces.Discrete):
        return torch.randint(int(env.action_space.n), (env.num_envs,), generator=generator)
    return torch.rand(env.num_envs, *(env.action_space.shape or ()), generator=generator)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize(("env_id", "limit"), [("CartPole-v1", None), ("CartPole-v1", 12), ("Pendulum-v1", 7)])
def test_every_value_equals_single_envs_stepped_by_hand(env_id: str, limit: int | None, vectorization: str) -> None:
    options: dict[str, Any] = {} if limit is None else {"max_episode_steps": limit}
    env = make_env(f"gym:{env_id}", 3, vectorization=vectorization, **options)
    singles = [gymnasium.make(env_id, **options) for _ in range(3)]
    obs = env.reset(seed=5)["policy"]
    for i, single in enumerate(singles):
        np.testing.assert_array_equal(obs[i].numpy(), single.reset(seed=5 + i)[0])
    generator = torch.Generator().manual_seed(0)
    ends = {"terminated": 0, "truncated": 0}
    for _ in range(60):
        action = actions_for(env, generator)
        step = env.step(action)
        assert step.final_obs is not None
        for i, single in enumerate(singles):
            want_obs, want_reward, terminated, truncated, _ = single.step(action[i].numpy())
            assert bool(step.terminated[i]) == terminated
            assert bool(step.truncated[i]) == truncated
            assert step.reward[i].item() == np.float32(want_reward)
            np.testing.assert_array_equal(step.final_obs["policy"][i].numpy(), want_obs)
            ends["terminated"] += terminated
            ends["truncated"] += truncated
            if terminated or truncated:
                want_obs, _ = single.reset()
                assert not torch.equal(step.obs["policy"][i], step.final_obs["policy"][i])
            np.testing.assert_array_equal(step.obs["policy"][i].numpy(), want_obs)
    env.close()
    assert ends["terminated"] > 0 if env_id == "CartPole-v1" else ends["terminated"] == 0
    assert ends["truncated"] > 0 if limit is not None else ends["truncated"] == 0


def test_what_gymnasium_knows_of_the_env_is_told() -> None:
    pendulum = make_env("gym:Pendulum-v1", 2, max_episode_steps=50)
    assert isinstance(pendulum, VecEnv)
    spec = spec_of(pendulum)
    assert spec.task == "gym:Pendulum-v1"
    assert spec.observation_sizes == {"policy": 3}
    assert (spec.action_low, spec.action_high) == ([-2.0], [2.0])
    assert spec.deployment == {"control_dt": 0.05}
    assert pendulum.max_episode_length == 50
    assert make_env("gym:CartPole-v1", 2).max_episode_length == 500


def test_dict_keys_become_groups_as_float32_with_true_final_obs() -> None:
    env = make_env("gym:RlcoreCounter-v0", 2, length=3)
    assert {group: space.shape for group, space in env.observation_spaces.items()} == {"policy": (2,), "critic": (3,)}
    env.reset(seed=0)
    for t in (1, 2):
        step = env.step(torch.tensor([0, 1]))
        assert step.obs["critic"].tolist() == [[t] * 3] * 2
    step = env.step(torch.tensor([0, 1]))
    assert step.truncated.tolist() == [True, True]
    assert step.final_obs is not None
    assert step.final_obs["policy"].tolist() == [[3.0, 0.0]] * 2
    assert step.final_obs["critic"].tolist() == [[3.0] * 3] * 2
    assert step.obs["policy"].tolist() == [[0.0, 1.0]] * 2
    assert step.obs["critic"].tolist() == [[0.0] * 3] * 2
    for values in (*step.obs.values(), *step.final_obs.values(), step.reward):
        assert values.dtype == torch.float32
    assert step.terminated.dtype == step.truncated.dtype == torch.bool


@pytest.mark.parametrize("terminates", [True, False])
def test_time_limits_truncate_and_ends_terminate(terminates: bool) -> None:
    env = make_env("gym:RlcoreCounter-v0", 1, length=2, terminates=terminates)
    env.reset()
    env.step(torch.tensor([0]))
    step = env.step(torch.tensor([0]))
    assert (step.terminated.item(), step.truncated.item()) == (terminates, not terminates)


@pytest.mark.filterwarnings("ignore:.*share an object")  # gymnasium sees it too, but only warns
def test_final_obs_survives_an_env_that_reuses_its_observation() -> None:
    env = make_env("gym:RlcoreCounter-v0", 2, length=2, layout="box", reuse=True)
    env.reset()
    env.step(torch.tensor([0, 0]))
    step = env.step(torch.tensor([0, 0]))
    assert step.final_obs is not None
    assert step.final_obs["policy"].tolist() == [[2.0, 0.0]] * 2
    assert step.obs["policy"].tolist() == [[0.0, 1.0]] * 2


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_stored_step_is_not_changed_by_the_next(wrapped: bool) -> None:
    vector = SyncVectorEnv([lambda: Counter(layout="float32")], copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
    # Wrapped, its envs are not stepped one by one.
    env = GymnasiumEnv(gymnasium.vector.VectorWrapper(vector) if wrapped else vector)
    first_obs = env.reset()["policy"]
    step = env.step(torch.tensor([0]))
    env.step(torch.tensor([0]))
    env.step(torch.tensor([0]))  # ends the episode
    assert not wrapped or vector._observations.tolist() == [[0.0, 1.0]]  # the vector env's own memory is left alone
    assert first_obs.tolist() == [[0.0, 0.0]]
    assert step.obs["policy"].tolist() == [[1.0, 0.0]]
    assert step.final_obs is not None
    assert step.final_obs["policy"].tolist() == [[1.0, 0.0]]
    assert step.reward.item() == np.float32(1 / 3)


def test_discrete_actions_start_at_zero_here_whatever_the_env_counts_from() -> None:
    vector = sync(3)
    env = GymnasiumEnv(vector)
    assert env.action_space == spaces.Discrete(3)
    env.reset()
    env.step(torch.tensor([0, 1, 2]))
    assert [sub.actions for sub in vector.envs] == [[1], [2], [3]]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("kind", "shape", "dtype"), [("box", (2,), np.float64), ("matrix", (2, 3), np.float32)])
def test_box_actions_arrive_whole_unclipped_and_detached(kind: str, shape: tuple[int, ...], dtype: Any) -> None:
    vector = sync(2, action=kind)
    env = GymnasiumEnv(vector)
    size = int(np.prod(shape))
    assert env.action_space.shape == (size,)
    assert env.action_space.dtype == np.float32
    env.reset()
    action = torch.arange(2.0 * size).reshape(2, size).requires_grad_()
    step = env.step(action)
    given = vector.envs[1].actions[0]  # type: ignore[attr-defined]
    assert given.dtype == dtype
    np.testing.assert_array_equal(given, np.arange(size, 2 * size).reshape(shape))
    assert not step.reward.requires_grad
    with torch.no_grad():
        action.zero_()
    assert given.any()  # a copy, not the agent's memory


@pytest.mark.parametrize("action", [torch.zeros(2, 2), torch.zeros(2), torch.zeros(3, dtype=torch.int64)])
def test_a_wrong_action_is_refused(action: torch.Tensor) -> None:
    env = GymnasiumEnv(sync())
    env.reset()
    with pytest.raises(ValueError, match=r"expected torch.int64 of shape \(2,\)"):
        env.step(action)


def test_a_matrix_observation_is_flattened_with_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"'policy' of float32 and shape \(2, 2\) is flattened to 4 numbers"):
        env = GymnasiumEnv(sync(layout="matrix", length=1))
    assert env.observation_spaces["policy"].shape == (4,)
    assert env.reset()["policy"].tolist() == [[0.0, 0.0, 0.0, 1.0]] * 2
    step = env.step(torch.tensor([0, 0]))
    assert step.final_obs is not None
    assert step.final_obs["policy"].tolist() == [[1.0, 0.0, 0.0, 1.0]] * 2


def test_wrappers_make_other_observations_fit() -> None:
    env = make_env("gym:FrozenLake-v1", 2, wrappers=[gymnasium.wrappers.FlattenObservation], is_slippery=False)
    assert env.reset(seed=0)["policy"].tolist() == [[1.0] + [0.0] * 15] * 2
    assert env.step(torch.tensor([1, 2])).obs["policy"].argmax(1).tolist() == [4, 1]  # down, right


def test_bounds_beyond_float32_become_infinite() -> None:
    class Wide(Counter):
        def __init__(self) -> None:
            super().__init__(layout="box")
            largest = np.finfo(np.float64).max
            self.observation_space = spaces.Box(-largest, largest, (2,), dtype=np.float64)

    env = GymnasiumEnv(SyncVectorEnv([Wide], autoreset_mode=AutoresetMode.SAME_STEP))
    assert np.isinf(env.observation_spaces["policy"].high).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Counter(), "takes a gymnasium VectorEnv, got Counter"),
        (lambda: sync(layout="text"), "observation 'policy' is Text.*rlcore takes a Box, Discrete"),
        (lambda: sync(layout="many"), "observation 'policy' is Discrete.*1,000,000 numbers.*at most 100,000"),
        (lambda: sync(action="multi"), "MultiBinary.*not supported"),
    ],
)
def test_a_vector_env_that_cannot_work_is_refused_with_the_remedy(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        GymnasiumEnv(build())
    assert "\n" not in str(error.value)


def test_an_unstated_autoreset_mode_is_refused() -> None:
    vector = sync()
    del vector.metadata["autoreset_mode"]
    with pytest.raises(ValueError, match=r"autoreset mode is None.*SAME_STEP, NEXT_STEP or DISABLED"):
        GymnasiumEnv(vector)


def test_sub_envs_are_stepped_without_the_copies_of_their_vector_env(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(self: Any, actions: Any) -> Any:
        raise AssertionError("copies observations, and gathers infos that nobody reads")

    monkeypatch.setattr(SyncVectorEnv, "step", step)
    for env in (make_env("gym:RlcoreCounter-v0", 2), GymnasiumEnv(sync())):
        env.reset()
        assert env.step(torch.tensor([0, 1])).obs["policy"][:, 0].tolist() == [1.0, 1.0]


def test_an_observation_of_another_shape_is_refused_and_not_spread_over_its_space() -> None:
    class Short(Counter):
        def _observe(self) -> Any:
            return np.zeros(1 if self.t > 1 else 2, dtype=np.float32)

    env = GymnasiumEnv(SyncVectorEnv([lambda: Short(layout="float32")], autoreset_mode=AutoresetMode.SAME_STEP))
    env.reset()
    env.step(torch.tensor([0]))
    with pytest.raises(ValueError, match=r"observation 'policy' has shape \(1,\), its space \(2,\)"):
        env.step(torch.tensor([0]))


def record_of(vector: VectorEnv[Any, Any, Any], steps: int, env: int) -> list[tuple[Any, ...]]:
    """What one env answers, observations before and after its resets included, but for steps that are none."""
    adapter, rows = GymnasiumEnv(vector), []
    start = adapter.reset()["policy"][env].tolist()
    for _ in range(steps):
        step = adapter.step(torch.zeros(adapter.num_envs, dtype=torch.int64))
        check_step(adapter, step)
        assert step.final_obs is not None
        last, after = step.final_obs["policy"][env].tolist(), step.obs["policy"][env].tolist()
        done = bool(step.terminated[env] | step.truncated[env])
        if step.valid is not None and not step.valid[env]:
            assert not done
            assert step.reward[env] == 0
            start = after
            continue
        rows.append((start, float(step.reward[env]), bool(step.terminated[env]), bool(step.truncated[env]), last))
        start = after
    return rows


@pytest.mark.parametrize("terminates", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_every_autoreset_mode_gives_the_same_episodes(mode: AutoresetMode, wrapped: bool, terminates: bool) -> None:
    def made(mode: AutoresetMode) -> VectorEnv[Any, Any, Any]:
        lengths = (3, 5)  # so that one env goes on while the other is reset
        makers = [lambda n=n: Counter(length=n, terminates=terminates) for n in lengths]  # type: ignore[misc]
        vector = SyncVectorEnv(makers, autoreset_mode=mode)
        return gymnasium.vector.VectorWrapper(vector) if wrapped else vector  # wrapped, it steps its envs by itself

    for env in range(2):
        expected = record_of(made(AutoresetMode.SAME_STEP), 20, env)
        found = record_of(made(mode), 20, env)
        skipped = len(expected) - len(found)
        assert skipped == ((20 // (4 if env == 0 else 6)) if wrapped and mode is AutoresetMode.NEXT_STEP else 0)
        assert found == expected[: len(found)]


def test_a_vector_entry_point_is_taken_and_its_reset_rows_are_left_out_of_ppo() -> None:
    env = make_env("gym:CartPole-v1", 4, seed=0, vectorization="vector_entry_point")
    agent = PPO(env, PPOConfig(num_steps=64, num_minibatches=1, num_epochs=1, normalize_value=False), seed=0)
    reports: list[Report] = []
    agent.learn(1, on_report=reports.append)
    data = agent.rollout.data
    skipped, done = ~data["valid"], data["terminated"] | data["truncated"]
    assert skipped.any()
    assert torch.equal(skipped[1:], (done & ~skipped)[:-1])  # each follows an end, and none else does
    batch, about = agent._targets(agent.next_obs)
    assert torch.equal(batch.weight.view(64, 4) == 0, skipped)
    assert about["rollout/dropped"] == 0  # it counts what is broken
    ends, taken = int((done & ~skipped).sum()), int((~skipped).sum())
    assert reports[0].metrics["rollout/episodes"] == ends
    assert reports[0].metrics["rollout/reward"] == pytest.approx(1.0)  # of steps alone; a reset has none
    assert reports[0].metrics["rollout/episode_length"] == reports[0].metrics["rollout/episode_return"]
    assert taken + int(skipped.sum()) == 64 * 4


def test_a_late_observation_of_an_episode_is_none_of_the_one_before_with_reset_rows() -> None:
    vector = SyncVectorEnv([lambda: Counter(length=3)], autoreset_mode=AutoresetMode.NEXT_STEP)
    env = Delayed(GymnasiumEnv(gymnasium.vector.VectorWrapper(vector)), delay=2)
    env.reset()
    seen = [env.step(torch.tensor([0])).obs["policy"][0].tolist() for _ in range(8)]
    # t and episode; the fourth step begins the second episode, whose first observation is shown until others arrive
    assert seen[3:7] == [[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [3.0, 1.0]]


def test_reset_rows_weigh_nothing_in_a_replay_memory() -> None:
    makers = [lambda: gymnasium.make("Pendulum-v1", max_episode_steps=5) for _ in range(2)]
    vector = gymnasium.vector.VectorWrapper(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.NEXT_STEP))
    env = GymnasiumEnv(vector, seed=0, max_episode_length=5)
    network = NetworkConfig(hidden_dims=(8,))
    settings = SACConfig(actor=network, critic=network, learning_starts=24, buffer_size=200, batch_size=8)
    agent, reports = SAC(env, settings, seed=0), list[Report]()
    agent.learn(20, on_report=reports.append)
    rows = torch.arange(18)
    for n_step in (1, 3):
        windows = agent.replay.window(rows, torch.zeros_like(rows), 0.99, n_step)
        assert torch.equal(windows.weight == 0, rows % 6 == 5)  # after five steps comes one that is none
    assert "replay/lost" not in reports[-1].metrics
    assert "loss/value" in reports[-1].metrics
    assert reports[-1].metrics.get("replay/dropped", 0.0) == 0


def test_a_vector_env_that_drops_final_obs_is_refused_at_the_first_end() -> None:
    class Dropping(gymnasium.vector.VectorWrapper):
        def step(self, actions: Any) -> Any:
            *values, _ = self.env.step(actions)
            return (*values, {})

    env = GymnasiumEnv(Dropping(sync(length=2)))
    env.reset()
    env.step(torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="without infos\\['final_obs'\\]"):
        env.step(torch.tensor([0, 0]))


@pytest.mark.parametrize("layout", ["box", "dict"])
def test_final_obs_given_as_one_batch_is_read_too(layout: str) -> None:
    class Batching(gymnasium.vector.VectorWrapper):
        def step(self, actions: Any) -> Any:
            *values, infos = self.env.step(actions)
            if "final_obs" in infos:
                rows = infos["final_obs"]
                keys = rows[0].keys() if layout == "dict" else ()
                batch = {key: np.stack([row[key] for row in rows]) for key in keys}
                infos = {"final_obs": batch or np.stack(list(rows))}
            return (*values, infos)

    env = GymnasiumEnv(Batching(sync(length=1, layout=layout)))
    env.reset()
    step = env.step(torch.tensor([0, 0]))
    assert step.final_obs is not None
    assert step.final_obs["policy"].tolist() == [[1.0, 0.0]] * 2
    assert step.obs["policy"].tolist() == [[0.0, 1.0]] * 2


def test_a_user_made_vector_env_works_under_its_own_name() -> None:
    env = GymnasiumEnv(sync(length=2))
    assert (env.task, env.max_episode_length, env.num_envs) == ("SyncVectorEnv", NO_TIME_LIMIT, 2)
    assert GymnasiumEnv(sync(), task="Mine", max_episode_length=3).max_episode_length == 3
    made = gymnasium.make_vec(
        "Pendulum-v1", 2, vectorization_mode="async", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP}
    )
    assert isinstance(made, AsyncVectorEnv)
    env = GymnasiumEnv(made)
    assert (env.task, env.max_episode_length) == ("gym:Pendulum-v1", 200)
    env.close()


def test_a_seed_repeats_the_rollout_and_counts_once() -> None:
    env, seeded = make_env("gym:CartPole-v1", 2), make_env("gym:CartPole-v1", 2, seed=3)
    first = env.reset(seed=3)["policy"]
    assert torch.equal(first, seeded.reset()["policy"])
    assert not torch.equal(first, seeded.reset()["policy"])
    runs = []
    for _ in range(2):
        env.reset(seed=11)
        runs.append(torch.stack([env.step(torch.tensor([0, 1])).obs["policy"] for _ in range(60)]))
    assert torch.equal(runs[0], runs[1])


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_render_shows_env_0(vectorization: str) -> None:
    options: dict[str, Any] = {"vectorization": vectorization, "render_mode": "rgb_array"}
    env: Any = make_env("gym:RlcoreCounter-v0", 2, **options)
    env.reset()
    env.step(torch.tensor([0, 0]))
    picture = env.render()
    assert picture.shape == (4, 5, 3)
    assert picture.dtype == np.uint8
    assert (picture == 1).all()
    env.close()


def test_render_without_a_render_mode_says_how() -> None:
    env: Any = make_env("gym:RlcoreCounter-v0", 2)
    with pytest.raises(ValueError, match="make the env with render_mode='rgb_array'"):
        env.render()


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("gym:CartPol-v1", {}, "CartPol.*Did you mean: `CartPole`.*rlcore tasks"),
        ("gym:CartPole-v99", {}, "v99.*`v1`"),
        ("gym:no_such_module:Foo-v0", {}, "no_such_module"),
        ("gym:Nowhere/Foo-v0", {}, "Namespace Nowhere not found"),
        ("gym:CartPole-v1", {"sutton": True}, "unknown option 'sutton'.*sutton_barto_reward.*max_episode_steps"),
        ("gym:CartPole-v1", {"vector_kwargs": {}}, "unknown option 'vector_kwargs'"),
        ("gym:CartPole-v1", {"sutton_barto_reward": "no"}, "option sutton_barto_reward is 'no'; give True or False"),
        ("gym:CartPole-v1", {"vectorization_mode": "sync"}, "'vectorization_mode': did you mean vectorization"),
        ("gym:CartPole-v1", {"vectorization": "threads"}, "vectorization is 'threads'; use 'sync'"),
    ],
)
def test_a_gymnasium_id_that_cannot_be_made_gives_one_line(task: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make_env(task, 2, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (
            gymnasium.error.DependencyNotInstalled('MuJoCo is not installed, run `pip install "gymnasium[mujoco]"`'),
            "the Python module 'mujoco' is not installed; run: pip install \"gymnasium[mujoco]\"",
        ),
        (
            ModuleNotFoundError("No module named 'imageio'", name="imageio"),
            "the Python module 'imageio' is not installed; run: pip install \"gymnasium[mujoco]\"",
        ),
        (
            ModuleNotFoundError("No module named 'robot_parts.arm'", name="robot_parts.arm"),
            "the Python module 'robot_parts' is not installed, and the task needs it",
        ),
        (gymnasium.error.DependencyNotInstalled("Box2D is not installed, do this"), "Box2D is not installed, do this"),
    ],
)
def test_what_is_not_installed_is_named_with_its_remedy_and_the_task_not_blamed(
    raised: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(gymnasium, "make_vec", missing)
    with pytest.raises(ValueError) as error:
        make_env("gym:HalfCheetah-v5", 2)
    assert str(error.value) == f"gym:HalfCheetah-v5: {message}"


def test_imageio_is_missed_beside_mujoco(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco")
    pytest.importorskip("glfw")
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.mujoco")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "imageio", None)
    with pytest.raises(ValueError, match=r"'imageio' is not installed; run: pip install \"gymnasium\[mujoco\]\"$"):
        make_env("gym:HalfCheetah-v5", 2)


@pytest.mark.gpu
def test_values_move_to_the_device() -> None:
    env = make_env("gym:CartPole-v1", 2, device="cuda")
    assert env.device == env.reset(seed=0)["policy"].device
    step = env.step(torch.tensor([0, 1], device="cuda"))
    assert step.final_obs is not None
    for values in (step.obs["policy"], step.reward, step.terminated, step.truncated, step.final_obs["policy"]):
        assert values.device == env.device


class Faulty(Counter):
    """Fails in the way that it is told to."""

    def __init__(self, where: str) -> None:
        super().__init__(layout="float32")
        self.where = where
        if where == "making it":
            raise RuntimeError("no license")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        observation, info = super().reset(seed=seed)
        return (observation, info) if self.where != "reset()" else (observation, info, None)

    def step(self, action: Any) -> Any:
        return super().step(action) if self.where != "step()" else self.nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("where", "fault"),
    [("making it", "RuntimeError: no license"), ("reset()", "ValueError: "), ("step()", "AttributeError: .*nothing")],
)
def test_what_fails_in_an_env_is_told_with_the_name_of_the_task(where: str, fault: str) -> None:
    gymnasium.register("Faulty-v0", entry_point=Faulty, max_episode_steps=5, disable_env_checker=True)
    try:
        with pytest.raises(ValueError, match=rf"gym:Faulty-v0: {re.escape(where)} failed in the env: {fault}.*correct"):
            env = make_env("gym:Faulty-v0", 2, where=where)
            env.reset(seed=0)
            env.step(torch.zeros(2, dtype=torch.int64))
    finally:
        gymnasium.registry.pop("Faulty-v0")


def test_an_id_of_a_vector_env_alone_is_made_and_its_options_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.envs.registration.registry))
    gymnasium.register("VectorAlone-v0", vector_entry_point="gymnasium.envs.classic_control.cartpole:CartPoleVectorEnv")
    env = make_env("gym:VectorAlone-v0", 3, vectorization="vector_entry_point")
    assert env.reset(0)["policy"].shape == (3, 4)
    with pytest.raises(ValueError, match="option sutton_barto_reward is 'no'"):
        make_env("gym:VectorAlone-v0", 3, vectorization="vector_entry_point", sutton_barto_reward="no")
