"""Stable-Baselines3's YAML for SAC, DDPG and TD3, as in RL Baselines3 Zoo; without gSDE."""

from __future__ import annotations

import math
from typing import Any

from rlcore.config import ConfigError, shown
from rlcore.train.importers.convolutions import OF_PICTURES, of_sb3
from rlcore.train.importers.sb3 import BOOKKEEPING, choose_task, count_envs, normalized, read_literals, schedule
from rlcore.train.importers.translation import Translation
from rlcore.train.importers.values import activation, flag, number, one_of, positive, whole, widths

COMMON = ("buffer_size", "learning_starts", "train_freq", "gradient_steps", "tau", "replay_buffer_class")
KEYS = {
    "td3": ("policy_delay", "target_policy_noise", "target_noise_clip"),
    "sac": ("ent_coef", "target_entropy", "use_sde", "target_update_interval"),
    "ddpg": ("noise_type", "noise_std", "action_noise"),
}
"""By which a file that does not name its algorithm gives it away, the first that fits."""
OFF_BOOKKEEPING = {
    "optimize_memory_usage": "rlcore stores each observation once, and true last ones too",
    "noise_std_final": "rlcore's noise stays as it is",
    "target_update_interval": "rlcore's targets move at every gradient step",
    "use_sde_at_warmup": "matters only with use_sde",
    "keep_time_limits": "see agent.timeout_bootstrap",
}


def algorithm(t: Translation, asked: str | None) -> str | None:
    """The algorithm of these that is asked for, or that the file gives away; None: PPO.

    Raises:
        ConfigError: it is one of these, and the file does not tell which.
    """
    choose_task(t)
    if asked is not None:
        return None if asked == "ppo" else asked
    # PPO has an ent_coef too, and n_steps means something else there.
    own = [key for key in COMMON if t.has(key)]
    text = isinstance(t.get("ent_coef"), str)
    if not own and not text and not any(t.has(key) for key in (*KEYS["td3"], *KEYS["ddpg"])):
        return None
    found = next((name for name, keys in KEYS.items() if any(t.has(key) for key in keys)), None)
    if found is None:
        raise ConfigError(
            f"sb3: {own[0]}: {shown(t.get(own[0]))} is of SAC, DDPG or TD3, and nothing says which; give --algo sac, "
            "ddpg or td3"
        )
    return found


def convert(t: Translation, algorithm: str) -> None:
    """Translate ``sac``, ``ddpg`` or ``td3``.

    Raises:
        ConfigError: a value that rlcore cannot use.
    """
    read_literals(t, "policy_kwargs", "normalize", "replay_buffer_kwargs")
    if t.get("seed") is not None:
        t.use("seed", "seed", None, whole)
    replay = str(t.get("replay_buffer_class", "ReplayBuffer"))
    if replay != "ReplayBuffer":
        raise ConfigError(f"sb3: replay_buffer_class: {shown(replay)} cannot be used: rlcore has no hindsight replay")
    t.same("replay_buffer_class")
    t.drop("replay_buffer_kwargs", "rlcore's replay memory has other options", off=(None, {}))
    _length(t)
    _learning(t, algorithm)
    if algorithm == "sac":
        _entropy(t)
    else:
        _noise(t)
    if algorithm == "td3":
        _td3(t)
    key, reward = normalized(t)
    note = "SB3 divides by the deviation of the return; rlcore also sees to it that none exceeds agent.value_range"
    t.use(key, "agent.normalize_reward", False, lambda _: reward, note if reward else "", changed=reward)
    _networks(t, algorithm)
    t.builtin("time-outs", "the value of the last observation", "agent.timeout_bootstrap", "final_obs")
    t.builtin("observations of all networks", "policy", "agent.actor_obs", ["policy"])
    t.set("agent.critic_obs", ["policy"], "observations of all networks", "policy")
    t.drop("use_sde", "rlcore has no state-dependent exploration; see agent.noise_hold", off=(False,))
    t.drop_all(OFF_BOOKKEEPING, off={"target_update_interval": (1,), "optimize_memory_usage": (False,)})
    t.drop_all(BOOKKEEPING)


def _length(t: Translation) -> None:
    t.prefer_num_envs(t.read("n_envs", 1, positive))
    count_envs(t)
    frequency = t.get("train_freq", 1)
    unit = "step"
    if isinstance(frequency, list) and len(frequency) == 2:
        frequency, unit = frequency
    updates = t.read("gradient_steps", 1, whole)  # negative: as many as steps
    by_episode = unit == "episode"
    steps = 1 if by_episode else t.read("train_freq", 1, lambda _: positive(frequency))
    note = "rlcore does not wait for the end of an episode" if by_episode else ""
    t.use("train_freq", "agent.num_steps", 1, lambda _: steps, note, changed=by_episode)
    ratio = 1.0 if by_episode or updates < 0 else updates / (steps * t.num_envs)
    counted = by_episode and updates >= 0
    per_step = "SB3 counts gradient steps by updates, rlcore by steps of single envs"
    note = "by episode in SB3; one for each step here" if counted else per_step
    t.use("gradient_steps", "agent.update_ratio", 1, lambda _: ratio, note, changed=counted)
    if t.has("n_timesteps"):
        each = steps * t.num_envs
        note = "SB3 counts steps of all envs, rlcore iterations"
        t.use("n_timesteps", "num_iterations", None, lambda total: math.ceil(number(total) / each), note)


