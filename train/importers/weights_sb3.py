"""Files of Stable-Baselines3 2: ``NAME.zip`` of PPO or SAC, with ``vecnormalize.pkl`` beside it if there is one."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rlcore.config import ConfigError
from rlcore.train.importers.pickles import StandIn, array, fields, read_call, read_member, read_pickle, read_torch
from rlcore.train.importers.weights import (
    Moments,
    Piece,
    Tensors,
    Weights,
    adam,
    joined,
    put_statistics,
    put_value_scale,
)

_PLAIN = (
    "learning_rate", "n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "clip_range", "ent_coef", "vf_coef",
    "max_grad_norm", "target_kl", "normalize_advantage", "buffer_size", "learning_starts", "tau", "gradient_steps",
    "target_entropy", "n_envs",
)  # fmt: skip
"""Settings that are taken where the file has them as plain numbers; it keeps what is no number as a pickle."""


def known(path: Path) -> bool:
    """Whether a file is such an archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {"data", "policy.pth"} <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return False


def read(path: Path, weights: Weights, normalizer: Path | None) -> None:
    """Take actor, critics, deviation, the statistics of VecNormalize, and Adam's state.

    Args:
        path: the archive.
        weights: what it becomes.
        normalizer: the pickle of VecNormalize; None: the one beside the file, if there is one.

    Raises:
        ConfigError: it holds something else, or a tensor that fits nowhere.
    """
    with zipfile.ZipFile(path) as archive:
        there = set(archive.namelist())
        data = _data(archive, path)

        def tensors(member: str) -> Any:
            if f"{member}.pth" not in there:
                return None
            return read_torch(io.BytesIO(read_member(archive, f"{member}.pth", str(path))), f"{path}: {member}.pth")

        state = tensors("policy")
        if not isinstance(state, Mapping):
            raise ConfigError(f"'{path}': policy.pth is no table of tensors; check the file")
        weights.source, weights.known_activation = _source(data), True
        _activation(data, weights, "tanh" if "value_net.weight" in state else "relu")
        if "value_net.weight" in state:
            _ppo(state, tensors("policy.optimizer"), weights)
        elif "actor.latent_pi.0.weight" in state or "actor.log_std.weight" in state:
            weights.algo = "sac"
            _sac(state, tensors, weights)
        else:
            raise ConfigError(
                f"'{path}' holds no policy of PPO or SAC; of Stable-Baselines3 only these can be imported"
            )
    weights.shapes["normalize_obs"] = False
    file = normalizer or _beside(path)
    if file is not None:
        _normalize(file, weights)
    weights.progress = f"{data.get('num_timesteps', 'an unknown number of')} steps"


def _data(archive: zipfile.ZipFile, path: Path) -> dict[str, Any]:
    """What the file says of itself; objects in it stay the text that they are."""
    try:
        data = json.loads(read_member(archive, "data", str(path)))
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise ConfigError(f"'{path}': data in it is no JSON of settings; check the file")
    return data


