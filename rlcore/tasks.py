"""Several tasks, one policy: what is of one task in tensors that are padded to the largest.

An observation group ``task`` ``[N, K]`` is 1 for the task that a row is of and 0 for the others. Networks read it as
the last K numbers of their input; by it they take the row's own head, statistics, bounds and deviation. All of that is
done for all rows at once, without a loop over tasks and without asking a device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlcore.action_scale import action_scaling
from rlcore.config import check
from rlcore.distributions import LOG_2PI, CategoricalHead, Distribution, Gaussian, GaussianHead
from rlcore.env import EnvSpec
from rlcore.normalization import NoNormalizer, RunningNormalizer, make_normalizer, usable

TASK_GROUP = "task"
"""Observation group that says which task a row is of, ``[N, K]``; it is not normalized."""

IDLE = math.exp(-0.5 * (1 + LOG_2PI))
"""Deviation and value, about a mean of 0, of the dimensions of an action that its task does not have.

The entropy of a normal distribution with this deviation, ``log std + (1 + log 2 pi) / 2``, is 0, and so is the log
density one deviation off its mean. Old and new policy agree there, so that their KL divergence is 0 and the ratio of
their densities 1; and since all of it is constant, it has no gradient. A loss that knows nothing of tasks, as that of
the kernels, then gives each row what a policy of the task's own size has.
"""


def numbers_of(spec: EnvSpec) -> int:
    """Numbers of a joint action that a task reads: its own, or those that its choices are cut from."""
    return sum(map(_width, choice_sizes(spec))) if spec.discrete else spec.action_size


def choice_sizes(spec: EnvSpec) -> list[int]:
    """Number of choices of each part of a discrete action."""
    return spec.action_parts or [spec.action_size]


def _width(choices: int) -> int:
    return 1 if choices == 2 else choices


def chosen(action: Tensor, spec: EnvSpec) -> Tensor:
    """Cut the choices of a discrete task from numbers, ``[N, numbers]``.

    Of two choices a single number tells by its sign, the second where it is above 0. Of more there is a number for
    each, and the largest is chosen. A normal distribution of the numbers thus is a probit model of the choices.

    Returns:
        int64 ``[N]``, or ``[N, parts]`` where the task makes several choices at once.
    """
    sizes = choice_sizes(spec)
    parts = torch.split(action, [_width(size) for size in sizes], -1)
    made = [
        (part[..., 0] > 0).long() if _width(size) == 1 else part.argmax(-1)
        for part, size in zip(parts, sizes, strict=True)
    ]
    return torch.stack(made, -1) if spec.action_parts else made[0]


def own_part(wide: Tensor, task: Tensor) -> Tensor:
    """What is of a row's own task, of ``[..., K * A]`` or, the same for all rows, ``[K * A]``.

    Args:
        wide: A numbers of each task, one task after the other.
        task: ``[..., K]``, 1 for the row's task and 0 for the others.

    Returns:
        ``[..., A]``. Numbers of other tasks are multiplied by 0, so that they get no gradient.
    """
    table = wide.reshape(*wide.shape[:-1], task.shape[-1], -1)  # by reshape: opset 11 of ONNX has no unflatten
    return (task.unsqueeze(-1) * table).sum(-2)


class TaskActions(nn.Module):
    """Heads, masks and units of the actions of K tasks.

    Args:
        spec: of an env of several tasks.
        action_scale: see ``ActorCriticConfig``; each task has its own bounds.
        clip_actions: see there.
        heads: whether each task has a head of its own, and not all one that tells them apart by its input.
    """

    active: Tensor  # bool [K, A]
    scale: Tensor  # [K, A]
    bias: Tensor  # [K, A]
    low: Tensor  # [K, A], in the units of the env; 0 where there is no action
    high: Tensor  # [K, A]

    def __init__(self, spec: EnvSpec, action_scale: str, clip_actions: float | None, heads: bool) -> None:
        super().__init__()
        self.count, self.size, self.heads, self.discrete = len(spec.tasks), spec.action_size, heads, spec.discrete
        active, scale, bias, low, high = (
            torch.zeros(self.count, self.size) + x for x in (0.0, 1.0, 0.0, -math.inf, math.inf)
        )
        for row, own in enumerate(spec.tasks.values()):
            size = own.action_size if spec.discrete else numbers_of(own)
            active[row, :size] = 1.0
            if own.discrete:
                continue
            if (scaling := action_scaling(own, action_scale)) is not None:
                scale[row, :size], bias[row, :size] = map(torch.tensor, scaling)
            low[row, :size], high[row, :size] = torch.tensor(own.action_low), torch.tensor(own.action_high)
            if clip_actions is not None:
                low[row] = low[row].maximum(bias[row] - scale[row] * clip_actions)
                high[row] = high[row].minimum(bias[row] + scale[row] * clip_actions)
        tables = (active, scale, bias, low, high)
        self.alike = all(bool((table == table[0]).all()) for table in tables)
        """Whether all tasks have the same actions, so that it makes no difference which one it is."""
        self.register_buffer("active", active > 0, persistent=False)
        self.register_buffer("low", low.where(active > 0, 0.0), persistent=False)
        self.register_buffer("high", high.where(active > 0, 0.0), persistent=False)
        # In the state: a policy keeps the units that it learned in.
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    @property
    def outputs(self) -> int:
        """Actions that a head is to have: of all tasks one after the other, or as many as the largest has."""
        return self.count * self.size if self.heads else self.size

    def of(self, normalized: Tensor) -> Tensor:
        """The group ``task`` ``[..., K]`` of what a network reads ``[..., O + K]``."""
        return normalized[..., -self.count :]

    def distribution(self, head: GaussianHead | CategoricalHead, output: Tensor, normalized: Tensor) -> Distribution:
        """The distribution of actions that a head's output ``[..., outputs]`` gives each row.

        Dimensions that its task does not have are as ``IDLE`` says, choices that it does not have impossible.
        """
        task = self.of(normalized).to(output.dtype)
        active = self._row(self.active, task)
        if isinstance(head, CategoricalHead):
            return head(own_part(output, task) if self.heads else output, active)  # type: ignore[no-any-return]
        mean, std = head(output)
        if self.heads:
            mean, std = own_part(mean, task), own_part(std, task)
        return Gaussian(mean.where(active, 0.0), std.where(active, IDLE))

    def sample(self, distribution: Distribution, normalized: Tensor) -> Tensor:
        """Draw actions ``[..., A]``; see ``IDLE`` for dimensions that a task does not have."""
        action = distribution.sample()
        return action if self.discrete else action.where(self._row(self.active, self.of(normalized)), IDLE)

    def limit(self, action: Tensor, normalized: Tensor) -> Tensor:
        """Bring actions ``[N, A]`` to the units and bounds of their tasks, 0 in dimensions that these do not have."""
        if self.discrete:
            return action
        task = self.of(normalized)
        action = self._row(self.bias, task) + action * self._row(self.scale, task)
        return torch.clamp(action, self._row(self.low, task), self._row(self.high, task))

    def _row(self, table: Tensor, task: Tensor) -> Tensor:
        """Row ``[..., A]`` of a table ``[K, A]`` for each row's task; not by a product, which CUDA may round."""
        if self.alike:
            return table[0].expand(*task.shape[:-1], -1)
        return table[task.argmax(-1)]


