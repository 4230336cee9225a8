"""The classic control tasks CartPole and Pendulum, batched on any torch device.

Constants and equations are those of gymnasium's ``CartPole-v1`` and ``Pendulum-v1``; the state is float32 here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rlcore.envs.torch_env import TorchEnv, drawn
from rlcore.types import Obs, Step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class _Classic(TorchEnv):
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

    gravity = 9.8  # m/s²
    pole_mass = 0.1  # kg
    total_mass = 1.1  # kg, cart and pole
    half_length = 0.5  # m, pivot to center of mass
    force = 10.0  # N
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

    def _advance(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, x_dot, angle, angle_dot = self.state.unbind(1)  # [N] each
        force = (2 * (action == 1) - 1) * self.force  # [N]
        sin, cos = angle.sin(), angle.cos()
        pole_moment = self.pole_mass * self.half_length
        push = (force + pole_moment * angle_dot.square() * sin) / self.total_mass
        inertia = self.half_length * (4.0 / 3.0 - self.pole_mass * cos.square() / self.total_mass)
        angle_acc = (self.gravity * sin - cos * push) / inertia
        x_acc = push - pole_moment * angle_acc * cos / self.total_mass
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
        tip = (x + 2.0 * self.half_length * math.sin(angle), 2.0 * self.half_length * math.cos(angle))
        axes.plot([x, tip[0]], [0.0, tip[1]], color="tab:orange", linewidth=6)


class Pendulum(_Classic):
    """Swing a pendulum up and hold it upright with a weak motor; gymnasium's ``Pendulum-v1``.

    State: angle from upright (rad), angular velocity (rad/s). Observation: cosine and sine of the angle, and the
    velocity. Action: torque in N·m, clamped to ±2. Reward ``-(angle² + 0.1 velocity² + 0.001 torque²)`` of the state
    before the step, the angle in ±π. Never terminates; cut after ``max_episode_length`` steps of 0.05 s.
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

    gravity = 10.0  # m/s²
    mass = 1.0  # kg
    length = 1.0  # m
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

    def _advance(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        angle, speed = self.state.unbind(1)  # [N] each
        torque = action.squeeze(1).clamp(-self.max_torque, self.max_torque)  # [N]
        wrapped = torch.remainder(angle + math.pi, 2.0 * math.pi) - math.pi  # [N]
        cost = wrapped.square() + 0.1 * speed.square() + 0.001 * torque.square()  # [N]
        gravity_acc = 1.5 * self.gravity / self.length * angle.sin()
        motor_acc = 3.0 / (self.mass * self.length**2) * torque
        new_speed = (speed + (gravity_acc + motor_acc) * self.dt).clamp(-self.max_speed, self.max_speed)
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
