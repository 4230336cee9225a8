"""Several tasks as one env, for one policy: their envs side by side in the batch, padded to the largest."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from torch import Tensor

from rlcore.config import nearest
from rlcore.env import (
    EnvSpec,
    VecEnv,
    generators_of,
    is_adaptive,
    is_capturable,
    is_exact,
    is_renderable,
    is_selective,
    is_staggered,
    is_stateful,
    spec_of,
    want_final_obs,
)
from rlcore.envs.launch import TASKS_PREFIX, simulator_of
from rlcore.envs.trials import TRIAL_EPISODES
from rlcore.observations import choose_groups, concatenate, groups_of
from rlcore.ranks import merged_in, merges
from rlcore.stage import Stage, reset_at, stage_of, stage_where, told
from rlcore.tasks import TASK_GROUP, chosen, numbers_of
from rlcore.types import Metrics, Obs, Step

SHARE = "share"
"""Option of each task: its part of the envs, in relation to those of the others."""

_SEEDS_APART = 1009  # envs of one task may take seed, seed + 1, ...


class _Make(Protocol):
    def __call__(self, task: str, num_envs: int, device: torch.device, seed: int | None, **options: Any) -> VecEnv: ...


class MultiTask:
    """Envs of K tasks as one ``rlcore.env.VecEnv`` of all their rows, task by task.

    Observation groups: ``policy``, what an actor reads of each task by default, with zeros after the end of shorter
    ones; ``critic`` likewise, where any task has one; and ``task`` ``[N, K]``, 1 for the task that a row is of.

    Actions: ``Discrete`` of the most choices where all tasks have one choice to make, of which a task takes no notice
    of those beyond its own. Else ``Box`` of the most numbers, in the units of each task, of which it reads the first:
    a choice is cut from numbers as ``rlcore.tasks.chosen`` says.

    What each task does with its rows, and its random numbers, are as if it were alone. Its log comes as ``TASK/name``
    ``[N]``, NaN in rows of others, but for ``success`` and ``num_goals``, which are of all tasks. Signals keep their
    names, and are 0 in rows of tasks without them. It is ``Stateful``, ``Capturable`` and so on as far as all its tasks
    are, and gives ``final_obs`` where all give them.

    Args:
        envs: of each task by its name, all on one device.

    Raises:
        ValueError: fewer than two tasks, or one with images.
    """

    def __init__(self, envs: Mapping[str, VecEnv]) -> None:
        self.envs = dict(envs)
        self.task = TASKS_PREFIX + "+".join(self.envs)
        if len(self.envs) < 2:
            raise ValueError(f"{self.task}: there is one task; name two or more, or train it by itself")
        first = next(iter(self.envs.values()))
        self.device = first.device
        self.num_envs = sum(env.num_envs for env in self.envs.values())
        self.max_episode_length = max(env.max_episode_length for env in self.envs.values())
        specs = {name: spec_of(env) for name, env in self.envs.items()}
        for name, spec in specs.items():
            if spec.image_shapes:
                images = ", ".join(spec.image_shapes)
                raise ValueError(f"{self.task}: {name} has images ({images}); several tasks are learned from vectors")
        chosen_groups = {name: choose_groups(groups_of(spec), None, None) for name, spec in specs.items()}
        roles = ["policy"] if all(one == other for one, other in chosen_groups.values()) else ["policy", "critic"]
        self._groups = {  # what each task has for each group, in order
            name: dict(zip(roles, pair, strict=False)) for name, pair in chosen_groups.items()
        }
        self.tasks = {name: _alone(spec, self._groups[name]) for name, spec in specs.items()}
        sizes = {role: max(spec.observation_sizes[role] for spec in self.tasks.values()) for role in roles}
        spaces = {role: gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32) for role, size in sizes.items()}
        one_hot = gymnasium.spaces.Box(0.0, 1.0, (len(self.envs),), np.float32)
        self.observation_spaces: Mapping[str, gymnasium.spaces.Box] = {**spaces, TASK_GROUP: one_hot}
        self.discrete = all(spec.discrete and not spec.action_parts for spec in self.tasks.values())
        self.action_space: gymnasium.Space[Any] = _joint_actions(self.tasks, self.discrete)
        counts = torch.tensor([env.num_envs for env in self.envs.values()])
        self.task_index = torch.repeat_interleave(torch.arange(len(self.envs)), counts).to(self.device)  # [N]
        self._one_hot = torch.nn.functional.one_hot(self.task_index, len(self.envs)).float()  # [N, K]
        ends = counts.cumsum(0).tolist()
        self._rows = [slice(end - count, end) for end, count in zip(ends, counts.tolist(), strict=True)]
        self._stages: dict[str, Stage | None] = {}
        self._final: tuple[str, ...] | None = None
        members = list(self.envs.values())
        self.capturable = all(map(is_capturable, members))
        if self.capturable:
            self.generator, *self.generators = [g for env in members if is_capturable(env) for g in generators_of(env)]
        self.exact_state = all(map(is_exact, members))
        self.notes = [
            f"{name}: {self.envs[name].num_envs} envs, observations {spec.observation_text}, action {spec.action_text}"
            for name, spec in specs.items()
        ]
        self.notes += [f"{name}: {note}" for name, env in self.envs.items() for note in getattr(env, "notes", ())]
        if all(map(is_stateful, members)):  # else it must not be so either
            self.state_dict = self._state_dict
            self.load_state_dict = self._load_state_dict
        if any(map(is_adaptive, members)):
            self.adapt = self._adapt
            if all(map(merges, members)):
                self.merged = lambda: [tensor for env in members for tensor in merged_in(env)]
        if any(hasattr(env, "stage_where") for env in members):
            self.stage_where = self._stage_where
        if is_renderable(first):
            self.render = first.render  # of the first task

    def reset(self, seed: int | None = None) -> Obs:
        """Start a new episode in every env; each task has a seed of its own."""
        parts = []
        for number, (name, env) in enumerate(self.envs.items()):
            own = None if seed is None else seed + _SEEDS_APART * number
            parts.append(reset_at(env, self._stages.get(name), own))
        return self._joined(parts)

    @torch.no_grad()
    def step(self, action: Tensor) -> Step:
        """Advance every env of every task; see ``VecEnv.step``."""
        steps = [
            env.step(self._own(action[rows], self.tasks[name]))
            for (name, env), rows in zip(self.envs.items(), self._rows, strict=True)
        ]
        finals = [step.final_obs for step in steps if step.final_obs is not None]
        known = len(finals) == len(steps)
        skips = any(step.valid is not None for step in steps)
        valid = [torch.ones_like(step.truncated) if step.valid is None else step.valid for step in steps]
        return Step(
            self._joined([step.obs for step in steps]),
            torch.cat([step.reward for step in steps]),
            torch.cat([step.terminated for step in steps]),
            torch.cat([step.truncated for step in steps]),
            self._joined(finals, self._final) if known else None,
            self._log(steps),
            torch.cat(valid) if skips else None,
            self._signals(steps),
        )

    def close(self) -> None:
        """Release all simulators."""
        for env in self.envs.values():
            env.close()

    @property
    def final_groups(self) -> tuple[str, ...] | None:
        """Groups that ``final_obs`` must have; None for all."""
        return self._final

    @final_groups.setter
    def final_groups(self, groups: tuple[str, ...]) -> None:
        self._final = groups
        for name, env in self.envs.items():
            if is_selective(env):
                want_final_obs(env, [g for role in groups if role != TASK_GROUP for g in self._groups[name][role]])

    @property
    def randomize_start(self) -> bool:
        """Whether any task begins in the middle of its episodes."""
        return any(env.randomize_start for env in self.envs.values() if is_staggered(env))

    @randomize_start.setter
    def randomize_start(self, value: bool) -> None:
        for env in self.envs.values():
            if is_staggered(env):
                env.randomize_start = value

    def stage_dict(self) -> dict[str, Any]:
        """How far the curricula of each task have come; nothing where there are none."""
        return {name: stage for name, env in self.envs.items() if (stage := stage_of(env)) is not None}

    def stage_told(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """See ``rlcore.stage``: of each task as it is told by itself."""
        return {name: told(self.envs[name], part["state"]) for name, part in state.items() if name in self.envs}

    @contextlib.contextmanager
    def at_stage(self, state: Mapping[str, Any]) -> Iterator[None]:
        """A context in which ``reset`` begins episodes at the stages that ``stage_dict`` told."""
        self._stages = dict(state)
        try:
            yield
        finally:
            self._stages = {}

    def _stage_where(self, which: str) -> dict[str, Any]:
        stages = {
            name: stage_where(env, which) if hasattr(env, "stage_where") else stage_of(env)
            for name, env in self.envs.items()
        }
        return {name: stage for name, stage in stages.items() if stage is not None}

    def _state_dict(self) -> dict[str, Any]:
        return {name: env.state_dict() for name, env in self.envs.items() if is_stateful(env)}

    def _load_state_dict(self, state: dict[str, Any]) -> None:
        if missing := [name for name in self.envs if name not in state]:
            raise ValueError(f"{self.task}: the saved state has no task '{missing[0]}'; it belongs to other tasks")
        for name, env in self.envs.items():
            if is_stateful(env):
                env.load_state_dict(state[name])

    def _adapt(self) -> Metrics:
        return {
            f"{key}_{name}": value
            for name, env in self.envs.items()
            if is_adaptive(env)
            for key, value in env.adapt().items()
        }

    def _own(self, action: Tensor, spec: EnvSpec) -> Tensor:
        """What a task's env is given, of joint actions of its rows."""
        if self.discrete:
            return action.clamp(max=spec.action_size - 1)
        action = action[:, : numbers_of(spec)]
        return chosen(action, spec) if spec.discrete else action.contiguous()

    def _joined(self, parts: Sequence[Obs], wanted: Sequence[str] | None = None) -> Obs:
        """The groups of all tasks, padded."""
        obs: Obs = {}
        for role, space in self.observation_spaces.items():
            if role == TASK_GROUP or (wanted is not None and role not in wanted):
                continue
            joint = torch.zeros(self.num_envs, *space.shape, device=self.device)
            for name, rows, part in zip(self.envs, self._rows, parts, strict=True):
                joint[rows, : self.tasks[name].observation_sizes[role]] = concatenate(part, self._groups[name][role])
            obs[role] = joint
        obs[TASK_GROUP] = self._one_hot.clone()
        return obs

    def _log(self, steps: Sequence[Step]) -> dict[str, Tensor | float]:
        log: dict[str, Tensor | float] = {}
        told = [step.log.get("success") for step in steps]
        if any(success is not None for success in told):
            joint, goals = torch.zeros(2, self.num_envs, device=self.device)
            for rows, step, success in zip(self._rows, steps, told, strict=True):
                if success is not None:  # else no goals, so that the others alone count
                    joint[rows] = success
                    goals[rows] = step.log.get("num_goals", 1.0)
            log = {"success": joint, "num_goals": goals}
        for name, rows, step in zip(self.envs, self._rows, steps, strict=True):
            for key, value in step.log.items():
                if key not in ("success", "num_goals"):
                    column = torch.full((self.num_envs,), torch.nan, device=self.device)
                    column[rows] = value
                    log[f"{name}/{key}"] = column
        return log

    def _signals(self, steps: Sequence[Step]) -> dict[str, Tensor] | None:
        names = dict.fromkeys(name for step in steps for name in step.signals or {})
        if not names:
            return None
        signals = {name: torch.zeros(self.num_envs, device=self.device) for name in names}
        for rows, step in zip(self._rows, steps, strict=True):
            for name, value in (step.signals or {}).items():
                signals[name][rows] = value
        return signals


