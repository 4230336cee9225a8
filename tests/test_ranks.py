"""What ranks move together: multipliers, levels, ranges, weights of tasks. Alike to the bit, and as one process would.

Each rank has its envs, and what comes of their episodes is summed up before anything moves.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from test_distributed import SMALL, in_ranks, state_of
from torch import Tensor

from rlcore import distributed
from rlcore.balance import Balance, TaskReturns, task_moments
from rlcore.capture import Captured
from rlcore.cost_critics import CostCritics
from rlcore.ddpg import DDPG, DDPGConfig
from rlcore.distributed import World, join, leave, total, world
from rlcore.env import spec_of
from rlcore.envs import make_env
from rlcore.envs.curriculum import Curriculum
from rlcore.envs.curriculum_config import CurriculumConfig
from rlcore.envs.entropy_ranges import MaximumEntropy
from rlcore.envs.ranges import AutomaticRanges, Row
from rlcore.gate import GateConfig
from rlcore.learn import Report, learn, resume, snapshot
from rlcore.off_policy_config import LimitsConfig
from rlcore.ppo import PPO, PPOConfig
from rlcore.ranks import Ranks, checksum, merged_in
from rlcore.sac import SAC, SACConfig
from rlcore.safety import CostConfig, Safety, SafetyConfig
from rlcore.signals import SignalConfig
from rlcore.squashed_tasks import SquashedTasks
from rlcore.statistics import EpisodeStatistics
from rlcore.train.several import of_rank, with_ranks
from rlcore.types import Step

BUDGET = ("Budget", {"max_episode_length": 10})
COST = {"cost": CostConfig(limit=1.0)}
PENDULUM = {"max_episode_length": 8}
GATE = SafetyConfig(gate=GateConfig(threshold=0.1, costs=("cost",), warmup=4, num_candidates=2, num_around=2))
LEVELS = {"curriculum.parameters.mass": [0.5, 1.5], "curriculum.success_return": -40.0}
RANGES = {"randomize.mass": [0.5, 1.5], "randomize.success_return": -40.0}
CORNERS = "tasks:Corner-NE+Corner-SW"
OFF = {"learning_starts": 24, "batch_size": 24, "buffer_size": 1200, "update_ratio": 0.1, "num_steps": 4}

PPO_KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "pid": (*BUDGET, {"safety": SafetyConfig(costs=COST), "normalize_value": True}),
    "lagrange": (
        *BUDGET,
        {"safety": SafetyConfig(costs={"cost": CostConfig(limit=0.2, kind="probability")}, method="lagrange")},
    ),
    "p3o": (*BUDGET, {"safety": SafetyConfig(costs=COST, method="p3o")}),
    "cat": (*BUDGET, {"safety": SafetyConfig(costs={"cost": CostConfig(limit=0.1, kind="per_step")}, method="cat")}),
    "gate": ("Detour", {"max_episode_length": 20}, {"safety": GATE}),
    "signals": (*BUDGET, {"signals": {"cost": SignalConfig(weight=-0.5)}, "normalize_value": True}),
    "threshold": ("Pendulum", PENDULUM | LEVELS | {"curriculum.episodes": 5, "curriculum.success_return": -1000.0}, {}),
    "per_env": ("Pendulum", PENDULUM | LEVELS | {"curriculum.strategy": "per_env"}, {}),
    "success": ("Pendulum", PENDULUM | LEVELS | {"curriculum.strategy": "success"}, {}),
    "plr": ("Pendulum", PENDULUM | {"curriculum.parameters.mass": [0.5, 1.5], "curriculum.strategy": "plr"}, {}),
    "adr": ("Pendulum", PENDULUM | RANGES | {"randomize.mode": "adr", "randomize.boundary_episodes": 3}, {}),
    "doraemon": ("Pendulum", PENDULUM | RANGES | {"randomize.mode": "doraemon", "randomize.interval": 4}, {}),
    "balance": (CORNERS, {}, {"balance": "success", "normalize_value": True}),
}
OFF_POLICY_KINDS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "sac": ("sac", *BUDGET, {"safety": LimitsConfig(costs=COST, interval=2)}),
    "ddpg": (
        "ddpg",
        *BUDGET,
        {"safety": LimitsConfig(costs=COST, interval=2, method="lagrange"), "normalize_reward": True},
    ),
    "td3": ("td3", *BUDGET, {"safety": LimitsConfig(costs=COST, interval=2)}),
    "sac-gate": ("sac", "Detour", {"max_episode_length": 20}, {"safety": LimitsConfig(gate=GATE.gate)}),
    "sac-tasks": ("sac", CORNERS, {}, {"normalize_reward": True}),
}


def learner(kind: str, num_envs: int = 12, device: str | torch.device = "cpu", mode: str = "graph") -> Any:
    share, seed = num_envs // world().size, world().seed(1)
    if kind in PPO_KINDS:
        task, options, changes = PPO_KINDS[kind]
        env = make_env(task, share, device, seed=seed, **options)
        return PPO(env, PPOConfig(**(SMALL | changes | {"mode": mode})), seed=1)
    name, task, options, changes = OFF_POLICY_KINDS[kind]
    env, changes = make_env(task, share, device, seed=seed, **options), changes | {"mode": mode}
    if name == "sac":
        return SAC(env, SACConfig(**(OFF | changes)), seed=1, num_iterations=20)
    preset = DDPGConfig.presets().get("td3", {}) if name == "td3" else {}
    known = {key: value for key, value in preset.items() if key not in OFF}
    return DDPG(env, DDPGConfig(**(known | OFF | changes)), seed=1, num_iterations=20)


def moved(agent: Any) -> list[Tensor]:
    """What an agent and its env have of multipliers and their like."""
    parts = [getattr(agent, name, None) for name in ("safety", "costs", "balance")]
    named = {"multiplier", "worst", "excess", "success", "total", "first", "latest", "price", "square"}
    buffers = [pair for part in parts if part is not None for pair in part.named_buffers()]
    return [x for name, x in buffers if name.rpartition(".")[2] in named] + merged_in(agent.env)


ITERATIONS = {"adr": 20, "doraemon": 10}
"""In which something moves, where that takes more than ``FEW``."""
FEW = 6


def checksum_of(agent: Any) -> tuple[int, float]:
    """Of what a rank has learned and moved, and the next number of its own generator."""
    return checksum([*state_of(agent), *moved(agent)]), float(torch.rand(()))


def trained(kinds: tuple[str, ...]) -> dict[str, Any]:
    join(torch.device("cpu"))
    found: dict[str, Any] = {}
    for kind in kinds:
        torch.manual_seed(world().seed(0))
        agent, reports = learner(kind), list[Report]()
        before = [x.clone() for x in moved(agent)]
        learn(agent.env, agent, ITERATIONS.get(kind, FEW), on_report=reports.append, seed=1)
        Ranks(agent.env, agent)  # which compares all that is to be the same
        changed = any(not torch.equal(x, y) for x, y in zip(before, moved(agent), strict=True))
        metrics = {k: v for k, v in reports[-1].metrics.items() if not k.startswith("time/")}
        found[kind] = checksum_of(agent), changed, metrics
    return found


GROUPS = [tuple(PPO_KINDS)[:6], tuple(PPO_KINDS)[6:], tuple(OFF_POLICY_KINDS)]


@pytest.fixture(scope="module", params=GROUPS, ids=["safety", "levels", "off_policy"])
def whole(request: pytest.FixtureRequest) -> tuple[dict[str, Any], dict[str, Any]]:
    """What each of two ranks found, by kind."""
    first, second = in_ranks(2, trained, request.param)
    assert isinstance(first, dict), first
    return first, second


def test_after_some_iterations_ranks_have_the_same_parameters_and_controllers(
    whole: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    first, second = whole
    for kind in first:
        assert first[kind][0][0] == second[kind][0][0], kind
        still = ("gate", "signals", "per_env", "balance", "sac-gate", "sac-tasks")  # none there, or none that moves
        assert first[kind][1] or kind in still, kind
        assert first[kind][2] == pytest.approx(second[kind][2], rel=1e-6), kind


def resumed(path: str, kinds: tuple[str, ...]) -> list[Any]:
    join(torch.device("cpu"))
    found: list[Any] = []
    for kind in kinds:
        torch.manual_seed(world().seed(0))
        agent, iterations = learner(kind), ITERATIONS.get(kind, FEW)
        progress = learn(agent.env, agent, iterations // 2, seed=1)
        content = with_ranks(snapshot(agent.env, agent, progress), world()) | {"world": world().size}
        if world().main:
            torch.save(content, f"{path}-{kind}.pt")
        total(torch.zeros(1))
        agent = learner(kind)
        content = torch.load(f"{path}-{kind}.pt", weights_only=True)
        assert of_rank(content, world(), agent) == (True, [])
        progress, exact = resume(agent.env, agent, content)
        assert exact
        learn(agent.env, agent, iterations, progress=progress, seed=1)
        found.append(checksum_of(agent))
    return found


RESUMED = ("pid", "p3o", "gate", "per_env", "plr", "doraemon", "balance", "sac", "sac-tasks")


def test_what_ranks_move_together_goes_on_bitwise_and_with_another_number_from_where_it_stood(
    whole: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    path, kinds = str(tmp_path / "ranks"), tuple(kind for kind in whole[0] if kind in RESUMED)
    halves = in_ranks(2, resumed, path, kinds)
    assert halves == [[rank[kind][0] for kind in kinds] for rank in whole], halves
    for kind in kinds:
        agent, content = learner(kind), torch.load(f"{path}-{kind}.pt", weights_only=True)
        own, told = of_rank(content, World(), agent)
        assert not own and told[0].startswith("2 ranks wrote the checkpoint, and 1 rank goes on"), told
        resume(agent.env, agent, content)
        if kind == "pid":
            assert torch.equal(agent.safety.multiplier, content["agent"]["safety"]["multiplier"])


def on_gpu(kinds: tuple[str, ...], mode: str) -> list[tuple[int, bool, bool]]:
    device = torch.device(f"cuda:{os.environ['RANK']}")
    torch.cuda.set_device(device)
    join(device)
    World.several = property(lambda world: world.joined)  # type: ignore[method-assign]  # one rank does as many do
    found: list[tuple[int, bool, bool]] = []
    for kind in kinds:
        agent = learner(kind, 48, device, mode)
        learn(agent.env, agent, 20, seed=1)
        Ranks(agent.env, agent)
        parts = [value for value in vars(agent).values() if isinstance(value, Captured)] + getattr(
            agent, "_updates", []
        )
        recorded = any(part.graph is not None for part in parts)
        found.append((checksum([*state_of(agent), *moved(agent)]), recorded, False))
    leave()
    return [(number, recorded, distributed.hangs()) for number, recorded, _ in found]


ON_GPU = ("pid", "p3o", "cat", "gate", "plr", "adr", "doraemon", "balance", "sac", "td3", "sac-gate")


@pytest.mark.gpu
def test_on_a_gpu_what_ranks_share_is_part_of_the_graphs() -> None:
    (graph,), (eager,) = in_ranks(1, on_gpu, ON_GPU, "graph"), in_ranks(1, on_gpu, ON_GPU, "eager")
    assert isinstance(graph, list), graph
    for kind, (number, recorded, hangs), (other, *_) in zip(ON_GPU, graph, eager, strict=True):
        assert recorded and not hangs and number == other, kind


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_have_the_same_controllers_and_part_in_time() -> None:
    first, second = in_ranks(2, on_gpu, ON_GPU, "graph")
    assert isinstance(first, list), first
    assert first == second and all(recorded and not hangs for _, recorded, hangs in first)


def own(x: Tensor, dim: int = 1) -> Tensor:
    """This rank's part of the envs of a tensor."""
    return x if not world().joined else x.chunk(world().size, dim)[world().rank].contiguous()


