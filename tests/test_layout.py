"""The house: which folders there are, who may import whom, and what no file may contain."""

from __future__ import annotations

import ast
import configparser
import fnmatch
import os
import re
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "rlcore": "rlcore",
    "rlcore.kernels": "rlcore/kernels",
    "rlcore.envs": "envs",
    "rlcore.train": "train",
    "rlcore.train.commands": "train/commands",
    "rlcore.train.doctor": "train/doctor",
    "rlcore.train.importers": "train/importers",
    "rlcore.train.reports": "train/reports",
    "rlcore.train.sweep": "train/sweep",
    "rlcore.export": "export",
}
FOLDERS = {*(folder for folder in PACKAGES.values() if "/" not in folder), "benchmarks", "docs", "examples", "tests"}
PRODUCTS = {"build", "dist", "htmlcov", "runs", "sweeps", "shared", "__pycache__"}  # made or laid beside the project

# A module of the core may import its own layer and those below; algorithms never import each other.
LAYERS = (
    {"_version", "types", "agent", "env", "env_check", "config", "checkpoint", "returns", "distributions", "networks"}
    | {"capture", "arrays", "dispatch", "kernels", "recurrent", "optimizer", "losses", "replay_rows", "device_memory"}
    | {"files", "statistics", "faults", "stage", "normalization", "device", "anchors", "encoders", "names", "rollout"}
    | {"activations", "observations", "perceptrons", "signals", "safety", "gate", "action_scale", "own_network"}
    | {"risk", "user_code", "tasks", "squashed_tasks", "balance", "classifier", "family", "distributed", "ranks"}
    | {"mark", "schedules"},
    {"replay", "learn", "resume", "report", "actor_critic_config", "ppo_config", "ppo_gradient", "safety_critic"}
    | {"off_policy", "off_policy_config", "policies", "critics", "cost_critics", "exploration"}
    | {"maml_config", "adaptation"},
    {"ppo", "sac", "ddpg", "maml"},
)
CORE_NEEDS = {"torch", "numpy", "yaml", "gymnasium", "dacite"}
IMPORT_NAMES = {"PyYAML": "yaml", "pillow": "PIL"}  # of requirements that are imported under another name
SIMULATORS = {"isaaclab", "isaaclab_rl", "isaaclab_tasks", "mjlab", "mujoco", "mujoco_warp", "warp", "envpool"}
EXTRAS = {"optuna"}  # of extras, each imported where it is used
CAPTURE = ("torch.compile", "torch.cuda.graph", "torch.cuda.CUDAGraph", "torch.cuda.make_graphed_callables")

MAX_LINES = 400
LONG_FILES: dict[str, str] = {}  # and why each is still one thing

# In pieces, so that this file does not contain what it looks for.
MACHINE_PATH = re.compile(r"(?<![\w.$}])/(?:" + "|".join(("work", "root", "farm", "opt", r"home/\w+", "tmp")) + r")/\w")


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def modules() -> Iterator[tuple[str, Path]]:
    """Import name and file of every module that is installed."""
    for package, folder in PACKAGES.items():
        for path in sorted((ROOT / folder).glob("*.py")):
            yield (package if path.stem == "__init__" else f"{package}.{path.stem}"), path


def project_files() -> Iterator[Path]:
    for path in ROOT.iterdir():
        if path.is_file() and path.name not in (".coverage", ".git"):  # a file in a worktree of git
            yield path
    for folder in [".ci", *FOLDERS]:
        for base, folders, names in os.walk(ROOT / folder):  # does not follow the links
            folders[:] = [name for name in folders if name not in PRODUCTS]
            yield from (Path(base) / name for name in names)


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (
                (node.lineno, argument.value)
                for argument in node.args
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            )


def layer(module: str) -> int:
    return next((level for level, names in enumerate(LAYERS) if module in names), -1)


