"""Tasks of simulators from the command line: whose configuration they get, and the order in which things start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import pytest
import yaml
from test_isaaclab import STANDINS, FakeDirect, fake_cfg, wheel  # noqa: F401

import rlcore
from rlcore.checkpoint import load_checkpoint
from rlcore.config import ConfigError, from_dict
from rlcore.ddpg import DDPGConfig
from rlcore.envs import launch
from rlcore.export import read_metadata
from rlcore.networks import NetworkConfig
from rlcore.ppo import PPOConfig
from rlcore.sac import SACConfig
from rlcore.train.cli import main
from rlcore.train.config import TrainConfig, read_config
from rlcore.train.importers.registered import registered_config

ROOT = Path(rlcore.__file__).parents[1]
TUTORIAL = Path(__file__).parent / "data" / "rl_games_tutorial.yaml"
TASK = "Isaac-Fake-v0"

# Each with a discount of its own, by which the choice can be told.
AGENTS: dict[str, Any] = {
    "rlcore": {"num_iterations": 2, "agent": {"gamma": 0.91, "num_steps": 8}},
    "rsl_rl": {
        "num_steps_per_env": 8,
        "max_iterations": 2,
        "policy": {"actor_hidden_dims": [8], "critic_hidden_dims": [8], "activation": "elu"},
        "algorithm": {"gamma": 0.92, "num_mini_batches": 2, "num_learning_epochs": 1},
    },
    "skrl": {
        "models": {
            role: {"network": [{"name": "net", "input": "OBSERVATIONS", "layers": [8], "activations": "elu"}]}
            for role in ("policy", "value")
        },
        "agent": {"class": "PPO", "rollouts": 8, "discount_factor": 0.93, "mini_batches": 2},
        "trainer": {"timesteps": 16},
    },
    "rl_games": {
        "params": {
            "algo": {"name": "a2c_continuous"},
            "network": {"name": "actor_critic", "mlp": {"units": [8], "activation": "elu"}},
            "config": {"gamma": 0.94, "horizon_length": 8, "minibatch_size": 16, "max_epochs": 2},
        }
    },
}
SKRL_SAC: dict[str, Any] = {
    "models": {
        role: {"network": [{"name": "net", "input": words, "layers": [8], "activations": "elu"}]}
        for role, words in (("policy", "OBSERVATIONS"), ("critic_1", "concatenate([OBSERVATIONS, ACTIONS])"))
    },
    "agent": {"class": "SAC", "gradient_steps": 2, "discount_factor": 0.96},
    "memory": {"memory_size": 100},
    "trainer": {"timesteps": 16},
}
GAMMAS = {"rlcore": 0.91, "rsl_rl": 0.92, "skrl": 0.93, "rl_games": 0.94}


class Env(FakeDirect):
    """Counts itself; the registration's other entries come as arguments, as from Isaac Lab's."""

    made = 0

    def __init__(self, cfg: Any, render_mode: str | None = None, **kwargs: Any) -> None:
        super().__init__(cfg, render_mode)
        type(self).made += 1


class Launcher:
    """``AppLauncher`` that takes down what it was given; its app takes down that it was closed."""

    events: list[Any]

    def __init__(self, args: Any) -> None:
        self.events.append({name: value for name, value in vars(args).items() if value})
        self.app = SimpleNamespace(close=lambda: self.events.append("closed"))

    @staticmethod
    def add_app_launcher_args(parser: Any) -> None:
        for flag in ("--headless", "--enable_cameras"):
            parser.add_argument(flag, action="store_true")
        parser.add_argument("--device", default="cuda:0")
        parser.add_argument("--livestream", type=int, default=0)


def fake_module(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    module = types.ModuleType(name)
    vars(module).update({"__spec__": object()} | members)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def isaac(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Isaac Lab with one task; the entries of its registration, to be changed, and what the launcher saw."""
    entries: dict[str, Any] = {"env_cfg_entry_point": fake_cfg}
    gymnasium.register(TASK, Env, disable_env_checker=True, kwargs=entries)
    entries = gymnasium.registry[TASK].kwargs
    monkeypatch.setattr(Launcher, "events", [], raising=False)
    monkeypatch.setattr(Env, "made", 0)
    monkeypatch.setattr(launch, "launcher_args", {})
    fake_module(monkeypatch, "isaacsim")
    fake_module(monkeypatch, "isaaclab")
    fake_module(monkeypatch, "isaaclab.app", AppLauncher=Launcher)
    fake_module(monkeypatch, "isaaclab_tasks")
    load = lambda name, key: gymnasium.registry[name].kwargs[key]()  # noqa: E731
    fake_module(monkeypatch, "isaaclab_tasks.utils", load_cfg_from_registry=load)
    yield entries
    del gymnasium.registry[TASK]


