"""Recurrent layers whose state goes in and comes out, and is cleared where an episode begins.

A sequence is a fixed-length loop over ``[T, N, ...]`` in which the state is multiplied by a mask: no padding, no shape
that depends on data, so the same text runs in a CUDA graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlcore.config import check
from rlcore.types import State


@dataclass(frozen=True, kw_only=True)
class RNNConfig:
    """A recurrent layer in a network."""

    type: Literal["none", "lstm", "gru"] = "none"
    """Kind of cell; none for a network without memory."""
    hidden_size: int = 256
    """Width of the state."""
    num_layers: int = 1
    """Cells stacked on one another."""
    position: Literal["before", "after"] = "before"
    """Whether it reads the observation, before the hidden layers, or their result."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        check(self.hidden_size >= 1, "rnn.hidden_size", self.hidden_size, "set at least 1")
        check(self.num_layers >= 1, "rnn.num_layers", self.num_layers, "set at least 1")


class RNN(nn.Module):
    """LSTM (Hochreiter & Schmidhuber 1997) or GRU (Cho et al. 2014, arXiv:1406.1078) layers.

    The equations and the order of gates are those of ``torch.nn.LSTM`` and ``torch.nn.GRU``.

    Args:
        inputs: size of the input.
        config: cell, width, layers.
    """

    def __init__(self, inputs: int, config: RNNConfig) -> None:
        super().__init__()
        assert config.type != "none"
        self.hidden_size, self.num_layers = config.hidden_size, config.num_layers
        self.lstm = config.type == "lstm"
        kind = nn.LSTMCell if self.lstm else nn.GRUCell
        self.cells = nn.ModuleList(
            kind(inputs if i == 0 else config.hidden_size, config.hidden_size) for i in range(config.num_layers)
        )

    def initial_state(self, num_envs: int) -> State:
        """Zeros ``[layers, N, hidden]``: ``(h, c)`` for LSTM, ``(h,)`` for GRU."""
        like = next(self.parameters())
        return tuple(like.new_zeros(self.num_layers, num_envs, self.hidden_size) for _ in range(1 + self.lstm))

    def forward(self, x: Tensor, state: State, keep: Tensor | None = None) -> tuple[Tensor, State]:
        """Run over a sequence.

        Args:
            x: ``[T, N, inputs]``.
            state: before the first step, ``[layers, N, hidden]`` each.
            keep: ``[T, N, 1]`` float, 0 where an episode begins at that step and the state is to be cleared first;
                None keeps it throughout.

        Returns:
            Outputs ``[T, N, hidden]`` and the state after the last step.
        """
        last: list[tuple[Tensor, ...]] = []
        for layer, cell in enumerate(self.cells):
            assert isinstance(cell, (nn.LSTMCell, nn.GRUCell))
            # [T, N, gates * hidden], one product for the sequence; an LSTM's biases only ever appear as a sum.
            bias = cell.bias_ih + cell.bias_hh if self.lstm else cell.bias_ih
            gates = F.linear(x, cell.weight_ih, bias)  # nobody else reads it, so the fused layer may change it
            now = tuple(part[layer] for part in state)
            x, now = (_fused if x.is_cuda else _plain)(gates, now, keep, cell.weight_hh, cell.bias_hh)
            last.append(now)
        return x, tuple(torch.stack(parts) for parts in zip(*last, strict=True))


def cleared(state: State, done: Tensor) -> State:
    """Zero the state, ``[layers, N, hidden]`` each, where ``done`` ``[N]`` or ``[N, 1]``, even if it is not finite."""
    return tuple(part.masked_fill(done.view(1, -1, 1), 0.0) for part in state)


