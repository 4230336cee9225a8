"""PPO learns gymnasium's toys with the shipped configurations, from the command line to the exported file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlcore.train.cli import main


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "threshold", "enough"), [("gym:CartPole-v1", 475.0, 490), ("gym:Pendulum-v1", -250.0, -220)]
)
def test_ppo_solves(task: str, threshold: float, enough: int, tmp_path: Path) -> None:
    # A random policy has about 22 on CartPole and -1200 on Pendulum. Once it is learned, the rest would only take time.
    stop = ["--stop-at", f"eval/return>={enough}"]
    assert main(["train", "--task", task, "--seed", "1", "--runs-dir", str(tmp_path), *stop]) == 0
    (result,) = tmp_path.rglob("eval.json")
    record = json.loads(result.read_text(encoding="utf-8"))
    assert record["episodes"] == 100
    assert record["return_mean"] >= threshold
    assert record["onnx"]["return_mean"] >= threshold
