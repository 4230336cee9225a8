"""Kinematics and quaternions of the built-in arms against independent float64 computations."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlcore.envs.arm import (
    UR5E,
    UR10,
    ArmModel,
    damped_least_squares,
    end_effector_pose,
    forward_kinematics,
    jacobian,
    joint_axes,
    matrix_from_quaternion,
    quaternion_from_matrix,
    rotation_angle,
    unique_quaternion,
)

Array = NDArray[np.float64]

# Read off the zero pose in base_link, arm stretched along +x: shoulder height, upper arm, forearm, shoulder offset,
# wrist drop, flange length.
SIZES = {
    "UR5e": (0.1625, 0.425, 0.3922, 0.1333, 0.0997, 0.0996),
    "UR10": (0.1273, 0.612, 0.5723, 0.163941, 0.1157, 0.0922),
}
ARMS = pytest.mark.parametrize("model", [UR5E, UR10], ids=lambda model: model.name)


def skew(v: Array) -> Array:
    return np.array([[0.0, -v[2], v[1]], [v[2], 0.0, -v[0]], [-v[1], v[0], 0.0]])


def screw(axis: Array, point: Array, angle: float) -> Array:
    """Rotation by an angle about a line, as a homogeneous transform (Rodrigues)."""
    k = skew(axis)
    rotation = np.eye(3) + math.sin(angle) * k + (1 - math.cos(angle)) * k @ k
    transform = np.eye(4)
    transform[:3, :3] = rotation
    transform[:3, 3] = point - rotation @ point
    return transform


def product_of_exponentials(name: str, q: Array) -> Array:
    """End-effector transform from screw axes of the zero pose; knows nothing of DH."""
    height, upper, fore, offset, drop, flange = SIZES[name]
    y, z = np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])
    lines = [
        (z, (0, 0, 0)),
        (y, (0, 0, height)),
        (y, (upper, 0, height)),
        (y, (upper + fore, 0, height)),
        (-z, (upper + fore, offset, height)),
        (y, (upper + fore, offset, height - drop)),
    ]
    transform = np.eye(4)
    for (axis, point), angle in zip(lines, q, strict=True):
        transform = transform @ screw(axis, np.array(point, dtype=float), angle)
    zero = np.eye(4)
    zero[:3, :3] = np.array([[-1, 0, 0], [0, 0, 1], [0, 1, 0]])
    zero[:3, 3] = (upper + fore, offset + flange, height - drop)
    return transform @ zero


def random_joints(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.rand(count, 6, generator=generator, dtype=torch.float64) - 1) * 2 * math.pi


def random_quaternions(count: int, seed: int = 0) -> Tensor:
    q = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return q / q.norm(dim=1, keepdim=True)


@ARMS
def test_forward_kinematics_equal_the_product_of_exponentials(model: ArmModel) -> None:
    q = random_joints(200)
    expected = np.stack([product_of_exponentials(model.name, row) for row in q.numpy()])
    position, rotation = forward_kinematics(model, q)
    np.testing.assert_allclose(position.numpy(), expected[:, :3, 3], atol=1e-12)
    np.testing.assert_allclose(rotation.numpy(), expected[:, :3, :3], atol=1e-12)
    position, quaternion = end_effector_pose(model, q)
    np.testing.assert_allclose(position.numpy(), expected[:, :3, 3], atol=1e-12)
    np.testing.assert_allclose(matrix_from_quaternion(quaternion).numpy(), expected[:, :3, :3], atol=1e-12)


@ARMS
def test_forward_kinematics_stay_within_a_micrometer_in_float32(model: ArmModel) -> None:
    q = random_joints(200)
    exact, _ = forward_kinematics(model, q)
    position, quaternion = end_effector_pose(model, q.float())
    assert (position.double() - exact).abs().max() < 2e-6
    assert (quaternion.norm(dim=1) - 1).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("model", "expected"),
    [(UR5E, (0.3323875, 0.2329, 0.4835701)), (UR10, (0.4861700, 0.256141, 0.6175095))],
    ids=["UR5e", "UR10"],
)
def test_home_reaches_forward_with_the_tool_sideways(model: ArmModel, expected: tuple[float, ...]) -> None:
    # By hand: x = forearm + upper * cos(1.712), z = height + upper * sin(1.712) - drop, y = offset + flange.
    position, rotation = forward_kinematics(model, torch.tensor([model.home]))
    torch.testing.assert_close(position, torch.tensor([expected]), atol=1e-6, rtol=0)
    expected_rotation = torch.tensor([[[-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])
    torch.testing.assert_close(rotation, expected_rotation, atol=1e-6, rtol=0)


@ARMS
def test_jacobian_equals_derivatives_of_position_and_rotation(model: ArmModel) -> None:
    q = random_joints(20, seed=1)
    actual = jacobian(model, q)
    step = 1e-6
    for j in range(6):
        plus, minus = q.clone(), q.clone()
        plus[:, j] += step
        minus[:, j] -= step
        (p1, r1), (p0, r0) = forward_kinematics(model, plus), forward_kinematics(model, minus)
        torch.testing.assert_close(actual[:, :3, j], (p1 - p0) / (2 * step), atol=1e-8, rtol=0)
        _, rotation = forward_kinematics(model, q)
        spin = (r1 - r0) / (2 * step) @ rotation.transpose(1, 2)
        omega = torch.stack((spin[:, 2, 1], spin[:, 0, 2], spin[:, 1, 0]), dim=1)
        torch.testing.assert_close(actual[:, 3:, j], omega, atol=1e-8, rtol=0)


@ARMS
def test_joint_axes_chain_ends_at_the_end_effector_and_keeps_link_lengths(model: ArmModel) -> None:
    q = random_joints(20, seed=2)
    origins, axes = joint_axes(model, q)
    torch.testing.assert_close(origins[:, 6], forward_kinematics(model, q)[0])
    lengths = (origins[:, 1:] - origins[:, :-1]).norm(dim=2)
    expected = torch.tensor(model.a, dtype=torch.float64).abs() + torch.tensor(model.d, dtype=torch.float64)
    torch.testing.assert_close(lengths, expected.expand(20, 6))
    torch.testing.assert_close(axes.norm(dim=2), torch.ones(20, 6, dtype=torch.float64))


def test_damped_least_squares_solve_the_normal_equations() -> None:
    q, delta = random_joints(50, seed=3), random_quaternions(50)[:, [0, 1, 2, 3, 0, 1]]
    j = jacobian(UR5E, q)
    system = j @ j.transpose(1, 2) + 0.05**2 * torch.eye(6, dtype=torch.float64)
    expected = (j.transpose(1, 2) @ torch.linalg.solve(system, delta[..., None]))[..., 0]
    torch.testing.assert_close(damped_least_squares(j, delta, 0.05), expected, atol=1e-9, rtol=1e-9)
    single = damped_least_squares(j.float(), delta.float(), 0.05).double()
    assert (single - expected).abs().max() < 1e-2 * expected.abs().max()


def test_damped_least_squares_stay_bounded_at_a_singular_pose() -> None:
    j = jacobian(UR5E, torch.zeros(1, 6))
    step = damped_least_squares(j, torch.ones(1, 6), 0.05)
    assert step.norm() <= math.sqrt(6) / (2 * 0.05) + 1e-3  # the damped inverse is at most 1 / (2 damping)


def test_quaternions_of_matrices_survive_half_turns_and_identity() -> None:
    half_turns = torch.eye(4, dtype=torch.float64)  # identity, and half turns about x, y, z
    tilted = torch.tensor([[0.0, 0.6, 0.8, 0.0], [1e-9, 1.0, 0.0, 0.0]], dtype=torch.float64)
    q = torch.cat((half_turns, tilted, random_quaternions(500)))
    back = quaternion_from_matrix(matrix_from_quaternion(q))
    sign = (back * q).sum(1, keepdim=True).sign()
    torch.testing.assert_close(sign * back, q, atol=1e-12, rtol=0)


def test_quaternion_is_w_first_and_right_handed() -> None:
    quarter_about_z = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])
    expected = torch.tensor([[math.sqrt(0.5), 0.0, 0.0, math.sqrt(0.5)]])
    torch.testing.assert_close(unique_quaternion(quaternion_from_matrix(quarter_about_z)), expected)


@pytest.mark.parametrize("component", [0, 1, 2, 3])
def test_unique_quaternion_is_the_same_for_both_signs(component: int) -> None:
    q = random_quaternions(100)
    unique = unique_quaternion(q, component)
    assert torch.equal(unique, unique_quaternion(-q, component))
    assert (unique[:, component] >= 0).all()
    torch.testing.assert_close(matrix_from_quaternion(unique), matrix_from_quaternion(q))


@pytest.mark.parametrize("angle", [0.0, 1e-4, 0.2, 1.5, 3.0, math.pi])
def test_rotation_angle_is_the_angle_of_the_relative_rotation(angle: float) -> None:
    first = random_quaternions(50)
    turn = torch.tensor([math.cos(angle / 2), 0.0, math.sin(angle / 2), 0.0], dtype=torch.float64)
    w, x, y, z = first.unbind(1)
    tw, _, ty, _ = turn
    second = torch.stack((w * tw - y * ty, x * tw - z * ty, y * tw + w * ty, z * tw + x * ty), dim=1)  # first * turn
    expected = torch.full((50,), angle, dtype=torch.float64)
    torch.testing.assert_close(rotation_angle(first, second), expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(rotation_angle(-first, second), expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(rotation_angle(first.float(), second.float()), expected.float(), atol=2e-6, rtol=0)


def test_other_dh_tables_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"arm 'odd'.*d\[1\]"):
        dataclasses.replace(UR5E, name="odd", d=(0.1, 0.1, 0.0, 0.1, 0.1, 0.1))
