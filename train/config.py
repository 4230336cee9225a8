"""What decides a training run, and how its layers are put together."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import gymnasium
import torch

from rlcore.config import ConfigError, check, from_dict, load_yaml, nearest, shown, to_dict
from rlcore.ddpg import DDPGConfig
from rlcore.device import checked_device
from rlcore.envs.launch import SIMULATORS, simulator_of
from rlcore.off_policy_config import OffPolicyConfig
from rlcore.ppo_config import PPOConfig
from rlcore.sac import SACConfig

CONFIGS = Path(__file__).resolve().parent / "configs"
"""Folder of the files that are shipped for tasks; see ``shipped_config``."""

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

RESUMABLE = frozenset(
    {
        "num_iterations",
        "save_interval",
        "keep_checkpoints",
        "eval_interval",
        "eval_envs",
        "eval_stage",
        "log_interval",
        "export",
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
class TrainConfig:
    """A training run, with PPO unless a subclass says otherwise. The same file and seed give the same run."""

    task: str
    """What to train: a built-in task such as CartPole, or gym:<id>; `rlcore tasks` lists them."""
    algo: Literal["ppo", "sac", "ddpg"] = "ppo"
    """Learning algorithm; the settings of the agent are its own. --algo td3 means ddpg with the preset td3."""
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
    eval_stage: Literal["trained", "start"] = "trained"
    """Where the curricula of an env stand in evaluations: where training stands by then, or where they began."""
    log_interval: int = 10
    """Iterations that are averaged into one row of metrics.csv, one tensorboard point and one printed line."""
    capture_env: bool | None = None
    """On CUDA, record the whole rollout, env included, as one graph. None: where the env allows it."""
    export: bool = True
    """Export the best checkpoint to ONNX at the end, and evaluate the file."""
    agent: PPOConfig = field(default_factory=PPOConfig)
    """Settings of the algorithm."""
    env: dict[str, Any] = field(default_factory=dict)
    """Options of the task, as `--env.<option> VALUE`; see the task's description."""

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
            ("log_interval", 1),
        ):
            value = getattr(self, name)
            check(value >= least, name, value, f"give {least} or more")
        check(self.threads is None or 1 <= self.threads <= MOST_THREADS, "threads", self.threads, REMEDY_THREADS)
        for name in ("num_envs", "eval_envs"):
            check(getattr(self, name) <= MOST_ENVS, name, getattr(self, name), f"give at most {MOST_ENVS:,}")
        check(self.seed <= LARGEST_SEED, "seed", self.seed, f"give a number from 0 to {LARGEST_SEED}")
        check(is_device(self.device), "device", self.device, f"give {DEVICES}")
        plain = self.name is None or (safe_name(self.name) == self.name and len(self.name) <= LONGEST_NAME)
        check(plain, "name", self.name, f"use letters, digits, '.', '_' and '-' only, and at most {LONGEST_NAME}")
        _refuse_huge(to_dict(self))


@dataclass(frozen=True, kw_only=True)
class SACTrainConfig(TrainConfig):
    """A training run with SAC. The same file and seed give the same run."""

    algo: Literal["ppo", "sac", "ddpg"] = "sac"
    """Learning algorithm; the settings of the agent are its own. --algo td3 means ddpg with the preset td3."""
    preset: Literal["classic", "gpu"] = "classic"
    """Settings to begin with, which files and command line change: classic for one or a few envs, gpu for hundreds and
    more. Without it, that of the file that is shipped for the task; gpu for tasks of simulators, else classic."""
    agent: SACConfig = field(default_factory=SACConfig)  # type: ignore[assignment]
    """Settings of the algorithm."""


@dataclass(frozen=True, kw_only=True)
class DDPGTrainConfig(TrainConfig):
    """A training run with DDPG. The same file and seed give the same run."""

    algo: Literal["ppo", "sac", "ddpg"] = "ddpg"
    """Learning algorithm; the settings of the agent are its own. --algo td3 means ddpg with the preset td3."""
    preset: Literal["classic", "td3", "gpu"] = "classic"
    """Settings to begin with, which files and command line change: classic for one or a few envs, td3 for the same with
    what makes it TD3, gpu for hundreds of envs and more. Without it, that of the file that is shipped for the task; gpu
    for tasks of simulators, else classic."""
    agent: DDPGConfig = field(default_factory=DDPGConfig)  # type: ignore[assignment]
    """Settings of the algorithm."""


CONFIG_CLASSES: dict[str, type[TrainConfig]] = {"ppo": TrainConfig, "sac": SACTrainConfig, "ddpg": DDPGTrainConfig}
"""Settings of a run by algorithm."""

_AGENTS: dict[str, type[OffPolicyConfig]] = {"sac": SACConfig, "ddpg": DDPGConfig}


def algorithm(name: str, preset: str | None = None) -> tuple[str, str | None]:
    """Algorithm and preset that a command line means: ``td3`` is a name for DDPG with a preset.

    Raises:
        ConfigError: ``td3`` with a preset that does not make DDPG that.
    """
    if name != "td3":
        return name, preset
    if preset == "classic":
        raise ConfigError(
            "--preset is 'classic', which is DDPG without what makes it td3; leave it out, or add --algo ddpg"
        )
    return "ddpg", preset or "td3"


