"""Recurrent layers whose state goes in and comes out, and is cleared where an episode begins.

A sequence is a fixed-length loop over ``[T, N, ...]`` in which the state is multiplied by a mask: no padding, no shape
that depends on data, so the same text runs in a CUDA graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
            # [T, N, gates * hidden], one product for the sequence. unbind, not an index: its gradient is one stack,
            # where that of an index is a tensor of zeros for every step.
            gates = F.linear(x, cell.weight_ih, cell.bias_ih).unbind()
            masks = [None] * len(gates) if keep is None else keep.unbind()
            now = tuple(part[layer] for part in state)
            outputs = []
            for step, mask in zip(gates, masks, strict=True):
                if mask is not None:
                    now = tuple(part * mask for part in now)
                now = _lstm(step, now, cell) if self.lstm else _gru(step, now, cell)
                outputs.append(now[0])
            x = torch.stack(outputs)
            last.append(now)
        return x, tuple(torch.stack(parts) for parts in zip(*last, strict=True))


def _lstm(gates: Tensor, state: tuple[Tensor, ...], cell: nn.Module) -> tuple[Tensor, ...]:
    h, c = state
    recurrent = F.linear(h, cell.weight_hh, cell.bias_hh)  # type: ignore[arg-type]
    if gates.is_cuda:
        return torch.ops.aten._thnn_fused_lstm_cell(gates, recurrent, c)[:2]  # type: ignore[no-any-return]
    i, f, g, o = (gates + recurrent).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(gates: Tensor, state: tuple[Tensor, ...], cell: nn.Module) -> tuple[Tensor, ...]:
    (h,) = state
    recurrent = F.linear(h, cell.weight_hh, cell.bias_hh)  # type: ignore[arg-type]
    if gates.is_cuda:
        return torch.ops.aten._thnn_fused_gru_cell(gates, recurrent, h)[:1]  # type: ignore[no-any-return]
    r, z, n = gates.chunk(3, -1)
    r_h, z_h, n_h = recurrent.chunk(3, -1)
    z = (z + z_h).sigmoid()
    n = (n + (r + r_h).sigmoid() * n_h).tanh()
    return ((1 - z) * n + z * h,)
