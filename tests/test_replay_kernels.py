"""Kernels that read the replay memory against their twins, which test_replay.py compares with a list of every step."""

from __future__ import annotations

import pytest
import torch

from rlcore.replay import Replay, Timeout, Transitions
from rlcore.replay_kernels import Windows, read_ends_reference, read_windows_reference

CUDA = torch.device("cuda")
GAMMA = 0.97
TIMEOUTS: tuple[Timeout, ...] = ("final_obs", "value", "none")


def filled(rows: int, num_envs: int, count: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Replay:
    """A memory with ends of every kind, resets in mid-episode, and final observations lost and kept."""
    torch.manual_seed(1)
    sizes = {"a": 5, "b": 130, "c": 1}
    replay = Replay(rows * num_envs, num_envs, sizes, 3, 1000, torch.device("cpu"), dtype, 2 * num_envs)
    for t in range(count):
        ends = torch.rand(2, num_envs) < 0.1
        obs, final = ({group: torch.randn(num_envs, size) for group, size in sizes.items()} for _ in range(2))
        for value in final.values():
            value[~ends.any(0)] = torch.nan  # only rows of ended episodes mean something
        replay.write(obs, torch.randn(num_envs, 3), torch.randn(num_envs), *ends, final)
        if t % 11 == 5:
            replay.cut()
    there = Replay(rows * num_envs, num_envs, sizes, 3, 1000, device, dtype, 2 * num_envs)
    there.load_state_dict(replay.state_dict(count))
    return there


def plain(replay: Replay, windows: Windows) -> Transitions:
    """What the twins make of it."""
    ends = {group: read_ends_reference(ring, replay.final_obs[group], windows) for group, ring in replay.obs.items()}
    return Transitions(
        {group: pair[0] for group, pair in ends.items()},
        replay.action.flatten(0, 1)[windows.begin],
        windows.reward,
        windows.discount,
        {group: pair[1] for group, pair in ends.items()},
        windows.weight,
    )


def compare(found: Transitions, expected: Transitions) -> None:
    for name in ("obs", "next_obs"):
        for group, value in getattr(expected, name).items():
            assert value.dtype == torch.float32
            assert torch.equal(getattr(found, name)[group], value)
            assert torch.isfinite(value).all()
    for name in ("action", "discount", "weight"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.reward, expected.reward, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("timeout", TIMEOUTS)
@pytest.mark.parametrize("n_step", [1, 3, 8])
@pytest.mark.parametrize(("rows", "num_envs", "count"), [(40, 7, 30), (40, 7, 40), (33, 64, 90)])
def test_every_window_is_read_as_by_the_twin(
    rows: int, num_envs: int, count: int, n_step: int, timeout: Timeout, dtype: torch.dtype
) -> None:
    replay = filled(rows, num_envs, count, CUDA, dtype)
    starts, envs = (t.to(CUDA) for t in torch.cartesian_prod(torch.arange(rows), torch.arange(num_envs)).T)
    rest = (starts.contiguous(), envs.contiguous(), GAMMA, n_step, timeout)
    compare(replay.window(*rest), plain(replay, read_windows_reference(replay.outcomes, *rest, replay.num_finals)))


@pytest.mark.gpu
@pytest.mark.parametrize("n_step", [1, 3, 8])
@pytest.mark.parametrize("count", [9, 20, 40, 53, 80])
def test_samples_are_drawn_as_by_the_twin(count: int, n_step: int) -> None:
    replay = filled(40, 7, count, CUDA)
    torch.manual_seed(3)
    found = replay.sample(1000, GAMMA, n_step)
    torch.manual_seed(3)
    draw = torch.randint(2**62, (1000,), device=CUDA)
    env = torch.randint(7, (1000,), device=CUDA)
    rest = (draw, env, GAMMA, n_step, "final_obs", replay.num_finals, True)
    compare(found, plain(replay, read_windows_reference(replay.outcomes, *rest)))  # type: ignore[arg-type]


@pytest.mark.gpu
def test_a_recorded_draw_reads_what_was_written_since() -> None:
    replay = filled(40, 7, 20, CUDA)
    read = replay.window
    start, env = (torch.full((5,), row, device=CUDA) for row in (19, 3))
    read(start, env, GAMMA)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = read(start, env, GAMMA)
    row = {group: torch.full_like(ring[0], 7.0).float() for group, ring in replay.obs.items()}
    flags = torch.zeros(7, dtype=torch.bool, device=CUDA)
    replay.cut()
    replay.write(row, torch.zeros(7, 3, device=CUDA), torch.ones(7, device=CUDA), flags, flags, row)
    graph.replay()
    assert float(found.weight.sum()) == 0.0  # the reset above came between
    start.fill_(20)
    replay.write(row, torch.zeros(7, 3, device=CUDA), torch.ones(7, device=CUDA), flags, flags, row)
    graph.replay()
    assert found.reward.tolist() == [1.0] * 5
    assert found.next_obs["a"].eq(7.0).all()


@pytest.mark.gpu
@pytest.mark.slow
def test_positions_reach_beyond_two_to_the_31_numbers() -> None:
    rows, num_envs, width = 2200, 1024, 1024
    replay = Replay(rows * num_envs, num_envs, {"a": width}, 1, 1000, CUDA, dtype=torch.bfloat16)
    replay.obs["a"][-1, -1] = 5.0
    replay.obs["a"][0, -1] = 6.0
    last = (torch.tensor([rows - 1], device=CUDA), torch.tensor([num_envs - 1], device=CUDA))
    found = replay.window(*last, GAMMA)
    assert found.obs["a"].eq(5.0).all()
    assert found.next_obs["a"].eq(6.0).all()
