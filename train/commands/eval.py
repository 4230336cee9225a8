"""``rlcore eval``: measure a policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlcore.train.arguments import Job, read
from rlcore.train.commands.common import READ_ONLY, check_counts, check_file, check_seed, closing
from rlcore.train.commands.launching import launched


@dataclass(frozen=True, kw_only=True)
class EvalArguments:
    """Measure a policy: every env's first complete episode counts once."""

    run: Path | None = None
    """Run folder or checkpoint."""
    checkpoint: str = "best"
    """best, last, or an iteration."""
    onnx: Path | None = None
    """Exported file to measure instead, by itself."""
    task: str | None = None
    """Another task with the same observations and actions; or that of a file that does not name its own."""
    given_task: bool = False
    """Tell a policy its task that would infer it (of a run; a file is exported so)."""
    stage: Literal["trained", "start", "end", "all"] | None = None
    """Where the curricula of the env stand: where training stood last, where they begin, with all envs at the hardest
    level (end), or evenly over all levels (all). None: trained, where it is known."""
    num_envs: int = 100
    """Copies of the task."""
    episodes: int | None = None
    """Episodes in all, rounded up to a multiple of num_envs; None: one for each env."""
    seed: int = 4_000_003
    """Seed of the episodes."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<index>."""
    threads: int | None = None
    """CPU threads of PyTorch. None: by the size of the policy and num_envs, or what OMP_NUM_THREADS says."""
    output: Path | None = None
    """Where to write the figures; None: eval.json in the run folder, or beside the ONNX file."""


def eval_command(words: Sequence[str]) -> Job:
    """Read the words of ``rlcore eval``."""
    given = read(launched(words), EvalArguments, "rlcore eval", free="env")
    if given is None:
        return lambda: 0
    args, options = given
    check_counts(num_envs=args.num_envs, episodes=args.episodes, threads=args.threads)
    check_seed(args.seed)
    check_file("--output", args.output, "eval.json")

    import torch
    from rich.console import Console
    from torch import nn

    from rlcore.train.conclude import DROPPED, evaluation_record, say, update_evaluation, write_json
    from rlcore.train.ending import standard_output
    from rlcore.train.evaluate import evaluate
    from rlcore.train.pulse import pulse
    from rlcore.train.run import RunFolder
    from rlcore.train.source import policy_and_env
    from rlcore.train.threads import use_threads

    source = policy_and_env(args, options, args.num_envs)
    if isinstance(source.policy, nn.Module):
        source.notes += use_threads(args.threads, args.num_envs, source.policy, torch.device(source.env.device))
    rounds = -(-(args.episodes or args.num_envs) // args.num_envs)

    def job() -> int:
        console = Console(file=standard_output())
        at = {"stage": source.stage, "violations": source.violations}
        with pulse(console, source.env) as before:
            result = evaluate(source.env, source.policy, args.seed, rounds=rounds, before=before, **at)
        output = args.output or source.folder / "eval.json"
        record = evaluation_record(
            source.task, source.options, source.path, args.seed, result, source.env, source.stage, source.which
        )
        say(console, f"{source.task}, {source.path}")
        for line in source.notes:
            say(console, line)
        for line in result.lines():
            say(console, line)
        intervals = ["Student's t for the mean return"] * (result.episodes > 1)
        intervals += ["Wilson's score for the success rate"] * (result.success is not None)
        if intervals:
            say(console, f"intervals of 95%: {', '.join(intervals)}")
        try:
            if args.output or args.onnx:
                write_json(output, record)
            elif update_evaluation(RunFolder(source.folder), record):
                say(console, DROPPED)
        except OSError as error:
            if args.output or error.errno not in READ_ONLY:
                raise
            say(console, f"not written: {output}: {error.strerror}; --output FILE writes the figures elsewhere")
            return 0
        say(console, f"written to {output}")
        return 0

    return closing(source.env, job)
