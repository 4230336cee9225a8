"""PPO's parts against references written out here, and its behavior at the edges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import gymnasium
import pytest
import torch
from gymnasium import spaces
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode

from rlcore import PPO, ConfigError, NetworkConfig, PPOConfig, Step
from rlcore.capture import tree_map
from rlcore.envs import make_env
from rlcore.envs.null import Null
from rlcore.learn import Report
from rlcore.observations import choose_groups
from rlcore.optimizer import FlatAdam
from rlcore.ppo_config import rate_by_kl
from rlcore.recurrent import RNNConfig, cleared
from rlcore.returns import scaled_reward
from rlcore.rollout import Samples
from rlcore.train.evaluate import evaluate
from rlcore.types import Obs

SMALL = NetworkConfig(hidden_dims=(16, 16), activation="tanh")


class Scripted:
    """Two observation groups, random rewards and ends, continuous or discrete actions."""

    task = "Scripted"
    max_episode_length = 10

    def __init__(self, num_envs: int = 8, discrete: bool = False, final_obs: bool = True, bound: float = math.inf):
        self.num_envs, self.device, self.has_final = num_envs, torch.device("cpu"), final_obs
        self.observation_spaces = {
            "policy": spaces.Box(-math.inf, math.inf, (5,)),
            "critic": spaces.Box(-math.inf, math.inf, (3,)),
        }
        self.action_space: spaces.Space[Any] = spaces.Discrete(4) if discrete else spaces.Box(-bound, bound, (2,))
        self.generator = torch.Generator()

    def _obs(self) -> Obs:
        draw = torch.randn(self.num_envs, 8, generator=self.generator)
        return {"policy": draw[:, :5], "critic": draw[:, 5:]}

    def reset(self, seed: int | None = None) -> Obs:
        self.generator.manual_seed(seed or 0)
        return self._obs()

    def step(self, action: Tensor) -> Step:
        self.last_action = action
        reward = torch.randn(self.num_envs, generator=self.generator)
        ends = torch.rand(2, self.num_envs, generator=self.generator) < 0.1
        return Step(self._obs(), reward, ends[0], ends[1], self._obs() if self.has_final else None, {})

    def close(self) -> None:
        pass


def config(**changes: Any) -> PPOConfig:
    return replace(PPOConfig(num_steps=6, num_epochs=2, num_minibatches=3, actor=SMALL, critic=SMALL), **changes)


def collect(agent: PPO, seed: int = 0) -> list[Step]:
    obs, steps = agent.env.reset(seed), []
    for _ in range(agent.num_steps):
        action, _ = agent.act(obs, ())
        steps.append(agent.env.step(action))
        agent.record(obs, action, (), steps[-1])
        obs = steps[-1].obs
    return steps


def flat(agent: PPO) -> Tensor:
    return torch.cat([optimizer.value for optimizer in agent.optimizers]).clone()


VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "discrete": {},
    "unclipped value": {"clip_value_loss": False},
    "minibatch advantage": {"normalize_advantage": "minibatch"},
    "raw advantage": {"normalize_advantage": "none", "grad_clip": "separate"},
    "normalized value": {"normalize_value": True},
    "shared trunk": {"share_trunk": True, "critic_obs": ("policy",), "grad_clip": "separate"},
    "state-dependent std": {"state_dependent_std": True},
    "bounds loss": {"bounds_loss_coef": 0.1, "bounds_loss_limit": 0.0},
    "target kl": {"target_kl": 0.01, "lr_schedule": "constant"},
    "value time-outs": {"timeout_bootstrap": "value"},
    "no time-outs": {"timeout_bootstrap": "none", "normalize_obs": False, "reward_clip": 0.5},
    "several groups": {"actor_obs": ("policy", "critic"), "critic_obs": ("critic", "policy")},
    "one group normalized": {"actor_obs": ("policy", "critic"), "normalize_obs": ("critic",)},
    "no hidden layers": {"actor": NetworkConfig(hidden_dims=()), "critic": NetworkConfig(hidden_dims=(8,))},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_learns_without_reading_a_tensor_on_the_host(name: str) -> None:
    """On CUDA a host read would stall the device and cannot be captured; here every such read is an error."""

    class NoHostRead(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            assert func not in (
                torch.ops.aten._local_scalar_dense.default,
                torch.ops.aten.nonzero.default,
                torch.ops.aten.masked_select.default,
            ), f"{func} reads from the device"
            return func(*args, **(kwargs or {}))

    agent = PPO(Scripted(discrete=name == "discrete"), config(**VARIANTS[name]), seed=0)
    before = flat(agent)
    with NoHostRead():
        steps = collect(agent)
        metrics = agent.update()
    assert all(torch.isfinite(value) for value in metrics.values()), metrics
    assert not torch.equal(before, flat(agent))
    assert len(steps) == 6


def test_first_minibatch_has_ratio_one_and_no_divergence() -> None:
    """Old log-probabilities must be those of the very distribution that the update starts from."""
    agent = PPO(Scripted(), config(num_epochs=1, num_minibatches=1), seed=0)
    agent.learn(3)
    collect(agent)
    metrics = agent.update()
    assert metrics["policy/kl"].abs() < 1e-6
    assert metrics["policy/clip_fraction"] == 0


@torch.no_grad()
def reference_loss(agent: PPO, sample: Samples) -> Tensor:
    """The loss sample by sample in plain float64 Python."""
    c = agent.config
    total = 0.0
    (mean, std), _ = agent.policy.distribution(sample.actor_obs)
    assert sample.critic_obs is not None
    values, _ = agent.critic(sample.critic_obs)
    mean, std, values = mean[0], std.expand_as(mean)[0], values[0]
    sample = tree_map(sample, lambda x: x[0])
    for i in range(len(values)):
        log_prob = sum(
            -0.5 * ((float(a) - float(m)) / float(s)) ** 2 - math.log(float(s)) - 0.5 * math.log(2 * math.pi)
            for a, m, s in zip(sample.action[i], mean[i], std[i], strict=True)
        )
        ratio, advantage = math.exp(log_prob - float(sample.log_prob[i])), float(sample.advantage[i])
        surrogate = min(ratio * advantage, min(max(ratio, 1 - c.clip_range), 1 + c.clip_range) * advantage)
        value, old, target = float(values[i]), float(sample.value[i]), float(sample.returns[i])
        near = old + min(max(value - old, -c.clip_range), c.clip_range)
        entropy = sum(math.log(float(s)) + 0.5 * math.log(2 * math.pi * math.e) for s in std[i])
        total += -surrogate + c.value_coef * max((value - target) ** 2, (near - target) ** 2) - c.entropy_coef * entropy
    return torch.tensor(total / len(values))


def test_loss_equals_the_formula_written_out() -> None:
    agent = PPO(Scripted(), config(value_coef=0.7, entropy_coef=0.03), seed=0)
    agent.learn(2)
    collect(agent)
    batch, _ = agent._targets(agent.next_obs)
    # Move the policy, so that ratios differ from 1 and some are clipped.
    for p in agent.policy.parameters():
        p.data += 0.1 * torch.randn_like(p)
    expected = reference_loss(agent, batch)
    new = Normal(*(part.detach() for part in agent.policy.distribution(batch.actor_obs)[0]))
    divergence = kl_divergence(Normal(batch.old.mean, batch.old.std), new).sum(-1).mean()
    metrics = agent._minibatch(batch)
    torch.testing.assert_close(metrics["policy/kl"], divergence, rtol=1e-4, atol=1e-6)
    loss = metrics["loss/policy"] + 0.7 * metrics["loss/value"] - 0.03 * metrics["policy/entropy"]
    assert 0.1 < metrics["policy/clip_fraction"] < 1
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("mode", "room"), [("final_obs", None), ("final_obs", 2), ("value", None), ("none", None)])
def test_time_out_modes_bootstrap_from_the_stated_value(mode: str, room: int | None) -> None:
    changes = {"timeout_bootstrap": mode, "normalize_advantage": "none", "gae_lambda": 0.0}
    agent = PPO(Scripted(), config(**changes), seed=0)
    agent.num_timeouts = room or agent.num_timeouts
    for name, value in {"mean": 2.0, "var": 9.0, "count": 1e12}.items():
        getattr(agent.critic.normalizer, name).fill_(value)  # of so many samples that the rollout does not change it
    obs = agent.env.reset(2)
    steps = collect(agent, 2)
    before = [obs, *(step.obs for step in steps)]

    def value_of(obs: Tensor) -> float:
        with torch.no_grad():
            return float(agent.critic(agent.critic.normalizer(obs).view(1, 1, -1))[0])

    batch, _ = agent._targets(agent.next_obs)
    returns = batch.returns.reshape(6, 8)
    seen = 0
    for t, step in enumerate(steps):
        for n in range(8):
            if step.terminated[n]:
                future = 0.0
            elif step.truncated[n]:
                seen += 1
                assert step.final_obs is not None
                value = value_of(before[t]["critic"][n])
                final = value_of(step.final_obs["critic"][n]) if seen <= agent.num_timeouts else value
                known = {"final_obs": final, "value": value}
                future = known.get(mode, 0.0)
            else:
                future = value_of(step.obs["critic"][n])
            assert math.isclose(float(returns[t, n]), float(step.reward[n]) + 0.99 * future, abs_tol=1e-5)
    assert seen > (room or 0)


def test_advantages_are_standardized_over_the_batch_or_the_minibatch_or_not() -> None:
    def prepared(kind: str) -> tuple[PPO, Samples]:
        agent = PPO(Scripted(), config(normalize_advantage=kind), seed=0)
        collect(agent)
        return agent, agent._targets(agent.next_obs)[0]

    raw = prepared("none")[1].advantage
    assert raw.mean().abs() > 0.05
    expected = (raw - raw.mean()) / raw.std(correction=0)
    torch.testing.assert_close(prepared("batch")[1].advantage, expected)
    agent, batch = prepared("minibatch")
    torch.testing.assert_close(batch.advantage, raw)
    part = tree_map(batch, lambda x: x[:, :16])
    moved = part._replace(log_prob=part.log_prob + 0.1 * torch.randn(1, 16))
    standard = (moved.advantage - moved.advantage.mean()) / moved.advantage.std(correction=0)
    loss = agent._evaluate(moved)[1]["loss/policy"]
    torch.testing.assert_close(
        loss, prepared("none")[0]._evaluate(moved._replace(advantage=standard))[1]["loss/policy"]
    )


def test_bounds_loss_adds_the_squared_distance_of_means_beyond_the_limit() -> None:
    losses = []
    for coef in (0.0, 0.5):
        agent = PPO(Scripted(), config(bounds_loss_coef=coef, bounds_loss_limit=0.3), seed=0)
        agent.policy.head.linear.bias.data.copy_(torch.tensor([0.8, -0.2]))
        agent.policy.head.linear.weight.data.zero_()
        collect(agent)
        loss, metrics = agent._evaluate(agent._targets(agent.next_obs)[0])
        losses.append(float(loss.detach()))
    torch.testing.assert_close(metrics["loss/bounds"], torch.tensor((0.8 - 0.3) ** 2))
    assert losses[1] - losses[0] == pytest.approx(0.5 * 0.25, abs=1e-5)


def test_env_without_final_observations_falls_back_to_the_value_and_says_so() -> None:
    agent = PPO(Scripted(final_obs=False), config(), seed=0)
    collect(agent)
    assert agent.timeout_bootstrap == "value"
    agent.update()
    other = PPO(Scripted(), config(), seed=0)
    other.load_state_dict(agent.state_dict())
    assert other.timeout_bootstrap == "value"


def test_learning_rate_follows_the_rule_restated_in_python() -> None:
    agent = PPO(Scripted(), config(lr_min=5e-4, lr_max=5e-3), seed=0)
    rate = 1e-3
    for kl in [0.0, 0.001, 0.004, 0.0049, 0.006, 0.0199, 0.021, 0.5, 0.5, 0.5, 0.001] + [0.001] * 8:
        agent.learning_rate.copy_(rate_by_kl(agent.learning_rate, torch.tensor(kl), agent.config))
        if kl > 0.02:
            rate = max(rate / 1.5, 5e-4)
        elif 0 < kl < 0.005:
            rate = min(rate * 1.5, 5e-3)
        assert math.isclose(float(agent.learning_rate), rate, rel_tol=1e-5)
        assert agent.optimizers[0].learning_rate is agent.learning_rate
    assert rate == 5e-3


def test_linear_schedule_falls_evenly_and_starts_anew_with_a_new_run() -> None:
    agent = PPO(Scripted(), config(lr_schedule="linear", learning_rate=1.0), seed=0)
    rates: list[float] = []
    for _ in range(2):
        agent.learn(4, on_report=lambda report: rates.append(report.metrics["policy/learning_rate"]))
    assert rates == pytest.approx([1.0, 0.75, 0.5, 0.25] * 2)


def test_skipped_minibatches_leave_the_learning_rate() -> None:
    """While nothing moves, the KL stands still; followed again and again it would drive the rate to a bound."""
    agent = PPO(Scripted(), config(), seed=0)
    collect(agent)
    batch, _ = agent._targets(agent.next_obs)
    agent.stopped = torch.zeros((), dtype=torch.bool)
    agent.policy.head.linear.bias.data += 0.02  # a KL that asks for a higher rate
    broken = batch._replace(advantage=torch.full_like(batch.advantage, math.nan))
    assert 0 < agent._minibatch(broken)["policy/kl"] < 0.005
    assert agent.learning_rate == pytest.approx(1e-3)
    agent._minibatch(batch)
    assert agent.learning_rate == pytest.approx(1.5e-3)

    agent = PPO(Scripted(), config(target_kl=1e-3, num_epochs=8, lr_max=100.0), seed=0)
    collect(agent)
    skipped = int(agent.update()["policy/skipped_minibatches"])
    assert 12 < skipped < 24
    assert 1.5 ** -(24 - skipped + 1.5) < agent.learning_rate / 1e-3 < 1.5 ** (24 - skipped + 1.5)


class Broken(Scripted):
    """Env 2 sends NaN (or an infinite reward) in one step of the second rollout and ends its episode in the next."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.count = what, 0

    def step(self, action: Tensor) -> Step:
        step = super().step(action)
        self.count += 1
        if self.count == 9:
            value = step.obs["policy"] if self.what == "observation" else step.reward
            value[2] = math.inf if self.what == "infinite reward" else math.nan
        if self.count == 10:
            step.terminated[2] = True
        return step


