"""An arm that lifts a cube to a place in the air: the YAM arm of mjlab, with rewards of one's own.

    PYTHONPATH=examples rlcore train --task mjlab:manipulation:Example-Lift-Cube --num-iterations 800
    PYTHONPATH=examples rlcore play --run runs/*Example-Lift-Cube/ppo/* --output lift.gif

It needs mjlab (``pip install '.[mjlab]'``) and a GPU; on a CPU ``--num-envs 4 --num-iterations 2`` shows that it runs.
Arm, cube, observations, actions, commands and events are those of mjlab's task. The eight terms of the reward are this
file's, and the gripper begins open: half open, as mjlab has it, it is narrower than the cube. The terms build on each
other: reach the cube, have it between the fingers, hold it, have it off the table, bring it near its goal, and there
exactly. The penalties begin at a tenth, because an arm that has to be quiet from the start stops exploring before it
has found the cube. Settings of PPO are those that mjlab ships for the arm, converted; in a run's log
``env/Metrics/lift_height/episode_success`` is the share of episodes whose last goal the cube came within 5 cm of.

mjlab multiplies each term by its weight and by the length of a step (0.02 s), so that a weight is a rate per second.
Each function maps an env to ``[N]``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from mjlab.envs.mdp import reward_curriculum
from mjlab.managers.curriculum_manager import CurriculumTermCfg
from mjlab.managers.reward_manager import RewardTermCfg
from mjlab.managers.scene_entity_config import SceneEntityCfg
from mjlab.tasks.manipulation.config.yam.env_cfgs import yam_lift_cube_env_cfg
from mjlab.tasks.manipulation.config.yam.rl_cfg import yam_lift_cube_ppo_runner_cfg
from mjlab.tasks.registry import register_mjlab_task
from torch import Tensor

TASK = "Example-Lift-Cube"
COMMAND = "lift_height"  # as mjlab's task calls it
QUIET = 500 * 24  # steps after which penalties are whole: 500 iterations
LYING, LIFTED = 0.025, 0.1  # m above the table, of the middle of a cube of 4 cm; on an edge it is at 0.028
OPEN, CLOSED = 0.0375, 0.018  # m, of a finger from the middle: at its stop, and 2 mm into the cube


def reach(env: Any, std: float, asset_cfg: SceneEntityCfg) -> Tensor:
    """How near the gripper is to the cube: ``1 - tanh(distance / std)``, m."""
    gripper = env.scene["robot"].data.site_pos_w[:, asset_cfg.site_ids].squeeze(1)  # [N, 3]
    distance = (env.scene["cube"].data.root_link_pos_w - gripper).norm(dim=1)
    return 1.0 - torch.tanh(distance / std)


def hold(env: Any, std: float, asset_cfg: SceneEntityCfg) -> Tensor:
    """How far the fingers are closed, 0 to 1, where the gripper is at the cube: times ``1 - tanh(distance / std)``."""
    finger: Tensor = env.scene["robot"].data.joint_pos[:, asset_cfg.joint_ids].squeeze(1)  # [N], m
    return ((OPEN - finger) / (OPEN - CLOSED)).clamp(0.0, 1.0) * reach(env, std, asset_cfg)


def lifted(env: Any) -> Tensor:
    """How far the cube is off the table: 0 where it lies, 1 from 10 cm on, so that every millimetre counts."""
    height: Tensor = env.scene["cube"].data.root_link_pos_w[:, 2] - env.scene.env_origins[:, 2]
    return ((height - LYING) / (LIFTED - LYING)).clamp(0.0, 1.0)


def at_goal(env: Any, std: float) -> Tensor:
    """How near a cube off the table is to its goal: ``1 - tanh(distance / std)``, m; 0 on the table."""
    goal = env.command_manager.get_command(COMMAND)  # [N, 3], in the world
    distance = (goal - env.scene["cube"].data.root_link_pos_w).norm(dim=1)
    return lifted(env) * (1.0 - torch.tanh(distance / std))


def jerkiness(env: Any) -> Tensor:
    """The squared difference between one action and the next, which are offsets in units of their scale."""
    change: Tensor = env.action_manager.action - env.action_manager.prev_action
    return change.square().sum(1)


def too_fast(env: Any, limit: float) -> Tensor:
    """By how much joints are faster than a limit: the sum of squared excesses, (rad/s)²."""
    excess: Tensor = env.scene["robot"].data.joint_vel.abs() - limit
    return excess.clamp(min=0.0).square().sum(1)


def lift_cube(play: bool = False) -> Any:
    """The configuration of the env.

    Args:
        play: for looking at a policy: without noise and an end to episodes, and with goals that change often.
    """
    cfg = yam_lift_cube_env_cfg(play=play)
    robot = cfg.scene.entities["robot"]
    joints = {**robot.init_state.joint_pos, "left_finger": OPEN, "right_finger": -OPEN}
    cfg.scene.entities["robot"] = replace(robot, init_state=replace(robot.init_state, joint_pos=joints))
    gripper = SceneEntityCfg("robot", site_names=("grasp_site",), joint_names=("left_finger",))
    cfg.rewards = {
        "reach": RewardTermCfg(func=reach, weight=1.0, params={"std": 0.1, "asset_cfg": gripper}),
        "around": RewardTermCfg(func=reach, weight=2.0, params={"std": 0.03, "asset_cfg": gripper}),
        "hold": RewardTermCfg(func=hold, weight=4.0, params={"std": 0.03, "asset_cfg": gripper}),
        "lifted": RewardTermCfg(func=lifted, weight=20.0),
        "near_goal": RewardTermCfg(func=at_goal, weight=16.0, params={"std": 0.3}),
        "at_goal": RewardTermCfg(func=at_goal, weight=5.0, params={"std": 0.05}),
        "jerkiness": RewardTermCfg(func=jerkiness, weight=-0.001),
        "too_fast": RewardTermCfg(func=too_fast, weight=-0.005, params={"limit": 1.0}),
    }
    cfg.curriculum = {  # in the place of mjlab's, which is for a term of its own
        f"{name}_weight": CurriculumTermCfg(
            func=reward_curriculum,
            params={"reward_name": name, "stages": [{"step": QUIET, "weight": 10 * cfg.rewards[name].weight}]},
        )
        for name in ("jerkiness", "too_fast")
    }
    return cfg


register_mjlab_task(
    task_id=TASK, env_cfg=lift_cube(), play_env_cfg=lift_cube(play=True), rl_cfg=yam_lift_cube_ppo_runner_cfg()
)
