"""Settings that change over a run: one mechanism for all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from rlcore.config import ConfigError, check, nearest
from rlcore.types import Metrics


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How a setting goes from one value to another."""

    end: float
    """Value from ``until`` on."""
    start: float | None = None
    """Value up to ``begin``; none: that of the setting itself."""
    shape: Literal["linear", "cosine", "exponential", "steps"] = "linear"
    """linear: evenly; cosine: along half a cosine, slow at both ends; exponential: by the same factor each iteration;
    steps: in jumps, over as many values as levels says."""
    begin: float = 0.0
    """Where it begins: up to 1 a share of the run, above that an iteration."""
    until: float = 1.0
    """Where it ends, likewise; 1 is the end of the run."""
    levels: int = 5
    """Values of steps, evenly from start to end."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        for key in ("begin", "until"):
            check(0 <= getattr(self, key) < math.inf, key, getattr(self, key), "set a share of the run or an iteration")
        rising = self.begin < self.until or (self.begin > 1 >= self.until)  # the latter is told when the run is known
        check(rising, "until", self.until, f"set more than begin ({self.begin:g})")
        check(self.levels >= 2, "levels", self.levels, "set at least 2")

    def value(self, own: float, iteration: int, num_iterations: int | None) -> float:
        """The value in an iteration.

        Args:
            own: the setting's, where ``start`` is none.
            iteration: done so far, 0 in the first one.
            num_iterations: of the whole run.

        Raises:
            ConfigError: it depends on the length of the run, which nobody gave, or ends before it begins.
        """
        first, last = (self._iteration(point, num_iterations) for point in (self.begin, self.until))
        if first >= last:
            raise ConfigError(f"it begins in iteration {first:g} and ends in {last:g}; set more for until")
        gone = min(1.0, max(0.0, (iteration - first) / (last - first)))
        start = own if self.start is None else self.start
        if self.shape == "exponential":
            return float(start ** (1 - gone) * self.end**gone)
        if self.shape == "cosine":
            gone = (1 - math.cos(math.pi * gone)) / 2
        elif self.shape == "steps":
            gone = min(math.floor(gone * self.levels), self.levels - 1) / (self.levels - 1)
        return start * (1 - gone) + self.end * gone

    @property
    def by_share(self) -> bool:
        """Whether it depends on the length of the run."""
        return 0 < self.begin <= 1 or self.until <= 1

    @staticmethod
    def _iteration(point: float, num_iterations: int | None) -> float:
        if point == 0 or point > 1:
            return point
        if num_iterations is None:
            raise ConfigError("a share of the run needs its length; pass num_iterations")
        return point * num_iterations


def check_schedules(
    schedules: Mapping[str, ScheduleConfig], settings: Any, allowed: tuple[str, ...], positive: tuple[str, ...] = ()
) -> None:
    """Refuse schedules of what has none, and values that the setting could not have.

    Args:
        schedules: by setting.
        settings: that they are of, with ``lr_schedule``.
        allowed: settings that may have one.
        positive: of these, what must not be 0.

    Raises:
        ConfigError: names the setting and the remedy.
    """
    for name, schedule in schedules.items():
        key = f"schedules.{name}"
        if name not in allowed:
            raise ConfigError(f"{key}: '{name}' has no schedule here; {nearest(name, allowed)}")
        for end in ("start", "end"):
            value = getattr(schedule, end)
            value = getattr(settings, name) if value is None else value
            above = name in positive or schedule.shape == "exponential"
            what = "more than 0" if above else "0 or more"
            check(0 <= value < math.inf and (value > 0 or not above), f"{key}.{end}", value, f"set {what}")
    if "learning_rate" in schedules:
        remedy = "it moves the learning rate, too: set lr_schedule to constant, or leave schedules.learning_rate out"
        check(settings.lr_schedule == "constant", "lr_schedule", settings.lr_schedule, remedy)


def spread(schedules: Mapping[str, ScheduleConfig]) -> str:
    """Those that span a share of the run, in words; empty where there are none."""
    names = [name for name, schedule in schedules.items() if schedule.by_share]
    return f"schedule of {', '.join(names)}" if names else ""


class Schedules:
    """The values of scheduled settings, on the device, where recorded graphs read them.

    They are changed in place between iterations, by numbers that the host knows: nothing is read from the device, and
    a resumed run has the same values, since they depend on the iteration alone.

    Args:
        schedules: by setting.
        settings: that they are of.
        device: of the values.
        parts: numbers by which settings are divided to be values; none: they are the values.
        held: tensors that hold a setting already, such as a learning rate; they are filled.
    """

    def __init__(
        self,
        schedules: Mapping[str, ScheduleConfig],
        settings: Any,
        device: torch.device,
        parts: Mapping[str, int] | None = None,
        **held: Tensor,
    ) -> None:
        self._schedules, self._parts = dict(schedules), parts or {}
        self._own = {name: float(getattr(settings, name)) for name in schedules}
        starts = {n: self._own[n] if schedule.start is None else schedule.start for n, schedule in schedules.items()}
        self.values = {n: held[n] if n in held else torch.tensor(x, device=device) for n, x in starts.items()}
        for name, value in self.values.items():
            value.fill_(starts[name] / self._parts.get(name, 1))

    @property
    def by_share(self) -> list[str]:
        """Settings whose schedule depends on the length of the run."""
        return [name for name, schedule in self._schedules.items() if schedule.by_share]

    def follow(self, iteration: int, num_iterations: int | None) -> None:
        """Set the values of an iteration.

        Args:
            iteration: done so far, 0 in the first one.
            num_iterations: of the whole run.

        Raises:
            ConfigError: see ``ScheduleConfig.value``.
        """
        for name, schedule in self._schedules.items():
            try:
                number = schedule.value(self._own[name], iteration, num_iterations)
            except ConfigError as error:
                raise ConfigError(f"schedule of {name}: {error}") from None
            self.values[name].fill_(number / self._parts.get(name, 1))

    def told(self) -> Metrics:
        """The present settings, as metrics."""
        return {f"policy/{name}": value * self._parts.get(name, 1) for name, value in self.values.items()}
