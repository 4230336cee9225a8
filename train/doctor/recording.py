"""An env played with random actions, and what was seen of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from rlcore.env import VecEnv, is_image
from rlcore.env_check import StepCheck, check_obs
from rlcore.types import Obs, Step

MOST_ROWS = 64
"""Envs whose every number is kept, fewer where observations are long; of all envs extremes and faults are."""
MOST_NUMBERS = 16_384
"""Numbers of an observation that are kept of all these envs together."""
PIXELS = 64
"""Numbers that stand for an image."""
HOLDS = (1, 1, 4, 16)
"""Steps for which an env keeps its random action, env after env: what is held goes further than what trembles."""
WIDEST = 1e6
"""Action bounds this far out are none."""


class RandomActions:
    """Uniform actions within bounds, normal ones where there are none, any choice that a mask allows.

    Args:
        env: whose actions.
        seed: of the draws.
        mask: observation group that tells which choices there are; None for none.
    """

    def __init__(self, env: VecEnv, seed: int, mask: str | None = None) -> None:
        self.space, self.num_envs, self.device = env.action_space, env.num_envs, torch.device(env.device)
        self.generator = torch.Generator().manual_seed(seed)
        self.mask = mask if mask in env.observation_spaces else None
        self.hold = torch.tensor(HOLDS)[torch.arange(env.num_envs) // 2 % len(HOLDS)]  # [N]
        self.kept: Tensor | None = None

    def __call__(self, obs: Obs, t: int) -> Tensor:
        """Actions ``[N, A]`` (``[N]`` of choices) for step ``t``, in memory of their own."""
        fresh = self._drawn()
        if self.kept is not None:
            old = (t % self.hold != 0).view(-1, *[1] * (fresh.dim() - 1))
            fresh = torch.where(old, self.kept, fresh)
        if self.mask is not None and isinstance(self.space, spaces.Discrete):
            allowed = obs[self.mask].cpu().float()
            allowed = torch.where(allowed.sum(1, keepdim=True) > 0, allowed, torch.ones_like(allowed))
            drawn = torch.multinomial(allowed, 1, generator=self.generator).squeeze(1)
            fresh = torch.where(allowed.gather(1, fresh.unsqueeze(1)).squeeze(1) > 0, fresh, drawn)
        self.kept = fresh
        return fresh.to(self.device, copy=True)

    def _drawn(self) -> Tensor:
        space, n = self.space, self.num_envs
        if isinstance(space, spaces.Discrete):
            return torch.randint(int(space.n), (n,), generator=self.generator)
        if isinstance(space, spaces.MultiDiscrete):
            draws = [torch.randint(int(k), (n,), generator=self.generator) for k in space.nvec]
            return torch.stack(draws, 1)
        assert isinstance(space, spaces.Box)
        low, high = torch.as_tensor(space.low), torch.as_tensor(space.high)
        bounded = (low.abs() < WIDEST) & (high.abs() < WIDEST)
        uniform = torch.rand(n, *low.shape, generator=self.generator)
        normal = torch.randn(n, *low.shape, generator=self.generator)
        inside = torch.where(bounded, low, 0.0) + torch.where(bounded, high - low, 1.0) * uniform
        return torch.where(bounded, inside, normal).float()


@dataclass
class Recording:
    """Steps of an env: T of them, of R envs every number, of all N what is extreme. On the CPU."""

    env: VecEnv
    rows: Tensor
    """``[R]``, the envs that are kept."""
    obs: dict[str, Tensor]
    """``[T + 1, R, O]`` by group, after resets; of images ``PIXELS`` numbers."""
    final: dict[str, Tensor] | None
    """``[T, R, O]``, before resets; None where the env hides them."""
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    """``[T, R]`` each."""
    signals: dict[str, Tensor]
    """``[T, R]`` each."""
    log: dict[str, float]
    """Mean of what the log had."""
    broken: dict[str, Tensor]
    """Numbers of each column ``[O]`` that were not finite, of all envs."""
    broken_reward: int
    moved: Tensor
    """``[N]``, whether an env's observation ever changed."""
    reward_range: tuple[float, float]
    """Of all envs."""
    seconds: float
    """Mean time of a step of all envs, without the first."""
    asked: int
    """Steps that there were to be; fewer were done where time was over."""
    failure: tuple[str, str] | None = None
    """What ended it: ``contract`` or ``fails``, and the words."""
    lengths: Tensor = field(init=False)
    """``[E]``, of the complete episodes."""
    limits: Tensor = field(init=False)
    """``[E]``, whether each was cut by a time limit alone."""
    ends: Tensor = field(init=False)
    """``[E, 2]``, step and row in which each ended."""

    def __post_init__(self) -> None:
        """Find the complete episodes."""
        found = [(length, self.is_limit(t, r), t, r) for length, t, r in self._episodes()]
        table = torch.tensor(found, dtype=torch.long).reshape(-1, 4)
        self.lengths, self.limits, self.ends = table[:, 0], table[:, 1].bool(), table[:, 2:]

    @property
    def steps(self) -> int:
        """T."""
        return len(self.reward)

    @property
    def done(self) -> Tensor:
        """Where episodes ended, bool ``[T, R]``."""
        return self.terminated | self.truncated

    def is_limit(self, t: int, r: int) -> bool:
        """Whether a time limit alone ended the episode of a row."""
        return bool(self.truncated[t, r] & ~self.terminated[t, r])

    def _episodes(self) -> Iterator[tuple[int, int, int]]:
        counted = self.valid.long().cumsum(0)  # [T, R]
        for r in range(self.reward.shape[1]):
            before = 0
            for t in self.done[:, r].nonzero().flatten().tolist():
                yield int(counted[t, r]) - before, t, r
                before = int(counted[t, r])


