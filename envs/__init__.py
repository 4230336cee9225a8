"""Environments: tasks that run on torch alone, and adapters to simulators."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlcore.envs.launch import PYTHON_PREFIX, TASKS_PREFIX, simulator_of
from rlcore.names import nearest_names
from rlcore.user_code import imported
from rlcore.user_code import look_here as look_here

if TYPE_CHECKING:  # Isaac Sim wants to start before PyTorch is imported, and its launcher is in this package
    import torch

    from rlcore.env import VecEnv

GYM_PREFIX = "gym:"

LARGEST_OPTION = 1e12
"""Largest whole number among the options of a task of PyTorch's, which holds 64 bits."""

TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "Reach-UR5e-JointPos": ("rlcore.envs.reach:Reach", {"arm": "UR5e", "control": "JointPos"}),
    "Reach-UR5e-JointVel": ("rlcore.envs.reach:Reach", {"arm": "UR5e", "control": "JointVel"}),
    "Reach-UR5e-IK": ("rlcore.envs.reach:Reach", {"arm": "UR5e", "control": "IK"}),
    "Reach-UR5e-Torque": ("rlcore.envs.reach:Reach", {"arm": "UR5e", "control": "Torque"}),
    "Reach-UR5e-JointVel-Box": ("rlcore.envs.reach_box:ReachBox", {"arm": "UR5e", "control": "JointVel"}),
    "Reach-UR10-JointPos": ("rlcore.envs.reach:Reach", {"arm": "UR10", "control": "JointPos"}),
    "Reach-UR10-JointVel": ("rlcore.envs.reach:Reach", {"arm": "UR10", "control": "JointVel"}),
    "Reach-UR10-IK": ("rlcore.envs.reach:Reach", {"arm": "UR10", "control": "IK"}),
    "Reach-UR10-Torque": ("rlcore.envs.reach:Reach", {"arm": "UR10", "control": "Torque"}),
    "CartPole": ("rlcore.envs.classic:CartPole", {}),
    "CartPole-Pixels": ("rlcore.envs.pixels:CartPolePixels", {}),
    "Pendulum": ("rlcore.envs.classic:Pendulum", {}),
    "Memory": ("rlcore.envs.memory:Memory", {}),
    "Budget": ("rlcore.envs.constrained:Budget", {}),
    "Detour": ("rlcore.envs.constrained:Detour", {}),
    "Null": ("rlcore.envs.null:Null", {}),
    "Navigation-2D": ("rlcore.envs.navigation:Navigation", {}),
    "HalfCheetah-Vel": ("rlcore.envs.cheetah:HalfCheetah", {"goal": "velocity"}),
    "HalfCheetah-Dir": ("rlcore.envs.cheetah:HalfCheetah", {"goal": "direction"}),
    **{f"Corner-{corner}": ("rlcore.envs.corner:Corner", {"corner": corner}) for corner in ("NE", "NW", "SW", "SE")},
}
"""Built-in tasks: where the env's class is, and the arguments that make it this task."""

EVERYWHERE = ("action_history", "costs", "curriculum", "randomize", "trial_episodes")
"""Options of every task, or the groups that they are in."""
WRAPPERS = {"HiddenVelocity": "rlcore.envs.wrappers:HiddenVelocity", "Delayed": "rlcore.envs.wrappers:Delayed"}
"""Partially observable variants of Pendulum and Reach, by the end of their name."""

TASKS |= {
    f"{name}-{end}": TASKS[name] for name in list(TASKS) if name.startswith(("Pendulum", "Reach")) for end in WRAPPERS
}

FAMILIES: dict[str, dict[str, Any]] = {
    "Navigation-2D": {"randomize.goal_x": True, "randomize.goal_y": True},
    "HalfCheetah-Vel": {"randomize.velocity": True},
    "HalfCheetah-Dir": {"randomize.direction": True},
}
"""Tasks that are whole families, see ``rlcore.family``, and the options that make them so where nobody says others."""


_NUMBERS: dict[str, tuple[Any, str]] = {
    "int": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "bool": (bool, "True or False"),
}
"""What a value may be where an argument of somebody's env has this annotation, and how it is called."""

