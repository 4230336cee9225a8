"""Recurrent layers and recurrent PPO: a sequence equals its steps, and nothing leaks across an episode's end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlcore import PPO, ConfigError, NetworkConfig, PPOConfig
from rlcore.capture import tree_map
from rlcore.envs import make_env
from rlcore.learn import learn, resume, snapshot
from rlcore.networks import Network
from rlcore.recurrent import RNN, RNNConfig
from rlcore.rollout import Samples

T, N, INPUTS, H = 12, 6, 5, 8


def network(
    kind: Any, position: Any = "before", layers: int = 1, hidden_dims: tuple[int, ...] = (16,)
) -> NetworkConfig:
    rnn = RNNConfig(type=kind, hidden_size=H, num_layers=layers, position=position)
    return NetworkConfig(hidden_dims=hidden_dims, activation="tanh", rnn=rnn)


def config(kind: Any = "lstm", **changes: Any) -> PPOConfig:
    net = network(kind)
    base = PPOConfig(num_steps=8, num_epochs=2, num_minibatches=2, actor=net, critic=net)
    return replace(base, **changes)


def random_keep() -> Tensor:
    return (torch.rand(T, N, 1) > 0.25).double()


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("layers", [1, 2])
def test_without_resets_the_layer_is_pytorchs(kind: str, layers: int) -> None:
    rnn = RNN(INPUTS, network(kind, layers=layers).rnn).double()
    reference = (nn.LSTM if kind == "lstm" else nn.GRU)(INPUTS, H, layers).double()
    for i, cell in enumerate(rnn.cells):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(reference, f"{name}_l{i}").data.copy_(getattr(cell, name))
    x = torch.randn(T, N, INPUTS, dtype=torch.float64)
    y, state = rnn(x, rnn.initial_state(N))
    expected, expected_state = reference(x)
    torch.testing.assert_close(y, expected)
    for ours, theirs in zip(state, expected_state if kind == "lstm" else (expected_state,), strict=True):
        torch.testing.assert_close(ours, theirs)


def plain_loop(rnn: RNN, x: Tensor, state: tuple[Tensor, ...], keep: Tensor) -> Tensor:
    """One env and one step at a time, by the formulas of the papers, in Python."""
    rows = []
    for n in range(N):
        layers = [[part[i, n] for part in state] for i in range(rnn.num_layers)]
        outputs = []
        for t in range(T):
            below = x[t, n]
            for i, cell in enumerate(rnn.cells):
                if keep[t, n] == 0:
                    layers[i] = [torch.zeros_like(part) for part in layers[i]]
                a = cell.weight_ih @ below + cell.bias_ih
                b = cell.weight_hh @ layers[i][0] + cell.bias_hh
                if rnn.lstm:
                    i_, f, g, o = (a + b).split(H)
                    c = torch.sigmoid(f) * layers[i][1] + torch.sigmoid(i_) * torch.tanh(g)
                    layers[i] = [torch.sigmoid(o) * torch.tanh(c), c]
                else:
                    z = torch.sigmoid(a[H : 2 * H] + b[H : 2 * H])
                    n_ = torch.tanh(a[2 * H :] + torch.sigmoid(a[:H] + b[:H]) * b[2 * H :])
                    layers[i] = [(1 - z) * n_ + z * layers[i][0]]
                below = layers[i][0]
            outputs.append(below)
        rows.append(torch.stack(outputs))
    return torch.stack(rows, 1)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("layers", [1, 2])
def test_outputs_and_gradients_equal_a_plain_loop_in_float64(kind: str, layers: int) -> None:
    rnn = RNN(INPUTS, network(kind, layers=layers).rnn).double()
    x = torch.randn(T, N, INPUTS, dtype=torch.float64, requires_grad=True)
    state = tuple(torch.randn_like(part, requires_grad=True) for part in rnn.initial_state(N))
    keep, weight = random_keep(), torch.randn(T, N, H, dtype=torch.float64)
    leaves = [x, *state, *rnn.parameters()]
    y = rnn(x, state, keep)[0]
    expected = plain_loop(rnn, x, state, keep)
    torch.testing.assert_close(y, expected)
    ours = torch.autograd.grad((y * weight).sum(), leaves)
    theirs = torch.autograd.grad((expected * weight).sum(), leaves)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two)


def rollout(agent: PPO) -> Samples:
    """One rollout by hand, laid out as the update sees it."""
    obs, state = agent.env.reset(3), agent.initial_state()
    for _ in range(agent.num_steps):
        action, following = agent.act(obs, state)
        step = agent.env.step(action)
        agent.record(obs, action, state, step)
        going = (~(step.terminated | step.truncated)).float()[None, :, None]
        obs, state = step.obs, tuple(part * going for part in following)
    return agent._targets(agent.next_obs)[0]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("layers", [1, 2])
def test_fused_sequences_on_the_gpu_equal_the_plain_ones(kind: str, layers: int) -> None:
    rnn = RNN(INPUTS, network(kind, layers=layers).rnn)
    x, keep, weight = torch.randn(T, N, INPUTS), random_keep().float(), torch.randn(T, N, H)
    state = tuple(torch.randn_like(part) for part in rnn.initial_state(N))
    results = []
    for device in ("cpu", "cuda"):
        rnn = rnn.to(device)
        leaves = [v.to(device).requires_grad_() for v in (x.clone(), *(part.clone() for part in state))]
        y, after = rnn(leaves[0], tuple(leaves[1:]), keep.to(device))
        loss = (y * weight.to(device)).sum() + sum(part.square().sum() for part in after)
        gradients = torch.autograd.grad(loss, [*leaves, *rnn.parameters()])
        results.append([v.cpu() for v in (y, *after, *gradients)])
    for plain, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("position", ["before", "after"])
def test_step_by_step_equals_the_sequence(kind: str, position: str) -> None:
    """What acting computed one step at a time, the update computes again from the stored first state."""
    net = network(kind, position)
    agent = PPO(make_env("Pendulum", 8, seed=0, max_episode_length=5), config(actor=net, critic=net), seed=0)
    agent.learn(2)
    batch = rollout(agent)
    assert (batch.keep == 0).any()
    states = batch.actor_state
    again, _ = agent.policy.distribution(batch.actor_obs, states, batch.keep)
    torch.testing.assert_close(again.mean, batch.old.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again.log_prob(batch.action), batch.log_prob, rtol=1e-5, atol=1e-5)
    critic_states = batch.critic_state
    values, _ = agent.critic(batch.actor_obs, critic_states, batch.keep)
    torch.testing.assert_close(values, batch.value, rtol=1e-4, atol=1e-4)
    # Gradients of a loss over the rollout, step by step and as a sequence.
    parameters = list(agent.policy.trunk.parameters())
    one = torch.autograd.grad(again.mean.square().sum(), parameters)
    rows, now = [], states
    for t in range(agent.num_steps):
        now = tuple(part * batch.keep[t] for part in now)
        distribution, now = agent.policy.distribution(batch.actor_obs[t : t + 1], now)
        rows.append(distribution.mean)
    two = torch.autograd.grad(torch.cat(rows).square().sum(), parameters)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_chunks_of_a_rollout_start_from_the_states_that_acting_had() -> None:
    agent = PPO(make_env("Pendulum", 8, seed=0, max_episode_length=5), config(sequence_length=4), seed=0)
    batch = rollout(agent)
    assert batch.actor_obs.shape == (4, 16, 3)
    states = batch.actor_state
    assert (states[0][0, :8] == 0).all() and (states[0][0, 8:] != 0).any()
    again, _ = agent.policy.distribution(batch.actor_obs, states, batch.keep)
    torch.testing.assert_close(again.mean, batch.old.mean, rtol=1e-5, atol=1e-6)
    critic_states = batch.critic_state
    values, _ = agent.critic(batch.actor_obs, critic_states, batch.keep)
    torch.testing.assert_close(values, batch.value, rtol=1e-4, atol=1e-5)
    # Against time: the second chunk of an env goes on where its first one ended.
    first, then = batch.actor_obs[:, :8], batch.actor_obs[:, 8:]
    keep = torch.cat([batch.keep[:, :8], batch.keep[:, 8:]])
    whole, _ = agent.policy.distribution(torch.cat([first, then]), tuple(part[:, :8] for part in states), keep)
    torch.testing.assert_close(whole.mean[4:], batch.old.mean[:, 8:], rtol=1e-5, atol=1e-6)


def test_no_state_leaks_into_the_next_episode() -> None:
    """An env that was reset in the middle of a rollout goes on like a fresh one."""
    agent = PPO(make_env("Pendulum", 4, seed=0), config(num_minibatches=1), seed=0)
    x, keep = torch.randn(8, 4, 3), torch.ones(8, 4, 1)
    keep[5] = 0
    wild = tuple(100 * torch.randn_like(part) for part in agent.policy.initial_state(4))
    after, _ = agent.policy.distribution(x, wild, keep)
    fresh, _ = agent.policy.distribution(x[5:], agent.policy.initial_state(4))
    torch.testing.assert_close(after.mean[5:], fresh.mean, rtol=0, atol=0)
    assert (after.mean[:5] - agent.policy.distribution(x[:5], agent.policy.initial_state(4))[0].mean).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_broken_observation_empties_the_memory_of_actor_and_critic(kind: str) -> None:
    """It goes on as from an episode's beginning: what came before the break is known to neither, nor learned from."""
    agent = PPO(make_env("Pendulum", 4, seed=0), config(kind, sequence_length=4, num_minibatches=1), seed=0)
    obs, state, broken, env = agent.env.reset(3), agent.initial_state(), 2, 1
    for t in range(8):
        if t == broken:
            obs["policy"][env, 0] = torch.nan
        action, state = agent.act(obs, state)
        step = agent.env.step(action)
        agent.record(obs, action, state, step)
        obs = step.obs
    batch, _ = agent._targets(agent.next_obs)
    assert batch.keep is not None
    assert (batch.keep == 0).nonzero().tolist() == [[broken + 1, env, 0]]
    assert (batch.weight == 0).nonzero().tolist() == [[broken - 1, env], [broken, env], [broken + 1, env]]
    assert batch.actor_obs[broken, env, 0] == 0
    # The second sequence of this env begins with what was seen after the break alone, that of others with all of it.
    for read, states in ((agent.policy.distribution, batch.actor_state), (agent.critic, batch.critic_state)):
        fresh = read(batch.actor_obs[broken + 1 :, env : env + 1], agent.policy.initial_state(1))[1]
        whole = read(batch.actor_obs[:, :4], agent.policy.initial_state(4))[1]
        for saved, after, all_of_it in zip(states, fresh, whole, strict=True):
            torch.testing.assert_close(saved[:, 4 + env], after[:, 0])
            assert not torch.allclose(saved[:, 4 + env], all_of_it[:, env], atol=1e-3)
            torch.testing.assert_close(saved[:, 4], all_of_it[:, 0])


