"""SAC on several tasks: what is of one is what SAC on that task alone has."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_tasks import SIZES, flat, inputs, spec_of_three
from torch import Tensor

from rlcore import SAC, NetworkConfig, SACConfig
from rlcore.config import ConfigError, from_dict
from rlcore.critics import Critics
from rlcore.distributions import tanh_gaussian
from rlcore.envs import make_env
from rlcore.export import OnnxPolicy
from rlcore.learn import learn, resume, snapshot
from rlcore.losses import actor_loss
from rlcore.normalization import ReturnScale
from rlcore.sac import build_policy
from rlcore.squashed_tasks import TaskReturnScale
from rlcore.train.cli import main

NET = NetworkConfig(hidden_dims=(16,), activation="relu")
CONFIG = SACConfig(actor=NET, critic=NET, buffer_size=2048, learning_starts=32, batch_size=24, normalize_obs=True)
MIXED = "tasks:CartPole+Pendulum+Corner-NE"


def actor(heads: bool = True, **settings: Any) -> Any:
    torch.manual_seed(0)
    made = build_policy(spec_of_three(), replace(CONFIG, actor=replace(NET, task_heads=heads), **settings)).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def own_rows(made: Any, features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Mean and log deviation ``[B, A]`` that the layers and the head of task k alone give."""
    size, first = list(SIZES.values())[k], 10 * k if made.tasks.heads else 0
    weight, bias = made.head.weight, made.head.bias
    hidden = made.trunk.mlp(features)
    mean = hidden @ weight[first : first + size].T + bias[first : first + size]
    first += 5
    return mean, hidden @ weight[first : first + size].T + bias[first : first + size]


