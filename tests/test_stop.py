"""Runs that end before their last iteration: by what is measured, by what is not, and by the clock."""

from __future__ import annotations

import json
import math
import re
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_distributed import in_ranks

from rlcore.checkpoint import load_checkpoint
from rlcore.config import ConfigError
from rlcore.train.cli import main
from rlcore.train.config import TrainConfig
from rlcore.train.stop import Condition, Stop, conditions, seconds_of

WORDS = "train --task CartPole --num-envs 4 --agent.num-steps 16 --eval-envs 2 --threads 1 --no-report --log-interval 1"


def trained(folder: Path, *words: str, name: str = "x") -> Path:
    assert main([*WORDS.split(), "--runs-dir", str(folder), "--name", name, *words]) == 0
    (run,) = folder.glob(f"CartPole/ppo/*-{name}")
    return run


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["eval/success>=0.95"], [("eval/success", ">=", 0.95)]),
        (["eval/success", ">=", "0.95"], [("eval/success", ">=", 0.95)]),
        (["rollout/x<-1e3,policy/kl > 2"], [("rollout/x", "<", -1000.0), ("policy/kl", ">", 2.0)]),
        (["a<=1", "b<=2"], [("a", "<=", 1.0), ("b", "<=", 2.0)]),
        ([], []),
    ],
)
def test_conditions_are_read(texts: list[str], found: list[tuple[str, str, float]]) -> None:
    assert conditions(texts) == found


@pytest.mark.parametrize("text", ["eval/success", "a==1", "a>=b", "a>=nan", ">=1", "a>=1 b"])
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"stop_at: .* write a metric, one of"):
        conditions([text])


def test_limits_are_met_on_their_own_side() -> None:
    met = {operator: [Condition("a", operator, 1.0).met({"a": x}) for x in (0.0, 1.0, 2.0)] for operator in "<>"}
    assert met == {"<": [True, False, False], ">": [False, False, True]}
    assert Condition("a", ">=", 1.0).met({"a": 1.0}) and Condition("a", "<=", 1.0).met({"a": 1.0})
    assert not Condition("a", "<=", 1.0).met({})


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("1.5h", 5400), ("30m", 1800), ("2 d", 172800), ("5S", 5)])
def test_times_are_read(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["0", "-3", "m", "3w", "1e", ""])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"stop_after: .*such as 30m"):
        seconds_of(text)


def test_a_metric_that_no_run_has_is_found_with_the_first_that_are_there() -> None:
    stop = Stop(("loss/polcy<0",), None, None)
    stop.told(["rollout/reward"])  # SAC's first iterations, before it learns
    with pytest.raises(ConfigError, match="'loss/polcy'; did you mean 'loss/policy'"):
        stop.told(["loss/policy", "loss/value"])
    stop = Stop(("rollout/sucess>0",), None, None)
    stop.told(["loss/value", "rollout/reward"])  # no episode has ended
    with pytest.raises(ConfigError, match="'rollout/sucess'; did you mean 'rollout/success'"):
        stop.told(["loss/value", "rollout/episode_return", "rollout/success"])
    with pytest.raises(ConfigError, match="no metric of this run is called 'reward'"):
        Stop(("reward>0",), None, None).told(["rollout/reward"])
    with pytest.raises(ConfigError, match="evaluations of this run do not tell 'eval/success'"):
        Stop(("eval/success>0",), None, None).evaluated({"eval/return": 1.0}, True)


@pytest.mark.parametrize("metric", ["randomize/success", "signal/cost_episode", "env/height", "curriculum/success"])
def test_what_waits_for_an_episode_to_end_is_not_missed_before(metric: str) -> None:
    stop = Stop((f"{metric}>0",), None, None)
    stop.told(["loss/value", "rollout/reward", "signal/cost"])
    stop.told(["rollout/episode_return", metric])
    with pytest.raises(ConfigError, match=f"no metric of this run is called '{metric}'"):
        Stop((f"{metric}>0",), None, None).told(["rollout/episode_return"])


