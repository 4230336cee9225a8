"""A sweep: settings times seeds in a plain loop, and what is known about each setting at the end.

    python examples/sweep.py

It takes about a minute on one CPU core and prints a row for each learning rate: the mean return on CartPole after
four iterations, and how far apart the seeds are. One seed would say little: look how the rows overlap.
``--iterations 1 --seeds 1`` only shows that it runs.
"""

from __future__ import annotations

import statistics
from dataclasses import replace

import tyro

from rlcore import PPO
from rlcore.envs import make_env
from rlcore.train.defaults import default_config
from rlcore.train.evaluate import evaluate

TASK = "CartPole"


def main(iterations: int = 4, seeds: int = 3, learning_rates: tuple[float, ...] = (1e-4, 1e-3, 1e-2)) -> None:
    """Train with each learning rate and seed.

    Args:
        iterations: rollouts and updates of each.
        seeds: how many of each.
        learning_rates: what is compared.
    """
    config = default_config(TASK)[0].agent
    held_out = make_env(TASK, num_envs=100)
    for learning_rate in learning_rates:
        returns = []
        for seed in range(1, seeds + 1):
            settings = replace(config, learning_rate=learning_rate)
            agent = PPO(make_env(TASK, num_envs=64, seed=seed), settings, seed=seed, num_iterations=iterations)
            agent.learn(iterations)
            returns.append(evaluate(held_out, agent.policy, seed=1000).mean_return)
        spread = f" ± {statistics.stdev(returns):.0f}" if seeds > 1 else ""
        each = ", ".join(f"{value:.0f}" for value in returns)
        print(f"learning_rate {learning_rate:g}: return {statistics.mean(returns):.0f}{spread} ({each})")


if __name__ == "__main__":
    tyro.cli(main)
