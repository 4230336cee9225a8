"""A gymnasium id as a ``VecEnv``: what it takes, and what is told where it cannot be made."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import torch
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AutoresetMode

from rlcore.env import VecEnv
from rlcore.envs import check_numbers, look_here, unknown_option
from rlcore.envs.gym_wrappers import CopyObservation, WithActionMask, masked, wrapper_of
from rlcore.envs.gymnasium import GymnasiumEnv, failure

_MUJOCO_NEEDS = {"mujoco", "imageio", "glfw"}
"""Modules that gymnasium's MuJoCo tasks import, of which it checks for the first alone."""

_OPTIONS = ("render_mode", "max_episode_steps", "disable_env_checker", "vectorization", "wrappers", "action_mask")
"""What every id takes."""


def make_gymnasium(
    env_id: str,
    num_envs: int,
    device: str | torch.device = "cpu",
    seed: int | None = None,
    *,
    vectorization: str = "sync",
    wrappers: str | Sequence[str | Callable[[gymnasium.Env[Any, Any]], gymnasium.Env[Any, Any]]] = (),
    action_mask: bool | None = None,
    **options: Any,
) -> VecEnv:
    """Build a vector env from a gymnasium id.

    Args:
        env_id: as for ``gymnasium.make``; ``module:Id-v0`` imports the module first, from the present folder as well.
        num_envs: N.
        device: where observations and rewards go.
        seed: of the first ``reset()`` that is called without one.
        vectorization: ``sync`` (one process), ``async`` (a process per env), or ``vector_entry_point`` for ids that
            bring their own vector env.
        wrappers: put around every sub-env, the first one innermost: functions, names of ``gymnasium.wrappers`` or
            ``module:Class``; not with ``vector_entry_point``.
        action_mask: whether ``info["action_mask"]`` becomes an observation group of that name, ``[N, n]``, 1 where a
            choice is possible; by default of envs that have a method of that name. Not with ``vector_entry_point``.
        **options: for ``gymnasium.make``, such as ``render_mode`` and ``max_episode_steps``, and the env's own.

    Raises:
        ValueError: unknown id or option, a dependency that is not installed, an env that fails as it is made, or what
            ``GymnasiumEnv`` refuses.
    """
    if vectorization not in ("sync", "async", "vector_entry_point"):
        raise ValueError(
            f"gym:{env_id}: vectorization is {vectorization!r}; use 'sync', 'async' or 'vector_entry_point'"
        )
    if ":" in env_id:
        look_here()
    named = wrappers.replace(",", " ").split() if isinstance(wrappers, str) else wrappers
    wrappers = [wrapper_of(env_id, own) if isinstance(own, str) else own for own in named]
    if action_mask is not None and not isinstance(action_mask, bool):
        raise ValueError(f"gym:{env_id}: action_mask is {action_mask!r}; use True, False or None")
    if vectorization != "vector_entry_point" and action_mask is not False:
        wrappers = [*wrappers, WithActionMask if action_mask else masked]
    arguments: dict[str, Any] = {"wrappers": wrappers}
    if vectorization != "vector_entry_point":
        arguments["vector_kwargs"] = {"autoreset_mode": AutoresetMode.SAME_STEP}
    if vectorization == "async":
        arguments["wrappers"] = (*wrappers, CopyObservation)
    try:
        env = gymnasium.make_vec(env_id, num_envs, vectorization, **arguments, **options)
    except (gymnasium.error.Error, ImportError) as error:
        raise ValueError(_cannot_make(env_id, error)) from error
    except TypeError as error:
        refused = re.search(r"(?:unexpected keyword|multiple values for(?: keyword)?) argument '(\w+)'", str(error))
        if refused is None or refused[1] not in options:
            raise ValueError(failure(f"gym:{env_id}", "making it", error)) from error
        valid = [name for name in dict.fromkeys([*_parameters_of(env_id), *_OPTIONS]) if name != refused[1]]
        raise ValueError(unknown_option(f"gym:{env_id}", refused[1], valid)) from error
    except Exception as error:
        raise ValueError(failure(f"gym:{env_id}", "making it", error)) from error
    try:
        check_numbers(f"gym:{env_id}", _parameters_of(env_id), options)
        return GymnasiumEnv(env, device, seed, task=f"gym:{env_id}")
    except ValueError:
        env.close()
        raise


def _cannot_make(env_id: str, error: Exception) -> str:
    reason = " ".join(str(error).split())
    missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if isinstance(error, gymnasium.error.DependencyNotInstalled) and "mujoco" in reason.lower():
        missing = "mujoco"
    if missing:
        extra = '; run: pip install "gymnasium[mujoco]"' if missing in _MUJOCO_NEEDS else ", and the task needs it"
        return f"gym:{env_id}: the Python module '{missing}' is not installed{extra}"
    named_wrong = not isinstance(error, (ImportError, gymnasium.error.DependencyNotInstalled))
    return f"gym:{env_id}: {reason}" + (" (`rlcore tasks` lists the built-in tasks)" if named_wrong else "")


def _parameters_of(env_id: str) -> dict[str, inspect.Parameter]:
    """What the env of an id is made with, as far as signatures tell."""
    spec = gymnasium.spec(env_id.rpartition(":")[2])
    entry_point: Any = spec.entry_point or spec.vector_entry_point  # an id may have the latter alone
    creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: p for name, p in inspect.signature(creator).parameters.items() if p.kind in kinds}
