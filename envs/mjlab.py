"""mjlab tasks as a ``VecEnv``, and how to build them by name."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from rlcore.envs import look_here
from rlcore.envs.launch import GET_MJLAB, full_name
from rlcore.envs.manager import SimulatorEnv, apply_overrides
from rlcore.envs.mjlab_parameters import mjlab_physics
from rlcore.names import nearest_names
from rlcore.types import Obs, Step

FinalObs = Literal["auto", "hook", "manual", "off"]


class MjlabEnv(SimulatorEnv):
    """A ``mjlab.envs.ManagerBasedRlEnv``.

    Groups, copies and finite horizons are as with ``rlcore.envs.isaaclab.IsaacLabEnv``. The log, which mjlab empties
    at every step, is handed on in steps that reset something.

    **Final observations.** mjlab resets within ``step`` and returns what comes after. The last observation comes from

    - ``hook``: the observations are computed once more in the env's ``_reset_idx``, before it overwrites anything. They
      see what mjlab's rewards and terminations see: positions and velocities of joints as they are, quantities derived
      from them (poses of bodies, sensors) one physics substep before, and the command of the last step. Noise is drawn
      anew, rays are cast once more. Where observations have a memory (delay, history, state of their own), ``auto``
      takes the next.
    - ``manual``: the env runs with ``cfg.auto_reset`` off, so that a step returns the true last observation, and the
      adapter resets the envs that ended; the others keep what the step returned, with its noise and their histories.
      Each step that resets something then computes the forward dynamics of all envs once more, and with thousands of
      envs every step does. Seen on an H200: rollouts of Velocity-Flat-Unitree-Go1 took 700 ms, those of rsl_rl, which
      does without last observations, 590 ms.
    - ``off``: nowhere. ``Step.final_obs`` is None, and learners fall back on the value of the last observation.

    ``final_obs_source`` says which it is.

    **Parameters** are those of ``rlcore.envs.mjlab_parameters.MjlabParameters``.
    """

    signal_names: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        env: Any,
        *,
        task: str | None = None,
        device: str | torch.device | None = None,
        final_obs: FinalObs = "auto",
        clip_actions: float | Literal["auto"] | None = None,
        randomize_start: bool = False,
        groups: str | Sequence[str] | None = None,
    ) -> None:
        """Wrap an env, which is then owned: ``close()`` closes it.

        Args:
            env: the env; its ``cfg.auto_reset`` is set as ``final_obs`` needs it.
            task: name for run folders and exported files.
            device: of the learner, where it is not the simulator's.
            final_obs: how to get the last observation of an episode: ``hook``, ``manual``, ``off``; ``auto`` takes the
                first way that there is.
            clip_actions: clamp actions to ± this number and say so in ``action_space``; ``auto`` takes bounds from the
                joint limits, or ±1, and is the default with SAC and DDPG. None passes them on as they are, without
                bounds.
            randomize_start: let episodes begin at random points of their time limit after ``reset``, so that they do
                not all end in the same step. For training, not for evaluation.
            groups: observation groups to hand on, such as to leave out images; None is all.

        Raises:
            ValueError: a space that rlcore cannot train on, or a way to final observations that this env does not have.
        """
        name = task or type(env.unwrapped).__name__
        super().__init__(
            env,
            task=name,
            device=device,
            groups=groups,
            clip_actions=clip_actions,
            randomize_start=randomize_start,
        )
        self.vary(mjlab_physics(name, self.core, self.notes))
        self.final_obs_source = _final_obs_source(name, self.core, final_obs)
        if hasattr(self.core.cfg, "auto_reset"):
            self.core.cfg.auto_reset = self.final_obs_source != "manual"
        self._stepping = False
        self._has_reset = False
        self._final_obs: Obs | None = None
        # In every mode but manual, the env's own reset tells without a question to the device whether there was one.
        self._reset_idx = self.core._reset_idx if hasattr(self.core, "_reset_idx") else None
        if self._reset_idx is not None:
            self.core._reset_idx = self._before_reset

    @torch.no_grad()
    def step(self, action: Tensor) -> Step:
        """Step every env; see ``VecEnv.step``.

        Args:
            action: ``[N, A]`` float32.

        Raises:
            ValueError: the action has the wrong shape.
        """
        if self.final_obs_source == "manual":
            return self._step_and_reset(action)
        self._has_reset, self._final_obs, self._stepping = False, None, True
        try:
            observation, reward, terminated, truncated, extras = self.env.step(self.read_action(action))
        finally:
            self._stepping = False
        ended, cut = self.read_terminated(terminated, truncated)
        obs = self.read_obs(observation)
        has_reset = self._has_reset if self._reset_idx is not None else bool((ended | cut).any())
        final_obs = None
        if self.final_obs_source != "off":
            final_obs = {group: obs[group] for group in self.wanted()} if self._final_obs is None else self._final_obs
        log = self.read_log(extras.get("log", {})) if has_reset else {}
        return Step(obs, self.read_vector(reward, torch.float32), ended, cut, final_obs, log)

    def close(self) -> None:
        """Close the env, and take the hook out of it."""
        vars(self.core).pop("_reset_idx", None)
        super().close()

    def _before_reset(self, *args: Any, **kwargs: Any) -> Any:
        """In place of the env's ``_reset_idx``, which ``env.reset`` calls too."""
        if self._stepping:
            self._has_reset = True
            wanted = self.wanted() if self.final_obs_source == "hook" else []
            if wanted:
                manager = self.core.observation_manager
                self.core.sim.sense()  # rays and cameras, of which rewards see those of the step before
                computed = {group: manager.compute_group(group) for group in self.sources(wanted)}
                self._final_obs = self.read_obs(computed, wanted)
        assert self._reset_idx is not None
        return self._reset_idx(*args, **kwargs)

    def _step_and_reset(self, action: Tensor) -> Step:
        observation, raw_reward, raw_terminated, raw_truncated, extras = self.env.step(self.read_action(action))
        # Copies, before a reset writes over the originals.
        reward = self.read_vector(raw_reward, torch.float32)
        terminated, truncated = self.read_terminated(raw_terminated, raw_truncated)
        obs = self.read_obs(observation)
        done = raw_terminated | raw_truncated
        ended = done.nonzero().squeeze(-1)  # [number of resets], which the host has to know
        if not len(ended):
            return Step(obs, reward, terminated, truncated, obs, {})
        merged = dict(extras.get("log", {}))
        observation, extras = self.env.reset(env_ids=ended)
        merged |= extras.get("log", {})
        fresh, rows = self.read_obs(observation), done.to(self.device)
        after: Obs = {g: torch.where(rows.view(-1, *[1] * (x.dim() - 1)), fresh[g], x) for g, x in obs.items()}
        return Step(after, reward, terminated, truncated, obs, self.read_log(merged))


