"""Limits on costs: the tasks that give them, what is measured, the multipliers, and the advantages they weigh."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlcore import DDPG, PPO, SAC, ConfigError, NetworkConfig, PPOConfig, Step
from rlcore.config import from_dict, save_yaml
from rlcore.env import signal_names
from rlcore.envs import make_env
from rlcore.envs.classic import Pendulum
from rlcore.envs.constrained import Budget, Detour
from rlcore.learn import resume, snapshot
from rlcore.losses import cost_penalty
from rlcore.safety import CostConfig, Safety, SafetyConfig
from rlcore.signals import SignalConfig
from rlcore.train.algorithms import find
from rlcore.train.arguments import UsageError, parse, split_words
from rlcore.train.cli import main
from rlcore.train.commands.eval import eval_command
from rlcore.train.config import TrainConfig, config_class
from rlcore.train.defaults import default_config

# The tasks


def test_budget_pays_effort_and_charges_its_square() -> None:
    env = Budget(4, seed=0, max_episode_length=3)
    assert env.reset()["policy"].tolist() == [[0.0]] * 4
    for t in range(1, 7):
        step = env.step(torch.tensor([[-0.7], [0.5], [0.8], [1.7]]))
        assert step.signals is not None and step.final_obs is not None
        assert step.reward.tolist() == pytest.approx([0.0, 0.5, 0.8, 1.0])
        assert step.signals["cost"].tolist() == pytest.approx([0.0, 0.25, 0.64, 1.0])
        assert bool(step.truncated.all()) == (t % 3 == 0) and not step.terminated.any()
        assert step.obs["policy"][0].item() == pytest.approx(t % 3 / 3)
        assert step.final_obs["policy"][0].item() == pytest.approx(((t - 1) % 3 + 1) / 3)


def test_no_unequal_effort_beats_the_closed_form() -> None:
    """A hundred random ways to spend a cost of 25 in 100 steps, and the equal one."""
    ways = torch.rand(100, 100, generator=torch.Generator().manual_seed(0))  # [N, T]
    ways = ways * (25 / ways.square().sum(1, keepdim=True)).sqrt()
    ways[0] = 0.5
    env, returns, costs = Budget(100), torch.zeros(100), torch.zeros(100)
    env.reset()
    for t in range(100):
        step = env.step(ways[:, t : t + 1])
        assert step.signals is not None
        returns, costs = returns + step.reward, costs + step.signals["cost"]
    assert returns[0].item() == pytest.approx(50, abs=1e-3) and costs[0].item() == pytest.approx(25, abs=1e-3)
    assert (returns[1:] < 50).all()
    assert (costs <= 25.01).all()


@pytest.mark.parametrize("around", [False, True])
def test_the_straight_way_of_detour_is_short_and_forbidden(around: bool) -> None:
    env = Detour(8, seed=0)
    obs, cost, total = env.reset(), torch.zeros(8), torch.zeros(8)
    assert (obs["policy"][:, 0] == -1).all() and obs["policy"][:, 1].unique().numel() == 8
    for t in range(80):
        position = obs["policy"]  # [8, 2]
        target = torch.tensor([1.0, 0.0]).expand(8, 2)
        if around and t < 30:
            target = torch.tensor([0.0, 0.8] if t < 24 else [0.5, 0.5]).expand(8, 2)
        step = env.step((target - position) / env.dt)
        assert step.signals is not None
        inside = (position + env.dt * ((target - position) / env.dt).clamp(-1, 1)).norm(dim=1) < 0.4
        assert torch.equal(step.signals["cost"], inside.float())
        cost, total, obs = cost + step.signals["cost"], total + step.reward, step.obs
    assert step.truncated.all() and (step.log["success"] == torch.ones(8)).all()
    assert (cost == 0).all() if around else (cost > 10).all()
    assert step.final_obs is not None and (step.final_obs["policy"] - torch.tensor([1.0, 0.0])).norm(dim=1).max() < 0.1


@pytest.mark.parametrize("task", ["Budget", "Detour"])
def test_an_episode_goes_on_from_saved_state(task: str) -> None:
    env: Any = make_env(task, 4, seed=3, max_episode_length=5)
    env.reset()
    action = torch.full((4, env.action_space.shape[0]), 0.3)
    env.step(action)
    saved = copy.deepcopy(env.state_dict())
    other: Any = make_env(task, 4, seed=8, max_episode_length=5)
    other.load_state_dict(saved)
    for _ in range(12):
        one, two = env.step(action), other.step(action)
        assert torch.equal(one.obs["policy"], two.obs["policy"]) and torch.equal(one.reward, two.reward)
        assert torch.equal(one.signals["cost"], two.signals["cost"])
    assert env.render().shape == (300, 400, 3)
    with pytest.raises(ValueError, match=f"{task}: action is torch.float32 of shape"):
        env.step(torch.zeros(4, 3))


# What is measured


def columns(cost: Tensor, done: Tensor, valid: Tensor | None = None) -> dict[str, Tensor]:
    """A rollout's, ``[T, N]`` each."""
    data = {
        "signal_a": cost,
        "signal_b": 2 * cost,
        "signal_c": cost - 0.8,
        "terminated": done,
        "truncated": torch.zeros_like(done),
    }
    return data if valid is None else {**data, "terminated": done | ~valid, "valid": valid}