@pytest.mark.parametrize("metric", ["rollout/episode_return_B", "rollout/success_B", "env/B/height"])
def test_a_task_whose_episodes_are_longer_is_waited_for(metric: str) -> None:
    stop = Stop((f"{metric}>0",), None, None)
    stop.tasks = ("A", "B")
    stop.told(["loss/value", "rollout/episode_return", "rollout/episode_return_A"])
    stop.told(["rollout/episode_return_B", metric])
    stop = Stop((f"{metric[:-1]}x>0",), None, None)
    stop.tasks = ("A", "B")
    with pytest.raises(ConfigError, match="no metric of this run is called"):
        stop.told(["rollout/episode_return", "rollout/episode_return_A", "rollout/episode_return_B"])


def test_an_evaluation_in_which_no_episode_ended_does_not_end_the_run() -> None:
    stop = Stop(("eval/success>=0.5",), None, None)
    stop.evaluated({"eval/return": math.nan}, True)
    stop.evaluated({"eval/return": 1.0, "eval/success": 0.6}, True)
    assert stop.reason == "eval/success >= 0.5 (0.6)"


def test_the_first_episodes_to_end_which_are_the_short_ones_end_no_run(tmp_path: Path) -> None:
    stop = Stop(("rollout/success>=0.9", "rollout/reward>=2"), None, None)
    stop.fair_from = 5
    stop.logged(4, {"rollout/success": 1.0, "rollout/reward": 1.0})
    assert stop.reason is None
    stop.logged(5, {"rollout/success": 0.95, "rollout/reward": 1.0})
    assert stop.reason == "rollout/success >= 0.9 (0.95)"

    words = ["--env.max_episode_length", "40", "--stop-at", "rollout/episode_length>=1", "--no-export"]  # 3 x 16 steps
    run = trained(tmp_path, "--num-iterations", "9", *words)
    assert json.loads((run / "end.json").read_text())["iteration"] == 3 + 1


def test_no_progress_counts_evaluations_since_the_best() -> None:
    stop, ended = Stop(None, 2, None), []
    for better in (True, False, True, False, False):
        stop.evaluated({"eval/return": 0.0}, better)
        ended.append(stop.reason is not None)
    assert ended == [False, False, False, False, True]


def test_what_an_earlier_part_of_the_run_counted_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 5000.0
    monkeypatch.setattr("rlcore.train.stop.time", SimpleNamespace(monotonic=lambda: now))
    stop = Stop(None, 3, "100")
    stop.evaluated({}, False)
    now += 60
    state = {"stop": stop.state_dict(), "progress": {"seconds": 0.0}}
    now += 7000  # between the two nobody trains
    again = Stop(None, 3, "100")
    again.resume(state)
    now += 39
    again.timed()
    assert again.reason is None
    now += 1
    again.timed()
    assert again.reason == "100 s are over (60 s before it was resumed)"
    again = Stop(None, 3, None)
    again.resume(state)
    for _ in range(2):
        again.evaluated({}, False)
    assert again.reason == "the latest 3 evaluations were no better than the best before them"
    fresh = Stop(None, None, "50")
    fresh.resume({"progress": {"seconds": 60.0}})  # of a run that had no conditions
    fresh.timed()
    assert fresh.reason == "50 s are over (60 s before it was resumed)"


