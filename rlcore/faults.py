"""Which env gave numbers that cannot be learned from: found on the device, put into words on the host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlcore.arrays import none_set
from rlcore.env import is_image
from rlcore.types import Metrics

PREFIX = "fault/"
"""What begins the names of metrics that are not reported as such, but in words, as ``Report.culprits``."""

_KEYS = ("number", "envs", "env", "column")  # 0 envs: their number is not known, and the env is the latest
_TEXTS = {
    "step": "observation, action or reward is not finite, or too large to be used",
    "actor": "observation {name} is not finite, or too large to be used",
    "critic": "observation {name} is not finite, or too large to be used",
    "final": "last observation {name} is not finite, or too large to be used",
    "reward": "the reward is not finite, or beyond 10,000 times the usual one (if that is meant, lower "
    "agent.reward_scale)",
    "actor_far": "observation {name} is over 1,000 standard deviations off its mean, and limited in its normalizer",
    "critic_far": "observation {name} is over 1,000 standard deviations off its mean, and limited in its normalizer",
    "return_far": "the return is over 1,000 standard deviations off its mean, and limited in its normalizer",
}


def broken_observations(data: Mapping[str, Tensor]) -> Tensor:
    """Where what actor or critic read cannot be used, bool ``[..., N]``.

    Args:
        data: of a rollout, or of one step: ``actor_broken``, and ``critic_broken`` where that reads other groups, the
            first column that is broken; -1 where none is.
    """
    broken = data["actor_broken"] >= 0
    return broken if "critic_broken" not in data else broken | (data["critic_broken"] >= 0)


def lost_steps(
    broken_obs: Tensor,
    broken_reward: Tensor,
    next_broken: Tensor,
    final_broken: Tensor | None,
    done: Tensor,
    valid: Tensor | None,
) -> Tensor:
    """Steps of a rollout whose one-step error needs a number that cannot be used, bool ``[T, N]``.

    Args:
        broken_obs: bool ``[T, N]``.
        broken_reward: bool ``[T, N]``.
        next_broken: bool ``[N]``, of the observation after the rollout.
        final_broken: broken column of the last observation before a time-out, ``[T, N]``, or -1; None: it is not read.
        done: bool ``[T, N]``, where an episode ends, and the next observation is not of it.
        valid: bool ``[T, N]``, false for what is no step; none: all are.
    """
    lost = broken_obs | broken_reward | (torch.cat([broken_obs[1:], next_broken.unsqueeze(0)]) & ~done)
    if final_broken is not None:
        lost = lost | (final_broken >= 0)
    return lost if valid is None else lost | ~valid


@torch.no_grad()
def broken_steps(sources: Mapping[str, Tensor | None]) -> Metrics:
    """Count broken steps, and find the env that has most of them.

    Args:
        sources: by name, which column of each step's numbers is broken, int32 ``[T, N]``; -1 where none is. None: there
            is no such source.

    Returns:
        Of each source: in how many steps, in how many envs, in which of these most often, and a column there.
    """
    columns = {name: column for name, column in sources.items() if column is not None}
    table = torch.stack(list(columns.values()))  # [S, T, N]
    if none_set(table >= 0):
        return {}
    counts = (table >= 0).sum(1)  # [S, N]
    env = counts.argmax(1)  # [S]
    column = table.gather(2, env.view(-1, 1, 1).expand(-1, table.shape[1], 1)).amax((1, 2))
    return _named(columns, torch.stack([counts.sum(1), (counts > 0).sum(1), env, column], 1).float())


def rollout_faults(data: Mapping[str, Tensor], broken_reward: Tensor, final_broken: Tensor | None) -> Metrics:
    """Count broken steps of a rollout by what is broken; see ``broken_steps``.

    Args:
        data: columns of the rollout, ``actor_broken`` and, where the critic reads other groups, ``critic_broken``.
        broken_reward: bool ``[T, N]``.
        final_broken: of last observations, int32 ``[T, N]``; None where they are not read.
    """
    observed = {"actor": data["actor_broken"], "critic": data.get("critic_broken")}
    return broken_steps({**observed, "reward": broken_reward.int() - 1, "final": final_broken})


@torch.no_grad()
def far_numbers(normalizers: Mapping[str, Any], num_envs: int) -> Metrics:
    """Find the column that has most ``outliers`` ``[2, O]`` of normalizers by source, which begin anew.

    One that stands for two sources counts for the first, and what has no outliers for none.

    Returns:
        Of each source: that column, its number of outliers, and the env of the latest; see ``broken_steps``.
    """
    outliers: dict[str, Tensor] = {}
    for source, part in normalizers.items():
        if hasattr(part, "outliers") and not any(part.outliers is known for known in outliers.values()):
            outliers[source] = part.outliers
    rows = []
    if all(none_set(table[0]) for table in outliers.values()):
        return {}
    for table in outliers.values():
        column = table[0].argmax(0, keepdim=True)
        env = table[1].gather(0, column) % num_envs
        number = table[0].gather(0, column)
        rows.append(torch.cat([number, torch.zeros_like(number), env, column.to(env)]))
        table[0].zero_()
    return _named(outliers, torch.stack(rows))


class Latest:
    """Remembers the latest broken row of a vector step, for an algorithm that keeps no rollout.

    Args:
        device: of the rows.
    """

    def __init__(self, device: torch.device) -> None:
        self.found = torch.zeros(len(_KEYS), device=device)

    def note(self, columns: Tensor) -> None:
        """Take in a step: which column of each env's numbers is broken, int32 ``[N]``; -1 where none is."""
        if not columns.is_cpu or columns.numpy().max() >= 0:  # on a CPU the host may look
            column, env = columns.max(0)
            new = torch.stack([self.found[0] + 1, torch.zeros_like(self.found[0]), env, column])
            self.found.copy_(torch.where(column >= 0, new, self.found))

    def read(self, source: str) -> Metrics:
        """Return in how many steps something was found since the last read, and the latest; see ``broken_steps``."""
        if none_set(self.found):
            return {}
        found = self.found.clone()
        self.found.zero_()
        return _named((source,), found)


