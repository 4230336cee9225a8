"""A golden trace: steps of a file, kept in its metadata, that a controller can replay to see that it does the same.

| entry of ``golden_trace`` | meaning |
|---|---|
| ``steps`` | T, of one robot, one after the other |
| ``resets`` | steps before which the recurrent state is cleared |
| ``obs`` | ``[T, O]``, what goes in; rounded to 11 bits, so that it takes less room |
| ``mask`` | ``[T, K]``, choices that are allowed, where the file reads a mask |
| ``actions`` | ``[T, A]``, what comes out; discrete: ``[T]`` or ``[T, D]`` |
| ``risk`` | ``[T]``, where the file has a gate |

Arrays are float32, little-endian, row after row, compressed by zlib and written in base64.
"""

from __future__ import annotations

import base64
import binascii
import os
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rlcore.export.observations import finite_part
from rlcore.export.runner import OnnxPolicy

STEPS = 64
RESETS = (0, 40)
BITS = 11


def golden_trace(
    file: str | os.PathLike[str] | OnnxPolicy,
    recording: Mapping[str, Tensor] | None,
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Any] | None:
    """Record steps of a file; None where it reads images, which would make it many times as large.

    Args:
        file: the ONNX file, or what runs another.
        recording: as for ``verify``, whose first env's observations are taken, from the first on again where it is
            short; None draws random ones.
        shapes: of the groups that the policy reads, as ``group_shapes`` tells; vectors of ``obs`` first.
    """
    policy = file if isinstance(file, OnnxPolicy) else OnnxPolicy(file)
    if any(len(shape) != 1 for shape in shapes.values()) or not policy.observation_size:
        return None
    if recording is None:
        generator = np.random.default_rng(1)
        groups = {g: generator.standard_normal((STEPS, *shape)).astype(np.float32) for g, shape in shapes.items()}
        groups |= {g: np.ones_like(groups[g]) for g in policy.groups}
    else:
        obs, _, _ = finite_part(recording, shapes)
        groups = {g: np.resize(x[:, 0].numpy(), (STEPS, *shapes[g])) for g, x in obs.items()}
    flat = rounded(np.concatenate([x for g, x in groups.items() if g not in policy.groups], -1))  # [T, O]
    masks = {g: groups[g] for g in policy.groups}
    sizes = [shape[0] for g, shape in shapes.items() if g not in masks]
    parts = dict(zip([g for g in shapes if g not in masks], np.split(flat, np.cumsum(sizes)[:-1], -1), strict=True))
    actions, risks = [], []
    for t in range(STEPS):
        if t in RESETS:
            policy.reset()
        actions.append(policy({g: x[t] for g, x in (parts | masks).items()}))
        risks.append(policy.risk)
    arrays = {"obs": flat, **dict(zip(["mask"], masks.values(), strict=False)), "actions": np.stack(actions)}
    if risks[0] is not None:
        arrays["risk"] = np.stack([np.asarray(risk) for risk in risks])
    return {"steps": STEPS, "resets": list(RESETS), **{name: _encoded(array) for name, array in arrays.items()}}


def decoded(trace: Any) -> dict[str, NDArray[np.float32]] | None:
    """The arrays of a golden trace, ``[T, ...]`` each, and ``resets`` int; None where it is none."""
    try:
        steps = int(trace["steps"])
        names = [name for name in ("obs", "mask", "actions", "risk") if name in trace]
        arrays = {
            n: np.frombuffer(zlib.decompress(base64.b64decode(trace[n])), "<f4").reshape(steps, -1) for n in names
        }
        return {**arrays, "resets": np.asarray(trace["resets"], int).reshape(-1)}
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, binascii.Error, zlib.error):
        return None


def rounded(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Numbers to ``BITS`` bits, which float32 holds with zeros behind them."""
    mantissa, exponent = np.frexp(x)
    nearest: NDArray[np.float32] = np.ldexp(np.round(mantissa * 2**BITS) / 2**BITS, exponent).astype(np.float32)
    return nearest


def _encoded(array: NDArray[Any]) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array, "<f4").tobytes(), 9)).decode()
