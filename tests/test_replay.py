"""The replay memory against a reference that keeps every step in a list; each test is a mistake that others make."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from conftest import Place, leaves
from torch import Tensor

from rlcore import ConfigError
from rlcore.device_memory import free_memory
from rlcore.replay import Replay, Transitions
from rlcore.train.cli import main
from rlcore.types import Timeout

GAMMA = 0.9
CPU = torch.device("cpu")


def moved(value: Any, device: torch.device) -> Any:
    """The same on another device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: moved(item, device) for key, item in value.items()}
    return type(value)(*(moved(item, device) for item in value)) if isinstance(value, tuple) else value


class History:
    """Every step that was written, with observations that tell where they come from: step, env, 1 if final."""

    def __init__(self, place: Place, num_envs: int, rows: int, **options: Any) -> None:
        self.num_envs, self.device = num_envs, place.device
        options = {"home": place.home, **options}
        self.replay = Replay(rows * num_envs, num_envs, {"a": 2, "b": 1}, 1, 5, place.device, **options)
        self.steps: list[dict[str, Tensor]] = []
        self.final_numbers: dict[tuple[int, int], int] = {}

    def _obs(self, final: float) -> dict[str, Tensor]:
        env = torch.arange(self.num_envs).float()
        here = torch.full_like(env, float(len(self.steps)))
        return {"a": torch.stack([here, env], 1), "b": torch.full((self.num_envs, 1), final)}

    def step(
        self,
        terminated: tuple[int, ...] = (),
        truncated: tuple[int, ...] = (),
        final: bool = True,
        broken: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        ends = torch.zeros(2, self.num_envs, dtype=torch.bool)
        ends[0, list(terminated)] = True
        ends[1, list(truncated)] = True
        t = len(self.steps)
        for n in range(self.num_envs):
            if ends[1, n] and not ends[0, n]:
                self.final_numbers[t, n] = len(self.final_numbers)
        row = {"reward": torch.randn(self.num_envs), "terminated": ends[0], "truncated": ends[1]}
        row["action"] = torch.randn(self.num_envs, 1)
        final_obs = self._obs(1.0)
        for value in final_obs.values():
            value[~(ends[0] | ends[1])] = torch.nan  # only rows of ended episodes mean something
        whole = {"obs": self._obs(0.0), **row, "final_obs": final_obs if final else None}
        for what, where in broken.items():
            value = whole[what]["b" if t % 2 else "a"] if isinstance(whole[what], dict) else whole[what].unsqueeze(-1)
            column = t % value.shape[-1]  # one number of many suffices
            value[..., column][where] = (torch.nan, torch.inf, -torch.inf)[t % 3]
        self.replay.write(**moved(whole, self.device))
        timed_out = ends[1] & ~ends[0]
        marks = [where & timed_out if what == "final_obs" else where for what, where in broken.items()]
        row["broken"] = torch.stack([torch.zeros(self.num_envs, dtype=torch.bool), *marks]).any(0)
        row["unseen"] = broken.get("obs", torch.zeros_like(row["broken"]))
        self.steps.append(row)

    def run(self, count: int, probability: float = 0.15, broken: float = 0.0) -> History:
        for _ in range(count):
            ends = torch.rand(2, self.num_envs) < probability
            kinds = ("obs", "action", "reward", "final_obs") if broken else ()
            where = {kind: torch.rand(self.num_envs) < broken for kind in kinds}
            self.step(*(tuple(row.nonzero().flatten().tolist()) for row in ends), broken=where)
        return self

    def expect(self, t: int, n: int, n_step: int, timeout: Timeout = "final_obs") -> dict[str, Any]:
        """The transition that begins at step t of env n, step by step."""
        total, factor = 0.0, 1.0
        for i in range(t, t + n_step):
            row = self.steps[i]
            if row["broken"][n]:
                return {"weight": 0.0}
            total += factor * float(row["reward"][n])
            factor *= GAMMA
            if row["terminated"][n]:
                return {"reward": total, "discount": 0.0}
            if row["truncated"][n]:
                if timeout == "none":
                    return {"reward": total, "discount": 0.0}
                if timeout == "value":
                    return {"reward": total, "discount": factor, "next": (i, n, 0)}
                lost = self.final_numbers[i, n] < len(self.final_numbers) - self.replay.num_finals
                return {"weight": 0.0} if lost else {"reward": total, "discount": factor, "next": (i, n, 1)}
            if self.steps[i + 1]["unseen"][n]:
                return {"weight": 0.0}
        return {"reward": total, "discount": factor, "next": (t + n_step, n, 0)}

    def window(self, start: list[int], env: list[int], n_step: int, timeout: Timeout = "final_obs") -> Transitions:
        where = (torch.tensor(numbers, device=self.device) for numbers in (start, env))
        return moved(self.replay.window(*where, GAMMA, n_step, timeout), CPU)

    def sample(self, number: int, n_step: int = 1) -> Transitions:
        return moved(self.replay.sample(number, GAMMA, n_step), CPU)

    def compare(self, t: int, n: int, n_step: int, timeout: Timeout = "final_obs") -> dict[str, Any]:
        found = self.window([t % self.replay.num_rows], [n], n_step, timeout)
        expected = self.expect(t, n, n_step, timeout)
        if not self.steps[t]["broken"][n]:
            assert found.obs["a"].tolist() == [[t, n]]
            assert torch.equal(found.action[0], self.steps[t]["action"][n])
        assert float(found.weight) == expected.get("weight", 1.0)
        if "reward" in expected:
            assert float(found.reward) == pytest.approx(expected["reward"], abs=1e-6)
            assert float(found.discount) == pytest.approx(expected["discount"], abs=1e-6)
        if "next" in expected:
            assert [*found.next_obs["a"][0].tolist(), float(found.next_obs["b"])] == list(expected["next"])
        rest = (found.action, found.reward, found.discount)
        assert all(torch.isfinite(value).all() for value in (*found.obs.values(), *found.next_obs.values(), *rest))
        return expected


@pytest.mark.parametrize("timeout", ["final_obs", "value", "none"])
@pytest.mark.parametrize("n_step", [1, 3, 5])
@pytest.mark.parametrize("count", [9, 12, 13, 40])
def test_every_transition_equals_the_reference(place: Place, count: int, n_step: int, timeout: Timeout) -> None:
    history = History(place, num_envs=4, rows=12, final_capacity=48).run(count)
    kinds = set()
    for t in range(max(0, count - 12), count - n_step):
        for n in range(4):
            kinds.add(tuple(sorted(history.compare(t, n, n_step, timeout))))
    assert ("discount", "reward") in kinds  # some have no future


@pytest.mark.parametrize("timeout", ["final_obs", "value", "none"])
@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("count", [11, 13, 40])
def test_no_window_counts_that_reads_a_number_which_is_not_finite(
    place: Place, count: int, n_step: int, timeout: Timeout
) -> None:
    history = History(place, num_envs=4, rows=12, final_capacity=48).run(count, broken=0.06)
    weights = [
        history.compare(t, n, n_step, timeout).get("weight", 1.0)
        for t in range(max(0, count - 12), count - n_step)
        for n in range(4)
    ]
    assert 0.2 < sum(weights) / len(weights) < 0.9
    for rows in (1, 3, 12):
        expected = sum(int(step["broken"].sum()) for step in history.steps[-rows:])
        assert int(history.replay.broken(rows).sum()) == expected
    found = history.sample(500, n_step)
    assert all(torch.isfinite(value).all() for value in (*found.obs.values(), *found.next_obs.values(), found.reward))


@pytest.mark.parametrize("what", ["obs", "action", "reward", "final_obs"])
def test_a_step_that_is_not_finite_takes_with_it_what_leads_through_it_and_no_more(place: Place, what: str) -> None:
    for end in ("none", "terminated", "truncated"):
        history = History(place, num_envs=2, rows=12)
        for t in range(10):
            ends = {end: (1,)} if end != "none" and t == 4 else {}
            if t == 5 and what == "final_obs":
                ends = {"truncated": (1,)}
            where = torch.tensor([False, t == 5])
            history.step(**ends, broken={what: where} if t == 5 else {})
        for n_step in (1, 3):
            starts = list(range(10 - n_step))
            found = history.window(starts, [1] * len(starts), n_step)
            weights = found.weight.tolist()
            # No weight makes a number of what is not one.
            assert all(torch.isfinite(value).all() for value in (*found.obs.values(), *found.next_obs.values()))
            # Where an episode ended before it, windows end there; else those that come to the step are lost, and where
            # its observation is, those that come before it.
            first = 5 if end != "none" else 5 - n_step + (what != "obs")
            assert [t for t in starts if weights[t] == 0.0] == list(range(first, 6))
            assert all(history.window(starts, [0] * len(starts), n_step).weight == 1.0)
        assert [int(history.replay.broken(rows).sum()) for rows in (4, 5, 12, 30)] == [0, 1, 1, 1]


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("count", [4, 7, 12, 17, 24, 30])
def test_samples_never_reach_over_the_seam_or_into_rows_that_are_not_written(
    place: Place, count: int, n_step: int
) -> None:
    """Without ends every window is whole, so it must be of steps that follow each other, all still there."""
    history = History(place, num_envs=3, rows=12).run(count, probability=0.0)
    found = history.sample(4000, n_step)
    starts = found.obs["a"][:, 0]
    assert torch.equal(found.next_obs["a"], found.obs["a"] + torch.tensor([float(n_step), 0.0]))
    oldest, last = max(0, count - 12), count - 1 - n_step
    assert sorted(set(starts.tolist())) == list(range(oldest, last + 1))
    rewards = torch.stack([step["reward"] for step in history.steps])  # [T, N]
    expected = sum(GAMMA**i * rewards[starts.long() + i, found.obs["a"][:, 1].long()] for i in range(n_step))
    torch.testing.assert_close(found.reward, expected)


def test_sampling_is_uniform_over_steps_and_envs(place: Place) -> None:
    history = History(place, num_envs=3, rows=12).run(30, probability=0.0)
    found = history.sample(33_000)
    _, counts = found.obs["a"].unique(dim=0, return_counts=True)
    assert len(counts) == 11 * 3
    chi_square = ((counts - 1000.0).square() / 1000).sum()  # 32 degrees of freedom: 62.5 is exceeded once in 1000
    assert chi_square < 62.5


@pytest.mark.parametrize("offset", [0, 1, 2])
def test_a_window_that_is_cut_short_has_the_discount_of_the_steps_it_has(place: Place, offset: int) -> None:
    history = History(place, num_envs=1, rows=12)
    for t in range(8):
        history.step(truncated=(0,) if t == 2 + offset else ())
    found = history.window([2], [0], 3)
    assert float(found.discount) == pytest.approx(GAMMA ** (offset + 1))
    assert float(found.next_obs["b"]) == 1.0  # what preceded the reset, not what followed it
    assert float(found.next_obs["a"][0, 0]) == 2 + offset


@pytest.mark.parametrize("offset", [0, 1, 2])
@pytest.mark.parametrize("both", [False, True])
def test_termination_has_no_future_at_any_offset_and_wins_over_truncation(
    place: Place, offset: int, both: bool
) -> None:
    history = History(place, num_envs=1, rows=12)
    for t in range(8):
        ends = (0,) if t == 2 + offset else ()
        history.step(terminated=ends, truncated=ends if both else ())
    found = history.window([2], [0], 3)
    rewards = [float(history.steps[t]["reward"]) for t in range(2, 3 + offset)]
    assert float(found.reward) == pytest.approx(sum(GAMMA**i * r for i, r in enumerate(rewards)), abs=1e-6)
    assert float(found.discount) == 0.0
    assert float(found.weight) == 1.0
    assert int(history.replay.num_written) == 0


def test_a_sample_whose_final_observation_was_evicted_does_not_count(place: Place) -> None:
    history = History(place, num_envs=2, rows=20, final_capacity=4)
    for t in range(16):
        history.step(truncated=(0, 1) if t % 3 == 2 else ())
    weights = {t: history.compare(t, 0, 1).get("weight", 1.0) for t in range(15)}
    # Five steps were truncated in both envs, and there is room for two of them.
    assert [t for t, weight in weights.items() if weight == 0.0] == [2, 5, 8]
    window = history.window([1, 10], [0, 0], 3)
    assert window.weight.tolist() == [0.0, 1.0]


def test_a_memory_saved_with_other_room_for_final_observations_names_that_room() -> None:
    saved = History(Place(CPU, "env"), num_envs=2, rows=20, final_capacity=4).run(10).replay.state_dict(10)
    with pytest.raises(ConfigError, match=r"final_capacity: 5 is not possible; .* set final_capacity to 4"):
        History(Place(CPU, "env"), num_envs=2, rows=20, final_capacity=5).replay.load_state_dict(saved)


@pytest.mark.parametrize("rows", [6, 12])
def test_a_memory_of_another_size_takes_what_has_not_come_round_alone(rows: int) -> None:
    before, after = (History(Place(CPU, "env"), num_envs=2, rows=n, final_capacity=4) for n in (8, rows))
    after.replay.load_state_dict(before.run(5).replay.state_dict(5))
    after.steps, after.final_numbers = list(before.steps), dict(before.final_numbers)
    for t in range(4):
        after.run(t == 3).compare(t, 1, 1)
    saved = before.run(6).replay.state_dict(11)
    with pytest.raises(ConfigError, match=rf"buffer_size: {2 * rows} is not possible; .* with 8 vector steps"):
        after.replay.load_state_dict(saved)


def test_truncations_in_every_env_at_once_fit_the_smallest_side_ring(place: Place) -> None:
    history = History(place, num_envs=4, rows=6, final_capacity=4)
    for t in range(10):
        history.step(truncated=(0, 1, 2, 3) if t % 2 else ())
    for n in range(4):
        assert history.compare(7, n, 1) == {"weight": 0.0}
        history.step()
        assert history.compare(9, n, 1)["next"] == (9, n, 1)


@pytest.mark.parametrize("timeout", ["final_obs", "value", "none"])
def test_no_window_goes_on_after_a_reset_in_mid_episode(place: Place, timeout: Timeout) -> None:
    history = History(place, num_envs=2, rows=10)
    for t in range(6):
        history.step(terminated=(1,) if t == 3 else ())
        if t == 3:
            history.replay.cut()
    start, env = [0, 1, 2, 3, 3, 4], [0, 0, 0, 0, 1, 0]
    assert history.window(start, env, 1, timeout).weight.tolist() == [1, 1, 1, 0, 1, 1]
    assert history.window(start[:4], env[:4], 2, timeout).weight.tolist() == [1, 1, 0, 0]


def test_an_env_without_final_observations_has_the_state_before_instead(place: Place) -> None:
    history = History(place, num_envs=1, rows=10)
    for t in range(5):
        history.step(truncated=(0,) if t == 2 else (), final=False)
    assert history.compare(1, 0, 3, "value")["next"] == (2, 0, 0)
    assert float(history.window([1], [0], 3).weight) == 0.0


@pytest.mark.parametrize("count", [5, 30])
def test_a_restored_memory_draws_the_same_and_goes_on_the_same(place: Place, count: int) -> None:
    one, two = (History(place, num_envs=3, rows=8) for _ in range(2))
    one.run(count)
    two.replay.load_state_dict(one.replay.state_dict(count))
    two.steps = list(one.steps)
    for history in (one, two):
        torch.manual_seed(5)
        history.run(3)
    draws = []
    for history in (one, two):
        torch.manual_seed(6)
        draws.append(history.sample(100, 3))
    pairs = zip(*(leaves(draw) for draw in draws), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs if a is not None)
    part = one.replay.state_dict(5)["reward"]
    assert len(part) == 5
    assert part.untyped_storage().nbytes() == 4 * 5 * 3  # what a checkpoint holds of it


def test_bf16_halves_observations_and_keeps_eight_bits() -> None:
    sizes = {"policy": 50}
    kinds = (torch.float32, torch.bfloat16)
    full, half = (Replay(1000, 10, sizes, 2, 100, torch.device("cpu"), kind) for kind in kinds)
    assert full.num_bytes - half.num_bytes == 2 * 50 * (1000 + full.num_finals + 1)
    obs, flags = {"policy": torch.randn(10, 50)}, torch.zeros(10, dtype=torch.bool)
    for _ in range(3):
        half.write(obs, torch.zeros(10, 2), torch.zeros(10), flags, flags, obs)
    found = half.window(torch.zeros(10, dtype=torch.int64), torch.arange(10), GAMMA)
    assert found.obs["policy"].dtype == torch.float32
    torch.testing.assert_close(found.obs["policy"], obs["policy"], rtol=2**-8, atol=0)


def test_the_memory_is_estimated_to_the_byte() -> None:
    replay = Replay(1000, 10, {"a": 7, "b": 2}, 3, 100, torch.device("cpu"))
    own = [replay.action, replay.reward, replay.end]
    tensors = [*own, *replay.obs.values(), *replay.final_obs.values()]
    assert replay.num_bytes == sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_memory_is_said_before_the_run_begins_and_may_move_when_it_is_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--task", "Pendulum", "--algo", "sac", "--num-envs", "2", "--num-iterations", "4", "--eval-envs", "2"]
    words += ["--agent.learning-starts", "4", "--agent.batch-size", "4", "--agent.buffer-size", "50_000"]
    assert main(["train", *words, "--runs-dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    # Observation 3 and action 1 of 4 bytes, reward and end; and final observations of 200 steps, 4 times as many.
    size = (50_000 * (3 * 4 + 4 + 8) + (4 * 50_000 // 200 + 3) * 3 * 4) / 2**20
    (said,) = (number for number, line in enumerate(lines) if "replay memory" in line)
    assert lines[said] == f"note         replay memory of 50,000 transitions, {size:.1f} MiB on cpu"
    assert said < next(number for number, line in enumerate(lines) if line.startswith("task "))
    (run,) = (tmp_path / "Pendulum" / "sac").iterdir()
    resumed = ["train", "--resume", str(run), "--num-iterations", "6", "--agent.buffer-device", "host"]
    assert main(resumed) == 0


def test_the_size_that_is_advised_fits_and_is_not_far_below_what_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlcore.device_memory.free_memory", lambda device: 2**20)
    with pytest.raises(ConfigError, match="buffer_size: 100000") as refused:
        Replay(100_000, 64, {"a": 20}, 3, 1000, CPU)
    advised = int(str(refused.value).split("set buffer_size to ")[1].split()[0])
    assert 0.8 * 2**20 < Replay(advised, 64, {"a": 20}, 3, 1000, CPU).num_bytes <= 0.9 * 2**20
    with pytest.raises(ConfigError, match=f"buffer_size: {int(1.1 * advised)}"):
        Replay(int(1.1 * advised), 64, {"a": 20}, 3, 1000, CPU)


def test_free_memory_of_the_host_is_what_can_be_had_without_swapping(tmp_path: Path) -> None:
    info = Path("/proc/meminfo")
    if not info.is_file():
        pytest.skip("the system does not say")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(info.read_text())
    page, free = os.sysconf("SC_PAGE_SIZE"), free_memory(CPU, tmp_path)  # without the limits of a container
    assert free is not None
    # More than what is unused, since caches can be given up, and less than there is; other programs come and go.
    assert 0.5 * page * os.sysconf("SC_AVPHYS_PAGES") < free < page * os.sysconf("SC_PHYS_PAGES")


def test_what_cannot_fit_is_refused_before_it_is_allocated() -> None:
    with pytest.raises(ConfigError, match=r"buffer_size: 1\d+ transitions take .* GiB .*set buffer_size to \d+"):
        Replay(10**13, 10, {"a": 7}, 3, 100, torch.device("cpu"))
    with pytest.raises(ConfigError, match="buffer_size: 15 is not possible; 10 envs need 20 or more"):
        Replay(15, 10, {"a": 7}, 3, 100, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"final_capacity: 9 is not possible; set at least num_envs \(10\)"):
        Replay(100, 10, {"a": 7}, 3, 100, torch.device("cpu"), final_capacity=9)
