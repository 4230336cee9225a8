"""Of mjlab's real tasks: what is told, and a controller from the file alone in the place of the env's own code."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from controller import controller_class

from rlcore import NetworkConfig, PPOConfig
from rlcore.env import spec_of
from rlcore.envs import make_env
from rlcore.export import OnnxPolicy, deploy_yaml, export_onnx, read_metadata, write_cpp
from rlcore.export.schema import TABLES, check_facts
from rlcore.policies import build_policy

pytest.importorskip("mjlab", reason="mjlab is not installed")
pytestmark = pytest.mark.cpu_seconds(1800)  # the simulator compiles its kernels when it runs for the first time

STEPS = 40
GO1 = "Mjlab-Velocity-Flat-Unitree-Go1"
QUIET: dict[str, Any] = {"observations.actor.enable_corruption": False, "events.push_robot": None, "terminations": {}}


def file_of(env: Any, path: Path, scale: float) -> Path:
    """A policy with random weights that reads what the task's actor reads."""
    torch.manual_seed(3)
    spec = spec_of(env)
    config = PPOConfig(actor=NetworkConfig(hidden_dims=(16,)), actor_obs=("actor",), critic_obs=("critic",))
    policy = build_policy(spec, config)
    with torch.no_grad():
        [p.mul_(scale) for p in [m for m in policy.modules() if isinstance(m, torch.nn.Linear)][-1].parameters()]
    export_onnx(policy, spec, path, recording=None)
    return path


@pytest.fixture(scope="module")
def go1() -> Iterator[tuple[Any, Any]]:
    """Two of the same, with encoders that are off and all that is drawn at the start."""
    envs = [make_env(GO1, 1, seed=4, **QUIET) for _ in range(2)]
    yield envs[0], envs[1]
    for env in envs:
        env.close()


class Robot:
    """Joints and sensors of env 0, by the names that the simulator's model has, in an order of its driver's own."""

    def __init__(self, core: Any, names: list[str]) -> None:
        self.core, self.robot = core, core.scene["robot"]
        self.ids = [self.robot.joint_names.index(name) for name in names]

    def sensor(self, name: str) -> Any:
        sensor = self.core.sim.mj_model.sensor(name)
        first, size = int(sensor.adr[0]), int(sensor.dim[0])
        return self.core.sim.data.sensordata[0, first : first + size].numpy()

    def measured(self) -> dict[str, Any]:
        w, x, y, z = self.core.sim.data.qpos[0, 3:7].double().numpy()
        down = -np.array(
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]
        )  # third row of the rotation
        encoders = self.robot.data.joint_pos + self.robot.data.encoder_bias
        return {
            "joint_position": encoders[0, self.ids].numpy(),
            "joint_velocity": self.robot.data.joint_vel[0, self.ids].numpy(),
            "linear_velocity": self.sensor("robot/imu_lin_vel"),
            "angular_velocity": self.sensor("robot/imu_ang_vel"),
            "projected_gravity": down,
        }

    def drive(self, positions: Any) -> None:
        """One control step; the drives have the encoders' bias, too."""
        core, bias = self.core, self.robot.data.encoder_bias[:, self.ids]
        for _ in range(core.cfg.decimation):
            self.robot.set_joint_position_target(torch.from_numpy(positions)[None] - bias, torch.tensor(self.ids))
            core.scene.write_data_to_sim()
            core.sim.step()
            core.scene.update(dt=core.physics_dt)
        core.sim.forward()


