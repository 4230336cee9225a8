"""Models in skrl's runner YAML: blocks of layers, and before 1.3 one stack."""

from __future__ import annotations

import ast
from typing import Any

from rlcore.config import ConfigError, shown
from rlcore.train.importers.convolutions import of_skrl
from rlcore.train.importers.translation import UNKNOWN, Translation
from rlcore.train.importers.values import activation, empty, whole, widths

_Layer = tuple[str, Any, Any]
OPERATIONS = ("permute", "concatenate", "one_hot_encoding")
STACK = ("input_shape", "hiddens", "hidden_activation")
"""How a model was described before 1.3: one stack of layers, and no list of blocks."""


def observed(t: Translation, actor: set[str], critic: set[str], who: str) -> None:
    """Translate which of OBSERVATIONS and STATES actor and critic read; ``who``: the critic in words."""
    # Before 2.0 both words meant the observations; since then STATES are the critic's own.
    own = any(name.startswith("STATES") for name in critic - actor) and "STATES" not in actor
    for words, reads, ours, group in (
        ("the actor", actor, "agent.actor_obs", "policy"),
        (who, critic, "agent.critic_obs", "critic" if own else "policy"),
    ):
        found = sorted(reads) or ["OBSERVATIONS"]
        pictures = [name.partition("/")[2] for name in found if "/" in name]
        groups = [group] * (len(pictures) < len(found)) + [f"{group}/{picture}" for picture in pictures]
        t.builtin(f"observations of {words}", found, ours, groups)


def output_of(
    t: Translation, role: str, note: str = "rlcore's output layers are linear", squashed: bool = False
) -> None:
    """Translate the last layer of a model.

    Args:
        t: to translate.
        role: name of the model.
        note: what rlcore does.
        squashed: a tanh is what rlcore does.
    """
    p = f"models.{role}."
    output = str(t.get(f"{p}output", "ACTIONS"))
    plain = ("ACTIONS", "ONE") + (("tanh(ACTIONS)",) if squashed else ())
    t.drop(f"{p}output", note, off=(output,) if output.replace(" ", "").replace("Shape.", "") in plain else ())
    if not any(t.has(p + name) for name in STACK):
        return
    t.same(f"{p}output_shape", "the action space decides" if role == "policy" else "rlcore's critics predict one value")
    t.drop(f"{p}output_activation", note, off=("", None, "tanh") if squashed else ("", None))
    if not t.has(f"{p}output_activation") and not squashed:
        t.row(f"({p}output_activation)", "tanh", "changed", f"skrl's default before 1.3; {note}")
    t.drop(f"{p}output_scale", "rlcore does not scale what its networks give", off=(1.0, None))


def layers_of(t: Translation, role: str, net: str) -> set[str]:
    """Translate a list of layer blocks to hidden layers; returns which of OBSERVATIONS and STATES it reads."""
    key = f"models.{role}.network"
    if not t.has(key) and any(t.has(f"models.{role}.{name}") for name in STACK):
        return _stack(t, f"models.{role}.", net)
    blocks = t.get(key)
    if not isinstance(blocks, list) or not blocks or not all(isinstance(block, dict) for block in blocks):
        raise ConfigError(
            f"skrl: {key}: {shown(blocks)} cannot be converted: "
            "give a list of blocks with name, input, layers and activations"
        )
    dims: list[int] = []
    functions: list[Any] = []
    notes: list[str] = []
    reads: set[str] = set()
    roots = others = 0
    encoder: list[_Layer] = []  # the first block of convolutions
    for block in blocks:
        layers = t.read(key, None, lambda _: _layers(block))  # noqa: B023 - used at once
        pictures = any(kind == "conv2d" for kind, _, _ in layers)
        found, root, remark = _input(str(block.get("input", "")), pictures)
        reads |= found
        notes += remark
        notes += [f"rlcore has no layer {kind}" for kind, _, _ in layers if kind not in ("linear", "conv2d")]
        if block.get("type"):
            notes.append(f"skrl ignores type: {block['type']} and builds linear layers, as here")
        if pictures:
            notes += ["all pictures are read as the first are"] if encoder else []
            encoder = encoder or layers
            continue
        others += 1
        roots += root
        linear = [width for kind, width, _ in layers if kind == "linear"]
        given = block.get("activations") or []
        functions += given if isinstance(given, list) else [given]
        if linear and not given:
            notes.append(f"block '{block.get('name')}' has no activation in skrl")
        if roots <= 1 or not root:  # of blocks side by side the first counts
            dims += linear
    if roots > 1:
        notes.append("blocks side by side become one network on the joined observations")
    if encoder:
        after = _encoder(t, key, net, encoder, joined=roots > 0)
        dims, functions = [width for width, _ in after] + dims, [function for _, function in after] + functions
        if 0 < roots < others:
            notes.append("vectors meet the features of pictures before all hidden layers")
    kind, remarks = _one_activation(functions)
    notes += remarks if functions else []
    note = "; ".join(dict.fromkeys(notes))
    t.use(key, f"agent.{net}.hidden_dims", [], lambda _: dims, note, changed=bool(notes))
    t.use(key, f"agent.{net}.activation", [], lambda _: activation(kind), changed=bool(functions and remarks))
    for i, block in enumerate(blocks):
        for name in sorted(set(block) - {"name", "input", "layers", "activations", "type", "num_layers"}):
            t.row(f"{key}.{i}.{name}", block[name], "dropped", UNKNOWN)
    return reads


