"""skrl's runner YAML for SAC, DDPG and TD3, from before and after version 2.0."""

from __future__ import annotations

import math
from typing import Any

from rlcore.config import ConfigError, shown
from rlcore.train.importers.skrl import BOOKKEEPING, no_options, normalized, rewards_and_precision
from rlcore.train.importers.skrl_models import layers_of, observed, output_of
from rlcore.train.importers.translation import Translation
from rlcore.train.importers.values import empty, flag, number, one_of, optional, positive, whole

TARGETS = {"sac": ("1", "2"), "td3": ("1", "2"), "ddpg": ("",)}
PER_STEP = "skrl counts gradient steps by vector steps, rlcore by steps of single envs"


def algorithm(t: Translation, asked: str | None) -> str | None:
    """The algorithm of these that the file names; None: another one."""
    name = str(t.get("agent.class", "PPO")).lower()
    return name if name in TARGETS else None


def convert(t: Translation, algorithm: str) -> None:
    """Translate ``sac``, ``ddpg`` or ``td3``.

    Raises:
        ConfigError: a value that rlcore cannot use.
    """
    t.same("agent.class")
    if t.get("seed") is not None:
        t.use("seed", "seed", None, whole)
    t.drop("seed", "no seed; rlcore keeps its default")
    _learning(t)
    _rates(t, algorithm)
    note = "skrl's statistics learn from what is sampled, rlcore's from every observation once"
    _networks(t, algorithm)
    normalized(t, note)
    if algorithm == "sac":
        _entropy(t)
        _deviation(t)
    else:
        _noise(t)
        t.drop("models.policy.class", "rlcore's actor is deterministic", off=("DeterministicMixin",))
        _squashed(t)
    if algorithm == "td3":
        _td3(t)
    t.same("memory.class", "the only kind here too")
    t.drop_all({key: note for key, note in BOOKKEEPING.items() if key != "memory"})
    t.drop("memory", "rlcore has one kind of replay memory")


def _learning(t: Translation) -> None:
    a = "agent."
    t.set("agent.num_steps", 1, "vector steps between updates", 1)
    t.use("trainer.timesteps", "num_iterations", 100_000, positive, "an iteration is one vector step")
    interval = f"{a}experiment.checkpoint_interval"
    if t.has(interval) and t.get(interval) != "auto":
        t.use(interval, "save_interval", None, lambda steps: max(0, math.ceil(number(steps))))
    t.drop(interval, "see save_interval")
    steps = t.read(f"{a}gradient_steps", 1, positive)
    t.use(f"{a}gradient_steps", "agent.update_ratio", 1, lambda _: steps / t.num_envs, PER_STEP)
    t.use(f"{a}batch_size", "agent.batch_size", 64, positive)
    size = "skrl counts vector steps, rlcore transitions"
    t.use("memory.memory_size", "agent.buffer_size", 1_000_000, lambda rows: positive(rows) * t.num_envs, size)
    t.use(f"{a}discount_factor", "agent.gamma", 0.99, number)
    t.use(f"{a}polyak", "agent.tau", 0.005, number)
    random, start = (t.read(a + key, 0, whole) for key in ("random_timesteps", "learning_starts"))
    note = "rlcore acts at random until it learns" if random != start else "skrl counts vector steps"
    later = f"{a}learning_starts" if start >= random else f"{a}random_timesteps"
    t.use(later, "agent.learning_starts", 0, lambda rows: whole(rows) * t.num_envs, note, changed=random != start)
    for key in ("random_timesteps", "learning_starts"):
        t.same(a + key, "see the other one")
    t.use(f"{a}grad_norm_clip", "agent.max_grad_norm", 0, lambda limit: number(limit) if number(limit) > 0 else None)
    note = "skrl takes the value of the observation after the reset, rlcore of the last one before it"
    t.builtin("time-outs", "the next episode's first observation", "agent.timeout_bootstrap", "final_obs", note, True)
    t.set("agent.n_step", 1, "steps of a target", 1)
    rewards_and_precision(t)


