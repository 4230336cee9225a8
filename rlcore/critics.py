"""Critics: state values for learning from rollouts, action values for learning from a replay memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rlcore.actor_critic_config import ActorCriticConfig
from rlcore.config import ConfigError
from rlcore.encoders import Encoders
from rlcore.env import EnvSpec
from rlcore.losses import expected_value
from rlcore.networks import Network, network_outputs, orthogonal_
from rlcore.observations import choose_groups, groups_of, images, vectors
from rlcore.off_policy_config import OffPolicyConfig
from rlcore.optimizer import FlatAdam
from rlcore.perceptrons import WrittenOut, is_perceptron
from rlcore.policies import ActorPolicy, SquashedPolicy
from rlcore.recurrent import cleared
from rlcore.replay import Batch
from rlcore.tasks import normalizer_for, own_part, with_task
from rlcore.types import Obs, State


class Critic(nn.Module):
    """State values from its own observation groups, or from the actor's features.

    Args:
        spec: of the env.
        config: settings.
        policy: the actor, whose normalizer is shared where both read the same groups.
        signals: how many columns it has beside that of the reward, S; they begin at 0.

    Raises:
        ConfigError: ``share_trunk`` with groups other than the actor's, or with a recurrent actor.
    """

    def __init__(self, spec: EnvSpec, config: ActorCriticConfig, policy: ActorPolicy, signals: int = 0) -> None:
        super().__init__()
        actor, chosen = choose_groups(groups_of(spec), config.actor_obs, config.critic_obs)
        if config.share_trunk and actor != chosen:
            raise ConfigError(
                f"share_trunk: the actor reads {actor} and the critic {chosen}; a shared trunk needs the "
                "same groups, set critic_obs to the actor's or share_trunk to false"
            )
        if config.share_trunk and policy.trunk.recurrent:
            raise ConfigError("share_trunk: a recurrent actor cannot share its trunk; set share_trunk to false")
        chosen = with_task(spec, chosen)
        sizes, self.raw_shapes = vectors(spec, chosen), images(spec, chosen)
        self.groups, size = tuple(sizes), sum(sizes.values())
        same = self.groups == policy.groups
        self.normalizer = policy.normalizer if same else normalizer_for(spec, sizes, *config.normalization)
        self.trunk = policy.trunk if config.share_trunk else Network(size, config.critic, self.raw_shapes)
        self.tasks = len(spec.tasks) if config.critic.task_heads else 0
        heads = max(1, self.tasks)
        self.value = nn.Linear(self.trunk.size, heads)
        if config.critic.init == "orthogonal":
            orthogonal_(self.value, 1.0)
        if signals:  # one layer for all columns
            first, self.value = self.value, nn.Linear(self.trunk.size, heads * (1 + signals))
            with torch.no_grad():
                for wide, narrow in zip(self.value.parameters(), first.parameters(), strict=True):
                    wide.zero_()[:: 1 + signals] = narrow

    def initial_state(self, num_envs: int) -> State:
        """Zero recurrent state for ``num_envs`` envs; ``()`` for a feed-forward critic."""
        return self.trunk.initial_state(num_envs)

    def forward(
        self, normalized: Tensor, state: State = (), keep: Tensor | None = None, raw: Obs | None = None
    ) -> tuple[Tensor, State]:
        """Map a sequence of observations to values and the next state; see ``ActorPolicy.distribution``.

        Values are ``[T, N]``, or ``[T, N, 1 + S]`` with signals, the first column being that of the reward.
        """
        output, state = self.trunk(normalized, self.value, state, keep, raw)
        if self.tasks:
            output = own_part(output, normalized[..., -self.tasks :].to(output.dtype))
        return output.squeeze(-1), state

    def unroll(
        self,
        obs: Tensor,
        final_obs: Tensor | None,
        timed_out: Tensor,
        num_timeouts: int,
        carried: State,
        keep: Tensor,
        length: int,
        raw: Obs | None = None,
        final_raw: Obs | None = None,
    ) -> tuple[Tensor, Tensor, State]:
        """Value a whole rollout, normalized.

        Args:
            obs: the rollout's observations and the one after it, ``[T + 1, N, O]``.
            final_obs: what preceded each reset, ``[T, N, O]``; None if time-outs are not valued.
            timed_out: bool ``[T, N]``, where ``final_obs`` is to be valued. Elsewhere its value would be wasted, and in
                a rollout it is rarely wanted.
            num_timeouts: how many of them at most; a step beyond has the value of its own observation instead.
            carried: recurrent state at the rollout's start, moved on in place to the next one's.
            keep: ``[T + 1, N, 1]``, 0 where an episode begins.
            length: steps of the sequences that will be learned from.
            raw: images that come with ``obs``, by group.
            final_raw: those that come with ``final_obs``.

        Returns:
            Values of ``obs`` ``[T + 1, N]`` and, where timed out, of ``final_obs`` ``[T, N]``, with one more dimension
            of columns where there are signals; and the recurrent states where sequences begin, ``[T / length, N,
            layers, hidden]`` each.
        """
        steps = len(obs) - 1
        raw, final_raw = raw or {}, final_raw or {}
        starts: list[State] = []
        after: list[State] = []
        if not self.trunk.recurrent:
            values, state = self.forward(obs, raw=raw)
        else:
            # Step by step: the value of a time-out needs the state that its episode ended with.
            state, rows, begins = carried, [], keep == 0
            for t in range(steps + 1):
                state = cleared(state, begins[t])
                if t == steps:
                    for target, part in zip(carried, state, strict=True):
                        target.copy_(part)
                elif t % length == 0:
                    starts.append(state)
                value, state = self.forward(obs[t : t + 1], state, None, {g: x[t : t + 1] for g, x in raw.items()})
                rows.append(value)
                after.append(state)
            values = torch.cat(rows)
            state = tuple(torch.cat(parts, 1) for parts in zip(*after[:-1], strict=True))  # [layers, T * N, hidden]
        timeout_values = values[:-1]
        if final_obs is not None:
            flags = timed_out.flatten()  # [T * N]
            place = torch.where(flags, flags.cumsum(0) - 1, num_timeouts).clamp(max=num_timeouts)
            # One entry more than is valued, for what has no place.
            chosen = torch.zeros(num_timeouts + 1, dtype=torch.int64, device=place.device)
            chosen.scatter_(0, place, torch.arange(len(place), device=place.device))
            chosen = chosen[:-1]
            state = tuple(part.index_select(1, chosen) for part in state)
            last, *seen = (
                x.flatten(0, 1).index_select(0, chosen).unsqueeze(0) for x in (final_obs, *final_raw.values())
            )
            found = self.forward(last, state, None, dict(zip(final_raw, seen, strict=True)))[0]
            found = found.squeeze(0).index_select(0, place.clamp(max=num_timeouts - 1)).view_as(timeout_values)
            known = (place < num_timeouts).view(*timed_out.shape, *[1] * (values.dim() - 2))
            timeout_values = torch.where(known, found, timeout_values)
        begun = (torch.stack([part.transpose(0, 1) for part in parts]) for parts in zip(*starts, strict=True))
        return values, timeout_values, tuple(begun)


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
        chosen = with_task(spec, chosen)
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
        self.inputs = inputs = encoders.size + self.size + policy.actions
        self.support = config.value_range if config.value_loss == "categorical" else None
        """Lowest and highest return that categorical critics tell apart."""
        self.tasks = len(spec.tasks) if config.critic.task_heads else 0
        outputs = max(1, self.tasks) * (1 if self.support is None else config.num_atoms)
        self.trunks = nn.ModuleList(Network(inputs, config.critic) for _ in range(config.num_critics))
        self.heads = nn.ModuleList(nn.Linear(trunk.size, outputs) for trunk in self.trunks)  # type: ignore[arg-type]
        self.encoders = encoders  # behind what kernels want to find side by side, see ``optimizer.flat``

    def output(self, features: Tensor, action: Tensor, count: int | None = None) -> Tensor:
        """Values or logits ``[count, B, outputs]`` of actions ``[B, A]`` by the first ``count`` critics, or by all."""
        given = list(self.trunks), list(self.heads), features, action, count
        return self.own(network_outputs(*given), features)  # type: ignore[arg-type]

    def own(self, output: Tensor, features: Tensor) -> Tensor:
        """Of what all heads say, ``[C, B, ...]``, what is of the task that features ``[B, O]`` tell."""
        return own_part(output, features[:, -self.tasks :]) if self.tasks else output

    def forward(self, features: Tensor, action: Tensor, count: int | None = None) -> Tensor:
        """Values ``[count, B]`` of actions ``[B, A]``, by image features and normalized vectors, joined ``[B, O]``."""
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
    """Encode the images of a batch, if there are any, and put their features before the vectors.

    The next observations are encoded by ``next_actor`` and ``next_critics``, such as the target networks.

    The encoder of a group that the critics read is learned by the critics' loss alone: the actor takes its features
    without a gradient, from before the critics' step (DrQ, arXiv:2004.13649; DrQ-v2, arXiv:2107.09645). A group that
    the actor alone reads has an encoder that the actor's loss learns.
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


def set_precision(config: OffPolicyConfig, *modules: nn.Module) -> None:
    """Let networks multiply as the settings say."""
    for module in modules:
        for network in module.modules():
            if isinstance(network, Network):
                network.mlp.precision, network.mlp.fused = config.precision, config.precision != "fp32"


@contextmanager
def frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Compute no gradients of these parameters inside, while gradients pass through them to their inputs."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