_METHODS = ("reset", "step", "close")
"""Of every vector env."""


def make_env(
    task: str, num_envs: int, device: str | torch.device = "cpu", seed: int | None = None, **options: Any
) -> VecEnv:
    """Build ``num_envs`` copies of a task; the caller resets them.

    Args:
        task: a name of ``TASKS``, ``gym:<id>`` for any id that ``gymnasium.make`` knows, a task of Isaac Lab
            (``isaaclab:<id>`` or ``Isaac-...``) or mjlab (``mjlab:<name>`` or ``Mjlab-...``), or
            ``python:<module>:<class>`` for a vector env of one's own, see ``own_env``, or ``envpool:<id>``; several as
            ``tasks:A+B``, see ``rlcore.envs.multi_task``.
        num_envs: number of copies N.
        device: where the tensors of the env live.
        seed: of the first ``reset()`` that is called without one; ``None`` draws a fresh one.
        **options: keyword arguments of the task, such as ``max_episode_length`` or, for gymnasium ids, the
            arguments of ``gymnasium.make`` and ``vectorization``; for simulators, those of their ``make_...`` functions
            and fields of the task's configuration by dotted name. And of every task ``costs``, signals of one's own by
            name, see ``rlcore.envs.costs.CostSource``; ``{"costs.NAME.above": 2}`` is the same as nested mappings.
            And ``randomize``, ranges of parameters by name, ``{"randomize.mass": [0.7, 1.5]}``, and the settings of
            ``rlcore.envs.randomize.RandomizeConfig``.
            And ``curriculum``, levels of parameters, see ``rlcore.envs.curriculum_config.CurriculumConfig``.
            And ``trial_episodes``, so many episodes in a trial, see ``rlcore.envs.trials.Trials``.
            And ``action_history``, how many of its latest actions a policy sees, see ``rlcore.envs.history``.

    Raises:
        ValueError: unknown task or option, ``num_envs`` below 1, a device that is not there, or a simulator that is
            not installed; the message is one line with the nearest valid name or the remedy.
    """
    if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:
        raise ValueError(f"num_envs is {num_envs!r}; it must be a whole number of at least 1")
    return _made(task, num_envs, device, seed, **{**FAMILIES.get(task, {}), **options})


