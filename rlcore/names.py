"""Which name was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest_names(name: str, valid: Iterable[object], count: int = 3, cutoff: float = 0.5) -> list[str]:
    """Valid names most like ``name`` whatever their case, best first; empty when none is near.

    Args:
        name: as it was written.
        valid: what there is.
        count: of names at most.
        cutoff: how alike they have to be, from 0 to 1.
    """
    by_lower = {str(v).lower(): str(v) for v in valid}
    return [
        by_lower[match] for match in difflib.get_close_matches(name.lower(), list(by_lower), n=count, cutoff=cutoff)
    ]
