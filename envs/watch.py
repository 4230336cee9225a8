"""What simulators tell of a step beside what they return: terms of the reward, and data of robots."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from rlcore.config import nearest
from rlcore.envs.arrays import as_tensor, view_of


class Watch:
    """Reads an env of Isaac Lab or mjlab as its rewards see it: after the physics, before episodes begin anew.

    Args:
        core: the env as made.
        device: of the learner.
    """

    def __init__(self, core: Any, device: torch.device) -> None:
        self.core, self.device = core, device
        self._data: dict[str, tuple[Any, str]] = {}  # what holds it, and its name there
        self._values: dict[str, Tensor] = {}
        self._hooked: tuple[Any, str] | None = None

    def reader(self, kind: Literal["reward", "state"], name: str) -> Callable[[], Tensor]:
        """What gives ``[N, ...]`` of the latest step; see ``rlcore.envs.costs.CostSource`` for the kinds.

        Raises:
            ValueError: there is nothing of that name.
        """
        return self._term(name) if kind == "reward" else self._state(name)

    def close(self) -> None:
        """Take the hook out of the env."""
        if self._hooked is not None:
            owner, method = self._hooked
            vars(owner).pop(method, None)
            self._hooked = None

    def _term(self, name: str) -> Callable[[], Tensor]:
        manager = getattr(self.core, "reward_manager", None)
        names: list[str] = list(getattr(manager, "active_terms", ()))
        if not hasattr(manager, "_step_reward"):
            raise ValueError("the task has no terms of its reward; name data of the robot by state")
        if name not in names:
            raise ValueError(f"there is no term '{name}'; {nearest(name, names)}")
        column, config = names.index(name), manager.get_term_cfg(name)  # type: ignore[union-attr]
        if config.weight == 0:
            raise ValueError(f"'{name}' has a weight of 0, with which it is not computed; give it a small one")

        def read() -> Tensor:
            weighted = as_tensor(manager._step_reward)[:, column]  # type: ignore[union-attr]
            weight = float(config.weight)  # which curricula change
            return (weighted / weight if weight else torch.zeros_like(weighted)).to(self.device, torch.float32)

        return read

    def _state(self, name: str) -> Callable[[], Tensor]:
        entities = _entities(self.core)
        owner, _, field = name.rpartition(".")
        owner = owner or ("robot" if "robot" in entities else next(iter(entities), ""))
        if owner not in entities:
            raise ValueError(f"there is no entity '{owner}'; {nearest(owner, entities)}")
        data = entities[owner].data
        if field.startswith("_") or (not hasattr(type(data), field) and field not in getattr(data, "__dict__", {})):
            raise ValueError(f"'{owner}' has no data '{field}'; {nearest(field, _fields(data))}")
        try:
            value = view_of(getattr(data, field))
        except Exception as error:  # the simulator's, of what its data does not have in this task
            raise ValueError(f"'{field}' of '{owner}' cannot be read: {' '.join(str(error).split())}") from error
        if value is None or value.shape[:1] != (self.core.num_envs,):
            raise ValueError(f"'{field}' of '{owner}' has no row for each env; name other data of it")
        self._data[name] = data, field
        self._look()
        if self._hooked is None:
            self._hook()
        return lambda: self._values[name]

    def _look(self) -> None:
        self._values = {
            name: as_tensor(getattr(data, field)).to(self.device, torch.float32, copy=True)
            for name, (data, field) in self._data.items()
        }

    def _hook(self) -> None:
        """Look where rewards are computed, as every step does before it resets anything."""
        manager = getattr(self.core, "reward_manager", None)
        owner, method = (self.core, "_get_rewards") if manager is None else (manager, "compute")
        if not hasattr(owner, method):
            raise ValueError("the task computes its rewards in a way of its own; name a term of its observations")
        inner = getattr(owner, method)

        def look(*args: Any, **kwargs: Any) -> Any:
            result = inner(*args, **kwargs)
            self._look()
            return result

        setattr(owner, method, look)
        self._hooked = owner, method


def _entities(core: Any) -> Mapping[str, Any]:
    """What a scene holds that has data, by name."""
    scene = getattr(core, "scene", None)
    found: dict[str, Any] = {}
    for kind in ("articulations", "rigid_objects", "entities"):
        found |= getattr(scene, kind, None) or {}
    return {name: entity for name, entity in found.items() if hasattr(entity, "data")}


def _fields(data: Any) -> list[str]:
    return [name for name in dir(data) if not name.startswith("_") and not callable(getattr(type(data), name, None))]
