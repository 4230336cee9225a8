"""What MkDocs does beside its plugins: pages from outside of docs/, their links, and equations without scripts.

``mkdocs.yml`` names this file under ``hooks``; it needs nothing but MkDocs and, where a page has equations,
latex2mathml.
"""

from __future__ import annotations

import ast
import html
import os
import posixpath
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

ROOT = Path(__file__).parent.parent
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/RESULTS.md")
"""Pages that lie elsewhere in the repository; on the site they have the same path."""

EVERY_FILE = "<!-- every file -->"
"""Where that table goes."""

LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")
FENCE = re.compile(r"(^```.*?^```[^\n]*$)", re.DOTALL | re.MULTILINE)
MATH = re.compile(r'<(div|span) class="arithmatex">\\[\[(](.*?)\\[\])]</\1>', re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name headings as GitHub does, so that a link to one holds here and there."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add ``PAGES``, and every file of the repository outside of docs/ to which a page links."""
    docs = Path(config.docs_dir)
    sources = {name: ROOT / name for name in PAGES}
    for page in [*files.documentation_pages(), *sources]:
        place, path = (page, sources[page]) if isinstance(page, str) else (page.src_uri, docs / page.src_uri)
        for target in outside(place, path.read_text(encoding="utf-8")):
            sources.setdefault(target, ROOT / target)
    for name, path in sources.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Let links lead to where the site has what they name: docs/ is its root, and all else has its path."""
    place = page.file.src_uri
    folder = posixpath.dirname(place)
    base = folder if place in PAGES else posixpath.join("docs", folder)

    def moved(found: re.Match[str]) -> str:
        if "://" in found[2] or found[2].startswith("mailto:"):
            return found[0]
        target = posixpath.normpath(posixpath.join(base, found[2])).removeprefix("docs/")
        return found[1] + posixpath.relpath(target, folder or ".") + (found[3] or "") + found[4]

    parts = FENCE.split(markdown)
    text = "".join(part if part.startswith("```") else LINK.sub(moved, part) for part in parts)
    return text.replace(EVERY_FILE, every_file()) if EVERY_FILE in text else text


def folders() -> list[str]:
    """The packages of ``rlcore``, each before those in it, and the programs beside them."""
    found = []
    for name in ("rlcore", "envs", "export", "train"):
        inner = [path for path in (ROOT / name).iterdir() if (path / "__init__.py").is_file() and not path.is_symlink()]
        found += [name, *sorted(f"{name}/{path.name}" for path in inner)]
    return [*found, "benchmarks", "examples"]


def every_file() -> str:
    """Tables of all modules, a folder each, with the first lines of their docstrings."""
    tables = []
    for folder in folders():
        rows = [f"### {folder}/", "", "| file | |", "|---|---|"]
        for path in sorted((ROOT / folder).glob("*.py")):
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            first = " ".join(docstring.partition("\n\n")[0].split()).replace("``", "`").replace("|", "\\|")
            rows.append(f"| `{path.name}` | {first} |")
        tables.append("\n".join(rows))
    return "\n\n".join(tables)


def on_page_content(content: str, **_: Any) -> str:
    """Equations as MathML, which browsers draw by themselves."""

    def drawn(found: re.Match[str]) -> str:
        from latex2mathml.converter import convert

        return str(convert(html.unescape(found[2]).strip(), display="block" if found[1] == "div" else "inline"))

    return MATH.sub(drawn, content)


def outside(place: str, text: str) -> set[str]:
    """Files outside of docs/ to which a page links, by their path in the repository.

    Args:
        place: of the page on the site, such as ``guides/mjlab.md``.
        text: of the page.
    """
    base = PurePosixPath(place).parent if place in PAGES else PurePosixPath("docs", place).parent
    links = (found[2] for part in FENCE.split(text) if not part.startswith("```") for found in LINK.finditer(part))
    targets = (posixpath.normpath(posixpath.join(str(base), link)) for link in links)
    return {name for name in targets if not name.startswith(("docs/", "..")) and os.path.isfile(ROOT / name)}
