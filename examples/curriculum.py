"""Curriculum and randomization: the drone of ``own_env.py`` with near goals first, and with other masses and winds.

    python examples/curriculum.py

It takes about a minute on one CPU core and trains twice: on the task as it is, and with goals whose range grows over
five levels while each episode has a mass and a wind of its own. Both are then measured at the last level, without and
with other masses and winds. ``--iterations 2`` only shows that it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tyro

from rlcore import PPO
from rlcore.envs import make_env
from rlcore.report import Report
from rlcore.train.defaults import default_config
from rlcore.train.evaluate import evaluate

FOLDER = Path(__file__).parent
HOVER = f"python:{FOLDER / 'own_env.py'}:Hover"

# ``True``: from the whole range that the env gives the parameter.
DRAWN: dict[str, Any] = {"randomize.mass": True, "randomize.wind": True}
LEVELS: dict[str, Any] = {"curriculum.parameters.goal_range": [0.1, 1.5], "curriculum.levels": 5}


def show(report: Report) -> None:
    """Print the level that episodes are at, where there are levels."""
    if "curriculum/level_mean" in report.metrics and report.iteration % 10 == 0:
        print(f"iteration {report.iteration:3d}  level {report.metrics['curriculum/level_mean']:.2f} of 0 to 4")


def main(iterations: int = 80) -> None:
    """Train both ways, and measure each in both worlds.

    Args:
        iterations: rollouts and updates of each.
    """
    config = default_config(HOVER, FOLDER / "hover.yaml")[0].agent
    for name, options in (("as it is", {}), ("levels, masses and winds", LEVELS | DRAWN)):
        agent = PPO(make_env(HOVER, num_envs=64, seed=1, **options), config, seed=1)
        agent.learn(iterations, on_report=show)
        for world, drawn in (("nominal", {}), ("drawn", DRAWN)):
            result = evaluate(make_env(HOVER, num_envs=2000, seed=2, **drawn), agent.policy, seed=2)
            print(f"trained on {name}, measured in the {world} world: {result.summary()}")


if __name__ == "__main__":
    tyro.cli(main)
