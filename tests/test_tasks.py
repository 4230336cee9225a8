"""What is of one of several tasks in one policy is what a policy of that task alone has."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlcore import PPO, NetworkConfig, PPOConfig
from rlcore.balance import Balance, TaskReturns, task_moments, trace_rows
from rlcore.config import ConfigError, from_dict
from rlcore.critics import Critic
from rlcore.distributions import Categorical, Gaussian
from rlcore.env import EnvSpec
from rlcore.envs import make_env
from rlcore.learn import learn, resume, snapshot
from rlcore.losses import METRICS, ppo_loss
from rlcore.normalization import RunningNormalizer
from rlcore.policies import ActorPolicy
from rlcore.recurrent import RNNConfig
from rlcore.returns import moments
from rlcore.rollout import Samples
from rlcore.statistics import EpisodeStatistics
from rlcore.tasks import TaskNormalizer, chosen, numbers_of, own_part
from rlcore.types import Step

NET = NetworkConfig(hidden_dims=(16,))
CONFIG = PPOConfig(num_steps=8, num_epochs=2, num_minibatches=4, actor=NET, critic=NET)
MIXED = "tasks:CartPole+Pendulum+Reach-UR5e-JointVel"
SIZES = {"small": 1, "middle": 3, "large": 5}


def spec_of_three() -> EnvSpec:
    """Three tasks of 2, 3 and 4 observations and of 1, 3 and 5 actions, with bounds of their own."""
    tasks = {
        name: EnvSpec(
            task=name,
            observation_sizes={"policy": row + 2},
            discrete=False,
            action_size=size,
            action_low=[-1.0 - row] * size,
            action_high=[3.0 + row] * size,
        )
        for row, (name, size) in enumerate(SIZES.items())
    }
    return EnvSpec(
        task="tasks:small+middle+large",
        observation_sizes={"policy": 4, "task": 3},
        discrete=False,
        action_size=5,
        action_low=[-3.0] * 5,
        action_high=[5.0] * 5,
        tasks=tasks,
    )


def inputs(rows: int = 30) -> tuple[Tensor, Tensor]:
    """Normalized observations ``[N, 4 + 3]`` of tasks in turn, padded, and the task of each row."""
    index = torch.arange(rows) % 3
    obs = torch.randn(rows, 4, dtype=torch.float64)
    obs = obs.masked_fill(torch.arange(4) >= (index + 2).unsqueeze(1), 0.0)
    return torch.cat([obs, torch.nn.functional.one_hot(index, 3).double()], 1), index


def policy(**settings: Any) -> ActorPolicy:
    torch.manual_seed(0)
    made = ActorPolicy(spec_of_three(), PPOConfig(actor=replace(NET, **settings.pop("net", {})), **settings)).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def alone(made: ActorPolicy, normalized: Tensor, k: int) -> Gaussian:
    """What a policy of task k alone, with the same layers and only its own head, makes of its rows."""
    size = list(SIZES.values())[k]
    features = made.trunk.mlp(normalized)
    first = 5 * k if made.config.actor.task_heads else 0
    weight, bias = made.head.linear.weight, made.head.linear.bias
    mean = features @ weight[first : first + size].T + bias[first : first + size]
    if made.config.state_dependent_std:
        wide = 15 if made.config.actor.task_heads else 5
        raw = features @ weight[wide + first : wide + first + size].T + bias[wide + first : wide + first + size]
    else:
        assert made.head.raw_std is not None
        raw = made.head.raw_std[first : first + size]
    std = (made.config.min_std + torch.nn.functional.softplus(raw)).clamp(max=made.config.max_std)
    return Gaussian(mean, std.expand_as(mean))


@pytest.mark.parametrize("heads", [True, False])
@pytest.mark.parametrize("state_dependent_std", [False, True])
def test_density_entropy_and_divergence_are_those_of_the_tasks_own_policies(
    heads: bool, state_dependent_std: bool
) -> None:
    settings = {"state_dependent_std": state_dependent_std, "net": {"task_heads": heads}}
    old, new = policy(**settings), policy(**settings)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    normalized, index = inputs()
    before, after = (p.distribution(normalized)[0] for p in (old, new))
    action = old.sample(before, normalized)
    for k, size in enumerate(SIZES.values()):
        rows = index == k
        one, two = (alone(p, normalized[rows], k) for p in (old, new))
        own = action[rows, :size]
        torch.testing.assert_close(after.log_prob(action)[rows], two.log_prob(own), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(after.entropy()[rows], two.entropy(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(before.kl(after)[rows], one.kl(two), rtol=1e-12, atol=1e-12)  # type: ignore[arg-type]
        assert len(set(own.flatten().tolist())) == own.numel()  # which are drawn
        assert (before.mode[rows, size:] == 0).all()  # and these are not


@pytest.mark.parametrize("heads", [True, False])
def test_the_loss_and_its_gradient_are_the_sum_of_those_of_the_tasks_own_policies(heads: bool) -> None:
    made = policy(net={"task_heads": heads})
    normalized, index = inputs()
    with torch.no_grad():
        old = made.distribution(normalized)[0]
        action = made.sample(old, normalized)
        old = Gaussian(old[0] + 0.1 * (old[0] != 0), old[1])  # so that the ratio is not 1
    number = len(index)
    weight, advantage = torch.rand(number).double(), torch.randn(number).double()
    settings = {"clip_range": 0.2, "value_coef": 0.0, "entropy_coef": 0.1, "clip_value_loss": False}
    zero = torch.zeros(1, number, dtype=torch.float64)

    def samples(rows: Tensor, old: Gaussian, action: Tensor) -> Samples:
        each = zero[:, rows]
        own = Gaussian(old.mean.unsqueeze(0), old.std.unsqueeze(0))
        log_prob = own.log_prob(action.unsqueeze(0))
        columns = (advantage[rows].unsqueeze(0), each, weight[rows].unsqueeze(0))
        return Samples(action.unsqueeze(0), own, log_prob, each, *columns, actor_obs=normalized[rows].unsqueeze(0))

    def gradient(loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, list(made.parameters())))

    everything = torch.arange(number)
    given = samples(everything, old, action)
    loss, metrics = ppo_loss(made.distribution(given.actor_obs)[0], zero, given, **settings)
    expected, parts = torch.zeros(()).double(), dict.fromkeys(METRICS[2:5], 0.0)
    for k, size in enumerate(SIZES.values()):
        rows = (index == k).nonzero().flatten()
        mine = alone(made, normalized[rows].unsqueeze(0), k)
        was = Gaussian(old.mean[rows, :size], old.std[rows, :size])
        part, told = ppo_loss(mine, zero[:, rows], samples(rows, was, action[rows, :size]), **settings)
        expected = expected + part * len(rows) / number
        for name in parts:
            parts[name] += told[name].item() * len(rows) / number
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for name, value in parts.items():
        assert float(metrics[name]) == pytest.approx(value, rel=1e-11, abs=1e-12)
    assert parts["policy/kl"] > 0
    for one, other in zip(gradient(loss), gradient(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_in_float32_nothing_is_left_of_dimensions_that_a_task_does_not_have() -> None:
    made = policy().float()
    normalized = inputs()[0].float()
    distribution = made.distribution(normalized)[0]
    assert isinstance(distribution, Gaussian)
    alone_idle = Gaussian(*(part[0:1, 1:] for part in distribution))  # the smallest task lacks four
    action = made.sample(distribution, normalized)[0:1, 1:]
    assert abs(float(alone_idle.log_prob(action))) < 1e-6
    assert abs(float(alone_idle.entropy())) < 1e-6
    assert float(alone_idle.kl(alone_idle)) == 0


def test_actions_are_scaled_and_cut_off_in_the_units_of_their_task() -> None:
    made = policy(clip_actions=0.5)
    normalized, index = inputs(3)
    raw = torch.full((3, 5), 2.0, dtype=torch.float64)
    limited = made.limit(raw, normalized)
    for k, size in enumerate(SIZES.values()):
        low, high = -1.0 - k, 3.0 + k
        middle, half = (low + high) / 2, (high - low) / 2
        assert limited[k, :size].tolist() == [middle + 0.5 * half] * size
        assert limited[k, size:].tolist() == [0.0] * (5 - size)
    assert index.tolist() == [0, 1, 2]
    smaller = made.limit(0.25 * torch.ones(3, 5).double(), normalized)
    assert smaller[2].tolist() == [1.0 + 0.25 * 4.0] * 5


def test_bounds_that_a_task_scales_itself_are_left_to_it() -> None:
    env = make_env("tasks:Pendulum+Reach-UR5e-JointPos", 4, seed=1)
    made = PPO(env, CONFIG, seed=1).policy
    assert made.tasks is not None
    for k, task in enumerate(("Pendulum", "Reach-UR5e-JointPos")):
        single = PPO(make_env(task, 4, seed=1), CONFIG, seed=1).policy
        size = single.spec.action_size
        scale = torch.ones(size) if single.action_scale is None else single.action_scale
        assert torch.equal(made.tasks.scale[k, :size], scale)
        assert torch.equal(made.tasks.low[k, :size], single.low)
        assert torch.equal(made.tasks.high[k, :size], single.high)


@pytest.mark.parametrize("heads", [True, False])
@pytest.mark.parametrize("signals", [0, 2])
def test_a_value_is_that_of_the_tasks_own_head(heads: bool, signals: int) -> None:
    torch.manual_seed(0)
    config = PPOConfig(actor=NET, critic=replace(NET, task_heads=heads))
    critic = Critic(spec_of_three(), config, ActorPolicy(spec_of_three(), config), signals).double()
    normalized, index = inputs()
    values = critic(normalized)[0].view(30, 1 + signals)
    if signals:
        assert (values[:, 1:] == 0).all()  # where they begin
    features = critic.trunk.mlp(normalized)
    for k in range(3):
        rows = index == k
        column = k * (1 + signals) if heads else 0
        own = features[rows] @ critic.value.weight[column] + critic.value.bias[column]
        torch.testing.assert_close(values[rows, 0], own, rtol=1e-12, atol=1e-12)


def test_choices_of_a_task_are_as_those_of_a_smaller_policy() -> None:
    tasks = {
        name: EnvSpec(task=name, observation_sizes={"policy": 4}, discrete=True, action_size=size)
        for name, size in (("two", 2), ("four", 4))
    }
    spec = EnvSpec(
        task="tasks:two+four", observation_sizes={"policy": 4, "task": 2}, discrete=True, action_size=4, tasks=tasks
    )
    torch.manual_seed(0)
    made = ActorPolicy(spec, PPOConfig(actor=NET)).double()
    index = torch.arange(20) % 2
    normalized = torch.cat([torch.randn(20, 4).double(), torch.nn.functional.one_hot(index, 2).double()], 1)
    distribution = made.distribution(normalized)[0]
    action = made.sample(distribution, normalized)
    features = made.trunk.mlp(normalized)
    for k, size in enumerate((2, 4)):
        rows = index == k
        weight, bias = made.head.linear.weight[4 * k : 4 * k + size], made.head.linear.bias[4 * k : 4 * k + size]
        own = Categorical(torch.log_softmax(features[rows] @ weight.T + bias, -1))
        assert (action[rows] < size).all()
        torch.testing.assert_close(distribution.log_prob(action)[rows], own.log_prob(action[rows]))
        torch.testing.assert_close(distribution.entropy()[rows], own.entropy())


def test_choices_are_cut_from_numbers() -> None:
    two = EnvSpec(task="two", observation_sizes={}, discrete=True, action_size=2)
    three = replace(two, action_size=3)
    both = replace(two, action_size=5, action_parts=[2, 3])
    assert [numbers_of(spec) for spec in (two, three, both)] == [1, 3, 4]
    assert chosen(torch.tensor([[0.1], [-0.1], [0.0]]), two).tolist() == [1, 0, 0]
    assert chosen(torch.tensor([[0.1, 0.3, 0.2], [-1.0, -3.0, -2.0]]), three).tolist() == [1, 0]
    assert chosen(torch.tensor([[0.5, 0.1, 0.3, 0.2]]), both).tolist() == [[1, 1]]


def test_own_part_picks_what_a_loop_picks() -> None:
    wide, index = torch.randn(7, 6), torch.randint(0, 3, (7,))
    task = torch.nn.functional.one_hot(index, 3).float()
    assert torch.equal(
        own_part(wide, task), torch.stack([row.view(3, 2)[k] for row, k in zip(wide, index, strict=True)])
    )
    assert torch.equal(own_part(wide[0], task), wide[0].view(3, 2)[index])


# Statistics


def test_observations_are_normalized_as_if_each_task_were_alone() -> None:
    torch.manual_seed(0)
    joint = TaskNormalizer(3, 2, torch.ones(3, dtype=torch.bool), clip=10.0)
    own = [RunningNormalizer(size, clip=10.0) for size in (2, 3)]
    index = torch.tensor([0, 0, 1, 1, 1])
    task = torch.nn.functional.one_hot(index, 2).float()
    for step in range(30):
        scale = torch.where(index == 0, 100.0, 0.1).unsqueeze(1)
        x = scale * torch.randn(5, 3) + 5 * scale * step / 30
        x[:2, 2] = 0.0  # padding
        if step == 20:
            x[0, 0] = torch.nan
        joint.update(torch.cat([x, task], 1))
        own[0].update(x[:2, :2])
        own[1].update(x[2:])
    for k, (size, single) in enumerate(zip((2, 3), own, strict=True)):
        mean, var = joint.statistics_of(k)
        torch.testing.assert_close(mean[:size], single.mean)
        torch.testing.assert_close(var[:size], single.var)
    y, broken = joint.usable(torch.cat([x, task], 1))
    expected = torch.cat([own[0](x[:2, :2]), torch.zeros(2, 1)], 1), own[1](x[2:])
    torch.testing.assert_close(y, torch.cat([torch.cat(expected), task], 1))
    assert torch.equal(joint(torch.cat([x, task], 1)), y)
    assert broken.tolist() == [-1] * 5
    x[3, 1], x[1, 0] = torch.inf, torch.nan
    y, broken = joint.usable(torch.cat([x, task], 1))
    assert broken.tolist() == [-1, 0, -1, 1, -1]
    assert y.isfinite().all()


def test_features_that_are_not_to_be_normalized_have_no_limit() -> None:
    joint = TaskNormalizer(2, 2, torch.tensor([True, False]), clip=1.0)
    x = torch.tensor([[50.0, 50.0, 1.0, 0.0], [50.0, torch.inf, 0.0, 1.0]])
    y, broken = joint.usable(x)
    assert y.tolist() == [[1.0, 50.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0]]
    assert broken.tolist() == [-1, 1]
    assert joint(x)[0].tolist() == [1.0, 50.0, 1.0, 0.0]


def test_returns_are_normalized_by_task() -> None:
    torch.manual_seed(0)
    index = torch.tensor([0, 0, 0, 1])
    joint, own = TaskReturns(index, 2), [RunningNormalizer(1, warmup=10) for _ in range(2)]
    for _ in range(5):
        returns = torch.randn(6, 4) * torch.tensor([100.0, 100.0, 100.0, 0.1]) + 3
        returns[0, 3] = torch.nan
        joint.update(returns.reshape(-1, 1))
        for k, single in enumerate(own):
            single.update(returns[:, index == k].reshape(-1, 1))
    for k, single in enumerate(own):
        part = returns[:, index == k].unsqueeze(-1)
        torch.testing.assert_close(joint(returns.unsqueeze(-1))[:, index == k], single(part), equal_nan=True)
        torch.testing.assert_close(
            joint.inverse(returns.unsqueeze(-1))[:, index == k], single.inverse(part), equal_nan=True
        )


def test_advantages_are_balanced_within_each_task() -> None:
    torch.manual_seed(0)
    index = torch.tensor([0, 1, 1, 0, 1])
    advantages = torch.randn(7, 5, dtype=torch.float64) * torch.where(index == 0, 1000.0, 0.01) + index
    learned = torch.rand(7, 5) > 0.2
    advantages[~learned] = torch.nan
    balance, about = Balance("advantage", index, ("a", "b")), {}
    balanced = balance(advantages, learned, {}, about)
    for k, name in enumerate(("a", "b")):
        rows = index == k
        mean, std = moments(advantages[:, rows], learned[:, rows])
        where = learned[:, rows]
        torch.testing.assert_close(balanced[:, rows][where], ((advantages[:, rows] - mean) / std)[where])
        torch.testing.assert_close(about[f"balance/std_{name}"], std)
    mean, _ = task_moments(advantages, torch.zeros_like(learned), balance.own)
    assert mean.tolist() == [0.0, 0.0]  # and not NaN, where nothing is learned from


def test_tasks_that_fail_weigh_more() -> None:
    index = torch.tensor([0, 1, 2])
    balance = Balance("success", index, ("a", "b", "c"))
    success = torch.full((400, 3), torch.nan)
    success[::2, 0], success[::2, 1] = 1.0, torch.tensor([0.0, 1.0]).repeat(100)  # and the third tells nothing
    advantages, learned = torch.randn(400, 3), torch.ones(400, 3, dtype=torch.bool)
    about: dict[str, Tensor] = {}
    balanced = balance(advantages, learned, {"success": success}, about)
    kept = 0.99**200
    expected = [1 - kept, 0.5 * (1 - kept), 0.0]
    torch.testing.assert_close(balance.success, torch.tensor(expected))
    weights = [max(0.05, 1 - x) for x in expected]
    mean = sum(weights) / 3
    for k, (name, weight) in enumerate(zip("abc", weights, strict=True)):
        assert float(about[f"balance/weight_{name}"]) == pytest.approx(weight / mean, rel=1e-5)
        assert float(balanced[:, k].std(correction=0)) == pytest.approx(weight / mean, rel=1e-4)
    before = balance.success.clone()
    balance(advantages, learned, {}, {})
    assert torch.equal(balance.success, before)


def test_episodes_are_told_by_task() -> None:
    index = torch.tensor([0, 0, 1])
    episodes = EpisodeStatistics(3, torch.device("cpu"), tasks=(index, ("a", "b")))
    ends = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 0, 1]], dtype=torch.bool)
    for t, done in enumerate(ends):
        log: dict[str, Tensor | float] = {
            "success": torch.tensor([1.0, 0.0, 0.0]),
            "num_goals": torch.tensor([1.0, 1.0, 0.0]),
            "b/x": torch.tensor([torch.nan, torch.nan, 7.0 + t]),
        }
        reward = torch.tensor([1.0, 2.0, 10.0])
        episodes.record(Step({}, reward, done, torch.zeros_like(done), None, log))
    means = {name: float(value) for name, value in episodes.read().items()}
    assert means["rollout/episode_return_a"] == (2 + 2) / 2
    assert means["rollout/episode_length_a"] == 1.5
    assert means["rollout/success_a"] == 0.5
    assert means["rollout/episode_return_b"] == (20 + 10) / 2
    assert math.isnan(means["rollout/success_b"])
    assert means["rollout/success"] == 0.5
    assert means["env/b/x"] == 8.5
    assert math.isnan(float(episodes.read()["rollout/episode_return_a"]))


def test_a_task_without_success_does_not_spoil_that_of_others() -> None:
    episodes = EpisodeStatistics(4, torch.device("cpu"), tasks=(torch.tensor([0, 0, 1, 1]), ("a", "b")))
    done = torch.ones(4, dtype=torch.bool)
    success = torch.tensor([1.0, 0.0, torch.nan, torch.nan])
    episodes.record(Step({}, torch.ones(4), done, ~done, None, {"success": success}))
    means = episodes.read()
    assert float(means["rollout/success_a"]) == 0.5 and float(means["rollout/success"]) == 0.5
    assert math.isnan(float(means["rollout/success_b"]))
    alone = EpisodeStatistics(4, torch.device("cpu"))  # nor does one env that of its task
    height = torch.tensor([3.0, torch.nan, 5.0, torch.inf])
    ended = torch.tensor([True, True, True, False])
    log = {"success": success.roll(1), "num_goals": torch.tensor([torch.nan, 3.0, 1.0, torch.nan]), "height": height}
    alone.record(Step({}, torch.ones(4), ended, ~done, None, dict(log)))
    means = alone.read()
    assert float(means["rollout/success"]) == 0.75 and float(means["env/height"]) == 4.0


# Training


def agent_on(task: str, mode: str = "eager", device: str = "cpu", num_envs: int = 16, **settings: Any) -> PPO:
    config = replace(CONFIG, mode=mode, **settings)  # type: ignore[arg-type]
    return PPO(make_env(task, num_envs, device, seed=3), config, seed=3, num_iterations=100)


def flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [x for key in sorted(value) for x in flat(value[key])]
    return [x for part in value for x in flat(part)] if isinstance(value, (list, tuple)) else [value]


GRU = NetworkConfig(hidden_dims=(16,), rnn=RNNConfig(type="gru", hidden_size=8))


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        (MIXED, {"balance": "advantage"}),
        ("tasks:Corner-NE+Memory+CartPole", {"balance": "success"}),
        ("tasks:CartPole+Memory", {"balance": "success", "actor": GRU, "critic": GRU}),
        ("tasks:Corner-NE+Corner-SW", {"normalize_value": True, "share_trunk": True}),
    ],
)
def test_six_iterations_equal_three_and_three_bitwise(task: str, settings: dict[str, Any]) -> None:
    whole = agent_on(task, **settings)
    straight = whole.learn(6)
    first = agent_on(task, **settings)
    content = snapshot(first.env, first, first.learn(3))
    second = agent_on(task, **settings)
    torch.manual_seed(999)
    progress, exact = resume(second.env, second, content)
    assert exact
    halves = learn(second.env, second, 6, progress=progress)
    one, two = flat(whole.state_dict()), flat(second.state_dict())
    assert len(one) == len(two) > 20
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b
    assert torch.equal(straight.episodes.returns, halves.episodes.returns)
    if settings.get("balance") == "success":
        assert second.balance is not None
        assert (second.balance.success > 0).any()


def test_the_first_ratio_is_one() -> None:
    agent = agent_on(MIXED, balance="advantage", num_epochs=1, num_minibatches=1, lr_schedule="constant")
    found: list[float] = []
    agent.learn(3, on_report=lambda report: found.append(report.metrics["policy/kl"]))
    assert max(map(abs, found)) < 1e-6


def test_a_recording_is_of_each_task_in_turn() -> None:
    env = make_env(MIXED, 12, seed=1)
    rows = trace_rows(env, 8)
    assert rows is not None
    assert env.task_index[rows].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]  # type: ignore[attr-defined]
    assert trace_rows(make_env("CartPole", 12), 8) is None
    agent = agent_on(MIXED)
    agent.learn(1)
    assert agent.recording()["task"][0].argmax(-1).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("CartPole", {"balance": "advantage"}, "balance: 'advantage' .*CartPole is one task; set none"),
        (MIXED, {"balance": "success", "normalize_advantage": "none"}, "normalize_advantage.*set batch"),
        (MIXED, {"action_mask": "policy"}, "action_mask.*mask already"),
        (MIXED, {"safety": {"gate": {"threshold": 0.5}}}, "a gate judges one task"),
        (MIXED, {"balance": "advantage", "safety": {"costs": {"x": {"limit": 1.0}}}}, "balance.*set none"),
    ],
)
def test_settings_that_do_not_go_with_tasks_are_refused(task: str, settings: dict[str, Any], message: str) -> None:
    env = make_env(task, 4, seed=1)
    with pytest.raises(ConfigError, match=message):
        PPO(env, from_dict(PPOConfig, {"num_steps": 8} | settings), seed=1)


def test_a_spec_of_tasks_survives_a_checkpoint() -> None:
    spec = spec_of_three()
    assert from_dict(EnvSpec, asdict(spec), "spec") == spec


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("task", "settings"),
    [(MIXED, {"balance": "advantage"}), ("tasks:Corner-NE+Memory+CartPole", {"balance": "success"})],
)
def test_graph_equals_eager(task: str, settings: dict[str, Any]) -> None:
    def train(mode: str) -> PPO:
        agent = agent_on(task, mode, "cuda", 64, precision="fp32", **settings)
        agent.learn(30)
        return agent

    graph, eager = train("graph"), train("eager")
    for one, other in zip(graph.policy.parameters(), eager.policy.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
@pytest.mark.parametrize("capture_env", [None, False])
@pytest.mark.parametrize("task", [MIXED, "tasks:Corner-NE+Memory+CartPole"])
def test_iterations_of_tasks_do_not_synchronize_with_the_host(task: str, capture_env: bool | None) -> None:
    agent = agent_on(task, "graph", "cuda", 64, balance="success")
    progress = agent.learn(5, capture_env=capture_env)
    torch.cuda.set_sync_debug_mode("error")
    try:
        agent.learn(15, progress=progress, on_report=lambda report: None, capture_env=capture_env)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_the_kernels_of_the_loss_know_no_difference() -> None:
    def losses(precision: str, mode: str) -> list[float]:
        found: list[float] = []
        agent = agent_on(MIXED, mode, "cuda", 64, precision=precision, balance="advantage", lr_schedule="constant")
        agent.learn(1, on_report=lambda report: found.append(report.metrics["loss/policy"]))
        agent.learn(2, on_report=lambda report: found.append(report.metrics["policy/entropy"]))
        return found

    torch.testing.assert_close(losses("tf32", "graph"), losses("fp32", "eager"), rtol=0.05, atol=5e-3)
