"""The safety critic and the gate: what is learned of risk, what takes the place of an action, and where it travels."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import check_that_nothing_waits, leaves
from torch import Tensor

from rlcore import DDPG, PPO, SAC, ConfigError, DDPGConfig, NetworkConfig, PPOConfig, SACConfig, Step, spec_of
from rlcore.config import from_dict
from rlcore.envs.classic import CartPole, Pendulum
from rlcore.envs.constrained import Detour
from rlcore.export import ExportError, OnnxPolicy, export_onnx, read_metadata, verify
from rlcore.gate import OPEN, Gate, GateConfig
from rlcore.learn import resume, snapshot
from rlcore.risk import outcomes, risk_loss, risk_target
from rlcore.safety import CostConfig, SafetyConfig
from rlcore.safety_critic import BINS
from rlcore.train.evaluate import Controller, evaluate
from rlcore.train.intervals import ratio_interval
from rlcore.train.play import frames

SMALL = NetworkConfig(hidden_dims=(16,), activation="relu", init="default")
LOW, HIGH = torch.tensor([-2.0, -math.inf]), torch.tensor([4.0, math.inf])


def safety(**changes: Any) -> SafetyConfig:
    settings: dict[str, Any] = {"threshold": 0.1, "costs": ("cost",), "network": SMALL, "warmup": 4, "num_updates": 2}
    return SafetyConfig(gate=GateConfig(**{**settings, **changes}))


def agent(kind: str, num_envs: int = 8, seed: int = 1, device: str = "cpu", mode: Any = "graph", **gate: Any) -> Any:
    """Small, on a Detour of 20 steps."""
    env, limits = Detour(num_envs, device, seed, max_episode_length=20), safety(**gate)
    if kind == "ppo":
        sizes: dict[str, Any] = {"num_steps": 10, "num_minibatches": 2, "num_epochs": 2, "actor": SMALL}
        return PPO(env, PPOConfig(**sizes, critic=SMALL, init_std=0.5, safety=limits, mode=mode), seed=seed)
    algorithm: Any = SAC if kind == "sac" else DDPG
    config: Any = SACConfig if kind == "sac" else DDPGConfig
    sizes = {"learning_starts": 80, "buffer_size": 4000, "batch_size": 32, "num_updates": 1, "num_steps": 2}
    return algorithm(env, config(**sizes, actor=SMALL, critic=SMALL, safety=limits, mode=mode), seed=seed)


def gate(**changes: Any) -> Gate:
    """Of two actions, which finds the first of them the riskier the larger it is: log-odds 10 a - 5."""
    spec = dataclasses.replace(spec_of(Detour(1)), deployment={"safe_action": [-1.0, 0.5]})
    built = Gate(safety(**changes).gate, {"cost": 0.0}, 3, LOW, HIGH, spec)
    built.logits = lambda obs, action: torch.stack([10 * action[:, 0] - 5, 10 * action[:, 0] - 9])  # type: ignore[method-assign]
    built.limit.fill_(0.1)
    return built


# Equations


def test_targets_and_loss_are_those_of_a_plain_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    violation = torch.randint(2, (50,), generator=generator).double()
    terminated = torch.rand(50, generator=generator) < 0.3
    following = torch.rand(50, generator=generator, dtype=torch.float64)
    logits = 3 * torch.randn(2, 50, generator=generator, dtype=torch.float64)
    weight = (torch.rand(50, generator=generator) < 0.7).double()
    found = risk_target(violation, terminated, following, 0.85)
    total = 0.0
    for i in range(50):
        v, done = violation[i].item(), float(terminated[i])
        y = v + (1 - v) * (1 - done) * 0.85 * following[i].item()
        assert found[i].item() == pytest.approx(y, abs=1e-15)
        for x in logits[:, i].tolist():
            q = 1 / (1 + math.exp(-x))
            total -= weight[i].item() * (y * math.log(q) + (1 - y) * math.log(1 - q))
    expected = total / weight.sum().item()
    assert risk_loss(logits, torch.stack([found, found]), weight).item() == pytest.approx(expected, abs=1e-12)
    # Targets of float32 are those to its precision.
    single = risk_target(violation.float(), terminated, following.float(), 0.85)
    assert torch.allclose(single.double(), found, atol=1e-7)


def test_outcomes_are_the_discount_of_the_first_violation_where_they_are_known() -> None:
    generator = torch.Generator().manual_seed(1)
    steps, gamma, horizon = 60, 0.8, 5
    violation, terminated, cut = (torch.rand(steps, 7, generator=generator) < p for p in (0.1, 0.05, 0.05))
    cut &= ~terminated
    came, known = outcomes(violation.double(), terminated, cut, gamma, horizon)
    for n in range(7):
        for t in range(steps):
            value, sure, k = 0.0, False, t
            while k < steps:
                if violation[k, n] and value == 0:
                    value = gamma ** (k - t)
                if terminated[k, n] or cut[k, n]:
                    sure = bool(terminated[k, n])
                    break
                k += 1
                sure = k - t >= horizon
            sure = sure or k - t >= horizon
            assert came[t, n].item() == pytest.approx(value, abs=1e-12)
            assert bool(known[t, n]) == sure


# The gate


def test_the_nearest_candidate_within_the_threshold_takes_the_place_of_an_action_above_it() -> None:
    proposed = torch.tensor([[0.0, 7.0], [0.9, 7.0], [0.9, 7.0]])
    candidates = torch.tensor([
        [[0.0, 1.0], [0.4, 7.0], [0.4, 7.0]],  # log-odds of -1: too risky
        [[0.0, 2.0], [-0.9, 7.5], [0.5, 7.0]],  # -14, at a distance of (0.6, 0.5), in half widths
        [[0.0, 3.0], [-0.2, 7.2], [0.6, 8.0]],  # -7, at (0.37, 0.2): the one
    ])  # fmt: skip
    judge = gate(num_candidates=3, num_around=0, pose=(0.8, 7.0))
    found = judge(torch.zeros(3, 3), proposed, candidates)
    assert torch.allclose(found.risk, torch.sigmoid(torch.tensor([-5.0, 4.0, 4.0])))  # of the larger critic
    assert found.acted.tolist() == [False, True, True]
    # Of the last, none is within the threshold, and the least risky takes its place.
    assert torch.equal(found.action, torch.stack([proposed[0], candidates[2, 1], candidates[0, 2]]))
    # Nothing of the second is nearer to deciding otherwise than the other candidate, by its distance; of the third two
    # log-odds of -1 and 0.
    apart = math.hypot(0.6, 0.5) - math.hypot(1.1 / 3, 0.2)
    risks = [abs(x + math.log(9)) / max(1, abs(x)) for x in (-1, 0, 1, 3)]
    assert found.margin.tolist() == pytest.approx([(5 - math.log(9)) / 5, apart, min(1.0, *risks)])
    # The pose is one of them, by the env unless it is set, and inside the bounds.
    judge = gate(num_candidates=3, num_around=0)
    assert judge(torch.zeros(3, 3), proposed, candidates).action[2].tolist() == [-1.0, 0.5]
    assert gate(pose=(-9.0,)).pose.tolist() == [-2.0, -9.0]
    # One that has not begun to act tells the risk alone.
    judge.limit.fill_(OPEN)
    assert torch.equal(judge(torch.zeros(3, 3), proposed, candidates).action, proposed)


def test_what_takes_the_place_is_that_of_a_loop_over_candidates() -> None:
    """With actions around the policy's own, cut off at the bounds; a margin tells what could change the choice."""
    judge = gate(num_candidates=5, num_around=6)
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(2, 5, generator=generator)
    judge.logits = lambda obs, action: 3 * weight @ torch.cat([obs, action], 1).t() - 1  # type: ignore[method-assign]
    obs, proposed = torch.randn(200, 3, generator=generator), torch.randn(200, 2, generator=generator)
    proposed = proposed.maximum(LOW).minimum(HIGH)
    candidates = (proposed + 3 * torch.randn(5, 200, 2, generator=generator)).maximum(LOW).minimum(HIGH)
    found, kinds = judge(obs, proposed, candidates), set()
    half = [3.0, 1.0]
    for n in range(200):
        around = [[min(max(p + h * x, low), high) for p, h, x, low, high in zip(
            proposed[n].tolist(), half, offset[0], LOW.tolist(), HIGH.tolist(), strict=True)]
            for offset in judge.around.tolist()]  # fmt: skip
        options = [*candidates[:, n].tolist(), *around, [-1.0, 0.5]]
        logits = [judge.logit(obs[n : n + 1], torch.tensor([x])).item() for x in (*options, proposed[n].tolist())]
        *others, own = [1 / (1 + math.exp(-x)) for x in logits]
        assert found.risk[n].item() == pytest.approx(own, abs=1e-5)
        if own <= 0.1:
            assert not found.acted[n] and torch.equal(found.action[n], proposed[n])
            continue
        far = [math.dist(*([x / h for x, h in zip(a, half, strict=True)] for a in (o, proposed[n].tolist())))
               for o in options]  # fmt: skip
        within = [k for k in range(len(options)) if others[k] <= 0.1]
        best = min(within, key=lambda k: far[k]) if within else min(range(len(options)), key=lambda k: others[k])
        assert found.action[n].tolist() == pytest.approx(options[best], abs=1e-5)
        kinds.add((bool(within), "around" if 5 <= best < 11 else "other"))
        # Whatever is nearer must be above the threshold by more than the margin, and the one chosen within it.
        for k in range(len(options)):
            if not within or far[k] <= far[best]:
                scale = max(1.0, abs(logits[k]))
                assert abs(logits[k] + math.log(9)) / scale >= found.margin[n].item() - 1e-5
    assert {within for within, _ in kinds} == {True, False} and len(kinds) >= 3


