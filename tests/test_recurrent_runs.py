"""Recurrent policies from training to the exported file: they learn, resume, and carry their state everywhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from rlcore import PPO, EnvSpec, NetworkConfig, PPOConfig, Step, spec_of
from rlcore.agent import Policy
from rlcore.checkpoint import load_checkpoint
from rlcore.envs import make_env
from rlcore.export import ExportError, OnnxPolicy, export_onnx, verify
from rlcore.recurrent import RNNConfig
from rlcore.train.cli import main
from rlcore.train.evaluate import Controller, evaluate
from rlcore.train.play import frames
from rlcore.types import Obs, State

Kind = Literal["none", "lstm", "gru"]
MEMORY = {"min_episode_length": 6, "max_episode_length": 9, "cue_steps": 1}


def memory_agent(kind: Kind, **changes: Any) -> PPO:
    net = NetworkConfig(hidden_dims=(32,), activation="tanh", rnn=RNNConfig(type=kind, hidden_size=32))
    config = PPOConfig(
        num_steps=12,
        num_epochs=8,
        num_minibatches=2,
        learning_rate=5e-3,
        lr_schedule="constant",
        clip_value_loss=False,
        normalize_obs=False,
        entropy_coef=0.01,
        actor=net,
        critic=net,
    )
    return PPO(make_env("Memory", 64, seed=1, **MEMORY), replace(config, **changes), seed=1)


def success(policy: Policy | OnnxPolicy, envs: int = 400) -> float:
    found = evaluate(make_env("Memory", envs, **MEMORY), policy, seed=7).success
    assert found is not None
    return found


@pytest.fixture(scope="module")
def trained() -> dict[str, PPO]:
    """Agents that have learned Memory."""
    agents: dict[str, PPO] = {}
    for kind in ("lstm", "gru"):
        torch.manual_seed(0)
        agents[kind] = memory_agent(kind)  # type: ignore[arg-type]
        agents[kind].learn(30)
    return agents


# Learning


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_memory_is_learned(kind: str, trained: dict[str, PPO]) -> None:
    assert success(trained[kind].policy) > 0.95


def test_without_memory_the_same_training_stays_at_chance() -> None:
    agent = memory_agent("none")
    agent.learn(30)
    assert success(agent.policy, envs=2000) == pytest.approx(0.25, abs=0.04)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_the_training_loop_carries_the_state_from_rollout_to_rollout(kind: Kind, trained: dict[str, PPO]) -> None:
    """Rollouts of three steps, of which none holds both cue and question."""
    agent = memory_agent(kind, num_steps=3, num_epochs=1, learning_rate=1e-9)
    agent.policy.load_state_dict(trained[kind].policy.state_dict())
    rates: list[float] = []
    agent.learn(60, on_report=lambda report: rates.append(report.metrics.get("rollout/success", np.nan)))
    assert np.nanmean(rates) > 0.8  # it explores; a state that is dropped between rollouts gives 0.25


# Resume


def checkpoint_of(folder: Path, iteration: int) -> dict[str, Any]:
    (run,) = folder.glob("Memory/ppo/*")
    return load_checkpoint(run / "checkpoints" / f"{iteration:06d}.pt")


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in leaves(item, f"{path}/{key}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for i, item in enumerate(value) for k, v in leaves(item, f"{path}/{i}").items()}
    return {path: value}


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_recurrent_run_in_two_halves_equals_one_bit_by_bit(kind: str, tmp_path: Path) -> None:
    words = f"train --task Memory --num-envs 8 --eval-envs 4 --agent.num-steps 8 --agent.num-epochs 2 --no-export \
        --agent.actor.rnn.type {kind} --agent.critic.rnn.type {kind} --agent.sequence-length 4 \
        --agent.actor.rnn.hidden-size 8 --agent.critic.rnn.hidden-size 8 --agent.lr-schedule adaptive".split()
    assert main([*words, "--runs-dir", str(tmp_path / "whole"), "--num-iterations", "6"]) == 0
    assert main([*words, "--runs-dir", str(tmp_path / "halves"), "--num-iterations", "3"]) == 0
    between = checkpoint_of(tmp_path / "halves", 3)
    # 24 steps into episodes of 20: there is a state to lose, of the actor and of the critic.
    assert all((part != 0).all() for part in between["progress"]["state"])
    assert all((part != 0).all() for part in between["agent"]["critic_state"])
    (run,) = (tmp_path / "halves").glob("Memory/ppo/*")
    assert main(["train", "--resume", str(run), "--num-iterations", "6"]) == 0
    whole, halves = (checkpoint_of(tmp_path / name, 6) for name in ("whole", "halves"))
    for key in ("agent", "env", "rng", "recording", "progress"):
        one, two = leaves(whole[key]), leaves(halves[key])
        assert one.keys() == two.keys()
        for name in one.keys() - {"/seconds"}:
            same = torch.equal(one[name], two[name]) if isinstance(one[name], Tensor) else one[name] == two[name]
            assert same, f"{key}{name}"


# State in evaluation, play and the exported file


class Clock:
    """Pays 1 for naming the step of the episode. Env i's episodes last ``3 + i`` steps; nothing else is to be seen."""

    observation_spaces = {"policy": gymnasium.spaces.Box(-1, 1, (1,))}  # noqa: RUF012
    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
    device = torch.device("cpu")

    def __init__(self, num_envs: int = 4) -> None:
        self.num_envs, self.lengths = num_envs, 3 + torch.arange(num_envs)
        self.max_episode_length = 2 + num_envs
        self.rewards: list[Tensor] = []

    def reset(self, seed: int | None = None) -> Obs:
        self.age = torch.zeros(self.num_envs, dtype=torch.int64)
        return {"policy": torch.zeros(self.num_envs, 1)}

    def step(self, action: Tensor) -> Step:
        self.rewards.append((action[:, 0] == self.age).float())
        self.age = self.age + 1
        done = self.age >= self.lengths
        self.age = torch.where(done, 0, self.age)
        return Step({"policy": torch.zeros(self.num_envs, 1)}, self.rewards[-1], done, ~done & False, None, {})

    def render(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return np.zeros((2, 2, 3), np.uint8)

    def close(self) -> None:
        pass


class Counter(Policy):
    """Names the number of steps since its state was zero."""

    observation_sizes = {"policy": 1}  # noqa: RUF012

    def initial_state(self, num_envs: int) -> State:
        return (torch.zeros(1, num_envs, 1),)

    def forward(self, obs: Obs, state: State = ()) -> tuple[Tensor, State]:
        (count,) = state or self.initial_state(len(obs["policy"]))
        return count[0] + 0 * obs["policy"], (count + 1,)


class Leaking(Counter):
    """Keeps its count in itself, where nobody resets it."""

    count: Tensor | None = None

    def initial_state(self, num_envs: int) -> State:
        return ()

    def forward(self, obs: Obs, state: State = ()) -> tuple[Tensor, State]:
        if self.count is None or self.count.shape != obs["policy"].shape:
            self.count = torch.zeros_like(obs["policy"])
        action, self.count = self.count, self.count + 1
        return action + 0 * obs["policy"], ()


def exported_counter(folder: Path) -> OnnxPolicy:
    spec = EnvSpec(task="Clock", observation_sizes={"policy": 1}, discrete=False, action_size=1)
    return OnnxPolicy(export_onnx(Counter(), spec, folder / "counter.onnx", recording=None).path)


@pytest.fixture(params=["policy", "file"])
def counter(request: pytest.FixtureRequest, tmp_path: Path) -> Policy | OnnxPolicy:
    return Counter() if request.param == "policy" else exported_counter(tmp_path)


def test_evaluation_starts_every_round_without_a_state_and_keeps_it_within(counter: Policy | OnnxPolicy) -> None:
    result = evaluate(Clock(), counter, seed=0, rounds=3)
    assert result.episodes == 12
    assert torch.equal(result.returns, result.lengths.double())  # right at every step


def test_play_keeps_the_state_within_episodes_and_drops_it_between_them(counter: Policy | OnnxPolicy) -> None:
    env = Clock()
    list(frames(env, counter, 25, 0, 0.1))
    assert torch.stack(env.rewards).all()


def test_a_leaking_or_forgetful_policy_would_fail_these_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    leaked = evaluate(Clock(), Leaking(), seed=0, rounds=3)
    assert not torch.equal(leaked.returns, leaked.lengths.double())
    for broken in (lambda *_: None, lambda self, _: setattr(self, "_state", Counter().initial_state(4))):
        monkeypatch.setattr(Controller, "forget", broken)  # never, and after every step
        env = Clock()
        list(frames(env, Counter(), 25, 0, 0.1))
        assert not torch.stack(env.rewards).all()


# Export


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_the_exported_file_has_the_state_as_inputs_and_outputs(
    kind: str, trained: dict[str, PPO], tmp_path: Path
) -> None:
    agent = trained[kind]
    report = export_onnx(agent.policy, spec_of(agent.env), tmp_path / "policy.onnx", recording=agent.recording())
    model = onnx.load(str(report.path))
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 11)]
    names = ["h", "c"] if kind == "lstm" else ["h"]
    shape = [1, 1, 32]
    assert report.metadata["inputs"] == {"obs": [1, 6], **{f"{name}_in": shape for name in names}}
    assert report.metadata["outputs"] == {"actions": [1], **{f"{name}_out": shape for name in names}}
    assert report.parity.passed and report.parity.mismatches == 0
    assert report.parity.steps == report.metadata["parity_steps"] == 256
    assert report.parity.recorded_samples == 256 * 8
    assert success(OnnxPolicy(report.path)) == success(agent.policy) > 0.95


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("position", ["before", "after"])
def test_two_layers_and_continuous_actions_stay_together_for_hundreds_of_steps(
    kind: Kind, position: Literal["before", "after"], tmp_path: Path
) -> None:
    rnn = RNNConfig(type=kind, hidden_size=16, num_layers=2, position=position)
    net = NetworkConfig(hidden_dims=(16,), rnn=rnn)
    config = PPOConfig(num_steps=16, num_epochs=1, num_minibatches=2, actor=net, critic=net)
    agent = PPO(make_env("Pendulum-HiddenVelocity", 8, seed=0, max_episode_length=50), config, seed=0)
    agent.learn(16)
    recording = agent.recording()
    assert recording["done"].shape == (256, 8) and recording["done"].any(0).all()
    report = export_onnx(agent.policy, spec_of(agent.env), tmp_path / "policy.onnx", recording=recording)
    assert report.metadata["inputs"]["h_in"] == [2, 1, 16]
    assert report.parity.max_abs_error <= 1e-5

    # By hand, without verify: one env through 600 steps and 12 resets.
    runner, policy = OnnxPolicy(report.path), agent.policy
    env = make_env("Pendulum-HiddenVelocity", 1, seed=3, max_episode_length=50)
    obs, state = env.reset(), policy.initial_state(1)
    for _ in range(600):
        with torch.no_grad():
            action, state = policy(obs, state)
        np.testing.assert_allclose(runner(obs["policy"].numpy()), action.numpy(), rtol=0, atol=2e-5)  # within +-2
        step = env.step(action)
        obs, done = step.obs, step.terminated | step.truncated
        state = tuple(part * ~done[None, :, None] for part in state)
        runner.reset(done.numpy())


