"""Policies as C++: what the program does is what ONNX Runtime does with the file, and a runner that watches over it."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from test_export import Recurrent

from rlcore import DDPGConfig, NetworkConfig, PPOConfig, SACConfig, ddpg, sac
from rlcore.activations import MODULES
from rlcore.agent import Policy
from rlcore.env import EnvSpec
from rlcore.export import ExportError, OnnxPolicy, export_onnx, read_metadata, write_cpp
from rlcore.export.cpp_layout import number, panels
from rlcore.export.cpp_policy import HEADERS
from rlcore.export.golden import decoded, rounded
from rlcore.export.tidy import trial
from rlcore.gate import GateConfig
from rlcore.policies import build_policy
from rlcore.recurrent import RNNConfig
from rlcore.safety import SafetyConfig
from rlcore.types import Obs, State

ROOT = Path(__file__).parent.parent
needs_gcc = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
STRICT = ("-std=c++17", "-Wall", "-Wextra", "-Werror")
SANITIZED = ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
BUILDS = pytest.mark.parametrize(
    ("compiler", "options"),
    [
        pytest.param(name, how, marks=pytest.mark.skipif(shutil.which(name) is None, reason=f"there is no {name}"))
        for name, how in (("g++", SANITIZED), ("clang++", SANITIZED), ("g++", ("-O3", "-march=native", "-DHOOK")))
    ],
)
STEPS = 1000
TOLERANCE = 1e-5


def compiled(compiler: str, folder: Path, source: str, *options: str) -> Path:
    out = folder / f"{source}.{len(options)}.{compiler}"
    command = [compiler, *STRICT, *options, source, "-o", str(out)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]
    return out


# Policies of every kind


def spec_of(**changes: Any) -> EnvSpec:
    facts: dict[str, Any] = {
        "task": 'Arm "é"',
        "observation_sizes": {"policy": 11, "goal": 3},
        "discrete": False,
        "action_size": 4,
        "action_low": [-1.0, -2.0, -3.0, -math.inf],
        "action_high": [1.0, 2.0, 3.0, math.inf],
    }
    return EnvSpec(**{**facts, **changes})


def stirred(policy: Policy, amount: float = 0.1) -> Policy:
    """With weights, statistics and a gate as after training."""
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.parameters():
        parameter.data.add_(amount * torch.randn(parameter.shape, generator=generator))
    normalizer: Any = getattr(policy, "normalizer", None)
    if hasattr(normalizer, "mean"):
        normalizer.mean.copy_(torch.randn(normalizer.mean.shape, generator=generator))
        normalizer.var.copy_(0.5 + torch.rand(normalizer.var.shape, generator=generator))
        normalizer.count.fill_(1000)
    if policy.gate is not None:
        policy.gate.limit.fill_(policy.gate.threshold)
    return policy


def on_policy(spec: EnvSpec | None = None, network: Any = None, **settings: Any) -> tuple[Policy, EnvSpec]:
    spec = spec or spec_of()
    actor = NetworkConfig(**{"hidden_dims": (40, 24), **(network or {})})
    return stirred(build_policy(spec, PPOConfig(actor=actor, actor_obs=("policy", "goal"), **settings))), spec


def off_policy(library: Any, config: Any, **settings: Any) -> tuple[Policy, EnvSpec]:
    spec = spec_of(action_low=[-1.0, -2.0, -3.0, -4.0], action_high=[1.0, 2.0, 3.0, 5.0])
    actor = NetworkConfig(hidden_dims=(40, 24), activation="relu")
    return stirred(library.build_policy(spec, config(actor=actor, actor_obs=("policy", "goal"), **settings))), spec


def gated(fallback: Any) -> dict[str, Any]:
    # Weights of chance find a risk of about 0.05 everywhere: with this threshold the gate acts in some of the steps.
    network = NetworkConfig(hidden_dims=(24,), activation="relu", init="default")
    return {
        "safety": SafetyConfig(gate=GateConfig(threshold=0.03, costs=("cost",), fallback=fallback, network=network))
    }


def recurrent(cell: Any, layers: int, position: Any) -> tuple[Policy, EnvSpec]:
    rnn = RNNConfig(type=cell, hidden_size=20, num_layers=layers, position=position)
    return on_policy(network={"hidden_dims": (24,), "rnn": rnn})


def operator(cell: str) -> tuple[Policy, EnvSpec]:
    """Of torch.nn.LSTM or GRU, which become operators of that name."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        policy = Recurrent(cell)
    policy.observation_sizes = {"policy": 7, "goal": 3}
    return policy, spec_of(observation_sizes={"policy": 7, "goal": 3})


def choices(parts: list[int], masked: bool) -> tuple[Policy, EnvSpec]:
    sizes = {"policy": 11, "goal": 3, **({"allowed": sum(parts)} if masked else {})}
    several = parts if len(parts) > 1 else []
    none: list[float] = []
    spec = spec_of(
        discrete=True, action_size=sum(parts), action_parts=several, action_low=none, action_high=none,
        observation_sizes=sizes,
    )  # fmt: skip
    return on_policy(spec, **({"action_mask": "allowed"} if masked else {}))


