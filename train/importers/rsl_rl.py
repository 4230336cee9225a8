"""rsl_rl's runner configuration, as dict or dataclass, in the layouts before and after version 4."""

from __future__ import annotations

from rlcore.train.importers.convolutions import OWN_ENCODERS, of_rsl_rl
from rlcore.train.importers.translation import BY_GROUP, Status, Translation
from rlcore.train.importers.values import (
    activation,
    flag,
    names,
    number,
    one_of,
    optional,
    pair,
    positive,
    whole,
    widths,
)

BOOKKEEPING = {
    "class_name": "rlcore has one training loop",
    "device": "rlcore chooses; --device",
    "experiment_name": "run folders are named by task",
    "logger": "tensorboard unless --logger says another: wandb, mlflow",
    "neptune_project": "names a logger's project; --log-project",
    "wandb_project": "names a logger's project; --log-project",
    "wandb_tags": "names a logger's run",
    "upload_model": "concerns a logger",
    "store_code_state": "rlcore records versions and the configuration",
    "resume": "see `rlcore train --resume`",
    "load_run": "see `rlcore train --resume`",
    "load_checkpoint": "see `rlcore train --resume`",
    "policy_class_name": "stated by the policy's own class_name",
    "algorithm_class_name": "stated by the algorithm's own class_name",
    "init_at_random_ep_len": "env.randomize_start, which follows it where a task is registered with it",
    "check_for_nan": "rlcore always checks, and leaves out samples that are not finite",
    "torch_compile_mode": "agent.mode decides; by default updates run as recorded graphs",
    "multi_gpu": "decided by how the run is launched",
}
BEFORE_5 = ("stochastic", "init_noise_std", "noise_std_type", "state_dependent_std")
"""What a model of version 4 has in place of ``distribution_cfg``; Isaac Lab's classes keep these fields."""


def convert(t: Translation) -> None:
    """Translate PPO.

    Raises:
        ConfigError: another algorithm, or a value that rlcore cannot use.
    """
    algorithm = str(t.get("algorithm.class_name", "PPO"))
    if algorithm.replace(":", ".").rpartition(".")[2] != "PPO":
        raise t.refuse("algorithm.class_name", algorithm)
    t.same("algorithm.class_name")
    new = t.has("actor") or t.has("critic")
    _runner(t)
    _algorithm(t)
    if new:
        _models(t)
        t.drop("policy", "actor and critic prevail")
        t.same("empirical_normalization", "the models' obs_normalization prevails")
    else:
        _policy(t)
    t.builtin("gradient norms", "two" if new else "one", "agent.grad_clip", "separate" if new else "joint")
    t.builtin("actions and the env's bounds", "not scaled", "agent.action_scale", "none")
    t.builtin("limit of normalized observations", None, "agent.clip_obs", None)
    t.initial_weights()
    t.builtin(
        "time-outs", "V before the time-out", "agent.timeout_bootstrap", "final_obs",
        "rlcore takes V of the true last observation where the env offers it; 'value' does as rsl_rl", changed=True,
    )  # fmt: skip
    t.drop_all(BOOKKEEPING)


def _runner(t: Translation) -> None:
    prefix = "runner." if t.has("runner.num_steps_per_env") else ""  # legged_gym's layout
    t.use(f"{prefix}num_steps_per_env", "agent.num_steps", 24, positive)
    if t.has("seed"):
        t.use("seed", "seed", None, whole)
    if t.has(f"{prefix}max_iterations"):
        t.use(f"{prefix}max_iterations", "num_iterations", None, whole)
    t.use(f"{prefix}save_interval", "save_interval", 50, whole)
    t.use("clip_actions", "agent.clip_actions", None, optional(number))
    if t.get(f"{prefix}run_name"):
        t.use(f"{prefix}run_name", "name", None, str)
    t.same(f"{prefix}run_name")
    for name in ("use_mixed_precision", "algorithm.use_mixed_precision"):
        if t.has(name):
            t.use(name, "agent.precision", False, one_of({True: "bf16", False: "tf32"}))
    if prefix:
        t.drop_all(BOOKKEEPING, prefix)
    _groups(t)


def _groups(t: Translation) -> None:
    sets = t.section("obs_groups")
    for ours, candidates in (("actor_obs", ("actor", "policy")), ("critic_obs", ("critic",))):
        key = next((f"obs_groups.{name}" for name in candidates if sets.get(name)), None)
        if key is not None:
            t.use(key, f"agent.{ours}", None, names)
    for name in sets:
        t.drop(f"obs_groups.{name}", "rlcore has no such network")
    if not sets:
        t.row("obs_groups", {}, "default", "actor: 'policy', else 'actor'; critic: 'critic', else the actor's")


