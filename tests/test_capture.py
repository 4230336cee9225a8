"""Captured execution gives what plain execution gives, and says so when it cannot."""

from __future__ import annotations

import gc
import logging
import math
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import leaves
from torch import Tensor

from rlcore import DDPG, PPO, SAC, DDPGConfig, NetworkConfig, PPOConfig, SACConfig
from rlcore.capture import Captured, _tensors, compiled, matmul_precision
from rlcore.envs import make_env
from rlcore.learn import Progress, Report, resume, snapshot
from rlcore.recurrent import RNNConfig

CPU = torch.device("cpu")
NET = NetworkConfig(hidden_dims=(64, 32))
CONFIG = PPOConfig(num_steps=8, num_epochs=2, num_minibatches=4, actor=NET, critic=NET, precision="fp32")


def test_on_the_cpu_functions_run_as_they_are() -> None:
    calls = []
    fn = Captured(lambda x: calls.append(x) or x + 1, "graph", CPU)
    for i in range(5):
        assert fn(torch.tensor(i)) == i + 1
    assert len(calls) == 5
    assert compiled(math.sqrt, "graph+compile", CPU) is math.sqrt


OFF_POLICY: dict[str, Any] = {"buffer_size": 512, "learning_starts": 8, "batch_size": 8, "policy_delay": 2}


@pytest.mark.parametrize(
    ("algorithm", "config"),
    [
        (PPO, CONFIG),
        (PPO, replace(CONFIG, actor=replace(NET, rnn=RNNConfig(type="gru", hidden_size=8)), mode="compile")),
        (SAC, SACConfig(actor=NET, critic=NET, **OFF_POLICY)),
        (DDPG, DDPGConfig(actor=NET, critic=NET, **OFF_POLICY)),
    ],
)
def test_an_agent_and_its_graphs_are_freed_with_the_last_reference(algorithm: Any, config: Any) -> None:
    env = make_env("Pendulum", num_envs=8)
    agent = algorithm(env, config, seed=1)
    progress = agent.learn(4)
    remains = [weakref.ref(part) for part in (agent, agent._act, progress.episodes)]
    gc.disable()  # which would come too late for the next agent
    try:
        del agent, progress
        assert [ref() for ref in remains] == [None] * 3
    finally:
        gc.enable()


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="before PyTorch 2.9")
@pytest.mark.parametrize("theirs", ["ieee", "tf32"])
@pytest.mark.parametrize("ours", ["fp32", "tf32", "bf16"])
def test_precision_is_chosen_and_put_back_whichever_switch_was_set_before(theirs: str, ours: str) -> None:
    matmul = torch.backends.cuda.matmul
    matmul.allow_tf32 = theirs != "tf32"
    matmul.fp32_precision = theirs  # now the older switch cannot be read
    try:
        with matmul_precision(ours):
            assert matmul.fp32_precision == ("ieee" if ours == "fp32" else "tf32")
        assert matmul.fp32_precision == theirs
    finally:
        matmul.allow_tf32 = False


def test_the_order_of_a_dict_does_not_matter() -> None:
    one, two, three = torch.zeros(1), torch.ones(1), torch.ones(1) * 2
    first = list(_tensors(({"a": one, "b": {"x": two, "y": three}},)))
    again = list(_tensors(({"b": {"y": three, "x": two}, "a": one},)))
    assert all(a is b for a, b in zip(first, again, strict=True))


def agent_on(task: str, mode: str, num_envs: int = 64, **changes: Any) -> PPO:
    env = make_env(task, num_envs, "cuda", seed=0)
    return PPO(env, replace(CONFIG, mode=mode, **changes), seed=0)


def parameters(agent: PPO) -> Tensor:
    return torch.cat([optimizer.value for optimizer in agent.optimizers]).clone()


