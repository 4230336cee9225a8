from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import learning
import offpolicy
import offpolicy_report
import pytest
import report as report_module

from rlcore.config import ConfigError
from rlcore.ddpg import DDPGConfig

ROOT = Path(__file__).parent.parent
ARGUMENTS = (
    "--device cpu --threads 1 --num-envs 8 --obs 5 --actions 3 --batch 16 --buffer 800 --actor 16 8 --critic 16 8 "
    "--iterations 3 --warmup 3 --rounds 2 --updates 1 2 --mode eager --precision fp32 --peers skrl"
)


Outcome = tuple[str, dict[str, Any]]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    path = tmp_path_factory.mktemp("offpolicy") / "out.json"
    command = [sys.executable, "benchmarks/offpolicy.py", *ARGUMENTS.split(), "--json", str(path), "--markdown"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(path.read_text())


def test_every_algorithm_and_number_of_updates_is_timed_in_every_round(outcome: Outcome) -> None:
    _, report = outcome
    ours = [result for result in report["results"] if result["name"] == "rlcore"]
    assert [(r["algo"], r["updates"]) for r in ours] == [("sac", 1), ("sac", 2), ("ddpg", 1), ("ddpg", 2)]
    for result in report["results"]:
        assert len(result["rounds"]) == 2
        for phase in ("collect", "learn", "iteration"):
            times = result[f"{phase}_ms"]
            assert 0 < times["min"] <= times["q25"] <= times["median"] <= times["q75"] <= times["max"]
            assert times["count"] == 6


def test_memory_per_transition_is_what_the_tensors_hold(outcome: Outcome) -> None:
    _, report = outcome
    # Observation once, action, reward, one number for both flags and the final observation; and final observations.
    expected = 4 * 5 + 4 * 3 + 4 + 4
    for result in report["results"]:
        size = result["facts"]["bytes_per_transition"]
        if result["name"] == "skrl":  # both observations, action, reward, one flag
            assert size == 2 * 4 * 5 + 4 * 3 + 4 + 1
        else:
            assert expected <= size < expected * 1.05


def test_peer_is_measured_or_its_installation_told(outcome: Outcome) -> None:
    printed, report = outcome
    if importlib.util.find_spec("skrl") is None:
        assert f"skrl is not installed: {report['missing']['skrl']}" in printed
    else:
        assert [(r["algo"], r["updates"]) for r in report["results"] if r["name"] == "skrl"] == [
            ("sac", 1),
            ("sac", 2),
            ("ddpg", 1),
            ("ddpg", 2),
        ]


def test_report_prints_the_same_table_again(outcome: Outcome) -> None:
    printed, report = outcome
    text = report_module.markdown([report])
    assert text in printed
    assert "batch 16, critics [16, 8], actor [16, 8], cpu" in text


def test_ratios_are_within_algorithm_and_number_of_updates() -> None:
    def result(name: str, algo: str, milliseconds: float) -> dict[str, Any]:
        times = {"median": milliseconds, "q25": milliseconds, "q75": milliseconds}
        phases = {f"{phase}_ms": times for phase in ("collect", "learn", "iteration")}
        about = {
            "name": name,
            "algo": algo,
            "preset": "classic",
            "batch": 8,
            "updates": 1,
            "precision": "tf32",
            "mode": "graph",
            "version": "1",
        }
        facts = {"facts": {"bytes_per_transition": 42.0}, "memory_mib": None, "num_envs": 4096}
        return about | facts | phases | {"setup": {"lost_s": 1.0, "cold": False}}

    results = [result("rlcore", "sac", 2.0), result("skrl", "sac", 24.0), result("rlcore", "ddpg", 1.0)]
    heads, rows = offpolicy_report.table({"results": results})
    cells = [dict(zip(heads, row, strict=True)) for row in rows]
    assert [cell["skrl ÷ this, update"] for cell in cells] == ["12.00×", "1.00×", ""]
    assert cells[0]["env steps/s"] == "2,048,000"


def test_unknown_peers_and_precisions_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown library 'skr'; choose from skrl"):
        offpolicy.Settings(peers=("skr",)).groups()
    with pytest.raises(ValueError, match="--precision: sac has no 'int8'; choose from fp32"):
        offpolicy.Settings(precision=("int8",)).groups()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="--peers sb3: it is timed on a CPU and gymnasium's tasks, not on Null"):
        offpolicy.Settings(peers=("sb3",)).groups()
    works = offpolicy.Settings(task="gym:HalfCheetah-v5", device="cpu", algo=("sac",), mode=("eager",), peers=("sb3",))
    assert [name for name, _ in works.groups()[0]] == ["rlcore", "sb3"]


def test_gpu_preset_runs_with_sizes_of_its_own() -> None:
    ((name, work),) = offpolicy.Settings(preset=("gpu",), algo=("ddpg",), mode=("graph",)).groups()[0]
    own = DDPGConfig.preset("gpu")
    assert (name, work.num_envs, work.updates, work.batch) == ("rlcore", 1024, 4, own.batch_size)
    assert work.critic == own.critic.hidden_dims
    assert work.precision == own.precision


def test_runs_of_sac_are_judged_and_written_as_curves(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text("agent: {learning_starts: 20, batch_size: 8, buffer_size: 1000}\n")
    settings = learning.Settings(
        task=("Pendulum",),
        algo=("sac",),
        precision=("fp32", "bf16"),
        seeds=(1, 2),
        device="cpu",
        iterations=40,
        evaluations=2,
        eval_envs=4,
        config=file,
    )
    keys = learning.planned(settings)
    assert keys == [("Pendulum", "sac", precision, seed) for seed in (1, 2) for precision in ("fp32", "bf16")]
    runs = [learning.judge(learning.train(key, settings, 0.0), settings) for key in keys[:2]]
    learning.write_csv({"results": runs}, tmp_path / "curves.csv")
    lines = list(csv.DictReader((tmp_path / "curves.csv").open()))
    assert [(line["algo"], line["seed"], line["iteration"]) for line in lines][:2] == [
        ("sac", "1", "20"),
        ("sac", "1", "40"),
    ]
    assert float(lines[1]["return"]) == pytest.approx(runs[0]["curve"][1]["return"], rel=1e-5)
    stopped = learning.train(keys[0], dataclasses.replace(settings, limit=0.0), 0.0)
    assert (stopped["iterations"], stopped["planned"]) == (1, 40)
    assert [point["iteration"] for point in stopped["curve"]] == [1]
    with pytest.raises(ConfigError, match=r"--precision: sac has .*, not half"):
        learning.planned(dataclasses.replace(settings, precision=("half",)))  # type: ignore[arg-type]


def test_tasks_that_cannot_be_trained_are_refused_before_a_process_starts(capsys: pytest.CaptureFixture[str]) -> None:
    assert learning.main(["--task", "Nope"]) == 2
    assert learning.main(["--task", "CartPole", "--algo", "ppo", "sac"]) == 2
    unknown, discrete = capsys.readouterr().err.splitlines()
    assert "unknown task 'Nope'" in unknown and "--algo: CartPole has discrete actions" in discrete
