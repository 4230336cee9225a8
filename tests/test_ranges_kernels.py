"""What is drawn for new episodes, as it is written and as kernels, against numpy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import INTERPRETED

from rlcore import dispatch
from rlcore.envs import make_env
from rlcore.envs.classic import Pendulum
from rlcore.envs.entropy_ranges import MaximumEntropy, inverted, remember
from rlcore.envs.randomize import Randomized
from rlcore.envs.ranges import Row, Scale, add_ended, chosen, redrawn

SHAPES = [(1, 1), (3, 5), (2, 300)]
"""Parameters and envs."""


@pytest.fixture(params=["plain", "interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    if request.param == "interpreter":
        if not INTERPRETED:
            pytest.skip("needs TRITON_INTERPRET=1")
        monkeypatch.setattr(dispatch, "_interpreted", True)
    return torch.device("cuda" if request.param == "cuda" else "cpu")


def close(got: torch.Tensor, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(got.double().cpu().numpy(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("special", [True, False])
def test_what_begins_takes_its_positions_and_values(shape: tuple[int, int], special: bool, place: torch.device) -> None:
    torch.manual_seed(0)
    kept, position = torch.rand(2, *shape, device=place)
    where = torch.rand(shape[1], device=place) < 0.5
    low, span = torch.rand(shape[0], 2, 1, device=place).unbind(1)  # not in one piece
    logarithmic, points = torch.rand(2, shape[0], 1, device=place) < 0.5
    lowest = torch.tensor(-1.0, device=place)
    scale = Scale(low, span, logarithmic if special else None, points if special else None, lowest)
    old, new, begun = kept.double().cpu().numpy(), position.double().cpu().numpy(), where.cpu().numpy()
    if special:
        new = np.where(points.cpu().numpy(), 0.5, new)
    value = low.double().cpu().numpy() + span.double().cpu().numpy() * new
    if special:
        value = np.where(logarithmic.cpu().numpy(), np.exp(value), value)
    values, seen, before = redrawn(kept, position, where, scale)
    now = np.where(begun, new, old)
    for got, wanted in ((values, value), (kept, now), (seen, 2 * now.T - 1), (before, 2 * old.T - 1)):
        close(got, wanted)


@pytest.mark.parametrize("mode", ["fixed", "adr", "doraemon"])
def test_several_parameters_of_an_env_stay_within_ranges_of_their_own(mode: str, place: torch.device) -> None:
    ranges = {"mass": [0.5, 2.0], "length": [0.7, 1.5], "gravity": [8.0, 12.0], "action_delay": [0, 3]}
    settings = {"mode": mode, **({} if mode == "fixed" else {"success_return": 0.0}), **ranges}
    env = make_env("Pendulum", 64, place, seed=1, randomize=settings)
    env.reset(seed=1)
    assert isinstance(env, Randomized)
    physics: Any = env
    while not isinstance(physics, Pendulum):
        physics = physics.env
    for name, values in env.task_values().items():
        low, high = ranges[name]
        assert low - 1e-6 <= values.min() and values.max() <= high + 1e-6, name
        if name in physics.parameters:
            torch.testing.assert_close(physics._values[name], values)  # what the physics has is what was drawn


@pytest.mark.parametrize("shape", SHAPES)
def test_bounds_are_chosen_and_counted(shape: tuple[int, int], place: torch.device) -> None:
    torch.manual_seed(0)
    count, envs = shape
    uniform, between = torch.rand(count + 1, envs, device=place), torch.rand(2, count, 2 * count + 1, device=place)
    limits = torch.arange(1, 2 * count + 1, device=place) / (4 * count)
    where = torch.rand(envs, device=place) < 0.5
    played = torch.randint(4 * count + 1, (envs,)).to(place)  # of cohorts that take more, of none, of those that wait
    before = played.cpu().numpy().copy()
    bound = np.minimum((uniform[-1].double().cpu().numpy() * 4 * count).astype(int), 2 * count)
    low, high = between.double().cpu().numpy()[:, :, bound]
    position = chosen(uniform, limits, between, where, played)
    close(position, low + (high - low) * uniform[:-1].double().cpu().numpy())
    now = np.where(where.cpu().numpy(), bound, before)
    assert played.tolist() == now.tolist()
    tally, success = torch.zeros(2, 4 * count + 2, envs, device=place), torch.rand(envs, 3, device=place)[:, 1]
    done = torch.rand(envs, device=place) < 0.5
    success[~done] = torch.nan  # of episodes that go on nothing is known
    success[::3] = torch.nan  # and of these nothing is told
    for _ in range(2):
        last = torch.tensor(4 * count + 1, device=place)
        add_ended(tally, played, done, success, torch.ones_like(success), last)
    wanted = np.zeros((2, 4 * count + 1, envs))
    for env in np.flatnonzero(done.cpu().numpy()):
        wanted[:, now[env], env] = 2.0, 0.0 if env % 3 == 0 else 2.0 * float(success[env])
    close(tally[:, :-1], wanted)


@pytest.mark.parametrize("cells", [1, 64, 100, 1024])
@pytest.mark.parametrize("shape", SHAPES)
def test_distributions_are_inverted(shape: tuple[int, int], cells: int, place: torch.device) -> None:
    torch.manual_seed(0)
    count, envs = shape
    chance = (4.0 * torch.rand(count, cells)).softmax(1)
    cumulative = chance.cumsum(1)
    cumulative[:, -1] = torch.inf
    uniform, kept = torch.rand(2, count, envs), torch.full((envs,), 7.0)
    uniform[0, :, 0] = 0.0
    where = torch.rand(envs) < 0.5
    density = (chance * cells).log()
    given = [x.to(place) for x in (uniform, cumulative, density, where, kept)]
    position = inverted(*given)
    cell = np.stack([np.searchsorted(c, u) for c, u in zip(cumulative.numpy(), uniform[0].numpy(), strict=True)])
    close(position, (cell + uniform[1].double().numpy()) / cells)
    total = np.take_along_axis(density.double().numpy(), cell, 1).sum(0)
    close(given[-1], np.where(where.numpy(), total, 7.0))


@pytest.mark.parametrize("shape", [*SHAPES, (2, 5000)])
@pytest.mark.parametrize(("more", "programs"), [(0.0, 32), (0.5, 2)])
def test_the_latest_episodes_are_remembered_in_order(
    shape: tuple[int, int], more: float, programs: int, place: torch.device
) -> None:
    torch.manual_seed(0)
    count, envs = shape
    size = envs + int(more * envs)
    seen = torch.full((size + 1, count + 2), 9.0, device=place)
    cursors, waste = torch.full((programs,), -1, device=place), torch.tensor(size, device=place)
    wanted, number = seen.cpu().numpy()[:-1].copy(), -1
    for _ in range(3):
        position, density, done = torch.rand(count, envs), torch.rand(envs), torch.rand(envs) < 0.7
        figures = torch.rand(envs, 3)
        success = figures[:, 1]
        success[::3] = torch.nan  # which is none
        given = (position.to(place), density.to(place), figures.to(place)[:, 1], done.to(place))  # a column stays one
        remember(seen, cursors, *given, waste)
        for env in np.flatnonzero(done.numpy()):
            number += 1
            wanted[number % size] = [
                *position[:, env].tolist(),
                float(density[env]),
                0.0 if env % 3 == 0 else float(success[env]),
            ]
    assert cursors.tolist() == [number] * programs
    np.testing.assert_array_equal(seen[:-1].cpu().numpy(), wanted)


def test_episodes_go_on_where_a_saved_state_was(place: torch.device) -> None:
    ranges, loaded = (
        MaximumEntropy([Row("mass", 0.5)], 64, place, success_rate=0.5, max_kl=0.1, episodes=100, interval=1)
        for _ in range(2)
    )
    torch.manual_seed(0)
    for begun in range(4):
        if begun == 2:
            saved = {name: value.clone() for name, value in ranges.kept.items()}
            for name, value in loaded.kept.items():
                value.copy_(saved[name])
            loaded.loaded()
        position, success, done = torch.rand(1, 64).to(place), torch.rand(64).to(place), torch.rand(64).to(place) < 0.5
        for each in (ranges, loaded) if begun >= 2 else (ranges,):
            each.record(position, done, success)
    assert int(ranges.cursor) == int(loaded.cursor) > 63
    torch.testing.assert_close(loaded.seen[:-1], ranges.seen[:-1], rtol=0, atol=0)
