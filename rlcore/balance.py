"""What keeps one of several tasks from being learned at the expense of another: advantages and returns by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlcore.distributed import total, world
from rlcore.env import VecEnv
from rlcore.normalization import RunningNormalizer
from rlcore.ranks import MergedNormalizer
from rlcore.types import Metrics, Step


class TaskReturns(nn.Module):
    """Brings returns to zero mean and unit variance by task: stands where a ``RunningNormalizer`` of one feature does.

    Args:
        index: int64 ``[N]``, the task of each env of the rollout.
        tasks: K.
    """

    index: Tensor  # [N]

    def __init__(self, index: Tensor, tasks: int) -> None:
        super().__init__()
        kind = MergedNormalizer if world().several else RunningNormalizer
        self.statistics = kind(tasks, warmup=10 * world().size)
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("own", nn.functional.one_hot(index, tasks) > 0, persistent=False)

    own: Tensor  # bool [N, K]

    @torch.no_grad()
    def update(self, returns: Tensor) -> None:
        """Take in the returns ``[T * N, 1]`` of a rollout; NaN does not count."""
        table = returns.view(-1, len(self.index), 1)
        self.statistics.update(torch.where(self.own, table, torch.nan).flatten(0, 1))

    def forward(self, returns: Tensor) -> Tensor:
        """Normalize ``[T, N, 1]``."""
        mean, std = self._moments()
        return (returns - mean) / std

    def inverse(self, values: Tensor) -> Tensor:
        """Bring ``[T, N, 1]`` back to the scale of returns."""
        mean, std = self._moments()
        return values * std + mean

    def _moments(self) -> tuple[Tensor, Tensor]:
        mean, std = self.statistics.mean, self.statistics.var.sqrt() + self.statistics.epsilon
        return mean[self.index].unsqueeze(-1), std[self.index].unsqueeze(-1)  # [N, 1]


class Balance(nn.Module):
    """Lets each of K tasks have the same say in the gradient, whatever the scale of its rewards.

    Args:
        kind: ``advantage`` brings advantages to zero mean and unit variance within each task; ``success`` then weighs
            those of a task by how often it fails, ``1 - success``, with a mean weight of 1.
        index: int64 ``[N]``, the task of each env of the rollout.
        names: of the tasks.
    """

    index: Tensor  # [N]
    own: Tensor  # bool [K, N]
    success: Tensor  # [K], a moving average, which begins at 0 and stays there where a task does not tell it

    KEPT = 0.99
    """Share of the average of success that an episode leaves of what was before."""
    LEAST = 0.05
    """Weight, before they are brought to a mean of 1, of a task that always succeeds: it must not be forgotten."""

    def __init__(self, kind: str, index: Tensor, names: Sequence[str]) -> None:
        super().__init__()
        self.kind, self.names = kind, tuple(names)
        self.register_buffer("index", index, persistent=False)
        own = torch.arange(len(self.names), device=index.device).unsqueeze(1) == index
        self.register_buffer("own", own, persistent=False)
        self.register_buffer("success", torch.zeros(len(self.names), device=index.device))

    def forward(self, advantages: Tensor, learned: Tensor, data: Mapping[str, Tensor], about: Metrics) -> Tensor:
        """Balance the advantages of a rollout.

        Args:
            advantages: ``[T, N]``.
            learned: bool ``[T, N]``, what counts.
            data: columns of the rollout; of episodes that ended with success or failure ``success`` ``[T, N]``, NaN
                elsewhere.
            about: metrics, to which those of each task are added.

        Returns:
            Advantages ``[T, N]``.
        """
        mean, std = task_moments(advantages, learned, self.own)  # [K] each
        balanced = (advantages - mean[self.index]) / std[self.index]
        if self.kind == "success":
            if "success" in data:
                self._count(data["success"])
            weight = (1 - self.success).clamp(min=self.LEAST)
            weight = weight / weight.mean()
            balanced = balanced * weight[self.index]
            about |= {f"balance/weight_{n}": x for n, x in zip(self.names, weight.unbind(), strict=True)}
        about |= {f"balance/std_{name}": x for name, x in zip(self.names, std.unbind(), strict=True)}
        return balanced

    def told(self, step: Step) -> dict[str, Tensor | float]:
        """The column of a step for the rollout: ``success`` ``[N]`` of episodes that ended, where the env tells it."""
        if self.kind != "success" or "success" not in step.log:
            return {}
        success, goals = (torch.as_tensor(step.log.get(name, 1.0)) for name in ("success", "num_goals"))
        told = (step.terminated | step.truncated) & (goals > 0)
        return {"success": torch.where(told, success, torch.nan)}

    def _count(self, success: Tensor) -> None:
        ended = success.isfinite() & self.own.unsqueeze(1)  # [K, T, N]
        number, successes = ended.sum((1, 2)).float(), (success.nan_to_num(0.0) * ended).sum((1, 2))
        if world().several:
            number, successes = total(torch.stack([number, successes])).unbind()
        rate = successes / number.clamp(min=1)
        self.success.lerp_(rate, 1 - self.KEPT**number)


def task_moments(x: Tensor, learned: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """``returns.moments`` of each task, ``[K]`` each; of all ranks, where there are several.

    Args:
        x: ``[T, N]``.
        learned: bool ``[T, N]``.
        own: bool ``[K, N]``, the envs of each task.
    """
    counts = (learned & own.unsqueeze(1)).flatten(1)  # [K, T * N]
    number, whole = counts.sum(1), x.flatten().where(counts, 0.0).sum(1)
    if world().several:
        number, whole = total(torch.stack([number.to(whole), whole])).unbind()
    number = number.clamp(min=1)
    mean = whole / number
    error = (x.flatten() - mean.unsqueeze(1)).where(counts, 0.0)
    return mean, (total(error.square().sum(1)) / number).sqrt() + 1e-8


def balanced(config: Any, env: VecEnv) -> tuple[RunningNormalizer | TaskReturns | None, Balance | None]:
    """What normalizes returns, if anything does, and what balances advantages, as PPO's settings say."""
    if config.balance == "none":
        kind = MergedNormalizer if world().several else RunningNormalizer
        return kind(1, warmup=10 * world().size).to(env.device) if config.normalize_value else None, None
    index, names = env.task_index, list(env.tasks)  # type: ignore[attr-defined]
    device = torch.device(env.device)
    return TaskReturns(index, len(names)).to(device), Balance(config.balance, index, names).to(device)


def trace_rows(env: VecEnv, rows: int) -> Tensor | None:
    """Which envs a recording is of where there are several tasks, ``[rows]``: of each in turn; None: the first few."""
    index: Tensor | None = getattr(env, "task_index", None)
    if index is None:
        return None
    turn = nn.functional.one_hot(index).cumsum(0).gather(1, index.unsqueeze(1)).squeeze(1)  # 1st of its task, 2nd, ...
    return turn.argsort(stable=True)[:rows]


def select_rows(values: Mapping[str, Tensor], rows: Tensor | None) -> Mapping[str, Tensor]:
    """Rows ``[rows]`` of tensors ``[N, ...]``, in the place of the first few; None leaves that to who stores them."""
    return values if rows is None else {name: value[rows] for name, value in values.items()}
