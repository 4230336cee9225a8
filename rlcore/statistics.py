"""What came of the episodes that ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from rlcore.arrays import arrays
from rlcore.capture import Captured
from rlcore.distributed import total, union
from rlcore.types import Metrics, Mode, Step

_OF_EPISODES = ("rollout/episode_", "rollout/success", "env/", "curriculum/success", "randomize/success")


def of_episodes(metric: str) -> bool:
    """Whether a metric is a mean over the episodes that ended, and has no value where none did."""
    return metric.startswith(_OF_EPISODES) or (metric.startswith("signal/") and metric.endswith("_episode"))


class EpisodeStatistics:
    """Returns and lengths of the episodes that ended since the last read, summed on the device.

    All episodes that end count once, so the mean favors short ones less than a window of the latest would; an
    unbiased estimate is the business of an evaluation. Rewards that are not finite are left out, and with them the
    returns of their episodes. In what a step's log has ``[N]``, NaN is nothing, and does not count.

    Args:
        num_envs: N.
        device: where rewards arrive.
        mode: how the counting runs on CUDA.
        tasks: where there are several, int64 ``[N]``, that of each env, and their names: of each task return, length
            and success are told by themselves, as ``rollout/episode_return_NAME``.
    """

    def __init__(
        self,
        num_envs: int,
        device: torch.device,
        mode: Mode = "eager",
        tasks: tuple[Tensor, Sequence[str]] | None = None,
    ) -> None:
        self.returns = torch.zeros(num_envs, device=device)  # [N], of the episode in flight
        self.lengths = torch.zeros(num_envs, device=device)  # [N]
        self.totals = torch.zeros(8, device=device)  # reward, return, length, ended episodes; how many were finite
        self._arrays = arrays(self.returns, self.lengths, self.totals)
        self.logs: dict[tuple[str, ...], Tensor] = {}
        """By the names that a step's log had: weighted sums and weights, [2, names]."""
        self.signals: dict[str, Tensor] = {}
        """Sum of each signal over the episode in flight, [N] each, views of one tensor."""
        self._signals = self._signal_totals = self.totals
        self._count = Captured(self._count_step, mode, device)
        self.tasks = () if tasks is None else tuple(tasks[1])
        if tasks is not None:
            self._own = (tasks[0] == torch.arange(len(self.tasks), device=device).unsqueeze(1)).float()  # [K, N]
            self._task_totals = torch.zeros(len(self.tasks), 5, device=device)  # return, length, number; success, goals

    @torch.no_grad()
    def record(self, step: Step) -> None:
        """Take in one vector step; what a differentiable env's rewards were computed from is not held on to."""
        if self.tasks:
            self._count_tasks(step)
        self._count(step.reward, step.terminated, step.truncated, step.valid)
        if step.log:
            self._record_log(step)
        if step.signals:
            self._record_signals(step, step.signals)

    def expect(self, names: Sequence[str]) -> None:
        """Make room for the signals of these names, unless they are known."""
        if tuple(names) != tuple(self.signals):
            self._signals = self.returns.new_zeros(len(names), len(self.returns))  # [S, N]
            self._signal_totals = self.returns.new_zeros(4, len(names))  # of steps, how many; of episodes, how many
            self.signals = dict(zip(names, self._signals.unbind(), strict=True))

    def _record_signals(self, step: Step, signals: Mapping[str, Tensor]) -> None:
        """Add a step's signals. One that is not finite is left out, and with it the sum of its episode."""
        self.expect(tuple(signals))
        values = torch.stack(list(signals.values()))  # [S, N]
        done = step.terminated | step.truncated  # [N]
        finite = values.abs() < torch.inf  # false for NaN, too
        if step.valid is not None:
            finite = finite & step.valid
            values = values.where(step.valid, 0.0)
        sums = self._signals.add_(values)
        ended = done & (sums.abs() < torch.inf)
        parts = (values.where(finite, 0.0), finite, sums.where(ended, 0.0), ended)
        self._signal_totals += torch.stack([part.sum(1, dtype=values.dtype) for part in parts])
        sums.masked_fill_(done, 0.0)

    def _count_tasks(self, step: Step) -> None:
        """Add the episodes that end now by task, before they are forgotten."""
        nothing, one = torch.zeros_like(self.returns), torch.ones_like(self.returns)
        returns, lengths = self.returns + step.reward, self.lengths + (one if step.valid is None else step.valid)  # [N]
        ended = (step.terminated | step.truncated) & (returns.abs() < torch.inf)  # [N]
        success = torch.as_tensor(step.log.get("success", nothing))
        goals = torch.as_tensor(step.log.get("num_goals", one if "success" in step.log else nothing))
        goals = torch.where(success.isnan(), 0.0, goals)  # NaN is nothing, and would spoil the sums of all tasks
        columns = torch.stack([returns, lengths, one, success.nan_to_num(0.0) * goals, goals])  # [5, N]
        columns = torch.where(ended, columns, 0.0)
        self._task_totals += (self._own.unsqueeze(1) * columns).sum(2)  # not by a product, which CUDA may round

    def _read_tasks(self) -> Metrics:
        """Return means by task, NaN where nothing ended, and start anew."""
        returns, lengths, number, success, goals = self._task_totals.unbind(1)  # [K] each
        found = {"episode_return": returns / number, "episode_length": lengths / number, "success": success / goals}
        self._task_totals.zero_()
        return {
            f"rollout/{key}_{name}": value
            for key, values in found.items()
            for name, value in zip(self.tasks, values.unbind(), strict=True)
        }

    @np.errstate(all="ignore")
    def _count_step(self, reward: Tensor, terminated: Tensor, truncated: Tensor, valid: Tensor | None) -> None:
        xp, reward, terminated, truncated, valid = arrays(reward, terminated, truncated, valid)
        _, returns, lengths, totals = self._arrays
        done = terminated | truncated  # [N]
        quiet = xp is not torch and not done.any()  # nothing ended, as far as the host may look
        returns += reward
        lengths += 1 if valid is None else valid
        if quiet and valid is None and abs(total := reward.sum()) < np.inf:  # the same in few operators, as is usual
            totals[0] += total
            totals[4] += len(reward)
            return
        if valid is not None:
            reward = xp.where(valid, reward, torch.nan)  # no step, so no part of the mean
        ends = [] if quiet else [xp.where(done, returns, 0.0), lengths * done, done * 1.0]
        rows = xp.stack([reward, *ends])  # [4, N]
        finite = abs(rows) < torch.inf  # false for NaN, too
        # What is not finite concerns its own episode alone.
        sums = totals[::4] if quiet else totals
        sums += xp.concatenate([xp.where(finite, rows, 0.0), finite]).sum(1)
        if not quiet:
            done = torch.as_tensor(done)
            self.returns.masked_fill_(done, 0.0)
            self.lengths.masked_fill_(done, 0.0)

    def _record_log(self, step: Step) -> None:
        """Add a step's log in a number of kernels that does not grow with the number of names."""
        ended = (step.terminated | step.truncated).float()  # [N]
        goals = step.log.get("num_goals")
        # A scalar stands for all episodes that ended in this step.
        scalars = {k: v for k, v in step.log.items() if not isinstance(v, Tensor) or v.dim() == 0}
        per_env = {k: v for k, v in step.log.items() if isinstance(v, Tensor) and v.dim() > 0}
        parts: list[Tensor] = []  # [2, names]: weighted sums, weights
        # where: outside an episode's end a value may be anything, NaN included.
        if scalars:
            weight = ended.sum()
            values = torch.stack(
                [v.to(weight) if isinstance(v, Tensor) else torch.full_like(weight, v) for v in scalars.values()]
            )
            parts.append(torch.stack([torch.where(weight > 0, weight * values, 0.0), weight.expand_as(values)]))
        if per_env:
            by_goals = goals.where(ended > 0, 0.0) if isinstance(goals, Tensor) else ended
            weights = torch.stack([by_goals.to(ended) if k == "success" else ended for k in per_env])  # [names, N]
            products = weights * torch.stack([value.to(ended) for value in per_env.values()])
            told = products == products  # NaN is nothing, and what did not end has no weight
            parts.append(torch.stack([products, weights]).where(told, 0.0).sum(2))
        names = (*scalars, *per_env)
        if names not in self.logs:
            self.logs[names] = self.totals.new_zeros(2, len(names))
        self.logs[names] += torch.cat(parts, 1)

    def share(self) -> None:
        """Let the sums since the last read be those of all ranks, where there are several; see ``rlcore.distributed``.

        Ranks differ in what their steps' logs have: what is the mean over episodes may have had none yet.
        """
        names = union(list(self.logs))
        tables = [self.logs.setdefault(own, self.totals.new_zeros(2, len(own))) for own in names]
        parts = [self.totals, *tables]
        parts += [self._signal_totals] if self.signals else []
        parts += [self._task_totals] if self.tasks else []
        sums = total(torch.cat([part.flatten() for part in parts]))
        for part, own in zip(parts, torch.split(sums, [part.numel() for part in parts]), strict=True):
            part.copy_(own.view_as(part))

    def read(self) -> Metrics:
        """Return means as device scalars, NaN where nothing ended, and start anew.

        Of a signal ``signal/NAME`` is the mean over steps and ``signal/NAME_episode`` that of sums over episodes.
        """
        xp, sums = arrays(self.totals)
        episodes, rewards, sound, steps = (sums[i : i + 1] for i in range(3, 7))
        with np.errstate(all="ignore"):
            found = sums[:3] / xp.concatenate([rewards, episodes - (steps - sound), episodes])
        values = torch.as_tensor(xp.concatenate([found, episodes])).unbind()
        keys = ["rollout/reward", "rollout/episode_return", "rollout/episode_length", "rollout/episodes"]
        means = dict(zip(keys, values, strict=True))
        self.totals.zero_()
        if self.tasks:
            means |= self._read_tasks()
        if self.logs:
            totals: dict[str, Tensor] = {}  # [2] each
            for names, table in self.logs.items():
                for name, column in zip(names, table.unbind(1), strict=True):
                    totals[name] = totals[name] + column if name in totals else column
            sums, weights = torch.stack(list(totals.values()), 1)
            keys = ["rollout/success" if name == "success" else f"env/{name}" for name in totals]
            means |= zip(keys, (sums / weights).unbind(), strict=True)
            torch._foreach_zero_(list(self.logs.values()))
        if self.signals:
            steps_sum, number, episodes_sum, ended = self._signal_totals
            means |= {f"signal/{name}": x for name, x in zip(self.signals, (steps_sum / number).unbind(), strict=True)}
            sums = (episodes_sum / ended).unbind()
            means |= {f"signal/{name}_episode": x for name, x in zip(self.signals, sums, strict=True)}
            self._signal_totals.zero_()
        return means


def means_of_applied(logs: list[Metrics]) -> Metrics:
    """Mean of each metric over the minibatches whose step was taken, ``applied`` 1 and last, and how many were not."""
    table = torch.stack([torch.stack(list(log.values())) for log in logs])  # [minibatches, metrics]
    applied = table[:, -1:]
    means = torch.where(applied > 0, table, 0.0).sum(0) / applied.sum()  # NaN, so not reported, if none was
    metrics: Metrics = dict(zip(logs[0], means[:-1].unbind(), strict=False))
    return metrics | {"policy/skipped_minibatches": len(logs) - applied.sum()}


def means_of(logs: list[Metrics]) -> Metrics:
    """Mean of each metric over the gradient steps that have it; those of the same steps at once."""
    if len(logs) == 1:
        return logs[0]
    together: dict[tuple[bool, ...], list[str]] = {}
    for name in dict.fromkeys(name for log in logs for name in log):
        together.setdefault(tuple(name in log for log in logs), []).append(name)
    means: Metrics = {}
    for has, names in together.items():
        values = torch.stack([log[name] for log, there in zip(logs, has, strict=True) if there for name in names])
        means |= zip(names, values.view(-1, len(names)).mean(0).unbind(), strict=True)
    return means
