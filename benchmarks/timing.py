"""One library timed on one piece of work."""

from __future__ import annotations

import contextlib
import datetime
import gc
import importlib.util
import io
import logging
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import gymnasium_peers
import peers
import torch
from gymnasium import spaces
from rich.console import Console
from work import Mark, Prepared, Subject, Turn, Work, ignore

from rlcore import __version__
from rlcore.agent import Agent
from rlcore.env import VecEnv, is_capturable
from rlcore.envs import make_env
from rlcore.learn import Report, learn
from rlcore.networks import NetworkConfig
from rlcore.ppo import PPO, PPOConfig
from rlcore.recurrent import RNNConfig
from rlcore.types import Metrics

T = TypeVar("T")

PEERS = peers.PEERS | gymnasium_peers.PEERS
"""Other libraries with PPO, by the name that ``--peers`` takes."""
PHASES = ("collect", "learn", "iteration")


class Stopwatch:
    """Collects the milliseconds since the mark before, by phase, over one run in three parts.

    Warm-up; then ``count`` iterations like it, the device synchronized at each mark; then ``count`` without, after two
    that are left out, because in them one part passes into the next.
    """

    def __init__(self, device: str, warmup: int, count: int) -> None:
        """Start now."""
        self.cuda = torch.device(device).type == "cuda"
        self.warmup = slice(0, warmup)
        self.apart = slice(warmup, warmup + count)
        self.whole = slice(self.apart.stop + 2, self.apart.stop + 2 + count)
        self.num_iterations = self.whole.stop
        self.times: dict[str, list[float]] = {"collect": [], "learn": []}
        self.last = time.perf_counter()

    def mark(self, phase: str) -> None:
        """A phase ends here and the next begins."""
        if self.cuda and len(self.times[phase]) < self.apart.stop:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.times[phase].append(1e3 * (now - self.last))
        self.last = now

    def iterations(self, part: slice) -> list[float]:
        """Milliseconds of both phases together."""
        return [a + b for a, b in zip(self.times["collect"][part], self.times["learn"][part], strict=True)]


def ours(env: VecEnv, work: Work) -> Subject:
    """PPO in the training loop."""
    network = NetworkConfig(hidden_dims=work.hidden, rnn=RNNConfig(type=work.rnn, hidden_size=256))
    config = PPOConfig(
        num_steps=work.num_steps,
        num_epochs=work.epochs,
        num_minibatches=work.minibatches,
        normalize_obs=work.normalize_obs,
        mode=work.mode,
        precision=work.precision,
        actor=network,
        critic=network,
    )
    return looped(env, PPO(env, config), work)


def looped(env: VecEnv, agent: Agent, work: Turn) -> Subject:
    """The training loop, ``rlcore.learn.learn``, with an agent."""
    reported: dict[str, list[float]] = {"collect": [], "learn": []}
    mark: Mark = ignore

    update = agent.update

    def timed_update() -> Metrics:
        mark("collect")
        metrics = update()
        mark("learn")
        return metrics

    agent.update = timed_update  # type: ignore[method-assign]

    def on_report(report: Report) -> None:
        reported["collect"].append(1e3 * report.metrics["time/collect_s"])
        reported["learn"].append(1e3 * report.metrics["time/learn_s"])

    def run(num_iterations: int, new_mark: Mark) -> None:
        nonlocal mark
        mark = new_mark
        capture_env = None if work.capture_env else False
        learn(env, agent, num_iterations, on_report=on_report, seed=0, capture_env=capture_env)

    return Subject(__version__, f"learn.learn; learn is {type(agent).__name__}.update", run, reported)


def prepare(name: str, work: Work, scratch: str) -> Prepared:
    """The env, and the library on it.

    Raises:
        ValueError: a peer is asked for a task with discrete actions.
    """
    env = env_of(name, work)
    return env, ours(env, work) if name == "rlcore" else PEERS[name].build(env, work, scratch)