def _rates(t: Translation, algorithm: str) -> None:
    """One rate, a list of them, or before 2.0 a key for each."""
    a = "agent."
    count = 3 if algorithm == "sac" else 2
    if t.has(f"{a}actor_learning_rate") or t.has(f"{a}critic_learning_rate"):
        keys = [f"{a}{name}_learning_rate" for name in ("actor", "critic", "entropy")][:count]
        rates = [t.read(key, 1e-3, number) for key in keys]
    else:
        keys = [f"{a}learning_rate"] * count
        given = t.get(keys[0], 1e-3)
        rates = t.read(keys[0], 1e-3, lambda _: [number(x) for x in (given if isinstance(given, list) else [given])])
        if len(rates) not in (1, count):
            raise ConfigError(f"skrl: {keys[0]}: {shown(given)} cannot be converted: give one number or {count}")
        rates = rates * count if len(rates) == 1 else rates
    uneven = rates[0] != rates[1]
    note = "rlcore has one rate for actor and critics, the actor's" if uneven else ""
    t.use(keys[0], "agent.learning_rate", 1e-3, lambda _: rates[0], note, changed=uneven)
    t.drop(keys[1], "the actor's rate counts", off=(rates[0],))
    if algorithm == "sac":
        t.use(keys[2], "agent.temperature_learning_rate", 1e-3, lambda _: rates[2])
    key = f"{a}learning_rate_scheduler"
    kinds = t.get(key) if isinstance(t.get(key), list) else [t.get(key)]
    t.drop(key, "the learning rate stays as it is", off=(t.get(key),) if all(map(empty, kinds or [])) else ())
    t.drop(f"{key}_kwargs", "there is no schedule", off=(None, {}, []))


def _networks(t: Translation, algorithm: str) -> None:
    t.drop("models.separate", "actor and critics share nothing", off=(True,))
    inputs = layers_of(t, "policy", "actor")
    numbers = TARGETS[algorithm]
    first = f"critic_{numbers[0]}".rstrip("_")
    reads = layers_of(t, first, "critic")
    observed(t, inputs, reads, "the critics")
    t.initial_weights()
    t.builtin("critics", len(numbers), "agent.num_critics", len(numbers))
    network = t.get(f"models.{first}")
    for role in (f"critic_{suffix}".rstrip("_") for suffix in numbers):
        t.drop(f"models.{role}.class", "rlcore's critics predict one value", off=("DeterministicMixin",))
        t.drop(f"models.{role}.clip_actions", "critics choose no actions", off=(False,))
        output_of(t, role)
        if role != first:
            t.drop(f"models.{role}", f"both critics are built like {first}", off=(network,))
        t.drop(f"models.target_{role}", f"targets are built like {first}", off=(network,))
    t.drop("models.target_policy", "the target is built like the policy", off=(t.get("models.policy"),))


def _entropy(t: Translation) -> None:
    a = "agent."
    t.use(f"{a}learn_entropy", "agent.learn_temperature", True, flag)
    t.use(f"{a}initial_entropy_value", "agent.init_temperature", 0.2, number)
    units = "of a Gaussian that nothing squashes in skrl; of the actions themselves in rlcore"
    t.use(f"{a}target_entropy", "agent.target_entropy", None, optional(number), units, changed=True)


def _deviation(t: Translation) -> None:
    p = "models.policy."
    t.drop(f"{p}class", "rlcore squashes a Gaussian", off=("GaussianMixin",))
    if not t.read(f"{p}clip_log_std", True, flag):
        t.drop(f"{p}clip_log_std", "rlcore always limits it; see agent.log_std_range")
    t.same(f"{p}clip_log_std")
    low, high = t.read(f"{p}min_log_std", -20, number), t.read(f"{p}max_log_std", 2, number)
    t.use(f"{p}min_log_std", "agent.log_std_range", -20, lambda _: [low, high])
    t.same(f"{p}max_log_std", "see min_log_std")
    start = "in skrl one deviation for all states; in rlcore it depends on the state and begins about here"
    t.use(f"{p}initial_log_std", "agent.init_std", 0.0, lambda v: math.exp(number(v)), start, changed=True)
    t.drop(f"{p}fixed_log_std", "rlcore always learns the deviation", off=(False,))
    t.drop(f"{p}reduction", "rlcore sums log-probabilities over actions", off=("sum",))
    _squashed(t)


