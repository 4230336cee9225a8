"""What decides a training run."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, make_dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

import torch
import tyro

from rlcore.agent import Algorithm
from rlcore.config import ConfigError, check, check_options, from_dict, is_none, shown, to_dict
from rlcore.device import checked_device
from rlcore.ppo_config import PPOConfig
from rlcore.train.algorithms import NAMES, find
from rlcore.train.stop import check_stop
from rlcore.train.writers import check_loggers

LARGEST_SEED = 2**31 - 1
"""Evaluations add to the seed, and NumPy takes no more than 32 bits."""

LARGEST = 1e12
"""Largest magnitude of a number among the settings, options of the env aside: nothing that is counted, stored or
multiplied comes near it, and float32 and 64-bit integers hold it."""

MOST_ENVS = 10_000_000
"""Copies of a task; far more than any memory has room for."""

MOST_THREADS = 1024
REMEDY_THREADS = f"give 1 to {MOST_THREADS}, or none to leave the choice to the run"

LONGEST_NAME = 100
"""Letters of a run's name, which becomes part of a folder's."""

DEVICES = "auto, cpu, cuda or cuda:<index>"
"""What ``is_device`` takes, in words."""

SWITCHED = ("randomize", "curriculum")
"""Options of an env that stand for many, ``randomize.mass`` and others, and that none switches off together."""

RESUMABLE = frozenset(
    {
        "num_iterations",
        "save_interval",
        "keep_checkpoints",
        "eval_interval",
        "eval_envs",
        "eval_stage",
        "log_interval",
        "logger",
        "log_project",
        "eval_video",
        "stop_at",
        "stop_no_progress",
        "stop_after",
        "export",
        "report",
        "capture_env",
        "device",
        "threads",
        "agent.buffer_device",
        "agent.final_capacity",  # refused unless it is that of the saved replay memory, for which an error may ask
    }
)
"""Settings that may differ between a run and its continuation, as may options of the env. All but these and the device
leave its curve as it is, and but threads, by whose number sums are rounded otherwise."""


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """What a run that begins with another's weights takes of it; see ``TrainConfig.init_from``."""

    take: tuple[str, ...] = ()
    """Beginnings of the names of weights to take, such as policy.trunk or critic, all of which then have to fit; none:
    all that fit. The run prints what it took and what it did not."""
    freeze: tuple[str, ...] = ()
    """Beginnings of the names of parameters that keep still, such as policy.trunk."""
    critic: bool = True
    """Take the critic, and the normalizer of its values, too."""
    normalizer: Literal["keep", "still", "fresh"] = "keep"
    """Statistics of observations: taken and carried on; taken and never changed; or begun anew."""
    optimizer: bool = False
    """Take Adam's moments and the learning rate, too, where all weights are taken."""
    critic_warmup: int = 0
    """First iterations in which the critic alone learns, so that one that is new, or of another reward, does not spoil
    the policy."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        check(self.critic_warmup >= 0, "critic_warmup", self.critic_warmup, "give 0 or more")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run, with PPO unless a subclass says otherwise. The same file and seed give the same run."""

    task: str
    """What to train: a built-in task such as CartPole, or gym:<id>; `rlcore tasks` lists them."""
    algo: Annotated[str, tyro.conf.arg(metavar=NAMES)] = "ppo"
    """Learning algorithm; the settings of the agent are its own. --algo td3 means ddpg with the preset td3, and FILE.py
    or module:NAME is one of your own."""
    num_envs: int = 1024
    """Copies of the task that are stepped together."""
    num_iterations: int = 300
    """Rollouts and updates in all; a resumed run counts those already done."""
    seed: int = 1
    """Seed of the networks, the exploration and the envs."""
    device: str = "auto"
    """auto (cuda where there is one), cpu, cuda or cuda:<index>."""
    threads: int | None = None
    """CPU threads of PyTorch. None: by the size of networks and minibatches, or what OMP_NUM_THREADS says."""
    name: str | None = None
    """Added to the name of the run folder."""
    runs_dir: str = "runs"
    """Folder that holds the run folders."""
    save_interval: int = 50
    """Iterations between two checkpoints; one is always written at the end. 0: only there."""
    keep_checkpoints: int = 3
    """Latest checkpoints to keep beside the best one. 0: all."""
    eval_interval: int = 50
    """Iterations between two evaluations, which choose the best checkpoint. 0: only at the end."""
    eval_envs: int = 100
    """Episodes of an evaluation, one for each env of a separate copy of the task."""
    eval_stage: Literal["trained", "start", "end", "all"] = "trained"
    """Where the curricula of an env stand in evaluations: where training stands by then, where they began, or with all
    envs at the hardest level (end), or evenly over all levels (all)."""
    log_interval: int = 10
    """Iterations that are averaged into one row of metrics.csv, one tensorboard point and one printed line."""
    logger: tuple[str, ...] | None = ("tensorboard",)
    """Where metrics go beside metrics.csv: tensorboard, wandb (Weights & Biases) and mlflow, or none."""
    log_project: str | None = None
    """Project of Weights & Biases, experiment of MLflow. None: what their own variables say, else rlcore."""
    eval_video: int = 0
    """Write a video of one episode in every n-th evaluation, into videos/ and the loggers. 0: none."""
    stop_at: tuple[str, ...] | None = None
    """End the run once a metric gets there, such as 'eval/success>=0.95'; of several the first that is met."""
    stop_no_progress: int | None = None
    """End the run after so many evaluations in a row that were no better than the best before them."""
    stop_after: str | None = None
    """End the run after a time, such as 90 (seconds), 30m or 8h; what a resumed run took before counts."""
    capture_env: bool | None = None
    """On CUDA, record the whole rollout, env included, as one graph. None: where the env allows it."""
    export: bool = True
    """Export the best checkpoint to ONNX at the end, and evaluate the file."""
    report: bool = True
    """Write report.html into the run folder at the end: curves, figures and settings on one page."""
    agent: PPOConfig = field(default_factory=PPOConfig)
    """Settings of the algorithm."""
    init_from: str | None = None
    """Run folder or checkpoint whose weights training begins with, the best one's unless named; settings and task are
    that run's where nothing else is said, and any may be another. An imported run will do."""
    init: InitConfig = field(default_factory=InitConfig)
    """What is taken of init_from, and what keeps still."""
    env: dict[str, Any] = field(default_factory=dict)
    """Options of the task, as `--env.<option> VALUE`; see the task's description."""

    preset: ClassVar[str | None] = None
    """A field where the algorithm has presets: the settings that the agent's began with."""

    def __post_init__(self) -> None:
        """Refuse values that no run can have.

        Raises:
            ConfigError: names the setting, its value and what is allowed.
        """
        own = type(self).algo
        check(self.algo == own, "algo", self.algo, f"the other settings are those of {own}; leave it at that")
        for name, least in (
            ("num_envs", 1),
            ("num_iterations", 1),
            ("seed", 0),
            ("save_interval", 0),
            ("keep_checkpoints", 0),
            ("eval_interval", 0),
            ("eval_envs", 1),
            ("eval_video", 0),
            ("log_interval", 1),
        ):
            value = getattr(self, name)
            check(value >= least, name, value, f"give {least} or more")
        check(self.threads is None or 1 <= self.threads <= MOST_THREADS, "threads", self.threads, REMEDY_THREADS)
        for name in ("num_envs", "eval_envs"):
            check(getattr(self, name) <= MOST_ENVS, name, getattr(self, name), f"give at most {MOST_ENVS:,}")
        check(self.seed <= LARGEST_SEED, "seed", self.seed, f"give a number from 0 to {LARGEST_SEED}")
        given = self.init_from is not None or self.init == InitConfig()
        check(given, "init", "set, and init_from is not", "name the run to begin with, --init-from RUN")
        check(is_device(self.device), "device", self.device, f"give {DEVICES}")
        plain = self.name is None or (safe_name(self.name) == self.name and len(self.name) <= LONGEST_NAME)
        check(plain, "name", self.name, f"use letters, digits, '.', '_' and '-' only, and at most {LONGEST_NAME}")
        object.__setattr__(self, "env", _said_once(self.env))  # a frozen dataclass sets nothing otherwise
        check_options(self.env)
        check_loggers(self.logger)
        check_stop(self.stop_at, self.stop_no_progress, self.stop_after, self.eval_interval)
        _refuse_huge(to_dict(self))


