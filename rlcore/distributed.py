"""Several processes that train one policy, each on envs of its own: how they meet, and what they sum up.

PyTorch's ``torch.distributed`` does the work, started by torchrun. A process that has joined nobody is alone, and so is
the only rank: there every function returns what it is given. What is summed has the same bits on every rank, so that
all ranks that began alike take the same step.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor

from rlcore.capture import forget_recordings
from rlcore.config import ConfigError
from rlcore.types import Metrics

START_LIMIT = 60.0
"""Seconds in which all ranks have to be there."""

dist: Any = torch.distributed  # whose names are not all declared

_PATIENCE = timedelta(minutes=30)  # with a rank that is alive, such as the one that evaluates
_ROLL_CALL = 3.0  # seconds in which those that are left find each other, to tell which one is not
_LEAVING = 20.0  # seconds for the end of the process group, which NCCL may wait for without end

_log = logging.getLogger(__name__)


class RankLost(RuntimeError):
    """Another rank is gone, or cannot be reached; the message says which."""


class World(NamedTuple):
    """All ranks of a run, as one of them sees it."""

    rank: int = 0
    size: int = 1
    joined: bool = False
    """Whether there is a process group, which may be one of a single rank."""
    store: Any = None
    """Where ranks leave notes for each other."""
    places: tuple[str, ...] = ()
    """Host and device of each rank."""
    processes: tuple[int, ...] = ()
    """Number of each rank's process; 0 where it cannot be seen from here, as on another host."""

    @property
    def several(self) -> bool:
        """Whether there is another rank; one alone sums nothing: copies for it are 2 % of a short iteration."""
        return self.size > 1

    @property
    def main(self) -> bool:
        """Whether this is the rank that logs, evaluates and saves."""
        return self.rank == 0

    def seed(self, seed: int) -> int:
        """A rank's own seed for envs and exploration; that of rank 0, and so of one process, is the run's."""
        return (seed + 7_919_017 * self.rank) % 2**31


_world = World()
_aborted = _hangs = False


def world() -> World:
    """The ranks that this process has joined."""
    return _world


def started_by_torchrun() -> bool:
    """Whether the environment names a rank and those that it is to join."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ)


def local_device(name: str) -> str:
    """The device of this rank, by the name that all ranks are given.

    Raises:
        ConfigError: it names one GPU for all of them.
    """
    if not started_by_torchrun() or name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return name
    own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if name not in ("auto", "cuda", own):
        raise ConfigError(f"device is {name!r} and this rank's is {own}; leave the number out, each rank takes its own")
    return own


def join(device: torch.device, limit: float = START_LIMIT) -> World:
    """Meet the other ranks, and see that all of them can add up numbers.

    Args:
        device: of this rank, whose own it is.
        limit: seconds to wait for the others.

    Returns:
        The ranks; a world of one where torchrun has not started this process.

    Raises:
        RankLost: a rank has not come in time; the message names it.
        ConfigError: two ranks have the same GPU.
    """
    global _world
    if _world.joined or not started_by_torchrun():
        return _world
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if str(device) == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    store = _store(rank, limit)
    notes = [note.rsplit("|", 1) for note in _roll(store, rank, size, f"{_place(device)}|{os.getpid()}", limit)]
    found = [place for place, _ in notes]
    places = tuple(place.partition("|")[0] for place in found)
    host = f"{socket.gethostname()} "
    processes = tuple(int(x) if place.startswith(host) and _runs(int(x)) else 0 for place, x in notes)
    twice = next((place for place in found if found.count(place) > 1 and " cuda" in place), None)
    if twice is not None:
        ranks = " and ".join(str(i) for i, place in enumerate(found) if place == twice)
        raise ConfigError(f"ranks {ranks} share the GPU of {twice.partition('|')[0]}; start one process for each GPU")
    gpu: dict[str, Any] = {"device_id": device} if device.type == "cuda" else {}
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    group = dist.PrefixStore("group", store)
    dist.init_process_group(backend, store=group, rank=rank, world_size=size, timeout=_PATIENCE, **gpu)
    _world = World(rank, size, True, store, places, processes)
    for where in dict.fromkeys([torch.device("cpu"), device]):  # in the same order on all
        number = float(total(torch.tensor(float(rank), device=where)))
        if number != size * (size - 1) / 2:
            raise RankLost(f"the sum of ranks 0 to {size - 1} on {where} is {number:g}; see NCCL_DEBUG=INFO")
    return _world


def gone() -> list[int]:
    """Ranks of this host whose process has ended. Nobody is asked, so that a signal's handler may call it."""
    return [rank for rank, process in enumerate(_world.processes) if process and not _runs(process)]


