"""From command-line words to configuration dataclasses, with one-line errors."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import tyro

from rlcore.config import ALONE, ConfigError, check_options, closest, named_groups, nearest, parse_text, shown, to_int
from rlcore.train.groups import NAME, flag_of, general_name, how_to_write, is_none, lacks, table_of, with_group, without

T = TypeVar("T")

Pair = tuple[str, list[str]]
"""A dotted setting and the words given for it."""

ELSEWHERE = {
    "action_noise": "agent.noise_std",
    "alpha": "agent.init_temperature",
    "batch_size": "agent.batch_size agent.num_minibatches",
    "clip_param": "agent.clip_range",
    "discount": "agent.gamma",
    "discount_factor": "agent.gamma",
    "ent_coef": "agent.init_temperature agent.entropy_coef",
    "entropy_coefficient": "agent.init_temperature agent.entropy_coef",
    "exploration_noise": "agent.noise_std",
    "gif": "output",
    "gradient_steps": "agent.num_updates agent.num_epochs",
    "initial_entropy_value": "agent.init_temperature",
    "lam": "agent.gae_lambda",
    "learning_epochs": "agent.num_epochs",
    "lr": "agent.learning_rate",
    "memory_size": "agent.buffer_size",
    "mini_batches": "agent.num_minibatches",
    "minibatch_size": "agent.batch_size agent.num_minibatches",
    "n_critics": "agent.num_critics",
    "n_epochs": "agent.num_epochs",
    "n_steps": "agent.num_steps",
    "net_arch": "agent.actor.hidden_dims",
    "polyak": "agent.tau",
    "random_timesteps": "agent.learning_starts",
    "rollouts": "agent.num_steps",
    "start_steps": "agent.learning_starts",
    "target_policy_noise": "agent.target_noise",
    "train_freq": "agent.num_steps",
    "vf_coef": "agent.value_coef",
    "video": "output",
}
"""What other libraries call a setting, and its names here: the first that the algorithm has."""

_RESUME = "a run goes on with --resume RUN, or --resume RUN/checkpoints/000500.pt"
_LOGS = "tensorboard events and metrics.csv are always in the run folder"
_PROJECT = "the project of Weights & Biases, or experiment of MLflow, is --log-project"
_LENGTH = "a run takes --num-iterations, each of num_envs * agent.num_steps steps"
_ISAAC = "it is for tasks of Isaac Lab alone; leave it out"
_VIDEO = "--eval-video 1 films every evaluation, and rlcore play --run RUN shows a run afterwards"

INSTEAD = {
    "checkpoint": _RESUME,
    "distributed": "--gpus N trains on N GPUs, and so does torchrun; leave it out",
    "enable_cameras": _ISAAC,
    "experiment_name": "a run's folder is RUNS_DIR/TASK/ALGO/TIME-NAME, of --runs-dir and --name",
    "headless": _ISAAC,
    "livestream": _ISAAC,
    "load_checkpoint": _RESUME,
    "load_run": _RESUME,
    "log_project_name": _PROJECT,
    "tensorboard_log": _LOGS,
    "timesteps": _LENGTH,
    "total_timesteps": _LENGTH,
    "video": _VIDEO,
    "video_interval": _VIDEO,
    "video_length": _VIDEO,
    "wandb": "--logger tensorboard wandb writes there, too",
    "wandb_project": _PROJECT,
}
"""What other libraries' scripts take and ``rlcore train`` does not, and what to do instead."""

_KINDS = {"INT": "a whole number", "FLOAT": "a number", "[INT [INT ...]]": "a list of whole numbers"}
"""How the help writes types, in words."""

Job = Callable[[], int]
"""What is left to do once everything the user gave has been checked; returns the exit code."""


class UsageError(ValueError):
    """A command line that cannot be understood; the message is one line that names the word and the remedy."""


def settings_of(cls: type[Any], prefix: str = "") -> dict[str, Any]:
    """Every setting of a nested dataclass by dotted name, with its type; ``NAME`` stands for what the user names."""
    hints = typing.get_type_hints(cls)
    found: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            found |= settings_of(hint, f"{prefix}{field.name}.")
        elif (each := named_groups(hint)) is not None:
            found |= settings_of(each, f"{prefix}{field.name}.{NAME}.")
        else:
            found[prefix + field.name] = hint
    return found


