"""Presets of Isaac Lab 3, on stand-ins for its functions that choose among them."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gymnasium
import pytest

from rlcore.envs import launch, make_env
from rlcore.train.cli import main
from rlcore.train.importers.registered import registered_config

TASK = "Isaac-Preset"


class Preset(SimpleNamespace):
    """Alternatives by name."""


def choose(node: Any, names: Any, paths: dict[str, str], path: str, used: set[str]) -> Any:
    """As Isaac Lab does it: the node with each preset in it replaced."""
    while isinstance(node, Preset):
        wanted = [paths[path]] if path in paths else [name for name in names if name in vars(node)]
        used |= set(wanted)
        node = getattr(node, wanted[0] if wanted else "default")
    items = node if isinstance(node, dict) else vars(node) if isinstance(node, SimpleNamespace) else {}
    for key in list(items):
        items[key] = choose(items[key], names, paths, f"{path}.{key}".lstrip("."), used)
    return node


def collect(node: Any, path: str = "") -> dict[str, dict[str, Any]]:
    found = {path: vars(node)} if isinstance(node, Preset) else {}
    parts = vars(node).values() if isinstance(node, Preset) else [node]
    for part in parts:
        items = part if isinstance(part, dict) else vars(part) if isinstance(part, SimpleNamespace) else {}
        for key, value in items.items():
            found |= collect(value, f"{path}.{key}".lstrip("."))
    return found


class Env(gymnasium.Env[Any, Any]):
    """Enough to be looked at."""

    def __init__(self, cfg: Any, render_mode: str | None = None, **kwargs: Any) -> None:
        self.cfg, self.num_envs, self.device = cfg, cfg.scene.num_envs, cfg.sim.device
        self.max_episode_length, self.step_dt = 10, 0.1
        box = gymnasium.spaces.Box(-1, 1, (2,))
        self.single_observation_space, self.single_action_space = gymnasium.spaces.Dict({"policy": box}), box


def env_cfg() -> Any:
    scene = Preset(default=SimpleNamespace(num_envs=64), small=SimpleNamespace(num_envs=8))
    sim = SimpleNamespace(device="cpu", physics=Preset(default="physx", newton_mjwarp="newton", kamino="kamino"))
    watched: list[str] = []
    cfg = SimpleNamespace(scene=scene, sim=sim, seed=None, decimation=2, watched=watched)
    cfg.play_mode = lambda: watched.append("yes")
    return Preset(default=cfg)


def agent_cfg() -> Any:
    agent: dict[str, Any] = {"num_steps_per_env": 24, "algorithm": {"class_name": "PPO", "gamma": 0.9}}
    return agent | {"max_iterations": Preset(default=1000, hold=3000), "policy": {"actor_hidden_dims": [8]}}


@pytest.fixture
def isaaclab3(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Isaac Lab 3 with one task; what it did."""
    done: dict[str, Any] = {"launched": [], "external": 0}

    def load(name: str, key: str) -> Any:
        return gymnasium.spec(name).kwargs[key]()

    def resolve_task_config(name: str, key: str | None, play_mode: bool = False, overrides: Any = ()) -> Any:
        names = [n for word in overrides if not word.startswith("env.") for n in word.partition("=")[2].split(",")]
        paths = dict(word.removeprefix("env.").split("=") for word in overrides if word.startswith("env."))
        used: set[str] = set()
        cfg = choose(load(name, "env_cfg_entry_point"), names, paths, "", used)
        agent = choose(load(name, key), names, {}, "", used) if key else None
        if set(names) - used:
            raise ValueError(f"Unknown preset(s): {', '.join(sorted(set(names) - used))}\n\nAvailable presets: ...")
        return cfg, agent

    class Launch:
        def __init__(self, cfg: Any, args: dict[str, Any]) -> None:
            done["launched"].append(cfg.sim.physics)
            self.cfg = cfg

        def __enter__(self) -> None:
            if self.cfg.sim.physics == "physx":
                raise SystemExit(1)  # as it does without Isaac Sim
            if self.cfg.sim.physics == "kamino":
                raise FileNotFoundError("Unable to find the file: https://there/ant.usd")

        def __exit__(self, *error: Any) -> None:
            if error[0] is not None:
                print("Traceback of Isaac Lab", file=sys.stderr)

    def external() -> None:
        done["external"] += 1

    def module(name: str, **members: Any) -> None:
        made = types.ModuleType(name)
        vars(made).update({"__spec__": object(), "__path__": []} | members)
        monkeypatch.setitem(sys.modules, name, made)

    utils = {"load_cfg_from_registry": load, "resolve_task_config": resolve_task_config}
    module("isaaclab")
    module("isaaclab.cli", load_external_tasks=external)
    module("isaaclab.app", launch_simulation=Launch)
    module("isaaclab_tasks")
    module("isaaclab_tasks.utils", resolve_presets=lambda cfg, names: choose(cfg, names, {}, "", set()), **utils)
    module("isaaclab_tasks.utils.hydra", collect_presets=collect)
    monkeypatch.setattr(launch, "launcher_args", {})
    entries = {"env_cfg_entry_point": env_cfg, "rsl_rl_cfg_entry_point": agent_cfg}
    gymnasium.register(TASK, Env, disable_env_checker=True, kwargs=entries)
    yield done
    del gymnasium.registry[TASK]


