"""What a task is trained with where nobody says otherwise, and how the layers of a configuration are put together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium

import rlcore.envs.gym_costs  # noqa: F401  registers tasks
from rlcore.agent import Algorithm
from rlcore.config import ConfigError, from_dict, nearest, to_dict
from rlcore.envs.launch import SIMULATORS, TASKS_PREFIX, simulator_of
from rlcore.train.algorithms import ALGORITHMS, find
from rlcore.train.config import TrainConfig, config_class, safe_name
from rlcore.train.groups import merged
from rlcore.train.many import run_settings


def shipped_config(task: str, algo: str = TrainConfig.algo, preset: str | None = None) -> Path | None:
    """The file that an algorithm is shipped with for a task or, failing that, for its family.

    They are in the folder that the algorithm's record names. ``Reach-UR5e-IK`` looks for ``Reach-UR5e-IK``,
    ``Reach-UR5e`` and ``Reach``, a gymnasium id last for its family, such as ``gym_mujoco``, and ``gym``, an id of
    envpool's for what gymnasium's of that name has, several tasks for ``tasks`` alone, and every task for ``default``.
    """
    folder = find(algo).folder(preset)
    if folder is None:
        return None
    task = re.sub("^envpool:", "gym:", task)
    name = safe_name(task)
    names = [name]
    while "-" in name:
        name = name.rpartition("-")[0]
        names.append(name)
    if task.startswith("gym:"):
        names += [*_gymnasium_family(task.removeprefix("gym:")), "gym"]
    if task.startswith(TASKS_PREFIX):
        names = ["tasks"]
    names.append("default")
    return next((path for name in names if (path := folder / f"{name}.yaml").is_file()), None)


def _gymnasium_family(env_id: str) -> list[str]:
    """What files for all tasks of one of gymnasium's own folders are called; nothing for ids of others.

    Of those with a limit on their speed that is ``gym_velocity`` first.
    """
    spec = gymnasium.registry.get(env_id)
    entry_point = getattr(spec, "entry_point", None)
    found = re.match(r"gymnasium\.envs\.(\w+)\.", entry_point) if isinstance(entry_point, str) else None
    limited = any(wrapper.name == "SpeedLimit" for wrapper in getattr(spec, "additional_wrappers", ()))
    return [] if found is None else [*["gym_velocity"] * limited, f"gym_{found[1]}"]


def preset_of(task: str, algo: str, file: Path | None = None) -> str | None:
    """The preset that a task is trained with if the command line names none; None where the algorithm has none.

    It is the one that the given file names, else the one that a file is shipped with for the task, else, for the tasks
    of simulators, which are many envs on a GPU, the one that is made for that.
    """
    presets = find(algo).presets
    if not presets:
        return None
    named = None if file is None else run_settings(file).get("preset")
    if named is not None:
        return str(named)
    for preset in presets:
        path = shipped_config(task, algo, preset)
        if path is not None and path.stem != "default":
            return preset
    many = [preset for preset in presets if presets[preset].cuda] if simulator_of(task) in SIMULATORS else []
    return next(iter([*many, *presets]))


def check_preset(preset: str, record: Algorithm[Any]) -> None:
    """Refuse a preset that an algorithm does not have.

    Raises:
        ConfigError: names the ones that there are.
    """
    if not record.presets:
        others = " or ".join(f"--algo {name}" for name, other in ALGORITHMS.items() if other.presets)
        raise ConfigError(f"--preset is '{preset}', and {record.name} has none; leave it out, or add {others}")
    if preset not in record.presets:
        name = record.config.__name__
        raise ConfigError(f"preset: '{preset}' is no preset of {name}; {nearest(preset, record.presets)}")


def default_config(
    task: str,
    file: Path | None = None,
    registered: Mapping[str, Any] | None = None,
    algo: str = TrainConfig.algo,
    preset: str | None = None,
) -> tuple[TrainConfig, list[Path]]:
    """Defaults of the dataclass, then of the shipped file or what the task is registered with, then the given file.

    A given file's own ``algo`` has to be the one that is asked for. Where an algorithm has presets it begins with one:
    see ``preset_of`` for what it is unless named.

    Returns:
        The configuration, and the files it came from.

    Raises:
        ConfigError: a file is missing, or has an unknown key or an impossible value, or there is no such preset.
    """
    own, record = config_class(algo), find(algo)
    registered = registered or {}
    given = {} if file is None else run_settings(file, task)
    if find(given.get("algo", algo), f"{file}: algo") is not record:
        raise ConfigError(f"--algo is '{algo}', and {file} has the settings of '{given['algo']}'; leave one out")
    own_preset = given.get("preset")
    if preset is not None and own_preset not in (None, preset):
        raise ConfigError(f"--preset is '{preset}', and {file} has the settings of '{own_preset}'; leave one out")
    preset = preset or registered.get("preset") or preset_of(task, algo, file)
    if preset is not None:
        check_preset(preset, record)
    # What a task is registered with stands in the place of what is shipped for it.
    shipped = None if "agent" in registered else shipped_config(task, algo, preset)
    files = [path for path in (shipped, file) if path is not None]
    begin: dict[str, Any] = {}
    if preset is not None:
        begin = {"preset": preset, "agent": to_dict(record.config(**record.presets[preset].settings))}
    data = merged(merged(to_dict(own(task=task)), begin), registered)
    config = from_dict(own, data)
    for path in files:
        over = run_settings(path, task)
        # A run's own file has every setting: of tables it has what there was, and nothing is added to that.
        data = over if _keys(to_dict(own(task=task))) <= _keys(over) else merged(data, over, own, f"{path}: ")
        # Converted once per layer, so that an error names the file that it comes from.
        config = from_dict(own, data, source=str(path))
    return config, files


def task_of(file: Path) -> str | None:
    """The task that a configuration file names, if any."""
    task = run_settings(file).get("task")
    if task is not None and not isinstance(task, str):
        raise ConfigError(f"{file}: task is {task!r}; give the name of a task, see `rlcore tasks`")
    return task


def _keys(data: Mapping[str, Any], prefix: str = "") -> set[str]:
    """Dotted names of all values."""
    inner = (_keys(value, f"{prefix}{key}.") for key, value in data.items() if isinstance(value, Mapping))
    return {prefix + key for key in data}.union(*inner)
