"""A policy module or an exported file as one thing that acts in an env."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from rlcore.agent import Policy
from rlcore.env import VecEnv, name_of
from rlcore.export.runner import OnnxPolicy
from rlcore.recurrent import cleared
from rlcore.types import Obs

ActionFunction = Callable[[dict[str, NDArray[Any]]], Any]
"""An exported policy: observation groups ``[N, O]``, images ``[N, C, H, W]``, to actions ``[N, A]`` (``[N]`` when
discrete, ``[N, D]`` where several choices are made at once).

A ``reset(mask=None)`` that it has is called at the start and where episodes end, for a recurrent state."""


class Controller:
    """A policy module or an exported file as one thing that acts in an env, and forgets where an episode ended.

    Args:
        policy: what chooses the actions; a recurrent one begins with a zero state.
        env: where it acts.
    """

    acted: Tensor | None
    """Bool ``[N]``, where the latest action was the policy's gate's; None without a gate."""
    guessed: Tensor | None
    """Bool ``[N]``, where the task that the policy took to be the most likely is the env's; None where it infers none,
    or the env is of another."""

    def __init__(self, policy: Policy | ActionFunction, env: VecEnv) -> None:
        self._policy, self._device, self.acted, self.guessed = policy, env.device, None, None
        self._tasks: tuple[str, ...] = getattr(policy, "inferred_tasks", ())
        self._truth = _task_of_rows(env, self._tasks)
        self._state = policy.initial_state(env.num_envs) if isinstance(policy, Policy) else ()
        if not isinstance(policy, Policy) and hasattr(policy, "reset"):
            policy.reset()

    @torch.no_grad()
    def act(self, obs: Obs) -> Tensor:
        """Actions ``[N, A]`` (``[N]`` or ``[N, D]`` when discrete) on the env's device.

        What is not finite, as it comes of an observation that is not, is 0, and empties the recurrent state: it would
        spoil a simulator for good.
        """
        if isinstance(self._policy, Policy):
            if self._policy.gate is not None:
                gated, self._state = self._policy.judged(obs, self._state)
                action, self.acted = gated.action, gated.acted
            elif self._tasks:
                action, probability, self._state = self._policy.inferring(obs, self._state)
                self._compare(probability)
            else:
                action, self._state = self._policy(obs, self._state)
            assert isinstance(action, Tensor)
        else:
            arrays = {group: values.detach().cpu().numpy() for group, values in obs.items()}
            action = torch.as_tensor(self._policy(arrays), device=self._device)
            if isinstance(self._policy, OnnxPolicy) and self._policy.threshold is not None:
                self.acted = torch.as_tensor(self._policy.acted, device=self._device)
            if isinstance(self._policy, OnnxPolicy) and self._tasks:
                self._compare(torch.as_tensor(self._policy.task_probability, device=self._device))
        broken = ~action.isfinite()
        if broken.any():
            action = action.masked_fill(broken, 0)
            self.forget(broken.view(len(broken), -1).any(1))
        return action

    def _compare(self, probability: Tensor) -> None:
        if self._truth is not None:
            self.guessed = probability.argmax(-1) == self._truth

    def forget(self, done: Tensor) -> None:
        """Zero the recurrent state of envs whose episode ended, ``done [N]``."""
        self._state = cleared(self._state, done)
        if not isinstance(self._policy, Policy) and hasattr(self._policy, "reset"):
            self._policy.reset(done.cpu().numpy())


def _task_of_rows(env: VecEnv, tasks: Sequence[str]) -> Tensor | None:
    """Which of the tasks each env is of, int64 ``[N]``; None where they are not all among them."""
    names = list(getattr(env, "tasks", {})) or [name_of(env)]
    if not tasks or not set(names) <= set(tasks):
        return None
    places = torch.tensor([list(tasks).index(name) for name in names], device=env.device)
    rows: Tensor = getattr(env, "task_index", torch.zeros(env.num_envs, dtype=torch.int64, device=env.device))
    return places[rows]
