"""How a command ends: exit codes, signals, a reader that goes away, and one line that says what happened."""

from __future__ import annotations

import errno
import opcode
import os
import signal
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from rlcore.resume import Progress
    from rlcore.train.run import RunFolder

USAGE = 2
"""What a user can put right: the command line, a configuration, a file, an env's broken promise, a full disk."""
FAILED = 70
"""Something failed that should not have, such as an env or a simulator (EX_SOFTWARE of sysexits.h)."""
CLOSED = 128 + 13
"""Nobody reads the output any more, as after ``| head``: what a shell reports for SIGPIPE."""

PATIENCE = 1.0
"""Seconds after the first Ctrl-C in which another does not count, because the hint cannot have been read yet."""

HINT = (
    "finishing the iteration in progress, then writing a checkpoint; once more to stop at once, losing that iteration"
)

LOST = "rank {} has ended, and the others end with it: the last finished iteration is saved"

TOO_SOON = "that one came too soon after the first to count; once more stops at once, losing the iteration"

LONGEST_LINE = 1000
"""Characters of what an error says."""

CRASH_FILE = "crash.txt"
"""In the run folder: tracebacks of what failed."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LIBRARY = sysconfig.get_path("stdlib")


class Stopped(SystemExit):
    """A signal that is not to wait for the end of the iteration."""


class OutputClosed(OSError):
    """Standard output cannot be written any more: its reader or its terminal is gone."""


class Interrupt:
    """What SIGINT, SIGTERM and SIGHUP mean: the first asks to stop after the iteration, the second stops.

    After the training, when there are no more iterations, ``at_once`` lets the first one stop.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.at_once = False
        self.show: Callable[[str], bool] = lambda text: False
        """Shows the hint in a live display, and says whether there is one."""
        self.gone: Callable[[], list[int]] = list
        """Which other ranks have ended: then it is their end that the signal tells of, and nobody's wish."""
        self.lost: list[int] = []
        """Those that had when the first signal came."""
        self._since = 0.0

    @contextmanager
    def handling(self) -> Iterator[Interrupt]:
        """Take the signals over for a while; SIGHUP not where it is ignored, as under nohup."""
        numbers = [signal.SIGINT, signal.SIGTERM]
        hangup = getattr(signal, "SIGHUP", None)
        if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
            numbers.append(hangup)
        before = {number: signal.signal(number, self._receive) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.at_once:
            self.signal = self.signal or number
            raise Stopped(128 + number)
        hint = HINT
        if self.signal is None:
            self.signal, self._since, self.lost = number, now, self.gone()
            hint = LOST.format(", ".join(map(str, self.lost))) if self.lost else HINT
        # A closing terminal hangs up on its shell and on what runs in it, so that it comes twice.
        elif number != getattr(signal, "SIGHUP", None):
            if now - self._since > PATIENCE:
                raise Stopped(128 + number)
            hint = TOO_SOON
        if not self.show(hint):
            with suppress(OSError):  # os.write, because a signal may arrive inside a print
                os.write(2, f"\n{hint}\n".encode())


class Output:
    """Standard output as a file whose writer learns by ``OutputClosed``, once, that nobody reads any more.

    Later writes vanish, so that what is still to be done is done.
    """

    def __init__(self) -> None:
        self._gone = self._told = False

    @property
    def _file(self) -> Any:
        return getattr(sys.stdout, "rich_proxied_file", sys.stdout)  # a live display puts itself there

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        """Write, as a file does."""
        self._do(lambda: self._file.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush, as a file does."""
        self._do(lambda: self._file.flush())

    def _do(self, action: Callable[[], Any]) -> None:
        if not self._gone:
            try:
                action()
            except OSError as error:
                if error.errno in _FULL:
                    raise
                self._gone = True
                mute()
        # A thread that draws a live display could not tell anybody.
        if self._gone and not self._told and threading.current_thread() is threading.main_thread():
            self._told = True
            raise OutputClosed(errno.EPIPE, "nobody reads the output any more")


def standard_output() -> TextIO:
    """An ``Output``, as what Python calls a file."""
    return cast(TextIO, Output())


def mute() -> None:
    """Let standard output go nowhere: Python would complain when it flushes at exit."""
    with suppress(OSError, ValueError, AttributeError):  # a stand-in for it may have no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def open_standard_streams() -> None:
    """Give a process that was started without its standard streams ones that go nowhere.

    Otherwise the next file that is opened takes a stream's number, and what is meant for the terminal lands in it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115


def fail(prog: str, text: str) -> None:
    """Say on standard error, if there is one, what went wrong."""
    with suppress(OSError, ValueError):
        print(f"{prog}: error: {one_line(text)}", file=sys.stderr, flush=True)


def one_line(text: str) -> str:
    """A text without line breaks, cut where it is long: what was given may be in it, and be anything."""
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_LINE else f"{text[: LONGEST_LINE - 300]} ... {text[-295:]}"


def show_traceback(error: BaseException) -> None:
    """Print where an error comes from, if ``RLCORE_DEBUG=1`` asks for it."""
    if os.environ.get("RLCORE_DEBUG") == "1":
        with suppress(OSError, ValueError):
            traceback.print_exception(error)


@contextmanager
def quiet_threads() -> Iterator[None]:
    """Keep a full disk to one line: tensorboard's thread would print a traceback, and raises the error here as well."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if full_disk(args.exc_value) is None:
            before(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def full_disk(error: BaseException | None) -> OSError | None:
    """The error of a full disk behind an error, if that is what it comes from."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if isinstance(error, OSError) and error.errno in _FULL:
            return error
        seen.append(error)
        error = error.__cause__ or error.__context__
    return None


def is_mistake(error: BaseException) -> bool:
    """Whether an error tells of something that a user can put right, rather than of something that failed.

    That is what rlcore itself refuses, by a ValueError, a file that it cannot read or write, and a module that is
    missing. The same errors out of an env, a simulator or another library are failures.
    """
    if full_disk(error) is not None:
        return True
    if _of_an_env(error) and error.__cause__ is not None:
        error = error.__cause__
    if not isinstance(error, (ValueError, OSError, ImportError)):
        return False
    module, *_, raised = _origin(error)
    return module.partition(".")[0] == "rlcore" and (raised or not isinstance(error, ValueError))


def describe(error: BaseException) -> str:
    """An error in one line: for a mistake its message alone, for a failure also what and where it is."""
    text = " ".join(str(error).split())
    full = full_disk(error)
    if full is not None:
        return f"the disk is full ({' '.join(str(full).split())}); make room"
    if is_mistake(error) or _is_a("rlcore.distributed", "RankLost", error):
        return text
    if _of_an_env(error):
        _, file, line, function, _ = _origin(error.__cause__ or error)
    else:
        text, (_, file, line, function, _) = f"{type(error).__name__}: {text}", _origin(error)
    return f"{text} ({Path(file).name}:{line} in {function})" if file else text


def _of_an_env(error: BaseException) -> bool:
    return _is_a("rlcore.env", "EnvFailed", error)


def _is_a(module: str, name: str, error: BaseException) -> bool:
    there = sys.modules.get(module)  # not imported for this, because it takes its time
    return there is not None and isinstance(error, getattr(there, name))


def _origin(error: BaseException) -> tuple[str, str, int, str, bool]:
    """Module, file, line and function that an error comes from, and whether a ``raise`` is there.

    Where the standard library raised it, who called that: there, as where C does, is no ``raise``.
    """
    found, trace = ("", "", 0, "", False), error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        file = code.co_filename
        if not file.startswith("<frozen") and not (file.startswith(_LIBRARY) and "site-packages" not in file):
            raised = trace.tb_next is None and opcode.opname[code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"
            found = str(trace.tb_frame.f_globals.get("__name__", "")), file, trace.tb_lineno, code.co_name, raised
        trace = trace.tb_next
    return found


def end_of_run(
    error: BaseException,
    interrupt: Interrupt,
    run: RunFolder | None,
    progress: Progress | None,
    save: Callable[[], None],
) -> int:
    """Keep what a run has that an error or a signal ends, and say what happened and how to go on, in one line.

    Args:
        error: what ended it.
        interrupt: whether it had been asked to stop; what fails then, as processes do that got the same Ctrl-C, is a
            part of stopping.
        run: its folder; None where it has none yet.
        progress: where it stands; None before it began.
        save: writes the checkpoint of the last finished iteration, unless it is there.

    Returns:
        The exit code.
    """
    show_traceback(error)
    gone = bool(interrupt.lost) and _is_a("rlcore.distributed", "RankLost", error)
    number = None if gone else interrupt.signal
    if isinstance(error, KeyboardInterrupt):  # a simulator may have taken over what Ctrl-C does
        number = number or int(signal.SIGINT)
    stopping = isinstance(error, (Stopped, KeyboardInterrupt, OutputClosed))
    mistake = not stopping and is_mistake(error)
    if number is not None:
        code, what = 128 + number, "stopped" if stopping else f"stopped, and {describe(error)}"
    elif isinstance(error, OutputClosed):
        code, what = CLOSED, "stopped, because nobody reads the output any more"
    else:
        code, what = (USAGE if mistake else FAILED), f"error: {describe(error)}"
    if progress is not None:
        what += (
            f", {'in' if progress.broken_off else 'after'} iteration {progress.iteration + bool(progress.broken_off)}"
        )
    if run is not None and not stopping and not mistake and not gone:  # what another died of is not to be seen here
        what += write_traceback(error, run.path / CRASH_FILE)
    if run is not None and progress is not None:
        run.note_end(one_line(what), progress.iteration)
    traceback.clear_frames(error.__traceback__)  # what they hold may be the memory that was missing
    kept = "" if run is None or progress is None else _kept(run, progress, save, error)
    with suppress(OSError, ValueError):
        print(f"rlcore train: {one_line(what)}{kept}", file=sys.stderr, flush=True)
    return code


def write_traceback(error: BaseException, path: Path) -> str:
    """Add an error's traceback to a file; returns what is to be said of it."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}, process {os.getpid()}\n")
            file.writelines(traceback.format_exception(error))
            file.write("\n")
    except OSError as second:
        return f"; its traceback could not be written: {second.strerror}"
    return f"; traceback in {path}"


def _kept(run: RunFolder, progress: Progress, save: Callable[[], None], why: BaseException) -> str:
    """Save what there is, and say which iteration to go on from; ``why`` the run ended has been said."""
    said = ""
    try:
        save()
    except Exception as error:
        known = full_disk(error) is not None and full_disk(why) is not None
        said = "; its state could not be saved" + ("" if known else f" ({describe(error)})")
    numbered = run.numbered()
    source = run.path if numbered else run.best
    if not source.exists():
        return f"{said}; there is no checkpoint to go on from: begin anew with rlcore train --config {run.config_file}"
    last = f"iteration {int(numbered[-1].stem)}" if numbered else "the best checkpoint"
    anew = ", with new episodes" if progress.broken_off else ""
    return f"{said}; to go on from {last}{anew}: rlcore train --resume {source}"
