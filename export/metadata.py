"""What an exported file says about itself, as the text properties that ONNX keeps beside the graph.

Texts stand as they are; numbers, lists and tables as JSON. A fact that is not known is left out, never guessed.

| property | meaning |
|---|---|
| ``task``, ``algorithm``, ``iteration``, ``env_steps``, ``config_hash`` | where the policy comes from |
| ``env_options`` | options of the env that it was trained with |
| ``rlcore_version``, ``torch_version``, ``opset`` | how the file was made |
| ``observation_size``, ``observation_groups`` | length of ``obs``; groups in order: name, size, slice of ``obs`` |
| ``image_groups`` | read beside ``obs``: name, input, shape ``[C, H, W]``, type, scale of pixels inside |
| ``action_mask`` | name, input, size: 1 for what may be chosen now, 0 for what may not |
| ``observation_terms`` | terms in order: group, name, size, slice of ``obs``, and what else the env tells |
| ``observation_mean``, ``observation_std`` | of each input over the whole training, from the normalizer |
| ``observation_epsilon`` | what the normalizer adds to the deviation before it divides by it |
| ``observation_min``, ``observation_max`` | of each input in the recording, not in all training |
| ``observation_range_samples`` | finite observations in the recording, the last that were met |
| ``action_kind``, ``action_size``, ``action_low``, ``action_high`` | ``continuous`` or ``discrete``; null: no bound |
| ``action_parts`` | number of choices of each of several that are made at once; ``action_size`` is their sum |
| ``policy_scale``, ``policy_bias`` | what the policy scales its own -1..1 by, inside, where it does so |
| ``schema_version`` | of what follows, which ``schema.py`` checks and docs/deployment.md explains |
| ``action_terms`` | terms in order: name, size, slice of ``actions``, kind, joints, scale, offset, clip |
| ``joints``, ``commands`` | tables: poses, drives and limits of joints; components and ranges of commands |
| ``control_dt``, ``physics_dt`` (s), ``decimation`` | of the env |
| ``joint_names`` and others | the same under mjlab's names, as texts with commas: see ``mjlab_names.py`` |
| ``normalizer_inside`` | true: feed raw observations |
| ``gate`` | replaces risky actions inside: threshold, fallback, horizon (steps), whether it acts; or ``left out`` |
| ``tasks`` | of several, as ``task`` in ``obs`` or ``task_probability`` has them: name, what it reads and gives |
| ``trial_episodes`` | episodes of a trial, within which the recurrent state is kept: see ``rlcore.envs.trials`` |
| ``violations`` | signals of the env that are a violation where they are above a number |
| ``inputs``, ``outputs``, ``types`` | shape by name of each; type by name of all |
| ``format``, ``state`` | of TorchScript: ``torchscript``; shape by name of each buffer that is remembered |
| ``parity_max_abs_error``, ``parity_samples``, … | how closely the file follows the policy: see ``parity.py`` |
| ``golden_trace`` | steps to replay, to see that a controller does as the file does: see ``golden.py`` |
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from rlcore._version import __version__
from rlcore.agent import Policy
from rlcore.env import EnvSpec
from rlcore.export.mjlab_names import mjlab_properties
from rlcore.export.runner import NAME_LISTS, decode_metadata
from rlcore.export.schema import SCHEMA_VERSION, SchemaError, check_facts
from rlcore.tasks import choice_sizes, numbers_of

_ADDED_LATER = (
    "opset", "format", "inputs", "outputs", "types", "state", "golden_trace", "policy_scale", "policy_bias",
    "observation_mean", "observation_std", "observation_epsilon", "observation_min", "observation_max",
    "observation_range_samples",
)  # fmt: skip

EXTRA = "metadata.json"
"""What a TorchScript file keeps its properties in."""


class ExportError(ValueError):
    """A policy cannot be exported, or the file would not do what the policy does."""


def config_hash(config: Mapping[str, Any]) -> str:
    """Fingerprint of a configuration: SHA-256 of its JSON with sorted keys, first 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(plain(config), sort_keys=True).encode()).hexdigest()[:16]


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what an exported file says about itself, ONNX (with ``onnx`` or else ``onnxruntime``) or TorchScript.

    Numbers, lists and tables are decoded; a single number under a name that is not in this file's table stays text.

    Raises:
        ValueError: there is no such file, or it is not ONNX, nor TorchScript that was exported here.
    """
    _check_there(path)
    if zipfile.is_zipfile(path):
        return decode_metadata(_extra(path))
    if importlib.util.find_spec("onnx") is None:
        import onnxruntime

        session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
        return decode_metadata(session.get_modelmeta().custom_metadata_map)
    return decode_metadata({p.key: p.value for p in load_model(path).metadata_props})


def _extra(path: str | os.PathLike[str]) -> dict[str, str]:
    """The text properties that a TorchScript file keeps; nothing in it is executed."""
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(f"/extra/{EXTRA}"))
            properties = json.loads(archive.read(name))
        return {str(key): str(value) for key, value in properties.items()}
    except Exception as error:  # what reading a damaged archive ends in depends on the byte
        raise ValueError(f"'{os.fspath(path)}' has no {EXTRA}; it is no TorchScript file of rlcore") from error


def load_model(path: str | os.PathLike[str]) -> Any:
    """Read an ONNX file without what it keeps in other files.

    Raises:
        ValueError: there is no such file, or it is not ONNX.
    """
    import onnx

    _check_there(path)
    try:
        return onnx.load(os.fspath(path), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError; protobuf itself is no dependency of ours
        raise ValueError(f"'{os.fspath(path)}' is not an ONNX file: {' '.join(str(error).split())[:200]}") from error


def broken_in(model: Any) -> list[str]:
    """Names of the weights of a model with NaN in them; those in other files are not looked at."""
    import onnx

    weights = (w for w in model.graph.initializer if w.data_location != w.EXTERNAL)
    arrays = {w.name: onnx.numpy_helper.to_array(w) for w in weights}
    return [name for name, array in arrays.items() if array.dtype.kind == "f" and np.isnan(array).any()]


def _check_there(path: str | os.PathLike[str]) -> None:
    if os.path.isdir(path):
        raise ValueError(f"'{os.fspath(path)}' is a folder; name the file in it, such as policy.onnx")
    if not os.path.isfile(path):
        raise ValueError(f"there is no ONNX file '{os.fspath(path)}'; check the path")


RESERVED = ("obs", "actions", "risk", "task_probability", "h_in", "c_in", "h_out", "c_out")
"""Names of inputs and outputs that no observation group may take."""


def input_names(groups: Sequence[str]) -> dict[str, str]:
    """Name the input of each group that is read as it comes: as the group, with ``_input`` where that cannot be."""
    names: dict[str, str] = {}
    for group in groups:
        name = group
        # torch refuses names that are numbers.
        while not name or name.isdigit() or name in RESERVED or name in names.values() or name in {*groups} - {group}:
            name += "_input"
        names[group] = name
    return names


def build_metadata(spec: EnvSpec, policy: Policy, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Gather what is known about a policy before it is traced.

    Args:
        spec: the env it was trained on.
        policy: what is exported.
        extra: further facts, such as ``algorithm``, ``iteration``, ``env_steps`` and ``config_hash``.

    Raises:
        ExportError: terms do not add up to the size of their group or of the action, facts of the env contradict each
            other, or ``extra`` names a property that the exporter writes itself.
    """
    deployment = dict(spec.deployment)
    terms = deployment.pop("observation_terms", {})
    groups: list[dict[str, Any]] = []
    flat_terms: list[dict[str, Any]] = []
    start = 0
    for group, size in policy.observation_sizes.items():
        groups.append({"name": group, "size": size, "slice": [start, start + size]})
        named = terms.get(group) or [{"name": group, "size": size}]
        flat_terms += [{"group": group, **t} for t in _sliced(named, start, size, f"observation group '{group}'")]
        start += size
    names, images, mask = input_names(list(policy.raw_shapes)), [], None
    for group, shape in policy.raw_shapes.items():
        named_input = {"name": group, "input": names[group]}
        if len(shape) == 1:
            mask = {**named_input, "size": shape[0]}
            continue
        kind = spec.image_types.get(group, "float32")
        images.append({**named_input, "shape": shape, "type": kind, "scale": 1 / 255 if kind == "uint8" else 1.0})
    action_size = (len(spec.action_parts) or 1) if spec.discrete else spec.action_size
    action_terms = deployment.pop("action_terms", None) or [{"name": "action", "size": action_size}]
    facts: dict[str, Any] = {
        **deployment,  # first, so that it cannot replace what follows
        "schema_version": SCHEMA_VERSION,
        "rlcore_version": __version__,
        "torch_version": torch.__version__,
        "task": spec.task,
        "observation_size": start,
        "observation_groups": groups,
        "observation_terms": flat_terms,
        "image_groups": images or None,
        "action_mask": mask,
        "action_kind": "discrete" if spec.discrete else "continuous",
        "action_size": spec.action_size,
        "action_parts": spec.action_parts or None,
        "action_low": spec.action_low,
        "action_high": spec.action_high,
        "action_terms": _sliced(action_terms, 0, action_size, "the action"),
        "normalizer_inside": True,
        "gate": None if policy.gate is None else policy.gate.described(),
        "tasks": [_task_facts(name, own, spec.discrete) for name, own in spec.tasks.items()] or None,
    }
    try:
        check_facts(facts)
    except SchemaError as error:
        raise ExportError(f"{spec.task}: {error}") from error
    facts |= mjlab_properties(plain(facts))
    for key, value in (extra or {}).items():
        if key in facts or key in _ADDED_LATER or key.startswith("parity_"):
            raise ExportError(f"extra_metadata: '{key}' is written by the exporter; choose another name")
        facts[key] = value
    return {key: value for key, value in facts.items() if value is not None}


