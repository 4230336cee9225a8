"""What a file tells a controller: the schema, the page on it, a controller made from a file alone, and other forms."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from controller import PAGE, controller_class

from rlcore import NetworkConfig, PPOConfig
from rlcore.env import EnvSpec, spec_of
from rlcore.envs.arm import end_effector_pose, unique_quaternion
from rlcore.envs.reach import Reach
from rlcore.export import (
    ExportError,
    OnnxPolicy,
    deploy_yaml,
    export_onnx,
    export_torchscript,
    read_metadata,
    shown,
)
from rlcore.export.metadata import build_metadata
from rlcore.export.schema import TABLES, VALUES, SchemaError, check_facts
from rlcore.policies import build_policy
from rlcore.recurrent import RNNConfig
from rlcore.train.cli import main

ORDER = (3, 0, 5, 1, 4, 2)
"""Of a robot's driver: places of its joints among the simulator's."""


def exported(env: Any, path: Path, **settings: Any) -> Path:
    """A policy with random weights, whose actions are not small."""
    torch.manual_seed(3)
    spec = spec_of(env)
    policy = build_policy(spec, PPOConfig(actor=NetworkConfig(hidden_dims=(16,), **settings)))
    with torch.no_grad():
        [p.mul_(40.0) for p in [m for m in policy.modules() if isinstance(m, torch.nn.Linear)][-1].parameters()]
    export_onnx(policy, spec, path, recording=None)
    return path


@pytest.fixture(scope="module")
def reach(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(Reach(num_envs=1, seed=0), tmp_path_factory.mktemp("reach") / "policy.onnx")


# A controller from the file alone. -----------------------------------------------------------------------------------


@pytest.mark.parametrize("control", ["JointPos", "JointVel", "Torque"])
def test_a_controller_from_the_file_alone_has_the_episode_of_the_env(control: str, tmp_path: Path) -> None:

    def make() -> Reach:
        return Reach(control=control, num_envs=1, seed=5, noise=0.0)

    path = exported(make(), tmp_path / "policy.onnx")
    env, arm, policy = make(), make(), OnnxPolicy(path)
    obs = env.reset(1)["policy"]
    arm.reset(1)
    names = [joint["name"] for joint in env.deployment["joints"]]
    controller = controller_class()(path, [names[i] for i in ORDER])
    back = np.argsort(ORDER)
    moved = 0.0
    for _ in range(200):
        position, quaternion = end_effector_pose(arm.model, arm.joint_position)
        measured = {
            "joint_position": arm.joint_position[0].numpy()[list(ORDER)],
            "joint_velocity": arm.joint_velocity[0].numpy()[list(ORDER)],
            "position": position[0].numpy(),
            "orientation": unique_quaternion(quaternion, 1)[0].numpy(),
            "pose": env.command[0].numpy(),
        }
        ((kind, targets),) = controller.step(measured).items()
        arm._move(kind, torch.from_numpy(targets[back])[None])
        obs = env.step(torch.from_numpy(policy(obs.numpy()))).obs["policy"]
        torch.testing.assert_close(arm.joint_position, env.joint_position, rtol=0, atol=1e-5)
        moved = max(moved, float(env.joint_velocity.abs().max()))
    assert moved > 0.3  # the comparison is about something


def test_joints_that_do_not_fit_are_refused(reach: Path) -> None:
    names = read_metadata(reach)["joint_names"]
    make = controller_class()
    for wrong, message in (
        ([*names[:5], "wrist_three"], "wrist_3_joint does not fit"),
        (names[:5], "wrist_3_joint does not fit"),
        ([*names, names[0]], "one that comes twice does not fit"),
    ):
        with pytest.raises(ValueError, match=message):
            make(reach, wrong)
    pose = {"joint_position": np.array([0.0, 0.0, 4.0, 0, 0, 0]), "joint_velocity": np.zeros(6)}
    with pytest.raises(ValueError, match=r"'elbow_joint' is at 4, outside of -3.14..3.14: is the order right\?"):
        make(reach, names).step(pose)


def test_positions_within_a_range_and_slides_have_their_own_margin(tmp_path: Path) -> None:
    terms = [
        {"name": "q", "size": 2, "quantity": "joint_position", "joints": ["b", "a"], "range": [[-1, 3], [0, 0.04]]}
    ]
    joints = [{"name": "a", "unit": "m", "position_limits": [0.0, 0.04]}, {"name": "b", "position_limits": [-1.0, 3.0]}]
    actions = [{"name": "u", "size": 1, "kind": "effort", "joints": ["a"]}]
    deployment = {"observation_terms": {"policy": terms}, "joints": joints, "action_terms": actions}
    spec = EnvSpec(
        task="Range", observation_sizes={"policy": 2}, discrete=False, action_size=1, deployment=deployment,
        action_low=[-np.inf], action_high=[np.inf],
    )  # fmt: skip
    export_onnx(build_policy(spec, PPOConfig()), spec, tmp_path / "policy.onnx", recording=None)
    assert "joint position within its range" in shown(read_metadata(tmp_path / "policy.onnx"))
    controller = controller_class()(tmp_path / "policy.onnx", ["a", "b"])
    seen: list[Any] = []
    controller.policy = lambda obs: (seen.append(obs), np.zeros(1, np.float32))[1]
    controller.step({"joint_position": [0.01, 3.05]})
    assert seen[0] == pytest.approx([1.025, -0.5])
    fresh = controller_class()(tmp_path / "policy.onnx", ["a", "b"])
    with pytest.raises(ValueError, match=r"'a' is at -0.01, outside of 0..0.04: is the order right\?"):
        fresh.step({"joint_position": [-0.01, 0.0]})


def test_history_clip_and_scale_are_those_of_the_file(tmp_path: Path) -> None:
    terms = [
        {"name": "q", "size": 6, "quantity": "joint_position", "joints": ["b", "a"], "relative_to": "default",
         "clip": [-0.5, 1.0], "scale": [2.0, 3.0], "history_length": 3},
        {"name": "mine", "size": 1, "scale": 0.5},
    ]  # fmt: skip
    joints = [{"name": "a", "default_position": 1.0}, {"name": "b", "default_position": -1.0}]
    actions = [
        {"name": "one", "size": 1, "kind": "relative_position", "joints": ["b"], "scale": 0.1, "clip": [None, 0.05]},
        {"name": "two", "size": 1, "kind": "velocity", "joints": ["a"], "offset": 7.0},
    ]
    deployment = {"observation_terms": {"policy": terms}, "joints": joints, "action_terms": actions}
    spec = EnvSpec(
        task="Two", observation_sizes={"policy": 7}, discrete=False, action_size=2, deployment=deployment,
        action_low=[-np.inf] * 2, action_high=[np.inf] * 2,
    )  # fmt: skip
    export_onnx(build_policy(spec, PPOConfig()), spec, tmp_path / "policy.onnx", recording=None)
    controller = controller_class()(tmp_path / "policy.onnx", ["a", "b"])
    seen: list[np.ndarray[Any, Any]] = []

    def act(obs: Any) -> Any:
        seen.append(obs)
        return np.array([[0.3, -0.2], [0.9, 0.1]][len(seen) > 1], np.float32)

    controller.policy = act
    first = controller.step({"joint_position": [1.25, -0.5], "mine": [4.0]})
    assert seen[0].tolist() == [1.0, 0.75] * 3 + [2.0]
    second = controller.step({"joint_position": [4.0, -3.0], "mine": [2.0]})
    assert seen[1].tolist() == [1.0, 0.75, 1.0, 0.75, -1.0, 3.0, 1.0]
    assert first["position"] == pytest.approx([np.nan, -0.5 + 0.03], nan_ok=True)
    assert second["position"] == pytest.approx([np.nan, -3.0 + 0.05], nan_ok=True)
    assert first["velocity"] == pytest.approx([6.8, np.nan], nan_ok=True)
    with pytest.raises(ValueError, match=r"'q' is \[ 0\. nan\]: let the robot rest"):  # else the clip's low
        controller.step({"joint_position": [np.nan, 0.0], "mine": [2.0]})
    assert len(seen) == 2


# The schema. ---------------------------------------------------------------------------------------------------------


def test_the_page_has_every_fact_of_the_schema() -> None:
    text = PAGE.read_text()
    told = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`.*?) \|", text, re.MULTILINE))))
    facts = {*VALUES, *TABLES, *(fact for table in TABLES.values() for fact in table)}
    assert facts <= told, facts - told


def test_the_facts_of_the_arm_are_all_in_the_schema(reach: Path) -> None:
    facts = read_metadata(reach)
    check_facts(facts)
    assert facts["schema_version"] == 1
    assert facts["control_dt"] == pytest.approx(facts["physics_dt"] * facts["decimation"])
    for table, known in TABLES.items():
        assert facts[table], table
        for row in facts[table]:
            assert row.keys() <= known.keys(), (table, row.keys() - known.keys())


GOOD: dict[str, Any] = {
    "joints": [{"name": "a"}, {"name": "b"}],
    "commands": [{"name": "go"}],
    "observation_terms": [{"name": "q", "size": 2, "quantity": "joint_position", "joints": ["a", "b"]}],
    "action_terms": [{"name": "u", "size": 2, "kind": "effort", "joints": ["b", "a"]}],
}


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("observation_terms", {"slice": [1, 3]}, r"'q' has the slice \[1, 3\]; by the sizes up to it, it is \[0, 2\]"),
        ("action_terms", {"scale": [1.0, None]}, "scale .*; give a number or a list of such"),
        ("joints", {"name": "b"}, "joints: 'b' is there twice"),
        ("joints", {"stiffness": "stiff"}, "joints: 'a' has stiffness 'stiff'; give a number"),
        ("joints", {"position_limits": [1.0]}, "'a' has position_limits .*; give two numbers"),
        ("observation_terms", {"joints": ["a", "bb"]}, "'q' has the joint 'bb', which is none of joints"),
        ("observation_terms", {"joints": ["a"]}, "'q' has 2 numbers and 1 joints; name one for each"),
        ("observation_terms", {"range": [[0, 1]]}, "'q' has the range .*; give a low and a high number for each of 2"),
        ("observation_terms", {"history_length": 3}, "2 numbers, which are no 3 steps of history"),
        ("observation_terms", {"history_length": -1}, "history_length -1; give a whole number of 0 or more"),
        ("observation_terms", {"command": "stay"}, "reads the command 'stay'"),
        ("observation_terms", {"noise": 0.1}, "noise 0.1; give a table"),
        ("action_terms", {"scale": [1.0] * 3}, "'u' has 3 numbers in scale; give 1 or 2"),
        ("action_terms", {"offset": True}, "offset True; give a number or a list of such"),
        ("action_terms", {"clip": [[0, 1]] * 3}, "'u' has the clip .*; give a low and a high number, or 2"),
        ("action_terms", {"joints": ["a"]}, "'u' has 2 numbers and 1 joints"),
        ("action_terms", {"kind": "efort"}, "'u' is of kind 'efort'; did you mean 'effort'"),
    ],
)
def test_facts_that_no_controller_could_follow_are_refused(table: str, change: dict[str, Any], message: str) -> None:
    check_facts(GOOD)
    with pytest.raises(SchemaError, match=message):
        check_facts(GOOD | {table: [GOOD[table][0] | change, *GOOD[table][1:]]})


@pytest.mark.parametrize("fact", ["control_dt", "physics_dt", "decimation"])
@pytest.mark.parametrize("value", [0, -0.02, np.inf, np.nan, "0.02 s", None])
def test_times_that_no_controller_could_keep_are_refused(fact: str, value: Any) -> None:
    with pytest.raises(SchemaError, match=f"{fact} is .*; give a (number|count) above 0"):
        check_facts(GOOD | {fact: value})


def test_a_clip_for_each_number_is_told_in_every_form(reach: Path, tmp_path: Path) -> None:
    """mjlab's layout and deploy.yaml have one for all numbers of a term."""
    facts = read_metadata(reach)
    each = [[-1.0, 1.0], *[[None, 2.0]] * 5]
    env = Reach(num_envs=1, seed=0)
    env.deployment["observation_terms"]["policy"][0]["clip"] = each
    path = exported(env, tmp_path / "policy.onnx")
    told = read_metadata(path)
    assert told["observation_terms"][0]["clip"] == each
    assert "observation_terms_clip" in facts and "observation_terms_clip" not in told
    with pytest.raises(ExportError, match="'joint_pos_rel' has a clip for each number, and the layout one for all"):
        deploy_yaml(told, ["same"])
    for same in ([[-1.0, 1.0]], [[-1.0, 1.0]] * 6):
        told["observation_terms"][0]["clip"] = same
        first = next(iter(yaml.safe_load(deploy_yaml(told, ["same"]))["observations"].values()))
        assert first["clip"] == [-1.0, 1.0]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_clip_is_shown_with_each_number_that_it_is_for(size: int) -> None:
    def rows(clip: Any) -> list[list[str]]:
        term = {"name": "u", "size": size, "slice": [0, size], "clip": clip, "scale": [0.5] * size}
        return [line.split() for line in shown({"action_terms": [term]}).splitlines()[-size:]]

    for one in ([-1.0, 2.0], [[-1.0, 2.0]]):
        assert [row[-2:] for row in rows(one)] == [["0.5", "-1..2"]] * size
    each = [[-1.0 - i, None] for i in range(size)]
    assert [row[-1] for row in rows(each)] == [f"{-1 - i}..-" for i in range(size)]


