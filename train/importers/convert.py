"""Configurations of rsl_rl, rl_games, skrl and Stable-Baselines3 as rlcore's, with an account of every key."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from rlcore.config import ConfigError
from rlcore.ppo_config import PPOConfig, small_minibatches
from rlcore.train.algorithms import ALGORITHMS
from rlcore.train.config import TrainConfig, config_class, read_config
from rlcore.train.importers import rl_games, rl_games_sac, rsl_rl, sb3, sb3_sac, skrl, skrl_sac
from rlcore.train.importers.source import read_yaml
from rlcore.train.importers.translation import STYLES, UNKNOWN, Row, Status, Translation, short

Library = Literal["rsl_rl", "rl_games", "skrl", "sb3"]

_OWN = {field.name for field in fields(TrainConfig)}
"""Keys that a file of rlcore's own has at its top."""

_CONVERT = {
    "rsl_rl": rsl_rl.convert,
    "rl_games": rl_games.convert,
    "skrl": skrl.convert,
    "sb3": sb3.convert,
}
_CONVERT_OFF_POLICY: dict[str, Any] = {
    "rl_games": rl_games_sac,
    "skrl": skrl_sac,
    "sb3": sb3_sac,
}


@dataclass(frozen=True)
class Conversion:
    """A converted configuration and how it came about."""

    library: str
    """Where it comes from."""
    config: dict[str, Any]
    """What ``from_dict(TrainConfig, ...)`` accepts; without ``task`` if none was given."""
    rows: tuple[Row, ...]
    """The fate of every key of the source, and the defaults that its library would have filled in."""

    @property
    def counts(self) -> dict[Status, int]:
        """Number of rows by status."""
        found = Counter(row.status for row in self.rows)
        return {status: found[status] for status in STYLES}

    @property
    def unknown(self) -> tuple[str, ...]:
        """Keys that neither the library nor the converter is known to understand."""
        return tuple(row.key for row in self.rows if row.note.startswith(UNKNOWN))

    @property
    def summary(self) -> str:
        """Numbers of keys by what became of them, and the names of those that nobody knows, each with the nearest."""
        counts, unknown = self.counts, self.unknown
        told = [f"{short(row.key)}{row.note.removeprefix(UNKNOWN)}" for row in self.rows if row.key in unknown]
        names = f" ({', '.join(told[:5])}{', ...' if len(told) > 5 else ''})" if told else ""
        return (
            f"{counts['kept']} keys kept, {counts['changed']} changed, {counts['dropped'] - len(unknown)} dropped, "
            f"{len(unknown)} unknown{names}, {counts['default']} defaults"
        )

    @property
    def warning(self) -> str:
        """What is wrong with the result though it can be used; empty where nothing is."""
        config = read_config({"task": "?", **self.config})
        return small_minibatches(config.agent, config.num_envs) if type(config.agent) is PPOConfig else ""


def convert(
    source: Any,
    library: Library,
    *,
    num_envs: int | None,
    task: str | None = None,
    algo: str | None = None,
    skrl_version: str | None = None,
) -> Conversion:
    """Convert another library's configuration of PPO, SAC, DDPG or TD3, which is DDPG with twin critics.

    Nothing in it is executed, whatever its library would do with expressions in it.

    Args:
        source: nested mapping, or an object such as Isaac Lab's and mjlab's runner configurations.
        library: whose it is.
        num_envs: copies of the task in the run, on which minibatches and gradient steps depend; None: what the source
            says of it, else 4,096.
        task: what will be trained.
        algo: what it has to be, ``ppo``, ``sac``, ``ddpg`` or ``td3``; None: whatever it is.
        skrl_version: for which skrl it was written, such as ``1.4``; None: as its names tell.

    Raises:
        ConfigError: another algorithm, or a value that rlcore cannot use; the message names the source's key.
    """
    if library not in _CONVERT:
        raise ConfigError(f"library (--from): {library!r} is not known; choose from {', '.join(get_args(Library))}")
    if num_envs is not None and num_envs < 1:
        raise ConfigError(f"num_envs: {num_envs} is not possible; give 1 or more")
    translation = Translation(source, library, num_envs, task, _version(skrl_version, library))
    off_policy = _CONVERT_OFF_POLICY.get(library)
    found = None if off_policy is None else off_policy.algorithm(translation, algo)
    if algo not in (None, found or "ppo") and (algo, found) != ("ddpg", "td3"):
        raise ConfigError(f"{library}: these are settings of {found or 'ppo'}, not of {algo}; leave --algo out")
    if off_policy is None or found is None:
        _CONVERT[library](translation)
    else:
        translation.config |= {"algo": "sac" if found == "sac" else "ddpg", "preset": "classic"}
        off_policy.convert(translation, found)
        _intervals(translation)
    _assumptions(translation)
    translation.finish()
    return Conversion(library, translation.config, tuple(translation.rows))


