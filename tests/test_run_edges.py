"""What a run says and keeps where it is continued, measured again or stopped late."""

from __future__ import annotations

import errno
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from test_cli import train

from rlcore.checkpoint import load_checkpoint, save_checkpoint
from rlcore.envs import make_env
from rlcore.train import training
from rlcore.train.cli import main
from rlcore.train.continuation import resumed_config
from rlcore.train.reports.run import read_run


def test_measuring_a_run_again_keeps_the_figures_of_its_file(tmp_path: Path) -> None:
    run = train(tmp_path, "--num-iterations", "2")
    before = json.loads((run / "eval.json").read_text())
    assert main(["eval", "--run", str(run), "--num-envs", "2", "--seed", "5"]) == 0
    after = json.loads((run / "eval.json").read_text())
    assert (after["seed"], after["onnx"]) == (5, before["onnx"])
    own = tmp_path / "own.json"
    assert main(["eval", "--run", str(run), "--num-envs", "2", "--output", str(own)]) == 0
    assert "onnx" not in json.loads(own.read_text())
    (run / "eval.json").write_text("not JSON")
    assert main(["eval", "--run", str(run), "--num-envs", "2"]) == 0
    assert "onnx" not in json.loads((run / "eval.json").read_text())


def test_figures_of_an_exported_file_go_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path, "--num-iterations", "4", "--save-interval", "2")
    record, file = run / "eval.json", run / "export" / "policy.onnx"

    def kept() -> bool:
        return "onnx" in json.loads(record.read_text())

    before = record.read_bytes()
    other = str(tmp_path / "other.onnx")
    assert main(["export", "--run", str(run), "--checkpoint", "2", "--output", other]) == 0
    assert record.read_bytes() == before  # the run's own file is as it was
    assert main(["export", "--run", str(run), "--checkpoint", "2"]) == 0
    assert not kept() and "figures of another exported file" in capsys.readouterr().out
    assert json.loads(before).items() > json.loads(record.read_text()).items()
    # And where the file was changed by other means, or its figures do not say of what file they are.
    exported, first = file.read_bytes(), json.loads(before)
    unknown = {**first, "onnx": {name: value for name, value in first["onnx"].items() if name != "sha256"}}
    for content, figures in ((exported, first), (None, first), (exported, unknown), (exported, {**first, "onnx": 3})):
        record.write_text(json.dumps(figures))
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_bytes(content)
        assert main(["eval", "--run", str(run), "--num-envs", "2"]) == 0
        assert not kept() and "figures of another exported file" in capsys.readouterr().out


def test_a_resumed_run_of_gymnasium_begins_with_no_episode_that_it_has_played(tmp_path: Path) -> None:
    words = "--task gym:CartPole-v1 --num-envs 4 --num-iterations 2 --agent.num-steps 8 --eval-envs 2 --no-export"
    assert main(["train", *words.split(), "--eval-interval", "0", "--runs-dir", str(tmp_path)]) == 0
    (run,) = tmp_path.glob("gym_CartPole-v1/ppo/*")
    config, checkpoint = resumed_config(run)
    resumed = training.Training(replace(config, num_iterations=3), Console(quiet=True), checkpoint)
    assert resumed.run is not None and resumed.progress is not None
    resumed.run.unlock()
    first = make_env(config.task, 4, seed=config.seed).reset()["policy"]
    assert len(torch.cat([first, resumed.progress.obs["policy"]]).unique(dim=0)) == 8


def test_longer_run_says_that_a_falling_learning_rate_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--num-iterations", "2", "--no-export", "--agent.lr-schedule", "linear"]
    run = train(tmp_path, *words)
    assert "falls over" not in capsys.readouterr().out
    assert main(["train", "--resume", str(run), "--num-iterations", "2"]) == 0
    assert "falls over" not in capsys.readouterr().out
    assert main(["train", "--resume", str(run), "--num-iterations", "4"]) == 0
    assert "the learning rate falls over 4 iterations now, not 2" in capsys.readouterr().out
    words = ["--task", "Pendulum", "--algo", "sac", "--num-envs", "2", "--num-iterations", "1", "--eval-envs", "2"]
    words += ["--no-export", "--agent.target-std", "0.3", "--agent.target-std-end", "0.1"]
    assert main(["train", *words, "--runs-dir", str(tmp_path / "sac")]) == 0
    (falling,) = (path.parent for path in (tmp_path / "sac").rglob("config.yaml"))
    capsys.readouterr()
    assert main(["train", "--resume", str(falling), "--num-iterations", "2"]) == 0
    assert "the target deviation falls over 2 iterations now, not 1" in capsys.readouterr().out
    other = train(tmp_path / "adaptive", "--num-iterations", "1", "--no-export")
    assert main(["train", "--resume", str(other), "--num-iterations", "2"]) == 0
    assert "falls over" not in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_in_the_last_evaluation_says_how_to_go_on(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def conclude(*_: Any) -> int:
        os.kill(os.getpid(), number)
        raise AssertionError("the signal has to stop it")

    with monkeypatch.context() as patch:
        patch.setattr(training, "conclude", conclude)
        words = ["train", "--task", "CartPole", "--num-envs", "4", "--num-iterations", "1", "--eval-envs", "2"]
        assert main([*words, "--runs-dir", str(tmp_path)]) == 128 + number
    (run,) = tmp_path.glob("CartPole/ppo/*")
    assert f"rlcore train --resume {run}" in capsys.readouterr().out
    assert not (run / "eval.json").exists()
    assert main(["train", "--resume", str(run)]) == 0
    assert (run / "eval.json").is_file() and (run / "export" / "policy.onnx").is_file()
    (run / "robustness.json").write_text("{}")
    with monkeypatch.context() as patch:
        patch.setattr(training, "conclude", conclude)
        assert main(["train", "--resume", str(run), "--num-iterations", "2"]) == 128 + number
    # Its page shows no figures of the policy that the run had before it went on.
    assert not read_run(run).evaluation
    assert (run / "eval.json.old").is_file() and (run / "robustness.json.old").is_file()


@pytest.mark.parametrize(
    ("words", "place", "remedy"),
    [
        ("export --run", "rlcore.files.tempfile.TemporaryDirectory", "--output FILE writes elsewhere"),
        ("train --num-iterations 2 --resume", "rlcore.train.run.os.open", "copy the run to where it can"),
    ],
)
def test_a_folder_that_cannot_be_written_is_told_with_a_remedy(
    words: str,
    place: str,
    remedy: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = train(tmp_path, "--num-iterations", "1", "--no-export")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(place, refuse)
        assert main([*words.split(), str(run)]) == 2
    error = capsys.readouterr().err
    assert "cannot be written: Read-only file system; " in error and remedy in error and error.count("\n") == 1


def test_going_on_from_another_versions_checkpoint_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path, "--num-iterations", "1", "--no-export")
    checkpoint = run / "checkpoints" / "000001.pt"
    content = load_checkpoint(checkpoint)
    del content["agent"]["critic"]
    save_checkpoint(checkpoint, content)
    assert main(["train", "--resume", str(run), "--num-iterations", "2"]) == 2
    error = capsys.readouterr().err
    assert f"checkpoint '{checkpoint}' lacks 'critic': another version of rlcore wrote it" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [["train", "--task", "CartPole", "--seed", str(10**30)], ["eval", "--onnx", "x.onnx", "--seed", str(2**31)]],
)
def test_seeds_beyond_31_bits_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "seed" in error and "give a number from 0 to 2147483647" in error
    assert error.count("\n") == 1
