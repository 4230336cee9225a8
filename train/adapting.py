"""A policy learned by MAML fitted to one task: rollouts and steps of policy gradient in turn."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlcore.adaptation import TaskNetwork
from rlcore.agent import Policy
from rlcore.config import ConfigError
from rlcore.env import VecEnv
from rlcore.envs import make_env
from rlcore.family import is_family
from rlcore.maml import MAML, MAMLConfig
from rlcore.policies import ActorPolicy
from rlcore.train.intervals import t_interval


@dataclasses.dataclass(frozen=True)
class Adapted:
    """What came of an adaptation."""

    returns: list[Tensor]
    """Of the episodes that were played before it and after each step, ``[N]`` each: one of every env, exploring."""
    parameters: list[list[Tensor]]
    """Those of the policy, before it and after each step, ``[M, ...]`` each: of every task."""

    @property
    def best(self) -> int:
        """The step after which the mean return was highest; 0 is before adaptation."""
        return max(range(len(self.returns)), key=lambda k: float(self.returns[k].mean()))

    def policy(self, base: ActorPolicy, step: int) -> ActorPolicy:
        """The policy of the first task after a step, which acts alone; the base is left as it is."""
        made = copy.deepcopy(base)
        with torch.no_grad():
            for mine, value in zip(TaskNetwork(made).parameters, self.parameters[step], strict=True):
                mine.copy_(value[0])
        return made.eval()

    def lines(self) -> list[str]:
        """A table for people."""
        rows = ["step  return  95% interval"]
        for k, returns in enumerate(self.returns):
            low, high = t_interval(returns)
            rows.append(f"{k:4}  {float(returns.mean()):.4g}  {low:.4g} to {high:.4g}{'  best' * (k == self.best)}")
        return rows

    def as_dict(self) -> list[dict[str, Any]]:
        """The same as plain values."""
        means = [float(returns.mean()) for returns in self.returns]
        return [
            {"step": k, "return_mean": m, "return_ci95": list(t_interval(self.returns[k]))} for k, m in enumerate(means)
        ]


def learner(env: VecEnv, config: MAMLConfig, state: dict[str, Any], steps: int | None, seed: int) -> MAML:
    """An agent that adapts a policy to the one task of an env.

    Args:
        env: all rows are the same task.
        config: of the run.
        state: of the run's agent.
        steps: of adaptation; None: as many as it was trained for. More take the sizes of the last.
        seed: of what it explores by.
    """
    steps = config.adapt_steps if steps is None else steps
    agent = MAML(env, dataclasses.replace(config, num_tasks=1, adapt_steps=steps), seed=seed)
    agent.load_learned(state)
    return agent


@torch.no_grad()
def adapt(env: VecEnv, agent: MAML, seed: int) -> Adapted:
    """Play a rollout, take a step, and so on; the policy and its statistics are left as they were.

    An env of several tasks has new ones afterwards, as after a rollout of training; ``reset(seed)`` brings these back.

    Args:
        env: of one task, or of as many as the agent's.
        agent: built on it, such as of ``learner``.
        seed: of the env's reset, and so of the tasks that it draws.
    """
    statistics = copy.deepcopy(agent.policy.normalizer.state_dict())
    agent.initial_state()
    obs = env.reset(seed)
    parameters = [[p.expand(agent.tasks, *p.shape).clone() for p in agent.network.parameters]]
    for index in range(1, agent.num_steps + 1):
        action, _ = agent.act(obs, ())
        step = agent.renew(env.step(action))
        agent.record(obs, action, (), step)
        agent.policy.normalizer.load_state_dict(statistics)
        obs = step.obs
        if index % agent.horizon == 0 and index < agent.num_steps:
            parameters.append([p.clone() for p in agent.adapted])
    shape = (agent.parts, agent.horizon, env.num_envs)
    total = agent.rollout.data["reward"].view(shape).double().cumsum(1)
    first = agent.rollout.data["done"].view(shape).int().argmax(1, keepdim=True)  # where each env's first episode ended
    return Adapted(list(total.gather(1, first).squeeze(1).cpu().unbind()), parameters)


def one_task(task: str, options: Mapping[str, Any], device: torch.device, seed: int) -> dict[str, Any]:
    """Options that hold an env to one task of its family: the one that they spell, or else one that a seed draws.

    Args:
        task: name.
        options: of the env.
        device: where it is made.
        seed: of the draw.
    """
    env = make_env(task, 1, device, seed=seed, **options)
    try:
        if not is_family(env):
            return dict(options)
        env.reset(seed)
        drawn = {f"randomize.{name}": float(value) for name, value in env.task_values().items()}
    finally:
        env.close()
    return {name: value for name, value in options.items() if name.partition(".")[0] != "randomize"} | drawn


def checked(config: Any, algo: str, policy: Policy) -> tuple[MAMLConfig, ActorPolicy]:
    """The settings and the policy of a run that can adapt.

    Raises:
        ConfigError: it cannot.
    """
    if not isinstance(config, MAMLConfig) or not isinstance(policy, ActorPolicy):
        raise ConfigError(f"--run is of {algo}, whose policies do not adapt; train one with --algo maml")
    return config, policy


def told(options: Mapping[str, Any]) -> str:
    """The task that options hold an env to, in words."""
    values: Sequence[str] = [
        f"{name.removeprefix('randomize.')} {value:.4g}"
        for name, value in options.items()
        if name.startswith("randomize.") and isinstance(value, float)
    ]
    return ", ".join(values) or "as the env has it"
