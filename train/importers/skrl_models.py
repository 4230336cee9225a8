"""Models in skrl's runner YAML: blocks of layers, and before 1.3 one stack."""

from __future__ import annotations

import ast
from typing import Any

from rlcore.config import ConfigError, shown
from rlcore.train.importers.translation import NO_CNN, UNKNOWN, Translation
from rlcore.train.importers.values import activation, empty, whole, widths

OPERATIONS = ("permute", "concatenate", "one_hot_encoding")
STACK = ("input_shape", "hiddens", "hidden_activation")
"""How a model was described before 1.3: one stack of layers, and no list of blocks."""


def observed(t: Translation, actor: set[str], critic: set[str], who: str) -> None:
    """Translate which of OBSERVATIONS and STATES actor and critic read; ``who``: the critic in words."""
    # Before 2.0 both words meant the observations; since then STATES are the critic's own.
    own = "STATES" in critic and "STATES" not in actor
    t.builtin("observations of the actor", sorted(actor) or ["OBSERVATIONS"], "agent.actor_obs", ["policy"])
    ours = ["critic"] if own else ["policy"]
    t.builtin(f"observations of {who}", sorted(critic) or ["OBSERVATIONS"], "agent.critic_obs", ours)


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
    roots = 0
    for block in blocks:
        found, root, remark = _input(str(block.get("input", "")))
        reads |= found
        roots += root
        notes += remark
        if block.get("type"):
            notes.append(f"skrl ignores type: {block['type']} and builds linear layers, as here")
        linear, convolution = t.read(key, None, lambda _: _layers(block.get("layers", [])))  # noqa: B023 - used at once
        notes += [NO_CNN] if convolution else []
        given = block.get("activations") or []
        functions += given if isinstance(given, list) else [given]
        if linear and not given:
            notes.append(f"block '{block.get('name')}' has no activation in skrl")
        if roots <= 1 or not root:  # of blocks side by side the first counts
            dims += linear
    if roots > 1:
        notes.append("blocks side by side become one network on the joined observations")
    kind, remarks = _one_activation(functions, last=NO_CNN in notes)  # convolutions come first
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


def _one_activation(functions: list[Any], last: bool = False) -> tuple[str, list[str]]:
    """The first function of a list, or the last, and a remark if there are others; "" is none in skrl."""
    kinds = list(dict.fromkeys("" if empty(function) else str(function) for function in functions))
    named = [kind for kind in kinds if kind]
    kind = named[-1 if last else 0] if named else "elu"
    return kind, [f"one activation for all layers: {kind}"] if len(kinds) > 1 or not named else []


def _layers(layers: Any) -> tuple[list[int], bool]:
    """Widths of the linear layers of a block, and whether it has others."""
    linear: list[int] = []
    convolution = False
    for layer in layers if isinstance(layers, list) else [layers]:
        if isinstance(layer, dict) and "linear" in layer:
            options = layer["linear"]
            if isinstance(options, dict):
                options = options.get("out_features", options.get("features"))
            linear += widths(options)[:1]
        elif isinstance(layer, (int, float)):
            linear.append(whole(layer))
        elif layer != "flatten":
            convolution = True
    return linear, convolution


def _input(expression: str) -> tuple[set[str], bool, list[str]]:
    """Read an input expression without evaluating it.

    Returns:
        Which of OBSERVATIONS and STATES occur, whether any does, and remarks.
    """
    try:
        tree = ast.parse(expression, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set(), False, [f"input {shown(expression)} is not understood"]
    reads, remarks = set(), []
    for node in ast.walk(tree):
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        if name.removesuffix("_ACTIONS") in ("OBSERVATIONS", "STATES"):
            reads.add(name.removesuffix("_ACTIONS"))  # STATES_ACTIONS is of critics, Shape.STATES is older still
        elif isinstance(node, ast.Subscript):
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
