"""Physical parameters of the built-in tasks with a value for each env, and pushes."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from rlcore.capture import Captured
from rlcore.env import is_pushable, is_randomizable
from rlcore.envs import make_env
from rlcore.envs.arm import UR5E, UR10, forward_kinematics
from rlcore.envs.classic import CartPole, Pendulum
from rlcore.envs.drives import GRAVITY, payload_on
from rlcore.envs.reach import CONTROLS, Reach
from rlcore.types import Step

ARMS = ["Reach-UR10-IK", *(f"Reach-UR5e-{control}" for control in CONTROLS)]
TASKS = ["CartPole", "CartPole-Pixels", "Pendulum", "Detour", *ARMS, "Reach-UR5e-JointVel-Box", "Pendulum-Delayed"]
PUSHED = [task for task in TASKS if task != "Detour"]
N = 6


def action_of(env: Any, generator: torch.Generator) -> Tensor:
    if isinstance(env.action_space, gymnasium.spaces.Discrete):
        return torch.randint(2, (env.num_envs,), generator=generator)
    return 2 * torch.randn(env.num_envs, *env.action_space.shape, generator=generator)


def rollout(env: Any, steps: int = 40, seed: int = 0) -> list[Step]:
    generator = torch.Generator().manual_seed(seed)
    return [env.step(action_of(env, generator).to(env.device)) for _ in range(steps)]


def rows_differ(ones: list[Step], others: list[Step]) -> list[bool]:
    """Of which envs anything differs."""
    differs = torch.zeros(N, dtype=torch.bool)
    for one, other in zip(ones, others, strict=True):
        for a, b in zip((one.obs["policy"], one.reward), (other.obs["policy"], other.reward), strict=True):
            differs |= (a != b).reshape(N, -1).any(1).cpu()
    return differs.tolist()


def everywhere(env: Any, **values: float) -> None:
    rows = {name: torch.full((env.num_envs,), value, device=env.device) for name, value in values.items()}
    env.set_parameters(rows, torch.ones(env.num_envs, dtype=torch.bool, device=env.device))


def nominal(env: Any) -> dict[str, float]:
    return {name: parameter.nominal for name, parameter in env.parameters.items()}


@pytest.mark.parametrize("task", TASKS)
def test_nominal_values_change_not_a_bit(task: str) -> None:
    plain, given = (make_env(task, N, seed=3) for _ in range(2))
    plain.reset()
    given.reset()
    assert is_randomizable(given)
    everywhere(given, **nominal(given))
    assert not any(rows_differ(rollout(plain, 150), rollout(given, 150)))


def test_numbers_for_each_env_round_as_plain_ones_do() -> None:
    env = CartPole(64, seed=0)
    env.reset()
    env.state.mul_(3.0)
    x, x_dot, angle, angle_dot = env.state.clone().unbind(1)
    action = torch.arange(64) % 2
    step = env.step(action)
    gravity, pole_mass, total_mass, half_length, moment = 9.8, 0.1, 1.1, 0.5, 0.1 * 0.5
    force = (2 * (action == 1) - 1) * 10.0
    sin, cos = angle.sin(), angle.cos()
    push = (force + moment * angle_dot.square() * sin) / total_mass
    angle_acc = (gravity * sin - cos * push) / (half_length * (4.0 / 3.0 - pole_mass * cos.square() / total_mass))
    x_acc = push - moment * angle_acc * cos / total_mass
    want = torch.stack((x + 0.02 * x_dot, x_dot + 0.02 * x_acc, angle + 0.02 * angle_dot, angle_dot + 0.02 * angle_acc))
    assert step.final_obs is not None and torch.equal(step.final_obs["policy"], want.t())


@pytest.mark.parametrize("task", TASKS)
def test_values_are_for_the_envs_that_they_are_given_for_and_each_matters(task: str) -> None:
    where = torch.tensor([False, True, False, False, True, False])
    for name, parameter in make_env(task, 1).parameters.items():
        plain, changed = (make_env(task, N, seed=3) for _ in range(2))
        plain.reset()
        changed.reset()
        values = torch.full((N,), parameter.low if parameter.low != parameter.nominal else parameter.high)
        changed.set_parameters({name: values}, where)
        if parameter.next_episode:
            plain.reset(4)
            changed.reset(4)
        differs = rows_differ(rollout(plain), rollout(changed))
        elsewhere = {"radius": "a signal, not an observation", "tolerance": "what is told of success"}
        if task == "Reach-UR10-IK" and name == "fine_weight":  # it acts near a target, where few come in this time
            assert not any(
                differs_here and not given for differs_here, given in zip(differs, where.tolist(), strict=True)
            )
            continue
        assert differs == ([False] * N if name in elsewhere else where.tolist()), name


@pytest.mark.parametrize("task", TASKS)
def test_the_nominal_value_lies_in_the_range(task: str) -> None:
    for parameter in make_env(task, 1).parameters.values():
        assert parameter.low <= parameter.nominal <= parameter.high and parameter.low < parameter.high


def test_cartpole_with_other_parameters_is_gymnasiums() -> None:
    env = CartPole(1, seed=0, max_episode_length=1000)
    env.reset()
    everywhere(env, pole_mass=0.3, cart_mass=0.7, length=1.6, force=6.0, gravity=8.5)
    reference: Any = gymnasium.make("CartPole-v1").unwrapped
    reference.reset(seed=0)
    reference.masspole, reference.masscart, reference.length, reference.force_mag, reference.gravity = (
        0.3,
        0.7,
        0.8,
        6.0,
        8.5,
    )
    reference.total_mass, reference.polemass_length = 1.0, 0.3 * 0.8
    reference.state = env.state[0].double().numpy()
    for action in (1, 0, 0, 1, 1, 0, 1, 0):
        step = env.step(torch.tensor([action]))
        observation, *_ = reference.step(action)
        np.testing.assert_allclose(step.obs["policy"][0].numpy(), observation, atol=1e-5)


def test_pendulum_with_other_parameters_follows_the_rod() -> None:
    env = Pendulum(N, seed=0)
    env.reset()
    generator = torch.Generator().manual_seed(0)
    drawn = {name: p.low + (p.high - p.low) * torch.rand(N, generator=generator) for name, p in env.parameters.items()}
    env.set_parameters(drawn, torch.ones(N, dtype=torch.bool))
    m, length, g, damping, gain = (drawn[x].double() for x in ("mass", "length", "gravity", "damping", "gain"))
    for _ in range(5):
        angle, speed = env.state.double().unbind(1)
        action = 3 * torch.randn(N, 1, generator=generator)
        torque = action[:, 0].double().clamp(-2, 2)
        env.step(action)
        # A rod about its end: m l²/3 acceleration = m g l/2 sin(angle) + gain torque - damping speed.
        turn = m * g * length / 2 * angle.sin() + gain * torque - damping * speed
        want = speed + 0.05 * turn / (m * length**2 / 3)
        torch.testing.assert_close(env.state[:, 1].double(), want.clamp(-8, 8), atol=1e-5, rtol=1e-5)


def lever(model: Any, q: Tensor) -> Tensor:
    """Jacobians ``[N, 3, 6]`` of the end effector's position by differentiation, in float64."""
    q = q.double()
    return torch.stack(
        [
            torch.autograd.functional.jacobian(lambda x: forward_kinematics(model, x[None])[0][0], row)  # type: ignore[no-untyped-call]
            for row in q
        ]
    )


