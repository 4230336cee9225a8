"""Stable-Baselines3's YAML, as in RL Baselines3 Zoo and Isaac Lab; without gSDE."""

from __future__ import annotations

import ast
import math
from textwrap import shorten
from typing import Any

from rlcore.config import ConfigError, shown
from rlcore.train.importers.convolutions import OF_PICTURES, of_sb3
from rlcore.train.importers.translation import Translation
from rlcore.train.importers.values import activation, empty, flag, number, one_of, optional, positive, whole, widths

BOOKKEEPING = {
    "device": "rlcore chooses; --device",
    "verbose": "rlcore prints in its own way",
    "tensorboard_log": "rlcore always writes tensorboard files",
    "env_wrapper": "wrappers are code, which is not converted",
    "env_kwargs": "options of the env are given to the task",
    "vec_env_wrapper": "wrappers are code, which is not converted",
    "callback": "callbacks are code, which is not converted",
    "frame_stack": "rlcore does not stack frames",
    "sde_sample_freq": "matters only with use_sde",
    "stats_window_size": "rlcore averages over all episodes that ended",
}


def convert(t: Translation) -> None:
    """Translate PPO; the file does not name the algorithm.

    Raises:
        ConfigError: a value that rlcore cannot use.
    """
    choose_task(t)
    read_literals(t, "policy_kwargs", "normalize")
    if t.get("seed") is not None:
        t.use("seed", "seed", None, whole)
    _algorithm(t)
    _learning_rate(t)
    _normalization(t)
    _policy(t)
    t.builtin("gradient norms", "one", "agent.grad_clip", "joint")
    t.builtin("time-outs", "V of the last observation", "agent.timeout_bootstrap", "final_obs")
    t.builtin("observations of both networks", "policy", "agent.actor_obs", ["policy"])
    t.set("agent.critic_obs", ["policy"], "observations of both networks", "policy")
    t.drop("use_sde", "rlcore has no state-dependent exploration", off=(False,))
    t.drop_all(BOOKKEEPING)


def choose_task(t: Translation) -> None:
    """Go into the task's section, or the only one: the zoo's files hold one for each task, by gymnasium id.

    Raises:
        ConfigError: there is none for the task.
    """
    sections = {key: value for key, value in t.source.items() if isinstance(value, dict) and "n_timesteps" in value}
    if "n_timesteps" in t.source or not sections:
        return
    name = (t.task or "").removeprefix("gym:")
    if not name and len(sections) == 1:
        (name,) = sections
    if name not in sections:
        none = "" if name == "" else f", but none for the task '{name}'"
        raise ConfigError(
            f"sb3: there are sections for {', '.join(sections)}{none}; name one, such as "
            f"--task gym:{next(iter(sections))}"
        )
    t.source = sections[name]


def _algorithm(t: Translation) -> None:
    steps = t.use("n_steps", "agent.num_steps", 2048, positive)
    if t.has("n_envs"):
        t.prefer_num_envs(t.read("n_envs", 1, positive))
    count_envs(t)
    if t.has("n_minibatches"):
        t.minibatches("n_minibatches", t.read("n_minibatches", None, number))
        t.drop("batch_size", "n_minibatches prevails")
    else:
        t.minibatches("batch_size", steps * t.num_envs / max(1, t.read("batch_size", 64, whole)))
    if t.has("n_timesteps"):
        note = "SB3 counts steps of all envs, rlcore rollouts"
        rollout = steps * t.num_envs
        t.use("n_timesteps", "num_iterations", None, lambda total: math.ceil(number(total) / rollout), note)
    t.use("n_epochs", "agent.num_epochs", 10, whole)
    t.use("gamma", "agent.gamma", 0.99, number)
    t.use("gae_lambda", "agent.gae_lambda", 0.95, number)
    t.use("ent_coef", "agent.entropy_coef", 0.0, number)
    t.use("vf_coef", "agent.value_coef", 0.5, number)
    t.use("max_grad_norm", "agent.max_grad_norm", 0.5, number)
    t.use("normalize_advantage", "agent.normalize_advantage", True, one_of({True: "minibatch", False: "none"}))
    declining = "it declines in SB3, and stays in rlcore; see agent.schedules"
    start, linear = schedule(t.get("clip_range", 0.2))
    t.use("clip_range", "agent.clip_range", 0.2, lambda _: number(start), declining if linear else "", linear)
    limit, _ = schedule(t.get("clip_range_vf"))
    on = t.read("clip_range_vf", None, lambda _: not empty(limit) and number(limit) > 0)
    note = "SB3 takes the clipped error, rlcore the larger of clipped and unclipped; the range is clip_range"
    t.use("clip_range_vf", "agent.clip_value_loss", None, lambda _: on, note if on else "", changed=on)
    stop = "SB3 estimates KL from samples and stops at 1.5 times this; rlcore computes it"
    optional_stop = optional(lambda value: 1.5 * number(value))
    set_stop = not empty(t.get("target_kl"))
    t.use("target_kl", "agent.target_kl", None, optional_stop, stop if set_stop else "", changed=set_stop)


def count_envs(t: Translation) -> None:
    """Say that the run's number of envs counts, whatever the file has."""
    if t.has("n_envs") and t.get("n_envs") != t.num_envs:
        t.row("n_envs", t.get("n_envs"), "changed", "the run's num_envs counts", f"num_envs = {t.num_envs}")
    t.same("n_envs")


def schedule(value: Any) -> tuple[Any, bool]:
    """Split ``lin_3e-4`` into the start and whether it declines to zero."""
    if isinstance(value, str) and value.startswith("lin_"):
        return value.removeprefix("lin_"), True
    return value, False