def limited(**changes: Any) -> SafetyConfig:
    costs = {"a": CostConfig(limit=3.0), "b": CostConfig(limit=0.5, kind="per_step")}
    costs["c"] = CostConfig(limit=0.1, kind="probability")
    return SafetyConfig(costs=costs, **changes)


@pytest.mark.parametrize("skips", [False, True])
def test_costs_are_those_of_a_loop_over_episodes(skips: bool) -> None:
    """Across rollouts, with numbers that are none and, as with NEXT_STEP autoreset, rows that are no steps."""
    draw = torch.Generator().manual_seed(1)
    safety = Safety(limited(), 6, True)
    flight, above = [0.0] * 6, [False] * 6
    before = torch.zeros(6, dtype=torch.bool)
    seen, shares = 0, []
    for rollout in range(8):
        cost, done = torch.rand(5, 6, generator=draw), torch.rand(5, 6, generator=draw) < 0.3
        valid = torch.ones(5, 6, dtype=torch.bool)
        if rollout == 4:
            cost[2, 1] = math.nan
        if rollout == 6:
            done[:] = False
        for t in range(5 if skips else 0):
            valid[t] = ~before
            done[t] &= valid[t]
            before = done[t]
        found = safety.measure(columns(cost, done, valid if skips else None))
        episodes: list[tuple[int, float, bool]] = []
        spoilt: set[int] = set()
        for n in range(6):
            for t in range(5):
                if not valid[t, n]:
                    continue
                flight[n] += float(cost[t, n])
                above[n] |= float(cost[t, n] - 0.8) > 0
                if done[t, n]:
                    episodes.append((n, flight[n], above[n]))
                    spoilt |= {n} if math.isnan(flight[n]) else set()
                    flight[n], above[n] = 0.0, False
        sums = [value for n, value, _ in episodes if n not in spoilt]
        if sums:
            assert found[0].item() == pytest.approx(sum(sums) / len(sums), rel=1e-5)
            shares.append(sum(high for n, _, high in episodes if n not in spoilt) / len(sums))
            assert found[2].item() == pytest.approx(shares[-1], rel=1e-5)
            seen += len(sums)
        else:
            assert math.isnan(found[0].item())
        steps = valid & cost.isfinite()
        assert found[1].item() == pytest.approx(2 * cost[steps].mean().item(), rel=1e-5)
    assert seen > 20 and 0.1 < sum(shares) / len(shares) < 0.9


# The multipliers


@pytest.mark.parametrize(("most", "ceiling"), [(math.inf, 100.0), (0.5, 100.0), (math.inf, 0.5)])
def test_pid_is_a_float64_loop(most: float, ceiling: float) -> None:
    """Two costs, of which one is not measured now and then; its controller waits."""
    costs = {"a": CostConfig(limit=25.0), "b": CostConfig(limit=0.0, scale=0.1)}
    config = SafetyConfig(costs=costs, excess_max=most, multiplier_max=ceiling)
    safety = Safety(config, 1, True)
    draw = torch.Generator().manual_seed(0)
    limits, scales = (25.0, 0.0), (25.0, 0.1)
    state: list[dict[str, Any]] = [{"error": 0.0, "total": 0.0, "smooth": 0.0, "past": [0.0] * 10} for _ in limits]
    expected = [0.0, 0.0]
    reached = set()
    for update in range(60):
        high = (60.0, 0.05) if update < 20 else (20.0, 0.0) if update < 40 else (50.0, 0.3)
        costs = [high[k] * float(torch.rand((), generator=draw)) for k in range(2)]
        if update % 3 == 1:
            costs[1] = math.nan
        new = safety.controller(safety.multiplier, torch.tensor(costs))
        for name, value in new.items():
            old = safety.multiplier if name == "multiplier" else getattr(safety.controller, name)
            old.copy_(torch.where(torch.tensor(costs).isfinite(), value, old))
        for k, cost in enumerate(costs):
            if math.isnan(cost):
                continue
            s, excess = state[k], min((cost - limits[k]) / scales[k], most)
            s["error"] = 0.95 * s["error"] + 0.05 * excess
            s["total"] = min(max(s["total"] + 0.25 * excess, 0.0), ceiling)
            s["smooth"] = 0.95 * s["smooth"] + 0.05 * cost / scales[k]
            rise = min(max(s["smooth"] - s["past"].pop(0), 0.0), most)
            s["past"].append(s["smooth"])
            expected[k] = min(max(2.5 * s["error"] + s["total"] + 0.25 * rise, 0.0), ceiling)
            reached.add("none" if expected[k] == 0 else "most" if expected[k] == ceiling else "some")
        assert safety.multiplier.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert reached == {"none", "some"} | ({"most"} if ceiling < 100 else set())


def test_at_a_limit_of_25_the_gains_are_those_of_omnisafe() -> None:
    """0.1, 0.01 and 0.01 on the cost itself."""
    config = SafetyConfig()
    assert [gain / 25 for gain in (config.proportional, config.integral, config.derivative)] == [0.1, 0.01, 0.01]


