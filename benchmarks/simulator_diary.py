"""What is noted of a run on a simulator: after each iteration its time and the mean return of the latest episodes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from facts import write
from simulator_curves import summarize
from torch import Tensor


class Window:
    """Mean return of the latest episodes, kept on the device so that counting waits for nothing.

    Of more than ``size`` episodes that end in one step, some are left out.
    """

    def __init__(self, num_envs: int, device: torch.device, size: int = 100) -> None:
        self.returns = torch.zeros(num_envs, device=device)  # [N], of the episode in flight
        self.latest = torch.full((size + 1,), torch.nan, device=device)  # and a place for what is not over
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        self.size = size
        self.terrain: Any = None
        """Terrain whose levels are noted, where the env has one with levels."""

    def record(self, reward: Tensor, done: Tensor) -> None:
        """Take in one vector step."""
        self.returns += reward
        order = done.cumsum(0)  # [N], 1 for the first that ended
        place = torch.where(done, (self.count + order - 1) % self.size, self.size)
        self.latest.scatter_(0, place, self.returns)
        self.count += order[-1]
        self.returns.masked_fill_(done, 0.0)

    def mean(self) -> Tensor:
        """NaN until an episode has ended."""
        return self.latest[:-1].nanmean()

    def watch(self, core: Any) -> None:
        """Count what an env of mjlab or Isaac Lab returns."""
        step = core.step

        def counted(action: Tensor) -> Any:
            result = step(action)
            self.record(result[1], result[2] | result[3])
            return result

        core.step = counted
        terrain = getattr(getattr(core, "scene", None), "terrain", None)
        self.terrain = terrain if getattr(terrain, "terrain_levels", None) is not None else None

    def level(self) -> Tensor:
        """Mean level of terrain that envs are at; NaN without."""
        return self.latest.new_tensor(torch.nan) if self.terrain is None else self.terrain.terrain_levels.float().mean()


class Diary:
    """What is known after each iteration, and the time; the device is asked for rewards every 20 iterations only."""

    def __init__(
        self, report: dict[str, Any], window: Window | None, iterations: int, seconds: float, json: Path | None
    ) -> None:
        self.report, self.window, self.iterations, self.seconds, self.json = report, window, iterations, seconds, json
        self.rows: list[dict[str, Any]] = []
        self.rewards: list[Tensor] = []
        self.levels: list[Tensor] = []
        self.began = time.perf_counter()

    def tick(self, env_steps: int) -> bool:
        """Note the end of an iteration; returns whether time is up."""
        seconds = time.perf_counter() - self.began
        self.rows.append({"iteration": len(self.rows) + 1, "env_steps": env_steps, "seconds": seconds})
        if self.window is not None:
            self.rewards.append(self.window.mean())
            self.levels.append(self.window.level())
        if len(self.rows) % 20 == 0:
            self.save()
        return seconds >= self.seconds or len(self.rows) >= self.iterations

    def save(self) -> None:
        """Write what there is."""
        first = len(self.rows) - len(self.rewards)
        if self.rewards:
            notes = torch.stack([torch.stack(self.rewards), torch.stack(self.levels)], -1).tolist()
            for row, (reward, level) in zip(self.rows[first:], notes, strict=True):
                row["reward"] = reward if reward == reward else None
                if level == level:
                    row["terrain_level"] = level
            self.rewards.clear()
            self.levels.clear()
        self.report["rows"] = self.rows
        self.report["summary"] = summarize(self.report)
        write(self.report, self.json)
