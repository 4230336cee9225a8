"""Metrics of a run: metrics.csv, tensorboard events, and what the terminal shows."""

from __future__ import annotations

import csv
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from rlcore.files import whole_file
from rlcore.report import Faults, Report
from rlcore.statistics import of_episodes
from rlcore.train.writers import TensorBoard, Warn, Writer

ETA_ITERATIONS = 10
"""The latest iterations, by which the time that is left is told."""

SHOWN = {
    "rollout/reward": "reward per step",
    "rollout/episode_return": "episode return",
    "rollout/episode_length": "episode length",
    "rollout/success": "success",
    "eval/return": "evaluated return",
    "eval/success": "evaluated success",
    "loss/policy": "policy loss",
    "loss/value": "value loss",
    "policy/kl": "KL",
    "policy/entropy": "entropy",
    "policy/learning_rate": "learning rate",
    "policy/std": "std",
    "policy/temperature": "temperature",
}
"""Rows of the live table: metrics, and what they are called there."""

SHORT = {
    "rollout/reward": "reward",
    "rollout/episode_return": "return",
    "rollout/episode_length": "length",
    "rollout/success": "success",
    "eval/return": "evaluated return",
    "eval/success": "evaluated success",
    "loss/policy": "policy loss",
    "loss/value": "value loss",
    "policy/kl": "kl",
    "policy/learning_rate": "lr",
    "policy/std": "std",
    "policy/temperature": "temperature",
}
"""What a printed line has, in this order: metrics, and what they are called there."""

LIMITED = {
    "safety/violations": "violations",
    "safety/gate_share": "gate acted",
}
"""Rows of a run that has a gate, in the table and in a line, behind those of its limits on costs."""


