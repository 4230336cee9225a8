"""Every block of code of the README and of the documentation runs, or says why not."""

from __future__ import annotations

import glob
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from pages import PAGES, ROOT, Block, blocks, name_of

from rlcore.train.cli import main
from rlcore.train.commands.train import train_command
from rlcore.train.config import read_config
from rlcore.train.many import run_settings

OUTPUT = {"", "text", "console", "py"}
"""Languages of what is no program: printed, drawn, or quoted from our own code (py)."""
SHELL = {"bash", "sh"}

MADE = {
    "docs/cpp.md": ["controller/policy.hpp", "controller/self_test.cpp"],
    "docs/deployment.md": ["deploy.yaml"],
    "docs/logging.md": ["runs/CartPole/ppo/*-told/checkpoints/000003.pt"],
    "docs/export.md": ["runs/*/ppo/*-arm/export/policy.onnx", "runs/*/ppo/*-arm/export/policy.pt"],
    "docs/report.md": ["runs/Pendulum/ppo/*-page/report.html", "runs/comparison.html"],
    "docs/robustness.md": [f"runs/*/*/*/robustness{end}" for end in (".json", "-heatmap.png", "-curves.png")],
    "docs/start.md": ["runs/cart.gif", "runs/file.gif", "agent.pt", "policy.onnx"],
    "docs/tutorial.md": ["runs/pointer.gif", "runs/*/ppo/*-first/export/policy.pt", "arm"],
}
"""Some of what pages say that they leave behind."""

SAID = {"docs/logging.md": r"^ended after iteration \d+$"}
"""Some of what pages say that they print."""

ELSEWHERE = {"docs/sweeps.md": "test_sweeps.py"}
"""Pages whose blocks another test runs, which looks closer at what comes of them."""


