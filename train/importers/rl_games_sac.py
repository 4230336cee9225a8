"""rl_games' YAML for SAC."""

from __future__ import annotations

import math

from rlcore.train.importers.rl_games import BOOKKEEPING, OFF, REQUIRED, initial_weights, observations, places
from rlcore.train.importers.translation import Translation
from rlcore.train.importers.values import activation, flag, number, optional, positive, whole, widths

OWN = {
    "actor_betas": "rlcore's Adam has 0.9 and 0.999",
    "critic_betas": "rlcore's Adam has 0.9 and 0.999",
    "alphas_betas": "rlcore's Adam has 0.9 and 0.999",
    "save_replay_buffer": "see agent.save_buffer",
    "reward_shaper.shift_value": "rlcore does not shift rewards",
    "reward_shaper.log_val": "rlcore does not take logarithms of rewards",
    "reward_shaper.min_val": "rlcore does not limit rewards that it stores",
    "reward_shaper.max_val": "rlcore does not limit rewards that it stores",
}
OWN_OFF = {
    "actor_betas": ([0.9, 0.999],),
    "critic_betas": ([0.9, 0.999],),
    "alphas_betas": ([0.9, 0.999],),
    "reward_shaper.shift_value": (0.0,),
    "reward_shaper.log_val": (False,),
    "reward_shaper.min_val": (-math.inf,),
    "reward_shaper.max_val": (math.inf,),
}


def algorithm(t: Translation, asked: str | None) -> str | None:
    """``sac`` if that is what the file names; None: another algorithm."""
    params, _ = places(t)
    return "sac" if str(t.get(f"{params}algo.name", "")).lower() == "sac" else None


def convert(t: Translation, algorithm: str) -> None:
    """Translate SAC.

    Raises:
        ConfigError: a value that rlcore cannot use.
    """
    params, c = places(t)
    t.same(f"{params}algo.name")
    if t.get(f"{params}seed") is not None:
        t.use(f"{params}seed", "seed", None, whole)
    t.drop(f"{params}seed", "no seed; rlcore keeps its default", off=(None,))
    _length(t, c)
    _learning(t, c)
    _entropy(t, params, c)
    _network(t, params)
    observations(t, params, c, False, "rl_games' statistics learn from what is sampled, rlcore's from each step once")
    t.drop(f"{params}load_checkpoint", "see `rlcore train --resume`", off=(False,))
    t.drop(f"{params}load_path", "see `rlcore train --resume`", off=("", None))
    t.drop(f"{params}env.clip_actions", "actions stay within agent.action_low and agent.action_high")
    t.drop_all(OWN, c, OWN_OFF)
    t.drop_all(BOOKKEEPING, c, OFF)


def _length(t: Translation, c: str) -> None:
    actors = t.get(f"{c}num_actors")
    if type(actors) is int and actors > 0:
        t.prefer_num_envs(actors)
    if actors is not None and actors not in (-1, t.num_envs):
        t.row(f"{c}num_actors", actors, "changed", "the run's num_envs counts", f"num_envs = {t.num_envs}")
    t.same(f"{c}num_actors")
    # An epoch is only how often rl_games reports: it learns after each vector step.
    length = t.read(f"{c}num_steps_per_episode", 1, positive)
    t.set("agent.num_steps", 1, "vector steps between updates", 1)
    t.same(f"{c}num_steps_per_episode", "an iteration is one vector step")
    epochs = "rl_games counts groups of num_steps_per_episode vector steps"
    if t.read(f"{c}max_epochs", -1, whole) > 0:
        t.use(f"{c}max_epochs", "num_iterations", None, lambda count: whole(count) * length, epochs)
    elif t.read(f"{c}max_frames", -1, whole) > 0:
        t.use(f"{c}max_frames", "num_iterations", None, lambda count: math.ceil(whole(count) / t.num_envs))
    t.drop(f"{c}max_epochs", "no limit; rlcore's num_iterations holds", off=(-1,))
    t.drop(f"{c}max_frames", "max_epochs prevails", off=(-1,))
    if t.has(f"{c}save_frequency"):
        t.use(f"{c}save_frequency", "save_interval", 0, lambda count: whole(count) * length, epochs)
    _warm_up(t, c, length)


def _warm_up(t: Translation, c: str, length: int) -> None:
    names = ("num_warmup_frames", "num_seed_steps", "num_warmup_steps")
    key = next((c + name for name in names if t.has(c + name)), f"{c}num_warmup_steps")
    each = 1 if key.endswith("frames") else length * t.num_envs
    frames = each * t.read(key, 1000, whole)
    room = t.read(f"{c}replay_buffer_size", 1_000_000, positive)
    note = "" if each == 1 else "rl_games counts groups of vector steps, rlcore steps of single envs"
    if frames > room:
        note = f"rl_games would act at random for {frames:,} steps; rlcore does until its replay memory is full"
    t.use(key, "agent.learning_starts", 1000, lambda _: min(frames, room), note, changed=frames > room)
    for name in names:
        t.drop(c + name, "another warm-up prevails")


