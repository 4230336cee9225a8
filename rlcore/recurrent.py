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
from rlcore.dispatch import accelerated
from rlcore.types import State


@dataclass(frozen=True, kw_only=True)
class RNNConfig:
    """A recurrent layer in a network."""

    type: Literal["none", "lstm", "gru"] = "none"
    """Kind of cell; none for a feed-forward network."""
    hidden_size: int = 256
    """Width of the state."""
    num_layers: int = 1
    """Cells stacked on one another."""
    position: Literal["before", "after"] = "before"
    """Whether it reads the observation, before the hidden layers, or their result."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        check(self.hidden_size >= 1, "hidden_size", self.hidden_size, "set at least 1")
        check(self.num_layers >= 1, "num_layers", self.num_layers, "set at least 1")


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

    def forward(
        self, x: Tensor, state: State, keep: Tensor | None = None, precision: str = "fp32"
    ) -> tuple[Tensor, State]:
        """Run over a sequence, or one step.

        Args:
            x: ``[T, N, inputs]``, or ``[N, inputs]`` of one step.
            state: before the first step, ``[layers, N, hidden]`` each.
            keep: ``[T, N, 1]`` float, 0 where an episode begins at that step and the state is to be cleared first;
                None keeps it throughout.
            precision: how CUDA multiplies, see ``sequence``.

        Returns:
            Outputs ``[T, N, hidden]``, or ``[N, hidden]``, and the state after the last step.
        """
        if x.dim() == 2:
            x, state = self(x.unsqueeze(0), state, keep, precision)
            return x.squeeze(0), state
        last: list[tuple[Tensor, ...]] = []
        for layer, cell in enumerate(self.cells):
            assert isinstance(cell, (nn.LSTMCell, nn.GRUCell))
            parameters = (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
            now = tuple(part[layer] for part in state)
            x, now = sequence(x, now, keep, parameters, precision)
            last.append(now)
        if len(last) == 1:
            return x, tuple(part.unsqueeze(0) for part in last[0])
        return x, tuple(torch.stack(parts) for parts in zip(*last, strict=True))


def cleared(state: State, done: Tensor) -> State:
    """Zero the state, ``[layers, N, hidden]`` each, where ``done`` ``[N]`` or ``[N, 1]``, even if it is not finite."""
    return tuple(torch.where(done.view(1, -1, 1), 0.0, part) for part in state)


def _is_float32(x: Tensor, *others: Any) -> bool:
    return x.dtype == torch.float32


@accelerated("recurrent:sequence", when=_is_float32)
def sequence(
    x: Tensor, state: State, keep: Tensor | None, parameters: tuple[Tensor, Tensor, Tensor, Tensor], precision: str
) -> tuple[Tensor, State]:
    """Run one recurrent layer over a sequence, differentiably.

    Args:
        x: input ``[T, N, inputs]``.
        state: before the first step, ``[N, hidden]`` each: ``(h, c)`` for an LSTM, ``(h,)`` for a GRU.
        keep: ``[T, N, 1]`` float, 0 where the state is to be cleared before that step; None keeps it throughout.
        parameters: ``weight_ih, weight_hh, bias_ih, bias_hh`` as in ``torch.nn.LSTMCell`` and ``torch.nn.GRUCell``.
        precision: ``fp32``, ``tf32`` or ``bf16``, to which the kernels' products round their inputs; sums, state,
            result and gradients are float32. This text multiplies as PyTorch is set.

    Returns:
        Outputs ``[T, N, hidden]`` and the state after the last step.
    """
    _, weight, _, bias = parameters
    gates = by_input(x, parameters, state)  # [T, N, gates * hidden], one product for the sequence
    # unbind, not an index: its gradient is one stack, where that of an index is a tensor of zeros for every step.
    steps = gates.unbind()
    masks = [None] * len(steps) if keep is None else keep.unbind()
    outputs = []
    for step, mask in zip(steps, masks, strict=True):
        if mask is not None:
            state = tuple(part * mask for part in state)
        state = after(step, state, weight, bias)
        outputs.append(state[0])
    return torch.stack(outputs), state


def by_input(x: Tensor, parameters: tuple[Tensor, Tensor, Tensor, Tensor], state: State) -> Tensor:
    """What an input ``[..., inputs]`` gives the gates of a layer with such a state; see ``sequence``."""
    weight, _, bias, other = parameters
    # An LSTM's biases only ever appear as a sum.
    return F.linear(x, weight, bias + other if len(state) == 2 else bias)


def after(gates: Tensor, state: State, weight: Tensor, bias: Tensor) -> State:
    """One step of a recurrent layer: its state from the one before, and from what the input gives the gates.

    Args:
        gates: of ``by_input``, ``[N, 4 * hidden]`` for an LSTM and ``[N, 3 * hidden]`` for a GRU.
        state: before the step, ``[N, hidden]`` each.
        weight: ``weight_hh``.
        bias: ``bias_hh``, which an LSTM does not read here.
    """
    if len(state) == 2:
        h, c = state
        i, f, g, o = (gates + F.linear(h, weight)).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    (h,) = state
    r, z, n = gates.chunk(3, -1)
    r_h, z_h, n_h = F.linear(h, weight, bias).chunk(3, -1)
    z = (z + z_h).sigmoid()
    n = (n + (r + r_h).sigmoid() * n_h).tanh()
    return ((1 - z) * n + z * h,)


def state_lost(broken: Tensor, done: Tensor, length: int) -> Tensor:
    """Where a broken observation has cleared the recurrent state, until episode or sequence ends, bool ``[T, N]``.

    Args:
        broken: bool ``[T, N]``, where the state is cleared.
        done: bool ``[T, N]``, where an episode ends.
        length: steps of a sequence.
    """
    time = torch.arange(len(done), device=done.device).unsqueeze(1)  # [T, 1]
    begins = torch.cat([torch.ones_like(done[:1]), done[:-1]]) | (time % length == 0)
    latest_break, latest_begin = (torch.where(x, time, -1).cummax(0).values for x in (broken, begins))
    return latest_break >= latest_begin