def split_words(words: Sequence[str], cls: type[Any], *, free: str | None = None) -> list[Pair]:
    """Group words into settings: ``--agent.gamma 0.98``, ``--agent.gamma=0.98`` and ``agent.gamma=0.98`` alike.

    Args:
        words: the command line after the command.
        cls: the dataclass that holds the settings; dashes and underscores are the same in names.
        free: section whose keys are not declared, such as ``env``; so are those of settings that are dicts.

    Raises:
        UsageError: an unknown setting, or a word that belongs to none.
    """
    settings = settings_of(cls)
    open_ones = tuple(f"{name}." for name in [*filter(None, [free]), *(k for k, h in settings.items() if _is_dict(h))])
    pairs: list[Pair] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") and not re.match(r"[A-Za-z_][\w.-]*=", word):
            raise UsageError(_unexpected(word, pairs, settings))
        shown, equals, value = word.removeprefix("--").partition("=")
        key = shown.replace("-", "_")
        negated = re.sub(r"(^|\.)no_([^.]*)$", r"\1\2", key)
        if key.startswith(open_ones):
            hint: Any = list[str] if key == f"{free}.wrappers" else str
        elif (general := general_name(key, settings)) in settings and not _is_dict(settings[general]) and key != free:
            hint = settings[general]
        elif negated != key and _is_switch(settings.get(negated)):
            if equals:
                raise UsageError(f"--{shown} takes no value; leave out '={value}'")
            pairs.append((negated, ["False"]))
            continue
        elif table_of(key, settings) is not None:
            given = value if equals else rest.pop(0) if rest and not _is_setting(rest[0], settings) else ""
            if not is_none(given):
                raise UsageError(f"--{shown} is a group of settings; {how_to_write(key, given, settings)}")
            pairs.append((key, [given]))
            continue
        else:
            raise UsageError(_unknown(shown, key, settings, free))
        taken = [value] if equals else []
        if not equals:
            while rest and (not taken or _is_sequence(hint)) and not _is_setting(rest[0], settings):
                taken.append(rest.pop(0))
            if not taken and not _is_switch(hint) and not key.startswith(open_ones):
                what = "RUN" if key in ("run", "resume") else "VALUE"
                raise UsageError(f"--{shown} needs a value; write --{shown} {what}")
        if taken == [""] and key in settings and key != free:  # a variable of the shell that is not set
            raise UsageError(f"--{shown} is empty; write --{shown} VALUE or leave it out")
        pairs.append((key, taken))
    return pairs


def parse(cls: type[T], pairs: Iterable[Pair], default: T | None, prog: str) -> T:
    """Fill a dataclass from the pairs over ``default``.

    Raises:
        UsageError: a value is missing or of the wrong type, or the dataclass refuses it.
    """
    settings, flags = settings_of(cls), _flags(cls)
    words: list[str] = []
    given: dict[str, str] = {}
    options: list[Pair] = []
    pairs = list(pairs)
    tables = [table_of(key, settings) for key, _ in pairs]
    try:
        for table in filter(None, tables):  # first, whatever the order: what else is said of one begins it anew
            default = without(default, *table)
    except ConfigError as error:
        raise UsageError(f"--{error}") from None
    pairs = [pair for pair, table in zip(pairs, tables, strict=True) if table is None]
    for key, values in pairs:
        general = general_name(key, settings)
        if general not in settings:
            options.append((key, values))
            continue
        if general != key and default is not None:
            if lacking := lacks(default, key, [key for key, _ in pairs]):
                raise UsageError(f"{flag_of(lacking)} is missing; write {flag_of(lacking)} VALUE")
            default = with_group(default, key.split("."))
        flag, *rest = _words_for(flag_of(flags.get(key, key)), values, settings[general])
        words += [flag, *rest]
        given[flag] = " ".join(rest)
    box = io.StringIO()
    base: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(box), _columns(10_000):
            result: T = tyro.cli(cls, args=words, prog=prog, **base)
    except SystemExit:
        raise UsageError(_condensed(box.getvalue(), given)) from None
    try:
        for key, values in options:
            result = _with_option(result, key, free_value(key, values))
    except ConfigError as error:
        raise UsageError(f"{key.rpartition('.')[0].rpartition('.')[0]}.{error}".removeprefix(".")) from None
    return result


def _with_option(settings: Any, key: str, value: Any) -> Any:
    """Settings with one more entry of a dict in them: that of ``actor.options`` for ``actor.options.width``."""
    first, _, rest = key.partition(".")
    if isinstance(settings, dict):
        return settings | {key: value}
    return dataclasses.replace(settings, **{first: _with_option(getattr(settings, first), rest, value)})


