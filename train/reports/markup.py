"""HTML that cannot be broken out of: every text is escaped but what was made here."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any


class Html(str):
    """A text that is HTML already."""

    __slots__ = ()


def escaped(text: object) -> Html:
    """Anything as HTML: what is none yet is shown as it is, with characters that text cannot have replaced."""
    if isinstance(text, Html):
        return text
    shown = str(text).encode("utf-8", errors="replace").decode("utf-8")
    return Html(html.escape("".join(c if c >= " " or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in shown)))


def tag(name: str, *children: object, **attributes: object) -> Html:
    """An element; attributes are ``class_`` for ``class``, ``data_x`` for ``data-x``; True has no value."""
    words = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escaped(value)}"')
        for key, value in attributes.items()
    )
    return Html(f"<{name}{words}>{joined(children)}" + (f"</{name}>" if name != "br" else ""))


def joined(parts: Iterable[object]) -> Html:
    """Parts one after the other."""
    return Html("".join(escaped(part) for part in parts))


def table(head: Sequence[object], rows: Iterable[Sequence[object]], text_columns: int = 1) -> Html:
    """A table that scrolls where it is too wide; columns after the first ``text_columns`` are numbers."""

    def cells(kind: str, row: Sequence[object]) -> Html:
        return joined(tag(kind, cell, **({} if i < text_columns else {"class_": "n"})) for i, cell in enumerate(row))

    top = tag("thead", tag("tr", cells("th", head))) if any(head) else ""
    body = tag("tbody", *(tag("tr", cells("td", row)) for row in rows))
    return tag("div", tag("table", top, body), class_="wide")


def folded(summary: str, *children: object, opened: bool = False) -> Html:
    """Something to unfold."""
    return tag("details", tag("summary", summary), *children, **({"open": True} if opened else {}))


def picture(name: str, kind: str, content: bytes) -> Html:
    """A picture inside the page."""
    source = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return tag("figure", Html(f'<img alt="{escaped(name)}" src="{source}">'), tag("figcaption", name), class_="picture")


def document(title: str, *body: object, data: Any) -> str:
    """A whole page that needs no network; its own style and program are the only ones that a browser will take.

    Args:
        title: of the page.
        body: what it shows.
        data: what the program of the page draws, as JSON.
    """
    style, program = (files(__package__).joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(program)}'"
    # Within a script no character is escaped, so that none may be there that could end it.
    plain = json.dumps(data, allow_nan=False, separators=(",", ":"))
    plain = plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return joined(
        [
            Html('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'),
            Html(f'<meta http-equiv="Content-Security-Policy" content="{escaped(policy)}">'),
            Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            tag("title", title),
            Html(f"<style>{style}</style></head><body><main>"),
            *body,
            Html(f'</main><script type="application/json" id="data">{plain}</script><script>{program}</script>'),
            Html("</body></html>\n"),
        ]
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
