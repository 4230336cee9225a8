"""``rlcore play``: show a policy."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlcore.train.arguments import Job, read
from rlcore.train.commands.common import check_counts, check_seed, output_elsewhere
from rlcore.train.commands.launching import launched


@dataclass(frozen=True, kw_only=True)
class PlayArguments:
    """Run a policy in one env, and write what can be seen as an animation or show it in a window."""

    run: Path | None = None
    """Run folder or checkpoint."""
    checkpoint: str = "best"
    """best, last, or an iteration."""
    onnx: Path | None = None
    """Exported file to run instead, by itself."""
    task: str | None = None
    """Another task with the same observations and actions; or that of a file that does not name its own."""
    given_task: bool = False
    """Tell a policy its task that would infer it (of a run; a file is exported so)."""
    stage: Literal["trained", "start", "end", "all"] | None = None
    """Where the curricula of the env stand: where training stood last, where they begin, with all envs at the hardest
    level (end), or evenly over all levels (all). None: trained, where it is known."""
    steps: int | None = None
    """Steps to show; None: one episode of full length, 500 steps at most, or until a window is closed."""
    seed: int = 0
    """Seed of the episode."""
    device: str = "cpu"
    """auto, cpu, cuda or cuda:<index>."""
    output: Path | None = None
    """A .gif, or with ffmpeg an .mp4; None: play.gif in the run folder, or beside the ONNX file."""
    window: bool = False
    """Show it in a window instead: gymnasium's own, mjlab's viewer, Isaac Sim's (without --headless), or its pictures.
    Where the task has commands the keyboard gives them, in the terminal: w/s, a/d, q/e, space to rest, x to end."""
    real_time: bool = True
    """In a window, let a second of the simulation take a second; --no-real-time is as fast as it goes."""


def play_command(words: Sequence[str]) -> Job:
    """Write the animation that the words of ``rlcore play`` ask for."""
    given = read(launched(words), PlayArguments, "rlcore play", free="env")
    if given is None:
        return lambda: 0
    args, options = given
    check_counts(steps=args.steps)
    check_seed(args.seed)

    if args.window:
        return _in_window(args, options)
    from rlcore.env import spec_of
    from rlcore.train import play
    from rlcore.train.source import policy_and_env

    if not args.real_time:
        raise ValueError("--no-real-time is for --window, which is missing; an animation has its own pace")
    if args.output is not None:
        play.check_output(args.output)
    source = policy_and_env(args, options, num_envs=1, render=True)
    output = args.output or source.folder / "play.gif"
    steps = args.steps or min(source.env.max_episode_length, 500)
    with contextlib.closing(source.env):
        control_dt = float(spec_of(source.env).deployment.get("control_dt", 1 / play.FPS))
        acted: list[int] = []
        guesses: list[bool] = []
        told = (source.stage, acted, guesses)
        pictures = play.frames(source.env, source.policy, steps, args.seed, control_dt, *told)
        with output_elsewhere(args.output, output):
            count = play.write_animation(output, pictures, control_dt * play.stride(control_dt))
    print(f"{source.task}: {steps} steps, {steps * control_dt:.1f} s, {count} frames")
    if acted:
        print(
            f"the gate acted in {len(acted)} of {steps} steps, first in step {acted[0] + 1}: frames with a red border"
        )
    if guesses:
        first = f", first in step {guesses.index(True) + 1}" if any(guesses) else ""
        print(f"it was right about the task in {sum(guesses)} of {steps} steps{first}")
    print("".join(f"{line}\n" for line in source.notes), end="")
    print(f"written to {output}")
    return lambda: 0


def _in_window(args: PlayArguments, options: dict[str, Any]) -> Job:
    """Show the policy as it goes."""
    from rlcore.train.live import show
    from rlcore.train.source import policy_and_env
    from rlcore.train.window import check_display

    if args.output is not None:
        raise ValueError("--window shows the policy and writes nothing; leave --output out, or --window")
    check_display()
    source = policy_and_env(args, options, num_envs=1, render="window")
    with contextlib.closing(source.env):
        print("".join(f"{line}\n" for line in source.notes), end="", flush=True)
        shown = show(source, args.steps, args.seed, args.real_time)
    print(f"{source.task}: {shown}")
    return lambda: 0
