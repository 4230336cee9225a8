"""``rlcore train`` in several processes: what is asked for, what runs, and what is said when one of them dies."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_distributed import in_ranks, optimizers_of, ppo

from rlcore.config import ConfigError
from rlcore.distributed import RankLost, World, gone, join, local_device, world
from rlcore.learn import learn
from rlcore.off_policy_config import warnings
from rlcore.ppo import PPO, PPOConfig
from rlcore.ranks import checksum
from rlcore.sac import SACConfig
from rlcore.train.arguments import UsageError
from rlcore.train.config import TrainConfig
from rlcore.train.elastic import on_own_device, processes_in, share_among, start
from rlcore.train.ending import Interrupt, end_of_run
from rlcore.train.judging import all_measured, eval_env_of, judged_by, measure_along, measured
from rlcore.train.several import end_of_follower, how_again, of_rank, share_of

ROOT = Path(__file__).parent.parent
RANKS = "--processes 2 --device cpu --num-envs 16 --agent.num-steps 16 --eval-interval 0 --eval-envs 2 --log-interval 1"


@pytest.mark.parametrize(
    ("words", "number", "rest"),
    [
        ("--task A --gpus 4", 4, "--task A --device cuda"),
        ("gpus=2 --task A", 2, "--task A --device cuda"),
        ("--processes=3 --device cpu", 3, "--device cpu"),
        ("--task A", 0, "--task A"),
    ],
)
def test_processes_are_taken_out_of_the_words(words: str, number: int, rest: str) -> None:
    option = "" if number == 0 else "--processes" if "processes" in words else "--gpus"
    assert processes_in(words.split()) == (number, rest.split(), option)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("--gpus x", "--gpus: 'x' is not a number of processes; write --gpus 2"),
        ("--gpus 0", "--gpus: '0' is not a number"),
        ("--task A --processes", "--processes: '' is not a number"),
        ("--gpus 2 --processes 2", "--gpus cannot go with --processes"),
        ("--gpus 2 --device cuda:1", "--device cannot go with --gpus"),
    ],
)
def test_what_cannot_be_started_is_refused(words: str, error: str) -> None:
    with pytest.raises(UsageError, match=re.escape(error)):
        processes_in(words.split())


def test_under_torchrun_there_are_processes_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="--gpus cannot go with torchrun"):
        processes_in(["--gpus", "2"])


def test_each_rank_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_device("cuda:1") == "cuda:1" and on_own_device(["a"]) == ["a"]
    for name, value in {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert local_device("cuda") == local_device("cuda:1") == "cuda:1" and local_device("cpu") == "cpu"
    with pytest.raises(ConfigError, match="device is 'cuda:0' and this rank's is cuda:1; leave the number out"):
        local_device("cuda:0")
    assert on_own_device(["--device", "cuda", "--task", "A"]) == ["--task", "A", "--device", "cuda:1"]
    assert on_own_device(["device=auto"]) == on_own_device([]) == ["--device", "cuda:1"]
    assert on_own_device(["--device", "cpu"]) == ["--device", "cpu"]


def test_envs_are_shared_evenly() -> None:
    assert share_of(TrainConfig(task="CartPole", num_envs=12), World(1, 3)) == 4
    remedy = "num_envs is 13, of all 3 ranks together, which share it evenly; give 12 or 15"
    with pytest.raises(ConfigError, match=remedy):
        share_of(TrainConfig(task="CartPole", num_envs=13), World(1, 3))
    for words in (["--num-envs", "13"], ["num_envs=12", "--num-envs=13"]):  # before any process is started
        with pytest.raises(ConfigError, match=remedy):
            start(3, ["--task", "CartPole", "--device", "cpu", *words], "--processes")
    with pytest.raises(ConfigError, match=r"num_envs is 2, .* give 3$"):
        share_among(2, 3)


def test_a_run_that_stops_says_how_as_many_ranks_go_on() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    two = World(0, 2, places=("a cpu", "a cpu"))
    assert (how_again(two, cpu), how_again(two, gpu)) == (" --processes 2", " --gpus 2")
    assert how_again(World(), cpu) == how_again(World(0, 2, places=("a cuda:0", "b cuda:0")), gpu) == ""


def test_what_is_said_of_settings_is_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlcore.distributed._world", World(0, 2))
    (told,) = warnings(SACConfig(learning_starts=1000).of_rank(), 4, 1, 125, 40)
    assert "320 steps are left, and learning begins after 1,000" in told


def test_batches_and_replay_memory_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SACConfig(batch_size=96, buffer_size=3000, learning_starts=100, update_ratio=0.5)
    assert config.of_rank() == config
    monkeypatch.setattr("rlcore.distributed._world", World(1, 3))
    own = config.of_rank()
    assert (own.batch_size, own.buffer_size, own.learning_starts, own.update_ratio) == (32, 1000, 34, 1.5)
    with pytest.raises(ConfigError, match="batch_size: 100 is not possible; 3 ranks share it evenly; give 99"):
        SACConfig(batch_size=100).of_rank()


def test_with_another_number_of_ranks_episodes_start_anew_and_it_is_said() -> None:
    agent = ppo(4)
    content: dict[str, Any] = {"world": 2, "ranks": [{}], "env": {}, "agent": agent.state_dict()}
    own, told = of_rank(content, World(), agent)
    assert not own and content["env"] is None
    assert told == [
        "2 ranks wrote the checkpoint, and 1 rank goes on: random numbers are others, and episodes start anew"
    ]
    assert of_rank({"agent": agent.state_dict()}, World(), agent) == (True, [])


def commands(parent: int) -> Iterator[tuple[int, str]]:
    """Processes that a process has started, by their rank."""
    for task in Path("/proc").glob("[0-9]*/stat"):
        try:
            child, own = task.read_text().rpartition(")")[2].split()[1], (task.parent / "environ").read_bytes()
        except OSError:
            continue
        rank = re.search(rb"(?:^|\0)RANK=(\d+)\0", own)
        if int(child) == parent and rank:
            yield int(task.parent.name), rank[1].decode()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes as Linux lists them")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, 70), (signal.SIGINT, 130)])
def test_a_rank_that_dies_or_is_interrupted_ends_all_with_a_checkpoint(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    words = f"train --task CartPole {RANKS} --num-iterations 100000 --save-interval 0".split()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    output = tmp_path / "output"
    with output.open("w") as file:
        command = [sys.executable, "-m", "rlcore", *words]
        run = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=file, stderr=subprocess.STDOUT)
        while "[     2/" not in output.read_text():
            assert run.poll() is None, output.read_text()
            time.sleep(0.2)
        (victim,) = [process for process, rank in commands(run.pid) if rank == "1"]
        began = time.monotonic()
        os.kill(victim, number)
        ended = run.wait(60)
    assert time.monotonic() - began < 30
    text = output.read_text()
    assert ended == code
    assert "ranks        2 with 8 envs each: 0 on " in text
    (saved,) = tmp_path.glob("runs/CartPole/ppo/*/checkpoints/*.pt")
    if number == signal.SIGKILL:
        assert "rank 1 was ended by signal 9" in text
        assert f"error: rank 1 of 2 is gone, in iteration {int(saved.stem) + 1}; to go on from" in text
        assert "rank 1 has ended, and the others end with it" in text and "once more to stop" not in text
        assert not list(tmp_path.rglob("crash.txt"))
        assert f"to go on from iteration {int(saved.stem)}, with new episodes: rlcore train --resume" in text
    else:
        assert f"stopped after iteration {int(saved.stem)}" in text and "has ended" not in text
        assert re.search(r"rlcore train --resume runs/\S+ --processes 2\n", text)
        assert len(torch.load(saved, weights_only=True)["ranks"]) == 1


def test_a_signal_after_the_end_of_a_rank_is_not_taken_for_a_wish(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    monkeypatch.setattr("rlcore.distributed._world", World(0, 3, True, None, (), (os.getpid(), other.pid, 0)))
    for alive in (True, False):
        if not alive:
            other.kill()
            other.wait()
        assert gone() == ([] if alive else [1])
        interrupt = Interrupt()
        interrupt.gone = gone
        with interrupt.handling():
            os.kill(os.getpid(), signal.SIGTERM)
        assert ("rank 1 has ended" in capfd.readouterr().err) != alive
        code = end_of_run(RankLost("rank 1 of 3 is gone"), interrupt, None, None, lambda: None)
        assert code == (143 if alive else 70) == end_of_follower(RankLost("rank 1 is gone"), interrupt, 2, None)
        said = capfd.readouterr().err
        assert said == f"rlcore train: {'stopped, and' if alive else 'error:'} rank 1 of 3 is gone\n"


def on_gpu(mode: str) -> tuple[int, bool, float]:
    device = torch.device(f"cuda:{os.environ['RANK']}")
    torch.cuda.set_device(device)
    join(device)
    from rlcore.envs import make_env
    from rlcore.ppo import PPO, PPOConfig

    env = make_env("CartPole", 64 // world().size, device, seed=world().seed(1))
    agent = PPO(env, PPOConfig(num_steps=16, num_epochs=2, num_minibatches=2, mode=mode), seed=1)  # type: ignore[arg-type]
    rewards: list[float] = []
    learn(env, agent, 20, seed=1, on_report=lambda report: rewards.append(report.metrics["rollout/reward"]))
    captured = agent._update.graph is not None
    return checksum([part.value for part in optimizers_of(agent)]), captured, rewards[-1]


@pytest.mark.gpu
def test_on_a_gpu_the_sum_over_ranks_is_part_of_the_graph() -> None:
    ((graph, captured, reward),) = in_ranks(1, on_gpu, "graph")
    assert captured and reward == 1
    ((eager, captured, _),) = in_ranks(1, on_gpu, "eager")
    assert not captured and graph == eager


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_have_the_same_parameters_after_20_updates() -> None:
    (first, captured, _), (second, other, _) = in_ranks(2, on_gpu, "graph")
    assert captured and other and first == second


def judged(task: str, num_envs: int) -> tuple[list[float], list[float]] | None:
    """An evaluation of a policy, and of another of the run, by all ranks."""
    join(torch.device("cpu"))
    torch.manual_seed(3)
    config = TrainConfig(task=task, num_envs=4, eval_envs=num_envs, num_iterations=1)
    judges, first = judged_by(config, None, world())
    env = eval_env_of(config, judges, torch.device("cpu"))
    training: Any = SimpleNamespace(config=config, judges=judges, first_judged=first, eval_env=env, device=env.device)
    training.agent = PPO(env, PPOConfig(num_steps=4, num_minibatches=1), seed=1)
    training.interrupt, training.pulse = SimpleNamespace(signal=None), lambda t: None
    training.stage, training.lent = lambda: None, lambda progress: nullcontext()
    training.best = SimpleNamespace(with_weights=lambda weights: (training.agent.policy.load_state_dict(weights),
                                                                  training.agent.policy)[1])  # fmt: skip
    if world().main:
        result = measured(training, training.agent.policy, None)
        other = PPO(env, PPOConfig(num_steps=4, num_minibatches=1), seed=2).policy
        second = measured(training, other, None)
        all_measured()
        return result.returns.tolist(), second.returns.tolist()
    progress: Any = None
    measure_along(training, progress)
    return None


def test_an_evaluation_that_ranks_share_is_that_of_one_process() -> None:
    alone = judged("gym:Pendulum-v1", 5)
    first, other = in_ranks(2, judged, "gym:Pendulum-v1", 5)
    assert alone is not None and other is None
    assert len(first[0]) == 5 and first[0] == pytest.approx(alone[0])
    assert first[1] == pytest.approx(alone[1]) != pytest.approx(alone[0])


def test_envs_of_an_evaluation_are_shared_by_number() -> None:
    config = TrainConfig(task="CartPole", eval_envs=8)
    assert [judged_by(config, None, World(rank, 3)) for rank in range(3)] == [(3, 0), (3, 3), (2, 6)]
    assert judged_by(config, None, World()) == (8, 0)
    tasks = TrainConfig(task="tasks:CartPole+Pendulum+Memory", eval_envs=8)  # one of each at least
    assert [judged_by(tasks, None, World(rank, 3)) for rank in range(3)] == [(8, 0), (0, 0), (0, 0)]
    assert [judged_by(tasks, 4, World(rank, 3)) for rank in range(3)] == [(4, 0), (4, 4), (4, 8)]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("--gpus 2", "--gpus is 2, and PyTorch sees no GPUs here; give --processes 2 --device cpu"),
        ("--processes 2 --device cuda --seed 1",
         "--processes is 2 with --device cuda, and PyTorch sees no GPUs here; give --device cpu"),
    ],
)  # fmt: skip
def test_gpus_that_are_missing_are_told_as_they_were_asked_for(
    monkeypatch: pytest.MonkeyPatch, words: str, error: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UsageError, match=f"^{re.escape(error)}$"):
        start(*processes_in(words.split()))