def kept_rows(num_envs: int, numbers: int) -> Tensor:
    """The envs to keep ``[R]``: neighboring pairs from all over."""
    most = max(2, min(MOST_ROWS, MOST_NUMBERS // max(1, numbers)) // 2 * 2)
    if num_envs <= most:
        return torch.arange(num_envs)
    first = torch.linspace(0, num_envs - 2, most // 2).long()
    return torch.tensor(sorted({*first.tolist(), *(first + 1).tolist()}))


def flat(obs: Obs, env: VecEnv, rows: Tensor) -> dict[str, Tensor]:
    """Observations of some envs as vectors ``[R, O]`` of the CPU, images by a few of their numbers."""
    found = {}
    for group, space in env.observation_spaces.items():
        if group in obs:
            x = obs[group][rows.to(obs[group].device)].flatten(1)
            if is_image(space):
                x = x[:, torch.linspace(0, x.shape[1] - 1, min(PIXELS, x.shape[1])).long().to(x.device)]
            found[group] = x.detach().cpu().float().clone()
    return found


def play(
    env: VecEnv,
    seed: int,
    steps: int,
    seconds: float,
    mask: str | None = None,
    on_step: Callable[[int], None] = lambda done: None,
) -> Recording:
    """Play an env with random actions and keep what is seen.

    Args:
        env: which is reset here.
        seed: of reset and actions.
        steps: most steps.
        seconds: after the first step, after which no more is begun.
        mask: see ``RandomActions``.
        on_step: called with the number of steps done.
    """
    numbers = sum(PIXELS if is_image(space) else int(space.shape[0]) for space in env.observation_spaces.values())
    rows, actions, check = kept_rows(env.num_envs, numbers), RandomActions(env, seed, mask), StepCheck(env)
    device, kept, times, failure = torch.device(env.device), _Kept(env, rows), [], None
    begun, kind = time.perf_counter(), "fails"
    try:
        obs = env.reset(seed)
        kind = "contract"
        check_obs(env, obs, "reset")
        kept.begin(obs)
        for t in range(steps):
            action, kind = actions(obs, t), "fails"
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            before = time.perf_counter()
            step = env.step(action)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - before)
            kind = "contract"
            check(step)
            kind = "fails"
            kept.take(step)
            obs = step.obs
            if t == 0:
                begun = time.perf_counter()  # simulators compile for their first step
            on_step(t + 1)
            if time.perf_counter() - begun > seconds and t >= 8:
                break
    except Exception as error:  # whatever an env raises is what the examination is for
        failure = kind, str(error) if kind == "contract" else f"{type(error).__name__}: {error}"
    usual = times[1:] or times
    return kept.recording(sum(usual) / max(1, len(usual)), steps, failure)


class _Kept:
    """What ``play`` keeps, step by step."""

    def __init__(self, env: VecEnv, rows: Tensor) -> None:
        self.env, self.rows = env, rows
        self.obs: list[dict[str, Tensor]] = []
        self.final: list[dict[str, Tensor]] = []
        self.columns: dict[str, list[Tensor]] = {k: [] for k in ("reward", "terminated", "truncated", "valid")}
        self.signals: dict[str, list[Tensor]] = {}
        self.log: dict[str, list[float]] = {}
        self.broken: dict[str, Tensor] = {}
        self.broken_reward, self.range = 0, (float("inf"), -float("inf"))
        self.moved = torch.zeros(env.num_envs, dtype=torch.bool)
        self.before: dict[str, Tensor] = {}

    def begin(self, obs: Obs) -> None:
        self.obs.append(flat(obs, self.env, self.rows))
        self._look(obs)

    def take(self, step: Step) -> None:
        valid = torch.ones_like(step.terminated) if step.valid is None else step.valid
        values = (step.reward, step.terminated, step.truncated, valid)
        for name, value in zip(self.columns, values, strict=True):
            self.columns[name].append(value.detach().cpu()[self.rows].clone())
        for name, value in (step.signals or {}).items():
            self.signals.setdefault(name, []).append(value.detach().cpu()[self.rows].clone())
        finite = step.reward[step.reward.isfinite()]
        self.broken_reward += len(step.reward) - len(finite)
        if len(finite):
            self.range = min(self.range[0], float(finite.min())), max(self.range[1], float(finite.max()))
        if step.final_obs is not None:
            self.final.append(flat(step.final_obs, self.env, self.rows))
        self._note(step.log, step.terminated | step.truncated)
        self.obs.append(flat(step.obs, self.env, self.rows))
        self._look(step.obs)

    def _note(self, log: Mapping[str, Any], done: Tensor) -> None:
        for name, value in log.items():
            x = torch.as_tensor(value).detach().float()
            x = x[done] if x.shape == done.shape else x.flatten()
            self.log.setdefault(name, []).extend(x[x.isfinite()].cpu().tolist())

    def _look(self, obs: Obs) -> None:
        """Of all envs: what is not finite, and which changed."""
        for group, x in obs.items():
            if x.is_floating_point() and x.dim() == 2:
                bad = (~x.isfinite()).sum(0).cpu()
                self.broken[group] = self.broken.get(group, torch.zeros_like(bad)) + bad
            if group in self.before:
                other = (x != self.before[group]).flatten(1).any(1)
                self.moved |= other.cpu()
            self.before[group] = x.clone()

    def recording(self, seconds: float, asked: int, failure: tuple[str, str] | None) -> Recording:
        count, n = len(self.columns["valid"]), len(self.rows)
        table = {k: torch.stack(v) if v else torch.zeros(0, n) for k, v in self.columns.items()}
        groups = list(self.obs[0]) if self.obs else []
        obs = {g: torch.stack([x[g] for x in self.obs[: count + 1]]) for g in groups}
        whole = count > 0 and len(self.final) == count
        final = {g: torch.stack([x[g] for x in self.final]) for g in self.final[0]} if whole else None
        return Recording(
            env=self.env, rows=self.rows, obs=obs, final=final, reward=table["reward"],
            terminated=table["terminated"].bool(), truncated=table["truncated"].bool(), valid=table["valid"].bool(),
            signals={k: torch.stack(v) for k, v in self.signals.items() if len(v) == count},
            log={k: sum(v) / len(v) for k, v in self.log.items() if v}, broken=self.broken,
            broken_reward=self.broken_reward, moved=self.moved, reward_range=self.range, seconds=seconds, asked=asked,
            failure=failure,
        )  # fmt: skip