def test_an_env_that_contradicts_itself_is_refused_when_its_file_is_written(tmp_path: Path) -> None:
    env = Reach(num_envs=1, seed=0)
    env.deployment["action_terms"][0]["joints"] = ["elbow_joint", "knee"]
    with pytest.raises(ExportError, match="Reach-UR5e-JointPos: action_terms: 'joint_position' has the joint 'knee'"):
        exported(env, tmp_path / "policy.onnx")
    assert not (tmp_path / "policy.onnx").exists()


# Other forms. --------------------------------------------------------------------------------------------------------


def test_mjlabs_names_are_there_in_its_form(reach: Path) -> None:
    raw = {p.key: p.value for p in onnx.load(str(reach)).metadata_props}
    names = raw["joint_names"].split(",")
    assert names == read_metadata(reach)["joint_names"] and names[2] == "elbow_joint"
    numbers = {key: [float(x) for x in raw[key].split(",")] for key in ("joint_stiffness", "default_joint_pos")}
    assert numbers["joint_stiffness"] == [800.0] * 6 and numbers["default_joint_pos"][2] == 1.712
    assert [float(x) for x in raw["action_scale"].split(",")] == [0.5] * 6
    assert raw["observation_terms_clip"].split(",")[0].split(";") == ["-inf", "inf"]
    assert raw["observation_names"].split(",")[3] == "pose_command" and raw["command_names"] == "pose"