def _made(task: str, num_envs: int, device: str | torch.device, seed: int | None, **options: Any) -> VecEnv:
    """See ``make_env``: the wrappers that options ask for, around what has none."""
    several = task.startswith(TASKS_PREFIX)  # whose history and trials are each task's own
    if "action_history" in options and not several:
        from rlcore.envs.history import with_history

        length = options.pop("action_history")
        return with_history(_made(task, num_envs, device, seed, **options), length)
    if any(name.partition(".")[0] == "costs" for name in options):
        from rlcore.envs.costs import split_sources, with_signals

        sources, options = split_sources(options)
        return with_signals(_made(task, num_envs, device, seed, **options), sources)
    if any(name.partition(".")[0] == "curriculum" for name in options):
        from rlcore.envs.curriculum import Curriculum
        from rlcore.envs.curriculum_config import disturbed, split_curriculum

        curriculum, options = split_curriculum(options)
        bare = _made(task, num_envs, device, seed, **options)
        try:
            return Curriculum(disturbed(bare, curriculum, seed), curriculum)
        except ValueError:
            bare.close()
            raise
    if any(name.partition(".")[0] == "randomize" for name in options):
        from rlcore.envs.randomize import randomized, split_randomize

        config, options = split_randomize(options)
        episodes = None if config is None or several else options.pop("trial_episodes", None)
        bare = _made(task, num_envs, device, seed, **options)
        return bare if config is None else randomized(bare, config, seed, trial_episodes=episodes)
    if "trial_episodes" in options and not several:
        from rlcore.envs.trials import with_trials

        episodes = options.pop("trial_episodes")
        return with_trials(_made(task, num_envs, device, seed, **options), episodes)
    device = _placed(device)
    simulator = simulator_of(task) if task not in TASKS else "builtin"
    if simulator == "isaaclab":
        from rlcore.envs.isaaclab import make_isaaclab

        return make_isaaclab(task, num_envs, device, seed, **options)
    if simulator == "mjlab":
        from rlcore.envs.mjlab import make_mjlab

        return make_mjlab(task, num_envs, device, seed, **options)
    if task.startswith(GYM_PREFIX):
        from rlcore.envs.gym_make import make_gymnasium

        return make_gymnasium(task.removeprefix(GYM_PREFIX), num_envs, device, seed, **options)
    if simulator == "envpool":
        from rlcore.envs.envpool import make_envpool

        return make_envpool(task.partition(":")[2], num_envs, device, seed, **options)
    if task.startswith(PYTHON_PREFIX):
        return _make_own(task, num_envs, device, seed, options)
    if task.startswith(TASKS_PREFIX):
        from rlcore.envs.multi_task import make_tasks

        return make_tasks(task.removeprefix(TASKS_PREFIX), num_envs, device, seed, options, make_env)
    if task not in TASKS:
        raise ValueError(_unknown_task(task))
    place, fixed = TASKS[task]
    constructor = load(place)
    wrapper = load(WRAPPERS[ending]) if (ending := task.rpartition("-")[2]) in WRAPPERS else None
    own = [name for name in inspect.signature(wrapper).parameters if name != "env"] if wrapper else []
    _check_options(task, constructor, options, {"num_envs", "device", "seed", *fixed}, own)
    outer = {name: options.pop(name) for name in own if name in options}
    try:
        env: VecEnv = constructor(num_envs=num_envs, device=device, seed=seed, **fixed, **options)
        return wrapper(env, **outer) if wrapper else env
    except (TypeError, RuntimeError, OverflowError) as error:
        if not options and not outer:
            raise
        given = ", ".join(f"{name}={value!r:.80}" for name, value in (options | outer).items())
        reason = str(error).splitlines()[0]
        raise ValueError(f"{task}: cannot be built with {given}: {reason}; check the options' types") from error


def own_env(task: str) -> Any:
    """The class of a vector env (``rlcore.env.VecEnv``), or the function that makes one, of ``python:<module>:<name>``.

    It takes ``num_envs`` and, if it has such arguments, ``device`` and ``seed``. A function may return one of
    gymnasium's or envpool's as well. ``user_code.imported`` tells where modules are looked for; the path of a file does
    as well.

    Raises:
        ValueError: there is no such module or class, or it is no vector env's and no function of ``num_envs``.
    """
    module_name, _, name = task.removeprefix(PYTHON_PREFIX).rpartition(":")
    if not module_name or not name:
        raise ValueError(f"task '{task}' lacks a part; write {PYTHON_PREFIX}<module>:<class>")
    module, name = imported(task, f"task '{task}'")
    cls = getattr(module, name, None)
    # Asked before anything is called: a name may come from a file, and then it is no function but one for this.
    is_env = isinstance(cls, type) and all(hasattr(cls, method) for method in _METHODS)
    if not is_env and not (inspect.isfunction(cls) and "num_envs" in inspect.signature(cls).parameters):
        classes = [key for key, value in vars(module).items() if isinstance(value, type) and hasattr(value, "step")]
        there = f"there is {', '.join(classes)}" if classes else "rlcore.env.VecEnv tells what one needs"
        raise ValueError(
            f"task '{task}': '{name}' in {module_name} is no class of a vector env; {there}, "
            "or let a function take num_envs and return one"
        )
    return cls


