"""Learning curves of a page: what its program draws, and what stands there without it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlcore.train.reports.markup import Html, folded, joined, tag
from rlcore.train.reports.run import Numbers, RunFacts
from rlcore.train.reports.seeds import Curve, Group, group_curve, run_line

FIRST = ("eval", "rollout", "env", "curriculum")
"""Beginnings of metrics that are shown first; the others are folded."""

NAMES = {
    "eval": "Evaluations", "rollout": "Training episodes", "env": "Env", "curriculum": "Curriculum", "policy": "Policy",
    "loss": "Losses", "time": "Time",
}  # fmt: skip

UNSMOOTHED = "eval"
"""Metrics that begin so are means of many episodes with one policy, and few."""

FEWEST = 25
"""Points of a curve that is smoothed: in a shorter one the average would be late for most of it."""


def figure_text(value: float | None) -> str:
    """A number for people."""
    return "none" if value is None or not math.isfinite(value) else f"{value:.4g}"


def run_curves(run: RunFacts) -> tuple[Html, dict[str, Any]]:
    """Curves of one run, over env steps or hours."""
    steps, seconds = run_line(run, "time/total_s")

    def lines(metric: str) -> list[dict[str, Any]]:
        x, y = run_line(run, metric)
        if not len(x):
            return []
        hours = {"t": _plain(np.interp(x, steps, seconds / 3600))} if len(steps) else {}
        return [{"label": "", **_line(Curve(x, y)), **hours}]

    return _section(run.metrics.names, lines, run, hours=bool(len(steps)))


def group_curves(groups: Sequence[Group]) -> tuple[Html, dict[str, Any]]:
    """Curves of several runs, over env steps: a line and a band for each group."""

    def lines(metric: str) -> list[dict[str, Any]]:
        found = ((i, group, group_curve(group, metric)) for i, group in enumerate(groups))
        return [{"label": g.label, "color": i, **_line(curve)} for i, g, curve in found if curve is not None]

    metrics = dict.fromkeys(name for group in groups for run in group.runs for name in run.metrics.names)
    return _section(list(metrics), lines, None, hours=False)


def _section(
    metrics: Sequence[str], lines: Callable[[str], list[dict[str, Any]]], run: RunFacts | None, hours: bool
) -> tuple[Html, dict[str, Any]]:
    charts: list[dict[str, Any]] = []
    by_kind: dict[str, list[Html]] = {}
    for metric in metrics:
        drawn = lines(metric)
        if not drawn:
            continue
        kind = metric.partition("/")[0]
        last = "" if run is None else f"last {figure_text(run.metrics.last(metric))}"
        missing = 0 if run is None else run.metrics.not_finite.get(metric, 0)
        note = f"{missing} value{'s' * (missing != 1)} not finite" if missing else ""
        caption = tag("figcaption", tag("b", metric), tag("span", last), *([tag("em", note)] if note else []))
        by_kind.setdefault(kind, []).append(tag("figure", caption, class_="chart", data_chart=len(charts)))
        smooth = kind != UNSMOOTHED and max(len(line["x"]) for line in drawn) >= FEWEST
        charts.append({"name": metric, "lines": drawn, "smooth": smooth})
    if not charts:
        return tag("p", "There are no curves."), {"charts": []}
    order = [kind for kind in FIRST if kind in by_kind]
    order += sorted(kind for kind in by_kind if kind not in FIRST)
    parts = [
        folded(NAMES.get(kind, kind), tag("div", *by_kind[kind], class_="charts"), opened=kind in FIRST)
        for kind in order
    ]
    axis = tag("label", "over ", tag("select", tag("option", "env steps"), tag("option", "hours"), id="axis"))
    smoothing = tag(
        "label",
        "smoothing ",
        Html('<input type="range" id="smoothing" min="0" max="0.95" step="0.05" value="0.5">'),
        tag("output", "0.50", id="weight"),
    )
    controls = tag("div", smoothing, axis if hours else "", class_="controls")
    missing_program = tag("noscript", tag("p", "The curves are drawn by JavaScript; metrics.csv has their numbers."))
    return joined([controls, missing_program, *parts]), {"charts": charts}


def _line(curve: Curve) -> dict[str, Any]:
    line = {"x": _plain(curve.x, 9), "y": _plain(curve.mean)}
    if curve.low is not None and curve.high is not None:
        line |= {"low": _plain(curve.low), "high": _plain(curve.high)}
    return line


def _plain(values: Numbers, digits: int = 5) -> list[float | int | None]:
    """Numbers for JSON, with as many digits as can be seen."""
    rounded = (float(f"{value:.{digits}g}") for value in values.tolist())
    return [None if not math.isfinite(v) else int(v) if v.is_integer() and abs(v) < 1e15 else v for v in rounded]
