"""What refuses a wrong env: observations and steps that are not what its spaces promise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlcore.env import VecEnv, dtype_of, is_selective, name_of
from rlcore.types import Obs, Step


def check_obs(env: VecEnv, obs: Obs, source: str, final: bool = False) -> None:
    """Refuse observations that are not what the env's spaces promise; looks at no numbers.

    Args:
        env: where they come from.
        obs: groups, ``[N, O]`` or ``[N, C, H, W]`` each.
        source: the method that gave them, ``reset`` or ``step``, for messages.
        final: they are ``Step.final_obs``, which may leave out groups that nobody reads.

    Raises:
        ValueError: a group is missing, or its type, shape or device is wrong; the message names it and the remedy.
    """
    wanted = env.final_groups if final and is_selective(env) else None
    if not isinstance(obs, Mapping):
        raise ValueError(
            f"{name_of(env)}: {source}() gave {type(obs).__name__} as observations; return a dict of groups, such as "
            f"{{'{next(iter(env.observation_spaces))}': tensor}}"
        )
    for group, space in env.observation_spaces.items():
        if wanted is not None and group not in wanted:
            continue
        if group not in obs:
            raise ValueError(f"{name_of(env)}: {source}() left out the observation '{group}'; it has {', '.join(obs)}")
        _check(env, f"{source}()'s observation '{group}'", obs[group], dtype_of(space), (env.num_envs, *space.shape))


def check_step(env: VecEnv, step: Step) -> None:
    """Refuse what a step must not return; looks at no numbers.

    Raises:
        ValueError: a type, shape or device is wrong; the message names it and the remedy.
    """
    if not isinstance(step, Step):
        raise ValueError(
            f"{name_of(env)}: step() returned {type(step).__name__}; "
            "return rlcore.Step(obs, reward, terminated, truncated, final_obs, log)"
        )
    check_obs(env, step.obs, "step")
    if step.final_obs is not None:
        check_obs(env, step.final_obs, "step", final=True)
    _check(env, "the reward", step.reward, torch.float32, (env.num_envs,))
    _check(env, "terminated", step.terminated, torch.bool, (env.num_envs,))
    _check(env, "truncated", step.truncated, torch.bool, (env.num_envs,))
    if step.valid is not None:
        _check(env, "valid", step.valid, torch.bool, (env.num_envs,))
    if step.signals is not None:
        _check_signals(env, step.signals)
    _check_log(env, step.log)


def _check_signals(env: VecEnv, signals: Any) -> None:
    if not isinstance(signals, Mapping):
        raise ValueError(f"{name_of(env)}: signals are {type(signals).__name__}; return a dict of tensors by name")
    for name, value in signals.items():
        _check(env, f"the signal '{name}'", value, torch.float32, (env.num_envs,))


def _check_log(env: VecEnv, log: Any) -> None:
    if not isinstance(log, Mapping):
        raise ValueError(
            f"{name_of(env)}: the log is {type(log).__name__}; return a dict, empty where there is nothing"
        )
    for name, value in log.items():
        if isinstance(value, Tensor) and value.shape in ((), (env.num_envs,)):
            continue
        if isinstance(value, Tensor) or not isinstance(value, (int, float, np.number)):
            shown = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r}"
            raise ValueError(
                f"{name_of(env)}: '{name}' in the log is {shown}; "
                f"give a number, or a tensor of shape () or ({env.num_envs},)"
            )


class StepCheck:
    """``check_step`` for every step of an env, at the price of comparing types and shapes with those known to be right.

    A few microseconds a step; nothing on a device is read or waited for.

    Args:
        env: where the steps come from.
    """

    def __init__(self, env: VecEnv) -> None:
        self.env = env
        self._right: Any = None
        self._skips = False
        self._signals: tuple[str, ...] = ()

    def __call__(self, step: Step) -> None:
        """Refuse a wrong step.

        Raises:
            ValueError: as ``check_step``; or ``Step.valid`` or a signal is there in some steps alone.
        """
        try:
            obs, final = step.obs, step.final_obs
            parts = [step.reward, step.terminated, step.truncated, *obs.values()]
            names = [*obs]
            if step.valid is not None:
                parts.append(step.valid)
            if final is not None and final is not obs:
                parts += final.values()
                names += final
            if step.signals:
                parts += step.signals.values()
                names += step.signals
            found = [*names, *[(x.shape, x.dtype, x.device) for x in parts]]
        except (AttributeError, TypeError, RuntimeError):
            found = None  # no step, no groups or no tensors, which check_step explains
        if found is None or found != self._right:
            check_step(self.env, step)
            skips = step.valid is not None
            if self._right is not None and skips != self._skips:
                raise ValueError(
                    f"{name_of(self.env)}: step() gave 'valid' in some steps and not in others; return it in every "
                    "step, all true where no env began anew"
                )
            signals = tuple(step.signals or ())
            if self._right is not None and signals != self._signals:
                raise ValueError(
                    f"{name_of(self.env)}: step() gave the signals ({', '.join(self._signals)}) before and "
                    f"({', '.join(signals)}) now; return the same in every step, in the same order"
                )
            self._right, self._skips, self._signals = found, skips, signals
        elif step.log or not isinstance(step.log, dict):
            _check_log(self.env, step.log)


def _check(env: VecEnv, name: str, value: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    device = torch.device(env.device)
    if not isinstance(value, Tensor):
        raise ValueError(f"{name_of(env)}: {name} is {type(value).__name__}; return a tensor on {device}")
    if value.dtype == dtype and value.shape == shape and value.device.type == device.type:
        return
    raise ValueError(
        f"{name_of(env)}: {name} is {value.dtype} of shape {tuple(value.shape)} on {value.device}; "
        f"return {dtype} of shape {shape} on {device}"
    )


def refuse_overwritten(obs: Obs, step: Step) -> None:
    """Refuse a step whose observations lie where those before it lay, which have not been stored yet.

    Raises:
        ValueError: names the group and the remedy.
    """
    for group, value in obs.items():
        if group in step.obs and step.obs[group].data_ptr() == value.data_ptr():
            raise ValueError(
                f"step()'s observation '{group}' lies where the one before it lay, which has not been stored yet; "
                "return a new tensor from each step, such as a clone()"
            )
