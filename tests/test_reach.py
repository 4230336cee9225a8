"""The Reach tasks: physics, commands, rewards, episodes and exact restarts."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlcore.env import VecEnv, spec_of
from rlcore.envs.arm import JOINT_NAMES, UR5E, UR10, forward_kinematics, quaternion_from_matrix, unique_quaternion
from rlcore.envs.reach import CONTROLS, OBSERVATION_TERMS, Reach

CONTROL_MODES = pytest.mark.parametrize("control", list(CONTROLS))


def random_actions(steps: int, num_envs: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(steps, num_envs, 6, generator=torch.Generator().manual_seed(seed))


def at_home(num_envs: int, **options: Any) -> Reach:
    """Arms at rest at home, exact readings: with zero actions they stay there."""
    env = Reach(num_envs=num_envs, seed=0, noise=0.0, reset_range=(1.0, 1.0), **options)
    env.reset()
    return env


def pose_action(env: Reach, gain: float) -> Tensor:
    """Relative pose from the end effector towards the command, in actions of the IK mode."""
    position, rotation = forward_kinematics(env.model, env.joint_position)
    w, x, y, z = quaternion_from_matrix(rotation).unbind(1)
    target = env.command[:, 3:]
    inverse = torch.stack(
        (
            torch.stack((w, x, y, z)),
            torch.stack((-x, w, -z, y)),
            torch.stack((-y, z, w, -x)),
            torch.stack((-z, -y, x, w)),
        )
    ).permute(2, 0, 1)  # [N, 4, 4]: target times the conjugate of the end effector's quaternion
    relative = unique_quaternion((inverse @ target[:, :, None])[..., 0])
    half = torch.atan2(relative[:, 1:].norm(dim=1), relative[:, 0])
    turn = 2 * half[:, None] * relative[:, 1:] / relative[:, 1:].norm(dim=1, keepdim=True).clamp(min=1e-9)
    return gain * torch.cat((env.command[:, :3] - position, turn), dim=1) / env.action_scale


@pytest.mark.parametrize("arm", ["UR5e", "UR10"])
@CONTROL_MODES
def test_every_task_follows_the_contract(arm: str, control: str) -> None:
    env = Reach(arm, control, num_envs=3, seed=0)
    assert isinstance(env, VecEnv)
    spec = spec_of(env)
    assert spec.task == f"Reach-{arm}-{control}"
    assert (spec.observation_sizes, spec.action_size) == ({"policy": 32}, 6)
    assert spec.action_high == [1.0 if control == "Torque" else math.inf] * 6
    terms = spec.deployment["observation_terms"]["policy"]
    assert [(t["name"], t["size"]) for t in terms] == list(OBSERVATION_TERMS)
    assert spec.deployment["control_dt"] == pytest.approx(1 / 30)
    (action_term,) = spec.deployment["action_terms"]
    assert (action_term["size"], len(action_term["scale"]), len(action_term["offset"])) == (6, 6, 6)
    assert action_term["joints"] == [joint["name"] for joint in spec.deployment["joints"]] == list(JOINT_NAMES)
    obs = env.reset(1)
    step = env.step(torch.zeros(3, 6))
    for group in (obs, step.obs, step.final_obs):
        assert group is not None
        assert group["policy"].shape == (3, 32)
        assert group["policy"].dtype == torch.float32
    assert step.reward.shape == (3,)
    assert step.truncated.dtype == torch.bool


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"arm": "UR3"}, "unknown arm 'UR3'"),
        ({"control": "Joint"}, "unknown control mode 'Joint'"),
        ({"num_envs": 0}, "num_envs is 0"),
        ({"action_scale": 0.0}, "action_scale is 0.0"),
        ({"ik_damping": -1.0}, "ik_damping is -1.0"),
        ({"noise": -0.1}, "noise is -0.1"),
        ({"reset_range": (1.5, 0.5)}, "reset_range"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Reach(**options)


def test_wrong_action_shape_and_missing_reset_are_refused() -> None:
    env = Reach(num_envs=2, seed=0)
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(torch.zeros(2, 6))
    env.reset()
    with pytest.raises(ValueError, match=r"action is torch.float32 of shape \(2, 5\)"):
        env.step(torch.zeros(2, 5))


def test_observation_holds_its_terms_in_order() -> None:
    env = Reach(num_envs=5, seed=0, noise=0.0)
    env.reset()
    for action in random_actions(10, 5):
        obs = env.step(action).obs["policy"]
    position, rotation = forward_kinematics(env.model, env.joint_position)
    home = torch.tensor(UR5E.home)
    torch.testing.assert_close(obs[:, :6], env.joint_position - home)
    torch.testing.assert_close(obs[:, 6:9], position)
    torch.testing.assert_close(obs[:, 9:13], unique_quaternion(quaternion_from_matrix(rotation), 1), atol=1e-5, rtol=0)
    assert torch.equal(obs[:, 13:20], env.command)
    assert torch.equal(obs[:, 20:26], env.joint_velocity)
    assert torch.equal(obs[:, 26:], action)


def test_noise_is_uniform_on_joint_readings_and_absent_elsewhere() -> None:
    noisy, exact = Reach(num_envs=500, seed=0), Reach(num_envs=500, seed=0, noise=0.0)
    noisy.reset(3)
    exact.reset(3)
    action = random_actions(1, 500)[0]
    difference = noisy.step(action).obs["policy"] - exact.step(action).obs["policy"]
    read = torch.cat((difference[:, :6], difference[:, 20:26]), dim=1)
    assert read.abs().max() <= 0.0101
    assert read.std().item() == pytest.approx(0.01 / math.sqrt(3), rel=0.05)
    assert difference[:, 6:20].abs().max() == 0
    assert difference[:, 26:].abs().max() == 0


def test_one_control_step_equals_a_scalar_reference_of_the_implicit_drive() -> None:
    env = Reach("UR10", num_envs=4, seed=0)
    env.reset()
    for name, low, high in (("stiffness", 100, 900), ("damping", 1, 60), ("inertia", 0.1, 3), ("effort_limit", 5, 300)):
        getattr(env, name).uniform_(low, high)
    for action in random_actions(5, 4):
        q, v = env.joint_position.double().numpy().copy(), env.joint_velocity.double().numpy().copy()
        env.step(action)
        dt = 1 / 60
        effort = 0.0
        for n in range(4):
            for j in range(6):
                kp, kd, inertia, limit = (
                    float(getattr(env, name)[n, j]) for name in ("stiffness", "damping", "inertia", "effort_limit")
                )
                target = UR10.home[j] + 0.5 * float(action[n, j])
                for _ in range(2):
                    new = (v[n, j] + dt / inertia * kp * (target - q[n, j])) / (
                        1 + dt * kd / inertia + dt**2 * kp / inertia
                    )
                    effort = np.clip(inertia * (new - v[n, j]) / dt, -limit, limit)
                    fastest = UR10.velocity_limit[j]
                    v[n, j] = np.clip(v[n, j] + dt * effort / inertia, -fastest, fastest)
                    q[n, j] += dt * v[n, j]
                assert float(env.applied_effort[n, j]) == pytest.approx(effort, rel=1e-3, abs=1e-2)
        np.testing.assert_allclose(env.joint_position.numpy(), q, atol=1e-5)
        np.testing.assert_allclose(env.joint_velocity.numpy(), v, atol=1e-4)


@CONTROL_MODES
def test_physical_constants_of_one_env_change_that_env_alone(control: str) -> None:
    for name in ("inertia", "damping", "effort_limit", "velocity_limit"):
        plain, changed = (at_home(3, control=control) for _ in range(2))
        getattr(changed, name)[1] *= 0.1
        action = torch.full((3, 6), 0.9)
        for _ in range(10):
            plain.step(action)
            changed.step(action)
        same = (plain.joint_position == changed.joint_position).all(1)
        assert same.tolist() == [True, False, True], name


def test_joint_velocity_mode_reaches_its_target_velocity() -> None:
    env = at_home(1, control="JointVel")
    action = torch.tensor([[0.5, -0.4, 0.3, 1.0, -1.0, 0.2]])
    for _ in range(30):
        env.step(action)
    torch.testing.assert_close(env.joint_velocity, action, atol=1e-3, rtol=0)


def test_torque_mode_applies_the_share_of_the_effort_limit_and_friction_slows() -> None:
    env = at_home(1, control="Torque")
    env.damping.zero_()
    env.step(torch.full((1, 6), 0.01))
    torch.testing.assert_close(env.applied_effort, 0.01 * torch.tensor([UR5E.effort_limit]))
    speed = 2 / 60 * 0.01 * torch.tensor([UR5E.effort_limit]) / torch.tensor([UR5E.inertia])
    torch.testing.assert_close(env.joint_velocity, speed)
    env.damping.fill_(1.0)
    env.step(torch.zeros(1, 6))
    torch.testing.assert_close(env.joint_velocity, speed / (1 + 1 / 60 / torch.tensor([UR5E.inertia])) ** 2)


def test_joint_position_mode_settles_on_its_target() -> None:
    env = at_home(1)
    action = torch.tensor([[0.5, -0.4, 0.3, 1.0, -1.0, 0.2]])
    for _ in range(90):
        env.step(action)
    torch.testing.assert_close(env.joint_position, torch.tensor([UR5E.home]) + 0.5 * action, atol=1e-3, rtol=0)


@pytest.mark.parametrize("arm", ["UR5e", "UR10"])
def test_ik_mode_reaches_a_fixed_pose(arm: str) -> None:
    env = at_home(1, arm=arm, control="IK")
    # A bent wrist, tool roughly down, away from the singular home.
    goal = torch.tensor([[0.3, -1.5, 2.0, 1.1, 1.4, 0.2]])
    position, rotation = forward_kinematics(env.model, goal)
    env.command[:, :3] = position
    env.command[:, 3:] = unique_quaternion(quaternion_from_matrix(rotation), 1)
    env.command_left.fill_(1000)
    for _ in range(180):
        obs = env.step(pose_action(env, gain=0.5)).obs["policy"]
    reached, turned = forward_kinematics(env.model, env.joint_position)
    torch.testing.assert_close(reached, position, atol=1e-3, rtol=0)
    torch.testing.assert_close(turned, rotation, atol=5e-3, rtol=0)
    # Observed pose and command are one vector on arrival, signs included.
    torch.testing.assert_close(obs[:, 6:13], obs[:, 13:20], atol=5e-3, rtol=0)


@CONTROL_MODES
def test_limits_hold_under_random_actions_for_1e5_steps(control: str) -> None:
    num_envs = 200
    env = Reach("UR5e", control, num_envs, seed=0, action_scale=0.5)
    env.reset()
    farthest, fastest = torch.tensor(UR5E.position_limit), torch.tensor(UR5E.velocity_limit)
    strongest, inertia = torch.tensor(UR5E.effort_limit), torch.tensor(UR5E.inertia)
    generator = torch.Generator().manual_seed(1)
    friction = env.damping[0] if control == "Torque" else torch.zeros(6)
    at_limit, hurried = torch.zeros(6), torch.zeros(6)
    steps = 500 if control == "Torque" else 120
    for t in range(steps):
        if t % 50 == 0:
            push = 4 * torch.randn(num_envs, 6, generator=generator)  # held long enough to hit the stops
        q, v = env.joint_position.clone(), env.joint_velocity.clone()
        step = env.step(push + torch.randn(num_envs, 6, generator=generator))
        assert torch.isfinite(step.obs["policy"]).all()
        assert torch.isfinite(step.reward).all()
        assert (env.joint_position.abs() <= farthest).all()
        assert (env.joint_velocity.abs() <= fastest).all()
        assert (env.applied_effort.abs() <= strongest).all()
        # A stop may be hit in the first physics step and left in the second.
        stopped = (q.abs() + 2 / 60 * fastest >= farthest) | step.truncated[:, None]
        # Seen from outside: no joint gains more speed than the effort limit allows.
        change = (env.joint_velocity - v).abs() * inertia
        allowed = 2 / 60 * (strongest + friction * fastest) * (1 + 1e-4)
        assert (stopped | (change <= allowed)).all()
        at_limit += (env.joint_position.abs() == farthest).sum(0)
        hurried += (env.joint_velocity.abs() == fastest).sum(0)
    if control == "Torque":
        assert (at_limit > 0).all()  # the limits were met, not merely never approached
        assert (hurried > 0).all()


def test_joint_stops_leave_no_velocity_into_them() -> None:
    env = at_home(1, control="Torque")
    for _ in range(100):
        env.step(torch.ones(1, 6))
    assert torch.equal(env.joint_position[0], torch.tensor(UR5E.position_limit))
    assert torch.equal(env.joint_velocity[0], torch.zeros(6))


def test_reward_of_one_step_by_hand() -> None:
    env = Reach(num_envs=3, seed=0, fine_weight=2.5)
    env.reset()
    env.step(random_actions(1, 3)[0])
    command = env.command.double().clone()
    reward = env.step(random_actions(1, 3, seed=1)[0]).reward
    position, rotation = forward_kinematics(env.model, env.joint_position.double())
    for n in range(3):
        distance = math.dist(position[n].tolist(), command[n, :3].tolist())
        half_yaw = math.atan2(command[n, 5], command[n, 4])
        c, s = math.cos(2 * half_yaw), math.sin(2 * half_yaw)
        downward = torch.tensor([[c, s, 0], [s, -c, 0], [0, 0, -1]], dtype=torch.float64)  # Rz(yaw) Rx(pi)
        angle = math.acos((float(torch.trace(downward.t() @ rotation[n])) - 1) / 2)
        speed = float(env.joint_velocity[n].double().square().sum())
        fine = 2.5 * (1 - math.tanh(distance / 0.1))
        expected = (-6 * distance - 4 * angle - 1e-4 * speed + fine) / 30
        assert float(reward[n]) == pytest.approx(expected, abs=1e-5)


def test_commands_lie_in_the_box_point_down_and_have_one_sign() -> None:
    env = Reach(num_envs=4000, seed=0)
    env.reset()
    low, high = torch.tensor([0.3, -0.3, 0.25]), torch.tensor([0.5, 0.3, 0.4])
    position, quaternion = env.command[:, :3], env.command[:, 3:]
    assert (position >= low).all()
    assert (position <= high).all()
    torch.testing.assert_close(position.amin(0), low, atol=2e-3, rtol=0)
    torch.testing.assert_close(position.amax(0), high, atol=2e-3, rtol=0)
    torch.testing.assert_close(quaternion.norm(dim=1), torch.ones(4000))
    assert (quaternion[:, [0, 3]] == 0).all()
    assert (quaternion[:, 1] >= 0).all()
    yaw = 2 * torch.atan2(quaternion[:, 2], quaternion[:, 1])
    counts = torch.histc(yaw, 8, -math.pi, math.pi)
    assert (counts - 500).abs().max() < 100  # the whole circle, evenly
    drawn = torch.cat((position, yaw[:, None], env.command_left[:, None]), dim=1)
    related = torch.corrcoef(drawn.t()) - torch.eye(5)
    assert related.abs().max() < 0.08  # independent draws: 5 standard deviations


def test_commands_last_two_to_four_seconds() -> None:
    env = Reach(num_envs=300, seed=0)
    env.reset()
    before, age = env.command.clone(), torch.zeros(300)
    lengths: list[float] = []
    for _ in range(359):
        env.step(torch.zeros(300, 6))
        age += 1
        changed = (env.command != before).any(1)
        lengths += age[changed].tolist()
        age[changed] = 0
        before = env.command.clone()
    assert len(lengths) > 900
    assert 60 <= min(lengths) <= 61
    assert 119 <= max(lengths) <= 120
    assert np.mean(lengths) == pytest.approx(89, abs=2)  # below 90.5: long ones are cut by the end of the episode


def test_success_is_judged_at_the_end_of_each_interval() -> None:
    env = at_home(3)
    position, rotation = forward_kinematics(env.model, env.joint_position)
    pose = torch.cat((position, quaternion_from_matrix(rotation)), dim=1)
    half = 0.15  # rad: a turn of 0.3 about the vertical
    w, x, y, z = pose[:, 3:].unbind(1)
    c, s = math.cos(half), math.sin(half)
    turned = torch.stack((c * w - s * z, c * x - s * y, c * y + s * x, c * z + s * w), dim=1)

    env.command.copy_(pose)
    env.command[1, 0] += 0.06
    env.command[2, 3:] = turned[2]
    env.command_left.fill_(2)
    log = env.step(torch.zeros(3, 6)).log
    assert isinstance(log["num_goals"], Tensor)
    assert log["num_goals"].tolist() == [0, 0, 0]
    log = env.step(torch.zeros(3, 6)).log
    torch.testing.assert_close(log["num_goals"], torch.ones(3))
    torch.testing.assert_close(log["success"], torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(log["position_error"], torch.tensor([0.0, 0.06, 0.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(log["orientation_error"], torch.tensor([0.0, 0.0, 0.3]), atol=1e-5, rtol=0)

    env.command.copy_(pose)
    env.command[0, 1] += 0.08
    env.command_left.fill_(1)
    log = env.step(torch.zeros(3, 6)).log
    torch.testing.assert_close(log["num_goals"], torch.full((3,), 2.0))
    torch.testing.assert_close(log["success"], torch.full((3,), 0.5))
    torch.testing.assert_close(log["position_error"], torch.tensor([0.04, 0.03, 0.0]), atol=1e-5, rtol=0)

    # The command that the time-out cuts does not count, and the next episode starts at nothing.
    env.command_left.fill_(50)
    env.steps.fill_(359)
    step = env.step(torch.zeros(3, 6))
    assert step.truncated.all()
    torch.testing.assert_close(step.log["num_goals"], torch.full((3,), 2.0))
    torch.testing.assert_close(env.step(torch.zeros(3, 6)).log["num_goals"], torch.zeros(3))


def test_episodes_last_360_steps_and_only_time_out() -> None:
    env = Reach(num_envs=4, seed=0)
    env.reset()
    ends = []
    for t, action in enumerate(random_actions(725, 4), start=1):
        step = env.step(action)
        assert not step.terminated.any()
        if step.truncated.any():
            assert step.truncated.all()
            assert isinstance(step.log["num_goals"], Tensor)
            assert ((step.log["num_goals"] >= 3) & (step.log["num_goals"] <= 6)).all()
            ends.append(t)
    assert ends == [360, 720]


def test_a_new_episode_starts_at_rest_near_home() -> None:
    env = Reach(num_envs=64, seed=0, noise=0.0)
    env.reset()
    env.steps[:32] = 359
    env.command_left.fill_(30)
    before = env.command.clone()
    obs = env.step(random_actions(1, 64)[0]).obs["policy"]
    home = torch.tensor(UR5E.home)
    ratio = (obs[:32, 1:3] + home[1:3]) / home[1:3]
    assert ratio.min() >= 0.75 - 1e-5
    assert ratio.max() <= 1.25 + 1e-5
    assert ratio.std() > 0.1
    assert obs[:32, [0, 3, 4, 5]].abs().max() == 0
    assert obs[:32, 20:].abs().max() == 0
    assert (obs[32:, 20:].abs().amax(1) > 0).all()
    assert ((env.command_left >= 60) & (env.command_left <= 120)).tolist() == [True] * 32 + [False] * 32
    assert (env.command == before).all(1).tolist() == [False] * 32 + [True] * 32


def test_final_obs_is_what_an_episode_without_end_would_have_seen() -> None:
    env, endless = Reach(num_envs=8, seed=5), Reach(num_envs=8, seed=5)
    endless.max_episode_length = 10**9
    env.reset(5)
    endless.reset(5)
    for t, action in enumerate(random_actions(360, 8), start=1):
        step, other = env.step(action), endless.step(action)
        assert step.final_obs is not None
        assert torch.equal(step.final_obs["policy"], other.obs["policy"])
        assert torch.equal(step.reward, other.reward)
        assert torch.equal(step.obs["policy"], step.final_obs["policy"]) == (t < 360)


def test_only_the_rows_that_ended_differ_from_final_obs() -> None:
    env = Reach(num_envs=6, seed=0)
    env.reset()
    env.steps[[1, 4]] = 359
    step = env.step(random_actions(1, 6)[0])
    assert step.final_obs is not None
    differs = (step.obs["policy"] != step.final_obs["policy"]).any(1)
    assert differs.tolist() == step.truncated.tolist() == [False, True, False, False, True, False]


@CONTROL_MODES
def test_same_seed_same_rollout_other_seed_another(control: str) -> None:
    envs = [Reach(control=control, num_envs=4, seed=seed) for seed in (0, 1, 2)]
    first = [env.reset(seed)["policy"] for env, seed in zip(envs, (7, 7, 8), strict=True)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    for action in random_actions(80, 4):
        a, b, c = (env.step(action) for env in envs)
        assert torch.equal(a.obs["policy"], b.obs["policy"])
        assert torch.equal(a.reward, b.reward)
    assert not torch.equal(a.obs["policy"], c.obs["policy"])


@CONTROL_MODES
def test_state_dict_continues_bit_for_bit(control: str, tmp_path: Any) -> None:
    env = Reach(control=control, num_envs=4, seed=0)
    env.reset()
    env.inertia.uniform_(0.5, 2.0)
    env.steps.fill_(300)
    actions = random_actions(130, 4)
    for action in actions[:30]:
        env.step(action)
    torch.save(env.state_dict(), tmp_path / "state.pt")
    other = Reach(control=control, num_envs=4, seed=99)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for action in actions[30:]:  # through the end of the episode
        a, b = env.step(action), other.step(action)
        assert torch.equal(a.obs["policy"], b.obs["policy"])
        assert torch.equal(a.reward, b.reward)
        assert all(torch.equal(torch.as_tensor(a.log[k]), torch.as_tensor(b.log[k])) for k in a.log)


def test_state_from_before_the_counter_was_renamed_is_taken() -> None:
    env, other = Reach(num_envs=2, seed=0), Reach(num_envs=2, seed=1)
    env.reset()
    env.steps.fill_(300)
    state = env.state_dict()
    state["episode_steps"] = state.pop("steps")
    other.load_state_dict(state)
    assert other.steps.tolist() == [300, 300]


def test_state_of_another_size_or_task_is_refused_untouched() -> None:
    env = Reach(num_envs=2, seed=0)
    before = env.state_dict()
    with pytest.raises(ValueError, match="num_envs"):
        env.load_state_dict(Reach(num_envs=3, seed=1).state_dict())
    with pytest.raises(ValueError, match="has no 'joint_position'"):
        env.load_state_dict({})
    assert all(torch.equal(value, before[name]) for name, value in env.state_dict().items())


def test_returned_tensors_do_not_change_with_later_steps() -> None:
    env = Reach(num_envs=3, seed=0)
    env.reset()
    step = env.step(random_actions(1, 3)[0])
    tensors = [step.obs["policy"], step.reward, step.truncated, *(torch.as_tensor(v) for v in step.log.values())]
    copies = [t.clone() for t in tensors]
    env.command_left.fill_(1)
    env.steps.fill_(359)
    env.step(random_actions(1, 3, seed=1)[0])
    assert all(torch.equal(t, copy) for t, copy in zip(tensors, copies, strict=True))


@CONTROL_MODES
def test_step_reads_nothing_on_the_host_and_keeps_its_buffers(control: str) -> None:
    class Recorder(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: Counter[str] = Counter()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen[str(func.overloadpacket)] += 1
            return func(*args, **(kwargs or {}))

    env = Reach(control=control, num_envs=3, seed=0)
    env.reset()
    places = {name: value.data_ptr() for name, value in vars(env).items() if isinstance(value, Tensor)}
    env.steps[1] = 359
    action = random_actions(1, 3)[0]
    with Recorder() as recorder:
        env.step(action)
    assert recorder.seen["aten.where"] > 0
    hosts = {"aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.index", "aten.index_put_"}
    assert not hosts & set(recorder.seen)
    assert places == {name: value.data_ptr() for name, value in vars(env).items() if isinstance(value, Tensor)}


def test_a_plain_pose_controller_meets_most_commands() -> None:
    env = Reach(control="IK", num_envs=64, seed=0, noise=0.0)
    env.reset()
    for _ in range(360):
        log = env.step(pose_action(env, gain=0.5)).log
    goals, success = torch.as_tensor(log["num_goals"]), torch.as_tensor(log["success"])
    assert float((goals * success).sum() / goals.sum()) > 0.95


def test_render_draws_env_0_and_changes_as_it_moves() -> None:
    env = Reach(num_envs=2, seed=0)
    env.reset()
    first = env.render()
    assert first.dtype == np.uint8
    assert first.ndim == 3
    assert first.shape[2] == 3
    assert np.unique(first).size > 10
    for action in random_actions(10, 2):
        env.step(action)
    second = env.render()
    assert (first != second).any()
    env.close()


@pytest.mark.gpu
@CONTROL_MODES
def test_cuda_step_equals_cpu_without_host_synchronization(control: str) -> None:
    cpu, cuda = Reach(control=control, num_envs=16, seed=0), Reach(control=control, num_envs=16, device="cuda", seed=0)
    cpu.reset()
    cuda.reset()
    state = cpu.state_dict()
    state.pop("generator")
    cuda.load_state_dict({**state, "generator": cuda.generator.get_state()})
    actions = random_actions(10, 16)  # more, and rounding has grown too far
    on_device = actions.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for action in on_device:
            step = cuda.step(action)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for action in actions:
        expected = cpu.step(action)
    torch.testing.assert_close(cuda.joint_position.cpu(), cpu.joint_position, atol=1e-3, rtol=0)
    torch.testing.assert_close(step.reward.cpu(), expected.reward, atol=1e-3, rtol=0)
