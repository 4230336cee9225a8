"""What SAC and DDPG share: the order of acting, storing and learning."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlcore.anchors import Anchors
from rlcore.arrays import none_set
from rlcore.balance import select_rows, trace_rows
from rlcore.capture import Captured, matmul_precision
from rlcore.config import ConfigError, check
from rlcore.cost_critics import CostCritics, restore
from rlcore.critics import Critics, set_precision
from rlcore.encoders import random_shift
from rlcore.env import EnvSpec, VecEnv, spec_of, want_final_obs
from rlcore.env_check import refuse_overwritten
from rlcore.exploration import HeldNoise
from rlcore.faults import Latest, broken_steps, far_numbers, fault_groups
from rlcore.learn import Progress, Report, learn
from rlcore.networks import unit_weights
from rlcore.observations import as_stored, concatenate, unread, vectors
from rlcore.off_policy_config import OffPolicyConfig, all_envs, memory, steps_note, warnings
from rlcore.optimizer import NO_LIMIT, FlatAdam, descend, flat, learned
from rlcore.own_network import refuse_state
from rlcore.policies import SquashedPolicy
from rlcore.replay import Batch, Transitions, minibatches
from rlcore.rollout import make_trace
from rlcore.safety_critic import SafetyCritic
from rlcore.schedules import Schedules
from rlcore.signals import SignalConfig, check_signals, chosen
from rlcore.squashed_tasks import return_scale_for
from rlcore.statistics import means_of
from rlcore.tasks import normalizer_for
from rlcore.types import Metrics, Obs, State, Step, Timeout


class OffPolicy:
    """The frame of an algorithm that learns from a replay memory.

    ``act`` and ``record`` take turns, ``num_steps`` times, then ``update``; ``learn`` does all of it. An algorithm
    adds ``_explore`` and ``_gradient_step``.

    Args:
        env: what to learn on.
        config: settings.
        build_policy: from the env's description and the settings to the actor.
        seed: for weights, exploration and the env; None leaves PyTorch's generator as it is.
        num_iterations: planned length of the run, for settings that change over it.
    """

    config: OffPolicyConfig

    def __init__(
        self, env: VecEnv, config: OffPolicyConfig, build_policy: Callable[[EnvSpec, Any], SquashedPolicy],
        seed: int | None, num_iterations: int | None,
    ) -> None:  # fmt: skip
        if seed is not None:
            torch.manual_seed(seed)
        config, spec, device = config.of_rank(), spec_of(env), torch.device(env.device)
        policy = build_policy(spec, config).to(device)
        check_signals(env, config.signals, config.safety)
        self.env, self.config, self.policy, self.device, self.mode = env, config, policy, device, config.mode
        self.num_steps, self.num_iterations, self.iteration, self.seed = config.num_steps, num_iterations, 0, seed
        self.critics = Critics(spec, config, policy).to(device)
        self.critic_groups = self.critics.groups
        self.image_groups = tuple({**policy.raw_shapes, **self.critics.raw_shapes})
        groups = tuple(dict.fromkeys((*policy.groups, *self.critic_groups, *self.image_groups)))
        self.critic_normalizer = policy.normalizer
        if self.critic_groups != policy.groups:
            sizes = vectors(spec, self.critic_groups)
            self.critic_normalizer = normalizer_for(spec, sizes, *config.normalization).to(device)
        refuse_state(policy, self.critics)
        set_precision(config, policy, self.critics)
        self.learning_rate = torch.tensor(config.learning_rate, device=device)
        self.horizon = torch.tensor(float(num_iterations or 1), device=device)  # iterations that the schedule spans
        self.schedules, self.first = Schedules(config.schedules, config, device, learning_rate=self.learning_rate), 0
        self._rates = self.learning_rate.clone(), torch.full_like(self.learning_rate, config.lr_end)
        # These bring weights to unit length, if so configured, so targets are copied afterwards.
        layers = [unit_weights(nn.ModuleList((policy.trunk, policy.head)), config.actor)]
        layers += [unit_weights(nn.ModuleList((self.critics.trunks, self.critics.heads)), config.critic)]
        theirs = set(self.critics.parameters())
        self.actor_optimizer = self._adam([p for p in learned(policy) if p not in theirs], layers[0])
        self.critic_optimizer = self._adam(learned(self.critics), layers[1])
        self._written = self.critics.written_out(self.critic_optimizer)
        self.target_critics = copy.deepcopy(self.critics)
        self.target_critic_buffer = flat(learned(self.target_critics))
        self.target_critics.requires_grad_(False)
        of_costs = (config, self.critics.inputs, env, device, self._adam)
        self.costs = CostCritics(*of_costs) if config.safety.costs else None  # where none has a limit
        self.num_updates = config.num_updates or round(config.update_ratio * config.num_steps * env.num_envs)
        remedy = f"with {env.num_envs} envs and {config.num_steps} steps it comes to no gradient step; raise it"
        check(self.num_updates >= 1, "update_ratio", config.update_ratio, remedy)
        want_final_obs(env, groups if config.timeout_bootstrap == "final_obs" else ())
        self.first_rows = max(-(-config.learning_starts // env.num_envs), config.n_step + 1)
        self.signals = {name: config.signals.get(name, SignalConfig()) for name in config.safety.costs}  # weigh nothing
        self.signals |= {name: signal for name, signal in config.signals.items() if signal.weight != 0}
        weights = [config.reward_scale * signal.weight for signal in self.signals.values()]
        self.signal_weights = torch.tensor(weights, device=device)  # [S], of the reward as it is stored
        self.replay = memory(config, env, spec, groups, self.signals, self.first_rows)
        self.stored = 0  # vector steps in the replay memory since it was empty, as the host knows
        scaled = config.normalize_reward or self.costs is not None
        self.return_scale: Any = return_scale_for(env, config).to(device) if scaled else None
        self.safety_critic = SafetyCritic(policy, config.safety, env, config.num_steps, config.mode)
        self.held = HeldNoise(env.num_envs, policy.actions, config.noise_hold).to(device)
        self.steps = torch.zeros(1, dtype=torch.int64, device=device)  # vector steps, as the device knows
        self.began = torch.zeros_like(self.steps)  # of them, before this run
        self.trace = make_trace(env.num_envs, device, images=bool(spec.image_shapes))
        self.traced = trace_rows(env, 8)
        self.timeout_bootstrap: Timeout = config.timeout_bootstrap
        self.skips = False  # whether the env has steps that are none, see ``Step.valid``
        self.fault_groups, self.broken = fault_groups(policy.groups, self.critic_groups), Latest(device)
        self.anchors = Anchors(self)
        # Which of the gradient steps move the actor is settled when a graph is recorded: one graph for each pattern.
        self._updates = [Captured(self._improve, config.mode, device) for _ in range(config.policy_delay)]
        self._act = Captured(self._choose, config.mode, device, before=self.anchors.check_policy)
        self._record = Captured(self._store, config.mode, device)
        self.notes = self._notes(unread(spec, groups))

    def _notes(self, told: list[str]) -> tuple[str, ...]:
        """What a run prints when it begins; gradient steps last."""
        source = "env" if self.config.action_low is None and self.config.action_high is None else "settings"
        told = [*told, f"actions within {self.policy.bounds_text}, from the {source}"]
        return (*told, steps_note(self.num_updates, f"from step {self.first_rows * all_envs(self.env):,} on"))

    def warnings(self, num_iterations: int) -> list[str]:
        """What makes a run of so many further iterations slow or useless."""
        return warnings(self.config, self.env.num_envs, self.num_updates, self.first_rows - self.stored, num_iterations)

    def learn(
        self, num_iterations: int, *, progress: Progress | None = None,
        on_report: Callable[[Report], None] | None = None, on_iteration: Callable[[Progress], None] | None = None,
        should_stop: Callable[[], bool] | None = None, seed: int | None = None, capture_env: bool | None = None,
    ) -> Progress:  # fmt: skip
        """Train until ``num_iterations`` iterations in all; see ``rlcore.learn.learn``.

        Settings that change over the run reach their end there. Without ``progress`` the run begins anew, its schedules
        included, with what has been learned and stored before; without ``seed`` with the agent's.
        """
        self.num_iterations = num_iterations
        self.horizon.fill_(num_iterations)
        if progress is None:
            self.began.copy_(self.steps)
            self.first = self.iteration
        self.schedules.follow(self.iteration - self.first, num_iterations)
        return learn(
            self.env, self, num_iterations, progress=progress, on_report=on_report, on_iteration=on_iteration,
            should_stop=should_stop, seed=self.seed if seed is None else seed, capture_env=capture_env,
        )  # fmt: skip

    def initial_state(self) -> State:
        """No recurrent state; what is recorded next does not follow what was recorded last."""
        self.replay.cut()
        self.safety_critic.cut()
        if self.return_scale is not None:
            self.return_scale.running.zero_()
        if self.costs is not None:
            self.costs.begin()
        everywhere = torch.ones(self.env.num_envs, dtype=torch.bool, device=self.device)
        self.held.end(everywhere)
        self._end_episodes(everywhere)
        return ()

    @torch.no_grad()
    def act(self, obs: Obs, state: State) -> tuple[Tensor, State]:
        """Choose exploring actions ``[N, A]``, overwritten by the next call."""
        return self._act(obs), state

    def _choose(self, obs: Obs) -> Tensor:
        actor_obs = concatenate(obs, self.policy.groups)
        self.policy.normalizer.update(actor_obs)
        if self.critic_normalizer is not self.policy.normalizer:
            self.critic_normalizer.update(concatenate(obs, self.critic_groups))
        vectors, broken = self.policy.normalizer.usable(actor_obs)  # so that the env gets an action in any case
        self.broken.note(broken)
        with matmul_precision(self.config.precision):
            features = self.policy.encoders(as_stored(obs, self.policy.raw_shapes), vectors)
            action = self._explore(features)  # [N, A]
            action = self.safety_critic.explored(vectors, features, action)
        drawn = torch.rand_like(action)
        warm = self.steps * self.env.num_envs < self.config.learning_starts
        self.steps += 1
        if none_set(warm):
            return action
        uniform = self.policy.stretched(2 * drawn - 1, features)
        return torch.where(warm, uniform, action)

    def _explore(self, features: Tensor) -> Tensor:
        """Choose actions ``[N, A]`` within their bounds for what the actor reads, ``[N, O]``."""
        raise NotImplementedError

    def _end_episodes(self, done: Tensor) -> None:
        """Forget what exploration carries along, where ``done`` ``[N]``."""

    def record(self, obs: Obs, action: Tensor, state: State, step: Step) -> None:
        """Store one vector step.

        Raises:
            ValueError: the env has written its new observations over those that are to be stored.
        """
        refuse_overwritten(obs, step)
        step = self.safety_critic.record(obs, action, step)
        if self.timeout_bootstrap == "final_obs" and step.final_obs is None:
            self.timeout_bootstrap = "value"
        final_obs = step.final_obs if self.timeout_bootstrap == "final_obs" else None
        self.skips |= step.valid is not None
        chosen(self.config.safety.costs, step.signals, "agent.safety.costs")
        signals = chosen(self.signals, step.signals) if self.signals else None
        self._record(obs, action, step._replace(obs={}, log={}, final_obs=final_obs, signals=signals))

    @torch.no_grad()
    def _store(self, obs: Obs, action: Tensor, step: Step) -> None:
        _, reward, terminated, truncated, final_obs, _, valid, signals = step
        reward, kept = reward if self.config.reward_scale == 1 else reward * self.config.reward_scale, obs
        if self.image_groups:
            kept = {**obs, **as_stored(obs, self.image_groups)}
            final_obs = None if final_obs is None else {**final_obs, **as_stored(final_obs, self.image_groups)}
        self.replay.write(kept, action, reward, terminated, truncated, final_obs, signals)
        done = terminated | truncated  # [N]
        if valid is not None:
            self.replay.cut(~valid)
            done = done | ~valid
        if self.return_scale is not None:
            if signals is not None:
                reward = reward + (torch.stack(list(signals.values()), -1) * self.signal_weights).sum(-1)
            self.return_scale.update(reward.masked_fill(self.replay.broken(1)[0], 0.0), done)
            if self.costs is not None:
                self.costs.record(step, done, self.return_scale())
        self.held.end(done)
        self._end_episodes(done)
        self.trace.write(select_rows({**obs, "done": done}, self.traced))
        self.trace.advance()

    def update(self) -> Metrics:
        """Take this iteration's gradient steps, if learning has begun; the metrics are overwritten by the next call.

        Raises:
            ConfigError: a setting changes over the run, whose length nobody gave.
        """
        self.anchors.check()
        self.iteration += 1
        self.stored += self.num_steps
        if self.num_iterations is None and self._schedules():
            raise ConfigError(f"{self._schedules()[0]} needs the length of the run; pass num_iterations")
        early, phase = self.stored < self.first_rows, (self.iteration - 1) * self.num_updates % self.config.policy_delay
        if early and self.costs is not None:
            self.costs.forget()
        metrics: Metrics = self._faults() if early else self._updates[phase](phase)
        self.schedules.follow(self.iteration - self.first, self.num_iterations)
        return metrics

    def _schedules(self) -> list[str]:
        """Settings that change over the run, as an error names them."""
        return ["lr_schedule: 'cosine'"] * (self.config.lr_schedule == "cosine") + self.schedules.by_share

    def _fallen(self) -> Tensor:
        """How far the run has come along half a cosine, a scalar in 0..1."""
        gone = ((self.steps - self.began) / (self.config.num_steps * self.horizon)).clamp(max=1).squeeze(0)
        return (1 - torch.cos(math.pi * gone)) / 2

    def _improve(self, phase: int) -> Metrics:
        config, rows = self.config, self.num_updates
        if config.lr_schedule == "cosine":
            self.learning_rate.copy_(torch.lerp(self._rates[0], self._rates[1], self._fallen()))
        with matmul_precision(config.precision):
            # Drawn at once for all steps of this update, which then read views.
            number = rows * config.batch_size
            transitions = self.replay.sample(number, config.gamma, config.n_step, self.timeout_bootstrap)
            whole = self._batch(transitions)
            logs: list[Metrics] = []
            for i, batch in enumerate(minibatches(whole, rows)):
                with_actor = (phase + i + 1) % config.policy_delay == 0
                logs.append(self._gradient_step(batch, with_actor))
        means = means_of(logs) | self._faults() | self.safety_critic.improve() | self.schedules.told()
        if self.costs is not None:
            means |= self.costs.move(rows)
        if not self.skips:  # where what is no step weighs nothing either, it is not told apart
            means["replay/lost"] = 1 - transitions.weight.mean()
        if config.lr_schedule != "constant":
            means["policy/learning_rate"] = self.learning_rate.clone()
        if self.return_scale is not None and config.normalize_reward:
            means["policy/reward_divisor"] = self.return_scale().mean()
        return means

    def _faults(self) -> Metrics:
        """Steps of this iteration that are left out of learning, and what tells where they come from."""
        broken = self.replay.broken(self.num_steps)  # [num_steps, N]
        limited = {"actor_far": self.policy.normalizer, "critic_far": self.critic_normalizer}
        found = {} if none_set(broken) else broken_steps({"step": broken.int() - 1})
        far = far_numbers(limited, self.env.num_envs) | self.broken.read("actor")
        return {"replay/dropped": broken.sum()} | found | far

    @torch.no_grad()
    def _batch(self, transitions: Transitions) -> Batch:
        actor_obs, critic_obs = self._normalized(transitions.obs)
        next_actor_obs, next_critic_obs = self._normalized(transitions.next_obs)
        reward, weight, shift = transitions.reward, transitions.weight, self.config.random_shift
        if transitions.signals is not None:
            reward = reward + (transitions.signals * self.signal_weights).sum(-1)
        return Batch(
            actor_obs, critic_obs, next_actor_obs, next_critic_obs, transitions.action,
            self.return_scale.divided(reward, transitions.obs) if self.config.normalize_reward else reward,
            transitions.discount, weight / weight.mean().clamp(min=1 / weight.numel()),
            {group: random_shift(transitions.obs[group], shift) for group in self.image_groups},
            {group: random_shift(transitions.next_obs[group], shift) for group in self.image_groups},
            None if self.costs is None else self.costs.scaled(transitions),
        )  # fmt: skip

    def _normalized(self, obs: Obs) -> tuple[Tensor, Tensor]:
        """What actor and critics read of observations."""
        actor_obs = self.policy.normalizer(concatenate(obs, self.policy.groups))
        if self.critic_groups == self.policy.groups:
            return actor_obs, actor_obs
        return actor_obs, self.critic_normalizer(concatenate(obs, self.critic_groups))

    def _gradient_step(self, batch: Batch, with_actor: bool) -> Metrics:
        """Improve the critics on ``[B, ...]``, and the actor if it is due."""
        raise NotImplementedError

    def _critic_output(self, features: Tensor, action: Tensor) -> Tensor:
        """What the critics say of actions ``[B, A]``, for the loss that ``_critic_step`` takes a step down."""
        output = None if self._written is None else self._written.forward(torch.cat([features, action], -1))
        return self.critics.output(features, action) if output is None else self.critics.own(output, features)

    def _critic_step(self, loss: Tensor, value: Tensor) -> Metrics:
        """Take the critics' step down their loss; ``value`` is the mean of what they say."""
        metrics, adam = {"loss/value": loss.detach(), "policy/value": value}, self.critic_optimizer
        known = self._written is not None and self._written.backward(loss)
        return metrics | {"policy/value_gradient_norm": adam.step(loss.detach())[0] if known else descend(adam, loss)}

    def _actor_step(self, loss: Tensor) -> Metrics:
        """Take the actor's step down its loss; the critics' own gradients are not wanted."""
        return {"loss/policy": loss.detach(), "policy/gradient_norm": descend(self.actor_optimizer, loss)}

    def _adam(self, parameters: list[nn.Parameter], unit: Sequence[Tensor] = ()) -> FlatAdam:
        limit = self.config.max_grad_norm
        return FlatAdam(parameters, self.learning_rate, NO_LIMIT if limit is None else limit, unit)

    def moved(self) -> list[Tensor]:
        """Statistics, counters, and the memory's place, whose rows are written over before a draw; finals are lost."""
        parts = self.policy.normalizer, self.critic_normalizer, self.return_scale, self.costs
        found = nn.ModuleList(part for part in parts if part is not None)
        own = [self.steps, self.replay.row, self.replay.size, self.replay.level, *self.safety_critic.moved()]
        return [*found.buffers(), *own]

    def recording(self) -> dict[str, Tensor]:
        """The latest raw observations ``[T, M, O]`` by group and ``done`` ``[T, M]`` of the first few envs."""
        return self.trace.latest(self.iteration * self.num_steps)

    def state_dict(self) -> dict[str, Any]:
        """Everything that learning depends on between two iterations."""
        same = self.critic_normalizer is self.policy.normalizer
        return {
            "policy": self.policy.state_dict(),
            "critics": self.critics.state_dict(),
            "target_critics": self.target_critics.state_dict(),
            "critic_normalizer": None if same else self.critic_normalizer.state_dict(),
            "actor_optimizer": self.actor_optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "iteration": self.iteration,
            "steps": self.steps,
            "began": self.began,
            "stored": self.stored,
            "replay": self.replay.state_dict(self.stored) if self.config.save_buffer else None,
            "timeout_bootstrap": self.timeout_bootstrap,
            "held": self.held.state_dict(),
            "return_scale": None if self.return_scale is None else self.return_scale.state_dict(),
            "costs": None if self.costs is None else self.costs.saved(),
            "safety_critic": self.safety_critic.state_dict(),
            "trace": self.trace.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``'s result; without a saved replay memory, learning waits until a new one is filled."""
        restore(self.costs, state.get("costs"))  # since version 0.2
        names = ["policy", "critics", "target_critics", "actor_optimizer", "critic_optimizer", "held"]
        optional = "critic_normalizer", "return_scale", "safety_critic"
        names += [name for name in optional if state.get(name) is not None]
        for name in names:
            getattr(self, name).load_state_dict(state[name])
        self.iteration = state["iteration"]
        self.first = self.iteration - int(state["steps"] - state["began"]) // self.num_steps  # where the run began
        self.steps.copy_(state["steps"])
        self.began.copy_(state["began"])
        if self.num_iterations is not None:
            self.schedules.follow(self.iteration - self.first, self.num_iterations)
        self.timeout_bootstrap = state["timeout_bootstrap"]
        self.stored = 0 if state["replay"] is None else state["stored"]
        if state["replay"] is not None:
            self.replay.load_state_dict(state["replay"])
        elif state["stored"]:
            first = self.first_rows * all_envs(self.env)
            wait = f"after {first:,} new steps: the replay memory was not saved (save_buffer)"
            self.notes = (*self.notes[:-1], steps_note(self.num_updates, wait))
        self.trace.load_state_dict(state["trace"])
