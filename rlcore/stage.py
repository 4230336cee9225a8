"""How far an env's curricula have come, apart from its episodes: kept, put back, compared and told.

An env takes part in one of two ways, through wrappers too that pass on what they do not have:

- ``stage_dict() -> dict`` and ``load_stage_dict(dict)``: what its future depends on beyond its episodes, such as
  levels, ranges and counters, as tensors and plain values;
- ``exact_state = False``: then ``state_dict`` and ``load_state_dict`` hold just that.

Tensors with a row for each env are handed on to any number of envs, see ``rows_of``. An env may also have

- ``clocks``: entries that only count time; two stages that differ in them alone are the same;
- ``at_stage(state)``: a context in which ``reset`` begins episodes at a stage. Without it a stage is loaded before the
  reset, which may read it, and once more after, as resets are what moves curricula;
- ``stage_where(which) -> dict``: what ``stage_dict`` would give with all envs at the hardest level (``end``), or evenly
  over all levels (``all``), and the rest as it stands;
- ``stage_told(state) -> dict``: a stage as people read it, with values of parameters as ``Told``; nobody puts it back;
- ``hold() -> Callable[[], bool]``: remember everything, episodes in flight included. What it returns puts it back, and
  tells whether it could; else the caller begins new episodes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlcore.env import VecEnv, is_exact, name_of
from rlcore.types import Obs

Stage = dict[str, Any]
"""Plain values and tensors, fit for a checkpoint: ``num_envs``, ``clocks`` and the env's own ``state``."""

_MOST_SHOWN = 8


class Told(NamedTuple):
    """What a parameter is at a stage."""

    values: Tensor
    """The two ends of what is drawn, or what it is in each env ``[N]``."""
    unit: str = ""
    ends: bool = False
    """Whether it is the two ends."""


def stage_of(env: VecEnv) -> Stage | None:
    """A copy of the stage that an env stands at; None where it has none, or does not tell."""
    give: Callable[[], Mapping[str, Any]] | None = getattr(env, "stage_dict", None)
    if give is None and not is_exact(env):
        give = getattr(env, "state_dict", None)
    state = None if give is None else give()
    if not state:
        return None
    return {"num_envs": env.num_envs, "clocks": list(getattr(env, "clocks", ())), "state": _copied(state)}


def stage_where(env: VecEnv, which: str) -> Stage:
    """The stage with all envs at the hardest level (``end``), or evenly over all (``all``), else as the env stands.

    Raises:
        ValueError: the env has no levels, or does not tell.
    """
    give: Callable[[str], Mapping[str, Any]] | None = getattr(env, "stage_where", None)
    if give is None:
        raise ValueError(
            f"{name_of(env)}: stage '{which}' needs levels, and the env tells of none; give trained or start, or see "
            "env.curriculum"
        )
    return {"num_envs": env.num_envs, "clocks": list(getattr(env, "clocks", ())), "state": _copied(give(which))}


def saved_stage(env: VecEnv, content: dict[str, Any]) -> Stage | None:
    """The stage that a checkpoint was written at, if an env of its task has one."""
    stage: Stage | None = content.get("stage")
    if "stage" not in content and content["env"] is not None and not is_exact(env):
        stage = {"num_envs": env.num_envs, "clocks": [], "state": content["env"]}  # as it was written before
    return stage


def reset_at(env: VecEnv, stage: Stage | None, seed: int | None = None) -> Obs:
    """Begin new episodes at a stage; None is wherever the env stands.

    Args:
        env: of the same task as the one that the stage is of; the number of envs may be another.
        stage: from ``stage_of``; it is not changed.
        seed: as for ``VecEnv.reset``.

    Raises:
        ValueError: the env refuses the stage; the message names the env and the remedy.
    """
    if stage is None:
        return env.reset(seed)
    if hasattr(env, "at_stage"):
        with env.at_stage(_copied(stage["state"])):
            return env.reset(seed)
    _load(env, stage)
    obs = env.reset(seed)
    _load(env, stage)
    return obs


@contextlib.contextmanager
def lent(env: VecEnv, on_new_episodes: Callable[[Obs], None]) -> Iterator[None]:
    """Let something else use an env meanwhile, and put everything back afterwards.

    Args:
        env: what is lent.
        on_new_episodes: told the first observations where the episodes in flight could not be put back: new ones have
            begun then, at the stage as it was before.
    """
    stage = stage_of(env)
    put_back: Callable[[], bool] = env.hold() if hasattr(env, "hold") else lambda: False
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):  # of an env that may be broken: a checkpoint is to hold training's stage
            if not put_back() and stage is not None:
                _load(env, stage)
        raise
    if not put_back():
        on_new_episodes(reset_at(env, stage))


def can_take(env: VecEnv, stage: Stage | None) -> bool:
    """Whether a stage of an env of its kind can be put into this one."""
    return stage is None or any(hasattr(env, name) for name in ("at_stage", "load_stage_dict", "load_state_dict"))


