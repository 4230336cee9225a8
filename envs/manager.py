"""What the adapters to Isaac Lab and mjlab share, whose envs step a batch with the same five values."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rlcore.envs import unknown_option
from rlcore.envs.arrays import as_tensor
from rlcore.envs.deployment import describe, suggested_bounds
from rlcore.envs.parameters import STAGE_ENTRY
from rlcore.envs.sim_parameters import SimulatorPhysics, event_ranges, set_event_range
from rlcore.envs.sim_spaces import read_action_space, read_groups
from rlcore.envs.stages import COUNTERS, Curricula, hold, reads_counters, terrain_of
from rlcore.envs.steer import HeldCommands
from rlcore.envs.terrain import TerrainLevels
from rlcore.envs.watch import Watch
from rlcore.types import Obs


class SimulatorEnv:
    """The part of an adapter that does not depend on the simulator.

    Args:
        env: the env as made, which is then owned: ``close()`` closes it.
        task: name for run folders and exported files.
        device: of the learner; None is that of the simulator.
        groups: observation groups to hand on, as names or as one text with spaces or commas; None is all of them.
        clip_actions: see the adapters.
        randomize_start: whether ``reset`` lets episodes begin as if part of their time were over.

    Raises:
        ValueError: a space that rlcore cannot train on, or an unknown group.
    """

    exact_state = False
    """``state_dict`` holds what curricula go by, not the state of the simulator: episodes in flight start anew."""

    final_obs_source: str
    """Where ``Step.final_obs`` comes from; ``off`` where there is none."""

    registered_as: str | None = None
    """The task's name as a new process finds it, with the module that registers it; None where ``task`` is enough."""

    final_groups: tuple[str, ...] | None = None
    """Groups of ``Step.final_obs`` that are read; None for all. Others may be left out, which saves computing them."""

    def __init__(
        self,
        env: Any,
        *,
        task: str,
        device: str | torch.device | None,
        groups: str | Sequence[str] | None,
        clip_actions: float | str | None,
        randomize_start: bool,
    ) -> None:
        groups = None if groups is None else as_names(groups)
        core = env.unwrapped
        self.env = env
        self.core = vars(core).get("env", core)  # a converted multi-agent env keeps its counters inside
        self.task = task
        self.num_envs = int(core.num_envs)
        self.simulator_device = torch.device(core.device)
        self.device = torch.empty(0, device=device or self.simulator_device).device
        self.max_episode_length = int(core.max_episode_length)
        self.finite_horizon = bool(getattr(core.cfg, "is_finite_horizon", False))
        self.randomize_start = randomize_start
        self.notes: list[str] = []
        """What a run should say about this env, one line each."""
        self.observation_spaces: Mapping[str, spaces.Box]
        self._groups = read_groups(task, core, groups, self.notes)
        self.observation_spaces = {name: group.box for name, group in self._groups.items()}
        self.action_space: spaces.Space[Any]
        self.action_space, self._action_shape = read_action_space(task, core.single_action_space)
        self._limits: tuple[Tensor, Tensor] | None = None
        if clip_actions is not None:
            self._clip(clip_actions)
        terms = {name: [part.name for part in group.parts] for name, group in self._groups.items()}
        sizes = {name: [part.size for part in group.parts] for name, group in self._groups.items()}
        self.deployment = describe(core, terms, sizes)
        self._unread: set[str] = set()
        self._curricula = Curricula(self.core)
        self._physics: SimulatorPhysics | None = None
        self._watch = Watch(self.core, self.device)
        self._held = HeldCommands(self.core)
        if self.deployment.get("commands"):
            self.steer = self._held.steer
        terrain = terrain_of(self.core)
        self.own_levels = None if terrain is None else TerrainLevels(self.core, terrain)
        if terrain is not None:
            self.stage_where = self._stage_where

    @property
    def clocks(self) -> tuple[str, ...]:
        """Counters, unless a task without managers reads them itself: see ``rlcore.stage``."""
        return (STAGE_ENTRY,) if reads_counters(type(self.core)) else (STAGE_ENTRY, *COUNTERS)

    def reset(self, seed: int | None = None) -> Obs:
        """Start a new episode in every env.

        Args:
            seed: for all random numbers of the simulator, which are those of torch, numpy and Python as a whole.
        """
        if self._physics is not None:
            self._physics.seed(seed)
        with torch.no_grad():
            observation, _ = self.env.reset(seed=None if seed is None else int(seed))
            if self.randomize_start:
                elapsed = as_tensor(self.core.episode_length_buf)
                elapsed.copy_(torch.randint_like(elapsed, max(1, self.max_episode_length)))
            return self.read_obs(observation)

    def state_dict(self) -> dict[str, Any]:
        """What curricula have done so far, see ``rlcore.envs.stages.Curricula``; and parameters that were set."""
        return self._curricula.state() | ({} if self._physics is None else self._physics.stage())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state_dict`` gave; a ``reset`` within ``at_stage`` leaves it so."""
        self._curricula.load(state)
        if self._physics is not None:
            self._physics.load(state)

    @property
    def event_ranges(self) -> dict[str, tuple[float, float]]:
        """Ranges that the task's own events draw from at resets and intervals, by name; see ``set_event_range``."""
        return event_ranges(self.core)

    def set_event_range(self, name: str, low: float, high: float) -> None:
        """Change one of ``event_ranges``, such as ``push_robot/velocity_range/x``.

        Raises:
            ValueError: there is no such range, or low is above high.
        """
        try:
            set_event_range(self.core, name, low, high)
        except ValueError as error:
            raise ValueError(f"{self.task}: {error}") from error

    def _stage_where(self, which: str) -> dict[str, Any]:
        """See ``rlcore.stage``; commands and the like stand where they are."""
        assert self.own_levels is not None
        return self.state_dict() | {"terrain_levels": self.own_levels.where(which)}

    @contextlib.contextmanager
    def at_stage(self, state: Mapping[str, Any]) -> Iterator[None]:
        """While the context is open, ``reset`` begins episodes where ``state`` stands: it promotes and demotes nobody.

        Curricula run as they do at any reset. What they did is undone twice: before robots are placed, so that they
        stand where their levels are, and at the end.
        """
        scene = getattr(self.core, "scene", None)
        reset, own = getattr(scene, "reset", None), getattr(scene, "__dict__", {}).get("reset")

        def reset_scene(*args: Any, **kwargs: Any) -> Any:
            self.load_state_dict(state)  # curricula have run by now, and robots have not been placed
            assert reset is not None
            return reset(*args, **kwargs)

        self.load_state_dict(state)
        if reset is not None:
            scene.reset = reset_scene  # type: ignore[union-attr]
        try:
            yield
        finally:
            if own is not None:
                scene.reset = own  # type: ignore[union-attr]
            elif reset is not None:
                del scene.reset  # type: ignore[union-attr]
        self.load_state_dict(state)

    def hold(self) -> Callable[[], bool]:
        """Remember all of the env; see ``rlcore.envs.stages.hold``."""
        put_back, physics = hold(self.core), self._physics
        if physics is None:
            return put_back
        parameters = physics.hold()

        def back() -> bool:
            parameters()  # before bodies are placed
            return put_back()

        return back

    def render(self) -> NDArray[np.uint8]:
        """Picture of the simulator's viewer, ``[H, W, 3]``.

        Raises:
            ValueError: the env was not made with ``render_mode="rgb_array"``.
        """
        frame = self.env.render()
        if frame is None:
            raise ValueError(f"{self.task}: no picture; make the env with render_mode='rgb_array'")
        return np.array(frame, dtype=np.uint8)

    def watch(self, kind: Literal["reward", "state"], name: str) -> Callable[[], Tensor]:
        """What gives a term of the reward, or data of a robot, after each step; see ``rlcore.envs.costs.Watchable``.

        Raises:
            ValueError: there is nothing of that name.
        """
        return self._watch.reader(kind, name)

    def close(self) -> None:
        """Close the env."""
        self._watch.close()
        self._held.release()
        self.env.close()

    def vary(self, physics: SimulatorPhysics | None) -> None:
        """Have parameters, and pushes where the root moves; see ``rlcore.env.Randomizable`` and ``Pushable``."""
        self._physics = physics
        if physics is not None:
            self.parameters, self.set_parameters = physics.parameters, physics.set
            if physics.movable:
                self.push, self.push_unit = physics.push, "m/s"

    def read_obs(self, observation: Any, groups: Iterable[str] | None = None) -> Obs:
        """Copy an env's observation: groups, all by default, as ``observation_spaces`` has them, to the learner."""
        if not isinstance(observation, Mapping):
            observation = {"policy": observation}
        groups = self._groups if groups is None else groups
        return {group: self._groups[group].read(observation, self.num_envs, self.device) for group in groups}

    def sources(self, groups: Iterable[str]) -> list[str]:
        """The simulator's own groups that these are read from."""
        return list(dict.fromkeys(self._groups[group].source for group in groups))

    def wanted(self) -> list[str]:
        """Groups of ``Step.final_obs``."""
        return [group for group in self._groups if self.final_groups is None or group in self.final_groups]

    def read_action(self, action: Tensor) -> Tensor:
        """A copy of an action for the env, within ``clip_actions``, on the simulator's device.

        Raises:
            ValueError: it has the wrong shape.
        """
        discrete = isinstance(self.action_space, spaces.Discrete)
        shape = (self.num_envs,) if discrete else (self.num_envs, *self.action_space.shape)  # type: ignore[misc]
        if action.shape != shape:
            raise ValueError(f"{self.task}: action has shape {tuple(action.shape)}; expected {shape}")
        dtype = torch.int64 if discrete else torch.float32
        # A copy: envs keep the last action, and the learner may write the next one into the same memory.
        action = action.to(self.simulator_device, dtype, copy=True)
        if self._limits is not None:
            action = torch.clamp(action, *self._limits)
        return action.reshape(self.num_envs, *self._action_shape)

    def read_vector(self, value: Any, dtype: torch.dtype) -> Tensor:
        """A copy ``[N]`` of reward or flags, which envs write anew in place at every step."""
        return as_tensor(value).to(self.device, dtype, copy=True).reshape(self.num_envs)

    def read_log(self, log: Mapping[str, Any]) -> dict[str, Tensor | float]:
        """A simulator's log as scalars on the learner's device, or ``[N]`` where it has a value for each env.

        Everything else is left out with one warning for each name.
        """
        result: dict[str, Tensor | float] = {}
        scalars: dict[str, Tensor] = {}
        numbers: dict[str, float] = {}
        for name, value in log.items():
            if isinstance(value, (bool, int, float, np.number, np.bool_)):
                numbers[name] = float(value)
                continue
            try:
                tensor = as_tensor(value)
            except (TypeError, ValueError, RuntimeError):
                if name not in self._unread:
                    self._unread.add(name)
                    warnings.warn(f"{self.task}: log entry '{name}' is {type(value).__name__}, no number", stacklevel=3)
                continue
            if tensor.shape == (self.num_envs,) and self.num_envs > 1:
                result[name] = tensor.to(self.device, torch.float32, copy=True)
            elif tensor.numel() > 0:
                scalars[name] = tensor.float().reshape(()) if tensor.numel() == 1 else tensor.float().mean()
        if scalars:  # one transfer for all
            moved = torch.stack([x.to(self.simulator_device) for x in scalars.values()]).to(self.device)
            result |= zip(scalars, moved.unbind(), strict=True)
        if numbers:
            plain = torch.tensor(list(numbers.values()))
            if self.device.type == "cuda":  # from pinned memory the host need not wait until the device has arrived
                plain = plain.pin_memory()
            result |= zip(numbers, plain.to(self.device, non_blocking=True).unbind(), strict=True)
        return result

    def read_terminated(self, terminated: Any, truncated: Any) -> tuple[Tensor, Tensor]:
        """Both flags ``[N]``; with a finite horizon the end of time is a true end, and bootstraps nothing."""
        ended = self.read_vector(terminated, torch.bool)
        cut = self.read_vector(truncated, torch.bool)
        return (ended | cut if self.finite_horizon else ended), cut

    def _clip(self, clip: float | str) -> None:
        box = self.action_space
        if not isinstance(box, spaces.Box):
            raise ValueError(f"{self.task}: clip_actions is {clip!r}, but actions are discrete; leave it out")
        if clip == "auto":
            low, high, reason = suggested_bounds(self.core, box)
            self.notes.append(f"actions are limited to {reason}")
        elif isinstance(clip, (int, float)) and not isinstance(clip, bool) and clip > 0:
            low, high = np.maximum(box.low, -clip), np.minimum(box.high, clip)
        else:
            raise ValueError(f"{self.task}: clip_actions is {clip!r}; use a number above 0, 'auto' or None")
        self.action_space = spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
        self._limits = (
            torch.as_tensor(self.action_space.low, device=self.simulator_device),
            torch.as_tensor(self.action_space.high, device=self.simulator_device),
        )