def _alone(spec: EnvSpec, groups: Mapping[str, Sequence[str]]) -> EnvSpec:
    """A task's spec with the groups of the joint env in the place of its own."""
    terms = spec.deployment.get("observation_terms", {})
    sizes, named = {}, {}
    for role, own in groups.items():
        sizes[role] = sum(spec.observation_sizes[group] for group in own)
        named[role] = [
            term
            for group in own
            for term in terms.get(group) or [{"name": group, "size": spec.observation_sizes[group]}]
        ]
    deployment = {**spec.deployment, "observation_terms": named}
    return dataclasses.replace(spec, observation_sizes=sizes, deployment=deployment)


def _joint_actions(tasks: Mapping[str, EnvSpec], discrete: bool) -> gymnasium.Space[Any]:
    if discrete:
        return gymnasium.spaces.Discrete(max(spec.action_size for spec in tasks.values()))
    size = max(map(numbers_of, tasks.values()))
    low, high = np.full(size, np.inf), np.full(size, -np.inf)
    for spec in tasks.values():
        own = numbers_of(spec)
        unbounded = [np.inf] * own
        low[:own] = np.minimum(low[:own], [-x for x in unbounded] if spec.discrete else spec.action_low)
        high[:own] = np.maximum(high[:own], unbounded if spec.discrete else spec.action_high)
    return gymnasium.spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)


