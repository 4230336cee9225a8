"""skrl's runner YAML, from before and after version 2.0."""

from __future__ import annotations

import ast
import math
from typing import Any

from rlcore.config import ConfigError
from rlcore.train.translation import (
    NO_CNN,
    UNKNOWN,
    Status,
    Translation,
    activation,
    empty,
    flag,
    number,
    one_of,
    pair,
    positive,
    whole,
    widths,
)

BOOKKEEPING = {
    "memory": "rlcore's rollout holds exactly num_steps",
    "agent.experiment.directory": "run folders are named by task",
    "agent.experiment.experiment_name": "run folders are named by time",
    "agent.experiment.write_interval": "see log_interval",
    "agent.experiment.store_separately": "rlcore's checkpoints are one file",
    "agent.experiment.wandb": "concerns a logger",
    "agent.experiment.wandb_kwargs": "concerns a logger",
    "trainer.class": "rlcore has one training loop",
    "trainer.environment_info": "rlcore logs what the env reports",
    "trainer.headless": "an option of the simulator",
    "trainer.disable_progressbar": "rlcore prints in its own way",
    "trainer.close_environment_at_exit": "rlcore always does",
}
SCALER = one_of({None: False, "None": False, "null": False, "": False, "RunningStandardScaler": True})
OPERATIONS = ("permute", "concatenate", "one_hot_encoding")


def convert(t: Translation) -> None:
    """Translate PPO.

    Raises:
        ConfigError: another algorithm, or a value that rlcore cannot use.
    """
    algorithm = str(t.get("agent.class", "PPO"))
    if algorithm.upper() != "PPO":
        raise t.refuse("agent.class", algorithm)
    t.same("agent.class")
    if t.get("seed") is not None:
        t.use("seed", "seed", None, whole)
    t.drop("seed", "no seed; rlcore keeps its default")
    _algorithm(t)
    _schedule(t)
    normalized(t)
    value = "agent.value_preprocessor"
    note = "in skrl the statistics learn from values too" if not empty(t.get(value)) else ""
    t.use(value, "agent.normalize_value", None, SCALER, note)
    t.drop(f"{value}_kwargs", "rlcore's value normalizer has no options", off=(None, {}))
    _networks(t)
    _std(t)
    t.builtin("gradient norms", "one", "agent.grad_clip", "joint")
    t.builtin("advantages", "whole rollout", "agent.normalize_advantage", "batch")
    t.initial_weights()
    for name in ("random_timesteps", "learning_starts"):
        t.same(f"agent.{name}", "has no effect on PPO in skrl either")
    t.drop_all(BOOKKEEPING)


def _algorithm(t: Translation) -> None:
    a = "agent."
    rollouts = t.use(f"{a}rollouts", "agent.num_steps", 16, positive)
    t.use(f"{a}learning_epochs", "agent.num_epochs", 8, whole)
    t.minibatches(f"{a}mini_batches", t.read(f"{a}mini_batches", 2, number))
    note = "skrl counts env steps, rlcore rollouts"
    t.use("trainer.timesteps", "num_iterations", 100_000, lambda steps: math.ceil(number(steps) / rollouts), note)
    interval = f"{a}experiment.checkpoint_interval"
    if t.has(interval) and t.get(interval) != "auto":
        t.use(interval, "save_interval", None, lambda steps: max(0, math.ceil(number(steps) / rollouts)), note)
    t.drop(interval, "see save_interval")
    t.use(f"{a}discount_factor", "agent.gamma", 0.99, number)
    old = t.has(f"{a}lambda") and not t.has(f"{a}gae_lambda")
    t.use(f"{a}lambda" if old else f"{a}gae_lambda", "agent.gae_lambda", 0.95, number)
    t.drop(f"{a}lambda", "gae_lambda prevails")
    ratio = t.use(f"{a}ratio_clip", "agent.clip_range", 0.2, number)
    limit = t.read(f"{a}value_clip", 0.2, number)
    clipped = limit > 0 and t.read(f"{a}clip_predicted_values", True, flag)
    note = "skrl takes the clipped error, rlcore the larger of clipped and unclipped" if clipped else ""
    if clipped and limit != ratio:
        note += f"; the range is clip_range ({ratio:g}), not {limit:g}"
    t.use(f"{a}value_clip", "agent.clip_value_loss", 0.2, lambda _: clipped, note, changed=clipped)
    t.same(f"{a}clip_predicted_values", "now value_clip > 0")
    t.use(f"{a}value_loss_scale", "agent.value_coef", 2.5, number)
    t.use(f"{a}entropy_loss_scale", "agent.entropy_coef", 0.0, number)
    free = "0 or less: no limit"
    t.use(f"{a}grad_norm_clip", "agent.max_grad_norm", 0.5, lambda v: number(v) if number(v) > 0 else math.inf, free)
    stop = t.read(f"{a}kl_threshold", 0.0, number)
    note = "ends a pass in skrl, the update in rlcore; estimated there, exact here" if stop > 0 else ""
    t.use(f"{a}kl_threshold", "agent.target_kl", 0.0, lambda _: stop if stop > 0 else None, note, changed=stop > 0)
    bootstrap = t.get(f"{a}time_limit_bootstrap", False)
    note = "skrl takes V of the observation after the reset, rlcore V of the last one before it"
    if not bootstrap:
        note = "skrl lets advantages run on into the next episode; rlcore ends them and adds V of the last observation"
    t.use(f"{a}time_limit_bootstrap", "agent.timeout_bootstrap", False, lambda _: "final_obs", note, changed=True)
    rewards_and_precision(t)


