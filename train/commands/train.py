"""``rlcore train``: from words to a run that is ready to start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from rlcore.train import arguments
from rlcore.train.arguments import Job, UsageError
from rlcore.train.commands.launching import launched, named_in, with_library
from rlcore.train.elastic import processes_in, start

SCENE_NUM_ENVS = "env.scene.num_envs"
"""What Isaac Lab and mjlab call the number of copies."""


def train_command(words: Sequence[str]) -> Job:
    """Read the words of ``rlcore train``."""
    number, words, option = processes_in(words) if not arguments.asks_help(words) else (0, list(words), "")
    if number:
        return lambda: start(number, words, option)
    read = settings_in(words)
    return _training(*read) if read is not None else lambda: 0


def settings_in(words: Sequence[str]) -> tuple[Any, Any, Path | None] | None:
    """What the words of ``rlcore train`` make of a run, a simulator that they name being started.

    Returns:
        The settings before the words and the file that they name, those with them, and the checkpoint to go on from;
        None where only help was asked for, which is printed.
    """
    words = launched(with_library(words))
    from rlcore.config import ConfigError, load_yaml
    from rlcore.train.algorithms import algorithm, find
    from rlcore.train.config import TrainConfig, config_class, with_options
    from rlcore.train.defaults import check_preset, default_config, task_of

    named, helping = named_in(words), arguments.asks_help(words)
    base: Any = None
    usual: Any = None
    resumed: Path | None = None
    if named.get("resume") and not helping:
        from rlcore.train.continuation import resumed_config

        if "config" in named:
            raise ConfigError("--config cannot go with --resume: a resumed run keeps its configuration; leave one out")
        base, resumed = resumed_config(Path(named["resume"]))
    elif named.get("init_from") and not helping and not {"config", "algo", "preset", "library"} & set(named):
        from rlcore.train.beginning import source_of

        _, base = source_of(Path(named["init_from"]))
        if named.get("task", base.task) != base.task:
            base = replace(base, task=named["task"], env={})  # options are those of the other task
    elif "algo" not in named and named.get("config") and not helping:
        named["algo"] = str(load_yaml(named["config"]).get("algo", TrainConfig.algo))
    asked = named.get("algo", TrainConfig.algo)
    named["algo"], preset = algorithm(asked, named.get("preset"))
    algo = named["algo"] if base is None else base.algo
    Own: Any = config_class(algo, "--algo")
    if preset is not None:
        check_preset(preset, find(algo))

    @dataclass(frozen=True, kw_only=True)
    class TrainArguments(Own):  # type: ignore[misc]
        """Train a policy, evaluate the best checkpoint and export it."""

        config: Path | None = None
        """YAML file over the defaults of the task; RUN/config.yaml repeats a run."""
        resume: Path | None = None
        """Run folder or checkpoint to go on from."""
        library: Annotated[str | None, tyro.conf.arg(name="from")] = None
        """Whose configuration of a simulator's task to take; None: rlcore's, else the first."""
        gpus: int | None = None
        """Train on so many GPUs of this machine, one process each; num_envs and the batches are shared among them."""
        processes: int | None = None
        """The same by a number of processes, for --device cpu."""

    pairs = arguments.pairs_of(words, TrainArguments, free="env")
    pairs = [(key, [named["algo"]] if key == "algo" else values) for key, values in pairs]
    pairs = _gathered(pairs, "stop_at")
    given = {key: values[0] for key, values in pairs if values}
    if base is None:
        file = Path(given["config"]) if "config" in given else None
        task = given.get("task") or (task_of(file) if file is not None else None)
        if task is None and not helping:
            raise ConfigError("--task is missing; give one, such as --task CartPole (`rlcore tasks` lists them)")
        if "library" in given:
            if "preset" in named:
                raise ConfigError("--preset cannot go with --from: what is converted is complete; leave one out")
            preset = None  # td3 is the name of an algorithm there
        registered = {} if helping else _registered(task or "", pairs, asked, preset)
        try:
            base, files = default_config(task or "TASK", file, registered, algo, preset)
            if file is not None:
                usual, _ = default_config(task or "TASK", None, registered, algo, base.preset)
        except ConfigError as error:
            if file is None:
                raise
            from rlcore.train.importers.convert import remedy_for

            theirs = remedy_for(file)  # what else could be written in it is of no use then
            raise ConfigError(f"{str(error).partition('; ')[0]}{theirs}" if theirs else str(error)) from error
        if helping:
            _print_help(TrainArguments, {f.name: getattr(base, f.name) for f in fields(Own)}, task, files)
            return None
    pairs += [("num_envs", values) for key, values in pairs if key == SCENE_NUM_ENVS]
    pairs = [(key, values) for key, values in pairs if key != SCENE_NUM_ENVS]
    settings, options = arguments.without_options(pairs)
    default = TrainArguments(**{f.name: getattr(base, f.name) for f in fields(Own)})
    parsed = arguments.parse(TrainArguments, settings, default, "rlcore train")
    config = Own(**{f.name: getattr(parsed, f.name) for f in fields(Own)})
    config = replace(config, env=with_options(base.env, options))
    if config.init_from is not None and resumed is None:  # so that it is found from other folders, too
        from rlcore.train.run import locate

        config = replace(config, init_from=str(locate(Path(config.init_from), "best")[1].resolve()))
    return usual or base, config, resumed


def _gathered(pairs: list[arguments.Pair], name: str) -> list[arguments.Pair]:
    """The pairs with all that is given for one setting, each time anew, in one of them."""
    values = [value for key, own in pairs if key == name for value in own]
    return [pair for pair in pairs if pair[0] != name] + [(name, values)] * bool(values)


def _print_help(arguments_class: type[Any], values: dict[str, Any], task: str | None, files: Sequence[Path]) -> None:
    """Print every setting with its default for a task; None: nobody named one."""
    from rlcore.train.tasks import print_env_options

    about = f" Defaults from {', '.join(map(str, files))}." if files else ""
    if task is None:
        about = (
            " Tasks have defaults of their own, which --task TASK --help shows; --resume needs no --task, and "
            "--config may name it."
        )
    text = (
        f"Train a policy, evaluate the best checkpoint and export it.{about} Settings are written --agent.gamma 0.98 "
        "or agent.gamma=0.98. Ctrl-C once stops after the iteration and writes a checkpoint (exit code 130, SIGTERM "
        "143, SIGHUP 129), once more stops at once."
    )
    shown = arguments_class(**values | ({"task": tyro.MISSING} if task is None else {}))
    arguments.print_help(arguments_class, shown, "rlcore train", text)
    print_env_options(task)


def _registered(task: str, pairs: list[arguments.Pair], algo: str, preset: str | None) -> dict[str, Any]:
    """What a simulator's task is registered with, unless a preset is named."""
    from rlcore.envs.launch import SIMULATORS, simulator_of

    given = {key: values[0] for key, values in pairs if values}
    if simulator_of(task) not in SIMULATORS:
        if "library" in given:
            raise ValueError(f"--from is '{given['library']}', but {task} ships no configuration; leave it out")
        return {}
    from rlcore.train.config import TrainConfig
    from rlcore.train.importers.account import tell
    from rlcore.train.importers.registered import env_options, registered_config

    if preset is not None:
        return {"env": env_options(algo)}
    number = given.get(SCENE_NUM_ENVS) or given.get("num_envs")
    if number is not None and not number.isdigit():
        raise UsageError(f"--num-envs: '{number}' is not a whole number; write --num-envs 4096")
    options = arguments.without_options(pairs)[1]
    settings, conversion = registered_config(task, int(number) if number else None, given.get("library"), algo, options)
    if conversion is not None:
        named = "" if algo == TrainConfig.algo else f" --algo {algo}"
        tell(conversion, f"; `rlcore config --task {task}{named} --show` lists them")
    return settings


def _training(usual: Any, config: Any, resumed: Path | None) -> Job:
    from rich.console import Console

    from rlcore.train.continuation import refuse_changes
    from rlcore.train.ending import standard_output
    from rlcore.train.training import Training

    if resumed is not None:
        refuse_changes(usual, config)
    return Training(config, Console(file=standard_output()), resumed_from=resumed, usual=usual).start
