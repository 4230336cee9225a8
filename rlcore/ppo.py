"""Proximal Policy Optimization (Schulman et al. 2017, arXiv:1707.06347) for batches of environments.

Everything stays on the device: no value is read by the host, no shape depends on data, and what other implementations
decide with ``if`` (learning rate, early stop, skipping a broken step) is decided here with tensors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlcore.actor_critic import Critic, build_policy
from rlcore.anchors import Anchors
from rlcore.arrays import nothing
from rlcore.capture import Captured, compiled, matmul_precision, rebuilt, side_by_side
from rlcore.config import ConfigError, check, settings_of
from rlcore.env import VecEnv, spec_of, want_final_obs
from rlcore.faults import broken_observations, broken_steps, far_numbers, fault_groups, lost_steps
from rlcore.learn import Progress, Report, learn
from rlcore.losses import ppo_loss
from rlcore.normalization import RunningNormalizer, broken_rewards, denormalized
from rlcore.observations import as_stored, concatenate, unread
from rlcore.optimizer import FlatAdam
from rlcore.ppo_config import PPOConfig as PPOConfig
from rlcore.ppo_config import rate_by_kl, small_minibatches
from rlcore.recurrent import cleared, forgetful
from rlcore.returns import bootstrap_values, filled, gae, room_for_timeouts, scaled_reward, standardized
from rlcore.rollout import Rollout, Samples, make_trace, sequences, shuffled
from rlcore.types import Metrics, Mode, Obs, State, Step, Timeout

_log = logging.getLogger(__name__)


class PPO:
    """PPO on a vector env.

    ``act`` and ``record`` take turns, ``num_steps`` times, then ``update``; ``learn`` does all of it.

    Args:
        env: what to learn on.
        config: settings.
        seed: for weights, exploration and the env; None leaves PyTorch's generator as it is.
        num_iterations: planned length of the run, for the linear schedule.

    Raises:
        ConfigError: the settings do not fit the env.
    """

    def __init__(
        self, env: VecEnv, config: PPOConfig | None = None, seed: int | None = None, num_iterations: int | None = None
    ) -> None:
        config = settings_of(config, PPOConfig)
        self.env, self.config, self.seed, self.num_iterations = env, config, seed, num_iterations
        self.num_steps, self.iteration, self.step = config.num_steps, 0, 0
        if seed is not None:
            torch.manual_seed(seed)
        spec, device = spec_of(env), torch.device(env.device)
        self.policy = build_policy(spec, config).to(device)
        self.critic = Critic(spec, config, self.policy).to(device)
        for mlp in (self.policy.trunk.mlp, self.critic.trunk.mlp):
            mlp.precision, mlp.fused = config.precision, config.precision != "fp32" and "compile" not in config.mode
        self.recurrent = self.policy.trunk.recurrent or self.critic.trunk.recurrent
        # A feed-forward network learns from sequences of one step, so that there is one text for both.
        self.length = (config.sequence_length or config.num_steps) if self.recurrent else 1
        self.num_sequences = env.num_envs * config.num_steps // self.length
        remedy = f"it must divide the {self.num_sequences} sequences of {self.length} steps in a rollout"
        check(self.num_sequences % config.num_minibatches == 0, "num_minibatches", config.num_minibatches, remedy)
        if too_small := small_minibatches(config, env.num_envs):
            _log.warning(too_small)
        averaged = config.entropy_reduction == "mean" and not spec.discrete
        self.entropy_coef = config.entropy_coef / (spec.action_size if averaged else 1)  # of the sum over actions
        finals = (*self.critic.groups, *self.critic.raw_shapes) if config.timeout_bootstrap == "final_obs" else ()
        want_final_obs(env, finals)
        self.critic_state = self.critic.initial_state(env.num_envs)  # where the next rollout begins
        few = room_for_timeouts(config.num_steps, env.max_episode_length)
        self.num_timeouts = env.num_envs * min(config.num_steps, few)
        self.value_normalizer = RunningNormalizer(1, warmup=10).to(device) if config.normalize_value else None
        actor = list(self.policy.parameters())
        critic = [p for p in self.critic.parameters() if not any(p is q for q in actor)]  # the trunk may be shared
        self.learning_rate = torch.tensor(config.learning_rate, device=device)
        groups = [actor + critic] if config.grad_clip == "joint" else [actor, critic]
        self.optimizers = [FlatAdam(group, self.learning_rate, config.max_grad_norm) for group in groups]
        self.rollout = Rollout(config.num_steps, env.num_envs, device)
        self.starts = Rollout(config.num_steps // self.length, env.num_envs, device)  # states where sequences begin
        self.trace = make_trace(env.num_envs, device)
        self.timeout_bootstrap: Timeout = config.timeout_bootstrap
        self.fault_groups = fault_groups(self.policy.groups, self.critic.groups)
        self.anchors = Anchors(self)
        self.mode: Mode = config.mode
        self.raw_groups = tuple(dict.fromkeys((*self.policy.raw_shapes, *self.critic.raw_shapes)))
        self.notes = unread(spec, (*self.policy.groups, *self.critic.groups, *self.raw_groups))
        self._begin = Captured(self._begin_sequence, config.mode, device)
        self._act = Captured(self._choose, config.mode, device)
        self._record = Captured(self._store, config.mode, device)
        self._update = Captured(self._improve, config.mode, device)
        self._loss = compiled(type(self)._evaluate, config.mode, device)  # a bound one would keep the agent alive

    def warnings(self, num_iterations: int) -> list[str]:
        """None: every rollout is learned from."""
        return []

    def learn(
        self, num_iterations: int, *, progress: Progress | None = None,
        on_report: Callable[[Report], None] | None = None, on_iteration: Callable[[Progress], None] | None = None,
        should_stop: Callable[[], bool] | None = None, seed: int | None = None, capture_env: bool | None = None,
    ) -> Progress:  # fmt: skip
        """Train until ``num_iterations`` iterations in all; see ``rlcore.learn.learn``.

        Without ``progress`` it begins anew, with what has been learned; without ``seed`` by the one it was built with.
        """
        self.num_iterations = num_iterations
        if progress is None:
            self.iteration = 0
        return learn(
            self.env, self, num_iterations, progress=progress, on_report=on_report, on_iteration=on_iteration,
            should_stop=should_stop, seed=self.seed if seed is None else seed, capture_env=capture_env,
        )  # fmt: skip

    def initial_state(self) -> State:
        """Zero state of the actor for every env; the critic's state and the rollout, kept here, start anew as well."""
        for part in self.critic_state:
            part.zero_()  # in place: recordings know these tensors
        self.step = 0  # a rollout may have been broken off
        self.rollout.rewind()
        self.starts.rewind()
        return self.policy.initial_state(self.env.num_envs)

    def act(self, obs: Obs, state: State) -> tuple[Tensor, State]:
        """Sample actions ``[N, A]``, overwritten by the next call, and write them into the rollout's present row."""
        if self.recurrent and self.step % self.length == 0:
            self._begin(state)
        return self._act(obs, state)  # type: ignore[no-any-return]

    @torch.no_grad()
    def _begin_sequence(self, state: State) -> None:
        self.starts.write({str(i): part.transpose(0, 1) for i, part in enumerate(state)})
        self.starts.advance()

    @torch.no_grad()
    def _choose(self, obs: Obs, state: State) -> tuple[Tensor, State]:
        actor_obs = concatenate(obs, self.policy.groups)
        critic_obs = concatenate(obs, self.critic.groups)
        self.policy.normalizer.update(actor_obs)
        if self.critic.normalizer is not self.policy.normalizer:
            self.critic.normalizer.update(critic_obs)
        # Stored as the network saw them: the statistics move on, and the ratio of the first minibatch must be 1.
        # What cannot be used is 0 there, an average observation, so that the env gets an action in any case.
        row: dict[str, Tensor] = {}
        row["actor_obs"], row["actor_broken"] = self.policy.normalizer.usable(actor_obs)
        if self.critic.groups != self.policy.groups:
            row["critic_obs"], row["critic_broken"] = self.critic.normalizer.usable(critic_obs)
        raw = as_stored(obs, self.raw_groups)
        row |= {f"raw_{group}": value for group, value in raw.items()}
        with matmul_precision(self.config.precision):
            sequence = row["actor_obs"]
            if self.recurrent:
                sequence, raw = sequence.unsqueeze(0), {group: value.unsqueeze(0) for group, value in raw.items()}
            distribution, state = self.policy.distribution(sequence, state, None, raw)
        if self.recurrent:
            distribution = type(distribution)(*(part.squeeze(0) if part.dim() > 1 else part for part in distribution))
        action = distribution.sample()
        row["action"] = action  # its density is computed for a whole rollout at once
        row |= {f"old_{name}": part.expand_as(distribution[0]) for name, part in distribution._asdict().items()}
        self.rollout.write(row)
        self.trace.write(obs)
        if self.recurrent:
            state = cleared(state, broken_observations(row))
        return self.policy.limit(action), state

    def record(self, obs: Obs, action: Tensor, state: State, step: Step) -> None:
        """Complete the rollout's present row with what the env answered."""
        if self.timeout_bootstrap == "final_obs" and step.final_obs is None:
            self.timeout_bootstrap = "value"
        final_obs = step.final_obs if self.timeout_bootstrap == "final_obs" else None
        self._record(step.reward, step.terminated, step.truncated, final_obs, step.valid)
        self.next_obs = {group: step.obs[group].detach() for group in (*self.critic.groups, *self.critic.raw_shapes)}
        self.step = (self.step + 1) % self.num_steps

    @torch.no_grad()
    def _store(
        self, reward: Tensor, terminated: Tensor, truncated: Tensor, final_obs: Obs | None, valid: Tensor | None
    ) -> None:
        reward = scaled_reward(reward, self.config.reward_scale, self.config.reward_clip)
        row = {"reward": reward, "terminated": terminated, "truncated": truncated}
        if valid is not None:  # what is no step ends there, so that nothing is carried on to the episode that begins
            row |= {"terminated": terminated | ~valid, "valid": valid}
        done = row["terminated"] | truncated  # [N]
        # What was there before may stay where nothing ended, since nobody reads it.
        if final_obs is not None and not ("final_obs" in self.rollout.data and nothing(done)):
            final = concatenate(final_obs, self.critic.groups)
            row["final_obs"], row["final_broken"] = self.critic.normalizer.usable(final)
            row |= {f"final_raw_{g}": value for g, value in as_stored(final_obs, self.critic.raw_shapes).items()}
        self.rollout.write(row)
        self.trace.write({"done": done})
        self.rollout.advance()
        self.trace.advance()

    def update(self) -> Metrics:
        """Learn from a full rollout; the metrics are overwritten by the next call.

        Of these ``rollout/dropped`` is the number of samples that were left out, of ``num_steps * num_envs``, since a
        number that they need is not finite or can only come of a fault; ``faults.culprits`` tells whose it is.

        Raises:
            ConfigError: the learning rate falls over the run, whose length nobody gave.
        """
        if self.config.lr_schedule == "linear":
            if self.num_iterations is None:
                raise ConfigError("lr_schedule: 'linear' needs the length of the run; pass num_iterations")
            remaining = max(0.0, 1 - self.iteration / self.num_iterations)
            self.learning_rate.fill_(self.config.learning_rate * remaining)
        self.anchors.check(self)
        self.iteration += 1
        self.step = 0  # where recording the rollout broke off, some of its steps were counted twice
        return self._update(self.next_obs)  # type: ignore[no-any-return]

    def _improve(self, next_obs: Obs) -> Metrics:
        config = self.config
        rows: list[Tensor] = []
        with matmul_precision(config.precision):
            batch, about = self._targets(next_obs)
            self.stopped = torch.zeros((), dtype=torch.bool, device=batch.weight.device)
            for _ in range(config.num_epochs):
                for samples in shuffled(batch, config.num_minibatches):
                    measured = self._minibatch(samples)
                    rows.append(torch.stack(list(measured.values())))
        table = torch.stack(rows)  # [minibatches, metrics], "applied" last
        applied = table[:, -1:]
        means = torch.where(applied > 0, table, 0.0).sum(0) / applied.sum()  # NaN, so not reported, if none was
        metrics: Metrics = dict(zip(measured, means[:-1].unbind(), strict=False))
        metrics.update(about)
        metrics["policy/skipped_minibatches"] = len(rows) - applied.sum()
        metrics["policy/learning_rate"] = self.learning_rate.clone()
        return metrics

    @torch.no_grad()
    def _targets(self, next_obs: Obs) -> tuple[Samples, Metrics]:
        """Compute advantages and returns, and lay the rollout out as sequences ``[L, S, ...]``.

        A step whose one-step error (delta in equation 16 of arXiv:1506.02438) needs a number that cannot be used gets
        weight 0: one with a broken reward or observation, and one that leads to a broken observation. Advantages of the
        steps before end there as they end with the rollout, in the value of the last sound observation.
        """
        config, data = self.config, self.rollout.data
        done = data["terminated"] | data["truncated"]  # [T, N]
        timed_out = data["truncated"] & ~data["terminated"]
        following, next_broken = self.critic.normalizer.usable(concatenate(next_obs, self.critic.groups))  # [N, O]
        final_obs = data["final_obs"] if self.timeout_bootstrap == "final_obs" else None
        broken_obs, broken_reward = broken_observations(data), broken_rewards(data["reward"])
        final_broken = None if final_obs is None else torch.where(timed_out, data["final_broken"], -1)
        lost = lost_steps(broken_obs, broken_reward, next_broken >= 0, final_broken, done, data.get("valid"))
        # A broken observation empties the memory of a recurrent network, as the end of an episode does.
        keep = torch.cat([torch.ones_like(done[:1]), ~(done | broken_obs)]).float().unsqueeze(-1)  # [T + 1, N, 1]
        critic_obs = data.get("critic_obs", data["actor_obs"])
        obs = torch.cat([critic_obs, following.unsqueeze(0)])  # [T + 1, N, O]
        seen = as_stored(next_obs, self.critic.raw_shapes)
        raw = {group: torch.cat([data[f"raw_{group}"], value.unsqueeze(0)]) for group, value in seen.items()}
        finals = {} if final_obs is None else {group: data[f"final_raw_{group}"] for group in raw}
        outputs, timeout_values, states = self.critic.unroll(
            obs, final_obs, timed_out, self.num_timeouts, self.critic_state, keep, self.length, raw, finals
        )
        values, timeout_values = (denormalized(x, self.value_normalizer) for x in (outputs, timeout_values))
        if self.timeout_bootstrap == "none":
            timeout_values = torch.zeros_like(timeout_values)
        next_values = bootstrap_values(values, data["terminated"], data["truncated"], timeout_values)
        values = values[:-1]  # [T, N]
        cut = done | torch.cat([lost[1:], torch.zeros_like(lost[:1])])
        reward = data["reward"].masked_fill(broken_reward, 0.0)
        advantages, returns = gae(reward, values, next_values, cut, config.gamma, config.gae_lambda)
        learned = ~(lost | forgetful(broken_obs, done, self.length)) if self.recurrent else ~lost
        # 1 if all are learned from; and NaN if none is, so that steps are skipped.
        weight = learned / learned.float().mean()
        errors = filled(returns - values, learned).var()
        about = {"policy/explained_variance": 1 - errors / filled(returns, learned).var().clamp(min=1e-8)}
        about["rollout/dropped"] = (data.get("valid", torch.ones_like(learned)) & ~learned).sum()
        if self.value_normalizer is not None:
            self.value_normalizer.update(returns.where(learned, torch.nan).reshape(-1, 1))
            returns = self.value_normalizer(returns.unsqueeze(-1)).squeeze(-1)
        sources = {"actor": data["actor_broken"], "critic": data.get("critic_broken"), "final": final_broken}
        about |= broken_steps({"reward": broken_reward.int() - 1, **sources})
        limited = {"actor_far": self.policy.normalizer, "critic_far": self.critic.normalizer}
        about |= far_numbers(limited | {"return_far": self.value_normalizer}, self.env.num_envs)
        if config.normalize_advantage == "batch":
            advantages = standardized(advantages, learned)
        actor_obs, other_obs = data["actor_obs"], data.get("critic_obs")
        if config.precision == "bf16" and not self.recurrent and actor_obs.is_cuda:  # once, and not in each minibatch
            actor_obs, other_obs = actor_obs.bfloat16(), None if other_obs is None else other_obs.bfloat16()
        old = self.policy.head.kind(*(data[f"old_{name}"] for name in self.policy.head.kind._fields))
        rollout = Samples(
            action=data["action"],
            old=old,
            log_prob=old.log_prob(data["action"]),
            value=outputs[:-1],  # the critic's own, whatever it meant: clip_value_loss limits how far that moves
            advantage=advantages,
            returns=returns,
            weight=weight,
            actor_obs=actor_obs,
            critic_obs=other_obs,
            raw={group: data[f"raw_{group}"] for group in self.raw_groups},
            keep=keep[:-1] if self.recurrent else None,
        )
        laid_out = rebuilt(rollout, lambda x: sequences(x, self.length))
        begun = (tuple(self.starts.data.values()), states)  # [T / L, N, layers, hidden]
        actor, critic = (tuple(x.flatten(0, 1).transpose(0, 1) for x in parts) for parts in begun)
        return laid_out._replace(actor_state=actor, critic_state=critic), about

    def _minibatch(self, samples: Samples) -> Metrics:
        """Take one optimizer step on sequences ``[L, B, ...]``, unless it is to be skipped."""
        config = self.config
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss, metrics = self._loss(self, samples)
        loss.backward(self.optimizers[0].one)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            allowed = (loss.abs() < torch.inf) & ~self.stopped  # which NaN fails; isfinite takes four operators
            if config.lr_schedule == "adaptive":
                # Only where a step is allowed: while steps are skipped the KL stands still.
                rate = rate_by_kl(self.learning_rate, metrics["policy/kl"], config)
                self.learning_rate.copy_(torch.where(allowed, rate, self.learning_rate))
            if config.target_kl is not None:
                self.stopped = self.stopped | (metrics["policy/kl"] > config.target_kl)
                allowed = allowed & ~self.stopped
            results = [optimizer.step(allowed) for optimizer in self.optimizers]
            norm, taken = results[0]
            if len(results) > 1:
                norms, taken = torch.stack([torch.stack(result) for result in results]).unbind(1)
                norm, taken = norms.norm(), taken.amin()
            metrics["policy/gradient_norm"], metrics["applied"] = norm, taken
        return metrics

    def _evaluate(self, samples: Samples) -> tuple[Tensor, Metrics]:
        """The loss on sequences ``[L, B, ...]``, and what to log of it."""
        config, keep, raw = self.config, samples.keep, samples.raw
        critic_obs = samples.actor_obs if samples.critic_obs is None else samples.critic_obs
        (distribution, _), (value, _) = side_by_side(  # value [L, B]
            lambda: self.policy.distribution(samples.actor_obs, samples.actor_state, keep, raw),
            lambda: self.critic(critic_obs, samples.critic_state, keep, raw),
            samples.advantage.numel(),
        )
        if config.burn_in > 0 and self.recurrent:
            # A deviation for all states [A] has no steps to leave out.
            parts = (part[config.burn_in :] if part.dim() > 1 else part for part in distribution)
            distribution = type(distribution)(*parts)
            value = value[config.burn_in :]
            samples = samples._replace(actor_state=(), critic_state=())  # which the networks have read
            samples = rebuilt(samples, lambda x: x[config.burn_in :])
        loss, metrics = ppo_loss(
            distribution,
            value,
            samples,
            clip_range=config.clip_range,
            value_coef=config.value_coef,
            entropy_coef=self.entropy_coef,
            clip_value_loss=config.clip_value_loss,
            standardize_advantage=config.normalize_advantage == "minibatch",
            bounds=(config.bounds_loss_coef, config.bounds_loss_limit),
        )
        return loss, {name: value.detach() for name, value in metrics.items()}

    def moved(self) -> list[Tensor]:
        """The statistics of observations; see ``agent.Agent``."""
        return [*self.policy.normalizer.buffers(), *self.critic.normalizer.buffers()]

    def recording(self) -> dict[str, Tensor]:
        """The latest raw observations ``[T, M, O]`` by group and ``done`` ``[T, M]`` of the first few envs."""
        return self.trace.latest(self.iteration * self.num_steps)

    def state_dict(self) -> dict[str, Any]:
        """Everything that learning depends on between two iterations."""
        return {
            "policy": self.policy.state_dict(),
            "critic": self.critic.state_dict(),
            "value_normalizer": self.value_normalizer.state_dict() if self.value_normalizer else None,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "learning_rate": self.learning_rate,
            "iteration": self.iteration,
            "timeout_bootstrap": self.timeout_bootstrap,
            "critic_state": list(self.critic_state),
            "trace": self.trace.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``'s result."""
        self.policy.load_state_dict(state["policy"])
        self.critic.load_state_dict(state["critic"])
        if self.value_normalizer is not None:
            self.value_normalizer.load_state_dict(state["value_normalizer"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.learning_rate.copy_(state["learning_rate"])
        self.iteration = state["iteration"]
        self.timeout_bootstrap = state["timeout_bootstrap"]
        for mine, loaded in zip(self.critic_state, state["critic_state"], strict=True):
            mine.copy_(loaded)
        self.trace.load_state_dict(state["trace"])
