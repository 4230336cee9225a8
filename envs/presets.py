"""Presets of Isaac Lab 3: settings that hold alternatives by name, of which one is chosen before they are read."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import gymnasium

from rlcore.envs.launch import SELECTORS
from rlcore.envs.manager import as_names
from rlcore.names import nearest_names


def load_env_cfg(name: str, options: Mapping[str, Any], paths: Mapping[str, str] | None = None) -> Any:
    """The configuration of an env that is registered with Isaac Lab, with its presets chosen.

    Args:
        name: registered id.
        options: names by the ``SELECTORS``, as lists or as one text; others are left alone.
        paths: names by dotted path in the configuration, for one setting each, such as ``sim.physics``.

    Raises:
        ValueError: a name that the task does not have, or names that contradict each other.
    """
    utils: Any = importlib.import_module("isaaclab_tasks.utils")
    words = [f"{key}={','.join(as_names(options[key]))}" for key in SELECTORS if options.get(key)]
    if not hasattr(utils, "resolve_presets"):
        if words:
            raise ValueError(f"{name}: {words[0]}, but presets came with Isaac Lab 3; leave it out")
        return utils.load_cfg_from_registry(name, "env_cfg_entry_point")
    words += [f"env.{path}={value}" for path, value in (paths or {}).items()]
    resolve = getattr(utils, "resolve_task_config", None)
    if resolve is None or "overrides" not in inspect.signature(resolve).parameters:  # before its release
        cfg = utils.load_cfg_from_registry(name, "env_cfg_entry_point")
        return utils.resolve_presets(cfg, set(chosen_names(options)))
    try:
        return resolve(name, None, overrides=words)[0]
    except ValueError as error:
        # The alternatives may be those of a configuration of an agent.
        for key in gymnasium.registry[name].kwargs:
            if key.endswith("_cfg_entry_point") and key != "env_cfg_entry_point":
                try:
                    return resolve(name, key, overrides=words)[0]
                except (ValueError, ImportError, AttributeError, OSError):
                    continue
        reason = str(error).strip().splitlines()[0].rstrip(".")
        names = [x for alternatives in alternatives_of(name).values() for x in alternatives]
        near = [x for word in chosen_names(options) if word not in names for x in nearest_names(word, names, count=1)]
        hint = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(sorted(set(names))) or 'none'}"
        raise ValueError(f"{name}: {' '.join(words)}: {reason}; {hint}") from error


def resolve_agent_cfg(source: Any, options: Mapping[str, Any]) -> Any:
    """The configuration of an agent with its presets chosen; it need not have what the options name."""
    utils: Any = importlib.import_module("isaaclab_tasks.utils")
    return utils.resolve_presets(source, chosen_names(options)) if hasattr(utils, "resolve_presets") else source


def chosen_names(options: Mapping[str, Any]) -> list[str]:
    """The names that options choose."""
    return [name for key in SELECTORS for name in as_names(options.get(key) or ())]


def alternatives_of(name: str) -> dict[str, list[str]]:
    """Names of alternatives but the default, by the path of the setting that has them; empty before Isaac Lab 3."""
    utils: Any = importlib.import_module("isaaclab_tasks.utils")
    if not hasattr(utils, "resolve_presets"):
        return {}
    collect = importlib.import_module("isaaclab_tasks.utils.hydra").collect_presets
    found = collect(utils.load_cfg_from_registry(name, "env_cfg_entry_point"))
    return {path: [x for x in alternatives if x != "default"] for path, alternatives in found.items()}


def load_external_tasks() -> None:
    """Register the tasks that installed projects offer, which Isaac Lab 3 finds by their entry points."""
    try:
        command = importlib.import_module("isaaclab.cli")
    except ImportError:
        return  # Isaac Lab 2
    if hasattr(command, "load_external_tasks"):
        command.load_external_tasks()
