"""What makes a task partially observable: parts of the observation that are hidden, or come late."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import gymnasium
import numpy as np
import torch
from torch import Tensor

from rlcore.env import (
    Selective,
    Staggered,
    VecEnv,
    dtype_of,
    is_capturable,
    is_exact,
    is_stateful,
    name_of,
    signal_names,
)
from rlcore.types import Obs, Step, begins


class Wrapper:
    """An env around another. What is not here, such as ``render`` and ``generator``, is the inner env's."""

    def __init__(self, env: VecEnv, suffix: str = "") -> None:
        self.env = env
        self.task = f"{name_of(env)}-{suffix}" if suffix else name_of(env)
        self.deployment: dict[str, Any] = dict(getattr(env, "deployment", {}))
        self.capturable = is_capturable(env)
        self.num_envs = env.num_envs
        self.device = env.device
        self.observation_spaces: Mapping[str, gymnasium.spaces.Box] = env.observation_spaces
        self.action_space: gymnasium.Space[Any] = env.action_space
        self.max_episode_length = env.max_episode_length

    def __getattr__(self, name: str) -> Any:
        if name == "env":  # not there yet: the inner env must not be asked for itself
            raise AttributeError(name)
        return getattr(self.env, name)

    @property
    def final_groups(self) -> tuple[str, ...] | None:
        """Of the inner env, if it has them."""
        return cast(Selective, self.env).final_groups  # without them an AttributeError, as for anything it lacks

    @final_groups.setter
    def final_groups(self, groups: tuple[str, ...]) -> None:
        cast(Selective, self.env).final_groups = groups

    @property
    def randomize_start(self) -> bool:
        """Of the inner env, if it has that."""
        return cast(Staggered, self.env).randomize_start

    @randomize_start.setter
    def randomize_start(self, value: bool) -> None:
        cast(Staggered, self.env).randomize_start = value

    def close(self) -> None:
        """Release the inner env."""
        self.env.close()


class SuccessWatch:
    """Whether an env tells of success in ``Step.log``, which may be no sooner than an episode ends.

    Args:
        env: the one that is watched.
    """

    def __init__(self, env: VecEnv) -> None:
        self._env, self._told, self._silent = env, False, 0  # steps before it told any

    def is_missing(self, log: Mapping[str, Any]) -> bool:
        """Whether a step's log, after those before it, shows that success is never told."""
        self._told = self._told or "success" in log
        self._silent += not self._told
        # One that may be recorded says in every step what it says in one; others when an episode must have ended.
        limit = 0 if is_capturable(self._env) else self._env.max_episode_length
        return not self._told and self._silent > limit


class OwnState(Wrapper):
    """A wrapper with tensors and random numbers of its own, which are saved and held where the inner env's are.

    The random numbers are apart from the inner env's, which goes on as if it were alone.

    Args:
        env: any env.
        seed: of the random numbers until ``reset`` gets one; random when not given.
        suffix: of the task's name.
    """

    def __init__(self, env: VecEnv, seed: int | None, suffix: str = "") -> None:
        super().__init__(env, suffix)
        self._kept: dict[str, Tensor] = {}
        """What the future depends on, changed in place."""
        self._random = torch.Generator(self.device)
        self._random.seed()
        self._reseed(seed)
        if is_stateful(env):  # else the wrapper must not be so either
            self._stateful = env
            self.state_dict = self._state_dict
            self.load_state_dict = self._load_state_dict
            if not is_exact(env) and not hasattr(env, "stage_dict"):  # its stage is that, and nothing from here
                self.stage_dict, self.load_stage_dict = env.state_dict, env.load_state_dict
        if hasattr(env, "hold"):
            self.hold = self._hold

    @property
    def generators(self) -> tuple[torch.Generator, ...]:
        """Where random numbers are from, beside ``generator`` of an env that may be recorded."""
        return (*getattr(self.env, "generators", ()), self._random)

    def _reseed(self, seed: int | None) -> None:
        if seed is not None:  # other numbers than those of an env or a wrapper of the same seed
            self._random.manual_seed(seed ^ zlib.crc32(type(self).__name__.encode()))

    def _loaded(self) -> None:
        """What is to be done once ``_kept`` has been put back."""

    def _state_dict(self) -> dict[str, Any]:
        kept = {name: value.clone() for name, value in self._kept.items()}
        return {"env": self._stateful.state_dict(), "kept": kept, "generator": self._random.get_state()}

    def _load_state_dict(self, state: dict[str, Any]) -> None:
        saved: Mapping[str, Tensor] = state.get("kept", {})
        for name in sorted(saved.keys() ^ self._kept.keys()):
            which = "lacks" if name in self._kept else "has"
            raise ValueError(
                f"{self.task}: the saved state {which} '{name}' of {type(self).__name__}; use the options of that run"
            )
        for name, value in self._kept.items():
            if saved[name].shape != value.shape:
                raise ValueError(
                    f"{self.task}: '{name}' of {type(self).__name__} has shape {tuple(saved[name].shape)} in the saved "
                    f"state and {tuple(value.shape)} here; use the number of envs and the options of that run"
                )
        self._stateful.load_state_dict(state["env"])
        self._put(saved, state["generator"])

    def _hold(self) -> Callable[[], bool]:
        put_back: Callable[[], bool] = cast(Any, self.env).hold()
        kept, random = {name: value.clone() for name, value in self._kept.items()}, self._random.get_state()

        def back() -> bool:
            whole = put_back()
            if whole:
                self._put(kept, random)
            return whole

        return back

    def _put(self, kept: Mapping[str, Tensor], random: Tensor) -> None:
        for name, value in self._kept.items():
            value.copy_(kept[name])
        self._random.set_state(random.cpu())
        self._loaded()


