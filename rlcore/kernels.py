"""Fused GPU kernels for the PPO update, in Triton, each with a plain PyTorch twin.

``mlp``, ``gaussian_ppo_loss``, ``clipped_adam`` and ``gather`` run a kernel on CUDA tensors and their twin
(``mlp_reference`` and so on) elsewhere. Triton is imported at the first launch, so machines without it never miss it.
No kernel uses atomics: sums over the batch are stored per part and added in a fixed order, so equal inputs give equal
bits. Shapes are known at launch and nothing is read by the host, so CUDA graphs can capture every function.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rlcore.distributions import Gaussian

METRICS = ("loss/policy", "loss/value", "policy/entropy", "policy/kl", "policy/clip_fraction", "policy/std")
"""What the second result of ``gaussian_ppo_loss`` holds, in order."""

_TORCH: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu,
    "relu": F.relu,
    "tanh": torch.tanh,
    "leaky_relu": F.leaky_relu,
    "selu": F.selu,
}
ACTIVATIONS = frozenset(_TORCH)
"""Activations of ``mlp``: those whose derivative follows from their output."""

_PARTS = 64  # parts of the batch whose sums of bias gradients are kept apart; two or so for each multiprocessor
_WEIGHT_PARTS = 16  # the same for weight gradients, which are large: fewer parts are less to store and to add
_LOSS_ROWS = 64
_ADAM_BLOCK = 1024

constexpr = int  # Triton reads the annotation's name, mypy its meaning
tl: Any = None
_KERNELS: dict[str, Any] = {}


def available(device: torch.device) -> bool:
    """Tell whether kernels run on the device; elsewhere their twins do."""
    return device.type == "cuda" and _has_triton()


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _kernel(fn: Any) -> Any:
    """Return a function below as a Triton kernel, ``_kernel(fn)[grid](...)``."""
    if not _KERNELS:
        import triton

        module = globals()
        module["tl"] = triton.language
        for helper in ("_activate", "_slope", "_rounded"):  # called by kernels, so known to them under their names
            module[helper] = triton.jit(module[helper])
    if fn.__name__ not in _KERNELS:
        import triton

        _KERNELS[fn.__name__] = triton.jit(fn)
    return _KERNELS[fn.__name__]


def _blocks(size: int, block: int) -> int:
    return -(-size // block)


def _power(size: int, least: int = 16) -> int:
    return max(least, 1 << (size - 1).bit_length())


# --- Multi-layer perceptron ------------------------------------------------------------------------------------------


def _activate(z: Any, ACT: constexpr) -> Any:
    # Comparisons are arranged such that NaN stays NaN: PPO skips a step whose loss is not finite.
    if ACT == "elu":
        return tl.where(z > 0, z, tl.exp(z) - 1)
    elif ACT == "selu":
        return 1.0507009873554805 * tl.where(z > 0, z, 1.6732632423543772 * (tl.exp(z) - 1))
    elif ACT == "relu":
        return tl.where(z < 0, 0.0, z)
    elif ACT == "leaky_relu":
        return tl.where(z < 0, 0.01 * z, z)
    else:
        return 2 * tl.sigmoid(2 * z) - 1


def _slope(y: Any, ACT: constexpr) -> Any:
    """Return the activation's derivative where its output is ``y``."""
    if ACT == "elu":
        return tl.where(y > 0, 1.0, y + 1)
    elif ACT == "selu":
        return tl.where(y > 0, 1.0507009873554805, y + 1.7580993408473766)
    elif ACT == "relu":
        return tl.where(y > 0, 1.0, 0.0)
    elif ACT == "leaky_relu":
        return tl.where(y > 0, 1.0, 0.01)
    else:
        return 1 - y * y


def _rounded(v: Any, HALF: constexpr) -> Any:
    """Round to the precision of the next product: to bfloat16, or to TF32, which the unit itself would cut off."""
    if HALF:
        return v.to(tl.bfloat16)
    bits = (v.to(tl.uint32, bitcast=True) + 0x1000) & 0xFFFFE000
    return tl.where(v == v, bits.to(tl.float32, bitcast=True), v)


