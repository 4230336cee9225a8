"""The switches that SAC and DDPG share, and their presets, each against a slow reference or a closed form."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import leaves
from gymnasium import spaces
from torch import Tensor
from torch.nn import functional as F

from rlcore import DDPG, SAC, ConfigError, DDPGConfig, NetworkConfig, SACConfig
from rlcore.config import load_yaml
from rlcore.critics import frozen
from rlcore.dispatch import plain
from rlcore.envs import make_env
from rlcore.envs.null import Null
from rlcore.exploration import Deviation, HeldNoise
from rlcore.learn import Report, learn, resume, snapshot
from rlcore.losses import critic_loss, cross_entropy, expected_value
from rlcore.networks import MLP, Residual
from rlcore.normalization import ReturnScale
from rlcore.optimizer import FlatAdam, descend
from rlcore.replay import Batch
from rlcore.train.algorithms import CONFIGS
from rlcore.train.cli import main
from rlcore.train.defaults import default_config
from rlcore.types import Obs, Step

SMALL = NetworkConfig(hidden_dims=(16, 16), activation="tanh", init="default")
SIZES: dict[str, Any] = {"learning_starts": 40, "buffer_size": 2000, "batch_size": 32, "actor": SMALL, "critic": SMALL}


def agent(
    kind: Any = SAC,
    *,
    preset: str = "classic",
    num_iterations: int | None = None,
    env: Null | None = None,
    **changes: Any,
) -> Any:
    env = env or Null(4, obs_size=3, action_size=2, episode_length=7)
    env.action_space = spaces.Box(-2.0, 2.0, (2,))
    config = (SACConfig if kind is SAC else DDPGConfig).preset(preset, **{**SIZES, **changes})
    return kind(env, config, seed=0, num_iterations=num_iterations)


def batch(number: int = 24) -> Batch:
    obs, next_obs = torch.randn(2, number, 3)
    return Batch(
        actor_obs=obs,
        critic_obs=obs,
        next_actor_obs=next_obs,
        next_critic_obs=next_obs,
        action=4 * torch.rand(number, 2) - 2,
        reward=torch.randn(number),
        discount=torch.rand(number).round() * 0.99,
        weight=torch.rand(number),
    )


def test_a_restart_carries_nothing_over_into_the_new_episodes() -> None:
    learner = agent(DDPG, noise="ou", normalize_reward=True)
    progress = learner.learn(5)
    assert learner.return_scale.running.all() and learner.noise.all()
    progress.restart(learner.env, learner)
    assert not learner.return_scale.running.any() and not learner.noise.any()
    weights = [
        learner.replay.window(torch.tensor([row]), torch.zeros(1, dtype=torch.int64), 0.9).weight for row in (3, 4)
    ]
    assert weights == [1.0, 0.0]  # what the latest step led to is not known
    held = agent(SAC, noise_hold=16)
    progress = held.learn(1)
    held.held.left.fill_(9)
    progress.restart(held.env, held)
    assert not held.held.left.any()


@pytest.mark.parametrize("kind", [SAC, DDPG])
def test_a_rollout_that_was_broken_off_leaves_nothing_behind(kind: Any) -> None:
    class Failing(Null):
        count = 0

        def step(self, action: Tensor) -> Step:
            self.count += 1
            if self.count == 12:  # the second step of the sixth rollout
                raise RuntimeError("it diverged")
            return super().step(action)._replace(reward=torch.full((4,), 10.0 * self.count))

    def state(learner: Any) -> dict[str, Tensor]:
        """What an episode does not begin with anew, and no rollout writes over."""
        whole = learner.state_dict()
        kept = {name: whole["replay"][name] for name in ("row", "size", "level")}
        kept |= whole["policy"] | whole["return_scale"] | {"steps": whole["steps"]}
        return {name: value.clone() for name, value in kept.items()}

    learner = agent(kind, env=Failing(4, obs_size=3, action_size=2), num_steps=2, normalize_reward=True)
    progress = learner.learn(5)
    learner.initial_state()
    before = state(learner)
    with pytest.raises(RuntimeError, match="it diverged"):
        learner.learn(6, progress=progress)
    learner.initial_state()
    after = state(learner)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


class Faulty(Null):
    """Null whose env 2 answers one step with a number that is not finite."""

    def __init__(self, what: str, when: int) -> None:
        super().__init__(4, obs_size=3, action_size=2, episode_length=7)
        self.what, self.left = what, when

    def step(self, action: Tensor) -> Step:
        assert action.isfinite().all()
        step = super().step(action)
        self.left -= 1
        if self.left == 0:
            assert step.final_obs is not None
            reward, obs, last = step.reward.clone(), step.obs["policy"].clone(), step.final_obs["policy"].clone()
            kinds = {"reward": reward.unsqueeze(1), "observation": obs, "final observation": last}
            values = {"huge": -1e6, "vast": -1e15}
            size, kind = self.what.split(" ", 1) if self.what.split()[0] in values else ("", self.what)
            kinds[kind][2, 0] = values.get(size, torch.nan)
            step = step._replace(reward=reward, obs={"policy": obs}, final_obs={"policy": last})
        return step


@pytest.mark.parametrize("changes", [{"n_step": 3}, {"preset": "gpu", "precision": "fp32", "num_updates": 4}])
@pytest.mark.parametrize(
    ("what", "when"),
    [("observation", 20), ("reward", 5), ("reward", 20), ("huge reward", 20), ("final observation", 21)],
)
@pytest.mark.parametrize("kind", [SAC, DDPG])
def test_an_env_that_breaks_for_one_step_spoils_no_update(
    kind: Any, what: str, when: int, changes: dict[str, Any]
) -> None:
    reports: list[Report] = []
    learner = agent(kind, env=Faulty(what, when), num_iterations=80, **changes)
    learner.learn(80, on_report=reports.append)
    assert ["loss/value" in report.metrics for report in reports] == [False] * 9 + [True] * 71
    dropped = {report.iteration: report.metrics["replay/dropped"] for report in reports}
    # An observation that is not finite belongs to the step that is taken from it.
    assert {at: number for at, number in dropped.items() if number} == {when + (what == "observation"): 1.0}
    told = {report.iteration: report.culprits for report in reports if report.culprits}
    assert list(told) == [when + (what == "observation")]
    text = "observation, action or reward is not finite, or too large to be used: env 2, once"
    named = "observation 'policy'[0] is not finite, or too large to be used: env 2, once"
    assert set(next(iter(told.values()))) == ({text, named} if what == "observation" else {text})
    if learner.return_scale is not None:
        assert float(learner.return_scale()) < 30  # 200,000 where a return of -1e6 counts


@pytest.mark.parametrize("kind", [SAC, DDPG])
def test_an_observation_that_can_only_be_a_fault_is_left_out(kind: Any) -> None:
    reports: list[Report] = []
    learner = agent(kind, env=Faulty("vast observation", 20), num_iterations=40)
    learner.learn(40, on_report=reports.append)
    assert {r.iteration: r.metrics["replay/dropped"] for r in reports if r.metrics["replay/dropped"]} == {21: 1.0}
    assert max(report.metrics.get("loss/value", 0.0) for report in reports) < 1e4


@pytest.mark.parametrize("kind", [SAC, DDPG])
def test_actor_and_critics_learn_nothing_from_samples_without_weight(kind: Any) -> None:
    parameters = []
    for garbage in (0.0, 5.0):
        learner = agent(kind, num_updates=1)
        learner.learn(3)
        torch.manual_seed(3)
        batch = learner._batch(learner.replay.sample(16, 0.99))
        batch.weight[:4] = 0
        for name, value in batch._asdict().items():
            if name != "weight" and isinstance(value, Tensor):
                value[:4] += garbage
        learner._gradient_step(batch, with_actor=True)
        parameters.append(torch.cat([p.detach().flatten() for p in learner.policy.parameters()]))
        parameters.append(torch.cat([p.detach().flatten() for p in learner.critics.parameters()]))
    torch.testing.assert_close(parameters[:2], parameters[2:])


@pytest.mark.parametrize(
    ("every", "said", "changes", "lost"),
    [
        (25, 1_000_000, {}, False),  # no limit that the env knows of, but episodes of usual lengths
        (7, 1_000_000, {}, True),
        (7, 7, {}, False),
        (7, 1_000_000, {"final_capacity": 400}, False),
        (25, 1000, {"final_capacity": 8}, True),
    ],
)
def test_samples_whose_last_observation_is_lost_are_counted_and_told_of(
    every: int, said: int, changes: dict[str, Any], lost: bool, caplog: pytest.LogCaptureFixture
) -> None:
    env = Null(4, obs_size=3, action_size=2, episode_length=every)
    env.max_episode_length = said
    learner = agent(env=env, buffer_size=400, num_updates=1, **changes)
    env.max_episode_length = every  # whatever it said
    progress = learner.learn(130)  # more than the 100 vector steps that are kept
    seen: list[float] = []
    learner.learn(190, progress=progress, on_report=lambda report: seen.append(report.metrics["replay/lost"]))
    start = (learner.replay.row - 100 + torch.arange(98)) % 100
    weight = torch.stack([learner.replay.window(start, torch.full_like(start, n), 0.9).weight for n in range(4)])
    share = float(1 - weight.mean())
    assert (share > 0.01) if lost else (share == 0)
    assert sum(seen) / len(seen) == pytest.approx(share, abs=0.02)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == lost
    assert not lost or "more than 1 % of the samples count for nothing" in warnings[0]


def test_what_is_no_step_is_in_no_window() -> None:
    class Resetting(Null):
        """Whose env 1 spends its third step on a reset."""

        count = 0

        def step(self, action: Tensor) -> Step:
            self.count += 1
            valid = torch.ones(4, dtype=torch.bool)
            valid[1] = self.count != 3
            return super().step(action)._replace(valid=valid)

    learner = agent(env=Resetting(4, obs_size=3, action_size=2, episode_length=100))
    learner.learn(6)
    for n_step, expected in ((1, [1, 1, 0, 1, 1]), (2, [1, 0, 0, 1])):
        start = torch.arange(len(expected))
        found = [learner.replay.window(start, torch.full_like(start, n), 0.9, n_step).weight.tolist() for n in (0, 1)]
        assert found == [[1] * len(expected), expected]


def test_samples_that_are_left_out_are_not_said_to_have_lost_their_last_observation(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Sometimes(Null):
        count = 0

        def step(self, action: Tensor) -> Step:
            self.count += 1
            reward = torch.full((4,), torch.nan if self.count < 40 and self.count % 5 == 0 else 1.0)
            return super().step(action)._replace(reward=reward)

    learner, lost = agent(env=Sometimes(4, obs_size=3, action_size=2), num_updates=1), list[float]()
    learner.learn(60, on_report=lambda report: lost.append(report.metrics.get("replay/lost", 0.0)))
    assert max(lost[41:]) > 0.01  # they are drawn long after
    learner = agent(env=Sometimes(4, obs_size=3, action_size=2), num_updates=1)
    learner.learn(60)
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("left out of learning" in text for text in said)
    assert not [text for text in said if "overwritten" in text]


# --- Exploration -----------------------------------------------------------------------------------------------------


def test_noise_is_held_for_zeta_distributed_numbers_of_steps_by_each_env_for_itself() -> None:
    torch.manual_seed(0)
    held = HeldNoise(2000, 3, longest=16)
    draws = torch.stack([held.draw().clone() for _ in range(200)])  # [T, N, A]
    fresh = (draws[1:] != draws[:-1]).all(-1)  # [T - 1, N]
    assert torch.equal(fresh, (draws[1:] != draws[:-1]).any(-1))
    lengths: list[int] = []
    for env in range(2000):
        starts = fresh[:, env].nonzero().flatten()
        lengths += starts.diff().tolist()
    counts = torch.bincount(torch.tensor(lengths), minlength=17)[1:].double()
    weight = torch.arange(1, 17).double() ** -2
    # Long spells are a little rarer among those that end in time.
    torch.testing.assert_close(counts / counts.sum(), weight / weight.sum(), rtol=0.1, atol=0.002)
    assert float(fresh.float().mean(0).std()) > 0  # envs do not change together
    assert float(draws[::20].std()) == pytest.approx(1, abs=0.02)


def test_noise_is_fresh_where_an_episode_began_and_everywhere_if_it_is_not_held() -> None:
    held = HeldNoise(1000, 2, longest=16)
    held.draw()
    held.left.fill_(5)
    before, done = held.noise.clone(), torch.arange(1000) < 300
    held.end(done)
    after = held.draw()
    assert not (after[:300] == before[:300]).any()
    assert torch.equal(after[300:], before[300:])
    torch.manual_seed(4)
    expected = torch.randn(1000, 2)
    torch.manual_seed(4)
    assert torch.equal(HeldNoise(1000, 2, longest=1).draw(), expected)


def test_deviations_are_spread_over_envs_or_drawn_for_each_episode() -> None:
    fixed = Deviation(5, 0.1, 0.5, "envs")
    fixed.end(torch.ones(5, dtype=torch.bool))
    torch.testing.assert_close(fixed.value.squeeze(1), torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]))
    drawn = Deviation(4000, 0.1, 0.5, "episodes")
    before, done = drawn.value.clone(), torch.arange(4000) % 2 == 0
    drawn.end(done)
    assert torch.equal(drawn.value[~done], before[~done])
    ranks = 0.1 + 0.4 * (torch.arange(2000) + 0.5) / 2000
    assert (drawn.value[done].flatten().sort().values - ranks).abs().max() < 0.4 * 1.63 / math.sqrt(2000)
    assert Deviation(1, 0.2, 0.4, "envs").value.item() == pytest.approx(0.3)


def test_an_envs_deviation_and_held_noise_reach_its_actions() -> None:
    learner = agent(DDPG, noise_range=(0.0, 0.3), noise_hold=16)
    obs = torch.zeros(4, 3)
    with torch.no_grad():
        action = learner._explore(obs)
        expected = learner.policy({"policy": obs})[0] + 2.0 * torch.linspace(0, 0.3, 4)[:, None] * learner.held.noise
    torch.testing.assert_close(action, expected)


@pytest.mark.parametrize("starts", [0, 2000])  # the actor's own with noise, or uniform ones
def test_exploration_reaches_every_end_of_the_box_and_not_beyond(starts: int) -> None:
    low, high = torch.tensor([0.5, -2.0]), torch.tensor([2.0, -1.0])
    bounds = {"action_low": tuple(low.tolist()), "action_high": tuple(high.tolist())}
    learner, obs = agent(DDPG, noise_std=3.0, learning_starts=starts, **bounds), {"policy": torch.randn(4, 3)}
    actions = torch.cat([learner.act(obs, ())[0].clone() for _ in range(200)])
    torch.testing.assert_close(actions.amin(0), low, rtol=0, atol=0.02)
    torch.testing.assert_close(actions.amax(0), high, rtol=0, atol=0.02)
    assert ((actions >= low) & (actions <= high)).all()


def test_actions_are_the_actors_as_soon_as_enough_steps_of_single_envs_are_stored() -> None:
    learner, obs = agent(DDPG, noise_std=0.0, learning_starts=12, normalize_obs=True), {"policy": torch.randn(4, 3) + 2}
    own = [torch.allclose(learner.act(obs, ())[0], learner.policy(obs)[0]) for _ in range(5)]
    assert own == [False] * 3 + [True] * 2  # after 12 steps, 4 at a time


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_exploration_and_return_begin_anew_in_envs_whose_episode_ended_and_in_no_other(end: str) -> None:
    learner = agent(DDPG, noise_range=(0.1, 0.4), noise_spread="episodes", noise_hold=16, normalize_reward=True)
    obs = learner.env.reset()
    action, _ = learner.act(obs, ())
    learner.held.left.fill_(9)
    learner.noise.fill_(1.0)
    before, done = learner.deviation.value.clone(), torch.tensor([True, False, True, False])
    learner.record(obs, action, (), learner.env.step(action)._replace(**{end: done}))
    assert learner.held.left.tolist() == [0, 9, 0, 9]
    assert learner.noise[:, 0].tolist() == [0, 1, 0, 1]
    assert torch.equal((learner.deviation.value != before).squeeze(1), done)
    assert torch.equal(learner.return_scale.running == 0, done)


def test_sac_explores_by_held_noise_of_the_actors_bounded_deviation() -> None:
    learner, obs = agent(SAC, noise_hold=16, log_std_range=(-2.0, -1.0)), torch.randn(4, 3)
    with torch.no_grad():
        learner.policy.head.bias[2:] = torch.tensor([-9.0, 5.0])  # beyond either end
        mean = learner.policy.output(obs)[:, :2]
        action = learner._explore(obs)
        expected = learner.policy.squash(mean + torch.tensor([-2.0, -1.0]).exp() * learner.held.noise)
        torch.testing.assert_close(action, expected)
        torch.manual_seed(4)
        drawn, _ = learner._sample(obs)  # what it learns from, of the same deviation
        torch.manual_seed(4)
        expected = learner.policy.squash(mean + torch.tensor([-2.0, -1.0]).exp() * torch.randn(4, 2))
        torch.testing.assert_close(drawn, expected)


# --- Values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1])
def test_reward_divisor_equals_a_loop_over_all_returns(sign: int) -> None:
    torch.manual_seed(1)
    scale = ReturnScale(3, gamma=0.9, limit=2.0)
    rewards, done = sign * (torch.randn(50, 3) * 3 + 1), torch.rand(50, 3) < 0.1
    returns, running, largest = [], [0.0] * 3, 0.0
    for t in range(50):
        scale.update(rewards[t], done[t])
        largest *= 0.5 ** (1 / 5000)
        for env in range(3):
            running[env] = 0.9 * running[env] + float(rewards[t, env])
            returns.append(running[env])
            largest = max(largest, abs(running[env]))
            running[env] = 0.0 if done[t, env] else running[env]
    series = torch.tensor(returns, dtype=torch.float64)
    deviation = float(series.std(correction=0))
    assert float(scale()) == pytest.approx(max(deviation, largest / 2), rel=1e-5)
    assert largest / 2 > deviation
    scale.limit = 1e9
    assert float(scale()) == pytest.approx(deviation, rel=1e-5)
    scale.update(torch.tensor([math.nan, 0.0, 0.0]), done[0])
    assert math.isfinite(float(scale()))


def test_rewards_are_scaled_when_they_are_stored() -> None:
    learner = agent(reward_scale=0.1, normalize_reward=True, gamma=0.5)
    obs, rewards = learner.env.reset(), []
    for _ in range(2):
        step = learner.env.step(torch.zeros(4, 2))
        learner.record(obs, torch.zeros(4, 2), (), step)
        obs = step.obs
        rewards.append(step.reward)
    torch.testing.assert_close(learner.replay.reward[:2], 0.1 * torch.stack(rewards))
    torch.testing.assert_close(learner.return_scale.running, 0.1 * (0.5 * rewards[0] + rewards[1]))


def test_rewards_are_divided_when_they_are_sampled() -> None:
    learner = agent(normalize_reward=True, value_range=(-9.0, 2.0))
    learner.learn(30)
    learner.return_scale.statistics.var.fill_(49.0)
    raw = learner.replay.sample(16, 0.99)
    for largest, divisor in ((1.0, 7.0), (20.0, 10.0)):  # no return is to exceed 2
        learner.return_scale.largest.fill_(largest)
        torch.testing.assert_close(learner._batch(raw).reward, raw.reward / divisor)


class Hiding(Null):
    """Null that keeps the last observations of its episodes to itself."""

    def step(self, action: Tensor) -> Step:
        return super().step(action)._replace(final_obs=None)


@pytest.mark.parametrize(
    ("env", "timeout", "discount", "after"),
    [
        (Null, "final_obs", 0.9, "final"),
        (Hiding, "final_obs", 0.9, "before"),
        (Null, "value", 0.9, "before"),
        (Null, "none", 0.0, None),
        (Hiding, "none", 0.0, None),
    ],
)
def test_what_follows_a_time_out_is_learned_as_the_settings_and_the_env_have_it(
    env: Any, timeout: str, discount: float, after: str | None
) -> None:
    made = env(4, obs_size=3, action_size=2, episode_length=1)  # every step is the last one
    learner = agent(env=made, timeout_bootstrap=timeout, gamma=0.9, n_step=3)
    seen: list[Batch] = []
    learner._gradient_step = lambda batch, with_actor: seen.append(batch) or {}
    learner.learn(11)
    for data in seen:
        assert data.discount.eq(discount).all() and data.weight.eq(1.0).all()
        if after is not None:
            bank = made._final_observations if after == "final" else data.actor_obs.unsqueeze(1)
            assert (data.next_actor_obs.unsqueeze(1) == bank).all(2).any(1).all()


@pytest.mark.parametrize(("timeout", "wanted"), [("final_obs", ("policy",)), ("value", ()), ("none", ())])
def test_an_env_is_asked_for_the_last_observations_that_are_read_and_may_leave_out_others(
    timeout: str, wanted: tuple[str, ...]
) -> None:
    class Asked(Null):
        final_groups: tuple[str, ...] | None = None

        def step(self, action: Tensor) -> Step:
            step = super().step(action)
            assert step.final_obs is not None and self.final_groups is not None
            return step._replace(final_obs={group: step.final_obs[group] for group in self.final_groups})

    env = Asked(4, obs_size=3, action_size=2, episode_length=3)
    learner = agent(env=env, timeout_bootstrap=timeout)
    assert env.final_groups == wanted
    learner.learn(12)
    assert learner.timeout_bootstrap == timeout


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 4),  # as many as steps of the 4 envs
        ({"num_steps": 2}, 8),
        ({"num_steps": 2, "update_ratio": 0.5}, 4),
        ({"num_steps": 2, "num_updates": 3}, 3),
    ],
)
def test_an_update_takes_as_many_gradient_steps_as_its_ratio_says(changes: dict[str, Any], expected: int) -> None:
    learner, taken = agent(**changes), []
    learner._gradient_step = lambda batch, with_actor: taken.append(with_actor) or {}
    learner.learn(10 if "num_steps" not in changes else 5)  # 40 steps: the first that is enough
    assert len(taken) == expected


@pytest.mark.parametrize(("starts", "n_step", "first"), [(0, 1, 2), (0, 3, 4), (40, 3, 10), (41, 1, 11)])
def test_learning_begins_with_enough_steps_and_a_whole_window(starts: int, n_step: int, first: int) -> None:
    learned: list[bool] = []
    learner = agent(learning_starts=starts, n_step=n_step)
    learner.learn(12, on_report=lambda report: learned.append("loss/value" in report.metrics))
    assert learned.index(True) + 1 == first


def test_metrics_are_means_over_the_gradient_steps_that_have_them() -> None:
    learner = agent(num_updates=5, policy_delay=2)
    numbers = iter([3.0, 5.0, 10.0, 20.0, 32.0])

    def step(batch: Batch, with_actor: bool) -> dict[str, Tensor]:
        number = torch.tensor(next(numbers))
        return {"loss/value": number, **({"loss/policy": -number} if with_actor else {})}

    learner._gradient_step = step
    seen: list[dict[str, float]] = []
    learner.learn(10, on_report=lambda report: seen.append(report.metrics))
    # The 46th to 50th step, had there been any before; those of even number are the actor's.
    assert (seen[-1]["loss/value"], seen[-1]["loss/policy"]) == pytest.approx((14.0, -15.0))


@pytest.mark.parametrize("when", [4, 16])  # before learning begins and after, the first of three steps
def test_what_was_dropped_is_counted_over_all_steps_of_an_iteration(when: int) -> None:
    learner, dropped = agent(num_steps=3, env=Faulty("reward", when)), []
    learner.learn(8, on_report=lambda report: dropped.append(report.metrics["replay/dropped"]))
    assert dropped == [float(iteration == (when - 1) // 3) for iteration in range(8)]


@pytest.mark.parametrize("kind", [SAC, DDPG])
def test_target_networks_begin_as_copies(kind: Any) -> None:
    learner = agent(kind, preset="gpu")
    pairs = [(learner.target_critics, learner.critics)]
    pairs += [(learner.target_policy, learner.policy)] if kind is DDPG else []
    for target, source in pairs:
        for a, b in zip(target.parameters(), source.parameters(), strict=True):
            assert torch.equal(a, b) and not a.requires_grad and a.data_ptr() != b.data_ptr()


def test_gradients_of_critics_and_actor_are_scaled_down_to_max_grad_norm() -> None:
    learner = agent(max_grad_norm=0.01)
    metrics = learner._gradient_step(batch(), with_actor=True)
    for name, optimizer in (("value_", learner.critic_optimizer), ("", learner.actor_optimizer)):
        assert float(metrics[f"policy/{name}gradient_norm"]) > 0.01
        assert float(optimizer.moment.norm()) == pytest.approx(0.1 * 0.01, rel=1e-3)  # Adam's average of one of them


def test_samples_that_do_not_count_leave_the_loss_of_the_others_as_large() -> None:
    learner = agent()
    learner.learn(15)
    raw = learner.replay.sample(8, 0.99)
    some, none = torch.tensor([1.0, 1, 0, 1, 0, 1, 1, 1]), torch.zeros(8)
    torch.testing.assert_close(learner._batch(raw._replace(weight=some)).weight, some * 8 / 6)
    assert torch.equal(learner._batch(raw._replace(weight=none)).weight, none)


def test_every_gradient_step_has_samples_of_its_own_of_n_steps() -> None:
    learner = agent(num_updates=3, n_step=3, gamma=0.9, env=Null(4, obs_size=3, action_size=2, episode_length=50))
    batches: list[Batch] = []
    learner._gradient_step = lambda batch, with_actor: batches.append(batch) or {}
    learner.learn(20)
    last = batches[-3:]
    assert all(len(one.action) == 32 for one in last)
    assert not any(torch.equal(last[a].action, last[b].action) for a, b in ((0, 1), (0, 2), (1, 2)))
    torch.testing.assert_close(last[0].discount, torch.full((32,), 0.9**3))


@pytest.mark.parametrize("reduce", ["min", "mean", "own"])
@pytest.mark.parametrize("loss", ["mse", "categorical"])
@pytest.mark.parametrize("kind", [SAC, DDPG])
def test_critics_learn_from_what_q_reduce_says(kind: Any, loss: str, reduce: str) -> None:
    learner = agent(kind, num_critics=3, q_reduce=reduce, value_loss=loss, num_atoms=11, value_range=(-3.0, 2.0))
    data, action, bonus = batch(), torch.rand(24, 2), torch.randn(24)
    with torch.no_grad():
        for parameter in learner.target_critics.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # at first they are copies
        output = learner.critics.output(data.critic_obs, data.action)
        following = learner.target_critics.output(data.next_critic_obs, action)
        if loss == "categorical":
            shift = data.reward + data.discount * bonus
            expected, _ = plain(cross_entropy)(output, following, shift, data.discount, data.weight, -3.0, 2.0, reduce)
            each = plain(expected_value)(output, -3.0, 2.0)
            torch.testing.assert_close(learner.critics(data.critic_obs, data.action), each)
            value = float(each.mean())
        else:
            total = 0.0
            for i in range(24):
                after = [float(following[c, i]) for c in range(3)]
                for c in range(3):
                    chosen = {"min": min(after), "mean": sum(after) / 3, "own": after[c]}[reduce]
                    target = float(data.reward[i]) + float(data.discount[i]) * (chosen + float(bonus[i]))
                    total += float(data.weight[i]) * (float(output[c, i]) - target) ** 2 / 24
            expected, value = torch.tensor(total), float(output.mean())
        next_output = learner.target_critics.output(data.next_critic_obs, action)
    output = learner.critics.output(data.critic_obs, data.action)
    rows, kind_of = (data.reward, data.discount, data.weight, bonus), learner.critics.support
    metrics = learner._critic_step(*critic_loss(output, next_output, *rows, reduce=reduce, support=kind_of))  # type: ignore[arg-type]
    assert float(metrics["loss/value"]) == pytest.approx(float(expected), rel=1e-4)
    assert float(metrics["policy/value"]) == pytest.approx(value, rel=1e-4, abs=1e-5)


def test_target_std_is_the_entropy_of_a_normal_distribution_in_the_units_of_the_env() -> None:
    learner = agent(target_std=0.15)
    reference = torch.distributions.Normal(0.0, 0.15 * learner.policy.action_scale).entropy().sum()
    assert learner.target_entropy == pytest.approx(float(reference), rel=1e-6)


def test_target_std_falls_along_a_cosine_and_temperature_follows_its_entropy() -> None:
    seen: list[tuple[int, float]] = []
    changes = {"target_std": 0.4, "target_std_end": 0.1, "center_entropy": True}
    learner = agent(num_iterations=40, learning_starts=8, **changes)
    learner.learn(40, on_report=lambda r: seen.append((r.iteration, r.metrics.get("policy/target_entropy", math.nan))))
    for iteration, found in seen[5:]:
        std = 0.1 * 4 ** ((1 + math.cos(math.pi * iteration / 40)) / 2)  # geometrically from one to the other
        expected = torch.distributions.Normal(0.0, std * learner.policy.action_scale).entropy().sum()
        assert found == pytest.approx(float(expected), rel=1e-5), iteration
    data = batch()
    metrics = learner._gradient_step(data, with_actor=True)
    gradient = float(metrics["policy/entropy"]) - seen[-1][1]
    assert float(learner.log_temperature.grad) == pytest.approx(gradient, rel=1e-4, abs=1e-5)
    with pytest.raises(ConfigError, match="target_std_end needs the length of the run"):
        agent(**changes).update()


def test_centered_entropy_shifts_targets_by_its_target_and_the_temperature_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[bool, Tensor] = {}
    for center in (False, True):
        learner, data = agent(center_entropy=center, target_entropy=-3.0, init_temperature=0.5), batch()

        def noted(*args: Any, center: bool = center, **settings: Any) -> Any:
            seen[center] = args[-1]
            return critic_loss(*args, **settings)

        monkeypatch.setattr("rlcore.sac.critic_loss", noted)
        torch.manual_seed(5)
        metrics = learner._gradient_step(data, with_actor=True)
        seen_entropy = float(metrics["policy/entropy"])
        # In both cases too much entropy lowers the temperature.
        assert (float(learner.log_temperature.detach()) < math.log(0.5)) == (seen_entropy > -3.0)
    torch.testing.assert_close(seen[True], seen[False] + 0.5 * 3.0)


def test_no_step_is_taken_down_a_loss_that_is_not_finite_even_where_its_gradient_is() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = FlatAdam([parameter], torch.tensor(0.1), 1.0)
    descend(optimizer, parameter.sum() + math.inf)
    assert torch.equal(parameter, torch.ones(3))
    descend(optimizer, parameter.sum())
    torch.testing.assert_close(parameter, torch.full((3,), 0.9))


def test_a_recording_is_of_the_latest_observations_and_of_no_others() -> None:
    learner = agent(num_steps=2)
    learner.learn(5)
    recording = learner.recording()
    assert torch.equal(recording["policy"], learner.replay.obs["policy"][:10])
    assert torch.equal(recording["done"], (torch.arange(10) == 6).unsqueeze(1).expand(10, 4))


def test_gradients_pass_through_frozen_critics() -> None:
    learner, data = agent(num_critics=2), batch()
    action = data.action.clone().requires_grad_()
    with frozen(learner.critic_optimizer.parameters):
        value = learner.critics(data.critic_obs, action).sum()
    (gradient,) = torch.autograd.grad(value, action)
    assert float(gradient.abs().sum()) > 0
    assert all(p.requires_grad and p.grad is None for p in learner.critics.parameters())


@pytest.mark.parametrize("num_steps", [1, 3])
def test_rate_falls_along_a_cosine_and_goes_on_after_a_resume(num_steps: int) -> None:
    rates: list[float] = []
    learner = agent(
        num_steps=num_steps, num_updates=1, lr_schedule="cosine", learning_rate=1e-2, lr_end=1e-3, num_iterations=7
    )
    # What learn is told counts, not what was planned.
    progress = learner.learn(40, on_report=lambda r: rates.append(r.metrics.get("policy/learning_rate", math.nan)))
    for iteration in (20, 30, 40):
        expected = 1e-3 + 9e-3 * (1 + math.cos(math.pi * iteration / 40)) / 2
        assert rates[iteration - 1] == pytest.approx(expected, rel=1e-5)
    assert float(learner.actor_optimizer.learning_rate) == pytest.approx(1e-3)
    learn(learner.env, learner, 44, progress=progress)  # beyond what was planned
    assert float(learner.actor_optimizer.learning_rate) == pytest.approx(1e-3)
    with pytest.raises(ConfigError, match="lr_schedule: 'cosine' needs the length of the run"):
        agent(lr_schedule="cosine").update()


def test_schedules_start_anew_with_a_new_run() -> None:
    seen: list[tuple[float, float]] = []
    falling = {"lr_schedule": "cosine", "learning_rate": 1e-2, "target_std": 0.4, "target_std_end": 0.1}
    learner = agent(**falling, num_iterations=10, learning_starts=8)
    for _ in range(2):
        learner.learn(
            10,
            on_report=lambda r: seen.append(
                (r.metrics.get("policy/learning_rate", math.nan), r.metrics.get("policy/target_entropy", math.nan))
            ),
        )
    first, second = torch.tensor(seen[:10]), torch.tensor(seen[10:])
    learning = ~first.isnan()
    assert int(learning.sum()) >= 10
    torch.testing.assert_close(second[learning], first[learning])


def test_all_of_a_second_run_is_restored_and_where_last_observations_were_missing() -> None:
    def build() -> Any:
        env = Hiding(4, obs_size=3, action_size=2, episode_length=7)
        return agent(env=env, lr_schedule="cosine", num_iterations=15)

    learner, other = build(), build()
    learner.learn(15)
    resume(other.env, other, snapshot(learner.env, learner, learner.learn(15)))
    for one, two in zip(leaves(learner.state_dict()), leaves(other.state_dict()), strict=True):
        assert torch.equal(one, two) if isinstance(one, Tensor) else one == two


def test_a_memory_too_small_for_one_window_is_refused() -> None:
    with pytest.raises(ConfigError, match="buffer_size: 12 is not possible; it holds 3 vector steps"):
        agent(buffer_size=12, learning_starts=0, n_step=3)
    agent(buffer_size=16, learning_starts=0, n_step=3).learn(9)


@pytest.mark.parametrize(("store_obs", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_observations_are_stored_as_the_settings_say(store_obs: str, kind: torch.dtype) -> None:
    memory = agent(store_obs=store_obs).replay
    assert {ring.dtype for ring in (*memory.obs.values(), *memory.final_obs.values())} == {kind}


def test_an_env_that_writes_over_its_last_observation_is_refused() -> None:
    class Reusing(Null):
        def step(self, action: Tensor) -> Step:
            step = super().step(action)
            memory = getattr(self, "memory", torch.empty_like(step.obs["policy"]))
            self.memory = memory.copy_(step.obs["policy"])
            return step._replace(obs={"policy": self.memory})

    with pytest.raises(ValueError, match="observation 'policy' lies where the one before it lay"):
        agent(env=Reusing(4, obs_size=3, action_size=2, episode_length=7)).learn(3)


class Privileged(Null):
    """Null with more for the critic to see, of other size and scale."""

    def __init__(self) -> None:
        super().__init__(4, obs_size=3, action_size=2, episode_length=7)
        self.observation_spaces = {**self.observation_spaces, "critic": spaces.Box(-math.inf, math.inf, (5,))}

    def more(self, obs: Obs) -> Obs:
        return {**obs, "critic": 9 * obs["policy"][:, [0, 1, 2, 2, 1]] + 4}

    def reset(self, seed: int | None = None) -> Obs:
        return self.more(super().reset(seed))

    def step(self, action: Tensor) -> Step:
        step = super().step(action)
        assert step.final_obs is not None
        return step._replace(obs=self.more(step.obs), final_obs=self.more(step.final_obs))


@pytest.mark.parametrize("wanted", [True, ("critic",), ("policy",)])
@pytest.mark.parametrize("kind", [SAC, DDPG])
def test_a_critic_that_sees_more_is_given_it_by_statistics_of_its_own(kind: Any, wanted: bool | tuple[str]) -> None:
    learner = agent(kind, env=Privileged(), normalize_obs=wanted)
    content = snapshot(learner.env, learner, learner.learn(20))
    raw = learner.replay.sample(50, 0.99)
    batch = learner._batch(raw)
    for name, group in (("actor_obs", "policy"), ("critic_obs", "critic")):
        seen = learner.replay.obs[group][:20].flatten(0, 1)  # all that was acted on
        for prefix, obs in (("", raw.obs), ("next_", raw.next_obs)):
            expected = (obs[group] - seen.mean(0)) / (seen.std(0, correction=0) + 0.01)
            expected = expected if wanted is True or group in wanted else obs[group]
            torch.testing.assert_close(getattr(batch, prefix + name), expected, rtol=1e-4, atol=1e-4)
    mean = learner.policy.output(batch.actor_obs)[:, :2]
    torch.testing.assert_close(learner.policy(raw.obs)[0], learner.policy.squash(mean))
    other = agent(kind, env=Privileged(), normalize_obs=wanted)
    resume(other.env, other, content)
    again = other._batch(raw)
    assert (again.costs, batch.costs) == (None, None)
    assert all(torch.equal(a, b) for a, b in zip(leaves(again[:-1]), leaves(batch[:-1]), strict=True))


def test_observations_are_clipped_for_actor_and_critic() -> None:
    learner = agent(env=Privileged(), normalize_obs=True, clip_obs=0.5)
    learner.learn(12)
    batch = learner._batch(learner.replay.sample(50, 0.99))
    for name in ("actor_obs", "critic_obs", "next_actor_obs", "next_critic_obs"):
        value = getattr(batch, name)
        assert (value.min(), value.max()) == (-0.5, 0.5)


# --- Networks --------------------------------------------------------------------------------------------------------


def test_residual_network_equals_its_formula() -> None:
    torch.manual_seed(0)
    network = Residual(5, NetworkConfig(kind="residual", hidden_dims=(8, 8), expansion=3, activation="relu"))
    x = torch.randn(7, 5)
    with torch.no_grad():
        for parameter in network.parameters():  # biases begin at 0
            parameter.add_(0.1 * torch.randn_like(parameter))

    def norm(y: Tensor) -> Tensor:
        deviation = (y.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return (y - y.mean(-1, keepdim=True)) / deviation

    y = x @ network.entry.weight.T + network.entry.bias
    for widen, narrow in zip(network.widen, network.narrow, strict=True):
        assert widen.weight.shape == (24, 8)  # type: ignore[union-attr]
        wide = norm(y) @ widen.weight.T + widen.bias  # type: ignore[union-attr,operator]
        y = y + wide.clamp(min=0) @ narrow.weight.T  # type: ignore[union-attr,operator]
    torch.testing.assert_close(network(x), norm(y), rtol=1e-4, atol=1e-5)
    assert network.size == 8


def test_layers_are_normalized_before_they_are_activated() -> None:
    torch.manual_seed(0)
    network = MLP(5, NetworkConfig(hidden_dims=(8,), activation="silu", layer_norm=True))
    x = torch.randn(7, 5)
    linear: Any = network.layers[0]
    torch.testing.assert_close(network(x), F.silu(F.layer_norm(linear(x), (8,))))


@pytest.mark.parametrize("changes", [{"hidden_dims": (8, 16)}, {"hidden_dims": ()}, {"expansion": 0}])
def test_impossible_networks_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        NetworkConfig(**{"kind": "residual", **changes})


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        ((-1.0, -2.0), (1.0, 2.0), (0.0, 0.0)),
        ((-0.5, -2.0), (2.0, 1.0), (0.0, 0.0)),
        ((1.0, -2.0), (2.0, 0.0), (1.05, -0.1)),
    ],
)
def test_an_actor_begins_near_action_zero_with_the_deviation_it_is_told(
    low: tuple[float, ...], high: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    learner = agent(init_head_scale=1e-3, init_std=0.3, action_low=low, action_high=high)
    obs = torch.randn(100, 3)
    with torch.no_grad():
        mean, log_std = learner.policy.output(obs).chunk(2, -1)
        action = learner.policy.squash(mean)
    torch.testing.assert_close(action, torch.tensor(expected).expand(100, 2), rtol=0, atol=0.02)
    torch.testing.assert_close(log_std.exp(), torch.full((100, 2), 0.3), rtol=0.02, atol=0)


# --- Presets ---------------------------------------------------------------------------------------------------------


def test_presets_are_the_defaults_the_same_for_many_envs_and_td3() -> None:
    assert SACConfig.preset("classic") == SACConfig()
    assert DDPGConfig.preset("classic") == DDPGConfig()
    for kind in (SACConfig, DDPGConfig):
        gpu = kind.preset("gpu", gamma=0.97)
        assert (gpu.value_loss, gpu.normalize_reward, gpu.n_step, gpu.gamma) == ("categorical", True, 3, 0.97)
        assert gpu.num_critics == 2
        with pytest.raises(ConfigError, match=f"preset: 'gpuu' is no preset of {kind.__name__}; did you mean 'gpu'?"):
            kind.preset("gpuu")
    td3 = DDPGConfig.preset("td3")
    assert td3 == DDPGConfig(num_critics=2, policy_delay=2, target_noise=0.2, target_noise_clip=0.5)


def test_a_preset_follows_from_the_task_unless_one_is_named(tmp_path: Path) -> None:
    def chosen(task: str, algo: str = "sac", **named: Any) -> tuple[str, int, list[Path]]:
        config: Any
        config, files = default_config(task, algo=algo, **named)
        assert config.agent.value_loss == ("categorical" if config.preset == "gpu" else "mse")
        return config.preset, config.num_envs, files

    assert chosen("Pendulum") == ("classic", 1, [CONFIGS / "sac" / "Pendulum.yaml"])
    assert chosen("Pendulum", preset="gpu") == ("gpu", 1024, [CONFIGS / "sac-gpu" / "default.yaml"])
    assert chosen("gym:Hopper-v5") == ("classic", 1, [CONFIGS / "sac" / "default.yaml"])
    for task in ("Mjlab-Velocity-Flat-Unitree-G1", "isaaclab:mine:Task-v0", "Isaac-Ant-v0"):
        assert chosen(task, "ddpg") == ("gpu", 1024, [CONFIGS / "ddpg-gpu" / "default.yaml"])
    assert chosen("Reach-UR5e-JointPos")[:2] == ("gpu", 1024)
    file = tmp_path / "mine.yaml"
    file.write_text("algo: sac\npreset: gpu\nnum_envs: 7\nagent: {gamma: 0.5}\n")
    assert chosen("gym:Hopper-v5", file=file) == ("gpu", 7, [CONFIGS / "sac-gpu" / "default.yaml", file])
    assert chosen("gym:Hopper-v5", file=file, preset="gpu") == chosen("gym:Hopper-v5", file=file)
    with pytest.raises(ConfigError, match=r"--preset is 'classic', and .*mine.yaml has the settings of 'gpu'"):
        chosen("gym:Hopper-v5", file=file, preset="classic")
    file.write_text("algo: sac\npreset: gpuu\n")
    with pytest.raises(ConfigError, match="did you mean 'gpu'"):
        chosen("Pendulum", file=file)


@pytest.mark.parametrize("algo", ["sac", "ddpg"])
def test_a_run_says_that_the_preset_for_gpus_is_slow_without_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], algo: str
) -> None:
    small = ["--num-envs", "4", "--num-iterations", "1", "--eval-envs", "1", "--no-export", "--runs-dir", str(tmp_path)]
    small += ["--agent.learning-starts", "40", "--agent.buffer-size", "2000", "--device", "cpu"]
    assert main(["train", "--task", "Pendulum", "--algo", algo, *small]) == 0
    assert "preset gpu" not in capsys.readouterr().out
    assert main(["train", "--task", "Pendulum", "--algo", algo, "--preset", "gpu", *small]) == 0
    assert capsys.readouterr().out.count("note         the preset gpu is made for CUDA, and slow on a CPU") == 1


def test_command_line_knows_presets_and_td3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--num-envs", "4", "--num-iterations", "16", "--eval-envs", "3", "--runs-dir", str(tmp_path)]
    small += ["--agent.learning-starts", "40", "--agent.batch-size", "16", "--agent.buffer-size", "2000"]
    small += ["--env.max-episode-length", "40"]
    nets = ["--agent.actor.hidden-dims", "16", "--agent.critic.hidden-dims", "16"]
    for words, algo, preset in (
        (["--algo", "sac", "--preset", "gpu", *nets], "sac", "gpu"),
        (["--algo", "td3", *nets], "ddpg", "td3"),
        (["--algo", "td3", "--preset", "gpu", *nets], "ddpg", "gpu"),
    ):
        runs = set((tmp_path / "Pendulum" / algo).glob("*"))
        assert main(["train", "--task", "Pendulum", *words, *small]) == 0
        (run,) = set((tmp_path / "Pendulum" / algo).glob("*")) - runs
        written = load_yaml(run / "config.yaml")
        assert (written["algo"], written["preset"]) == (algo, preset)
        assert written["agent"]["policy_delay"] == 2
        assert main(["train", "--resume", str(run), "--num-iterations", "20"]) == 0
        assert main(["eval", "--run", str(run), "--episodes", "2"]) == 0
    assert main(["config", "--task", "Pendulum", "--algo", "sac", "--preset", "gpu"]) == 0
    printed = capsys.readouterr().out
    assert "value_loss: categorical" in printed
    assert "algorithm    ddpg with the preset td3 on cpu" in printed
    assert main(["config", "--task", "Pendulum", "--algo", "sac", "--num-envs", "7", "--show"]) == 0
    printed = capsys.readouterr()
    assert "num_envs: 7\n" in printed.out and "nothing was converted" in printed.err
    assert main(["train", "--task", "Pendulum", "--algo", "td3", "--preset", "classic"]) == 2
    assert main(["train", "--task", "Pendulum", "--algo", "TD3"]) == 2
    error = capsys.readouterr().err
    assert "--preset is 'classic', which is DDPG without" in error and "did you mean 'td3'?" in error
    assert main(["train", "--task", "Pendulum", "--preset", "gpu"]) == 2
    assert main(["train", "--task", "Pendulum", "--algo", "sac", "--preset", "gpuu"]) == 2
    assert main(["train", "--resume", str(run), "--preset", "classic"]) == 2
    error = capsys.readouterr().err
    assert "--preset is 'gpu', and ppo has none" in error
    assert "'gpuu' is no preset of SACConfig; did you mean 'gpu'?" in error
    assert "preset is 'gpu' in the run that is resumed and 'classic' here" in error


def test_a_run_that_ends_before_learning_begins_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--task Pendulum --algo sac --num-envs 4 --agent.learning-starts 40 --eval-envs 2 --no-export --runs-dir"
    assert main(["train", *words.split(), str(tmp_path), "--num-iterations", "9"]) == 0
    warning = "warning      nothing will be learned: {} steps are left, and learning begins after {};"
    assert warning.format(36, 40) in capsys.readouterr().out
    (run,) = tmp_path.glob("Pendulum/sac/*")
    assert main(["train", "--resume", str(run), "--num-iterations", "10"]) == 0
    assert "nothing will be learned" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("kind", [SAC, DDPG])
def test_the_gpu_preset_made_small_solves_pendulum(kind: Any) -> None:
    """A random policy has about -1200; 16 envs, two gradient steps for each step of them all."""
    from rlcore.train.evaluate import evaluate

    nets = {
        name: NetworkConfig(kind="residual", hidden_dims=(w,), activation="relu")
        for name, w in (("actor", 32), ("critic", 64))
    }
    sizes = {"num_updates": 2, "batch_size": 128, "buffer_size": 50_000, "learning_starts": 1000, "num_atoms": 51}
    config = (SACConfig if kind is SAC else DDPGConfig).preset("gpu", **sizes, **nets, learning_rate=1e-3, lr_end=3e-4)
    learner = kind(make_env("Pendulum", 16, seed=1), config, seed=1)
    learner.learn(900)
    result = evaluate(make_env("Pendulum", 50, seed=1), learner.policy, seed=100)
    assert result.mean_return >= -200


@pytest.mark.gpu
@pytest.mark.parametrize("layers", [{"kind": "residual"}, {"layer_norm": True}, {"activation": "elu"}])
def test_half_precision_is_near_full_precision_on_a_gpu(layers: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = NetworkConfig(**{"hidden_dims": (64, 64), "activation": "silu", **layers})
    module = (Residual if network.kind == "residual" else MLP)(20, network).cuda()
    x = torch.randn(100, 20, device="cuda", requires_grad=True)
    parameters, direction = [x, *module.parameters()], torch.randn(100, 64, device="cuda")
    results = []
    for precision in ("fp32", "bf16"):
        module.precision, module.fused = precision, precision == "bf16"
        y = module(x)
        assert y.dtype == torch.float32
        results.append([y.detach(), *torch.autograd.grad((y * direction).sum(), parameters)])
    for full, half in zip(*results, strict=True):
        assert half.dtype == torch.float32
        assert float((full - half).norm() / full.norm()) < 3e-2
