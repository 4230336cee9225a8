"""Advantage actor-critic (A2C, Mnih et al. 2016, arXiv:1602.01783) as an algorithm of one's own.

This file is all of it, with its record at the end. One gradient step a rollout, by the distribution that it was sampled
from, so that there are no ratios and nothing is clipped.

    rlcore train --algo examples/a2c.py --task CartPole
    rlcore config --algo examples/a2c.py --task CartPole
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlcore import Algorithm, Step, VecEnv, spec_of
from rlcore.actor_critic_config import ActorCriticConfig
from rlcore.capture import Captured
from rlcore.config import check, check_positive
from rlcore.critics import Critic
from rlcore.env import want_final_obs
from rlcore.observations import concatenate
from rlcore.policies import build_policy
from rlcore.returns import bootstrap_values, gae, room_for_timeouts
from rlcore.rollout import Rollout, make_trace
from rlcore.types import Metrics, Mode, Obs, State, Timeout


@dataclass(frozen=True, kw_only=True)
class A2CConfig(ActorCriticConfig):
    """Settings of A2C."""

    num_steps: int = 16
    """Vector steps of a rollout (T), the n of its n-step returns."""
    learning_rate: float = 2e-3
    """Step size of RMSprop."""
    gamma: float = 0.99
    """Discount per step."""
    gae_lambda: float = 1.0
    """Weight of longer advantage estimates; 1, as in the paper, takes the longest that the rollout has."""
    value_coef: float = 0.5
    """Weight of the mean squared value error."""
    entropy_coef: float = 0.01
    """Weight of the entropy bonus."""
    max_grad_norm: float = 0.5
    """Gradients are scaled down to this norm."""
    mode: Mode = "graph"
    """How rollout and update run on CUDA."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        super().__post_init__()
        check(self.num_steps >= 1, "num_steps", self.num_steps, "set at least 1")
        check_positive(self, "learning_rate", "max_grad_norm")
        for name, kind in (("actor", self.actor.rnn.type), ("critic", self.critic.rnn.type)):
            check(kind == "none", f"{name}.rnn.type", kind, "recurrent layers need ppo; set none")

    def samples_at_once(self, num_envs: int) -> int:
        """Samples of a gradient step: the whole rollout."""
        return num_envs * self.num_steps

    def scheduled(self) -> str:
        """Nothing changes over the run."""
        return ""


