"""Tables and pictures of what ``throughput.py``, ``offpolicy.py`` and ``learning.py`` have written.

python benchmarks/report.py out.json learning.json --plot steps.png > results.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import curves
import offpolicy_report
import tyro
from facts import label, memory, pipes, preamble, ratio, setup
from rich.console import Console
from rich.table import Table

COLORS = {
    "rsl_rl": "#d1495b",
    "rsl_rl_compiled": "#e79aa4",
    "skrl": "#3c8d5a",
    "rl_games": "#e0912f",
}
SHADES = {"fp32": "#8fb4e8", "tf32": "#2f6fd0", "bf16": "#0b2f6b"}
DASHES = {"fp32": ":", "tf32": "-", "bf16": "--"}
MARKERS = {"graph": "o", "graph+compile": "^", "compile": "v", "eager": "s"}
NOTE = (
    "Medians. Collect and learn are timed with the device idle at each boundary, the iteration without, as a user runs "
    "it; GPU MiB is the most that torch reserved. Set-up is what building and the warm-up took beyond usual "
    "iterations; cold is the first of its process, CUDA's own start included."
)
KERNELS = 10  # rows of the profile's table


def title(report: dict[str, Any]) -> str:
    """What was timed."""
    s = report["settings"]
    shape = f", obs {s['obs']}, act {s['actions']}" if s["task"] == "Null" else ""
    memory = "" if s.get("rnn", "none") == "none" else f"{s['rnn'].upper()} 256 before "
    return (
        f"{s['task']}{shape}: {s['num_steps']} steps, {s['epochs']} epochs × {s['minibatches']} minibatches, "
        f"{memory}{list(s['hidden'])}, {report['hardware'].get('gpu', s['device'])}"
    )


def show(report: dict[str, Any], console: Console) -> None:
    """Print the results as tables."""
    table = Table(title=f"{title(report)}; median (quartiles) in ms")
    for heading in ("envs", "library"):
        table.add_column(heading, justify="right" if heading == "envs" else "left")
    for heading in ("collect", "learn", "iteration", "env steps/s", "GPU MiB", "set-up s", "÷ rlcore"):
        table.add_column(heading, justify="right")
    previous = None
    for result in report["results"]:
        if previous not in (None, result["num_envs"]):
            table.add_section()
        previous = result["num_envs"]
        phases = (result[f"{phase}_ms"] for phase in ("collect", "learn", "iteration"))
        table.add_row(
            f"{result['num_envs']:,}",
            f"{label(result, full=True)} ({result['version']})",
            *(f"{times['median']:.2f} ({times['q25']:.2f}..{times['q75']:.2f})" for times in phases),
            f"{result['env_steps_per_s']:,.0f}",
            memory(result),
            setup(result),
            f"{result['ratio']['iteration']:.2f}",
        )
    console.print(table)
    for name, timing in {result["name"]: result["timing"] for result in report["results"]}.items():
        console.print(f"{name}: {timing}", highlight=False)
    for result in report["results"]:
        for text in result["warnings"]:
            console.print(f"{label(result)}, {result['num_envs']} envs: {text}", highlight=False, markup=False)
    if "profile" in report:
        _show_profile(report["profile"], console)


def _show_profile(profile: dict[str, Any], console: Console) -> None:
    table = Table(title=f"{_profile_title(profile)}; the {KERNELS} costliest, ms")
    for heading in ("kernel", "count", "collect", "learn", "share"):
        table.add_column(heading, justify="left" if heading == "kernel" else "right", no_wrap=True)
    for name, *rest in _profile_rows(profile):
        table.add_row(name, *rest)
    console.print(table)


def _profile_title(profile: dict[str, Any]) -> str:
    phases = ", ".join(
        f"{name} {phase['busy_ms']:.2f} of {phase['wall_ms']:.2f} ms busy with {phase['kernels']:,} kernels"
        for name, phase in profile["phases"].items()
    )
    return f"One iteration, {profile['num_envs']:,} envs, {profile['precision']} {profile['mode']}: {phases}"


def _profile_rows(profile: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    total = sum(row["total_ms"] for row in profile["kernels"])
    rest = profile["kernels"][KERNELS:]
    named = [(shortened(row["name"]), row) for row in profile["kernels"][:KERNELS]]
    if rest:
        summed = {key: sum(row[key] for row in rest) for key in ("count", "collect_ms", "learn_ms", "total_ms")}
        named.append((f"the other {len(rest)}", summed))
    for name, row in named:
        yield (
            name,
            f"{row['count']:,}",
            f"{row['collect_ms']:.3f}",
            f"{row['learn_ms']:.3f}",
            f"{row['total_ms'] / total:.1%}",
        )


def shortened(kernel: str) -> str:
    """A kernel's name without what all have in common, at most 90 characters."""
    for common in ("void ", "at::native::", "(anonymous namespace)::", "at_cuda_detail::"):
        kernel = kernel.replace(common, "")
    return kernel if len(kernel) <= 90 else kernel[:89] + "…"