def rewards_and_precision(t: Translation) -> None:
    """Translate what all of skrl's algorithms do to rewards and to products of matrices."""
    a = "agent."
    if t.get(f"{a}rewards_shaper_scale") is not None:
        t.use(f"{a}rewards_shaper_scale", "agent.reward_scale", None, number)
    t.drop(f"{a}rewards_shaper_scale", "none", off=(None,))
    t.drop(f"{a}rewards_shaper", "code is not converted; see agent.reward_scale", off=(None,))
    if t.get(f"{a}mixed_precision", False):
        note = "fp16 in skrl; bf16 here, in hidden layers only"
        t.use(f"{a}mixed_precision", "agent.precision", False, lambda _: "bf16", note, changed=True)
    t.same(f"{a}mixed_precision")


def _schedule(t: Translation) -> None:
    rates = t.read("agent.learning_rate", 1e-3, lambda v: pair(v) if isinstance(v, list) else (number(v), number(v)))
    uneven = "rlcore has one rate, the policy's" if rates[0] != rates[1] else ""
    t.use("agent.learning_rate", "agent.learning_rate", 1e-3, lambda _: rates[0], uneven, changed=bool(uneven))
    key = "agent.learning_rate_scheduler"
    kind, options = t.get(key), f"{key}_kwargs"
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind not in ("KLAdaptiveLR", "KLAdaptiveRL"):  # the second is the name before 1.4
        if empty(kind):
            t.use(key, "agent.lr_schedule", None, lambda _: "constant")
            t.drop(options, "there is no schedule", off=(None, {}))
        else:
            note = "unknown to rlcore; the learning rate stays as it is"
            t.set("agent.lr_schedule", "constant", key, kind)
            t.row(key, kind, "dropped", note, "agent.lr_schedule = constant")
            t.drop(options, note)
        return
    note = "skrl estimates KL from samples and adapts once a pass; rlcore computes it and adapts at every minibatch"
    t.use(key, "agent.lr_schedule", None, lambda _: "adaptive", note, changed=True)
    if isinstance(t.get(options), list):
        t.drop(options, "one mapping is expected")
    options += "."
    t.use(f"{options}kl_threshold", "agent.desired_kl", 0.008, number)
    t.use(f"{options}min_lr", "agent.lr_min", 1e-6, number)
    t.use(f"{options}max_lr", "agent.lr_max", 1e-2, number)
    t.use(f"{options}kl_factor", "agent.kl_band", 2, lambda factor: [1 / number(factor), number(factor)])
    t.use(f"{options}lr_factor", "agent.kl_factor", 1.5, number)
    no_options(t, options)


def no_options(t: Translation, prefix: str) -> None:
    """Say of a group of options that it is empty, if so; ``prefix`` ends with a dot."""
    group = prefix.rstrip(".")
    if not t.section(group):
        t.drop(group, "none", off=(None, {}))


