"""Learning from images and with masked choices: PPO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from rlcore import PPO, ConfigError, NetworkConfig, PPOConfig, Step
from rlcore.encoders import CNNConfig
from rlcore.envs import make_env
from rlcore.recurrent import RNNConfig
from rlcore.train.evaluate import evaluate

CNN = CNNConfig(channels=(8,), kernel_sizes=(4,), strides=(4,))


class Signs:
    """Each step shows a bright column in one of four places, in the dark of noise; the action is to name it.

    ``wide`` has two groups, the second of floats, and a vector that says by how much places are shifted, and asks for
    two choices at once: the place, and the parity. ``masked`` allows the right place and the next one alone.
    """

    num_envs, device, max_episode_length = 32, torch.device("cpu"), 8

    def __init__(self, wide: bool = False, masked: bool = False, seed: int = 0) -> None:
        self.wide, self.masked = wide, masked
        self.generator = torch.Generator().manual_seed(seed)
        self.observation_spaces: dict[str, Any] = {"policy": spaces.Box(0, 255, (1, 12, 16), np.uint8)}
        self.action_space: spaces.Space[Any] = spaces.Discrete(4)
        if wide:
            self.observation_spaces["depth"] = spaces.Box(-np.inf, np.inf, (2, 12, 12), np.float32)
            self.observation_spaces["shift"] = spaces.Box(0, 1, (2,), np.float32)
            self.action_space = spaces.MultiDiscrete([4, 2])
        if masked:
            self.observation_spaces["allowed"] = spaces.Box(0, 1, (4,), np.float32)
        self.age = torch.zeros(self.num_envs, dtype=torch.int64)

    def _obs(self) -> dict[str, Tensor]:
        n, g = self.num_envs, self.generator
        self.place = torch.randint(4, (n,), generator=g)
        image = torch.randint(0, 60, (n, 1, 12, 16), generator=g, dtype=torch.uint8)
        bright = torch.arange(16) // 4 == self.place.unsqueeze(1)  # [N, 16]
        image = torch.where(bright[:, None, None], 200, image).to(torch.uint8)
        obs = {"policy": image}
        if self.wide:
            moved = torch.randint(2, (n,), generator=g)
            obs["depth"] = torch.randn(n, 2, 12, 12, generator=g)
            obs["shift"] = torch.nn.functional.one_hot(moved, 2).float()
            self.place = (self.place + moved) % 4
        if self.masked:
            allowed = torch.zeros(n, 4)
            allowed[torch.arange(n), self.place] = 1
            allowed[torch.arange(n), (self.place + 1) % 4] = 1
            obs["allowed"] = allowed
        return obs

    def reset(self, seed: int | None = None) -> dict[str, Tensor]:
        if seed is not None:
            self.generator.manual_seed(seed)
        self.age.zero_()
        return self._obs()

    def step(self, action: Tensor) -> Step:
        if self.wide:
            assert action.shape == (self.num_envs, 2) and action.dtype == torch.int64
            reward = ((action[:, 0] == self.place).float() + (action[:, 1] == self.place % 2)) / 2
        else:
            reward = (action == self.place).float()
        if self.masked:
            allowed = (action == self.place) | (action == (self.place + 1) % 4)
            assert allowed.all()
        self.age += 1
        truncated = self.age >= self.max_episode_length
        final = self._obs()
        obs = self._obs()
        self.age[truncated] = 0
        return Step(obs, reward, torch.zeros_like(truncated), truncated, final, {})

    def close(self) -> None:
        pass


def config(**changes: Any) -> PPOConfig:
    net = NetworkConfig(hidden_dims=(32,), activation="relu", cnn=CNN)
    common: dict[str, Any] = {
        "num_steps": 16,
        "num_minibatches": 2,
        "num_epochs": 3,
        "learning_rate": 3e-3,
        "lr_schedule": "constant",
    }
    return PPOConfig(**{**common, "actor": net, "critic": net, "gamma": 0.5, "entropy_coef": 0.001, **changes})


def share_right(agent: PPO, env: Signs) -> float:
    result = evaluate(env, agent.policy, seed=5)
    return result.as_dict()["return_mean"] / env.max_episode_length


def test_ppo_learns_to_read_an_image() -> None:
    """By chance a quarter is right."""
    env = Signs()
    agent = PPO(env, config(), seed=1)
    agent.learn(25)
    assert share_right(agent, Signs(seed=3)) > 0.9


@pytest.mark.parametrize("rnn", ["none", "lstm"])
def test_images_vectors_and_several_choices_together(rnn: Any) -> None:
    """Without the vector three quarters of the first choices are wrong; the second follows from both, too."""
    net = NetworkConfig(hidden_dims=(32,), activation="relu", cnn=CNN, rnn=RNNConfig(type=rnn, hidden_size=32))
    env = Signs(wide=True)
    groups = ("policy", "shift", "depth")
    agent = PPO(env, config(actor=net, critic=net, actor_obs=groups, critic_obs=groups), seed=1)
    assert agent.policy.groups == ("shift",) and list(agent.policy.raw_shapes) == ["policy", "depth"]
    agent.learn(22)
    assert share_right(agent, Signs(wide=True, seed=3)) > 0.85
    data = agent.rollout.data
    assert data["raw_policy"].dtype == torch.uint8 and data["raw_depth"].dtype == torch.float32


def test_masked_choices_are_never_made_in_training_or_evaluation() -> None:
    env = Signs(masked=True)
    agent = PPO(env, config(actor_obs=("policy",), action_mask="allowed"), seed=1)
    agent.learn(3)  # the env itself refuses what is not allowed
    share_right(agent, Signs(masked=True, seed=3))
    assert "nobody reads" not in "".join(agent.notes)


def test_the_first_ratio_is_one_and_a_checkpoint_goes_on_bitwise(tmp_path: Path) -> None:
    env = Signs(wide=True)
    groups = ("policy", "shift", "depth")
    agent = PPO(env, config(actor_obs=groups, num_minibatches=1, num_epochs=1), seed=1)
    reports: list[dict[str, float]] = []
    agent.learn(2, on_report=lambda report: reports.append(report.metrics))
    assert all(abs(row["policy/kl"]) < 1e-6 and row["policy/clip_fraction"] == 0 for row in reports)
    other = PPO(Signs(wide=True), config(actor_obs=groups, num_minibatches=1, num_epochs=1), seed=9)
    other.load_state_dict(agent.state_dict())
    obs = env.reset(3)
    assert torch.equal(agent.policy(obs)[0], other.policy(obs)[0])


def test_time_outs_are_worth_the_value_of_the_final_image() -> None:
    env = Signs()
    agent = PPO(env, config(gae_lambda=0.0, normalize_advantage="none", num_minibatches=1), seed=1)
    obs, state = env.reset(1), agent.initial_state()
    steps = []
    for _ in range(agent.num_steps):
        action, state = agent.act(obs, state)
        step = env.step(action)
        agent.record(obs, action, state, step)
        steps.append(step)
        obs = step.obs
    batch, _ = agent._targets(agent.next_obs)
    returns = batch.returns.view(agent.num_steps, env.num_envs)

    def value(obs: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            empty = torch.zeros(1, env.num_envs, 0)
            return agent.critic(empty, raw={"policy": obs["policy"].unsqueeze(0)})[0][0]

    for t, step in enumerate(steps):
        assert step.final_obs is not None
        following = torch.where(step.truncated, value(step.final_obs), value(step.obs))
        torch.testing.assert_close(returns[t], step.reward + 0.5 * following, rtol=1e-4, atol=1e-5)
    assert steps[7].truncated.all()


def test_float_images_that_are_not_finite_do_not_spoil_the_policy() -> None:
    class Broken(Signs):
        def _obs(self) -> dict[str, Tensor]:
            obs = super()._obs()
            obs["depth"][3] = torch.nan
            return obs

    agent = PPO(Broken(wide=True), config(actor_obs=("policy", "depth")), seed=1)
    agent.learn(2)
    assert all(torch.isfinite(value).all() for value in agent.policy.state_dict().values())


def test_groups_that_nobody_reads_are_named() -> None:
    agent = PPO(Signs(wide=True), config(actor_obs=("policy",)), seed=1)
    assert agent.notes == [
        "observation groups that nobody reads: shift, depth; name them in actor_obs or critic_obs to use them"
    ]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"action_mask": "nothing"}, "action_mask: 'nothing' is not possible; the env has no such vector"),
        ({"action_mask": "policy"}, "action_mask: 'policy' is not possible; the env has no such vector"),
        ({"share_trunk": True, "critic_obs": ("policy", "shift")}, "share_trunk: the actor reads"),
        ({"actor": NetworkConfig(cnn=CNNConfig(channels=(8,) * 4, strides=(2,)))}, "cnn: an image of 12x16 is smaller"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        PPO(Signs(wide=True), config(**{"actor_obs": ("policy",), **changes}), seed=1)


def test_a_mask_of_another_size_and_one_for_a_box_are_refused() -> None:
    class Odd(Signs):
        def __init__(self) -> None:
            super().__init__(masked=True)
            self.action_space = spaces.Discrete(3)

    with pytest.raises(ConfigError, match="that group has 4 numbers, and there are 3 choices"):
        PPO(Odd(), config(actor_obs=("policy",), action_mask="allowed"))
    with pytest.raises(ConfigError, match="action_mask: 'policy' is not possible; the env's actions are no choices"):
        PPO(make_env("Pendulum", 4), PPOConfig(action_mask="policy"))


def test_cart_pole_is_learned_from_pixels() -> None:
    """By chance it stands for 22 steps; at a size where a pole is two pixels wide."""
    cnn = CNNConfig(channels=(8, 16), kernel_sizes=(4, 3), strides=(2, 2))
    net = NetworkConfig(hidden_dims=(64,), activation="relu", cnn=cnn)
    settings = PPOConfig(
        num_steps=32,
        learning_rate=1e-3,
        lr_schedule="constant",
        gamma=0.98,
        normalize_value=True,
        actor=net,
        critic=net,
    )
    agent = PPO(make_env("CartPole-Pixels", 32, seed=1, size=32), settings, seed=1)
    agent.learn(15)
    result = evaluate(make_env("CartPole-Pixels", 20, size=32, max_episode_length=200), agent.policy, seed=5)
    assert result.as_dict()["return_mean"] > 120
