"""A policy in a window, as it goes: the env's own, mjlab's viewer, or one that shows its pictures."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

from rlcore.env import VecEnv, is_renderable, name_of
from rlcore.envs.launch import simulator_of

FPS = 30.0
"""Pictures a second at most."""

_ARROWS = {265: "up", 264: "down", 263: "left", 262: "right"}  # GLFW's, which MuJoCo's viewer hands on


class Window(Protocol):
    """Where a policy is looked at."""

    def run(self, step: Callable[[], bool], begin: Callable[[], None], pace: float | None) -> None:
        """Step until the window is closed or ``step`` gives false.

        Args:
            step: one control step.
            begin: starts a new episode, which some windows offer.
            pace: seconds that a step takes on the wall; None is as fast as it goes.
        """
        ...

    def keys(self) -> list[str]:
        """Keys pressed in it since this was last called, by name."""
        ...


def check_display() -> None:
    """Refuse a machine on which no window can be opened.

    Raises:
        ValueError: there is no display.
    """
    if sys.platform == "linux" and not any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")):
        raise ValueError(
            "--window: there is no display (neither DISPLAY nor WAYLAND_DISPLAY is set); run it where there is one, "
            "such as with ssh -X or xvfb-run, or leave --window out: that writes an animation"
        )


def render_mode_of(task: str) -> str | None:
    """What an env of a task is to be made with, so that a window can show it."""
    return {"gymnasium": "human", "envpool": "rgb_array"}.get(simulator_of(task))


def window_for(env: VecEnv, task: str) -> Window:
    """The window for an env of a task that was made with ``render_mode_of``.

    Raises:
        ValueError: the env cannot be looked at, or what draws windows is missing.
    """
    kind = simulator_of(task)
    if kind == "mjlab":
        return MjlabWindow(env)
    if kind in ("gymnasium", "isaaclab"):
        return OwnWindow()
    if not is_renderable(env):
        raise ValueError(f"{name_of(env)} has no render(); it cannot be shown")
    return PictureWindow(env)


def paced(step: Callable[[], bool], pace: float | None, is_open: Callable[[], bool]) -> None:
    """Step until ``step`` gives false or something was closed, each step ``pace`` seconds after the one before."""
    due = time.perf_counter()
    while is_open() and step():
        if pace is not None:
            due = max(due + pace, time.perf_counter() - pace)  # what was lost in a slow step is not made up for
            time.sleep(max(0.0, due - time.perf_counter()))


class OwnWindow:
    """Of an env that draws itself as it steps: gymnasium's render mode ``human``, Isaac Sim without ``--headless``."""

    def run(self, step: Callable[[], bool], begin: Callable[[], None], pace: float | None) -> None:
        """See ``Window.run``."""
        paced(step, pace, lambda: True)

    def keys(self) -> list[str]:
        """None: the window belongs to the env."""
        return []


class PictureWindow:
    """Shows what ``render`` gives, with Python's own tkinter.

    Args:
        env: of which env 0 is shown.

    Raises:
        ValueError: tkinter is missing or cannot open a window.
    """

    def __init__(self, env: Any) -> None:
        try:
            tkinter: Any = importlib.import_module("tkinter")
        except ImportError as error:
            raise ValueError(
                "--window: Python's tkinter is not installed; install it (python3-tk on Debian), or leave --window "
                "out: that writes an animation"
            ) from error
        try:
            self._root = tkinter.Tk()
        except tkinter.TclError as error:
            raise ValueError(f"--window: {error}; set DISPLAY to one that there is, or leave --window out") from error
        self._env, self._keys, self._closed = env, list[str](), False
        self._root.title(name_of(env))
        self._label = tkinter.Label(self._root)
        self._label.pack()
        self._root.protocol("WM_DELETE_WINDOW", self._close)
        self._root.bind("<Key>", lambda event: self._keys.append(str(event.keysym).lower()))
        self._picture: Any = None

    def run(self, step: Callable[[], bool], begin: Callable[[], None], pace: float | None) -> None:
        """See ``Window.run``."""
        due = time.perf_counter()

        def drawn() -> bool:
            nonlocal due
            more = step()
            if time.perf_counter() >= due or not more:
                due = time.perf_counter() + 1 / FPS
                self._draw()
            self._root.update()
            return more

        try:
            self._draw()
            self._root.update()
            paced(drawn, pace, lambda: not self._closed)
        finally:
            self._root.destroy()

    def keys(self) -> list[str]:
        """Keys pressed in the window."""
        pressed, self._keys = self._keys, []
        return pressed

    def _draw(self) -> None:
        from PIL import Image, ImageTk

        self._picture = ImageTk.PhotoImage(Image.fromarray(self._env.render()), master=self._root)
        self._label.configure(image=self._picture)

    def _close(self) -> None:
        self._closed = True


class MjlabWindow:
    """mjlab's viewer for MuJoCo, with its keys for pause, speed and the like; its pace is that of the wall.

    Args:
        env: the adapter's.
    """

    def __init__(self, env: Any) -> None:
        self._env, self._keys = env, list[str]()
        self._error: Exception | None = None
        self._done = False

    def run(self, step: Callable[[], bool], begin: Callable[[], None], pace: float | None) -> None:
        """See ``Window.run``."""
        viewers: Any = importlib.import_module("mjlab.viewer")
        window = self

        class Viewer(viewers.NativeMujocoViewer):  # type: ignore[misc]
            def is_running(self) -> bool:
                return not window._done and bool(super().is_running())

        viewer = Viewer(_Shown(self._env.core, self._guarded(step), begin), lambda obs: obs, key_callback=self._press)
        try:
            viewer.run()
        except Exception as error:
            if self._error is None and viewer.viewer is None:
                reason = " ".join(str(error).split())
                raise ValueError(
                    f"--window: MuJoCo's viewer cannot be opened: {reason}; it needs a display with OpenGL, and "
                    "MUJOCO_GL unset or glfw; or leave --window out"
                ) from error
            raise
        if self._error is not None:
            raise self._error

    def keys(self) -> list[str]:
        """Arrows pressed in the window; its letters are the viewer's own."""
        pressed, self._keys = self._keys, []
        return pressed

    def _press(self, key: int) -> None:
        if key in _ARROWS:
            self._keys.append(_ARROWS[key])

    def _guarded(self, step: Callable[[], bool]) -> Callable[[], None]:
        """Keep what goes wrong: the viewer prints errors and goes on."""

        def run() -> None:
            try:
                self._done = not step()
            except Exception as error:
                self._error, self._done = error, True
                raise

        return run


class _Shown:
    """What mjlab's viewer steps in the place of the env: one control step of ours, policy and all."""

    def __init__(self, core: Any, step: Callable[[], None], begin: Callable[[], None]) -> None:
        self.unwrapped, self.cfg, self.num_envs, self.device = core, core.cfg, core.num_envs, core.device
        self._step, self._begin = step, begin

    def get_observations(self) -> None:
        """Nothing: the step has them."""

    def step(self, actions: Any) -> tuple[()]:
        """One control step."""
        self._step()
        return ()

    def reset(self) -> None:
        """Begin a new episode."""
        self._begin()

    def close(self) -> None:
        """Nothing: the env is closed by whoever made it."""
