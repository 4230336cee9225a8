"""``rlcore config``: what a task is trained with, and how another library's configuration translates."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml
from rich.console import Console

from rlcore.config import ConfigError, to_dict
from rlcore.env import spec_of
from rlcore.envs import make_env
from rlcore.envs.launch import SIMULATORS, fewest_envs, simulator_of
from rlcore.train.algorithms import NAMES, algorithm, find
from rlcore.train.config import TrainConfig, read_config
from rlcore.train.defaults import default_config, task_of
from rlcore.train.ending import standard_output
from rlcore.train.importers.account import show, tell
from rlcore.train.importers.convert import Conversion, convert_file, remedy_for
from rlcore.train.importers.registered import env_options, registered_config
from rlcore.train.many import run_settings


@dataclass(frozen=True, kw_only=True)
class ConfigArguments:
    """Print the configuration that a task is trained with, converted if it is another library's."""

    task: str | None = None
    """Task whose configuration to print; with a file of several sections, the one to convert."""
    algo: Annotated[str | None, tyro.conf.arg(metavar=NAMES)] = None
    """Learning algorithm that the task is trained with; td3 is DDPG with the preset td3, and FILE.py or module:NAME one
    of your own. None: ppo, or the file's."""
    preset: str | None = None
    """Preset of SAC or DDPG, classic, td3 (DDPG alone) or gpu; None: the one that the task is trained with."""
    config: Path | None = None
    """YAML file over the defaults of the task, as rlcore train takes it; it may name the task."""
    file: Path | None = None
    """Configuration file of rsl_rl, rl_games, skrl or SB3 to convert instead."""
    library: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Whose configuration to take, rsl_rl, rl_games, skrl or sb3; None: the first, or guessed."""
    skrl_version: str | None = None
    """Version of skrl that the file was written for, such as 1.4: before 2.1 the entropy of several actions was their
    mean; None: as the file's names tell."""
    num_envs: int | None = None
    """Copies of the task, on which the number of minibatches may depend; None: the task's own."""
    show: bool = False
    """Print what became of every key: kept, changed in meaning, dropped, filled in."""
    output: Path | None = None
    """File to write the YAML to; None: print it."""


def show_config(args: ConfigArguments, options: Mapping[str, Any] | None = None) -> None:
    """Print the configuration that the arguments ask for, or write it to a file, with the options of the env.

    Raises:
        ConfigError: neither task nor file, or what cannot be converted.
    """
    if args.config is not None:
        if args.file is not None:
            raise ConfigError(f"--config is '{args.config}', and --file '{args.file}' is converted; leave one out")
        file = args.config
        written = str(run_settings(file).get("algo", TrainConfig.algo))
        args = replace(args, task=args.task or task_of(file), algo=args.algo or written)
        if args.task is None:
            remedy = remedy_for(file) or "; add --task TASK"
            raise ConfigError(f"{file} names no task{remedy}")
    if args.task is None and args.file is None:
        raise ConfigError("give --task TASK, --config FILE, or --file FILE of another library")
    task, library = args.task or "TASK", args.library
    conversion: Conversion | None = None
    settings: dict[str, Any] = {}
    asked = args.algo or TrainConfig.algo
    algo, preset = algorithm(asked, args.preset)
    record = find(algo, "--algo")
    if args.file is not None:
        if args.preset is not None:
            raise ConfigError(f"--preset is '{args.preset}', and {args.file} has settings of its own; leave one out")
        if args.file.suffix == ".py":
            raise ConfigError(
                f"--file is '{args.file}', which is code; a class of rsl_rl in it is reached by the task that is "
                "registered with it: --task Isaac-..., isaaclab:MODULE:TASK or mjlab:MODULE:TASK"
            )
        conversion = convert_file(
            args.file,
            library,  # type: ignore[arg-type]
            num_envs=args.num_envs,
            task=args.task,
            algo=args.algo,
            skrl_version=args.skrl_version,
        )
        settings = conversion.config
    else:
        if args.skrl_version is not None:
            raise ConfigError(f"--skrl-version is '{args.skrl_version}', and there is no --file; leave it out")
        if simulator_of(task) in SIMULATORS:
            if library is not None or preset is None:
                settings, conversion = registered_config(task, args.num_envs, library, asked, options)
                preset = None  # td3 is the name of an algorithm there
            else:
                settings = {"env": env_options(algo)}
        elif library is not None:
            raise ConfigError(f"task '{task}' ships no configuration of another library; leave --from out")
        own = default_config(task, args.config, settings, algo, preset)[0]
        if simulator_of(task) not in SIMULATORS:  # making theirs takes long
            with contextlib.ExitStack() as stack:
                stack.enter_context(contextlib.redirect_stdout(sys.stderr))  # what a simulator among several tasks says
                env = make_env(task, fewest_envs(task), **own.env, **(options or {}))  # refuses what is not there
                stack.enter_context(contextlib.closing(env))
                record.policy(spec_of(env), own.agent)  # refuses an env that it is not for
        settings = to_dict(own)
        settings |= {} if args.num_envs is None else {"num_envs": args.num_envs}
    if options:
        settings = {**settings, "env": {**settings.get("env", {}), **options}}
    config = read_config({**settings, "algo": settings.get("algo", algo), "task": task})
    data = to_dict(config)
    if args.task is None:
        del data["task"]  # which the file does not tell
    if conversion is not None:
        all_of_it = "" if args.show else "; --show lists them"
        tell(conversion, all_of_it)
        if conversion.warning:  # a run says it itself
            print(f"warning      {conversion.warning}", file=sys.stderr)
    if conversion is not None and args.show:
        show(conversion, Console(file=standard_output()))
    elif args.show:
        print(f"{task} is trained with rlcore's own settings; nothing was converted", file=sys.stderr)
    text = yaml.safe_dump(data, sort_keys=False)
    if conversion is not None:
        text = (
            f"# Converted from {conversion.library} for {config.num_envs} envs, on which minibatches and gradient\n"
            f"# steps depend: for another number convert anew, with --num-envs.\n{text}"
        )
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text, encoding="utf-8")
        print(f"written to {args.output}")
    elif conversion is None or not args.show:
        print(text, end="")
