"""The folder of a run: where its configuration, checkpoints, metrics and exported policy are kept."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import time
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

from rlcore.checkpoint import save_checkpoint
from rlcore.config import load_yaml, save_yaml
from rlcore.files import remove_stale, whole_file
from rlcore.train.algorithms import find
from rlcore.train.config import TrainConfig, read_config, safe_name
from rlcore.train.ending import CRASH_FILE


class RunLocked(ValueError):
    """Another process trains in a run folder; the message names it."""


_LEVELS = 3
"""Of folders from where runs are to a run: task, algorithm, run."""
_ALIKE = 0.6
"""Likeness from which on a run may be the one that was meant."""
_NEWEST = 3
"""Runs that are named beside it."""

_trained_here: set[Path] = set()  # folders of runs that this process trains in


class RunFolder:
    """Paths of one run, ``runs/<task>/<algo>/<time>-<name>/``, and its checkpoints.

    Checkpoints are named by iteration, so the last one is the highest number: ``checkpoints/000120.pt``.
    ``checkpoints/best.pt`` is the one that did best in evaluation.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.checkpoints = path / "checkpoints"
        self.best = self.checkpoints / "best.pt"
        self.evaluation, self.robustness = path / "eval.json", path / "robustness.json"
        self.exported = path / "export" / "policy.onnx"
        self.end = path / "end.json"
        self.videos = path / "videos"
        self._lock: int | None = None

    @classmethod
    def create(cls, config: TrainConfig) -> RunFolder:
        """Make a new folder, never one that exists, and write the configuration into it."""
        parent = Path(config.runs_dir) / safe_name(config.task) / find(config.algo).name
        stem = time.strftime("%Y%m%d-%H%M%S") + (f"-{config.name}" if config.name else "")
        path, number = parent / stem, 1
        while True:
            try:
                path.mkdir(parents=True)
                break
            except FileExistsError:
                number += 1
                path = parent / f"{stem}-{number}"
        run = cls(path)
        run.checkpoints.mkdir()
        run.write_config(config)
        return run

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The run at ``path``, which may also be one of its checkpoints or its checkpoint folder.

        Raises:
            FileNotFoundError: there is no run there; the message names the nearest, and the newest of its task.
        """
        if path.is_file() and path.suffix == ".onnx":
            raise FileNotFoundError(f"'{path}' is an exported file; name its run folder, or give it to --onnx")
        if path.parent.name != "checkpoints":
            _refuse_others(path)
        for folder in (path, path.parent, path.parent.parent):
            if path.exists() and (folder / "config.yaml").is_file():
                return cls(folder)
        _refuse_others(path)
        # Down to runs/: deeper folders, as of one's home, could be many.
        below = [found.parent for stars in ("*", "*/*", "*/*/*") for found in path.glob(f"{stars}/checkpoints")]
        if below:
            latest = max(below, key=lambda folder: folder.name)
            raise FileNotFoundError(f"no run at '{path}', but {len(below)} below it; name one, the latest is {latest}")
        if path.parent.name == "checkpoints" and (path.parent.parent / "config.yaml").is_file():
            cls(path.parent.parent).checkpoint(path.stem)  # says which there are
        raise FileNotFoundError(f"no run at '{path}'; {_hint(path)}")

    def take_over(self) -> list[str]:
        """Keep other processes from training here, and remove what one that was killed has left half written.

        The lock is the kernel's: it ends with this process, however that ends, or with ``unlock``. It is one of the
        whole process (lockf), so that the workers of an env, which may live longer, do not hold it.

        Returns:
            What is to be said of it.

        Raises:
            RunLocked: another process trains here.
        """
        notes: list[str] = []
        here = self.path.resolve()
        if here in _trained_here:  # to the kernel all of this process is one
            raise RunLocked(f"{self.path} is being trained by this process; wait for its end, then resume")
        try:
            lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise
            raise ValueError(
                f"'{self.path}' cannot be written: {error.strerror}; copy the run to where it can, and resume the copy"
            ) from error
        try:
            if fcntl is not None:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = os.read(lock, 200).decode(errors="replace").strip() or "another process"
            os.close(lock)
            raise RunLocked(
                f"{self.path} is being trained by {holder}; wait for its end or stop it (kill PID lets it write a "
                "checkpoint first), then resume"
            ) from None
        except OSError as error:
            notes.append(f"this file system knows no locks ({error.strerror}); see to it that nothing else trains here")
        with contextlib.suppress(OSError):  # a full disk; the lock holds without it
            os.ftruncate(lock, 0)
            os.write(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        self._lock = lock
        _trained_here.add(here)
        stale = [p for place in (self.path, self.checkpoints, self.exported.parent) for p in remove_stale(place)]
        if stale:
            notes.append(
                f"removed what a process that was killed had not written to its end: {', '.join(map(str, stale))}"
            )
        return notes

    def unlock(self) -> None:
        """Let others train here."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
            _trained_here.discard(self.path.resolve())

    def read_config(self) -> TrainConfig:
        """The configuration of the run."""
        return read_config(load_yaml(self.config_file), source=str(self.config_file))

    def write_config(self, config: TrainConfig) -> None:
        """Write the resolved configuration; ``rlcore train --config`` of it repeats the run."""
        save_yaml(self.config_file, config)

    def note_end(self, said: str, iteration: int) -> None:
        """Write down why the run ended, as it was said; a disk that is full leaves it unsaid."""
        record = {"ended": said, "iteration": iteration, "time": time.strftime("%Y-%m-%d %H:%M:%S")}
        with contextlib.suppress(OSError), whole_file(self.end) as file:
            file.write(json.dumps(record, indent=2) + "\n")

    def set_aside_crash(self) -> bool:
        """Move tracebacks of what ended the run to those of earlier ends, and say whether there were any."""
        crash = self.path / CRASH_FILE
        if not crash.is_file():
            return False
        with contextlib.suppress(OSError):  # it is not worth a run
            with crash.with_suffix(".txt.old").open("a", encoding="utf-8") as old:
                old.write(crash.read_text(encoding="utf-8", errors="replace"))
            crash.unlink()
            return True
        return False

    def filmed(self) -> list[Path]:
        """Videos of evaluations by iteration, oldest first."""
        return sorted(self.videos.glob("*.gif"))

    def numbered(self) -> list[Path]:
        """Checkpoints by iteration, oldest first."""
        found = (p for p in self.checkpoints.glob("*.pt") if re.fullmatch(r"\d+", p.stem))
        return sorted(found, key=lambda p: int(p.stem))

    def save(self, content: dict[str, Any], iteration: int, keep: int) -> Path:
        """Write the checkpoint of an iteration, then drop all but the ``keep`` latest (0: keep all)."""
        path = self.checkpoints / f"{iteration:06d}.pt"
        save_checkpoint(path, content)
        for old in self.numbered()[:-keep] if keep else []:
            with contextlib.suppress(FileNotFoundError):
                old.unlink()
        return path

    def checkpoint(self, which: str = "best") -> Path:
        """The path of ``best``, ``last`` or an iteration's checkpoint.

        Without evaluations there is no best one, and the last one is meant.

        Raises:
            FileNotFoundError: there is no such checkpoint; the message lists those there are.
        """
        numbered = self.numbered()
        if which == "best" and self.best.is_file():
            return self.best
        if which in ("best", "last") and numbered:
            return numbered[-1]
        if which.isdigit():
            found = next((p for p in numbered if int(p.stem) == int(which)), None)
            if found is not None:
                return found
        have = (["best"] if self.best.is_file() else []) + [str(int(p.stem)) for p in numbered]
        raise FileNotFoundError(
            f"no checkpoint '{which}' in {self.checkpoints}; there is {', '.join(have)}"
            if have
            else f"no checkpoint in {self.checkpoints}; the run ended before it wrote one: begin anew with "
            f"rlcore train --config {self.config_file}"
        )