@pytest.mark.parametrize("control", ["JointVel", "Torque", "IK"])
def test_no_scale_is_told_in_mjlabs_form_that_its_programs_would_take_for_positions(
    control: str, tmp_path: Path
) -> None:
    path = exported(Reach(control=control, num_envs=1, seed=0), tmp_path / "policy.onnx")
    assert "action_scale" not in read_metadata(path)


def test_deploy_yaml_has_unitrees_layout(reach: Path) -> None:
    metadata = read_metadata(reach)
    names = metadata["joint_names"]
    motors = [names[i] for i in ORDER]
    content = yaml.safe_load(deploy_yaml(metadata, motors))
    assert list(content) == [
        "joint_ids_map", "step_dt", "stiffness", "damping", "default_joint_pos", "commands", "actions", "observations"
    ]  # fmt: skip
    assert [motors[place] for place in content["joint_ids_map"]] == names
    action = content["actions"]["JointPositionAction"]
    assert action["joint_ids"] is None and action["clip"] is None
    assert (action["scale"], action["offset"]) == ([0.5] * 6, content["default_joint_pos"])
    assert next(iter(content["observations"])) == "joint_pos_rel"
    assert all(entry["history_length"] == 1 for entry in content["observations"].values())
    metadata["joints"][1]["stiffness"] = 7.0  # gains are by motor
    assert yaml.safe_load(deploy_yaml(metadata, motors))["stiffness"][motors.index(names[1])] == 7.0