def test_the_training_loop_clears_the_state_of_ended_episodes() -> None:
    agent = PPO(make_env("Pendulum", 4, seed=0, max_episode_length=8), config(num_minibatches=1), seed=0)
    progress = agent.learn(1)  # 8 steps: every episode has just ended
    assert all((part == 0).all() for part in progress.state)
    assert all((part == 0).all() for part in agent.critic_state)
    progress = PPO(make_env("Pendulum", 4, seed=0, max_episode_length=9), config(num_minibatches=1), seed=0).learn(1)
    assert all((part != 0).any() for part in progress.state)


def test_burn_in_steps_refresh_the_state_and_are_not_learned_from() -> None:
    agent = PPO(make_env("Pendulum", 8, seed=0), config(burn_in=3, clip_value_loss=False), seed=0)
    batch = rollout(agent)
    learned = tree_map(batch._replace(actor_state=(), critic_state=()), lambda x: x[3:])
    loss, metrics = agent._evaluate(batch)
    assert metrics["policy/kl"].abs() < 1e-6  # every step stands beside its own old distribution
    torch.testing.assert_close(metrics["loss/policy"], -learned.advantage.mean(), rtol=1e-3, atol=1e-5)
    error = (learned.value - learned.returns).square().mean()
    torch.testing.assert_close(metrics["loss/value"], error, rtol=1e-4, atol=1e-4)
    for steps, same in ((slice(0, 3), True), (slice(3, 4), False)):
        changed = tree_map(batch, torch.clone)
        for column in (changed.action, changed.advantage, changed.returns):
            column[steps] += 1.0
        assert torch.equal(agent._evaluate(changed)[0], loss) == same
    batch.actor_obs[0] += 1.0
    assert not torch.equal(agent._evaluate(batch)[0], loss)


