"""A run of several ranks: what each has of its own in a checkpoint, and how a rank ends that does not write one."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rlcore.agent import Agent
from rlcore.capture import tree_map
from rlcore.config import ConfigError, to_dict
from rlcore.distributed import RankLost, World, differs, gathered, leave, most, received
from rlcore.learn import Faults, Progress, Report, begin
from rlcore.ranks import LEARNED, MIXED, OF_ENVS, SHARED
from rlcore.train.conclude import close_env
from rlcore.train.config import TrainConfig
from rlcore.train.elastic import share_among
from rlcore.train.ending import FAILED, USAGE, Interrupt, describe, is_mistake, one_line, show_traceback
from rlcore.train.judging import due, measure_along

if TYPE_CHECKING:
    from rlcore.train.training import Training

_OF_EPISODES = ("critic_state", "trace", "held")  # what an agent keeps by env, and what new episodes begin with


def share_of(config: TrainConfig, world: World) -> int:
    """Envs of each rank.

    Raises:
        ConfigError: they cannot be shared evenly, or the ranks were given different settings.
    """
    if differs(repr(to_dict(config) | {"device": ""})):
        raise ConfigError("the ranks have different settings; start all of them with the same command")
    return share_among(config.num_envs, world.size)


def places(world: World, share: int) -> str:
    """What runs where."""
    each = ", ".join(f"{rank} on {place}" for rank, place in enumerate(world.places))
    return f"ranks        {world.size} with {share} envs each: {each}"


def how_again(world: World, device: torch.device) -> str:
    """The option that starts as many ranks again, where they were all on one machine; else nothing."""
    if world.size == 1 or len({place.split()[0] for place in world.places}) > 1:
        return ""
    return f" --{'gpus' if device.type == 'cuda' else 'processes'} {world.size}"


def with_ranks(content: dict[str, Any], world: World) -> dict[str, Any]:
    """A checkpoint's content with what every rank has of its own in it, on rank 0; all ranks have to call it."""
    if world.size == 1:
        return content
    own = {key: content[key] for key in ("env", "progress", "rng")}
    own["agent"] = {key: value for key, value in content["agent"].items() if key not in (*SHARED, *LEARNED)}
    parts = received(tree_map(own, lambda tensor: tensor.cpu()) if world.rank else None)
    return content | {"ranks": parts[1:]}


def of_rank(content: dict[str, Any], world: World, agent: Agent) -> tuple[bool, list[str]]:
    """Make of a checkpoint's content that of a rank, in place.

    Args:
        content: as rank 0 saved it.
        world: the ranks that go on.
        agent: of this rank, just built.

    Returns:
        Whether each rank goes on with what it had of its own, and what is to be said.
    """
    before, parts = content.get("world", 1), content.pop("ranks", [])
    if before == world.size and len(parts) == before - 1:
        if world.rank:
            part = parts[world.rank - 1]
            content |= {key: part[key] for key in ("env", "progress", "rng")}
            content["agent"] |= part["agent"]
            device = next(agent.policy.parameters()).device
            replay = content["agent"].pop("replay", None)
            content |= tree_map(content, lambda tensor: tensor.to(device))
            if "replay" in part["agent"]:
                content["agent"]["replay"] = replay
        return True, []
    content["env"] = None
    present, saved = agent.state_dict(), content["agent"]
    for name in _OF_EPISODES:
        if name in saved:
            saved[name] = present[name]
    for name in MIXED:
        if saved.get(name):
            _begin_anew(saved[name], present[name])
    notes = [f"{_ranks(before)} wrote the checkpoint, and {_ranks(world.size)} go{'es' * (world.size == 1)} on"]
    if before == world.size:
        notes = ["the checkpoint has rank 0's own state alone"]
    notes[0] += ": random numbers are others, and episodes start anew"
    if saved.get("replay") is not None:
        saved["replay"] = None
        notes.append("the replay memory, of each rank its own, is not carried over and fills anew")
    if saved.get("safety_critic"):
        notes.append("the steps that the safety critic learns from, of each rank its own, fill anew")
    return False, notes


def _begin_anew(saved: dict[str, Any], present: dict[str, Any]) -> None:
    """Take what is kept by env from an agent that was just built: it may have others, and as many as it likes."""
    for name, value in saved.items():
        if name.rpartition(".")[2] in OF_ENVS:
            saved[name] = present[name]
        elif isinstance(value, dict):
            _begin_anew(value, present[name])


def _ranks(number: int) -> str:
    return "1 rank" if number == 1 else f"{number} ranks"


def follow(training: Training, interrupt: Interrupt) -> int:
    """Train as one of several ranks, which leaves it to rank 0 to log and to save.

    Returns:
        The exit code; 0 for a run that was interrupted, too, so that rank 0 says it.
    """
    config, known, rank = training.config, Faults(), training.ranks.rank
    training.folder = Path(gathered("")[0])
    if training.progress is None:
        training.progress = begin(training.env, training.agent, config.seed)
    training.held.begin(training.progress.iteration)
    interrupt.show = lambda text: True  # as rank 0 does

    def on_report(report: Report) -> None:
        for text in known.new(report):
            print(f"rlcore train: rank {rank}: {text}", file=sys.stderr, flush=True)

    def on_iteration(progress: Progress) -> None:
        training.held.after(progress.iteration)
        if due(config, progress):
            measure_along(training, progress)
        if config.save_interval and progress.iteration % config.save_interval == 0:
            training.save(progress)

    with interrupt.handling():
        if training.owed:
            measure_along(training, training.progress)
            training.saved_iteration = -1
        progress = training.learn(on_report, on_iteration, interrupt)
        if most(0):  # rank 0 evaluates once more
            measure_along(training, progress)
        training.save_last(progress)
        most(interrupt.signal or 0)
    leave()
    if not training.shares_env:
        close_env(training.eval_env, training.console)
    close_env(training.env, training.console)
    return 0


def end_of_follower(error: BaseException, interrupt: Interrupt, rank: int, folder: Path | None) -> int:
    """Say why a rank ended that does not write checkpoints, unless another says it.

    Args:
        error: what ended it.
        interrupt: whether it had been asked to stop.
        rank: of this process.
        folder: of the run, for the traceback.

    Returns:
        The exit code.
    """
    show_traceback(error)
    asked = interrupt.signal is not None and not interrupt.lost
    stopped = asked or isinstance(error, (KeyboardInterrupt, SystemExit))
    if stopped or (isinstance(error, RankLost) and "rank 0 " not in str(error)):
        return 128 + (interrupt.signal or 2) if stopped else FAILED
    mistake = is_mistake(error)
    where = ""
    if folder is not None and folder.is_dir() and not mistake and not isinstance(error, RankLost):
        from rlcore.train.ending import CRASH_FILE, write_traceback

        where = write_traceback(error, folder / CRASH_FILE)
    with suppress(OSError, ValueError):
        print(f"rlcore train: error: rank {rank}: {one_line(describe(error))}{where}", file=sys.stderr, flush=True)
    return USAGE if mistake else FAILED
