from __future__ import annotations

import importlib.util
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from conftest import assert_same, tensors_of
from torch import Tensor

from rlcore.env import VecEnv, spec_of
from rlcore.envs import TASKS, make_env
from rlcore.envs.null import Null
from rlcore.types import Step

NUM_ENVS = 5
HAS_REACH = importlib.util.find_spec("rlcore.envs.reach") is not None
BUILT_IN = [
    pytest.param(
        name, marks=pytest.mark.skipif(name.startswith("Reach") and not HAS_REACH, reason="Reach is not there yet")
    )
    for name in TASKS
    if not name.startswith("HalfCheetah")  # whose physics is gymnasium's, see test_cheetah
]


def random_action(env: VecEnv, generator: torch.Generator) -> Tensor:
    if isinstance(env.action_space, gymnasium.spaces.Discrete):
        return torch.randint(int(env.action_space.n), (env.num_envs,), generator=generator).to(env.device)
    return torch.randn(env.num_envs, *(env.action_space.shape or ()), generator=generator).to(env.device)


def rollout(env: VecEnv, num_steps: int, seed: int = 0) -> list[Step]:
    generator = torch.Generator().manual_seed(seed)
    return [env.step(random_action(env, generator)) for _ in range(num_steps)]


@pytest.mark.parametrize("task", BUILT_IN)
def test_built_in_task_keeps_the_contract(task: str) -> None:
    env = make_env(task, NUM_ENVS, seed=0)
    assert isinstance(env, VecEnv)
    assert env.num_envs == NUM_ENVS
    assert env.device == torch.device("cpu")
    assert env.max_episode_length >= 1
    spec = spec_of(env)
    assert spec.task == task

    def check_groups(obs: dict[str, Tensor]) -> None:
        vectors = {group: [size] for group, size in spec.observation_sizes.items()}
        wanted = {group: (NUM_ENVS, *shape) for group, shape in (vectors | spec.image_shapes).items()}
        assert {group: tuple(values.shape) for group, values in obs.items()} == wanted
        for group, values in obs.items():
            assert values.dtype == (torch.uint8 if group in spec.image_shapes else torch.float32)
            assert values.device == env.device
            assert torch.isfinite(values).all()

    check_groups(env.reset(seed=1))
    for step in rollout(env, 25):
        check_groups(step.obs)
        assert step.final_obs is not None
        check_groups(step.final_obs)
        assert (step.reward.shape, step.reward.dtype) == ((NUM_ENVS,), torch.float32)
        assert torch.isfinite(step.reward).all()
        for flags in (step.terminated, step.truncated):
            assert (flags.shape, flags.dtype, flags.device) == ((NUM_ENVS,), torch.bool, env.device)
        for name, value in step.log.items():
            assert isinstance(value, float | Tensor), name
            assert torch.as_tensor(value).shape in ((), (NUM_ENVS,)), name
        done = step.terminated | step.truncated
        if "success" in step.log:
            success = torch.as_tensor(step.log["success"])[done]
            assert ((success >= 0) & (success <= 1)).all()
    env.close()


@pytest.mark.parametrize("task", BUILT_IN)
def test_what_a_controller_needs_adds_up_to_the_spaces(task: str) -> None:
    spec = spec_of(make_env(task, 1))
    if task == "Null":
        assert spec.deployment == {}
        return
    assert spec.deployment["control_dt"] > 0
    for group, terms in spec.deployment.get("observation_terms", {}).items():
        assert sum(term["size"] for term in terms) == spec.observation_sizes[group]
    action_size = 1 if spec.discrete else spec.action_size
    assert sum(term["size"] for term in spec.deployment["action_terms"]) == action_size


@pytest.mark.parametrize("task", BUILT_IN)
def test_a_stored_step_is_not_changed_by_later_ones(task: str) -> None:
    env = make_env(task, NUM_ENVS)
    first_obs = env.reset(seed=0)
    kept_obs = {group: values.clone() for group, values in first_obs.items()}
    generator = torch.Generator().manual_seed(0)
    stored, copies = [], []
    for _ in range(4):
        step = env.step(random_action(env, generator))
        stored.append(dict(tensors_of(step)))
        copies.append({name: value.clone() for name, value in tensors_of(step)})
    env.reset(seed=1)
    for now, before in zip([first_obs, *stored], [kept_obs, *copies], strict=True):
        for name, value in before.items():
            assert torch.equal(now[name].nan_to_num(), value.nan_to_num()), name


@pytest.mark.parametrize("task", BUILT_IN)
def test_a_seed_repeats_the_rollout(task: str) -> None:
    env, other = make_env(task, NUM_ENVS), make_env(task, NUM_ENVS, seed=8)
    env.reset(seed=8)
    other.reset()
    rows = rollout(env, 12)
    assert_same(rows, rollout(other, 12))
    env.reset(seed=9)
    different = rollout(env, 1)[0]
    moved = any(not torch.equal(different.obs[group], rows[0].obs[group]) for group in rows[0].obs)
    assert moved == (task != "Budget")  # which has nothing random in it


@pytest.mark.parametrize("task", BUILT_IN)
def test_a_restored_state_continues_bit_for_bit(task: str) -> None:
    env: Any = make_env(task, NUM_ENVS, seed=0)
    env.reset()
    rollout(env, 6)
    saved = env.state_dict()
    rest = rollout(env, 12, seed=1)
    restored: Any = make_env(task, NUM_ENVS, seed=99)
    restored.reset()
    restored.load_state_dict(saved)
    assert_same(rest, rollout(restored, 12, seed=1))


