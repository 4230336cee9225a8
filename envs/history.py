"""What a controller remembers of itself: the actions that it sent, which late motors have not all carried out yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlcore.env import DYNAMICS, VecEnv, is_image, signal_names
from rlcore.envs.costs import WithSignals
from rlcore.envs.trials import Trials
from rlcore.envs.wrappers import OwnState
from rlcore.types import Obs, Step, begins


class ActionHistory(OwnState):
    """Appends the latest actions to vector observations, so that an env whose actions come late is Markov again.

    With a delay of d steps the next state depends on the d actions that are on their way, besides what sensors show;
    with them in the state the process is a Markov decision process: Katsikopoulos and Engelbrecht, Markov decision
    processes with delays and asynchronous cost collection, IEEE Trans. Automatic Control 48 (2003), section III.

    The actions are those that the policy wanted, exactly, the latest first, ``[N, length * A]`` after the numbers of
    every vector group but ``dynamics``; terms ``sent_action_1``, ``sent_action_2`` and so on. Before the first of an
    episode they are 0.

    Args:
        env: any env whose actions are numbers, with its disturbances.
        length: actions that are remembered; at least the longest delay, in steps.

    Raises:
        ValueError: the length is no whole number from 1 to 1000, actions are choices, or there is no vector group.
    """

    def __init__(self, env: VecEnv, length: int) -> None:
        super().__init__(env, None)
        self.signal_names = signal_names(env)
        if isinstance(length, bool) or not isinstance(length, int) or not 0 < length <= 1000:
            raise ValueError(f"{self.task}: action_history is {length!r}; use a whole number of steps from 1 to 1000")
        if not isinstance(env.action_space, spaces.Box):
            raise ValueError(f"{self.task}: action_history is for actions that are numbers, and its are choices")
        self._groups = [g for g, s in env.observation_spaces.items() if not is_image(s) and g != DYNAMICS]
        if not self._groups:
            raise ValueError(f"{self.task}: action_history has no vector observations to go with; leave it out")
        self.length, size = length, int(env.action_space.shape[0])
        low, high = (np.tile(x.astype(np.float32), length) for x in (env.action_space.low, env.action_space.high))
        found = dict(env.observation_spaces)
        for group in self._groups:
            space = found[group]
            lower, upper = np.concatenate((space.low, low)), np.concatenate((space.high, high))
            found[group] = spaces.Box(lower.astype(np.float32), upper.astype(np.float32), dtype=np.float32)
        self.observation_spaces = found
        terms: dict[str, Any] = self.deployment.get("observation_terms", {})
        own = [{"name": f"sent_action_{i + 1}", "size": size} for i in range(length)]
        if terms:
            self.deployment["observation_terms"] = {g: t + own if g in self._groups else t for g, t in terms.items()}
        self._sent = torch.zeros(self.num_envs, length * size, device=self.device)
        self._kept["sent"] = self._sent

    @torch.no_grad()
    def reset(self, seed: int | None = None) -> Obs:
        """Start a new episode in every env."""
        self._sent.zero_()
        return self._with(self.env.reset(seed), self._sent)

    @torch.no_grad()
    def step(self, action: Tensor) -> Step:
        """Advance the inner env; see ``VecEnv.step``."""
        step = self.env.step(action)
        sent = torch.cat((action, self._sent[:, : -action.shape[1]]), 1)
        final = None if step.final_obs is None else self._with(step.final_obs, sent)
        self._sent.copy_(sent.masked_fill(begins(step)[:, None], 0.0))
        return step._replace(obs=self._with(step.obs, self._sent), final_obs=final)

    def _with(self, obs: Obs, sent: Tensor) -> Obs:
        # The inner env may leave out groups of final observations.
        return {group: torch.cat((x, sent), 1) if group in self._groups else x for group, x in obs.items()}


def with_history(env: VecEnv, length: int | None) -> VecEnv:
    """The env with so many of the latest actions in its observations; itself for None.

    Raises:
        ValueError: see ``ActionHistory``. The env has been closed then.
    """
    try:
        return env if length is None else ActionHistory(env, length)
    except ValueError:
        env.close()
        raise


def without_history(env: VecEnv) -> VecEnv:
    """The env within its history and trials, if it has such: what disturbs sensors and motors reaches none of these.

    Signals of one's own, which are around the trials, are of what is disturbed.
    """
    return without_history(env.env) if isinstance(env, (ActionHistory, Trials, WithSignals)) else env


def disturbed_within(env: VecEnv, wrap: Callable[[VecEnv], VecEnv]) -> VecEnv:
    """Wrap an env within its history and trials, if it has such; see ``without_history``."""
    if isinstance(env, ActionHistory):
        return ActionHistory(disturbed_within(env.env, wrap), env.length)
    if isinstance(env, WithSignals):
        return WithSignals(disturbed_within(env.env, wrap), env.sources)
    return Trials(disturbed_within(env.env, wrap), env.episodes) if isinstance(env, Trials) else wrap(env)
