"""What users write themselves, found by the place that a setting names: a file, or a module that is installed.

An algorithm, a network and an env of one's own are all named so: ``FILE.py``, ``FILE.py:NAME`` or ``module:NAME``.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from rlcore.config import ConfigError

T = TypeVar("T")

PYTHON_PREFIX = "python:"
"""How tasks begin that name the class of an env of one's own; other places may begin so, too."""

_files: dict[Path, ModuleType] = {}  # that have been imported


def is_place(text: str) -> bool:
    """Whether a text is written as a place, whether or not anything is there."""
    place, colon, _ = text.removeprefix(PYTHON_PREFIX).partition(":")
    return bool(place) and (bool(colon) or place.endswith(".py"))


def written_as(place: str) -> str:
    """How a configuration names a place, so that it is found from other folders, too: a file by its absolute path."""
    module, colon, name = place.removeprefix(PYTHON_PREFIX).partition(":")
    return f"{Path(module).resolve() if module.endswith('.py') else module}{colon}{name}"


def imported(place: str, where: str) -> tuple[ModuleType, str]:
    """Import what a place names; what is in the present folder is found like what is installed, but after it.

    Args:
        place: ``FILE.py``, ``FILE.py:NAME`` or ``module:NAME``.
        where: whose value it is, for messages.

    Returns:
        The module, and the name in it; empty where none was given.

    Raises:
        ConfigError: there is no such file or module, in one line.
    """
    module, _, name = place.removeprefix(PYTHON_PREFIX).partition(":")
    return _file(Path(module), where) if module.endswith(".py") else _module(module, where), name


def look_here() -> None:
    """Let modules in the present folder be found like those that are installed, but after them."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def _file(path: Path, where: str) -> ModuleType:
    """Import a file, or the one of its name in the present folder where it is no more, as on another machine."""
    found = next((file for file in (path, Path(path.name)) if file.is_file()), None)
    if found is None:
        raise ConfigError(f"{where}: there is no file '{path}'; put it there, or run in the folder that has it")
    found = found.resolve()
    if found not in _files:
        if str(found.parent) not in sys.path:
            sys.path.append(str(found.parent))  # for what lies beside it, but after what is installed
        name = f"rlcore_file_{len(_files)}_{found.stem}"  # two folders may each have one of this name
        spec = importlib.util.spec_from_file_location(name, found)
        assert spec is not None and spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)  # where dataclasses look up their types
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        _files[found] = module
    return _files[found]


def _module(name: str, where: str) -> ModuleType:
    look_here()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(
            f"{where}: there is no module '{error.name}'; install it, run in the folder that has it, or give FILE.py"
        ) from error


def theirs(fn: Callable[[], T], what: str) -> T:
    """Run what a user wrote; an error of it becomes one line with the place in the user's text.

    Args:
        fn: what to run.
        what: that goes wrong then, for the message.

    Raises:
        ConfigError: it failed.
    """
    try:
        return fn()
    except ConfigError:
        raise
    except Exception as error:
        reason = " ".join((str(error).splitlines() or [""])[:1])[:200]
        places = [(frame.lineno, frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
        if isinstance(error, SyntaxError):
            places.append((error.lineno, error.filename or ""))
        others = ("site-packages", "<frozen", "<string>", str(Path(__file__).parent), sysconfig.get_path("stdlib"))
        found = [place for place in places if not any(other in place[1] for other in others)]
        place = f"; correct line {found[-1][0]} of {found[-1][1]}" if found else ""
        raise ConfigError(f"{what}: {type(error).__name__}: {reason}{place}") from error
