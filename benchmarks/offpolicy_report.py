"""Tables of what ``offpolicy.py`` has measured."""

from __future__ import annotations

from typing import Any

from facts import label, memory, pipes, preamble, ratio, setup
from rich.console import Console
from rich.table import Table

NOTE = (
    "Sizes in the title are those of the classic preset; gpu has its own. Medians (quartiles). Act + store and update "
    "are timed with the device idle at each boundary, the vector step without, as a user runs it; the update holds all "
    "its gradient steps. B/transition is the replay memory's size by its capacity; GPU MiB is the most that torch "
    "reserved. Set-up is what building and the warm-up took beyond usual steps; cold is the first of its process, "
    "CUDA's own start included."
)


def title(report: dict[str, Any]) -> str:
    """What was timed."""
    s = report["settings"]
    task = f"Null, obs {s['obs']}, act {s['actions']}" if s["task"] == "Null" else s["task"]
    return (
        f"SAC and DDPG: {task}, batch {s['batch']:,}, critics {list(s['critic'])}, actor {list(s['actor'])}, "
        f"{report['hardware'].get('gpu', s['device'])}"
    )


def table(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows; each row's ratios are to the others of its algorithm and number of updates."""
    results = report["results"]
    peers = list(dict.fromkeys(r["name"] for r in results if r["name"] != "rlcore"))
    heads = ["algorithm", "library", "envs", "act + store ms", "updates × batch", "update ms", "vector step ms"]
    heads += ["env steps/s", "B/transition", "GPU MiB", "set-up s"]
    heads += [f"{peer} ÷ this, {what}" for peer in peers for what in ("update", "step")]
    rows = []
    for result in results:
        kind = ("algo", "preset", "updates")
        beside = {r["name"]: r for r in results if all(r[key] == result[key] for key in kind)}
        step = result["iteration_ms"]
        row = [
            result["algo"] if result["preset"] == "classic" else f"{result['algo']} {result['preset']}",
            f"{label(result, full=True)} ({result['version']})",
            f"{result['num_envs']:,}",
            _spread(result["collect_ms"]),
            f"{result['updates']} × {result['batch']:,}",
            _spread(result["learn_ms"]),
            _spread(step),
            f"{1e3 * result['num_envs'] / step['median']:,.0f}",
            f"{result['facts']['bytes_per_transition']:,.0f}",
            memory(result),
            setup(result),
        ]
        for peer in peers:
            known = peer in beside
            row.append(f"{beside[peer]['learn_ms']['median'] / result['learn_ms']['median']:.2f}×" if known else "")
            row.append(ratio(beside[peer], result) if known else "")
        rows.append(row)
    return heads, rows


def _spread(times: dict[str, float]) -> str:
    return f"{times['median']:.2f} ({times['q25']:.2f}..{times['q75']:.2f})"


def notes(report: dict[str, Any]) -> list[str]:
    """How each library was timed, and what went wrong."""
    texts = [
        f"{name}: {r['timing']}" for name, r in {f"{r['algo']}, {r['name']}": r for r in report["results"]}.items()
    ]
    texts += [f"{r['algo']} {r['preset']}, {label(r)}: {text}" for r in report["results"] for text in r["warnings"]]
    return texts + [f"{name} failed: {reason}" for name, reason in report["failed"].items()]


def show(report: dict[str, Any], console: Console) -> None:
    """Print the results as a table."""
    heads, rows = table(report)
    shown = Table(title=title(report))
    for number, heading in enumerate(heads):
        shown.add_column(heading, justify="left" if number < 2 else "right")
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    for text in notes(report):
        console.print(text, highlight=False, markup=False)


def markdown(report: dict[str, Any]) -> str:
    """The results as a section of a Markdown file."""
    heads, rows = table(report)
    return "\n\n".join([f"### {title(report)}", preamble(report), pipes(heads, rows, (0, 1)), NOTE, *notes(report)])
