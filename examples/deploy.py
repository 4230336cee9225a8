"""Deployment in Python: a controller that knows its robot from the exported file alone, without PyTorch.

    rlcore train --config examples/hover.yaml --name first
    python examples/deploy.py runs/*/ppo/*-first/export/policy.onnx

It flies a drone, here a few lines of arithmetic, from 2 m to 3 m and prints its height twice a second; the policy of
the first command ends within 10 cm of the goal. On a robot take ``runner.py`` beside rlcore's exporter along, which
needs numpy and ONNX Runtime alone: ``from runner import OnnxPolicy``. What an observation consists of, in which order,
what an action means and how often one is due are all in the file, so that another policy needs no other program.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray

from rlcore.export import OnnxPolicy


class Drone:
    """In the place of a robot's driver: sensors by name, and a motor that takes a thrust."""

    def __init__(self, goal: float) -> None:
        self.goal, self.height, self.velocity = goal, 2.0, 0.0  # m, m, m/s

    def sensors(self) -> dict[str, float]:
        """What is measured, and what is asked for."""
        return {"error": self.goal - self.height, "velocity": self.velocity, "height": self.height}

    def actuate(self, thrust: float, dt: float) -> None:
        """Fly for ``dt`` seconds with a thrust in N, with a mass of 1 kg."""
        self.velocity += dt * (thrust - 9.81 - 0.5 * self.velocity)
        self.height += dt * self.velocity


class Controller:
    """From measurements to targets, as the file says.

    Args:
        path: the ONNX file.
    """

    def __init__(self, path: Path) -> None:
        self.policy = OnnxPolicy(path)
        facts = self.policy.metadata
        self.names = [term["name"] for term in facts["observation_terms"]]  # in the order of the observation
        (self.thrust,) = facts["action_terms"]
        self.dt: float = facts["control_dt"]

    def __call__(self, sensors: dict[str, float]) -> NDArray[np.float32]:
        """Thrust in N, ``[1]``."""
        action = self.policy(np.array([sensors[name] for name in self.names], np.float32))
        scaled: NDArray[np.float32] = action * self.thrust["scale"] + self.thrust["offset"]
        return scaled


def main(file: tyro.conf.Positional[Path], goal: float = 3.0, seconds: float = 5.0) -> None:
    """Fly.

    Args:
        file: the exported policy.
        goal: height in m.
        seconds: for how long.
    """
    controller, drone = Controller(file), Drone(goal)
    for tick in range(1, round(seconds / controller.dt) + 1):  # on a robot: wait until a step is due
        drone.actuate(float(controller(drone.sensors())[0]), controller.dt)
        if tick % 10 == 0:
            print(f"{tick * controller.dt:4.1f} s  {drone.height:.2f} m")


if __name__ == "__main__":
    tyro.cli(main)
