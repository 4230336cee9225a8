"""Settings that change nothing: they are named, and change nothing indeed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rlcore import spec_of
from rlcore.config import from_dict, to_dict
from rlcore.envs import make_env
from rlcore.train.algorithms import find
from rlcore.train.commands.train import settings_in
from rlcore.train.defaults import default_config
from rlcore.train.groups import leaves
from rlcore.train.idle import RULES, idle_settings
from rlcore.train.importers.convert import convert_file

PPO = {
    "num_steps": 8,
    "num_minibatches": 2,
    "num_epochs": 1,
    "actor": {"hidden_dims": [8]},
    "critic": {"hidden_dims": [8]},
}
OFF_POLICY = {
    "batch_size": 8, "learning_starts": 8, "buffer_size": 400, "update_ratio": 0.25,
    "actor": {"hidden_dims": [8]}, "critic": {"hidden_dims": [8]},
}  # fmt: skip
COSTS = {"safety.costs": {"cost": {"limit": 1.0}}}

# Algorithm, task, settings that make others idle, and those.
CASES: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("ppo", "Pendulum", {}, {"actor.rnn.hidden_size": 8, "critic.rnn.position": "after"}),
    ("ppo", "Pendulum", {}, {"actor.expansion": 2, "critic.cnn.pooling": "max"}),
    ("ppo", "Pendulum", {"share_trunk": True}, {"critic.hidden_dims": [4], "critic.activation": "relu"}),
    ("ppo", "Pendulum", {"normalize_obs": False}, {"clip_obs": 0.1, "obs_epsilon": 1.0}),
    ("ppo", "CartPole", {}, {"init_std": 2.0, "std_type": "log", "max_std": 10.0}),
    ("ppo", "CartPole", {}, {"clip_actions": 0.1, "action_scale": "none"}),
    ("ppo", "CartPole", {}, {"entropy_reduction": "mean", "bounds_loss_coef": 1.0}),
    ("ppo", "Pendulum", {"lr_schedule": "linear"}, {"desired_kl": 1e-4, "kl_factor": 3.0, "lr_max": 1e-4}),
    ("ppo", "Pendulum", {}, {"bounds_loss_limit": 0.1}),
    ("ppo", "Pendulum", {}, {"sequence_length": 4, "burn_in": 2}),
    ("ppo", "Budget", {"safety.costs": {}}, {"safety.method": "p3o", "safety.penalty": 1.0, "safety.integral": 0.5}),
    ("ppo", "Budget", COSTS | {"safety.method": "lagrange"}, {"safety.proportional": 9.0, "safety.penalty": 1.0}),
    ("ppo", "Budget", COSTS, {"safety.multiplier_rate": 0.5, "safety.termination_max": 0.5}),
    ("ppo", "Budget", {}, {"safety.gate.horizon": 3.0, "safety.gate.network.hidden_dims": [4]}),
    ("ppo", "Pendulum", {"schedules": {"clip_range": {"start": 0.1, "end": 0.2}}}, {"clip_range": 0.3}),
    ("sac", "Pendulum", {"num_updates": 2}, {"update_ratio": 3.0}),
    ("sac", "Pendulum", {}, {"lr_end": 1e-4, "num_atoms": 51, "value_range": [-1.0, 1.0], "random_shift": 2}),
    ("sac", "Pendulum", {"timeout_bootstrap": "value"}, {"final_capacity": 100}),
    ("sac", "Pendulum", {"learn_temperature": False}, {"temperature_learning_rate": 1.0, "target_entropy": -3.0}),
    ("sac", "Budget", {"safety.costs": {}}, {"safety.interval": 3, "safety.multiplier_max": 2.0}),
    ("ddpg", "Pendulum", {}, {"q_reduce": "mean", "noise_decay": 0.5, "noise_spread": "episodes"}),
    ("ddpg", "Pendulum", {"noise_range": [0.1, 0.2]}, {"noise_std": 0.5}),
    ("ddpg", "Pendulum", {"target_noise": 0.0}, {"target_noise_clip": 0.1}),
]


def with_settings(config: Any, settings: dict[str, Any]) -> Any:
    data = to_dict(config)
    for key, value in settings.items():
        *groups, name = key.split(".")
        place = data
        for group in groups:
            place = place[group]
        place[name] = value
    return from_dict(type(config), data)


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join([case[0], *case[3]]))
def test_what_is_called_idle_is_named_and_changes_no_weight(
    case: tuple[str, str, dict[str, Any], dict[str, Any]],
) -> None:
    algo, task, off, idle = case
    usual, _ = default_config(task, algo=algo)
    small = with_settings(usual.agent, dict(leaves(PPO if algo == "ppo" else OFF_POLICY)))
    weights: list[dict[str, torch.Tensor]] = []
    for settings in (off, off | idle):
        env = make_env(task, 8, seed=1, **usual.env)
        agent = find(algo).agent(env, with_settings(small, settings), seed=1, num_iterations=4)
        agent.learn(4)
        weights.append(agent.policy.state_dict())
        config = replace(usual, agent=with_settings(usual.agent, settings))
        told = idle_settings(config, spec_of(env))
        for name in idle:
            assert any(f"agent.{name} " in line for line in told) == (settings is not off)
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_rules_are_of_settings_that_there_are() -> None:
    for rule in RULES:
        classes = rule.of if isinstance(rule.of, tuple) else (rule.of,)
        known = {key for cls in classes for key, _ in leaves(to_dict(cls()))}
        for name in rule.names.split():
            assert any(key == name or key.startswith(f"{name}.") for key in known), name


@pytest.mark.parametrize("task", ["CartPole", "Pendulum", "Budget", "Memory", "Reach-UR5e-JointVel-Box"])
@pytest.mark.parametrize("algo", ["ppo", "sac"])
def test_nothing_is_said_of_what_a_task_is_shipped_with(task: str, algo: str) -> None:
    config, _ = default_config(task, algo=algo)
    assert idle_settings(config, spec_of(make_env(task, 2))) == []


def told_of(*words: object) -> list[str]:
    read = settings_in([str(word) for word in words])
    assert read is not None
    usual, config, _ = read
    return idle_settings(config, spec_of(make_env(config.task, 2)), usual)


def test_a_file_is_told_of_like_flags_and_a_converted_one_of_nothing_that_it_has_to_name(tmp_path: Path) -> None:
    own, converted = tmp_path / "own.yaml", tmp_path / "converted.yaml"
    own.write_text("task: Pendulum\nagent: {actor: {rnn: {hidden_size: 8}}}\n")
    (line,) = told_of("--config", own)
    assert line.startswith("agent.actor.rnn.hidden_size 8 has no effect")
    assert len(told_of("--config", own, "--agent.bounds-loss-limit", "0.5")) == 2
    # rl_games shares the trunk, so that the critic's layers are said twice; rsl_rl knows no limit of observations.
    file = Path(__file__).parent / "data" / "rl_games_tutorial.yaml"
    converted.write_text(yaml.safe_dump(convert_file(file, num_envs=8).config))
    assert told_of("--task", "Pendulum", "--config", converted) == []
    assert told_of("--task", "Pendulum", "--config", converted, "--agent.critic.hidden-dims", "[7]") != []
    config, _ = default_config("Pendulum")
    off = replace(config, agent=replace(config.agent, normalize_obs=False, clip_obs=None))
    assert idle_settings(off, spec_of(make_env("Pendulum", 2))) == []


def test_convolutions_of_who_reads_no_image_are_named() -> None:
    usual, _ = default_config("Pendulum")
    spec = replace(spec_of(make_env("Pendulum", 2)), image_shapes={"camera": (1, 24, 24)})
    cnn = {"actor.cnn.channels": [8], "critic.cnn.channels": [8]}

    def told(**groups: Any) -> list[str]:
        return idle_settings(replace(usual, agent=with_settings(usual.agent, cnn | groups)), spec)

    why = "reads no image; agent.critic_obs names what it reads"
    assert told()[1] == f"agent.critic.cnn.channels [8] has no effect: the critic {why}"
    assert [line.split()[0] for line in told()] == ["agent.actor.cnn.channels", "agent.critic.cnn.channels"]
    assert [line.split()[0] for line in told(critic_obs=["policy", "camera"])] == ["agent.actor.cnn.channels"]
    assert told(actor_obs=["policy", "camera"]) == []
