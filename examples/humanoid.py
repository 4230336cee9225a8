"""A humanoid that walks: Unitree's G1 of mjlab, with rewards of one's own.

    PYTHONPATH=examples rlcore train --task mjlab:humanoid:Example-Humanoid-Walk --num-iterations 3000
    PYTHONPATH=examples rlcore play --run runs/*Example-Humanoid-Walk/ppo/* --output walk.gif

It needs mjlab (``pip install '.[mjlab]'``) and a GPU; on a CPU ``--num-envs 4 --num-iterations 2`` shows that it runs.
Robot, sensors, observations, actions and events are those of mjlab's velocity task on flat ground. The commands, the
ten terms of the reward and what ends an episode are this file's, and so is the name that it registers with mjlab, under
which every command of rlcore finds the task. Settings of PPO are those that mjlab ships for the robot, converted.

mjlab multiplies each term by its weight and by the length of a step (0.02 s), so that a weight is a rate per second.
``env/Episode_Reward/NAME`` in a run's log is what a term earned. Each function maps an env to ``[N]``.
"""

from __future__ import annotations

from typing import Any

import torch
from mjlab.envs.mdp import bad_orientation, time_out
from mjlab.managers.reward_manager import RewardTermCfg
from mjlab.managers.scene_entity_config import SceneEntityCfg
from mjlab.managers.termination_manager import TerminationTermCfg
from mjlab.tasks.registry import register_mjlab_task
from mjlab.tasks.velocity.config.g1.env_cfgs import unitree_g1_flat_env_cfg
from mjlab.tasks.velocity.config.g1.rl_cfg import unitree_g1_ppo_runner_cfg
from torch import Tensor

TASK = "Example-Humanoid-Walk"
COMMAND, FEET = "twist", "feet_ground_contact"  # as mjlab's task calls them


def track_velocity(env: Any, std: float) -> Tensor:
    """How closely the base moves as commanded: ``exp(-|v* - v|² / std²)``, v horizontal in its own frame, m/s."""
    error = env.command_manager.get_command(COMMAND)[:, :2] - env.scene["robot"].data.root_link_lin_vel_b[:, :2]
    return torch.exp(-error.square().sum(1) / std**2)


def track_turning(env: Any, std: float) -> Tensor:
    """How closely it turns as commanded: ``exp(-(w* - w)² / std²)``, w about the vertical, rad/s."""
    error = env.command_manager.get_command(COMMAND)[:, 2] - env.scene["robot"].data.root_link_ang_vel_b[:, 2]
    return torch.exp(-error.square() / std**2)


def tilt(env: Any) -> Tensor:
    """How far the base leans: the squared horizontal part of gravity's direction, seen from it; 0 upright, 1 lying."""
    gravity: Tensor = env.scene["robot"].data.projected_gravity_b  # [N, 3], unit vectors
    return gravity[:, :2].square().sum(1)


def bouncing(env: Any) -> Tensor:
    """The squared vertical velocity of the base, m²/s²."""
    velocity: Tensor = env.scene["robot"].data.root_link_lin_vel_b
    return velocity[:, 2].square()


def stride(env: Any, longest: float) -> Tensor:
    """Time on one foot, s: for how long the legs have been as they are, one up and one down, up to ``longest``.

    0 on both feet, on none, and where the robot is to stand still. Without it a policy learns to shuffle.
    """
    feet = env.scene[FEET].data
    down, up = feet.current_contact_time, feet.current_air_time  # [N, 2]; one of both is 0
    on_one = (down > 0.0).sum(1) == 1
    time = torch.where(down > 0.0, down, up).amin(1).clamp(max=longest)
    moves = env.command_manager.get_command(COMMAND).norm(dim=1) > 0.1
    rewarded: Tensor = time * (on_one & moves)
    return rewarded


def slip(env: Any, asset_cfg: SceneEntityCfg) -> Tensor:
    """How fast feet that stand slide: the sum of their horizontal speeds, m/s."""
    speed = env.scene["robot"].data.site_lin_vel_w[:, asset_cfg.site_ids, :2].norm(dim=2)  # [N, 2]
    sliding: Tensor = speed * (env.scene[FEET].data.current_contact_time > 0.0)
    return sliding.sum(1)


def posture(env: Any, asset_cfg: SceneEntityCfg) -> Tensor:
    """How far some joints are from where they are by default: the sum of distances, rad."""
    robot = env.scene["robot"].data
    offset: Tensor = (robot.joint_pos - robot.default_joint_pos)[:, asset_cfg.joint_ids]
    return offset.abs().sum(1)


def power(env: Any) -> Tensor:
    """What the motors work, W: the sum of ``|torque * velocity|`` over joints."""
    robot = env.scene["robot"].data
    watts: Tensor = robot.qfrc_actuator * robot.joint_vel
    return watts.abs().sum(1)


def jerkiness(env: Any) -> Tensor:
    """The squared difference between one action and the next, which are offsets in units of their scale."""
    change: Tensor = env.action_manager.action - env.action_manager.prev_action
    return change.square().sum(1)


def fallen(env: Any) -> Tensor:
    """1 where the episode ends by a fall."""
    ended: Tensor = env.termination_manager.terminated
    return ended.float()


def humanoid(play: bool = False) -> Any:
    """The configuration of the env.

    Args:
        play: for looking at a policy: without noise, pushes and an end to episodes, as mjlab has it.
    """
    cfg = unitree_g1_flat_env_cfg(play=play)
    ranges = cfg.commands[COMMAND].ranges
    ranges.lin_vel_x, ranges.lin_vel_y, ranges.ang_vel_z = (0.0, 1.0), (-0.3, 0.3), (-0.5, 0.5)
    cfg.curriculum = {}  # mjlab's would widen them
    feet = SceneEntityCfg("robot", site_names=("left_foot", "right_foot"))
    still = SceneEntityCfg("robot", joint_names=(r".*waist.*", r".*hip_(roll|yaw).*", r".*(shoulder|elbow|wrist).*"))
    cfg.rewards = {
        "track_velocity": RewardTermCfg(func=track_velocity, weight=2.0, params={"std": 0.5}),
        "track_turning": RewardTermCfg(func=track_turning, weight=1.0, params={"std": 0.5}),
        "stride": RewardTermCfg(func=stride, weight=1.0, params={"longest": 0.4}),
        "tilt": RewardTermCfg(func=tilt, weight=-2.0),
        "bouncing": RewardTermCfg(func=bouncing, weight=-0.5),
        "slip": RewardTermCfg(func=slip, weight=-0.2, params={"asset_cfg": feet}),
        "posture": RewardTermCfg(func=posture, weight=-0.1, params={"asset_cfg": still}),
        "power": RewardTermCfg(func=power, weight=-2e-4),
        "jerkiness": RewardTermCfg(func=jerkiness, weight=-0.02),
        "fallen": RewardTermCfg(func=fallen, weight=-200.0),  # once, so -4 after the step's 0.02 s
    }
    cfg.terminations = {
        "time_out": TerminationTermCfg(func=time_out, time_out=True),
        "fell_over": TerminationTermCfg(func=bad_orientation, params={"limit_angle": 1.2}),  # rad
    }
    return cfg


register_mjlab_task(
    task_id=TASK, env_cfg=humanoid(), play_env_cfg=humanoid(play=True), rl_cfg=unitree_g1_ppo_runner_cfg()
)
