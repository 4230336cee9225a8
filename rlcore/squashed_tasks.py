"""Several tasks for algorithms that learn from a replay memory: bounds, temperatures and scales of rewards of each."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from rlcore.config import ConfigError, check
from rlcore.distributed import total, world
from rlcore.distributions import LOG_2PI, tanh_gaussian
from rlcore.env import WIDEST_ACTION, EnvSpec, VecEnv
from rlcore.normalization import DECAY, WIDE, ReturnScale, RunningNormalizer
from rlcore.tasks import TASK_GROUP, numbers_of, own_part
from rlcore.types import Obs

IDLE_LOG_STD = -0.5 * LOG_2PI
"""Of dimensions that a task does not have, before the tanh. About a mean of 0 and without noise their log density, with
that of the tanh, is 0; and since all of it is constant, it has no gradient."""


class SquashedTasks(nn.Module):
    """Heads, masks and bounds of the actions of K tasks within bounds.

    Args:
        spec: of an env of several tasks.
        heads: whether each task has a head of its own.

    Raises:
        ConfigError: a task's actions have no bounds, or such as can hardly be meant.
    """

    active: Tensor  # [K, A], 1 or 0
    scale: Tensor  # [K, A], half the width of the bounds; 0 in dimensions that a task does not have
    bias: Tensor  # [K, A], their middle
    log_scale: Tensor  # [K], sum of the logarithms of the widths
    sizes: Tensor  # [K], number of dimensions

    def __init__(self, spec: EnvSpec, heads: bool) -> None:
        super().__init__()
        if spec.discrete:
            raise ConfigError(f"algo: {spec.task} has discrete actions alone, which SAC cannot choose; use ppo")
        self.count, self.size, self.heads = len(spec.tasks), spec.action_size, heads
        active, scale, bias = torch.zeros(3, self.count, self.size)
        for row, own in enumerate(spec.tasks.values()):
            size = numbers_of(own)
            low, high = torch.tensor([own.action_low, own.action_high]) if not own.discrete else torch.ones(2, size)
            low = -low if own.discrete else low  # numbers that choices are cut from lie within -1..1
            widest = float(torch.stack([low, high]).abs().max())
            if widest > WIDEST_ACTION:
                remedy = f"reach to {widest:g}" if math.isfinite(widest) else "have no bounds"
                raise ConfigError(
                    f"action_low: actions of {own.task} {remedy}, and a tanh needs bounds within +-{WIDEST_ACTION:g}; "
                    "use ppo, or an env whose actions are bounded so"
                )
            check(bool((low < high).all()), "action_low", low.tolist(), f"{own.task} has no more as action_high")
            active[row, :size], scale[row, :size], bias[row, :size] = 1.0, (high - low) / 2, (high + low) / 2
        # Not in the state: they follow from the env.
        self.register_buffer("active", active, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.register_buffer("log_scale", torch.where(active > 0, scale, 1.0).log().sum(1), persistent=False)
        self.register_buffer("sizes", active.sum(1), persistent=False)

    def index(self, features: Tensor) -> Tensor:
        """The task ``[...]`` of each row of what a network reads ``[..., O + K]``."""
        return features[..., -self.count :].argmax(-1)

    def output(self, wide: Tensor, features: Tensor) -> Tensor:
        """Of a head's output what is of the row's task, ``[..., 2 A]``: means and log deviations before the tanh."""
        output = own_part(wide, features[..., -self.count :]) if self.heads else wide
        active = self.active[self.index(features)] > 0
        mean, log_std = output.chunk(2, -1)
        return torch.cat([mean.where(active, 0.0), log_std.where(active, IDLE_LOG_STD)], -1)

    def stretched(self, unit: Tensor, features: Tensor) -> Tensor:
        """Bring -1..1 ``[..., A]`` to the bounds of each row's task; 0 in dimensions that it does not have."""
        index = self.index(features)
        return self.bias[index] + self.scale[index] * unit

    def sample(self, output: Tensor, features: Tensor, log_std_range: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """``sample_tanh_gaussian`` within the bounds of each row's task: actions ``[B, A]``, log density ``[B]``."""
        index = self.index(features)
        noise = torch.randn(len(output), self.size, device=output.device, dtype=output.dtype) * self.active[index]
        one = torch.ones(self.size, device=output.device, dtype=output.dtype)
        unit, log_prob = tanh_gaussian(output, noise, log_std_range, one, torch.zeros_like(one))
        return self.stretched(unit, features), log_prob - self.log_scale[index]

    def mean_of(self, values: Tensor, weight: Tensor, index: Tensor, default: float | Tensor) -> Tensor:
        """Mean of values ``[B]`` by weight ``[B]`` over the rows of each task, ``[K]``; a default where none counts.

        Over those of all ranks: a mean of their means would count a rank with few rows of a task as one with many.
        """
        own = index == torch.arange(self.count, device=index.device).unsqueeze(1)  # [K, B]
        number, sums = torch.where(own, weight, 0.0).sum(1), torch.where(own, weight * values, 0.0).sum(1)
        if world().several:
            number, sums = total(torch.stack([number, sums]))
        return torch.where(number > 0, sums / number, default)


class TaskReturnScale(nn.Module):
    """``normalization.ReturnScale`` of each task: ``forward`` gives divisors ``[K]``.

    Args:
        index: int64 ``[N]``, the task of each env.
        tasks: K.
        gamma: discount per step.
        limit: what no return is to exceed after division.
    """

    running: Tensor  # [N]
    largest: Tensor  # [K]
    own: Tensor  # bool [N, K]
    index: Tensor  # [N]

    def __init__(self, index: Tensor, tasks: int, gamma: float, limit: float) -> None:
        super().__init__()
        self.gamma, self.limit = gamma, limit
        self.statistics = RunningNormalizer(tasks)
        self.register_buffer("running", torch.zeros(len(index)))
        self.register_buffer("largest", torch.zeros(tasks))
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("own", nn.functional.one_hot(index, tasks) > 0, persistent=False)

    @torch.no_grad()
    def update(self, reward: Tensor, done: Tensor) -> None:
        """Take in a vector step: rewards ``[N]``, and where an episode ended with them ``[N]``."""
        self.running.mul_(self.gamma).add_(reward.nan_to_num(0.0, 0.0, 0.0))
        statistics = self.statistics
        statistics.update(torch.where(self.own, self.running.unsqueeze(1), torch.nan))
        most = statistics.mean.abs() + WIDE * (statistics.var.sqrt() + statistics.epsilon)  # [K]
        most = torch.where(statistics.count > statistics.warmup * self.own.sum(0), most, torch.inf)[self.index]  # [N]
        self.running.copy_(self.running.clamp(-most, most))
        found = torch.where(self.own, self.running.abs().unsqueeze(1), 0.0).amax(0)
        self.largest.copy_(torch.maximum(self.largest * DECAY, found))
        self.running.masked_fill_(done, 0.0)

    def forward(self) -> Tensor:
        """Return the divisors, ``[K]``."""
        return torch.maximum(self.statistics.var.sqrt(), self.largest / self.limit).clamp(min=1e-8)

    def divided(self, reward: Tensor, obs: Obs) -> Tensor:
        """Divide rewards ``[B]``, each by the divisor of the task that its observation tells."""
        return reward / self.forward()[obs[TASK_GROUP].argmax(-1)]


def return_scale_for(env: VecEnv, config: Any) -> ReturnScale | TaskReturnScale:
    """``ReturnScale`` as the settings of an algorithm say, by task where the env is of several."""
    tasks, limit = getattr(env, "tasks", None), config.value_range[1]
    if not tasks:
        return ReturnScale(env.num_envs, config.gamma, limit)
    return TaskReturnScale(env.task_index, len(tasks), config.gamma, limit)  # type: ignore[attr-defined]
