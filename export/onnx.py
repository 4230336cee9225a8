"""Write a policy as one self-contained ONNX file, and refuse to if the file would not do what the policy does."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlcore.agent import Policy
from rlcore.env import EnvSpec, VecEnv
from rlcore.export.cells import Cells
from rlcore.export.golden import golden_trace
from rlcore.export.metadata import ExportError, broken_in, encode_metadata, load_model
from rlcore.export.observations import group_shapes
from rlcore.export.parity import verify
from rlcore.export.prepared import STATE_NAMES, ExportReport, Prepared, prepare
from rlcore.export.runner import decode_metadata
from rlcore.export.tidy import BATCH, tidy
from rlcore.files import draft

OPSET = 11


def export_onnx(
    policy: Policy,
    spec: EnvSpec,
    path: str | os.PathLike[str],
    *,
    recording: Mapping[str, Tensor] | None,
    env: VecEnv | None = None,
    dynamic_batch: bool = False,
    gate: bool = True,
    cells: Cells = "operator",
    tolerance: float = 1e-5,
    extra_metadata: Mapping[str, Any] | None = None,
) -> ExportReport:
    """Write a policy to one opset-11 ONNX file and check it against the policy.

    Input ``obs [1, O]``: the groups of ``policy.observation_sizes`` side by side, raw; there is none where there are no
    such. Each group of ``policy.raw_shapes`` is an input of its own, under the group's name (with ``_input`` where that
    is taken): images ``[1, C, H, W]`` uint8 or float32 as the env gives them, and the mask of choices ``[1, K]``
    float32. Output ``actions``: ``[1, A]`` float32, or int64 ``[1]`` when discrete, ``[1, D]`` for D choices at once. A
    recurrent policy adds ``h_in``, ``c_in``, ``h_out``, ``c_out``, each ``[layers, 1, hidden]``, zero at the start of
    an episode. One with a gate has it inside, and adds the output ``risk`` ``[1]``, see ``gate.Gated``; one that infers
    its task adds ``task_probability`` ``[1, K]``, in the order of ``metadata["tasks"]``. The policy itself is left as
    it is, and a file that was there before stays until the new one has passed every check.

    Args:
        policy: what to export, on any device.
        spec: the env it was trained on.
        path: the file to write; its folder is made where missing.
        recording: observations to replay, as ``Agent.recording`` returns them; None replays random ones only, and
            the metadata says so.
        env: where to record anew, by resetting it, if too few of the recorded observations are finite.
        dynamic_batch: let the file take N rows at once.
        gate: write the gate of a policy that has one; false leaves it out, which the metadata says.
        cells: how recurrent layers are written; a runtime may lack the operators LSTM and GRU.
        tolerance: largest difference between file and policy (``parity.py`` says how it is judged).
        extra_metadata: further facts, such as ``algorithm``, ``iteration``, ``env_steps`` and ``config_hash``.

    Raises:
        ExportError: the policy holds values that are not finite, policy and spec do not fit, the policy uses an
            operation that opset 11 lacks, the path is no regular file, or the file fails a check; the message names
            the figure, the tolerance and the worst output.
    """
    import onnx

    batch = 2 if dynamic_batch else 1
    ready = prepare(policy, spec, path, recording, env, batch, gate, cells, extra_metadata)
    path, facts = ready.path, ready.facts
    with draft(path) as file:
        _trace(ready, file, dynamic_batch)
        written = sorted(os.listdir(file.parent))
        if written != [file.name]:
            raise ExportError(f"the exporter wrote {written}, not one file; is the network over 2 GB?")
        model = onnx.load(str(file))
        _check_graph(model)
        tidy(model, dynamic_batch)
        facts |= {"opset": OPSET, "inputs": _shapes(model.graph.input), "outputs": _shapes(model.graph.output)}
        facts["types"] = _types(model)
        _save(model, facts, file)
        parity = verify(file, ready.policy, ready.recording, tolerance=tolerance)
        if not parity.passed:
            raise ExportError(f"'{path}' was not written: {parity}{parity.remedy}")
        facts |= parity.metadata()
        trace = golden_trace(file, ready.recording, group_shapes(policy))
        facts |= {} if trace is None else {"golden_trace": trace}
        _save(model, facts, file)
        try:
            onnx.checker.check_model(str(file), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ExportError(f"'{path}' was not written: the ONNX checker says: {error}") from error
        size_bytes = file.stat().st_size
    told = decode_metadata(encode_metadata(facts))
    return ExportReport(path=path, parity=parity, metadata=told, size_bytes=size_bytes, notes=tuple(ready.notes))


def broken_weights(path: str | os.PathLike[str]) -> list[str]:
    """Names of the weights of an ONNX file with NaN in them; those in other files are not looked at.

    Raises:
        ValueError: there is no such file, or it is not ONNX.
    """
    return broken_in(load_model(path))


def _trace(ready: Prepared, path: Path, dynamic_batch: bool) -> None:
    states = STATE_NAMES[: len(ready.state)]
    inputs = [*ready.groups, *(f"{name}_in" for name in states)]
    outputs = [*ready.outputs, *(f"{name}_out" for name in states)]
    axes = {name: {0 if name in (*ready.groups, *ready.outputs) else 1: BATCH} for name in inputs + outputs}
    try:
        with torch.no_grad(), _quiet():
            # dynamo=True, the default since torch 2.9, writes opset 18 whatever is asked, and weights in a second file.
            torch.onnx.export(
                ready.module,
                ready.example,
                str(path),
                dynamo=False,
                opset_version=OPSET,
                input_names=inputs,
                output_names=outputs,
                dynamic_axes=axes if dynamic_batch else None,
                do_constant_folding=True,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error).splitlines()[0]
        raise ExportError(f"the policy cannot be written in opset {OPSET}: {reason}; use another operation") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says about itself; what it says about the policy is let through."""
    with warnings.catch_warnings():
        for message in ("You are using the legacy TorchScript-based ONNX export", "The feature will be removed"):
            warnings.filterwarnings("ignore", message, DeprecationWarning)
        # torch's own recurrent layers check shapes while traced; the states are inputs, as the second message asks.
        warnings.filterwarnings("ignore", "Converting a tensor to a Python boolean", module=r"torch\.nn\.modules\.rnn")
        # On a CPU two networks run one after the other, however large the batch is.
        warnings.filterwarnings("ignore", "Using len to get tensor shape", module=r"rlcore\.networks")
        # Whether there are vectors beside images does not depend on the batch.
        warnings.filterwarnings("ignore", "Converting a tensor to a Python boolean", module=r"rlcore\.encoders")
        warnings.filterwarnings("ignore", "Exporting a model to ONNX with a batch_size other than 1")
        yield


def _check_graph(model: Any) -> None:
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets != {"": OPSET}:
        raise ExportError(f"the exporter wrote opsets {opsets}; only the standard opset {OPSET} is allowed")
    external = [tensor.name for tensor in model.graph.initializer if tensor.data_location == tensor.EXTERNAL]
    if external:
        raise ExportError(f"the exporter put weights {external} into another file")


def _shapes(values: Any) -> dict[str, list[int | str]]:
    return {v.name: [d.dim_param or int(d.dim_value) for d in v.type.tensor_type.shape.dim] for v in values}


def _types(model: Any) -> dict[str, str]:
    import onnx

    values = (*model.graph.input, *model.graph.output)
    return {v.name: onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type).name for v in values}


def _save(model: Any, facts: Mapping[str, Any], path: Path) -> None:
    import onnx

    del model.metadata_props[:]
    onnx.helper.set_model_props(model, encode_metadata(facts))
    with open(path, "wb") as file:
        file.write(model.SerializeToString())
        file.flush()
        os.fsync(file.fileno())
