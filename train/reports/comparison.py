"""The page of several runs: those that differ in their seed alone are taken together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rlcore.files import whole_file
from rlcore.train.groups import leaves
from rlcore.train.reports.curves import figure_text, group_curves
from rlcore.train.reports.markup import Html, document, joined, table, tag
from rlcore.train.reports.page import duration, footer, guarded, notes_of, value_text
from rlcore.train.reports.run import RunFacts, read_run
from rlcore.train.reports.seeds import SAME, Group, apart_of, grouped, mean_interval

COLORS = 8
"""That page.css has; further groups take them again, dashed."""

BANDS = (
    "Lines are means over seeds; bands are 95% intervals of the mean (Student's t), as far as every seed has come. "
    "Ends of a band are smoothed as its line is, which makes it no narrower than that of the smoothed runs."
)


def write_comparison(runs: Sequence[Path], output: Path) -> Path:
    """Write a page that compares runs; returns where it is.

    Raises:
        ConfigError: one of them has no config.yaml, or a damaged one.
        OSError: it cannot be written.
    """
    page = comparison_page([read_run(run) for run in runs])
    with whole_file(output) as file:
        file.write(page)
    return output


def comparison_page(runs: Sequence[RunFacts]) -> str:
    """The page, as text."""
    groups = grouped(runs)
    curves, data = group_curves(groups)
    tasks = ", ".join(dict.fromkeys(run.task for run in runs))
    notes = [f"{run.name}: {note}" for run in runs for note in run.notes]
    parts = [
        tag("h1", f"{tasks}: {len(runs)} runs compared"),
        tag("p", f"{len(groups)} configuration{'s' * (len(groups) != 1)}", class_="soft"),
        notes_of(notes),
        tag("h2", "Configurations"),
        guarded("configurations", lambda: _groups(groups)),
        tag("h2", "Learning curves"),
        tag("p", BANDS, class_="soft") if any(len(group.runs) > 1 for group in groups) else "",
        curves,
        tag("h2", "Runs"),
        guarded("runs", lambda: _runs(groups)),
        guarded("settings", lambda: _settings(groups)),
        footer(),
    ]
    return document(f"{tasks}: {len(runs)} runs", *parts, data=data)


def _key(number: int, group: Group) -> Html:
    again = " again" if number >= COLORS else ""
    return joined([tag("span", class_=f"key c{number % COLORS}{again}"), group.label])


def _groups(groups: Sequence[Group]) -> Html:
    rows = []
    for number, group in enumerate(groups):
        seeds = ", ".join(str(run.config.get("seed", "?")) for run in group.runs)
        rows.append([
            _key(number, group), len(group.runs), seeds, _over_seeds(group, "return_mean", "eval/return"),
            _over_seeds(group, "success", "eval/success", share=True),
        ])  # fmt: skip
    about = "Of eval.json, else the last evaluation of the training; in brackets 95% intervals over seeds, Student's t."
    twice = [group.label for group in groups if len({run.config.get("seed") for run in group.runs}) < len(group.runs)]
    if twice:
        about += f" A seed comes twice in {'; '.join(twice)}: such runs are not independent, and intervals too narrow."
    head = ["", "runs", "seeds", "evaluated return", "evaluated success"]
    return joined([table(head, rows), tag("p", about, class_="soft")])


def _score(run: RunFacts, key: str, metric: str) -> float | None:
    value = run.evaluation.get(key)
    return float(value) if isinstance(value, (int, float)) else run.metrics.last(metric)


def _over_seeds(group: Group, key: str, metric: str, share: bool = False) -> str:
    values = [value for run in group.runs if (value := _score(run, key, metric)) is not None]
    if not values:
        return ""
    mean, low, high = (float(value) for value in mean_interval(np.array(values)))

    def text(value: float) -> str:
        return f"{100 * value:.3g} %" if share else figure_text(value)

    missing = f", of {len(values)} runs" if len(values) < len(group.runs) else ""
    return text(mean) + (f" ({text(low)} to {text(high)})" if math.isfinite(low) else "") + missing


def _runs(groups: Sequence[Group]) -> Html:
    rows = []
    for number, group in enumerate(groups):
        for run in group.runs:
            steps, seconds = run.metrics.last("env_steps"), run.metrics.last("time/total_s")
            success = _score(run, "success", "eval/success")
            rows.append([
                _key(number, group), tag("code", str(run.path)), run.config.get("seed", "?"),
                figure_text(_score(run, "return_mean", "eval/return")),
                "" if success is None else f"{100 * success:.3g} %",
                "" if steps is None else f"{steps:,.0f}", "" if seconds is None else duration(seconds),
                run.machine.get("gpu", run.machine.get("cpu", "")),
            ])  # fmt: skip
    head = ["", "run", "seed", "return", "success", "env steps", "time", "on"]
    return table(head, rows, text_columns=2)


def _settings(groups: Sequence[Group]) -> Html:
    settings = [dict(leaves(group.runs[0].config)) for group in groups]
    apart = [key for key in apart_of(settings) if key not in SAME]
    if not apart:
        return Html()
    rows = [[tag("code", key), *(value_text(own.get(key, "unset")) for own in settings)] for key in apart]
    head = ["setting", *(_key(number, group) for number, group in enumerate(groups))]
    return joined([tag("h2", "Settings that differ"), table(head, rows, text_columns=len(head))])
