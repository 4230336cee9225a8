"""What of a simulator's env outlasts its episodes, and how all of it is kept while something else uses the env."""

from __future__ import annotations

import contextlib
import logging
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlcore.envs.arrays import view_of
from rlcore.stage import rows_of

_log = logging.getLogger(__name__)

COUNTERS = ("common_step_counter", "_sim_step_counter")
"""Counters of an env that its curricula and events go by."""

_CONFIGURED = ("command", "action", "event", "observation", "reward", "termination")
"""Managers with terms whose settings a curriculum may change."""

_STATISTICS = ("_reset_term_last_triggered_step_id", "_reset_term_last_triggered_once", "_last_episode_dones")
"""What managers remember of past resets."""

_FOREIGN = ("omni", "carb", "pxr", "isaacsim", "usdrt", "warp", "mujoco", "mujoco_warp", "newton", "torch", "trimesh")
"""Packages whose objects are the simulator's own."""

_DEPTH = 12
_PLAIN = (bool, int, float, str, type(None), np.generic)


class _Entry(NamedTuple):
    """A value in an object, a dict or a list."""

    path: str
    owner: Any
    key: Any
    value: Any

    def put(self, value: Any) -> None:
        if isinstance(self.owner, (dict, list, deque)):
            self.owner[self.key] = value
        elif not isinstance(self.owner, tuple):
            vars(self.owner)[self.key] = value


def _entries(node: Any, seen: set[int], path: str = "", depth: int = _DEPTH) -> Iterator[_Entry]:
    """Everything below an object: its attributes, and what is in its dicts, lists and tuples; each object once."""
    if isinstance(node, dict):
        items = list(node.items())
    elif isinstance(node, (list, tuple, deque)):
        items = list(enumerate(node))
    else:
        items = list(vars(node).items())
    for key, value in items:
        below = f"{path}/{key}" if path else str(key)
        yield _Entry(below, node, key, value)
        if depth > 1 and id(value) not in seen and _has_parts(value):
            seen.add(id(value))
            yield from _entries(value, seen, below, depth - 1)


def _has_parts(value: Any) -> bool:
    if isinstance(value, (dict, deque)) or (isinstance(value, (list, tuple)) and not _is_plain(value)):
        return True
    if isinstance(value, (type, types.ModuleType, types.FunctionType, types.MethodType)) or view_of(value) is not None:
        return False
    return hasattr(value, "__dict__") and type(value).__module__.partition(".")[0] not in _FOREIGN


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, (list, tuple)) and all(map(_is_plain, value)))


def _simulation(core: Any) -> set[int]:
    """Ids of the objects that are the simulator's: terms refer to them, and they keep their state elsewhere."""
    scene = getattr(core, "scene", None)
    parts = [core, getattr(core, "env", None), scene, getattr(core, "sim", None)]
    for part in vars(scene).values() if hasattr(scene, "__dict__") else ():
        parts += part.values() if isinstance(part, dict) else [] if _is_plain(part) else [part]
    return {id(part) for part in parts if part is not None}


def terrain_of(core: Any) -> Any:
    """The terrain whose levels robots climb; None where there is none."""
    for terrain in (getattr(getattr(core, "scene", None), "terrain", None), getattr(core, "_terrain", None)):
        tensors = ("terrain_levels", "terrain_types", "terrain_origins", "env_origins")
        if all(isinstance(getattr(terrain, name, None), Tensor) for name in tensors):
            return terrain
    return None


def reads_counters(cls: type) -> bool:
    """Whether the code of a task, as apart from its simulator's, goes by a counter."""
    own = [
        x for x in cls.__mro__ if x.__module__.partition(".")[0] not in ("isaaclab", "mjlab", "gymnasium", "builtins")
    ]
    codes = [getattr(function, "__code__", None) for x in own for function in vars(x).values()]
    return any(name in code.co_names for code in codes if code is not None for name in COUNTERS)


