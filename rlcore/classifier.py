"""Which of several tasks is it? A classifier of the history of observations, for policies that nobody tells it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlcore.config import check
from rlcore.env import EnvSpec
from rlcore.networks import MLP, NetworkConfig
from rlcore.recurrent import RNN, RNNConfig
from rlcore.rollout import Samples
from rlcore.types import Metrics, State


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """A classifier that infers the task, so that nobody has to tell it."""

    type: Literal["none", "window", "gru"] = "none"
    """What it remembers: the latest observations (window), what a recurrent layer makes of all (gru); none: the task is
    an input of the policy."""
    window: int = 16
    """Observations in a window, the present one included."""
    hidden_size: int = 64
    """Width of the recurrent layer."""
    hidden_dims: tuple[int, ...] = (64,)
    """Width of each hidden layer after that."""
    weight: float = 0.1
    """Weight of its cross entropy beside the loss of the policy."""
    stop_gradient: bool = True
    """Learn from its cross entropy alone; false: from what its probabilities do to the policy's loss as well."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        for field in fields(self) if self.type == "none" else ():
            value = getattr(self, field.name)
            check(value == field.default, field.name, value, "nothing reads it with type none; set type window or gru")
        for key in ("window", "hidden_size"):
            check(getattr(self, key) >= 1, key, getattr(self, key), "set at least 1")
        check(all(d > 0 for d in self.hidden_dims), "hidden_dims", self.hidden_dims, "widths are at least 1")
        check(0 < self.weight < math.inf, "weight", self.weight, "set a positive number")


class Window(nn.Module):
    """The latest observations side by side, in the place of a recurrent layer.

    Each comes with a 1 after it, so that zeros tell where the episode had not begun. The state is those before the
    present one, oldest first: ``[window - 1, N, inputs + 1]``, or nothing for a window of 1.

    Args:
        inputs: size of an observation.
        length: observations in a window.
    """

    def __init__(self, inputs: int, length: int) -> None:
        super().__init__()
        self.width, self.length = inputs + 1, length
        self.size = length * self.width
        """Size of the output."""
        self.register_buffer("like", torch.empty(0), persistent=False)

    like: Tensor

    def initial_state(self, num_envs: int) -> State:
        """Nothing seen yet."""
        return (self.like.new_zeros(self.length - 1, num_envs, self.width),) if self.length > 1 else ()

    def forward(self, x: Tensor, state: State, keep: Tensor | None = None) -> tuple[Tensor, State]:
        """Windows of a sequence ``[T, N, inputs]``, or of one step ``[N, inputs]``, and the next state.

        See ``RNN.forward``; windows are ``[T, N, size]`` or ``[N, size]``.
        """
        if x.dim() == 2:
            windows, state = self(x.unsqueeze(0), state, keep)
            return windows.squeeze(0), state
        marked = torch.cat([x, torch.ones_like(x[..., :1])], -1)
        if not state:
            return marked, ()
        rows, (seen,) = [], state
        for t, now in enumerate(marked.unbind()):
            seen = torch.cat([seen if keep is None else seen * keep[t], now.unsqueeze(0)])  # [window, N, inputs + 1]
            rows.append(seen.transpose(0, 1).flatten(1))
            seen = seen[1:]
        return torch.stack(rows), (seen,)


