"""Training that begins with another run's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlcore import PPO, PPOConfig
from rlcore.checkpoint import load_checkpoint
from rlcore.envs import make_env
from rlcore.optimizer import FlatAdam
from rlcore.resume import Progress
from rlcore.train.beginning import Held
from rlcore.train.cli import main
from rlcore.train.conclude import restore_policy
from rlcore.train.config import InitConfig

WORDS = """
    --num-envs 4 --eval-envs 2 --agent.num-steps 8 --agent.num-epochs 1 --agent.num-minibatches 2
    --env.max_episode_length 20 --device cpu --no-export --save-interval 1 --keep-checkpoints 0
"""
NETS = ["--agent.actor.hidden-dims", "8", "--agent.critic.hidden-dims", "8"]


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run on Pendulum."""
    folder = tmp_path_factory.mktemp("before")
    assert (
        main(["train", "--task", "Pendulum", *WORDS.split(), *NETS, "--num-iterations", "3", "--runs-dir", str(folder)])
        == 0
    )
    (run,) = folder.glob("*/*/*")
    return run


def begun(before: Path, *words: str, iterations: int = 1) -> Path:
    """The folder of a run that begins with it."""
    there = set(Path().glob("runs/*/*/*"))
    settings = [*WORDS.split(), "--num-iterations", str(iterations)]
    assert main(["train", "--init-from", str(before), *settings, *words]) == 0
    (run,) = set(Path().glob("runs/*/*/*")) - there
    return run


def agent_of(run: Path, iteration: int) -> dict[str, Any]:
    return load_checkpoint(run / "checkpoints" / f"{iteration:06d}.pt")["agent"]  # type: ignore[no-any-return]


def best(run: Path) -> dict[str, Any]:
    return load_checkpoint(run / "checkpoints" / "best.pt")["agent"]  # type: ignore[no-any-return]


def test_a_parameter_that_is_held_keeps_still_and_its_neighbours_move_as_alone() -> None:
    """Two optimizers: one that has a parameter alone, and one that has it beside a held one."""
    torch.manual_seed(0)
    start, other = torch.randn(5), torch.randn(70)
    alone, free, still = nn.Parameter(start.clone()), nn.Parameter(start.clone()), nn.Parameter(other.clone())
    rate = torch.tensor(0.1)
    single, both = FlatAdam([alone], rate, 0.5), FlatAdam([still, free], rate, 0.5)
    both.hold([still], torch.tensor(0.03))
    for step in range(6):
        if step == 3:
            both.hold([still])
        rate.fill_(0.03 if step < 3 else 0.1)
        single_rate = rate.clone()
        rate.fill_(0.1)
        gradient = torch.randn(5)
        alone.grad, free.grad, still.grad = gradient.clone(), gradient.clone(), torch.full((70,), 100.0)
        single.learning_rate = single_rate
        single.step(torch.tensor(True))
        both.step(torch.tensor(True))
        assert torch.equal(alone, free)
        assert torch.equal(still, other)
    assert not both.moment[:70].any() and float(both.count) == 6


def learned(device: str, mode: Any) -> dict[str, Tensor]:
    """What a policy has become that first waits for its critic, and whose first layers keep still."""
    env = make_env("Pendulum", 64, device, seed=1)
    agent = PPO(env, PPOConfig(num_steps=8, num_epochs=2, num_minibatches=2, mode=mode), seed=1)
    held = Held(agent, InitConfig(freeze=("policy.trunk",), critic_warmup=2))
    held.begin(0)

    def after(progress: Progress) -> None:
        held.after(progress.iteration)
        if device == "cuda" and progress.iteration == 4:  # all is recorded by then
            torch.cuda.set_sync_debug_mode("error")

    try:
        agent.learn(6, on_iteration=after)
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    return {name: value.detach().cpu() for name, value in agent.policy.state_dict().items()}


@pytest.mark.gpu
def test_what_is_held_is_held_in_a_graph() -> None:
    graph, eager = learned("cuda", "graph"), learned("cuda", "eager")
    for name, value in eager.items():
        torch.testing.assert_close(graph[name], value, rtol=1e-5, atol=1e-6)
    start = PPO(make_env("Pendulum", 64, "cuda", seed=1), PPOConfig(), seed=1).policy.state_dict()
    assert torch.equal(graph["trunk.mlp.layers.0.weight"], start["trunk.mlp.layers.0.weight"].cpu())


