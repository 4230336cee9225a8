"""Tables and pictures of runs on simulators."""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from facts import pipes, preamble
from rich.console import Console
from rich.table import Table

COLORS = {
    "rlcore": "#1f5fbf",
    "rsl_rl": "#d1495b",
    "rlcore sac": "#2a9d5c",
    "rlcore ddpg": "#8a5cc2",
    "rlcore td3": "#b8860b",
}
AT = (50, 100, 200, 300)
"""Iterations whose reward the table shows."""
AFTER = (60, 120, 240, 480)
"""Seconds of training whose reward the table shows."""


def summarize(report: dict[str, Any]) -> dict[str, Any]:
    """Median and quartiles of an iteration in ms, and env steps a second, without the first iterations."""
    rows = report["rows"]
    times = [after["seconds"] - before["seconds"] for before, after in itertools.pairwise(rows)]
    times = times[max(0, min(report["settings"]["warmup"] - 1, len(times) - 2)) :]
    if len(times) < 2:
        return {}
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    steps = rows[0]["env_steps"]
    parts = {}
    for key in ("collect_s", "learn_s"):
        values = [row[key] for row in rows[-len(times) :] if key in row]
        parts[key.replace("_s", "_ms")] = 1e3 * statistics.median(values) if values else None
    return {
        "iterations": len(times),
        "iteration_ms": 1e3 * middle,
        "iteration_ms_quartiles": [1e3 * low, 1e3 * high],
        "env_steps_per_s": steps / middle,
        **parts,
    }


def who(report: dict[str, Any]) -> str:
    """The library, and its algorithm where that is not PPO."""
    settings = report["settings"]
    return settings["library"] if settings["algo"] == "ppo" else f"{settings['library']} {settings['algo']}"


def variant(report: dict[str, Any]) -> str:
    """The library and what differs from its defaults."""
    settings = report["settings"]
    names = {"env": "env alone", "adapter": "rlcore's adapter alone", "rlcore": who(report)}
    name = names.get(settings["library"], settings["library"])
    notes = []
    if settings["library"] in ("rlcore", "adapter") and settings["final_obs"] != "auto":
        notes.append(f"final_obs {settings['final_obs']}")
    if not settings["randomize_start"]:
        notes.append("episodes in step")
    if settings["config"]:
        notes.append(Path(settings["config"]).name)
    return ", ".join([name, *notes])


def grouped(reports: list[dict[str, Any]]) -> dict[tuple[str, int, str], list[dict[str, Any]]]:
    """Runs that differ in their seed alone, by task, number of envs and variant."""
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for report in reports:
        if report.get("summary"):
            key = report["settings"]["task"], report["num_envs"], variant(report)
            groups.setdefault(key, []).append(report)
    return groups