class Average:
    """Means over a few iterations, in which episode figures count by their number, and steps a second by seconds."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}
        self._latest: dict[str, float] = {}

    def add(self, metrics: Mapping[str, float]) -> None:
        """Add one iteration."""
        episodes = metrics.get("rollout/episodes", 0.0)
        seconds = metrics.get("time/collect_s", 0.0) + metrics.get("time/learn_s", 0.0)
        for key, value in metrics.items():
            weight = max(episodes, 1.0) if of_episodes(key) else 1.0
            if key == "time/steps_per_s":  # iterations before SAC begins to learn are a hundred times shorter
                weight = seconds or 1.0
            self._sums[key] = self._sums.get(key, 0.0) + weight * value
            self._weights[key] = self._weights.get(key, 0.0) + weight
            self._latest[key] = value

    def take(self) -> dict[str, float]:
        """The averages since the last call; of episodes and dropped steps the sum, of ``time/total_s`` the latest."""
        result = {key: total / self._weights[key] for key, total in self._sums.items()}
        result |= {
            key: self._sums[key] for key in ("rollout/episodes", "rollout/dropped", "replay/dropped") if key in result
        }
        if "time/total_s" in result:
            result["time/total_s"] = self._latest["time/total_s"]
        self._sums, self._weights, self._latest = {}, {}, {}
        return result


class MetricsFile:
    """``metrics.csv``: a row per log interval, a column per metric; a new metric widens the whole file."""

    def __init__(self, path: Path, resumed_iteration: int | None = None) -> None:
        """Start a file, or take up one, dropping rows after the iteration that the run resumes from."""
        self._path = path
        self._columns = ["iteration", "env_steps"]
        rows: list[dict[str, str]] = []
        if resumed_iteration is not None and path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            # A row that was cut short, when the machine went down or the disk was full, has no number in it to trust.
            reader = csv.DictReader(line for line in text.splitlines(True) if line.endswith("\n") and "\0" not in line)
            try:
                table, columns = list(reader), list(reader.fieldnames or ())
            except csv.Error:  # such as a field of any length
                table, columns = [], []
            if columns[:2] == self._columns:  # else it is no table of ours
                self._columns = columns
                whole = (r for r in table if None not in (*r, *r.values()) and r["iteration"].isdecimal())
                rows = [r for r in whole if int(r["iteration"]) <= resumed_iteration]
        self._rewrite(rows)

    def write(self, iteration: int, env_steps: int, metrics: Mapping[str, float]) -> None:
        """Append one row."""
        new = [key for key in metrics if key not in self._columns]
        if new:
            with self._path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            self._columns += new
            self._rewrite(rows)
        with self._path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writerow({"iteration": iteration, "env_steps": env_steps, **metrics})

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        with whole_file(self._path) as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writeheader()
            writer.writerows(rows)


class RunLogger:
    """Takes every iteration's report; writes and shows the averages of each log interval."""

    def __init__(
        self, folder: Path, *, total: int, log_interval: int, console: Console, resumed: tuple[int, int] | None = None,
        writers: Callable[[Warn], list[Writer]] | None = None,
    ) -> None:  # fmt: skip
        """Open the files.

        Args:
            folder: the run folder.
            total: iterations of the whole run.
            log_interval: iterations to a row.
            console: a terminal gets a live display, anything else plain lines.
            resumed: iteration and env steps that a continued run starts from; later entries are dropped.
            writers: opens what takes the rows beside metrics.csv, told how to warn; None: tensorboard.
        """
        self._file = MetricsFile(folder / "metrics.csv", None if resumed is None else resumed[0])
        self._total = total
        self._log_interval = log_interval
        self._average = Average()
        self._pending: Report | None = None
        self._first = True
        self._shown: Report | None = None  # the first, as it came, without the rest of its interval
        self._faults = Faults()
        self._display = Display(console, total, done=0 if resumed is None else resumed[0])
        steps = None if resumed is None else resumed[1]
        self._writers: list[Writer] = [TensorBoard(folder, steps)] if writers is None else writers(self._warn)

    def __enter__(self) -> RunLogger:
        """Start the display."""
        self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what an interrupted interval has, stop the display and close the files, also when training fails."""
        failed: Exception | None = None
        steps: list[Callable[[], Any]] = [self._flush, self._display.stop]
        steps += [partial(writer.close, kind is not None) for writer in self._writers]
        for finish in steps:
            try:
                finish()
            except Exception as second:
                failed = failed or second
        if error is None and failed is not None:  # else it would hide what came first
            raise failed

    def hint(self, text: str) -> bool:
        """Show a line in the live display, if there is one; may be called from within anything."""
        return self._display.hint(text)

    def doing(self, text: str) -> bool:
        """Show in the live display what goes on, nothing for an empty text, and say whether there is such a display."""
        return self._display.doing(text)

    def video(self, env_steps: int, path: Path) -> None:
        """Pass on the video of an evaluation."""
        for writer in self._writers:
            writer.video(env_steps, path)

    def evaluated(self, iteration: int, env_steps: int, figures: Mapping[str, float]) -> None:
        """Take the figures of an evaluation that comes after its iteration was reported: a row of their own."""
        self._flush()
        self._average.add(figures)
        self._pending = Report(iteration, env_steps, {})
        self._flush()

    def report(self, report: Report, extra: Mapping[str, float]) -> dict[str, float] | None:
        """Take one iteration; ``extra`` are the figures of an evaluation.

        Returns:
            The row that was written, if it was the last one of an interval.
        """
        self._average.add({**report.metrics, **extra})
        self._pending = report
        for text in self._faults.new(report):
            self._display.warn(f"warning      {text}")
        self._display.advance(report)
        row = None
        if report.iteration % self._log_interval == 0 or report.iteration == self._total:
            row = self._flush()
        elif self._first:  # in the files it is a part of its interval
            self._display.show(report, {**report.metrics, **extra})
            self._shown = report
        self._first = False
        return row

    def _warn(self, text: str) -> None:
        self._display.warn(f"warning      {text}")

    def _flush(self) -> dict[str, float] | None:
        if self._pending is None:
            return None
        report, self._pending = self._pending, None
        metrics = self._average.take()
        self._file.write(report.iteration, report.env_steps, metrics)
        for writer in self._writers:
            writer.write(report.env_steps, metrics)
        if report is not self._shown:
            self._display.show(report, metrics)
        return metrics


class Display:
    """A live bar and table on a terminal; one line per log interval elsewhere."""

    def __init__(self, console: Console, total: int, done: int) -> None:
        self._console = console
        self._total = total
        self._marks = deque([(done, time.perf_counter())], maxlen=ETA_ITERATIONS + 1)
        self._latest: dict[str, float] = {}
        self._progress = Progress(
            TextColumn("iteration {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(),
            TextColumn("{task.fields[steps]:,} steps  {task.fields[rate]:,.0f} steps/s  ETA {task.fields[eta]}"),
            console=console,
        )
        self._task: TaskID = self._progress.add_task("", total=total, completed=done, steps=0, rate=0.0, eta="-:--:--")
        self._live: Live | None = None
        self._hint = self._doing = ""

    def start(self) -> None:
        """Begin to draw, if this is a terminal."""
        self._marks[-1] = self._marks[-1][0], time.perf_counter()
        if self._console.is_terminal:
            # Drawn anew by a thread of its own: a hint appears however long an iteration takes.
            self._live = Live(get_renderable=self._picture, console=self._console, refresh_per_second=4)
            self._live.start()

    def stop(self) -> None:
        """Leave the last picture standing."""
        self._hint = self._doing = ""
        if self._live is not None:
            self._live.stop()

    def hint(self, text: str) -> bool:
        """Show a line under the table, if there is one; no lock is taken, because a signal may call this."""
        self._hint = text
        return self._live is not None

    def doing(self, text: str) -> bool:
        """Show what goes on under the table, if there is one, until another text comes."""
        self._doing = text
        return self._live is not None

    def warn(self, text: str) -> None:
        """Print a line above the live display."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def advance(self, report: Report) -> None:
        """Move the bar."""
        self._marks.append((report.iteration, time.perf_counter()))
        rate, eta = report.metrics.get("time/steps_per_s", 0.0), str(timedelta(seconds=round(self._left())))
        self._progress.update(self._task, completed=report.iteration, steps=report.env_steps, rate=rate, eta=eta)

    def _left(self) -> float:
        """Seconds to the end, by the latest iterations: before SAC learns they are a hundred times shorter."""
        (first, begun), (last, now) = self._marks[0], self._marks[-1]
        return (now - begun) / max(last - first, 1) * (self._total - last)

    def show(self, report: Report, metrics: Mapping[str, float]) -> None:
        """Show the averages of an interval; a metric that is missing keeps its last value."""
        self._latest.update(metrics)
        if self._live is not None:
            self._live.refresh()
            return
        width = len(str(self._total))
        figures = "  ".join(f"{name} {figure}" for name, figure in _told(metrics, SHORT))
        # A plain write: rich would wrap at the 80 columns that it assumes where there is no terminal.
        print(
            f"[{report.iteration:>{width}}/{self._total}] {report.env_steps:,} steps  "
            f"{self._latest.get('time/steps_per_s', 0.0):,.0f} steps/s  ETA {self._left():.0f} s  {figures}",
            file=self._console.file,
            flush=True,
        )

    def _picture(self) -> Group:
        table = Table(show_header=False, box=None, padding=(0, 2))
        shown = _told(self._latest, SHOWN)
        half = (len(shown) + 1) // 2
        for i in range(half):
            right = shown[half + i] if half + i < len(shown) else ("", "")
            table.add_row(*shown[i], *right)
        lines = [(self._doing, ""), (self._hint, "bold yellow")]
        return Group(self._progress, table, *(Text(text, style) for text, style in lines if text))