def test_actions_around_go_to_all_sides_at_different_lengths() -> None:
    around = gate(num_around=16).around[:, 0]
    lengths = around.norm(dim=1)
    assert torch.allclose(lengths, 2 ** torch.linspace(-3, 1, 16)) and lengths.diff().min() > 0.01
    assert torch.allclose(around[::2] / lengths[::2, None], -around[1::2] / lengths[1::2, None])
    assert gate(num_around=7).around.shape == (7, 1, 2) and gate(num_around=0).around.shape == (0, 1, 2)
    assert gate(fallback="pose").around.shape == (0, 1, 2)


def test_other_fallbacks() -> None:
    obs, proposed = torch.randn(5, 3), torch.full((5, 2), 3.0)
    none = torch.empty(0, 5, 2)
    assert gate(fallback="pose")(obs, proposed, none).action.tolist() == [[-1.0, 0.5]] * 5
    still = gate(fallback="none")(obs, proposed, none)
    assert torch.equal(still.action, proposed) and (still.risk > 0.9).all()
    recovery = gate(fallback="recovery")
    with torch.no_grad():
        assert recovery.actor_head is not None
        recovery.actor_head.bias.fill_(100.0)
    action = recovery(obs, proposed, none).action
    assert torch.allclose(action, torch.tensor([4.0, 1.0]))  # the upper bound, and 1 where there is none


