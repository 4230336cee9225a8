"""What a run prints before its first iteration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlcore.envs.trials import TRIAL_EPISODES
from rlcore.safety import SafetyConfig
from rlcore.train.best import told_of_stages
from rlcore.train.conclude import say
from rlcore.train.evaluate import ENDLESS
from rlcore.train.idle import idle_settings
from rlcore.train.several import places

if TYPE_CHECKING:
    from rlcore.agent import Agent
    from rlcore.env import EnvSpec
    from rlcore.train.config import TrainConfig
    from rlcore.train.training import Training

TIMEOUTS = {
    "final_obs": "worth the value of the last observation before the reset (final_obs)",
    "value": "worth the value of the observation that the last action was chosen by (value)",
    "none": "worth nothing, like failures (none)",
}
"""What a run says of ``agent.timeout_bootstrap``."""


def told_of_trials(agent: Agent, spec: EnvSpec, length: int) -> list[str]:
    """What is to be said where nothing is remembered from one episode of a trial to the next, or no rollout has both.

    Args:
        agent: that is about to learn.
        spec: of its env.
        length: steps of a trial at most.
    """
    episodes = max(own.deployment.get(TRIAL_EPISODES, 1) for own in (spec, *spec.tasks.values()))
    if episodes == 1:
        return []
    trial = f"a trial is of {episodes} episodes"
    if not agent.policy.initial_state(1):
        return [f"{trial}, and the policy remembers nothing of them; PPO with --agent.actor.rnn.type gru does"]
    if agent.num_steps < length:
        remedy = f"--agent.num-steps {length} is for whole ones, without which RL² learns badly"
        return [f"{trial} and up to {length} steps, and a rollout of {agent.num_steps}; {remedy}"]
    return []


def say_what_is_ahead(training: Training) -> None:
    """Print what a run is about to do, what is to be known of it, and what it goes on from."""
    config, env, run, agent = training.config, training.env, training.run, training.agent
    progress, console, spec = training.progress, training.console, training.spec
    assert run is not None
    num_envs = env.num_envs * training.ranks.size
    steps = agent.num_steps * num_envs
    endless = env.max_episode_length >= ENDLESS
    limit = "no time limit" if endless else f"episodes of {env.max_episode_length} steps"
    preset = "" if config.preset is None else f" with the preset {config.preset}"
    for line in (
        f"task         {config.task}, observations: {spec.observation_text}, action: {spec.action_text}",
        f"algorithm    {training.algorithm.name}{preset} on {training.device}, seed {config.seed}",
        f"envs         {num_envs} x {agent.num_steps} steps = {steps:,} steps an iteration, "
        f"{config.num_iterations} iteration{'s' * (config.num_iterations != 1)}, {limit}",
        f"time-outs    {TIMEOUTS[training.bootstrap]}",
        *_limits(config),
        f"run folder   {run.path}",
    ):
        say(console, line)
    if training.ranks.joined:
        say(console, places(training.ranks, training.share))
    notes = [*training.notes, *getattr(env, "notes", ()), *agent.notes, *agent.policy.notes]
    if agent.policy.gate is not None:
        notes += agent.policy.gate.notes
    if config.preset is not None and training.algorithm.presets[config.preset].cuda and training.device.type == "cpu":
        notes.append(
            f"the preset {config.preset} is made for CUDA, and slow on a CPU once learning begins; --preset "
            f"{training.algorithm.default_preset} is for a CPU and few envs"
        )
    if training.film is not None and training.film.fault:
        notes.append(f"no videos: {training.film.fault}")
    notes += idle_settings(config, spec, training.usual) + told_of_trials(agent, spec, env.max_episode_length)
    for note in notes:
        say(console, f"note         {note}")
    left = config.num_iterations - (0 if progress is None else progress.iteration)
    of_env = getattr(env, "range_warnings", None)
    for warning in (*agent.warnings(left), *(of_env(left * agent.num_steps) if of_env is not None else ())):
        say(console, f"warning      {warning}")
    if training.shares_env:
        say(console, "note         evaluations use the training env, and then put it back as it was")
    for line in told_of_stages(training.first_stage, config.eval_stage):
        say(console, line)
    if progress is not None:
        say(console, f"resumed      after iteration {progress.iteration} from {training.resumed_from}")
        if left == 0:
            say(
                console,
                f"note         all {config.num_iterations} iterations are done, so that evaluation and export "
                "alone follow; more --num-iterations train on",
            )
        elif training.stop.reason is not None:
            say(
                console,
                f"note         it ended there: {training.stop.reason}; evaluation and export alone follow. Another "
                "condition, or none, such as --stop-at none, trains on",
            )
        if not training.exact:
            say(console, "             episodes in flight start anew: they cannot be put back as they were")
        falls = config.agent.scheduled()
        if falls and training.planned_before != config.num_iterations:
            how = "spans" if falls.startswith("schedule") else "falls over"
            say(
                console,
                f"note         the {falls} {how} {config.num_iterations} iterations now, not "
                f"{training.planned_before}: it goes on at another value and slope, unlike that of a run planned so",
            )


def _limits(config: TrainConfig) -> list[str]:
    """What is limited, in one line; none where nothing is. A task's own settings may say so, which nobody typed."""
    safety = getattr(config.agent, "safety", SafetyConfig())
    each = "; ".join(f"{name} {cost.text}" for name, cost in safety.costs.items())
    return [f"limits       {each} (agent.safety.costs, {safety.method})"] * bool(each)
