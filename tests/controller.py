"""The controller of docs/deployment.md, as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "deployment.md"


def controller_class() -> Any:
    """Its class."""
    (text,) = [b for b in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "class Controller" in b]
    scope: dict[str, Any] = {"__name__": "controller"}
    exec(compile(text, str(PAGE), "exec"), scope)  # our own page
    return scope["Controller"]
