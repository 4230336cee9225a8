"""Two tasks in one policy: CartPole, which takes a choice, and Pendulum, which takes a number.

    python examples/two_tasks.py

It takes about two minutes on one CPU core, prints what the policy returns in each task, 500 being the most in CartPole,
and leaves ``two_tasks.onnx``, which is told the task as a one-hot vector at the end of ``obs``. ``--iterations 2`` only
shows that it runs.
"""

from __future__ import annotations

import tyro

from rlcore import PPO, NetworkConfig, PPOConfig, spec_of
from rlcore.envs import make_env
from rlcore.export import OnnxPolicy, export_onnx
from rlcore.report import Report
from rlcore.train.evaluate import evaluate

TASKS = "tasks:CartPole+Pendulum"


def show(report: Report) -> None:
    """Print what episodes returned in each task, every ten iterations."""
    if report.iteration % 10 == 0:
        returns = {name: report.metrics.get(f"rollout/episode_return_{name}") for name in ("CartPole", "Pendulum")}
        known = ", ".join(f"{name} {value:.0f}" for name, value in returns.items() if value is not None)
        print(f"iteration {report.iteration:3d}  returns: {known}")


def main(iterations: int = 100, num_envs: int = 128) -> None:
    """Train one PPO on both, half of the envs each.

    Args:
        iterations: rollouts and updates.
        num_envs: of both tasks together.
    """
    network = NetworkConfig(hidden_dims=(64, 64), activation="tanh")
    config = PPOConfig(
        num_steps=64,
        num_epochs=10,
        num_minibatches=8,
        gamma=0.95,
        learning_rate=1e-3,
        entropy_coef=0.0,
        balance="advantage",  # else Pendulum's rewards, which are far larger, would be all that is learned from
        actor=network,
        critic=network,
    )
    env = make_env(TASKS, num_envs=num_envs, seed=1)
    agent = PPO(env, config, seed=1, num_iterations=iterations)
    agent.learn(iterations, on_report=show)
    for name, result in evaluate(make_env(TASKS, num_envs=100), agent.policy, seed=2).tasks.items():
        print(f"{name:9}", result.summary())
    export_onnx(agent.policy, spec_of(env), "two_tasks.onnx", recording=agent.recording())
    for index, task in enumerate(OnnxPolicy("two_tasks.onnx").metadata["tasks"]):
        print(f"task {index} of the file is {task['name']}")


if __name__ == "__main__":
    tyro.cli(main)
