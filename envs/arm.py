"""Six-joint arms of the Universal Robots family: constants, kinematics, quaternions and a picture.

Every pose is in the ROS ``base_link`` frame (REP-103: x forward, z up), which is the base frame of the manufacturer's
DH table turned by pi about z. In it the home pose reaches to +x, where the reach tasks place their commands. The
end-effector frame is the last DH frame (``tool0``): its z axis points out of the flange.

Quaternions are (w, x, y, z) and unit length.

Sources: DH tables, link masses and joint limits from Universal Robots, "Parameters for calculations of kinematics and
dynamics", "Max. joint torques" and the user manuals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

Joints = tuple[float, float, float, float, float, float]
"""One number per joint, base to wrist 3."""

JOINT_NAMES = (
    "shoulder_pan_joint",
    "shoulder_lift_joint",
    "elbow_joint",
    "wrist_1_joint",
    "wrist_2_joint",
    "wrist_3_joint",
)

_ALPHA: Joints = (math.pi / 2, 0.0, 0.0, math.pi / 2, -math.pi / 2, 0.0)


@dataclass(frozen=True, kw_only=True)
class ArmModel:
    """Constants of one arm.

    Raises:
        ValueError: the DH table is not of the Universal Robots shape that the closed kinematics need.
    """

    name: str
    a: Joints
    """DH link lengths in m; only ``a[1]`` and ``a[2]`` may differ from 0."""
    d: Joints
    """DH link offsets in m; ``d[1]`` and ``d[2]`` are 0."""
    alpha: Joints = _ALPHA
    """DH link twists in rad: pi/2, 0, 0, pi/2, -pi/2, 0."""
    home: Joints
    """Joint positions at rest, rad."""
    position_limit: Joints
    """Largest joint position to either side of zero, rad."""
    velocity_limit: Joints
    """rad/s."""
    effort_limit: Joints
    """N m."""
    inertia: Joints
    """Lumped inertia of each joint, kg m^2."""

    def __post_init__(self) -> None:
        """Refuse tables that the closed kinematics cannot express."""
        if self.alpha != _ALPHA or any((self.a[0], *self.a[3:], *self.d[1:3])):
            raise ValueError(
                f"arm '{self.name}': the DH table a={self.a}, d={self.d}, alpha={self.alpha} is not of the Universal "
                "Robots shape; a[0], a[3], a[4], a[5], d[1], d[2] must be 0 and alpha (pi/2, 0, 0, pi/2, -pi/2, 0)"
            )


_HOME: Joints = (0.0, -1.712, 1.712, 0.0, 0.0, 0.0)
_TURN = 2 * math.pi
# The manufacturer allows the elbow a full turn, but its own links stop it at half of one.
_POSITION_LIMIT: Joints = (_TURN, _TURN, math.pi, _TURN, _TURN, _TURN)

# Inertia: diagonal of the mass matrix at home from the published link masses, plus an estimate of the rotors' inertia
# behind the 1:101 gears (not published), which dominates at the wrist.
UR5E = ArmModel(
    name="UR5e",
    a=(0.0, -0.425, -0.3922, 0.0, 0.0, 0.0),
    d=(0.1625, 0.0, 0.0, 0.1333, 0.0997, 0.0996),
    home=_HOME,
    position_limit=_POSITION_LIMIT,
    velocity_limit=(math.pi,) * 6,
    effort_limit=(150.0, 150.0, 150.0, 28.0, 28.0, 28.0),
    inertia=(1.5, 2.5, 1.4, 0.3, 0.3, 0.3),
)
UR10 = ArmModel(
    name="UR10",
    a=(0.0, -0.612, -0.5723, 0.0, 0.0, 0.0),
    d=(0.1273, 0.0, 0.0, 0.163941, 0.1157, 0.0922),
    home=_HOME,
    position_limit=_POSITION_LIMIT,
    velocity_limit=(_TURN / 3, _TURN / 3, math.pi, math.pi, math.pi, math.pi),
    effort_limit=(330.0, 330.0, 150.0, 56.0, 56.0, 56.0),
    inertia=(3.0, 5.5, 2.5, 0.5, 0.5, 0.5),
)


class _Angles(NamedTuple):
    """Cosines and sines, each ``[N]``: of joints 1, 5, 6, and of the sums 2, 2+3, 2+3+4 of the parallel joints."""

    c1: Tensor
    c2: Tensor
    c23: Tensor
    c234: Tensor
    c5: Tensor
    c6: Tensor
    s1: Tensor
    s2: Tensor
    s23: Tensor
    s234: Tensor
    s5: Tensor
    s6: Tensor


def _angles(q: Tensor) -> _Angles:
    rows = q.t()
    rows = torch.cat((rows[:1], rows[1:4].cumsum(0), rows[4:]))  # [6, N]
    return _Angles(*rows.cos().unbind(), *rows.sin().unbind())


def _to_base(c1: Tensor, s1: Tensor, radial: Tensor, lateral: Tensor, up: Tensor) -> Tensor:
    """Vectors given in the upright plane of the arm, components ``[..., N]``, as ``[3, ..., N]`` in ``base_link``.

    The plane turns with joint 1: ``radial`` is along (c1, s1, 0) and ``lateral`` along (s1, -c1, 0) of the DH base;
    ``base_link`` has both of these axes reversed.
    """
    return torch.stack((-(c1 * radial + s1 * lateral), c1 * lateral - s1 * radial, up))


def forward_kinematics(model: ArmModel, q: Tensor) -> tuple[Tensor, Tensor]:
    """Pose of the end effector.

    Joints 2 to 4 are parallel, so the product of the six DH transforms collapses into sums of their angles.

    Args:
        model: the arm.
        q: joint positions ``[N, 6]``, rad.

    Returns:
        Position ``[N, 3]`` in m and rotation matrix ``[N, 3, 3]``, both in ``base_link``.
    """
    a, d = model.a, model.d
    t = _angles(q)
    c5c, c5s, s5c, s5s = t.c5 * t.c234, t.c5 * t.s234, t.s5 * t.c234, t.s5 * t.s234
    # Columns: x, y, z axes of the tool, then its position.
    radial = torch.stack(
        (
            t.c6 * c5c - t.s6 * t.s234,
            -(t.s6 * c5c + t.c6 * t.s234),
            -s5c,
            a[1] * t.c2 + a[2] * t.c23 + d[4] * t.s234 - d[5] * s5c,
        )
    )  # [4, N]
    lateral = torch.stack((t.c6 * t.s5, -t.s6 * t.s5, t.c5, d[3] + d[5] * t.c5))
    up = torch.stack(
        (
            t.c6 * c5s + t.s6 * t.c234,
            t.c6 * t.c234 - t.s6 * c5s,
            -s5s,
            d[0] + a[1] * t.s2 + a[2] * t.s23 - d[4] * t.c234 - d[5] * s5s,
        )
    )
    pose = _to_base(t.c1, t.s1, radial, lateral, up).permute(2, 0, 1)  # [N, 3, 4]
    return pose[..., 3], pose[..., :3]


def end_effector_pose(model: ArmModel, q: Tensor) -> tuple[Tensor, Tensor]:
    """Pose of the end effector as position and quaternion, in half the operations of ``forward_kinematics``.

    The orientation is Rz(q1 + pi) Ry(-q234) Rz(-q5) Ry(-q6) Rx(pi/2), and the quaternion of the three turns in the
    middle has one product of half-angle functions per component.

    Args:
        model: the arm.
        q: joint positions ``[N, 6]``, rad; fastest when stored column by column.

    Returns:
        Position ``[N, 3]`` in m and quaternion ``[N, 4]`` of unspecified sign, both in ``base_link`` and stored column
        by column.
    """
    a, d = model.a, model.d
    q1, _, _, _, q5, q6 = q.t().unbind()
    q2, q23, q234 = q.t()[1:4].cumsum(0).unbind()
    angles = torch.stack((q1, q2, q23, q234, q5, 0.5 * q1, 0.5 * q5, 0.5 * (q234 + q6), 0.5 * (q234 - q6)))  # [9, N]
    c1, c2, c23, c234, c5, half_c1, half_c5, c_sum, c_difference = angles.cos().unbind()
    s1, s2, s23, s234, s5, half_s1, half_s5, s_sum, s_difference = angles.sin().unbind()

    radial = a[1] * c2 + a[2] * c23 + d[4] * s234 - d[5] * (s5 * c234)
    lateral = d[5] * c5 + d[3]
    up = a[1] * s2 + a[2] * s23 - d[4] * c234 - d[5] * (s5 * s234) + d[0]
    position = _to_base(c1, s1, radial, lateral, up)  # [3, N]

    w, x, y, z = half_c5 * c_sum, half_s5 * s_difference, -half_c5 * s_sum, -half_s5 * c_difference
    turned = torch.stack((w - x, w + x, y + z, z - y))
    across = torch.stack((y - z, -y - z, w + x, w - x))
    quaternion = math.sqrt(0.5) * (half_c1 * across - half_s1 * turned)  # [4, N]
    return position.t(), quaternion.t()


def joint_axes(model: ArmModel, q: Tensor) -> tuple[Tensor, Tensor]:
    """Where the joints are and what they turn about.

    Args:
        model: the arm.
        q: joint positions ``[N, 6]``, rad.

    Returns:
        Origins of the DH frames 0 to 6 ``[N, 7, 3]`` in m (the last one is the end effector), and unit axes of the
        joints ``[N, 6, 3]``, both in ``base_link``.
    """
    a, d = model.a, model.d
    t = _angles(q)
    zero, one = torch.zeros_like(t.c1), torch.ones_like(t.c1)
    s5c, s5s = t.s5 * t.c234, t.s5 * t.s234
    radial = torch.stack((zero, zero, a[1] * t.c2, a[2] * t.c23, zero, d[4] * t.s234, -d[5] * s5c)).cumsum(0)
    lateral = torch.stack((zero, zero, zero, zero, d[3] * one, zero, d[5] * t.c5)).cumsum(0)
    up = torch.stack((zero, d[0] * one, a[1] * t.s2, a[2] * t.s23, zero, -d[4] * t.c234, -d[5] * s5s)).cumsum(0)
    origins = _to_base(t.c1, t.s1, radial, lateral, up).permute(2, 1, 0)  # [N, 7, 3]
    radial = torch.stack((zero, zero, zero, zero, t.s234, -s5c))
    lateral = torch.stack((zero, one, one, one, zero, t.c5))
    up = torch.stack((one, zero, zero, zero, -t.c234, -s5s))
    axes = _to_base(t.c1, t.s1, radial, lateral, up).permute(2, 1, 0)  # [N, 6, 3]
    return origins, axes


def jacobian(model: ArmModel, q: Tensor) -> Tensor:
    """Geometric Jacobian of the end effector.

    Args:
        model: the arm.
        q: joint positions ``[N, 6]``, rad.

    Returns:
        ``[N, 6, 6]``, joint velocities to (linear velocity, angular velocity) in ``base_link``.
    """
    origins, axes = joint_axes(model, q)
    x, y, z = axes.permute(2, 1, 0)  # [6, N] each
    dx, dy, dz = (origins[:, 6:] - origins[:, :6]).permute(2, 1, 0)
    return torch.stack((y * dz - z * dy, z * dx - x * dz, x * dy - y * dx, x, y, z)).permute(2, 0, 1)


def damped_least_squares(jacobian: Tensor, delta: Tensor, damping: float) -> Tensor:
    """Joint step ``J^T (J J^T + damping^2 I)^-1 delta`` (Wampler 1986; Nakamura and Hanafusa 1986).

    The 6 by 6 systems are symmetric and positive definite, so plain elimination without pivots solves them: no
    library call that checks its result on the host.

    Args:
        jacobian: ``[N, 6, 6]``.
        delta: wanted (translation, rotation vector) ``[N, 6]``, m and rad.
        damping: larger is safer near singular poses and slower elsewhere; above 0.

    Returns:
        Joint step ``[N, 6]``, rad.
    """
    columns = jacobian.permute(1, 2, 0).contiguous()  # [6, 6, N]
    system = torch.empty(6, 7, columns.shape[2], dtype=columns.dtype, device=columns.device)
    system[:, :6] = (columns[:, None] * columns[None]).sum(2)
    system[:, 6] = delta.t()
    system.diagonal(dim1=0, dim2=1)[:] += damping * damping
    for k in range(6):
        row = system[k, k:] / system[k, k]  # [7 - k, N]
        system[:, k:] -= system[:, k, None] * row
        system[k, k:] = row
    return (columns * system[:, 6, None]).sum(0).t()


def quaternion_from_matrix(rotation: Tensor) -> Tensor:
    """Quaternion of a rotation matrix, exact for every rotation and without a branch on the data.

    The matrix gives all products of two components; the row of the largest component is the well-conditioned one
    (Bar-Itzhack 2000; Shepperd 1978).

    Args:
        rotation: ``[N, 3, 3]``.

    Returns:
        ``[N, 4]``, sign unspecified: see ``unique_quaternion``.
    """
    m = rotation.permute(1, 2, 0)
    wx, wy, wz = m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]
    xy, xz, yz = m[0, 1] + m[1, 0], m[0, 2] + m[2, 0], m[1, 2] + m[2, 1]
    plus, minus = 1 + m[0, 0], 1 - m[0, 0]
    total, difference = m[1, 1] + m[2, 2], m[1, 1] - m[2, 2]
    ww, xx, yy, zz = plus + total, plus - total, minus + difference, minus - difference
    products = torch.stack((ww, wx, wy, wz, wx, xx, xy, xz, wy, xy, yy, yz, wz, xz, yz, zz), dim=1)  # [N, 16], times 4
    largest = torch.stack((ww, xx, yy, zz), dim=1).argmax(1)
    row = products.view(-1, 4, 4).gather(1, largest[:, None, None].expand(-1, 1, 4)).squeeze(1)  # [N, 4]
    return row / row.square().sum(1, keepdim=True).sqrt()


def unique_quaternion(quaternion: Tensor, component: int = 0) -> Tensor:
    """Of ``q`` and ``-q``, the same rotation, the one whose given component is not negative.

    The result jumps where that component is zero: choose one that stays away from zero in the poses that matter.

    Args:
        quaternion: ``[N, 4]``.
        component: 0 to 3 for w, x, y, z.
    """
    return torch.where(quaternion[:, component, None] < 0, -quaternion, quaternion)


def rotation_angle(first: Tensor, second: Tensor) -> Tensor:
    """Angle in 0..pi of the rotation from one quaternion to another, whatever their signs.

    From the two diagonals of the rhombus that unit vectors span (Kahan): accurate near 0, where an arc cosine is not.

    Args:
        first: ``[N, 4]``.
        second: ``[N, 4]``.

    Returns:
        ``[N]``, rad.
    """
    apart, together = (first - second).square().sum(1).sqrt(), (first + second).square().sum(1).sqrt()
    return 4 * torch.atan2(torch.minimum(apart, together), torch.maximum(apart, together))


def matrix_from_quaternion(quaternion: Tensor) -> Tensor:
    """Rotation matrices ``[N, 3, 3]`` of quaternions ``[N, 4]``."""
    w, x, y, z = quaternion.unbind(1)
    rows = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, dim=1).view(-1, 3, 3)


class ArmPicture:
    """Draws one arm, its end-effector frame and a target frame; the figure is built once and reused."""

    def __init__(self, model: ArmModel) -> None:
        """Prepare the figure."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.model = model
        figure = Figure(figsize=(5.6, 4.8), dpi=100)
        canvas: Any = FigureCanvasAgg
        self._canvas = canvas(figure)
        axes: Any = figure.add_axes((0.0, 0.0, 1.0, 0.95), projection="3d")
        side = 0.6 * sum(abs(x) for x in model.a)  # m
        axes.set(xlim=(-side, side), ylim=(-side, side), zlim=(0, 2 * side))
        axes.set(xlabel="x (m)", ylabel="y (m)", zlabel="z (m)")
        axes.set_box_aspect((1, 1, 1), zoom=1.0)
        axes.view_init(elev=22, azim=40)
        (self._arm,) = axes.plot([], [], [], "-o", color="0.25", linewidth=4, markersize=5)
        self._frames = [
            axes.plot([], [], [], style, color=color, linewidth=2)[0]
            for style in ("-", ":")
            for color in ("tab:red", "tab:green", "tab:blue")
        ]
        self._size = 0.3 * side
        self._text = figure.text(0.02, 0.96, "", family="monospace", fontsize=9)

    def draw(self, q: Tensor, target: Tensor, text: str) -> NDArray[numpy.uint8]:
        """Picture of one moment: end-effector frame solid, target frame dotted, errors written above.

        Args:
            q: joint positions ``[6]``, rad.
            target: position and quaternion ``[7]``.
            text: what to write before the errors.

        Returns:
            uint8 ``[H, W, 3]``.
        """
        import numpy as np

        q, target = q.detach().cpu()[None], target.detach().cpu()[None]
        origins, _ = joint_axes(self.model, q)
        position, rotation = forward_kinematics(self.model, q)
        distance = float((position - target[:, :3]).norm())
        angle = float(rotation_angle(quaternion_from_matrix(rotation), target[:, 3:]))
        self._text.set_text(f"{text}  {100 * distance:5.1f} cm  {angle:4.2f} rad")
        self._arm.set_data_3d(*origins[0].t().tolist())
        frames = torch.cat((rotation, matrix_from_quaternion(target[:, 3:])))
        for i, line in enumerate(self._frames):
            start = position[0] if i < 3 else target[0, :3]
            end = start + self._size * frames[i // 3, :, i % 3]
            line.set_data_3d(*torch.stack((start, end), dim=1).tolist())
        self._canvas.draw()
        picture: NDArray[np.uint8] = np.asarray(self._canvas.buffer_rgba())[..., :3].copy()
        return picture
