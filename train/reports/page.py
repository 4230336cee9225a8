"""The page of one run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from rlcore._version import __version__
from rlcore.files import whole_file
from rlcore.train.conclude import say
from rlcore.train.ending import describe
from rlcore.train.groups import leaves
from rlcore.train.reports.curves import figure_text, run_curves
from rlcore.train.reports.markup import Html, document, folded, joined, picture, table, tag
from rlcore.train.reports.run import RunFacts, read_run
from rlcore.train.robustness_report import ABOUT, cells_table, types_table

REPORT_FILE = "report.html"
"""In the run folder."""

LONGEST = 300
"""Letters of a value that are shown."""

_OF_THE_FILE = (
    "file", "bytes", "opset", "format", "inputs", "outputs", "types", "parity_max_abs_error", "parity_tolerance",
    "parity_samples", "parity_source", "iteration", "env_steps", "control_dt", "normalizer_inside", "gate",
    "rlcore_version", "torch_version", "config_hash",
)  # fmt: skip
"""Facts of an exported file that are shown first."""

_TERMS = ("observation_terms", "action_terms", "joints", "commands", "tasks")
"""Facts of an exported file that are lists of tables."""


def write_run_report(run: Path, output: Path | None = None) -> Path:
    """Write the report of a run folder, into it unless told elsewhere; returns where it is.

    Raises:
        ConfigError: it has no config.yaml, or a damaged one.
        OSError: it cannot be written.
    """
    path = output or run / REPORT_FILE
    page = run_page(read_run(run))
    with whole_file(path) as file:
        file.write(page)
    return path


def report_at_end(run: Path, console: Console) -> None:
    """Write the report of a run that has ended well, and say where; if that fails, only that is said."""
    try:
        say(console, f"report       {write_run_report(run)}")
    except Exception as error:
        say(console, f"note         the report could not be written: {describe(error)}")


def run_page(run: RunFacts) -> str:
    """The page, as text."""
    curves, data = run_curves(run)
    parts = [
        tag("h1", f"{run.task} · {run.algorithm}"),
        tag("p", run.name, class_="soft"),
        guarded("end", lambda: _end(run)),
        guarded("summary", lambda: _tiles(run)),
        notes_of(run.notes),
        tag("h2", "Learning curves"),
        curves,
        _part("Evaluation", lambda: _evaluation(run.evaluation)),
        _part("Robustness", lambda: _robustness(run.robustness)),
        _part("Pictures", lambda: _pictures(run)),
        _part("Configuration", lambda: _configuration(run)),
        _part("Exported file", lambda: _exported(run.exported)),
        _part("System", lambda: _system(run.machine)),
        footer(),
    ]
    return document(f"{run.task} {run.algorithm} {run.name}", *parts, data=data)


def footer() -> Html:
    """What wrote the page."""
    return tag("p", f"rlcore {__version__}", class_="soft")


def notes_of(notes: Sequence[str]) -> Html:
    """What could not be read."""
    return tag("div", *(tag("p", note) for note in notes), class_="notes") if notes else Html()


def guarded(what: str, make: Callable[[], Html]) -> Html:
    """A part of the page, or that it cannot be shown: files of a run may hold anything."""
    try:
        return make()
    except Exception as error:
        return tag("p", f"the {what} cannot be shown: {type(error).__name__}: {error}", class_="notes")


def _part(title: str, make: Callable[[], Html]) -> Html:
    content = guarded(title.lower(), make)
    return joined([tag("h2", title), content]) if content else content


def tile(name: str, value: object, interval: str = "") -> Html:
    """A figure that is seen at once."""
    return tag("div", tag("b", value), tag("span", name, *([tag("br"), interval] if interval else [])), class_="tile")


def _tiles(run: RunFacts) -> Html:
    metrics, evaluation = run.metrics, run.evaluation
    tiles = []
    for key, name in (("return_mean", "evaluated return"), ("success", "evaluated success")):
        if isinstance(evaluation.get(key), (int, float)):
            value, _, interval = _figure(evaluation, key).partition(" (")
            tiles.append(tile(name, value, interval.rstrip(")")))
    if not tiles:
        for key, name in (("eval/return", "last evaluated return"), ("rollout/episode_return", "last episode return")):
            if metrics.last(key) is not None:
                tiles.append(tile(name, figure_text(metrics.last(key))))
                break
    iteration, steps, seconds = (metrics.last(key) for key in ("iteration", "env_steps", "time/total_s"))
    if iteration is not None:
        tiles.append(tile(f"of {run.config.get('num_iterations', '?')} iterations", f"{iteration:.0f}"))
    if steps is not None:
        tiles.append(tile("env steps", f"{steps:,.0f}"))
    if seconds is not None:
        tiles.append(tile("training time", duration(seconds)))
        if steps and seconds > 0:
            tiles.append(tile("env steps a second", f"{steps / seconds:,.0f}"))
    parity = run.exported.get("parity_max_abs_error")
    if isinstance(parity, (int, float)):
        tiles.append(tile("largest difference of the exported file", figure_text(float(parity))))
    return tag("div", *tiles, class_="tiles") if tiles else Html()


def _end(run: RunFacts) -> Html:
    """Why the run ended, as its last line in the terminal said."""
    if "ended" in run.end:
        return tag("p", tag("b", "Ended "), str(run.end["ended"]))
    if not run.metrics.names:  # such as one that was imported
        return Html()
    return tag("p", "It goes on, or was killed before it could say why it ended.")


def duration(seconds: float) -> str:
    """Seconds for people."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def _figure(figures: Mapping[str, Any], key: str) -> str:
    """A figure of eval.json with its 95% interval, where it has one."""
    value = figures[key]
    stem = key.removesuffix("_mean")
    share = stem == "success" or stem.endswith("_share")

    def text(number: Any) -> str:
        if not isinstance(number, (int, float)):
            return "none"
        if share:
            return f"{100 * number:.3g} %"
        return f"{number:,}" if isinstance(number, int) else figure_text(number)

    bounds = figures.get(f"{stem}_ci95")
    if isinstance(bounds, list) and len(bounds) == 2 and all(isinstance(bound, (int, float)) for bound in bounds):
        return f"{text(value)} ({text(bounds[0])} to {text(bounds[1])})"
    return text(value)


