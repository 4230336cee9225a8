"""What all tests share."""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlcore import dispatch
from rlcore.replay import Home
from rlcore.types import Step

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None


ROOT = Path(__file__).parent.parent

CPU_SECONDS = 300


def pytest_configure() -> None:
    # One thread: two workers share two cores, and sums come out the same on every machine.
    torch.set_num_threads(1)


@contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError once this process has spent that much CPU time, all threads together."""

    def over(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"over {seconds:g} s of CPU time")

    before = signal.signal(signal.SIGPROF, over)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    mark = item.get_closest_marker("cpu_seconds")
    with cpu_limit(mark.args[0] if mark else CPU_SECONDS):
        return (yield)


def pytest_collection_finish() -> None:
    # Torch and thousands of tests stay until the end; the collector need not look through them again and again.
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """A test that draws from the global generator draws the same whichever tests ran before it."""
    torch.manual_seed(0)
    yield


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the robots that come with Isaac Lab 3's Newton, to be named by ``ISAACSIM_ASSET_ROOT``."""
    folder = tmp_path_factory.mktemp("assets")
    subprocess.run([sys.executable, ROOT / "benchmarks" / "isaaclab_robots.py", folder], check=True)
    return folder


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device in turn."""
    return torch.device(request.param)


class Operators(TorchDispatchMode):
    """What PyTorch is asked to do meanwhile: names, and numbers in the largest tensor that is given or returned.

    On a CPU each costs some microseconds, however small its tensors are; unlike time their number is always the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        self.seen.append((func.name(), max((tensor.numel() for tensor in tensors), default=0)))
        return result


class Place(NamedTuple):
    """Where a replay memory is."""

    device: torch.device
    home: Home = "env"


def _interpreted(monkeypatch: pytest.MonkeyPatch) -> Place:
    if not INTERPRETED:
        pytest.skip("needs TRITON_INTERPRET=1")
    monkeypatch.setattr(dispatch, "_interpreted", True)
    return Place(torch.device("cpu"))


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def kernel_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Where kernels run: a GPU, or without one Triton's interpreter on the CPU."""
    return torch.device("cuda") if request.param == "cuda" else _interpreted(monkeypatch).device


KERNEL_PLACES = ["interpreter", *(pytest.param(f"cuda {home}", marks=pytest.mark.gpu) for home in ("env", "host"))]


@pytest.fixture(params=KERNEL_PLACES)
def kernel_place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Where kernels write and read a replay memory: on a GPU, or without one in Triton's interpreter."""
    device, _, home = request.param.partition(" ")
    return Place(torch.device(device), home) if home else _interpreted(monkeypatch)


@pytest.fixture(params=["cpu", *KERNEL_PLACES])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Every place of a replay memory."""
    device, _, home = request.param.partition(" ")
    if device == "interpreter":
        return _interpreted(monkeypatch)
    return Place(torch.device(device), home or "env")


def check_that_nothing_waits(learner: Any, obs: Any, iterations: int) -> None:
    """Let SAC or DDPG go on from ``obs``; a read of the device by the host is an error."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(iterations):
            action, _ = learner.act(obs, ())
            step = learner.env.step(action)
            learner.record(obs, action, (), step)
            learner.update()
            obs = step.obs
    finally:
        torch.cuda.set_sync_debug_mode("default")


def leaves(value: Any) -> list[Any]:
    """What is in nested dicts, lists and tuples."""
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def error(got: Tensor, expected: Tensor) -> float:
    """Relative Frobenius error; infinite for NaN."""
    assert got.shape == expected.shape
    value = float((got.double().cpu() - expected.double().cpu()).norm() / expected.double().norm().clamp(min=1e-30))
    return value if value == value else float("inf")


def tensors_of(step: Step) -> Iterator[tuple[str, Tensor]]:
    yield "reward", step.reward
    yield "terminated", step.terminated
    yield "truncated", step.truncated
    for name, groups in (("obs", step.obs), ("final_obs", step.final_obs or {}), ("log", step.log)):
        for key, value in groups.items():
            if isinstance(value, Tensor):
                yield f"{name}/{key}", value


def assert_same(a: list[Step], b: list[Step]) -> None:
    for t, (one, other) in enumerate(zip(a, b, strict=True)):
        for (name, value), (_, want) in zip(tensors_of(one), tensors_of(other), strict=True):
            assert torch.equal(value.nan_to_num(), want.nan_to_num()), f"{name} at step {t}"
