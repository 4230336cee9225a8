"""What may differ between a run and its continuation, and what the continuation goes on from."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rlcore.checkpoint import OF_A_RUN, fitting, load_checkpoint
from rlcore.config import ConfigError, from_dict, shown
from rlcore.env import DYNAMICS, EnvSpec, VecEnv, is_exact, spec_of
from rlcore.train.config import RESUMABLE, TrainConfig, changes, read_config
from rlcore.train.run import locate


def resumed_config(path: Path) -> tuple[TrainConfig, Path]:
    """The configuration of the run that a path means, and the checkpoint to go on from: the last, unless named.

    Raises:
        FileNotFoundError: there is no run or no checkpoint.
        CheckpointError: the checkpoint cannot be read.
    """
    _, checkpoint = locate(path, "last")
    content = load_checkpoint(checkpoint, needed=OF_A_RUN)
    with fitting(checkpoint):
        return read_config(content["config"], source=str(checkpoint)), checkpoint


def refuse_changes(before: TrainConfig, after: TrainConfig) -> None:
    """Refuse settings with which a continued run would no longer be the same run; options of the env may change.

    Raises:
        ConfigError: names the first such setting, both values and the remedy.
    """
    for key, (old, new) in changes(before, after).items():
        if key not in RESUMABLE and not key.startswith("env."):
            raise ConfigError(
                f"{key} is {old!r} in the run that is resumed and {new!r} here; leave it out, or start a new run "
                "without --resume" + ", which may begin with the weights of this one (--init-from)" * (key != "algo")
            )


def env_changes(
    content: dict[str, Any], config: TrainConfig, env: VecEnv, path: Path | None
) -> tuple[list[str], list[str]]:
    """The options of the env that differ from a checkpoint's, whose episodes then do not go on.

    Args:
        content: of the checkpoint; the state of its episodes is taken out if there are such options.
        config: of the continuation.
        env: made with its options.
        path: the checkpoint.

    Returns:
        Their names, and what is to be said of each.

    Raises:
        ConfigError: with them the env has other observations or actions.
        CheckpointError: the checkpoint does not say what its env was.
    """
    with fitting(path):
        found = changes(read_config(content["config"]), config)
        altered = {key: values for key, values in found.items() if key.startswith("env.")}
        if not altered:
            return [], []
        before, after = from_dict(EnvSpec, content["spec"], f"{path}: spec"), spec_of(env)
    names = ", ".join(altered)
    for name in (field.name for field in fields(EnvSpec) if field.name not in ("task", "deployment")):
        old, new = getattr(before, name), getattr(after, name)
        if name == "tasks":
            old, new = ({key: replace(own, deployment={}) for key, own in specs.items()} for specs in (old, new))
        elif name == "observation_sizes":  # what is randomized may change; who reads it has weights of that size
            old, new = ({group: size for group, size in sizes.items() if group != DYNAMICS} for sizes in (old, new))
        if old != new:
            raise ConfigError(
                f"{names} cannot change here: {name} of the env is {shown(new)} with it and {shown(old)} in the run "
                "that is resumed; leave it out, or start a new run without --resume"
            )
    if is_exact(env):
        content["env"] = None  # its episodes are those of an env with other options
    notes = []
    for key, (old, new) in altered.items():
        now = "no longer set" if new is None else f"{shown(new)} from here on"
        notes.append(f"{key} is {now}, and was {'not set' if old is None else shown(old)}")
    return list(altered), notes