def run(command: list[str], folder: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def commands(block: Block) -> list[str]:
    """The lines of a block of shell, without comments and line breaks within them."""
    text = re.sub(r"\\\n\s*", "", block.text)
    return [line for raw in text.splitlines() if (line := re.sub(r"(^|\s+)#( .*)?$", "", raw).strip())]


def shortened(command: str) -> str:
    """The same command with less to do."""
    if command.startswith("rlcore train"):
        fewer = "3" if "--resume" in command else "2"
        command, number = re.subn(r"--num-iterations \d+", f"--num-iterations {fewer}", command)
        command += "" if number else f" --num-iterations {fewer}"
        if not re.search("--(algo|preset|resume|init-from) ", command):
            told = re.search(r"--num-envs (\d+)", command)
            command = re.sub(r" --num-envs \d+", "", command)
            command += f" --num-envs {min(16, int(told[1])) if told else 16}"
            command += "" if "num_epochs" in command or "num-epochs" in command else " --agent.num-epochs 1"
        if re.search(r"--task (CartPole|Pendulum(-HiddenVelocity)?)( |$)", command):  # the classics
            command += " --env.max-episode-length 50"
        return command if "--eval-envs" in command else f"{command} --eval-envs 4"
    if command.startswith("rlcore eval"):
        return re.sub(r"--episodes \d+", "--episodes 4", command)
    if command.startswith("rlcore play"):
        return f"{command} --steps 20"
    if command.startswith("rlcore robustness") and "--grid" not in command:
        return f"{command} --episodes 2 --magnitudes 0 1"
    return command


def carry_out(command: str, folder: Path) -> None:
    """Run a line of shell: what is rlcore's in this process, which is faster."""
    command = shortened(command)
    program, *words = shlex.split(command)
    assert program not in ("pip", "apt", "sudo"), f"a test installs nothing; say why this is not run: {command}"
    if program == "rlcore" and not re.search(r"[|&;<>$]", re.sub(r"'[^']*'", "", command)):
        found = [path for word in words for path in (sorted(glob.glob(word)) if "*" in word else []) or [word]]
        assert main(found) == 0, command
        return
    if program not in ("rlcore", "python") and not program.startswith("./") and shutil.which(program) is None:
        pytest.skip(f"{program} is not installed; what stands before it has run")
    run(["bash", "-c", re.sub(r"^rlcore\b", f"{sys.executable} -m rlcore", command)], folder)


def prepare(command: str) -> None:
    """Make what a training needs, as far as its first step, where that is a training and its env is installed."""
    if not command.startswith("rlcore train") or "--init-from" in command or "--resume" in command:
        return
    try:
        job: Any = train_command(shlex.split(command)[2:])
    except ValueError as error:
        if "pip install" not in str(error):
            raise
        return
    job.__self__.env.close()


@pytest.fixture
def own_tasks() -> Iterator[None]:
    """Tasks that a page registers with gymnasium are gone after it."""
    before = set(gymnasium.registry)
    yield
    for name in set(gymnasium.registry) - before:
        del gymnasium.registry[name]


@pytest.mark.usefixtures("own_tasks")
@pytest.mark.cpu_seconds(600)
@pytest.mark.parametrize("page", [page for page in PAGES if name_of(page) not in ELSEWHERE], ids=name_of)
def test_the_blocks_of_a_page_run_one_after_the_other(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for block in blocks(page):
        if block.title is not None:
            (tmp_path / block.title).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / block.title).write_text(block.text)
            if "__main__" in block.text:
                runpy.run_path(block.title, run_name="__main__")
        elif block.built:
            for command in commands(block):
                prepare(command)
        elif block.reason is not None or block.language in OUTPUT:
            continue
        elif block.language == "python":
            (tmp_path / "snippet.py").write_text(block.text)
            runpy.run_path("snippet.py", run_name="__main__")
        elif block.language in SHELL:
            for command in commands(block):
                carry_out(command, tmp_path)
        else:
            assert block.language == "yaml"  # as the test below has it
            (tmp_path / "block.yaml").write_text(block.text)
            read_config({"task": "CartPole", **run_settings("block.yaml")})
    for name, module in list(sys.modules.items()):  # the page's own, of which another page has others
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]
    for pattern in MADE.get(name_of(page), ()):
        made = list(tmp_path.glob(pattern))
        assert made, pattern
        assert all(path.stat().st_size for path in made), pattern
    assert not list(tmp_path.glob("*.gif"))  # version control leaves runs/ alone
    if name_of(page) in SAID:
        assert re.search(SAID[name_of(page)], capfd.readouterr().out, re.MULTILINE)


def test_pages_that_run_elsewhere_are_named_there() -> None:
    for page, test in ELSEWHERE.items():
        assert Path(page).name in (ROOT / "tests" / test).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_is_not_run_says_why(page: Path) -> None:
    """A comment before the block, ``<!-- not run: needs a GPU -->``, or ``<!-- built, not run: ... -->``."""
    for block in blocks(page):
        where = f"{name_of(page)}:{block.line}"
        known = {"python", "yaml", *SHELL, *OUTPUT}
        assert block.language in known or block.title or block.reason, f"{where}: say why {block.language} is not run"
        assert block.reason is None or (block.language not in OUTPUT and block.title is None), (
            f"{where}: nothing to run"
        )


def test_every_extra_is_told() -> None:
    setup = (ROOT / "setup.cfg").read_text()
    extras = re.findall(r"^(\w+) =", setup.partition("[options.extras_require]")[2].partition("\n[")[0], re.MULTILINE)
    assert {"mjlab", "mujoco"} <= set(extras)
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for extra in set(extras) - {"peers", "dev", "docs"}:
        assert f"pip install '.[{extra}]'" in text


def test_every_make_target_that_is_told_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    lines = [line for page in PAGES for block in blocks(page) if block.language in SHELL for line in commands(block)]
    targets = {found[1] for line in lines if (found := re.match(r"make (\w[\w-]*)", line))}
    assert {"train", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
