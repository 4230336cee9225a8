"""Runs that end before their time: what they keep, what they say, and that they go on from there."""

from __future__ import annotations

import errno
import html
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium import spaces
from test_cli import ROOT, differences, rows_of, wait_for
from torch import Tensor

from rlcore import Step, spec_of
from rlcore.checkpoint import load_checkpoint
from rlcore.learn import Progress
from rlcore.train import ending
from rlcore.train import run as run_module
from rlcore.train.algorithms import ALGORITHMS
from rlcore.train.cli import main
from rlcore.train.ending import Output, OutputClosed, describe, full_disk, is_mistake
from rlcore.train.run import RunFolder, RunLocked
from rlcore.types import Obs

ENVS, STEPS = 4, 8
LATE = 3 * STEPS + 5
"""A step in the fourth iteration."""

fault: Callable[[int], Any] | None = None
"""What happens in a step of the training env, given its number."""
fault_of_evaluation: Callable[[int], Any] | None = None


class Faulty:
    """A point to be moved to zero, in which things go wrong on demand."""

    def __init__(self, num_envs: int, device: str = "cpu", seed: int | None = None) -> None:
        self.num_envs, self.device, self.max_episode_length = num_envs, torch.device(device), 20
        self.observation_spaces = {"policy": spaces.Box(-10, 10, (2,))}
        self.action_space = spaces.Box(-1, 1, (1,))
        self.generator = torch.Generator().manual_seed(seed or 0)
        self.steps, self.age = 0, 0
        self.x = torch.zeros(num_envs, 2)

    def reset(self, seed: int | None = None) -> Obs:
        if seed is not None:
            self.generator.manual_seed(seed)
        self.x, self.age = torch.randn(self.num_envs, 2, generator=self.generator), 0
        return {"policy": self.x.clone()}

    def step(self, action: Tensor) -> Step:
        self.steps += 1
        happens = fault if self.num_envs == ENVS else fault_of_evaluation
        answer = None if happens is None else happens(self.steps)
        self.x, self.age = self.x + 0.1 * action, self.age + 1
        cut = torch.full((self.num_envs,), self.age == self.max_episode_length)
        last = {"policy": self.x.clone()}
        obs = self.reset() if cut[0] else {"policy": self.x.clone()}
        return answer or Step(obs, -self.x.abs().mean(1), torch.zeros_like(cut), cut, last, {})

    def state_dict(self) -> dict[str, Any]:
        return {"x": self.x, "age": self.age, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.x, self.age = state["x"].clone(), state["age"]
        self.generator.set_state(state["generator"])

    def close(self) -> None:
        pass


def words(folder: Path, *more: str, algo: str = "ppo", rows: int = 1000) -> list[str]:
    line = f"train --task python:test_endings:Faulty --algo {algo} --num-envs {ENVS} --eval-envs 2 --log-interval 1"
    line += f" --runs-dir {folder} --agent.num-steps {STEPS} --agent.actor.hidden-dims 8 --agent.critic.hidden-dims 8"
    line += " --no-export --num-iterations 6"
    if algo == "ppo":
        line += " --agent.num-minibatches 2 --agent.num-epochs 1 --agent.lr-schedule constant"
    else:
        line += f" --agent.learning-starts 40 --agent.num-updates 2 --agent.buffer-size {rows * ENVS}"
    return [*line.split(), *more]


def only_run(folder: Path) -> Path:
    (run,) = folder.glob("python_test_endings_Faulty/*/*")
    return run


def checkpoint(run: Path, iteration: int) -> dict[str, Any]:
    return load_checkpoint(run / "checkpoints" / f"{iteration:06d}.pt")


def at(step: int, action: Callable[[], Any]) -> Callable[[int], Any]:
    return lambda number: action() if number == step else None


def throw(error: BaseException) -> Any:
    raise error


@pytest.fixture
def happens(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets something happen in a step of the training env, or of the one for evaluations."""
    return lambda what, name="fault": monkeypatch.setattr(sys.modules[__name__], name, what)


# Errors of the env


ERRORS = [
    RuntimeError("it diverged"), ValueError("it diverged"), KeyError("it diverged"), OSError(errno.EIO, "it diverged"),
    BrokenPipeError("it diverged"), MemoryError("it diverged"), SystemExit("it diverged"), ImportError("it diverged"),
]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_of_the_env_ends_in_one_line_and_keeps_the_last_finished_iteration(
    error: BaseException, tmp_path: Path, happens: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    happens(at(LATE, lambda: throw(error)))
    assert main(words(tmp_path)) == 70
    run, said = only_run(tmp_path), capsys.readouterr().err
    assert said.count("\n") == 1 and f"{type(error).__name__}: " in said and "it diverged" in said
    assert "(test_endings.py:" in said and "in iteration 4" in said
    assert f"to go on from iteration 3, with new episodes: rlcore train --resume {run}\n" in said
    crash = (run / "crash.txt").read_text(encoding="utf-8")
    assert "Traceback" in crash and "in throw" in crash and "it diverged" in crash
    assert [int(row["iteration"]) for row in rows_of(run)] == [1, 2, 3]
    happens(None)
    assert main(["train", "--resume", str(run)]) == 0
    said = capsys.readouterr().out
    assert "resumed      after iteration 3" in said and "set aside crash.txt as crash.txt.old" in said
    assert not (run / "crash.txt").exists() and (run / "crash.txt.old").read_text(encoding="utf-8") == crash
    assert [int(row["iteration"]) for row in rows_of(run)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("algo", "rows"), [("ppo", 0), ("sac", 1000), ("sac", 20), ("ddpg", 1000)])
def test_what_a_broken_rollout_did_is_taken_back(algo: str, rows: int, tmp_path: Path, happens: Any) -> None:
    assert main(words(tmp_path / "whole", "--num-iterations", "3", algo=algo, rows=rows)) == 0
    happens(at(LATE, lambda: throw(RuntimeError())))
    assert main(words(tmp_path / "broken", algo=algo, rows=rows)) == 70
    whole, broken = (checkpoint(only_run(tmp_path / name), 3) for name in ("whole", "broken"))
    assert broken["progress"]["obs"] is None  # episodes start anew
    assert broken["progress"]["env_steps"] == 3 * STEPS * ENVS
    for content in (whole, broken) if algo != "ppo" else ():
        replay = content["agent"]["replay"]
        for name, value in replay.items():
            if name.startswith("final_obs"):
                value[-1] = 0  # where is written what has no slot
            elif len(value) == rows == 20:  # full: what comes next is written before anything is drawn
                value[[(3 * STEPS + i) % rows for i in range(4)]] = 0
    # The recording for an export goes on, and held noise is drawn anew with the episodes.
    differ = {text.split("/")[1] for text in differences(whole["agent"], broken["agent"])}
    assert differ - {"trace", "held"} == set()


def test_the_iteration_after_a_broken_one_learns_from_its_own_steps(tmp_path: Path, happens: Any) -> None:
    happens(at(LATE, lambda: throw(RuntimeError())))
    assert main(words(tmp_path, algo="sac", rows=20)) == 70
    happens(None)
    run = only_run(tmp_path)
    assert main(["train", "--resume", str(run), "--num-iterations", "4"]) == 0
    replay = checkpoint(run, 4)["agent"]["replay"]
    assert (int(replay["row"]), int(replay["size"])) == (4 * STEPS % 20, 20)
    assert int(checkpoint(run, 4)["agent"]["steps"]) == 4 * STEPS


def test_an_env_that_breaks_its_promise_late_is_a_mistake_and_loses_nothing(
    tmp_path: Path, happens: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = torch.zeros(ENVS, 1)
    flags = torch.zeros(ENVS, dtype=torch.bool)
    happens(at(LATE, lambda: Step({"policy": torch.zeros(ENVS, 2)}, wrong, flags, flags, None, {})))
    assert main(words(tmp_path)) == 2
    said, run = capsys.readouterr().err, only_run(tmp_path)
    assert "the reward is torch.float32 of shape (4, 1)" in said and "to go on from iteration 3" in said
    assert said.count("\n") == 1 and not (run / "crash.txt").exists()


def test_an_env_that_fails_before_an_iteration_is_done_leaves_nothing_to_go_on_from(
    tmp_path: Path, happens: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    happens(at(3, lambda: throw(RuntimeError("it diverged"))))
    assert main(words(tmp_path)) == 70
    said, run = capsys.readouterr().err, only_run(tmp_path)
    assert f"no checkpoint to go on from: begin anew with rlcore train --config {run / 'config.yaml'}" in said
    assert said.count("\n") == 1 and not list(run.rglob("*.pt"))


def test_an_update_that_is_broken_off_goes_back_to_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    update = ALGORITHMS["ppo"].agent.update  # type: ignore[attr-defined]

    def failing(self: Any) -> Any:
        return throw(torch.OutOfMemoryError("no memory")) if self.iteration == 3 else update(self)

    monkeypatch.setattr(ALGORITHMS["ppo"].agent, "update", failing)
    assert main(words(tmp_path, "--save-interval", "2")) == 70
    said = capsys.readouterr().err
    assert "OutOfMemoryError: no memory" in said and "the update of iteration 4 was broken off" in said
    assert "to go on from iteration 2" in said and said.count("\n") == 1


def test_an_evaluation_that_fails_loses_no_iteration(
    tmp_path: Path, happens: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    happens(at(5, lambda: throw(RuntimeError("it diverged"))), "fault_of_evaluation")
    assert main(words(tmp_path, "--eval-interval", "3")) == 70
    run, said = only_run(tmp_path), capsys.readouterr().err
    assert f"after iteration 3; traceback in {run / 'crash.txt'}; to go on from iteration 3: rlcore" in said
    assert checkpoint(run, 3)["progress"]["obs"] is not None  # training's episodes go on
    # And the last one, when all is learned.
    happens(lambda number: throw(RuntimeError("it diverged")) if number > 20 else None, "fault_of_evaluation")
    assert main(["train", "--resume", str(run)]) == 70
    assert "to go on from iteration 6: rlcore" in capsys.readouterr().err
    happens(None, "fault_of_evaluation")
    assert main(["train", "--resume", str(run)]) == 0


def test_a_second_fault_does_not_hide_the_first(
    tmp_path: Path, happens: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def save(*_: Any) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    happens(at(LATE, lambda: (monkeypatch.setattr(torch, "save", save), throw(KeyError("first")))))
    assert main(words(tmp_path, "--save-interval", "2")) == 70
    said = capsys.readouterr().err
    assert re.search(r"KeyError: 'first'.*its state could not be saved \(RuntimeError: CUDA error", said)
    assert "to go on from iteration 2" in said and said.count("\n") == 1


def test_an_error_in_a_checkpoint_names_the_last_whole_one(
    tmp_path: Path, happens: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def save(*_: Any) -> None:
        raise RuntimeError("unexpected position")

    happens(at(LATE, lambda: monkeypatch.setattr(torch, "save", save)))
    assert main(words(tmp_path, "--save-interval", "2")) == 70
    said, run = capsys.readouterr().err, only_run(tmp_path)
    assert "unexpected position" in said and "to go on from iteration 2" in said and said.count("\n") == 1
    assert not list(run.rglob("*.tmp")) and checkpoint(run, 2)


def test_an_env_that_cannot_be_closed_takes_nothing_from_what_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Faulty, "close", lambda self: throw(RuntimeError("still in use")))
    assert main(words(tmp_path)) == 0
    assert "closing the env failed: RuntimeError: still in use" in capsys.readouterr().out


def test_the_traceback_is_shown_on_request(
    tmp_path: Path, happens: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RLCORE_DEBUG", "1")
    happens(at(LATE, lambda: throw(RuntimeError("it diverged"))))
    assert main(words(tmp_path)) == 70
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_an_env_that_fails_as_it_is_made_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Faulty, "__init__", lambda self, num_envs, device=None, seed=None: throw(KeyError("joint")))
    assert main(words(tmp_path)) == 70
    said = capsys.readouterr().err
    assert said.startswith("rlcore train: error: KeyError: 'joint' (test_endings.py:") and said.count("\n") == 1


def test_mistakes_are_told_from_failures() -> None:
    def of(action: Callable[[], Any]) -> BaseException:
        with pytest.raises(Exception) as caught:
            action()
        return caught.value

    refused = of(lambda: Progress.restart(None, None, None))  # type: ignore[arg-type]
    assert not is_mistake(refused)  # an AttributeError, though of rlcore
    # A ValueError of what rlcore calls, which nobody raised there.
    assert not is_mistake(of(lambda: RunFolder(Path("\0")).take_over()))
    assert is_mistake(of(lambda: spec_of(None)))  # type: ignore[arg-type]
    assert is_mistake(of(lambda: RunFolder.open(Path("nowhere"))))
    assert is_mistake(of(lambda: RunFolder(Path("/nowhere")).take_over()))
    assert not is_mistake(of(lambda: throw(ValueError("an env's"))))
    full = OSError(errno.ENOSPC, "No space left on device")
    wrapped = of(lambda: throw(RuntimeError("file write failed")))
    wrapped.__cause__ = full
    assert full_disk(wrapped) is full and is_mistake(wrapped)
    assert describe(wrapped).startswith("the disk is full ([Errno 28] No space left on device); make room")


# Signals


def told_by(run: Path) -> str:
    """Why a run ended, as it wrote it down and shows it on its page."""
    text: str = json.loads((run / "end.json").read_text())["ended"]
    assert html.escape(text) in (run / "report.html").read_text()
    return text


def test_a_dropped_connection_ends_like_ctrl_c(
    tmp_path: Path, happens: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    happens(lambda number: os.kill(os.getpid(), signal.SIGHUP) if number in (LATE, LATE + 1) else None)
    assert main(words(tmp_path)) == 129
    run, out = only_run(tmp_path), capsys.readouterr().out
    assert "stopped after iteration 4, by SIGHUP; to go on" in out
    assert told_by(run) == "stopped after iteration 4, by SIGHUP"
    happens(None)
    assert main(["train", "--resume", str(run)]) == 0
    assert main(words(tmp_path / "whole")) == 0
    assert differences(checkpoint(run, 6)["agent"], checkpoint(only_run(tmp_path / "whole"), 6)["agent"]) == []


def test_under_nohup_a_run_goes_on(tmp_path: Path, happens: Any) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        happens(at(LATE, lambda: os.kill(os.getpid(), signal.SIGHUP)))
        assert main(words(tmp_path)) == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_stopping_at_once_loses_the_iteration_alone(
    tmp_path: Path, happens: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ending, "PATIENCE", 0.0)

    def twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    happens(at(LATE, twice))
    assert main(words(tmp_path)) == 143
    assert "stopped, in iteration 4; to go on from iteration 3, with new episodes" in capsys.readouterr().err
    assert not (only_run(tmp_path) / "crash.txt").exists()
    assert told_by(only_run(tmp_path)) == "stopped, in iteration 4"


@pytest.mark.parametrize(
    ("signals", "stops"),
    [
        ([(0.0, "SIGINT"), (0.9, "SIGINT"), (0.95, "SIGTERM")], False),
        ([(0.0, "SIGINT"), (0.9, "SIGINT"), (1.1, "SIGINT")], True),
        ([(0.0, "SIGTERM"), (1.1, "SIGINT")], True),
        ([(0.0, "SIGHUP"), (5.0, "SIGHUP")], False),  # from a shell and from its terminal
        ([(0.0, "SIGINT"), (5.0, "SIGHUP")], False),
        ([(0.0, "SIGHUP"), (5.0, "SIGTERM")], True),
    ],
)
def test_a_signal_counts_twice_only_when_the_hint_can_have_been_read(
    signals: list[tuple[float, str]], stops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, shown = 100.0, []
    monkeypatch.setattr(ending.time, "monotonic", lambda: now)
    interrupt = ending.Interrupt()
    interrupt.show = lambda text: shown.append(text) or True  # type: ignore[func-returns-value]
    stopped = False
    with interrupt.handling():
        for after, name in signals:
            now = 100.0 + after
            try:
                os.kill(os.getpid(), signal.Signals[name])
                time.sleep(0)
            except ending.Stopped as stop:
                stopped = True
                assert stop.code == 128 + signal.Signals[name]
    assert stopped == stops and interrupt.signal == signal.Signals[signals[0][1]]
    hints = [ending.TOO_SOON if i and name != "SIGHUP" else ending.HINT for i, (_, name) in enumerate(signals)]
    assert shown == hints[: len(signals) - stops]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), EOFError("a worker of the env is gone")])
def test_ctrl_c_that_an_env_takes_badly_is_still_ctrl_c(
    error: BaseException, tmp_path: Path, happens: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a simulator does that raises, or an env whose workers got the same signal."""

    def interrupted() -> None:
        if not isinstance(error, KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        raise error

    happens(at(LATE, interrupted))
    assert main(words(tmp_path)) == 130
    said = capsys.readouterr().err
    assert "rlcore train: stopped" in said and "to go on from iteration 3, with new episodes" in said
    assert ("a worker of the env is gone" in said) == (only_run(tmp_path) / "crash.txt").exists()
    assert said.splitlines()[-1].startswith(f"rlcore train: {told_by(only_run(tmp_path))}; ")


def test_the_hint_of_ctrl_c_is_in_the_live_display_and_comes_before_a_second_one_counts(tmp_path: Path) -> None:
    """On a terminal of its own; the iteration is so long that both arrive in one."""
    control, terminal = pty.openpty()
    command = words(tmp_path, "--agent.num-epochs", "10000000")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}", "TERM": "xterm", "COLUMNS": "150"}
    process = subprocess.Popen(
        [sys.executable, "-m", "rlcore", *command], env=environment, stdin=terminal, stdout=terminal, stderr=terminal,
        start_new_session=True,
    )  # fmt: skip
    os.close(terminal)
    screen = ""

    def read_until(text: str, seconds: float = 1e9) -> bool:
        nonlocal screen
        end = time.monotonic() + seconds
        while text not in screen and time.monotonic() < end and process.poll() is None:
            if select.select([control], [], [], 0.1)[0]:
                screen += os.read(control, 65536).decode(errors="replace")
        found = text in screen
        screen = screen.partition(text)[2]
        return found

    assert read_until("iteration 0/6"), screen
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)  # as one who is impatient, before the hint can be read
    hint = "once more"  # in either of the two: signals that come at once are one
    assert read_until(hint) and process.poll() is None
    assert read_until("iteration 0/6") and read_until(hint), "it stays as the display is drawn anew"
    time.sleep(ending.PATIENCE)
    process.send_signal(signal.SIGINT)
    while process.poll() is None:
        if select.select([control], [], [], 0.1)[0]:
            try:
                screen += os.read(control, 65536).decode(errors="replace")
            except OSError:  # the terminal has no other end any more
                break
    assert process.wait() == 130
    os.close(control)


# Output that nobody reads


class Closing:
    """Standard output whose reader goes away."""

    def __init__(self, writes: int, number: int) -> None:
        self.left, self.number, self.text = writes, number, ""

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise OSError(self.number, os.strerror(self.number))
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO])
def test_a_reader_that_goes_away_ends_the_run_without_loss(
    number: int, tmp_path: Path, happens: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    screen = Closing(1000, number)
    monkeypatch.setattr(sys, "stdout", screen)
    happens(at(LATE, lambda: setattr(screen, "left", 0)))
    assert main(words(tmp_path)) == 141
    said, run = capfd.readouterr().err, only_run(tmp_path)
    assert said.count("\n") == 1
    assert "nobody reads the output any more, after iteration 4; to go on from iteration 4: rlcore train" in said
    happens(None)
    monkeypatch.undo()
    assert main(["train", "--resume", str(run)]) == 0
    assert main(words(tmp_path / "whole")) == 0
    assert differences(checkpoint(run, 6)["agent"], checkpoint(only_run(tmp_path / "whole"), 6)["agent"]) == []


def test_output_tells_once_and_not_from_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setattr(sys, "stdout", Closing(0, errno.EPIPE))
    output = Output()
    thread = threading.Thread(target=output.write, args=("x",))
    thread.start()
    thread.join()
    with pytest.raises(OutputClosed):
        output.write("x")
    assert output.write("x") == 1
    monkeypatch.setattr(sys, "stdout", Closing(0, errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        Output().flush() or Output().write("x")


def test_a_process_without_standard_streams_gets_some(tmp_path: Path) -> None:
    code = "from rlcore.train.ending import open_standard_streams as f; f(); file = open('next', 'w'); print('x');"
    code += "import sys; print('y', file=sys.stderr, flush=True); file.write(str(file.fileno()))"
    command = f'exec {sys.executable} -c "{code}" <&- >&- 2>&-'
    subprocess.run(["sh", "-c", command], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    assert (tmp_path / "next").read_text() == "3"


# A full disk


@pytest.fixture(params=["8k", "400k", "4m"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of that size."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(folder)], check=False)
    if done.returncode != 0:
        pytest.skip("mounting is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_in_one_line_and_whole_checkpoints(
    small_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wide = ["--agent.actor.hidden-dims", "64", "64", "--save-interval", "1", "--keep-checkpoints", "0"]
    assert main(words(small_disk, "--num-iterations", "100", *wide)) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "the disk is full" in said and "make room" in said, said
    assert not list(small_disk.rglob("*.tmp"))
    kept = sorted(small_disk.rglob("0*.pt"))
    for path in kept:
        assert load_checkpoint(path)["progress"]["iteration"] == int(path.stem)
    if kept:
        last, run = int(kept[-1].stem), only_run(small_disk)
        assert f"to go on from iteration {last}: rlcore train --resume {run}" in said
        subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
        assert main(["train", "--resume", str(run), "--num-iterations", str(last + 1)]) == 0
        assert [int(row["iteration"]) for row in rows_of(run)] == list(range(1, last + 2))


@pytest.mark.parametrize("what", ["checkpoint", "metrics.csv", "events", "configuration", "export"])
def test_a_full_disk_is_told_whoever_writes(
    what: str, tmp_path: Path, happens: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    target = {
        "checkpoint": ("rlcore.checkpoint._Watched.write", "fourth"),
        "metrics.csv": ("rlcore.train.logger.MetricsFile.write", "fourth"),
        "events": ("tensorboard.summary.writer.record_writer.RecordWriter.write", "fourth"),
        "configuration": ("rlcore.train.run.save_yaml", "first"),
        "export": ("torch.onnx.export", "first"),
    }[what]

    def fill() -> None:
        monkeypatch.setattr(target[0], lambda *_, **__: throw(full))

    if target[1] == "first":
        fill()
    else:
        happens(at(LATE, fill))
    assert main(words(tmp_path, "--export")) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "the disk is full ([Errno 28] No space left on device); make room" in said, said
    assert said.count("No space") == 1, said
    for path in tmp_path.rglob("*.pt"):
        load_checkpoint(path)


def test_a_configuration_is_whole_or_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(words(tmp_path)) == 0
    run = RunFolder(only_run(tmp_path))
    before, config = run.config_file.read_bytes(), run.read_config()
    monkeypatch.setattr(os, "fsync", lambda number: throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        run.write_config(config)
    assert run.config_file.read_bytes() == before and not list(run.path.glob(".*.tmp"))


# One process a folder


def test_a_folder_in_which_this_process_trains_is_refused_to_itself(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    first.take_over()
    with pytest.raises(RunLocked, match="by this process"):
        second.take_over()
    first.unlock()
    second.take_over()
    second.unlock()


def test_a_folder_in_which_a_process_trains_is_refused_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(tmp_path)) == 0
    run = only_run(tmp_path)
    code = f"from pathlib import Path; from rlcore.train.run import RunFolder; r = RunFolder(Path({str(run)!r}));"
    code += "r.take_over(); (r.path / 'held').touch(); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, text=True
    )
    wait_for(run, "held", holder)
    capsys.readouterr()
    for path in (run, run / "checkpoints" / "000006.pt"):
        assert main(["train", "--resume", str(path), "--num-iterations", "7"]) == 2
        said = capsys.readouterr().err
        assert f"is being trained by process {holder.pid} on {socket.gethostname()}" in said and said.count("\n") == 1
    assert main(["eval", "--run", str(run), "--num-envs", "2"]) == 0  # looking on is allowed
    # kill -9 leaves no lock, but half a checkpoint.
    for path in (run / "checkpoints" / f".000007.pt.{holder.pid}.tmp", run / f".metrics.csv.{holder.pid}.tmp"):
        path.write_bytes(b"half")
    running = run / "checkpoints" / f".other.pt.{os.getppid()}.tmp"
    running.write_bytes(b"of a process that runs")
    holder.kill()
    holder.communicate()
    assert main(["train", "--resume", str(run), "--num-iterations", "7"]) == 0
    assert "removed what a process that was killed had not written to its end" in capsys.readouterr().out
    assert list(run.rglob("*.tmp")) == [running]


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_module.fcntl, "lockf", lambda *_: throw(OSError(errno.ENOLCK, "No locks available")))
    assert main(words(tmp_path)) == 0
    assert "this file system knows no locks (No locks available)" in capsys.readouterr().out


# All of it at random moments


def test_runs_that_end_at_random_moments_go_on() -> None:
    counts = ["--kill", "2", "--error", "2", "--hangup", "2", "--pipe", "2", "--both", "1", "--seed", "7"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / "interruptions.py"), *counts]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
