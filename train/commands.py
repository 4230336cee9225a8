"""The commands beside ``train``. Each checks everything that the user gave, and returns what is left to do."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlcore.train.arguments import Job, asks_help, read
from rlcore.train.train_command import launched, with_library

READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of a folder in which nothing may be written, as of a run that somebody else has put aside."""


@dataclass(frozen=True, kw_only=True)
class EvalArguments:
    """Measure a policy: every env's first complete episode counts once."""

    run: Path | None = None
    """Run folder or checkpoint."""
    checkpoint: str = "best"
    """best, last, or an iteration."""
    onnx: Path | None = None
    """Exported file to measure instead, by itself."""
    task: str | None = None
    """Another task with the same observations and actions; or that of a file that does not name its own."""
    stage: Literal["trained", "start"] | None = None
    """Where the curricula of the env stand: where training stood last, or where they begin. None: trained, where it is
    known."""
    num_envs: int = 100
    """Copies of the task."""
    episodes: int | None = None
    """Episodes in all, rounded up to a multiple of num_envs; None: one for each env."""
    seed: int = 4_000_003
    """Seed of the episodes."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<index>."""
    threads: int | None = None
    """CPU threads of PyTorch. None: by the size of the policy and num_envs, or what OMP_NUM_THREADS says."""
    output: Path | None = None
    """Where to write the figures; None: eval.json in the run folder, or beside the ONNX file."""


