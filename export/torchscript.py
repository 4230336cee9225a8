"""Write a policy as TorchScript, for controllers that load ``policy.pt``, as Isaac Lab's scripts write it.

    policy = torch.jit.load("policy.pt")
    actions = policy(obs)  # obs [1, O]
    policy.reset()         # before a new episode

The recurrent state is kept inside, in the buffers ``hidden_state`` and ``cell_state``; ``risk`` is that of the latest
call, where the policy has a gate, and ``task_probability``, where it infers its task. What ``metadata.py`` tells of a
file stands in an extra file, ``metadata.json``.
"""

from __future__ import annotations

import io
import json
import keyword
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from rlcore.agent import Policy
from rlcore.env import EnvSpec, VecEnv
from rlcore.export.golden import golden_trace
from rlcore.export.metadata import EXTRA, ExportError, encode_metadata, read_metadata
from rlcore.export.observations import group_shapes
from rlcore.export.parity import verify
from rlcore.export.prepared import STATE_NAMES, ExportReport, Prepared, prepare
from rlcore.export.runner import OnnxPolicy, decode_metadata
from rlcore.export.tidy import BATCH
from rlcore.files import draft

BUFFERS = {"h": "hidden_state", "c": "cell_state"}


def export_torchscript(
    policy: Policy,
    spec: EnvSpec,
    path: str | os.PathLike[str],
    *,
    recording: Mapping[str, Tensor] | None,
    env: VecEnv | None = None,
    dynamic_batch: bool = False,
    gate: bool = True,
    tolerance: float = 1e-5,
    extra_metadata: Mapping[str, Any] | None = None,
) -> ExportReport:
    """Write a policy to one TorchScript file and check it against the policy, as ``export_onnx`` does.

    ``forward`` takes ``obs [1, O]`` and then each other group in the order of ``image_groups`` and ``action_mask``, and
    returns the actions. The file runs on the device that it is loaded to. With ``dynamic_batch`` it takes N rows, and
    begins with a state of zeros where there are others than before.

    Raises:
        ExportError: as ``export_onnx``.
    """
    batch = 2 if dynamic_batch else 1
    ready = prepare(policy, spec, path, recording, env, batch, gate, "operator", extra_metadata)
    path, facts = ready.path, ready.facts
    with draft(path) as file:
        with _quiet(), torch.no_grad():
            module = _scripted(ready, dynamic_batch)
        facts |= {"format": "torchscript", **_described(ready, dynamic_batch)}
        _save(module, facts, file)
        runner = TorchScriptPolicy(file)
        parity = verify(runner, ready.policy, ready.recording, tolerance=tolerance)
        if not parity.passed:
            raise ExportError(f"'{path}' was not written: {parity}{parity.remedy}")
        facts |= parity.metadata()
        trace = golden_trace(runner, ready.recording, group_shapes(policy))
        facts |= {} if trace is None else {"golden_trace": trace}
        _save(module, facts, file)
        size_bytes = file.stat().st_size
    told = decode_metadata(encode_metadata(facts))
    return ExportReport(path=path, parity=parity, metadata=told, size_bytes=size_bytes, notes=tuple(ready.notes))


def _scripted(ready: Prepared, dynamic_batch: bool) -> Any:
    """The traced policy inside a module that remembers its state."""
    outputs = len(ready.outputs) + len(ready.state)
    flat = _Single(ready.module) if outputs == 1 else ready.module
    traced: Any = torch.jit.trace(flat, ready.example, check_trace=False)  # type: ignore[no-untyped-call]
    module = nn.Module()
    module.policy = traced
    states = [BUFFERS[name] for name in STATE_NAMES[: len(ready.state)]]
    for name, value in zip(states, ready.state, strict=True):
        module.register_buffer(name, torch.zeros_like(value[:, :1]))
    with torch.no_grad():
        given = ready.module(*ready.example)
    for name, value in zip(ready.outputs[1:], given[1:], strict=False):
        module.register_buffer(name, torch.zeros_like(value[:1]))
    script: Any = torch.jit.script(module)
    arguments = [name if _is_argument(name) else f"x{i}" for i, name in enumerate(ready.groups)]
    lines = [f"def forward(self, {', '.join(f'{name}: Tensor' for name in arguments)}) -> Tensor:"]
    if dynamic_batch:
        for name in states:
            rows = f"{arguments[0]}.size(0)"
            new = f"torch.zeros([self.{name}.size(0), {rows}, self.{name}.size(2)], device=self.{name}.device)"
            lines += [f"    if self.{name}.size(1) != {rows}:", f"        self.{name} = {new}"]
    read = ", ".join([*arguments, *(f"self.{name}" for name in states)])
    found = ["actions", *(f"self.{name}" for name in (*ready.outputs[1:], *states))]
    lines += [f"    {', '.join(found)} = self.policy({read})", "    return actions", ""]
    script.define("\n".join(lines))
    clear = [f"    self.{name} = torch.zeros_like(self.{name})" for name in states]
    script.define("\n".join(["def reset(self) -> None:", *(clear or ["    pass"]), ""]))
    return script


