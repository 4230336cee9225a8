"""Layers of a perceptron, forward and back: the kernels that ``mlp`` launches, and what others use of them."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from triton.language import constexpr
from triton.language import tensor as array


@triton.jit
def _activate(z: array, ACT: constexpr) -> Any:
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


@triton.jit
def _slope(y: array, ACT: constexpr) -> Any:
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


@triton.jit
def _rounded(v: array, HALF: constexpr) -> Any:
    """Round to the precision of the next product: to bfloat16, or to TF32, which the unit itself would cut off."""
    if HALF:
        return v.to(tl.bfloat16)
    else:
        bits = (v.to(tl.uint32, bitcast=True) + 0x1000) & 0xFFFFE000
        return tl.where(v == v, bits.to(tl.float32, bitcast=True), v)


@triton.jit
def _to_kind(v: array, KIND: constexpr) -> Any:
    """Round to the precision of the next product, ``bf16`` or ``tf32``; any other is that of v."""
    if KIND == "bf16":
        return _rounded(v, True)
    elif KIND == "tf32":
        return _rounded(v, False)
    else:
        return v


@triton.jit
def _forward_kernel(
    x: array, w: array, b: array, y: array, head: array, head_b: array, out: array, M: array,
    K: constexpr, N: constexpr, A: constexpr, ACT: constexpr, HALF: constexpr,
    BM: constexpr, BN: constexpr, BK: constexpr, BA: constexpr,
) -> None:  # fmt: skip
    """Make y [M, N] = act(x [M, K] @ w [N, K]^T + b [N]), and with A > 0 out [M, A] = y @ head [A, N]^T + head_b [A].

    One program makes one BM x BN tile, for a head of whole rows. Programs that share rows of x are neighbors, so that x
    comes from the cache.
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
    valid = (row + rows < M)[:, None]
    total = _rounded(_activate(total + tl.load(b + cols, mask=inside, other=0.0)[None, :], ACT), HALF)
    tl.store(y + row * N + (rows * N)[:, None] + cols[None, :], total, mask=valid & inside[None, :])
    if A > 0:
        outs = tl.arange(0, BA)
        held = inside[:, None] & (outs < A)[None, :]
        last = tl.load(head + (outs * N)[None, :] + cols[:, None], mask=held, other=0.0)
        total = tl.where(inside[None, :], total, 0.0)
        value = tl.dot(total, _rounded(last, False), input_precision="tf32")
        value += tl.load(head_b + outs, mask=outs < A, other=0.0)[None, :]
        tl.store(out + row * A + (rows * A)[:, None] + outs[None, :], value, mask=valid & (outs < A)[None, :])


@triton.jit
def _entry_kernel(
    g: array, w: array, y: array, dz: array, db: array, dw: array, M: array, P: array,
    N: constexpr, A: constexpr, ACT: constexpr, HALF: constexpr, BM: constexpr, BN: constexpr, BA: constexpr,
) -> None:  # fmt: skip
    """Make dz [M, N] = (g [M, A] @ w [A, N]) * act'(y [M, N]), or with A = 0 of g [M, N] itself.

    One program makes one tile, and in row i of db [M / BM, P] its column sums, in dw those of g and its product with y.
    """
    row = tl.program_id(0).to(tl.int64) * BM
    cols = tl.program_id(1) * BN + tl.arange(0, BN)
    rows = tl.arange(0, BM)
    inside = (row + rows < M)[:, None] & (cols < N)[None, :]
    at = row * N + (rows * N)[:, None] + cols[None, :]
    out = tl.load(y + at, mask=inside, other=0.0)
    part = tl.program_id(0).to(tl.int64) * P
    if A > 0:
        ins = tl.arange(0, BA)
        have = (row + rows < M)[:, None] & (ins < A)[None, :]
        grad = tl.load(g + row * A + (rows * A)[:, None] + ins[None, :], mask=have, other=0.0)
        if tl.program_id(1) == 0:
            tl.store(dw + part + A * N + ins, tl.sum(grad, 0), mask=ins < A)
        grad = _rounded(grad, False)
        held = (ins < A)[:, None] & (cols < N)[None, :]
        weight = tl.load(w + (ins * N)[:, None] + cols[None, :], mask=held, other=0.0)
        product = tl.dot(tl.trans(grad), out, input_precision="tf32")
        tl.store(dw + part + (ins * N)[:, None] + cols[None, :], product, mask=held)
        value = tl.dot(grad, weight, input_precision="tf32") * _slope(out, ACT)
    else:
        value = tl.load(g + at, mask=inside, other=0.0) * _slope(out, ACT)
    tl.store(db + part + cols, tl.sum(value, 0), mask=cols < N)
    tl.store(dz + at, _rounded(value, HALF), mask=inside)