@cache
def _config_class(algo: str) -> type[TrainConfig]:
    if algo == TrainConfig.algo:
        return TrainConfig
    record = find(algo)
    own: list[tuple[str, Any, Any]] = [
        ("algo", Annotated[str, tyro.conf.arg(metavar=NAMES)], algo),
        ("agent", record.config, field(default_factory=record.config)),
        ("num_envs", int, record.num_envs),
        ("num_iterations", int, record.num_iterations),
    ]
    if record.presets:
        names: Any = Literal[tuple(record.presets)]
        own.append(("preset", Annotated[names, tyro.conf.arg(help=_about(record))], record.default_preset))
    about = f"A training run with {record.name.upper()}. The same file and seed give the same run."
    inside = {"__doc__": about, "__module__": __name__}
    name = f"{record.name.upper()}TrainConfig"
    return make_dataclass(name, own, bases=(TrainConfig,), namespace=inside, frozen=True, kw_only=True)


def _about(record: Algorithm[Any]) -> str:
    """What ``--help`` says of presets."""
    *most, last = (f"{name} {preset.about}" for name, preset in record.presets.items())
    return (
        f"Settings to begin with, which files and command line change: {', '.join(most)}, {last}. Without it, that of "
        "the file that is shipped for the task; gpu for tasks of simulators, else classic."
    )