def rows_of(num_envs: int, wanted: int) -> Tensor:
    """Indices ``[wanted]`` of the envs that stand for all ``num_envs``: evenly spaced, the same each time."""
    return (2 * torch.arange(wanted) + 1) * num_envs // (2 * wanted)  # the middle of each part


def same_stage(one: Stage | None, other: Stage | None) -> bool:
    """Whether scores that were measured at the two can be compared."""
    if one is None or other is None:
        return one is None and other is None
    return _equal(_without_clocks(one), _without_clocks(other))


def _without_clocks(stage: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage's ``state`` says of what episodes are like, of stages within it, as several tasks have, too."""
    return {
        name: _without_clocks(value) if isinstance(value, Mapping) and value.keys() == stage.keys() else value
        for name, value in stage["state"].items()
        if name not in stage["clocks"]
    }


def told(env: VecEnv, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stage's ``state`` as people read it, where the env has words for it; else as it is."""
    give: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = getattr(env, "stage_told", None)
    return state if give is None else give(state)


def stage_figures(stage: Stage | None, env: VecEnv) -> dict[str, Any]:
    """A stage of an env in plain numbers by name; no names that begin with ``_``.

    Of tensors there are mean, min and max, of a parameter with its unit; of what is drawn from a range, its ends.
    """
    return {} if stage is None else dict(_figures(told(env, stage["state"]), ""))


def stage_text(stage: Stage | None, env: VecEnv) -> str:
    """A stage of an env in one line."""
    parts = []
    for name, value in stage_figures(stage, env).items():
        if isinstance(value, dict):
            mean, low, high = (f"{value[key]:.4g}" if key in value else "" for key in ("mean", "min", "max"))
            spread = f"{mean} ({low} to {high})" if mean else f"{low} to {high}"
            parts.append(" ".join(filter(None, (name, spread if low != high else low, value.get("unit")))))
        elif isinstance(value, list):
            parts.append(f"{name} {', '.join(f'{x:.4g}' if isinstance(x, float) else str(x) for x in value)}")
        else:
            parts.append(f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}")
    more = len(parts) - _MOST_SHOWN
    return "; ".join(parts[:_MOST_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _load(env: Any, stage: Stage) -> None:
    name = name_of(env)
    load = getattr(env, "load_stage_dict" if hasattr(env, "stage_dict") else "load_state_dict", None)
    if load is None:
        raise ValueError(f"{name} tells its stage and takes none; give it load_stage_dict, beside stage_dict")
    rows = None if env.num_envs == stage["num_envs"] else rows_of(stage["num_envs"], env.num_envs)
    try:
        load(_copied(stage["state"], stage["num_envs"], rows))
    except (RuntimeError, KeyError, IndexError, TypeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{name}: the stage of {stage['num_envs']} envs does not fit these {env.num_envs} ({reason}); give "
            "--stage start (--eval-stage start in a training), or let the env's load_stage_dict take it"
        ) from error


def _copied(value: Any, num_envs: int = 0, rows: Tensor | None = None) -> Any:
    """A deep copy, of some rows of what has one for each env."""
    if isinstance(value, (Tensor, np.ndarray)):
        chosen = value[rows] if rows is not None and value.ndim and len(value) == num_envs else value
        return chosen.clone() if isinstance(chosen, Tensor) else chosen.copy()
    if isinstance(value, Mapping):
        return {key: _copied(item, num_envs, rows) for key, item in value.items()}
    if isinstance(value, list) and rows is not None and len(value) == num_envs and isinstance(value[0], Mapping):
        return [_copied(value[i]) for i in rows.tolist()]
    if type(value) in (list, tuple):
        return type(value)(_copied(item, num_envs, rows) for item in value)
    return value.item() if isinstance(value, np.generic) else value


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one.cpu(), other.cpu())
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    return type(one) is type(other) and bool(one == other)


def _figures(state: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in state.items():
        name = f"{prefix}{key}"
        if str(key).startswith("_"):
            continue  # not for people
        if isinstance(value, Mapping):
            yield from _figures(value, f"{prefix}{key}/")
        elif isinstance(value, Told):
            x = value.values.double().cpu()
            ends = {"min": float(x.min()), "max": float(x.max())}
            yield name, (ends if value.ends else _summary(x)) | ({"unit": value.unit} if value.unit else {})
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            yield from _figures(value[0], f"{prefix}{key}/0/")  # the first stands for all
        elif isinstance(value, (Tensor, np.ndarray)):
            numbers = torch.as_tensor(value)
            if numbers.dtype == torch.uint8 or not numbers.numel() or numbers.is_complex():
                continue  # states of random generators are no figures
            numbers = numbers.double().cpu()
            if numbers.numel() == 1:
                yield name, float(numbers)
            else:
                yield name, _summary(numbers)
        elif isinstance(value, (bool, int, float, str)):
            yield name, value
        elif isinstance(value, (list, tuple)) and value and all(isinstance(x, (int, float)) for x in value):
            yield name, list(value)


def _summary(numbers: Tensor) -> dict[str, Any]:
    return {"mean": float(numbers.mean()), "min": float(numbers.min()), "max": float(numbers.max())}
