"""What is wrong with observations: terms that tell nothing, or at no useful scale, and envs that show each other's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlcore.env import VecEnv, is_image
from rlcore.faults import column_name
from rlcore.train.doctor import bands
from rlcore.train.doctor.findings import Finding, TermFacts, listed, plural, setting
from rlcore.train.doctor.recording import Recording

RICH = 0.25
"""A number is told by its course in time where it takes so many different values, as a part of the steps."""


@dataclass(frozen=True)
class Term:
    """Neighboring numbers of a group that belong together."""

    group: str
    label: str
    first: int
    size: int
    named: bool


def terms_of(env: VecEnv, group: str, size: int) -> list[Term]:
    """The terms of a group as the env names them; else each number by itself, and an image as a whole."""
    if is_image(env.observation_spaces[group]):
        return [Term(group, group, 0, size, False)]
    known = getattr(env, "deployment", {}).get("observation_terms", {}).get(group) or []
    if sum(int(term["size"]) for term in known) != size:
        return [Term(group, f"{group}[{i}]", i, 1, False) for i in range(size)]
    found, first = [], 0
    for term in known:
        found.append(Term(group, f"{group}/{term['name']}", first, int(term["size"]), True))
        first += int(term["size"])
    return found


class Columns:
    """Scale of each number of a group, by what is finite ``[S, O]`` of all steps and kept envs."""

    def __init__(self, x: Tensor) -> None:
        x = x.flatten(0, 1).double()  # [S, O]
        sound = x.isfinite()
        count = sound.sum(0).clamp(min=1)
        zeroed = x.where(sound, torch.zeros_like(x))
        self.mean = zeroed.sum(0) / count
        self.std = (((x - self.mean) ** 2).where(sound, torch.zeros_like(x)).sum(0) / count).sqrt()
        self.low = x.where(sound, torch.full_like(x, torch.inf)).amin(0)
        self.high = x.where(sound, torch.full_like(x, -torch.inf)).amax(0)
        self.still = self.std <= bands.STILL * self.mean.abs().clamp(min=1)
        self.farthest = _farthest(zeroed, self.std)


def _farthest(x: Tensor, std: Tensor) -> Tensor:
    """The largest distance from the median in deviations of the middle of all numbers, ``[O]``; 0 where that is none.

    Where all but a few are the same there is nothing usual to be far from: a flag that is hardly ever set.
    """
    ordered = x.sort(0).values
    cut = int(len(x) * (1 - bands.MIDDLE) / 2)
    middle = ordered[cut : len(x) - cut]
    usual, median = middle.std(0), middle.median(0).values
    distance = (x - median).abs().amax(0)
    return torch.where(usual > bands.STILL * median.abs().clamp(min=1e-3), distance / usual, torch.zeros_like(usual))


def observation_facts(recording: Recording) -> list[TermFacts]:
    """The table of all terms."""
    found = []
    for group, x in recording.obs.items():
        columns = Columns(x)
        for term in terms_of(recording.env, group, x.shape[-1]):
            part = slice(term.first, term.first + term.size)
            still = bool(columns.still[part].all())
            found.append(
                TermFacts(
                    term=term.label,
                    size=term.size,
                    mean=float(columns.mean[part].mean()),
                    std=float(columns.std[part].square().mean().sqrt()),
                    low=float(columns.low[part].min()),
                    high=float(columns.high[part].max()),
                    remark="never changes" if still else "",
                )
            )
    return found


def observation_findings(recording: Recording, agent: Any) -> Iterator[Finding]:
    """What is wrong with the observations of a recording, for an agent with these settings."""
    yield from _broken(recording)
    yield from _frozen(recording)
    for group, x in recording.obs.items():
        columns, terms = Columns(x), terms_of(recording.env, group, x.shape[-1])
        yield from _still(columns, terms, is_image(recording.env.observation_spaces[group]))
        if not is_image(recording.env.observation_spaces[group]):
            yield from _scale(columns, terms, _normalized(agent, group), setting(agent, "obs_epsilon", 0.01))
            yield from _bounds(recording, group, columns, terms)
            yield from _twins(recording, group, x, columns, terms)


def _normalized(agent: Any, group: str) -> bool:
    chosen = setting(agent, "normalize_obs", True)
    return bool(chosen) if isinstance(chosen, bool) else group in chosen


def _broken(recording: Recording) -> Iterator[Finding]:
    for group, counts in recording.broken.items():
        bad = counts.nonzero().flatten().tolist()
        if bad:
            names = [column_name((group,), i, recording.env) for i in bad]
            yield Finding(
                severity="error",
                check="observation.nan",
                what=f"{listed(names)} {'is' if len(bad) == 1 else 'are'} not finite in "
                f"{plural(int(counts.sum()), 'number')} of {recording.steps:,} steps",
                value=float(counts.sum()),
                why="steps that need such a number are left out of learning, and a policy on a robot would act on it",
                remedy="correct it where it is computed: a division by 0, a root or a logarithm of less, or a body "
                "that has left the simulation, which is to be terminated",
            )


def _frozen(recording: Recording) -> Iterator[Finding]:
    still = (~recording.moved).nonzero().flatten().tolist()
    if recording.steps < 8 or not still:
        return
    number = len(recording.moved)
    everywhere = len(still) == number
    which = "no env" if everywhere else f"env{'s' * (len(still) > 1)} {listed([str(i) for i in still])}"
    yield Finding(
        severity="error",
        check="rows.frozen",
        what=f"{which} changed its observation in {recording.steps:,} steps"
        if everywhere
        else f"the observation of {which} ({len(still)} of {number}) never changed in {recording.steps:,} steps",
        value=len(still) / number,
        why="nothing can be learned from an env that stands still, and its steps count like all others",
        remedy="look at how step() and reset() select envs: an index or a mask leaves these out",
    )


def _still(columns: Columns, terms: list[Term], image: bool) -> Iterator[Finding]:
    whole: list[str] = []
    zero: list[str] = []
    part: list[str] = []
    largest = 0.0
    for term in terms:
        inside = columns.still[term.first : term.first + term.size]
        if inside.all():
            value = float(columns.mean[term.first : term.first + term.size].abs().max())
            largest = max(largest, value)
            if value:
                whole.append(f"{term.label} ({float(columns.mean[term.first]):.4g})")
            else:
                zero.append(term.label)
        elif not image:  # most of a picture is background
            part += [f"{term.label}[{i}]" for i in inside.nonzero().flatten().tolist()]
    if zero:
        yield Finding(
            severity="warning",
            check="observation.dead",
            what=f"{listed(zero)} {'is' if len(zero) == 1 else 'are'} always 0",
            value=float(len(zero)),
            why="it tells the policy nothing, and is most often a sensor that is not connected or a buffer that nobody "
            "writes",
            remedy="fill it, or leave it out of the observation",
        )
    if whole:
        yield Finding(
            severity="warning",
            check="observation.constant",
            what=f"{listed(whole)} never change{'s' * (len(whole) == 1)}",
            value=largest,
            why="it tells the policy nothing, and a small move of it later, on a robot, is many deviations that the "
            "policy has never met",
            remedy="let it vary (randomize it), or leave it out of the observation",
        )
    if part:
        yield Finding(
            severity="note",
            check="observation.part_constant",
            what=f"{listed(part)} never change{'s' * (len(part) == 1)} while the rest of the term does",
            value=float(len(part)),
            why="these numbers tell the policy nothing as the task is now",
            remedy="none is needed where the task holds them by design; else let them vary",
        )


def _scale(columns: Columns, terms: list[Term], normalized: bool, epsilon: float) -> Iterator[Finding]:
    least = bands.SMALL * epsilon if normalized else bands.SMALL_RAW
    most = bands.LARGE if normalized else bands.LARGE_RAW
    small, large, far = [], [], []
    for term in terms:
        part = slice(term.first, term.first + term.size)
        std, size = columns.std[part], torch.maximum(columns.mean[part].abs(), columns.std[part])
        if columns.still[part].all():
            continue
        if float(std.max()) < least:
            small.append((float(std.max()), term.label))
        if float(columns.farthest[part].max()) > bands.OUTLIER:
            far.append((float(columns.farthest[part].max()), term.label))
        elif float(size.max()) > most:  # not for a few that are far off
            large.append((float(size.max()), term.label))
    if small:
        beside = f"agent.obs_epsilon adds {epsilon:g} to it" if normalized else "nothing normalizes it"
        yield Finding(
            severity="warning",
            check="observation.small",
            what=f"{_with_numbers(small)} hardly move{'s' * (len(small) == 1)} (deviation), and {beside}",
            value=min(value for value, _ in small),
            why="its changes are lost beside inputs of deviation 1",
            remedy="scale it to about 1 in the env"
            + (", or lower --agent.obs-epsilon" if normalized else ", or --agent.normalize-obs True"),
        )
    if large:
        beside = "though agent.normalize_obs brings it to 1" if normalized else "and nothing normalizes it"
        yield Finding(
            severity="warning",
            check="observation.scale",
            what=f"{_with_numbers(large)} {'is' if len(large) == 1 else 'are'} over {most:g} (mean or "
            f"deviation), {beside}",
            value=max(value for value, _ in large),
            why="a unit or a factor is missing: float32 keeps 7 digits of it, and noise or limits in its unit mean "
            "little"
            if normalized
            else "it drowns all other inputs of the network, and its gradients are as many times larger",
            remedy="divide it in the env by what it usually is"
            + ("" if normalized else ", or --agent.normalize-obs True"),
        )
    if far:
        yield Finding(
            severity="warning",
            check="observation.outliers",
            what=f"{_with_numbers(far)} deviations off the median at most",
            value=max(value for value, _ in far),
            why="a few numbers decide the statistics by which all others are normalized, and the gradients",
            remedy="limit it in the env, or terminate the episode where a body has left the simulation",
        )


def _with_numbers(found: list[tuple[float, str]]) -> str:
    return listed([f"{label} ({value:.3g})" for value, label in found])


def _bounds(recording: Recording, group: str, columns: Columns, terms: list[Term]) -> Iterator[Finding]:
    space = recording.env.observation_spaces[group]
    low, high = torch.as_tensor(space.low).double(), torch.as_tensor(space.high).double()
    room = 1e-4 * torch.maximum(low.abs(), high.abs()).clamp(max=1e6)
    outside = (columns.low < low - room) | (columns.high > high + room)
    names = [term.label for term in terms if outside[term.first : term.first + term.size].any()]
    if names:
        yield Finding(
            severity="note",
            check="observation.bounds",
            what=f"{listed(names)} leave{'s' * (len(names) == 1)} the bounds of the observation space",
            value=float(outside.sum()),
            why="rlcore reads no bounds of observations, others that use the env may",
            remedy="widen the bounds, or limit the numbers",
        )


def _twins(recording: Recording, group: str, x: Tensor, columns: Columns, terms: list[Term]) -> Iterator[Finding]:
    """Numbers with the very same course in time: of one env, or of several, which is nobody's chance."""
    steps, rows, _ = x.shape
    if steps < 16:
        return
    moving = (~columns.still & ~_clocks(x, recording.done)).nonzero().flatten().tolist()
    courses: dict[bytes, list[tuple[int, int]]] = {}
    rich: dict[int, set[int]] = {r: set() for r in range(rows)}
    for r in range(rows):
        for c in moving:
            course = x[:, r, c].contiguous()
            if np.unique(course.numpy()).size > max(8, RICH * steps):
                rich[r].add(c)
                courses.setdefault(course.numpy().tobytes(), []).append((r, c))
    same = [places for places in courses.values() if len(places) > 1]
    yield from _same_columns(same, terms, rows)
    # What more than half of the envs show alike is the same for all.
    shared = [places for places in same if 1 < len({r for r, _ in places}) <= max(2, rows // 2)]
    leaked = [places for places in shared if _crossed(places)]
    copies = [r for r in rich if rich[r] and rich[r] <= {c for places in shared for row, c in places if row == r}]
    if leaked:
        names = sorted({_label(terms, c) for places in leaked for _, c in places})
        rows_of = {r for places in leaked for r, _ in places}
        yield Finding(
            severity="error",
            check="rows.leak",
            what=f"{listed(names)}: {_envs(recording, rows_of)} show what another env shows elsewhere, step by step",
            value=len(rows_of) / rows,
            why="a policy learns from what other robots do, and on a robot there is no other",
            remedy=_INDEX,
        )
    elif copies:
        yield Finding(
            severity="error",
            check="rows.duplicated",
            what=f"{_envs(recording, set(copies))} show the very same '{group}' as another env in every step, whatever "
            "their own actions",
            value=len(copies) / rows,
            why="the same experience counts several times, and what an env's own action did is not seen",
            remedy=_INDEX,
        )


_INDEX = (
    "look at how the observation is indexed and reshaped: the wrong axis of [N, k], an offset of one env, or an "
    "expanded tensor"
)


def _envs(recording: Recording, rows: set[int]) -> str:
    names = [str(int(recording.rows[r])) for r in sorted(rows)]
    return f"env{'s' * (len(names) > 1)} {listed(names)}"


def _clocks(x: Tensor, done: Tensor) -> Tensor:
    """Which numbers ``[O]`` count the steps of an episode, which envs may well do alike."""
    change = (x[1:] - x[:-1])[~done]  # [S, O]
    if len(change) < 2:
        return torch.zeros(x.shape[-1], dtype=torch.bool)
    spread, mean = change.std(0), change.mean(0)
    return (spread <= 1e-3 * mean.abs()) & (mean != 0)


def _crossed(places: list[tuple[int, int]]) -> bool:
    """Whether an env shows in one place what another shows in another, and does not show twice itself."""
    known = set(places)
    return any(r != s and c != d and (r, d) not in known for r, c in places for s, d in places)


def _same_columns(same: list[list[tuple[int, int]]], terms: list[Term], rows: int) -> Iterator[Finding]:
    """Numbers of one env that are another of the same env, in all envs."""
    counts: dict[tuple[int, int], int] = {}
    for places in same:
        for r in {r for r, _ in places}:
            inside = sorted(c for row, c in places if row == r)
            for other in inside[1:]:
                counts[inside[0], other] = counts.get((inside[0], other), 0) + 1
    twice = [pair for pair, number in counts.items() if number >= rows]
    if not twice:
        return
    names = [f"{_label(terms, b)} = {_label(terms, a)}" for a, b in twice]
    whole = [
        term
        for term in terms
        if term.named and all(any(b == c for _, b in twice) for c in range(term.first, term.first + term.size))
    ]
    yield Finding(
        severity="warning" if whole else "note",
        check="observation.duplicated",
        what=f"{listed(list(dict.fromkeys(names)))} in every step",
        value=float(len(twice)),
        why="the same number twice tells nothing more; most often another one was meant",
        remedy="show what was meant, or leave one out",
    )


def _label(terms: list[Term], column: int) -> str:
    term = next(t for t in terms if t.first <= column < t.first + t.size)
    return term.label if term.size == 1 else f"{term.label}[{column - term.first}]"
