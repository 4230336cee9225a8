"""MAML: its gradient against finite differences, and its parts against plain references."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from rlcore.adaptation import advantages, joined, surrogate
from rlcore.config import ConfigError
from rlcore.envs import make_env
from rlcore.learn import learn, resume, snapshot
from rlcore.maml import MAML, MAMLConfig
from rlcore.networks import NetworkConfig
from rlcore.types import Step

SMALL = MAMLConfig(
    actor=NetworkConfig(hidden_dims=(8, 6), activation="tanh"),
    num_tasks=3,
    adapt_steps=2,
    num_epochs=1,
    step_size=0.3,
)


def agent_on(
    device: str | torch.device = "cpu", config: MAMLConfig = SMALL, num_envs: int = 12, task: str = "Navigation-2D",
    **options: Any,
) -> MAML:  # fmt: skip
    env = make_env(task, num_envs, device, seed=1, **{"max_episode_length": 7, **options})
    return MAML(env, config, seed=1)


def collect(agent: MAML) -> None:
    """A full rollout."""
    obs = agent.env.reset(1)
    agent.initial_state()
    for _ in range(agent.num_steps):
        action, _ = agent.act(obs, ())
        step = agent.renew(agent.env.step(action))
        agent.record(obs, action, (), step)
        obs = step.obs


def in_double(agent: MAML) -> Any:
    """The samples of a rollout, and the agent's parameters, with 15 digits; away from those that collected it."""
    samples = agent._samples(agent._by_task(lambda x: x))
    agent.policy.double()
    agent.step_sizes.data = agent.step_sizes.data.double()
    agent.context.data = agent.context.data.double()
    agent.weights = agent.weights.double()
    with torch.no_grad():
        for parameter in agent.network.parameters:
            parameter.add_(0.02 * torch.randn_like(parameter))
        agent.step_sizes.mul_(1 + 0.3 * torch.rand_like(agent.step_sizes))
    old = type(samples.old)(*(part.double() for part in samples.old))
    tensors: dict[str, Any] = {
        k: x.double() for k, x in samples._asdict().items() if isinstance(x, Tensor) and x.is_floating_point()
    }
    return samples._replace(**tensors, old=old)


def slope_and_difference(agent: MAML, samples: Any, seed: int) -> tuple[float, float]:
    """The loss's derivative along a random direction: by its gradient, and by central differences."""
    leaves = [*agent.network.parameters, agent.step_sizes, *([agent.context] if agent.config.context_size else [])]
    generator = torch.Generator().manual_seed(seed)
    ways = [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.device) for p in leaves]
    gradients = torch.autograd.grad(agent.meta_loss(samples)[0], leaves)
    slope = sum(float((g * way).sum()) for g, way in zip(gradients, ways, strict=True))
    ends = []
    for sign in (1e-5, -1e-5):
        for p, way in zip(leaves, ways, strict=True):
            p.data += sign * way
        ends.append(float(agent.meta_loss(samples)[0].detach()))
        for p, way in zip(leaves, ways, strict=True):
            p.data -= sign * way
    return slope, (ends[0] - ends[1]) / 2e-5


@pytest.mark.parametrize("context", [0, 2])
def test_meta_gradient_is_that_of_finite_differences(device: torch.device, context: int) -> None:
    agent = agent_on(device, replace(SMALL, context_size=context))
    collect(agent)
    samples = in_double(agent)
    for seed in range(5):
        slope, difference = slope_and_difference(agent, samples, seed)
        assert slope == pytest.approx(difference, rel=1e-3, abs=1e-9)


def test_first_order_gradient_is_another() -> None:
    agent = agent_on()
    collect(agent)
    samples = in_double(agent)
    agent.config = replace(agent.config, first_order=True)
    pairs = [slope_and_difference(agent, samples, seed) for seed in range(5)]
    assert any(abs(slope - difference) > 0.01 * abs(difference) for slope, difference in pairs)


