"""Settings that were given and change nothing, as the others are: what a run says of them before it begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from rlcore.actor_critic_config import ActorCriticConfig
from rlcore.config import ConfigError, shown, to_dict
from rlcore.ddpg import DDPGConfig
from rlcore.env import EnvSpec
from rlcore.networks import KINDS
from rlcore.observations import choose_groups, groups_of, images
from rlcore.off_policy_config import OffPolicyConfig
from rlcore.ppo_config import PPOConfig
from rlcore.sac import SACConfig
from rlcore.train.config import TrainConfig
from rlcore.train.defaults import default_config
from rlcore.train.groups import leaves


class Rule(NamedTuple):
    """Settings that nothing reads under a condition."""

    of: type[Any] | tuple[type[Any], ...]
    """Settings of an algorithm, that they are among."""
    names: str
    """Of settings, or of groups of them, below ``agent.``."""
    idle: Callable[[Any, EnvSpec], bool]
    """Whether nothing reads them, by the settings and the env."""
    why: str
    """In words."""


_GATE = "horizon warmup num_candidates num_around network learning_rate num_updates batch_size buffer_size tau held_out"
_SPREAD = "init_std min_std max_std std_type state_dependent_std"
_SHARED = "agent.share_trunk gives the critic the actor's layers"
_BOTH = (ActorCriticConfig, OffPolicyConfig)
_LIMITED = (PPOConfig, OffPolicyConfig)


def _below(group: str, names: str) -> str:
    return " ".join(f"{group}.{name}" for name in names.split())


def _remembers(agent: Any) -> bool:
    """Whether anything has a recurrent state, or may have: networks of a user's own."""
    networks = (agent.actor, agent.critic)
    return agent.classifier.type != "none" or any(n.rnn.type != "none" or n.kind not in KINDS for n in networks)


def _sees(name: str, agent: Any, spec: EnvSpec) -> bool:
    """Whether the actor, or the critic, reads an image."""
    actor, critic = choose_groups(groups_of(spec), agent.actor_obs, agent.critic_obs)
    return bool(images(spec, actor if name == "actor" else critic))


def _network(name: str) -> tuple[Rule, ...]:
    return (
        Rule(
            ActorCriticConfig, _below(f"{name}.rnn", "hidden_size num_layers position"),
            lambda agent, _: getattr(agent, name).rnn.type == "none",
            f"agent.{name}.rnn.type is none; lstm or gru makes it recurrent",
        ),
        Rule(
            _BOTH, f"{name}.expansion", lambda agent, _: getattr(agent, name).kind == "mlp",
            f"agent.{name}.kind is mlp, and residual blocks alone have it",
        ),
        Rule(_BOTH, f"{name}.cnn", lambda _, spec: not spec.image_shapes, "the env gives no images"),
        Rule(
            _BOTH, f"{name}.cnn", lambda agent, spec: bool(spec.image_shapes) and not _sees(name, agent, spec),
            f"the {name} reads no image; agent.{name}_obs names what it reads",
        ),
    )  # fmt: skip


def _of_method(method: str, names: str) -> Rule:
    return Rule(
        _LIMITED, _below("safety", names), lambda agent, _: bool(agent.safety.costs) and agent.safety.method != method,
        f"agent.safety.method is not {method}",
    )  # fmt: skip