def normalized(t: Translation, remark: str = "") -> None:
    """Translate the preprocessors of observations.

    Before 2.0 ``state_preprocessor`` meant what actor and critic observe; now it is the critic's alone.

    Args:
        t: to translate.
        remark: what else differs from rlcore.
    """
    a = "agent."
    now = t.has(f"{a}observation_preprocessor")
    key = f"{a}observation_preprocessor" if now or not t.has(f"{a}state_preprocessor") else f"{a}state_preprocessor"
    note = "1e-8 is added to the deviation in skrl, 1e-2 in rlcore" + (f"; {remark}" if remark else "")
    on = not empty(t.get(key))
    t.use(key, "agent.normalize_obs", None, SCALER, note if on else "", changed=on)
    if on:
        _scaler_options(t, key, "agent.clip_obs")
    else:
        t.drop(f"{key}_kwargs", "there is no such preprocessor", off=(None, {}))
    for other in ("state_preprocessor", "shared_state_preprocessor"):
        same = empty(t.get(a + other)) != on
        t.drop(f"{a}{other}_kwargs", "see the preprocessor of observations", off=(None, {}))
        if same:
            t.same(a + other, "rlcore normalizes for both networks or neither")
        t.drop(a + other, "rlcore normalizes for both networks or neither")


def _scaler_options(t: Translation, key: str, limit: str) -> None:
    options = f"{key}_kwargs."
    if t.has(f"{options}clip_threshold"):
        t.use(f"{options}clip_threshold", limit, 5.0, number)
    else:
        t.builtin("limit of normalized observations", 5.0, limit, 5.0)
    t.drop(f"{options}epsilon", "rlcore adds 1e-2 to the deviation")
    t.same(f"{options}size", "by the observations")
    t.same(f"{options}device")
    no_options(t, options)


def _networks(t: Translation) -> None:
    note = "false: one trunk for actor and critic"
    shared = t.use("models.separate", "agent.share_trunk", True, lambda separate: not flag(separate), note)
    inputs = layers_of(t, "policy", "actor")
    if not shared or t.get("models.value.network") == t.get("models.policy.network"):
        reads = layers_of(t, "value", "critic")
    else:
        t.drop("models.value.network", "with separate: false skrl builds the policy's network for both")
        t.set("agent.critic", dict(t.config["agent"]["actor"]), "models.policy.network", None)
        reads = inputs
    observed(t, inputs, reads, "the critic")
    for role, output in (("policy", "ACTIONS"), ("value", "ONE")):
        t.drop(f"models.{role}.output", "rlcore's output layers are linear", off=(output,))
    t.drop("models.value.class", "rlcore's critic predicts one value", off=("DeterministicMixin",))
    t.drop("models.value.clip_actions", "the critic has no actions", off=(False,))


def observed(t: Translation, actor: set[str], critic: set[str], who: str) -> None:
    """Translate which of OBSERVATIONS and STATES actor and critic read; ``who``: the critic in words."""
    # Before 2.0 both words meant the observations; since then STATES are the critic's own.
    own = "STATES" in critic and "STATES" not in actor
    t.builtin("observations of the actor", sorted(actor) or ["OBSERVATIONS"], "agent.actor_obs", ["policy"])
    ours = ["critic"] if own else ["policy"]
    t.builtin(f"observations of {who}", sorted(critic) or ["OBSERVATIONS"], "agent.critic_obs", ours)


def layers_of(t: Translation, role: str, net: str) -> set[str]:
    """Translate a list of layer blocks to hidden layers; returns which of OBSERVATIONS and STATES it reads."""
    key = f"models.{role}.network"
    blocks = t.get(key)
    if not isinstance(blocks, list) or not blocks or not all(isinstance(block, dict) for block in blocks):
        raise ConfigError(
            f"skrl: {key}: {blocks!r} cannot be converted: "
            "give a list of blocks with name, input, layers and activations"
        )
    dims: list[int] = []
    functions: list[Any] = []
    notes: list[str] = []
    reads: set[str] = set()
    roots = 0
    for block in blocks:
        found, root, remark = _input(str(block.get("input", "")))
        reads |= found
        roots += root
        notes += remark
        if block.get("type"):
            notes.append(f"skrl ignores type: {block['type']} and builds linear layers, as here")
        linear, convolution = t.read(key, None, lambda _: _layers(block.get("layers", [])))  # noqa: B023 - used at once
        notes += [NO_CNN] if convolution else []
        given = block.get("activations") or []
        functions += given if isinstance(given, list) else [given]
        if linear and not given:
            notes.append(f"block '{block.get('name')}' has no activation in skrl")
        if roots <= 1 or not root:  # of blocks side by side the first counts
            dims += linear
    if roots > 1:
        notes.append("blocks side by side become one network on the joined observations")
    kinds = list(dict.fromkeys(name for name in functions if name is not None))
    kind = kinds[-1 if NO_CNN in notes else 0] if kinds else "elu"  # convolutions come first
    if len(kinds) > 1:
        notes.append(f"one activation for all layers: {kind}")
    note = "; ".join(dict.fromkeys(notes))
    t.use(key, f"agent.{net}.hidden_dims", [], lambda _: dims, note, changed=bool(notes))
    t.use(key, f"agent.{net}.activation", [], lambda _: activation(kind), changed=len(kinds) > 1)
    for i, block in enumerate(blocks):
        for name in sorted(set(block) - {"name", "input", "layers", "activations", "type", "num_layers"}):
            t.row(f"{key}.{i}.{name}", block[name], "dropped", UNKNOWN)
    return reads


