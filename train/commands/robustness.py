"""``rlcore robustness``: measure a policy under disturbances."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlcore.train.arguments import Job, read
from rlcore.train.commands.common import check_counts, check_folder, check_seed, output_elsewhere
from rlcore.train.commands.launching import launched

if TYPE_CHECKING:
    from rich.console import Console

    from rlcore.env import VecEnv
    from rlcore.train.robustness_plan import Plan
    from rlcore.train.source import Source

SET_HERE = ("randomize", "curriculum")
"""Options of an env that would change what this command sets."""


@dataclass(frozen=True, kw_only=True)
class RobustnessArguments:
    """Measure a policy under disturbances of growing magnitude: types x magnitudes x episodes in one batch of envs."""

    run: Path | None = None
    """Run folder or checkpoint."""
    checkpoint: str = "best"
    """best, last, or an iteration."""
    onnx: Path | None = None
    """Exported file to measure instead, by itself."""
    compare: list[Path] | None = None
    """Further runs or .onnx files, of the same task, for the same table and pictures."""
    types: list[str] | None = None
    """external_force, sensor_noise, actuator_delay, model_uncertainty, or any parameter of the env by its name, each as
    NAME, NAME=LOW:HIGH or NAME=LOW:HIGH:POINTS. None: those four, as far as the env can, unless there is a grid."""
    grid: list[str] | None = None
    """Two or three types, written in the same way, that are tried in all combinations."""
    magnitudes: list[float] | None = None
    """Of all types that are given without a range. None: what suits each type."""
    episodes: int = 64
    """Episodes of each cell, each in an env of its own."""
    least: float = 0.5
    """A cell is a breakdown below this: of success where the task reports it, else of the nominal return."""
    batch: Literal["auto", "one", "cells"] = "auto"
    """one: all cells at once; cells: one after the other, from the same seed. auto: one where the cells can share their
    random numbers, or on a GPU."""
    task: str | None = None
    """Another task with the same observations and actions; or that of a file that does not name its own."""
    stage: Literal["trained", "start"] | None = None
    """Where the curricula of the env stand: where training stood last, or where they begin. None: trained, where it is
    known."""
    seed: int = 4_000_003
    """Seed of the episodes: those of rlcore eval, with as many envs as there are episodes here."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<index>."""
    threads: int | None = None
    """CPU threads of PyTorch. None: by the size of the policy and episodes, or what OMP_NUM_THREADS says."""
    output: Path | None = None
    """Folder for robustness.json and the pictures; None: the run folder, or that of the ONNX file."""


def robustness_command(words: Sequence[str]) -> Job:
    """Read the words of ``rlcore robustness``."""
    given = read(launched(words), RobustnessArguments, "rlcore robustness", free="env")
    if given is None:
        return lambda: 0
    args, options = given
    check_counts(episodes=args.episodes, threads=args.threads)
    check_seed(args.seed)
    _check(args, options)

    from rlcore.envs.launch import bare_name, simulator_of
    from rlcore.train.source import policy_and_env

    chosen = [(args.run, args.onnx), *((None, p) if p.suffix == ".onnx" else (p, None) for p in args.compare or ())]
    sources: list[Source] = []
    with contextlib.ExitStack() as opened:
        for run, onnx in chosen:
            asked = replace(args, run=run, onnx=onnx)
            sources.append(policy_and_env(asked, options, args.episodes, without=SET_HERE))
            opened.callback(sources[-1].env.close)
            first = sources[0]
            if bare_name(sources[-1].task) != bare_name(first.task):
                raise ValueError(
                    f"'{sources[-1].path}' is of {sources[-1].task} and '{first.path}' of {first.task}; "
                    "compare policies of one task"
                )
            if simulator_of(first.task) == "isaaclab" and (args.compare or args.batch == "one"):
                raise ValueError("Isaac Sim has one scene a process; leave --compare and --batch one out")
            histories = [name for name in sources[-1].options if name.rpartition(".")[2] == "action_history"]
            if getattr(sources[-1].env, "tasks", ()) and histories:
                raise ValueError(f"env.{histories[0]}: disturbances of several tasks would reach it; give one --task")
            if args.batch == "one" and len(getattr(first.env, "tasks", ())) > 1:
                raise ValueError(
                    f"--batch one: {first.task} is measured cell by cell; leave it out, or choose a --task"
                )
        plan, left_out = _plan(args, sources)
        closing = opened.pop_all()

    def job() -> int:
        with closing:
            return _measured(args, plan, left_out, sources)

    return job


