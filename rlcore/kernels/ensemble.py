"""Small networks of equal shape side by side: a pass through all their layers is one kernel, its gradient two.

A classic update of SAC has a batch of 256 and layers of 256, and the GPU takes about as long to begin a kernel for such
a layer as to compute it. So a program takes a few samples through all layers of a network. Large batches are left to a
kernel for each layer, see ``mlp``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from triton.language import constexpr
from triton.language import tensor as array

from rlcore.kernels.common import first_order, num_blocks, power_of_two
from rlcore.kernels.layers import _activate, _slope, _to_kind
from rlcore.optimizer import flat, padded

_FORWARD = {"BM": 16, "BK": 32, "num_warps": 8, "num_stages": 3}

_WIDTH = 128  # outputs of a layer that are made at a time, if it has as many

_BACKWARD = {"BM": 16, "BN": 32, "BK": 128, "num_warps": 8, "num_stages": 3}

_WEIGHTS = {"BT": 32, "BB": 32, "num_warps": 4, "num_stages": 3}


@triton.jit
def _zeros(ROWS: constexpr, COLS: constexpr) -> Any:
    return tl.zeros((ROWS, COLS), tl.float32)


@triton.jit
def _pass_kernel(
    x: array, action: array, flat: array, reached: array, out: array, B: array, X_ROW: array, A_ROW: array,
    X: constexpr, S: constexpr, SIZES: constexpr, PLACES: constexpr, WEIGHTS: constexpr, BIASES: constexpr,
    STEPS: constexpr, ACT: constexpr, PRECISION: constexpr, BM: constexpr, BN: constexpr, BK: constexpr,
) -> None:  # fmt: skip
    """Take BM samples through network program_id(1): what each layer is given goes to reached [C, B, S], then out.

    The first layer's input is x [B, X] with action [B, SIZES[0] - X] behind it. Layer l reads SIZES[l] numbers from
    column PLACES[l] on; its weights and biases stand in flat, those of the next network STEPS[l] further. BN[l] of
    its outputs are made at a time.
    """
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    member = tl.program_id(1)
    valid = (row < B)[:, None]
    mine = reached + ((member * B + row).to(tl.int64) * S)[:, None]
    ks = tl.arange(0, BK)[None, :]
    for k in range(0, SIZES[0], BK):
        col = k + ks
        value = tl.load(x + row[:, None] * X_ROW + col, mask=valid & (col < X), other=0.0)
        if SIZES[0] > X:
            chosen = valid & (col >= X) & (col < SIZES[0])
            value += tl.load(action + row[:, None] * A_ROW + (col - X), mask=chosen, other=0.0)
        tl.store(mine + col, value, mask=valid & (col < SIZES[0]))
    for layer in tl.static_range(len(WEIGHTS)):
        tl.debug_barrier()  # what the others of this program wrote is to be read
        K, N = SIZES[layer], SIZES[layer + 1]
        for n in range(0, N, BN[layer]):
            col = n + tl.arange(0, BN[layer])[None, :]
            weight = flat + WEIGHTS[layer] + member * STEPS[layer] + col * K
            total = _zeros(BM, BN[layer])
            for k in range(0, K, BK):
                left = tl.load(mine + PLACES[layer] + k + ks, mask=valid & (ks < K - k), other=0.0)
                right = tl.load(weight + k + tl.trans(ks), mask=(tl.trans(ks) < K - k) & (col < N), other=0.0)
                total = tl.dot(left, right, total, input_precision=PRECISION)
            total += tl.load(flat + BIASES[layer] + member * STEPS[layer] + col, mask=col < N, other=0.0)
            if layer == len(WEIGHTS) - 1:
                at = out + ((member * B + row).to(tl.int64) * N)[:, None] + col
                tl.store(at, total, mask=valid & (col < N))
            else:
                total = _to_kind(_activate(total, ACT), PRECISION)
                tl.store(mine + PLACES[layer + 1] + col, total, mask=valid & (col < N))


@triton.jit
def _return_kernel(
    g: array, flat: array, reached: array, slopes: array, B: array,
    S: constexpr, SIZES: constexpr, PLACES: constexpr, WEIGHTS: constexpr, STEPS: constexpr, FIRST: constexpr,
    ACT: constexpr, PRECISION: constexpr, BM: constexpr, BN: constexpr, BK: constexpr,
) -> None:  # fmt: skip
    """From the gradient g of the output [C, B, A], make those by what each layer is given, before its activation.

    They go to slopes [C, B, S], to the columns that reached has the layers' inputs in; not below layer FIRST.
    """
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    member = tl.program_id(1)
    valid = (row < B)[:, None]
    line = (member * B + row).to(tl.int64)[:, None]
    ns = tl.arange(0, BN)[None, :]
    for layer in tl.static_range(len(WEIGHTS) - 1, FIRST - 1, -1):
        K, N = SIZES[layer], SIZES[layer + 1]
        for k in range(0, K, BK):
            col = k + tl.arange(0, BK)[None, :]
            weight = flat + WEIGHTS[layer] + member * STEPS[layer] + col
            total = tl.zeros((BM, BK), tl.float32)
            for n in range(0, N, BN):
                if layer == len(WEIGHTS) - 1:
                    left = tl.load(g + line * N + n + ns, mask=valid & (ns < N - n), other=0.0)
                else:
                    at = slopes + line * S + PLACES[layer + 1] + n + ns
                    left = tl.load(at, mask=valid & (ns < N - n), other=0.0)
                right = tl.load(weight + (n + tl.trans(ns)) * K, mask=(tl.trans(ns) < N - n) & (col < K), other=0.0)
                total = tl.dot(left, right, total, input_precision=PRECISION)
            at = line * S + PLACES[layer] + col
            if layer > 0:
                total *= _slope(tl.load(reached + at, mask=valid & (col < K), other=0.0), ACT)
            tl.store(slopes + at, _to_kind(total, PRECISION), mask=valid & (col < K))
        tl.debug_barrier()


@triton.jit
def _weights_kernel(
    g: array, reached: array, slopes: array, gradient: array, B: array,
    S: constexpr, SIZES: constexpr, PLACES: constexpr, WEIGHTS: constexpr, BIASES: constexpr, STEPS: constexpr,
    TILES: constexpr, GAP: constexpr, PRECISION: constexpr, BT: constexpr, BB: constexpr,
) -> None:  # fmt: skip
    """One program makes one BT x BT tile of the weight gradient of a layer, summed over all samples.

    The layer is the one that has program_id(0) among its tiles, which begin at TILES[layer]. The first tile of a row
    makes its bias gradient too, and the first of all what stands between the tensors: zeros.
    """
    member = tl.program_id(1)
    bs = tl.arange(0, BB)
    for layer in tl.static_range(len(WEIGHTS)):
        K, N = SIZES[layer], SIZES[layer + 1]
        tile = tl.program_id(0) - TILES[layer]
        if (tile >= 0) & (tile < TILES[layer + 1] - TILES[layer]):
            across = tl.cdiv(K, BT)
            n = (tile // across) * BT + tl.arange(0, BT)
            k = (tile % across) * BT + tl.arange(0, BT)
            total = tl.zeros((BT, BT), tl.float32)
            sums = tl.zeros((BT,), tl.float32)
            for b in range(0, B, BB):
                valid = (b + bs < B)[:, None]
                line = (member * B + b + bs).to(tl.int64)[:, None]
                if layer == len(WEIGHTS) - 1:
                    slope = tl.load(g + line * N + n[None, :], mask=valid & (n < N)[None, :], other=0.0)
                else:
                    at = slopes + line * S + PLACES[layer + 1] + n[None, :]
                    slope = tl.load(at, mask=valid & (n < N)[None, :], other=0.0)
                at = reached + line * S + PLACES[layer] + k[None, :]
                given = tl.load(at, mask=valid & (k < K)[None, :], other=0.0)
                total = tl.dot(tl.trans(slope), given, total, input_precision=PRECISION)
                sums += tl.sum(slope, 0)
            weight = gradient + WEIGHTS[layer] + member * STEPS[layer]
            bias = gradient + BIASES[layer] + member * STEPS[layer]
            tl.store(weight + n[:, None] * K + k[None, :], total, mask=(n < N)[:, None] & (k < K)[None, :])
            if tile % across == 0:
                tl.store(bias + n, sums, mask=n < N)
            if tile == 0:
                gap = tl.arange(0, GAP)
                tl.store(weight + N * K + gap, tl.zeros((GAP,), tl.float32), mask=gap < (GAP - N * K % GAP) % GAP)
                tl.store(bias + N + gap, tl.zeros((GAP,), tl.float32), mask=gap < (GAP - N % GAP) % GAP)


class _Layout(NamedTuple):
    """Where things stand; the names are those of the kernels' parameters."""

    S: int
    SIZES: tuple[int, ...]
    PLACES: tuple[int, ...]
    WEIGHTS: tuple[int, ...]
    BIASES: tuple[int, ...]
    STEPS: tuple[int, ...]