# Learning


class Countdown(Pendulum):
    """A violation in the sixth step of each episode, whatever is done; the cost is told, and nothing else matters."""

    def step(self, action: Tensor) -> Step:
        passed = self.steps + 1
        step = super().step(action)
        obs = {"policy": step.obs["policy"] * 0 + self.steps.unsqueeze(1) / 10}
        final = {"policy": obs["policy"] * 0 + passed.unsqueeze(1) / 10}
        return step._replace(obs=obs, final_obs=final, signals={"cost": (passed == 6).float()})

    def reset(self, seed: int | None = None) -> Any:
        obs = super().reset(seed)
        return {"policy": obs["policy"] * 0 + self.steps.unsqueeze(1) / 10}


def test_the_risk_of_what_cannot_be_prevented_is_the_discount_to_the_violation() -> None:
    """In closed form gamma^k, k steps before it, and after it 0 but for what the cut of the episode hides."""
    settings = {"num_updates": 40, "warmup": 0, "horizon": 5.0, "tau": 0.05, "num_candidates": 2}
    limits = safety(**settings, network=NetworkConfig(hidden_dims=(64, 64), activation="relu", init="default"))
    config = PPOConfig(num_steps=40, num_minibatches=1, num_epochs=1, actor=SMALL, critic=SMALL, safety=limits)
    learner = PPO(Countdown(8, seed=1, max_episode_length=20), config, seed=1)
    rows: list[float] = []
    progress = learner.learn(20)
    learner.safety_critic.bins.zero_()  # what it did not know yet
    learner.learn(30, progress=progress, on_report=lambda told: rows.append(told.metrics["safety/calibration_error"]))
    steps = torch.arange(15.0).unsqueeze(1)  # before the step of this number, from 0
    obs = learner.policy.normalizer((steps / 10).expand(-1, 3))
    assert learner.policy.gate is not None
    risk = learner.policy.gate.risk(obs, torch.zeros(15, 1))
    expected = torch.where(steps[:, 0] <= 5, 0.8 ** (5 - steps[:, 0]), 0.0)
    assert (risk - expected).abs().max() < 0.06
    assert rows[-1] < 0.05


