"""Train shipped task configurations at several precisions and seeds: what is learned, and how soon.

    python benchmarks/learning.py --task Reach-UR5e-JointPos Pendulum --precision fp32 tf32 bf16 --seeds 1 2 3 \
        --json learning.json --plot learning.png
    python benchmarks/learning.py --algo sac ddpg --task gym:HalfCheetah-v5 gym:Hopper-v5 --precision fp32 \
        --jobs 12 --threads 1 --eval-envs 10 --json mujoco.json --csv mujoco.csv --plot mujoco.png
    python benchmarks/learning.py --algo sac td3 --preset gpu --task Reach-UR5e-JointPos --precision bf16
    python benchmarks/learning.py --task gym:Ant-v5 gym:LunarLander-v3 gym:CartPole-v1 --precision fp32 --device cpu \
        --jobs 16 --threads 1 --deadline 480 --evaluations 5 --eval-envs 20 --json gym.json --plot gym.png

Every run has a process of its own and starts cold. While it trains, copies of the policy are put aside with the time;
they are evaluated when its training is over, so that evaluation costs it nothing. They are evaluated in fp32, as
exported, whatever the precision of the training.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Literal, get_args, get_type_hints

import torch
import tyro
from curves import draw, key_of, markdown, named, show, write_csv
from facts import header, write
from rich.console import Console
from timing import apart, heard_warnings, peak_memory
from work import Precision

from rlcore.config import ConfigError
from rlcore.env import spec_of
from rlcore.envs import make_env
from rlcore.envs.launch import simulator_of
from rlcore.learn import Progress, learn
from rlcore.train.algorithms import algorithm, find
from rlcore.train.config import TrainConfig
from rlcore.train.defaults import default_config
from rlcore.train.evaluate import evaluate
from rlcore.train.judging import EVAL_SEED
from rlcore.types import Mode

Algo = Literal["ppo", "sac", "ddpg", "td3"]

Key = tuple[str, str, Precision, int]
"""Task, algorithm, precision and seed of a run."""

Run = dict[str, Any]
"""What is known of one training."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Train shipped task configurations at several precisions and seeds."""

    task: tuple[str, ...] = ("Reach-UR5e-JointPos",)
    """Tasks of `rlcore tasks`."""
    algo: tuple[Algo, ...] = ("ppo",)
    """Algorithms, one after the other; td3 is ddpg with the preset td3, as for `rlcore train`."""
    preset: Literal["classic", "gpu"] | None = None
    """Settings that the task's configuration changes, of SAC, DDPG and TD3; that of `rlcore train` by default."""
    precision: tuple[Precision, ...] = ("fp32", "tf32", "bf16")
    """Matrix products on CUDA; those that an algorithm does not have are left out."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Of networks, exploration and envs."""
    num_envs: int | None = None
    """Envs stepped together; as in the task's configuration by default."""
    iterations: int | None = None
    """Iterations to train; by default as many as give the env steps of the task's configuration."""
    config: Path | None = None
    """YAML file over the task's configuration, as for `rlcore train`."""
    limit: float | None = None
    """Seconds after which a run ends where it is."""
    deadline: float | None = None
    """Seconds after which all runs end where they are and no other begins; name the tasks that take longest first."""
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
    csv: Path | None = None
    """File for the curves, a line for each evaluation."""
    plot: Path | None = None
    """File for a picture of the curves."""
    markdown: bool = False
    """Also print the results as Markdown."""
    verbose: bool = False
    """Say when a policy is put aside."""


def shipped(task: str, algo: str, settings: Settings) -> TrainConfig:
    """The configuration of a run but for precision, seed and mode; what its words mean is `rlcore train`'s to say."""
    algo, preset = algorithm(algo, settings.preset)
    return default_config(task, settings.config, algo=algo, preset=preset)[0]


