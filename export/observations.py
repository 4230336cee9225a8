"""What a policy has met: recordings of its observations, their range, and inputs that stood still in training."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlcore.agent import Policy
from rlcore.env import VecEnv
from rlcore.export.metadata import ExportError
from rlcore.normalization import UNUSABLE, GroupNormalizer, RunningNormalizer
from rlcore.observations import as_stored
from rlcore.recurrent import cleared
from rlcore.types import Obs, begins

ENOUGH = 64
"""Finite observations that a recording must have, where it has others, too."""

NEW_STEPS = 256
"""Steps that are recorded anew."""

STILL = 0.1
"""An input stood still where its deviation is under this part of what the normalizer adds to it: what it is then
divided by tells nothing of the input."""

MOVE = 0.05
"""Of what move a still input is warned."""


def group_shapes(policy: Policy) -> dict[str, tuple[int, ...]]:
    """Shape of one observation of each group that a policy reads: vectors first, then what it reads as it comes."""
    return {group: (size,) for group, size in policy.observation_sizes.items()} | dict(policy.raw_shapes)


def finite_part(
    recording: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Obs, NDArray[np.bool_], int]:
    """The observations of a recording that are finite, and below ``UNUSABLE``, on the CPU.

    Args:
        recording: as for ``verify``.
        shapes: the groups that the policy reads, as ``group_shapes`` tells.

    Returns:
        Groups ``[T, M, ...]``, uint8 or else float32, where episodes ended ``[T, M]``, and the number of observations
        left out. If there are such, M is 1: the stretches between them come one after the other, and each ends like an
        episode.

    Raises:
        ExportError: a group is missing, or something has the wrong type or shape.
    """
    obs: Obs = {}
    shape: tuple[int, ...] | None = None
    for group, wanted in shapes.items():
        needs = f"[T, M, {', '.join(map(str, wanted))}]"
        if group not in recording:
            have = ", ".join(map(str, recording))
            raise ExportError(f"the recording lacks observation group '{group}'; it has {have}")
        x = recording[group]
        if not isinstance(x, Tensor):
            raise ExportError(f"the recording's group '{group}' is {type(x).__name__}; give a tensor {needs}")
        x = x.detach().to("cpu", x.dtype if x.dtype == torch.uint8 else torch.float32)  # [T, M, ...]
        if len(wanted) > 1:  # a depth camera that meets nothing, say: the policy reads it as 0
            x = as_stored({group: x}, (group,))[group]
        shape = shape or tuple(x.shape[:2])
        if tuple(x.shape[2:]) != wanted or tuple(x.shape[:2]) != shape or x.numel() == 0:
            raise ExportError(
                f"the recording's group '{group}' has shape {tuple(x.shape)}; the policy needs {needs}, "
                "T and M at least 1 and the same in all groups"
            )
        obs[group] = x
    if shape is None:
        raise ExportError("the policy reads no observation group; nothing can be exported")
    done = recording.get("done", torch.zeros(shape, dtype=torch.bool))
    if not isinstance(done, Tensor) or tuple(done.shape) != shape:
        given = f"shape {tuple(done.shape)}" if isinstance(done, Tensor) else f"type {type(done).__name__}"
        raise ExportError(f"the recording's 'done' has {given}; its observations need a tensor {list(shape)}")
    usable = [(x.flatten(2).abs() < UNUSABLE).all(-1) for x in obs.values() if x.is_floating_point()]  # NaN: false
    finite = torch.stack(usable).all(0) if usable else torch.ones(shape, dtype=torch.bool)  # [T, M]
    ends = done.detach().cpu().bool().clone()
    left_out = int((~finite).sum())
    if left_out:
        ends[:-1] |= ~finite[1:]
        ends[-1] = True
        keep = finite.T  # [M, T]: env after env, so that what follows in time stays together
        obs = {group: x.transpose(0, 1)[keep].unsqueeze(1) for group, x in obs.items()}  # [K, 1, ...]
        ends = ends.T[keep].unsqueeze(1)
    return obs, ends.numpy(), left_out


def too_few(finite: int, left_out: int) -> bool:
    """Whether a recording has lost so many observations that it says little of a policy."""
    return left_out > 0 and finite < ENOUGH


@torch.no_grad()
def record(env: VecEnv, policy: Policy, seed: int | None = None, steps: int = NEW_STEPS) -> dict[str, Tensor]:
    """Let a policy act in an env, and record what it meets in the first few envs, as ``Agent.recording`` returns it.

    Args:
        env: where it acts; it is reset here, and left in the middle of an episode.
        policy: on any device; it is left as it is.
        seed: of the env's reset.
        steps: T.
    """
    policy = copy.deepcopy(policy).to(env.device).eval()
    obs, state = env.reset(seed), policy.initial_state(env.num_envs)
    few = slice(0, min(env.num_envs, 8))
    groups = group_shapes(policy)
    rows: dict[str, list[Tensor]] = {name: [] for name in (*groups, "done")}
    for _ in range(steps):
        action, state = policy(obs, state)
        for group in groups:
            rows[group].append(obs[group][few].clone())
        broken = ~action.isfinite()  # as it comes of an observation that is not, and would spoil a simulator for good
        step = env.step(action.masked_fill(broken, 0))
        done = begins(step)  # [N]
        rows["done"].append(done[few].clone())
        obs, state = step.obs, cleared(state, done | broken.view(len(broken), -1).any(1))
    return {name: torch.stack(values) for name, values in rows.items()}


def observed(policy: Policy, recording: Mapping[str, Tensor] | None) -> dict[str, Any]:
    """What is known of the range of each number of ``obs`` ``[O]``, as properties of the file; empty where nothing is.

    ``observation_mean`` and ``observation_std`` are the normalizer's, over the whole training, and
    ``observation_epsilon`` is what it adds to the latter. ``observation_min`` and
    ``observation_max`` are those of the recording's ``observation_range_samples`` finite observations: the last that
    were met, not all.
    """
    facts: dict[str, Any] = {}
    statistics = _statistics(policy)
    if statistics is not None:
        names = ("observation_mean", "observation_std", "observation_epsilon")
        facts = dict(zip(names, statistics, strict=True))
    if recording is not None and policy.observation_sizes:
        obs, done, _ = finite_part(recording, group_shapes(policy))
        if done.size:
            flat = torch.cat([obs[group] for group in policy.observation_sizes], -1).flatten(0, 1)  # [T * M, O]
            facts |= {
                "observation_min": flat.amin(0),
                "observation_max": flat.amax(0),
                "observation_range_samples": int(done.size),
            }
    return facts


def still_inputs(policy: Policy, terms: Sequence[Mapping[str, Any]]) -> str | None:
    """Say which inputs hardly moved in training, so that a small move later is many deviations; None where none is.

    Args:
        policy: whose normalizer tells; without one there is nothing to say.
        terms: names and slices of the inputs, as ``observation_terms`` in the metadata.
    """
    statistics = _statistics(policy)
    if statistics is None:
        return None
    _, std, epsilon = statistics
    still = std < STILL * epsilon  # [O]
    if isinstance(policy.normalizer, GroupNormalizer):  # the others are not divided
        still &= policy.normalizer.normalized[: len(still)].cpu()
    if not still.any():
        return None
    names: list[str] = []
    for term in terms:
        first, end = term["slice"]
        inside = still[first:end].nonzero().flatten().tolist()
        whole = len(inside) == end - first
        names += (
            [f"{term['group']}/{term['name']}"] if whole else [f"{term['group']}/{term['name']}[{i}]" for i in inside]
        )
    listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    largest = MOVE / float(std[still].min() + epsilon)
    return (
        f"inputs that hardly moved in training: {listed}; to the policy a move of {MOVE} there is {largest:.2g} "
        "standard deviations, which it has never met: let them vary in training, or leave them out"
    )


def _statistics(policy: Policy) -> tuple[Tensor, Tensor, float] | None:
    """Mean and deviation of each input ``[O]``, and what the normalizer adds to the latter; None without any."""
    normalizer = getattr(policy, "normalizer", None)
    if not isinstance(normalizer, RunningNormalizer) or not bool((normalizer.count > 0).any()):
        return None
    size = sum(policy.observation_sizes.values())  # without the task where that is inferred
    mean, var = normalizer.mean[:size].detach().cpu(), normalizer.var[:size].detach().cpu()
    return mean, var.sqrt(), normalizer.epsilon
