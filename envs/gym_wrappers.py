"""Wrappers of gymnasium: those that a user names, and those that the adapter needs."""

from __future__ import annotations

import copy
import importlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from rlcore.envs import look_here
from rlcore.names import nearest_names

MASK = "action_mask"
"""The observation group, and the entry of an env's info, that says which choices are possible."""


class CopyObservation(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Keeps the last observation of an episode from being overwritten by the reset that follows at once."""

    def observation(self, observation: Any) -> Any:
        """Hand over a copy."""
        return copy.deepcopy(observation)


class WithActionMask(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Shows beside the observation which choices are possible, as the env tells by ``info["action_mask"]``.

    That is the group ``action_mask`` ``[n]``, 1 where a choice is possible and 0 where it is not.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        """Wrap an env whose actions are ``Discrete``.

        Raises:
            ValueError: they are not, or its observations have a group of that name already.
        """
        super().__init__(env)
        choices, inner = env.action_space, env.observation_space
        if not isinstance(choices, spaces.Discrete):
            raise ValueError(f"action_mask: actions are {choices}, and a mask is for Discrete ones; leave it out")
        self._named = isinstance(inner, spaces.Dict)
        parts = OrderedDict(inner.spaces) if isinstance(inner, spaces.Dict) else OrderedDict(policy=inner)
        if MASK in parts:
            raise ValueError(f"action_mask: the observations have a group '{MASK}' already; leave action_mask out")
        parts[MASK] = spaces.Box(0.0, 1.0, (int(choices.n),), dtype=np.float32)
        self.observation_space = spaces.Dict(parts)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        observation, info = self.env.reset(**kwargs)
        return self._beside(observation, info), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the env."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._beside(observation, info), reward, terminated, truncated, info

    def _beside(self, observation: Any, info: dict[str, Any]) -> dict[str, Any]:
        if MASK not in info:
            raise ValueError(f"info has no '{MASK}'; give it in reset() and in each step(), or leave out action_mask")
        parts = dict(observation) if self._named else {"policy": observation}
        return parts | {MASK: np.asarray(info[MASK], dtype=np.float32)}


def masked(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """``WithActionMask`` around an env that has a method ``action_mask``, as Taxi does; else the env as it is."""
    tells = callable(getattr(env.unwrapped, MASK, None)) and isinstance(env.action_space, spaces.Discrete)
    named = isinstance(env.observation_space, spaces.Dict) and MASK in env.observation_space.spaces
    return WithActionMask(env) if tells and not named else env


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


def autoreset_mode(env: VectorEnv[Any, Any, Any]) -> AutoresetMode:
    """When an env that ended an episode begins the next one.

    Raises:
        ValueError: the vector env does not say it.
    """
    mode = env.metadata.get("autoreset_mode")
    try:
        return AutoresetMode(mode)
    except ValueError:
        raise ValueError(
            f"{type(env.unwrapped).__name__}: autoreset mode is {mode!r}; set metadata['autoreset_mode'] to what it "
            "does, gymnasium.vector.AutoresetMode.SAME_STEP, NEXT_STEP or DISABLED"
        ) from None