def test_meta_loss_is_that_of_a_loop_over_tasks() -> None:
    agent = agent_on()
    collect(agent)
    samples = in_double(agent)
    policy = agent.policy
    names = {id(p): name for name, p in policy.named_parameters()}
    order = [names[id(p)] for p in agent.network.parameters]

    def log_prob(parameters: list[Tensor], part: Any, task: int) -> Tensor:
        hidden = {
            n.removeprefix("trunk.mlp."): p for n, p in zip(order, parameters, strict=True) if n.startswith("trunk")
        }
        features = functional_call(policy.trunk.mlp, hidden, (part.actor_obs[task],))
        head = {n.partition(".")[2]: p for n, p in zip(order, parameters, strict=True) if n.startswith("head")}
        linear = {n.partition(".")[2]: p for n, p in head.items() if n.startswith("linear")}
        output = functional_call(policy.head.linear, linear, (features,))
        found: Tensor = functional_call(policy.head, {"raw_std": head["raw_std"]}, (output,)).log_prob(
            part.action[task]
        )
        return found

    total = 0.0
    weights = np.linspace(SMALL.early_weight, 1.0, 3)
    for task in range(SMALL.num_tasks):
        parameters = [p.clone() for p in agent.network.parameters]
        for k, weight in enumerate(weights / weights.sum()):
            part = samples._replace(**{n: x[k] for n, x in samples._asdict().items() if isinstance(x, Tensor)})
            ratio = (log_prob(parameters, part, task) - part.log_prob[task]).exp()
            advantage = part.advantage[task]
            clipped = ratio.clamp(1 - SMALL.clip_range, 1 + SMALL.clip_range)
            total += weight * -torch.minimum(ratio * advantage, clipped * advantage).mean().item() / SMALL.num_tasks
            if k < SMALL.adapt_steps:
                slopes = torch.autograd.grad(-(ratio * advantage).mean(), parameters)
                sizes = agent.step_sizes[k]
                parameters = [
                    (p - a * g).detach().requires_grad_() for p, a, g in zip(parameters, sizes, slopes, strict=True)
                ]
    assert agent.meta_loss(samples)[0].item() == pytest.approx(total, rel=1e-6)  # weights are float32


def test_a_context_is_an_input_that_takes_steps() -> None:
    # The same written out: an input c [M, C] adapts, and its columns W in the first layer do not.
    agent = agent_on(config=replace(SMALL, context_size=2))
    collect(agent)
    samples = in_double(agent)
    columns, sizes, network = agent.context.detach(), agent.step_sizes.detach(), agent.network
    assert sizes.shape == (2, len(network.parameters) + 1)
    own = [p.detach().expand(SMALL.num_tasks, *p.shape) for p in network.parameters]
    context, found = torch.zeros(SMALL.num_tasks, 2, dtype=torch.float64), own
    for k in range(SMALL.adapt_steps):
        part = samples._replace(**{n: x[k] for n, x in samples._asdict().items() if isinstance(x, Tensor)})
        found = agent._stepped(found, sizes[k], part, False)
        leaves = [p.detach().requires_grad_() for p in (*own, context)]
        *parameters, read = leaves
        parameters[1] = parameters[1] + read @ columns.t()
        loss = surrogate(network(parameters, part.actor_obs), part).sum()
        slopes = torch.autograd.grad(loss, leaves)
        *own, context = [(p - a * g).detach() for p, a, g in zip(leaves, sizes[k], slopes, strict=True)]
    own[1] = own[1] + context @ columns.t()
    assert context.abs().min() > 1e-4
    for one, two in zip(found, own, strict=True):
        torch.testing.assert_close(one, two)