@pytest.mark.gpu
def test_state_random_numbers_and_results_equal_those_of_plain_calls() -> None:
    def run(mode: Any) -> tuple[Tensor, list[Tensor], Tensor]:
        torch.manual_seed(3)
        total = torch.zeros(4, device="cuda")

        def step(x: dict[str, Tensor]) -> Tensor:
            total.add_(x["a"] + torch.randn(4, device="cuda"))
            return total * 2

        fn = Captured(step, mode, torch.device("cuda"))
        outputs = [fn({"a": torch.full((4,), float(i), device="cuda")}).clone() for i in range(8)]
        return total, outputs, torch.randn(4, device="cuda")

    for graph, eager in zip(leaves(run("graph")), leaves(run("eager")), strict=True):
        assert torch.equal(graph, eager)


@pytest.mark.gpu
def test_a_replay_waits_for_what_a_recording_begins_with(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = torch.cuda.CUDAGraph.capture_begin

    def late(*args: Any, **kwargs: Any) -> None:
        torch.cuda._sleep(300_000_000)  # about 0.15 s, on the stream that is recorded, as with a busy GPU
        begin(*args, **kwargs)

    first, second = torch.zeros(2, 4, device="cuda")

    def draw() -> tuple[Tensor, Tensor]:
        first.uniform_()  # in place, as taking memory would wait for the GPU
        torch.cuda._sleep(1_000_000_000)  # about 0.5 s, in which the other stream gets there
        return first, second.uniform_()

    def run(mode: Any) -> list[Tensor]:
        torch.manual_seed(3)
        fn = Captured(draw, mode, torch.device("cuda"))
        return [part.clone() for _ in range(4) for part in fn()]

    expected = run("eager")
    monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_begin", late)
    assert all(torch.equal(graph, eager) for graph, eager in zip(run("graph"), expected, strict=True))


@pytest.mark.gpu
def test_another_shape_type_or_device_is_refused_by_name() -> None:
    fn = Captured(lambda x: x + 1, "graph", torch.device("cuda"))
    for _ in range(4):
        fn(torch.zeros(3, device="cuda"))
    for wrong in (torch.zeros(4, device="cuda"), torch.zeros(3, device="cuda", dtype=torch.int64), torch.zeros(3)):
        with pytest.raises(ValueError, match=r"recorded with tensor 0 as torch\.float32"):
            fn(wrong)


@pytest.mark.gpu
def test_a_function_that_cannot_be_captured_runs_plainly_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    fn = Captured(lambda x: x * x.sum().item(), "graph", torch.device("cuda"))
    with caplog.at_level(logging.WARNING):
        results = [fn(torch.ones(3, device="cuda")) for _ in range(5)]
    assert all(torch.equal(r, torch.full((3,), 3.0, device="cuda")) for r in results)
    assert "cannot run as a CUDA graph" in caplog.text


@pytest.mark.gpu
def test_a_recording_that_breaks_off_leaves_others_and_random_numbers_as_they_were() -> None:
    def run(mode: Any) -> list[Tensor]:
        torch.manual_seed(3)
        own = torch.Generator("cuda").manual_seed(4)
        one = torch.ones((), device="cuda")
        good = Captured(lambda: torch.rand(4, device="cuda", generator=own), mode, torch.device("cuda"), [own])
        other = Captured(lambda: torch.rand(4, device="cuda"), mode, torch.device("cuda"))
        bad = Captured(lambda: good.fn() + torch.rand(4, device="cuda") * one.item(), mode, one.device, [own])
        present = torch.cuda.current_stream()
        results = [part().clone() for _ in range(3) for part in (good, other)]
        results += [part().clone() for _ in range(5) for part in (bad, good, other)]
        assert torch.cuda.current_stream() == present
        return results

    assert all(torch.equal(graph, eager) for graph, eager in zip(run("graph"), run("eager"), strict=True))


@pytest.mark.gpu
def test_objects_that_are_collected_meanwhile_do_not_break_a_recording_off() -> None:
    class Freed:
        def __del__(self) -> None:
            torch.cuda.synchronize()  # as memory that the GPU may still be using does

    def step(x: Tensor) -> Tensor:
        freed = Freed()
        freed.itself = freed  # type: ignore[attr-defined]
        del freed
        assert len([[] for _ in range(1000)]) == 1000  # more containers than the threshold below
        return x + 1

    fn, threshold = Captured(step, "graph", torch.device("cuda")), gc.get_threshold()
    gc.set_threshold(10)
    try:
        for _ in range(4):
            fn(torch.zeros(3, device="cuda"))
    finally:
        gc.set_threshold(*threshold)
    assert fn.graph is not None


@pytest.mark.gpu
@pytest.mark.parametrize("task", ["Null", "Pendulum", "CartPole", "Reach-UR5e-JointPos"])
def test_graph_equals_eager_after_a_hundred_updates(task: str) -> None:
    rates: dict[str, list[float]] = {"graph": [], "eager": []}

    def train(mode: str) -> PPO:
        agent = agent_on(task, mode)
        agent.learn(100, on_report=lambda report: rates[mode].append(report.metrics["policy/learning_rate"]))
        return agent

    graph, eager = train("graph"), train("eager")
    assert torch.equal(parameters(graph), parameters(eager))  # bitwise
    assert torch.equal(graph.policy.normalizer.mean, eager.policy.normalizer.mean)
    assert rates["graph"] == rates["eager"]
    assert len(set(rates["graph"])) > 1  # the schedule moved
    obs = graph.env.reset(7)
    torch.manual_seed(5)
    first = graph.act(obs, ())[0].clone()
    torch.manual_seed(5)
    assert torch.equal(first, eager.act(obs, ())[0])


@pytest.mark.gpu
@pytest.mark.parametrize("capture_env", [None, False])
def test_iterations_do_not_synchronize_with_the_host(capture_env: bool | None) -> None:
    agent = agent_on("Reach-UR5e-JointPos", "graph")
    progress = agent.learn(5, capture_env=capture_env)  # set-up may
    reports: list[Report] = []
    torch.cuda.set_sync_debug_mode("error")
    try:
        agent.learn(25, progress=progress, on_report=reports.append, capture_env=capture_env)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [r.iteration for r in reports] == list(range(6, 26))


@pytest.mark.gpu
def test_resumed_on_the_gpu_a_run_goes_on_bitwise() -> None:
    straight = agent_on("Reach-UR5e-JointPos", "graph")
    straight.learn(12)
    first = agent_on("Reach-UR5e-JointPos", "graph")
    content = snapshot(first.env, first, first.learn(6))
    second = agent_on("Reach-UR5e-JointPos", "graph")
    second.learn(4)  # has recorded its graphs already when the checkpoint comes
    progress, exact = resume(second.env, second, content)
    second.learn(12, progress=progress)
    assert exact
    assert torch.equal(parameters(straight), parameters(second))


@pytest.mark.gpu
def test_memory_does_not_grow() -> None:
    agent = agent_on("Pendulum", "graph")
    used: dict[int, int] = {}

    def on_iteration(progress: Progress) -> None:
        used[progress.iteration] = torch.cuda.memory_allocated()

    agent.learn(1000, on_iteration=on_iteration)
    assert used[1000] <= used[20]


@pytest.mark.gpu
def test_one_agent_after_the_other_takes_the_memory_of_one() -> None:
    reserved = []
    gc.disable()
    try:
        for _ in range(4):
            agent = agent_on("Null", "graph")
            agent.learn(5)
            reserved.append(torch.cuda.memory_reserved())
            del agent
    finally:
        gc.enable()
    assert reserved[-1] <= 1.1 * reserved[0]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_lower_precision_stays_near_full_precision(precision: str) -> None:
    full, low = agent_on("Null", "graph"), agent_on("Null", "graph", precision=precision)
    obs = {"policy": torch.randn(64, 48, device="cuda")}
    exact, near = full.policy(obs)[0], low.policy(obs)[0]
    error = float((near - exact).detach().norm() / exact.detach().norm())
    assert error < (0.02 if precision == "bf16" else 2e-3)