def first_to_say(text: str) -> bool:
    """Whether no other rank has said the same, such as what is wrong with the command that all of them were given."""
    if not started_by_torchrun() or os.environ["WORLD_SIZE"] == "1":
        return True
    try:
        store = _store(int(os.environ["RANK"]), 5.0)
        return bool(store.add(f"said/{hashlib.sha256(text.encode()).hexdigest()}", 1) == 1)
    except RuntimeError:
        return True


def leave() -> None:
    """End the process group, where there is one; or leave it as it is where NCCL does not let go of it in time."""
    global _world, _aborted
    if _world.joined:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            forget_recordings()
        if not _aborted:
            _in_time(dist.destroy_process_group)
        _world, _aborted = World(), False


def abort() -> None:
    """Let a GPU go on that waits in a sum for a rank that is gone. After it nothing is summed any more.

    NCCL lets the GPU go at once, and then waits until no graph is left that has a sum of its in it.
    """
    global _aborted
    end = getattr(dist.distributed_c10d, "_abort_process_group", None)
    if not _world.joined or _aborted or end is None:
        return
    _aborted = True
    _in_time(end, forget_recordings)


def hangs() -> bool:
    """Whether something of the ranks has not come to its end, so that the process might not, either."""
    return _hangs


def _in_time(end: Callable[[], None], then: Callable[[], None] = lambda: None) -> None:
    """Run ``end``, which may hang, aside, and ``then`` once it has begun; after a while go on without it."""
    global _hangs
    errors: list[BaseException] = []

    def run() -> None:
        try:
            if torch.cuda.is_available():
                torch.cuda.set_device(device)
            end()
        except BaseException as error:
            errors.append(error)

    device = torch.cuda.current_device() if torch.cuda.is_available() else 0
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(1.0)
    then()
    thread.join(_LEAVING)
    _hangs = _hangs or thread.is_alive() or bool(errors)
    if thread.is_alive():
        _log.warning("the ranks did not part within %g s; this process goes on without that", _LEAVING)
    elif errors:
        _log.warning("the ranks did not part: %s", errors[0])