ACTIVATIONS = sorted({*MODULES} - {"elu", "relu"})  # which are those of "mlp" and "ddpg"
KINDS: dict[str, Any] = {
    "mlp": lambda: on_policy(clip_obs=5.0),
    "wide": lambda: on_policy(network={"hidden_dims": (130, 70)}, normalize_obs=("policy",)),
    **{name: lambda name=name: on_policy(network={"activation": name, "hidden_dims": (24,)}) for name in ACTIVATIONS},
    "layer norm": lambda: on_policy(network={"layer_norm": True, "hidden_dims": (24,)}),
    "residual": lambda: on_policy(network={"kind": "residual", "hidden_dims": (16,)}),
    "lstm": lambda: recurrent("lstm", 2, "before"),
    "gru": lambda: recurrent("gru", 1, "after"),
    "lstm operator": lambda: operator("lstm"),
    "gru operator": lambda: operator("gru"),
    "sac": lambda: off_policy(sac, SACConfig),
    "ddpg": lambda: off_policy(ddpg, DDPGConfig),
    "discrete": lambda: choices([5], False),
    "masked": lambda: choices([5], True),
    "several": lambda: choices([2, 4, 3], True),
    "gate candidates": lambda: on_policy(**gated("candidates")),
    "gate recovery": lambda: on_policy(**gated("recovery")),
    "gate sac": lambda: off_policy(sac, SACConfig, **gated("candidates")),
}


