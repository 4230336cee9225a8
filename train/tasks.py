"""The table of what can be trained."""

from __future__ import annotations

import warnings

import gymnasium
from rich.console import Console
from rich.table import Table

from rlcore.env import spec_of
from rlcore.envs import GYM_PREFIX, TASKS, make_env, nearest_names
from rlcore.train.evaluate import ENDLESS
from rlcore.train.registered import registered_names


def print_tasks(part: str) -> None:
    """Print the tasks whose name has ``part`` in it, in whatever case.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    for simulator in ("isaaclab", "mjlab"):
        if part.lower().startswith(simulator[:5]):  # names begin with Isaac- or Mjlab-; making one takes long
            names = registered_names(simulator)
            print("\n".join([name for name in names if part.lower() in name.lower()] or names))
            return
    built_in = [name for name in TASKS if part.lower() in name.lower()]
    ids = _gymnasium_ids()
    matching = {family: [name for name in names if part.lower() in name.lower()] for family, names in ids.items()}
    if not built_in and not any(matching.values()):
        every = [*TASKS, *(name for names in ids.values() for name in names)]
        close = nearest_names(part, every, count=1)
        hint = f"did you mean {close[0]}?" if close else "`rlcore tasks` lists them all"
        raise ValueError(f"no task has '{part}' in its name; {hint}")
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="bold")
    for title in ("task", "observations", "action", "episode"):
        table.add_column(title, no_wrap=True)
    missing: list[str] = []
    # Building all gymnasium tasks would take long, so that those are described which were asked for.
    for name in built_in + [name for names in matching.values() for name in names if part]:
        try:
            table.add_row(name, *_describe(name))
        except ValueError as error:
            missing.append(str(error))
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # rich assumes 80 columns in a pipe, and would cut names
    if table.rows:
        console.print(table)
    for reason in missing:
        print(f"not available here: {reason}")
    if not part:
        print("\nand gymnasium ids; `rlcore tasks PART_OF_A_NAME` shows their sizes:")
        for family, names in matching.items():
            print(f"  {family}: {', '.join(names)}")
        print("\nand those of simulators where they are installed: `rlcore tasks Mjlab`, `rlcore tasks Isaac`")


def _describe(name: str) -> tuple[str, str, str]:
    """Observation sizes, action size and episode length.

    Raises:
        ValueError: the task cannot be built here.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = make_env(name, 1)
        spec, length = spec_of(env), env.max_episode_length
        env.close()
    sizes = ", ".join(f"{group} {size}" for group, size in spec.observation_sizes.items())
    action = f"{spec.action_size} {'choices' if spec.discrete else 'numbers'}"
    return sizes, action, "no limit" if length >= ENDLESS else f"{length} steps"


def _gymnasium_ids() -> dict[str, list[str]]:
    """Latest versions of the registered ids by family."""
    latest: dict[str, tuple[int, str, str]] = {}
    for spec in gymnasium.registry.values():
        version = spec.version or 0
        key = f"{spec.namespace}/{spec.name}"
        if key not in latest or version > latest[key][0]:
            place = spec.entry_point if isinstance(spec.entry_point, str) else "other"
            parts = place.partition(":")[0].split(".")
            family = parts[2] if parts[:2] == ["gymnasium", "envs"] and len(parts) > 2 else parts[0]
            if family == "other":
                continue  # shells around envs of old gym versions, which need arguments
            latest[key] = (version, family, spec.id)
    families: dict[str, list[str]] = {}
    for _, family, name in latest.values():
        families.setdefault(family, []).append(f"{GYM_PREFIX}{name}")
    return families
