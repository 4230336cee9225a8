"""Cameras of Isaac Lab and mjlab: their pictures become groups of images, and PPO reads them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import test_isaaclab
import test_mjlab
import torch
from gymnasium import spaces
from torch import Tensor

from rlcore import PPO, NetworkConfig, PPOConfig
from rlcore.encoders import CNNConfig
from rlcore.env import spec_of
from rlcore.env_check import StepCheck
from rlcore.envs.isaaclab import IsaacLabEnv
from rlcore.envs.mjlab import FinalObs, MjlabEnv
from rlcore.learn import learn

CNN = CNNConfig(channels=(4,), kernel_sizes=(3,), strides=(2,), activation="elu")
SMALL = NetworkConfig(hidden_dims=(16,), cnn=CNN)


def picture(shape: tuple[int, ...], *marks: Tensor) -> Tensor:
    """``[N, *shape]`` uint8, each channel (the shortest axis) of one brightness."""
    channels = min(range(len(shape)), key=lambda axis: shape[axis])
    rows = torch.zeros(len(marks[0]), *shape, dtype=torch.uint8)
    for channel, mark in enumerate(marks):
        rows.select(channels + 1, channel).add_(mark.view(-1, *[1] * (len(shape) - 1)).to(torch.uint8))
    return rows


class Mjlab(test_mjlab.FakeEnv):
    """Its camera shows the age of the episode in one channel and how many there were in the other."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.single_observation_space.spaces["camera"] = test_mjlab.Box((2, 12, 10))

    def observe(self) -> dict[str, Tensor]:
        obs = super().observe()
        return {**obs, "camera": picture((2, 12, 10), self.episode_length_buf, self.resets) / 255.0}