class Curricula:
    """What curricula of an env have done so far.

    That is the counters, terrain levels, settings of terms that are no longer what they were when the env was made,
    what the curriculum terms themselves remember, and what a task of one's own tells with ``stage_dict``.
    Older stages without some of that leave it as it is.

    Args:
        core: the env as made, before its first reset.
    """

    def __init__(self, core: Any) -> None:
        self.core = core
        self._first = {entry.path: _copy(entry.value) for entry in self._remembered()}

    def state(self) -> dict[str, Any]:
        """All of it as tensors and plain values."""
        core = self.core
        state: dict[str, Any] = {name: int(getattr(core, name)) for name in COUNTERS if hasattr(core, name)}
        terrain = terrain_of(core)
        if terrain is not None:
            state |= {"terrain_levels": terrain.terrain_levels.clone(), "_terrain_types": terrain.terrain_types.clone()}
        if self._first:
            now = {entry.path: entry.value for entry in self._remembered()}
            unlike = (x for x in now if x not in self._first or not _same(now[x], self._first[x]))
            state["changed"] = {path: _saved(now[path]) for path in unlike}
        if hasattr(core, "stage_dict"):
            state["task"] = core.stage_dict()
        return state

    def load(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state`` gave, here or in another env.

        With another number of envs or another terrain each env takes the place of one of those: of the ones on terrain
        of its type, in the order of their levels, evenly spaced.
        """
        core = self.core
        for name in COUNTERS:
            if name in state and hasattr(core, name):
                setattr(core, name, int(state[name]))
        rows: Tensor | None = None  # [N]: whose place each env takes; None: its own
        terrain, levels, kinds = terrain_of(core), state.get("terrain_levels"), state.get("_terrain_types")
        if terrain is not None and levels is not None:
            levels = levels.to(terrain.terrain_levels)
            if kinds is not None or levels.shape == terrain.terrain_levels.shape:  # else levels of other kinds alone
                kinds = terrain.terrain_types if kinds is None else kinds.to(terrain.terrain_types)
                if kinds.shape != terrain.terrain_types.shape or not torch.equal(kinds, terrain.terrain_types):
                    rows = _places(levels, kinds, terrain.terrain_types)
                    levels = levels[rows]
                highest = terrain.terrain_origins.shape[0] - 1
                terrain.terrain_levels.copy_(levels.clamp(max=highest))
                terrain.env_origins.copy_(terrain.terrain_origins[terrain.terrain_levels, terrain.terrain_types])
        changed: Mapping[str, Any] = state.get("changed", {})
        for entry in self._remembered() if "changed" in state else ():
            if entry.path in changed or entry.path in self._first:
                self._put(entry, changed.get(entry.path, self._first.get(entry.path)), rows)
        if "task" in state and hasattr(core, "load_stage_dict"):
            core.load_stage_dict(state["task"])

    def _put(self, entry: _Entry, value: Any, rows: Tensor | None) -> None:
        now = entry.value
        if not isinstance(value, Tensor) or not isinstance(now, Tensor):
            if not _same(now, value):
                entry.put(_copy(value))
            return
        value = value.to(now)
        n = int(self.core.num_envs)
        if now.ndim and len(now) == n and value.ndim and (rows is not None or len(value) != n):
            rows = rows_of(len(value), n) if rows is None or len(value) <= int(rows.max()) else rows
            value = value[rows.to(value.device)]
        if value.shape == now.shape:
            now.copy_(value)
        else:
            entry.put(value.clone())

    def _remembered(self) -> Iterator[_Entry]:
        """Settings of all terms, and all that curriculum terms have; tensors and plain values."""
        seen = _simulation(self.core)
        for kind in _CONFIGURED:
            manager = getattr(self.core, f"{kind}_manager", None)
            for name, cfg in _settings(manager):
                if id(cfg) in seen or not _has_parts(cfg):
                    continue
                seen.add(id(cfg))
                seen.add(id(getattr(cfg, "func", None)))  # a term that is an object has the state of episodes
                yield from _values(_entries(cfg, seen, f"{kind}/{name}"))
        manager = getattr(self.core, "curriculum_manager", None)
        for name, cfg in _settings(manager):
            term = getattr(cfg, "func", None)
            if _has_parts(term) and id(term) not in seen:
                seen |= {id(term), id(cfg)}
                yield from _values(_entries(term, seen, f"curriculum/{name}"))


def _settings(manager: Any) -> Iterator[tuple[str, Any]]:
    """Name and configuration of each term of a manager."""
    names = getattr(manager, "active_terms", None) or []
    if hasattr(manager, "compute_group"):  # observations, whose terms have names within their group
        yield "cfg", getattr(manager, "cfg", None)
        return
    if isinstance(names, Mapping):
        names = [name for part in names.values() for name in part]
    if hasattr(manager, "get_term_cfg"):
        yield from ((name, manager.get_term_cfg(name)) for name in names)
    elif hasattr(manager, "get_term"):
        yield from ((name, getattr(manager.get_term(name), "cfg", None)) for name in names)
    elif manager is not None:
        cfg = getattr(manager, "cfg", None)
        table = cfg if isinstance(cfg, Mapping) else getattr(cfg, "__dict__", {})
        yield from ((name, table.get(name)) for name in names)


def _values(entries: Iterator[_Entry]) -> Iterator[_Entry]:
    return (x for x in entries if isinstance(x.value, Tensor) or _is_plain(x.value))


def _places(levels: Tensor, kinds: Tensor, wanted: Tensor) -> Tensor:
    """Whose place of those with ``levels [N]`` envs on terrain of the types ``wanted [M]`` take: ``[M]`` indices."""
    rows = torch.empty_like(wanted)
    for kind in sorted(set(wanted.tolist())):
        mine, theirs = (wanted == kind).nonzero().squeeze(1), (kinds == kind).nonzero().squeeze(1)
        if not len(theirs):
            theirs = torch.arange(len(kinds), device=kinds.device)
        theirs = theirs[levels[theirs].argsort(stable=True)]
        rows[mine] = theirs[rows_of(len(theirs), len(mine)).to(theirs.device)]
    return rows


def hold(core: Any) -> Callable[[], bool]:
    """Remember a whole env, episodes in flight included: what its managers and terms have, and its scene's bodies.

    Returns:
        What puts it back, and tells whether the episodes in flight go on: not where the simulator does not give or take
        the state of its bodies. Then only statistics of past resets are put back.
    """
    scene: Any = getattr(core, "scene", None)
    bodies: Any = None
    whole = getattr(core, "sim", None) is None  # nothing but Python has any state
    if not whole and hasattr(scene, "get_state") and hasattr(scene, "reset_to"):
        with contextlib.suppress(Exception):  # the simulator's, whatever it cannot tell
            bodies = scene.get_state()
    seen = _simulation(core)
    entries = list(_entries(core, seen))
    parts = [(terrain_of(core), 1)]
    parts += [(sensor, 3) for sensor in getattr(scene, "sensors", {}).values()]
    parts += [(getattr(body, "actuators", None), 5) for body in getattr(scene, "articulations", {}).values()]
    for part, depth in parts:
        if part is not None and _has_parts(part):
            entries += _entries(part, seen, depth=depth)
    kept = [(entry, _copy(entry.value)) for entry in entries]

    def put_back() -> bool:
        on = whole
        if bodies is not None:
            try:
                scene.reset_to(bodies)
                core.sim.forward()
                on = True
            except Exception as error:  # new episodes do as well
                _log.warning(
                    "episodes in flight cannot be put back (%s: %s); new ones begin", type(error).__name__, error
                )
        for entry, copy in kept:
            if on or entry.path.rpartition("/")[2] in _STATISTICS or any(f"{x}/" in entry.path for x in _STATISTICS):
                _restore(entry, copy)
        return on

    return put_back


def _copy(value: Any) -> Any:
    """What is needed to put a value back."""
    view = view_of(value)
    if view is not None:
        return view.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, torch.Generator):
        return value.get_state()
    return list(value) if isinstance(value, list) and _is_plain(value) else value


@torch.no_grad()
def _restore(entry: _Entry, copy: Any) -> None:
    value, view = entry.value, view_of(entry.value)
    if isinstance(value, Tensor) and value.is_inference():
        value = copy
    elif view is not None:
        view.copy_(copy)
    elif isinstance(value, np.ndarray):
        value[...] = copy
    elif isinstance(value, torch.Generator):
        value.set_state(copy)
    elif isinstance(value, list) and _is_plain(value):
        value[:] = copy
    with contextlib.suppress(IndexError):  # a list that has become shorter
        entry.put(value)


def _saved(value: Any) -> Any:
    """A tensor or a plain value as a checkpoint takes it, which knows no enums and no numbers of NumPy."""
    if isinstance(value, (list, tuple)):
        return [_saved(item) for item in value] if isinstance(value, list) else tuple(map(_saved, value))
    value = value.item() if isinstance(value, np.generic) else value
    kind = next((kind for kind in (bool, int, float, str) if isinstance(value, kind)), None)
    return _copy(value) if kind is None else kind(value)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return False
    return bool(one == other)


def gymnasium_stage(env: Any) -> dict[str, Any]:
    """Running statistics of a gymnasium vector env's wrappers, and stages that its sub-envs tell; empty for none."""
    subs = [_gymnasium_part(sub) for sub in getattr(env.unwrapped, "envs", ())]
    state: dict[str, Any] = {"envs": subs} if any(subs) else {}
    own = _gymnasium_part(env)
    return state | ({"vector": own} if own else {})


def load_gymnasium_stage(env: Any, state: Mapping[str, Any]) -> None:
    """Put back what ``gymnasium_stage`` gave, of any number of sub-envs."""
    _load_gymnasium_part(env, state.get("vector", {}))
    subs, saved = list(getattr(env.unwrapped, "envs", ())), state.get("envs", [])
    for sub, row in zip(subs, rows_of(len(saved), len(subs)).tolist(), strict=True) if saved else ():
        _load_gymnasium_part(sub, saved[row])


def _gymnasium_part(env: Any) -> dict[str, Any]:
    part: dict[str, Any] = {
        name: {"mean": torch.as_tensor(x.mean).clone(), "var": torch.as_tensor(x.var).clone(), "count": float(x.count)}
        for name, x in _running(env)
    }
    return part | ({"task": env.unwrapped.stage_dict()} if hasattr(env.unwrapped, "stage_dict") else {})


def _load_gymnasium_part(env: Any, part: Mapping[str, Any]) -> None:
    for name, running in _running(env):
        if name in part:
            running.mean, running.var = (part[name][key].numpy().copy() for key in ("mean", "var"))
            running.count = part[name]["count"]
    if "task" in part and hasattr(env.unwrapped, "load_stage_dict"):
        env.unwrapped.load_stage_dict(part["task"])


def _running(env: Any) -> Iterator[tuple[str, Any]]:
    """Means and variances that wrappers keep, such as those of NormalizeObservation."""
    while env is not None:
        for name, value in vars(env).items():
            if all(hasattr(value, part) for part in ("mean", "var", "count", "update")):
                yield f"{type(env).__name__}.{name}", value
        env = vars(env).get("env")