def _algorithm(t: Translation) -> None:
    a = "algorithm."
    t.use(f"{a}num_learning_epochs", "agent.num_epochs", 5, whole)
    # rsl_rl keeps the whole rollout of an env together.
    together = _recurrent(t, "actor") or _recurrent(t, "critic")
    length = t.config["agent"]["num_steps"] if together else 1
    count = t.read(f"{a}num_mini_batches", 4, number)
    t.minibatches(f"{a}num_mini_batches", count, "newly drawn in every epoch", length)
    t.use(f"{a}learning_rate", "agent.learning_rate", 1e-3, number)
    schedules = {"adaptive": "adaptive", "fixed": "constant"}
    if t.has(f"{a}desired_kl") and t.get(f"{a}desired_kl") is None:
        schedules["adaptive"] = "constant"
        t.same(f"{a}desired_kl", "without it the schedule does nothing")
    schedule = t.use(f"{a}schedule", "agent.lr_schedule", "adaptive", one_of(schedules))
    if t.get(f"{a}desired_kl", 0.01) is not None:
        t.use(f"{a}desired_kl", "agent.desired_kl", 0.01, number)
    if schedule == "adaptive":
        t.builtin("smallest learning rate", 1e-5, "agent.lr_min", 1e-5)
        t.builtin("largest learning rate", 1e-2, "agent.lr_max", 1e-2)
    t.use(f"{a}gamma", "agent.gamma", 0.99, number)
    t.use(f"{a}lam", "agent.gae_lambda", 0.95, number)
    t.use(f"{a}clip_param", "agent.clip_range", 0.2, number)
    t.use(f"{a}use_clipped_value_loss", "agent.clip_value_loss", True, flag)
    t.use(f"{a}value_loss_coef", "agent.value_coef", 1.0, number)
    t.use(f"{a}entropy_coef", "agent.entropy_coef", 0.01, number)
    t.use(f"{a}max_grad_norm", "agent.max_grad_norm", 1.0, number)
    scopes = {True: "minibatch", False: "batch"}
    t.use(f"{a}normalize_advantage_per_mini_batch", "agent.normalize_advantage", False, one_of(scopes))
    t.drop(f"{a}optimizer", "rlcore uses Adam", off=("adam",))
    t.drop(f"{a}rnd_cfg", "rlcore has no curiosity reward", off=(None,))
    t.drop(f"{a}symmetry_cfg", "rlcore has no mirrored samples or mirror loss", off=(None,))
    t.drop(f"{a}share_cnn_encoders", OWN_ENCODERS, off=(False,))
    t.drop(f"{a}grad_reduce_bucket_mb", "decided by PyTorch")


def _normalize(t: Translation, actor: str, critic: str, default: bool) -> None:
    """A switch of each network in rsl_rl, by group here; the actor's counts for groups that both read."""
    ours = t.use(actor, "agent.normalize_obs", default, flag)
    if t.normalize_one(critic, t.read(critic, default, flag)):
        return
    differs = t.get(critic, default) != ours
    note = BY_GROUP if differs else ""
    status: Status = "changed" if differs else "kept" if t.has(critic) else "default"
    t.row(critic, t.get(critic, default), status, note, f"agent.normalize_obs = {ours}")


def _recurrent(t: Translation, net: str) -> bool:
    if not t.has(net):
        return "Recurrent" in str(t.get("policy.class_name", "")) or t.get("policy.rnn_type") is not None
    return "RNN" in str(t.get(f"{net}.class_name", "")) or t.get(f"{net}.rnn_type") is not None


def _hidden(t: Translation, net: str, dims: str, function: str) -> None:
    t.use(dims, f"agent.{net}.hidden_dims", [256, 256, 256], widths)
    t.use(function, f"agent.{net}.activation", "elu", activation)


def _std(t: Translation, kind: str, low: float, high: float, key: str) -> None:
    t.use(kind, "agent.std_type", "scalar", one_of({"scalar": "scalar", "log": "log"}))
    t.std_bounds(key, low, high)


