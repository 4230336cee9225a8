"""Physical parameters and pushes of mjlab's robots, and the ranges of its events."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlcore.env import is_pushable, is_randomizable
from rlcore.envs import make_env
from rlcore.envs.sim_parameters import event_ranges, set_event_range
from rlcore.stage import reset_at, same_stage, stage_of

CARTPOLE, GO1 = "Mjlab-Cartpole-Balance", "Mjlab-Velocity-Flat-Unitree-Go1"
N = 4
EVERY = torch.ones(N, dtype=torch.bool)


class FakeEvents:
    """mjlab's event manager in small."""

    def __init__(self, **terms: Any) -> None:
        self.terms = terms
        self.active_terms: dict[str, list[str]] = {}
        for name, (mode, _) in terms.items():
            self.active_terms.setdefault(mode, []).append(name)

    def get_term_cfg(self, name: str) -> Any:
        return self.terms[name][1]


def with_events() -> Any:
    push = SimpleNamespace(params={"velocity_range": {"x": (-0.5, 0.5), "yaw": (-1, 1)}, "name": "robot"})
    gains = SimpleNamespace(params={"kp_range": [0.8, 1.2], "axes": [0, 1, 2], "flags": (True, False)})
    mass = SimpleNamespace(params={"ranges": (0.9, 1.1)})
    events = FakeEvents(push=("interval", push), gains=("reset", gains), mass=("startup", mass))
    return SimpleNamespace(event_manager=events)


def test_ranges_of_events_are_told_and_set_by_name() -> None:
    core = with_events()
    assert event_ranges(core) == {
        "gains/kp_range": (0.8, 1.2),
        "push/velocity_range/x": (-0.5, 0.5),
        "push/velocity_range/yaw": (-1.0, 1.0),
    }
    set_event_range(core, "push/velocity_range/x", -2.0, 1.0)
    set_event_range(core, "gains/kp_range", 0.5, 0.5)
    assert core.event_manager.get_term_cfg("push").params["velocity_range"]["x"] == (-2.0, 1.0)
    assert core.event_manager.get_term_cfg("gains").params["kp_range"] == [0.5, 0.5]
    assert event_ranges(SimpleNamespace()) == {}


