"""Train shipped task configurations at several precisions and seeds: what is learned, and how soon.

    python benchmarks/learning.py --task Reach-UR5e-JointPos Pendulum --precision fp32 tf32 bf16 --seeds 1 2 3 \
        --json learning.json --plot learning.png

Every run has a process of its own and starts cold. While it trains, copies of the policy are put aside with the time;
they are evaluated when the training is over, so that evaluation costs it nothing. They are evaluated in fp32, as
exported, whatever the precision of the training.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from curves import draw, markdown, show
from facts import header, write
from rich.console import Console
from timing import Precision, apart, heard_warnings, peak_memory

from rlcore.actor_critic import build_policy
from rlcore.env import spec_of
from rlcore.envs import make_env
from rlcore.learn import Progress
from rlcore.ppo import PPO
from rlcore.train.config import default_config
from rlcore.train.evaluate import evaluate
from rlcore.types import Mode

Run = dict[str, Any]
"""What is known of one training."""

EVAL_SEED = 1_000_003
"""Added to the run's seed for its evaluations."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Train shipped task configurations at several precisions and seeds."""

    task: tuple[str, ...] = ("Reach-UR5e-JointPos",)
    """Tasks of `rlcore tasks`."""
    precision: tuple[Precision, ...] = ("fp32", "tf32", "bf16")
    """Matrix products on CUDA."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Of networks, exploration and envs."""
    num_envs: int | None = None
    """Envs stepped together; as in the task's configuration by default."""
    iterations: int | None = None
    """Iterations to train; by default as many as give the env steps of the task's configuration."""
    mode: Mode = "graph"
    """How rlcore runs on CUDA."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where envs and networks live."""
    threads: int | None = None
    """CPU threads of torch; its own choice by default."""
    evaluations: int = 20
    """Times that a policy is put aside, spread evenly over the run; fewer where a run has fewer iterations."""
    eval_envs: int = 256
    """Envs of an evaluation, one episode each."""
    target: float = 0.9
    """Success that is waited for, in 0..1."""
    jobs: int = 1
    """Runs at the same time. With more than one they share the device, and seconds mean less."""
    json: Path | None = None
    """File for the results."""
    plot: Path | None = None
    """File for a picture of the curves."""
    markdown: bool = False
    """Also print the results as Markdown."""


def train(task: str, precision: Precision, seed: int, settings: Settings, submitted: float) -> Run:
    """One run in this process.

    Args:
        task: what to train.
        precision: of the training.
        seed: of everything random.
        settings: the rest.
        submitted: time of the clock when this process was asked for.

    Returns:
        What setting up took, memory, and when policies were put aside, with their parameters; seconds count from the
        making of the env.
    """
    imported, began = time.time() - submitted, time.perf_counter()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    shipped, _ = default_config(task)
    config = dataclasses.replace(shipped.agent, mode=settings.mode, precision=precision)
    num_envs = settings.num_envs or shipped.num_envs
    iterations = settings.iterations or max(1, round(shipped.num_iterations * shipped.num_envs / num_envs))
    cuda = torch.device(settings.device).type == "cuda"
    curve: list[dict[str, Any]] = []
    states: list[dict[str, torch.Tensor]] = []
    finished: list[float] = []  # seconds at the ends of the first three iterations

    with heard_warnings() as warnings:
        env = make_env(task, num_envs, settings.device, seed=seed, **shipped.env)
        agent = PPO(env, config, seed=seed, num_iterations=iterations)
        built = time.perf_counter() - began

        def on_iteration(progress: Progress) -> None:
            due = progress.iteration * settings.evaluations // iterations
            before = (progress.iteration - 1) * settings.evaluations // iterations
            if due == before and progress.iteration > 3:
                return
            if cuda:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - began
            if progress.iteration <= 3:
                finished.append(seconds)
            if due > before:
                curve.append({"iteration": progress.iteration, "env_steps": progress.env_steps, "seconds": seconds})
                states.append({name: value.detach().clone() for name, value in agent.policy.state_dict().items()})

        agent.learn(iterations, on_iteration=on_iteration)
        if cuda:
            torch.cuda.synchronize()
        total, memory = time.perf_counter() - began, peak_memory(settings.device)
    setup = {"build_s": built, "first_iteration_s": finished[0], "three_iterations_s": finished[-1]}
    return {
        "task": task,
        "precision": precision,
        "seed": seed,
        "num_envs": num_envs,
        "iterations": iterations,
        "setup": {"import_s": imported, **setup},
        "total_s": total,
        "memory_mib": memory,
        "warnings": warnings,
        "curve": curve,
        "states": [{name: value.cpu().numpy() for name, value in state.items()} for state in states],
    }


