"""What a run was trained with: hardware, versions, and the commit of the folder that it was started in."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from rlcore._version import __version__
from rlcore.train.conclude import write_json

MACHINE_FILE = "system.json"
"""In the run folder: these facts of the process that trained there last."""

PATIENCE = 1.0
"""Seconds that git may take."""


def write_machine(run: Path, device: torch.device) -> None:
    """Note in a run folder what trains there; what cannot be found out is left out."""
    with contextlib.suppress(OSError):  # of a full disk the metrics will tell
        write_json(run / MACHINE_FILE, machine_facts(device))


def machine_facts(device: torch.device) -> dict[str, Any]:
    """Facts of this process, by name."""
    facts: dict[str, Any] = {
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "device": str(device),
        "rlcore": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": _memory(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
        }
    return {name: value for name, value in (facts | _commit()).items() if value is not None}


def _cpu() -> str | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None


def _memory() -> float | None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return None


def _commit() -> dict[str, Any]:
    """Commit of the working folder, and whether tracked files differ from it; nothing where git or either is missing.

    Nothing that the repository's own configuration names is executed.
    """
    git = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false"]

    def ask(*words: str) -> str:
        done = subprocess.run([*git, *words], capture_output=True, text=True, timeout=PATIENCE, check=True)
        return done.stdout.strip()

    facts: dict[str, Any] = {}
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        facts["git_commit"] = ask("rev-parse", "HEAD")
        facts["git_changed"] = bool(ask("status", "--porcelain", "--untracked-files=no"))
    return facts