def of_safety(method: Any) -> list[Tensor]:
    join(torch.device("cpu"))
    draw, kind = torch.Generator().manual_seed(1), "per_step" if method == "cat" else "episode"
    costs = {"a": CostConfig(limit=1.0, kind=kind), "b": CostConfig(limit=0.5, kind="per_step")}
    if method != "cat":
        costs["c"] = CostConfig(limit=0.1, kind="probability")
    safety = Safety(SafetyConfig(costs=costs, method=method), 12 // world().size, True)
    for _ in range(10):  # rollouts
        cost, done = torch.rand(5, 12, generator=draw), torch.rand(5, 12, generator=draw) < 0.2
        data = {"signal_a": cost, "signal_b": 2 * cost, "signal_c": cost - 0.8}
        data |= {"terminated": done, "truncated": torch.zeros_like(done)}
        advantages = torch.randn(1 + len(costs), 5, 12, generator=draw)
        data, learned = {name: own(x) for name, x in data.items()}, torch.ones(5, 12 // world().size) > 0
        if method == "cat":
            weighed, *_ = safety.terminate(data, own(advantages[0]))
        else:
            gammas = [0.99] * len(costs)
            weighed, *_ = safety.weigh(data, own(advantages[0]), own(advantages[1:], 2), learned, gammas)
    kept = [x for name, x in safety.named_buffers() if name != "running"]
    return [torch.cat([x.double().flatten() for x in kept]), weighed]


def of_tasks(_: str) -> list[Tensor]:
    join(torch.device("cpu"))
    draw, index = torch.Generator().manual_seed(2), own(torch.arange(12) % 3, 0)
    scale = own(torch.tensor([0.1, 1.0, 10.0])[torch.arange(12) % 3], 0)
    balance, returns = Balance("success", index, ["x", "y", "z"]), TaskReturns(index, 3)
    found: list[Tensor] = []
    for _ in range(6):
        x = own(torch.randn(5, 12, generator=draw)) * scale + scale
        learned = own(torch.rand(5, 12, generator=draw)) > 0.2
        success = own(
            torch.where(torch.rand(5, 12, generator=draw) < 0.5, torch.nan, torch.rand(5, 12, generator=draw))
        )
        found = [*task_moments(x, learned, balance.own)]
        balance(x, learned, {"success": success}, {})
        returns.update(x.where(learned, torch.nan).reshape(-1, 1))
    return [torch.cat([*found, balance.success, returns.statistics.mean, returns.statistics.var])]


def of_episodes(_: str) -> list[Tensor]:
    """Returns and entropies by task, of which each rank sees another number."""
    join(torch.device("cpu"))
    draw, count = torch.Generator().manual_seed(4), 12
    tasks = own(torch.arange(count) % 2, 0), "xy"
    statistics = EpisodeStatistics(count // world().size, torch.device("cpu"), tasks=tasks)
    for _ in range(8):
        done = own(torch.rand(count, generator=draw) < torch.tensor([0.1] * 6 + [0.7] * 6), 0)
        reward, none = own(torch.randn(count, generator=draw) + torch.arange(12), 0), torch.zeros_like(done)
        statistics.record(Step({}, reward, done, none, None, {"success": (reward > 5).float()}))
    statistics.share()
    told = [x for name, x in statistics.read().items() if name.endswith(("_x", "_y"))]
    actions = SquashedTasks(spec_of(make_env(CORNERS, 2)), heads=False)
    index = own(torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1]), 0)
    values, weight = own(torch.randn(count, generator=draw), 0), own(torch.rand(count, generator=draw), 0)
    return [torch.cat([torch.stack(told), actions.mean_of(values, weight, index, -1.0)])]


def of_levels(strategy: Any) -> list[Tensor]:
    join(torch.device("cpu"))
    config = CurriculumConfig(parameters={"mass": [0.5, 1.5]}, success_return=0.0, episodes=20, strategy=strategy)
    env, draw = Curriculum(make_env("Pendulum", 12 // world().size, seed=1), config), torch.Generator().manual_seed(3)
    if strategy == "plr":
        env.score_levels(5)
    for _ in range(12):
        outcomes = torch.randint(0, 5, (2, 10, 12), generator=draw).float() * torch.tensor([0.2, 1.0]).view(2, 1, 1)
        env._outcomes[:, :10].copy_(own(outcomes, 2).sum(2))  # of the threshold: of cohorts that take more
        if strategy == "plr":
            assert env._played is not None
            env._played.copy_(own(torch.randint(0, 10, (5, 12), generator=draw)))
            env.take_advantages(own(torch.randn(5, 12, generator=draw)), own(torch.rand(5, 12, generator=draw)) - 0.2)
        env.adapt()
    return [torch.cat([x.double().flatten() for x in env.merged()])]


def of_ranges(kind: str) -> list[Tensor]:
    join(torch.device("cpu"))
    rows, share = [Row("x", 0.5), Row("y", 0.2)], 12 // world().size
    device, draw = torch.device("cpu"), torch.Generator().manual_seed(4)
    ranges: Any = (
        AutomaticRanges(rows, share, device, step=0.05, low=0.3, high=0.6, episodes=6)
        if kind == "adr"
        else MaximumEntropy(rows, share, device, success_rate=0.5, max_kl=0.1, episodes=4096, interval=5)
    )
    told = torch.zeros(())
    for _ in range(20):
        for _ in range(8):
            bounds, position = torch.randint(0, 5, (12,), generator=draw), torch.rand(2, 12, generator=draw)
            done = torch.rand(12, generator=draw) < 0.4
            ranges.record(own(position), own(done, 0), own((position[0] < 0.7).float(), 0))
            if kind == "adr":  # which draws as much
                ranges.played.copy_(torch.where(own(done, 0), own(bounds, 0), ranges.played))
        told = ranges.adapt()["randomize/success"]
    return [torch.cat([told.view(1).double(), *(x.double().flatten() for x in ranges.merged())])]


def of_costs(_: str) -> list[Tensor]:
    join(torch.device("cpu"))
    share = 12 // world().size
    agent = SAC(
        make_env("Budget", share, seed=1), SACConfig(**(OFF | {"safety": LimitsConfig(costs=COST, interval=2)}))
    )
    costs, draw = agent.costs, torch.Generator().manual_seed(5)
    assert isinstance(costs, CostCritics) and agent.return_scale is not None
    ranks = Ranks(agent.env, agent) if world().joined else None
    for _ in range(10):
        if ranks is not None:
            ranks.begin()
        for _ in range(4):
            cost, reward = torch.rand(12, generator=draw), torch.randn(12, generator=draw)
            done = torch.rand(12, generator=draw) < 0.2
            step = Step(
                {}, own(reward, 0), own(done, 0), torch.zeros(share) > 0, None, {}, None, {"cost": own(cost, 0)}
            )
            agent.return_scale.update(step.reward, step.terminated)
            costs.record(step, step.terminated, agent.return_scale())
        if ranks is not None:
            ranks._merge_statistics()
        costs.move(1)
    values = [
        costs.square,
        costs.price,
        costs.multiplier,
        costs.latest,
        *(x.flatten() for x in costs.safety.controller.buffers()),
    ]
    return [torch.cat([x.flatten() for x in values])]


CASES: list[tuple[Any, str]] = [
    *((of_safety, method) for method in ("pid", "lagrange", "p3o", "cat")),
    (of_tasks, ""),
    (of_episodes, ""),
    *((of_levels, strategy) for strategy in ("threshold", "success", "plr")),
    (of_ranges, "adr"),
    (of_ranges, "doraemon"),
    (of_costs, ""),
]


def all_cases() -> list[list[Tensor]]:
    return [case(name) for case, name in CASES]


def test_controllers_move_as_in_one_process_with_all_envs() -> None:
    alone = all_cases()
    ranks = in_ranks(2, all_cases)
    assert isinstance(ranks[0], list), ranks[0]
    for (case, name), one, first, second in zip(CASES, alone, *ranks, strict=True):
        told = f"{case.__name__} {name}"
        assert torch.equal(first[0], second[0]), told
        exact = case is of_levels or name in ("adr", "cat")
        close = {"rtol": 0.0, "atol": 0.0} if exact and name != "plr" else {"rtol": 2e-5, "atol": 1e-6}
        torch.testing.assert_close(
            first[0], one[0], **close, equal_nan=True, msg=lambda text, told=told: f"{told}: {text}"
        )
        if len(one) > 1:  # by env
            torch.testing.assert_close(torch.cat([first[1], second[1]], 1), one[1], rtol=1e-5, atol=1e-5)


def test_an_env_that_adapts_by_a_rule_of_its_own_can_say_that_it_merges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "_world", World(0, 2, False))
    env = make_env("Pendulum", 4, **LEVELS)
    assert merged_in(env) and hasattr(env, "merged")

    inner = make_env("Pendulum", 4)
    vars(inner)["adapt"] = dict
    assert not hasattr(
        Curriculum(inner, CurriculumConfig(parameters={"mass": [0.5, 1.5]}, success_return=0.0)), "merged"
    )
