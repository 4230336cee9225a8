"""Show a policy as it goes, in a window, with commands from the keyboard."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

from rlcore.env import spec_of
from rlcore.env_check import StepCheck, check_obs
from rlcore.stage import reset_at
from rlcore.train.evaluate import Controller
from rlcore.train.source import Source
from rlcore.train.steering import QUIT, Steering, steering_of, terminal_keys
from rlcore.train.window import Window, window_for
from rlcore.types import begins


def show(source: Source, steps: int | None, seed: int, real_time: bool, window: Window | None = None) -> str:
    """Run a policy in a window until it is closed, a key or Ctrl-C ends it, or its steps are over.

    Args:
        source: the policy, and its env of one copy.
        steps: control steps at most; None for no end.
        seed: of the episodes.
        real_time: let a second of the simulation take a second.
        window: where to show it; None is the one for the task.

    Returns:
        What was shown, in words.

    Raises:
        ValueError: there is no window for the env, or the env returns something of a wrong type or shape.
    """
    window = window_for(source.env, source.task) if window is None else window
    control_dt = float(spec_of(source.env).deployment.get("control_dt", 0.0))
    steering = steering_of(source.env)
    if steering is not None:
        print(steering.help, flush=True)
    with terminal_keys() as pressed:
        shown = _Shown(source, steps, seed, steering, lambda: [*pressed(), *window.keys()])
        with contextlib.suppress(KeyboardInterrupt):
            window.run(shown.step, shown.begin, control_dt if real_time and control_dt else None)
    time = f", {shown.count * control_dt:.1f} s" if control_dt else ""
    gate = f"; the gate acted in {shown.acted}" if shown.acted else ""
    return f"{shown.count} steps{time}, {shown.episodes} episodes ended{gate}"


class _Shown:
    """Episodes of a policy, a step at a time."""

    def __init__(
        self, source: Source, steps: int | None, seed: int, steering: Steering | None, keys: Callable[[], list[str]]
    ) -> None:
        self._env: Any = source.env
        self._source, self._steps, self._seed, self._keys = source, steps, seed, keys
        self._steering, self._check = steering, StepCheck(source.env)
        self.count = self.episodes = self.acted = 0
        self.begin()

    def begin(self) -> None:
        """Start a new episode."""
        self._controller = Controller(self._source.policy, self._env)
        self._obs = reset_at(self._env, self._source.stage, self._seed)
        check_obs(self._env, self._obs, "reset")
        self._tell()

    def step(self) -> bool:
        """One control step; false when it was the last."""
        keys = self._keys()
        if any(key in QUIT for key in keys):
            return False
        if self._steering is not None:
            if any([self._steering.press(key) for key in keys]):
                self._tell()
            self._env.steer(self._steering.name, self._steering.values)
        step = self._env.step(self._controller.act(self._obs))
        self._check(step)
        if self._controller.acted is not None and bool(self._controller.acted.flatten()[0]):
            self.acted += 1
        begun = begins(step)
        self.episodes += int(begun[0])
        self._controller.forget(begun)
        self._obs = step.obs
        self.count += 1
        return self._steps is None or self.count < self._steps

    def _tell(self) -> None:
        if self._steering is not None and sys.stdout.isatty():
            print(f"\r\x1b[K{self._steering}", end="", flush=True)
