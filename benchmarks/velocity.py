"""HalfCheetah-Vel: what policies that remember or adapt are worth beside one that is told the speed, on equal goals.

    python benchmarks/velocity.py --run told=runs/HalfCheetah-Vel/ppo/RUN --run "RL²=..." --run MAML=... --png out.png

A loss is a negative return of an episode. All runs are evaluated without exploring in the same envs of the same goals,
which one seed draws: a policy with a memory in every episode of a trial, one of MAML before adaptation and after each
step of it. For a step the ``--rows`` envs of a goal play an episode each, exploring; the losses of these are in the
file of ``--json``. The first run is what the others are compared with.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlcore.env import VecEnv
from rlcore.envs import make_env
from rlcore.maml import MAML
from rlcore.observations import concatenate
from rlcore.train.adapting import adapt
from rlcore.train.conclude import restore_policy
from rlcore.train.config import read_config
from rlcore.train.evaluate import run_episodes
from rlcore.train.intervals import t_interval
from rlcore.train.run import locate

CURVES = ("env/episode_return_{}", "adapt/return_{}", "rollout/episode_return")
"""Columns of metrics.csv that a curve is drawn of: the last episode of a trial, the last step, or else any episode."""


def adapting(env: VecEnv, config: Any, state: dict[str, Any], goals: int, seed: int) -> MAML:
    """An agent that adapts a run's policy to many goals at once."""
    agent = MAML(env, dataclasses.replace(config, num_tasks=goals), seed=seed)
    agent.load_learned(state)
    return agent


@torch.no_grad()
def quiet_returns(env: VecEnv, agent: MAML, parameters: Sequence[Tensor], seed: int) -> Tensor:
    """Returns ``[N]`` of an episode of every env with the parameters ``[M, ...]`` of its task, without exploring.

    A seed draws the tasks: it has to be that of the adaptation.
    """
    obs, policy = env.reset(seed), agent.policy
    returns = torch.zeros(env.num_envs, dtype=torch.float64)
    for _ in range(env.max_episode_length):
        seen, _ = policy.normalizer.usable(concatenate(obs, policy.groups))
        action = agent.network(parameters, seen.view(agent.tasks, -1, seen.shape[1])).mode.flatten(0, 1)
        step = env.step(policy.limit(action, seen))
        returns += step.reward.double()
        obs = step.obs
    return returns


def by_step(env: VecEnv, agent: MAML, seed: int) -> tuple[Tensor, Tensor]:
    """Returns ``[K + 1, N]`` before adaptation to the tasks that a seed draws and after each step of it.

    The first are of the episodes that a step was taken by, exploring; the others of one more, without.
    """
    found = adapt(env, agent, seed)
    quiet = [quiet_returns(env, agent, parameters, seed) for parameters in found.parameters]
    return torch.stack(found.returns), torch.stack(quiet)


def losses(run: Path, checkpoint: str, goals: int, rows: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Losses ``[episodes or steps, goals]`` of a run's policy, ``quiet`` and, of MAML, ``exploring``; and the goals."""
    _, path = locate(run, checkpoint)
    policy, _, content = restore_policy(path)
    settings = read_config(content["config"])
    env: Any = make_env(settings.task, goals * rows, seed=seed, **settings.env)
    env.hold_tasks(rows)
    env.reset(seed)
    drawn = env.task_values()["velocity"]
    if settings.algo == "maml":
        agent = adapting(env, settings.agent, content["agent"], goals, seed)
        exploring, quiet = by_step(env, agent, seed)
        returns = {"quiet": quiet, "exploring": exploring}
    else:
        found = run_episodes(env, policy, seed)
        returns = {"quiet": found.returns.unsqueeze(0) if found.trial is None else found.trial.t()}
    assert torch.equal(drawn, env.task_values()["velocity"]), "the episodes were of other goals"
    env.close()
    by_goal = {name: -values.view(len(values), goals, rows).mean(2) for name, values in returns.items()}
    return by_goal, drawn.view(goals, rows)[:, 0]


def curve(run: Path) -> tuple[list[int], list[float], str]:
    """Env steps and returns of an episode of a run, and the name of what they are."""
    with (locate(run, "last")[0].path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = [name for name in rows[-1] if name]
    for pattern in CURVES:
        start, _, _ = pattern.partition("{")
        name = max((x for x in columns if x.startswith(start)), default=None)
        if name is not None:
            known = [row for row in rows if row[name]]
            return [int(float(row["env_steps"])) for row in known], [float(row[name]) for row in known], name
    raise ValueError(f"{run}: metrics.csv has no returns; give a run that has ended an episode")


def draw(runs: dict[str, Path], best: float, path: Path) -> None:
    """Write the picture of all curves of training, with what the first run comes to without exploring."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for name, run in runs.items():
        steps, returns, what = curve(run)
        axes.plot([x / 1e6 for x in steps], returns, label=f"{name} ({what.rpartition('/')[2]})")
    axes.axhline(-best, color="0.5", linestyle=":", label=f"{next(iter(runs))}, without exploring")
    axes.axhline(-1.5 * best, color="0.8", linestyle=":", label="1.5 times its loss")
    axes.set_xlabel("million steps")
    axes.set_ylabel("return of an episode in training")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main(words: Sequence[str] | None = None) -> None:
    """Print the table and write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--checkpoint", default="last")
    parser.add_argument("--goals", type=int, default=64)
    parser.add_argument("--rows", type=int, default=8, help="envs of each goal")
    parser.add_argument("--seed", type=int, default=4_000_003)
    parser.add_argument("--png", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(words)
    torch.set_num_threads(1)

    runs = {name: Path(folder) for name, _, folder in (word.partition("=") for word in args.run)}
    report: dict[str, Any] = {"goals": args.goals, "rows": args.rows, "seed": args.seed, "runs": {}}
    told: Tensor | None = None
    print(f"loss of an episode, {args.goals} goals, {args.rows} episodes of each; 95 % intervals over goals")
    print("| | before or first | ... and then | last, beside the first run |\n|---|---|---|---|")
    for name, run in runs.items():
        ways, goals = losses(run, args.checkpoint, args.goals, args.rows, args.seed)
        found = ways["quiet"]
        told = found[-1] if told is None else told
        ratio = float(found[-1].mean() / told.mean())
        low, high = t_interval((found[-1] - ratio * told) / told.mean())  # of a ratio of means, Cochran, chapter 6
        texts = []
        for part in found:
            left, right = t_interval(part)
            texts.append(f"{float(part.mean()):.1f} ± {(right - left) / 2:.1f}")
        print(f"| {name} | {texts[0]} | {', '.join(texts[1:])} | {ratio:.2f} ± {(high - low) / 2:.2f} |", flush=True)
        report["runs"][name] = {
            "run": str(run), "losses": found.tolist(), "goals": goals.tolist(), "ratio": ratio,
            "ratio_ci95": [ratio + low, ratio + high],
            **{f"losses_{name}": values.tolist() for name, values in ways.items() if name != "quiet"},
        }  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))
    if args.png and told is not None:
        draw(runs, float(told.mean()), args.png)


if __name__ == "__main__":
    main()
