"""``rlcore config``: show or convert settings."""

from __future__ import annotations

from collections.abc import Sequence

from rlcore.train.arguments import Job, read
from rlcore.train.commands.common import check_file
from rlcore.train.commands.launching import launched, with_library


def config_command(words: Sequence[str]) -> Job:
    """Print the configuration that the words of ``rlcore config`` ask for."""
    words = launched(with_library(words))
    from rlcore.train.show_config import ConfigArguments, show_config

    given = read(words, ConfigArguments, "rlcore config", free="env")
    if given is None:
        return lambda: 0
    check_file("--output", given[0].output, "agent.yaml")
    show_config(*given)
    return lambda: 0
