"""Recurrent layers in the form in which an exported file has them: one step, of fixed shape."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from rlcore.recurrent import RNN, after, by_input
from rlcore.types import State

Cells = Literal["operator", "decomposed"]
"""A layer as one operator LSTM or GRU, or as the products, sums and activations that it is made of."""


class OperatorCells(nn.Module):
    """The layers of an ``RNN`` as torch's own, which are one operator each in a file."""

    def __init__(self, rnn: RNN) -> None:
        super().__init__()
        cells = [cell for cell in rnn.cells if isinstance(cell, (nn.LSTMCell, nn.GRUCell))]
        kind = nn.LSTM if rnn.lstm else nn.GRU
        self.layers = kind(cells[0].input_size, rnn.hidden_size, rnn.num_layers)
        own = {f"{name}_l{i}": value for i, cell in enumerate(cells) for name, value in cell.state_dict().items()}
        self.layers.load_state_dict(own)

    def forward(
        self, x: Tensor, state: State, keep: Tensor | None = None, precision: str = "fp32"
    ) -> tuple[Tensor, State]:
        """See ``RNN.forward``, for one step ``[N, inputs]``."""
        y, now = self.layers(x.unsqueeze(0), state if len(state) == 2 else state[0])
        return y.squeeze(0), now if len(state) == 2 else (now,)


class DecomposedCells(nn.Module):
    """The layers of an ``RNN`` as it computes them."""

    def __init__(self, rnn: RNN) -> None:
        super().__init__()
        self.cells = rnn.cells

    def forward(
        self, x: Tensor, state: State, keep: Tensor | None = None, precision: str = "fp32"
    ) -> tuple[Tensor, State]:
        """See ``RNN.forward``, for one step ``[N, inputs]``."""
        last: list[State] = []
        for cell, now in zip(self.cells, zip(*(part.unbind() for part in state), strict=True), strict=True):
            assert isinstance(cell, (nn.LSTMCell, nn.GRUCell))
            gates = by_input(x, (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh), now)
            last.append(after(gates, now, cell.weight_hh, cell.bias_hh))
            x = last[-1][0]
        return x, tuple(torch.stack(parts) for parts in zip(*last, strict=True))


def replace_cells(module: nn.Module, cells: Cells) -> None:
    """Put such layers in the place of each ``RNN`` inside a module that nothing else uses."""
    form = OperatorCells if cells == "operator" else DecomposedCells
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, RNN):
                setattr(parent, name, form(child))
