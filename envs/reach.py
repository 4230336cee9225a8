"""Reach: a six-joint arm follows end-effector poses that change every few seconds; any torch device, no simulator.

The task is the end-effector pose tracking of Isaac Lab's reach environments, in the ``base_link`` frame of
``rlcore.envs.arm``. Joints are independent second-order systems with PD drives, without gravity, as in Isaac Lab.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium
import numpy as np
import torch
from torch import Tensor

from rlcore.config import nearest
from rlcore.env import Parameter
from rlcore.envs.arm import (
    UR5E,
    UR10,
    ArmPicture,
    damped_least_squares,
    end_effector_pose,
    jacobian,
    rotation_angle,
    unique_quaternion,
)
from rlcore.envs.arm_facts import arm_facts, driven, hold_pose, observed
from rlcore.envs.drives import DAMPING, DECIMATION, FRICTION, PHYSICS_DT, STIFFNESS, DrivenArm
from rlcore.types import Obs, Step

if TYPE_CHECKING:
    from numpy.typing import NDArray

ARMS = {"UR5e": UR5E, "UR10": UR10}
CONTROLS = {
    "JointPos": ("joint_position", 0.5),
    "JointVel": ("joint_velocity", 1.0),
    "IK": ("relative_pose", 0.5),
    "Torque": ("joint_effort", 1.0),
}
"""Name of the action term and default scale of each control mode."""
OBSERVATION_TERMS = (
    ("joint_pos_rel", 6),
    ("ee_position", 3),
    ("ee_orientation", 4),
    ("pose_command", 7),
    ("joint_vel_rel", 6),
    ("last_action", 6),
)

WATCHED = ("joint_position", "joint_velocity", "applied_effort")
"""What a step tells besides, see ``Reach.watch``: in rad, rad/s and N m."""

CONTROL_DT = PHYSICS_DT * DECIMATION  # s
EPISODE_STEPS = 360  # 12 s
SUCCESS_POSITION, SUCCESS_ANGLE = 0.05, 0.2
"""A command is met when the errors at the end of its interval are below these, m and rad."""

_TERMS = ("position", "orientation", "velocity", "fine")
TARGETS = {
    "command_range": Parameter(nominal=1.0, low=0.1, high=1.0, next_episode=True),
    "tolerance": Parameter(nominal=1.0, low=0.5, high=3.0),
} | {f"{term}_weight": Parameter(nominal=1.0, low=0.5, high=2.0) for term in _TERMS}
"""What is asked of the arm: the share of the box and of the circle of yaws, about their middles, in which commands lie;
and factors on the errors within which a command is met, and on the weights of the reward."""

_COMMAND_LOW = (0.3, -0.3, 0.25)  # m, x y z
_COMMAND_SPAN = (0.2, 0.6, 0.15)  # m, x y z
_INTERVAL_STEPS = (60, 120)  # 2 s to 4 s
_FINE_SCALE = 0.1  # m
_DRAWS = 23  # per env and step: 12 of noise, 6 of the joints at reset, 5 of a command
# In the quaternion of a downward tool w is 0: the usual "w >= 0" would leave its sign to rounding noise, in every
# command and in every pose near one. x is cos(yaw / 2) there, so "x >= 0" is continuous in yaw but for one cut at
# yaw = pi. The end effector follows the same rule, so that it equals the command when it has arrived.
_SIGN = 1


class Reach(DrivenArm):
    """N arms that track poses; implements ``rlcore.env.VecEnv``.

    Actions ``[N, 6]``, by ``control``:

    - ``JointPos``: joint targets are home + scale * action, rad;
    - ``JointVel``: joint velocity targets are scale * action, rad/s; the drives have no stiffness;
    - ``IK``: scale * action is a step (dx, dy, dz in m, rotation vector in rad, in ``base_link``) from the present
      pose, turned into joint targets by damped least squares;
    - ``Torque``: joint efforts are scale * action of the effort limits, actions clipped to -1..1; ``damping`` is then
      the viscous friction of the joints.

    Observation group ``policy`` ``[N, 32]``: joint positions minus home, end-effector position and quaternion, command
    position and quaternion, joint velocities, last action. Quaternions are (w, x, y, z) with x >= 0.

    A command lasts 2 to 4 s; the position is uniform in x 0.3..0.5, y -0.3..0.3, z 0.25..0.4 m, the tool points down
    (roll -pi, pitch 0), yaw is uniform over the circle. Episodes last 12 s and only ever end by time-out.

    ``Step.log``, ``[N]`` each: ``num_goals`` commands that ended in the episode, ``success`` the fraction of them that
    were met, ``position_error`` (m) and ``orientation_error`` (rad), their mean errors; not of one that time-outs cut.

    Physical constants ``stiffness damping inertia effort_limit velocity_limit`` are ``[N, 6]``, may be changed at any
    time, and travel with ``state_dict``; so do ``parameters``, see ``rlcore.envs.drives.DrivenArm`` and ``TARGETS``.
    ``joint_position``, ``joint_velocity`` and ``applied_effort`` (N m, of the last physics step) are ``[N, 6]``.
    """

    signal_names: ClassVar[tuple[str, ...]] = ()
    _buffers = (
        "joint_position", "joint_velocity", "applied_effort", "last_action", "command", "command_left", "steps",
        "tally", "stiffness", "damping", "inertia", "effort_limit", "velocity_limit", "command_range",
    )  # fmt: skip
    task_parameters = TARGETS

    def __init__(
        self,
        arm: str = "UR5e",
        control: str = "JointPos",
        num_envs: int = 1,
        device: str | torch.device = "cpu",
        seed: int | None = None,
        *,
        action_scale: float | None = None,
        noise: float = 0.01,
        reset_range: tuple[float, float] = (0.75, 1.25),
        ik_damping: float = 0.05,
        position_weight: float = -6.0,
        orientation_weight: float = -4.0,
        velocity_weight: float = -0.0001,
        fine_weight: float = 3.0,
    ) -> None:
        """Build the arms; call ``reset`` before ``step``.

        Args:
            arm: ``UR5e`` or ``UR10``.
            control: ``JointPos``, ``JointVel``, ``IK`` or ``Torque``.
            num_envs: N.
            device: where everything lives.
            seed: of the random generator; random when not given.
            action_scale: see the class; 0.5, 1.0, 0.5, 1.0 by control mode when not given.
            noise: joint position (rad) and velocity (rad/s) readings are off by up to this, uniformly; 0 for none.
            reset_range: episodes start at the home joints times a factor uniform in this range, at rest.
            ik_damping: damping of the least squares.
            position_weight: reward per second and m of position error.
            orientation_weight: reward per second and rad of orientation error.
            velocity_weight: reward per second and (rad/s)^2 of joint velocity.
            fine_weight: reward per second of 1 - tanh(position error / 0.1 m); 3 keeps Isaac Lab's 1 to 2 proportion
                to the position term.

        Raises:
            ValueError: an unknown arm or control mode, or a number out of range.
        """
        if arm not in ARMS:
            raise ValueError(f"Reach: unknown arm '{arm}'; use one of {', '.join(ARMS)}")
        if control not in CONTROLS:
            raise ValueError(f"Reach: unknown control mode '{control}'; use one of {', '.join(CONTROLS)}")
        term, default_scale = CONTROLS[control]
        self.action_scale = default_scale if action_scale is None else action_scale
        for name, value, good in (
            ("action_scale", self.action_scale, self.action_scale > 0),
            ("ik_damping", ik_damping, ik_damping > 0),
            ("noise", noise, noise >= 0),
        ):
            if not good:
                raise ValueError(f"Reach: {name} is {value}; use {'0 or more' if name == 'noise' else 'more than 0'}")
        if not reset_range[0] <= reset_range[1]:
            raise ValueError(f"Reach: reset_range {tuple(reset_range)} is empty; give (low, high) with low <= high")

        self.task = f"Reach-{arm}-{control}"
        self.control = control
        drives = (STIFFNESS if control in ("JointPos", "IK") else 0.0, FRICTION if control == "Torque" else DAMPING)
        super().__init__(ARMS[arm], *drives, num_envs, device, seed, EPISODE_STEPS)
        self.noise, self.reset_range, self.ik_damping = noise, reset_range, ik_damping
        self.position_weight, self.orientation_weight = position_weight, orientation_weight
        self.velocity_weight, self.fine_weight = velocity_weight, fine_weight
        bound = 1.0 if control == "Torque" else math.inf
        size = sum(size for _, size in OBSERVATION_TERMS)
        self.observation_spaces = {"policy": gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)}
        self.action_space = gymnasium.spaces.Box(-bound, bound, (6,), np.float32)
        scale = [self.action_scale * x for x in (self.model.effort_limit if control == "Torque" else (1.0,) * 6)]
        offset = list(self.model.home) if control == "JointPos" else [0.0] * 6
        self.deployment: dict[str, Any] = {
            "observation_terms": {"policy": [observed(name, size, noise) for name, size in OBSERVATION_TERMS]},
            "action_terms": [driven(term, scale, offset)],
            **arm_facts(self.model, *drives, _COMMAND_LOW, _COMMAND_SPAN, [x * CONTROL_DT for x in _INTERVAL_STEPS]),
        }

        self._home = torch.tensor(self.model.home, device=self.device)  # [6]
        self._command_low = torch.tensor(_COMMAND_LOW, device=self.device)  # [3]
        self._command_span = torch.tensor(_COMMAND_SPAN, device=self.device)  # [3]
        self.last_action = self._per_joint(0.0)
        self.command = torch.zeros(7, num_envs, device=self.device).t()  # [N, 7] position and quaternion
        self.command_left = torch.zeros(num_envs, device=self.device)  # [N] control steps
        self.command_range = torch.ones(num_envs, device=self.device)  # [N], of the episodes in flight
        self._asked = False  # whether any of TARGETS was ever set: they cost nothing before
        # Of the commands that ended in this episode: count, met, sums of position and orientation errors.
        self.tally = torch.zeros(4, num_envs, device=self.device).t()  # [N, 4]
        self._seen: dict[str, Tensor] = {}  # what is watched, as it was before the last reset
        self._started = False
        self._picture: ArmPicture | None = None

    @torch.no_grad()
    def step(self, action: Tensor) -> Step:
        """Advance every env by 1/30 s; envs that reach 360 steps are reset.

        Args:
            action: ``[N, 6]``.

        Raises:
            ValueError: the action has another shape or kind of number.
            RuntimeError: ``reset`` has not been called.
        """
        self._check_action(action)
        if not self._started:
            raise RuntimeError(f"{self.task}: call reset() before step()")
        self.last_action.copy_(action)
        self._simulate()
        draws = self._draw()
        start = self._start(draws)
        self._seen = {name: getattr(self, name).clone() for name in self._seen}
        # One pass over the poses reached and the poses of a new episode: small operations cost by their number.
        positions, quaternions = self._pose(torch.cat((self.joint_position.t(), start.t()), dim=1).t())
        position, start_position = positions.chunk(2)
        quaternion, start_quaternion = quaternions.chunk(2)

        signals = self._signals(position)
        distance = (position - self.command[:, :3]).square().sum(1).sqrt()
        angle = rotation_angle(quaternion, self.command[:, 3:])
        tolerance, *weights = self._targets()
        reward = CONTROL_DT * (
            weights[0] * distance
            + weights[1] * angle
            + weights[2] * self.joint_velocity.square().sum(1)
            + weights[3] * (1 - torch.tanh(distance / _FINE_SCALE))
        )

        self.command_left.sub_(1)
        self.steps.add_(1)
        ended, truncated = self.command_left <= 0, self.steps >= self.max_episode_length
        met = (distance < SUCCESS_POSITION * tolerance) & (angle < SUCCESS_ANGLE * tolerance)
        counts = torch.stack((torch.ones_like(distance), met.float(), distance, angle)).t()  # [N, 4]
        self.tally.add_(counts.masked_fill(~ended[:, None], 0.0))
        goals = self.tally[:, 0].clone()
        success, mean_distance, mean_angle = (self.tally[:, 1:] / goals.clamp(min=1)[:, None]).unbind(1)
        command, left = self._new_command(self._narrowed(draws, truncated))
        _replace(self.command, ended[:, None], command)

        final_obs = self._observe(position, quaternion, draws)
        over = truncated[:, None]
        _replace(self.command, over, command)
        _replace(self.command_left, ended | truncated, left)
        _replace(self.joint_position, over, start)
        for buffer in (self.joint_velocity, self.last_action, self.tally):
            buffer.masked_fill_(over, 0.0)
        self.steps.masked_fill_(truncated, 0)
        obs = self._observe(
            torch.where(over, start_position, position), torch.where(over, start_quaternion, quaternion), draws
        )
        log: dict[str, Tensor | float] = {
            "success": success,
            "num_goals": goals,
            "position_error": mean_distance,
            "orientation_error": mean_angle,
        }
        return Step(obs, reward, torch.zeros_like(truncated), truncated, final_obs, log, None, signals)

    def watch(self, kind: str, name: str) -> Callable[[], Tensor]:
        """What gives one of ``WATCHED``, ``[N, 6]``, after each step; see ``rlcore.envs.costs.Watchable``.

        Raises:
            ValueError: there is nothing of that name.
        """
        if kind != "state":
            raise ValueError("the arms tell no terms of their reward; give state")
        if name not in WATCHED:
            raise ValueError(f"there is no '{name}'; {nearest(name, WATCHED)}")
        self._seen[name] = getattr(self, name).clone()
        return lambda: self._seen[name]

    def steer(self, name: str, values: Tensor) -> None:
        """Hold the command; see ``rlcore.envs.steer.Steerable``."""
        hold_pose(self, name, values)

    def set_parameters(self, values: Mapping[str, Tensor], where: Tensor) -> None:
        """Give envs other parameters; see ``rlcore.env.Randomizable.set_parameters``.

        Raises:
            ValueError: there is no parameter of a name, something is not ``[N]``, or one of ``TARGETS`` is set for the
                first time after steps were recorded as a CUDA graph.
        """
        if not self._asked and (asked := [name for name in values if name in TARGETS]):
            if self._recorded:
                known = "steps without it were recorded as a CUDA graph"
                remedy = "set it once, nominal if need be, before the first step"
                raise ValueError(f"{self.task}: {asked[0]} is set for the first time, and {known}; {remedy}")
            self._asked = True
        super().set_parameters(values, where)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` returned.

        Raises:
            ValueError: an entry is missing or was made with another number of envs.
        """
        if "episode_steps" in state:  # as it was written before
            state = {**state, "steps": state["episode_steps"]}
        super().load_state_dict({"command_range": torch.ones_like(self.command_range)} | state)
        self._started = True
        self._asked |= any(bool((self._values[name] != 1).any()) for name in TARGETS)

    def render(self) -> NDArray[np.uint8]:
        """Picture of env 0, uint8 ``[H, W, 3]``: the arm, its end-effector frame (solid), the command (dotted)."""
        if self._picture is None:
            self._picture = ArmPicture(self.model)
        text = f"{self.task}  {int(self.steps[0]) * CONTROL_DT:5.2f} s"
        return self._picture.draw(self.joint_position[0], self.command[0], text)

    def close(self) -> None:
        """Drop the picture; there is nothing else to release."""
        self._picture = None

    def _targets(self) -> tuple[Tensor | float, ...]:
        """Factor on the errors of a command that is met, and the weights of the reward, each of all envs or ``[N]``."""
        weights = self.position_weight, self.orientation_weight, self.velocity_weight, self.fine_weight
        if not self._asked:
            return 1.0, *weights
        _, tolerance, *factors = (self._values[name] for name in TARGETS)
        return tolerance, *(weight * factor for weight, factor in zip(weights, factors, strict=True))

    def _narrowed(self, draws: Tensor, begins: Tensor) -> Tensor:
        """``draws``, of which those of commands are moved to their middles; episodes begin where ``begins [N]``."""
        if self._asked:
            torch.where(begins, self._values["command_range"], self.command_range, out=self.command_range)
            draws[18:22] -= (1 - self.command_range) * (draws[18:22] - 0.5)  # with 1 not even rounded
        return draws

    def _signals(self, position: Tensor) -> dict[str, Tensor] | None:
        """What a step that led to end effectors at ``[N, 3]`` is beside its reward, by name."""
        return None

    def _begin(self) -> Obs:
        draws = self._draw()
        self.joint_position.copy_(self._start(draws))
        for buffer in (self.joint_velocity, self.applied_effort, self.last_action, self.steps, self.tally):
            buffer.zero_()
        command, left = self._new_command(self._narrowed(draws, torch.ones_like(self.steps, dtype=torch.bool)))
        self.command.copy_(command)
        self.command_left.copy_(left)
        self._started = True
        return self._observe(*self._pose(self.joint_position), draws)

    def _draw(self) -> Tensor:
        """All random numbers of one step ``[23, N]``: rows of noise, ready to add, then uniform ones in 0..1."""
        draws = torch.rand(_DRAWS, self.num_envs, generator=self.generator, device=self.device)
        draws[:12].sub_(0.5).mul_(2 * self.noise)
        return draws

    def _start(self, draws: Tensor) -> Tensor:
        low, high = self.reset_range
        q = self._home * (low + (high - low) * draws[12:18].t())
        return q.clamp(-self._position_limit, self._position_limit)  # [N, 6]

    def _new_command(self, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Pose ``[N, 7]`` and duration in steps ``[N]``."""
        pose = torch.zeros(7, self.num_envs, device=self.device).t()
        pose[:, :3] = self._command_low + self._command_span * draws[18:21].t()
        # A roll of -pi, then a yaw in -pi..pi: (0, -cos, -sin, 0) of half the yaw, or its negative, which has x >= 0.
        half_yaw = math.pi * (draws[21] - 0.5)
        pose[:, 4] = half_yaw.cos().abs()  # pi / 2 is rounded: its cosine may be -4e-8
        pose[:, 5] = half_yaw.sin()
        low, high = _INTERVAL_STEPS
        return pose, low + (high - low) * draws[22]

    def _pose(self, q: Tensor) -> tuple[Tensor, Tensor]:
        position, quaternion = end_effector_pose(self.model, q)
        return position, unique_quaternion(quaternion, _SIGN)

    def _observe(self, position: Tensor, quaternion: Tensor, draws: Tensor) -> Obs:
        q = (self.joint_position - self._home).t() + draws[:6]
        v = self.joint_velocity.t() + draws[6:12]
        rows = torch.cat((q, position.t(), quaternion.t(), self.command.t(), v, self.last_action.t()))
        return {"policy": rows.t().contiguous()}  # [N, 32]

    def _simulate(self) -> None:
        """Two physics steps with the last action."""
        command = self.action_scale * self.last_action
        if self.control == "JointPos":
            self._move("position", self._home + command)
        elif self.control == "IK":
            step = damped_least_squares(jacobian(self.model, self.joint_position), command, self.ik_damping)
            self._move("position", self.joint_position + step)
        elif self.control == "JointVel":
            self._move("velocity", command)
        else:
            self._move("effort", self.last_action.clamp(-1, 1) * self.action_scale * self.effort_limit)


def _replace(buffer: Tensor, mask: Tensor, value: Tensor) -> None:
    """Overwrite a buffer in place where a mask says so."""
    torch.where(mask, value, buffer, out=buffer)