def _stack(t: Translation, p: str, net: str) -> set[str]:
    """Translate the hidden layers of a model as they were described before 1.3; ``p`` is where."""
    reads, _, remarks = _input(str(t.get(f"{p}input_shape", "STATES")))
    t.row(f"{p}input_shape", t.get(f"{p}input_shape", "STATES"), "changed" if remarks else "kept", "; ".join(remarks))
    t.use(f"{p}hiddens", f"agent.{net}.hidden_dims", [256, 256], widths)
    functions = t.get(f"{p}hidden_activation", ["relu", "relu"])
    kind, remarks = _one_activation(functions if isinstance(functions, list) else [functions])
    t.use(
        f"{p}hidden_activation",
        f"agent.{net}.activation",
        ["relu", "relu"],
        lambda _: activation(kind),
        "; ".join(remarks),
        bool(remarks),
    )
    return reads


def _one_activation(functions: list[Any]) -> tuple[str, list[str]]:
    """The first function of a list, and a remark if there are others; "" is none in skrl."""
    kinds = list(dict.fromkeys("" if empty(function) else str(function) for function in functions))
    named = [kind for kind in kinds if kind]
    kind = named[0] if named else "elu"
    return kind, [f"one activation for all layers: {kind}"] if len(kinds) > 1 or not named else []


def _layers(block: dict[str, Any]) -> list[_Layer]:
    """Kind, width or other options, and activation of each layer of a block, those that flatten aside."""
    layers, given = (
        value if isinstance(value, list) else [value] for value in (block.get("layers", []), block.get("activations"))
    )
    functions = given * len(layers) if len(given) == 1 else [*given, *[None] * len(layers)]
    found: list[_Layer] = []
    for layer, function in zip(layers, functions, strict=False):
        if isinstance(layer, dict) and layer:
            name, options = next(iter(layer.items()))
            kind = str(name).lower()
            if kind == "linear":
                if isinstance(options, dict):
                    options = options.get("out_features", options.get("features"))
                options = widths(options)[0]
            if kind != "flatten":
                found.append((kind, options, function))
        elif isinstance(layer, (int, float)):
            found.append(("linear", whole(layer), function))
        elif layer != "flatten":
            found.append((str(layer), None, function))
    return found


def _encoder(t: Translation, key: str, net: str, layers: list[_Layer], joined: bool) -> list[tuple[int, Any]]:
    """Translate a block of convolutions; ``joined`` with vectors after it.

    Returns:
        Width and activation of its linear layers that are hidden layers in rlcore.
    """
    linear = [(width, function) for kind, width, function in layers if kind == "linear"]
    before = linear if joined else []  # of what it is joined with
    kind, remarks = _one_activation([f for kind, _, f in layers if kind == "conv2d"] + [f for _, f in before[-1:]])
    remarks += ["of the linear layers after convolutions the last one is kept"] if len(before) > 1 else []
    pictures = [options for kind, options, _ in layers if kind == "conv2d"]
    of_skrl(t, key, net, pictures, kind, before[-1][0] if before else None, remarks)
    return [] if joined else linear


def _input(expression: str, pictures: bool = False) -> tuple[set[str], bool, list[str]]:
    """Read an input expression without evaluating it.

    Args:
        expression: as the file has it.
        pictures: what reads it are convolutions, so that one member is a group of its own in rlcore.

    Returns:
        Which of OBSERVATIONS and STATES occur, such a member as ``OBSERVATIONS/camera``, whether any does, and remarks.
    """
    try:
        tree = ast.parse(expression, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set(), False, [f"input {shown(expression)} is not understood"]
    reads, remarks = set(), []
    members: set[ast.AST] = set()
    for node in ast.walk(tree):  # from the outside in
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        if node in members:
            continue
        if name.removesuffix("_ACTIONS") in ("OBSERVATIONS", "STATES"):
            reads.add(name.removesuffix("_ACTIONS"))  # STATES_ACTIONS is of critics, Shape.STATES is older still
        elif isinstance(node, ast.Subscript):
            whole_group, member = node.value, node.slice
            key = member.value if isinstance(member, ast.Constant) else None
            if pictures and isinstance(whole_group, ast.Name) and isinstance(key, str):
                members.add(whole_group)
                reads.add(f"{whole_group.id}/{key}")
                continue
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