def test_a_policy_with_a_short_recording_is_followed_for_hundreds_of_steps_too(tmp_path: Path) -> None:
    agent = memory_agent("lstm")
    agent.learn(1)
    assert agent.recording()["done"].shape == (12, 8)
    report = export_onnx(agent.policy, spec_of(agent.env), tmp_path / "policy.onnx", recording=agent.recording())
    assert report.parity.steps >= 200
    net = NetworkConfig(hidden_dims=(8,))
    plain = PPO(make_env("Pendulum", 8, seed=0), PPOConfig(num_steps=8, actor=net, critic=net), seed=0)
    plain.learn(1)
    report = export_onnx(plain.policy, spec_of(plain.env), tmp_path / "plain.onnx", recording=plain.recording())
    assert "parity_steps" not in report.metadata  # consecutive steps mean nothing without a state


def test_parity_replays_the_recording_in_order_with_its_resets(tmp_path: Path, trained: dict[str, PPO]) -> None:
    """The runner sees what was recorded, step after step, and is reset exactly where an episode ended."""
    agent, seen, resets = trained["gru"], [], []
    path = export_onnx(agent.policy, spec_of(agent.env), tmp_path / "policy.onnx", recording=None).path

    class Spy(OnnxPolicy):
        def __call__(self, obs: Any) -> Any:
            seen.append(np.array(obs))
            return super().__call__(obs)

        def reset(self, mask: Any = None) -> None:
            resets.append(mask)
            super().reset(mask)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlcore.export.parity.OnnxPolicy", Spy)
        recording = agent.recording()
        assert verify(path, agent.policy, recording).passed
    assert resets[0] is None
    np.testing.assert_array_equal(np.stack(seen[:256]), recording["policy"].numpy())
    np.testing.assert_array_equal(np.stack(resets[1:257]), recording["done"].numpy())
    assert recording["done"].any(0).all()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_policy_that_leaks_is_not_exported(tmp_path: Path) -> None:
    spec = EnvSpec(task="Clock", observation_sizes={"policy": 1}, discrete=False, action_size=1)
    with pytest.raises(ExportError, match="largest difference"):
        export_onnx(Leaking(), spec, tmp_path / "policy.onnx", recording=None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("leak", ["all", "one"])
def test_a_runner_that_leaks_across_an_episode_end_is_found(
    leak: str, trained: dict[str, PPO], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = trained["lstm"]
    path = export_onnx(agent.policy, spec_of(agent.env), tmp_path / "policy.onnx", recording=None).path

    def reset(self: OnnxPolicy, mask: Any = None) -> None:
        if mask is None:
            self.state = []
        elif leak == "one" and self.state:  # of two state tensors, one is forgotten
            self.state[0] = np.where(np.asarray(mask)[None, :, None], np.float32(0), self.state[0])

    monkeypatch.setattr(OnnxPolicy, "reset", reset)
    assert not verify(path, agent.policy, agent.recording()).passed


def test_the_runner_answers_after_a_reset_as_a_new_one_does(trained: dict[str, PPO], tmp_path: Path) -> None:
    agent = trained["lstm"]
    path = export_onnx(agent.policy, spec_of(agent.env), tmp_path / "policy.onnx", recording=None).path
    used, new = OnnxPolicy(path), OnnxPolicy(path)
    rows = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32)
    for row in rows:
        used(row)
    carried = [part.copy() for part in used.state]
    assert [part.shape for part in carried] == [(1, 1, 32)] * 2 and all((part != 0).any() for part in carried)
    used.reset()
    for row in rows:
        assert used(row) == new(row)
        for a, b in zip(used.state, new.state, strict=True):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(used.state[0], carried[0])
