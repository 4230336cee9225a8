"""Time SAC and DDPG: a vector step of acting and storing, and the gradient steps that follow it.

    python benchmarks/offpolicy.py --device cuda --algo sac ddpg --preset classic gpu --mode graph eager \
        --peers skrl --rounds 2 --json offpolicy.json --markdown

Every library gets the same env tensors, networks, batches and replay memory, which counts as full from the start, so
that samples come from all of it. Timing is that of ``throughput.py`` with one vector step an iteration: first with the
device idle before and after the update, then as many steps again with nothing synchronized.

On a CPU, gymnasium's tasks beside Stable-Baselines3 and SBX:

    python benchmarks/offpolicy.py --device cpu --threads 1 --task gym:HalfCheetah-v5 --num-envs 1 --batch 256 \
        --buffer 100000 --actor 256 256 --critic 256 256 --algo sac --mode eager --precision fp32 --peers sb3 sbx \
        --iterations 100 --rounds 8
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import offpolicy_peers
import tyro
from facts import header, label, write
from gymnasium_peers import refuse
from offpolicy_report import markdown, show
from rich.console import Console
from timing import Processes, env_of, looped, note_missing, take_turns
from work import Algo, Precision, Prepared, Preset, ReplayWork, Shape, Subject

from rlcore.ddpg import DDPG, DDPGConfig
from rlcore.env import VecEnv
from rlcore.networks import NetworkConfig
from rlcore.sac import SAC, SACConfig
from rlcore.types import Mode

AGENTS: dict[str, tuple[Callable[..., Any], Any]] = {"sac": (SAC, SACConfig), "ddpg": (DDPG, DDPGConfig)}


@dataclass(frozen=True, kw_only=True)
class Settings(Shape):
    """Time SAC and DDPG, and another library on the same work."""

    algo: tuple[Algo, ...] = ("sac", "ddpg")
    """Algorithms, one after the other."""
    num_envs: int = 4096
    """Envs stepped together."""
    updates: tuple[int, ...] = (1,)
    """Gradient steps after each vector step, one number after the other."""
    preset: tuple[Preset, ...] = ("classic",)
    """Settings of rlcore: classic with the sizes given here, gpu with networks and batch of its own; gpu runs without
    others beside it."""
    gpu_envs: int = 1024
    """Envs stepped together with the preset gpu."""
    gpu_updates: int = 4
    """Gradient steps after each vector step with the preset gpu."""
    precision: tuple[Precision, ...] = ("tf32",)
    """Matrix products of rlcore on CUDA, one after the other. Others run at tf32, or at fp32 if this is fp32 alone;
    the preset gpu runs as it is."""
    mode: tuple[Mode, ...] = ("graph", "eager")
    """How rlcore runs on CUDA, one after the other."""
    peers: tuple[str, ...] = ()
    """Other libraries to run beside rlcore: skrl; on gymnasium's tasks and a CPU sb3, sbx."""
    rounds: int = 1
    """Times that every configuration has its turn; the samples count together."""
    markdown: bool = False
    """Also print the results as Markdown."""
    json: Path | None = None
    """File for the results; written anew after each round."""

    def groups(self) -> list[list[tuple[str, ReplayWork]]]:
        """What is to be run: the works of a group have their turns together, rlcore first.

        Raises:
            ValueError: a peer that is not known or does not fit the task, or a precision that rlcore lacks here.
        """
        for name in self.peers:
            if name not in offpolicy_peers.BUILD:
                raise ValueError(f"--peers: unknown library '{name}'; choose from {' '.join(offpolicy_peers.BUILD)}")
        refuse(self.task, self.device, self.peers)
        found = []
        for algo in self.algo:
            if "classic" in self.preset:
                found += [self._classic(algo, updates) for updates in self.updates]
            if "gpu" in self.preset:
                own = AGENTS[algo][1].preset("gpu")
                about = {"preset": "gpu", "num_envs": self.gpu_envs, "updates": self.gpu_updates}
                sizes = {"batch": own.batch_size, "actor": own.actor.hidden_dims, "critic": own.critic.hidden_dims}
                work = {**self._shape(), **about, **sizes, "algo": algo, "precision": own.precision}
                found.append([("rlcore", ReplayWork(**work, mode=mode)) for mode in self.mode])
        return found

    def _classic(self, algo: Algo, updates: int) -> list[tuple[str, ReplayWork]]:
        work = {**self._shape(), "num_envs": self.num_envs, "algo": algo, "preset": "classic", "updates": updates}
        have = get_args(get_type_hints(AGENTS[algo][1])["precision"])
        for precision in self.precision:
            if precision not in have:
                raise ValueError(f"--precision: {algo} has no '{precision}'; choose from {' '.join(have)}")
        works = [
            ("rlcore", ReplayWork(**work, precision=precision, mode=mode))
            for precision, mode in itertools.product(self.precision, self.mode)
        ]
        theirs: Precision = "fp32" if set(self.precision) == {"fp32"} else "tf32"
        for name in self.peers:
            works.append((name, ReplayWork(**work, precision=theirs)))
        return works

    def _shape(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(Shape)}


def ours(env: VecEnv, work: ReplayWork) -> Subject:
    """The algorithm in the training loop."""
    build, Config = AGENTS[work.algo]
    changes: dict[str, Any] = {
        "num_updates": work.updates,
        "learning_starts": 0,
        "buffer_size": work.buffer,
        "mode": work.mode,
        "precision": work.precision,
    }
    if work.task == "Null":
        changes |= {"action_low": (-1.0,), "action_high": (1.0,)}
    if work.preset == "classic":
        networks = {"actor": work.actor, "critic": work.critic}
        changes |= {
            name: NetworkConfig(hidden_dims=dims, activation="relu", init="default") for name, dims in networks.items()
        }
        changes["batch_size"] = work.batch
    agent = build(env, Config.preset(work.preset, **changes), num_iterations=100_000)
    replay = agent.replay
    replay.size.fill_(replay.num_rows)
    agent.stored = agent.first_rows
    size = replay.num_bytes / (replay.num_rows * replay.num_envs)
    return looped(env, agent, work)._replace(facts={"bytes_per_transition": size})


def prepare(name: str, work: ReplayWork, scratch: str) -> Prepared:
    """The env, and the library on it."""
    env = env_of(name, work)
    return env, ours(env, work) if name == "rlcore" else offpolicy_peers.BUILD[name](env, work, scratch)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    settings = tyro.cli(Settings, args=arguments)
    console = Console()
    console = Console(width=max(console.width, 160))
    try:
        groups = settings.groups()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    report = header("offpolicy", arguments, settings) | {"results": [], "missing": {}, "failed": {}}
    note_missing(settings.peers, report, console)

    def named(name: str, work: ReplayWork) -> str:
        kind = f"{work.algo} {work.preset}, {label({**vars(work), 'name': name}, full=True)}"
        return f"{kind}, {work.num_envs} envs, {work.updates} updates"

    with Processes() as processes:
        for works in groups:
            earlier, work = report["results"], works[0][1]
            for results in take_turns(works, named, settings.rounds, report, processes, console, prepare):
                about = {key: getattr(work, key) for key in ("algo", "preset", "batch", "updates")}
                report["results"] = earlier + [result | about for result in results]
                write(report, settings.json)
    write(report, settings.json)
    show(report, console)
    if settings.markdown:
        print(markdown(report))
    if settings.json is not None:
        console.print(f"written: {settings.json}", highlight=False)
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
