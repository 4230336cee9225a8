"""The contract between rlcore and a batch of simulated robots."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
import torch
from torch import Tensor

from rlcore.types import Obs, Step

WIDEST_ACTION = 10.0
"""Action bounds beyond ± this are hardly meant: a simulator's way to say that there are none."""


class EnvFailed(ValueError):
    """An env of somebody's failed in ``reset`` or ``step``; the message names the task, ``__cause__`` is its error."""


@runtime_checkable
class VecEnv(Protocol):
    """N copies of one task on one device, stepped together. Adapters need not inherit from it.

    An env may also have, and the library uses where present:

    - ``task``: its name, ``registered_as``: the name that a new process finds it by, if that is another, and
      ``deployment``: a dict for the exported file (see ``EnvSpec``);
    - ``state_dict() -> dict`` and ``load_state_dict(dict)``: everything that its future depends on, random
      generator included, as tensors and plain values. With them a resumed run repeats bit for bit; ``exact_state``
      is False where they hold less, such as counters that drive a curriculum, and episodes start anew;
    - ``stage_dict() -> dict`` and ``load_stage_dict(dict)``: how far its curricula have come, apart from its episodes,
      so that evaluations happen where training stands; see ``rlcore.stage``;
    - ``notes``: lines that a run prints when it begins;
    - ``final_groups``: the groups that ``Step.final_obs`` must have, None for all. An agent sets it to those that it
      reads (see ``want_final_obs``), so that the env need not compute the others;
    - ``capturable``: whether ``step`` may be recorded as a CUDA graph, all its state being tensors that change in place
      and all its random numbers from ``generator``;
    - ``render() -> uint8 array [H, W, 3]``: a picture of env 0.

    ``Step.valid`` marks rows in which an env began a new episode instead of taking its action; an env that has such
    gives it in every step.

    ``Step.log`` may carry ``success`` ``[N]`` in 0..1, and ``num_goals`` ``[N]``, the number of goals of the
    episode that ``success`` is a fraction of. Both are read where the episode ended.
    """

    num_envs: int
    device: torch.device
    observation_spaces: Mapping[str, gymnasium.spaces.Box]
    """Space of each observation group of one env, shape ``[O]``."""
    action_space: gymnasium.Space[Any]
    """``Box`` of shape ``[A]`` or ``Discrete``, of one env."""
    max_episode_length: int
    """Steps after which an episode is cut."""

    def reset(self, seed: int | None = None) -> Obs:
        """Start a new episode in every env; a seed makes everything that follows repeatable."""
        ...

    def step(self, action: Tensor) -> Step:
        """Advance every env by one control step, and reset those that ended (same-step auto-reset).

        The next action comes in the same memory: an env that keeps the last one keeps a copy.
        What is returned is new each time: observations of one step are stored together with what the next one returns.
        """
        ...

    def close(self) -> None:
        """Release the simulator."""
        ...


@dataclass(frozen=True, kw_only=True)
class EnvSpec:
    """What a policy has to know about an env, small enough to live in a checkpoint.

    With it a policy is rebuilt, exported and checked where the simulator is not installed.
    """

    task: str
    observation_sizes: dict[str, int]
    """Size of each observation group."""
    discrete: bool
    """Whether actions are indices rather than vectors."""
    action_size: int
    """A, or the number of choices when discrete."""
    action_low: list[float] = field(default_factory=list)
    action_high: list[float] = field(default_factory=list)
    """Bounds per action dimension, infinite where there is none; empty when discrete."""
    deployment: dict[str, Any] = field(default_factory=dict)
    """For the exported file: ``control_dt`` in seconds, ``observation_terms`` (group to list of ``{name, size}``),
    ``action_terms`` (list of ``{name, size, scale, offset}``), ``joint_names``; whatever the env knows of these."""

    @property
    def action_text(self) -> str:
        """The size of an action in words."""
        if self.discrete:
            return f"{self.action_size} choices"
        return "1 number" if self.action_size == 1 else f"{self.action_size} numbers"