def test_a_restart_clears_all_that_belongs_to_the_episodes_in_flight() -> None:
    agent = PPO(make_env("Pendulum", 4, seed=0), config(num_minibatches=1), seed=0)
    progress = agent.learn(1)
    carried = [*agent.critic_state, progress.episodes.returns, progress.episodes.lengths]
    assert all((part != 0).any() for part in [*carried, *progress.state])
    progress.restart(agent.env, agent)
    assert all((part == 0).all() for part in [*carried, *progress.state])


def test_time_out_values_continue_the_state_of_their_episode() -> None:
    agent = PPO(make_env("Pendulum", 8, seed=0, max_episode_length=5), config(normalize_value=False), seed=0)
    agent.learn(1)
    obs = torch.randn(9, 8, 3)
    final_obs, keep = torch.randn(8, 8, 3), torch.ones(9, 8, 1)
    keep[4] = 0
    start = tuple(torch.randn_like(part) for part in agent.critic_state)
    carried = tuple(part.clone() for part in start)
    timed_out = torch.rand(8, 8) < 0.3
    with torch.no_grad():
        values, hidden, _ = agent.critic.unroll(obs, final_obs, timed_out, 64, carried, keep, 8)
        state = start
        for t in range(8):
            state = tuple(part * keep[t] for part in state)
            value, state = agent.critic(obs[t : t + 1], state)
            torch.testing.assert_close(values[t : t + 1], value)
            expected = torch.where(timed_out[t], agent.critic(final_obs[t : t + 1], state)[0][0], value[0])
            torch.testing.assert_close(hidden[t], expected)
    for mine, expected in zip(carried, state, strict=True):
        torch.testing.assert_close(mine, expected * keep[8])


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_resume_is_bitwise(kind: str) -> None:
    def build() -> PPO:
        return PPO(make_env("Pendulum", 8, seed=0, max_episode_length=13), config(kind, sequence_length=4), seed=0)

    straight = build()
    straight.learn(6)
    first = build()
    content = snapshot(first.env, first, first.learn(3))
    second = build()
    progress, exact = resume(second.env, second, content)
    learn(second.env, second, 6, progress=progress)
    assert exact
    flat = [a.optimizers[0].value for a in (straight, second)]
    assert torch.equal(*flat)
    assert all(torch.equal(a, b) for a, b in zip(straight.critic_state, second.critic_state, strict=True))


