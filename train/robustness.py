"""A policy under disturbances: types and magnitudes are rows of one batch of envs, set before their episodes begin."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor

from rlcore.agent import Policy
from rlcore.env import Pushable, Randomizable, VecEnv, is_capturable, is_image, is_randomizable, name_of
from rlcore.stage import Stage
from rlcore.train.degradation import nominal_band, recovery_steps
from rlcore.train.evaluate import ActionFunction, Rows, run_episodes
from rlcore.train.robustness_plan import PUSH, Cell, Plan
from rlcore.train.shared_draws import SharedDraws
from rlcore.types import Step


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The episodes of one cell, ``[E]`` each; NaN where one does not count."""

    cell: Cell
    returns: Tensor  # float64
    lengths: Tensor  # int64, steps
    successes: Tensor | None = None  # float64, goals reached
    goals: Tensor | None = None  # float64
    recovery: Tensor | None = None  # float64, steps after a push, infinite where there is none; see recovery_steps
    rewards: Tensor = field(default_factory=lambda: torch.empty(0))  # [T, E] from the step of a push on

    @property
    def finished(self) -> Tensor:
        """Bool ``[E]``, which episodes count."""
        return self.returns.isfinite()


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a policy gave in all cells of a plan."""

    nominal: Outcome
    outcomes: tuple[Outcome, ...]
    """Of ``Plan.cells``, in their order."""
    paired: bool
    """Whether episode i of every cell had the same random numbers, as far as the env draws them in step."""
    batch: Literal["one", "cells"]
    push_step: int
    """Of an episode; step before which robots are pushed."""
    nominal_differs: float | None = None
    """Largest difference of a return between the nominal evaluation and the nominal cell of the batch."""
    unshared: tuple[str, ...] = ()
    """Functions of PyTorch that drew for the batch in a way that cells cannot share."""


def measure(
    bare: VecEnv,
    disturbed: Callable[[int | None, dict[str, Tensor]], VecEnv],
    policy: Policy | ActionFunction,
    plan: Plan,
    seed: int,
    stage: Stage | None = None,
    *,
    scales: dict[str, Tensor] | None = None,
    batch: Literal["auto", "one", "cells"] = "auto",
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Measured:
    """Evaluate a policy in the nominal env, and in every cell of a plan.

    The nominal figures are those of ``evaluate`` of the bare env. In ``one`` batch all cells, and a nominal one, are
    blocks of one batch of envs; where the env draws its numbers so that a CUDA graph could record it, the blocks share
    them (``SharedDraws``). As ``cells`` they are evaluated one after the other, from the same seed; which takes longer,
    and is paired wherever the env draws the same numbers in each step whatever happened. ``auto`` is ``one`` where
    draws are shared, or on a GPU, and ``cells`` for several tasks, whose envs have rows of their own in a batch.

    Args:
        bare: E copies of the task; it is reset here.
        disturbed: makes the env with the disturbances of the plan, of that many rows, or around ``bare`` for None; with
            ``scales``.
        policy: a policy module, or a function from observations to actions.
        plan: from ``planned``.
        seed: of the episodes.
        stage: where the env's curricula stand.
        scales: deviations of observations by group, ``[O]``; None takes those of the nominal episodes.
        batch: see above.
        on_step: called after each step with the steps that were done and those of all, at most.
    """
    episodes, cells = bare.num_envs, plan.cells
    shared = is_capturable(bare)
    several = len(getattr(bare, "tasks", ())) > 1  # then rows of a batch are in the order of tasks, not of cells
    if several and batch == "one":
        raise ValueError(f"{name_of(bare)}: several tasks are measured cell by cell; leave --batch one out")
    if batch == "auto":
        batch = "one" if (shared or bare.device.type == "cuda") and not several else "cells"
    clock = _Clock(bare.max_episode_length * (2 if batch == "one" else 1 + len(cells)), on_step)
    kept: list[Tensor] = []
    spread = _Spread(bare)

    def keep(_: int, step: Step, running: Tensor) -> None:
        kept.append(step.reward.double().masked_fill(~running, math.nan).cpu())
        if scales is None:
            spread.add(step, running)
        clock.tick()

    rows = run_episodes(bare, policy, seed, stage, after=keep)
    lengths = rows.lengths[rows.finished].double()
    push_step = int(lengths.mean() / 2) if len(lengths) else 0
    nominal = _outcome({}, rows, slice(0, episodes), torch.stack(kept[push_step:]))
    run = _Runner(policy, plan, seed, stage, episodes, push_step, clock)
    scales = spread.deviations() if scales is None else scales
    differs: float | None = None
    unshared: tuple[str, ...] = ()
    if batch == "one":
        env = disturbed(episodes * (len(cells) + 1), scales)
        draws = SharedDraws(len(cells) + 1, episodes) if shared else None
        with contextlib.closing(env), draws or contextlib.nullcontext():
            again, *outcomes = run(env, [{}, *cells])
        if draws is not None:
            unshared = tuple(sorted(draws.unshared))
        paired = shared and not unshared
        if paired:
            alike = again.finished | nominal.finished  # else both are NaN
            differs = float((again.returns - nominal.returns).abs().nan_to_num(math.inf).where(alike, 0.0).max())
    else:
        env = disturbed(None, scales)
        outcomes = [run(env, [cell])[0] for cell in cells]
        paired = True
    if any(PUSH in cell for cell in cells):
        edge, width = nominal_band(torch.stack(kept))
        back = partial(_with_recovery, nominal=nominal, edge=edge[push_step:], width=width, paired=paired)
        outcomes, nominal = [back(o) if PUSH in o.cell else o for o in outcomes], back(nominal)
    return Measured(
        nominal=nominal, outcomes=tuple(outcomes), paired=paired, batch=batch, push_step=push_step,
        nominal_differs=differs, unshared=unshared,
    )  # fmt: skip


class _Clock:
    """Counts steps."""

    def __init__(self, total: int, on_step: Callable[[int, int], None]) -> None:
        self._total, self._on_step, self._done = total, on_step, 0

    def tick(self) -> None:
        self._done += 1
        self._on_step(self._done, self._total)


class _Spread:
    """Deviations of an env's vector observations."""

    def __init__(self, env: VecEnv) -> None:
        sizes = {group: len(s.low) for group, s in env.observation_spaces.items() if not is_image(s)}
        self._sums = {g: torch.zeros(3, n, dtype=torch.float64, device=env.device) for g, n in sizes.items()}

    def add(self, step: Step, running: Tensor) -> None:
        for group, sums in self._sums.items():
            obs = step.obs[group].double()  # [N, O]
            there = running[:, None] & obs.isfinite()  # what one env breaks is not the scale of all
            obs = obs.where(there, 0.0)
            sums += torch.stack((there.sum(0), obs.sum(0), obs.square().sum(0)))

    def deviations(self) -> dict[str, Tensor]:
        found = {}
        for group, (number, total, squares) in self._sums.items():
            mean = total / number
            found[group] = (squares / number - mean.square()).clamp(min=0).sqrt().float()
        return found