@pytest.mark.parametrize("ceiling", [100.0, 0.4])
def test_lagrange_is_adam_on_the_multiplier(ceiling: float) -> None:
    config = SafetyConfig(method="lagrange", costs={"a": CostConfig(limit=25.0)}, multiplier_max=ceiling)
    safety = Safety(config, 1, True)
    reference = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([reference], lr=0.035)
    draw, positive, highest = torch.Generator().manual_seed(0), 0, 0.0
    for update in range(80):
        cost = (80.0 if update < 30 else 25.0) * torch.rand(1, generator=draw)
        for name, value in safety.controller(safety.multiplier, cost).items():
            (safety.multiplier if name == "multiplier" else getattr(safety.controller, name)).copy_(value)
        adam.zero_grad()
        (-reference * (cost.double() - 25)).sum().backward()
        adam.step()
        with torch.no_grad():
            reference.clamp_(0, ceiling)
        assert safety.multiplier.item() == pytest.approx(reference.item(), rel=1e-3, abs=1e-4)
        positive += reference.item() > 0.1
        highest = max(highest, reference.item())
    assert positive > 20 and reference.item() < 0.9 * min(1.0, highest)
    assert (highest == pytest.approx(ceiling)) == (ceiling < 1)


@pytest.mark.parametrize("method", ["pid", "lagrange"])
def test_a_multiplier_waits_for_an_episode_to_end(method: Any) -> None:
    """The same excess, counted again and again, would wind it up; a cost by step is measured in every rollout."""
    costs = {"episode": CostConfig(limit=1.0), "step": CostConfig(limit=0.5, kind="per_step")}
    safety = Safety(SafetyConfig(method=method, costs=costs), 3, True)
    data = {f"signal_{name}": torch.ones(4, 3) for name in costs}
    data |= {name: torch.zeros(4, 3, dtype=torch.bool) for name in ("terminated", "truncated")}
    advantages, learned = torch.randn(3, 4, 3), torch.ones(4, 3, dtype=torch.bool)

    def state() -> dict[str, Tensor]:
        return {name: value.clone() for name, value in safety.named_buffers() if name != "running"}

    def moved() -> list[bool]:
        """Of each cost, whether anything that its multiplier goes by has changed over a rollout."""
        before = state()
        metrics = safety.weigh(data, advantages[0], advantages[1:], learned, (0.99, 0.99))[2]
        assert metrics["safety/episode_cost"].isnan() != data["truncated"].any()
        return [any(not torch.equal(old[..., k], state()[n][..., k]) for n, old in before.items()) for k in range(2)]

    assert moved() == [False, True]
    data["truncated"][2] = True
    assert moved() == [True, True]
    data["truncated"][2] = False
    assert moved() == [False, True]


# Advantages and targets


class Charged(Pendulum):
    """A Pendulum whose torque and speed cost."""

    def step(self, action: Tensor) -> Step:
        step = super().step(action)
        return step._replace(signals={"effort": action[:, 0].abs(), "speed": step.obs["policy"][:, 2].abs()})


def charged(**changes: Any) -> PPOConfig:
    costs = {"effort": CostConfig(limit=0.3, kind="per_step"), "speed": CostConfig(limit=2.0)}
    defaults = {"num_steps": 10, "num_minibatches": 2, "safety": SafetyConfig(costs=costs)}
    return PPOConfig(**{**defaults, **changes})


def collect(agent: PPO) -> list[Step]:
    obs, state, steps = agent.env.reset(2), agent.initial_state(), []
    for _ in range(agent.num_steps):
        action, state = agent.act(obs, state)
        steps.append(agent.env.step(action))
        agent.record(obs, action, state, steps[-1])
        obs = steps[-1].obs
    return steps


@pytest.mark.parametrize("normalize", ["batch", "minibatch", "none"])
@pytest.mark.parametrize("bootstrap", ["final_obs", "none"])
def test_advantages_and_cost_targets_are_those_of_a_float64_loop(normalize: Any, bootstrap: Any) -> None:
    """With time-outs in the rollout, a discount of the cost's own, and a signal that is priced besides."""
    signals = {"effort": SignalConfig(gamma=0.8, gae_lambda=0.7)}
    config = charged(signals=signals, normalize_advantage=normalize, timeout_bootstrap=bootstrap)
    agent = PPO(Charged(8, seed=1, max_episode_length=7), config, seed=1)
    agent.learn(3)
    steps = collect(agent)
    found: list[Any] = []
    unroll = agent.critic.unroll
    agent.critic.unroll = lambda *args: found.append(unroll(*args)) or found[-1]  # type: ignore[method-assign,func-returns-value,assignment]
    batch, about = agent._targets(agent.next_obs)
    values, timeouts = found[0][0].double(), found[0][1].double()  # [T + 1, N, 3], [T, N, 3]
    assert sum(int(step.truncated.sum()) for step in steps) >= 8
    table = torch.zeros(3, 10, 8, dtype=torch.float64)
    returns = torch.zeros(10, 8, 2, dtype=torch.float64)
    for column, (gamma, decay) in enumerate([(0.99, 0.95), (0.8, 0.7), (0.99, 0.95)]):
        for n in range(8):
            tail = 0.0
            for t in reversed(range(10)):
                step = steps[t]
                assert step.signals is not None
                gain = (step.reward, step.signals["effort"], step.signals["speed"])[column]
                over = bool(step.truncated[n])
                following = float((timeouts[t] if over else values[t + 1])[n, column])
                if over and bootstrap == "none":
                    following = 0.0
                delta = float(gain[n]) + gamma * following - float(values[t, n, column])
                tail = delta + (0.0 if over else gamma * decay * tail)
                table[column, t, n] = tail
                if column:
                    returns[t, n, column - 1] = tail + float(values[t, n, column])
    assert batch.signal_returns is not None
    torch.testing.assert_close(batch.signal_returns.view(10, 8, 2).double(), returns, rtol=1e-4, atol=1e-4)
    if normalize != "none":
        table = (table - table.mean((1, 2), keepdim=True)) / table.std((1, 2), correction=0, keepdim=True)
    first, second = (float(about[f"safety/{name}_multiplier"]) for name in ("effort", "speed"))
    assert first > 0 and second > 0
    expected = (table[0] - first * table[1] - second * table[2]) / (1 + first + second)
    torch.testing.assert_close(batch.advantage.view(10, 8).double(), expected, rtol=1e-4, atol=1e-4)
    assert about["safety/effort_limit"] == pytest.approx(0.3) and about["safety/speed_limit"] == 2
    spent = torch.stack([step.signals["effort"] for step in steps if step.signals is not None]).mean()
    assert about["safety/effort_cost"].item() == pytest.approx(spent.item(), rel=1e-5)


