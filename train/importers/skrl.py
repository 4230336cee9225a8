"""skrl's runner YAML, from before and after version 2.0."""

from __future__ import annotations

import math

from rlcore.train.importers.skrl_models import STACK, layers_of, observed, output_of
from rlcore.train.importers.translation import BY_GROUP, Status, Translation
from rlcore.train.importers.values import empty, flag, number, one_of, pair, positive, whole

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
    _networks(t)
    normalized(t)
    value = "agent.value_preprocessor"
    note = "in skrl the statistics learn from values too" if not empty(t.get(value)) else ""
    t.use(value, "agent.normalize_value", None, SCALER, note)
    t.drop(f"{value}_kwargs", "rlcore's value normalizer has no options", off=(None, {}))
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
    if t.use(f"{a}entropy_loss_scale", "agent.entropy_coef", 0.0, number) > 0:
        _entropy_reduction(t)
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


def _entropy_reduction(t: Translation) -> None:
    """Say what the entropy of several actions is: their mean in skrl before 2.1, their sum since then."""
    if str(t.get("models.policy.class", "GaussianMixin")) != "GaussianMixin":
        return  # the other distributions have one entropy in all versions
    version, note = t.version, "as --skrl-version says"
    if version is None:
        names = _names_of_version_1(t)
        version = (1,) if names else (2, 1)
        what = f"{names[0]} is a name of skrl 1.x" if names else "nothing is named as in skrl 1.x"
        note = f"{what}; before 2.1 the mean, since then the sum: --skrl-version says which"
    kind = "mean" if version < (2, 1) else "sum"
    t.builtin("entropy of several actions", f"their {kind}", "agent.entropy_reduction", kind, note)


def _names_of_version_1(t: Translation) -> list[str]:
    """Keys that skrl has only kept for old files since 2.0; none if others could not have been there before."""
    if t.has("agent.gae_lambda") or t.has("agent.observation_preprocessor"):
        return []
    names = ("lambda", "clip_predicted_values", "state_preprocessor", "shared_state_preprocessor")
    old = (*(f"agent.{name}" for name in names), *(f"models.policy.{name}" for name in STACK))
    return [key for key in old if t.has(key)]


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
    if now:
        t.normalize_one(f"{a}state_preprocessor", not empty(t.get(f"{a}state_preprocessor")))
    for other in ("state_preprocessor", "shared_state_preprocessor"):
        same = empty(t.get(a + other)) != on
        t.drop(f"{a}{other}_kwargs", "see the preprocessor of observations", off=(None, {}))
        if same:
            t.same(a + other, BY_GROUP)
        t.drop(a + other, BY_GROUP)


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
    if not shared or all(t.get(f"models.value.{k}") == t.get(f"models.policy.{k}") for k in ("network", *STACK)):
        reads = layers_of(t, "value", "critic")
    else:
        for name in ("network", *STACK):
            t.drop(f"models.value.{name}", "with separate: false skrl builds the policy's network for both")
        t.set("agent.critic", dict(t.config["agent"]["actor"]), "models.policy.network", None)
        reads = inputs
    observed(t, inputs, reads, "the critic")
    for role in ("policy", "value"):
        output_of(t, role)
    t.drop("models.value.class", "rlcore's critic predicts one value", off=("DeterministicMixin",))
    t.drop("models.value.clip_actions", "the critic has no actions", off=(False,))


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
    t.std_bounds(key, math.exp(min(low, 700)) if clipped else 0.0, math.exp(min(high, 700)) if clipped else math.inf)
    t.row(f"{p}max_log_std", high, status, "see min_log_std")
