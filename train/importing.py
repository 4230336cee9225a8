"""A run folder from another library's checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlcore.agent import Policy
from rlcore.config import ConfigError, to_dict
from rlcore.env import EnvSpec, VecEnv, spec_of, want_final_obs
from rlcore.envs import make_env
from rlcore.envs.launch import SIMULATORS, simulator_of
from rlcore.observations import choose_groups, groups_of, vectors
from rlcore.recurrent import cleared
from rlcore.resume import begin, snapshot
from rlcore.train.algorithms import find
from rlcore.train.beginning import act_by_policy
from rlcore.train.config import TrainConfig, read_config, resolve_device, settings_as_typed
from rlcore.train.groups import merged
from rlcore.train.importers.account import tell
from rlcore.train.importers.checkpoints import read_weights
from rlcore.train.importers.convert import convert, convert_file
from rlcore.train.importers.placing import place
from rlcore.train.importers.registered import env_options, registered_config
from rlcore.train.importers.values import activation
from rlcore.train.importers.weights import Weights
from rlcore.train.run import RunFolder

_STEPS = 128
"""Steps of a few envs that are recorded, to check an export with."""


def import_checkpoint(
    file: Path,
    task: str,
    *,
    config: Path | None = None,
    normalizer: Path | None = None,
    nonlinearity: str | None = None,
    num_envs: int | None = None,
    device: str = "auto",
    seed: int = 1,
    name: str | None = None,
    runs_dir: str = "runs",
    options: Mapping[str, Any] | None = None,
) -> tuple[RunFolder, Path, list[str]]:
    """Make a run of a checkpoint that rsl_rl, rl_games, skrl or Stable-Baselines3 wrote; nothing in it is executed.

    Args:
        file: the checkpoint.
        task: that it was trained on.
        config: the library's configuration; None: ``params/agent.yaml`` near the file, as Isaac Lab keeps it, else what
            the task is registered with, else the library's defaults.
        normalizer: the pickle of SB3's VecNormalize; None: the one beside the file.
        nonlinearity: of the hidden layers, which no tensor tells.
        num_envs: copies of the task with which training would go on; None: by the configuration or the archive of SB3,
            else 64.
        device: where the env is.
        seed: of what follows.
        name: of the run.
        runs_dir: folder of run folders.
        options: of the env.

    Returns:
        The run, its checkpoint, and what is to be said.

    Raises:
        ConfigError: the file cannot be used, or does not fit the task or the configuration; names the first tensor.
    """
    weights = read_weights(file, normalizer)
    where = resolve_device(device)
    config = config or _config_near(file, weights.library)
    settings, notes = _settings(weights, task, config, nonlinearity, num_envs, options or {})
    settings |= {"seed": seed, "name": name, "runs_dir": runs_dir, "device": str(where), "task": task}
    settings["env"] = {**settings.get("env", {}), **(options or {})}
    train = read_config(settings, source=str(config or file))
    with contextlib.closing(make_env(task, train.num_envs, where, seed=seed, **train.env)) as env:
        train = _with_groups(train, weights, spec_of(env))
        record = find(train.algo)
        with settings_as_typed(train.agent):
            agent = record.agent(env, train.agent, seed=seed, num_iterations=train.num_iterations)
        remedy = (
            f"give the task and options that it was trained with{'' if config is None else f', or another {config}'}"
        )
        notes += place(agent, weights, remedy)
        if not record.on_policy:
            act_by_policy(agent)
        recording = _recorded(env, agent.policy)
        progress = begin(env, agent, seed)
        content = snapshot(env, agent, progress) | {"recording": recording, "spec": dataclasses.asdict(spec_of(env))}
        content |= {"config": to_dict(train), "imported": {"library": weights.library, "file": str(file)}}
        content["owed"] = True  # its evaluation: training on may do worse, and then it is the best
        if "replay" in content["agent"]:
            content["agent"]["replay"] = None  # there is nothing in it
        run = RunFolder.create(train)
        checkpoint = run.save(content, 0, 0)
    told = f"{weights.library}, {weights.algo.upper()}" + (f", {weights.progress}" if weights.progress else "")
    return run, checkpoint, [f"checkpoint of {told}", *notes]


def _config_near(file: Path, library: str) -> Path | None:
    """The configuration that Isaac Lab's scripts write beside checkpoints."""
    if library == "sb3":
        return None  # the file has its own
    places = (file.parent, file.parent.parent)
    return next((p for place in places if (p := place / "params" / "agent.yaml").is_file()), None)