MEMORY = replace(SMALL, rnn=RNNConfig(type="lstm", hidden_size=8))


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("observation", {}),
        ("observation", {"critic_obs": ("policy",)}),
        ("observation", {"normalize_obs": False}),
        ("observation", {"actor": MEMORY, "critic": MEMORY, "critic_obs": ("policy",), "num_minibatches": 2}),
        ("reward", {}),
        ("reward", {"normalize_value": True}),
        ("reward", {"normalize_advantage": "minibatch", "reward_clip": 1.0}),
    ],
)
def test_an_env_that_breaks_for_one_step_costs_the_samples_that_depend_on_it(
    what: str, changes: dict[str, Any]
) -> None:
    agent = PPO(Broken(what), config(**changes), seed=0)
    reports: list[Report] = []
    agent.learn(4, on_report=reports.append)
    assert all(report.metrics["policy/skipped_minibatches"] == 0 for report in reports)
    # The step that leads to a broken observation, whose value it needs, and the one that is taken from it.
    assert [report.metrics["rollout/dropped"] for report in reports] == [0, 1 if what == "reward" else 2, 0, 0]
    assert torch.isfinite(flat(agent)).all()
    told = [report.culprits for report in reports]
    assert told[0] == told[2] == told[3] == () and len(told[1]) == 1
    assert ("reward" if what == "reward" else "observation 'policy'[0]") in told[1][0] and ": env 2, once" in told[1][0]