def as_names(names: str | Sequence[str]) -> list[str]:
    """Names, or the words of one text: a command line has no lists without brackets."""
    return re.findall(r"[^\s,()\[\]]+", names) if isinstance(names, str) else list(names)


def apply_overrides(task: str, cfg: Any, overrides: Mapping[str, Any]) -> None:
    """Set fields of an env's configuration by dotted name, such as ``scene.env_spacing``.

    Attributes, keys of dicts and indices of lists are followed. None switches a part off, such as an event.

    Raises:
        ValueError: an unknown name (the message has the nearest), or a value of another type.
    """
    for dotted, value in overrides.items():
        node, done = cfg, ""
        *parents, last = dotted.split(".")
        for key in parents:
            node, done = _child(task, node, key, done), f"{done}{key}."
        new = _converted(f"{task}: {dotted}", value, _child(task, node, last, done), _is_float(node, last))
        if isinstance(node, list):
            node[int(last)] = new
        elif isinstance(node, dict):
            node[last] = new
        else:
            setattr(node, last, new)


def _child(task: str, node: Any, key: str, done: str) -> Any:
    if isinstance(node, list):
        names = [str(i) for i in range(len(node))]
    else:
        names = [name for name in (node if isinstance(node, dict) else _fields(node)) if not str(name).startswith("_")]
    if key not in names:
        raise ValueError(unknown_option(task, done + key, [done + str(name) for name in names]))
    return node[int(key)] if isinstance(node, list) else node[key] if isinstance(node, dict) else getattr(node, key)


def _fields(node: Any) -> list[str]:
    return list(dict.fromkeys([*getattr(node, "__dataclass_fields__", {}), *getattr(node, "__dict__", {})]))


def _is_float(node: Any, key: str) -> bool:
    """Whether a field is declared as a float; many are given as whole numbers."""
    return any("float" in str(vars(cls).get("__annotations__", {}).get(key)) for cls in type(node).__mro__)


def _converted(where: str, value: Any, old: Any, floating: bool) -> Any:
    if value is None or old is None or old is dataclasses.MISSING:
        return value
    if isinstance(old, tuple) and isinstance(value, (list, tuple)):
        return tuple(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and (isinstance(old, float) or (floating and isinstance(old, int))):
        return float(value)
    if isinstance(old, bool) != isinstance(value, bool) or not isinstance(value, type(old)):
        plain = isinstance(old, (bool, int, float, str, tuple, list))
        wanted = f"it must be {type(old).__name__}, as in {old!r}" if plain else "set its fields, or None for none"
        raise ValueError(f"{where} is {value!r}; {wanted}")
    return value
