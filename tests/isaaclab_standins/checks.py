"""What must hold with Isaac Lab 2.3.2's own env code; run by test_isaaclab.py in a process of its own.

Prints one JSON line: the name of each check to None, or to why it failed.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import sys
import tempfile
import traceback
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import simulator
from controller import controller_class

with contextlib.redirect_stdout(io.StringIO()):
    simulator.install()

import gymnasium
import torch
from isaaclab.managers import ObservationGroupCfg, ObservationTermCfg
from isaaclab.utils.modifiers import IntegratorCfg
from isaaclab.utils.noise import GaussianNoiseCfg, NoiseModelWithAdditiveBiasCfg
from isaaclab_tasks.utils import load_cfg_from_registry

from rlcore import NetworkConfig, PPOConfig
from rlcore.env import VecEnv, spec_of
from rlcore.envs import make_env, sim_terms
from rlcore.envs.costs import CostSource, WithSignals
from rlcore.envs.deployment import describe
from rlcore.envs.isaaclab import IsaacLabEnv
from rlcore.export import OnnxPolicy, export_onnx
from rlcore.policies import build_policy

TASKS = ("Isaac-Cartpole-v0", "Isaac-Cartpole-Direct-v0")
N = 8


def raw_env(task: str, change: Any = None, seed: int = 3, num_envs: int = N) -> Any:
    """The env as Isaac Lab makes it."""
    cfg: Any = load_cfg_from_registry(task, "env_cfg_entry_point")
    cfg.scene.num_envs, cfg.sim.device, cfg.seed, cfg.episode_length_s = num_envs, "cpu", seed, 0.5
    if change is not None:
        change(cfg)
    return gymnasium.make(task, cfg=cfg)


def actions(steps: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(steps, N, 1, generator=torch.Generator().manual_seed(5))


class States:
    """Joint states of the envs that a scene resets, taken where the scene does it."""

    def __init__(self, env: IsaacLabEnv) -> None:
        self.scene: Any = env.core.scene
        self.before: torch.Tensor | None = None
        reset = self.scene.reset

        def spy(env_ids: Any = None) -> None:
            self.before = self.now()
            reset(env_ids)

        self.scene.reset = spy

    def now(self) -> torch.Tensor:
        return torch.cat([self.scene.robot.data.joint_pos, self.scene.robot.data.joint_vel], 1).clone()


def rows_of(task: str, state: torch.Tensor) -> torch.Tensor:
    """The observation that a state gives: the direct task lists pole before cart."""
    return state if "Direct" not in task else state[:, [1, 3, 0, 2]]


def check_final_observations_are_those_before_the_reset_through_300_steps() -> None:
    for task in TASKS:
        env = IsaacLabEnv(raw_env(task))
        assert isinstance(env, VecEnv) and env.final_obs_source == "hook"
        assert spec_of(env).observation_sizes == {"policy": 4}
        states = States(env)
        env.reset(1)
        resets = terminations = 0
        for action in actions(300, 2.0):
            states.before = None
            step = env.step(action)
            done = step.terminated | step.truncated
            assert (states.before is not None) == bool(done.any())
            assert torch.equal(step.obs["policy"], rows_of(task, states.now()))
            assert step.final_obs is not None
            if states.before is not None:
                assert torch.equal(step.final_obs["policy"][done], rows_of(task, states.before)[done])
                assert not torch.equal(step.final_obs["policy"][done], step.obs["policy"][done])
                resets += int(done.sum())
                terminations += int(step.terminated.sum())
        assert resets >= 9 * N and 0 < terminations < resets, (task, resets, terminations)
        env.close()


def check_terms_and_joints_are_signals_as_they_were_before_the_reset() -> None:
    for task in TASKS:
        sources = {
            "cart": CostSource(state="joint_vel", index=(0,)),
            "any": CostSource(state="joint_vel", above=(1.0,)),
        }
        if "Direct" not in task:
            sources["term"] = CostSource(reward="cart_vel")
        inner = IsaacLabEnv(raw_env(task))
        states, env = States(inner), WithSignals(inner, sources)
        env.reset(1)
        resets = 0
        for action in actions(100, 2.0):
            states.before = None
            step = env.step(action)
            velocity = (states.now() if states.before is None else states.before)[:, 2:].abs()  # of cart and pole
            assert step.signals is not None
            assert torch.equal(step.signals["cart"], velocity[:, 0])
            assert torch.equal(step.signals["any"], (velocity > 1).any(1).float())
            if "term" in sources:
                torch.testing.assert_close(step.signals["term"], velocity[:, 0])
            resets += states.before is not None
        assert resets > 5
        env.close()


def check_the_hook_is_not_felt_by_noise_history_filters_and_random_numbers() -> None:
    def change(cfg: Any) -> None:
        policy = cfg.observations.policy
        policy.enable_corruption, policy.history_length = True, 3
        policy.joint_pos_rel.noise = GaussianNoiseCfg(std=0.1)
        policy.joint_vel_rel.noise = NoiseModelWithAdditiveBiasCfg(
            noise_cfg=GaussianNoiseCfg(std=0.1), bias_noise_cfg=GaussianNoiseCfg(std=0.2)
        )
        policy.joint_vel_rel.modifiers = [IntegratorCfg(dt=0.1)]

    plain, env = raw_env(TASKS[0], change), IsaacLabEnv(raw_env(TASKS[0], change))
    results: list[list[torch.Tensor]] = [[], []]
    results[0].append(plain.reset(seed=1)[0]["policy"])
    for action in actions(100, 2.0):
        observation, reward, terminated, truncated, _ = plain.step(action)
        results[0] += [observation["policy"].clone(), reward.clone(), terminated | truncated]
    results[1].append(env.reset(1)["policy"])
    for action in actions(100, 2.0):
        step = env.step(action)
        results[1] += [step.obs["policy"], step.reward, step.terminated | step.truncated]
    assert sum(int(x.sum()) for x in results[0][3::3]) > 2 * N
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def sensed(env: Any) -> torch.Tensor:
    """What is computed when it is read: a cached velocity of a body, and a sensor with a memory."""
    gyroscope = env.scene.sensors["gyroscope"].data
    return torch.cat([env.scene.robot.data.tip_vel_w, gyroscope.change, gyroscope.history], 1)


def noisy(env: Any) -> torch.Tensor:
    """Numbers of Python's and NumPy's random generators, which tasks use, too."""
    return torch.full((env.num_envs, 2), random.random() + np.random.rand())


def push(env: Any, env_ids: Any) -> None:
    """Between the resets of a step and its observations: what was read before is no longer so."""
    env.scene.robot.data.joint_vel[env_ids] += 0.1


def check_looking_before_a_reset_leaves_caches_and_sensors_as_they_were() -> None:
    from isaaclab.managers import EventTermCfg, ObservationTermCfg

    def manager_based(cfg: Any) -> None:
        cfg.observations.policy.sensed = ObservationTermCfg(func=sensed)
        cfg.observations.policy.noisy = ObservationTermCfg(func=noisy)
        cfg.events.push = EventTermCfg(func=push, mode="interval", interval_range_s=(0.05, 0.1))

    def direct(cfg: Any) -> None:
        cfg.observation_space = 11
        cfg.events = SimpleNamespace(push=EventTermCfg(func=push, mode="interval", interval_range_s=(0.05, 0.1)))

    def observe(env: Any) -> None:
        """Let a direct task see the same, and remember what it saw in a list of its own."""
        core, seen = env.unwrapped, deque([torch.zeros(N, 7)] * 2, maxlen=2)

        def get_observations() -> dict[str, torch.Tensor]:
            core.seen.append(torch.cat([sensed(core), noisy(core)], 1))
            return {"policy": torch.cat([core.joint_pos, core.joint_vel, core.seen[0]], 1)}

        core.seen, core._get_observations = seen, get_observations

    for task, change in zip(TASKS, (manager_based, direct), strict=True):
        plain, hooked = raw_env(task, change), raw_env(task, change)
        if task == TASKS[1]:
            observe(plain), observe(hooked)
        env = IsaacLabEnv(hooked)
        states = States(env)
        results: list[list[torch.Tensor]] = [[], []]
        for seed in (random.seed, np.random.seed):
            seed(1)
        plain.reset(seed=1)
        for action in actions(100, 2.0):
            observation, reward, terminated, truncated, _ = plain.step(action)
            results[0] += [observation["policy"].clone(), reward.clone(), terminated | truncated]
        for seed in (random.seed, np.random.seed):
            seed(1)
        env.reset(1)
        for action in actions(100, 2.0):
            step = env.step(action)
            done = step.terminated | step.truncated
            results[1] += [step.obs["policy"], step.reward, done]
            if done.any() and task == TASKS[0]:
                before = states.before
                assert step.final_obs is not None and before is not None
                tip = simulator.tip_velocity(before[:, :2], before[:, 2:])
                assert torch.equal(step.final_obs["policy"][done, 4:5], tip[done])
                assert torch.equal(step.final_obs["policy"][done, 6], before[done, 3])
        assert sum(int(x.sum()) for x in results[0][2::3]) > 2 * N
        different = [i // 3 for i, (a, b) in enumerate(zip(*results, strict=True)) if not torch.equal(a, b)]
        assert not different, (task, different)


def check_a_history_ends_with_the_last_frame_and_goes_on_unharmed() -> None:
    def change(cfg: Any) -> None:
        cfg.observations.policy.history_length = 3

    env = IsaacLabEnv(raw_env(TASKS[0], change))
    states = States(env)
    previous = env.reset(1)["policy"]
    ended = 0
    for action in actions(100, 2.0):
        step = env.step(action)
        done = step.terminated | step.truncated
        frames, before = step.obs["policy"].view(N, 2, 3, 2), previous.view(N, 2, 3, 2)
        assert torch.equal(frames[~done, :, :2], before[~done, :, 1:])
        if done.any():
            assert step.final_obs is not None and states.before is not None
            final = step.final_obs["policy"].view(N, 2, 3, 2)
            assert torch.equal(final[done, :, :2], before[done, :, 1:])
            assert torch.equal(final[done, :, 2].flatten(1), states.before[done])
            ended += int(done.sum())
        previous = step.obs["policy"]
    assert ended > 2 * N


def seen(env: Any) -> torch.Tensor:
    """A gray picture in bytes, as bright as the pole leans, with channels last: ``[N, 12, 10, 1]``."""
    angle = env.scene["robot"].data.joint_pos[:, 1]
    return (128 + 100 * angle).clamp(0, 255).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 12, 10, 1)


def check_pictures_of_a_manager_are_image_groups_before_a_reset_too() -> None:
    def change(cfg: Any) -> None:
        cfg.observations.camera = ObservationGroupCfg(enable_corruption=False, concatenate_terms=True)
        cfg.observations.camera.gray = ObservationTermCfg(func=seen)

    env = IsaacLabEnv(raw_env(TASKS[0], change))
    assert spec_of(env).image_shapes == {"camera": [1, 12, 10]}
    states = States(env)
    env.reset(1)
    ended = 0
    for action in actions(60, 2.0):
        step = env.step(action)
        done = step.terminated | step.truncated
        if done.any():
            assert step.final_obs is not None and states.before is not None
            gray = (128 + 100 * states.before[:, 1]).clamp(0, 255).to(torch.uint8) / 255
            assert torch.equal(step.final_obs["camera"][done], gray.view(-1, 1, 1, 1).expand(-1, 1, 12, 10)[done])
            ended += int(done.sum())
    assert ended > N


def check_the_old_log_is_shown_on_but_counted_once() -> None:
    env = IsaacLabEnv(raw_env(TASKS[0]))
    env.reset(1)
    logs = stale = 0
    for action in actions(100):
        step = env.step(action)
        done = step.terminated | step.truncated
        assert bool(step.log) == bool(done.any())
        stale += not done.any() and "Episode_Reward/alive" in env.core.extras["log"]
        if step.log:
            logs += 1
            causes = {k: float(v) for k, v in step.log.items() if k.startswith("Episode_Termination/")}
            assert set(causes) == {"Episode_Termination/time_out", "Episode_Termination/cart_out_of_bounds"}
            assert all(isinstance(v, torch.Tensor) and v.shape == () for v in step.log.values())
    assert logs and stale > 10


def check_what_a_step_returns_is_not_written_over_by_the_next() -> None:
    for task in TASKS:
        env = IsaacLabEnv(raw_env(task))
        raw = [env.env.reset(seed=1) and env.env.step(action) for action in actions(2)]
        if task == TASKS[0]:  # in place in Isaac Lab: the row that this guards against is real
            assert raw[0][1].data_ptr() == raw[1][1].data_ptr()
        assert raw[0][2].data_ptr() == raw[1][2].data_ptr()
        env.reset(1)
        steps = [env.step(action) for action in actions(60, 2.0)]
        env.reset(1)
        for i, action in enumerate(actions(60, 2.0)):
            now = env.step(action)
            for name in ("reward", "terminated", "truncated"):
                assert torch.equal(getattr(now, name), getattr(steps[i], name)), (task, i, name)
            assert torch.equal(now.obs["policy"], steps[i].obs["policy"])


def check_nested_groups_keep_the_order_of_their_terms() -> None:
    def change(cfg: Any) -> None:
        import copy

        cfg.observations.critic = copy.deepcopy(cfg.observations.policy)
        critic = cfg.observations.critic
        critic.concatenate_terms = False
        critic.joint_pos_rel.scale = 2.0
        # A name that comes last by order and first by alphabet.
        critic.a_last = copy.deepcopy(critic.joint_pos_rel)

    env = IsaacLabEnv(raw_env(TASKS[0], change))
    assert list(env.core.single_observation_space["critic"].spaces) == ["a_last", "joint_pos_rel", "joint_vel_rel"]
    terms = env.deployment["observation_terms"]["critic"]
    assert [term["name"] for term in terms] == ["joint_pos_rel", "joint_vel_rel", "a_last"]
    assert [term["size"] for term in terms] == [2, 2, 2] and terms[0]["scale"] == 2.0
    observation = env.reset(1)
    assert env.observation_spaces["critic"].shape == (6,)
    joints = observation["policy"]
    assert torch.equal(observation["critic"], torch.cat([2 * joints[:, :2], joints[:, 2:], 2 * joints[:, :2]], 1))


def check_both_flags_and_a_finite_horizon() -> None:
    for finite in (False, True):

        def change(cfg: Any, finite: bool = finite) -> None:
            cfg.is_finite_horizon = finite
            cfg.terminations.cart_out_of_bounds.params["bounds"] = (-1e-6, 1e-6)
            cfg.episode_length_s = cfg.sim.dt * cfg.decimation

        env = IsaacLabEnv(raw_env(TASKS[0], change))
        env.reset(1)
        step = env.step(torch.zeros(N, 1))
        assert step.terminated.all() and step.truncated.all()
        env = IsaacLabEnv(raw_env(TASKS[0], lambda cfg, f=finite: setattr(cfg, "is_finite_horizon", f)))
        env.reset(1)
        steps = [env.step(torch.zeros(N, 1)) for _ in range(env.max_episode_length)]
        assert steps[-1].truncated.all() and bool(steps[-1].terminated.all()) == finite


def check_actions_are_unbounded_unless_clipped() -> None:
    env = make_env(TASKS[0], N, seed=1)
    assert env.action_space == gymnasium.spaces.Box(-float("inf"), float("inf"), (1,))
    clipped: Any = make_env("isaaclab:Isaac-Cartpole-v0", N, seed=1, clip_actions=0.5)
    assert clipped.action_space == gymnasium.spaces.Box(-0.5, 0.5, (1,))
    clipped.reset(1)
    clipped.step(torch.full((N, 1), -3.0, requires_grad=True))
    assert torch.equal(clipped.core.action_manager.action, torch.full((N, 1), -0.5))
    assert not clipped.core.reward_buf.requires_grad
    auto: Any = make_env(TASKS[0], N, seed=1, clip_actions="auto")
    assert auto.action_space == gymnasium.spaces.Box(-1.0, 1.0, (1,)) and "joint_effort" in auto.notes[0]


def check_description_for_deployment() -> None:
    env: Any = make_env(TASKS[0], 2)
    facts = env.deployment
    assert abs(facts["control_dt"] - 2 / 120) < 1e-9
    names = [(term["name"], term["size"]) for term in facts["observation_terms"]["policy"]]
    assert names == [("joint_pos_rel", 2), ("joint_vel_rel", 2)]
    (term,) = facts["action_terms"]
    assert (term["name"], term["size"], term["scale"], term["offset"]) == ("joint_effort", 1, 100.0, 0.0)
    assert (term["kind"], term["joints"]) == ("effort", ["slider_to_cart"])
    direct: Any = make_env(TASKS[1], 2)
    assert direct.max_episode_length == 300
    for told in (facts, direct.deployment):  # of a direct task its joints alone
        assert (told["physics_dt"], told["decimation"]) == (1 / 120, 2)
        slider, pole = told["joints"]
        assert (slider["name"], slider["stiffness"], slider["position_limits"]) == ("slider_to_cart", 0.0, [-4.0, 4.0])
        assert pole["default_position"] == 0.0 and "position_limits" not in pole
    assert [x.get("quantity") for x in facts["observation_terms"]["policy"]] == ["joint_position", "joint_velocity"]
    assert facts["observation_terms"]["policy"][0]["joints"] == ["slider_to_cart", "cart_to_pole"]
    assert "action_terms" not in direct.deployment
    assert sim_terms._quaternions("isaaclab.envs.mdp") == "wxyz"  # 3 has another order, and is asked in the same way


def driven_by_position(cfg: Any) -> None:
    """Both joints by position, in another order than the robot's; observations with all that the schema has."""
    import isaaclab.envs.mdp as mdp
    from isaaclab.managers import SceneEntityCfg

    names = ["cart_to_pole", "slider_to_cart"]
    cfg.actions.joint_effort = mdp.JointPositionActionCfg(
        asset_name="robot", joint_names=names, preserve_order=True, use_default_offset=False,
        scale={"cart_to_pole": 0.7, "slider_to_cart": 0.4}, offset={"slider_to_cart": 0.1},
        clip={"cart_to_pole": (-0.3, 0.5)},
    )  # fmt: skip
    policy = cfg.observations.policy
    policy.history_length = 3
    policy.joint_pos_rel.params = {"asset_cfg": SceneEntityCfg("robot", joint_names=names, preserve_order=True)}
    policy.joint_vel_rel.clip, policy.joint_vel_rel.scale = (-0.5, 0.4), (2.0, 0.3)
    policy.last = ObservationTermCfg(func=mdp.last_action)


