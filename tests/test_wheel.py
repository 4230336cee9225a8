"""The wheel, installed where nothing of the checkout is in reach, trains."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("rlcore", "envs", "train", "export", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a source distribution, in a copy: what lies in the checkout's build/ must not get in."""
    copy = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, copy / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(source, copy / name)
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, cwd=copy)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def venv(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment with the wheel, and the requirements lent by the environment that runs this test."""
    folder = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    install = ("install", "--no-deps", "--no-index", wheel)
    run(sys.executable, "-m", "pip", "--python", python, *install, cwd=folder)
    # A folder named in a .pth file is searched last, and .pth files inside it, such as that of an editable
    # install of rlcore, are not read.
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A user's folder that has packages called envs, train and export itself."""
    for name in ("envs", "train", "export"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('this is not rlcore')\n")
    return tmp_path


def test_wheel_brings_rlcore_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top.partition("-")[0] for top in tops} == {"rlcore"}
    assert len(tops) == 2, tops  # the package and its dist-info


def test_wheel_holds_every_source_and_data_file(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, place in {"rlcore": "rlcore", "envs": "rlcore/envs", "train": "rlcore/train"}.items():
        files = {path.relative_to(ROOT / folder).as_posix() for path in (ROOT / folder).glob("**/*.py")}
        assert {f"{place}/{name}" for name in files} <= names, "is its package listed in setup.cfg?"
    assert "rlcore/py.typed" in names
    configs = {f"rlcore/{path.relative_to(ROOT)}" for path in (ROOT / "train" / "configs").rglob("*.yaml")}
    sources = {f"rlcore/{path.relative_to(ROOT)}" for path in (ROOT / "export" / "cpp").rglob("*.*pp")}
    assert configs
    assert configs <= names
    assert "rlcore/export/cpp/rlcore_policy.hpp" in sources
    assert sources | {f"rlcore/export/cpp/examples/{name}" for name in ("Makefile", "CMakeLists.txt")} <= names


def test_imports_come_from_the_wheel(venv: Path, elsewhere: Path) -> None:
    code = (
        "import rlcore, rlcore.envs, rlcore.train, rlcore.export\n"
        "for module in rlcore, rlcore.envs, rlcore.train, rlcore.export: print(module.__file__)"
    )
    files = run(venv / "bin" / "python", "-c", code, cwd=elsewhere).split()
    assert len(files) == 4
    assert all(Path(file).is_relative_to(venv) for file in files), files


def test_installed_command_trains(venv: Path, elsewhere: Path) -> None:
    arguments = ("--num-iterations", "2", "--num-envs", "8", "--device", "cpu")
    run(venv / "bin" / "rlcore", "train", "--task", "CartPole", *arguments, cwd=elsewhere)
    assert list(elsewhere.glob("runs/CartPole/**/checkpoints/*"))
