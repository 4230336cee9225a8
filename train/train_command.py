"""``rlcore train``: from words to a run that is ready to start."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rlcore.train import arguments
from rlcore.train.arguments import Job


def train_command(words: Sequence[str]) -> Job:
    """Read the words of ``rlcore train``."""
    app, words = launched(with_library(words))
    from rlcore.config import ConfigError
    from rlcore.train.config import TrainConfig, default_config, task_of

    @dataclass(frozen=True, kw_only=True)
    class TrainArguments(TrainConfig):
        """Train a policy, evaluate the best checkpoint and export it."""

        config: Path | None = None
        """YAML file over the defaults of the task; RUN/config.yaml repeats a run."""
        resume: Path | None = None
        """Run folder or checkpoint to go on from."""
        library: str | None = None
        """Written --from: whose configuration of a simulator's task to take; None: rlcore's, else the first."""

    pairs = arguments.pairs_of(words, TrainArguments, free="env")
    given = {key: values[0] for key, values in pairs if values}
    resumed: Path | None = None
    helping = arguments.asks_help(words)
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
        registered = {} if helping else _registered(task or "", pairs)
        base, files = default_config(task or "TASK", file, registered)
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
    if "scene.num_envs" in options:  # as Isaac Lab and mjlab call it
        pairs.append(("num_envs", [str(options.pop("scene.num_envs"))]))
    default = TrainArguments(**{f.name: getattr(base, f.name) for f in fields(TrainConfig)})
    settings = [(key, values) for key, values in pairs if not key.startswith("env.")]
    parsed = arguments.parse(TrainArguments, settings, default, "rlcore train")
    config = TrainConfig(**{f.name: getattr(parsed, f.name) for f in fields(TrainConfig)})
    config = replace(config, env=base.env | options)
    return _training(base, config, resumed, app)


def with_library(words: Sequence[str]) -> list[str]:
    """``--from`` is a word of Python, so the setting behind it has another name."""
    return ["--library" + word.removeprefix("--from") if re.match(r"--from(=|$)", word) else word for word in words]


def launched(words: Sequence[str]) -> tuple[Any, list[str]]:
    """Start the simulator that a task needs before anything else is imported, and take its flags out of the words."""
    from rlcore.envs.launch import launch

    if arguments.asks_help(words):
        return None, list(words)
    given = [word.partition("=")[2] or following for word, following in zip(words, [*words[1:], ""], strict=False)
             if re.match(r"(--)?task(=|$)", word)]  # fmt: skip
    return launch(given[-1], words) if given else (None, list(words))


def _registered(task: str, pairs: list[arguments.Pair]) -> dict[str, Any]:
    from rlcore.envs.launch import simulator_of

    given = {key: values[0] for key, values in pairs if values}
    if simulator_of(task) not in ("isaaclab", "mjlab"):
        if "library" in given:
            raise ValueError(f"--from is '{given['library']}', but {task} ships no configuration; leave it out")
        return {}
    from rlcore.train.registered import registered_config

    number = given.get("num_envs") or given.get("env.scene.num_envs")
    settings, conversion = registered_config(task, int(number) if number else None, given.get("library"))
    if conversion is not None:
        counts = ", ".join(f"{count} {status}" for status, count in conversion.counts.items())
        print(f"settings     of {conversion.library}: {counts}; `rlcore config --task {task} --show` lists them")
    return settings


def _training(base: Any, config: Any, resumed: Path | None, app: Any) -> Job:
    from rich.console import Console

    from rlcore.train.training import Training, refuse_changes

    if resumed is not None:
        refuse_changes(base, config)
    training = Training(config, Console(), resumed_from=resumed)

    def job() -> int:
        try:
            return training.start()
        finally:
            if app is not None:
                app.close()

    return job
