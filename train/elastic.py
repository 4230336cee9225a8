"""``rlcore train --gpus N``: the same command in N processes, started and watched by torchrun's own launcher."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rlcore.config import ConfigError
from rlcore.train.arguments import UsageError
from rlcore.train.ending import FAILED, fail

MOST_PROCESSES = 1024


def processes_in(words: Sequence[str]) -> tuple[int, list[str], str]:
    """How many processes a command line asks for, 0 where it does not, what each of them is told, and by which option.

    ``--gpus`` gives each a GPU; ``--processes`` leaves that to ``--device``.

    Raises:
        UsageError: it is not a number, or torchrun has started this process already.
    """
    rest: list[str] = []
    given: dict[str, str] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        found = re.fullmatch(r"(?:--)?(gpus|processes)=(.*)|--(gpus|processes)", word)
        if found is None:
            rest.append(word)
        elif found[1]:
            given[found[1]] = found[2]
        else:
            given[found[3]] = left.pop(0) if left else ""
    if not given:
        return 0, rest, ""
    if len(given) > 1:
        raise UsageError("--gpus cannot go with --processes; --gpus N starts one process for each GPU")
    ((name, value),) = given.items()
    if not value.isdigit() or not 1 <= int(value) <= MOST_PROCESSES:
        raise UsageError(f"--{name}: '{value}' is not a number of processes; write --{name} 2")
    if "WORLD_SIZE" in os.environ:
        raise UsageError(f"--{name} cannot go with torchrun, which says how many processes there are; leave it out")
    if name == "gpus":
        if any(re.match(r"(--)?device(=|$)", word) for word in rest):
            raise UsageError("--device cannot go with --gpus, which gives each process its own; leave one out")
        rest += ["--device", "cuda"]
    return int(value), rest, f"--{name}"


def share_among(num_envs: int, number: int) -> int:
    """Envs of each of so many ranks.

    Raises:
        ConfigError: they cannot be shared evenly.
    """
    share, left = divmod(num_envs, number)
    if left:
        near = max(1, share) * number
        raise ConfigError(
            f"num_envs is {num_envs}, of all {number} ranks together, which share it evenly; give {near}"
            + f" or {near + number}" * bool(share)
        )
    return share


def on_own_device(words: Sequence[str]) -> list[str]:
    """Name this rank's GPU to a simulator that starts before PyTorch, unless it is to run on the CPU."""
    words = list(words)
    if "LOCAL_RANK" not in os.environ:
        return words
    for i, word in enumerate(words):
        found = re.fullmatch(r"(?:--)?device=(.*)|--device", word)
        if found is not None:
            value = words[i + 1] if found[1] is None and i + 1 < len(words) else found[1]
            if value not in ("cuda", "auto"):
                return words
            del words[i : i + (2 if found[1] is None else 1)]
            break
    return [*words, "--device", f"cuda:{os.environ['LOCAL_RANK']}"]


def start(number: int, words: Sequence[str], option: str) -> int:
    """Run ``rlcore train`` in so many processes on this machine, and wait for all of them.

    When one ends with an error, the others are told to stop, and after 30 s are stopped. Signals are passed on.

    Args:
        number: of processes.
        words: what each of them is told.
        option: by which the number was given.

    Returns:
        The exit code: 0, or that of the process that failed first, or 128 + signal.

    Raises:
        UsageError: there are not as many GPUs.
    """
    _check_gpus(number, words, option)
    asked = re.findall(r"(?:^|\s)(?:--)?num[_-]envs[= ](\d+)(?=\s|$)", " ".join(words))
    if asked:  # what is not on the command line every rank finds out by itself
        share_among(int(asked[-1]), number)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from rlcore.train.threads import usable_cores

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=number,
        run_id=f"rlcore-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        with _as_it_was():
            # Otherwise each process would take all cores for itself.
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // number)))
            if os.environ.get("RLCORE_DEBUG") != "1":  # processes say themselves what happens
                logging.disable(logging.CRITICAL)
            elastic_launch(config, sys.executable)("-m", "rlcore", "train", *words)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return failure.exitcode
        fail("rlcore train", f"rank {rank} was ended by signal {-failure.exitcode}")  # it could not say so itself
        return FAILED
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Bring back what the launcher changes of this process: signals, environment and logging."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]
    handlers = {number: signal.getsignal(number) for number in numbers}
    environment, disabled = dict(os.environ), logging.root.manager.disable
    try:
        yield
    finally:
        logging.disable(disabled)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _check_gpus(number: int, words: Sequence[str], option: str) -> None:
    devices = re.findall(r"(?:^|\s)(?:--)?device[= ](\S+)", " ".join(words))
    if devices[-1:] == ["cuda"]:
        import torch

        have = torch.cuda.device_count()
        if have < number:
            fewer = f"give at most {have}, or" if have else "give"
            other = "--device cpu" if option == "--processes" else f"--processes {number} --device cpu"
            asked = f"{option} is {number}" + (" with --device cuda" if option == "--processes" else "")
            raise UsageError(f"{asked}, and PyTorch sees {have or 'no'} GPU{'s' * (have != 1)} here; {fewer} {other}")
