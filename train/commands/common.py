"""What several commands check, and how they write."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlcore.train.arguments import Job
from rlcore.train.groups import flag_of

READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of a folder in which nothing may be written, as of a run that somebody else has put aside."""


@contextlib.contextmanager
def output_elsewhere(given: Path | None, path: Path) -> Iterator[None]:
    """Name the way out where a run's own folder, that nobody asked for, cannot be written."""
    try:
        yield
    except OSError as error:
        if given is not None or error.errno not in READ_ONLY:
            raise
        raise ValueError(f"'{path}' cannot be written: {error.strerror}; --output FILE writes elsewhere") from error


def closing(env: Any, job: Job) -> Job:
    """The job, after which its env is closed, however it ends."""

    def run() -> int:
        with contextlib.closing(env):
            return job()

    return run


def check_seed(seed: int) -> None:
    """Refuse a seed that NumPy cannot take."""
    from rlcore.train.config import LARGEST_SEED

    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"--seed is {seed}; give a number from 0 to {LARGEST_SEED}")


def required_run(run: Path | None) -> Path:
    """The run that is asked for; one has to be."""
    if run is None:
        raise ValueError("--run is missing; give a run folder or a checkpoint")
    return run


def check_file(flag: str, path: Path | None, example: str) -> None:
    """Refuse a folder in the place of a file that is to be written, before anything is done for it."""
    if path is not None and path.is_dir():
        raise ValueError(f"{flag} is '{path}', which is a folder; name a file in it, such as {path / example}")


def check_folder(flag: str, path: Path | None) -> None:
    """Refuse a file in the place of a folder that is to be written to."""
    if path is not None and path.exists() and not path.is_dir():
        raise ValueError(f"{flag} is '{path}', which is a file; name a folder")


def check_counts(**counts: int | None) -> None:
    """Refuse numbers below 1."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{flag_of(name)} is {count}; give 1 or more")
