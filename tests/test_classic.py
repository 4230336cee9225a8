from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from conftest import assert_same
from torch import Tensor

from rlcore.envs.classic import CartPole, Pendulum, _Classic
from rlcore.envs.memory import Memory
from rlcore.types import Step

TASKS = {"CartPole": (CartPole, "CartPole-v1"), "Pendulum": (Pendulum, "Pendulum-v1")}


def random_action(env: _Classic, generator: torch.Generator) -> Tensor:
    if isinstance(env, CartPole):
        return torch.randint(2, (env.num_envs,), generator=generator)
    return 6.0 * torch.rand(env.num_envs, 1, generator=generator) - 3.0  # also beyond the torque limit


def balancing_action(obs: Tensor) -> Tensor:
    """A linear controller that keeps the pole of CartPole up."""
    return (obs @ torch.tensor([0.1, 0.3, 3.0, 1.0]) > 0).long()


def rollout(env: _Classic, num_steps: int, seed: int = 7) -> list[Step]:
    generator = torch.Generator().manual_seed(seed)
    return [env.step(random_action(env, generator)) for _ in range(num_steps)]


@pytest.mark.parametrize("task", TASKS)
def test_every_step_of_whole_episodes_equals_gymnasium_from_the_same_state(task: str) -> None:
    constructor, gym_id = TASKS[task]
    env = constructor(num_envs=4, seed=0)
    references = [gymnasium.make(gym_id) for _ in range(4)]  # with gymnasium's own time limit
    for reference in references:
        reference.reset(seed=0)
    obs = env.reset()["policy"]
    generator = torch.Generator().manual_seed(1)
    episode_ends = 0
    for _ in range(env.max_episode_length + 50):
        action = random_action(env, generator)
        if task == "CartPole":
            action[:2] = balancing_action(obs[:2])
        states = env.state.double().numpy()
        step = env.step(action)
        for i, reference in enumerate(references):
            reference.unwrapped.state = states[i].copy()
            want_obs, want_reward, want_terminated, want_truncated, _ = reference.step(action[i].numpy())
            np.testing.assert_allclose(step.final_obs["policy"][i].numpy(), want_obs, rtol=1e-5, atol=1e-5)
            assert step.reward[i].item() == pytest.approx(float(want_reward), rel=1e-5, abs=1e-5)
            assert bool(step.terminated[i]) == want_terminated
            assert bool(step.truncated[i]) == want_truncated
            if want_terminated or want_truncated:
                reference.reset()
                episode_ends += 1
            else:
                assert torch.equal(step.obs["policy"][i], step.final_obs["policy"][i])
        obs = step.obs["policy"]
    assert episode_ends >= (20 if task == "CartPole" else 4)


@pytest.mark.parametrize("task", TASKS)
def test_an_episode_run_freely_follows_gymnasium(task: str) -> None:
    constructor, gym_id = TASKS[task]
    env = constructor(num_envs=1, seed=3)
    reference = gymnasium.make(gym_id).unwrapped
    reference.reset(seed=0)
    env.reset()
    reference.state = env.state[0].double().numpy()
    generator = torch.Generator().manual_seed(2)
    for _ in range(40):
        action = random_action(env, generator)
        step = env.step(action)
        want_obs, _, want_terminated, _, _ = reference.step(action[0].numpy())
        np.testing.assert_allclose(step.final_obs["policy"][0].numpy(), want_obs, rtol=1e-4, atol=1e-4)
        assert bool(step.terminated[0]) == want_terminated
        if want_terminated:
            return
    assert task == "Pendulum"


@pytest.mark.parametrize("task", TASKS)
def test_spaces_and_time_limit_are_those_of_gymnasium(task: str) -> None:
    constructor, gym_id = TASKS[task]
    env, reference = constructor(num_envs=1), gymnasium.make(gym_id)
    assert env.action_space == reference.action_space
    assert env.observation_spaces["policy"] == reference.observation_space
    assert env.max_episode_length == reference.spec.max_episode_steps
    dt = reference.unwrapped.tau if task == "CartPole" else reference.unwrapped.dt
    assert env.deployment["control_dt"] == dt


def test_a_balanced_cartpole_is_truncated_at_step_500_and_not_terminated() -> None:
    env = CartPole(num_envs=3, seed=0)
    obs = env.reset()["policy"]
    for t in range(1, 501):
        step = env.step(balancing_action(obs))
        obs = step.obs["policy"]
        assert step.truncated.tolist() == [t == 500] * 3
        assert not step.terminated.any()
    assert env.steps.tolist() == [0, 0, 0]


def test_cartpole_terminates_on_either_bound_and_only_there() -> None:
    env = CartPole(num_envs=5, seed=0)
    env.reset()
    limit = env.angle_limit
    env.state.copy_(
        torch.tensor(
            [
                [2.39, 1.0, 0.0, 0.0],
                [-2.39, -1.0, 0.0, 0.0],
                [0.0, 0.0, limit - 0.001, 1.0],
                [0.0, 0.0, -limit + 0.001, -1.0],
                [2.35, 1.0, limit - 0.04, 1.0],
            ]
        )
    )
    step = env.step(torch.ones(5, dtype=torch.int64))
    assert step.terminated.tolist() == [True, True, True, True, False]
    assert not step.truncated.any()
    assert step.reward.tolist() == [1.0] * 5  # the step that falls is paid too, as in gymnasium


