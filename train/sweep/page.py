"""The page of a sweep: its best trial, its picture and all its trials, in one file that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rlcore.train.reports.curves import figure_text
from rlcore.train.reports.markup import document, picture, table, tag
from rlcore.train.reports.page import duration, footer, tile
from rlcore.train.sweep.plan import SweepPlan
from rlcore.train.sweep.runner import short
from rlcore.train.sweep.study import Trial


def sweep_page(
    folder: Path, plan: SweepPlan, trials: Sequence[Trial], importances: Mapping[str, float], image: Path
) -> str:
    """The page, as text.

    Args:
        folder: of the sweep.
        plan: of the sweep.
        trials: the best first.
        importances: of 1 in all, by setting.
        image: the picture that is put into the page.
    """
    states = [trial.state for trial in trials]
    best = next((trial for trial in trials if trial.state == "done"), None)
    tiles = [tile(state, states.count(state)) for state in ("done", "pruned", "failed") if state in states]
    if best is not None:
        tiles.insert(0, tile(f"best {plan.metric}, trial {best.number}", figure_text(best.value)))
    space = [
        [tag("code", name), form, f"{importances[name]:.0%}" if name in importances else ""]
        for name, form in plan.space.items()
    ]
    seeds = [str(plan.seed + i) for i in range(plan.seeds)]
    shown = seeds if plan.seeds > 1 else []
    rows = [
        [
            trial.number, trial.state, figure_text(trial.value) if trial.value is not None else "",
            *(short(trial.settings.get(name, "")) for name in plan.space),
            *(figure_text(trial.values[seed]) if seed in trial.values else "" for seed in shown),
            "" if trial.seconds is None else duration(trial.seconds), trial.why or " ".join(trial.runs),
        ]
        for trial in trials
    ]  # fmt: skip
    head = ["trial", "state", plan.metric, *plan.space, *(f"seed {seed}" for seed in shown), "time", "run, or why not"]
    parts = [
        tag("h1", f"Sweep {folder.name}"),
        tag("p", tag("code", "rlcore train " + " ".join(plan.words)), class_="soft"),
        tag("div", *tiles, class_="tiles"),
        tag("h2", "What mattered"),
        table(["setting", "space", "importance"], space, text_columns=2),
        picture(image.name, "image/png", image.read_bytes()),
        tag("h2", "Trials"),
        table(head, rows, text_columns=2),
        footer(),
    ]
    return document(f"Sweep {folder.name}", *parts, data={"charts": []})
