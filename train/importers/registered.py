"""The training configuration that a simulator's task ships, as rlcore's."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium

from rlcore.agent import Algorithm
from rlcore.config import ConfigError, from_dict, to_dict
from rlcore.envs import look_here
from rlcore.envs.launch import GET_ISAACLAB, GET_MJLAB, SIMULATORS, simulator_of
from rlcore.envs.mjlab import quiet_warp
from rlcore.envs.presets import load_env_cfg, load_external_tasks, resolve_agent_cfg
from rlcore.names import nearest_names
from rlcore.train.algorithms import ALIASES, algorithm, find
from rlcore.train.config import TrainConfig, config_class
from rlcore.train.importers.convert import Conversion, convert
from rlcore.train.importers.source import REGISTRY_ORDER, find_agent_config

MJLAB_NUM_ENVS = 4096
"""Copies with which mjlab's own instructions train every task (``--env.scene.num-envs 4096``); its tasks ship one."""


def registered_config(
    task: str,
    num_envs: int | None = None,
    library: str | None = None,
    algo: str = TrainConfig.algo,
    options: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], Conversion | None]:
    """Find what a task of Isaac Lab or mjlab is to be trained with; its simulator must have been launched.

    ``rlcore_cfg_entry_point`` (or ``rlcore_ppo_cfg_entry_point``) in the registration counts as it is: YAML, a mapping,
    a ``TrainConfig`` or a ``PPOConfig``; else that of rsl_rl, skrl, rl_games or SB3 is converted, the first that can
    be; standard error says why others before it were passed over.
    With another algorithm, entries with its name in them count, such as ``skrl_sac_cfg_entry_point``.

    Args:
        task: name of the task.
        num_envs: copies of it; None takes the number in the task's own configuration.
        library: whose configuration to take; None for the order above.
        algo: what is to be trained with, ``ppo``, ``sac``, ``ddpg`` or ``td3``.
        options: of the env, as far as they choose presets of Isaac Lab 3, which settings of agents have, too.

    Returns:
        Settings over the defaults of ``TrainConfig``, and how they came about if they were converted; only options of
        the env where the task ships none for the algorithm, unless a library's were asked for, or it is PPO.

    Raises:
        ConfigError: the task is unknown, ships no such configuration, or one that cannot be used.
    """
    if library is not None and library not in REGISTRY_ORDER:
        raise ConfigError(f"--from is '{library}'; choose from {', '.join(REGISTRY_ORDER)}")
    record = find(algorithm(algo)[0])
    simulator = simulator_of(task)
    if simulator not in SIMULATORS:
        raise ConfigError(f"task '{task}' ships no configuration of another library; leave --from out")
    name = task.removeprefix(f"{simulator}:").rpartition(":")[2]
    options = options or {}
    kwargs, own_envs = _isaaclab(task, name, options) if simulator == "isaaclab" else _mjlab(task, name)
    if simulator == "mjlab" and own_envs == 1:
        own_envs = MJLAB_NUM_ENVS
        if num_envs is None and (record.unnamed_entries or library is not None):
            print(
                f"note         {own_envs} envs, with which mjlab trains its tasks, that ship 1; see --num-envs",
                file=sys.stderr,
            )
    kwargs = _entries(kwargs, record, algo)
    there = [entry for entry in REGISTRY_ORDER if kwargs.get(f"{entry}_cfg_entry_point") is not None]
    if library is not None:
        if library not in there:
            what = "configuration" if record.unnamed_entries else f"configuration for {algo}"
            raise ConfigError(f"task '{name}' ships no {what} of {library}; it has {', '.join(there) or 'none'}")
        kwargs = {key: value for key, value in kwargs.items() if key == f"{library}_cfg_entry_point"}
    elif not record.unnamed_entries and not there:
        return {"env": env_options(algo)}, None
    passed: list[str] = []
    for entry in there if library is None else [library]:
        try:
            source = _agent_config(name, entry, kwargs)
            if simulator == "isaaclab":
                source = resolve_agent_cfg(source, options)
            if entry == "rlcore":
                return _own(name, source, num_envs, own_envs, algo), None
            conversion = convert(source, entry, num_envs=num_envs or own_envs, task=task, algo=algo)  # type: ignore[arg-type]
        except ConfigError as error:
            if entry == "rlcore" or [entry] == there or library is not None:  # what was written for rlcore is meant
                raise
            passed.append(f"{entry}'s configuration is passed over: {error}")
            continue
        for reason in passed:
            print(f"note         {reason}", file=sys.stderr)
        started = {"randomize_start": False} if entry == "rsl_rl" and _starts_together(source) else {}
        return {**conversion.config, "env": env_options(algo) | started}, conversion
    if not passed:
        find_agent_config(name, kwargs)  # says that there is none
    raise ConfigError(f"task '{name}' ships no configuration that can be used: {'; '.join(passed)}")


def env_options(algo: str) -> dict[str, Any]:
    """Options of a simulator's env to train with.

    Episodes begin at random times, as in the scripts that train these tasks; a tanh needs bounds for its actions.
    """
    return {"randomize_start": True} | ({"clip_actions": "auto"} if find(algorithm(algo)[0]).bounded_actions else {})


def _starts_together(source: Any) -> bool:
    """Whether rsl_rl's configuration wants whole episodes from the first on, as some curricula do."""
    name = "init_at_random_ep_len"
    return (source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)) is False