class MjlabWithMemory(Mjlab):
    """Its observations may be computed once more without a trace, so that the hook serves."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        empty: dict[str, Any] = {"actor": {}, "camera": {}}
        self.computed: list[str] = []
        self.sim = SimpleNamespace(sense=lambda: None)
        self.observation_manager = SimpleNamespace(
            compute_group=lambda group: (self.computed.append(group), self.observe()[group])[1],
            _group_obs_term_delay_buffer=empty,
            _group_obs_term_history_buffer=empty,
            _group_obs_class_term_cfgs={"actor": [], "camera": []},
            _group_obs_class_instances={},
        )

    def _reset_idx(self, ids: Tensor) -> None:
        super().restart(ids)

    def restart(self, ids: Tensor) -> None:
        self._reset_idx(ids)


class IsaacLab(test_isaaclab.FakeDirect):
    """A direct task whose group ``policy`` has a vector, a color picture in bytes and depth; gymnasium sorts them."""

    def __init__(self, cfg: Any, **kinds: Any) -> None:
        super().__init__(cfg)
        inner = {
            "state": spaces.Box(-9, 9, (2,)),
            "rgb": spaces.Box(-np.inf, np.inf, (9, 8, 3)),
            "depth": spaces.Box(-np.inf, np.inf, (9, 8, 1)),
        }
        inner["rgb"] = kinds.get("rgb", inner["rgb"])
        self.names: tuple[str, ...] = kinds.get("names", tuple(inner))
        self.single_observation_space = spaces.Dict({"policy": spaces.Dict({name: inner[name] for name in self.names})})

    def _get_observations(self) -> dict[str, Any]:
        state = super()._get_observations()["policy"]
        shown = {
            "state": state,
            "rgb": picture((9, 8, 3), 40 * self.episode_length_buf, self.resets, self.resets + 1),
            "depth": self.episode_length_buf.float().view(-1, 1, 1, 1).expand(-1, 9, 8, 1) / 10,
        }
        return {"policy": {name: shown[name] for name in self.names}}


def isaac(**kinds: Any) -> IsaacLabEnv:
    return IsaacLabEnv(IsaacLab(test_isaaclab.fake_cfg(), **kinds), task="Fake")


@pytest.mark.parametrize("final_obs", ["manual", "hook", "off"])
def test_a_camera_group_of_mjlab_is_an_image_before_and_after_a_reset(final_obs: FinalObs) -> None:
    core = MjlabWithMemory(test_mjlab.fake_cfg())
    env = MjlabEnv(core, task="Fake", final_obs=final_obs)
    spec = spec_of(env)
    assert spec.image_shapes == {"camera": [2, 12, 10]} and spec.image_types == {"camera": "float32"}
    assert spec.observation_sizes == {"actor": 2} and env.notes == []
    check = StepCheck(env)
    first = env.reset(1)
    ages = torch.zeros(4)
    for _ in range(7):
        step = env.step(torch.zeros(4, 3))
        check(step)
        done = step.terminated | step.truncated
        ages = ages + 1
        if step.final_obs is not None:
            torch.testing.assert_close(step.final_obs["camera"][:, 0], (ages / 255).view(-1, 1, 1).expand(-1, 12, 10))
        ages[done] = 0
        torch.testing.assert_close(step.obs["camera"][:, 0, 3, 4], ages / 255)
    assert first["camera"].is_contiguous()
    assert step.obs["camera"].is_contiguous() and step.obs["camera"].data_ptr() != first["camera"].data_ptr()


def test_only_the_camera_that_is_read_is_computed_for_final_observations() -> None:
    core = MjlabWithMemory(test_mjlab.fake_cfg())
    env = MjlabEnv(core, task="Fake", final_obs="hook")
    env.final_groups = ("camera",)
    env.reset(1)
    for _ in range(3):
        step = env.step(torch.zeros(4, 3))
    assert set(core.computed) == {"camera"} and step.final_obs is not None and set(step.final_obs) == {"camera"}


def test_pictures_beside_vectors_are_groups_of_their_own_with_channels_first() -> None:
    env = isaac()
    spec = spec_of(env)
    assert spec.observation_sizes == {"policy": 2}
    assert spec.image_shapes == {"policy/rgb": [3, 9, 8], "policy/depth": [1, 9, 8]}
    # The space says float32, so that bytes are scaled as pictures of floats are.
    assert spec.image_types == {"policy/rgb": "float32", "policy/depth": "float32"}
    assert env.notes == ["observation 'policy': pictures are groups of their own, policy/depth, policy/rgb"]
    terms = {group: [term["name"] for term in facts] for group, facts in env.deployment["observation_terms"].items()}
    assert terms == {"policy": ["state"], "policy/rgb": ["rgb"], "policy/depth": ["depth"]}
    env.reset(1)
    step = env.step(torch.zeros(4, 3))
    rgb = step.obs["policy/rgb"]
    assert rgb.shape == (4, 3, 9, 8) and rgb.is_contiguous()
    torch.testing.assert_close(rgb[0, :, 5, 5], torch.tensor([40.0, 1.0, 2.0]) / 255)
    torch.testing.assert_close(step.obs["policy/depth"], torch.full((4, 1, 9, 8), 0.1))


def test_pictures_alone_are_channels_of_one_and_bytes_stay_bytes() -> None:
    both = isaac(names=("rgb", "depth"))
    assert spec_of(both).image_shapes == {"policy": [4, 9, 8]}
    assert both.notes == ["observation 'policy': depth, rgb are channels of one picture"]
    both.reset(1)
    joined = both.step(torch.zeros(4, 3)).obs["policy"][2, :, 0, 0]
    torch.testing.assert_close(joined, torch.tensor([0.1, 40 / 255, 1 / 255, 2 / 255]))
    color = isaac(names=("rgb",), rgb=spaces.Box(0, 255, (9, 8, 3), np.uint8))
    assert spec_of(color).image_types == {"policy": "uint8"}
    assert color.reset(1)["policy"][0, :, 0, 0].tolist() == [0, 1, 2]


def test_bytes_are_known_from_the_manager_of_isaac_lab_3() -> None:
    """Its spaces say float32 of all terms."""

    def made(**config: Any) -> IsaacLabEnv:
        core = IsaacLab(test_isaaclab.fake_cfg(), names=("rgb",))
        core.single_observation_space = spaces.Dict({"policy": spaces.Box(-np.inf, np.inf, (9, 8, 3))})
        steps = SimpleNamespace(**{"modifiers": None, "noise": None, "scale": None, **config})
        core.observation_manager = SimpleNamespace(  # type: ignore[attr-defined]
            active_terms={"policy": ["rgb"]},
            group_obs_term_dim={"policy": [(9, 8, 3)]},
            compute=lambda: {"policy": core._get_observations()["policy"]["rgb"]},
            _group_obs_term_cfgs={"policy": [steps]},
            _term_output_specs={("policy", "rgb"): ((4, 9, 8, 3), torch.uint8, "cpu")},
        )
        return IsaacLabEnv(core, task="Fake", final_obs="off")

    assert spec_of(made()).image_types == {"policy": "uint8"}
    assert spec_of(made(scale=0.5)).image_types == {"policy": "float32"}


@pytest.mark.parametrize(("shape", "kept"), [((3, 4, 5), None), ((2, 8, 9, 3), [6, 8, 9]), ((8, 9), None)])
def test_stacks_of_pictures_and_what_is_none(shape: tuple[int, ...], kept: list[int] | None) -> None:
    core = test_isaaclab.FakeDirect(test_isaaclab.fake_cfg())
    core.single_observation_space = spaces.Dict({"policy": spaces.Box(-1, 1, shape)})
    env = IsaacLabEnv(core, task="Fake", final_obs="off")
    assert spec_of(env).image_shapes == ({} if kept is None else {"policy": kept})
    assert len(env.notes) == (kept is None)
    value = torch.rand(4, *shape)
    read = env.read_obs({"policy": value})["policy"]
    if kept is not None:
        assert torch.equal(read, value.permute(0, 1, 4, 2, 3).reshape(4, *kept))


def test_ppo_learns_from_the_cameras_of_both_simulators() -> None:
    config: dict[str, Any] = {"num_steps": 8, "num_minibatches": 1, "num_epochs": 1, "actor": SMALL, "critic": SMALL}
    for env, groups in (
        (MjlabEnv(Mjlab(test_mjlab.fake_cfg()), task="Fake"), ("actor", "camera")),
        (isaac(), ("policy", "policy/rgb", "policy/depth")),
    ):
        agent = PPO(env, PPOConfig(actor_obs=groups, critic_obs=groups, **config), seed=1)
        before = [value.clone() for value in agent.policy.trunk.encoders.parameters()]  # type: ignore[union-attr]
        learn(env, agent, 2, seed=1)
        after = list(agent.policy.trunk.encoders.parameters())  # type: ignore[union-attr]
        assert all(not torch.equal(*pair) for pair in zip(before, after, strict=True)) and agent.notes == []


def test_a_camera_that_the_configuration_leaves_out_is_named() -> None:
    env = MjlabEnv(Mjlab(test_mjlab.fake_cfg()), task="Fake")
    assert any("nobody reads: camera" in note for note in PPO(env, PPOConfig(actor=SMALL, critic=SMALL)).notes)
