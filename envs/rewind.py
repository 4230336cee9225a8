"""Looking at an env without a trace: what an extra observation changes in it is put back."""

from __future__ import annotations

import contextlib
import copy
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlcore.envs.arrays import is_array, view_of

_TERM_STATE = ("_group_obs_term_history_buffer", "_group_obs_term_delay_buffer", "_group_obs_class_instances")

_CONTAINERS = (list, dict, set, deque)


@dataclass(frozen=True)
class _Saved:
    """An object as it was."""

    object: Any
    attributes: dict[str, Any]
    arrays: list[tuple[Tensor, int | None, Tensor]]
    """Memory, its version if that tells whether it was written, and a copy."""
    containers: list[tuple[Any, Any]]
    """Containers and shallow copies."""

    def restore(self) -> None:
        for memory, version, saved in self.arrays:
            if version is None or memory._version != version:
                memory.copy_(saved)
        for container, saved in self.containers:
            container.clear()
            container.extend(saved) if isinstance(container, (list, deque)) else container.update(saved)
        vars(self.object).clear()
        vars(self.object).update(self.attributes)


class Rewind:
    """Puts an env of Isaac Lab back to what it was before an observation was computed.

    - Random generators: those of torch, of the env's device too, of NumPy and of Python.
    - Histories, delays, filters and noise models of the observation manager; of a direct task, its attributes: what
      they are bound to, and what is in them if they are arrays, lists, deques, sets or dicts. What it changes deeper
      than that, such as a network that it trains, is not put back.
    - Caches of assets, which are filled when they are read and say by a time whether they are up to date: that time.
      A reset does not invalidate all of them, so that one filled before it would be shown after it.
    - Sensors, which are filled when they are read, too, and may keep a history of it.

    Args:
        core: the unwrapped env.
        device: of its simulator.
    """

    def __init__(self, core: Any, device: torch.device) -> None:
        self.core = core
        self.device = device
        # Arrays of the last time as tensors, which take longer to make than to copy.
        self._known: dict[int, tuple[Any, Tensor | None]] = {}
        self._views: dict[int, tuple[Any, Tensor | None]] = {}

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """While the context is open, observations may be computed."""
        self._known, self._views = self._views, {}
        parts = _entities(self.core)
        times = [(cache, cache.timestamp) for part in parts for cache in _caches(part)]
        saved = [self._save(x) for x in [*_observers(self.core), *_sensors(parts)]]
        torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
        cuda_state = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        try:
            yield
        finally:
            torch.set_rng_state(torch_state)
            np.random.set_state(numpy_state)
            random.setstate(python_state)
            if cuda_state is not None:
                torch.cuda.set_rng_state(cuda_state, self.device)
            for saved_object in saved:
                saved_object.restore()
            for cache, time in times:
                cache.timestamp = time

    def _save(self, x: Any) -> _Saved:
        attributes = dict(vars(x))
        arrays: dict[Any, tuple[Tensor, int | None, Tensor]] = {}
        for value in attributes.values():
            memory = self._view(value)
            if memory is None or memory.layout is not torch.strided or memory.numel() == 0:
                continue
            if 0 in memory.stride():  # expanded: another has the memory
                continue
            if memory.is_inference() and not torch.is_inference_mode_enabled():
                continue  # it cannot be written
            # Kernels of warp leave no trace in the version.
            version = memory._version if memory is value and not memory.is_inference() else None
            arrays.setdefault((memory.data_ptr(), memory.shape, memory.stride()), (memory, version, memory.clone()))
        containers = [(value, copy.copy(value)) for value in attributes.values() if type(value) in _CONTAINERS]
        return _Saved(x, attributes, list(arrays.values()), containers)

    def _view(self, value: Any) -> Tensor | None:
        """``view_of``, remembered from one time to the next."""
        if not is_array(value):
            return view_of(value)
        if id(value) not in self._views:
            known, view = self._known.get(id(value), (None, None))
            self._views[id(value)] = (value, view if known is value else view_of(value))
        return self._views[id(value)][1]


def _entities(core: Any) -> list[Any]:
    """Assets and sensors of the scene, and those that a direct task keeps for itself, each followed by its data."""
    scene = vars(getattr(core, "scene", None) or core)
    places = [vars(core), *(group for group in scene.values() if isinstance(group, dict))]
    found: dict[int, Any] = {}
    for entity in (value for place in places for value in place.values() if hasattr(value, "__dict__")):
        # The property would fill a sensor: what is behind it is asked for.
        data = vars(entity).get("_data", vars(entity).get("data"))
        if hasattr(data, "__dict__"):
            found |= {id(entity): entity, id(data): data}
    return list(found.values())


def _caches(part: Any) -> list[Any]:
    """What has been filled up to a time that it keeps as ``timestamp``."""
    return [
        value
        for value in vars(part).values()
        if "timestamp" in getattr(value, "__dict__", ()) and isinstance(value.timestamp, float)
    ]


def _sensors(parts: Sequence[Any]) -> list[Any]:
    """Sensors and their data, without those that are known to be up to date: reading them changes nothing."""
    found: list[Any] = []
    for sensor in parts:
        if "_is_outdated" in vars(sensor) and vars(sensor).get("_data_dirty", True):
            found += [x for x in (sensor, vars(sensor).get("_data")) if hasattr(x, "__dict__")]
    return found


def _observers(core: Any) -> list[Any]:
    """The objects that computing observations may change."""
    manager = getattr(core, "observation_manager", None)
    if manager is None:
        return [x for x in (core, getattr(core, "_observation_noise_model", None)) if x is not None]
    found: list[Any] = [manager]
    for name in _TERM_STATE:
        found += flatten(getattr(manager, name, ()))
    found += [config.func for config in flatten(getattr(manager, "_group_obs_class_term_cfgs", ()))]
    return [x for x in found if hasattr(x, "__dict__")]


def flatten(container: Any) -> list[Any]:
    """The leaves of nested dicts, lists and tuples."""
    if isinstance(container, dict):
        container = container.values()
    elif not isinstance(container, (list, tuple)):
        return [container]
    return [x for part in container for x in flatten(part)]
