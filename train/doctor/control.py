"""Whether actions count, and whether the same ones under the same seed give the same steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rlcore.env import Randomizable, VecEnv, is_randomizable
from rlcore.envs.launch import SIMULATORS, simulator_of
from rlcore.train.doctor.findings import Finding
from rlcore.train.doctor.recording import RandomActions, flat, kept_rows
from rlcore.types import begins


@dataclass
class Trace:
    """What came of a fixed sequence of actions."""

    obs: dict[str, Tensor]
    """``[K + 1, R, O]``."""
    reward: Tensor
    """``[K, R]``."""
    done: Tensor
    """``[K, R]``."""
    rows: Tensor
    """``[R]``, which envs are kept."""

    def difference(self, other: Trace) -> tuple[int, float] | None:
        """The first step in which another trace differs, and the largest difference there; None where it is the same.

        Step 0 is the reset.
        """
        for t in range(len(self.reward) + 1):
            pairs = [(x[t], other.obs[group][t]) for group, x in self.obs.items()]
            if t:
                pairs += [(self.reward[t - 1], other.reward[t - 1]), (self.done[t - 1], other.done[t - 1])]
            far = [float((a.double().nan_to_num() - b.double().nan_to_num()).abs().max()) for a, b in pairs]
            if any(far):
                return t, max(far)
        return None


def trace(env: VecEnv, seed: int, steps: int, actions: int, mask: str | None = None) -> Trace:
    """Reset an env by a seed and let it take random actions of a seed of their own."""
    obs = env.reset(seed)
    rows = kept_rows(env.num_envs, sum(x[0].numel() for x in obs.values()))
    chosen = RandomActions(env, actions, mask)
    seen, rewards, done = [flat(obs, env, rows)], [], []
    for t in range(steps):
        step = env.step(chosen(obs, t))
        obs = step.obs
        seen.append(flat(obs, env, rows))
        rewards.append(step.reward.detach().cpu()[rows].clone())
        done.append(begins(step).cpu()[rows].clone())
    groups = {group: torch.stack([x[group] for x in seen]) for group in seen[0]}
    return Trace(groups, torch.stack(rewards), torch.stack(done), rows)


def control_findings(
    env: VecEnv,
    task: str,
    seed: int,
    steps: int,
    mask: str | None,
    another: Callable[[], VecEnv] | None,
    say: Callable[[str], None],
) -> Iterator[Finding]:
    """Whether the env repeats under a seed, and whether rewards depend on actions.

    Args:
        env: which is reset here.
        task: its name.
        seed: of the resets.
        steps: K, of each trace.
        mask: see ``RandomActions``.
        another: makes a second env like it; None where a process has room for one.
        say: told what is done.
    """
    say("reset by one seed, twice")
    first, again = (trace(env, seed, steps, seed + 1, mask) for _ in range(2))
    found = first.difference(again)
    if found is not None:
        yield _unrepeatable(found, task, "reset(seed) and the same actions, twice on one env")
    elif another is not None:
        say("a second env of the same seed")
        twin = another()
        try:
            found = first.difference(trace(twin, seed, steps, seed + 1, mask))
        finally:
            twin.close()
        if found is not None:
            yield _unrepeatable(found, task, "reset(seed) and the same actions, on two envs made alike")
    if found is None:  # else one difference cannot be told from the other
        say("other actions under the same seed")
        yield from _effect(first, trace(env, seed, steps, seed + 2, mask), steps)
        if is_randomizable(env) and env.parameters and not (hasattr(env, "ranges_text") or hasattr(env, "stage_dict")):
            say("other parameters under the same seed")
            yield from _of_parameters(env, first, lambda: trace(env, seed, steps, seed + 1, mask))


def _of_parameters(env: Randomizable, nominal: Trace, again: Callable[[], Trace]) -> Iterator[Finding]:
    """Whether parameters that are set for the first half of the envs change something there, and there alone."""
    n = env.num_envs
    everywhere = torch.ones(n, dtype=torch.bool, device=env.device)
    where = torch.arange(n, device=env.device) < max(1, n // 2)
    others = ~where.cpu()[nominal.rows]  # [R]
    far = {k: p.high if p.high - p.nominal >= p.nominal - p.low else p.low for k, p in env.parameters.items()}
    env.set_parameters({k: torch.full((n,), v, device=env.device) for k, v in far.items()}, where)
    try:
        other = again()
    finally:
        usual = {k: torch.full((n,), p.nominal, device=env.device) for k, p in env.parameters.items()}
        env.set_parameters(usual, everywhere)
    ended = (nominal.done | other.done).any(1).nonzero()
    whole = int(ended[0]) + 1 if len(ended) else len(nominal.reward)  # from an end on, envs may draw other numbers
    pairs = [(nominal.reward, other.reward), *((x.flatten(2), other.obs[group]) for group, x in nominal.obs.items())]
    far_off = [(x[:whole].nan_to_num() != y[:whole].nan_to_num().view_as(x[:whole])) for x, y in pairs]
    changed = torch.stack([x if x.dim() == 2 else x.any(2) for x in far_off]).any(1).any(0)  # [R]
    names = ", ".join(far)
    if bool(changed[others].any()):
        yield Finding(
            severity="error",
            check="parameters.where",
            what=f"set_parameters for one half of the envs changes what happens in the other ({names})",
            value=float(changed[others].sum()),
            why="what is drawn for the episode of one env is played by others as well, in the middle of theirs",
            remedy="write values where `where` is true alone: mine.copy_(value.where(where, mine))",
        )
    elif nominal.difference(other) is None:
        yield Finding(
            severity="warning",
            check="parameters.no_effect",
            what=f"in {len(nominal.reward)} steps nothing depends on the parameters ({names}), set to ends of ranges",
            value=float(len(nominal.reward)),
            why="what randomizes them trains with the nominal values",
            remedy="look at whether set_parameters changes what step() reads, in place",
        )


def _unrepeatable(found: tuple[int, float], task: str, what: str) -> Finding:
    t, size = found
    where = "the first observation" if t == 0 else f"step {t}"
    simulated = simulator_of(task) in SIMULATORS
    return Finding(
        severity="note" if simulated else "warning",
        check="env.nondeterministic",
        what=f"{what}: {where} differs, by up to {size:.3g}",
        value=size,
        why="a run cannot be repeated, settings cannot be compared on the same episodes, and an interrupted run does "
        "not go on as it was",
        remedy="a physics engine on a GPU may add up in any order; none is needed"
        if simulated
        else "draw every random number from one generator of the env's, seeded in reset(seed); no state may outlive "
        "the reset",
    )


def _effect(one: Trace, other: Trace, steps: int) -> Iterator[Finding]:
    alive = (~(one.done | other.done)).long().cumprod(0).bool()  # [K, R], before an episode ends
    alive = torch.cat([torch.ones_like(alive[:1]), alive[:-1]])
    seen = any(bool((one.obs[g][1:] != other.obs[g][1:]).any(2)[alive].any()) for g in one.obs)
    paid = bool((one.reward != other.reward)[alive].any())
    ended = bool((one.done != other.done)[alive].any())
    varies = float(one.reward[alive].min()) != float(one.reward[alive].max())
    if paid or ended or (seen and not varies):
        return
    if not varies and not seen:
        yield Finding(
            severity="error",
            check="action.no_effect",
            what=f"other actions changed neither observation nor reward in {steps} steps under one seed",
            value=float(steps),
            why="there is nothing to learn",
            remedy="look at how step() uses its action",
        )
    elif varies:
        beside = ", though the observation does" if seen else ", and neither does the observation"
        yield Finding(
            severity="error",
            check="reward.ignores_action",
            what=f"the reward varies, and does not depend on the action in {steps} steps under one seed{beside}",
            value=float(steps),
            why="advantages are noise: a policy that learns from them learns nothing",
            remedy="look at which state the reward is computed from: that before the step, a copy, or a constant",
        )
