"""The ``rlcore`` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rlcore.train.arguments import Pair

USAGE = """\
usage: rlcore COMMAND ...

  train    train a policy:            rlcore train --task Reach-UR5e-JointPos
  eval     measure a trained policy:  rlcore eval --run RUN
  export   write a policy as ONNX:    rlcore export --run RUN
  play     show a policy as GIF/MP4:  rlcore play --run RUN
  tasks    list what can be trained:  rlcore tasks [FILTER]

rlcore COMMAND --help lists the settings of a command, rlcore --version tells the version.
Exit codes: 0 done, 1 trained but not exported because the file failed its check, 2 wrong usage,
130 or 143 interrupted by Ctrl-C or SIGTERM."""

Job = Callable[[], int]
"""What is left to do once everything the user gave has been checked."""

T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: words after ``rlcore``; None takes those of the process.

    Returns:
        The exit code. Whatever is wrong with the command line, a configuration or a file gives 2 and one line on
        stderr; ``RLCORE_DEBUG=1`` shows the traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if words[0] in ("-V", "--version"):
        from rlcore._version import __version__

        print(f"rlcore {__version__}")
        return 0
    name = words[0]
    if name not in COMMANDS:
        from difflib import get_close_matches

        close = get_close_matches(name.lower(), COMMANDS, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"commands are {', '.join(COMMANDS)}"
        return _fail("rlcore", ValueError(f"unknown command '{name}'; {hint}"))
    try:
        job = COMMANDS[name](words[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as head, has seen enough. Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError) as error:
        return _fail(f"rlcore {name}", error)
    except KeyboardInterrupt:
        return 130
    try:
        return job()
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def _fail(prog: str, error: Exception) -> int:
    if os.environ.get("RLCORE_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    print(f"{prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def _train(words: Sequence[str]) -> Job:
    from rlcore.config import ConfigError
    from rlcore.train import arguments
    from rlcore.train.config import TrainConfig, default_config, task_of

    @dataclass(frozen=True, kw_only=True)
    class TrainArguments(TrainConfig):
        """Train a policy, evaluate the best checkpoint and export it."""

        config: Path | None = None
        """YAML file over the defaults of the task; RUN/config.yaml repeats a run."""
        resume: Path | None = None
        """Run folder or checkpoint to go on from."""

    pairs = _pairs(words, TrainArguments, free="env")
    given = {key: values[0] for key, values in pairs if values}
    resumed: Path | None = None
    helping = _asks_help(words)
    if "resume" in given and not helping:
        from rlcore.train.training import resumed_config

        if "config" in given:
            raise ConfigError("--config cannot go with --resume: a resumed run keeps its configuration; leave one out")
        base, resumed = resumed_config(Path(given["resume"]))
    else:
        file = Path(given["config"]) if "config" in given else None
        task = given.get("task") or (task_of(file) if file is not None else None)
        if task is None and not helping:
            raise ConfigError("--task is missing; give one, such as --task CartPole (`rlcore tasks` lists them)")
        base, files = default_config(task or "TASK", file)
        about = f" Defaults from {', '.join(map(str, files))}." if files else ""
        if helping:
            text = (
                f"Train a policy, evaluate the best checkpoint and export it.{about} Settings are written "
                "--agent.gamma 0.98 or agent.gamma=0.98. Ctrl-C once stops after the iteration and writes a "
                "checkpoint (exit code 130, SIGTERM 143), twice stops at once."
            )
            shown = TrainArguments(**{f.name: getattr(base, f.name) for f in fields(TrainConfig)})
            arguments.print_help(TrainArguments, shown, "rlcore train", text)
            return lambda: 0
    options = {key.removeprefix("env."): arguments.free_value(key, v) for key, v in pairs if key.startswith("env.")}
    default = TrainArguments(**{f.name: getattr(base, f.name) for f in fields(TrainConfig)})
    settings = [(key, values) for key, values in pairs if not key.startswith("env.")]
    parsed = arguments.parse(TrainArguments, settings, default, "rlcore train")
    config = TrainConfig(**{f.name: getattr(parsed, f.name) for f in fields(TrainConfig)})
    config = replace(config, env=base.env | options)
    return _training(base, config, resumed)


def _training(base: Any, config: Any, resumed: Path | None) -> Job:
    from rich.console import Console

    from rlcore.train.training import Training, refuse_changes

    if resumed is not None:
        refuse_changes(base, config)
    training = Training(config, Console(), resumed_from=resumed)
    return training.start


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
    """Task for a file that does not name its own."""
    num_envs: int = 100
    """Copies of the task."""
    episodes: int | None = None
    """Episodes in all, rounded up to a multiple of num_envs; None: one for each env."""
    seed: int = 4_000_003
    """Seed of the episodes."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<index>."""
    output: Path | None = None
    """Where to write the figures; None: eval.json in the run folder, or beside the ONNX file."""