def why_not(importer: str, name: str) -> str | None:
    """What is wrong with ``importer`` importing the dotted ``name``; None if nothing is."""
    if name.startswith("."):
        return "is relative; write rlcore. ..."
    top, _, rest = name.partition(".")
    package = importer.removeprefix("rlcore").lstrip(".").partition(".")[0]
    outer = package in ("envs", "train", "export")
    if top != "rlcore":
        if name == "cuda.bindings" or name.startswith("cuda.bindings."):  # comes with PyTorch for CUDA 13
            return None if importer == "rlcore.capture" else "is the business of capture.py"
        if top == "triton":  # comes with PyTorch for CUDA
            return None if package == "kernels" else "is the business of rlcore.kernels"
        if top in sys.stdlib_module_names or (
            top in CORE_NEEDS if not outer else top in declared() | SIMULATORS | EXTRAS
        ):
            return None
        return "is not among what this package may need"
    target = rest.partition(".")[0]
    if target in ("envs", "train", "export"):
        if package in ("train", target) or importer == "rlcore.__main__":
            return None
        return f"is not below {importer}"
    if target == "kernels" and package != "kernels":
        return "is loaded by dispatch.py alone, where kernels run"
    if outer or importer in ("rlcore", "rlcore.__main__"):
        return None
    if target in LAYERS[2] and package in LAYERS[2] and target != package:
        return "is another algorithm"
    if layer(target) < 0:
        return "is no module of the core that a layer names"
    return None if layer(target) <= layer(package) else f"is in a layer above {importer}"


def declared() -> set[str]:
    """Import names of the requirements in setup.cfg."""
    lines = setup()["options"]["install_requires"].split()
    names = [re.split(r"[<>=\[;]", line)[0] for line in lines]
    return {IMPORT_NAMES.get(name, name) for name in names}


def import_faults(importer: str, source: str) -> list[str]:
    found = ((line, name, why_not(importer, name)) for line, name in imported(ast.parse(source)))
    return [f"{importer}:{line}: {name} {why}" for line, name, why in found if why]


def capture_faults(importer: str, source: str) -> list[str]:
    """Uses of torch.compile and CUDA graphs, which belong in capture.py."""
    tree = ast.parse(source)
    names = list(imported(tree))
    names += [(node.lineno, ast.unparse(node)) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return [f"{importer}:{line}: {name}" for line, name in names if name.startswith(CAPTURE)]


def test_top_level_folders_are_those_of_the_house() -> None:
    found = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    assert {name for name in found if name not in PRODUCTS and not name.endswith(".egg-info")} == FOLDERS


@pytest.mark.parametrize("name", ["envs", "train", "export"])
def test_links_show_the_folders_under_their_import_names(name: str) -> None:
    link = ROOT / "rlcore" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"
    assert (link / "__init__.py").samefile(ROOT / name / "__init__.py")


def test_setup_maps_every_package_to_its_folder() -> None:
    options = setup()["options"]
    assert options["packages"].split() == list(PACKAGES)
    mapping = dict(re.findall(r"(\S+) = (\S+)", options["package_dir"]))
    assert mapping == PACKAGES
    for folder in PACKAGES.values():
        inner = {path.parent for path in (ROOT / folder).rglob("__init__.py")}
        assert inner <= {ROOT / listed for listed in PACKAGES.values()}, "a new package must be listed in setup.cfg"


def test_data_files_are_shipped() -> None:
    shipped = setup()["options.package_data"]
    for package, folder in PACKAGES.items():
        patterns = shipped.get(package, "").split()
        inner = [ROOT / other for other in PACKAGES.values() if other.startswith(f"{folder}/")]
        for path in project_files():
            if any(path.is_relative_to(other) for other in inner):
                continue  # it is the inner package's to ship
            if path.is_relative_to(ROOT / folder) and path.suffix not in (".py", ".pyc"):
                inside = path.relative_to(ROOT / folder).as_posix()
                assert any(fnmatch.fnmatch(inside, pattern) for pattern in patterns), f"{path} is not in package_data"


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_go_one_way(name: str, path: Path) -> None:
    assert import_faults(name, path.read_text()) == []


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("rlcore.ppo", "import rlcore.sac"),
        ("rlcore.ppo", "from rlcore.ddpg import DDPG"),
        ("rlcore.types", "from rlcore.replay import Replay"),
        ("rlcore.rollout", "from rlcore.ppo import PPO"),
        ("rlcore.learn", "def f():\n    from rlcore.ppo import PPO"),
        ("rlcore.losses", "from rlcore.kernels.ppo_loss import ppo_loss"),
        ("rlcore.losses", "import triton"),
        ("rlcore.kernels.gae", "from rlcore.replay import Replay"),
        ("rlcore.learn", "from rlcore import PPO"),
        ("rlcore.ppo", "from rlcore import envs"),
        ("rlcore.ppo", "import importlib\nimportlib.import_module('rlcore.train.cli')"),
        ("rlcore", "from rlcore.envs import make_env"),
        ("rlcore.ppo", "import rich"),
        ("rlcore.ppo", "import unheard_of"),
        ("rlcore.ppo", "from . import types"),
        ("rlcore.ppo", "import envs"),
        ("rlcore.ppo", "from rlcore.helpers import clip"),
        ("rlcore.envs.null", "from rlcore.export import export_onnx"),
        ("rlcore.envs.null", "import rlcore.train.run"),
        ("rlcore.export.onnx", "from rlcore.envs.null import Null"),
        ("rlcore.export.onnx", "import pandas"),
        ("rlcore.train.cli", "import hydra"),
    ],
)
def test_forbidden_import_is_found(importer: str, source: str) -> None:
    assert len(import_faults(importer, source)) == 1


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("rlcore", "from rlcore.ppo import PPO"),
        ("rlcore.__main__", "from rlcore.train.cli import main"),
        ("rlcore.kernels.gae", "import triton.language as tl\nfrom rlcore.kernels.common import num_blocks"),
        ("rlcore.ppo", "import math, torch\nfrom torch.nn import functional\nfrom rlcore.rollout import Rollout"),
        ("rlcore.envs.reach", "from rlcore.envs.arm import Arm\nfrom rlcore.types import Step\nimport mjlab.envs"),
        ("rlcore.export.onnx", "import onnx\nfrom rlcore.ppo import build_policy"),
        ("rlcore.train.cli", "from PIL import Image\nimport yaml, rich.console\nfrom rlcore.envs import make_env"),
    ],
)
def test_permitted_import_is_let_through(importer: str, source: str) -> None:
    assert import_faults(importer, source) == []


