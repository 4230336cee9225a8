"""Which simulator a task needs, and how Isaac Sim is started before anything of it can be imported."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from rlcore.user_code import PYTHON_PREFIX as PYTHON_PREFIX

Simulator = Literal["isaaclab", "mjlab", "gymnasium", "envpool", "builtin"]

SIMULATORS = ("isaaclab", "mjlab")
"""Those whose tasks are registered with a configuration to train with, and whose envs take long to make."""

TASKS_PREFIX = "tasks:"
"""How the name of several tasks begins that one policy learns, ``tasks:A+B``."""

PREFIXES: dict[str, Simulator] = {
    "isaaclab:": "isaaclab",
    "Isaac-": "isaaclab",
    "IsaacContrib-": "isaaclab",
    "mjlab:": "mjlab",
    "Mjlab-": "mjlab",
    "gym:": "gymnasium",
    "envpool:": "envpool",
    PYTHON_PREFIX: "builtin",
    TASKS_PREFIX: "builtin",
}
"""How task names begin, and whose they are."""

ISAACLAB_SITE = "https://isaac-sim.github.io/IsaacLab"
GET_ISAACLAB = (
    "Isaac Lab is not installed; with Python 3.12, pip install isaaclab==3.0.0 is enough for tasks with Newton's "
    f"physics; others need Isaac Sim and an NVIDIA GPU, see {ISAACLAB_SITE}"
)
GET_MJLAB = "mjlab is not installed; run: pip install mjlab"

SIM_MODULES = ("isaacsim", "omni", "carb", "pxr")
"""What Isaac Sim brings with it."""

SELECTORS = ("presets", "physics", "renderer")
"""Options of an env of Isaac Lab 3 that choose among alternatives in its settings, ``presets`` wherever a name fits,
the others for one kind of setting; on a command line they are Isaac Lab's own words."""

launcher_args: dict[str, Any] = {}
"""What ``start_isaac_sim`` was told; Isaac Lab 3 starts its simulator with it when a task is made."""


def simulator_of(task: str) -> Simulator:
    """Tell whose task a name is. Nothing is imported for it.

    Names with a prefix of ``PREFIXES`` are recognized as they are; others if gymnasium has been imported and the name
    was registered with Isaac Lab's ``env_cfg_entry_point``.
    """
    for prefix, simulator in PREFIXES.items():
        if task.startswith(prefix):
            return simulator
    registration = sys.modules.get("gymnasium.envs.registration")
    spec = registration.registry.get(task) if registration is not None else None
    return "isaaclab" if spec is not None and "env_cfg_entry_point" in spec.kwargs else "builtin"


def fewest_envs(task: str) -> int:
    """How many envs a task needs at least: one, or one of each of several tasks."""
    return task.count("+") + 1 if task.startswith(TASKS_PREFIX) else 1


def bare_name(task: str) -> str:
    """A task's name as its simulator has it, without prefix and the module that registers it."""
    simulator = simulator_of(task)
    return task.removeprefix(f"{simulator}:").rpartition(":")[2] if simulator in SIMULATORS else task


def full_name(simulator: Simulator, module: str, name: str) -> str:
    """A task's name as it is found in a new process: with what registers it, and whose it is where that is not plain.

    Args:
        simulator: whose it is.
        module: what has to be imported first; empty for none.
        name: as it is registered.
    """
    if not module and simulator_of(name) == simulator and any(name.startswith(prefix) for prefix in PREFIXES):
        return name
    return ":".join(part for part in (simulator, module, name) if part)


def launch(task: str, words: Sequence[str]) -> tuple[Any, list[str]]:
    """Start what has to run before the task can be made.

    Args:
        task: any task name.
        words: the command line, simulator flags among it.

    Returns:
        The running app, to be closed with its ``close()`` after everything else, or None; and the remaining words.

    Raises:
        ValueError: the simulator is not installed.
    """
    if simulator_of(task) == "isaaclab":
        return start_isaac_sim(words)
    return None, list(words)


def start_isaac_sim(words: Sequence[str]) -> tuple[Any, list[str]]:
    """Start Isaac Sim through Isaac Lab's ``AppLauncher``.

    Call it before anything of ``isaaclab`` but its launcher is imported: its modules need those of the running app.
    Isaac Lab 3 starts what a task needs when the task is made; then this only remembers the flags.

    Args:
        words: ``--headless``, ``--enable_cameras``, ``--device`` and all else that ``AppLauncher`` takes, Kit settings
            ``--/path=value``, ``--video`` (which needs cameras), names of presets, and words of others.

    Returns:
        The app (None if nothing was started), and the words that are not the simulator's; ``--device`` stays, and
        ``presets=NAME`` and its kind are options of the env.

    Raises:
        ValueError: Isaac Lab or Isaac Sim is not installed.
    """
    try:
        app_module: Any = importlib.import_module("isaaclab.app")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "isaaclab":
            raise ValueError(GET_ISAACLAB) from error
        if (error.name or "").partition(".")[0] not in SIM_MODULES:
            raise ValueError(f"Isaac Lab is installed, but not what it needs (no module '{error.name}')") from error
        raise ValueError(
            f"Isaac Lab is installed, but Isaac Sim is not (no module '{error.name}'), see {ISAACLAB_SITE}"
        ) from error
    on_demand = hasattr(app_module, "launch_simulation") or importlib.util.find_spec("isaacsim") is None
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
    parser.add_argument("--video", action="store_true")
    if on_demand:
        parser.add_argument("--headless", action="store_true")
        parser.add_argument("--enable_cameras", action="store_true")
        parser.add_argument("--device")
        if hasattr(app_module, "add_launcher_args"):
            with _command_line([]):
                app_module.add_launcher_args(parser)
    else:
        # It looks for clashes in the command line of the process, which is not what it starts with.
        with _command_line([]):
            app_module.AppLauncher.add_app_launcher_args(parser)
    kit = [word for word in words if word.startswith("--/")]
    given, rest = parser.parse_known_args([word for word in words if word not in kit])
    device = _value_of("--device", words)
    if device is not None:
        rest += ["--device", device]  # the learner's too
    for selector in SELECTORS:
        named = [word for word in rest if re.match(rf"-*{selector}=", word)]
        if named:
            rest = [word for word in rest if word not in named]
            rest.append(f"--env.{selector}={','.join(word.partition('=')[2] for word in named)}")
    if device == "auto":
        given.device = parser.get_default("device")
    given.enable_cameras = given.enable_cameras or given.video
    settings = {name: value for name, value in vars(given).items() if name != "video" and value is not None}
    if on_demand:  # its defaults are for scripts that have no settings of their own
        settings = {name: value for name, value in settings.items() if value != parser.get_default(name)}
    launcher_args.clear()
    launcher_args.update(settings)
    if on_demand:
        return None, rest
    with _command_line(kit + [word for word in words if word in ("--verbose", "--info")]):  # SimulationApp reads these
        app: Any = app_module.AppLauncher(argparse.Namespace(**settings)).app
    return app, rest


def _value_of(flag: str, words: Sequence[str]) -> str | None:
    for i, word in enumerate(words):
        if word == flag and i + 1 < len(words):
            return words[i + 1]
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


@contextlib.contextmanager
def _command_line(words: list[str]) -> Iterator[None]:
    saved = sys.argv
    sys.argv = [*saved[:1], *words]
    try:
        yield
    finally:
        sys.argv = saved
