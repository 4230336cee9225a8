"""Checkpoints: safe to read, never half written, and exact."""

from __future__ import annotations

import os
import pickle
import random
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import leaves

from rlcore import PPO, SAC, NetworkConfig, PPOConfig, spec_of
from rlcore.checkpoint import OF_A_RUN, CheckpointError, load_checkpoint, save_checkpoint
from rlcore.config import to_dict
from rlcore.envs import make_env
from rlcore.learn import learn, resume, snapshot

SMALL = NetworkConfig(hidden_dims=(16,))
CONFIG = PPOConfig(num_steps=8, num_epochs=2, actor=SMALL, critic=SMALL, normalize_value=True)


def agent_on(task: str, seed: int | None = 3, num_iterations: int = 20) -> PPO:
    return PPO(make_env(task, 16, seed=seed), CONFIG, seed=seed, num_iterations=num_iterations)


def save(path: Path, agent: PPO, progress: Any) -> None:
    content = snapshot(agent.env, agent, progress)
    save_checkpoint(path, {"config": to_dict(CONFIG), "spec": asdict(spec_of(agent.env)), **content})


@pytest.mark.parametrize("task", ["CartPole", "Pendulum", "Reach-UR5e-JointPos"])
def test_twenty_iterations_equal_ten_and_resume_and_ten_bitwise(tmp_path: Path, task: str) -> None:
    whole = agent_on(task)
    straight = whole.learn(20)
    first = agent_on(task)
    save(tmp_path / "10.pt", first, first.learn(10))

    second = agent_on(task, seed=None)
    torch.manual_seed(999)  # the checkpoint's generators count, not what happens to be set
    progress, exact = resume(second.env, second, load_checkpoint(tmp_path / "10.pt"))
    assert exact
    halves = learn(second.env, second, 20, progress=progress)

    assert (halves.iteration, halves.env_steps) == (straight.iteration, straight.env_steps) == (20, 20 * 8 * 16)
    one, two = leaves(whole.state_dict()), leaves(second.state_dict())
    assert len(one) == len(two) > 20
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    assert torch.equal(straight.episodes.returns, halves.episodes.returns)
    assert torch.equal(straight.episodes.lengths, halves.episodes.lengths)


def test_env_without_state_starts_its_episodes_anew(tmp_path: Path) -> None:
    agent = agent_on("gym:CartPole-v1")
    save(tmp_path / "c.pt", agent, agent.learn(2))
    other = agent_on("gym:CartPole-v1")
    progress, exact = resume(other.env, other, load_checkpoint(tmp_path / "c.pt"))
    assert not exact
    assert progress.iteration == 2
    assert progress.episodes.lengths.sum() == 0
    learn(other.env, other, 3, progress=progress)


@pytest.mark.parametrize("other", ["task", "settings", "algorithm"])
def test_what_does_not_fit_the_agent_is_told_in_one_line(other: str, tmp_path: Path) -> None:
    agent = agent_on("Pendulum")
    save(tmp_path / "c.pt", agent, agent.learn(1))
    env = make_env("CartPole" if other == "task" else "Pendulum", 16, seed=3)
    small = NetworkConfig(hidden_dims=(8,))
    settings = {"task": CONFIG, "settings": replace(CONFIG, actor=small)}
    new: Any = SAC(env, seed=3) if other == "algorithm" else PPO(env, settings[other], seed=3, num_iterations=20)
    with pytest.raises(
        ValueError, match=r"^the checkpoint does not fit the agent .*; build the agent with the algo"
    ) as found:
        resume(env, new, load_checkpoint(tmp_path / "c.pt"))
    assert "\n" not in str(found.value)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    agent = agent_on("CartPole")
    save(tmp_path / "good.pt", agent, agent.learn(1))
    return tmp_path / "good.pt"


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_checkpoint_cut_short_is_refused(good: Path, share: float) -> None:
    data = good.read_bytes()
    good.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=r"good\.pt.*(damaged|cut short)"):
        load_checkpoint(good)


def test_a_checkpoint_with_damaged_bytes_is_refused_in_one_line_or_read(good: Path) -> None:
    draw, data = random.Random(0), good.read_bytes()
    refused = 0
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(4):  # in the part that says what the tensors are
            damaged[draw.randrange(6000)] = draw.randrange(256)
        good.write_bytes(damaged)
        try:
            load_checkpoint(good)
        except CheckpointError as error:
            refused += 1
            assert "good.pt" in str(error) and "\n" not in str(error)
    assert refused > 50


@pytest.fixture
def with_replay(good: Path) -> Path:
    content = torch.load(good, weights_only=True)
    content["agent"]["replay"] = {"obs_policy": torch.arange(50_000.0)}
    torch.save(content, good)
    return good


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="tells by Linux what is mapped")
def test_a_replay_memory_stays_in_the_file_and_all_else_is_moved(with_replay: Path, device: torch.device) -> None:
    def is_mapped() -> bool:
        return str(with_replay) in Path("/proc/self/maps").read_text()

    content = load_checkpoint(with_replay, device=device)
    assert is_mapped()
    ring = content["agent"].pop("replay")["obs_policy"]
    assert ring.device.type == "cpu"
    assert torch.equal(ring, torch.arange(50_000.0))
    assert {value.device.type for value in content["agent"]["policy"].values()} == {device.type}
    del ring
    assert not is_mapped()


def test_a_replay_memory_with_damaged_bytes_is_refused(with_replay: Path) -> None:
    data = bytearray(with_replay.read_bytes())
    data[data.index(torch.arange(20_000.0, 20_010.0).numpy().tobytes())] ^= 1
    with_replay.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"good\.pt' is damaged or cut short \(wrong checksum of"):
        load_checkpoint(with_replay)


def test_other_versions_and_other_files_are_refused(good: Path, tmp_path: Path) -> None:
    content = torch.load(good, weights_only=True)
    torch.save({**content, "schema": 99}, good)
    with pytest.raises(CheckpointError, match="schema 99"):
        load_checkpoint(good)
    torch.save({"weights": torch.zeros(3)}, good)
    with pytest.raises(CheckpointError, match="not an rlcore checkpoint"):
        load_checkpoint(good)
    torch.save({"schema": 1, "agent": {}}, good)
    with pytest.raises(CheckpointError, match="lacks progress, env, recording, rng; use one that a run wrote"):
        load_checkpoint(good)
    torch.save({key: value for key, value in content.items() if key != "spec"}, good)
    load_checkpoint(good)  # as saved from Python
    with pytest.raises(CheckpointError, match=r"good\.pt' lacks spec;"):
        load_checkpoint(good, needed=OF_A_RUN)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"notes\.txt"):
        load_checkpoint(tmp_path / "notes.txt")
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / "none.pt")


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_a_pickle_with_a_payload_is_refused_and_not_run(tmp_path: Path, kind: str) -> None:
    path, target = tmp_path / "evil.pt", tmp_path / "was-run"
    if kind == "torch":
        torch.save({"schema": 1, "agent": Payload(target)}, path)
    else:
        path.write_bytes(pickle.dumps({"schema": 1, "agent": Payload(target)}))
    with pytest.raises(CheckpointError, match=r"evil\.pt.*nothing of it was run"):
        load_checkpoint(path)
    assert not target.exists()


def test_a_failed_write_leaves_the_previous_checkpoint(good: Path) -> None:
    before = good.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(good, {"agent": lambda: None})
    assert good.read_bytes() == before
    assert [p.name for p in good.parent.iterdir()] == ["good.pt"]
    assert zipfile.is_zipfile(good)
