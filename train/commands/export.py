"""``rlcore export``: write a policy as ONNX or TorchScript."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlcore.train.arguments import Job, read
from rlcore.train.commands.common import check_file, check_folder, output_elsewhere, required_run
from rlcore.train.groups import flag_of

if TYPE_CHECKING:
    from rlcore.export import CppReport

_OF_A_FILE = ("onnx", "show", "cpp", "deploy_yaml", "motors")
_ENDINGS = {"onnx": ".onnx", "torchscript": ".pt"}


@dataclass(frozen=True, kw_only=True)
class ExportArguments:
    """Write a trained policy as one self-contained file, checked against the policy; needs no simulator."""

    run: Path | None = None
    """Run folder or checkpoint."""
    onnx: Path | None = None
    """Exported file to be shown, or written in other forms, instead of a run."""
    checkpoint: str = "best"
    """best, last, or an iteration."""
    format: tuple[Literal["onnx", "torchscript"], ...] = ("onnx",)
    """onnx, or torchscript, which Isaac Lab's controllers load as policy.pt; or both."""
    output: Path | None = None
    """File to write; None: export/policy.onnx in the run folder, or export/TASK.onnx for one of several tasks; of
    TorchScript policy.pt or TASK.pt. Of both formats the second takes the name with its own ending."""
    dynamic_batch: bool = False
    """Let the file take any number of observations at once instead of one."""
    cells: Literal["operator", "decomposed"] = "operator"
    """How an ONNX file has recurrent layers: as the operators LSTM and GRU, or decomposed into products and sums."""
    for_task: str | None = None
    """Of a policy of several tasks the one that the file is for: observations and actions of its own size, as a robot
    needs them. None: for all, with the task as an input."""
    given_task: bool = False
    """Of a policy that infers its task: take the task as an input instead."""
    tolerance: float = 1e-5
    """Largest difference between what the file and the policy give, relative where outputs go beyond -1..1; above it no
    file is written. Long sums, such as those of image features without a projection, round to more."""
    cpp: Path | None = None
    """Folder to write the file to as C++17 source, too: weights as constants, no dependency."""
    show: bool = False
    """Print what the file tells a controller: joints, observations, actions, commands, with units."""
    deploy_yaml: Path | None = None
    """File to write that to in the layout of unitree_rl_lab's deploy.yaml."""
    motors: tuple[str, ...] = ()
    """For deploy.yaml the names of all joints in the order of the robot's motors; same: in the simulator's. None: as
    the task's robot says it by its joint_sdk_names."""
    gate: bool = True
    """Write the gate of a policy that has one (agent.safety.gate); --no-gate writes the bare policy, and says so."""


def export_command(words: Sequence[str]) -> Job:
    """Write the file that the words of ``rlcore export`` ask for."""
    given = read(words, ExportArguments, "rlcore export")
    if given is None:
        return lambda: 0
    args, _ = given

    from rlcore.export import ExportError

    try:
        return _written(args)
    except ExportError as error:
        print(f"rlcore export: refused: {error}", file=sys.stderr)
        return lambda: 1


