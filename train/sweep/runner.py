"""The runs of a sweep: processes of ``rlcore train``, so many at a time."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from rich.console import Console

from rlcore.config import ConfigError
from rlcore.train.conclude import say
from rlcore.train.ending import Interrupt, Stopped, one_line
from rlcore.train.run import RunFolder
from rlcore.train.sweep.outcome import curve_of, is_done, value_of
from rlcore.train.sweep.plan import SweepPlan, run_of, trial_name
from rlcore.train.sweep.study import Handle, Study
from rlcore.train.threads import usable_cores

COMMAND = (sys.executable, "-m", "rlcore", "train")
"""What trains; the words of the run follow."""

POLL = 0.2
"""Seconds between two looks at the runs."""

PATIENCE = 20.0
"""Seconds that runs have to end once they were told to stop at once."""

HOPELESS = 3
"""Trials, or as many as run side by side, that all fail before any is done: so will the others."""


@dataclass
class Run:
    """A process that trains one seed of a trial."""

    trial: Handle
    seed: int
    process: subprocess.Popen[bytes]
    log: Path
    output: IO[bytes]
    begun: float = field(default_factory=time.monotonic)
    looked: int = 0
    """Modification time of metrics.csv when it was read, in nanoseconds."""
    given_up: bool = False


class Runner:
    """Trains the trials of a study until there are enough, and tells the study how each ends."""

    def __init__(self, folder: Path, plan: SweepPlan, study: Study, console: Console) -> None:
        self._folder, self._plan, self._study, self._console = folder, plan, study, console
        self._running: list[Run] = []
        self._failed = 0
        self._any_done = any(trial.state in ("done", "pruned") for trial in study.trials())
        self._taken = study.interrupted()
        self._refuse_locked()
        self.on_end: Callable[[], None] = lambda: None
        """Called after each trial."""

    def _refuse_locked(self) -> None:
        """Refuse to go on while a process of before still trains a trial: nothing could be said of how it ends.

        Raises:
            RunLocked: one does; the message names it.
        """
        for trial in self._taken:
            run = run_of(self._folder, trial.number, self._next_seed(trial))
            if run is not None:
                folder = RunFolder(run)
                folder.take_over()
                folder.unlock()

    def train(self) -> int | None:
        """Train all trials.

        Returns:
            The signal that stopped them, if one did. What was begun is gone on with when the sweep is.

        Raises:
            ConfigError: the first trials fail, so that all would.
        """
        interrupt = Interrupt()
        told = False
        try:
            with interrupt.handling():
                while True:
                    if interrupt.signal is None:
                        self._begin_more()
                    elif not told:
                        told = True
                        self._signal(signal.SIGINT)
                    if not self._running:
                        return interrupt.signal
                    time.sleep(POLL)
                    for run in list(self._running):
                        self._look(run, stopping=told)
        except Stopped:
            return interrupt.signal or signal.SIGINT
        finally:
            self._stop_at_once()

    def _begin_more(self) -> None:
        while len(self._running) < self._plan.parallel:
            if self._taken:
                self._begin(self._taken.pop(0))
            elif self._study.begun < self._plan.trials:
                self._begin(self._study.ask())
            else:
                return

    def _next_seed(self, trial: Handle) -> int:
        return self._plan.seed + len(trial.values)

    def _begin(self, trial: Handle) -> None:
        """Start the process of a trial's next seed, or have a run that was interrupted go on."""
        seed = self._next_seed(trial)
        name, run = trial_name(trial.number, seed), run_of(self._folder, trial.number, seed)
        if run is not None and (RunFolder(run).numbered() or RunFolder(run).best.is_file()):
            # Its settings are in its folder; the same words once more, for some are those of a simulator or a launcher.
            words = [*without_file(self._plan.words), "--resume", str(run)]
        else:
            own = [f"--{key}={value}" for key, value in trial.settings.items()]
            words = [*self._plan.words, *own, f"--seed={seed}", f"--runs_dir={self._folder / 'runs'}", f"--name={name}"]
        log = self._folder / "logs" / f"{name}.txt"
        log.parent.mkdir(exist_ok=True)
        environment = dict(os.environ)
        if self._plan.parallel > 1:  # otherwise each process would take all cores for itself
            environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // self._plan.parallel)))
        output = log.open("ab")
        # In a session of its own: Ctrl-C in a terminal is for the sweep, which tells its runs.
        process = subprocess.Popen(
            [*COMMAND, *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
        self._running.append(Run(trial, seed, process, log, output))

    def _look(self, run: Run, stopping: bool) -> None:
        """See what has become of a run, and do what follows from it."""
        code = run.process.poll()
        self._report(run, stopping or code is not None)
        if code is None:
            return
        self._running.remove(run)
        run.output.close()
        trial, path = run.trial, run_of(self._folder, run.trial.number, run.seed)
        runs = [run_of(self._folder, trial.number, self._plan.seed + i) for i in range(self._plan.seeds)]
        trial.note(runs=[str(found.relative_to(self._folder)) for found in runs if found is not None])
        trial.note(seconds=round(trial.seconds + time.monotonic() - run.begun, 1))
        # 1: its policy is good, and its export was refused. What was given up may have been done by then.
        if (code in (0, 1) or run.given_up) and path is not None and is_done(path):
            try:
                trial.values[str(run.seed)] = value_of(path, self._plan.metric)
            except ConfigError as error:
                self._fail(trial, str(error))
                return
            trial.note(values=trial.values)
            if len(trial.values) < self._plan.seeds:
                if not stopping:
                    self._begin(trial)
                return
            value = trial.done()
            self._any_done = True
            self._tell(trial, f"{self._plan.metric} {value:.4g}")
        elif run.given_up:
            trial.pruned()
            self._any_done = True
            self._tell(trial, "pruned")
        elif stopping or code in (128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGHUP):
            return  # to be gone on with
        else:
            self._fail(trial, why(code, run.log))

    def _report(self, run: Run, over: bool) -> None:
        """Tell the study what is new in a run's table, and stop the run if that is worse than the others."""
        path = run_of(self._folder, run.trial.number, run.seed)
        # With several seeds the first one decides: curves of different seeds are not to be mixed.
        if path is None or run.given_up or run.seed != self._plan.seed:
            return
        with suppress(OSError):
            changed = (path / "metrics.csv").stat().st_mtime_ns
            if changed == run.looked:
                return
            run.looked = changed
            for iteration, value in curve_of(path, self._plan.metric):
                if run.trial.report(iteration, value) and not over:
                    run.given_up = True
                    run.process.send_signal(signal.SIGINT)
                    return

    def _fail(self, trial: Handle, reason: str) -> None:
        trial.failed(reason)
        self._failed += 1
        self._tell(trial, f"failed: {reason}")
        if not self._any_done and self._failed >= max(HOPELESS, self._plan.parallel):
            raise ConfigError(f"the first {self._failed} trials failed, the last one because: {reason}")

    def _tell(self, trial: Handle, what: str) -> None:
        settings = "  ".join(f"{name.rpartition('.')[2]} {short(value)}" for name, value in trial.settings.items())
        say(self._console, f"trial {trial.number:>4}  {one_line(what)}  {settings}")
        self._console.file.flush()  # the next line may be hours away
        self.on_end()

    def _signal(self, number: int) -> None:
        for run in self._running:
            with suppress(OSError):
                run.process.send_signal(number)

    def _stop_at_once(self) -> None:
        """End what still runs; each run saves its last finished iteration."""
        if not self._running:
            return
        self._signal(signal.SIGINT)
        time.sleep(1.1)  # before that, a second one would count as the same
        self._signal(signal.SIGINT)
        end = time.monotonic() + PATIENCE
        for run in self._running:
            try:
                run.process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                run.process.kill()
                run.process.wait()
            run.output.close()
        self._running.clear()


def without_file(words: Sequence[str]) -> list[str]:
    """Words of ``rlcore train`` without ``--config``, which cannot go with ``--resume``."""
    rest, left = [], list(words)
    while left:
        word = left.pop(0)
        if word == "--config":
            left[:1] = []
        elif not re.match(r"(--)?config=", word):
            rest.append(word)
    return rest


def short(value: str) -> str:
    """A setting's value for people."""
    try:
        number = float(value)
    except ValueError:
        return value
    return f"{number:.4g}"


def why(code: int, log: Path) -> str:
    """Why a process failed: its own last word, or how it ended."""
    said = ""
    with suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        said = next((line for line in reversed(lines) if line.startswith("rlcore train: ")), "")
    if code < 0:
        memory = ", as when memory runs out" if -code == signal.SIGKILL else ""
        return f"ended by signal {-code}{memory}; see {log}"
    text = said.removeprefix("rlcore train: ").removeprefix("error: ")
    return text or f"exit code {code}; see {log}"
