"""From a checkpoint to figures and an exported file; no training, and for an export no simulator."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from rlcore.agent import Policy
from rlcore.checkpoint import OF_A_RUN, CheckpointError, broken_values, fitting, load_checkpoint
from rlcore.config import from_dict
from rlcore.env import EnvSpec, VecEnv
from rlcore.envs import make_env
from rlcore.envs.launch import SIMULATORS, bare_name, fewest_envs, simulator_of
from rlcore.envs.multi_task import SHARE, options_by_task
from rlcore.export import ExportError, ExportReport, OnnxPolicy, config_hash, export_onnx
from rlcore.export.metadata import plain
from rlcore.export.observations import finite_part, group_shapes, too_few
from rlcore.export.one_task import OneTask, recording_of, task_spec
from rlcore.files import whole_file
from rlcore.policies import ActorPolicy, SquashedPolicy
from rlcore.safety import SafetyConfig
from rlcore.stage import Stage, stage_figures, stage_text
from rlcore.train.algorithms import find
from rlcore.train.config import TrainConfig, read_config
from rlcore.train.evaluate import Evaluation, evaluate, evaluation_options
from rlcore.train.pulse import pulse
from rlcore.train.run import RunFolder

FINAL_SEED = 2_000_003
"""Added to the run's seed for the figures that are reported: other episodes than those that chose the checkpoint."""

DROPPED = "eval.json had figures of another exported file, which are dropped; `rlcore eval --onnx FILE` measures a file"
"""What is said where ``drop_stale_figures`` found some."""


def restore_policy(checkpoint: Path, device: torch.device | str = "cpu") -> tuple[Policy, EnvSpec, dict[str, Any]]:
    """The policy of a checkpoint, what it knows of its env, and the whole checkpoint; needs no simulator.

    Raises:
        CheckpointError: the checkpoint cannot be read.
    """
    content = load_checkpoint(checkpoint, device=str(device), needed=OF_A_RUN)
    with fitting(checkpoint):
        config = read_config(content["config"], source=str(checkpoint))
        spec = from_dict(EnvSpec, content["spec"], f"{checkpoint}: spec")
        policy = find(config.algo).policy(spec, config.agent).to(device)
        policy.load_state_dict(content["agent"]["policy"])
    return policy.eval(), spec, content


def refuse_broken(policy: Policy, checkpoint: Path) -> None:
    """Refuse to run a policy that can give no action.

    Raises:
        CheckpointError: it has values that are not finite; the message names them.
    """
    broken = broken_values({"policy": policy.state_dict()})
    if broken:
        raise CheckpointError(
            f"checkpoint '{checkpoint}': the policy has values that are not finite in {', '.join(broken[:3])}; "
            "use an earlier checkpoint"
        )


def give_task(policy: Policy, path: Path) -> None:
    """Let a policy that infers its task take it as an input.

    Raises:
        ValueError: it does so anyway, or there is one task.
    """
    if not isinstance(policy, ActorPolicy) or not policy.inferred_tasks:
        raise ValueError(f"--given-task: '{path}' has a policy that infers no task; leave it out")
    policy.give_task()


def violations_of(config: TrainConfig) -> dict[str, float]:
    """Signals that the settings of a run make a violation where they are above a number; none where none are."""
    safety: SafetyConfig = getattr(config.agent, "safety", SafetyConfig())
    return safety.violations