def print_help(cls: type[Any], default: Any, prog: str, description: str) -> None:
    """Print the flags of a dataclass with their defaults and docstrings."""
    for key in (key for key in settings_of(cls) if default is not None and f".{NAME}." in key):
        default = with_group(default, key.split("."))
    with contextlib.suppress(SystemExit):
        tyro.cli(cls, args=["--help"], default=default, prog=prog, description=description)


def free_value(key: str, values: Sequence[str]) -> Any:
    """The value of an undeclared setting, read as YAML: ``False``, ``3``, ``3e-4``, ``[1, 2]`` or text."""
    if not values:
        return True
    text = " ".join(values)
    if text == "None":
        return None
    try:
        value = parse_text(text)
    except ValueError:
        raise UsageError(f"--{key}: cannot read {shown(text)}; write a number, True, False, text or [a, b]") from None
    # YAML 1.1 writes .inf
    if isinstance(value, str) and re.fullmatch(r"[-+]?(inf|\d+(\.\d*)?e[-+]?\d+)", value, re.IGNORECASE):
        return float(value)  # YAML 1.1 wants a point in it
    return value


def pairs_of(words: Sequence[str], cls: type[Any], free: str | None = None) -> list[Pair]:
    """The settings among the words of a command; see ``split_words``."""
    return split_words([word for word in words if word not in ("-h", "--help")], cls, free=free)


def without_options(pairs: Sequence[Pair]) -> tuple[list[Pair], dict[str, Any]]:
    """The settings among pairs, and apart from them the options of the task, ``env.NAME``, by name."""
    options = {key.removeprefix("env."): free_value(key, values) for key, values in pairs if key.startswith("env.")}
    check_options(options)
    return [(key, values) for key, values in pairs if not key.startswith("env.")], options


def read(words: Sequence[str], cls: type[T], prog: str, free: str | None = None) -> tuple[T, dict[str, Any]] | None:
    """The arguments of a command and its task options; None when only help was asked for."""
    if asks_help(words):
        about = (cls.__doc__ or "").strip()
        print_help(cls, None, prog, f"{about} Options of the task are --{free}.NAME VALUE." if free else about)
        return None
    settings, options = without_options(pairs_of(words, cls, free))
    return parse(cls, settings, None, prog), options


def asks_help(words: Sequence[str]) -> bool:
    """Whether the words are a call for help."""
    return "-h" in words or "--help" in words


def _flags(cls: type[Any]) -> dict[str, str]:
    """Settings whose flag has another name, as tyro is told with ``Annotated``."""
    hints = typing.get_type_hints(cls, include_extras=True)
    named = {key: getattr(extra, "name", None) for key, hint in hints.items() for extra in typing.get_args(hint)[1:]}
    return {key: name for key, name in named.items() if isinstance(name, str)}


def _words_for(flag: str, values: list[str], hint: Any) -> list[str]:
    """What tyro expects for a setting."""
    if hint is bool:
        given = values[0].lower() if values else "true"
        if given not in ("true", "false"):
            raise UsageError(f"{flag}: '{values[0]}' is not a yes or no; write True or False")
        return [flag if given == "true" else re.sub(r"^--(.*\.)?", r"\g<0>no-", flag)]
    if _is_switch(hint) and " ".join(values).lower() in ("", "true", "false"):
        return [flag, " ".join(values).title() or "True"]
    if not values:
        raise UsageError(f"{flag} needs a value; write {flag} VALUE")
    if len(values) == 1 and values[0].lower() in ("none", "null") and type(None) in typing.get_args(hint):
        return [flag, "None"]
    if int in (hint, *typing.get_args(hint)):
        values = [str(to_int(value)) if "e" in value.lower() else value for value in values]  # 1e6, as in files
    if _is_sequence(hint):
        values = [part for value in values for part in re.split(r"[\s,]+", value.strip("[]()")) if part]
    return [flag, *values]


def _is_sequence(hint: Any) -> bool:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_is_sequence(arg) for arg in typing.get_args(hint))
    return typing.get_origin(hint) in (tuple, list)


def _is_switch(hint: Any) -> bool:
    """Whether yes and no are among what a setting can be."""
    return hint is bool or bool in typing.get_args(hint)


def _is_dict(hint: Any) -> bool:
    return typing.get_origin(hint) is dict