@pytest.mark.parametrize(
    ("name", "low", "named"),
    [
        (
            "push/velocity_range/z",
            0.0,
            "no event has a range 'push/velocity_range/z'; did you mean 'push/velocity_rang",
        ),
        ("mass/ranges", 0.0, "no event has a range 'mass/ranges'"),
        ("gains/kp_range", 2.0, r"the range of gains/kp_range is 2.0 to 1.0; the first must not be above"),
    ],
)
def test_ranges_that_are_none_are_refused(name: str, low: float, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        set_event_range(with_events(), name, low, 1.0)


@pytest.fixture(scope="module")
def cartpole() -> Any:
    pytest.importorskip("mjlab")
    env = make_env(CARTPOLE, N, seed=0)
    yield env
    env.close()


@pytest.fixture(scope="module")
def go1() -> Any:
    pytest.importorskip("mjlab")
    env = make_env(GO1, N, seed=0)
    yield env
    env.close()


def nominal(env: Any) -> None:
    env.set_parameters({name: torch.full((N,), p.nominal) for name, p in env.parameters.items()}, EVERY)


def rollout(env: Any, **values: Tensor) -> Tensor:
    """Observations ``[T, N, O]`` of some steps from the same start, with some parameters."""
    env.reset(5)
    if values:
        env.set_parameters(values, EVERY)
    generator = torch.Generator().manual_seed(0)
    actions = 0.3 * torch.randn(6, N, *env.action_space.shape, generator=generator)
    return torch.stack([env.step(action).obs["actor"].clone() for action in actions])


@pytest.mark.cpu_seconds(1800)  # the simulator compiles its kernels when it runs for the first time
@pytest.mark.parametrize(
    ("task", "some"),
    [
        ("cartpole", {"mass", "payload", "gravity"}),
        ("go1", {"mass", "payload", "friction", "armature", "stiffness", "damping", "effort_limit", "encoder_bias"}),
    ],
)
def test_each_parameter_matters_in_its_env_and_nominal_ones_change_not_a_bit(
    task: str, some: set[str], request: pytest.FixtureRequest
) -> None:
    env = request.getfixturevalue(task)
    assert is_randomizable(env)
    want = rollout(env)
    nominal(env)
    assert torch.equal(rollout(env), want)
    assert some <= env.parameters.keys()
    for name, parameter in env.parameters.items():
        value = 0.01 if name == "effort_limit" else parameter.high  # drives are not at their limit
        values = torch.full((N,), parameter.nominal)
        values[1] = value
        differs = (rollout(env, **{name: values}) != want).any(2).any(0)
        # The cart touches nothing, and the task reads its joints without their bias.
        matters = task != "cartpole" or name not in ("friction", "encoder_bias")
        assert differs.tolist() == [False, matters, False, False], name
        nominal(env)
    assert torch.equal(rollout(env), want)


@pytest.mark.cpu_seconds(1800)
def test_mass_scales_inertia_and_the_payload_is_on_the_root(go1: Any) -> None:
    model, bodies = go1.core.sim.model, go1.core.scene["robot"].indexing.body_ids
    everywhere = torch.arange(N)[:, None]
    nominal(go1)
    mass, inertia = model.body_mass[everywhere, bodies].clone(), model.body_inertia[everywhere, bodies].clone()
    weight = model.body_invweight0[everywhere, bodies].clone()
    factor, payload = torch.tensor([1.0, 1.2, 0.8, 1.0]), torch.tensor([0.0, 0.0, 1.0, 2.0])
    go1.set_parameters({"mass": factor, "payload": payload}, torch.tensor([True, True, True, False]))
    go1.set_parameters({"payload": payload}, torch.tensor([False, False, False, True]))
    want = mass * factor[:, None]
    want[:, 0] += payload
    torch.testing.assert_close(model.body_mass[everywhere, bodies], want)
    torch.testing.assert_close(model.body_inertia[everywhere, bodies], inertia * factor[:, None, None])
    # Of a robot that is 1.2 times as heavy, the inverse of its inertia is 1.2 times as small, but for the armatures.
    light = model.body_invweight0[everywhere, bodies][:, 0] / weight[:, 0]
    assert light[0].tolist() == [1.0, 1.0]
    torch.testing.assert_close(light[1], torch.full((2,), 1 / 1.2), atol=0.06, rtol=0)
    nominal(go1)


@pytest.mark.cpu_seconds(1800)
def test_a_push_is_of_the_root_and_horizontal(go1: Any, cartpole: Any) -> None:
    assert is_pushable(go1) and go1.push_unit == "m/s" and not is_pushable(cartpole)
    go1.reset(5)
    robot = go1.core.scene["robot"]
    before = robot.data.root_link_vel_w.clone()
    go1.push(torch.tensor([0.0, 0.5, 0.0, 2.0]))
    go1.core.sim.forward()
    change = robot.data.root_link_vel_w - before
    torch.testing.assert_close(change.norm(dim=1), torch.tensor([0.0, 0.5, 0.0, 2.0]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(change[:, :2].norm(dim=1), torch.tensor([0.0, 0.5, 0.0, 2.0]), atol=1e-5, rtol=1e-5)
    ways = torch.atan2(change[[1, 3], 1], change[[1, 3], 0])
    assert not math.isclose(*ways.tolist(), abs_tol=1e-3)


@pytest.mark.cpu_seconds(1800)
def test_stages_have_parameters_and_ranges_and_a_hold_puts_them_back(cartpole: Any) -> None:
    nominal(cartpole)
    values = {"mass": torch.tensor([0.8, 1.0, 1.1, 1.2])}
    want = rollout(cartpole, **values)
    stage, put_back = stage_of(cartpole), cartpole.hold()
    cartpole.set_parameters({"mass": torch.full((N,), 0.9), "gravity": torch.full((N,), 1.1)}, EVERY)
    assert same_stage(stage, stage_of(cartpole))  # values that were drawn last make no other stage
    put_back()
    assert torch.equal(rollout(cartpole), want)
    nominal(cartpole)
    torch.testing.assert_close(reset_at(cartpole, stage, 5)["actor"], cartpole.reset(5)["actor"])
    assert torch.equal(rollout(cartpole), want)
    nominal(cartpole)
    with pytest.raises(
        ValueError, match="Mjlab-Cartpole-Balance: there is no parameter 'frction'; did you mean 'fricti"
    ):
        cartpole.set_parameters({"frction": torch.ones(N)}, EVERY)


@pytest.mark.cpu_seconds(1800)
def test_ranges_of_events_are_part_of_the_stage(go1: Any) -> None:
    before = stage_of(go1)
    go1.set_event_range("push_robot/velocity_range/x", -1.0, 1.0)
    after = stage_of(go1)
    assert not same_stage(before, after)
    reset_at(go1, before)
    assert go1.event_ranges["push_robot/velocity_range/x"] == (-0.5, 0.5)
    reset_at(go1, after)
    assert go1.event_ranges["push_robot/velocity_range/x"] == (-1.0, 1.0)
    reset_at(go1, before)
    with pytest.raises(ValueError, match=f"{GO1}: no event has a range 'push_robot/speed'"):
        go1.set_event_range("push_robot/speed", 0.0, 1.0)


@pytest.mark.gpu
@pytest.mark.cpu_seconds(1800)
def test_the_simulators_graph_sees_what_is_set_after_it_was_recorded() -> None:
    pytest.importorskip("mjlab")
    env = make_env(GO1, N, "cuda", seed=0)
    assert env.core.sim.step_graph is not None  # type: ignore[attr-defined]
    every = EVERY.cuda()

    def drop(gravity: float, mass: float) -> Tensor:
        env.reset(5)
        values = {"gravity": torch.full((N,), gravity).cuda(), "mass": torch.full((N,), mass).cuda()}
        env.set_parameters(values, every)  # type: ignore[attr-defined]
        robot = env.core.scene["robot"]  # type: ignore[attr-defined]
        for _ in range(3):
            env.step(torch.zeros(N, 12).cuda())
        return robot.data.root_link_vel_w[:, 2].clone()

    first = drop(1.0, 1.0)
    graph = env.core.sim.step_graph  # type: ignore[attr-defined]
    assert (drop(1.5, 1.0) - first).abs().min() > 1e-3
    assert (drop(1.0, 2.0) - first).abs().min() > 1e-6
    assert env.core.sim.step_graph is graph  # type: ignore[attr-defined]
    env.close()