def test_deploy_yaml_of_a_walking_robot() -> None:
    names = ["hip", "knee", "tail"]
    metadata: dict[str, Any] = {
        "task": "Walk\nstep_dt: 9",  # a text of the file's is none of the layout's
        "control_dt": 0.02,
        "joints": [{"name": name, "default_position": 0.1 * i, "motor": 2 * i} for i, name in enumerate(names)],
        "commands": [
            {"name": "twist", "components": ["lin_vel_x", "lin_vel_y", "ang_vel_z"], "ranges": {"lin_vel_x": [-1, 1]}}
        ],
        "observation_terms": [
            {"name": "gyro", "size": 6, "quantity": "angular_velocity", "frame": "imu", "history_length": 2,
             "scale": 0.2, "clip": [None, 5.0]},
            {"name": "steer", "size": 3, "quantity": "command", "command": "twist"},
            {"name": "legs", "size": 2, "quantity": "joint_position", "relative_to": "default",
             "joints": ["knee", "hip"]},
        ],
        "action_terms": [
            {"name": "legs", "size": 2, "kind": "position", "joints": ["hip", "knee"], "scale": [1.0, 2.0],
             "clip": [[-1.0, 1.0], [None, 2.0]]}
        ],
    }  # fmt: skip
    with pytest.raises(ExportError, match="does not tell the stiffness of 'hip', and 0 would let it hang"):
        deploy_yaml(metadata)
    for joint, stiffness in zip(metadata["joints"], (30.0, 20.0), strict=False):  # the tail is nobody's
        joint |= {"stiffness": stiffness, "damping": 1.0}
    tail = metadata["joints"][2]
    with pytest.raises(ExportError, match=r"two joints are of one motor, \[0, 2, 2\]"):
        deploy_yaml(metadata | {"joints": [*metadata["joints"][:2], tail | {"motor": 2}]})
    content = yaml.safe_load(deploy_yaml(metadata))
    assert content["step_dt"] == 0.02
    assert content["joint_ids_map"] == [0, 2, 4] and content["stiffness"] == [30.0, 0.0, 20.0, 0.0, 0.0]
    assert content["commands"] == {"base_velocity": {"ranges": {"lin_vel_x": [-1, 1]}}}
    assert content["actions"]["JointPositionAction"] == {
        "clip": [[-1.0, 1.0], [-1e9, 2.0]], "joint_names": ["hip", "knee"], "scale": [1.0, 2.0], "offset": [0.0, 0.0],
        "joint_ids": [0, 1],
    }  # fmt: skip
    assert content["observations"] == {
        "base_ang_vel": {"params": {}, "clip": [-1e9, 5.0], "scale": [0.2] * 3, "history_length": 2},
        "velocity_commands": {"params": {"command_name": "base_velocity"}, "clip": None, "scale": [1.0] * 3,
                              "history_length": 1},
        "joint_pos_rel": {"params": {"asset_cfg": {"joint_ids": [1, 0]}}, "clip": None, "scale": [1.0] * 2,
                          "history_length": 1},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "motors", "message"),
    [
        ({}, (), "the order of the robot's motors is not known; name the joints .* --motors"),
        ({}, ("elbow",), "--motors: 'elbow' is no joint of the file's; did you mean"),
        ({}, ("elbow_joint",), "--motors: 'shoulder_pan_joint' is missing; name all 6 joints"),
        ({"joints": []}, ("same",), "the file does not tell joints"),
        ({"inputs": {"obs": [1, 3], "h_in": [1, 1, 8]}}, ("same",), "recurrent"),
        ({"action_kind": "discrete"}, ("same",), "choices"),
        ({"image_groups": [{"name": "camera"}]}, ("same",), "images"),
        ({"observation_delay_steps": 2}, ("same",), "delayed"),
        ({"action_terms": [{"name": "u", "size": 6, "kind": "effort", "joints": []}]}, ("same",), "of kind effort"),
    ],
)
def test_deploy_yaml_refuses_what_its_layout_cannot_say(
    change: dict[str, Any], motors: tuple[str, ...], message: str, reach: Path
) -> None:
    with pytest.raises(ExportError, match=message):
        deploy_yaml(read_metadata(reach) | change, motors)


