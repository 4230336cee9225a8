"""A recurrent layer over a sequence: one kernel a step, forward and backward.

What a step multiplies lies side by side in one row, ``[h | x | 1 | 0...]``, and so do the weights, ``[4 * hidden, K]``,
biases included. So a step is one product of four gates, whose cell is applied while they are in registers, and one
product for the whole sequence gives the gradients of all weights and biases. The four gates are those of the LSTM, in
PyTorch's order i, f, g, o; a GRU's are the two parts of its candidate, which r joins, around r and z: h's, r, z, x's.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr
from triton.language import tensor as array

from rlcore.kernels.common import first_order, num_blocks, power_of_two, product
from rlcore.kernels.layers import _to_kind
from rlcore.types import State


@triton.jit
def _tanh(z: array) -> Any:
    return 2 * tl.sigmoid(2 * z) - 1


@triton.jit
def _pack_kernel(
    w_h: array, w_x: array, b_h: array, b_x: array, packed: array,
    H: constexpr, X: constexpr, K: constexpr, LSTM: constexpr, KIND: constexpr, BM: constexpr, BK: constexpr,
) -> None:  # fmt: skip
    """Make packed [4 H, K] = [w_h [., H] | w_x [., X] | biases | 0]."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    col = (tl.program_id(1) * BK + tl.arange(0, BK))[None, :]
    inside = row < 4 * H
    if LSTM:
        source, from_h, from_x = row, inside, inside
    else:  # rows of r, z, n: n's part of h goes first and that of x last
        source = tl.where(row < H, row + 2 * H, row - H)
        from_h, from_x = row < 3 * H, inside & (row >= H)
    value = tl.load(w_h + (source * H)[:, None] + col, mask=from_h[:, None] & (col < H), other=0.0)
    value += tl.load(
        w_x + (source * X)[:, None] + col - H, mask=from_x[:, None] & (col >= H) & (col < H + X), other=0.0
    )
    bias = tl.load(b_h + source, mask=from_h, other=0.0) + tl.load(b_x + source, mask=from_x, other=0.0)
    value = tl.where(col == H + X, bias[:, None], value)
    tl.store(packed + (row * K)[:, None] + col, _to_kind(value, KIND), mask=inside[:, None] & (col < K))


