"""The same PPO work in rsl_rl, skrl and rl_games, each driven through its own runner.

Every library gets the same env tensors through the env class it expects, the same networks, steps, epochs, minibatches
and adaptive learning rate, and writes no logs and no checkpoints while it is timed.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor
from work import Mark, Subject, Work, ignore

from rlcore.env import VecEnv
from rlcore.types import Obs


class Peer(NamedTuple):
    """How to find a library."""

    module: str
    package: str
    tested: str
    build: Callable[[VecEnv, Work, str], Subject]
    """Takes the env, the work, and a folder for what the library insists on writing."""


def _obs(obs: Obs) -> Tensor:
    """All groups side by side, as these libraries want them. # [N, O]."""
    return next(iter(obs.values())) if len(obs) == 1 else torch.cat(list(obs.values()), dim=-1)


def _obs_space(env: VecEnv) -> spaces.Box:
    size = sum(space.shape[0] for space in env.observation_spaces.values())
    return spaces.Box(-float("inf"), float("inf"), (size,))


class RslRlEnv:
    """The members of ``rsl_rl.env.VecEnv``."""

    def __init__(self, env: VecEnv) -> None:
        """Wrap an env that has been reset already or not."""
        self.env = env
        self.num_envs = env.num_envs
        self.num_actions = int(env.action_space.shape[0])  # type: ignore[index]
        self.max_episode_length = env.max_episode_length
        self.episode_length_buf = torch.zeros(env.num_envs, dtype=torch.long, device=env.device)
        self.device = env.device
        self.cfg: dict[str, Any] = {}
        self.obs = self._pack(env.reset(seed=0))

    def _pack(self, obs: Obs) -> Any:
        from tensordict import TensorDict

        return TensorDict({"policy": _obs(obs)}, batch_size=[self.num_envs], device=self.device)

    def get_observations(self) -> Any:
        """Observations of the present step."""
        return self.obs

    def step(self, actions: Tensor) -> tuple[Any, Tensor, Tensor, dict[str, Any]]:
        """Observations, rewards ``[N]``, ends ``[N]`` and time-outs."""
        step = self.env.step(actions)
        self.obs = self._pack(step.obs)
        return self.obs, step.reward, (step.terminated | step.truncated).long(), {"time_outs": step.truncated}


def rsl_rl(env: VecEnv, work: Work, scratch: str, compile_mode: str | None = None) -> Subject:
    """``OnPolicyRunner`` without a log folder."""
    from rsl_rl.runners import OnPolicyRunner

    model = {
        "class_name": "MLPModel",
        "hidden_dims": list(work.hidden),
        "activation": "elu",
        "obs_normalization": work.normalize_obs,
    }
    if work.rnn != "none":
        model |= {"class_name": "RNNModel", "rnn_type": work.rnn, "rnn_hidden_dim": 256, "rnn_num_layers": 1}
    gaussian = {"class_name": "GaussianDistribution", "init_std": 1.0, "std_type": "scalar"}
    config = {
        "num_steps_per_env": work.num_steps,
        "save_interval": 10**9,
        "torch_compile_mode": compile_mode,
        "obs_groups": {"actor": ["policy"], "critic": ["policy"]},
        "actor": {**model, "distribution_cfg": gaussian},
        "critic": dict(model),
        "algorithm": {
            "class_name": "PPO",
            "num_learning_epochs": work.epochs,
            "num_mini_batches": work.minibatches,
            "learning_rate": 1e-3,
            "schedule": "adaptive",
            "desired_kl": 0.01,
            "entropy_coef": 0.005,
        },
    }
    runner = OnPolicyRunner(RslRlEnv(env), config, log_dir=None, device=str(env.device))
    reported: dict[str, list[float]] = {"collect": [], "learn": []}
    mark: Mark = ignore

    compute_returns = runner.alg.compute_returns

    def returns_begin(obs: Any) -> None:
        mark("collect")
        compute_returns(obs)

    def iteration_ends(**values: Any) -> None:
        mark("learn")
        reported["collect"].append(1e3 * values["collect_time"])
        reported["learn"].append(1e3 * values["learn_time"])

    runner.alg.compute_returns = returns_begin
    runner.logger.log = iteration_ends

    def run(num_iterations: int, new_mark: Mark) -> None:
        nonlocal mark
        mark = new_mark
        runner.learn(num_iterations)

    return Subject(
        version("rsl-rl-lib"), "OnPolicyRunner.learn; learn begins at PPO.compute_returns, log_dir=None", run, reported
    )


