"""An algorithm of one's own, in one file with one record, through every command; ``examples/a2c.py`` is the example."""

from __future__ import annotations

import builtins
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rlcore import EnvSpec, PPOConfig, user_code
from rlcore.checkpoint import load_checkpoint
from rlcore.config import ConfigError
from rlcore.policies import build_policy
from rlcore.train.algorithms import ALGORITHMS, find, written_as
from rlcore.train.cli import main

EXAMPLE = Path(__file__).parent.parent / "examples" / "a2c.py"
SMALL = ["--task", "CartPole", "--num-envs", "4", "--eval-envs", "4"]
SMALL += ["--agent.actor.hidden-dims", "8", "--agent.critic.hidden-dims", "8"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The present folder, with the algorithm's file."""
    shutil.copy(EXAMPLE, tmp_path / "a2c.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    yield tmp_path
    sys.modules.pop("a2c", None)
    user_code._files.clear()


def run_in(folder: Path) -> Path:
    (run,) = folder.glob("runs/CartPole/a2c/*")
    return run


def test_every_command_takes_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--algo", "a2c", *SMALL, "--num-iterations", "3"]) == 0
    run = run_in(folder)
    said = capsys.readouterr().out
    assert "algorithm    a2c on cpu" in said and "parity" in said
    assert yaml.safe_load((run / "config.yaml").read_text())["algo"] == str(folder / "a2c.py")
    # From another folder, as its configuration names the file.
    (elsewhere := folder / "elsewhere").mkdir()
    monkeypatch.chdir(elsewhere)
    user_code._files.clear()
    assert main(["train", "--resume", str(run), "--num-iterations", "5"]) == 0
    assert main(["eval", "--run", str(run), "--num-envs", "4"]) == 0
    assert main(["export", "--run", str(run)]) == 0
    assert main(["eval", "--onnx", str(run / "export" / "policy.onnx"), "--num-envs", "4"]) == 0
    assert main(["play", "--run", str(run), "--steps", "3", "--output", "cart.gif"]) == 0
    assert main(["train", "--config", str(run / "config.yaml"), "--num-iterations", "1", "--no-export"]) == 0
    assert main(["train", "--resume", str(run), "--agent.gamma", "0.5"]) == 2
    assert json.loads((run / "eval.json").read_text())["onnx"]["parity"] <= 1e-5
    error = capsys.readouterr().err
    assert "agent.gamma is 0.99 in the run that is resumed and 0.5 here" in error
    assert "may begin with the weights of this one (--init-from)" in error


def test_it_goes_on_as_if_it_had_not_been_interrupted(folder: Path) -> None:
    for name, lengths in (("whole", [4]), ("halves", [2, 4])):
        words = ["train", "--algo", "a2c.py", *SMALL, "--name", name, "--no-export", "--num-iterations"]
        assert main([*words, str(lengths[0])]) == 0
        for more in lengths[1:]:
            (run,) = folder.glob(f"runs/*/*/*-{name}")
            assert main(["train", "--resume", str(run), "--num-iterations", str(more)]) == 0
    states = [load_checkpoint(path)["agent"] for path in sorted(folder.glob("runs/*/*/*/checkpoints/000004.pt"))]
    assert len(states) == 2
    for part in ("policy", "critic"):
        assert all(torch.equal(states[0][part][name], value) for name, value in states[1][part].items())


def test_help_and_config_show_its_settings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--algo", "a2c", "--task", "CartPole", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--agent.gae-lambda" in out and "Step size of RMSprop" in out and "clip_range" not in out
    assert main(["config", "--algo", "a2c.py:RECORD", "--task", "CartPole", "--num-envs", "7"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["num_envs"], config["num_iterations"], config["agent"]["num_steps"]) == (7, 1000, 16)
    assert "preset" not in config


@pytest.mark.parametrize(
    ("algo", "message"),
    [
        ("a2", "--algo: 'a2' is no algorithm; valid: ddpg, maml, ppo, sac, td3"),
        ("sca", "did you mean 'sac'?"),
        ("no.py", "there is no file '{folder}/no.py'; put it there, or run in the folder that has it"),
        ("a2c.py:A2C", "'A2C' in it is no rlcore.Algorithm; there is RECORD: write {folder}/a2c.py:NAME"),
        ("empty", "it has 0 records of rlcore.Algorithm; give it one"),
        ("no_such_module:RECORD", "there is no module 'no_such_module'; install it, run in the folder that has it"),
        ("python:json:dumps", "'dumps' in it is no rlcore.Algorithm; give it one"),
        (
            "broken.py",
            "cannot be imported: ModuleNotFoundError: No module named 'nothing'; correct line 2 of {folder}",
        ),
        (
            "cut.py",
            "cannot be imported: SyntaxError: '(' was never closed (cut.py, line 1); correct line 1 of {folder}",
        ),
    ],
)
def test_what_is_wrong_with_it_is_said_in_one_line(
    algo: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in (("empty", ""), ("broken", "\nimport nothing"), ("cut", "class A(")):
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    for words in (["train", *SMALL], ["config", "--task", "CartPole"]):
        assert main([*words, "--algo", algo]) == 2
        error = capsys.readouterr().err
        assert message.format(folder=folder) in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a/b"}, "name: 'a/b' is not possible; it is that of a folder, too"),
        ({"name": "td3"}, "its name is 'td3', which is taken; give it another"),
        ({"policy": None}, "policy: None is not possible; give what builds it"),
        (
            {"agent": lambda env, config: None},
            "it is called with (env, config, seed=..., num_iterations=...): got",
        ),
        ({"config": dict}, "config: <class 'dict'> is not possible; give a dataclass"),
        ({"agent": lambda *args, **words: object()}, "algorithm 'a2c': its object lacks num_steps, mode, "),
    ],
)
def test_a_record_that_cannot_be_run_is_refused_before_anything_is_trained(
    changes: dict[str, Any], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    added = "\nimport dataclasses\nRECORD = dataclasses.replace(RECORD, **CHANGES)\n"
    (folder / "other.py").write_text(EXAMPLE.read_text(encoding="utf-8") + added, encoding="utf-8")
    monkeypatch.setattr(builtins, "CHANGES", changes, raising=False)
    assert main(["train", "--algo", "other", *SMALL]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (folder / "runs").exists()


def test_what_the_example_does_not_read_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--algo", "a2c", "--task", "CartPole-Pixels", "--env.size", "16", "--num-envs", "2"]
    assert main(words) == 2
    assert "['policy'] is not possible; images and masks need ppo; name vectors" in capsys.readouterr().err
    spec = EnvSpec(task="", observation_sizes={"policy": 1, "mask": 2}, discrete=True, action_size=2)
    policy = build_policy(spec, PPOConfig(action_mask="mask"))
    with pytest.raises(ValueError, match="action_mask: 'mask' is not given; pass raw"):
        policy.distribution(torch.zeros(1, 1, 1))


def test_presets_are_refused_and_a_moved_file_is_found_in_the_present_folder(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--algo", "a2c", *SMALL, "--preset", "gpu"]) == 2
    assert (
        "--preset is 'gpu', and a2c has none; leave it out, or add --algo sac or --algo ddpg" in capsys.readouterr().err
    )
    assert find(str(folder / "gone" / "a2c.py")) is find("a2c.py")
    with pytest.raises(ConfigError, match="there is no file"):
        find(str(folder / "gone" / "b.py"))


def test_a_module_is_named_as_it_is_imported(folder: Path) -> None:
    assert written_as("python:a2c:RECORD") == "a2c:RECORD"
    assert find("a2c:RECORD").name == "a2c"
    assert [written_as(name) for name in ALGORITHMS] == list(ALGORITHMS)


@pytest.mark.slow
def test_it_learns_to_balance(folder: Path) -> None:
    """A random policy keeps the pole up for about 22 steps, and the longest episode has 500."""
    words = "train --algo a2c --task CartPole --num-iterations 250 --eval-interval 25 --eval-envs 50 --no-export"
    assert main([*words.split(), "--stop-at", "eval/return>=450"]) == 0
    assert json.loads((run_in(folder) / "eval.json").read_text())["return_mean"] > 400