def _make_own(task: str, num_envs: int, device: torch.device, seed: int | None, options: dict[str, Any]) -> VecEnv:
    cls = own_env(task)
    parameters = inspect.signature(cls).parameters
    if "num_envs" not in parameters:
        raise ValueError(f"{task}: it has no argument num_envs; give it one, the number of envs to step together")
    common = {"num_envs": num_envs, "device": device, "seed": seed}
    _check_options(task, cls, options, set(common), [])
    check_numbers(task, parameters, options)
    made: Any = cls(**{name: value for name, value in common.items() if name in parameters}, **options)
    env: VecEnv = _adapted(made, task, device, None if "seed" in parameters else seed)
    if _placed(getattr(env, "device", device)) != device:  # one without is refused later, by what it lacks
        remedy = "let it take an argument device" if "device" not in parameters else "let it heed its argument device"
        raise ValueError(
            f"{task}: it is on '{env.device}' in place of '{device}'; {remedy}, or give --device {env.device}"
        )
    if not hasattr(env, "task"):
        made.task = task  # an exported file says what to make for its evaluation
    return env


def check_numbers(task: str, parameters: Mapping[str, inspect.Parameter], options: dict[str, Any]) -> None:
    """Refuse what is no number for an argument that its author wrote ``int``, ``float`` or ``bool`` after.

    Raises:
        ValueError: names the first, its value and what to give. Python would take any word for true.
    """
    for name, value in options.items():
        wanted = parameters[name].annotation if name in parameters else None
        kinds, what = _NUMBERS.get(getattr(wanted, "__name__", str(wanted)), (object, ""))
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds not in (bool, object)):
            raise ValueError(f"{task}: option {name} is {value!r:.80}; give {what}")


def _adapted(made: Any, task: str, device: torch.device, seed: int | None) -> VecEnv:
    """An env of somebody's, one of gymnasium's or envpool's by their adapter."""
    from gymnasium.vector import VectorEnv

    from rlcore.envs.envpool import is_pool
    from rlcore.envs.gymnasium import GymnasiumEnv

    if isinstance(made, VectorEnv) or is_pool(made):
        return GymnasiumEnv(made, device, seed, task=task)
    if not all(hasattr(made, method) for method in _METHODS):
        raise ValueError(
            f"{task}: it returned {type(made).__name__}; let it return a vector env, see rlcore.env.VecEnv"
        )
    env: VecEnv = made
    return env


def load(place: str) -> Any:
    """What ``module:name`` names."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def _placed(device: str | torch.device) -> torch.device:
    """A device that is there, with its index, so that it equals the device of the tensors made on it."""
    import torch

    from rlcore.device import checked_device

    return torch.empty(0, device=checked_device(device)).device


def _unknown_task(task: str) -> str:
    # By name: once rlcore.envs.gymnasium is loaded, a bare `gymnasium` in this file would mean that adapter.
    from gymnasium.envs.registration import registry

    importlib.import_module("rlcore.envs.gym_costs")  # which registers some
    if "," in task:
        return f"unknown task '{task:.200}': a task has no comma in its name; give --task once for each of several"
    nearest = nearest_names(task, TASKS)
    if task in registry:
        nearest = [GYM_PREFIX + task, *nearest]
    hint = f"did you mean {', '.join(nearest)}? " if nearest else ""
    named = f"'{task}'" if len(task) <= 200 else f"'{task[:200]}...'"
    return f"unknown task {named}: {hint}`rlcore tasks` lists them, and {GYM_PREFIX}<id> takes any gymnasium id"


def unknown_option(task: str, option: str, valid: list[str]) -> str:
    """The one line that says which options a task takes instead."""
    group, point, rest = option.partition(".")  # of those that any task has, see ``make_env``
    nearest = nearest_names(option, valid, count=1) or [
        f"{name}{point}{rest}" for name in nearest_names(group, EVERYWHERE, count=1)
    ]
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    return f"{task}: unknown option '{option}': {hint}valid options are {', '.join(valid) or 'none'}"


def _check_options(
    task: str, constructor: Any, options: dict[str, Any], reserved: set[str], further: list[str]
) -> None:
    parameters = inspect.signature(constructor).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return  # the env checks them itself
    valid = [name for name in parameters if name not in reserved] + further
    for option, value in options.items():
        if option not in valid:
            raise ValueError(unknown_option(task, option, valid))
        if isinstance(value, int) and abs(value) > LARGEST_OPTION:
            raise ValueError(f"{task}: option {option} is {value!s:.40}; give at most {LARGEST_OPTION:g}")
