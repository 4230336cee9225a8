"""Levels that a simulator's terrain has of its own, chosen from outside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlcore.envs.levels import among, spread


class TerrainLevels:
    """The levels of an env's terrain: ``set`` says on which one each env begins its next episode.

    Once it has been called, it is what counts: what the task's own curriculum does to the levels of envs that begin
    anew is undone before their robots are placed. Until then nothing is touched.

    Args:
        core: the env as made.
        terrain: as ``rlcore.envs.stages.terrain_of`` finds it.
    """

    def __init__(self, core: Any, terrain: Any) -> None:
        self._scene, self._terrain = core.scene, terrain
        self.number = int(terrain.terrain_origins.shape[0])
        """L, how many there are."""
        self._next: Tensor | None = None

    @property
    def levels(self) -> Tensor:
        """``[N]``, of the episodes in flight."""
        levels: Tensor = self._terrain.terrain_levels
        return levels

    def where(self, which: str) -> Tensor:
        """``[N]``, all the hardest (``end``) or evenly over all (``all``)."""
        return spread(among(which, torch.ones(self.number, device=self.levels.device)), len(self.levels))

    def set(self, level: Tensor, where: Tensor) -> None:
        """Choose levels of the episodes that begin next.

        Args:
            level: int64 ``[N]``.
            where: bool ``[N]``, the envs that it is for.
        """
        if self._next is None:
            self._next = self.levels.clone()
            self._reset = self._scene.reset
            self._scene.reset = self._before_reset
        chosen = level.to(self._next)
        torch.where(where.to(chosen.device), chosen, self._next, out=self._next)

    def _before_reset(self, env_ids: Any = None, *args: Any, **kwargs: Any) -> Any:
        """In place of the scene's ``reset``: curricula have run by now, and robots have not been placed."""
        terrain, rows = self._terrain, slice(None) if env_ids is None else env_ids
        assert self._next is not None
        terrain.terrain_levels[rows] = self._next[rows]
        terrain.env_origins[rows] = terrain.terrain_origins[terrain.terrain_levels[rows], terrain.terrain_types[rows]]
        return self._reset(env_ids, *args, **kwargs)
