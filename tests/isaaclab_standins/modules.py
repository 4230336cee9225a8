"""Modules in place of Omniverse's and of small dependencies, so that Isaac Lab's own Python code can be imported.

A module that is not installed is made up: whatever is asked of it is a class that takes any arguments, can be
subclassed, called, entered and iterated, and whose attributes are the same again.
"""

from __future__ import annotations

import builtins
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

OMNIVERSE = ("omni", "carb", "pxr", "isaacsim", "usdrt")
DEPENDENCIES = ("warp", "prettytable", "trimesh", "toml", "flatdict", "h5py", "hid", "scipy", "tqdm", "psutil", "cv2")


class _AnyType(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = any_class(f"{cls.__name__}.{name}")
        setattr(cls, name, made)
        return made

    def __or__(cls, other: Any) -> Any:  # in annotations that are evaluated
        return Any

    __ror__ = __or__

    def __iter__(cls) -> Iterator[Any]:
        return iter(())


class _Anything(metaclass=_AnyType):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return any_class(name)()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # As a decorator it must leave functions what they are.
        return args[0] if len(args) == 1 and isinstance(args[0], types.FunctionType) else self

    def __getitem__(self, key: Any) -> Any:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __radd__(self, other: Any) -> Any:  # text + what a table prints
        return other

    def __int__(self) -> int:
        return 0

    def __str__(self) -> str:
        return ""


def any_class(name: str) -> Any:
    return _AnyType(name, (_Anything,), {})


class _MadeUp(types.ModuleType):
    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = any_class(name)
        setattr(self, name, made)
        return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> Any:
        if name.partition(".")[0] not in OMNIVERSE + DEPENDENCIES:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _MadeUp(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def install() -> None:
    """Make up what is missing; whatever is installed goes first."""
    sys.meta_path.append(_Finder())
    builtins.ISAAC_LAUNCHED_FROM_TERMINAL = False  # type: ignore[attr-defined]  # Isaac Lab asks for it