def test_the_recovery_actor_learns_the_action_of_least_risk() -> None:
    learner = agent("ppo", fallback="recovery", num_updates=150, learning_rate=0.01)
    critic, gate = learner.safety_critic, learner.policy.gate
    ended = torch.ones(8, dtype=torch.bool)
    for _ in range(60):
        obs, action = torch.randn(8, 2), 2 * torch.rand(8, 2) - 1
        signals = {"cost": (action[:, 0] > 0.3 * action[:, 1]).float()}
        critic.record({"policy": obs}, action, Step({}, torch.zeros(8), ended, ~ended, None, {}, None, signals))
    critic.improve()
    obs = torch.randn(50, 2)
    assert (gate.recover(obs)[:, 0] < -0.5).all()
    assert gate.risk(obs, torch.tensor([0.8, 0.0]).expand(50, 2)).min() > 0.8  # the episode ends, and nothing follows
    assert gate.risk(obs, torch.tensor([-0.8, 0.0]).expand(50, 2)).max() < 0.2


def filled(kind: str = "ppo", steps: int = 30, **changes: Any) -> Any:
    """An agent whose ring tells row and env of each step; that of env 2 was cut, broken and terminated meanwhile."""
    learner = agent(kind, 4, buffer_size=4 * 50, **changes)
    critic = learner.safety_critic
    no = torch.zeros(4, dtype=torch.bool)
    for t in range(steps):
        here = torch.tensor([False, False, True, False])
        place = torch.stack([torch.full((4,), float(t)), torch.arange(4.0)], 1)
        terminated, truncated = here if t == 20 else no, here if t == 10 else no
        cost = torch.where(here & (t in (10, 20)), 1.0, 0.0)
        cost = cost.where(~(here & (t == 15)), torch.nan)
        step = Step({}, torch.full((4,), 5.0), terminated, truncated, None, {}, None, {"cost": cost})
        found = critic.record({"policy": place}, place, step)
    assert found is not None
    return learner


def test_what_it_learns_from() -> None:
    """Never of held-out envs, nor of the latest row, which nothing follows yet; steps before time-outs do not count."""
    learner = filled()
    learner.policy.normalizer = torch.nn.Identity()
    samples = learner.safety_critic._draw(4000)
    row, env = samples.obs.unbind(1)
    assert set(env.tolist()) == {0, 1, 2} and set(row.tolist()) == set(range(29))
    broken = (env == 2) & (row == 15)  # stored as zeros
    assert not broken.any()
    number = {(int(t), int(n)): i for i, (t, n) in enumerate(samples.obs.tolist())}
    for (t, n), i in number.items():
        if (t, n) != (0, 0):  # or the zeros of the broken one
            assert samples.next_obs[i].tolist() == ([0, 0] if (t, n) == (14, 2) else [t + 1, n])
            assert samples.weight[i] == ((t, n) not in [(10, 2), (14, 2)])
            assert samples.violation[i] == ((t, n) in [(10, 2), (20, 2)])
            assert bool(samples.terminated[i]) == ((t, n) == (20, 2))
    # What is begun anew does not follow.
    learner.initial_state()
    assert learner.safety_critic.ring.data["cut"][29].all()


