"""A policy to measure or to show, of a run or an exported file, and the env to run it in."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from rlcore.agent import Policy
from rlcore.checkpoint import OF_A_RUN, load_checkpoint
from rlcore.env import EnvSpec, VecEnv, dtype_of, spec_of, want_final_obs
from rlcore.envs import load, make_env
from rlcore.envs.launch import bare_name, simulator_of
from rlcore.envs.multi_task import SHARE, options_by_task
from rlcore.envs.parameters import STAGE_ENTRY
from rlcore.export import OnnxPolicy, broken_weights
from rlcore.export.observations import group_shapes
from rlcore.export.one_task import OneTask
from rlcore.stage import Stage, can_take, reset_at, saved_stage, stage_of, stage_text, stage_where
from rlcore.train.conclude import give_task, refuse_broken, restore_policy, violations_of
from rlcore.train.config import DEVICES, is_device, read_config, resolve_device, with_options
from rlcore.train.evaluate import evaluation_options
from rlcore.train.play import find_renderer
from rlcore.train.run import RunFolder, located
from rlcore.train.tasks import MAKERS
from rlcore.train.window import render_mode_of


@dataclass
class Source:
    """A policy to run, and the env to run it in."""

    task: str
    path: Path
    """The checkpoint or the exported file."""
    folder: Path
    """Where results go."""
    policy: Any
    env: Any
    options: dict[str, Any]
    """Of the env."""
    stage: Stage | None = None
    """Where the env's curricula are to stand; None where it has none, or none that are known."""
    which: str = "start"
    """Whose stage that is: ``trained``, ``start``, ``end`` or ``all``."""
    violations: dict[str, float] = field(default_factory=dict)
    """Signals of the env that are a violation where they are above a number."""
    notes: list[str] = field(default_factory=list)
    """What is to be said beside the result, one line each."""


def policy_and_env(
    args: Any,
    options: dict[str, Any],
    num_envs: int,
    render: bool | Literal["window"] = False,
    without: Sequence[str] = (),
) -> Source:
    """Find the policy that the arguments of a command name, and make its env.

    Args:
        args: with ``run``, ``checkpoint``, ``onnx``, ``task``, ``stage``, ``device`` and ``seed``, and ``given_task``
            where a policy that infers its task may be told it.
        options: of the env, over those that the policy was trained with.
        num_envs: copies of the task.
        render: whether pictures are wanted, or a window.
        without: groups of options of the training that do not hold here, such as ``randomize``.

    Raises:
        ValueError: what is named does not fit together; one line that names both sides and the remedy.
    """
    if (args.run is None) == (args.onnx is None):
        raise ValueError("give either --run RUN or --onnx FILE")
    if not is_device(args.device):
        raise ValueError(f"--device is '{args.device}'; give {DEVICES}")
    device = resolve_device(args.device)
    given_task = getattr(args, "given_task", False)
    content: dict[str, Any] | None = None
    run: RunFolder | None
    if args.onnx is not None:
        if args.checkpoint != "best":
            raise ValueError(f"--checkpoint is '{args.checkpoint}', and --onnx names a file; leave one out")
        path, folder = args.onnx, args.onnx.parent
        if path.is_dir():
            raise ValueError(f"--onnx is '{path}', a folder; name the file in it, or give a run's folder to --run")
        policy: Any = OnnxPolicy(path)
        broken = broken_weights(path)
        if broken:
            raise ValueError(
                f"'{path}' has weights that are not a number (NaN) in {', '.join(broken[:3])}; export anew"
            )
        trained_on, trained_with = policy.metadata.get("task"), policy.metadata.get("env_options", {})
        if not isinstance(trained_on, str):
            if args.task is None:
                raise ValueError(f"'{path}' does not name its task; give --task")
            trained_on = None
        if not isinstance(trained_with, dict):
            raise ValueError(f"'{path}': env_options is {trained_with!r:.80}; the file is damaged")
        run = _run_of(path)
        if run is not None and bare_name(run.read_config().task) == bare_name(str(trained_on)):
            trained_on = run.read_config().task  # files of before do not name the module that registers it
        wanted, violations = _needs_of_file(path, policy), _violations_of_file(path, policy)
        if given_task:
            remedy = "write one that is told: rlcore export" if policy.inferred_tasks else "leave it out:"
            raise ValueError(f"'{path}' infers {'its' if policy.inferred_tasks else 'no'} task; {remedy} --given-task")
        if args.task in policy.inferred_tasks:  # one of those that it tells apart, by itself
            trained_with = options_by_task(policy.inferred_tasks, trained_with)[args.task]
            trained_with.pop(SHARE, None)
            run, trained_on = None, args.task
    else:
        run, path = located(args.run, args.checkpoint)
        policy, spec, content = restore_policy(path, device)
        refuse_broken(policy, path)
        if given_task:
            give_task(policy, path)
        folder, trained_on, trained_with = run.path, content["config"]["task"], content["config"]["env"]
        violations = violations_of(read_config(content["config"], source=str(path)))
        if args.task in spec.tasks:  # its curricula stand where they begin
            policy = OneTask(policy, spec, args.task).to(device).eval()
            trained_with = options_by_task(list(spec.tasks), trained_with)[args.task]
            trained_with.pop(SHARE, None)
            run, spec, trained_on = None, policy.spec, args.task
        elif render and spec.tasks:
            raise ValueError(f"'{path}' is of several tasks; say which to show: --task {' or '.join(spec.tasks)}")
        wanted = _needs(spec, policy)
    task = args.task or trained_on
    same = trained_on is not None and bare_name(task) == bare_name(trained_on)
    notes = []
    if not same:
        kept = _adapter_options(trained_with, task) if simulator_of(task) == simulator_of(trained_on or "") else {}
        dropped = [name for name in trained_with if name not in kept and name not in options]
        if trained_on is not None:
            left_out = f"; without the options of the training {', '.join(dropped)}" if dropped else ""
            notes.append(f"task         {task}, another than {trained_on}, which it was trained on{left_out}")
        trained_with = kept
    dropped = [name for name in trained_with if name.partition(".")[0] in without]
    if dropped:
        notes.append(f"env          without the training's {', '.join(dropped)}")
        trained_with = {name: value for name, value in trained_with.items() if name not in dropped}
    stage = args.stage
    if stage is None and any(name.partition(".")[0] == "randomize" for name in options):
        stage = "start"  # what is asked for is to be drawn, in place of what training stood at
    options = evaluation_options(with_options(trained_with, options))
    mode = render_mode_of(task) if render == "window" else "rgb_array" if render else None
    if mode is not None and simulator_of(task) != "builtin":
        options = {"render_mode": mode} | options
    if render is True:
        find_renderer(task)
    env = make_env(task, num_envs, device, seed=args.seed, **options)
    want_final_obs(env, ())  # nobody reads them
    try:
        _check_fit(wanted, env, f"'{path}'", task)
        if args.onnx is not None:
            _check_action(policy, env, path, task)
        if hasattr(env, "ranges_text"):
            notes.append(f"randomized   {env.ranges_text}")
        source = Source(task, path, folder, policy, env, options, violations=violations, notes=notes)
        _set_stage(source, stage, run, content, same)
    except ValueError:
        env.close()
        raise
    return source


