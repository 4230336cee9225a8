"""What a run has come to by the metric of a sweep."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from rlcore.config import ConfigError
from rlcore.train.reports.run import read_metrics

_OF_EPISODES = {"return": "return_mean", "length": "length_mean"}


def curve_of(run: Path, metric: str) -> list[tuple[int, float]]:
    """Iterations at which a run has a value of a metric, and the values, of ``metrics.csv``."""
    columns = read_metrics(run / "metrics.csv").columns
    if not {"iteration", metric} <= columns.keys():
        return []
    pairs = zip(columns["iteration"], columns[metric], strict=True)
    return [(int(iteration), float(value)) for iteration, value in pairs if np.isfinite((iteration, value)).all()]


def value_of(run: Path, metric: str) -> float:
    """What a run that is done is worth.

    Figures of evaluations are those of ``eval.json``: of the best checkpoint, on episodes other than those that chose
    it. Any other metric is worth its last value in ``metrics.csv``.

    Raises:
        ConfigError: it has no value, or one that is not finite.
    """
    found = _evaluated(_record(run), metric)
    if found is None:
        found = next((value for _, value in reversed(curve_of(run, metric))), None)
    if found is None:
        known = read_metrics(run / "metrics.csv").names
        evaluated = [name for name in known if name.startswith("eval/")]
        raise ConfigError(f"it has no {metric}; there is {', '.join(evaluated or known[:8]) or 'nothing'}")
    if not math.isfinite(found):
        raise ConfigError(f"its {metric} is not finite")
    return found


def is_done(run: Path) -> bool:
    """Whether a run has been evaluated at its end."""
    return (run / "eval.json").is_file()


def _record(run: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        record = json.loads((run / "eval.json").read_text(encoding="utf-8"))
        if isinstance(record, dict):
            return record
    return {}


def _evaluated(record: Mapping[str, Any], metric: str) -> float | None:
    """A metric of training's evaluations as ``eval.json`` has it, if it does."""
    kind, _, name = metric.partition("/")
    if kind != "eval":
        return None
    what, _, rest = name.partition("_")
    if what == "signal":
        value = record.get(f"signal_{rest}_mean")
    else:  # of one of several tasks, where one is named
        part = record.get("tasks", {}).get(rest, {}) if rest else record
        value = part.get(_OF_EPISODES.get(what, what))
    return float(value) if isinstance(value, (int, float)) else None
