"""The benchmark of simulators' tasks: what it counts, and its tables."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import simulator_curves
import simulators
import torch

ROOT = Path(__file__).parent.parent


def test_window_is_the_mean_of_the_latest_episodes() -> None:
    generator = torch.Generator().manual_seed(0)
    n = 7
    window = simulators.Window(n, torch.device("cpu"), size=20)
    running, latest = [0.0] * n, deque[float](maxlen=20)
    assert window.mean().isnan()
    for _ in range(60):
        reward, done = torch.randn(n, generator=generator), torch.rand(n, generator=generator) < 0.3
        window.record(reward, done)
        for i in range(n):
            running[i] += float(reward[i])
            if done[i]:
                latest.append(running[i])
                running[i] = 0.0
        if latest:
            assert float(window.mean()) == pytest.approx(sum(latest) / len(latest), abs=1e-5)


def test_window_counts_what_the_env_returns() -> None:
    reward, ended, cut = torch.tensor([1.0, 2.0]), torch.tensor([True, False]), torch.tensor([False, False])
    core = SimpleNamespace(step=lambda action: ({}, reward, ended, cut, {}))
    window = simulators.Window(2, torch.device("cpu"))
    window.watch(core)
    assert core.step(None)[1] is reward
    cut[1] = True
    core.step(None)
    assert float(window.mean()) == pytest.approx((1 + 1 + 4) / 3)


def run(library: str, seed: int, seconds: float, **settings: Any) -> dict[str, Any]:
    """A run of 60 iterations of ``seconds`` each, of which the first took ten times as long."""
    rows = [
        {"iteration": i + 1, "env_steps": 24 * 8 * (i + 1), "seconds": seconds * (i + 10), "reward": i + seed}
        for i in range(60)
    ]
    own = {"library": library, "algo": "ppo", "config": None, "task": "Walk", "seed": seed, "warmup": 10}
    report = {
        "command": f"python benchmarks/simulators.py --library {library} --seed {seed}",
        "date": "2026-11-21T00:00:00+00:00",
        "hardware": {"cpu": "Fast", "cores": 2},
        "versions": {"python": "3.11", "torch": "2.13"},
        "settings": {**own, "final_obs": "auto", "randomize_start": True, **settings},
        "num_envs": 8,
        "rows": rows,
    }
    return report | {"summary": simulator_curves.summarize(report)}


def test_table_compares_with_the_env_alone() -> None:
    reports = [run("rlcore", 1, 0.1), run("rlcore", 2, 0.1), run("rsl_rl", 1, 0.16), run("env", 1, 0.08)]
    reports.append(run("rlcore", 1, 0.1, randomize_start=False))
    assert reports[0]["summary"]["iteration_ms"] == pytest.approx(100)
    assert reports[0]["summary"]["env_steps_per_s"] == pytest.approx(24 * 8 / 0.1)
    heads, rows = simulator_curves.table(reports)
    shares = {row[1]: row[heads.index("of env alone")] for row in rows}
    assert shares == {"rlcore": "0.80", "rsl_rl": "0.50", "env alone": "1.00", "rlcore, episodes in step": ""}
    assert rows[0][heads.index("runs")] == "2" and rows[0][heads.index("reward at 50")] == "50.0, 51.0"


def test_algorithms_and_configurations_are_told_apart_and_compared_by_seconds(tmp_path: Path) -> None:
    reports = [run("rlcore", 1, 1.0), run("rlcore", 1, 1.0, algo="sac"), run("rlcore", 1, 1.0, config="a/wide.yaml")]
    reports[1]["rows"][-1]["evaluated"] = {"return_mean": 50.0, "return_ci95": [48.0, 52.0]}
    heads, rows = simulator_curves.table(reports)
    table = {row[1]: dict(zip(heads, row, strict=True)) for row in rows}
    assert list(table) == ["rlcore", "rlcore sac", "rlcore, wide.yaml"]
    assert (table["rlcore"]["after 60 s"], table["rlcore"]["after 120 s"]) == ("51.0", "")  # the 51st, of 1 s each
    assert (table["rlcore"]["evaluated"], table["rlcore sac"]["evaluated"]) == ("", "50.0 ± 2.0")
    simulator_curves.draw(reports, tmp_path / "out.png")
    assert (tmp_path / "out.png").stat().st_size > 5000


def test_runs_are_shown_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports = [run("rlcore", 1, 0.1), run("rlcore", 2, 0.1), run("rsl_rl", 1, 0.16), run("env", 1, 0.08)]
    reports[0]["evaluation"] = {"policy": {"summary": "return 5"}, "file": {"summary": "return 5"}}
    files = []
    for number, report in enumerate(reports):
        files.append(str(tmp_path / f"{number}.json"))
        Path(files[-1]).write_text(json.dumps(report))
    picture = tmp_path / "out.png"
    assert simulators.main(["--show", *files, "--plot", str(picture), "--markdown"]) == 0
    printed = capsys.readouterr().out
    assert "| Walk | rlcore | 8 | 2 |" in printed and "file alone return 5" in printed
    assert reports[0]["command"] in printed and picture.read_bytes()[:4] == b"\x89PNG"


def test_what_cannot_run_or_be_drawn_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name="mjlab")

    (tmp_path / "env.json").write_text(json.dumps(run("env", 1, 0.08)))
    monkeypatch.setattr(simulators.importlib, "import_module", missing)
    for words, said in (
        (["--library", "env"], "mjlab is not installed; run: pip install"),
        (["--task", "Pendulum"], "--task is 'Pendulum', which is no task of mjlab or Isaac Lab"),
        (["presets=newton_mjwarp"], "--presets is 'newton_mjwarp', which tasks of mjlab do not have; leave it out"),
        (["--show", str(tmp_path / "env.json"), "--plot", str(tmp_path / "out.png")], "--plot: none of these runs"),
    ):
        assert simulators.main(words) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.cpu_seconds(600)
@pytest.mark.parametrize("library", ["rlcore", "rsl_rl", "env", "adapter"])
def test_real_cartpole_is_measured(library: str, tmp_path: Path) -> None:
    pytest.importorskip("mjlab", reason="mjlab is not installed")
    path, before = tmp_path / "out.json", writers()
    words = ["--library", library, "--num-envs", "8", "--iterations", "3", "--warmup", "1", "--device", "cpu"]
    assert simulators.main([*words, "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert [row["env_steps"] for row in report["rows"]] == [256, 512, 768]  # 32 steps of 8 envs
    assert report["summary"]["env_steps_per_s"] > 0
    trained = library in ("rlcore", "rsl_rl")
    assert all(("learn_s" in row) == trained for row in report["rows"])
    assert writers() == before


def writers() -> list[threading.Thread]:
    """Threads that write events for tensorboard."""
    return [thread for thread in threading.enumerate() if type(thread).__module__.startswith("tensorboard.")]


@pytest.mark.slow
@pytest.mark.cpu_seconds(600)
@pytest.mark.parametrize("library", ["rlcore", "rsl_rl"])
def test_a_run_that_fails_writes_no_more(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the folder for its events could not be removed."""
    pytest.importorskip("mjlab", reason="mjlab is not installed")
    before = writers()

    def fail(*_: Any) -> bool:
        assert len(writers()) == len(before) + 1
        raise RuntimeError("out of patience")

    monkeypatch.setattr(simulators.Diary, "tick", fail)
    words = ["--library", library, "--num-envs", "8", "--iterations", "3", "--device", "cpu"]
    with pytest.raises(RuntimeError, match="out of patience"):
        simulators.main(words)
    assert writers() == before


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("isaaclab_newton") is None, reason="Isaac Lab 3 is not installed")
@pytest.mark.parametrize("library", ["rlcore", "rsl_rl", "env", "adapter"])
def test_real_cartpole_of_isaac_lab_is_measured(library: str, assets: Path, tmp_path: Path) -> None:
    """In a process of its own: there is one simulation in each."""
    path, trained = tmp_path / "out.json", library in ("rlcore", "rsl_rl")
    words = ["--task", "Isaac-Cartpole-Direct", "presets=newton_mjwarp", "--library", library, "--num-envs", "8"]
    words += ["--iterations", "3", "--warmup", "1", "--device", "cpu", "--json", str(path)]
    if trained:
        words += ["--evaluations", "1", "--eval-envs", "4"]
    if library == "rlcore":
        words += ["--onnx", str(tmp_path / "policy.onnx")]
    done = subprocess.run(
        [sys.executable, simulators.__file__, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "ISAACSIM_ASSET_ROOT": str(assets), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    report = json.loads(path.read_text())
    steps = report["rows"][0]["env_steps"]
    assert [row["env_steps"] for row in report["rows"]] == [steps, 2 * steps, 3 * steps] and steps == 16 * 8
    assert report["summary"]["env_steps_per_s"] > 0
    assert all(("learn_s" in row) == trained for row in report["rows"])
    assert ("evaluated" in report["rows"][-1]) == trained
    assert report["versions"]["isaaclab"].startswith("3.")
    if library == "rsl_rl":
        counted = [(row["reward"], row["return"]) for row in report["rows"] if "return" in row]
        assert counted and [ours for ours, _ in counted] == pytest.approx([theirs for _, theirs in counted], rel=1e-5)
    if library == "rlcore":
        assert report["final_obs"] == "hook" and report["evaluation"]["parity"]
        means = [report["evaluation"][which]["return_mean"] for which in ("policy", "file")]
        assert means[0] == pytest.approx(means[1], rel=1e-3)