def make_tasks(
    names: str, num_envs: int, device: torch.device, seed: int | None, options: Mapping[str, Any], make: _Make
) -> MultiTask:
    """Build the envs of several tasks, which share ``num_envs`` in equal parts or as their options say.

    Args:
        names: of the tasks, with ``+`` between them.
        num_envs: N, of all tasks together.
        device: where everything lives.
        seed: of the first reset that is called without one.
        options: of each task under its name, ``{"CartPole": {"share": 2}}`` or ``{"CartPole.share": 2}``: those that it
            takes by itself, and ``share``, its part of the envs, 1 unless given: with shares 2 and 1, two thirds.
        make: builds the envs of one.

    Raises:
        ValueError: a name is there twice or has no envs, an option belongs to no task, or a task cannot be built.
    """
    tasks = names.split("+")
    if len(set(tasks)) < len(tasks) or not all(tasks):
        raise ValueError(f"task '{TASKS_PREFIX}{names}' names a task twice or none; name each once, with + between")
    for task in tasks:
        if "," in task:
            raise ValueError(f"task '{TASKS_PREFIX}{names}' has a comma; write + between tasks, or --task for each")
        if simulator_of(task) == "isaaclab":
            raise ValueError(f"{task}: Isaac Lab has one scene a process; train its tasks one by one")
    own = options_by_task(tasks, options)
    shares = [settings.pop(SHARE, 1.0) for settings in own.values()]
    for task, share in zip(tasks, shares, strict=True):
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < np.inf:
            raise ValueError(f"{task}: {SHARE} is {share!r}; give a number above 0, its part of the envs")
    if num_envs < len(tasks):
        raise ValueError(f"num_envs is {num_envs}, and there are {len(tasks)} tasks; give at least one env to each")
    counts = divided(num_envs, shares)
    envs: dict[str, VecEnv] = {}
    try:
        for number, (task, count) in enumerate(zip(tasks, counts, strict=True)):
            task_seed = None if seed is None else seed + _SEEDS_APART * number
            envs[task] = make(task, count, device, task_seed, **own[task])
        return MultiTask(envs)
    except BaseException:
        for env in envs.values():
            env.close()
        raise


