"""Several ranks on a CPU: they stay alike to the bit, and do together what one process does alone."""

from __future__ import annotations

import copy
import os
import pickle
import socket
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlcore import distributed
from rlcore.config import ConfigError
from rlcore.distributed import RankLost, World, join, leave, total, world
from rlcore.envs import make_env
from rlcore.learn import Progress, Report, _Mail, learn, resume, snapshot
from rlcore.networks import NetworkConfig
from rlcore.normalization import RunningNormalizer
from rlcore.optimizer import FlatAdam
from rlcore.ppo import PPO, PPOConfig
from rlcore.ranks import MergedNormalizer, Moments, OutOfStep, Ranks, checksum
from rlcore.recurrent import RNNConfig
from rlcore.returns import standardized
from rlcore.sac import SAC, SACConfig

SMALL: dict[str, Any] = {"num_steps": 16, "num_epochs": 2, "num_minibatches": 2}

PRELOADED = ["pytest", "rlcore.ppo", "rlcore.sac", "rlcore.ddpg", "rlcore.envs.curriculum", "rlcore.train.several"]
"""What brings all that tests of ranks import: once, and not in each rank."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


def _rank(fn: Callable[..., Any], rank: int, size: int, port: int, args: tuple[Any, ...], results: Any) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    try:
        result = fn(*args)
    except Exception as error:
        result = error
    results.put(pickle.dumps((rank, result)))  # tensors as they are, not as files that this process keeps open
    results.close()
    results.join_thread()
    leave()


def in_ranks(size: int, fn: Callable[..., Any], *args: Any) -> list[Any]:
    """What a function returns, or raises, in each of so many processes; None for one that ended without a word."""
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    results = context.Queue()
    port = free_port()
    ranks = [context.Process(target=_rank, args=(fn, rank, size, port, args, results)) for rank in range(size)]
    for process in ranks:
        process.start()
    found: dict[int, Any] = {}
    while len(found) < size and (any(p.is_alive() for p in ranks) or not results.empty()):
        if not results.empty():
            rank, result = pickle.loads(results.get())
            found[rank] = result
        for process in ranks:
            process.join(0.01)
    for process in ranks:
        process.join(30)
        assert process.exitcode is not None, "a rank hangs"
    return [found.get(rank) for rank in range(size)]


def ppo(num_envs: int, task: str = "CartPole", **changes: Any) -> PPO:
    env = make_env(task, num_envs // world().size, seed=world().seed(1))
    return PPO(env, PPOConfig(**(SMALL | changes)), seed=1)


def state_of(agent: Any) -> list[Tensor]:
    return [part.value for part in optimizers_of(agent)] + [*agent.policy.buffers()]


def optimizers_of(agent: Any) -> list[FlatAdam]:
    return [part for value in vars(agent).values() for part in (value if isinstance(value, list) else [value])
            if isinstance(part, FlatAdam)]  # fmt: skip


def train(kind: str, iterations: int, num_envs: int = 12) -> tuple[int, dict[str, float], int, list[float]]:
    join(torch.device("cpu"))
    if kind == "sac":
        env = make_env("Pendulum", num_envs // world().size, seed=world().seed(1))
        config = SACConfig(learning_starts=24, batch_size=24, buffer_size=1200, update_ratio=0.1, num_steps=4)
        agent: Any = SAC(env, config, seed=1, num_iterations=iterations)
    else:
        lstm = NetworkConfig(rnn=RNNConfig(type="lstm", hidden_size=8))
        changes: dict[str, dict[str, Any]] = {
            "ppo": {},
            "minibatch": {"normalize_advantage": "minibatch", "target_kl": 0.02},
            "recurrent": {"actor": lstm, "critic": lstm, "grad_clip": "separate"},
        }
        agent = ppo(num_envs, **changes[kind])
    reports: list[Report] = []
    progress = learn(agent.env, agent, iterations, on_report=reports.append, seed=1)
    draw = torch.rand(4).tolist()
    return checksum(state_of(agent)), reports[-1].metrics, progress.env_steps, draw


@pytest.mark.parametrize(("kind", "size"), [("ppo", 2), ("ppo", 3), ("minibatch", 2), ("recurrent", 2), ("sac", 2)])
def test_after_20_updates_ranks_have_the_same_bits_and_random_numbers_of_their_own(kind: str, size: int) -> None:
    found = in_ranks(size, train, kind, 20)
    sums, metrics, steps, draws = zip(*found, strict=True)
    assert len(set(sums)) == 1
    for own in metrics[1:]:
        assert {k: v for k, v in own.items() if "time/" not in k} == pytest.approx(
            {k: v for k, v in metrics[0].items() if "time/" not in k}, rel=1e-6
        )
    assert len(set(steps)) == 1 and steps[0] == 20 * 12 * (4 if kind == "sac" else 16)
    assert len({tuple(draw) for draw in draws}) == size


@pytest.mark.parametrize("kind", ["ppo", "minibatch", "recurrent", "sac"])
def test_one_rank_is_a_process_by_itself_bit_for_bit(kind: str) -> None:
    (number, metrics, steps, draw), (other, measured, taken, drawn) = *in_ranks(1, train, kind, 5), train(kind, 5)
    assert (number, steps, draw) == (other, taken, drawn)
    assert all(metrics[k] == pytest.approx(v, nan_ok=True, rel=0) for k, v in measured.items() if "time/" not in k)


def sums_taken() -> list[int]:
    """Sums over ranks in two iterations, with two minibatches a pass and with four."""
    join(torch.device("cpu"))
    plain = distributed._reduce
    found: list[int] = []

    def counted(x: Tensor, op: Any) -> Tensor:
        found[-1] += 1
        return plain(x, op)

    distributed._reduce = counted
    for count in (2, 4):
        agent = ppo(12, num_minibatches=count)
        found.append(0)
        learn(agent.env, agent, 2, seed=1)
    distributed._reduce = plain
    return found


def test_one_rank_sums_nothing_up_and_two_do_so_once_in_a_minibatch() -> None:
    assert in_ranks(1, sums_taken) == [[0, 0]]
    (one, more), _ = in_ranks(2, sums_taken)
    assert more - one == 2 * SMALL["num_epochs"] * 2


def gradient(rank_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of a loss over 24 samples, of which each rank has a share."""
    join(torch.device("cpu"))
    torch.manual_seed(0)
    net = nn.Linear(5, 3)
    x, y = torch.randn(24, 5), torch.randn(24, 3)
    advantage, learned = torch.randn(24), torch.rand(24) > 0.3
    mine = slice(world().rank * rank_rows, (world().rank + 1) * rank_rows)
    adam = FlatAdam(list(net.parameters()), torch.tensor(1e-3), 1e9)
    weight = distributed.weights_of(learned[mine])
    loss = (weight * standardized(advantage, learned) if not world().joined else
            weight * standardized(advantage[mine], learned[mine]))  # fmt: skip
    loss = (loss * (net(x[mine]) - y[mine]).square().sum(1)).mean()
    loss.backward()
    shared, _ = distributed.share_gradients([adam], loss, {"loss": loss.detach()})
    return adam.collected().clone(), shared.detach().clone(), weight


