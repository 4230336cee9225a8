"""Time of one step of a policy: C++ that ``rlcore export --cpp`` writes, beside ONNX Runtime on the same file.

python benchmarks/cpp.py
python benchmarks/cpp.py --hidden 256 128 64 --rnn lstm --compilers g++ clang++
python benchmarks/cpp.py --onnx runs/.../policy.onnx

One thread each, turn about in one run, so that both meet the same machine. ONNX Runtime is called from Python with its
inputs and outputs bound; what that call takes is measured with a file that only copies one number, and subtracted in
the column ``net``, to which the ratio refers. Before each step of the column ``cold`` 64 MB are read that evict weights
from the caches, as a robot's other programs do.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import torch
import tyro
from rich.console import Console
from rich.table import Table

from rlcore.env import EnvSpec
from rlcore.export import export_onnx, write_cpp
from rlcore.networks import NetworkConfig
from rlcore.policies import build_policy
from rlcore.ppo_config import PPOConfig
from rlcore.recurrent import RNNConfig

PROGRAM = """
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>
#include "policy.hpp"
static policy::Policy controller;
static std::vector<float> others(16u << 20, 1.0f);
int main(int, char** argv) {
  const int steps = std::atoi(argv[1]);
  const bool cold = std::atoi(argv[2]) != 0;
  std::vector<float> obs(policy::Policy::observation_size), mask(policy::Policy::mask_size + 1, 1.0f);
  std::vector<double> times;
  volatile float sink = 0.0f;
  for (int t = 0; t < steps + steps / 10; ++t) {
    for (float& x : obs) x = static_cast<float>(std::rand()) / static_cast<float>(RAND_MAX) * 2.0f - 1.0f;
    if (cold) for (std::size_t i = 0; i < others.size(); i += 16) sink = sink + others[i];
    const auto before = std::chrono::steady_clock::now();
    const auto* actions = CALL;
    const auto after = std::chrono::steady_clock::now();
    sink = sink + static_cast<float>(actions[0]);
    if (t >= steps / 10) times.push_back(std::chrono::duration<double, std::micro>(after - before).count());
  }
  for (double x : times) std::printf("%.3f\\n", x);
}
"""


@dataclass
class Settings:
    """What is timed."""

    hidden: tuple[int, ...] = (512, 256, 128)
    """Widths of hidden layers."""
    obs: int = 48
    """Numbers of an observation."""
    actions: int = 12
    """Numbers of an action."""
    activation: Literal["elu", "relu", "tanh", "silu", "gelu", "leaky_relu", "selu"] = "elu"
    """Nonlinearity."""
    rnn: Literal["none", "lstm", "gru"] = "none"
    """A recurrent layer of 256 before them."""
    onnx: Path | None = None
    """A file to time instead."""
    compilers: tuple[str, ...] = ("g++",)
    """C++ compilers."""
    flags: tuple[str, ...] = ("-O3", "-O3 -march=native")
    """Options of each program."""
    steps: int = 4000
    """Steps of a round."""
    cold_steps: int = 100
    """Those with cold caches."""
    rounds: int = 5
    """Rounds, in which all take turns."""
    json: Path | None = None
    """File for the figures."""


def policy_file(settings: Settings, folder: Path) -> Path:
    """A policy with the weights that it begins with."""
    spec = EnvSpec(
        task="Timing",
        observation_sizes={"policy": settings.obs},
        discrete=False,
        action_size=settings.actions,
        action_low=[-1.0] * settings.actions,
        action_high=[1.0] * settings.actions,
    )
    rnn = RNNConfig(type=settings.rnn, hidden_size=256)
    network = NetworkConfig(hidden_dims=settings.hidden, activation=settings.activation, rnn=rnn)
    torch.manual_seed(0)
    policy = build_policy(spec, PPOConfig(actor=network))
    return export_onnx(policy, spec, folder / "policy.onnx", recording=None).path


class Runtime:
    """ONNX Runtime on one thread."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.binding = self.session.io_binding()
        ends = (
            (self.session.get_inputs(), self.binding.bind_ortvalue_input),
            (self.session.get_outputs(), self.binding.bind_ortvalue_output),
        )
        for values, bind in ends:
            for value in values:
                kind = np.int64 if value.type == "tensor(int64)" else np.float32
                array = np.ones([n if isinstance(n, int) else 1 for n in value.shape], kind)
                bind(value.name, onnxruntime.OrtValue.ortvalue_from_numpy(array))

    def times(self, steps: int, others: Any = None) -> list[float]:
        """Microseconds of each step."""
        run, binding, clock, found = self.session.run_with_iobinding, self.binding, time.perf_counter_ns, []
        for _ in range(steps + steps // 10):
            if others is not None:
                others.sum()
            before = clock()
            run(binding)
            found.append(1e-3 * (clock() - before))
        return found[steps // 10 :]


def copying_file(folder: Path) -> Path:
    """A file that does nothing."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    values = [helper.make_tensor_value_info(name, kind, [1, 1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "copy", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)
    onnx.save(model, str(folder / "copy.onnx"))
    return folder / "copy.onnx"


def program(folder: Path, compiler: str, flags: str) -> tuple[Path, float]:
    """Compile, and tell the seconds that it took."""
    mask = ", mask.data()" if "const float* mask" in (folder / "policy.hpp").read_text() else ""
    call = f"controller.act(obs.data(){mask})"
    (folder / "timing.cpp").write_text(PROGRAM.replace("CALL", call))
    out = folder / f"{compiler} {flags}".replace(" ", "_")
    before = time.perf_counter()
    subprocess.run([compiler, "-std=c++17", *flags.split(), "timing.cpp", "-o", out.name], cwd=folder, check=True)
    return out, time.perf_counter() - before


def main(settings: Settings) -> None:
    """Time and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = settings.onnx or policy_file(settings, folder)
        report = write_cpp(file, folder)
        compilers = [c for c in settings.compilers if shutil.which(c)]
        programs = {f"{c} {f}": program(folder, c, f) for c in compilers for f in settings.flags}
        runtime, nothing, others = Runtime(file), Runtime(copying_file(folder)), np.ones(16 << 20, np.float32)
        warm: dict[str, list[float]] = {name: [] for name in (*programs, "ONNX Runtime", "call alone")}
        cold: dict[str, list[float]] = {name: [] for name in warm}
        for _ in range(settings.rounds):
            for found, steps, is_cold in ((warm, settings.steps, 0), (cold, settings.cold_steps, 1)):
                for label, (path, _) in programs.items():
                    done = subprocess.run([path, str(steps), str(is_cold)], check=True, capture_output=True, text=True)
                    found[label] += [float(x) for x in done.stdout.split()]
                found["ONNX Runtime"] += runtime.times(steps, others if is_cold else None)
                found["call alone"] += nothing.times(steps, others if is_cold else None)
    call, cold_call = statistics.median(warm["call alone"]), statistics.median(cold["call alone"])
    reference = statistics.median(warm["ONNX Runtime"]) - call
    rows = []
    for label, times in warm.items():
        own = (call, cold_call) if label == "ONNX Runtime" else (0.0, 0.0)
        quarters = statistics.quantiles(times, n=100)
        net = statistics.median(times) - own[0]
        rows.append({
            "program": label, "median": statistics.median(times), "net": net, "p99": quarters[98],
            "cold": statistics.median(cold[label]) - own[1], "ratio": reference / net,
            "compiled_s": programs[label][1] if label in programs else None,
        })  # fmt: skip
    title = f"{settings.onnx or [*settings.hidden]}, {settings.rnn}, {report.parameters:,} weights; microseconds a step"
    result = {"settings": title, "rows": rows}
    if settings.json is not None:
        settings.json.write_text(json.dumps(result, indent=1))
    table = Table(title=title)
    headings = ("program", "median", "net", "p99", "cold", "ONNX Runtime ÷ it", "compiled in s")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "program" else "right")
    for row in rows:
        numbers = [f"{row[key]:.1f}" for key in ("median", "net", "p99", "cold")]
        ratio = f"{row['ratio']:.2f}" if row["program"] != "call alone" else ""
        table.add_row(str(row["program"]), *numbers, ratio, f"{row['compiled_s']:.1f}" if row["compiled_s"] else "")
    Console(width=120).print(table)


if __name__ == "__main__":
    main(tyro.cli(Settings))