def _layers(layers: Any) -> tuple[list[int], bool]:
    """Widths of the linear layers of a block, and whether it has others."""
    linear: list[int] = []
    convolution = False
    for layer in layers if isinstance(layers, list) else [layers]:
        if isinstance(layer, dict) and "linear" in layer:
            options = layer["linear"]
            if isinstance(options, dict):
                options = options.get("out_features", options.get("features"))
            linear += widths(options)[:1]
        elif isinstance(layer, (int, float)):
            linear.append(whole(layer))
        elif layer != "flatten":
            convolution = True
    return linear, convolution


def _input(expression: str) -> tuple[set[str], bool, list[str]]:
    """Read an input expression without evaluating it.

    Returns:
        Which of OBSERVATIONS and STATES occur, whether any does, and remarks.
    """
    try:
        tree = ast.parse(expression, mode="eval")
    except (SyntaxError, ValueError):
        return set(), False, [f"input {expression!r} is not understood"]
    reads, remarks = set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id.removesuffix("_ACTIONS") in ("OBSERVATIONS", "STATES"):
            reads.add(node.id.removesuffix("_ACTIONS"))  # STATES_ACTIONS is of critics, before 2.0
        elif isinstance(node, ast.Subscript):
            remarks.append(f"{ast.unparse(node)}: rlcore reads the whole group")
        elif isinstance(node, ast.BinOp):
            remarks.append(f"{ast.unparse(node)}: rlcore does not combine blocks")
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name == "one_hot_encoding":
                remarks.append("one_hot_encoding: the env's adapter encodes observations")
            elif name not in OPERATIONS:
                remarks.append(f"{name}(): not understood")
    return reads, bool(reads), remarks


def _std(t: Translation) -> None:
    p = "models.policy."
    kind = t.get(f"{p}class", "GaussianMixin")
    known = ("GaussianMixin", "CategoricalMixin")
    remark = "rlcore has a Gaussian for continuous actions and a categorical distribution for one choice"
    t.drop(f"{p}class", remark, off=known)
    t.same(f"{p}unnormalized_log_prob", "the outputs are logits")
    if "Categorical" in str(kind):
        return
    t.builtin("actions and the env's bounds", "not scaled", "agent.action_scale", "none")
    if t.get(f"{p}clip_actions", False):
        note = "skrl limits actions to the action space; so does rlcore where its bounds are finite"
        t.same(f"{p}clip_actions", note)
    t.drop(f"{p}clip_actions", "", off=(False,))
    t.drop(f"{p}clip_mean_actions", "rlcore does not limit action means", off=(False,))
    t.use(f"{p}initial_log_std", "agent.init_std", 0.0, lambda v: math.exp(number(v)), "skrl gives the logarithm")
    t.builtin("what is learned of the deviation", "its logarithm", "agent.std_type", "log")
    t.drop(f"{p}fixed_log_std", "rlcore always learns the standard deviation", off=(False,))
    t.drop(f"{p}reduction", "rlcore sums log-probabilities over actions", off=("sum",))
    clipped = t.read(f"{p}clip_log_std", True, flag)
    low, high = t.read(f"{p}min_log_std", -20, number), t.read(f"{p}max_log_std", 2, number)
    t.same(f"{p}clip_log_std")
    status: Status = "changed" if t.has(f"{p}max_log_std") else "default"
    key = f"{p}min_log_std" if t.has(f"{p}min_log_std") else "(range of the standard deviation)"
    t.std_bounds(key, math.exp(low) if clipped else 0.0, math.exp(min(high, 700)) if clipped else math.inf)
    t.row(f"{p}max_log_std", high, status, "see min_log_std")