def markdown(reports: list[dict[str, Any]]) -> str:
    """All reports as the sections of a Markdown file."""
    makers = {"throughput": _markdown, "learning": curves.markdown, "offpolicy": offpolicy_report.markdown}
    return "\n\n".join(makers[report["kind"]](report) for report in reports)


def _markdown(report: dict[str, Any]) -> str:
    results = report["results"]
    peers = list(dict.fromkeys(label(r) for r in results if r["name"] != "rlcore"))
    heads = [
        "envs",
        "library",
        "collect ms",
        "learn ms",
        "iteration ms (quartiles)",
        "env steps/s",
        "GPU MiB",
        "set-up s",
    ]
    rows = []
    for result in results:
        whole = result["iteration_ms"]
        theirs = {label(r): r for r in results if r["num_envs"] == result["num_envs"]}
        rows.append(
            [
                f"{result['num_envs']:,}",
                label(result),
                f"{result['collect_ms']['median']:.2f}",
                f"{result['learn_ms']['median']:.2f}",
                f"{whole['median']:.2f} ({whole['q25']:.2f}..{whole['q75']:.2f})",
                f"{result['env_steps_per_s']:,.0f}",
                memory(result),
                setup(result),
                *(ratio(theirs[peer], result) if peer in theirs else "" for peer in peers),
            ]
        )
    warnings = [f"{label(r)}, {r['num_envs']:,} envs: {text}" for r in results for text in r["warnings"]]
    parts = [
        f"### {title(report)}",
        preamble(report),
        pipes([*heads, *(f"{peer} ÷ this" for peer in peers)], rows, left=(1,)),
        NOTE,
        *warnings,
        *(f"{name} failed: {reason}" for name, reason in report["failed"].items()),
    ]
    if "profile" in report:
        profile = report["profile"]
        rows = [
            [f"`{name}`" if number < KERNELS else name, *rest]
            for number, (name, *rest) in enumerate(_profile_rows(profile))
        ]
        parts += [
            f"{_profile_title(profile)}.",
            pipes(["kernel", "count", "collect ms", "learn ms", "share"], rows, (0,)),
        ]
    return "\n\n".join(parts)


def plot(reports: list[dict[str, Any]], path: Path) -> None:
    """Draw env steps per second by number of envs, one line for each library and configuration."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    lines: dict[str, dict[int, dict[str, Any]]] = {}  # by label and number of envs
    for report in reports:
        if title(report) == title(reports[0]):
            for result in report["results"]:
                lines.setdefault(label(result), {})[result["num_envs"]] = result
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for name, by_size in sorted(lines.items(), key=lambda line: -_fastest(line[1])["env_steps_per_s"]):
        sizes = sorted(by_size)
        first = by_size[sizes[0]]
        ours = first["name"] == "rlcore"
        axes.loglog(
            sizes,
            [by_size[size]["env_steps_per_s"] for size in sizes],
            color=SHADES[first["precision"]] if ours else COLORS[first["name"]],
            linestyle=DASHES[first["precision"]],
            marker=MARKERS[first["mode"]] if ours else "D",
            markerfacecolor="white" if first["env_in_graph"] else None,
            markersize=6 if ours else 5,
            linewidth=2 if ours else 1.5,
            label=name if ours else f"{first['name']} {first['version']} {first['precision']}",
        )
    sizes = sorted({size for by_size in lines.values() for size in by_size})
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _short(value)))
    axes.yaxis.set_minor_locator(ticker.LogLocator(subs=(2, 5)))
    axes.yaxis.set_minor_formatter(ticker.FuncFormatter(lambda value, _: _short(value)))
    axes.set(xlabel="envs", ylabel="env steps per second, collected and learned from")
    axes.set_title(title(reports[0]), fontsize=9)
    axes.grid(True, which="both", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, handlelength=3.5)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _fastest(by_size: dict[int, dict[str, Any]]) -> dict[str, Any]:
    return max(by_size.values(), key=lambda result: result["env_steps_per_s"])


def _short(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Print the results of earlier runs as Markdown."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """JSON files that throughput.py, offpolicy.py and learning.py have written."""
    plot: Path | None = None
    """File for a picture of env steps per second by number of envs, from all throughput files together; without any, of
    the curves in all learning files."""


def main(arguments: list[str] | None = None) -> int:
    """Print and draw; returns the exit code."""
    settings = tyro.cli(Settings, args=arguments)
    reports = [json.loads(path.read_text()) for path in settings.files]
    for path, report in zip(settings.files, reports, strict=True):
        if report["kind"] == "simulators":
            print(f"{path}: runs on simulators are shown by simulators.py --show", file=sys.stderr)
            return 2
    print(markdown(reports))
    timed = [report for report in reports if report["kind"] == "throughput"]
    learned = [report for report in reports if report["kind"] == "learning"]
    if settings.plot is not None and timed:
        plot(timed, settings.plot)
    elif settings.plot is not None and learned:
        results = [run for report in learned for run in report["results"]]
        curves.draw({**learned[0], "results": results}, settings.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
