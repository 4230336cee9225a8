"""``rlcore doctor``: examine an env, and a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcore.train.arguments import Job, read
from rlcore.train.commands.common import check_counts, check_file, check_seed
from rlcore.train.commands.launching import launched, named_in
from rlcore.train.groups import flag_of

if TYPE_CHECKING:
    from rlcore.train.config import TrainConfig
    from rlcore.train.doctor.findings import Examination


@dataclass(frozen=True, kw_only=True)
class DoctorArguments:
    """Examine an env before training, and a run after it: what is wrong, why it matters, and what to change.

    Exit codes: 0 healthy, 1 there is a finding of severity error or warning (or, with --strict, any finding), 2 wrong
    usage. Nothing is written but the file that --json names.
    """

    task: str | None = None
    """Env to examine, as rlcore train takes it; with --run, under the settings and options of that run. None: the one
    that --config names, if any."""
    run: Path | None = None
    """Run folder to examine; alone, without its env."""
    algo: str | None = None
    """Algorithm under whose settings the env is examined; None: ppo, or the file's."""
    preset: str | None = None
    """Preset of the algorithm."""
    config: Path | None = None
    """YAML file of settings, as rlcore train takes it."""
    num_envs: int | None = None
    """Copies of the task; None: as many as rlcore train would take."""
    seconds: float = 8.0
    """Time for playing the env; slow ones are played for fewer steps. The whole takes about three times that."""
    seed: int = 1
    """Seed of env and actions."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<index>."""
    json: Path | None = None
    """File for findings and figures."""
    strict: bool = False
    """Let notes count for the exit code, too."""


def doctor_command(words: Sequence[str]) -> Job:
    """Read the words of ``rlcore doctor``."""
    if named_in(words).keys() & {"task", "config"}:  # a run alone needs no simulator
        words = launched(words)
    given = read(words, DoctorArguments, "rlcore doctor", free="env")
    if given is None:
        return lambda: 0
    args, options = given
    check_counts(num_envs=args.num_envs)
    check_seed(args.seed)
    if args.config is not None:
        args = _completed(args, args.config)
    if args.task is None and args.run is None:
        raise ValueError("--task is missing; give one, such as --task CartPole, or --run RUN to examine a run")
    if args.task is None and (options or args.config is not None):
        raise ValueError("without --task no env is examined; add --task, or leave out --env and --config")
    _refuse_idle(args)
    if not args.seconds > 0:
        raise ValueError(f"--seconds is {args.seconds}; give more than 0")
    check_file("--json", args.json, "doctor.json")

    from rich.console import Console

    from rlcore.train.conclude import say, write_json
    from rlcore.train.ending import standard_output
    from rlcore.train.run import RunFolder

    run = None if args.run is None else RunFolder.open(args.run)
    config = None if args.task is None else _config(args, args.task, options, run)

    def job() -> int:
        console = Console(file=standard_output())
        parts: dict[str, Examination] = {}
        if config is not None:
            say(console, f"{config.task}, {config.algo}, seed {config.seed}")
            parts["env"] = _env(config, args.seconds, console)
            parts["env"].show(console)
        if run is not None:
            from rlcore.train.doctor.run import examine_run

            say(console, str(run.path))
            parts["run"] = examine_run(run.path)
            parts["run"].show(console)
        code = max(part.code(args.strict) for part in parts.values())
        if args.json is not None:
            about = {
                "task": None if config is None else config.task,
                "run": None if run is None else str(run.path),
                "code": code,
            }
            write_json(args.json, about | {name: part.as_dict() for name, part in parts.items()})
            say(console, f"written to {args.json}")
        return code

    return job


def _refuse_idle(args: DoctorArguments) -> None:
    """Refuse what would have no effect: flags of the env where none is examined, or of settings that a run has."""
    unlike = [f.name for f in fields(args) if getattr(args, f.name) != f.default]
    for name in ("algo", "preset", "num_envs", "seconds"):
        if args.task is None and name in unlike:
            raise ValueError(f"{flag_of(name)} is for the env, and without --task none is examined; leave it out")


def _completed(args: DoctorArguments, file: Path) -> DoctorArguments:
    """Take the task and the algorithm from a file of settings where no flag names them, as ``rlcore train`` does."""
    from rlcore.train.config import TrainConfig
    from rlcore.train.defaults import task_of
    from rlcore.train.many import run_settings

    algo = args.algo or str(run_settings(file).get("algo", TrainConfig.algo))
    return replace(args, task=args.task or task_of(file), algo=algo)


def _env(config: TrainConfig, seconds: float, console: Any) -> Examination:
    """Examine the env, with a line that says what is being done where there is a terminal."""
    from rlcore.train.doctor.env import examine_env

    if not console.is_terminal:
        return examine_env(config, seconds)
    with console.status("") as status:
        tell: Callable[[str], None] = status.update
        return examine_env(config, seconds, tell)


def _config(args: DoctorArguments, task: str, options: dict[str, Any], run: Any) -> TrainConfig:
    """Settings that the env is examined under: those of the run if it is of the task, else what training would take."""
    from rlcore.envs.launch import SIMULATORS, bare_name, simulator_of
    from rlcore.train.algorithms import algorithm, find
    from rlcore.train.config import TrainConfig, with_options
    from rlcore.train.defaults import check_preset, default_config

    base: TrainConfig | None = None if run is None else run.read_config()
    if base is not None and bare_name(base.task) == bare_name(task):
        for name in ("config", "algo", "preset"):
            if (value := getattr(args, name)) is not None:
                raise ValueError(f"--{name} is '{value}', and --run has settings of its own for {task}; leave one out")
    else:
        asked = args.algo or TrainConfig.algo
        algo, preset = algorithm(asked, args.preset)
        if preset is not None:
            check_preset(preset, find(algo))
        registered: dict[str, Any] = {}
        if simulator_of(task) in SIMULATORS:
            from rlcore.train.importers.registered import registered_config

            registered, _ = registered_config(task, args.num_envs, None, asked, options)
        base, _ = default_config(task, args.config, registered, algo, preset)
    number = base.num_envs if args.num_envs is None else args.num_envs
    env = with_options(base.env, options)
    return replace(base, task=task, num_envs=number, seed=args.seed, device=args.device, env=env)
