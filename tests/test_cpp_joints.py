"""The C++ runner with a robot that has more joints than the policy drives, such as a gripper's second finger."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_cpp import HOOK, SANITIZED, TOLERANCE, compiled, needs_gcc, spec_of, stirred

from rlcore import NetworkConfig, PPOConfig
from rlcore.export import OnnxPolicy, export_onnx, write_cpp
from rlcore.policies import build_policy

ROBOT = ("right", "base", "elbow", "left", "wrist")
"""The order of its drivers; the policy drives three of them, and reads a second finger, too."""
DRIVEN = ("wrist", "elbow", "left")
READ = ("elbow", "wrist", "left", "right")
REST = {"elbow": 0.5, "wrist": -0.25, "left": 0.02, "right": -0.02, "base": 0.0}

DRIVE = """
#include <stdexcept>
#include "policy.hpp"
#include "rlcore_runner.hpp"
using Runner = rlcore::Runner<policy::Policy>;
using Words = std::vector<std::string>;
static float q[5], dq[5], few[3];
static const Words robot = {"right", "base", "elbow", "left", "wrist"};

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

int main() {
  static Runner runner;
  const float pose[] = {0.5f, 0.0f, 0.05f}, low[] = {-9.0f, -9.0f, -9.0f}, high[] = {9.0f, 9.0f, 0.1f};
  runner.joints(robot);
  runner.bind_joints("joint_pos", q);
  rlcore::Watch watch;
  watch.max_still = 1;
  runner.bind_joints("joint_vel", dq, watch);
  runner.bind("actions", runner.last_action());
  runner.limits(low, high);
  runner.fallback(pose);
  runner.start();
  const std::vector<float> in = numbers("in");
  std::vector<float> out;
  out.reserve(2 * in.size());
  const long before = calls;
  for (std::size_t at = 0; at < in.size(); at += 10) {
    for (std::size_t i = 0; i < 5; ++i) q[i] = in[at + i], dq[i] = in[at + 5 + i];
    const float* targets = runner.step();
    for (int i = 0; i < 11; ++i) out.push_back(runner.observation()[i]);
    for (int i = 0; i < 3; ++i) out.push_back(targets[i]);
  }
  std::printf("%d faults, %ld calls for memory\\n", static_cast<int>(runner.faults()), calls - before);
  write("out", out);
  for (int i = 0; i < 3; ++i) std::printf("%s ", robot[static_cast<std::size_t>(runner.driven(i))].c_str());
  std::printf("\\n");
  dq[0] += 1.0f;
  for (int t = 0; t < 2; ++t) {
    dq[1] += 1.0f;  // the base, which the policy does not read: what it reads is still
    runner.step();
    std::printf("%s %s\\n", rlcore::text(runner.fault()), runner.name_of(runner.blamed()).c_str());
  }
  const float rest[] = {-0.02f, 0.0f, 0.5f, 0.02f, -0.25f}, mixed[] = {0.02f, 0.0f, 0.5f, -0.02f, -0.25f};
  runner.check_pose(rest);
  refused([&](Runner& r) { r.joints(robot); r.check_pose(mixed); });
  refused([&](Runner& r) { r.joints(robot); r.check_pose(few); });
  refused([](Runner& r) { r.joints(Words{"elbow", "left", "wrist", "thumb"}); });
  refused([](Runner& r) { r.joints(Words{"elbow", "right", "left"}); });
  refused([](Runner& r) { r.joints(Words{"elbow", "left", "right", "wrist", "right"}); });
  refused([](Runner& r) { r.joints(Words{"elbow", "left", "wrist"}); r.bind_joints("joint_pos", few); });
  refused([](Runner& r) { r.joints(robot); r.bind_joints("joint_pos", few); });
  refused([](Runner& r) { r.joints(robot); r.bind_joints("actions", few); });
}
"""

SAID = """0 faults, 0 calls for memory
elbow left wrist
none
stale policy/joint_vel
joints: 'left' is at -0.020000, outside of 0.000000..0.040000; is the order right?
check_pose: the array has 3 numbers, and joints() has named 5
joints: 'thumb' is no joint of the policy's, which are wrist, elbow, left, base, right
joints: 'wrist' is missing; name all of wrist, elbow, left
joints: 'right' comes twice; name each joint once
bind_joints: 'joint_pos' reads joint 'right', which joints() has not named; name it, or bind() in its order
bind_joints: 'joint_pos' is bound to an array of 3 numbers, and joints() has named 5; give one number for each
bind_joints: 'actions' is bound to an array of 3 numbers, and joints() has named 5; give one number for each
"""


def gripper() -> Any:
    """Of five joints, three of them driven by two terms, four read in another order, and one that nobody asks for."""
    limits = {"left": [0.0, 0.04], "right": [-0.04, 0.0]}
    joints = [
        {"name": name, "default_position": REST[name], "unit": "m" if name in limits else "rad"}
        | ({"position_limits": limits[name]} if name in limits else {})
        for name in ("base", "wrist", "elbow", "left", "right")
    ]
    terms = [
        {"name": "joint_pos", "size": 4, "quantity": "joint_position", "joints": list(READ), "relative_to": "default"},
        {"name": "joint_vel", "size": 4, "quantity": "joint_velocity", "joints": list(READ), "scale": 0.5},
        {"name": "actions", "size": 3, "quantity": "last_action"},
    ]
    arm = {
        "name": "arm",
        "size": 2,
        "kind": "position",
        "joints": list(DRIVEN[:2]),
        "scale": 0.5,
        "offset": [0.1, -0.2],
    }
    hand = {"name": "hand", "size": 1, "kind": "position", "joints": list(DRIVEN[2:]), "scale": 0.1}
    deployment = {"observation_terms": {"policy": terms}, "action_terms": [arm, hand], "joints": joints}
    spec = spec_of(
        observation_sizes={"policy": 11}, action_size=3, action_low=[-5.0] * 3, action_high=[5.0] * 3,
        deployment=deployment,
    )  # fmt: skip
    actor = NetworkConfig(hidden_dims=(16,))
    return stirred(build_policy(spec, PPOConfig(actor=actor, normalize_obs=True))), spec


def followed(path: Path, sensed: Any) -> Any:
    """Observations and targets of steps ``[T, 10]``, by names alone."""
    file, last, rows = OnnxPolicy(path), np.zeros(3, np.float32), []
    for row in sensed:
        q, dq = (dict(zip(ROBOT, half, strict=True)) for half in (row[:5], row[5:]))
        obs = np.array([*(q[name] for name in READ), *(0.5 * dq[name] for name in READ), *last], np.float32)
        last = file(obs)
        targets = {"wrist": 0.5 * last[0] + 0.1, "elbow": 0.5 * last[1] - 0.2, "left": 0.1 * last[2]}
        targets["wrist"] = min(targets["wrist"], 0.1)  # the limit of the last of the targets
        rows.append([*obs, *(targets[name] for name in ROBOT if name in targets)])
    return np.array(rows, np.float32)


@needs_gcc
@pytest.mark.cpu_seconds(600)
@pytest.mark.parametrize("options", [SANITIZED, ("-O2", "-DHOOK")])
def test_joints_that_are_read_and_not_driven_have_their_places(options: tuple[str, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    policy, spec = gripper()
    path = export_onnx(policy, spec, tmp_path / "policy.onnx", recording=None).path
    write_cpp(path, tmp_path)
    (tmp_path / "drive.cpp").write_text(HOOK + DRIVE)
    sensed = np.random.default_rng(0).standard_normal((200, 10)).astype(np.float32)
    sensed.tofile(tmp_path / "in")
    done = subprocess.run(
        [compiled("g++", tmp_path, "drive.cpp", *options)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[:4000]
    assert [line.rstrip() for line in done.stdout.splitlines()] == SAID.splitlines()
    wanted = followed(path, sensed)
    got = np.fromfile(tmp_path / "out", np.float32).reshape(200, -1)
    assert np.abs(wanted[:, 11:]).max() > 0.2 and (wanted[:, 13] == np.float32(0.1)).any()
    assert np.abs(got - wanted).max() <= TOLERANCE