def _store(rank: int, limit: float) -> Any:
    """The notes that torchrun's agent keeps; without one, rank 0 keeps them."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = dist.TCPStore(
            address, port, is_master=rank == 0 and not agent, timeout=timedelta(seconds=limit), wait_for_workers=False
        )
    except (RuntimeError, ValueError) as error:
        text = str(error).splitlines()[0]
        raise RankLost(f"rank {rank} cannot reach {address}:{port}, where the ranks meet ({text})") from error
    return dist.PrefixStore(f"rlcore/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _place(device: torch.device) -> str:
    """Host and device, and after a bar what tells GPUs apart where hosts have the same name."""
    own = getattr(torch.cuda.get_device_properties(device), "uuid", "") if device.type == "cuda" else ""
    return f"{socket.gethostname()} {device}|{own}"


def _runs(process: int) -> bool:
    """Whether there is such a process on this host."""
    if os.name != "posix":  # where to ask might be to end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _roll(store: Any, rank: int, size: int, place: str, limit: float) -> tuple[str, ...]:
    """Tell the others where this rank runs, and wait until all have done so."""
    try:
        store.set(f"here/{rank}", place)
        missing = _absent(store, "here", size, limit)
    except RuntimeError as error:
        raise RankLost("where the ranks meet cannot be reached any more, so that one of them has ended") from error
    if missing:
        names = ", ".join(str(other) for other in missing)
        raise RankLost(
            f"rank {names} of {size} (numbered from 0) has not come within {limit:g} s; see what it printed, and that "
            "every node runs the same command"
        )
    return tuple(store.get(f"here/{other}").decode() for other in range(size))


def _absent(store: Any, what: str, size: int, limit: float) -> list[int]:
    until = time.monotonic() + limit
    while missing := [other for other in range(size) if not store.check([f"{what}/{other}"])]:
        if time.monotonic() > until:
            break
        time.sleep(0.02)
    return missing


def _lost() -> RankLost:
    """Find out who is gone, after something that all ranks do together has failed."""
    text = "the connection between the ranks broke"
    try:
        _world.store.set(f"left/{_world.rank}", "")
        missing = _absent(_world.store, "left", _world.size, _ROLL_CALL)
        if missing:
            text = f"rank {', '.join(map(str, missing))} of {_world.size} is gone"
    except Exception:
        text += ", and where they meet cannot be reached"
    return RankLost(text)


def _reduce(x: Tensor, op: Any) -> Tensor:
    if x.is_cuda:
        dist.all_reduce(x, op)
        return x
    try:
        dist.all_reduce(x, op)
    except RuntimeError as error:
        raise _lost() from error
    return x


def total(x: Tensor) -> Tensor:
    """The sum of a tensor over ranks, in place; in a CUDA graph as well."""
    return _reduce(x, dist.ReduceOp.SUM) if _world.several else x


def largest(x: Tensor) -> Tensor:
    """The maximum of a tensor over ranks, in place."""
    return _reduce(x, dist.ReduceOp.MAX) if _world.several else x


def average(x: Tensor) -> Tensor:
    """The mean of a tensor over ranks, in place."""
    return total(x).div_(_world.size) if _world.several else x


def joined_rows(x: Tensor) -> Tensor:
    """Rows ``[B, ...]`` of all ranks, one rank's after the other's, ``[size * B, ...]``."""
    if not _world.several:
        return x
    table = x.new_zeros(_world.size, *x.shape)
    table[_world.rank] = x
    return total(table).flatten(0, 1)


def of_main(x: Tensor) -> Tensor:
    """A tensor as rank 0 has it."""
    return total(x if _world.main else torch.zeros_like(x)) if _world.several else x


def most(number: int) -> int:
    """The largest of a whole number over ranks, such as the signal to stop by, on the host."""
    return int(largest(torch.tensor(number)).item()) if _world.several else number


def gathered(value: Any) -> list[Any]:
    """A plain value of each rank, on the host; of this process alone where it is alone."""
    if not _world.several:
        return [value]
    found: list[Any] = [None] * _world.size
    try:
        dist.all_gather_object(found, value)
    except RuntimeError as error:
        raise _lost() from error
    return found


def received(value: Any) -> list[Any]:
    """A value of each rank, on the host, for rank 0; the others get none."""
    if not _world.several:
        return [value]
    found: list[Any] | None = [None] * _world.size if _world.main else None
    try:
        dist.gather_object(value, found)
    except RuntimeError as error:
        raise _lost() from error
    return found or []


def differs(text: str) -> bool:
    """Whether a text is not the same on all ranks, which costs the host one small sum."""
    if not _world.several:
        return False
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
    high, low = largest(torch.tensor([number, -number])).tolist()
    return bool(high != -low)


def union(names: Sequence[Any]) -> list[Any]:
    """What any rank has of things that can be told apart by their text, in the same order on all."""
    if not differs(repr(names)):
        return list(names)
    return sorted({name for own in gathered(list(names)) for name in own}, key=repr)


def weights_of(learned: Tensor) -> Tensor:
    """Weights with a mean of 1 over the samples ``[...]`` of all ranks, 0 where bool ``learned`` is false.

    1 if all are learned from; and NaN if none is, so that steps are skipped.
    """
    return learned / average(learned.float().mean())


def share_gradients(optimizers: Iterable[Any], loss: Tensor, metrics: Metrics) -> tuple[Tensor, Metrics]:
    """Bring gradients, loss and metrics of a minibatch to their means over ranks, in one buffer and one sum.

    Means of equal numbers of samples are the mean of all samples. A loss that is not finite on one rank is so on all.

    Args:
        optimizers: ``FlatAdam`` each, whose gradients are there.
        loss: a scalar.
        metrics: scalars, the same names on all ranks.
    """
    if not _world.several:
        return loss, metrics
    optimizers = list(optimizers)
    buffers = [optimizer.collected() for optimizer in optimizers]
    scalars = torch.stack([loss.detach(), *(value.to(loss.dtype) for value in metrics.values())])
    together = average(torch.cat([*buffers, scalars]))
    *parts, scalars = torch.split(together, [*map(len, buffers), len(scalars)])
    for optimizer, part in zip(optimizers, parts, strict=True):
        optimizer.gradient.copy_(part)
        optimizer.gather()
    loss, *values = scalars.unbind()
    return loss, dict(zip(metrics, values, strict=True))
