"""What decides a sweep, and the folder that keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rlcore.config import ConfigError, check, from_dict, load_yaml, save_yaml
from rlcore.train.sweep.space import Dimension, space_of

PLAN_FILE = "sweep.yaml"
"""In the folder of a sweep, beside ``optuna.journal``, ``runs/`` and ``logs/``."""

MOST_TRIALS = 100_000


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """A sweep; all but ``trials`` and ``parallel`` stays as it began."""

    space: dict[str, str]
    """What each setting may be, by name; see ``rlcore.train.sweep.space``."""
    words: tuple[str, ...] = ()
    """Of ``rlcore train``, the same for all trials."""
    metric: str = "eval/return"
    """What trials are compared by."""
    minimize: bool = False
    """Whether less of it is better."""
    seed: int = 1
    """The first of the seeds."""
    seeds: int = 1
    """Runs of a trial, with as many seeds."""
    prune: bool = True
    """Whether a trial is given up that is worse than the median of the others."""
    trials: int = 20
    """In all; a sweep that goes on counts those there are."""
    parallel: int = 1
    """Runs at a time."""

    def __post_init__(self) -> None:
        """Refuse impossible values.

        Raises:
            ConfigError: names the setting, its value and what is allowed.
        """
        check(1 <= self.trials <= MOST_TRIALS, "trials", self.trials, f"give 1 to {MOST_TRIALS:,}")
        check(1 <= self.parallel <= 1024, "parallel", self.parallel, "give 1 to 1024")
        check(1 <= self.seeds <= 1000, "seeds", self.seeds, "give 1 to 1000")
        check("/" in self.metric, "metric", self.metric, "give a column of metrics.csv, such as eval/return")
        space_of(self.space)

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """Of the space."""
        return space_of(self.space)

    @property
    def better(self) -> str:
        """Which values are better, in a word."""
        return "lower" if self.minimize else "higher"


_IN_WORDS = {"space": "space (--sweep)", "words": "task or setting of rlcore train"}


def read_plan(folder: Path) -> SweepPlan:
    """The plan of a sweep's folder.

    Raises:
        FileNotFoundError: there is no sweep.
        ConfigError: its file is damaged.
    """
    path = folder / PLAN_FILE
    if not path.is_file():
        raise FileNotFoundError(f"no sweep at '{folder}'; give its folder, which has a {PLAN_FILE}")
    return from_dict(SweepPlan, load_yaml(path), str(path))


def write_plan(folder: Path, plan: SweepPlan) -> None:
    """Write the plan into the folder of a sweep, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    save_yaml(folder / PLAN_FILE, plan)


def continued(folder: Path, plan: SweepPlan) -> SweepPlan:
    """The plan of a sweep that the same command goes on with, or a new one.

    Raises:
        ConfigError: there is another sweep in the folder.
    """
    if not (folder / PLAN_FILE).is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise ConfigError(f"--name: '{folder}' is there and is no sweep; give another name")
        return plan
    before = read_plan(folder)
    same = replace(before, trials=plan.trials, parallel=plan.parallel)
    if same != plan:
        own, other = vars(same), vars(plan)
        apart = ", ".join(_IN_WORDS.get(key, key) for key in own if own[key] != other[key])
        raise ConfigError(
            f"'{folder}' has another sweep, with another {apart}; give another --name, or go on with it: "
            f"rlcore sweep --resume {folder}"
        )
    return plan


def trial_name(number: int, seed: int) -> str:
    """What the run of a trial is called."""
    return f"trial-{number:04d}-seed-{seed}"


def run_of(folder: Path, number: int, seed: int) -> Path | None:
    """The latest run folder of a trial with a seed, if there is one."""
    found: Sequence[Path] = sorted(folder.glob(f"runs/*/*/*-{trial_name(number, seed)}"))
    return found[-1] if found else None
