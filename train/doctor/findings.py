"""What an examination finds, and how it is told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from rlcore.train.conclude import say

Severity = Literal["error", "warning", "note"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""From the worst on. An error: what is learned will be wrong, or nothing. A warning: learning is likely to suffer. A
note: worth knowing, and healthy."""

_COLORS = {"error": "bold red", "warning": "yellow", "note": "cyan"}

MOST_TERMS = 40
"""Rows of the table of observation terms that are shown; a JSON file has them all."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is not as it should be, or worth knowing."""

    severity: Severity
    check: str
    """What found it, such as ``reward.constant``; the page on ``rlcore doctor`` lists them."""
    what: str
    value: float | None = None
    """The number that it was found by."""
    why: str
    """Why it matters."""
    remedy: str
    """The flag or the line to change."""


@dataclass(frozen=True, kw_only=True)
class TermFacts:
    """Scale of one term of the observation, over its numbers, steps and envs."""

    term: str
    size: int
    mean: float
    std: float
    """Root of the mean variance of its numbers."""
    low: float
    high: float
    remark: str = ""


@dataclass
class Examination:
    """All that an examination has to say."""

    facts: dict[str, str] = field(default_factory=dict)
    """Lines of what was measured, by their heading."""
    terms: list[TermFacts] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    """What was measured, as plain values."""

    def add(self, findings: Iterable[Finding]) -> None:
        """Take in what a check found."""
        self.findings += findings

    @property
    def ordered(self) -> list[Finding]:
        """The findings, the worst first."""
        return sorted(self.findings, key=lambda found: SEVERITIES.index(found.severity))

    def code(self, strict: bool = False) -> int:
        """The exit code: 1 where there is an error or a warning, or with ``strict`` any finding; else 0."""
        return int(any(strict or found.severity != "note" for found in self.findings))

    def as_dict(self) -> dict[str, Any]:
        """What the JSON file holds."""
        return {
            "healthy": self.code() == 0,
            "counts": {severity: sum(f.severity == severity for f in self.findings) for severity in SEVERITIES},
            "findings": [asdict(found) for found in self.ordered],
            "facts": dict(self.facts),
            "numbers": dict(self.numbers),
            "observation_terms": [asdict(term) for term in self.terms],
        }

    def show(self, console: Console) -> None:
        """Print facts, terms and findings."""
        for heading, text in self.facts.items():
            say(console, f"{heading:<12} {text}")
        if self.terms:
            console.print(_table(self.terms))
        for found in self.ordered:
            color = _COLORS[found.severity]
            console.print(f"{found.severity:<12} ", style=color, end="", highlight=False)
            say(console, f"{found.check}: {found.what}")
            say(console, f"{'':<12} why: {found.why}")
            say(console, f"{'':<12} remedy: {found.remedy}")
        counts = {severity: sum(f.severity == severity for f in self.findings) for severity in SEVERITIES}
        parts = [f"{number} {severity}{'s' * (number != 1)}" for severity, number in counts.items() if number]
        healthy = "healthy" if self.code() == 0 else "not healthy"
        say(console, f"{healthy:<12} {', '.join(parts) or 'nothing found'}")


def _table(terms: Sequence[TermFacts]) -> Table:
    table = Table("observation", "size", "mean", "std", "min", "max", "", box=None, pad_edge=False)
    for term in terms[:MOST_TERMS]:
        numbers = (f"{value:.4g}" for value in (term.mean, term.std, term.low, term.high))
        table.add_row(term.term, str(term.size), *numbers, term.remark)
    if len(terms) > MOST_TERMS:
        table.add_row(f"and {len(terms) - MOST_TERMS} more", *[""] * 6)
    return table


def listed(names: Sequence[str], most: int = 6) -> str:
    """Names in one line, a few of many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def plural(number: int, word: str) -> str:
    """A number and a word, such as ``1 env`` or ``1,024 envs``."""
    return f"{number:,} {word}{'s' * (number != 1)}"


def setting(config: Any, name: str, default: Any = None) -> Any:
    """A setting of an agent that not every algorithm has, of a dataclass or of what a run's file holds."""
    return config.get(name, default) if isinstance(config, Mapping) else getattr(config, name, default)
