"""A fused multi-layer perceptron for NVIDIA GPUs, in Triton, with a plain PyTorch twin.

``mlp`` runs kernels on CUDA tensors and its twin ``mlp_reference`` elsewhere. See ``launcher`` for what holds of all
kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rlcore.launcher import available, kernel, num_blocks, power_of_two, product, shared_memory

_TORCH: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu,
    "relu": F.relu,
    "tanh": torch.tanh,
    "leaky_relu": F.leaky_relu,
    "selu": F.selu,
}
ACTIVATIONS = frozenset(_TORCH)
"""Activations of ``mlp``: those whose derivative follows from their output."""


# Parameters of kernels: numbers settled when a kernel is compiled, and tensors or other numbers. Loading Triton puts
# its own names in their place.
constexpr = Any
array = Any
tl: Any = None
_HELPERS = ("_activate", "_slope", "_rounded")


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


def _rounded(v: array, HALF: constexpr) -> Any:
    """Round to the precision of the next product: to bfloat16, or to TF32, which the unit itself would cut off."""
    if HALF:
        return v.to(tl.bfloat16)
    else:
        bits = (v.to(tl.uint32, bitcast=True) + 0x1000) & 0xFFFFE000
        return tl.where(v == v, bits.to(tl.float32, bitcast=True), v)


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


# Block sizes, measured on an H200 with layers of 512, 256 and 128, at 24,576 rows and (large) 393,216. Few warps and
# registers let several programs share a multiprocessor, so that one loads while another computes; with fewer rows that
# matters more than large tiles. Slower: the first two layers in one kernel, which saves reading the first one's output
# (66 instead of 54 us), and programs that sum over four tiles, which saves writing sums (185 ms an iteration, not 150).
_PART = 128  # samples whose gradients are summed within one program
_LARGE = 2**17  # rows
_ROOM = 160_000  # bytes of a multiprocessor's own memory, from which on large tiles fit
_WIDEST_HEAD = 64  # that is made along with the layer below
_FIRST = 64  # widest input whose weight gradient is computed along the way
_TILES: dict[str, dict[str, int]] = {
    "forward": {"BM": 64, "BN": 128, "BK": 32, "num_warps": 4, "num_stages": 3},
    "forward_large": {"BM": 128, "BN": 128, "BK": 32, "num_warps": 8, "num_stages": 3},
    "forward_half": {"BM": 64, "BN": 128, "BK": 64, "num_warps": 4, "num_stages": 3},
    "forward_half_large": {"BM": 128, "BN": 128, "BK": 64, "num_warps": 4, "num_stages": 3},
    "forward_narrow": {"BM": 64, "BN": 128, "BK": 16, "num_warps": 4, "num_stages": 3},
    "entry": {"BN": 64, "num_warps": 4},
    "backward": {"BN": 32, "BK": 64, "num_warps": 4, "num_stages": 3},
    "backward_roomy": {"BN": 32, "BK": 128, "num_warps": 4, "num_stages": 3},  # in 96 KiB
    "backward_first": {"BN": 32, "BK": 256, "num_warps": 8, "num_stages": 3},  # in 144 KiB; the others need 72
    "backward_half": {"BN": 64, "BK": 64, "num_warps": 4, "num_stages": 3},
}


def _tiles(kernel: str, half: bool, large: bool, **sizes: int) -> dict[str, int]:
    """Return a launch's block sizes, none much larger than the matrix, nor too small for the matrix units."""
    names = [kernel + "_half" * half, kernel]
    tiles = next(dict(_TILES[name]) for name in [f"{names[0]}_large"] * large + names if name in _TILES)
    for name, size in sizes.items():
        tiles[name] = min(tiles[name], power_of_two(size, 64))
    return tiles


