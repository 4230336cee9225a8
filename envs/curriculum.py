"""A curriculum for any env: levels of parameters, or of the env's own, chosen by what is achieved at each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from rlcore.config import ConfigError
from rlcore.distributed import total
from rlcore.env import VecEnv, is_adaptive, is_exact, is_staggered, is_stateful
from rlcore.envs.cohorts import Cohorts
from rlcore.envs.curriculum_config import CurriculumConfig, own_levels_of, table_of
from rlcore.envs.levels import (
    among,
    drawn,
    level_figures,
    mean_magnitudes,
    one_apart,
    replay_distribution,
    running_rate,
    spread,
    success_weights,
    summed,
    values_at,
    with_floor,
)
from rlcore.envs.terrain import TerrainLevels
from rlcore.envs.trials import TRIAL_EPISODES
from rlcore.envs.wrappers import SuccessWatch, Wrapper
from rlcore.ranks import merged_in, merges
from rlcore.stage import rows_of, stage_of, told
from rlcore.types import Metrics, Obs, Step


class Curriculum(Wrapper):
    """An env whose envs begin each episode at a level, see ``CurriculumConfig``.

    Outcomes count where an episode ends that was played whole, for the level that it was played at: resets promote
    nobody, nor do episodes that began in the middle. ``adapt`` moves levels on; who does without ``rlcore.learn`` calls
    it now and then. Levels and all that they go by are tensors on the env's device, changed in place, part of
    ``state_dict`` and of the stage; see ``rlcore.stage``.

    Where a parameter counts from the next episode on, or levels are the env's own, the level of an episode is chosen as
    the one before it begins; other parameters are set as it begins all the same.

    Args:
        env: any env.
        config: settings.

    Raises:
        ConfigError: the env has no parameter of a name, or no levels of its own where none are given.
    """

    def __init__(self, env: VecEnv, config: CurriculumConfig) -> None:
        super().__init__(env)
        self.config, n, device = config, env.num_envs, env.device
        self._where = f"{self.task}: env.curriculum"
        self._terrain: TerrainLevels | None = None
        self._late: Tensor | None = None  # which parameters count from the next episode on, where others do at once
        self._names = tuple(config.parameters)
        if config.parameters:
            self.table = table_of(env, config, self._where).to(device)  # [P, L], in the order of the parameters
            number = self.table.shape[1]
            late = [env.parameters[name].next_episode for name in self._names]  # type: ignore[attr-defined]
            self._ahead = any(late)
            if self._ahead and not all(late):
                self._late = torch.tensor(late, device=device)[:, None]  # [P, 1]
        else:
            self._terrain, number = own_levels_of(env, config, self._where)
            self._ahead = True
        if self._ahead and self.deployment.get(TRIAL_EPISODES, 1) > 1:
            raise ConfigError(
                f"{self._where}: its levels count from the next episode on, which is of the same trial; leave "
                f"env.{TRIAL_EPISODES} out"
            )
        self.num_levels = number
        self._key = "curriculum_level" if self._terrain is None else "terrain_levels"  # in a stage
        first = torch.zeros(number, device=device)
        first[: 1 if config.strategy in ("threshold", "per_env") else number] = 1.0
        self.probabilities = with_floor(first, 0.0 if config.strategy == "per_env" else config.uniform)
        """Of draws, ``[L]``; with ``per_env`` those that it begins with."""
        self._cumulative = summed(self.probabilities)
        self.level = spread(self.probabilities, n)
        """Of the episodes in flight, int64 ``[N]``."""
        self._next = self.level.clone() if self._ahead else self.level  # of the episodes that follow
        self._own = self.level.clone()  # with per_env, where floor draws lead back to
        self._whole = torch.ones(n, dtype=torch.bool, device=device)  # whether the episode in flight began anew
        self._returns = torch.zeros(n, device=device)
        self._cohorts = Cohorts(number, n, config.episodes, device) if config.strategy == "threshold" else None
        self._counted_as = self.level if self._cohorts is None else self._cohorts.of  # [N]
        rows = number if self._cohorts is None else self._cohorts.rows
        self._outcomes = torch.zeros(2, rows, device=device)  # failures and successes since the last ``adapt``
        self._staggered = is_staggered(env)
        self._reached = torch.zeros(1, dtype=torch.int64, device=device)
        self._rate = torch.full((number,), config.target, device=device)
        self._known, self._age = torch.zeros(2, number, device=device)
        self._score = torch.full((number,), torch.inf, device=device)
        learned = ("probabilities", "_reached", "_rate", "_known", "_score", "_age")
        self._kept: dict[str, Tensor] = {name.lstrip("_"): getattr(self, name) for name in learned}
        flight = ("level", "_next", "_own", "_whole", "_returns", "_outcomes")
        self._of_episodes: dict[str, Tensor] = {name.lstrip("_"): getattr(self, name) for name in flight}
        if self._cohorts is not None:
            self._of_episodes |= {f"cohort_{name}": value for name, value in self._cohorts.kept.items()}
        self._played: Tensor | None = None  # [T, N], levels of the steps of a rollout
        self._row = torch.zeros(1, dtype=torch.int64, device=device)
        self._watch = SuccessWatch(env)
        if config.strategy == "plr":
            self.score_levels, self.take_advantages = self._score_levels, self._take_advantages
        if is_stateful(env):  # else the wrapper must not be so either
            self._stateful = env
            self.state_dict, self.load_state_dict = self._state_dict, self._load_state_dict
        if merges(env):
            self.merged = self._merged
        if hasattr(env, "at_stage"):
            self.at_stage = self._at_stage
        if hasattr(env, "hold"):
            self.hold = self._hold
        self._give(torch.ones_like(self._whole))

    @property
    def clocks(self) -> tuple[str, ...]:
        """Besides those of the env what levels go by: where it differs alone, the same episodes begin."""
        return (*getattr(self.env, "clocks", ()), "_curriculum")

    def reset(self, seed: int | None = None) -> Obs:
        """Start a new episode in every env, at the level that it stands at."""
        self.level.copy_(self._next)
        if self._late is not None:
            self._give(torch.ones_like(self._whole))
        obs = self.env.reset(seed)
        self._returns.zero_()
        self._row.zero_()
        self._whole.fill_(not (self._staggered and self.randomize_start))
        if self._cohorts is not None:
            self._cohorts.broken_off(self._outcomes.sum(0))
            self._cohorts.of.copy_(self.level.where(self._whole, self._cohorts.none))
        return obs

    @torch.no_grad()
    def step(self, action: Tensor) -> Step:
        """Step the inner env, and give those that ended the level of their next episode; see ``VecEnv.step``.

        Raises:
            ConfigError: the env tells of no success, and no return is given for one.
        """
        step = self.env.step(action)
        done = step.terminated | step.truncated  # [N]
        if self._played is not None:
            self._played.index_copy_(0, self._row, self.level.unsqueeze(0))
            self._row += 1
            self._row %= len(self._played)
        success = self._succeeded(step, done)
        if success is not None:
            self._count(success, done, step.log.get("num_goals"))
        if self._ahead:
            torch.where(done, self._next, self.level, out=self.level)
        torch.where(done, self._fresh(), self._next, out=self._next)
        if self._cohorts is not None:
            torch.where(done, self.level, self._cohorts.of, out=self._cohorts.of)
        self._give(done)
        if self._staggered:
            self._whole |= done
        return step

    @torch.no_grad()
    def adapt(self) -> Metrics:
        """Move levels on by what came of the latest episodes; see ``rlcore.env.Adaptive``.

        Returns:
            Metrics of the env, those of ``level_figures``, means of the parameters in the episodes in flight, and
            ``curriculum/success`` of the episodes since the last call.
        """
        metrics: Metrics = self.env.adapt() if is_adaptive(self.env) else {}
        config = self.config
        outcomes = torch.stack((self._outcomes.sum(0), self._outcomes[1]))  # episodes and successes, [2, L]
        outcomes = total(outcomes) if self._cohorts is None else self._move_all(self._cohorts, outcomes)
        if config.strategy == "success":
            rate, known = running_rate(self._rate, self._known, outcomes, config.window)
            self._rate.copy_(rate)
            self._known.copy_(known)
            self._draw_by(success_weights(self._rate, config.kappa, config.target))
        elif config.strategy == "plr":
            self._draw_by(replay_distribution(self._score, self._age, config.temperature, config.staleness))
        if self._ahead and config.strategy != "per_env":  # what has not begun may still be another
            self._next.copy_(self._fresh())
            self._give(torch.ones_like(self._whole))
        episodes, successes = outcomes.view(2, -1).sum(1)
        figures = level_figures(self.level, self.num_levels)
        figures["success"] = successes / episodes  # NaN, so not reported, if nothing ended
        if self._names:
            figures |= zip(self._names, self.table[:, self.level].mean(1), strict=True)
        self._outcomes.zero_()
        return metrics | {f"curriculum/{name}": value for name, value in figures.items()}

    def stage_dict(self) -> dict[str, Any]:
        """Where the curriculum stands, and the env's own; see ``rlcore.stage``.

        Levels are those that draws are expected to give, the same as long as their distribution is.
        """
        each = self.config.strategy == "per_env"
        level = self._own.clone() if each else spread(self.probabilities, self.num_envs)
        return self._inner_stage() | {self._key: level, "_curriculum": self._learned()}

    def load_stage_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what ``stage_dict`` gave, here or in another env."""
        inner = self._of_the_env(state)
        if hasattr(self.env, "load_stage_dict"):
            self.env.load_stage_dict(inner)
        elif not is_exact(self.env) and is_stateful(self.env):
            self.env.load_state_dict(inner)
        self._put_back(state)
        self._outcomes.zero_()
        if self._cohorts is not None:
            self._cohorts.begin_anew()

    def stage_told(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """See ``rlcore.stage``: levels, and what parameters are at them."""
        inner, level = self._of_the_env(state), state.get(self._key)
        if not self._names or level is None:
            return told(self.env, inner)
        values = values_at(self.table, level, self.env.parameters, self._names)  # type: ignore[attr-defined]
        return {**told(self.env, inner), self._key: level, "curriculum": values}

    def stage_where(self, which: str) -> dict[str, Any]:
        """The stage at which all envs are at the hardest level (``end``), or evenly over all levels (``all``)."""
        probabilities = among(which, self.probabilities)
        learned = self._learned() | {"probabilities": probabilities.unsqueeze(0)}
        return self._inner_stage() | {self._key: spread(probabilities, self.num_envs), "_curriculum": learned}

    def _succeeded(self, step: Step, done: Tensor) -> Tensor | None:
        """Whether the episodes that ended were a success, bool ``[N]``; None where the step does not tell."""
        config = self.config
        if config.success_return is not None:
            self._returns += step.reward
            success = self._returns >= config.success_return
            self._returns.masked_fill_(done, 0.0)
            return success
        missing = self._watch.is_missing(step.log)
        if "success" in step.log:
            told = step.log["success"]
            share = told if isinstance(told, Tensor) else torch.full_like(self._returns, told)
            return (share >= config.success_share).expand_as(done)
        if missing and config.strategy != "plr":  # which scores levels by advantages
            raise ConfigError(
                f"{self._where}.success_return is not given, and the env tells of no success (Step.log['success']); "
                "give the return from which on an episode is one"
            )
        return None

    def _count(self, success: Tensor, done: Tensor, goals: Tensor | float | None) -> None:
        """Take in the outcomes of the episodes that ended ``[N]``, in few operators: they run in every step."""
        counted = done & self._whole if self._staggered else done
        if isinstance(goals, Tensor) and self.config.success_return is None:
            counted = counted & (goals > 0)  # else there was nothing to succeed in
        place = torch.add(self._counted_as, success, alpha=self._outcomes.shape[1])
        self._outcomes.view(-1).index_add_(0, place, counted.float())
        if self.config.strategy == "per_env":
            self._own.copy_(one_apart(self._own, self.level, success, counted, self.num_levels - 1))

    def _fresh(self) -> Tensor:
        """Levels of new episodes, int64 ``[N]``."""
        generator = getattr(self.env, "generator", None)
        places = torch.rand(self.num_envs, generator=generator, device=self.device)
        if self.config.strategy != "per_env":
            return drawn(self._cumulative, places)
        if self.config.uniform == 0:
            return self._own
        anywhere = (places * (self.num_levels / self.config.uniform)).long().clamp(max=self.num_levels - 1)
        return torch.where(places < self.config.uniform, anywhere, self._own)

    def _give(self, where: Tensor) -> None:
        """Set what the next episodes' levels are, and those that count at once, in envs ``where``, bool ``[N]``."""
        if self._terrain is not None:
            self._terrain.set(self._next, where)
        else:
            values = self.table.index_select(1, self._next)  # [P, N]
            if self._late is not None:
                values = values.where(self._late, self.table.index_select(1, self.level))
            rows = dict(zip(self._names, values.unbind(), strict=True))
            self.env.set_parameters(rows, where)  # type: ignore[attr-defined]

    def _move_all(self, cohorts: Cohorts, outcomes: Tensor) -> Tensor:
        """Go to another level once the cohort of the present one has decided; gives what has ended on all ranks."""
        least, most, over, told = cohorts.take(outcomes)
        here = torch.zeros_like(over).index_fill_(0, self._reached, True)  # [L]
        up, down = (here & (least >= self.config.promote)).any(), (here & (most < self.config.demote)).any()
        cohorts.renew(~here | over | up | down)  # all that follow begin after this decision
        self._reached.add_(up.long() - down.long()).clamp_(0, self.num_levels - 1)
        self._draw_by(torch.zeros_like(self._rate).index_fill_(0, self._reached, 1.0))
        return told

    def _draw_by(self, weights: Tensor) -> None:
        self.probabilities.copy_(with_floor(weights, self.config.uniform))
        self._cumulative.copy_(summed(self.probabilities))

    def _score_levels(self, num_steps: int) -> None:
        """Keep the level of each of the last T steps, for ``take_advantages``."""
        if self._played is None or len(self._played) != num_steps:
            self._played = self.level.repeat(num_steps, 1)
        self._row.zero_()

    def _take_advantages(self, advantages: Tensor, weight: Tensor) -> None:
        """Score levels by the magnitude of the advantages of a rollout; see ``rlcore.env.Scored``."""
        assert self._played is not None
        mean, number = mean_magnitudes(self._played, advantages, weight, self.num_levels)
        latest, rate = mean.to(self._score), self.config.average
        score = torch.where(self._score.isinf(), latest, (1 - rate) * self._score + rate * latest)
        self._score.copy_(torch.where(number > 0, score, self._score))
        self._age.copy_(torch.where(number > 0, 0.0, self._age + 1))
        self._row.zero_()

    def _inner_stage(self) -> dict[str, Any]:
        inner = stage_of(self.env)
        return {} if inner is None else inner["state"]

    def _of_the_env(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """What of a stage is the inner env's, which may refuse more than that."""
        own = {"_curriculum"} if self._terrain is not None else {"_curriculum", self._key}
        return {name: value for name, value in state.items() if name not in own}

    def _learned(self) -> dict[str, Tensor]:
        """What levels go by, ``[1, ...]`` each: a row for each env is what nobody is to take it for."""
        return {name: value.unsqueeze(0).clone() for name, value in self._kept.items()}

    def _put_back(self, state: Mapping[str, Any]) -> None:
        """Stand at the levels of a stage; what new episodes begin with is set for all envs."""
        saved = state.get("_curriculum", {})
        for name, mine in self._kept.items():
            value = saved.get(name, mine.unsqueeze(0))  # of older stages: as it is
            if mine.shape != value.shape[1:]:
                raise ConfigError(
                    f"{self._where}: the saved levels are {value.shape[-1]}, these {self.num_levels}; use those of the "
                    "saved run, evaluate with --stage start, or train anew with --init-from"
                )
            mine.copy_(value[0])
        self._cumulative.copy_(summed(self.probabilities))
        if self._terrain is not None:
            self.level.copy_(self._terrain.levels)
        elif self.config.strategy == "per_env" and self._key in state:
            levels = state[self._key].to(self.level).clamp(max=self.num_levels - 1)
            self.level.copy_(levels[rows_of(len(levels), self.num_envs).to(levels.device)])
        else:
            self.level.copy_(spread(self.probabilities, self.num_envs))
        self._next.copy_(self.level)
        self._own.copy_(self.level)
        self._give(torch.ones_like(self._whole))

    def _merged(self) -> list[Tensor]:
        return [*merged_in(self.env), *self._kept.values(), *([self._cohorts.sums] if self._cohorts else [])]

    def _flight(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self._of_episodes.items()}

    def _state_dict(self) -> dict[str, Any]:
        return {"env": self._stateful.state_dict(), "curriculum": self._learned() | self._flight()}

    def _load_state_dict(self, state: Mapping[str, Any]) -> None:
        if "curriculum" not in state:
            raise ValueError(f"{self._where}: the saved state is of an env without one; begin anew, or leave it out")
        self._stateful.load_state_dict(state["env"])
        saved = dict(state["curriculum"])
        if len(saved["level"]) != self.num_envs:
            raise ValueError(f"{self.task}: the saved state has {len(saved['level'])} envs, this env {self.num_envs}")
        if self._cohorts is not None and "block" in saved:  # of 0.2.0, which had no cohorts
            saved |= {f"cohort_{name}": value for name, value in self._cohorts.none_begun().items()}
            saved["outcomes"] = torch.zeros_like(self._outcomes)
        self._put_back({"_curriculum": saved})
        self._restore({name: saved[name] for name in self._of_episodes})

    def _restore(self, flight: Mapping[str, Tensor]) -> None:
        for name, value in flight.items():
            self._of_episodes[name].copy_(value)
        self._row.zero_()
        self._give(torch.ones_like(self._whole))

    @contextlib.contextmanager
    def _at_stage(self, state: Mapping[str, Any]) -> Iterator[None]:
        """See ``rlcore.stage``: levels are those of the stage as episodes begin, and when the context ends."""
        self.load_stage_dict(state)
        with self.env.at_stage(self._of_the_env(state)):  # type: ignore[attr-defined]
            yield
        self._put_back(state)

    def _hold(self) -> Callable[[], bool]:
        """See ``rlcore.stage``."""
        put_back, learned, flight = self.env.hold(), self._learned(), self._flight()  # type: ignore[attr-defined]

        def restore() -> bool:
            on = bool(put_back())
            self._put_back({"_curriculum": learned})
            self._restore(flight)
            return on

        return restore