def test_the_ring_goes_round() -> None:
    learner = filled(steps=120)  # of 50 rows
    learner.policy.normalizer = torch.nn.Identity()
    samples = learner.safety_critic._draw(2000)
    assert set(samples.obs[:, 0].tolist()) == set(range(70, 119))
    assert torch.equal(samples.next_obs[:, 0], samples.obs[:, 0] + 1)


def test_calibration_tells_how_far_predictions_are_from_what_came() -> None:
    learner = filled(steps=49, horizon=2.0)
    critic = learner.safety_critic
    critic.gate.limit.fill_(0.1)
    for risk, expected in ((0.0, 0.0), (0.25, 0.25), (1.0, 1.0)):
        critic.bins.zero_()
        critic.gate.risk = lambda obs, action, risk=risk: torch.full((len(obs),), risk)
        assert critic._calibrate().item() == pytest.approx(expected)  # env 3 has no violation
        assert critic.bins[0].sum() == 10 and critic.bins[0, min(BINS - 1, int(risk * BINS))] == 10


def test_a_risk_above_the_threshold_costs_reward() -> None:
    learner = agent("ppo", fallback="none", cost_shaping=10.0)
    learner.safety_critic.gate.risk = lambda obs, action: torch.linspace(0, 0.7, 8)
    obs, action = learner.env.reset(1), torch.zeros(8, 2)
    step = learner.env.step(action)
    shaped = learner.safety_critic.record(obs, action, step).reward
    expected = step.reward - 10 * (torch.linspace(0, 0.7, 8) - 0.1).clamp(min=0)
    assert torch.allclose(shaped, expected)


# What algorithms make of it


def test_ppo_does_not_learn_its_policy_from_replaced_actions_but_their_values() -> None:
    learner = agent("ppo", warmup=0, fallback="pose", pose=(0.25,))
    learner.learn(2)
    gate, critic = learner.policy.gate, learner.safety_critic
    gate.logits = lambda obs, action: torch.stack([1e3 * action[:, 0]] * 2)  # right is dangerous
    obs, state, sent = learner.env.reset(3), learner.initial_state(), []
    for _ in range(10):
        action, state = learner.act(obs, state)
        step = learner.env.step(action)
        learner.record(obs, action, state, step)
        sent.append(action.clone())
        obs = step.obs
    done = torch.stack(sent)  # [10, 8, 2]
    replaced = (done == 0.25).all(-1)
    assert 0.2 < replaced.float().mean() < 0.8 and (done[~replaced][:, 0] < 0).all()
    assert torch.equal(critic._latest("action", 10), done)  # what was done is what is learned from
    samples, _ = learner._targets(learner.next_obs)
    assert torch.equal(samples.advantage[0] == 0, replaced.flatten())
    assert (samples.weight == 1).all()
    own = samples.advantage[0][~replaced.flatten()]
    assert abs(own.mean()) < 1e-5 and own.std(correction=0).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("kind", ["sac", "ddpg"])
def test_off_policy_stores_and_learns_from_what_was_done(kind: str) -> None:
    learner = agent(kind, warmup=0, fallback="pose", pose=(0.25,))
    learner.learn(20)
    learner.policy.gate.logits = lambda obs, action: torch.stack([1e3 * action[:, 0]] * 2)
    learner.safety_critic.improve = dict
    learner.learn(25)
    done = learner.replay.action[40:50]
    replaced = (done == 0.25).all(-1)
    assert replaced.any() and (done[~replaced][:, 0] < 0).all()
    assert learner.policy.gate.limit.item() == pytest.approx(0.1)
    if kind == "ddpg":  # which judges what is done, and not what is imagined
        assert learner.target_policy.gate is None


