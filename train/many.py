"""Several tasks in a command line or a configuration file, as the one task that they are to everything else.

PyTorch is not imported here: which simulator has to come before it depends on the task.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlcore.config import ConfigError, load_yaml, shown
from rlcore.envs.launch import TASKS_PREFIX

_SHARE = "share"  # as ``rlcore.envs.multi_task`` has it
_OF_SEVERAL = ("balance", "classifier")  # of an agent's settings, those that say nothing of one task alone


def joined(words: Sequence[str]) -> list[str]:
    """The words of a command with one ``--task tasks:A+B`` in the place of ``--task A --task B``."""
    rest, names, place = [], [], None
    following = iter(words)
    for word in following:
        found = re.fullmatch(r"--task|(?:--)?task=(.*)", word, re.DOTALL)
        if found is None:
            rest.append(word)
            continue
        name = next(following, None) if found[1] is None else found[1]
        place = len(rest) if place is None else place
        if name is not None:
            names.append(name)
    if len(names) < 2 or place is None:
        return list(words)
    return [*rest[:place], "--task", TASKS_PREFIX + "+".join(names), *rest[place:]]


def run_settings(path: str | Path, task: str | None = None) -> dict[str, Any]:
    """A configuration file of a run, its ``tasks`` turned into what they stand for: ``task``, ``num_envs`` and ``env``.

    ``tasks`` is a list of names, or a table of each one's options: those of its env, ``share`` or ``num_envs``.

    Args:
        path: of the file.
        task: that a command names; one of ``tasks`` is trained alone, with its own options.

    Raises:
        ConfigError: the file cannot be read, its ``tasks`` are something else, or the named task is none of them; the
            message names them.
    """
    data = load_yaml(path)
    if "tasks" not in data:
        return data
    given = data.pop("tasks")
    if "task" in data:
        raise ConfigError(f"{path}: it has 'task' and 'tasks'; leave one out")
    if isinstance(given, list):
        given = {name: None for name in given}
    fits = isinstance(given, Mapping) and len(given) > 1 and all(isinstance(name, str) for name in given)
    if not fits or not all(options is None or isinstance(options, Mapping) for options in given.values()):
        raise ConfigError(f"{path}: tasks is {shown(given)}; list two or more names, or give a table of their options")
    tasks = {name: dict(options or {}) for name, options in given.items()}
    numbers = {name: options.pop("num_envs") for name, options in tasks.items() if "num_envs" in options}
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ConfigError(f"{path}: tasks.{name}.num_envs: {shown(number)} is not possible; give 1 or more")
        if _SHARE in tasks[name]:
            raise ConfigError(f"{path}: tasks.{name} has num_envs and {_SHARE}; leave one out")
        tasks[name][_SHARE] = number
    if numbers:
        if len(numbers) < len(tasks):
            missing = next(name for name in tasks if name not in numbers)
            raise ConfigError(f"{path}: tasks.{missing} has no num_envs and others have; give it to each or to none")
        if "num_envs" in data:
            raise ConfigError(f"{path}: num_envs is the sum of those of its tasks; leave it out")
        data["num_envs"] = sum(numbers.values())
    together, env = TASKS_PREFIX + "+".join(tasks), data.get("env") or {}
    if task not in (None, together) and task not in tasks:
        names = ", ".join(tasks)
        raise ConfigError(f"--task is '{task}', and {path} is of {names}; name one of these, or leave --task out")
    if task in tasks:  # alone
        common = {k: v for k, v in env.items() if not any(k == name or k.startswith(f"{name}.") for name in tasks)}
        own = {name.removeprefix(f"{task}."): value for name, value in env.items() if name.startswith(f"{task}.")}
        options = {**common, **(env.get(task) or {}), **own, **tasks[task]}
        data["env"] = {name: value for name, value in options.items() if name != _SHARE}
        if isinstance(agent := data.get("agent"), Mapping):
            data["agent"] = {name: value for name, value in agent.items() if name not in _OF_SEVERAL}
        return {**data, "task": task, **({"num_envs": numbers[task]} if numbers else {})}
    data["task"] = together
    data["env"] = {**env, **{name: options for name, options in tasks.items() if options}}
    return data
