"""How many CPU threads a run takes, and that nothing else changes PyTorch's number."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from rlcore import PPO, PPOConfig
from rlcore.config import ConfigError
from rlcore.encoders import CNN, CNNConfig
from rlcore.envs import make_env
from rlcore.train import threads
from rlcore.train.cli import main
from rlcore.train.config import TrainConfig


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine of four cores, and the number of threads as it was afterwards."""
    monkeypatch.setattr(threads, "usable_cores", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("rows", "width", "number"), [(256, 64, 1), (256, 256, 1), (2048, 256, 4), (10**6, 2048, 4)])
def test_small_work_has_one_thread_and_large_work_the_cores(rows: int, width: int, number: int) -> None:
    network = nn.Sequential(nn.Linear(20, width), nn.Linear(width, width), nn.Linear(width, 6))
    assert threads.threads_for(rows, network, cores=4) == number


def test_the_kernel_of_a_convolution_counts_at_every_place() -> None:
    """4 places of 8 by 12 weights each: as much as a linear layer of 4 times as many."""
    cnn = CNN((3, 5, 5), CNNConfig(channels=(8,), kernel_sizes=(2,), strides=(3,)))
    rows = threads.PER_THREAD // (4 * 8 * 12)
    assert [threads.threads_for(number, cnn, cores=4) for number in (rows, 2 * rows + 2)] == [1, 2]


def test_cores_are_those_of_a_containers_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    everything = threads.usable_cores()
    monkeypatch.setattr(threads, "_QUOTA", tmp_path / "cpu.max")
    for text, number in (("100000 100000", 1), ("50000 100000", 1), ("max 100000", None)):
        (tmp_path / "cpu.max").write_text(text)
        assert threads.usable_cores() == (number or everything)


def test_the_users_number_and_omp_num_threads_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    large, cpu = nn.Linear(2048, 2048), torch.device("cpu")
    assert threads.use_threads(2, 10**5, large, cpu) == ["CPU threads: 2 of 4, from --threads"]
    assert torch.get_num_threads() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads.use_threads(None, 10**5, large, cpu) == ["CPU threads: 2, from OMP_NUM_THREADS"]
    assert threads.use_threads(None, 10**5, large, torch.device("cuda")) == []
    assert torch.get_num_threads() == 2


def test_train_and_eval_choose_say_and_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(3)
    words = "train --task CartPole --num-envs 8 --num-iterations 1 --eval-envs 2 --no-export --device cpu --runs-dir"
    assert main([*words.split(), str(tmp_path)]) == 0
    said = r"CPU threads: 1 of 4, for \d+ samples at a time; --threads N sets another number"
    assert re.search(said, capsys.readouterr().out)
    assert torch.get_num_threads() == 1
    (run,) = (tmp_path / "CartPole" / "ppo").iterdir()
    assert main(["eval", "--run", str(run), "--num-envs", "2", "--threads", "2", "--device", "cpu"]) == 0
    assert "CPU threads: 2 of 4, from --threads" in capsys.readouterr().out
    assert torch.get_num_threads() == 2


def test_learning_from_python_leaves_the_number_alone() -> None:
    torch.set_num_threads(3)
    PPO(make_env("CartPole", 8), PPOConfig(num_steps=4, num_minibatches=1), seed=0).learn(1)
    assert torch.get_num_threads() == 3


def test_an_impossible_number_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"threads: 0 .*give 1 to 1024"):
        TrainConfig(task="CartPole", threads=0)
