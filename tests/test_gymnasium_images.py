"""gymnasium: images as groups [N, C, H, W], actions of several choices, and masks of what can be chosen."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from rlcore import SAC
from rlcore.config import ConfigError
from rlcore.env import spec_of
from rlcore.env_check import StepCheck, check_obs
from rlcore.envs import make_env
from rlcore.envs.gym_spaces import to_torch
from rlcore.envs.gymnasium import GymnasiumEnv

H, W = 10, 12


def image(*shape: int, high: int = 255, dtype: Any = np.uint8) -> spaces.Box:
    return spaces.Box(0, high, shape, dtype=dtype)


VECTOR = spaces.Box(-1, 1, (3,), dtype=np.float32)
IMAGES: dict[str, tuple[spaces.Space[Any], dict[str, int]]] = {  # and the channels of each group that is an image
    "gray": (image(H, W), {"policy": 1}),
    "channels last": (image(H, W, 3), {"policy": 3}),
    "one channel": (image(H, W, 1), {"policy": 1}),
    "channels first": (image(3, H, W), {"policy": 3}),
    "gray stack": (image(4, H, W), {"policy": 4}),
    "stack": (image(2, H, W, 3), {"policy": 6}),
    "stack of channels first": (image(2, 3, H, W), {"policy": 6}),
    "floats": (image(H, W, 3, high=1, dtype=np.float32), {"policy": 3}),
    "double precision": (image(1, H, W, high=1, dtype=np.float64), {"policy": 1}),
    "beside a vector": (spaces.Dict(camera=image(H, W, 3), policy=VECTOR), {"camera": 3}),
    "two and a choice": (spaces.Dict(a=image(H, W, 3), b=image(H, W), c=spaces.Discrete(3)), {"a": 3, "b": 1}),
}
NO_IMAGES = {
    "a board": image(7, 7, 3),
    "bits": image(H, W, 3, high=1),
    "numbers": image(H, W, 3, dtype=np.float32),
    "planes of a board": image(H, W, 5, high=1, dtype=np.float32),
    "memory": image(128),
}


class Camera(gymnasium.Env[Any, Any]):
    """Samples its observations; an episode has three steps."""

    def __init__(self, space: spaces.Space[Any], action: spaces.Space[Any] | None = None) -> None:
        self.observation_space, self.action_space = space, spaces.Discrete(2) if action is None else action
        self.seen: list[Any] = []
        self.actions: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.observation_space.seed(seed)
        self.t = 0
        self.seen.append(self.observation_space.sample())
        return self.seen[-1], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        self.t += 1
        self.seen.append(self.observation_space.sample())
        return self.seen[-1], 0.0, False, self.t == 3, {}


class OwnVectorEnv(SyncVectorEnv):
    """One that is stepped as a whole."""


def upright(picture: np.ndarray[Any, Any], channels: int) -> np.ndarray[Any, Any]:
    """``[C, H, W]``, found by where the sizes H and W are."""
    at = picture.shape.index(H)
    return np.moveaxis(picture, (at, at + 1), (-2, -1)).reshape(channels, H, W)


@pytest.mark.parametrize("kind", ["each", "together"])
@pytest.mark.parametrize("layout", IMAGES)
def test_images_become_groups_with_channels_first(layout: str, kind: str) -> None:
    space, channels = IMAGES[layout]
    parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {"policy": space}
    make = SyncVectorEnv if kind == "each" else OwnVectorEnv
    vector = make([lambda: Camera(space) for _ in range(2)], autoreset_mode=AutoresetMode.SAME_STEP)
    env = GymnasiumEnv(vector)
    spec = spec_of(env)
    assert spec.image_shapes == {group: [number, H, W] for group, number in channels.items()}
    kinds = {group: "uint8" if parts[group].dtype == np.uint8 else "float32" for group in channels}
    assert spec.image_types == kinds
    assert spec.observation_sizes.keys() == parts.keys() - channels.keys()

    def assert_equal(obs: Any, number: int) -> None:
        assert obs.keys() == parts.keys()
        for group, values in obs.items():
            assert values.is_contiguous()
            for row, sub in zip(values, vector.envs, strict=True):
                given = sub.seen[number]  # type: ignore[attr-defined]
                given = given[group] if isinstance(space, spaces.Dict) else given
                if group in channels:
                    given = upright(given, channels[group]).astype(kinds[group])
                else:
                    given = spaces.flatten(parts[group], given).astype(np.float32)
                assert np.array_equal(row.numpy(), given), group

    obs = env.reset(seed=0)
    check_obs(env, obs, "reset")
    assert_equal(obs, -1)
    check = StepCheck(env)
    first = {group: values.clone() for group, values in obs.items()}
    for t in range(1, 7):
        step = env.step(torch.zeros(2, dtype=torch.int64))
        check(step)
        assert_equal(step.final_obs, -2 if t % 3 == 0 else -1)
        assert_equal(step.obs, -1)
    assert all(torch.equal(obs[group], values) for group, values in first.items())


def test_images_come_from_other_processes_and_next_step_autoreset() -> None:
    space = IMAGES["beside a vector"][0]
    makers = [lambda: Camera(copy.deepcopy(space)) for _ in range(2)]  # with a generator each
    for mode in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
        there = GymnasiumEnv(AsyncVectorEnv(makers, autoreset_mode=mode))
        here = GymnasiumEnv(OwnVectorEnv(makers, autoreset_mode=mode))
        assert all(torch.equal(a, b) for a, b in zip(there.reset(0).values(), here.reset(0).values(), strict=True))
        for _ in range(5):
            one, other = (env.step(torch.zeros(2, dtype=torch.int64)) for env in (there, here))
            assert one.obs["camera"].dtype == torch.uint8 and one.obs["camera"].shape == (2, 3, H, W)
            assert all(torch.equal(one.obs[group], other.obs[group]) for group in one.obs)
        there.close()


@pytest.mark.filterwarnings("ignore:.*is flattened to")
@pytest.mark.parametrize("layout", NO_IMAGES)
def test_what_is_no_image_stays_a_vector(layout: str) -> None:
    space = NO_IMAGES[layout]
    env = GymnasiumEnv(SyncVectorEnv([lambda: Camera(space)], autoreset_mode=AutoresetMode.SAME_STEP))
    assert spec_of(env).observation_sizes == {"policy": int(np.prod(space.shape))}
    assert env.reset(seed=0)["policy"].dtype == torch.float32


def test_an_image_of_another_shape_than_its_space_is_named() -> None:
    class Wrong(Camera):
        def step(self, action: Any) -> Any:
            return np.zeros((W, H, 3), np.uint8), *super().step(action)[1:]

    space = IMAGES["channels last"][0]
    env = GymnasiumEnv(SyncVectorEnv([lambda: Wrong(space)], autoreset_mode=AutoresetMode.SAME_STEP), task="Wrong")
    env.reset()
    with pytest.raises(ValueError, match=r"Wrong: step\(\) failed.*an image has shape \(12, 10, 3\), its space \(10,"):
        env.step(torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize("with_vector", [True, False])
def test_a_transfer_to_a_device_keeps_shapes_and_types(with_vector: bool) -> None:
    boxes = {"camera": image(3, H, W)} | ({"policy": VECTOR} if with_vector else {})
    groups = {group: np.zeros((2, *box.shape), box.dtype) for group, box in boxes.items()}
    meta = torch.device("meta")  # knows shapes and types, not values
    for others in ((), (np.zeros(2, np.float32), np.zeros(2, np.bool_))):
        obs, rest = to_torch(boxes, groups, others, meta)
        here, there = to_torch(boxes, groups, others, torch.device("cpu"))
        assert [*obs] == [*boxes] and len(rest) == len(others)
        for a, b in zip([*obs.values(), *rest], [*here.values(), *there], strict=True):
            assert (a.shape, a.dtype, a.device) == (b.shape, b.dtype, meta)


def test_actions_of_several_choices_are_passed_on_and_sac_refuses_them() -> None:
    action = spaces.MultiDiscrete([3, 2, 4], start=[1, 0, -2])
    vector = SyncVectorEnv([lambda: Camera(VECTOR, action) for _ in range(2)], autoreset_mode=AutoresetMode.SAME_STEP)
    env = GymnasiumEnv(vector, task="Several")
    spec = spec_of(env)
    assert spec.discrete and spec.action_parts == [3, 2, 4] and spec.action_size == 9
    assert spec.action_text == "3 choices of 3, 2, 4"
    env.reset(seed=0)
    env.step(torch.tensor([[0, 0, 0], [2, 1, 3]]))
    taken = [sub.actions[-1] for sub in vector.envs]  # type: ignore[attr-defined]
    assert [x.tolist() for x in taken] == [[1, 0, -2], [3, 1, 1]]
    assert all(action.contains(x) for x in taken)
    with pytest.raises(ValueError, match=r"torch.float32 of shape \(2, 3\); expected torch.int64 of shape \(2, 3\)"):
        env.step(torch.zeros(2, 3))
    with pytest.raises(ConfigError, match="Several has discrete actions, which SAC and DDPG cannot choose; use ppo"):
        SAC(env)


class Allowing(Camera):
    """Allows a choice by its time, and tells so."""

    def mask(self) -> np.ndarray[Any, Any]:
        return np.array([1, self.t % 2, (self.t + 1) % 2], np.int8)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        return super().reset(**kwargs)[0], {"action_mask": self.mask()}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return *super().step(action)[:4], {"action_mask": self.mask()}


@pytest.fixture
def allowing() -> Iterator[None]:
    space = spaces.Dict(camera=image(H, W, 3), policy=VECTOR)
    gymnasium.register("Allowing-v0", lambda: Allowing(copy.deepcopy(space), spaces.Discrete(3)))
    gymnasium.register("Silent-v0", lambda: Camera(VECTOR, spaces.Discrete(3)))
    gymnasium.register("Several-v0", lambda: Camera(VECTOR, spaces.MultiDiscrete([2, 2])))
    yield
    for name in ("Allowing-v0", "Silent-v0", "Several-v0"):
        del gymnasium.registry[name]


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_mask_in_the_info_becomes_a_group(vectorization: str, allowing: None) -> None:
    env = make_env("gym:Allowing-v0", 2, seed=0, vectorization=vectorization, action_mask=True)
    spec = spec_of(env)
    assert spec.observation_sizes == {"policy": 3, "action_mask": 3} and [*spec.image_shapes] == ["camera"]
    assert env.reset()["action_mask"].tolist() == [[1, 0, 1]] * 2
    check = StepCheck(env)
    for t in range(1, 7):
        step = env.step(torch.zeros(2, dtype=torch.int64))
        check(step)
        now, last = ([1, 0, 1], [1, 1, 0]) if t % 3 == 0 else ([1, t % 3 % 2, (t % 3 + 1) % 2],) * 2
        assert step.final_obs is not None
        assert step.obs["action_mask"].tolist() == [now] * 2 and step.final_obs["action_mask"].tolist() == [last] * 2
    env.close()


def test_a_mask_is_offered_where_an_env_has_one() -> None:
    taxi = max(name for name in gymnasium.registry if name.startswith("Taxi-v"))
    env, single = make_env(f"gym:{taxi}", 3), gymnasium.make(taxi)
    assert spec_of(env).observation_sizes == {"policy": 500, "action_mask": 6}
    obs = env.reset(seed=4)
    assert torch.equal(obs["action_mask"][1], torch.tensor(single.reset(seed=5)[1]["action_mask"]).float())
    step = env.step(torch.tensor([0, 2, 4]))
    assert torch.equal(step.obs["action_mask"][1], torch.tensor(single.step(2)[4]["action_mask"]).float())
    assert [*make_env(f"gym:{taxi}", 1, action_mask=False).observation_spaces] == ["policy"]
    assert [*make_env("gym:CartPole-v1", 1).observation_spaces] == ["policy"]


def test_a_mask_that_is_not_there_is_named(allowing: None) -> None:
    with pytest.raises(ValueError, match=r"gym:Silent-v0: .*info has no 'action_mask'; give it in reset\(\)"):
        make_env("gym:Silent-v0", 2, action_mask=True).reset()
    with pytest.raises(ValueError, match=r"gym:Several-v0: .*a mask is for Discrete ones"):
        make_env("gym:Several-v0", 2, action_mask=True)
    with pytest.raises(ValueError, match="action_mask is 'yes'; use True, False or None"):
        make_env("gym:Silent-v0", 2, action_mask="yes")