def _learning_rate(t: Translation) -> None:
    value, linear = schedule(t.get("learning_rate", 3e-4))
    t.use("learning_rate", "agent.learning_rate", 3e-4, lambda _: number(value))
    kind = "linear" if linear else "constant"
    t.builtin("learning rate", kind, "agent.lr_schedule", kind)


def _normalization(t: Translation) -> None:
    key, reward = normalized(t)
    note = "SB3 divides rewards by the deviation of the return; rlcore normalizes what the critic predicts"
    t.use(key, "agent.normalize_value", False, lambda _: reward, note if reward else "", changed=reward)


def normalized(t: Translation) -> tuple[str, bool]:
    """Translate VecNormalize of observations, which is ``normalize`` in the zoo and ``normalize_input`` in Isaac Lab.

    Returns:
        The key that tells of rewards, and whether they are normalized.
    """
    options = t.get("normalize")
    if isinstance(options, bool):
        obs, reward = options, options
        obs_key = reward_key = "normalize"
    elif isinstance(options, dict):
        obs, reward = t.read("normalize.norm_obs", True, flag), t.read("normalize.norm_reward", True, flag)
        obs_key, reward_key = "normalize.norm_obs", "normalize.norm_reward"
    else:
        obs_key, reward_key = "normalize_input", "normalize_value"
        obs, reward = t.read(obs_key, False, flag), t.read(reward_key, False, flag)
    note = "1e-8 is added to the variance in SB3, 1e-2 to the deviation in rlcore"
    t.use(obs_key, "agent.normalize_obs", False, lambda _: obs, note if obs else "", changed=obs)
    clip = "normalize.clip_obs" if isinstance(options, dict) else "clip_obs"
    if obs:
        t.use(clip, "agent.clip_obs", 10.0, number)
    t.same(clip, "matters only to normalized observations")
    return reward_key, reward


def _policy(t: Translation) -> None:
    kind = str(t.get("policy", "MlpPolicy"))
    t.drop("policy", "unknown policy", off=("MlpPolicy", *OF_PICTURES))
    if kind in OF_PICTURES:
        of_sb3(t, kind, shared=True)
    layers = [] if kind == "CnnPolicy" else [64, 64]
    p = "policy_kwargs."
    key = f"{p}net_arch"
    arch = t.get(key, layers)
    for name, net in (("pi", "actor"), ("vf", "critic")):
        ours = f"agent.{net}.hidden_dims"
        if isinstance(arch, dict):
            t.use(f"{key}.{name}", ours, [], widths)
        elif isinstance(arch, list) and arch and isinstance(arch[-1], dict):  # before 2.0: shared layers, then these
            dims = t.read(key, None, lambda _: widths([*arch[:-1], *arch[-1].get(name, [])]))  # noqa: B023 - used at once
            note = "layers that SB3 shares come in both networks here" if arch[:-1] else ""
            t.set(ours, dims, key, arch)
            t.row(key, arch, "changed" if note else "kept", note, f"{ours} = {dims}")
        else:
            t.use(key, ours, layers, widths)
    for net in ("actor", "critic"):
        t.use(f"{p}activation_fn", f"agent.{net}.activation", "nn.Tanh", activation)
    start = "SB3 gives the logarithm of the standard deviation"
    t.use(f"{p}log_std_init", "agent.init_std", 0.0, lambda value: math.exp(number(value)), start)
    t.builtin("what is learned of the deviation", "its logarithm", "agent.std_type", "log")
    t.std_bounds("(range of the standard deviation)", 0.0, math.inf)
    orthogonal = one_of({True: "orthogonal", False: "default"})
    for net in ("actor", "critic"):
        t.use(f"{p}ortho_init", f"agent.{net}.init", True, orthogonal)
    t.builtin("trunks", "separate", "agent.share_trunk", False)
    t.builtin("actions beyond the env's bounds", "cut off", "agent.action_scale", "none")
    t.drop(f"{p}squash_output", "rlcore does not squash PPO's actions", off=(False,))
    t.drop(f"{p}optimizer_kwargs.eps", "Adam's epsilon is 1e-8 in rlcore", off=(1e-8,))
    if not t.has(f"{p}optimizer_kwargs.eps"):
        t.row("(epsilon of Adam)", 1e-5, "default", "rlcore has 1e-8")


def read_literals(t: Translation, *keys: str) -> None:
    """Turn texts such as ``dict(a=1, b=nn.ReLU, c=[64])`` into what they stand for, without evaluating them.

    Raises:
        ConfigError: anything but dict(), lists, tuples, numbers, texts and nn.<name>.
    """
    for key in keys:
        text = t.get(key)
        if not isinstance(text, str):
            continue
        try:
            t.source[key] = _literal(ast.parse(text.strip(), mode="eval").body)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ConfigError(
                f"sb3: {key}: {shown(text)} cannot be converted: {shorten(str(error), 100)}; "
                "write dict(), lists, numbers, texts and nn.<name> only"
            ) from None


def _literal(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item) for item in items]
        case ast.Dict(keys=keys, values=values) if None not in keys:
            return {str(_literal(k)): _literal(v) for k, v in zip(keys, values, strict=True) if k is not None}
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords) if all(k.arg for k in keywords):
            return {str(word.arg): _literal(word.value) for word in keywords}
        case ast.Attribute():
            return ast.unparse(node)  # nn.ReLU stays a name
    raise ValueError(f"'{ast.unparse(node)}' is code")