@pytest.fixture
def mjlab(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of mjlab with one task of 4,096 envs."""
    registry = {
        "list_tasks": lambda: ["Mjlab-Walk"],
        "load_env_cfg": lambda name: SimpleNamespace(scene=SimpleNamespace(num_envs=4096)),
        "load_rl_cfg": lambda name: SimpleNamespace(**AGENTS["rsl_rl"]),
    }
    for name, members in {"mjlab": {}, "mjlab.tasks": {}, "mjlab.tasks.registry": registry}.items():
        fake_module(monkeypatch, name, **members)


def register(entries: dict[str, Any], *libraries: str) -> None:
    entries.update({f"{library}_cfg_entry_point": AGENTS[library] for library in libraries})


def error_of(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words.split()) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("settings ")]
    assert len(lines) == 1
    return lines[0]


# Whose configuration. -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(4))
def test_first_configuration_in_order_is_taken(isaac: dict[str, Any], number: int) -> None:
    register(isaac, *list(GAMMAS)[number:])
    settings, conversion = registered_config(TASK)
    expected = list(GAMMAS)[number]
    assert settings["agent"]["gamma"] == GAMMAS[expected]
    assert (conversion.library if conversion else "rlcore") == expected


@pytest.mark.parametrize("library", list(GAMMAS))
def test_named_configuration_goes_first(isaac: dict[str, Any], library: str) -> None:
    register(isaac, *GAMMAS)
    assert registered_config(TASK, library=library)[0]["agent"]["gamma"] == GAMMAS[library]


def test_algorithms_own_entry_goes_before_the_common_one(isaac: dict[str, Any]) -> None:
    register(isaac, "rlcore")
    isaac["rlcore_ppo_cfg_entry_point"] = {"agent": {"gamma": 0.5}}
    assert registered_config(TASK)[0]["agent"] == {"gamma": 0.5}
    assert registered_config(TASK, library="rlcore")[0]["agent"] == {"gamma": 0.5}


def test_entries_of_other_algorithms_have_its_name(isaac: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    register(isaac, *GAMMAS)
    assert registered_config(TASK, algo="sac") == ({"env": {"randomize_start": True, "clip_actions": "auto"}}, None)
    with pytest.raises(ConfigError, match="ships no configuration for sac of skrl; it has none"):
        registered_config(TASK, library="skrl", algo="sac")
    isaac["skrl_sac_cfg_entry_point"] = SKRL_SAC
    settings, conversion = registered_config(TASK, algo="sac")
    assert (settings["algo"], settings["agent"]["gamma"], settings["agent"]["update_ratio"]) == ("sac", 0.96, 2 / 4)
    assert conversion is not None and settings["env"] == {"randomize_start": True, "clip_actions": "auto"}
    assert registered_config(TASK)[0]["agent"]["gamma"] == GAMMAS["rlcore"]
    assert registered_config(TASK, algo="ddpg")[0].keys() == {"env"}
    td3 = {**SKRL_SAC, "agent": {**SKRL_SAC["agent"], "class": "TD3"}}
    isaac["skrl_td3_cfg_entry_point"] = td3
    assert registered_config(TASK, algo="ddpg")[0]["agent"]["num_critics"] == 2
    isaac["skrl_ddpg_cfg_entry_point"] = SKRL_SAC
    with pytest.raises(ConfigError, match="settings of sac, not of ddpg"):
        registered_config(TASK, algo="ddpg")
    assert registered_config(TASK, algo="td3")[0]["agent"]["num_critics"] == 2
    assert main(["config", "--task", TASK, "--algo", "td3", "--from", "skrl"]) == 0
    assert "num_critics: 2" in capsys.readouterr().out
    isaac["rlcore_sac_cfg_entry_point"] = SACConfig(gamma=0.5)
    assert registered_config(TASK, algo="sac")[0]["agent"]["gamma"] == 0.5
    isaac["rlcore_sac_cfg_entry_point"] = PPOConfig()
    with pytest.raises(ConfigError, match="is PPOConfig; give a SACTrainConfig, a SACConfig, a mapping or a YAML"):
        registered_config(TASK, algo="sac")


@pytest.mark.parametrize("library", ["rlcore", "rsl_rl"])
def test_number_of_envs_is_the_tasks_unless_given(isaac: dict[str, Any], library: str) -> None:
    register(isaac, library)
    assert registered_config(TASK)[0]["num_envs"] == 4
    assert registered_config(TASK, 64)[0]["num_envs"] == 64
    isaac["rlcore_cfg_entry_point"] = {"num_envs": 6}
    assert registered_config(TASK)[0]["num_envs"] == 6
    assert registered_config(TASK, 64)[0]["num_envs"] == 64


def test_converted_minibatches_fit_the_number_of_envs(isaac: dict[str, Any]) -> None:
    register(isaac, "rl_games")
    counts = [registered_config(TASK, n)[0]["agent"]["num_minibatches"] for n in (None, 64)]
    assert counts == [4 * 8 // 16, 64 * 8 // 16]


@pytest.mark.parametrize("kind", [dict, lambda source: SimpleNamespace(**source)])
@pytest.mark.parametrize("said", [True, False])
def test_episodes_begin_together_where_rsl_rls_configuration_wants_it(
    isaac: dict[str, Any], kind: Any, said: bool
) -> None:
    isaac["rsl_rl_cfg_entry_point"] = lambda: kind(AGENTS["rsl_rl"] | {"init_at_random_ep_len": said})
    settings, conversion = registered_config(TASK)
    assert settings["env"] == {"randomize_start": said}
    assert conversion is not None and conversion.unknown == ()


@pytest.mark.parametrize(
    ("settings", "algo", "expected"),
    [
        ({}, "ppo", {"randomize_start": True}),
        ({}, "sac", {"randomize_start": True, "clip_actions": "auto"}),
        ({"agent": {"action_low": [-3.0], "action_high": [3.0]}}, "sac", {"randomize_start": True}),
        (
            {"env": {"randomize_start": False, "clip_actions": 2.0, "x": 1}},
            "ddpg",
            {"randomize_start": False, "clip_actions": 2.0, "x": 1},
        ),
    ],
)
def test_own_configuration_leaves_the_env_as_others_find_it_unless_it_says(
    isaac: dict[str, Any], settings: dict[str, Any], algo: str, expected: dict[str, Any]
) -> None:
    isaac[f"rlcore_{algo}_cfg_entry_point"] = settings
    assert registered_config(TASK, algo=algo)[0]["env"] == expected


def test_own_options_that_are_none_are_refused_by_name(isaac: dict[str, Any]) -> None:
    isaac["rlcore_cfg_entry_point"] = {"env": [1]}
    with pytest.raises(ConfigError, match=r"rlcore_cfg_entry_point of 'Isaac-Fake-v0'.*env"):
        registered_config(TASK)


OWN = PPOConfig(gamma=0.91, num_steps=8, actor=NetworkConfig(hidden_dims=(7,)))


@pytest.mark.parametrize("kind", ["file", "mapping", "train", "agent", "name"])
def test_own_configuration_may_be_yaml_a_mapping_or_a_dataclass(
    isaac: dict[str, Any], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {"task": "Other", "agent": {"gamma": 0.91, "num_steps": 8, "actor": {"hidden_dims": [7]}}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(plain))
    (tmp_path / "own_settings.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    isaac["rlcore_cfg_entry_point"] = {
        "file": str(tmp_path / "own.yaml"),
        "mapping": plain,
        "train": TrainConfig(task="Other", agent=OWN),
        "agent": OWN,
        "name": "own_settings:own.yaml",
    }[kind]
    settings, conversion = registered_config(TASK)
    config = from_dict(TrainConfig, {"task": TASK, **settings})
    assert conversion is None and config.agent == OWN and config.num_envs == 4
    assert "task" not in settings  # it is the one that was asked for
    sys.modules.pop("own_settings", None)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"agent": {"gama": 0.9}}, r"rlcore_cfg_entry_point of 'Isaac-Fake-v0'.*gama.*gamma"),
        ([1], "is list; give a TrainConfig, a PPOConfig, a mapping or a YAML file"),
        ("no_such_module:cfg.yaml", "cannot be loaded"),
    ],
)
def test_own_configuration_that_cannot_be_used_is_named(isaac: dict[str, Any], entry: Any, message: str) -> None:
    isaac["rlcore_cfg_entry_point"] = entry
    with pytest.raises(ConfigError, match=message):
        registered_config(TASK)


def test_mjlab_tasks_have_rsl_rls(mjlab: None) -> None:
    settings, conversion = registered_config("Mjlab-Walk")
    assert conversion is not None and conversion.library == "rsl_rl"
    assert (settings["num_envs"], settings["agent"]["gamma"], settings["env"]) == (
        4096,
        0.92,
        {"randomize_start": True},
    )


@pytest.mark.parametrize("others", [("skrl",), ()])
def test_configuration_that_needs_its_library_gives_way(
    isaac: dict[str, Any], others: tuple[str, ...], monkeypatch: Any, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "their_settings.py").write_text("from rsl_rl.env import VecEnv\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "rsl_rl", None)
    monkeypatch.delitem(sys.modules, "rsl_rl.env", raising=False)
    isaac["rsl_rl_cfg_entry_point"] = "their_settings:Runner"
    register(isaac, *others)
    if others:
        assert registered_config(TASK)[0]["agent"]["gamma"] == GAMMAS["skrl"]
        assert "rsl_rl is not installed" in capsys.readouterr().err
    for library in ("rsl_rl",) if others else (None, "rsl_rl"):
        with pytest.raises(ConfigError, match="pip install rsl-rl-lib"):
            registered_config(TASK, library=library)


def test_configurations_fall_through_in_order_with_a_word_on_why(
    isaac: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    register(isaac, "rsl_rl", "skrl", "rl_games")
    monkeypatch.setitem(sys.modules, "rsl_rl", None)

    def broken() -> Any:
        raise TypeError("a field is missing")

    for rsl_rl, reason in (
        ({**AGENTS["rsl_rl"], "algorithm": {"class_name": "Distillation"}}, "'Distillation' is not PPO"),
        ("no_such_module:Runner", "cannot be loaded: No module named 'no_such_module'"),
        (broken, "TypeError('a field is missing')"),
    ):
        isaac["rsl_rl_cfg_entry_point"] = rsl_rl
        isaac["skrl_cfg_entry_point"] = {**AGENTS["skrl"], "models": {"policy": {}, "value": {}}}
        settings, conversion = registered_config(TASK)
        assert conversion is not None and conversion.library == "rl_games"
        assert settings["agent"]["gamma"] == GAMMAS["rl_games"]
        said = capsys.readouterr().err.splitlines()
        assert [line.partition("'")[0].split()[-1] for line in said] == ["rsl_rl", "skrl"]
        assert reason in said[0] and "models.policy.network" in said[1]
        with pytest.raises(ConfigError, match=r"skrl: models\.policy\.network"):
            registered_config(TASK, library="skrl")  # what is asked for does not give way
    isaac["rl_games_cfg_entry_point"] = {"params": {"algo": {"name": "a2c_what"}}}
    with pytest.raises(ConfigError, match=r"no configuration that can be used: rsl_rl's.*; skrl's.*; rl_games's.*what"):
        registered_config(TASK)
    isaac["rlcore_cfg_entry_point"] = {"agent": {"gama": 0.9}}  # nor does what was written for rlcore
    with pytest.raises(ConfigError, match="gama"):
        registered_config(TASK)


def test_old_skrl_layout_of_a_task_is_taken(isaac: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rsl_rl", None)
    register(isaac, "rl_games")
    isaac["rsl_rl_cfg_entry_point"] = "rsl_rl.runners:Runner"
    isaac["skrl_cfg_entry_point"] = str(TUTORIAL.with_name("skrl_before_1_3.yaml"))
    settings, conversion = registered_config(TASK)
    assert conversion is not None and conversion.library == "skrl"
    assert (settings["agent"]["gamma"], settings["agent"]["entropy_reduction"]) == (0.97, "mean")


@pytest.mark.parametrize(("own", "expected"), [(1, 4096), (2048, 2048)])
def test_mjlabs_tasks_of_one_env_train_with_as_many_as_mjlab_trains_them(
    mjlab: None, own: int, expected: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registry: Any = sys.modules["mjlab.tasks.registry"]
    monkeypatch.setattr(
        registry, "load_env_cfg", lambda name: SimpleNamespace(scene=SimpleNamespace(num_envs=own)), raising=False
    )
    assert registered_config("Mjlab-Walk")[0]["num_envs"] == expected
    assert ("4096 envs" in capsys.readouterr().err) == (own == 1)
    assert registered_config("Mjlab-Walk", 64)[0]["num_envs"] == 64
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("words", [f"config --task {TASK}", f"config --task {TASK} --from skrl --show"])
def test_task_that_is_converted_says_on_stderr_what_became_of_its_keys(
    words: str, isaac: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    register(isaac, "rsl_rl", "skrl")
    library = "skrl" if "skrl" in words else "rsl_rl"
    assert main(words.split()) == 0
    said = capsys.readouterr().err
    conversion = registered_config(TASK, library=library)[1]
    assert conversion is not None and f"settings     of {library}: {conversion.summary}" in said


def test_module_of_ones_own_is_imported_for_its_registrations(isaac: dict[str, Any], mjlab: None) -> None:
    register(isaac, "rsl_rl")
    assert registered_config(f"isaaclab:json:{TASK}")[0]["agent"]["gamma"] == 0.92
    assert registered_config("mjlab:json:Mjlab-Walk")[0]["agent"]["gamma"] == 0.92


# What users mistype. ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["train", "config"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--task Isaac-Fak-v0", "unknown Isaac Lab task 'Isaac-Fak-v0': did you mean Isaac-Fake-v0?"),
        ("--task isaaclab:qq", "unknown Isaac Lab task 'qq': `rlcore tasks Isaac` lists them"),
        ("--task isaaclab:no_such.module:X-v0", "there is no module 'no_such.module'; install it, or run in"),
        ("--task Mjlab-Wlak", "unknown mjlab task 'Mjlab-Wlak': did you mean Mjlab-Walk?"),
        ("--task my.tasks:Walk-v0", "for others write isaaclab:my.tasks:Walk-v0 or mjlab:my.tasks:Walk-v0"),
        ("--task mjlab-walk", "tasks of simulators begin with Isaac- or Mjlab-"),
        ("--task CartPol", "did you mean CartPole"),
        (f"--task {TASK} --from rsl", "--from is 'rsl'; choose from rlcore, rsl_rl, skrl, rl_games, sb3"),
        (f"--task {TASK} --from=skrl", "ships no configuration of skrl; it has rsl_rl, rl_games"),
        ("--task Mjlab-Walk from=skrl", "ships no configuration of skrl; it has rsl_rl"),
        ("--task CartPole --from rsl_rl", "leave"),
        (f"--task {TASK} --num-envs many", "many"),
    ],
)
def test_refusal_names_the_remedy(
    isaac: dict[str, Any], mjlab: None, command: str, words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    register(isaac, "rsl_rl", "rl_games")
    assert message in error_of(f"{command} {words}", capsys)
    assert Launcher.events[1:] == (["closed"] if Launcher.events else [])


def test_options_of_the_env_are_checked_too(isaac: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    register(isaac, "rsl_rl")
    assert "did you mean scene.env_spacing?" in error_of(f"train --task {TASK} --env.scene.env_spacin 3", capsys)
    assert "--num-envs needs a value" in error_of(f"train --task {TASK} --env.scene.num-envs", capsys)


@pytest.mark.parametrize("command", ["train --task Mjlab-Walk", "config --task Mjlab-Walk", "tasks Mjlab"])
def test_missing_mjlab_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("mjlab.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mjlab", None)
    assert "mjlab is not installed; run: pip install mjlab" in error_of(command, capsys)


@pytest.mark.parametrize("command", [f"train --task {TASK}", f"config --task {TASK}", "tasks Isaac"])
def test_missing_isaac_lab_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "isaaclab", None)
    assert "Isaac Lab is not installed; with Python 3.12, pip install isaaclab==3.0.0" in error_of(command, capsys)


def test_missing_module_of_a_users_module_is_named(isaac: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "their_tasks.py").write_text("import something_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="cannot import their_tasks: No module named 'something_not_there'"):
        registered_config(f"isaaclab:their_tasks:{TASK}")


# Settings on the command line. --------------------------------------------------------------------------------------


@pytest.fixture
def configured(isaac: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The configuration that words lead to, without building anything."""
    register(isaac, "rsl_rl")
    seen: list[TrainConfig] = []

    def training(config: TrainConfig, console: Any, resumed_from: Any, usual: Any) -> Any:
        seen.append(config)
        return SimpleNamespace(start=lambda: 0)

    monkeypatch.setattr("rlcore.train.training.Training", training)

    def run(words: str) -> TrainConfig:
        assert main(["train", *words.split()]) == 0
        return seen[-1]

    return run


@pytest.mark.parametrize(
    "words",
    [
        f"--task {TASK} --env.scene.num-envs 2048 --agent.gamma 0.98 --env.sim.dt 0.02",
        f"--task={TASK} --env.scene.num_envs=2048 --agent.gamma=0.98 --env.sim.dt=0.02",
        f"task={TASK} agent.gamma=0.98 env.scene.num_envs=2048 env.sim.dt=0.02",
        f"--num-envs 2048 --task {TASK} agent.gamma=0.98 env.sim.dt=0.02 --headless",
    ],
)
def test_settings_of_agent_and_env_are_written_in_either_style(configured: Any, words: str) -> None:
    config = configured(words)
    assert (config.task, config.num_envs, config.agent.gamma) == (TASK, 2048, 0.98)
    assert config.env == {"randomize_start": True, "sim.dt": 0.02}


def test_task_is_trained_as_it_ships_where_nothing_else_is_said(configured: Any) -> None:
    config = configured(f"--task {TASK}")
    assert (config.num_envs, config.num_iterations, config.agent.num_steps) == (4, 2, 8)
    assert config.agent.actor.hidden_dims == (8,) and config.agent.num_minibatches == 2


def test_registered_sac_is_trained_unless_a_preset_is_named(isaac: dict[str, Any], configured: Any) -> None:
    assert configured(f"--task {TASK} --algo sac").agent == SACConfig.preset("gpu")
    isaac["skrl_sac_cfg_entry_point"] = SKRL_SAC
    for words in (f"--task {TASK} --algo sac", f"--task {TASK} --algo sac --from skrl"):
        config = configured(words)
        assert (config.num_envs, config.num_iterations, config.preset) == (4, 16, "classic")
        assert (config.agent.gamma, config.agent.update_ratio, config.agent.value_loss) == (0.96, 0.5, "mse")
        assert config.agent.critic.hidden_dims == (8,)
        assert config.env == {"randomize_start": True, "clip_actions": "auto"}
    for words, agent in (
        ("--algo sac --preset gpu", SACConfig.preset("gpu")),
        ("--algo td3", DDPGConfig.preset("td3")),
    ):
        config = configured(f"--task {TASK} {words}")
        assert config.agent == agent
        assert config.env == {"randomize_start": True, "clip_actions": "auto"}
    assert main(f"train --task {TASK} --algo sac --preset gpu --from skrl".split()) == 2


@pytest.mark.parametrize(
    "words",
    ["", "--algo sac", "--algo ddpg", "--algo td3", "--algo sac --preset classic", "--algo td3 --preset gpu"],
)
def test_what_is_shown_is_what_is_trained(words: str, configured: Any, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(f"--task {TASK} {words}")
    capsys.readouterr()
    assert main(f"config --task {TASK} {words}".split()) == 0
    assert read_config(yaml.safe_load(capsys.readouterr().out)) == config


def test_file_goes_over_the_registration_and_words_over_the_file(configured: Any, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"task: {TASK}\nagent: {{gamma: 0.5, gae_lambda: 0.6}}\n")
    config = configured(f"--config {file} --agent.gamma 0.7 --headless")
    assert (config.agent.gamma, config.agent.gae_lambda, config.agent.num_steps) == (0.7, 0.6, 8)
    assert Launcher.events == [{"headless": True, "device": "cuda:0"}, "closed"]


def test_flags_of_the_simulator_reach_it_and_nothing_else(configured: Any) -> None:
    config = configured(f"--task {TASK} --headless --video --livestream 2 --device cpu --seed 5")
    assert Launcher.events[0] == {"headless": True, "enable_cameras": True, "livestream": 2, "device": "cpu"}
    assert (config.device, config.seed) == ("cpu", 5)


# Whole runs on the fake. --------------------------------------------------------------------------------------------


def trained(folder: Path, *words: str) -> Path:
    short = "--eval-interval 1 --log-interval 1 --save-interval 1 --device cpu"
    assert main(["train", "--task", TASK, "--runs-dir", str(folder), *short.split(), *words]) == 0
    (run,) = folder.glob(f"{TASK}/ppo/*")
    return run


def test_run_uses_one_env_and_closes_the_simulator_last(
    isaac: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    register(isaac, "rsl_rl")
    fixed = AGENTS["rsl_rl"]["algorithm"] | {"schedule": "fixed", "desired_kl": 0.02}
    isaac["rsl_rl_cfg_entry_point"] = lambda: AGENTS["rsl_rl"] | {"algorithm": fixed}
    monkeypatch.setattr(FakeDirect, "close", lambda env: Launcher.events.append("env closed"))
    run = trained(tmp_path, "--headless")
    assert Env.made == 1
    assert Launcher.events[1:] == ["env closed", "closed"]
    printed, said = capsys.readouterr()
    assert "settings     of rsl_rl" in said and "evaluations use the training env" in printed
    assert "no effect" not in printed  # nobody typed what it is registered with
    figures = json.loads((run / "eval.json").read_text())
    # Env i ends after i + 2 steps, and no episode of an evaluation begins in the middle.
    assert figures["episodes"] == 4 and figures["length_mean"] == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert figures["onnx"]["length_mean"] == figures["length_mean"]
    assert (run / "export" / "policy.onnx").is_file()


def test_continued_and_measured_runs_start_the_simulator_of_their_task(isaac: dict[str, Any], tmp_path: Path) -> None:
    register(isaac, "rsl_rl")
    run = trained(tmp_path)
    file = run / "export" / "policy.onnx"
    for words in (
        f"train --resume {run} --num-iterations 3 --headless --device cpu",
        f"train --resume={run}/checkpoints/000003.pt --num-iterations 4 --headless --device cpu",
        f"eval --run {run} --num-envs 4 --headless --device cpu",
        f"eval --onnx {file} --num-envs 4 --headless --device cpu",
    ):
        Launcher.events.clear()
        assert main(words.split()) == 0
        assert Launcher.events == [{"headless": True, "device": "cpu"}, "closed"]
        lengths = json.loads((file.parent if "--onnx" in words else run).joinpath("eval.json").read_text())
        assert lengths["length_mean"] == pytest.approx(3.5)
    content = load_checkpoint(run / "checkpoints" / "000004.pt")
    assert content["progress"]["iteration"] == 4 and content["config"]["agent"]["gamma"] == 0.92
    assert content["config"]["env"] == {"randomize_start": True}


def test_exported_file_keeps_the_module_that_registers_its_task(
    isaac: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register(isaac, "rsl_rl")
    task = f"isaaclab:json:{TASK}"
    words = ["--runs-dir", str(tmp_path), "--device", "cpu", "--env.scene.env_spacing", "4", "--env.clip_actions", "2"]
    assert main(["train", "--task", task, *words]) == 0
    (run,) = tmp_path.glob("*/ppo/*")
    alone = tmp_path / "elsewhere" / "alone.onnx"
    alone.parent.mkdir()
    alone.write_bytes((run / "export" / "policy.onnx").read_bytes())
    assert read_metadata(alone)["task"] == task
    assert load_checkpoint(run / "checkpoints" / "best.pt")["spec"]["task"] == task

    def measured(words: str) -> dict[str, Any]:
        Launcher.events.clear()
        assert main(f"eval {words} --num-envs 4 --headless --device cpu --output {tmp_path}/e.json".split()) == 0
        assert Launcher.events == [{"headless": True, "device": "cpu"}, "closed"]
        figures: dict[str, Any] = json.loads((tmp_path / "e.json").read_text())
        return figures

    figures = measured(f"--onnx {alone}")
    options = {"randomize_start": False, "scene.env_spacing": 4, "clip_actions": 2}
    assert (figures["task"], figures["env"]) == (task, options)
    # By its bare name it is the same task; another one gets what is the adapter's, not the fields of a configuration.
    assert measured(f"--run {run} --task {TASK}")["env"] == options
    other = TASK.replace("-v0", "-Play-v0")
    gymnasium.register(other, Env, disable_env_checker=True, kwargs={"env_cfg_entry_point": fake_cfg})
    try:
        capsys.readouterr()
        for source in (f"--run {run}", f"--onnx {alone}"):
            assert measured(f"{source} --task {other}")["env"] == {"randomize_start": False, "clip_actions": 2}
            told = f"{other}, another than {task}, which it was trained on; without the options of the training"
            assert f"{told} scene.env_spacing" in capsys.readouterr().out
    finally:
        del gymnasium.registry[other]


def test_failure_is_shown_before_the_simulator_closes(
    isaac: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    register(isaac, "rsl_rl")
    shown: list[str] = []
    Launcher.events.clear()
    monkeypatch.setattr(Launcher, "events", SimpleNamespace(append=lambda event: shown.append(capsys.readouterr().err)))

    def broken(env: Any, action: Any) -> Any:
        raise RuntimeError("physics exploded")

    monkeypatch.setattr(FakeDirect, "step", broken)
    assert main(["train", "--task", TASK, "--runs-dir", str(tmp_path), "--device", "cpu"]) == 70
    assert "RuntimeError: physics exploded" in shown[-1]


def test_registered_tasks_are_listed(isaac: dict[str, Any], mjlab: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "isaac"]) == 0 and TASK in capsys.readouterr().out.split()
    assert Launcher.events == [{"headless": True, "device": "cuda:0"}, "closed"]
    assert main(["tasks", "Mjlab-W"]) == 0 and capsys.readouterr().out.split() == ["Mjlab-Walk"]


def test_config_shows_what_became_of_every_key(
    isaac: dict[str, Any], mjlab: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register(isaac, "rsl_rl", "skrl")
    assert main(f"config --task {TASK} --from skrl --show".split()) == 0
    table = capsys.readouterr().out
    assert "skrl -> rlcore" in table and "agent.gamma = 0.93" in table and "kept" in table
    output = tmp_path / "walk.yaml"
    assert main(f"config --task Mjlab-Walk --num-envs 32 --output {output}".split()) == 0
    config = from_dict(TrainConfig, yaml.safe_load(output.read_text()))
    assert (config.task, config.num_envs, config.agent.gamma) == ("Mjlab-Walk", 32, 0.92)
    assert Launcher.events[-1] == "closed"


# The order of imports, in processes of their own. -------------------------------------------------------------------

APP = """
import sys

class AppLauncher:
    def __init__(self, args):
        heavy = ("torch", "numpy", "gymnasium", "onnx", "isaaclab_tasks", "rlcore.ppo")
        print("at launch:", [name for name in heavy if name in sys.modules], flush=True)
        self.app = self

    @staticmethod
    def add_app_launcher_args(parser):
        parser.add_argument("--headless", action="store_true")
        parser.add_argument("--enable_cameras", action="store_true")
        parser.add_argument("--device", default="cuda:0")

    def close(self):
        print("closed", flush=True)
        import os
        os._exit(0)  # as Isaac Sim may do
"""
PACKAGES = {
    "isaacsim/__init__.py": "",
    "isaaclab/__init__.py": "",
    "isaaclab/app.py": APP,
    "isaaclab_tasks/__init__.py": "import sys\nassert 'isaaclab.app' in sys.modules\n",
    "isaaclab_tasks/utils.py": "def load_cfg_from_registry(name, key): raise AssertionError\n",
}


@pytest.mark.parametrize(
    "words",
    [
        "train --task Isaac-Nothing-v0 --headless --num-envs 4",
        "train task=Isaac-Nothing-v0",
        "train --config mine.yaml --headless",
        "train --resume run --headless",
        "eval --run run/checkpoints/best.pt --headless",
        "config --task isaaclab:Nothing-v0 --show",
    ],
)
def test_nothing_heavy_is_imported_before_the_simulator_runs(words: str, tmp_path: Path) -> None:
    for name, text in PACKAGES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (tmp_path / "mine.yaml").write_text("task: Isaac-Nothing-v0\n")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("task: Isaac-Nothing-v0\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "rlcore", *words.split()]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["at launch: []", "closed"]
    # The reason is told although closing ends the process.
    assert done.stderr.startswith(f"rlcore {words.split()[0]}: error: ")


# Real packages. -----------------------------------------------------------------------------------------------------

REAL_ISAAC_LAB = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import modules
modules.DEPENDENCIES += ("rsl_rl", "tensordict")  # Isaac Lab imports them beside its configurations for rsl_rl
import simulator
simulator.install()
import isaacsim
import omni.timeline

events = []

class SimulationApp:
    def __init__(self, config, experience):
        events.append([config["headless"], Path(experience).name])

    def close(self):
        events.append("closed")

    def __getattr__(self, name):
        return lambda *args, **kwargs: None

isaacsim.SimulationApp, isaacsim.__file__ = SimulationApp, __file__
omni.timeline.TimelineEventType.STOP = omni.timeline.TimelineEventType.PLAY = 0
from rlcore.train.cli import main

codes = []
for words in sys.argv[2:]:
    run = next(iter(Path().glob("runs/*/ppo/*")), "")
    codes.append(main(words.replace("RUN", str(run)).split()))
print(json.dumps([codes, events]))
"""


def test_registered_task_of_isaac_lab_trains_as_it_ships_and_resumes(wheel: Path, tmp_path: Path) -> None:  # noqa: F811
    flags = "--headless --device cpu"
    first = f"train --task Isaac-Cartpole-v0 {flags} --env.scene.num_envs 16 env.episode_length_s=0.5"
    words = [
        f"{first} --num-iterations 3 --eval-interval 2 --log-interval 1 --save-interval 3",
        f"train --resume RUN --num-iterations 4 {flags} --enable_cameras",
        f"eval --run RUN --num-envs 8 {flags}",
        "config --task Isaac-Cartpole-v0 --from skrl --output skrl.yaml --headless",
    ]
    (tmp_path / "script.py").write_text(REAL_ISAAC_LAB)
    variables = {
        **os.environ,
        "ISAACLAB_WHEEL": str(wheel),
        "PYTORCH_JIT": "0",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "EXP_PATH": "",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "script.py", str(STANDINS), *words]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    codes, events = json.loads(done.stdout.splitlines()[-1])
    assert codes == [0] * 4, done.stdout[-3000:] + done.stderr[-3000:]
    # Isaac Lab's own launcher understood the flags.
    plain, cameras = ([True, f"isaaclab.python.headless.{end}kit"] for end in ("", "rendering."))
    assert events == [plain, "closed", cameras, "closed", plain, "closed", plain, "closed"]
    (run,) = tmp_path.glob("runs/Isaac-Cartpole-v0/ppo/*")
    content = load_checkpoint(run / "checkpoints" / "000004.pt")
    config = content["config"]
    # As isaaclab_tasks has it for rsl_rl.
    assert (config["agent"]["num_steps"], config["agent"]["gamma"], config["num_envs"]) == (16, 0.99, 16)
    assert config["agent"]["actor"]["hidden_dims"] == [32, 32] and config["env"]["randomize_start"] is True
    assert content["env"]["common_step_counter"] == 4 * 16  # evaluations on the same env are not counted
    figures = json.loads((run / "eval.json").read_text())
    assert figures["episodes"] == 8 and 0 < figures["length_mean"] <= 30
    assert "env/Episode_Termination/time_out" in (run / "metrics.csv").read_text().splitlines()[0]
    assert (run / "export" / "policy.onnx").is_file()
    assert from_dict(TrainConfig, yaml.safe_load((tmp_path / "skrl.yaml").read_text())).num_envs == 4096


@pytest.mark.slow
@pytest.mark.cpu_seconds(900)
def test_registered_task_of_mjlab_trains_as_it_ships_evaluates_resumes_and_exports(tmp_path: Path) -> None:
    pytest.importorskip("mjlab", reason="mjlab is not installed")
    task = "Mjlab-Cartpole-Balance"
    words = f"train --task {task} --env.scene.num-envs 16 env.episode_length_s=1 --num-iterations 3 --device cpu"
    words += f" --eval-envs 8 --eval-interval 2 --log-interval 1 --save-interval 1 --runs-dir {tmp_path}"
    assert main(words.split()) == 0
    (run,) = tmp_path.glob(f"{task}/ppo/*")
    assert main(f"train --resume {run} --num-iterations 4".split()) == 0
    content = load_checkpoint(run / "checkpoints" / "000004.pt")
    assert content["env"]["common_step_counter"] == 4 * content["config"]["agent"]["num_steps"]
    figures = json.loads((run / "eval.json").read_text())
    assert figures["episodes"] == 8 and figures["length_mean"] == 20 and figures["onnx"]["parity"] < 1e-5
    live, file = tmp_path / "live.json", tmp_path / "file.json"
    options = "--num-envs 8 --env.episode_length_s 1 --device cpu"
    assert main(f"eval --run {run} {options} --output {live}".split()) == 0
    (run / "export" / "policy.onnx").unlink()
    assert main(f"export --run {run}".split()) == 0
    assert main(f"eval --onnx {run}/export/policy.onnx {options} --output {file}".split()) == 0
    returns = [json.loads(path.read_text())["return_mean"] for path in (live, file)]
    assert returns[0] == pytest.approx(returns[1], abs=1e-4) and returns[0] > 0
    header = (run / "metrics.csv").read_text().splitlines()[0]
    assert "env/Episode_Reward/" in header and "env/Episode_Termination/time_out" in header


def test_converted_file_of_a_tutorial_trains_other_tasks(tmp_path: Path) -> None:
    output = tmp_path / "x.yaml"
    assert main(f"config --file {TUTORIAL} --num-envs 16 --output {output}".split()) == 0
    short = f"--config {output} --num-iterations 2 --eval-envs 4 --runs-dir {tmp_path} --env.max_episode_length 20"
    for task in ("Pendulum", "CartPole"):
        assert main(f"train --task {task} {short}".split()) == 0
        (run,) = tmp_path.glob(f"{task}/ppo/*")
        config = load_checkpoint(run / "checkpoints" / "000002.pt")["config"]
        agent = config["agent"]
        assert (agent["num_steps"], agent["num_minibatches"], agent["num_epochs"]) == (32, 16 * 32 // 64, 4)
        assert (agent["lr_schedule"], agent["desired_kl"], config["seed"]) == ("adaptive", 0.008, 42)
        assert (run / "export" / "policy.onnx").is_file()
