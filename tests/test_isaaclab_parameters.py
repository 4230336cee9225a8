"""Physical parameters and pushes of robots in Isaac Lab, on an articulation in small."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlcore.config import ConfigError
from rlcore.envs import make_env
from rlcore.envs.isaaclab_parameters import NONE_OF_ISAACLAB3, isaaclab_physics
from rlcore.envs.randomize import randomized, split_randomize

N = 4


class View:
    """PhysX's view: masses of all envs are set at once, those of some take effect."""

    def __init__(self) -> None:
        self.masses = torch.tensor([[4.0, 1.0, 1.0]]).repeat(N, 1)
        self.inertias = torch.rand(1, 3, 9).repeat(N, 1, 1)

    def get_masses(self) -> Tensor:
        return self.masses

    def get_inertias(self) -> Tensor:
        return self.inertias

    def set_masses(self, masses: Tensor, indices: Tensor) -> None:
        self.masses = self.masses.clone()
        self.masses[indices] = masses[indices]

    def set_inertias(self, inertias: Tensor, indices: Tensor) -> None:
        self.inertias = self.inertias.clone()
        self.inertias[indices] = inertias[indices]


class ImplicitActuator(SimpleNamespace):
    """Drives that the simulator computes."""


class Robot:
    """An articulation: two joints with drives of each kind, and what was written to the simulator."""

    num_joints = 2
    is_fixed_base = False

    def __init__(self) -> None:
        self.root_physx_view = View()
        gains = {"stiffness": 20.0, "damping": 2.0, "effort_limit": 30.0}
        tensors = [{name: torch.full((N, 1), x) for name, x in gains.items()} for _ in range(2)]
        self.actuators = {
            "hips": ImplicitActuator(joint_indices=[0], **tensors[0]),
            "knees": SimpleNamespace(joint_indices=[1], **tensors[1]),
        }
        self.data = SimpleNamespace(
            joint_pos=torch.zeros(N, 2),
            joint_armature=torch.full((N, 2), 0.1),
            joint_friction_coeff=torch.zeros(N, 2),
            root_vel_w=torch.arange(6.0).repeat(N, 1),
        )
        self.written: dict[str, Any] = {}

    def write_joint_stiffness_to_sim(self, value: Tensor, joint_ids: Any = None, env_ids: Any = None) -> None:
        self.written["stiffness"] = (value.tolist(), joint_ids, env_ids.tolist())

    def write_joint_damping_to_sim(self, value: Tensor, joint_ids: Any = None, env_ids: Any = None) -> None:
        self.written["damping"] = (value.tolist(), joint_ids, env_ids.tolist())

    def write_joint_effort_limit_to_sim(self, value: Tensor, joint_ids: Any = None, env_ids: Any = None) -> None:
        self.written["effort_limit"] = (value.tolist(), joint_ids, env_ids.tolist())

    def write_joint_armature_to_sim(self, value: Tensor, joint_ids: Any = None, env_ids: Any = None) -> None:
        self.data.joint_armature[env_ids] = value

    def write_joint_friction_coefficient_to_sim(self, value: Tensor, env_ids: Any = None) -> None:
        raise AssertionError("it is 0: a factor changes nothing")

    def write_root_velocity_to_sim(self, value: Tensor, env_ids: Any = None) -> None:
        self.data.root_vel_w[env_ids] = value


def core(**values: Any) -> Any:
    return SimpleNamespace(num_envs=N, device="cpu", scene=SimpleNamespace(articulations={"robot": Robot()}), **values)


def row(*numbers: float) -> Tensor:
    return torch.tensor(numbers)


def test_masses_scale_with_inertias_and_carry_a_payload_in_the_envs_that_are_meant() -> None:
    env = core()
    physics = isaaclab_physics("Task", env, [])
    assert physics is not None
    assert set(physics.parameters) == {"mass", "payload", "stiffness", "damping", "effort_limit", "armature"}
    assert physics.parameters["payload"].high == pytest.approx(1.2)
    view = env.scene.articulations["robot"].root_physx_view
    inertias = view.inertias.clone()
    physics.set({"mass": row(1.5, 2.0, 2.0, 1.0)}, row(1, 1, 0, 1).bool())
    physics.set({"payload": row(0.5, 9.0, 9.0, 1.0)}, row(1, 0, 0, 1).bool())
    assert view.masses.tolist() == [[6.5, 1.5, 1.5], [8, 2, 2], [4, 1, 1], [5, 1, 1]]
    torch.testing.assert_close(view.inertias, inertias * row(1.5, 2.0, 1.0, 1.0)[:, None, None])
    physics.set({"mass": torch.ones(N), "payload": torch.zeros(N)}, torch.ones(N).bool())
    assert view.masses.tolist() == [[4, 1, 1]] * N and torch.equal(view.inertias, inertias)


