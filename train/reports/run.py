"""What a run folder tells, read for its report: whatever of it is missing or damaged is noted, never an error."""

from __future__ import annotations

import csv
import json
import math
import re
from array import array
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlcore.config import ConfigError, load_yaml, to_dict
from rlcore.envs.launch import SIMULATORS, simulator_of
from rlcore.export.metadata import read_metadata
from rlcore.train.algorithms import ALGORITHMS
from rlcore.train.defaults import default_config
from rlcore.train.groups import leaves
from rlcore.train.machine import MACHINE_FILE
from rlcore.train.run import RunFolder

Numbers = NDArray[np.float64]

LARGEST_TABLE = 200_000_000
"""Bytes of metrics.csv that are read."""

LARGEST_JSON = 20_000_000
"""Bytes of a JSON file that are read."""

MOST_PICTURE = 4_000_000
MOST_PICTURES = 16_000_000
"""Bytes of one picture and of all that a page may have inside."""

PICTURES = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"\xff\xd8\xff": "image/jpeg",
}
"""How files of pictures begin. SVG is not among them, for it can hold programs."""

UNCOMPARED = ("task", "algo", "preset", "name", "runs_dir")
"""Settings that have no default to differ from, or are none of the training's."""


@dataclass
class Metrics:
    """Columns of ``metrics.csv``, NaN where there is no value."""

    columns: dict[str, Numbers] = field(default_factory=dict)
    not_finite: dict[str, int] = field(default_factory=dict)
    """Values by metric that were written as NaN or infinity."""
    notes: list[str] = field(default_factory=list)

    @property
    def steps(self) -> Numbers:
        """The x-axis: env steps of each row."""
        return self.columns.get("env_steps", np.empty(0))

    @property
    def names(self) -> list[str]:
        """Metrics that have any value."""
        axes = ("iteration", "env_steps")
        return [key for key, column in self.columns.items() if key not in axes and np.isfinite(column).any()]

    def last(self, name: str) -> float | None:
        """The last value of a metric."""
        column = self.columns.get(name, np.empty(0))
        known = column[np.isfinite(column)]
        return float(known[-1]) if len(known) else None


@dataclass
class RunFacts:
    """Everything that a report says of a run."""

    path: Path
    config: dict[str, Any]
    """Settings as they are in config.yaml."""
    defaults: dict[str, Any] | None
    """The same without what was asked for; None where nobody knows."""
    defaults_note: str
    """What the defaults are, or why there are none."""
    metrics: Metrics
    evaluation: dict[str, Any]
    robustness: dict[str, Any]
    machine: dict[str, Any]
    end: dict[str, Any]
    """Why the run ended; empty where it goes on, or could not say."""
    videos: list[str]
    """Paths of those of evaluations, in the run folder."""
    exported: dict[str, Any]
    """Facts of the exported file."""
    pictures: list[tuple[str, str, bytes]]
    """Name, type and content."""
    notes: list[str] = field(default_factory=list)
    """What could not be read."""

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.name

    @property
    def task(self) -> str:
        """Name of the task."""
        return str(self.config.get("task", "unknown task"))

    @property
    def algorithm(self) -> str:
        """Algorithm, with its preset if it has one."""
        preset = self.config.get("preset")
        return str(self.config.get("algo", "ppo")) + (f" ({preset})" if preset else "")

    def different(self) -> dict[str, tuple[Any, Any]]:
        """Settings that are not the defaults, by dotted name: ``{"agent.gamma": (0.98, 0.99)}``, the run's first."""
        if self.defaults is None:
            return {}
        usual = dict(leaves(self.defaults))
        own = {key: value for key, value in leaves(self.config) if key not in UNCOMPARED}
        return {key: (value, usual.get(key)) for key, value in own.items() if usual.get(key) != value}


def read_run(path: Path) -> RunFacts:
    """Read a run folder; nothing in it is executed, and no task or algorithm of a user's own is loaded.

    Raises:
        ConfigError: its config.yaml cannot be read.
    """
    config = load_yaml(path / "config.yaml")
    notes: list[str] = []
    defaults, about = _defaults(config)
    metrics = read_metrics(path / "metrics.csv")
    run = RunFolder(path)
    evaluation, robustness, machine, end = (
        _read_json(file, notes) for file in (run.evaluation, run.robustness, path / MACHINE_FILE, run.end)
    )
    videos = [str(video.relative_to(path)) for video in run.filmed()]
    return RunFacts(
        path, config, defaults, about, metrics, evaluation, robustness, machine, end, videos, _exported(path, notes),
        _pictures(path, notes), [*metrics.notes, *notes],
    )  # fmt: skip