def table(reports: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows, one row for each task and variant."""
    heads = ["task", "what", "envs", "runs", "iteration ms (quartiles)", "collect ms", "learn ms", "env steps/s"]
    heads += ["of env alone", *(f"reward at {i}" for i in AT), *(f"after {s} s" for s in AFTER), "evaluated"]
    groups = grouped(reports)
    rows = []
    for (task, num_envs, name), runs in groups.items():
        summaries = [run["summary"] for run in runs]
        rate = statistics.median(s["env_steps_per_s"] for s in summaries)
        times = ", ".join(
            f"{s['iteration_ms']:.1f} ({s['iteration_ms_quartiles'][0]:.1f}..{s['iteration_ms_quartiles'][1]:.1f})"
            for s in summaries
        )
        same_start = "env alone, episodes in step" if "episodes in step" in name else "env alone"
        alone = groups.get((task, num_envs, same_start))
        share = rate / statistics.median(r["summary"]["env_steps_per_s"] for r in alone) if alone else None
        rows.append(
            [
                task,
                name,
                f"{num_envs:,}",
                f"{len(runs)}",
                times,
                *(_values([s[key] for s in summaries], 1) for key in ("collect_ms", "learn_ms")),
                f"{rate:,.0f}",
                "" if share is None else f"{share:.2f}",
                *(_values([reward_at(run, i) for run in runs], 1) for i in AT),
                *(_values([reward_after(run, seconds) for run in runs], 1) for seconds in AFTER),
                ", ".join(filter(None, map(evaluated, runs))),
            ]
        )
    return heads, rows


def reward_at(run: dict[str, Any], iteration: int) -> float | None:
    """Reward after an iteration; None where the run does not have it."""
    rows = run["rows"]
    return rows[iteration - 1].get("reward") if len(rows) >= iteration else None


def reward_after(run: dict[str, Any], seconds: float) -> float | None:
    """Reward after some seconds of training; None where the run was shorter."""
    return next((row.get("reward") for row in run["rows"] if row["seconds"] >= seconds), None)


def evaluated(run: dict[str, Any]) -> str:
    """Mean return of the last policy without noise, with the half-width of its 95 % interval."""
    found = [row["evaluated"] for row in run["rows"] if "return_mean" in row.get("evaluated", {})]
    if not found:
        return ""
    low, high = found[-1]["return_ci95"]
    return f"{found[-1]['return_mean']:.1f}" + ("" if low is None else f" ± {(high - low) / 2:.1f}")


def _values(values: list[float | None], digits: int) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values if value is not None)


def evaluations(reports: list[dict[str, Any]]) -> list[str]:
    """What the exported files did beside their policies, a line each."""
    lines = []
    for report in reports:
        found = report.get("evaluation")
        if found:
            name = f"{report['settings']['task']}, seed {report['settings']['seed']}"
            lines.append(f"{name}: policy {found['policy']['summary']}; file alone {found['file']['summary']}")
    return lines


NOTE = (
    "An iteration is timed from end to end, the first ones left out; several runs, which differ in their seed, are "
    "listed one by one. `of env alone`: env steps/s over those of the env stepped with random actions, with episodes "
    "that begin as they do here. Reward: mean return of the latest 100 episodes as trained, with noise, at an "
    "iteration and after seconds of training. `evaluated`: the last policy without noise. An iteration of SAC and DDPG "
    "is 24 vector steps with their updates."
)


def show(reports: list[dict[str, Any]], console: Console) -> None:
    """Print the results as a table."""
    heads, rows = table(reports)
    shown = Table()
    for number, heading in enumerate(heads):
        shown.add_column(heading, justify="left" if number < 2 else "right", overflow="fold")
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    for text in (NOTE, *evaluations(reports)):
        console.print(text, highlight=False, markup=False)


def markdown(reports: list[dict[str, Any]]) -> str:
    """The results as a section of a Markdown file."""
    heads, rows = table(reports)
    made = preamble(reports[0]).partition("\n")[0]
    commands = "\n".join(f"    {report['command']}" for report in reports)
    lines = [f"- {line}" for line in evaluations(reports)]
    return "\n\n".join(filter(None, [made, commands, pipes(heads, rows, left=(0, 1)), NOTE, "\n".join(lines)]))


def draw(reports: list[dict[str, Any]], path: Path) -> None:
    """Draw the reward against iterations and against seconds: a thin line a seed, a thick one for their mean.

    Where iterations differ, in size or algorithm, env steps stand in their place. Dots are policies without noise.

    Raises:
        ValueError: no run has rewards.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = {key: [run for run in runs if reward_at(run, 2) is not None] for key, runs in grouped(reports).items()}
    groups = {key: runs for key, runs in groups.items() if runs and who(runs[0]) in COLORS}
    tasks = list(dict.fromkeys(task for task, _, _ in groups))
    if not tasks:
        raise ValueError("--plot: none of these runs trained and has rewards of two iterations; leave it out")
    figure, grid = pyplot.subplots(
        len(tasks), 2, figsize=(11, 3.6 * len(tasks)), layout="constrained", squeeze=False, sharey="row"
    )
    for task, axes in zip(tasks, grid, strict=True):
        own = {key: runs for key, runs in groups.items() if key[0] == task}
        sizes = list(dict.fromkeys(key[1] for key in own))
        kinds = {(run["settings"]["algo"], run["rows"][0]["env_steps"]) for runs in own.values() for run in runs}
        scales = {"iteration": 1.0, "seconds": 1.0} if len(kinds) == 1 else {"env_steps": 1e-6, "seconds": 1.0}
        styles = {name: itertools.cycle(("-", "--", ":", "-.")) for name in COLORS}
        for (_, num_envs, name), runs in own.items():
            color, style = COLORS[who(runs[0])], next(styles[who(runs[0])])
            label = name if len(sizes) == 1 else f"{name}, {num_envs:,} envs"
            for plot, (key, scale) in zip(axes, scales.items(), strict=True):
                lines = [_line(run, key, "reward", scale) for run in runs]
                for xs, ys in lines:
                    plot.plot(xs, ys, color=color, linewidth=0.7, alpha=0.6)
                first, last = max(xs[0] for xs, _ in lines), min(xs[-1] for xs, _ in lines)
                common = np.linspace(first, last, 400)
                mean = np.mean([np.interp(common, xs, ys) for xs, ys in lines], axis=0)
                plot.plot(common, mean, style, color=color, linewidth=2.0, label=label)
                for run in runs:
                    plot.plot(
                        *_line(run, key, "evaluated", scale), "o", color=color, markersize=4, mec="white", mew=0.6
                    )
        texts = {"iteration": "iteration", "env_steps": "env steps, millions"}
        texts["seconds"] = "seconds of training, set-up left out"
        for plot, key in zip(axes, scales, strict=True):
            plot.set_xlabel(texts[key])
            plot.set_xlim(left=0)
            plot.grid(True, color="#e4e4e4", linewidth=0.6)
            plot.spines[["top", "right"]].set_visible(False)
        axes[0].set_ylabel("return, mean of 100 episodes")
        title = f"{task}, {sizes[0]:,} envs" if len(sizes) == 1 else task
        axes[0].set_title(title, fontsize=10, loc="left")
        if len(own) <= 4:
            axes[0].legend(frameon=False, loc="best")
        else:
            axes[1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _line(run: dict[str, Any], key: str, what: str, scale: float) -> tuple[list[float], list[float]]:
    """Places and values of what the rows have of it."""
    known = [(row[key] * scale, row[what]) for row in run["rows"] if row.get(what) is not None]
    if what == "evaluated":
        known = [(x, result["return_mean"]) for x, result in known if "return_mean" in result]
    return [x for x, _ in known], [y for _, y in known]
