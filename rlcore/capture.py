"""Captured execution: the one file that knows of CUDA graphs and ``torch.compile``.

A PPO iteration is thousands of small kernels. Launched one by one from Python they leave the GPU idle most of the
time; recorded once as a CUDA graph they are launched together. A function can be captured if it takes and returns
tensors of fixed shapes, reads no tensor on the host, and keeps its state in tensors that are changed in place.
"""

from __future__ import annotations

import functools
import gc
import importlib
import logging
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor

from rlcore.types import Mode

F = TypeVar("F", bound=Callable[..., Any])
A = TypeVar("A")
B = TypeVar("B")

_log = logging.getLogger(__name__)

_nested = 0  # depth of captured functions that are warming up

_SIDE_BY_SIDE = 2**15  # samples

_WARMUP = 2  # calls; libraries create handles and autotune in the first, the second runs as later ones will


def compiled(fn: F, mode: Mode, device: torch.device) -> F:
    """Fuse a pure tensor function with ``torch.compile``, if the mode asks for it and the device is a GPU."""
    if device.type != "cuda" or "compile" not in mode:
        return fn
    return torch.compile(fn, dynamic=False)  # type: ignore[return-value]


def compiling() -> bool:
    """Tell whether ``torch.compile`` traces the code that asks; it cannot trace kernels launched from there."""
    return torch.compiler.is_compiling()


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Choose how CUDA multiplies float32 matrices: ``fp32`` exactly, else with TF32 inputs (10 bits of mantissa)."""
    before, wanted = _allows_tf32(), precision != "fp32"
    if before != wanted:
        torch.backends.cuda.matmul.allow_tf32 = wanted
    try:
        yield
    finally:
        if before != wanted:
            torch.backends.cuda.matmul.allow_tf32 = before


# PyTorch since 2.9 has two switches for this. The older one sets both, but cannot be read any more once somebody, such
# as mjlab's training script, has set the newer one.
_TWO_SWITCHES = hasattr(torch.backends.cuda.matmul, "fp32_precision")


def _allows_tf32() -> bool:
    matmul = torch.backends.cuda.matmul
    return bool(matmul.fp32_precision == "tf32" if _TWO_SWITCHES else matmul.allow_tf32)


def side_by_side(first: Callable[[], A], second: Callable[[], B], samples: int) -> tuple[A, B]:
    """Run two functions that do not depend on each other; in a recording they share the GPU, gradients included.

    With many samples either fills the GPU alone, and they run in turn: memory that two streams share is not used again
    within a recording.
    """
    if samples > _SIDE_BY_SIDE or not torch.cuda.is_available() or not torch.cuda.is_current_stream_capturing():
        return first(), second()
    here = torch.cuda.current_stream()
    aside = _stream("aside", here.device.index)
    _branch(aside, here)
    with torch.cuda.stream(aside):
        other = second()
    one = first()
    here.wait_stream(aside)
    return one, other


_recorded: weakref.WeakSet[Captured] = weakref.WeakSet()


class Captured:
    """A function that is recorded as a CUDA graph in its third call and replayed from then on.

    The first calls run as written, on a side stream. They are warm-up and real work at once, so warming up changes
    nothing: parameters, optimizer and random numbers are those of a run without graphs.

    What a call returns is overwritten by the next one. A call inside another capture becomes a part of that one.

    A method's object is not kept alive: an agent that keeps its captured methods would keep itself, and its graphs'
    memory, until Python searches for cycles.

    Args:
        fn: takes and returns tensors, or dicts and tuples of them.
        mode: how to run.
        device: where the tensors live.
        generators: random generators that ``fn`` draws from, beside the device's default one.
        before: runs on the host before each replay, such as to see to what the graph reads.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        mode: Mode,
        device: torch.device,
        generators: Iterable[torch.Generator] = (),
        before: Callable[[], None] | None = None,
    ) -> None:
        self._fn = weakref.WeakMethod(fn) if isinstance(fn, MethodType) else lambda: fn
        self.name = getattr(fn, "__qualname__", repr(fn))
        self.enabled = device.type == "cuda" and "graph" in mode
        self.device = device
        self.generators = list(generators)
        self.before = before
        self.graph: torch.cuda.CUDAGraph | None = None
        self.calls = 0
        self.inputs: list[Tensor] = []
        self.outputs: Any = None

    @property
    def fn(self) -> Callable[..., Any]:
        """The function as written."""
        fn = self._fn()
        assert fn is not None, f"{self.name} is called by what has outlived its object"
        return fn

    def __call__(self, *args: Any) -> Any:
        """Run the function.

        Raises:
            ValueError: a tensor differs in shape, type or device from that of the recording.
        """
        if not self.enabled or _nested or torch.cuda.is_current_stream_capturing():
            return self.fn(*args)
        if self.graph is None:
            if self.calls < _WARMUP:
                self.calls += 1
                return self._warm_up(args)
            return self._record(args)
        if self.before is not None:
            self.before()
        given = list(_tensors(args))
        self._check(given)
        if given:
            torch._foreach_copy_(self.inputs, given)
        self.graph.replay()
        return self.outputs

    def _warm_up(self, args: tuple[Any, ...]) -> Any:
        # Autograd remembers the stream that it first ran on, and recording is not allowed on the default one.
        global _nested
        side = _stream("side", self._index())
        side.wait_stream(torch.cuda.current_stream(self.device))
        _nested += 1
        try:
            with torch.cuda.stream(side):
                result = self.fn(*args)
        finally:
            _nested -= 1
        torch.cuda.current_stream(self.device).wait_stream(side)
        return result

    def _record(self, args: tuple[Any, ...]) -> Any:
        static = tree_map(args, lambda tensor: tensor.detach().clone())
        graph, side = torch.cuda.CUDAGraph(), _stream("side", self._index())
        try:
            with self._recording(graph, side):
                outputs = self.fn(*static)
        except RuntimeError as error:
            self.enabled = False
            # One that breaks off leaves generators waiting for its end, and with them all graphs that draw from these.
            with self._recording(torch.cuda.CUDAGraph(), side):
                torch.zeros((), device=self.device)
            reason = str(error).splitlines()[0]
            _log.warning("%s cannot run as a CUDA graph and runs slower, as written: %s", self.name, reason)
            return self.fn(*args)
        self.graph, self.outputs, self.inputs = graph, outputs, list(_tensors(static))
        _recorded.add(self)
        # Recording computes nothing but what PyTorch before 2.13 begins it with: it resets the place in the sequence of
        # random numbers, one for all graphs, on the stream that is recorded. No replay must have set its own before.
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph.replay()
        return self.outputs

    def forget(self) -> None:
        """Drop the recording; the next call records anew."""
        self.graph, self.outputs, self.inputs = None, None, []

    def _index(self) -> int:
        return torch.cuda.current_device() if self.device.index is None else self.device.index

    @contextmanager
    def _recording(self, graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> Iterator[None]:
        for generator in self.generators:
            graph.register_generator_state(generator)
        # A recording that breaks off would leave its own stream in the place of the present one.
        present = torch.cuda.stream(torch.cuda.current_stream(self.device))
        with present, _no_collection(), torch.cuda.graph(graph, stream=stream):
            yield

    def _check(self, given: list[Tensor]) -> None:
        if len(given) != len(self.inputs):
            raise ValueError(f"{self.name} was recorded with {len(self.inputs)} tensors and is given {len(given)}")
        for number, (new, old) in enumerate(zip(given, self.inputs, strict=True)):
            if new.shape != old.shape or new.dtype != old.dtype or new.device != old.device:
                raise ValueError(
                    f"{self.name} was recorded with tensor {number} as {old.dtype} {tuple(old.shape)} on {old.device} "
                    f"and is given {new.dtype} {tuple(new.shape)} on {new.device}; "
                    "shapes cannot change during a run: build the agent anew for another number of envs"
                )


def forget_recordings() -> None:
    """Drop all recordings of this process, which NCCL needs before it ends: it waits for those of its sums."""
    for captured in _recorded:
        captured.forget()


def _branch(aside: torch.cuda.Stream, here: torch.cuda.Stream) -> None:
    """Let a stream go on from where the present one stands, in the graph that this one is being recorded into.

    Waiting alone would keep the edge from what that stream recorded before, too. That has been waited for already, and
    two edges in place of one cost 25 us at every branch (H200, a PPO update of 20 minibatches: 15.7 in place of 15.2
    ms). PyTorch itself has no call that leaves it out.
    """
    driver = _driver()
    if driver is not None:
        recording = driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_ACTIVE
        if driver.cuStreamGetCaptureInfo(aside.cuda_stream)[1] == recording:
            nodes = driver.cuStreamGetCaptureInfo(here.cuda_stream)[4]
            kind = driver.CUstreamUpdateCaptureDependencies_flags.CU_STREAM_SET_CAPTURE_DEPENDENCIES
            error, *_ = driver.cuStreamUpdateCaptureDependencies(aside.cuda_stream, nodes, None, len(nodes), int(kind))
            if error == driver.CUresult.CUDA_SUCCESS:
                return
    aside.wait_stream(here)


@functools.cache
def _driver() -> Any:
    """NVIDIA's bindings, which PyTorch brings for CUDA 13; None without. Those for CUDA 12 take other arguments."""
    try:
        bindings = importlib.import_module("cuda.bindings")
        return importlib.import_module("cuda.bindings.driver") if bindings.__version__ >= "13" else None
    except ImportError:
        return None


@functools.cache
def _stream(name: str, index: int) -> torch.cuda.Stream:
    """A GPU's stream of that name, always the same one: memory freed on a stream is used again on that stream alone.

    On ``side`` functions warm up and are recorded, on ``aside`` runs what runs beside that.
    """
    return torch.cuda.Stream(index)  # type: ignore[no-untyped-call]


@contextmanager
def _no_collection() -> Iterator[None]:
    """Put off Python's search for unreachable objects: what they free of the GPU breaks a recording off."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for key in sorted(value):  # dicts with the same keys in another order mean the same
            yield from _tensors(value[key])
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def tree_map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Dicts, tuples and lists of tensors, with each tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: tree_map(item, change) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [tree_map(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