def export_checkpoint(
    checkpoint: Path,
    output: Path,
    dynamic_batch: bool = False,
    env: VecEnv | None = None,
    gate: bool = True,
    for_task: str | None = None,
    given_task: bool = False,
    write: Callable[..., ExportReport] = export_onnx,
) -> ExportReport:
    """Write a checkpoint's policy, checked on the observations that the checkpoint recorded.

    Args:
        checkpoint: whose policy.
        output: the file.
        dynamic_batch: let the file take N rows at once.
        env: where to record anew if too few of those observations are finite; None makes one, unless that needs a
            simulator.
        gate: write the policy's gate, if it has one.
        for_task: of several tasks the one that the file is for, with observations and actions of its own size.
        given_task: let a policy that infers its task take it as an input.
        write: ``export_onnx`` or ``export_torchscript``, with what options they have of their own.

    Raises:
        ExportError: the file does not do what the policy does.
        ValueError: the policy has nothing that an argument is about.
    """
    policy, spec, content = restore_policy(checkpoint)
    if not gate and policy.gate is None:
        raise ValueError(f"--no-gate: '{checkpoint}' has a policy without a gate; leave it out")
    with fitting(checkpoint):
        task, options = content["config"]["task"], content["config"].get("env", {})
        facts = {
            "algorithm": find(content["config"].get("algo", TrainConfig.algo)).name,
            "iteration": content["progress"]["iteration"],
            "env_steps": content["progress"]["env_steps"],
            "config_hash": config_hash(content["config"]),
            "env_options": options,
            "violations": violations_of(read_config(content["config"], source=str(checkpoint))) or None,
        }
    if given_task or (for_task is not None and policy.inferred_tasks):
        give_task(policy, checkpoint)
    if for_task is not None:
        return _export_one(policy, spec, output, for_task, content["recording"], facts, dynamic_batch, write)
    own: VecEnv | None = None
    _, finite, left_out = finite_part(content["recording"], group_shapes(policy))
    if env is None and too_few(finite.size, left_out) and simulator_of(task) not in SIMULATORS:
        env = own = make_env(task, max(8, fewest_envs(task)), seed=0, **evaluation_options(options))
    if bare_name(spec.task) == bare_name(task):
        spec = dataclasses.replace(spec, task=task)  # with the module that registers it
    recording = content["recording"]
    try:
        return write(
            policy, spec, output, recording=recording, env=env, dynamic_batch=dynamic_batch, gate=gate,
            extra_metadata=facts,
        )  # fmt: skip
    finally:
        if own is not None:
            own.close()


def _export_one(
    policy: Policy, spec: EnvSpec, output: Path, name: str, recording: Any, facts: dict[str, Any], dynamic_batch: bool,
    write: Callable[..., ExportReport],
) -> ExportReport:  # fmt: skip
    own = task_spec(spec, name)
    assert isinstance(policy, (ActorPolicy, SquashedPolicy))  # they alone have several tasks
    options = options_by_task(list(spec.tasks), facts["env_options"])[name]
    options.pop(SHARE, None)
    return write(
        OneTask(policy, spec, name).eval(), own, output, recording=recording_of(recording, spec, name),
        dynamic_batch=dynamic_batch, extra_metadata=facts | {"env_options": options},
    )  # fmt: skip


