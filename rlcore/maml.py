"""Model-agnostic meta-learning: a policy that a few steps of policy gradient fit to a task it has not seen.

MAML (Finn et al. 2017, arXiv:1703.03400) with the surrogates of ProMP (Rothfuss et al. 2019, arXiv:1810.06784), step
sizes that are learned for each step and each tensor (MAML++, Antoniou et al. 2019, arXiv:1810.09502; Meta-SGD, Li et
al. 2017, arXiv:1707.09835) and a loss after every step of adaptation and not the last alone (MAML++, section 4). A
context of a few numbers takes steps of its own, or alone does (CAVIA, Zintgraf et al. 2019, arXiv:1810.03642).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlcore.adaptation import TaskNetwork, advantages, joined, surrogate
from rlcore.capture import Captured
from rlcore.config import ConfigError, check, settings_of
from rlcore.dispatch import plain
from rlcore.env import EnvSpec, VecEnv, name_of, spec_of, want_final_obs
from rlcore.family import is_family
from rlcore.learn import Progress, Report, learn
from rlcore.losses import ppo_loss
from rlcore.maml_config import LONGEST
from rlcore.maml_config import MAMLConfig as MAMLConfig
from rlcore.normalization import broken_rewards
from rlcore.observations import concatenate, unread
from rlcore.optimizer import FlatAdam, step_all
from rlcore.policies import ActorPolicy, build_policy
from rlcore.rollout import Rollout, Samples, make_trace
from rlcore.statistics import means_of_applied
from rlcore.types import Metrics, Obs, State, Step, Timeout


class MAML:
    """MAML on an env of a family of tasks.

    ``act`` and ``record`` take turns, ``num_steps`` times, then ``update``; ``learn`` does all of it. Rows
    ``[N]`` are M tasks of N / M neighbors. In a rollout of K + 1 parts of H steps each task's parameters are those of
    the policy in the first part, and adapted once more in each that follows.

    Args:
        env: what to learn on; with several tasks a ``rlcore.family.Family``, whose tasks it draws.
        config: settings.
        seed: for weights, exploration and the env; None leaves PyTorch's generator as it is.
        num_iterations: planned length of the run; nothing depends on it.

    Raises:
        ConfigError: the settings do not fit the env.
    """

    fault_groups: dict[str, Sequence[str]] = {}  # noqa: RUF012  # never changed
    timeout_bootstrap: Timeout = "none"

    def __init__(
        self, env: VecEnv, config: MAMLConfig | None = None, seed: int | None = None, num_iterations: int | None = None
    ) -> None:
        config = settings_of(config, MAMLConfig)
        self.env, self.config, self.seed, self.mode = env, config, seed, config.mode
        self.tasks, self.parts, self.horizon = config.num_tasks, config.adapt_steps + 1, _horizon(env, config)
        self.num_steps, self.step, self.iteration = self.parts * self.horizon, 0, 0
        spec, device = spec_of(env), torch.device(env.device)
        _check_env(env, config, spec)
        if seed is not None:
            torch.manual_seed(seed)
        self.policy = build_policy(spec, config).to(device)
        _check_groups(env, self.policy)
        want_final_obs(env, ())
        self.network = TaskNetwork(self.policy)
        self.context = _context(self.network.parameters[0], config.context_size)
        self.step_sizes = nn.Parameter(_first_sizes(config, len(self.network.parameters)).to(device))
        self.step_sizes.requires_grad_(config.learn_step_sizes)
        weights = torch.linspace(config.early_weight, 1.0, self.parts, device=device)
        self.weights = weights / weights.sum()  # [K + 1], of each part's loss
        learned = [*self.network.parameters, *([self.step_sizes] if config.learn_step_sizes else [])]
        if config.context_size:
            learned.append(self.context)
        self.learning_rate = torch.tensor(config.learning_rate, device=device)
        self.optimizer = FlatAdam(learned, self.learning_rate, config.max_grad_norm)
        self.adapted = [p.detach().expand(self.tasks, *p.shape).clone() for p in self.network.parameters]  # [M, ...]
        self.part = torch.zeros(1, dtype=torch.int64, device=device)  # of the rollout, 0..K
        self.rollout = Rollout(self.num_steps, env.num_envs, device)
        self.trace = make_trace(env.num_envs, device)
        self.notes = unread(spec, self.policy.groups)
        self._everywhere = torch.ones(env.num_envs, dtype=torch.bool, device=device)
        self._act = Captured(self._choose, config.mode, device)
        self._record = Captured(self._store, config.mode, device)
        self._adapt = Captured(self._descend, config.mode, device)
        self._update = Captured(self._improve, config.mode, device)
        if is_family(env):
            env.hold_tasks(env.num_envs // self.tasks)

    def warnings(self, num_iterations: int) -> list[str]:
        """None: every rollout is learned from."""
        return []

    def learn(
        self, num_iterations: int, *, progress: Progress | None = None,
        on_report: Callable[[Report], None] | None = None, on_iteration: Callable[[Progress], None] | None = None,
        should_stop: Callable[[], bool] | None = None, seed: int | None = None, capture_env: bool | None = None,
    ) -> Progress:  # fmt: skip
        """Train until ``num_iterations`` iterations in all; see ``rlcore.learn.learn``."""
        if progress is None:
            self.iteration = 0
        return learn(
            self.env, self, num_iterations, progress=progress, on_report=on_report, on_iteration=on_iteration,
            should_stop=should_stop, seed=self.seed if seed is None else seed, capture_env=capture_env,
        )  # fmt: skip

    def initial_state(self) -> State:
        """Nothing, as the policy has no memory; the rollout, kept here, starts anew."""
        self.step = 0  # a rollout may have been broken off
        self.rollout.rewind()
        return ()

    @torch.no_grad()
    def begin(self) -> None:
        """Give every task the policy as it is before adaptation."""
        self.part.zero_()
        for mine, parameter in zip(self.adapted, self.network.parameters, strict=True):
            mine.copy_(parameter.expand_as(mine))

    def act(self, obs: Obs, state: State) -> tuple[Tensor, State]:
        """Sample actions ``[N, A]`` by each task's own parameters, and write them into the rollout's present row."""
        if self.step == 0:
            self.begin()
        return self._act(obs), ()

    @torch.no_grad()
    def _choose(self, obs: Obs) -> Tensor:
        actor_obs = concatenate(obs, self.policy.groups)
        self.policy.normalizer.update(actor_obs)
        seen, broken = self.policy.normalizer.usable(actor_obs)  # [N, O], as the network sees it; 0 where it cannot
        distribution = self.network(self.adapted, seen.view(self.tasks, -1, seen.shape[1]))  # of [M, N / M, A]
        action = distribution.sample().flatten(0, 1)  # [N, A]
        row = {"obs": seen, "action": action, "sound": broken < 0}
        for name, part in distribution._asdict().items():
            row[f"old_{name}"] = part.expand(self.tasks, len(action) // self.tasks, -1).flatten(0, 1)
        self.rollout.write(row)
        self.trace.write({group: obs[group] for group in self.policy.groups})
        return self.policy.limit(action, seen)

    def renew(self, step: Step) -> Step:
        """Begin new episodes where a part of the rollout ends, on new tasks after the last; see ``learn.learn``."""
        if (self.step + 1) % self.horizon:
            return step
        if self.step + 1 == self.num_steps and is_family(self.env):
            self.env.draw_tasks(self._everywhere)
        return step._replace(obs=self.env.reset(), truncated=torch.ones_like(step.truncated), final_obs=None)

    def record(self, obs: Obs, action: Tensor, state: State, step: Step) -> None:
        """Complete the rollout's present row with what the env answered, and adapt where a part of it is complete."""
        self._record(step._replace(obs={}, log={}, final_obs=None, signals=None))
        self.step = (self.step + 1) % self.num_steps
        if self.step % self.horizon == 0 and self.step > 0:
            self._adapt()

    @torch.no_grad()
    def _store(self, step: Step) -> None:
        done = step.terminated | step.truncated
        row = {"reward": step.reward, "done": done}
        if step.valid is not None:
            row |= {"done": done | ~step.valid, "valid": step.valid}
        self.rollout.write(row)
        self.trace.write({"done": done})
        self.rollout.advance()
        self.trace.advance()

    def _descend(self) -> None:
        """Take each task's next step of adaptation, by the part of the rollout that is complete."""
        data = self._by_task(lambda x: x.index_select(1, self.part))
        samples = _only(self._samples(data), 0)
        sizes = self.step_sizes.detach().index_select(0, self.part).squeeze(0)  # [P]
        for mine, new in zip(self.adapted, self._stepped(self.adapted, sizes, samples, False), strict=True):
            mine.copy_(new)
        self.part += 1

    def _stepped(self, parameters: Sequence[Tensor], sizes: Tensor, samples: Samples, twice: bool) -> list[Tensor]:
        """One step of adaptation, ``theta' = theta - alpha grad L(theta)``: section 2.2 of arXiv:1703.03400.

        L is ``surrogate`` of each task by itself. A context c that is an input of the first layer takes the same step;
        as c is 0 at first and W c + b all that is seen of it, it is kept within b: ``b' = b - alpha dL/db - W (beta
        dL/dc)`` with ``dL/dc = W^T dL/db`` (the bias transformation of Finn et al. 2017, arXiv:1709.04905).

        Args:
            parameters: of each task, ``[M, ...]`` each.
            sizes: alpha, ``[P]`` unless the context alone adapts, and then beta if there is a context.
            samples: ``[M, B]``, collected by the policies with these parameters.
            twice: keep the graph of the gradient, to differentiate it by what the parameters were computed from.
        """
        alpha, beta = self._alpha_beta(sizes)
        moved = list(parameters)
        with torch.enable_grad():
            leaves = moved if twice else [p.detach().requires_grad_() for p in moved]
            loss = surrogate(self.network(leaves, samples.actor_obs), samples)
            adapting = leaves if len(alpha) else leaves[1:2]
            gradients = torch.autograd.grad(loss.sum(), adapting, create_graph=twice)  # tasks share no parameters
        if len(alpha):
            moved = [p - size * slope for p, size, slope in zip(moved, alpha.unbind(), gradients, strict=True)]
        if len(beta):
            by_bias = gradients[1] if len(alpha) else gradients[0]  # [M, H]
            moved[1] = moved[1] - (beta * (by_bias @ self.context)) @ self.context.t()
        return moved

    def _alpha_beta(self, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Step sizes of one step: of each parameter, if these adapt, and of the context, if there is one."""
        context = int(self.config.context_size > 0)
        return sizes[: len(sizes) - context], sizes[len(sizes) - context :]

    def update(self) -> Metrics:
        """Learn from a full rollout; the metrics are overwritten by the next call."""
        self.iteration, self.step = self.iteration + 1, 0
        return self._update()  # type: ignore[no-any-return]

    def _improve(self) -> Metrics:
        data = self._by_task(lambda x: x)
        samples = self._samples(data)
        logs = [self._epoch(samples) for _ in range(self.config.num_epochs)]
        steps = data.get("valid", torch.ones_like(data["learned"]))
        about = {"rollout/dropped": (steps & ~data["learned"]).sum()}
        episodes = data["done"].sum((0, 2, 3)).clamp(min=1)  # [K + 1]
        returns = data["reward"].where(data["learned"], 0.0).sum((0, 2, 3)) / episodes
        about |= {f"adapt/return_{k}": value for k, value in enumerate(returns.unbind())}
        for k, sizes in enumerate(self.step_sizes.detach(), 1):
            alpha, beta = self._alpha_beta(sizes)
            about |= {f"adapt/step_size_{k}": alpha.mean()} if len(alpha) else {}
            about |= {f"adapt/context_step_size_{k}": beta[0]} if len(beta) else {}
        return means_of_applied(logs) | about

    def _epoch(self, samples: Samples) -> Metrics:
        self.optimizer.zero_grad()
        loss, metrics = self.meta_loss(samples)
        loss.backward(self.optimizer.one)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            allowed = loss.abs() < torch.inf
            metrics["policy/gradient_norm"], metrics["applied"] = step_all([self.optimizer], allowed)
        return metrics

    def meta_loss(self, samples: Samples) -> tuple[Tensor, Metrics]:
        """The loss of the policy before adaptation by what it and its adapted ones collected, ``[K + 1, M, B]``.

        What equation 1 of arXiv:1703.03400 descends, with the clipped surrogate of PPO as in ProMP (section 6 there),
        of every part of the rollout, by weight. Each is of the parameters that the steps before it lead to from the
        present ones.
        """
        parameters = [p.expand(self.tasks, *p.shape) for p in self.network.parameters]
        total, logs = torch.zeros_like(self.weights[0]), []
        for k, weight in enumerate(self.weights.unbind()):
            part = _only(samples, k)
            distribution = self.network(parameters, part.actor_obs)
            loss, metrics = plain(ppo_loss)(
                distribution, part.value, part, clip_range=self.config.clip_range, value_coef=0.0,
                entropy_coef=self.config.entropy_coef, clip_value_loss=False,
            )  # fmt: skip
            total = total + weight * loss
            logs.append({name: value.detach() for name, value in metrics.items() if name != "loss/value"})
            if k < self.config.adapt_steps:
                sizes = self.step_sizes[k]
                parameters = self._stepped(parameters, sizes, part, twice=not self.config.first_order)
        means = {name: torch.stack([log[name] for log in logs]).mean() for name in logs[0]}
        return total, means | {"loss/policy": total.detach()}

    def _by_task(self, pick: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The rollout, or some parts of it, ``[H, parts, M, N / M, ...]``."""
        shape = (self.parts, self.horizon, self.tasks, -1)
        return {name: pick(x.view(*shape, *x.shape[2:]).transpose(0, 1)) for name, x in self.rollout.data.items()}

    @torch.no_grad()
    def _samples(self, data: dict[str, Tensor]) -> Samples:
        """What was collected in parts, ready for losses: ``[parts, M, B]`` with advantages by task."""
        learned = data["sound"] & ~broken_rewards(data["reward"])
        learned = data["learned"] = learned & data["valid"] if "valid" in data else learned
        reward = data["reward"].where(learned, 0.0)
        gamma, factor = self.config.gamma, self.config.gae_lambda
        advantage, weight = advantages(data["obs"], reward, data["done"], learned, gamma, factor)
        old = self.policy.head.kind(*(joined(data[f"old_{name}"]) for name in self.policy.head.kind._fields))
        action, none = joined(data["action"]), torch.zeros_like(advantage)
        return Samples(
            action=action, old=old, log_prob=old.log_prob(action), value=none, advantage=advantage, returns=none,
            weight=weight, actor_obs=joined(data["obs"]),
        )  # fmt: skip

    def moved(self) -> list[Tensor]:
        """The statistics of observations; see ``agent.Agent``."""
        return [*self.policy.normalizer.buffers()]

    def recording(self) -> dict[str, Tensor]:
        """The latest raw observations ``[T, M, O]`` by group and ``done`` ``[T, M]`` of the first few envs."""
        return self.trace.latest(self.iteration * self.num_steps)

    def state_dict(self) -> dict[str, Any]:
        """Everything that learning depends on between two iterations."""
        return {
            "policy": self.policy.state_dict(),
            "step_sizes": self.step_sizes.detach(),
            **({"context": self.context.detach()} if self.config.context_size else {}),
            "optimizers": [self.optimizer.state_dict()],
            "iteration": self.iteration,
            "trace": self.trace.state_dict(),
        }

    @torch.no_grad()
    def load_learned(self, state: dict[str, Any]) -> None:
        """Take what was learned from a state, whatever the tasks; further steps are as large as its last."""
        self.policy.load_state_dict(state["policy"])
        sizes = state["step_sizes"]
        self.step_sizes.copy_(sizes[torch.arange(len(self.step_sizes)).clamp(max=len(sizes) - 1)])
        if self.config.context_size:
            self.context.copy_(state["context"])

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``'s result."""
        self.load_learned(state)
        self.step_sizes.copy_(state["step_sizes"])  # which refuses another number of steps
        self.optimizer.load_state_dict(state["optimizers"][0])
        self.iteration = state["iteration"]
        self.trace.load_state_dict(state["trace"])


def _first_sizes(config: MAMLConfig, parameters: int) -> Tensor:
    """Step sizes to begin with, ``[K, parameters + 1]``: without the first where these do not adapt, or the last.

    A context is searched for along few directions, and a size that does not fall goes past it again and again by the
    noise of its gradient: it begins as beta / k in step k (Robbins & Monro 1951, "A stochastic approximation method").
    """
    beta = config.step_size if config.context_step_size is None else config.context_step_size
    alpha = [config.step_size] * parameters * (config.step_size > 0)
    return torch.tensor([alpha + [beta / k] * (config.context_size > 0) for k in range(1, config.adapt_steps + 1)])


def _context(weight: Tensor, size: int) -> nn.Parameter:
    """The columns W ``[H, C]`` of a context in the first layer, drawn as those ``[H, O]`` of the observation are."""
    bound = (weight.shape[1] + size) ** -0.5
    return nn.Parameter(torch.empty(len(weight), size, device=weight.device).uniform_(-bound, bound))


def _only(samples: Samples, k: int) -> Samples:
    """One part ``[M, B, ...]`` of samples ``[K, M, B, ...]``."""
    old = type(samples.old)(*(part[k] for part in samples.old))
    tensors: dict[str, Any] = {name: x[k] for name, x in samples._asdict().items() if isinstance(x, Tensor)}
    return samples._replace(**tensors, old=old)


def _horizon(env: VecEnv, config: MAMLConfig) -> int:
    if config.num_steps is not None:
        return config.num_steps
    length = env.max_episode_length
    remedy = "its episodes are too long for a part of a rollout; set the steps of one, such as 200"
    check(length <= LONGEST, "num_steps", None, f"{name_of(env)}: {remedy}")
    return length


def _check_groups(env: VecEnv, policy: ActorPolicy) -> None:
    remedy = "maml adapts what reads vectors; name groups of those"
    check(not policy.raw_shapes, "actor_obs", [*policy.raw_shapes], f"{name_of(env)}: {remedy}")


def _check_env(env: VecEnv, config: MAMLConfig, spec: EnvSpec) -> None:
    if spec.tasks:
        remedy = "maml learns from one family; give ppo or sac, or one --task with --env.randomize"
        raise ConfigError(f"{name_of(env)} is of several tasks: {remedy}")
    rows = env.num_envs % config.num_tasks
    check(rows == 0, "num_tasks", config.num_tasks, f"it must divide num_envs, which is {env.num_envs}")
    if config.num_tasks > 1 and not is_family(env):
        known = next(iter(getattr(env, "parameters", {})), None)
        remedy = "it has no parameters, see rlcore.env.Randomizable; give it some"
        if known is not None:
            remedy = f"name what differs between its tasks, such as --env.randomize.{known} true"
        raise ConfigError(f"{name_of(env)} is one task, and maml learns from many: {remedy}")
