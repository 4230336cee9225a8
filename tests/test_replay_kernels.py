"""Kernels of the replay memory against the plain functions, which test_replay.py compares with a list of every step.

They run on a GPU, or without one in Triton's interpreter: TRITON_INTERPRET=1.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from conftest import Place, leaves
from torch import Tensor

from rlcore import SAC, ConfigError, SACConfig, replay
from rlcore.device_memory import free_memory, pinned_zeros
from rlcore.dispatch import plain
from rlcore.envs import make_env
from rlcore.replay import Home, Replay, Transitions
from rlcore.replay_rows import GOING, Finals, Windows, read_ends, read_windows, write_outcomes, write_rows
from rlcore.types import Mode, Timeout

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GAMMA = 0.97
TIMEOUTS: tuple[Timeout, ...] = ("final_obs", "value", "none")


def moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, (tuple, list)):
        return [moved(item, device) for item in value]
    if isinstance(value, dict):
        return {key: moved(item, device) for key, item in value.items()}
    return value if value is None else value.to(device)


SIZES = {"a": 5, "b": 130, "c": 1}


def steps(num_envs: int, count: int) -> Iterator[tuple[Any, ...]]:
    """What vector steps write, with ends of every kind."""
    for _ in range(count):
        ends = torch.rand(2, num_envs) < 0.1
        obs, final = ({group: torch.randn(num_envs, size) for group, size in SIZES.items()} for _ in range(2))
        for value in final.values():
            value[~ends.any(0)] = torch.nan  # only rows of ended episodes mean something
        action, reward = torch.randn(num_envs, 3), torch.randn(num_envs)
        for value in (*obs.values(), *final.values(), action, reward.unsqueeze(1)):
            broken = torch.rand(num_envs) < 0.02
            value[broken, torch.randint(value.shape[1], (1,))] = (torch.nan, torch.inf, -torch.inf)[len(value) % 3]
        yield obs, action, reward, *ends, final


def write_by_twin(
    memory: Replay, obs: Any, action: Tensor, reward: Tensor, terminated: Tensor, truncated: Tensor, final: Any
) -> None:
    known = final is not None
    place, slot = plain(write_outcomes)(
        memory.outcomes, memory.level, memory.num_finals, reward, terminated, truncated, known
    )
    for group, ring in memory.obs.items():
        finals = Finals(final[group], slot, memory.final_obs[group]) if known else None
        plain(write_rows)(ring, obs[group], place, memory.end, True, finals)
    plain(write_rows)(memory.action, action, place, memory.end)


def empty(rows: int, num_envs: int, place: Place, dtype: torch.dtype = torch.float32) -> Replay:
    return Replay(rows * num_envs, num_envs, SIZES, 3, 1000, place.device, dtype, 2 * num_envs, place.home)


def filled(rows: int, num_envs: int, count: int, place: Place, dtype: torch.dtype = torch.float32) -> Replay:
    """A memory with ends of every kind, resets in mid-episode, and final observations lost and kept."""
    torch.manual_seed(1)
    written, there = empty(rows, num_envs, Place(CPU), dtype), empty(rows, num_envs, place, dtype)
    for t, step in enumerate(steps(num_envs, count)):
        write_by_twin(written, *step)
        if t % 11 == 5:
            written.cut()
    there.load_state_dict(written.state_dict(count))
    return there


def read_plainly(memory: Replay, windows: Windows) -> Transitions:
    """What the twins make of it, on the CPU."""
    there = Windows(*(value.cpu() for value in windows))
    ends = {
        group: plain(read_ends)(ring.cpu(), memory.final_obs[group].cpu(), there) for group, ring in memory.obs.items()
    }
    return Transitions(
        {group: pair[0] for group, pair in ends.items()},
        memory.action.cpu().flatten(0, 1)[there.begin],
        there.reward,
        there.discount,
        {group: pair[1] for group, pair in ends.items()},
        there.weight,
    )


def compare(found: Transitions, expected: Transitions, device: torch.device) -> None:
    for name in ("obs", "next_obs"):
        for group, value in getattr(expected, name).items():
            read = getattr(found, name)[group]
            assert (read.dtype, read.device.type) == (torch.float32, device.type)
            assert torch.equal(read.cpu(), value)
            assert torch.isfinite(value).all()
    for name in ("action", "discount", "weight"):
        torch.testing.assert_close(getattr(found, name).cpu(), getattr(expected, name), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.reward.cpu(), expected.reward, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("timeout", TIMEOUTS)
@pytest.mark.parametrize("n_step", [1, 3, 8])
@pytest.mark.parametrize(("rows", "num_envs", "count"), [(40, 7, 30), (40, 7, 40), (33, 64, 90)])
def test_every_window_is_read_as_by_the_twin(
    kernel_place: Place, rows: int, num_envs: int, count: int, n_step: int, timeout: Timeout, dtype: torch.dtype
) -> None:
    memory, device = filled(rows, num_envs, count, kernel_place, dtype), kernel_place.device
    starts, envs = (t.to(device) for t in torch.cartesian_prod(torch.arange(rows), torch.arange(num_envs)).T)
    rest = (starts.contiguous(), envs.contiguous(), GAMMA, n_step, timeout)
    expected = read_plainly(memory, plain(read_windows)(memory.outcomes, *rest, memory.num_finals))
    compare(memory.window(*rest), expected, device)


@pytest.mark.parametrize("n_step", [1, 3, 8])
@pytest.mark.parametrize("count", [9, 20, 40, 53, 80])
def test_samples_are_drawn_as_by_the_twin(kernel_place: Place, count: int, n_step: int) -> None:
    memory, device = filled(40, 7, count, kernel_place), kernel_place.device
    torch.manual_seed(3)
    found = memory.sample(1000, GAMMA, n_step)
    torch.manual_seed(3)
    draw = torch.randint(2**62, (1000,), device=device)
    env = torch.randint(7, (1000,), device=device)
    rest: Any = (draw, env, GAMMA, n_step, "final_obs", memory.num_finals, True)
    compare(found, read_plainly(memory, plain(read_windows)(memory.outcomes, *rest)), device)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "num_envs", "count"), [(6, 7, 40), (3, 1, 60), (2, 4100, 3)])
def test_steps_are_written_as_by_the_twin(
    kernel_place: Place, rows: int, num_envs: int, count: int, dtype: torch.dtype, known: bool
) -> None:
    written, expected = (empty(rows, num_envs, place, dtype) for place in (kernel_place, Place(CPU)))
    for t, step in enumerate(steps(num_envs, count)):
        step = (*step[:-1], step[-1] if known else None)
        write_by_twin(expected, *step)
        written.write(*moved(step, kernel_place.device))
        found, wanted = (memory.state_dict(min(t + 1, rows)) for memory in (written, expected))
        for name, value in wanted.items():
            last = len(value) - name.startswith("final_obs")  # the row after the last slot means nothing
            # Triton's interpreter cuts bits off where a GPU rounds.
            cut = value.dtype == torch.bfloat16 and kernel_place.device.type == "cpu"
            rtol = 1e-5 if name == "level" else 2**-7 if cut else 0  # a mean, whose sum has another order
            torch.testing.assert_close(found[name].cpu()[:last], value[:last], rtol=rtol, atol=0)
    assert int(expected.num_written) > 2 * num_envs or not known or num_envs > 100  # slots came round


def test_what_is_written_need_not_be_contiguous(kernel_place: Place) -> None:
    written, expected = (empty(4, 6, place) for place in (kernel_place, Place(CPU)))
    for step in steps(6, 5):
        write_by_twin(expected, *step)
        apart = {group: value.t().contiguous().t() for group, value in step[0].items()}
        flags = torch.stack(step[3:5], 1)
        written.write(
            *moved((apart, step[1].t().contiguous().t(), step[2], *flags.unbind(1), step[5]), kernel_place.device)
        )
    for name, value in expected.state_dict(4).items():
        last = len(value) - name.startswith("final_obs")
        rtol = 1e-5 if name == "level" else 0
        torch.testing.assert_close(written.state_dict(4)[name].cpu()[:last], value[:last], rtol=rtol, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("home", ["env", "host"])
def test_a_recorded_draw_reads_what_was_written_since(home: Home) -> None:
    memory = filled(40, 7, 20, Place(CUDA, home))
    read = memory.window
    going = int((memory.end[19] == GOING).nonzero()[0])  # an episode that the reset below interrupts
    start, env = (torch.full((5,), row, device=CUDA) for row in (19, going))
    read(start, env, GAMMA)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = read(start, env, GAMMA)
    row = {group: torch.full((7, size), 7.0, device=CUDA) for group, size in SIZES.items()}
    flags = torch.zeros(7, dtype=torch.bool, device=CUDA)
    memory.cut()
    memory.write(row, torch.zeros(7, 3, device=CUDA), torch.ones(7, device=CUDA), flags, flags, row)
    graph.replay()
    assert float(found.weight.sum()) == 0.0  # the reset above came between
    start.fill_(20)
    memory.write(row, torch.zeros(7, 3, device=CUDA), torch.ones(7, device=CUDA), flags, flags, row)
    graph.replay()
    assert found.reward.tolist() == [1.0] * 5
    assert found.next_obs["a"].eq(7.0).all()


# --- Host memory -----------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_a_ring_in_host_memory_draws_what_one_on_the_device_draws() -> None:
    both = [empty(12, 30, Place(CUDA, home)) for home in ("env", "host")]
    for step in steps(30, 40):
        for memory in both:
            memory.write(*moved(step, CUDA))
    assert [memory.action.device.type for memory in both] == ["cuda", "cpu"]
    assert both[0].num_bytes == both[1].num_bytes
    draws = []
    for memory in both:
        torch.manual_seed(6)
        draws.append(memory.sample(5000, GAMMA, 3))
    pairs = zip(*(leaves(draw) for draw in draws), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs if a is not None)


@pytest.mark.gpu
def test_learning_from_host_memory_equals_learning_from_the_device_in_graphs_and_without() -> None:
    def learned(mode: Mode, home: Home) -> dict[str, Any]:
        sizes = {"learning_starts": 40, "buffer_size": 600, "batch_size": 64, "num_updates": 1, "n_step": 3}
        config = SACConfig(mode=mode, buffer_device=home, policy_delay=2, **sizes)  # type: ignore[arg-type]
        agent = SAC(make_env("Pendulum", 4, "cuda", seed=0, max_episode_length=20), config, seed=0)
        agent.learn(200)  # more than the memory holds
        return {**agent.policy.state_dict(), **agent.replay.state_dict(200)}

    expected = learned("eager", "env")
    for mode, home in (("eager", "host"), ("graph", "env"), ("graph", "host")):
        for name, value in learned(mode, home).items():  # type: ignore[arg-type]
            assert torch.equal(value.cpu(), expected[name].cpu()), (mode, home, name)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [5, 40])
def test_a_ring_in_host_memory_is_saved_and_restored_without_the_gpu(rows: int) -> None:
    memory = filled(12, 64, rows, Place(CUDA, "host"))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    state, other = memory.state_dict(rows), empty(12, 64, Place(CUDA, "host"))
    other.load_state_dict(state)
    assert state["obs_b"].device.type == "cpu"
    assert state["obs_b"].untyped_storage().nbytes() == 4 * min(rows, 12) * 64 * 130
    assert torch.cuda.max_memory_allocated() - before < 64 * 130 * 4  # less than a row of it
    for name, value in other.state_dict(rows).items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0, equal_nan=True)  # lost observations are NaN


@pytest.mark.gpu
def test_host_memory_is_let_go_with_the_last_tensor_in_it() -> None:
    before = free_memory(CPU)
    pinned = pinned_zeros((2**29,), torch.float32, CUDA)  # 2 GiB
    part = pinned[5:6]
    assert part.is_pinned()
    del pinned
    gc.collect()
    held = free_memory(CPU)
    assert part.item() == 0.0
    del part
    gc.collect()
    after = free_memory(CPU)
    assert before is not None and held is not None and after is not None
    assert before - held > 2**30 and after - held > 2**30


class Runtime:
    """As much of CUDA as pinning calls."""

    def __init__(self, answer: int) -> None:
        self.answer, self.calls = answer, []  # type: ignore[var-annotated]

    def cudaHostRegister(self, *arguments: int) -> int:
        self.calls.append(("register", *arguments))
        return self.answer

    def cudaHostUnregister(self, *arguments: int) -> int:
        self.calls.append(("unregister", *arguments))
        return 0

    def synchronize(self, device: torch.device) -> None:
        self.calls.append(("wait",))

    def check(self, answer: int) -> None:
        if answer:
            raise RuntimeError("CUDA error: out of memory")


@pytest.fixture(params=[0])
def runtime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    fake = Runtime(request.param)
    replaced = {"cudart": lambda: fake, "check_error": fake.check, "device": nullcontext}
    for name, value in {**replaced, "synchronize": fake.synchronize}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return fake


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_host_memory_is_pinned_whole_and_until_nothing_refers_to_it(runtime: Runtime, dtype: torch.dtype) -> None:
    ring = pinned_zeros((7, 5, 300), dtype, CUDA)
    address, size = ring.data_ptr(), 7 * 5 * 300 * dtype.itemsize
    assert address % 4096 == 0
    assert ring.untyped_storage().nbytes() == size  # what a checkpoint would hold
    assert not ring.any()
    part = ring.view(torch.uint8)[3:4]
    del ring
    gc.collect()
    assert runtime.calls == [("register", address, size, 0)]
    part.fill_(1)  # still there
    del part
    gc.collect()
    assert runtime.calls[1:] == [("wait",), ("unregister", address)]


@pytest.mark.parametrize("runtime", [2], indirect=True)
def test_host_memory_that_cannot_be_had_is_refused(runtime: Runtime) -> None:
    with pytest.raises(MemoryError, match=r"0\.5 MiB of host memory cannot be had for cuda: CUDA error: out of memory"):
        pinned_zeros((2**17,), torch.float32, CUDA)
    with pytest.raises(MemoryError, match=r"GiB of host memory cannot be had for cuda: "):
        pinned_zeros((2**58,), torch.float32, CUDA)
    gc.collect()
    assert [call[0] for call in runtime.calls] == ["register"]


def test_host_memory_without_kernels_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "kernels_run", lambda device: False)
    with pytest.raises(ConfigError, match=r"buffer_device: 'host' is not possible; cuda .* install triton, or set"):
        Replay(1000, 10, {"a": 7}, 3, 100, CUDA, home="host")


def test_room_is_asked_of_the_place_that_gives_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Taken(Exception):
        pass

    def take(*_: Any, **__: Any) -> Tensor:
        raise Taken

    room = {"cpu": 10_000, "cuda": 10_000}
    monkeypatch.setattr(replay, "kernels_run", lambda device: True)
    monkeypatch.setattr("rlcore.device_memory.free_memory", lambda device: room[device.type])
    monkeypatch.setattr(replay, "pinned_zeros", take)
    monkeypatch.setattr(torch, "zeros", take)

    def build(home: Home, dtype: torch.dtype = torch.float32) -> None:
        Replay(1000, 10, {"a": 7}, 3, 1000, CUDA, dtype, final_capacity=14, home=home)

    # 40 bytes of observation and action each, 28 for each of 15 final observations; 8 bytes for reward and end.
    with pytest.raises(ConfigError, match=r"take 0\.0 MiB and the host has .* set buffer_size to \d+ or less$"):
        build("host")
    # Bytes of the host, of the GPU, and what helps as well: nothing, half of the observations, or the other place.
    for home, host, gpu, others in (
        ("env", 10_000, 10_000, ""),
        ("env", 10_000, 42_000, ", or store_obs to bf16"),
        ("env", 50_000, 10_000, ", or buffer_device to host"),
        ("env", 50_000, 42_000, ", or store_obs to bf16, or buffer_device to host"),
        ("host", 32_000, 10_000, ", or store_obs to bf16"),
        ("host", 32_000, 60_000, ", or store_obs to bf16, or buffer_device to env"),
        ("host", 32_000, 8_000, ""),  # where rewards and ends do not fit either
    ):
        room |= {"cpu": host, "cuda": gpu}
        with pytest.raises(ConfigError, match=rf" set buffer_size to \d+ or less{others}$"):
            build(home)  # type: ignore[arg-type]
    room |= {"cpu": 10_000, "cuda": 31_000}
    with pytest.raises(ConfigError, match=r" or less$"):  # halved already
        build("env", torch.bfloat16)
    room |= {"cpu": 10, "cuda": 10}
    with pytest.raises(ConfigError, match=r"; make room there$"):  # not even for two steps
        build("env")
    room |= {"cpu": 20_000, "cuda": 1_000}
    with pytest.raises(ConfigError, match=r"and cuda has .* set buffer_size to \d+ or less$") as refused:
        build("host")  # the place that has least of what it should
    assert int(str(refused.value).split("set buffer_size to ")[1].split()[0]) < 0.9 * 1_000 / 8
    room |= {"cpu": 46_000, "cuda": 8_000}
    with pytest.raises(ConfigError, match=r"take 0\.0 MiB and cuda has .* or less$"):
        build("host")
    room["cuda"] = 9_000
    with caplog.at_level(logging.INFO, "rlcore"), pytest.raises(Taken):
        build("host")
    assert caplog.messages == [
        "replay memory of 1,000 transitions, 0.0 MiB in pinned host memory and 0.0 MiB on cuda"
    ]  # before it is taken


def test_memory_that_is_not_given_in_the_end_is_refused_with_the_same_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore lines")

    def not_pinned(*_: Any, **__: Any) -> Tensor:
        raise MemoryError("0.5 MiB of host memory cannot be had for cuda: CUDA error: not supported")

    monkeypatch.setattr(replay, "kernels_run", lambda device: True)
    monkeypatch.setattr("rlcore.device_memory.free_memory", lambda device: None)
    monkeypatch.setattr(replay, "pinned_zeros", not_pinned)
    monkeypatch.setattr(torch, "zeros", out_of_memory)
    start = r"^buffer_size: 1000000 transitions take"
    reason = r".* on cuda, which cannot be had \(CUDA out of memory\. Tried to allocate 20\.00 GiB\.\)"
    advice = "set buffer_size to less, or store_obs to bf16, or buffer_device to "
    with pytest.raises(ConfigError, match=f"{start} {reason}; {advice}host$"):
        Replay(1_000_000, 10, {"a": 7}, 3, 1000, CUDA)
    reason = r".* on the host and 7\.6 MiB on cuda, which cannot be had \(.* CUDA error: not supported\)"
    with pytest.raises(ConfigError, match=f"{start} {reason}; {advice}env$"):
        Replay(1_000_000, 10, {"a": 7}, 3, 1000, CUDA, home="host")


@pytest.mark.gpu
@pytest.mark.slow
def test_positions_reach_beyond_two_to_the_31_numbers() -> None:
    rows, num_envs, width = 2200, 1024, 1024
    memory = Replay(rows * num_envs, num_envs, {"a": width}, 1, 1000, CUDA, dtype=torch.bfloat16)
    memory.obs["a"][-1, -1] = 5.0
    memory.obs["a"][0, -1] = 6.0
    last = (torch.tensor([rows - 1], device=CUDA), torch.tensor([num_envs - 1], device=CUDA))
    found = memory.window(*last, GAMMA)
    assert found.obs["a"].eq(5.0).all()
    assert found.next_obs["a"].eq(6.0).all()
