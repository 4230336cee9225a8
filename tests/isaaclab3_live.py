"""What test_isaaclab3.py runs in processes of their own: ``record TASK WAY CASE FILE``, ``compare FILE FILE``, ..."""

from __future__ import annotations

import copy
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


def controlled(task: str, folder: str) -> dict[str, Any]:
    """An episode by the adapter, and one from the same start by a controller that is made from the file alone."""
    from pathlib import Path

    import gymnasium
    import numpy as np
    from controller import controller_class
    from isaaclab.app import launch_simulation

    from rlcore import NetworkConfig, PPOConfig
    from rlcore.env import spec_of
    from rlcore.envs.isaaclab import IsaacLabEnv
    from rlcore.envs.presets import load_env_cfg
    from rlcore.export import OnnxPolicy, export_onnx, read_metadata
    from rlcore.policies import build_policy

    warnings.simplefilter("ignore")
    import isaaclab_tasks  # noqa: F401  # registers them

    cfg = load_env_cfg(task, {"presets": "newton_mjwarp"})
    cfg.scene.num_envs, cfg.sim.device, cfg.seed = 1, "cpu", 3
    for name in list(vars(cfg.terminations)):
        if name != "time_out":
            setattr(cfg.terminations, name, None)
    with launch_simulation(cfg, {}):
        env = IsaacLabEnv(gymnasium.make(task, cfg=cfg))  # type: ignore[arg-type]
        torch.manual_seed(3)
        spec = spec_of(env)
        policy = build_policy(spec, PPOConfig(actor=NetworkConfig(hidden_dims=(16,))))
        with torch.no_grad():
            [p.mul_(60.0) for p in [m for m in policy.modules() if isinstance(m, torch.nn.Linear)][-1].parameters()]
        path = Path(folder) / f"{task}.onnx"
        export_onnx(policy, spec, path, recording=None)
        facts, core = read_metadata(path), env.core
        robot = core.scene["robot"]
        acted, seen = OnnxPolicy(path), []
        env.reset(7)
        start = copy.deepcopy(core.scene.get_state())
        obs = env.read_obs(core.reset_to(start)[0])["policy"]
        for _ in range(CONTROLLED):
            seen.append((obs[0].numpy().copy(), robot.data.joint_pos.torch[0].numpy().copy()))
            step = env.step(torch.from_numpy(acted(obs.numpy())))
            assert not (step.terminated | step.truncated).any()
            obs = step.obs["policy"]
        core.reset_to(start)
        names = [str(name) for name in np.random.default_rng(0).permutation([row["name"] for row in facts["joints"]])]
        ids = [list(robot.joint_names).index(name) for name in names]
        controller, read, targets = controller_class()(path, names), [], {}
        inner, observed = controller.policy, []
        controller.policy = lambda numbers: (observed.append(numbers), inner(numbers))[1]
        for _ in range(CONTROLLED):
            read.append(robot.data.joint_pos.torch[0].numpy().copy())
            targets = controller.step(measured(core, facts, ids))
            drive(core, ids, targets)
        env.close()
    differences = [np.abs(a - b).max() for (_, a), b in zip(seen, read, strict=True)]
    moved = np.abs(np.diff([position for _, position in seen], axis=0)).max()
    inputs = [float(np.abs(a - b).max()) for (a, _), b in zip(seen, observed, strict=True)]
    return {
        "facts": facts,
        "kinds": list(targets),
        "first": float(inputs[0]),
        "inputs": max(inputs),
        "joints": float(max(differences)),
        "moved": float(moved),
    }


CONTROLLED = 40
"""Steps of an episode by a controller. Ant's joints are within 6e-5 for 50, until an impact of a foot comes a
physics step earlier or later; from there on the two part, as episodes do that differ by a rounding."""


def measured(core: Any, facts: dict[str, Any], ids: list[int]) -> dict[str, Any]:
    """What a robot's sensors tell, of the simulator's state, and what the terms of tasks are in plain words."""
    import numpy as np

    data = core.scene["robot"].data
    found = {
        "joint_position": data.joint_pos.torch[0, ids].numpy().copy(),
        "joint_velocity": data.joint_vel.torch[0, ids].numpy().copy(),
    }
    terms = {term["name"]: term for term in facts["observation_terms"]}
    if "base_lin_vel" not in terms:
        return found
    x, y, z, w = quaternion = data.root_link_pose_w.torch[0, 3:].double().numpy()
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    assert abs(float(quaternion @ quaternion) - 1) < 1e-4
    position, velocity = data.root_link_pose_w.torch[0, :3].numpy(), data.root_com_vel_w.torch[0].double().numpy()
    target = np.array(terms["base_angle_to_target"]["params"]["target_pos"]) + core.scene.env_origins[0].numpy()
    to_target, yaw = target - position, np.arctan2(rotation[1, 0], rotation[0, 0])
    angle = np.arctan2(to_target[1], to_target[0]) - yaw
    wrench = core.scene["joint_wrench"]
    bodies = [list(wrench.body_names).index(name) for name in terms["feet_body_forces"]["bodies"]]
    both = [array.torch[0, bodies].numpy() for array in (wrench.data.force, wrench.data.torque)]
    return found | {
        "height": position[2:],
        "linear_velocity": rotation.T @ velocity[:3],
        "angular_velocity": rotation.T @ velocity[3:],
        "base_yaw_roll": [yaw, np.arctan2(rotation[2, 1], rotation[2, 2])],
        "base_angle_to_target": [(angle + np.pi) % (2 * np.pi) - np.pi],
        "base_up_proj": rotation[2, 2:],
        "base_heading_proj": [rotation[:2, 0] @ to_target[:2] / np.linalg.norm(to_target[:2])],
        "wrench": np.concatenate(both, -1).reshape(-1),
    }


def drive(core: Any, ids: list[int], targets: dict[str, Any]) -> None:
    """One control step of the simulator by targets of joints, in the order of ``ids``."""
    import numpy as np

    robot, at_once = core.scene["robot"], getattr(core, "_physics_handles_decimation", False)
    for _ in range(1 if at_once else core.cfg.decimation):
        for kind, values in targets.items():
            own = np.flatnonzero(~np.isnan(values)).tolist()
            write = getattr(robot, f"set_joint_{kind}_target_index")
            write(target=torch.from_numpy(values[own])[None], joint_ids=torch.tensor([ids[i] for i in own]))
        core.scene.write_data_to_sim()
        core.sim.step(render=False)
        core.scene.update(dt=core.physics_dt * (core.cfg.decimation if at_once else 1))


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