def test_settings_of_task_and_agent_are_read_with_their_presets_chosen(isaaclab3: dict[str, Any]) -> None:
    settings, conversion = registered_config(TASK)
    assert (settings["num_envs"], settings["num_iterations"]) == (64, 1000)
    assert conversion is not None and not conversion.unknown and isaaclab3["external"]
    settings, _ = registered_config(TASK, options={"presets": "small,hold"})
    assert (settings["num_envs"], settings["num_iterations"]) == (8, 3000)


def test_env_is_made_with_its_presets_chosen(isaaclab3: dict[str, Any]) -> None:
    for options in ({"presets": "newton_mjwarp"}, {"physics": "newton_mjwarp"}, {"sim.physics": "newton_mjwarp"}):
        env: Any = make_env(TASK, 3, decimation=4, **options)  # type: ignore[arg-type]
        assert (env.core.cfg.sim.physics, env.num_envs, env.core.cfg.decimation) == ("newton", 3, 4)
    assert env.core.cfg.watched == []
    assert make_env(TASK, 3, physics="newton_mjwarp", play_mode=True).core.cfg.watched == ["yes"]  # type: ignore[attr-defined]
    # What only the agent's settings have is no mistake.
    make_env(TASK, 3, presets=["newton_mjwarp", "hold"])
    assert isaaclab3["launched"] == ["newton"] * 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"presets": "newton_mjwrap"},
            "presets=newton_mjwrap: Unknown preset(s): newton_mjwrap; did you mean newton",
        ),
        ({"physics": "zzzz"}, "physics=zzzz: Unknown preset(s): zzzz; it has kamino, newton_mjwarp, small"),
        ({}, "needs Isaac Sim, which is not installed: choose Newton, which does without (presets=newton_mjwarp)"),
        (
            {"presets": "kamino"},
            "Unable to find the file: https://there/ant.usd; where its assets cannot be",
        ),
        ({"presets": "newton_mjwarp", "groups": "polic"}, "unknown option 'groups=polic': did you mean groups=policy?"),
    ],
)
def test_refusal_is_one_line_with_the_remedy(
    isaaclab3: dict[str, Any], options: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        make_env(TASK, 2, **options)
    assert "\n" not in str(raised.value) and TASK in str(raised.value)
    assert "Traceback" not in capsys.readouterr().err


def test_isaac_labs_words_are_understood_on_the_command_line(
    isaaclab3: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "--task", TASK, "presets=hold", "physics=newton_mjwarp"]) == 0
    shown = capsys.readouterr().out
    assert "num_iterations: 3000" in shown
    assert "  presets: hold\n" in shown and "  physics: newton_mjwarp\n" in shown
    assert main(["config", "--task", TASK, "presets=smal"]) == 2
    assert "did you mean small?" in capsys.readouterr().err
