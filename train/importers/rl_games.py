"""rl_games' YAML, with Isaac Lab's ``params.env`` section."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from rlcore.train.importers.convolutions import FEATURES_ALONE, of_rl_games
from rlcore.train.importers.translation import BY_GROUP, Status, Translation
from rlcore.train.importers.values import (
    activation,
    empty,
    flag,
    names,
    number,
    one_of,
    optional,
    positive,
    whole,
    widths,
)

BOOKKEEPING = {
    "name": "run folders are named by task",
    "full_experiment_name": "run folders are named by task",
    "train_dir": "see runs_dir",
    "env_name": "the task decides",
    "env_config": "options of the env are given to the task",
    "device": "rlcore chooses; --device",
    "device_name": "rlcore chooses; --device",
    "multi_gpu": "decided by how the run is launched",
    "print_stats": "rlcore prints in its own way",
    "use_diagnostics": "rlcore logs in its own way",
    "games_to_track": "rlcore averages over all episodes that ended",
    "score_to_win": "rlcore stops at num_iterations",
    "save_best_after": "rlcore chooses the best checkpoint by evaluation",
    "max_episodes": "no setting of rl_games, which counts iterations (max_epochs)",
    "player": "see `rlcore play`",
    "seq_len": "no setting of rl_games (seq_length), and matters only to recurrent networks",
    "weight_decay": "rlcore uses Adam without weight decay",
    "torch_compile": "agent.mode decides; by default updates run as recorded graphs",
    "use_action_masks": "name the observation group of the mask in agent.action_mask",
    "population_based_training": "rlcore trains one policy",
    "self_play": "rlcore trains one policy",
    "use_smooth_clamp": "rlcore clips probability ratios with a sharp corner",
    "normalize_rms_advantage": "rlcore normalizes advantages by those of the same rollout",
    "schedule_entropy": "rlcore keeps the entropy coefficient",
    "freeze_critic": "rlcore always trains the critic",
    "use_experimental_cv": "rlcore's actor predicts no values beside the critic's",
}
OFF = {
    "weight_decay": (0.0,),
    "multi_gpu": (False,),
    "use_action_masks": (False,),
    "population_based_training": (False,),
    "self_play": (False,),
    "use_smooth_clamp": (False,),
    "normalize_rms_advantage": (False,),
    "schedule_entropy": (False,),
    "freeze_critic": (False,),
}
REQUIRED = "rl_games has no default; this is rlcore's"


def convert(t: Translation) -> None:
    """Translate PPO, which rl_games calls a2c_continuous and a2c_discrete.

    Raises:
        ConfigError: another algorithm, or a value that rlcore cannot use.
    """
    params, config = places(t)
    root = params.removesuffix("params.")
    algorithm = t.get(f"{params}algo.name", "a2c_continuous")
    if algorithm not in ("a2c_continuous", "a2c_discrete"):
        raise t.refuse(f"{params}algo.name", algorithm)
    t.same(f"{params}algo.name")
    seed = t.read(f"{params}seed", None, optional(whole))
    if seed is not None and seed < 0:
        t.row(f"{params}seed", seed, "changed", "stands for a random seed; rlcore keeps its default")
    elif seed is not None:
        t.use(f"{params}seed", "seed", None, whole)
    critic = f"{config}central_value_config."
    asymmetric = isinstance(t.get(critic.rstrip(".")), dict)
    _network(t, params, critic if asymmetric else None, config)
    observations(t, params, config, asymmetric)
    _algorithm(t, config)
    _rewards(t, config)
    _actions(t, params, config)
    _bounds(t, config)
    if asymmetric:
        _critic(t, critic)
    else:
        t.drop(critic.rstrip("."), "no mapping, so that rl_games uses the actor's network", off=(None,))
    t.builtin("gradient norms", "one", "agent.grad_clip", "joint")
    t.drop(f"{params}load_checkpoint", "see `rlcore train --resume`", off=(False,))
    t.drop(f"{params}load_path", "see `rlcore train --resume`", off=("", None))
    t.drop(f"{params}player", "see `rlcore play`")
    t.drop(f"{root}pbt", "rlcore trains one policy")
    for name in ("seq_length", "bptt_length", "zero_rnn_on_done"):
        t.same(config + name, "matters only to recurrent networks")
    t.drop_all(BOOKKEEPING, config, OFF)


def places(t: Translation) -> tuple[str, str]:
    """Where the parameters and, among them, the algorithm's settings are; each ends with a dot or is empty."""
    # Tutorials put all of it under one more key, and the algorithm's settings beside params, as "train".
    root = "rl_games_config." if t.has("rl_games_config") else ""
    params = f"{root}params." if t.has(f"{root}params") else root
    candidates = (f"{params}config", f"{params}train", f"{root}train")
    return params, next((f"{place}." for place in candidates if isinstance(t.get(place), dict)), params)


