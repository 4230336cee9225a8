"""Show what a policy does: frames of one env as an animation."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlcore.agent import Policy
from rlcore.env import Renderable, VecEnv, is_renderable, name_of
from rlcore.env_check import StepCheck, check_obs
from rlcore.envs.launch import PYTHON_PREFIX, simulator_of
from rlcore.stage import Stage, reset_at
from rlcore.train.evaluate import ActionFunction, Controller
from rlcore.types import begins

Frame = NDArray[np.uint8]

FPS = 15.0
"""Frames a second at most; a simulation that is faster shows every n-th step."""


BACKENDS = ("egl", "osmesa")
"""What MuJoCo draws with where there is no display, best first."""

_PROBE = "import mujoco; mujoco.GLContext(64, 64).make_current()"


def find_renderer(task: str) -> None:
    """Choose what MuJoCo draws with, unless there is a display or ``MUJOCO_GL`` says it.

    Each is tried in a process of its own: the first import of MuJoCo settles it for a whole process.

    Args:
        task: nothing is done for those that do not use MuJoCo, as far as names tell.

    Raises:
        ValueError: the task needs MuJoCo, and nothing can draw.
    """
    needs = _uses_mujoco(task)
    settled = any(os.environ.get(name) for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"))
    if needs is False or settled or sys.platform != "linux" or importlib.util.find_spec("mujoco") is None:
        return
    for backend in BACKENDS:
        command, own = [sys.executable, "-c", _PROBE], os.environ | {"MUJOCO_GL": backend}
        with contextlib.suppress(subprocess.TimeoutExpired):
            if subprocess.run(command, env=own, capture_output=True, timeout=60, check=False).returncode == 0:
                os.environ["MUJOCO_GL"] = backend
                return
    if needs:
        raise ValueError(
            f"{task}: there is no display, and MuJoCo can draw with neither EGL nor OSMesa; install one of them "
            "(libegl1 and a driver, or libosmesa6) and set MUJOCO_GL=egl or MUJOCO_GL=osmesa"
        )


def _uses_mujoco(task: str) -> bool | None:
    """Whether a task runs on MuJoCo; None where its name does not tell, as of an env of one's own."""
    simulator = simulator_of(task)
    if simulator != "gymnasium":
        return True if simulator == "mjlab" else (None if task.startswith(PYTHON_PREFIX) else False)
    from gymnasium.envs.registration import registry

    spec = registry.get(task.removeprefix("gym:").rpartition(":")[2])
    place = spec.entry_point if spec is not None and isinstance(spec.entry_point, str) else ""
    if place.startswith("gymnasium.envs."):
        return place.startswith("gymnasium.envs.mujoco")
    return None


def check_output(path: Path) -> None:
    """Refuse what ``write_animation`` could not write, before anything is simulated.

    Raises:
        ValueError: another ending than .gif and .mp4, or no ffmpeg for the latter.
    """
    if path.suffix.lower() not in (".gif", ".mp4"):
        raise ValueError(f"output is '{path}'; give a name that ends in .gif or .mp4")
    if path.suffix.lower() == ".mp4" and shutil.which("ffmpeg") is None:
        raise ValueError(f"output is '{path}' and MP4 needs ffmpeg, which is not on PATH; install it or give a .gif")


