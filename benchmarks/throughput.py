"""Time one iteration of PPO: ``num_steps`` vector steps collected, then learned from.

    python benchmarks/throughput.py --device cuda --peers rsl_rl,skrl,rl_games --json out.json

Each library runs in a process of its own, one after the other. After the warm-up come ``--iterations``
iterations with collect and learn timed apart, the device synchronized at each boundary, then as many again with the
clock read but nothing synchronized. The second part gives the iteration that a user waits for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.util
import io
import json
import multiprocessing
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from gymnasium import spaces
from peers import PEERS, Mark, Subject, ignore
from rich.console import Console
from rich.table import Table

from rlcore import __version__
from rlcore.types import Mode
from rlcore.env import VecEnv
from rlcore.envs import make_env
from rlcore.learn import Report, learn
from rlcore.networks import NetworkConfig
from rlcore.ppo import PPO, PPOConfig
from rlcore.types import Metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Time one iteration of PPO, and of other libraries on the same work."""

    task: str = "Null"
    """A task of `rlcore tasks`; Null costs next to nothing, so that the library is timed and not the simulator."""
    obs: int = 48
    """Size of the observation of the Null task."""
    actions: int = 12
    """Size of the action of the Null task."""
    num_envs: int = 4096
    """Envs stepped together."""
    num_steps: int = 24
    """Vector steps an iteration."""
    epochs: int = 5
    """Passes over what was collected."""
    minibatches: int = 4
    """Updates a pass."""
    hidden: tuple[int, ...] = (512, 256, 128)
    """Hidden layers of actor and critic, ELU."""
    normalize_obs: bool = False
    """Normalize observations, in every library."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where envs and networks live."""
    mode: Mode = "graph"
    """How rlcore runs on CUDA."""
    precision: Literal["fp32", "tf32", "bf16"] = "tf32"
    """Matrix products on CUDA, in every library; bf16 is rlcore's alone, the others then stay at tf32."""
    threads: int | None = None
    """CPU threads of torch; its own choice by default."""
    iterations: int = 20
    """Iterations to time, each way."""
    warmup: int = 5
    """Iterations before the first that counts; rlcore records its graphs in the third."""
    peers: str = ""
    """Other libraries to run beside rlcore, separated by commas: rsl_rl, skrl, rl_games."""
    json: Path | None = None
    """File for the results."""


class Stopwatch:
    """Collects the milliseconds since the mark before, by phase, over one run in three parts.

    Warm-up; then ``count`` iterations with the device synchronized at each mark; then ``count`` without. The
    iterations in which one part passes into the next are left out.
    """

    def __init__(self, device: str, warmup: int, count: int) -> None:
        """Start now."""
        self.cuda = torch.device(device).type == "cuda"
        self.apart = slice(warmup + 1, warmup + 1 + count)
        self.synchronized = range(warmup, self.apart.stop)
        self.whole = slice(self.apart.stop + 2, self.apart.stop + 2 + count)
        self.num_iterations = self.whole.stop
        self.times: dict[str, list[float]] = {"collect": [], "learn": []}
        self.last = time.perf_counter()

    def mark(self, phase: str) -> None:
        """A phase ends here and the next begins."""
        if self.cuda and len(self.times[phase]) in self.synchronized:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.times[phase].append(1e3 * (now - self.last))
        self.last = now


def ours(env: VecEnv, settings: Settings) -> Subject:
    """The training loop, ``rlcore.learn.learn``."""
    network = NetworkConfig(hidden_dims=settings.hidden)
    config = PPOConfig(
        num_steps=settings.num_steps,
        num_epochs=settings.epochs,
        num_minibatches=settings.minibatches,
        normalize_obs=settings.normalize_obs,
        mode=settings.mode,
        precision=settings.precision,
        actor=network,
        critic=network,
    )
    agent = PPO(env, config)
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
        learn(env, agent, num_iterations, on_report=on_report, seed=0)

    return Subject(__version__, "learn.learn; learn is PPO.update", run, reported)


