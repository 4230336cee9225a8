"""Pictures without a display."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import Any

import pytest

from rlcore.envs.null import Null
from rlcore.train import play


@pytest.fixture
def no_display(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine without a display, with MuJoCo, on which none of its backends works; those that are tried."""
    tried: list[str] = []
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    works(monkeypatch, tried, "none")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "mujoco" else found(name))
    return tried


def works(monkeypatch: pytest.MonkeyPatch, tried: list[str], backend: str) -> None:
    """Let one backend work."""

    def run(command: list[str], env: dict[str, str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        tried.append(env["MUJOCO_GL"])
        if tried[-1] != backend and backend == "osmesa":
            raise subprocess.TimeoutExpired(command, 60)  # as a driver that waits for a device
        return subprocess.CompletedProcess(command, int(tried[-1] != backend))

    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.parametrize(
    ("backend", "expected"), [("egl", ["egl"]), ("osmesa", ["egl", "osmesa"]), ("none", ["egl", "osmesa"])]
)
@pytest.mark.parametrize("task", ["Mjlab-Cartpole-Balance", "mjlab:mine:Task", "gym:HalfCheetah-v5"])
def test_a_renderer_is_found_without_a_display(
    task: str, backend: str, expected: list[str], no_display: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    works(monkeypatch, no_display, backend)
    if backend == "none":
        with pytest.raises(ValueError, match=f"{task}: there is no display, .* set MUJOCO_GL=egl or MUJOCO_GL=osmesa"):
            play.find_renderer(task)
    else:
        play.find_renderer(task)
        assert os.environ["MUJOCO_GL"] == backend
    assert no_display == expected
    monkeypatch.delenv("MUJOCO_GL", raising=False)


@pytest.mark.parametrize("name", ["MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"])
def test_what_is_set_is_left_alone(name: str, no_display: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, ":0")
    play.find_renderer("gym:HalfCheetah-v5")
    assert no_display == []


@pytest.mark.parametrize("task", ["CartPole", "gym:CartPole-v1", "gym:FrozenLake-v1", "Isaac-Ant-v0"])
def test_nothing_is_tried_for_tasks_that_need_no_mujoco(task: str, no_display: list[str]) -> None:
    play.find_renderer(task)
    assert no_display == []


def test_an_env_of_ones_own_may_do_without(no_display: list[str]) -> None:
    play.find_renderer("python:mine:Env")
    assert no_display == ["egl", "osmesa"]
    assert "MUJOCO_GL" not in os.environ


def test_what_cannot_be_drawn_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dark(Null):
        def render(self) -> Any:
            raise RuntimeError("no\ncontext")

    env = Dark(1, obs_size=3, action_size=2)
    monkeypatch.setitem(sys.modules, "mujoco", play)
    with pytest.raises(ValueError, match="Null: it cannot be drawn: RuntimeError: no context; set MUJOCO_GL=egl or"):
        list(play.frames(env, lambda obs: [[0.0, 0.0]], 1, 0, 0.1))