def _settings(
    weights: Weights, task: str, config: Path | None, nonlinearity: str | None, num_envs: int | None,
    options: Mapping[str, Any],
) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    """Settings of the run, and what is to be said of them."""
    notes: list[str] = []
    library: Any = weights.library
    simulated = simulator_of(task) in SIMULATORS
    own: dict[str, Any] | None = None
    if config is not None:
        conversion = convert_file(config, library, num_envs=num_envs, task=task, algo=weights.algo)
        tell(conversion)
        own = dict(conversion.config)
        notes.append(f"settings of {config}")
    elif simulated:
        try:
            own, registered = registered_config(task, num_envs, library, weights.algo, options)
            notes.append(f"settings that {task} is registered with for {library}")
            own = dict(own) if registered is not None else None
        except ConfigError as error:
            print(f"note         {error}", file=sys.stderr)
    known = own is not None
    if own is None:
        number = num_envs or (None if "n_envs" in weights.source else 64)
        own = dict(convert(weights.source, library, num_envs=number, task=task, algo=weights.algo).config)
        notes.append(_unknown_settings(library))
    if simulated:
        own["env"] = {**env_options(weights.algo), **own.get("env", {})}
    agent: dict[str, Any] = merged({}, own.get("agent", {}))
    if config is None:  # else the first tensor that does not fit says that it is another's
        agent = merged(agent, weights.shapes)
    agent = merged(agent, weights.settings)
    chosen = nonlinearity or (None if known else weights.activation)
    if chosen is not None:
        try:
            chosen = activation(chosen)
        except ValueError as error:
            raise ConfigError(f"--activation is '{chosen}'; {error}") from None
        agent = merged(agent, {net: {"activation": chosen} for net in ("actor", "critic")})
        if nonlinearity is None and not weights.known_activation:
            notes.append(
                f"activation is taken to be {chosen}, which no tensor tells; --activation or --config say another"
            )
    _widen_std(agent, weights)
    own["agent"] = agent
    return own, notes


def _unknown_settings(library: str) -> str:
    """What is said where no configuration is known; the archive of SB3 has its settings inside."""
    if library == "sb3":
        return "settings are sb3's defaults, but for what the file tells; --config takes others"
    return (
        f"settings are {library}'s defaults, for its files tell none: before training on give those of the training by "
        "--config, as another discount or shorter rollouts can lose what was learned"
    )


def _widen_std(agent: dict[str, Any], weights: Weights) -> None:
    """Let the bounds of the deviation include what has been learned."""
    piece = weights.pieces.get("policy.head.std")
    if piece is not None:
        low, high = float(piece.value.min()), float(piece.value.max())
        agent["min_std"] = min(agent.get("min_std", 0.01), low / 2)
        agent["max_std"] = max(agent.get("max_std", 100.0), 2 * high)


def _with_groups(train: TrainConfig, weights: Weights, spec: EnvSpec) -> TrainConfig:
    """Let the critic read what the actor does, if that fits its first layer and what it would read does not."""
    actor, critic = choose_groups(groups_of(spec), train.agent.actor_obs, train.agent.critic_obs)
    names = [name for name in weights.pieces if name.startswith("critic.trunk.")]
    first = next((weights.pieces[name].value for name in names if weights.pieces[name].value.dim() == 2), None)
    if first is None or actor == critic or sum(vectors(spec, critic).values()) == first.shape[1]:
        return train
    if sum(vectors(spec, actor).values()) != first.shape[1]:
        return train
    return dataclasses.replace(train, agent=dataclasses.replace(train.agent, critic_obs=actor))


@torch.no_grad()
def _recorded(env: VecEnv, policy: Policy) -> dict[str, Tensor]:
    """Observations ``[T, M, ...]`` by group and ``done`` ``[T, M]`` of a few envs under the policy."""
    want_final_obs(env, ())
    obs, state, few = env.reset(), policy.initial_state(env.num_envs), min(env.num_envs, 8)
    rows: list[dict[str, Tensor]] = []
    for _ in range(_STEPS):
        row = {group: value[:few].clone() for group, value in obs.items()}
        action, state = policy(obs, state)
        step = env.step(action)
        done = step.terminated | step.truncated
        state = cleared(state, done)
        rows.append(row | {"done": done[:few].clone()})
        obs = step.obs
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
