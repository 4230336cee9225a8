"""Time iterations of PPO: ``num_steps`` vector steps collected, then learned from.

    python benchmarks/throughput.py --device cuda --sizes 1024 4096 16384 65536 --precision tf32 bf16 \
        --peers rsl_rl skrl rl_games --rounds 2 --json out.json --plot steps.png --profile trace.json.gz

Each library runs in a process of its own, and all configurations take turns, round after round, so that a machine
that drifts favors none. After the warm-up come ``--iterations`` iterations with collect and learn timed apart, the
device synchronized at each boundary, then as many again with the clock read but nothing synchronized. The second part
gives the iteration that a user waits for.

On a CPU, gymnasium's tasks beside Stable-Baselines3 and SBX:

    python benchmarks/throughput.py --device cpu --threads 1 --task gym:CartPole-v1 --sizes 8 --num-steps 32 \
        --epochs 20 --minibatches 1 --hidden 64 64 --precision fp32 --peers sb3 sbx --rounds 8
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from facts import header, label, write
from gymnasium_peers import refuse
from profiler import profile_iteration
from report import markdown, plot, show
from rich.console import Console
from timing import PEERS, Processes, note_missing, take_turns
from work import Common, Precision, Work

from rlcore.types import Mode


@dataclass(frozen=True, kw_only=True)
class Settings(Common):
    """Time iterations of PPO, and of other libraries on the same work."""

    sizes: tuple[int, ...] = (4096,)
    """Numbers of envs stepped together, one after the other."""
    precision: tuple[Precision, ...] = ("tf32",)
    """Matrix products of rlcore on CUDA, one after the other. Other libraries run at tf32 and fp32, of these
    what is named; for bf16 at tf32."""
    mode: tuple[Mode, ...] = ("graph",)
    """How rlcore runs on CUDA, one after the other."""
    capture_env: tuple[Literal["yes", "no"], ...] = ("yes",)
    """Whether rlcore may record the env with the rollout, where the env allows it; most simulators do not."""
    peers: tuple[str, ...] = ()
    """Other libraries to run beside rlcore: rsl_rl, rsl_rl_compiled, skrl, rl_games; on gymnasium's tasks and a CPU
    sb3, sbx."""
    rounds: int = 1
    """Times that every configuration has its turn; the samples count together."""
    profile: Path | None = None
    """File for the trace of one iteration of rlcore's first configuration, .json or .json.gz; adds the ten costliest
    kernels to the results."""
    plot: Path | None = None
    """File for a picture of env steps per second by number of envs."""
    markdown: bool = False
    """Also print the results as Markdown."""
    json: Path | None = None
    """File for the results; written anew after each round."""

    def libraries(self) -> list[str]:
        """Names in ``peers``, which may be written with commas too."""
        return [name for word in self.peers for name in word.split(",") if name]

    def works(self, num_envs: int) -> list[tuple[str, Work]]:
        """What is to be run at a number of envs, rlcore first.

        Raises:
            ValueError: a name in ``peers`` that is not one of ``PEERS``, or a library that does not fit the task.
        """
        common = {field.name: getattr(self, field.name) for field in dataclasses.fields(Common)}
        works = [
            ("rlcore", Work(**common, num_envs=num_envs, precision=precision, mode=mode, capture_env=env == "yes"))
            for precision, mode, env in itertools.product(self.precision, self.mode, self.capture_env)
        ]
        # What multiplies float32 matrices in the peers; bf16 is not set up for them here.
        refuse(self.task, self.device, self.libraries())
        theirs: dict[Precision, None] = {"fp32" if own == "fp32" else "tf32": None for own in self.precision}
        for name in self.libraries():
            if name not in PEERS:
                raise ValueError(f"--peers: unknown library '{name}'; choose from {' '.join(PEERS)}")
            if self.rnn != "none" and not name.startswith("rsl_rl"):
                raise ValueError(f"--rnn {self.rnn}: {name} is not set up for it here; leave it out of --peers")
            works += [(name, Work(**common, num_envs=num_envs, precision=precision)) for precision in theirs]
        return works


def run_size(num_envs: int, settings: Settings, report: dict[str, Any], processes: Processes, console: Console) -> None:
    """Let every configuration have its turns at one number of envs, and add the results to the report."""

    def title(name: str, work: Work) -> str:
        text = f"{label({**vars(work), 'name': name}, full=True)}, {num_envs} envs"
        return text if work.capture_env else text + ", capture_env no"

    earlier = report["results"]
    for results in take_turns(settings.works(num_envs), title, settings.rounds, report, processes, console):
        for result in results:
            result["env_steps_per_s"] = num_envs * settings.num_steps / result["iteration_ms"]["median"] * 1e3
        report["results"] = earlier + results
        write(report, settings.json)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    settings = tyro.cli(Settings, args=arguments)
    console = Console()
    console = Console(width=max(console.width, 160))
    try:
        first = settings.works(settings.sizes[0])[0][1]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    report = header("throughput", arguments, settings) | {"results": [], "missing": {}, "failed": {}}
    note_missing(settings.libraries(), report, console)
    with Processes() as processes:
        for num_envs in settings.sizes:
            run_size(num_envs, settings, report, processes, console)
        if settings.profile is not None:
            try:
                report["profile"] = processes.call("rlcore", profile_iteration, first, settings.profile)
            except Exception as error:
                report["failed"]["profile"] = f"{type(error).__name__}: {error}"
                console.print(f"profile failed: {report['failed']['profile']}", highlight=False, markup=False)
    write(report, settings.json)
    show(report, console)
    if settings.markdown:
        print(markdown([report]))
    if settings.plot is not None and report["results"]:
        plot([report], settings.plot)
    for path in (settings.json, settings.profile, settings.plot):
        if path is not None and path.exists():
            console.print(f"written: {path}", highlight=False)
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