def _source(data: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as the zoo writes them."""
    found = {key: data[key] for key in _PLAIN if isinstance(data.get(key), (int, float, str))}
    for key in ("clip_range", "learning_rate"):  # a schedule, whose text tells a constant
        if isinstance(data.get(key), dict):
            number = re.search(r"val(?:ue)?=([0-9.eE+-]+)", str(data[key].get("value_schedule", "")))
            found |= {} if number is None else {key: float(number[1])}
    frequency = data.get("train_freq")  # TrainFreq(4, TrainFrequencyUnit("step"))
    if isinstance(frequency, dict):
        match read_call(str(frequency.get(":serialized:", ""))):
            case (int() as steps, StandIn(args=(("step" | "episode") as unit,))) if steps > 0:
                found["train_freq"] = [steps, unit]
    return found


def _activation(data: Mapping[str, Any], weights: Weights, default: str) -> None:
    kwargs = data.get("policy_kwargs")
    text = str(kwargs.get("activation_fn", "")) if isinstance(kwargs, dict) else ""
    name = re.search(r"(\w+)'>$", text)
    weights.activation = name[1] if name else default


def _ppo(state: Mapping[str, Any], optimizer: Any, weights: Weights) -> None:
    parameters = [(name, value) for name, value in state.items() if isinstance(value, torch.Tensor)]
    t = Tensors(state, weights, adam(weights, optimizer, parameters, ("policy", "critic")))
    for net, ours, theirs in (("actor", "policy", "policy_net"), ("critic", "critic", "value_net")):
        weights.shapes[net] = {"hidden_dims": t.perceptron(f"{ours}.trunk", t.layers(f"mlp_extractor.{theirs}"))}
    t.linear("policy.head.linear", "action_net")
    t.linear("critic.value", "value_net")
    if "log_std" in t:
        piece = t.piece("log_std", 1)
        weights.pieces["policy.head.std"] = Piece("log_std", piece.value.exp(), piece.moments)
        weights.settings["std_type"] = "log"
    weights.settings |= {"share_trunk": False, "normalize_value": False}
    t.finish()


def _sac(state: Mapping[str, Any], tensors: Any, weights: Weights) -> None:
    parts = {"policy": "actor.", "critics": "critic."}
    moments: dict[str, Moments] = {}
    for part, prefix in parts.items():
        own = [(name, value) for name, value in state.items() if name.startswith(prefix)]
        moments |= adam(weights, tensors(f"{prefix}optimizer"), own, (part,))
    variables = tensors("pytorch_variables")
    coefficient = variables.get("log_ent_coef") if isinstance(variables, Mapping) else None
    learned = coefficient is not None
    if isinstance(coefficient, torch.Tensor):
        state = {**state, "log_ent_coef": coefficient}
        moments |= adam(weights, tensors("ent_coef_optimizer"), [("log_ent_coef", coefficient)], ("log_temperature",))
    t = Tensors(state, weights, moments)
    weights.shapes["actor"] = {"hidden_dims": t.perceptron("policy.trunk", t.layers("actor.latent_pi"))}
    for part in ("weight", "bias"):
        both = [t.piece(f"actor.{layer}.{part}") for layer in ("mu", "log_std")]
        weights.pieces[f"policy.head.{part}"] = joined(both)
    count = 0
    while layers := t.layers(f"critic.qf{count}"):
        for ours, theirs in (("critics", "critic"), ("target_critics", "critic_target")):
            names = [name.replace("critic.", f"{theirs}.", 1) for name in layers]
            widths = t.perceptron(f"{ours}.trunks.{count}", names[:-1])
            t.linear(f"{ours}.heads.{count}", names[-1])
        weights.shapes["critic"] = {"hidden_dims": widths}
        count += 1
    weights.shapes["num_critics"] = count
    weights.settings |= {"log_std_range": [-20.0, 2.0], "learn_temperature": learned, "value_loss": "mse"}
    if learned:
        piece = t.piece("log_ent_coef")
        flat = None if piece.moments is None else (piece.moments[0].reshape(()), piece.moments[1].reshape(()))
        weights.pieces["log_temperature"] = Piece("log_ent_coef", piece.value.reshape(()), flat)
    t.finish()


def _beside(path: Path) -> Path | None:
    """The statistics that lie beside a file, as scripts of the zoo and others put them."""
    names = (f"{path.stem}_vecnormalize.pkl", "vecnormalize.pkl", "vec_normalize.pkl", "model_vecnormalize.pkl")
    places = (path.parent, path.parent / path.stem)  # the zoo: TASK.zip and TASK/vecnormalize.pkl
    return next((place / name for place in places for name in names if (place / name).is_file()), None)


def _normalize(file: Path, weights: Weights) -> None:
    """Fold VecNormalize in: observations by mean and ``sqrt(var + epsilon)``, cut off, and rewards by theirs."""
    content = read_pickle(file)
    try:
        own = fields(content)
        epsilon, clip = float(own["epsilon"]), float(own["clip_obs"])
        if own["norm_obs"]:
            rms = fields(own["obs_rms"])
            mean, var, count = (torch.as_tensor(array(rms[key])) for key in ("mean", "var", "count"))
            if mean.dim() != 1 or mean.shape != var.shape or not bool(((var >= 0) & (var + mean).isfinite()).all()):
                raise ValueError("its statistics are not those of a vector")
            if not (epsilon > 0 and clip > 0):  # false for NaN, too
                raise ValueError(f"its epsilon is {epsilon:g} and its clip_obs {clip:g}")
            limited = ((var + epsilon).sqrt() - epsilon**0.5).square()
            names = [f"obs_rms.{key}" for key in ("mean", "var", "count")]
            put_statistics(weights, "policy.normalizer", names, mean, limited, float(count))
            weights.shapes["normalize_obs"] = True
            weights.settings |= {"clip_obs": clip, "obs_epsilon": epsilon**0.5}
        if own["norm_reward"] and weights.algo == "ppo":
            rms = fields(own["ret_rms"])
            var, count = (torch.as_tensor(array(rms[key])).reshape(1) for key in ("var", "count"))
            names = [f"ret_rms.{key}" for key in ("mean", "var", "count")]
            scale = (var + epsilon).sqrt()
            put_value_scale(weights, names, torch.zeros_like(var), var, float(count), scale)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ConfigError(
            f"'{file}' is no VecNormalize of vectors ({error}); give the pickle that its save() writes"
        ) from None
    if own["norm_obs"]:
        weights.notes.append(f"observations are normalized by {file}")
    if own["norm_reward"] and weights.algo == "sac":
        weights.notes.append("its rewards were divided by VecNormalize; critics begin with values of another scale")