def relative(cfg: Any) -> None:
    """The pole by steps from where it is."""
    import isaaclab.envs.mdp as mdp

    cfg.actions.joint_effort = mdp.RelativeJointPositionActionCfg(
        asset_name="robot", joint_names=["cart_to_pole"], scale=0.3
    )


def check_a_controller_from_the_file_alone_has_the_episode_of_the_adapter() -> None:
    names = ["cart_to_pole", "slider_to_cart"]  # of the robot's driver
    for change in (lambda cfg: None, driven_by_position, relative):

        def long(cfg: Any, change: Any = change) -> None:
            change(cfg)
            cfg.episode_length_s, cfg.terminations.cart_out_of_bounds.params["bounds"] = 5.0, (-1e3, 1e3)
            cfg.scene.robot.init_state.joint_pos = {"slider_to_cart": 0.0, "cart_to_pole": 0.0}

        env, other = (IsaacLabEnv(raw_env(TASKS[0], long, num_envs=1)) for _ in range(2))
        for one in (env, other):
            data = one.core.scene.robot.data
            data.default_joint_pos[:] = torch.tensor([0.05, -0.1])
            if change in (driven_by_position, relative):
                data.default_joint_stiffness[:] = torch.tensor([60.0, 5.0])
                data.default_joint_damping[:] = torch.tensor([10.0, 0.5])
        env.deployment = describe(
            env.core, {"policy": ["policy"]}, {"policy": [env.observation_spaces["policy"].shape[0]]}
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "policy.onnx")
            torch.manual_seed(3)
            spec = spec_of(env)
            model = build_policy(spec, PPOConfig(actor=NetworkConfig(hidden_dims=(16,))))
            with torch.no_grad():
                [p.mul_(30.0) for p in [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1].parameters()]
            export_onnx(model, spec, path, recording=None)
            policy, controller = OnnxPolicy(path), controller_class()(path, names)
        obs = env.reset(4)["policy"]
        other.reset(4)
        scene, robot, moved = other.core.scene, other.core.scene.robot, 0.0
        set_target = {
            "effort": robot.set_joint_effort_target,
            "position": robot.set_joint_position_target,
        }
        for _ in range(100):
            data = robot.data
            measured = {
                "joint_position": data.joint_pos[0, [1, 0]].numpy(),
                "joint_velocity": data.joint_vel[0, [1, 0]].numpy(),
            }
            ((kind, targets),) = controller.step(measured).items()
            for substep in range(other.core.cfg.decimation):
                if change is relative:  # Isaac Lab adds the step to where the joint is in each physics step
                    targets[0] += float(data.joint_pos[0, 1]) - float(measured["joint_position"][0]) if substep else 0.0
                    measured["joint_position"] = data.joint_pos[0, [1, 0]].numpy().copy()
                places = [i for i in range(2) if not np.isnan(targets[i])]
                set_target[kind](torch.from_numpy(targets[places])[None], joint_ids=[1 - i for i in places])
                scene.write_data_to_sim()
                other.core.sim.step(render=False)
                scene.update(dt=other.core.physics_dt)
            step = env.step(torch.from_numpy(policy(obs.numpy())))
            assert not (step.terminated | step.truncated).any()
            obs, own = step.obs["policy"], env.core.scene.robot.data
            moved = max(moved, float(own.joint_vel.abs().max()))
            torch.testing.assert_close(data.joint_pos, own.joint_pos, rtol=1e-5, atol=1e-5)
        assert moved > 0.3, moved


