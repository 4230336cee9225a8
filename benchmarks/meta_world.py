"""Meta-World's MT10 (Yu et al. 2020, arXiv:1910.10897) by one SAC policy, beside ten that learned one task each.

    pip install envpool
    python benchmarks/meta_world.py --seconds 420 --out runs-mt10 --device cuda:0 --alone-on cuda:1

All eleven runs begin together. After so many seconds they are stopped, and all are measured at the last checkpoint that
all of them have, so that each task has had as many steps in the one policy as by itself: goals drawn anew for each
episode, no exploration, 500 steps; an episode in which any step is a success is one, as Meta-World counts it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rlcore.envs import make_env
from rlcore.train.conclude import restore_policy
from rlcore.train.config import read_config
from rlcore.train.evaluate import Evaluation, evaluate
from rlcore.train.intervals import wilson_interval

MT10 = (
    "Reach", "Push", "PickPlace", "DoorOpen", "DrawerOpen", "DrawerClose", "ButtonPressTopdown", "PegInsertSide",
    "WindowOpen", "WindowClose",
)  # fmt: skip
"""Its tasks by the names that envpool has."""

JOINT = "joint"

ROWS = 4
"""Envs of a task."""

OPTIONS = {"partially_observable": "false", "autoreset": "same_step"}
"""Of each task: its goal is part of the observation, as MT10 has it."""

BATCH = 256
"""Samples of a task in a gradient step."""

PUBLISHED = {
    "multi-task multi-head SAC": 75,
    "PaCo": 74,
    "MOORE": 83,
    "soft modules": 85,
}
"""Success in % after 20 M steps, with the same rewards: Meta-World+ (McLean et al. 2025, arXiv:2505.11289)."""


def name_of(task: str) -> str:
    """A task for ``make_env``."""
    return f"envpool:MetaWorld/{task}-v3"


def words_of(which: str, args: argparse.Namespace) -> list[str]:
    """The command that trains the one policy, or that of a task."""
    tasks = MT10 if which == JOINT else (which,)
    words = [sys.executable, "-m", "rlcore", "train", "--algo", "sac", "--preset", args.preset]
    for task in tasks:
        words += ["--task", name_of(task)]
    for task in tasks:
        prefix = f"--env.{name_of(task)}." if which == JOINT else "--env."
        for option, value in {**OPTIONS, "num_threads": str(args.threads)}.items():
            words += [prefix + option, value]
    words += ["--num-envs", str(ROWS * len(tasks)), "--agent.batch-size", str(args.batch * len(tasks))]
    words += ["--agent.learning-starts", str(1000 * len(tasks)), "--agent.buffer-size", str(500_000 * len(tasks))]
    words += ["--agent.num-updates", str(args.updates), "--agent.lr-schedule", "constant", "--seed", str(args.seed)]
    words += ["--num-iterations", str(args.iterations), "--save-interval", str(args.save), "--keep-checkpoints", "1000"]
    words += ["--eval-interval", "0", "--log-interval", str(args.save), "--name", which, "--runs-dir", str(args.out)]
    return [*words, "--device", args.device if which == JOINT else args.alone_on, "--threads", "1", *args.further]


def train(args: argparse.Namespace) -> None:
    """Let all runs go on side by side for so long."""
    runs = {}
    for number, which in enumerate((JOINT, *MT10)):
        log = (args.out / f"{which}.log").open("w")
        cores = sorted(os.sched_getaffinity(0))
        own = max(1, len(cores) * 2 // 5)  # for the one policy; the others share the rest
        mine = cores[:own] if which == JOINT else cores[own:] or cores
        command = ["taskset", "-c", ",".join(map(str, mine)), *words_of(which, args)]
        runs[which] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        if number == 0 and args.alone_on == args.device:
            time.sleep(1)
    until = time.monotonic() + args.seconds
    while time.monotonic() < until and any(run.poll() is None for run in runs.values()):
        time.sleep(1)
    for run in runs.values():
        if run.poll() is None:
            run.send_signal(signal.SIGINT)  # writes a checkpoint
    until = time.monotonic() + 30
    for which, run in runs.items():
        try:
            run.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            run.kill()
        print(f"{which}: exit status {run.wait()}", flush=True)


def checkpoints(out: Path, which: str) -> dict[int, Path]:
    """Those of a run, by iteration."""
    files = out.glob(f"*/sac/*-{which}/checkpoints/[0-9]*.pt")
    return {int(path.stem): path for path in files}


@torch.no_grad()
def measure(path: Path, episodes: int, seed: int) -> tuple[dict[str, Evaluation], int]:
    """What the policy of a checkpoint does in each of its tasks, and the steps of each that it has seen."""
    policy, _, content = restore_policy(path)
    config = read_config(content["config"])
    env = make_env(config.task, episodes * config.num_envs // ROWS, seed=seed, **config.env)
    found = evaluate(env, policy, seed)
    env.close()
    return dict(found.tasks) or {config.task: found}, int(path.stem) * ROWS


def table(joint: dict[str, Evaluation], alone: dict[str, Evaluation], steps: int) -> list[str]:
    """Lines of Markdown."""
    lines = [
        f"| success in %, {steps:,} steps of each task | one policy | a policy of its own |",
        "|---|---|---|",
    ]
    means: tuple[list[float], list[float]] = ([], [])
    spreads: tuple[list[float], list[float]] = ([], [])  # variance of each share, by the goals that were drawn
    for task in MT10:
        texts = []
        for column, own, found in zip(means, spreads, (joint[name_of(task)], alone[name_of(task)]), strict=True):
            share, goals = found.success or 0.0, found.goals or 1
            low, high = wilson_interval(share, goals)
            column.append(share)
            own.append(share * (1 - share) / goals)
            texts.append(f"{100 * share:.0f} ({100 * low:.0f} to {100 * high:.0f}), return {found.mean_return:.0f}")
        lines.append(f"| {task} | {texts[0]} | {texts[1]} |")
    halves = [1.96 * math.sqrt(sum(own)) / len(own) for own in spreads]  # of a 95 % interval; training is one seed
    texts = [f"**{100 * statistics.fmean(x):.1f}** ± {100 * half:.1f}" for x, half in zip(means, halves, strict=True)]
    lines.append(f"| mean | {' | '.join(texts)} |")
    return [*lines, "", "| published, 2,000,000 steps of each task | |", "|---|---|"] + [
        f"| {name} | {value} |" for name, value in PUBLISHED.items()
    ]


def main(words: Sequence[str] | None = None) -> None:
    """Train, measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of runs, logs, table.md and table.json")
    parser.add_argument("--seconds", type=float, default=420.0, help="of training; 0: measure what is there")
    parser.add_argument("--device", default="cuda:0", help="of the one policy")
    parser.add_argument("--alone-on", default="cuda:0", help="device of the ten others")
    parser.add_argument("--iterations", type=int, default=1_000_000, help="at most, of 4 steps of each task")
    parser.add_argument("--save", type=int, default=2_500, help="iterations between two checkpoints")
    parser.add_argument("--updates", type=int, default=2, help="gradient steps in an iteration")
    parser.add_argument("--batch", type=int, default=BATCH, help="samples of a task in a gradient step")
    parser.add_argument("--preset", default="gpu")
    parser.add_argument("--threads", type=int, default=ROWS, help="that step the envs of a task")
    parser.add_argument("--episodes", type=int, default=50, help="of each task, to measure by")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("further", nargs="*", help="after --: for all runs")
    args = parser.parse_args(words)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.seconds:
        train(args)
    torch.set_num_threads(1)
    found = {which: checkpoints(args.out, which) for which in (JOINT, *MT10)}
    for which, own in found.items():
        print(f"{which}: {max(own, default=0):,} iterations")
    common = sorted(set.intersection(*(set(own) for own in found.values())))
    if not common:
        sys.exit(f"{args.out}: there is no iteration of which all runs have a checkpoint; give more --seconds")
    report: dict[str, Any] = {"curve": {}}
    for iteration in dict.fromkeys((common[len(common) // 3], common[2 * len(common) // 3], common[-1])):
        joint, steps = measure(found[JOINT][iteration], args.episodes, 4_000_003)
        alone: dict[str, Evaluation] = {}
        for task in MT10:
            alone |= measure(found[task][iteration], args.episodes, 4_000_003)[0]
        lines = table(joint, alone, steps)
        sides = {"joint": joint, "alone": alone}
        report["curve"][steps] = {k: {name: e.as_dict() for name, e in side.items()} for k, side in sides.items()}
        (args.out / "table.json").write_text(json.dumps(report, indent=1))
        (args.out / "table.md").write_text("\n".join(lines) + "\n")
        print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