def test_a_controller_from_the_file_alone_walks_as_the_adapter_does(go1: tuple[Any, Any], tmp_path: Path) -> None:
    env, other = go1
    path = file_of(env, tmp_path / "policy.onnx", 60.0)
    policy, facts = OnnxPolicy(path), read_metadata(path)
    names = [str(name) for name in np.random.default_rng(0).permutation(facts["joint_names"])]
    obs = env.reset(7)["actor"]
    other.reset(7)
    robot, controller = Robot(other.core, names), controller_class()(path, names)
    assert robot.robot.data.encoder_bias.abs().max() > 0
    differences, acted, moved = [], 0.0, 0.0
    for _ in range(60):
        command = env.core.command_manager.get_command("twist")[0].numpy()
        targets = controller.step({**robot.measured(), "twist": command})
        assert list(targets) == ["position"]
        robot.drive(targets["position"])
        action = policy(obs.numpy())
        acted = max(acted, float(np.abs(action).max()))
        obs = env.step(torch.from_numpy(action)).obs["actor"]
        mine, own = robot.robot.data, env.core.scene["robot"].data
        moved = max(moved, float(own.joint_vel.abs().max()))
        differences.append(float((mine.joint_pos - own.joint_pos).abs().max()))
    print(f"largest difference of a joint {max(differences):.2g} rad, actions up to {acted:.2g}")
    assert acted > 0.3 and moved > 1.0  # the comparison is about something
    assert max(differences) < 1e-3
    assert torch.allclose(other.core.sim.data.qpos, env.core.sim.data.qpos, atol=1e-3)


def test_joints_of_another_name_or_in_another_order_are_refused(go1: tuple[Any, Any], tmp_path: Path) -> None:
    env, other = go1
    path = file_of(env, tmp_path / "policy.onnx", 1.0)
    names = read_metadata(path)["joint_names"]
    with pytest.raises(ValueError, match="FR_calf_joint does not fit"):
        controller_class()(path, [name.replace("FR_calf_joint", "FR_knee") for name in names])
    other.reset(7)
    swapped = [names[i] for i in (0, 2, 1, *range(3, 12))]  # thigh and calf, as a driver might have them
    robot = Robot(other.core, names)
    with pytest.raises(ValueError, match=r"'FR_calf_joint' is at 0\..*: is the order right\?"):
        controller_class()(path, swapped).step({**robot.measured(), "twist": np.zeros(3)})


def test_what_is_told_of_go1(go1: tuple[Any, Any], tmp_path: Path) -> None:
    env, _ = go1
    facts = read_metadata(file_of(env, tmp_path / "policy.onnx", 1.0))
    check_facts(facts)
    for table, known in TABLES.items():
        assert all(row.keys() <= known.keys() for row in facts[table]), table
    assert facts["control_dt"] == pytest.approx(facts["physics_dt"] * facts["decimation"]) == pytest.approx(0.02)
    # mjlab's own exporter reads the same from the same env.
    from mjlab.rl.exporter_utils import get_base_metadata

    own = get_base_metadata(env.core, "run")
    assert facts["joint_names"] == own["joint_names"] and facts["command_names"] == own["command_names"]
    assert facts["observation_names"] == own["observation_names"]
    for key in ("joint_stiffness", "joint_damping", "default_joint_pos", "action_scale"):
        assert [float(x) for x in facts[key].split(",")] == pytest.approx(own[key]), key
    assert facts["observation_terms_clip"].split(",") == ["-inf;inf"] * 7
    by_name = {term["name"]: term for term in facts["observation_terms"]}
    assert by_name["base_ang_vel"]["frame"] == "imu" and by_name["base_ang_vel"]["unit"] == "rad/s"
    assert by_name["command"]["command"] == "twist" and by_name["joint_pos"]["relative_to"] == "default"
    assert facts["joints"][2]["effort_limit"] == pytest.approx(35.55)
    assert facts["commands"][0]["ranges"]["lin_vel_x"] == [-1.0, 1.0]
    assert "base_velocity" in deploy_yaml(facts, ("same",))


def test_lift_cube_tells_of_eight_joints_and_drives_seven(tmp_path: Path) -> None:
    env: Any = make_env("Mjlab-Lift-Cube-Yam", 1, seed=0)
    facts = read_metadata(file_of(env, tmp_path / "policy.onnx", 1.0))
    env.close()
    check_facts(facts)
    assert len(facts["joints"]) == len(facts["observation_terms"][0]["joints"]) == 8
    (action,) = facts["action_terms"]
    assert len(action["joints"]) == action["size"] == 7 and "right_finger" not in action["joints"]
    units = {joint["name"]: joint["unit"] for joint in facts["joints"]}
    assert units["joint1"] == "rad" and units["right_finger"] == units["left_finger"] == "m"
    assert "unit" not in facts["observation_terms"][0]  # of hinges and slides
    assert "stiffness" not in facts["joints"][-1] and facts["joint_stiffness"].count(",") == 6
    assert facts["joints"][-1]["mimic"] == {"joint": "left_finger", "multiplier": -1.0, "offset": 0.0}


