"""Every file of ``examples/`` runs as its header says, at a small setting, and the page names each."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch

from rlcore import PPO, PPOConfig, user_code
from rlcore.checkpoint import load_checkpoint
from rlcore.env_check import check_step
from rlcore.envs import make_env
from rlcore.train.cli import main

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
HOVER = "python:examples/own_env.py:Hover"
FEW = ["--num-iterations", "1", "--num-envs", "4", "--eval-envs", "4"]

SMALL: dict[str, tuple[list[str], str]] = {
    "train.py": (["--iterations", "2"], r"iteration   2 .*\nreturn \d"),
    "constraints.py": (["--iterations", "2"], r"without a limit .* fast \d.*\nat most 1 .* fast \d"),
    "curriculum.py": (
        ["--iterations", "2"],
        r"trained on levels, masses and winds, measured in the drawn world: return",
    ),
    "two_tasks.py": (
        ["--iterations", "1", "--num-envs", "16"],
        r"CartPole  return (?s:.*)Pendulum  return (?s:.*)task 1",
    ),
    "sweep.py": (["--iterations", "1", "--seeds", "1"], r"learning_rate 0.0001: return \d(?s:.*)learning_rate 0.01"),
}
"""Programs: a setting with which each is quick, and what it prints."""

ELSEWHERE = {
    "a2c.py": "test_own_algorithm.py",
    "own_network.py": "test_own_network.py",
    "humanoid.py": "test_examples_mjlab.py",
    "manipulation.py": "test_examples_mjlab.py",
}
"""Examples that another test runs."""

HERE = {"own_env.py", "hover.yaml", "fine_tune.sh", "deploy.py", "deploy.cpp", "first_steps.ipynb"}
"""Those that a test of their own in this file runs."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The present folder, with the examples in it and ``rlcore`` as a command."""
    (tmp_path / "examples").symlink_to(EXAMPLES)
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "rlcore"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m rlcore "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    yield tmp_path
    user_code._files.clear()


