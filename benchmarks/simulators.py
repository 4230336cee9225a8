"""Train a task of a simulator with rlcore or with rsl_rl, or step its env alone: reward and time of each iteration.

    task=Mjlab-Velocity-Flat-Unitree-Go1
    python benchmarks/simulators.py --library rlcore --task $task --seed 1 --json rlcore-1.json
    python benchmarks/simulators.py --library rsl_rl --task $task --seed 1 --json rsl_rl-1.json
    python benchmarks/simulators.py --library rlcore --algo sac --task $task --seed 1 --json rlcore-sac-1.json
    python benchmarks/simulators.py --library rlcore --task Isaac-Ant presets=newton_mjwarp --json ant-1.json
    python benchmarks/simulators.py --show r*.json --plot go1.png --markdown

One process is one run; runs that are to be compared go one after the other, or each to a GPU of its own. Both
libraries take what the task ships: rsl_rl through the runner that mjlab or Isaac Lab 3 makes, rlcore converted. For
both, the reward is the mean return of the latest 100 episodes, counted by the same code on the simulator's own step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from facts import header, write
from rich.console import Console
from simulator_curves import draw, markdown, show
from simulator_diary import Diary, Window
from simulator_tasks import Task
from simulator_tasks import task_of as simulator_task
from timing import heard_warnings, peak_memory
from torch import Tensor

from rlcore.env import spec_of
from rlcore.envs import make_env
from rlcore.envs.arrays import as_tensor
from rlcore.envs.launch import simulator_of
from rlcore.envs.mjlab import quiet_warp
from rlcore.export import OnnxPolicy, export_onnx
from rlcore.learn import Progress, Report, learn
from rlcore.train.algorithms import algorithm, find
from rlcore.train.config import TrainConfig
from rlcore.train.defaults import default_config
from rlcore.train.evaluate import Evaluation, evaluate
from rlcore.train.importers.registered import registered_config
from rlcore.train.judging import EVAL_SEED
from rlcore.train.logger import RunLogger

STEPS = 24
"""Steps of a PPO rollout in the configurations that the tasks ship; SAC and DDPG get a row of the results as often."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Train a simulator's task, or step it alone."""

    library: Literal["rlcore", "rsl_rl", "env", "adapter"] = "rlcore"
    """What runs; env steps the simulator with random actions and nothing else, adapter does so through rlcore's env."""
    task: str = "Mjlab-Cartpole-Balance"
    """A task of mjlab or Isaac Lab."""
    presets: str = ""
    """Of a task of Isaac Lab 3, as for `rlcore train`; also as presets=NAME."""
    algo: Literal["ppo", "sac", "ddpg", "td3"] = "ppo"
    """What rlcore trains with."""
    preset: Literal["classic", "td3", "gpu"] | None = None
    """Of SAC and DDPG; as `rlcore train` chooses by default."""
    config: Path | None = None
    """YAML file over the task's configuration, as for `rlcore train`."""
    seed: int = 1
    """Of networks, exploration and env."""
    num_envs: int | None = None
    """Envs stepped together; 4,096 with PPO by default, with SAC and DDPG as the preset has it."""
    iterations: int = 300
    """Rollouts, each with its update where something is trained; of SAC and DDPG, spans of 24 vector steps."""
    seconds: float = float("inf")
    """Stop after the iteration that passes this much time."""
    warmup: int = 10
    """First iterations that the medians leave out."""
    randomize_start: bool = True
    """Let episodes begin at random points of their time limit, as the training scripts of both libraries do."""
    final_obs: Literal["auto", "hook", "manual", "off"] = "auto"
    """Where rlcore takes the last observation of an episode from."""
    rewards: bool = True
    """Count returns. Off for the shortest times: it is a dozen kernels a step."""
    onnx: Path | None = None
    """Export rlcore's policy to this file, then evaluate policy and file on the same episodes."""
    evaluations: int = 0
    """Times that the policy is put aside, spread evenly over the run, to be evaluated without noise after it; with
    rsl_rl only the last."""
    eval_envs: int = 1024
    """Episodes of these evaluations."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where everything lives."""
    json: Path | None = None
    """File for the results, written anew every 20 iterations."""
    show: tuple[Path, ...] = ()
    """Runs to make a table of, instead of running something."""
    plot: Path | None = None
    """File for a picture of the rewards of these runs."""
    markdown: bool = False
    """Print the table as Markdown."""


class Enough(Exception):
    """Raised to leave a runner that cannot be asked to stop."""


