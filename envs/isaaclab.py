"""Isaac Lab tasks, 2.3 and 3: manager-based and direct envs as a ``VecEnv``, and how to build them by name."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlcore.envs import look_here
from rlcore.envs.isaaclab_parameters import isaaclab_physics
from rlcore.envs.launch import GET_ISAACLAB, ISAACLAB_SITE, SIM_MODULES, full_name, launcher_args
from rlcore.envs.manager import SimulatorEnv, apply_overrides
from rlcore.envs.presets import alternatives_of, load_env_cfg, load_external_tasks
from rlcore.envs.rewind import Rewind, flatten
from rlcore.names import nearest_names
from rlcore.types import Obs, Step

FinalObs = Literal["auto", "extras", "hook", "off"]


class IsaacLabEnv(SimulatorEnv):
    """A ``ManagerBasedRLEnv`` or ``DirectRLEnv``, as ``gymnasium.make`` returns it.

    Observation groups keep their names; a group of unconcatenated terms is joined in the order of its terms. Pictures
    become images ``[N, C, H, W]``, in groups of their own where vectors are beside them (``policy/rgb``).
    Rewards and flags are copied, as the env writes them in place. The log is handed on only in steps that reset
    something, because the env goes on showing the old one. Where ``cfg.is_finite_horizon`` is set, running out of time
    counts as ``terminated``.

    **Final observations.** The env resets within the step and returns what comes after. What came before comes from

    - ``hook``: the observations are computed once more in the env's ``_reset_idx``, before it overwrites anything.
      That costs one more observation in each step that resets something, and draws its noise anew. What it changes is
      put back, as ``rlcore.envs.rewind`` has it: observations after the reset are bit by bit those of an env that
      nobody looked at. Commands are those before their update in that step;
    - ``extras``: the env's own ``extras["final_obs"]`` (Isaac Lab 3, ``cfg.compute_final_obs``). It costs the same, but
      draws from the random generators of the env, leaves sensors and caches as it filled them, and ends histories one
      frame early. For tasks that cannot be hooked, such as converted multi-agent ones;
    - ``off``: nowhere. ``Step.final_obs`` is None, and learners fall back on the value of the last observation.

    ``final_obs_source`` says which it is.

    **Parameters** are those of ``rlcore.envs.isaaclab_parameters.IsaacLabParameters``.
    """

    signal_names: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
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
            env: from ``gymnasium.make(id, cfg=...)``.
            task: name for run folders and exported files; by default the id.
            device: of the learner, where it is not the simulator's.
            final_obs: how to get the last observation of an episode: ``hook``, ``extras``, ``off``; ``auto`` takes the
                first way that there is.
            clip_actions: clamp actions to ± this number and say so in ``action_space``; ``auto`` takes bounds from the
                joint limits, or ±1, and is the default with SAC and DDPG. None passes them on as they are; Isaac Lab's
                manager-based envs have no bounds.
            randomize_start: let episodes begin at random points of their time limit after ``reset``, so that they do
                not all end in the same step. For training, not for evaluation.
            groups: observation groups to hand on, such as to leave out images; None is all.

        Raises:
            ValueError: a multi-agent env, a space that rlcore cannot train on, or a way to final observations that
                this env does not have.
        """
        core: Any = env.unwrapped
        if hasattr(core, "possible_agents"):
            raise ValueError(_multi_agent(task or type(core).__name__))
        name = task or (env.spec.id if env.spec is not None else type(core).__name__)
        super().__init__(
            env,
            task=name,
            device=device,
            groups=groups,
            clip_actions=clip_actions,
            randomize_start=randomize_start,
        )
        self.vary(isaaclab_physics(name, self.core, self.notes))
        self.final_obs_source = _final_obs_source(name, core, final_obs)
        if hasattr(core.cfg, "compute_final_obs"):
            core.cfg.compute_final_obs = self.final_obs_source == "extras"
        self._resetting: Obs | None = None
        self._stepping = False
        if self.final_obs_source == "hook":
            self._rewind = Rewind(core, self.simulator_device)
            self._reset_idx = core._reset_idx
            core._reset_idx = self._before_reset

    @torch.no_grad()
    def step(self, action: Tensor) -> Step:
        """Step every env; see ``VecEnv.step``.

        Args:
            action: ``[N, A]`` float, or ``[N]`` int64 when discrete.

        Raises:
            ValueError: the action has the wrong shape, or the env promised final observations and gave none.
        """
        self._resetting = None
        self._stepping = True
        try:
            observation, reward, terminated, truncated, extras = self.env.step(self.read_action(action))
        finally:
            self._stepping = False
        ended, cut = self.read_terminated(terminated, truncated)
        obs = self.read_obs(observation)
        final_obs: Obs | None = obs
        if self.final_obs_source == "hook":
            has_reset = self._resetting is not None
            final_obs = obs if self._resetting is None else self._resetting
        else:
            has_reset = bool((ended | cut).any())
            if self.final_obs_source == "off":
                final_obs = None
            elif has_reset:
                if "final_obs" not in extras:
                    raise ValueError(f"{self.task}: an episode ended without extras['final_obs']; set final_obs='hook'")
                final_obs = self.read_obs(extras["final_obs"])
        log = (extras.get("log") or extras.get("episode") or {}) if has_reset else {}
        return Step(obs, self.read_vector(reward, torch.float32), ended, cut, final_obs, self.read_log(log))

    def render(self) -> NDArray[np.uint8]:
        """Picture of the simulator's viewer, ``[H, W, 3]``; Isaac Lab 3 writes videos instead.

        Raises:
            ValueError: the env was not made with ``render_mode="rgb_array"``, or is Isaac Lab 3's.
        """
        if hasattr(self.core, "video_recorders"):
            raise ValueError(
                f"{self.task}: Isaac Lab 3 hands out no pictures; it writes videos while the env steps, see "
                "video_recorders of the task's configuration"
            )
        return super().render()

    def close(self) -> None:
        """Close the env, and take the hook out of it."""
        if self.final_obs_source == "hook":
            vars(self.core).pop("_reset_idx", None)
        super().close()

    def _before_reset(self, *args: Any, **kwargs: Any) -> Any:
        """In place of the env's ``_reset_idx``, which ``env.reset`` calls too."""
        if self._stepping and self._resetting is None:
            with self._rewind():
                self._resetting = self.read_obs(_observe(self.core))
        return self._reset_idx(*args, **kwargs)