@triton.jit
def _backward_kernel(
    dz: array, w: array, y: array, x: array, out: array, db: array, dw: array, M: array, P: array,
    N: constexpr, K: constexpr, X: constexpr, W_N: constexpr, W_K: constexpr, ACT: constexpr, HALF: constexpr,
    BM: constexpr, BN: constexpr, BK: constexpr, BX: constexpr,
) -> None:  # fmt: skip
    """Make d [M, K] = (dz [M, N] @ w [N, K]) * act'(y [M, K]).

    One program makes one BM x BK tile of d, and its column sums in row i of db [M / BM, P]. With X > 0, y is the first
    layer's output: then d is not stored but multiplied at once with that layer's input x [M, X], in row i of dw to be
    added up to the weight gradient [K, X]; this saves writing and reading d, the largest matrix of all.
    """
    row = (tl.program_id(0) // tl.cdiv(K, BK)).to(tl.int64) * BM
    part = (tl.program_id(0) // tl.cdiv(K, BK)).to(tl.int64) * P
    cols = (tl.program_id(0) % tl.cdiv(K, BK)) * BK + tl.arange(0, BK)
    rows = tl.arange(0, BM)
    ns = tl.arange(0, BN)
    valid = row + rows < M
    held = tl.minimum(rows, M - 1 - row).to(tl.int32)
    inner = cols if K % BK == 0 else tl.minimum(cols, K - 1)
    dz_at = dz + row * N + (rows * N)[:, None] + ns[None, :]
    w_at = w + (inner * W_K)[None, :] + (ns * W_N)[:, None]
    total = tl.zeros((BM, BK), tl.float32)
    y_at = y + row * K + (held * K)[:, None] + inner[None, :]
    if HALF:  # small enough to be held in registers from the start, which hides the time it takes to come
        reached = tl.load(y_at)
    for n in range(0, N, BN):
        if N % BN == 0:
            left = tl.load(dz_at + n, mask=valid[:, None], other=0.0)
            right = tl.load(w_at + n * W_N)
        else:
            left = tl.load(dz_at + n, mask=valid[:, None] & (ns[None, :] < N - n), other=0.0)
            right = tl.load(w_at + n * W_N, mask=ns[:, None] < N - n, other=0.0)
        total = tl.dot(left, right, total, input_precision="tf32")
    if not HALF:
        reached = tl.load(y_at)
    value = total * _slope(reached.to(tl.float32), ACT)
    tl.store(db + part + cols, tl.sum(value, 0), mask=cols < K)
    value = _rounded(value, HALF)
    if X > 0:
        xs = tl.arange(0, BX)
        wide = tl.load(x + row * X + (held * X)[:, None] + xs[None, :], mask=(xs < X)[None, :], other=0.0)
        product = tl.dot(tl.trans(value), wide, input_precision="tf32")
        at = dw + part + (cols * X)[:, None] + xs[None, :]
        tl.store(at, product, mask=(cols < K)[:, None] & (xs < X)[None, :])
    else:
        at = out + row * K + (rows * K)[:, None] + cols[None, :]
        tl.store(at, value, mask=valid[:, None] & (cols < K)[None, :])


@triton.jit
def _transpose_kernel(x: array, out: array, M: array, S: array, X: constexpr, BM: constexpr, BX: constexpr) -> None:
    """Make out [X, M], with rows that begin S apart, of x [M, X]."""
    row = tl.program_id(0).to(tl.int64) * BM
    rows = tl.arange(0, BM)
    xs = tl.arange(0, BX)
    inside = (row + rows < M)[:, None] & (xs < X)[None, :]
    value = tl.load(x + row * X + (rows * X)[:, None] + xs[None, :], mask=inside, other=0.0)
    tl.store(out + row + (xs.to(tl.int64) * S)[:, None] + rows[None, :], tl.trans(value), mask=tl.trans(inside))


@triton.jit
def _turned_kernel(
    dz: array, w: array, y: array, x: array, out: array, db: array, dw: array, M: array, P: array,
    N: constexpr, K: constexpr, X: constexpr, ACT: constexpr, HALF: constexpr, STEPS: constexpr,
    BM: constexpr, BN: constexpr, BK: constexpr, BX: constexpr,
) -> None:  # fmt: skip
    """Do as ``_backward_kernel`` with descriptors of dz, w, y and out, by which the GPU copies tiles by itself.

    It makes d^T, as the product with x then takes that from registers. Matrix units read TF32 along the summed
    dimension only: unless HALF, w is [K, N], and x a descriptor of [X, M]. One program goes through STEPS blocks of
    rows, for which it makes a single row of db and dw.
    """
    strip = tl.program_id(0) // tl.cdiv(K, BK)
    col = (tl.program_id(0) % tl.cdiv(K, BK)) * BK
    cols = col + tl.arange(0, BK)
    xs = tl.arange(0, BX)
    sums = tl.zeros((BK,), tl.float32)
    product = tl.zeros((BK, BX), tl.float32)
    for step in tl.range(0, STEPS):
        row = (strip * STEPS + step) * BM
        total = tl.zeros((BK, BM), tl.float32)
        for n in tl.range(0, N, BN):
            left = w.load([n, col]).T if HALF else w.load([col, n])
            total = tl.dot(left, dz.load([row, n]).T, total, input_precision="tf32")
        # Beyond the edges of a matrix its descriptor reads zeros, which add nothing below.
        value = total * _slope(y.load([row, col]).T.to(tl.float32), ACT)
        sums += tl.sum(value, 1)
        value = _rounded(value, HALF)
        if X > 0:
            if HALF:
                held = tl.minimum(tl.arange(0, BM), M - 1 - row).to(tl.int32)
                at = x + row.to(tl.int64) * X + (held * X)[:, None] + xs[None, :]
                wide = tl.load(at, mask=(xs < X)[None, :], other=0.0)
            else:
                wide = x.load([0, row]).T
            product = tl.dot(value, wide, product, input_precision="tf32")
        else:
            out.store([row, col], value.T)
    part = strip.to(tl.int64) * P
    tl.store(db + part + cols, sums, mask=cols < K)
    if X > 0:
        at = dw + part + (cols * X)[:, None] + xs[None, :]
        tl.store(at, product, mask=(cols < K)[:, None] & (xs < X)[None, :])