def test_drives_of_both_kinds_are_scaled_from_what_they_were() -> None:
    env = core()
    robot = env.scene.articulations["robot"]
    physics = isaaclab_physics("Task", env, [])
    assert physics is not None
    for factor in (0.5, 1.25):  # a factor is on what was there first
        physics.set({name: torch.full((N,), factor) for name in ("stiffness", "armature")}, row(0, 1, 0, 1).bool())
        for actuator in robot.actuators.values():
            assert actuator.stiffness[:, 0].tolist() == [20, 20 * factor, 20, 20 * factor]
            assert actuator.damping[:, 0].tolist() == [2] * N
        assert robot.written == {"stiffness": ([[20 * factor]] * 2, [0], [1, 3])}
        torch.testing.assert_close(robot.data.joint_armature[1], torch.full((2,), 0.1 * factor))
    with pytest.raises(ValueError, match="Task: there is no parameter 'stifness'; did you mean 'stiffness'"):
        physics.set({"stifness": torch.ones(N)}, torch.ones(N).bool())


def test_a_push_is_of_the_root_and_horizontal() -> None:
    env = core()
    physics = isaaclab_physics("Task", env, [])
    assert physics is not None and physics.movable
    velocity = env.scene.articulations["robot"].data.root_vel_w
    before = velocity.clone()
    physics.push(row(0.0, 1.0, 0.0, 0.5))
    torch.testing.assert_close((velocity - before)[:, :2].norm(dim=1), row(0.0, 1.0, 0.0, 0.5))
    assert not (velocity - before)[:, 2:].any()


def test_a_stage_brings_back_what_was_set() -> None:
    env, other = core(), core()
    physics, again = isaaclab_physics("Task", env, []), isaaclab_physics("Task", other, [])
    assert physics is not None and again is not None and physics.stage() == {}
    physics.set({"mass": row(1.5, 2.0, 2.0, 1.0)}, torch.ones(N).bool())
    put_back = physics.hold()
    again.load(physics.stage())
    robots = [x.scene.articulations["robot"].root_physx_view for x in (env, other)]
    assert torch.equal(robots[0].masses, robots[1].masses)
    physics.set({"mass": torch.ones(N)}, torch.ones(N).bool())
    put_back()
    assert torch.equal(robots[0].masses, robots[1].masses)


def test_what_an_event_sets_while_it_runs_is_no_parameter() -> None:
    def randomize_actuator_gains() -> None: ...

    events = SimpleNamespace(
        active_terms={"reset": ["gains"]}, get_term_cfg=lambda name: SimpleNamespace(func=randomize_actuator_gains)
    )
    notes: list[str] = []
    physics = isaaclab_physics("Task", core(event_manager=events), notes)
    assert physics is not None and not {"stiffness", "damping"} & physics.parameters.keys()
    assert notes == [
        f"{name} is no parameter: the event gains of the task sets it while it runs"
        for name in ("stiffness", "damping")
    ]


def test_envs_without_such_a_robot_have_none() -> None:
    assert isaaclab_physics("Task", SimpleNamespace(num_envs=N, device="cpu"), []) is None
    other = core()
    other.scene.articulations["robot"].data.joint_pos = object()  # an array of another kind
    assert isaaclab_physics("Task", other, []) is None


def test_isaac_lab_3_is_refused_with_the_reason() -> None:
    proxy = SimpleNamespace(torch=torch.zeros(N, 2))  # what its data are
    robot = SimpleNamespace(num_joints=2, data=SimpleNamespace(joint_pos=proxy))
    notes: list[str] = []
    core: Any = SimpleNamespace(scene=SimpleNamespace(articulations={"robot": robot}), num_envs=N, device="cpu")
    assert isaaclab_physics("Isaac-Reach-Franka", core, notes) is None
    assert notes == [NONE_OF_ISAACLAB3]
    env: Any = make_env("Memory", N)
    env.notes = notes
    config, _ = split_randomize({"randomize.mass": [0.7, 1.3]})
    assert config is not None
    with pytest.raises(ConfigError, match=r"randomize.mass: .*no physical parameters with Isaac Lab 3"):
        randomized(env, config)