def _set_stage(
    source: Source, asked: str | None, run: RunFolder | None, content: dict[str, Any] | None, same: bool
) -> None:
    """Decide where the curricula stand, and say so where the env has any."""
    first = stage_of(source.env)
    trained, reason = None, "the file is in no run folder, whose checkpoints would tell"
    if asked != "start" and run is not None:
        trained = _trained_stage(source.env, run, None if source.path == run.best else content)
        reason = "no checkpoint of the run tells where they stood"
        if trained is not None and not hasattr(source.env, "ranges_text"):
            trained = _without_draws(trained)
    if asked is None and not same and trained is not None:
        trained, reason = None, "it is another task (--stage trained takes them where training stood)"
    if asked in ("end", "all"):
        if trained is not None and can_take(source.env, trained):
            reset_at(source.env, trained)  # what has no levels stands where training stood
        source.stage, source.which = stage_where(source.env, asked), asked
    elif trained is not None and can_take(source.env, trained):
        source.stage, source.which = trained, "trained"
    elif first is not None:
        if asked == "trained":
            raise ValueError(f"--stage is 'trained', but {reason}; give --run RUN, or --stage start")
        source.stage = first
    if source.stage is not None:
        because = f" ({reason})" if source.which == "start" and asked is None else ""
        source.notes.append(f"stage        {source.which}{because}: {stage_text(source.stage, source.env)}")


def _without_draws(stage: Stage) -> Stage | None:
    """A stage for an env without what its training randomized: neither ranges, nor what was drawn from them last."""
    state = {name: value for name, value in stage["state"].items() if name not in ("randomize", STAGE_ENTRY)}
    return {**stage, "state": state} if state else None


def _trained_stage(env: VecEnv, run: RunFolder, content: dict[str, Any] | None) -> Stage | None:
    """Where training stood when a checkpoint was written; None as ``content`` means the last one of the run."""
    if content is None:
        last = run.numbered()[-1:] or ([run.best] if run.best.is_file() else [])
        if not last:
            return None
        content = load_checkpoint(last[0], needed=OF_A_RUN)
    return saved_stage(env, content)