def _learning(t: Translation, algorithm: str) -> None:
    default = 3e-4 if algorithm == "sac" else 1e-3
    start, linear = schedule(t.get("learning_rate", default))
    note = "it declines in SB3, and stays in rlcore; see agent.schedules" if linear else ""
    t.use("learning_rate", "agent.learning_rate", default, lambda _: number(start), note, changed=linear)
    t.use("buffer_size", "agent.buffer_size", 1_000_000, positive)
    t.use("learning_starts", "agent.learning_starts", 100, whole)
    t.use("batch_size", "agent.batch_size", 256, positive)
    t.use("tau", "agent.tau", 0.005, number)
    t.use("gamma", "agent.gamma", 0.99, number)
    t.use("n_steps", "agent.n_step", 1, positive)


def _entropy(t: Translation) -> None:
    value = t.get("ent_coef", "auto")
    automatic = isinstance(value, str) and value.startswith("auto")
    start = value.partition("_")[2] or 1.0 if automatic else value
    t.use("ent_coef", "agent.init_temperature", "auto", lambda _: number(start))
    t.set("agent.learn_temperature", automatic, "ent_coef", value)
    given = t.get("target_entropy", "auto") != "auto"
    units = "SB3 counts it for actions within +-1, rlcore in the env's units" if given else ""
    ours = number if given else lambda _: None
    t.use("target_entropy", "agent.target_entropy", "auto", ours, units, changed=given)
    t.builtin("range of log deviations", [-20, 2], "agent.log_std_range", [-20.0, 2.0])


def _noise(t: Translation) -> None:
    t.drop("action_noise", "code is not converted; give noise_type and noise_std", off=(None,))
    kinds = {None: "gaussian", "normal": "gaussian", "ornstein-uhlenbeck": "ou"}
    kind = t.get("noise_type")
    none = "without it SB3 does not explore; 0 here" if kind is None else ""
    t.use("noise_type", "agent.noise", None, one_of(kinds), none)
    std = t.read("noise_std", 0.0, number) if kind is not None else 0.0
    if kinds.get(kind) == "ou":  # theta 0.15 and steps of 0.01, which zoo files cannot change
        note = "SB3's process goes by steps of 0.01: 0.1 of the deviation each"
        t.use("noise_std", "agent.noise_std", 0.0, lambda _: 0.1 * std, note)
        t.builtin("decay of the noise", 0.15, "agent.noise_decay", 0.0015, "SB3's process goes by steps of 0.01")
    else:
        t.use("noise_std", "agent.noise_std", 0.0, lambda _: std)


def _td3(t: Translation) -> None:
    """What TD3 adds to DDPG, beside a second critic."""
    t.use("policy_delay", "agent.policy_delay", 2, positive)
    t.use("target_policy_noise", "agent.target_noise", 0.2, number)
    t.use("target_noise_clip", "agent.target_noise_clip", 0.5, number)


def _networks(t: Translation, algorithm: str) -> None:
    kind = str(t.get("policy", "MlpPolicy"))
    t.drop("policy", "unknown policy", off=("MlpPolicy", *OF_PICTURES))
    if kind in OF_PICTURES:
        of_sb3(t, kind, shared=False)
    p = "policy_kwargs."
    default: Any = [256, 256] if algorithm == "sac" or kind == "CnnPolicy" else [400, 300]
    arch = t.get(f"{p}net_arch", default)
    for name, net in (("pi", "actor"), ("qf", "critic")):
        key = f"{p}net_arch.{name}" if isinstance(arch, dict) else f"{p}net_arch"
        t.use(key, f"agent.{net}.hidden_dims", default, widths)
        t.use(f"{p}activation_fn", f"agent.{net}.activation", "nn.ReLU", activation)
    t.initial_weights()
    own = 1 if algorithm == "ddpg" else 2
    t.use(f"{p}n_critics", "agent.num_critics", own, positive)
    note = "matters only with use_sde" if t.read("use_sde", False, flag) else "rlcore begins where the weights put it"
    t.drop(f"{p}log_std_init", note, off=(-3,))
    for name in ("use_expln", "clip_mean"):
        t.drop(p + name, "matters only with use_sde")
    t.drop(f"{p}share_features_extractor", "there are no features to share", off=(False,))
    t.drop(f"{p}optimizer_kwargs.eps", "Adam's epsilon is 1e-8 in rlcore", off=(1e-8,))