def test_where_the_env_cannot_be_restored_the_states_start_anew() -> None:
    agent = PPO(make_env("Pendulum", 8, seed=0), config(), seed=0)
    content = snapshot(agent.env, agent, agent.learn(2))
    other = PPO(make_env("Pendulum", 8, seed=0), config(), seed=0)
    progress, exact = resume(other.env, other, {**content, "env": None})
    assert not exact
    assert all((part != 0).any() for part in content["agent"]["critic_state"])
    assert all((part == 0).all() for part in [*progress.state, *other.critic_state])


def test_actor_and_critic_may_differ_in_memory() -> None:
    for actor, critic in (("lstm", "none"), ("none", "gru"), ("gru", "lstm")):
        changes = {"actor": network(actor), "critic": network(critic)}
        agent = PPO(make_env("Pendulum", 8, seed=0), config(**changes, burn_in=2), seed=0)
        agent.learn(3)
        assert len(agent.policy.initial_state(8)) == {"none": 0, "gru": 1, "lstm": 2}[actor]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence_length": 3}, "sequence_length"),
        ({"burn_in": 8}, "burn_in"),
        ({"num_minibatches": 3}, "num_minibatches.*8 sequences of 8 steps"),
        ({"share_trunk": True}, "share_trunk"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PPO(make_env("Pendulum", 8), config(**changes))


def test_network_without_memory_has_no_state() -> None:
    net = Network(3, NetworkConfig())
    assert net.initial_state(4) == ()
    assert not net.recurrent
