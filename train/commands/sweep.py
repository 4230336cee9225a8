"""``rlcore sweep``: many runs of ``rlcore train`` over a small space of settings."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rlcore.train import arguments
from rlcore.train.arguments import Job, UsageError
from rlcore.train.groups import flag_of

if TYPE_CHECKING:
    from rlcore.train.config import TrainConfig
    from rlcore.train.sweep.plan import SweepPlan


@dataclass(frozen=True, kw_only=True)
class SweepArguments:
    """Train many times over a space of settings, and find which of them do best: rlcore sweep --task TASK --sweep ...

    Every setting of rlcore train may be given, too, and is the same for all trials; see rlcore train --help. A sweep
    that was interrupted goes on with the same command, where that has a --name, or with --resume DIR.
    """

    sweep: tuple[str, ...] = ()
    """Settings and what they may be: agent.learning_rate=log:1e-4:1e-2 agent.num_epochs=int:2:8
    agent.entropy_coef=float:0:0.01 agent.gamma=choice:0.98,0.99"""
    space: Path | None = None
    """YAML file of the same, a line 'agent.gamma: [0.98, 0.99]' or 'agent.num_epochs: int:2:8' each."""
    metric: str = "eval/return"
    """What trials are compared by: eval/return, eval/success, or any column of metrics.csv."""
    minimize: bool = False
    """Less of the metric is better."""
    trials: int = 20
    """Trials in all."""
    parallel: int = 1
    """Runs side by side, as processes on one machine and one device."""
    seeds: int = 1
    """Runs of each trial, one after the other, with as many seeds from --seed on; the mean counts."""
    prune: bool = True
    """Give a trial up that is worse at an evaluation than the median of the trials before."""
    name: str | None = None
    """Of the sweep's folder; None: the time."""
    sweeps_dir: Path = Path("sweeps")
    """Folder that holds the folders of sweeps."""
    resume: Path | None = None
    """Folder of a sweep to go on with; --trials and --parallel may be others."""


_SWITCHES = ("minimize", "no_minimize", "prune", "no_prune")
_NAMES = (*SweepArguments.__dataclass_fields__, *_SWITCHES)
_KEPT = {"resume", "trials", "parallel"}  # what may go with --resume


def sweep_command(words: Sequence[str]) -> Job:
    """Read the words of ``rlcore sweep``."""
    if arguments.asks_help(words):
        arguments.read(words, SweepArguments, "rlcore sweep")
        return lambda: 0
    own, dimensions, rest = parted(words)
    given = {re.sub("^no_", "", word.partition("=")[0].removeprefix("--").replace("-", "_")) for word in own}
    read = arguments.read(own, SweepArguments, "rlcore sweep")
    assert read is not None
    args = read[0]

    from rlcore.train.sweep.plan import read_plan
    from rlcore.train.sweep.study import require_optuna

    require_optuna()
    if args.resume is not None:
        extra = [*rest, *(flag_of(name) for name in sorted(given - _KEPT)), *(f"--sweep {word}" for word in dimensions)]
        if extra:
            raise UsageError(
                f"{extra[0]} cannot go with --resume: a sweep keeps its settings but --trials and --parallel; leave it "
                "out"
            )
        changed = {name: getattr(args, name) for name in ("trials", "parallel") if name in given}
        return _job(args.resume, replace(read_plan(args.resume), **changed))
    return _begin(args, dimensions, rest)


