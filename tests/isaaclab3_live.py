"""What test_isaaclab3.py runs in processes of their own: ``record TASK WAY CASE FILE``, ``compare FILE FILE``, ..."""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import torch

N, STEPS = 8, 60
"""Envs and steps; episodes last 12 or fewer."""


def sensors(cfg: Any) -> None:
    """Sensors that only observations read, all that remembers, and a push between a step's resets and observations."""
    from isaaclab.managers import EventTermCfg, ObservationTermCfg
    from isaaclab.sensors import ContactSensorCfg, PvaCfg
    from isaaclab.utils.noise import GaussianNoiseCfg, NoiseModelWithAdditiveBiasCfg

    cfg.scene.pva = PvaCfg(prim_path="{ENV_REGEX_NS}/Robot/torso")
    cfg.scene.contact = ContactSensorCfg(prim_path="{ENV_REGEX_NS}/Robot/.*foot", history_length=3, track_air_time=True)
    policy = cfg.observations.policy
    policy.enable_corruption = True
    policy.base_height.noise = GaussianNoiseCfg(std=0.1)
    policy.base_lin_vel.noise = NoiseModelWithAdditiveBiasCfg(
        noise_cfg=GaussianNoiseCfg(std=0.1), bias_noise_cfg=GaussianNoiseCfg(std=0.2)
    )
    policy.base_ang_vel.history_length = 3
    policy.joint_vel_rel.delay_max_lag = 2
    policy.pva = ObservationTermCfg(func=read_pva)
    policy.contact = ObservationTermCfg(func=read_contact)
    cfg.events.push = EventTermCfg(func=push, mode="interval", interval_range_s=(0.02, 0.1))


def read_pva(env: Any) -> torch.Tensor:
    bodies = env.scene["robot"].data.body_link_pose_w.torch  # brings them up to date after the push
    data = env.scene["pva"].data
    return torch.cat([bodies[:, 0], data.lin_vel_b.torch, data.ang_vel_b.torch, data.lin_acc_b.torch], 1)


def read_contact(env: Any) -> torch.Tensor:
    data = env.scene["contact"].data
    return torch.cat([data.net_forces_w_history.torch.flatten(1), data.current_air_time.torch], 1)


def push(env: Any, env_ids: Any) -> None:
    robot = env.scene["robot"]
    velocity = robot.data.root_vel_w.torch[env_ids] + 0.3
    robot.write_root_velocity_to_sim_index(root_velocity=velocity, env_ids=env_ids)


def record(task: str, way: str, case: str, file: str, device: str = "cpu") -> dict[str, Any]:
    """Step an env with actions that are always the same, and write what it returned."""
    import gymnasium
    from isaaclab.app import launch_simulation

    from rlcore.envs.isaaclab import IsaacLabEnv
    from rlcore.envs.presets import load_env_cfg

    warnings.simplefilter("ignore")
    import isaaclab_tasks  # noqa: F401  # registers them

    cfg = load_env_cfg(task, {"presets": "newton_mjwarp"})
    cfg.scene.num_envs, cfg.sim.device, cfg.seed, cfg.episode_length_s = N, device, 3, 0.2
    if case == "sensors":
        sensors(cfg)
    with launch_simulation(cfg, {}):
        env = IsaacLabEnv(gymnasium.make(task, cfg=cfg), final_obs=way, randomize_start=True)  # type: ignore[arg-type]
        env.reset(1)
        generator = torch.Generator().manual_seed(5)
        steps: list[dict[str, Any]] = []
        for _ in range(STEPS):
            assert env.action_space.shape is not None
            step = env.step(torch.randn(N, *env.action_space.shape, generator=generator).to(device))
            steps.append(
                {
                    "returned": [*step.obs.values(), step.reward, step.terminated, step.truncated],
                    "final": None if step.final_obs is None else step.final_obs["policy"],
                    "obs": step.obs["policy"],
                }
            )
        env.close()
    torch.save(steps, file)
    return {}


def compare(first: str, second: str) -> dict[str, Any]:
    """Steps in which two recordings differ, and rows of last observations that are not those after the reset."""
    plain, hooked = (torch.load(file, map_location="cpu") for file in (first, second))
    different = [
        i
        for i, (a, b) in enumerate(zip(plain, hooked, strict=True))
        if not all(torch.equal(x, y) for x, y in zip(a["returned"], b["returned"], strict=True))
    ]
    resets = finals = 0
    for step in hooked:
        done = step["returned"][-2] | step["returned"][-1]
        resets += int(done.sum())
        if step["final"] is not None:
            finals += int((step["final"] != step["obs"])[done].any(1).sum())
    return {"different": different, "resets": resets, "finals": finals}


def configurations() -> dict[str, Any]:
    """Read the settings of every registered task."""
    from rlcore.config import ConfigError
    from rlcore.train.importers.registered import registered_config, registered_names

    warnings.simplefilter("ignore")
    names = registered_names("isaaclab")
    refused: dict[str, str] = {}
    failed: dict[str, str] = {}
    for name in names:
        try:
            registered_config(f"isaaclab:{name}")
        except ConfigError as error:
            expected = ("registered without a configuration", "nothing else can be converted")
            (refused if any(text in str(error) for text in expected) else failed)[name] = str(error)
        except Exception as error:
            failed[name] = repr(error)
    return {"tasks": len(names), "refused": refused, "failed": failed}


def told(task: str) -> dict[str, Any]:
    """What a task tells a controller."""
    from rlcore.envs import make_env
    from rlcore.envs.sim_terms import _quaternions

    warnings.simplefilter("ignore")
    env: Any = make_env(task, 2, presets="newton_mjwarp")
    facts = {**env.deployment, "quaternions": _quaternions("isaaclab.envs.mdp")}
    env.close()
    return facts


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
