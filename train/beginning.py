"""Training that begins with the weights of another run: which are taken, what keeps still, and for how long."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlcore.checkpoint import OF_A_RUN, CheckpointError, fitting, load_checkpoint, refuse_broken_state
from rlcore.config import ConfigError, from_dict, nearest
from rlcore.distributions import GaussianHead
from rlcore.env import EnvSpec
from rlcore.train.algorithms import find
from rlcore.train.config import InitConfig, TrainConfig, read_config
from rlcore.train.importers.placing import PARTS, optimizers_of, raw_std, tensors_of
from rlcore.train.importers.weights import Piece, shape_text
from rlcore.train.run import locate

_CRITIC = ("critic", "critics", "target_critics", "value_normalizer", "critic_normalizer")
_STILL = 1e15
"""Numbers that statistics are said to be of, so that no further ones change them."""

_SHOWN = 6
"""Names in a line."""


def source_of(path: Path) -> tuple[Path, TrainConfig]:
    """The checkpoint that ``init_from`` means, and the configuration to begin with: its run's, on any device.

    Raises:
        FileNotFoundError: there is no such run or checkpoint.
        CheckpointError: it cannot be read.
    """
    _, checkpoint = locate(path, "best")
    content = load_checkpoint(checkpoint, needed=OF_A_RUN)
    with fitting(checkpoint):
        config = read_config(content["config"], source=str(checkpoint))
    return checkpoint, dataclasses.replace(
        config, device="auto", threads=None, name=None, runs_dir="runs", init_from=None, init=InitConfig()
    )


@torch.no_grad()
def take_weights(agent: Any, config: TrainConfig) -> list[str]:
    """Put the weights of ``init_from`` into an agent.

    Returns:
        What was taken and what was not, in lines.

    Raises:
        ConfigError: nothing fits, or something that is named does not.
        CheckpointError: the checkpoint cannot be read, or is broken.
    """
    init = config.init
    _, checkpoint = locate(Path(str(config.init_from)), "best")
    content = load_checkpoint(checkpoint, needed=OF_A_RUN)
    saved: dict[str, Any] = content["agent"]
    refuse_broken_state(saved, checkpoint)
    own = tensors_of(agent)
    with fitting(checkpoint):
        there = _same_deviation(agent, content, _saved_tensors(saved), checkpoint)
        there, unseen = _as_read(agent, content, there, checkpoint)
    if not init.critic:
        there = {name: value for name, value in there.items() if name.partition(".")[0] not in _CRITIC}
    if init.normalizer == "fresh":
        there = {name: value for name, value in there.items() if not _of_observations(name)}
    if init.take:
        for prefix in init.take:
            _refuse_unknown("init.take", prefix, there)
        there = {name: value for name, value in there.items() if _begins(name, init.take)}
    taken: list[str] = []
    left: list[str] = []
    done: set[int] = set()
    for name, tensor in own.items():
        if name in there and there[name].shape == tensor.shape:
            if tensor.data_ptr() not in done:
                tensor.copy_(there[name])
            done.add(tensor.data_ptr())
            taken.append(name)
    for name, tensor in own.items():
        if name in taken or tensor.data_ptr() in done:
            continue
        done.add(tensor.data_ptr())  # which others may have under another name
        what = f" (there {shape_text(there[name])})" if name in there else ""
        left.append(f"{name} {shape_text(tensor)}{what}")
        if init.take and name in there:
            raise ConfigError(
                f"init.take: {name} is {shape_text(there[name])} in '{checkpoint}' and {shape_text(tensor)} here; "
                "leave it out, or build the network as there"
            )
    if not any(name.startswith("policy.") or init.take for name in taken):
        raise ConfigError(f"init_from: of '{checkpoint}' nothing fits this policy; first is {left[0]}: see agent.actor")
    if init.normalizer == "still":
        for name, tensor in own.items():
            if _of_observations(name) and name.endswith(".count"):  # whatever normalizer it is, of actor or critics
                tensor.fill_(_STILL)
    if init.optimizer:
        _take_optimizers(agent, saved, left, checkpoint)
    if hasattr(agent, "replay") and not any(line.startswith("policy.") for line in left):
        act_by_policy(agent)
    notes = [f"weights of {checkpoint}: {', '.join(_groups(taken, left)) or 'none'}"]
    if unseen and any(name.startswith("policy.trunk.") for name in taken):
        role = "the context that adapts" if "context" in taken else "0 from now on"
        notes.append(f"inputs there and not here, {', '.join(unseen)}: {role}")
    if left:
        more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        notes.append(f"begun anew: {', '.join(left[:_SHOWN])}{more}")
    return notes


def act_by_policy(agent: Any) -> None:
    """Fill a replay memory by the policy, and not with uniform actions, as an untrained one does."""
    agent.steps.fill_(-(-agent.config.learning_starts // agent.env.num_envs))
    agent.began.copy_(agent.steps)


class Held:
    """What keeps still in an agent: parts for good, and all but the critic in the first iterations.

    Args:
        agent: before anything of it is recorded as a graph.
        init: settings.

    Raises:
        ConfigError: a part is unknown, or the algorithm's optimizer is one of its own.
    """

    def __init__(self, agent: Any, init: InitConfig) -> None:
        self.agent, self.init = agent, init
        if not init.freeze and not init.critic_warmup:
            return
        own = tensors_of(agent)
        self.optimizers = optimizers_of(agent)
        learned = {p.data_ptr() for optimizer in self.optimizers for p in optimizer.parameters}
        names = {name: tensor for name, tensor in own.items() if tensor.data_ptr() in learned}
        if not names:
            raise ConfigError("init.freeze: this algorithm has an optimizer of its own; leave it and critic_warmup out")
        for prefix in init.freeze:
            _refuse_unknown("init.freeze", prefix, names)
        self.frozen = [tensor for name, tensor in names.items() if _begins(name, init.freeze)]
        critic = {tensor.data_ptr() for name, tensor in names.items() if name.partition(".")[0] in _CRITIC}
        trunk = {tensor.data_ptr() for name, tensor in names.items() if name.startswith("policy.")}
        self.others = [t for t in names.values() if t.data_ptr() not in critic or t.data_ptr() in trunk]

    def begin(self, iteration: int) -> None:
        """Hold what is to be held after so many iterations."""
        if not self.init.freeze and not self.init.critic_warmup:
            return
        warm = iteration < self.init.critic_warmup
        rate = getattr(self.agent, "learning_rate", None)
        # The adaptive rate of PPO follows how far the policy moves, which it does not.
        self.rate = rate.clone() if warm and isinstance(rate, Tensor) and hasattr(self.agent, "rollout") else None
        for optimizer in self.optimizers:
            optimizer.hold([*self.frozen, *self.others] if warm else self.frozen, self.rate)

    def after(self, iteration: int) -> None:
        """Let go of the policy once the critic has learned for long enough."""
        if not 0 < iteration <= self.init.critic_warmup:
            return
        if self.rate is not None:
            self.agent.learning_rate.copy_(self.rate)
        if iteration == self.init.critic_warmup:
            for optimizer in self.optimizers:
                optimizer.hold(self.frozen)
                if not self.init.optimizer:  # its count of steps is not that of what kept still
                    optimizer.reset()


def _saved_tensors(saved: dict[str, Any]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for part in PARTS:
        value = saved.get(part)
        if isinstance(value, Tensor):
            found[part] = value
        elif isinstance(value, dict):
            found |= {f"{part}.{name}": tensor for name, tensor in value.items() if isinstance(tensor, Tensor)}
    return found


def _of_observations(name: str) -> bool:
    return name.startswith(("policy.normalizer.", "critic.normalizer.", "critic_normalizer."))


def _begins(name: str, prefixes: Sequence[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _refuse_unknown(key: str, prefix: str, names: Collection[str]) -> None:
    if not any(_begins(name, [prefix]) for name in names):
        parts = {".".join(name.split(".")[:depth]) for name in names for depth in (1, 2, 3)}
        raise ConfigError(f"{key}: there is no '{prefix}'; {nearest(prefix, sorted(parts))}")


def _policy_of(content: dict[str, Any], checkpoint: Path) -> Any:
    """The other run's policy, as it was before it learned."""
    config = read_config(content["config"], source=str(checkpoint))
    return find(config.algo).policy(from_dict(EnvSpec, content["spec"], f"{checkpoint}: spec"), config.agent)


