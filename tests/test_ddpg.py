"""DDPG's and TD3's parts against references written out here, and that it learns; what it shares is in test_sac."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from rlcore import DDPG, ConfigError, DDPGConfig, NetworkConfig
from rlcore.envs import make_env
from rlcore.envs.null import Null
from rlcore.replay import Batch
from rlcore.train.evaluate import evaluate

SMALL = NetworkConfig(hidden_dims=(16, 16), activation="tanh", init="default")
SIZES: dict[str, Any] = {"learning_starts": 40, "buffer_size": 2000, "batch_size": 32, "actor": SMALL, "critic": SMALL}


def agent(num_envs: int = 4, **changes: Any) -> DDPG:
    env = Null(num_envs, obs_size=3, action_size=2, episode_length=7)
    env.action_space = spaces.Box(-2.0, 2.0, (2,))
    return DDPG(env, replace(DDPGConfig(**SIZES), **changes), seed=0)


def batch(number: int = 24) -> Batch:
    obs, next_obs = torch.randn(2, number, 3)
    return Batch(
        actor_obs=obs,
        critic_obs=obs,
        next_actor_obs=next_obs,
        next_critic_obs=next_obs,
        action=4 * torch.rand(number, 2) - 2,
        reward=torch.randn(number),
        discount=torch.rand(number).round() * 0.99,
        weight=torch.ones(number),
    )


@pytest.mark.parametrize("twin", [False, True])
def test_losses_equal_the_formulas_written_out(twin: bool) -> None:
    learner, data = agent(num_critics=1 + twin, tau=0.25), batch()
    assert len(learner.critics.heads) == 1 + twin
    with torch.no_grad():
        for parameter in [*learner.target_critics.parameters(), *learner.target_policy.parameters()]:
            parameter.add_(0.1 * torch.randn_like(parameter))  # at first they are as what they follow
    targets = [p.clone() for p in [*learner.target_critics.parameters(), *learner.target_policy.parameters()]]
    total, climbed = 0.0, 0.0
    with torch.no_grad():
        for i in range(24):
            obs, after = data.critic_obs[i : i + 1], data.next_critic_obs[i : i + 1]
            action, _ = learner.target_policy({"policy": after})
            value = min(float(q) for q in learner.target_critics(after, action))
            target = float(data.reward[i]) + float(data.discount[i]) * value
            total += sum((float(q) - target) ** 2 for q in learner.critics(obs, data.action[i : i + 1]))
    metrics = learner._gradient_step(data, with_actor=True)
    with torch.no_grad():  # the actor climbs the first critic after its step; before its own it was as here
        before = DDPG(learner.env, learner.config, seed=0).policy
        for i in range(24):
            obs = data.critic_obs[i : i + 1]
            climbed += float(learner.critics(obs, before({"policy": obs})[0])[0])
    assert float(metrics["loss/value"]) == pytest.approx(total / 24, rel=1e-5)
    assert float(metrics["loss/policy"]) == pytest.approx(-climbed / 24, rel=1e-4, abs=1e-6)
    learned = [*learner.critics.parameters(), *learner.policy.parameters()]
    now = [*learner.target_critics.parameters(), *learner.target_policy.parameters()]
    for new, old, target_now in zip(learned, targets, now, strict=True):
        torch.testing.assert_close(target_now, 0.75 * old + 0.25 * new.detach())


def test_targets_wait_for_a_delayed_actor() -> None:
    learner, data = agent(policy_delay=2), batch()
    waiting = (learner.policy, learner.target_policy, learner.target_critics)
    before = [p.clone() for module in waiting for p in module.parameters()]
    metrics = learner._gradient_step(data, with_actor=False)
    after = [p for module in waiting for p in module.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert "loss/policy" not in metrics


def test_gaussian_noise_has_the_stated_deviation_and_stays_in_the_box() -> None:
    learner = agent(num_envs=4096, noise_std=0.2, update_ratio=1e-3, buffer_size=20_000)
    obs = torch.zeros(4096, 3)
    with torch.no_grad():
        action = learner._explore(obs)
        center = learner.policy({"policy": obs})[0]
        assert float((action - center).std()) == pytest.approx(0.2 * 2.0, rel=0.03)  # half the box's width is 2
        learner.policy.head.bias.fill_(5.0)
        assert float(learner._explore(obs).max()) == 2.0


def test_ornstein_uhlenbeck_noise_follows_its_recursion_and_begins_anew_with_an_episode() -> None:
    learner = agent(num_envs=4096, noise="ou", noise_std=0.1, noise_decay=0.15, update_ratio=1e-3, buffer_size=20_000)
    obs = torch.zeros(4096, 3)
    with torch.no_grad():
        values = []
        for _ in range(60):
            learner._explore(obs)
            values.append(learner.noise.clone())
    # An autoregression with coefficient 0.85: stationary deviation 0.1 / sqrt(1 - 0.85^2), correlation 0.85.
    assert float(values[-1].std()) == pytest.approx(0.1 / (1 - 0.85**2) ** 0.5, rel=0.03)
    assert float((values[-1] * values[-2]).mean() / values[-2].square().mean()) == pytest.approx(0.85, abs=0.02)
    done = torch.arange(4096) < 100
    learner._end_episodes(done)
    assert torch.equal(learner.noise[:100], torch.zeros(100, 2))
    assert torch.equal(learner.noise[100:], values[-1][100:])


def test_target_noise_is_clipped() -> None:
    """With a critic that tells actions apart, the target of smoothed actions stays within the clip's reach."""
    learner, data = agent(target_noise=5.0, target_noise_clip=0.1), batch(2000)
    seen: list[Tensor] = []
    output = learner.target_critics.output
    learner.target_critics.output = lambda obs, action: (seen.append(action.clone()), output(obs, action))[1]
    learner._gradient_step(data, with_actor=False)
    with torch.no_grad():
        center = learner.target_policy({"policy": data.next_actor_obs})[0]
    offset = (seen[0] - center).abs()
    assert float(offset.max()) == pytest.approx(0.1 * 2.0, rel=1e-3)
    assert float(offset.median()) == pytest.approx(0.1 * 2.0, rel=1e-3)  # so wide that most is clipped