def conclude(
    run: RunFolder,
    env: VecEnv,
    config: TrainConfig,
    console: Console,
    stage: Stage | None = None,
    why: str | None = None,
    ended: str | None = None,
) -> int:
    """Evaluate the best checkpoint on new episodes, export it, evaluate the file, and sum up.

    Args:
        run: where checkpoints are and results go.
        env: where it is evaluated.
        config: of the run.
        console: where it is said.
        stage: where the curricula of the env are to stand, as ``config.eval_stage`` has it.
        why: what makes the best checkpoint the best.
        ended: what ended the run before its last iteration, if something did.

    Returns:
        The exit code: 0, or 1 where the export was refused, or the policy is broken.
    """
    checkpoint = run.checkpoint("best")
    policy, _, content = restore_policy(checkpoint, env.device)
    try:
        refuse_broken(policy, checkpoint)
    except CheckpointError as error:
        say(console, f"export       refused: {error}")
        return 1
    seed = config.seed + FINAL_SEED
    iteration = content["progress"]["iteration"]
    why_now = "" if ended is None else f"{ended} ends the training; "
    say(console, f"{why_now}evaluating the best checkpoint, of iteration {iteration}, on new episodes")
    if stage is not None:
        say(console, f"stage        {config.eval_stage}: {stage_text(stage, env)}")
    violations = violations_of(config)
    with pulse(console, env) as before:
        result = evaluate(env, policy, seed, stage=stage, violations=violations, before=before)
    options = evaluation_options(config.env)
    record = evaluation_record(config.task, options, checkpoint, seed, result, env, stage, config.eval_stage)
    record |= {"iteration": iteration} | ({} if why is None else {"best": why})
    record |= {} if ended is None else {"stopped": ended}
    for line in result.lines():
        say(console, f"policy       {line}")
    refused = False
    if config.export:
        try:
            report = export_checkpoint(checkpoint, run.exported, env=env)
        except ExportError as error:
            say(console, f"export       refused: {error}")
            refused = True
        else:
            file_policy = OnnxPolicy(run.exported)
            with pulse(console, env) as before:
                exported = evaluate(env, file_policy, seed, stage=stage, violations=violations, before=before)
            file = {"file": str(run.exported), "sha256": _sha256(run.exported)}
            record["onnx"] = file | {"parity": report.parity.max_abs_error, **exported.as_dict()}
            for line in exported.lines():
                say(console, f"ONNX file    {line}")
            say(console, f"parity       {report.parity}")
            for note in report.notes:
                say(console, f"note         {note}")
    write_json(run.evaluation, record)
    if config.export and not refused:
        say(console, f"exported     {run.exported}")
    say(console, f"evaluation   {run.evaluation}")
    say(console, f"checkpoint   {checkpoint}")
    if why is not None:
        say(console, f"best         {why}")
    return int(refused)


def evaluation_record(
    task: str,
    options: Mapping[str, Any],
    policy: Path,
    seed: int,
    result: Evaluation,
    env: VecEnv,
    stage: Stage | None = None,
    which: str = "start",
) -> dict[str, Any]:
    """What eval.json holds; ``which`` says whose ``stage`` it is, where the ``env`` has any."""
    stood = {} if stage is None else {"stage": {"which": which, **stage_figures(stage, env)}}
    return {"task": task, "env": dict(options), "policy": str(policy), "seed": seed, **stood, **result.as_dict()}


def update_evaluation(run: RunFolder, record: Mapping[str, Any]) -> bool:
    """Write a policy's figures into a run's eval.json, beside those of its exported file.

    Returns:
        Whether the latter were dropped because they were those of another file.
    """
    dropped = drop_stale_figures(run)
    kept = {name: value for name, value in _read_json(run.evaluation).items() if name == "onnx"}
    write_json(run.evaluation, {**record, **kept})
    return dropped


def drop_stale_figures(run: RunFolder) -> bool:
    """Take the figures of an exported file that is another by now, or gone, out of a run's eval.json.

    Returns:
        Whether there were any.
    """
    record = _read_json(run.evaluation)
    figures = record.pop("onnx", None)
    if figures is None:
        return False
    known = figures.get("sha256") if isinstance(figures, dict) else None
    if known is not None and run.exported.is_file() and known == _sha256(run.exported):
        return False
    write_json(run.evaluation, record)
    return True


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    """A file of plain values; none where it is missing or damaged."""
    content: Any = None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = json.loads(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write plain values for people and programs; what is not finite becomes null, for JSON has neither."""
    with whole_file(path) as file:
        file.write(json.dumps(plain(record), indent=2, allow_nan=False) + "\n")


def close_env(env: VecEnv, console: Console) -> None:
    """Close an env; that it cannot be closed is said, and takes nothing from what was trained."""
    try:
        env.close()
    except Exception as error:
        say(console, f"note         closing the env failed: {type(error).__name__}: {error}")


def say(console: Console, text: str) -> None:
    """Print a line as it is: no markup, no wrapping at the 80 columns that rich assumes without a terminal."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