@pytest.mark.parametrize("model", [UR5E, UR10])
def test_a_payload_pulls_with_the_transposed_jacobian_and_adds_its_inertia(model: Any) -> None:
    q = 3 * torch.randn(20, 6, dtype=torch.float64)
    mass = torch.rand(20, dtype=torch.float64)
    pull, inertia = payload_on(model, q, mass)
    jacobian = lever(model, q)  # [20, 3, 6]
    torch.testing.assert_close(pull, -mass[:, None] * GRAVITY * jacobian[:, 2])
    torch.testing.assert_close(inertia, mass[:, None] * jacobian.square().sum(1))


@pytest.mark.parametrize("arm", ["UR5e", "UR10"])
def test_an_arm_that_holds_a_payload_sags_by_its_torque_over_the_stiffness(arm: str) -> None:
    env = Reach(arm, num_envs=N, seed=0, noise=0.0)
    env.reset()
    mass, stiffness = torch.linspace(0.0, 5.0, N), torch.linspace(0.5, 1.5, N)
    env.set_parameters({"payload": mass, "stiffness": stiffness}, torch.ones(N, dtype=torch.bool))
    action = torch.tensor([[0.5, -0.4, 0.3, 1.0, -1.0, 0.2]]).expand(N, 6)
    for _ in range(200):
        env.step(action)
    sag = env.joint_position - (torch.tensor(env.model.home) + 0.5 * action)
    jacobian = lever(env.model, env.joint_position)
    want = -mass[:, None] * GRAVITY * jacobian[:, 2] / (800.0 * stiffness[:, None])
    assert want.abs().max() > 0.01  # rad: it can be seen
    torch.testing.assert_close(sag.double(), want, atol=2e-4, rtol=1e-2)