def _observe(core: Any) -> Any:
    """Compute observations as the env's step does."""
    manager = getattr(core, "observation_manager", None)
    if manager is None:
        observation = core._get_observations()
        if getattr(core.cfg, "observation_noise_model", None):
            observation["policy"] = core._observation_noise_model(observation["policy"])
        return observation
    if "update_history" in inspect.signature(manager.compute).parameters and _can_rewind(manager):
        return manager.compute(update_history=True)
    return manager.compute()


def _can_rewind(manager: Any) -> bool:
    """Whether histories are tensors; what is kept in another kind of array must not be advanced."""
    buffers = flatten(getattr(manager, "_group_obs_term_history_buffer", ()))
    return all(isinstance(getattr(buffer, "_buffer", None), Tensor) for buffer in buffers)


def _final_obs_source(task: str, core: Any, wanted: str) -> str:
    computes = hasattr(core, "observation_manager") or hasattr(core, "_get_observations")
    # A converted multi-agent env steps another env inside.
    hook = hasattr(core, "_reset_idx") and computes and "env" not in vars(core) and not _resets_by_mask(core)
    possible = {"hook": hook, "extras": hasattr(core.cfg, "compute_final_obs"), "off": True}
    if wanted == "auto":
        return next(name for name, has in possible.items() if has)
    if wanted not in possible:
        raise ValueError(f"{task}: final_obs is {wanted!r}; use 'auto', 'extras', 'hook' or 'off'")
    if not possible[wanted]:
        reason = "there is no cfg.compute_final_obs" if wanted == "extras" else "it does not reset within its own step"
        raise ValueError(f"{task}: final_obs='{wanted}' is not possible, {reason}; use 'auto'")
    return wanted


def _resets_by_mask(core: Any) -> bool:
    """Whether a direct task of Isaac Lab 3 resets in a way of its own, which need not come through ``_reset_idx``."""
    reset = getattr(type(core), "_reset_envs_from_buffer", None)
    return reset is not None and not reset.__module__.startswith("isaaclab.envs")


