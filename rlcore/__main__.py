"""``python -m rlcore`` is the ``rlcore`` command."""

from __future__ import annotations

import sys

from rlcore.train.cli import main

if __name__ == "__main__":
    sys.exit(main())
