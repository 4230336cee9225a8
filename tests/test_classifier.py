"""A policy that is not told its task infers it, and everything else stays as it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rlcore import PPO, NetworkConfig, PPOConfig
from rlcore.classifier import ClassifierConfig, TaskClassifier, Window
from rlcore.config import ConfigError, from_dict
from rlcore.envs import make_env
from rlcore.export import OnnxPolicy, read_metadata
from rlcore.learn import learn, resume, snapshot
from rlcore.policies import build_policy
from rlcore.recurrent import RNNConfig, cleared
from rlcore.rollout import Samples
from rlcore.train.cli import main
from rlcore.train.evaluate import evaluate
from rlcore.types import Metrics

NET = NetworkConfig(hidden_dims=(16,))
GRU = NetworkConfig(hidden_dims=(16,), rnn=RNNConfig(type="gru", hidden_size=8))
CONFIG = PPOConfig(num_steps=8, num_epochs=2, num_minibatches=2, actor=NET, critic=NET)
CORNERS = "tasks:Corner-NE+Corner-SW"
KINDS = [ClassifierConfig(type="gru", hidden_size=8), ClassifierConfig(type="window", window=4)]


def agent_on(kind: ClassifierConfig, mode: str = "eager", device: str = "cpu", num_envs: int = 16, **more: Any) -> PPO:
    config = replace(CONFIG, mode=mode, classifier=kind, **more)  # type: ignore[arg-type]
    env = make_env(CORNERS, num_envs, device, seed=3, trial_episodes=1)
    return PPO(env, config, seed=3, num_iterations=100)


# What it is made of


def test_a_window_holds_the_latest_observations_of_the_episode() -> None:
    steps, rows, inputs, length = 9, 3, 2, 4
    x, begins = torch.randn(steps, rows, inputs), torch.rand(steps, rows) < 0.3
    window = Window(inputs, length)
    found, _ = window(x, window.initial_state(rows), (~begins).float().unsqueeze(-1))
    for n in range(rows):
        seen: list[Tensor] = []
        for t in range(steps):
            seen = [] if begins[t, n] else seen
            seen.append(torch.cat([x[t, n], torch.ones(1)]))
            missing = [torch.zeros(inputs + 1)] * (length - len(seen))
            assert torch.equal(found[t, n], torch.cat([*missing, *seen[-length:]]))


@pytest.mark.parametrize("kind", [*KINDS, ClassifierConfig(type="window", window=1)])
def test_one_step_after_the_other_is_the_same_as_a_whole_sequence(kind: ClassifierConfig) -> None:
    torch.manual_seed(0)
    classifier = TaskClassifier(3, 2, kind)
    torch.nn.init.normal_(classifier.head.weight)
    x, begins = torch.randn(7, 5, 3), torch.rand(7, 5) < 0.3
    keep = (~begins).float().unsqueeze(-1)
    whole, last = classifier(x, classifier.initial_state(5), keep)
    state = classifier.initial_state(5)
    for t in range(7):
        logits, state = classifier(x[t : t + 1], cleared(state, begins[t]))
        torch.testing.assert_close(logits[0], whole[t])
    for one, other in zip(state, last, strict=True):
        torch.testing.assert_close(one, other)


def test_its_loss_is_the_weighted_cross_entropy() -> None:
    config = ClassifierConfig(type="gru", weight=0.5)
    classifier = TaskClassifier(3, 4, config)
    logits = torch.randn(6, 5, 4, dtype=torch.float64, requires_grad=True)
    index = torch.randint(4, (4, 5))
    weight = torch.rand(4, 5, dtype=torch.float64)
    obs = torch.cat([torch.randn(4, 5, 3).double(), torch.nn.functional.one_hot(index, 4).double()], -1)
    blank = torch.zeros(4, 5)
    samples = Samples(blank, None, blank, blank, blank, blank, weight, obs)  # type: ignore[arg-type]
    metrics: Metrics = {}
    loss = classifier.with_loss(torch.tensor(2.0).double(), metrics, logits, samples)
    each = torch.nn.functional.cross_entropy(logits[2:].flatten(0, 1), index.flatten(), reduction="none")
    expected = (weight.flatten() * each).mean()
    torch.testing.assert_close(loss, 2.0 + 0.5 * expected)
    torch.testing.assert_close(metrics["classifier/loss"], expected)
    right = (logits[2:].argmax(-1) == index).double()
    torch.testing.assert_close(metrics["classifier/accuracy"].double(), (weight * right).mean())
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert (logits.grad[:2] == 0).all(), "steps that refresh the state are not learned from"


@pytest.mark.parametrize("stop", [True, False])
def test_what_the_policy_wants_reaches_the_classifier_only_where_it_is_let(stop: bool) -> None:
    agent = agent_on(ClassifierConfig(type="gru", stop_gradient=stop))
    policy = agent.policy
    assert policy.classifier is not None
    torch.nn.init.normal_(policy.classifier.head.weight)
    x = torch.randn(3, 4, policy.size)
    distribution, _, logits = policy.outputs(x, policy.initial_state(4))
    distribution.log_prob(torch.zeros(3, 4, 2)).sum().backward(retain_graph=True)
    assert all(p.grad is not None for p in policy.trunk.parameters())
    assert all((p.grad is None) == stop for p in policy.classifier.parameters())
    policy.zero_grad(set_to_none=True)
    assert logits is not None
    logits.sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in policy.trunk.parameters())
    assert all(p.grad is not None for p in policy.classifier.parameters())


# In a policy


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_is_not_told_unless_that_is_asked_for(kind: ClassifierConfig) -> None:
    policy = agent_on(kind).policy
    assert policy.inferred_tasks == ("Corner-NE", "Corner-SW")
    assert policy.observation_sizes == {"policy": 7}
    obs = {"policy": torch.randn(2, 7), "task": torch.eye(2)}
    other = {**obs, "task": obs["task"].flip(0)}
    action, probability, state = policy.inferring(obs)
    torch.testing.assert_close(probability, torch.full((2, 2), 0.5))  # it begins by knowing nothing
    assert torch.equal(action, policy(other)[0])
    assert torch.equal(action, policy({"policy": obs["policy"]})[0])
    assert torch.equal(policy(obs)[1][0], state[0])
    policy.give_task()
    assert policy.observation_sizes == {"policy": 7, "task": 2}
    assert policy.initial_state(2) == ()
    assert not torch.equal(policy(obs)[0], policy(other)[0])


def test_statistics_of_observations_tell_nothing_of_the_task() -> None:
    agent = agent_on(KINDS[0])
    agent.learn(2)
    x = torch.randn(2, 9)
    x[:, :7] = x[:1, :7]
    x[:, 7:] = torch.eye(2)
    normalized = agent.policy.normalizer(x)
    assert torch.equal(normalized[0, :7], normalized[1, :7])
    assert torch.equal(normalized[:, 7:], torch.eye(2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("net", [NET, GRU])
def test_six_iterations_equal_three_and_three_bitwise(kind: ClassifierConfig, net: NetworkConfig) -> None:
    settings: dict[str, Any] = {"actor": net, "critic": net, "balance": "advantage"}
    whole = agent_on(kind, **settings)
    whole.learn(6)
    first = agent_on(kind, **settings)
    content = snapshot(first.env, first, first.learn(3))
    second = agent_on(kind, **settings)
    torch.manual_seed(999)
    progress, exact = resume(second.env, second, content)
    assert exact
    learn(second.env, second, 6, progress=progress)
    for (name, one), other in zip(whole.policy.state_dict().items(), second.policy.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_ratio_is_one(kind: ClassifierConfig) -> None:
    agent = agent_on(kind, num_epochs=1, num_minibatches=1, lr_schedule="constant")
    found: list[float] = []
    agent.learn(3, on_report=lambda report: found.append(report.metrics["policy/kl"]))
    assert max(map(abs, found)) < 1e-6


def test_without_one_a_policy_has_nothing_of_it() -> None:
    agent = PPO(make_env(CORNERS, 4, seed=1), CONFIG, seed=1)
    assert agent.policy.classifier is None
    assert agent.policy.inferred_tasks == ()
    assert not agent.recurrent
    assert not any("classifier" in name for name in agent.policy.state_dict())
    reported: list[str] = []
    agent.learn(1, on_report=lambda report: reported.extend(report.metrics))
    assert not any("classifier" in name for name in reported)


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("CartPole", {}, "classifier.type: 'gru' .*CartPole is one task"),
        (CORNERS, {"share_trunk": True}, "shares the trunk"),
        ("tasks:Corner-NE+Pendulum", {}, "actions of Corner-NE and Pendulum differ"),
        (CORNERS, {"classifier": {"type": "window", "window": 0}}, "classifier.window: 0 is not possible"),
        (CORNERS, {"classifier": {"type": "gru", "weight": 0.0}}, "classifier.weight: 0.0 is not possible"),
        (CORNERS, {"classifier": {"type": "lstm"}}, "classifier.type"),
        (CORNERS, {"actor": {"rnn": {"type": "lstm"}}}, "an LSTM takes up; set actor.rnn.type to gru"),
    ],
)
def test_what_cannot_be_is_refused(task: str, settings: dict[str, Any], message: str) -> None:
    env = make_env(task, 4, seed=1)
    with pytest.raises(ConfigError, match=message):
        PPO(env, from_dict(PPOConfig, {"num_steps": 8, "classifier": {"type": "gru"}} | settings), seed=1)


@pytest.mark.parametrize(
    "kind", [ClassifierConfig(type="gru", hidden_size=16), ClassifierConfig(type="window", window=8)]
)
def test_a_hidden_task_is_found_out(kind: ClassifierConfig) -> None:
    """Nothing but the reward tells the corners apart, whatever is done: a guess without it is right half the time."""
    options = {"trial_episodes": 1, "Corner-NE.max_episode_length": 20, "Corner-SW.max_episode_length": 20}
    config = replace(CONFIG, classifier=kind, num_steps=20, num_epochs=4)
    agent = PPO(make_env(CORNERS, 64, seed=3, **options), config, seed=3)
    agent.learn(15)
    result = evaluate(make_env(CORNERS, 60, seed=5, **options), agent.policy.eval(), 7)
    assert float(result.guesses[0].mean()) < 0.7, "before the first reward nothing is known"
    assert float(result.guesses[10].mean()) >= 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_while_it_is_updated_the_policy_is_judged_by_what_it_acted_by(kind: ClassifierConfig) -> None:
    agent = agent_on(kind, num_epochs=1, num_minibatches=1)
    agent.learn(1)
    policy = agent.policy
    assert policy.classifier is not None
    x, acted_by = torch.randn(1, 4, policy.size), torch.rand(1, 4, 2)
    one = policy.outputs(x, policy.initial_state(4), told=acted_by)[0]
    torch.nn.init.normal_(policy.classifier.head.weight)
    other = policy.outputs(x, policy.initial_state(4), told=acted_by)[0]
    assert torch.equal(one[0], other[0])
    assert not torch.equal(policy.outputs(x, policy.initial_state(4))[0][0], one[0])


# From the command line to the file


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on two corners that are not told apart."""
    folder = tmp_path_factory.mktemp("runs")
    words = "--num-envs 8 --num-iterations 4 --eval-interval 4 --eval-envs 6 --log-interval 1 --agent.num-steps 8"
    words += " --agent.actor.hidden-dims 8 --agent.critic.hidden-dims 8 --agent.num-minibatches 2"
    words += " --agent.classifier.type gru --agent.classifier.hidden-size 8 --env.trial_episodes 1"
    words += f" --env.Corner-NE.max_episode_length=12 --env.Corner-SW.max_episode_length=12 --runs-dir {folder}"
    assert main(["train", "--task", "Corner-NE", "--task", "Corner-SW", *words.split()]) == 0
    (found,) = folder.glob("*/ppo/*")
    return found


