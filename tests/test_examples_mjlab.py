"""The examples on mjlab, ``humanoid.py`` and ``manipulation.py``: their terms, and two iterations of training."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("mjlab")

from rlcore.envs import make_env
from rlcore.train.cli import main

EXAMPLES = Path(__file__).parent.parent / "examples"
TASKS = {"humanoid": "mjlab:humanoid:Example-Humanoid-Walk", "manipulation": "mjlab:manipulation:Example-Lift-Cube"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder, where the examples are found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(EXAMPLES)])
    return tmp_path


def env_of(command: Any = None, **entities: Any) -> Any:
    """In the place of an env: what the terms read."""
    scene = {name: SimpleNamespace(data=SimpleNamespace(**data)) for name, data in entities.items()}
    named = SimpleNamespace(get_command=lambda name: torch.tensor(command))

    class Scene(dict[str, Any]):
        env_origins = torch.tensor([[0.0, 0.0, 1.0]])

    return SimpleNamespace(scene=Scene(scene), command_manager=named)


@pytest.mark.parametrize("name", TASKS)
def test_it_trains_and_logs_each_term(name: str, folder: Path) -> None:
    words = ["train", "--task", TASKS[name], "--num-envs", "4", "--num-iterations", "2", "--eval-interval", "0"]
    words += ["--eval-envs", "2", "--agent.num-steps", "8", "--agent.num-minibatches", "2", "--log-interval", "1"]
    assert main([*words, "--env.episode_length_s", "0.4", "--device", "cpu"]) == 0
    (run,) = folder.glob("runs/*/ppo/*")
    play = next(line for line in (sys.modules[name].__doc__ or "").splitlines() if "rlcore play" in line)
    assert [*folder.glob(play.split("--run ")[1].split()[0])] == [run]  # what the file says to look at
    assert (run / "export" / "policy.onnx").is_file()
    module = sys.modules[name]
    terms = (module.humanoid if name == "humanoid" else module.lift_cube)().rewards
    logged = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {f"env/Episode_Reward/{term}" for term in terms} <= {column.removesuffix("/mean") for column in logged}


@pytest.mark.parametrize("name", TASKS)
def test_terms_have_a_value_for_each_env(name: str) -> None:
    env: Any = make_env(TASKS[name], 3, seed=1)
    env.reset()
    for _ in range(3):
        step = env.step(torch.zeros(3, *env.action_space.shape))
        assert bool(step.reward.isfinite().all())
    manager = env.core.reward_manager
    for term, cfg in zip(manager.active_terms, manager._term_cfgs, strict=True):
        value = cfg.func(env.core, **cfg.params)
        assert value.shape == (3,) and value.dtype == torch.float32 and bool(value.isfinite().all()), term
    env.close()


def test_terms_of_the_humanoid_are_what_they_say() -> None:
    humanoid: Any = __import__("humanoid")
    robot = {
        "root_link_lin_vel_b": torch.tensor([[0.5, 0.1, 0.2]]),
        "root_link_ang_vel_b": torch.tensor([[0.0, 0.0, 0.3]]),
        "projected_gravity_b": torch.tensor([[0.6, 0.0, -0.8]]),
        "joint_pos": torch.tensor([[0.2, 1.0]]),
        "default_joint_pos": torch.tensor([[0.0, 1.5]]),
        "joint_vel": torch.tensor([[2.0, -1.0]]),
        "qfrc_actuator": torch.tensor([[-10.0, 5.0]]),
        "site_lin_vel_w": torch.tensor([[[0.3, 0.4, 9.0], [3.0, 4.0, 0.0]]]),
    }

    def feet(down: list[float], up: list[float]) -> dict[str, Any]:
        return {"current_contact_time": torch.tensor([down]), "current_air_time": torch.tensor([up])}

    env = env_of([[1.0, 0.1, 0.0]], robot=robot, feet_ground_contact=feet([0.3, 0.0], [0.0, 0.2]))
    feet_of, joints = SimpleNamespace(site_ids=[0, 1]), SimpleNamespace(joint_ids=[0, 1])
    expected = {
        "track_velocity": (humanoid.track_velocity(env, std=0.5), math.exp(-0.25 / 0.25)),
        "track_turning": (humanoid.track_turning(env, std=0.5), math.exp(-0.09 / 0.25)),
        "tilt": (humanoid.tilt(env), 0.36),
        "bouncing": (humanoid.bouncing(env), 0.04),
        "stride": (humanoid.stride(env, longest=0.4), 0.2),
        "slip": (humanoid.slip(env, feet_of), 0.5),
        "posture": (humanoid.posture(env, joints), 0.7),
        "power": (humanoid.power(env), 25.0),
    }
    for name, (value, wanted) in expected.items():
        assert value.tolist() == pytest.approx([wanted], rel=1e-5), name
    for down, up, command in (
        ([0.3, 0.1], [0.0, 0.0], 1.0),
        ([0.0, 0.0], [0.1, 0.1], 1.0),
        ([0.3, 0.0], [0.0, 0.2], 0.0),
    ):
        env = env_of([[command, 0.0, 0.0]], robot=robot, feet_ground_contact=feet(down, up))
        assert humanoid.stride(env, longest=0.4).tolist() == [0.0]


def test_terms_of_the_arm_are_what_they_say() -> None:
    manipulation: Any = __import__("manipulation")
    gripper = SimpleNamespace(site_ids=[1], joint_ids=[0])
    robot = {
        "site_pos_w": torch.tensor([[[9.0, 9.0, 9.0], [0.0, 0.0, 1.4]]]),
        "joint_pos": torch.tensor([[0.0255, 0.3, 0.2]]),
        "joint_vel": torch.tensor([[0.5, -3.0, 2.0]]),
    }
    places = ({"root_link_pos_w": torch.tensor([[0.0, 0.0, z]])} for z in (1.3, 1.055, 1.02))
    for cube, off in zip(places, (1.0, 0.4, 0.0), strict=True):
        env = env_of([[0.0, 0.0, 1.6]], robot=robot, cube=cube)
        z = float(cube["root_link_pos_w"][0, 2])
        assert manipulation.lifted(env).tolist() == pytest.approx([off], abs=1e-5)
        reach = manipulation.reach(env, std=0.1, asset_cfg=gripper)
        assert reach.tolist() == pytest.approx([1 - math.tanh((1.4 - z) / 0.1)], rel=1e-4)
        held = manipulation.hold(env, std=0.1, asset_cfg=gripper)
        assert held.tolist() == pytest.approx([0.012 / 0.0195 * reach.item()], rel=1e-4)
        near = manipulation.at_goal(env, std=0.3)
        assert near.tolist() == pytest.approx([off * (1 - math.tanh((1.6 - z) / 0.3))], rel=1e-4, abs=1e-5)
        assert manipulation.too_fast(env, limit=1.0).tolist() == pytest.approx([5.0])