def test_without_costs_nothing_changes() -> None:
    agents: list[PPO] = []
    rows: list[dict[str, float]] = []
    for env in (Pendulum, Charged):
        agents.append(PPO(env(8, seed=1), charged(safety=SafetyConfig(method="lagrange")), seed=1))
        agents[-1].learn(3, on_report=lambda report: rows.append(report.metrics))
    one, two = (agent.policy.state_dict() for agent in agents)
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert not any(name.startswith("safety/") for row in rows for name in row)
    assert not agents[0].safety.state_dict() and agents[0].critic.value.weight.shape[0] == 1


@pytest.mark.parametrize("bootstrap", ["final_obs", "none"])
def test_terminations_are_those_of_a_float64_loop(bootstrap: Any) -> None:
    """Every step with a discount of its own, rewards of both signs, and a priced signal besides."""
    costs = {"effort": CostConfig(limit=0.5, kind="per_step"), "speed": CostConfig(limit=1.0, kind="per_step")}
    config = charged(
        safety=SafetyConfig(costs=costs, method="cat", termination_max=0.6),
        signals={"height": SignalConfig(weight=2.0, gamma=0.9)},
        normalize_advantage="none", timeout_bootstrap=bootstrap, num_minibatches=1,
    )  # fmt: skip

    class Uneven(Charged):
        def step(self, action: Tensor) -> Step:
            step = super().step(action)
            assert step.signals is not None
            signals = {**step.signals, "height": step.obs["policy"][:, 0]}
            return step._replace(reward=step.reward + 4.0, signals=signals)

    agent = PPO(Uneven(8, seed=1, max_episode_length=7), config, seed=1)
    agent.learn(3)
    worst = agent.safety.worst.double()
    steps = collect(agent)
    found: list[Any] = []
    unroll = agent.critic.unroll
    agent.critic.unroll = lambda *args: found.append(unroll(*args)) or found[-1]  # type: ignore[method-assign,func-returns-value,assignment]
    batch, about = agent._targets(agent.next_obs)
    values, timeouts = found[0][0].double(), found[0][1].double()  # [T + 1, N, 2], [T, N, 2]
    assert values.shape[-1] == 2
    reward = torch.stack([step.reward for step in steps]).double()
    table = torch.stack([torch.stack([s.signals[name] for name in costs]) for s in steps if s.signals]).double()
    excess = (table - torch.tensor([0.5, 1.0]).view(1, 2, 1)).clamp(min=0)  # [T, K, N]
    worst = 0.95 * worst + 0.05 * excess.amax((0, 2))
    torch.testing.assert_close(agent.safety.worst.double(), worst, rtol=1e-5, atol=1e-6)
    end = 0.6 * (excess / worst.view(1, 2, 1)).clamp(max=1).amax(1)  # [T, N]
    assert (end > 0).any() and (end == 0).any() and (reward < 0).any() and (reward > 0).any()
    expected, returns = torch.zeros(10, 8, dtype=torch.float64), torch.zeros(10, 8, 2, dtype=torch.float64)
    for column, (gamma, weight) in enumerate([(0.99, 1.0), (0.9, 2.0)]):
        for n in range(8):
            tail = 0.0
            for t in reversed(range(10)):
                step, going = steps[t], 1 - float(end[t, n])
                assert step.signals is not None
                gain = float(step.signals["height"][n]) if column else float(reward[t, n])
                if not column and gain > 0:
                    gain *= going
                over = bool(step.truncated[n])
                following = float((timeouts[t] if over else values[t + 1])[n, column])
                if over and bootstrap == "none":
                    following = 0.0
                delta = gain + gamma * going * following - float(values[t, n, column])
                tail = delta + (0.0 if over else gamma * going * 0.95 * tail)
                expected[t, n] += weight * tail
                returns[t, n, column] = tail + float(values[t, n, column])
    assert batch.signal_returns is not None
    torch.testing.assert_close(batch.returns.view(10, 8).double(), returns[..., 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(batch.signal_returns.view(10, 8).double(), returns[..., 1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(batch.advantage.view(10, 8).double(), expected, rtol=1e-4, atol=1e-4)
    assert about["safety/effort_violations"].item() == pytest.approx((table[:, 0] > 0.5).double().mean().item())
    assert about["safety/speed_cost"].item() == pytest.approx(table[:, 1].mean().item(), rel=1e-5)


def test_a_cost_limited_by_probability_is_learned_as_a_chance() -> None:
    """Against a float64 loop: what comes after the first step above 0 does not count."""
    costs = {"fast": CostConfig(limit=0.1, kind="probability")}
    config = charged(safety=SafetyConfig(costs=costs), normalize_advantage="none")

    class Fast(Charged):
        def step(self, action: Tensor) -> Step:
            step = super().step(action)
            assert step.signals is not None
            return step._replace(signals={"fast": 5 * (step.signals["speed"] - 1).clamp(min=0)})

    agent = PPO(Fast(8, seed=1, max_episode_length=7), config, seed=1)
    agent.learn(3)
    steps = collect(agent)
    found: list[Any] = []
    unroll = agent.critic.unroll
    agent.critic.unroll = lambda *args: found.append(unroll(*args)) or found[-1]  # type: ignore[method-assign,func-returns-value,assignment]
    batch, about = agent._targets(agent.next_obs)
    values, timeouts = found[0][0].double()[..., 1], found[0][1].double()[..., 1]
    returns, above = torch.zeros(10, 8, 1, dtype=torch.float64), 0
    for n in range(8):
        tail = 0.0
        for t in reversed(range(10)):
            step = steps[t]
            assert step.signals is not None
            high = bool(step.signals["fast"][n] > 0)
            over = bool(step.truncated[n])
            following = 0.0 if high else float((timeouts[t] if over else values[t + 1])[n])
            delta = float(high) + 0.99 * following - float(values[t, n])
            tail = delta + (0.0 if over or high else 0.99 * 0.95 * tail)
            returns[t, n, 0] = tail + float(values[t, n])
            above += high
    assert 5 < above < 75 and batch.signal_returns is not None
    torch.testing.assert_close(batch.signal_returns.view(10, 8, 1).double(), returns, rtol=1e-4, atol=1e-4)
    assert 0 < about["safety/fast_cost"] <= 1


@pytest.mark.parametrize("normalize", ["batch", "none"])
def test_the_penalty_of_p3o_is_that_of_a_float64_loop(normalize: Any) -> None:
    """Of two costs, one for a step and one for an episode, whose excess counts by 1 - gamma; and its gradient."""
    costs = {"effort": CostConfig(limit=0.3, kind="per_step"), "speed": CostConfig(limit=2.0)}
    config = charged(safety=SafetyConfig(costs=costs, method="p3o"), normalize_advantage=normalize, num_minibatches=1)
    agent = PPO(Charged(8, seed=1, max_episode_length=7), config, seed=1)
    agent.learn(3)
    collect(agent)
    given: list[Any] = []
    weigh = agent.safety.weigh
    agent.safety.weigh = lambda *args: given.append(args) or weigh(*args)  # type: ignore[method-assign,func-returns-value,assignment]
    batch, about = agent._targets(agent.next_obs)
    (_, rewards, raw, _, gammas), advantage = given[0], batch.cost_advantage
    assert advantage is not None and gammas == [0.99, 0.99]
    cost = [float(about[f"safety/{name}_cost"]) for name in costs]
    excess = [cost[0] - 0.3, 0.01 * (cost[1] - 2.0)]
    table, rewards = raw.double(), rewards.double()
    if normalize == "batch":
        excess = [value / float(table[k].std(correction=0)) for k, value in enumerate(excess)]
        table = (table - table.mean((1, 2), keepdim=True)) / table.std((1, 2), correction=0, keepdim=True)
        rewards = (rewards - rewards.mean()) / rewards.std(correction=0)
    torch.testing.assert_close(batch.advantage.view(10, 8).double(), rewards, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(agent.safety.excess.double(), torch.tensor(excess).double(), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5))
    distribution, _ = agent.policy.distribution(batch.actor_obs, (), None, {})
    log_prob = distribution.log_prob(batch.action).detach().double().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for k in range(2):
        gain = torch.zeros((), dtype=torch.float64)
        for i in range(80):
            ratio = (log_prob[0, i] - float(batch.log_prob[0, i])).exp()
            of_step = float(table[k].flatten()[i])
            gain = gain + torch.maximum(ratio * of_step, ratio.clamp(0.8, 1.2) * of_step) / 80
        total = total + torch.clamp(gain + excess[k], min=0)
    assert total > 0 and ((log_prob[0] - batch.log_prob[0]).exp() - 1).abs().max() > 0.2
    found = cost_penalty(distribution, batch, agent.safety.excess, 0.2)
    assert found.item() == pytest.approx(total.item(), rel=1e-4)
    (mine,) = torch.autograd.grad(found, distribution.mean, retain_graph=True)
    total.backward()  # type: ignore[no-untyped-call]
    (theirs,) = torch.autograd.grad(
        distribution.log_prob(batch.action),
        distribution.mean,
        log_prob.grad.float(),  # type: ignore[union-attr]
    )
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
    assert cost_penalty(distribution, batch, torch.tensor([-1e3, -1e3]), 0.2) == 0
    metrics = agent._minibatch(batch)
    assert metrics["loss/penalty"] == pytest.approx(found.item(), rel=1e-5)


def test_without_an_excess_nothing_ends() -> None:
    agents: list[PPO] = []
    for costs in ({}, {"effort": CostConfig(limit=1e9, kind="per_step")}):
        config = charged(safety=SafetyConfig(costs=costs, method="cat"))
        agents.append(PPO(Charged(8, seed=1), config, seed=1))
        agents[-1].learn(3)
    one, two = (agent.policy.state_dict() for agent in agents)
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert agents[1].critic.value.weight.shape[0] == 1


# Resume


@pytest.mark.parametrize("method", ["pid", "lagrange", "p3o", "cat"])
def test_a_resumed_run_goes_on_bitwise(method: Any) -> None:
    """In the middle of episodes, whose costs so far go on too."""
    costs = charged().safety.costs
    if method == "lagrange":
        costs |= {"effort": CostConfig(limit=0.1, kind="probability")}
    if method == "cat":
        costs = {name: dataclasses.replace(cost, kind="per_step") for name, cost in costs.items()}
    config = charged(safety=SafetyConfig(costs=costs, method=method))
    rows: list[dict[str, float]] = []

    def build(seed: int) -> PPO:
        return PPO(Charged(4, seed=seed, max_episode_length=35), config, seed=seed)

    def keep(report: Any) -> None:
        rows.append({name: value for name, value in report.metrics.items() if not name.startswith("time/")})

    whole = build(1)
    whole.learn(12, on_report=keep)
    first = build(1)
    content = copy.deepcopy(snapshot(first.env, first, first.learn(6, on_report=keep)))
    second = build(7)
    progress, exact = resume(second.env, second, content)
    second.learn(12, progress=progress, on_report=keep)
    assert exact and rows[:12] == rows[12:]
    assert any("safety/speed_cost" in row for row in rows[6:12])
    assert method in ("cat", "p3o") or rows[11]["safety/speed_multiplier"] > 0
    for name, value in whole.safety.state_dict().items():
        assert torch.equal(value, second.safety.state_dict()[name])


def test_costs_of_episodes_that_do_not_go_on_are_forgotten() -> None:
    agent = PPO(Charged(4, seed=1), charged(), seed=1)
    agent.learn(2)
    assert (agent.safety.running > 0).all()
    agent.initial_state()
    assert (agent.safety.running == 0).all()


# Settings


def test_costs_are_set_by_name_on_the_command_line() -> None:
    words = "--agent.safety.costs.cost.limit 25 --agent.safety.costs.heat.limit=0.1 "
    words += "agent.safety.costs.heat.kind=per_step --agent.safety.method lagrange"
    pairs = split_words(words.split(), TrainConfig, free="env")
    safety = parse(TrainConfig, pairs, TrainConfig(task="Budget", agent=PPOConfig()), "rlcore train").agent.safety
    assert safety.method == "lagrange"
    assert safety.costs == {"cost": CostConfig(limit=25.0), "heat": CostConfig(limit=0.1, kind="per_step")}


def parsed(words: str, base: TrainConfig) -> dict[str, CostConfig]:
    """Limits on costs that a command line leaves of those of ``base``."""
    config = parse(TrainConfig, split_words(words.split(), TrainConfig, free="env"), base, "rlcore train")
    return config.agent.safety.costs


def test_limits_are_taken_out_on_the_command_line() -> None:
    base, _ = default_config("Reach-UR5e-JointVel-Box")
    box, speed = base.agent.safety.costs["box"], base.agent.safety.costs["joint_speed"]
    assert parsed("", base) == {"box": box, "joint_speed": speed}
    assert parsed("--agent.safety.costs none", base) == {}
    assert parsed("agent.safety.costs=None", base) == {}
    assert parsed("--agent.safety.costs.box none --agent.gamma 0.9", base) == {"joint_speed": speed}
    # Whatever the order, what is taken out goes first, and what else is said of it begins anew.
    words = "--agent.safety.costs.box.limit 3 --agent.safety.costs none"
    assert parsed(words, base) == {"box": CostConfig(limit=3.0)}
    assert parsed("--agent.signals none", base) == base.agent.safety.costs


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "costs.cost 1",
            r"--agent\.safety\.costs\.cost is a group .* write --agent\.safety\.costs\.cost\.limit 1, or .* none",
        ),
        (
            "costs.cost",
            r"write --agent\.safety\.costs\.cost\.limit VALUE, or --agent\.safety\.costs\.cost none to take it",
        ),
        (
            "costs 0.1",
            r"write --agent\.safety\.costs\.NAME\.limit 0\.1, or --agent\.safety\.costs none to take all out",
        ),
        ("costs.cots none", r"--agent\.safety\.costs\.cots cannot be taken out, .* not there; did you mean 'cost'"),
        ("costs.heat.kind per_step", r"--agent\.safety\.costs\.heat\.limit is missing; write --agent"),
    ],
)
def test_what_is_no_limit_is_refused_on_the_command_line(words: str, message: str) -> None:
    base, _ = default_config("Detour")
    with pytest.raises(UsageError, match=message):
        parsed(f"--agent.safety.{words}", base)


@pytest.mark.parametrize(
    ("costs", "left"),
    [
        ("none", {}),
        ("null", {}),
        ("{}", {}),
        ("{box: none}", {"joint_speed"}),
        ("{box: ~, heat: {limit: 1}}", {"joint_speed", "heat"}),
        ("{heat: {limit: 1}}", {"box", "joint_speed", "heat"}),
    ],
)
def test_limits_are_taken_out_in_a_file(tmp_path: Path, costs: str, left: set[str]) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(f"agent: {{safety: {{costs: {costs}}}}}\n")
    config, _ = default_config("Reach-UR5e-JointVel-Box", file)
    assert set(config.agent.safety.costs) == set(left)
    # A run's own file gives the same, whatever is shipped.
    save_yaml(tmp_path / "config.yaml", config)
    assert default_config("Reach-UR5e-JointVel-Box", tmp_path / "config.yaml")[0] == config


def test_what_is_no_limit_is_refused_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    for costs, message in (
        ("{bok: none}", r"own\.yaml: agent\.safety\.costs\.bok cannot be taken out, .* did you mean 'box'"),
        ("{heat: {kind: per_step}}", r"own\.yaml: 'agent\.safety\.costs\.heat\.limit' is missing; set it"),
        ("{box: 0.1}", r"own\.yaml: agent\.safety\.costs\.box: 0\.1 is not a group of settings"),
    ):
        file.write_text(f"agent: {{safety: {{costs: {costs}}}}}\n")
        with pytest.raises(ConfigError, match=message):
            default_config("Reach-UR5e-JointVel-Box", file)
    file.write_text("agent: {actor: none}\n")  # no table, but a group that there always is
    with pytest.raises(ConfigError, match=r"agent\.actor: 'none' is not a group of settings"):
        default_config("Reach-UR5e-JointVel-Box", file)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "limit": ({"costs": {"a": {"limit": "nan"}}}, r"safety\.costs\.a\.limit: nan is not possible; set a number"),
    "infinite": ({"costs": {"a": {"limit": "inf"}}}, r"safety\.costs\.a\.limit: inf is not possible; set a number"),
    "scale": (
        {"costs": {"a": {"limit": 1, "scale": 0}}},
        r"safety\.costs\.a\.scale: 0.0 is not possible; set a positive number",
    ),
    "kind": (
        {"costs": {"a": {"limit": 1, "kind": "step"}}},
        r"safety\.costs\.a\.kind: 'step' is not one of 'episode', 'per_step'",
    ),
    "method": ({"method": "cpo"}, r"safety\.method: 'cpo' is not one of 'pid', 'lagrange', 'p3o', 'cat'"),
    "episode": (
        {"method": "cat", "costs": {"a": {"limit": 1}}},
        r"costs\.a\.kind: 'episode' is not possible; cat limits single",
    ),
    "chance": ({"termination_max": 2}, r"safety\.termination_max: 2.0 is not possible; set more than 0, at most 1"),
    "share": (
        {"costs": {"a": {"limit": 25, "kind": "probability"}}},
        r"limit: 25.0 is not possible; a share of episodes",
    ),
    "penalty": ({"penalty": 0}, r"safety\.penalty: 0.0 is not possible; set a positive number"),
    "gain": ({"integral": -1}, r"safety\.integral: -1.0 is not possible; set 0 or more"),
    "most": ({"excess_max": 0}, r"safety\.excess_max: 0.0 is not possible; set more than 0, or inf for no limit"),
    "rate": ({"multiplier_rate": 0}, r"safety\.multiplier_rate: 0.0 is not possible; set a positive number"),
    "max": ({"multiplier_max": "inf"}, r"safety\.multiplier_max: inf is not possible; set a positive number"),
    "none": ({"costs": {"a": {"kind": "per_step"}}}, r"file: 'safety\.costs\.a\.limit' is missing; set it"),
    "name": ({"costs": {"a": {"limt": 1}}}, r"unknown key 'safety\.costs\.a\.limt'; did you mean 'limit'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_impossible_setting_is_refused(case: str) -> None:
    settings, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        from_dict(PPOConfig, {"safety": settings}, "file")


def test_a_limit_that_is_no_group_of_settings_is_refused() -> None:
    for wrong in (1.0, {"limit": 1.0}):
        with pytest.raises(ConfigError, match=r"costs\.effort: .* is not possible; give a CostConfig\(limit=\.\.\.\)"):
            SafetyConfig(costs={"effort": wrong})  # type: ignore[dict-item]


def test_a_cost_has_no_weight_of_its_own() -> None:
    with pytest.raises(
        ConfigError, match=r"signals\.effort\.weight: -1.0 is not possible; safety\.costs\.effort weighs"
    ):
        charged(signals={"effort": SignalConfig(weight=-1.0)})


def test_a_cost_that_the_env_does_not_give_is_named() -> None:
    for method, env, remedy in (
        ("pid", Budget, "did you mean 'cost'"), ("cat", Budget, "did you mean"), ("pid", Pendulum, "it gives none"),
    ):  # fmt: skip
        safety = SafetyConfig(costs={"costs": CostConfig(limit=0.0, kind="per_step")}, method=method)  # type: ignore[arg-type]
        config = PPOConfig(num_steps=5, num_minibatches=1, safety=safety)
        with pytest.raises(ConfigError, match=rf"agent\.safety\.costs: the env gives no signal 'costs'; {remedy}"):
            PPO(env(8, seed=1), config, seed=1).learn(1)


@pytest.mark.parametrize("kind", ["ppo", "sac", "ddpg"])
def test_a_cost_that_the_env_never_gives_is_refused_before_a_step(kind: str) -> None:
    algorithm = {"ppo": PPO, "sac": SAC, "ddpg": DDPG}[kind]
    config = find(kind).config
    env = Detour(4, seed=1)
    state = env.generator.get_state()
    for settings, setting in (
        ({"safety": {"costs": {"cots": {"limit": 1}}}}, "safety.costs"),
        ({"safety": {"gate": {"threshold": 0.1, "costs": ["cots"]}}}, "safety.gate.costs"),
        ({"signals": {"cots": {"weight": -1}}}, "signals"),
    ):
        with pytest.raises(
            ConfigError, match=rf"agent\.{setting}: the env gives no signal 'cots'; did you mean 'cost'"
        ):
            algorithm(env, from_dict(config, settings), seed=1)
    assert torch.equal(env.generator.get_state(), state)
    algorithm(env, from_dict(config, {"signals": {"cots": {"weight": 0}}}), seed=1)  # which is not learned from


def test_a_run_says_what_is_limited_whoever_limits_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"train --num-iterations 1 --num-envs 2 --eval-envs 1 --no-export --no-report --runs-dir {tmp_path}"
    words += " --agent.num-steps 8 --agent.num-minibatches 1 --task"
    for task, line in (
        ("Budget", ["limits       cost at most 25 an episode (agent.safety.costs, pid)"]),
        ("Budget --agent.safety.costs.cost.limit 0.05 --agent.safety.costs.cost.kind probability",
         ["limits       cost in at most 5 % of episodes (agent.safety.costs, pid)"]),
        ("Budget --agent.safety.costs none", []),
    ):  # fmt: skip
        assert main([*words.split(), *task.split()]) == 0
        assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("limits")] == line


def test_envs_tell_which_signals_they_may_give() -> None:
    class Own(Detour):
        """Which may give more."""

    assert signal_names(Detour(1)) == signal_names(Budget(1)) == ("cost",) and signal_names(Own(1)) is None
    assert signal_names(make_env("Reach-UR5e-JointVel-Box", 1)) == ("box", "joint_speed")
    for task in ("CartPole", "Pendulum-Delayed", "Pendulum-HiddenVelocity", "Reach-UR10-IK", "Memory"):
        assert signal_names(make_env(task, 2)) == ()
    assert signal_names(make_env("Pendulum", 1, **{"costs.fast.observation": "angular_velocity"})) == ("fast",)
    env = make_env("gym:CartPole-v1", 1)
    assert signal_names(env) == ("cost",)  # if any, which the first step tells
    env.close()


def test_algorithms_without_limits_say_which_have_them() -> None:
    words, own = ["--agent.safety.costs.cost.limit", "25"], str(Path(__file__).parent.parent / "examples" / "a2c.py")
    with pytest.raises(UsageError, match=r"unknown setting --agent\.safety\.costs\.cost\.limit; .* ppo, sac or ddpg$"):
        split_words(words, config_class(own), free="env")
    with pytest.raises(ConfigError, match=r"file: unknown key 'safety'; limits on costs need ppo, sac or ddpg$"):
        from_dict(find(own).config, {"safety": {}}, "file")
    for algo in ("ppo", "sac", "ddpg"):
        split_words(words, config_class(algo), free="env")
    match = r"unknown setting --agent\.safety\.costs\.cost\.limit; those of the agent are the run's, as it was trained$"
    with pytest.raises(UsageError, match=match):
        eval_command(words)


# Learning


def last_means(safety: SafetyConfig, *names: str) -> list[float]:
    """What PPO comes to on a Budget of 20 steps, where full effort costs 20: means over its last 10 iterations."""
    net = NetworkConfig(hidden_dims=(16,), activation="tanh")
    config = PPOConfig(
        num_steps=20, num_minibatches=2, learning_rate=3e-3, lr_schedule="constant", entropy_coef=0.0,
        init_std=0.4, actor=net, critic=net, normalize_value=True, safety=safety,
    )  # fmt: skip
    rows: list[dict[str, float]] = []
    agent = PPO(Budget(64, seed=1, max_episode_length=20), config, seed=1)
    agent.learn(60, on_report=lambda report: rows.append(report.metrics))
    return [sum(row[name] for row in rows[-10:]) / 10 for name in names]


def test_limits_are_held_that_plain_ppo_overshoots() -> None:
    """Within a cost of 5 for an episode the best is a return of 10."""
    names = ("rollout/episode_return", "signal/cost_episode")
    _, plain = last_means(SafetyConfig(), *names)
    gain, cost = last_means(SafetyConfig(costs={"cost": CostConfig(limit=5.0)}), *names)
    assert plain > 10
    assert abs(cost - 5) < 1 and gain > 8
    gain, cost = last_means(SafetyConfig(costs={"cost": CostConfig(limit=5.0)}, method="p3o"), *names)
    print("P3O", gain, cost)
    assert abs(cost - 5) < 1 and gain > 8


def test_steps_over_a_limit_become_few_with_terminations() -> None:
    """Where plain PPO is over it in most steps; within a cost of 0.25 a step pays 0.5."""
    costs = {"cost": CostConfig(limit=0.25, kind="per_step")}
    gain, share = last_means(SafetyConfig(method="cat", costs=costs), "rollout/reward", "safety/cost_violations")
    assert share < 0.35 and gain > 0.38