def divided(total: int, shares: Sequence[float]) -> list[int]:
    """Cut a number into whole parts of at least 1, as near to their shares as they can be (largest remainders)."""
    exact = [total * share / sum(shares) for share in shares]
    parts = [max(1, int(part)) for part in exact]
    while sum(parts) < total:
        parts[max(range(len(parts)), key=lambda i: exact[i] - parts[i])] += 1
    while sum(parts) > total:
        parts[max((i for i in range(len(parts)) if parts[i] > 1), key=lambda i: parts[i] - exact[i])] -= 1
    return parts


def options_by_task(tasks: Sequence[str], options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of each task, under its own name as a table or before a point; see ``make_tasks``.

    ``trial_episodes`` and ``action_history`` without a name are for all of them.
    """
    own: dict[str, dict[str, Any]] = {task: {} for task in tasks}
    for key, value in options.items():
        if key in (TRIAL_EPISODES, "action_history"):
            own = {task: {key: value} | given for task, given in own.items()}
            continue
        spelled = {name: task for task in tasks for name in (task, task.replace("-", "_"))}  # as words of a command are
        owners = [name for name in spelled if key == name or key.startswith(f"{name}.")]
        if not owners:
            first, point, _ = key.partition(".")
            alone = f"write env.{tasks[0]}.{key}, and so for each task that is to have it"
            remedy = nearest(first.replace("_", "-"), tasks) if point else alone
            raise ValueError(f"{TASKS_PREFIX}{'+'.join(tasks)}: option '{key}' names no task; {remedy}")
        name = max(owners, key=len)
        task, option = spelled[name], key.removeprefix(name).removeprefix(".")
        if option == "num_envs" or (not option and isinstance(value, Mapping) and "num_envs" in value):
            raise ValueError(f"{task}: num_envs is that of all tasks; write {task}.{SHARE}, its part of them")
        if option:
            own[task][option] = value
        elif isinstance(value, Mapping):
            own[task] |= value
        else:
            raise ValueError(f"{task}: its options are {value!r:.80}; write them by name, such as {task}.{SHARE}")
    return own
