"""PPO's parts against references written out here, and its behavior at the edges."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlcore import PPO, ConfigError, NetworkConfig, PPOConfig, Step
from rlcore.envs.null import Null
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
        action, extras, _ = agent.act(obs, ())
        steps.append(agent.env.step(action))
        agent.record(obs, action, extras, (), steps[-1])
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
def reference_loss(agent: PPO, sample: dict[str, Tensor]) -> Tensor:
    """The loss sample by sample in plain float64 Python."""
    c = agent.config
    total = 0.0
    (mean, std), _ = agent.policy.distribution(sample["actor_obs"])
    values, _ = agent.critic(sample["critic_obs"])
    mean, std, values = mean[0], std.expand_as(mean)[0], values[0]
    sample = {name: value[0] for name, value in sample.items()}
    for i in range(len(values)):
        log_prob = sum(
            -0.5 * ((float(a) - float(m)) / float(s)) ** 2 - math.log(float(s)) - 0.5 * math.log(2 * math.pi)
            for a, m, s in zip(sample["action"][i], mean[i], std[i], strict=True)
        )
        ratio, advantage = math.exp(log_prob - float(sample["log_prob"][i])), float(sample["advantage"][i])
        surrogate = min(ratio * advantage, min(max(ratio, 1 - c.clip_range), 1 + c.clip_range) * advantage)
        value, old, target = float(values[i]), float(sample["value"][i]), float(sample["returns"][i])
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
    metrics = agent._minibatch(batch)
    loss = metrics["loss/policy"] + 0.7 * metrics["loss/value"] - 0.03 * metrics["policy/entropy"]
    assert 0.1 < metrics["policy/clip_fraction"] < 1
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["final_obs", "value", "none"])
def test_time_out_modes_bootstrap_from_the_stated_value(mode: str) -> None:
    changes = {"timeout_bootstrap": mode, "normalize_advantage": "none", "normalize_obs": False, "gae_lambda": 0.0}
    agent = PPO(Scripted(), config(**changes), seed=0)
    steps = collect(agent)
    data = agent.rollout.data

    def value_of(obs: Tensor) -> float:
        with torch.no_grad():
            return float(agent.critic(obs.view(1, 1, -1))[0])

    batch, _ = agent._targets(agent.next_obs)
    returns = batch["returns"].reshape(6, 8)
    seen = 0
    for t, step in enumerate(steps):
        for n in range(8):
            if step.terminated[n]:
                future = 0.0
            elif step.truncated[n]:
                seen += 1
                assert step.final_obs is not None
                known = {
                    "final_obs": value_of(step.final_obs["critic"][n]),
                    "value": value_of(data["critic_obs"][t, n]),
                }
                future = known.get(mode, 0.0)
            else:
                future = value_of(step.obs["critic"][n])
            assert math.isclose(float(returns[t, n]), float(step.reward[n]) + 0.99 * future, abs_tol=1e-5)
    assert seen > 0


def test_env_without_final_observations_falls_back_to_the_value_and_says_so() -> None:
    agent = PPO(Scripted(final_obs=False), config(), seed=0)
    collect(agent)
    assert agent.timeout_bootstrap == "value"
    agent.update()


def test_learning_rate_follows_the_rule_restated_in_python() -> None:
    agent = PPO(Scripted(), config(lr_min=5e-4, lr_max=5e-3), seed=0)
    rate = 1e-3
    for kl in [0.0, 0.001, 0.004, 0.0049, 0.006, 0.0199, 0.021, 0.5, 0.5, 0.5, 0.001] + [0.001] * 8:
        agent._adapt_learning_rate(torch.tensor(kl))
        if kl > 0.02:
            rate = max(rate / 1.5, 5e-4)
        elif 0 < kl < 0.005:
            rate = min(rate * 1.5, 5e-3)
        assert math.isclose(float(agent.learning_rate), rate, rel_tol=1e-5)
        assert agent.optimizers[0].learning_rate is agent.learning_rate
    assert rate == 5e-3


def test_linear_schedule_ends_at_zero() -> None:
    agent = PPO(Scripted(), config(lr_schedule="linear", learning_rate=1.0), seed=0)
    rates: list[float] = []
    agent.learn(4, on_report=lambda report: rates.append(report.metrics["policy/learning_rate"]))
    assert rates == pytest.approx([1.0, 0.75, 0.5, 0.25])


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
    one._minibatch({name: value[:, index] for name, value in batch.items()})
    torch.testing.assert_close(flat(agent), flat(one))


def test_gradients_are_clipped_together_or_apart() -> None:
    """Against torch.optim.Adam after clip_grad_norm_, on the gradients of the same minibatch."""
    for mode, groups in (("joint", 1), ("separate", 2)):
        changes = {"grad_clip": mode, "max_grad_norm": 0.01, "num_epochs": 1, "num_minibatches": 1}
        agent = PPO(Scripted(), config(**changes, lr_schedule="constant"), seed=0)
        collect(agent)
        before = [[p.detach().clone().requires_grad_() for p in o.parameters] for o in agent.optimizers]
        agent.update()
        assert len(agent.optimizers) == groups
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
    assert agent.policy.normalizer.count == 3 * 6 * 8
    assert agent.critic.normalizer.count == 3 * 6 * 8
    agent.policy({"policy": torch.randn(8, 5)})
    assert agent.policy.normalizer.count == 3 * 6 * 8


def test_reward_scale_scales_returns_and_clip_limits_rewards() -> None:
    plain, scaled = (
        PPO(Scripted(), config(reward_scale=s, reward_clip=c), seed=0) for s, c in ((1.0, None), (3.0, 1.5))
    )
    steps = collect(plain)
    collect(scaled)
    reward = torch.stack([s.reward for s in steps])
    torch.testing.assert_close(scaled.rollout.data["reward"], (3 * reward).clamp(-1.5, 1.5))
    torch.testing.assert_close(plain.rollout.data["reward"], reward)


def test_normalized_values_predict_the_same_returns() -> None:
    """Targets have unit scale inside, and the advantages are in reward units all the same."""
    agent = PPO(Null(8, obs_size=4, action_size=2), config(normalize_value=True, normalize_advantage="none"), seed=0)
    agent.learn(2)
    collect(agent)
    batch, _ = agent._targets(agent.next_obs)
    assert agent.value_normalizer is not None
    inside = agent.value_normalizer.inverse(batch["returns"].unsqueeze(-1)).squeeze(-1)
    old = agent.value_normalizer.inverse(batch["value"].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(inside - old, batch["advantage"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_minibatches": 5}, "num_minibatches"),
        ({"actor_obs": ("polcy",)}, "did you mean 'policy'"),
        ({"share_trunk": True}, "share_trunk"),
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
    other.load_state_dict(agent.state_dict())
    torch.testing.assert_close(other.policy(obs)[0], action, rtol=0, atol=0)
    assert other.optimizers[0].learning_rate is other.learning_rate
