"""Write a policy as one self-contained ONNX file, and refuse to if the file would not do what the policy does."""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlcore.agent import Policy
from rlcore.env import EnvSpec, VecEnv
from rlcore.export.golden import golden_trace
from rlcore.export.metadata import ExportError, build_metadata, encode_metadata, input_names, load_model
from rlcore.export.observations import finite_part, group_shapes, observed, record, still_inputs, too_few
from rlcore.export.parity import ParityReport, cpu_copy, verify

OPSET = 11
STATE_NAMES = ("h", "c")


@dataclass(frozen=True)
class ExportReport:
    """What was written."""

    path: Path
    parity: ParityReport
    metadata: dict[str, Any]
    """The file's properties before they became text."""
    size_bytes: int
    notes: tuple[str, ...] = ()
    """What a user of the file should know, a line each."""


class FlatPolicy(nn.Module):
    """A policy with its vectors joined into one tensor, and all else as separate tensors: what is traced."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Map ``obs [N, O]``, where it reads vectors, its other groups, and its state to action and next state.

        With a gate the risk ``[N]`` is between the two, or where the task is inferred its probability ``[N, K]``.
        """
        sizes, raw = self.policy.observation_sizes, self.policy.raw_shapes
        rest, parts = list(inputs), []
        if sizes:
            obs = rest.pop(0)
            parts = [obs] if len(sizes) == 1 else list(torch.split(obs, list(sizes.values()), dim=-1))
        parts += rest[: len(raw)]
        seen, before = dict(zip((*sizes, *raw), parts, strict=True)), tuple(rest[len(raw) :])
        if self.policy.gate is not None:
            gated, state = self.policy.judged(seen, before)
            return (gated.action, gated.risk, *state)
        if self.policy.inferred_tasks:
            action, probability, state = self.policy.inferring(seen, before)
            return (action, probability, *state)
        action, state = self.policy(seen, before)
        return (action, *state)