def _check(args: RobustnessArguments, options: dict[str, Any]) -> None:
    """Refuse what cannot be meant."""
    if not 0 < args.least < 1:
        raise ValueError(f"--least is {args.least}; give a share between 0 and 1")
    for name in options:
        if name.partition(".")[0] in SET_HERE:
            raise ValueError(f"--env.{name}: parameters are set here by --types; leave it out")
    if args.grid is not None and len(args.grid) not in (2, 3):
        raise ValueError(f"--grid has {len(args.grid)} type{'s' * (len(args.grid) != 1)}; give two or three")
    check_folder("--output", args.output)


def _plan(args: RobustnessArguments, sources: Sequence[Source]) -> tuple[Plan, list[str]]:
    from rlcore.envs.disturb import disturbances
    from rlcore.envs.history import without_history
    from rlcore.train.robustness_plan import planned

    env = sources[0].env
    types = [] if args.types is None and args.grid else args.types
    return planned(env, disturbances(without_history(env)), types, args.grid or (), args.magnitudes)


def _measured(args: RobustnessArguments, plan: Plan, left_out: Sequence[str], sources: Sequence[Source]) -> int:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from rlcore.train import robustness_pictures as pictures
    from rlcore.train import robustness_report as report
    from rlcore.train.conclude import say, write_json
    from rlcore.train.ending import standard_output
    from rlcore.train.robustness import Measured, measure

    console = Console(file=standard_output())
    first = sources[0]
    for line in left_out:
        say(console, line)
    folder = _folder(args, first)  # not after minutes of measuring
    results: list[Measured] = []
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        for source, label in zip(sources, labels(sources), strict=True):
            _say_source(args, source, console)
            task = bar.add_task(label, total=None)

            def advance(done: int, total: int, task: TaskID = task) -> None:
                bar.update(task, completed=done, total=total)

            made, batch, scales = partial(_disturbed, args, plan, source), _batch(args, source), _scales(source)
            results.append(
                measure(
                    source.env, made, source.policy, plan, args.seed, source.stage, scales=scales, batch=batch,
                    on_step=advance,
                )
            )  # fmt: skip
    nominal = results[0].nominal
    scale = report.Scale(
        reference=nominal, success=nominal.goals is not None and float(nominal.goals.sum()) > 0, least=args.least,
        paired=results[0].paired, seed=args.seed,
    )  # fmt: skip
    figures = []
    for source, label, result in zip(sources, labels(sources), results, strict=True):
        about = {"policy": str(source.path), "env": source.options}
        figures.append(about | report.figures_of(label, result, plan, scale))
    record = {
        "task": first.task, "seed": args.seed, "episodes": args.episodes, "least": args.least,
        "score": "success" if scale.success else "return_share", "policies": figures,
    }  # fmt: skip
    wide = Console(file=standard_output(), width=None if console.is_terminal else 130)
    for entry in figures if plan.sweeps else ():
        wide.print(report.cells_table(entry, scale.success))
    if plan.sweeps:
        wide.print(report.types_table(figures, scale.success))
    for line in report.area_lines(figures, scale.success) + report.unmoved_lines(figures):
        say(console, line)
    for line in (text for entry in figures for text in report.grid_lines(entry)):
        say(console, line)
    say(console, report.ABOUT)
    say(console, report.how_text(results[0]))
    for entry in figures:
        say(console, f"{entry['label']}: {report.policy_line(entry, scale.success, first.task, args.episodes)}")
    files = [folder / "robustness.json"]
    with output_elsewhere(args.output, folder):
        write_json(files[0], record)
        if plan.sweeps:
            files += [folder / "robustness-heatmap.png", folder / "robustness-curves.png"]
            pictures.heat_map(files[1], figures, scale.success, first.task)
            pictures.curves(files[2], figures, scale.success, first.task, args.least)
        if plan.grid:
            files.append(folder / "robustness-grid.png")
            pictures.grid(files[-1], figures, scale.success, first.task)
    say(console, f"written to {', '.join(map(str, files))}")
    return 0