def _learning(t: Translation, c: str) -> None:
    t.use(f"{c}batch_size", "agent.batch_size", 256, positive, "" if t.has(f"{c}batch_size") else REQUIRED)
    size = f"{c}replay_buffer_size"
    t.use(size, "agent.buffer_size", 1_000_000, positive, "" if t.has(size) else REQUIRED)
    if t.has(f"{c}utd_ratio"):
        t.use(f"{c}utd_ratio", "agent.update_ratio", None, number)
        t.drop(f"{c}num_updates_per_step", "utd_ratio prevails")
    else:
        note = "rl_games counts gradient steps by vector steps, rlcore by steps of single envs"
        ratio = f"{c}num_updates_per_step"
        t.use(ratio, "agent.update_ratio", 1, lambda count: positive(count) / t.num_envs, note)
    t.use(f"{c}gamma", "agent.gamma", 0.99, number)
    t.use(f"{c}critic_tau", "agent.tau", 0.005, number)
    t.use(f"{c}policy_frequency", "agent.policy_delay", 2, positive)
    rates = [t.read(f"{c}{name}_lr", 3e-4, number) for name in ("actor", "critic")]
    uneven = rates[0] != rates[1]
    note = "rlcore has one rate for actor and critics, the actor's" if uneven else ""
    t.use(f"{c}actor_lr", "agent.learning_rate", 3e-4, lambda _: rates[0], note, changed=uneven)
    t.drop(f"{c}critic_lr", "the actor's rate counts", off=(t.get(f"{c}critic_lr"),) if not uneven else ())
    clip = t.read(f"{c}critic_grad_clip", 5.0, number)
    note = "rl_games limits the critics' gradient alone" if clip > 0 else ""
    limit = clip if clip > 0 else None
    t.use(f"{c}critic_grad_clip", "agent.max_grad_norm", 5.0, lambda _: limit, note, changed=clip > 0)
    t.set("agent.n_step", 1, "steps of a target", 1)
    t.use(f"{c}reward_shaper.scale_value", "agent.reward_scale", 1.0, number)
    if t.read(f"{c}value_bootstrap", True, flag):
        note = "rl_games takes the value of the observation before the time-out, rlcore of the true last one"
        t.use(f"{c}value_bootstrap", "agent.timeout_bootstrap", True, lambda _: "final_obs", note, changed=True)
    else:
        t.use(f"{c}value_bootstrap", "agent.timeout_bootstrap", True, lambda _: "none")
    if t.get(f"{c}mixed_precision", False):
        note = "in hidden layers only"
        t.use(f"{c}mixed_precision", "agent.precision", False, lambda _: "bf16", note, changed=True)
    t.same(f"{c}mixed_precision")


def _entropy(t: Translation, params: str, c: str) -> None:
    t.use(f"{c}init_alpha", "agent.init_temperature", 1.0, number, "" if t.has(f"{c}init_alpha") else REQUIRED)
    t.use(f"{c}learnable_temperature", "agent.learn_temperature", True, flag)
    t.use(f"{c}alpha_lr", "agent.temperature_learning_rate", None, optional(number))
    if t.read(f"{c}target_entropy_coef", 1.0, number) == 1:
        t.use(f"{c}target_entropy_coef", "agent.target_entropy", 1.0, lambda _: None)
    t.drop(f"{c}target_entropy_coef", "minus this times the number of actions: set agent.target_entropy")
    t.row("(least temperature in the actor's loss)", 0.01, "default", "rlcore has none")
    bounds = f"{params}network.log_std_bounds"
    note = "a tanh brings it there in rl_games; rlcore cuts off"
    t.use(bounds, "agent.log_std_range", [-5, 2], lambda pair: [number(x) for x in pair], note, changed=True)


def _network(t: Translation, params: str) -> None:
    n = f"{params}network."
    t.drop(f"{params}model.name", "rlcore squashes a Gaussian", off=("soft_actor_critic",))
    t.drop(f"{n}name", "rlcore builds multi-layer perceptrons", off=("soft_actor_critic",))
    t.drop(f"{n}separate", "actor and critics share nothing", off=(True,))
    for net in ("actor", "critic"):
        t.use(f"{n}mlp.units", f"agent.{net}.hidden_dims", [256, 256], widths)
        t.use(f"{n}mlp.activation", f"agent.{net}.activation", "relu", activation)
    initial_weights(t, n, ("actor", "critic"))
    for name in ("d2rl", "norm_only_first_layer"):
        t.drop(f"{n}mlp.{name}", "rlcore builds plain layers", off=(False,))
    t.drop(f"{n}mlp.regularizer", "rlcore has no regularizer", off=({"name": "None"}, {"name": None}, None))
    t.drop(f"{n}normalization", "rlcore has none", off=(None, "None"))
    t.same(f"{n}space", "the action space decides")
