"""Isaac Lab 3 for real, on Newton, where it is installed: ``make test-isaaclab``."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

LIVE = Path(__file__).parent / "isaaclab3_live.py"
ROOT = Path(__file__).parent.parent

if importlib.util.find_spec("isaaclab_newton") is None:
    pytest.skip("Isaac Lab 3 is not installed", allow_module_level=True)

RELEASE = version("isaaclab")


def run(assets: Path, *words: str, timeout: int = 900) -> subprocess.CompletedProcess[str]:
    """In a process of its own: there is one simulation in each."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "ISAACSIM_ASSET_ROOT": str(assets), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=timeout, cwd=assets)


def checked(assets: Path, check: str, *words: str) -> Any:
    done = run(assets, str(LIVE), check, *words)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("task", "case"),
    [
        ("Isaac-Cartpole", "plain"),
        ("Isaac-Cartpole-Direct", "plain"),
        ("Isaac-Ant", "plain"),
        ("Isaac-Ant", "sensors"),
        ("Isaac-Ant-Direct", "plain"),
        ("Isaac-Humanoid", "plain"),
        ("Isaac-Humanoid-Direct", "plain"),
    ],
)
def test_observations_are_those_of_an_env_that_nobody_looked_at(assets: Path, task: str, case: str) -> None:
    """Bit by bit, with sensors, noise, delay and history among them; and the last ones are those before the reset."""
    twins = [run(assets, str(LIVE), "record", task, way, case, f"{task}-{case}-{way}.pt") for way in ("off", "hook")]
    for done in twins:
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    result = checked(assets, "compare", *(f"{task}-{case}-{way}.pt" for way in ("off", "hook")))
    assert result["resets"] >= 16 and result["different"] == [] and result["finals"] >= 16


def test_tasks_tell_of_joints_actions_and_units(assets: Path) -> None:
    facts = checked(assets, "told", "Isaac-Ant")
    assert facts["control_dt"] == pytest.approx(facts["physics_dt"] * facts["decimation"])
    names = [joint["name"] for joint in facts["joints"]]
    assert len(set(names)) == 8 and facts["quaternions"] == "xyzw"
    (action,) = facts["action_terms"]
    assert (action["kind"], sorted(action["joints"])) == ("effort", sorted(names))
    terms = {term["name"]: term for term in facts["observation_terms"]["policy"]}
    assert (terms["base_lin_vel"]["quantity"], terms["base_lin_vel"]["unit"]) == ("linear_velocity", "m/s")
    assert terms["joint_vel_rel"]["joints"] == names
    direct = checked(assets, "told", "Isaac-Cartpole-Direct")
    assert [joint["name"] for joint in direct["joints"]] == ["slider_to_cart", "cart_to_pole"]


@pytest.mark.parametrize("task", ["Isaac-Cartpole", "Isaac-Ant"])
def test_a_controller_from_the_file_alone_has_the_episode_of_the_adapter(
    task: str, assets: Path, tmp_path: Path
) -> None:
    result = checked(assets, "controlled", task, str(tmp_path))
    assert result["kinds"] == ["effort"] and result["moved"] > 0.01  # the comparison is about something
    assert result["first"] < 1e-5 and result["joints"] < 1e-3
    facts = result["facts"]
    units = {joint["name"]: joint["unit"] for joint in facts["joints"]}
    terms = {term["name"]: term for term in facts["observation_terms"]}
    if task == "Isaac-Cartpole":
        assert units == {"slider_to_cart": "m", "cart_to_pole": "rad"} and "unit" not in terms["joint_pos_rel"]
    else:
        assert set(units.values()) == {"rad"} and len(terms["joint_pos_norm"]["range"]) == 8
        assert len(terms["feet_body_forces"]["bodies"]) == 4 and terms["base_heading_proj"]["params"]["target_pos"]


def test_configurations_of_all_tasks_are_read(assets: Path) -> None:
    result = checked(assets, "configurations")
    assert result["tasks"] >= 100 and not result["failed"]
    # The rest has none that could be converted, and says so.
    assert len(result["refused"]) < result["tasks"] / 2


def test_presets_are_chosen_in_isaac_labs_words(assets: Path) -> None:
    words = "config --task Isaac-Reach-Franka presets=hold physics=newton_mjwarp"
    done = run(assets, "-m", "rlcore", *words.split())
    assert done.returncode == 0, done.stderr
    assert "num_iterations: 3000" in done.stdout and "presets: hold" in done.stdout and "physics: newton" in done.stdout
    done = run(assets, "-m", "rlcore", "config", "--task", "Isaac-Reach-Franka", "presets=newton_mjwrap")
    assert done.returncode == 2 and "did you mean newton_mjwarp?" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("isaacsim") is not None, reason="Isaac Sim is installed")
def test_physics_that_needs_isaac_sim_names_one_that_does_not(assets: Path) -> None:
    words = ["train", "--task", "Isaac-Cartpole", "--num-envs", "4", "physics=isaacsim_physx"]
    done = run(assets, "-m", "rlcore", *words)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "Isaac-Cartpole needs Isaac Sim, which is not installed" in done.stderr.splitlines()[-1]
    assert "presets=newton_mjwarp" in done.stderr.splitlines()[-1]


def test_a_run_is_trained_resumed_evaluated_and_exported(assets: Path) -> None:
    words = "train --task Isaac-Cartpole --num-envs 16 --num-iterations 2 --name live --device cpu"
    done = run(assets, "-m", "rlcore", *words.split(), "presets=newton_mjwarp", "--env.episode_length_s", "0.5")
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    (folder,) = (assets / "runs").glob("*/*/*live*")
    assert (folder / "export" / "policy.onnx").is_file()
    done = run(assets, "-m", "rlcore", "train", "--resume", str(folder), "--num-iterations", "3")
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    words = f"eval --onnx {folder}/export/policy.onnx --num-envs 8 --device cpu"
    done = run(assets, "-m", "rlcore", *words.split())
    assert done.returncode == 0 and "return" in done.stdout, (done.stdout + done.stderr)[-3000:]
