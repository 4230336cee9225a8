"""Tables and pictures of learning runs."""

from __future__ import annotations

import csv
import math
import statistics
from pathlib import Path
from typing import Any

import torch
from facts import pipes, preamble
from rich.console import Console
from rich.table import Table

from rlcore.train.intervals import t_interval

COLORS = {"fp32": "#555555", "tf32": "#1f5fbf", "bf16": "#d1495b"}
ALGO_COLORS = {"ppo": "#555555", "sac": "#1f5fbf", "ddpg": "#d1495b", "td3": "#3a8f5c"}
MOST_ROWS = 6  # tasks that a picture shows both by steps and by seconds
DASHES = {"ppo": "-", "sac": "--", "ddpg": ":", "td3": "-."}


def key_of(run: dict[str, Any]) -> tuple[Any, ...]:
    """Task, algorithm, precision and seed."""
    return tuple(run[name] for name in ("task", "algo", "precision", "seed"))


def named(key: tuple[Any, ...]) -> str:
    """A run's name for people."""
    task, algo, precision, seed = key
    return f"{task} {algo} {precision} seed {seed}"


def summary(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows, one row for each task, algorithm and precision: mean over the seeds (least to most)."""
    target = f"{report['settings']['target']:.0%}"
    heads = ["task", "algorithm", "precision", "envs", "seeds", "M env steps", "final success %", "final return"]
    heads += ["sd", "95 % interval", f"s to {target} success", f"M env steps to {target}", "set-up s", "whole run s"]
    rows = []
    for kind in dict.fromkeys(key_of(r)[:3] for r in report["results"]):
        runs = [r for r in report["results"] if key_of(r)[:3] == kind]
        last = [r["curve"][-1] for r in runs]
        reached = [r["reached"] for r in runs if r["reached"] is not None]
        successes = [point["success"] for point in last]
        missed = f", {len(runs) - len(reached)} never" if len(reached) < len(runs) else ""
        known = None not in successes
        returns = [point["return"] for point in last]
        low, high = t_interval(torch.tensor(returns, dtype=torch.float64))
        rows.append(
            [
                *kind,
                f"{runs[0]['num_envs']:,}",
                f"{len(runs)}",
                _range([point["env_steps"] / 1e6 for point in last], 2),
                _range([100 * value for value in successes], 1) if known else "",
                _range(returns, 1),
                f"{statistics.stdev(returns):.1f}" if len(runs) > 1 else "",
                f"{low:.1f}..{high:.1f}" if len(runs) > 1 else "",
                _range([p["seconds"] for p in reached], 1) + missed if known else "",
                _range([p["env_steps"] / 1e6 for p in reached], 1) + missed if known else "",
                _range([r["setup"]["three_iterations_s"] for r in runs], 1),
                _range([r["total_s"] for r in runs], 1),
            ]
        )
    told = [column for column in range(len(heads)) if any(row[column] for row in rows)]
    return [heads[column] for column in told], [[row[column] for column in told] for row in rows]


def _range(values: list[float], digits: int) -> str:
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f}..{max(values):.{digits}f})"


def notes(report: dict[str, Any]) -> list[str]:
    """What must be known to read the table."""
    texts = [
        "Mean over the seeds (least..most); sd and Student's interval of the mean are over the seeds too. Seconds "
        "count from the making of the env; set-up, which they include, ends with the third iteration, when the graphs "
        "are recorded. Importing the libraries, "
        f"{_range([r['setup']['import_s'] for r in report['results']], 1)} s, comes before."
    ]
    if report["settings"]["jobs"] > 1:
        texts.append(f"{report['settings']['jobs']} runs shared the device: the seconds are longer than those of one.")
    heard = dict.fromkeys(text for r in report["results"] for text in r["warnings"])
    return texts + [f"Warning: {text}" for text in heard] + [f"{n} failed: {w}" for n, w in report["failed"].items()]


def show(report: dict[str, Any], console: Console) -> None:
    """Print the results as a table."""
    heads, rows = summary(report)
    table = Table()
    for number, heading in enumerate(heads):
        table.add_column(heading, justify="left" if number < 3 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for text in notes(report):
        console.print(text, highlight=False, markup=False)


def markdown(report: dict[str, Any]) -> str:
    """The results as a section of a Markdown file."""
    tasks = ", ".join(dict.fromkeys(r["task"] for r in report["results"]))
    heads, rows = summary(report)
    return "\n\n".join([f"### Learning: {tasks}", preamble(report), pipes(heads, rows, left=(0, 1, 2)), *notes(report)])


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw success, or return where a task reports none, against env steps and, of a few tasks, against seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = list(dict.fromkeys(r["task"] for r in report["results"]))
    # Many tasks have a panel each, few of them one by steps and one by seconds.
    columns = 2 if len(tasks) <= MOST_ROWS else 4
    rows = len(tasks) if columns == 2 else math.ceil(len(tasks) / columns)
    figure, grid = pyplot.subplots(
        rows, columns, figsize=(5 * columns, 3.6 * rows), layout="constrained", squeeze=False,
        sharey="row" if columns == 2 else False,
    )  # fmt: skip
    panels = [list(row) for row in grid] if columns == 2 else [[axes] for axes in grid.flat]
    for unused in panels[len(tasks) :]:
        unused[0].remove()
    for task, panel in zip(tasks, panels, strict=False):
        runs = [r for r in report["results"] if r["task"] == task]
        success = runs[0]["curve"][-1]["success"] is not None
        algos, precisions = ({r[name] for r in report["results"]} for name in ("algo", "precision"))
        for run in runs:
            first = run is next(r for r in runs if key_of(r)[:3] == key_of(run)[:3])
            ys = [100 * p["success"] if success else p["return"] for p in run["curve"]]
            xs = [[p["env_steps"] / 1e6 for p in run["curve"]], [p["seconds"] for p in run["curve"]]]
            for axes, x in zip(panel, xs, strict=False):
                style: dict[str, Any] = {"color": COLORS[run["precision"]], "linestyle": DASHES[run["algo"]]}
                if len(precisions) == 1:
                    style = {"color": ALGO_COLORS[run["algo"]]}
                words = [run["algo"]] * (len(algos) > 1) + [run["precision"]] * (len(precisions) > 1 or len(algos) == 1)
                style["label"] = " ".join(words) if first else None
                axes.plot(x, ys, linewidth=1.4, marker=".", alpha=0.8, **style)
        for axes, text in zip(panel, ("million env steps", "seconds, set-up included"), strict=False):
            if success:
                axes.axhline(100 * report["settings"]["target"], color="#999999", linewidth=1, linestyle="--")
            axes.set_xlabel(text)
            axes.set_xlim(left=0)
            axes.grid(True, color="#e4e4e4", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
        panel[0].set_ylabel("success, %" if success else "return")
        panel[0].set_title(f"{task}, {runs[0]['num_envs']:,} envs, one line a seed", fontsize=10, loc="left")
        panel[0].legend(frameon=False, loc="best")
    figure.savefig(path, dpi=150 if columns == 2 else 90)
    pyplot.close(figure)


def write_csv(report: dict[str, Any], path: Path) -> None:
    """Write the curves, a line for each evaluation of each run."""
    names = ("iteration", "env_steps", "seconds", "return", "success")
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["task", "algo", "precision", "seed", *names])
        for run in report["results"]:
            for point in run["curve"]:
                values = (point[name] for name in names)
                table.writerow([*key_of(run), *(f"{v:.6g}" if isinstance(v, float) else v for v in values)])