def _algorithm(t: Translation, c: str) -> None:
    horizon = _required(t, f"{c}horizon_length", "agent.num_steps", 24, positive)
    actors = t.get(f"{c}num_actors")
    if type(actors) is int and actors > 0:
        t.prefer_num_envs(actors)
    if actors is not None and actors not in (-1, t.num_envs):
        note = "the run's num_envs counts, as in Isaac Lab"
        t.row(f"{c}num_actors", actors, "changed", note, f"num_envs = {t.num_envs}")
    t.same(f"{c}num_actors")
    size = t.get(f"{c}minibatch_size")
    key = f"{c}minibatch_size" if size is not None else f"{c}minibatch_size_per_env"
    samples = t.read(key, 0, positive) * (1 if size is not None else t.num_envs) if t.has(key) else 0
    note = "rl_games takes them in order, rlcore shuffles" if samples else REQUIRED
    length = _sequences(t, c, horizon)
    t.minibatches(key, horizon * t.num_envs / samples if samples else 4, note, length)
    t.drop(f"{c}minibatch_size_per_env", "minibatch_size prevails")
    _required(t, f"{c}mini_epochs", "agent.num_epochs", 5, whole)
    _length(t, c, horizon)
    if t.has(f"{c}save_frequency"):
        t.use(f"{c}save_frequency", "save_interval", 0, whole)
    _required(t, f"{c}gamma", "agent.gamma", 0.99, number)
    t.use(f"{c}tau", "agent.gae_lambda", 0.95, number, "the name of GAE's lambda in rl_games")
    _required(t, f"{c}learning_rate", "agent.learning_rate", 1e-3, number)
    _schedule(t, c)
    _required(t, f"{c}e_clip", "agent.clip_range", 0.2, number)
    _required(t, f"{c}clip_value", "agent.clip_value_loss", True, flag)
    halved = "rl_games halves the squared error, rlcore does not"
    t.use(f"{c}critic_coef", "agent.value_coef", 2.0, lambda coef: number(coef) / 2, halved)
    _required(t, f"{c}entropy_coef", "agent.entropy_coef", 0.0, number)
    scopes = {True: "batch", False: "none"}
    t.use(f"{c}normalize_advantage", "agent.normalize_advantage", True, one_of(scopes))
    truncate = t.read(f"{c}truncate_grads", False, flag)
    t.same(f"{c}truncate_grads")
    if truncate:
        _required(t, f"{c}grad_norm", "agent.max_grad_norm", 1.0, number)
    else:
        inert = "rl_games does not limit gradients unless truncate_grads is true"
        t.use(f"{c}grad_norm", "agent.max_grad_norm", None, lambda _: math.inf, inert)
    t.drop(f"{c}ppo", "rlcore always clips probability ratios", off=(True,))
    if t.get(f"{c}mixed_precision", False):
        note = "fp16 in rl_games; bf16 here, in hidden layers only"
        t.use(f"{c}mixed_precision", "agent.precision", False, lambda _: "bf16", note, changed=True)
    t.same(f"{c}mixed_precision")


def _sequences(t: Translation, c: str, horizon: int) -> int:
    """Steps of a rollout that stay together: 1 without recurrent networks."""
    if not any("rnn" in t.config["agent"][net] for net in ("actor", "critic")):
        return 1
    t.drop(f"{c}zero_rnn_on_done", "rlcore always clears the state where an episode ends", off=(True,))
    length: int = t.use(f"{c}seq_length", "agent.sequence_length", 4, positive)
    return length if horizon % length == 0 else 1  # which rlcore then refuses


def _length(t: Translation, c: str, horizon: int) -> None:
    frames = next((key for key in (f"{c}max_frames", f"{c}max_steps") if t.read(key, -1, whole) > 0), None)
    if t.read(f"{c}max_epochs", -1, whole) > 0:
        t.use(f"{c}max_epochs", "num_iterations", None, whole)
    elif frames is not None:
        t.use(frames, "num_iterations", None, lambda value: math.ceil(number(value) / (t.num_envs * horizon)))
    t.drop(f"{c}max_epochs", "no limit; rlcore's num_iterations holds")
    for name in ("max_frames", "max_steps"):
        t.drop(c + name, "max_epochs prevails", off=(-1,))


