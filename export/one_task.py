"""One of several tasks out of the policy that has learned them all, as a robot needs it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rlcore.agent import Policy
from rlcore.config import nearest
from rlcore.env import EnvSpec
from rlcore.export.metadata import ExportError
from rlcore.normalization import RunningNormalizer
from rlcore.policies import ActorPolicy, SquashedPolicy
from rlcore.tasks import TASK_GROUP, TaskNormalizer, chosen, numbers_of
from rlcore.types import Obs, State


class OneTask(Policy):
    """A policy of several tasks that does one of them: observations and actions are of the task's own size.

    It is told the task, unless it infers its task anyway.

    Args:
        policy: of several tasks.
        spec: of the env that has them.
        name: of the one.

    Raises:
        ExportError: there is no such task.
    """

    one_hot: Tensor  # [K]

    def __init__(self, policy: ActorPolicy | SquashedPolicy, spec: EnvSpec, name: str) -> None:
        super().__init__()
        self.spec = task_spec(spec, name)
        number = list(spec.tasks).index(name)
        self.policy, self.discrete, self.inferred_tasks = policy, spec.discrete, policy.inferred_tasks
        self.joint_sizes = {group: size for group, size in policy.observation_sizes.items() if group != TASK_GROUP}
        self.observation_sizes = {group: self.spec.observation_sizes[group] for group in self.joint_sizes}
        one_hot = nn.functional.one_hot(torch.tensor(number), len(spec.tasks)).float()
        self.register_buffer("one_hot", one_hot, persistent=False)
        if isinstance(policy.normalizer, TaskNormalizer) and policy.normalizer.all_normalized:
            own = [range(self.observation_sizes[group]) for group in self.joint_sizes]
            starts = [sum(list(self.joint_sizes.values())[:i]) for i in range(len(own))]
            columns = torch.tensor([start + column for start, part in zip(starts, own, strict=True) for column in part])
            mean, var = (part.detach().cpu()[columns] for part in policy.normalizer.statistics_of(number))
            epsilon = policy.normalizer.statistics.epsilon
            self.normalizer = RunningNormalizer(len(columns), epsilon)  # for what a file says of its inputs
            self.normalizer.mean.copy_(mean)
            self.normalizer.var.copy_(var)
            self.normalizer.count.fill_(1)
        if policy.tasks is not None and not self.spec.discrete:
            size = numbers_of(self.spec)
            self.action_scale, self.action_bias = policy.tasks.scale[number, :size], policy.tasks.bias[number, :size]

    def initial_state(self, num_envs: int) -> State:
        """See ``Policy.initial_state``."""
        return self.policy.initial_state(num_envs)

    def forward(self, obs: Obs, state: State = ()) -> tuple[Tensor, State]:
        """Map the task's own observations to its own actions: ``[N, A]``, or choices ``[N]`` or ``[N, parts]``."""
        action, state = self.policy(self._joint(obs), state)
        return self._own(action), state

    def inferring(self, obs: Obs, state: State = ()) -> tuple[Tensor, Tensor, State]:
        """See ``Policy.inferring``."""
        action, probability, state = self.policy.inferring(self._joint(obs), state)
        return self._own(action), probability, state

    def _joint(self, obs: Obs) -> Obs:
        joint: Obs = {}
        for group, size in self.joint_sizes.items():
            own, missing = obs[group], size - self.observation_sizes[group]
            joint[group] = torch.cat([own, own.new_zeros(own.shape[0], missing)], -1) if missing else own
        first = next(iter(joint.values()))
        joint[TASK_GROUP] = self.one_hot.expand(first.shape[0], -1)
        return joint

    def _own(self, action: Tensor) -> Tensor:
        if self.discrete:
            return action
        action = action[:, : numbers_of(self.spec)]
        return chosen(action, self.spec) if self.spec.discrete else action


def task_spec(spec: EnvSpec, name: str) -> EnvSpec:
    """The spec of one of several tasks.

    Raises:
        ExportError: there is no such task.
    """
    if not spec.tasks:
        raise ExportError(f"--for-task is '{name}', and the policy is for one task, {spec.task}; leave it out")
    if name not in spec.tasks:
        raise ExportError(f"--for-task: the policy has no task '{name}'; {nearest(name, spec.tasks)}")
    return spec.tasks[name]


def recording_of(recording: Mapping[str, Tensor], spec: EnvSpec, name: str) -> dict[str, Tensor] | None:
    """Of a recording of several tasks what is of one, without what pads it; None where it has nothing of it."""
    rows = recording[TASK_GROUP][0].argmax(-1) == list(spec.tasks).index(name)  # [M]
    if not rows.any():
        return None
    sizes = spec.tasks[name].observation_sizes
    own = {group: recording[group][:, rows, :size].clone() for group, size in sizes.items() if group in recording}
    return {**own, "done": recording["done"][:, rows].clone()}
