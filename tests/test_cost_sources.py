"""Signals of one's own: bounds on observations, on the state of arms and on what simulators tell, for any env."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlcore import PPO, ConfigError, PPOConfig, Step
from rlcore.env import is_selective, is_staggered
from rlcore.envs import make_env
from rlcore.envs.classic import Pendulum
from rlcore.envs.costs import CostSource, WithSignals, split_sources, with_signals
from rlcore.envs.reach_box import BOX_HIGH, BOX_LOW, ReachBox
from rlcore.envs.watch import Watch
from rlcore.safety import CostConfig, SafetyConfig
from rlcore.train.cli import main


def signals_of(step: Step) -> dict[str, Tensor]:
    assert step.signals is not None
    return step.signals


# Observations


def test_bounds_on_observations_see_the_last_one_before_a_reset() -> None:
    options: dict[str, Any] = {
        "costs.all": {"observation": "policy"},
        "costs.fast": {"observation": "policy", "index": 2, "above": 0.8},
        "costs.over.observation": "policy", "costs.over.index": [0, 2], "costs.over.above": [0.9, 0.5],
        "costs.over.excess": True,
    }  # fmt: skip
    env = make_env("Pendulum", 8, seed=0, max_episode_length=5, **options)
    plain = make_env("Pendulum", 8, seed=0, max_episode_length=5)
    env.reset()
    plain.reset()
    ends, seen = 0, torch.zeros(2)
    for t in range(12):
        action = torch.full((8, 1), float(t % 3 - 1))
        step, same = env.step(action), plain.step(action)
        assert step.final_obs is not None and same.final_obs is not None
        assert torch.equal(step.obs["policy"], same.obs["policy"]) and torch.equal(step.reward, same.reward)
        last = torch.where(same.truncated.unsqueeze(1), same.final_obs["policy"], same.obs["policy"]).abs()
        found = signals_of(step)
        assert torch.equal(found["all"], last.amax(1))
        assert torch.equal(found["fast"], (last[:, 2] > 0.8).float())
        over = torch.stack([last[:, 0] - 0.9, last[:, 2] - 0.5]).amax(0).clamp(min=0)
        torch.testing.assert_close(found["over"], over)
        ends += int(same.truncated.sum())
        seen += torch.stack([found["fast"].mean(), found["over"].mean()])
    assert ends == 16 and 0 < seen[0] < 12 and seen[1] > 0


class Named(Pendulum):
    """A Pendulum that names its terms, in two groups, and hides the last observation of an episode."""

    def __init__(self, num_envs: int, **options: Any) -> None:
        super().__init__(num_envs, **options)
        terms = [{"name": "direction", "size": 2}, {"name": "speed", "size": 1}]
        self.deployment = {"observation_terms": {"policy": terms, "critic": terms}}  # type: ignore[misc]
        self.observation_spaces = {
            "policy": self.observation_spaces["policy"],
            "critic": self.observation_spaces["policy"],
        }

    def step(self, action: Tensor) -> Step:
        step = super().step(action)
        return step._replace(obs=step.obs | {"critic": 2 * step.obs["policy"]}, final_obs=None)


def test_terms_have_names_and_hidden_observations_count_nothing() -> None:
    env = WithSignals(
        Named(4, seed=0, max_episode_length=3),
        {"speed": CostSource(observation="critic/speed"), "turn": CostSource(observation="policy/direction")},
    )
    env.reset()
    for t in range(6):
        step = env.step(torch.ones(4, 1))
        over = float(t % 3 != 2)
        assert torch.equal(signals_of(step)["speed"], over * 2 * step.obs["policy"][:, 2].abs())
        assert torch.equal(signals_of(step)["turn"], over * step.obs["policy"][:, :2].abs().amax(1))


def test_what_is_no_step_costs_nothing() -> None:
    class Resetting(Pendulum):
        """Whose first two envs spend a step on their reset."""

        def step(self, action: Tensor) -> Step:
            return super().step(action)._replace(valid=torch.tensor([False, False, True, True]))

    env = WithSignals(Resetting(4, seed=0), {"cost": CostSource(observation="policy")})
    env.reset()
    for _ in range(3):
        assert (signals_of(env.step(torch.ones(4, 1)))["cost"] > 0).tolist() == [False, False, True, True]


def test_what_is_set_on_the_wrapper_reaches_the_env() -> None:
    inner: Any = Named(2)
    assert not is_staggered(WithSignals(inner, {})) and not is_selective(WithSignals(inner, {}))
    inner.randomize_start, inner.final_groups = True, ("critic",)
    env: Any = WithSignals(inner, {"a": CostSource(observation="policy")})
    assert is_selective(env)
    assert is_staggered(env)
    env.randomize_start = False
    assert inner.randomize_start is False
    assert inner.final_groups == ("critic", "policy")  # what the signal reads is asked for


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"observation": "speed"}, "several groups have 'speed'; write policy/speed or critic/speed"),
        ({"observation": "critic/sped"}, "there is no 'critic/sped'; did you mean 'critic/speed'"),
        ({"observation": "policy", "index": 3}, "index: 3 is not possible; 'policy' has 3 numbers, the first is 0"),
        ({"observation": "policy", "above": [1, 2]}, r"above: \[1.0, 2.0\] is not possible; give one bound, or 3"),
        ({"state": "joint_vel"}, "costs.a.state: the task tells none; name a term of its observations"),
        ({"observation": "policy", "above": -1}, "env.costs.a: above: -1.0 is not possible; magnitudes are bounded"),
        ({"observation": "policy", "excess": True}, "env.costs.a: excess: True is not possible; it is over a bound"),
        ({"observation": "policy", "reward": "x"}, "env.costs.a: observation and reward are given; give one of"),
        ({"above": 1}, "env.costs.a: nothing to read is given; give one of observation, reward and state"),
        ({"observaton": "policy"}, "env.costs.a: unknown key 'observaton'; did you mean 'observation'"),
        (3, "env.costs.a: 3 is not possible; write .observation, .reward or .state"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(source: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        WithSignals(Named(2), split_sources({"costs.a": source})[0])
    assert "\n" not in str(caught.value)


def test_a_signal_of_the_env_is_not_hidden() -> None:
    env = with_signals(make_env("Detour", 2, seed=0), {"cost": CostSource(observation="position")})
    env.reset()
    with pytest.raises(ValueError, match=r"Detour: costs\.cost: the env gives a signal 'cost'; choose another name"):
        env.step(torch.zeros(2, 2))


def test_files_and_the_command_line_add_up() -> None:
    nested = {"costs": {"a": {"observation": "x", "above": 1}}, "width": 2}
    sources, others = split_sources(nested | {"costs.a.above": [3, 4], "costs.b.state": "y"})
    assert sources == {"a": CostSource(observation="x", above=(3.0, 4.0)), "b": CostSource(state="y")}
    assert others == {"width": 2} and nested["costs"]["a"]["above"] == 1  # type: ignore[index]


# Arms


def test_arms_tell_joints_as_they_were_before_a_reset() -> None:
    options: dict[str, Any] = {
        "costs.speed.state": "joint_velocity",
        "costs.effort.state": "applied_effort",
        "costs.effort.index": [0],
    }
    env: Any = make_env("Reach-UR5e-JointPos-HiddenVelocity", 4, seed=0, **options)
    env.reset()
    inner = env.env.env
    inner.steps += 355
    for t in range(8):
        step = env.step(torch.full((4, 6), 0.3))
        assert bool(step.truncated.all()) == (t == 4)
        found = signals_of(step)
        if t != 4:
            assert torch.equal(found["speed"], inner.joint_velocity.abs().amax(1))
        assert (found["speed"] > 0.01).all() and (found["effort"] > 1).all()
    with pytest.raises(ValueError, match="there is no 'joint_velocty'; did you mean 'joint_velocity'"):
        with_signals(make_env("Reach-UR5e-JointPos", 1), {"a": CostSource(state="joint_velocty")})
    with pytest.raises(ValueError, match="the arms tell no terms of their reward; give state"):
        with_signals(make_env("Reach-UR5e-JointPos", 1), {"a": CostSource(reward="effort")})


def test_the_box_is_between_the_commands_and_its_signals_are_of_before_a_reset() -> None:
    env = ReachBox(num_envs=256, seed=0, speed_limit=0.5)
    obs = env.reset()["policy"]
    low, high = torch.tensor(BOX_LOW), torch.tensor(BOX_HIGH)
    targets = obs[:, 13:16]
    assert not ((targets > low) & (targets < high)).all(1).any() and (targets[:, 1].abs() > 0.129).all()
    assert 0.3 < (targets[:, 1] > 0).float().mean() < 0.7
    env.steps += 340
    action = 1.5 * torch.randn(256, 6, generator=torch.Generator().manual_seed(0))
    seen = torch.zeros(2)
    for t in range(20):
        step = env.step(action)
        found = signals_of(step)
        assert step.final_obs is not None and bool(step.truncated.all()) == (t == 19)
        at = step.final_obs["policy"][:, 6:9]
        assert torch.equal(found["box"], ((at > low) & (at < high)).all(1).float())
        if t < 19:
            assert torch.equal(found["joint_speed"], (env.joint_velocity.abs() > 0.5).any(1).float())
        seen += torch.stack([found["box"].mean(), found["joint_speed"].mean()])
    assert 0.1 < seen[0] < 19 and 1 < seen[1] < 20
    with pytest.raises(ValueError, match="speed_limit is 0; use more than 0"):
        make_env("Reach-UR5e-JointVel-Box", 1, speed_limit=0)


# Simulators, on a small contract; Isaac Lab's own code is in test_isaaclab.py.


class Data:
    """Data of a robot, of which some cannot be read in this task."""

    def __init__(self) -> None:
        self.position = torch.zeros(3, 2)
        self.name = "arm"

    @property
    def joint_vel(self) -> Tensor:
        return self.position * 10

    @property
    def torques(self) -> Tensor:
        raise NotImplementedError("they are\nambiguous")


class Manager:
    """A reward manager, which multiplies by weights and keeps what that gives by term."""

    active_terms = ("alive", "rate", "off")

    def __init__(self, data: Data) -> None:
        self.data, self.weights = data, {"alive": 2.0, "rate": -0.1, "off": 0.0}
        self.terms = {name: SimpleNamespace(weight=weight) for name, weight in self.weights.items()}
        self._step_reward = torch.zeros(3, 3)

    def get_term_cfg(self, name: str) -> Any:
        return self.terms[name]

    def compute(self, dt: float) -> Tensor:
        raw = torch.stack([torch.ones(3), self.data.position[:, 0], torch.zeros(3)], 1)
        self._step_reward[:] = raw * torch.tensor([term.weight for term in self.terms.values()])
        return self._step_reward.sum(1) * dt


def simulator() -> Any:
    data = Data()
    scene = SimpleNamespace(articulations={"robot": SimpleNamespace(data=data)}, rigid_objects=None)
    return SimpleNamespace(scene=scene, reward_manager=Manager(data), num_envs=3, data=data)


def test_a_simulator_is_read_where_it_computes_its_rewards() -> None:
    core = simulator()
    watch = Watch(core, torch.device("cpu"))
    speed, rate = watch.reader("state", "joint_vel"), watch.reader("reward", "rate")
    position = watch.reader("state", "robot.position")
    for value in (1.0, 2.0):
        core.data.position += value
        before = core.data.position.clone()
        assert torch.equal(core.reward_manager.compute(0.5), core.reward_manager._step_reward.sum(1) * 0.5)
        core.data.position[0] = 0.0  # the env resets
        assert torch.equal(speed(), before * 10) and torch.equal(position(), before)
        torch.testing.assert_close(rate(), before[:, 0])
        core.reward_manager.terms["rate"].weight = -0.5  # as a curriculum does
    core.reward_manager.terms["rate"].weight = 0.0
    assert torch.equal(rate(), torch.zeros(3))
    watch.close()
    assert "compute" not in vars(core.reward_manager)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("state", "joint_vell", "'robot' has no data 'joint_vell'; did you mean 'joint_vel'"),
        ("state", "robt.joint_vel", "there is no entity 'robt'; did you mean 'robot'"),
        ("state", "name", "'name' of 'robot' has no row for each env; name other data of it"),
        ("state", "torques", "'torques' of 'robot' cannot be read: they are ambiguous"),
        ("reward", "rat", "there is no term 'rat'; did you mean 'rate'"),
        ("reward", "off", "'off' has a weight of 0, with which it is not computed; give it a small one"),
    ],
)
def test_what_a_simulator_does_not_tell_is_refused(kind: Any, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Watch(simulator(), torch.device("cpu")).reader(kind, name)


def test_a_direct_task_has_no_terms_but_data() -> None:
    core = simulator()
    del core.reward_manager
    core._get_rewards = lambda: core.data.position.sum(1)
    watch = Watch(core, torch.device("cpu"))
    with pytest.raises(ValueError, match="no terms of its reward; name data of the robot by state"):
        watch.reader("reward", "alive")
    speed = watch.reader("state", "joint_vel")
    core.data.position += 1
    core._get_rewards()
    core.data.position += 1
    assert torch.equal(speed(), torch.full((3, 2), 10.0))


# In a run


def test_a_limit_on_a_bound_of_ones_own_is_kept_and_evaluated(tmp_path: Path) -> None:
    words = (
        "train --task Pendulum --num-envs 8 --num-iterations 2 --agent.num-steps 8 --agent.num-minibatches 1 "
        "--eval-envs 4 --env.costs.fast.observation policy --env.costs.fast.index 2 --env.costs.fast.above 1 "
        "--agent.safety.costs.fast.limit 0.1 --agent.safety.costs.fast.kind per_step --device cpu "
        f"--name limited --runs-dir {tmp_path}"
    )
    assert main(words.split()) == 0
    (run,) = tmp_path.glob("Pendulum/ppo/*-limited")
    assert "safety/fast_multiplier" in (run / "metrics.csv").read_text().splitlines()[0]
    assert json.loads((run / "eval.json").read_text())["signal_fast_mean"] >= 0
    assert main(["eval", "--run", str(run), "--num-envs", "4", "--device", "cpu"]) == 0


def test_an_agent_learns_from_them_as_from_any_signal() -> None:
    costs = {"fast": CostConfig(limit=0.1, kind="per_step")}
    env = with_signals(make_env("Pendulum", 8, seed=0), {"fast": CostSource(observation="policy", above=(2.0,))})
    agent = PPO(env, PPOConfig(num_steps=8, num_minibatches=1, safety=SafetyConfig(costs=costs)), seed=0)
    rows: list[dict[str, float]] = []
    agent.learn(2, on_report=lambda report: rows.append(report.metrics))
    assert rows[-1]["safety/fast_cost"] > 0.1 and rows[-1]["safety/fast_multiplier"] > 0
    with pytest.raises(ConfigError, match="no signal 'slow'; valid: fast"):
        PPO(env, PPOConfig(safety=SafetyConfig(costs={"slow": CostConfig(limit=0.0)}))).learn(1)
