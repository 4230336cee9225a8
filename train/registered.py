"""The training configuration that a simulator's task ships, as rlcore's."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, get_args

import gymnasium

from rlcore.config import ConfigError
from rlcore.envs.launch import GET_ISAACLAB, GET_MJLAB, simulator_of
from rlcore.train.importers import Conversion, Library, convert, find_agent_config


def registered_config(
    task: str, num_envs: int | None = None, library: str | None = None
) -> tuple[dict[str, Any], Conversion | None]:
    """Find what a task of Isaac Lab or mjlab is to be trained with; its simulator must have been launched.

    ``rlcore_cfg_entry_point`` in the registration counts as it is; else that of rsl_rl, skrl, rl_games or SB3 is
    converted, the first there is.

    Args:
        task: name of the task.
        num_envs: copies of it; None takes the number in the task's own configuration.
        library: whose configuration to take; None for the order above.

    Returns:
        Settings over the defaults of ``TrainConfig``, and how they came about if they were converted.

    Raises:
        ConfigError: the task is unknown, ships no such configuration, or one that cannot be used.
    """
    if library is not None and library not in ("rlcore", *get_args(Library)):
        raise ConfigError(f"--from is '{library}'; choose from rlcore, {', '.join(get_args(Library))}")
    simulator = simulator_of(task)
    if simulator not in ("isaaclab", "mjlab"):
        raise ConfigError(f"task '{task}' ships no configuration of another library; leave --from out")
    name = task.removeprefix(f"{simulator}:").rpartition(":")[2]
    kwargs, own_envs = (_isaaclab if simulator == "isaaclab" else _mjlab)(task, name)
    if library is not None:
        kwargs = {key: value for key, value in kwargs.items() if key == f"{library}_cfg_entry_point"}
    found, source = find_agent_config(name, kwargs)
    if found == "rlcore":
        settings = dict(source) if isinstance(source, Mapping) else dict(vars(source))
        return {"num_envs": num_envs or own_envs, **settings}, None
    conversion = convert(source, found, num_envs=num_envs or own_envs, task=task)  # type: ignore[arg-type]
    # The scripts that train with these configurations begin episodes at random times; see the option.
    return {**conversion.config, "env": {"randomize_start": True}}, conversion


def _isaaclab(task: str, name: str) -> tuple[dict[str, Any], int]:
    tasks = _import("isaaclab_tasks.utils", f"{task}: {GET_ISAACLAB}")
    _import_own(task)
    if name not in gymnasium.registry:
        raise ConfigError(f"unknown Isaac Lab task '{name}'; `rlcore tasks {name[:8]}` lists what is registered")
    cfg = tasks.load_cfg_from_registry(name, "env_cfg_entry_point")
    return dict(gymnasium.registry[name].kwargs), int(cfg.scene.num_envs)


def _mjlab(task: str, name: str) -> tuple[dict[str, Any], int]:
    _import("mjlab.tasks", f"{task}: {GET_MJLAB}")
    registry = _import("mjlab.tasks.registry", f"{task}: {GET_MJLAB}")
    _import_own(task)
    if name not in registry.list_tasks():
        raise ConfigError(f"unknown mjlab task '{name}'; tasks are {', '.join(registry.list_tasks())}")
    return {"rsl_rl_cfg_entry_point": registry.load_rl_cfg(name)}, int(registry.load_env_cfg(name).scene.num_envs)


def _import_own(task: str) -> None:
    """Import the module of the user's project that registers the task, as in ``mjlab:my_tasks:My-Task``."""
    parts = task.split(":")
    if len(parts) == 3:
        _import(parts[1], f"{task}: cannot import module '{parts[1]}'")


def _import(module: str, message: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(message) from error