def _schedule(t: Translation, c: str) -> None:
    key = f"{c}lr_schedule" if not t.has(f"{c}schedule") or t.has(f"{c}lr_schedule") else f"{c}schedule"
    value = t.get(key)
    known = value if value in ("adaptive", "linear") else None  # rl_games takes anything else as constant
    linear = "rl_games ends at 1e-6, rlcore at 0" if known == "linear" else ""
    schedule = t.use(key, "agent.lr_schedule", None, lambda _: known or "constant", linear, changed=bool(linear))
    kind = t.get(f"{c}schedule_type", "legacy")
    if schedule != "adaptive":
        t.same(f"{c}kl_threshold", "matters only to the adaptive schedule")
        t.same(f"{c}schedule_type", "matters only to the adaptive schedule")
        return
    previous = "rl_games compares with the policy of the previous pass, rlcore with that of the rollout"
    t.use(f"{c}kl_threshold", "agent.desired_kl", 0.008, number, previous, changed=True)
    by_minibatch = kind in ("legacy", "per_minibatch")
    note = "by minibatch, as here" if by_minibatch else "once a pass over the rollout; rlcore adapts at every minibatch"
    status: Status = "default" if not t.has(f"{c}schedule_type") else "kept" if by_minibatch else "changed"
    t.row(f"{c}schedule_type", kind, status, note)
    t.use(f"{c}min_lr", "agent.lr_min", 1e-6, number)
    t.use(f"{c}max_lr", "agent.lr_max", 1e-2, number)


def _rewards(t: Translation, c: str) -> None:
    shaper = f"{c}reward_shaper."
    t.use(f"{shaper}scale_value", "agent.reward_scale", 1.0, number)
    t.drop(f"{shaper}shift_value", "rlcore does not shift rewards", off=(0.0,))
    t.drop(f"{shaper}log_val", "rlcore does not take logarithms of rewards", off=(False,))
    low, high = t.read(f"{shaper}min_val", -math.inf, number), t.read(f"{shaper}max_val", math.inf, number)
    limit = max(abs(low), abs(high))
    for name in ("min_val", "max_val"):
        if t.has(shaper + name) and math.isfinite(limit):
            uneven = low != -high
            note = f"rlcore's limits are symmetric; the wider of {low:g} and {high:g}" if uneven else ""
            t.use(shaper + name, "agent.reward_clip", None, lambda _: limit, note, changed=uneven)
        t.drop(shaper + name, "one-sided limits have no equal here", off=(math.inf, -math.inf))
    note = "the statistics learn from returns; in rl_games also from values"
    t.use(f"{c}normalize_value", "agent.normalize_value", False, flag, note if t.get(f"{c}normalize_value") else "")
    if t.get(f"{c}value_bootstrap", True):
        note = "rl_games takes V of the observation before the time-out ('value'), rlcore V of the true last one"
        t.use(f"{c}value_bootstrap", "agent.timeout_bootstrap", True, lambda _: "final_obs", note, changed=True)
    else:
        t.use(f"{c}value_bootstrap", "agent.timeout_bootstrap", True, lambda _: "none")


def _actions(t: Translation, params: str, c: str) -> None:
    """Two keys of the same name: the agent's clamps to +-1 and then stretches to +- the env's."""
    squeeze, limit = t.read(f"{c}clip_actions", True, flag), t.read(f"{params}env.clip_actions", math.inf, number)
    key = f"{params}env.clip_actions"
    if not squeeze:
        note = "without the clamp to +-1, because config.clip_actions is false"
        t.use(key, "agent.clip_actions", math.inf, lambda _: limit if math.isfinite(limit) else None, note)
        t.builtin("actions beyond the env's bounds", "as they are", "agent.action_scale", "none")
        t.same(f"{c}clip_actions")
        return
    t.use(f"{c}clip_actions", "agent.clip_actions", True, lambda _: 1.0)
    t.builtin("clipped actions", "scaled to the env's bounds", "agent.action_scale", "bounds")
    if t.has(key) and limit != 1:
        t.row(
            key,
            limit,
            "changed",
            f"rl_games then multiplies actions by {limit:g}; rlcore does with --env.clip_actions {limit:g}",
        )
    t.same(key)


