"""Constraints: the drone of ``own_env.py`` with a limit on how often it is fast, beside one without.

    python examples/constraints.py

It takes about a minute on one CPU core. The env tells in the signal ``fast`` which steps are above 1 m/s; the limit is
on the sum over an episode. Without one the drone is fast in more than five steps of an episode; with one of 1 in less
than one, and the return is lower by what slower flights cost. ``--iterations 2`` only shows that it runs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import tyro

from rlcore import PPO
from rlcore.envs import make_env
from rlcore.safety import CostConfig, SafetyConfig
from rlcore.train.defaults import default_config
from rlcore.train.evaluate import evaluate

FOLDER = Path(__file__).parent
HOVER = f"python:{FOLDER / 'own_env.py'}:Hover"


def main(iterations: int = 80, limit: float = 1.0) -> None:
    """Train without the limit, and with it.

    Args:
        iterations: rollouts and updates of each.
        limit: fast steps of an episode, on average.
    """
    settings = default_config(HOVER, FOLDER / "hover.yaml")[0].agent
    # The limit is on exploring actions, so that little noise and a step size that stays as it is suit it.
    free = replace(settings, init_std=0.3, lr_schedule="constant", normalize_value=True)
    limited = replace(free, safety=SafetyConfig(costs={"fast": CostConfig(limit=limit)}))
    for name, config in (("without a limit", free), (f"at most {limit:g}", limited)):
        agent = PPO(make_env(HOVER, num_envs=64, seed=1), config, seed=1)
        agent.learn(iterations)
        print(f"{name:16}", evaluate(make_env(HOVER, num_envs=200), agent.policy, seed=2).summary())


if __name__ == "__main__":
    tyro.cli(main)