class TaskNormalizer(nn.Module):
    """Brings observations to zero mean and unit variance by the statistics of each row's own task.

    It stands where a ``RunningNormalizer`` stands, and reads ``[B, O + K]``, of which the last K numbers say the task
    and stay as they are. Each task has the statistics that it would have alone: what pads its observations is of no
    other, and 0 before and after.

    Args:
        size: O.
        tasks: K.
        normalized: bool ``[O]``, which features are normalized.
        clip: largest magnitude of a normalized number; None for no limit.
    """

    normalized: Tensor  # bool [O]

    def __init__(self, size: int, tasks: int, normalized: Tensor, clip: float | None, epsilon: float = 1e-2) -> None:
        super().__init__()
        self.size, self.tasks, self.clip = size, tasks, clip
        self.statistics = RunningNormalizer(tasks * size, epsilon, clip)
        self.all_normalized = bool(normalized.all())
        self.register_buffer("normalized", normalized, persistent=False)  # it follows from the configuration

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take a batch ``[B, O + K]`` into the statistics; in those of other tasks a row does not count."""
        values, task = x[:, : self.size], x[:, self.size :]
        wide = torch.where(task.unsqueeze(-1) > 0, values.unsqueeze(1), torch.nan)  # [B, K, O]
        self.statistics.update(wide.flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``[..., O + K]``."""
        y = self._scaled(x)
        y = y if self.clip is None else y.clamp(-self.clip, self.clip).where(self.normalized, y)
        return torch.cat([y, x[..., self.size :]], -1)

    def usable(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalize ``[B, O + K]`` for a network that must not see what is not finite; see ``normalization.usable``."""
        y = self._scaled(x)
        limited, first = usable(y, self.clip)
        if not self.all_normalized and self.clip is not None:  # the others have no limit
            other, second = usable(y.masked_fill(self.normalized, 0.0), None)
            limited = limited.where(self.normalized, other)
            first = torch.where(second >= 0, second, first)
        return torch.cat([limited, x[:, self.size :]], -1), first

    def _scaled(self, x: Tensor) -> Tensor:
        values, index = x[..., : self.size], x[..., self.size :].argmax(-1)
        mean = self.statistics.mean.view(self.tasks, self.size)[index]
        std = self.statistics.var.sqrt().view(self.tasks, self.size)[index]
        return torch.where(self.normalized, (values - mean) / (std + self.statistics.epsilon), values)

    def statistics_of(self, number: int) -> tuple[Tensor, Tensor]:
        """Mean and variance ``[O]`` of one of the tasks."""
        mean, var = (part.view(self.tasks, self.size)[number] for part in (self.statistics.mean, self.statistics.var))
        return mean, var


def normalizer_for(
    spec: EnvSpec,
    sizes: Mapping[str, int],
    wanted: bool | Sequence[str],
    clip: float | None,
    epsilon: float = 1e-2,
    by_task: bool = True,
) -> RunningNormalizer | NoNormalizer | TaskNormalizer:
    """``make_normalizer``, by task where there are several.

    Args:
        spec: of the env.
        sizes: of the groups that are joined, in their order; with several tasks ``task`` is the last.
        wanted: see ``make_normalizer``.
        clip: see there.
        epsilon: see there.
        by_task: whether the task is known; if not, statistics are of all tasks together.
    """
    if not spec.tasks or wanted is False:
        return make_normalizer(sizes, wanted, clip, epsilon)
    own = {name: size for name, size in sizes.items() if name != TASK_GROUP}
    if not by_task:
        return make_normalizer(sizes, tuple(own) if wanted is True else wanted, clip, epsilon)
    flags = [torch.full((size,), wanted is True or name in wanted) for name, size in own.items()]
    return TaskNormalizer(sum(own.values()), len(spec.tasks), torch.cat(flags), clip, epsilon)


def with_task(spec: EnvSpec, groups: tuple[str, ...]) -> tuple[str, ...]:
    """The groups that a network reads, and ``task`` after them where there are several tasks."""
    return (*(group for group in groups if group != TASK_GROUP), TASK_GROUP) if spec.tasks else groups


def check_tasks(spec: EnvSpec, config: Any) -> None:
    """Refuse settings that say something of several tasks where there is one, or do not go with several.

    Raises:
        ConfigError: names the setting.
    """
    balance = getattr(config, "balance", "none")
    check(bool(spec.tasks) or balance == "none", "balance", balance, f"{spec.task} is one task; set none")
    if not spec.tasks:
        return
    safety = getattr(config, "safety", None)
    if safety is not None:
        gate = safety.gate.threshold
        check(gate is None, "safety.gate.threshold", gate, "a gate judges one task; set none")
        fits = balance == "none" or not safety.costs
        check(fits, "balance", balance, "limits on costs have weights of their own; set none")
    mask = getattr(config, "action_mask", None)
    check(mask is None, "action_mask", mask, "several tasks have a mask already; set none")
    if balance != "none":
        kind = config.normalize_advantage
        check(kind == "batch", "normalize_advantage", kind, f"balance {balance} does it by task; set batch")


def several(spec: EnvSpec, config: Any) -> bool:
    """Whether there are several tasks for an algorithm with a replay memory.

    Raises:
        ConfigError: there are, and a setting does not go with them.
    """
    if spec.tasks:
        check_tasks(spec, config)
        check(not config.safety.costs, "safety.costs", list(config.safety.costs), "limits are for one task; set none")
        for key in ("action_low", "action_high"):
            value = getattr(config, key)
            check(value is None, key, value, "each task has bounds of its own; set none")
    return bool(spec.tasks)