class Sick(Scripted):
    """Numbers that are not finite, or wild, anywhere and at any time."""

    def __init__(self, share: float = 0.03, discrete: bool = False, wild: float = 1e15) -> None:
        super().__init__(16, discrete)
        self.share, self.numbers = share, (math.nan, math.inf, -math.inf, wild)

    def _spoil(self, value: Tensor) -> Tensor:
        broken = torch.rand(value.shape, generator=self.generator) < self.share / value[0].numel()
        choice = torch.randint(4, value.shape, generator=self.generator)
        return torch.where(broken, torch.tensor(self.numbers)[choice], value)

    def step(self, action: Tensor) -> Step:
        assert action.isfinite().all() and (action.dtype == torch.int64 or action.abs().max() < 100)
        step = super().step(action)
        obs, final = ({k: self._spoil(v) for k, v in groups.items()} for groups in (step.obs, step.final_obs or {}))
        return step._replace(obs=obs, reward=self._spoil(step.reward), final_obs=final)


SICK: list[dict[str, Any]] = [
    {},
    {"discrete": True},
    {"normalize_obs": False, "clip_obs": None},
    {"clip_obs": None},
    {"normalize_value": True},
    {"normalize_advantage": "minibatch", "bounds_loss_coef": 0.1, "bounds_loss_limit": 0.1},
    {"critic_obs": ("policy",), "state_dependent_std": True},
    {"actor": MEMORY, "critic": MEMORY, "num_minibatches": 2},
    {"actor": MEMORY, "critic": MEMORY, "sequence_length": 3, "num_minibatches": 2, "burn_in": 1},
    {"timeout_bootstrap": "value"},
]


