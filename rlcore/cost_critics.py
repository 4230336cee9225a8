"""Costs with limits, as SAC and DDPG hold them: critics of what actions cost, and multipliers by what was measured."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rlcore.config import check
from rlcore.critics import frozen, set_precision
from rlcore.distributed import average, total, world
from rlcore.env import VecEnv
from rlcore.losses import cost_loss, cost_target, limited_loss
from rlcore.networks import Network, NetworkConfig, network_outputs, unit_weights
from rlcore.off_policy_config import OffPolicyConfig
from rlcore.optimizer import FlatAdam, descend, flat, learned
from rlcore.replay import Batch, Transitions
from rlcore.safety import Safety
from rlcore.types import Metrics, Step


class CostCritics(nn.Module):
    """Two critics with a column for each of K costs, their targets, and the multipliers.

    Multipliers follow what episodes, or steps, of the exploring policy cost, and never what critics say, whose errors
    would be theirs. They move once in ``safety.interval`` gradient steps, where an episode has ended since they last
    did, by the mean of all that ended since: an actor needs time to follow, and a single episode tells little. So the
    smoothing and the delay of the PID controller span as many gradient steps whatever the number of envs.

    Costs are learned in multiples of their size, and the reward's size is what a multiplier of 1 weighs them by. So one
    setting of the controller suits costs and rewards of any scale, as with PPO, whose advantages are standardized.

    Args:
        config: settings, with limits on costs.
        inputs: numbers that a critic reads, those of the action included.
        env: what is learned on.
        device: where it lives.
        adam: makes an optimizer of parameters, and of those whose rows are to stay at unit length.
    """

    sums: Tensor  # [K, N], discounted sums of the costs of episodes in flight
    square: Tensor  # [K], mean square of such sums over all steps
    steps: Tensor  # [], vector steps that it is from
    least: Tensor  # [K], such a sum where a cost is just at its limit
    price: Tensor  # [], size of the reward's discounted sums, as they are learned
    measured: Tensor  # [2, K], what episodes cost in all since the last move, and their number; or steps
    since: Tensor  # [K], gradient steps since the last move
    latest: Tensor  # [K], mean cost at the last move, NaN before

    def __init__(
        self, config: OffPolicyConfig, inputs: int, env: VecEnv, device: torch.device,
        adam: Callable[[list[nn.Parameter], list[Tensor]], FlatAdam],
    ) -> None:  # fmt: skip
        super().__init__()
        self.config, num_envs, length = config, env.num_envs, env.max_episode_length
        self.safety = Safety(config.safety, num_envs, False)
        costs = config.safety.costs.values()
        # A row of unit length in the last layer would limit values to the root of the width.
        unit = "hidden" if config.critic.unit_norm == "all" else config.critic.unit_norm
        network = replace(config.critic, unit_norm=unit)
        self.critics = _Pair(inputs, network, len(costs)).to(device)
        set_precision(config, self.critics)
        self.optimizer = adam(learned(self.critics), unit_weights(self.critics.trunks, network))
        self.targets = copy.deepcopy(self.critics)
        self.target_buffer = flat(learned(self.targets))
        self.targets.requires_grad_(False)
        horizon = length if config.gamma == 1 else min(length, 1 / (1 - config.gamma))  # steps that count
        least = [cost.unit * horizon / (1 if cost.kind == "per_step" else length) for cost in costs]
        self.register_buffer("least", torch.tensor(least), persistent=False)
        for name, shape in (("sums", (len(costs), num_envs)), ("square", len(costs)), ("steps", ())):
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("price", torch.ones(()))
        self.register_buffer("measured", torch.zeros(2, len(costs)))
        self.register_buffer("since", torch.zeros(len(costs)))
        self.register_buffer("latest", torch.full((len(costs),), torch.nan))
        self.to(device)

    @property
    def multiplier(self) -> Tensor:
        """What each cost's size counts against that of the reward, ``[K]``."""
        return self.safety.multiplier

    def begin(self) -> None:
        """All episodes begin anew."""
        self.safety.begin()
        self.sums.zero_()

    @torch.no_grad()
    def record(self, step: Step, done: Tensor, reward_size: Tensor) -> None:
        """Take in a vector step.

        Args:
            step: with its signals.
            done: bool ``[N]``, after which steps another episode begins.
            reward_size: deviation of the reward's discounted sums, a scalar.
        """
        signals = step.signals or {}
        data = {f"signal_{name}": signals[name] for name in self.safety.names}
        data |= {"terminated": step.terminated, "truncated": step.truncated}
        data |= {} if step.valid is None else {"valid": step.valid}
        self.measured.add_(torch.stack(self.safety.spent({name: x.unsqueeze(0) for name, x in data.items()})))
        costs = torch.stack([signals[name] for name in self.safety.names]).nan_to_num(0.0, 0.0, 0.0)  # [K, N]
        self.steps.add_(1)
        self.sums.mul_(self.config.gamma).add_(costs)
        self.square.lerp_(self.sums.square().mean(1), 1 / self.steps)
        self.sums.masked_fill_(done, 0.0)
        if not self.config.normalize_reward:
            self.price.copy_(reward_size)

    @torch.no_grad()
    def share(self, reward_size: Tensor) -> None:
        """Let sizes be those of what all ranks have seen; see ``rlcore.ranks``.

        Args:
            reward_size: as for ``record``, of all ranks.
        """
        average(self.square)  # of as many steps on each
        if not self.config.normalize_reward:
            self.price.copy_(reward_size)

    def forget(self) -> None:
        """Leave out of the next move what was measured so far, as while actions are drawn at random."""
        self.measured.zero_()

    def scaled(self, transitions: Transitions) -> Tensor:
        """The costs, which come first among signals, in multiples of their size, ``[B, K]``.

        That is the root mean square of discounted sums, by the statistics at the time of sampling, but no less than it
        is at the limit: a cost that has hardly occurred yet would count for more than all else.
        """
        assert transitions.signals is not None, "a memory without costs"
        size = torch.maximum(self.square.sqrt(), self.least).clamp(min=1e-8)
        return transitions.signals[:, : len(self.safety)] / size

    def improve(self, batch: Batch, next_action: Tensor) -> Metrics:
        """Take the critics' step towards ``cost_target``, where actions ``[B, A]`` are what would be done next."""
        assert batch.costs is not None, "a batch without costs"
        with torch.no_grad():
            following = self.targets(batch.next_critic_obs, next_action)
            target = cost_target(following, batch.costs, batch.discount)
        spent = self.critics(batch.critic_obs.detach(), batch.action)
        return self.learn(cost_loss(spent, target, batch.weight))

    def limited(self, loss: Tensor, batch: Batch, action: Tensor, weight: Tensor) -> Tensor:
        """An actor's loss under the limits, see ``limited_loss``; ``action`` ``[B, A]`` is differentiable by it."""
        with frozen(self.optimizer.parameters):
            spent = self.critics(batch.critic_obs.detach(), action)
        return limited_loss(loss, spent, weight, self.multiplier, self.price)

    def learn(self, loss: Tensor) -> Metrics:
        """Take the critics' step down their loss."""
        return {"loss/cost": loss.detach(), "policy/cost_gradient_norm": descend(self.optimizer, loss)}

    @torch.no_grad()
    def move(self, gradient_steps: int) -> Metrics:
        """Move the multipliers where it is time, after so many more gradient steps; what to log."""
        self.since.add_(gradient_steps)
        # What a rank has measured stays its own until it counts, once.
        costs, number = total(self.measured.clone()) if world().several else self.measured
        cost = costs / number  # [K], NaN where nothing was measured
        due = (self.since >= self.config.safety.interval) & cost.isfinite()
        self.safety.move(cost, due)
        self.latest.copy_(torch.where(due, cost, self.latest))
        self.measured.masked_fill_(due, 0.0)
        self.since.masked_fill_(due, 0.0)
        limit = self.safety.limit
        return self.safety.named(multiplier=self.multiplier.clone(), cost=self.latest.clone(), limit=limit)

    def saved(self) -> dict[str, Any]:
        """Everything that learning depends on between two iterations."""
        state = {"tensors": self.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {"names": list(self.safety.names), **state}


def restore(costs: CostCritics | None, state: dict[str, Any] | None) -> None:
    """Restore what ``CostCritics.saved`` gave, or None where no cost had a limit.

    Raises:
        ConfigError: other costs have limits now.
    """
    names = [] if costs is None else list(costs.safety.names)
    saved = [] if state is None else state["names"]
    remedy = f"the run was saved with limits on {' and '.join(saved) or 'nothing'}; set as many, or begin anew"
    check(names == saved, "safety.costs", names, remedy)
    if costs is not None and state is not None:
        costs.load_state_dict(state["tensors"])
        costs.optimizer.load_state_dict(state["optimizer"])


class _Pair(nn.Module):
    """Two networks with a column a cost."""

    def __init__(self, inputs: int, config: NetworkConfig, columns: int) -> None:
        super().__init__()
        self.trunks = nn.ModuleList(Network(inputs, config) for _ in range(2))
        self.heads = nn.ModuleList(nn.Linear(trunk.size, columns) for trunk in self.trunks)  # type: ignore[arg-type]

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        """Say what actions ``[B, A]`` cost, by features of images and normalized vectors ``[B, O]``, ``[2, B, K]``."""
        return network_outputs(list(self.trunks), list(self.heads), features, action)  # type: ignore[arg-type]