@triton.jit
def _join_kernel(
    x: array, h: array, keep: array, joined: array, N: array, ROWS: array, X_T: array, X_N: array,
    H: constexpr, X: constexpr, K: constexpr, MASKED: constexpr, KIND: constexpr, BM: constexpr, BK: constexpr,
) -> None:  # fmt: skip
    """Make joined [T N, K] = [keep * h | x | 1 | 0], but h for the first step alone; later ones have yet to come."""
    row = (tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM))[:, None]
    col = (tl.program_id(1) * BK + tl.arange(0, BK))[None, :]
    inside = (row < ROWS) & (col < K)
    first = inside & (row < N) & (col < H)
    at = (row // N) * X_T + (row % N) * X_N + col - H
    value = tl.load(x + at, mask=inside & (col >= H) & (col < H + X), other=0.0)
    state = tl.load(h + row * H + col, mask=first, other=0.0)
    if MASKED:
        state *= tl.load(keep + row, mask=row < N, other=0.0)
    value = tl.where(col == H + X, 1.0, tl.where(first, state, value))
    tl.store(joined + row * K + col, _to_kind(value, KIND), mask=first | (inside & (col >= H)))


@triton.jit
def _step_kernel(
    joined: array, packed: array, keep: array, before: array, output: array, cells: array, gates: array,
    next_joined: array, next_keep: array, N: array,
    H: constexpr, K: constexpr, LSTM: constexpr, MASKED: constexpr, LAST: constexpr, SAVE: constexpr, KIND: constexpr,
    BM: constexpr, BH: constexpr, BK: constexpr,
) -> None:  # fmt: skip
    """One step: gates [N, 4 H] = act(joined [N, K] @ packed^T), new cells and output [N, H].

    before [N, H] is the LSTM's c or the GRU's h after the last step. Each program makes BH columns of all gates, hence
    of the state, and writes h where the next step reads it. For fp32 the product is in gates already.
    """
    row = (tl.program_id(0) // tl.cdiv(H, BH)).to(tl.int64) * BM
    cols = (tl.program_id(0) % tl.cdiv(H, BH)) * BH + tl.arange(0, BH)
    rows = tl.arange(0, BM)
    ks = tl.arange(0, BK)
    # Beyond the edge the last row is read again and not stored; cheaper than a mask.
    held = tl.minimum(rows, N - 1 - row).to(tl.int32)
    inside = (row + rows < N)[:, None] & (cols < H)[None, :]
    at = row * H + (rows * H)[:, None] + cols[None, :]
    old = tl.load(before + at, mask=inside, other=0.0)  # now, as it comes while the product is made
    if MASKED:
        old *= tl.load(keep + row + held)[:, None]
    gates_at = gates + row * (4 * H) + (rows * (4 * H))[:, None] + cols[None, :]
    if KIND == "fp32":
        a = tl.load(gates_at, mask=inside, other=0.0)
        b = tl.load(gates_at + H, mask=inside, other=0.0)
        c = tl.load(gates_at + 2 * H, mask=inside, other=0.0)
        d = tl.load(gates_at + 3 * H, mask=inside, other=0.0)
    else:
        joined_at = joined + row * K + (held * K)[:, None] + ks[None, :]
        packed_at = packed + (tl.minimum(cols, H - 1) * K)[None, :] + ks[:, None]
        a = tl.zeros((BM, BH), tl.float32)
        b = tl.zeros((BM, BH), tl.float32)
        c = tl.zeros((BM, BH), tl.float32)
        d = tl.zeros((BM, BH), tl.float32)
        for k in range(0, K, BK):
            left = tl.load(joined_at + k)
            a = tl.dot(left, tl.load(packed_at + k), a, input_precision="tf32")
            b = tl.dot(left, tl.load(packed_at + H * K + k), b, input_precision="tf32")
            c = tl.dot(left, tl.load(packed_at + 2 * H * K + k), c, input_precision="tf32")
            d = tl.dot(left, tl.load(packed_at + 3 * H * K + k), d, input_precision="tf32")
    b = tl.sigmoid(b)
    if LSTM:
        a, c, d = tl.sigmoid(a), _tanh(c), tl.sigmoid(d)
        cell = b * old + a * c
        tl.store(cells + at, cell, mask=inside)
        h = d * _tanh(cell)
    else:
        c = tl.sigmoid(c)
        d = _tanh(d + b * a)
        h = (1 - c) * d + c * old
    tl.store(output + at, h, mask=inside)
    if not LAST:
        if MASKED:
            h *= tl.load(next_keep + row + held)[:, None]
        tl.store(next_joined + row * K + (rows * K)[:, None] + cols[None, :], _to_kind(h, KIND), mask=inside)
    if SAVE:
        tl.store(gates_at, a, mask=inside)
        tl.store(gates_at + H, b, mask=inside)
        tl.store(gates_at + 2 * H, c, mask=inside)
        tl.store(gates_at + 3 * H, d, mask=inside)


@triton.jit
def _back_kernel(
    later: array, w: array, next_keep: array, d_output: array, gates: array, cells: array, before: array, keep: array,
    carry: array, d_gates: array, N: array,
    H: constexpr, K: constexpr, LSTM: constexpr, MASKED: constexpr, KIND: constexpr,
    BM: constexpr, BH: constexpr, BK: constexpr,
) -> None:  # fmt: skip
    """One step back: d_gates [N, 4 H] from d_output [N, H] and from d_gates of the next step, later [N, 4 H].

    What comes back through h is the product of later's first K columns with w [H, K]; K = 0 in the last step. carry
    [N, H] is what comes back besides, through the LSTM's c or the GRU's h itself, and is moved on by a step. For fp32
    later is the product itself, [N, H].
    """
    row = (tl.program_id(0) // tl.cdiv(H, BH)).to(tl.int64) * BM
    cols = (tl.program_id(0) % tl.cdiv(H, BH)) * BH + tl.arange(0, BH)
    rows = tl.arange(0, BM)
    ks = tl.arange(0, BK)
    held = tl.minimum(rows, N - 1 - row).to(tl.int32)
    # Loaded now, as they come while the product is made.
    inside = (row + rows < N)[:, None] & (cols < H)[None, :]
    at = row * H + (rows * H)[:, None] + cols[None, :]
    gates_at = row * (4 * H) + (rows * (4 * H))[:, None] + cols[None, :]
    given = tl.load(d_output + at, mask=inside, other=0.0)
    passed = tl.load(carry + at, mask=inside, other=0.0)
    old = tl.load(before + at, mask=inside, other=0.0)
    new = tl.load(cells + at, mask=inside, other=0.0)
    a = tl.load(gates + gates_at, mask=inside, other=0.0)
    b = tl.load(gates + gates_at + H, mask=inside, other=0.0)
    c = tl.load(gates + gates_at + 2 * H, mask=inside, other=0.0)
    d = tl.load(gates + gates_at + 3 * H, mask=inside, other=0.0)
    if MASKED:
        old *= tl.load(keep + row + held)[:, None]
    total = tl.zeros((BM, BH), tl.float32)
    if K > 0:
        if KIND == "fp32":
            total = tl.load(later + at, mask=inside, other=0.0)
        else:
            later_at = later + row * (4 * H) + (held * (4 * H))[:, None] + ks[None, :]
            w_at = w + (tl.minimum(cols, H - 1) * K)[None, :] + ks[:, None]
            for k in range(0, K, BK):
                if K % BK == 0:
                    left = tl.load(later_at + k)
                    right = tl.load(w_at + k)
                else:
                    left = tl.load(later_at + k, mask=ks[None, :] < K - k, other=0.0)
                    right = tl.load(w_at + k, mask=ks[:, None] < K - k, other=0.0)
                total = tl.dot(left, right, total, input_precision="tf32")
        if MASKED:
            total *= tl.load(next_keep + row + held)[:, None]
    total += given
    if LSTM:
        top = _tanh(new)
        passed += total * d * (1 - top * top)
        d_a = passed * c * a * (1 - a)
        d_b = passed * old * b * (1 - b)
        d_c = passed * a * (1 - c * c)
        d_d = total * top * d * (1 - d)
        passed *= b
    else:
        total += passed
        d_d = total * (1 - c) * (1 - d * d)
        d_a = d_d * b
        d_b = d_d * a * b * (1 - b)
        d_c = total * (old - d) * c * (1 - c)
        passed = total * c
    if MASKED:
        passed *= tl.load(keep + row + held)[:, None]
    tl.store(carry + at, passed, mask=inside)
    tl.store(d_gates + gates_at, _to_kind(d_a, KIND), mask=inside)
    tl.store(d_gates + gates_at + H, _to_kind(d_b, KIND), mask=inside)
    tl.store(d_gates + gates_at + 2 * H, _to_kind(d_c, KIND), mask=inside)
    tl.store(d_gates + gates_at + 3 * H, _to_kind(d_d, KIND), mask=inside)


_ALIGN = 64  # K is a multiple of it, and of every BK

# Measured on an H200 at 1,024 rows, hidden 256 and K 320, two networks side by side. Two thirds of a step are launching
# it and moving gates and states, whatever the tiles. With fp32 that is all that is left for the kernels: Triton's exact
# products reached 8 TFLOP/s.
_TILES: dict[tuple[str, str], dict[str, int]] = {
    ("step", "fp32"): {"BM": 32, "BH": 32, "BK": 16, "num_warps": 4, "num_stages": 1},
    ("step", "tf32"): {"BM": 64, "BH": 32, "BK": 32, "num_warps": 4, "num_stages": 3},
    ("step", "bf16"): {"BM": 64, "BH": 32, "BK": 64, "num_warps": 4, "num_stages": 4},
    ("back", "fp32"): {"BM": 32, "BH": 32, "BK": 16, "num_warps": 4, "num_stages": 1},
    ("back", "tf32"): {"BM": 64, "BH": 32, "BK": 32, "num_warps": 4, "num_stages": 4},
    ("back", "bf16"): {"BM": 64, "BH": 32, "BK": 64, "num_warps": 4, "num_stages": 4},
}


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, keep: Tensor | None, precision: str, save: bool,
        w_x: Tensor, w_h: Tensor, b_x: Tensor, b_h: Tensor, *state: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        (steps, rows, inputs), hidden, lstm = x.shape, w_h.shape[1], len(state) == 2
        kind, exact = torch.bfloat16 if precision == "bf16" else torch.float32, precision == "fp32"
        width = num_blocks(hidden + inputs + 1, _ALIGN) * _ALIGN
        x = x if x.stride(-1) == 1 else x.contiguous()
        state = tuple(part.contiguous() for part in state)
        keep = None if keep is None else keep.contiguous()
        masks = _masks(keep, state[0], steps)
        packed = x.new_empty(4 * hidden, width, dtype=kind)
        joined = x.new_empty(steps, rows, width, dtype=kind)
        blocks = {"BM": 32, "BK": 64}
        _pack_kernel[(num_blocks(4 * hidden, 32), width // 64)](
            w_h.contiguous(), w_x.contiguous(), b_h, b_x, packed, hidden, inputs, width, lstm, precision, **blocks
        )
        _join_kernel[(num_blocks(steps * rows, 32), width // 64)](
            x, state[0], masks[0], joined, rows, steps * rows, x.stride(0), x.stride(1),
            hidden, inputs, width, keep is not None, precision, **blocks,
        )  # fmt: skip
        output = x.new_empty(steps, rows, hidden)
        cells = torch.empty_like(output) if lstm else output
        gates = x.new_empty(steps if save else 1, rows if save or exact else 1, 4 * hidden)
        for t in range(steps):
            last = t == steps - 1
            if exact:
                torch.mm(joined[t], packed.t(), out=gates[t if save else 0])
            before = cells[t - 1] if t > 0 else state[-1]
            _launch(
                _step_kernel, "step", precision, rows, hidden, joined[t], packed, masks[t], before, output[t], cells[t],
                gates[t if save else 0], joined[t if last else t + 1], masks[t if last else t + 1], rows,
                hidden, width, lstm, keep is not None, last, save,
            )  # fmt: skip
        ctx.save_for_backward(packed, joined, output, cells, gates, keep, *state)
        ctx.precision, ctx.inputs, ctx.lstm = precision, inputs, lstm
        ctx.set_materialize_grads(False)
        return (output, cells[-1]) if lstm else (output,)

    @staticmethod
    @first_order
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        packed, joined, output, cells, gates, keep, *state = ctx.saved_tensors
        (steps, rows, hidden), inputs, precision, lstm = output.shape, ctx.inputs, ctx.precision, ctx.lstm
        d_output, d_cell = gradients if lstm else (*gradients, None)
        d_output = torch.zeros_like(output) if d_output is None else d_output.contiguous()
        carry = torch.zeros_like(output[0]) if d_cell is None else d_cell.clone(memory_format=torch.contiguous_format)
        into_h = (4 if lstm else 3) * hidden  # gates that read h come first, those that read x last
        from_x = 4 * hidden - into_h
        # Matrix units read TF32 along the summed dimension only, and bfloat16 faster so.
        w = packed[:into_h, :hidden].t().contiguous()
        d_gates = torch.empty_like(gates, dtype=packed.dtype)
        masks = _masks(keep, carry, steps)
        for t in range(steps - 1, -1, -1):
            last = t == steps - 1
            later = d_gates[t if last else t + 1]
            if precision == "fp32" and not last:
                later = product(later[:, :into_h], w.t())
            _launch(
                _back_kernel, "back", precision, rows, hidden, later, w,
                masks[t if last else t + 1], d_output[t], gates[t], cells[t], cells[t - 1] if t > 0 else state[-1],
                masks[t], carry, d_gates[t], rows,
                hidden, 0 if last else into_h, lstm, keep is not None,
            )  # fmt: skip
        flat = d_gates.flatten(0, 1)
        d_state: list[Tensor | None] = [None, carry] if lstm else [None]
        if ctx.needs_input_grad[8]:
            d_h = product(d_gates[0, :, :into_h], w.t())
            d_h = d_h if keep is None else d_h * keep[0]
            d_state[0] = d_h if lstm else d_h + carry
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = product(flat[:, from_x:], packed[from_x:, hidden : hidden + inputs]).view(steps, rows, inputs)
        d_packed = product(flat.t(), joined.flatten(0, 1))
        d_w_h, d_b_h = d_packed[:into_h, :hidden], d_packed[:into_h, hidden + inputs]
        if not lstm:  # from n, r, z
            d_w_h, d_b_h = d_w_h.roll(-hidden, 0), d_b_h.roll(-hidden, 0)
        d_w_x, d_b_x = d_packed[from_x:, hidden : hidden + inputs], d_packed[from_x:, hidden + inputs]
        return d_x, None, None, None, d_w_x, d_w_h, d_b_x, d_b_h, *d_state


def _masks(keep: Tensor | None, anything: Tensor, steps: int) -> tuple[Tensor, ...]:
    """The mask of each step; without one, what a kernel is given and does not read."""
    return (anything,) * steps if keep is None else keep.unbind()


def _launch(fn: Any, name: str, precision: str, rows: int, hidden: int, *args: Any) -> None:
    tiles = dict(_TILES[name, precision])
    tiles["BH"] = min(tiles["BH"], power_of_two(hidden))
    grid = (num_blocks(rows, tiles["BM"]) * num_blocks(hidden, tiles["BH"]),)
    fn[grid](*args, precision, **tiles)


def sequence(
    x: Tensor, state: State, keep: Tensor | None, parameters: tuple[Tensor, Tensor, Tensor, Tensor], precision: str
) -> tuple[Tensor, State]:
    """See ``rlcore.recurrent.sequence``.

    Exact products, and those of the weights' gradients, are cuBLAS's, where TF32 follows PyTorch's own setting.
    """
    save = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *state, *parameters))
    output, *cell = _Sequence.apply(x, keep, precision, save, *parameters, *state)
    return output, (output[-1], *cell)