def _version(text: str | None, library: str) -> tuple[int, ...] | None:
    if text is None:
        return None
    if library != "skrl":
        raise ConfigError(f"--skrl-version is '{text}', and these are settings of {library}; leave it out")
    if not re.fullmatch(r"\d{1,4}(\.\d{1,4}){0,3}", text):
        raise ConfigError(f"--skrl-version is '{text}'; give a version such as 1.4 or 2.1")
    numbers = tuple(map(int, text.split(".")))
    return numbers if len(numbers) > 1 else (*numbers, 0 if numbers[0] < 2 else 1)  # 2 is today's 2.x


def _assumptions(translation: Translation) -> None:
    """Say what the run was assumed to be where neither the source nor the caller told."""
    if not translation.num_envs_known:
        note = "assumed, nobody says it; minibatches or gradient steps depend on it: --num-envs"
        translation.builtin("number of envs", "-", "num_envs", translation.num_envs, note)
    if "num_iterations" not in translation.config:
        length = TrainConfig(task="?").num_iterations
        note = "assumed, the source sets no length: --num-iterations"
        translation.builtin("length of the run", "-", "num_iterations", length, note)


def _intervals(translation: Translation) -> None:
    """Intervals that fit a run of single steps: rlcore's own are for iterations of PPO, which are long.

    Every 50 steps, evaluations of whole episodes would take most of the time.
    """
    total = translation.config.get("num_iterations", 0)
    for name, parts, least in (("save_interval", 10, 50), ("eval_interval", 20, 50), ("log_interval", 200, 10)):
        if name not in translation.config and total // parts > least:
            translation.builtin(name.replace("_", " "), "-", name, total // parts, f"{parts} in the whole run")


def convert_file(
    path: str | Path,
    library: Library | None = None,
    *,
    num_envs: int | None,
    task: str | None = None,
    algo: str | None = None,
    skrl_version: str | None = None,
) -> Conversion:
    """Convert a YAML file, guessing whose it is unless told; see ``convert``.

    Files of Stable-Baselines3 do not name their algorithm, except by their own name, such as ``td3.yml``.

    Raises:
        ConfigError: as ``convert``; the file cannot be read, or looks like none of the libraries' configurations, or
            like that of another library than the one that is named.
    """
    source = read_yaml(path)
    _refuse_own(source, str(path), library)
    if library is None:
        library = guess_library(source, str(path))
    elif (looks := _looks_like(source)) not in (None, library):
        raise ConfigError(f"{path}: --from is '{library}', and these look like settings of {looks}; leave --from out")
    stem = Path(path).stem.lower()
    if library == "sb3" and stem in ("ppo", "sac", "td3", "ddpg"):
        algo = algo or stem
    return convert(source, library, num_envs=num_envs, task=task, algo=algo, skrl_version=skrl_version)


def guess_library(source: Mapping[str, Any], file: str = "configuration") -> Library:
    """Tell by its layout whose configuration this is.

    Raises:
        ConfigError: it looks like nobody's.
    """
    keys = set(source)
    _refuse_own(source, file, None)
    if "rl_games_config" in keys or isinstance(source.get("params"), Mapping):
        return "rl_games"
    if "models" in keys or {"agent", "trainer"} <= keys:
        return "skrl"
    if "algorithm" in keys or "num_steps_per_env" in keys:
        return "rsl_rl"
    sections = [value for value in source.values() if isinstance(value, Mapping)]
    if keys & {"n_timesteps", "n_steps", "policy_kwargs", "ent_coef", "buffer_size"} or any(
        "n_timesteps" in section for section in sections
    ):
        return "sb3"
    if 2 * len(keys & _OWN) > len(keys):
        raise ConfigError(f"{file}: these look like settings of rlcore; see what they come to with --config {file}")
    raise ConfigError(
        f"{file}: this looks like no configuration of {', '.join(get_args(Library))} (top-level keys: "
        f"{', '.join(map(str, source)) or 'none'}); name the library with --from"
    )


def _refuse_own(source: Mapping[str, Any], file: str, library: Library | None) -> None:
    if source and set(source) <= {field.name for name in ALGORITHMS for field in fields(config_class(name))}:
        remedy = f"train with rlcore train --config {file}" if library is None else f"give the file of {library}"
        raise ConfigError(f"{file}: these are settings of rlcore already; {remedy}")


def _looks_like(source: Mapping[str, Any]) -> Library | None:
    with contextlib.suppress(ConfigError):
        return guess_library(source)
    return None


def remedy_for(path: Path) -> str:
    """What to do with a file of settings that rlcore does not have, if it is another library's; else nothing."""
    try:
        source = read_yaml(path)
    except ConfigError:
        return ""
    library = _looks_like(source)
    if library is None:
        return ""
    if 2 * len(_OWN & set(source)) > len(source):
        return ""
    return f"; it looks like one of {library}: convert it first, rlcore config --file {path} --output mine.yaml"
