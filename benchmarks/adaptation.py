"""What MAML's policy is worth on tasks that it has not seen, beside learning from as many episodes on others like them.

    python benchmarks/adaptation.py --run runs/Navigation-2D/maml/RUN

It prints the mean return before adaptation and after each step of it, of the run's policy and of an untrained one that
takes the same steps, and of PPO that begins anew on each of a few tasks, drawn the same way, and updates after as many
episodes, by the best of several learning rates.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlcore import PPO, NetworkConfig, PPOConfig
from rlcore.envs import make_env
from rlcore.maml import MAML, MAMLConfig
from rlcore.train.adapting import adapt, one_task
from rlcore.train.conclude import restore_policy
from rlcore.train.config import read_config
from rlcore.train.intervals import t_interval
from rlcore.train.run import locate

RATES = (1e-3, 3e-3, 1e-2, 3e-2)
"""Learning rates that PPO is tried with."""


def curve(agent: MAML, seed: int) -> Tensor:
    """Mean returns ``[K + 1, M]`` of each of M tasks before adaptation and after each step."""
    result = adapt(agent.env, agent, seed)
    return torch.stack([returns.view(agent.tasks, -1).mean(1) for returns in result.returns])


def from_scratch(task: str, options: dict[str, Any], rows: int, updates: int, rate: float, seed: int) -> list[float]:
    """Mean return of each rollout of PPO on one task: before learning, and after each update from ``rows`` episodes."""
    env = make_env(task, rows, seed=seed, **options)
    net = NetworkConfig(hidden_dims=(64, 64), activation="tanh")
    config = PPOConfig(
        num_steps=env.max_episode_length, num_epochs=10, num_minibatches=4, learning_rate=rate, lr_schedule="constant",
        actor=net, critic=net, normalize_value=True,
    )  # fmt: skip
    agent, returns = PPO(env, config, seed=seed), []
    agent.learn(
        updates + 1, seed=seed, on_report=lambda report: returns.append(report.metrics["rollout/episode_return"])
    )
    return returns


def row(name: str, values: Tensor) -> str:
    """A line of the table, of returns ``[K + 1, M]``."""
    parts = []
    for part in values:
        low, high = t_interval(part)
        parts.append(f"{float(part.mean()):.2f} ± {(high - low) / 2:.2f}")
    return f"| {name} | {' | '.join(parts)} |"


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--checkpoint", default="last")
    parser.add_argument("--tasks", type=int, default=64, help="that are drawn for it")
    parser.add_argument("--scratch-tasks", type=int, default=8, help="on which PPO begins anew; 0: it does not")
    parser.add_argument("--rows", type=int, default=8, help="episodes of a task before each step")
    parser.add_argument("--seed", type=int, default=4_000_003)
    args = parser.parse_args(words)
    torch.set_num_threads(1)

    run, path = locate(args.run, args.checkpoint)
    _, _, content = restore_policy(path)
    settings = read_config(content["config"])
    config: Any = settings.agent
    assert isinstance(config, MAMLConfig)
    steps = config.adapt_steps
    print(f"{settings.task}, {run.path.name}, {args.tasks} tasks, {args.rows} episodes before each step")
    print(f"| | {' | '.join(['before', *(f'step {k}' for k in range(1, steps + 1))])} |")
    print(f"|---|{'---|' * (steps + 1)}")
    for name in ("MAML", "untrained, the same steps"):
        env = make_env(settings.task, args.tasks * args.rows, seed=args.seed, **settings.env)
        agent = MAML(env, dataclasses.replace(config, num_tasks=args.tasks), seed=args.seed)
        untrained = {} if name == "MAML" else {"policy": agent.policy.state_dict()}
        agent.load_learned(content["agent"] | untrained)
        print(row(name, curve(agent, args.seed)), flush=True)
    best = None
    for rate in RATES if args.scratch_tasks else ():
        found = []
        for k in range(args.scratch_tasks):
            options = one_task(settings.task, settings.env, torch.device("cpu"), args.seed + k)
            found.append(from_scratch(settings.task, options, args.rows, steps, rate, args.seed + k))
        values = torch.tensor(found, dtype=torch.float64).t()  # [K + 1, tasks]
        if best is None or values[-1].mean() > best[1][-1].mean():
            best = (rate, values)
    if args.scratch_tasks:
        assert best is not None
        print(row(f"PPO from nothing, {args.scratch_tasks} tasks, learning rate {best[0]:g}", best[1]))


if __name__ == "__main__":
    main()