def check_random_start_spreads_the_ends() -> None:
    for task in TASKS:
        env = IsaacLabEnv(raw_env(task, num_envs=64), randomize_start=True)
        env.reset(1)
        assert len(set(env.core.episode_length_buf.tolist())) > 10
        env.randomize_start = False
        env.reset(1)
        assert env.core.episode_length_buf.tolist() == [0] * 64


def check_counters_drive_the_curriculum_after_a_resume() -> None:
    import isaaclab.envs.mdp as mdp
    from isaaclab.managers import CurriculumTermCfg

    def change(cfg: Any) -> None:
        term = CurriculumTermCfg(
            func=mdp.modify_reward_weight, params={"term_name": "alive", "weight": 9.0, "num_steps": 10}
        )
        cfg.curriculum = {"alive": term}

    env = IsaacLabEnv(raw_env(TASKS[0], change))
    env.reset(1)
    for action in actions(20):
        env.step(action)
    state = env.state_dict()
    # The curriculum has not run since the tenth step, so that no setting is another yet.
    assert state == {"common_step_counter": 20, "_sim_step_counter": 40, "changed": {}} and not env.exact_state
    for action in actions(20):
        env.step(action)
    assert env.state_dict()["changed"] == {"reward/alive/weight": 9.0}
    resumed = IsaacLabEnv(raw_env(TASKS[0], change))
    weight = resumed.core.reward_manager.get_term_cfg
    resumed.reset(1)
    assert weight("alive").weight == 1.0
    resumed.load_state_dict(state)
    resumed.reset(1)
    assert resumed.core.common_step_counter == 20 and weight("alive").weight == 9.0