def test_a_payload_accelerates_less_and_falls() -> None:
    env = Reach(control="Torque", num_envs=2, seed=0, noise=0.0, reset_range=(1.0, 1.0))
    env.reset()
    everywhere(env, payload=4.0)
    env.damping.zero_()
    jacobian = lever(env.model, env.joint_position)
    effort = 0.1 * torch.tensor(UR5E.effort_limit).double()
    env.step(torch.full((2, 6), 0.1))
    inertia = torch.tensor(UR5E.inertia) + 4.0 * jacobian.square().sum(1)
    want = (effort - 4.0 * GRAVITY * jacobian[:, 2]) / inertia / 30
    torch.testing.assert_close(env.joint_velocity.double(), want, atol=1e-5, rtol=1e-4)


def test_factors_are_of_the_constants_of_the_joints() -> None:
    env = Reach("UR10", num_envs=3, seed=0)
    everywhere(env, stiffness=0.5, damping=0.25, inertia=2.0, effort_limit=0.75, velocity_limit=0.125)
    for name, want in (
        ("stiffness", (400.0,) * 6),
        ("damping", (10.0,) * 6),
        ("inertia", tuple(2 * x for x in UR10.inertia)),
        ("effort_limit", tuple(0.75 * x for x in UR10.effort_limit)),
        ("velocity_limit", tuple(0.125 * x for x in UR10.velocity_limit)),
    ):
        torch.testing.assert_close(getattr(env, name), torch.tensor(want).expand(3, 6), msg=name)


@pytest.mark.parametrize("control", ["JointVel", "Torque"])
def test_what_is_zero_is_no_parameter(control: str) -> None:
    env = Reach(control=control, num_envs=2, seed=0)
    assert "stiffness" not in env.parameters
    with pytest.raises(
        ValueError, match=r"Reach-UR5e-.*there is no parameter 'stiffness'; valid: command_range, damping"
    ):
        everywhere(env, stiffness=1.0)


@pytest.mark.parametrize("task", ["Null", "Memory", "Budget"])
def test_tasks_without_physics_are_told_from_others(task: str) -> None:
    env = make_env(task, 2)
    assert not is_randomizable(env) and not is_pushable(env)
    assert not is_pushable(make_env("Detour", 2))


