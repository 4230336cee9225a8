"""Action bounds other than -1..1: the policy's own units stay those of a unit Gaussian, the env gets its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlcore import PPO, NetworkConfig, PPOConfig, Step
from rlcore.checkpoint import load_checkpoint
from rlcore.env import spec_of
from rlcore.envs import make_env
from rlcore.export import OnnxPolicy, export_onnx, read_metadata
from rlcore.recurrent import RNNConfig
from rlcore.train.cli import main
from rlcore.train.importers.convert import convert
from rlcore.types import Obs

SMALL = NetworkConfig(hidden_dims=(16,), activation="tanh")
LSTM = NetworkConfig(hidden_dims=(), rnn=RNNConfig(type="lstm", hidden_size=8))


class Push:
    """Two points to be held at zero, pushed by what an action is within its bounds, whatever these are."""

    task = "Push"
    max_episode_length = 10

    def __init__(self, num_envs: int = 16, low: Sequence[float] = (-1, -1), high: Sequence[float] = (1, 1)) -> None:
        self.num_envs, self.device = num_envs, torch.device("cpu")
        self.observation_spaces = {"policy": spaces.Box(-math.inf, math.inf, (4,))}
        self.action_space = spaces.Box(np.float32(low), np.float32(high))  # type: ignore[arg-type]
        self.low, self.high = torch.tensor(self.action_space.low), torch.tensor(self.action_space.high)
        self.deployment: dict[str, Any] = {}
        self.generator = torch.Generator()

    def obs(self) -> Obs:
        return {"policy": torch.cat([self.x, self.v], 1)}

    def reset(self, seed: int | None = None) -> Obs:
        if seed is not None:
            self.generator.manual_seed(seed)
        self.x, self.t = torch.randn(self.num_envs, 2, generator=self.generator), 0
        self.v = torch.zeros_like(self.x)
        return self.obs()

    def step(self, action: Tensor) -> Step:
        assert (action >= self.low).all() and (action <= self.high).all()
        self.t += 1
        self.v = 0.9 * self.v + 0.1 * (2 * (action - self.low) / (self.high - self.low) - 1)
        self.x = self.x + 0.3 * self.v
        reward, last = -self.x.abs().sum(1), self.obs()
        ended = torch.full((self.num_envs,), self.t == self.max_episode_length)
        return Step(self.reset() if bool(ended[0]) else last, reward, torch.zeros_like(ended), ended, last, {})

    def close(self) -> None:
        pass


def settings(**changes: Any) -> PPOConfig:
    few = PPOConfig(num_steps=10, num_epochs=2, num_minibatches=4, actor=SMALL, critic=SMALL, lr_schedule="constant")
    return replace(few, **changes)


def learned(config: PPOConfig, low: Sequence[float], high: Sequence[float]) -> tuple[list[float], Tensor]:
    """Reward by iteration, and all parameters."""
    agent = PPO(Push(low=low, high=high), config, seed=1)
    curve: list[float] = []
    agent.learn(8, on_report=lambda report: curve.append(report.metrics["rollout/reward"]))
    return curve, torch.cat([optimizer.value for optimizer in agent.optimizers]).clone()


BOXES = {
    "wide": ((-100, -100), (100, 100)),
    "narrow": ((-0.01, -0.01), (0.01, 0.01)),
    "one side of zero": ((0, 0), (10, 10)),
    "mixed": ((-1, -330), (1, -30)),
    "one of them wide": ((-1.1, -7), (1.1, 7)),
}


@pytest.mark.parametrize("network", [SMALL, LSTM], ids=["mlp", "lstm"])
@pytest.mark.parametrize("box", BOXES)
def test_a_task_is_learned_alike_whatever_the_unit_of_its_actions(box: str, network: NetworkConfig) -> None:
    config = settings(actor=network)
    curve, parameters = learned(config, (-1, -1), (1, 1))
    other, others = learned(config, *BOXES[box])
    assert len(curve) == 8
    assert other == pytest.approx(curve, rel=1e-4)  # but for rounding in the env
    assert torch.allclose(parameters, others, rtol=1e-2, atol=1e-3)


def test_bit_for_bit_where_the_unit_rounds_nothing() -> None:
    curve, parameters = learned(settings(), (-1, -1), (1, 1))
    other, others = learned(settings(), (-128, -0.0625), (128, 0.0625))
    assert curve == other
    assert torch.equal(parameters, others)
    cut, _ = learned(settings(action_scale="none"), (-128, -0.0625), (128, 0.0625))
    assert cut != curve


def policy_of(low: Sequence[float], high: Sequence[float], **changes: Any) -> Any:
    return PPO(Push(low=low, high=high), settings(**changes), seed=0).policy


INF, LARGEST = math.inf, float(np.finfo(np.float32).max)


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ((-1, -1), (1, 1)),
        ((-1.2, -0.8), (0.9, 1.25)),  # near enough
        ((-INF, -INF), (INF, INF)),
        ((0, -INF), (INF, 7)),  # no width
        ((3, -1), (3, 1)),  # nothing to choose
        ((-1e6, -LARGEST), (1e6, LARGEST)),  # none meant
    ],
)
def test_auto_leaves_actions_alone(low: Sequence[float], high: Sequence[float]) -> None:
    policy = policy_of(low, high)
    assert policy.action_scale is None
    assert not {"action_scale", "action_bias"} & policy.state_dict().keys()
    raw = torch.tensor([[-9.0, 9.0], [0.1, -0.2]])
    assert torch.equal(policy.limit(raw), raw.clamp(torch.tensor(low), torch.tensor(high)))


@pytest.mark.parametrize("task", ["Reach-UR5e-JointPos", "Reach-UR10-Torque", "CartPole", "Memory"])
def test_auto_leaves_the_built_in_tasks_alone(task: str) -> None:
    policy = PPO(make_env(task, 2), settings(num_minibatches=1)).policy
    assert policy.action_scale is None and policy.notes == ()


def test_auto_leaves_an_env_alone_whose_action_terms_scale() -> None:
    env = Push(low=(-100, -100), high=(100, 100))
    env.deployment = {"action_terms": [{"name": "joint_pos", "size": 2, "scale": 0.5}]}
    agent = PPO(env, settings(), seed=0)
    assert agent.policy.action_scale is None
    assert agent.policy.notes == (
        "actions are cut off at the env's bounds -100..100, and not scaled to them (agent.action_scale auto)",
    )
    assert PPO(env, settings(action_scale="bounds")).policy.action_scale is not None


@pytest.mark.parametrize("choice", ["auto", "bounds"])
@pytest.mark.parametrize(
    ("low", "high", "scale", "bias"),
    [
        ((-100, 0), (100, 10), (100, 5), (0, 5)),
        ((-1, -0.05), (1, 0.05), (1, 0.05), (0, 0)),
        ((0, -INF), (10, INF), (5, 1), (5, 0)),  # only where there is a width
        ((4, -3), (4, 3), (1, 3), (0, 0)),
        ((-INF, -3), (5, 3), (1, 3), (0, 0)),
        ((-0.4, -1), (0.4, 1), (0.4, 1), (0, 0)),
        ((-2, -1), (2, 1), (2, 1), (0, 0)),
    ],
)
def test_scale_and_bias_by_dimension(low: Any, high: Any, scale: Any, bias: Any, choice: str) -> None:
    policy = policy_of(low, high, action_scale=choice)
    assert policy.action_scale.tolist() == pytest.approx(scale)
    assert policy.action_bias.tolist() == pytest.approx(bias)
    corners = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    wanted = torch.tensor(bias) + torch.tensor(scale) * corners
    assert torch.allclose(policy.limit(corners), wanted.clamp(torch.tensor(low), torch.tensor(high)))


def test_no_rounding_leads_out_of_the_bounds() -> None:
    policy = policy_of((0.1, -0.3), (0.7, 1.1), action_scale="bounds")
    far = policy.limit(torch.tensor([[-50.0, -50.0], [50.0, 50.0], [-1.0, 1.0]]))
    assert (far >= policy.low).all() and (far <= policy.high).all()
    assert far[1].tolist() == pytest.approx([0.7, 1.1])


def test_clip_actions_holds_before_the_scale() -> None:
    policy = policy_of((-100, 0), (100, 10), clip_actions=0.5)
    assert policy.limit(torch.tensor([[-9.0, -9.0], [9.0, 9.0]])).tolist() == [[-50, 2.5], [50, 7.5]]
    policy = policy_of((-100, 0), (100, 10), clip_actions=0.5, action_scale="none")
    assert policy.limit(torch.tensor([[-9.0, -9.0], [9.0, 9.0]])).tolist() == [[-0.5, 0], [0.5, 0.5]]


def test_scaling_costs_one_operation_and_none_where_there_is_none() -> None:
    class Count(TorchDispatchMode):
        number = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.number += 1
            return func(*args, **(kwargs or {}))

    numbers = []
    for bound in (INF, 1, 100):
        policy = policy_of((-bound, -bound), (bound, bound))
        with Count() as count:
            policy.limit(torch.ones(3, 2))
        numbers.append(count.number)
    ones = 1  # torch.ones itself
    assert [number - ones for number in numbers] == [0, 1, 2]


def test_a_checkpoint_of_before_there_was_a_scale_acts_as_it_did() -> None:
    old = PPO(Push(low=(-100, 0), high=(100, 10)), settings(action_scale="none", clip_actions=3.0), seed=0)
    new = PPO(Push(low=(-100, 0), high=(100, 10)), settings(clip_actions=3.0), seed=1)
    assert (
        new.policy.action_scale is not None and "are scaled to the env's bounds -100..100, 0..10" in new.policy.notes[0]
    )
    new.load_state_dict(old.state_dict())
    raw = torch.tensor([[-9.0, -9.0], [9.0, 9.0], [0.5, 0.7]])
    assert torch.equal(new.policy.limit(raw), old.policy.limit(raw))
    assert "not scaled to them (as when this policy began to learn)" in new.policy.notes[0]
    again = PPO(Push(low=(-100, 0), high=(100, 10)), settings(clip_actions=3.0), seed=2)
    again.load_state_dict(new.state_dict())  # also from a checkpoint that the continued run wrote
    assert torch.equal(again.policy.limit(raw), old.policy.limit(raw))


@pytest.mark.parametrize("network", [SMALL, LSTM], ids=["mlp", "lstm"])
def test_the_exported_file_acts_in_the_units_of_the_env(network: NetworkConfig, tmp_path: Path) -> None:
    agent = PPO(Push(low=(-100, 0), high=(100, 10)), settings(actor=network, critic=network), seed=0)
    agent.learn(3)
    with torch.no_grad():
        agent.policy.head.linear.weight.mul_(100)  # towards and beyond the bounds
    spec = spec_of(agent.env)
    report = export_onnx(agent.policy, spec, tmp_path / "policy.onnx", recording=agent.recording())
    assert report.parity.passed
    facts = read_metadata(tmp_path / "policy.onnx")
    assert (facts["policy_scale"], facts["policy_bias"]) == ([100, 5], [0, 5])
    assert (facts["action_low"], facts["action_high"]) == ([-100, 0], [100, 10])
    run = OnnxPolicy(tmp_path / "policy.onnx")
    obs, state = torch.randn(20, 1, 4), agent.policy.initial_state(1)
    acted = []
    for row in obs:
        with torch.no_grad():
            action, state = agent.policy({"policy": row}, state)
        acted.append(action[0])
        assert run(row[0].numpy()).reshape(-1).tolist() == pytest.approx(action[0].tolist(), rel=1e-4, abs=1e-3)
    reached = torch.stack(acted)
    assert reached[:, 0].abs().max() > 10 and reached[:, 1].min() >= 0


def test_the_metadata_speaks_of_no_scale_where_there_is_none(tmp_path: Path) -> None:
    agent = PPO(Push(), settings(), seed=0)
    export_onnx(agent.policy, spec_of(agent.env), tmp_path / "policy.onnx", recording=None)
    assert "policy_scale" not in read_metadata(tmp_path / "policy.onnx")


SKRL_LAYERS = [{"name": "net", "input": "OBSERVATIONS", "layers": [8], "activations": "relu"}]
SKRL = {role: {"network": SKRL_LAYERS} for role in ("policy", "value")}


@pytest.mark.parametrize(
    ("library", "source", "choice"),
    [
        ("rl_games", {"params": {"config": {"clip_actions": True}}}, "bounds"),
        ("rl_games", {"params": {"config": {"gamma": 0.99}}}, "bounds"),
        ("rl_games", {"params": {"config": {"clip_actions": False}, "env": {"clip_actions": 5.0}}}, "none"),
        ("rsl_rl", {"num_steps_per_env": 24, "clip_actions": 1.0, "algorithm": {}, "policy": {}}, "none"),
        ("skrl", {"agent": {"class": "PPO"}, "models": SKRL}, "none"),
        ("sb3", {"n_steps": 8, "policy": "MlpPolicy"}, "none"),
    ],
)
def test_a_converted_configuration_keeps_its_librarys_way(library: Any, source: Any, choice: str) -> None:
    conversion = convert(source, library, num_envs=64)
    assert conversion.config["agent"]["action_scale"] == choice
    assert any(row.ours == f"agent.action_scale = {choice}" for row in conversion.rows)


def test_rl_games_stretches_what_it_clipped_to_the_bounds() -> None:
    config = convert({"params": {"config": {"gamma": 0.99}}}, "rl_games", num_envs=16).config["agent"]
    policy = policy_of((-100, 0), (100, 10), **{key: config[key] for key in ("action_scale", "clip_actions")})
    assert policy.limit(torch.tensor([[-9.0, -9.0], [0.5, 9.0]])).tolist() == [[-100, 0], [50, 10]]


def test_a_run_says_it_and_its_evaluation_and_its_file_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.chdir(tmp_path)
    words = "--num-envs 16 --num-iterations 3 --agent.num-steps 10 --eval-envs 16 --runs-dir . --name one"
    task = ["--task", f"python:{__name__.rpartition('.')[2]}:Push", "--env.low", "[-100,0]", "--env.high", "[100,10]"]
    assert main(["train", *task, *words.split()]) == 0
    said = capsys.readouterr().out
    assert said.count("actions are scaled to the env's bounds -100..100, 0..10 (agent.action_scale auto") == 1
    results = [line for line in said.splitlines() if line.startswith(("policy ", "ONNX file "))]
    scores = [line.partition("return")[2].split()[0] for line in results]
    assert len(scores) == 2 and float(scores[0]) == pytest.approx(float(scores[1]), abs=1e-2)
    [last] = tmp_path.rglob("000003.pt")
    assert load_checkpoint(last)["agent"]["policy"]["action_scale"].tolist() == [100, 5]