def train(key: Key, settings: Settings, submitted: float) -> Run:
    """One run in this process.

    Args:
        key: what to train.
        settings: the rest.
        submitted: time of the clock when this process was asked for.

    Returns:
        What setting up took, memory, and when policies were put aside, with their parameters; seconds count from the
        making of the env.
    """
    imported, began = time.time() - submitted, time.perf_counter()
    task, algo, precision, seed = key
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    own = shipped(task, algo, settings)
    config = dataclasses.replace(own.agent, mode=settings.mode, precision=precision)
    num_envs = settings.num_envs or own.num_envs
    iterations = settings.iterations or max(1, round(own.num_iterations * own.num_envs / num_envs))
    cuda = torch.device(settings.device).type == "cuda"
    curve: list[dict[str, Any]] = []
    states: list[dict[str, torch.Tensor]] = []
    finished: list[float] = []  # seconds at the ends of the first three iterations

    with heard_warnings() as warnings:
        env = make_env(task, num_envs, settings.device, seed=seed, **own.env)
        agent = find(own.algo).agent(env, config, seed=seed, num_iterations=iterations)
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
                put_aside(progress, seconds)

        def put_aside(progress: Progress, seconds: float) -> None:
            curve.append({"iteration": progress.iteration, "env_steps": progress.env_steps, "seconds": seconds})
            states.append({name: value.detach().clone() for name, value in agent.policy.state_dict().items()})
            if settings.verbose:
                print(f"{named(key)}: {progress.env_steps:,} steps in {seconds:.0f} s", flush=True)

        def late() -> bool:
            return settings.limit is not None and time.perf_counter() - began > settings.limit

        progress = learn(env, agent, iterations, seed=seed, on_iteration=on_iteration, should_stop=late)
        if cuda:
            torch.cuda.synchronize()
        total, memory = time.perf_counter() - began, peak_memory(settings.device)
        if not curve or curve[-1]["iteration"] < progress.iteration:  # the limit came first
            put_aside(progress, total)
    setup = {"build_s": built, "first_iteration_s": finished[0], "three_iterations_s": finished[-1]}
    return {
        "task": task,
        "algo": algo,
        "preset": own.preset,
        "precision": precision,
        "seed": seed,
        "num_envs": num_envs,
        "iterations": progress.iteration,
        "planned": iterations,
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
    own = shipped(run["task"], run["algo"], settings)
    env = make_env(run["task"], settings.eval_envs, settings.device, seed=run["seed"], **own.env)
    config: Any = dataclasses.replace(own.agent, precision="fp32")
    policy = find(own.algo).policy(spec_of(env), config).to(settings.device)
    curve = []
    for when, state in zip(run["curve"], run["states"], strict=True):
        policy.load_state_dict({name: torch.as_tensor(value) for name, value in state.items()})
        result = evaluate(env, policy, run["seed"] + EVAL_SEED)
        curve.append({**when, "return": result.mean_return, "success": result.success})
    reached = next((p for p in curve if p["success"] is not None and p["success"] >= settings.target), None)
    return {**{key: value for key, value in run.items() if key != "states"}, "curve": curve, "reached": reached}


def planned(settings: Settings) -> list[Key]:
    """All runs; precisions that an algorithm does not have are left out.

    Raises:
        ValueError: a number is not positive, there is no such task, it has no such configuration, an algorithm cannot
            train it or has none of the precisions.
    """
    for name in ("jobs", "iterations", "num_envs", "evaluations", "eval_envs"):
        number = getattr(settings, name)
        if number is not None and number < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {number}; give at least 1")
    for task in settings.task:
        if simulator_of(task) in ("builtin", "gymnasium"):  # others are refused when they are made, which takes long
            env = make_env(task, 1)
            if spec_of(env).discrete and any(find(algorithm(name)[0]).bounded_actions for name in settings.algo):
                raise ConfigError(f"--algo: {task} has discrete actions, which SAC and DDPG cannot choose; use ppo")
            env.close()
    pairs: list[tuple[str, Precision]] = []
    for algo in settings.algo:
        own = [type(shipped(task, algo, settings).agent) for task in settings.task]
        have = get_args(get_type_hints(own[0])["precision"])
        if not set(settings.precision) & set(have):
            raise ConfigError(f"--precision: {algo} has {', '.join(have)}, not {' '.join(settings.precision)}")
        pairs += [(algo, precision) for precision in settings.precision if precision in have]
    # Seeds change slowest, so that a drifting machine favors none of the others.
    return [(task, *pair, seed) for task in settings.task for seed in settings.seeds for pair in pairs]


def main(arguments: list[str] | None = None) -> int:
    """Train, print, draw and write; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    settings = tyro.cli(Settings, args=arguments)
    console = Console()
    console = Console(width=max(console.width, 160))
    try:
        keys = planned(settings)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    report = header("learning", arguments, settings) | {"results": [], "failed": {}}
    began = time.time()

    def attempt(step: str, name: str, function: Callable[..., Run], *arguments: Any) -> Run | None:
        try:
            return apart(function, *arguments)
        except Exception as error:
            report["failed"][name] = f"{step}: {type(error).__name__}: {error}"
            console.print(f"{name} failed: {report['failed'][name]}", highlight=False, markup=False)
            return None

    writing = Lock()

    def one(key: Key) -> None:
        left = math.inf if settings.deadline is None else settings.deadline - (time.time() - began)
        if left <= 0:
            report["failed"][named(key)] = "not begun before the deadline"
            return
        limit = min(left, math.inf if settings.limit is None else settings.limit)
        run = attempt("training", named(key), train, key, dataclasses.replace(settings, limit=limit), time.time())
        if run is None:
            return
        console.print(f"{named(key)}: trained in {run['total_s']:.1f} s", highlight=False)
        result = attempt("evaluation", named(key), judge, run, settings)
        if result is not None:
            with writing:  # after every run, so that what is known outlives a machine that stops
                report["results"].append(result)
                write(report, settings.json)

    with ThreadPoolExecutor(settings.jobs) as pool:
        list(pool.map(one, keys))
    report["results"].sort(key=lambda run: keys.index(key_of(run)))
    write(report, settings.json)
    if report["results"]:
        show(report, console)
        if settings.markdown:
            print(markdown(report))
        if settings.plot is not None:
            draw(report, settings.plot)
        if settings.csv is not None:
            write_csv(report, settings.csv)
    for path in (settings.json, settings.csv, settings.plot):
        if path is not None and path.exists():
            console.print(f"written: {path}", highlight=False)
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