def config_class(algo: object, where: str = "algo") -> type[TrainConfig]:
    """The dataclass of a run with the named algorithm.

    Raises:
        ConfigError: there is no such algorithm.
    """
    find(algo, where)
    return _config_class(str(algo))


def read_config(data: Mapping[str, Any], source: str = "configuration") -> TrainConfig:
    """Build a run's configuration from plain values, by the algorithm that they name.

    Raises:
        ConfigError: an unknown algorithm or key, a wrong type or an impossible value.
    """
    return from_dict(config_class(data.get("algo", "ppo"), f"{source}: algo"), data, source)


def _said_once(options: Mapping[str, Any]) -> dict[str, Any]:
    """Free settings, each said once: ``{"a": {"b": 1}, "a.b": 2}`` is ``{"a": {"b": 2}}``; the later one holds.

    A file has tables, and a command line names with points and with either of - and _.
    """
    result: dict[str, Any] = {}
    for key, value in options.items():
        place, name = _place_of(result, str(key)) or (result, key)
        place[name] = _said_once(value) if isinstance(value, Mapping) else value
    return result


def _place_of(options: dict[str, Any], key: str) -> tuple[dict[str, Any], str] | None:
    """The table that already says a setting, and its name there; None: none does."""
    wanted = key.replace("-", "_")
    for name, value in options.items():
        own = str(name).replace("-", "_")
        if not isinstance(value, dict) and own == wanted:
            return options, name
        if isinstance(value, dict) and wanted.startswith(f"{own}."):
            found = _place_of(value, key[len(own) + 1 :])
            if found is not None:
                return found
    return None


def _refuse_huge(settings: Mapping[str, Any]) -> None:
    """Refuse numbers that no computation takes, by their dotted names.

    Raises:
        ConfigError: one is larger than ``LARGEST``, but not infinite, which some settings may be.
    """
    for key, value in _leaves({name: own for name, own in settings.items() if name != "env"}):
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, (int, float)) and LARGEST < abs(number) < math.inf:
                raise ConfigError(f"{key}: {shown(number)} is not possible; give at most {LARGEST:g}")


def is_device(name: str) -> bool:
    """Whether a device can be called that, whether or not it is there."""
    return re.fullmatch(r"auto|cpu|cuda(:\d+)?", name) is not None


def resolve_device(name: str) -> torch.device:
    """The torch device of a name, which becomes PyTorch's own; ``auto`` is CUDA where there is one.

    Raises:
        ConfigError: CUDA is asked for and not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = checked_device(name)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # Triton launches kernels on the present one, whatever they are given
    return device


def safe_name(task: str) -> str:
    """A task's name as the name of a file: ``gym:ALE/Pong-v5`` gives ``gym_ALE_Pong-v5``.

    It is cut to 200 characters, as file systems take 255, which the names of ten tasks have together.
    """
    return re.sub(r"[^A-Za-z0-9._-]", "_", task)[:200]


def with_options(before: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of an env with others in their place.

    ``randomize`` and ``curriculum`` that are none take all of their own settings away, in what was there before.
    """
    off = [n for n, value in given.items() if n.rpartition(".")[2] in SWITCHED and (is_none(value) or value is False)]
    kept = {name: value for name, value in before.items() if not f"{name}.".startswith(tuple(f"{x}." for x in off))}
    return kept | {name: value for name, value in given.items() if name not in off}


def changes(before: TrainConfig, after: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Settings that differ, by dotted name: ``{"agent.gamma": (0.99, 0.98)}``."""
    old, new = dict(_leaves(to_dict(before))), dict(_leaves(to_dict(after)))
    return {key: (old.get(key), new.get(key)) for key in old | new if old.get(key) != new.get(key)}


@contextmanager
def settings_as_typed(agent: Any) -> Iterator[None]:
    """Let errors name the agent's settings as a user types them: ``agent.buffer_size``, not ``buffer_size``.

    Args:
        agent: its settings.
    """
    try:
        yield
    except ConfigError as error:
        names = "|".join(own.name for own in fields(agent))
        # The setting that is wrong comes first, others where the remedy says what to set them to.
        text = re.sub(rf"^(?=({names})[.:])|(?<![\w.-])(?=({names}) to )", "agent.", str(error))
        raise ConfigError(text) from error


def _leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted name; unlike ``groups.leaves`` none of what is empty, which has no setting to differ in."""
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