@pytest.mark.parametrize("condition", ["eval/return>=1", "rollout/reward >= 1"])
def test_a_run_ends_as_if_it_were_done_and_a_resumed_one_remembers(
    condition: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--num-iterations 9 --eval-interval 2 --save-interval 1"
    run = trained(tmp_path, *words.split(), "--stop-at", "policy/kl>1e9", "--stop-at", condition)
    last = 2 if condition.startswith("eval") else 1
    said = capsys.readouterr().out
    assert said.count("ended        ") == said.count(" ends the training; evaluating the best checkpoint, ") == 1
    content = load_checkpoint(run / "checkpoints" / f"{last:06d}.pt")
    assert content["progress"]["iteration"] == last and content["stop"]["reason"].startswith(condition[:7])
    record = json.loads((run / "eval.json").read_text())
    assert record["stopped"] == content["stop"]["reason"] and record["iteration"] == last
    assert (run / "export" / "policy.onnx").is_file() and (run / "checkpoints" / "best.pt").is_file()
    rows = (run / "metrics.csv").read_text().splitlines()
    assert "eval/return" in rows[0] and rows[-1].startswith(f"{last},")
    capsys.readouterr()
    assert main(["train", "--resume", str(run)]) == 0
    out = capsys.readouterr().out
    assert "it ended there: " in out and f"ended        after iteration {last}: " in out
    assert json.loads((run / "end.json").read_text())["ended"] == out.splitlines()[-1].removeprefix("ended        ")
    assert len(list((run / "checkpoints").glob("0*.pt"))) == last
    assert main(["train", "--resume", str(run), "--stop-at", "none", "--num-iterations", "3"]) == 0
    assert (run / "checkpoints" / "000003.pt").is_file()
    assert capsys.readouterr().out.endswith("ended        after iteration 3: all iterations are done\n")


def test_the_clock_ends_a_run_after_an_iteration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(tmp_path, *["--num-iterations", "50", "--stop-after", "0.0001s"])
    assert "ended        after iteration 1: 0.0001 s are over" in capsys.readouterr().out
    assert (run / "export" / "policy.onnx").is_file()


def test_a_metric_that_is_misspelled_ends_the_run_in_its_first_iteration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*WORDS.split(), "--runs-dir", str(tmp_path), "--num-iterations", "9", "--stop-at", "policy/entrpy<0"]
    assert main(words) == 2
    assert re.search("error: stop_at: .*did you mean 'policy/entropy'", capsys.readouterr().err)


def test_conditions_do_not_change_what_is_learned(tmp_path: Path) -> None:
    plain = trained(tmp_path, "--num-iterations", "2", name="plain")
    watched = trained(
        tmp_path, *["--num-iterations", "2", "--stop-at", "loss/value<0", "--stop-after", "9h"], name="watched"
    )
    one, other = (load_checkpoint(run / "checkpoints" / "000002.pt")["agent"]["policy"] for run in (plain, watched))
    assert all((value == other[name]).all() for name, value in one.items())
    assert "stop" not in load_checkpoint(plain / "checkpoints" / "000002.pt")


def test_settings_of_the_end_may_change_when_a_run_is_resumed() -> None:
    config = TrainConfig(task="CartPole", stop_at=("eval/return > 3",), stop_no_progress=4, stop_after="3h")
    assert config.stop_at == ("eval/return > 3",)


def commanded(*words: str) -> str:
    """What a command that succeeds prints in a rank."""
    with redirect_stdout(StringIO()) as said, redirect_stderr(said):
        code = main([*words])
    assert code == 0, said.getvalue()
    return said.getvalue()


def test_rank_0_ends_all_ranks_together(tmp_path: Path) -> None:
    words = "train --task CartPole --device cpu --num-envs 8 --agent.num-steps 16 --eval-envs 2 --log-interval 1"
    words += f" --num-iterations 50 --eval-interval 0 --save-interval 1 --no-export --no-report --runs-dir {tmp_path}"
    first, second = in_ranks(2, commanded, *words.split(), "--stop-at", "rollout/reward>=1")
    assert "ended        after iteration 1: rollout/reward >= 1 (1)" in first and isinstance(second, str), second
    (saved,) = tmp_path.glob("CartPole/ppo/*/checkpoints/0*.pt")
    content = load_checkpoint(saved)
    assert content["stop"]["reason"] == "rollout/reward >= 1 (1)" and len(content["ranks"]) == 1
    again, second = in_ranks(2, commanded, "train", "--resume", str(saved.parents[1]), "--device", "cpu")
    assert "it ended there: rollout/reward >= 1 (1)" in again and isinstance(second, str), second
    assert len(list(saved.parent.glob("0*.pt"))) == 1