class TaskClassifier(nn.Module):
    """Tells tasks apart by the history of normalized observations.

    Args:
        inputs: size of an observation without the group ``task``, O.
        tasks: K.
        config: settings.
    """

    def __init__(self, inputs: int, tasks: int, config: ClassifierConfig) -> None:
        super().__init__()
        self.config, self.tasks = config, tasks
        self.num_states = int(config.type == "gru" or config.window > 1)
        self.history: Window | RNN
        if config.type == "window":
            self.history = Window(inputs, config.window)
            size = self.history.size
        else:
            self.history = RNN(inputs, RNNConfig(type="gru", hidden_size=config.hidden_size))
            size = config.hidden_size
        self.mlp = MLP(size, NetworkConfig(hidden_dims=config.hidden_dims))
        self.head = nn.Linear(self.mlp.size, tasks)
        nn.init.zeros_(self.head.weight)  # which begins by knowing nothing
        nn.init.zeros_(self.head.bias)

    def initial_state(self, num_envs: int) -> State:
        """Of nothing seen: one tensor, or none for a window of 1."""
        return self.history.initial_state(num_envs)

    def forward(self, x: Tensor, state: State, keep: Tensor | None = None) -> tuple[Tensor, State]:
        """Logits ``[T, N, K]`` after each observation of a sequence ``[T, N, O]``, or one step, and the next state."""
        seen, state = self.history(x, state, keep)
        return self.mlp(seen, self.head), state

    def with_probabilities(
        self, normalized: Tensor, state: State, keep: Tensor | None = None, before: Tensor | None = None
    ) -> tuple[Tensor, Tensor, State, State]:
        """Put the probability of each task in the place of the group ``task``.

        Without a gradient to the classifier that is what the policy acted by, wherever the classifier has come since:
        an observation like others, so that ratio and divergence tell of the policy alone.

        Args:
            normalized: ``[T, N, O + K]``, of which the last K numbers are not read.
            state: its own, and after it that of others.
            keep: see ``RNN.forward``.
            before: probabilities ``[T, N, K]`` that the policy acted by; None: it acts now.

        Returns:
            ``[T, N, O + K]``; logits ``[T, N, K]``; the next state of its own; and that of others.
        """
        observed = normalized[..., : -self.tasks]
        logits, own = self(observed, state[: self.num_states], keep)
        if self.config.stop_gradient:
            told = F.softmax(logits.detach(), -1) if before is None else before
        else:
            told = F.softmax(logits, -1)
        return torch.cat([observed, told], -1), logits, own, state[self.num_states :]

    def with_loss(self, loss: Tensor, metrics: Metrics, logits: Tensor, samples: Samples) -> Tensor:
        """Add the weighted cross entropy to a loss, and to the metrics that in nats and the share of right guesses.

        Args:
            loss: a scalar.
            metrics: what to log of it.
            logits: ``[L, B, K]``; of more steps than there are samples the last count.
            samples: the group ``task`` is the last of ``actor_obs``.
        """
        task, weight = samples.actor_obs[..., -self.tasks :], samples.weight
        logits = logits[-len(weight) :]
        metrics["classifier/loss"] = -(weight * (task * F.log_softmax(logits, -1)).sum(-1)).mean()
        right = logits.argmax(-1) == task.argmax(-1)
        metrics["classifier/accuracy"] = (weight * right).mean()
        return loss + self.config.weight * metrics["classifier/loss"]


def told_column(logits: Tensor | None) -> dict[str, Tensor]:
    """The column ``told`` ``[N, K]`` of a rollout, by logits of one step; none where the task is not inferred."""
    return {} if logits is None else {"told": F.softmax(logits, -1).view(-1, logits.shape[-1])}


def make_classifier(spec: EnvSpec, config: Any, inputs: int) -> TaskClassifier | None:
    """The classifier that the settings of an actor ask for; None where the task is told.

    Args:
        spec: of an env of several tasks.
        config: ``ActorCriticConfig``.
        inputs: size of what the policy reads, the group ``task`` left out.

    Raises:
        ConfigError: there is one task, or one task's actions tell it from the others.
    """
    settings: ClassifierConfig = config.classifier
    if settings.type == "none":
        return None
    key = "classifier.type"
    check(bool(spec.tasks), key, settings.type, f"{spec.task} is one task, which nobody has to infer; set none")
    check(not config.share_trunk, key, settings.type, "a critic that shares the trunk is told the task; set none")
    full = config.actor.rnn.type == "lstm" and (settings.type == "gru" or settings.window > 1)
    remedy = "an exported file has room for two states, which an LSTM takes up; set actor.rnn.type to gru"
    check(not full, key, settings.type, remedy)
    (first, one), *others = spec.tasks.items()
    for name, other in others:
        same = all(
            getattr(one, part) == getattr(other, part)
            for part in ("discrete", "action_size", "action_parts", "action_low", "action_high")
        )
        remedy = f"the actions of {first} and {name} differ, so that what moves the robot must be known; set none"
        check(same, key, settings.type, remedy)
    return TaskClassifier(inputs, len(spec.tasks), settings)