@pytest.mark.parametrize("size", [2, 3])
def test_the_gradient_is_that_of_one_process_with_all_samples(size: int) -> None:
    alone, loss, weight = gradient(24)
    found = in_ranks(size, gradient, 24 // size)
    for own, own_loss, _ in found:
        torch.testing.assert_close(own, alone, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(own_loss, loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.cat([part for _, _, part in found]), weight)


def one_update(normalize_advantage: str) -> tuple[Tensor, Tensor, dict[str, float], dict[str, float]]:
    """The gradient of PPO's only minibatch in one process, and that of ranks that share its rollout's envs."""
    changes: dict[str, Any] = {"num_epochs": 1, "num_minibatches": 1, "normalize_advantage": normalize_advantage}
    changes |= {"normalize_value": True}
    one = ppo(12, "Pendulum", **changes)
    obs, state = one.env.reset(seed=5), one.initial_state()
    for _ in range(one.num_steps):
        action, state = one.act(obs, state)
        step = one.env.step(action)
        one.record(obs, action, state, step)
        obs = step.obs
    one.rollout.data["reward"][3, 4] = torch.nan  # of which that step is left out
    saved = copy.deepcopy(one.state_dict())
    alone = one.update()

    join(torch.device("cpu"))
    agent = ppo(12, "Pendulum", **changes)
    for name in ("policy", "critic", "value_normalizer"):
        getattr(agent, name).load_state_dict(saved[name])
    mine = slice(world().rank * 12 // world().size, (world().rank + 1) * 12 // world().size)
    for row in range(one.num_steps):
        agent.rollout.write({name: column[row, mine].clone() for name, column in one.rollout.data.items()})
        agent.rollout.advance()
    agent.next_obs = {group: value[mine].clone() for group, value in one.next_obs.items()}
    shared = agent.update()
    numbers = [{name: float(value) for name, value in metrics.items()} for metrics in (alone, shared)]
    return one.optimizers[0].collected().clone(), agent.optimizers[0].collected().clone(), numbers[0], numbers[1]


@pytest.mark.parametrize(("size", "kind"), [(2, "batch"), (3, "minibatch")])
def test_ppo_has_the_gradient_of_one_process_with_the_same_rollout(size: int, kind: str) -> None:
    for alone, shared, before, after in in_ranks(size, one_update, kind):
        assert 0 < alone.norm() < 1e3
        torch.testing.assert_close(shared, alone, rtol=1e-5, atol=1e-6 * float(alone.norm()))
        for name in ("loss/policy", "loss/value", "policy/kl", "policy/entropy", "policy/gradient_norm"):
            assert after[name] == pytest.approx(before[name], rel=1e-5, abs=1e-6), name


def merged(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    join(torch.device("cpu"))
    generator = torch.Generator().manual_seed(3)
    normalizer = MergedNormalizer(4) if kind == "each" else RunningNormalizer(4)
    moments = Moments([normalizer])
    for _ in range(6):  # rollouts
        moments.set()
        for _ in range(8 if kind == "rollout" else 1):
            x = 1e3 + torch.randn(30, 4, generator=generator) * torch.tensor([1e-2, 1.0, 30.0, 400.0])
            share = len(x) // world().size
            normalizer.update(x[world().rank * share : (world().rank + 1) * share])
        if kind == "rollout" and world().joined:
            moments.merge()
    return normalizer.mean, normalizer.var, normalizer.count


@pytest.mark.parametrize("kind", ["each", "rollout"])
def test_normalizers_are_those_of_one_process_with_all_envs(kind: str) -> None:
    generator = torch.Generator().manual_seed(3)
    batches = [1e3 + torch.randn(30, 4, generator=generator) * torch.tensor([1e-2, 1.0, 30.0, 400.0])
               for _ in range(48 if kind == "rollout" else 6)]  # fmt: skip
    exact = torch.cat(batches).double().numpy()
    alone = RunningNormalizer(4)
    for batch in batches:
        alone.update(batch)
    ranks = in_ranks(3, merged, kind)
    for mean, var, count in ranks:
        assert torch.equal(mean, ranks[0][0]) and torch.equal(var, ranks[0][1])
        np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-6)
        torch.testing.assert_close(mean, alone.mean, rtol=1e-6, atol=0)
        # A float32 mean has a rounding of its own, in one process as well, which shows from 1e3 standard deviations on.
        np.testing.assert_allclose(var[1:], exact.var(0)[1:], rtol=2e-5)
        torch.testing.assert_close(var[1:2], alone.var[1:2], rtol=2e-5, atol=0)
        torch.testing.assert_close(var[2:], alone.var[2:], rtol=1e-6, atol=0)
        assert count.tolist() == [len(exact)] * 4


def broken_loss(everywhere: bool) -> tuple[Tensor, Tensor]:
    join(torch.device("cpu"))
    value = nn.Parameter(torch.ones(3))
    adam = FlatAdam([value], torch.tensor(0.1), 1.0)
    value.grad = torch.ones(3)
    loss = torch.tensor(float("nan") if everywhere or world().rank == 1 else 1.0)
    _, taken = adam.step(loss)
    return value.detach().clone(), taken


def test_a_step_that_one_rank_cannot_take_is_taken_by_none() -> None:
    for value, taken in in_ranks(2, broken_loss, False):
        assert value.tolist() == [1, 1, 1] and taken == 0


def resumed(path: str, halves: int) -> tuple[int, float]:
    join(torch.device("cpu"))
    from rlcore.train.several import of_rank, with_ranks

    agent = ppo(12, "Pendulum")
    progress: Progress | None = None
    if halves == 2:
        progress = learn(agent.env, agent, 3, seed=1)
        content = with_ranks(snapshot(agent.env, agent, progress), world())
        content["world"] = world().size
        if world().main:
            torch.save(content, path)
        total(torch.zeros(1))
        agent = ppo(12, "Pendulum")
        content = torch.load(path, weights_only=True)
        exact, _ = of_rank(content, world(), agent)
        assert exact
        progress, exact = resume(agent.env, agent, content)
        assert exact
    learn(agent.env, agent, 6, progress=progress, seed=1)
    return checksum(state_of(agent)), float(torch.rand(()))


def test_a_resumed_run_goes_on_bitwise_on_every_rank(tmp_path: Path) -> None:
    whole = in_ranks(2, resumed, str(tmp_path / "ranks.pt"), 1)
    assert in_ranks(2, resumed, str(tmp_path / "ranks.pt"), 2) == whole
    assert whole[0][0] == whole[1][0] and whole[0][1] != whole[1][1]


def died(in_update: bool) -> Any:
    join(torch.device("cpu"))
    agent = ppo(12)
    progress = learn(agent.env, agent, 2, seed=1)
    before = checksum([part.value for part in agent.optimizers] + list(agent.policy.buffers()))
    if world().rank == 1:
        if in_update:
            vars(agent)["_minibatch"] = lambda samples: os._exit(9)
        else:
            vars(agent.env)["step"] = lambda action: os._exit(9)
    try:
        learn(agent.env, agent, 4, progress=progress)
    except RankLost as error:
        after = checksum([part.value for part in agent.optimizers] + list(agent.policy.buffers()))
        snapshot(agent.env, agent, progress)
        return str(error), before == after, progress.iteration, agent.iteration
    return "it went on"


@pytest.mark.parametrize("in_update", [False, True])
def test_when_a_rank_dies_the_others_say_which_and_stand_after_the_last_iteration(in_update: bool) -> None:
    first, gone, third = in_ranks(3, died, in_update)
    assert gone is None
    assert first == third == ("rank 1 of 3 is gone", True, 2, 2)


class Event:
    """Stands where CUDA's would: come to, or never."""

    def __init__(self, reached: bool) -> None:
        self.reached = reached

    def query(self) -> bool:
        return self.reached


@pytest.mark.parametrize(("remembered", "arrived"), [(True, False), (True, True), (False, False)])
def test_an_update_that_a_gpu_does_not_finish_for_a_lost_rank_is_taken_back(
    monkeypatch: pytest.MonkeyPatch, remembered: bool, arrived: bool
) -> None:
    """The host is ahead of it, and has counted the iteration that the GPU waits in."""
    monkeypatch.setattr("rlcore.ranks._LOST", 0.01)
    agent = ppo(4)
    progress = learn(agent.env, agent, 2, seed=1)
    ranks = Ranks(agent.env, agent)
    ranks.kept = Event(remembered)
    ranks.before = {name: getattr(agent, name) for name in ranks.numbers}
    ranks.backup.set()
    before, steps = checksum(state_of(agent)), progress.env_steps
    with torch.no_grad():
        next(agent.policy.parameters()).add_(1.0)  # an update, or half of one
    agent.iteration, progress.iteration, progress.env_steps = 3, 3, steps + 64
    mail = _Mail.__new__(_Mail)
    mail.ranks, mail.steps, mail.watch, mail.arrived = ranks, 64, SimpleNamespace(cuda=True), Event(arrived)  # type: ignore[assignment]
    monkeypatch.setattr(_Mail, "deliver", lambda *args: None)
    if not remembered:
        with pytest.raises(RankLost):
            mail.settle(progress, print, RankLost())
        with pytest.raises(RuntimeError, match="was broken off"):  # so that it is not saved
            snapshot(agent.env, agent, progress)
        return
    mail.settle(progress, print, RankLost())
    found = (checksum(state_of(agent)) == before, agent.iteration, progress.iteration, progress.env_steps - steps)
    assert found == ((False, 3, 3, 64) if arrived else (True, 2, 2, 0))
    assert progress.broken_off == ("" if arrived else "rollout")


def parted() -> tuple[str, bool]:
    join(torch.device("cpu"))
    distributed.abort()
    distributed.abort()  # as where one thing fails after the other
    told = ""
    try:
        total(torch.ones(1))
    except (RankLost, ValueError) as error:
        told = type(error).__name__
    leave()
    return told, distributed.hangs()


def test_ranks_can_be_aborted_more_than_once() -> None:
    assert in_ranks(2, parted) == [("ValueError", False)] * 2


def stuck() -> tuple[bool, bool]:
    join(torch.device("cpu"))
    distributed.dist = SimpleNamespace(destroy_process_group=lambda: time.sleep(60))
    distributed._LEAVING = 0.1
    began = time.monotonic()
    leave()
    return time.monotonic() - began < 10, distributed.hangs()


def test_an_end_that_hangs_is_not_waited_for() -> None:
    assert in_ranks(1, stuck) == [(True, True)]


def changed() -> Any:
    join(torch.device("cpu"))
    agent = ppo(12)
    if world().rank == 1:
        with torch.no_grad():
            next(agent.policy.parameters())[0, 0] += 1e-7
    try:
        Ranks(agent.env, agent)
    except ConfigError as error:
        first = str(error)
    ranks = Ranks.__new__(Ranks)
    ranks.env, ranks.agent, ranks.kept = agent.env, agent, None
    with pytest.raises(OutOfStep, match=r"other parameters after iteration 100; .* rlcore\.optimizer\.FlatAdam alone"):
        ranks.compare(100)
    ranks.compare(101)  # not then
    return first


def test_a_bit_that_differs_is_found() -> None:
    assert in_ranks(2, changed) == ["seed: ranks 0 and 1 begin with other weights; give all ranks the same seed"] * 2


def late() -> Any:
    if os.environ["RANK"] == "1":
        return "did not come"
    return join(torch.device("cpu"), limit=1.0)


def test_a_rank_that_does_not_come_is_named() -> None:
    first, _, third = in_ranks(3, late)
    assert str(first).startswith("rank 1 of 3 (numbered from 0) has not come within 1 s; see what it printed")
    assert isinstance(third, RankLost)  # rank 0 kept the notes, and may have ended first


def started() -> float:
    join(torch.device("cpu"))
    return float(total(torch.tensor(float(world().rank))))


@pytest.mark.slow
def test_fifty_starts_in_a_row() -> None:
    for start in range(50):
        size = 2 + start % 2
        assert in_ranks(size, started) == [size * (size - 1) / 2] * size


def test_what_ranks_do_not_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "_world", World(0, 2, False))
    agent = ppo(16)
    vars(agent.env)["adapt"] = dict
    with pytest.raises(ConfigError, match="CartPole: its own rule of adapting is not shared among 2 ranks"):
        Ranks(agent.env, agent)


def test_alone_nothing_is_done() -> None:
    x = torch.arange(3.0)
    assert join(torch.device("cpu")) == World() == world()
    assert total(x) is x and distributed.average(x) is x and distributed.union(["b", "a"]) == ["b", "a"]
    assert distributed.most(3) == 3 and not distributed.differs("x") and distributed.gathered(1) == [1]
    loss, metrics = torch.tensor(1.0), {"a": torch.tensor(2.0)}
    assert distributed.share_gradients([], loss, metrics) == (loss, metrics)
