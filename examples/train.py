"""Train, measure and export a policy from Python: five lines.

    python examples/train.py

It takes about half a minute on one CPU core, prints the mean return as it grows towards 500, which is the most that
CartPole gives, and leaves ``cartpole.onnx`` in the present folder. ``--iterations 2`` only shows that it runs.
"""

from __future__ import annotations

import tyro

from rlcore import PPO, spec_of
from rlcore.envs import make_env
from rlcore.export import export_onnx
from rlcore.report import Report
from rlcore.train.defaults import default_config
from rlcore.train.evaluate import evaluate


def show(report: Report) -> None:
    """Print what an episode returned, where one ended."""
    print(f"iteration {report.iteration:3d}  return {report.metrics.get('rollout/episode_return', float('nan')):.1f}")


def main(iterations: int = 30, device: str = "cpu") -> None:
    """Train PPO on CartPole.

    Args:
        iterations: rollouts and updates.
        device: cpu or cuda.
    """
    env = make_env("CartPole", num_envs=64, device=device)
    agent = PPO(env, default_config("CartPole")[0].agent, seed=1, num_iterations=iterations)
    agent.learn(iterations, on_report=show)
    print(evaluate(make_env("CartPole", num_envs=100, device=device), agent.policy, seed=2).summary())
    export_onnx(agent.policy, spec_of(env), "cartpole.onnx", recording=agent.recording())


if __name__ == "__main__":
    tyro.cli(main)
