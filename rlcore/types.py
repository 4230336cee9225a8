"""The values that travel between environments, agents and the training loop.

Shapes are written with T steps, N envs, B samples of a batch, O numbers of observation, A of action.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor, nn

Obs = dict[str, Tensor]
"""Observation groups by name, each ``[N, O]`` float32 on the env's device."""

State = tuple[Tensor, ...]
"""Recurrent state, each ``[layers, N, hidden]``; the empty tuple for a feed-forward policy."""

Metrics = dict[str, Tensor]
"""Scalars to log, 0-d tensors that stay on their device until the loop reads them."""

Mode = Literal["graph", "graph+compile", "compile", "eager"]
"""How an agent runs on CUDA: recorded as graphs, fused by ``torch.compile``, both, or as written."""


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
    parts = (step.reward, *step.obs.values(), *final.values(), *step.log.values())
    if not any(isinstance(part, Tensor) and part.requires_grad for part in parts):
        return step
    log = {name: value.detach() if isinstance(value, Tensor) else value for name, value in step.log.items()}
    final_obs = None if step.final_obs is None else detached(final)
    return step._replace(obs=detached(step.obs), reward=step.reward.detach(), final_obs=final_obs, log=log)


class Policy(nn.Module):
    """A deterministic controller: normalization, network, squashing and action limits in one module.

    Evaluation, play and export all run this module, so they cannot disagree.
    """

    observation_sizes: dict[str, int]
    """Size of each observation group it reads, in the order in which they are concatenated."""

    def initial_state(self, num_envs: int) -> State:
        """Zero recurrent state for ``num_envs`` envs; ``()`` when there is none."""
        return ()

    def forward(self, obs: Obs, state: State = ()) -> tuple[Tensor, State]:
        """Map observations to actions ``[N, A]`` float32 (``[N]`` int64 when discrete) and the next state."""
        raise NotImplementedError


class Agent(Protocol):
    """A learning algorithm as the training loop sees it."""

    num_steps: int
    """Vector steps between two updates."""

    mode: Mode
    """How it runs on CUDA."""

    @property
    def policy(self) -> Policy:
        """The deterministic policy as learned so far."""
        ...

    def initial_state(self) -> State:
        """Recurrent state at the start of an episode, for every env."""
        ...

    def act(self, obs: Obs, state: State) -> tuple[Tensor, Any, State]:
        """Choose an exploring action; also what ``record`` needs to know of the choice, and the next state."""
        ...

    def record(self, obs: Obs, action: Tensor, extras: Any, state: State, step: Step) -> None:
        """Store one vector step."""
        ...

    def moved(self) -> list[Tensor]:
        """What of ``state_dict`` acting and recording change, and ``initial_state`` does not set anew.

        Put back as it was, and ``initial_state`` called, a rollout that was broken off is as if it had not been.
        """
        ...

    def update(self) -> Metrics:
        """Learn from what has been recorded."""
        ...

    def recording(self) -> dict[str, Tensor]:
        """Recent observations ``[T, M, O]`` by group and ``done`` ``[T, M]``, for checking an export."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that learning depends on, as tensors and plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, in place."""
        ...