def _layout(parameters: Sequence[Tensor], members: int) -> _Layout:
    """For parameters in the order of a ``ModuleList`` of networks and one of their last layers."""
    layers = len(parameters) // members // 2
    # Of the first network: its hidden layers come first, the last layer comes behind those of all networks.
    hidden = 2 * (layers - 1)
    order = [*range(hidden), members * hidden, members * hidden + 1]
    places = [0]
    for parameter in parameters:
        places.append(places[-1] + padded(parameter.numel()))
    sizes = [parameters[0].shape[1], *(parameters[i].shape[0] for i in order[::2])]
    columns = [0]
    for size in sizes[:-2]:
        columns.append(columns[-1] + size + -size % 4)  # of 16 bytes
    steps = [places[hidden]] * (layers - 1) + [places[order[-1] + 1] - places[order[-2]]]
    weights, biases = ([places[i] for i in order[first::2]] for first in (0, 1))
    row = columns[-1] + sizes[-2]
    return _Layout(row + -row % 4, *map(tuple, (sizes, columns, weights, biases, steps)))


class _Ensemble(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        action: Tensor | None,
        options: tuple[str, str, int, int],
        whole: Tensor,
        *parameters: nn.Parameter,
    ) -> Tensor:
        activation, precision, members, count = options
        at = _layout(parameters, members)
        x = x if x.stride(-1) == 1 else x.contiguous()
        second = x if action is None else action if action.stride(-1) == 1 else action.contiguous()
        rows = len(x)
        reached, out = x.new_empty(count, rows, at.S), x.new_empty(count, rows, at.SIZES[-1])
        _pass_kernel[(num_blocks(rows, _FORWARD["BM"]), count)](
            x, second, whole, reached, out, rows, x.stride(0), second.stride(0), x.shape[1],
            **at._asdict(), ACT=activation, PRECISION=precision, **_FORWARD,
            BN=tuple(min(_WIDTH, power_of_two(size)) for size in at.SIZES[1:]),
        )  # fmt: skip
        ctx.save_for_backward(reached, whole)
        ctx.options, ctx.at, ctx.width, ctx.shapes = options, at, x.shape[1], [p.shape for p in parameters]
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        activation, precision, members, count = ctx.options
        (reached, whole), at, g = ctx.saved_tensors, ctx.at, gradients[0].contiguous()
        rows = g.shape[1]
        facts = {"S": at.S, "SIZES": at.SIZES, "PLACES": at.PLACES, "WEIGHTS": at.WEIGHTS, "STEPS": at.STEPS}
        needed = any(ctx.needs_input_grad[:2])
        slopes = torch.empty_like(reached)
        _return_kernel[(num_blocks(rows, _BACKWARD["BM"]), count)](
            g, whole, reached, slopes, rows,
            **facts, FIRST=0 if needed else 1, ACT=activation, PRECISION=precision, **_BACKWARD,
        )  # fmt: skip
        inputs: list[Tensor | None] = [None, None]
        for i, part in enumerate((slice(0, ctx.width), slice(ctx.width, at.SIZES[0]))):
            if ctx.needs_input_grad[i]:
                inputs[i] = slopes[..., part].sum(0)
        if not any(ctx.needs_input_grad[4:]):
            return (*inputs, None, None, *[None] * len(ctx.shapes))
        tile = _WEIGHTS["BT"]
        tiles = [0]
        for k, n in zip(at.SIZES[:-1], at.SIZES[1:], strict=True):
            tiles.append(tiles[-1] + num_blocks(k, tile) * num_blocks(n, tile))
        # Networks that took no part have no gradient.
        gradient = torch.empty_like(whole) if count == members else torch.zeros_like(whole)
        _weights_kernel[(tiles[-1], count)](
            g, reached, slopes, gradient, rows,
            **facts, BIASES=at.BIASES, TILES=tuple(tiles), GAP=padded(1), PRECISION=precision, **_WEIGHTS,
        )  # fmt: skip
        sizes = [padded(shape.numel()) for shape in ctx.shapes]
        parts = zip(torch.split(gradient, sizes), ctx.shapes, strict=True)
        return (*inputs, None, None, *(part[: shape.numel()].view(shape) for part, shape in parts))


def network_outputs(
    trunks: Sequence[Any], heads: Sequence[nn.Linear], x: Tensor, action: Tensor | None = None, count: int | None = None
) -> Tensor:
    """See ``networks.network_outputs``.

    The parameters become views of one flat buffer, in the order of hidden layers and then heads, and so do the
    gradients, as ``FlatAdam`` wants them.
    """
    mlps = [trunk.mlp for trunk in trunks]
    layers = [layer for mlp in mlps for layer in mlp.linear()] + list(heads)
    parameters = [parameter for layer in layers for parameter in layer.parameters()]  # weight and bias of each
    precision = "ieee" if mlps[0].precision == "fp32" else "tf32"
    options = (mlps[0].activation, precision, len(heads), len(heads) if count is None else count)
    return _Ensemble.apply(x, action, options, flat(parameters), *parameters)


def network_output(trunk: Any, head: nn.Linear, x: Tensor) -> Tensor:
    """See ``networks.network_output``."""
    return network_outputs([trunk], [head], x).squeeze(0)