@pytest.mark.parametrize(
    ("values", "where", "named"),
    [
        (
            {"masss": torch.ones(2)},
            torch.ones(2).bool(),
            "Pendulum: there is no parameter 'masss'; did you mean 'mass'",
        ),
        ({"mass": torch.ones(3)}, torch.ones(2).bool(), r"values of 'mass' have shape \(3,\), not \(2,\)"),
        ({"mass": torch.ones(2)}, torch.ones(2), r"where is torch.float32 of shape \(2,\); give bool"),
        ({"mass": torch.ones(2)}, torch.ones(3).bool(), r"where is torch.bool of shape \(3,\)"),
    ],
)
def test_bad_values_are_named(values: Any, where: Tensor, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Pendulum(2).set_parameters(values, where)


@pytest.mark.parametrize("task", TASKS)
def test_parameters_and_pushes_resume_bit_for_bit(task: str) -> None:
    env, other = (make_env(task, N, seed=seed) for seed in (3, 4))
    env.reset()
    drawn = {name: p.low + (p.high - p.low) * torch.rand(N) for name, p in env.parameters.items()}
    env.set_parameters(drawn, torch.tensor([True, False] * 3))
    rollout(env, 20)
    other.reset()
    other.load_state_dict(env.state_dict())
    for _ in range(3):
        for x in (env, other):
            if is_pushable(x):
                x.push(torch.ones(N))
        assert not any(rows_differ(rollout(env, 20), rollout(other, 20)))
    env.reset()  # leaves parameters as they are
    other.reset()
    assert not any(rows_differ(rollout(env, 20), rollout(other, 20)))


@pytest.mark.parametrize("task", ["CartPole", "Pendulum", "Reach-UR5e-JointPos"])
def test_states_from_before_there_were_parameters_are_nominal(task: str) -> None:
    env, other = make_env(task, N, seed=3), make_env(task, N, seed=4)
    env.reset()
    state = {key: x for key, x in env.state_dict().items() if key != "pushes"}
    everywhere(other, **{name: parameter.high for name, parameter in other.parameters.items()})
    other.load_state_dict(state)
    assert not any(rows_differ(rollout(env), rollout(other)))


@pytest.mark.parametrize("task", PUSHED)
def test_a_push_of_zero_changes_nothing_that_follows(task: str) -> None:
    plain, pushed = (make_env(task, N, seed=3) for _ in range(2))
    plain.reset()
    pushed.reset()
    for seed in range(3):
        pushed.push(torch.tensor([0.0, 0.5] * 3))
        differs = rows_differ(rollout(plain, 5, seed), rollout(pushed, 5, seed))
        assert differs == [False, True] * 3
    assert torch.equal(plain.generator.get_state(), pushed.generator.get_state())


@pytest.mark.parametrize("task", ["CartPole", "Pendulum", "Reach-UR10-IK"])
def test_a_push_changes_one_speed_by_as_much_as_it_says(task: str) -> None:
    env: Any = make_env(task, 600, seed=0)
    env.reset()
    buffer = env.joint_velocity if task.startswith("Reach") else env.state
    speed = torch.rand(600) + 0.1
    changes = []
    for _ in range(2):
        before = buffer.clone()
        env.push(speed)
        changes.append(buffer - before)
        torch.testing.assert_close(changes[-1].abs().sum(1), speed, atol=1e-5, rtol=0)
        assert (changes[-1] != 0).sum(1).tolist() == [1] * 600
        ways = (changes[-1] > 0).any(1).float().mean()
        assert 0.44 < ways < 0.56
        hit = (changes[-1] != 0).float().mean(0)
        assert hit.max() < 0.2 if task.startswith("Reach") else hit.tolist() == [0.0, 1.0, 0.0, 0.0][: len(hit)]
    again = ((changes[0] > 0).any(1) == (changes[1] > 0).any(1)).float().mean()
    assert 0.4 < again < 0.6  # drawn anew
    env.reset(7)
    first = buffer.clone()
    env.push(speed)
    pushed = buffer - first
    env.reset(7)
    env.push(speed)
    assert torch.equal(buffer - first, pushed)  # a seed repeats them
    env.reset(8)
    first = buffer.clone()
    env.push(speed)
    assert not torch.allclose(buffer - first, pushed)


def test_payloads_are_refused_once_steps_without_were_recorded() -> None:
    env = Reach(num_envs=2, seed=0)
    env.reset()
    env._recorded = True  # as a step under capture says
    everywhere(env, stiffness=0.5)
    with pytest.raises(ValueError, match=r"Reach-UR5e-JointPos: payloads are set for the first time.*before the first"):
        everywhere(env, payload=1.0)
    env = Reach(num_envs=2, seed=0)
    everywhere(env, payload=0.0)
    env._recorded = True
    everywhere(env, payload=1.0)


@pytest.mark.gpu
@pytest.mark.parametrize("task", [*PUSHED, "Detour"])
def test_a_graph_of_steps_that_set_and_push_equals_eager_without_synchronization(task: str) -> None:
    eager, recorded = (make_env(task, N, "cuda", seed=3) for _ in range(2))

    def advance(env: Any, action: Tensor) -> tuple[Tensor, Tensor]:
        step = env.step(action)
        draws = torch.rand(len(env.parameters), N, generator=env.generator, device="cuda")
        values = {
            name: p.low + (p.high - p.low) * row for (name, p), row in zip(env.parameters.items(), draws, strict=True)
        }
        env.set_parameters(values, step.reward > step.reward.mean())
        if is_pushable(env):
            env.push(draws[0])
        return step.obs["policy"], step.reward

    generator = torch.Generator().manual_seed(0)
    eager.reset()
    recorded.reset()
    everywhere(recorded, **nominal(recorded))
    graph = Captured(lambda action: advance(recorded, action), "graph", torch.device("cuda"), [recorded.generator])
    actions = [action_of(eager, generator).cuda() for _ in range(20)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        expected = [advance(eager, action) for action in actions]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for action, (obs, reward) in zip(actions, expected, strict=True):
        obs_too, reward_too = graph(action)
        assert torch.equal(obs, obs_too) and torch.equal(reward, reward_too)
    assert graph.graph is not None
