"""What every report begins with, how it looks in Markdown, and what its cells say."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import shlex
import statistics
from pathlib import Path
from typing import Any


def hardware(device: str) -> dict[str, Any]:
    """What the figures were taken on."""
    import torch

    facts: dict[str, Any] = {"cpu": _cpu_model(), "cores": os.cpu_count(), "system": platform.platform()}
    if torch.device(device).type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def header(kind: str, arguments: list[str], settings: Any) -> dict[str, Any]:
    """What every report begins with; folders of the files to come are made, as hours of work may lie before them."""
    import torch  # here, because tables are made without it

    for name in ("json", "csv", "plot", "profile", "onnx"):
        if isinstance(path := getattr(settings, name, None), Path):
            path.parent.mkdir(parents=True, exist_ok=True)
    # Folders of this machine mean nothing elsewhere.
    arguments = [Path(text).name if Path(text).is_absolute() else text for text in arguments]
    plain = {key: value.name if isinstance(value, Path) else value for key, value in vars(settings).items()}
    return {
        "kind": kind,
        "command": shlex.join(["python", f"benchmarks/{kind}.py", *arguments]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "settings": plain,
        "hardware": hardware(settings.device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda},
    }


def write(report: dict[str, Any], path: Path | None) -> None:
    """Write the report as JSON, if it is wanted."""
    if path is not None:
        path.write_text(json.dumps(report, indent=1) + "\n")


def preamble(report: dict[str, Any]) -> str:
    """When, on what, and by which command."""
    hardware, versions = report["hardware"], report["versions"]
    machine = ", ".join(filter(None, (hardware.get("gpu"), f"{hardware['cores']} × {hardware['cpu']}")))
    made = f"{report['date'][:10]}; {machine}; torch {versions['torch']}, Python {versions['python']}."
    return f"{made}\n\n    {report['command']}"


def pipes(heads: list[str], rows: list[list[str]], left: tuple[int, ...] = ()) -> str:
    """A Markdown table; columns are right-aligned but for ``left``."""
    rule = ["---" if column in left else "--:" for column in range(len(heads))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, rule, *rows])


def label(result: dict[str, Any], full: bool = False) -> str:
    """What a line or row is called: a library with its precision, and of rlcore what is not as usual."""
    words = [str(result["name"]), str(result["precision"])]
    if result["name"] == "rlcore" and (full or result["mode"] != "graph"):
        words.append(str(result["mode"]))
    return " ".join(words) + (", env in the graph" if result.get("env_in_graph") else "")


def setup(result: dict[str, Any]) -> str:
    """Seconds lost before the first usual iteration."""
    return f"{result['setup']['lost_s']:.1f}" + (" cold" if result["setup"]["cold"] else "")


def memory(result: dict[str, Any]) -> str:
    """The most that torch reserved, in MiB; empty on a CPU."""
    return "" if result["memory_mib"] is None else f"{result['memory_mib']['reserved']:,.0f}"


def ratio(theirs: dict[str, Any], mine: dict[str, Any]) -> str:
    """Another's time for an iteration by this one's; of several rounds the median of their ratios (least..most)."""
    rounds = [[r["iteration_ms"] for r in result.get("rounds", ())] for result in (theirs, mine)]
    if theirs is mine or len(rounds[0]) < 2 or len(rounds[0]) != len(rounds[1]):
        return f"{theirs['iteration_ms']['median'] / mine['iteration_ms']['median']:.2f}×"
    found = [a / b for a, b in zip(*rounds, strict=True)]
    return f"{statistics.median(found):.2f}× ({min(found):.2f}..{max(found):.2f})"