def _squashed(t: Translation) -> None:
    """Whatever keeps skrl's actions within bounds, here it is a tanh."""
    p = "models.policy."
    note = "rlcore brings actions into their bounds by a tanh"
    for name in ("clip_actions", "clip_mean_actions"):
        t.drop(p + name, note, off=(False,))
    output_of(t, "policy", note, squashed=True)


def _noise(t: Translation) -> None:
    """``exploration_noise`` and its keywords; before 2.0 both are in a section ``exploration``."""
    a = "agent."
    old = not t.has(f"{a}exploration_noise") and bool(t.section(f"{a}exploration"))
    key = f"{a}exploration.noise" if old else f"{a}exploration_noise"
    options = f"{key}_kwargs."
    kind = t.get(key)
    ours = {None: "gaussian", "GaussianNoise": "gaussian", "OrnsteinUhlenbeckNoise": "ou"}
    none = "without it skrl does not explore; 0 here" if empty(kind) else ""
    t.use(key, "agent.noise", None, lambda name: one_of(ours)(None if empty(name) else name), none)
    units = "in the env's units in skrl, in half widths of the bounds in rlcore"
    if kind == "OrnsteinUhlenbeckNoise":
        scale = t.read(f"{options}base_scale", 1.0, number) * t.read(f"{options}std", 1.0, number)
        t.use(f"{options}sigma", "agent.noise_std", 1.0, lambda v: scale * number(v), units, changed=True)
        t.use(f"{options}theta", "agent.noise_decay", 0.15, number)
        for name in ("base_scale", "std"):
            t.same(options + name, "see agent.noise_std")
    else:
        t.use(f"{options}std", "agent.noise_std", 0.0, lambda v: 0.0 if empty(kind) else number(v), units, changed=True)
    t.drop(f"{options}mean", "rlcore's noise has no mean", off=(0.0,))
    t.same(f"{options}device")
    no_options(t, options)
    t.drop(f"{a}exploration_scheduler", "rlcore's noise stays as it is", off=(None, "None"))
    for name, plain in (("initial_scale", 1.0), ("final_scale", 1.0), ("timesteps", None)):
        t.drop(f"{a}exploration.{name}", "rlcore's noise stays as it is; see agent.noise_std", off=(plain,))
    if not t.section(f"{a}exploration"):
        t.drop(f"{a}exploration", "none", off=(None, {}))


def _td3(t: Translation) -> None:
    """What TD3 adds to DDPG, beside a second critic."""
    a = "agent."
    t.use(f"{a}policy_delay", "agent.policy_delay", 2, positive)
    options = f"{a}smooth_regularization_noise_kwargs."
    key = f"{a}smooth_regularization_noise"
    on = not empty(t.get(key))
    units = "in the env's units in skrl, in half widths of the bounds in rlcore"
    ours = one_of({None: 0.0, "None": 0.0, "GaussianNoise": t.read(f"{options}std", 0.0, number)})
    t.use(key, "agent.target_noise", None, ours, units if on else "", changed=on)
    t.same(f"{options}std", "see agent.target_noise")
    t.drop(f"{options}mean", "rlcore's noise has no mean", off=(0.0,))
    t.same(f"{options}device")
    no_options(t, options)
    limit: dict[str, Any] = {"changed": on, "note": units if on else ""}
    t.use(f"{a}smooth_regularization_clip", "agent.target_noise_clip", 0.5, number, **limit)
