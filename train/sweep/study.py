"""Which settings to try next, and which trials to give up: Optuna's part of a sweep."""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlcore.train.sweep.plan import SweepPlan
from rlcore.train.sweep.space import Dimension

GET_OPTUNA = (
    "rlcore sweep needs Optuna, which is not installed; run: pip install 'rlcore[sweep]', or pip install optuna"
)

JOURNAL_FILE = "optuna.journal"
"""In the folder of a sweep: all trials, a line for each thing that happened, as Optuna's own tools read it."""

STATES = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}

FEWEST_FOR_IMPORTANCE = 4
"""Trials that are done."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A trial of a sweep, as far as it has come."""

    number: int
    state: str
    """done, pruned, failed, running or waiting."""
    settings: Mapping[str, str]
    """As they are written on a command line."""
    value: float | None = None
    """Of the metric, mean over seeds, of a trial that is done; of one that is pruned the last that was seen."""
    values: Mapping[str, float] = field(default_factory=dict)
    """By seed."""
    runs: tuple[str, ...] = ()
    """Run folders, within that of the sweep."""
    iteration: int | None = None
    """The last one that was reported."""
    seconds: float | None = None
    """Of all seeds together, interruptions aside."""
    why: str = ""
    """What made it fail."""


class Study:
    """The trials of a sweep, kept in a file at every change.

    Proposals are those of the tree-structured Parzen estimator (Bergstra et al. 2011, section 4), after ten at random;
    a trial in progress counts as a bad one, so that runs side by side are apart from each other.
    """

    def __init__(self, folder: Path, plan: SweepPlan) -> None:
        """Open the trials of a folder, or begin.

        Raises:
            ImportError: Optuna is not installed; the message says how to get it.
        """
        require_optuna()
        import optuna
        from optuna.storages.journal import JournalFileBackend

        self._optuna = optuna
        self._dimensions = plan.dimensions
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / JOURNAL_FILE)))
        pruner: Any = optuna.pruners.MedianPruner() if plan.prune else optuna.pruners.NopPruner()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that an argument of the sampler may change in later versions
            self._study = optuna.create_study(
                storage=storage,
                study_name=folder.name or "sweep",
                direction="minimize" if plan.minimize else "maximize",
                pruner=pruner,
                load_if_exists=True,
            )
            # Another seed for each beginning, so that a sweep that goes on does not draw the same once more.
            self._study.sampler = optuna.samplers.TPESampler(seed=plan.seed + self.begun, constant_liar=True)

    @property
    def begun(self) -> int:
        """Trials there are, in whatever state."""
        return len(self._study.get_trials(deepcopy=False))

    def interrupted(self) -> list[Handle]:
        """Trials that were running when the sweep ended, to go on with."""
        running = self._study.get_trials(states=(self._optuna.trial.TrialState.RUNNING,))
        return [self._handle(self._optuna.trial.Trial(self._study, trial._trial_id)) for trial in running]

    def ask(self) -> Handle:
        """The next trial."""
        return self._handle(self._study.ask())

    def _handle(self, trial: Any) -> Handle:
        return Handle(self._optuna, self._study, trial, {d.name: d.text(_value(trial, d)) for d in self._dimensions})

    def trials(self) -> list[Trial]:
        """All of them, in the order in which they began."""
        return [self._read(trial) for trial in self._study.get_trials()]

    def best(self) -> Trial | None:
        """Of those that are done, the one with the best value."""
        done = [trial for trial in self.trials() if trial.state == "done" and trial.value is not None]
        pick = min if self._study.direction == self._optuna.study.StudyDirection.MINIMIZE else max
        return pick(done, key=lambda trial: trial.value or 0.0) if done else None

    def importances(self) -> dict[str, float]:
        """How much each setting mattered, of 1 in all; empty where too little is known.

        By PED-ANOVA (Watanabe, Bansal and Hutter 2023): how far apart, along one setting, the better trials are from
        all others.
        """
        done = [trial.value for trial in self.trials() if trial.state == "done"]
        if len(done) < FEWEST_FOR_IMPORTANCE or len(set(done)) < 2:
            return {}
        evaluator = self._optuna.importance.PedAnovaImportanceEvaluator
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = self._optuna.importance.get_param_importances(self._study, evaluator=evaluator())
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def _read(self, trial: Any) -> Trial:
        own, steps = trial.user_attrs, trial.intermediate_values
        known = {d.name: d for d in self._dimensions}
        return Trial(
            number=trial.number,
            state=STATES[trial.state.name],
            settings={name: known[name].text(value) for name, value in trial.params.items() if name in known},
            value=trial.value,
            values=own.get("values", {}),
            runs=tuple(own.get("runs", ())),
            iteration=max(steps, default=None),
            seconds=own.get("seconds"),
            why=own.get("why", ""),
        )


class Handle:
    """A trial in progress."""

    def __init__(self, optuna: Any, study: Any, trial: Any, settings: Mapping[str, str]) -> None:
        self.settings = settings
        self.number: int = trial.number
        self._states = optuna.trial.TrialState
        self._study, self._trial = study, trial
        frozen = study.get_trials(deepcopy=False)[self.number]
        self._reported: set[int] = set(frozen.intermediate_values)
        self.values: dict[str, float] = dict(frozen.user_attrs.get("values", {}))
        """By seed, of the runs that are done."""
        self.seconds = float(frozen.user_attrs.get("seconds", 0.0))

    def report(self, iteration: int, value: float) -> bool:
        """Tell what a run has come to, and hear whether to give the trial up, from its second value on."""
        if iteration in self._reported or not math.isfinite(value):
            return False
        self._reported.add(iteration)
        self._trial.report(value, iteration)
        return len(self._reported) > 1 and bool(self._trial.should_prune())

    def note(self, **facts: object) -> None:
        """Keep facts of the trial: ``values``, ``runs``, ``seconds``, ``why``."""
        for name, fact in facts.items():
            self._trial.set_user_attr(name, fact)
        self.seconds = float(facts.get("seconds", self.seconds))  # type: ignore[arg-type]

    def done(self) -> float:
        """Tell the mean over seeds, which is returned."""
        value = sum(self.values.values()) / len(self.values)
        self._study.tell(self._trial, value)
        return value

    def pruned(self) -> None:
        """Tell that it was given up."""
        self._study.tell(self._trial, state=self._states.PRUNED)

    def failed(self, why: str) -> None:
        """Tell that it failed."""
        self.note(why=why)
        self._study.tell(self._trial, state=self._states.FAIL)


def _value(trial: Any, dimension: Dimension) -> object:
    """What a trial takes; what it has been given before stays."""
    if dimension.kind == "choice":
        return trial.suggest_categorical(dimension.name, dimension.choices)
    if dimension.kind == "int":
        return trial.suggest_int(dimension.name, int(dimension.low), int(dimension.high))
    return trial.suggest_float(dimension.name, dimension.low, dimension.high, log=dimension.kind == "log")


def require_optuna() -> None:
    """Refuse to begin without Optuna.

    Raises:
        ImportError: it is not installed; the message says how to get it.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ImportError(GET_OPTUNA)
