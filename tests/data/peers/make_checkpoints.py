"""Let a peer train a little on gymnasium's Pendulum or CartPole, and keep its checkpoint and what it computes with it.

Each file beside this one was written so, in an environment of the peer's own (rsl-rl-lib 3.3.0, 4.0.1 and 5.5.1,
stable-baselines3 2.9.2, skrl 2.1.1, rl-games 1.6.5; torch 2.13.0 for CPUs, gymnasium 1.4.0):

    python make_checkpoints.py rsl_rl 5 mlp     # or 4, 3; or gru, lstm
    python make_checkpoints.py sb3 ppo          # or sac, cartpole
    python make_checkpoints.py skrl separate    # or shared
    python make_checkpoints.py rl_games shared  # or separate, lstm

``NAME.expected.pt`` holds ``obs`` ``[256, O]``, and of the peer's own policy ``actions`` ``[256, A]`` (the means; one
episode of 256 steps where it is recurrent) and ``std`` ``[A]`` or ``[256, A]``.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

HERE = Path(__file__).parent
ENVS, HIDDEN = 16, [16, 16]


def expected(name: str, obs: Any, actions: Any, std: Any) -> None:
    """Keep what a peer computes."""
    tensors = {"obs": obs, "actions": actions, "std": std}
    torch.save(
        {k: torch.as_tensor(v).detach().float().clone() for k, v in tensors.items()}, HERE / f"{name}.expected.pt"
    )


def observations() -> torch.Tensor:
    """Random ones, somewhat wider than those of a pendulum."""
    return torch.randn(256, 3, generator=torch.Generator().manual_seed(7)) * torch.tensor([0.8, 0.8, 5.0])


class Envs:
    """Gymnasium's vector env with tensors, and resets in the step that ends an episode."""

    def __init__(self, task: str = "Pendulum-v1") -> None:
        mode = gymnasium.vector.AutoresetMode.SAME_STEP
        self.env: Any = gymnasium.make_vec(
            task, ENVS, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}
        )
        self.obs = torch.as_tensor(self.env.reset(seed=1)[0])

    def step(self, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        obs, reward, terminated, truncated, _ = self.env.step(action.cpu().numpy())
        self.obs = torch.as_tensor(obs)
        reward = torch.as_tensor(reward, dtype=torch.float32)
        return self.obs, reward, torch.as_tensor(terminated), torch.as_tensor(truncated)


def rsl_rl(version: str, kind: str) -> None:
    """Train with ``OnPolicyRunner``."""
    from rsl_rl.env import VecEnv
    from rsl_rl.runners import OnPolicyRunner
    from tensordict import TensorDict

    class Env(VecEnv):  # type: ignore[misc]
        num_envs, num_actions, max_episode_length, device, cfg = ENVS, 1, 200, "cpu", {}

        def __init__(self) -> None:
            self.inner = Envs()
            self.episode_length_buf = torch.zeros(ENVS, dtype=torch.long)

        def get_observations(self) -> TensorDict:
            return TensorDict({"policy": self.inner.obs}, batch_size=ENVS)

        def step(self, actions: torch.Tensor) -> Any:
            _, reward, terminated, truncated = self.inner.step(actions.clamp(-2, 2))
            done = terminated | truncated
            return self.get_observations(), reward / 10, done.long(), {"time_outs": truncated}

    recurrent = kind != "mlp"
    rnn = {"rnn_type": kind, "rnn_hidden_dim": 16, "rnn_num_layers": 1}
    algorithm = {
        "class_name": "PPO", "num_learning_epochs": 5, "num_mini_batches": 4, "clip_param": 0.2, "gamma": 0.95,
        "lam": 0.95, "value_loss_coef": 1.0, "entropy_coef": 0.0, "learning_rate": 1e-3, "max_grad_norm": 1.0,
        "use_clipped_value_loss": True, "schedule": "adaptive", "desired_kl": 0.01, "rnd_cfg": None,
        "symmetry_cfg": None,
    }  # fmt: skip
    config: dict[str, Any] = {
        "num_steps_per_env": 32, "save_interval": 1000, "obs_groups": {}, "algorithm": algorithm, "multi_gpu": None,
    }  # fmt: skip
    net = {"hidden_dims": HIDDEN, "activation": "elu", "obs_normalization": True}
    if version == "3":
        config["policy"] = {
            "class_name": "ActorCriticRecurrent" if recurrent else "ActorCritic", "init_noise_std": 1.0,
            "actor_hidden_dims": HIDDEN, "critic_hidden_dims": HIDDEN, "activation": "elu",
            "actor_obs_normalization": True, "critic_obs_normalization": True,
            **({"rnn_type": kind, "rnn_hidden_dim": 16, "rnn_num_layers": 1} if recurrent else {}),
        }  # fmt: skip
        config["obs_groups"] = {"policy": ["policy"], "critic": ["policy"]}
    else:
        net |= {"class_name": "RNNModel" if recurrent else "MLPModel", **(rnn if recurrent else {})}
        spread = (
            {"distribution_cfg": {"class_name": "GaussianDistribution", "init_std": 1.0, "std_type": "scalar"}}
            if version == "5"
            else {"stochastic": True, "init_noise_std": 1.0, "noise_std_type": "log"}
        )
        config |= {"actor": net | spread, "critic": dict(net)}
        config["obs_groups"] = {"actor": ["policy"], "critic": ["policy"]}
    runner = OnPolicyRunner(Env(), config, log_dir=None, device="cpu")
    save, runner.save = runner.save, lambda *_: None
    runner.logger.log_dir, runner.logger.disable_logs = tempfile.mkdtemp(), True  # without one version 3 fails
    runner.learn(60 if kind == "mlp" else 20)
    name = f"rsl_rl_{version}_{kind}"
    runner.logger.save_model = lambda *_: None
    save(str(HERE / f"{name}.pt"))
    policy = runner.get_inference_policy(device="cpu")
    obs = observations()
    with torch.inference_mode():
        if recurrent:
            owner = runner.alg.policy if version == "3" else policy
            owner.reset(torch.ones(ENVS))
            owner.reset()
            rows = [policy(TensorDict({"policy": row.expand(1, 3)}, batch_size=1)) for row in obs]
            actions = torch.cat(rows)
        else:
            actions = policy(TensorDict({"policy": obs}, batch_size=256))
    if version == "3":
        std = runner.alg.policy.std
    elif version == "4":
        std = runner.alg.actor.log_std.exp()
    else:
        std = runner.alg.actor.distribution.std_param
    expected(name, obs, actions, std)


def sb3(kind: str) -> None:
    """Train with PPO or SAC."""
    from stable_baselines3 import PPO, SAC
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    name = f"sb3_{kind}"
    if kind == "cartpole":
        env: Any = make_vec_env("CartPole-v1", 8, seed=1)
        model: Any = PPO("MlpPolicy", env, n_steps=64, policy_kwargs={"net_arch": HIDDEN}, seed=1, device="cpu")
        model.learn(10_000)
        obs = torch.randn(256, 4, generator=torch.Generator().manual_seed(7))
        distribution = model.policy.get_distribution(obs).distribution
        model.save(HERE / f"{name}.zip")
        expected(name, obs, distribution.logits, torch.zeros(1))
        return
    env = make_vec_env("Pendulum-v1", 4, seed=1)
    if kind == "ppo":
        env = VecNormalize(env, gamma=0.9)
        settings = {"n_steps": 256, "gamma": 0.9, "learning_rate": 1e-3, "gae_lambda": 0.95, "n_epochs": 10}
        model = PPO("MlpPolicy", env, policy_kwargs={"net_arch": HIDDEN}, seed=1, device="cpu", **settings)
        model.learn(10_240)
        env.save(HERE / f"{name}_vecnormalize.pkl")
    else:
        kwargs = {"net_arch": HIDDEN}
        model = SAC("MlpPolicy", env, policy_kwargs=kwargs, seed=1, device="cpu", learning_starts=400)
        model.learn(2_000)
    model.save(HERE / f"{name}.zip")
    obs = observations()
    seen = torch.as_tensor(env.normalize_obs(obs.numpy())) if kind == "ppo" else obs
    with torch.no_grad():
        if kind == "ppo":
            distribution = model.policy.get_distribution(seen).distribution
            expected(name, obs, distribution.mean, distribution.stddev[0])
        else:
            _, log_std, _ = model.actor.get_action_dist_params(seen)
            expected(name, obs, model.predict(obs.numpy(), deterministic=True)[0], log_std.exp())


def skrl(kind: str) -> None:
    """Train with PPO and the models that its configurations make."""
    from skrl.agents.torch.ppo import PPO, PPO_CFG
    from skrl.envs.wrappers.torch import wrap_env
    from skrl.memories.torch import RandomMemory
    from skrl.resources.preprocessors.torch import RunningStandardScaler
    from skrl.trainers.torch import SequentialTrainer
    from skrl.utils import set_seed
    from skrl.utils.model_instantiators.torch import deterministic_model, gaussian_model, shared_model

    set_seed(1)
    env = wrap_env(gymnasium.make_vec("Pendulum-v1", ENVS, vectorization_mode="sync"))
    network = [{"name": "net", "input": "OBSERVATIONS", "layers": HIDDEN, "activations": "elu"}]
    spaces = {
        "observation_space": env.observation_space, "state_space": env.state_space, "action_space": env.action_space,
        "device": "cpu",
    }  # fmt: skip
    gaussian = {"clip_log_std": True, "min_log_std": -20.0, "max_log_std": 2.0, "initial_log_std": 0.0}
    if kind == "shared":
        model = shared_model(
            **spaces, structure=["GaussianMixin", "DeterministicMixin"], roles=["policy", "value"],
            parameters=[{**gaussian, "network": network, "output": "ACTIONS"}, {"network": network, "output": "ONE"}],
        )  # fmt: skip
        models = {"policy": model, "value": model}
    else:
        models = {
            "policy": gaussian_model(**spaces, **gaussian, network=network, output="ACTIONS"),
            "value": deterministic_model(**spaces, network=network, output="ONE"),
        }
    config = PPO_CFG()
    config.rollouts, config.learning_epochs, config.mini_batches = 64, 8, 4
    config.discount_factor, config.learning_rate = 0.95, 1e-3
    config.observation_preprocessor = RunningStandardScaler
    config.observation_preprocessor_kwargs = {"size": env.observation_space, "device": "cpu"}
    config.value_preprocessor, config.value_preprocessor_kwargs = RunningStandardScaler, {"size": 1, "device": "cpu"}
    config.experiment.write_interval = config.experiment.checkpoint_interval = 0
    agent = PPO(
        models=models, memory=RandomMemory(memory_size=64, num_envs=ENVS, device="cpu"), cfg=config,
        observation_space=env.observation_space, state_space=env.state_space, action_space=env.action_space,
        device="cpu",
    )  # fmt: skip
    SequentialTrainer(cfg={"timesteps": 1280, "headless": True}, env=env, agents=agent).train()
    name = f"skrl_{kind}"
    agent.save(str(HERE / f"{name}.pt"))
    obs = observations()
    with torch.no_grad():
        seen = agent._observation_preprocessor(obs)
        mean, extra = models["policy"].compute({"observations": seen}, "policy")
    expected(name, obs, mean, extra["log_std"].exp())


def rl_games(kind: str) -> None:
    """Train with its runner."""
    from rl_games.common import env_configurations, vecenv
    from rl_games.common.ivecenv import IVecEnv
    from rl_games.torch_runner import Runner

    class Env(IVecEnv):  # type: ignore[misc]
        def __init__(self, *_: Any, **__: Any) -> None:
            self.inner = Envs()

        def step(self, actions: torch.Tensor) -> Any:
            obs, reward, terminated, truncated = self.inner.step(torch.as_tensor(actions))
            return obs, reward, terminated | truncated, {"time_outs": truncated}

        def reset(self) -> torch.Tensor:
            return self.inner.obs

        def get_env_info(self) -> dict[str, Any]:
            inner = self.inner.env
            return {"action_space": inner.single_action_space, "observation_space": inner.single_observation_space}

    vecenv.register("OURS", lambda *args, **kwargs: Env())
    env_configurations.register("ours", {"vecenv_type": "OURS", "env_creator": lambda **_: None})
    space = {
        "mu_activation": "None", "sigma_activation": "None", "mu_init": {"name": "default"},
        "sigma_init": {"name": "const_initializer", "val": 0}, "fixed_sigma": True,
    }  # fmt: skip
    network: dict[str, Any] = {
        "name": "actor_critic", "separate": kind == "separate", "space": {"continuous": space},
        "mlp": {"units": HIDDEN, "activation": "elu", "initializer": {"name": "default"}},
    }  # fmt: skip
    if kind == "lstm":
        network["rnn"] = {"name": "lstm", "units": 16, "layers": 1, "before_mlp": True}
    epochs = 1 if kind == "lstm" else 5  # of 1,024 steps
    config = {
        "name": "pendulum", "env_name": "ours", "ppo": True, "normalize_input": True, "normalize_value": True,
        "normalize_advantage": True, "gamma": 0.95, "tau": 0.95, "learning_rate": 1e-3, "lr_schedule": "adaptive",
        "kl_threshold": 0.008, "grad_norm": 1.0, "entropy_coef": 0.0, "truncate_grads": True, "e_clip": 0.2,
        "horizon_length": 64, "minibatch_size": 256, "mini_epochs": 8, "critic_coef": 2, "clip_value": True,
        "seq_length": 16, "num_actors": ENVS, "reward_shaper": {"scale_value": 0.1}, "max_epochs": epochs,
        "device": "cpu", "device_name": "cpu",
        "bounds_loss_coef": 0.0001, "save_frequency": 0, "save_best_after": 10_000,
        "score_to_win": 1e9, "train_dir": tempfile.mkdtemp(), "full_experiment_name": "x", "value_bootstrap": True,
        "print_stats": True, "torch_compile": False,
    }  # fmt: skip
    runner = Runner()
    runner.load({"params": {
        "seed": 1, "algo": {"name": "a2c_continuous"}, "model": {"name": "continuous_a2c_logstd"}, "network": network,
        "config": config,
    }})  # fmt: skip
    name = f"rl_games_{kind}"
    file = HERE / f"{name}.pth"
    if not file.exists():  # what a file that is there computes is written anew
        runner.run({"train": True, "play": False})
        last = max(Path(str(config["train_dir"])).rglob("*.pth"), key=lambda path: path.stat().st_mtime)
        shutil.copy(last, file)
    runner.params["config"]["env_info"] = Env().get_env_info()
    player = runner.create_player()
    player.restore(str(file))
    obs, rows, deviations = observations(), [], []
    if kind == "lstm":
        player.init_rnn()
    with torch.no_grad():
        for row in obs:
            given = {"is_train": False, "prev_actions": None, "obs": row.unsqueeze(0), "rnn_states": player.states}
            result = player.model(given)
            player.states = result["rnn_states"]
            rows.append(result["mus"])
            deviations.append(result["sigmas"])
    expected(name, obs, torch.cat(rows), deviations[0][0])


if __name__ == "__main__":
    torch.manual_seed(1)
    np.random.seed(1)
    torch.set_num_threads(1)
    {"rsl_rl": rsl_rl, "sb3": sb3, "skrl": skrl, "rl_games": rl_games}[sys.argv[1]](*sys.argv[2:])
