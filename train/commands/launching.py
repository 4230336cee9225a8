"""What has to happen before the words of a command can be read: a simulator comes before PyTorch."""

from __future__ import annotations

import contextlib
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlcore.train import arguments
from rlcore.train.arguments import UsageError
from rlcore.train.elastic import on_own_device

_apps: list[Any] = []
"""Simulators that ``launched`` started and ``close_simulator`` will close."""


def with_library(words: Sequence[str]) -> list[str]:
    """``--from`` is a word of Python, so the setting behind it has another name."""
    return [re.sub(r"^(--from(?==|$)|from(?==))", "--library", word) for word in words]


def launched(words: Sequence[str]) -> list[str]:
    """Start the simulator that a command needs before anything else is imported, and take its flags out of the words.

    The task is the one that is named, else that of the run or the configuration file that is.
    """
    from rlcore.envs.launch import PYTHON_PREFIX, TASKS_PREFIX, launch, simulator_of
    from rlcore.train.many import joined

    words = joined(words)
    if arguments.asks_help(words):
        return list(words)
    task = task_in(words)
    unknown = simulator_of(task) == "builtin" and not task.startswith((PYTHON_PREFIX, TASKS_PREFIX))
    if unknown and (":" in task or re.match("isaac|mjlab", task, re.IGNORECASE)):
        raise UsageError(
            f"unknown task '{task}': tasks of simulators begin with Isaac- or Mjlab-; for others write "
            f"isaaclab:{task} or mjlab:{task}, and {PYTHON_PREFIX}{task} for the class of an env"
        )
    if simulator_of(task) == "isaaclab":
        words = on_own_device(words)
    app, words = launch(task, words)
    if app is not None:
        _apps.append(app)
    return words


def close_simulator() -> None:
    """Close what ``launched`` started. It comes last, because Isaac Sim may end the process with it."""
    while _apps:
        error = sys.exc_info()[1]
        if isinstance(error, Exception):
            traceback.print_exception(error)  # Python may not come to it
        sys.stdout.flush()
        sys.stderr.flush()
        _apps.pop().close()


def named_in(words: Sequence[str]) -> dict[str, str]:
    """What has to be known before the other words can be read."""
    given: dict[str, str] = {}
    names = "task|run|resume|onnx|config|algo|preset|init[_-]from|library"
    for word, following in zip(words, [*words[1:], ""], strict=False):
        found = re.fullmatch(rf"(?:--)?({names})=(.*)|--({names})", word)
        if found:
            given[(found[1] or found[3]).replace("-", "_")] = following if found[2] is None else found[2]
    return given


def task_in(words: Sequence[str]) -> str:
    """The task that words name, or that of the run or the configuration file that they name; empty for none."""
    given = named_in(words)
    path = next((Path(given[key]) for key in ("resume", "run", "onnx", "config", "init_from") if given.get(key)), None)
    if "task" in given or path is None:
        return given.get("task", "")
    from rlcore.config import ConfigError
    from rlcore.train.many import run_settings

    # A run may be named by its folder, a checkpoint or its exported file, which is two folders below.
    for file in (path, *(folder / "config.yaml" for folder in (path, path.parent, path.parent.parent))):
        if file.suffix in (".yaml", ".yml") and file.is_file():
            with contextlib.suppress(ConfigError):  # said later, in full
                return str(run_settings(file).get("task"))
    return _task_of_file(path) if path.suffix == ".onnx" and path.is_file() else ""


def _task_of_file(path: Path) -> str:
    """The task that an exported file names; PyTorch, which a simulator may want to come before, is not imported."""
    import onnx

    with contextlib.suppress(Exception):  # whatever a file that is no ONNX ends in is said later, in full
        properties = onnx.load(str(path), load_external_data=False).metadata_props
        return next((x.value for x in properties if x.key == "task"), "")
    return ""