def test_a_recurrent_policy_has_no_deploy_yaml(tmp_path: Path) -> None:
    path = exported(Reach(num_envs=1, seed=0), tmp_path / "policy.onnx", rnn=RNNConfig(type="gru", hidden_size=8))
    with pytest.raises(ExportError, match="recurrent"):
        deploy_yaml(read_metadata(path), ("same",))


def test_what_is_shown_is_aligned_and_has_units(reach: Path) -> None:
    text = shown(read_metadata(reach))
    joints = text.partition("joints (rad")[2].splitlines()
    assert len({len(line) for line in joints[1:8]}) == 1
    assert "30 Hz = 2 physics steps of 0.01667 s" in text and "joint position - default" in text
    assert all(term["name"] in text for term in read_metadata(reach)["observation_terms"])


def test_what_is_told_of_an_export_is_what_its_file_tells(tmp_path: Path) -> None:
    """Whatever the env has it in: arrays, tuples, infinite numbers."""
    joints = [{"name": name, "default_position": 0.0, "stiffness": 1.0, "damping": 1.0} for name in "ab"]
    action = {"name": "u", "size": 2, "kind": "position", "joints": ("a", "b"), "scale": (0.5, 0.25)}
    action["clip"] = ((-np.inf, 1.0), (-1.0, np.inf))
    terms = [{"name": "x", "size": 2, "clip": (-np.inf, 5.0), "scale": (1.0, 2.0)}]
    deployment = {
        "observation_terms": {"policy": terms}, "action_terms": [action], "joints": joints, "control_dt": 0.02,
    }  # fmt: skip
    spec = EnvSpec(
        task="Tuples", observation_sizes={"policy": 2}, discrete=False, action_size=2, deployment=deployment,
        action_low=[-np.inf, -1.0], action_high=[np.inf, 1.0],
    )  # fmt: skip
    policy = build_policy(spec, PPOConfig())
    for write, file in ((export_onnx, "policy.onnx"), (export_torchscript, "policy.pt")):
        report = write(policy, spec, tmp_path / file, recording=None)
        told = read_metadata(report.path)
        assert report.metadata == told
        assert told["observation_terms_clip"] == "-inf;5"
        assert shown(report.metadata) == shown(told) and "-1..-" in shown(told)
        assert deploy_yaml(report.metadata, ["same"]) == deploy_yaml(told, ["same"])
    content = yaml.safe_load(deploy_yaml(report.metadata, ["same"]))
    assert content["observations"]["x"]["clip"] == [-1e9, 5.0] and content["observations"]["x"]["scale"] == [1.0, 2.0]
    del action["clip"]  # which mjlab's layout has not
    assert build_metadata(spec, policy)["action_scale"] == "0.5,0.25"


