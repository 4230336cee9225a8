"""Time iterations of PPO in several ranks: what more GPUs bring, and what their sums cost.

    python benchmarks/scaling.py --ranks 1 2 4 --num-envs 4096 --rounds 2 --libraries rlcore rsl_rl --json scaling.json
    python benchmarks/scaling.py --show weak.json strong.json --plot scaling.png

All configurations take turns in one run, round after round, so that a machine that drifts favors none:

- ``alone``: one process that has joined nobody;
- ``weak``: so many ranks, each with ``--num-envs`` envs; ideal is the time of one rank;
- ``strong``: so many ranks that share ``--num-envs`` envs; ideal is that time over their number.

Each is timed with the env alone (random actions) and with the learner. Ratios are of env steps per second, to those of
one rank of the same library. On a CPU ranks have one thread each, so that more ranks are more cores;
rsl_rl has none there.
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
from typing import Any, Literal

import torch
import tyro
from facts import header, write
from peers import rsl_rl
from rich.console import Console
from rich.table import Table
from work import Work

from rlcore.distributed import join, leave
from rlcore.env import VecEnv
from rlcore.envs import make_env
from rlcore.networks import NetworkConfig
from rlcore.ppo import PPO, PPOConfig


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Time PPO in several ranks."""

    ranks: tuple[int, ...] = (1, 2)
    """Numbers of ranks; 1 comes first, as what the others are measured by."""
    libraries: tuple[Literal["rlcore", "rsl_rl"], ...] = ("rlcore",)
    """Whose PPO: rsl_rl is given the same env, networks, steps and matrix products in TF32."""
    kinds: tuple[Literal["alone", "weak", "strong"], ...] = ("alone", "weak", "strong")
    """What to time beside one rank, which is always there."""
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
    show: tuple[Path, ...] = ()
    """Files of results to draw, instead of measuring."""
    plot: Path | None = None
    """Picture of the results: how many times as fast more ranks are than one."""
    worker: str | None = None
    """For the processes that this one starts: what to measure, and where to write it."""


def rlcore_ms(env: VecEnv, task: dict[str, Any]) -> list[float]:
    """Milliseconds of each iteration of rlcore."""
    network = NetworkConfig(hidden_dims=tuple(task["hidden"]))
    config = PPOConfig(
        num_steps=task["num_steps"],
        num_epochs=task["epochs"],
        num_minibatches=task["minibatches"],
        actor=network,
        critic=network,
    )
    learned: list[float] = []
    PPO(env, config, seed=1).learn(
        task["warmup"] + task["iterations"],
        on_report=lambda report: learned.append(
            1e3 * (report.metrics["time/collect_s"] + report.metrics["time/learn_s"])
        ),
    )
    return learned


def rsl_rl_ms(env: VecEnv, task: dict[str, Any]) -> list[float]:
    """Milliseconds of each iteration of rsl_rl, by its own clock; under torchrun its runner joins the ranks."""
    torch.set_float32_matmul_precision("high")
    shape = {name: task[name] for name in ("num_steps", "epochs", "minibatches", "hidden")}
    work = Work(num_envs=env.num_envs, precision="tf32", **shape | {"hidden": tuple(shape["hidden"])})
    subject = rsl_rl(env, work, "")
    subject.run(task["warmup"] + task["iterations"], lambda phase: None)
    return [sum(times) for times in zip(*(subject.reported[phase] for phase in ("collect", "learn")), strict=True)]


