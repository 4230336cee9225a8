"""Checkpoints of skrl 1 and 2: ``agent_5000.pt`` and ``best_agent.pt``, of PPO with perceptrons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rlcore.config import ConfigError
from rlcore.train.importers.weights import Piece, Tensors, Weights, adam, put_value_scale

_LOG_STD = ("log_std_parameter", "log_std")
_EPSILON = 1e-8  # of its scaler, which also clips to 5


def known(content: Mapping[str, Any]) -> bool:
    """Whether a file's content is such a checkpoint."""
    return isinstance(content.get("policy"), Mapping) and ("value" in content or "critic_1" in content)


def read(content: Mapping[str, Any], weights: Weights) -> None:
    """Take actor, critic, deviation, scalers of observations and values, and Adam's state.

    Raises:
        ConfigError: it holds something else, or a tensor that fits nowhere.
    """
    if "value" not in content:
        raise ConfigError(f"'{weights.file}' holds twin critics; of skrl's checkpoints those of PPO can be imported")
    policy, value = content["policy"], content["value"]
    if not isinstance(value, Mapping) or not value:
        raise ConfigError(f"'{weights.file}' has no tensors of the critic (value); give a whole agent, agent_*.pt")
    shared = list(policy) == list(value) and "value_layer.weight" in policy
    state = {f"policy.{name}": tensor for name, tensor in policy.items()}
    state |= {} if shared else {f"value.{name}": tensor for name, tensor in value.items()}
    frozen = [name for name in state if name.endswith(".log_std_parameter") and not name.startswith("policy.")]
    parameters = [(name, tensor) for name, tensor in state.items() if name not in frozen]
    moments = adam(weights, content.get("optimizer"), parameters, ("policy", "critic"))
    for name in ("observation_preprocessor", "state_preprocessor", "value_preprocessor"):
        if isinstance(content.get(name), Mapping):
            state |= {f"{name}.{key}": tensor for key, tensor in content[name].items()}
    t = Tensors(state, weights, moments)
    layers = {net: _linear(t, f"{net}.") for net in ("policy", "value")}
    if shared:
        trunk = [name for name in layers["policy"] if name not in ("policy.policy_layer", "policy.value_layer")]
        weights.shapes |= {"share_trunk": True, "critic": {}}
        heads = ("policy.policy_layer", "policy.value_layer")
    else:
        for net, own in layers.items():
            if not own:
                raise ConfigError(f"'{weights.file}' has no linear layer in its {net}; give one of perceptrons")
        trunk, heads = layers["policy"][:-1], (layers["policy"][-1], layers["value"][-1])
        weights.shapes |= {"share_trunk": False}
        weights.shapes["critic"] = {"hidden_dims": t.perceptron("critic.trunk", layers["value"][:-1])}
    weights.shapes["actor"] = {"hidden_dims": t.perceptron("policy.trunk", trunk)}
    network = [{"name": "net", "input": "OBSERVATIONS", "layers": [], "activations": "elu"}]
    models = {"policy": {"network": network, "output": "ACTIONS"}, "value": {"network": network, "output": "ONE"}}
    weights.source = {"models": {"separate": not shared, **models}, "agent": {"class": "PPO"}}
    t.linear("policy.head.linear", heads[0])
    t.linear("critic.value", heads[1])
    _deviation(t)
    _scalers(t)
    t.finish(tuple(f"value.{name}" for name in _LOG_STD))


def _linear(t: Tensors, prefix: str) -> list[str]:
    """Linear layers in the order in which they were made, which is that in which they are applied."""
    return [name.removesuffix(".weight") for name in t.names(prefix) if name.endswith(".weight")]


def _deviation(t: Tensors) -> None:
    name = next((f"policy.{name}" for name in _LOG_STD if f"policy.{name}" in t), None)
    if name is None:
        return  # of choices there is none
    piece = t.piece(name, 1)
    value = piece.value.clamp(-20.0, 2.0).exp()  # as its models do
    t.weights.pieces["policy.head.std"] = Piece(name, value, piece.moments)
    t.weights.settings["std_type"] = "log"
    if not torch.equal(value, piece.value.exp()):
        t.weights.notes.append("the logarithm of the deviation is beyond skrl's -20..2, and cut off there as skrl does")


def _scalers(t: Tensors) -> None:
    def statistics(name: str) -> tuple[str, str, str]:
        return f"{name}.running_mean", f"{name}.running_variance", f"{name}.current_count"

    # Before 2.0 the state is what actor and critic observe; since then it is what the critic alone does.
    now = bool(t.names("observation_preprocessor."))
    both = "observation_preprocessor" if now else "state_preprocessor"
    t.weights.shapes["normalize_obs"] = bool(t.names(f"{both}."))
    if t.names(f"{both}."):
        t.normalizer("policy.normalizer", statistics(both), _EPSILON, inside=False)
        t.weights.settings |= {"clip_obs": 5.0, "obs_epsilon": _EPSILON}
    if now and t.names("state_preprocessor."):
        t.normalizer("critic.normalizer", statistics("state_preprocessor"), _EPSILON, inside=False)
    t.weights.settings["normalize_value"] = False
    if t.names("value_preprocessor."):
        names = statistics("value_preprocessor")
        mean, var, count = (t.exact(name).flatten() for name in names)
        put_value_scale(t.weights, names, mean, var, float(count), var.sqrt())