def eval_command(words: Sequence[str]) -> Job:
    """Read the words of ``rlcore eval``."""
    given = read(launched(words), EvalArguments, "rlcore eval", free="env")
    if given is None:
        return lambda: 0
    args, options = given
    _check_counts(num_envs=args.num_envs, episodes=args.episodes, threads=args.threads)
    _check_seed(args.seed)

    import torch
    from rich.console import Console
    from torch import nn

    from rlcore.train.conclude import DROPPED, evaluation_record, say, update_evaluation, write_json
    from rlcore.train.ending import standard_output
    from rlcore.train.evaluate import evaluate
    from rlcore.train.run import RunFolder
    from rlcore.train.source import policy_and_env
    from rlcore.train.threads import use_threads

    source = policy_and_env(args, options, args.num_envs)
    if isinstance(source.policy, nn.Module):
        source.notes += use_threads(args.threads, args.num_envs, source.policy, torch.device(source.env.device))
    rounds = -(-(args.episodes or args.num_envs) // args.num_envs)

    def job() -> int:
        console = Console(file=standard_output())
        result = evaluate(source.env, source.policy, args.seed, rounds=rounds, stage=source.stage)
        output = args.output or source.folder / "eval.json"
        record = evaluation_record(
            source.task, source.options, source.path, args.seed, result, source.stage, source.which
        )
        say(console, f"{source.task}, {source.path}")
        for line in source.notes:
            say(console, line)
        say(console, result.summary())
        wilson = "" if result.success is None else ", Wilson's score for the success rate"
        say(console, f"intervals of 95%: Student's t for the mean return{wilson}")
        try:
            if args.output or args.onnx:
                write_json(output, record)
            elif update_evaluation(RunFolder(source.folder), record):
                say(console, DROPPED)
        except OSError as error:
            if args.output or error.errno not in READ_ONLY:
                raise
            say(console, f"not written: {output}: {error.strerror}; --output FILE writes the figures elsewhere")
            return 0
        say(console, f"written to {output}")
        return 0

    return _closing(source.env, job)


@dataclass(frozen=True, kw_only=True)
class ExportArguments:
    """Write a trained policy as one self-contained ONNX file, checked against the policy; needs no simulator."""

    run: Path | None = None
    """Run folder or checkpoint."""
    checkpoint: str = "best"
    """best, last, or an iteration."""
    output: Path | None = None
    """File to write; None: export/policy.onnx in the run folder."""
    dynamic_batch: bool = False
    """Let the file take any number of observations at once instead of one."""


def export_command(words: Sequence[str]) -> Job:
    """Write the file that the words of ``rlcore export`` ask for."""
    given = read(words, ExportArguments, "rlcore export")
    if given is None:
        return lambda: 0
    args, _ = given

    from rlcore.export import ExportError
    from rlcore.train.conclude import DROPPED, drop_stale_figures, export_checkpoint
    from rlcore.train.run import locate

    run, checkpoint = locate(_required_run(args.run), args.checkpoint)
    if args.output is not None and args.output.is_dir():
        raise ValueError(f"--output is '{args.output}', which is a folder; name a file in it, such as policy.onnx")
    try:
        with _output_elsewhere(args.output, run.exported):
            report = export_checkpoint(checkpoint, args.output or run.exported, args.dynamic_batch)
    except ExportError as error:
        print(f"rlcore export: refused: {error}", file=sys.stderr)
        return lambda: 1
    print(f"parity    {report.parity}")
    for note in report.notes:
        print(f"note      {note}")
    print(f"exported  {report.path} ({report.size_bytes:,} bytes) from {checkpoint}")
    if drop_stale_figures(run):
        print(DROPPED)
    return lambda: 0


@dataclass(frozen=True, kw_only=True)
class PlayArguments:
    """Run a policy in one env and write what can be seen as an animation."""

    run: Path | None = None
    """Run folder or checkpoint."""
    checkpoint: str = "best"
    """best, last, or an iteration."""
    onnx: Path | None = None
    """Exported file to run instead, by itself."""
    task: str | None = None
    """Another task with the same observations and actions; or that of a file that does not name its own."""
    stage: Literal["trained", "start"] | None = None
    """Where the curricula of the env stand: where training stood last, or where they begin. None: trained, where it is
    known."""
    steps: int | None = None
    """Steps to show; None: one episode of full length, 500 steps at most."""
    seed: int = 0
    """Seed of the episode."""
    device: str = "cpu"
    """auto, cpu, cuda or cuda:<index>."""
    output: Path | None = None
    """A .gif, or with ffmpeg an .mp4; None: play.gif in the run folder, or beside the ONNX file."""


def play_command(words: Sequence[str]) -> Job:
    """Write the animation that the words of ``rlcore play`` ask for."""
    given = read(launched(words), PlayArguments, "rlcore play", free="env")
    if given is None:
        return lambda: 0
    args, options = given
    _check_counts(steps=args.steps)
    _check_seed(args.seed)

    from rlcore.env import spec_of
    from rlcore.train import play
    from rlcore.train.source import policy_and_env

    if args.output is not None:
        play.check_output(args.output)
    source = policy_and_env(args, options, num_envs=1, render=True)
    output = args.output or source.folder / "play.gif"
    steps = args.steps or min(source.env.max_episode_length, 500)
    with contextlib.closing(source.env):
        control_dt = float(spec_of(source.env).deployment.get("control_dt", 1 / play.FPS))
        pictures = play.frames(source.env, source.policy, steps, args.seed, control_dt, source.stage)
        with _output_elsewhere(args.output, output):
            count = play.write_animation(output, pictures, control_dt * play.stride(control_dt))
    print(f"{source.task}: {steps} steps, {steps * control_dt:.1f} s, {count} frames")
    print("".join(f"{line}\n" for line in source.notes), end="")
    print(f"written to {output}")
    return lambda: 0


def tasks_command(words: Sequence[str]) -> Job:
    """Print the tasks that the words of ``rlcore tasks`` ask for."""
    if asks_help(words):
        print("usage: rlcore tasks [FILTER]\n\nList what can be trained; FILTER is part of a name.")
        return lambda: 0
    if len(words) > 1 or (words and words[0].startswith("-")):
        raise ValueError(f"unexpected word '{words[-1]}'; write rlcore tasks, or rlcore tasks FILTER")
    part = words[0] if words else ""
    if part.lower().startswith("isaac"):
        launched(["--task", "Isaac-", "--headless"])
    from rlcore.train.tasks import print_tasks

    print_tasks(part)
    return lambda: 0


def config_command(words: Sequence[str]) -> Job:
    """Print the configuration that the words of ``rlcore config`` ask for."""
    words = launched(with_library(words))
    from rlcore.train.show_config import ConfigArguments, show_config

    given = read(words, ConfigArguments, "rlcore config", free="env")
    if given is None:
        return lambda: 0
    show_config(*given)
    return lambda: 0


@contextlib.contextmanager
def _output_elsewhere(given: Path | None, path: Path) -> Iterator[None]:
    """Name the way out where a run's own folder, that nobody asked for, cannot be written."""
    try:
        yield
    except OSError as error:
        if given is not None or error.errno not in READ_ONLY:
            raise
        raise ValueError(f"'{path}' cannot be written: {error.strerror}; --output FILE writes elsewhere") from error


def _closing(env: Any, job: Job) -> Job:
    """The job, after which its env is closed, however it ends."""

    def run() -> int:
        with contextlib.closing(env):
            return job()

    return run


def _check_seed(seed: int) -> None:
    from rlcore.train.config import LARGEST_SEED

    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"--seed is {seed}; give a number from 0 to {LARGEST_SEED}")


def _required_run(run: Path | None) -> Path:
    if run is None:
        raise ValueError("--run is missing; give a run folder or a checkpoint")
    return run


def _check_counts(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"--{name} is {count}; give 1 or more")
