"""The algorithms: one record each, which the command line, runs, checkpoints and conversions read."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from rlcore import ddpg, maml, sac, user_code
from rlcore.agent import Algorithm, Preset
from rlcore.config import ConfigError, nearest
from rlcore.names import nearest_names
from rlcore.policies import build_policy
from rlcore.ppo import PPO
from rlcore.ppo_config import PPOConfig
from rlcore.user_code import imported, is_place, theirs

CONFIGS = Path(__file__).resolve().parent / "configs"
"""Folder of the files that are shipped for tasks; PPO's are in it, those of others in one each."""

FEW = "for one or a few envs"

ALGORITHMS: dict[str, Algorithm[Any]] = {
    "ppo": Algorithm(
        name="ppo", agent=PPO, config=PPOConfig, policy=build_policy, shipped=CONFIGS, unnamed_entries=True
    ),
    "sac": Algorithm(
        name="sac",
        agent=sac.SAC,
        config=sac.SACConfig,
        policy=sac.build_policy,
        on_policy=False,
        bounded_actions=True,
        presets={
            "classic": Preset(about=FEW, shipped=CONFIGS / "sac"),
            "gpu": Preset(
                about="for hundreds and more",
                settings=sac.SACConfig.presets()["gpu"],
                shipped=CONFIGS / "sac-gpu",
                cuda=True,
            ),
        },
    ),
    "ddpg": Algorithm(
        name="ddpg",
        agent=ddpg.DDPG,
        config=ddpg.DDPGConfig,
        policy=ddpg.build_policy,
        on_policy=False,
        bounded_actions=True,
        aliases={"td3": "td3"},
        presets={
            "classic": Preset(about=FEW, shipped=CONFIGS / "ddpg"),
            "td3": Preset(
                about="for the same with what makes it TD3",
                settings=ddpg.DDPGConfig.presets()["td3"],
                shipped=CONFIGS / "ddpg",
            ),
            "gpu": Preset(
                about="for hundreds of envs and more",
                settings=ddpg.DDPGConfig.presets()["gpu"],
                shipped=CONFIGS / "ddpg-gpu",
                cuda=True,
            ),
        },
    ),
    "maml": Algorithm(
        name="maml",
        agent=maml.MAML,
        config=maml.MAMLConfig,
        policy=build_policy,
        num_envs=512,
        num_iterations=300,
        shipped=CONFIGS / "maml",
    ),
}
"""By name. One of a user's own stands in a file of its own, see ``find``."""

ALIASES = {alias: name for name, record in ALGORITHMS.items() for alias in record.aliases}
"""Other names, and whose they are."""

NAMES = "{" + ",".join([*ALGORITHMS, *ALIASES, "FILE.py"]) + "}"
"""What ``--help`` says that an algorithm may be called."""


def find(algo: object, where: str = "algo") -> Algorithm[Any]:
    """The record of an algorithm.

    Args:
        algo: a name of ``ALGORITHMS``, or where a record of one's own is: ``FILE.py`` or ``module:NAME``; see
            ``written_as``.
        where: whose value it is, for messages.

    Raises:
        ConfigError: there is no such algorithm; one line that names the nearest, or what is there instead.
    """
    if isinstance(algo, str):
        if algo in ALGORITHMS:
            return ALGORITHMS[algo]
        if is_place(algo):
            module, name = theirs(lambda: imported(algo, where), f"{where}: '{algo}' cannot be imported")
            return _record(module, name, algo, where)
    known = [*ALGORITHMS, *ALIASES] if where.startswith("-") else ALGORITHMS
    files = [path.name for path in Path().glob("*.py")] if where.startswith("-") else []
    hint = next((f"did you mean '{file}'?" for file in nearest_names(f"{algo}", files, 1, cutoff=0.7)), None)
    if hint is None:
        hint = nearest(str(algo), known)
        if where.startswith("-"):
            hint += " Or name a FILE.py of your own" if hint.endswith("?") else ", or a FILE.py of your own"
    raise ConfigError(f"{where}: {algo!r} is no algorithm; {hint}")


def algorithm(name: str, preset: str | None = None) -> tuple[str, str | None]:
    """Algorithm and preset that a command line means: ``td3`` is a name for DDPG with a preset.

    Raises:
        ConfigError: ``td3`` with a preset that does not make DDPG that.
    """
    if name not in ALIASES:
        return written_as(name), preset
    record = ALGORITHMS[ALIASES[name]]
    plain = next(iter(record.presets))
    if preset == plain:
        raise ConfigError(
            f"--preset is '{plain}', which is {record.name.upper()} without what makes it {name}; leave it out, or add "
            f"--algo {record.name}"
        )
    return record.name, preset or record.aliases[name]


def written_as(name: str) -> str:
    """How a configuration names an algorithm, so that it is found from other folders, too.

    One of a user's own is the absolute path of its file, of which ``a2c`` is short for that of ``a2c.py`` in the
    present folder; or ``module:NAME`` of an installed module.
    """
    if name in ALGORITHMS:
        return name
    return user_code.written_as(f"{name}.py" if not is_place(name) and Path(f"{name}.py").is_file() else name)


def _record(module: ModuleType, name: str, algo: str, where: str) -> Algorithm[Any]:
    there = {key: value for key, value in vars(module).items() if isinstance(value, Algorithm)}
    if name in there or (not name and len(there) == 1):
        record = there[name or next(iter(there))]
        if record.name in {*ALGORITHMS, *ALIASES} - {name for name, known in ALGORITHMS.items() if known is record}:
            raise ConfigError(f"{where}: '{algo}': its name is '{record.name}', which is taken; give it another")
        return record
    what = f"'{name}' in it is no rlcore.Algorithm" if name else f"it has {len(there)} records of rlcore.Algorithm"
    remedy = f"there is {', '.join(there)}: write {algo.partition(':')[0]}:NAME" if there else "give it one"
    raise ConfigError(f"{where}: '{algo}': {what}; {remedy}")
