"""Evaluations that the ranks of a run share: each plays its part of the envs, and rank 0 says of which policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rlcore.agent import Policy
from rlcore.capture import tree_map
from rlcore.checkpoint import save_checkpoint
from rlcore.distributed import World, gathered, received
from rlcore.env import VecEnv, is_adaptive, want_final_obs
from rlcore.envs import make_env
from rlcore.envs.launch import fewest_envs
from rlcore.resume import Progress
from rlcore.stage import Stage, reset_at
from rlcore.train.best import figures
from rlcore.train.conclude import say, violations_of
from rlcore.train.config import TrainConfig
from rlcore.train.controller import Controller
from rlcore.train.evaluate import (
    Evaluation,
    Rows,
    estimated,
    evaluation_options,
    run_episodes,
    undisturbed,
    whole_episodes,
)

if TYPE_CHECKING:
    from rlcore.train.training import Training

EVAL_SEED = 1_000_003
"""Added to the run's seed for the evaluations that choose the best checkpoint."""


BROKEN_OFF = "broken off"
"""What a rank has in the place of its episodes where it was asked to stop."""


class BrokenOff(Exception):
    """A signal has ended an evaluation: whoever wants to stop is not to wait for minutes of it."""


def judged_by(config: TrainConfig, borrowed: int | None, world: World) -> tuple[int, int]:
    """A rank's part of the envs of an evaluation.

    Args:
        config: of the run, whose ``eval_envs`` are of all ranks together.
        borrowed: envs of each rank's training env, where that is used.
        world: the ranks.

    Returns:
        How many envs are its own, and the number of the first of them among all, by which it is seeded. Where there
        are too few for all ranks, rank 0 has all of them.
    """
    if borrowed is not None:
        return borrowed, world.rank * borrowed
    share, left = divmod(config.eval_envs, world.size)
    if share < fewest_envs(config.task):
        return (config.eval_envs if world.main else 0), 0
    return share + (world.rank < left), world.rank * share + min(world.rank, left)


def due(config: TrainConfig, progress: Progress) -> bool:
    """Whether an evaluation follows the latest iteration."""
    every = config.eval_interval
    return progress.iteration == config.num_iterations or bool(every and progress.iteration % every == 0)


def eval_env_of(config: TrainConfig, num_envs: int, device: torch.device) -> VecEnv:
    """An env for evaluations: whole episodes, of which nobody reads the last observation."""
    env = make_env(config.task, num_envs, device, seed=config.seed, **evaluation_options(config.env))
    want_final_obs(env, ())
    return env


def try_out(env: VecEnv, policy: Policy, stage: Stage | None) -> None:
    """Begin an evaluation, so that what an env refuses in it is seen now, and not once a run has a folder.

    That is a stage of another number of envs, and levels or ranges that follow the success of episodes where nothing
    tells it.

    Raises:
        ValueError: names it and the remedy.
    """
    if is_adaptive(env) or not hasattr(env, "at_stage"):
        with undisturbed(env.device):
            obs = reset_at(env, stage)
            if is_adaptive(env):
                env.step(Controller(policy, env).act(obs))


def evaluated(training: Training, progress: Progress) -> dict[str, float]:
    """Evaluate the present policy, on rank 0, and keep it if it is the best so far.

    Returns:
        What is logged of it; nothing where a signal ended it, so that it is owed to the run.
    """
    stage = training.stage()
    training.evaluated, training.owed = progress.iteration, True

    def measure(policy: Policy) -> Evaluation:
        return measured(training, policy, stage)

    with undisturbed(training.device), training.lent(progress), whole_episodes(training.eval_env):
        try:
            result, said = measure(training.agent.policy), training.best.measured(stage, measure)
            training.owed = False
        except BrokenOff:
            said = "the evaluation was broken off; where the run is resumed, it comes first"
        all_measured()
    training.pulse.end()
    if said is not None:
        say(training.console, f"note         {said}")
    if training.owed:
        return {}
    assert training.run is not None
    if training.best.replaced_by(progress.iteration, result, stage, training.agent.policy):
        judged = {"score": training.best.score, "evaluation": result.as_dict()}
        save_checkpoint(training.run.best, training.content(progress) | judged)
    told = figures(result, training.best.ranges)
    training.stop.evaluated(told, training.best.better)
    film = training.film
    if film is not None and film.due():
        path = training.run.videos / f"{progress.iteration:06d}.gif"
        if film.take(path, training.agent.policy, stage):
            training.video(progress.env_steps, path)
        else:
            say(training.console, f"warning      no video from here on: {film.fault}")
    return told


def measured(training: Training, policy: Policy, stage: Stage | None) -> Evaluation:
    """What a policy achieves, by the episodes of all ranks; rank 0 calls it, and the others ``measure_along``.

    Args:
        training: rank 0's.
        policy: the present one, or another of the run.
        stage: where the curricula stand.

    Raises:
        BrokenOff: a rank was asked to stop.
    """
    present = policy is training.agent.policy
    gathered("present" if present else tree_map(policy.state_dict(), lambda tensor: tensor.cpu()))
    parts = received(_episodes(training, policy, stage))
    if BROKEN_OFF in parts:
        raise BrokenOff
    return estimated([part for part in parts if part is not None], getattr(training.eval_env, "tasks", ()))


def all_measured() -> None:
    """Let the other ranks go on, after an evaluation."""
    gathered("done")


def measure_along(training: Training, progress: Progress) -> None:
    """Do this rank's part of an evaluation, of as many policies as rank 0 measures."""
    stage = training.stage()
    with undisturbed(training.device), training.lent(progress), whole_episodes(training.eval_env):
        while (asked := gathered(None)[0]) != "done":
            policy = training.agent.policy if asked == "present" else training.best.with_weights(asked)
            received(_episodes(training, policy, stage))


def _episodes(training: Training, policy: Policy, stage: Stage | None) -> Rows | str | None:
    if not training.judges:
        return None
    seed = training.config.seed + EVAL_SEED + training.first_judged

    def before(t: int) -> None:
        if training.interrupt.signal is not None:
            raise BrokenOff
        training.pulse(t)

    try:
        return run_episodes(training.eval_env, policy, seed, stage, violations_of(training.config), before=before)
    except BrokenOff:
        return BROKEN_OFF