def measure(name: str, settings: Settings) -> dict[str, Any]:
    """Run one library in this process.

    Returns:
        Its version, how it was timed, and the spread of collect, learn and iteration in milliseconds.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    torch.set_float32_matmul_precision("highest" if settings.precision == "fp32" else "high")
    torch.manual_seed(0)
    sizes = {"obs_size": settings.obs, "action_size": settings.actions} if settings.task == "Null" else {}
    env = make_env(settings.task, settings.num_envs, settings.device, seed=0, **sizes)
    if name != "rlcore" and not isinstance(env.action_space, spaces.Box):
        raise ValueError(f"{settings.task} has discrete actions; peers are timed on continuous ones")
    quiet = contextlib.ExitStack()
    quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
    quiet.enter_context(contextlib.redirect_stderr(io.StringIO()))
    scratch = quiet.enter_context(tempfile.TemporaryDirectory(prefix="throughput-"))
    with quiet:
        subject = ours(env, settings) if name == "rlcore" else PEERS[name].build(env, settings, scratch)
        watch = Stopwatch(settings.device, settings.warmup, settings.iterations)
        subject.run(watch.num_iterations, watch.mark)
    env.close()
    collect, learn_ = watch.times["collect"], watch.times["learn"]
    iteration = spread([a + b for a, b in zip(collect[watch.whole], learn_[watch.whole], strict=True)])
    return {
        "name": name,
        "version": subject.version,
        "timing": subject.timing,
        "collect_ms": spread(collect[watch.apart]),
        "learn_ms": spread(learn_[watch.apart]),
        "iteration_ms": iteration,
        "env_steps_per_s": settings.num_envs * settings.num_steps / iteration["median"] * 1e3,
        "reported_by_library": {f"{phase}_ms": spread(ms[watch.apart]) for phase, ms in subject.reported.items()},
    }


def spread(times: list[float]) -> dict[str, float]:
    """Median, quartiles and extremes."""
    quarters = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return {
        "median": quarters[1],
        "q25": quarters[0],
        "q75": quarters[2],
        "min": min(times),
        "max": max(times),
        "count": len(times),
    }


def measure_apart(name: str, settings: Settings) -> dict[str, Any]:
    """``measure`` in a process of its own: these libraries set global switches of torch."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, name, settings).result()


def requested_peers(settings: Settings) -> list[str]:
    """The names in ``--peers``.

    Raises:
        ValueError: a name that is not one of ``PEERS``.
    """
    names = [name.strip() for name in settings.peers.split(",") if name.strip()]
    for name in names:
        if name not in PEERS:
            raise ValueError(f"--peers: unknown library '{name}'; choose from {', '.join(PEERS)}")
    return names


def hardware(device: str) -> dict[str, Any]:
    """What the figures were taken on."""
    facts: dict[str, Any] = {"cpu": _cpu_model(), "cores": os.cpu_count(), "system": platform.platform()}
    if torch.device(device).type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def show(report: dict[str, Any], console: Console) -> None:
    """Print the table."""
    settings = report["settings"]
    table = Table(
        title=f"{settings['task']}: {settings['num_envs']} envs × {settings['num_steps']} steps, "
        f"{settings['epochs']} × {settings['minibatches']} minibatches, {settings['device']}; median (quartiles) in ms"
    )
    table.add_column("library")
    for heading in ("collect", "learn", "iteration", "env steps/s", "÷ rlcore: collect", "learn", "iteration"):
        table.add_column(heading, justify="right")
    for result in report["results"]:
        phases = (result[f"{phase}_ms"] for phase in ("collect", "learn", "iteration"))
        table.add_row(
            f"{result['name']} {result['version']}",
            *(f"{times['median']:.2f} ({times['q25']:.2f}..{times['q75']:.2f})" for times in phases),
            f"{result['env_steps_per_s']:,.0f}",
            *(f"{result['ratio'][phase]:.2f}" for phase in ("collect", "learn", "iteration")),
        )
    console.print(table)
    for result in report["results"]:
        console.print(f"{result['name']}: {result['timing']}", highlight=False)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    settings = tyro.cli(Settings, args=arguments)
    console = Console()
    console = Console(width=max(console.width, 140))
    try:
        names = ["rlcore", *requested_peers(settings)]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    results: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    failed: dict[str, str] = {}
    for name in names:
        if name in PEERS and importlib.util.find_spec(PEERS[name].module) is None:
            missing[name] = f"pip install -c constraints.txt {PEERS[name].package}=={PEERS[name].tested}"
            console.print(f"{name} is not installed: {missing[name]}", highlight=False)
            continue
        try:
            with console.status(f"{name}: {settings.warmup} + {2 * settings.iterations} iterations"):
                results.append(measure_apart(name, settings))
        except (Exception, BrokenProcessPool) as error:
            failed[name] = f"{type(error).__name__}: {error}"
            console.print(f"{name} failed: {failed[name]}", highlight=False, markup=False)
            if name == "rlcore":
                return 1
    for result in results:
        result["ratio"] = {
            phase: result[f"{phase}_ms"]["median"] / results[0][f"{phase}_ms"]["median"]
            for phase in ("collect", "learn", "iteration")
        }
    report = {
        "command": shlex.join(["python", "benchmarks/throughput.py", *arguments]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "settings": {**dataclasses.asdict(settings), "json": str(settings.json) if settings.json else None},
        "hardware": hardware(settings.device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda},
        "results": results,
        "missing": missing,
        "failed": failed,
    }
    show(report, console)
    if settings.json is not None:
        settings.json.write_text(json.dumps(report, indent=2) + "\n")
        console.print(f"written: {settings.json}", highlight=False)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
