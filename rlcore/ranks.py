"""What keeps the ranks of a run alike: statistics that are merged, parameters that are compared, and what is refused.

Gradients are the business of ``rlcore.distributed``. All that a rank has of its own are envs, the rollout or replay
memory, and random numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rlcore.agent import Agent
from rlcore.capture import Captured
from rlcore.config import ConfigError
from rlcore.distributed import RankLost, abort, gathered, largest, total, world
from rlcore.env import VecEnv, is_adaptive, name_of
from rlcore.faults import PREFIX
from rlcore.mark import Mark
from rlcore.normalization import ReturnScale, RunningNormalizer
from rlcore.squashed_tasks import TaskReturnScale
from rlcore.types import Metrics

COMPARED_EVERY = 100
"""Iterations between two comparisons of the parameters, beside that of the first one."""

_SUMS = ("rollout/dropped", "replay/dropped")  # metrics that count; others are means
SHARED = ("policy", "critic", "critics", "target_critics", "value_normalizer", "log_temperature", "learning_rate")
LEARNED = ("optimizers", "actor_optimizer", "critic_optimizer", "temperature_optimizer")
"""Parts of agents' states that are the same on all ranks: ``SHARED``, and what optimizers keep."""
MIXED = ("safety", "costs", "balance", "signals", "return_scale", "safety_critic")
"""Parts that are, but for what they have by env (``OF_ENVS``), and what waits to be merged."""
OF_ENVS = ("running", "sums", "index", "own", "ring", "size")

_WAITING = ("measured",)
_NOT_CHANGED = ("replay", "trace")  # by an update, and large
_LOST = 5.0  # seconds until a GPU is given up when a rank is known to be gone
_GRACE = 20.0  # seconds that a GPU may need after a signal; torchrun kills after 30


class OutOfStep(RuntimeError):
    """Ranks have other parameters than each other, which must not be."""