def frames(
    env: VecEnv,
    policy: Policy | ActionFunction,
    steps: int,
    seed: int,
    control_dt: float,
    stage: Stage | None = None,
    takeovers: list[int] | None = None,
    guesses: list[bool] | None = None,
) -> Iterator[Frame]:
    """Run the policy and draw env 0, at most ``FPS`` times a simulated second.

    A frame has a red border where the policy's gate acts in a step from it to the next frame.

    Args:
        env: what to run it in; it is reset here.
        policy: a policy module or an exported file.
        steps: control steps to run.
        seed: of the episodes.
        control_dt: seconds of a control step.
        stage: where the env's curricula stand at the beginning; None is wherever they are.
        takeovers: receives the steps in which the gate acts in env 0; None where nobody asks.
        guesses: receives of each step whether a policy that infers its task is right in env 0; None likewise.

    Yields:
        uint8 ``[H, W, 3]``.

    Raises:
        ValueError: the env cannot draw itself, or returns something of a wrong type or shape.
    """
    if not is_renderable(env):
        raise ValueError(f"{name_of(env)} has no render(); it cannot be shown")
    controller = Controller(policy, env)
    obs, check = reset_at(env, stage, seed), StepCheck(env)
    check_obs(env, obs, "reset")
    every = stride(control_dt)
    for first in range(0, steps, every):
        picture, acted = _drawn(env), False
        for i in range(first, min(first + every, steps)):
            step = env.step(controller.act(obs))
            check(step)
            if controller.guessed is not None and guesses is not None:
                guesses.append(bool(controller.guessed[0]))
            if controller.acted is not None and bool(controller.acted.flatten()[0]):
                acted = True
                if takeovers is not None:
                    takeovers.append(i)
            controller.forget(begins(step))
            obs = step.obs
        yield _bordered(picture) if acted else picture


def _bordered(picture: Frame) -> Frame:
    """A copy with a red border, a fortieth of its height wide."""
    width = max(2, len(picture) // 40)
    marked = np.empty_like(picture)
    marked[:] = (214, 39, 40)
    marked[width:-width, width:-width] = picture[width:-width, width:-width]
    return marked


def _drawn(env: Renderable) -> Frame:
    try:
        return env.render()
    except ValueError:
        raise
    except Exception as error:  # of a graphics library, in words of its own
        hint = "; set MUJOCO_GL=egl or MUJOCO_GL=osmesa" if "mujoco" in sys.modules else ""
        reason = " ".join(str(error).split())
        raise ValueError(f"{name_of(env)}: it cannot be drawn: {type(error).__name__}: {reason}{hint}") from error


def stride(control_dt: float) -> int:
    """Steps from one frame to the next."""
    return max(1, round(1 / (FPS * control_dt)))


def write_animation(path: Path, pictures: Iterable[Frame], seconds_per_frame: float) -> int:
    """Write frames ``[H, W, 3]`` as GIF or, with ffmpeg, as MP4.

    Returns:
        The number of frames.

    Raises:
        ValueError: ffmpeg failed; the message has its last line.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write = _write_mp4 if path.suffix.lower() == ".mp4" else _write_gif
    return write(path, iter(pictures), seconds_per_frame)


def _write_gif(path: Path, pictures: Iterator[Frame], seconds_per_frame: float) -> int:
    from PIL import Image

    # By coverage: the default method has no color left for thin lines.
    method = Image.Quantize.MAXCOVERAGE
    images: list[Any] = [Image.fromarray(picture).quantize(64, method) for picture in pictures]
    duration = max(20, round(seconds_per_frame * 100) * 10)  # ms; GIF counts in hundredths of a second
    images[0].save(path, save_all=True, append_images=images[1:], duration=duration, loop=0)
    return len(images)


def _write_mp4(path: Path, pictures: Iterator[Frame], seconds_per_frame: float) -> int:
    first = next(pictures)
    height, width = first.shape[0] // 2 * 2, first.shape[1] // 2 * 2  # yuv420p needs even sizes
    command = ["ffmpeg", "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    command += ["-r", f"{1 / seconds_per_frame:.3f}", "-i", "-", "-pix_fmt", "yuv420p", str(path)]
    # Encoded in one piece at the end: a pipe to a process that died would hide what it had to say.
    stack = [np.ascontiguousarray(p[:height, :width]) for p in chain([first], pictures)]
    done = subprocess.run(command, input=b"".join(p.tobytes() for p in stack), capture_output=True, check=False)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise ValueError(f"ffmpeg could not write '{path}': {reason[-1]}; give a .gif")
    return len(stack)