def run(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """``python examples/NAME WORDS``, in this process."""
    monkeypatch.setattr(sys, "argv", [f"examples/{name}", *words])
    runpy.run_path(f"examples/{name}", run_name="__main__")


def files() -> set[str]:
    return {path.name for path in EXAMPLES.iterdir() if path.is_file()}


def test_every_example_is_run_by_a_test_and_named_in_the_page() -> None:
    assert files() == {*SMALL, *ELSEWHERE, *HERE}
    for name, test in ELSEWHERE.items():
        assert name in (ROOT / "tests" / test).read_text()
    page = (ROOT / "docs" / "examples.md").read_text()
    assert set(re.findall(r"\]\(\.\./examples/([\w.]+)\)", page)) == files()


@pytest.mark.parametrize("name", sorted(files() - {"first_steps.ipynb"}))
def test_the_page_has_the_commands_of_the_header(name: str) -> None:
    text = (EXAMPLES / name).read_text()
    header = text.partition('"""')[2].partition('"""')[0] if name.endswith(".py") else text
    commands = re.findall(
        r"^(?:#|//)? *((?:rlcore|python|sh|g\+\+|PYTHONPATH=examples rlcore) .*[^.\\\n])$", header, re.MULTILINE
    )
    commands = re.findall(r"rlcore train --config \S+", header) if name == "hover.yaml" else commands
    page = (ROOT / "docs" / "examples.md").read_text()
    assert commands
    for command in commands if name != "fine_tune.sh" else commands[:1]:
        assert f"`{command}`" in page


@pytest.mark.parametrize("name", SMALL)
def test_programs_run(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, expected = SMALL[name]
    run(name, words, monkeypatch)
    said = capsys.readouterr().out
    assert re.search(expected, said), said
    assert {path.name for path in folder.glob("*.onnx")} == {
        "train.py": {"cartpole.onnx"},
        "two_tasks.py": {"two_tasks.onnx"},
    }.get(name, set())


def test_own_env_trains_and_its_controllers_in_python_and_cpp_fly_alike(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--config", "examples/hover.yaml", *FEW, "--name", "first"]) == 0
    (trained,) = folder.glob("runs/*/ppo/*-first")
    assert main(["eval", "--run", str(trained), "--num-envs", "4"]) == 0
    capsys.readouterr()
    run("deploy.py", [str(trained / "export" / "policy.onnx")], monkeypatch)
    flown = capsys.readouterr().out.splitlines()
    assert len(flown) == 10
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    assert main(["export", "--run", str(trained), "--cpp", "controller"]) == 0
    strict = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["g++", *strict, "-Icontroller", "examples/deploy.cpp", "-o", "hover"], check=True)
    done = subprocess.run(["./hover"], check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(done) == 11

    def heights(lines: list[str]) -> list[float]:
        return [float(number) for line in lines for number in re.findall(r"s +(-?[\d.]+) m$", line)]

    assert heights(done) == pytest.approx(heights(flown), abs=0.011)  # float and double, rounded to centimeters


def run_script(folder: Path, *command: str) -> None:
    """Run a shell's script. What it asks of ``rlcore`` is done in this process, which has everything imported."""
    asked, answer = folder / "asked", folder / "answer"
    os.mkfifo(asked)
    os.mkfifo(answer)
    lines = f"#!/bin/sh\nprintf '%s\\n' \"$@\" > {asked}\nread code < {answer}\nexit $code\n"
    (folder / "bin" / "rlcore").write_text(lines)
    reader, words = os.open(asked, os.O_RDONLY | os.O_NONBLOCK), b""
    script = subprocess.Popen(command)
    while script.poll() is None:
        try:
            more = os.read(reader, 4096)
        except BlockingIOError:  # it is being written
            continue
        words += more
        if words and not more:
            answer.write_text(f"{main(words.decode().splitlines())}\n")
            words = b""
        time.sleep(0.01)
    os.close(reader)
    assert script.returncode == 0


def test_fine_tuning_begins_with_the_first_policy_and_scores_the_other_reward(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_script(folder, "sh", "examples/fine_tune.sh", *FEW)
    said = capsys.readouterr().out
    assert "weights of" in said and "policy.trunk" in said
    runs = {path.name.rpartition("-")[2]: path for path in folder.glob("runs/*/ppo/*")}
    assert set(runs) == {"first", "gentle"}
    assert said.count("intervals of 95%") == 2


def test_the_notebook_runs_from_top_to_bottom(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook = json.loads((EXAMPLES / "first_steps.ipynb").read_text())
    sources = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook["cells"])
    short = [source.replace("iterations = 30", "iterations = 3") for source in sources]
    assert sum(a != b for a, b in zip(short, sources, strict=True)) == 1
    if importlib.util.find_spec("nbclient") and importlib.util.find_spec("ipykernel"):
        import nbclient
        import nbformat

        cells = [nbformat.v4.new_code_cell(source) for source in short]
        nbclient.NotebookClient(nbformat.v4.new_notebook(cells=cells), timeout=300).execute()
    else:
        matplotlib.use("agg")
        scope: dict[str, Any] = {}
        for number, source in enumerate(short):
            exec(compile(source, f"cell {number}", "exec"), scope)
        assert "return" in capsys.readouterr().out
    assert (folder / "cartpole.onnx").is_file()


# The env of own_env.py keeps the contract.


def hover(num_envs: int, **options: Any) -> Any:
    return make_env(HOVER, num_envs, seed=3, **options)


def test_hover_tells_failures_from_time_outs_and_what_was_seen_before_a_reset(folder: Path) -> None:
    env = hover(3, max_episode_length=8)
    env.reset()
    env.height[:2] = torch.tensor([0.05, 3.95])
    env.velocity[:2] = torch.tensor([-2.0, 2.0])
    step = env.step(torch.zeros(3, 1))
    check_step(env, step)
    assert step.terminated.tolist() == [True, True, False] and not step.truncated.any()
    assert step.final_obs["policy"][0, 2] <= 0.0 and step.final_obs["policy"][1, 2] >= 4.0
    assert step.obs["policy"][:2, 2].tolist() == [2.0, 2.0]
    for _ in range(6):
        assert not env.step(torch.zeros(3, 1)).truncated[2]
    last = env.step(torch.zeros(3, 1))
    assert last.truncated.tolist() == [False, False, True] and not last.terminated.any()
    assert last.obs["policy"][2, 2] == 2.0 and last.final_obs["policy"].shape == (3, 3)


def test_hover_moves_as_its_equations_say(folder: Path) -> None:
    env = hover(2, speed_weight=0.5)
    env.reset()
    env.set_parameters(
        {"mass": torch.tensor([1.0, 1.25]), "wind": torch.tensor([0.0, 1.0])}, torch.tensor([True, True])
    )
    env.goal.fill_(3.0)
    step = env.step(torch.tensor([[0.2], [5.0]]))  # the second is cut to 1
    for row, (mass, wind, action) in enumerate([(1.0, 0.0, 0.2), (1.25, 1.0, 1.0)]):
        velocity = 0.05 * (9.81 * (1 + action) / mass - 9.81 + wind)
        height = 2.0 + 0.05 * velocity
        expected = torch.tensor([3.0 - height, velocity, height, mass, wind])
        torch.testing.assert_close(step.obs["critic"][row], expected)
        torch.testing.assert_close(step.reward[row], torch.tensor(1.0 - (3.0 - height) - 0.5 * velocity**2))


def test_a_run_of_hover_goes_on_to_the_bit(folder: Path) -> None:
    words = ["train", "--config", "examples/hover.yaml", "--num-envs", "4", "--eval-envs", "4", "--no-export"]
    assert main([*words, "--num-iterations", "4", "--name", "whole"]) == 0
    assert main([*words, "--num-iterations", "2", "--name", "halves"]) == 0
    (halves,) = folder.glob("runs/*/*/*-halves")
    assert main(["train", "--resume", str(halves), "--num-iterations", "4"]) == 0
    states = [load_checkpoint(path)["agent"]["policy"] for path in folder.glob("runs/*/*/*/checkpoints/000004.pt")]
    assert len(states) == 2
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


@pytest.mark.gpu
def test_hover_is_recorded_as_a_graph(folder: Path) -> None:
    env = make_env(HOVER, 64, device="cuda", seed=3)
    agent = PPO(env, PPOConfig(num_steps=8), seed=1)
    agent.learn(3, capture_env=True)
    assert all(bool(parameter.isfinite().all()) for parameter in agent.policy.parameters())
