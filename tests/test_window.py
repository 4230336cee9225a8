"""A policy in a window, and commands from the keyboard: with windows that stand in for those of a display."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rlcore import NetworkConfig, PPOConfig
from rlcore.env import EnvFailed, spec_of
from rlcore.envs import make_env
from rlcore.envs.reach import Reach
from rlcore.envs.steer import HeldCommands, is_steerable
from rlcore.export import export_onnx
from rlcore.policies import build_policy
from rlcore.train import window as windows
from rlcore.train.cli import main
from rlcore.train.live import show
from rlcore.train.steering import Steering, keys_in, steering_of, terminal_keys

ROOT = Path(__file__).parent.parent
TWIST = {
    "name": "twist",
    "size": 3,
    "components": ["lin_vel_x", "lin_vel_y", "ang_vel_z"],
    "units": ["m/s", "m/s", "rad/s"],
    "ranges": {"lin_vel_x": [-0.5, 1.0], "lin_vel_y": [0.0, 0.0], "ang_vel_z": [-1.0, 1.0], "heading": [-3.0, 3.0]},
}


class Scripted:
    """A window in which keys are pressed before some steps, and which is closed at the end of the script."""

    def __init__(self, script: list[list[str]]) -> None:
        self.script, self.now = script, 0
        self.pace: float | None = None

    def run(self, step: Callable[[], bool], begin: Callable[[], None], pace: float | None) -> None:
        self.pace = pace
        while self.now < len(self.script) and step():
            self.now += 1

    def keys(self) -> list[str]:
        return self.script[self.now]


def still(env: Any) -> Any:
    actions = torch.zeros(env.num_envs, *env.action_space.shape)
    return SimpleNamespace(env=env, policy=lambda obs: actions.numpy(), stage=None, task=env.task)


# Keys. ---------------------------------------------------------------------------------------------------------------


def test_keys_change_a_command_within_its_ranges_and_rest_brings_it_back() -> None:
    steering = Steering(TWIST)
    assert steering.possible and steering.values[[0, 2]].tolist() == [0, 0] and steering.values[1].isnan()
    assert [steering.press(key) for key in ("w", "w", "d")] == [True, True, True]  # the second that can be steered: yaw
    assert steering.values[[0, 2]].tolist() == pytest.approx([0.3, -0.2])
    for _ in range(20):
        steering.press("s")
    assert steering.values[0] == -0.5
    assert not steering.press("q") and not steering.press("z")
    assert "lin_vel_x -0.50 m/s" in str(steering) and "a/d ang_vel_z" in steering.help
    steering.press("space")
    assert steering.values[[0, 2]].tolist() == [0, 0]


def test_a_range_without_zero_rests_in_its_middle() -> None:
    steering = Steering({"name": "x", "size": 1, "components": ["a"], "ranges": {"a": [0.2, 0.6]}})
    assert steering.values.tolist() == pytest.approx([0.4])


def test_what_a_terminal_sends_is_read_as_keys() -> None:
    assert keys_in("wA\x1b[A\x1b[D q\x1b") == ["w", "a", "up", "left", "space", "q", "escape"]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no terminals of this kind")
def test_keys_of_a_terminal_come_without_return_and_it_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    import pty
    import termios

    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "r") as file:
        monkeypatch.setattr(sys, "stdin", file)
        before = termios.tcgetattr(theirs)
        with terminal_keys() as pressed:
            assert pressed() == []
            os.write(ours, b"w\x1b[C")
            found: list[str] = []
            for _ in range(100):
                found += pressed()
                if len(found) == 2:
                    break
                time.sleep(0.01)
            assert found == ["w", "right"]
        assert termios.tcgetattr(theirs) == before
    os.close(ours)


def test_without_a_terminal_there_are_no_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "empty").open("w+") as file:
        monkeypatch.setattr(sys, "stdin", file)
        with terminal_keys() as pressed:
            assert pressed() == []


# Commands. -----------------------------------------------------------------------------------------------------------


def test_the_arm_follows_commands_by_hand() -> None:
    env = Reach(num_envs=2, seed=0)
    assert is_steerable(env) and steering_of(env) is not None
    env.reset(1)
    values = torch.tensor([0.31, 0.2, 0.26, *[float("nan")] * 4])
    turned = env.command[:, 3:].clone()
    for _ in range(130):  # longer than any command lasts
        env.steer("pose", values)
        obs = env.step(torch.zeros(2, 6)).obs["policy"]
    assert torch.allclose(obs[:, 13:16], values[:3].expand(2, 3)) and torch.equal(obs[:, 16:20], turned)
    with pytest.raises(ValueError, match="steer 'pose', of 7 numbers"):
        env.steer("twist", values)


class Term:
    """A command term: drawn anew at each update."""

    def __init__(self) -> None:
        self.command = torch.zeros(2, 3)
        self.updates = 0

    def compute(self, dt: float) -> None:
        self.updates += 1
        self.command[:] = torch.rand(2, 3)


def test_commands_of_a_manager_are_held_after_each_update_and_released() -> None:
    term = Term()
    manager = SimpleNamespace(active_terms=["twist"], get_term={"twist": term}.__getitem__)
    held = HeldCommands(SimpleNamespace(command_manager=manager))
    held.steer("twist", torch.tensor([0.5, float("nan"), -0.25]))
    assert term.command[:, [0, 2]].tolist() == [[0.5, -0.25]] * 2
    for _ in range(3):
        term.compute(0.02)
        assert term.command[:, [0, 2]].tolist() == [[0.5, -0.25]] * 2 and (term.command[:, 1] > 0).all()
    held.steer("twist", torch.zeros(3))
    term.compute(0.02)
    assert term.updates == 4 and not term.command.any()
    with pytest.raises(ValueError, match="no command 'go' to steer; there are twist"):
        held.steer("go", torch.zeros(3))
    with pytest.raises(ValueError, match=r"'twist' has the shape \[3\], and \[2\] came"):
        held.steer("twist", torch.zeros(2))
    held.release()
    term.compute(0.02)
    assert term.command.any()


def test_a_command_that_is_worked_out_when_it_is_read_is_refused() -> None:
    class Fixed:
        command = property(lambda self: torch.zeros(2, 3))

        def compute(self, dt: float) -> None:
            pass

    manager = SimpleNamespace(active_terms=["twist"], get_term=lambda name: Fixed())
    with pytest.raises(ValueError, match="cannot be steered"):
        HeldCommands(SimpleNamespace(command_manager=manager)).steer("twist", torch.ones(3))


# The loop. -----------------------------------------------------------------------------------------------------------


def test_a_policy_is_shown_and_steered_until_a_key_ends_it(capsys: pytest.CaptureFixture[str]) -> None:
    env = Reach(num_envs=1, seed=0)
    window = Scripted([["w"], [], ["d", "d"], [], ["x"], []])
    assert show(still(env), None, 0, True, window) == "4 steps, 0.1 s, 0 episodes ended"
    assert window.pace == pytest.approx(1 / 30)
    assert env.command[0, :2].tolist() == pytest.approx([0.42, -0.12])
    assert "w/s pos_x" in capsys.readouterr().out


@pytest.mark.parametrize(("steps", "expected"), [(3, "3 steps"), (None, "10 steps")])
def test_it_ends_with_the_steps_or_the_window(steps: int | None, expected: str) -> None:
    env: Any = make_env("Pendulum", 1, seed=0)
    window = Scripted([[]] * 10)
    assert expected in show(still(env), steps, 0, False, window)
    assert window.pace is None


def test_ctrl_c_ends_it_and_tells() -> None:
    class Interrupted(Scripted):
        def run(self, step: Callable[[], bool], begin: Callable[[], None], pace: float | None) -> None:
            step()
            raise KeyboardInterrupt

    assert "1 steps" in show(still(make_env("Pendulum", 1, seed=0)), None, 0, True, Interrupted([[]]))


def test_pace_is_kept_and_lost_time_not_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now, costs, at = [0.0], iter([0.0, 0.0, 0.5, 0.0, 0.0]), list[float]()
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))

    def step() -> bool:
        at.append(now[0])
        now[0] += next(costs)
        return len(at) < 5

    windows.paced(step, 0.1, lambda: True)
    assert at == pytest.approx([0.0, 0.1, 0.2, 0.7, 0.7])


# Windows. ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def headless(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")


def test_without_a_display_the_remedy_is_said(
    headless: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    env: Any = make_env("Pendulum", 1)
    spec = spec_of(env)
    policy = build_policy(spec, PPOConfig(actor=NetworkConfig(hidden_dims=(8,))))
    file = str(tmp_path / "policy.onnx")
    export_onnx(policy, spec, file, recording=None)
    assert main(["play", "--onnx", file, "--window"]) == 2
    assert main(["play", "--onnx", file, "--window", "--output", "x.gif"]) == 2
    assert main(["play", "--onnx", file, "--no-real-time"]) == 2
    errors = capsys.readouterr().err
    assert "there is no display" in errors and "xvfb-run" in errors and "leave --window out" in errors
    assert "leave --output out" in errors and "--no-real-time is for --window" in errors


class Tk(types.ModuleType):
    """tkinter in small; the window is closed after some updates."""

    TclError = type("TclError", (Exception,), {})
    lives: int = 5
    made: Any = None

    def Tk(self) -> Any:
        if self.lives < 0:
            raise self.TclError("couldn't connect to display")
        root = SimpleNamespace(updates=0, bound={}, destroyed=False)

        def update() -> None:
            root.updates += 1
            if root.updates == 2:
                root.bound["<Key>"](SimpleNamespace(keysym="W"))
            if root.updates == self.lives:
                root.bound["WM_DELETE_WINDOW"]()

        root.update, root.title = update, lambda text: None
        root.bind = root.protocol = root.bound.__setitem__
        root.destroy = lambda: setattr(root, "destroyed", True)
        Tk.made = root
        return root

    def Label(self, root: Any) -> Any:
        return SimpleNamespace(pack=lambda: None, configure=lambda **options: None)


def test_pictures_are_shown_until_the_window_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setitem(sys.modules, "tkinter", Tk("tkinter"))
    image = SimpleNamespace(PhotoImage=lambda picture, master: shown.append(np.asarray(picture)))
    monkeypatch.setitem(sys.modules, "PIL.ImageTk", image)
    import PIL

    monkeypatch.setattr(PIL, "ImageTk", image, raising=False)
    env = Reach(num_envs=1, seed=0)
    text = show(still(env), None, 0, False)
    assert text.startswith("4 steps") and Tk.made.destroyed
    assert shown and shown[0].shape[2] == 3 and env.command[0, 0] == pytest.approx(0.42)


def test_no_window_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    env = Reach(num_envs=1, seed=0)
    broken = Tk("tkinter")
    broken.lives = -1
    monkeypatch.setitem(sys.modules, "tkinter", broken)
    with pytest.raises(ValueError, match="couldn't connect to display; set DISPLAY"):
        windows.window_for(env, env.task)
    monkeypatch.setitem(sys.modules, "tkinter", None)
    with pytest.raises(ValueError, match="tkinter is not installed; install it"):
        windows.window_for(env, env.task)
    with pytest.raises(ValueError, match="has no render"):
        windows.window_for(SimpleNamespace(task="Blind"), "python:blind:Blind")  # type: ignore[arg-type]


def test_each_kind_of_task_has_its_window() -> None:
    env: Any = SimpleNamespace(task="x")
    assert isinstance(windows.window_for(env, "gym:CartPole-v1"), windows.OwnWindow)
    assert isinstance(windows.window_for(env, "Isaac-Ant-v0"), windows.OwnWindow)
    assert isinstance(windows.window_for(env, "Mjlab-Cartpole-Balance"), windows.MjlabWindow)
    assert windows.render_mode_of("gym:CartPole-v1") == "human" and windows.render_mode_of("Mjlab-X") is None


class Viewer:
    """mjlab's viewer in small: steps what it is given, and prints errors instead of raising them."""

    opens = True

    def __init__(self, env: Any, policy: Any, key_callback: Any) -> None:
        self.env, self.key_callback = env, key_callback
        self.viewer: Any = None

    def is_running(self) -> bool:
        return True

    def run(self) -> None:
        if not self.opens:
            raise RuntimeError("could not create window")
        self.viewer = object()
        self.key_callback(265)
        self.key_callback(87)
        self.env.reset()
        while self.is_running():
            with contextlib.suppress(Exception):
                self.env.step(self.env.get_observations())