def _named(sources: Iterable[str], table: Tensor) -> Metrics:
    names = [f"{PREFIX}{source}/{key}" for source in sources for key in _KEYS]
    return dict(zip(names, table.flatten().unbind(), strict=True))


def fault_groups(actor: Sequence[str], critic: Sequence[str]) -> dict[str, Sequence[str]]:
    """In which observation groups the columns of each source are counted."""
    return {"actor": actor, "critic": critic, "final": critic, "actor_far": actor, "critic_far": critic}


def culprits(values: Mapping[str, float], groups: Mapping[str, Sequence[str]], env: Any) -> tuple[str, ...]:
    """Put what ``broken_steps`` and ``far_numbers`` found into words.

    Args:
        values: metrics, on the host.
        groups: by source, the observation groups in which columns are counted; none where there is but one number.
        env: whose groups and terms are named.
    """
    told = []
    for source, text in _TEXTS.items():
        found = [values.get(f"{PREFIX}{source}/{key}", 0.0) for key in _KEYS]
        number, envs, index, column = (int(value) for value in found)
        if number:
            name = column_name(groups[source], column, env) if source in groups else ""
            times = "once" if number == 1 else f"{number:,} times"
            if envs > 1:
                where = f"{times} in {envs} envs, most often env {index}"
            elif envs == 1 or number == 1:
                where = f"env {index}, {times}"
            else:
                where = f"{times}, last env {index}"
            told.append(f"{text.format(name=name)}: {where}")
    return tuple(dict.fromkeys(told))  # actor and critic may read the same group


def column_name(groups: Sequence[str], column: int, env: Any) -> str:
    """Name a column of joined observation groups, such as ``'policy'[7] (base_ang_vel[1])``."""
    for group in groups:
        if is_image(env.observation_spaces[group]):
            continue  # no columns of it are counted
        size = int(env.observation_spaces[group].shape[0])
        if column >= size:
            column -= size
            continue
        start, text = 0, f"'{group}'[{column}]"
        for term in getattr(env, "deployment", {}).get("observation_terms", {}).get(group, []):
            if start <= column < start + term["size"]:
                text += f" ({term['name']}[{column - start}])"
            start += term["size"]
        return text
    return f"number {column}"
