"""When a run ends before all of its iterations are done: a metric has got there, nothing gets better, or time is up."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from rlcore.config import ConfigError, nearest, shown
from rlcore.statistics import of_episodes

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": lambda value, limit: value >= limit,
    "<=": lambda value, limit: value <= limit,
    ">": lambda value, limit: value > limit,
    "<": lambda value, limit: value < limit,
}

EVALUATED = ("eval/return", "eval/score", "eval/length", "eval/success")
OF_PARTS = ("eval/return_", "eval/success_", "eval/signal_")
"""What evaluations tell: these, and of each task or signal what begins so."""

ANEW = "; a run that is resumed wants --stop-at anew, or none"
"""Behind a refusal of what a run has in its settings, and would meet again when it goes on."""

UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

_CONDITION = re.compile(r"\s*([^\s<>=,]+)\s*(>=|<=|>|<)\s*([^\s<>=,]+)\s*,?")
_AFTER_EPISODES = ("rollout", "env", "curriculum", "randomize", "signal")  # families that may wait for episodes to end


class Condition(NamedTuple):
    """A limit on a metric."""

    metric: str
    operator: str
    limit: float

    def __str__(self) -> str:
        return f"{self.metric} {self.operator} {self.limit:g}"

    def met(self, metrics: Mapping[str, float]) -> bool:
        """Whether the metric is there, and has got to the limit."""
        return self.metric in metrics and OPERATORS[self.operator](metrics[self.metric], self.limit)


def conditions(texts: Iterable[str]) -> list[Condition]:
    """Read conditions such as ``eval/success>=0.95``, with spaces or without.

    Raises:
        ConfigError: one is something else.
    """
    text, found, place = " ".join(texts), [], 0
    while text[place:].strip():
        match = _CONDITION.match(text, place)
        number = _number(match[3]) if match else None
        if match is None or number is None:
            raise ConfigError(
                f"stop_at: {shown(text[place:].strip())} is not possible; write a metric, one of >= > <= < and a "
                "number, such as 'eval/success>=0.95'"
            )
        found.append(Condition(match[1], match[2], number))
        place = match.end()
    return found


def seconds_of(text: str) -> float:
    """Seconds of a time such as ``90``, ``30m`` or ``1.5h``.

    Raises:
        ConfigError: it is something else.
    """
    match = re.fullmatch(r"\s*([\d.e+]+)\s*([smhd]?)\s*", text, re.IGNORECASE)
    number = _number(match[1]) if match else None
    if match is None or not number:
        remedy = "give seconds, or a number with s, m, h or d behind it, such as 30m"
        raise ConfigError(f"stop_after: {shown(text)} is not possible; {remedy}")
    return number * UNITS[match[2].lower()]


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def check_evaluated(setting: str, metric: str) -> None:
    """Refuse a metric ``eval/...`` that no evaluation tells.

    Raises:
        ConfigError: names the setting, the metric and the nearest that there is.
    """
    if metric not in EVALUATED and not metric.startswith(OF_PARTS):
        raise ConfigError(f"{setting}: no evaluation tells '{metric}'; {nearest(metric, EVALUATED)}")


def check_stop(
    stop_at: tuple[str, ...] | None, stop_no_progress: int | None, stop_after: str | None, eval_interval: int
) -> None:
    """Refuse conditions that cannot be read, or that nothing in the run would ever measure.

    Raises:
        ConfigError: names the setting and the remedy.
    """
    measured = False
    for condition in conditions(stop_at or ()):
        if condition.metric.startswith("eval/"):
            measured = True
            check_evaluated("stop_at", condition.metric)
    if stop_no_progress is not None:
        measured = True
        if stop_no_progress < 1:
            raise ConfigError(f"stop_no_progress: {stop_no_progress} is not possible; give 1 or more evaluations")
    if measured and eval_interval == 0:
        name = "stop_at" if stop_no_progress is None else "stop_no_progress"
        raise ConfigError(f"{name}: it waits for evaluations, and eval_interval is 0; give --eval-interval 50")
    if stop_after is not None:
        seconds_of(stop_after)


class Stop:
    """Watches a run, and remembers when it was resumed.

    Conditions on what evaluations tell are tested with each of them, others with every row that is logged. The first
    that is met ends the run.

    Args:
        stop_at: see ``TrainConfig``, as the others.
        stop_no_progress: evaluations.
        stop_after: a time.
    """

    def __init__(self, stop_at: tuple[str, ...] | None, stop_no_progress: int | None, stop_after: str | None) -> None:
        self._conditions, self._patience = conditions(stop_at or ()), stop_no_progress
        self._seconds = None if stop_after is None else seconds_of(stop_after)
        self._settings = [[str(c) for c in self._conditions], stop_no_progress, self._seconds]
        self._seen: set[str] = set()
        self._without = 0  # evaluations since the best one
        self._before, self._since = 0.0, time.monotonic()  # seconds of earlier parts of the run; when this one began
        self.asked = self._settings != [[], None, None]
        """Whether there is any condition."""
        self.reason: str | None = None
        """Why the run ends here; None: it goes on."""
        self.tasks: tuple[str, ...] = ()
        """Where there are several: of each an episode has to end before it has figures."""
        self.fair_from = 0
        """The first iteration whose row says of episodes what they are: of those that began together the short ones
        end first, which are failures where a robot falls, and successes where it arrives."""

    def evaluated(self, figures: Mapping[str, float], better: bool) -> None:
        """Take what an evaluation tells, and whether it was better than all before.

        Raises:
            ConfigError: a condition waits for a figure that evaluations of this run do not have.
        """
        self._seen |= set(figures)
        none_ended = math.isnan(figures.get("eval/return", 0.0))  # so that there may be figures later
        for condition in () if none_ended else self._conditions:
            if condition.metric.startswith("eval/") and condition.metric not in self._seen:
                hint = nearest(condition.metric, self._seen)
                raise ConfigError(f"stop_at: evaluations of this run do not tell '{condition.metric}'; {hint}{ANEW}")
        self._test(figures, of_evaluations=True)
        self._without = 0 if better else self._without + 1
        if self._patience is not None and self._without >= self._patience:
            self._end(f"the latest {self._without} evaluations were no better than the best before them")

    def told(self, names: Iterable[str]) -> None:
        """Take the names of the metrics of an iteration.

        Raises:
            ConfigError: a condition waits for a metric that is not among them, and would be by now.
        """
        if all(condition.metric in self._seen for condition in self._conditions):
            return
        self._seen |= set(names)
        learning = any(name.startswith("loss/") for name in self._seen)
        for condition in self._conditions:
            family, slash, _ = condition.metric.partition("/")
            due = self._ended(condition.metric) if family in _AFTER_EPISODES else learning or not slash
            if family != "eval" and due and condition.metric not in self._seen:
                hint = nearest(condition.metric, {*self._seen, *EVALUATED})
                raise ConfigError(f"stop_at: no metric of this run is called '{condition.metric}'; {hint}{ANEW}")

    def _ended(self, metric: str) -> bool:
        """Whether an episode has ended of what a metric is of: of all, or of one of several tasks."""
        own = [f"_{t}" for t in self.tasks if metric.endswith(f"_{t}") or metric.startswith(f"env/{t}/")]
        return f"rollout/episode_return{max(own, key=len, default='')}" in self._seen

    def logged(self, iteration: int, row: Mapping[str, float]) -> None:
        """Take a row of metrics, as it was logged."""
        fair = iteration >= self.fair_from
        self._test({name: value for name, value in row.items() if fair or not of_episodes(name)}, of_evaluations=False)

    def timed(self) -> None:
        """Look at the clock, after an iteration."""
        if self._seconds is not None and self._elapsed() >= self._seconds:
            before = f" ({self._before:.4g} s before it was resumed)" if self._before else ""
            self._end(f"{self._seconds:g} s are over{before}")

    def _elapsed(self) -> float:
        return self._before + time.monotonic() - self._since

    def _test(self, metrics: Mapping[str, float], of_evaluations: bool) -> None:
        for condition in self._conditions:
            if condition.metric.startswith("eval/") == of_evaluations and condition.met(metrics):
                self._end(f"{condition} ({metrics[condition.metric]:.4g})")

    def _end(self, reason: str) -> None:
        self.reason = self.reason or reason

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to know."""
        return {
            "settings": self._settings,
            "without": self._without,
            "elapsed": self._elapsed(),
            "reason": self.reason,
        }

    def resume(self, content: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's content; a run that was ended by other conditions than now goes on."""
        state = content.get("stop")
        self._since = time.monotonic()
        self._before = float(content["progress"]["seconds"] if state is None else state["elapsed"])
        if state is not None:
            self._without = int(state["without"])
            self.reason = state["reason"] if state["settings"] == self._settings else None
