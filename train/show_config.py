"""``rlcore config``: what a task is trained with, and how another library's configuration translates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from rich.console import Console

from rlcore.config import ConfigError, save_yaml, to_dict
from rlcore.envs import make_env
from rlcore.envs.launch import simulator_of
from rlcore.train.config import algorithm, default_config, read_config
from rlcore.train.importers import Conversion, convert_file, show
from rlcore.train.registered import registered_config


@dataclass(frozen=True, kw_only=True)
class ConfigArguments:
    """Print the configuration that a task is trained with, converted if it is another library's."""

    task: str | None = None
    """Task whose configuration to print."""
    algo: Literal["ppo", "sac", "ddpg", "td3"] = "ppo"
    """Learning algorithm that the task is trained with; td3 is DDPG with the preset td3."""
    preset: str | None = None
    """Preset of SAC or DDPG, classic or gpu; None: the one that the task is trained with."""
    file: Path | None = None
    """Configuration file of rsl_rl, rl_games, skrl or SB3 to convert instead."""
    library: str | None = None
    """Written --from: whose configuration to take, rsl_rl, rl_games, skrl or sb3; None: the first, or guessed."""
    num_envs: int | None = None
    """Copies of the task, on which the number of minibatches may depend; None: the task's own."""
    show: bool = False
    """Print what became of every key: kept, changed in meaning, dropped, filled in."""
    output: Path | None = None
    """File to write the YAML to; None: print it."""


def show_config(args: ConfigArguments) -> int:
    """Run the command.

    Raises:
        ConfigError: neither task nor file, or what cannot be converted.
    """
    if (args.task is None) == (args.file is None):
        raise ConfigError("give either --task TASK or --file FILE")
    conversion: Conversion | None = None
    algo, preset = algorithm(args.algo, args.preset)
    if args.file is not None:
        conversion = convert_file(args.file, args.library, num_envs=args.num_envs or 4096, task="TASK")  # type: ignore[arg-type]
        settings: dict[str, Any] = conversion.config
    elif algo == "ppo" and simulator_of(args.task or "") in ("isaaclab", "mjlab"):
        settings, conversion = registered_config(args.task or "", args.num_envs, args.library)
    else:
        if args.library is not None:
            reason = "only settings of ppo are converted" if algo != "ppo" else f"'{args.task}' ships none to convert"
            raise ConfigError(f"--from is '{args.library}', and {reason}; leave it out")
        if simulator_of(args.task or "") == "builtin":
            make_env(args.task or "", 1).close()  # refuses what there is not
        settings = to_dict(default_config(args.task or "", algo=algo, preset=preset)[0])
    config = read_config({**settings, "task": args.task or "TASK"})
    if conversion is not None and args.show:
        show(conversion, Console())
    if args.output is not None:
        save_yaml(args.output, config)
        print(f"written to {args.output}")
    elif conversion is None or not args.show:
        print(yaml.safe_dump(to_dict(config), sort_keys=False), end="")
    return 0
