"""What mattered in a sweep, as one picture: how it went, importances, and a slice for each setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlcore.files import whole_file
from rlcore.train.sweep.plan import SweepPlan
from rlcore.train.sweep.space import Dimension
from rlcore.train.sweep.study import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DPI = 110
_COLUMNS = 3
_LONGEST = 18  # letters of a choice


def sweep_picture(path: Path, trials: Sequence[Trial], plan: SweepPlan, importances: Mapping[str, float]) -> None:
    """Draw a sweep.

    Args:
        path: the PNG.
        trials: in the order in which they began.
        plan: of the sweep.
        importances: of 1 in all, by setting; empty where they are not known.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    dimensions = sorted(plan.dimensions, key=lambda d: -importances.get(d.name, 0.0))
    panels = 1 + bool(importances) + len(dimensions)
    columns = min(panels, _COLUMNS)
    rows = -(-panels // columns)
    figure = Figure(figsize=(0.6 + 3.6 * columns, 0.6 + 2.8 * rows), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    every: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in every[panels:]:
        axes.set_axis_off()
    left = iter(every)
    done = [trial for trial in trials if trial.state == "done" and trial.value is not None]
    pruned = [trial for trial in trials if trial.state == "pruned" and trial.value is not None]
    _history(next(left), done, pruned, plan)
    if importances:
        _importances(next(left), importances)
    drawn: Any = None
    for dimension, axes in zip(dimensions, left, strict=False):
        drawn = _slice(axes, dimension, done, pruned, plan.metric)
    if drawn is not None and len(done) > 1:
        figure.colorbar(drawn, ax=every, label="trial", fraction=0.03, pad=0.02, ticks=_whole())
    figure.suptitle(f"{plan.metric}, {plan.better} is better; crosses: pruned, their last value", fontsize=10)
    with whole_file(path, "wb") as file:
        figure.savefig(file, format="png")


def _history(axes: Axes, done: Sequence[Trial], pruned: Sequence[Trial], plan: SweepPlan) -> None:
    x, y = _points(done)
    if len(y):
        best = np.minimum.accumulate(y) if plan.minimize else np.maximum.accumulate(y)
        axes.step(x, best, where="post", color="C3", label="best so far")
        axes.plot(x, y, "o", color="C0", markersize=4)
        axes.legend(fontsize=8, frameon=False)
    axes.plot(*_points(pruned), "x", color="0.55", markersize=5)
    axes.set_title("trials in their order", fontsize=10)
    axes.set_xlabel("trial")
    axes.xaxis.set_major_locator(_whole())
    axes.set_ylabel(plan.metric)
    axes.grid(alpha=0.2)


def _whole() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=6, integer=True)


def _points(trials: Sequence[Trial]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return np.array([trial.number for trial in trials]), np.array([trial.value for trial in trials], dtype=float)


def _importances(axes: Axes, importances: Mapping[str, float]) -> None:
    names = list(importances)[::-1]
    axes.barh(range(len(names)), [importances[name] for name in names], color="C0")
    axes.set_yticks(range(len(names)), [name.removeprefix("agent.") for name in names], fontsize=8)
    axes.set_xlim(0, 1)
    axes.set_title("importance", fontsize=10)
    axes.grid(alpha=0.2, axis="x")


def _slice(axes: Axes, dimension: Dimension, done: Sequence[Trial], pruned: Sequence[Trial], metric: str) -> Any:
    def places(trials: Sequence[Trial]) -> list[float]:
        texts = [trial.settings[dimension.name] for trial in trials]
        if dimension.choices:
            return [float(dimension.choices.index(text)) for text in texts]
        return [float(text) for text in texts]

    def known(trials: Sequence[Trial]) -> list[Trial]:
        return [trial for trial in trials if dimension.name in trial.settings]

    done, pruned = known(done), known(pruned)
    axes.plot(places(pruned), [trial.value for trial in pruned], "x", color="0.55", markersize=5)  # type: ignore[arg-type]
    numbers = [trial.number for trial in done]
    values: Any = [trial.value for trial in done]
    drawn = axes.scatter(places(done), values, c=numbers, cmap="viridis", s=22, zorder=3)
    if dimension.choices:
        texts = [text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…" for text in dimension.choices]
        axes.set_xticks(range(len(texts)), texts, fontsize=8)
        axes.set_xlim(-0.5, len(texts) - 0.5)
    elif dimension.kind == "log":
        axes.set_xscale("log")
        axes.set_xlim(dimension.low / 1.1, dimension.high * 1.1)
    else:
        edge = 0.03 * (dimension.high - dimension.low)
        axes.set_xlim(dimension.low - edge, dimension.high + edge)
        if dimension.kind == "int":
            axes.xaxis.set_major_locator(_whole())
    axes.set_title(dimension.name, fontsize=10)
    axes.set_ylabel(metric)
    axes.grid(alpha=0.2)
    return drawn
