"""``rlcore adapt``: fit a policy learned by MAML to a task that it has not seen."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlcore.train.arguments import Job, read
from rlcore.train.commands.common import check_counts, check_file, check_seed, closing, output_elsewhere, required_run
from rlcore.train.commands.launching import launched


@dataclass(frozen=True, kw_only=True)
class AdaptArguments:
    """Fit a policy that was trained with --algo maml to one task: play, take a step of policy gradient, and so on.

    The task is drawn from the family of the run by --seed, or spelled, as in --env.randomize.goal_x 0.3. The policy of
    the step that did best is exported as a file that acts alone.
    """

    run: Path | None = None
    """Run folder or checkpoint."""
    checkpoint: str = "last"
    """best, last, or an iteration. best is the one that does best before adaptation."""
    task: str | None = None
    """Another task with the same observations and actions."""
    steps: int | None = None
    """Steps of adaptation. None: as many as it was trained for."""
    num_envs: int | None = None
    """Copies of the task, each of which plays an episode before every step. None: as many as a task had in training."""
    seed: int = 4_000_003
    """Seed of the task, where it is drawn, and of the episodes."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<index>."""
    threads: int | None = None
    """CPU threads of PyTorch. None: by the size of the policy and num_envs, or what OMP_NUM_THREADS says."""
    output: Path | None = None
    """File to write; None: adapted/policy.onnx in the run folder. The figures are beside it, in adapt.json."""


def adapt_command(words: Sequence[str]) -> Job:
    """Read the words of ``rlcore adapt``."""
    given = read(launched(words), AdaptArguments, "rlcore adapt", free="env")
    if given is None:
        return lambda: 0
    args, options = given
    check_counts(steps=args.steps, num_envs=args.num_envs, threads=args.threads)
    check_seed(args.seed)
    check_file("--output", args.output, "policy.onnx")

    from rlcore.train.adapting import checked, learner, one_task, told
    from rlcore.train.conclude import restore_policy
    from rlcore.train.config import DEVICES, is_device, read_config, resolve_device
    from rlcore.train.evaluate import evaluation_options
    from rlcore.train.run import located
    from rlcore.train.source import policy_and_env
    from rlcore.train.threads import use_threads

    if not is_device(args.device):
        raise ValueError(f"--device is '{args.device}'; give {DEVICES}")
    run, path = located(required_run(args.run), args.checkpoint)
    device = resolve_device(args.device)
    policy, spec, content = restore_policy(path, device)
    settings = read_config(content["config"], source=str(path))
    config, policy = checked(settings.agent, settings.algo, policy)
    rows = args.num_envs or max(2, settings.num_envs // config.num_tasks)
    trained_with = settings.env if args.task in (None, settings.task) else {}
    wanted = evaluation_options(trained_with | options)
    wanted = one_task(args.task or settings.task, wanted, device, args.seed)
    asked = _Asked(**vars(args) | {"device": str(device)})
    source = policy_and_env(asked, wanted, rows, without=("randomize",))
    try:
        agent = learner(source.env, config, content["agent"], args.steps, args.seed)
    except ValueError:
        source.env.close()
        raise
    source.notes += use_threads(args.threads, agent.config.samples_at_once(rows), policy, device)

    def job() -> int:
        from rich.console import Console

        from rlcore.export import ExportError, OnnxPolicy, config_hash, export_onnx
        from rlcore.train.adapting import adapt
        from rlcore.train.conclude import say, write_json
        from rlcore.train.ending import standard_output
        from rlcore.train.evaluate import evaluate

        console = Console(file=standard_output())
        say(console, f"{source.task}, {path}")
        say(console, f"adapting to  {told(source.options)}, by {rows} episodes before each step")
        trained = content["agent"]["step_sizes"].shape[0]
        if agent.config.adapt_steps > trained:
            say(
                console,
                f"note         it was trained for {trained} steps; further ones are as large as the last",
            )
        result = adapt(source.env, agent, args.seed)
        for line in result.lines():
            say(console, line)
        made = result.policy(policy, result.best)
        facts: dict[str, Any] = {
            "algorithm": settings.algo,
            "iteration": content["progress"]["iteration"],
            "env_steps": content["progress"]["env_steps"],
            "config_hash": config_hash(content["config"]),
            "env_options": source.options,
            "adapted": {"steps": result.best, "episodes": rows * result.best, "seed": args.seed},
        }
        output = args.output or run.path / "adapted" / "policy.onnx"
        try:
            with output_elsewhere(args.output, output):
                report = export_onnx(
                    made, replace(spec, task=source.task), output, recording=agent.trace.latest(agent.num_steps),
                    env=source.env, extra_metadata=facts,
                )  # fmt: skip
        except ExportError as error:
            print(f"rlcore adapt: refused: {error}", file=sys.stderr)
            return 1
        say(console, "without exploring, on new episodes:")
        before = evaluate(source.env, policy, args.seed + 1)
        after = evaluate(source.env, OnnxPolicy(output), args.seed + 1)
        say(console, f"before       {before.summary()}")
        say(console, f"ONNX file    {after.summary()}")
        say(console, f"parity       {report.parity}")
        for note in report.notes:
            say(console, f"note         {note}")
        say(console, f"exported     {output}")
        record = {"task": source.task, "env": source.options, "policy": str(path), "seed": args.seed}
        record |= {"episodes": rows, "curve": result.as_dict(), "best": result.best}
        record |= {"before": before.as_dict(), "after": after.as_dict(), "parity": report.parity.max_abs_error}
        write_json(output.with_name("adapt.json"), record)
        return 0

    return closing(source.env, job)


@dataclass(frozen=True, kw_only=True)
class _Asked(AdaptArguments):
    """What a policy and its env are found by."""

    onnx: Path | None = None
    stage: str | None = None