class Arm(Robot):
    """With what the task's own terms are in plain words: hand to cube and cube to goal, in the robot's frame."""

    def measured(self) -> dict[str, Any]:
        model, data = self.core.sim.mj_model, self.core.sim.data
        hand = data.site_xpos[0, model.site("robot/grasp_site").id].double().numpy()
        body = model.body("robot/" + self.robot.body_names[0]).id
        cube = data.xpos[0, model.body("cube/" + self.core.scene["cube"].body_names[0]).id].double().numpy()
        goal = self.core.command_manager.get_command("lift_height")[0].double().numpy()
        turned = data.xmat[0, body].double().numpy().reshape(3, 3).T
        return {
            "joint_position": (self.robot.data.joint_pos + self.robot.data.encoder_bias)[0, self.ids].numpy(),
            "joint_velocity": self.robot.data.joint_vel[0, self.ids].numpy(),
            "ee_to_cube": turned @ (cube - hand),
            "cube_to_goal": turned @ (goal - cube),
        }

    def drive(self, positions: Any) -> None:
        driven = np.flatnonzero(~np.isnan(positions))
        ids, self.ids = self.ids, [self.ids[i] for i in driven]
        super().drive(positions[driven])
        self.ids = ids


LIFT_PROGRAM = """
#include <cstdio>
#include <stdexcept>
#include "policy.hpp"
#include "rlcore_runner.hpp"
using policy::Policy;

int main(int count, char** names) {
  constexpr int joints = Policy::num_joints;
  static rlcore::Runner<Policy> runner;
  static float q[joints], dq[joints], relative[joints], hand[3], goal[3], rest[joints];
  const std::vector<std::string> robot(names + 1, names + count);
  try {
    runner.joints(robot);
    runner.bind_joints("joint_pos", relative);
    runner.bind_joints("joint_vel", dq);
    runner.bind("ee_to_cube", hand);
    runner.bind("cube_to_goal", goal);
    runner.bind("actions", runner.last_action());
    std::vector<float> pose;
    for (int j = 0; j < joints; ++j)
      for (int i = 0; i < joints; ++i)
        if (robot[static_cast<std::size_t>(i)] == Policy::joints[j].name) rest[i] = Policy::joints[j].default_position;
    for (int i = 0; i < Policy::action_size; ++i) pose.push_back(rest[runner.driven(i)]);
    runner.fallback(pose.data(), Policy::action_size);
    runner.start();
    for (bool first = true; std::fread(q, sizeof q, 1, stdin) == 1; first = false) {
      if (std::fread(dq, sizeof dq, 1, stdin) + std::fread(hand, sizeof hand, 1, stdin) +
          std::fread(goal, sizeof goal, 1, stdin) != 3) return 3;
      if (first) runner.check_pose(q);
      for (int i = 0; i < joints; ++i) relative[i] = q[i] - rest[i];
      const float* targets = runner.step();
      float sent[joints];
      for (float& x : sent) x = NAN;
      for (int i = 0; i < Policy::action_size; ++i) sent[runner.driven(i)] = targets[i];
      std::fwrite(sent, sizeof sent, 1, stdout);
      std::fflush(stdout);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\\n", error.what());
    return 2;
  }
  return runner.faults() != 0;
}
"""


class InCpp:
    """The same controller as a program."""

    def __init__(self, path: Path, names: list[str]) -> None:
        folder = path.parent / "cpp"
        write_cpp(path, folder)
        (folder / "lift.cpp").write_text(LIFT_PROGRAM)
        command = ["g++", "-std=c++17", "-O2", "lift.cpp", "-o", "lift"]
        subprocess.run(command, cwd=folder, check=True)
        pipe = subprocess.PIPE
        self.program = subprocess.Popen([folder / "lift", *names], stdin=pipe, stdout=pipe, stderr=pipe)
        self.joints = len(names)

    def step(self, measured: dict[str, Any]) -> dict[str, Any]:
        assert self.program.stdin is not None and self.program.stdout is not None
        order = ("joint_position", "joint_velocity", "ee_to_cube", "cube_to_goal")
        self.program.stdin.write(np.concatenate([measured[name] for name in order]).astype(np.float32).tobytes())
        self.program.stdin.flush()
        return {"position": np.frombuffer(self.program.stdout.read(4 * self.joints), np.float32).copy()}

    def end(self) -> tuple[int, str]:
        _, said = self.program.communicate()
        return self.program.returncode, said.decode()


