"""What a sweep leaves: a table, ``sweep.csv``, pictures, a page, and the best settings as a file to train with."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from rlcore.config import load_yaml
from rlcore.files import whole_file
from rlcore.train.conclude import say
from rlcore.train.ending import describe
from rlcore.train.sweep.page import sweep_page
from rlcore.train.sweep.pictures import sweep_picture
from rlcore.train.sweep.plan import SweepPlan
from rlcore.train.sweep.runner import short
from rlcore.train.sweep.study import Study, Trial

TABLE_FILE, PICTURE_FILE, PAGE_FILE, BEST_FILE = "sweep.csv", "sweep.png", "sweep.html", "best.yaml"
"""In the folder of a sweep."""

MOST_ROWS = 20
"""Trials of the printed table."""

_OF_THE_SWEEP = ("name", "runs_dir")  # settings that trials have of it


def ordered(trials: Sequence[Trial], minimize: bool) -> list[Trial]:
    """Trials, the best first; those without a value of their own come last, as they began."""

    def rank(trial: Trial) -> tuple[int, float]:
        value = trial.value if trial.value is not None else 0.0
        kind = {"done": 0, "pruned": 1}.get(trial.state, 2)
        return kind, 0.0 if kind == 2 else value if minimize else -value

    return sorted(trials, key=rank)


def write_table(path: Path, trials: Sequence[Trial], plan: SweepPlan) -> None:
    """Write one row a trial, in the order in which they began."""
    seeds = [str(plan.seed + i) for i in range(plan.seeds)]
    head = ["trial", "state", plan.metric, *plan.space]
    head += [f"seed {seed}" for seed in seeds] if plan.seeds > 1 else []
    head += ["iteration", "seconds", "runs", "why"]
    with whole_file(path) as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for trial in trials:
            row: list[object] = [trial.number, trial.state, _cell(trial.value)]
            row += [trial.settings.get(name, "") for name in plan.space]
            row += [_cell(trial.values.get(seed)) for seed in seeds] if plan.seeds > 1 else []
            row += [_cell(trial.iteration), _cell(trial.seconds), " ".join(trial.runs), trial.why]
            writer.writerow(row)


def _cell(value: float | None) -> object:
    return "" if value is None else value


def write_best(folder: Path, trial: Trial) -> Path | None:
    """Write the settings of a trial for ``rlcore train --config``; returns where, None where its run is gone."""
    source = next((folder / run / "config.yaml" for run in trial.runs), None)
    if source is None or not source.is_file():
        return None
    settings = {key: value for key, value in load_yaml(source).items() if key not in _OF_THE_SWEEP}
    with whole_file(folder / BEST_FILE) as file:
        file.write(f"# Trial {trial.number} of {folder.name}, the best so far.\n")
        file.write(yaml.safe_dump(settings, sort_keys=False))
    return folder / BEST_FILE


def conclude_sweep(folder: Path, plan: SweepPlan, study: Study, console: Console) -> None:
    """Write and print everything; a picture or page that cannot be made takes nothing from the rest."""
    trials, best = study.trials(), study.best()
    write_table(folder / TABLE_FILE, trials, plan)
    _print(ordered(trials, plan.minimize), plan, console)
    file = None if best is None else write_best(folder, best)
    try:
        importances = study.importances()
        sweep_picture(folder / PICTURE_FILE, trials, plan, importances)
        page = sweep_page(folder, plan, ordered(trials, plan.minimize), importances, folder / PICTURE_FILE)
        with whole_file(folder / PAGE_FILE) as output:
            output.write(page)
    except Exception as error:
        say(console, f"note         pictures and page could not be written: {describe(error)}")
    else:
        for name, share in importances.items():
            say(console, f"importance   {share:>4.0%} {name}")
        say(console, f"pictures     {folder / PICTURE_FILE}, {folder / PAGE_FILE}")
    say(console, f"trials       {folder / TABLE_FILE}")
    if best is None:
        say(console, "best         none: no trial is done")
        return
    say(console, f"best         trial {best.number}, {plan.metric} {best.value:.6g}: {folder / best.runs[0]}")
    if file is not None:
        say(console, f"to train it  rlcore train --config {file}")


def _print(trials: Sequence[Trial], plan: SweepPlan, console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("trial", justify="right")
    table.add_column(plan.metric, justify="right")
    for name in plan.space:
        table.add_column(name.removeprefix("agent."), justify="right")
    table.add_column("state")
    for trial in trials[:MOST_ROWS]:
        value = "" if trial.value is None else f"{trial.value:.4g}"
        settings = [short(trial.settings.get(name, "")) for name in plan.space]
        table.add_row(str(trial.number), value, *settings, trial.state)
    console.print(table)
    if len(trials) > MOST_ROWS:
        say(console, f"             and {len(trials) - MOST_ROWS} more")
