"""Joints with PD drives, each by itself, in steps as PhysX takes them; and what a payload does to the joints of an arm.

There is no gravity but that of the payload.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from rlcore.env import Parameter
from rlcore.envs.arm import ArmModel
from rlcore.envs.torch_env import PhysicalEnv

PHYSICS_DT = 1 / 60  # s
DECIMATION = 2  # physics steps of a control step
GRAVITY = 9.81  # m/s²

STIFFNESS, DAMPING, FRICTION = 800.0, 40.0, 1.0  # N m / rad, N m s / rad, N m s / rad without a drive

PAYLOAD = {"UR5e": 5.0, "UR10": 10.0}
"""What the manufacturer allows, kg."""


Target = Literal["position", "velocity", "effort"]


class Joints(NamedTuple):
    """Constants of drives and joints, each ``[N, 6]``, or ``[6]``."""

    stiffness: Tensor
    """N m / rad."""
    damping: Tensor
    """N m s / rad."""
    inertia: Tensor
    """kg m²."""
    effort_limit: Tensor
    """N m."""
    velocity_limit: Tensor
    """rad/s."""
    position_limit: Tensor
    """To either side of zero, rad."""


_RANGES = {
    "stiffness": (0.5, 1.5),
    "damping": (0.5, 1.5),
    "inertia": (0.7, 1.5),
    "effort_limit": (0.5, 1.2),
    "velocity_limit": (0.5, 1.2),
}
"""Of factors on the constants of all joints."""


class DrivenArm(PhysicalEnv):
    """Base of tasks with arms whose joints have PD drives.

    ``parameters``: factors on ``stiffness`` (unless it is 0), ``damping``, ``inertia``, ``effort_limit`` and
    ``velocity_limit`` of all joints, and ``payload``, a point mass at the end effector: see ``payload_on``. Setting
    them replaces what was written into the constants themselves. A push changes the speed of one joint.

    Args:
        model: the arm.
        stiffness: of the drives, N m / rad.
        damping: of the drives, N m s / rad; without drives, of the joints.
        num_envs: N.
        device: where everything lives.
        seed: of the random generator; random when not given.
        max_episode_length: steps after which an episode is cut.
    """

    push_unit = "rad/s"
    task_parameters: Mapping[str, Parameter] = MappingProxyType({})
    """What a task has beside those of its arm."""
    stiffness: Tensor
    damping: Tensor
    inertia: Tensor
    effort_limit: Tensor
    velocity_limit: Tensor

    def __init__(
        self,
        model: ArmModel,
        stiffness: float,
        damping: float,
        num_envs: int,
        device: str | torch.device,
        seed: int | None,
        max_episode_length: int,
    ) -> None:
        self.model = model
        ranges = {name: x for name, x in _RANGES.items() if stiffness or name != "stiffness"}
        self._num_factors = len(ranges)
        self.parameters = {
            name: Parameter(nominal=1.0, low=low, high=high, positive=name == "inertia")
            for name, (low, high) in ranges.items()
        }
        self.parameters["payload"] = Parameter(nominal=0.0, low=0.0, high=PAYLOAD[model.name], unit="kg")
        self.parameters |= self.task_parameters
        super().__init__(num_envs, device, seed, max_episode_length)
        self._loaded = False  # whether payloads were ever set: their kinematics cost nothing before
        self._recorded = False  # whether steps were recorded as a CUDA graph
        constants = [(stiffness,) * 6, (damping,) * 6, model.inertia, model.effort_limit, model.velocity_limit]
        self._nominal = torch.tensor(constants, device=self.device)[:, :, None]  # [5, 6, 1]
        # Stored joint by joint: the kinematics read one joint of all envs at a time.
        self._joints = self._nominal.repeat(1, 1, num_envs)  # [5, 6, N]
        self.stiffness, self.damping, self.inertia, self.effort_limit, self.velocity_limit = self._joints.mT
        self._position_limit = torch.tensor(model.position_limit, device=self.device)  # [6]
        self.joint_position = self._per_joint(model.home)
        self.joint_velocity = self._per_joint(0.0)
        self.applied_effort = self._per_joint(0.0)

    @torch.no_grad()
    def set_parameters(self, values: Mapping[str, Tensor], where: Tensor) -> None:
        """Give envs other parameters; see ``rlcore.env.Randomizable.set_parameters``.

        Raises:
            ValueError: there is no parameter of a name, something is not ``[N]``, or payloads are set for the first
                time after steps were recorded as a CUDA graph.
        """
        if "payload" in values:
            self._load_up()
        super().set_parameters(values, where)
        joints, nominal = self._joints[-self._num_factors :], self._nominal[-self._num_factors :]
        factors = self._values.values[: self._num_factors, None]  # [F, 1, N]
        torch.where(where, nominal * factors, joints, out=joints)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` returned.

        Raises:
            ValueError: an entry is missing or was made with another number of envs.
        """
        super().load_state_dict(state)
        if self._values["payload"].any():
            self._load_up()

    @torch.no_grad()
    def push(self, speed: Tensor) -> None:
        """Make one joint of each arm faster by ``[N]`` rad/s, one way or the other; see ``rlcore.env.Pushable``."""
        drawn = self._draw_push()  # [N], its sign for the way
        hit = (6 * drawn.abs()).long().clamp(max=5)[:, None] == torch.arange(6, device=self.device)  # [N, 6]
        self.joint_velocity.add_(torch.copysign(speed, drawn)[:, None] * hit)

    def _load_up(self) -> None:
        if self._recorded and not self._loaded:
            raise ValueError(
                f"{self.task}: payloads are set for the first time, and steps without any were recorded as a CUDA "
                "graph; set them once, nominal if need be, before the first step"
            )
        self._loaded = True

    def _move(self, kind: Target, target: Tensor) -> None:
        """Two physics steps, see ``move``."""
        q, inertia, pull = self.joint_position, self.inertia, None
        if self._loaded:
            pull, added = payload_on(self.model, q, self._values["payload"])
            inertia = inertia + added
        if q.is_cuda and torch.cuda.is_current_stream_capturing():
            self._recorded = True
        joints = Joints(
            self.stiffness, self.damping, inertia, self.effort_limit, self.velocity_limit, self._position_limit
        )
        q, v, effort = move(kind, target, q, self.joint_velocity, joints, pull)
        self.joint_position.copy_(q)
        self.joint_velocity.copy_(v)
        self.applied_effort.copy_(effort)

    def _per_joint(self, values: float | tuple[float, ...]) -> Tensor:
        column = torch.tensor(values, dtype=torch.float32, device=self.device).expand(6)[:, None]
        return column.repeat(1, self.num_envs).t()  # [N, 6]