def _forward_kernel(
    x: Any, w: Any, b: Any, y: Any, M: Any, K: constexpr, N: constexpr, ACT: constexpr, HALF: constexpr,
    BM: constexpr, BN: constexpr, BK: constexpr,
) -> None:  # fmt: skip
    """y [M, N] = act(x [M, K] @ w [N, K]^T + b [N]).

    One program makes one BM x BN tile. Programs that share rows of x are neighbors, so that x comes from the cache.
    """
    row = (tl.program_id(0) // tl.cdiv(N, BN)).to(tl.int64) * BM
    cols = (tl.program_id(0) % tl.cdiv(N, BN)) * BN + tl.arange(0, BN)
    rows = tl.arange(0, BM)
    ks = tl.arange(0, BK)
    # Beyond the edge the last row is read again and not stored; cheaper than a mask.
    x_at = x + row * K + (tl.minimum(rows, M - 1 - row).to(tl.int32) * K)[:, None] + ks[None, :]
    w_at = w + (tl.minimum(cols, N - 1) * K)[None, :] + ks[:, None]
    total = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        if K % BK == 0:
            left = tl.load(x_at + k)
            right = tl.load(w_at + k)
        else:
            left = tl.load(x_at + k, mask=ks[None, :] < K - k, other=0.0)
            right = tl.load(w_at + k, mask=ks[:, None] < K - k, other=0.0)
        total = tl.dot(left, right, total, input_precision="tf32")
    inside = cols < N
    total = _activate(total + tl.load(b + cols, mask=inside, other=0.0)[None, :], ACT)
    tl.store(
        y + row * N + (rows * N)[:, None] + cols[None, :],
        _rounded(total, HALF),
        mask=(row + rows < M)[:, None] & inside[None, :],
    )


def _entry_kernel(
    g: Any, y: Any, dz: Any, db: Any, M: Any, parts: Any, P: Any, N: constexpr, ACT: constexpr, HALF: constexpr,
    BM: constexpr, BN: constexpr,
) -> None:  # fmt: skip
    """dz [M, N] = g * act'(y), and its column sums over every parts-th tile of rows, db [parts, P]."""
    part = tl.program_id(0) // tl.cdiv(N, BN)
    cols = (tl.program_id(0) % tl.cdiv(N, BN)) * BN + tl.arange(0, BN)
    rows = tl.arange(0, BM)
    at = (rows * N)[:, None] + cols[None, :]
    sums = tl.zeros((BN,), tl.float32)
    for tile in range(part, tl.cdiv(M, BM), parts):
        row = tile.to(tl.int64) * BM
        inside = (row + rows < M)[:, None] & (cols < N)[None, :]
        value = tl.load(g + row * N + at, mask=inside, other=0.0)
        value *= _slope(tl.load(y + row * N + at, mask=inside, other=0.0), ACT)
        sums += tl.sum(value, 0)
        tl.store(dz + row * N + at, _rounded(value, HALF), mask=inside)
    tl.store(db + part * P + cols, sums, mask=cols < N)


def _backward_kernel(
    dz: Any, w: Any, y: Any, x: Any, out: Any, db: Any, dw: Any, M: Any, parts: Any, P: Any,
    N: constexpr, K: constexpr, X: constexpr, W_N: constexpr, W_K: constexpr, ACT: constexpr, HALF: constexpr,
    BM: constexpr, BN: constexpr, BK: constexpr, BX: constexpr,
) -> None:  # fmt: skip
    """d [M, K] = (dz [M, N] @ w [N, K]) * act'(y [M, K]), and its column sums as in the entry kernel.

    With X > 0, y is the first layer's output: then d is not stored but multiplied at once with that layer's input
    x [M, X] to its weight gradient dw [parts, P], a row being a matrix [K, X]; this saves writing and reading d.
    One program makes BK columns of every parts-th tile of BM rows, so that sums stay in registers.
    """
    part = tl.program_id(0) // tl.cdiv(K, BK)
    cols = (tl.program_id(0) % tl.cdiv(K, BK)) * BK + tl.arange(0, BK)
    rows = tl.arange(0, BM)
    ns = tl.arange(0, BN)
    xs = tl.arange(0, BX)
    inner = tl.minimum(cols, K - 1)
    w_at = w + (inner * W_K)[None, :] + (ns * W_N)[:, None]
    sums = tl.zeros((BK,), tl.float32)
    product = tl.zeros((BK, BX), tl.float32)
    for tile in range(part, tl.cdiv(M, BM), parts):
        row = tile.to(tl.int64) * BM
        held = tl.minimum(rows, M - 1 - row).to(tl.int32)
        dz_at = dz + row * N + (held * N)[:, None] + ns[None, :]
        total = tl.zeros((BM, BK), tl.float32)
        for n in range(0, N, BN):
            if N % BN == 0:
                left = tl.load(dz_at + n)
                right = tl.load(w_at + n * W_N)
            else:
                left = tl.load(dz_at + n, mask=ns[None, :] < N - n, other=0.0)
                right = tl.load(w_at + n * W_N, mask=ns[:, None] < N - n, other=0.0)
            total = tl.dot(left, right, total, input_precision="tf32")
        inside = (row + rows < M)[:, None] & (cols < K)[None, :]
        value = total * _slope(tl.load(y + row * K + (held * K)[:, None] + inner[None, :]).to(tl.float32), ACT)
        value = tl.where(inside, value, 0.0)
        sums += tl.sum(value, 0)
        if X > 0:
            wide = tl.load(x + row * X + (held * X)[:, None] + xs[None, :], mask=(xs < X)[None, :], other=0.0)
            product = tl.dot(tl.trans(_rounded(value, HALF)), wide, product, input_precision="tf32")
        else:
            tl.store(out + row * K + (rows * K)[:, None] + cols[None, :], _rounded(value, HALF), mask=inside)
    tl.store(db + part * P + cols, sums, mask=cols < K)
    if X > 0:
        inside = (cols < K)[:, None] & (xs < X)[None, :]
        tl.store(dw + part * P + (cols * X)[:, None] + xs[None, :], product, mask=inside)


def _weight_kernel(
    dz: Any, x: Any, dw: Any, M: Any, parts: Any, P: Any, N: constexpr, K: constexpr,
    BM: constexpr, BN: constexpr, BK: constexpr,
) -> None:  # fmt: skip
    """dw [parts, P], a row being a matrix [N, K] = dz [M, N]^T @ x [M, K] over every parts-th tile of rows."""
    tiles = tl.cdiv(N, BN) * tl.cdiv(K, BK)
    part = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    ns = (tile // tl.cdiv(K, BK)) * BN + tl.arange(0, BN)
    ks = (tile % tl.cdiv(K, BK)) * BK + tl.arange(0, BK)
    rows = tl.arange(0, BM)
    dz_at = (rows * N)[:, None] + tl.minimum(ns, N - 1)[None, :]
    x_at = (rows * K)[:, None] + tl.minimum(ks, K - 1)[None, :]
    total = tl.zeros((BN, BK), tl.float32)
    for m in range(part * BM, M, parts * BM):
        row = m.to(tl.int64)
        inside = (row + rows < M)[:, None]
        left = tl.load(dz + row * N + dz_at, mask=inside, other=0.0)
        right = tl.load(x + row * K + x_at, mask=inside, other=0.0)
        total = tl.dot(tl.trans(left), right, total, input_precision="tf32")
    at = dw + part.to(tl.int64) * P + (ns * K)[:, None] + ks[None, :]
    tl.store(at, total, mask=(ns < N)[:, None] & (ks < K)[None, :])
