"""The training loop and its episode statistics."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import cpu_limit, leaves
from gymnasium import spaces
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import rlcore.env
import rlcore.report
from rlcore import PPO, SAC, NetworkConfig, PPOConfig, SACConfig, Step
from rlcore.env_check import StepCheck
from rlcore.envs.null import Null
from rlcore.faults import Latest, broken_steps, culprits, far_numbers
from rlcore.learn import EpisodeStatistics, Faults, Progress, Report, begin, resume, snapshot
from rlcore.train.evaluate import evaluate
from rlcore.types import Obs

SMALL = NetworkConfig(hidden_dims=(8,))
CONFIG = PPOConfig(num_steps=5, num_epochs=1, num_minibatches=1, actor=SMALL, critic=SMALL)


def step(reward: list[float], done: list[bool], log: dict[str, Tensor | float] | None = None) -> Step:
    ends = torch.tensor(done)
    return Step({}, torch.tensor(reward), ends, torch.zeros_like(ends), None, log or {})


def test_returns_and_lengths_of_ended_episodes_only() -> None:
    episodes = EpisodeStatistics(2, torch.device("cpu"))
    episodes.record(step([1.0, 10.0], [False, False]))
    episodes.record(step([2.0, 20.0], [True, False]))
    episodes.record(step([4.0, 40.0], [False, True]))
    episodes.record(step([8.0, 80.0], [False, False]))
    means = episodes.read()
    assert means["rollout/episodes"] == 2
    assert means["rollout/episode_return"] == (3 + 70) / 2
    assert means["rollout/episode_length"] == (2 + 3) / 2
    assert means["rollout/reward"] == 165 / 8
    # Episodes in flight survive the read; what was read does not come again.
    episodes.record(step([0.0, 0.0], [True, False]))
    again = episodes.read()
    assert (again["rollout/episodes"], again["rollout/episode_return"]) == (1, 12)


def test_nothing_ended_means_no_value() -> None:
    episodes = EpisodeStatistics(2, torch.device("cpu"))
    episodes.record(step([1.0, 1.0], [False, False]))
    assert math.isnan(episodes.read()["rollout/episode_return"])


def test_log_values_count_where_episodes_ended() -> None:
    episodes = EpisodeStatistics(3, torch.device("cpu"))
    per_env = torch.tensor([5.0, math.nan, 7.0])
    episodes.record(step([0.0] * 3, [True, False, True], {"x": per_env, "y": 1.0}))
    episodes.record(step([0.0] * 3, [False, True, False], {"x": torch.tensor([0.0, 1.0, 0.0]), "y": 4.0}))
    episodes.record(step([0.0] * 3, [False, False, False], {"x": torch.full((3,), 99.0), "y": 99.0}))
    means = episodes.read()
    torch.testing.assert_close(means["env/x"], torch.tensor((5 + 7 + 1) / 3))
    torch.testing.assert_close(means["env/y"], torch.tensor((1 + 1 + 4) / 3))  # by episodes, not by steps
    episodes.record(step([0.0] * 3, [True, False, False], {"x": per_env, "y": 7.0}))
    again = episodes.read()
    assert (again["env/x"], again["env/y"]) == (5, 7)


def test_what_is_not_finite_concerns_its_own_episode_alone() -> None:
    episodes = EpisodeStatistics(2, torch.device("cpu"))
    episodes.record(step([math.nan, 1.0], [False, False], {"x": torch.tensor(math.nan), "y": math.nan}))
    log: dict[str, Tensor | float] = {
        "success": torch.tensor([math.nan, 1.0]),
        "num_goals": torch.tensor([math.nan, 2.0]),
    }
    episodes.record(step([0.0, 1.0], [False, True], {"x": torch.tensor(3.0), "y": 4.0, **log}))
    means = episodes.read()
    keys = ("rollout/episode_return", "rollout/success", "env/x", "env/y")
    assert [means[key] for key in keys] == [2.0, 1.0, 3.0, 4.0]
    episodes.record(step([1.0, 1.0], [True, False]))
    assert math.isnan(episodes.read()["rollout/episode_return"])
    episodes.record(step([1.0, 1.0], [True, True]))
    assert episodes.read()["rollout/episode_return"] == (1 + 2) / 2


def test_success_is_weighted_by_the_number_of_goals() -> None:
    episodes = EpisodeStatistics(2, torch.device("cpu"))
    log: dict[str, Tensor | float] = {"success": torch.tensor([1.0, 0.0]), "num_goals": torch.tensor([3.0, 1.0])}
    episodes.record(step([0.0, 0.0], [True, True], log))
    assert episodes.read()["rollout/success"] == 0.75


def test_loop_counts_reports_and_stops() -> None:
    reports: list[Report] = []
    iterations: list[int] = []
    agent = PPO(Null(4, obs_size=3, action_size=2, episode_length=7), CONFIG, seed=0)
    hooks: dict[str, Any] = {"on_report": reports.append, "on_iteration": lambda p: iterations.append(p.iteration)}
    progress = agent.learn(10, **hooks, should_stop=lambda: len(iterations) == 3)
    assert [r.iteration for r in reports] == iterations == [1, 2, 3]
    assert progress.env_steps == reports[-1].env_steps == 3 * 5 * 4
    assert "rollout/episode_return" not in reports[0].metrics  # no episode of 7 steps ends within 5
    assert reports[1].metrics["rollout/episode_length"] == 7
    assert reports[0].metrics["time/steps_per_s"] > 0
    progress = agent.learn(5, progress=progress, **hooks)
    assert progress.iteration == 5
    spent = [r.metrics["time/collect_s"] + r.metrics["time/learn_s"] for r in reports]
    assert progress.seconds == reports[-1].metrics["time/total_s"] == pytest.approx(sum(spent))


def test_collecting_and_learning_are_timed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(rlcore.report.time, "perf_counter", lambda: now)  # this machine may be busy with other things

    class Slow(Null):
        def step(self, action: Tensor) -> Step:
            nonlocal now
            now += 0.02
            return super().step(action)

    reports: list[Report] = []
    agent = PPO(Slow(4, obs_size=3, action_size=2), CONFIG, seed=0)
    update = agent.update

    def slow_update() -> Any:
        nonlocal now
        now += 0.3
        return update()

    monkeypatch.setattr(agent, "update", slow_update)
    agent.learn(3, on_report=reports.append)
    last = reports[-1].metrics
    assert (last["time/collect_s"], last["time/learn_s"]) == (pytest.approx(5 * 0.02), pytest.approx(0.3))
    assert last["time/steps_per_s"] == pytest.approx(20 / 0.4)
    assert last["time/total_s"] == pytest.approx(3 * 0.4)


def test_counters_of_an_env_are_put_back_before_the_reset_that_may_read_them() -> None:
    class Counting(Null):
        exact_state = False
        level = 0

        def state_dict(self) -> dict[str, Any]:
            return {"level": 5}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.level = state["level"]

        def reset(self, seed: int | None = None) -> Obs:
            self.level_at_reset = self.level
            return super().reset(seed)

    agent = PPO(Counting(4, obs_size=3, action_size=2), CONFIG, seed=0)
    content = snapshot(agent.env, agent, agent.learn(1))
    other = PPO(Counting(4, obs_size=3, action_size=2), CONFIG, seed=0)
    progress, exact = resume(other.env, other, content)
    assert (exact, progress.iteration, other.env.level_at_reset) == (False, 1, 5)  # type: ignore[attr-defined]


def test_an_env_that_cannot_be_captured_is_refused() -> None:
    agent = PPO(Null(4, obs_size=3, action_size=2), CONFIG, seed=0)
    with pytest.raises(ValueError, match="capture_env: Null"):
        agent.learn(1, capture_env=True)


@pytest.mark.parametrize("wrong", [0, -1, 2.5])
def test_a_number_of_iterations_that_is_none_is_refused(wrong: Any) -> None:
    agent = PPO(Null(4, obs_size=3, action_size=2), CONFIG, seed=0)
    with pytest.raises(ValueError, match=f"num_iterations: {wrong!r} is not possible; give a positive whole number"):
        agent.learn(wrong)


def test_a_log_costs_as_many_operations_for_many_names_as_for_few() -> None:
    class Counter(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            views = ("aten.expand", "aten.unbind", "aten.select", "aten.alias", "aten.detach", "aten.view")
            self.calls += not str(func).startswith(views)
            return func(*args, **(kwargs or {}))

    def operations(names: int) -> int:
        episodes = EpisodeStatistics(2, torch.device("cpu"))
        log: dict[str, Tensor | float] = {f"s{i}": torch.tensor(float(i)) for i in range(names)}
        log |= {f"e{i}": torch.tensor([1.0, 2.0]) for i in range(names)}
        record = step([1.0, 1.0], [True, False], log)
        episodes.record(record)
        with Counter() as counter:
            episodes.record(record)
        return counter.calls

    assert 0 < operations(2) == operations(40)


def test_steps_may_log_different_names() -> None:
    episodes = EpisodeStatistics(2, torch.device("cpu"))
    episodes.record(step([0.0, 0.0], [True, True], {"a": 1.0, "b": torch.tensor(2.0)}))
    episodes.record(step([0.0, 0.0], [True, False], {"b": 5.0, "c": torch.tensor([7.0, 9.0])}))
    means = episodes.read()
    found = {key: float(value) for key, value in means.items() if key.startswith("env/")}
    assert found == {"env/a": 1.0, "env/b": 3.0, "env/c": 7.0}


def test_checkpoints_count_the_seconds_of_the_iteration_that_has_just_ended() -> None:
    saved: list[float] = []
    reports: list[Report] = []
    PPO(Null(4, obs_size=3, action_size=2), CONFIG, seed=0).learn(
        3, on_report=reports.append, on_iteration=lambda progress: saved.append(progress.state_dict()["seconds"])
    )
    assert saved == pytest.approx([report.metrics["time/total_s"] for report in reports])


@pytest.mark.gpu
def test_checkpoints_on_cuda_count_it_too() -> None:
    saved: list[float] = []
    reports: list[Report] = []
    PPO(Null(4, "cuda", obs_size=3, action_size=2), CONFIG, seed=0).learn(
        5, on_report=reports.append, on_iteration=lambda progress: saved.append(progress.state_dict()["seconds"])
    )
    assert [report.iteration for report in reports] == [1, 2, 3, 4, 5]
    assert saved == pytest.approx([report.metrics["time/total_s"] for report in reports])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs": lambda x: x.double()}, r"observation 'policy' is torch.float64 of shape \(4, 3\).*torch.float32"),
        ({"obs": lambda x: x[:2]}, r"observation 'policy' is torch.float32 of shape \(2, 3\).*of shape \(4, 3\)"),
        ({"obs": lambda x: x.numpy()}, "observation 'policy' is ndarray; return a tensor on cpu"),
        ({"reward": lambda x: x.unsqueeze(1)}, r"the reward is torch.float32 of shape \(4, 1\).*of shape \(4,\)"),
        ({"reward": lambda x: x.double()}, "the reward is torch.float64"),
        ({"terminated": lambda x: x.float()}, "terminated is torch.float32.*return torch.bool"),
        ({"truncated": lambda x: x.unsqueeze(1)}, "truncated is torch.bool of shape"),
    ],
)
@pytest.mark.parametrize("when", ["reset", "first step", "later step", "evaluation"])
def test_what_an_env_must_not_return_is_named(when: str, changes: dict[str, Any], message: str) -> None:
    class Wrong(Null):
        taken = 0

        def reset(self, seed: int | None = None) -> Obs:
            obs = super().reset(seed)
            return {k: changes["obs"](v) for k, v in obs.items()} if "obs" in changes and when == "reset" else obs

        def step(self, action: Tensor) -> Step:
            step = super().step(action)
            self.taken += 1
            if when == "reset" or (self.taken == 1 and when != "first step"):
                return step
            parts = {name: change(getattr(step, name)) for name, change in changes.items() if name != "obs"}
            if "obs" in changes:
                parts["obs"] = {group: changes["obs"](value) for group, value in step.obs.items()}
            return step._replace(**parts)

    if when == "reset" and "obs" not in changes:
        pytest.skip("a reset returns observations alone")
    agent = PPO(Wrong(4, obs_size=3, action_size=2), CONFIG, seed=0)
    with pytest.raises(ValueError, match="Null: .*" + message):
        evaluate(agent.env, agent.policy, seed=0) if when == "evaluation" else agent.learn(1)


def test_a_missing_observation_is_named() -> None:
    class Wrong(Null):
        def reset(self, seed: int | None = None) -> Obs:
            return {"state": super().reset(seed)["policy"]}

    agent = PPO(Wrong(4, obs_size=3, action_size=2), CONFIG, seed=0)
    for use in (lambda: agent.learn(1), lambda: evaluate(agent.env, agent.policy, seed=0)):
        with pytest.raises(ValueError, match=r"Null: reset\(\) left out the observation 'policy'; it has state"):
            use()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (tuple, r"step\(\) returned tuple; return rlcore.Step\(obs, reward"),
        (lambda step: step._replace(log={"note": "fell"}), "'note' in the log is 'fell'; give a number, or a tensor"),
        (lambda step: step._replace(log={"x": step.obs["policy"]}), r"'x' in the log is of shape \(4, 3\).*or \(4,\)"),
        (lambda step: step._replace(log=None), "the log is NoneType; return a dict"),
        (lambda step: step._replace(obs={}), r"step\(\) left out the observation 'policy'"),
        (lambda step: step._replace(final_obs={"policy": step.obs["policy"][:1]}), r".*of shape \(1, 3\)"),
        (
            lambda step: step._replace(obs=step.obs["policy"]),
            r"step\(\) gave Tensor as observations.*\{'policy': tensor",
        ),
    ],
)
@pytest.mark.parametrize("first", [1, 3])
def test_a_step_that_is_none_is_named(change: Any, message: str, first: int) -> None:
    class Wrong(Null):
        taken = 0

        def step(self, action: Tensor) -> Step:
            self.taken += 1
            right = super().step(action)
            return right if self.taken < first else change(right)  # type: ignore[no-any-return]

    with pytest.raises(ValueError, match="Null: " + message):
        PPO(Wrong(4, obs_size=3, action_size=2), CONFIG, seed=0).learn(1)


def test_a_step_that_is_like_the_one_before_is_not_checked_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    env, calls = Null(4, obs_size=3, action_size=2), []
    monkeypatch.setattr(rlcore.env_check, "check_step", lambda env, step: calls.append(step))
    check = StepCheck(env)
    env.reset()
    step = env.step(torch.zeros(4, 2))
    for _ in range(3):
        check(step)
    assert len(calls) == 1
    for other in (step._replace(reward=step.reward.double()), step._replace(obs={"other": step.obs["policy"]})):
        check(other)
        check(step)
    assert len(calls) == 5


def test_marks_of_steps_that_are_none_come_in_every_step_or_never() -> None:
    class Sometimes(Null):
        count = 0

        def step(self, action: Tensor) -> Step:
            self.count += 1
            valid = None if self.count % 3 else torch.arange(4) > 0
            return super().step(action)._replace(valid=valid)

    with pytest.raises(ValueError, match="Null: step\\(\\) gave 'valid' in some steps and not in others; return it"):
        PPO(Sometimes(4, obs_size=3, action_size=2), CONFIG, seed=0).learn(1)


def test_an_iteration_of_resets_alone_has_no_reward_and_no_fault() -> None:
    def report(**metrics: float) -> Report:
        return Report(1, 4, {"loss/value": 1.0, **metrics})

    assert Faults().new(report(**{"replay/dropped": 0.0})) == []
    for broken in ({"replay/dropped": 4.0}, {}):  # and of an agent that does not count them
        assert any("rewards of the env are not a number" in text for text in Faults().new(report(**broken)))


def test_culprits_are_told_as_often_as_they_were_found() -> None:
    env = Null(4, obs_size=3, action_size=2)
    groups = {"actor": ["policy"], "actor_far": ["policy"]}

    def told(found: Mapping[str, Tensor]) -> tuple[str, ...]:
        return culprits({name: float(value) for name, value in found.items()}, groups, env)

    columns = torch.full((5, 4), -1, dtype=torch.int32)  # [T, N]
    columns[:2, 1], columns[3, 2] = 2, 0
    said = "observation 'policy'[2] is not finite, or too large to be used: 3 times in 2 envs, most often env 1"
    assert told(broken_steps({"actor": columns})) == (said,)
    columns[3, 2] = -1
    one = said.replace("3 times in 2 envs, most often env 1", "env 1, 2 times")
    assert told(broken_steps({"actor": columns})) == (one,)
    latest = Latest(torch.device("cpu"))
    for env_of in (1, 3):
        latest.note(torch.where(torch.arange(4) == env_of, 2, -1).int())
    assert told(latest.read("actor")) == (one.replace("env 1, 2 times", "2 times, last env 3"),)
    outliers = torch.tensor([[1.0, 4.0, 2.0], [0.0, 6.0, 3.0]])  # the last with column 1 in row 6, of env 2
    (text,) = told(far_numbers({"actor_far": SimpleNamespace(outliers=outliers)}, 4))
    assert text.startswith("observation 'policy'[1] is over 1,000") and text.endswith(": 4 times, last env 2")


def test_a_log_may_hold_numbers_scalars_and_one_value_for_each_env() -> None:
    class Logging(Null):
        def step(self, action: Tensor) -> Step:
            log: Any = {"one": 1, "two": np.float32(2.0), "three": torch.tensor(3.0), "four": torch.full((4,), 4.0)}
            return super().step(action)._replace(log=log, truncated=torch.ones(4, dtype=torch.bool))

    reports: list[Report] = []
    PPO(Logging(4, obs_size=3, action_size=2), CONFIG, seed=0).learn(1, on_report=reports.append)
    assert [reports[0].metrics[f"env/{name}"] for name in ("one", "two", "three", "four")] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("wrong", [spaces.Box(-1, 1, (3,)), {"policy": 3}])
def test_observation_spaces_that_are_none_are_named(wrong: Any) -> None:
    env = Null(4, obs_size=3, action_size=2)
    env.observation_spaces = wrong
    with pytest.raises(
        ValueError, match=r"Null: observation(_spaces is Box.*dict of groups| group 'policy' is 3; .*Box)"
    ):
        PPO(env, CONFIG, seed=0)


def test_progress_shows_no_tensors() -> None:
    progress = PPO(Null(4, obs_size=3, action_size=2), CONFIG, seed=0).learn(1)
    assert repr(progress).startswith("Progress(iteration=1, env_steps=20, seconds=") and "tensor" not in repr(progress)


class Differentiable(Null):
    """As a simulator whose state is computed from parameters that want a gradient, all of it in one graph."""

    exact_state = False

    def __init__(self) -> None:
        super().__init__(4, obs_size=3, action_size=2, episode_length=7)
        self.mass = torch.ones((), requires_grad=True)
        self.state = torch.zeros(4, 3)
        self.given: list[weakref.ref[Tensor]] = []

    def reset(self, seed: int | None = None) -> Obs:
        super().reset(seed)
        self.state = torch.zeros(4, 3) * self.mass
        return {"policy": self.state}

    def step(self, action: Tensor) -> Step:
        plain = super().step(action)
        assert torch.is_grad_enabled()  # it may want to take a gradient itself
        self.state = self.state.detach() * self.mass + 0.1
        reward, final = self.state.sum(1), {"policy": self.state * 2}
        self.given.append(weakref.ref(self.state))
        log: dict[str, Tensor | float] = {"success": reward * 0 + 1, "energy": reward.sum()}
        return plain._replace(obs={"policy": self.state}, reward=reward, final_obs=final, log=log)


@pytest.mark.parametrize("algo", ["ppo", "sac"])
def test_a_differentiable_env_is_not_held_on_to(algo: str) -> None:
    env = Differentiable()
    if algo == "ppo":
        agent: Any = PPO(env, CONFIG, seed=0)
    else:
        bounds: dict[str, Any] = {"action_low": [-1.0, -1.0], "action_high": [1.0, 1.0]}
        config = SACConfig(num_steps=5, learning_starts=20, num_updates=1, actor=SMALL, critic=SMALL, **bounds)
        agent = SAC(env, config, seed=0)
    progress = agent.learn(4)
    content = snapshot(env, agent, progress)
    held = [*leaves(content), progress.episodes.totals, *progress.episodes.logs.values()]
    assert not [value for value in held if isinstance(value, Tensor) and value.grad_fn is not None]
    # The graphs, and with them what the env computed, are gone but for the last step's.
    agent.learn(5, progress=progress)
    assert sum(state() is not None for state in env.given) <= 2
    assert evaluate(env, agent.policy, 0).episodes == 4


def test_a_loop_goes_on_after_a_rollout_that_was_broken_off() -> None:
    class Failing(Null):
        fail = False

        def step(self, action: Tensor) -> Step:
            if self.fail:
                raise RuntimeError("it diverged")
            return super().step(action)

    env = Failing(4, obs_size=3, action_size=2, episode_length=7)
    agent = PPO(env, CONFIG, seed=0)
    progress = begin(env, agent, 0)

    def fail_soon(now: Progress) -> None:
        env.fail = now.iteration == 2

    with pytest.raises(RuntimeError, match="it diverged"):
        agent.learn(5, progress=progress, on_iteration=fail_soon)
    assert (progress.iteration, progress.env_steps, progress.broken_off) == (2, 40, "rollout")
    count = agent.policy.normalizer.count
    assert count.unique().tolist() == [40]  # the step that failed had been acted on
    content = snapshot(env, agent, progress)
    assert content["progress"]["obs"] is None and content["agent"]["iteration"] == 2
    env.fail = False
    agent.learn(5, progress=progress)
    assert (progress.iteration, progress.env_steps, progress.broken_off) == (5, 100, "")
    assert count.unique().tolist() == [100]


def test_a_finished_iteration_is_reported_whatever_fails_after_it() -> None:
    env, seen = Null(4, obs_size=3, action_size=2), list[int]()
    agent = PPO(env, CONFIG, seed=0)
    progress = begin(env, agent, 0)

    def save(now: Progress) -> None:
        if now.iteration == 2:
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        agent.learn(3, progress=progress, on_iteration=save, on_report=lambda report: seen.append(report.iteration))
    assert seen == [1, 2] and progress.broken_off == "" and progress.underway is None

    def show(report: Report) -> None:
        seen.append(report.iteration)
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        agent.learn(4, progress=progress, on_report=show)
    assert seen == [1, 2, 3]  # once, though telling it failed


def test_an_update_that_was_broken_off_is_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    env = Null(4, obs_size=3, action_size=2)
    agent = PPO(env, CONFIG, seed=0)
    progress = agent.learn(1)
    monkeypatch.setattr(agent, "update", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        agent.learn(2, progress=progress)
    with pytest.raises(RuntimeError, match="the update of iteration 2 was broken off"):
        snapshot(env, agent, progress)


def test_tests_are_limited_in_cpu_time_and_not_by_the_clock() -> None:
    with cpu_limit(0.2):
        time.sleep(0.4)  # as where others use the machine
    with pytest.raises(TimeoutError, match=r"0\.2 s of CPU time"), cpu_limit(0.2):
        while True:
            pass