def move(
    kind: Target,
    target: Tensor,
    q: Tensor,
    v: Tensor,
    joints: Joints,
    pull: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``DECIMATION`` physics steps.

    The drives are implicit in the new velocity, as PhysX's are, so that stiff drives stay stable: the effort is
    what ``stiffness (target - q') + damping (v_target - v')`` is at the end of the step, q' and v' included.

    Args:
        kind: of the target. Drives of a velocity have no stiffness; with efforts the damping is viscous friction.
        target: ``[N, 6]``, rad, rad/s or N m.
        q: joint positions ``[N, 6]``, rad.
        v: joint velocities ``[N, 6]``, rad/s.
        joints: their constants.
        pull: efforts of weights ``[N, 6]``, N m, that act beside those of the drives.

    Returns:
        New positions and velocities, and the efforts of the drives in the last physics step, ``[N, 6]`` each.
    """
    dt, limit, fastest, farthest = PHYSICS_DT, joints.effort_limit, joints.velocity_limit, joints.position_limit
    gain = dt / joints.inertia
    brake = torch.add(joints.damping, joints.stiffness, alpha=dt)
    give = 1 / (1 + gain * brake)
    if kind == "velocity":
        drive = joints.damping * target
    elif kind == "effort":
        effort = torch.clamp(target, -limit, limit)
    for _ in range(DECIMATION):
        if pull is not None:
            v = torch.addcmul(v, gain, pull)
        if kind == "effort":
            v = torch.addcmul(v, gain, effort) * give
        else:
            if kind == "position":
                drive = joints.stiffness * (target - q)
            effort = torch.clamp(give * torch.addcmul(drive, brake, v, value=-1), -limit, limit)
            v = torch.addcmul(v, gain, effort)
        v = torch.clamp(v, -fastest, fastest)
        free = torch.add(q, v, alpha=dt)
        q = torch.clamp(free, -farthest, farthest)
        v = torch.where(free == q, v, 0.0)
    return q, v, effort


def payload_on(model: ArmModel, q: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """What a point mass at the end effector does to the joints, each by itself.

    Its weight pulls with ``J^T (0, 0, -m g)``, J the Jacobian of the end effector's position; and the diagonal of
    ``m J^T J`` is added to the inertia. The columns of J are products of few numbers in the upright plane of the arm.

    Args:
        model: the arm.
        q: joint positions ``[N, 6]``, rad.
        mass: ``[N]``, kg.

    Returns:
        Efforts ``[N, 6]`` in N m and inertias ``[N, 6]`` in kg m².
    """
    a, d = model.a, model.d
    rows = q.t()
    sums, q5 = rows[1:4].cumsum(0), rows[4]  # of the parallel joints 2 to 4
    (c2, c23, c234), (s2, s23, s234) = sums.cos(), sums.sin()
    s5, c5 = q5.sin(), q5.cos()
    # From joint 4, 3 and 2 to the end effector, outwards and up; and from the axis of joint 1 sideways.
    out4, up4 = d[4] * s234 - d[5] * s5 * c234, -d[4] * c234 - d[5] * s5 * s234
    out3, up3 = out4 + a[2] * c23, up4 + a[2] * s23
    out2, up2 = out3 + a[1] * c2, up3 + a[1] * s2
    side = d[3] + d[5] * c5
    none = torch.zeros_like(c5)
    rise = torch.stack((none, out2, out3, out4, -d[5] * c5 * s234, none))  # [6, N] dz/dq
    first = torch.stack((out2, out2, out3, out4, none + d[5], none))
    second = torch.stack((side, up2, up3, up4, none, none))
    return ((-GRAVITY * mass) * rise).t(), (mass * (first.square() + second.square())).t()