def measure(task: dict[str, Any]) -> None:
    """Milliseconds of an iteration, with the env alone and with the learner, in the ranks that torchrun has started."""
    cuda = task["device"] == "cuda"
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    ranks, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if task["library"] == "rlcore":
        join(device)
    env = make_env(task["task"], task["envs"] // ranks, device, seed=1 + rank)
    env.reset(seed=1 + rank)
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
    learned = (rlcore_ms if task["library"] == "rlcore" else rsl_rl_ms)(env, task)
    own = [statistics.median(times[task["warmup"] :]) for times in ([1e3 * took for took in spent], learned)]
    Path(f"{task['result']}.{rank}").write_text(json.dumps(own))
    if task["library"] == "rlcore":
        leave()
    elif ranks > 1:
        torch.distributed.destroy_process_group()


def turn(settings: Settings, library: str, kind: str, ranks: int, folder: Path) -> dict[str, float]:
    """One configuration in processes of its own.

    Raises:
        RuntimeError: it failed; its output is the message.
    """
    envs = settings.num_envs * (ranks if kind == "weak" else 1)
    for old in folder.iterdir():
        old.unlink()
    left_out = ("json", "worker", "ranks", "rounds", "libraries", "kinds", "show", "plot")
    task = {key: value for key, value in asdict(settings).items() if key not in left_out}
    task |= {"library": library, "envs": envs, "result": str(folder / "result.json")}
    command = [sys.executable]
    if kind != "alone":
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += [str(Path(__file__).resolve()), "--worker", json.dumps(task)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    results = [json.loads(file.read_text()) for file in folder.iterdir()]
    if done.returncode or len(results) != ranks:
        raise RuntimeError(f"{library}, {kind}, {ranks} ranks: {(done.stdout + done.stderr)[-2000:]}")
    # The slowest rank is the one that all wait for.
    env_ms, iteration_ms = (max(times) for times in zip(*results, strict=True))
    return {"envs": envs, "env_ms": env_ms, "iteration_ms": iteration_ms}


def draw(reports: list[dict[str, Any]], path: Path) -> None:
    """Write a picture: ratios of several ranks to one, a group of bars for each task and kind, ideals as lines."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    bars: dict[str, dict[str, float]] = {}  # by group and library
    ideals: dict[str, int] = {}
    for report in reports:
        for row in report["results"]:
            if row["ranks"] > 1:
                group = f"{report['settings']['task']}\n{row['scaling']}, {row['ranks']} ranks\n{row['envs']:,} envs"
                bars.setdefault(group, {})[row["library"]] = row["iteration_ms_ratio"]
                ideals[group] = row["ranks"]
    if not bars:
        raise SystemExit("--plot: no result is of more than one rank; measure with --ranks 1 2")
    libraries = list(dict.fromkeys(library for found in bars.values() for library in found))
    figure, axes = plt.subplots(figsize=(2.1 * len(bars) + 1.5, 4), layout="constrained")
    width = 0.8 / len(libraries)
    for number, library in enumerate(libraries):
        places = [
            i + (number - (len(libraries) - 1) / 2) * width for i, group in enumerate(bars) if library in bars[group]
        ]
        ratios = [found[library] for found in bars.values() if library in found]
        axes.bar_label(
            axes.bar(places, ratios, 0.9 * width, label=library), fmt="%.2f", label_type="center", color="white"
        )
    for i, ideal in enumerate(ideals.values()):
        axes.hlines(ideal, i - 0.45, i + 0.45, color="0.3", linestyle=":", label="" if i else "ideal")
    axes.set_xticks(range(len(bars)), list(bars))
    axes.set_ylabel("env steps/s, of those of one rank")
    axes.set_ylim(0, 1.15 * max(ideals.values()))
    figure.legend(loc="outside upper right", ncols=len(libraries) + 1)
    figure.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    settings = tyro.cli(Settings, args=arguments)
    if settings.worker is not None:
        measure(json.loads(settings.worker))
        return 0
    if settings.show:
        if settings.plot is None:
            raise SystemExit("--show: name the picture with --plot FILE")
        draw([json.loads(file.read_text()) for file in settings.show], settings.plot)
        return 0
    turns: list[tuple[str, int]] = [("alone", 1)] if "alone" in settings.kinds else []
    for ranks in settings.ranks:
        turns += [("weak", 1)] if ranks == 1 else [(kind, ranks) for kind in settings.kinds if kind != "alone"]
    kinds: list[tuple[str, str, int]] = [
        (library, kind, ranks) for kind, ranks in turns for library in settings.libraries
    ]
    samples: dict[tuple[str, str, int], list[dict[str, float]]] = {kind: [] for kind in kinds}
    report = header("scaling", arguments, settings) | {"results": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(settings.rounds):
            for library, kind, ranks in kinds:
                samples[library, kind, ranks].append(turn(settings, library, kind, ranks, Path(folder)))
    table = Table(
        "library", "scaling", "ranks", "envs", "env alone ms", "ratio", "iteration ms", "spread", "env steps/s", "ratio"
    )
    first: dict[tuple[str, str], float] = {}
    for (library, kind, ranks), found in samples.items():
        row: dict[str, Any] = {"library": library, "scaling": kind, "ranks": ranks, "envs": found[0]["envs"]}
        for name in ("env_ms", "iteration_ms"):
            times = [sample[name] for sample in found]
            row[name], row[f"{name}_range"] = statistics.median(times), [min(times), max(times)]
            row[f"{name}_steps_per_s"] = row["envs"] * settings.num_steps / row[name] * 1e3
            if (kind, ranks) == ("weak", 1):
                first[library, name] = row[f"{name}_steps_per_s"]
        report["results"].append(row)
    for row in report["results"]:
        for name in ("env_ms", "iteration_ms"):
            row[f"{name}_ratio"] = row[f"{name}_steps_per_s"] / first[row["library"], name] if first else None
        low, high = row["iteration_ms_range"]
        numbers = [row["env_ms"], row["env_ms_ratio"], row["iteration_ms"]]
        table.add_row(
            row["library"],
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
    if settings.plot is not None:
        draw([report], settings.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
