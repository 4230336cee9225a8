"""The contract between rlcore and a batch of simulated robots."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeGuard, runtime_checkable

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlcore.types import Metrics, Obs, Step

WIDEST_ACTION = 10.0
"""Action bounds beyond ± this are hardly meant: a simulator's way to say that there are none."""


class EnvFailed(ValueError):
    """An env of somebody's failed in ``reset`` or ``step``; the message names the task, ``__cause__`` is its error."""


@runtime_checkable
class VecEnv(Protocol):
    """N copies of one task on one device, stepped together. Adapters need not inherit from it.

    An env may also be ``Stateful``, ``Capturable``, ``Renderable``, ``Staggered``, ``Selective``, ``Randomizable``,
    ``Pushable`` or ``Adaptive``, take part in curricula (``rlcore.stage``), and have

    - ``task``: its name, ``registered_as``: the name that a new process finds it by, if that is another, and
      ``deployment``: a dict for the exported file (see ``EnvSpec``);
    - ``signal_names``: a tuple of all names that ``Step.signals`` may have, so that others are refused at once;
    - ``notes``: lines that a run prints when it begins;
    - of several tasks ``tasks``, the ``EnvSpec`` of each by name, and ``task_index`` ``[N]``, the one of each row.

    ``Step.valid`` marks rows in which an env began a new episode instead of taking its action; an env that has such
    gives it in every step.

    ``Step.log`` may carry ``success`` ``[N]`` in 0..1, and ``num_goals`` ``[N]``, the number of goals of the
    episode that ``success`` is a fraction of. Both are read where the episode ended.
    """

    num_envs: int
    device: torch.device
    observation_spaces: Mapping[str, gymnasium.spaces.Box]
    """Space of each observation group of one env: shape ``[O]``, or ``[C, H, W]`` uint8 or float32 for images."""
    action_space: gymnasium.Space[Any]
    """``Box`` of shape ``[A]``, ``Discrete`` or ``MultiDiscrete`` of shape ``[K]``, of one env."""
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


class Stateful(VecEnv, Protocol):
    """An env that can be saved and put back. With it a resumed run repeats bit for bit.

    Where the two hold less than everything, such as counters that drive a curriculum, the env says
    ``exact_state = False``, and episodes start anew.
    """

    def state_dict(self) -> dict[str, Any]:
        """Everything that its future depends on, random generator included, as tensors and plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""
        ...


class Capturable(VecEnv, Protocol):
    """An env whose ``step`` may be recorded as a CUDA graph: all its state is tensors that change in place."""

    capturable: bool
    generator: torch.Generator
    """Where all its random numbers are from; those of wrappers with some of their own are in ``generators``."""


class Renderable(VecEnv, Protocol):
    """An env that can be looked at."""

    def render(self) -> NDArray[np.uint8]:
        """Picture of env 0, ``[H, W, 3]``."""
        ...


class Staggered(VecEnv, Protocol):
    """An env that can begin a run in the middle of its episodes, so that they do not all end at once."""

    randomize_start: bool
    """Whether ``reset`` does so; evaluations switch it off."""


class Selective(VecEnv, Protocol):
    """An env that can leave out observation groups that nobody reads."""

    final_groups: tuple[str, ...] | None
    """Groups that ``Step.final_obs`` must have, None for all; see ``want_final_obs``."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A physical parameter that may differ between envs, and from episode to episode."""

    nominal: float
    """What it is where nobody sets it."""
    low: float
    """With ``high`` the range in which it may be drawn where nobody says another."""
    high: float
    unit: str = ""
    """Such as ``kg``; empty for factors."""
    next_episode: bool = False
    """Whether it counts from the next episode of an env on, as where goals are drawn; else from the next step on."""
    positive: bool = False
    """Whether nothing moves with it at 0 or below, as with a mass or a length; such values are refused."""


DYNAMICS = "dynamics"
"""Observation group of what the parameters of each env are, for critics: at unit scale, and nobody reads it unasked."""


class Randomizable(VecEnv, Protocol):
    """An env whose physical parameters can be set for each of its envs."""

    parameters: Mapping[str, Parameter]
    """By name, such as ``mass``, ``friction``, ``stiffness``."""

    def set_parameters(self, values: Mapping[str, Tensor], where: Tensor) -> None:
        """Give envs other parameters from their next step on; ``reset`` leaves them as they are.

        With the nominal values all is bitwise as if nothing had been set. What is set is part of ``state_dict``.
        An env that is ``Capturable`` changes tensors in place and asks the host for nothing.

        Args:
            values: float ``[N]`` of each parameter that is to change, by name, on the env's device.
            where: bool ``[N]``, the envs that they are for.

        Raises:
            ValueError: there is no parameter of a name.
        """
        ...


class Pushable(VecEnv, Protocol):
    """An env whose robots can be pushed."""

    def push(self, speed: Tensor) -> None:
        """Change velocities at once, as an impulse does, before the next step.

        Args:
            speed: ``[N]``, how much, in the unit of ``push_unit``; direction and place are drawn by the env. Where it
                is 0, nothing changes.
        """
        ...

    push_unit: str
    """Such as ``m/s`` of a floating base, or ``rad/s`` of joints."""