@pytest.fixture
def viewer(monkeypatch: pytest.MonkeyPatch) -> type[Viewer]:
    module = types.ModuleType("mjlab.viewer")
    vars(module)["NativeMujocoViewer"] = Viewer
    monkeypatch.setitem(sys.modules, "mjlab", types.ModuleType("mjlab"))
    monkeypatch.setitem(sys.modules, "mjlab.viewer", module)
    monkeypatch.setattr(Viewer, "opens", True)
    return Viewer


def shown_by_mjlab(env: Any) -> Any:
    env.core = SimpleNamespace(cfg=SimpleNamespace(viewer=None), num_envs=1, device="cpu")
    return windows.MjlabWindow(env)


def test_mjlabs_viewer_steps_the_policy_and_its_arrows_steer(viewer: type[Viewer]) -> None:
    env = Reach(num_envs=1, seed=0)
    assert show(still(env), 3, 0, True, shown_by_mjlab(env)).startswith("3 steps")
    assert env.command[0, 0] == pytest.approx(0.42)  # up; the letter W is the viewer's own


def test_what_fails_in_mjlabs_viewer_is_told(viewer: type[Viewer]) -> None:
    env = Reach(num_envs=1, seed=0)

    def fails(action: Any) -> Any:
        raise EnvFailed("the motor is hot")

    env.step = fails  # type: ignore[method-assign]
    with pytest.raises(EnvFailed, match="the motor is hot"):
        show(still(env), 3, 0, True, shown_by_mjlab(env))
    viewer.opens = False
    with pytest.raises(ValueError, match="viewer cannot be opened: could not create window; it needs a display with"):
        show(still(Reach(num_envs=1, seed=0)), 3, 0, True, shown_by_mjlab(env))


@pytest.mark.skipif(shutil.which("xvfb-run") is None, reason="there is no Xvfb")
def test_a_real_window_opens_on_a_virtual_display(tmp_path: Path) -> None:
    pytest.importorskip("tkinter")
    env = Reach(num_envs=1, seed=0)
    spec = spec_of(env)
    policy = build_policy(spec, PPOConfig(actor=NetworkConfig(hidden_dims=(8,))))
    export_onnx(policy, spec, tmp_path / "policy.onnx", recording=None)
    words = ["play", "--onnx", str(tmp_path / "policy.onnx"), "--window", "--steps", "3", "--no-real-time"]
    command = ["xvfb-run", "-a", sys.executable, "-m", "rlcore", *words]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "Reach-UR5e-JointPos: 3 steps, 0.1 s" in done.stdout
