"""Checkpoints of rl_games 1.6: ``nn/NAME.pth``, of PPO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlcore.config import ConfigError
from rlcore.train.importers.weights import Piece, Tensors, Weights, adam, joined, put_value_scale

_EPSILON = 1e-5  # in the root of all its normalizers


def known(content: Mapping[str, Any]) -> bool:
    """Whether a file's content is such a checkpoint."""
    model = content.get("model")
    return isinstance(model, Mapping) and any(isinstance(name, str) and "a2c_network." in name for name in model)


def read(content: Mapping[str, Any], weights: Weights) -> None:
    """Take actor, critic, deviation, statistics of observations and returns, and Adam's state.

    Raises:
        ConfigError: it holds something else, or a tensor that fits nowhere.
    """
    state = {name.replace("_orig_mod.", ""): value for name, value in content["model"].items()}
    parameters = [(name, value) for name, value in state.items() if "mean_std." not in name]
    central = content.get("assymetric_vf_nets")
    parts = ("policy",) if central else ("policy", "critic")
    moments = adam(weights, content.get("optimizer"), parameters, parts)
    t = Tensors(state, weights, moments)
    n, shapes = "a2c_network.", weights.shapes
    separate = bool(t.names(f"{n}critic_mlp.")) or bool(t.names(f"{n}c_rnn."))
    shapes["actor"] = _trunk(t, "policy", f"{n}actor_mlp", f"{n}a_rnn" if separate else f"{n}rnn")
    _actions(t)
    if t.names("running_mean_std."):
        t.normalizer("policy.normalizer", _statistics("running_mean_std"), _EPSILON, inside=True)
    shapes["normalize_obs"] = "policy.normalizer.mean" in weights.pieces
    shapes["share_trunk"] = False
    settings = {"clip_obs": 5.0, "obs_epsilon": _EPSILON**0.5} if shapes["normalize_obs"] else {}
    weights.settings |= settings
    t.finish((f"{n}critic_mlp.", f"{n}c_rnn.", f"{n}value.", "value_mean_std."))
    if central:
        own = {name.replace("_orig_mod.", "").removeprefix("model."): value for name, value in central.items()}
        t = Tensors(own, weights)
        _critic(t, f"{n}actor_mlp", f"{n}rnn")
        if t.names("running_mean_std."):
            t.normalizer("critic.normalizer", _statistics("running_mean_std"), _EPSILON, inside=True)
        weights.notes.append("the central value's optimizer is left out; the critic's Adam begins anew")
    elif separate:
        _critic(t, f"{n}critic_mlp", f"{n}c_rnn")
    elif shapes["actor"]["rnn"]["type"] == "none":
        shapes["share_trunk"], shapes["critic"] = True, {}
        _value(t)
    else:  # a recurrent trunk is shared there, and comes in both networks here
        trunk = {name: piece for name, piece in weights.pieces.items() if name.startswith("policy.trunk.")}
        weights.pieces |= {name.replace("policy.", "critic.", 1): piece for name, piece in trunk.items()}
        shapes["critic"] = shapes["actor"]
        weights.notes.append("actor and critic share a recurrent trunk there, and have one each here, both the same")
        _value(t)
    t.finish((f"{n}mu.", f"{n}sigma"))
    if "epoch" in content:
        weights.progress = f"{content['epoch']} epochs"


def _statistics(name: str) -> tuple[str, str, str]:
    return f"{name}.running_mean", f"{name}.running_var", f"{name}.count"


def _trunk(t: Tensors, ours: str, mlp: str, rnn: str) -> dict[str, Any]:
    """Hidden layers and a recurrent layer before or after them; returns their settings."""
    layers, inputs = t.layers(mlp), f"{rnn}.rnn.weight_ih_l0"
    found: dict[str, Any] = {"rnn": {"type": "none"}}
    if inputs in t:
        first = t.content[f"{layers[0]}.weight"] if layers else None
        hidden = t.content[f"{rnn}.rnn.weight_hh_l0"].shape[-1]
        last = t.content[f"{layers[-1]}.weight"] if layers else None
        after = last is not None and t.content[inputs].shape[-1] == last.shape[0] and first is not None
        # Of equal widths both could be meant, unless the observation's size tells.
        before = first is None or first.shape[-1] == hidden
        if before and after and "running_mean_std.running_mean" in t:
            before = t.content["running_mean_std.running_mean"].numel() == t.content[inputs].shape[-1]
        if not before and not after:
            raise t.unfit(inputs, "a recurrent layer that reads more than the layers before it cannot be imported")
        place = "before" if before else "after"
        found["rnn"] = t.recurrent(f"{ours}.trunk.{place}", f"{rnn}.rnn") | {"position": place}
    elif not layers:
        raise ConfigError(f"'{t.weights.file}' has no tensor {mlp}.0.weight, as rl_games has it")
    found["hidden_dims"] = t.perceptron(f"{ours}.trunk", layers)
    return found


def _critic(t: Tensors, mlp: str, rnn: str) -> None:
    t.weights.shapes["critic"] = _trunk(t, "critic", mlp, rnn)
    _value(t)


def _value(t: Tensors) -> None:
    """The critic's last layer, and the statistics of returns if there are any."""
    t.linear("critic.value", "a2c_network.value")
    if t.names("value_mean_std."):
        names = _statistics("value_mean_std")
        mean, var, count = (t.exact(name).flatten() for name in names)
        put_value_scale(t.weights, names, mean, var, float(count), (var + _EPSILON).sqrt())
    else:
        t.weights.settings["normalize_value"] = False


def _actions(t: Tensors) -> None:
    """The last layer of the actor, and the deviation, whose logarithm is kept."""
    n, weights = "a2c_network.", t.weights
    if f"{n}logits.weight" in t:
        t.linear("policy.head.linear", f"{n}logits")
        return
    if f"{n}logits.0.weight" in t:
        layers = t.layers(f"{n}logits")
        for part in ("weight", "bias"):
            weights.pieces[f"policy.head.linear.{part}"] = joined([t.piece(f"{layer}.{part}") for layer in layers])
        return
    weights.settings["std_type"] = "log"
    if f"{n}sigma" in t:
        t.linear("policy.head.linear", f"{n}mu")
        piece = t.piece(f"{n}sigma", 1)
        weights.pieces["policy.head.std"] = Piece(f"{n}sigma", piece.value.exp(), piece.moments)
        return
    for part in ("weight", "bias"):
        both = [t.piece(f"{n}{layer}.{part}") for layer in ("mu", "sigma")]
        weights.pieces[f"policy.head.linear.{part}"] = joined(both)
    weights.settings |= {"state_dependent_std": True, "min_std": 1e-8}
