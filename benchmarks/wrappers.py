"""Time a step of an env with wrappers beside one without, all in one run.

    python benchmarks/wrappers.py --device cuda --num-envs 4096 --rounds 20

Each env steps ``--steps`` times with actions that are there already; on CUDA that is recorded as one graph, as a
rollout is. The envs take turns, round after round; a ratio is that of the medians. Kernels are counted as operators
that are dispatched and not views, in one step on the CPU; on a GPU several of a wrapper's are one of
``rlcore.kernels``.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from facts import header, write
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlcore.capture import Captured
from rlcore.env import VecEnv, generators_of, is_capturable
from rlcore.envs import make_env

OPTIONS: dict[str, dict[str, Any]] = {
    "bare": {},
    "noise": {"noise": [0.05, 0.05]},
    "bias": {"bias": [0.05, 0.05]},
    "action delay": {"action_delay": [1.5, 1.5]},
    "observation delay": {"observation_delay": [1.5, 1.5]},
    "dropout": {"dropout": [0.05, 0.05]},
    "action drop": {"action_drop": [0.05, 0.05]},
    "noise, bias, action delay": {"noise": [0.05, 0.05], "bias": [0.05, 0.05], "action_delay": [1.5, 1.5]},
}
"""What ``Disturbed`` adds; the values are set once."""

RANDOMIZED: dict[str, dict[str, Any]] = {
    "gain randomized, fixed": {"action_gain": [0.8, 1.2]},
    "gain randomized, adr": {"action_gain": [0.8, 1.2], "mode": "adr"},
    "gain randomized, doraemon": {"action_gain": [0.8, 1.2], "mode": "doraemon"},
}
"""What ``Randomized`` draws anew when an episode begins."""

_VIEWS = set(
    [
        "view",
        "expand",
        "unsqueeze",
        "select",
        "slice",
        "t",
        "unbind",
        "detach",
        "split",
        "squeeze",
        "permute",
        "transpose",
        "alias",
        "as_strided",
        "chunk",
        "reshape",
        "_unsafe_view",
        "empty",
        "empty_like",
        "lift_fresh",
    ]
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Time a step of an env with wrappers beside one without."""

    task: str = "Reach-UR5e-JointPos"
    """A built-in task."""
    device: str = "cpu"
    """Where it runs."""
    num_envs: int = 4096
    """Envs stepped together."""
    steps: int = 24
    """Steps of one sample."""
    rounds: int = 20
    """Samples of each env; two more come before."""
    json: Path | None = None
    """File for the results."""


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators that are dispatched, without views."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and count it."""
        self.count += func.overloadpacket.__name__ not in _VIEWS
        return func(*args, **(kwargs or {}))


def made(settings: Settings, options: dict[str, Any], device: str, num_envs: int) -> VecEnv:
    """The env of one configuration; those that draw nothing anew have no ``Randomized`` around them."""
    named = {f"randomize.{name}": value for name, value in options.items()}
    env: Any = make_env(settings.task, num_envs, device, seed=0, **named)
    fixed = options and all(isinstance(value, list) and value[0] == value[1] for value in options.values())
    env.reset(0)
    if fixed:  # its values stay with the env inside
        env = env.env
    env.reset(0)
    return env  # type: ignore[no-any-return]


def operators(env: VecEnv) -> int:
    """Kernels of a step, roughly."""
    action = torch.zeros(env.num_envs, *(env.action_space.shape or ()))
    env.step(action)
    counter = _Counter()
    with counter:
        env.step(action)
    return int(counter.count)


def stepper(env: VecEnv, steps: int) -> Callable[[], Any]:
    """What steps an env so many times, recorded where it can be."""
    shape = (env.num_envs, *(env.action_space.shape or ()))
    actions = [torch.randn(shape, device=env.device) for _ in range(steps)]

    def run() -> Tensor:
        for action in actions:
            step = env.step(action)
        return step.reward

    return Captured(run, "graph", env.device, generators_of(env)) if is_capturable(env) else run


def seconds(run: Callable[[], Any], device: str) -> float:
    """Of one call, the device being idle before and after."""
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if on_gpu:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def main(arguments: list[str]) -> int:
    """Measure and print."""
    settings = tyro.cli(Settings, args=arguments, description=__doc__)
    report = header("wrappers", arguments, settings)
    cases = OPTIONS | RANDOMIZED
    counts = {name: operators(made(settings, options, "cpu", 16)) for name, options in cases.items()}
    envs = {name: made(settings, options, settings.device, settings.num_envs) for name, options in cases.items()}
    runs = {name: stepper(env, settings.steps) for name, env in envs.items()}
    samples: dict[str, list[float]] = {name: [] for name in cases}
    for index in range(settings.rounds + 3):
        for name, run in runs.items():
            took = seconds(run, settings.device)
            if index >= 3:  # two of warm-up, one that is recorded
                samples[name].append(took / settings.steps * 1e6)
    bare = statistics.median(samples["bare"])
    report["results"] = []
    print(
        f"{settings.task}, {settings.num_envs:,} envs, {settings.device}: microseconds a step, {settings.rounds} rounds"
    )
    for name, times in samples.items():
        middle = statistics.median(times)
        row = {"name": name, "us": middle, "min": min(times), "max": max(times), "ratio": middle / bare}
        row |= {"operators": counts[name], "more": counts[name] - counts["bare"]}
        report["results"].append(row)
        print(
            f"{name:<28} {middle:9.1f} ({min(times):.1f} to {max(times):.1f})  x {middle / bare:.3f}   "
            f"{counts[name]} operators, {counts[name] - counts['bare']:+d}"
        )
    write(report, settings.json)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