def _final_obs_source(task: str, core: Any, wanted: str) -> str:
    manager = getattr(core, "observation_manager", None)
    hook = hasattr(core, "_reset_idx") and hasattr(manager, "compute_group")
    plain = hook and hasattr(getattr(core, "sim", None), "sense") and _is_memoryless(manager)
    manual = hasattr(core.cfg, "auto_reset")
    if wanted == "auto":
        return "hook" if plain else "manual" if manual else "off"
    possible = {"hook": plain, "manual": manual, "off": True}
    if wanted not in possible:
        raise ValueError(f"{task}: final_obs is {wanted!r}; use 'auto', 'hook', 'manual' or 'off'")
    if not possible[wanted]:
        reasons = {"hook": "observations have a memory", "manual": "it needs mjlab 1.3 or newer"}
        raise ValueError(f"{task}: final_obs='{wanted}' is not possible, {reasons[wanted]}; use 'auto'")
    return wanted


def _is_memoryless(manager: Any) -> bool:
    """Whether observations may be computed once more without a trace: no history, delay or state of their own."""
    buffers = ("_group_obs_term_delay_buffer", "_group_obs_term_history_buffer")
    states = (*buffers, "_group_obs_class_term_cfgs", "_group_obs_class_instances")
    return not any(group for state in states for group in getattr(manager, state, {"unknown": True}).values())


def _check_motions(task: str, cfg: Any) -> None:
    """Refuse a task that tracks a motion without one: mjlab ships none, and its own error names no setting."""
    for key, command in (getattr(cfg, "commands", None) or {}).items():
        file = getattr(command, "motion_file", None)
        if file is None:
            continue
        setting = f"--env.commands.{key}.motion_file"
        if not file:
            raise ValueError(f"{task} tracks a motion, and none is given; add {setting} FILE.npz")
        if not os.path.isfile(file):
            raise ValueError(f"{setting} is '{file}', which is no file; give an .npz file of a motion")
        try:
            np.load(file).close()
        except Exception as error:  # each other format fails in a way of its own
            raise ValueError(f"{setting} is '{file}', which is no .npz file; give that of a motion") from error


def quiet_warp() -> None:
    """Leave out the line that warp prints for each of some dozen modules; ``MJLAB_WARP_QUIET=0`` keeps them.

    mjlab sets warp's ``quiet`` from that variable, which warp no longer looks at since it has log levels.
    """
    if os.environ.setdefault("MJLAB_WARP_QUIET", "1").lower() not in ("1", "true", "yes"):
        return
    with contextlib.suppress(ModuleNotFoundError):
        warp: Any = importlib.import_module("warp")
        if hasattr(warp, "LOG_WARNING"):
            warp.config.log_level = max(warp.config.log_level, warp.LOG_WARNING)


def make_mjlab(
    task: str,
    num_envs: int,
    device: str | torch.device = "cpu",
    seed: int | None = None,
    *,
    final_obs: FinalObs = "auto",
    clip_actions: float | Literal["auto"] | None = None,
    randomize_start: bool = False,
    groups: str | Sequence[str] | None = None,
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
    quiet_warp()
    module, _, name = task.removeprefix("mjlab:").rpartition(":")
    try:
        for package in ("mjlab", "mjlab.tasks"):  # the latter registers what is shipped
            importlib.import_module(package)
        registry: Any = importlib.import_module("mjlab.tasks.registry")
        envs: Any = importlib.import_module("mjlab.envs")
        if module:
            look_here()
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
    _check_motions(name, cfg)
    try:
        env = envs.ManagerBasedRlEnv(cfg, device=str(sim_device or device), render_mode=render_mode)
    except KeyError as error:
        if "is not a file in the archive" not in str(error):
            raise
        raise ValueError(
            f"{name}: {error} of the motion's .npz file; give one that mjlab's csv_to_npz wrote"
        ) from error
    try:
        made = MjlabEnv(
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
    made.registered_as = full_name("mjlab", module, name)
    return made
