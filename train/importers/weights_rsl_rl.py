"""Checkpoints of rsl_rl 2 to 5: ``model_1500.pt``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rlcore.config import ConfigError
from rlcore.train.importers.weights import Piece, Tensors, Weights, adam

_NORMALIZERS = {"obs_norm_state_dict": "actor", "privileged_obs_norm_state_dict": "critic"}
"""Where version 2 keeps its statistics: beside the networks."""


def known(content: Mapping[str, Any]) -> bool:
    """Whether a file's content is such a checkpoint."""
    return "actor_state_dict" in content or ("model_state_dict" in content and "iter" in content)


def read(content: Mapping[str, Any], weights: Weights) -> None:
    """Take actor, critic, deviation, statistics of observations and Adam's state.

    Raises:
        ConfigError: it holds something else, or a tensor that fits nowhere.
    """
    since_4 = "actor_state_dict" in content
    state = _since_4(content) if since_4 else _before_4(content, weights)
    if any(name.startswith("student.") for name in state):
        raise ConfigError(f"'{weights.file}' holds a student and its teacher, and no critic; give a checkpoint of PPO")
    parameters = [(name, value) for name, value in state.items() if "_normalizer." not in name]
    moments = adam(weights, content.get("optimizer_state_dict"), parameters, ("policy", "critic"))
    t = Tensors(state, weights, moments)
    for net, ours, memory in (("actor", "policy", "memory_a"), ("critic", "critic", "memory_c")):
        layers = t.layers(f"{net}.mlp" if since_4 else net)
        rnn = f"{net}.rnn.rnn" if since_4 else f"{memory}.rnn"
        weights.shapes[net] = {"rnn": {"type": "none"}}
        if t.names(rnn):
            weights.shapes[net] = {"rnn": t.recurrent(f"{ours}.trunk.before", rnn) | {"position": "before"}}
        if not layers:
            t.piece(f"{net}.mlp.0.weight" if since_4 else f"{net}.0.weight")  # says that it is missing
        weights.shapes[net]["hidden_dims"] = t.perceptron(f"{ours}.trunk", layers[:-1])
        t.linear(f"{ours}.head.linear" if net == "actor" else "critic.value", layers[-1])
        own = f"{net}.obs_normalizer" if since_4 else f"{net}_obs_normalizer"
        if t.names(f"{own}."):
            names = (f"{own}._mean", f"{own}._var", f"{own}.count")
            t.normalizer(f"{ours}.normalizer", names, 1e-2, inside=False)
            t.left.pop(f"{own}._std", None)
    weights.shapes["normalize_obs"] = "policy.normalizer.mean" in weights.pieces
    weights.settings |= {"clip_obs": None, "obs_epsilon": 1e-2, "share_trunk": False}
    _deviation(t)
    t.finish()
    weights.progress = f"{content.get('iter', 'an unknown number of')} iterations"
    if "rnd_state_dict" in content:
        weights.notes.append("the networks of its curiosity (RND) are left out")


def _since_4(content: Mapping[str, Any]) -> dict[str, Any]:
    parts = {net: content.get(f"{net}_state_dict") for net in ("actor", "critic")}
    return {
        f"{net}.{name}": value for net, own in parts.items() if isinstance(own, Mapping) for name, value in own.items()
    }


def _before_4(content: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    model = content["model_state_dict"]
    if not isinstance(model, Mapping):
        raise ConfigError(f"'{weights.file}': model_state_dict is no table of tensors; check the file")
    state = dict(model)
    for key, net in _NORMALIZERS.items():
        if isinstance(content.get(key), Mapping):
            state |= {f"{net}_obs_normalizer.{name}": value for name, value in content[key].items()}
    return state


def _deviation(t: Tensors) -> None:
    names = ["std", "log_std", "actor.std", "actor.log_std"]
    names += ["actor.distribution.std_param", "actor.distribution.log_std_param"]
    name = next((name for name in names if name in t), None)
    if name is None:
        raise ConfigError(
            f"'{t.weights.file}' has no std: the deviation depends on the state, and the file does not say whether the "
            "last layer gives it or its logarithm; only one for all states can be imported"
        )
    piece, log = t.piece(name, 1), "log" in name
    value = piece.value.exp() if log else piece.value
    if "distribution" in name:
        value = value.clamp(1e-6, 1e6)
    if not bool(torch.all(value > 0)):
        raise t.unfit(name, "a deviation has to be more than 0; give an earlier checkpoint")
    t.weights.pieces["policy.head.std"] = Piece(name, value, piece.moments)
    t.weights.settings["std_type"] = "log" if log else "scalar"