def _run_of(file: Path) -> RunFolder | None:
    """The run that an exported file lies in."""
    folder = file.resolve().parent.parent
    return RunFolder(folder) if (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir() else None


def _adapter_options(options: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Of the options of one task those that belong to the adapter, and so to any other of its simulator."""
    makers = MAKERS.get(simulator_of(task), [])
    names = {
        name
        for maker in makers
        for name, parameter in inspect.signature(load(maker)).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    return {name: value for name, value in options.items() if name in names}


@dataclass(frozen=True)
class _Needs:
    """What a policy reads and gives: names and sizes of the terms of each group, and its actions in words."""

    terms: dict[str, list[tuple[str, int]]]
    actions: str | None
    images: dict[str, str] = field(default_factory=dict)
    """Shape and type of each group that is an image, in words."""


def _needs(spec: EnvSpec, policy: Policy) -> _Needs:
    named = spec.deployment.get("observation_terms", {})
    groups = {group: shape[0] for group, shape in group_shapes(policy).items() if len(shape) == 1}
    terms = {
        group: [(term["name"], int(term["size"])) for term in named.get(group) or [{"name": group, "size": size}]]
        for group, size in groups.items()
    }
    images = {group: _image_text(spec, group) for group in policy.raw_shapes if group in spec.image_shapes}
    return _Needs(terms, spec.action_text, images)


def _image_text(spec: EnvSpec, group: str) -> str:
    return f"{'×'.join(map(str, spec.image_shapes[group]))} {spec.image_types.get(group)}"


def _needs_of_file(path: Path, policy: OnnxPolicy) -> _Needs:
    terms: dict[str, list[tuple[str, int]]] = {}
    metadata, images = policy.metadata, {}
    for group, (_, shape, uint8) in policy.groups.items():
        if len(shape) == 1:
            terms[group] = [(group, shape[0])]
        else:
            images[group] = f"{'×'.join(map(str, shape))} {'uint8' if uint8 else 'float32'}"
    try:
        for term in metadata.get("observation_terms", ()):
            terms.setdefault(str(term["group"]), []).append((str(term["name"]), int(term["size"])))
        actions = int(metadata["action_size"]) if "action_size" in metadata else None
        parts = [int(choices) for choices in metadata.get("action_parts", ())]
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"'{path}': observation_terms in its metadata is no list of terms, or action_size or action_parts no "
            "number; export it anew"
        ) from None
    if actions is None:
        return _Needs(terms, None, images)
    discrete = metadata.get("action_kind") == "discrete"
    spec = EnvSpec(task="", observation_sizes={}, discrete=discrete, action_size=actions, action_parts=parts)
    return _Needs(terms, spec.action_text, images)


def _violations_of_file(path: Path, policy: OnnxPolicy) -> dict[str, float]:
    try:
        return {str(name): float(bound) for name, bound in policy.metadata.get("violations", {}).items()}
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"'{path}': violations in its metadata is no table of numbers; export it anew") from None


def _check_fit(wanted: _Needs, env: VecEnv, policy: str, task: str) -> None:
    """Refuse a policy whose observations and actions are not those of the env."""
    there = spec_of(env)
    named = there.deployment.get("observation_terms", {})
    remedy = "give the task and the options of the env that it was trained with"
    for group, terms in wanted.terms.items():
        names, size = [name for name, _ in terms], sum(size for _, size in terms)
        found = [term["name"] for term in named.get(group, ())] or names
        # A group whose env named no terms is one term of the group's own name.
        if there.observation_sizes.get(group) != size or (names != [group] and names != found):
            has = there.observation_sizes.get(group)
            image = f"an image {_image_text(there, group)}" if group in there.image_shapes else "none"
            given = image if has is None else f"{has} numbers ({', '.join(found)})"
            if group == "task" and has is None:
                remedy = "the policy is of several tasks, and this is none of them; give one that it was trained on"
            raise ValueError(
                f"{policy} takes {size} numbers ({', '.join(names)}) as observation '{group}' and {task} gives "
                f"{given}; {remedy}"
            )
    for group, image in wanted.images.items():
        given = _image_text(there, group) if group in there.image_shapes else "none"
        if given != image:
            raise ValueError(
                f"{policy} takes an image {image} as observation '{group}' and {task} gives {given}; {remedy}"
            )
    if wanted.actions not in (None, there.action_text):
        raise ValueError(f"{policy} gives {wanted.actions} as action and {task} takes {there.action_text}; {remedy}")


def _check_action(policy: Any, env: VecEnv, path: Path, task: str) -> None:
    """Refuse a file whose actions, whatever its metadata says, are not those of the env."""
    zeros = {
        group: torch.zeros(env.num_envs, *space.shape, dtype=dtype_of(space)).numpy()
        for group, space in env.observation_spaces.items()
    }
    action = np.asarray(policy(zeros))
    policy.reset()
    shape = (env.num_envs, *(env.action_space.shape or ()))
    kind, expected = ("integers", np.integer) if spec_of(env).discrete else ("floats", np.floating)
    if action.shape != shape or not np.issubdtype(action.dtype, expected):
        raise ValueError(
            f"'{path}' gives actions {action.dtype} of shape {action.shape} for {env.num_envs} envs and {task} takes "
            f"{kind} of shape {shape}; give the task that it was trained on"
        )