class _Runner:
    """Evaluates cells as blocks of a batch."""

    def __init__(
        self,
        policy: Policy | ActionFunction,
        plan: Plan,
        seed: int,
        stage: Stage | None,
        episodes: int,
        push_step: int,
        clock: _Clock,
    ) -> None:
        self._policy, self._plan, self._seed, self._stage = policy, plan, seed, stage
        self._episodes, self._push_step, self._clock = episodes, push_step, clock

    def __call__(self, env: VecEnv, cells: Sequence[Cell]) -> list[Outcome]:
        """What comes of each cell; ``env`` has E rows for each of them."""
        count, e, device = len(cells), self._episodes, env.device
        blocks = [self._values(env, cell) for cell in cells]
        names = dict.fromkeys(name for block in blocks for name in block)
        everywhere = torch.ones(count * e, dtype=torch.bool, device=device)
        if names:
            known = cast(Randomizable, env)
            nominal = {name: torch.full((e,), known.parameters[name].nominal) for name in names}
            values = {name: torch.cat([block.get(name, nominal[name]) for block in blocks]) for name in names}
            known.set_parameters({name: value.to(device) for name, value in values.items()}, everywhere)
        speed = torch.cat([torch.full((e,), cell.get(PUSH, 0.0)) for cell in cells]).to(device)  # [N]
        pushed, kept = any(PUSH in cell for cell in cells), []

        def push(t: int) -> None:
            if t == self._push_step and pushed:
                cast(Pushable, env).push(speed)

        def keep(t: int, step: Step, running: Tensor) -> None:
            if t >= self._push_step and pushed:
                kept.append(step.reward.double().masked_fill(~running, math.nan).cpu())
            self._clock.tick()

        rows = run_episodes(env, self._policy, self._seed, self._stage, before=push, after=keep)
        if names:
            known.set_parameters({n: v.repeat(count).to(device) for n, v in nominal.items()}, everywhere)
        rewards = torch.stack(kept) if kept else torch.empty(0, count * e)
        return [_outcome(cell, rows, slice(i * e, (i + 1) * e), rewards) for i, cell in enumerate(cells)]

    def _values(self, env: VecEnv, cell: Cell) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        parameters = env.parameters if is_randomizable(env) else {}
        for name, magnitude in cell.items():
            sweep = self._plan.by_name[name]
            generator = torch.Generator().manual_seed(self._seed)
            draws = torch.rand(max(1, len(sweep.parameters)), self._episodes, generator=generator)
            found |= sweep.values(magnitude, parameters, 2 * draws - 1)
        return found


def _with_recovery(outcome: Outcome, nominal: Outcome, edge: Tensor, width: float, paired: bool) -> Outcome:
    """An outcome with the steps that it took each episode to come back from a push; NaN where it was over already."""
    steps = min(len(outcome.rewards), len(edge))
    rewards = outcome.rewards[:steps]
    if not steps:
        return outcome
    settled = recovery_steps(rewards, edge[:steps], width, nominal.rewards[:steps] if paired else None)
    return replace(outcome, recovery=settled.where(rewards[0].isfinite(), math.nan))


def _outcome(cell: Cell, rows: Rows, part: slice, rewards: Tensor) -> Outcome:
    return Outcome(
        cell=cell,
        returns=rows.returns[part].where(rows.finished[part], math.nan),
        lengths=rows.lengths[part],
        successes=None if rows.successes is None else rows.successes[part],
        goals=None if rows.goals is None else rows.goals[part],
        rewards=rewards[:, part],
    )
