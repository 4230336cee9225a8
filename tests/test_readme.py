"""Every snippet of the README runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert len(SHELL) == 10
    for line in SHELL:
        # Shorter than the real thing, but the same command.
        short = re.sub(r"(rlcore train --task (CartPole|Memory))", r"\1 --num-iterations 3", line)
        command = re.sub(r"^rlcore", f"{sys.executable} -m rlcore", short)
        run(["bash", "-c", command], tmp_path)
    assert (tmp_path / "cart.gif").stat().st_size > 1000
    assert (tmp_path / "file.gif").stat().st_size > 1000


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", TEXT, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
