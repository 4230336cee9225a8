"""Each trap in other libraries' settings, and the way into rlcore of files, objects and registrations."""

from __future__ import annotations

import ast
import copy
import dataclasses
import importlib
import importlib.util
import io
import math
import os
import subprocess
import sys
import types
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from rlcore.config import ConfigError, from_dict
from rlcore.envs import make_env
from rlcore.ppo import PPO
from rlcore.train.config import TrainConfig
from rlcore.train.importers.account import show
from rlcore.train.importers.convert import Conversion, convert, convert_file, guess_library
from rlcore.train.importers.source import find_agent_config
from rlcore.train.importers.translation import Row

DATA = Path(__file__).parent / "data"

RSL_RL_OLD: dict[str, Any] = {
    "seed": 3,
    "num_steps_per_env": 24,
    "max_iterations": 300,
    "save_interval": 50,
    "obs_groups": {},
    "policy": {"init_noise_std": 0.8, "actor_hidden_dims": [128, 64], "critic_hidden_dims": [256], "activation": "elu"},
    "algorithm": {"schedule": "adaptive", "desired_kl": 0.01, "num_mini_batches": 4},
}
RSL_RL: dict[str, Any] = {
    "num_steps_per_env": 24,
    "obs_groups": {"actor": ("policy", "camera"), "critic": ("policy", "secret")},
    "actor": {
        "hidden_dims": (512, 256),
        "obs_normalization": True,
        "distribution_cfg": {"class_name": "GaussianDistribution", "init_std": 0.7, "std_type": "log"},
    },
    "critic": {"hidden_dims": (64,), "activation": "lrelu", "obs_normalization": True},
    "algorithm": {"class_name": "PPO"},
}
RL_GAMES: dict[str, Any] = {
    "params": {
        "seed": 42,
        "env": {"clip_actions": 1.0},
        "algo": {"name": "a2c_continuous"},
        "model": {"name": "continuous_a2c_logstd"},
        "network": {
            "name": "actor_critic",
            "separate": False,
            "space": {"continuous": {"sigma_init": {"name": "const_initializer", "val": -1}, "fixed_sigma": True}},
            "mlp": {"units": [64, 32], "activation": "swish", "initializer": {"name": "default"}},
        },
        "config": {
            "num_actors": -1,
            "normalize_input": True,
            "normalize_value": True,
            "reward_shaper": {"scale_value": 0.1},
            "normalize_advantage": True,
            "gamma": 0.99,
            "tau": 0.9,
            "learning_rate": "5e-4",
            "lr_schedule": "adaptive",
            "kl_threshold": 0.008,
            "max_epochs": 500,
            "grad_norm": 0.5,
            "truncate_grads": True,
            "entropy_coef": 0.0,
            "e_clip": 0.2,
            "clip_value": True,
            "horizon_length": 16,
            "minibatch_size": 16384,
            "mini_epochs": 8,
            "critic_coef": 4,
            "bounds_loss_coef": 0.0001,
        },
    }
}
SKRL: dict[str, Any] = {
    "models": {
        "separate": True,
        "policy": {
            "class": "GaussianMixin",
            "network": [{"name": "net", "input": "OBSERVATIONS", "layers": [64, 32], "activations": "relu"}],
            "output": "ACTIONS",
        },
        "value": {
            "class": "DeterministicMixin",
            "network": [{"name": "net", "input": "STATES", "layers": [16], "activations": ["tanh"]}],
            "output": "ONE",
        },
    },
    "agent": {"class": "PPO", "rollouts": 16, "mini_batches": 4},
    "trainer": {"timesteps": 1600},
}
SB3: dict[str, Any] = {"n_timesteps": 1e6, "policy": "MlpPolicy", "n_steps": 16, "batch_size": 4096}
SOURCES: dict[str, dict[str, Any]] = {"rsl_rl": RSL_RL, "rl_games": RL_GAMES, "skrl": SKRL, "sb3": SB3}


