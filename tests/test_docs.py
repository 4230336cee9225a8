"""Pages of the documentation: all are on the site, and every link, image and anchor leads somewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import DOCS, PAGES, ROOT, anchors, blocks, links, name_of

ELSEWHERE = [ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/RESULTS.md")]
"""Pages of the site outside of docs/, which ``docs/hooks.py`` adds."""


def in_nav(entries: Any) -> list[str]:
    """Paths of all pages of the navigation."""
    if isinstance(entries, str):
        return [entries]
    values = entries.values() if isinstance(entries, dict) else entries
    return [path for value in values for path in in_nav(value)]


def settings() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    return found


def test_every_page_is_in_the_navigation_once() -> None:
    nav = in_nav(settings()["nav"])
    assert len(nav) == len(set(nav))
    pages = {page.relative_to(DOCS).as_posix() for page in PAGES[1:]} | {name_of(page) for page in ELSEWHERE}
    assert pages - set(nav) == set(), "give each a line in the navigation of mkdocs.yml"
    assert set(nav) - pages == set(), "mkdocs.yml names pages that are not there"


@pytest.mark.parametrize("page", [*PAGES, *ELSEWHERE], ids=name_of)
def test_links_images_and_anchors_resolve(page: Path) -> None:
    wrong = []
    for link in links(page):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_relative_to(ROOT) or not target.exists():
            wrong.append(f"{link}: there is no such file")
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            wrong.append(f"{link}: no heading of that name; there is {', '.join(sorted(anchors(target)))}")
    assert wrong == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One Thing: `two`\n\n[a](b.md) ![c](d.png) `[no](link)`\n\n```text\n[no](link)\n```\n")
    assert links(page) == ["b.md", "d.png"]
    assert anchors(page) == {"one-thing-two"}


def test_blocks_are_read(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '```python title="a/b.py"\nx = 1\n```\n\n```yaml\n# c.yaml\nx: 1\n```\n'
        "\n<!-- not run: needs a robot -->\n```sh\ngo\n```\n"
        "\n- in a list\n\n  <!-- built, not run: takes long -->\n  ```bash\n  rlcore train\n  ```\n"
        "\n```\nprinted\n```\n"
    )
    found = [(block.line, block.language, block.title, block.text, block.reason, block.built) for block in blocks(page)]
    assert found == [
        (1, "python", "a/b.py", "x = 1\n", None, False),
        (5, "yaml", "c.yaml", "# c.yaml\nx: 1\n", None, False),
        (11, "sh", None, "go\n", "needs a robot", False),
        (18, "bash", None, "rlcore train\n", "takes long", True),
        (22, "", None, "printed\n", None, False),
    ]


def test_pictures_are_small_and_shown() -> None:
    pictures = {path for end in ("png", "gif") for path in DOCS.rglob(f"*.{end}")}
    assert all(path.stat().st_size < 210_000 for path in pictures)
    shown = {(page.parent / link.partition("#")[0]).resolve() for page in PAGES for link in links(page)}
    assert {path for path in pictures if path.resolve() not in shown} == set()


def test_the_reference_has_every_public_name() -> None:
    import rlcore
    import rlcore.export

    text = "".join(path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md"))
    told = set(re.findall(r"^::: (\S+)$", text, flags=re.MULTILINE))
    names = {f"rlcore.{name}" for name in rlcore.__all__ if not name.startswith("_")}
    names |= {f"rlcore.export.{name}" for name in rlcore.export.__all__}
    assert names - told == set()


def test_hooks_name_the_same_pages() -> None:
    assert settings()["hooks"] == ["docs/hooks.py"]
    text = (DOCS / "hooks.py").read_text(encoding="utf-8")
    (told,) = re.findall(r"^PAGES = \((.*)\)$", text, flags=re.MULTILINE)
    assert re.findall(r'"([^"]+)"', told) == [name_of(page) for page in ELSEWHERE]


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(find_spec, ("mkdocs", "material", "mkdocstrings_handlers", "latex2mathml"))),
    reason="MkDocs is not installed; `make docs` installs it",
)
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    built = tmp_path / "site"
    for page in in_nav(settings()["nav"]):
        html = (built / page).with_suffix(".html").read_text(encoding="utf-8")
        assert "<h1" in html
        for source in re.findall(r'<img[^>]* src="([^":]+)"', html):
            assert ((built / page).parent / source).is_file(), f"{page}: {source}"
    assert "make_env" in (built / "reference" / "envs.html").read_text(encoding="utf-8")
    assert not (built / "hooks.py").exists()
    home = (built / "index.html").read_text(encoding="utf-8")
    assert not re.search(r'<script[^>]*src="https?:|<link[^>]*rel="stylesheet"[^>]*"https?:', home)  # no network
    shutil.rmtree(built)