def inputs_of(file: OnnxPolicy, generator: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Observations ``[T, O]`` and masks ``[T, K]``, of which some allow nothing."""
    obs = (1.5 * generator.standard_normal((STEPS, file.observation_size))).astype(np.float32)
    size = sum(group.shape[0] for group in file.groups.values())
    return obs, (generator.random((STEPS, size)) < 0.5).astype(np.float32)


RESETS = np.arange(STEPS) % 137 == 0

# Counts what asks for memory, where sanitizers do not do so themselves.
HOOK = """
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>
#ifdef HOOK
#include <new>
static long calls = 0;
extern "C" void* __libc_malloc(std::size_t);
extern "C" void* malloc(std::size_t size) { ++calls; return __libc_malloc(size); }
void* operator new(std::size_t size) { ++calls; return __libc_malloc(size); }
void operator delete(void* place) noexcept { std::free(place); }
void operator delete(void* place, std::size_t) noexcept { std::free(place); }
#else
static const long calls = 0;
#endif
static std::vector<float> numbers(const std::string& name) {
  std::vector<float> all;
  float x;
  std::FILE* file = std::fopen(name.c_str(), "rb");
  while (std::fread(&x, sizeof x, 1, file) == 1) all.push_back(x);
  std::fclose(file);
  return all;
}
static void write(const std::string& name, const std::vector<float>& all) {
  std::FILE* file = std::fopen(name.c_str(), "wb");
  std::fwrite(all.data(), sizeof(float), all.size(), file);
  std::fclose(file);
}
"""

DRIVER = """
template <class P, class F>
static void drive(const std::string& folder, F act) {
  const std::vector<float> in = numbers(folder + "/in");
  const int row = 1 + P::observation_size + P::mask_size;
  const int steps = static_cast<int>(in.size()) / row;
  std::vector<float> out(static_cast<std::size_t>(steps) * (P::action_size + 2));
  static P policy;
  static_assert(noexcept(policy.reset()), "");
  float* to = out.data();
  const long before = calls;
  for (int t = 0; t < steps; ++t) {
    const float* from = in.data() + t * row;
    if (from[0] != 0.0f) policy.reset();
    const auto* actions = act(policy, from + 1, from + 1 + P::observation_size);
    for (int i = 0; i < P::action_size; ++i) *to++ = static_cast<float>(actions[i]);
    *to++ = policy.risk;
    *to++ = policy.acted() ? 1.0f : 0.0f;
  }
  std::printf("%ld\\n", calls - before);
  write(folder + "/out", out);
}
int main() {
CALLS
}
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All kinds exported and written as C++, a folder each, and one program that drives them all."""
    folder = tmp_path_factory.mktemp("cpp")
    includes, calls = [HOOK], []
    for i, (kind, make) in enumerate(KINDS.items()):
        torch.manual_seed(0)
        policy, spec = make()
        here = folder / f"p{i}"
        report = write_cpp(export_onnx(policy, spec, here / "policy.onnx", recording=None).path, here)
        assert report.written[0] == "policy.hpp"
        file = OnnxPolicy(here / "policy.onnx")
        obs, mask = inputs_of(file, np.random.default_rng(i))
        np.concatenate([RESETS[:, None].astype(np.float32), obs, mask], 1).astype(np.float32).tofile(here / "in")
        includes += [f"#define policy p{i}", f'#include "p{i}/policy.hpp"', "#undef policy"]
        includes += ["#undef RLCORE_EXPORTED_POLICY_HPP"]
        arguments = "obs, mask" if file.groups else "obs"
        act = f"[](auto& p, const float* obs, const float* mask) {{ (void)mask; return p.act({arguments}); }}"
        calls.append(f'  drive<p{i}::Policy>("p{i}", {act});  // {kind}')
    text = "\n".join(includes) + DRIVER.replace("CALLS", "\n".join(calls))
    (folder / "drive.cpp").write_text(text)
    return folder


@cache
def by_onnx_runtime(path: Path, seed: int) -> list[tuple[NDArray[np.float32], Any, Any]]:
    """Action, risk and whether the gate acted, of each step: once for all builds."""
    file = OnnxPolicy(path)
    obs, mask = inputs_of(file, np.random.default_rng(seed))
    found = []
    for t in range(STEPS):
        if RESETS[t]:
            file.reset()
        action = np.atleast_1d(file({"obs": obs[t], **dict.fromkeys(file.groups, mask[t])}))
        found.append((action.copy(), file.risk, file.acted))
    return found


def check_against_onnx_runtime(folder: Path) -> None:
    for i, kind in enumerate(KINDS):
        got = np.fromfile(folder / f"p{i}" / "out", np.float32).reshape(STEPS, -1)
        gates, moved = 0, 0.0
        for t, (wanted, risk, acted) in enumerate(by_onnx_runtime(folder / f"p{i}" / "policy.onnx", i)):
            difference = np.abs(got[t, :-2] - wanted) / np.maximum(1.0, np.abs(wanted))
            assert (difference <= TOLERANCE).all(), f"{kind}, step {t}: {got[t, :-2]} and not {wanted}"
            if risk is not None:
                assert abs(got[t, -2] - risk) <= TOLERANCE, f"{kind}, step {t}"
                assert bool(got[t, -1]) == bool(acted), f"{kind}, step {t}"
                gates += bool(acted)
            moved = max(moved, float(np.abs(wanted - wanted.mean()).max()), float(np.abs(wanted).max()))
        assert moved > 0.05, f"{kind}: the comparison is about nothing"
        if kind.startswith("gate"):
            assert 5 < gates < STEPS - 5, f"{kind}: the gate acted in {gates} steps"


@BUILDS
@pytest.mark.cpu_seconds(900)
def test_thousand_steps_are_those_of_onnx_runtime(sources: Path, compiler: str, options: tuple[str, ...]) -> None:
    for out in sources.glob("*/out"):
        out.unlink()
    program = compiled(compiler, sources, "drive.cpp", *options)
    done = subprocess.run([program], cwd=sources, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]  # sanitizers have found nothing
    assert done.stdout.split() == ["0"] * len(KINDS)  # calls for memory, where they are counted
    check_against_onnx_runtime(sources)


# The runner

ROBOT = ("wheel", "hip", "knee")  # the order of its drivers
OWN = ("hip", "knee", "wheel")


def legged() -> tuple[Policy, EnvSpec]:
    """Of three joints, with history, scales and clips."""
    terms = [
        {"name": "joint_pos", "size": 9, "history_length": 3, "scale": 0.5, "clip": [-1.5, 1.0]},
        {"name": "joint_vel", "size": 3, "scale": [0.1, 0.2, 0.3]},
        {"name": "actions", "size": 3},
    ]
    action_terms = [
        {"name": "legs", "size": 2, "scale": 0.5, "offset": [0.1, -0.2], "clip": [[-0.3, 0.3], [-0.4, 0.1]]},
        {"name": "wheel", "size": 1, "scale": [2.0]},
    ]
    action_terms[0] |= {"kind": "position", "joints": list(OWN[:2])}
    action_terms[1] |= {"kind": "velocity", "joints": list(OWN[2:])}
    hip = {"default_position": 0.25, "stiffness": 30.0, "position_limits": [-1.0, 2.0], "effort_limit": 24.0}
    joints = [{"name": "mast"}, {"name": "hip", **hip}, {"name": "knee"}, {"name": "wheel"}]
    deployment = {
        "observation_terms": {"policy": terms, "goal": [{"name": "command", "size": 2}]},
        "action_terms": action_terms,
        "joints": joints,
        "control_dt": 0.02,
        "safe_action": [0.5, 0.0, 0.25],
    }
    bounds = [5.0] * 3
    spec = spec_of(
        observation_sizes={"policy": 15, "goal": 2}, action_size=3, action_low=[-x for x in bounds], action_high=bounds,
        deployment=deployment,
    )  # fmt: skip
    rnn = RNNConfig(type="gru", hidden_size=8)
    return on_policy(spec, {"hidden_dims": (16,), "rnn": rnn}, normalize_obs=True)


RUNNER = """
#include <cmath>
#include <stdexcept>
#include "policy.hpp"
#include "rlcore_runner.hpp"
using Runner = rlcore::Runner<policy::Policy>;
static float q[3], dq[3], command[2];
static const float low[] = {-0.9f, -5.0f, -5.0f}, high[] = {0.9f, 5.0f, 5.0f}, pose[] = {0.1f, 0.2f, 0.3f};
static const std::vector<std::string> robot = {"wheel", "hip", "knee"};

static void bind(Runner& runner, rlcore::Watch watch = rlcore::Watch()) {
  runner.joints(robot);
  runner.bind_joints("joint_pos", q, watch);
  runner.bind_joints("policy/joint_vel", dq);
  runner.bind("actions", runner.last_action());
  runner.bind("command", command);
  runner.limits(low, high);
  runner.fallback(pose);
}

static void follow() {
  static Runner runner;
  bind(runner);
  runner.start();
  const std::vector<float> in = numbers("in");
  std::vector<float> out(in.size() / 9 * 20);
  float* to = out.data();
  const long before = calls;
  for (const float* from = in.data(); from < in.data() + in.size(); from += 9) {
    if (from[0] != 0.0f) runner.reset();
    for (int i = 0; i < 3; ++i) q[i] = from[1 + i], dq[i] = from[4 + i];
    for (int i = 0; i < 2; ++i) command[i] = from[7 + i];
    const float* targets = runner.step();
    for (int i = 0; i < 17; ++i) *to++ = runner.observation()[i];
    for (int i = 0; i < 3; ++i) *to++ = targets[i];
  }
  std::printf("%ld calls for memory\\n", calls - before);
  const rlcore::Timing& timing = runner.timing();
  const bool in_order = timing.percentile(0.5) <= timing.percentile(0.99) && timing.percentile(1.0) == timing.most();
  std::printf("%d steps, in order %d, cut off %d\\n", static_cast<int>(timing.count()), in_order && timing.mean() > 0.0,
              runner.cut_off() > 0);
  write("out", out);
}

template <class F>
static void refused(F set_up) {
  Runner runner;
  try {
    set_up(runner);
    std::printf("not refused\\n");
  } catch (const std::invalid_argument& error) {
    std::printf("%s\\n", error.what());
  }
}

static_assert(policy::Policy::num_joints == 4 && policy::Policy::num_joint_names == 3, "joints");
static_assert(policy::Policy::joints[1].default_position == 0.25f && policy::Policy::joints[1].damping == 0.0f, "hip");
static_assert(policy::Policy::joints[1].high == 2.0f && policy::Policy::joints[0].low == -rlcore::inf, "limits");

static void errors() {
  refused([](Runner& r) { r.joints(std::vector<std::string>{"hip", "knee", "whel"}); });
  refused([](Runner& r) { r.joints(std::vector<std::string>{"hip", "wheel"}); });
  refused([](Runner& r) { r.joints(std::vector<std::string>{"hip", "hip", "wheel"}); });
  refused([](Runner& r) { r.bind("joint_poss", q); });
  refused([](Runner& r) { r.bind("joint_pos", command); });
  refused([](Runner& r) { r.bind("joint_vel", rlcore::Span(nullptr, 3)); });
  refused([](Runner& r) { r.bind_joints("joint_vel", dq); });
  refused([](Runner& r) { r.joints(robot); r.bind_joints("command", command); });
  refused([](Runner& r) { r.bind("command", command); r.start(); });
  refused([](Runner& r) { r.limits(high, low); });
  refused([](Runner& r) { r.limits(command, command); });
  refused([](Runner& r) { r.watch_joints(q); });
  refused([](Runner& r) { r.fallback(command); });
  refused([](Runner& r) { bind(r); const float far[] = {2.0f, 0.0f, 0.0f}; r.fallback(far); r.start(); });
  refused([](Runner& r) {
    r.joints(robot);
    r.bind_joints("joint_pos", q);
    r.bind_joints("joint_vel", dq);
    r.bind("actions", r.last_action());
    r.bind("command", command);
    const float far[] = {INFINITY, 0.0f, 0.0f};  // where nobody has set limits
    r.fallback(far);
    r.start();
  });
  refused([](Runner& r) { bind(r); r.joints(std::vector<std::string>{"hip", "knee", "wheel"}); });
  refused([](Runner&) { throw std::invalid_argument("end"); });
}

static void sound() {
  for (int i = 0; i < 3; ++i) q[i] = dq[i] = 0.1f;
  for (float& x : command) x = 0.0f;
}

static void tell(const char* what, const Runner& runner, const float* targets) {
  const bool fell = targets[0] == pose[0] && targets[1] == pose[1] && targets[2] == pose[2];
  std::printf("%s: %s %s%s\\n", what, rlcore::text(runner.fault()), runner.name_of(runner.blamed()).c_str(),
              fell ? " -> pose" : "");
}

static void faults() {
  rlcore::Options options;
  {
    Runner runner;
    tell("not started", runner, runner.step());
    bind(runner);
    runner.start();
    sound();
    tell("sound", runner, runner.step());
    dq[1] = NAN;
    tell("nan", runner, runner.step());
    sound();
    tell("latched", runner, runner.step());
    runner.reset();
    tell("reset", runner, runner.step());
    command[0] = -INFINITY;
    tell("infinite", runner, runner.step());
    std::printf("%d faults\\n", static_cast<int>(runner.faults()));
  }
  options.latch = false;
  {
    Runner runner(options);
    bind(runner);
    runner.start();
    sound();
    tell("first", runner, runner.step());
    float once[3], again[3];
    for (int i = 0; i < 3; ++i) once[i] = runner.action()[i];
    tell("second", runner, runner.step());
    q[0] = NAN;
    tell("nan", runner, runner.step());
    sound();
    tell("recovered", runner, runner.step());
    for (int i = 0; i < 3; ++i) again[i] = runner.action()[i];
    std::printf("begun anew: %d\\n", once[0] == again[0] && once[1] == again[1] && once[2] == again[2]);
  }
  {
    Runner runner(options);
    rlcore::Watch watch;
    watch.full_scale = 3.0f;
    watch.max_still = 2;
    bind(runner, watch);
    runner.start();
    sound();
    for (int t = 0; t < 4; ++t) tell("still", runner, runner.step());
    q[0] = 0.2f;
    tell("moves", runner, runner.step());
    q[2] = -3.0f;
    tell("full scale", runner, runner.step());
  }
  {
    Runner runner(options);
    bind(runner);
    rlcore::Watch watch;
    watch.max_age = 2;
    const int number = runner.bind("command", command, watch);
    runner.start();
    sound();
    tell("never", runner, runner.step());
    runner.updated(number);
    for (int t = 0; t < 4; ++t) tell("aging", runner, runner.step());
    runner.updated(number);
    tell("updated", runner, runner.step());
  }
  {
    Runner runner(options);
    bind(runner);
    runner.watch_joints(q);
    runner.start();
    sound();
    tell("inside", runner, runner.step());
    q[0] = 0.95f;
    tell("outside", runner, runner.step());
  }
  options.max_deviation = 20.0f;
  {
    Runner runner(options);
    bind(runner);
    runner.start();
    sound();
    tell("usual", runner, runner.step());
    command[1] = 1000.0f;
    tell("unusual", runner, runner.step());
  }
  {
    Runner runner;
    runner.joints(robot);
    runner.bind_joints("joint_pos", q);
    runner.bind_joints("joint_vel", dq);
    runner.bind("actions", runner.last_action());
    runner.bind("command", command);
    runner.start();
    q[0] = NAN;
    const float* targets = runner.step();
    std::printf("safe action: %g %g %g\\n", targets[0], targets[1], targets[2]);
  }
}

int main(int, char** argv) {
  const std::string what = argv[1];
  what == "follow" ? follow() : what == "errors" ? errors() : faults();
}
"""


@pytest.fixture(scope="module")
def robot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("robot")
    torch.manual_seed(0)
    policy, spec = legged()
    write_cpp(export_onnx(policy, spec, folder / "policy.onnx", recording=None).path, folder)
    (folder / "runner.cpp").write_text(HOOK + RUNNER)
    return folder


def followed(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What a robot senses in 300 steps, and what the observations and targets are by the metadata alone."""
    generator = np.random.default_rng(4)
    steps = 300
    sensed = generator.standard_normal((steps, 8)).astype(np.float32)
    resets = np.arange(steps) % 70 == 0
    file = OnnxPolicy(folder / "policy.onnx")
    from_robot = [ROBOT.index(name) for name in OWN]
    rows, last, history = [], np.zeros(3, np.float32), []
    for t in range(steps):
        if resets[t]:
            file.reset()
            last, history = np.zeros(3, np.float32), []
        q, dq, command = sensed[t, :3][from_robot], sensed[t, 3:6][from_robot], sensed[t, 6:]
        now = 0.5 * np.clip(q, -1.5, 1.0)
        history = [*history, now][-3:] if history else [now] * 3
        obs = np.concatenate([*history, dq * [0.1, 0.2, 0.3], last, command]).astype(np.float32)
        last = file(obs)
        hip, knee = np.clip(0.5 * last[:2] + [0.1, -0.2], [-0.3, -0.4], [0.3, 0.1])
        targets = {"hip": hip, "knee": knee, "wheel": 2 * last[2]}
        targets["wheel"] = min(max(targets["wheel"], -0.9), 0.9)
        rows.append([*obs, *(targets[name] for name in ROBOT)])
    return np.concatenate([resets[:, None], sensed], 1).astype(np.float32), np.asarray(rows, np.float32)


ERRORS = """joints: 'whel' is no joint of the policy's, which are hip, knee, wheel, mast
joints: 'knee' is missing; name all of hip, knee, wheel
joints: 'hip' comes twice; name each joint once
bind: the policy reads no 'joint_poss'; it reads policy/joint_pos, policy/joint_vel, policy/actions, goal/command
bind: 'joint_pos' takes 3 numbers (its history is kept here), and the array has 2
bind: 'joint_vel' is bound to no array
bind_joints: 'joint_vel' is in an order that is not known; call joints() first
bind_joints: 'command' has 2 numbers, and there are 3 joints; bind() it in the file's order
start: the input 'policy/joint_pos' is not bound; bind all of policy/joint_pos, policy/joint_vel, policy/actions, goal/command
limits: the lower one of joint 0 is not below the upper; set numbers in order
limits: the array has 2 numbers, and an action 3
watch_joints: there are no limits to hold the joints to; call limits() first
fallback: the pose has 2 numbers, and an action 3
start: number 0 of the fallback pose is outside of the limits; set one within
start: number 0 of the fallback pose is outside of the limits; set one within
joints: arrays are bound in the order of before; call it once, before bind_joints()
end
"""  # noqa: E501

FAULTS = """not started: missing
sound: none
nan: not finite policy/joint_vel -> pose
latched: not finite policy/joint_vel -> pose
reset: none
infinite: not finite goal/command -> pose
4 faults
first: none
second: none
nan: not finite policy/joint_pos -> pose
recovered: none
begun anew: 1
still: none
still: none
still: stale policy/joint_pos -> pose
still: stale policy/joint_pos -> pose
moves: none
full scale: saturated policy/joint_pos -> pose
never: missing goal/command -> pose
aging: none
aging: none
aging: none
aging: stale goal/command -> pose
updated: none
inside: none
outside: joint limit  -> pose
usual: none
unusual: saturated goal/command -> pose
safe action: 0.5 0.3 -0.2
"""


@BUILDS
@pytest.mark.cpu_seconds(900)
def test_runner_follows_the_metadata_and_watches(robot: Path, compiler: str, options: tuple[str, ...]) -> None:
    sensed, wanted = followed(robot)
    sensed.tofile(robot / "in")
    program = compiled(compiler, robot, "runner.cpp", *options)

    def said(what: str) -> str:
        done = subprocess.run([program, what], cwd=robot, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[:4000]
        return done.stdout

    assert said("follow") == "0 calls for memory\n300 steps, in order 1, cut off 1\n"
    got = np.fromfile(robot / "out", np.float32).reshape(300, -1)
    assert np.abs(wanted).max() > 1
    assert np.abs(got - wanted).max() <= TOLERANCE
    assert said("errors") == ERRORS
    assert [line.rstrip() for line in said("faults").splitlines()] == FAULTS.splitlines()


# What is written


@needs_gcc
def test_examples_build_by_make_and_cmake_and_the_self_test_tells_a_wrong_weight(robot: Path) -> None:
    make = ["make", "-C", str(robot), "check", "robot", "CXXFLAGS=-O1"]
    done = subprocess.run(make, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "passed: 64 steps" in done.stdout
    done = subprocess.run([robot / "robot"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "99 % within" in done.stdout
    if shutil.which("cmake"):
        build = ["cmake", "-S", str(robot), "-B", str(robot / "build"), "-DCMAKE_BUILD_TYPE=Debug"]
        for command in (build, ["cmake", "--build", str(robot / "build")]):
            subprocess.run(command, check=True, capture_output=True)
        assert subprocess.run([robot / "build" / "self_test"]).returncode == 0
    text = (robot / "policy.hpp").read_text()
    (robot / "policy.hpp").write_text(re.sub(r"(float w\d+\[\d+\] = \{\n)", r"\g<1>2.0f + ", text, count=1))
    done = subprocess.run([*make, "-B"], capture_output=True, text=True)
    (robot / "policy.hpp").write_text(text)
    assert done.returncode != 0
    assert "FAILED: 64 steps" in done.stdout


def test_golden_trace_is_what_the_file_does(tmp_path: Path) -> None:
    policy, spec = choices([2, 4, 3], True)
    generator = torch.Generator().manual_seed(0)
    recording = {g: torch.randn(20, 3, n, generator=generator) for g, n in spec.observation_sizes.items()}
    recording["allowed"] = (recording["allowed"] > 0).float()
    path = export_onnx(policy, spec, tmp_path / "policy.onnx", recording=recording).path
    text = read_metadata(path)["golden_trace"]
    trace = decoded(text)
    assert trace is not None
    assert {name: array.shape for name, array in trace.items()} == {
        "obs": (64, 14), "mask": (64, 9), "actions": (64, 3), "resets": (2,),
    }  # fmt: skip
    assert len(str(text)) < 64 * 14 * 4
    met = torch.cat([recording["policy"], recording["goal"]], -1)[:, 0].numpy()
    np.testing.assert_allclose(trace["obs"][:20], met, rtol=2**-11)
    np.testing.assert_array_equal(trace["obs"][20:40], trace["obs"][:20])
    file = OnnxPolicy(path)
    for t in range(64):
        obs = {"obs": trace["obs"][t], "allowed": trace["mask"][t]}
        np.testing.assert_array_equal(file(obs), trace["actions"][t])
    assert decoded(None) is None
    assert decoded({"steps": 2, "obs": "no"}) is None
    x = np.asarray([0.0, 1 / 3, -1e30, 1e-30], np.float32)
    assert (np.abs(rounded(x) - x) <= np.abs(x) * 2**-11).all()


def test_weights_lie_in_panels_and_numbers_are_exact() -> None:
    weight = np.arange(70 * 3, dtype=np.float32).reshape(70, 3)
    w, b = panels(weight, np.arange(70, dtype=np.float32))
    assert len(w) == 72 * 3
    assert len(b) == 72
    assert w[1 * 64 + 5] == weight[5, 1]
    assert w[64 * 3 + 2 * 8 + 4] == weight[68, 2]
    assert not b[70:].any()
    generator = np.random.default_rng(0)
    values = generator.standard_normal(1000).astype(np.float32) * 10.0 ** generator.integers(-30, 30, 1000)
    assert all(np.float32(number(x).rstrip("f")) == np.float32(x) for x in values)
    assert [number(x) for x in (1, -0.5, 1e20, math.inf)] == ["1.0f", "-0.5f", "1.00000002e+20f", "inf"]


def graph(node: str, **attributes: Any) -> Any:
    """A file with one operator on ``obs [1, 4]``."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    ends = [helper.make_tensor_value_info(name, kind, [1, 4]) for name in ("obs", "actions")]
    nodes = [helper.make_node(node, ["obs"] * attributes.pop("inputs", 1), ["actions"], name="it", **attributes)]
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    onnx.save(graph("Asinh"), str(tmp_path / "asinh.onnx"))
    with pytest.raises(ExportError, match=r"operator Asinh \(node 'it'\), which rlcore_policy.hpp lacks"):
        write_cpp(tmp_path / "asinh.onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    onnx.save(graph("Tanh"), str(tmp_path / "tanh.onnx"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"'.*file' is a file; name a folder"):
        write_cpp(tmp_path / "tanh.onnx", tmp_path / "file")
    with pytest.raises(ValueError, match="there is no ONNX file"):
        write_cpp(tmp_path / "none.onnx", tmp_path / "out")
    report = write_cpp(tmp_path / "tanh.onnx", tmp_path / "out")  # of somebody else, without metadata
    assert "map<4>(m, obs, Tanh{});" in (tmp_path / "out" / "policy.hpp").read_text()
    assert "policy_trace.hpp" not in report.written
    (tmp_path / "out" / "robot.cpp").write_text("mine")
    assert write_cpp(tmp_path / "tanh.onnx", tmp_path / "out").kept == (
        "self_test.cpp",
        "robot.cpp",
        "Makefile",
        "CMakeLists.txt",
    )
    assert (tmp_path / "out" / "robot.cpp").read_text() == "mine"


class Whole(Policy):
    """Actions by whole numbers: how many thirds the place of the largest number is, forwards and backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_sizes = {"policy": 11}

    def forward(self, obs: Obs, state: State = ()) -> tuple[torch.Tensor, State]:
        place = obs["policy"].argmax(-1, keepdim=True)
        both = torch.cat([place, -place], -1)
        return torch.div(both, 3, rounding_mode="trunc").float(), state


@needs_gcc
def test_whole_numbers_are_divided_as_such(tmp_path: Path) -> None:
    spec = spec_of(observation_sizes={"policy": 11}, action_size=2, action_low=[-9.0] * 2, action_high=[9.0] * 2)
    path = export_onnx(Whole(), spec, tmp_path / "policy.onnx", recording=None).path
    assert "Div" in {node.op_type for node in onnx.load(str(path)).graph.node}
    write_cpp(path, tmp_path)
    program = compiled("g++", tmp_path, "self_test.cpp", *SANITIZED, "-I.")
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_images_are_refused(tmp_path: Path) -> None:
    spec = spec_of(image_shapes={"camera": [3, 12, 12]}, image_types={"camera": "uint8"})
    policy = build_policy(spec, PPOConfig(actor=NetworkConfig(hidden_dims=(8,)), actor_obs=("policy", "camera")))
    path = export_onnx(policy, spec, tmp_path / "policy.onnx", recording=None).path
    assert "golden_trace" not in read_metadata(path)
    with pytest.raises(ExportError, match=r"the policy reads images \(camera\), which the C\+\+ source cannot"):
        write_cpp(path, tmp_path / "out")


def test_wrong_metadata_is_named(tmp_path: Path) -> None:
    policy, spec = legged()
    path = export_onnx(policy, spec, tmp_path / "policy.onnx", recording=None).path
    for place, key, value, message in [
        ("observation_terms", "history_length", 4, "'joint_pos' has 9 numbers, which are no 4 steps of history"),
        ("observation_terms", "scale", [1, 2], "'joint_pos' has 2 numbers in scale; give 1 or 3"),
        ("observation_terms", "slice", [90, 99], r"'joint_pos' has the slice \[90, 99\]; by the sizes"),
        ("action_terms", "clip", [[1, 2]] * 3, "'legs' has the clip .*; give a low and a high number, or 2 such"),
        ("action_terms", "clip", [1, 2, 3], "'legs' has clip .*; give a low and a high number, or such for each"),
        ("action_terms", "clip", [[1, 2], [1]], "'legs' has clip .*; give a low and a high number, or such for each"),
        ("action_terms", "scale", [1, [2]], "'legs' has scale .*; give a number or a list of such"),
        ("observation_terms", "name", None, "each needs a 'name'"),
        ("joints", "damping", 10**30, "has damping 1000.*; give a number"),
        ("action_terms", "scale", [1, None], "'legs' has scale"),
    ]:
        facts = read_metadata(path)
        facts[place][0][key] = value
        with pytest.raises(ExportError, match=message):
            write_cpp(edited(path, **{place: facts[place]}), tmp_path / "out")
    facts = read_metadata(path)
    trace = {
        "steps": 2,
        "resets": [0],
        "obs": facts["golden_trace"]["obs"],
        "actions": facts["golden_trace"]["actions"],
    }
    for change, message in [
        ({"action_terms": facts["action_terms"][:1]}, "action_terms of the file add up to 2, and there are 3"),
        ({"schema_version": 2}, "'.*edited.onnx': has schema_version 2, and this is 1; export it anew"),
        ({"control_dt": "0.02 s"}, "control_dt is '0.02 s'; give a number above 0"),
        (
            {"golden_trace": trace},
            r"golden_trace: 'obs' is \[2, \d+\], and of 17 numbers a step; export anew",
        ),
    ]:
        with pytest.raises(ExportError, match=message):
            write_cpp(edited(path, **change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def edited(path: Path, **facts: Any) -> Path:
    """A copy of a file that says something else of itself."""
    model = onnx.load(str(path))
    told = {entry.key: entry.value for entry in model.metadata_props}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, told | {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()})
    onnx.save(model, str(path.with_name("edited.onnx")))
    return path.with_name("edited.onnx")


def test_no_text_of_a_file_becomes_code(tmp_path: Path) -> None:
    policy, spec = legged()
    path = export_onnx(policy, spec, tmp_path / "policy.onnx", recording=None).path
    hostile = "a\nint evil;\r\n#include <x>\u2028\\"
    write_cpp(edited(path, task=hostile, rlcore_version=hostile), tmp_path / "out")
    lines = (tmp_path / "out" / "policy.hpp").read_text(encoding="utf-8").split("\n")
    assert [line[:2] for line in lines if "evil" in line] == ["//", "  ", "  "]
    assert all(line.startswith(("// ", "  static constexpr char ")) for line in lines if "evil" in line)


def test_numbers_that_are_none_are_left_out_or_refused(tmp_path: Path) -> None:
    policy, spec = legged()
    path = export_onnx(policy, spec, tmp_path / "policy.onnx", recording=None).path
    for std in (*(f"[{first}{', 1' * 16}]" for first in ("NaN", 10**60)), '["x"]', "3", "[1, 1]"):
        write_cpp(edited(path, observation_std=std, safe_action=std, gate='{"acts": true}'), tmp_path / "out")
        text = (tmp_path / "out" / "policy.hpp").read_text()
        assert "num_observation_std = 0" in text and "num_safe_action = 0" in text and "nanf" not in text
        assert "num_observation_mean = 17" in text and "threshold = rlcore::inf" in text
    write_cpp(edited(path, observation_std=f"[{10**30}{', 1' * 16}]"), tmp_path / "out")
    assert "num_observation_std = 17" in (tmp_path / "out" / "policy.hpp").read_text()
    model = onnx.load(str(path))
    weight = next(w for w in model.graph.initializer if len(w.dims) == 2)
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0] = math.nan
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, str(tmp_path / "nan.onnx"))
    with pytest.raises(ExportError, match=rf"not a number \(NaN\) in {weight.name}"):
        write_cpp(tmp_path / "nan.onnx", tmp_path / "other")


def test_a_deviation_is_counted_as_the_normalizer_does(tmp_path: Path) -> None:
    policy, spec = on_policy(obs_epsilon=0.25)
    path = export_onnx(policy, spec, tmp_path / "policy.onnx", recording=None).path
    for file, epsilon in ((path, 0.25), (edited(path, observation_epsilon="x"), 0.01)):
        write_cpp(file, tmp_path / "out")
        text = (tmp_path / "out" / "policy.hpp").read_text()
        assert float(re.findall(r"observation_epsilon = ([\d.e+-]+)f;", text)[0]) == epsilon
    assert "Policy::observation_std[i] + Policy::observation_epsilon" in (tmp_path / "out" / HEADERS[2]).read_text()


def test_weights_in_another_file_are_not_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor found in the present folder, where they may be those of another policy."""
    policy, spec = legged()
    path = export_onnx(policy, spec, tmp_path / "policy.onnx", recording=None).path
    (tmp_path / "copied").mkdir()
    model = onnx.load(str(path))
    onnx.save_model(
        model, str(tmp_path / "large.onnx"), save_as_external_data=True, location="large.data", size_threshold=0
    )
    (tmp_path / "large.onnx").rename(tmp_path / "copied" / "large.onnx")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match=r"'copied/large.onnx' keeps weights in another file \(policy"):
        write_cpp("copied/large.onnx", "out")


def test_choices_are_told_by_the_graph(tmp_path: Path) -> None:
    policy, spec = choices([5], False)
    path = export_onnx(policy, spec, tmp_path / "policy.onnx", recording=None).path
    model = onnx.load(str(path))
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "silent.onnx"))
    write_cpp(path, tmp_path / "out")
    assert (tmp_path / "out" / "policy_trace.hpp").is_file()
    report = write_cpp(tmp_path / "silent.onnx", tmp_path / "out")
    assert "using Action = std::int64_t;" in (tmp_path / "out" / "policy.hpp").read_text()
    # The steps of the file before it are not those of this one.
    assert "policy_trace.hpp" not in report.written and not (tmp_path / "out" / "policy_trace.hpp").exists()


def test_a_full_disk_leaves_the_program_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, spec = legged()
    path = export_onnx(policy, spec, tmp_path / "policy.onnx", recording=None).path
    write_cpp(path, tmp_path / "out")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_cpp(path, tmp_path / "out")
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


def test_trial_tells_every_value(tmp_path: Path) -> None:
    policy, spec = recurrent("lstm", 1, "before")
    path = export_onnx(policy, spec, tmp_path / "policy.onnx", recording=None, dynamic_batch=True).path
    found = trial(onnx.load(str(path)))
    model = onnx.load(str(path))
    assert {name for node in model.graph.node for name in node.output} <= set(found)
    assert found["actions"].shape == (1, 4)
    assert write_cpp(path, tmp_path / "out").parameters > 1000  # of any batch, as one row
