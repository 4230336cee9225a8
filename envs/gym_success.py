"""Whether episodes of gymnasium's envs succeeded, by ``info["success"]`` or ``info["is_success"]``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SOME_STEP = "success"
"""The entry of an env's info by which an episode succeeds if any of its steps does, as Meta-World counts it."""

LAST_STEP = "is_success"
"""That by which the last step of an episode says whether it did, as Gymnasium-Robotics has it."""


class StepSuccess:
    """Whether an env tells success, as a first step or a first end of an episode shows, and then that of every episode.

    Args:
        num_envs: N.
    """

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self._name: str | None = ""  # of the entry; empty until it is known, None where there is none
        self._so_far, self._latest = np.zeros((2, num_envs), np.bool_)

    def log(self, device: torch.device) -> dict[str, Tensor | float]:
        """``success`` ``[N]`` of the episodes as the latest step left them, for ``Step.log``; nothing if untold."""
        return {"success": torch.from_numpy(self._latest.astype(np.float32)).to(device)} if self._name else {}

    def begin(self) -> None:
        """Forget the episodes at hand: all envs begin anew."""
        self._so_far[:] = False

    def of_each(self, infos: Sequence[Mapping[str, Any]], done: NDArray[np.bool_]) -> None:
        """Take in a step of N envs that were stepped one by one, of which some ended an episode ``[N]``."""
        ended = [infos[i] for i in np.flatnonzero(done).tolist()] if self._name == "" else []
        if self._known(done, infos[0], *ended):
            self._take(np.array([bool(info.get(self._name or "", False)) for info in infos]), done)

    def of_vector(self, infos: Mapping[str, Any], done: NDArray[np.bool_], begun: NDArray[np.bool_] | None) -> None:
        """Take in a step of a vector env; arguments as for ``gym_costs.StepCosts.of_vector``."""
        final = infos.get("final_info")
        if self._known(done, infos, *([final] if isinstance(final, Mapping) else [])):
            now = self._column(infos)
            if isinstance(final, Mapping):
                now = np.where(done, self._column(final), now)
            self._take(now if begun is None else now & ~begun, done)

    def _known(self, done: NDArray[np.bool_], *infos: Mapping[str, Any]) -> bool:
        if self._name == "":
            told = [x for x in (SOME_STEP, LAST_STEP) if any(x in info for info in infos)]
            self._name = told[0] if told else None if done.any() else ""
        return bool(self._name)

    def _column(self, infos: Mapping[str, Any]) -> NDArray[np.bool_]:
        given = infos.get(self._name or "")
        if given is None:
            return np.zeros(self.num_envs, np.bool_)
        return np.asarray([bool(x) for x in given])

    def _take(self, now: NDArray[np.bool_], done: NDArray[np.bool_]) -> None:
        self._so_far |= now
        self._latest = self._so_far.copy() if self._name == SOME_STEP else now
        self._so_far[done] = False
