"""Evaluations that take long: what is seen of them, and that a signal ends them without loss."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import test_endings
from rich.console import Console
from test_cli import differences, rows_of
from test_endings import Faulty, at, checkpoint, only_run, words

from rlcore.checkpoint import load_checkpoint
from rlcore.train import pulse as pulse_module
from rlcore.train.cli import main
from rlcore.train.evaluate import evaluate
from rlcore.train.logger import Display
from rlcore.train.pulse import Pulse, pulse

LENGTH = 20  # steps of an evaluation of ``Faulty``


def interrupted_at(step: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let Ctrl-C come in a step of the evaluations; gives the steps that they take."""
    taken: list[int] = []

    def happens(number: int) -> None:
        taken.append(number)
        at(step, lambda: os.kill(os.getpid(), signal.SIGINT))(number)

    monkeypatch.setattr(sys.modules["test_endings"], "fault_of_evaluation", happens)
    return taken


@pytest.mark.parametrize(
    ("step", "iteration", "more"),
    [(LENGTH + 5, 4, ()), (2 * LENGTH + 5, 6, ()), (5, 1, ("--stop-at", "rollout/reward<9"))],
)
def test_a_signal_ends_an_evaluation_at_once_and_the_resumed_run_makes_up_for_it(
    step: int, iteration: int, more: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    every = ("--eval-interval", "2", "--save-interval", "1", "--keep-checkpoints", "0", *more)
    assert main(words(tmp_path / "whole", *every)) == 0
    taken = interrupted_at(step, monkeypatch)
    assert main(words(tmp_path / "half", *every)) == 130
    assert taken[-1] == step
    said = capsys.readouterr()
    assert "the evaluation was broken off" in said.out and f"stopped after iteration {iteration}, by SIGINT" in said.out
    whole, half = only_run(tmp_path / "whole"), only_run(tmp_path / "half")
    assert checkpoint(half, iteration)["owed"]
    monkeypatch.setattr(test_endings, "fault_of_evaluation", None)
    assert main(["train", "--resume", str(half)]) == 0
    last = rows_of(whole)[-1]["iteration"]
    for name in (f"{int(last):06d}.pt", "best.pt"):
        one, other = (load_checkpoint(run / "checkpoints" / name) for run in (whole, half))
        assert differences(one["agent"], other["agent"]) == [] and "owed" not in other
        assert one.get("score") == other.get("score")
    told = [sorted(row["eval/return"] for row in rows_of(run) if row.get("eval/return")) for run in (whole, half)]
    assert told[0] == told[1]


def test_what_is_evaluated_is_told_every_half_minute_without_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    now, written, env = 100.0, list[str](), Faulty(2)
    monkeypatch.setattr(pulse_module.time, "monotonic", lambda: now)
    tell = Pulse(env, lambda text: False, written.append)
    for t in range(LENGTH):
        now += 4.0
        tell(t)
    assert written == ["evaluating: step 9 of at most 20", "evaluating: step 17 of at most 20"]
    env.max_episode_length = 2**31
    tell = Pulse(env, lambda text: bool(shown.append(text)) or True, written.append)
    shown: list[str] = []
    now += 1000.0
    tell(4999)
    tell.end()
    assert shown == ["evaluating: step 5,000", ""] and len(written) == 2


def test_a_terminal_shows_how_far_an_evaluation_has_come() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80)
    with pulse(console, Faulty(2)) as before:
        result = evaluate(Faulty(2), lambda obs: obs["policy"][:, :1], 1, before=before)
    assert result.episodes == 2 and "evaluating: step 20 of at most 20" in screen.getvalue()
    display = Display(console, 3, 0)
    assert not display.doing("evaluating: step 1")
    display.start()
    assert display.doing("evaluating: step 7 of at most 20") and display.hint("to stop")
    console.print(display._picture())
    assert screen.getvalue().index("evaluating: step 7 of at most 20") < screen.getvalue().index("to stop")
    seen = len(screen.getvalue())
    display.doing("")
    display.stop()
    console.print(display._picture())
    assert "evaluating" not in screen.getvalue()[seen:].rpartition("iteration")[2]


def test_nothing_is_said_of_an_evaluation_that_is_quick(tmp_path: Path, capsys: Any) -> None:
    assert main(words(tmp_path, "--num-iterations", "1")) == 0
    assert "evaluating: step" not in capsys.readouterr().out