class Scored(VecEnv, Protocol):
    """An env that goes by how much there is to learn where it was played; only agents with ``advantages`` tell that."""

    def score_levels(self, num_steps: int) -> None:
        """Called before the first rollout, of so many steps T."""
        ...

    def take_advantages(self, advantages: Tensor, weight: Tensor) -> None:
        """Called after each update: those of the rollout ``[T, N]``, with weight 0 ``[T, N]`` where they do not count.

        It asks the host for nothing.
        """
        ...


class Adaptive(VecEnv, Protocol):
    """An env that changes with what is achieved in it: curricula, ranges of parameters."""

    def adapt(self) -> Metrics:
        """Called after each update of the agent, before the next rollout, outside of graphs.

        It asks the host for nothing; what it returns is logged with the metrics of the update.
        """
        ...


# Functions, since isinstance() of Python 3.12 overlooks what a wrapper passes on by __getattr__.


def is_stateful(env: VecEnv) -> TypeGuard[Stateful]:
    """Whether an env can be saved and put back."""
    return hasattr(env, "state_dict") and hasattr(env, "load_state_dict")


def is_exact(env: VecEnv) -> bool:
    """Whether what an env saves, if it does, is everything that its future depends on."""
    return bool(getattr(env, "exact_state", True))


def is_capturable(env: VecEnv) -> TypeGuard[Capturable]:
    """Whether the steps of an env may be recorded as a CUDA graph."""
    return bool(getattr(env, "capturable", False))


def generators_of(env: Capturable) -> list[torch.Generator]:
    """Where all random numbers of an env are from whose steps may be recorded, those of wrappers around it included."""
    return [env.generator, *getattr(env, "generators", ())]


def is_renderable(env: VecEnv) -> TypeGuard[Renderable]:
    """Whether an env can be looked at."""
    return hasattr(env, "render")


def is_staggered(env: VecEnv) -> TypeGuard[Staggered]:
    """Whether an env can begin in the middle of its episodes."""
    return hasattr(env, "randomize_start")


def is_randomizable(env: VecEnv) -> TypeGuard[Randomizable]:
    """Whether the physical parameters of an env can be set."""
    return hasattr(env, "parameters") and hasattr(env, "set_parameters")


def is_pushable(env: VecEnv) -> TypeGuard[Pushable]:
    """Whether the robots of an env can be pushed."""
    return hasattr(env, "push")


def is_scored(env: VecEnv) -> TypeGuard[Scored]:
    """Whether an env wants to know the advantages of its steps."""
    return hasattr(env, "take_advantages")


def is_adaptive(env: VecEnv) -> TypeGuard[Adaptive]:
    """Whether an env changes with what is achieved in it."""
    return hasattr(env, "adapt")


def is_selective(env: VecEnv) -> TypeGuard[Selective]:
    """Whether an env can leave out groups of final observations."""
    return hasattr(env, "final_groups")


def name_of(env: VecEnv) -> str:
    """The task of an env, or its class where it does not tell."""
    return str(getattr(env, "task", type(env).__name__))


def signal_names(env: VecEnv) -> tuple[str, ...] | None:
    """Names of all signals that an env may give; None where it does not tell.

    What a class tells holds for itself alone: one made from it may give more.
    """
    told: tuple[str, ...] | None = (vars(type(env)) | getattr(env, "__dict__", {})).get("signal_names")
    return told


@dataclass(frozen=True, kw_only=True)
class EnvSpec:
    """What a policy has to know about an env, small enough to live in a checkpoint.

    With it a policy is rebuilt, exported and checked where the simulator is not installed.
    """

    task: str
    observation_sizes: dict[str, int]
    """Size of each flat observation group."""
    discrete: bool
    """Whether actions are indices rather than vectors."""
    action_size: int
    """A, or the number of choices when discrete, of all parts together when there are several."""
    action_low: list[float] = field(default_factory=list)
    action_high: list[float] = field(default_factory=list)
    """Bounds per action dimension, infinite where there is none; empty when discrete."""
    action_parts: list[int] = field(default_factory=list)
    """Number of choices of each part of a ``MultiDiscrete`` action; empty otherwise."""
    image_shapes: dict[str, list[int]] = field(default_factory=dict)
    """``[C, H, W]`` of each observation group that is an image; ``observation_sizes`` has none of these."""
    image_types: dict[str, str] = field(default_factory=dict)
    """``uint8``, 0 to 255, or ``float32`` for each of them."""
    deployment: dict[str, Any] = field(default_factory=dict)
    """For the exported file, whatever the env knows of what docs/deployment.md lists: ``control_dt`` in seconds,
    ``observation_terms`` (group to list of ``{name, size}``), ``action_terms``, ``joints``, ``commands``."""
    tasks: dict[str, EnvSpec] = field(default_factory=dict)
    """Each by itself, where the env is of several tasks: the same groups, without what pads them. See ``tasks``."""

    @property
    def observation_text(self) -> str:
        """The observation groups and their sizes in words."""
        images = {group: "×".join(map(str, shape)) for group, shape in self.image_shapes.items()}
        return ", ".join(f"{group} {size}" for group, size in (self.observation_sizes | images).items())

    @property
    def action_text(self) -> str:
        """The size of an action in words."""
        if self.action_parts:
            return f"{len(self.action_parts)} choices of {', '.join(map(str, self.action_parts))}"
        if self.discrete:
            return f"{self.action_size} choices"
        return "1 number" if self.action_size == 1 else f"{self.action_size} numbers"