def test_second_derivative_of_the_surrogate_is_that_of_expected_return() -> None:
    # A bandit with reward r(a) and a normal of mean m: J(m) = E[r]. For r = -a^2 the second derivative is -2. The
    # logarithm in place of the ratio would give E[r d^2 log p / dm^2] = -E[r] / s^2 alone.
    torch.manual_seed(0)
    std, number = 0.8, 2_000_000
    action = 0.3 + std * torch.randn(number, dtype=torch.float64)
    reward = -action.square() + 0.3**2 + std**2  # less its mean
    mean = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def log_prob(x: Tensor) -> Tensor:
        return -0.5 * ((x - mean) / std).square()

    class One:
        def log_prob(self, action: Tensor) -> Tensor:
            return log_prob(action)

    samples: Any = type("", (), {})()
    samples.action, samples.log_prob = action[None], log_prob(action).detach()[None]
    samples.advantage, samples.weight = reward[None], torch.ones(1, number, dtype=torch.float64)
    (first,) = torch.autograd.grad(-surrogate(One(), samples).sum(), mean, create_graph=True)  # type: ignore[arg-type]
    (second,) = torch.autograd.grad(first, mean)
    assert first.item() == pytest.approx(-2 * 0.3, abs=0.01)
    assert second.item() == pytest.approx(-2.0, abs=0.03)


def test_advantages_are_those_of_a_plain_reference() -> None:
    torch.manual_seed(1)
    H, K, M, R, O = 9, 2, 2, 3, 2  # noqa: E741
    obs, reward = torch.randn(H, K, M, R, O), torch.randn(H, K, M, R)
    done, learned = torch.rand(H, K, M, R) < 0.2, torch.rand(H, K, M, R) < 0.9
    reward = reward.where(learned, 0.0)
    gamma, factor = 0.9, 0.7
    found, weight = advantages(obs, reward, done, learned, gamma, factor)
    for k in range(K):
        for m in range(M):
            x, targets, rows = [], [], []
            for t in range(H):
                for r in range(R):
                    o, time = obs[t, k, m, r].double().numpy(), t / (H - 1)
                    x.append([*o, *o**2, time, time**2, time**3, 1.0])
                    value, discount = 0.0, 1.0
                    for s in range(t, H):
                        value += discount * float(reward[s, k, m, r])
                        discount *= gamma
                        if done[s, k, m, r]:
                            break
                    targets.append(value)
                    rows.append(float(learned[t, k, m, r]))
            a, b, w = np.array(x), np.array(targets), np.array(rows)
            ridge = 1e-5 * len(a) * np.eye(a.shape[1])
            values = (a @ np.linalg.solve((a.T * w) @ a + ridge, (a.T * w) @ b)).reshape(H, R)
            want = np.zeros((H, R))
            for r in range(R):
                tail = 0.0
                for t in reversed(range(H)):
                    over = t == H - 1 or bool(done[t, k, m, r])
                    delta = float(reward[t, k, m, r]) + (0.0 if over else gamma * values[t + 1, r]) - values[t, r]
                    tail = delta + (0.0 if over else gamma * factor * tail)
                    want[t, r] = tail
            flat, share = want.reshape(-1), w / w.mean()
            mean = (share * flat).mean()
            flat = (flat - mean) / np.sqrt((share * (flat - mean) ** 2).mean())
            np.testing.assert_allclose(found[k, m].numpy(), flat, rtol=2e-4, atol=2e-5)
            np.testing.assert_allclose(weight[k, m].numpy(), share, rtol=1e-6)


def test_samples_of_a_task_are_its_own() -> None:
    x = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    y = joined(x)
    assert y.shape == (3, 4, 10)
    assert y[1, 2].tolist() == [*x[0, 1, 2].tolist(), *x[1, 1, 2].tolist()]