def sick(changes: dict[str, Any], **env: Any) -> PPO:
    changes = dict(changes)
    return PPO(Sick(discrete=changes.pop("discrete", False), **env), config(**changes), seed=0)


@pytest.mark.parametrize("changes", SICK, ids=lambda changes: " ".join(changes) or "default")
def test_whatever_breaks_learning_goes_on(changes: dict[str, Any]) -> None:
    agent = sick(changes)
    reports: list[Report] = []
    progress = agent.learn(6, on_report=reports.append)
    for report in reports:
        assert report.metrics["policy/skipped_minibatches"] == 0
        assert 0 < report.metrics["rollout/dropped"] < 96 and report.culprits
        assert all(math.isfinite(value) for value in report.metrics.values())
        assert report.metrics["loss/value"] < 1e3
    assert flat(agent).isfinite().all()
    assert all(part.isfinite().all() for part in (*progress.state, *agent.critic_state))
    if agent.config.normalize_obs:
        for normalizer in (agent.policy.normalizer, agent.critic.normalizer):
            torch.testing.assert_close(normalizer.var, torch.ones_like(normalizer.var), rtol=0.5, atol=0)


def rolled_out(agent: PPO) -> tuple[list[Obs], list[Step]]:
    """A rollout: observations, those after it included, and what the env answered."""
    before, state, steps = [agent.env._obs()], agent.initial_state(), []
    for _ in range(agent.num_steps):
        action, state = agent.act(before[-1], state)
        steps.append(agent.env.step(action))
        agent.record(before[-1], action, state, steps[-1])
        state = cleared(state, steps[-1].terminated | steps[-1].truncated) if state else state
        before.append(steps[-1].obs)
    return before, steps


