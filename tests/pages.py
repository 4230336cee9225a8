"""The pages of the documentation, and what is on them, read without MkDocs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]

FILES = {"python", "yaml", "cpp"}
"""Languages of blocks that may be files."""

_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```\s*$", re.DOTALL | re.MULTILINE)
_NOTE = re.compile(r"<!-- (?P<built>built, )?not run: (?P<reason>[^>]+?) -->\s*\Z")


@dataclass(frozen=True)
class Block:
    """A block of code of a page."""

    line: int
    language: str
    title: str | None
    """The file that it is."""
    text: str
    reason: str | None
    """Why it is not run, as the comment before it says."""
    built: bool
    """Whether what it trains is made all the same, up to the first step."""


def name_of(page: Path) -> str:
    """The path of a page in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page in order.

    One with ``title="env.py"`` after its language, or with ``# env.py`` as its first line, is a file.
    ``<!-- not run: REASON -->`` on the line before says why a block is not run, and ``<!-- built, not run: REASON -->``
    that its trainings are only prepared.
    """
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        language, _, attributes = found["info"].strip().partition(" ")
        title = re.search(r'title="([^"]+)"', attributes) or re.match(r"# ([\w/-]+\.(?:py|ya?ml))\n", found["text"])
        note = _NOTE.search(text[: found.start()])
        indent = len(found["indent"])
        yield Block(
            line=text.count("\n", 0, found.start()) + 1,
            language=language,
            title=None if title is None or language not in FILES else title[1],
            text="".join(line[indent:] for line in found["text"].splitlines(keepends=True)),
            reason=None if note is None else note["reason"],
            built=note is not None and note["built"] is not None,
        )


def prose(page: Path) -> str:
    """A page without its code."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return re.sub(r"`[^`\n]+`", "", text)


def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as GitHub makes them, and as ``docs/hooks.py`` has MkDocs make them."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *$", text, flags=re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.add(
            name if name not in found else next(f"{name}-{i}" for i in range(1, 99) if f"{name}-{i}" not in found)
        )
    return found


def links(page: Path) -> list[str]:
    """Where the links and the images of a page lead."""
    return re.findall(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)", prose(page))
