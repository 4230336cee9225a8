"""A stand-in for rlcore train in tests of sweeps: a run folder whose return is 10 minus the distance of x from 3.

It takes x, a mode (good, broken, killed, blank) and --slow SECONDS an iteration after the first; with --resume RUN it
goes on. A file "quick" in the present folder ends the slowness.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

ITERATIONS = 4

words = {}
left = sys.argv[1:]
while left:
    word = left.pop(0).removeprefix("--")
    key, equals, value = word.partition("=")
    words[key] = value if equals else left.pop(0)

if "resume" in words:
    run = Path(words["resume"])
    words = json.loads((run / "config.yaml").read_text())
    first = len((run / "metrics.csv").read_text().splitlines()) - 1
else:
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{words['name']}"
    run = Path(words["runs_dir"]) / words["task"] / "ppo" / stem
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text(json.dumps(words))
    (run / "metrics.csv").write_text("iteration,env_steps,eval/return,loss/value\n")
    first = 0
x, seed, mode = float(words.get("agent.x", 0)), int(words["seed"]), words.get("agent.mode", "good")
if mode == "broken":
    print("rlcore train: error: agent.mode is broken; mend it", file=sys.stderr)
    sys.exit(2)
if mode == "killed":
    os.kill(os.getpid(), signal.SIGKILL)

stop: list[int] = []
signal.signal(signal.SIGINT, lambda number, frame: stop.append(number))
score = 10 - abs(x - 3) + (seed - 1)
for iteration in range(first + 1, ITERATIONS + 1):
    if iteration > 1 and not Path("quick").exists():
        time.sleep(float(words.get("slow", 0.0)))
    with (run / "metrics.csv").open("a") as file:
        file.write(f"{iteration},{100 * iteration},{score - (ITERATIONS - iteration)},{1 / iteration}\n")
    (run / "checkpoints" / f"{iteration:06d}.pt").touch()
    if stop:
        sys.exit(130)
if mode != "blank":
    (run / "eval.json").write_text(json.dumps({"return_mean": score, "success": 0.5, "signal_wear_mean": 7.0}))
else:
    (run / "eval.json").write_text("{}")
    (run / "metrics.csv").write_text("iteration,env_steps,eval/length\n1,100,5.0\n")
