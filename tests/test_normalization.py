"""The running normalizer against moments of all the data in float64."""

from __future__ import annotations

import torch

from rlcore.normalization import RunningNormalizer


def test_moments_equal_those_of_all_data_at_once() -> None:
    g = torch.Generator().manual_seed(0)
    batches = [torch.randn(n, 5, generator=g) * (i + 1) + 100 * i for i, n in enumerate([1, 3, 1000, 17, 256])]
    normalizer = RunningNormalizer(5)
    for batch in batches:
        normalizer.update(batch)
    data = torch.cat(batches).double()
    torch.testing.assert_close(normalizer.mean.double(), data.mean(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(normalizer.var.double(), data.var(0, correction=0), rtol=1e-5, atol=0)
    assert normalizer.count == len(data)


def test_long_runs_keep_counting() -> None:
    normalizer = RunningNormalizer(1)
    normalizer.count.fill_(2**25)  # a float32 counter would stop at 2^24
    normalizer.update(torch.zeros(1, 1))
    assert normalizer.count == 2**25 + 1


def test_what_is_not_finite_leaves_the_statistics_of_its_feature() -> None:
    normalizer, plain = RunningNormalizer(4), RunningNormalizer(4)
    first, second = torch.randn(2, 8, 4)
    broken = second.clone()
    broken[4, 0], broken[5, 1], broken[6, 2] = torch.nan, torch.inf, 1e30  # whose square is infinite
    for one, batch in ((normalizer, broken), (plain, second)):
        one.update(first)
        one.update(batch)
    torch.testing.assert_close(normalizer.mean[:3], first.mean(0)[:3])
    torch.testing.assert_close(normalizer.var[:3], first.var(0, correction=0)[:3])
    assert torch.equal(normalizer.mean[3], plain.mean[3]) and torch.equal(normalizer.var[3], plain.var[3])


def test_large_offset_does_not_cancel() -> None:
    """The sum-of-squares shortcut loses all digits here; the pairwise form does not."""
    normalizer = RunningNormalizer(1)
    x = torch.randn(100, 4096, 1) + 4000.0
    for batch in x:
        normalizer.update(batch)
    torch.testing.assert_close(normalizer.var.double(), x.double().var(correction=0).reshape(1), rtol=1e-3, atol=0)


def test_forward_changes_nothing_and_inverse_undoes_it() -> None:
    normalizer = RunningNormalizer(3)
    normalizer.update(torch.randn(64, 3) * 5 + 2)
    before = {k: v.clone() for k, v in normalizer.state_dict().items()}
    x = torch.randn(10, 3)
    torch.testing.assert_close(normalizer.inverse(normalizer(x)), x)
    assert all(torch.equal(before[k], v) for k, v in normalizer.state_dict().items())


def test_constant_feature_gives_zero_and_outliers_are_clipped() -> None:
    normalizer = RunningNormalizer(2, clip=10.0)
    normalizer.update(torch.tensor([[3.0, 0.0], [3.0, 2.0]]))
    y = normalizer(torch.tensor([[3.0, 1e9]]))
    torch.testing.assert_close(y, torch.tensor([[0.0, 10.0]]))