def spec_of(env: VecEnv) -> EnvSpec:
    """Describe an env.

    Raises:
        ValueError: the env lacks something, an observation group is no ``Box`` of ``[O]`` or ``[C, H, W]``, or the
            action space is none of a flat ``Box``, ``Discrete`` and ``MultiDiscrete``; the message names the space and
            what to do.
    """
    needed = ("num_envs", "device", "observation_spaces", "action_space", "max_episode_length", "reset", "step")
    missing = [name for name in needed if not hasattr(env, name)]
    if missing:
        raise ValueError(
            f"{type(env).__name__} is no vector env of rlcore's, it lacks {', '.join(missing)}; "
            "rlcore.env.VecEnv tells what is needed, rlcore.envs.make_env('gym:<id>', num_envs=...) makes gymnasium's"
        )
    task = name_of(env)
    found_as = str(getattr(env, "registered_as", None) or task)
    if not isinstance(env.observation_spaces, Mapping):
        raise ValueError(f"{task}: observation_spaces is {env.observation_spaces!r}; give a dict of groups by name")
    sizes: dict[str, int] = {}
    image_shapes: dict[str, list[int]] = {}
    image_types: dict[str, str] = {}
    for group, space in env.observation_spaces.items():
        if not isinstance(space, gymnasium.spaces.Box):
            raise ValueError(f"{task}: observation group '{group}' is {space!r}; describe it by a Box of one env")
        if 0 in space.shape:
            raise ValueError(
                f"{task}: observation group '{group}' of shape {tuple(space.shape)} is empty; leave it out"
            )
        if is_image(space):
            image_shapes[group], image_types[group] = list(space.shape), space.dtype.name
        elif len(space.shape) == 1:
            sizes[group] = int(space.shape[0])
        else:
            raise ValueError(
                f"{task}: observation group '{group}' is {space.dtype} of shape {tuple(space.shape)}; rlcore takes "
                "vectors [O] and images [C, H, W] of uint8 or float32: give it so, or leave it out of the groups"
            )
    action = env.action_space
    common: dict[str, Any] = {
        "task": found_as,
        "observation_sizes": sizes,
        "image_shapes": image_shapes,
        "image_types": image_types,
        "deployment": dict(getattr(env, "deployment", {})),
        "tasks": dict(getattr(env, "tasks", {})),
    }
    if isinstance(action, (gymnasium.spaces.Discrete, gymnasium.spaces.MultiDiscrete)):
        if np.any(action.start != 0):
            kind = type(action).__name__
            raise ValueError(f"{task}: {kind} actions start at {action.start}; wrap the env so that they start at 0")
        if isinstance(action, gymnasium.spaces.Discrete):
            return EnvSpec(discrete=True, action_size=int(action.n), **common)
        if len(action.shape) == 1:
            parts = action.nvec.tolist()
            return EnvSpec(discrete=True, action_size=sum(parts), action_parts=parts, **common)
    if not isinstance(action, gymnasium.spaces.Box) or len(action.shape) != 1:
        raise ValueError(f"{task}: action space {action} is not supported; use a flat Box, Discrete or MultiDiscrete")
    low = [float(x) if math.isfinite(x) else -math.inf for x in action.low]
    high = [float(x) if math.isfinite(x) else math.inf for x in action.high]
    return EnvSpec(discrete=False, action_size=int(action.shape[0]), action_low=low, action_high=high, **common)


def is_image(space: gymnasium.spaces.Box) -> bool:
    """Whether the space of an observation group, as rlcore's envs have it, is that of images ``[C, H, W]``."""
    return len(space.shape) == 3 and space.dtype in (np.uint8, np.float32)


def dtype_of(space: gymnasium.spaces.Box) -> torch.dtype:
    """What the tensors of an observation group are of: uint8 for images that are, float32 for all else."""
    return torch.uint8 if is_image(space) and space.dtype == np.uint8 else torch.float32


def want_final_obs(env: VecEnv, groups: Iterable[str]) -> None:
    """Tell an env which groups of ``final_obs`` are going to be read, if it can leave out the others.

    They add up: what another agent on the same env reads goes on.
    """
    if is_selective(env):
        env.final_groups = tuple(dict.fromkeys((*(env.final_groups or ()), *groups)))
