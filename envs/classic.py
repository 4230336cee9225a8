"""The classic control tasks CartPole and Pendulum, batched on any torch device.

Constants and equations are those of gymnasium's ``CartPole-v1`` and ``Pendulum-v1``; the state is float32 here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rlcore.env import Parameter
from rlcore.envs.torch_env import PhysicalEnv, drawn
from rlcore.types import Obs, Step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class _Classic(PhysicalEnv):
    """What the two tasks share: start states, the time limit and resets. The tasks add the physics."""

    _buffers: ClassVar[tuple[str, ...]] = ("state", "steps")
    _start_range: tuple[float, ...]  # half-width of the uniform start state, centered on zero

    def __init__(
        self,
        num_envs: int,
        device: str | torch.device,
        seed: int | None,
        max_episode_length: int,
        observation_high: list[float],
    ) -> None:
        super().__init__(num_envs, device, seed, max_episode_length)
        high = np.array(observation_high, dtype=np.float32)
        self.observation_spaces = {"policy": spaces.Box(-high, high, dtype=np.float32)}
        self.state = torch.zeros(num_envs, len(self._start_range), device=self.device)  # [N, S]
        self._high = torch.tensor(self._start_range, device=self.device)  # [S]

    @torch.no_grad()
    def step(self, action: Tensor) -> Step:
        """Advance every env by one control step; see ``VecEnv.step``.

        Raises:
            ValueError: the action has the wrong shape or kind of number.
        """
        self._check_action(action)
        state, reward, terminated = self._advance(action)
        steps = self.steps + 1  # [N]
        truncated = steps >= self.max_episode_length  # [N]
        done = terminated | truncated  # [N]
        # In place, so that the buffers keep their address in a captured graph.
        self.state.copy_(torch.where(done.unsqueeze(1), self._start_states(), state))
        self.steps.copy_(steps.masked_fill(done, 0))
        obs, final_obs = self._observations(state, done)
        return Step(obs, reward, terminated, truncated, final_obs, {})

    def render(self) -> NDArray[np.uint8]:
        """Picture of env 0, ``[300, 400, 3]``."""
        return drawn(self._paint)

    def _begin(self) -> Obs:
        self.state.copy_(self._start_states())
        self.steps.zero_()
        return self._observe(self.state)

    def _start_states(self) -> Tensor:
        uniform = torch.rand(self.state.shape, generator=self.generator, device=self.device)  # [N, S]
        return (2.0 * uniform - 1.0) * self._high

    def _paint(self, figure: Figure) -> None:
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_aspect("equal")
        axes.set_axis_off()
        self._draw(axes, self.state[0].tolist())

    def _advance(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Next state ``[N, S]``, reward ``[N]``, terminated ``[N]``."""
        raise NotImplementedError

    def _observations(self, reached: Tensor, done: Tensor) -> tuple[Obs, Obs]:
        """What is seen after resets, of ``self.state``, and before, of the states ``[N, S]`` that were reached."""
        return self._observe(self.state), self._observe(reached)

    def _observe(self, state: Tensor) -> Obs:
        """Observations that share no memory with the state."""
        raise NotImplementedError

    def _draw(self, axes: Axes, state: list[float]) -> None:
        raise NotImplementedError