def test_a_gripper_with_a_finger_that_follows_is_driven_in_python_and_in_cpp(tmp_path: Path) -> None:
    quiet = {key: value for key, value in QUIET.items() if not key.startswith("events.")}
    lift = [make_env("Mjlab-Lift-Cube-Yam", 1, seed=4, **quiet) for _ in range(2)]
    env, other = lift
    path = file_of(env, tmp_path / "policy.onnx", 100.0)
    policy, names = OnnxPolicy(path), read_metadata(path)["joint_names"]
    assert sorted(names) == sorted(env.core.scene["robot"].joint_names) and len(names) == 8
    names = [str(name) for name in np.random.default_rng(1).permutation(names)]
    obs = env.reset(7)["actor"]
    episode, acted = [], 0.0
    for _ in range(STEPS):
        action = policy(obs.numpy())
        acted = max(acted, float(np.abs(action).max()))
        obs = env.step(torch.from_numpy(action)).obs["actor"]
        episode.append(env.core.scene["robot"].data.joint_pos.clone())
    still = env.core.scene["robot"].data.default_joint_pos
    gone = max(float((position - still).abs().max()) for position in episode)
    assert acted > 0.3 and gone > 0.1 and float((episode[-1] - still)[0, 6:].abs().min()) > 1e-3  # fingers, too
    for controller in (controller_class()(path, names), InCpp(path, names) if shutil.which("g++") else None):
        if controller is None:
            continue
        other.reset(7)
        robot, differences = Arm(other.core, names), []
        for own in episode:
            targets = controller.step(robot.measured())["position"]
            assert [names[i] for i in np.flatnonzero(np.isnan(targets))] == ["right_finger"]
            robot.drive(targets)
            differences.append(float((robot.robot.data.joint_pos - own).abs().max()))
        print(f"{type(controller).__name__}: largest difference of a joint {max(differences):.2g}, gone {gone:.2g}")
        assert max(differences) < 1e-3
        if isinstance(controller, InCpp):
            assert controller.end() == (0, "")
    # Renamed joints, and fingers in each other's place.
    right = names.index("right_finger")
    swapped = [{"left_finger": "right_finger", "right_finger": "left_finger"}.get(name, name) for name in names]
    other.reset(7)
    measured = Arm(other.core, names).measured()
    with pytest.raises(ValueError, match="right_finger does not fit"):
        controller_class()(path, [*names[:right], "finger_2", *names[right + 1 :]])
    with pytest.raises(ValueError, match=r"'\w+_finger' is at .*: is the order right\?"):
        controller_class()(path, swapped).step(measured)
    if shutil.which("g++"):
        program = InCpp(path, swapped)
        assert program.step(measured)["position"].size == 0
        code, said = program.end()
        assert code == 2 and "_finger' is at " in said and "is the order right?" in said
        code, said = InCpp(path, [*names[:right], "finger_2", *names[right + 1 :]]).end()
        assert code == 2 and "'finger_2' is no joint of the policy's" in said
    for one in lift:
        one.close()


def test_commands_can_be_given_by_hand(go1: tuple[Any, Any]) -> None:
    env, _ = go1
    env.reset(7)
    first, end = 45, 48  # the command is the last term
    env.steer("twist", torch.tensor([0.5, float("nan"), -0.2]))
    for _ in range(3):
        obs = env.step(torch.zeros(1, 12)).obs["actor"]
        assert obs[0, [first, end - 1]].tolist() == pytest.approx([0.5, -0.2])
    with pytest.raises(ValueError, match="no command 'go' to steer; there are twist"):
        env.steer("go", torch.zeros(3))
    env._held.release()
