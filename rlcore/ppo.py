"""Proximal Policy Optimization (Schulman et al. 2017, arXiv:1707.06347) for batches of environments.

Nothing is read by the host, and no shape depends on data: learning rate, early stop and skipped steps are tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlcore.anchors import Anchors
from rlcore.arrays import none_set
from rlcore.balance import balanced, select_rows, trace_rows
from rlcore.capture import Captured, compiled, matmul_precision, side_by_side
from rlcore.classifier import told_column
from rlcore.config import settings_of
from rlcore.critics import Critic
from rlcore.distributed import share_gradients, weights_of
from rlcore.distributions import unstacked
from rlcore.env import VecEnv, spec_of, want_final_obs
from rlcore.faults import broken_observations, far_numbers, fault_groups, lost_steps, rollout_faults
from rlcore.learn import Progress, Report, learn
from rlcore.losses import cost_penalty, ppo_loss, signal_loss
from rlcore.normalization import broken_rewards, denormalized
from rlcore.observations import as_stored, concatenate, unread
from rlcore.optimizer import FlatAdam, step_all
from rlcore.policies import build_policy
from rlcore.ppo_config import PPOConfig as PPOConfig
from rlcore.ppo_config import rate_by_kl, scheduled, sequences_of
from rlcore.ppo_gradient import written_out
from rlcore.recurrent import cleared, state_lost
from rlcore.returns import bootstrap_values, explained_variance, gae, room_for_timeouts, scaled_reward, standardized
from rlcore.rollout import Rollout, Samples, make_trace, shuffled, to_sequences, without_burn_in
from rlcore.safety import Safety
from rlcore.safety_critic import SafetyCritic
from rlcore.signals import SignalColumns, check_signals
from rlcore.statistics import means_of_applied
from rlcore.types import Metrics, Obs, State, Step, Timeout


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
        check_signals(env, config.signals, config.safety)
        self.safety = Safety(config.safety, env.num_envs, config.normalize_advantage != "none").to(device)
        known = (config.gamma, config.gae_lambda, config.normalize_value)
        self.signals = SignalColumns(config.signals, *known, *self.safety.columns).to(device)
        self.critic = Critic(spec, config, self.policy, len(self.signals)).to(device)
        for mlp in (self.policy.trunk.mlp, self.critic.trunk.mlp):
            mlp.precision, mlp.fused = config.precision, config.precision != "fp32" and "compile" not in config.mode
        self.recurrent = bool(self.policy.initial_state(1) or self.critic.initial_state(1))
        self.length, self.num_sequences = sequences_of(config, env.num_envs, self.recurrent)
        finals = (*self.critic.groups, *self.critic.raw_shapes) if config.timeout_bootstrap == "final_obs" else ()
        want_final_obs(env, finals)
        self.critic_state = self.critic.initial_state(env.num_envs)  # where the next rollout begins
        few = room_for_timeouts(config.num_steps, env.max_episode_length)
        self.num_timeouts = env.num_envs * min(config.num_steps, few)
        self.value_normalizer, self.balance = balanced(config, env)
        actor = [p for p in self.policy.parameters() if p.requires_grad]  # the gate's are frozen
        critic = [p for p in self.critic.parameters() if not any(p is q for q in actor)]  # the trunk may be shared
        self.learning_rate = torch.tensor(config.learning_rate, device=device)
        self.schedules, self.loss_settings = scheduled(config, spec, self.learning_rate)
        groups = [actor + critic] if config.grad_clip == "joint" else [actor, critic]
        self.optimizers = [FlatAdam(group, self.learning_rate, config.max_grad_norm) for group in groups]
        self.safety_critic = SafetyCritic(self.policy, config.safety, env, config.num_steps, config.mode)
        self.rollout = Rollout(config.num_steps, env.num_envs, device)
        self.starts = Rollout(config.num_steps // self.length, env.num_envs, device)  # states where sequences begin
        self.trace = make_trace(env.num_envs, device, images=bool(spec.image_shapes))
        self.traced = trace_rows(env, 8)
        self.timeout_bootstrap: Timeout = config.timeout_bootstrap
        self.fault_groups = fault_groups(self.policy.groups, self.critic.groups)
        self.anchors, self.mode = Anchors(self), config.mode
        self.advantages: tuple[Tensor, ...] = ()  # of the latest rollout, and weights, [T, N] each: see ``env.Scored``
        self.raw_groups = tuple(dict.fromkeys((*self.policy.raw_shapes, *self.critic.raw_shapes)))
        self.notes = unread(spec, (*self.policy.groups, *self.critic.groups, *self.raw_groups))
        self._begin = Captured(self._begin_sequence, config.mode, device)
        self._act = Captured(self._choose, config.mode, device, before=self.anchors.check_policy)
        self._record = Captured(self._store, config.mode, device)
        self._update = Captured(self._improve, config.mode, device)
        own = type(self)._evaluate is not PPO._evaluate
        self._gradient = None if own else written_out(self.policy, self.critic, self.optimizers, self.loss_settings)
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
        self.iteration = 0 if progress is None else self.iteration
        return learn(
            self.env, self, num_iterations, progress=progress, on_report=on_report, on_iteration=on_iteration,
            should_stop=should_stop, seed=self.seed if seed is None else seed, capture_env=capture_env,
        )  # fmt: skip

    def initial_state(self) -> State:
        """Zero state of the actor for every env; the critic's state and the rollout, kept here, start anew as well."""
        for part in self.critic_state:
            part.zero_()  # in place: recordings know these tensors
        self.step = 0  # a rollout may have been broken off
        self.safety.begin()
        self.safety_critic.cut()
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
        actor_obs, critic_obs = (concatenate(obs, part.groups) for part in (self.policy, self.critic))
        self.policy.normalizer.update(actor_obs)
        if self.critic.normalizer is not self.policy.normalizer:
            self.critic.normalizer.update(critic_obs)
        # Stored as the network saw them: the statistics move on, and the ratio of the first minibatch must be 1.
        # What cannot be used is 0 there, an average observation, so that the env gets an action in any case.
        row = dict(zip(("actor_obs", "actor_broken"), self.policy.normalizer.usable(actor_obs), strict=True))
        if self.critic.groups != self.policy.groups:
            row["critic_obs"], row["critic_broken"] = self.critic.normalizer.usable(critic_obs)
        raw = as_stored(obs, self.raw_groups)
        row |= {f"raw_{group}": value for group, value in raw.items()}
        with matmul_precision(self.config.precision):
            sequence = row["actor_obs"]
            if self.recurrent:
                sequence, raw = sequence.unsqueeze(0), {group: value.unsqueeze(0) for group, value in raw.items()}
            distribution, state, task_logits = self.policy.outputs(sequence, state, None, raw)
        distribution = unstacked(distribution) if self.recurrent else distribution
        action = self.policy.sample(distribution, row["actor_obs"])
        row["action"] = action  # its density is computed for a whole rollout at once
        row |= {f"old_{name}": part.expand_as(distribution[0]) for name, part in distribution._asdict().items()}
        self.rollout.write(row | told_column(task_logits))
        self.trace.write(select_rows(obs, self.traced))
        if self.recurrent:
            state = cleared(state, broken_observations(row))
        wanted = self.policy.limit(action, row["actor_obs"])
        return self.safety_critic.act(row["actor_obs"], distribution, wanted), state

    def record(self, obs: Obs, action: Tensor, state: State, step: Step) -> None:
        """Complete the rollout's present row with what the env answered."""
        step = self.safety_critic.record(obs, action, step)
        if self.timeout_bootstrap == "final_obs" and step.final_obs is None:
            self.timeout_bootstrap = "value"
        final_obs = step.final_obs if self.timeout_bootstrap == "final_obs" else None
        log, signals = {} if self.balance is None else self.balance.told(step), self.signals.row(step.signals)
        self._record(step._replace(obs={}, log=log, final_obs=final_obs, signals=signals))
        self.next_obs = {group: step.obs[group].detach() for group in (*self.critic.groups, *self.critic.raw_shapes)}
        self.step = (self.step + 1) % self.num_steps

    @torch.no_grad()
    def _store(self, step: Step) -> None:
        _, reward, terminated, truncated, final_obs, log, valid, signals = step
        reward = scaled_reward(reward, self.config.reward_scale, self.config.reward_clip)
        row = {"reward": reward, "terminated": terminated, "truncated": truncated, **log, **(signals or {})}
        if valid is not None:  # what is no step ends there, so that nothing is carried on to the episode that begins
            row |= {"terminated": terminated | ~valid, "valid": valid}
        done = row["terminated"] | truncated  # [N]
        # What was there before may stay where nothing ended, since nobody reads it.
        if final_obs is not None and not ("final_obs" in self.rollout.data and none_set(done)):
            final = concatenate(final_obs, self.critic.groups)
            row["final_obs"], row["final_broken"] = self.critic.normalizer.usable(final)
            row |= {f"final_raw_{g}": value for g, value in as_stored(final_obs, self.critic.raw_shapes).items()}
        self.rollout.write(row)
        self.trace.write(select_rows({"done": done}, self.traced))
        self.rollout.advance()
        self.trace.advance()

    def update(self) -> Metrics:
        """Learn from a full rollout; the metrics are overwritten by the next call.

        Of these ``rollout/dropped`` is the number of samples that were left out, of ``num_steps * num_envs``, since a
        number that they need is not finite or can only come of a fault; ``faults.culprits`` tells whose it is.

        Raises:
            ConfigError: a setting changes over the run, whose length nobody gave.
        """
        self.schedules.follow(self.iteration, self.num_iterations)
        self.anchors.check()
        self.iteration, self.step = self.iteration + 1, 0  # some steps of a rollout that broke off were counted twice
        return self._update(self.next_obs)  # type: ignore[no-any-return]

    def _improve(self, next_obs: Obs) -> Metrics:
        config = self.config
        with matmul_precision(config.precision):
            batch, about = self._targets(next_obs)
            self.stopped = torch.zeros((), dtype=torch.bool, device=batch.weight.device)
            parts = (part for _ in range(config.num_epochs) for part in shuffled(batch, config.num_minibatches))
            logs = [self._minibatch(samples) for samples in parts]
        metrics = means_of_applied(logs) | about | self.safety_critic.improve()
        return metrics | {"policy/learning_rate": self.learning_rate.clone()} | self.schedules.told()

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
        broken = broken_reward | self.signals.broken(data) if self.signals or self.safety else broken_reward
        lost = lost_steps(broken_obs, broken, next_broken >= 0, final_broken, done, data.get("valid"))
        # A broken observation empties the memory of a recurrent network, as the end of an episode does.
        keep = torch.cat([torch.ones_like(done[:1]), ~(done | broken_obs)]).float().unsqueeze(-1)  # [T + 1, N, 1]
        obs = torch.cat([data.get("critic_obs", data["actor_obs"]), following.unsqueeze(0)])  # [T + 1, N, O]
        seen = as_stored(next_obs, self.critic.raw_shapes)
        raw = {group: torch.cat([data[f"raw_{group}"], value.unsqueeze(0)]) for group, value in seen.items()}
        finals = {} if final_obs is None else {group: data[f"final_raw_{group}"] for group in raw}
        outputs, timeout_values, states = self.critic.unroll(
            obs, final_obs, timed_out, self.num_timeouts, self.critic_state, keep, self.length, raw, finals
        )
        signal_outputs, signal_timeouts = outputs[..., 1:], timeout_values[..., 1:]
        if self.signals:
            outputs, timeout_values = outputs[..., 0], timeout_values[..., 0]
        values, timeout_values = (denormalized(x, self.value_normalizer) for x in (outputs, timeout_values))
        if self.timeout_bootstrap == "none":
            timeout_values = torch.zeros_like(timeout_values)
        next_values = bootstrap_values(values, data["terminated"], data["truncated"], timeout_values)
        values = values[:-1]  # [T, N]
        cut = done | torch.cat([lost[1:], torch.zeros_like(lost[:1])])
        reward = data["reward"].masked_fill(broken_reward, 0.0)
        reward, survival, spent = self.safety.terminate(data, reward)
        advantages, returns = gae(reward, values, next_values, cut, config.gamma, config.gae_lambda, survival)
        of_costs = signal_returns = None
        if self.signals:
            advantages, of_costs, signal_returns = self.signals.targets(
                advantages, data, signal_outputs, signal_timeouts, cut, lost, self.timeout_bootstrap, survival
            )
        learned = ~(lost | state_lost(broken_obs, done, self.length)) if self.recurrent else ~lost
        weight = weights_of(learned)
        self.advantages = (advantages, weight)
        about = {"policy/explained_variance": explained_variance(returns, values, learned)}
        about["rollout/dropped"] = (data.get("valid", torch.ones_like(learned)) & ~learned).sum()
        if self.value_normalizer is not None:
            self.value_normalizer.update(returns.where(learned, torch.nan).reshape(-1, 1))
            returns = self.value_normalizer(returns.unsqueeze(-1)).squeeze(-1)
        about |= rollout_faults(data, broken_reward, final_broken)
        limited = {"actor_far": self.policy.normalizer, "critic_far": self.critic.normalizer}
        about |= far_numbers(limited | {"return_far": self.value_normalizer}, self.env.num_envs)
        own = self.safety_critic.own(learned)  # a replaced action says nothing of the policy
        if of_costs is not None:
            advantages, of_costs, spent = self.safety.weigh(data, advantages, of_costs, own, self.signals.cost_gammas)
        elif self.balance is not None:
            advantages = self.balance(advantages, own, data, about)
        elif config.normalize_advantage == "batch":
            advantages = standardized(advantages, own)
        advantages, of_costs = self.safety_critic.masked(own, advantages, of_costs)
        about |= spent
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
            signal_returns=signal_returns,
            told=data.get("told"),
            cost_advantage=of_costs,
        )
        return to_sequences(rollout, self.length, tuple(self.starts.data.values()), states), about

    def _minibatch(self, samples: Samples) -> Metrics:
        """Take one optimizer step on sequences ``[L, B, ...]``, unless it is to be skipped."""
        config = self.config
        if self._gradient is not None and self._gradient.takes(samples):
            loss, metrics = self._gradient(samples)
        else:
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            loss, metrics = self._loss(self, samples)
            loss.backward(self.optimizers[0].one)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            loss, metrics = share_gradients(self.optimizers, loss, metrics)
            allowed = (loss.abs() < torch.inf) & ~self.stopped  # which NaN fails; isfinite takes four operators
            if config.lr_schedule == "adaptive":
                # Only where a step is allowed: while steps are skipped the KL stands still.
                rate = rate_by_kl(self.learning_rate, metrics["policy/kl"], config)
                self.learning_rate.copy_(torch.where(allowed, rate, self.learning_rate))
            if config.target_kl is not None:
                self.stopped = self.stopped | (metrics["policy/kl"] > config.target_kl)
                allowed = allowed & ~self.stopped
            metrics["policy/gradient_norm"], metrics["applied"] = step_all(self.optimizers, allowed)
        return metrics

    def _evaluate(self, samples: Samples) -> tuple[Tensor, Metrics]:
        """The loss on sequences ``[L, B, ...]``, and what to log of it."""
        config, settings, keep, raw = self.config, self.loss_settings, samples.keep, samples.raw
        critic_obs = samples.actor_obs if samples.critic_obs is None else samples.critic_obs
        (distribution, _, task_logits), (value, _) = side_by_side(  # value [L, B]
            lambda: self.policy.outputs(samples.actor_obs, samples.actor_state, keep, raw, samples.told),
            lambda: self.critic(critic_obs, samples.critic_state, keep, raw),
            samples.advantage.numel(),
        )
        if config.burn_in > 0 and self.recurrent:
            distribution, value, samples = without_burn_in(distribution, value, samples, config.burn_in)
        loss, metrics = ppo_loss(distribution, value[..., 0] if self.signals else value, samples, **settings)
        if self.policy.classifier is not None and task_logits is not None:
            loss = self.policy.classifier.with_loss(loss, metrics, task_logits, samples)
        if samples.signal_returns is not None:
            metrics["loss/signal_value"] = signal_loss(value[..., 1:], samples.signal_returns, samples.weight)
            loss = loss + config.value_coef * metrics["loss/signal_value"]
        if samples.cost_advantage is not None:
            metrics["loss/penalty"] = cost_penalty(distribution, samples, self.safety.excess, settings["clip_range"])
            loss = loss + config.safety.penalty * metrics["loss/penalty"]
        return loss, {name: value.detach() for name, value in metrics.items()}

    def moved(self) -> list[Tensor]:
        """The statistics of observations; see ``agent.Agent``."""
        return [*self.policy.normalizer.buffers(), *self.critic.normalizer.buffers(), *self.safety_critic.moved()]

    def recording(self) -> dict[str, Tensor]:
        """The latest raw observations ``[T, M, O]`` by group and ``done`` ``[T, M]`` of the first few envs."""
        return self.trace.latest(self.iteration * self.num_steps)

    def state_dict(self) -> dict[str, Any]:
        """Everything that learning depends on between two iterations."""
        return {
            **{name: part.state_dict() for name, part in self._parts().items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "learning_rate": self.learning_rate,
            "iteration": self.iteration,
            "timeout_bootstrap": self.timeout_bootstrap,
            "critic_state": list(self.critic_state),
            "trace": self.trace.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``'s result."""
        for name, part in self._parts().items():  # others than these are there since version 0.2
            always = name in ("policy", "critic", "value_normalizer")
            part.load_state_dict(state[name] if always else state.get(name, {}))
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.learning_rate.copy_(state["learning_rate"])
        self.iteration, self.timeout_bootstrap = state["iteration"], state["timeout_bootstrap"]
        for mine, loaded in zip(self.critic_state, state["critic_state"], strict=True):
            mine.copy_(loaded)
        self.trace.load_state_dict(state["trace"])

    def _parts(self) -> dict[str, Any]:
        """What has a state of its own, by its name in ``state_dict``."""
        names = ("policy", "critic", "value_normalizer", "balance", "signals", "safety", "safety_critic")
        return {name: part for name in names if (part := getattr(self, name)) is not None}