def make_isaaclab(
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
    presets: str | Sequence[str] = (),
    physics: str | None = None,
    renderer: str | None = None,
    play_mode: bool = False,
    **overrides: Any,
) -> IsaacLabEnv:
    """Build a registered task from the configuration that it ships.

    Isaac Sim must run already (``rlcore.envs.launch.start_isaac_sim``), except for Isaac Lab 3, which starts here what
    the task needs.

    Args:
        task: registered id, with or without ``isaaclab:``; ``module:Id`` imports the module first, for tasks of a
            project of your own.
        num_envs: N, ``cfg.scene.num_envs``.
        device: of the learner, and of the simulator unless ``sim_device`` is given.
        seed: ``cfg.seed``; None keeps that of the configuration.
        final_obs: see ``IsaacLabEnv``, as for ``clip_actions``, ``randomize_start`` and ``groups``.
        clip_actions: see there.
        randomize_start: see there.
        groups: see there.
        render_mode: ``rgb_array`` to render; needs ``--enable_cameras``.
        sim_device: ``cfg.sim.device`` where it is not the learner's.
        presets: of Isaac Lab 3, such as ``newton_mjwarp``, as names or as one text; each wherever it fits.
        physics: of Isaac Lab 3, the preset of the physics alone.
        renderer: of Isaac Lab 3, the preset of the cameras' renderer alone.
        play_mode: of Isaac Lab 3, whether to change the configuration as the task does it for watching a policy.
        **overrides: fields of the configuration by dotted name, such as ``{"scene.env_spacing": 3.0}``; with Isaac Lab
            3 also names of presets there, such as ``{"sim.physics": "newton_mjwarp"}``.

    Raises:
        ValueError: Isaac Lab is missing or Isaac Sim does not run where the task needs it, an unknown task, preset or
            field, a missing asset, or what ``IsaacLabEnv`` refuses.
    """
    module, _, name = task.removeprefix("isaaclab:").rpartition(":")
    if module:
        look_here()
    utils = _import_tasks(task)
    if module:
        _import(module, f"{task}: cannot import module '{module}'")
    if name not in gymnasium.registry or "env_cfg_entry_point" not in gymnasium.registry[name].kwargs:
        names = [x for x, spec in gymnasium.registry.items() if "env_cfg_entry_point" in spec.kwargs]
        nearest = nearest_names(name, names)
        hint = f"did you mean {', '.join(nearest)}? " if nearest else ""
        raise ValueError(
            f"unknown Isaac Lab task '{name}': {hint}write module:{name} if a module of yours registers it"
        )
    chosen = {"presets": presets, "physics": physics, "renderer": renderer}
    texts = {path: value for path, value in overrides.items() if isinstance(value, str)}
    alternatives = alternatives_of(name) if texts else {}
    paths = {path: value for path, value in texts.items() if value in alternatives.get(path, ())}
    cfg = load_env_cfg(name, chosen, paths)
    if play_mode:
        if not hasattr(cfg, "play_mode"):
            raise ValueError(f"{name}: play_mode is True, and its configuration has none; leave it out")
        cfg.play_mode()
    if hasattr(cfg, "possible_agents"):
        raise ValueError(_multi_agent(name))
    cfg.scene.num_envs = num_envs
    cfg.sim.device = str(sim_device or device)
    if seed is not None:
        cfg.seed = seed
    apply_overrides(name, cfg, {path: value for path, value in overrides.items() if path not in paths})
    with contextlib.ExitStack() as stack:
        start = _launch_simulation(utils)
        with _explained(name):
            if start is not None:
                stack.enter_context(_launched(start(cfg, dict(launcher_args))))
            raw = gymnasium.make(name, cfg=cfg, render_mode=render_mode)
        stack.callback(raw.close)
        env = IsaacLabEnv(
            raw,
            task=name,
            device=device,
            final_obs=final_obs,
            clip_actions=clip_actions,
            randomize_start=randomize_start,
            groups=groups,
        )
        env.registered_as = full_name("isaaclab", module, name)
        raw.close = stack.pop_all().close  # type: ignore[method-assign]
    return env


def _import_tasks(task: str) -> Any:
    _import("isaaclab_tasks", f"{task}: {GET_ISAACLAB}")
    utils = _import("isaaclab_tasks.utils", f"{task}: {GET_ISAACLAB}")
    load_external_tasks()
    return utils


def _import(module: str, missing: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in SIM_MODULES:
            raise ValueError(
                f"{module} needs Isaac Sim running (no module '{error.name}'): "
                "call rlcore.envs.launch.start_isaac_sim(sys.argv[1:]) before, or use `rlcore train`"
            ) from error
        raise ValueError(missing if error.name == module else f"{missing} ({error})") from error


def _launch_simulation(utils: Any) -> Callable[..., Any] | None:
    """Isaac Lab 3's context that starts what a configuration needs; None before it."""
    app = None
    with contextlib.suppress(ImportError):
        app = importlib.import_module("isaaclab.app")
    start = getattr(app, "launch_simulation", None) or getattr(utils, "launch_simulation", None)
    return start if callable(start) else None


@contextlib.contextmanager
def _launched(launch: Any) -> Iterator[None]:
    """Without the traceback that Isaac Lab 3 prints of whatever ends it, as long as no app ends the process with it."""
    launch.__enter__()
    try:
        yield
    except BaseException as error:
        quiet = importlib.util.find_spec("isaacsim") is None
        with contextlib.redirect_stderr(io.StringIO()) if quiet else contextlib.nullcontext():
            launch.__exit__(type(error), error, error.__traceback__)
        raise
    launch.__exit__(None, None, None)


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Say in one line what a task lacks that Isaac Lab 3 cannot make."""
    try:
        yield
    except SystemExit as error:
        if importlib.util.find_spec("isaacsim") is not None:
            raise
        found = (x for alternatives in alternatives_of(name).values() for x in alternatives if x.startswith("newton"))
        names = ", ".join(f"presets={x}" for x in dict.fromkeys(found))
        remedy = f"choose Newton, which does without ({names})" if names else f"see {ISAACLAB_SITE}"
        raise ValueError(f"{name} needs Isaac Sim, which is not installed: {remedy}") from error
    except FileNotFoundError as error:
        raise ValueError(
            f"{name}: {error}; where its assets cannot be fetched, set ISAACSIM_ASSET_ROOT to a folder that has them"
        ) from error


def _multi_agent(task: str) -> str:
    return (
        f"{task} is a multi-agent env; rlcore trains single agents: make it one with "
        "isaaclab.envs.multi_agent_to_single_agent(env) and wrap that in rlcore.envs.isaaclab.IsaacLabEnv"
    )