def shipped(settings: Settings) -> TrainConfig:
    """What the task is trained with, as rlcore's."""
    algo, preset = algorithm(settings.algo, settings.preset)
    num_envs = settings.num_envs or (4096 if find(algo).on_policy else None)
    registered, _ = registered_config(settings.task, num_envs, algo=algo, options=chosen(settings))
    config = default_config(settings.task, settings.config, registered, algo, preset)[0]
    return config if num_envs is None else dataclasses.replace(config, num_envs=num_envs)


def chosen(settings: Settings) -> dict[str, Any]:
    """Options of the task's env by which its settings are chosen, too."""
    return {"presets": settings.presets} if settings.presets else {}


def rlcore_env(settings: Settings, config: TrainConfig, num_envs: int, seed: int, **options: Any) -> Any:
    """The task through rlcore's adapter."""
    own: dict[str, Any] = {} if settings.final_obs == "auto" else {"final_obs": settings.final_obs}
    own |= chosen(settings) | ({} if settings.randomize_start else {"randomize_start": False})
    return make_env(settings.task, num_envs, settings.device, seed=seed, **{**config.env, **own, **options})


def task_of(settings: Settings) -> Task:
    """The task as its simulator makes it."""
    return simulator_task(
        settings.task, settings.num_envs or 4096, settings.seed, settings.device, presets=settings.presets
    )


