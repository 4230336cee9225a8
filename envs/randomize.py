"""Domain randomization of any env: its parameters, drawn anew when an episode begins."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from rlcore.config import ConfigError, check, closest, nearest
from rlcore.distributed import world
from rlcore.env import DYNAMICS, Parameter, VecEnv, is_adaptive, is_randomizable, is_staggered, name_of
from rlcore.envs.disturb import KINDS, SHARES, Disturbed, disturbances
from rlcore.envs.entropy_ranges import MaximumEntropy
from rlcore.envs.parameters import unit_of
from rlcore.envs.randomize_config import SETTINGS as SETTINGS
from rlcore.envs.randomize_config import ParameterRange as ParameterRange
from rlcore.envs.randomize_config import RandomizeConfig as RandomizeConfig
from rlcore.envs.randomize_config import split_randomize as split_randomize
from rlcore.envs.randomize_config import told_of_unread
from rlcore.envs.ranges import AutomaticRanges, Fixed, Row, Scale, redrawn
from rlcore.envs.trials import with_trials
from rlcore.envs.wrappers import OwnState, SuccessWatch
from rlcore.ranks import merged_in, merges
from rlcore.stage import Told, stage_of, told
from rlcore.types import Metrics, Obs, Step


class Randomized(OwnState):
    """An env whose parameters are drawn when an episode begins, see ``RandomizeConfig``, or when it is told.

    It is a ``rlcore.family.Family``: of tasks that differ in what is drawn.

    What was drawn is the observation group ``dynamics`` ``[N, P]``, in the order of their names: -1 where a parameter
    is at the lower end of its range and 1 at the upper one, by its logarithm if that is uniform. It is for critics,
    which read it where ``critic_obs`` names it, not normalized; a policy that does not read it can do without.

    With ``adr`` and ``doraemon`` the env is ``Adaptive``, and its ranges are a part of its stage, see ``rlcore.stage``.

    Args:
        env: with the parameters, see ``rlcore.env.Randomizable``.
        config: settings.
        seed: see ``OwnState``.

    Raises:
        ConfigError: the env has no parameter of a name, or a group ``dynamics`` already, a parameter has no range, or
            ranges are to follow success and there are single values alone.
    """

    def __init__(self, env: VecEnv, config: RandomizeConfig, seed: int | None = None) -> None:
        super().__init__(env, seed)
        self.randomized = config
        known: Mapping[str, Parameter] = env.parameters if is_randomizable(env) else {}
        if DYNAMICS in env.observation_spaces:
            raise ConfigError(f"{self.task}: the env has an observation group '{DYNAMICS}' already; rename that")
        self._limits = {name: _limits(self.task, name, each, known) for name, each in config.parameters.items()}
        logarithmic = [config.parameters[name].distribution == "log_uniform" for name in self._limits]
        limits = torch.tensor(list(self._limits.values()), dtype=torch.float64)  # [P, 2]
        scaled = torch.where(torch.tensor(logarithmic)[:, None], limits.log(), limits)
        low, high = scaled.float().to(self.device).t().contiguous()[:, :, None]  # [P, 1] each
        points = torch.tensor([[low == high] for low, high in self._limits.values()], device=self.device)
        logarithm = torch.tensor(logarithmic, device=self.device)[:, None]
        equal = any(low == high for low, high in self._limits.values())
        self._scale = Scale(
            low,
            high - low,
            logarithm if any(logarithmic) else None,
            points if equal else None,
            torch.tensor(-1.0, device=self.device),
        )
        rows = [Row(n, self._position(n, known[n].nominal), low == high) for n, (low, high) in self._limits.items()]
        self._names, self._units = tuple(self._limits), [unit_of(known[name]) for name in self._limits]
        if config.mode != "fixed" and all(row.point for row in rows):
            raise ConfigError(
                f"{self.task}: env.randomize.mode is {config.mode}, and of {', '.join(self._names)} there is one value "
                "alone, so that nothing can grow; write '[low, high]', or leave the mode out"
            )
        self._ranges = self._made(rows, config)
        n = self.num_envs
        self._drawn = torch.zeros(len(rows), n, device=self.device)  # [P, N], positions in 0..1
        self._held, self._sharing = False, 1
        self._watch = SuccessWatch(env)
        self._return = torch.zeros(n, device=self.device)  # [N], of the episode in flight
        self._kept |= {"drawn": self._drawn, "return": self._return} | self._ranges.kept
        self.observation_spaces = {
            **env.observation_spaces,
            DYNAMICS: gymnasium.spaces.Box(-1.0, 1.0, (len(rows),), np.float32),
        }
        terms = self.deployment.get("observation_terms")
        if terms:
            named = [{"name": name, "size": 1} for name in self._names]
            self.deployment["observation_terms"] = {**terms, DYNAMICS: named}
        if not isinstance(self._ranges, Fixed):
            self._adaptive = self._ranges
            self.adapt, self.stage_dict, self.load_stage_dict = self._adapt, self._stage_dict, self._load_stage_dict
            self.stage_told = self._stage_told
            if merges(env):
                self.merged = self._merged
            if hasattr(env, "at_stage"):
                self.at_stage = self._at_stage

    @property
    def notes(self) -> tuple[str, ...]:
        """The inner env's, what is drawn, and which settings the mode does not read."""
        own = (f"randomized   {self.ranges_text}", *told_of_unread(self.randomized))
        return (*getattr(self.env, "notes", ()), *own)

    @property
    def ranges_text(self) -> str:
        """What is drawn from where, in one line."""
        each = zip(self._limits.items(), self._units, strict=True)
        parts = ", ".join(f"{name} {low:g} to {high:g} {unit}".rstrip() for (name, (low, high)), unit in each)
        return parts if self.randomized.mode == "fixed" else f"{parts} at most, by {self.randomized.mode}"

    def range_warnings(self, steps: int) -> list[str]:
        """What makes so many further vector steps, of all envs together, useless."""
        config, most = self.randomized, self.max_episode_length
        if config.mode != "adr" or not most:
            return []
        ranges = sum(low < high for low, high in self._limits.values())
        begin = self.num_envs * world().size / (4 * ranges * most)  # at each end, in a step
        needed = math.ceil(config.boundary_episodes / begin + most)
        if steps >= needed:
            return []
        return [
            f"it may be that no range moves: {steps:,} steps of all envs are left, and {config.boundary_episodes} "
            f"episodes of up to {most} steps at each end take about {needed:,}; give more --num-envs or "
            "--num-iterations, or less env.randomize.boundary_episodes"
        ]

    @property
    def final_groups(self) -> tuple[str, ...] | None:
        """Of the inner env, if it has them; ``dynamics`` is there in any case."""
        return super().final_groups

    @final_groups.setter
    def final_groups(self, groups: tuple[str, ...]) -> None:
        self.env.final_groups = tuple(g for g in groups if g != DYNAMICS)  # type: ignore[attr-defined]

    @torch.no_grad()
    def reset(self, seed: int | None = None) -> Obs:
        """Start a new episode in every env, with parameters that are drawn for it."""
        self._reseed(seed)
        self._return.zero_()
        if self._held and seed is None:
            return {**self.env.reset(seed), DYNAMICS: self._seen()}
        self._ranges.broken_off()
        seen, _ = self._draw(self._everywhere())
        self._ranges.began_at_reset(not (is_staggered(self.env) and self.env.randomize_start))
        return {**self.env.reset(seed), DYNAMICS: seen}

    @torch.no_grad()
    def step(self, action: Tensor) -> Step:
        """Advance the inner env, and draw parameters where an episode ended; see ``VecEnv.step``.

        Raises:
            ConfigError: the ranges follow the success of episodes, and nothing tells it.
        """
        step = self.env.step(action)
        done = step.terminated | step.truncated  # [N]
        if not isinstance(self._ranges, Fixed):
            self._ranges.record(self._drawn, done, self._success(step, done))
        seen, before = (self._seen(),) * 2 if self._held else self._draw(done)
        final = None if step.final_obs is None else {**step.final_obs, DYNAMICS: before}
        return step._replace(obs={**step.obs, DYNAMICS: seen}, final_obs=final)

    @torch.no_grad()
    def hold_tasks(self, rows: int = 1) -> None:
        """See ``rlcore.family.Family``."""
        check(rows >= 1 and self.num_envs % rows == 0, "rows", rows, f"it must divide the {self.num_envs} envs")
        self._held, self._sharing = True, rows
        self._draw(self._everywhere())

    @torch.no_grad()
    def draw_tasks(self, where: Tensor) -> Tensor:
        """See ``rlcore.family.Family``."""
        return self._draw(where)[0]

    def _everywhere(self) -> Tensor:
        return torch.ones(self.num_envs, dtype=torch.bool, device=self.device)

    def task_values(self) -> dict[str, Tensor]:
        """What is drawn, ``[N]`` by name, in the parameters' own units."""
        return dict(zip(self._names, self._scale.values(self._drawn), strict=True))

    def _seen(self) -> Tensor:
        """The group ``dynamics`` ``[N, P]``."""
        return torch.add(self._scale.lowest, self._drawn, alpha=2.0).t()

    def _draw(self, where: Tensor) -> tuple[Tensor, Tensor]:
        """The group ``dynamics`` ``[N, P]`` of new episodes in the envs ``where``, and of those before."""
        position = self._ranges.draw(self._random, where)  # [P, N]
        if self._sharing > 1:
            position = self._shared(position)
            if self._ranges.of_episodes is not None:
                self._ranges.of_episodes.copy_(self._shared(self._ranges.of_episodes))
        values, seen, before = redrawn(self._drawn, position, where, self._scale)
        self.env.set_parameters(dict(zip(self._names, values, strict=True)), where)  # type: ignore[attr-defined]
        return seen, before

    def _shared(self, x: Tensor) -> Tensor:
        """What each first of neighboring rows has, in all of them, ``[..., N]``."""
        return x[..., :: self._sharing].repeat_interleave(self._sharing, -1, output_size=self.num_envs)

    def _success(self, step: Step, done: Tensor) -> Tensor:
        """``[N]``, what is known where an episode ended; NaN is none, see ``ranges.add_ended``."""
        least = self.randomized.success_return
        if least is not None:
            self._return.add_(step.reward)
            success = (self._return >= least).float()
            self._return.masked_fill_(done, 0.0)
            return success
        if self._watch.is_missing(step.log):
            raise ConfigError(
                f"env.randomize.mode is {self.randomized.mode}, and {self.task} does not tell which episodes succeed; "
                "give the return from which on one does: env.randomize.success_return"
            )
        if "success" not in step.log:
            return torch.zeros_like(step.reward)
        value = step.log["success"]
        if not isinstance(value, Tensor):
            return torch.full_like(step.reward, value)
        return value.to(step.reward).expand_as(step.reward)

    @torch.no_grad()
    def _adapt(self) -> Metrics:
        metrics = self.env.adapt() if is_adaptive(self.env) else {}
        metrics |= self._adaptive.adapt()
        ends = self._scale.values(self._adaptive.ends().t()).t()  # [2, P]
        for name, lower, upper in zip(self._names, *ends, strict=True):
            metrics |= {f"randomize/{name}_low": lower, f"randomize/{name}_high": upper}
        return metrics

    def _merged(self) -> list[Tensor]:
        return [*merged_in(self.env), *self._adaptive.merged()]

    def _stage_dict(self) -> dict[str, Any]:
        inner = stage_of(self.env)
        own = dict(zip(self._names, self._adaptive.stage(), strict=True))
        return {**({} if inner is None else inner["state"]), "randomize": own}

    def _stage_told(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """See ``rlcore.stage``: ends of what is drawn, in the parameters' own units."""
        inner = told(self.env, {key: value for key, value in state.items() if key != "randomize"})
        stage = state.get("randomize", {})
        if set(stage) != set(self._names):  # of another env: nobody can tell what its parts are worth
            return {**inner, "randomize": stage}
        ends = self._adaptive.ends_of([stage[name] for name in self._names])  # [2, P]
        values = self._scale.values(ends.t())  # [P, 2]
        rows = zip(self._names, values, self._units, strict=True)
        return {**inner, "randomize": {name: Told(row, unit, ends=True) for name, row, unit in rows}}

    def _load_stage_dict(self, state: Mapping[str, Any]) -> None:
        self._take(state)
        inner: Any = self.env
        if len(state) > 1:
            load = inner.load_stage_dict if hasattr(inner, "stage_dict") else inner.load_state_dict
            load({key: value for key, value in state.items() if key != "randomize"})

    @contextlib.contextmanager
    def _at_stage(self, state: Mapping[str, Any]) -> Iterator[None]:
        self._take(state)
        inner: Any = self.env
        with inner.at_stage({key: value for key, value in state.items() if key != "randomize"}):
            yield

    def _take(self, state: Mapping[str, Any]) -> None:
        stage = state.get("randomize", {})
        if set(stage) != set(self._names):
            raise ConfigError(
                f"{self.task}: the run's ranges are of {', '.join(stage) or 'nothing'}, and here of "
                f"{', '.join(self._names)}; leave env.randomize as it was, evaluate with --stage start, or train anew "
                "with --init-from"
            )
        self._adaptive.load_stage([stage[name] for name in self._names])

    def _loaded(self) -> None:
        if not isinstance(self._ranges, Fixed):
            self._ranges.loaded()

    def _load_state_dict(self, state: dict[str, Any]) -> None:
        super()._load_state_dict({**state, "kept": self._ranges.completed(state.get("kept", {}))})

    def _position(self, name: str, value: float) -> float:
        """Where a value lies between the limits, in 0..1."""
        low, high = self._limits[name]
        value = min(max(value, low), high)
        if low == high:
            return 0.5
        if self.randomized.parameters[name].distribution == "log_uniform":
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    def _made(self, rows: list[Row], config: RandomizeConfig) -> Fixed | AutomaticRanges | MaximumEntropy:
        if config.mode == "adr":
            return AutomaticRanges(
                rows,
                self.num_envs,
                self.device,
                step=config.step,
                low=config.narrow_below,
                high=config.widen_above,
                episodes=config.boundary_episodes,
            )
        if config.mode == "doraemon":
            return MaximumEntropy(
                rows,
                self.num_envs,
                self.device,
                success_rate=config.success_rate,
                max_kl=config.max_kl,
                episodes=config.episodes,
                interval=config.interval,
            )
        return Fixed(rows, self.num_envs, self.device)


def _limits(task: str, name: str, wanted: ParameterRange, known: Mapping[str, Parameter]) -> tuple[float, float]:
    if name not in known:
        raise ConfigError(f"{task}: env.randomize.{name}: there is no such parameter; {nearest(name, known)}")
    own = known[name]
    if own.next_episode:  # what is drawn as an episode begins would act in the one after it
        raise ConfigError(f"{task}: env.randomize.{name} is read before an episode begins; give it to curriculum")
    low, high = wanted.range or (own.low, own.high)
    if wanted.range is None and own.low == own.high:
        raise ConfigError(f"{task}: env.randomize.{name} has no range of its own; give '[low, high]'")
    check(low > 0 or not own.positive, f"{task}: env.randomize.{name}", [low, high], "give a range above 0")
    if wanted.distribution == "log_uniform" and low <= 0:
        raise ConfigError(f"{task}: env.randomize.{name}: log_uniform needs a lower limit above 0, not {low:g}")
    return low, high


def _known(env: VecEnv, name: str, names: list[str]) -> str:
    """What to write in the place of a name that there is not."""
    if name in getattr(env, "parameters", ()) and not is_randomizable(env):
        return "it is among the env's parameters, and not to be set without set_parameters(values, where)"
    if closest(name, [*names, *SETTINGS]) is not None:
        return nearest(name, [*names, *SETTINGS])
    return f"{nearest(name, names)}; settings are {', '.join(SETTINGS)}"


def randomized(
    env: VecEnv, config: RandomizeConfig, seed: int | None = None, trial_episodes: int | None = None
) -> VecEnv:
    """The env with its parameters randomized, and with the disturbances that are among them.

    Args:
        env: any env.
        config: settings.
        seed: see ``OwnState``.
        trial_episodes: episodes that have the same parameters, see ``Trials``; None: each has its own.

    Raises:
        ConfigError: see ``Randomized`` and ``Trials``.
        ValueError: see ``Disturbed``. The env has been closed then.
    """
    try:
        own = env.parameters if is_randomizable(env) else {}
        names = [name for name in config.parameters if name.partition("/")[0] in KINDS and name not in own]
        for name in config.parameters:
            if name not in own and name not in names:
                why = [note for note in getattr(env, "notes", ()) if note.startswith("no physical parameters")]
                tasks = list(getattr(env, "tasks", ()))
                own_of = f"write env.{tasks[0]}.randomize.{name} for what a task has" if tasks else None
                hint = why[0] if why else own_of or _known(env, name, [*own, *disturbances(env)])
                raise ConfigError(f"{name_of(env)}: env.randomize.{name}: there is no such parameter; {hint}")
        if names:
            for name in names:
                low, high = config.parameters[name].range or (0.0, 0.0)
                most = 1.0 if name in SHARES else math.inf
                remedy = "give a range within 0..1" if most == 1 else "give a range from 0 on"
                check(low >= 0 and high <= most, f"env.randomize.{name}", [low, high], remedy)
            delays = [config.parameters[name].range or (0.0, 2.0) for name in names if name.endswith("_delay")]
            longest = max([1, *(math.ceil(high) for _, high in delays)])
            env = Disturbed(env, names, max_delay=longest, push_interval=config.push_interval, seed=seed)
        return Randomized(with_trials(env, trial_episodes), config, seed)
    except ValueError:
        env.close()
        raise
