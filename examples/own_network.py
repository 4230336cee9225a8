"""Networks of one's own in the place of hidden layers; ``rlcore/own_network.py`` says what is asked of them.

rlcore train --task Pendulum --agent.actor.kind examples/own_network.py:Branches --agent.actor.options.branches 2
rlcore train --task Memory --agent.{actor,critic}.{rnn.type=none,kind=examples/own_network.py:MinimalGatedUnit}
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlcore import NetworkConfig


class Branches(nn.Module):
    """Several perceptrons side by side, of which a softmax of the input chooses: a mixture of experts.

    Args:
        inputs: size of the input.
        config: settings; of these it reads the width of the last hidden layer.
        branches: how many.
    """

    def __init__(self, inputs: int, config: NetworkConfig, branches: int = 4) -> None:
        super().__init__()
        self.size = config.hidden_dims[-1]
        self.gate = nn.Linear(inputs, branches)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(inputs, self.size), nn.ELU(), nn.Linear(self.size, self.size), nn.ELU())
            for _ in range(branches)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, inputs]`` to ``[B, size]``."""
        weight = torch.softmax(self.gate(x), -1).unsqueeze(-1)  # [B, branches, 1]
        return (weight * torch.stack([expert(x) for expert in self.experts], 1)).sum(1)


class MinimalGatedUnit(nn.Module):
    """A recurrent layer of one gate (Zhou et al. 2016, arXiv:1603.09420).

    Args:
        inputs: size of the input.
        config: settings; of these it reads the width of the last hidden layer.
    """

    def __init__(self, inputs: int, config: NetworkConfig) -> None:
        super().__init__()
        self.size = config.hidden_dims[-1]
        self.entry = nn.Linear(inputs, 2 * self.size)
        self.gate = nn.Linear(self.size, self.size, bias=False)
        self.candidate = nn.Linear(self.size, self.size, bias=False)

    def initial_state(self, num_envs: int) -> tuple[Tensor, ...]:
        """Zeros ``[layers, N, hidden]``."""
        return (torch.zeros(1, num_envs, self.size),)

    def forward(self, x: Tensor, state: tuple[Tensor, ...], keep: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Map ``[T, N, inputs]`` and the state before it to ``[T, N, size]`` and the state after it."""
        h = state[0].squeeze(0)  # [N, size]
        steps = self.entry(x).unbind()  # one product for the sequence, [N, 2 * size] each
        features = []
        for t, step in enumerate(steps):
            h = h if keep is None else h * keep[t]  # an episode begins where it is 0
            for_gate, for_candidate = step.chunk(2, -1)
            gate = torch.sigmoid(for_gate + self.gate(h))
            h = (1 - gate) * h + gate * torch.tanh(for_candidate + self.candidate(gate * h))
            features.append(h)
        return torch.stack(features), (h.unsqueeze(0),)