def _policy(t: Translation) -> None:
    """The layout before 4.0: one block for actor and critic."""
    p = "policy."
    recurrent = _recurrent(t, "actor")
    kind = str(t.get(f"{p}class_name", "ActorCritic")).replace(":", ".").rpartition(".")[2]
    if kind in ("ActorCritic", "ActorCriticRecurrent", "ActorCriticCNN"):
        t.same(f"{p}class_name")
    t.drop(f"{p}class_name", "rlcore builds convolutions, recurrent layers and multi-layer perceptrons")
    if recurrent:
        size = f"{p}rnn_hidden_size" if t.has(f"{p}rnn_hidden_size") else f"{p}rnn_hidden_dim"
        for net in ("actor", "critic"):
            t.recurrent(net, f"{p}rnn_type", size, f"{p}rnn_num_layers", "before")
    for net in ("actor", "critic"):
        of_rsl_rl(t, f"{p}{net}_cnn_cfg", net)
    _hidden(t, "actor", f"{p}actor_hidden_dims", f"{p}activation")
    _hidden(t, "critic", f"{p}critic_hidden_dims", f"{p}activation")
    everywhere = t.get("empirical_normalization")
    _normalize(t, f"{p}actor_obs_normalization", f"{p}critic_obs_normalization", bool(everywhere))
    t.same("empirical_normalization", "the old name of both networks' obs_normalization, which prevails where set")
    t.use(f"{p}init_noise_std", "agent.init_std", 1.0, number)
    t.use(f"{p}state_dependent_std", "agent.state_dependent_std", False, flag)
    _std(t, f"{p}noise_std_type", 0.0, 1e6, "(range of the standard deviation)")


def _models(t: Translation) -> None:
    """The layout since 4.0: one block each, and a distribution."""
    for net in ("actor", "critic"):
        kind = str(t.get(f"{net}.class_name", "MLPModel")).replace(":", ".").rpartition(".")[2]
        softmax = kind == "SpatialSoftmaxCNNModel"
        if softmax and not str(t.get(f"{net}.class_name")).startswith("mjlab."):
            t.row(f"{net}.class_name", kind, "changed", "rlcore reads pictures without what this class does to them")
        elif softmax or kind in ("MLPModel", "CNNModel", "RNNModel"):
            t.same(f"{net}.class_name")
        else:
            t.drop(f"{net}.class_name", "unknown model")
        if _recurrent(t, net):
            t.recurrent(net, f"{net}.rnn_type", f"{net}.rnn_hidden_dim", f"{net}.rnn_num_layers", "before")
        for name in ("rnn_type", "rnn_hidden_dim", "rnn_num_layers"):
            t.same(f"{net}.{name}", "has no effect without a recurrent model")
        of_rsl_rl(t, f"{net}.cnn_cfg", net, softmax)
        _hidden(t, net, f"{net}.hidden_dims", f"{net}.activation")
    _normalize(t, "actor.obs_normalization", "critic.obs_normalization", False)
    t.drop("critic.distribution_cfg", "the critic predicts one value", off=(None,))
    for name in BEFORE_5:
        t.same(f"critic.{name}", "the critic predicts one value")
    d = "actor.distribution_cfg"
    if t.get(d) is None:
        if t.has("actor.init_noise_std"):
            _version_4(t)
            return
        t.same(d, "an actor without a distribution cannot explore; rlcore's is a Gaussian")
    for name in BEFORE_5:
        t.same(f"actor.{name}", "the old name of what distribution_cfg tells, which prevails")
    kind = str(t.get(f"{d}.class_name", "GaussianDistribution")).replace(":", ".").rpartition(".")[2]
    per_state = kind.startswith("Heteroscedastic")
    if "Gaussian" in kind:
        t.use(f"{d}.class_name", "agent.state_dependent_std", "GaussianDistribution", lambda _: per_state)
    t.drop(f"{d}.class_name", "rlcore's distribution over continuous actions is a Gaussian")
    t.use(f"{d}.init_std", "agent.init_std", 1.0, number)
    t.drop(f"{d}.learn_std", "rlcore always learns the standard deviation", off=(True,))
    low, high = t.read(f"{d}.std_range", [1e-6, 1e6], pair)
    _std(t, f"{d}.std_type", low, high, f"{d}.std_range")


def _version_4(t: Translation) -> None:
    """An actor of version 4, which has its deviation beside its layers."""
    t.same("actor.distribution_cfg", "see init_noise_std")
    t.drop("actor.stochastic", "rlcore's actor always explores in training", off=(True,))
    t.use("actor.init_noise_std", "agent.init_std", 1.0, number)
    t.use("actor.state_dependent_std", "agent.state_dependent_std", False, flag)
    _std(t, "actor.noise_std_type", 0.0, 1e6, "(range of the standard deviation)")