def test_a_run_tells_how_often_guesses_are_right(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"classifier/loss", "classifier/accuracy"} <= set(header)
    assert main(["eval", "--run", str(run), "--num-envs", "6"]) == 0
    assert "right guesses of the task by steps seen: 0: " in capsys.readouterr().out
    figures = json.loads((run / "eval.json").read_text())
    assert list(figures["task_accuracy"]) == ["0", "1", "2", "5", "10"]
    assert list(figures["onnx"]["task_accuracy"]) == ["0", "1", "2", "5", "10"]
    parts = [figures["tasks"][name]["task_accuracy"]["5"] for name in ("Corner-NE", "Corner-SW")]
    assert figures["task_accuracy"]["5"] == pytest.approx(sum(parts) / 2)


def test_a_file_tells_the_probability_of_each_task(run: Path) -> None:
    path = run / "export" / "policy.onnx"
    facts = read_metadata(path)
    assert facts["inputs"] == {"obs": [1, 7], "h_in": [1, 1, 8]}
    assert facts["outputs"] == {"actions": [1, 2], "task_probability": [1, 2], "h_out": [1, 1, 8]}
    assert len(facts["observation_mean"]) == 7
    assert facts["parity_error"] <= 1e-6
    file = OnnxPolicy(path)
    assert file.inferred_tasks == ("Corner-NE", "Corner-SW")
    file(np.zeros(7, np.float32))
    assert file.task_probability is not None
    assert file.task_probability.shape == (2,)
    assert file.task_probability.sum() == pytest.approx(1.0, abs=1e-6)


