"""Pictures of robustness: a heat map, curves, and the grid of types that are tried together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlcore.files import whole_file
from rlcore.train.robustness_report import Figures, percent, score_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = "RdYlBu"  # told apart with every kind of color vision
_DPI = 110


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)  # type: ignore[union-attr, call-arg]
    return figure


def _save(figure: Figure, path: Path) -> None:
    with whole_file(path, "wb") as file:
        figure.savefig(file, format="png")


def heat_map(path: Path, policies: Sequence[Figures], success: bool, task: str) -> None:
    """Types by magnitudes, one panel a policy; each cell has its magnitude and its score."""
    types = policies[0]["types"]
    columns = max(len(entry["cells"]) for entry in types)
    label = max(len(_row_label(entry)) for entry in types)
    figure = _figure(1.1 + 0.085 * label + 1.0 * columns, 0.9 + len(policies) * (0.62 * len(types) + 0.5))
    panels = figure.subplots(len(policies), 1, squeeze=False)[:, 0]
    image: Any = None
    for axes, figures in zip(panels, policies, strict=True):
        scores = np.full((len(types), columns), np.nan)
        for row, entry in enumerate(figures["types"]):
            scores[row, : len(entry["cells"])] = [cell["score"] for cell in entry["cells"]]
        image = axes.imshow(np.clip(scores, 0, 1), cmap=_COLORS, vmin=0, vmax=1, aspect="auto")
        for row, entry in enumerate(figures["types"]):
            for column, cell in enumerate(entry["cells"]):
                nominal = cell["magnitude"] == entry["nominal"]
                _write(axes, row, column, f"{cell['magnitude']:.3g}", cell["score"], nominal)
        axes.set_yticks(range(len(types)), [_row_label(entry) for entry in types])
        axes.set_xticks([])
        axes.set_title(figures["label"], fontsize=10, loc="left")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    figure.suptitle(f"{task}: {score_text(success)} by magnitude (bold frame: nominal)", fontsize=11)
    _bar(figure, image, panels)
    _save(figure, path)


def _row_label(entry: Figures) -> str:
    return f"{entry['name']} ({entry['unit']})" if entry["unit"] else str(entry["name"])


def _write(axes: Axes, row: int, column: int, magnitude: str, score: float, nominal: bool) -> None:
    from matplotlib.patches import Rectangle

    dark = math.isfinite(score) and (score < 0.12 or score > 0.83)  # of the color
    color = "white" if dark else "black"
    if magnitude:
        axes.text(column, row - 0.22, magnitude, ha="center", va="center", fontsize=8, color=color)
    below = 0.17 if magnitude else 0.0
    axes.text(column, row + below, percent(score), ha="center", va="center", fontsize=9, weight="bold", color=color)
    if nominal:
        axes.add_patch(Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, fill=False, edgecolor="black", linewidth=2))


def _bar(figure: Figure, image: Any, panels: Any) -> None:
    bar = figure.colorbar(image, ax=list(panels), fraction=0.03, pad=0.02)
    bar.ax.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    bar.outline.set_visible(False)


def curves(path: Path, policies: Sequence[Figures], success: bool, task: str, least: float) -> None:
    """Score over magnitude with its interval, one panel a type, one line a policy."""
    types = policies[0]["types"]
    columns = min(len(types), 2 if len(types) in (2, 4) else 3)
    rows = -(-len(types) // columns)
    figure = _figure(1.2 + 3.4 * columns, 0.8 + 2.5 * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for i, axes in enumerate(panels.flat):
        if i >= len(types):
            axes.set_axis_off()
            continue
        for number, figures in enumerate(policies):
            _curve(axes, figures["types"][i], f"C{number}", figures["label"])
        axes.axhline(least, color="0.4", linewidth=1, linestyle="--", zorder=0)
        axes.axvline(types[i]["nominal"], color="0.8", linewidth=1, zorder=0)
        axes.set_title(types[i]["name"], fontsize=10)
        axes.set_xlabel(types[i]["unit"] or "value")
        axes.set_ylim(-0.05, 1.15)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
        axes.grid(alpha=0.2)
    for row in panels:
        row[0].set_ylabel(score_text(success).replace("share of the ", "share of the\n"))
    figure.suptitle(f"{task} (dashed: breakdown; bands: 95%)", fontsize=11)
    if len(policies) > 1:
        handles, labels = panels.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 3), fontsize=9)
    _save(figure, path)


def _curve(axes: Axes, entry: Figures, color: str, label: str) -> None:
    x = [cell["magnitude"] for cell in entry["cells"]]
    y = np.clip([cell["score"] for cell in entry["cells"]], -1, 2)
    bounds = np.array([cell["score_ci95"] for cell in entry["cells"]], dtype=float)  # [M, 2]
    axes.fill_between(x, *np.clip(bounds.T, -1, 2), color=color, alpha=0.2, linewidth=0)
    axes.plot(x, y, color=color, marker="o", markersize=4, label=label)


def grid(path: Path, policies: Sequence[Figures], success: bool, task: str) -> None:
    """The combinations of two types as a heat map; of a third one a panel for each magnitude. One row a policy."""
    first, second, *rest = policies[0]["grid"]["types"]
    depth = rest[0]["magnitudes"] if rest else [None]
    wide = max(2.2, 0.75 * len(second["magnitudes"]) + 0.4)
    tall = max(1.8, 0.48 * len(first["magnitudes"]) + 0.9)
    figure = _figure(1.4 + wide * len(depth), 0.7 + tall * len(policies))
    panels = figure.subplots(len(policies), len(depth), squeeze=False)
    image: Any = None
    for row, figures in zip(panels, policies, strict=True):
        for axes, value in zip(row, depth, strict=True):
            cells = figures["grid"]["cells"]
            chosen = [c["score"] for c in cells if value is None or c["at"][rest[0]["name"]] == value]
            scores = np.array(chosen).reshape(len(first["magnitudes"]), len(second["magnitudes"]))
            image = axes.imshow(np.clip(scores, 0, 1), cmap=_COLORS, vmin=0, vmax=1, aspect="auto")
            for (i, j), score in np.ndenumerate(scores):
                at = [(first, first["magnitudes"][i]), (second, second["magnitudes"][j])]
                at += [(rest[0], value)] if rest else []
                _write(axes, i, j, "", float(score), all(m == entry["nominal"] for entry, m in at))
            for axis, entry in ((axes.yaxis, first), (axes.xaxis, second)):
                axis.set_ticks(range(len(entry["magnitudes"])), [f"{m:.3g}" for m in entry["magnitudes"]])
            axes.set_xlabel(_row_label(second))
            if axes is row[0]:
                axes.set_ylabel(_row_label(first))
            name = figures["label"] if axes is row[0] else ""
            third = "" if value is None else f"{rest[0]['name']} {value:.3g} {rest[0]['unit']}".strip()
            axes.set_title("\n".join(part for part in (name, third) if part), fontsize=9, loc="left")
            axes.spines[:].set_visible(False)
            axes.tick_params(length=0, labelsize=8)
    figure.suptitle(f"{task}: {score_text(success)}", fontsize=11)
    _bar(figure, image, panels.flat)
    _save(figure, path)
