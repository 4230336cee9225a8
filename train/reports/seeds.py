"""Runs that differ in their seed alone, taken together: groups, and bands of confidence over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlcore.train.groups import leaves
from rlcore.train.intervals import half_width
from rlcore.train.reports.run import Numbers, RunFacts

POINTS = 400
"""Most points of a curve: more than a screen shows, and less than makes a page slow."""

SAME = {
    "seed", "name", "runs_dir", "device", "threads", "save_interval", "keep_checkpoints", "log_interval", "export",
    "report", "capture_env",
}  # fmt: skip
"""Settings that may differ within a group: none of them is part of what is tried."""


@dataclass
class Group:
    """Runs of one configuration."""

    label: str
    runs: list[RunFacts]


@dataclass
class Curve:
    """One metric of a group: points ``[P]``, NaN where there is none."""

    x: Numbers
    mean: Numbers
    low: Numbers | None = None
    high: Numbers | None = None
    """Ends of the 95% interval of the mean over seeds; None for one run."""


def grouped(runs: Sequence[RunFacts]) -> list[Group]:
    """Put runs together that differ in their seed alone, each group labelled with what sets it apart."""
    settings = [{key: value for key, value in leaves(run.config) if key not in SAME} for run in runs]
    by_settings: dict[str, list[int]] = {}
    for i, own in enumerate(settings):
        by_settings.setdefault(json.dumps(own, sort_keys=True, default=str), []).append(i)
    apart = apart_of([settings[members[0]] for members in by_settings.values()])
    groups = []
    for members in by_settings.values():
        own = settings[members[0]]
        words = [f"{key} {own.get(key, 'unset')}" for key in apart]
        first = runs[members[0]]
        label = ", ".join(words[:4]) + (f" and {len(words) - 4} more" if len(words) > 4 else "")
        groups.append(Group(label or f"{first.task}, {first.algorithm}", [runs[i] for i in members]))
    labels = [group.label for group in groups]
    for number, group in enumerate(groups, 1):
        if labels.count(group.label) > 1:  # what sets them apart is beyond what a label has room for
            group.label = f"{number}: {group.label}"
    return groups


def apart_of(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Names of settings that are not the same in all."""
    names = dict.fromkeys(key for own in settings for key, value in own.items() if value != {})
    return [key for key in names if any(own.get(key) != settings[0].get(key) for own in settings)]


def mean_interval(values: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Mean over seeds ``[R, ...]`` and the ends of its 95% interval, Student's t; these are NaN for one seed."""
    n = len(values)
    mean = values.mean(axis=0)
    half = half_width(values.std(axis=0, ddof=1), n) if n > 1 else mean * math.nan
    return mean, mean - half, mean + half


def group_curve(group: Group, metric: str) -> Curve | None:
    """The metric of a group over env steps: a run's own points, or the mean over seeds where all of them have some.

    Runs are interpolated linearly between their points, at the points of the one that has most, and not beyond what
    every run has reached.
    """
    lines = [line for run in group.runs if len((line := run_line(run, metric))[0])]
    if not lines:
        return None
    if len(lines) == 1:
        return Curve(*lines[0])
    start, end = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
    grid = max((x for x, _ in lines), key=len)
    grid = grid[(grid >= start) & (grid <= end)]
    if not len(grid):
        return None
    values = np.stack([np.interp(grid, x, y) for x, y in lines])  # [R, P]
    return Curve(grid, *mean_interval(values))


def run_line(run: RunFacts, metric: str, axis: str = "env_steps") -> tuple[Numbers, Numbers]:
    """Points of one run's metric, at most ``POINTS``: means of as many neighbouring rows as that takes."""
    columns = run.metrics.columns
    x, y = (columns.get(name, np.empty(0)) for name in (axis, metric))
    if len(x) != len(y):
        return np.empty(0), np.empty(0)
    there = np.isfinite(x) & np.isfinite(y)
    x, y = x[there], y[there]
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    if len(x) > POINTS:
        parts = np.linspace(0, len(x), POINTS + 1).astype(int)
        counts = np.diff(parts)
        x, y = (np.add.reduceat(values, parts[:-1]) / counts for values in (x, y))
    return x, y