def rsl_rl_compiled(env: VecEnv, work: Work, scratch: str) -> Subject:
    """The same with its networks compiled."""
    return rsl_rl(env, work, scratch, compile_mode="default")


class SkrlEnv:
    """The members of ``skrl.envs.wrappers.torch.Wrapper``."""

    def __init__(self, env: VecEnv) -> None:
        """Wrap an env."""
        self.env = env
        self.num_envs = env.num_envs
        self.num_agents = 1
        self.device = env.device
        self.observation_space = _obs_space(env)
        self.state_space = None
        self.action_space = env.action_space

    def reset(self) -> tuple[Tensor, dict[str, Any]]:
        """Observations ``[N, O]``."""
        return _obs(self.env.reset(seed=0)), {}

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Observations ``[N, O]``, rewards and ends ``[N, 1]``."""
        step = self.env.step(actions)
        return _obs(step.obs), step.reward[:, None], step.terminated[:, None], step.truncated[:, None], {}

    def state(self) -> None:
        """There is no privileged state."""

    def close(self) -> None:
        """The env is closed by whoever made it."""


def skrl(env: VecEnv, work: Work, scratch: str) -> Subject:
    """``Runner`` with a ``SequentialTrainer``."""
    from skrl.utils.runner.torch import Runner

    network = [{"name": "net", "input": "OBSERVATIONS", "layers": list(work.hidden), "activations": "elu"}]
    scaler = {"size": _obs_space(env), "device": env.device}
    config = {
        "seed": 0,
        "models": {
            "separate": True,
            "policy": {
                "class": "GaussianMixin",
                "clip_actions": False,
                "clip_log_std": True,
                "initial_log_std": 0.0,
                "network": network,
                "output": "ACTIONS",
            },
            "value": {"class": "DeterministicMixin", "clip_actions": False, "network": network, "output": "ONE"},
        },
        "memory": {"class": "RandomMemory", "memory_size": -1},
        "agent": {
            "class": "PPO",
            "rollouts": work.num_steps,
            "learning_epochs": work.epochs,
            "mini_batches": work.minibatches,
            "discount_factor": 0.99,
            "gae_lambda": 0.95,
            "learning_rate": 1e-3,
            "learning_rate_scheduler": "KLAdaptiveLR",
            "learning_rate_scheduler_kwargs": {"kl_threshold": 0.01},
            "observation_preprocessor": "RunningStandardScaler" if work.normalize_obs else None,
            "observation_preprocessor_kwargs": scaler if work.normalize_obs else None,
            "state_preprocessor": None,
            "value_preprocessor": None,
            "grad_norm_clip": 1.0,
            "ratio_clip": 0.2,
            "value_clip": 0.2,
            "entropy_loss_scale": 0.005,
            "value_loss_scale": 1.0,
            "time_limit_bootstrap": True,
            "experiment": {"directory": scratch, "write_interval": 0, "checkpoint_interval": 0},
        },
        "trainer": {
            "class": "SequentialTrainer",
            "timesteps": work.num_steps,
            "disable_progressbar": True,
            "headless": True,
            "close_environment_at_exit": False,
        },
    }
    runner = Runner(SkrlEnv(env), config)
    agent, trainer = runner.agent, runner.trainer
    own = "Stats / Algorithm update time (ms)"
    reported: dict[str, list[float]] = {"learn": agent.tracking_data[own]}
    mark: Mark = ignore

    update = agent.update

    def timed_update(**values: Any) -> None:
        mark("collect")
        update(**values)
        mark("learn")

    agent.update = timed_update

    def run(num_iterations: int, new_mark: Mark) -> None:
        nonlocal mark
        mark = new_mark
        trainer.cfg.timesteps = num_iterations * work.num_steps
        trainer.train()

    return Subject(version("skrl"), "SequentialTrainer.train; learn is PPO.update, nothing written", run, reported)


class RlGamesEnv:
    """The members of ``rl_games.common.ivecenv.IVecEnv`` that training uses."""

    def __init__(self, env: VecEnv) -> None:
        """Wrap an env."""
        self.env = env

    def reset(self) -> dict[str, Tensor]:
        """Observations ``[N, O]``."""
        return {"obs": _obs(self.env.reset(seed=0))}

    def step(self, actions: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, dict[str, Any]]:
        """Observations ``[N, O]``, rewards ``[N]``, ends ``[N]`` and time-outs."""
        step = self.env.step(actions)
        done = (step.terminated | step.truncated).to(torch.uint8)
        return {"obs": _obs(step.obs)}, step.reward, done, {"time_outs": step.truncated}

    def set_train_info(self, *_: Any, **__: Any) -> None:
        """Told of the progress; not used."""


def rl_games(env: VecEnv, work: Work, scratch: str) -> Subject:
    """``A2CAgent.train_epoch`` of an agent that ``Runner`` built."""
    from rl_games.torch_runner import Runner

    batch = work.num_envs * work.num_steps
    params = {
        "seed": 0,
        "torch_threads": 0,  # leave as they are
        "algo": {"name": "a2c_continuous"},
        "model": {"name": "continuous_a2c_logstd"},
        "network": {
            "name": "actor_critic",
            "separate": True,
            "space": {
                "continuous": {
                    "mu_activation": "None",
                    "sigma_activation": "None",
                    "mu_init": {"name": "default"},
                    "sigma_init": {"name": "const_initializer", "val": 0},
                    "fixed_sigma": True,
                }
            },
            "mlp": {
                "units": list(work.hidden),
                "activation": "elu",
                "initializer": {"name": "default"},
                "regularizer": {"name": "None"},
            },
        },
        "load_checkpoint": False,
        "config": {
            "name": "throughput",
            "env_name": "rlcore",
            "env_info": {"observation_space": _obs_space(env), "action_space": env.action_space, "agents": 1},
            "vec_env": RlGamesEnv(env),
            "device": str(env.device),
            "device_name": str(env.device),
            "train_dir": scratch,
            "num_actors": work.num_envs,
            "horizon_length": work.num_steps,
            "minibatch_size": batch // work.minibatches,
            "mini_epochs": work.epochs,
            "reward_shaper": {"scale_value": 1.0},
            "normalize_advantage": True,
            "normalize_input": work.normalize_obs,
            "normalize_value": False,
            "gamma": 0.99,
            "tau": 0.95,
            "learning_rate": 1e-3,
            "lr_schedule": "adaptive",
            "schedule_type": "legacy",
            "kl_threshold": 0.01,
            "grad_norm": 1.0,
            "truncate_grads": True,
            "e_clip": 0.2,
            "clip_value": True,
            "clip_actions": False,
            "critic_coef": 1.0,
            "entropy_coef": 0.005,
            "bounds_loss_coef": 0.0,  # None fails in the version tested
            "print_stats": False,
            "max_epochs": 10**9,
        },
    }
    precision = torch.get_float32_matmul_precision()
    runner = Runner()  # allows TF32
    torch.set_float32_matmul_precision(precision)
    runner.load({"params": params})
    agent = runner.algo_factory.create(runner.algo_name, base_name="run", params=runner.params)
    agent.init_tensors()
    agent.obs = agent.env_reset()
    reported: dict[str, list[float]] = {"collect": [], "learn": []}
    mark: Mark = ignore

    get_values = agent.get_values

    def bootstrap_begins(obs: Any) -> Any:
        mark("collect")
        return get_values(obs)

    agent.get_values = bootstrap_begins

    def run(num_iterations: int, new_mark: Mark) -> None:
        nonlocal mark
        mark = new_mark
        for _ in range(num_iterations):
            agent.update_epoch()
            _, play_time, update_time, *_ = agent.train_epoch()
            agent.dataset.update_values_dict(None)
            mark("learn")
            reported["collect"].append(1e3 * play_time)
            reported["learn"].append(1e3 * update_time)

    return Subject(
        version("rl-games"),
        "A2CAgent.train_epoch; learn begins at the bootstrap value (its own clock counts returns as collect)",
        run,
        reported,
    )


def version(package: str) -> str:
    """What is installed."""
    return importlib.metadata.version(package)


PEERS: dict[str, Peer] = {
    "rsl_rl": Peer("rsl_rl", "rsl-rl-lib", "5.5.1", rsl_rl),
    "rsl_rl_compiled": Peer("rsl_rl", "rsl-rl-lib", "5.5.1", rsl_rl_compiled),
    "skrl": Peer("skrl", "skrl", "2.1.1", skrl),
    "rl_games": Peer("rl_games", "rl-games", "1.6.5", rl_games),
}
"""By the name that ``--peers`` takes."""