def test_show_tells_what_the_gate_in_a_file_does() -> None:
    gate = {"threshold": 0.1, "fallback": "recovery", "horizon": 7.0, "acts": True}
    acting = "replaces actions of a risk above 0.1 of a violation within 7 steps (recovery)"
    for told, text in (
        (gate, acting),
        (gate | {"acts": False}, "tells the risk, and replaces nothing (threshold 0.1, 7 steps)"),
        ("left out", "left out; nothing keeps the file from risky actions"),
    ):
        (line,) = [line for line in shown({"gate": told}).splitlines() if line.strip().startswith("gate")]
        assert line.split(maxsplit=1)[1] == text
    assert "gate" not in shown({"task": "Bare"})


def test_show_of_a_file_that_tells_little(tmp_path: Path) -> None:
    spec = EnvSpec(task="Bare", observation_sizes={"policy": 3}, discrete=True, action_size=2)
    export_onnx(build_policy(spec, PPOConfig()), spec, tmp_path / "policy.onnx", recording=None)
    assert "policy/policy" in shown(read_metadata(tmp_path / "policy.onnx"))


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("joints", "[1, 2]", "joints is no list of tables"),
        ("joints", '{"a": 1}', "joints is no list of tables"),
        ("observation_terms", '[{"name": "q"}]', "observation_terms: a row is .*; each needs a 'size'"),
        ("observation_terms", '[{"name": "q", "size": 1}]', "observation_terms: a row is .*; each needs a 'slice'"),
        ("observation_terms", '[{"name": null}]', "each needs a 'name'"),
        ("inputs", "[1]", "'.*policy.onnx' tells of itself what no export writes .*; export it anew"),
        ("action_low", '{"a": 1}', "tells of itself what no export writes .KeyError"),
        ("control_dt", "0", "control_dt is 0; give a number above 0"),
        ("action_terms", '[{"size": 6}]', "each needs a 'name'"),
        ("commands", '[{"name": "pose", "ranges": 3}]', "ranges 3; give a table"),
        ("schema_version", "2", "has schema_version 2, and this is 1; export it anew"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(
    key: str, text: str, message: str, reach: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(str(reach))
    for entry in model.metadata_props:
        entry.value = text if entry.key == key else entry.value
    onnx.save(model, str(tmp_path / "policy.onnx"))
    assert main(["export", "--onnx", str(tmp_path / "policy.onnx"), "--show"]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and len(said.splitlines()) == 1


def test_a_file_of_another_kind_or_nothing_to_do_is_told(
    reach: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.onnx").touch()
    torch.save({}, tmp_path / "checkpoint.pt")
    for words, fault in (
        (["export", "--onnx", str(reach)], "add --show, --cpp DIR or --deploy-yaml FILE"),
        (["export", "--onnx", str(tmp_path / "empty.onnx"), "--show"], "has no schema_version: rlcore did not"),
        (["eval", "--onnx", str(tmp_path / "checkpoint.pt")], "is a checkpoint or a TorchScript file of PyTorch's"),
    ):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert fault in said and len(said.splitlines()) == 1


def test_the_commands_of_the_page_write_and_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import glob
    import shlex

    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    for line in block.splitlines():
        words = [found for word in shlex.split(line)[1:] for found in glob.glob(word) or [word]]
        assert main([*words, *(["--eval-envs", "4"] if words[0] == "train" else [])]) == 0
    said = capsys.readouterr().out
    assert "joints (rad" in said and "deploy    deploy.yaml" in said
    assert yaml.safe_load(Path("deploy.yaml").read_text())["step_dt"] == pytest.approx(1 / 30)
    (file,) = glob.glob("runs/*/*/*/export/policy.onnx")
    assert main(["export", "--onnx", file, "--deploy-yaml", "other.yaml"]) == 1
    assert main(["export", "--onnx", file, "--run", "runs"]) == 2
    assert main(["export", "--onnx", file, "--motors", "same"]) == 2
    errors = capsys.readouterr().err
    assert "the order of the robot's motors is not known" in errors and not Path("other.yaml").exists()
    assert "--run is for a run" in errors and "--motors is for --deploy-yaml FILE" in errors