def test_a_task_adapts_by_what_its_own_rows_met(device: torch.device) -> None:
    other, again = agent_on(device), agent_on(device)

    def rewarded(step: Step) -> Step:
        reward = step.reward.clone()
        reward[:4] += torch.linspace(0.0, 1.0, 4, device=reward.device)
        return step._replace(reward=reward)

    def first_part(agent: MAML, change: Callable[[Step], Step]) -> list[Tensor]:
        obs = agent.env.reset(1)
        agent.initial_state()
        torch.manual_seed(5)
        for _ in range(agent.horizon):
            action, _ = agent.act(obs, ())
            step = agent.renew(agent.env.step(action))
            agent.record(obs, action, (), change(step))
            obs = step.obs
        return [p.clone() for p in agent.adapted]

    changed, plain = first_part(other, rewarded), first_part(again, lambda step: step)
    for one, two in zip(changed, plain, strict=True):
        torch.testing.assert_close(one[1:], two[1:], rtol=1e-5, atol=1e-6)
    assert any((one[0] - two[0]).abs().max() > 1e-3 for one, two in zip(changed, plain, strict=True))


def test_adapted_policies_are_those_that_the_meta_loss_comes_to() -> None:
    # At the parameters that collected the rollout the ratios of all of its parts are 1: the chain is the same.
    agent = agent_on()
    collect(agent)
    samples = agent._samples(agent._by_task(lambda x: x))
    loss, metrics = agent.meta_loss(samples)
    assert float(metrics["policy/kl"]) == pytest.approx(0.0, abs=1e-6)
    assert float(metrics["policy/clip_fraction"]) == 0.0
    assert loss.item() == pytest.approx(0.0, abs=1e-5)  # advantages have a mean of 0


def test_parts_begin_with_episodes_and_rollouts_with_tasks() -> None:
    agent = agent_on(config=replace(SMALL, num_steps=4))  # episodes are of 7
    env: Any = agent.env
    obs, seen = env.reset(1), []
    agent.initial_state()
    for _ in range(agent.num_steps):
        seen.append(env.task_values()["goal_x"].clone())
        action, _ = agent.act(obs, ())
        step = agent.renew(env.step(action))
        agent.record(obs, action, (), step)
        obs = step.obs
    done = agent.rollout.data["done"].view(3, 4, 12)
    assert done[:, 3].all() and not done[:, :3].any()
    first = agent.rollout.data["obs"].view(3, 4, 12, 2)
    assert (first[:, 0] == first[:, 0, :1]).all()  # all in the middle
    assert (first[:, 1:, 1:] != first[:, 1:, :1]).any(-1).all()
    assert all(torch.equal(x, seen[0]) for x in seen)
    after = env.task_values()["goal_x"]
    assert (after != seen[0]).all()
    assert (after.view(3, 4) == after.view(3, 4)[:, :1]).all()


@pytest.mark.parametrize("context", [0, 2])
def test_a_run_in_two_halves_is_the_same(device: torch.device, context: int) -> None:
    config = replace(SMALL, context_size=context)

    def run(halves: bool) -> Tensor:
        agent = agent_on(device, config)
        if halves:
            progress = learn(agent.env, agent, 2, seed=3)
            content = snapshot(agent.env, agent, progress)
            agent = agent_on(device, config)
            progress, exact = resume(agent.env, agent, content)
            assert exact
            learn(agent.env, agent, 4, progress=progress)
        else:
            learn(agent.env, agent, 4, seed=3)
        return agent.optimizer.value.clone()

    assert torch.equal(run(True), run(False))


def test_a_state_of_another_number_of_steps_is_refused() -> None:
    state = agent_on().state_dict()
    with pytest.raises(RuntimeError, match="size of tensor"):
        agent_on(config=replace(SMALL, adapt_steps=3)).load_state_dict(state)


def test_the_loop_begins_new_episodes_for_it_and_counts_those_that_it_cut() -> None:
    agent, reports = agent_on(config=replace(SMALL, num_steps=4)), []
    learn(agent.env, agent, 1, seed=1, on_report=reports.append)
    assert agent.rollout.data["done"].view(3, 4, 12).sum((1, 2)).tolist() == [12, 12, 12]
    assert reports[0].metrics["rollout/episodes"] == 36 and reports[0].metrics["rollout/episode_length"] == 4