def _eval(words: Sequence[str]) -> Job:
    arguments = _arguments(words, EvalArguments, "rlcore eval", free="env")
    if arguments is None:
        return lambda: 0
    args, options = arguments
    _at_least(1, num_envs=args.num_envs, episodes=1 if args.episodes is None else args.episodes)

    from rich.console import Console

    from rlcore.train.conclude import evaluation_record, say, write_json
    from rlcore.train.evaluate import evaluate

    source = _source(args, options, args.num_envs)
    rounds = -(-(args.episodes or args.num_envs) // args.num_envs)

    def job() -> int:
        console = Console()
        result = evaluate(source.env, source.policy, args.seed, rounds=rounds)
        output = args.output or source.folder / "eval.json"
        write_json(output, evaluation_record(source.task, source.path, args.seed, result))
        say(console, f"{source.task}, {source.path}")
        say(console, result.summary())
        say(console, "intervals of 95%: Student's t for the mean return, Wilson's score for the success rate")
        say(console, f"written to {output}")
        return 0

    return job


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


def _export(words: Sequence[str]) -> Job:
    arguments = _arguments(words, ExportArguments, "rlcore export")
    if arguments is None:
        return lambda: 0
    args, _ = arguments

    from rlcore.train.conclude import export_checkpoint
    from rlcore.train.run import locate

    run, checkpoint = locate(_required_run(args.run), args.checkpoint)
    report = export_checkpoint(checkpoint, args.output or run.exported, args.dynamic_batch)
    print(f"parity    {report.parity}")
    print(f"exported  {report.path} ({report.size_bytes:,} bytes) from {checkpoint}")
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
    """Task for a file that does not name its own."""
    steps: int | None = None
    """Steps to show; None: one episode of full length, 500 steps at most."""
    seed: int = 0
    """Seed of the episode."""
    device: str = "cpu"
    """auto, cpu, cuda or cuda:<index>."""
    output: Path | None = None
    """A .gif, or with ffmpeg an .mp4; None: play.gif in the run folder, or beside the ONNX file."""


def _play(words: Sequence[str]) -> Job:
    arguments = _arguments(words, PlayArguments, "rlcore play", free="env")
    if arguments is None:
        return lambda: 0
    args, options = arguments
    _at_least(1, steps=1 if args.steps is None else args.steps)

    from rlcore.env import spec_of
    from rlcore.train import play

    if args.output is not None:
        play.check_output(args.output)
    source = _source(args, options, num_envs=1, render=True)
    output = args.output or source.folder / "play.gif"
    steps = args.steps or min(source.env.max_episode_length, 500)
    control_dt = float(spec_of(source.env).deployment.get("control_dt", 1 / play.FPS))
    pictures = play.frames(source.env, source.policy, steps, args.seed, control_dt)
    count = play.write_animation(output, pictures, control_dt * play.stride(control_dt))
    print(f"{source.task}: {steps} steps, {steps * control_dt:.1f} s, {count} frames")
    print(f"written to {output}")
    return lambda: 0


def _tasks(words: Sequence[str]) -> Job:
    if _asks_help(words):
        print("usage: rlcore tasks [FILTER]\n\nList what can be trained; FILTER is part of a name.")
        return lambda: 0
    if len(words) > 1 or (words and words[0].startswith("-")):
        raise ValueError(f"unexpected word '{words[-1]}'; write rlcore tasks, or rlcore tasks FILTER")
    from rlcore.train.tasks import print_tasks

    print_tasks(words[0] if words else "")
    return lambda: 0


@dataclass(frozen=True)
class _Source:
    """A policy to run, and the env to run it in."""

    task: str
    path: Path
    """The checkpoint or the exported file."""
    folder: Path
    """Where results go."""
    policy: Any
    env: Any


def _source(args: Any, options: dict[str, Any], num_envs: int, render: bool = False) -> _Source:
    if (args.run is None) == (args.onnx is None):
        raise ValueError("give either --run RUN or --onnx FILE")
    from rlcore.envs import GYM_PREFIX, make_env
    from rlcore.train.training import resolve_device

    device = resolve_device(args.device)
    if args.onnx is not None:
        from rlcore.export import OnnxPolicy

        path, folder = args.onnx, args.onnx.parent
        policy: Any = OnnxPolicy(path)
        task = args.task or policy.metadata.get("task")
        if task is None:
            raise ValueError(f"'{path}' does not name its task; give --task")
    else:
        from rlcore.train.conclude import restore_policy
        from rlcore.train.run import locate

        run, path = locate(args.run, args.checkpoint)
        policy, _, content = restore_policy(path, device)
        task, folder = content["config"]["task"], run.path
        if args.task not in (None, task):
            raise ValueError(f"--task is '{args.task}' and the run's is '{task}'; leave --task out")
        options = content["config"]["env"] | options
    if render and task.startswith(GYM_PREFIX):
        options = {"render_mode": "rgb_array"} | options
    env = make_env(task, num_envs, device, seed=args.seed, **options)
    return _Source(task, path, folder, policy, env)


def _required_run(run: Path | None) -> Path:
    if run is None:
        raise ValueError("--run is missing; give a run folder or a checkpoint")
    return run


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ValueError(f"--{name} is {value}; give {least} or more")


def _pairs(words: Sequence[str], cls: type[Any], free: str | None = None) -> list[Pair]:
    from rlcore.train import arguments

    return arguments.split_words([word for word in words if word not in ("-h", "--help")], cls, free=free)


def _arguments(
    words: Sequence[str], cls: type[T], prog: str, free: str | None = None
) -> tuple[T, dict[str, Any]] | None:
    """The arguments of a command and its task options; None when only help was asked for."""
    from rlcore.train import arguments

    if _asks_help(words):
        arguments.print_help(cls, None, prog, (cls.__doc__ or "").strip())
        return None
    pairs = _pairs(words, cls, free)
    options = {key.removeprefix("env."): arguments.free_value(key, v) for key, v in pairs if key.startswith("env.")}
    settings = [(key, values) for key, values in pairs if not key.startswith("env.")]
    return arguments.parse(cls, settings, None, prog), options


def _asks_help(words: Sequence[str]) -> bool:
    return "-h" in words or "--help" in words


COMMANDS: dict[str, Callable[[Sequence[str]], Job]] = {
    "train": _train,
    "eval": _eval,
    "export": _export,
    "play": _play,
    "tasks": _tasks,
}
