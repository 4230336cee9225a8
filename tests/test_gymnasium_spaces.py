"""gymnasium: observations that are choices or tuples, wrappers by name, and ids of the present folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rlcore.env import spec_of
from rlcore.env_check import check_step
from rlcore.envs import make_env
from rlcore.envs.gymnasium import GymnasiumEnv
from rlcore.export import read_metadata
from rlcore.train.cli import main

SPACES: dict[str, spaces.Space[Any]] = {
    "index": spaces.Discrete(5, start=2),
    "several": spaces.MultiDiscrete([3, 2]),
    "bits": spaces.MultiBinary(4),
    "tuple": spaces.Tuple((spaces.Discrete(3), spaces.Box(-1, 1, (2,)), spaces.Dict(a=spaces.Discrete(2)))),
    "nested": spaces.Dict(
        policy=spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.Discrete(3)), critic=spaces.Discrete(4)
    ),
    "mixed": spaces.Dict(policy=spaces.Box(-1, 1, (2, 2)), goal=spaces.Discrete(4)),
}


class Choices(gymnasium.Env[Any, Any]):
    """Samples its observations; an episode has three steps."""

    def __init__(self, layout: str) -> None:
        self.observation_space, self.action_space = SPACES[layout], spaces.Discrete(2)
        self.seen: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.t = 0
        self.seen.append(self.observation_space.sample())
        return self.seen[-1], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        self.seen.append(self.observation_space.sample())
        return self.seen[-1], 0.0, False, self.t == 3, {}


class Doubled(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Twice the observation."""

    def observation(self, observation: Any) -> Any:
        return 2 * observation


@pytest.fixture(autouse=True)
def paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    yield


class OwnVectorEnv(SyncVectorEnv):
    """One that is stepped as a whole."""


@pytest.mark.filterwarnings("ignore:.*is flattened to")
@pytest.mark.parametrize("kind", [SyncVectorEnv, OwnVectorEnv])
@pytest.mark.parametrize("layout", SPACES)
def test_choices_are_one_hot_and_members_side_by_side(layout: str, kind: type[SyncVectorEnv]) -> None:
    vector = kind([lambda: Choices(layout) for _ in range(2)], autoreset_mode=AutoresetMode.SAME_STEP)
    env, space = GymnasiumEnv(vector), SPACES[layout]
    groups = dict(space.spaces) if isinstance(space, spaces.Dict) else {"policy": space}

    def expected(number: int) -> dict[str, np.ndarray[Any, Any]]:
        seen = [sub.seen[number] for sub in vector.envs]  # type: ignore[attr-defined]
        rows = {group: [x[group] if isinstance(space, spaces.Dict) else x for x in seen] for group in groups}
        return {group: np.stack([spaces.flatten(groups[group], x) for x in rows[group]]) for group in groups}

    def assert_equal(obs: Any, number: int) -> None:
        for group, values in expected(number).items():
            assert np.array_equal(obs[group].numpy(), values.astype(np.float32)), group

    sizes = spec_of(env).observation_sizes
    assert sizes == {group: spaces.flatdim(part) for group, part in groups.items()}
    assert_equal(env.reset(seed=0), -1)
    for t in range(1, 7):
        step = env.step(torch.zeros(2, dtype=torch.int64))
        check_step(env, step)
        assert step.final_obs is not None
        assert step.truncated.tolist() == [t % 3 == 0] * 2
        assert_equal(step.final_obs, -2 if t % 3 == 0 else -1)
        assert_equal(step.obs, -1)


@pytest.mark.parametrize(("task", "size"), [("FrozenLake-v1", 16), ("Blackjack-v1", 45), ("CliffWalking-v1", 48)])
def test_tasks_of_choices_are_trained_and_exported(task: str, size: int, tmp_path: Path) -> None:
    small = "--num-envs 2 --num-iterations 1 --eval-envs 2 --agent.num-steps 16 --agent.num-minibatches 1"
    assert main(["train", "--task", f"gym:{task}", *small.split(), "--env.max_episode_steps", "20"]) == 0
    (file,) = tmp_path.glob("runs/*/*/*/export/policy.onnx")
    facts = read_metadata(file)
    assert facts["observation_size"] == size
    if task.startswith("Blackjack"):
        assert [(term["name"], term["slice"]) for term in facts["observation_terms"]] == [
            ("policy_0", [0, 32]),
            ("policy_1", [32, 43]),
            ("policy_2", [43, 45]),
        ]
    assert main(["eval", "--onnx", str(file), "--num-envs", "2"]) == 0


