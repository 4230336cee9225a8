"""What is released: the wheel and the source distribution train where nothing of the checkout is in reach."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from rlcore import __version__

ROOT = Path(__file__).parent.parent
SOURCES = (
    *(
        "rlcore",
        "envs",
        "train",
        "export",
        "docs",
        "examples",
        "setup.cfg",
        "pyproject.toml",
        "MANIFEST.in",
        "README.md",
    ),
    *("LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md"),
)


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both, the wheel built from the source distribution: what lies in the checkout's build/ must not get
    in, so that a copy is built from."""
    copy = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, copy / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(source, copy / name)
    out = tmp_path_factory.mktemp("dist")
    said = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, cwd=copy)
    (out / "build.txt").write_text(said)
    return out


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (built,) = dist.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def sdist(dist: Path) -> Path:
    (built,) = dist.glob("*.tar.gz")
    return built


def installed(folder: Path, package: Path, *options: str) -> Path:
    """A new virtual environment with a package, and the requirements lent by the environment that runs this test."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    # A folder named in a .pth file is searched last, and .pth files inside it, such as that of an editable
    # install of rlcore, are not read.
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = ("install", "--no-deps", "--no-index", "--ignore-installed", *options, package)
    run(sys.executable, "-m", "pip", "--python", python, *install, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def venv(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory.mktemp("wheel") / "venv", wheel)


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


def test_building_warns_of_nothing(dist: Path) -> None:
    said = (dist / "build.txt").read_text().splitlines()
    # What the environment asks for by PYTHONDONTWRITEBYTECODE is no fault.
    faults = [line for line in said if re.search(r"\bwarning|deprecat|!!", line, re.IGNORECASE)]
    assert [line for line in faults if "byte-compiling is disabled" not in line] == []


def test_source_distribution_holds_each_file_once(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert not [member.name for member in members if member.issym() or member.islnk()]
    names = {member.name.partition("/")[2] for member in members}
    for name in (
        "CHANGELOG.md",
        "CITATION.cff",
        "LICENSE",
        "README.md",
        "docs/safety.md",
        "export/cpp/rlcore_policy.hpp",
    ):
        assert name in names
    # What the links show is there under its own name.
    assert not [name for name in names if re.match(r"rlcore/(envs|train|export)(/|$)|tests/", name)]
    for folder in ("rlcore", "envs", "train", "export"):
        files = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).glob("**/*.py")}
        assert {name for name in files if not re.match(r"rlcore/(envs|train|export)/", name)} <= names


@pytest.mark.parametrize("editable", [False, True])
def test_source_distribution_installs_and_trains(editable: bool, sdist: Path, tmp_path: Path, elsewhere: Path) -> None:
    """Unpacked, it has no links; an editable install finds the packages without them."""
    package, options = sdist, ["--no-build-isolation"]
    if editable:
        with tarfile.open(sdist) as archive:
            archive.extractall(tmp_path / "unpacked", filter="data")
        (package,) = (tmp_path / "unpacked").iterdir()
        options += ["--editable"]
    (tmp_path / "new").mkdir()
    python = installed(tmp_path / "new" / "venv", package, *options) / "bin" / "python"
    found = run(python, "-c", "import rlcore.train.sweep as found; print(found.__file__)", cwd=elsewhere)
    assert Path(found.strip()).is_relative_to(tmp_path)
    assert run(python, "-m", "rlcore", "--version", cwd=elsewhere) == f"rlcore {__version__}\n"
    arguments = ("--num-iterations", "1", "--num-envs", "8", "--device", "cpu")
    run(python, "-m", "rlcore", "train", "--task", "CartPole", *arguments, cwd=elsewhere)
    assert list(elsewhere.glob("runs/CartPole/**/export/policy.onnx"))


def test_one_version_is_told_everywhere() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    heads = re.findall(
        r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert heads[0] == (__version__, cited["date-released"])
    assert cited["version"] == __version__
    assert cited["license"] == "BSD-3-Clause"