def check_an_evaluation_on_the_same_env_leaves_no_trace() -> None:
    import isaaclab.envs.mdp as mdp
    from isaaclab.managers import CurriculumTermCfg

    from rlcore.stage import lent, reset_at, stage_of
    from rlcore.train.evaluate import undisturbed

    def change(cfg: Any) -> None:
        if hasattr(cfg, "curriculum"):
            term = CurriculumTermCfg(
                func=mdp.modify_reward_weight, params={"term_name": "alive", "weight": 9.0, "num_steps": 60}
            )
            cfg.curriculum = {"alive": term}

    for task in TASKS:
        for scene in ("restored", "unknown"):
            lending, other = IsaacLabEnv(raw_env(task, change)), IsaacLabEnv(raw_env(task, change))
            begun: list[Any] = []
            trace = []
            for env in (other, lending):
                simulator.Scene.latest = env.core.scene
                env.reset(1)
                steps = []
                for i, action in enumerate(actions(90, 2.0)):
                    if env is lending and i == 45:
                        if scene == "unknown":
                            env.core.scene.get_state = None
                        before = stage_of(env)
                        terminations = getattr(env.core, "termination_manager", None)
                        dones = None if terminations is None else terminations._last_episode_dones.clone()
                        with undisturbed(torch.device("cpu")), lent(env, begun.append):
                            reset_at(env, before, 7)
                            for _ in range(40):
                                env.step(torch.zeros(N, 1))
                            assert env.core.common_step_counter == 85
                        assert env.core.common_step_counter == 45
                        if "Direct" not in task:
                            assert env.core.reward_manager.get_term_cfg("alive").weight == 1.0
                            assert torch.equal(terminations._last_episode_dones, dones)
                    steps.append(env.step(action))
                trace.append(steps)
            assert other.core.common_step_counter == lending.core.common_step_counter == 90
            assert len(begun) == (scene == "unknown")
            if scene == "restored":
                for one, two in zip(*trace, strict=True):
                    assert torch.equal(one.obs["policy"], two.obs["policy"]) and torch.equal(one.reward, two.reward)
                    assert torch.equal(one.terminated, two.terminated) and torch.equal(one.truncated, two.truncated)
                    assert one.log.keys() == two.log.keys()
                    assert all(torch.equal(torch.as_tensor(x), torch.as_tensor(two.log[k])) for k, x in one.log.items())