def test_benchmarks_import_each_other_without_circles() -> None:
    files = {path.stem: path for path in (ROOT / "benchmarks").glob("*.py")}
    needs = {
        name: {target.partition(".")[0] for _, target in imported(ast.parse(path.read_text()))} & set(files)
        for name, path in files.items()
    }
    assert "work" in needs["timing"]
    TopologicalSorter(needs).prepare()  # raises where there is one


def test_only_capture_names_compile_and_graphs() -> None:
    for name, path in modules():
        if name != "rlcore.capture":
            assert capture_faults(name, path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch\nf = torch.compile(f)",
        "@torch.compile(mode='default')\ndef f(): ...",
        "with torch.cuda.graph(g): ...",
        "g = torch.cuda.CUDAGraph()",
        "from torch import compile",
        "from torch.cuda import graph as g",
        "from torch.cuda.graphs import make_graphed_callables",
    ],
)
def test_compile_or_graph_outside_capture_is_found(source: str) -> None:
    assert capture_faults("rlcore.ppo", source)
    assert not capture_faults("rlcore.ppo", "import re\nre.compile('x')\ntorch.cuda.synchronize()")


def test_files_are_short() -> None:
    folders = {ROOT / folder for folder in (*PACKAGES.values(), "benchmarks", "examples")}
    counts = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines())
        for path in project_files()
        if path.suffix == ".py" and path.parent in folders
    }
    too_long = {name for name, count in counts.items() if count > MAX_LINES}
    assert too_long == set(LONG_FILES), f"over {MAX_LINES} lines: is it two things?"


def test_no_file_contains_a_path_of_some_machine() -> None:
    for path in project_files():
        if path.suffix in (".pyc", ".png", ".gif", ".mp4", ".onnx", ".pt", ".pth", ".zip", ".pkl"):
            continue
        found = [line for line in path.read_text().splitlines() if MACHINE_PATH.search(line)]
        assert not found, f"{path}: {found}"


@pytest.mark.parametrize("folder", ["work", "root", "opt", "tmp"])
def test_machine_path_is_found(folder: str) -> None:
    assert MACHINE_PATH.search(f"see '/{folder}/x'")
    assert not MACHINE_PATH.search(f"docs/{folder}/x and https://host/{folder}/x and ${{HOME}}/{folder}/x")