def _told(metrics: Mapping[str, float], names: Mapping[str, str]) -> list[tuple[str, str]]:
    """Names and figures of what is shown: what ``names`` has, each cost beside its limit, and what a gate did."""
    found = [(name, _figure(metrics[key])) for key, name in names.items() if key in metrics]
    for key in metrics:
        if not (key.startswith("safety/") and key.endswith("_limit")):
            continue
        cost = key.removeprefix("safety/").removesuffix("_limit")
        if f"safety/{cost}_cost" in metrics:  # else no episode has ended
            found.append((f"{cost} cost", f"{_figure(metrics[f'safety/{cost}_cost'])} of {_figure(metrics[key])}"))
        if f"safety/{cost}_multiplier" in metrics:
            found.append((f"{cost} multiplier", _figure(metrics[f"safety/{cost}_multiplier"])))
    return found + [(name, _figure(metrics[key])) for key, name in LIMITED.items() if key in metrics]


def _figure(value: float) -> str:
    return f"{value:.4g}"


class _Notes(logging.Handler):
    """Prints what is logged."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        kind = "warning" if record.levelno >= logging.WARNING else "note"
        self.console.print(f"{kind:<12} {record.getMessage()}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def notes_shown(console: Console) -> Iterator[None]:
    """Print what the library logs meanwhile: how much memory it is about to take is to be seen before it is taken."""
    logger, notes = logging.getLogger("rlcore"), _Notes(console)
    before = logger.level, logger.propagate
    logger.addHandler(notes)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(notes)
        logger.level, logger.propagate = before
