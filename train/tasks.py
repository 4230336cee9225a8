"""The table of what can be trained."""

from __future__ import annotations

import inspect
import re
import textwrap
import warnings
from typing import Any

import gymnasium
from rich.console import Console
from rich.table import Table

import rlcore.envs.gym_costs  # noqa: F401  registers tasks
from rlcore.env import spec_of
from rlcore.envs import GYM_PREFIX, TASKS, WRAPPERS, load, make_env, own_env
from rlcore.envs.launch import PYTHON_PREFIX, SIMULATORS, TASKS_PREFIX, simulator_of
from rlcore.names import nearest_names
from rlcore.train.ending import standard_output
from rlcore.train.evaluate import ENDLESS
from rlcore.train.importers.registered import registered_names

MAKERS = {
    "isaaclab": ["rlcore.envs.isaaclab:make_isaaclab", "rlcore.envs.isaaclab:IsaacLabEnv"],
    "mjlab": ["rlcore.envs.mjlab:make_mjlab", "rlcore.envs.mjlab:MjlabEnv"],
    "gymnasium": ["rlcore.envs.gym_make:make_gymnasium"],
    "envpool": ["rlcore.envs.envpool:make_envpool"],
}
"""What takes the options of tasks that are not built in, and what else describes them."""


def print_env_options(task: str | None) -> None:
    """Print the options of a task's env with their defaults; nothing of its simulator is imported."""
    if task is None:
        print("\nenv options, written --env.NAME VALUE, are those of the task: rlcore train --task TASK --help")
        return
    if task.startswith(TASKS_PREFIX):
        print(
            "\nenv options are those of each task, written --env.TASK.NAME VALUE, and --env.TASK.share NUMBER, its part"
        )
        print("of the envs in relation to the others; rlcore train --task TASK --help shows them")
        return
    options = env_options(task)
    options["costs.NAME.SETTING"] = (
        "none",
        "signals of one's own: SETTING is observation, reward or state, the name of what is read; index; above; "
        "excess. See docs/safety.md",
    )
    options["trial_episodes"] = (
        "none",
        "so many episodes are a trial in one task, and what the last action came to is part of the observation. See "
        "docs/adaptation.md",
    )
    options["curriculum.SETTING"] = (
        "none",
        "levels of parameters or of the env's own: SETTING is parameters.NAME, levels, strategy and what it reads. See "
        "docs/curricula.md",
    )
    options["randomize.PARAMETER"] = (
        "none",
        "what is drawn anew when an episode begins: '[low, high]', true for its own range, or .range and .distribution "
        "(uniform, log_uniform). Parameters are those of the task, and of every task noise, bias, dropout, "
        "observation_delay, action_delay, action_drop, action_gain, push; noise/TERM and bias/TERM are of one term of "
        "the observations",
    )
    options["randomize.SETTING"] = (
        "none",
        "mode (fixed, adr, doraemon), success_return, push_interval; of adr widen_above, narrow_below, step, "
        "boundary_episodes; of doraemon success_rate, max_kl, interval, episodes",
    )
    print(f"\nenv options of {task}, written --env.NAME VALUE or env.NAME=VALUE")
    for name, (default, text) in options.items():
        shown, about = ("others", text) if name.startswith("*") else (name, f"{text} (default: {default})".strip())
        about = about.replace("``", "`")
        for line in textwrap.wrap(about, 108, initial_indent=f"  {shown:<20}  ", subsequent_indent=" " * 24):
            print(line)


def env_options(task: str) -> dict[str, tuple[Any, str]]:
    """Default and description of each option that a task's env takes; a name that begins with ** stands for more."""
    fixed: dict[str, Any] = {}
    makers = [load(place) for place in MAKERS.get(simulator_of(task), [])]
    if task.startswith(PYTHON_PREFIX):
        makers = [own_env(task)]
    if task in TASKS:
        place, fixed = TASKS[task]
        ending = task.rpartition("-")[2]
        makers = [load(place), *([load(WRAPPERS[ending])] if ending in WRAPPERS else [])]
    own = {"self", "env", "task", "env_id", "num_envs", "device", "seed", *fixed}
    found: dict[str, tuple[Any, str]] = {}
    for maker in makers:
        texts = _described(maker)
        for key, parameter in inspect.signature(maker).parameters.items():
            shown = f"**{key}" if parameter.kind is parameter.VAR_KEYWORD else key
            text, before = texts.get(shown, ""), found.get(shown)
            if key not in own and (before is None or before[1].startswith("see ")):
                found[shown] = (parameter.default if before is None else before[0], text)
    return found


def _described(maker: Any) -> dict[str, str]:
    """Arguments and their descriptions, from a docstring in Google's style."""
    documents = [inspect.getdoc(x) or "" for x in (maker, getattr(maker, "__init__", None)) if x is not None]
    sections = [
        match[1] for text in documents for match in re.finditer(r"^Args:\n((?: .*\n?|\n)+)", text, re.MULTILINE)
    ]
    found: dict[str, str] = {}
    for section in sections:
        for entry in re.split(r"\n(?=\S)", textwrap.dedent(section)):
            name, _, text = entry.partition(":")
            found.setdefault(name.strip(), " ".join(text.split()))
    return found


def print_tasks(part: str) -> None:
    """Print the tasks whose name has ``part`` in it, in whatever case.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    for simulator in SIMULATORS:
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
    missing: dict[str, list[str]] = {}  # names by what they lack, which may be told of the task that they are made of
    # Building all gymnasium tasks would take long, so that those are described which were asked for.
    for name in built_in + [name for names in matching.values() for name in names if part]:
        try:
            table.add_row(name, *_describe(name))
        except ValueError as error:
            missing.setdefault(re.sub(r"^\S+:\S+: ", "", str(error)), []).append(name)
    console = Console(file=standard_output())
    if not console.is_terminal:
        console = Console(file=standard_output(), width=120)  # rich assumes 80 columns in a pipe, and would cut names
    if table.rows:
        console.print(table)
    for reason, names in missing.items():
        print(f"not available here: {', '.join(names)}: {reason}")
    if not part:
        print("\nand gymnasium ids; `rlcore tasks PART_OF_A_NAME` shows their sizes:")
        for family, names in matching.items():
            missing_here = _missing(names[0])
            print(f"  {family}: {', '.join(names) if missing_here is None else f'not available here, {missing_here}'}")
        print("\nand those of simulators where they are installed: `rlcore tasks Mjlab`, `rlcore tasks Isaac`")
        print("\nand those of envpool where it is installed, envpool:ID")
        print(f"\nand an env of yours, {PYTHON_PREFIX}MODULE:CLASS")


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
    return spec.observation_text, spec.action_text, "no limit" if length >= ENDLESS else f"{length} steps"


def _missing(name: str) -> str | None:
    """What a gymnasium id, and with it those of its family, lacks here; None where it can be trained."""
    try:
        _describe(name)
    except ValueError as error:
        return str(error).removeprefix(f"{name}: ")
    return None


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
