"""What is wrong with rewards and with how episodes end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rlcore.train.doctor import bands
from rlcore.train.doctor.findings import Finding, listed, plural, setting
from rlcore.train.doctor.observations import Columns
from rlcore.train.doctor.recording import Recording
from rlcore.train.evaluate import ENDLESS
from rlcore.types import Timeout


def reward_findings(recording: Recording, agent: Any, on_policy: bool) -> Iterator[Finding]:
    """What is wrong with the rewards of a recording, for an agent with these settings."""
    if recording.broken_reward:
        yield Finding(
            severity="error",
            check="reward.nan",
            what=f"the reward is not finite in {plural(recording.broken_reward, 'step')} of single envs",
            value=float(recording.broken_reward),
            why="such steps are left out of learning, and with them what led there",
            remedy="correct it where it is computed, or terminate the episode before",
        )
    reward = _usable(recording)
    low, high = recording.reward_range
    if not len(reward) or low > high:
        return
    if low == high and not bool(recording.terminated.any()):
        yield Finding(
            severity="warning",
            check="reward.constant",
            what=f"the reward was {low:.4g} in all {plural(recording.steps, 'step')} of {recording.env.num_envs:,} "
            "envs, and no episode was terminated",
            value=low,
            why="nothing tells one action from another: the reward is constant, or so sparse that random actions "
            "never meet it",
            remedy="look at what step() returns as reward; or give a reward on the way there, or begin some episodes "
            "near the goal",
        )
        return
    far = list(_outliers(recording))
    yield from far or _returns(recording, agent, on_policy)
    yield from _delayed(recording, float(setting(agent, "gamma", 0.99)))
    yield from _terms(recording)


def _usable(recording: Recording) -> Tensor:
    reward = recording.reward[recording.valid]
    return reward[reward.isfinite()]


def _outliers(recording: Recording) -> Iterator[Finding]:
    going = recording.valid & ~recording.terminated  # the last reward of an episode may be another kind
    reward = recording.reward[going]
    reward = reward[reward.isfinite()]
    if len(reward) < 100:
        return
    distance = float(Columns(reward.view(1, -1, 1)).farthest)
    if distance == 0 and float(reward.median()) != 0:  # the same but for a few
        distance = float((reward - reward.median()).abs().max() / reward.median().abs())
    if distance > bands.OUTLIER:
        value = float(reward[(reward - reward.median()).abs().argmax()])
        yield Finding(
            severity="warning",
            check="reward.outliers",
            what=f"a reward of {value:.4g} is {distance:,.0f} times as far from the median as is usual",
            value=value,
            why="a few steps decide the advantages, the critic's loss and its normalizer for all others; from 10,000 "
            "times on PPO leaves them out",
            remedy="limit the term that it comes from, or --agent.reward-clip",
        )


def discounted(recording: Recording, gamma: float) -> Tensor:
    """Discounted sum of rewards from each step to the end of its episode or of the recording, ``[T, R]``."""
    total, found = torch.zeros(recording.reward.shape[1:]), torch.zeros_like(recording.reward)
    for t in reversed(range(recording.steps)):
        total = recording.reward[t].nan_to_num(0, 0, 0) + gamma * total.masked_fill(recording.done[t], 0)
        found[t] = total
    return found


def _returns(recording: Recording, agent: Any, on_policy: bool) -> Iterator[Finding]:
    gamma = float(setting(agent, "gamma", 0.99))
    scale = float(setting(agent, "reward_scale", 1.0))
    size = scale * float(discounted(recording, gamma).double().square().mean().sqrt())
    if setting(agent, "normalize_value", False) or setting(agent, "normalize_reward", False) or size == 0:
        return
    flag = "--agent.normalize-value True" if on_policy else "--agent.normalize-reward True"
    if size > bands.LARGE_RETURN:
        yield Finding(
            severity="warning",
            check="reward.large",
            what=f"discounted returns are about {size:.3g}, and the critic learns them as they are",
            value=size,
            why="the critic's gradients are as many times larger than meant, and drown or clip those of the policy",
            remedy=f"{flag}, or --agent.reward-scale {scale / size:.1g}",
        )
    elif size < bands.SMALL_RETURN:
        yield Finding(
            severity="note" if on_policy else "warning",
            check="reward.small",
            what=f"discounted returns are about {size:.3g}, and the critic learns them as they are",
            value=size,
            why="the critic hardly has an error to learn from"
            if on_policy
            else "the entropy bonus or noise outweighs what is to be learned",
            remedy=f"{flag}, or --agent.reward-scale {scale / size:.1g}",
        )


def _delayed(recording: Recording, gamma: float) -> Iterator[Finding]:
    """Rewards that only the last steps of an episode can see coming."""
    if len(recording.lengths) < bands.FEW_EPISODES:
        return
    usual = recording.reward.flatten().mode().values
    waits = []
    for length, (t, r) in zip(recording.lengths.tolist(), recording.ends.tolist(), strict=True):
        rewards = recording.reward[t + 1 - length : t + 1, r]
        other = (rewards != usual).nonzero().flatten()
        if len(other):
            waits.append(int(other[0]))
    # Of rewards that mostly differ nothing is usual.
    if not waits or float((recording.reward != usual).float().mean()) > 0.5:
        return
    wait = int(torch.tensor(waits).median())
    if gamma**wait < bands.FORGOTTEN:
        enough = bands.FORGOTTEN ** (1 / wait)
        yield Finding(
            severity="warning",
            check="reward.delayed",
            what=f"the first reward other than {float(usual):.4g} comes after {wait} steps (median), where gamma "
            f"{gamma:g} leaves {gamma**wait:.1g} of it",
            value=float(wait),
            why=f"the horizon of gamma is {_horizon(gamma)}: actions at the start of an episode learn nothing of what "
            "they lead to",
            remedy=f"--agent.gamma {min(0.999, _rounded_up(enough))}, or a reward on the way",
        )


def _rounded_up(gamma: float) -> float:
    """The next value with as many nines as it takes."""
    return next(g for g in (0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999, 1.0) if g >= gamma)


def _horizon(gamma: float) -> str:
    return "without an end" if gamma >= 1 else f"{1 / (1 - gamma):.0f} steps"


def _shares(recording: Recording) -> dict[str, float]:
    """Terms of the reward that the env tells of, by their part in the sum of magnitudes."""
    told = {name: value for name, value in recording.log.items() if "reward" in name.lower() and "/" in name}
    told |= {
        name: float(value.double().nan_to_num(0, 0, 0).mean())
        for name, value in recording.signals.items()
        if "reward" in name.lower()
    }
    total = sum(map(abs, told.values()))
    return {name: value / total for name, value in told.items()} if total else {}


def _terms(recording: Recording) -> Iterator[Finding]:
    shares = _shares(recording)
    nothing = [name for name, share in shares.items() if share == 0]
    largest = max(shares, key=lambda name: abs(shares[name]), default=None)
    if nothing:
        yield Finding(
            severity="note",
            check="reward.term_zero",
            what=f"{listed(nothing)} {'was' if len(nothing) == 1 else 'were'} 0 throughout",
            value=float(len(nothing)),
            why="a term that never counts cannot shape what is learned",
            remedy="none is needed where random actions cannot reach it; else look at its weight and its condition",
        )
    if largest is not None and len(shares) > 1 and abs(shares[largest]) > bands.ONE_TERM:
        yield Finding(
            severity="note",
            check="reward.one_term",
            what=f"{largest} is {abs(shares[largest]):.0%} of the reward",
            value=abs(shares[largest]),
            why="beside it the other terms hardly count",
            remedy="none is needed at the start of learning; else raise the weights of the others",
        )


def reward_facts(recording: Recording, gamma: float) -> str:
    """The line of what rewards are like."""
    reward = _usable(recording).double()
    low, high = recording.reward_range
    if not len(reward):
        return "no finite one"
    size = float(discounted(recording, gamma).double().square().mean().sqrt())
    shares = ", ".join(f"{name} {share:+.0%}" for name, share in _shares(recording).items())
    std = float(reward.std()) if len(reward) > 1 else 0.0
    text = (
        f"mean {float(reward.mean()):.4g}, std {std:.4g}, {low:.4g} to {high:.4g}, discounted returns about {size:.3g}"
    )
    return f"{text}; {shares}" if shares else text


def episode_findings(recording: Recording, bootstrap: Timeout = "final_obs") -> Iterator[Finding]:
    """What is wrong with how episodes end.

    Args:
        recording: of the env.
        bootstrap: what a time-out is worth to the algorithm: where that is nothing, it is a failure in any case, and
            last observations that nobody reads need not be right.
    """
    limit, steps, lengths = recording.env.max_episode_length, recording.steps, recording.lengths
    endless = limit >= ENDLESS
    if not len(lengths):
        yield from _endless(steps, limit, endless)
        return
    mean = float(lengths.double().mean())
    if mean < bands.SHORT_EPISODE and len(lengths) >= bands.FEW_EPISODES:
        yield Finding(
            severity="error",
            check="episode.short",
            what=f"episodes last {mean:.3g} step{'s' * (mean != 1)} on average ({len(lengths):,} of them)",
            value=mean,
            why="there is nothing to come that an action could lead to",
            remedy="look at the conditions of termination: one is true where episodes begin",
        )
        return
    limits = _limits(recording, endless)
    yield from (f for f in limits if bootstrap != "none" or f.check != "episode.timeout_terminated")
    if bootstrap == "final_obs":
        yield from _last_observations(recording)


def _endless(steps: int, limit: int, endless: bool) -> Iterator[Finding]:
    if endless:
        yield Finding(
            severity="note",
            check="episode.endless",
            what=f"the task has no time limit, and no episode ended in {steps:,} steps",
            value=float(steps),
            why="states that are reached late alone are seen by few envs, and evaluations break off",
            remedy="--env.max-episode-length N where the task takes it, if episodes are to end",
        )
    elif steps > limit + 1:
        yield Finding(
            severity="error",
            check="episode.never_ends",
            what=f"no episode ended in {steps:,} steps, and max_episode_length is {limit:,}",
            value=float(steps),
            why="returns and evaluations wait for an end, and the room for time-outs is by that number",
            remedy="count steps in step(), report truncated at the limit and reset those rows; or correct "
            "max_episode_length",
        )
    else:
        yield Finding(
            severity="note",
            check="episode.not_seen",
            what=f"no episode ended in the {steps:,} steps that there was time for, of {limit:,}",
            value=float(steps),
            why="how episodes end was not examined",
            remedy="--seconds N plays for longer",
        )


def _limits(recording: Recording, endless: bool) -> Iterator[Finding]:
    lengths, limit = recording.lengths, recording.env.max_episode_length
    if len(lengths) < bands.FEW_EPISODES:
        return
    cut = recording.limits
    longest = int(lengths.max())
    at_longest = lengths == longest
    alike = float(at_longest.double().mean())
    if not cut.any() and longest > 1 and alike > 0.2 and (alike == 1 or longest == limit) and not _tells_end(recording):
        yield Finding(
            severity="error",
            check="episode.timeout_terminated",
            what=f"{int(at_longest.sum()):,} of {len(lengths):,} episodes end after {longest} steps, all as "
            "terminated, and nothing in the observation tells that the end is near",
            value=alike,
            why="a time limit is no failure: with terminated the critic learns that any state may be worth nothing "
            "(Pardo et al. 2018, arXiv:1712.00378)",
            remedy="report it as truncated, with the last observation as final_obs; or show the time that is left",
        )
    early = cut & (lengths < limit)
    if not endless and bool(early.any()) and float(early.double().sum() / cut.double().sum()) > 0.9:
        own = lengths[early]
        if int(own.min()) == int(own.max()) and len(own) >= bands.FEW_EPISODES:
            yield Finding(
                severity="warning",
                check="episode.limit",
                what=f"time limits cut episodes after {int(own[0])} steps, and max_episode_length is {limit:,}",
                value=float(own[0]),
                why="the room for last observations of time-outs is by that number; what exceeds it is worth the value "
                "of the observation before",
                remedy=f"let max_episode_length be {int(own[0])}",
            )


def _tells_end(recording: Recording) -> bool:
    """Whether some number of the observation lies where it never is otherwise when the last action is chosen."""
    last = torch.zeros_like(recording.done)
    last[tuple(recording.ends.T)] = True
    known = torch.ones_like(last)
    for r in range(last.shape[1]):  # what ends after the recording is not known
        ends = recording.done[:, r].nonzero().flatten()
        known[int(ends[-1]) + 1 if len(ends) else 0 :, r] = False
    for x in recording.obs.values():
        seen = x[:-1]
        at, other = seen[last], seen[known & ~last]
        if len(other) and bool(((at.amin(0) > other.amax(0)) | (at.amax(0) < other.amin(0))).any()):
            return True
    return False


def _last_observations(recording: Recording) -> Iterator[Finding]:
    ends = recording.ends
    if recording.final is None:
        if bool(recording.limits.any()):
            yield Finding(
                severity="note",
                check="episode.final_obs_none",
                what="the env gives no final_obs",
                why="time-outs are then worth the value of the observation before, one step old",
                remedy="return the observation before the reset as final_obs, where the simulator can give it",
            )
        return
    t, r = ends[:, 0], ends[:, 1]
    same = torch.ones(len(ends), dtype=torch.bool)
    stale = torch.ones(len(ends), dtype=torch.bool)
    moving, changes = torch.zeros(len(ends), dtype=torch.bool), []
    for group, final in recording.final.items():
        x, at = recording.obs[group], final[t, r]  # [E, O]
        same &= (at == x[t + 1, r]).all(1)
        stale &= (at == x[t, r]).all(1)
        moving |= (x[t, r] != x[t + 1, r]).any(1)
        changes.append((x[1:] != x[:-1]).any(2)[~recording.done])
    share = float((same & moving).double().mean())
    if share > bands.RESETS:
        yield Finding(
            severity="error",
            check="episode.final_obs_reset",
            what=f"final_obs is the first observation of the next episode in {share:.0%} of {len(ends):,} episodes "
            "that ended",
            value=share,
            why="time-outs are then worth the value of a state that the episode never came to",
            remedy="keep the observation before rows are reset, and return that as final_obs",
        )
    elif float(stale.double().mean()) > 0.9 and float(torch.stack(changes).any(0).double().mean()) > 0.99:
        yield Finding(
            severity="warning",
            check="episode.final_obs_stale",
            what=f"final_obs is the observation before the last step in {float(stale.double().mean()):.0%} of "
            f"{len(ends):,} episodes that ended",
            value=float(stale.double().mean()),
            why="time-outs are worth the value of a state that is one step old",
            remedy="observe after the physics and before the reset, and return that as final_obs",
        )


def episode_facts(recording: Recording) -> str:
    """The line of how episodes end."""
    lengths, limit = recording.lengths, recording.env.max_episode_length
    limited = "no time limit" if limit >= ENDLESS else f"a limit of {limit:,} steps"
    if not len(lengths):
        return f"none ended in {recording.steps:,} steps, {limited}"
    share = float(recording.limits.double().mean())
    return (
        f"{len(lengths):,} ended, after {float(lengths.double().mean()):.4g} steps on average ({int(lengths.min())} to "
        f"{int(lengths.max())}), {share:.0%} by the time limit; {limited}"
    )
