"""What a conversion says of itself, which version a file is of, and files that are broken or half filled."""

from __future__ import annotations

import copy
import logging
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_importers import DATA, RL_GAMES, RSL_RL, RSL_RL_OLD, SB3, SKRL, agent, changed, converted, row

from rlcore.config import ConfigError
from rlcore.envs import make_env
from rlcore.ppo import PPO, PPOConfig
from rlcore.train.cli import main
from rlcore.train.importers.convert import convert, convert_file

OLD = DATA / "skrl_before_1_3.yaml"
TUTORIAL = DATA / "rl_games_tutorial.yaml"


# The account. -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("show", [[], ["--show"]])
def test_file_that_is_converted_says_on_stderr_what_became_of_its_keys(
    show: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "theirs.yaml"
    file.write_text(yaml.safe_dump(changed(RL_GAMES, params__config__taus=0.5)))
    output = tmp_path / "ours.yaml"
    assert main(["config", "--file", str(file), "--output", str(output), *show]) == 0
    conversion = convert_file(file, num_envs=None)
    kept, lost, new, filled = (conversion.counts[s] for s in ("kept", "changed", "dropped", "default"))
    unknown = "params.config.taus; did you mean 'params.config.tau'?"
    counts = f"{kept} keys kept, {lost} changed, {new - 1} dropped, 1 unknown ({unknown}), {filled} defaults"
    said = capsys.readouterr().err
    assert said.startswith(f"settings     of rl_games: {counts}")
    assert ("--show" in said) == (not show)
    assert output.read_text().startswith("# Converted from rl_games for 4096 envs")


def test_what_was_assumed_has_a_row() -> None:
    assumed = convert(RSL_RL, "rsl_rl", num_envs=None)
    envs, length = row(assumed, "(number of envs)"), row(assumed, "(length of the run)")
    assert (envs.ours, length.ours) == ("num_envs = 4096", "num_iterations = 300")
    assert envs.status == length.status == "default"
    assert "--num-envs" in envs.note and "--num-iterations" in length.note
    told = {r.key for r in convert(RSL_RL_OLD, "rsl_rl", num_envs=64).rows}
    assert not told & {"(number of envs)", "(length of the run)"}


@pytest.mark.parametrize(
    ("library", "source", "minibatches"),
    [
        ("rl_games", changed(RL_GAMES, params__config__num_actors=256, params__config__minibatch_size=1024), 4),
        ("sb3", SB3 | {"n_envs": 256, "batch_size": 512}, 8),
    ],
)
def test_number_of_envs_of_the_file_is_taken_unless_given(library: Any, source: Any, minibatches: int) -> None:
    for num_envs, expected, count in ((None, 256, minibatches), (64, 64, minibatches // 4)):
        conversion = convert(source, library, num_envs=num_envs)
        assert (conversion.config["num_envs"], agent(conversion)["num_minibatches"]) == (expected, count)


def test_small_minibatches_are_said_when_the_run_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Converted for 4,096 envs the tutorial's 64 samples are 2,048 minibatches, which leave 64 envs one sample each."""
    output = tmp_path / "x.yaml"
    assert main(["config", "--file", str(TUTORIAL), "--output", str(output)]) == 0
    assert "warning" not in capsys.readouterr().err
    words = f"train --config {output} --task CartPole --num-envs 64 --num-iterations 1 --eval-envs 2 --no-export"
    short = "--agent.num-epochs 1 --env.max-episode-length 5"
    assert main([*words.split(), *short.split(), "--runs-dir", str(tmp_path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "warning num_minibatches is 2048, which cuts 64 envs x 32 steps into minibatches of 1 sample" in printed
    assert "set 64" in printed
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        PPO(make_env("CartPole", 64), PPOConfig(num_steps=32, num_minibatches=64))
        assert not caplog.records
        PPO(make_env("CartPole", 1), PPOConfig(num_steps=24))
    assert "give more num_envs or num_steps" in caplog.text


def test_small_minibatches_are_said_when_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "theirs.yaml"
    file.write_text(yaml.safe_dump(RSL_RL_OLD))
    assert main(["config", "--file", str(file), "--num-envs", "4"]) == 0
    assert "warning      num_minibatches is 4, which cuts 4 envs x 24 steps" in capsys.readouterr().err
    assert main(["config", "--file", str(file), "--num-envs", "64"]) == 0
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("words", ["", "--from rsl_rl", "--task CartPole"])
def test_class_in_a_python_file_is_reached_by_its_task(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cfg.py").write_text("class Runner: ...\n")
    assert main(["config", "--file", str(tmp_path / "cfg.py"), *words.split()]) == 2
    said = capsys.readouterr().err
    assert "isaaclab:MODULE:TASK" in said and "mjlab:MODULE:TASK" in said and said.count("\n") == 1


# Layouts and versions. ----------------------------------------------------------------------------------------------


def test_skrl_layout_before_1_3() -> None:
    conversion = convert_file(OLD, num_envs=64)
    ours = agent(conversion)
    assert conversion.unknown == ()
    assert (ours["actor"]["hidden_dims"], ours["actor"]["activation"]) == ([96, 48], "elu")
    assert (ours["critic"]["hidden_dims"], ours["share_trunk"]) == ([96, 48], True)
    assert (ours["actor_obs"], ours["critic_obs"]) == (["policy"], ["policy"])
    assert (ours["gae_lambda"], ours["lr_schedule"], conversion.config["num_iterations"]) == (0.9, "adaptive", 200)
    for key in ("models.policy.output_activation", "models.policy.output_scale"):
        assert row(conversion, key).status == "dropped"
    for key in ("models.value.output_activation", "models.value.output_scale", "models.policy.output_shape"):
        assert row(conversion, key).status == "kept"


def test_skrl_layout_before_1_3_half_filled() -> None:
    source = yaml.safe_load(OLD.read_text())
    for role in ("policy", "value"):
        source["models"][role] = {"hiddens": [32]}
    conversion = convert(source, "skrl", num_envs=64)
    assert agent(conversion)["actor"]["activation"] == "relu"
    tanh = row(conversion, "(models.policy.output_activation)")
    assert (tanh.value, tanh.status) == ("tanh", "changed")
    mixed = changed(source, models__policy__hidden_activation=["", "tanh"], models__separate=True)
    assert "one activation" in row(convert(mixed, "skrl", num_envs=64), "models.policy.hidden_activation").note


def test_skrl_layout_before_1_3_of_sac_and_ddpg() -> None:
    source = yaml.safe_load((DATA / "skrl_sac_before_2.yaml").read_text())
    del source["models"]["separate"]
    source["models"] = {role: dict(model) for role, model in source["models"].items()}  # in the file they are one
    for role, model in source["models"].items():
        shape = "Shape.STATES" if role == "policy" else "Shape.STATES_ACTIONS"
        del model["network"], model["output"]
        model |= {"input_shape": shape, "hiddens": [40, 20], "hidden_activation": ["relu", "relu"]}
        model |= {"output_shape": "Shape.ACTIONS" if role == "policy" else "Shape.ONE", "output_scale": 1.0}
        model |= {"output_activation": "tanh" if role == "policy" else ""}
    conversion = convert(source, "skrl", num_envs=64)
    assert agent(conversion)["critic"]["hidden_dims"] == agent(conversion)["actor"]["hidden_dims"] == [40, 20]
    assert conversion.unknown == ()
    assert row(conversion, "models.policy.output_activation").status == "kept"
    assert "entropy_reduction" not in agent(conversion)
    source["agent"] |= {"class": "DDPG", "exploration": {"noise": "GaussianNoise", "noise_kwargs": {"std": 0.3}}}
    source["models"] = {"policy": source["models"]["policy"], "critic": source["models"]["critic_1"]}
    ddpg = agent(convert(source, "skrl", num_envs=64))
    assert (ddpg["noise"], ddpg["noise_std"]) == ("gaussian", 0.3)


@pytest.mark.parametrize(
    ("source", "version", "expected"),
    [
        (OLD, None, "mean"),
        (DATA / "skrl_before_2.yaml", None, "mean"),
        (SKRL, None, "sum"),
        (changed(SKRL, agent__gae_lambda=0.9, agent__state_preprocessor=None), None, "sum"),
        (OLD, "2.1", "sum"),
        (OLD, "2.1.1", "sum"),
        (OLD, "2", "sum"),
        (SKRL, "1", "mean"),
        (SKRL, "1.4.3", "mean"),
        (SKRL, "2.0", "mean"),
    ],
)
def test_skrl_before_2_1_averages_the_entropy_over_actions(source: Any, version: str | None, expected: str) -> None:
    content = yaml.safe_load(source.read_text()) if isinstance(source, Path) else source
    content = changed(content, agent__entropy_loss_scale=0.006)
    conversion = convert(content, "skrl", num_envs=64, skrl_version=version)
    assert (agent(conversion)["entropy_coef"], agent(conversion)["entropy_reduction"]) == (0.006, expected)
    note = row(conversion, "(entropy of several actions)").note
    assert "--skrl-version" in note
    without = convert(changed(content, agent__entropy_loss_scale=0.0), "skrl", num_envs=64)
    assert "entropy_reduction" not in agent(without)


def test_skrl_version_is_an_option_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    for version, expected in (("1.4", "mean"), ("2.1", "sum")):
        assert main(["config", "--file", str(OLD), "--skrl-version", version]) == 0
        assert yaml.safe_load(capsys.readouterr().out)["agent"]["entropy_reduction"] == expected
    for words, message in (
        (f"--file {OLD} --skrl-version new", "--skrl-version is 'new'; give a version such as 1.4 or 2.1"),
        (f"--file {TUTORIAL} --skrl-version 1.4", "these are settings of rl_games; leave it out"),
        ("--task CartPole --skrl-version 1.4", "there is no --file; leave it out"),
    ):
        assert main(["config", *words.split()]) == 2
        assert message in capsys.readouterr().err


def test_mean_of_six_entropies_weighs_a_sixth_of_their_sum() -> None:
    def after(**settings: Any) -> torch.Tensor:
        config = PPOConfig(num_steps=8, num_epochs=1, num_minibatches=1, learning_rate=1e-2, **settings)
        learner = PPO(make_env("Reach-UR5e-JointPos", 8), config, seed=1)
        learner.learn(2)
        return torch.cat([p.detach().flatten() for p in learner.policy.parameters()])

    mean = after(entropy_coef=0.6, entropy_reduction="mean")
    assert torch.equal(mean, after(entropy_coef=0.1))
    assert not torch.equal(mean, after(entropy_coef=0.6))
    discrete = PPO(make_env("CartPole", 8), PPOConfig(entropy_coef=0.6, entropy_reduction="mean"))
    assert discrete.loss_settings["entropy_coef"] == 0.6


def test_names_that_isaac_lab_3_keeps_for_older_versions_are_known() -> None:
    left = {"noise_std_type": "scalar", "state_dependent_std": False}
    changes = {f"{net}__{key}": value for net in ("actor", "critic") for key, value in left.items()}
    conversion = converted("rsl_rl", **changes, empirical_normalization=False, init_at_random_ep_len=True)
    assert conversion.unknown == ()
    assert agent(conversion)["init_std"] == 0.7, "distribution_cfg prevails"
    old = {"stochastic": True, "init_noise_std": 0.4, "noise_std_type": "log", "state_dependent_std": True}
    version_4 = converted("rsl_rl", actor={"hidden_dims": [8]} | old, critic={"hidden_dims": [8], "stochastic": False})
    ours = agent(version_4)
    assert (ours["init_std"], ours["std_type"], ours["state_dependent_std"]) == (0.4, "log", True)
    assert version_4.unknown == ()
    both = converted("rsl_rl", policy={"init_noise_std": 0.3})
    assert (agent(both)["init_std"], both.unknown) == (0.7, ())


# Broken files. ------------------------------------------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 0.5, float("nan"), float("inf"), 10**59, 1e308, "", "x", "1e-3", "nn.ReLU", "lin_x", "(" * 300,
    "a" * 100_000, [], [[]], [{}], {}, {"a": 1}, ["elu", 3], {1: 2}, "dict(net_arch=[64", 1e18, "auto", [10**59],
)  # fmt: skip


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in items for place in ((*here, key), *places(item, (*here, key)))]


def broken(source: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    result = copy.deepcopy(source)
    for _ in range(draw.choice((1, 1, 2, 4))):
        where = places(result)
        if not where:
            break
        *parents, last = draw.choice(where)
        node: Any = result
        for key in parents:
            node = node[key]
        if isinstance(node, dict) and draw.random() < 0.2:
            del node[last]
        else:
            node[last] = copy.deepcopy(draw.choice(VALUES))
    return result


@pytest.mark.parametrize(
    ("library", "source"),
    [
        ("rsl_rl", RSL_RL),
        ("rsl_rl", RSL_RL_OLD),
        ("rl_games", RL_GAMES),
        ("rl_games", TUTORIAL),
        ("skrl", SKRL),
        ("skrl", OLD),
        ("skrl", DATA / "skrl_sac_before_2.yaml"),
        ("sb3", SB3 | {"policy_kwargs": "dict(net_arch=[64])", "normalize": True, "learning_rate": "lin_1e-3"}),
        ("sb3", {"n_timesteps": 1e5, "buffer_size": 1000, "train_freq": [1, "episode"], "ent_coef": "auto_0.1"}),
    ],
)
def test_broken_settings_give_one_short_line(library: Any, source: Any) -> None:
    draw = random.Random(0)
    content = yaml.safe_load(source.read_text()) if isinstance(source, Path) else source
    refused = 0
    for _ in range(60):
        case = broken(content, draw)
        begin = time.process_time()
        try:
            conversion = convert(case, library, num_envs=draw.choice((None, 1, 4096)), task="CartPole")
            assert len(conversion.summary) < 600
        except ConfigError as error:
            refused += 1
            assert len(str(error)) < 500 and "\n" not in str(error)
        assert time.process_time() - begin < 5
    assert 0 < refused < 60


@pytest.mark.parametrize("library", ["rsl_rl", "rl_games", "skrl", "sb3"])
def test_file_without_one_key_of_its_library_is_refused(library: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{library}: .*(no key is one of|cannot be converted)"):
        convert({"colour": "blue", "weight": {"of": 3}}, library, num_envs=None)


def test_settings_that_refer_to_themselves_are_refused() -> None:
    source: dict[str, Any] = {"algorithm": {}}
    source["algorithm"]["again"] = source
    with pytest.raises(ConfigError, match="rsl_rl: the configuration refers to itself"):
        convert(source, "rsl_rl", num_envs=None)
