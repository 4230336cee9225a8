"""Start a run of several ranks many times in a row, and count those that hang or differ.

python benchmarks/starts.py --times 50 --ranks 2 --device cpu
"""

from __future__ import annotations

import collections
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Start a run of several ranks many times in a row."""

    times: int = 50
    """Starts."""
    ranks: int = 2
    """Processes of each."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where; on cuda each has a GPU of its own."""
    limit: float = 180.0
    """Seconds after which a run counts as hanging."""


def main() -> int:
    """Start, wait and count; returns the exit code."""
    settings = tyro.cli(Settings)
    number = ["--gpus", str(settings.ranks)]
    if settings.device == "cpu":
        number = ["--processes", str(settings.ranks), "--device", "cpu"]
    words = ["--task", "CartPole", "--num-envs", str(8 * settings.ranks), "--num-iterations", "2", "--no-export"]
    words += ["--eval-envs", "1", "--agent.num-steps", "8"]
    outcomes: collections.Counter[str] = collections.Counter()
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for start in range(settings.times):
            began = time.monotonic()
            command = [sys.executable, "-m", "rlcore", "train", *words, *number, "--name", f"start{start}"]
            try:
                done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=settings.limit)
                outcome = "done" if done.returncode == 0 else f"code {done.returncode}: {done.stderr[-300:]}"
            except subprocess.TimeoutExpired:
                outcome = "hangs"
            outcomes[outcome] += 1
            seconds.append(time.monotonic() - began)
    for outcome, count in outcomes.items():
        print(f"{count} of {settings.times} {outcome}")
    print(f"{min(seconds):.1f} to {max(seconds):.1f} s each")
    return int(outcomes["done"] != settings.times)


if __name__ == "__main__":
    sys.exit(main())
