"""Settings of MAML."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from rlcore.actor_critic_config import ActorCriticConfig
from rlcore.config import check, check_positive
from rlcore.networks import NetworkConfig
from rlcore.types import Mode

LONGEST = 10_000
"""Steps of an episode beyond which their number has to be given: a rollout has some of every step of adaptation."""


def _small() -> NetworkConfig:
    return NetworkConfig(hidden_dims=(64, 64), activation="tanh")


@dataclass(frozen=True, kw_only=True)
class MAMLConfig(ActorCriticConfig):
    """Settings of MAML; the defaults are for hundreds of envs. The critic is least squares, and has no settings."""

    actor: NetworkConfig = field(default_factory=_small)
    """Hidden layers of the policy: a perceptron, every layer of which adapts."""
    num_tasks: int = 16
    """Tasks that an iteration is played on (M); must divide num_envs: each has num_envs / M episodes at once."""
    adapt_steps: int = 5
    """Steps of policy gradient that a policy is to need for a task (K). Each is followed by a rollout of its own."""
    num_steps: int | None = None
    """Vector steps of each of these K + 1 rollouts (H), after which episodes begin anew; none: an episode."""
    step_size: float = 0.1
    """Size of the steps of adaptation (alpha), at the start if it is learned; 0: the context alone adapts."""
    context_size: int = 0
    """Inputs of the first layer that are 0 before adaptation and take steps like the parameters do (C); 0: none."""
    context_step_size: float | None = None
    """Size of the context's first step (beta), the k-th is beta / k; where sizes are learned, at the start.
    None: that of the others."""
    learn_step_sizes: bool = True
    """Learn it, one for each step and each tensor of the policy."""
    first_order: bool = False
    """Take the steps' own gradients for constants: half the time, and a biased gradient."""
    early_weight: float = 0.1
    """Weight of the loss before adaptation; those after each step rise evenly from it to 1."""
    learning_rate: float = 1e-3
    """Adam's step size, of policy and step sizes."""
    num_epochs: int = 5
    """Gradient steps in an update, each on all that was collected."""
    clip_range: float = 0.3
    """The ratio of probabilities is clipped to 1 +- this, after every step of adaptation."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    gamma: float = 0.99
    """Discount per step."""
    gae_lambda: float = 1.0
    """Lambda of generalized advantage estimation (arXiv:1506.02438)."""
    mode: Mode = "graph"
    """How an update runs on CUDA: recorded as a graph, or as written (eager)."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        super().__post_init__()
        for key in ("num_tasks", "adapt_steps", "num_epochs"):
            check(getattr(self, key) >= 1, key, getattr(self, key), "set at least 1")
        check(0 <= self.step_size < math.inf, "step_size", self.step_size, "set 0 or more")
        check(self.step_size > 0 or self.context_size > 0, "step_size", 0, "nothing would adapt; set context_size, too")
        fits = self.step_size > 0 or self.context_step_size is not None
        check(fits, "context_step_size", None, "step_size is 0; set a positive number")
        check(self.context_size >= 0, "context_size", self.context_size, "set 0 or more")
        needed = self.context_size == 0 or len(self.actor.hidden_dims) > 0
        check_positive(self, "context_step_size", none=True)
        fits = self.context_step_size is None or self.context_size > 0
        check(fits, "context_step_size", self.context_step_size, "there is no context; set context_size")
        check(needed, "context_size", self.context_size, "it goes into a hidden layer; set actor.hidden_dims, or 0")
        check(self.num_steps is None or self.num_steps >= 2, "num_steps", self.num_steps, "set at least 2, or none")
        check_positive(self, "learning_rate", "clip_range", "max_grad_norm")
        check(0 <= self.early_weight <= 1, "early_weight", self.early_weight, "set a number from 0 to 1")
        check(0 <= self.entropy_coef < math.inf, "entropy_coef", self.entropy_coef, "set 0 or more")
        for key in ("gamma", "gae_lambda"):
            check(0 <= getattr(self, key) <= 1, key, getattr(self, key), "set a number from 0 to 1")
        net, what = self.actor, "a perceptron alone is adapted"
        check(net.kind == "mlp", "actor.kind", net.kind, f"{what}; set mlp")
        check(net.rnn.type == "none", "actor.rnn.type", net.rnn.type, f"{what}; set none")
        check(not net.layer_norm, "actor.layer_norm", net.layer_norm, f"{what}; set false")
        for key, none in (("critic", NetworkConfig()), ("critic_obs", None), ("share_trunk", False)):
            remedy = "maml has least squares for a critic, for each task anew; leave it out"
            check(getattr(self, key) == none, key, getattr(self, key), remedy)
        check(self.action_mask is None, "action_mask", self.action_mask, "maml has none; leave it out")
        check("compile" not in self.mode, "mode", self.mode, "maml differentiates twice; set graph or eager")

    def samples_at_once(self, num_envs: int) -> int:
        """See ``agent.AgentConfig``: a step is on whole rollouts."""
        return num_envs * (self.num_steps or 100)

    def scheduled(self) -> str:
        """Nothing changes over the run."""
        return ""
