"""An env of one's own on the command line: python:MODULE:CLASS."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlcore.envs import make_env
from rlcore.envs.launch import simulator_of
from rlcore.train.cli import main

DRIFT = '''
import torch
from gymnasium import spaces
from rlcore import Step

LOADED = []

class Drift:
    """Keep a drifting point near zero.

    Args:
        wind: how fast it drifts.
    """

    def __init__(self, num_envs, wind: float = 0.02):
        self.num_envs, self.device, self.max_episode_length, self.wind = num_envs, torch.device("cpu"), 20, wind
        self.observation_spaces = {"policy": spaces.Box(-10, 10, (1,))}
        self.action_space = spaces.Box(-1, 1, (1,))

    def reset(self, seed=None):
        self.x, self.t = torch.randn(self.num_envs, 1), 0
        return {"policy": self.x}

    def step(self, action):
        self.x, self.t = self.x + 0.1 * action + self.wind, self.t + 1
        reward, last = -self.x.squeeze(1).abs(), {"policy": self.x}
        truncated = torch.full((self.num_envs,), self.t == 20)
        obs = self.reset() if self.t == 20 else last
        return Step(obs, reward, torch.zeros_like(truncated), truncated, last, {})

    def close(self):
        pass

class Sized(Drift):
    """Saves itself, has an observation and an action of a size and range of choice, and may crash."""

    def __init__(self, num_envs, size: int = 1, high: float = 1.0, crash_at: int = 0):
        super().__init__(num_envs)
        self.size, self.crash_at, self.steps = size, crash_at, 0
        self.observation_spaces = {"policy": spaces.Box(-10, 10, (size,))}
        self.action_space = spaces.Box(-high, high, (1,))

    def reset(self, seed=None):
        self.x, self.t = torch.randn(self.num_envs, 1), 0
        return {"policy": self.x.expand(-1, self.size)}

    def step(self, action):
        self.steps += 1
        if self.steps == self.crash_at:
            raise RuntimeError("the gripper diverged")
        step = super().step(action)
        wide = self.x.expand(-1, self.size)
        return Step({"policy": wide}, *step[1:4], {"policy": wide}, {})

    def state_dict(self):
        return {"x": self.x, "t": self.t}

    def load_state_dict(self, state):
        self.x, self.t = state["x"], state["t"]

class Elsewhere(Drift):
    def __init__(self, num_envs, device=None):
        super().__init__(num_envs)
        self.device = torch.device("meta")

class One(Drift):
    def __init__(self):
        super().__init__(1)

class Careless(Drift):
    def __init__(self, num_envs):
        raise RuntimeError("a mistake of its author's")

def step(action):
    LOADED.append(action)

def forgetful(num_envs):
    Drift(num_envs)
'''


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the env's file, which is the present one."""
    (tmp_path / "drift_of_mine.py").write_text(DRIFT, encoding="utf-8")
    (tmp_path / "needs_more.py").write_text("import no_such_library_of_mine\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    yield tmp_path
    sys.modules.pop("drift_of_mine", None)


@pytest.mark.parametrize("algo", ["ppo", "sac"])
def test_it_is_trained_measured_resumed_and_exported(algo: str, folder: Path) -> None:
    task = ["--task", "python:drift_of_mine:Drift", "--env.wind", "0.05"]
    small = ["--num-envs", "4", "--eval-envs", "4", "--num-iterations", "3", "--agent.actor.hidden-dims", "8"]
    assert main(["train", "--algo", algo, *task, *small]) == 0
    (run,) = folder.glob("runs/*/*/*")
    assert "wind: 0.05" in (run / "config.yaml").read_text()
    assert main(["train", "--resume", str(run), "--num-iterations", "5"]) == 0
    assert main(["eval", "--run", str(run), "--num-envs", "4"]) == 0
    assert main(["eval", "--onnx", str(run / "export" / "policy.onnx"), "--num-envs", "4"]) == 0


@pytest.mark.parametrize("algo", ["ppo", "sac"])
def test_a_run_goes_on_with_options_of_the_env_corrected(
    algo: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--task python:drift_of_mine:Sized --num-envs 4 --eval-envs 4 --num-iterations 3 --no-export"
    words += " --agent.actor.hidden-dims 8 --agent.num-steps 4 --env.crash_at 10"
    assert main(["train", "--algo", algo, *words.split()]) == 70
    (run,) = folder.glob("runs/*/*/*")
    capsys.readouterr()
    resume = ["train", "--resume", str(run)]
    for more, told in (
        (["--env.size", "2"], "env.size cannot change here: observation_sizes of the env is {'policy': 2}"),
        (["--env.high", "2"], "env.high cannot change here: action_low of the env is [-2.0]"),
        (["--env.crash_at", "0", "--seed", "5"], "seed is 1 in the run that is resumed and 5 here"),
    ):
        assert main([*resume, *more]) == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1
    assert main([*resume, "--env.crash_at", "0"]) == 0
    said = capsys.readouterr().out
    assert "note         env.crash_at is 0 from here on, and was 10\n" in said
    assert "episodes in flight start anew" in said
    assert "crash_at: 0" in (run / "config.yaml").read_text()
    assert main([*resume, "--num-iterations", "4"]) == 0
    assert "env.crash_at" not in capsys.readouterr().out


def test_help_shows_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--task", "python:drift_of_mine:Drift", "--help"]) == 0
    out = capsys.readouterr().out
    assert "wind" in out and "how fast it drifts. (default: 0.02)" in out


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("python:", r"lacks a part; write python:<module>:<class>"),
        ("python:drift_of_mine", r"lacks a part"),
        ("python:no_such_file:Drift", "there is no module 'no_such_file'; install it, run in the folder that has it"),
        ("python:drift_of_mine.x:Drift", "there is no module 'drift_of_mine.x'"),
        ("python:drift_of_mine:Drifty", "'Drifty' in drift_of_mine is no class of a vector env; there is Drift, "),
        ("python:drift_of_mine:step", "'step' in drift_of_mine is no class of a vector env"),
        ("python:subprocess:Popen", "is no class of a vector env; rlcore.env.VecEnv tells"),
        ("python:drift_of_mine:forgetful", "it returned NoneType; let it return a vector env"),
        ("python:drift_of_mine:One", "it has no argument num_envs"),
        (
            "python:drift_of_mine:Elsewhere",
            "it is on 'meta' in place of 'cpu'; let it heed its argument device, or give --device meta",
        ),
    ],
)
def test_what_is_wrong_with_it_is_said_in_one_line(task: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=message):
        make_env(task, 2)
    assert main(["train", "--task", task]) == 2
    assert "Traceback" not in capsys.readouterr().err
    drift = sys.modules.get("drift_of_mine")
    assert drift is None or drift.LOADED == []  # a function of something else is not called


