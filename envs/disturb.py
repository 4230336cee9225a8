"""What a robot's sensors and motors do to a policy: noise, bias, delays, losses, weak motors and pushes, of any env."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from rlcore.config import nearest
from rlcore.env import Parameter, VecEnv, dtype_of, is_image, is_pushable, is_randomizable
from rlcore.envs.disturb_rows import Errors, Lag, interpolates, late, like, sent, shown
from rlcore.envs.wrappers import OwnState
from rlcore.tasks import TASK_GROUP
from rlcore.types import Obs, Step

MAX_DELAY = 5
"""Steps by which actions and observations come late at most, where nobody says otherwise."""

KINDS = ("noise", "bias", "dropout", "observation_delay", "action_delay", "action_drop", "action_gain", "push")
"""Names of disturbances; those of noise and bias may go on with ``/TERM``."""

SHARES = ("dropout", "action_drop")
"""Those that are chances, 0 to 1."""

PUSH_INTERVAL = 4.0
"""Between pushes: seconds, or steps where the env does not tell ``control_dt``."""


def disturbances(env: VecEnv, max_delay: int = MAX_DELAY) -> dict[str, Parameter]:
    """Parameters that ``Disturbed`` can add to an env, by name; nominal is off.

    Amplitudes of single terms have no range of their own: ``low`` equals ``high``.
    """
    vectors = [name for name, space in env.observation_spaces.items() if not is_image(space)]
    names = [f"/{name}" for name in dict.fromkeys(name for group in vectors for name, _, _ in _terms(env, group))]
    found: dict[str, Parameter] = {}
    for kind in ("noise", "bias") if vectors else ():
        found[kind] = Parameter(nominal=0.0, low=0.0, high=0.1, unit="of the scale")
        found |= {kind + name: Parameter(nominal=0.0, low=0.0, high=0.0, unit="of the term") for name in names}
    found["dropout"] = Parameter(nominal=0.0, low=0.0, high=0.1)
    for kind in ("action_delay", "observation_delay"):
        found[kind] = Parameter(nominal=0.0, low=0.0, high=float(min(2, max_delay)), unit="steps")
    found["action_drop"] = Parameter(nominal=0.0, low=0.0, high=0.1)
    if isinstance(env.action_space, spaces.Box):
        found["action_gain"] = Parameter(nominal=1.0, low=0.8, high=1.2)
    if is_pushable(env):
        found["push"] = Parameter(nominal=0.0, low=0.0, high=0.5, unit=env.push_unit)
    return found


class Disturbed(OwnState):
    """An env with disturbances, each a parameter with a value for every env; see ``rlcore.env.Randomizable``.

    - ``noise``: standard deviation of white noise on all numbers of vector observations, in units of ``scales``;
      ``noise/TERM`` that of one term of the observations by its name, wherever it is, in its own unit. They add up.
    - ``bias``, ``bias/TERM``: an offset of each number, uniform in ± this, drawn when an episode begins.
    - ``dropout``: the probability that an observation is the one that was shown before.
    - ``observation_delay``, ``action_delay``: in steps, with fractions by linear interpolation between the two steps
      around; images and choices come late by whole steps, rounded. Until the first of an episode has arrived it is
      there already: none is ever of another episode.
    - ``action_drop``: the probability that an action is the one before; ``action_gain``: a factor on it.
    - ``push``: speed of a push every ``push_interval``, the first at a random time of the episode.

    Observations are late first, then noisy, then lost; actions are lost first, then late. The last one of an episode,
    ``final_obs``, is as the others of its episode. Rewards and ends are those of the env itself.

    Only what is named costs anything. With nominal values all is bitwise the env alone. The parameters of the env are
    beside its own in ``parameters``; those of its own that are set in an episode's first step hold for its first
    observation, too.

    Args:
        env: any env.
        names: parameters of ``disturbances(env)`` to add.
        scales: by group, ``[O]``, what noise and bias are measured in, such as the deviations that a policy's
            normalizer knows; 1 where nothing is given.
        max_delay: the longest delay that will be set, in whole steps.
        push_interval: seconds, or steps where the env does not tell ``control_dt``.
        seed: see ``OwnState``.

    Raises:
        ValueError: the env cannot have one of the names, or a number is impossible.
    """

    def __init__(
        self,
        env: VecEnv,
        names: Collection[str],
        *,
        scales: Mapping[str, Tensor] | None = None,
        max_delay: int = MAX_DELAY,
        push_interval: float = PUSH_INTERVAL,
        seed: int | None = None,
    ) -> None:
        super().__init__(env, seed)
        if isinstance(max_delay, bool) or not isinstance(max_delay, int) or not 0 < max_delay <= 1000:
            raise ValueError(f"{self.task}: max_delay is {max_delay!r}; use a whole number of steps from 1 to 1000")
        known = disturbances(env, max_delay)
        for name in names:
            if name not in known:
                raise ValueError(f"{self.task}: {_cannot(env, name, known)}")
        inner = dict(env.parameters) if is_randomizable(env) else {}
        names = [name for name in known if name in set(names)]
        self.parameters: Mapping[str, Parameter] = {name: known[name] for name in names} | inner
        self._names, self._max_delay = names, max_delay
        self._vectors = {g: s for g, s in env.observation_spaces.items() if not is_image(s)}
        n, device = self.num_envs, self.device
        nominal = torch.tensor([known[name].nominal for name in names], device=device)
        values = nominal[:, None].repeat(1, n)  # [P, N]
        self._kept["values"] = values
        self._value = dict(zip(names, values.unbind(), strict=True))  # [N] each
        self._kept["fresh"] = self._fresh = torch.ones(n, dtype=torch.bool, device=device)  # [N], no step was taken yet
        self._amplitudes = {kind: self._patterns(kind, scales or {}) for kind in ("noise", "bias")}
        self._unit: dict[str, Tensor] = {}  # of the bias by group, [N, O] in -1..1
        self._shown: dict[str, Tensor] = {}  # the last observation, [N, ...]
        self._queue: dict[str, Tensor] = {}  # observations by group, latest first, [delay + 1, N, ...]
        self._latest: list[tuple[Tensor, Tensor, str, Tensor | None]] = []  # what is shown, of what, and its noise
        for group, space in env.observation_spaces.items():
            row = torch.zeros(n, *space.shape, dtype=dtype_of(space), device=device)
            if group in self._amplitudes["bias"]:
                self._unit[group] = row.clone()
            if "dropout" in self._value:
                self._shown[group] = row.clone()
            if "observation_delay" in self._value:
                self._queue[group] = row.repeat(max_delay + 1, *[1] * row.dim())
        discrete = not isinstance(env.action_space, spaces.Box)
        shape = (n, *(env.action_space.shape or ()))
        rows = max_delay + 1 if "action_delay" in self._value else 1 if "action_drop" in self._value else 0
        self._sent = torch.zeros(rows, *shape, dtype=torch.int64 if discrete else torch.float32, device=device)
        dt = self.deployment.get("control_dt")
        self._push_steps = max(1.0, push_interval / dt if dt else push_interval)
        if not 0 < push_interval < math.inf:
            raise ValueError(f"{self.task}: push_interval is {push_interval!r}; use a positive number")
        self._countdown = torch.zeros(n, device=device)  # [N], steps until the next push
        for kind, tensors in (("unit", self._unit), ("shown", self._shown), ("queue", self._queue)):
            self._kept |= {f"{kind}/{group}": tensor for group, tensor in tensors.items()}
        if rows:
            self._kept["sent"] = self._sent
        if "push" in self._value:
            self._kept["countdown"] = self._countdown
        self._sigma: dict[str, Tensor] = {}  # by group, [N, O]
        self._bias: dict[str, Tensor] = {}
        self._lags = {
            kind: Lag(
                torch.zeros(2, n, dtype=torch.int64, device=device),
                torch.zeros(n, 1, device=device),
                None if all(map(interpolates, queues)) else torch.zeros(1, n, dtype=torch.int64, device=device),
            )
            for kind, queues in (("action_delay", [self._sent]), ("observation_delay", [*self._queue.values()]))
            if kind in self._value
        }
        self._heeds_episodes = any(name != "action_gain" for name in names)
        self._derive(self._names)

    @torch.no_grad()
    def set_parameters(self, values: Mapping[str, Tensor], where: Tensor) -> None:
        """Give envs other values; see ``rlcore.env.Randomizable``. Delays beyond the longest are that.

        Raises:
            ValueError: there is no parameter of a name.
        """
        others = {name: value for name, value in values.items() if name not in self._value}
        if others:
            for name in others:
                if name not in self.parameters:
                    raise ValueError(f"{self.task}: there is no parameter '{name}'; {nearest(name, self.parameters)}")
            self.env.set_parameters(others, where)  # type: ignore[attr-defined]
        own = [name for name in self._names if name in values]
        for name in own:
            torch.where(where, values[name].to(self._value[name]), self._value[name], out=self._value[name])
        self._derive(own)
        if any(name.partition("/")[0] in ("noise", "bias") for name in own):
            self._show_again(where)

    @torch.no_grad()
    def reset(self, seed: int | None = None) -> Obs:
        """Start a new episode in every env."""
        self._reseed(seed)
        obs = dict(self.env.reset(seed))
        self._fresh.fill_(True)
        for group, queue in self._queue.items():
            queue.copy_(obs[group].expand_as(queue))
        for unit in self._unit.values():
            unit.uniform_(-1.0, 1.0, generator=self._random)
        if "push" in self._value:
            self._countdown.uniform_(0.0, self._push_steps, generator=self._random)
        whites = self._noisy(obs, None, None)
        for group, held in self._shown.items():
            held.copy_(obs[group])
        self._latest = [(obs[group], raw, group, white) for group, (raw, white) in whites.items()]
        return obs

    @torch.no_grad()
    def step(self, action: Tensor) -> Step:
        """Advance the inner env; see ``VecEnv.step``."""
        if "push" in self._value:
            self._push()
        step = self.env.step(self._acted(action))
        if not self._heeds_episodes:
            return step
        begun = self._begun(step)  # [N]
        obs, final = dict(step.obs), None if step.final_obs is None else dict(step.final_obs)
        for group, queue in self._queue.items():
            last = None if final is None else final.get(group)
            obs[group], before = late(queue, obs[group], last, begun, self._lags["observation_delay"])
            if final is not None and last is not None:
                final[group] = before
        whites = self._noisy(obs, final, begun)
        if self._shown:
            self._lose(obs, final, begun)
        self._latest = [(obs[group], raw, group, white) for group, (raw, white) in whites.items()]
        if "push" in self._value:
            phase = torch.empty_like(self._countdown).uniform_(0.0, self._push_steps, generator=self._random)
            torch.where(begun, phase, self._countdown, out=self._countdown)
        return step._replace(obs=obs, final_obs=final)

    def _begun(self, step: Step) -> Tensor:
        """Where an episode has begun, as ``rlcore.types.begins``; it is kept until the next step."""
        begun = torch.logical_or(step.terminated, step.truncated, out=self._fresh)
        return begun if step.valid is None else begun.logical_or_(~step.valid)

    def _acted(self, action: Tensor) -> Tensor:
        """What the motors do when a policy wants an action ``[N, ...]``."""
        queue = self._sent
        if "action_drop" in self._value:
            lost = self._chance("action_drop") > self._fresh  # and not fresh
            action = torch.where(like(lost, action), queue[0], action)
        if len(queue) > 1:
            action = sent(queue, action, self._fresh, self._lags["action_delay"])
        elif len(queue):
            queue[0].copy_(action)
        if "action_gain" in self._value:
            action = action * self._value["action_gain"][:, None]
        return action

    def _noisy(self, obs: Obs, final: Obs | None, begun: Tensor | None) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Put noise and bias on observations after resets and before; the bias of episodes that begin is drawn.

        Returns:
            By group that has some, what it was without, and the white noise.
        """
        found: dict[str, tuple[Tensor, Tensor | None]] = {}
        for group in self._vectors:
            sigma, bias, raw = self._sigma.get(group), self._bias.get(group), obs[group]
            if sigma is None and bias is None:
                continue
            white = None if sigma is None else torch.randn(raw.shape, generator=self._random, device=self.device)
            last = None if final is None else final.get(group)
            drawn = None
            if bias is not None and begun is not None:
                drawn = torch.empty_like(raw).uniform_(-1.0, 1.0, generator=self._random)
            errors = self._errors(group)
            obs[group], before = shown(raw, last, errors, white, drawn, self._fresh)
            if final is not None and before is not None:
                final[group] = before
            found[group] = (raw, white)
        return found

    def _errors(self, group: str) -> Errors:
        return Errors(self._sigma.get(group), self._bias.get(group), self._unit.get(group))

    def _show_again(self, where: Tensor) -> None:
        """Where an episode has just begun, show its first observation with the noise and bias that are set now."""
        changed = (self._fresh & where)[:, None]
        for seen, raw, group, white in self._latest:
            torch.where(changed, self._errors(group).on(raw, white), seen, out=seen)
            if group in self._shown:
                torch.where(changed, seen, self._shown[group], out=self._shown[group])

    def _lose(self, obs: Obs, final: Obs | None, begun: Tensor) -> None:
        """Show what was shown before in place of some observations."""
        lost = self._chance("dropout")
        for group, held in self._shown.items():
            if final is not None and group in final:
                final[group] = torch.where(like(lost, held), held, final[group])
            obs[group] = torch.where(like(lost > begun, held), held, obs[group])  # lost and not begun
            held.copy_(obs[group])

    def _push(self) -> None:
        due = self._countdown <= 0
        self.env.push(torch.where(due, self._value["push"], 0.0))  # type: ignore[attr-defined]
        self._countdown.add_(due, alpha=self._push_steps).sub_(1.0)

    def _chance(self, name: str) -> Tensor:
        """Where something happens that has a probability, bool ``[N]``."""
        return torch.rand(self.num_envs, generator=self._random, device=self.device) < self._value[name]

    def _patterns(self, kind: str, scales: Mapping[str, Tensor]) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """By group the parameters of noise or bias that are on, ``[N]``, and what each is multiplied by, ``[O]``."""
        found: dict[str, list[tuple[Tensor, Tensor]]] = {}
        several = bool(getattr(self.env, "tasks", ()))
        for group, space in self._vectors.items():
            size, parts = space.shape[0], []
            if several and group == TASK_GROUP:  # which task it is is told, and not measured
                continue
            if kind in self._value:
                scale = torch.as_tensor(scales.get(group, 1.0), dtype=torch.float32, device=self.device)
                if scale.shape not in ((), (size,)):
                    raise ValueError(
                        f"{self.task}: scales of '{group}' have shape {tuple(scale.shape)}; give ({size},)"
                    )
                parts.append((self._value[kind], scale.expand(size)))
            for name, first, last in _terms(self.env, group):
                if f"{kind}/{name}" in self._value:
                    mask = torch.zeros(size, device=self.device)
                    mask[first:last] = 1.0
                    parts.append((self._value[f"{kind}/{name}"], mask))
            if parts:
                found[group] = parts
        return found

    def _loaded(self) -> None:
        self._derive(self._names)

    def _derive(self, names: Collection[str]) -> None:
        """Work out in place what follows from the values of some parameters."""
        kinds = {name.partition("/")[0] for name in names}
        for kind, amplitudes in (("noise", self._sigma), ("bias", self._bias)):
            for group, parts in self._amplitudes[kind].items() if kind in kinds else ():
                (value, pattern), *more = parts
                if group not in amplitudes:
                    amplitudes[group] = torch.empty(self.num_envs, len(pattern), device=self.device)
                torch.mul(value[:, None], pattern, out=amplitudes[group])
                for value, pattern in more:
                    amplitudes[group].addcmul_(value[:, None], pattern)
        for name in kinds & self._lags.keys():
            self._lags[name].set(self._value[name].clamp(0.0, self._max_delay))


def _terms(env: VecEnv, group: str) -> list[tuple[str, int, int]]:
    """Name, first and last number of each term of an observation group."""
    terms: Mapping[str, Any] = getattr(env, "deployment", {}).get("observation_terms", {})
    found, start = [], 0
    for term in terms.get(group, ()):
        found.append((str(term["name"]), start, start + int(term["size"])))
        start += int(term["size"])
    return found


def _cannot(env: VecEnv, name: str, known: Collection[str]) -> str:
    if name == "push":
        return "'push': its robots cannot be pushed; leave it out"
    if name == "action_gain":
        return "'action_gain': its actions are choices, which no factor fits; leave it out"
    return f"there is no disturbance '{name}'; {nearest(name, known)}"
