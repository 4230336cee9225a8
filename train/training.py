"""A training run from the first iteration to the exported file, and its continuation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from signal import Signals
from typing import Any

import torch
from rich.console import Console

from rlcore.agent import Agent, check_agent
from rlcore.checkpoint import fitting, load_checkpoint, refuse_broken_state
from rlcore.config import ConfigError, shown, to_dict
from rlcore.distributed import gathered, gone, join, leave, local_device, most
from rlcore.env import spec_of
from rlcore.env_check import check_obs
from rlcore.envs import make_env
from rlcore.envs.launch import simulator_of
from rlcore.learn import check_scored, learn
from rlcore.ranks import refuse
from rlcore.report import Report
from rlcore.resume import Progress, begin, restore, snapshot
from rlcore.stage import Stage, lent, stage_of, stage_where
from rlcore.train.ahead import TIMEOUTS, say_what_is_ahead
from rlcore.train.algorithms import find
from rlcore.train.beginning import Held, take_weights
from rlcore.train.best import Best
from rlcore.train.conclude import close_env, conclude, say
from rlcore.train.config import TrainConfig, resolve_device, settings_as_typed
from rlcore.train.continuation import env_changes
from rlcore.train.ending import CRASH_FILE, Interrupt, Stopped, end_of_run, quiet_threads
from rlcore.train.evaluate import ENDLESS, whole_episodes
from rlcore.train.filming import Film
from rlcore.train.judging import due, eval_env_of, evaluated, judged_by, try_out
from rlcore.train.logger import RunLogger, notes_shown
from rlcore.train.machine import write_machine
from rlcore.train.pulse import Pulse
from rlcore.train.reports.page import report_at_end, write_run_report
from rlcore.train.run import RunFolder, locate
from rlcore.train.several import end_of_follower, follow, how_again, of_rank, share_of, with_ranks
from rlcore.train.stop import Stop
from rlcore.train.threads import use_threads
from rlcore.train.writers import Warn, Writer, writers


class Training:
    """A run that is ready to start: everything that can be refused has been checked."""

    def __init__(
        self,
        config: TrainConfig,
        console: Console,
        resumed_from: Path | None = None,
        usual: TrainConfig | None = None,
    ) -> None:
        """Build env and agent, and restore them if the run is continued.

        Args:
            config: the whole run.
            console: where the run is shown.
            resumed_from: checkpoint to go on from.
            usual: what it would be if nobody had set anything; None: the task's defaults.

        Raises:
            ValueError: something in the configuration does not fit; one line that names it and the remedy.
            CheckpointError: the checkpoint is one of another version.
            RunLocked: another process trains in the run's folder.
        """
        self.usual = usual
        self.run: RunFolder | None = None
        self.notes: list[str] = []
        self.device = resolve_device(local_device(config.device))
        self.ranks = join(self.device)
        if self.ranks.joined:
            config = dataclasses.replace(config, device=self.device.type)  # of all of them
        if resumed_from is not None and self.ranks.main:
            self.run, _ = locate(resumed_from)
            self.notes += self.run.take_over()
        try:
            self._prepare(config, console, resumed_from)
        except BaseException:
            if self.run is not None:
                self.run.unlock()
            raise

    def _prepare(self, config: TrainConfig, console: Console, resumed_from: Path | None) -> None:
        self.config = config if self.ranks.joined else dataclasses.replace(config, device=str(self.device))
        self.console = console if self.ranks.main else Console(quiet=True)
        self.share = share_of(config, self.ranks)
        self.progress: Progress | None = None
        self.exact = True
        self.video: Callable[[int, Path], None] = lambda env_steps, path: None
        self.stop = Stop(config.stop_at, config.stop_no_progress, config.stop_after)
        self.interrupt = Interrupt()
        self.interrupt.gone = gone
        self.resumed_from = resumed_from
        content = None if resumed_from is None else load_checkpoint(resumed_from, device=str(self.device))
        if content is not None and torch.device(content["config"]["device"]).type != self.device.type:
            content["env"] = None  # its random generator is of another kind
        with fitting(resumed_from):
            done = 0 if content is None else int(content["progress"]["iteration"])
            self.planned_before = None if content is None else int(content["config"]["num_iterations"])
        if config.num_iterations < done:
            raise ConfigError(
                f"num_iterations is {config.num_iterations} and the run has done {done} already; "
                f"give --num-iterations {done} or more"
            )
        # A simulator that cannot be restored must not repeat the episodes that it began with; gymnasium's env i adds i.
        seed = self.ranks.seed(config.seed + done * config.num_envs)
        self.film = Film(config, self.device) if config.eval_video and self.ranks.main else None
        self.env = make_env(config.task, self.share, self.device, seed=seed, **config.env)
        # Isaac Sim has one scene per process: there, evaluations borrow the training env.
        borrows = simulator_of(config.task) == "isaaclab"
        self.judges, self.first_judged = judged_by(config, self.share if borrows else None, self.ranks)
        self.shares_env = borrows or not self.judges
        self.eval_env = self.env if self.shares_env else eval_env_of(config, self.judges, self.device)
        if config.capture_env and not getattr(self.env, "capturable", False):
            raise ConfigError(f"capture_env: {config.task} cannot be recorded as a CUDA graph; leave capture_env out")
        self.first_stage = stage_of(self.eval_env)
        self.spec = spec_of(self.env)
        self.stop.tasks = tuple(self.spec.tasks)
        self.algorithm = find(config.algo)
        with notes_shown(self.console), settings_as_typed(config.agent):
            self.agent: Agent = self.algorithm.agent(
                self.env, config.agent, seed=config.seed, num_iterations=config.num_iterations
            )
        check_agent(self.agent, self.algorithm.name)
        check_scored(self.env, self.agent)
        refuse(self.env, self.agent)  # here, before there is a run folder
        if config.init_from is not None and content is None:
            self.notes += take_weights(self.agent, config)
        self.folder: Path | None = None  # of the run, where another rank writes it
        self.held = Held(self.agent, config.init)
        samples = config.agent.samples_at_once(self.share)
        self.notes += use_threads(config.threads, samples, self.agent.policy, self.device)
        if content is not None:
            own, told = of_rank(content, self.ranks, self.agent)
            self.notes += told
            altered, told = env_changes(content, self.config, self.env, resumed_from)
            self.notes += told
            refuse_broken_state(content["agent"], resumed_from)
            other = (
                f"the env is another with {', '.join(altered)} changed, or it is damaged; leave them out of the command"
                if altered
                else "another version of rlcore wrote it, or it is damaged; begin anew with --config RUN/config.yaml; "
                "`rlcore export` may still read its policy"
            )
            with fitting(resumed_from, other), settings_as_typed(config.agent):
                self.progress, self.exact = restore(self.env, self.agent, content)
                check_obs(self.env, self.progress.obs, "checkpoint")
                self.stop.resume(content)
                if str(self.agent.timeout_bootstrap) not in TIMEOUTS:
                    raise ValueError(f"timeout_bootstrap is {shown(self.agent.timeout_bootstrap)}")
            if not own:
                torch.manual_seed(seed)
        stage = self.stage()
        if not self.shares_env:
            try_out(self.eval_env, self.agent.policy, stage)
        self.saved_iteration = self.evaluated = done
        self.owed = content is not None and bool(content.get("owed"))  # the evaluation of the last iteration
        self.pulse = Pulse(self.eval_env, lambda text: True, lambda text: None)
        self.best = Best(self.config, self.spec, self.device)
        with fitting(resumed_from):
            self.best.take_ranges(content or {})
        self.bootstrap = self.agent.timeout_bootstrap

    def start(self) -> int:
        """Train, evaluate and export.

        Returns:
            The exit code: 0, or 128 + signal for a run that was interrupted and can be resumed, or 1 where the
            export was refused. Whatever else ends it is told in one line on standard error, with what was kept; for
            the codes see ``rlcore.train.ending``.
        """
        interrupt = self.interrupt
        try:
            with quiet_threads():
                return self._train(interrupt) if self.ranks.main else follow(self, interrupt)
        except BaseException as error:
            if not self.ranks.main:
                return end_of_follower(error, interrupt, self.ranks.rank, self.folder)
            code = end_of_run(error, interrupt, self.run, self.progress, self._rescue)
            if self.run is not None and self.progress is not None and self.config.report:
                with suppress(Exception):  # the last line has been said
                    write_run_report(self.run.path)
            return code
        finally:
            if self.run is not None:
                self.run.unlock()

    def _train(self, interrupt: Interrupt) -> int:
        config, resumed = self.config, self.progress
        self.run = self._folder()
        gathered(str(self.run.path))
        write_machine(self.run.path, self.device)
        say_what_is_ahead(self)
        if self.progress is None:
            self.progress = begin(self.env, self.agent, config.seed)
        self.held.begin(self.progress.iteration)
        if self.env.max_episode_length < ENDLESS:
            longest = -(-self.env.max_episode_length // self.agent.num_steps)  # iterations of an episode
            began = 0 if self.exact else self.progress.iteration
            self.stop.fair_from = began + longest + config.log_interval
        evaluations: dict[int, dict[str, float]] = {}  # by iteration, until its report comes
        with (
            interrupt.handling(),
            RunLogger(
                self.run.path,
                total=config.num_iterations,
                log_interval=config.log_interval,
                console=self.console,
                resumed=None if resumed is None else (resumed.iteration, resumed.env_steps),
                writers=self._writers,
            ) as logger,
        ):
            interrupt.show, self.video = logger.hint, logger.video
            self.pulse = Pulse(self.eval_env, logger.doing, partial(say, self.console))

            def on_report(report: Report) -> None:
                self.stop.told(report.metrics)
                if (row := logger.report(report, evaluations.pop(report.iteration, {}))) is not None:
                    self.stop.logged(report.iteration, row)

            def on_iteration(progress: Progress) -> None:
                self.held.after(progress.iteration)
                if self.agent.timeout_bootstrap != self.bootstrap:
                    self.bootstrap = self.agent.timeout_bootstrap
                    say(self.console, f"time-outs are {TIMEOUTS[self.bootstrap]}: the env hides final_obs")
                evaluations[progress.iteration] = evaluated(self, progress) if due(config, progress) else {}
                every = config.save_interval
                if every and progress.iteration % every == 0:
                    self.save(progress)
                self.stop.timed()

            def evaluate_now(progress: Progress) -> None:
                if figures := evaluated(self, progress):
                    logger.evaluated(progress.iteration, progress.env_steps, figures)

            if self.owed:
                evaluate_now(self.progress)
                self.saved_iteration = -1  # what is there says that it is owed
            progress = self.learn(on_report, on_iteration, interrupt)
            early = self.stop.reason is not None and self.evaluated != progress.iteration and interrupt.signal is None
            if most(int(early)):
                evaluate_now(progress)
            self.save_last(progress)
            interrupt.signal = most(interrupt.signal or 0) or None  # whichever rank it came to
        leave()
        if interrupt.signal is not None:
            stopped = f"stopped after iteration {progress.iteration}, by {Signals(interrupt.signal).name}"
            self._tell_end(stopped, progress)
            say(self.console, f"{stopped}; to go on:")
            say(self.console, f"  rlcore train --resume {self.run.path}{how_again(self.ranks, self.device)}")
            if self.ranks.size > 1:
                say(self.console, f"  bit for bit with {self.ranks.size} ranks, as it was started")
            return 128 + interrupt.signal
        ended = f"after iteration {progress.iteration}: {self.stop.reason or 'all iterations are done'}"
        if not self.shares_env:
            close_env(self.env, self.console)
            if self.eval_env.num_envs < config.eval_envs:  # others had their part, and are gone
                close_env(self.eval_env, self.console)
                self.eval_env = eval_env_of(config, config.eval_envs, self.device)
        interrupt.at_once = True
        try:
            with interrupt.handling(), whole_episodes(self.eval_env):
                stage, why = self.stage(), self.best.why()
                code = conclude(self.run, self.eval_env, config, self.console, stage, why, self.stop.reason)
        except Stopped as stop:
            self._tell_end(f"{ended}; stopped before evaluation and export were done", progress)
            say(self.console, f"ended        {ended}; stopped before evaluation and export were done; to do them:")
            say(self.console, f"  rlcore train --resume {self.run.path}")
            code = int(str(stop.code))
        else:
            self._tell_end(ended, progress)
            say(self.console, f"ended        {ended}")
        close_env(self.eval_env, self.console)
        if self.film is not None:
            self.film.close()
        return code

    def _tell_end(self, ended: str, progress: Progress) -> None:
        """Write down why the run ends, and the page that shows it."""
        assert self.run is not None
        self.run.note_end(ended, progress.iteration)
        filmed = len(self.run.filmed())
        if self.config.eval_video and filmed:
            say(self.console, f"videos       {self.run.videos} ({filmed})")
        if self.config.report:
            report_at_end(self.run.path, self.console)

    def _writers(self, warn: Warn) -> list[Writer]:
        assert self.run is not None
        config, begun = self.config, self.progress
        steps = None if begun is None or self.resumed_from is None else begun.env_steps
        note = partial(say, self.console)
        return writers(config.logger or (), self.run.path, to_dict(config), config.log_project, steps, note, warn)

    def learn(
        self, on_report: Callable[[Report], None], on_iteration: Callable[[Progress], None], interrupt: Interrupt
    ) -> Progress:
        """Train to the end, or until something ends it on any rank; nothing, where that was before it was resumed."""
        assert self.progress is not None
        if self.stop.reason is not None:
            return self.progress
        return learn(
            self.env,
            self.agent,
            self.config.num_iterations,
            progress=self.progress,
            on_report=on_report,
            on_iteration=on_iteration,
            should_stop=lambda: interrupt.signal is not None or self.stop.reason is not None,
            capture_env=self.config.capture_env,
        )

    def save_last(self, progress: Progress) -> None:
        """Write the last checkpoint, unless it is there; why the run ends belongs in it."""
        if most(int(self.stop.reason is not None)) or self.saved_iteration != progress.iteration:
            self.save(progress)

    def _rescue(self) -> None:
        """Save the last finished iteration, after something went wrong."""
        assert self.progress is not None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # it may be memory that is missing
        if self.progress.iteration > self.saved_iteration:
            self.save(self.progress, alone=True)

    def _folder(self) -> RunFolder:
        run = self.run
        if run is None:
            run = RunFolder.create(self.config)
            self.notes += run.take_over()
            return run
        assert self.progress is not None
        for later in run.numbered():
            if int(later.stem) > self.progress.iteration:
                # Kept, but out of the way: the checkpoint with the highest number is the last one.
                later.rename(later.with_suffix(".pt.old"))
                say(self.console, f"set aside {later.name} as {later.name}.old, because it is later")
        if run.best.is_file():
            best = load_checkpoint(run.best)
            if best["progress"]["iteration"] > self.progress.iteration:
                run.best.rename(run.best.with_suffix(".pt.old"))
                say(self.console, "set aside best.pt as best.pt.old, because it is later")
            else:
                self.best.resume(best)
        run.write_config(self.config)
        run.end.unlink(missing_ok=True)  # it goes on
        for figures in (run.evaluation, run.robustness):  # of a policy of before
            if figures.is_file():
                figures.rename(figures.with_suffix(".json.old"))
        if run.set_aside_crash():
            say(self.console, f"set aside {CRASH_FILE} as {CRASH_FILE}.old, because the run goes on")
        return run

    def stage(self) -> Stage | None:
        """Where the curricula stand in an evaluation."""
        which = self.config.eval_stage
        if which in ("end", "all"):
            return stage_where(self.env, which)
        return stage_of(self.env) if which == "trained" else self.first_stage

    @contextmanager
    def lent(self, progress: Progress) -> Iterator[None]:
        """While an evaluation uses the training env, if it does."""
        if not self.shares_env or not self.judges:
            yield
            return
        progress.broken_off = "rollout"  # should the evaluation fail, training's episodes do not go on
        with lent(self.env, lambda obs: progress.restart(self.env, self.agent, obs)):
            yield
        progress.broken_off = ""

    def save(self, progress: Progress, alone: bool = False) -> None:
        """Write a checkpoint, with what all ranks have of their own unless rank 0 is left ``alone``."""
        content = self.content(progress)
        if not alone:
            content = with_ranks(content, self.ranks)
        if self.run is not None:
            self.run.save(content, progress.iteration, self.config.keep_checkpoints)
        self.saved_iteration = progress.iteration

    def content(self, progress: Progress) -> dict[str, Any]:
        """What a checkpoint holds."""
        own: dict[str, Any] = {
            "config": to_dict(self.config),
            "spec": dataclasses.asdict(self.spec),
            "ranges": dict(self.best.ranges),
        }
        own |= {"stop": self.stop.state_dict()} if self.stop.asked else {}
        own |= {"owed": True} if self.owed else {}
        content = own | snapshot(self.env, self.agent, progress)
        return content if self.ranks.size == 1 else content | {"world": self.ranks.size}