def test_a_file_is_told_its_task_where_that_is_asked_for(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told, out = tmp_path / "told.onnx", ["--output", str(tmp_path / "e.json")]
    assert main(["export", "--run", str(run), "--given-task", "--output", str(told)]) == 0
    facts = read_metadata(told)
    assert facts["inputs"] == {"obs": [1, 9]}
    assert facts["outputs"] == {"actions": [1, 2]}
    assert main(["eval", "--onnx", str(told), "--num-envs", "4", *out]) == 0
    assert "right guesses" not in capsys.readouterr().out
    assert main(["eval", "--run", str(run), "--given-task", "--num-envs", "4", *out]) == 0
    assert "right guesses" not in capsys.readouterr().out
    one = tmp_path / "one.onnx"
    assert main(["export", "--run", str(run), "--for-task", "Corner-SW", "--output", str(one)]) == 0
    assert read_metadata(one)["inputs"] == {"obs": [1, 7]}
    obs = np.random.default_rng(0).normal(size=(1, 7)).astype(np.float32)
    joint = {"policy": obs, "task": np.array([[0, 1]], np.float32)}
    np.testing.assert_allclose(OnnxPolicy(one)(obs), OnnxPolicy(told)(joint), atol=1e-6)
    capsys.readouterr()
    assert main(["eval", "--onnx", str(run / "export" / "policy.onnx"), "--given-task", *out]) != 0
    assert "rlcore export --given-task" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["run", "onnx"])
