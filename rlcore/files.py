"""Files that are whole or not there."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal


@contextmanager
def whole_file(path: str | Path, mode: Literal["w", "wb"] = "w") -> Iterator[IO[Any]]:
    """A file to write that takes the place of ``path`` once it is whole.

    A crash or a full disk in between leaves the old file, never a part of the new one.

    Raises:
        OSError: it cannot be written; what ``path`` was is still there.
    """
    path = Path(os.path.realpath(path))  # a link stays one
    path.parent.mkdir(parents=True, exist_ok=True)
    text: dict[str, Any] = {} if mode == "wb" else {"encoding": "utf-8", "newline": ""}
    if path.exists() and not path.is_file():  # such as /dev/stdout
        with path.open(mode, **text) as file:
            yield file
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open(mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def draft(path: Path) -> Iterator[Path]:
    """A file for others to write, alone in a folder, that takes the place of ``path`` where nothing is raised.

    The folder is beside ``path``, so that the last step is a rename within one file system; a link stays one.
    """
    path = Path(os.path.realpath(path))
    start, end = f".{path.name[:100]}.", f".{os.getpid()}.tmp"
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=start, suffix=end) as folder:
        yield Path(folder) / path.name
        os.replace(Path(folder) / path.name, path)


def remove_stale(folder: Path) -> list[Path]:
    """Remove what ``whole_file`` and ``draft`` left of processes that were killed; those of processes that run stay.

    Returns:
        What was removed.
    """
    removed = []
    for path in folder.glob(".*.tmp"):
        found = re.fullmatch(r"\..*\.(\d+)\.tmp", path.name)
        if found and not (int(found[1]) != os.getpid() and _runs(int(found[1]))):
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                removed.append(path)
    return removed


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OverflowError:
        return False
    except OSError as error:
        return isinstance(error, PermissionError)  # another user's
    return True
