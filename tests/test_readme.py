"""Every snippet of the README runs."""

from __future__ import annotations

import glob
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rlcore.train.cli import main

TEXT = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
SHELL = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL) for line in block.splitlines()]


def run(command: list[str], folder: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_snippets_run(number: int, tmp_path: Path) -> None:
    (tmp_path / "snippet.py").write_text(PYTHON[number])
    run([sys.executable, "snippet.py"], tmp_path)


def test_shell_snippets_run_one_after_the_other(tmp_path: Path) -> None:
    assert len(SHELL) == 11
    for line in SHELL:
        # Shorter than the real thing, but the same command.
        short = re.sub(r"(rlcore train --task (CartPole|Memory)(?![\w-]))", r"\1 --num-iterations 3", line)
        command = re.sub(r"^rlcore", f"{sys.executable} -m rlcore", short)
        run(["bash", "-c", command], tmp_path)
    assert (tmp_path / "runs" / "cart.gif").stat().st_size > 1000
    assert (tmp_path / "runs" / "file.gif").stat().st_size > 1000
    assert not list(tmp_path.glob("*.gif"))  # version control leaves runs/ alone


@pytest.mark.parametrize(
    ("page", "number"), [("safety", 3), ("curricula", 2), ("cpp", 2), ("several-gpus", 1), ("report", 2), ("doctor", 3)]
)
def test_the_commands_of_a_page_run_one_after_the_other(
    page: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "docs" / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) == number
    for line in lines:
        program, *words = shlex.split(line.replace("--num-iterations 10", "--num-iterations 1"))
        assert program == "rlcore"
        assert main([found for word in words for found in glob.glob(word) or [word]]) == 0


def test_the_commands_of_the_page_on_robustness_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "docs" / "robustness.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    train, measure = block.splitlines()
    assert main([*shlex.split(train)[1:], "--num-iterations", "1", "--eval-envs", "4"]) == 0
    (run,) = glob.glob(shlex.split(measure)[-1])
    assert main(["robustness", "--run", run, "--episodes", "2", "--magnitudes", "0", "1"]) == 0
    assert {path.name for path in Path(run).glob("robustness*")} == {
        "robustness.json",
        "robustness-heatmap.png",
        "robustness-curves.png",
    }
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (Path(__file__).parents[1] / "docs" / picture).stat().st_size < 200_000


def test_the_env_of_the_readme_trains_from_a_file_of_its_own(tmp_path: Path) -> None:
    (snippet,) = [text for text in PYTHON if "class Drift" in text]
    (tmp_path / "drift.py").write_text(snippet)
    run([sys.executable, "-c", "from rlcore import PPO; PPO.learn = None; import drift"], tmp_path)
    (command,) = re.findall(r"^rlcore (train --task python:drift:Drift .*)$", TEXT, flags=re.MULTILINE)
    words = [*command.split(), "--num-iterations", "1", "--eval-envs", "2", "--agent.num-steps", "16"]
    run([sys.executable, "-m", "rlcore", *words], tmp_path)


def test_every_extra_is_told() -> None:
    setup = (Path(__file__).parents[1] / "setup.cfg").read_text()
    extras = re.findall(r"^(\w+) =", setup.partition("[options.extras_require]")[2].partition("\n[")[0], re.MULTILINE)
    assert {"mjlab", "mujoco"} <= set(extras)
    for extra in set(extras) - {"peers", "dev"}:
        assert f"pip install '.[{extra}]'" in TEXT


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", TEXT, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