@pytest.mark.gpu
@pytest.mark.parametrize("context", [0, 2])
def test_graph_equals_eager(caplog: pytest.LogCaptureFixture, context: int) -> None:
    def run(mode: Any) -> tuple[Tensor, list[float]]:
        agent, values = agent_on("cuda", replace(SMALL, mode=mode, context_size=context)), []
        learn(agent.env, agent, 12, seed=3, on_report=lambda report: values.append(report.metrics["adapt/return_2"]))
        return agent.optimizer.value.clone(), values

    (graph, told), (eager, said) = run("graph"), run("eager")
    assert "cannot run as a CUDA graph" not in caplog.text
    torch.testing.assert_close(graph, eager, rtol=1e-5, atol=1e-6)
    assert told == pytest.approx(said, rel=1e-4)


@pytest.mark.parametrize("learned", [True, False])
def test_step_sizes_are_learned_or_stay(learned: bool) -> None:
    agent = agent_on(config=replace(SMALL, learn_step_sizes=learned, first_order=not learned))
    before = [p.detach().clone() for p in agent.network.parameters]
    collect(agent)
    agent.update()
    assert bool((agent.step_sizes != 0.3).any()) == learned
    assert any((p != q).any() for p, q in zip(agent.network.parameters, before, strict=True))


def test_choices_adapt_too() -> None:
    agent = agent_on("cpu", SMALL, 12, "CartPole", **{"randomize.length": True})
    values: list[float] = []
    learn(agent.env, agent, 2, seed=1, on_report=lambda report: values.append(report.metrics["adapt/return_2"]))
    assert all(np.isfinite(values)) and len(values) == 2


def test_a_broken_reward_is_left_out() -> None:
    agent = agent_on()
    obs = agent.env.reset(1)
    agent.initial_state()
    for index in range(agent.num_steps):
        action, _ = agent.act(obs, ())
        step = agent.renew(agent.env.step(action))
        if index == 3:
            step.reward[2] = torch.nan
        agent.record(obs, action, (), step)
        obs = step.obs
    metrics = agent.update()
    assert metrics["rollout/dropped"] == 1
    assert all(p.isfinite().all() for p in agent.adapted) and agent.optimizer.value.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_tasks": 5}, "num_tasks: 5 is not possible; it must divide num_envs, which is 12"),
        ({"adapt_steps": 0}, "adapt_steps: 0 is not possible; set at least 1"),
        ({"critic_obs": ("policy",)}, "critic_obs: .* maml has least squares for a critic"),
        ({"context_size": -1}, "context_size: -1 is not possible; set 0 or more"),
        ({"context_size": 1, "actor": NetworkConfig(hidden_dims=())}, "context_size: 1 .* it goes into a hidden layer"),
        ({"early_weight": 2.0}, "early_weight: 2.0 is not possible"),
        ({"mode": "compile"}, "mode: 'compile' is not possible; maml differentiates twice"),
        ({"actor": NetworkConfig(kind="residual", hidden_dims=(8, 8))}, "actor.kind: 'residual' is not possible"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        agent_on(config=replace(SMALL, **changes))


def test_one_task_is_refused_with_what_could_differ() -> None:
    with pytest.raises(ConfigError, match=r"Pendulum is one task, .* such as --env\.randomize\.mass true"):
        agent_on(task="Pendulum")
    with pytest.raises(ConfigError, match="maml learns from one family"):
        MAML(make_env("tasks:Pendulum+Corner-NE", 12), SMALL)
    images: dict[str, Any] = {"randomize.length": True}
    with pytest.raises(ConfigError, match=r"actor_obs: .* is not possible; CartPole-Pixels: maml adapts what reads"):
        MAML(make_env("CartPole-Pixels", 12, **images), SMALL)
    with pytest.raises(ConfigError, match="it has no parameters"):
        agent_on(task="Corner-NE")