@pytest.mark.parametrize("changes", SICK, ids=lambda changes: " ".join(changes) or "default")
def test_advantages_beside_broken_steps_equal_a_loop(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    agent = sick({**changes, "normalize_advantage": "none", "normalize_value": False}, share=0.1)
    agent.learn(3)
    before, steps = rolled_out(agent)
    unroll, found = agent.critic.unroll, []
    monkeypatch.setattr(agent.critic, "unroll", lambda *args: found.append(unroll(*args)) or found[-1])
    batch, about = agent._targets(agent.next_obs)
    (values, time_outs, _), length = found[0], 6  # [T + 1, N], [T, N]
    limited = agent.config.normalize_obs and agent.config.clip_obs

    def usable(obs: Obs, n: int, read: Sequence[str]) -> bool:
        numbers = torch.cat([obs[group][n] for group in read])
        return bool(numbers.isfinite().all()) and (bool(limited) or float(numbers.abs().max()) < 1e9)

    actor, critic = agent.policy.groups, agent.critic.groups
    advantage = torch.full((length, 16), math.nan)
    for n in range(16):
        delta = []  # by step, None where a number is missing
        for t, step in enumerate(steps):
            sound = usable(before[t], n, actor + critic) and bool(step.reward[n].abs() < 1e6)
            if step.terminated[n]:
                future = 0.0
            elif step.truncated[n]:
                future = float(time_outs[t, n])
                sound &= agent.timeout_bootstrap != "final_obs" or usable(step.final_obs or {}, n, critic)
            else:
                future = float(values[t + 1, n])
                sound &= usable(before[t + 1], n, actor + critic if t + 1 < length else critic)
            delta.append(float(step.reward[n]) + 0.99 * future - float(values[t, n]) if sound else None)
        forgot = False
        for t in range(length):
            if t % agent.length == 0 or (t > 0 and steps[t - 1].terminated[n] | steps[t - 1].truncated[n]):
                forgot = False
            forgot |= agent.recurrent and not usable(before[t], n, actor + critic)
            if delta[t] is None or forgot:
                continue
            total, factor = 0.0, 1.0
            for k in range(t, length):
                if delta[k] is None:
                    break
                total += factor * delta[k]
                factor *= 0.99 * 0.95
                if steps[k].terminated[n] | steps[k].truncated[n]:
                    break
            advantage[t, n] = total
    learned = ~advantage.isnan()
    assert 20 < learned.sum() < 90
    assert about["rollout/dropped"] == 96 - learned.sum()
    torch.testing.assert_close(back(agent, batch.weight), learned * (96 / learned.sum()))
    torch.testing.assert_close(back(agent, batch.advantage)[learned], advantage[learned], rtol=1e-4, atol=1e-4)


def back(agent: PPO, value: Tensor) -> Tensor:
    """Sequences ``[L, S]`` as the rollout ``[T, N]``."""
    return value.view(agent.length, -1, agent.env.num_envs).transpose(0, 1).reshape(-1, agent.env.num_envs)


@pytest.mark.parametrize("changes", SICK, ids=lambda changes: " ".join(changes) or "default")
def test_the_loss_is_that_of_the_samples_that_are_left(changes: dict[str, Any]) -> None:
    agent = sick(changes)
    agent.learn(2)
    rolled_out(agent)
    batch, _ = agent._targets(agent.next_obs)
    for p in (*agent.policy.parameters(), *agent.critic.parameters()):
        p.data += 0.05 * torch.randn_like(p)
    left_out = batch.weight == 0
    assert left_out.any()

    def measured(sample: Samples) -> list[Tensor]:
        agent.optimizers[0].zero_grad()
        loss, metrics = agent._evaluate(sample)
        loss.backward()
        metrics.pop("policy/std", None)  # of all samples
        return [loss.detach(), *metrics.values(), *(p.grad for p in agent.optimizers[0].parameters)]

    other = tree_map(batch, torch.clone)
    for column in (other.advantage, other.returns, other.value, other.log_prob):
        column[left_out] += 0.3
    for one, two in zip(measured(batch), measured(other), strict=True):
        torch.testing.assert_close(one, two)
    if not agent.recurrent:
        some = tree_map(batch, lambda x: x[:, ~left_out[0]])
        some = some._replace(weight=torch.ones_like(some.weight))
        for one, two in zip(measured(batch), measured(some), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


class Hold:
    """A point to hold at zero. Env 5 sends NaN and env 9 sends 1e15, each at a twentieth of its steps, if ``sick``."""

    num_envs, device, max_episode_length = 64, torch.device("cpu"), 50
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, sick: tuple[str, ...]) -> None:
        self.observation_spaces = {"policy": spaces.Box(-math.inf, math.inf, (2,))}
        self.deployment = {"observation_terms": {"policy": [{"name": n, "size": 1} for n in ("place", "speed")]}}
        self.sick, self.generator = sick, torch.Generator().manual_seed(1)

    def reset(self, seed: int | None = None) -> Obs:
        self.x, self.v, self.t = torch.randn(64, 1, generator=self.generator), torch.zeros(64, 1), 0
        return {"policy": torch.cat([self.x, self.v], 1)}

    def _spoil(self, value: Tensor) -> Tensor:
        value, odds = value.clone(), torch.rand(2, generator=self.generator) < 0.05
        for env, number, now in zip((5, 9), (math.nan, 1e15), odds, strict=True):
            if now:
                value[env, -1] = number
        return value

    def step(self, action: Tensor) -> Step:
        assert action.isfinite().all()
        self.v = 0.9 * self.v + 0.1 * action.clamp(-1, 1)
        self.x, self.t = self.x + 0.3 * self.v, self.t + 1
        reward, last = -self.x.abs(), {"policy": torch.cat([self.x, self.v], 1)}
        ends = torch.full((64,), self.t == self.max_episode_length)
        obs = self.reset() if self.t == self.max_episode_length else last
        if "observation" in self.sick:
            obs, last = ({"policy": self._spoil(groups["policy"])} for groups in (obs, last))
        reward = self._spoil(reward) if "reward" in self.sick else reward
        return Step(obs, reward.squeeze(1), torch.zeros_like(ends), ends, last, {})

    def close(self) -> None:
        pass


@pytest.mark.parametrize("memory", [False, True])
def test_two_broken_envs_of_64_leave_the_return(memory: bool) -> None:
    net = NetworkConfig(hidden_dims=(16,), rnn=RNNConfig(type="gru" if memory else "none", hidden_size=16))
    returns, culprits = [], set()
    for sick in ((), ("observation", "reward")):
        agent = PPO(Hold(sick), PPOConfig(num_steps=16, actor=net, critic=net, normalize_value=True), seed=0)
        begin = evaluate(Hold(()), agent.policy, 1).mean_return
        agent.learn(20, on_report=lambda report: culprits.update(report.culprits))
        returns.append(evaluate(Hold(()), agent.policy, 1).mean_return)
    assert begin < 2 * min(returns)
    # With memory, over seeds 0 to 2, a healthy run ends between -5.3 and -5.2, a sick one between -5.2 and -4.9.
    assert returns[1] == pytest.approx(returns[0], abs=1.0)
    text = " ".join(culprits)
    assert "'policy'[1] (speed[0]) is not finite" in text and "the reward is" in text
    assert "env 5" in text and "env 9" in text


def test_without_a_report_what_is_broken_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    agent = PPO(Broken("reward"), config(), seed=0)
    agent.learn(2)
    agent.env.count = 5  # it breaks in the next rollout again
    agent.learn(5)
    said = [record.getMessage() for record in caplog.records if record.name == "rlcore.report"]
    broken = "the reward is not finite, or beyond 10,000 times the usual one"
    broken += " (if that is meant, lower agent.reward_scale): env 2, once"
    assert said == [f"iteration {i}: 1 sample is left out of learning (rollout/dropped); {broken}" for i in (2, 1)]
    caplog.clear()
    PPO(Broken("reward"), config(), seed=0).learn(4, on_report=lambda report: None)
    assert not [record for record in caplog.records if record.name == "rlcore.report"]


def test_a_rollout_that_was_broken_off_leaves_nothing_behind() -> None:
    class Stopped(Scripted):
        def step(self, action: Tensor) -> Step:
            self.count = getattr(self, "count", 0) + 1
            if self.count == 3:
                raise KeyboardInterrupt
            return super().step(action)

    changes = {"actor": MEMORY, "critic": MEMORY, "num_minibatches": 2, "sequence_length": 2}
    agent, fresh = (PPO(env, config(**changes), seed=0) for env in (Stopped(), Scripted()))
    with pytest.raises(KeyboardInterrupt):
        agent.learn(1)
    fresh.load_state_dict(agent.state_dict())
    for one in (agent, fresh):
        torch.manual_seed(1)
        one.learn(1)
    assert torch.equal(flat(agent), flat(fresh))


def test_a_broken_minibatch_is_skipped_and_counted() -> None:
    agent = PPO(Scripted(), config(), seed=0)
    agent.learn(1)
    collect(agent)
    before, moments = flat(agent), [value.clone() for value in agent.optimizers[0].state_dict().values()]
    agent.rollout.data["reward"].fill_(math.nan)
    metrics = agent.update()
    assert torch.equal(before, flat(agent))
    after = agent.optimizers[0].state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(moments, after, strict=True))
    assert metrics["policy/skipped_minibatches"] == 6


