"""The arithmetic of late and noisy rows against plain loops in float64: as it is written, and as kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rlcore.dispatch import plain
from rlcore.envs.disturb_rows import Errors, Lag, late, sent, shown

SHAPES = [(1, 1, 1), (7, 3, 5), (300, 6, 2), (129, 33, 9)]
"""Envs, numbers, and the longest delay."""


def made(envs: int, size: int, longest: int, device: torch.device) -> tuple[Tensor, Lag, Tensor]:
    """A queue, how late each env is (whole steps among them), and where an episode begins."""
    queue = torch.randn(longest + 1, envs, size)
    lag = Lag(torch.zeros(2, envs, dtype=torch.int64), torch.zeros(envs, 1), None)
    steps = torch.rand(envs) * longest
    steps[::3] = steps[::3].round()
    lag.set(steps)
    begun = torch.rand(envs) < 0.3
    return queue.to(device), Lag(lag.around.to(device), lag.fraction.to(device), None), begun.to(device)


def slowly(queue: Tensor, now: Tensor, final: Tensor, begun: Tensor, lag: Lag) -> tuple[Tensor, Tensor, Tensor]:
    """What is seen, what was seen before, and the queue, env by env."""
    old, after = queue.double().cpu(), queue.double().cpu().clone()
    seen, before = torch.empty_like(old[0]), torch.empty_like(old[0])
    for env in range(len(begun)):
        first = final[env] if begun[env] else now[env]
        line = [first.double().cpu(), *old[:-1, env]]
        near, far = (line[int(k)] for k in lag.around[:, env])
        share = float(lag.fraction[env])
        before[env] = (1 - share) * near + share * far
        seen[env] = now[env].double().cpu() if begun[env] else before[env]
        after[:, env] = seen[env] if begun[env] else torch.stack(line)
    return seen, before, after


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_come_late_as_written(shape: tuple[int, int, int]) -> None:
    check_late(*shape, torch.device("cpu"), plain)


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_come_late_by_kernels(shape: tuple[int, int, int], kernel_device: torch.device) -> None:
    check_late(*shape, kernel_device, lambda function: function)


def check_late(envs: int, size: int, longest: int, device: torch.device, form: Callable[[Any], Any]) -> None:
    torch.manual_seed(0)
    queue, lag, begun = made(envs, size, longest, device)
    now, final = torch.randn(2, envs, size, device=device)
    for last in (final, None):
        expected = slowly(queue, now, now if last is None else last, begun, lag)
        mine = queue.clone()
        seen, before = form(late)(mine, now, last, begun, lag)
        for got, wanted in zip((seen, before, mine), expected, strict=True):
            torch.testing.assert_close(got.double().cpu(), wanted, atol=1e-6, rtol=1e-6)
    seen, _, after = slowly(queue, now, now, begun, lag)
    mine = queue.clone()
    torch.testing.assert_close(form(sent)(mine, now, begun, lag).double().cpu(), seen, atol=1e-6, rtol=1e-6)
    assert torch.equal(mine.double().cpu(), after)
    whole = lag.fraction[:, 0] == 0
    exact, _ = form(late)(queue.clone(), now, final, begun, lag)
    assert torch.equal(exact[whole].double().cpu(), slowly(queue, now, final, begun, lag)[0][whole.cpu()])


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("hidden", [True, False])
def test_noise_and_bias_as_written(noise: bool, bias: bool, hidden: bool) -> None:
    check_shown(noise, bias, hidden, torch.device("cpu"), plain)


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("hidden", [True, False])
def test_noise_and_bias_by_kernels(noise: bool, bias: bool, hidden: bool, kernel_device: torch.device) -> None:
    check_shown(noise, bias, hidden, kernel_device, lambda function: function)


def check_shown(noise: bool, bias: bool, hidden: bool, device: torch.device, form: Callable[[Any], Any]) -> None:
    torch.manual_seed(0)
    raw, final, sigma, most, unit, white, drawn = torch.randn(7, 130, 9, device=device)
    begun = torch.rand(130, device=device) < 0.3
    last = None if hidden else final
    errors = Errors(sigma if noise else None, most if bias else None, unit.clone() if bias else None)
    obs, before = form(shown)(raw, last, errors, white if noise else None, drawn if bias else None, begun)
    after = torch.where(begun[:, None], drawn, unit).double()
    off = sigma.double() * white.double() * noise
    torch.testing.assert_close(obs.double(), raw.double() + most.double() * after * bias + off, atol=1e-5, rtol=1e-5)
    assert (before is None) == hidden
    if before is not None:
        wanted = final.double() + most.double() * unit.double() * bias + off
        torch.testing.assert_close(before.double(), wanted, atol=1e-5, rtol=1e-5)
    if errors.unit is not None:
        assert torch.equal(errors.unit.double(), after)
    again = Errors(sigma if noise else None, most if bias else None, errors.unit)  # nothing drawn: a reset
    obs, _ = form(shown)(raw, None, again, white if noise else None, None, begun)
    torch.testing.assert_close(obs.double(), raw.double() + most.double() * after * bias + off, atol=1e-5, rtol=1e-5)


def test_nothing_is_changed_by_amplitudes_and_delays_of_nothing(kernel_device: torch.device) -> None:
    torch.manual_seed(0)
    queue, lag, begun = made(50, 4, 3, kernel_device)
    lag.set(torch.zeros(50, device=kernel_device))
    now, final, white = torch.randn(3, 50, 4, device=kernel_device)
    nothing = torch.zeros(50, 4, device=kernel_device)
    seen, _ = late(queue, now, final, begun, lag)
    assert torch.equal(seen, now)
    assert torch.equal(sent(queue, now, begun, lag), now)
    obs, before = shown(now, final, Errors(nothing, nothing, white.clone()), white, white, begun)
    assert torch.equal(obs, now) and before is not None and torch.equal(before, final)


def test_the_steps_around_a_delay() -> None:
    lag = Lag(torch.zeros(2, 4, dtype=torch.int64), torch.zeros(4, 1), torch.zeros(1, 4, dtype=torch.int64))
    lag.set(torch.tensor([0.0, 1.25, 2.5, 5.0]))
    assert lag.around.tolist() == [[0, 1, 2, 5], [0, 2, 3, 5]] and lag.fraction[:, 0].tolist() == [0, 0.25, 0.5, 0]
    assert lag.whole is not None and lag.whole.tolist() == [[0, 1, 3, 5]]
    assert math.isclose(float(lag.fraction.sum()), 0.75)