class HiddenVelocity(Wrapper):
    """Leaves the velocities out of all observation groups, so that a policy has to work them out from what it saw.

    Args:
        env: any env whose ``deployment`` names the terms of its observations.
        hidden: a term is left out if its name contains one of these.

    Raises:
        ValueError: the env does not name its terms, or none would be left out, or none left in a group.
    """

    def __init__(self, env: VecEnv, hidden: Sequence[str] = ("vel",)) -> None:
        super().__init__(env, "HiddenVelocity")
        self.signal_names = signal_names(env)
        hidden = (hidden,) if isinstance(hidden, str) else tuple(hidden)
        terms: dict[str, list[dict[str, Any]]] = self.deployment.get("observation_terms", {})
        spaces: dict[str, gymnasium.spaces.Box] = {}
        self._columns: dict[str, Tensor] = {}
        kept_terms: dict[str, list[dict[str, Any]]] = {}
        for group, space in env.observation_spaces.items():
            columns: list[int] = []
            start = 0
            kept_terms[group] = []
            for term in terms.get(group, []):
                end = start + int(term["size"])
                if not any(word in term["name"] for word in hidden):
                    columns += range(start, end)
                    kept_terms[group].append(term)
                start = end
            if start != space.shape[0]:
                raise ValueError(f"{self.task}: the env does not name the terms of observation group '{group}'")
            if not columns:
                raise ValueError(f"{self.task}: hidden={hidden} leaves nothing of observation group '{group}'")
            spaces[group] = gymnasium.spaces.Box(space.low[columns], space.high[columns], dtype=np.float32)
            self._columns[group] = torch.tensor(columns, device=env.device)
        if all(len(kept_terms[group]) == len(terms[group]) for group in kept_terms):
            names = ", ".join(term["name"] for group in kept_terms for term in terms[group])
            raise ValueError(f"{self.task}: no observation term has any of {hidden} in its name; there are {names}")
        self.observation_spaces = spaces
        self.deployment["observation_terms"] = kept_terms

    def reset(self, seed: int | None = None) -> Obs:
        """Start a new episode in every env."""
        return self._visible(self.env.reset(seed))

    def step(self, action: Tensor) -> Step:
        """Advance the inner env; see ``VecEnv.step``."""
        step = self.env.step(action)
        final_obs = None if step.final_obs is None else self._visible(step.final_obs)
        return step._replace(obs=self._visible(step.obs), final_obs=final_obs)

    def _visible(self, obs: Obs) -> Obs:
        # The inner env may leave out groups of final observations.
        columns = {group: columns for group, columns in self._columns.items() if group in obs}
        return {group: obs[group].index_select(1, places) for group, places in columns.items()}


class Delayed(OwnState):
    """Shows every observation a fixed number of steps late, as a slow sensor or link would.

    Until the first late observation of an episode arrives, the episode's first one is shown. The last one of an
    episode, ``final_obs``, is as late as the others, and therefore known even where the simulator hides the true one.

    Args:
        env: any env.
        delay: steps.

    Raises:
        ValueError: the delay is below 1.
    """

    def __init__(self, env: VecEnv, delay: int = 3) -> None:
        super().__init__(env, None, "Delayed")
        self.signal_names = signal_names(env)
        if isinstance(delay, bool) or not isinstance(delay, int) or delay < 1:
            raise ValueError(f"{self.task}: delay is {delay!r}; use a whole number of at least 1")
        self.deployment["observation_delay_steps"] = delay
        self._queue = {  # [delay, N, O] by group, or of images, on their way: the next to be shown first
            group: torch.zeros(delay, env.num_envs, *space.shape, dtype=dtype_of(space), device=env.device)
            for group, space in env.observation_spaces.items()
        }
        self._kept |= {f"queue/{group}": queue for group, queue in self._queue.items()}

    def reset(self, seed: int | None = None) -> Obs:
        """Start a new episode in every env."""
        obs = self.env.reset(seed)
        for group, queue in self._queue.items():
            queue.copy_(obs[group].expand_as(queue))
        return obs

    @torch.no_grad()
    def step(self, action: Tensor) -> Step:
        """Advance the inner env, and show what it showed ``delay`` steps ago; see ``VecEnv.step``."""
        step = self.env.step(action)
        begun = begins(step)  # [N]
        obs, final_obs = {}, {}
        for group, queue in self._queue.items():
            now = step.obs[group]  # [N, O]
            late = queue[0].clone()
            final_obs[group] = late
            done = begun.view(-1, *[1] * (now.dim() - 1))  # [N, 1], or [N, 1, 1, 1] of images
            obs[group] = torch.where(done, now, late)
            queue.copy_(torch.where(done, now, torch.cat((queue[1:], now[None]))))
        return step._replace(obs=obs, final_obs=final_obs)

    def _load_state_dict(self, state: dict[str, Any]) -> None:
        if "queue" in state:  # of 0.2.0
            kept = {f"queue/{group}": values for group, values in state["queue"].items()}
            state = {"env": state["env"], "kept": kept, "generator": self._random.get_state()}
        super()._load_state_dict(state)