@pytest.mark.parametrize("kind", ["sac", "ddpg"])
def test_values_follow_what_the_gate_lets_pass_and_actors_what_is_their_own(kind: str) -> None:
    learner = agent(kind, fallback="pose", pose=(-0.25,))
    gate, critic, obs = learner.policy.gate, learner.safety_critic, torch.zeros(4, 2)
    action = torch.tensor([[-0.5, 0.1], [0.5, 0.2], [-0.1, 0.3], [0.9, 0.4]])
    gate.logits = lambda obs, action: torch.stack([1e3 * action[:, 0]] * 2)  # right is dangerous
    assert torch.equal(critic.followed(obs, obs, action), action)  # it has not begun to act
    assert critic.counted(obs, action, torch.ones(4)).tolist() == [1, 1, 1, 1]
    gate.limit.fill_(0.1)
    expected = torch.where(action[:, :1] > 0, -0.25, action)
    assert torch.equal(critic.followed(obs, obs, action), expected)
    assert critic.counted(obs, action, torch.ones(4)).tolist() == [2, 0, 2, 0]
    assert critic.counted(obs[:2], action[1::2], torch.ones(2)).tolist() == [0, 0]
    gate.logits = lambda obs, action: torch.stack([5 * action[:, 0] - 1, 4 * action[:, 0] - 2])
    risk = torch.sigmoid(5 * action[:, 0] - 1)
    danger = torch.where(risk > 0.1, -(1 - risk).log(), 0.0).mean()
    assert critic.with_danger(torch.tensor(2.0), obs, action).item() == pytest.approx(2 + danger.item(), rel=1e-5)
    # Both are what a gradient step asks for.
    asked: list[str] = []

    def ask(name: str) -> Any:
        def answer(vectors: Tensor, other: Tensor, third: Tensor) -> Tensor:
            asked.append(name)
            return third

        return answer

    critic.followed, critic.counted = ask("followed"), ask("counted")
    critic.improve = dict
    learner.learn(10)
    assert asked and asked[:2] == ["followed", "counted"]


@pytest.mark.parametrize("kind", ["ppo", "sac", "ddpg"])
def test_no_optimizer_of_the_policy_has_the_gate(kind: str) -> None:
    learner = agent(kind)
    ours = {id(p) for p in learner.policy.gate.parameters()}
    optimizers = learner.optimizers if kind == "ppo" else [learner.actor_optimizer, learner.critic_optimizer]
    assert ours and not any(id(p) in ours for optimizer in optimizers for p in optimizer.parameters)
    before = copy.deepcopy(learner.policy.gate.state_dict())
    learner.learn(8)
    assert any(not torch.equal(value, before[name]) for name, value in learner.policy.gate.state_dict().items())


@pytest.mark.parametrize("kind", ["ppo", "sac", "ddpg"])
def test_without_a_threshold_there_is_nothing(kind: str) -> None:
    learner = agent(kind, threshold=None, costs=None)
    learner.learn(8)
    assert learner.policy.gate is None and learner.state_dict()["safety_critic"] == {}
    assert not any("gate" in name for name in learner.policy.state_dict())


@pytest.mark.parametrize(("kind", "fallback"), [("ppo", "candidates"), ("sac", "candidates"), ("ddpg", "recovery")])
def test_a_resumed_run_goes_on_bitwise(kind: str, fallback: Any) -> None:
    rows: list[dict[str, float]] = []

    def keep(report: Any) -> None:
        rows.append({name: value for name, value in report.metrics.items() if not name.startswith("time/")})

    whole = agent(kind, fallback=fallback, warmup=4)
    whole.learn(16, on_report=keep)
    first = agent(kind, fallback=fallback, warmup=4)
    content = copy.deepcopy(snapshot(first.env, first, first.learn(9, on_report=keep)))
    second = agent(kind, seed=7, fallback=fallback, warmup=4)
    progress, exact = resume(second.env, second, content)
    second.learn(16, progress=progress, on_report=keep)
    assert exact and rows[:16] == rows[16:]
    assert "safety/gate_share" in rows[-1] and whole.policy.gate.limit.item() == pytest.approx(0.1)
    for name, value in whole.policy.state_dict().items():
        assert torch.equal(value, second.policy.state_dict()[name])