class MergedNormalizer(RunningNormalizer):
    """A ``RunningNormalizer`` whose every batch is those of all ranks together."""

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take a batch ``[B, size]`` of each rank into the statistics."""
        before = Moments([self])
        before.set()
        super().update(x)
        before.merge()


class Moments:
    """Statistics of normalizers as they were, and what the ranks have seen since then.

    Chan, Golub & LeVeque (1979) merge two parts; any number of parts adds up by their sums about a common point, the
    mean ``m0`` of before: with ``n`` numbers of each rank ``sum n``, ``sum n (m - m0)`` and ``sum n ((m - m0)^2 + v)``.
    """

    def __init__(self, normalizers: Sequence[RunningNormalizer]) -> None:
        self.normalizers = list(normalizers)
        self.before: list[Tensor] = []

    @torch.no_grad()
    def set(self) -> None:
        """Remember the statistics, which are the same on all ranks."""
        now = [self._all("count"), self._all("mean").double(), self._all("var").double()]
        if not self.before:
            self.before = now
        else:
            torch._foreach_copy_(self.before, now)

    @torch.no_grad()
    def merge(self) -> None:
        """Let the statistics be those of what all ranks have seen; in place, in one sum."""
        count, mean, var = self.before
        own, huge = self._all("count"), self._all("huge").double()
        shift = self._all("mean").double() - mean
        square = own * (self._all("var").double() + shift * shift) - count * var
        number, moved, square, huge = total(torch.stack([own - count, own * shift, square, huge]))
        seen = count + number
        some = seen.clamp(min=1)
        shift = moved / some
        spread = ((count * var + square) / some - shift * shift).clamp(min=0)
        self._put("mean", mean + shift)
        self._put("var", torch.where(seen > 0, spread, var))
        self._put("count", seen)
        self._put("huge", huge / world().size)

    def _all(self, name: str) -> Tensor:
        return torch.cat([getattr(normalizer, name) for normalizer in self.normalizers])

    def _put(self, name: str, values: Tensor) -> None:
        parts = [getattr(normalizer, name) for normalizer in self.normalizers]
        for part, value in zip(parts, torch.split(values, [len(part) for part in parts]), strict=True):
            part.copy_(value)


class Ranks:
    """One rank's side of all that the ranks of a run do together, but for the gradient.

    Args:
        env: this rank's.
        agent: what learns.
        ending: tells whether this rank has been asked to stop.

    Raises:
        ConfigError: something in the settings is not shared among ranks yet, or they began with other weights.
    """

    def __init__(self, env: VecEnv, agent: Agent, ending: Callable[[], bool] | None = None) -> None:
        refuse(env, agent)
        self.env, self.agent, self.ending, self.device = env, agent, ending, torch.device(env.device)
        parts = [
            agent.policy,
            *(getattr(agent, name, None) for name in ("critic", "critic_normalizer", "return_scale")),
        ]
        modules = {id(m): m for part in parts if part is not None for m in part.modules()}.values()
        self.moments = Moments([m for m in modules if isinstance(m, RunningNormalizer)])
        self.scales = [module for module in modules if isinstance(module, (ReturnScale, TaskReturnScale))]
        self.costs: Any = getattr(agent, "costs", None)
        state = agent.state_dict()
        self.backup = Mark(
            tensor for name, part in state.items() if name not in _NOT_CHANGED for tensor in _leaves(part)
        )
        self.numbers = [name for name, x in state.items() if type(x) is int and type(getattr(agent, name, None)) is int]
        self.before: dict[str, int] = {}
        self.kept: Any = torch.cuda.Event() if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.masks: dict[tuple[str, ...], Tensor] = {}
        self._merge = Captured(self._merge_statistics, agent.mode, self.device)
        self.compare(0)

    def begin(self) -> None:
        """Before a rollout: remember what the ranks have in common."""
        if self.moments.normalizers:
            self.moments.set()

    def merge(self) -> None:
        """After a rollout: bring together what the ranks have seen, and be ready to undo an update."""
        self._merge()
        self.before = {name: getattr(self.agent, name) for name in self.numbers}
        self.backup.set()
        if self.kept is not None:
            self.kept.record(torch.cuda.current_stream(self.device))

    def _merge_statistics(self) -> None:
        if self.moments.normalizers:
            self.moments.merge()
        for scale in self.scales:
            largest(scale.largest)
        if self.costs is not None:
            self.costs.share(self.agent.return_scale())  # type: ignore[attr-defined]

    def undo(self) -> None:
        """After an update that broke off: bring the agent back to where it stood before.

        Raises:
            RankLost: the GPU does not come to its end.
        """
        if self.kept is not None:
            self.wait(self.kept, _LOST)
            abort()
        self.backup.go_back()
        for name, value in self.before.items():
            setattr(self.agent, name, value)

    def came_to_its_end(self, event: Any, error: BaseException) -> bool:
        """After an error: whether the update before ``event`` has run, on a GPU that the host is ahead of.

        Where a rank is gone it may never; then the agent is brought back to before that update.

        Args:
            event: of CUDA, after the latest iteration.
            error: what has been raised.

        Raises:
            RankLost: nor does the GPU come to where the agent was remembered.
        """
        try:
            self.wait(event, _LOST if isinstance(error, RankLost) else None)
        except RankLost:
            self.undo()
            return False
        return True

    def wait(self, event: Any, limit: float | None = None) -> None:
        """Wait for the GPU, but not for ever for a rank that is gone: sums with it do not end.

        Args:
            event: of CUDA.
            limit: seconds; None: as long as it takes, or for a while after this rank was asked to stop.

        Raises:
            RankLost: it takes too long.
        """
        since = None if limit is None else time.monotonic()
        while not event.query():
            time.sleep(1e-4)
            if since is None and self.ending is not None and self.ending():
                since = time.monotonic()
            if since is not None and time.monotonic() - since > (limit or _GRACE):
                abort()
                raise RankLost("another rank is gone: the GPU waits for it")

    @torch.no_grad()
    def metrics(self, metrics: Metrics) -> Metrics:
        """Means over the ranks that have a value, or sums; what tells of a rank's own faults stays its own."""
        names, values = tuple(metrics), torch.stack([value.float() for value in metrics.values()]).detach()
        if names not in self.masks:
            kinds = [0 if name.startswith(PREFIX) else 1 if name in _SUMS else 2 for name in names]
            self.masks[names] = torch.tensor(kinds, device=values.device)
        kind, known = self.masks[names], ~values.isnan()
        sums, number = total(torch.stack([values.where(known, 0.0), known.float()]))
        values = torch.where(kind == 0, values, torch.where(kind == 1, sums, sums / number))
        return dict(zip(names, values.unbind(), strict=True))

    def compare(self, iteration: int) -> None:
        """See to it that all ranks have the same parameters, to the bit; at times, since the host has to wait for it.

        Raises:
            ConfigError: they have not when the run begins.
            OutOfStep: they have not later.
        """
        if iteration > 1 and iteration % COMPARED_EVERY:
            return
        if self.kept is not None:  # a read by the host could not be broken off
            reached = torch.cuda.Event()  # type: ignore[no-untyped-call]
            reached.record(torch.cuda.current_stream(self.device))
            self.wait(reached)
        state = self.agent.state_dict()
        tensors = [t for name in (*SHARED, *LEARNED) for t in _leaves(state.get(name))]
        tensors += [t for name in MIXED for t in _leaves(state.get(name), (*OF_ENVS, *_WAITING))]
        sums = gathered(checksum([*tensors, *merged_in(self.env)]))
        if len(set(sums)) > 1:
            other = next(rank for rank, own in enumerate(sums) if own != sums[0])
            if iteration == 0:
                raise ConfigError(f"seed: ranks 0 and {other} begin with other weights; give all ranks the same seed")
            raise OutOfStep(
                f"ranks 0 and {other} have other parameters after iteration {iteration}; where the algorithm is one's "
                "own: gradients are summed by rlcore.optimizer.FlatAdam alone"
            )