def _task_facts(name: str, spec: EnvSpec, discrete: bool) -> dict[str, Any]:
    """What one of several tasks reads of the groups and gives of the actions, from their first number on."""
    numbers = spec.action_size if discrete else numbers_of(spec)
    facts = {"name": name, "observation_sizes": spec.observation_sizes, "action_size": numbers}
    if spec.discrete:
        return {**facts, "choices": choice_sizes(spec)}
    return {**facts, "action_low": spec.action_low, "action_high": spec.action_high}


def encode_metadata(facts: Mapping[str, Any]) -> dict[str, str]:
    """Write facts as the text properties that ``read_metadata`` reads back.

    Raises:
        ExportError: a value is no text, number, list or table.
    """
    properties: dict[str, str] = {}
    for key, value in facts.items():
        try:
            if key in NAME_LISTS and not any("," in name for name in value):
                properties[key] = ",".join(value)
                continue
            properties[key] = value if isinstance(value, str) else json.dumps(plain(value), allow_nan=False)
        except TypeError as error:
            raise ExportError(f"metadata '{key}' cannot be written: {error}; give text, numbers or lists") from error
    return properties


def heading(metadata: Mapping[str, Any]) -> str:
    """What a file in another form begins with: one line, whatever stands in the metadata that it is made of."""
    written = f"{metadata.get('task', 'A policy')}, written by rlcore {metadata.get('rlcore_version', '')}"
    return " ".join(written.split())


def _sliced(terms: Sequence[Mapping[str, Any]], start: int, size: int, owner: str) -> list[dict[str, Any]]:
    end = start
    result = []
    for term in terms:
        if "name" not in term or "size" not in term:
            raise ExportError(f"a term of {owner} is {dict(term)}; each needs a 'name' and a 'size'")
        first, end = end, end + int(term["size"])
        result.append({**term, "slice": [first, end]})
    if end != start + size:
        listed = ", ".join(f"{term['name']} {term['size']}" for term in terms)
        raise ExportError(f"{owner} has size {size}, but its terms add up to {end - start}: {listed}; fix the env")
    return result


def plain(value: Any) -> Any:
    """Reduce tensors, arrays and tuples to lists and numbers; infinite and NaN to null, for JSON has neither."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
