"""What became of every key of a configuration, told and shown."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rlcore.train.importers.convert import Conversion
from rlcore.train.importers.translation import STYLES, short


def tell(conversion: Conversion, where: str = "") -> None:
    """Say on standard error what became of the keys.

    Args:
        conversion: what to tell of.
        where: how to see all of it.
    """
    print(f"settings     of {conversion.library}: {conversion.summary}{where}", file=sys.stderr)


def show(conversion: Conversion, console: Console | None = None) -> None:
    """Print what became of every key: first what changed its meaning, then what was dropped, the rest after."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=200)  # rich assumes 80 columns in a pipe
    table = Table(title=f"{conversion.library} -> rlcore", title_justify="left", header_style="bold")
    for title in (conversion.library, "value", "rlcore", "", "note"):
        table.add_column(title, overflow="fold")
    for status, style in STYLES.items():
        for row in conversion.rows:
            if row.status == status:
                cells = (escape(cell) for cell in (row.key, short(row.value), row.ours or "-"))
                table.add_row(*cells, f"[{style}]{status}[/]", escape(row.note))
        table.add_section()
    console.print(table)
    console.print(", ".join(f"{count} {status}" for status, count in conversion.counts.items()))
    if conversion.unknown:
        console.print(f"[red]unknown keys, not used: {escape(', '.join(conversion.unknown))}[/]")
