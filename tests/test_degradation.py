"""Statistics of results under growing disturbances, against closed forms and slow plain references."""

from __future__ import annotations

import math

import pytest
import torch

from rlcore.train.degradation import (
    SETTLED,
    area,
    crossing,
    falling_fit,
    nominal_band,
    ratio_bootstrap,
    recovery_steps,
    return_ratio,
    value_at_risk,
)


def test_a_share_of_rewards_and_of_costs() -> None:
    mean = torch.tensor([5.0, 12.0, -5.0, -20.0, -5.0, 3.0, 0.0, 1.0])
    nominal = torch.tensor([10.0, 10.0, 10.0, -10.0, -10.0, -10.0, -10.0, 0.0])
    expected = torch.tensor([0.5, 1.2, -0.5, 0.5, 2.0, math.inf, math.inf, math.nan])
    assert torch.equal(return_ratio(mean, nominal).nan_to_num(-7), expected.nan_to_num(-7))


def test_the_fit_that_never_rises_is_that_of_the_min_max_formula() -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        values = torch.rand(8, generator=generator).double()
        weights = 0.1 + torch.rand(8, generator=generator).double()

        def mean(a: int, b: int, y: torch.Tensor = values, w: torch.Tensor = weights) -> float:
            return float((y[a : b + 1] * w[a : b + 1]).sum() / w[a : b + 1].sum())

        # Barlow et al. 1972, theorem 1.4, for a falling sequence: min over a <= i of max over b >= i.
        expected = [min(max(mean(a, b) for b in range(i, 8)) for a in range(i + 1)) for i in range(8)]
        assert falling_fit(values.tolist(), weights.tolist()) == pytest.approx(expected)
    assert falling_fit([3.0, 2.0, 1.0], [1, 1, 1]) == [3.0, 2.0, 1.0]


def test_the_breakdown_is_where_the_line_between_two_magnitudes_crosses() -> None:
    assert crossing([0.0, 1.0, 3.0], [1.0, 0.8, 0.2], 0.5) == pytest.approx(2.0)
    assert crossing([0.0, 1.0], [1.0, 0.5], 0.5) is None  # at the threshold it holds
    assert crossing([0.0, 1.0], [0.4, 0.3], 0.5) == 0.0


def test_the_area_is_a_mean_height_whatever_the_spacing() -> None:
    assert area([0.7, 1.0, 1.5], [1.0, 1.0, 1.0]) == pytest.approx(1.0)
    assert area([0.0, 1.0, 4.0], [1.0, 0.75, 0.0]) == pytest.approx((0.875 * 1 + 0.375 * 3) / 4)
    assert area([2.0], [0.3]) == 0.3
    assert math.isnan(area([], []))


def test_the_worst_tenth_takes_part_of_an_episode() -> None:
    assert value_at_risk(torch.arange(100.0)) == pytest.approx(4.5)  # of 0 to 9
    # Of 25 episodes the two worst count whole and the third half.
    assert value_at_risk(torch.arange(25.0).flip(0)) == pytest.approx((0 + 1 + 0.5 * 2) / 2.5)
    assert value_at_risk(torch.tensor([3.0, 5.0])) == pytest.approx(3.0)
    assert math.isnan(value_at_risk(torch.tensor([])))


def test_the_interval_of_a_ratio_is_that_of_the_delta_method_where_episodes_are_many() -> None:
    generator = torch.Generator().manual_seed(3)
    x = 6 + torch.randn(2000, generator=generator).double()
    y = 10 + 2 * torch.randn(2000, generator=generator).double()
    ratio = float(x.mean() / y.mean())
    variance = float(x.var() / x.mean() ** 2 + y.var() / y.mean() ** 2) / 2000
    half = 1.96 * ratio * math.sqrt(variance)
    low, high = ratio_bootstrap(x, y, paired=False)
    assert (low, high) == pytest.approx((ratio - half, ratio + half), abs=0.12 * half)
    costs = ratio_bootstrap(-y, -x, paired=False)  # -x is the nominal one: x / y is left
    assert costs == pytest.approx((ratio - half, ratio + half), abs=0.12 * half)


