"""A cart-pole in torch in place of PhysX, under the real env classes of Isaac Lab 2.3.2."""

from __future__ import annotations

import contextlib
import enum
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import modules
import torch

modules.install()
SOURCE = Path(os.environ["ISAACLAB_WHEEL"], "isaaclab", "source")
PACKAGES = ("isaaclab", "isaaclab_assets", "isaaclab_contrib", "isaaclab_mimic", "isaaclab_rl", "isaaclab_tasks")
sys.path[:0] = [str(SOURCE / name) for name in PACKAGES]


BUFFERS = importlib.import_module("isaaclab.utils.buffers")
SensorBase: Any = importlib.import_module("isaaclab.sensors.sensor_base").SensorBase


class Data(SimpleNamespace):
    """Joint states, and one of the quantities that are computed when they are read.

    As in the articulations of Isaac Lab 2.3.2, writing joint velocities does not invalidate velocities of bodies.
    """

    def __init__(self, **values: torch.Tensor) -> None:
        super().__init__(**values)
        self._sim_timestamp = 0.0
        self._tip_vel_w = BUFFERS.TimestampedBuffer()

    def update(self, dt: float) -> None:
        self._sim_timestamp += dt

    @property
    def tip_vel_w(self) -> torch.Tensor:
        """Horizontal velocity of the pole's tip, ``[N, 1]``."""
        if self._tip_vel_w.timestamp < self._sim_timestamp:
            self._tip_vel_w.data = tip_velocity(self.joint_pos, self.joint_vel)
            self._tip_vel_w.timestamp = self._sim_timestamp
        return self._tip_vel_w.data


def tip_velocity(position: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
    return (velocity[:, 0] + velocity[:, 1] * torch.cos(position[:, 1]))[:, None]


class Gyroscope(SensorBase):  # type: ignore[misc]
    """Angular velocity of the pole, its change between two readings, as of an IMU, and its last three values."""

    def __init__(self, robot: Robot, num_envs: int) -> None:
        self.cfg = SimpleNamespace(update_period=0.0, history_length=0)
        self.robot, self._num_envs, self._is_visualizing = robot, num_envs, False
        self._is_outdated = torch.ones(num_envs, dtype=torch.bool)
        self._timestamp, self._timestamp_last_update = torch.zeros(num_envs), torch.zeros(num_envs)
        self._previous = torch.zeros(num_envs)
        self._data = SimpleNamespace(change=torch.zeros(num_envs, 1), history=torch.zeros(num_envs, 3))

    def __del__(self) -> None:  # nothing was subscribed to
        pass

    @property
    def data(self) -> SimpleNamespace:
        self._update_outdated_buffers()
        return self._data

    def _initialize_impl(self) -> None:
        pass

    def _update_buffers_impl(self, env_ids: torch.Tensor) -> None:
        rate = self.robot.data.joint_vel[env_ids, 1]
        self._data.change[env_ids, 0] = rate - self._previous[env_ids]
        self._previous[env_ids] = rate
        history = self._data.history[env_ids].roll(1, dims=1)
        history[:, 0] = rate
        self._data.history[env_ids] = history


class Robot:
    """The articulation of the two Cartpole tasks: what their terms, actions and resets ask of it.

    Joints have drives, whose gains are 0 unless somebody sets them.
    """

    joint_names: ClassVar[list[str]] = ["slider_to_cart", "cart_to_pole"]
    body_names: ClassVar[list[str]] = ["cart", "pole"]
    num_joints = num_bodies = 2
    is_fixed_base = True

    def __init__(self, num_envs: int) -> None:
        zeros = {name: torch.zeros(num_envs, 2) for name in ("joint_pos", "joint_vel", "default_joint_pos")}
        self.data = Data(
            **zeros,
            default_joint_vel=torch.zeros(num_envs, 2),
            default_root_state=torch.zeros(num_envs, 13),
            root_pose_w=torch.zeros(num_envs, 7),
            root_vel_w=torch.zeros(num_envs, 6),
            soft_joint_pos_limits=torch.tensor([[-4.0, 4.0], [-1e9, 1e9]]).repeat(num_envs, 1, 1),
            soft_joint_vel_limits=torch.full((num_envs, 2), 1e9),
            joint_pos_limits=torch.tensor([[-4.0, 4.0], [-1e9, 1e9]]).repeat(num_envs, 1, 1),
            default_joint_stiffness=torch.zeros(num_envs, 2),
            default_joint_damping=torch.zeros(num_envs, 2),
            default_joint_armature=torch.zeros(num_envs, 2),
        )
        self.force = torch.zeros(num_envs, 2)
        self.position_target = torch.zeros(num_envs, 2)

    def find_joints(self, names: Any, subset: Any = None, preserve_order: bool = False) -> Any:
        resolve = importlib.import_module("isaaclab.utils.string").resolve_matching_names
        return resolve(names, self.joint_names, preserve_order)

    def find_bodies(self, names: Any, preserve_order: bool = False) -> Any:
        resolve = importlib.import_module("isaaclab.utils.string").resolve_matching_names
        return resolve(names, self.body_names, preserve_order)

    def set_joint_effort_target(self, force: torch.Tensor, joint_ids: Any = None, env_ids: Any = None) -> None:
        self.force[:, slice(None) if joint_ids is None else joint_ids] = force

    def write_joint_state_to_sim(
        self, position: torch.Tensor, velocity: torch.Tensor, joint_ids: Any = None, env_ids: Any = None
    ) -> None:
        rows = torch.arange(len(self.force)) if env_ids is None else torch.as_tensor(env_ids)
        columns = torch.arange(2) if joint_ids is None or joint_ids == slice(None) else torch.as_tensor(joint_ids)
        self.data.joint_pos[rows[:, None], columns] = position
        self.data.joint_vel[rows[:, None], columns] = velocity

    def set_joint_position_target(self, target: torch.Tensor, joint_ids: Any = None, env_ids: Any = None) -> None:
        self.position_target[:, slice(None) if joint_ids is None else joint_ids] = target

    def set_joint_velocity_target(self, *args: Any, **kwargs: Any) -> None:
        pass

    def write_root_pose_to_sim(self, *args: Any, **kwargs: Any) -> None:
        pass

    def write_root_velocity_to_sim(self, *args: Any, **kwargs: Any) -> None:
        pass

    def reset(self, env_ids: Any = None) -> None:
        self.force[slice(None) if env_ids is None else env_ids] = 0.0

    def advance(self, dt: float) -> None:
        """One semi-implicit Euler step of a cart (1 kg) with a pole (0.1 kg, half length 0.5 m)."""
        (_, angle), (_, rate) = self.data.joint_pos.unbind(1), self.data.joint_vel.unbind(1)
        sin, cos = torch.sin(angle), torch.cos(angle)
        away = self.position_target - self.data.joint_pos
        drive = self.data.default_joint_stiffness * away - self.data.default_joint_damping * self.data.joint_vel
        force, torque = (self.force + drive).unbind(1)
        push = (force + 0.05 * rate.square() * sin) / 1.1
        pole = (9.81 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 * cos.square() / 1.1))
        pole = pole + torque / 0.05
        cart = push - 0.05 * pole * cos / 1.1
        # In place, as PhysX fills its buffers.
        self.data.joint_vel += dt * torch.stack([cart, pole], 1)
        self.data.joint_pos += dt * self.data.joint_vel


