"""Ends runs at random moments and resumes them: kill -9, exceptions of the env, SIGHUP, pipes that close.

    python benchmarks/interruptions.py --kill 100 --error 50 --hangup 50 --pipe 50 --both 50

Every run is a process of its own, forked from this one, which has imported everything; PPO and SAC take turns. A run
passes if it ends with the exit code that is documented, has the checkpoint of its last finished iteration (after kill
-9: of the last interval) and goes on from there to its end, with one row of metrics for each iteration.
"""

from __future__ import annotations

import argparse
import csv
import mmap
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.fx.experimental.symbolic_shapes
import torch.utils.tensorboard
from gymnasium import spaces
from torch import Tensor

from rlcore import Step
from rlcore.checkpoint import load_checkpoint
from rlcore.train import training  # noqa: F401  # once, not in each process that is forked
from rlcore.train.cli import main
from rlcore.train.commands import train  # noqa: F401
from rlcore.types import Obs

ENVS, STEPS, INTERVAL = 8, 8, 5
ERRORS = (RuntimeError, ValueError, KeyError, OSError, BrokenPipeError, MemoryError, AssertionError)
EXPECTED = {"kill": -signal.SIGKILL, "error": 70, "hangup": 128 + signal.SIGHUP, "pipe": 141, "both": 141}
"""Exit codes, negative for the signal that killed; ``both`` closes standard output and standard error."""

_taken = mmap.mmap(-1, 8)  # steps of the training env, seen by this process and those that it forks


class Robot:
    """A point to be moved to zero, which fails in step ``fail_at``."""

    def __init__(self, num_envs: int, device: str = "cpu", seed: int | None = None, fail_at: int = 0) -> None:
        self.num_envs, self.device, self.max_episode_length = num_envs, torch.device(device), 20
        self.observation_spaces = {"policy": spaces.Box(-10, 10, (2,))}
        self.action_space = spaces.Box(-1, 1, (1,))
        self.generator = torch.Generator().manual_seed(seed or 0)
        self.fail_at, self.steps = fail_at, 0
        self.x, self.age = torch.zeros(num_envs, 2), torch.zeros(num_envs)

    def reset(self, seed: int | None = None) -> Obs:
        """See ``VecEnv``."""
        if seed is not None:
            self.generator.manual_seed(seed)
        self.x, self.age = torch.randn(self.num_envs, 2, generator=self.generator), torch.zeros(self.num_envs)
        return {"policy": self.x.clone()}

    def step(self, action: Tensor) -> Step:
        """See ``VecEnv``."""
        self.steps += 1
        if self.num_envs == ENVS:  # evaluations have fewer
            if self.steps == self.fail_at:
                raise ERRORS[self.steps % len(ERRORS)]("the gripper model diverged")
            _taken[:] = self.steps.to_bytes(8, "little")
        self.x = (self.x + 0.1 * action.expand(-1, 2)).clamp(-10, 10)
        self.age += 1
        ended = self.age >= self.max_episode_length
        reward, last = -self.x.abs().mean(1), self.x.clone()
        fresh = torch.randn(self.num_envs, 2, generator=self.generator)
        self.x, self.age = torch.where(ended.unsqueeze(1), fresh, self.x), self.age.masked_fill(ended, 0)
        return Step({"policy": self.x.clone()}, reward, torch.zeros_like(ended), ended, {"policy": last}, {})

    def close(self) -> None:
        """See ``VecEnv``."""


def words_of(algo: str, folder: Path, iterations: int, fail_at: int) -> list[str]:
    """The command of a small run."""
    words = f"train --task python:interruptions:Robot --algo {algo} --num-envs {ENVS} --eval-envs 2 --log-interval 1"
    words += f" --num-iterations {iterations} --save-interval {INTERVAL} --eval-interval 7 --no-export"
    words += f" --runs-dir {folder} --env.fail_at {fail_at} --agent.actor.hidden-dims 8 --agent.critic.hidden-dims 8"
    if algo == "ppo":
        return f"{words} --agent.num-steps {STEPS} --agent.num-minibatches 2 --agent.num-epochs 2".split()
    words += f" --agent.num-steps {STEPS} --agent.buffer-size 600 --agent.learning-starts 64 --agent.num-updates 2"
    return words.split()  # the replay memory is full after 10 iterations


def start(words: list[str], stdout: int, stderr: int) -> int:
    """Fork a process that runs a command, and return its number."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        os.closerange(3, 256)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and training leaves it so
        torch.set_num_threads(1)
        code = main(words)
        sys.stdout.flush()
    finally:
        os._exit(code)


def finish(child: int) -> int:
    """Wait for a process; its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def steps_taken() -> int:
    """Vector steps that the latest run has taken."""
    return int.from_bytes(_taken[:], "little")