def test_target_noise_has_the_stated_deviation_and_stays_in_the_box() -> None:
    learner, data = agent(target_noise=0.05), batch(2000)
    seen: list[Tensor] = []
    output = learner.target_critics.output
    learner.target_critics.output = lambda obs, action: (seen.append(action.clone()), output(obs, action))[1]
    learner._gradient_step(data, with_actor=False)
    with torch.no_grad():
        center = learner.target_policy({"policy": data.next_actor_obs})[0]
        assert float((seen[0] - center).std()) == pytest.approx(0.05 * 2.0, rel=0.05)
        learner.target_policy.head.bias.fill_(5.0)
    learner._gradient_step(data, with_actor=False)
    assert float(seen[1].max()) == 2.0


def test_td3_learns_with_everything_on() -> None:
    learner = agent(num_critics=2, policy_delay=2, target_noise=0.2, noise="ou", n_step=3, normalize_obs=True)
    seen: dict[str, float] = {}
    networks = (learner.policy, learner.critics, learner.target_policy, learner.target_critics)
    before = [p.detach().clone() for network in networks for p in network.parameters()]
    learner.learn(30, on_report=lambda report: seen.update(report.metrics))
    after = [p for network in networks for p in network.parameters()]
    assert all(torch.isfinite(b).all() and not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert {"loss/value", "loss/policy", "policy/value"} <= seen.keys()


@pytest.mark.parametrize("key", ["noise_std", "target_noise", "target_noise_clip", "noise_decay"])
def test_impossible_settings_are_refused_by_name(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        DDPGConfig(**{**SIZES, key: -0.1})


@pytest.mark.slow
def test_ddpg_solves_pendulum_in_five_thousand_steps() -> None:
    """A random policy has about -1200; eight envs, and networks for one core."""
    net = NetworkConfig(hidden_dims=(64, 64), activation="relu", init="default")
    sizes = DDPGConfig(
        learning_starts=1000, buffer_size=20_000, batch_size=128, learning_rate=1e-3, tau=0.01, actor=net, critic=net
    )
    learner = DDPG(make_env("gym:Pendulum-v1", 8, seed=1), sizes, seed=1)
    learner.learn(625)
    result = evaluate(make_env("gym:Pendulum-v1", 50, seed=1), learner.policy, seed=100)
    assert result.episodes == 50
    assert result.mean_return >= -200
