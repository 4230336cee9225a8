"""Action values for learning from a replay memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from rlcore.losses import expected_value
from rlcore.networks import Network, network_outputs
from rlcore.off_policy_config import OffPolicyConfig


class Critics(nn.Module):
    """Independent action values: each a number, or logits of the returns that a categorical critic tells apart.

    Args:
        inputs: size of normalized observation and action together.
        config: settings.
    """

    def __init__(self, inputs: int, config: OffPolicyConfig) -> None:
        super().__init__()
        self.support = config.value_range if config.value_loss == "categorical" else None
        """Lowest and highest return that categorical critics tell apart."""
        outputs = 1 if self.support is None else config.num_atoms
        self.trunks = nn.ModuleList(Network(inputs, config.critic) for _ in range(config.num_critics))
        self.heads = nn.ModuleList(nn.Linear(trunk.size, outputs) for trunk in self.trunks)  # type: ignore[arg-type]

    def output(self, normalized: Tensor, action: Tensor, count: int | None = None) -> Tensor:
        """Return what the first ``count`` critics, or all, say of actions ``[B, A]``, ``[critics, B, outputs]``."""
        return network_outputs(list(self.trunks), list(self.heads), normalized, action, count)  # type: ignore[arg-type]

    def forward(self, normalized: Tensor, action: Tensor, count: int | None = None) -> Tensor:
        """Value actions ``[B, A]`` in normalized observations ``[B, O]``, ``[critics, B]``."""
        output = self.output(normalized, action, count)
        return output.squeeze(-1) if self.support is None else expected_value(output, *self.support)


@contextmanager
def frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let gradients pass through parameters without being computed for them."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