def _plain(gates: Tensor, state: State, keep: Tensor | None, weight: Tensor, bias: Tensor) -> tuple[Tensor, State]:
    """One layer over a sequence in plain PyTorch: the reference, what the CPU runs and what is exported."""
    # unbind, not an index: its gradient is one stack, where that of an index is a tensor of zeros for every step.
    steps = gates.unbind()
    masks = [None] * len(steps) if keep is None else keep.unbind()
    outputs = []
    for step, mask in zip(steps, masks, strict=True):
        if mask is not None:
            state = tuple(part * mask for part in state)
        if len(state) == 2:
            h, c = state
            i, f, g, o = (step + F.linear(h, weight)).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            state = (o.sigmoid() * c.tanh(), c)
        else:
            (h,) = state
            r, z, n = step.chunk(3, -1)
            r_h, z_h, n_h = F.linear(h, weight, bias).chunk(3, -1)
            z = (z + z_h).sigmoid()
            n = (n + (r + r_h).sigmoid() * n_h).tanh()
            state = ((1 - z) * n + z * h,)
        outputs.append(state[0])
    return torch.stack(outputs), state


def _fused(gates: Tensor, state: State, keep: Tensor | None, weight: Tensor, bias: Tensor) -> tuple[Tensor, State]:
    """The same with PyTorch's cell kernels, and the weights' gradient in one product for the sequence."""
    output, *state_after = _Sequence.apply(gates, keep, weight, bias, *state)  # type: ignore[no-untyped-call]
    return output, tuple(state_after)


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gates: Tensor, keep: Tensor | None, weight: Tensor, bias: Tensor, *state: Tensor
    ) -> tuple[Tensor, ...]:
        cells, cells_after, spaces, outputs = [], [], [], []
        hidden = gates.new_empty(*gates.shape[:2], weight.shape[1])  # [T, N, hidden], as each step reads it
        if keep is not None and len(state) == 2:
            # A forget gate that is shut clears c exactly, and lets no gradient through: no masks for c in the loop.
            forget = gates[..., weight.shape[1] : 2 * weight.shape[1]]
            forget.masked_fill_(keep == 0, -1e4)
        for t in range(len(gates)):
            if keep is None:
                hidden[t] = state[0]
            else:
                torch.mul(state[0], keep[t], out=hidden[t])
            if len(state) == 2:
                cells.append(state[1])
                h, c, space = torch.ops.aten._thnn_fused_lstm_cell(gates[t], hidden[t] @ weight.t(), state[1])
                cells_after.append(c)
                state = (h, c)
            else:
                recurrent = torch.addmm(bias, hidden[t], weight.t())
                h, space = torch.ops.aten._thnn_fused_gru_cell(gates[t], recurrent, hidden[t])
                state = (h,)
            spaces.append(space)
            outputs.append(h)
        ctx.save_for_backward(weight, hidden, *([] if keep is None else [keep]), *cells, *cells_after, *spaces)
        ctx.lstm, ctx.masked = len(state) == 2, keep is not None
        return torch.stack(outputs), *state

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight, hidden, *saved = ctx.saved_tensors
        steps = len(hidden)
        keep = saved.pop(0) if ctx.masked else None
        d_output, d_h = gradients[:2]
        d_c = gradients[2] if ctx.lstm else None
        d_gates: list[Tensor] = []
        d_recurrent: list[Tensor] = []
        for t in range(steps - 1, -1, -1):
            total = d_output[t] + d_h
            if ctx.lstm:
                d_step, d_c, _ = torch.ops.aten._thnn_fused_lstm_cell_backward_impl(
                    total, d_c, saved[t], saved[steps + t], saved[2 * steps + t], False
                )
                d_h = d_step @ weight
                d_recurrent.append(d_step)
            else:
                d_step, d_hidden, direct, _, _ = torch.ops.aten._thnn_fused_gru_cell_backward(total, saved[t], False)
                d_h = torch.addmm(direct, d_hidden, weight)
                d_recurrent.append(d_hidden)
            d_gates.append(d_step)
            if keep is not None:
                d_h = d_h * keep[t]
        through = torch.stack(d_recurrent[::-1])
        d_weight = through.flatten(0, 1).t() @ hidden.flatten(0, 1)
        d_input = through if ctx.lstm else torch.stack(d_gates[::-1])
        d_bias = None if ctx.lstm else through.sum((0, 1))
        return (d_input, None, d_weight, d_bias, d_h, *(() if d_c is None else (d_c,)))
