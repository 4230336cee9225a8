"""``rlcore export``: write a policy as ONNX or TorchScript."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlcore.train.arguments import Job, read
from rlcore.train.commands.common import output_elsewhere, required_run

_ENDINGS = {"onnx": ".onnx", "torchscript": ".pt"}


@dataclass(frozen=True, kw_only=True)
class ExportArguments:
    """Write a trained policy as one self-contained file, checked against the policy; needs no simulator."""

    run: Path | None = None
    """Run folder or checkpoint."""
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
    cpp: Path | None = None
    """Folder to write the file to as C++17 source, too: weights as constants, no dependency."""
    gate: bool = True
    """Write the gate of a policy that has one (agent.safety.gate); --no-gate writes the bare policy, and says so."""


def export_command(words: Sequence[str]) -> Job:
    """Write the file that the words of ``rlcore export`` ask for."""
    given = read(words, ExportArguments, "rlcore export")
    if given is None:
        return lambda: 0
    args, _ = given

    from rlcore.export import ExportError, ExportReport, export_onnx, export_torchscript, write_cpp
    from rlcore.train.conclude import DROPPED, drop_stale_figures, export_checkpoint
    from rlcore.train.config import safe_name
    from rlcore.train.run import locate

    run, checkpoint = locate(required_run(args.run), args.checkpoint)
    if args.output is not None and args.output.is_dir():
        raise ValueError(f"--output is '{args.output}', which is a folder; name a file in it, such as policy.onnx")
    if args.cpp is not None and "onnx" not in args.format:
        raise ValueError("--cpp writes what an ONNX file does; add onnx to --format")
    writers: dict[str, Callable[..., ExportReport]] = {
        "onnx": functools.partial(export_onnx, cells=args.cells),
        "torchscript": export_torchscript,
    }
    own = run.exported if args.for_task is None else run.exported.with_name(f"{safe_name(args.for_task)}.onnx")
    for number, kind in enumerate(dict.fromkeys(args.format)):
        file = args.output or own
        if args.output is None or number > 0:
            file = file.with_suffix(_ENDINGS[kind])
        try:
            with output_elsewhere(args.output, file):
                report = export_checkpoint(
                    checkpoint, file, args.dynamic_batch, gate=args.gate, for_task=args.for_task, write=writers[kind]
                )
                source = write_cpp(report.path, args.cpp) if args.cpp is not None and kind == "onnx" else None
        except ExportError as error:
            print(f"rlcore export: refused: {error}", file=sys.stderr)
            return lambda: 1
        print(f"parity    {report.parity}")
        for note in report.notes if number == 0 else ():
            print(f"note      {note}")
        print(f"exported  {report.path} ({report.size_bytes:,} bytes) from {checkpoint}")
        if source is not None:
            kept = f"; {', '.join(source.kept)} left as they were" if source.kept else ""
            told = f"{source.parameters:,} weights{kept}"
            print(f"c++       {source.folder} ({told}); make -C {source.folder} check tries it")
    if drop_stale_figures(run):
        print(DROPPED)
    return lambda: 0
