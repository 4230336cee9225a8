"""Commands of a simulator's env that somebody gives by hand, in the place of those that it draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor

from rlcore.env import VecEnv
from rlcore.envs.arrays import view_of


class Steerable(VecEnv, Protocol):
    """An env that follows commands, which can be given from outside in the place of those that it draws."""

    def steer(self, name: str, values: Tensor) -> None:
        """Hold a command of all envs from the next observation on; ``deployment["commands"]`` tells of those there are.

        Args:
            name: of the command.
            values: ``[size]``; NaN leaves a number to the env.

        Raises:
            ValueError: there is no such command, or it has another size.
        """
        ...


def is_steerable(env: VecEnv) -> TypeGuard[Steerable]:
    """Whether an env takes commands from outside."""
    return hasattr(env, "steer")


class HeldCommands:
    """Holds commands of an env's manager: they are written anew after each update that the manager makes.

    Args:
        core: the simulator's env.
    """

    def __init__(self, core: Any) -> None:
        self._core = core
        self._held: dict[str, Tensor] = {}

    def steer(self, name: str, values: Tensor) -> None:
        """See ``Steerable.steer``."""
        manager = getattr(self._core, "command_manager", None)
        names = list(getattr(manager, "active_terms", None) or ())
        if name not in names:
            raise ValueError(f"there is no command '{name}' to steer; there are {', '.join(names) or 'none'}")
        term = manager.get_term(name)  # type: ignore[union-attr]
        command = view_of(term.command)
        if command is None or command.shape[1:] != values.shape:
            shape = None if command is None else list(command.shape[1:])
            raise ValueError(f"command '{name}' has the shape {shape}, and {list(values.shape)} came")
        if name not in self._held:
            term.compute = self._after(name, term, term.compute)
        self._held[name] = values.to(command.device, command.dtype)
        self._write(name, term)
        now = view_of(term.command)
        if now is None or bool(((now != self._held[name]) & ~self._held[name].isnan()).any()):
            raise ValueError(f"command '{name}' is worked out anew whenever it is read, and cannot be steered")

    def release(self) -> None:
        """Leave all commands to the env again."""
        for name in self._held:
            vars(self._core.command_manager.get_term(name)).pop("compute", None)
        self._held.clear()

    def _after(self, name: str, term: Any, compute: Callable[..., Any]) -> Callable[..., Any]:
        def held(*args: Any, **kwargs: Any) -> Any:
            result = compute(*args, **kwargs)
            self._write(name, term)
            return result

        return held

    def _write(self, name: str, term: Any) -> None:
        values, command = self._held[name], view_of(term.command)
        assert command is not None
        torch.where(values.isnan(), command, values, out=command)
