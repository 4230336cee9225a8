"""Convolutions of other libraries as settings of ``CNNConfig``, one function a library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlcore.train.importers.translation import UNKNOWN, Translation
from rlcore.train.importers.values import activation, empty, number, one_of, whole, widths

OWN_ENCODERS = "actor and critic have encoders of their own; agent.share_trunk shares all hidden layers"
FEATURES_ALONE = "rlcore normalizes the features alone: agent.actor.cnn.layer_norm"
SAME_INITIAL = "initial weights are as those of the other layers"
SKRL_NAMES = {"features": "out_channels", "strides": "stride", "use_bias": "bias"}
"""Names that skrl takes besides those of ``torch.nn.Conv2d``."""
OF_PICTURES = ("CnnPolicy", "MultiInputPolicy")
"""Policies of Stable-Baselines3 that read images: alone, and beside vectors."""
_RL_GAMES_CONV = ("filters", "kernel_size", "strides", "padding")
_SKRL_ORDER = ("out_channels", "kernel_size", "stride", "padding", "bias")


def of_rsl_rl(t: Translation, key: str, net: str, softmax: bool = False) -> None:
    """Translate rsl_rl's ``cnn_cfg``.

    Args:
        t: to translate.
        key: where it is.
        net: ``actor`` or ``critic``.
        softmax: whether its model pools by a softmax over the image, as one of mjlab and one of Isaac Lab do.
    """
    groups = t.section(key)
    if not groups:
        t.drop(key, "no mapping of settings", off=(None,))
        return
    if all(isinstance(settings, Mapping) for settings in groups.values()):  # one for each image group
        first, *others = groups
        for other in others:
            t.drop(f"{key}.{other}", f"all image groups are read as {first} is", off=(groups[first],))
        key = f"{key}.{first}"
    ours, c = f"agent.{net}.cnn.", f"{key}."
    channels = t.use(f"{c}output_channels", f"{ours}channels", None, widths)
    kernels = t.use(f"{c}kernel_size", f"{ours}kernel_sizes", None, widths)
    strides = t.use(f"{c}stride", f"{ours}strides", 1, widths)
    t.drop(f"{c}dilation", "rlcore's convolutions are not dilated", off=(1, [1] * len(channels)))
    kind = t.read(f"{c}padding", "none", str)
    if kind == "none":
        t.use(f"{c}padding", f"{ours}padding", "none", lambda _: [])
    else:
        margins = _as_large_as_its_strides_leave(kernels, strides)
        note = "by kernel and stride, for images whose sides the strides divide" if max(strides) > 1 else ""
        other = kind != "zeros"
        note = f"rlcore pads with zeros; {note}".rstrip("; ") if other else note
        t.use(f"{c}padding", f"{ours}padding", "none", lambda _: margins, note, changed=other)
    t.drop(f"{c}norm", FEATURES_ALONE, off=("none", ["none"] * len(channels)))
    t.use(f"{c}activation", f"{ours}activation", "elu", activation)
    pooled = t.get(f"{c}max_pool", False)
    some = any(pooled) if isinstance(pooled, list) else bool(pooled)
    note = "after each convolution, of 2x2 places; in rsl_rl of 3x3" if some else ""
    t.use(f"{c}max_pool", f"{ours}pooling", False, lambda _: "max" if some else "none", note, changed=some)
    if softmax:
        t.builtin(f"pooling of the {net}'s features", "softmax", f"{ours}global_pooling", "softmax")
        t.drop(f"{c}global_pool", "the model pools by a softmax over the image", off=("none",))
        t.same(f"{c}spatial_softmax", "always, by the model's class")
        for temperature in (f"{c}spatial_softmax_temperature", f"{net}.init_temperature"):
            t.drop(temperature, "rlcore's softmax has a temperature of 1", off=(1.0, 1))
    else:
        pools = one_of({"none": "none", "max": "max", "avg": "average"})
        t.use(f"{c}global_pool", f"{ours}global_pooling", "none", pools)
    t.drop(f"{c}flatten", "rlcore's features are a vector", off=(True,))


def _as_large_as_its_strides_leave(kernels: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Padding with which a convolution leaves a side divided by its stride, as rsl_rl computes it."""
    count = max(len(kernels), len(strides))
    pairs = zip(*(list(values) * (count if len(values) == 1 else 1) for values in (kernels, strides)), strict=False)
    return [max(0, math.ceil((kernel - stride) / 2)) for kernel, stride in pairs]


