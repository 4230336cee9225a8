"""What is written, whatever the format: a copy of the policy, an example of what it reads, and what is said of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlcore.agent import Policy
from rlcore.env import EnvSpec, VecEnv
from rlcore.export.cells import Cells, replace_cells
from rlcore.export.metadata import ExportError, build_metadata, input_names
from rlcore.export.observations import finite_part, group_shapes, observed, record, still_inputs, too_few
from rlcore.export.parity import ParityReport, cpu_copy
from rlcore.types import State

STATE_NAMES = ("h", "c")


@dataclass(frozen=True)
class ExportReport:
    """What was written."""

    path: Path
    parity: ParityReport
    metadata: dict[str, Any]
    """What the file tells, as ``read_metadata`` reads it."""
    size_bytes: int
    notes: tuple[str, ...] = ()
    """What a user of the file should know, a line each."""


@dataclass
class Prepared:
    """What is ready to be traced."""

    path: Path
    policy: Policy
    """Without its gate, where that is left out."""
    module: FlatPolicy
    """A copy of it on the CPU, in float32, with recurrent layers as the file is to have them."""
    example: tuple[Tensor, ...]
    """What it reads: ``obs``, its other groups, its state."""
    state: State
    """The last of these."""
    recording: Mapping[str, Tensor] | None
    facts: dict[str, Any]
    """The file's properties, as far as they are known before it is written."""
    notes: list[str] = field(default_factory=list)

    @property
    def groups(self) -> list[str]:
        """Names of what it reads beside its state."""
        policy = self.module.policy
        return [*(["obs"] if policy.observation_sizes else []), *input_names(list(policy.raw_shapes)).values()]

    @property
    def outputs(self) -> list[str]:
        """Names of what it gives beside its next state."""
        policy = self.module.policy
        told = ["risk"] if policy.gate is not None else ["task_probability"] if policy.inferred_tasks else []
        return ["actions", *told]


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


def prepare(
    policy: Policy,
    spec: EnvSpec,
    path: str | os.PathLike[str],
    recording: Mapping[str, Tensor] | None,
    env: VecEnv | None,
    batch: int,
    gate: bool,
    cells: Cells,
    extra_metadata: Mapping[str, Any] | None,
) -> Prepared:
    """Check that a policy can be written, and make ready what is; see ``export_onnx``.

    Args:
        policy: what to export.
        spec: the env it was trained on.
        path: the file to write; its folder is made where missing.
        recording: observations to replay.
        env: where to record anew, if too few of these are finite.
        batch: rows of the example.
        gate: whether to write the gate of a policy that has one.
        cells: how recurrent layers are written.
        extra_metadata: further facts.

    Raises:
        ExportError: see ``export_onnx``.
    """
    path = Path(path)
    if path.is_dir():
        raise ExportError(f"'{path}' is a folder; name a file in it, such as '{path / 'policy.onnx'}'")
    above = next((folder for folder in path.parents if folder.exists()), path)
    if not above.is_dir():
        raise ExportError(f"'{path}' cannot be written: '{above}' is a file; name another place")
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
        _, done, unusable = finite_part(recording, group_shapes(policy))
        if too_few(done.size, unusable):
            recording = record(env, policy)
            notes.append(f"only {done.size} of {done.size + unusable} recorded observations were finite: recorded anew")
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
    module, example, state = _example(policy, spec, batch)
    replace_cells(module, cells)
    path.parent.mkdir(parents=True, exist_ok=True)
    return Prepared(path, policy, module.eval().requires_grad_(False), example, state, recording, facts, notes)


def _example(policy: Policy, spec: EnvSpec, batch: int) -> tuple[FlatPolicy, tuple[Tensor, ...], State]:
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
    return module, (*inputs, *state), state