def interrupt(kind: str, algo: str, folder: Path, chance: random.Random) -> tuple[int, Path]:
    """Train until something ends it at a random moment; exit code and run folder."""
    _taken[:] = bytes(8)
    moment = chance.randint(4 * STEPS, 24 * STEPS)  # the same fault does not come again within the resumed run
    words = words_of(algo, folder, 100_000, moment if kind == "error" else 0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    log = os.open(folder / "stderr.txt", os.O_RDWR | os.O_CREAT)
    reader, writer = os.pipe()
    piped = kind in ("pipe", "both")
    child = start(words, writer if piped else nowhere, writer if kind == "both" else log)
    os.close(writer)
    if kind != "error":
        while steps_taken() < moment:
            time.sleep(0.0005)
        time.sleep(0.01 * chance.random())
    if kind in ("kill", "hangup"):
        os.kill(child, signal.SIGKILL if kind == "kill" else signal.SIGHUP)
    os.close(reader)  # with everything in it unread, unless the run writes elsewhere
    code = finish(child)
    for number in (nowhere, log):
        os.close(number)
    (run,) = folder.glob("*/*/*/")
    return code, run


def check(kind: str, code: int, run: Path, taken: int) -> tuple[int, list[str]]:
    """The newest checkpoint's iteration, and what is wrong."""
    wrong = [] if code == EXPECTED[kind] else [f"exit code {code}"]
    kept = sorted(int(path.stem) for path in (run / "checkpoints").glob("[0-9]*.pt"))
    if not kept:
        return 0, [*wrong, "no checkpoint"] if kind != "kill" or taken > (INTERVAL + 1) * STEPS else wrong
    if kind == "kill":
        least = max(0, taken // STEPS - 1) // INTERVAL * INTERVAL  # the update after the last rollout may have gone on
        if not least <= kept[-1] <= taken // STEPS:
            wrong.append(f"{taken} steps were taken, and iteration {kept[-1]} is the last that was kept")
    elif kept[-1] != taken // STEPS:
        wrong.append(f"{taken} steps were taken, and iteration {kept[-1]} was kept")
    content = load_checkpoint(run / "checkpoints" / f"{kept[-1]:06d}.pt")
    if content["progress"]["iteration"] != kept[-1] or content["agent"]["iteration"] != kept[-1]:
        wrong.append("iterations differ within the checkpoint")
    if kind == "error" and "the gripper model diverged" not in (run / "crash.txt").read_text(encoding="utf-8"):
        wrong.append("no traceback in crash.txt")
    return kept[-1], wrong


def resume(run: Path, kept: int, folder: Path) -> list[str]:
    """Go on for three iterations; what is wrong."""
    last, log = kept + 3, os.open(folder / "resumed.txt", os.O_RDWR | os.O_CREAT)
    code = finish(start(["train", "--resume", str(run), "--num-iterations", str(last)], log, log))
    os.close(log)
    text = (folder / "resumed.txt").read_text(encoding="utf-8")
    wrong = [] if code == 0 else [f"the resumed run ended with {code}: {text[-300:]}"]
    if f"after iteration {kept} from" not in text:
        wrong.append(f"it was not resumed after iteration {kept}")
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = [int(row["iteration"]) for row in csv.DictReader(file)]
    if rows != list(range(1, last + 1)):
        wrong.append(f"metrics.csv has rows for {rows}")
    if list(run.rglob("*.tmp")):
        wrong.append("temporary files are left")
    return wrong


def trial(kind: str, number: int, chance: random.Random) -> list[str]:
    """End one run and resume it; what is wrong."""
    with tempfile.TemporaryDirectory(prefix="interruptions-") as name:
        folder = Path(name)
        code, run = interrupt(kind, ("ppo", "sac")[number % 2], folder, chance)
        kept, wrong = check(kind, code, run, steps_taken())
        said = (folder / "stderr.txt").read_text(encoding="utf-8").strip().splitlines()
        if kind in ("error", "pipe") and len(said) != 1:
            wrong.append(f"{len(said)} lines on standard error: {said}")
        return wrong + (resume(run, kept, folder) if kept else [])


def run_all(counts: dict[str, int], seed: int, report: Callable[[str], Any] = print) -> int:
    """Run all trials and print a row for each kind; how many went wrong."""
    failures = 0
    report(f"{'ended by':<10} {'runs':>5} {'resumed':>8} {'seconds':>8}")
    for kind, count in counts.items():
        chance, began, bad = random.Random(f"{kind} {seed}"), time.perf_counter(), 0
        for number in range(count):
            wrong = trial(kind, number, chance)
            bad += bool(wrong)
            for text in wrong:
                report(f"  {kind} {number}: {text}")
        failures += bad
        report(f"{kind:<10} {count:>5} {count - bad:>8} {time.perf_counter() - began:>8.0f}")
    return failures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in EXPECTED:
        parser.add_argument(f"--{name}", type=int, default=2, help="runs that end so")
    parser.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args())
    sys.modules["interruptions"] = sys.modules["__main__"]  # one counter of steps, not two
    sys.exit(bool(run_all({name: given[name] for name in EXPECTED}, given["seed"])))