class A2C:
    """A2C on a vector env; see ``rlcore.Agent`` for its methods.

    Args:
        env: what to learn on.
        config: settings.
        seed: for weights and exploration; None leaves PyTorch's generator as it is.
        num_iterations: planned length of the run, on which nothing depends here.
    """

    notes: Sequence[str] = ()

    def __init__(
        self, env: VecEnv, config: A2CConfig, seed: int | None = None, num_iterations: int | None = None
    ) -> None:
        if seed is not None:
            torch.manual_seed(seed)
        spec, device = spec_of(env), torch.device(env.device)
        self.config, self.num_steps, self.iteration = config, config.num_steps, 0
        self.mode: Mode = config.mode
        self.timeout_bootstrap: Timeout = "final_obs"
        self.fault_groups: Mapping[str, Sequence[str]] = {}
        self.policy = build_policy(spec, config).to(device)
        self.critic = Critic(spec, config, self.policy).to(device)
        # They come beside the vectors, as ``raw`` of ``ActorPolicy.distribution``, which PPO keeps in its rollout.
        raw = {**self.policy.raw_shapes, **self.critic.raw_shapes}
        check(not raw, "actor_obs, critic_obs or action_mask", list(raw), "images and masks need ppo; name vectors")
        want_final_obs(env, self.critic.groups)
        self.num_timeouts = env.num_envs * room_for_timeouts(config.num_steps, env.max_episode_length)
        self.parameters = list(nn.ModuleList([self.policy, self.critic]).parameters())  # what is shared, once
        self.optimizer = torch.optim.RMSprop(
            self.parameters, config.learning_rate, eps=1e-5, capturable=device.type == "cuda"
        )
        self.rollout = Rollout(config.num_steps, env.num_envs, device)
        self.trace = make_trace(env.num_envs, device)
        self._act = Captured(self._choose, config.mode, device)
        self._record = Captured(self._store, config.mode, device)
        self._update = Captured(self._improve, config.mode, device)

    def warnings(self, num_iterations: int) -> Sequence[str]:
        """None."""
        return ()

    def initial_state(self) -> State:
        """No recurrent state; an unfinished rollout begins anew."""
        self.rollout.rewind()
        return ()

    def act(self, obs: Obs, state: State) -> tuple[Tensor, State]:
        """Sample actions ``[N, A]``."""
        return self._act(obs), ()

    @torch.no_grad()
    def _choose(self, obs: Obs) -> Tensor:
        actor_obs, critic_obs = (concatenate(obs, part.groups) for part in (self.policy, self.critic))
        self.policy.normalizer.update(actor_obs)
        if self.critic.normalizer is not self.policy.normalizer:
            self.critic.normalizer.update(critic_obs)
        normalized = self.policy.normalizer(actor_obs)
        action = self.policy.distribution(normalized)[0].sample()
        self.rollout.write(
            {"actor_obs": normalized, "critic_obs": self.critic.normalizer(critic_obs), "action": action}
        )
        self.trace.write({group: value[: self.trace.num_envs] for group, value in obs.items()})
        return self.policy.limit(action)

    def record(self, obs: Obs, action: Tensor, state: State, step: Step) -> None:
        """Complete the rollout's present row with what the env answered."""
        if step.final_obs is None:
            self.timeout_bootstrap = "value"
        self._record(step.reward, step.terminated, step.truncated, step.final_obs, step.valid)
        self.next_obs = concatenate(step.obs, self.critic.groups).detach()  # [N, O]

    @torch.no_grad()
    def _store(
        self, reward: Tensor, terminated: Tensor, truncated: Tensor, final_obs: Obs | None, valid: Tensor | None
    ) -> None:
        weight = torch.ones_like(reward) if valid is None else valid.float()  # 0 for what is no step
        row = {"reward": reward, "terminated": terminated | (weight == 0), "truncated": truncated, "weight": weight}
        if final_obs is not None:
            row["final_obs"] = self.critic.normalizer(concatenate(final_obs, self.critic.groups))
        self.rollout.write(row)
        self.trace.write({"done": (terminated | truncated)[: self.trace.num_envs]})
        self.rollout.advance()
        self.trace.advance()

    def update(self) -> Metrics:
        """Take one gradient step on the rollout."""
        self.iteration += 1
        return self._update(self.next_obs)  # type: ignore[no-any-return]

    def _improve(self, next_obs: Tensor) -> Metrics:
        config, data = self.config, self.rollout.data
        terminated, truncated, weight = data["terminated"], data["truncated"], data["weight"]  # [T, N]
        obs = torch.cat([data["critic_obs"], self.critic.normalizer(next_obs).unsqueeze(0)])  # [T + 1, N, O]
        final_obs = data["final_obs"] if self.timeout_bootstrap == "final_obs" else None
        timed_out, keep = truncated & ~terminated, torch.ones_like(obs[..., :1])
        values, timeout_values, _ = self.critic.unroll(obs, final_obs, timed_out, self.num_timeouts, (), keep, 1)
        known = values.detach()
        next_values = bootstrap_values(known, terminated, truncated, timeout_values.detach())
        done = terminated | truncated
        advantages, returns = gae(data["reward"], known[:-1], next_values, done, config.gamma, config.gae_lambda)
        distribution, _ = self.policy.distribution(data["actor_obs"])

        def mean(x: Tensor) -> Tensor:
            return (weight * x).sum() / weight.sum()

        # The gradients of section 4.1 of the paper, for actor and critic, with the bonus of entropy.
        policy_loss = -mean(distribution.log_prob(data["action"]) * advantages)
        value_loss = mean((returns - values[:-1]).square())
        entropy = mean(distribution.entropy())
        loss = policy_loss + config.value_coef * value_loss - config.entropy_coef * entropy
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.parameters, config.max_grad_norm)
        self.optimizer.step()
        metrics = {"loss/policy": policy_loss, "loss/value": value_loss, "policy/entropy": entropy}
        return {name: value.detach() for name, value in (metrics | {"policy/gradient_norm": norm}).items()}

    def moved(self) -> list[Tensor]:
        """The statistics of observations."""
        return [*self.policy.normalizer.buffers(), *self.critic.normalizer.buffers()]

    def recording(self) -> dict[str, Tensor]:
        """The latest raw observations of the first few envs."""
        return self.trace.latest(self.iteration * self.num_steps)

    def state_dict(self) -> dict[str, Any]:
        """Everything that learning depends on between two iterations."""
        parts = {name: getattr(self, name).state_dict() for name in ("policy", "critic", "optimizer", "trace")}
        return parts | {"iteration": self.iteration, "timeout_bootstrap": self.timeout_bootstrap}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``'s result."""
        for name in ("policy", "critic", "optimizer", "trace"):
            getattr(self, name).load_state_dict(state[name])
        self.iteration, self.timeout_bootstrap = state["iteration"], state["timeout_bootstrap"]


RECORD = Algorithm(name="a2c", agent=A2C, config=A2CConfig, policy=build_policy, num_envs=64, num_iterations=1000)