def _written(args: ExportArguments) -> Job:
    from rlcore.export import ExportReport, export_onnx, export_torchscript, read_metadata, write_cpp
    from rlcore.train.conclude import DROPPED, drop_stale_figures, export_checkpoint
    from rlcore.train.config import safe_name
    from rlcore.train.run import located

    if args.motors and args.deploy_yaml is None:
        raise ValueError("--motors is for --deploy-yaml FILE, which is missing; add it or leave --motors out")
    check_file("--deploy-yaml", args.deploy_yaml, "deploy.yaml")
    check_folder("--cpp", args.cpp)
    if args.onnx is not None:
        _check_alone(args)
        if not (args.show or args.cpp or args.deploy_yaml):
            raise ValueError("--onnx names a file that is written already; add --show, --cpp DIR or --deploy-yaml FILE")
        metadata = read_metadata(args.onnx)
        if args.show or args.deploy_yaml is not None:
            _check_told(args.onnx, metadata)
        if args.cpp is not None:
            print(_told_source(write_cpp(args.onnx, args.cpp)))
        with _damaged(args.onnx):
            _tell(args, metadata)
        return lambda: 0
    run, checkpoint = located(required_run(args.run), args.checkpoint)
    check_file("--output", args.output, "policy.onnx")
    if args.cpp is not None and "onnx" not in args.format:
        raise ValueError("--cpp writes what an ONNX file does; add onnx to --format")
    if args.cells != "operator" and "onnx" not in args.format:
        raise ValueError(f"--cells is '{args.cells}', which is for ONNX; leave it out, or add onnx to --format")
    if not 0 < args.tolerance < 1:
        raise ValueError(f"--tolerance is {args.tolerance:g}; give a number above 0 and below 1, such as 3e-5")
    writers: dict[str, Callable[..., ExportReport]] = {
        "onnx": functools.partial(export_onnx, cells=args.cells, tolerance=args.tolerance),
        "torchscript": functools.partial(export_torchscript, tolerance=args.tolerance),
    }
    own = run.exported if args.for_task is None else run.exported.with_name(f"{safe_name(args.for_task)}.onnx")
    files: dict[str, Path] = {}
    for name in dict.fromkeys(args.format):
        other = (args.output or own).with_suffix(_ENDINGS[name])
        files[name] = other if args.output is None or files else args.output
    if len({*files.values()}) < len(files):
        raise ValueError(f"--output is '{args.output}', which both formats would be written to; give another ending")
    for kind, file in files.items():
        with output_elsewhere(args.output, file):
            report = export_checkpoint(
                checkpoint, file, args.dynamic_batch, gate=args.gate, for_task=args.for_task,
                given_task=args.given_task, write=writers[kind],
            )  # fmt: skip
        print(f"parity    {report.parity}")
        for note in report.notes if kind == args.format[0] else ():
            print(f"note      {note}")
        print(f"exported  {report.path} ({report.size_bytes:,} bytes) from {checkpoint}")
    if drop_stale_figures(run):
        print(DROPPED)
    if args.cpp is not None:
        print(_told_source(write_cpp(files["onnx"], args.cpp)))
    _tell(args, report.metadata)
    return lambda: 0


def _check_alone(args: ExportArguments) -> None:
    """Refuse what is for writing a file together with one that is there already."""
    defaults = ExportArguments()
    for name in [field.name for field in dataclasses.fields(args) if field.name not in _OF_A_FILE]:
        if getattr(args, name) != getattr(defaults, name):
            written = "and --onnx names a file that is written already; leave one out"
            raise ValueError(f"{flag_of(name)} is for a run, {written}")


def _check_told(path: Path, metadata: Mapping[str, Any]) -> None:
    """Refuse a file of which nobody knows what it tells: somebody else's, or a damaged one."""
    from rlcore.export.schema import SCHEMA_VERSION, SchemaError, check_facts

    version = metadata.get("schema_version")
    if version is None:
        raise ValueError(
            f"'{path}' has no schema_version: rlcore did not write it, or long ago; export it with --run RUN"
        )
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"'{path}' has schema_version {version}, and this is {SCHEMA_VERSION}; export it anew with --run RUN"
        )
    try:
        check_facts(metadata)
    except SchemaError as error:
        raise ValueError(f"'{path}': {error}") from error


@contextlib.contextmanager
def _damaged(path: Path) -> Iterator[None]:
    """Name a file that tells of itself what no export writes, wherever that comes to light."""
    from rlcore.export import ExportError

    try:
        yield
    except ExportError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"'{path}' tells of itself what no export writes ({type(error).__name__}: {error}); export it anew"
        ) from error


def _told_source(source: CppReport) -> str:
    kept = f"; {', '.join(source.kept)} left as they were" if source.kept else ""
    check = f"; make -C {source.folder} check tries it" if "policy_trace.hpp" in source.written else ""
    return f"c++       {source.folder} ({source.parameters:,} weights{kept}){check}"


def _tell(args: ExportArguments, metadata: Mapping[str, Any]) -> None:
    """Write what a file tells in another layout, and print what was asked for."""
    from rlcore.export import deploy_yaml, shown
    from rlcore.files import whole_file

    if args.deploy_yaml is not None:
        text = deploy_yaml(metadata, args.motors)
        with whole_file(args.deploy_yaml) as file:
            file.write(text)
        print(f"deploy    {args.deploy_yaml}")
    if args.show:
        print(f"\n{shown(metadata)}")
