"""Files and registered objects of other libraries, read without executing anything that a file says."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rlcore.config import ConfigError, PlainLoader, parse_yaml

REGISTRY_ORDER = ("rlcore", "rsl_rl", "skrl", "rl_games", "sb3")
"""Whose configuration of a registered task is taken, the first there is."""


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping; Python tuples in it, as run folders have them, become lists, other Python tags are refused.

    Raises:
        ConfigError: the file is missing, is not YAML, or does not hold a mapping.
    """
    data = parse_yaml(path, _Loader)
    if not isinstance(data, dict):
        raise ConfigError(f"configuration file '{path}' must hold 'key: value' lines, not {type(data).__name__}")
    return data


class _Loader(PlainLoader):
    """Plain values, and tuples as lists."""


def _sequence(loader: yaml.SafeLoader, node: yaml.Node) -> list[Any]:
    assert isinstance(node, yaml.SequenceNode)
    return loader.construct_sequence(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _sequence)


def find_agent_config(task: str, kwargs: Mapping[str, Any]) -> tuple[str, Any]:
    """Load the configuration that a task was registered with; other tasks' are not touched.

    Args:
        task: for messages.
        kwargs: the ``kwargs`` of its gymnasium registration, as in Isaac Lab: ``<library>_cfg_entry_point``.

    Returns:
        "rlcore" or the library to convert from, and the configuration: a mapping or an object.

    Raises:
        ConfigError: none is registered, or it cannot be loaded.
    """
    for library in REGISTRY_ORDER:
        key = f"{library}_cfg_entry_point"
        if kwargs.get(key) is not None:
            try:
                return library, _load_entry(kwargs[key])
            except Exception as error:  # foreign code runs here
                reason = str(error) if isinstance(error, (ImportError, AttributeError, ConfigError)) else repr(error)
                raise ConfigError(f"task '{task}': {key} {kwargs[key]!r} cannot be loaded: {reason}") from error
    others = [key for key in kwargs if key.endswith("_cfg_entry_point") and key != "env_cfg_entry_point"]
    raise ConfigError(
        f"task '{task}' is registered without a configuration that rlcore can use "
        f"(it has {', '.join(others) or 'none'}); "
        "add rlcore_cfg_entry_point to its registration, or give a configuration file"
    )


def _load_entry(entry: Any) -> Any:
    """Resolve ``module:Class``, ``module:file.yaml``, a path to a YAML file, a callable or the configuration itself."""
    if isinstance(entry, str):
        if Path(entry).is_file():
            return read_yaml(entry)
        module_name, _, name = entry.partition(":")
        if not name:
            raise ImportError("expected module:Class or module:file.yaml, or the path of a YAML file")
        module = importlib.import_module(module_name)
        if name.endswith((".yaml", ".yml")):
            folders = getattr(module, "__path__", None) or [os.path.dirname(module.__file__ or "")]
            files = [Path(folder) / name for folder in folders]  # of a namespace package there are several
            return read_yaml(next((file for file in files if file.is_file()), files[0]))
        entry = module
        for part in name.split("."):
            entry = getattr(entry, part)
    return entry() if callable(entry) else entry
