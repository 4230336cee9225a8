"""Any gymnasium vector environment as a ``VecEnv``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray
from torch import Tensor

from rlcore.env import EnvFailed
from rlcore.envs.envpool import with_reset_seed
from rlcore.envs.gym_costs import COST, StepCosts
from rlcore.envs.gym_mujoco import with_physics
from rlcore.envs.gym_spaces import Arrays, flat_action_space, layouts_of, terms_of, to_torch
from rlcore.envs.gym_success import StepSuccess
from rlcore.envs.gym_wrappers import autoreset_mode
from rlcore.envs.parameters import STAGE_ENTRY
from rlcore.envs.stages import gymnasium_stage, load_gymnasium_stage
from rlcore.types import Obs, Step

NO_TIME_LIMIT = 1_000_000
"""``max_episode_length`` of an env that sets no time limit."""

_Answer = tuple[Any, ...]
"""Observations after and before resets, the same if there were none; rewards, terminated, truncated ``[N]``; and with
NEXT_STEP autoreset which of them are of a step, ``[N]``."""


class GymnasiumEnv:
    """A gymnasium ``VectorEnv`` as torch tensors on any device, whatever its autoreset mode.

    A ``SyncVectorEnv`` and one with SAME_STEP or DISABLED autoreset begin the next episode in the step that ended one.
    With NEXT_STEP the step after that does so, which is marked as none of the episode's (``Step.valid``).

    An observation becomes the group ``policy``, the keys of a ``Dict`` become groups; all are flat and float32: choices
    (``Discrete``, ``MultiDiscrete``) one-hot, the members of a ``Tuple`` or nested ``Dict`` side by side. Only images
    (see ``gym_spaces.image_axes``), stacked ones too, become ``[N, C, H, W]``. Actions (``Box``, ``Discrete``,
    ``MultiDiscrete``) are passed on as they are, without clipping: the policy applies its own action limits, and an env
    may clip again (gymnasium's MuJoCo tasks do, by the actuators' control range).
    A number ``info["cost"]`` in each step, as Safety-Gymnasium has it, becomes the signal ``cost``; and whether an
    episode succeeded is told by ``info["success"]`` or ``info["is_success"]``, see ``gym_success``.
    Sub-envs must not return one observation array again and again: gymnasium resets them before it hands over
    ``final_obs``. ``make_gymnasium`` guards against that; for your own vector env, copy in the sub-env.
    MuJoCo's sub-envs in this process have ``parameters``, see ``rlcore.envs.gym_mujoco.MujocoPhysics``.
    """

    clocks = (STAGE_ENTRY,)

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        device: str | torch.device = "cpu",
        seed: int | None = None,
        *,
        task: str | None = None,
        max_episode_length: int | None = None,
    ) -> None:
        """Wrap a vector env, which is then owned: ``close()`` closes it.

        Args:
            env: whose metadata tell its autoreset mode; with DISABLED, its ``reset`` takes ``reset_mask``. Pools of
                envpool's are such vector envs.
            device: where observations and rewards go.
            seed: of the first ``reset()`` that is called without one.
            task: name for run folders and exported files; by default ``gym:<id>`` where the id is known.
            max_episode_length: the time limit in steps, where no spec tells it (a hand-made ``AsyncVectorEnv``);
                ``NO_TIME_LIMIT`` where nothing does.

        Raises:
            ValueError: not a vector env, no autoreset mode, or a space that rlcore cannot train on.
        """
        env = with_reset_seed(env)
        if not isinstance(env, VectorEnv):
            raise ValueError(
                f"GymnasiumEnv takes a gymnasium VectorEnv, got {type(env).__name__}; "
                "for a single env use make_env('gym:<id>', num_envs) or gymnasium.vector.SyncVectorEnv"
            )
        self._mode = autoreset_mode(env)
        self._ended = np.zeros(env.num_envs, np.bool_)  # by the step before, with NEXT_STEP
        sub_env = _first_sub_env(env)
        spec = sub_env.spec if sub_env is not None else env.spec
        name = spec.id if spec is not None else None
        self.env = env
        self.task = task or (f"gym:{name}" if name else type(env.unwrapped).__name__)
        self.num_envs = env.num_envs
        self.device = torch.empty(0, device=device).device
        # make_vec leaves a changed time limit in the arguments of the spec.
        limit = spec.kwargs.get("max_episode_steps", spec.max_episode_steps) if spec is not None else None
        limit = max_episode_length or limit or getattr(env, "max_episode_steps", None)  # the latter of a pool
        self.max_episode_length = int(limit or NO_TIME_LIMIT)
        layouts = layouts_of(self.task, env.single_observation_space)
        self.observation_spaces: Mapping[str, spaces.Box] = {group: layout.box for group, layout in layouts.items()}
        self.action_space: spaces.Space[Any] = flat_action_space(self.task, env.single_action_space)
        self.deployment: dict[str, Any] = {}
        control_dt = getattr(sub_env.unwrapped, "dt", None) if sub_env is not None else None
        if isinstance(control_dt, float):
            self.deployment["control_dt"] = control_dt
        self._seed = seed
        self._costs, self._success = StepCosts(self.task, env.num_envs), StepSuccess(env.num_envs)
        self.signal_names = (COST,)
        self._physics = with_physics(self, env, seed)
        self._discrete = not isinstance(self.action_space, spaces.Box)
        self._action_shape = (self.num_envs, *(self.action_space.shape or ()))
        # Stepped from here they cost less: a SyncVectorEnv copies observations again and again and gathers infos.
        self._sub_envs = list(env.envs) if type(env) is SyncVectorEnv else []
        self._named = isinstance(env.single_observation_space, spaces.Dict)
        self._laid_out = {group: layout for group, layout in layouts.items() if layout.converts}
        self._shapes = {
            group: (layout.box if layout.converts else layout.space).shape or () for group, layout in layouts.items()
        }
        self._memory = [
            (group, (self.num_envs, *shape), self.observation_spaces[group].dtype)
            for group, shape in self._shapes.items()
        ]
        if any(layout.axes is None for layout in self._laid_out.values()):
            self.deployment["observation_terms"] = {
                group: terms_of(group, layout.space) for group, layout in layouts.items() if layout.axes is None
            }

    def reset(self, seed: int | None = None) -> Obs:
        """Start a new episode in every env; env i is seeded with ``seed + i``.

        Raises:
            ValueError: the env itself fails.
        """
        seed = self._seed if seed is None else seed
        self._seed = None
        self._ended[:] = False
        self._success.begin()
        if self._physics is not None:
            self._physics.seed(seed)
        try:
            observation, _ = self.env.reset(seed=None if seed is None else int(seed))
        except Exception as error:
            raise EnvFailed(failure(self.task, "reset()", error)) from error
        return to_torch(self.observation_spaces, self._groups(observation), (), self.device)[0]

    def step(self, action: Tensor) -> Step:
        """Step every env; see ``VecEnv.step``.

        Args:
            action: ``[N, A]`` float, or ``[N]`` int64 when discrete.

        Raises:
            ValueError: the action has the wrong shape, the env itself fails, or an episode ended and the vector env
                left out its last observation.
        """
        advance = self._step_each if self._sub_envs else self._step_together
        groups, final, *others = advance(self._to_numpy(action))  # others: [N] each
        own = bool(self._sub_envs)
        obs, (reward, ended, cut, *valid) = to_torch(self.observation_spaces, groups, others, self.device, own)
        final_obs = obs if final is groups else to_torch(self.observation_spaces, final, (), self.device, own)[0]
        log, signals = self._success.log(self.device), self._costs.signals(self.device)
        return Step(obs, reward, ended, cut, final_obs, log, valid[0] if valid else None, signals)

    def stage_dict(self) -> dict[str, Any]:
        """Running statistics of wrappers, such as NormalizeObservation's, and what sub-envs tell of their stage."""
        return gymnasium_stage(self.env) | (self._physics.stage() if self._physics is not None else {})

    @contextlib.contextmanager
    def at_stage(self, state: Mapping[str, Any]) -> Iterator[None]:
        """While the context is open, ``reset`` leaves what ``stage_dict`` told as it was."""
        load_gymnasium_stage(self.env, state)
        if self._physics is not None:
            self._physics.load(state)
        yield
        load_gymnasium_stage(self.env, state)

    def render(self) -> NDArray[np.uint8]:
        """Picture of env 0, ``[H, W, 3]``.

        Raises:
            ValueError: the env was not made with ``render_mode="rgb_array"``.
        """
        if self.env.render_mode != "rgb_array":
            raise ValueError(
                f"{self.task}: render_mode is {self.env.render_mode!r}; make the env with render_mode='rgb_array'"
            )
        sub_env = _first_sub_env(self.env)
        if sub_env is not None:  # drawing one env is cheaper than drawing all
            return np.array(sub_env.render(), dtype=np.uint8)
        call = getattr(self.env.unwrapped, "call", None)  # of AsyncVectorEnv
        frames: Any = call("render") if call else self.env.render()
        return np.array(frames[0], dtype=np.uint8)

    def close(self) -> None:
        """Close the vector env."""
        self.env.close()

    def _step_each(self, actions: NDArray[Any]) -> _Answer:
        groups: Arrays = {group: np.empty(shape, dtype) for group, shape, dtype in self._memory}
        reward = np.empty(self.num_envs, np.float32)
        terminated, truncated = np.empty((2, self.num_envs), np.bool_)
        begun: dict[int, Any] = {}  # first observations of new episodes, by env
        infos: list[dict[str, Any]] = []
        try:
            for i, env in enumerate(self._sub_envs):
                observation, reward[i], ended, cut, info = env.step(actions[i])
                infos.append(info)
                terminated[i], truncated[i] = ended, cut
                self._put(groups, i, observation)  # before a reset, which may use the same memory
                if ended or cut:
                    begun[i], _ = env.reset()
            final = {group: values.copy() for group, values in groups.items()} if begun else groups
            for i, observation in begun.items():
                self._put(groups, i, observation)
        except Exception as error:
            raise EnvFailed(failure(self.task, "step()", error)) from error
        self._costs.of_each(infos)
        self._success.of_each(infos, terminated | truncated)
        return groups, final, reward, terminated, truncated

    def _put(self, groups: Arrays, i: int, observation: Any) -> None:
        for group, shape in self._shapes.items():
            value = observation[group] if self._named else observation
            if group in self._laid_out:
                value = self._laid_out[group].row(value)
            if getattr(value, "shape", None) != shape and np.shape(value) != shape:
                raise ValueError(f"observation '{group}' has shape {np.shape(value)}, its space {shape}")
            groups[group][i] = value

    def _step_together(self, actions: NDArray[Any]) -> _Answer:
        try:
            observation, reward, terminated, truncated, infos = self.env.step(actions)
        except Exception as error:
            raise EnvFailed(failure(self.task, "step()", error)) from error
        groups, done = self._groups(observation), np.logical_or(terminated, truncated)
        begun = self._ended if self._mode is AutoresetMode.NEXT_STEP else None
        self._costs.of_vector(infos, done, begun)
        self._success.of_vector(infos, done, begun)
        if self._mode is AutoresetMode.NEXT_STEP:
            # An episode's last observation is still there; the step after it begins the next one, whatever the action.
            valid, self._ended = ~self._ended, done & ~self._ended
            return groups, groups, np.where(valid, reward, 0.0), terminated & valid, truncated & valid, valid
        if not done.any():
            return groups, groups, reward, terminated, truncated
        if self._mode is AutoresetMode.SAME_STEP:
            return groups, self._final(groups, done, infos), reward, terminated, truncated
        final = {group: np.array(values) for group, values in groups.items()}
        reward, terminated, truncated = np.array(reward), np.array(terminated), np.array(truncated)
        try:
            observation, _ = self.env.reset(options={"reset_mask": done})
        except Exception as error:
            raise EnvFailed(failure(self.task, "reset() with a reset_mask", error)) from error
        return self._groups(observation), final, reward, terminated, truncated

    def _to_numpy(self, action: Tensor) -> NDArray[Any]:
        single, discrete = self.env.single_action_space, self._discrete
        if action.shape != self._action_shape or action.dtype.is_floating_point == discrete:
            raise ValueError(
                f"{self.task}: action is {action.dtype} of shape {tuple(action.shape)}; "
                f"expected {'torch.int64' if discrete else 'torch.float32'} of shape {self._action_shape}"
            )
        array = (action.detach() if action.is_cpu else action.detach().cpu()).numpy()
        if isinstance(single, spaces.Discrete):
            return np.asarray(array + single.start, dtype=single.dtype)
        array = np.array(array, dtype=single.dtype).reshape(self.num_envs, *single.shape)  # type: ignore[misc]
        return array + single.start if isinstance(single, spaces.MultiDiscrete) else array

    def _groups(self, observation: Any) -> Arrays:
        """Groups ``[N, ...]`` of what the vector env gives."""
        groups = dict(observation) if self._named else {"policy": observation}
        for group, layout in self._laid_out.items():
            groups[group] = layout.rows(groups[group], self.num_envs)
        return groups

    def _groups_of_one(self, observation: Any) -> Arrays:
        groups = dict(observation) if self._named else {"policy": observation}
        return groups | {group: layout.row(groups[group]) for group, layout in self._laid_out.items()}

    def _final(self, groups: Arrays, done: NDArray[np.bool_], infos: Mapping[str, Any]) -> Arrays:
        """Observations before the reset; rows of episodes that go on hold the current observation."""
        given = infos.get("final_obs")
        present = np.asarray(infos.get("_final_obs", np.full(self.num_envs, given is not None)))
        if given is None or not present[done].all():
            raise ValueError(
                f"{self.task}: an episode ended without infos['final_obs']; SAME_STEP autoreset promises it, "
                "so remove the vector wrapper that drops it or fix the vector env"
            )
        final = {group: np.array(values) for group, values in groups.items()}
        batched = None if isinstance(given, np.ndarray) and given.dtype == object else self._groups(given)
        for i in np.flatnonzero(done):
            last = {group: values[i] for group, values in batched.items()} if batched else self._groups_of_one(given[i])
            for group, values in final.items():
                values[i] = last[group]
        return final


def failure(task: str, what: str, error: Exception) -> str:
    """What an env of somebody's does wrong, which would say nothing without the name of the task."""
    return f"{task}: {what} failed in the env: {type(error).__name__}: {error}; correct it (RLCORE_DEBUG=1 shows where)"


def _first_sub_env(env: VectorEnv[Any, Any, Any]) -> gymnasium.Env[Any, Any] | None:
    """Sub-env 0 of a SyncVectorEnv; None where sub-envs live in other processes or do not exist."""
    sub_envs = getattr(env.unwrapped, "envs", None)
    return sub_envs[0] if sub_envs else None
