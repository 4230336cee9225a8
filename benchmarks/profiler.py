"""Where the time of one iteration goes: a trace, and the costliest kernels by phase."""

from __future__ import annotations

import contextlib
import gzip
import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from timing import heard_warnings, prepare
from torch.profiler import ProfilerActivity, profile, record_function
from work import Work

ON_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
"""Categories of a trace's events; where there are none, as on the CPU, operators take their place."""


def profile_iteration(work: Work, path: Path) -> dict[str, Any]:
    """Trace one iteration of rlcore after the warm-up, in this process.

    Args:
        work: what to do.
        path: for the trace, to be opened with Perfetto or chrome://tracing; compressed where it ends in ``.gz``.

    Returns:
        What ``costs`` returns, and what was traced.
    """
    activities = [ProfilerActivity.CPU]
    cuda = torch.device(work.device).type == "cuda"
    if cuda:
        activities.append(ProfilerActivity.CUDA)
    recorder = profile(activities=activities)
    ranges = contextlib.ExitStack()
    done = 0

    def mark(phase: str) -> None:
        # Each phase ends with an idle device, so that a kernel belongs to the phase whose time it falls in.
        nonlocal done
        if cuda:
            torch.cuda.synchronize()
        ranges.close()
        if phase == "collect":
            if done == work.warmup:
                ranges.enter_context(record_function("learn"))
            return
        done += 1
        if done == work.warmup:
            recorder.start()
            ranges.enter_context(record_function("collect"))
        elif done == work.warmup + 1:
            recorder.stop()

    with heard_warnings() as warnings, tempfile.TemporaryDirectory(prefix="throughput-") as scratch:
        env, subject = prepare("rlcore", work, scratch)
        subject.run(work.warmup + 1, mark)
        env.close()
    recorder.export_chrome_trace(str(path))
    return {
        "trace": path.name,
        "num_envs": work.num_envs,
        "precision": work.precision,
        "mode": work.mode,
        "warnings": warnings,
        **costs(read_trace(path)),
    }


def read_trace(path: Path) -> list[dict[str, Any]]:
    """The events of a trace."""
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    events: list[dict[str, Any]] = json.loads(text)["traceEvents"]
    return events


def costs(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum a trace's kernels by name.

    Args:
        events: of a trace with the ranges ``collect`` and ``learn``.

    Returns:
        ``phases``: by phase the wall-clock, the time in which at least one kernel ran, and how many ran; ``kernels``:
        by name, the costliest first, count and milliseconds, by phase and in all.
    """
    complete = [event for event in events if event.get("ph") == "X"]
    ranges = {
        event["name"]: (event["ts"], event["ts"] + event["dur"])
        for event in complete
        if event.get("cat") == "user_annotation" and event["name"] in ("collect", "learn")
    }
    run = [event for event in complete if event.get("cat") in ON_DEVICE]
    if not run:
        run = [event for event in complete if event.get("cat") == "cpu_op"]
    rows: dict[str, dict[str, Any]] = defaultdict(lambda: {"count": 0, "collect_ms": 0.0, "learn_ms": 0.0})
    phases = {}
    for phase, (begin, end) in ranges.items():
        own = sorted((e for e in run if begin <= e["ts"] < end), key=lambda e: (e["ts"], -e["dur"]))
        for event, self_us in _self_times(own):
            rows[event["name"]]["count"] += 1
            rows[event["name"]][f"{phase}_ms"] += self_us / 1e3
        phases[phase] = {"wall_ms": (end - begin) / 1e3, "busy_ms": _covered(own) / 1e3, "kernels": len(own)}
    table = [{"name": name, **row, "total_ms": row["collect_ms"] + row["learn_ms"]} for name, row in rows.items()]
    return {"phases": phases, "kernels": sorted(table, key=lambda row: -row["total_ms"])}


def _self_times(events: list[dict[str, Any]]) -> list[tuple[dict[str, Any], float]]:
    """Each event's time without that of the events inside it on the same thread or stream; kernels have none."""
    inside: list[float] = [0.0] * len(events)
    open_: dict[Any, list[int]] = defaultdict(list)
    for number, event in enumerate(events):
        stack = open_[event.get("pid"), event.get("tid")]
        while stack and events[stack[-1]]["ts"] + events[stack[-1]]["dur"] <= event["ts"]:
            stack.pop()
        if stack:
            inside[stack[-1]] += event["dur"]
        stack.append(number)
    return [(event, max(0.0, event["dur"] - own)) for event, own in zip(events, inside, strict=True)]


def _covered(events: list[dict[str, Any]]) -> float:
    """Length of the union of the events' times; they are sorted by their start."""
    total, reached = 0.0, float("-inf")
    for event in events:
        end = event["ts"] + event["dur"]
        total += max(0.0, end - max(event["ts"], reached))
        reached = max(reached, end)
    return total