def test_target_kl_stops_the_update_and_later_minibatches_change_nothing() -> None:
    agent = PPO(Scripted(), config(target_kl=1e-9, lr_schedule="constant"), seed=0)
    collect(agent)
    before = flat(agent)
    metrics = agent.update()
    # The first minibatch has KL 0 and is taken; all after it exceed the target.
    assert metrics["policy/skipped_minibatches"] == 5
    assert not torch.equal(before, flat(agent))
    one = PPO(Scripted(), config(lr_schedule="constant"), seed=0)
    collect(one)
    batch, _ = one._targets(one.next_obs)
    one.stopped = torch.zeros((), dtype=torch.bool)
    index = torch.randperm(one.num_sequences).chunk(3)[0]
    one._minibatch(tree_map(batch, lambda x: x[:, index]))
    torch.testing.assert_close(flat(agent), flat(one))


def test_gradients_are_clipped_together_or_apart() -> None:
    """Against torch.optim.Adam after clip_grad_norm_, on the gradients of the same minibatch."""
    for mode, groups in (("joint", 1), ("separate", 2)):
        changes = {"grad_clip": mode, "max_grad_norm": 0.01, "num_epochs": 1, "num_minibatches": 1}
        agent = PPO(Scripted(), config(**changes, lr_schedule="constant"), seed=0)
        collect(agent)
        before = [[p.detach().clone().requires_grad_() for p in o.parameters] for o in agent.optimizers]
        metrics = agent.update()
        assert len(agent.optimizers) == groups
        gradients = [parameter.grad.flatten() for o in agent.optimizers for parameter in o.parameters]
        torch.testing.assert_close(metrics["policy/gradient_norm"], torch.cat(gradients).norm())
        for optimizer, copies in zip(agent.optimizers, before, strict=True):
            for copy, parameter in zip(copies, optimizer.parameters, strict=True):
                copy.grad = parameter.grad
            norm = torch.nn.utils.clip_grad_norm_(copies, 0.01)
            assert norm > 0.01
            torch.optim.Adam(copies, lr=1e-3).step()
            for copy, parameter in zip(copies, optimizer.parameters, strict=True):
                torch.testing.assert_close(parameter, copy, rtol=1e-5, atol=1e-7)


