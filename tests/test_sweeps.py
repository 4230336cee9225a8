"""Sweeps: the space, what trials are worth, and processes that end in every way."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from rlcore.config import ConfigError
from rlcore.ppo_config import PPOConfig
from rlcore.train.cli import main
from rlcore.train.commands.sweep import _checked, parted
from rlcore.train.run import RunFolder
from rlcore.train.sweep import runner
from rlcore.train.sweep.outcome import curve_of, value_of
from rlcore.train.sweep.plan import SweepPlan, continued, read_plan, write_plan
from rlcore.train.sweep.results import ordered
from rlcore.train.sweep.space import dimension, forms_in
from rlcore.train.sweep.study import Trial

STAND_IN = Path(__file__).with_name("sweep_stand_in.py")
needs_optuna = pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="needs Optuna")


# What may be swept


def test_a_dimension_is_read_as_it_is_written() -> None:
    rate = dimension("agent.learning-rate", "log:1e-4:1e-2")
    assert (rate.name, rate.kind, rate.low, rate.high) == ("agent.learning_rate", "log", 1e-4, 1e-2)
    assert dimension("agent.num_epochs", "int:2:8").ends == ("2", "8")
    assert dimension("agent.gamma", "choice:0.98,0.99").choices == ("0.98", "0.99")
    assert dimension("agent.actor.hidden_dims", "choice:[64,64],[256]").choices == ("[64,64]", "[256]")


@pytest.mark.parametrize(
    ("name", "form", "told"),
    [
        ("agent.gamma", "0.98", "write float:LOW:HIGH"),
        ("agent.gamma", "float:0.9", "write float:LOW:HIGH"),
        ("agent.gamma", "float:a:b", "have to be numbers"),
        ("agent.gamma", "float:0.99:0.9", "LOW below HIGH"),
        ("agent.gamma", "float:0:inf", "finite"),
        ("agent.gamma", "log:0:1", "logarithm"),
        ("agent.num_epochs", "int:1.5:4", "whole numbers"),
        ("agent.gamma", "choice:0.9", "two or more"),
        ("agent.gamma", "choice:0.9,0.9", "different"),
        ("seed", "int:1:5", "--seeds"),
        ("task", "choice:CartPole,Pendulum", "cannot be compared"),
    ],
)
def test_what_is_no_dimension_is_refused_with_the_remedy(name: str, form: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as error:
        dimension(name, form)
    assert name in str(error.value)


def test_a_file_and_words_make_one_space(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("agent.gamma: [0.98, 0.99]\nagent.num_epochs: int:2:8\nagent.actor.hidden_dims: [[64, 64], [32]]\n")
    space = forms_in(["agent.tau=log:1e-3:1e-1"], file)
    assert space == {
        "agent.gamma": "choice:0.98,0.99",
        "agent.num_epochs": "int:2:8",
        "agent.actor.hidden_dims": "choice:[64,64],[32]",
        "agent.tau": "log:1e-3:1e-1",
    }
    with pytest.raises(ConfigError, match="swept twice"):
        forms_in(["agent.gamma=float:0:1"], file)
    with pytest.raises(ConfigError, match="is no dimension"):
        forms_in(["agent.gamma"])
    file.write_text("agent.gamma: 3\n")
    with pytest.raises(ConfigError, match=r"agent\.gamma: 3 is not"):
        forms_in([], file)


def test_the_words_of_a_sweep_are_parted_from_those_of_its_runs() -> None:
    words = "--task T --sweep a.b=int:1:2 c.d=choice:x,y --trials 3 --agent.gamma 0.9 --no-prune parallel=2"
    own, dimensions, rest = parted([*words.split(), "--sweep=e=log:1:2"])
    assert own == ["--trials=3", "--no-prune", "--parallel=2"]
    assert dimensions == ["a.b=int:1:2", "c.d=choice:x,y", "e=log:1:2"]
    assert rest == ["--task", "T", "--agent.gamma", "0.9"]


def test_a_run_that_goes_on_is_told_the_same_but_the_file_of_settings() -> None:
    words = ["--task", "T", "--config", "a.yaml", "--gpus", "2", "config=b.yaml", "--headless"]
    assert runner.without_file(words) == ["--task", "T", "--gpus", "2", "--headless"]


# What a run is worth


def test_figures_of_the_best_checkpoint_count_before_those_that_chose_it(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(
        "iteration,env_steps,eval/return,loss/value\n1,10,,3\n2,20,50,2\n3,30,,nan\n4,40,90,1\n"
    )
    (tmp_path / "eval.json").write_text(
        json.dumps({"return_mean": 80.0, "signal_wear_mean": 7, "tasks": {"A": {"success": 0.25}}})
    )
    assert value_of(tmp_path, "eval/return") == 80
    assert value_of(tmp_path, "eval/signal_wear") == 7
    assert value_of(tmp_path, "eval/success_A") == 0.25
    assert value_of(tmp_path, "loss/value") == 1
    assert curve_of(tmp_path, "eval/return") == [(2, 50.0), (4, 90.0)]
    with pytest.raises(ConfigError, match="no eval/success; there is eval/return"):
        value_of(tmp_path, "eval/success")


def test_trials_are_ordered_by_the_metric_and_failed_ones_come_last() -> None:
    trials = [
        Trial(number=i, state=state, settings={}, value=value)
        for i, (state, value) in enumerate([("failed", None), ("pruned", 99.0), ("done", 1.0), ("done", 2.0)])
    ]
    assert [trial.number for trial in ordered(trials, minimize=False)] == [3, 2, 1, 0]
    assert [trial.number for trial in ordered(trials, minimize=True)] == [2, 3, 1, 0]


def test_a_folder_keeps_one_sweep(tmp_path: Path) -> None:
    plan = SweepPlan(space={"agent.gamma": "float:0.9:0.99"}, words=("--task", "T"))
    folder = tmp_path / "s"
    assert continued(folder, plan) == plan
    write_plan(folder, plan)
    assert read_plan(folder) == plan
    more = SweepPlan(space=plan.space, words=plan.words, trials=50, parallel=4)
    assert continued(folder, more) == more
    with pytest.raises(ConfigError, match="with another task or setting of rlcore train, seeds"):
        continued(folder, SweepPlan(space=plan.space, words=("--task", "U"), seeds=2))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ConfigError, match="no sweep"):
        continued(tmp_path / "other", plan)


# Before anything is trained


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["sweep", *words]) == 2
    text = capsys.readouterr().err
    assert text.startswith("rlcore sweep: error: ")
    assert text.count("\n") == 1
    return text


def test_without_optuna_one_line_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "optuna" else known(name))
    told = refused(capsys, "--task", "CartPole", "--sweep", "agent.gamma=float:0.9:0.99")
    assert "pip install optuna" in told


@needs_optuna
@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--task CartPole", "nothing is swept"),
        ("--sweep agent.gamma=float:0.9:0.99", "--task is missing"),
        ("--task CartPole --sweep agent.gama=float:0.9:0.99", "did you mean --agent.gamma?"),
        ("--task CartPole --sweep agent.gamma=float:0.9:1.5", "gamma: 1.5 is not possible"),
        ("--task CartPole --sweep agent.num_epochs=choice:1,two", "'two' is not a whole number"),
        ("--task CartPole --sweep agent.gamma=float:0.9:0.99 --agent.gamma 0.9", "swept and given"),
        ("--task CartPole --sweep agent.gamma=float:0.9:0.99 --trials 0", "trials: 0 is not possible"),
        ("--task CartPole --sweep agent.gamma=float:0.9:0.99 --metric return", "column of metrics.csv"),
        ("--task CartPole --sweep agent.gamma=float:0.9:0.99 --metric eval/retrun", "did you mean 'eval/return'?"),
        ("--task CartPole --sweep agent.gamma=float:0.9:0.99 --trails 2", "did you mean --trials?"),
        ("--task CartPole --sweep agent.gamma=float:0.9:0.99 --name a/b", "--name: 'a/b' is not possible"),
        ("--task CartPole --sweep agent.gamma=float:0.9:0.99 --runs-dir x", "of no use in a sweep"),
        ("--task CartPole --sweep agent.gamma=float:0.9:0.99 --seed x", "not a whole number"),
        ("--task CartPole --sweep", "--sweep needs a value"),
        ("--resume nowhere", "no sweep at 'nowhere'"),
        ("--resume nowhere --task CartPole", "--task cannot go with --resume"),
        ("--resume nowhere --metric eval/success", "--metric cannot go with --resume"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_it_leaves_anything(
    words: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told in refused(capsys, *words.split())
    assert not list(tmp_path.iterdir())


def test_it_is_said_where_trials_are_seen_too_rarely_to_be_given_up() -> None:
    def said(words: str, metric: str = "eval/return") -> list[str]:
        space = {"agent.gamma": "float:0.9:0.99"}
        return _checked(SweepPlan(space=space, words=("--task", "CartPole", *words.split()), metric=metric))

    assert said("--num-iterations 20 --eval-interval 10 --log-interval 5") == []
    (late,) = said("--num-iterations 20 --eval-interval 4 --log-interval 10")
    assert "--log-interval 4" in late
    (never,) = said("--num-iterations 20 --eval-interval 0")
    assert "no trial is given up" in never
    assert said("--num-iterations 20 --eval-interval 0 --log-interval 10", "rollout/reward") == []


# Trials, with a stand-in for the training


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "COMMAND", (sys.executable, str(STAND_IN)))
    monkeypatch.setattr(runner, "POLL", 0.02)
    monkeypatch.setattr("rlcore.train.commands.sweep._checked", lambda plan: [])
    return tmp_path / "sweeps" / "s"


def sweep(*words: str) -> int:
    return main(["sweep", "--task", "T", "--name", "s", *words])


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@needs_optuna
def test_a_sweep_leaves_its_table_its_pictures_and_the_best_settings(
    stand_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = ("--sweep", "agent.x=float:0:6", "agent.mode=choice:good,fine")
    assert sweep(*space, "--trials", "6", "--parallel", "3", "--no-prune") == 0
    table = rows(stand_in)
    assert [row["state"] for row in table] == ["done"] * 6
    for row in table:
        assert float(row["eval/return"]) == pytest.approx(10 - abs(float(row["agent.x"]) - 3))
        assert json.loads((stand_in / row["runs"] / "config.yaml").read_text())["agent.x"] == row["agent.x"]
    best = max(table, key=lambda row: float(row["eval/return"]))
    settings = yaml.safe_load((stand_in / "best.yaml").read_text())
    assert settings["agent.x"] == best["agent.x"]
    assert not {"name", "runs_dir"} & set(settings)
    assert (stand_in / "sweep.png").read_bytes().startswith(b"\x89PNG")
    page = (stand_in / "sweep.html").read_text()
    assert "data:image/png;base64," in page
    assert "default-src &#x27;none&#x27;" in page  # no network
    said = capsys.readouterr().out
    assert f"best         trial {best['trial']}" in said
    assert "importance" in said
    # More of it, with the folder alone.
    assert main(["sweep", "--resume", "sweeps/s", "--trials", "7"]) == 0
    assert [row["trial"] for row in rows(stand_in)] == list("0123456")
    assert rows(stand_in)[:6] == table


@needs_optuna
def test_less_is_better_where_it_is_said(stand_in: Path) -> None:
    assert sweep("--sweep", "agent.x=float:0:6", "--trials", "4", "--minimize", "--no-prune") == 0
    worst = min(rows(stand_in), key=lambda row: float(row["eval/return"]))
    assert yaml.safe_load((stand_in / "best.yaml").read_text())["agent.x"] == worst["agent.x"]


@needs_optuna
def test_trials_that_fail_are_named_and_are_not_the_end(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "HOPELESS", 100)
    assert sweep("--sweep", "agent.mode=choice:good,broken,killed,blank", "--trials", "16", "--parallel", "2") == 0
    told = {}
    for row in rows(stand_in):
        mode = json.loads((stand_in / row["runs"] / "config.yaml").read_text())["agent.mode"]
        assert mode == row["agent.mode"]
        told[mode] = row["state"], row["why"].partition(";")[0]
    assert told["good"][0] in ("done", "pruned")
    assert told["broken"] == ("failed", "agent.mode is broken")
    assert told["killed"] == ("failed", "ended by signal 9, as when memory runs out")
    assert told["blank"] == ("failed", "it has no eval/return")
    assert "failed: agent.mode is broken; mend it" in capsys.readouterr().out


@needs_optuna
def test_a_sweep_whose_first_trials_all_fail_ends(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = "the first 3 trials failed, the last one because: agent.mode is broken; mend it"
    assert sweep("--sweep", "agent.x=float:0:6", "--agent.mode=broken", "--trials", "50") == 2
    assert told in capsys.readouterr().err
    assert len(rows(stand_in)) == 3


@needs_optuna
def test_a_trial_below_the_median_is_given_up(stand_in: Path) -> None:
    # One at a time: the five before any is given up are done. Optuna's own pruner says who is below.
    assert sweep("--sweep", "agent.x=float:0:6", "--trials", "14", "--slow=0.06") == 0
    states = [row["state"] for row in rows(stand_in)]
    assert states[:5] == ["done"] * 5
    assert "pruned" in states
    for row in rows(stand_in):
        run = stand_in / row["runs"]
        assert (run / "eval.json").exists() == (row["state"] == "done")


@needs_optuna
def test_a_trial_is_the_mean_over_its_seeds(stand_in: Path) -> None:
    space = ("--sweep", "agent.x=float:0:6", "--trials", "2", "--seeds", "3", "--seed", "5", "--no-prune")
    assert sweep(*space) == 0
    for row in rows(stand_in):
        base = 10 - abs(float(row["agent.x"]) - 3)
        assert [float(row[f"seed {seed}"]) for seed in (5, 6, 7)] == pytest.approx([base + 4, base + 5, base + 6])
        assert float(row["eval/return"]) == pytest.approx(base + 5)
        assert len(row["runs"].split()) == 3


@needs_optuna
@pytest.mark.parametrize("times", [1, 2])
def test_a_sweep_that_is_interrupted_goes_on_with_the_same_runs(times: int, stand_in: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom rlcore.train.sweep import runner\nfrom rlcore.train.commands import sweep\n"
        f"runner.COMMAND = (sys.executable, {str(STAND_IN)!r})\nsweep._checked = lambda plan: []\n"
        "from rlcore.train.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    words = ("--sweep", "agent.x=float:0:6", "--trials", "3", "--parallel", "2", "--no-prune", f"--slow={1.5 * times}")
    command = [sys.executable, "-c", code, "sweep", "--task", "T", "--name", "s", *words]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(list(stand_in.glob("runs/*/*/*/checkpoints/000001.pt"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    for number in range(times):
        time.sleep(1.2 * number)
        process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert "to go on: rlcore sweep --resume sweeps/s" in out
    assert [row["state"] for row in rows(stand_in)] == ["running", "running"]
    before = sorted(path.name for path in stand_in.glob("runs/*/*/*"))
    (tmp_path / "quick").touch()
    assert sweep(*words) == 0  # the same command
    after = sorted(path.name for path in stand_in.glob("runs/*/*/*"))
    assert len(after) == 3
    assert set(before) < set(after)
    for run in stand_in.glob("runs/*/*/*"):
        lines = (run / "metrics.csv").read_text().splitlines()[1:]
        assert [line.partition(",")[0] for line in lines] == ["1", "2", "3", "4"]
    assert [row["state"] for row in rows(stand_in)] == ["done"] * 3


@needs_optuna
def test_two_processes_do_not_run_one_sweep(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--sweep", "agent.x=float:0:6", "--trials", "1")
    assert sweep(*words) == 0
    folder = RunFolder(stand_in)
    folder.take_over()
    try:
        assert main(["sweep", "--resume", "sweeps/s", "--trials", "2"]) == 2
    finally:
        folder.unlock()
    assert "is being trained" in capsys.readouterr().err


# The real thing


@needs_optuna
@pytest.mark.slow
def test_the_commands_of_the_page_run_and_trials_are_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    page = (Path(__file__).parents[1] / "docs" / "sweeps.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL)
    search, train = (shlex.split(line)[1:] for line in block.splitlines())
    short = {"--trials": "2", "--num-iterations": "2", "--eval-interval": "1"}
    search = [short.get(before, word) for before, word in zip(["", *search], search, strict=False)]
    assert main([*search, "--eval-envs=4", "--agent.actor.hidden-dims", "8"]) == 0
    for row in rows(tmp_path / "sweeps" / "cart"):
        run = RunFolder.open(tmp_path / "sweeps" / "cart" / row["runs"])
        config = run.read_config()
        assert isinstance(config.agent, PPOConfig)
        assert config.agent.learning_rate == float(row["agent.learning_rate"])
        assert config.agent.num_epochs == int(row["agent.num_epochs"])
        assert config.agent.actor.hidden_dims == (8,)
        assert float(row["eval/return"]) == json.loads(run.evaluation.read_text())["return_mean"]
    assert main([*train, "--num-iterations", "1"]) == 0
    assert len(list(tmp_path.glob("runs/CartPole/ppo/*/config.yaml"))) == 1
    (space,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "space.yaml").write_text(space)
    assert forms_in([], tmp_path / "space.yaml") == read_plan(tmp_path / "sweeps" / "cart").space
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", page):
        assert (Path(__file__).parents[1] / "docs" / picture).stat().st_size < 200_000
