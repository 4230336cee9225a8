"""Which text runs: a plain function, or the kernel that is registered for it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Operators
from torch import Tensor

import rlcore
from rlcore import dispatch, kernels_off
from rlcore.dispatch import accelerated, kernels_run, plain
from rlcore.distributions import sample_tanh_gaussian
from rlcore.losses import actor_loss, td_loss
from rlcore.returns import gae

ROOT = Path(rlcore.__file__).parent
CPU = torch.device("cpu")


@pytest.fixture
def doubled(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function whose kernel, which says so, takes what is not negative; kernels run on the CPU."""
    monkeypatch.setattr(dispatch, "_interpreted", True)
    monkeypatch.setattr(dispatch, "_load", lambda name: lambda x, by=2: (name, by))

    @accelerated("module:name", when=lambda x, by=2: bool(x >= 0))
    def fn(x: Tensor, by: int = 2) -> Any:
        """Say which."""
        return "plain", by

    return fn


def test_the_kernel_runs_where_it_can_and_else_the_function(doubled: Any) -> None:
    assert doubled(torch.tensor(1.0)) == ("module:name", 2)
    assert doubled(torch.tensor(1.0), by=3) == ("module:name", 3)
    assert doubled(torch.tensor(-1.0), 3) == ("plain", 3)
    assert plain(doubled)(torch.tensor(1.0)) == ("plain", 2)
    assert (doubled.__name__, doubled.__doc__) == ("fn", "Say which.")


def test_the_switch_is_on_for_its_block_alone(doubled: Any) -> None:
    with kernels_off():
        with kernels_off():
            assert not kernels_run(CPU)
        assert doubled(torch.tensor(1.0)) == ("plain", 2)
    assert doubled(torch.tensor(1.0)) == ("module:name", 2)


def test_no_kernel_runs_where_torch_compile_traces(doubled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "compiling", lambda: True)
    assert doubled(torch.tensor(1.0)) == ("plain", 2)


@pytest.mark.parametrize(("value", "wanted"), [("0", False), ("1", True)])
def test_the_environment_switches_kernels_off(value: str, wanted: bool) -> None:
    code = "import sys; from rlcore import dispatch; sys.exit(0 if dispatch._wanted else 7)"
    env = os.environ | {"RLCORE_KERNELS": value}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == (0 if wanted else 7)


def test_choosing_asks_nothing_of_pytorch() -> None:
    value, done = torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool)
    counts = []
    for fn in (gae, plain(gae)):
        operators = Operators()
        with operators:
            fn(value, value, value, done, 0.9, 0.9)
        counts.append(len(operators.seen))
    assert counts[0] == counts[1] > 0


def registered() -> list[tuple[str, str]]:
    """File and kernel of every registration, in the core and in envs."""
    found = []
    for path in (*ROOT.glob("*.py"), *(ROOT / "envs").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "accelerated":
                found.append((path.name, ast.literal_eval(node.args[0])))
    return found


def test_every_registered_kernel_is_there_and_every_module_of_kernels_is_used() -> None:
    names = {name for _, name in registered()}
    for name in names:
        module, _, function = name.partition(":")
        tree = ast.parse((ROOT / "kernels" / f"{module}.py").read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name
    helpers = {"__init__", "common", "layers"}
    assert {path.stem for path in (ROOT / "kernels").glob("*.py")} - helpers == {n.split(":")[0] for n in names}


def losses(leaf: Tensor) -> list[Tensor]:
    """Some functions whose backward passes launch kernels, of ``[4, 6]``."""
    ones = leaf.new_ones(6)
    log_prob = sample_tanh_gaussian(leaf.t().contiguous(), (-4.0, 1.0), ones[:2], 0 * ones[:2])[1]
    first = td_loss(leaf, leaf, ones, ones, ones, None, "min")[0]
    return [first, actor_loss(leaf, ones, "min", ones, ones[0])[0], log_prob.sum()]


@pytest.mark.parametrize("number", range(3))
def test_a_backward_pass_of_kernels_refuses_a_second_differentiation(number: int, kernel_device: torch.device) -> None:
    leaf = torch.randn(4, 6, device=kernel_device, requires_grad=True)
    loss = losses(leaf)[number]
    assert torch.autograd.grad(loss, leaf, retain_graph=True)[0].abs().sum() > 0
    with pytest.raises(RuntimeError, match=r"create_graph=True is not possible.* rlcore.kernels_off\(\)"):
        torch.autograd.grad(loss, leaf, create_graph=True)
    with kernels_off():
        (slope,) = torch.autograd.grad(losses(leaf)[number], leaf, create_graph=True)
    assert slope.requires_grad or number == 1  # which is linear in the values


def test_every_backward_pass_of_a_kernel_refuses_one() -> None:
    for path in (ROOT / "kernels").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name == "backward":
                assert "first_order" in [ast.unparse(decorator) for decorator in node.decorator_list], path.name
