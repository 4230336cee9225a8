"""A fused multi-layer perceptron: a kernel a layer, with activation and bias, and a head on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rlcore.dispatch import shared_memory
from rlcore.kernels.common import copies_tiles, first_order, num_blocks, power_of_two, product, tiled
from rlcore.kernels.layers import _backward_kernel, _entry_kernel, _forward_kernel, _transpose_kernel, _turned_kernel

# Block sizes, measured on an H200 with layers of 512, 256 and 128, at 24,576 rows and (large) 393,216. Few warps and
# registers let several programs share a multiprocessor, so that one loads while another computes; with fewer rows that
# matters more than large tiles. Slower: the first two layers in one kernel, which saves reading the first one's output
# (66 instead of 54 us), and programs without descriptors that sum over several blocks of rows.
_PART = 128  # samples whose gradients are summed within one program

_LARGE = 2**17  # rows

_ROOM = 160_000  # bytes of a multiprocessor's own memory, from which on large tiles fit

_WIDEST_HEAD = 64  # that is made along with the layer below
_WIDEST_GRADIENT = 64  # outputs of a head whose gradients are made along the way: a block holds all of them

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
    "turned": {"BN": 32, "BK": 128, "num_warps": 4, "num_stages": 3},  # in 96 KiB
    "turned_half": {"BN": 64, "BK": 128, "num_warps": 4, "num_stages": 3},
}


def _tiles(kernel: str, half: bool, large: bool = False, **sizes: int) -> dict[str, int]:
    """Return a launch's block sizes, none much larger than the matrix, nor too small for the matrix units."""
    names = [kernel + "_half" * half, kernel]
    tiles = next(dict(_TILES[name]) for name in [f"{names[0]}_large"] * large + names if name in _TILES)
    for name, size in sizes.items():
        tiles[name] = min(tiles[name], power_of_two(size, 64))
    return tiles


