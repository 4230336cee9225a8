"""Limits on costs with SAC, DDPG and TD3: what critics of costs learn, what multipliers follow, what comes of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conftest import check_that_nothing_waits, leaves
from torch import Tensor

from rlcore import DDPG, SAC, ConfigError, DDPGConfig, NetworkConfig, SACConfig, Step
from rlcore.checkpoint import broken_values
from rlcore.config import from_dict
from rlcore.cost_critics import CostCritics
from rlcore.envs import make_env
from rlcore.envs.classic import Pendulum
from rlcore.envs.constrained import Budget
from rlcore.learn import resume, snapshot
from rlcore.losses import cost_loss, cost_target, limited_loss
from rlcore.off_policy_config import LimitsConfig
from rlcore.optimizer import descend
from rlcore.safety import CostConfig
from rlcore.signals import SignalConfig
from rlcore.train.arguments import parse, split_words
from rlcore.train.config import TrainConfig, config_class

SMALL = NetworkConfig(hidden_dims=(16, 16), activation="tanh", init="default")
KINDS: dict[Any, Any] = {SAC: SACConfig, DDPG: DDPGConfig}


class Charged(Pendulum):
    """A Pendulum whose torque and speed cost, and which is worth something for its height."""

    def step(self, action: Tensor) -> Step:
        step = super().step(action)
        costs = {"effort": action[:, 0].abs(), "speed": step.obs["policy"][:, 2].abs()}
        return step._replace(signals={"height": step.obs["policy"][:, 0], **costs})


COSTS = {"effort": CostConfig(limit=0.3, kind="per_step"), "speed": CostConfig(limit=2.0)}


def learner(kind: Any = SAC, preset: str = "classic", seed: int = 1, **changes: Any) -> Any:
    sizes: dict[str, Any] = {"learning_starts": 24, "batch_size": 16, "buffer_size": 400, "num_updates": 2}
    sizes |= {"actor": SMALL, "critic": SMALL, "precision": "fp32", "safety": LimitsConfig(costs=COSTS, interval=10)}
    config = KINDS[kind].preset(preset, **{**sizes, **changes})
    return kind(Charged(4, seed=seed, max_episode_length=9), config, seed=seed, num_iterations=40)


# What critics of costs learn


@pytest.mark.parametrize("timeout", ["final_obs", "value", "none"])
@pytest.mark.parametrize(("kind", "n_step"), [(SAC, 1), (SAC, 3), (DDPG, 3)])
def test_cost_targets_are_those_of_a_float64_loop(kind: Any, n_step: int, timeout: Any) -> None:
    """From the steps as they were done, over windows that end with time-outs, by the larger target critic."""
    agent = learner(kind, n_step=n_step, timeout_bootstrap=timeout, signals={"height": SignalConfig(weight=1.0)})
    steps: list[tuple[Tensor, Tensor, Step]] = []
    record = agent.record
    agent.record = lambda obs, action, state, step: (  # type: ignore[method-assign]
        steps.append((obs["policy"].clone(), action.clone(), step)), record(obs, action, state, step),
    )  # fmt: skip
    agent.learn(30)
    costs, batches = agent.costs, []
    torch.manual_seed(3)
    read = agent.replay.sample

    def sample(*args: Any) -> Any:
        """Windows that begin in every step there is."""
        start, env = torch.meshgrid(torch.arange(30 - n_step), torch.arange(4), indexing="ij")
        batches.append((start.flatten(), env.flatten()))
        return agent.replay.window(*batches[-1], *args[1:])

    size = torch.maximum(costs.square.sqrt(), costs.least)
    batch = agent._batch(sample(0, 0.99, n_step, timeout))
    assert batch.costs.shape == (4 * (30 - n_step), 2) and read is not None
    torch.manual_seed(5)
    with torch.no_grad():
        action = (
            agent._sample(batch.next_actor_obs)[0]
            if kind is SAC
            else agent.target_policy.squash(agent.target_policy.output(batch.next_actor_obs))
        )
        found = cost_target(costs.targets(batch.next_critic_obs, action), batch.costs, batch.discount)
        # What comes next, from what the env said.
        ends = 0
        for i, (t, n) in enumerate(zip(*(x.tolist() for x in batches[-1]), strict=True)):
            expected, factor, last = torch.zeros(2, dtype=torch.float64), 1.0, t
            for k in range(n_step):
                signals, last = steps[t + k][2].signals, t + k
                assert signals is not None
                expected += factor * torch.stack([signals["effort"][n], signals["speed"][n]]).double() / size
                factor *= 0.99
                if steps[last][2].truncated[n]:
                    break
            step = steps[last][2]
            over = bool(step.truncated[n])
            ends += over
            assert step.final_obs is not None
            following = {"final_obs": step.final_obs["policy"], "value": steps[last][0], "none": None}[timeout]
            after = following if over else step.obs["policy"]
            if after is not None:
                says = costs.targets(after[n : n + 1], action[i : i + 1])  # [2, 1, 2]
                expected += factor * says.double().max(0).values[0]
            torch.testing.assert_close(found[i].double(), expected, rtol=1e-4, atol=1e-5)
    assert ends >= 8


@pytest.mark.parametrize("kind", KINDS)
def test_critics_of_costs_go_down_that_loss_and_the_actor_the_lagrangian(kind: Any) -> None:
    """One gradient step beside the same by hand: sums over samples, critics and costs in float64."""
    agent = learner(kind)
    agent.learn(20)
    agent.costs.safety.multiplier.copy_(torch.tensor([0.7, 2.0]))
    batch = agent._batch(agent.replay.sample(8, 0.99))
    batch = batch._replace(weight=torch.linspace(0.5, 1.5, 8))
    torch.manual_seed(2)
    policy, costs = agent.policy, agent.costs
    with torch.no_grad():
        if kind is SAC:
            next_action, _ = agent._sample(batch.next_actor_obs)
            action, log_prob = agent._sample(batch.actor_obs)
            price = agent.log_temperature.exp() * log_prob
            gain = agent.critics(batch.critic_obs, action).min(0).values
        else:
            next_action = agent.target_policy.squash(agent.target_policy.output(batch.next_actor_obs))
            action, price = policy.squash(policy.output(batch.actor_obs)), torch.zeros(8)
            gain = agent.critics(batch.critic_obs, action)[0]
        following = costs.targets(batch.next_critic_obs, next_action).double()
        said = costs.critics(batch.critic_obs, batch.action).double()
        spent = costs.critics(batch.critic_obs, action).double()
    losses: list[Tensor] = []
    agent.costs.learn = lambda loss: losses.append(loss.detach()) or {}  # type: ignore[method-assign,func-returns-value]
    agent._actor_step = lambda loss: losses.append(loss.detach()) or {}  # type: ignore[method-assign,func-returns-value]
    agent._critic_step = lambda loss, value: {}  # type: ignore[method-assign]
    torch.manual_seed(2)
    agent._gradient_step(batch, True)
    error = objective = 0.0
    for i in range(8):
        weight = float(batch.weight[i]) / 8
        paid = 0.0
        for k in range(2):
            target = float(batch.costs[i, k]) + float(batch.discount[i]) * max(following[:, i, k].tolist())
            error += weight * sum((float(said[c, i, k]) - target) ** 2 for c in range(2))
            paid += (0.7, 2.0)[k] * float(costs.price) * max(spent[:, i, k].tolist())
        objective += weight * (float(price[i]) - (float(gain[i]) - paid)) / (1 + 0.7 + 2.0)
    assert [float(x) for x in losses] == pytest.approx([error, objective], rel=1e-4)
    assert float(costs.price) != 1 and float(agent.costs.price) == float(agent.return_scale())


def test_no_gradient_reaches_targets_and_multipliers() -> None:
    values, following = (torch.randn(2, 5, 3).requires_grad_() for _ in range(2))
    multiplier = torch.rand(3).requires_grad_()
    weight = torch.rand(5)
    with torch.no_grad():
        target = cost_target(following, torch.rand(5, 3), torch.rand(5))
    loss = cost_loss(values, target, weight)
    loss = loss + limited_loss(torch.zeros(()), values, weight, multiplier.detach(), torch.ones(()))
    loss.backward()
    assert values.grad is not None and following.grad is None and multiplier.grad is None


def test_critics_of_costs_learn_the_discounted_sum() -> None:
    """Budget at a fixed effort of 0.5: 0.25 in each step, with time-outs bootstrapped 0.25 / (1 - 0.5) in all."""
    config = DDPGConfig(
        gamma=0.5, learning_starts=8, buffer_size=2000, batch_size=64, learning_rate=3e-3, actor=SMALL, critic=SMALL,
        num_updates=1, safety=LimitsConfig(costs={"cost": CostConfig(limit=2.0)}),
    )  # fmt: skip
    agent = DDPG(Budget(4, seed=0, max_episode_length=5), config, seed=0)
    costs = agent.costs
    assert costs is not None
    obs, action = agent.env.reset(0), torch.full((4, 1), 0.5)
    for _ in range(20):
        step = agent.env.step(action)
        agent.record(obs, action, (), step)
        obs = step.obs
    for _ in range(200):
        batch = agent._batch(agent.replay.sample(64, 0.5))
        assert batch.costs is not None
        with torch.no_grad():
            target = cost_target(costs.targets(batch.next_critic_obs, batch.action), batch.costs, batch.discount)
        said = costs.critics(batch.critic_obs, batch.action)
        descend(costs.optimizer, cost_loss(said, target, batch.weight))
        costs.target_buffer.lerp_(costs.optimizer.value, 0.3)
    size = float(torch.maximum(costs.square.sqrt(), costs.least))
    assert (said * size).mean().item() == pytest.approx(0.5, rel=0.05)
    assert size == pytest.approx(0.8)  # two steps that count, at the limit of 2 in 5 steps


# What is measured, and when multipliers move


def test_multipliers_move_by_measured_episodes_once_in_an_interval() -> None:
    """Beside a loop: costs of episodes that ended since the last move, none of the random ones before learning."""
    agent = learner(num_updates=3, safety=LimitsConfig(costs=COSTS, interval=10, method="lagrange"))
    assert agent.first_rows == 6
    steps: list[Step] = []
    record = agent.record
    agent.record = lambda obs, action, state, step: steps.append(step) or record(obs, action, state, step)  # type: ignore[method-assign,func-returns-value]
    rows: list[dict[str, float]] = []
    agent.learn(40, on_report=lambda report: rows.append(report.metrics))
    flight, episodes, efforts, since = [0.0] * 4, [], [], [0, 0]
    latest, moves = [math.nan, math.nan], [0, 0]
    for t, (step, row) in enumerate(zip(steps, rows, strict=True)):
        assert step.signals is not None
        for n in range(4):
            flight[n] += float(step.signals["speed"][n])
            efforts.append(float(step.signals["effort"][n]))
            if step.truncated[n]:
                episodes.append(flight[n])
                flight[n] = 0.0
        if t < 5:
            episodes, efforts = [], []
            assert "safety/speed_cost" not in row
            continue
        since = [x + 3 for x in since]
        for k, seen in enumerate((efforts, episodes)):
            if since[k] >= 10 and seen:
                latest[k], since[k], moves[k] = sum(seen) / len(seen), 0, moves[k] + 1
                seen.clear()
        found = [row.get(f"safety/{name}_cost", math.nan) for name in COSTS]
        assert found == pytest.approx(latest, rel=1e-5, nan_ok=True)
    assert agent.costs.safety.controller.steps.tolist() == moves
    assert moves[0] == 8 and 2 <= moves[1] <= 4  # episodes end in every ninth iteration


def test_costs_of_no_step_and_of_no_number_are_left_out() -> None:
    class Sick(Charged):
        def step(self, action: Tensor) -> Step:
            step = super().step(action)
            assert step.signals is not None
            step.signals["speed"][1] = math.nan
            valid = torch.tensor([True, True, False, True])
            step.signals["effort"][2] = 100.0
            return step._replace(valid=valid)

    config = SACConfig(
        learning_starts=24, batch_size=16, buffer_size=400, num_updates=1, actor=SMALL, critic=SMALL,
        safety=LimitsConfig(costs=COSTS, interval=5),
    )  # fmt: skip
    agent = SAC(Sick(4, seed=1, max_episode_length=9), config, seed=1)
    rows: list[dict[str, float]] = []
    agent.learn(30, on_report=lambda report: rows.append(report.metrics))
    assert rows[-1]["safety/effort_cost"] < 2 and math.isfinite(rows[-1]["safety/speed_cost"])
    assert agent.costs is not None
    assert agent.costs.optimizer.value.isfinite().all() and agent.costs.square.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", ["classic", "gpu"])
def test_scales_of_costs_and_rewards_do_not_matter(kind: Any, preset: str) -> None:
    """Of both a thousand times as much, with limits to match, is weighed alike; a multiplier has no unit."""

    class Scaled(Charged):
        def step(self, action: Tensor) -> Step:
            step = super().step(action)
            assert step.signals is not None
            signals = {name: 1024 * value for name, value in step.signals.items()}
            return step._replace(reward=step.reward * 1024, signals=signals)

    batches, prices = [], []
    for env, factor in ((Charged, 1), (Scaled, 1024)):
        costs = {name: CostConfig(limit=factor * cost.limit, kind=cost.kind) for name, cost in COSTS.items()}
        sizes: dict[str, Any] = {"learning_starts": 400, "batch_size": 16, "buffer_size": 400, "num_updates": 2}
        sizes |= {"actor": SMALL, "critic": SMALL, "precision": "fp32", "safety": LimitsConfig(costs=costs)}
        agent = kind(
            env(4, seed=1, max_episode_length=9), KINDS[kind].preset(preset, **sizes), seed=1, num_iterations=1
        )
        agent.learn(30)
        torch.manual_seed(0)
        batches.append(agent._batch(agent.replay.sample(16, 0.99)).costs)
        prices.append(float(agent.costs.price))
    torch.testing.assert_close(*batches, rtol=1e-4, atol=1e-6)
    assert prices[1] == pytest.approx((1024 if preset == "classic" else 1) * prices[0], rel=1e-3)
    assert prices[0] == 1 or preset == "classic"


def test_the_size_of_a_cost_is_the_root_mean_square_of_its_discounted_sums_anew_in_each_episode() -> None:
    costs: CostCritics = learner(gamma=0.9).costs
    sums, squares = torch.zeros(2, 4, dtype=torch.float64), []
    for _ in range(50):
        cost, over, none = torch.rand(2, 4), torch.rand(4) < 0.2, torch.zeros(4, dtype=torch.bool)
        signals = dict(zip(costs.safety.names, cost.unbind(), strict=True))
        costs.record(Step({}, torch.zeros(4), over, none, None, {}, None, signals), over, torch.ones(()))
        sums = 0.9 * sums + cost.double()
        squares.append(sums.square().mean(1))
        sums[:, over] = 0.0
    torch.testing.assert_close(costs.square.double(), torch.stack(squares).mean(0), rtol=1e-5, atol=1e-6)


def test_a_cost_that_has_hardly_occurred_counts_as_at_its_limit() -> None:
    agent = learner()
    costs: CostCritics = agent.costs
    horizon = 9  # steps of an episode, fewer than the 100 that a discount of 0.99 counts
    assert costs.least.tolist() == pytest.approx([0.3 * horizon, 2.0])
    costs.square.fill_(1e-12)
    batch = agent.replay.window(torch.zeros(4, dtype=torch.int64), torch.arange(4), 0.99)
    signals = batch.signals
    assert signals is not None
    torch.testing.assert_close(costs.scaled(batch), signals / costs.least)


# Nothing without costs, and everything again after a break


@pytest.mark.parametrize("kind", KINDS)
def test_without_costs_there_is_nothing(kind: Any) -> None:
    agent = learner(kind, safety=LimitsConfig(method="lagrange"))
    rows: list[dict[str, float]] = []
    agent.learn(12, on_report=lambda report: rows.append(report.metrics))
    assert agent.costs is None and agent.return_scale is None and agent.replay.signals is None
    assert agent.state_dict()["costs"] is None
    assert not any(name.startswith("safety/") or "cost" in name for row in rows for name in row)


def test_a_run_can_be_resumed_before_its_multipliers_have_moved_and_after_a_cost_that_is_no_number() -> None:
    agent = learner(SAC, safety=LimitsConfig(costs=COSTS))
    progress = agent.learn(12)
    assert agent.costs.latest.isnan().all()
    assert broken_values(snapshot(agent.env, agent, progress)["agent"]) == []
    action = torch.zeros(4, 1)
    step = agent.env.step(action)
    signals = {**step.signals, "speed": torch.full((4,), torch.nan)}
    agent.record(progress.obs, action, (), step._replace(signals=signals))
    assert agent.costs.safety.running.isnan().any() and broken_values(agent.state_dict()) == []


@pytest.mark.parametrize(
    ("kind", "preset", "method"), [(SAC, "classic", "pid"), (SAC, "gpu", "lagrange"), (DDPG, "td3", "pid")]
)
def test_a_resumed_run_goes_on_bitwise(kind: Any, preset: str, method: Any) -> None:
    """In the middle of episodes and of an interval, whose costs so far go on too."""
    changes = {"safety": LimitsConfig(costs=COSTS, interval=25, method=method), "save_buffer": True}
    rows: list[dict[str, float]] = []

    def keep(report: Any) -> None:
        rows.append({name: value for name, value in report.metrics.items() if not name.startswith("time/")})

    whole = learner(kind, preset, **changes)
    whole.learn(40, on_report=keep)
    first = learner(kind, preset, **changes)
    content = copy.deepcopy(snapshot(first.env, first, first.learn(40, should_stop=lambda: first.iteration == 21)))
    assert 0 < int(first.costs.since[0]) < 25 and (first.costs.safety.running > 0).any()
    second = learner(kind, preset, 7, **changes)
    progress, exact = resume(second.env, second, content)
    del rows[:21]
    second.learn(40, progress=progress, on_report=keep)
    assert exact and str(rows[:19]) == str(rows[19:])  # NaN is NaN
    assert rows[18]["safety/speed_multiplier"] > 0
    for one, two in zip(leaves(whole.state_dict()), leaves(second.state_dict()), strict=True):
        assert torch.equal(one.nan_to_num(), two.nan_to_num()) if isinstance(one, Tensor) else one == two
    other = learner(kind, preset, **{**changes, "safety": LimitsConfig(costs={"speed": CostConfig(limit=0.0)})})
    with pytest.raises(ConfigError, match=r"safety\.costs: \['speed'\] is .* with limits on effort and speed; set as"):
        other.load_state_dict(content["agent"])


def test_a_rollout_that_is_broken_off_costs_nothing() -> None:
    agent = learner()
    progress = agent.learn(12)
    before = {name: value.clone() for name, value in agent.costs.state_dict().items()}

    def fail(action: Tensor) -> Step:
        raise RuntimeError("it diverged")

    step, agent.env.step = agent.env.step, fail
    with pytest.raises(RuntimeError, match="it diverged"):
        agent.learn(13, progress=progress)
    agent.env.step = step
    assert all(torch.equal(value, before[name]) for name, value in agent.costs.state_dict().items() if "mea" in name)
    progress.restart(agent.env, agent)
    assert not agent.costs.safety.running.any() and not agent.costs.sums.any()


# Settings


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "cat": (
        {"safety": {"method": "cat"}},
        r"safety\.method: 'cat' is not possible; SAC and DDPG have multipliers alone; set pid or lagrange, or take ppo",
    ),
    "p3o": ({"safety": {"method": "p3o"}}, r"safety\.method: 'p3o' is not possible; SAC and DDPG have multipliers"),
    "kind": (
        {"safety": {"costs": {"a": {"limit": 0, "kind": "probability"}}}},
        r"safety\.costs\.a\.kind: 'probability' is not possible; critics of SAC and DDPG sum costs; set episode or",
    ),
    "interval": ({"safety": {"interval": 0}}, r"safety\.interval: 0 is not possible; set at least 1"),
    "weight": (
        {"safety": {"costs": {"a": {"limit": 0}}}, "signals": {"a": {"weight": -1}}},
        r"signals\.a\.weight: -1\.0 is not possible; safety\.costs\.a weighs it; leave it out",
    ),
    "gamma": (
        {"safety": {"costs": {"a": {"limit": 0}}}, "signals": {"a": {"gamma": 0.5}}},
        r"signals\.a\.gamma: 0\.5 is not possible; SAC and DDPG discount a cost with a limit like the reward",
    ),
    "range": (
        {"safety": {"costs": {"a": {"limit": 0}}}, "value_range": [-2, -1]},
        r"value_range: \(-2\.0, -1\.0\) is not possible; with normalize_reward or limits on costs its upper end",
    ),
}


@pytest.mark.parametrize("kind", [SACConfig, DDPGConfig])
@pytest.mark.parametrize("case", REFUSED)
def test_an_impossible_setting_is_refused(case: str, kind: Any) -> None:
    settings, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        from_dict(kind, settings, "file")


@pytest.mark.parametrize("algo", ["sac", "ddpg"])
def test_costs_are_set_on_the_command_line_and_named_where_the_env_has_none(algo: str) -> None:
    words = "--agent.safety.costs.costs.limit 25 --agent.safety.interval=50 --agent.safety.method lagrange"
    kind = config_class(algo)
    start = kind(task="Budget")
    safety = parse(kind, split_words(words.split(), kind, free="env"), start, "rlcore train").agent.safety
    assert safety == LimitsConfig(costs={"costs": CostConfig(limit=25.0)}, interval=50, method="lagrange")
    config = type(start.agent)(learning_starts=8, buffer_size=100, safety=safety)
    with pytest.raises(ConfigError, match=r"agent\.safety\.costs: .* no signal 'costs'; did you mean 'cost'"):
        (SAC if algo == "sac" else DDPG)(Budget(4, seed=1), config, seed=1)
    assert TrainConfig is not kind


# Learning


def test_a_limit_is_held_after_it_was_passed() -> None:
    """SAC on a Budget of 10 steps, where full effort costs 10; within 2.5 the best is a return of 5."""
    config = SACConfig(
        learning_starts=160, buffer_size=20_000, batch_size=32, num_updates=1, tau=0.02, learning_rate=3e-3,
        gamma=0.0, init_temperature=0.1, actor=SMALL, critic=SMALL,
        safety=LimitsConfig(costs={"cost": CostConfig(limit=2.5)}, interval=20),
    )  # fmt: skip
    gains: list[float] = []
    costs: list[float] = []

    def keep(report: Any) -> None:
        if report.metrics["rollout/episodes"] > 0:
            gains.append(report.metrics["rollout/episode_return"])
            costs.append(report.metrics["signal/cost_episode"])

    SAC(Budget(16, seed=1, max_episode_length=10), config, seed=1).learn(600, on_report=keep)
    assert max(costs) > 5
    assert abs(sum(costs[-10:]) / 10 - 2.5) < 0.6 and sum(gains[-10:]) / 10 > 4


# On a GPU


def on_gpu(kind: Any, preset: str, **changes: Any) -> Any:
    sizes: dict[str, Any] = {"learning_starts": 160, "buffer_size": 4000, "batch_size": 64, "num_updates": 1}
    sizes |= {"policy_delay": 2, "safety": LimitsConfig(costs={"cost": CostConfig(limit=0.01)}, interval=7)}
    if preset == "classic":
        sizes |= {"actor": SMALL, "critic": SMALL}
    env = make_env("Budget", 8, "cuda", seed=0, max_episode_length=10)
    return kind(env, KINDS[kind].preset(preset, **{**sizes, **changes}), seed=0, num_iterations=140)


@pytest.fixture(params=["classic", "gpu"])
def preset(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_graphs_with_a_cost_equal_what_is_written(kind: Any, preset: str) -> None:
    results = []
    for mode in ("graph", "eager"):
        agent = on_gpu(kind, preset, mode=mode)
        agent.learn(140)
        if mode == "graph":
            assert all(captured.graph is not None for captured in agent._updates)
        assert float(agent.costs.multiplier) > 0
        results.append(leaves(agent.state_dict()))
    for graph, eager in zip(*results, strict=True):
        same = isinstance(graph, Tensor) and torch.equal(graph.nan_to_num(), eager.nan_to_num())
        assert same or graph == eager


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_with_a_cost_waits_for_the_device(kind: Any, preset: str) -> None:
    agent = on_gpu(kind, preset)
    check_that_nothing_waits(agent, agent.learn(60).obs, 20)