def run_rlcore(settings: Settings, begin: Callable[[Any], Diary]) -> dict[str, Any]:
    """Train with rlcore, logging as `rlcore train` does, without checkpoints and evaluations on the way."""
    config = shipped(settings)
    env = rlcore_env(settings, config, config.num_envs, settings.seed)
    span = max(1, STEPS // config.agent.num_steps)  # iterations of the algorithm in one of the results
    total = settings.iterations * span
    agent = find(config.algo).agent(env, config.agent, seed=settings.seed, num_iterations=total)
    aside: list[tuple[dict[str, Any], dict[str, Tensor]]] = []
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        quiet = Console(file=stack.enter_context(open(os.devnull, "w")))
        logs = RunLogger(Path(folder), total=total, log_interval=config.log_interval * span, console=quiet)
        stack.enter_context(logs)  # closes what writes before the folder goes
        diary, enough = begin(env.core), False

        def on_iteration(progress: Progress) -> None:
            nonlocal enough
            if progress.iteration % span == 0:
                enough = diary.tick(progress.env_steps)
                row = diary.rows[-1]
                part = max(row["seconds"] / settings.seconds, row["iteration"] / settings.iterations)
                if part * settings.evaluations >= len(aside) + 1 or (enough and settings.evaluations):
                    aside.append((row, {k: v.detach().clone() for k, v in agent.policy.state_dict().items()}))

        def on_report(report: Report) -> None:
            logs.report(report, {})
            names = {"collect_s": "time/collect_s", "learn_s": "time/learn_s", "return": "rollout/episode_return"}
            found = {key: report.metrics[name] for key, name in names.items() if name in report.metrics}
            if report.iteration % span == 0:
                diary.rows[report.iteration // span - 1].update(found)

        learn(
            env,
            agent,
            total,
            seed=settings.seed,
            on_iteration=on_iteration,
            on_report=on_report,
            should_stop=lambda: enough,
        )
        diary.save()
    facts: dict[str, Any] = {"final_obs": env.final_obs_source, "time_outs": agent.timeout_bootstrap}
    facts["notes"] = list(env.notes)
    if settings.onnx is None and not aside:
        return facts
    spec, recording = spec_of(env), agent.recording()
    env.close()
    seed = settings.seed + EVAL_SEED
    judge = rlcore_env(settings, config, settings.eval_envs, seed, randomize_start=False)
    policy = find(config.algo).policy(spec, dataclasses.replace(config.agent, precision="fp32")).to(settings.device)
    for row, state in aside:
        policy.load_state_dict(state)
        row["evaluated"] = evaluate(judge, policy, seed).as_dict()
    if settings.onnx is not None:
        parity = export_onnx(agent.policy, spec, settings.onnx, recording=recording).parity
        live, file = (evaluate(judge, policy, seed) for policy in (agent.policy, OnnxPolicy(settings.onnx)))
        facts["evaluation"] = {"policy": figures(live), "file": figures(file), "parity": str(parity)}
    return facts


def figures(result: Evaluation) -> dict[str, Any]:
    """Plain values of an evaluation, and the line that `rlcore eval` prints."""
    return {**result.as_dict(), "summary": result.summary()}


def run_rsl_rl(settings: Settings, begin: Callable[[Any], Diary]) -> dict[str, Any]:
    """Train with rsl_rl as the simulator's training script does, to tensorboard, without checkpoints on the way."""
    importlib.import_module("torch.utils.tensorboard")  # slow, and not to be timed
    task = task_of(settings)
    env = task.env()
    with tempfile.TemporaryDirectory() as folder:
        runner, num_steps = task.runner(env, folder)
        runner.save = lambda *_: None  # the first iteration would
        log, core = runner.logger.log, env.unwrapped
        steps, diary = num_steps * core.num_envs, begin(core)

        def logged(**values: Any) -> None:
            log(**values)
            enough = diary.tick((values["it"] + 1) * steps)
            diary.rows[-1].update(collect_s=values["collect_time"], learn_s=values["learn_time"])
            if runner.logger.rewbuffer:
                diary.rows[-1]["return"] = statistics.fmean(runner.logger.rewbuffer)  # its own count of the same
            if enough:
                raise Enough

        runner.logger.log = logged
        try:
            runner.learn(settings.iterations, init_at_random_ep_len=settings.randomize_start)
        except Enough:
            diary.save()
        finally:
            if runner.logger.writer is not None:  # else its thread writes on while the folder goes
                runner.logger.writer.close()
    if settings.evaluations:
        policy, device = runner.get_inference_policy(device=settings.device), settings.device
        env.close()
        seed, config = settings.seed + EVAL_SEED, shipped(settings)
        judge = rlcore_env(settings, config, settings.eval_envs, seed, randomize_start=False)

        def act(obs: dict[str, Any]) -> Any:
            tensors = {name: torch.as_tensor(value, device=device) for name, value in obs.items()}
            return policy(tensor_dict(tensors, batch_size=[settings.eval_envs])).cpu().numpy()

        tensor_dict: Any = importlib.import_module("tensordict").TensorDict
        diary.rows[-1]["evaluated"] = evaluate(judge, act, seed).as_dict()
    return {"rsl_rl": version("rsl-rl-lib")}


def run_alone(settings: Settings, begin: Callable[[Any], Diary]) -> dict[str, Any]:
    """Step with random actions as many steps an iteration as the training takes."""
    config = shipped(settings)
    if settings.library == "adapter":
        env = rlcore_env(settings, config, config.num_envs, settings.seed)
        core = env.core
        env.reset(settings.seed)
    else:
        env = task_of(settings).env()
        core = env.unwrapped
        env.reset(seed=settings.seed)
        if settings.randomize_start:
            elapsed = as_tensor(core.episode_length_buf)
            elapsed.copy_(torch.randint_like(elapsed, core.max_episode_length))
    size, steps = sum(core.single_action_space.shape), config.agent.num_steps
    if not size:
        raise ValueError(f"--library is {settings.library}, and {settings.task} takes no numbers; choose another task")
    diary = begin(core)
    for iteration in range(1, settings.iterations + 1):
        for _ in range(steps):
            env.step(torch.randn(core.num_envs, size, device=settings.device))
        if settings.device.startswith("cuda"):
            torch.cuda.synchronize()  # as a training would wait for its losses
        if diary.tick(iteration * steps * core.num_envs):
            break
    diary.save()
    return {}


RUNS = {"rlcore": run_rlcore, "rsl_rl": run_rsl_rl, "env": run_alone, "adapter": run_alone}


def main(arguments: list[str] | None = None) -> int:
    """Run, or make a table and a picture of runs; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # As `rlcore train` takes it.
    words = [f"--{word}" if word.startswith("presets=") else word for word in arguments]
    settings = tyro.cli(Settings, args=words)
    try:
        return _main(arguments, settings)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2


def _main(arguments: list[str], settings: Settings) -> int:
    console = Console()
    console = Console(width=max(console.width, 180))
    if settings.show:
        reports = [json.loads(path.read_text()) for path in settings.show]
        print(markdown(reports)) if settings.markdown else show(reports, console)
        if settings.plot is not None:
            draw(reports, settings.plot)
        return 0
    task_of(settings)  # refuses what is no simulator's
    began = time.perf_counter()
    report = header("simulators", arguments, settings) | {"rows": []}

    def begin(core: Any) -> Diary:
        report["num_envs"] = core.num_envs
        window = Window(core.num_envs, torch.device(settings.device)) if settings.rewards else None
        if window is not None:
            window.watch(core)
        report["setup_s"] = time.perf_counter() - began
        return Diary(report, window, settings.iterations, settings.seconds, settings.json)

    quiet_warp()
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # rsl_rl imports it, and it would demand git
    with heard_warnings():
        report |= RUNS[settings.library](settings, begin)
    simulator = simulator_of(settings.task)
    report["versions"][simulator] = version(simulator)
    report["memory_mib"] = peak_memory(settings.device)
    write(report, settings.json)
    show([report], console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
