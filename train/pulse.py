"""How far an evaluation has come, so that nobody takes one on a slow simulator for a hang."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console

from rlcore.env import VecEnv
from rlcore.train.evaluate import ENDLESS

EVERY = 30.0
"""Seconds from one line to the next, where there is no live display."""


class Pulse:
    """Told each step of an evaluation before it is taken, as by ``evaluate``; the host alone has to do with it.

    Args:
        env: where the evaluation is.
        show: shows a text in a live display, and says whether there is one.
        write: prints a line.
    """

    def __init__(self, env: VecEnv, show: Callable[[str], bool], write: Callable[[str], None]) -> None:
        self._most = f" of at most {env.max_episode_length:,}" if env.max_episode_length < ENDLESS else ""
        self._show, self._write, self._said = show, write, time.monotonic()

    def __call__(self, t: int) -> None:
        """Say that step ``t``, counted from 0, is next."""
        if t == 0:
            self._said = time.monotonic()
        text = f"evaluating: step {t + 1:,}{self._most}"
        if not self._show(text) and time.monotonic() - self._said >= EVERY:
            self._said = time.monotonic()
            self._write(text)

    def end(self) -> None:
        """Take the text out of the live display again."""
        self._show("")


@contextmanager
def pulse(console: Console, env: VecEnv) -> Iterator[Pulse]:
    """A ``Pulse`` where there is no live display yet: a line that moves on a terminal, and plain ones elsewhere."""
    write = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        yield Pulse(env, lambda text: False, write)
        return
    with console.status("evaluating") as status:

        def show(text: str) -> bool:
            status.update(text)
            return True

        yield Pulse(env, show, write)
