"""The ``rlcore`` command."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from types import FrameType

from rlcore.names import nearest_names
from rlcore.train.ending import (
    FAILED,
    USAGE,
    OutputClosed,
    describe,
    fail,
    full_disk,
    is_mistake,
    mute,
    open_standard_streams,
    show_traceback,
)

HELP = """\
usage: rlcore COMMAND ...

  train       train a policy:            rlcore train --task Reach-UR5e-JointPos
  sweep       find good settings:        rlcore sweep --task TASK --sweep agent.gamma=float:0.9:0.999
  eval        measure a trained policy:  rlcore eval --run RUN
  robustness  measure it disturbed:      rlcore robustness --run RUN
  adapt       fit one to a new task:     rlcore adapt --run RUN
  export      write a policy as ONNX:    rlcore export --run RUN
  play        show a policy as GIF/MP4:  rlcore play --run RUN
  report      show a run as a page:      rlcore report RUN
  doctor      examine an env or a run:   rlcore doctor --task TASK
  tasks       list what can be trained:  rlcore tasks [FILTER]
  config      show or convert settings:  rlcore config --task TASK [--from rsl_rl] [--show]
  import      take over a checkpoint:    rlcore import FILE --task TASK

rlcore COMMAND --help lists the settings of a command, rlcore --version tells the version.
Exit codes: 0 done, 1 the export was refused or the doctor found something, 2 what cannot be done, such as wrong usage
or a full disk (one line says what and how to correct it), 70 something failed, such as the env (its traceback is in
crash.txt of the run folder), 129, 130 or 143 interrupted by SIGHUP, Ctrl-C or SIGTERM, 141 nobody reads the output any
more, as after | head. What was trained is kept, and --resume goes on."""

COMMANDS = (
    "train", "sweep", "eval", "robustness", "adapt", "export", "play", "report", "doctor", "tasks", "config", "import",
)  # fmt: skip
"""Commands, each in a module of ``rlcore.train.commands`` that is imported on demand: PyTorch takes its time."""

_MODULES = {"import": "importing"}
"""Of commands whose name is a word of Python."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: words after ``rlcore``; None takes those of the process.

    Returns:
        The exit code, see ``rlcore.train.ending``. Whatever is wrong gives one line on stderr; ``RLCORE_DEBUG=1`` shows
        the traceback.
    """
    open_standard_streams()
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
    finally:
        launching = sys.modules.get("rlcore.train.commands.launching")
        if launching is not None:
            launching.close_simulator()
    distributed = sys.modules.get("rlcore.distributed")
    if distributed is not None and distributed.hangs():  # all is written; what Python does at its end might hang, too
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    return code


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if words[0] in ("-V", "--version"):
        from rlcore._version import __version__

        print(f"rlcore {__version__}")
        return 0
    name = words[0]
    if name not in COMMANDS:
        close = nearest_names(name, COMMANDS, 1, cutoff=0.6)
        hint = f"did you mean '{close[0]}'?" if close else f"commands are {', '.join(COMMANDS)}"
        return _fail("rlcore", ValueError(f"unknown command '{name}'; {hint}"))
    try:
        with _stoppable() as signals:
            module = import_module(f"rlcore.train.commands.{_MODULES.get(name, name)}")
            job = getattr(module, f"{name}_command")(words[1:])
        if signals:
            return 130
        sys.stdout.flush()
    except (BrokenPipeError, OutputClosed):
        mute()  # the reader, such as head, has seen enough
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # so far, an env's own words for what it cannot do are told as a mistake, too
        mistake = isinstance(error, (ValueError, OSError, ImportError)) or is_mistake(error)
        return _fail(f"rlcore {name}", error, mistake)
    try:
        code: int = job()
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except OutputClosed:
        return 0
    except Exception as error:
        return _fail(f"rlcore {name}", error, is_mistake(error))
    return code


@contextmanager
def _stoppable() -> Iterator[list[int]]:
    """Remember Ctrl-C: some libraries swallow a KeyboardInterrupt while they are imported."""
    signals: list[int] = []
    own = threading.current_thread() is threading.main_thread()
    if not own or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield signals
        return

    def receive(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, receive)
    try:
        yield signals
    except Exception:
        if signals:  # what was half imported fails in ways of its own
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _fail(prog: str, error: Exception, mistake: bool = True) -> int:
    show_traceback(error)
    text = str(error) if mistake and full_disk(error) is None else describe(error)
    if "WORLD_SIZE" in os.environ:
        from rlcore.distributed import first_to_say

        if not first_to_say(text):
            return USAGE if mistake else FAILED
    fail(prog, text)
    return USAGE if mistake else FAILED