class Scene:
    """One robot in N envs."""

    latest: ClassVar[Scene]

    def __init__(self, cfg: Any) -> None:
        Scene.latest = self
        self.cfg, self.num_envs, self.device = cfg, cfg.num_envs, "cpu"
        self.robot = Robot(cfg.num_envs)
        self.articulations = self._articulations = {"robot": self.robot}
        self._deformable_objects = self._rigid_objects = self._surface_grippers = self._rigid_object_collections = {}
        self._ALL_INDICES = torch.arange(cfg.num_envs)
        self.sensors: dict[str, Any] = {"gyroscope": Gyroscope(self.robot, cfg.num_envs)}
        self.rigid_objects: dict[str, Any] = {}
        self.terrain = None
        self.env_origins = torch.zeros(cfg.num_envs, 3)

    def __getitem__(self, name: str) -> Robot:
        return self.robot

    def keys(self) -> list[str]:
        return ["robot"]

    def reset(self, env_ids: Any = None) -> None:
        self.robot.reset(env_ids)
        self.sensors["gyroscope"].reset(env_ids)

    def write_data_to_sim(self) -> None:
        pass

    def update(self, dt: float) -> None:
        self.robot.data.update(dt)
        self.sensors["gyroscope"].update(dt)


class Simulation:
    """The simulation context; steps the latest scene."""

    class RenderMode(enum.IntEnum):
        NO_GUI_OR_RENDERING = -1
        NO_RENDERING = 0
        PARTIAL_RENDERING = 1
        FULL_RENDERING = 2

    render_mode = RenderMode.NO_GUI_OR_RENDERING

    def __init__(self, cfg: Any) -> None:
        self.cfg, self.device = cfg, cfg.device
        self.scene: Scene | None = None

    @staticmethod
    def instance() -> None:
        return None

    def reset(self, soft: bool = False) -> None:  # the env calls it once its scene is there
        self.scene = Scene.latest

    def step(self, render: bool = False) -> None:
        assert self.scene is not None
        self.scene.robot.advance(self.cfg.dt)

    def is_playing(self) -> bool:
        return True

    def has_gui(self) -> bool:
        return False

    def has_rtx_sensors(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


@contextlib.contextmanager
def _nothing(*args: Any, **kwargs: Any) -> Iterator[None]:
    yield


def install() -> None:
    """Put the cart-pole under Isaac Lab's env classes, and register its tasks."""
    version = importlib.import_module("packaging.version").Version("4.5.0")
    real: Any = importlib.import_module("isaaclab.scene.interactive_scene").InteractiveScene
    Scene.get_state, Scene.reset_to = real.get_state, real.reset_to  # type: ignore[attr-defined]
    for name in ("manager_based_env", "direct_rl_env"):
        module = importlib.import_module(f"isaaclab.envs.{name}")
        module.SimulationContext, module.InteractiveScene = Simulation, Scene  # type: ignore[attr-defined]
        module.use_stage, module.attach_stage_to_usd_context = _nothing, lambda *args, **kwargs: None  # type: ignore[attr-defined]
        module.get_isaac_sim_version = lambda: version  # type: ignore[attr-defined]
    importlib.import_module("isaaclab_tasks")

    def set_up_scene(self: Any) -> None:
        self.cartpole = self.scene.robot  # instead of spawning a USD file

    direct: Any = importlib.import_module("isaaclab_tasks.direct.cartpole.cartpole_env")
    direct.CartpoleEnv._setup_scene = set_up_scene