def _bounds(t: Translation, c: str) -> None:
    kind = t.get(f"{c}bound_loss_type", "bound")
    if kind != "bound":
        t.drop(f"{c}bound_loss_type", "rlcore penalizes action means beyond a limit, not all of them")
        t.drop(f"{c}bounds_loss_coef", "see bound_loss_type")
        return
    t.same(f"{c}bound_loss_type")
    t.use(f"{c}bounds_loss_coef", "agent.bounds_loss_coef", None, lambda v: 0.0 if empty(v) else number(v))
    t.builtin("where the bounds loss begins", 1.1, "agent.bounds_loss_limit", 1.1)


def _network(t: Translation, params: str, central: str | None, config: str) -> None:
    n, normalized = f"{params}network.", f"{config}normalize_input"
    t.drop(f"{n}name", "rlcore builds multi-layer perceptrons", off=("actor_critic",))
    t.use(f"{n}mlp.units", "agent.actor.hidden_dims", [256, 128, 64], widths)
    t.use(f"{n}mlp.activation", "agent.actor.activation", "elu", activation)
    critic = f"{central}network." if central else n
    t.use(f"{critic}mlp.units", "agent.critic.hidden_dims", t.get(f"{n}mlp.units", [256, 128, 64]), widths)
    t.use(f"{critic}mlp.activation", "agent.critic.activation", t.get(f"{n}mlp.activation", "elu"), activation)
    separate = t.read(f"{n}separate", False, flag)
    memory = not central and not separate and bool(t.section(f"{n}rnn"))
    note = "the critic has central_value_config's network" if central else "false: one trunk for actor and critic"
    note = "a recurrent trunk cannot be shared in rlcore; actor and critic get one each" if memory else note
    ours = not (central or separate or memory)
    t.use(f"{n}separate", "agent.share_trunk", False, lambda _: ours, note, changed=memory)
    if central:
        _layers(t, n, ("actor",), normalized)
        _layers(t, critic, ("critic",), normalized)
    else:
        _layers(t, n, ("actor", "critic"), normalized)
    model = str(t.get(f"{params}model.name", "continuous_a2c_logstd"))
    known = model in ("continuous_a2c_logstd", "continuous_a2c", "discrete_a2c")
    t.drop(f"{params}model.name", "rlcore: Gaussian or categorical, by action space", off=(model,) if known else ())
    _std(t, f"{n}space.continuous.", model != "continuous_a2c")
    t.same(f"{n}space.discrete", "the action space decides")
    t.drop(f"{n}space.multi_discrete", "rlcore has no tuples of choices")


def _layers(t: Translation, n: str, nets: tuple[str, ...], normalized: str) -> None:
    for name in ("d2rl", "norm_only_first_layer"):
        t.drop(f"{n}mlp.{name}", "rlcore builds plain layers", off=(False,))
    initial_weights(t, n, nets)
    t.drop(f"{n}mlp.regularizer", "rlcore has no regularizer", off=({"name": "None"}, {"name": None}, None))
    t.drop(f"{n}normalization", FEATURES_ALONE, off=(None, "None"))
    t.drop(f"{n}value_activation", "rlcore has none", off=(None, "None"))
    t.same(f"{n}central_value", "the critic alone")
    if t.section(f"{n}rnn"):
        _memory(t, f"{n}rnn.", nets)
    else:
        t.drop(f"{n}rnn", "an empty recurrent layer", off=(None,))
    of_rl_games(t, f"{n}cnn", nets, normalized)


def initial_weights(t: Translation, n: str, nets: tuple[str, ...]) -> None:
    """Say how networks begin, ``n`` being where they are described."""
    kind = str(t.get(f"{n}mlp.initializer.name", "default"))
    ours = "orthogonal" if kind.startswith("orthogonal") else "default"
    note = "biases too; rl_games sets them to zero" if ours == "default" else "output layers have rlcore's gains"
    if kind != "default" and ours == "default":
        note = f"rlcore has no {kind}, PyTorch's default instead"
    for net in nets:
        t.set(f"agent.{net}.init", ours, f"{n}mlp.initializer.name", kind)
    status: Status = "changed" if t.has(f"{n}mlp.initializer.name") else "default"
    settings = ", ".join(f"agent.{net}.init = {ours}" for net in nets)
    t.row(f"{n}mlp.initializer.name", kind, status, note, settings)
    for name in t.section(f"{n}mlp.initializer"):
        t.drop(f"{n}mlp.initializer.{name}", "no scale in rlcore's initial weights")