def test_an_option_that_it_lacks_is_named() -> None:
    with pytest.raises(ValueError, match="unknown option 'wnd': did you mean wind"):
        make_env("python:drift_of_mine:Drift", 2, wnd=1.0)


@pytest.mark.parametrize("value", ["strong", True, [1.0]])
def test_what_is_no_number_is_refused_where_the_constructor_wants_one(value: object) -> None:
    with pytest.raises(ValueError, match=r"Drift: option wind is .*; give a number"):
        make_env("python:drift_of_mine:Drift", 2, wind=value)
    make_env("python:drift_of_mine:Drift", 2, wind=1).close()  # a whole number is one


@pytest.mark.parametrize(("task", "error"), [("drift_of_mine:Careless", RuntimeError), ("needs_more:A", ImportError)])
def test_mistakes_inside_it_keep_their_traceback(task: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        make_env(f"python:{task}", 2)


def test_it_needs_no_simulator() -> None:
    assert simulator_of("python:drift_of_mine:Drift") == "builtin"


def test_a_file_is_named_by_its_path_as_well(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.py").write_text(DRIFT)
    env = make_env(f"python:{tmp_path / 'elsewhere.py'}:Drift", 3, wind=0.5)
    assert env.reset()["policy"].shape == (3, 1)
    with pytest.raises(ValueError, match=r"there is no file 'nowhere\.py'; put it there"):
        make_env("python:nowhere.py:Drift", 3)