def _refuse_others(path: Path) -> None:
    """Say what makes a run of a checkpoint of another library.

    Raises:
        FileNotFoundError: it is one.
    """
    if path.suffix not in (".pt", ".pth", ".zip") or not path.is_file():
        return
    from rlcore.train.importers.checkpoints import library_of  # which nobody else needs

    library = library_of(path)
    if library is not None:
        raise FileNotFoundError(
            f"'{path}' is a checkpoint of {library}; make a run of it: rlcore import {path} --task TASK"
        )


def _hint(path: Path) -> str:
    """Which run a path of none may mean, and the newest of its task; what a run folder has, where there are none."""
    place, levels = path.parent, 1
    while not place.is_dir() and levels < _LEVELS:
        place, levels = place.parent, levels + 1
    runs = [folder.parent for folder in place.glob("*/" * levels + "checkpoints")] if place.resolve().name else []
    if not runs:  # such as a name alone, or a path of which the root of all files is all that there is
        runs = [folder.parent for folder in Path(TrainConfig.runs_dir).glob("*/" * _LEVELS + "checkpoints")]
    if not runs:
        return "give a run folder (it has a config.yaml and checkpoints/) or one of its checkpoints"
    runs.sort(key=lambda run: run.name, reverse=True)
    # Of runs of one name the one of the nearest time, else the newest.
    near = max(runs, key=lambda run: (_likeness(run, path), SequenceMatcher(None, run.name, path.name).ratio()))
    if _likeness(near, path) < _ALIKE:
        return f"the newest are {', '.join(map(str, runs[:_NEWEST]))}"
    others = [str(run) for run in runs if run.parent.parent == near.parent.parent and run != near]
    newest = f" Others of {near.parent.parent.name}: {', '.join(others[:_NEWEST])}" if others else ""
    return f"did you mean '{near}'?{newest}"


def _likeness(run: Path, path: Path) -> float:
    """How much a path is like that of a run, 0 to 1: the mean over the names that may differ."""
    parts = [(own, given) for own, given in zip(run.parts[::-1], path.parts[::-1], strict=False)][:_LEVELS]
    names = [re.sub(r"^[\d*]+(-\d{6})?-(?=.)", "", name) for name in parts[0]]  # without the time, which is no name
    pairs = [parts[0] if re.match(r"\d", names[0]) else (names[0], names[1]), *parts[1:]]
    return sum(SequenceMatcher(None, own.lower(), given.lower()).ratio() for own, given in pairs) / len(pairs)


def locate(path: Path, which: str = "best") -> tuple[RunFolder, Path]:
    """The run and the checkpoint that a path means: a checkpoint itself, or ``which`` one of a run folder."""
    run = RunFolder.open(path)
    return run, (path if path.is_file() and path.suffix == ".pt" else run.checkpoint(which))


def located(path: Path, checkpoint: str) -> tuple[RunFolder, Path]:
    """The run and the checkpoint that ``--run`` and ``--checkpoint`` mean.

    Raises:
        FileNotFoundError: there is no such run or checkpoint.
        ValueError: both name a checkpoint.
    """
    found = locate(path, checkpoint)
    if found[1] == path and checkpoint != "best":
        raise ValueError(f"--checkpoint is '{checkpoint}', and '{path}' is one itself; leave --checkpoint out")
    return found
