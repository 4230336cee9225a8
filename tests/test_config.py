"""Strict configuration."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlcore import DDPG, PPO, SAC, ConfigError, DDPGConfig, NetworkConfig, PPOConfig, SACConfig, ppo, ppo_config
from rlcore.config import from_dict, load_yaml, save_yaml, to_dict
from rlcore.envs.null import Null
from rlcore.train.config import read_config


def test_round_trip_through_yaml(tmp_path: Path) -> None:
    config = from_dict(PPOConfig, {"learning_rate": "3e-4", "actor": {"hidden_dims": [512, 256]}, "target_kl": None})
    assert config.learning_rate == 3e-4
    assert config.actor.hidden_dims == (512, 256)
    save_yaml(tmp_path / "config.yaml", config)
    assert from_dict(PPOConfig, load_yaml(tmp_path / "config.yaml")) == config


def test_yaml_reads_exponents_without_a_point_as_text_and_the_field_type_decides(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("learning_rate: 3e-4\nnum_steps: 1e2\n")
    data = load_yaml(tmp_path / "c.yaml")
    assert data["learning_rate"] == "3e-4"  # what PyYAML makes of it
    config = from_dict(PPOConfig, data)
    assert (config.learning_rate, config.num_steps) == (3e-4, 100)


def test_to_dict_holds_plain_values() -> None:
    plain = to_dict(PPOConfig())
    assert plain["kl_band"] == [0.5, 2.0]
    assert plain["actor"]["hidden_dims"] == [256, 128, 64]


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        ({"lerning_rate": 1e-3}, ["lerning_rate", "did you mean 'learning_rate'"]),
        ({"Gamma": 0.9}, ["Gamma", "did you mean 'gamma'"]),
        ({"zzz": 1}, ["zzz", "valid:"]),
        ({"actor": {"hiden_dims": [3]}}, ["actor.hiden_dims", "did you mean 'hidden_dims'"]),
        ({"actor": 3}, ["actor", "3"]),
        ({"gamma": "high"}, ["gamma", "'high'"]),
        ({"num_steps": 2.5}, ["num_steps", "2.5"]),
        ({"num_steps": True}, ["num_steps", "True"]),
        ({"gamma": True}, ["gamma", "True"]),
        ({"normalize_obs": 1}, ["normalize_obs", "1", "write [1], true or false"]),
        ({"normalize_obs": "policy"}, ["normalize_obs", "write [policy], true or false"]),
        ({"normalize_obs": [3]}, ["normalize_obs", "3"]),
        ({"lr_schedule": "cosine"}, ["lr_schedule", "'cosine'", "'adaptive'"]),
        ({"actor": {"activation": "swish"}}, ["actor.activation", "'swish'", "'silu'"]),
        ({"actor": {"hidden_dims": [0]}}, ["hidden_dims", "at least 1"]),
        ({"num_steps": -1}, ["num_steps", "-1"]),
        ({"kl_band": [2.0]}, ["kl_band"]),
        ({"target_kl": -1}, ["target_kl", "-1"]),
        ({"gamma": None}, ["gamma", "None"]),
        ({"actor_obs": "policy"}, ["actor_obs", "write [policy]"]),
        ({"actor": {"hidden_dims": "64"}}, ["actor.hidden_dims", "write [64]"]),
        ({"actor": {"hidden_dims": 64}}, ["actor.hidden_dims", "write [64]"]),
        ({"actor": {"hidden_dims": None}}, ["actor.hidden_dims", "None", "write [first, second, ...]"]),
        ({"actor_obs": {"policy": 1}}, ["actor_obs", "{'policy': 1}", "not a list"]),
        ({"gamma": 10**400}, ["gamma", "0 to 1"]),
    ],
)
def test_wrong_settings_are_named_in_one_line(data: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(PPOConfig, data, "my.yaml")
    message = str(caught.value)
    assert "\n" not in message
    for part in ["my.yaml", *parts]:
        assert part in message


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2", "3", "1: 2", "a: !!python/object/apply:os.system ['false']"])
def test_yaml_that_is_not_a_plain_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.yaml") as caught:
        load_yaml(path)
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml.*does not exist"):
        load_yaml(tmp_path / "nowhere.yaml")


def test_settings_of_ppo_are_one_class_under_both_their_paths() -> None:
    assert ppo.PPOConfig is ppo_config.PPOConfig is PPOConfig
    assert pickle.loads(b"crlcore.ppo\nPPOConfig\n.") is PPOConfig  # as pickles from before the move name it
    assert pickle.loads(pickle.dumps(PPOConfig(gamma=0.9))) == PPOConfig(gamma=0.9)


@pytest.mark.parametrize("agent", [PPO, SAC, DDPG])
def test_settings_that_are_no_settings_of_the_agent_are_refused(agent: Any) -> None:
    other = SACConfig() if agent is PPO else PPOConfig()
    for wrong in (other, {"gamma": 0.9}, {}):
        with pytest.raises(ConfigError, match=f"{type(wrong).__name__} is given; give a {agent.__name__}Config"):
            agent(Null(2), wrong)


@pytest.mark.parametrize(
    ("agent", "config", "message"),
    [
        (PPO, PPOConfig(num_steps=24.5), "PPOConfig: num_steps: 24.5 is not of type int"),  # type: ignore[arg-type]
        (PPO, PPOConfig(normalize_advantage="no"), "'no' is not one of 'batch', 'minibatch'"),  # type: ignore[arg-type]
        (SAC, SACConfig(value_loss="mes"), "value_loss: 'mes' is not one of 'mse'"),  # type: ignore[arg-type]
        (DDPG, DDPGConfig(noise="pink"), "noise: 'pink' is not one of"),  # type: ignore[arg-type]
    ],
)
def test_values_given_in_python_are_held_to_their_types_as_those_of_a_file_are(
    agent: Any, config: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        agent(Null(2), config)


def test_values_given_in_python_are_converted_as_those_of_a_file_are() -> None:
    small: Any = NetworkConfig(hidden_dims=[8])  # type: ignore[arg-type]
    agent = PPO(Null(4, obs_size=3, action_size=2), PPOConfig(num_steps=4.0, actor=small, critic=small))  # type: ignore[arg-type]
    assert agent.config == PPOConfig(
        num_steps=4, actor=NetworkConfig(hidden_dims=(8,)), critic=NetworkConfig(hidden_dims=(8,))
    )
    assert isinstance(agent.config.num_steps, int)
    numpy = PPOConfig(num_steps=np.int64(4), gamma=np.float32(0.5))  # type: ignore[arg-type]
    plain = PPO(Null(4, obs_size=3, action_size=2), numpy).config
    assert (type(plain.num_steps), type(plain.gamma)) == (int, float)


def test_an_option_that_stands_in_a_table_is_said_there_whatever_its_spelling() -> None:
    env = {"A-b": {"size": 1, "more": {"x": 2}}, "A_b.size": 3, "A-b.more.x": 4, "A-b.new": 5, "randomize.mass": True}
    config = read_config({"task": "Pendulum", "env": env})
    assert config.env == {"A-b": {"size": 3, "more": {"x": 4}}, "A-b.new": 5, "randomize.mass": True}
    assert replace(config, env=config.env | {"randomize.mass": 2}).env["randomize.mass"] == 2
