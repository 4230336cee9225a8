from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import curves
import learning
import pytest
import report as report_module
from profiler import costs
from throughput import Settings
from timing import count, merge, spread
from work import Work

ROOT = Path(__file__).parent.parent
ARGUMENTS = (
    "--device cpu --threads 1 --sizes 8 16 --num-steps 4 --epochs 2 --minibatches 2 --hidden 16 8 --obs 5 --actions 3 "
    "--iterations 3 --warmup 3 --rounds 2 --precision fp32 tf32 --peers rsl_rl skrl rl_games"
)
COMMAND = [sys.executable, "benchmarks/throughput.py"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([*COMMAND, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("throughput")
    files = [f"--json={folder / 'out.json'}", f"--plot={folder / 'out.png'}", f"--profile={folder / 'trace.json.gz'}"]
    done = run(*ARGUMENTS.split(), *files, "--markdown")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads((folder / "out.json").read_text()), folder


Outcome = tuple[str, dict[str, Any], Path]


def test_every_size_and_precision_is_timed_in_every_round(outcome: Outcome) -> None:
    _, report, _ = outcome
    ours = [result for result in report["results"] if result["name"] == "rlcore"]
    assert [(r["num_envs"], r["precision"]) for r in ours] == [(8, "fp32"), (8, "tf32"), (16, "fp32"), (16, "tf32")]
    for result in report["results"]:
        collect, learn, iteration = (result[f"{phase}_ms"] for phase in ("collect", "learn", "iteration"))
        for times in (collect, learn, iteration):
            assert 0 < times["min"] <= times["q25"] <= times["median"] <= times["q75"] <= times["max"]
            assert times["count"] == 6  # 3 iterations in each of 2 rounds
        assert len(result["rounds"]) == 2
        # Loose, because the phases and the whole are separate runs on a machine with other work to do.
        assert collect["min"] + learn["min"] <= 1.5 * iteration["max"]
        assert result["env_steps_per_s"] == pytest.approx(result["num_envs"] * 4 / (iteration["median"] / 1e3))


def test_rounds_take_turns(outcome: Outcome) -> None:
    _, report, _ = outcome
    starts = {(r["num_envs"], r["precision"]): r["rounds"] for r in report["results"] if r["name"] == "rlcore"}
    first, second = starts[8, "fp32"], starts[8, "tf32"]
    assert first[0]["date"] <= second[0]["date"] <= first[1]["date"] <= second[1]["date"]


def test_setup_is_known_apart_and_cold_only_once(outcome: Outcome) -> None:
    _, report, _ = outcome
    ours = [result["setup"] for result in report["results"] if result["name"] == "rlcore"]
    assert [setup["cold"] for setup in ours] == [True, False, False, False]
    for setup in ours:
        assert 0 < setup["build_s"] < setup["first_iteration_s"] < setup["three_iterations_s"]
        assert setup["build_s"] <= setup["lost_s"] < setup["three_iterations_s"] + 0.5
    assert ours[0]["import_s"] > 0.1


def test_report_says_what_was_run_and_on_what_without_folders(outcome: Outcome) -> None:
    _, report, _ = outcome
    assert report["settings"] == {
        "task": "Null",
        "obs": 5,
        "actions": 3,
        "sizes": [8, 16],
        "num_steps": 4,
        "epochs": 2,
        "minibatches": 2,
        "hidden": [16, 8],
        "rnn": "none",
        "normalize_obs": False,
        "device": "cpu",
        "mode": ["graph"],
        "capture_env": ["yes"],
        "precision": ["fp32", "tf32"],
        "threads": 1,
        "iterations": 3,
        "warmup": 3,
        "rounds": 2,
        "peers": ["rsl_rl", "skrl", "rl_games"],
        "json": "out.json",
        "plot": "out.png",
        "profile": "trace.json.gz",
        "markdown": True,
    }
    assert report["command"].startswith(f"python benchmarks/throughput.py {ARGUMENTS}")
    assert report["hardware"]["cores"] == os.cpu_count()
    assert report["versions"]["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert report["profile"]["trace"] == "trace.json.gz"


def test_every_peer_is_measured_or_its_installation_told(outcome: Outcome) -> None:
    printed, report, _ = outcome
    measured = {result["name"]: result for result in report["results"] if result["num_envs"] == 8}
    first = report["results"][0]
    assert first["ratio"] == {"collect": 1.0, "learn": 1.0, "iteration": 1.0}
    for peer in ("rsl_rl", "skrl", "rl_games"):
        if importlib.util.find_spec(peer) is None:
            assert f"{peer} is not installed: {report['missing'][peer]}" in printed
        else:
            ratio = measured[peer]["iteration_ms"]["median"] / first["iteration_ms"]["median"]
            assert measured[peer]["ratio"]["iteration"] == pytest.approx(ratio)
            assert measured[peer]["precision"] == "tf32"


def test_profile_covers_both_phases_and_is_kept_with_its_trace(outcome: Outcome) -> None:
    printed, report, folder = outcome
    profile = report["profile"]
    for phase in ("collect", "learn"):
        figures = profile["phases"][phase]
        assert 0 < figures["busy_ms"] <= figures["wall_ms"]
    products = {"aten::addmm", "aten::mm"}
    assert any(row["name"] in products and row["learn_ms"] > 0 < row["collect_ms"] for row in profile["kernels"])
    assert (folder / "trace.json.gz").stat().st_size > 10_000
    assert "the other" in printed


def test_plot_is_a_picture(outcome: Outcome) -> None:
    from matplotlib import image

    pixels = image.imread(outcome[2] / "out.png")
    assert pixels.shape[0] > 500 and pixels.shape[1] > 800
    assert pixels[..., :3].std() > 0.05  # not blank


def test_unknown_peer_is_one_line_and_exit_code_2() -> None:
    with pytest.raises(ValueError, match="unknown library 'rslrl'; choose from rsl_rl rsl_rl_compiled skrl rl_games"):
        Settings(peers=("skrl", "rslrl")).works(8)
    done = run("--peers", "rslrl")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_libraries_for_gymnasium_run_on_a_cpu_and_its_tasks_alone() -> None:
    task: dict[str, Any] = {"task": "gym:CartPole-v1", "device": "cpu"}
    assert [name for name, _ in Settings(**task, peers=("sb3", "sbx")).works(8)] == ["rlcore", "sb3", "sbx"]
    for other in ({"task": "Null"}, {"device": "cuda"}):
        with pytest.raises(ValueError, match="--peers sbx: it is timed on a CPU and gymnasium's tasks"):
            Settings(**(task | other), peers=("sbx",)).works(8)


def test_works_are_all_combinations_and_peers_with_and_without_tf32() -> None:
    works = Settings(precision=("bf16", "fp32"), mode=("eager", "graph"), peers=("skrl",)).works(64)
    assert [(name, work.precision, work.mode) for name, work in works] == [
        ("rlcore", "bf16", "eager"),
        ("rlcore", "bf16", "graph"),
        ("rlcore", "fp32", "eager"),
        ("rlcore", "fp32", "graph"),
        ("skrl", "tf32", "graph"),
        ("skrl", "fp32", "graph"),
    ]
    assert Settings(precision=("fp32",), peers=("skrl",)).works(64)[1][1].precision == "fp32"


@pytest.mark.parametrize(("num_envs", "expected"), [(16, 20), (4096, 20), (8192, 10), (16384, 5), (65536, 5)])
def test_large_sizes_are_timed_with_fewer_iterations(num_envs: int, expected: int) -> None:
    assert count(Work(num_envs=num_envs, precision="tf32", iterations=20)) == expected


def test_spread_of_known_times() -> None:
    expected = {"median": 3.0, "q25": 2.0, "q75": 4.0, "mean": 4.0, "min": 1.0, "max": 10.0, "count": 5}
    assert spread([4.0, 1.0, 2.0, 3.0, 10.0]) == expected
    assert spread([7.0])["median"] == 7.0


def one_round(date: str, times: list[float], **changes: Any) -> dict[str, Any]:
    phases = {f"{phase}_ms": times for phase in ("collect", "learn", "iteration")}
    result = {"name": "rlcore", "version": "1", "timing": "", "num_envs": 8, "precision": "tf32", "mode": "graph"}
    setup = {"cold": True, "build_s": 1.0, "lost_s": 2.0}
    result |= {"env_in_graph": False, "samples": phases, "samples_by_library": {}, "setup": setup, "memory_mib": None}
    return result | {"warnings": ["slow"], "date": date} | changes


def test_rounds_count_together() -> None:
    result = merge([one_round("a", [1.0, 2.0]), one_round("b", [3.0, 6.0])])
    assert result["iteration_ms"]["median"] == 2.5
    assert result["rounds"] == [{"date": "a", "iteration_ms": 1.5}, {"date": "b", "iteration_ms": 4.5}]
    assert result["warnings"] == ["slow"]
    assert result["setup"]["cold"]


def event(name: str, ts: float, dur: float, cat: str = "kernel", tid: int = 7) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "pid": 0, "tid": tid}


RANGES = [event("collect", 0, 1000, "user_annotation"), event("learn", 1000, 2000, "user_annotation")]


def test_kernels_are_summed_by_phase_and_overlap_counts_once_as_busy() -> None:
    kernels = [
        event("gemm", 100, 200),
        event("gemm", 1100, 500),
        event("elu", 1400, 400, tid=8),  # another stream; 200 of it beside the product
        event("Memset", 1900, 100, "gpu_memset"),
        event("aten::mm", 0, 3000, "cpu_op"),  # its kernels count, not the launch
        event("gemm", 5000, 999),  # after the iteration
    ]
    result = costs([*RANGES, *kernels])
    assert result["phases"]["collect"] == {"wall_ms": 1.0, "busy_ms": 0.2, "kernels": 1}
    assert result["phases"]["learn"] == pytest.approx({"wall_ms": 2.0, "busy_ms": 0.8, "kernels": 3})
    assert [row["name"] for row in result["kernels"]] == ["gemm", "elu", "Memset"]
    assert result["kernels"][0] == {"name": "gemm", "count": 2, "collect_ms": 0.2, "learn_ms": 0.5, "total_ms": 0.7}


def test_operators_count_without_those_inside_them() -> None:
    operators = [event("aten::linear", 0, 100, "cpu_op"), event("aten::addmm", 10, 60, "cpu_op")]
    rows = {row["name"]: row["collect_ms"] for row in costs([*RANGES, *operators])["kernels"]}
    assert rows == pytest.approx({"aten::linear": 0.04, "aten::addmm": 0.06})


def test_markdown_says_how_many_times_faster() -> None:
    results = [merge([one_round("a", [10.0])]), merge([one_round("a", [75.0], name="rsl_rl", mode="graph")])]
    for result in results:
        result |= {"env_steps_per_s": 3200.0, "memory_mib": {"allocated": 1.0, "reserved": 1336.0}}
    settings = {"task": "Null", "obs": 5, "actions": 3, "num_steps": 4, "epochs": 2, "minibatches": 2}
    report = {
        "kind": "throughput",
        "command": "python x",
        "date": "2026-01-02T03:04:05",
        "settings": settings | {"hidden": [16], "device": "cpu"},
        "hardware": {"cores": 2, "cpu": "C"},
        "versions": {"torch": "2", "python": "3"},
        "results": results,
        "failed": {},
    }
    text = report_module.markdown([report])
    row = "| 8 | rlcore tf32 | 10.00 | 10.00 | 10.00 (10.00..10.00) | 3,200 | 1,336 | 2.0 cold | 7.50× |"
    assert row in text.splitlines()
    assert "rlcore tf32, 8 envs: slow" in text


def test_kernel_names_keep_what_tells_them_apart() -> None:
    name = "void at::native::vectorized_elementwise_kernel<4, at::native::(anonymous namespace)::elu_kernel>(int)"
    assert report_module.shortened(name) == "vectorized_elementwise_kernel<4, elu_kernel>(int)"
    assert len(report_module.shortened("x" * 500)) == 90


def test_policies_are_judged_as_they_were_when_put_aside() -> None:
    settings = learning.Settings(device="cpu", num_envs=8, iterations=4, evaluations=2, eval_envs=4, seeds=(1,))
    run = learning.train(("Pendulum", "ppo", "fp32", 1), settings, 0.0)
    assert [point["iteration"] for point in run["curve"]] == [2, 4]
    assert run["setup"]["first_iteration_s"] < run["setup"]["three_iterations_s"] <= run["total_s"]
    judged = learning.judge(run, settings)
    first, last = judged["curve"]
    assert first["return"] != last["return"]
    assert "states" not in judged and judged["reached"] is None
    # The last policy alone gives the same figure again.
    alone = learning.judge({**run, "curve": run["curve"][1:], "states": run["states"][1:]}, settings)
    assert alone["curve"] == [last]


def test_learning_takes_the_algorithms_and_presets_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    def chosen(task: str, algo: str, preset: Any = None) -> tuple[Any, ...]:
        own: Any = learning.shipped(task, algo, learning.Settings(preset=preset))
        return own.algo, getattr(own, "preset", None), own.agent

    assert chosen("Pendulum", "ppo")[:2] == ("ppo", None)
    assert chosen("Pendulum", "sac")[:2] == ("sac", "classic")
    assert chosen("Reach-UR5e-JointPos", "sac")[:2] == ("sac", "gpu")
    for preset, name in ((None, "td3"), ("gpu", "gpu")):
        algo, own, agent = chosen("Pendulum", "td3", preset)
        assert (algo, own, agent.policy_delay, agent.num_critics) == ("ddpg", name, 2, 2)
        assert (agent.value_loss == "categorical") == (preset == "gpu")
    settings = learning.Settings(algo=("sac", "td3"), preset="gpu", task=("Pendulum",), precision=("bf16",), seeds=(1,))
    assert learning.planned(settings) == [("Pendulum", algo, "bf16", 1) for algo in ("sac", "td3")]
    for words, message in (
        ("--algo ppo --preset gpu", "--preset is 'gpu', and ppo has none"),
        ("--algo td3 --preset classic", "--preset is 'classic', which is DDPG without what makes it td3"),
    ):
        assert learning.main(["--task", "Pendulum", *words.split()]) == 2
        assert message in capsys.readouterr().err


def test_td3_is_trained_judged_and_drawn(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text("agent: {learning_starts: 8, batch_size: 8, buffer_size: 500}\n")
    settings = learning.Settings(device="cpu", num_envs=4, iterations=4, evaluations=2, eval_envs=3, config=file)
    run = learning.judge(learning.train(("Pendulum", "td3", "fp32", 1), settings, 0.0), settings)
    assert (run["algo"], run["preset"]) == ("td3", "td3")
    report = {"settings": {"target": 0.9, "jobs": 1}, "results": [run], "failed": {}}
    assert curves.summary(report)[1][0][:2] == ["Pendulum", "td3"]
    curves.draw(report, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000


def test_runs_that_a_deadline_leaves_no_time_for_are_told(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    words = f"--task Pendulum --precision fp32 --seeds 1 2 --device cpu --num-envs 4 --iterations 2 --json {file}"
    assert learning.main([*words.split(), "--deadline", "0"]) == 1
    report = json.loads(file.read_text())
    assert report["results"] == []
    late = "not begun before the deadline"
    assert report["failed"] == {f"Pendulum ppo fp32 seed {seed}": late for seed in (1, 2)}


@pytest.mark.parametrize("number", [1, 9])
def test_curves_of_several_files_come_into_one_picture(number: int, tmp_path: Path) -> None:
    points = [{"iteration": i, "env_steps": 1e5 * i, "seconds": 2.0 * i, "return": i, "success": None} for i in (1, 2)]
    setup = {"import_s": 3.0, "build_s": 1.0, "first_iteration_s": 2.0, "three_iterations_s": 2.5}
    files = []
    for i in range(number):
        run = {"task": f"gym:Task{i}", "algo": "ppo", "precision": "fp32", "seed": 1, "num_envs": 8, "iterations": 2}
        run |= {"setup": setup, "total_s": 4.0, "warnings": [], "curve": points, "reached": None}
        report = {"kind": "learning", "command": "", "date": "2026-11-29T00:00", "results": [run], "failed": {}}
        report |= {"settings": {"target": 0.9, "jobs": 1}, "hardware": {"cpu": "x", "cores": 2}}
        report |= {"versions": {"torch": "2", "python": "3"}}
        files.append(tmp_path / f"{i}.json")
        files[-1].write_text(json.dumps(report))
    picture = tmp_path / "curves.png"
    assert report_module.main([*map(str, files), "--plot", str(picture)]) == 0
    assert picture.stat().st_size > 5000


def test_learning_table_tells_seeds_that_never_reached_the_target(tmp_path: Path) -> None:
    def result(seed: int, success: float, seconds: float | None) -> dict[str, Any]:
        point = {"iteration": 9, "env_steps": 2_000_000, "seconds": seconds or 30.0, "return": -5.0, "success": success}
        setup = {"import_s": 3.0, "build_s": 1.0, "first_iteration_s": 2.0, "three_iterations_s": 2.5}
        run = {
            "task": "Reach",
            "algo": "ppo",
            "precision": "bf16",
            "seed": seed,
            "num_envs": 4096,
            "iterations": 9,
            "setup": setup,
        }
        return run | {"total_s": 31.0, "warnings": [], "curve": [point], "reached": point if seconds else None}

    report = {
        "settings": {"target": 0.9, "jobs": 1},
        "results": [result(1, 0.95, 20.0), result(2, 0.85, None), result(3, 0.99, 30.0)],
        "failed": {},
    }
    heads, (row,) = curves.summary(report)
    cells = dict(zip(heads, row, strict=True))
    assert cells["final success %"] == "93.0 (85.0..99.0)"
    assert cells["s to 90% success"] == "25.0 (20.0..30.0), 1 never"
    assert cells["M env steps to 90%"] == "2.0 (2.0..2.0), 1 never"
    curves.draw(report, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000