def _partial(blocks: int, sizes: list[int], like: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Make room for sums, a row for each of the blocks; return also its columns, in parts of these sizes.

    Rows are padded, as adding them up takes several times longer where they are not aligned to 16 bytes.
    """
    room = like.new_empty(blocks, num_blocks(sum(sizes), 4) * 4, dtype=torch.float32)
    return room, list(torch.split(room[:, : sum(sizes)], sizes, 1))


def _transposed(x: Tensor) -> Tensor:
    """Return float32 x^T, with rows that begin at multiples of 16 bytes."""
    (rows, width), block = x.shape, power_of_two(x.shape[1])
    out = x.new_empty(width, num_blocks(rows, 4) * 4)
    _transpose_kernel[(num_blocks(rows, _PART),)](x, out, rows, out.stride(0), width, BM=_PART, BX=block)
    return out[:, :rows]


def _steps(x: Tensor, k: int) -> int:
    """Return the blocks of rows of one program of ``_turned_kernel``, such that all programs run at the same time."""
    columns = num_blocks(k, _tiles("turned", x.dtype == torch.bfloat16, BK=k)["BK"])
    at_once = 2 * torch.cuda.get_device_properties(x.device).multi_processor_count  # two share a multiprocessor
    return num_blocks(num_blocks(x.shape[0], _PART), max(1, at_once // columns))


def _backward(
    dz: Tensor, w: Tensor, y: Tensor, x: Tensor | None, out: Tensor | None, db: Tensor, dw: Tensor, act: str, steps: int
) -> None:
    """Launch ``_turned_kernel`` with so many steps, or with none ``_backward_kernel``; x or else out is not needed."""
    (rows, n), k, half = dz.shape, y.shape[1], dz.dtype == torch.bfloat16
    blocks, stride, width = num_blocks(rows, _PART), db.stride(0), 0 if x is None else x.shape[1]
    source, target = y if x is None else x, dz if out is None else out  # something has to be there
    w = w if half else w.t().contiguous()  # as matrix units read TF32
    if steps:
        tiles = _tiles("turned", half, BK=k)
        bn, bk = tiles["BN"], tiles["BK"]
        if x is not None and not half:
            source = tiled(_transposed(x), _FIRST, _PART)
        _turned_kernel[(num_blocks(blocks, steps) * num_blocks(k, bk),)](
            tiled(dz, _PART, bn), tiled(w, *((bn, bk) if half else (bk, bn))), tiled(y, _PART, bk), source,
            tiled(target, _PART, bk), db, dw, rows, stride,
            n, k, width, act, half, steps, BM=_PART, BX=_FIRST, **tiles,
        )  # fmt: skip
        return
    roomy = shared_memory(dz.device) > _ROOM and not half
    kind = "backward_first" if x is not None and rows <= _LARGE else "backward_roomy"
    tiles = _tiles(kind if roomy else "backward", half, BK=k)
    _backward_kernel[(blocks * num_blocks(k, tiles["BK"]),)](
        dz, w, y, source, target, db, dw, rows, stride,
        n, k, width, *((k, 1) if half else (1, n)), act, half, BM=_PART, BX=_FIRST, **tiles,
    )  # fmt: skip


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
        rows, result, read = x.shape[0], x, x.detach().to(kind)
        # Rows that begin at multiples of 16 bytes are copied faster, above all for the weight gradient.
        spare = -x.shape[1] % (8 if half else 4) if x.shape[1] > _FIRST else 0
        if spare:
            read, weights[0] = F.pad(read, (0, spare)), F.pad(weights[0], (0, spare))
        outputs = [read.contiguous()]
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
            _forward_kernel[(num_blocks(rows, tiles["BM"]) * columns,)](
                outputs[i], w, b, outputs[-1], parameters[-2], parameters[-1], result, rows,
                k, n, actions, activation, half and not final, BA=power_of_two(actions), **tiles,
            )  # fmt: skip
        if head and result is outputs[-1]:  # too wide to be made along the way
            result = F.linear(result, *parameters[-2:])
        ctx.save_for_backward(*outputs, *weights, *((parameters[-2],) if head else ()))
        ctx.activation, ctx.half, ctx.count, ctx.head, ctx.spare = activation, half, len(weights), head, spare
        return result

    @staticmethod
    @first_order
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        count, half, act, saved = ctx.count, ctx.half, ctx.activation, ctx.saved_tensors
        learned = any(ctx.needs_input_grad[4:])  # false where a gradient only passes through
        outputs, weights = saved[: count + 1], saved[count + 1 :]
        x, widths = outputs[0], [y.shape[1] for y in outputs]
        rows, size = x.shape[0], widths[-1]
        blocks = num_blocks(rows, _PART)
        actions = weights[-1].shape[0] if ctx.head else 0
        # Where the loop over the second layer has a single round and BX is below 64, Triton 3.6 gets bfloat16 wrong.
        fused = count > 1 and widths[0] <= _FIRST and widths[2] > _FIRST and not ctx.needs_input_grad[0]
        # Descriptors want rows to begin at multiples of 16 bytes.
        turned = copies_tiles(x.device) and all(n * x.element_size() % 16 == 0 for n in widths[1:])
        # Sums over each block of samples: the gradients of biases and head; those of a fused first layer come below.
        parts = [*widths[1 + fused :], actions * size, actions]
        sums, (*bias_parts, head_part, _) = _partial(blocks, parts, outputs[-1])

        dz = torch.empty_like(outputs[-1], dtype=x.dtype)
        tiles = _tiles("entry", half, BN=size)
        _entry_kernel[(blocks, num_blocks(size, tiles["BN"]))](
            gradients[0].contiguous(), weights[-1], outputs[-1], dz, bias_parts[-1], head_part, rows, sums.stride(0),
            size, actions, act, half, BM=_PART, BA=power_of_two(actions), **tiles,
        )  # fmt: skip
        products: list[Tensor | None] = [None] * count
        for i in range(count - 1, fused - 1, -1):
            if learned:
                products[i] = product(dz.t(), outputs[i])
            if i > fused:
                y, dy = outputs[i], torch.empty_like(outputs[i])
                _backward(dz, weights[i], y, None, dy, bias_parts[i - 1 - fused], head_part, act, int(turned))
                dz = dy
        own = widths[0] - ctx.spare  # inputs that are not padding
        dx = product(dz, weights[0])[:, :own] if ctx.needs_input_grad[0] else None
        if products[0] is not None:
            products[0] = products[0][:, :own]
        if not learned:
            return dx, None, None, None, *[None] * (2 * (count + ctx.head))
        *biases, head_w, head_b = torch.split(sums.sum(0)[: sum(parts)], parts)
        if fused:
            steps = _steps(x, widths[1]) if turned else 0
            parts = [widths[1], widths[1] * widths[0]]
            sums, (bias_part, weight_part) = _partial(num_blocks(blocks, max(1, steps)), parts, outputs[-1])
            _backward(dz, weights[1], outputs[1], x, None, bias_part, weight_part, act, steps)
            bias, weight = torch.split(sums.sum(0)[: sum(parts)], parts)
            biases, products[0] = [bias, *biases], weight.view(widths[1], widths[0])
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
    """See ``networks.mlp``; ``precision`` is tf32 or bf16."""
    if head is not None and head[0].shape[0] > _WIDEST_GRADIENT:
        return F.linear(mlp(x, weights, biases, activation, precision), *head)
    parameters = [tensor for pair in zip(weights, biases, strict=True) for tensor in pair]
    flat = x.reshape(-1, x.shape[-1])
    given = (flat, activation, precision == "bf16", head is not None, *parameters, *(head or ()))
    y: Tensor = _MLP.apply(*given)
    return y.view(*x.shape[:-1], y.shape[-1])