def check_ways_to_final_observations() -> None:
    off: Any = make_env(TASKS[0], N, final_obs="off", episode_length_s=0.1)
    off.reset(1)
    assert "_reset_idx" not in vars(off.core)
    steps = [off.step(torch.zeros(N, 1)) for _ in range(off.max_episode_length)]
    assert all(step.final_obs is None for step in steps) and steps[-1].log and not steps[0].log
    assert "compute_final_obs" in refused(TASKS[0], final_obs="extras")
    hooked: Any = make_env(TASKS[0], N)
    hooked.close()
    assert "_reset_idx" not in vars(hooked.core)


def refused(task: str, **options: Any) -> str:
    try:
        make_env(task, N, **options)
    except ValueError as error:
        assert "\n" not in str(error)
        return str(error)
    raise AssertionError(f"{task} {options} was accepted")


def check_refusals_name_the_remedy() -> None:
    assert "did you mean scene.num_envs?" in refused(TASKS[0], **{"scene.num_env": 3})
    assert "did you mean sim.physx?" in refused(TASKS[0], **{"sim.physics": 3})
    assert "it must be int" in refused(TASKS[0], decimation="two")
    assert "did you mean Isaac-Cartpole-v0" in refused("Isaac-Cartpol-v0")
    assert "multi_agent_to_single_agent" in refused("Isaac-Cart-Double-Pendulum-Direct-v0")
    assert "did you mean groups=policy?" in refused(TASKS[0], groups=["polic"])
    assert "presets" in refused(TASKS[0], presets=["newton"])


def check_overrides_reach_the_env() -> None:
    options = {"episode_length_s": 1, "sim.dt": 0.005, "observations.policy.joint_vel_rel": None}
    env: Any = make_env(TASKS[0], N, seed=7, **options)
    assert env.core.cfg.seed == 7 and env.num_envs == N
    assert env.max_episode_length == 100 and env.observation_spaces["policy"].shape == (2,)


def check_ppo_trains() -> None:
    from rlcore.ppo import PPO, PPOConfig

    for task in TASKS:
        env = make_env(task, 16, seed=1, episode_length_s=0.2)
        reports: list[Any] = []
        PPO(env, PPOConfig(num_steps=16)).learn(2, on_report=reports.append)
        assert reports[-1].metrics["rollout/episodes"] > 0
        assert ("env/Episode_Reward/alive" in reports[-1].metrics) == ("Direct" not in task)


def main() -> None:
    results: dict[str, str | None] = {}
    for name, function in list(globals().items()):
        if name.startswith("check_"):
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    function()
                results[name] = None
            except Exception:
                results[name] = traceback.format_exc()
    print(json.dumps(results))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
    sys.stdout.flush()