def of_rl_games(t: Translation, key: str, nets: Sequence[str], normalized: str) -> None:
    """Translate rl_games' ``network.cnn``.

    Args:
        t: to translate.
        key: where it is.
        nets: whose it is, ``actor``, ``critic`` or both.
        normalized: the key that tells whether observations are normalized.
    """
    if not t.section(key):
        t.drop(key, "no convolutions", off=(None,))
        return
    kind = str(t.get(f"{key}.type", "conv2d"))
    if kind == "conv1d":
        t.drop(key, "rlcore's convolutions are over images")
        return
    known = kind in ("conv2d", "conv2d_flatten", "conv2d_spatial_softargmax")
    note = "" if known else "rlcore builds plain convolutions"
    pooling = "softmax" if kind == "conv2d_spatial_softargmax" else "none"
    convs = t.read(f"{key}.convs", None, _rl_games_layers)
    for i, conv in enumerate(t.get(f"{key}.convs")):
        for name in sorted(set(conv) - set(_RL_GAMES_CONV)):
            t.row(f"{key}.convs.{i}.{name}", conv[name], "dropped", UNKNOWN)
    for net in nets:
        ours = f"agent.{net}.cnn."
        t.use(f"{key}.type", f"{ours}global_pooling", "conv2d", lambda _: pooling, note, changed=not known)
        t.use(f"{key}.activation", f"{ours}activation", "relu", activation)
        _set_layers(t, f"{key}.convs", ours, convs)
    t.same(f"{key}.permute_input", "the env's adapter puts channels first")
    t.drop(f"{key}.initializer", SAME_INITIAL, off=({"name": "default"},))
    t.drop(f"{key}.regularizer", "rlcore has no regularizer", off=({"name": "None"}, {"name": None}, None))
    if t.get(normalized, False):
        note = "rlcore scales bytes to 0..1, and leaves pictures of floats as they are"
        t.row("(running normalization of pictures)", True, "changed", note)


def _rl_games_layers(convs: Any) -> list[tuple[int, int, int, int]]:
    if not isinstance(convs, list) or not convs or not all(isinstance(conv, Mapping) for conv in convs):
        raise ValueError("give a list of convolutions with filters, kernel_size, strides and padding")
    for conv in convs:
        if absent := [name for name in _RL_GAMES_CONV if name not in conv]:
            raise ValueError(f"a convolution has no {absent[0]}")
    return [tuple(_side(conv[name]) for name in _RL_GAMES_CONV) for conv in convs]  # type: ignore[misc]


def _set_layers(t: Translation, key: str, ours: str, convs: Sequence[tuple[int, int, int, int]]) -> None:
    """Say of a list of convolutions what the settings are that it becomes."""
    names = ("channels", "kernel_sizes", "strides", "padding")
    columns = {name: [conv[i] for conv in convs] for i, name in enumerate(names)}
    for name, values in columns.items():
        t.set(ours + name, values, key, t.get(key))
    text = "; ".join(f"{name} {', '.join(map(str, values))}" for name, values in columns.items())
    t.row(key, t.get(key), "kept", "", f"{ours.rstrip('.')} = {text}")


