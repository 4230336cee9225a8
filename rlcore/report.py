"""What an iteration has to say: its metrics, and what they show to be broken."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import torch

_log = logging.getLogger(__name__)
_DROPPED = ("rollout/dropped", "replay/dropped")  # metrics that count steps with broken numbers


@dataclass(frozen=True)
class Report:
    """What one iteration has to say."""

    iteration: int
    env_steps: int
    """Steps of single envs since the run began."""
    metrics: dict[str, float]
    """By name, such as ``loss/policy``. What has no value is left out: a mean return where no episode ended, a loss
    where every step was skipped."""
    culprits: tuple[str, ...] = ()
    """Which numbers of which env could not be learned from, or were limited, in words."""


class Faults:
    """What reports show to be broken, each thing once; what is left out or limited at growing intervals."""

    def __init__(self) -> None:
        self._learning = self._stored_broken = False
        self._known: set[str] = set()
        self._affected = 0  # iterations in which numbers could not be learned from, or were limited

    def new(self, report: Report) -> list[str]:
        """Tell what is wrong for the first time; metrics that are not a number are not in a report."""
        metrics, found = report.metrics, []
        dropped = [metrics[name] for name in _DROPPED if name in metrics]
        # Without dropped steps there is no reward where every env began anew in place of a step.
        if "rollout/reward" not in metrics and (any(dropped) or not dropped):
            found.append("rewards of the env are not a number (NaN)")
        self._stored_broken |= any(dropped)  # and drawn from the replay memory for long
        if not self._stored_broken and metrics.get("replay/lost", 0.0) > 0.01:
            found.append(
                "more than 1 % of the samples count for nothing (replay/lost): last observations of truncated episodes "
                "have been overwritten; raise agent.final_capacity, or correct the env's max_episode_length. Or "
                "short runs followed one another, each of which breaks off episodes; pass learn the last one's progress"
            )
        if metrics.get("policy/skipped_minibatches") and "loss/policy" not in metrics:
            found.append("the update was skipped whole: observations, rewards or the loss are not finite")
        elif self._learning and "loss/value" not in metrics:
            found.append("gradient steps were skipped: observations, rewards or the loss are not finite")
        self._learning |= "loss/value" in metrics
        fresh = [f"iteration {report.iteration}: {text}; it is said once" for text in found if text not in self._known]
        self._known.update(found)
        return self._left_out(report) + fresh

    def _left_out(self, report: Report) -> list[str]:
        """Name what was left out or limited, the 1st, 2nd, 4th, 8th... time."""
        dropped = [name for name in _DROPPED if report.metrics.get(name)]
        if not dropped and not report.culprits:
            return []
        self._affected += 1
        if self._affected & (self._affected - 1):
            return []
        numbers = {name: report.metrics[name] for name in dropped}
        samples = {name: "1 sample is" if n == 1 else f"{n:,.0f} samples are" for name, n in numbers.items()}
        parts = [f"{text} left out of learning ({name})" for name, text in samples.items()]
        times = "" if self._affected == 1 else f"; so it was in {self._affected:,} iterations by now"
        return [f"iteration {report.iteration}: {'; '.join((*parts, *report.culprits))}{times}"]

    def log(self, report: Report) -> None:
        """Warn of what is new."""
        for text in self.new(report):
            _log.warning(text)


class Stopwatch:
    """Seconds between marks, in the device's own time."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        # Looked up once: an event that has to ask for it takes ten times as long.
        self.stream = torch.cuda.current_stream(device) if self.cuda else None
        self.marks: list[Any] = []
        self.mark()

    def mark(self) -> None:
        """Begin the next span."""
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record(self.stream)
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Time between each mark and the next; waits until the device has passed them."""
        if self.cuda:
            self.marks[-1].synchronize()
        spans = zip(self.marks, self.marks[1:], strict=False)
        return [a.elapsed_time(b) / 1000 if self.cuda else b - a for a, b in spans]