def _memory(t: Translation, r: str, nets: tuple[str, ...]) -> None:
    before = t.read(f"{r}before_mlp", False, flag)
    for net in nets:
        t.recurrent(net, f"{r}name", f"{r}units", f"{r}layers", "before" if before else "after")
    t.same(f"{r}before_mlp")
    for name in ("concat_input", "concat_output"):
        t.drop(r + name, "in rlcore nothing passes by the recurrent layer", off=(False,))
    t.drop(f"{r}layer_norm", "rlcore has no layer normalization", off=(False,))
    t.drop(f"{r}zero_rnn_on_done", "rlcore always clears the state where an episode ends", off=(True,))


def _std(t: Translation, space: str, logarithm: bool) -> None:
    given = t.read(
        f"{space}sigma_init.val", 0 if logarithm else 1, lambda v: math.exp(number(v)) if logarithm else number(v)
    )
    constant = t.get(f"{space}sigma_init.name", "const_initializer") == "const_initializer"
    fixed = t.read(f"{space}fixed_sigma", True, flag)
    note = "the logarithm of the standard deviation in rl_games" if logarithm else ""
    if not (fixed and constant):
        note = "in rl_games the weights of the deviation's layer, whose output is then about 0"
    std = given if fixed and constant else 1.0
    t.use(f"{space}sigma_init.val", "agent.init_std", 0, lambda _: std, note, changed=not (fixed and constant))
    kind = "log" if logarithm else "scalar"
    t.builtin("what is learned of the deviation", kind, "agent.std_type", kind)
    t.drop(f"{space}sigma_init.name", "rlcore begins at a constant", off=("const_initializer",))
    state = "one deviation for all states, though learned" if fixed else "a deviation per state"
    t.use(f"{space}fixed_sigma", "agent.state_dependent_std", True, lambda _: not fixed, state)
    for name in ("mu_activation", "sigma_activation"):
        t.drop(space + name, "rlcore has none", off=("None", None))
    t.drop(f"{space}mu_init", "see agent.actor.init", off=({"name": "default"},))
    t.std_bounds("(range of the standard deviation)", 0.0, math.inf)


def observations(t: Translation, params: str, c: str, asymmetric: bool, remark: str = "") -> None:
    """Translate what the networks observe, and how it is normalized; ``remark``: what else differs there."""
    env = f"{params}env."
    ours = t.use(f"{env}obs_groups.obs", "agent.actor_obs", ["policy"], names)
    if asymmetric:
        if t.has(f"{env}obs_groups.states"):
            t.use(f"{env}obs_groups.states", "agent.critic_obs", None, names)
    else:
        t.builtin("observations of the critic", ours, "agent.critic_obs", ours, "the actor's: no central_value_config")
    t.drop(f"{env}obs_groups.states", "unused without central_value_config")
    t.drop(f"{env}concate_obs_groups", "rlcore always joins groups", off=(True,))
    t.drop(f"{env}clip_observations", "rlcore limits normalized observations, not raw ones", off=(math.inf,))
    normalize = f"{c}normalize_input"
    note = "1e-5 is added to the variance in rl_games, 1e-2 to the deviation in rlcore"
    note += f"; {remark}" if remark else ""
    on = t.read(normalize, False, flag)
    t.use(normalize, "agent.normalize_obs", False, flag, note if on else "", changed=on)
    if on:
        t.builtin("limit of normalized observations", 5.0, "agent.clip_obs", 5.0)


def _critic(t: Translation, v: str) -> None:
    """The separate critic of asymmetric training; rlcore trains it together with the actor."""
    t.drop(f"{v}network.name", "rlcore builds multi-layer perceptrons", off=("actor_critic",))
    normalize, ours = f"{v}normalize_input", t.config["agent"]["normalize_obs"]
    if not t.has(normalize) or not t.normalize_one(normalize, t.read(normalize, False, flag)):
        t.drop(normalize, BY_GROUP, off=(ours,))
    t.drop(f"{v}clip_value", "config.clip_value counts for it", off=(t.config["agent"]["clip_value_loss"],))
    for name in t.section(v.rstrip(".")):
        if name != "network":
            t.drop(v + name, "rlcore trains the critic with the actor: one optimizer, the same minibatches")


def _required(t: Translation, key: str, ours: str, default: Any, convert: Callable[[Any], Any]) -> Any:
    return t.use(key, ours, default, convert, "" if t.has(key) else REQUIRED)
