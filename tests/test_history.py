"""What a policy remembers of its actions, and that late motors are predictable with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlcore.envs import make_env
from rlcore.envs.disturb import Disturbed
from rlcore.envs.history import ActionHistory, disturbed_within, without_history
from rlcore.train.cli import main


def made(**options: Any) -> Any:
    env: Any = make_env("Pendulum", 8, seed=0, **options)
    env.reset(0)
    return env


def test_the_latest_actions_come_first_and_begin_anew_with_an_episode() -> None:
    env = made(action_history=3, max_episode_length=5)
    bare = made(max_episode_length=5)
    assert env.observation_spaces["policy"].shape == (bare.observation_spaces["policy"].shape[0] + 3,)
    assert [t["name"] for t in env.deployment["observation_terms"]["policy"]][-3:] == [
        f"sent_action_{i}" for i in (1, 2, 3)
    ]
    sent: list[torch.Tensor] = []
    for t in range(12):
        action = torch.randn(8, 1)
        step, alone = env.step(action), bare.step(action)
        sent = [action, *sent]
        wanted = torch.cat([*sent[:3], *[torch.zeros(8, 1)] * (3 - len(sent))], 1)
        over = t % 5 == 4
        assert torch.equal(step.obs["policy"][:, :-3], alone.obs["policy"])
        assert torch.equal(step.obs["policy"][:, -3:], torch.zeros_like(wanted) if over else wanted)
        assert torch.equal(step.final_obs["policy"][:, -3:], wanted)
        assert torch.equal(step.reward, alone.reward)
        sent = [] if over else sent


def test_with_what_was_sent_a_late_motor_is_predictable() -> None:
    """The next velocity is linear in what is seen only with the action that is on its way."""
    env = made(**{"randomize.action_delay": [1.0, 1.0]}, action_history=1)
    rows, targets = [], []
    obs = env.reset(1)["policy"]
    for _ in range(60):
        step = env.step(0.5 * torch.randn(8, 1))
        rows.append(obs.double())
        targets.append(step.obs["policy"][:, 2].double())  # velocity
        obs = step.obs["policy"]
    x, y = torch.cat(rows[1:]), torch.cat(targets[1:])

    def left(x: torch.Tensor) -> float:
        x = torch.cat((x, torch.ones(len(x), 1)), 1)
        return float((y - x @ torch.linalg.lstsq(x, y[:, None]).solution[:, 0]).abs().max())

    assert left(x) < 1e-4 < 0.05 < left(x[:, :-1])


def test_it_is_of_what_was_wanted_and_no_sensor() -> None:
    env = made(**{"randomize.noise": [0.5, 0.5], "randomize.action_delay": [1.0, 1.0]}, action_history=1)
    for _ in range(3):
        action = torch.randn(8, 1)
        assert torch.equal(env.step(action).obs["policy"][:, -1:], action)
    assert env.parameters.keys() >= {"noise", "mass"} and "dynamics" in env.observation_spaces
    assert env.observation_spaces["dynamics"].shape == (2,)


def test_saved_and_put_back_it_goes_on_bitwise() -> None:
    env, other = made(action_history=2), made(action_history=2)
    env.step(torch.randn(8, 1))
    other.load_state_dict(env.state_dict())
    action = torch.randn(8, 1)
    assert torch.equal(env.step(action).obs["policy"], other.step(action).obs["policy"])


@pytest.mark.parametrize(
    ("task", "length", "message"),
    [
        ("Pendulum", 0, "action_history is 0; use a whole number of steps from 1 to 1000"),
        ("Pendulum", True, "action_history is True"),
        ("CartPole", 2, "its are choices"),
    ],
)
def test_what_cannot_be_is_refused(task: str, length: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_env(task, 2, action_history=length)


def test_none_is_without() -> None:
    env = make_env("Pendulum", 2, action_history=None)
    assert without_history(env) is env and not isinstance(env, ActionHistory)


def test_a_run_with_it_is_measured_with_late_actions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--device", "cpu", "--threads", "1"]
    options = ["--env.action_history", "2", "--num-envs", "4", "--num-iterations", "1", "--eval-envs", "2"]
    assert main(["train", "--task", "Pendulum", "--runs-dir", str(tmp_path), *options, *common]) == 0
    run = next(tmp_path.glob("Pendulum/ppo/*"))
    measured = ["--episodes", "2", "--types", "actuator_delay=0:2:3", "sensor_noise=0:0.1:2", *common]
    for subject in (["--run", str(run)], ["--onnx", str(run / "export" / "policy.onnx")]):
        assert main(["robustness", *subject, "--output", str(tmp_path / "out"), *measured]) == 0
    assert "differs by 0 in a return" in capsys.readouterr().out


def test_of_several_tasks_each_remembers_its_own_actions() -> None:
    env = make_env("tasks:Pendulum+Corner-NE", 4, seed=1, action_history=2)
    sizes = {name: spec.observation_sizes["policy"] for name, spec in env.tasks.items()}  # type: ignore[attr-defined]
    assert sizes == {"Pendulum": 3 + 2 * 1, "Corner-NE": 4 + 2 * 2}
    assert env.observation_spaces["task"].shape == (2,), "which task it is comes with no history"
    env.reset()
    obs = env.step(torch.full((4, 2), 0.5)).obs["policy"]
    assert torch.equal(obs[:2, 3:], torch.tensor([0.5, 0, 0, 0, 0]).expand(2, 5))
    assert torch.equal(obs[2:, 4:], torch.tensor([0.5, 0.5, 0, 0]).expand(2, 4))
    with pytest.raises(ValueError, match="CartPole: action_history is for actions that are numbers"):
        make_env("tasks:CartPole+Pendulum", 4, action_history=2)


@pytest.mark.parametrize("costs", [{}, {"costs.speed.observation": "angular_velocity"}])
def test_disturbances_do_not_reach_what_a_trial_remembers(costs: dict[str, Any]) -> None:
    env: Any = disturbed_within(
        make_env("Pendulum", 3, seed=1, trial_episodes=2, action_history=1, max_episode_length=5, **costs),
        lambda inner: Disturbed(inner, ["noise", "action_delay"], seed=2),
    )
    assert isinstance(env, ActionHistory) and isinstance(without_history(env), Disturbed)
    where, one = torch.ones(3, dtype=torch.bool), torch.ones(3)
    env.reset(seed=1)
    env.set_parameters({"noise": one, "action_delay": one}, where)
    step = env.step(torch.full((3, 1), 0.25))
    obs = step.obs["policy"]  # [3, 3 numbers, previous action, reward, end, sent action]
    assert torch.equal(obs[:, 3], torch.full((3,), 0.25)) and torch.equal(obs[:, 4], step.reward)
    assert obs[:, 5].eq(0).all() and torch.equal(obs[:, 6], torch.full((3,), 0.25))
    assert obs[:, :2].square().sum(1).sub(1).abs().min() > 1e-3  # noise is on what sensors show
    if costs:  # as it is observed
        assert torch.equal(step.signals["speed"], obs[:, 2].abs())