class _MLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: str, half: bool, head: bool, *parameters: Tensor) -> Tensor:
        kind = torch.bfloat16 if half else torch.float32
        parameters = tuple(p.detach() for p in parameters)
        layers = parameters[:-2] if head else parameters
        weights = [w.contiguous() for w in layers[::2]]
        if half:
            rounded = [torch.empty_like(w, dtype=kind) for w in weights]
            torch._foreach_copy_(rounded, weights)  # in one launch
            weights = rounded
        outputs = [x.detach().to(kind).contiguous()]
        rows, result = x.shape[0], x
        large = rows > _LARGE and shared_memory(x.device) > _ROOM
        for i, (w, b) in enumerate(zip(weights, layers[1::2], strict=True)):
            n, k = w.shape
            final = i == len(weights) - 1
            result = x.new_empty(rows, n, dtype=torch.float32 if final else kind)
            outputs.append(result)
            tiles = _tiles("forward" if k > 64 else "forward_narrow", half, large, BN=n)
            columns = num_blocks(n, tiles["BN"])
            actions = parameters[-2].shape[0] if head and final and columns == 1 else 0
            actions = actions if actions <= _WIDEST_HEAD else 0
            if actions:
                result = x.new_empty(rows, actions, dtype=torch.float32)
            kernel(_forward_kernel)[(num_blocks(rows, tiles["BM"]) * columns,)](
                outputs[i], w, b, outputs[-1], parameters[-2], parameters[-1], result, rows,
                k, n, actions, activation, half and not final, BA=power_of_two(actions), **tiles,
            )  # fmt: skip
        if head and result is outputs[-1]:  # too wide to be made along the way
            result = F.linear(result, *parameters[-2:])
        ctx.save_for_backward(*outputs, *weights, *((parameters[-2],) if head else ()))
        ctx.activation, ctx.half, ctx.count, ctx.head = activation, half, len(weights), head
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        count, half, act, saved = ctx.count, ctx.half, ctx.activation, ctx.saved_tensors
        learned = any(ctx.needs_input_grad[4:])  # false where a gradient only passes through
        outputs, weights = saved[: count + 1], saved[count + 1 :]
        rows, widths = outputs[0].shape[0], [y.shape[1] for y in outputs]
        blocks, size = num_blocks(rows, _PART), widths[-1]
        roomy = shared_memory(outputs[0].device) > _ROOM
        large = rows > _LARGE and roomy
        actions = weights[-1].shape[0] if ctx.head else 0
        # Where the loop over the second layer has a single round and BX is below 64, Triton 3.6 gets bfloat16 wrong.
        fused = count > 1 and widths[0] <= _FIRST and widths[2] > _FIRST and not ctx.needs_input_grad[0]
        # Partial sums, a row for each block of samples: the gradients of first layer, biases and head. Rows are padded,
        # as the addition takes several times longer where they are not aligned to 16 bytes.
        split = [widths[0] * widths[1] if fused else 0, *widths[1:], actions * size, actions]
        stride = num_blocks(sum(split), 4) * 4
        partial = outputs[-1].new_empty(blocks, stride)
        first_part, *bias_parts, head_part, _ = partial[:, : sum(split)].split(split, 1)

        dz = torch.empty_like(outputs[-1], dtype=outputs[0].dtype)
        tiles = _tiles("entry", half, large, BN=size)
        kernel(_entry_kernel)[(blocks, num_blocks(size, tiles["BN"]))](
            gradients[0].contiguous(), weights[-1], outputs[-1], dz, bias_parts[-1], head_part, rows, stride,
            size, actions, act, half, BM=_PART, BA=power_of_two(actions), **tiles,
        )  # fmt: skip
        products: list[Tensor | None] = [None] * count
        for i in range(count - 1, -1, -1):
            n, k = widths[i + 1], widths[i]
            if learned and (i > 0 or not fused):
                products[i] = product(dz.t(), outputs[i])
            if i > 0:
                # Matrix units read TF32 along the summed dimension only.
                w = weights[i] if half else weights[i].t().contiguous()
                strides = (k, 1) if half else (1, n)
                last = fused and i == 1
                out = dz if last else torch.empty_like(outputs[i])
                wide = roomy and not half
                kind = ("backward_first" if last and not large else "backward_roomy") if wide else "backward"
                tiles = _tiles(kind, half, large, BK=k)
                kernel(_backward_kernel)[(blocks * num_blocks(k, tiles["BK"]),)](
                    dz, w, outputs[i], outputs[0], out, bias_parts[i - 1], first_part, rows, stride,
                    n, k, widths[0] if last else 0, *strides, act, half, BM=_PART, BX=_FIRST, **tiles,
                )  # fmt: skip
                dz = out
        dx = product(dz, weights[0]) if ctx.needs_input_grad[0] else None
        if not learned:
            return dx, None, None, None, *[None] * (2 * (count + ctx.head))
        first, *biases, head_w, head_b = partial.sum(0)[: sum(split)].split(split)
        if fused:
            products[0] = first.view(widths[1], widths[0])
        layers = [tensor for pair in zip(products, biases, strict=True) for tensor in pair]
        heads = [head_w.view(actions, size), head_b] if ctx.head else []
        return (dx, None, None, None, *layers, *heads)


def mlp(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activation: str,
    precision: str,
    head: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Apply hidden layers ``y = act(y @ w.T + b)`` one after the other, and a linear head, differentiably.

    Args:
        x: input ``[..., K]``, float32 (or bfloat16 where the precision is).
        weights: float32 ``[N, K]`` of each layer.
        biases: float32 ``[N]`` of each layer.
        activation: one of ``ACTIVATIONS``.
        precision: ``tf32``, products of numbers rounded to TF32; ``bf16``, products and stored outputs of the layers in
            bfloat16. Sums, head, result and gradients are float32 in both. What cuBLAS does follows PyTorch's own
            setting for TF32 besides.
        head: weight ``[A, N]`` and bias ``[A]`` of a last layer without activation; its gradients cost next to nothing.

    Returns:
        Features ``[..., N]`` of the last layer, or the head's output ``[..., A]``, float32.

    Raises:
        ValueError: unknown activation or precision.
    """
    if activation not in ACTIVATIONS or precision not in ("tf32", "bf16"):
        raise ValueError(
            f"no kernel for activation '{activation}' in '{precision}': activations are {sorted(ACTIVATIONS)}, "
            "precisions tf32 and bf16; apply the layers one by one instead"
        )
    if not available(x.device):
        return mlp_reference(x, weights, biases, activation, head)
    parameters = [tensor for pair in zip(weights, biases, strict=True) for tensor in pair]
    flat = x.reshape(-1, x.shape[-1])
    given = (flat, activation, precision == "bf16", head is not None, *parameters, *(head or ()))
    y: Tensor = _MLP.apply(*given)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], y.shape[-1])


def mlp_reference(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activation: str,
    head: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Do as ``mlp`` does in plain PyTorch, in the type of the weights."""
    x = x.to(weights[0].dtype)
    for w, b in zip(weights, biases, strict=True):
        x = _TORCH[activation](F.linear(x, w, b))
    return F.linear(x, *head) if head is not None else x