def test_weights_are_those_of_the_run_and_settings_too(
    before: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = begun(before, "--num-envs", "8", "--agent.learning-rate", "1e-9", "--agent.lr-schedule", "constant")
    told = capsys.readouterr().out
    assert "weights of" in told and "policy.trunk" in told and "begun anew" not in told
    theirs, ours = best(before), agent_of(run, 1)
    for part in ("policy", "critic"):
        for name, value in theirs[part].items():
            if ".normalizer." not in f".{name}" and "normalizer" not in name:
                torch.testing.assert_close(ours[part][name], value, rtol=0, atol=1e-6)
    assert (ours["policy"]["normalizer.count"] == theirs["policy"]["normalizer.count"] + 8 * 8).all()
    assert ours["policy"]["trunk.mlp.layers.0.weight"].shape == (
        8,
        3,
    )  # the network of the other run, which nobody named
    assert main(["train", "--resume", str(run), "--num-iterations", "2"]) == 0  # and the run goes on by itself


def test_parts_by_name_and_what_is_begun_anew(
    before: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "--seed",
        "2",
        "--init.take",
        "policy.trunk",
        "--agent.learning-rate",
        "1e-9",
        "--agent.lr-schedule",
        "constant",
    ]
    run = begun(before, *words)
    told = capsys.readouterr().out
    assert "begun anew: policy.normalizer.mean [3]" in told
    theirs, ours = best(before), agent_of(run, 1)
    torch.testing.assert_close(
        ours["policy"]["trunk.mlp.layers.0.weight"], theirs["policy"]["trunk.mlp.layers.0.weight"], rtol=0, atol=1e-6
    )
    assert not torch.allclose(ours["critic"]["value.weight"], theirs["critic"]["value.weight"], atol=1e-4)
    assert float(ours["policy"]["normalizer.count"][0]) == 4 * 8
    fresh = begun(before, "--init.normalizer", "fresh", "--init.no-critic", "--seed", "2")
    ours = agent_of(fresh, 1)
    assert float(ours["policy"]["normalizer.count"][0]) == 4 * 8
    assert not torch.allclose(ours["critic"]["value.weight"], theirs["critic"]["value.weight"], atol=1e-2)
    still = agent_of(begun(before, "--init.normalizer", "still"), 1)["policy"]
    assert torch.equal(still["normalizer.mean"], theirs["policy"]["normalizer.mean"])


def test_frozen_parts_keep_still(before: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    run = begun(before, "--init.freeze", "policy.trunk", iterations=2)
    theirs, ours = best(before)["policy"], agent_of(run, 2)["policy"]
    for name, value in theirs.items():
        if name.startswith("trunk."):
            assert torch.equal(ours[name], value)
    assert not torch.equal(ours["head.linear.weight"], theirs["head.linear.weight"])
    assert main(["train", "--resume", str(run), "--num-iterations", "3"]) == 0  # what is frozen stays so
    again = agent_of(run, 3)["policy"]
    assert all(torch.equal(again[name], theirs[name]) for name in theirs if name.startswith("trunk."))


def test_the_policy_waits_for_the_critic(before: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """The policy does not move, nor the adaptive rate; then it does; and a run in two halves is the same one."""
    monkeypatch.chdir(tmp_path)
    run = begun(before, "--init.critic-warmup", "2", iterations=4)
    theirs, states = best(before), [agent_of(run, i) for i in range(1, 5)]

    def policy(state: dict[str, Any]) -> list[Tensor]:
        return [value for name, value in state["policy"].items() if "normalizer" not in name]

    for state in states[:2]:
        assert all(map(torch.equal, policy(state), policy(theirs)))
        assert not torch.equal(state["critic"]["value.weight"], theirs["critic"]["value.weight"])
        assert float(state["learning_rate"]) == pytest.approx(1e-3)
    assert float(states[1]["optimizers"][0]["count"]) == 0
    assert not all(map(torch.equal, policy(states[2]), policy(theirs)))
    halves = begun(before, "--init.critic-warmup", "2", iterations=1)
    assert main(["train", "--resume", str(halves), "--num-iterations", "4"]) == 0
    for mine, other in zip(policy(agent_of(halves, 4)), policy(states[3]), strict=True):
        assert torch.equal(mine, other)


def test_the_optimizer_goes_on(before: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    run = begun(before, "--init.optimizer")
    steps = float(best(before)["optimizers"][0]["count"])
    assert float(agent_of(run, 1)["optimizers"][0]["count"]) == steps + 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--init.take", "policy.trunkk"], "init.take: there is no 'policy.trunkk'"),
        (["--init.freeze", "actor"], "init.freeze: there is no 'actor'"),
        (["--init.critic-warmup", "-1"], "init.critic_warmup: -1"),
        (["--task", "CartPole", "--init.take", "policy.trunk"], "policy.trunk.mlp.layers.0.weight is [8, 3] in"),
        (["--init.optimizer", "--init.no-critic"], "init.optimizer: not all weights"),
        (["--agent.actor.hidden-dims", "9", "--init.take", "policy"], "policy.trunk.mlp.layers.0.weight is [8, 3]"),
    ],
)
def test_what_cannot_be_taken_is_said(
    words: list[str], message: str, before: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--init-from", str(before), *WORDS.split(), "--num-iterations", "1", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not Path("runs").exists()


def test_init_without_a_run_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--task", "Pendulum", "--init.critic-warmup", "2"]) == 2
    assert "--init-from RUN" in capsys.readouterr().err


def test_statistics_of_several_tasks_keep_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "--num-envs", "8", "--num-iterations", "1", "--eval-interval", "0", "--eval-envs", "2"]
    words += ["--no-export", "--device", "cpu", "--agent.num-minibatches", "1", "--agent.num-steps", "8"]
    assert main([*words, "--task", "Corner-NE", "--task", "Corner-SW", "--name", "first"]) == 0
    (first,) = tmp_path.glob("runs/*/*/*-first")
    assert main([*words, "--init-from", str(first), "--init.normalizer", "still", "--name", "second"]) == 0
    (second,) = tmp_path.glob("runs/*/*/*-second")
    theirs, ours = (agent_of(run, 1)["policy"] for run in (first, second))
    for name in ("normalizer.statistics.mean", "normalizer.statistics.var"):
        assert torch.equal(ours[name], theirs[name]), name


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run on Pendulum whose actor reads the mass, which differs between episodes."""
    folder = tmp_path_factory.mktemp("told")
    reads = [
        "--agent.actor-obs",
        "dynamics",
        "policy",
        "--env.randomize.mass",
        "true",
        "--agent.actor.activation",
        "tanh",
    ]
    words = [*WORDS.split(), *NETS, *reads, "--num-iterations", "2", "--runs-dir", str(folder)]
    assert main(["train", "--task", "Pendulum", *words]) == 0
    (run,) = folder.glob("*/*/*")
    return run


def test_a_policy_that_reads_less_begins_with_what_it_reads(
    told: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = begun(told, "--agent.actor-obs", "policy", "--init.take", "policy", "--init.freeze", "policy")
    assert "inputs there and not here, dynamics: 0 from now on" in capsys.readouterr().out
    begun(told, "--agent.actor-obs", "policy", "--init.take", "policy.head")
    assert "inputs there" not in capsys.readouterr().out  # none of what reads them was taken
    teacher, student = (restore_policy(r / "checkpoints" / "best.pt")[0] for r in (told, run))
    student.normalizer.load_state_dict(  # which went on
        {name: x[..., 1:] for name, x in teacher.normalizer.state_dict().items()}
    )
    seen = torch.randn(6, 3)
    with torch.no_grad():
        mine = student.distribution(student.normalizer(seen))[0].mode
        mass = torch.zeros(6, 1)  # the middle of its range
        theirs = teacher.distribution(teacher.normalizer(torch.cat((mass, seen), 1)))[0].mode
    torch.testing.assert_close(mine, theirs)


def test_what_a_policy_was_told_becomes_the_context_of_one_that_adapts(
    told: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    maml = "--algo maml --task Pendulum --num-envs 4 --num-iterations 1 --env.max_episode_length 20 --device cpu"
    words = f"{maml} --agent.num-tasks 2 --agent.adapt-steps 1 --agent.actor.hidden-dims 8 --agent.learning-rate 1e-9"
    settings = f"{words} --env.randomize.mass true --agent.context-size 1 --no-export --eval-envs 2 --no-report"
    assert main(["train", "--init-from", str(told), *settings.split()]) == 0
    printed = capsys.readouterr().out
    assert "inputs there and not here, dynamics: the context that adapts" in printed
    assert "begun anew: step_sizes [1, 6]" in printed
    (run,) = Path().glob("runs/*/maml/*")
    column = best(told)["policy"]["trunk.mlp.layers.0.weight"]
    torch.testing.assert_close(best(run)["context"], column[:, :1], rtol=0, atol=1e-6)
    torch.testing.assert_close(best(run)["policy"]["trunk.mlp.layers.0.weight"], column[:, 1:], rtol=0, atol=1e-6)
    assert main(["train", "--init-from", str(run), *settings.split()]) == 0
    assert "begun anew" not in capsys.readouterr().out  # step sizes and context of a policy that adapts are taken