def _as_read(
    agent: Any, content: dict[str, Any], there: dict[str, Tensor], checkpoint: Path
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights and statistics of the inputs that this policy has, of one that reads more groups; and these groups.

    What it reads in addition are the columns of MAML's context, if there are as many: what that policy was told, this
    one is to find out by its steps.
    """
    own = tensors_of(agent)
    if all(there[name].shape == tensor.shape for name, tensor in own.items() if name in there):
        return there, []
    mine, theirs = (getattr(p, "observation_sizes", {}) for p in (agent.policy, _policy_of(content, checkpoint)))
    unseen = [group for group in theirs if group not in mine]
    if not unseen or any(theirs.get(group) != size for group, size in mine.items()):
        return there, []
    start = dict(zip(theirs, itertools.accumulate(theirs.values(), initial=0), strict=False))
    columns = {group: torch.arange(start[group], start[group] + size) for group, size in theirs.items()}
    kept, others = (torch.cat([columns[group] for group in groups]) for groups in (mine, unseen))
    found = dict(there)
    for name, tensor in own.items():
        value = there.get(name, tensor)
        reads = name.startswith(("policy.normalizer.", "policy.trunk.")) and value.dim() > 0
        if not reads or value.shape[-1] != sum(theirs.values()) or tensor.shape[-1] != len(kept):
            continue
        found[name] = value[..., kept.to(value.device)]
        if name.startswith("policy.trunk.") and "context" not in there:
            found["context"] = value[..., others.to(value.device)]
    return found, unseen


def _same_deviation(
    agent: Any, content: dict[str, Any], there: dict[str, Tensor], checkpoint: Path
) -> dict[str, Tensor]:
    """Write the deviation as this agent learns it, where the settings of the other run have it otherwise."""
    name, head = "policy.head.raw_std", getattr(agent.policy, "head", None)
    if name not in there or not isinstance(head, GaussianHead) or head.raw_std is None:
        return there
    policy = _policy_of(content, checkpoint)
    policy.load_state_dict(content["agent"]["policy"])
    before = policy.head
    same = ("std_type", "min_std", "max_std", "sharpness")
    if there[name].shape != head.raw_std.shape or all(getattr(before, s) == getattr(head, s) for s in same):
        return there
    std = before(torch.zeros(1, before.actions)).std
    std = std.clamp(1.01 * head.min_std, head.max_std)
    return {**there, name: raw_std(head, Piece(name, std), str(checkpoint)).value}


def _take_optimizers(agent: Any, saved: dict[str, Any], left: Sequence[str], checkpoint: Path) -> None:
    if left:
        raise ConfigError(
            f"init.optimizer: not all weights are those of '{checkpoint}', such as {left[0]}; leave it out"
        )
    with fitting(checkpoint, "its optimizer is another's; leave init.optimizer out"):
        names = [name for name in vars(agent) if name.endswith(("optimizer", "optimizers")) and name in saved]
        for name in names:
            mine, theirs = getattr(agent, name), saved[name]
            pairs = zip(mine, theirs, strict=True) if isinstance(mine, list) else [(mine, theirs)]
            for optimizer, state in pairs:
                optimizer.load_state_dict(state)
        if not names:
            raise CheckpointError(f"checkpoint '{checkpoint}' has no state of an optimizer; leave init.optimizer out")
        if isinstance(saved.get("learning_rate"), Tensor):
            agent.learning_rate.copy_(saved["learning_rate"])


def _groups(taken: Iterable[str], left: Sequence[str]) -> list[str]:
    """Names of parts that were taken whole, else those of their tensors."""
    open_parts = {".".join(line.split(" ")[0].split(".")[:2]) for line in left}
    names = [".".join(name.split(".")[:2]) for name in taken]
    whole = [name if name not in open_parts else None for name in names]
    return list(dict.fromkeys(group or name for group, name in zip(whole, taken, strict=True)))