RULES = (
    *_network("actor"),
    *_network("critic"),
    Rule(
        ActorCriticConfig, _below("critic", "kind hidden_dims layer_norm activation"),
        lambda agent, _: agent.share_trunk, _SHARED,
    ),
    Rule(
        _BOTH, "clip_obs obs_epsilon", lambda agent, _: agent.normalize_obs is False, "agent.normalize_obs is false",
    ),
    Rule(
        ActorCriticConfig, f"{_SPREAD} action_scale clip_actions", lambda _, spec: spec.discrete,
        "actions are choices",
    ),
    Rule(PPOConfig, "entropy_reduction bounds_loss_coef", lambda _, spec: spec.discrete, "actions are choices"),
    Rule(
        PPOConfig, "desired_kl kl_factor kl_band lr_min lr_max", lambda agent, _: agent.lr_schedule != "adaptive",
        "agent.lr_schedule is not adaptive",
    ),
    Rule(
        PPOConfig, "bounds_loss_limit", lambda agent, _: agent.bounds_loss_coef == 0, "agent.bounds_loss_coef is 0",
    ),
    Rule(
        PPOConfig, "sequence_length burn_in", lambda agent, _: not _remembers(agent),
        "there is no recurrent layer; agent.actor.rnn.type lstm or gru is one",
    ),
    Rule(
        _LIMITED, _below("safety", "method proportional integral derivative excess_max multiplier_rate multiplier_max "
                         "penalty termination_max interval"),
        lambda agent, _: not agent.safety.costs, "agent.safety.costs limits nothing",
    ),
    _of_method("pid", "proportional integral derivative excess_max"),
    _of_method("lagrange", "multiplier_rate"),
    _of_method("p3o", "penalty"),
    _of_method("cat", "termination_max"),
    Rule(
        _LIMITED, _below("safety.gate", _GATE), lambda agent, _: agent.safety.gate.threshold is None,
        "agent.safety.gate.threshold is none, so that there is no gate",
    ),
    Rule(
        _LIMITED, _below("safety.gate", "num_candidates num_around"),
        lambda agent, _: agent.safety.gate.threshold is not None and agent.safety.gate.fallback != "candidates",
        "agent.safety.gate.fallback is not candidates",
    ),
    Rule(
        OffPolicyConfig, "update_ratio", lambda agent, _: agent.num_updates is not None,
        "agent.num_updates says how many gradient steps there are",
    ),
    Rule(
        OffPolicyConfig, "lr_end", lambda agent, _: agent.lr_schedule != "cosine", "agent.lr_schedule is not cosine",
    ),
    Rule(
        OffPolicyConfig, "num_atoms", lambda agent, _: agent.value_loss != "categorical",
        "agent.value_loss is not categorical",
    ),
    Rule(
        OffPolicyConfig, "value_range",
        lambda agent, _: agent.value_loss != "categorical" and not agent.normalize_reward and not agent.safety.costs,
        "agent.value_loss is not categorical",
    ),
    Rule(OffPolicyConfig, "q_reduce", lambda agent, _: agent.num_critics == 1, "there is one critic"),
    Rule(OffPolicyConfig, "random_shift", lambda _, spec: not spec.image_shapes, "the env gives no images"),
    Rule(
        OffPolicyConfig, "final_capacity", lambda agent, _: agent.timeout_bootstrap != "final_obs",
        "agent.timeout_bootstrap is not final_obs",
    ),
    Rule(
        SACConfig, "temperature_learning_rate", lambda agent, _: not agent.learn_temperature,
        "agent.learn_temperature is false",
    ),
    Rule(
        SACConfig, "target_entropy target_std target_std_end",
        lambda agent, _: not agent.learn_temperature and not agent.center_entropy, "agent.learn_temperature is false",
    ),
    Rule(DDPGConfig, "noise_decay", lambda agent, _: agent.noise != "ou", "agent.noise is not ou"),
    Rule(DDPGConfig, "noise_std", lambda agent, _: agent.noise_range is not None, "agent.noise_range is in its place"),
    Rule(DDPGConfig, "noise_spread", lambda agent, _: agent.noise_range is None, "agent.noise_range is none"),
    Rule(DDPGConfig, "target_noise_clip", lambda agent, _: agent.target_noise == 0, "agent.target_noise is 0"),
)  # fmt: skip


def idle_settings(config: TrainConfig, spec: EnvSpec, usual: TrainConfig | None = None) -> list[str]:
    """What is to be said of settings that are not the usual ones, and that nothing reads.

    Nothing is said of None, which asks for nothing, and of a critic's layers that are those that it shares: converted
    files name both.

    Args:
        config: of the run.
        spec: of its env.
        usual: what it would be if nobody had set anything; None: the defaults of its task.

    Returns:
        A line for each reason.
    """
    try:
        usual = usual or default_config(config.task, algo=config.algo, preset=config.preset)[0]
    except ConfigError:  # nobody knows what was given
        return []
    own, before = (dict(leaves(to_dict(settings.agent))) for settings in (config, usual))
    told = []
    for names, why in _idle(config.agent, spec):
        set_here = [
            key
            for key in own
            if any(key == n or key.startswith(f"{n}.") for n in names) and own[key] not in (before.get(key), None)
        ]
        if why == _SHARED:
            set_here = [key for key in set_here if own[key] != own[key.replace("critic", "actor", 1)]]
        each = ", ".join(f"agent.{key} {shown(own[key])}" for key in set_here[:3])
        more = f" and {len(set_here) - 3} more" if len(set_here) > 3 else ""
        if set_here:
            told.append(f"{each}{more} {'has' if len(set_here) == 1 else 'have'} no effect: {why}")
    return told


def _idle(agent: Any, spec: EnvSpec) -> Iterator[tuple[list[str], str]]:
    for rule in RULES:
        if isinstance(agent, rule.of) and rule.idle(agent, spec):
            yield rule.names.split(), rule.why
    for name, schedule in getattr(agent, "schedules", {}).items():
        if schedule.start is not None:
            yield [name], f"agent.schedules.{name}.start is in its place"
