"""``rlcore tasks``: list what can be trained."""

from __future__ import annotations

from collections.abc import Sequence

from rlcore.train.arguments import Job, asks_help
from rlcore.train.commands.launching import launched


def tasks_command(words: Sequence[str]) -> Job:
    """Print the tasks that the words of ``rlcore tasks`` ask for."""
    if asks_help(words):
        print("usage: rlcore tasks [FILTER]\n\nList what can be trained; FILTER is part of a name.")
        return lambda: 0
    if len(words) > 1 or (words and words[0].startswith("-")):
        raise ValueError(f"unexpected word '{words[-1]}'; write rlcore tasks, or rlcore tasks FILTER")
    part = words[0] if words else ""
    if part.lower().startswith("isaac"):
        launched(["--task", "Isaac-", "--headless"])
    from rlcore.train.tasks import print_tasks

    print_tasks(part)
    return lambda: 0
