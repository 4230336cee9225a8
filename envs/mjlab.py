"""mjlab tasks as a ``VecEnv``, and how to build them by name."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from rlcore.envs import nearest_names
from rlcore.envs.launch import GET_MJLAB
from rlcore.envs.manager import SimulatorEnv, apply_overrides
from rlcore.types import Obs, Step

FinalObs = Literal["auto", "manual", "off"]


class MjlabEnv(SimulatorEnv):
    """A ``mjlab.envs.ManagerBasedRlEnv``.

    Groups, copies and finite horizons are as with ``rlcore.envs.isaaclab.IsaacLabEnv``. The log, which mjlab empties
    at every step, is handed on in steps that reset something.

    **Final observations.** With ``manual`` the env runs with ``cfg.auto_reset`` off, so that a step returns the true
    last observation, and the adapter resets the envs that ended; the others keep what the step returned, with its
    noise and their histories. That costs one more forward pass and observation in each step that resets something.
    ``off`` leaves resetting to the env, and ``Step.final_obs`` is None.
    """

    def __init__(
        self,
        env: Any,
        *,
        task: str | None = None,
        device: str | torch.device | None = None,
        final_obs: FinalObs = "auto",
        clip_actions: float | Literal["auto"] | None = None,
        randomize_start: bool = False,
        groups: Sequence[str] | None = None,
    ) -> None:
        """Wrap an env, which is then owned: ``close()`` closes it.

        Args:
            env: the env; ``manual`` changes its ``cfg.auto_reset``.
            task: name for run folders and exported files.
            device: of the learner, where it is not the simulator's.
            final_obs: how to get the last observation of an episode; ``auto`` is ``manual`` from mjlab 1.3 on.
            clip_actions: clamp actions to ± this number and say so in ``action_space``; ``auto`` takes bounds from the
                joint limits, or ±1. None passes them on as they are, without bounds.
            randomize_start: let episodes begin at random points of their time limit after ``reset``, so that they do
                not all end in the same step. For training, not for evaluation.
            groups: observation groups to hand on, such as to leave out images; None is all.

        Raises:
            ValueError: a space that rlcore cannot train on, or ``manual`` with a version that cannot do it.
        """
        name = task or type(env.unwrapped).__name__
        if final_obs not in ("auto", "manual", "off"):
            raise ValueError(f"{name}: final_obs is {final_obs!r}; use 'auto', 'manual' or 'off'")
        super().__init__(
            env,
            task=name,
            device=device,
            groups=groups,
            clip_actions=clip_actions,
            randomize_start=randomize_start,
        )
        can = hasattr(self.core.cfg, "auto_reset")
        if final_obs == "manual" and not can:
            raise ValueError(f"{name}: final_obs='manual' needs mjlab 1.3 or newer; update it or use 'off'")
        self.final_obs_source = "manual" if can and final_obs != "off" else "off"
        if can:
            self.core.cfg.auto_reset = self.final_obs_source == "off"

    @torch.no_grad()
    def step(self, action: Tensor) -> Step:
        """Step every env; see ``VecEnv.step``.

        Args:
            action: ``[N, A]`` float32.

        Raises:
            ValueError: the action has the wrong shape.
        """
        observation, raw_reward, raw_terminated, raw_truncated, extras = self.env.step(self.read_action(action))
        # Copies, before a reset writes over the originals.
        reward = self.read_vector(raw_reward, torch.float32)
        terminated, truncated = self.read_terminated(raw_terminated, raw_truncated)
        obs = self.read_obs(observation)
        done = raw_terminated | raw_truncated
        ended = done.nonzero().squeeze(-1)  # [number of resets], which the host has to know
        if self.final_obs_source == "off":
            log = self.read_log(extras.get("log", {})) if len(ended) else {}
            return Step(obs, reward, terminated, truncated, None, log)
        if not len(ended):
            return Step(obs, reward, terminated, truncated, obs, {})
        merged = dict(extras.get("log", {}))
        observation, extras = self.env.reset(env_ids=ended)
        merged |= extras.get("log", {})
        fresh, rows = self.read_obs(observation), done.to(self.device)[:, None]
        after: Obs = {group: torch.where(rows, fresh[group], obs[group]) for group in obs}
        return Step(after, reward, terminated, truncated, obs, self.read_log(merged))


def make_mjlab(
    task: str,
    num_envs: int,
    device: str | torch.device = "cpu",
    seed: int | None = None,
    *,
    final_obs: FinalObs = "auto",
    clip_actions: float | Literal["auto"] | None = None,
    randomize_start: bool = False,
    groups: Sequence[str] | None = None,
    render_mode: str | None = None,
    sim_device: str | None = None,
    play: bool = False,
    **overrides: Any,
) -> MjlabEnv:
    """Build a registered task from the configuration that it ships.

    Args:
        task: registered name, with or without ``mjlab:``; ``module:Name`` imports the module first, for tasks of a
            project of your own.
        num_envs: N, ``cfg.scene.num_envs``.
        device: of the learner, and of the simulator unless ``sim_device`` is given.
        seed: ``cfg.seed``; None keeps that of the configuration.
        final_obs: see ``MjlabEnv``, as for ``clip_actions``, ``randomize_start`` and ``groups``.
        clip_actions: see there.
        randomize_start: see there.
        groups: see there.
        render_mode: ``rgb_array`` to render.
        sim_device: where the simulator runs, if not where the learner does.
        play: take the configuration for showing a policy (no noise, endless episodes) instead of that for training.
        **overrides: fields of the configuration by dotted name, such as ``{"sim.mujoco.timestep": 0.002}``.

    Raises:
        ValueError: mjlab is missing, an unknown task or field, or what ``MjlabEnv`` refuses.
    """
    os.environ.setdefault("MJLAB_WARP_QUIET", "1")  # a line for each of a hundred kernels
    module, _, name = task.removeprefix("mjlab:").rpartition(":")
    try:
        for package in ("mjlab", "mjlab.tasks"):  # the latter registers what is shipped
            importlib.import_module(package)
        registry: Any = importlib.import_module("mjlab.tasks.registry")
        envs: Any = importlib.import_module("mjlab.envs")
        if module:
            importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = GET_MJLAB if error.name == "mjlab" else f"no module '{error.name}'"
        raise ValueError(f"{task}: {missing}") from error
    if name not in registry.list_tasks():
        nearest = nearest_names(name, registry.list_tasks())
        hint = f"did you mean {', '.join(nearest)}? " if nearest else ""
        raise ValueError(f"unknown mjlab task '{name}': {hint}tasks are {', '.join(registry.list_tasks())}")
    cfg = registry.load_env_cfg(name, play=play)
    cfg.scene.num_envs = num_envs
    if seed is not None:
        cfg.seed = seed
    apply_overrides(name, cfg, overrides)
    env = envs.ManagerBasedRlEnv(cfg, device=str(sim_device or device), render_mode=render_mode)
    try:
        return MjlabEnv(
            env,
            task=name,
            device=device,
            final_obs=final_obs,
            clip_actions=clip_actions,
            randomize_start=randomize_start,
            groups=groups,
        )
    except ValueError:
        env.close()
        raise