def export_onnx(
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
        tolerance: largest difference between file and policy (``parity.py`` says how it is judged).
        extra_metadata: further facts, such as ``algorithm``, ``iteration``, ``env_steps`` and ``config_hash``.

    Raises:
        ExportError: the policy holds values that are not finite, policy and spec do not fit, the policy uses an
            operation that opset 11 lacks, the path is no regular file, or the file fails a check; the message names
            the figure, the tolerance and the worst output.
    """
    import onnx

    path = Path(path)
    if path.is_dir():
        raise ExportError(f"'{path}' is a folder; name a file in it, such as '{path / 'policy.onnx'}'")
    if path.exists() and not path.is_file():
        raise ExportError(f"'{path}' is not a regular file and would be replaced; name another")
    broken = [name for name, value in policy.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise ExportError(
            f"'{path}' was not written: the policy has values that are not finite in {', '.join(broken[:3])}; "
            "export an earlier checkpoint"
        )
    notes = []
    if recording is not None and env is not None:
        _, done, left_out = finite_part(recording, group_shapes(policy))
        if too_few(done.size, left_out):
            recording = record(env, policy)
            notes.append(f"only {done.size} of {done.size + left_out} recorded observations were finite: recorded anew")
    left_out = policy.gate is not None and not gate
    if left_out:
        policy = cpu_copy(policy)
        policy.gate = None
        notes.append("the gate of the policy is left out: nothing keeps the file from risky actions")
    if policy.gate is not None and policy.gate.waits:
        notes.append("the gate had not begun to act when the checkpoint was written: the file tells the risk alone")
    facts = build_metadata(spec, policy, extra_metadata) | ({"gate": "left out"} if left_out else {})
    facts |= observed(policy, recording)
    still = still_inputs(policy, facts["observation_terms"])
    if still is not None:
        notes.append(still)
    for name in ("scale", "bias"):
        if (value := getattr(policy, f"action_{name}", None)) is not None:
            facts[f"policy_{name}"] = value.tolist()
    module, example = _prepare(policy, spec, batch=2 if dynamic_batch else 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, so that the last step is a rename within one file system.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        draft = Path(folder) / path.name
        _trace(module, example, draft, dynamic_batch)
        written = sorted(os.listdir(folder))
        if written != [path.name]:
            raise ExportError(f"the exporter wrote {written}, not one file; is the network over 2 GB?")
        model = onnx.load(str(draft))
        _check_graph(model)
        facts |= {"opset": OPSET, "inputs": _shapes(model.graph.input), "outputs": _shapes(model.graph.output)}
        facts["types"] = _types(model)
        _save(model, facts, draft)
        parity = verify(draft, policy, recording, tolerance=tolerance)
        if not parity.passed:
            raise ExportError(f"'{path}' was not written: {parity}")
        facts |= parity.metadata()
        trace = golden_trace(draft, recording, group_shapes(policy))
        facts |= {} if trace is None else {"golden_trace": trace}
        _save(model, facts, draft)
        try:
            onnx.checker.check_model(str(draft), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ExportError(f"'{path}' was not written: the ONNX checker says: {error}") from error
        size_bytes = draft.stat().st_size
        os.replace(draft, path)
    return ExportReport(path=path, parity=parity, metadata=facts, size_bytes=size_bytes, notes=tuple(notes))


def broken_weights(path: str | os.PathLike[str]) -> list[str]:
    """Names of the weights of an ONNX file with NaN in them; those in other files are not looked at.

    Raises:
        ValueError: there is no such file, or it is not ONNX.
    """
    import onnx

    weights = load_model(path).graph.initializer
    arrays = {w.name: onnx.numpy_helper.to_array(w) for w in weights if w.data_location != w.EXTERNAL}
    return [name for name, array in arrays.items() if array.dtype.kind == "f" and np.isnan(array).any()]


def _prepare(policy: Policy, spec: EnvSpec, batch: int) -> tuple[FlatPolicy, tuple[Tensor, ...]]:
    """Copy the policy to float32 on the CPU, and make example inputs; refuse what does not fit the spec."""
    sizes = policy.observation_sizes
    for group, size in sizes.items():
        if spec.observation_sizes.get(group) != size:
            raise ExportError(
                f"the policy reads observation group '{group}' of size {size}; the env has {spec.observation_sizes}"
            )
    module = FlatPolicy(cpu_copy(policy).float()).eval()
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(batch, sum(sizes.values()), generator=generator)] if sizes else []  # [N, O]
    for group, shape in policy.raw_shapes.items():
        if len(shape) == 1:
            there: tuple[int, ...] | None = (spec.observation_sizes.get(group, 0),)
        else:
            there = tuple(spec.image_shapes[group]) if group in spec.image_shapes else None
        if there != tuple(shape):
            raise ExportError(
                f"the policy reads observation group '{group}' of shape {list(shape)}; the env has "
                f"{spec.observation_text}"
            )
        kind = torch.uint8 if spec.image_types.get(group) == "uint8" else torch.float32
        inputs.append(torch.ones(batch, *shape, dtype=kind))
    state = tuple(s.to("cpu", torch.float32) for s in module.policy.initial_state(batch))
    if len(state) > len(STATE_NAMES):
        raise ExportError(f"the policy has {len(state)} state tensors; at most two (h, c) can be exported")
    with torch.no_grad():
        action = module(*inputs, *state)[0]
    chosen = (batch, len(spec.action_parts)) if spec.action_parts else (batch,)
    shape, dtype = (chosen, torch.int64) if spec.discrete else ((batch, spec.action_size), torch.float32)
    if tuple(action.shape) != shape or action.dtype != dtype:
        raise ExportError(
            f"the policy returns actions {list(action.shape)} {action.dtype} for {batch} observations; "
            f"the env needs {list(shape)} {dtype}"
        )
    return module, (*inputs, *state)


def _trace(module: FlatPolicy, example: tuple[Tensor, ...], path: Path, dynamic_batch: bool) -> None:
    policy = module.policy
    groups = [*(["obs"] if policy.observation_sizes else []), *input_names(list(policy.raw_shapes)).values()]
    states = STATE_NAMES[: len(example) - len(groups)]
    inputs = [*groups, *(f"{name}_in" for name in states)]
    outputs = ["actions", *([] if policy.gate is None else ["risk"])]
    outputs += ["task_probability"] if policy.inferred_tasks else []
    rows = (*groups, *outputs)
    outputs += [f"{name}_out" for name in states]
    axes = {name: {0 if name in rows else 1: "batch"} for name in inputs + outputs}
    try:
        with torch.no_grad(), _quiet():
            # dynamo=True, the default since torch 2.9, writes opset 18 whatever is asked, and weights in a second file.
            torch.onnx.export(
                module,
                example,
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