def spec_of(env: VecEnv) -> EnvSpec:
    """Describe an env.

    Raises:
        ValueError: the env lacks something, an observation group is not a flat ``Box``, or the action space is neither
            a flat ``Box`` nor ``Discrete``; the message names the space and what to do.
    """
    needed = ("num_envs", "device", "observation_spaces", "action_space", "max_episode_length", "reset", "step")
    missing = [name for name in needed if not hasattr(env, name)]
    if missing:
        raise ValueError(
            f"{type(env).__name__} is no vector env of rlcore's, it lacks {', '.join(missing)}; "
            "rlcore.env.VecEnv tells what is needed, rlcore.envs.make_env('gym:<id>', num_envs=...) makes gymnasium's"
        )
    task = _name(env)
    found_as = str(getattr(env, "registered_as", None) or task)
    if not isinstance(env.observation_spaces, Mapping):
        raise ValueError(
            f"{task}: observation_spaces is {env.observation_spaces!r}; give a dict of groups, "
            "such as {'policy': Box(...)}"
        )
    sizes: dict[str, int] = {}
    for group, space in env.observation_spaces.items():
        if not isinstance(space, gymnasium.spaces.Box):
            raise ValueError(f"{task}: observation group '{group}' is {space!r}; describe it by a Box of one env")
        if len(space.shape) != 1:
            raise ValueError(
                f"{task}: observation group '{group}' has shape {tuple(space.shape)}; rlcore trains on flat groups: "
                "flatten it in the env or leave it out of the groups"
            )
        sizes[group] = int(space.shape[0])
    deployment = dict(getattr(env, "deployment", {}))
    action = env.action_space
    if isinstance(action, gymnasium.spaces.Discrete):
        if action.start != 0:
            raise ValueError(f"{task}: Discrete actions start at {action.start}; wrap the env so that they start at 0")
        return EnvSpec(
            task=found_as, observation_sizes=sizes, discrete=True, action_size=int(action.n), deployment=deployment
        )
    if not isinstance(action, gymnasium.spaces.Box) or len(action.shape) != 1:
        raise ValueError(f"{task}: action space {action} is not supported; use a flat Box or Discrete")
    low = [float(x) if math.isfinite(x) else -math.inf for x in action.low]
    high = [float(x) if math.isfinite(x) else math.inf for x in action.high]
    return EnvSpec(
        task=found_as,
        observation_sizes=sizes,
        discrete=False,
        action_size=int(action.shape[0]),
        action_low=low,
        action_high=high,
        deployment=deployment,
    )


def want_final_obs(env: VecEnv, groups: Iterable[str]) -> None:
    """Tell an env which groups of ``final_obs`` are going to be read, if it can leave out the others.

    They add up: what another agent on the same env reads goes on.
    """
    if hasattr(env, "final_groups"):
        env.final_groups = tuple(dict.fromkeys((*(env.final_groups or ()), *groups)))


def check_obs(env: VecEnv, obs: Obs, source: str, final: bool = False) -> None:
    """Refuse observations that are not what the env's spaces promise; looks at no numbers.

    Args:
        env: where they come from.
        obs: groups, ``[N, O]`` each.
        source: the method that gave them, ``reset`` or ``step``, for messages.
        final: they are ``Step.final_obs``, which may leave out groups that nobody reads.

    Raises:
        ValueError: a group is missing, or its type, shape or device is wrong; the message names it and the remedy.
    """
    wanted = getattr(env, "final_groups", None) if final else None
    if not isinstance(obs, Mapping):
        raise ValueError(
            f"{_name(env)}: {source}() gave {type(obs).__name__} as observations; return a dict of groups, such as "
            f"{{'{next(iter(env.observation_spaces))}': tensor}}"
        )
    for group, space in env.observation_spaces.items():
        if wanted is not None and group not in wanted:
            continue
        if group not in obs:
            raise ValueError(f"{_name(env)}: {source}() left out the observation '{group}'; it has {', '.join(obs)}")
        _check(env, f"{source}()'s observation '{group}'", obs[group], torch.float32, (env.num_envs, *space.shape))


def check_step(env: VecEnv, step: Step) -> None:
    """Refuse what a step must not return; looks at no numbers.

    Raises:
        ValueError: a type, shape or device is wrong; the message names it and the remedy.
    """
    if not isinstance(step, Step):
        raise ValueError(
            f"{_name(env)}: step() returned {type(step).__name__}; "
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
    _check_log(env, step.log)


def _check_log(env: VecEnv, log: Any) -> None:
    if not isinstance(log, Mapping):
        raise ValueError(f"{_name(env)}: the log is {type(log).__name__}; return a dict, empty where there is nothing")
    for name, value in log.items():
        if isinstance(value, Tensor) and value.shape in ((), (env.num_envs,)):
            continue
        if isinstance(value, Tensor) or not isinstance(value, (int, float, np.number)):
            shown = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r}"
            raise ValueError(
                f"{_name(env)}: '{name}' in the log is {shown}; "
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

    def __call__(self, step: Step) -> None:
        """Refuse a wrong step.

        Raises:
            ValueError: as ``check_step``; or ``Step.valid`` is there in some steps alone.
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
            found = [*names, *[(x.shape, x.dtype, x.device) for x in parts]]
        except (AttributeError, TypeError, RuntimeError):
            found = None  # no step, no groups or no tensors, which check_step explains
        if found is None or found != self._right:
            check_step(self.env, step)
            skips = step.valid is not None
            if self._right is not None and skips != self._skips:
                raise ValueError(
                    f"{_name(self.env)}: step() gave 'valid' in some steps and not in others; return it in every step, "
                    "all true where no env began anew"
                )
            self._right, self._skips = found, skips
        elif step.log or not isinstance(step.log, dict):
            _check_log(self.env, step.log)


def _check(env: VecEnv, name: str, value: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    device = torch.device(env.device)
    if not isinstance(value, Tensor):
        raise ValueError(f"{_name(env)}: {name} is {type(value).__name__}; return a tensor on {device}")
    if value.dtype == dtype and value.shape == shape and value.device.type == device.type:
        return
    raise ValueError(
        f"{_name(env)}: {name} is {value.dtype} of shape {tuple(value.shape)} on {value.device}; "
        f"return {dtype} of shape {shape} on {device}"
    )


def _name(env: VecEnv) -> str:
    return str(getattr(env, "task", type(env).__name__))
