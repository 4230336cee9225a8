"""Which runtimes load each kind of exported policy, and by how much they differ from it.

python -m venv peers && peers/bin/pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
peers/bin/pip install onnx onnxruntime openvino opencv-python-headless emx-onnx-cgen tract
peers/bin/pip install --no-deps onnx2torch ncnn pnnx
python benchmarks/runtimes.py --python peers/bin/python --output runtimes.json

Each file takes one observation at a time for 64 steps, with its own state; actions, risks and states are held against
those of the policy in PyTorch. The runtimes are in an environment of their own (torch first, so that none of them asks
for another), which ``runtimes_peers.py`` runs in; rlcore is not needed there.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from rlcore import PPOConfig, SACConfig, sac
from rlcore.agent import Policy
from rlcore.encoders import CNNConfig
from rlcore.env import EnvSpec, spec_of
from rlcore.envs import make_env
from rlcore.export import export_onnx
from rlcore.export.one_task import OneTask
from rlcore.export.prepared import STATE_NAMES, prepare
from rlcore.gate import GateConfig
from rlcore.networks import NetworkConfig
from rlcore.policies import build_policy
from rlcore.recurrent import RNNConfig
from rlcore.safety import SafetyConfig

STEPS = 64
PEERS = ("onnxruntime", "openvino", "tract", "opencv", "onnx2torch", "ncnn", "emx-onnx-cgen")
TASKS = "tasks:Pendulum+Reach-UR5e-JointPos"


@dataclass(frozen=True)
class Arguments:
    """Try exported policies in other runtimes."""

    python: Path
    """Of the environment that has the runtimes."""
    peers: tuple[str, ...] = PEERS
    """Runtimes."""
    kinds: tuple[str, ...] = ()
    """Kinds of policies; none given: all."""
    output: Path | None = None
    """JSON file for the figures."""


def spec(**changes: Any) -> EnvSpec:
    """An env of a small robot."""
    facts: dict[str, Any] = {
        "task": "Robot", "observation_sizes": {"policy": 24, "goal": 3}, "discrete": False, "action_size": 6,
        "action_low": [-1.0] * 6, "action_high": [1.0] * 6,
    }  # fmt: skip
    return EnvSpec(**{**facts, **changes})


def on_policy(own: EnvSpec | None = None, rnn: str = "none", **settings: Any) -> tuple[Policy, EnvSpec]:
    """A policy of PPO with hidden layers of 32 and 16."""
    own = own or spec()
    cell: Any = RNNConfig(type=rnn, hidden_size=24)  # type: ignore[arg-type]
    cnn = CNNConfig(channels=(8, 8), kernel_sizes=(3,), strides=(2,), output_size=16)
    net = NetworkConfig(hidden_dims=(32, 16), rnn=cell, cnn=cnn)
    return build_policy(own, PPOConfig(actor=net, **{"actor_obs": ("policy", "goal"), **settings})), own


def choices(parts: list[int], masked: bool) -> tuple[Policy, EnvSpec]:
    """A policy that chooses, of what a mask allows where there is one."""
    sizes = {"policy": 24, "goal": 3, **({"allowed": sum(parts)} if masked else {})}
    none: list[float] = []
    several = parts if len(parts) > 1 else []
    own = spec(
        discrete=True, action_size=sum(parts), action_parts=several, action_low=none, action_high=none,
        observation_sizes=sizes,
    )  # fmt: skip
    return on_policy(own, **({"action_mask": "allowed"} if masked else {}))


def gated(fallback: Any) -> tuple[Policy, EnvSpec]:
    """A policy with a gate that acts."""
    network = NetworkConfig(hidden_dims=(24,), activation="relu", init="default")
    gate = GateConfig(threshold=0.03, costs=("cost",), fallback=fallback, network=network)
    policy, own = on_policy(safety=SafetyConfig(gate=gate))
    assert policy.gate is not None
    policy.gate.limit.fill_(0.03)
    return policy, own


def images() -> tuple[Policy, EnvSpec]:
    """A policy that reads a camera beside vectors."""
    own = spec(image_shapes={"camera": (3, 24, 24)}, image_types={"camera": "uint8"})
    return on_policy(own, actor_obs=("policy", "camera"))


def tasks(name: str | None = None) -> tuple[Policy, EnvSpec]:
    """A policy of two tasks, or of one of them."""
    own = spec_of(make_env(TASKS, 4, seed=0))
    net = NetworkConfig(hidden_dims=(32, 16))
    policy = build_policy(own, PPOConfig(actor=net))
    return (policy, own) if name is None else (OneTask(policy, own, name).eval(), own.tasks[name])


def squashed() -> tuple[Policy, EnvSpec]:
    """A policy of SAC."""
    net = NetworkConfig(hidden_dims=(32, 16), activation="relu")
    return sac.build_policy(spec(), SACConfig(actor=net, actor_obs=("policy", "goal"))), spec()


KINDS: dict[str, tuple[Callable[[], tuple[Policy, EnvSpec]], dict[str, Any]]] = {
    "MLP": (on_policy, {}),
    "LSTM": (lambda: on_policy(rnn="lstm"), {}),
    "LSTM decomposed": (lambda: on_policy(rnn="lstm"), {"cells": "decomposed"}),
    "GRU": (lambda: on_policy(rnn="gru"), {}),
    "GRU decomposed": (lambda: on_policy(rnn="gru"), {"cells": "decomposed"}),
    "SAC": (squashed, {}),
    "discrete": (lambda: choices([5], False), {}),
    "discrete, mask": (lambda: choices([5], True), {}),
    "multi-discrete": (lambda: choices([2, 4, 3], False), {}),
    "gate, candidates": (lambda: gated("candidates"), {}),
    "gate, recovery": (lambda: gated("recovery"), {}),
    "image": (images, {}),
    "several tasks": (tasks, {}),
    "one task": (lambda: tasks("Reach-UR5e-JointPos"), {}),
}


def write(kind: str, folder: Path) -> None:
    """Export a policy of a kind, and keep what it reads and what it does."""
    make, options = KINDS[kind]
    torch.manual_seed(0)
    policy, own = make()
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    export_onnx(policy, own, folder / "policy.onnx", recording=None, **options)
    ready = prepare(policy, own, folder / "policy.onnx", None, None, 1, True, "decomposed", None)
    state, rows = ready.state, []
    for _ in range(STEPS):
        read = [_drawn(name, x, generator) for name, x in zip(ready.groups, ready.example, strict=False)]
        with torch.no_grad():
            given = ready.module(*read, *state)
        row = dict(zip([*ready.groups, *(f"{name}_in" for name in STATE_NAMES)], (*read, *state), strict=False))
        row |= dict(zip([*ready.outputs, *(f"{name}_out" for name in STATE_NAMES)], given, strict=False))
        rows.append(row)
        state = given[len(ready.outputs) :]
    arrays: dict[str, Any] = {name: torch.stack([row[name] for row in rows]).numpy() for name in rows[0]}
    np.savez(folder / "steps.npz", **arrays)


def _drawn(name: str, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """An observation: a picture, a mask with a choice at least, or numbers; the task is the second of two."""
    if like.dtype == torch.uint8:
        return torch.randint(0, 256, like.shape, generator=generator, dtype=torch.uint8)
    if name == "allowed":
        mask = torch.randint(0, 2, like.shape, generator=generator).float()
        mask[0, 0] = 1
        return mask
    x = torch.randn(like.shape, generator=generator)
    if name == "obs" and like.shape[1] == 34:  # of both tasks, with the one that it is behind
        x[:, -2:] = torch.tensor([0.0, 1.0])
    return x


def tried(python: Path, peer: str, folders: dict[str, Path]) -> dict[str, Any]:
    """What a runtime makes of each kind; one whose process dies is begun anew with the others."""
    found: dict[str, Any] = {}
    while left := [kind for kind in folders if kind not in found]:
        command = [str(python), str(Path(__file__).with_name("runtimes_peers.py")), peer]
        command += [str(folders[kind]) for kind in left]
        done = subprocess.run(command, capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        found |= {kind: json.loads(line) for kind, line in zip(left, lines, strict=False)}
        if len(lines) < len(left):
            last = (done.stderr.strip().splitlines() or [""])[-1][:160]
            found[left[len(lines)]] = {"error": f"the process ended with {done.returncode}: {last}"}
    return found


def main() -> None:
    """Write all kinds, try them, and print a table."""
    torch.set_num_threads(1)
    args = tyro.cli(Arguments)
    console = Console(width=200)
    with tempfile.TemporaryDirectory() as place:
        folders = {}
        for i, kind in enumerate(args.kinds or KINDS):
            folders[kind] = Path(place) / str(i)
            folders[kind].mkdir()
            write(kind, folders[kind])
        results = {}
        for peer in args.peers:
            results[peer] = tried(args.python, peer, folders)
            for kind, result in results[peer].items():
                console.print(f"{peer:14} {kind:18} {result}", markup=False, highlight=False)
    table = Table("kind", *args.peers)
    for kind in folders:
        cells = [results[peer][kind] for peer in args.peers]
        table.add_row(kind, *(f"{cell['difference']:.1g}" if "difference" in cell else "no" for cell in cells))
    console.print(table)
    if args.output is not None:
        args.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
