from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from throughput import Settings, requested_peers, spread

ROOT = Path(__file__).parent.parent
ARGUMENTS = (
    "--device cpu --threads 1 --num-envs 8 --num-steps 4 --epochs 2 --minibatches 2 --hidden 16 8 "
    "--obs 5 --actions 3 --iterations 3 --warmup 1 --peers rsl_rl,skrl,rl_games"
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "benchmarks/throughput.py", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    path = tmp_path_factory.mktemp("throughput") / "out.json"
    done = run(*ARGUMENTS.split(), "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(path.read_text())


def test_phases_take_time_and_fit_into_the_iteration(outcome: tuple[str, dict[str, Any]]) -> None:
    _, report = outcome
    for result in report["results"]:
        collect, learn, iteration = (result[f"{phase}_ms"] for phase in ("collect", "learn", "iteration"))
        for times in (collect, learn, iteration):
            assert 0 < times["min"] <= times["q25"] <= times["median"] <= times["q75"] <= times["max"]
            assert times["count"] == 3
        # Loose, because the phases and the whole are separate runs on a machine with other work to do.
        assert collect["min"] + learn["min"] <= 1.5 * iteration["max"]
        assert result["env_steps_per_s"] == pytest.approx(8 * 4 / (iteration["median"] / 1e3))


def test_report_says_what_was_run_and_on_what(outcome: tuple[str, dict[str, Any]]) -> None:
    _, report = outcome
    assert report["settings"] | {"json": None} == {
        "task": "Null",
        "obs": 5,
        "actions": 3,
        "num_envs": 8,
        "num_steps": 4,
        "epochs": 2,
        "minibatches": 2,
        "hidden": [16, 8],
        "normalize_obs": False,
        "device": "cpu",
        "mode": "graph",
        "precision": "tf32",
        "threads": 1,
        "iterations": 3,
        "warmup": 1,
        "peers": "rsl_rl,skrl,rl_games",
        "json": None,
    }
    assert report["command"].startswith(f"python benchmarks/throughput.py {ARGUMENTS}")
    assert report["hardware"]["cores"] == os.cpu_count()
    assert report["versions"]["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")


def test_every_peer_is_measured_or_its_installation_told(outcome: tuple[str, dict[str, Any]]) -> None:
    printed, report = outcome
    measured = {result["name"]: result for result in report["results"]}
    assert measured["rlcore"]["ratio"] == {"collect": 1.0, "learn": 1.0, "iteration": 1.0}
    for peer in ("rsl_rl", "skrl", "rl_games"):
        if importlib.util.find_spec(peer) is None:
            assert f"{peer} is not installed: {report['missing'][peer]}" in printed
        else:
            assert measured[peer]["ratio"]["iteration"] == pytest.approx(
                measured[peer]["iteration_ms"]["median"] / measured["rlcore"]["iteration_ms"]["median"]
            )


def test_unknown_peer_is_one_line_and_exit_code_2() -> None:
    with pytest.raises(ValueError, match="unknown library 'rslrl'; choose from rsl_rl, skrl, rl_games"):
        requested_peers(Settings(peers="skrl,rslrl"))
    done = run("--peers", "rslrl")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_spread_of_known_times() -> None:
    assert spread([4.0, 1.0, 2.0, 3.0, 5.0]) == {
        "median": 3.0,
        "q25": 2.0,
        "q75": 4.0,
        "min": 1.0,
        "max": 5.0,
        "count": 5,
    }
    assert spread([7.0])["median"] == 7.0
