"""The values that travel between environments, agents and the training loop.

Shapes are written with T steps, N envs, B samples of a batch, O numbers of observation, A of action.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from rlcore.agent import Agent as Agent
    from rlcore.agent import Policy as Policy

Obs = dict[str, Tensor]
"""Observation groups by name, each ``[N, O]`` float32 on the env's device."""

State = tuple[Tensor, ...]
"""Recurrent state, each ``[layers, N, hidden]``; the empty tuple for a feed-forward policy."""

Metrics = dict[str, Tensor]
"""Scalars to log, 0-d tensors that stay on their device until the loop reads them."""

Mode = Literal["graph", "graph+compile", "compile", "eager"]
"""How an agent runs on CUDA: recorded as graphs, fused by ``torch.compile``, both, or as written."""

Timeout = Literal["final_obs", "value", "none"]
"""How a time-out bootstraps: from V of the true last observation, from V of the one before it, or not at all."""


class Step(NamedTuple):
    """What one vector step returns. Envs that ended an episode have been reset already."""

    obs: Obs  # after any reset
    reward: Tensor  # [N] float32
    terminated: Tensor  # [N] bool: a state without a future; nothing is bootstrapped
    truncated: Tensor  # [N] bool: cut by a time limit; the future goes on unseen
    final_obs: Obs | None  # before the reset; rows mean something where the episode ended; None: never known
    log: dict[str, Tensor | float]  # scalars, or [N] per-episode values valid where the episode ended
    valid: Tensor | None = None
    """``[N]`` bool, false where the env began a new episode instead of taking the action, with reward 0 and no end, as
    gymnasium's NEXT_STEP autoreset has it: nothing is learned from such a row. None, which is to be so in all steps of
    an env: every one took its action."""
    signals: dict[str, Tensor] | None = None
    """``[N]`` float32 each, values of this step beside the reward, by name: costs, intrinsic rewards, terms of the
    reward. The same names in every step."""


def begins(step: Step) -> Tensor:
    """Where the next step is not of the same episode, bool ``[N]``."""
    done = step.terminated | step.truncated
    return done if step.valid is None else done | ~step.valid


def detached(obs: Obs) -> Obs:
    """Observations without the graph that a differentiable env computed them by, which would grow step by step."""
    if any(value.requires_grad for value in obs.values()):
        return {group: value.detach() for group, value in obs.items()}
    return obs


def detached_step(step: Step) -> Step:
    """A step of which no tensor holds on to a graph; see ``detached``."""
    final = step.final_obs or {}
    signals = step.signals or {}
    parts = (step.reward, *step.obs.values(), *final.values(), *step.log.values(), *signals.values())
    if not any(isinstance(part, Tensor) and part.requires_grad for part in parts):
        return step
    log = {name: value.detach() if isinstance(value, Tensor) else value for name, value in step.log.items()}
    final_obs = None if step.final_obs is None else detached(final)
    if step.signals is not None:
        step = step._replace(signals=detached(step.signals))
    return step._replace(obs=detached(step.obs), reward=step.reward.detach(), final_obs=final_obs, log=log)


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """``Agent`` and ``Policy`` from where they once lived; their module needs this one."""
        if name in ("Agent", "Policy"):
            return getattr(import_module("rlcore.agent"), name)
        raise AttributeError(f"module 'rlcore.types' has no attribute '{name}'")
