"""GAE and bootstraps against sums written out by hand, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlcore.dispatch import plain
from rlcore.returns import bootstrap_values, gae, room_for_timeouts

T, N = 40, 7
GAMMA, LAMBDA = 0.97, 0.9


def random_rollout(seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "rewards": torch.randn(T, N, generator=g, dtype=torch.float64),
        "values": torch.randn(T + 1, N, generator=g, dtype=torch.float64),
        "terminated": torch.rand(T, N, generator=g) < 0.08,
        "truncated": torch.rand(T, N, generator=g) < 0.08,
        "timeout_values": torch.randn(T, N, generator=g, dtype=torch.float64),
    }


def advantages_of(r: dict[str, Tensor]) -> Tensor:
    next_values = bootstrap_values(r["values"], r["terminated"], r["truncated"], r["timeout_values"])
    done = r["terminated"] | r["truncated"]
    return gae(r["rewards"], r["values"][:-1], next_values, done, GAMMA, LAMBDA)[0]


def test_nothing_crosses_the_end_of_an_episode_not_even_what_is_not_finite() -> None:
    rollout = random_rollout()
    rollout["truncated"][9] = True
    whole = advantages_of(rollout)
    rollout["rewards"][10:] = torch.nan
    assert torch.equal(advantages_of(rollout)[:10], whole[:10])


def slow_advantages(r: dict[str, Tensor]) -> Tensor:
    """The sum of discounted TD errors up to the episode's end, term by term."""
    result = torch.zeros(T, N, dtype=torch.float64)
    for n in range(N):
        for t in range(T):
            weight = 1.0
            for k in range(t, T):
                terminated, truncated = bool(r["terminated"][k, n]), bool(r["truncated"][k, n])
                if terminated:
                    future = 0.0
                elif truncated:
                    future = float(r["timeout_values"][k, n])
                else:
                    future = float(r["values"][k + 1, n])
                result[t, n] += weight * (float(r["rewards"][k, n]) + GAMMA * future - float(r["values"][k, n]))
                weight *= GAMMA * LAMBDA
                if terminated or truncated:
                    break
    return result


@pytest.mark.parametrize("seed", range(3))
def test_gae_equals_the_sum_written_out(seed: int) -> None:
    rollout = random_rollout(seed)
    assert (rollout["terminated"] & rollout["truncated"]).any() or seed  # seed 0 covers both flags at once
    torch.testing.assert_close(advantages_of(rollout), slow_advantages(rollout), rtol=1e-12, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize(("steps", "envs"), [(24, 4096), (1, 5), (130, 33)])
def test_kernel_equals_its_twin(steps: int, envs: int) -> None:
    rewards, values, next_values = torch.randn(3, steps, envs, device="cuda")
    done = torch.rand(steps, envs, device="cuda") < 0.1
    expected = plain(gae)(rewards.double(), values.double(), next_values.double(), done, GAMMA, LAMBDA)
    for got, right in zip(gae(rewards, values, next_values, done, GAMMA, LAMBDA), expected, strict=True):
        torch.testing.assert_close(got.double(), right, rtol=1e-5, atol=1e-5)


def test_returns_are_discounted_rewards_when_lambda_is_one() -> None:
    """Closed form: reward 1 for ever, cut by nothing, gives the geometric series."""
    rewards, values = torch.ones(200, 1, dtype=torch.float64), torch.zeros(200, 1, dtype=torch.float64)
    done = torch.zeros(200, 1, dtype=torch.bool)
    next_values = torch.zeros(200, 1, dtype=torch.float64)
    _, returns = gae(rewards, values, next_values, done, 0.9, 1.0)
    expected = (1 - 0.9 ** torch.arange(200, 0, -1, dtype=torch.float64)) / 0.1
    torch.testing.assert_close(returns[:, 0], expected)


def test_lambda_zero_is_the_one_step_error() -> None:
    r = random_rollout()
    next_values = bootstrap_values(r["values"], r["terminated"], r["truncated"], r["timeout_values"])
    done = r["terminated"] | r["truncated"]
    advantages, returns = gae(r["rewards"], r["values"][:-1], next_values, done, GAMMA, 0.0)
    torch.testing.assert_close(advantages, r["rewards"] + GAMMA * next_values - r["values"][:-1])
    torch.testing.assert_close(returns, r["rewards"] + GAMMA * next_values)


def test_no_reward_crosses_an_episode_end() -> None:
    for flag in ("terminated", "truncated"):
        r = random_rollout()
        r["terminated"].zero_()
        r["truncated"].zero_()
        r[flag][20] = True
        before = advantages_of(r)
        r["rewards"][21:] += 1000.0
        r["values"][21:] -= 500.0
        after = advantages_of(r)
        torch.testing.assert_close(after[:21], before[:21], rtol=0, atol=0)
        assert (after[21:] != before[21:]).all()


def test_terminated_instead_of_truncated_removes_the_bootstrap() -> None:
    r = random_rollout()
    r["terminated"].zero_()
    r["truncated"].zero_()
    r["truncated"][T - 1] = True
    cut = advantages_of(r)
    r["terminated"], r["truncated"] = r["truncated"], r["terminated"]
    ended = advantages_of(r)
    torch.testing.assert_close(cut[T - 1] - ended[T - 1], GAMMA * r["timeout_values"][T - 1])


def test_terminated_wins_when_both_flags_are_set() -> None:
    r = random_rollout()
    both = r["terminated"] | r["truncated"]
    r["terminated"], r["truncated"] = both.clone(), both.clone()
    with_both = advantages_of(r)
    r["truncated"].zero_()
    torch.testing.assert_close(advantages_of(r), with_both, rtol=0, atol=0)


def test_value_mode_equals_adding_the_value_to_the_reward() -> None:
    """Bootstrapping a time-out from V(s_t) is what rsl_rl does by r += gamma * V(s_t) and an end without a future."""
    r = random_rollout()
    r["truncated"] &= ~r["terminated"]
    r["timeout_values"] = r["values"][:-1]
    ours = advantages_of(r)
    r["rewards"] = r["rewards"] + GAMMA * r["values"][:-1] * r["truncated"]
    r["terminated"] = r["terminated"] | r["truncated"]
    torch.testing.assert_close(ours, advantages_of(r))


@pytest.mark.parametrize(
    ("steps", "limit", "room"), [(24, 1000, 2), (1000, 1000, 41), (1000, 50, 81), (1000, 1, 4001), (1000, 10**6, 41)]
)
def test_room_for_time_outs_is_never_that_of_long_episodes_alone(steps: int, limit: int, room: int) -> None:
    assert room_for_timeouts(steps, limit) == room