class CartPole(_Classic):
    """Balance a pole on a cart by pushing left (0) or right (1); gymnasium's ``CartPole-v1``.

    State and observation: cart position (m), velocity (m/s), pole angle (rad), angular velocity (rad/s). Reward 1 a
    step. Ends when the cart leaves 2.4 m or the pole 12 degrees; cut after ``max_episode_length`` steps of 0.02 s.
    Equations: Barto, Sutton and Anderson 1983, in the form of https://coneural.org/florian/papers/05_cart_pole.pdf.
    Pushes are of the cart.
    """

    task = "CartPole"
    signal_names: ClassVar[tuple[str, ...]] = ()
    action_space: spaces.Space[Any] = spaces.Discrete(2)
    deployment: ClassVar[dict[str, Any]] = {
        "control_dt": 0.02,
        "observation_terms": {
            "policy": [
                {"name": "cart_position", "size": 1},
                {"name": "cart_velocity", "size": 1},
                {"name": "pole_angle", "size": 1},
                {"name": "pole_angular_velocity", "size": 1},
            ]
        },
        "action_terms": [{"name": "cart_force", "size": 1, "scale": 20.0, "offset": -10.0}],  # newtons from 0 or 1
    }
    _start_range = (0.05, 0.05, 0.05, 0.05)

    parameters: Mapping[str, Parameter] = {
        "pole_mass": Parameter(nominal=0.1, low=0.05, high=0.5, unit="kg", positive=True),
        "cart_mass": Parameter(nominal=1.0, low=0.5, high=2.0, unit="kg", positive=True),
        "length": Parameter(nominal=1.0, low=0.5, high=2.0, unit="m", positive=True),
        "force": Parameter(nominal=10.0, low=5.0, high=15.0, unit="N"),
        "gravity": Parameter(nominal=9.8, low=7.8, high=11.8, unit="m/s²"),
    }
    push_unit = "m/s"
    dt = 0.02  # s
    position_limit = 2.4  # m
    angle_limit = math.radians(12.0)

    def __init__(
        self,
        num_envs: int,
        device: str | torch.device = "cpu",
        seed: int | None = None,
        max_episode_length: int = 500,
    ) -> None:
        high = [2.0 * self.position_limit, math.inf, 2.0 * self.angle_limit, math.inf]
        super().__init__(num_envs, device, seed, max_episode_length, high)

    @torch.no_grad()
    def push(self, speed: Tensor) -> None:
        """Make carts faster by ``[N]`` m/s, to the left or to the right; see ``rlcore.env.Pushable``."""
        self.state[:, 1].add_(torch.copysign(speed, self._draw_push()))

    def _derived(self) -> tuple[Tensor, ...]:
        half_length = 0.5 * self._values["length"]  # [N] m, pivot to center of mass
        total_mass = self._values["cart_mass"] + self._values["pole_mass"]
        return half_length, self._values["pole_mass"] * half_length, total_mass, 1.0 / total_mass

    def _advance(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, x_dot, angle, angle_dot = self.state.unbind(1)  # [N] each
        half_length, pole_moment, *total = self._constants  # [N] each
        force = (2 * (action == 1) - 1) * self._values["force"]  # [N]
        sin, cos = angle.sin(), angle.cos()
        push = _over(force + pole_moment * angle_dot.square() * sin, *total)
        inertia = half_length * (4.0 / 3.0 - _over(self._values["pole_mass"] * cos.square(), *total))
        angle_acc = (self._values["gravity"] * sin - cos * push) / inertia
        x_acc = push - _over(pole_moment * angle_acc * cos, *total)
        state = torch.stack(  # [N, 4]
            (
                x + self.dt * x_dot,
                x_dot + self.dt * x_acc,
                angle + self.dt * angle_dot,
                angle_dot + self.dt * angle_acc,
            ),
            dim=1,
        )
        terminated = (state[:, 0].abs() > self.position_limit) | (state[:, 2].abs() > self.angle_limit)  # [N]
        return state, torch.ones_like(x), terminated

    def _observe(self, state: Tensor) -> Obs:
        return {"policy": state.clone()}

    def _draw(self, axes: Axes, state: list[float]) -> None:
        x, _, angle, _ = state
        axes.set(xlim=(-2.4, 2.4), ylim=(-1.3, 2.3))
        axes.axhline(0.0, color="0.6", linewidth=1)
        axes.plot([x - 0.25, x + 0.25], [0.0, 0.0], color="black", linewidth=16, solid_capstyle="butt")
        length = float(self._values["length"][0])
        tip = (x + length * math.sin(angle), length * math.cos(angle))
        axes.plot([x, tip[0]], [0.0, tip[1]], color="tab:orange", linewidth=6)


def _over(x: Tensor, mass: Tensor, inverse: Tensor) -> Tensor:
    """``x / mass``, rounded as torch rounds where the mass is a plain number: CUDA then multiplies by the inverse."""
    return x * inverse if x.is_cuda else x / mass


class Pendulum(_Classic):
    """Swing a pendulum up and hold it upright with a weak motor; gymnasium's ``Pendulum-v1``.

    State: angle from upright (rad), angular velocity (rad/s). Observation: cosine and sine of the angle, and the
    velocity. Action: torque in N·m, clamped to ±2. Reward ``-(angle² + 0.1 velocity² + 0.001 torque²)`` of the state
    before the step, the angle in ±π. Never terminates; cut after ``max_episode_length`` steps of 0.05 s.

    Parameters are as gymnasium has them, of a uniform rod, and ``damping``, the viscous friction of the pivot, and
    ``gain``, a factor on the torque that arrives of the one that is commanded, and paid for.
    """

    task = "Pendulum"
    signal_names: ClassVar[tuple[str, ...]] = ()
    deployment: ClassVar[dict[str, Any]] = {
        "control_dt": 0.05,
        "observation_terms": {
            "policy": [
                {"name": "cos_angle", "size": 1},
                {"name": "sin_angle", "size": 1},
                {"name": "angular_velocity", "size": 1},
            ]
        },
        "action_terms": [{"name": "torque", "size": 1, "scale": 1.0, "offset": 0.0}],
    }
    _start_range = (math.pi, 1.0)

    parameters: Mapping[str, Parameter] = {
        "mass": Parameter(nominal=1.0, low=0.7, high=1.5, unit="kg", positive=True),
        "length": Parameter(nominal=1.0, low=0.7, high=1.5, unit="m", positive=True),
        "gravity": Parameter(nominal=10.0, low=8.0, high=12.0, unit="m/s²"),
        "damping": Parameter(nominal=0.0, low=0.0, high=0.2, unit="N·m·s/rad"),
        "gain": Parameter(nominal=1.0, low=0.7, high=1.3),
    }
    push_unit = "rad/s"
    max_torque = 2.0  # N·m
    max_speed = 8.0  # rad/s
    dt = 0.05  # s
    action_space: spaces.Space[Any] = spaces.Box(-max_torque, max_torque, (1,), dtype=np.float32)

    def __init__(
        self,
        num_envs: int,
        device: str | torch.device = "cpu",
        seed: int | None = None,
        max_episode_length: int = 200,
    ) -> None:
        super().__init__(num_envs, device, seed, max_episode_length, [1.0, 1.0, self.max_speed])

    @torch.no_grad()
    def push(self, speed: Tensor) -> None:
        """Make pendulums faster by ``[N]`` rad/s, one way or the other; see ``rlcore.env.Pushable``."""
        self.state[:, 1].add_(torch.copysign(speed, self._draw_push()))

    def _derived(self) -> tuple[Tensor, ...]:
        per_inertia = 3.0 / (self._values["mass"] * self._values["length"].square())  # [N], of a rod about its end
        fall = 1.5 * self._values["gravity"] / self._values["length"]
        return fall, per_inertia * self._values["gain"], -per_inertia * self._values["damping"]

    def _advance(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        angle, speed = self.state.unbind(1)  # [N] each
        fall, motor, drag = self._constants  # [N] each
        torque = action.squeeze(1).clamp(-self.max_torque, self.max_torque)  # [N]
        wrapped = torch.remainder(angle + math.pi, 2.0 * math.pi) - math.pi  # [N]
        cost = wrapped.square() + 0.1 * speed.square() + 0.001 * torque.square()  # [N]
        acceleration = torch.addcmul(fall * angle.sin() + motor * torque, drag, speed)
        new_speed = (speed + acceleration * self.dt).clamp(-self.max_speed, self.max_speed)
        state = torch.stack((angle + new_speed * self.dt, new_speed), dim=1)  # [N, 2]
        return state, -cost, torch.zeros_like(self.steps, dtype=torch.bool)

    def _observe(self, state: Tensor) -> Obs:
        angle, speed = state.unbind(1)
        return {"policy": torch.stack((angle.cos(), angle.sin(), speed), dim=1)}  # [N, 3]

    def _draw(self, axes: Axes, state: list[float]) -> None:
        angle, _ = state
        axes.set(xlim=(-1.8, 1.8), ylim=(-1.35, 1.35))
        axes.plot([0.0, -math.sin(angle)], [0.0, math.cos(angle)], color="tab:red", linewidth=16)
        axes.plot([0.0], [0.0], color="black", marker="o")
