"""What a policy met in training: recordings with broken observations, ranges, and inputs that stood still."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from rlcore import PPO, NetworkConfig, PPOConfig, Step, spec_of
from rlcore.checkpoint import load_checkpoint, save_checkpoint
from rlcore.export import ExportError, OnnxPolicy, export_onnx, read_metadata, verify
from rlcore.export.observations import finite_part, record
from rlcore.recurrent import RNNConfig
from rlcore.train.cli import main
from rlcore.types import Obs

FEED_FORWARD = NetworkConfig(hidden_dims=(8,))
RECURRENT = NetworkConfig(hidden_dims=(8,), rnn=RNNConfig(type="lstm", hidden_size=8))


class Arm:
    """Three inputs, of which the last stands still at 2, or the first is NaN every so often."""

    def __init__(self, num_envs: int, broken_every: int = 0) -> None:
        self.num_envs, self.device, self.max_episode_length = num_envs, torch.device("cpu"), 20
        self.observation_spaces = {"policy": spaces.Box(-9, 9, (3,))}
        self.action_space = spaces.Box(-1, 1, (1,))
        self.deployment = {"observation_terms": {"policy": [{"name": "angle", "size": 2}, {"name": "load", "size": 1}]}}
        self.broken_every, self.steps = broken_every, 0

    def reset(self, seed: int | None = None) -> Obs:
        x = torch.randn(self.num_envs, 3)
        x[:, 2] = 2.0
        return {"policy": x}

    def step(self, action: Tensor) -> Step:
        self.steps += 1
        obs, ends = self.reset(), torch.zeros(self.num_envs, dtype=torch.bool)
        if self.broken_every and self.steps % self.broken_every == 0:
            obs["policy"][0, 0] = math.nan
        ends[:] = self.steps % self.max_episode_length == 0
        return Step(obs, torch.zeros(self.num_envs), torch.zeros_like(ends), ends, obs, {})

    def close(self) -> None:
        pass


def trained(env: Arm, network: NetworkConfig = FEED_FORWARD, steps: int = 40) -> PPO:
    agent = PPO(env, PPOConfig(num_steps=steps, num_minibatches=1, actor=network, critic=network), seed=0)
    agent.learn(1)
    return agent


@pytest.mark.parametrize("network", [FEED_FORWARD, RECURRENT])
def test_observations_that_are_not_finite_are_left_out_and_counted(network: NetworkConfig, tmp_path: Path) -> None:
    env = Arm(4)
    agent = trained(env, network)
    recording = agent.recording()
    for t in (3, 4, 17):
        recording["policy"][t, 0, 1] = math.nan
    recording["policy"][9, 2, 0] = math.inf
    report = export_onnx(agent.policy, spec_of(env), tmp_path / "policy.onnx", recording=recording)
    assert (report.parity.recorded_samples, report.parity.left_out) == (156, 4)
    assert "156 recorded, 4 more were not finite and left out" in str(report.parity)
    assert read_metadata(tmp_path / "policy.onnx")["parity_left_out"] == 4
    assert verify(tmp_path / "policy.onnx", agent.policy, recording).passed


def test_a_recording_falls_into_stretches_without_what_is_broken() -> None:
    x = torch.arange(12.0).view(6, 2, 1)  # env 0 has even numbers
    x[2, 0] = math.nan
    x[5, 1] = math.inf
    done = torch.zeros(6, 2, dtype=torch.bool)
    done[3, 1] = True
    obs, ends, left_out = finite_part({"policy": x, "done": done}, {"policy": (1,)})
    assert obs["policy"].flatten().tolist() == [0, 2, 6, 8, 10, 1, 3, 5, 7, 9]
    assert ends.flatten().nonzero()[0].tolist() == [1, 4, 8, 9]  # before the gap, at the end of each env, an episode's
    assert left_out == 2
    whole = {"policy": torch.ones(6, 2, 1), "done": done}
    obs, ends, left_out = finite_part(whole, {"policy": (1,)})
    assert (tuple(obs["policy"].shape), left_out) == ((6, 2, 1), 0)
    assert np.array_equal(ends, done.numpy())


def test_a_recurrent_policy_begins_anew_after_what_is_left_out(tmp_path: Path) -> None:
    """Stretches that were joined would give other states than the ones that policy and file have had."""
    agent = trained(Arm(4), RECURRENT)
    recording = agent.recording()
    recording["policy"][10, :, 0] = math.nan
    _, ends, left_out = finite_part(recording, {"policy": (3,)})
    assert left_out == 4
    assert ends.flatten()[[9, 38]].tolist() == [True, True]


def test_too_few_finite_observations_are_recorded_anew_in_an_env(tmp_path: Path) -> None:
    env = Arm(4)
    agent, path = trained(env), tmp_path / "policy.onnx"
    recording = agent.recording()
    recording["policy"][10:, :, 2] = math.nan  # 40 of 160 are left
    with pytest.raises(ExportError, match="only 40 of the 160 recorded observations are finite, which is too few"):
        export_onnx(agent.policy, spec_of(env), path, recording=recording)
    report = export_onnx(agent.policy, spec_of(env), path, recording=recording, env=Arm(4, broken_every=2))
    assert report.parity.recorded_samples + report.parity.left_out == 256 * 4
    assert report.parity.left_out in (127, 128)
    assert report.notes[0] == "only 40 of 160 recorded observations were finite: recorded anew"
    with pytest.raises(ExportError, match="recorded observations are finite"):  # the env is to blame
        export_onnx(agent.policy, spec_of(env), path, recording=recording, env=Arm(1, broken_every=1))


def test_what_is_recorded_is_what_the_policy_met() -> None:
    env = Arm(12)
    agent = trained(env)
    torch.manual_seed(5)
    recording = record(env, agent.policy, steps=30)
    assert recording["policy"].shape == (30, 8, 3)
    assert recording["done"].any(1).nonzero().flatten().tolist() == [19]  # training took 40 steps, two episodes
    torch.manual_seed(5)
    assert torch.equal(recording["policy"][0], env.reset()["policy"][:8])


@pytest.mark.parametrize("network", [FEED_FORWARD, RECURRENT])
def test_an_env_that_is_recorded_gets_actions_that_are_numbers(network: NetworkConfig) -> None:
    class Checking(Arm):
        wrong = 0

        def step(self, action: Tensor) -> Step:
            self.wrong += int((~action.isfinite()).sum())
            return super().step(action)

    policy = trained(Arm(12), network).policy
    env = Checking(12, broken_every=5)
    recording = record(env, policy, steps=30)
    assert int(recording["policy"].isnan().any(-1).sum()) == 5 and env.wrong == 0


def test_a_run_with_a_broken_recording_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = "--num-envs 4 --num-iterations 1 --eval-envs 2 --agent.num-steps 32 --no-export --agent.num-minibatches 1"
    assert main(["train", "--task", "CartPole", *small.split()]) == 0
    (run,) = tmp_path.glob("runs/*/*/*")
    path = run / "checkpoints" / "best.pt"
    content = load_checkpoint(path)
    for name, broken, said in (("few", 5, "123 recorded, 5 more"), ("most", 100, "recorded anew")):
        content["recording"]["policy"].view(-1, 4)[:broken, 0] = math.nan
        save_checkpoint(run / "checkpoints" / f"{name}.pt", content)
        capsys.readouterr()
        assert main(["export", "--run", str(run / "checkpoints" / f"{name}.pt"), "--output", f"{name}.onnx"]) == 0
        assert said in capsys.readouterr().out


def test_inputs_that_stood_still_are_named_and_ranges_are_in_the_file(tmp_path: Path) -> None:
    env = Arm(64)
    agent = trained(env)
    path = tmp_path / "policy.onnx"
    report = export_onnx(agent.policy, spec_of(env), path, recording=agent.recording())
    (note,) = report.notes
    assert note.startswith("inputs that hardly moved in training: policy/load; ")
    moved = agent.policy.normalizer(torch.tensor([0.0, 0.0, 2.05]))[2]
    assert f"a move of 0.05 there is {float(moved):.2g} standard deviations" in note
    facts = OnnxPolicy(path).metadata
    normalizer = agent.policy.normalizer
    assert facts["observation_mean"] == pytest.approx(normalizer.mean.tolist())
    assert facts["observation_std"] == pytest.approx(normalizer.var.sqrt().tolist())
    assert facts["observation_epsilon"] == normalizer.epsilon == 1e-2
    recorded = agent.recording()["policy"].flatten(0, 1)
    assert facts["observation_min"] == pytest.approx(recorded.amin(0).tolist())
    assert facts["observation_max"] == pytest.approx(recorded.amax(0).tolist())
    assert facts["observation_range_samples"] == len(recorded) == 40 * 8
    assert facts["observation_max"][2] == facts["observation_min"][2] == 2.0


def test_nothing_is_said_of_inputs_that_moved_or_of_a_policy_without_normalizer(tmp_path: Path) -> None:
    env, path = Arm(64), tmp_path / "policy.onnx"
    config = PPOConfig(num_steps=40, num_minibatches=1, actor=FEED_FORWARD, critic=FEED_FORWARD, normalize_obs=False)
    agent = PPO(env, config, seed=0)
    agent.learn(1)
    report = export_onnx(agent.policy, spec_of(env), path, recording=agent.recording())
    assert report.notes == ()
    assert "observation_max" in report.metadata
    assert "observation_mean" not in report.metadata
    agent = trained(env)
    agent.policy.normalizer.var.fill_(0.5)
    report = export_onnx(agent.policy, spec_of(env), path, recording=None)
    assert report.notes == ()
    assert "observation_max" not in report.metadata
    assert "observation_mean" in report.metadata