def test_actions_respect_the_env_bounds_and_the_configured_limit() -> None:
    for bound, limit, expected in ((0.1, None, 0.1), (math.inf, 0.2, 0.2), (0.3, 0.2, 0.2)):
        env = Scripted(bound=bound)
        agent = PPO(env, config(clip_actions=limit, init_std=2.0), seed=0)
        collect(agent)
        assert env.last_action.abs().max() <= expected + 1e-6
        # The update sees what was sampled, not what was sent.
        assert agent.rollout.data["action"].abs().max() > 1.0
        action, _ = agent.policy({"policy": 1e6 * torch.randn(64, 5)})
        assert action.abs().max() <= expected + 1e-6


def test_observation_statistics_count_each_env_step_once_and_freeze_outside_training() -> None:
    agent = PPO(Scripted(), config(), seed=0)
    agent.learn(3)
    assert (agent.policy.normalizer.count == 3 * 6 * 8).all()
    assert (agent.critic.normalizer.count == 3 * 6 * 8).all()
    agent.policy({"policy": torch.randn(8, 5)})
    assert (agent.policy.normalizer.count == 3 * 6 * 8).all()
    shared = PPO(Scripted(), config(critic_obs=("policy",)), seed=0)
    shared.learn(3)
    assert (shared.policy.normalizer.count == 3 * 6 * 8).all()


def test_a_group_that_is_not_normalized_is_learned_from_as_it_comes() -> None:
    agent = PPO(Scripted(), config(actor_obs=("policy", "critic"), normalize_obs=("critic",)), seed=0)
    seen = [agent.env.reset(1)]
    state = agent.initial_state()
    for _ in range(6):
        action, _ = agent.act(seen[-1], state)
        step = agent.env.step(action)
        agent.record(seen[-1], action, state, step)
        seen.append(step.obs)
    rows = agent.rollout.data["actor_obs"]  # [T, N, O]
    assert torch.equal(rows[..., :5], torch.stack([obs["policy"] for obs in seen[:-1]]))
    critic = torch.stack([obs["critic"] for obs in seen[:-1]])
    last = (critic[-1] - critic.flatten(0, 1).mean(0)) / (critic.flatten(0, 1).std(0, correction=0) + 0.01)
    torch.testing.assert_close(rows[-1, :, 5:], last)
    torch.testing.assert_close(agent.rollout.data["critic_obs"], rows[..., 5:])  # by statistics of its own
    agent.update()
    other = PPO(Scripted(), config(actor_obs=("policy", "critic"), normalize_obs=("critic",)), seed=7)
    other.load_state_dict(agent.state_dict())
    assert torch.equal(other.policy(seen[-1])[0], agent.policy(seen[-1])[0])


def test_explained_variance_is_the_share_of_the_returns_that_the_critic_foretold() -> None:
    agent = PPO(Scripted(), config(), seed=0)
    collect(agent)
    batch, metrics = agent._targets(agent.next_obs)
    expected = 1 - (batch.returns - batch.value).var() / batch.returns.var()
    torch.testing.assert_close(metrics["policy/explained_variance"], expected)
    assert agent.update()["policy/explained_variance"] == metrics["policy/explained_variance"]


@pytest.mark.parametrize(("iterations", "kept"), [(2, 12), (50, 256)])
def test_recording_holds_the_latest_raw_observations_and_episode_ends_in_order(iterations: int, kept: int) -> None:
    class Watched(Scripted):
        def reset(self, seed: int | None = None) -> Obs:
            self.seen, self.ended = [super().reset(seed)], []
            return self.seen[0]

        def step(self, action: Tensor) -> Step:
            step = super().step(action)
            self.seen.append(step.obs)
            self.ended.append(step.terminated | step.truncated)
            return step

    env = Watched(num_envs=12)
    agent = PPO(env, config(num_epochs=1), seed=0)
    agent.learn(iterations)
    recording = agent.recording()
    assert sorted(recording) == ["critic", "done", "policy"]
    for group in ("policy", "critic"):
        expected = torch.stack([obs[group][:8] for obs in env.seen[:-1]])[-kept:]
        torch.testing.assert_close(recording[group], expected, rtol=0, atol=0)
    assert torch.equal(recording["done"], torch.stack(env.ended)[-kept:, :8])


def test_reward_scale_scales_returns_and_clip_limits_rewards() -> None:
    plain, scaled = (
        PPO(Scripted(), config(reward_scale=s, reward_clip=c), seed=0) for s, c in ((1.0, None), (3.0, 1.5))
    )
    steps = collect(plain)
    collect(scaled)
    reward = torch.stack([s.reward for s in steps])
    torch.testing.assert_close(scaled.rollout.data["reward"], (3 * reward).clamp(-1.5, 1.5))
    torch.testing.assert_close(plain.rollout.data["reward"], reward)


def test_a_limit_of_rewards_makes_no_sound_reward_of_a_broken_one() -> None:
    broken = torch.tensor([math.nan, math.inf, -math.inf])
    assert scaled_reward(broken, 2.0, 1.5).isnan().all()
    assert scaled_reward(torch.tensor([1.0, -0.5, -9.0]), 2.0, 1.5).tolist() == [1.5, -1.0, -1.5]
    agent = PPO(Broken("infinite reward"), config(reward_clip=1.0), seed=0)
    dropped: list[float] = []
    agent.learn(4, on_report=lambda report: dropped.append(report.metrics["rollout/dropped"]))
    assert dropped == [0, 1, 0, 0]