def _with_defaults(env: Any, agent: Any, algo: str) -> Any:
    """Options that a task is registered with, over those that others are trained with; bounds of its own are enough."""
    if not isinstance(env, Mapping) or not isinstance(agent, Mapping):
        return env  # refused as soon as all of it is read
    options = env_options(algo)
    if agent.get("action_low") is not None:
        options.pop("clip_actions", None)
    return {**options, **env}


def _entries(kwargs: Mapping[str, Any], record: Algorithm[Any], algo: str) -> dict[str, Any]:
    """The entries for an algorithm, under names that name none: those that name it go before those that do not."""
    common = dict(kwargs) if record.unnamed_entries else {}
    for library in REGISTRY_ORDER:
        for name in [algo] if algo in ALIASES else [*record.aliases, record.name]:
            if kwargs.get(f"{library}_{name}_cfg_entry_point") is not None:
                common[f"{library}_cfg_entry_point"] = kwargs[f"{library}_{name}_cfg_entry_point"]
    return common


def _agent_config(name: str, library: str, kwargs: Mapping[str, Any]) -> Any:
    """Load the configuration of one library; Isaac Lab cannot load rsl_rl's without rsl_rl."""
    key = f"{library}_cfg_entry_point"
    try:
        return find_agent_config(name, {key: kwargs[key]})[1]
    except ConfigError as error:
        if getattr(error.__cause__, "name", None) not in ("rsl_rl", "rsl_rl.env", "tensordict"):
            raise
        raise ConfigError(
            f"task '{name}': rsl_rl is not installed, which {kwargs[key]!r} needs; run: pip install rsl-rl-lib"
        ) from error


def _own(name: str, source: Any, num_envs: int | None, own_envs: int, algo: str) -> dict[str, Any]:
    """Settings that were written for rlcore."""
    own = config_class(algorithm(algo)[0])
    settings = {"num_envs": own_envs, **_settings(name, source, own)}
    settings["env"] = _with_defaults(settings.get("env", {}), settings.get("agent", {}), algo)
    from_dict(own, {**settings, "task": name}, source=f"rlcore_cfg_entry_point of '{name}'")
    return settings | ({} if num_envs is None else {"num_envs": num_envs})


def _settings(name: str, source: Any, own: type[TrainConfig]) -> dict[str, Any]:
    """A configuration of our own as a mapping, without its task: what the user wrote names it."""
    agent = type(own(task=name).agent)
    if isinstance(source, agent):
        return {"agent": to_dict(source)}
    if type(source) is own:
        defaults = to_dict(own(task=source.task))
        return {key: value for key, value in to_dict(source).items() if value != defaults[key]}
    if dataclasses.is_dataclass(source) or not isinstance(source, Mapping):
        raise ConfigError(
            f"task '{name}': rlcore_cfg_entry_point is {type(source).__name__}; give a {own.__name__}, a "
            f"{agent.__name__}, a mapping or a YAML file"
        )
    return {key: value for key, value in source.items() if key != "task"}


def registered_names(simulator: str) -> list[str]:
    """Tasks that are registered with ``isaaclab``, which must have been launched, or ``mjlab``.

    Raises:
        ConfigError: it is not installed; the message says how to install it.
    """
    if simulator == "isaaclab":
        _import("isaaclab_tasks.utils", GET_ISAACLAB)
        load_external_tasks()
        return [name for name, spec in gymnasium.registry.items() if "env_cfg_entry_point" in spec.kwargs]
    return list(_mjlab_registry("").list_tasks())


def _isaaclab(task: str, name: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    _import("isaaclab_tasks.utils", f"{task}: {GET_ISAACLAB}")
    _import_own(task)
    _check_name("Isaac Lab", name, registered_names("isaaclab"))
    cfg = load_env_cfg(name, options)
    return dict(gymnasium.registry[name].kwargs), int(cfg.scene.num_envs)


def _mjlab(task: str, name: str) -> tuple[dict[str, Any], int]:
    registry = _mjlab_registry(f"{task}: ")
    _import_own(task)
    _check_name("mjlab", name, registry.list_tasks())
    return {"rsl_rl_cfg_entry_point": registry.load_rl_cfg(name)}, int(registry.load_env_cfg(name).scene.num_envs)


def _mjlab_registry(where: str) -> Any:
    quiet_warp()
    _import("mjlab.tasks", f"{where}{GET_MJLAB}")  # registers what is shipped
    return _import("mjlab.tasks.registry", f"{where}{GET_MJLAB}")


def _check_name(simulator: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        near = nearest_names(name, names)
        hint = f"did you mean {', '.join(near)}?" if near else f"`rlcore tasks {simulator.split()[0]}` lists them"
        raise ConfigError(f"unknown {simulator} task '{name}': {hint}")


def _import_own(task: str) -> None:
    """Import the module of the user's project that registers the task, as in ``mjlab:my_tasks:My-Task``."""
    parts = task.split(":")
    if len(parts) == 3:
        look_here()
        _import(parts[1], f"{task}: there is no module '{parts[1]}'; install it, or run in the folder that has it")


def _import(module: str, message: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0] == module.partition(".")[0]
        raise ConfigError(message if missing else f"cannot import {module}: {error}") from error
