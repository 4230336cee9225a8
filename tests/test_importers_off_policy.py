"""What becomes of other libraries' settings of SAC, DDPG and TD3."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from test_importers import agent, changed, row

from rlcore.config import ConfigError, load_yaml
from rlcore.envs import make_env
from rlcore.train.algorithms import find
from rlcore.train.cli import main
from rlcore.train.config import read_config
from rlcore.train.importers.convert import Conversion, convert, convert_file, guess_library

DATA = Path(__file__).parent / "data"


def _net(words: str, *layers: int) -> dict[str, Any]:
    return {"network": [{"name": "net", "input": words, "layers": list(layers), "activations": "relu"}]}


_POLICY = {"class": "DeterministicMixin", "output": "tanh(ACTIONS)", **_net("OBSERVATIONS", 32, 16)}
_CRITIC = {"class": "DeterministicMixin", "output": "ONE", **_net("concatenate([STATES, ACTIONS])", 64)}

SKRL_DDPG: dict[str, Any] = {
    "models": {"policy": _POLICY, "target_policy": _POLICY, "critic": _CRITIC, "target_critic": _CRITIC},
    "memory": {"class": "RandomMemory", "memory_size": 1000},
    "agent": {
        "class": "DDPG",
        "learning_rate": [1e-4, 1e-3],
        "exploration_noise": "OrnsteinUhlenbeckNoise",
        "exploration_noise_kwargs": {"theta": 0.15, "sigma": 0.1, "base_scale": 0.5},
        "exploration_scheduler": "1 - timestep / timesteps",
        "grad_norm_clip": 0.5,
    },
    "trainer": {"timesteps": 1600},
}
SKRL_TD3: dict[str, Any] = {
    "models": {
        "policy": _POLICY,
        "critic_1": _CRITIC,
        "critic_2": _CRITIC,
    },
    "agent": {
        "class": "TD3",
        "exploration_noise": "GaussianNoise",
        "exploration_noise_kwargs": {"mean": 0.0, "std": 0.1},
        "policy_delay": 3,
        "smooth_regularization_noise": "GaussianNoise",
        "smooth_regularization_noise_kwargs": {"mean": 0.0, "std": 0.2},
        "smooth_regularization_clip": 0.4,
    },
}
RL_GAMES: dict[str, Any] = {
    "params": {
        "seed": 5,
        "algo": {"name": "sac"},
        "model": {"name": "soft_actor_critic"},
        "network": {
            "name": "soft_actor_critic",
            "separate": True,
            "space": {"continuous": None},
            "mlp": {"units": [256, 128], "activation": "relu", "initializer": {"name": "default"}},
            "log_std_bounds": [-5, 2],
        },
        "config": {
            "name": "Cheetah",
            "env_name": "envpool",
            "normalize_input": True,
            "mixed_precision": False,
            "reward_shaper": {"scale_value": 0.5},
            "max_frames": 1_000_000,
            "num_steps_per_episode": 4,
            "save_best_after": 200,
            "save_frequency": 100,
            "gamma": 0.98,
            "init_alpha": 0.7,
            "alpha_lr": "3e-4",
            "actor_lr": 3e-4,
            "critic_lr": 1e-3,
            "critic_tau": 0.01,
            "batch_size": 512,
            "learnable_temperature": True,
            "num_updates_per_step": 16,
            "num_warmup_steps": 10,
            "replay_buffer_size": 500_000,
            "num_actors": 32,
        },
    }
}
SB3_TD3: dict[str, Any] = {
    "n_envs": 4,
    "n_timesteps": 1e6,
    "policy": "MlpPolicy",
    "noise_type": "normal",
    "noise_std": 0.1,
    "policy_delay": 2,
    "learning_rate": 1e-3,
    "train_freq": 2,
    "gradient_steps": -1,
    "policy_kwargs": "dict(net_arch=dict(pi=[64, 32], qf=[128]), n_critics=2)",
}
SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "skrl DDPG": ("skrl", SKRL_DDPG),
    "skrl TD3": ("skrl", SKRL_TD3),
    "rl_games SAC": ("rl_games", RL_GAMES),
    "sb3 TD3": ("sb3", SB3_TD3),
}


def converted(name: str, num_envs: int | None = 64, **changes: Any) -> Conversion:
    library, source = SOURCES[name]
    return convert(changed(source, **changes), library, num_envs=num_envs, task="Pendulum")  # type: ignore[arg-type]


def old_skrl(num_envs: int = 64) -> Conversion:
    return convert_file(DATA / "skrl_sac_before_2.yaml", num_envs=num_envs, task="Pendulum")


def zoo(task: str, algo: str | None = None, num_envs: int | None = None) -> Conversion:
    return convert_file(DATA / "sb3_zoo_sac.yaml", num_envs=num_envs, task=task, algo=algo)


@pytest.mark.parametrize("name", SOURCES)
def test_every_key_has_a_row_and_none_is_unknown(name: str) -> None:
    conversion = converted(name)
    told = {row.key for row in conversion.rows}
    source = copy.deepcopy(SOURCES[name][1])
    if name == "sb3 TD3":
        source.pop("policy_kwargs")  # text, whose parts have rows

    def leaves(value: Any, prefix: str) -> list[str]:
        if not isinstance(value, dict) or prefix.rstrip(".") in told:
            return [prefix.rstrip(".")]
        return [leaf for key, item in value.items() for leaf in leaves(item, f"{prefix}{key}.")]

    assert set(leaves(source, "")) <= told
    assert conversion.unknown == ()


@pytest.mark.parametrize("name", [*SOURCES, "skrl SAC", "zoo SAC"])
def test_result_trains(name: str) -> None:
    number = 2
    named = {"skrl SAC": lambda: old_skrl(number), "zoo SAC": lambda: zoo("Lander-v1", num_envs=number)}
    conversion = named[name]() if name in named else converted(name, number)
    small = {"buffer_size": 400, "learning_starts": 10, "batch_size": 4, "critic_obs": ["policy"]}
    config = read_config({**conversion.config, "agent": {**conversion.config["agent"], **small}})
    assert config.preset == "classic"  # type: ignore[attr-defined]  # of SAC and DDPG
    learner = find(config.algo).agent(make_env("Pendulum", number), config.agent, seed=1)
    before = [parameter.clone() for parameter in learner.policy.parameters()]
    learner.learn(12)
    after = list(learner.policy.parameters())
    assert all(p.isfinite().all() for p in after)
    assert any(not p.equal(q) for p, q in zip(before, after, strict=True))


def test_skrls_sac_from_before_2() -> None:
    conversion = old_skrl()
    assert conversion.unknown == ()
    assert (conversion.config["algo"], conversion.config["seed"]) == ("sac", 42)
    assert (conversion.config["num_iterations"], conversion.config["save_interval"]) == (16_000, 500)
    expected = {
        "num_steps": 1, "update_ratio": 2 / 64, "batch_size": 4096, "gamma": 0.98, "tau": 0.01, "n_step": 1,
        "buffer_size": 1_000_000, "learning_starts": 80 * 64, "learning_rate": 5e-4, "max_grad_norm": None,
        "temperature_learning_rate": 5e-3, "init_temperature": 1.0, "learn_temperature": True, "target_entropy": None,
        "log_std_range": [-5.0, 2.0], "init_std": 1.0, "reward_scale": 0.1, "normalize_obs": True, "clip_obs": 5.0,
        "actor_obs": ["policy"], "critic_obs": ["policy"], "num_critics": 2, "timeout_bootstrap": "final_obs",
    }  # fmt: skip
    assert {key: agent(conversion).get(key) for key in expected} == expected
    assert agent(conversion)["actor"] == {"hidden_dims": [512, 256], "activation": "relu", "init": "default"}
    assert agent(conversion)["critic"] == {"hidden_dims": [256, 128], "activation": "elu", "init": "default"}
    assert row(conversion, "agent.target_entropy").status == "changed"
    assert row(conversion, "models.target_critic_2").status == "kept"


def test_skrls_ddpg_with_a_process_as_noise() -> None:
    conversion = converted("skrl DDPG")
    ours = agent(conversion)
    assert conversion.config["algo"] == "ddpg"
    assert (ours["num_critics"], ours["noise"], ours["noise_decay"]) == (1, "ou", 0.15)
    assert ours["noise_std"] == pytest.approx(0.05)
    assert (ours["learning_rate"], ours["max_grad_norm"], ours["buffer_size"]) == (1e-4, 0.5, 64_000)
    assert ours["critic_obs"] == ["critic"]  # STATES beside OBSERVATIONS are the critic's own
    assert row(conversion, "agent.learning_rate").status == "changed"
    assert row(conversion, "agent.exploration_scheduler").status == "dropped"
    gaussian = converted("skrl DDPG", agent__exploration_noise=..., agent__exploration_noise_kwargs=...)
    assert (agent(gaussian)["noise"], agent(gaussian)["noise_std"]) == ("gaussian", 0.0)


def test_skrls_td3_is_ddpg_with_two_critics() -> None:
    conversion = converted("skrl TD3")
    ours = agent(conversion)
    assert conversion.config["algo"] == "ddpg"
    assert (ours["num_critics"], ours["policy_delay"]) == (2, 3)
    assert (ours["target_noise"], ours["target_noise_clip"], ours["noise_std"]) == (0.2, 0.4, 0.1)
    smooth = agent(converted("skrl TD3", agent__smooth_regularization_noise=None))
    assert smooth["target_noise"] == 0.0


def test_critics_that_differ_are_told() -> None:
    other = {**_CRITIC, **_net("concatenate([OBSERVATIONS, ACTIONS])", 8)}
    conversion = converted("skrl TD3", models__critic_2=other)
    assert row(conversion, "models.critic_2").status == "dropped"
    assert agent(conversion)["critic"]["hidden_dims"] == [64]


def test_rl_games_sac() -> None:
    conversion = converted("rl_games SAC", None)
    ours = agent(conversion)
    assert (conversion.config["algo"], conversion.config["num_envs"]) == ("sac", 32)
    assert conversion.config["num_iterations"] == 1_000_000 / 32
    assert conversion.config["save_interval"] == 400
    expected = {
        "update_ratio": 0.5, "learning_starts": 10 * 4 * 32, "policy_delay": 2, "learning_rate": 3e-4, "gamma": 0.98,
        "temperature_learning_rate": 3e-4, "init_temperature": 0.7, "max_grad_norm": 5.0, "reward_scale": 0.5,
        "log_std_range": [-5.0, 2.0], "tau": 0.01, "batch_size": 512, "buffer_size": 500_000, "target_entropy": None,
        "normalize_obs": True, "timeout_bootstrap": "final_obs",
    }  # fmt: skip
    assert {key: ours.get(key) for key in expected} == expected
    assert ours["actor"] == ours["critic"] == {"hidden_dims": [256, 128], "activation": "relu", "init": "default"}
    assert row(conversion, "params.config.actor_lr").status == "changed"
    assert row(conversion, "params.config.critic_lr").status == "dropped"


def test_rl_games_updates_may_be_counted_by_frame() -> None:
    conversion = converted("rl_games SAC", 128, params__config__utd_ratio=0.25, params__config__num_warmup_frames=5000)
    assert (agent(conversion)["update_ratio"], agent(conversion)["learning_starts"]) == (0.25, 5000)
    assert row(conversion, "params.config.num_updates_per_step").status == "dropped"
    assert row(conversion, "params.config.num_actors").status == "changed"
    assert conversion.config["num_envs"] == 128
    # 1,000 groups of 4 vector steps of 4,096 envs are more than the replay memory holds.
    long = converted("rl_games SAC", 4096, params__config__num_warmup_steps=...)
    assert agent(long)["learning_starts"] == 500_000
    epochs = converted("rl_games SAC", params__config__max_epochs=100)
    assert epochs.config["num_iterations"] == 400


def test_zoos_sac_of_few_words_is_told_by_the_files_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing says which; give --algo sac, ddpg or td3"):
        zoo("Walker-v1")
    short = zoo("Walker-v1", "sac")
    assert (short.config["num_envs"], short.config["num_iterations"]) == (1, 1_000_000)
    expected = {"learning_rate": 3e-4, "batch_size": 256, "learning_starts": 10_000, "update_ratio": 1.0}
    assert {key: agent(short)[key] for key in expected} == expected
    named = tmp_path / "td3.yml"
    named.write_text((DATA / "sb3_zoo_sac.yaml").read_text())
    td3 = convert_file(named, num_envs=None, task="gym:Walker-v1")
    assert td3.config["algo"] == "ddpg"
    assert (agent(td3)["num_critics"], agent(td3)["policy_delay"], agent(td3)["learning_rate"]) == (2, 2, 1e-3)
    assert agent(td3)["actor"]["hidden_dims"] == [400, 300]


def test_zoos_sac_that_gives_itself_away() -> None:
    conversion = zoo("Lander-v1")
    ours = agent(conversion)
    assert conversion.config["num_iterations"] == 500_000 / 8
    expected = {
        "num_steps": 8, "update_ratio": 1.0, "learning_rate": 7.3e-4, "init_temperature": 0.1, "tau": 0.02,
        "learn_temperature": True, "normalize_obs": True, "normalize_reward": False, "batch_size": 512,
    }  # fmt: skip
    assert {key: ours.get(key) for key in expected} == expected
    assert ours["critic"]["hidden_dims"] == [400, 300]
    assert row(conversion, "use_sde").status == "dropped"
    assert row(conversion, "learning_rate").status == "changed"
    many = agent(zoo("Lander-v1", num_envs=16))
    assert many["update_ratio"] == 8 / (8 * 16)  # gradient steps are counted by updates there


def test_sb3s_td3() -> None:
    conversion = converted("sb3 TD3", None)
    ours = agent(conversion)
    assert (conversion.config["algo"], conversion.config["num_envs"]) == ("ddpg", 4)
    assert conversion.config["num_iterations"] == 1_000_000 / 8
    assert (ours["num_steps"], ours["update_ratio"]) == (2, 1.0)  # -1: as many as steps were taken
    assert (ours["noise"], ours["noise_std"], ours["target_noise"]) == ("gaussian", 0.1, 0.2)
    assert (ours["actor"]["hidden_dims"], ours["critic"]["hidden_dims"]) == ([64, 32], [128])
    process = agent(converted("sb3 TD3", noise_type="ornstein-uhlenbeck", noise_std=0.5))
    assert (process["noise"], process["noise_std"], process["noise_decay"]) == ("ou", pytest.approx(0.05), 0.0015)
    episodes = converted("sb3 TD3", train_freq=[1, "episode"], gradient_steps=64)
    assert agent(episodes)["update_ratio"] == 1.0
    assert row(episodes, "gradient_steps").status == row(episodes, "train_freq").status == "changed"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("skrl DDPG", {"agent__learning_rate": [1, 2, 3]}, "skrl: agent.learning_rate: .* give one number or 2"),
        ("skrl DDPG", {"agent__exploration_noise": "Uniform"}, "skrl: agent.exploration_noise: 'Uniform' cannot"),
        ("skrl DDPG", {"agent__polyak": 2.0}, "skrl: agent.polyak: 2.0 cannot be used"),
        ("skrl TD3", {"models__critic_1__network": 3}, "skrl: models.critic_1.network: 3 cannot be converted"),
        ("rl_games SAC", {"params__config__gamma": 1.5}, "rl_games: params.config.gamma: 1.5 cannot be used"),
        ("rl_games SAC", {"params__network__log_std_bounds": 3}, "params.network.log_std_bounds: 3 cannot be"),
        ("sb3 TD3", {"replay_buffer_class": "HerReplayBuffer"}, "rlcore has no hindsight replay"),
        ("sb3 TD3", {"noise_type": "pink"}, "sb3: noise_type: 'pink' cannot be converted: known are .*normal"),
    ],
)
def test_refusal_names_the_sources_key(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        converted(name, **changes)


def test_another_algorithm_than_is_asked_for_is_refused() -> None:
    with pytest.raises(ConfigError, match="skrl: these are settings of ddpg, not of sac; leave --algo out"):
        convert(SKRL_DDPG, "skrl", num_envs=4, algo="sac")
    with pytest.raises(ConfigError, match="rl_games: these are settings of sac, not of ppo"):
        convert(RL_GAMES, "rl_games", num_envs=4, algo="ppo")
    assert convert(SKRL_TD3, "skrl", num_envs=4, algo="ddpg").config["algo"] == "ddpg"


def test_library_is_guessed_from_the_layout() -> None:
    for library, source in SOURCES.values():
        assert guess_library(source) == library
    assert guess_library({"policy": "MlpPolicy", "ent_coef": "auto"}) == "sb3"


def test_file_is_converted_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "sac.yaml"
    words = f"config --file {DATA / 'sb3_zoo_sac.yaml'} --task Pendulum --algo sac"
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert "sections for Walker-v1, Lander-v1, but none for the task 'Pendulum'; name one, such as" in error
    assert "--task gym:Walker-v1" in error
    assert main(f"config --file {DATA / 'sb3_zoo_sac.yaml'}".split()) == 2
    assert "sections for Walker-v1, Lander-v1; name one, such as --task gym:Walker-v1" in capsys.readouterr().err
    words = f"config --file {DATA / 'skrl_sac_before_2.yaml'} --task Pendulum --num-envs 8 --output {output}"
    assert main(words.split()) == 0
    assert main(f"config --file {DATA / 'skrl_sac_before_2.yaml'} --show".split()) == 0
    assert "agent.init_temperature = 1" in capsys.readouterr().out
    assert main(f"config --file {DATA / 'skrl_sac_before_2.yaml'} --algo ppo".split()) == 2
    assert "settings of sac, not of ppo" in capsys.readouterr().err
    text = output.read_text()
    assert "algo: sac" in text and "update_ratio: 0.25" in text
    assert load_yaml(output)["task"] == "Pendulum"
    assert main(f"config --file {DATA / 'skrl_sac_before_2.yaml'} --output {output}".split()) == 0
    assert "task" not in load_yaml(output)
    assert main(["train", "--config", str(output)]) == 2
    assert "--task is missing" in capsys.readouterr().err


def test_intervals_fit_runs_of_single_steps() -> None:
    config = convert({"n_timesteps": 20_000, "buffer_size": 1_000}, "sb3", num_envs=1, algo="sac").config
    assert (config["save_interval"], config["eval_interval"], config["log_interval"]) == (2_000, 1_000, 100)
    short = convert({"n_timesteps": 400, "buffer_size": 1_000}, "sb3", num_envs=1, algo="sac").config
    assert not {"save_interval", "eval_interval", "log_interval"} & set(short)
    own = converted("rl_games SAC").config
    assert own["save_interval"] != own["num_iterations"] // 10 and own["eval_interval"] == own["num_iterations"] // 20