def test_pairs_tell_more_where_episodes_are_alike() -> None:
    generator = torch.Generator().manual_seed(4)
    nominal = 10 + 3 * torch.randn(64, generator=generator).double()
    values = 0.8 * nominal + 0.01 * torch.randn(64, generator=generator).double()
    low, high = ratio_bootstrap(values, nominal, paired=True)
    assert low < 0.8 < high and high - low < 0.01
    apart = ratio_bootstrap(values, nominal, paired=False)
    assert apart[1] - apart[0] > 0.1
    # An episode that does not count in one of the two is in neither.
    broken = torch.cat((torch.tensor([math.nan]), values[1:]))
    assert ratio_bootstrap(broken, nominal, paired=True) == ratio_bootstrap(values[1:], nominal[1:], paired=True)
    assert ratio_bootstrap(values[:1], nominal, paired=False) == (-math.inf, math.inf)


def test_intervals_of_ratios_hold_as_often_as_they_say() -> None:
    generator = torch.Generator().manual_seed(5)
    held = 0
    for i in range(200):
        shared = torch.randn(64, generator=generator).double()
        nominal = -(5 + shared + 0.5 * torch.randn(64, generator=generator).double())
        values = -(8 + 2 * shared + 0.5 * torch.randn(64, generator=generator).double())
        low, high = ratio_bootstrap(values, nominal, paired=True, seed=i)
        held += low <= 5 / 8 <= high
    assert 178 <= held <= 198  # of 190: the bootstrap of 64 is a little short


def test_a_push_is_over_when_the_reward_stays_back() -> None:
    edge = torch.full((16,), -1.0)
    rewards = torch.full((16, 7), -1.1)  # a little below the edge is nominal still
    rewards[:3, 1] = -5.0  # three steps out
    rewards[:2, 2] = rewards[4, 2] = -5.0  # back, and out once more before it has settled
    rewards[6:, 3] = math.nan  # it ends
    rewards[4:9, 4] = -5.0  # a fall that takes its time
    rewards[10:, 5] = -5.0  # and one that nothing follows
    rewards[1:4, 6] = rewards[14, 6] = -5.0  # what comes when it has settled has another cause
    assert recovery_steps(rewards, edge, 0.2).tolist() == [0.0, 3.0, 5.0, math.inf, 9.0, math.inf, 4.0]
    assert recovery_steps(rewards, edge, 0.0)[0] == math.inf
    few = SETTLED - 1
    assert recovery_steps(rewards[:few], edge[:few], 0.2).tolist()[:2] == [0.0, math.inf]


def test_what_the_same_episode_does_without_a_push_is_not_of_the_push() -> None:
    edge, width = torch.full((12,), -1.0), 0.5
    twins = torch.zeros(12, 3)
    twins[2:6, 0] = -4.0  # a new command, say
    twins[7:, 1] = math.nan  # it is over by itself
    rewards = twins.clone()
    rewards[2:6, 0] = -4.4
    rewards[2:4, 2] = -4.4
    assert recovery_steps(rewards, edge, width, twins).tolist() == [0.0, 0.0, 4.0]
    assert recovery_steps(rewards, edge, width).tolist() == [6.0, math.inf, 4.0]


def test_the_band_is_what_nearly_all_nominal_episodes_exceed() -> None:
    rewards = torch.stack((torch.arange(101.0), torch.full((101,), 50.0)))  # [2, 101]
    flat = sorted(rewards.flatten().tolist())  # 202 numbers: quantile q is at q * 201
    low, high = (flat[int(q)] + (q % 1) * (flat[int(q) + 1] - flat[int(q)]) for q in (0.05 * 201, 0.95 * 201))
    edge, width = nominal_band(rewards)
    assert edge.tolist() == pytest.approx([5.0, 50.0]) and width == pytest.approx(0.05 * (high - low))
    rewards[:, 1:] = math.nan
    rewards[0] = math.nan
    edge, width = nominal_band(rewards)
    assert math.isnan(edge[0]) and edge[1] == 50.0 and width == 0.0
