"""The running normalizer against moments of all the data in float64."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import Place
from torch import Tensor

from rlcore.dispatch import kernels_off, plain
from rlcore.normalization import (
    GroupNormalizer,
    NoNormalizer,
    ReturnScale,
    RunningNormalizer,
    broken_rewards,
    make_normalizer,
    reward_limit,
    usable,
)


def test_moments_equal_those_of_all_data_at_once() -> None:
    g = torch.Generator().manual_seed(0)
    batches = [torch.randn(n, 5, generator=g) * (i + 1) + 100 * i for i, n in enumerate([1, 3, 1000, 17, 256])]
    normalizer = RunningNormalizer(5)
    for batch in batches:
        normalizer.update(batch)
    data = torch.cat(batches).double()
    torch.testing.assert_close(normalizer.mean.double(), data.mean(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(normalizer.var.double(), data.var(0, correction=0), rtol=1e-5, atol=0)
    assert (normalizer.count == len(data)).all()


def test_long_runs_keep_counting() -> None:
    normalizer = RunningNormalizer(1)
    normalizer.count.fill_(2**25)  # a float32 counter would stop at 2^24
    normalizer.update(torch.zeros(1, 1))
    assert normalizer.count == 2**25 + 1


def test_what_is_not_finite_does_not_count() -> None:
    """Neither its number nor its feature's other numbers in the batch are taken for something else."""
    normalizer = RunningNormalizer(4)
    first, second, third = torch.randn(3, 8, 4) * 2 + 5
    for column, number in enumerate((torch.nan, torch.inf, 1e30)):
        second[column, column] = number
    second[:, 1] = torch.nan  # a feature that a batch leaves out as a whole
    for batch in (first, second, third):
        normalizer.update(batch)
    data = torch.cat([first, second, third]).double()
    data[data > 1e20] = torch.nan
    for column in range(4):
        known = data[:, column][~data[:, column].isnan()]
        assert normalizer.count[column] == len(known) == (23, 16, 23, 24)[column]
        torch.testing.assert_close(normalizer.mean[column].double(), known.mean(), rtol=1e-5, atol=0)
        torch.testing.assert_close(normalizer.var[column].double(), known.var(correction=0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_moments_are_those_of_the_numbers_that_are_there(share: float) -> None:
    normalizer, data = RunningNormalizer(1), torch.randn(200, 32, 1) + 5
    data[torch.rand(200, 32) < share] = torch.nan
    for batch in data:
        normalizer.update(batch)
    there = data[~data.isnan()].double()
    assert normalizer.count == len(there)
    torch.testing.assert_close(normalizer.mean.double(), there.mean().view(1), rtol=1e-5, atol=0)
    torch.testing.assert_close(normalizer.var.double(), there.var(correction=0).view(1), rtol=1e-4, atol=0)


def stream(size: int, steps: int, scale: float, offset: float = 0.0) -> Tensor:
    """What ``size`` envs show of one feature, ``[steps, size, 1]``."""
    return torch.randn(steps, size, 1) * scale + offset


@pytest.mark.parametrize("when", [0, 3, 160, 399])
@pytest.mark.parametrize("number", [1e3, 1e6, -1e6, 1e15, 3e38])
def test_one_wild_number_leaves_the_deviation(number: float, when: int) -> None:
    if number == 1e3 and when < 160:
        pytest.skip("within the first 100 batches a feature may begin to move")
    for offset in (0.0, 40.0):
        normalizer, data = RunningNormalizer(1), stream(128, 400, 0.15, offset)
        data[when, 7] = number
        for batch in data:
            normalizer.update(batch)
        assert float(normalizer.var.sqrt()) == pytest.approx(0.15, rel=0.03)
        assert float(normalizer.mean) == pytest.approx(offset, abs=0.01)
        assert normalizer.outliers.flatten().tolist() == [1, 7]


@pytest.mark.parametrize(("every", "number"), [(1, 1e6), (1, 1e15), (20, 1e3), (20, 1e15)])
def test_an_env_that_is_wild_for_good_leaves_the_deviation(every: int, number: float) -> None:
    normalizer, data = RunningNormalizer(1), stream(64, 500, 0.15)
    data[100::every, 7] = number
    for batch in data:
        normalizer.update(batch)
    assert float(normalizer.var.sqrt()) == pytest.approx(0.15, rel=0.25)
    assert float(normalizer.mean.abs()) < 0.05


@pytest.mark.parametrize("size", [1, 64])
@pytest.mark.parametrize(
    ("before", "after"), [(0.15, 1.5), (0.15, 150.0), (0.15, 1.5e5), (0.0, 0.5), (0.0, 1e3), (0.0, 1e7)]
)
def test_a_true_change_of_scale_is_followed(before: float, after: float, size: int) -> None:
    """A sensor that begins to move, or a curriculum; nearly as Welford's method would, which forgets nothing."""
    normalizer = RunningNormalizer(1)
    for batch in torch.cat([stream(size, 300, before, 3.0), stream(size, 300, after, 3.0)]):
        normalizer.update(batch)
    assert float(normalizer.var.sqrt()) == pytest.approx(after * math.sqrt(0.5), rel=0.15)


def test_rare_events_count() -> None:
    normalizer, data = RunningNormalizer(1), (torch.rand(500, 64, 1) < 0.01).float()
    for batch in data:
        normalizer.update(batch)
    assert float(normalizer.var.sqrt()) == pytest.approx(float(data.std()), rel=1e-3)


def test_statistics_that_were_counted_for_all_features_at_once_load() -> None:
    normalizer = RunningNormalizer(3)
    normalizer.update(torch.randn(10, 3))
    saved = normalizer.state_dict()
    saved = {"mean": saved["mean"], "var": saved["var"], "count": torch.tensor(10.0, dtype=torch.float64)}
    loaded = RunningNormalizer(3)
    loaded.load_state_dict(saved)
    assert loaded.count.tolist() == [10, 10, 10] and torch.equal(loaded.var, normalizer.var)
    nested = torch.nn.ModuleDict({"one": RunningNormalizer(3)})
    nested.load_state_dict({f"one.{name}": value for name, value in saved.items()})
    assert nested["one"].count.tolist() == [10, 10, 10]


@pytest.mark.parametrize("clip", [None, 10.0])
def test_a_network_reads_no_number_that_cannot_be_used(clip: float | None) -> None:
    for normalizer in (RunningNormalizer(3, clip=clip), NoNormalizer()):
        x = torch.randn(5, 3)
        clean, broken = normalizer.usable(x)
        assert torch.equal(clean, normalizer(x)) and broken.tolist() == [-1] * 5
        x[1, 2], x[2, 0], x[3, 1], x[3, 2] = torch.nan, torch.inf, -torch.inf, torch.nan
        x[4, 1] = 1e15
        y, broken = normalizer.usable(x)
        limited = clip is not None and isinstance(normalizer, RunningNormalizer)
        assert broken.tolist() == [-1, 2, 0, 1, -1 if limited else 1]
        assert y.isfinite().all() and y.abs().max() < 20
        for row, column in ((1, 2), (2, 0), (3, 1), (3, 2)):
            assert y[row, column] == 0
        assert torch.equal(y[1, :2], clean[1, :2])  # the others of the row stay


def test_groups_that_are_not_normalized_come_as_they_are() -> None:
    some, whole = make_normalizer({"a": 2, "b": 3}, ("b",), 5.0), RunningNormalizer(5, clip=5.0)
    assert isinstance(some, GroupNormalizer)
    raw, known = torch.tensor([0, 1]), torch.tensor([2, 3, 4])
    for x in torch.randn(150, 20, 5) * 7 + 3:
        some.update(x)
        whole.update(x)
    assert all(torch.equal(whole.state_dict()[key], value) for key, value in some.state_dict().items())
    x = 9 * torch.randn(6, 5)
    y = some(x)
    assert torch.equal(y[:, raw], x[:, raw]) and torch.equal(y[:, known], whole(x)[:, known])
    assert y[:, raw].abs().max() > 5
    assert torch.equal(some.usable(x)[0], y) and some.usable(x)[1].tolist() == [-1] * 6
    torch.testing.assert_close(some.inverse(y / 4), torch.where(some.normalized, whole.inverse(y / 4), y / 4))
    x[0, 0], x[1, 1], x[2, 2], x[4, 3], x[5, 0] = torch.nan, 1e15, torch.inf, 1e15, -1e9
    x[3, [1, 4]] = torch.nan
    clean, broken = some.usable(x)
    assert broken.tolist() == [0, 1, 2, 1, -1, -1]
    assert clean[0, 0] == clean[1, 1] == clean[2, 2] == clean[3, 4] == 0
    assert (clean[4, 3], clean[5, 0]) == (5, -1e9)
    some.update(x)
    assert some.outliers[0].tolist() == [0, 0, 0, 1, 0]  # 1e15 is told of where it is limited


@pytest.mark.parametrize(
    ("wanted", "kind"),
    [(True, RunningNormalizer), (("b", "a"), RunningNormalizer), (False, NoNormalizer), ((), NoNormalizer)],
)
def test_normalizers_by_what_is_to_be_normalized(wanted: bool | tuple[str, ...], kind: type) -> None:
    assert type(make_normalizer({"a": 2, "b": 3}, wanted, None)) is kind
    assert type(make_normalizer({}, wanted, None)) is NoNormalizer
    assert type(make_normalizer({"c": 1}, wanted, None)) is (RunningNormalizer if wanted is True else NoNormalizer)


def test_broken_rewards_are_told_from_large_ones() -> None:
    for scale in (1e-3, 1.0, 1e3, 1e8):
        rewards = torch.randn(24, 64) * scale
        rewards[5, 3], rewards[6, 3], rewards[7, 4] = torch.nan, 1e15 * max(scale, 1), -torch.inf
        assert broken_rewards(rewards).nonzero().tolist() == [[5, 3], [6, 3], [7, 4]]
    rewards = torch.zeros(24, 64)
    rewards[3, 4], rewards[9, 9] = 5000.0, -1e6  # a rare success, and a fault
    assert broken_rewards(rewards).nonzero().tolist() == [[9, 9]]

    level = torch.zeros(2)
    broken = torch.stack([row.abs() > reward_limit(level, row) for row in rewards])
    assert broken.nonzero().tolist() == [[9, 9]]
    new = torch.full((64,), 1e9)
    follows = [float(reward_limit(level, new)) > 1e9 for _ in range(1000)]
    assert not follows[0] and follows[-1]  # a scale that stays


def test_a_divisor_of_rewards_comes_down_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlcore.normalization.DECAY", 0.5 ** (1 / 100))
    scale, done = ReturnScale(8, gamma=0.9, limit=5.0), torch.zeros(8, dtype=torch.bool)
    for _ in range(300):
        scale.update(torch.randn(8), done)
    usual, glitch = float(scale()), torch.zeros(8)
    glitch[3] = -5e3
    scale.update(glitch, done)
    raised = float(scale())
    assert raised < 5 * usual  # a thousandfold otherwise
    for _ in range(800):
        scale.update(torch.randn(8), done)
    assert float(scale()) == pytest.approx(usual, rel=0.2)


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


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (5, 3), (64, 33), (200, 40), (8200, 1)])
@pytest.mark.parametrize("clip", [None, 5.0])
@pytest.mark.parametrize("some", [False, True])
def test_kernels_equal_the_plain_functions(
    rows: int, size: int, clip: float | None, some: bool, kernel_place: Place
) -> None:
    device = kernel_place.device
    twin, normalizer = (
        GroupNormalizer(torch.arange(size) % 3 == 0, clip) if some else RunningNormalizer(size, clip=clip)
        for _ in range(2)
    )
    twin.warmup = normalizer.warmup = 4
    normalizer.to(device)
    offset, scale = torch.randn(size) * 50, torch.rand(size) * 3
    for step in range(12 if rows < 1000 else 2):  # the interpreter is slow
        x = torch.randn(rows, size) * scale + offset
        wild = torch.rand(rows, size) < 0.03
        x = torch.where(wild, torch.tensor([torch.nan, torch.inf, -1e15, 3e38, 500.0, -1e6])[step % 6], x)
        if step > 7:
            x[:, 0] = 1e7 * torch.randn(rows)  # for good
        with kernels_off():
            twin.update(x)
            expected = twin.usable(x)
        normalizer.update(x.to(device))
        for name, value in twin.named_buffers():
            torch.testing.assert_close(getattr(normalizer, name).cpu(), value, rtol=1e-4, atol=1e-5, msg=name)
        y, broken = normalizer.usable(x.to(device))
        torch.testing.assert_close(y.cpu(), expected[0], rtol=1e-3, atol=1e-3)
        assert torch.equal(broken.cpu(), expected[1])
        raw = NoNormalizer().usable(x.to(device))
        for got, right in zip(raw, plain(usable)(x, None), strict=True):
            assert torch.equal(got.cpu(), right)