def _folder(args: RobustnessArguments, first: Source) -> Path:
    """Where the results go; it can be written."""
    folder = args.output or first.folder
    with output_elsewhere(args.output, folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:
            raise ValueError(f"--output '{folder}' cannot be made: {error.strerror}; name another folder") from error
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    return folder


def labels(sources: Sequence[Source]) -> list[str]:
    """Short names of policies: a run's own name, and of files that they are; all different."""
    found: list[str] = []
    for source in sources:
        file = source.path.suffix == ".onnx"
        run = next((p for p in source.path.resolve().parents if (p / "config.yaml").is_file()), None)
        name = source.path.stem if run is None else run.name.partition("-")[2].partition("-")[2] or run.name
        name += " (ONNX)" if file else ""
        same = sum(other == name or other.startswith(f"{name} #") for other in found)
        found.append(f"{name} #{same + 1}" if same else name)
    return found


def _say_source(args: RobustnessArguments, source: Source, console: Console) -> None:
    import torch
    from torch import nn

    from rlcore.train.conclude import say
    from rlcore.train.threads import use_threads

    say(console, f"{source.task}, {source.path}")
    notes = list(source.notes)
    if isinstance(source.policy, nn.Module):
        notes += use_threads(args.threads, args.episodes, source.policy, torch.device(source.env.device))
    for line in notes:
        say(console, line)


def _batch(args: RobustnessArguments, source: Source) -> Literal["auto", "one", "cells"]:
    from rlcore.envs.launch import simulator_of

    return "cells" if simulator_of(source.task) == "isaaclab" else args.batch


def _scales(source: Source) -> dict[str, Any] | None:
    """The deviation of each number of an observation that the policy's normalizer knows, by group ``[O]``."""
    import torch

    from rlcore.agent import Policy
    from rlcore.export.observations import observed

    if isinstance(source.policy, Policy):
        std = observed(source.policy, None).get("observation_std")
        sizes = dict(source.policy.observation_sizes)
    else:
        std = source.policy.metadata.get("observation_std")
        sizes = {g["name"]: g["size"] for g in source.policy.metadata.get("observation_groups", ())}
    if std is None or not sizes:
        return None
    parts = torch.split(torch.as_tensor(std, dtype=torch.float32).cpu(), list(sizes.values()))
    return dict(zip(sizes, parts, strict=True))


def _disturbed(args: RobustnessArguments, plan: Plan, source: Source, rows: int | None, scales: Any) -> Any:
    """The env with the disturbances of a plan; around the source's own for None."""
    import math

    from rlcore.env import is_randomizable, want_final_obs
    from rlcore.envs import make_env
    from rlcore.envs.disturb import MAX_DELAY, Disturbed
    from rlcore.envs.history import disturbed_within

    env = source.env
    if rows is not None:
        env = make_env(source.task, rows, env.device, seed=args.seed, **source.options)
        want_final_obs(env, ())  # nobody reads them
    own = env.parameters if is_randomizable(env) else {}
    names = {name for sweep in plan.by_name.values() for name in sweep.parameters if name not in own}
    if not names:
        return env
    late = [
        m for s in plan.by_name.values() if s.parameters and s.parameters[0].endswith("_delay") for m in s.magnitudes
    ]
    longest = max(MAX_DELAY, *(math.ceil(m) for m in late)) if late else MAX_DELAY

    def around(inner: VecEnv) -> VecEnv:
        sizes = {group: space.shape[0] for group, space in inner.observation_spaces.items()}
        on = {group: values.to(inner.device)[: sizes[group]] for group, values in scales.items()}
        return Disturbed(inner, names, scales=on, max_delay=longest, seed=args.seed)

    return disturbed_within(env, around)