def read_metrics(path: Path) -> Metrics:
    """Read ``metrics.csv``; a row that was cut short, or has no number of steps, is left out, and that is noted."""
    metrics = Metrics()
    if not path.is_file():
        metrics.notes.append("there is no metrics.csv, so that there are no curves")
        return metrics
    left_out = 0
    try:
        size = path.stat().st_size
        if size > LARGEST_TABLE:
            raise ValueError(f"{size:,} bytes are more than {LARGEST_TABLE:,}")
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            reader = csv.reader(line for line in file if "\0" not in line)
            header = next(reader, [])
            if "env_steps" not in header or len(set(header)) != len(header):
                raise ValueError("its first line does not name columns, env_steps among them")
            steps, table = header.index("env_steps"), array("d")
            for row in reader:
                try:
                    values = [float(text) if text else math.nan for text in row]
                except ValueError:
                    values = []
                if len(values) != len(header) or not math.isfinite(values[steps]):
                    left_out += 1
                    continue
                if sum(map(math.isfinite, values)) + row.count("") < len(row):
                    for i, (name, text) in enumerate(zip(header, row, strict=True)):
                        if text and not math.isfinite(values[i]):
                            metrics.not_finite[name] = metrics.not_finite.get(name, 0) + 1
                            values[i] = math.nan
                table.extend(values)
            metrics.columns = dict(zip(header, np.array(table).reshape(-1, len(header)).T, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        metrics.notes.append(f"metrics.csv cannot be read: {error}")
    if left_out:
        metrics.notes.append(f"metrics.csv: {left_out} row{'s' * (left_out != 1)} cut short or damaged, left out")
    return metrics


def _defaults(config: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """What ``rlcore train --task TASK`` would have taken, and what to say of it."""
    task, algo, preset = config.get("task"), config.get("algo", "ppo"), config.get("preset")
    if not isinstance(task, str) or algo not in ALGORITHMS:
        return None, f"the defaults of {algo!r:.80} are not known here: it is no algorithm of rlcore"
    try:
        usual, files = default_config(task, algo=algo, preset=preset)
    except (ConfigError, TypeError) as error:
        return None, f"the defaults are not known: {error}"
    where = ", ".join(f"{path.parent.name}/{path.name}" for path in files) or "no file of the task"
    note = f"defaults of rlcore for {task} with {algo} ({where})"
    if simulator_of(task) in SIMULATORS:
        note += "; what the task itself is registered with is not among them"
    return to_dict(usual), note


def _read_json(path: Path, notes: list[str]) -> dict[str, Any]:
    """A file of plain values; nothing where it is missing, and where it is damaged a note."""
    if not path.is_file():
        return {}
    content: Any = None
    with suppress(OSError, ValueError, RecursionError):
        if path.stat().st_size <= LARGEST_JSON:
            content = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content, dict):
        return content
    notes.append(f"{path.name} cannot be read: it is damaged")
    return {}


def _exported(run: Path, notes: list[str]) -> dict[str, Any]:
    path = run / "export" / "policy.onnx"
    if not path.is_file():
        return {}
    try:
        return {"file": f"export/{path.name}", "bytes": path.stat().st_size, **read_metadata(path)}
    except (OSError, ValueError) as error:
        notes.append(f"the exported file cannot be read: {error}")
        return {}


def _pictures(run: Path, notes: list[str]) -> list[tuple[str, str, bytes]]:
    found, total = [], 0
    for path in sorted(p for p in run.iterdir() if re.search(r"\.(png|gif|jpe?g)$", p.name, re.IGNORECASE)):
        try:
            size = path.stat().st_size
            if size > MOST_PICTURE or total + size > MOST_PICTURES:
                notes.append(f"{path.name} is left out: {size / 1e6:.1f} MB are too many for a page")
                continue
            content = path.read_bytes()
        except OSError as error:
            notes.append(f"{path.name} cannot be read: {error.strerror}")
            continue
        kind = next((kind for start, kind in PICTURES.items() if content.startswith(start)), None)
        if kind is None:
            notes.append(f"{path.name} is left out: it is no PNG, GIF or JPEG")
            continue
        found.append((path.name, kind, content))
        total += size
    return found
