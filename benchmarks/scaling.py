"""Time iterations of PPO in several ranks: what more GPUs bring, and what their sums cost.

    python benchmarks/scaling.py --ranks 1 2 4 --num-envs 4096 --rounds 2 --json scaling.json

All configurations take turns in one run, round after round, so that a machine that drifts favors none:

- ``alone``: one process that has joined nobody;
- ``weak``: so many ranks, each with ``--num-envs`` envs; ideal is the time of one rank;
- ``strong``: so many ranks that share ``--num-envs`` envs; ideal is that time over their number.

Each is timed with the env alone (random actions) and with the learner. Ratios are of env steps per second, to those of
one rank. On a CPU ranks have one thread each, so that more ranks are more cores.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from facts import header, write
from rich.console import Console
from rich.table import Table

from rlcore.distributed import gathered, join, leave, world
from rlcore.envs import make_env
from rlcore.networks import NetworkConfig
from rlcore.ppo import PPO, PPOConfig


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Time PPO in several ranks."""

    ranks: tuple[int, ...] = (1, 2)
    """Numbers of ranks; 1 comes first, as what the others are measured by."""
    num_envs: int = 4096
    """Envs of a rank where scaling is weak, of all together where it is strong."""
    task: str = "Null"
    """A task of `rlcore tasks`."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """cuda, each rank its own, or cpu."""
    num_steps: int = 24
    """Steps of a rollout."""
    epochs: int = 5
    """Passes over a rollout."""
    minibatches: int = 4
    """Gradient steps of a pass."""
    hidden: tuple[int, ...] = (512, 256, 128)
    """Widths of actor and critic."""
    iterations: int = 20
    """Iterations to time."""
    warmup: int = 5
    """Iterations before them; graphs are recorded in the third."""
    rounds: int = 1
    """Times that every configuration has its turn."""
    json: Path | None = None
    """File for the results."""
    worker: str | None = None
    """For the processes that this one starts: what to measure, and where to write it."""


def measure(task: dict[str, Any]) -> dict[str, float]:
    """Milliseconds of an iteration, with the env alone and with the learner, in the ranks that torchrun has started."""
    cuda = task["device"] == "cuda"
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    join(device)
    env = make_env(task["task"], task["envs"] // world().size, device, seed=world().seed(1))
    network = NetworkConfig(hidden_dims=tuple(task["hidden"]))
    config = PPOConfig(
        num_steps=task["num_steps"],
        num_epochs=task["epochs"],
        num_minibatches=task["minibatches"],
        actor=network,
        critic=network,
    )
    agent = PPO(env, config, seed=1)
    env.reset(seed=1)
    size = env.action_space.shape or ()
    action = torch.rand(env.num_envs, *size, device=device) if size else torch.zeros(env.num_envs, dtype=torch.int64)
    action, spent = action.to(device), []
    for _ in range(task["warmup"] + task["iterations"]):
        began = time.perf_counter()
        for _ in range(task["num_steps"]):
            env.step(action)
        if cuda:
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - began)
    learned: list[float] = []
    agent.learn(
        task["warmup"] + task["iterations"],
        on_report=lambda report: learned.append(report.metrics["time/collect_s"] + report.metrics["time/learn_s"]),
    )
    own = [1e3 * statistics.median(times[task["warmup"] :]) for times in (spent, learned)]
    # The slowest rank is the one that all wait for.
    env_ms, iteration_ms = (max(times) for times in zip(*gathered(own), strict=True))
    found = {"env_ms": env_ms, "iteration_ms": iteration_ms}
    if world().main:
        Path(task["result"]).write_text(json.dumps(found))
    leave()
    return found


def turn(settings: Settings, kind: str, ranks: int, folder: Path) -> dict[str, float]:
    """One configuration in processes of its own.

    Raises:
        RuntimeError: it failed; its output is the message.
    """
    envs = settings.num_envs * (ranks if kind == "weak" else 1)
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    task = {key: value for key, value in asdict(settings).items() if key not in ("json", "worker", "ranks", "rounds")}
    task |= {"envs": envs, "result": str(result)}
    command = [sys.executable]
    if kind != "alone":
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += [str(Path(__file__).resolve()), "--worker", json.dumps(task)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode or not result.is_file():
        raise RuntimeError(f"{kind}, {ranks} ranks: {(done.stdout + done.stderr)[-2000:]}")
    return {"envs": envs, **json.loads(result.read_text())}


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    settings = tyro.cli(Settings, args=arguments)
    if settings.worker is not None:
        measure(json.loads(settings.worker))
        return 0
    kinds = [
        ("alone", 1),
        *((kind, n) for n in settings.ranks for kind in (("weak",) if n == 1 else ("weak", "strong"))),
    ]
    samples: dict[tuple[str, int], list[dict[str, float]]] = {kind: [] for kind in kinds}
    report = header("scaling", arguments, settings) | {"results": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(settings.rounds):
            for kind, ranks in kinds:
                samples[kind, ranks].append(turn(settings, kind, ranks, Path(folder)))
    table = Table("scaling", "ranks", "envs", "env alone ms", "ratio", "iteration ms", "spread", "env steps/s", "ratio")
    first: dict[str, float] = {}
    for (kind, ranks), found in samples.items():
        row: dict[str, Any] = {"scaling": kind, "ranks": ranks, "envs": found[0]["envs"]}
        for name in ("env_ms", "iteration_ms"):
            times = [sample[name] for sample in found]
            row[name], row[f"{name}_range"] = statistics.median(times), [min(times), max(times)]
            row[f"{name}_steps_per_s"] = row["envs"] * settings.num_steps / row[name] * 1e3
            if (kind, ranks) == ("weak", 1):
                first[name] = row[f"{name}_steps_per_s"]
        report["results"].append(row)
    for row in report["results"]:
        for name in ("env_ms", "iteration_ms"):
            row[f"{name}_ratio"] = row[f"{name}_steps_per_s"] / first[name] if first else None
        low, high = row["iteration_ms_range"]
        numbers = [row["env_ms"], row["env_ms_ratio"], row["iteration_ms"]]
        table.add_row(
            row["scaling"],
            str(row["ranks"]),
            f"{row['envs']:,.0f}",
            *("-" if number is None else f"{number:.2f}" for number in numbers),
            f"{low:.2f}..{high:.2f}",
            f"{row['iteration_ms_steps_per_s']:,.0f}",
            "-" if row["iteration_ms_ratio"] is None else f"{row['iteration_ms_ratio']:.2f}",
        )
    Console(width=140).print(table)
    write(report, settings.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