def test_wrappers_are_given_by_name(tmp_path: Path) -> None:
    (tmp_path / "wrappers_of_mine.py").write_text(
        "import gymnasium\n"
        "class Twice(gymnasium.ObservationWrapper):\n"
        "    def observation(self, observation):\n"
        "        return 2 * observation\n"
    )
    plain = make_env("gym:Pendulum-v1", 1).reset(seed=3)["policy"]
    for names in (
        "wrappers_of_mine:Twice",
        ["wrappers_of_mine:Twice"],
        ["TimeAwareObservation", "wrappers_of_mine:Twice"],
    ):
        obs = make_env("gym:Pendulum-v1", 1, wrappers=names).reset(seed=3)["policy"]
        assert torch.equal(obs[:, :3], 2 * plain)
        assert obs.shape[1] == (4 if len(names) == 2 else 3)
    small = "--num-envs 2 --num-iterations 1 --eval-envs 2 --agent.num-steps 16 --agent.num-minibatches 1"
    words = ["--env.wrappers", "TimeAwareObservation", "wrappers_of_mine:Twice", "--env.max_episode_steps", "20"]
    assert main(["train", "--task", "gym:Pendulum-v1", *words, *small.split()]) == 0
    (run,) = tmp_path.glob("runs/*/*/*")
    assert "wrappers: TimeAwareObservation wrappers_of_mine:Twice\n" in (run / "config.yaml").read_text()
    assert main(["eval", "--run", str(run), "--num-envs", "2"]) == 0
    assert read_metadata(run / "export" / "policy.onnx")["observation_size"] == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("TimeAwareObservations", "is no wrapper of gymnasium's; did you mean TimeAwareObservation"),
        ("no_such_module:Wrapper", "wrapper 'no_such_module:Wrapper' cannot be loaded"),
        ("os:Nope", "wrapper 'os:Nope': module 'os' has no 'Nope'; it has no wrapper; write module:Class"),
        (
            "rlcore.envs.gym_wrappers:Nope",
            "module 'rlcore.envs.gym_wrappers' has no 'Nope'; its wrappers are CopyObservation",
        ),
        ("os:system", "'os:system' is no wrapper of gymnasium's; write a name"),
        ("subprocess:Popen", "'subprocess:Popen' is no wrapper"),
        ("gymnasium.wrappers.RescaleAction", "failed"),
    ],
)
def test_wrappers_that_are_none_are_refused(name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=message):
        make_env("gym:Pendulum-v1", 1, wrappers=name)
    assert main(["train", "--task", "gym:Pendulum-v1", "--env.wrappers", name]) == 2


def test_help_of_a_task_tells_of_wrappers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--task", "gym:Pendulum-v1", "--help"]) == 0
    assert "wrappers " in capsys.readouterr().out


def test_ids_of_a_module_in_the_present_folder_are_found(tmp_path: Path) -> None:
    (tmp_path / "ids_of_mine.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('Mine-v0', entry_point='gymnasium.envs.classic_control:PendulumEnv', max_episode_steps=9)\n"
    )
    try:
        env = make_env("gym:ids_of_mine:Mine-v0", 2)
        assert env.max_episode_length == 9
        assert env.reset()["policy"].shape == (2, 3)
    finally:
        gymnasium.registry.pop("Mine-v0", None)


def test_families_that_cannot_be_trained_here_say_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("Box2D", "mujoco", "jax"):
        monkeypatch.setitem(sys.modules, module, None)
    for loaded in [name for name in sys.modules if name.startswith(("gymnasium.envs.box2d", "gymnasium.envs.mujoco"))]:
        monkeypatch.delitem(sys.modules, loaded)
    assert main(["tasks"]) == 0
    lines = {line.partition(":")[0].strip(): line for line in capsys.readouterr().out.splitlines() if ": " in line}
    assert lines["not available here"].startswith(
        "not available here: HalfCheetah-Vel, HalfCheetah-Dir: the Python mod"
    )
    assert "gym:FrozenLake-v1" in lines["toy_text"]
    assert "gym:CartPole-v1" in lines["classic_control"]
    for family, remedy in (("box2d", "gymnasium[box2d]"), ("mujoco", "gymnasium[mujoco]"), ("phys2d", "'jax'")):
        assert "not available here" in lines[family]
        assert remedy in lines[family]
        assert "gym:" not in lines[family]