def _figure_rows(figures: Mapping[str, Any]) -> dict[str, str]:
    """Everything that eval.json says of a policy in numbers, by what it is called."""
    rows = {}
    for key, value in figures.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            rows[key.removesuffix("_mean").replace("_", " ")] = _figure(figures, key)
    for step, right in figures.get("task_accuracy", {}).items():
        rows[f"right guesses of the task after {step} steps"] = f"{100 * right:.3g} %"
    for number, entry in enumerate(figures.get("trial_returns", ()), 1):
        rows[f"return of episode {number} of a trial"] = _figure(
            {"m_mean": entry["mean"], "m_ci95": entry["ci95"]}, "m_mean"
        )
    return rows


def _evaluation(record: Mapping[str, Any]) -> Html:
    if not record:
        return Html()
    own, exported = _figure_rows(record), _figure_rows(record.get("onnx", {}))
    head = ["", "policy", *(["exported file"] if exported else [])]
    rows = [[name, own.get(name, ""), *([exported.get(name, "")] if exported else [])] for name in {**own, **exported}]
    said = [str(record.get("policy", ""))] + ([f"best: {record['best']}"] if "best" in record else [])
    parts = [tag("p", ". ".join(filter(None, said)), class_="soft"), table(head, rows)]
    parts.append(tag("p", "In brackets 95% intervals over episodes.", class_="soft"))
    tasks = record.get("tasks", {})
    if tasks:
        by_task = {name: _figure_rows(figures) for name, figures in tasks.items()}
        columns = list(dict.fromkeys(key for rows in by_task.values() for key in rows))
        lines = [[name, *(rows.get(key, "") for key in columns)] for name, rows in by_task.items()]
        parts += [tag("h3", "By task"), table(["task", *columns], lines)]
    return joined(parts)


