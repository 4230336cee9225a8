"""Texts that NumPy runs on a CPU and PyTorch elsewhere give the same by either."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rlcore import normalization, replay_rows, statistics
from rlcore.arrays import arrays, none_set
from rlcore.dispatch import plain
from rlcore.distributions import Gaussian
from rlcore.losses import ppo_loss
from rlcore.optimizer import clipped_adam
from rlcore.replay import Replay
from rlcore.replay_rows import read_windows
from rlcore.rollout import Samples
from rlcore.statistics import EpisodeStatistics
from rlcore.types import Step


def by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (normalization, replay_rows, statistics):
        monkeypatch.setattr(module, "arrays", lambda *tensors: (torch, *tensors))


def test_arrays_share_the_tensors_memory() -> None:
    x, flags = torch.zeros(3), torch.zeros(3, dtype=torch.bool)
    _, y, none = arrays(x, None)
    y += 2
    assert x.tolist() == [2, 2, 2] and none is None
    assert none_set(flags) and not none_set(flags | (x > 1))


def vector_steps(number: int, valid: bool) -> list[Step]:
    torch.manual_seed(0)
    steps = []
    for i in range(number):
        ended = torch.rand(2, 5) < (0.2 if i % 3 else 0.0)
        reward = torch.randn(5) * 10 ** (i % 4)
        reward[i % 5] = (torch.nan, torch.inf, -torch.inf, 1.0)[i % 4]
        there = torch.rand(5) < 0.7 if valid else None
        steps.append(Step({}, reward, *ended, None, {}, there))
    return steps


@pytest.mark.parametrize("valid", [False, True])
def test_statistics_are_the_same_by_numpy_and_torch(valid: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> list[dict[str, Tensor]]:
        episodes, reports = EpisodeStatistics(5, torch.device("cpu")), []
        for i, step in enumerate(vector_steps(60, valid)):
            episodes.record(step._replace(reward=step.reward.clone()))
            if i % 7 == 0:
                reports.append({name: value.clone() for name, value in episodes.read().items()})
        return reports

    fast = run()
    by_torch(monkeypatch)
    torch.testing.assert_close(fast, run(), equal_nan=True)


@pytest.mark.parametrize("timeout", ["final_obs", "value", "none"])
@pytest.mark.parametrize("n_step", [1, 3])
def test_a_replay_memory_is_the_same_by_numpy_and_torch(
    n_step: int, timeout: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> tuple[Any, ...]:
        memory, found = Replay(100, 5, {"a": 2}, 1, 8, torch.device("cpu")), []
        for step in vector_steps(47, valid=False):
            obs = {"a": torch.randn(5, 2)}
            memory.write(obs, torch.randn(5, 1), step.reward, step.terminated, step.truncated, obs)
        env = torch.randint(5, (200,))
        for drawn in (True, False):
            start = torch.randint(2**62 if drawn else 20, (200,))
            given = (memory.outcomes, start, env, 0.9, n_step, timeout, memory.num_finals, drawn)
            found.append(tuple(read_windows(*given)))
        return tuple(memory.state_dict(47).values()), found

    fast = run()
    by_torch(monkeypatch)
    torch.testing.assert_close(fast, run(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", [1.0, torch.nan])
@pytest.mark.parametrize("max_norm", [0.5, 1e3])
def test_a_step_that_looks_at_its_norm_is_that_of_the_twin(loss: float, max_norm: float) -> None:
    torch.manual_seed(0)
    start = torch.randn(100)
    buffers: list[list[Tensor]] = [[start.clone(), *torch.zeros(2, 100), torch.zeros(())] for _ in range(2)]
    for _ in range(5):
        gradient, results = torch.randn(100), []
        for take, (value, moment, square, count) in zip((clipped_adam, plain(clipped_adam)), buffers, strict=True):
            given = (value, gradient, moment, square, count, torch.tensor(0.01), torch.tensor(loss))
            limits: Any = {"max_norm": max_norm} | ({"beta1": 0.9, "beta2": 0.999, "eps": 1e-8})
            results.append(take(*given, **limits))
        torch.testing.assert_close(*results)
    torch.testing.assert_close(*buffers)
    assert torch.equal(buffers[0][0], start) == (loss != loss)


def test_the_surrogate_has_the_gradient_of_the_lower_of_the_two() -> None:
    torch.manual_seed(0)
    mean = torch.randn(1, 64, 2, requires_grad=True)
    old, action = Gaussian(torch.randn(1, 64, 2), torch.ones(2)), torch.randn(1, 64, 2)
    action[:, :8], old.mean[:, :8] = 0.0, mean.detach()[:, :8]  # ratios of exactly 1
    policy, advantage = Gaussian(mean, torch.ones(2)), torch.randn(1, 64)
    zeros, ones = torch.zeros(1, 64), torch.ones(1, 64)
    log_prob = old.log_prob(action)
    samples = Samples(action, old, log_prob, zeros, advantage, zeros, ones, actor_obs=zeros)
    options: Any = {"clip_range": 0.2, "value_coef": 0.0, "entropy_coef": 0.0, "clip_value_loss": False}
    loss, _ = ppo_loss(policy, zeros, samples, **options)
    ratio = (policy.log_prob(action) - log_prob).exp()
    expected = -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
    assert torch.equal(loss, expected)
    assert torch.equal(*(torch.autograd.grad(x, mean, retain_graph=True)[0] for x in (loss, expected)))
