"""Fixed storage for one rollout, written in place a row at a time."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from rlcore.arrays import arrays
from rlcore.capture import tree_map
from rlcore.dispatch import accelerated
from rlcore.distributions import Distribution
from rlcore.types import Obs, State


class Rollout:
    """Named tensors ``[T, N, ...]``.

    The row to write is a device tensor, so that writing looks the same to the host at every step.

    Args:
        num_steps: T.
        num_envs: N.
        device: where the tensors live.
    """

    def __init__(self, num_steps: int, num_envs: int, device: torch.device) -> None:
        self.num_steps = num_steps
        self.num_envs = num_envs
        self.data: dict[str, Tensor] = {}
        self.row = torch.zeros(1, dtype=torch.int64, device=device)
        _, self._row = arrays(self.row)
        self._rows: dict[str, tuple[Tensor, ...]] = {}  # of data, on a CPU

    def write(self, rows: Mapping[str, Tensor]) -> None:
        """Copy tensors ``[N, ...]``, or the first N rows of larger ones, into the present row.

        A name's first row settles its shape and type.
        """
        if len(next(iter(rows.values()), ())) > self.num_envs:
            rows = {name: value[: self.num_envs] for name, value in rows.items()}
        for name, value in rows.items():
            if name not in self.data:
                self._keep(name, value.new_zeros((self.num_steps, *value.shape)))
        if self._rows:  # there the host may look: nothing runs ahead of it, and an index costs more than a small copy
            present = self._row.item()
            torch._foreach_copy_([self._rows[name][present] for name in rows], list(rows.values()))
            return
        for name, value in rows.items():
            self.data[name].index_copy_(0, self.row, value.unsqueeze(0))

    def _keep(self, name: str, value: Tensor) -> None:
        self.data[name] = value
        if value.device.type == "cpu":
            self._rows[name] = value.unbind()

    def advance(self) -> None:
        """Go on to the next row, and back to the first after the last."""
        if self._rows:
            self._row[0] = (self._row.item() + 1) % self.num_steps
        else:
            self.row += 1
            self.row %= self.num_steps

    def rewind(self) -> None:
        """Go back to the first row."""
        self.row.zero_()

    def latest(self, count: int) -> dict[str, Tensor]:
        """Copy the last ``count`` rows that were written, at most all, in the order in which they were."""
        count = min(count, self.num_steps)
        order = (self.row + torch.arange(-count, 0, device=self.row.device)) % self.num_steps
        return {name: value.index_select(0, order) for name, value in self.data.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """What has been written, and where the next row goes."""
        return {"row": self.row, **self.data}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore ``state_dict``'s result, in place where there is something already: recordings know these tensors."""
        self.row.copy_(state["row"])
        for name, value in state.items():
            if name in self.data:
                self.data[name].copy_(value)
            elif name != "row":
                self._keep(name, value.to(self.row.device).clone())


def make_trace(num_envs: int, device: torch.device, images: bool = False) -> Rollout:
    """Room for the latest steps of the first few envs, raw observations, for checking an export with.

    256 steps of 8 envs, or, since they are part of every checkpoint, 64 of 2 where there are images among them.
    """
    return Rollout(64, min(num_envs, 2), device) if images else Rollout(256, min(num_envs, 8), device)


class Samples(NamedTuple):
    """A rollout laid out as S sequences of L steps, or some of them, ready for the loss."""

    action: Tensor  # [L, S, A]; [L, S] or [L, S, parts] of choices
    old: Distribution  # [L, S, ...], what actions were drawn from
    log_prob: Tensor  # [L, S], of the action by that
    value: Tensor  # [L, S], the critic's output when the rollout was collected
    advantage: Tensor  # [L, S]
    returns: Tensor  # [L, S], what the critic is to learn
    weight: Tensor  # [L, S], 0 for what is not to be learned from, with a mean of 1 over the rollout
    actor_obs: Tensor  # [L, S, O], normalized vectors
    critic_obs: Tensor | None = None  # [L, S, O]; None: the actor's
    raw: Obs = {}  # noqa: RUF012  # images and masks by group, [L, S, ...]; never changed
    actor_state: State = ()  # [layers, S, hidden] each, where sequences begin
    critic_state: State = ()
    keep: Tensor | None = None  # [L, S, 1], 0 where an episode begins; None without a recurrent network
    told: Tensor | None = None  # [L, S, K], probability of each task that the policy acted by; None: it was told
    signal_returns: Tensor | None = None  # [L, S, columns], what the critic is to learn of signals; None without any
    cost_advantage: Tensor | None = None  # [L, S, K], of limited costs where ``cost_penalty`` weighs them; else None


def without_burn_in(
    distribution: Distribution, value: Tensor, samples: Samples, steps: int
) -> tuple[Distribution, Tensor, Samples]:
    """Leave out the first steps of sequences ``[L, S, ...]``, which have refreshed the recurrent state."""
    # A deviation for all states [A] has no steps to leave out.
    distribution = type(distribution)(*(part[steps:] if part.dim() > 1 else part for part in distribution))
    samples = samples._replace(actor_state=(), critic_state=())  # which the networks have read
    return distribution, value[steps:], tree_map(samples, lambda x: x[steps:])


def shuffled(rollout: Samples, number: int) -> Iterator[Samples]:
    """Shuffle the sequences, all at once so that parts are views, and cut them into so many equal parts."""
    if number == 1:
        yield rollout
        return
    count = rollout.weight.shape[1]
    order = torch.randperm(count, device=rollout.weight.device)
    rollout = tree_map(rollout, lambda x: _reordered(x, order))
    size = count // number
    for first in range(0, count, size):
        yield tree_map(rollout, functools.partial(torch.narrow, dim=1, start=first, length=size))


def _reordered(value: Tensor, order: Tensor) -> Tensor:
    """Sequences ``[L, S, ...]`` in another order ``[S]``."""
    if len(value) == 1:
        return gather(value[0], order).unsqueeze(0)
    return value.index_select(1, order)


def to_sequences(rollout: Samples, length: int, actor_states: State, critic_states: State) -> Samples:
    """Cut a rollout ``[T, N, ...]`` into sequences.

    Args:
        rollout: without states.
        length: steps of a sequence, L.
        actor_states: where sequences begin, ``[T / L, N, layers, hidden]`` each.
        critic_states: those of the critic.
    """
    begun = (actor_states, critic_states)
    actor, critic = (tuple(x.flatten(0, 1).transpose(0, 1) for x in parts) for parts in begun)
    return tree_map(rollout, lambda x: sequences(x, length))._replace(actor_state=actor, critic_state=critic)  # type: ignore[no-any-return]


def sequences(value: Tensor, length: int) -> Tensor:
    """Cut ``[T, N, ...]`` into sequences ``[L, S, ...]`` of ``length`` L steps; S is ``T / L * N``."""
    return value.view(len(value) // length, length, *value.shape[1:]).transpose(0, 1).flatten(1, 2)


def gather(value: Tensor, index: Tensor) -> Tensor:
    """Pick rows ``[B]`` by index from ``[N, ...]``; where all rows are one memory, so are the results.

    The field may lie in host memory that the GPU of the index can address.
    """
    if value.stride(0) == 0:
        return value[:1].expand(len(index), *value.shape[1:])
    return _gather(value, index)


@accelerated("gather:gather", of=1)
def _gather(value: Tensor, index: Tensor) -> Tensor:
    return value.index_select(0, index)