def test_a_fall_at_the_time_limit_is_both_terminated_and_truncated() -> None:
    env = CartPole(num_envs=2, seed=0, max_episode_length=1)
    env.reset()
    env.state[0, 0], env.state[0, 1] = 2.39, 1.0
    step = env.step(torch.tensor([0, 0]))
    assert step.terminated.tolist() == [True, False]
    assert step.truncated.tolist() == [True, True]


@pytest.mark.parametrize("task", TASKS)
def test_final_obs_is_the_last_state_and_obs_a_fresh_start(task: str) -> None:
    env = TASKS[task][0](num_envs=64, seed=0, max_episode_length=9)
    env.reset()
    for step in rollout(env, 9):
        last = step
    assert last.truncated.all()
    distance = (last.obs["policy"] - last.final_obs["policy"]).abs().amax(1)
    assert (distance > 1e-3).all()
    start = env.state.abs() <= torch.tensor(env._start_range)
    assert start.all()
    assert env.state.std(0).min() > 0.4 * min(env._start_range)  # uniform: 0.58 of the half-width
    assert torch.equal(env._observe(env.state)["policy"], last.obs["policy"])


def test_an_env_that_ends_does_not_disturb_its_neighbors() -> None:
    env, alone = CartPole(num_envs=2, seed=0), CartPole(num_envs=2, seed=1)
    env.reset()
    alone.reset()
    alone.state.copy_(env.state)
    env.state[0, 0], env.state[0, 1] = 2.39, 1.0
    for action in (1, 0, 1):
        step, reference = env.step(torch.full((2,), action)), alone.step(torch.full((2,), action))
        assert torch.equal(step.obs["policy"][1], reference.obs["policy"][1])
    assert env.steps.tolist() == [2, 3]


def test_pendulum_clamps_the_torque() -> None:
    env, limited = Pendulum(num_envs=2, seed=5), Pendulum(num_envs=2, seed=5)
    env.reset()
    limited.reset()
    assert_same([env.step(torch.tensor([[50.0], [-3.0]]))], [limited.step(torch.tensor([[2.0], [-2.0]]))])


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_repeats_the_rollout_with_its_resets(task: str) -> None:
    constructor = TASKS[task][0]
    env, built_with_seed, other = (constructor(num_envs=8, seed=s, max_episode_length=20) for s in (None, 4, 5))
    first = env.reset(seed=4)["policy"]
    rows = rollout(env, 50)
    assert torch.equal(first, built_with_seed.reset()["policy"])
    assert_same(rows, rollout(built_with_seed, 50))
    assert not torch.equal(first, other.reset()["policy"])
    assert torch.equal(first, env.reset(seed=4)["policy"])
    assert_same(rows, rollout(env, 50))
    assert not torch.equal(first, env.reset()["policy"])  # goes on, does not repeat


@pytest.mark.parametrize("task", TASKS)
def test_a_restored_state_continues_bit_for_bit(task: str) -> None:
    constructor = TASKS[task][0]
    env = constructor(num_envs=8, seed=0, max_episode_length=15)
    env.reset()
    rollout(env, 20)
    saved = env.state_dict()
    rest = rollout(env, 40, seed=9)
    restored = constructor(num_envs=8, seed=99, max_episode_length=15)
    restored.load_state_dict(saved)
    assert_same(rest, rollout(restored, 40, seed=9))


def test_a_state_of_another_number_of_envs_or_task_is_refused() -> None:
    with pytest.raises(ValueError, match=r"8 envs.*num_envs=8"):
        CartPole(num_envs=4).load_state_dict(CartPole(num_envs=8).state_dict())
    with pytest.raises(ValueError, match="no 'state'; it belongs to another task"):
        CartPole(num_envs=4).load_state_dict(Memory(num_envs=4).state_dict())
    with pytest.raises(ValueError, match=r"'state' has shape \(4, 4\), this env needs \(4, 2\)"):
        Pendulum(num_envs=4).load_state_dict(CartPole(num_envs=4).state_dict())


@pytest.mark.parametrize(
    ("constructor", "action"),
    [
        (CartPole, torch.zeros(4, 1, dtype=torch.int64)),
        (CartPole, torch.zeros(4)),
        (CartPole, torch.zeros(3, dtype=torch.int64)),
        (Pendulum, torch.zeros(4)),
        (Pendulum, torch.zeros(4, 1, dtype=torch.int64)),
    ],
)
def test_an_action_of_the_wrong_shape_or_kind_is_refused(constructor: Any, action: Tensor) -> None:
    env = constructor(num_envs=4)
    env.reset()
    with pytest.raises(ValueError, match=r"action is .* expected .* of shape \(4"):
        env.step(action)


def test_a_step_leaves_no_gradient_behind() -> None:
    env = Pendulum(num_envs=2, seed=0)
    env.reset()
    step = env.step(torch.zeros(2, 1, requires_grad=True))
    assert not step.reward.requires_grad
    assert not step.obs["policy"].requires_grad
    assert not env.state.requires_grad


@pytest.mark.parametrize("task", TASKS)
def test_render_draws_env_0(task: str) -> None:
    env = TASKS[task][0](num_envs=2, seed=0)
    env.reset()
    before = env.render()
    assert before.shape == (300, 400, 3)
    assert before.dtype == np.uint8
    env.state[1] += 0.5
    assert np.array_equal(before, env.render())
    env.state[0] += 0.5
    assert not np.array_equal(before, env.render())
