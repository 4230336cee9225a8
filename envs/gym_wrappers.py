"""Wrappers of gymnasium: those that a user names, and one that an adapter needs."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from typing import Any

import gymnasium

from rlcore.envs import look_here, nearest_names


class CopyObservation(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Keeps the last observation of an episode from being overwritten by the reset that follows at once."""

    def observation(self, observation: Any) -> Any:
        """Hand over a copy."""
        return copy.deepcopy(observation)


def wrapper_of(env_id: str, name: str) -> Callable[[gymnasium.Env[Any, Any]], gymnasium.Env[Any, Any]]:
    """The class of a wrapper: of gymnasium's by its name, of one's own by ``module:Class``.

    Raises:
        ValueError: there is none, or it is no wrapper's.
    """
    place, _, last = name.rpartition(":")
    if not place:
        place, _, last = name.rpartition(".")
        place = place or "gymnasium.wrappers"
    look_here()
    try:
        found = getattr(importlib.import_module(place), last, None)
    except ImportError as error:
        raise ValueError(f"gym:{env_id}: wrapper '{name}' cannot be loaded: {error}; write module:Class") from error
    # Asked before anything is called: the name may come from a file.
    if not isinstance(found, type) or not issubclass(found, gymnasium.Wrapper):
        module = importlib.import_module(place)
        there = vars(module).items()
        names = [key for key, own in there if isinstance(own, type) and issubclass(own, gymnasium.Wrapper)]
        close = nearest_names(last, names, count=1)
        hint = f"did you mean {close[0]}?" if close else "write a name of gymnasium.wrappers, or module:Class"
        if not hasattr(module, last) and place != "gymnasium.wrappers":
            own = [key for key in names if vars(module)[key].__module__ == place]
            hint = f"its wrappers are {', '.join(own)}" if own else "it has no wrapper; write module:Class"
            raise ValueError(f"gym:{env_id}: wrapper '{name}': module '{place}' has no '{last}'; {hint}")
        raise ValueError(f"gym:{env_id}: '{name}' is no wrapper of gymnasium's; {hint}")
    return found