def changed(source: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy with values at dotted keys, dots written as two underscores; ... removes a key."""
    result = copy.deepcopy(source)
    for dotted, value in changes.items():
        *sections, name = dotted.split("__")
        place = result
        for section in sections:
            place = place.setdefault(section, {})
        if value is ...:
            del place[name]
        else:
            place[name] = value
    return result


def converted(library: Any, source: dict[str, Any] | None = None, num_envs: int = 4096, **changes: Any) -> Conversion:
    base = source if source is not None else SOURCES[library]
    return convert(changed(base, **changes), library, num_envs=num_envs, task="CartPole")


def agent(conversion: Conversion) -> dict[str, Any]:
    result: dict[str, Any] = conversion.config["agent"]
    return result


def row(conversion: Conversion, key: str) -> Row:
    found = [r for r in conversion.rows if r.key == key]
    assert found, f"{key} not in {[r.key for r in conversion.rows]}"
    return found[0]


@pytest.mark.parametrize("library", SOURCES)
def test_result_is_what_a_run_accepts(library: str) -> None:
    conversion = converted(library)
    config = from_dict(TrainConfig, conversion.config)
    assert config.num_envs == 4096
    assert config.algo == "ppo"
    assert conversion.unknown == ()


@pytest.mark.parametrize("library", SOURCES)
def test_every_key_of_the_source_has_a_row(library: str) -> None:
    conversion = converted(library)
    told = {r.key for r in conversion.rows}

    def leaves(value: Any, prefix: str) -> list[str]:
        if not isinstance(value, dict) or prefix.rstrip(".") in told:
            return [prefix.rstrip(".")]
        return [leaf for key, item in value.items() for leaf in leaves(item, f"{prefix}{key}.")]

    assert set(leaves(SOURCES[library], "")) <= told


@pytest.mark.parametrize(
    ("source", "library"),
    [
        (changed(RL_GAMES, params__config__truncate_grads=False), "rl_games"),
        (changed(SKRL, models__value__network=SKRL["models"]["policy"]["network"]), "skrl"),
        (changed(SB3, learning_rate="lin_3e-4"), "sb3"),
        (RSL_RL_OLD, "rsl_rl"),
    ],
)
def test_result_trains(source: dict[str, Any], library: Any) -> None:
    config = from_dict(TrainConfig, convert(source, library, num_envs=8, task="CartPole").config)
    learner = PPO(make_env("CartPole", 8), config.agent, seed=1, num_iterations=2)
    before = [parameter.clone() for parameter in learner.policy.parameters()]
    learner.learn(1)
    after = list(learner.policy.parameters())
    assert all(p.isfinite().all() for p in after)
    assert any(not p.equal(q) for p, q in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("library", "key"),
    [
        ("rsl_rl", "algorithm__gama"),
        ("rl_games", "params__config__taus"),
        ("skrl", "agent__ratio_clips"),
        ("sb3", "gamm"),
    ],
)
def test_unknown_key_is_named_with_the_nearest(library: str, key: str) -> None:
    conversion = converted(library, **{key: 0.5})
    dotted = key.replace("__", ".")
    assert conversion.unknown == (dotted,)
    found = row(conversion, dotted)
    assert found.status == "dropped"
    assert found.ours is None
    assert "did you mean" in found.note


# rsl_rl


def test_rsl_rl_defaults_are_filled_in() -> None:
    conversion = converted("rsl_rl")
    expected = {
        "num_epochs": 5, "num_minibatches": 4, "clip_range": 0.2, "gamma": 0.99, "gae_lambda": 0.95, "value_coef": 1.0,
        "entropy_coef": 0.01, "learning_rate": 1e-3, "max_grad_norm": 1.0, "clip_value_loss": True, "desired_kl": 0.01,
        "lr_schedule": "adaptive", "normalize_advantage": "batch", "lr_min": 1e-5, "lr_max": 1e-2,
    }  # fmt: skip
    assert {key: agent(conversion)[key] for key in expected} == expected
    assert row(conversion, "algorithm.entropy_coef").status == "default"


def test_rsl_rl_new_layout() -> None:
    ours = agent(converted("rsl_rl"))
    assert ours["actor"] == {"hidden_dims": [512, 256], "activation": "elu", "init": "default"}
    assert ours["critic"] == {"hidden_dims": [64], "activation": "leaky_relu", "init": "default"}
    assert (ours["actor_obs"], ours["critic_obs"]) == (["policy", "camera"], ["policy", "secret"])
    assert ours["init_std"] == 0.7
    assert ours["normalize_obs"] is True
    assert ours["clip_obs"] is None
    assert ours["grad_clip"] == "separate"


def test_rsl_rl_old_layout() -> None:
    conversion = converted("rsl_rl", RSL_RL_OLD)
    ours = agent(conversion)
    assert ours["actor"]["hidden_dims"] == [128, 64]
    assert ours["critic"]["hidden_dims"] == [256]
    assert ours["init_std"] == 0.8
    assert ours["normalize_obs"] is False
    assert ours["grad_clip"] == "joint"
    assert "actor_obs" not in ours, "an empty obs_groups means the default"
    assert (conversion.config["seed"], conversion.config["num_iterations"]) == (3, 300)


@pytest.mark.parametrize(
    ("changes", "expected", "status"),
    [
        ({"empirical_normalization": True}, True, "default"),
        ({"empirical_normalization": True, "policy__actor_obs_normalization": False}, False, "changed"),
        ({"policy__actor_obs_normalization": True, "policy__critic_obs_normalization": True}, True, "kept"),
        ({"policy__actor_obs_normalization": True, "policy__critic_obs_normalization": False}, True, "changed"),
    ],
)
def test_rsl_rl_old_names_of_normalization(changes: dict[str, Any], expected: bool, status: str) -> None:
    conversion = converted("rsl_rl", RSL_RL_OLD, **changes)
    assert agent(conversion)["normalize_obs"] is expected
    assert row(conversion, "policy.critic_obs_normalization").status == status


@pytest.mark.parametrize(
    ("groups", "actor", "critic", "expected", "status"),
    [
        ({"policy": ["a", "b"], "critic": ["c"]}, True, False, ["a", "b"], "kept"),
        ({"policy": ["a", "b"], "critic": ["c"]}, False, True, ["c"], "kept"),
        ({"policy": ["a", "b"], "critic": ["c"]}, True, True, True, "kept"),
        ({"policy": ["a", "b"], "critic": ["b", "c"]}, False, True, False, "changed"),
        ({"policy": ["a", "b"]}, True, False, True, "changed"),
    ],
)
def test_rsl_rl_normalizes_the_groups_of_one_network(
    groups: dict[str, list[str]], actor: bool, critic: bool, expected: bool | list[str], status: str
) -> None:
    changes = {"policy__actor_obs_normalization": actor, "policy__critic_obs_normalization": critic}
    conversion = converted("rsl_rl", RSL_RL_OLD, obs_groups=groups, **changes)
    assert agent(conversion)["normalize_obs"] == expected
    assert row(conversion, "policy.critic_obs_normalization").status == status


def test_rsl_rl_policy_set_is_the_actors_old_name() -> None:
    ours = agent(converted("rsl_rl", RSL_RL_OLD, obs_groups={"policy": ["a", "b"], "critic": ["c"]}))
    assert (ours["actor_obs"], ours["critic_obs"]) == (["a", "b"], ["c"])


def test_rsl_rl_sets_of_other_networks_are_dropped() -> None:
    conversion = converted("rsl_rl", obs_groups__rnd_state=["secret"])
    assert row(conversion, "obs_groups.rnd_state").status == "dropped"


def test_rsl_rl_fixed_schedule_is_constant() -> None:
    assert agent(converted("rsl_rl", algorithm__schedule="fixed"))["lr_schedule"] == "constant"


def test_rsl_rl_adaptive_schedule_without_a_target_is_constant() -> None:
    conversion = converted("rsl_rl", algorithm__schedule="adaptive", algorithm__desired_kl=None)
    assert agent(conversion)["lr_schedule"] == "constant"


def test_rsl_rl_advantages_by_minibatch() -> None:
    conversion = converted("rsl_rl", algorithm__normalize_advantage_per_mini_batch=True)
    assert agent(conversion)["normalize_advantage"] == "minibatch"


def test_rsl_rl_deviation_by_state() -> None:
    new = converted("rsl_rl", actor__distribution_cfg__class_name="HeteroscedasticGaussianDistribution")
    old = converted("rsl_rl", RSL_RL_OLD, policy__state_dependent_std=True)
    assert agent(new)["state_dependent_std"] is agent(old)["state_dependent_std"] is True
    beta = converted("rsl_rl", actor__distribution_cfg__class_name="BetaDistribution")
    assert row(beta, "actor.distribution_cfg.class_name").status == "dropped"


def test_rsl_rl_range_of_the_deviation() -> None:
    guard = agent(converted("rsl_rl", actor__distribution_cfg__std_range=(1e-6, 1e6)))
    choice = agent(converted("rsl_rl", actor__distribution_cfg__std_range=(0.1, 2.0)))
    assert (guard["min_std"], guard["max_std"]) == (0.01, 100.0)
    assert (choice["min_std"], choice["max_std"]) == (0.1, 2.0)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"algorithm__symmetry_cfg": {"use_data_augmentation": True}}, "algorithm.symmetry_cfg"),
        ({"algorithm__rnd_cfg": {"weight": 1.0}}, "algorithm.rnd_cfg"),
        ({"algorithm__optimizer": "sgd"}, "algorithm.optimizer"),
        ({"actor__distribution_cfg__learn_std": False}, "actor.distribution_cfg.learn_std"),
    ],
)
def test_rsl_rl_features_without_equal_are_dropped(changes: dict[str, Any], key: str) -> None:
    assert row(converted("rsl_rl", **changes), key).status == "dropped"
    off = {"algorithm__symmetry_cfg": None, "algorithm__rnd_cfg": None, "algorithm__optimizer": "adam"}
    conversion = converted("rsl_rl", **off, actor__cnn_cfg=None, actor__rnn_type=None, actor__rnn_hidden_dim=256)
    assert not [r for r in conversion.rows if r.status == "dropped"], "switched off is no loss"


def test_rsl_rl_recurrent_models() -> None:
    new = agent(converted("rsl_rl", actor__class_name="RNNModel", actor__rnn_type="gru", actor__rnn_hidden_dim=64))
    assert new["actor"]["rnn"] == {"type": "gru", "hidden_size": 64, "num_layers": 1, "position": "before"}
    assert "rnn" not in new["critic"]
    old = agent(converted("rsl_rl", RSL_RL_OLD, policy__class_name="ActorCriticRecurrent", policy__rnn_num_layers=2))
    expected = {"type": "lstm", "hidden_size": 256, "num_layers": 2, "position": "before"}
    assert old["actor"]["rnn"] == old["critic"]["rnn"] == expected


def test_rsl_rl_minibatches_of_recurrent_models_are_of_whole_rollouts() -> None:
    conversion = converted("rsl_rl", num_envs=6, actor__class_name="RNNModel")  # 6 x 24 samples, 6 sequences
    assert agent(conversion)["num_minibatches"] == 3
    assert row(conversion, "algorithm.num_mini_batches").status == "changed"


def test_rsl_rl_time_out_rule_differs() -> None:
    assert row(converted("rsl_rl"), "(time-outs)").status == "changed"


def test_objects_are_read_and_missing_counts_as_absent() -> None:
    @dataclasses.dataclass
    class Algorithm:
        gamma: float = 0.97
        lam: Any = dataclasses.field(default_factory=lambda: dataclasses.MISSING)
        symmetry_cfg: Any = None

    class Policy:
        actor_hidden_dims = (32,)
        class_name = "ActorCritic"

        def helper(self) -> None: ...

    @dataclasses.dataclass
    class Runner:
        algorithm: Algorithm = dataclasses.field(default_factory=Algorithm)
        policy: Policy = dataclasses.field(default_factory=Policy)
        num_steps_per_env: int = 8
        obs_groups: Any = (dataclasses.MISSING,)

    conversion = convert(copy.deepcopy(Runner()), "rsl_rl", num_envs=16)  # as Isaac Lab copies
    assert agent(conversion)["gamma"] == 0.97
    assert row(conversion, "algorithm.lam").status == "default"
    assert agent(conversion)["actor"]["hidden_dims"] == [32]
    assert conversion.unknown == ()


def test_empty_mapping_for_a_missing_value_counts_as_absent() -> None:
    conversion = converted("rsl_rl", RSL_RL_OLD, policy__actor_obs_normalization={}, algorithm__gamma={}, other={})
    assert agent(conversion)["normalize_obs"] is False
    assert row(conversion, "algorithm.gamma").status == "default"
    assert conversion.unknown == ("other",)


def test_functions_in_a_configuration_are_named_not_called() -> None:
    def explode() -> None:
        raise AssertionError

    conversion = converted("rsl_rl", algorithm__symmetry_cfg={"data_augmentation_func": explode})
    assert "explode" in row(conversion, "algorithm.symmetry_cfg").value["data_augmentation_func"]


# rl_games


def test_rl_games_meaning() -> None:
    conversion = converted("rl_games")
    ours = agent(conversion)
    assert ours["value_coef"] == 2.0, "rl_games halves the error"
    assert ours["gae_lambda"] == 0.9, "tau"
    assert ours["learning_rate"] == 5e-4, "PyYAML reads 5e-4 as text"
    assert ours["num_minibatches"] == 4096 * 16 / 16384
    assert ours["share_trunk"] is True
    assert ours["init_std"] == pytest.approx(math.exp(-1))
    assert ours["actor"] == {"hidden_dims": [64, 32], "activation": "silu", "init": "default"}
    assert ours["max_grad_norm"] == 0.5
    assert (ours["lr_min"], ours["lr_max"], ours["desired_kl"]) == (1e-6, 1e-2, 0.008)
    assert (ours["reward_scale"], ours["clip_obs"], ours["normalize_value"]) == (0.1, 5.0, True)
    assert (ours["bounds_loss_coef"], ours["bounds_loss_limit"]) == (1e-4, 1.1)
    assert (ours["actor_obs"], ours["critic_obs"]) == (["policy"], ["policy"])
    assert conversion.config["num_iterations"] == 500


def test_rl_games_gradients_are_free_without_truncate_grads() -> None:
    for changes in ({"params__config__truncate_grads": False}, {"params__config__truncate_grads": ...}):
        assert agent(converted("rl_games", **changes))["max_grad_norm"] == math.inf


@pytest.mark.parametrize(("kind", "status"), [("legacy", "kept"), ("standard", "changed"), (..., "default")])
def test_rl_games_schedule_type(kind: Any, status: str) -> None:
    base = changed(RL_GAMES, params__config__schedule_type="legacy")
    conversion = converted("rl_games", base, params__config__schedule_type=kind)
    assert row(conversion, "params.config.schedule_type").status == status


@pytest.mark.parametrize(
    ("value", "expected"), [("linear", "linear"), ("fixed", "constant"), (None, "constant"), ("None", "constant")]
)
def test_rl_games_other_schedules(value: Any, expected: str) -> None:
    assert agent(converted("rl_games", params__config__lr_schedule=value))["lr_schedule"] == expected


def test_rl_games_minibatches_by_env() -> None:
    changes = {"params__config__minibatch_size": ..., "params__config__minibatch_size_per_env": 4}
    assert agent(converted("rl_games", **changes))["num_minibatches"] == 4


def test_rl_games_minibatch_size_that_does_not_fit_the_number_of_envs() -> None:
    conversion = converted("rl_games", num_envs=96)  # 1,536 samples, and a minibatch of 16,384
    assert agent(conversion)["num_minibatches"] == 1
    assert row(conversion, "params.config.minibatch_size").status == "changed"


@pytest.mark.parametrize(
    ("env", "config", "expected", "status"),
    [
        (1.0, ..., 1.0, "kept"),
        (100.0, False, 100.0, "kept"),
        (100.0, ..., 1.0, "changed"),  # rl_games stretches +-1 to +-100
        (..., False, None, "default"),
    ],
)
def test_rl_games_two_limits_of_actions(env: Any, config: Any, expected: float | None, status: str) -> None:
    base = changed(RL_GAMES, params__config__clip_actions=True)
    conversion = converted("rl_games", base, params__env__clip_actions=env, params__config__clip_actions=config)
    assert agent(conversion)["clip_actions"] == expected
    assert row(conversion, "params.env.clip_actions").status == status


def test_rl_games_raw_observations_are_not_clipped() -> None:
    conversion = converted("rl_games", params__env__clip_observations=5.0)
    assert row(conversion, "params.env.clip_observations").status == "dropped"


def test_rl_games_separate_networks() -> None:
    ours = agent(converted("rl_games", params__network__separate=True))
    assert ours["share_trunk"] is False
    assert ours["critic"]["hidden_dims"] == [64, 32]


def test_rl_games_central_value_is_a_network_of_its_own() -> None:
    central = {
        "minibatch_size": 512,
        "mini_epochs": 4,
        "learning_rate": "1e-4",
        "clip_value": True,
        "normalize_input": True,
        "network": {"name": "actor_critic", "central_value": True, "mlp": {"units": [512], "activation": "relu"}},
    }
    conversion = converted("rl_games", params__config__central_value_config=central)
    ours = agent(conversion)
    assert ours["share_trunk"] is False
    assert (ours["critic"]["hidden_dims"], ours["critic"]["activation"]) == ([512], "relu")
    assert ours["actor"]["hidden_dims"] == [64, 32]
    assert "critic_obs" not in ours, "rlcore's default is the group 'critic', as in Isaac Lab's wrapper"
    assert row(conversion, "params.config.central_value_config.learning_rate").status == "dropped"
    groups = changed(RL_GAMES, params__config__central_value_config=central)
    groups["params"]["env"]["obs_groups"] = {"obs": ["a"], "states": ["a", "b"]}
    ours = agent(converted("rl_games", groups))
    assert (ours["actor_obs"], ours["critic_obs"]) == (["a"], ["a", "b"])
    groups["params"]["config"]["normalize_input"] = False
    for states, expected in ((["b", "c"], ["b", "c"]), (["a", "b"], False)):
        groups["params"]["env"]["obs_groups"]["states"] = states
        assert agent(converted("rl_games", groups))["normalize_obs"] == expected


def test_what_is_learned_of_the_deviation_is_what_the_library_learns() -> None:
    expected = {
        "log": [
            converted("rsl_rl"),
            converted("rsl_rl", RSL_RL_OLD, policy__noise_std_type="log"),
            converted("rl_games"),
            converted("skrl"),
            converted("sb3"),
        ],
        "scalar": [
            converted("rsl_rl", actor__distribution_cfg__std_type="scalar"),
            converted("rsl_rl", RSL_RL_OLD),
            converted(
                "rl_games",
                params__model__name="continuous_a2c",
                params__network__space__continuous__sigma_init__val=1,
            ),
        ],
    }
    for std_type, conversions in expected.items():
        assert [agent(conversion)["std_type"] for conversion in conversions] == [std_type] * len(conversions)


def test_rl_games_deviation_by_state() -> None:
    conversion = converted("rl_games", params__network__space__continuous__fixed_sigma=False)
    ours = agent(conversion)
    assert ours["state_dependent_std"] is True
    assert ours["init_std"] == 1.0, "val sets weights, not the logarithm"
    assert row(conversion, "params.network.space.continuous.sigma_init.val").status == "changed"


@pytest.mark.parametrize(("given", "expected"), [(True, "final_obs"), (..., "final_obs"), (False, "none")])
def test_rl_games_time_outs(given: Any, expected: str) -> None:
    base = changed(RL_GAMES, params__config__value_bootstrap=True)
    assert agent(converted("rl_games", base, params__config__value_bootstrap=given))["timeout_bootstrap"] == expected


def test_rl_games_reward_limits() -> None:
    shaper = {"scale_value": 0.1, "shift_value": 1.0, "min_val": -1, "max_val": 2, "log_val": False}
    conversion = converted("rl_games", params__config__reward_shaper=shaper)
    assert agent(conversion)["reward_clip"] == 2.0
    assert row(conversion, "params.config.reward_shaper.min_val").status == "changed"
    assert row(conversion, "params.config.reward_shaper.shift_value").status == "dropped"
    one_sided = converted("rl_games", params__config__reward_shaper={"min_val": -1})
    assert "reward_clip" not in agent(one_sided)
    assert row(one_sided, "params.config.reward_shaper.min_val").status == "dropped"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"params__config__use_smooth_clamp": True}, "params.config.use_smooth_clamp"),
        ({"params__config__weight_decay": 0.1}, "params.config.weight_decay"),
        ({"params__config__bound_loss_type": "regularisation"}, "params.config.bounds_loss_coef"),
    ],
)
def test_rl_games_features_without_equal_are_dropped(changes: dict[str, Any], key: str) -> None:
    assert row(converted("rl_games", **changes), key).status == "dropped"


def test_rl_games_recurrent_network() -> None:
    rnn = {"name": "lstm", "units": 64, "layers": 2, "before_mlp": True, "layer_norm": True, "concat_input": False}
    conversion = converted("rl_games", params__network__rnn=rnn)
    ours = agent(conversion)
    expected = {"type": "lstm", "hidden_size": 64, "num_layers": 2, "position": "before"}
    assert ours["actor"]["rnn"] == ours["critic"]["rnn"] == expected
    assert ours["sequence_length"] == 4
    assert ours["share_trunk"] is False
    assert row(conversion, "params.network.separate").status == "changed"
    assert row(conversion, "params.network.rnn.layer_norm").status == "dropped"
    after = converted("rl_games", params__network__rnn={"name": "gru", "units": 8, "layers": 1})
    assert agent(after)["actor"]["rnn"]["position"] == "after", "before_mlp is false by default"


def test_rl_games_sequences_must_divide_the_rollout() -> None:
    with pytest.raises(ConfigError, match=r"params.config.seq_length: 5 cannot be used"):
        converted("rl_games", params__network__rnn={"name": "gru"}, params__config__seq_length=5)


def test_rl_games_mixed_precision_is_bf16() -> None:
    conversion = converted("rl_games", params__config__mixed_precision=True)
    assert agent(conversion)["precision"] == "bf16"
    assert row(conversion, "params.config.mixed_precision").status == "changed"


def test_rl_games_length_in_frames() -> None:
    conversion = converted("rl_games", params__config__max_epochs=-1, params__config__max_frames=1_000_000)
    assert conversion.config["num_iterations"] == 16  # of 4,096 envs x 16 steps
    assert row(conversion, "params.config.max_epochs").status == "dropped"


def test_rl_games_tutorial_layout() -> None:
    conversion = convert_file(DATA / "rl_games_tutorial.yaml", num_envs=64)
    ours = agent(conversion)
    assert conversion.library == "rl_games"
    assert (ours["num_steps"], ours["num_minibatches"], ours["num_epochs"]) == (32, 32, 4)
    assert (ours["lr_schedule"], ours["learning_rate"], ours["value_coef"]) == ("adaptive", 3e-4, 1.0)
    assert (conversion.config["seed"], conversion.config["save_interval"]) == (42, 50)
    assert row(conversion, "rl_games_config.train.max_episodes").status == "dropped"
    assert conversion.unknown == ()


# skrl


def test_skrl_defaults_are_filled_in() -> None:
    conversion = converted("skrl")
    ours = agent(conversion)
    expected = {
        "num_epochs": 8, "gamma": 0.99, "gae_lambda": 0.95, "learning_rate": 1e-3, "lr_schedule": "constant",
        "max_grad_norm": 0.5, "clip_range": 0.2, "clip_value_loss": True, "entropy_coef": 0.0, "value_coef": 2.5,
        "target_kl": None, "normalize_obs": False, "normalize_value": False, "share_trunk": False, "init_std": 1.0,
    }  # fmt: skip
    assert {key: ours[key] for key in expected} == expected
    assert conversion.config["num_iterations"] == 100


def test_skrl_states_are_the_critics_own_observations() -> None:
    ours = agent(converted("skrl"))
    assert (ours["actor_obs"], ours["critic_obs"]) == (["policy"], ["critic"])
    assert ours["critic"] == {"hidden_dims": [16], "activation": "tanh", "init": "default"}


def test_skrl_names_before_2() -> None:
    conversion = convert_file(DATA / "skrl_before_2.yaml", num_envs=4096)
    ours = agent(conversion)
    assert conversion.library == "skrl"
    assert ours["normalize_obs"] is True, "state_preprocessor alone means observations"
    assert ours["critic_obs"] == ["policy"], "STATES in both networks means observations"
    assert ours["gae_lambda"] == 0.9
    assert ours["max_grad_norm"] == math.inf
    assert ours["init_std"] == pytest.approx(math.exp(-0.5))
    assert (ours["min_std"], ours["max_std"]) == (0.01, pytest.approx(math.exp(2)))
    assert (ours["desired_kl"], ours["kl_band"], ours["kl_factor"]) == (0.012, [0.5, 2.0], 1.5)
    assert (conversion.config["num_iterations"], conversion.config["save_interval"]) == (200, 20)
    assert conversion.unknown == ()


def test_skrl_gru_is_a_linear_layer() -> None:
    conversion = convert_file(DATA / "skrl_before_2.yaml", num_envs=4096)
    assert agent(conversion)["actor"]["hidden_dims"] == [128, 64, 32]
    found = row(conversion, "models.policy.network")
    assert found.status == "changed"
    assert "GRU" in found.note


def test_skrl_unknown_options_are_not_hidden_by_their_group() -> None:
    conversion = converted(
        "skrl", agent__learning_rate_scheduler="KLAdaptiveLR", agent__learning_rate_scheduler_kwargs={"kl_treshold": 1}
    )
    assert conversion.unknown == ("agent.learning_rate_scheduler_kwargs.kl_treshold",)
    network = [{"name": "net", "input": "OBSERVATIONS", "layers": [8], "activation": "elu"}]
    conversion = converted("skrl", models__policy__network=network)
    assert conversion.unknown == ("models.policy.network.0.activation",)


def test_skrl_state_preprocessor_beside_the_observations_is_the_critics() -> None:
    conversion = converted(
        "skrl", agent__observation_preprocessor=None, agent__state_preprocessor="RunningStandardScaler"
    )
    assert agent(conversion)["normalize_obs"] == ["critic"]
    assert row(conversion, "agent.state_preprocessor").status == "kept"


def test_skrl_options_of_scaler_and_scheduler() -> None:
    conversion = converted(
        "skrl",
        agent__observation_preprocessor="RunningStandardScaler",
        agent__observation_preprocessor_kwargs={"clip_threshold": 7.0},
        agent__learning_rate_scheduler="KLAdaptiveLR",
        agent__learning_rate_scheduler_kwargs={"kl_threshold": 0.02, "min_lr": "1e-5", "kl_factor": 4, "lr_factor": 2},
    )
    ours = agent(conversion)
    assert (ours["clip_obs"], ours["desired_kl"], ours["lr_min"]) == (7.0, 0.02, 1e-5)
    assert (ours["kl_band"], ours["kl_factor"]) == ([0.25, 4.0], 2.0)
    assert row(conversion, "agent.learning_rate_scheduler").status == "changed"


@pytest.mark.parametrize("bootstrap", [True, False])
def test_skrl_time_outs_never_reach_the_next_episode(bootstrap: bool) -> None:
    conversion = converted("skrl", agent__time_limit_bootstrap=bootstrap)
    assert agent(conversion)["timeout_bootstrap"] == "final_obs"
    assert row(conversion, "agent.time_limit_bootstrap").status == "changed"


@pytest.mark.parametrize(
    ("changes", "expected", "status"),
    [
        ({"agent__value_clip": 0.2}, True, "changed"),
        ({"agent__value_clip": 0.0}, False, "kept"),
        ({"agent__value_clip": 0.2, "agent__clip_predicted_values": False}, False, "kept"),
    ],
)
def test_skrl_value_clip(changes: dict[str, Any], expected: bool, status: str) -> None:
    conversion = converted("skrl", **changes)
    assert agent(conversion)["clip_value_loss"] is expected
    assert row(conversion, "agent.value_clip").status == status


def test_skrl_early_stop_is_not_the_schedules_target() -> None:
    ours = agent(converted("skrl", agent__kl_threshold=0.05))
    assert ours["target_kl"] == 0.05
    assert "desired_kl" not in ours


@pytest.mark.parametrize(("rates", "status"), [([1e-3, 1e-3], "kept"), ((1e-3, 5e-4), "changed")])
def test_skrl_two_learning_rates(rates: Any, status: str) -> None:
    conversion = converted("skrl", agent__learning_rate=rates)
    assert agent(conversion)["learning_rate"] == 1e-3
    assert row(conversion, "agent.learning_rate").status == status


def test_skrl_shared_models_have_the_policys_network() -> None:
    conversion = converted("skrl", models__separate=False)
    ours = agent(conversion)
    assert ours["share_trunk"] is True
    assert ours["critic_obs"] == ["policy"]
    assert row(conversion, "models.value.network").status == "dropped"


def test_skrl_models_are_separate_unless_told() -> None:
    conversion = converted("skrl", models__separate=...)
    assert agent(conversion)["share_trunk"] is False
    assert row(conversion, "models.separate").status == "default"


@pytest.mark.parametrize(
    ("expression", "remark"),
    [
        ('permute(OBSERVATIONS["camera"], (0, 3, 1, 2))', "camera"),
        ("one_hot_encoding(OBSERVATION_SPACE, OBSERVATIONS)", "one_hot_encoding"),
        ("OBSERVATIONS[:, 0:3]", "whole group"),
        ("__import__('os').system('exit 1')", "not understood"),
        ("OBSERVATIONS +", "not understood"),
    ],
)
def test_skrl_expressions_are_read_not_evaluated(expression: str, remark: str) -> None:
    network = [{"name": "net", "input": expression, "layers": [64], "activations": "relu"}]
    conversion = converted("skrl", models__policy__network=network)
    found = row(conversion, "models.policy.network")
    assert found.status == "changed"
    assert remark in found.note
    assert agent(conversion)["actor"]["hidden_dims"] == [64]


def test_skrl_blocks_in_a_row_and_side_by_side() -> None:
    row_of = [
        {"name": "a", "input": "OBSERVATIONS", "layers": [64], "activations": "elu"},
        {"name": "b", "input": "a", "layers": [{"linear": 32}, {"linear": {"out_features": 16}}], "activations": "elu"},
    ]
    conversion = converted("skrl", models__policy__network=row_of)
    assert agent(conversion)["actor"]["hidden_dims"] == [64, 32, 16]
    assert row(conversion, "models.policy.network").status == "kept"
    beside = [
        {"name": "a", "input": 'OBSERVATIONS["x"]', "layers": [64], "activations": "elu"},
        {"name": "b", "input": 'OBSERVATIONS["y"]', "layers": [8], "activations": "elu"},
        {"name": "c", "input": "a + b", "layers": [], "activations": []},
    ]
    conversion = converted("skrl", models__policy__network=beside)
    assert agent(conversion)["actor"]["hidden_dims"] == [64]
    assert "side by side" in row(conversion, "models.policy.network").note


# SB3


def test_sb3_defaults_are_filled_in() -> None:
    conversion = converted("sb3")
    ours = agent(conversion)
    expected = {
        "num_minibatches": 16, "num_epochs": 10, "gamma": 0.99, "gae_lambda": 0.95, "entropy_coef": 0.0,
        "value_coef": 0.5, "max_grad_norm": 0.5, "learning_rate": 3e-4, "lr_schedule": "constant", "clip_range": 0.2,
        "clip_value_loss": False, "normalize_advantage": "minibatch", "target_kl": None, "normalize_obs": False,
        "actor": {"hidden_dims": [64, 64], "activation": "tanh", "init": "orthogonal"}, "init_std": 1.0,
    }  # fmt: skip
    assert {key: ours[key] for key in expected} == expected
    assert conversion.config["num_iterations"] == 16


def test_the_only_section_of_the_zoo_needs_no_name() -> None:
    source = {"Pendulum-v1": {"n_envs": 4, "n_timesteps": 1e5, "policy": "MlpPolicy", "gamma": 0.9}}
    assert agent(convert(source, "sb3", num_envs=None))["gamma"] == 0.9
    with pytest.raises(ConfigError, match="none for the task 'Hopper-v5'"):
        convert(source, "sb3", num_envs=None, task="gym:Hopper-v5")


def test_sb3_zoo_layout() -> None:
    conversion = convert_file(DATA / "sb3_zoo.yaml", num_envs=8, task="gym:CartPole-v1")
    ours = agent(conversion)
    assert conversion.library == "sb3"
    assert (ours["learning_rate"], ours["lr_schedule"]) == (0.001, "linear")
    assert ours["clip_range"] == 0.2
    assert row(conversion, "clip_range").status == "changed", "ours does not decline"
    assert row(conversion, "clip_range").note.endswith("see agent.schedules")
    assert ours["num_minibatches"] == 1
    assert conversion.config["num_iterations"] == math.ceil(1e5 / 256)


def test_sb3_code_as_text_is_parsed_not_evaluated() -> None:
    ours = agent(convert_file(DATA / "sb3_zoo.yaml", num_envs=1, task="Walker-v1"))
    assert ours["actor"] == {"hidden_dims": [256, 128], "activation": "relu", "init": "default"}
    assert ours["critic"]["hidden_dims"] == [64, 64]
    assert ours["init_std"] == pytest.approx(math.exp(-2))
    assert (ours["normalize_obs"], ours["normalize_value"]) == (True, False)
    for text in ("dict(a=open('x'))", "[x for x in y]", "dict(**{})", "1 +"):
        with pytest.raises(ConfigError, match=r"sb3: policy_kwargs: .* cannot be converted"):
            converted("sb3", policy_kwargs=text)


def test_sb3_isaac_lab_layout() -> None:
    kwargs = {
        "activation_fn": "nn.ELU",
        "net_arch": [400, 200],
        "squash_output": False,
        "optimizer_kwargs": {"eps": 1e-8},
    }
    conversion = converted(
        "sb3", SB3 | {"policy_kwargs": kwargs}, batch_size=..., n_minibatches=4, normalize_input=True, clip_obs=5.0,
        clip_range_vf=0.2,
    )  # fmt: skip
    ours = agent(conversion)
    assert ours["num_minibatches"] == 4
    assert ours["actor"]["hidden_dims"] == ours["critic"]["hidden_dims"] == [400, 200]
    assert (ours["actor"]["activation"], ours["clip_obs"], ours["clip_value_loss"]) == ("elu", 5.0, True)


def test_sb3_early_stop_has_a_margin() -> None:
    assert agent(converted("sb3", target_kl=0.02))["target_kl"] == pytest.approx(0.03)


# Errors


@pytest.mark.parametrize("library", SOURCES)
@pytest.mark.parametrize("value", [None, "x", -1, 0, 2.5, True, [], [1, "a"], {"a": 1}, float("nan")], ids=str)
def test_no_value_anywhere_breaks_the_converter(library: str, value: Any) -> None:
    def paths(tree: dict[str, Any], prefix: str) -> list[str]:
        below = [
            path for key, item in tree.items() if isinstance(item, dict) for path in paths(item, f"{prefix}{key}__")
        ]
        return [prefix + key for key in tree] + below

    outcomes = []
    for path in paths(SOURCES[library], ""):
        try:
            outcomes.append(from_dict(TrainConfig, converted(library, **{path: value}).config) is not None)
        except ConfigError as error:
            assert str(error).startswith(f"{library}: "), error
            outcomes.append(False)
    assert not all(outcomes)


@pytest.mark.parametrize(
    ("library", "changes", "message"),
    [
        (
            "rsl_rl",
            {"algorithm__class_name": "Distillation"},
            "rsl_rl: algorithm.class_name: 'Distillation' is not PPO",
        ),
        ("rl_games", {"params__algo__name": "dqn"}, "rl_games: params.algo.name: 'dqn' is not PPO"),
        ("skrl", {"agent__class": "AMP"}, "skrl: agent.class: 'AMP' is not PPO"),
        ("sb3", {"buffer_size": 1000}, "sb3: buffer_size: 1000 is of SAC, DDPG or TD3, and nothing says which"),
        ("rsl_rl", {"algorithm__gamma": 1.5}, "rsl_rl: algorithm.gamma: 1.5 cannot be used: .*0 to 1"),
        ("rl_games", {"params__config__e_clip": -0.2}, "rl_games: params.config.e_clip: -0.2 cannot be used"),
        ("rl_games", {"params__config__gamma": "high"}, "rl_games: params.config.gamma: 'high' cannot be converted"),
        ("skrl", {"agent__rollouts": 0}, "skrl: agent.rollouts: 0 cannot"),
        ("skrl", {"agent__value_loss_scale": True}, "skrl: agent.value_loss_scale: True cannot be converted"),
        ("skrl", {"models__policy__network": 3}, "skrl: models.policy.network: 3 cannot be converted"),
        ("rsl_rl", {"actor__activation": "sigmoid"}, "rsl_rl: actor.activation: 'sigmoid' cannot be converted: .*elu"),
        ("rsl_rl", {"actor__hidden_dims": [64, 0]}, r"rsl_rl: actor.hidden_dims: \[64, 0\] cannot be used"),
        ("rsl_rl", {"algorithm__schedule": "cosine"}, "rsl_rl: algorithm.schedule: 'cosine' cannot be converted"),
        ("sb3", {"n_timesteps": -5}, "sb3: n_timesteps: -5 cannot be used"),
    ],
)
def test_refusal_names_the_sources_key(library: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        converted(library, **changes)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    for text, message in (
        ("a: !!python/object/apply:os.getcwd []", "is not plain YAML"),
        ("[1]", "must hold"),
        ("a: 1", "looks like no configuration"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            convert_file(path, num_envs=4)
    with pytest.raises(ConfigError, match="does not exist"):
        convert_file(tmp_path / "none.yaml", num_envs=4)


def test_tuples_of_a_run_folder_are_read(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text("num_steps_per_env: 8\nalgorithm: {}\nactor: {hidden_dims: !!python/tuple [32, 16]}\n")
    assert agent(convert_file(path, num_envs=4))["actor"]["hidden_dims"] == [32, 16]


@pytest.mark.parametrize("library", SOURCES)
def test_library_is_guessed_from_the_layout(library: str) -> None:
    assert guess_library(SOURCES[library]) == library


@pytest.mark.parametrize("library", SOURCES)
def test_a_file_of_another_library_than_the_one_named_is_refused(library: str, tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(yaml.safe_dump(SOURCES[library]))
    for named in SOURCES:
        if named == library:
            assert convert_file(path, named, num_envs=4).library == library  # type: ignore[arg-type]
            continue
        message = f"--from is '{named}', and these look like settings of {library}; leave --from out"
        with pytest.raises(ConfigError, match=message):
            convert_file(path, named, num_envs=4)  # type: ignore[arg-type]


# The table and registrations


def test_table_shows_every_row_and_the_counts() -> None:
    conversion = converted("rl_games", params__config__surprise=1)
    output = io.StringIO()
    show(conversion, Console(file=output, width=200))
    text = output.getvalue()
    assert all(r.key in text for r in conversion.rows if len(r.key) < 30)
    assert f"{conversion.counts['changed']} changed" in text
    assert "unknown keys, not used: params.config.surprise" in text
    assert sum(conversion.counts.values()) == len(conversion.rows)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of agents as tasks ship them."""
    folder = tmp_path / "task_agents"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "ppo.py").write_text("class Runner:\n    num_steps_per_env = 12\n    algorithm = {'gamma': 0.9}\n")
    (folder / "broken.py").write_text("import no_such_simulator\n")
    (folder / "rl_games.yaml").write_text("params: {seed: 5}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "task_agents"]:
        monkeypatch.delitem(sys.modules, name)
    return "task_agents"


def test_registration_prefers_our_own_then_rsl_rl_then_skrl(package: str) -> None:
    entries: dict[str, Any] = {
        "env_cfg_entry_point": f"{package}.broken:Env",
        "rl_games_cfg_entry_point": f"{package}:rl_games.yaml",
        "skrl_cfg_entry_point": {"agent": {}},
        "rsl_rl_cfg_entry_point": f"{package}.ppo:Runner",
        "rlcore_cfg_entry_point": lambda: {"agent": {"gamma": 0.5}},
    }
    assert find_agent_config("T", entries) == ("rlcore", {"agent": {"gamma": 0.5}})
    del entries["rlcore_cfg_entry_point"]
    library, source = find_agent_config("T", entries)
    assert (library, agent(convert(source, "rsl_rl", num_envs=4))["gamma"]) == ("rsl_rl", 0.9)
    del entries["rsl_rl_cfg_entry_point"]
    assert find_agent_config("T", entries) == ("skrl", {"agent": {}})
    del entries["skrl_cfg_entry_point"]
    assert find_agent_config("T", entries) == ("rl_games", {"params": {"seed": 5}})


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"rsl_rl_cfg_entry_point": "task_agents.broken:Runner"}, "'T': rsl_rl_cfg_entry_point .*no_such_simulator"),
        ({"rsl_rl_cfg_entry_point": "task_agents.ppo:Walker"}, "'T': rsl_rl_cfg_entry_point .*Walker"),
        ({"skrl_cfg_entry_point": "task_agents:no.yaml"}, "does not exist"),
        ({"robomimic_bc_cfg_entry_point": "x:y"}, "'T' is registered without .* robomimic_bc_cfg_entry_point"),
        ({}, "add rlcore_cfg_entry_point"),
    ],
)
def test_registrations_that_cannot_be_used_say_why(package: str, entries: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_agent_config("T", entries)


def test_a_file_is_found_in_whichever_folder_of_a_package_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part, name in (
        ("a", "one.yaml"),
        ("b", "two.yaml"),
    ):  # two projects that share a name, neither of which owns it
        (tmp_path / part / "shared_agents").mkdir(parents=True)
        (tmp_path / part / "shared_agents" / name).write_text(f"params: {{seed: {len(part + name)}}}\n")
        monkeypatch.syspath_prepend(str(tmp_path / part))
    for name in ("one.yaml", "two.yaml"):
        found = find_agent_config("T", {"rl_games_cfg_entry_point": f"shared_agents:{name}"})
        assert found == ("rl_games", {"params": {"seed": 9}})


# What Isaac Lab and mjlab ship


ISAACLAB = "isaaclab==2.3.2.post1"
MJLAB = "mjlab==1.6.0"


def unpacked(requirement: str, tmp: Path) -> Path:
    """Python and YAML files of a wheel, in a cache outside the project; skips where it cannot be had."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlcore-tests" / requirement
    if cache.is_dir():
        return cache
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", "3.11", "--dest", str(tmp), requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"{requirement} cannot be downloaded: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    (wheel,) = tmp.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp / "out", [n for n in archive.namelist() if n.endswith((".py", ".yaml"))])
    cache.parent.mkdir(parents=True, exist_ok=True)
    try:
        (tmp / "out").rename(cache)
    except OSError:  # on another disk, or another worker was first
        return cache if cache.is_dir() else tmp / "out"
    return cache


def execute(path: Path, name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def stand_in(name: str, **attributes: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(attributes)
    sys.modules[name] = module
    return module


@pytest.fixture
def own_modules() -> Iterator[None]:
    """What a test puts into sys.modules is gone after it."""
    before = dict(sys.modules)
    yield
    for name in set(sys.modules) - set(before):
        del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture
def isaaclab(tmp_path: Path, own_modules: None) -> dict[str, Any]:
    """Every agent configuration in isaaclab_tasks, by file and class."""
    source = unpacked(ISAACLAB, tmp_path) / "isaaclab" / "source"
    stand_in("warp", array=type("array", (), {}), torch=types.SimpleNamespace())
    utils = stand_in("isaaclab.utils", __path__=[str(source / "isaaclab" / "isaaclab" / "utils")])
    stand_in("isaaclab", utils=utils, __path__=[])
    # The real decorator; the package around it needs a simulator.
    utils.__dict__["configclass"] = importlib.import_module("isaaclab.utils.configclass").configclass
    rsl_rl = source / "isaaclab_rl" / "isaaclab_rl" / "rsl_rl"
    package = stand_in("isaaclab_rl.rsl_rl", __path__=[str(rsl_rl)])
    stand_in("isaaclab_rl", rsl_rl=package, __path__=[])
    for name in ("rl_cfg", "rnd_cfg", "symmetry_cfg", "distillation_cfg"):
        module = importlib.import_module(f"isaaclab_rl.rsl_rl.{name}")
        package.__dict__.update({key: value for key, value in vars(module).items() if key.startswith("RslRl")})
    mirror = types.SimpleNamespace(compute_symmetric_states=len)
    for base, task in (("locomotion", "velocity"), ("classic", "cartpole")):
        parts = ("isaaclab_tasks", "manager_based", base, task, "mdp", "symmetry")
        for i in range(1, len(parts) + 1):
            name = ".".join(parts[:i])
            if name not in sys.modules:
                module = stand_in(name, __path__=[], anymal=mirror, compute_symmetric_states=len)
                if i > 1:
                    setattr(sys.modules[".".join(parts[: i - 1])], parts[i - 1], module)
    found: dict[str, Any] = {}
    tasks = source / "isaaclab_tasks" / "isaaclab_tasks"
    for path in sorted(tasks.glob("**/agents/*")):
        place = path.relative_to(tasks).as_posix()
        if path.suffix == ".yaml" and not path.name.startswith("robomimic"):
            found[place] = path
        elif path.name.startswith("rsl_rl"):
            module = execute(path, "agents_" + place.replace("/", "_").removesuffix(".py"))
            for name, value in vars(module).items():
                if getattr(value, "__module__", "") == module.__name__ and name.endswith("Cfg"):
                    found[f"{place}:{name}"] = value()
    return found


@pytest.fixture
def mjlab(tmp_path: Path, own_modules: None) -> dict[str, Any]:
    """Every agent configuration in mjlab, by file and function."""
    source = unpacked(MJLAB, tmp_path) / "mjlab"
    config = execute(source / "rl" / "config.py", "mjlab_rl_config")
    names = {name: value for name, value in vars(config).items() if name.startswith("RslRl")}
    found: dict[str, Any] = {}
    for path in sorted((source / "tasks").glob("**/*cfg.py")):
        # The functions alone: what stands around them in some files needs a simulator.
        text = path.read_text()
        if "RslRlOnPolicyRunnerCfg:" not in text:
            continue
        tree = ast.parse(text)
        kept = [
            node
            for node in tree.body
            if (isinstance(node, ast.FunctionDef) and "RunnerCfg" in ast.unparse(node.returns or ast.Constant(None)))
            or (isinstance(node, ast.Assign) and path.name == "rl_cfg.py")
        ]
        scope = dict(names)
        exec(compile(ast.Module(kept, []), str(path), "exec"), scope)
        for node in kept:
            if isinstance(node, ast.FunctionDef):
                found[f"{path.relative_to(source).as_posix()}:{node.name}"] = scope[node.name]()
    return found


def convert_all(sources: dict[str, Any]) -> tuple[dict[str, Conversion], dict[str, str]]:
    done: dict[str, Conversion] = {}
    refused: dict[str, str] = {}
    for name, source in sources.items():
        try:
            if isinstance(source, Path):
                done[name] = convert_file(source, num_envs=4096)
            else:
                done[name] = convert(source, "rsl_rl", num_envs=4096)
        except ConfigError as error:
            refused[name] = str(error)
    for library in sorted({conversion.library for conversion in done.values()}):
        counts: Counter[str] = Counter()
        mine = [conversion for conversion in done.values() if conversion.library == library]
        for conversion in mine:
            counts.update(conversion.counts)
        print(f"{library}: {len(mine)} converted, {dict(counts)}")
    return done, refused


def setting(conversion: Conversion, key: str) -> Any:
    value: Any = conversion.config
    for part in key.split("."):
        value = value[part]
    return value


# Read from the files by hand, with each library's documentation beside them.
BY_HAND: dict[str, dict[str, Any]] = {
    "manager_based/locomotion/velocity/config/anymal_c/agents/rsl_rl_ppo_cfg.py:AnymalCFlatPPORunnerCfg": {
        "num_iterations": 300, "save_interval": 50, "seed": 42, "agent.num_steps": 24, "agent.num_minibatches": 4,
        "agent.actor.hidden_dims": [128, 128, 128], "agent.critic.hidden_dims": [128, 128, 128],
        "agent.normalize_obs": False, "agent.entropy_coef": 0.005, "agent.learning_rate": 1e-3,
        "agent.lr_schedule": "adaptive", "agent.init_std": 1.0, "agent.value_coef": 1.0, "agent.grad_clip": "joint",
        "agent.std_type": "scalar",
    },
    "manager_based/locomotion/velocity/config/spot/agents/rsl_rl_ppo_cfg.py:SpotFlatPPORunnerCfg": {
        "num_iterations": 20000, "agent.value_coef": 0.5, "agent.entropy_coef": 0.0025, "agent.num_epochs": 5,
    },
    "manager_based/manipulation/dexsuite/config/kuka_allegro/agents/rsl_rl_ppo_cfg.py:"
    "DexsuiteKukaAllegroPPORunnerCfg": {
        "agent.actor_obs": ["policy", "proprio", "perception"], "agent.normalize_obs": True, "agent.num_steps": 32,
        "agent.critic_obs": ["policy", "proprio", "perception"], "agent.clip_obs": None, "save_interval": 250,
    },
    "manager_based/manipulation/deploy/gear_assembly/config/ur_10e/agents/rsl_rl_ppo_cfg.py:"
    "UR10GearAssemblyRNNPPORunnerCfg": {
        "agent.state_dependent_std": True, "agent.clip_actions": 1.0, "agent.num_minibatches": 16,
        "agent.num_epochs": 8, "agent.desired_kl": 0.008, "agent.learning_rate": 5e-4, "agent.critic_obs": ["critic"],
        "agent.entropy_coef": 0.0, "agent.num_steps": 512,
    },
    "manager_based/locomotion/velocity/config/anymal_c/agents/rl_games_flat_ppo_cfg.yaml": {
        "num_iterations": 300, "save_interval": 50, "agent.value_coef": 1.0, "agent.reward_scale": 0.6,
        "agent.share_trunk": True, "agent.normalize_value": True, "agent.normalize_obs": False,
        "agent.num_minibatches": 4, "agent.clip_actions": 1.0, "agent.learning_rate": 1e-3, "agent.max_grad_norm": 1.0,
        "agent.desired_kl": 0.01, "agent.lr_min": 1e-6, "agent.bounds_loss_coef": 0.0, "agent.precision": "bf16",
        "agent.gae_lambda": 0.95, "agent.entropy_coef": 0.005, "agent.timeout_bootstrap": "final_obs",
    },
    "direct/shadow_hand/agents/rl_games_ppo_ff_cfg.yaml": {
        "agent.share_trunk": False, "agent.actor.hidden_dims": [400, 400, 200, 100], "agent.value_coef": 2.0,
        "agent.critic.hidden_dims": [512, 512, 256, 128], "agent.reward_scale": 0.01, "agent.gamma": 0.998,
        "agent.num_minibatches": 4, "agent.clip_obs": 5.0, "agent.bounds_loss_coef": 1e-4, "num_iterations": 10000,
    },
    "manager_based/manipulation/reach/config/franka/agents/rl_games_ppo_cfg.yaml": {"agent.clip_actions": 100.0},
    "direct/automate/agents/rl_games_ppo_cfg.yaml": {"agent.max_grad_norm": math.inf},
    "manager_based/locomotion/velocity/config/anymal_c/agents/skrl_flat_ppo_cfg.yaml": {
        "num_iterations": 300, "agent.num_steps": 24, "agent.num_epochs": 5, "agent.num_minibatches": 4,
        "agent.share_trunk": True, "agent.normalize_obs": False, "agent.normalize_value": True,
        "agent.reward_scale": 0.6, "agent.value_coef": 1.0, "agent.desired_kl": 0.01, "agent.lr_max": 1e-2,
        "agent.max_grad_norm": 1.0, "agent.init_std": 1.0, "agent.entropy_coef": 0.005,
        "agent.timeout_bootstrap": "final_obs", "agent.clip_value_loss": True, "agent.target_kl": None,
    },
    "manager_based/drone_arl/track_position_state_based/config/arl_robot_1/agents/skrl_ppo_cfg.yaml": {
        "agent.actor.hidden_dims": [256, 128, 64, 64], "agent.critic_obs": ["policy"],
    },
    "manager_based/classic/humanoid/agents/sb3_ppo_cfg.yaml": {
        "agent.num_minibatches": 4, "num_iterations": math.ceil(5e7 / (4096 * 32)), "agent.value_coef": 2.0,
        "agent.actor.hidden_dims": [400, 200, 100], "agent.actor.activation": "elu", "agent.actor.init": "default",
        "agent.learning_rate": 5e-4, "agent.lr_schedule": "constant", "agent.normalize_advantage": "minibatch",
        "agent.clip_value_loss": False,
    },
}  # fmt: skip


@pytest.mark.slow
def test_every_configuration_in_isaaclab_converts(isaaclab: dict[str, Any]) -> None:
    done, refused = convert_all(isaaclab)
    libraries = Counter(conversion.library for conversion in done.values())
    assert libraries == {"rl_games": 37, "skrl": 67, "sb3": 6, "rsl_rl": 58}
    assert all("is not PPO" in reason for reason in refused.values()), refused
    algorithms = Counter(reason.partition(": '")[2].partition("'")[0] for reason in refused.values())
    assert algorithms == {"AMP": 3, "IPPO": 2, "MAPPO": 2, "Distillation": 1}
    assert {name: c.unknown for name, c in done.items() if c.unknown} == {}
    for name, expected in BY_HAND.items():
        assert {key: setting(done[name], key) for key in expected} == expected, name


@pytest.mark.slow
def test_every_configuration_in_mjlab_converts(mjlab: dict[str, Any]) -> None:
    done, refused = convert_all(mjlab)
    assert refused == {}
    assert len(done) >= 7
    assert {name: c.unknown for name, c in done.items() if c.unknown} == {}
    go1 = done["tasks/velocity/config/go1/rl_cfg.py:unitree_go1_ppo_runner_cfg"]
    expected = {
        "num_iterations": 10_000, "save_interval": 50, "seed": 42, "agent.num_steps": 24, "agent.num_epochs": 5,
        "agent.num_minibatches": 4, "agent.entropy_coef": 0.01, "agent.normalize_obs": True, "agent.clip_obs": None,
        "agent.actor_obs": ["actor"], "agent.critic_obs": ["critic"], "agent.actor.hidden_dims": [512, 256, 128],
        "agent.grad_clip": "separate", "agent.init_std": 1.0, "agent.clip_actions": None, "agent.lr_min": 1e-5,
        "agent.std_type": "scalar",
    }  # fmt: skip
    assert {key: setting(go1, key) for key in expected} == expected
    vision = done["tasks/manipulation/config/yam/rl_cfg.py:yam_lift_cube_vision_ppo_runner_cfg"]
    encoder = {
        "channels": [16, 32], "kernel_sizes": [5, 3], "strides": [2, 2], "padding": [2, 1], "activation": "elu",
        "pooling": "none", "global_pooling": "softmax",
    }  # fmt: skip
    assert setting(vision, "agent.actor.cnn") == setting(vision, "agent.critic.cnn") == encoder
    assert setting(vision, "agent.actor_obs") == ["actor", "camera"]
    assert row(vision, "actor.class_name").status == "kept"