def _robustness(record: Mapping[str, Any]) -> Html:
    if not record:
        return Html()
    success = record["score"] == "success"
    policies = [_with_nan(policy) for policy in record["policies"]]
    about = f"{record['episodes']} episodes a cell; breaks down below {record['least']}. {ABOUT}."
    parts = [tag("p", about, class_="soft")]
    if policies[0]["types"]:
        parts.append(_of_rich(types_table(policies, success), text_columns=2))
        parts += [folded(f"All magnitudes: {p['label']}", _of_rich(cells_table(p, success))) for p in policies]
    return joined(parts)


def _with_nan(value: Any, key: str = "") -> Any:
    """What of robustness.json was not finite is null there; but of a breakdown, where that means that there is none."""
    if key == "breakdown":
        return value
    if isinstance(value, dict):
        return {name: _with_nan(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_with_nan(inner) for inner in value]
    return math.nan if value is None else value


def _of_rich(shown: Any, text_columns: int = 1) -> Html:
    """A table of the terminal, as one of the page."""
    columns = [list(column.cells) for column in shown.columns]
    return table([column.header for column in shown.columns], zip(*columns, strict=True), text_columns)


def _pictures(run: RunFacts) -> Html:
    parts = [tag("div", *(picture(*entry) for entry in run.pictures), class_="pictures")] if run.pictures else []
    if run.videos:
        first, last = run.videos[0], run.videos[-1]
        several = f", {first} to {last}" if len(run.videos) > 1 else f", {first}"
        parts.append(tag("p", f"Videos of evaluations are in the run folder{several}.", class_="soft"))
    return joined(parts)


def value_text(value: Any) -> str:
    """A setting as it is written, cut where it is long."""
    text = "none" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text):,} characters)"


def _configuration(run: RunFacts) -> Html:
    different = run.different()
    parts = [tag("p", run.defaults_note[:1].upper() + run.defaults_note[1:], class_="soft")]
    if different:
        rows = [
            [tag("code", key), tag("mark", value_text(own)), value_text(usual)]
            for key, (own, usual) in different.items()
        ]
        parts.append(table(["setting", "this run", "default"], rows, text_columns=3))
    elif run.defaults is not None:
        parts.append(tag("p", "All settings are the defaults."))
    everything = [
        [tag("code", key), tag("mark", value_text(value)) if key in different else value_text(value)]
        for key, value in leaves(run.config)
    ]
    return joined([*parts, folded("All settings", table(["setting", "value"], everything, text_columns=2))])


def _exported(facts: Mapping[str, Any]) -> Html:
    if not facts:
        return Html()
    first = [[name.replace("_", " "), _fact(name, facts[name])] for name in _OF_THE_FILE if name in facts]
    parts = [table(["", ""], first, text_columns=2)]
    for name in _TERMS:
        terms = facts.get(name)
        if isinstance(terms, list) and terms and all(isinstance(term, dict) for term in terms):
            columns = list(dict.fromkeys(key for term in terms for key in term))
            rows = [[value_text(term.get(key, "")) for key in columns] for term in terms]
            parts.append(
                folded(f"{name.replace('_', ' ').capitalize()} ({len(terms)})", table(columns, rows, len(columns)))
            )
    rest = [
        [tag("code", name), value_text(value)] for name, value in facts.items() if name not in (*_OF_THE_FILE, *_TERMS)
    ]
    return joined([*parts, folded("All other metadata", table(["", ""], rest, text_columns=2))])


def _fact(name: str, value: Any) -> str:
    if name == "bytes":
        return f"{value:,}"
    if name in ("inputs", "outputs") and isinstance(value, dict):
        return ", ".join(f"{key} {list(shape)}" for key, shape in value.items())
    if name == "types" and isinstance(value, dict):
        return ", ".join(f"{key} {kind}" for key, kind in value.items())
    return value_text(value)


def _system(facts: Mapping[str, Any]) -> Html:
    if not facts:
        return tag("p", "What the run was trained on was not noted.", class_="soft")
    return table(
        ["", ""], [[name.replace("_", " "), value_text(value)] for name, value in facts.items()], text_columns=2
    )