def judge(run: Run, settings: Settings) -> Run:
    """Evaluate the policies of a run in this process; returns the run with their returns and successes."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    shipped, _ = default_config(run["task"])
    env = make_env(run["task"], settings.eval_envs, settings.device, seed=run["seed"], **shipped.env)
    policy = build_policy(spec_of(env), dataclasses.replace(shipped.agent, precision="fp32")).to(settings.device)
    curve = []
    for when, state in zip(run["curve"], run["states"], strict=True):
        policy.load_state_dict({name: torch.as_tensor(value) for name, value in state.items()})
        result = evaluate(env, policy, run["seed"] + EVAL_SEED)
        curve.append({**when, "return": result.mean_return, "success": result.success})
    reached = next((p for p in curve if p["success"] is not None and p["success"] >= settings.target), None)
    return {**{key: value for key, value in run.items() if key != "states"}, "curve": curve, "reached": reached}


def main(arguments: list[str] | None = None) -> int:
    """Train, print, draw and write; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    settings = tyro.cli(Settings, args=arguments)
    console = Console()
    console = Console(width=max(console.width, 160))
    report = header("learning", arguments, settings) | {"results": [], "failed": {}}
    # Seeds change slowest, so that a drifting machine favors no precision.
    runs = [(t, p, seed) for t in settings.task for seed in settings.seeds for p in settings.precision]

    def attempt(step: str, name: str, function: Callable[..., Run], *arguments: Any) -> Run | None:
        try:
            return apart(function, *arguments)
        except Exception as error:
            report["failed"][name] = f"{step}: {type(error).__name__}: {error}"
            console.print(f"{name} failed: {report['failed'][name]}", highlight=False, markup=False)
            return None

    def trained(task: str, precision: Precision, seed: int) -> Run | None:
        name = f"{task} {precision} seed {seed}"
        result = attempt("training", name, train, task, precision, seed, settings, time.time())
        if result is not None:
            console.print(f"{name}: trained in {result['total_s']:.1f} s", highlight=False)
        return result

    def judged(run: Run) -> None:
        name = f"{run['task']} {run['precision']} seed {run['seed']}"
        result = attempt("evaluation", name, judge, run, settings)
        if result is not None:
            report["results"].append(result)
            write(report, settings.json)

    # Nothing else runs beside the trainings, unless asked for; evaluations are not timed.
    with ThreadPoolExecutor(settings.jobs) as pool:
        done = [run for run in pool.map(lambda run: trained(*run), runs) if run is not None]
    with ThreadPoolExecutor(min(9, os.cpu_count() or 1)) as pool:
        list(pool.map(judged, done))
    order = {run: number for number, run in enumerate(runs)}
    report["results"].sort(key=lambda r: order[r["task"], r["precision"], r["seed"]])
    write(report, settings.json)
    if report["results"]:
        show(report, console)
        if settings.markdown:
            print(markdown(report))
        if settings.plot is not None:
            draw(report, settings.plot)
    for path in (settings.json, settings.plot):
        if path is not None and path.exists():
            console.print(f"written: {path}", highlight=False)
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