def _is_setting(word: str, settings: dict[str, Any]) -> bool:
    if word.startswith("--"):
        return True
    key, equals, _ = word.partition("=")
    return bool(equals) and ("." in key or key.replace("-", "_") in settings)


def _unexpected(word: str, pairs: list[Pair], settings: dict[str, Any]) -> str:
    last, taken = pairs[-1] if pairs else ("", [])
    if last in ("run", "resume", "onnx") and taken and os.path.exists(word):
        return f"--{last} takes one path and there are '{taken[0]}' and '{word}'; a pattern fits both, so name one"
    if not pairs and "run" in settings and os.path.exists(word):
        return f"unexpected word '{word}'; write --run {word}"
    such = f", such as --task {word}" if last in ("", "task") and "task" in settings else ""
    return f"unexpected word '{word}'; write --setting value or setting=value{such}"


def _unknown(shown: str, key: str, settings: dict[str, Any], free: str | None) -> str:
    sections = {name.rpartition(".")[0] for name in settings} - {""}
    if key in sections:
        return f"--{shown} is a group of settings; write --{shown}.NAME VALUE"
    if key == free or _is_dict(settings.get(key)):
        return f"--{shown} needs the name of an option; write --{shown}.OPTION VALUE"
    if key.startswith("agent.") and "agent" not in {name.partition(".")[0] for name in settings}:
        return f"unknown setting --{shown}; those of the agent are the run's, as it was trained"
    group = key.removeprefix("agent.").partition(".")[0]
    if group in ALONE and not any(name.startswith(f"agent.{group}.") for name in settings):
        return f"unknown setting --{shown}; {ALONE[group]}"
    last = key.rpartition(".")[2]
    if "algo" in settings and last in INSTEAD:
        return f"unknown setting --{shown}; {INSTEAD[last]}"
    there = (name for name in ELSEWHERE.get(last, "").split() if name in settings)
    match = next(there, None) if last in ELSEWHERE else _nearest_setting(key, settings)
    hint = f"did you mean {flag_of(match)}?" if match else "--help lists the settings"
    return f"unknown setting --{shown}; {hint}"


def _nearest_setting(key: str, settings: dict[str, Any]) -> str | None:
    """The whole name first; else the last part, for a setting that was written without its group."""
    last = key.rpartition(".")[2]
    match = closest(key, settings)
    if match is not None and closest(last, [match.rpartition(".")[2]]) is None:
        match = None  # alike are the groups alone
    if match is None or (match.rpartition(".")[2] != last and "." not in key):
        by_part = {name.rpartition(".")[2]: name for name in reversed(settings)}
        part = closest(last, by_part)
        if part is not None and (match is None or part == last):
            match = by_part[part]
    return match


def _condensed(box: str, given: dict[str, str]) -> str:
    """One line of tyro's framed message; ``given`` has the flags and what was written after them."""
    lines = [line.strip(" │╰╯") for line in box.splitlines()[1:]]  # the first is a title
    bodies: list[list[str]] = [[]]
    for line in lines:
        if re.match(r"─|-{3}", line):
            bodies.append([])
        elif line:
            bodies[-1].append(line)
    bodies = [body for body in bodies if body]
    text = " ".join(bodies[0]).removeprefix("Error parsing ") if bodies else "the command line cannot be read"
    text = re.sub(r"^[A-Z]\w+: ", "", text)  # the class that refused a value is no part of the setting's name
    text = re.sub(r"^([a-z_.]+): ([\w.]+): ", r"\1.\2: ", text)
    if chosen := re.match(r"invalid choice '(.*)' for argument '(--.+?)'\. Expected one of \((.*)\)", text):
        names = [name for name in re.findall(r"'([^']*)'", chosen[3]) if name != "None"]
        return f"{chosen[2]}: '{chosen[1]}' is not possible; {nearest(chosen[1], names)}"
    usage = next((line for body in bodies[1:] for line in body if line.startswith("--")), None)
    flag, _, kind = (usage or "").partition(" ")
    if flag in given and text.startswith(f"{flag}: "):  # what Python or tyro says of a value that it cannot read
        plain = _KINDS.get(kind.removeprefix("{None}|"))
        none = " or None" if kind.startswith("{None}|") else ""
        fault = f"is not {plain}{none}" if plain else f"does not fit {kind}"
        return f"{flag}: '{given[flag]}' {fault}; correct it"
    return f"{text}; expected {usage}" if usage else text


@contextlib.contextmanager
def _columns(width: int) -> typing.Iterator[None]:
    """Let tyro write its message without wrapping it."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(width)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
