"""``rlcore import``: a run from another library's checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlcore.train.arguments import Job, read
from rlcore.train.commands.common import check_counts, check_seed
from rlcore.train.commands.launching import launched


@dataclass(frozen=True, kw_only=True)
class ImportArguments:
    """Make a run of a checkpoint of rsl_rl, rl_games, skrl or Stable-Baselines3: rlcore import FILE --task TASK.

    Nothing in the file is executed.
    """

    file: Path | None = None
    """The checkpoint: model_1500.pt, nn/NAME.pth, agent_5000.pt or NAME.zip; --file may be left out."""
    task: str | None = None
    """Task that it was trained on."""
    config: Path | None = None
    """Configuration of its library, such as agent.yaml. None: params/agent.yaml near the file; else what the task is
    registered with; else the library's defaults, and networks as the tensors' shapes tell."""
    normalizer: Path | None = None
    """Pickle of VecNormalize of Stable-Baselines3; None: the one beside the file, if there is one."""
    activation: str | None = None
    """Activation of the hidden layers, which no tensor tells; None: by the configuration, else the library's usual."""
    num_envs: int | None = None
    """Copies of the task with which training goes on; None: by the configuration, or as many as an archive of
    Stable-Baselines3 was trained with; else 64."""
    seed: int = 1
    """Seed of what follows."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<index>."""
    name: str | None = None
    """Added to the name of the run folder."""
    runs_dir: str = "runs"
    """Folder that holds the run folders."""


def import_command(words: Sequence[str]) -> Job:
    """Make the run that the words of ``rlcore import`` ask for."""
    words = list(words)
    if words and (not words[0].startswith("-") and ("=" not in words[0] or Path(words[0]).exists())):
        words = ["--file", *words]
    given = read(launched(words), ImportArguments, "rlcore import", free="env")
    if given is None:
        return lambda: 0
    args, options = given
    check_counts(num_envs=args.num_envs)
    check_seed(args.seed)
    if args.file is None:
        raise ValueError("the file is missing; write rlcore import FILE --task TASK")
    if args.task is None:
        raise ValueError(
            "--task is missing; give the one that the checkpoint was trained on (`rlcore tasks` lists them)"
        )

    from rlcore.train.importing import import_checkpoint

    run, checkpoint, notes = import_checkpoint(
        args.file,
        args.task,
        config=args.config,
        normalizer=args.normalizer,
        nonlinearity=args.activation,
        num_envs=args.num_envs,
        device=args.device,
        seed=args.seed,
        name=args.name,
        runs_dir=args.runs_dir,
        options=options,
    )
    for note in notes:
        print(f"note         {note}")
    print(f"imported     {checkpoint} from {args.file}")
    print(f"             rlcore eval --run {run.path}")
    return lambda: 0