@pytest.mark.gpu
@pytest.mark.parametrize("fallback", ["candidates", "recovery"])
@pytest.mark.parametrize("kind", ["ppo", "sac"])
def test_graphs_equal_what_is_written(kind: str, fallback: Any) -> None:
    results = []
    for mode in ("graph", "eager"):
        learner = agent(kind, 16, device="cuda", mode=mode, fallback=fallback, warmup=20)
        learner.learn(100)
        results.append(leaves(learner.state_dict()))
    assert learner.policy.gate.limit < 1
    for graph, eager in zip(*results, strict=True):
        assert torch.equal(graph, eager) if isinstance(graph, Tensor) else graph == eager


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["ppo", "sac"])
def test_nothing_waits_for_the_device(kind: str) -> None:
    learner = agent(kind, 16, device="cuda", warmup=4)
    obs = learner.learn(50).obs
    check_that_nothing_waits(learner, obs, 20)


# Where it travels


@pytest.fixture(scope="module")
def trained() -> Any:
    """PPO that heads for the disc, with a gate that acts in some steps."""
    learner = agent("ppo", 32, fallback="candidates", num_updates=16, warmup=0)
    learner.learn(8)
    gate, obs = learner.policy.gate, learner.recording()["policy"].flatten(0, 1)
    with torch.no_grad():
        threshold = round(learner.policy.judged({"policy": obs})[0].risk.median().item(), 3)
    gate.config = dataclasses.replace(gate.config, threshold=threshold)
    gate.limit.fill_(threshold)
    return learner


@torch.no_grad()
@pytest.mark.parametrize("dynamic", [False, True])
def test_file_and_policy_take_over_in_the_same_steps(trained: Any, tmp_path: Path, dynamic: bool) -> None:
    path, policy = tmp_path / "policy.onnx", trained.policy
    report = export_onnx(policy, spec_of(trained.env), path, recording=trained.recording(), dynamic_batch=dynamic)
    assert report.parity.passed and read_metadata(path)["gate"]["threshold"] == policy.gate.threshold
    env = Detour(16, seed=5)
    live, file, runner = Controller(policy, env), Controller(OnnxPolicy(path), env), OnnxPolicy(path)
    obs, both = env.reset(5), []
    for _ in range(80):
        action = live.act(obs)
        assert torch.allclose(file.act(obs), action, atol=1e-5)
        assert live.acted is not None and file.acted is not None and torch.equal(live.acted, file.acted)
        runner(obs["policy"].numpy())
        risk = policy.judged(obs)[0].risk.numpy()
        assert runner.risk is not None and np.allclose(runner.risk, risk, atol=1e-5)
        both.append(live.acted)
        obs = env.step(action).obs
    assert 0.02 < torch.stack(both).float().mean() < 0.98


def test_the_bare_policy_is_exported_where_that_is_asked_for(trained: Any, tmp_path: Path) -> None:
    path, spec = tmp_path / "policy.onnx", spec_of(trained.env)
    report = export_onnx(trained.policy, spec, path, recording=trained.recording(), gate=False)
    assert report.metadata["gate"] == "left out" and any("nothing keeps the file" in note for note in report.notes)
    runner, obs = OnnxPolicy(path), Detour(16).reset(3)["policy"]
    actions = runner(obs.numpy())
    assert runner.risk is None and not runner.acted.any() and "risk" not in read_metadata(path)["outputs"]
    distribution = trained.policy.output_of(trained.policy.normalizer(obs))
    assert np.allclose(actions, trained.policy.limit(distribution.mode).detach().numpy(), atol=1e-5)
    assert trained.policy.gate is not None  # which is left as it was
    with pytest.raises(ExportError, match="no output 'risk', and the policy a gate"):
        verify(path, trained.policy, trained.recording())


def test_a_gate_that_waits_is_told_of(trained: Any, tmp_path: Path) -> None:
    policy = copy.deepcopy(trained.policy)
    policy.gate.limit.fill_(OPEN)
    report = export_onnx(policy, spec_of(trained.env), tmp_path / "policy.onnx", recording=trained.recording())
    assert any("had not begun to act" in note for note in report.notes)
    runner = OnnxPolicy(tmp_path / "policy.onnx")
    runner(np.array([0.0, 0.0], np.float32))
    assert runner.risk is not None and runner.threshold is None and not runner.acted