def parted(words: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """The sweep's own words but ``--sweep``, each ``--name=value``; the dimensions; and the words of ``rlcore train``.

    Raises:
        UsageError: a value is missing.
    """
    from rlcore.names import nearest_names
    from rlcore.train.config import TrainConfig
    from rlcore.train.sweep.space import WORD

    own: list[str] = []
    dimensions: list[str] = []
    rest: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        found = re.fullmatch(r"(?:--)?([\w-]+)=(.*)|--([\w-]+)", word, re.DOTALL)
        key = (found[1] or found[3]).replace("-", "_") if found is not None else ""
        if found is None or key not in _NAMES:
            near = nearest_names(key, [*_NAMES, *(own.name for own in fields(TrainConfig))], 1, cutoff=0.75)
            if word.startswith("--") and near and near[0] in _NAMES:
                raise UsageError(f"unknown setting {word}; did you mean {flag_of(near[0])}?")
            rest.append(word)
        elif key in _SWITCHES:
            own.append(word)
        else:
            value = found[2] if found[1] else left.pop(0) if left and not left[0].startswith("--") else None
            if not value:
                raise UsageError(f"{flag_of(key)} needs a value; write {flag_of(key)} VALUE")
            if key != "sweep":
                own.append(f"--{key}={value}")
                continue
            dimensions.append(value)
            while left and WORD.fullmatch(left[0]) and not left[0].startswith("--"):
                dimensions.append(left.pop(0))
    return own, dimensions, rest


def _begin(args: SweepArguments, dimensions: Sequence[str], rest: Sequence[str]) -> Job:
    from rlcore.config import ConfigError
    from rlcore.train.config import LONGEST_NAME, safe_name
    from rlcore.train.stop import check_evaluated
    from rlcore.train.sweep.plan import SweepPlan, continued
    from rlcore.train.sweep.space import OWN, forms_in

    if args.metric.startswith("eval/"):
        check_evaluated("--metric", args.metric)
    space = forms_in(dimensions, args.space)
    seed, words = _seed_in(rest)
    for word in words:
        key = word.partition("=")[0].removeprefix("--").replace("-", "_")
        if key in space and (word.startswith("--") or "=" in word):
            raise ConfigError(f"{flag_of(key)} is swept and given; leave one out")
        if key == "runs_dir":
            raise ConfigError(f"--runs-dir is of no use in a sweep: {OWN[key]}; --sweeps-dir names another place")
    name = args.name or time.strftime("%Y%m%d-%H%M%S")
    if safe_name(name) != name or len(name) > LONGEST_NAME:
        raise ConfigError(f"--name: '{name}' is not possible; use letters, digits, '.', '_' and '-' only")
    plan = SweepPlan(
        space=space, words=tuple(words), metric=args.metric, minimize=args.minimize, seed=seed, seeds=args.seeds,
        prune=args.prune, trials=args.trials, parallel=args.parallel,
    )  # fmt: skip
    folder = args.sweeps_dir / name
    plan = continued(folder, plan)
    return _job(folder, plan, _checked(plan))


def _seed_in(words: Sequence[str]) -> tuple[int, list[str]]:
    """The seed among the words, 1 where there is none, and the words without it."""
    seed, rest, left = "1", [], list(words)
    while left:
        word = left.pop(0)
        found = re.fullmatch(r"(?:--)?seed=(.*)|--seed", word, re.DOTALL)
        if found is None:
            rest.append(word)
        elif found[1] is not None:
            seed = found[1]
        else:
            seed = left.pop(0) if left else ""
    if not seed.isdecimal():
        raise UsageError(f"--seed: '{seed}' is not a whole number; write --seed 1")
    return int(seed), rest


def _checked(plan: SweepPlan) -> list[str]:
    """Refuse settings that no run can have before the first one begins; those of simulators are checked by their runs.

    Returns:
        What is to be said of them.

    Raises:
        ValueError: the first that is wrong, as ``rlcore train`` says it.
    """
    from rlcore.envs.launch import SIMULATORS, simulator_of
    from rlcore.train.commands.launching import task_in
    from rlcore.train.commands.train import settings_in
    from rlcore.train.elastic import processes_in

    words = processes_in(plan.words)[1]
    if simulator_of(task_in(words)) in SIMULATORS:
        return []
    read = settings_in(words)
    for dimension in plan.dimensions:
        for value in dimension.ends:
            settings_in([*words, f"--{dimension.name}={value}"])
    return [] if read is None or not plan.prune else _late(read[1], plan.metric)


def _late(config: TrainConfig, metric: str) -> list[str]:
    """What is to be said where trials are seen too rarely to be given up."""
    every = config.eval_interval if metric.startswith("eval/") else config.log_interval
    if not 0 < 2 * every <= config.num_iterations:
        return [f"no trial is given up: there are fewer than two values of {metric} before its end"]
    if every % config.log_interval:
        return [
            f"evaluations, every {every} iterations, are seen when metrics.csv has a row, every {config.log_interval}; "
            f"--log-interval {every} gives trials up as soon as it can be told"
        ]
    return []


def _job(folder: Path, plan: SweepPlan, notes: Sequence[str] = ()) -> Job:
    def job() -> int:
        from rich.console import Console

        from rlcore.train.conclude import say
        from rlcore.train.ending import standard_output
        from rlcore.train.run import RunFolder
        from rlcore.train.sweep.plan import write_plan
        from rlcore.train.sweep.results import TABLE_FILE, conclude_sweep, write_table
        from rlcore.train.sweep.runner import Runner
        from rlcore.train.sweep.study import Study

        console = Console(file=standard_output())
        write_plan(folder, plan)
        own = RunFolder(folder)
        own.take_over()  # no other process runs the same sweep
        try:
            study = Study(folder, plan)
            say(console, f"sweep        {folder}: {plan.trials} trials of {plan.metric}, {plan.better} is better")
            for note in notes:
                say(console, f"note         {note}")
            if study.begun:
                say(console, f"resumed      after {study.begun} trial{'s' * (study.begun > 1)}")
            runner = Runner(folder, plan, study, console)
            runner.on_end = lambda: write_table(folder / TABLE_FILE, study.trials(), plan)
            stopped = runner.train()
            conclude_sweep(folder, plan, study, console)
        finally:
            own.unlock()
        if stopped is not None:
            say(console, f"stopped; to go on: rlcore sweep --resume {folder}")
            return 128 + stopped
        return 0

    return job