def test_normalized_values_predict_the_same_returns() -> None:
    """Targets have unit scale inside, and the advantages are in reward units all the same."""
    agent = PPO(Null(8, obs_size=4, action_size=2), config(normalize_value=True, normalize_advantage="none"), seed=0)
    agent.learn(2)
    collect(agent)
    before = deepcopy(agent.value_normalizer)
    batch, _ = agent._targets(agent.next_obs)
    assert before is not None and agent.value_normalizer is not None
    inside = agent.value_normalizer.inverse(batch.returns.unsqueeze(-1)).squeeze(-1)
    old = before.inverse(batch.value.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(inside - old, batch.advantage, rtol=1e-4, atol=1e-4)


def test_value_clipping_begins_at_the_critics_own_output() -> None:
    """Were the old values moved with the statistics, they would begin beyond the clip, where there is no gradient."""
    agent = PPO(make_env("Pendulum", 8, seed=0), config(normalize_value=True), seed=0)
    collect(agent)
    batch, _ = agent._targets(agent.next_obs)
    value, _ = agent.critic(batch.actor_obs)
    torch.testing.assert_close(batch.value, value)
    assert (batch.returns.std() - 1).abs() < 0.05


def test_networks_begin_orthogonal_with_the_stated_gains_and_deviation() -> None:
    agent = PPO(Scripted(), config(state_dependent_std=True, init_std=0.7), seed=0)
    first = agent.policy.trunk.mlp.layers[0].weight.detach()  # [16, 5]: its columns are orthogonal
    torch.testing.assert_close(first.t() @ first, 2 * torch.eye(5))
    mean = agent.policy.head.linear.weight[:2].detach()
    torch.testing.assert_close(mean @ mean.t(), 0.01**2 * torch.eye(2))
    torch.testing.assert_close(agent.critic.value.weight.norm(), torch.tensor(1.0))
    distribution, _ = agent.policy.distribution(torch.randn(1, 8, 5))
    torch.testing.assert_close(distribution.std, torch.full((1, 8, 2), 0.7))


def test_observation_groups_have_the_stated_defaults() -> None:
    assert choose_groups({"critic": 2, "actor": 3, "policy": 1}, None, None) == (("policy",), ("critic",))
    assert choose_groups({"actor": 3, "other": 1}, None, None) == (("actor",), ("actor",))
    assert choose_groups({"state": 3}, None, None) == (("state",), ("state",))
    with pytest.raises(ConfigError, match="actor_obs: the env has no group 'policy' or 'actor'; choose from a, b"):
        choose_groups({"a": 1, "b": 2}, None, None)


def test_a_parameter_without_a_gradient_keeps_still() -> None:
    used, unused = (torch.nn.Parameter(torch.randn(3)) for _ in range(2))
    before = [used.detach().clone(), unused.detach().clone()]
    optimizer = FlatAdam([used, unused], torch.tensor(0.1), 1.0)
    used.sum().backward()
    optimizer.step(torch.tensor(True))
    torch.testing.assert_close(used.detach(), before[0] - 0.1)
    assert torch.equal(unused.detach(), before[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_minibatches": 5}, "num_minibatches"),
        ({"actor_obs": ("polcy",)}, "did you mean 'policy'"),
        ({"actor_obs": ()}, "actor_obs.*one or more of policy, critic"),
        ({"critic_obs": ("policy", "policy")}, "critic_obs.*each once"),
        ({"share_trunk": True}, "share_trunk"),
        ({"normalize_obs": ("polcy",)}, "normalize_obs: 'polcy' is no observation group.*did you mean 'policy'"),
        ({"normalize_obs": ("critic",), "critic_obs": ("policy",)}, "normalize_obs: 'critic'.*nobody reads it"),
        ({"gamma": 1.5}, "gamma"),
        ({"num_steps": 0}, "num_steps"),
        ({"init_std": 0.001}, "init_std"),
    ],
)
def test_impossible_settings_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PPO(Scripted(), config(**changes))


def test_policy_is_deterministic_and_state_dict_restores_it() -> None:
    agent = PPO(Scripted(), config(), seed=0)
    agent.learn(2)
    obs = {"policy": torch.randn(8, 5)}
    action, state = agent.policy(obs)
    torch.testing.assert_close(agent.policy(obs)[0], action, rtol=0, atol=0)
    assert state == ()
    other = PPO(Scripted(), config(), seed=7)
    other.learn(1, seed=3)
    known = {name: value.data_ptr() for name, value in other.trace.data.items()}
    other.load_state_dict(agent.state_dict())
    assert known == {name: value.data_ptr() for name, value in other.trace.data.items()}  # recordings write there
    torch.testing.assert_close(other.policy(obs)[0], action, rtol=0, atol=0)
    assert other.optimizers[0].learning_rate is other.learning_rate


def test_something_else_than_a_vector_env_is_refused_with_the_way_to_make_one() -> None:
    with pytest.raises(ValueError, match=r"lacks num_envs, device.*make_env"):
        PPO(gymnasium.make("CartPole-v1"))  # type: ignore[arg-type]


def test_settings_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ConfigError, match="learning_rate"):
        PPOConfig(learning_rate=math.inf)
