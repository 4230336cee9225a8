"""The estimate of what a policy achieves."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from rlcore import PPOConfig, spec_of
from rlcore.agent import Policy
from rlcore.envs import make_env
from rlcore.envs.classic import Pendulum
from rlcore.safety import CostConfig, SafetyConfig
from rlcore.train.best import Best, excess, figures
from rlcore.train.config import TrainConfig
from rlcore.train.evaluate import Evaluation, evaluate
from rlcore.train.intervals import t_interval, t_quantile, wilson_interval
from rlcore.types import Obs, State, Step


class Lengths:
    """Env i fails after ``short`` steps in every second episode if i is even; all others last ``long`` steps.

    Reward is 1 a step, success is 1 in a long episode.
    """

    observation_spaces = {"policy": gymnasium.spaces.Box(-1, 1, (2,))}  # noqa: RUF012
    action_space = gymnasium.spaces.Box(-1, 1, (1,))
    device = torch.device("cpu")

    def __init__(self, num_envs: int, short: int = 2, long: int = 50, with_success: bool = True) -> None:
        self.num_envs, self.max_episode_length, self.short = num_envs, long, short
        self.with_success = with_success
        self.seeds: list[int | None] = []

    def reset(self, seed: int | None = None) -> Obs:
        self.seeds.append(seed)
        self.age = torch.zeros(self.num_envs)
        self.is_short = torch.arange(self.num_envs) % 2 == 0  # [N]
        return {"policy": torch.zeros(self.num_envs, 2)}

    def step(self, action: Tensor) -> Step:
        assert action.shape == (self.num_envs, 1)
        self.age += 1
        terminated = self.is_short & (self.age >= self.short)
        truncated = self.age >= self.max_episode_length
        done = terminated | truncated
        log: dict[str, Tensor | float] = {}
        if self.with_success:
            # Where nothing ended, the entries may be anything.
            log = {"success": torch.where(done, truncated.float(), math.nan)}
        self.age[done] = 0
        obs = {"policy": torch.zeros(self.num_envs, 2)}
        return Step(obs, torch.ones(self.num_envs), terminated, truncated, None, log)

    def close(self) -> None:
        pass


class Still(Policy):
    """Does nothing."""

    observation_sizes = {"policy": 2}  # noqa: RUF012

    def forward(self, obs: Obs, state: tuple[Tensor, ...] = ()) -> tuple[Tensor, tuple[Tensor, ...]]:
        return torch.zeros(len(obs["policy"]), 1), state


def test_every_first_episode_counts_once_where_the_first_to_end_would_be_biased() -> None:
    env = Lengths(100)
    result = evaluate(env, Still(), seed=0)
    assert result.episodes == 100
    assert result.mean_return == pytest.approx((2 + 50) / 2)
    assert result.success == pytest.approx(0.5)
    assert sorted(set(result.lengths.tolist())) == [2, 50]

    # The naive estimate on the same env: the first 100 episodes to end are all short.
    env.reset(0)
    finished: list[float] = []
    while len(finished) < 100:
        step = env.step(torch.zeros(100, 1))
        finished += step.log["success"][step.terminated | step.truncated].tolist()  # type: ignore[index]
    assert np.mean(finished[:100]) == 0.0


def test_goals_weigh_the_success_of_an_episode() -> None:
    class Goals(Lengths):
        def step(self, action: Tensor) -> Step:
            step = super().step(action)
            goals = torch.where(torch.arange(self.num_envs) % 2 == 0, 1.0, 3.0)
            return step._replace(log={**step.log, "num_goals": goals})

    result = evaluate(Goals(10), Still(), seed=0)
    assert result.goals == 5 * 1 + 5 * 3
    assert result.success == pytest.approx(15 / 20)
    assert result.score == result.success


def test_one_episode_has_no_interval() -> None:
    class Costly(Lengths):
        def step(self, action: Tensor) -> Step:
            step = super().step(action)
            return step._replace(signals={"cost": torch.ones(self.num_envs)})

    result = evaluate(Costly(1), Still(), seed=0, violations={"cost": 0.0})
    number = float(result.lengths[0])
    summary = result.summary()
    assert summary.startswith(f"return {result.mean_return:.4g}, success")
    assert f", cost {number:.4g}, violations in 100.000% of steps, length" in summary
    assert "inf" not in summary and "interval" not in summary and summary.endswith(", 1 episode")
    record = result.as_dict()
    assert record["return_ci95"] == record["signal_cost_ci95"] == [None, None]


def test_sums_of_signals_are_of_the_first_episode_with_an_interval() -> None:
    class Costly(Lengths):
        def step(self, action: Tensor) -> Step:
            step = super().step(action)
            return step._replace(signals={"cost": torch.arange(self.num_envs).float(), "heat": 2 * step.reward})

    result = evaluate(Costly(4), Still(), seed=0)
    expected = torch.arange(4).double() * result.lengths
    assert torch.equal(result.signals["cost"], expected)
    assert torch.equal(result.signals["heat"], 2 * result.returns)
    record = result.as_dict()
    assert record["signal_cost_mean"] == float(expected.mean())
    assert record["signal_cost_ci95"] == list(t_interval(expected))
    low, high = t_interval(expected)
    assert f"cost {float(expected.mean()):.4g} ({low:.4g} to {high:.4g}), heat" in result.summary()
    assert len(evaluate(Costly(4), Still(), seed=0, rounds=2).signals["cost"]) == 8
    assert not evaluate(Lengths(4), Still(), seed=0).signals


def test_an_episode_whose_signal_is_no_number_is_not_in_its_mean() -> None:
    class Sick(Lengths):
        def step(self, action: Tensor) -> Step:
            cost = torch.ones(self.num_envs)
            cost[1] = torch.nan
            return super().step(action)._replace(signals={"cost": cost, "lost": cost * torch.nan})

    result = evaluate(Sick(4), Still(), seed=0)
    assert result.as_dict()["signal_cost_mean"] == float(result.lengths[[0, 2, 3]].double().mean())
    assert result.episodes == 4 and "signal_lost_mean" not in result.as_dict()


def test_a_signal_that_is_no_number_in_one_env_is_told_of_the_others_in_training_too() -> None:
    cost = torch.tensor([1.0, 2.0, math.nan]).double()
    result = Evaluation(
        returns=torch.ones(3).double(), lengths=torch.ones(3), signals={"cost": cost, "none": 0 / cost[2:]}
    )
    told = figures(result, {})
    assert told["eval/signal_cost"] == result.as_dict()["signal_cost_mean"] == 1.5
    assert "eval/signal_none" not in told


def test_an_episode_whose_success_is_nan_counts_for_no_success() -> None:
    class Half(Lengths):
        def step(self, action: Tensor) -> Step:
            step = super().step(action)
            step.log["success"][1:] = torch.nan  # type: ignore[index]
            return step

    one, result = evaluate(Lengths(4), Still(), seed=0), evaluate(Half(4), Still(), seed=0)
    assert (one.goals, result.goals) == (4, 1) and result.success in (0.0, 1.0)


def test_without_success_the_score_is_the_mean_return() -> None:
    result = evaluate(Lengths(4, with_success=False), Still(), seed=0)
    assert result.success is None
    assert result.score == result.mean_return == 26.0
    assert "success" not in result.as_dict()


def test_episodes_that_do_not_end_are_told_and_left_out() -> None:
    class Endless(Lengths):
        def step(self, action: Tensor) -> Step:
            step = super().step(action)
            return step._replace(truncated=torch.zeros_like(step.truncated))

    result = evaluate(Endless(4, long=20), Still(), seed=0)
    assert (result.episodes, result.unfinished) == (2, 2)
    assert result.mean_return == 2.0
    assert "2 unfinished" in result.summary()


def test_an_env_that_gives_no_numbers_is_left_out_and_gets_no_such_action() -> None:
    class Broken(Lengths):
        actions = torch.zeros(4, 1)

        def step(self, action: Tensor) -> Step:
            self.actions = action
            step = super().step(action)
            step.reward[1] = torch.nan
            if "success" in step.log:
                step.log["success"][1] = torch.nan  # type: ignore[index]
            step.obs["policy"][1] = torch.nan
            return step

    class Passing(Still):
        def initial_state(self, num_envs: int) -> State:
            return (torch.zeros(1, num_envs, 1),)

        def forward(self, obs: Obs, state: State = ()) -> tuple[Tensor, State]:
            memory = state[0] + obs["policy"][:, :1]
            assert state[0].isfinite().all()
            return memory[0], (memory,)

    env = Broken(4, long=5)
    result = evaluate(env, Passing(), seed=0)
    assert env.actions.isfinite().all()
    assert (result.episodes, result.unfinished, result.broken) == (3, 0, 1)
    assert (result.mean_return, result.score) == (pytest.approx(3.0), pytest.approx(1 / 3))  # lengths of 2, 2 and 5
    assert result.as_dict()["broken"] == 1
    assert "3 episodes, 1 with a reward that is not finite or absurd and left out" in result.summary()


def test_no_episode_at_all_has_no_figures_and_the_worst_score() -> None:
    nothing = Evaluation(returns=torch.zeros(0), lengths=torch.zeros(0), unfinished=3)
    assert nothing.score == -math.inf
    assert nothing.as_dict() == {"episodes": 0, "unfinished": 3}
    assert "no episode ended" in nothing.summary()


def test_rounds_start_anew_with_other_seeds() -> None:
    env = Lengths(6)
    result = evaluate(env, Still(), seed=10, rounds=3)
    assert env.seeds == [10, 16, 22]
    assert result.episodes == 18


def test_no_round_plays_episodes_of_another_once_more() -> None:
    env = make_env("gym:CartPole-v1", 8)  # whose env i has seed + i

    def act(obs: dict[str, Any]) -> Any:
        return (obs["policy"][:, 2] > 0).astype(np.int64)

    first: list[Tensor] = []

    def before(t: int) -> None:
        if t == 0:
            states = [sub.unwrapped.state for sub in env.env.envs]  # type: ignore[attr-defined]
            first.append(torch.tensor(np.stack(states)))

    evaluate(env, act, 5, rounds=3, before=before)
    assert len(torch.cat(first).unique(dim=0)) == 3 * 8


def test_nothing_of_an_evaluation_is_remembered_for_gradients() -> None:
    class Learned(Still):
        def __init__(self) -> None:
            super().__init__()
            self.gain = torch.nn.Parameter(torch.ones(()))

        def forward(self, obs: Obs, state: State = ()) -> tuple[Tensor, State]:
            action, state = super().forward(obs, state)
            return action * self.gain, state

    wanted: list[bool] = []
    env = Lengths(2)
    step = env.step
    env.step = lambda action: wanted.append(action.requires_grad) or step(action)  # type: ignore[method-assign, func-returns-value]
    evaluate(env, Learned(), seed=1)
    assert wanted and not any(wanted)


def test_an_exported_policy_is_given_arrays_and_told_of_episode_ends() -> None:
    class Exported:
        def __init__(self) -> None:
            self.resets: list[object] = []

        def reset(self, mask: object = None) -> None:
            self.resets.append(mask)

        def __call__(self, obs: dict[str, np.ndarray]) -> np.ndarray:  # type: ignore[type-arg]
            assert isinstance(obs["policy"], np.ndarray)
            return np.zeros((len(obs["policy"]), 1), dtype=np.float32)

    policy = Exported()
    result = evaluate(Lengths(4, short=2, long=3), policy, seed=0)
    assert result.mean_return == 2.5
    assert policy.resets[0] is None
    assert [np.asarray(mask).tolist() for mask in policy.resets[1:]] == [
        [False] * 4,
        [True, False, True, False],
        [False, True, False, True],
    ]


def test_recurrent_state_is_zeroed_where_an_episode_ended() -> None:
    class Counting(Still):
        """Its state counts steps; the greatest count it has seen of each env is kept."""

        def initial_state(self, num_envs: int) -> tuple[Tensor, ...]:
            self.most = torch.zeros(num_envs)
            return (torch.zeros(1, num_envs, 1),)

        def forward(self, obs: Obs, state: tuple[Tensor, ...] = ()) -> tuple[Tensor, tuple[Tensor, ...]]:
            self.most = torch.maximum(self.most, state[0][0, :, 0])
            return super().forward(obs)[0], (state[0] + 1,)

    policy = Counting()
    evaluate(Lengths(4, short=2, long=9), policy, seed=0)
    assert policy.most.tolist() == [1, 8, 1, 8]


@pytest.mark.parametrize(
    ("dof", "quantile"),
    # 97.5 % quantiles of Student's t, from published tables.
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (29, 2.045), (99, 1.984), (10_000, 1.960)],
)
def test_t_quantiles_are_those_of_the_tables(dof: int, quantile: float) -> None:
    assert t_quantile(0.975, dof) == pytest.approx(quantile, rel=3e-3)


def test_the_t_interval_covers_the_mean_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(2000, 8, generator=generator, dtype=torch.float64)
    covered = np.mean([low <= 0.0 <= high for low, high in map(t_interval, samples)])
    assert 0.935 < covered < 0.965
    assert t_interval(samples[0, :1]) == (-math.inf, math.inf)


def test_the_wilson_interval_is_that_of_a_worked_example() -> None:
    # 15 of 20, with z = 1.95996: (0.75 + z²/40 ± z sqrt(0.1875/20 + z²/1600)) / (1 + z²/20)
    low, high = wilson_interval(0.75, 20)
    assert low == pytest.approx(0.5313, abs=1e-4)
    assert high == pytest.approx(0.8881, abs=1e-4)
    for n in (10, 50, 100):
        assert wilson_interval(1.0, n)[1] == 1.0
        assert wilson_interval(0.0, n)[0] == 0.0


def test_the_best_policy_is_within_the_limits_on_costs() -> None:
    costs = {"cost": CostConfig(limit=10.0), "heat": CostConfig(limit=0.5, kind="per_step")}
    env, agent = Pendulum(1), PPOConfig(safety=SafetyConfig(costs=costs))
    best = Best(TrainConfig(task="Pendulum", agent=agent), spec_of(env), torch.device("cpu"))
    policy = torch.nn.Linear(1, 1)

    def result(value: float, cost: float, heat: float = 0.0) -> Evaluation:
        signals = {"cost": torch.tensor([cost - 1, cost + 1, math.nan]).double(), "heat": torch.full((3,), 20 * heat)}
        return Evaluation(returns=torch.full((3,), value), lengths=torch.full((3,), 20), signals=signals)

    assert excess(result(1.0, 15.0, 0.75), costs) == pytest.approx(0.5 + 0.5)
    assert excess(result(1.0, 10.0, 0.5), costs) == 0
    # A cost of 0 in one of two episodes that are known, with a share of a quarter allowed.
    assert excess(result(1.0, 1.0), {"cost": CostConfig(limit=0.25, kind="probability")}) == 1
    taken = []
    for value, cost in ((90.0, 30.0), (80.0, 20.0), (99.0, 25.0), (40.0, 9.0), (60.0, 10.0), (95.0, 11.0), (50.0, 2.0)):
        taken.append(best.replaced_by(len(taken), result(value, cost), None, policy))  # type: ignore[arg-type]
        if len(taken) == 3:
            least = "the least over the limits on costs (cost 20, at most 10 an episode; heat 0, at most 0.5 a step)"
            assert best.why() == f"iteration 1: return 80, {least}, of 3 policies evaluated"
    assert taken == [True, True, False, True, True, False, False]
    within = "the highest within the limits (cost 10, at most 10 an episode; heat 0, at most 0.5 a step)"
    assert best.why() == f"iteration 4: return 60, {within}, of 7 policies evaluated"
