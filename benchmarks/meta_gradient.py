"""What an update of MAML costs: as written and recorded as a CUDA graph, with second derivatives and without.

    python benchmarks/meta_gradient.py --device cuda --num-envs 160 --num-tasks 20 --steps 200

A rollout of Navigation-2D is collected once and learned from again and again. The first two calls run as written, the
third records; what that took beyond a replay is told, and the memory that PyTorch held at the end, graphs included.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timing import spread

from rlcore.envs import make_env
from rlcore.maml import MAML, MAMLConfig
from rlcore.types import Mode


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """How long a call takes, what it leaves to the device included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


SHOWN = {
    "update_ms": "{:.1f} ms",
    "quartiles_ms": "{0[0]:.1f} to {0[1]:.1f}",
    "record_s": "{:.2f} s",
    "allocated_mib": "{:,.0f} MiB",
    "reserved_mib": "{:,.0f} MiB",
}
"""How what is measured is told."""


def measured(config: MAMLConfig, num_envs: int, steps: int, device: torch.device, count: int) -> dict[str, Any]:
    """Milliseconds of an update, and its quartiles; on CUDA also seconds to record it, MiB at most and reserved."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    env: Any = make_env("Navigation-2D", num_envs, device, seed=1, max_episode_length=steps)
    agent = MAML(env, config, seed=1)
    agent.learn(1)  # a rollout, and the first of three calls, the third of which records
    second_and_third = [seconds(agent.update, device) for _ in range(2)]
    later = spread([1e3 * seconds(agent.update, device) for _ in range(count)])
    found: dict[str, Any] = {"update_ms": later["median"], "quartiles_ms": (later["q25"], later["q75"])}
    if device.type == "cuda":
        found["record_s"] = second_and_third[1] - later["median"] / 1e3 if agent.config.mode == "graph" else 0.0
        found["allocated_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
        found["reserved_mib"] = torch.cuda.memory_reserved(device) / 2**20
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--num-envs", type=int, default=160)
    parser.add_argument("--num-tasks", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200, help="of an episode")
    parser.add_argument("--adapt-steps", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--updates", type=int, default=10, help="that are timed")
    args = parser.parse_args(words)
    device = torch.device(args.device)
    torch.set_num_threads(1)

    samples = args.num_envs * args.steps * (args.adapt_steps + 1)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, 1 thread"
    print(f"{name}, torch {torch.__version__}: {args.epochs} gradients of {samples:,} samples, {args.num_tasks} tasks")
    print("| derivatives | mode | update | quartiles | to record | allocated at most | reserved |")
    print("|---|---|--:|--:|--:|--:|--:|")
    modes: tuple[Mode, ...] = ("eager", "graph") if device.type == "cuda" else ("eager",)
    for first_order in (False, True):
        for mode in modes:
            config = MAMLConfig(
                num_tasks=args.num_tasks, adapt_steps=args.adapt_steps, num_epochs=args.epochs,
                first_order=first_order, mode=mode,
            )  # fmt: skip
            found = measured(config, args.num_envs, args.steps, device, args.updates)
            texts = [form.format(found[key]) if key in found else "" for key, form in SHOWN.items()]
            print(f"| {'first' if first_order else 'second'} | {mode} | {' | '.join(texts)} |", flush=True)


if __name__ == "__main__":
    main()