@pytest.mark.parametrize("heads", [True, False])
def test_actions_densities_and_gradients_are_those_of_the_tasks_own_policies(heads: bool) -> None:
    made = actor(heads)
    features, index = inputs()
    torch.manual_seed(5)
    action, log_prob = made.tasks.sample(made.output(features), features, (-20.0, 2.0))
    torch.manual_seed(5)
    noise = torch.randn(30, 5, dtype=torch.float64)
    expected = torch.zeros(()).double()
    for k, size in enumerate(SIZES.values()):
        rows = index == k
        output = torch.cat(own_rows(made, features[rows], k), -1)
        low, high = -1.0 - k, 3.0 + k
        half = torch.full((size,), (high - low) / 2, dtype=torch.float64)
        own, density = tanh_gaussian(
            output, noise[rows, :size], (-20.0, 2.0), half, torch.full_like(half, (high + low) / 2)
        )
        torch.testing.assert_close(action[rows, :size], own, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(log_prob[rows], density, rtol=0, atol=1e-6)  # logarithms of bounds are float32
        assert (action[rows, size:] == 0).all()
        central = made.squash(output[:, :size].new_zeros(int(rows.sum()), 5), features[rows])
        assert central[:, :size].unique().tolist() == [(high + low) / 2]
        expected = expected + (density + own.sum(1)).sum()
    gradients = (torch.autograd.grad(x, list(made.parameters())) for x in ((log_prob + action.sum(1)).sum(), expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("value_loss", ["mse", "categorical"])
def test_a_critic_says_what_the_head_of_the_task_says(value_loss: Any) -> None:
    torch.manual_seed(0)
    config = replace(CONFIG, value_loss=value_loss, num_atoms=7)
    critics = Critics(spec_of_three(), config, build_policy(spec_of_three(), config)).double()
    features, index = inputs()
    action = torch.randn(30, 5).double()
    output, width = critics.output(features, action), 1 if value_loss == "mse" else 7
    assert output.shape == (2, 30, width)
    for c, (trunk, head) in enumerate(zip(critics.trunks, critics.heads, strict=True)):
        hidden = trunk.mlp(torch.cat([features, action], 1))  # type: ignore[operator, union-attr]
        for k in range(3):
            rows = index == k
            weight, bias = head.weight[width * k : width * (k + 1)], head.bias[width * k : width * (k + 1)]  # type: ignore[index]
            torch.testing.assert_close(output[c, rows], hidden[rows] @ weight.T + bias)


def agent_on(task: str = MIXED, mode: str = "eager", device: str = "cpu", num_envs: int = 12, **settings: Any) -> SAC:
    config = replace(CONFIG, mode=mode, **settings)  # type: ignore[arg-type]
    return SAC(make_env(task, num_envs, device, seed=3), config, seed=3, num_iterations=100)


def test_temperatures_and_their_targets_are_by_task() -> None:
    agent = agent_on("tasks:Pendulum+Corner-NE+CartPole")
    assert agent.log_temperature.shape == (3,)
    # minus the number of actions, and the logarithm of half the width of the bounds: Pendulum's are +-2
    torch.testing.assert_close(agent.target_entropy, torch.tensor([math.log(2.0) - 1, -2.0, -1.0]))
    with torch.no_grad():
        agent.log_temperature.copy_(torch.tensor([0.0, 1.0, 2.0]))
    features = torch.cat([torch.randn(6, 4), torch.eye(3).repeat(2, 1)], 1)
    rows = agent._of_task(agent.log_temperature.exp(), features)
    torch.testing.assert_close(rows, torch.tensor([0.0, 1.0, 2.0]).exp().repeat(2))
    values, weight, log_prob = torch.randn(2, 6), torch.rand(6), torch.randn(6)
    loss, entropy = agent._actor_loss(values, weight, log_prob, rows, features)
    expected = torch.zeros(())
    for k in range(3):
        part = slice(k, None, 3)
        own, spread = actor_loss(values[:, part], weight[part], "min", log_prob[part], torch.tensor(float(k)).exp())
        expected = expected + own / 3
        torch.testing.assert_close(entropy[k], spread / weight[part].mean())
    torch.testing.assert_close(loss, expected)


def test_a_schedule_of_the_target_is_by_task_too() -> None:
    agent = agent_on("tasks:Pendulum+Corner-NE", target_std=0.3, target_std_end=0.05)
    spread = [0.5 * math.log(2 * math.pi * math.e) + math.log(std) for std in (0.3, 0.05)]
    ends = [[math.log(2.0) + x, 2 * x] for x in spread]
    torch.testing.assert_close(agent._targets, torch.tensor(ends))
    agent.learn(3)


def test_rewards_are_scaled_as_if_each_task_were_alone() -> None:
    torch.manual_seed(0)
    index = torch.tensor([0, 1, 1])
    joint, own = TaskReturnScale(index, 2, 0.9, 5.0), [ReturnScale(1, 0.9, 5.0), ReturnScale(2, 0.9, 5.0)]
    for _ in range(300):
        reward = torch.randn(3) * torch.tensor([100.0, 0.1, 0.1]) + index
        done = torch.rand(3) < 0.1
        joint.update(reward, done)
        for k, single in enumerate(own):
            single.update(reward[index == k], done[index == k])
    torch.testing.assert_close(joint(), torch.stack([single() for single in own]))
    task = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    torch.testing.assert_close(joint.divided(torch.ones(2), {"task": task}), 1 / joint()[[1, 0]])


def test_a_batch_has_as_many_of_each_task_as_it_has_envs() -> None:
    agent = agent_on(num_envs=12)
    agent.learn(20)
    drawn = agent.replay.sample(24 * 5, 0.99, 1)
    for batch in drawn.obs["task"].view(5, 24, 3):
        assert batch.sum(0).tolist() == [8.0, 8.0, 8.0]
    policy = drawn.obs["policy"].view(5, 24, -1)
    assert not torch.equal(policy[0], policy[1])


@pytest.mark.parametrize(
    "settings",
    [{"normalize_reward": True}, {"value_loss": "categorical", "center_entropy": True, "num_atoms": 11, "n_step": 3}],
)
def test_forty_iterations_equal_twenty_and_twenty_bitwise(settings: dict[str, Any]) -> None:
    whole = agent_on(**settings)
    whole.learn(40)
    first = agent_on(**settings)
    content = snapshot(first.env, first, first.learn(20))
    second = agent_on(**settings)
    torch.manual_seed(999)
    progress, exact = resume(second.env, second, content)
    assert exact
    learn(second.env, second, 40, progress=progress)
    one, two = flat(whole.state_dict()), flat(second.state_dict())
    assert len(one) == len(two) > 20
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b
    assert len(set(whole.log_temperature.tolist())) == 3


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("tasks:CartPole+Memory", {}, "discrete actions alone"),
        ("tasks:Pendulum+Reach-UR5e-JointPos", {}, "actions of Reach-UR5e-JointPos (have no|reach)"),
        (MIXED, {"action_low": (-1.0,), "action_high": (1.0,)}, "action_low.*bounds of its own"),
        (MIXED, {"target_entropy": -1.0}, "target_entropy.*set target_std"),
        (MIXED, {"safety": {"costs": {"x": {"limit": 1.0}}}}, "limits are for one task"),
    ],
)
def test_what_does_not_go_with_tasks_is_refused(task: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SAC(make_env(task, 4, seed=1), from_dict(SACConfig, settings), seed=1)


@pytest.mark.gpu
@pytest.mark.parametrize("normalize_reward", [False, True])
def test_graph_equals_eager(normalize_reward: bool) -> None:
    def train(mode: str) -> SAC:
        agent = agent_on(mode=mode, device="cuda", num_envs=48, normalize_reward=normalize_reward)
        agent.learn(40)
        return agent

    graph, eager = train("graph"), train("eager")
    for one, other in zip(graph.policy.parameters(), eager.policy.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
def test_iterations_of_tasks_do_not_synchronize_with_the_host() -> None:
    agent = agent_on(mode="graph", device="cuda", num_envs=48, normalize_reward=True)
    progress = agent.learn(10)
    torch.cuda.set_sync_debug_mode("error")
    try:
        agent.learn(25, progress=progress, on_report=lambda report: None)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_run_of_sac_gives_a_file_for_each_task_and_is_measured_by_task(tmp_path: Path) -> None:
    words = "--task CartPole --task Pendulum --algo sac --num-envs 4 --num-iterations 4 --eval-interval 0 --eval-envs 4"
    small = "--agent.learning-starts 8 --agent.batch-size 8 --agent.actor.hidden-dims 8 --agent.critic.hidden-dims 8"
    assert main(["train", *words.split(), *small.split(), "--runs-dir", str(tmp_path), "--no-export"]) == 0
    (run,) = tmp_path.glob("*/sac/*")
    joint = run / "joint.onnx"
    assert main(["export", "--run", str(run), "--output", str(joint)]) == 0
    for row, (name, size) in enumerate({"CartPole": 4, "Pendulum": 3}.items()):
        assert main(["eval", "--run", str(run), "--task", name, "--num-envs", "2"]) == 0
        file = tmp_path / f"{name}.onnx"
        assert main(["export", "--run", str(run), "--for-task", name, "--output", str(file)]) == 0
        one, both = OnnxPolicy(file), OnnxPolicy(joint)
        obs = np.random.default_rng(1).normal(size=(20, size)).astype(np.float32)
        for seen in obs:
            told = np.concatenate([seen, np.zeros(4 - size, np.float32), np.eye(2, dtype=np.float32)[row]])
            number = both(told)[0]
            if name == "CartPole":
                assert one(seen) == (number > 0)
            else:
                np.testing.assert_allclose(one(seen), [number], atol=1e-6)