def test_one_of_the_tasks_is_inferred_by_itself(
    source: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--run", str(run)] if source == "run" else ["--onnx", str(run / "export" / "policy.onnx")]
    words = [*given, "--task", "Corner-SW"]
    assert main(["eval", *words, "--num-envs", "4", "--output", str(tmp_path / "e.json")]) == 0
    said = capsys.readouterr().out
    assert "Corner-SW, " in said
    assert "length 12.0" in said
    assert "right guesses" in said
    assert main(["play", *words, "--output", str(tmp_path / "one.gif")]) == 0
    assert "it was right about the task in " in capsys.readouterr().out


def test_a_policy_that_is_told_has_nothing_to_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--num-envs 4 --num-iterations 1 --eval-envs 2 --agent.num-steps 8 --agent.num-minibatches 1 --no-export"
    assert main(["train", "--task", "Pendulum", *words.split(), "--runs-dir", str(tmp_path)]) == 0
    (found,) = tmp_path.glob("*/ppo/*")
    for command in ("export", "eval"):
        assert main([command, "--run", str(found), "--given-task"]) != 0
        assert "infers no task; leave it out" in capsys.readouterr().err


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_graph_equals_eager(kind: ClassifierConfig) -> None:
    def train(mode: str) -> PPO:
        agent = agent_on(kind, mode, "cuda", 64, precision="fp32")
        agent.learn(30)
        return agent

    graph, eager = train("graph"), train("eager")
    for one, other in zip(graph.policy.parameters(), eager.policy.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
@pytest.mark.parametrize("capture_env", [None, False])
@pytest.mark.parametrize("kind", KINDS)
def test_iterations_do_not_synchronize_with_the_host(kind: ClassifierConfig, capture_env: bool | None) -> None:
    agent = agent_on(kind, "graph", "cuda", 64)
    progress = agent.learn(5, capture_env=capture_env)
    torch.cuda.set_sync_debug_mode("error")
    try:
        agent.learn(15, progress=progress, on_report=lambda report: None, capture_env=capture_env)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_policy_is_rebuilt_from_its_settings() -> None:
    agent = agent_on(KINDS[1])
    agent.learn(1)
    again = build_policy(agent.policy.spec, agent.config)
    again.load_state_dict(agent.policy.state_dict())
    obs = {"policy": torch.randn(3, 7)}
    assert torch.equal(again(obs)[0], agent.policy(obs)[0])


def test_settings_that_nothing_reads_are_refused() -> None:
    with pytest.raises(ValueError, match="window: 4 is not possible; nothing reads it with type none; set type window"):
        ClassifierConfig(window=4)