def config_class(algo: object, where: str = "algo") -> type[TrainConfig]:
    """The dataclass of a run with the named algorithm.

    Raises:
        ConfigError: there is no such algorithm.
    """
    if not isinstance(algo, str) or algo not in CONFIG_CLASSES:
        known = [*CONFIG_CLASSES, "td3"] if where.startswith("-") else CONFIG_CLASSES
        raise ConfigError(f"{where}: {algo!r} is no algorithm; {nearest(str(algo), known)}")
    return CONFIG_CLASSES[algo]


def read_config(data: Mapping[str, Any], source: str = "configuration") -> TrainConfig:
    """Build a run's configuration from plain values, by the algorithm that they name.

    Raises:
        ConfigError: an unknown algorithm or key, a wrong type or an impossible value.
    """
    return from_dict(config_class(data.get("algo", "ppo"), f"{source}: algo"), data, source)


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
    """A task's name as the name of a file: ``gym:ALE/Pong-v5`` gives ``gym_ALE_Pong-v5``."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", task)


def shipped_config(task: str, algo: str = "ppo", preset: str = "classic") -> Path | None:
    """The file in ``train/configs`` for a task or, failing that, for its family.

    PPO's are in the folder itself, those of others in one each, and those of the preset ``gpu`` in another, such as
    ``sac-gpu``. ``Reach-UR5e-IK`` looks for ``Reach-UR5e-IK``, ``Reach-UR5e`` and ``Reach``, a gymnasium id last for
    its family, such as ``gym_mujoco``, and ``gym``, and every task for ``default``.
    """
    folder = CONFIGS if algo == "ppo" else CONFIGS / (f"{algo}-gpu" if preset == "gpu" else algo)
    name = safe_name(task)[:200]  # file systems take no longer names
    names = [name]
    while "-" in name:
        name = name.rpartition("-")[0]
        names.append(name)
    if task.startswith("gym:"):
        names += [*_gymnasium_family(task.removeprefix("gym:")), "gym"]
    names.append("default")
    return next((path for name in names if (path := folder / f"{name}.yaml").is_file()), None)


def _gymnasium_family(env_id: str) -> list[str]:
    """What a file for all tasks of one of gymnasium's own folders is called; nothing for ids of others."""
    entry_point = getattr(gymnasium.registry.get(env_id), "entry_point", None)
    found = re.match(r"gymnasium\.envs\.(\w+)\.", entry_point) if isinstance(entry_point, str) else None
    return [] if found is None else [f"gym_{found[1]}"]


def preset_of(task: str, algo: str, file: Path | None = None) -> str | None:
    """The preset that a task is trained with if the command line names none; None for PPO, which has no presets.

    It is the one that the given file names, else the one that a file is shipped with for the task, else ``gpu`` for the
    tasks of simulators, which are many envs on a GPU.
    """
    if algo == "ppo":
        return None
    named = None if file is None else load_yaml(file).get("preset")
    if named is not None:
        return str(named)
    for preset in ("classic", "gpu"):
        path = shipped_config(task, algo, preset)
        if path is not None and path.stem != "default":
            return preset
    return "gpu" if simulator_of(task) in SIMULATORS else "classic"


def default_config(
    task: str,
    file: Path | None = None,
    registered: Mapping[str, Any] | None = None,
    algo: str = "ppo",
    preset: str | None = None,
) -> tuple[TrainConfig, list[Path]]:
    """Defaults of the dataclass, then of the shipped file or what the task is registered with, then the given file.

    A given file's own ``algo`` has to be the one that is asked for. SAC and DDPG begin with a preset: see ``preset_of``
    for what it is unless named.

    Returns:
        The configuration, and the files it came from.

    Raises:
        ConfigError: a file is missing, or has an unknown key or an impossible value, or there is no such preset.
    """
    own = config_class(algo)
    registered = registered or {}
    given = {} if file is None else load_yaml(file)
    if CONFIG_CLASSES.get(str(given.get("algo")), own) is not own:
        raise ConfigError(f"--algo is '{algo}', and {file} has the settings of '{given['algo']}'; leave one out")
    own_preset = given.get("preset")
    if preset is not None and own_preset not in (None, preset):
        raise ConfigError(f"--preset is '{preset}', and {file} has the settings of '{own_preset}'; leave one out")
    preset = preset or registered.get("preset") or preset_of(task, algo, file)
    if preset is not None and algo == "ppo":
        raise ConfigError(f"--preset is '{preset}', and ppo has none; leave it out, or add --algo sac or --algo ddpg")
    # What a task is registered with stands in the place of what is shipped for it.
    shipped = None if "agent" in registered else shipped_config(task, algo, preset or "classic")
    files = [path for path in (shipped, file) if path is not None]
    begin = {} if preset is None else {"preset": preset, "agent": to_dict(_AGENTS[algo].preset(preset))}
    data = _merged(_merged(to_dict(own(task=task)), begin), registered)
    config = from_dict(own, data)
    for path in files:
        data = _merged(data, load_yaml(path))
        # Converted once per layer, so that an error names the file that it comes from.
        config = from_dict(own, data, source=str(path))
    return config, files


def task_of(file: Path) -> str | None:
    """The task that a configuration file names, if any."""
    task = load_yaml(file).get("task")
    if task is not None and not isinstance(task, str):
        raise ConfigError(f"{file}: task is {task!r}; give the name of a task, see `rlcore tasks`")
    return task


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
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``over``, section by section."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result