@pytest.mark.parametrize("task", ["CartPole", "Pendulum"])
def test_the_time_limit_truncates_and_a_new_episode_begins(task: str) -> None:
    env = make_env(task, NUM_ENVS, seed=0, max_episode_length=8)
    env.reset()
    steps = rollout(env, 16)
    assert [bool(step.truncated.all()) for step in steps] == [t in (7, 15) for t in range(16)]


@pytest.mark.parametrize("task", [*BUILT_IN, "gym:CartPole-v1"])
def test_actions_with_a_gradient_leave_none_behind(task: str) -> None:
    env = make_env(task, NUM_ENVS, seed=0)
    env.reset()
    action = random_action(env, torch.Generator().manual_seed(0))
    if action.is_floating_point():
        action.requires_grad_()
    for _ in range(2):
        for name, value in tensors_of(env.step(action)):
            assert not value.requires_grad, name


def test_null_shows_the_configured_sizes_and_ends() -> None:
    env = Null(num_envs=64, obs_size=7, action_size=3, episode_length=10, termination_rate=0.25)
    assert env.reset()["policy"].shape == (64, 7)
    steps = rollout(env, 200)
    terminated = torch.stack([step.terminated for step in steps]).float().mean().item()
    assert terminated == pytest.approx(0.25, abs=0.1)
    length = torch.zeros(64, dtype=torch.int64)
    for step in steps:
        length += 1
        assert torch.equal(step.truncated, length >= 10)
        length[step.terminated | step.truncated] = 0
        assert step.final_obs is not None
        assert not torch.equal(step.obs["policy"], step.final_obs["policy"])
    assert any(step.truncated.any() for step in steps)


def test_null_terminates_never_by_default_and_truncates_on_time() -> None:
    env = Null(num_envs=2, episode_length=5)
    env.reset()
    steps = rollout(env, 10)
    assert not any(step.terminated.any() for step in steps)
    assert [bool(step.truncated.all()) for step in steps] == [t in (4, 9) for t in range(10)]


def test_null_observations_differ_from_step_to_step() -> None:
    env = Null(num_envs=4)
    rows = [env.reset()["policy"], *(step.obs["policy"] for step in rollout(env, 10))]
    assert len({tuple(row.flatten().tolist()) for row in rows}) == 11


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"obs_size": 0}, "obs_size is 0"),
        ({"episode_length": -1}, "episode_length is -1"),
        ({"termination_rate": 1.5}, "termination_rate is 1.5"),
    ],
)
def test_null_refuses_impossible_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_env("Null", 2, **options)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("cartpole", {}, "unknown task 'cartpole': did you mean CartPole.*rlcore tasks"),
        ("Reach-UR5-JointPos", {}, "did you mean Reach-UR5e-JointPos"),
        ("reach-ur10-ik", {}, "did you mean Reach-UR10-IK"),
        ("Pendulum-v1", {}, "did you mean gym:Pendulum-v1, Pendulum"),
        ("zzzz", {}, "unknown task 'zzzz': `rlcore tasks`"),
        ("CartPole", {"max_length": 3}, "unknown option 'max_length': .*valid options are max_episode_length"),
        ("Null", {"num_obs": 3}, "valid options are obs_size, action_size, episode_length, termination_rate"),
        ("CartPole", {"max_episode_length": 0}, "max_episode_length is 0; it must be a whole number of at least 1"),
    ],
)
def test_make_env_says_in_one_line_what_is_wrong(task: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make_env(task, 2, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("num_envs", [0, -3, 2.0, True, "4"])
def test_make_env_refuses_an_impossible_number_of_envs(num_envs: Any) -> None:
    with pytest.raises(ValueError, match=r"num_envs is .* at least 1"):
        make_env("CartPole", num_envs)


@pytest.mark.parametrize(("device", "message"), [("gpu", "device is 'gpu'"), ("cuda:99", "device is 'cuda:99'")])
def test_make_env_refuses_a_device_that_is_not_there(device: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_env("CartPole", 2, device=device)


def test_make_env_passes_options_on() -> None:
    env = make_env("CartPole", 2, max_episode_length=77)
    assert env.max_episode_length == 77
    assert make_env("Null", 2, obs_size=9).observation_spaces["policy"].shape == (9,)


@pytest.mark.skipif(not HAS_REACH, reason="Reach is not there yet")
def test_reach_refuses_an_unknown_option_by_name() -> None:
    with pytest.raises(ValueError, match="no_such_option"):
        make_env("Reach-UR5e-IK", 2, no_such_option=1)


@pytest.mark.gpu
@pytest.mark.parametrize("task", BUILT_IN)
def test_a_step_on_the_gpu_never_waits_for_it(task: str) -> None:
    env = make_env(task, 64, device="cuda", seed=0)
    env.reset()
    action = random_action(env, torch.Generator().manual_seed(0))
    env.step(action)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps = [env.step(action) for _ in range(3)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(value.device == env.device for _, value in tensors_of(steps[-1]))


@pytest.mark.gpu
@pytest.mark.parametrize("task", ["CartPole", "Pendulum"])
def test_classic_tasks_on_the_gpu_equal_the_cpu(task: str) -> None:
    cpu: Any = make_env(task, 64, seed=0)
    gpu: Any = make_env(task, 64, device="cuda", seed=0)
    cpu.reset()
    gpu.reset()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        gpu.state.copy_(cpu.state)
        action = random_action(cpu, generator)
        a, b = cpu.step(action), gpu.step(action.cuda())
        assert a.final_obs is not None
        np.testing.assert_allclose(a.final_obs["policy"], b.final_obs["policy"].cpu(), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(a.reward, b.reward.cpu(), rtol=1e-5, atol=1e-5)