def env_of(name: str, work: Turn) -> VecEnv:
    """The env that a library is timed on, and torch set up for the library.

    Raises:
        ValueError: a peer is asked for a task with discrete actions.
    """
    if work.threads is not None:
        torch.set_num_threads(work.threads)
    torch.manual_seed(0)
    sizes = {"obs_size": work.obs, "action_size": work.actions} if work.task == "Null" else {}
    env = make_env(work.task, work.num_envs, work.device, seed=0, **sizes)
    if name != "rlcore" and name not in gymnasium_peers.PEERS:
        if not isinstance(env.action_space, spaces.Box):
            raise ValueError(f"{work.task} has discrete actions; peers are timed on continuous ones")
        torch.set_float32_matmul_precision("highest" if work.precision == "fp32" else "high")
    return env


def measure(name: str, work: Any, submitted: float, prepare: Callable[..., Prepared] = prepare) -> dict[str, Any]:
    """Run one library in this process.

    Args:
        name: rlcore or one of ``PEERS``.
        work: what to do, a ``Turn``.
        submitted: time of the clock when this was asked for.
        prepare: makes the env and the library on it from name, work and a folder.

    Returns:
        Its version, how it was timed, times in milliseconds by phase, what setting up took, and memory.
    """
    global _used
    imported, cold, _used = time.time() - submitted, not _used, True
    if torch.device(work.device).type == "cuda" and not cold:
        gc.collect()  # what this process measured before lies about in cycles
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(work.device)
    began = time.perf_counter()
    with contextlib.ExitStack() as stack:
        warnings = stack.enter_context(heard_warnings())
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="throughput-"))
        env, subject = prepare(name, work, scratch)
        watch = Stopwatch(work.device, work.warmup, count(work))
        built = watch.last - began
        subject.run(watch.num_iterations, watch.mark)
        memory = peak_memory(work.device)
        env.close()
    graphs = name == "rlcore" and watch.cuda and "graph" in work.mode
    usual = statistics.median(watch.iterations(watch.apart))
    warm_up = watch.iterations(watch.warmup)
    reported = {f"{phase}_ms": ms[watch.apart] for phase, ms in subject.reported.items()}
    return {
        "name": name,
        "version": subject.version,
        "timing": subject.timing,
        "num_envs": work.num_envs,
        "precision": work.precision,
        "mode": work.mode if name == "rlcore" else None,
        "env_in_graph": graphs and work.capture_env and is_capturable(env),
        "samples": {
            "collect_ms": watch.times["collect"][watch.apart],
            "learn_ms": watch.times["learn"][watch.apart],
            "iteration_ms": watch.iterations(watch.whole),
        },
        "samples_by_library": reported,
        "setup": {
            "cold": cold,
            "import_s": imported if cold else 0.0,
            "build_s": built,
            "first_iteration_s": built + sum(warm_up[:1]) / 1e3,
            "three_iterations_s": built + sum(warm_up[:3]) / 1e3,
            "lost_s": built + sum(max(0.0, ms - usual) for ms in warm_up) / 1e3,
        },
        "memory_mib": memory,
        "facts": dict(subject.facts),
        "warnings": warnings,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def note_missing(libraries: Iterable[str], report: dict[str, Any], console: Console) -> None:
    """Say how to install the libraries that are not, and leave them out of the turns."""
    for name in libraries:
        if importlib.util.find_spec(PEERS[name].module) is None:
            report["missing"][name] = f"pip install -c constraints.txt {PEERS[name].package}=={PEERS[name].tested}"
            console.print(f"{name} is not installed: {report['missing'][name]}", highlight=False)


def take_turns(
    works: Sequence[tuple[str, Any]],
    title: Callable[[str, Any], str],
    rounds: int,
    report: dict[str, Any],
    processes: Processes,
    console: Console,
    prepare: Callable[..., Prepared] = prepare,
) -> Iterator[list[dict[str, Any]]]:
    """Measure pieces of work in turns, round after round; what fails is noted in the report and not tried again.

    Yields:
        After each round, all results so far, with the times as multiples of the first one's.
    """
    done: dict[tuple[str, Any], list[dict[str, Any]]] = {}
    for number in range(rounds):
        for name, work in works:
            text = title(name, work)
            if name in report["missing"] or text in report["failed"]:
                continue
            try:
                with console.status(f"{text}, round {number + 1}"):
                    result = processes.call(name, measure, name, work, time.time(), prepare)
            except Exception as error:
                report["failed"][text] = f"{type(error).__name__}: {error}"
                console.print(f"{text} failed: {report['failed'][text]}", highlight=False, markup=False)
                continue
            done.setdefault((name, work), []).append(result)
            median = merge([result])["iteration_ms"]["median"]
            console.print(f"{text}, round {number + 1}: {median:.2f} ms an iteration", highlight=False)
        results = [merge(some) for some in done.values()]
        for result in results:
            result["ratio"] = {
                phase: result[f"{phase}_ms"]["median"] / results[0][f"{phase}_ms"]["median"] for phase in PHASES
            }
        yield results


def count(work: Turn) -> int:
    """How many iterations are timed each way."""
    if work.num_envs <= 4096:
        return work.iterations
    return max(min(work.iterations, 5), work.iterations * 4096 // work.num_envs)


def peak_memory(device: str) -> dict[str, float] | None:
    """The most that torch's tensors and its pool held, in MiB."""
    if torch.device(device).type != "cuda":
        return None
    peaks = {"allocated": torch.cuda.max_memory_allocated(device), "reserved": torch.cuda.max_memory_reserved(device)}
    return {name: size / 2**20 for name, size in peaks.items()}


@contextlib.contextmanager
def heard_warnings() -> Iterator[list[str]]:
    """Collect what rlcore warns of, such as a function that cannot be captured and runs slower."""
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    ear, logger = Ear(logging.WARNING), logging.getLogger("rlcore")
    logger.addHandler(ear)
    try:
        yield heard
    finally:
        logger.removeHandler(ear)


def merge(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Several rounds of one library on one piece of work as one result, all samples together."""
    result = dict(rounds[0])
    for key in ("samples", "samples_by_library"):
        result[key] = {name: [ms for r in rounds for ms in r[key][name]] for name in rounds[0][key]}
    result |= {name: spread(ms) for name, ms in result["samples"].items()}
    result["reported_by_library"] = {name: spread(ms) for name, ms in result.pop("samples_by_library").items()}
    result["rounds"] = [
        {"date": r["date"], "iteration_ms": statistics.median(r["samples"]["iteration_ms"])} for r in rounds
    ]
    result["warnings"] = list(dict.fromkeys(text for r in rounds for text in r["warnings"]))
    del result["date"]
    return result


def spread(times: list[float]) -> dict[str, float]:
    """Median, quartiles, mean and extremes."""
    quarters = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return {
        "median": quarters[1],
        "q25": quarters[0],
        "q75": quarters[2],
        "mean": statistics.fmean(times),
        "min": min(times),
        "max": max(times),
        "count": len(times),
    }


def apart(function: Callable[..., T], *args: Any) -> T:
    """Call a function in a new process."""
    with ProcessPoolExecutor(1, mp_context=_SPAWN) as pool:
        return pool.submit(function, *args).result()


class Processes(contextlib.ExitStack):
    """A process for each library, because they set global switches of torch; it stays for the library's next turn."""

    def __init__(self) -> None:
        super().__init__()
        self.pools: dict[str, ProcessPoolExecutor] = {}

    def call(self, name: str, function: Callable[..., T], *args: Any) -> T:
        """Call a function in a library's process; after a crash the next call gets a new one."""
        if name not in self.pools:
            self.pools[name] = self.enter_context(ProcessPoolExecutor(1, mp_context=_SPAWN))
        try:
            return self.pools[name].submit(function, *args).result()
        except BrokenProcessPool:
            del self.pools[name]
            raise


_SPAWN = multiprocessing.get_context("spawn")

_used = False  # whether this process has measured something already
