"""Action values for learning from a replay memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rlcore.config import ConfigError
from rlcore.encoders import Encoders
from rlcore.env import EnvSpec
from rlcore.losses import expected_value
from rlcore.networks import Network, network_outputs
from rlcore.observations import choose_groups, groups_of, images, vectors
from rlcore.off_policy_config import OffPolicyConfig
from rlcore.optimizer import FlatAdam
from rlcore.perceptrons import WrittenOut, is_perceptron
from rlcore.policies import SquashedPolicy
from rlcore.replay import Batch


class Critics(nn.Module):
    """Independent action values: each a number, or logits of the returns that a categorical critic tells apart.

    Args:
        spec: of the env.
        config: settings.
        policy: the actor, whose encoders are shared where both read the same images.

    Raises:
        ConfigError: an observation group is none of the env's, or an encoder is to be shared and built in two ways.
    """

    def __init__(self, spec: EnvSpec, config: OffPolicyConfig, policy: SquashedPolicy) -> None:
        super().__init__()
        _, chosen = choose_groups(groups_of(spec), config.actor_obs, config.critic_obs)
        sizes, self.raw_shapes = vectors(spec, chosen), images(spec, chosen)
        self.groups, self.size = tuple(sizes), sum(sizes.values())
        """Vectors that they read, in the order in which they are joined, and how many numbers these are."""
        shared = [group for group in self.raw_shapes if group in policy.raw_shapes]
        if shared and config.actor.cnn != config.critic.cnn:
            raise ConfigError(
                f"critic.cnn: actor and critics share the encoder of '{shared[0]}', and actor.cnn has other settings; "
                "give both the same"
            )
        encoders = Encoders(self.raw_shapes, config.critic.cnn, config.critic.init, shared=policy.encoders)
        inputs = encoders.size + self.size + policy.actions
        self.support = config.value_range if config.value_loss == "categorical" else None
        """Lowest and highest return that categorical critics tell apart."""
        outputs = 1 if self.support is None else config.num_atoms
        self.trunks = nn.ModuleList(Network(inputs, config.critic) for _ in range(config.num_critics))
        self.heads = nn.ModuleList(nn.Linear(trunk.size, outputs) for trunk in self.trunks)  # type: ignore[arg-type]
        self.encoders = encoders  # behind what kernels want to find side by side, see ``optimizer.flat``

    def output(self, features: Tensor, action: Tensor, count: int | None = None) -> Tensor:
        """Return what the first ``count`` critics, or all, say of actions ``[B, A]``, ``[critics, B, outputs]``."""
        return network_outputs(list(self.trunks), list(self.heads), features, action, count)  # type: ignore[arg-type]

    def forward(self, features: Tensor, action: Tensor, count: int | None = None) -> Tensor:
        """Value actions ``[B, A]``, by features of images and normalized vectors ``[B, O]``, ``[critics, B]``."""
        output = self.output(features, action, count)
        return output.squeeze(-1) if self.support is None else expected_value(output, *self.support)

    def written_out(self, optimizer: FlatAdam) -> WrittenOut | None:
        """Their backward pass written out for a CPU, with their optimizer; None where it is for others."""
        trunks: list[Any] = list(self.trunks)
        all_learned = len(optimizer.parameters) == len(list(self.parameters()))
        if self.raw_shapes or not all_learned or not optimizer.value.is_cpu or not all(map(is_perceptron, trunks)):
            return None
        return WrittenOut(trunks, list(self.heads), optimizer)  # type: ignore[arg-type]


def encoded(
    batch: Batch, actor: SquashedPolicy, critics: Critics, next_actor: SquashedPolicy, next_critics: Critics
) -> Batch:
    """Put features before the vectors, where images are read; which network is to read what follows is told as well.

    The encoder of a group that the critics read is learned by their loss alone, and the actor takes its features as
    they are, from before the critics' step (DrQ, arXiv:2004.13649; DrQ-v2, arXiv:2107.09645, section 3.1). What the
    actor alone reads has an encoder that is learned by the actor's loss.
    """
    if not batch.raw:
        return batch
    seen = critics.encoders.features(batch.raw)
    given = {cnn: features.detach() for cnn, features in seen.items()}
    with torch.no_grad():
        after = next_critics.encoders.features(batch.next_raw)
        followed = next_actor.encoders.features(batch.next_raw, after)
    return batch._replace(
        actor_obs=actor.encoders.join(actor.encoders.features(batch.raw, given), batch.actor_obs),
        critic_obs=critics.encoders.join(seen, batch.critic_obs),
        next_actor_obs=next_actor.encoders.join(followed, batch.next_actor_obs),
        next_critic_obs=next_critics.encoders.join(after, batch.next_critic_obs),
    )


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
