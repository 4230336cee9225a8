"""Physical parameters and pushes of gymnasium's MuJoCo tasks."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from rlcore.env import is_pushable, is_randomizable
from rlcore.envs import make_env
from rlcore.stage import reset_at, same_stage, stage_of

N = 3


@pytest.fixture(autouse=True)
def _mujoco() -> None:
    pytest.importorskip("mujoco")
    pytest.importorskip("imageio")


def made(task: str = "HalfCheetah-v5", num_envs: int = N, **options: Any) -> Any:
    return make_env(f"gym:{task}", num_envs, seed=0, **options)


def models(env: Any) -> list[Any]:
    return [sub.unwrapped.model for sub in env.env.envs]


def arrays(model: Any) -> dict[str, Any]:
    """All that a model has in arrays."""
    names = [name for name in dir(model) if isinstance(getattr(model, name, None), np.ndarray)]
    return {name: np.array(getattr(model, name)) for name in names} | {"gravity": np.array(model.opt.gravity)}


def row(*numbers: float) -> Tensor:
    return torch.tensor(numbers)


EVERY = torch.ones(N, dtype=torch.bool)


def rollout(env: Any, steps: int = 30) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    actions = 2 * torch.rand(steps, env.num_envs, *env.action_space.shape, generator=generator) - 1
    return torch.stack([env.step(action).obs["policy"] for action in actions])  # [T, N, O]


def test_mass_and_inertia_scale_together_in_the_envs_that_are_meant() -> None:
    env = made()
    assert is_randomizable(env) and list(env.parameters) == [
        "mass",
        "friction",
        "damping",
        "armature",
        "gain",
        "gravity",
    ]
    nominal = arrays(models(env)[0])
    env.set_parameters({"mass": row(1.25, 0.5, 1.5)}, row(1, 0, 1).bool())
    for model, factor in zip(models(env), (1.25, 1.0, 1.5), strict=True):
        now = arrays(model)
        for name in ("body_mass", "body_inertia", "body_subtreemass"):
            np.testing.assert_allclose(now[name], factor * nominal[name], rtol=1e-12)
        # What solvers take from masses is of the new ones, as if the model had been made with them.
        reference: Any = gymnasium.make("HalfCheetah-v5").unwrapped
        reference.model.body_mass[:] = factor * nominal["body_mass"]
        reference.model.body_inertia[:] = factor * nominal["body_inertia"]
        import mujoco

        mujoco.mj_setConst(reference.model, reference.data)
        for name, want in arrays(reference.model).items():
            assert np.array_equal(now[name], want), name


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("friction", "geom_friction"),
        ("damping", "dof_damping"),
        ("armature", "dof_armature"),
        ("gain", "actuator_gainprm"),
        ("gravity", "gravity"),
    ],
)
def test_a_factor_scales_its_field_and_comes_back_bit_for_bit(name: str, field: str) -> None:
    env = made("Hopper-v5")
    nominal = arrays(models(env)[0])
    assert nominal[field].any()
    env.set_parameters({name: row(0.5, 1.0, 2.0)}, EVERY)
    for model, factor in zip(models(env), (0.5, 1.0, 2.0), strict=True):
        assert np.array_equal(arrays(model)[field], factor * nominal[field])
    env.set_parameters({name: row(1.0, 1.0, 1.0)}, EVERY)
    for model in models(env):
        assert all(np.array_equal(value, nominal[key]) for key, value in arrays(model).items())


@pytest.mark.parametrize("task", ["HalfCheetah-v5", "Ant-v5"])
def test_each_parameter_matters_and_nominal_ones_change_not_a_bit(task: str) -> None:
    plain = made(task)
    plain.reset(0)
    want = rollout(plain)
    for name, parameter in plain.parameters.items():
        env = made(task)
        env.reset(0)
        env.set_parameters({name: row(1.0, parameter.high, 1.0)}, EVERY)
        differs = (rollout(env) != want).any(2).any(0)
        assert differs.tolist() == [False, True, False], name
        assert stage_of(plain) is None


def test_what_the_model_lacks_is_no_parameter() -> None:
    env = made("Swimmer-v5")
    assert "damping" not in env.parameters
    with pytest.raises(ValueError, match="gym:Swimmer-v5: there is no parameter 'damping'; valid: "):
        env.set_parameters({"damping": torch.ones(N)}, EVERY)
    with pytest.raises(ValueError, match="there is no parameter 'masses'; did you mean 'mass'"):
        env.set_parameters({"masses": torch.ones(N)}, EVERY)


def test_friction_of_what_touches_nothing_is_no_parameter() -> None:
    assert "friction" not in made("InvertedPendulum-v5").parameters


def test_other_envs_have_none() -> None:
    for env in (make_env("gym:CartPole-v1", 2), made(vectorization="async", num_envs=1)):
        assert not is_randomizable(env) and not is_pushable(env)
        env.close()


@pytest.mark.parametrize(("task", "moved"), [("Hopper-v5", [0]), ("Ant-v5", [0, 1]), ("InvertedPendulum-v5", [0])])
def test_a_push_is_of_the_root_and_horizontal(task: str, moved: list[int]) -> None:
    env = made(task, num_envs=40)
    env.reset(0)
    assert is_pushable(env) and env.push_unit == "m/s"
    before = np.array([sub.unwrapped.data.qvel for sub in env.env.envs])
    speed = torch.linspace(0.0, 2.0, 40)
    env.push(speed)
    change = np.array([sub.unwrapped.data.qvel for sub in env.env.envs]) - before
    np.testing.assert_allclose(np.linalg.norm(change[:, moved], axis=1), speed.numpy(), atol=1e-6)
    assert not np.delete(change, moved, 1).any()
    assert 8 < (change[:, 0] > 0).sum() < 32


def test_arms_that_stand_are_not_pushed() -> None:
    assert not is_pushable(made("Reacher-v5"))


def test_pushes_leave_other_random_numbers_alone_and_repeat_with_a_seed() -> None:
    plain, pushed = made(), made()
    for env in (plain, pushed):
        env.reset(5)
    pushed.push(torch.zeros(N))
    assert torch.equal(rollout(plain), rollout(pushed))
    runs = []
    for _ in range(2):
        pushed.reset(5)
        pushed.push(torch.ones(N))
        runs.append(rollout(pushed))
    assert torch.equal(*runs)


def test_a_stage_has_what_was_set_for_any_number_of_envs() -> None:
    env, other, five = made(), made(), made(num_envs=5)
    env.set_parameters({"mass": row(0.8, 1.0, 1.2), "gravity": row(1.0, 0.9, 1.1)}, EVERY)
    stage = stage_of(env)
    assert torch.equal(reset_at(env, stage, 3)["policy"], reset_at(other, stage, 3)["policy"])
    assert torch.equal(rollout(env), rollout(other))
    assert all(
        np.array_equal(value, arrays(two)[key])
        for one, two in zip(models(env), models(other), strict=True)
        for key, value in arrays(one).items()
    )
    reset_at(five, stage)
    masses = [model.body_mass.sum() / models(made())[0].body_mass.sum() for model in models(five)]
    np.testing.assert_allclose(masses, [0.8, 0.8, 1.0, 1.2, 1.2], rtol=1e-6)
    env.set_parameters({"mass": row(0.9, 1.0, 1.2)}, EVERY)
    assert same_stage(stage, stage_of(env))  # values that were drawn last make no other stage