def of_skrl(
    t: Translation,
    key: str,
    net: str,
    layers: Sequence[Any],
    function: str,
    output: int | None,
    remarks: Sequence[str],
) -> None:
    """Translate the convolutions of a block of skrl's, ``conv2d`` layers.

    Args:
        t: to translate.
        key: the model's list of blocks.
        net: ``actor`` or ``critic``.
        layers: what is given for each ``conv2d``, by name or as a list.
        function: activation after each.
        output: width of a linear layer between them and what their features are joined with; None without one.
        remarks: what else differs.
    """
    ours = f"agent.{net}.cnn."
    convs = t.read(key, None, lambda _: [_skrl_layer(layer) for layer in layers])
    _set_layers(t, key, ours, [conv for conv, _ in convs])
    for note in dict.fromkeys(note for _, notes in convs for note in notes):
        t.row(key, layers, "dropped", note)
    t.use(key, f"{ours}activation", None, lambda _: activation(function), "; ".join(remarks), bool(remarks))
    if output is not None:
        t.use(key, f"{ours}output_size", None, lambda _: output)


def _skrl_layer(layer: Any) -> tuple[tuple[int, int, int, int], list[str]]:
    """Channels, kernel, stride and padding of a convolution, and what else is said of it."""
    if isinstance(layer, list):
        layer = dict(zip(_SKRL_ORDER, layer, strict=False))
    if not isinstance(layer, Mapping):
        raise ValueError("give conv2d as a list or by names")
    layer = {SKRL_NAMES.get(name, name): value for name, value in layer.items()}
    if "out_channels" not in layer or "kernel_size" not in layer:
        raise ValueError("conv2d needs out_channels and kernel_size")
    notes = [f"conv2d has no {name} here" for name in layer if name not in (*_SKRL_ORDER, "in_channels")]
    notes += ["conv2d always has a bias here"] if layer.get("bias", True) is not True else []
    kernel, stride = _side(layer["kernel_size"]), _side(layer.get("stride", 1))
    padding = layer.get("padding", 0)
    padding = {"valid": 0, "same": kernel // 2}.get(padding, padding) if isinstance(padding, str) else padding
    return (whole(layer["out_channels"]), kernel, stride, _side(padding)), notes


def _side(value: Any) -> int:
    """One number for both sides."""
    sides = value if isinstance(value, list) else [value]
    if not sides or len(set(map(number, sides))) > 1:
        raise ValueError(f"{value} is not as high as it is wide, which rlcore's convolutions are")
    return whole(sides[0])


def of_sb3(t: Translation, policy: str, shared: bool) -> None:
    """Translate the features extractor of Stable-Baselines3, NatureCNN for images (Mnih et al. 2015).

    Args:
        t: to translate.
        policy: one of ``OF_PICTURES``.
        shared: whether actor and critic share it unless the file says something else.
    """
    p = "policy_kwargs."
    only, options = policy == "CnnPolicy", f"{p}features_extractor_kwargs"
    kind = t.get(f"{p}features_extractor_class")
    plain = empty(kind) or str(kind).rpartition(".")[2] == "NatureCNN"
    t.drop(f"{p}features_extractor_class", "code is not converted; NatureCNN instead", off=(kind,) if plain else ())
    width = "features_dim" if only else "cnn_output_dim"
    for net in ("actor", "critic"):
        ours = f"agent.{net}.cnn."
        for name, values in (("channels", [32, 64, 64]), ("kernel_sizes", [8, 4, 3]), ("strides", [4, 2, 1])):
            t.set(ours + name, values, "policy", policy)
        t.use(f"{options}.{width}", f"{ours}output_size", 512 if only else 256, whole)
    t.row("(convolutions of NatureCNN)", "32, 64, 64", "default", "", "agent.actor.cnn, agent.critic.cnn")
    key = f"{p}share_features_extractor"
    if t.get(key, shared):
        t.row(key, True, "changed", "SB3 shares the convolutions of actor and critic; rlcore's are their own")
    t.same(key)
    t.drop(f"{p}normalize_images", "rlcore always scales bytes to 0..1", off=(True,))
