"""Values of every step beside the reward that are learned from: each a column of the critic, of GAE and of returns."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlcore.config import ConfigError, check, nearest
from rlcore.distributed import world
from rlcore.env import VecEnv, signal_names
from rlcore.normalization import RunningNormalizer
from rlcore.ranks import MergedNormalizer
from rlcore.returns import bootstrap_values, gae
from rlcore.safety import SafetyConfig
from rlcore.types import Timeout


@dataclass(frozen=True, kw_only=True)
class SignalConfig:
    """What is learned from a signal of the env, see ``Step.signals``."""

    weight: float = 0.0
    """Its weight beside the reward, which has 1. With 0 it is reported, and not learned from."""
    gamma: float | None = None
    """Its discount per step; none: that of the reward."""
    gae_lambda: float | None = None
    """Weight of longer estimates of its advantage; none: that of the reward."""
    episodic: bool = True
    """Whether its sum ends with the episode. If not it goes on into the next one, as for an intrinsic reward (Burda et
    al. 2018, arXiv:1810.12894, section 2.3)."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        check(math.isfinite(self.weight), "weight", self.weight, "set a number")
        for key in ("gamma", "gae_lambda"):
            value = getattr(self, key)
            check(value is None or 0 <= value <= 1, key, value, "set a number from 0 to 1, or none")


def chosen(
    names: Collection[str], signals: Mapping[str, Tensor] | None, setting: str = "agent.signals"
) -> dict[str, Tensor]:
    """The signals of a step that are learned from, ``[N]`` each.

    Raises:
        ConfigError: the env does not give one of them, which a setting asks for.
    """
    there = signals or {}
    _known(names, there, setting, "it gives none (Step.signals)")
    return {name: there[name] for name in names}


def check_signals(env: VecEnv, signals: Mapping[str, SignalConfig], safety: SafetyConfig) -> None:
    """Refuse names of signals that an env never gives, where it says which it may give (``signal_names``).

    Raises:
        ConfigError: settings ask for one.
    """
    names = signal_names(env)
    if names is None:
        return
    weighed = [name for name, signal in signals.items() if signal.weight != 0]
    none = "it gives none (signal_names); env.costs.NAME makes one of what it observes"
    _known(safety.costs, names, "agent.safety.costs", none)
    _known(weighed, names, "agent.signals", none)
    _known(safety.gate.costs or (), names, "agent.safety.gate.costs", none)


def _known(names: Collection[str], there: Collection[str], setting: str, none: str) -> None:
    for name in names:
        if name not in there:
            hint = nearest(name, there) if there else none
            raise ConfigError(f"{setting}: the env gives no signal '{name}'; {hint}")


class SignalColumns(nn.Module):
    """The signals that are learned from, S of them, in the order of the settings.

    Args:
        signals: settings by name.
        gamma: of the reward.
        gae_lambda: of the reward.
        normalize: learn values of unit scale, by running statistics of the returns.
        costs: names of those that are limited, see ``safety.Safety``: they come first, and have no weight of their own.
        watched: names of those that the rollout keeps besides, without a column.
        chances: costs of whose columns each is the chance that it will be above 0 in the episode, discounted.
    """

    def __init__(
        self,
        signals: Mapping[str, SignalConfig],
        gamma: float,
        gae_lambda: float,
        normalize: bool,
        costs: Sequence[str] = (),
        watched: Sequence[str] = (),
        chances: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.costs, self.watched, self.chances = tuple(costs), tuple(watched), tuple(chances)
        self.configs = {name: signals.get(name, SignalConfig()) for name in costs}
        self.configs |= {name: config for name, config in signals.items() if config.weight != 0}
        self.gamma, self.gae_lambda = gamma, gae_lambda
        size = len(self.configs)
        kind = MergedNormalizer if world().several else RunningNormalizer
        self.normalizer = kind(size, warmup=10 * world().size) if normalize and size else None

    def __len__(self) -> int:
        """S, 0 where nothing is learned from."""
        return len(self.configs)

    @property
    def cost_gammas(self) -> list[float]:
        """Discounts of the costs."""
        own = [self.configs[name].gamma for name in self.costs]
        return [self.gamma if gamma is None else gamma for gamma in own]

    def row(self, signals: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """The columns of a step for the rollout, ``[N]`` each.

        Raises:
            ConfigError: the env does not give one of them.
        """
        limits = chosen((*self.costs, *self.watched), signals, "agent.safety.costs")
        return {f"signal_{name}": column for name, column in (limits | chosen(self.configs, signals)).items()}

    def broken(self, data: Mapping[str, Tensor]) -> Tensor:
        """Where one of them is not a number, bool ``[T, N]``."""
        names = [*self.configs, *self.watched]
        return ~torch.stack([data[f"signal_{name}"].isfinite() for name in names]).all(0)

    def targets(
        self,
        advantages: Tensor,
        data: Mapping[str, Tensor],
        outputs: Tensor,
        timeout_outputs: Tensor,
        cut: Tensor,
        lost: Tensor,
        bootstrap: Timeout,
        survival: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Estimate advantages and returns, each column by itself; see ``returns.gae``.

        Args:
            advantages: of the reward, ``[T, N]``.
            data: the rollout's columns.
            outputs: of the critic, for its states and the one after it, ``[T + 1, N, S]``.
            timeout_outputs: where a time limit cut the episode, of the state that this hid, ``[T, N, S]``.
            cut: where a sum ends with an episode, or before a step that is not learned from, bool ``[T, N]``.
            lost: the steps that are not learned from, bool ``[T, N]``.
            bootstrap: what a time-out is worth; with ``none`` nothing.
            survival: see ``returns.gae``.

        Returns:
            Advantages with those of the signals, as their weights say ``[T, N]``; of the K costs, which are left out
            there, ``[K, T, N]`` or None without any; and what the critic is to learn ``[T, N, S]``.
        """
        if self.normalizer is not None:
            outputs, timeout_outputs = self.normalizer.inverse(outputs), self.normalizer.inverse(timeout_outputs)
        if bootstrap == "none":
            timeout_outputs = torch.zeros_like(timeout_outputs)
        terminated, truncated = data["terminated"], data["truncated"]
        before_lost = torch.cat([lost[1:], torch.zeros_like(lost[:1])])
        total, columns, of_costs = torch.zeros_like(data["reward"]), [], []
        for (name, config), value, timeout in zip(
            self.configs.items(), outputs.unbind(-1), timeout_outputs.unbind(-1), strict=True
        ):
            signal = data[f"signal_{name}"].nan_to_num(0.0, 0.0, 0.0)
            following = bootstrap_values(value, terminated, truncated, timeout) if config.episodic else value[1:]
            goes_on = survival if config.episodic else None
            if name in self.chances:  # the first step above 0 settles it
                signal = (signal > 0).float()
                goes_on = 1 - signal
            gamma = self.gamma if config.gamma is None else config.gamma
            decay = self.gae_lambda if config.gae_lambda is None else config.gae_lambda
            advantage, returns = gae(
                signal,
                value[:-1],
                following,
                cut if config.episodic else before_lost,
                gamma,
                decay,
                goes_on,
            )
            if name in self.costs:
                of_costs.append(advantage)
            else:
                total = total + config.weight * advantage
            columns.append(returns)
        table, priced = torch.stack(columns, -1), torch.stack(of_costs) if of_costs else None
        if self.normalizer is None:
            return advantages + total, priced, table
        known = table.masked_fill(lost.unsqueeze(-1), torch.nan)
        self.normalizer.update(known.flatten(0, 1))
        return advantages + total, priced, self.normalizer(table)