def test_evaluation_counts_violations_and_takeovers(trained: Any) -> None:
    env, policy = Detour(20, seed=2), trained.policy
    found = evaluate(env, policy, 4, violations={"cost": 0.0, "none of the env's": 0.0})
    assert found.violations is not None and found.takeovers is not None
    assert torch.equal(found.violations, found.signals["cost"])
    controller, obs, acted = Controller(policy, env), env.reset(4), torch.zeros(20)
    for _ in range(80):
        action = controller.act(obs)
        assert controller.acted is not None
        acted += controller.acted
        obs = env.step(action).obs
    assert torch.equal(found.takeovers, acted.double())
    record = found.as_dict()
    assert record["gate_share"] == pytest.approx(acted.sum().item() / 1600)
    assert record["violation_share_ci95"][0] <= record["violation_share"] <= record["violation_share_ci95"][1]
    assert "the gate acted in" in found.summary() and "violations in" in found.summary()
    bare = copy.deepcopy(policy)
    bare.gate = None
    without = evaluate(env, bare, 4)
    assert without.takeovers is None and without.violations is None and "gate_share" not in without.as_dict()


def test_the_interval_of_a_share_covers_it_as_often_as_it_says() -> None:
    """Shares that differ between episodes of different lengths: 2,000 times 30 episodes, 95 % of intervals cover it."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        lengths = generator.integers(50, 150, 30)
        counts = generator.binomial(lengths, generator.beta(2, 6, 30))
        _, low, high = ratio_interval(torch.tensor(counts).double(), torch.tensor(lengths))
        covered += low <= 0.25 <= high
    assert 0.92 < covered / 2000 < 0.97


def test_frames_in_which_the_gate_acts_have_a_border(trained: Any) -> None:
    acted: list[int] = []
    pictures = list(frames(Detour(1, seed=1), trained.policy, 24, 1, 0.05, takeovers=acted))
    red = [i for i, picture in enumerate(pictures) if (picture[0, 0] == (214, 39, 40)).all()]
    assert red == acted and 0 < len(red) < 24


# Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": 1.0}, "threshold: 1.0 is not possible; set a number between 0 and 1"),
        ({"horizon": 0.5}, "horizon: 0.5 is not possible; set at least 1"),
        ({"costs": ()}, "costs: () is not possible; name signals|costs: .* name one signal or more"),
        ({"threshold": None}, "threshold: None is not possible; other settings of the gate need one"),
        (
            {"threshold": None, "costs": None, "fallback": "pose"},
            "threshold: None .* other settings of the gate need one",
        ),
        ({"held_out": 1.0}, "held_out: 1.0 is not possible"),
        ({"tau": 0.0}, "tau: 0.0 is not possible"),
        ({"num_around": -1}, "num_around: -1 is not possible; set 0 or more"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        safety(**changes)


def test_what_does_not_fit_the_env_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"safety\.gate\.pose: \(1\.0, 2\.0, 3\.0\) .* give 1 or 2 numbers"):
        agent("ppo", pose=(1.0, 2.0, 3.0))
    with pytest.raises(ConfigError, match=r"agent\.safety\.gate\.costs: the env gives no signal 'costs'; did you mean"):
        agent("sac", costs=("costs",))
    with pytest.raises(ConfigError, match=r"safety\.gate\.costs: none is named, nor in safety\.costs"):
        agent("ppo", costs=None)
    with pytest.raises(ConfigError, match=r"safety\.gate\.threshold: 0\.1 .* choices have no gate"):
        PPO(CartPole(4), PPOConfig(safety=safety()), seed=1)


def test_costs_with_a_limit_of_every_step_are_violations_above_it() -> None:
    costs = {"speed": CostConfig(limit=2.0, kind="per_step"), "cost": CostConfig(limit=25.0)}
    config = SafetyConfig(costs=costs, gate=GateConfig(threshold=0.1))
    assert config.violations == {"speed": 2.0, "cost": 0.0}
    named = dataclasses.replace(config, gate=GateConfig(threshold=0.1, costs=("speed", "other")))
    assert named.violations == {"speed": 2.0, "other": 0.0}
    again = from_dict(PPOConfig, {"safety": {"gate": {"threshold": "0.1", "costs": ["cost"], "horizon": 4}}}).safety
    assert again.violations == {"cost": 0.0} and again.gate.gamma == pytest.approx(0.75)