def _is_argument(name: str) -> bool:
    """Whether TorchScript takes an argument of that name, as far as Python's words tell."""
    return name.isidentifier() and not keyword.iskeyword(name) and name != "self"


class _Single(nn.Module):
    """A module's only output by itself."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensor:
        (output,) = self.module(*inputs)
        return output  # type: ignore[no-any-return]


def _described(ready: Prepared, dynamic_batch: bool) -> dict[str, Any]:
    """Shapes and types of what the file reads, gives and remembers."""
    with torch.no_grad():
        given = dict(zip(ready.outputs, ready.module(*ready.example), strict=False))
    read = dict(zip(ready.groups, ready.example, strict=False))
    first = BATCH if dynamic_batch else 1
    facts: dict[str, Any] = {
        kind: {name: [first, *value.shape[1:]] for name, value in values.items()}
        for kind, values in (("inputs", read), ("outputs", given))
    }
    facts["types"] = {name: str(value.dtype).removeprefix("torch.") for name, value in {**read, **given}.items()}
    if ready.state:
        state = zip(STATE_NAMES, ready.state, strict=False)
        facts["state"] = {BUFFERS[name]: [len(value), first, value.shape[2]] for name, value in state}
    return facts


def _save(module: Any, facts: Mapping[str, Any], path: Path) -> None:
    content = io.BytesIO()  # torch itself ends the process where it finds a disk full
    with _quiet():
        torch.jit.save(module, content, _extra_files={EXTRA: json.dumps(encode_metadata(facts))})
    with open(path, "wb") as file:
        file.write(content.getbuffer())
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence that TorchScript is deprecated, which who asks for such a file knows, and what a trace says of itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*torch\.jit\..* (is|are) (deprecated|not supported)")
        warnings.filterwarnings("ignore", category=TracerWarning, module=r"(rlcore|torch)\.")
        yield


class _Value(NamedTuple):
    """An input or output, as ONNX Runtime tells of it."""

    name: str
    shape: list[int | str]
    type: str


class _Session:
    """A TorchScript file that is asked as ONNX Runtime is."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        facts = read_metadata(path)
        self.custom_metadata_map = encode_metadata(facts)
        types = {"float32": "tensor(float)", "uint8": "tensor(uint8)", "int64": "tensor(int64)"}
        try:
            state = facts.get("state", {})
            self.states = [name for name in STATE_NAMES if BUFFERS[name] in state]
            values = {
                kind: [_Value(name, shape, types[facts["types"][name]]) for name, shape in facts[kind].items()]
                for kind in ("inputs", "outputs")
            }
            with _quiet():
                found: Any = torch.jit.load(os.fspath(path), map_location="cpu")  # type: ignore[no-untyped-call]
            self.module = found.eval()
        except Exception as error:  # whatever a damaged archive makes torch raise
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"'{os.fspath(path)}' is no TorchScript file of rlcore or damaged: {reason}") from error
        self.names = [value.name for value in values["inputs"]]
        for kind, end in (("inputs", "in"), ("outputs", "out")):
            values[kind] += [_Value(f"{name}_{end}", state[BUFFERS[name]], types["float32"]) for name in self.states]
        self.values = values

    def get_inputs(self) -> list[_Value]:
        return self.values["inputs"]

    def get_outputs(self) -> list[_Value]:
        return self.values["outputs"]

    def get_modelmeta(self) -> _Session:
        return self

    @torch.no_grad()
    def run(self, outputs: list[str], feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        for name in self.states:
            setattr(self.module, BUFFERS[name], torch.tensor(feed[f"{name}_in"]))
        actions = self.module(*(torch.tensor(feed[name]) for name in self.names))
        found = {"actions": actions} | {f"{name}_out": getattr(self.module, BUFFERS[name]) for name in self.states}
        found |= {name: getattr(self.module, name) for name in ("risk", "task_probability") if name in outputs}
        return [found[name].numpy() for name in outputs]


class TorchScriptPolicy(OnnxPolicy):
    """A TorchScript file that ``export_torchscript`` wrote as a function, as ``OnnxPolicy`` is of an ONNX file."""

    def _open(self, path: str | os.PathLike[str], num_threads: int) -> Any:
        return _Session(path)

    def _run_rows(self, feed: dict[str, NDArray[Any]], num_rows: int) -> list[NDArray[Any]]:
        """One row after the other; the second axis of states, and the first of all else."""
        axes = {name: int(name.endswith(("_in", "_out"))) for name in (*feed, *self._outputs)}
        rows = [
            self._session.run(self._outputs, {name: np.take(x, [i], axes[name]) for name, x in feed.items()})
            for i in range(num_rows)
        ]
        return [
            np.concatenate(found, axes[name])
            for name, found in zip(self._outputs, zip(*rows, strict=True), strict=True)
        ]
