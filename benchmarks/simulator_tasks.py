"""What differs between simulators: how a task's env is made, and the runner that its training script makes for it."""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass
from typing import Any

import torch

from rlcore.envs import make_env
from rlcore.envs.launch import GET_MJLAB, bare_name, simulator_of


@dataclass(frozen=True)
class Task:
    """A task of a simulator as it ships."""

    name: str
    num_envs: int
    seed: int
    device: str
    presets: str = ""
    """Of Isaac Lab 3."""

    def env(self) -> Any:
        """The env, to be closed with its ``close()``; ``env.unwrapped`` is the simulator's own.

        Raises:
            ValueError: the simulator is not installed, or does not have this.
        """
        raise NotImplementedError

    def runner(self, env: Any, folder: str) -> tuple[Any, int]:
        """The runner of rsl_rl as the simulator makes it, which writes to tensorboard alone, and steps of a rollout."""
        raise NotImplementedError


class MjlabTask(Task):
    """A task of mjlab."""

    def env(self) -> Any:
        """See ``Task``."""
        try:
            importlib.import_module("mjlab.tasks")  # registers them
        except ModuleNotFoundError as error:
            if error.name != "mjlab":
                raise
            raise ValueError(GET_MJLAB) from None
        cfg = importlib.import_module("mjlab.tasks.registry").load_env_cfg(bare_name(self.name))
        cfg.scene.num_envs, cfg.seed = self.num_envs, self.seed
        return importlib.import_module("mjlab.envs").ManagerBasedRlEnv(cfg, device=self.device)

    def runner(self, env: Any, folder: str) -> tuple[Any, int]:
        """See ``Task``."""
        rl: Any = importlib.import_module("mjlab.rl")
        registry: Any = importlib.import_module("mjlab.tasks.registry")
        importlib.import_module("mjlab.utils.torch").configure_torch_backends()  # TF32
        cfg = registry.load_rl_cfg(bare_name(self.name))
        cfg.seed, cfg.logger, cfg.upload_model, cfg.save_interval = self.seed, "tensorboard", False, 10**9
        wrapped = rl.RslRlVecEnvWrapper(env, clip_actions=cfg.clip_actions)
        runner_class = registry.load_runner_cls(bare_name(self.name)) or rl.MjlabOnPolicyRunner
        return runner_class(wrapped, dataclasses.asdict(cfg), folder, self.device), cfg.num_steps_per_env


class IsaacLabTask(Task):
    """A task of Isaac Lab 3."""

    def env(self) -> Any:
        """See ``Task``."""
        made: Any = make_env(self.name, self.num_envs, self.device, self.seed, final_obs="off", presets=self.presets)
        return made.env  # in which this adapter leaves nothing

    def runner(self, env: Any, folder: str) -> tuple[Any, int]:
        """See ``Task``."""
        rl: Any = importlib.import_module("isaaclab_rl.rsl_rl")
        utils: Any = importlib.import_module("isaaclab_tasks.utils")
        torch.backends.cuda.matmul.allow_tf32 = True
        words = [f"presets={self.presets}"] if self.presets else []
        cfg = utils.resolve_task_config(bare_name(self.name), "rsl_rl_cfg_entry_point", overrides=words)[1]
        cfg = rl.handle_deprecated_rsl_rl_cfg(cfg, rl.check_rsl_rl_version())
        cfg.seed, cfg.device, cfg.logger, cfg.save_interval = self.seed, self.device, "tensorboard", 10**9
        wrapped = rl.RslRlVecEnvWrapper(env, clip_actions=cfg.clip_actions)
        return rl.create_rsl_rl_runner(wrapped, cfg, log_dir=folder), cfg.num_steps_per_env


def task_of(name: str, num_envs: int, seed: int, device: str, presets: str = "") -> Task:
    """The task by its name.

    Raises:
        ValueError: it is no simulator's, or has no presets.
    """
    kinds: dict[str, type[Task]] = {"mjlab": MjlabTask, "isaaclab": IsaacLabTask}
    kind = kinds.get(simulator_of(name))
    if kind is None:
        raise ValueError(f"--task is '{name}', which is no task of mjlab or Isaac Lab; see `rlcore tasks`")
    if presets and kind is MjlabTask:
        raise ValueError(f"--presets is '{presets}', which tasks of mjlab do not have; leave it out")
    return kind(name, num_envs, seed, device, presets)