def merges(env: VecEnv) -> bool:
    """Whether what an env goes by is the same on all ranks: it does not adapt, or says by ``merged`` what that is.

    Such an env sums up what has come of its episodes with ``rlcore.distributed.total``, in ``adapt``.
    """
    return not is_adaptive(env) or hasattr(env, "merged")


def merged_in(env: VecEnv) -> list[Tensor]:
    """What an env goes by and all ranks have alike, such as levels and ranges; nothing where it does not adapt."""
    give: Callable[[], list[Tensor]] = getattr(env, "merged", list)
    return give()


def refuse(env: VecEnv, agent: Agent) -> None:
    """Refuse what is not shared among ranks.

    Raises:
        ConfigError: names it.
    """
    if world().size == 1:
        return
    config: Any = getattr(agent, "config", None)
    remedy = f"is not shared among {world().size} ranks; train on one GPU, or leave it out"
    if hasattr(agent, "renew"):  # which plays tasks of its own choice, and takes its steps without the others
        raise ConfigError(f"algo: {type(agent).__name__} {remedy}")
    if not merges(env):
        raise ConfigError(
            f"{name_of(env)}: its own rule of adapting {remedy}, or let it merge, see docs/several-gpus.md"
        )
    if "compile" in agent.mode and getattr(config, "normalize_advantage", "") == "minibatch":
        raise ConfigError(f"normalize_advantage: 'minibatch' with mode: {agent.mode!r} {remedy}; or set mode to graph")


def checksum(tensors: Sequence[Tensor]) -> int:
    """A number that any change of a bit or of places changes, almost surely."""
    if not tensors:
        return 0
    found = []
    for tensor in tensors:
        bits = tensor.detach().contiguous().view(-1).view(torch.uint8).to(torch.int64)
        places = torch.arange(1, len(bits) + 1, device=bits.device)
        found.append((bits * (places * 2_654_435_761 % 1_000_003 + 1)).sum())
    sums: list[int] = torch.stack(found).tolist()
    return hash(tuple(sums))


def _leaves(value: Any, without: Sequence[str] = ()) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        kept = [item for name, item in value.items() if str(name).rpartition(".")[2] not in without]
        return [leaf for item in kept for leaf in _leaves(item, without)]
    return [leaf for item in value for leaf in _leaves(item, without)] if isinstance(value, (list, tuple)) else []
