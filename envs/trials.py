"""Trials of several episodes, in which a policy with a memory finds out what it is in: RL²."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn import functional as F

from rlcore.config import ConfigError, check
from rlcore.env import VecEnv, is_image, signal_names, spec_of
from rlcore.envs.wrappers import OwnState
from rlcore.types import Obs, Step

TRIAL_EPISODES = "trial_episodes"
"""Option of every task: episodes of a trial."""

RETURN = "episode_return_"
"""Of ``Step.log`` where a trial ended: the return of its first episode is ``episode_return_1`` ``[N]``, and so on."""


class Trials(OwnState):
    """An env whose episodes are trials of several episodes of the env within (RL², Duan et al. 2016, arXiv:1611.02779).

    The observation of policy and critic has at its end what the last step came to: the action (choices as one-hot
    vectors), the reward and, with several episodes, 1 where an episode of the trial ended with it; zeros where a trial
    begins. With them and a recurrent state, which is cleared where a trial ends and not before, a policy can find out
    which task it is in, and do better in later episodes of a trial. Returns and advantages go on across episodes as
    well, so that finding out early is worth something later.

    To all others a trial is one episode: its return is the sum, and parameters that are drawn for each episode hold for
    a trial. Only its last episode ends the trial, terminated or cut as that is. ``Step.log`` tells the return of each
    episode, see ``RETURN``; ``success`` is that of all goals of the trial.

    Args:
        env: any env whose actor reads a vector.
        episodes: of a trial, E; with 1 a trial is an episode, of which the policy sees what came of its actions.

    Raises:
        ConfigError: an impossible number, or the env has no such vector.
    """

    def __init__(self, env: VecEnv, episodes: int) -> None:
        super().__init__(env, None)
        whole = isinstance(episodes, int) and not isinstance(episodes, bool) and 1 <= episodes <= 100
        check(whole, f"env.{TRIAL_EPISODES}", episodes, "give a whole number from 1 to 100, or none for no trials")
        self.signal_names = signal_names(env)
        self.episodes, spec = episodes, spec_of(env)
        self.max_episode_length = episodes * env.max_episode_length
        vectors = {name: space for name, space in env.observation_spaces.items() if not is_image(space)}
        told: list[str] = [name for name in ("policy", "actor", "critic") if name in vectors]
        if told in ([], ["critic"]) and len(vectors) != 1:
            raise ConfigError(
                f"env.{TRIAL_EPISODES}: {self.task} has no vector among its observations that is called 'policy' or "
                f"'actor' ({spec.observation_text}); what came of an action has no place to stand"
            )
        self._told = told or list(vectors)
        self._choices = (spec.action_parts or [spec.action_size]) if spec.discrete else []
        size = sum(self._choices) or spec.action_size
        new: list[dict[str, Any]] = [{"name": "previous_action", "size": size}, {"name": "previous_reward", "size": 1}]
        if episodes > 1:
            new.append({"name": "previous_end", "size": 1})
        size = sum(term["size"] for term in new)
        terms: Mapping[str, list[dict[str, Any]]] = self.deployment.get("observation_terms", {})
        self.deployment["observation_terms"] = dict(terms)
        self.deployment[TRIAL_EPISODES] = episodes
        wider, beyond = dict(env.observation_spaces), np.full(size, np.inf, np.float32)
        for name in self._told:
            low, high = vectors[name].low, vectors[name].high
            wider[name] = spaces.Box(np.concatenate([low, -beyond]), np.concatenate([high, beyond]), dtype=np.float32)
            own = terms.get(name) or [{"name": name, "size": len(low)}]
            self.deployment["observation_terms"][name] = [*own, *new]
        self.observation_spaces = wider
        n = self.num_envs
        self._nothing = torch.zeros(n, size, device=self.device)
        self._numbers = torch.arange(episodes, device=self.device)
        self._episode = torch.zeros(n, dtype=torch.int64, device=self.device)  # [N], the present one, from 0
        self._returns = torch.zeros(n, episodes, device=self.device)
        self._successes, self._goals = torch.zeros(2, n, device=self.device)  # [N] each, of the trial so far
        self._kept |= {"episode": self._episode, "returns": self._returns}
        self._kept |= {"successes": self._successes, "goals": self._goals}

    @torch.no_grad()
    def reset(self, seed: int | None = None) -> Obs:
        """Start a new trial in every env."""
        for kept in self._kept.values():
            kept.zero_()
        return self._with(self.env.reset(seed), self._nothing)

    @torch.no_grad()
    def step(self, action: Tensor) -> Step:
        """Advance the inner env; see ``VecEnv.step``.

        Raises:
            ConfigError: the env begins episodes in steps of their own, which would be part of a trial.
        """
        step = self.env.step(action)
        if step.valid is not None:
            raise ConfigError(
                f"env.{TRIAL_EPISODES}: {self.task} begins an episode in a step that takes no action, which a trial "
                "cannot have within; of envpool's tasks set env.autoreset to same_step, others train without trials"
            )
        ended = step.terminated | step.truncated  # [N]
        over = ended & (self._episode == self.episodes - 1)  # [N]
        present = self._episode.unsqueeze(1) == self._numbers  # [N, E]
        self._returns.add_(step.reward.unsqueeze(1).where(present, 0.0))  # what is no number is one episode's alone
        log = dict(step.log)
        if self.episodes > 1:
            log |= {f"{RETURN}{k + 1}": x.clone() for k, x in enumerate(self._returns.unbind(1))}
        if "success" in log:
            # Made on the device: a number from the host would be waited for in every step.
            told = "num_goals" in log
            goals = torch.as_tensor(log["num_goals"]).to(step.reward) if told else torch.ones_like(step.reward)
            success = torch.as_tensor(log["success"]).to(step.reward)
            self._goals.add_(torch.where(ended, goals, 0.0))
            self._successes.add_(torch.where(ended, success * goals, 0.0))
            log["success"] = self._successes / self._goals.clamp(min=1e-8)
            log["num_goals"] = self._goals.clone()
        came = final = torch.cat([self._seen(action), step.reward.unsqueeze(1)], 1)
        if self.episodes > 1:  # a last observation is one before the end
            came, final = (torch.cat([came, end.float().unsqueeze(1)], 1) for end in (ended, torch.zeros_like(ended)))
        final_obs = None if step.final_obs is None else self._with(step.final_obs, final)
        obs = self._with(step.obs, came.masked_fill(over.unsqueeze(1), 0.0))
        self._episode.add_(ended)
        for kept in self._kept.values():
            kept.masked_fill_(over.view(-1, *[1] * (kept.dim() - 1)), 0)
        return step._replace(
            obs=obs, terminated=step.terminated & over, truncated=step.truncated & over, final_obs=final_obs, log=log
        )

    def _seen(self, action: Tensor) -> Tensor:
        """An action as numbers, ``[N, A]``, choices one-hot."""
        if not self._choices:
            return action.float()
        parts = action.view(self.num_envs, -1).unbind(1)
        one_hot = [F.one_hot(part, size) for part, size in zip(parts, self._choices, strict=True)]
        return torch.cat(one_hot, 1).float()

    def _with(self, obs: Obs, came: Tensor) -> Obs:
        # The inner env may leave out groups of final observations.
        return {name: torch.cat([x, came], 1) if name in self._told else x for name, x in obs.items()}


def with_trials(env: VecEnv, episodes: Any) -> VecEnv:
    """The env in trials of so many episodes; as it is where None asks for none.

    Raises:
        ConfigError: see ``Trials``. The env has been closed then.
    """
    if episodes is None:
        return env
    try:
        return Trials(env, episodes)
    except ConfigError:
        env.close()
        raise
