"""Run folders, configuration layers, and the files that metrics go to."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from rlcore.checkpoint import load_checkpoint
from rlcore.config import from_dict, load_yaml
from rlcore.learn import Report
from rlcore.train import logger as logger_module
from rlcore.train.algorithms import CONFIGS
from rlcore.train.arguments import free_value, split_words
from rlcore.train.config import TrainConfig, changes, safe_name
from rlcore.train.defaults import default_config, shipped_config
from rlcore.train.logger import Average, MetricsFile, RunLogger
from rlcore.train.play import check_output, write_animation
from rlcore.train.run import RunFolder, locate

CONTENT: dict[str, Any] = {
    key: {} for key in ("config", "spec", "agent", "progress", "env", "recording", "rng")
}  # what a checkpoint must have


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# Run folder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(TrainConfig(task="CartPole", runs_dir=str(tmp_path)))


def test_a_folder_is_never_used_twice(tmp_path: Path) -> None:
    config = TrainConfig(task="gym:ALE/Pong-v5", name="first", runs_dir=str(tmp_path))
    paths = [RunFolder.create(config).path for _ in range(3)]
    assert len(set(paths)) == 3
    assert all(path.parent == tmp_path / "gym_ALE_Pong-v5" / "ppo" for path in paths)
    assert all("-first" in path.name for path in paths)


def test_the_written_configuration_gives_the_same_one_back(run: RunFolder) -> None:
    config = TrainConfig(task="CartPole", runs_dir=str(run.path), env={"max_episode_length": 7})
    run.write_config(config)
    assert run.read_config() == config
    assert default_config("CartPole", run.config_file)[0] == config


def test_only_the_latest_checkpoints_are_kept_and_the_highest_number_is_the_last(run: RunFolder) -> None:
    run.best.parent.mkdir(exist_ok=True)
    run.best.write_bytes(b"")
    for iteration in (5, 10, 999_999, 1_000_000):
        run.save(CONTENT | {"progress": {"iteration": iteration}}, iteration, keep=2)
    assert [path.name for path in run.numbered()] == ["999999.pt", "1000000.pt"]
    assert run.best.is_file()
    assert load_checkpoint(run.checkpoint("last"))["progress"] == {"iteration": 1_000_000}
    assert run.checkpoint("best") == run.best
    assert run.checkpoint("999999").name == "999999.pt"


def test_all_checkpoints_are_kept_on_request_and_without_a_best_the_last_is_meant(run: RunFolder) -> None:
    for iteration in range(1, 6):
        run.save(CONTENT, iteration, keep=0)
    assert len(run.numbered()) == 5
    assert run.checkpoint("best").name == "000005.pt"


def test_a_run_is_found_by_its_folder_and_by_its_checkpoints(run: RunFolder) -> None:
    checkpoint = run.save(CONTENT, 3, keep=0)
    run.save(CONTENT, 4, keep=0)
    assert locate(run.path, "last")[1].name == "000004.pt"
    found, path = locate(checkpoint, "last")
    assert (found.path, path) == (run.path, checkpoint)
    assert RunFolder.open(run.checkpoints).path == run.path


def test_what_is_no_run_is_refused(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")  # the message names the newest runs that there are here
    for path in (tmp_path / "empty", tmp_path / "nowhere", run.path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="run folder"):
            RunFolder.open(path)
    with pytest.raises(
        FileNotFoundError, match=r"before it wrote one: begin anew with rlcore train --config .*config.yaml"
    ):
        run.checkpoint("last")


# Configuration


def test_names_of_tasks_become_names_of_files() -> None:
    assert safe_name("gym:ALE/Pong-v5") == "gym_ALE_Pong-v5"
    assert len(safe_name("tasks:" + "+".join(f"envpool:MetaWorld/Task{k}-v3" for k in range(10)))) == 200


def test_a_task_takes_the_nearest_shipped_file_of_its_family() -> None:
    def file(task: str) -> str | None:
        path = shipped_config(task)
        return path and path.name

    assert file("Reach-UR10-IK") == file("Reach-UR10-JointVel-Delayed") == "Reach.yaml"
    assert file("Reach-UR10-Torque") == file("Reach-UR10-Torque-Delayed") == "Reach-UR10-Torque.yaml"
    assert file("Reach-UR5e-JointVel-Box-Delayed") == "Reach-UR5e-JointVel-Box.yaml"
    assert file("gym:CartPole-v1") == "gym_CartPole-v1.yaml"
    assert file("gym:HalfCheetah-v5") == file("gym:Humanoid-v4") == "gym_mujoco.yaml"
    assert file("gym:Swimmer-v5") == "gym_Swimmer.yaml"
    assert file("gym:SafetyAntVelocity-v1") == file("gym:SafetySwimmerVelocity-v1") == "gym_velocity.yaml"
    assert file("gym:LunarLander-v3") == "gym_LunarLander.yaml"
    assert file("gym:LunarLanderContinuous-v3") == "gym_LunarLanderContinuous.yaml"
    assert file("gym:MountainCar-v0") != file("gym:MountainCarContinuous-v0")
    assert file("gym:FrozenLake-v1") == file("gym:NobodyKnows-v0") == file("gym:some.module:Mine-v0") == "gym.yaml"
    assert file("CartPole") == "CartPole.yaml"
    assert file("Null") is None


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_file_is_valid(path: Path) -> None:
    config = from_dict(TrainConfig, {"task": "x", **load_yaml(path)}, source=str(path))
    agent = config.agent
    samples = config.num_envs * agent.num_steps // (agent.sequence_length or 1)
    assert samples % agent.num_minibatches == 0  # or PPO refuses it
    assert samples // agent.num_minibatches >= 32 or agent.actor.rnn.type != "none"


def test_a_file_overrides_the_shipped_one_key_by_key(tmp_path: Path) -> None:
    shipped, _ = default_config("gym:CartPole-v1")
    mine = tmp_path / "mine.yaml"
    mine.write_text("num_envs: 3\nagent: {learning_rate: 3e-4, actor: {hidden_dims: [5]}}\n", encoding="utf-8")
    config, files = default_config("gym:CartPole-v1", mine)
    assert [file.name for file in files] == ["gym_CartPole-v1.yaml", "mine.yaml"]
    assert changes(shipped, config) == {
        "num_envs": (shipped.num_envs, 3),
        "agent.learning_rate": (shipped.agent.learning_rate, 3e-4),
        "agent.actor.hidden_dims": ([64, 64], [5]),
    }


def test_settings_are_written_in_any_of_the_usual_ways() -> None:
    words = "--agent.gamma 0.9 --agent.gae-lambda=0.8 agent.clip_range=0.1 --no-export --agent.normalize_obs False"
    words += " --agent.actor.hidden_dims 64 32 agent.critic.hidden_dims=[8,8] --env.noise 3e-4 --num-envs 4"
    assert split_words(words.split(), TrainConfig, free="env") == [
        ("agent.gamma", ["0.9"]),
        ("agent.gae_lambda", ["0.8"]),
        ("agent.clip_range", ["0.1"]),
        ("export", ["False"]),
        ("agent.normalize_obs", ["False"]),
        ("agent.actor.hidden_dims", ["64", "32"]),
        ("agent.critic.hidden_dims", ["[8,8]"]),
        ("env.noise", ["3e-4"]),
        ("num_envs", ["4"]),
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("3", 3), ("3e-4", 3e-4), ("False", False), ("None", None), ("[1, 2]", [1, 2]), ("IK", "IK"), ("-0.5", -0.5)),
        *(("inf", math.inf), ("-inf", -math.inf), ("info", "info")),
    ],
)
def test_options_of_a_task_are_read_as_yaml(text: str, value: object) -> None:
    assert free_value("env.x", [text]) == value
    assert type(free_value("env.x", [text])) is type(value)


# Metrics


def test_a_new_metric_widens_the_file_and_leaves_earlier_rows_empty_there(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv")
    file.write(1, 10, {"a": 1.0})
    file.write(2, 20, {"a": 2.0, "b": 0.1})
    file.write(3, 30, {"b": 0.2})
    assert rows_of(tmp_path / "metrics.csv") == [
        {"iteration": "1", "env_steps": "10", "a": "1.0", "b": ""},
        {"iteration": "2", "env_steps": "20", "a": "2.0", "b": "0.1"},
        {"iteration": "3", "env_steps": "30", "a": "", "b": "0.2"},
    ]


def test_a_resumed_file_loses_the_rows_after_the_resumed_iteration_and_a_row_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path)
    for i in (1, 2, 3, 4):
        file.write(i, 10 * i, {"a": float(i), "b": 0.5})
    path.write_text(path.read_text(encoding="utf-8") + "1,1", encoding="utf-8")
    resumed = MetricsFile(path, resumed_iteration=2)
    resumed.write(3, 30, {"c": 7.0})
    assert [(r["iteration"], r["a"], r["c"]) for r in rows_of(path)] == [
        ("1", "1.0", ""),
        ("2", "2.0", ""),
        ("3", "", "7.0"),
    ]


def test_a_resumed_file_that_is_gone_is_started_anew(tmp_path: Path) -> None:
    MetricsFile(tmp_path / "metrics.csv", resumed_iteration=2).write(3, 30, {"a": 1.0})
    assert len(rows_of(tmp_path / "metrics.csv")) == 1


def test_an_interval_averages_episodes_by_their_number_and_iterations_alike() -> None:
    average = Average()
    average.add({"rollout/episodes": 1, "rollout/episode_return": 10.0, "loss/value": 1.0, "time/total_s": 1.0})
    average.add({"rollout/episodes": 3, "rollout/episode_return": 20.0, "loss/value": 2.0, "time/total_s": 2.0})
    average.add({"rollout/episodes": 0, "loss/value": 3.0, "time/total_s": 3.0})
    assert average.take() == {
        "rollout/episodes": 4,
        "rollout/episode_return": 17.5,
        "loss/value": 2.0,
        "time/total_s": 3.0,
    }
    assert average.take() == {}
    average.add({"time/steps_per_s": 1000.0, "time/collect_s": 0.5, "time/learn_s": 0.5})  # 1,000 steps
    average.add({"time/steps_per_s": 100.0, "time/collect_s": 1.0, "time/learn_s": 9.0})  # and 1,000 in 10 s
    assert average.take()["time/steps_per_s"] == pytest.approx(2000 / 11)
    for episodes, cost in ((1.0, 0.0), (3.0, 4.0)):  # sums over episodes, and their success, as any figure of these
        average.add({"rollout/episodes": episodes, "signal/cost_episode": cost, "randomize/success": cost / 4})
    assert average.take() == {"rollout/episodes": 4.0, "signal/cost_episode": 3.0, "randomize/success": 0.75}
    for dropped in (0.0, 3.0, 2.0):
        average.add({"replay/dropped": dropped})
    assert average.take() == {"replay/dropped": 5.0}


def test_an_evaluation_that_a_resumed_run_owes_has_a_row_of_its_own(tmp_path: Path) -> None:
    with RunLogger(
        tmp_path, total=12, log_interval=2, console=Console(file=io.StringIO()), resumed=(10, 100)
    ) as logger:
        logger.evaluated(10, 100, {"eval/return": 5.0})
        logger.report(Report(11, 110, {"rollout/reward": 1.0}), {})
        logger.report(Report(12, 120, {"rollout/reward": 2.0}), {"eval/return": 7.0})
    found = [(row["iteration"], row["eval/return"], row["rollout/reward"]) for row in rows_of(tmp_path / "metrics.csv")]
    assert found == [("10", "5.0", ""), ("12", "7.0", "1.5")]


@pytest.mark.parametrize(
    ("metrics", "part"),
    [
        ({"loss/policy": 0.1}, "rewards of the env are not a number"),
        ({"rollout/reward": 1.0, "policy/skipped_minibatches": 20.0}, "the update was skipped whole"),
        ({"rollout/reward": 1.0, "loss/policy": 0.1, "policy/skipped_minibatches": 3.0}, ""),
        ({"rollout/reward": 1.0, "replay/dropped": 0.0, "rollout/dropped": 0.0}, ""),
        ({"rollout/reward": 1.0, "replay/dropped": 0.0}, ""),
    ],
)
def test_figures_that_are_not_finite_are_told_once(metrics: dict[str, float], part: str, tmp_path: Path) -> None:
    screen = io.StringIO()
    with RunLogger(tmp_path, total=3, log_interval=1, console=Console(file=screen)) as logger:
        for iteration in (1, 2, 3):
            logger.report(Report(iteration, 10 * iteration, metrics), {})
    told = [line for line in screen.getvalue().splitlines() if line.startswith("warning")]
    assert len(told) == (1 if part else 0)
    assert all(part in line and "iteration 1:" in line for line in told)


def test_what_is_left_out_is_told_at_growing_intervals_and_its_env_named(tmp_path: Path) -> None:
    screen = io.StringIO()
    with RunLogger(tmp_path, total=99, log_interval=1, console=Console(file=screen, width=400)) as logger:
        for iteration in range(1, 40):
            bad = iteration % 3 == 0
            metrics = {"rollout/reward": 1.0, "loss/policy": 0.1, "rollout/dropped": 1500.0 * bad}
            culprits = ("the reward is not finite: env 5, once",) if bad else ()
            logger.report(Report(iteration, iteration, metrics, culprits), {})
    told = [line for line in screen.getvalue().splitlines() if line.startswith("warning")]
    assert [line.split("iteration ")[1].split(":")[0] for line in told] == ["3", "6", "12", "24"]
    assert "1,500 samples are left out of learning (rollout/dropped); the reward is not finite: env 5, once" in told[0]
    assert "so it was in 8 iterations by now" in told[3]


def test_a_loss_that_is_no_number_any_more_is_said_once(tmp_path: Path) -> None:
    screen = io.StringIO()
    with RunLogger(tmp_path, total=5, log_interval=1, console=Console(file=screen)) as logger:
        for iteration, metrics in enumerate([{}, {"loss/value": 1.0}, {"loss/value": 1.0}, {}, {}], 1):
            logger.report(Report(iteration, iteration, {"rollout/reward": 1.0, **metrics}), {})
    told = [line for line in screen.getvalue().splitlines() if line.startswith("warning")]
    assert len(told) == 1
    assert "iteration 4: gradient steps were skipped: observations, rewards or the loss are not finite" in told[0]


def test_a_run_that_ends_in_its_first_iteration_tells_it_once(tmp_path: Path) -> None:
    screen = io.StringIO()
    with RunLogger(tmp_path, total=9, log_interval=5, console=Console(file=screen)) as logger:
        logger.report(Report(1, 10, {"rollout/reward": 1.0}), {})
    assert screen.getvalue().count("[1/9] 10 steps") == 1
    assert len(rows_of(tmp_path / "metrics.csv")) == 1


def test_time_left_is_judged_by_the_latest_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(logger_module.time, "perf_counter", lambda: now)
    screen = io.StringIO()
    with RunLogger(tmp_path, total=100, log_interval=10, console=Console(file=screen)) as logger:
        for iteration in range(1, 21):
            now += 0.1 if iteration <= 10 else 10.0
            logger.report(Report(iteration, iteration, {"rollout/reward": 1.0}), {})
    assert [line.split("ETA ")[1].split(" s")[0] for line in screen.getvalue().splitlines()] == ["10", "9", "800"]


def test_the_first_iteration_tells_figures_and_the_time_left_however_long_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(logger_module.time, "perf_counter", lambda: now)
    screen = io.StringIO()
    with RunLogger(tmp_path, total=50, log_interval=10, console=Console(file=screen), resumed=(40, 400)) as logger:
        now = 600.0
        logger.report(Report(41, 410, {"rollout/reward": 1.5}), {"eval/return": 3.0})
        (line,) = screen.getvalue().splitlines()
        assert "ETA 5400 s" in line
        assert "reward 1.5" in line
        assert "evaluated return 3" in line
        for iteration in range(42, 51):
            logger.report(Report(iteration, 10 * iteration, {"rollout/reward": 2.5}), {})
    assert len(screen.getvalue().splitlines()) == 2
    (row,) = list(csv.DictReader((tmp_path / "metrics.csv").open()))  # the files have averages of whole intervals
    assert (row["iteration"], float(row["rollout/reward"])) == ("50", pytest.approx(2.4))


def test_the_live_display_tells_the_time_left_after_one_long_iteration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    with RunLogger(tmp_path, total=10, log_interval=10, console=console) as logger:
        monkeypatch.setattr(logger_module.time, "perf_counter", lambda: now)
        logger._display._marks[-1] = (0, 0.0)
        now = 600.0
        logger.report(Report(1, 10, {"rollout/reward": 1.5}), {})
        monkeypatch.undo()
        with console.capture() as picture:
            console.print(logger._display._picture())
    assert "ETA 1:30:00" in picture.get()
    assert "1.5" in picture.get()


@pytest.mark.parametrize("name", ["arm.GIF", "arm.gif"])
def test_an_animation_may_be_named_in_capitals(name: str, tmp_path: Path) -> None:
    check_output(tmp_path / name)
    picture = np.zeros((4, 6, 3), dtype=np.uint8)
    assert write_animation(tmp_path / name, [picture], 0.1) == 1
    assert (tmp_path / name).read_bytes().startswith(b"GIF8")


def test_where_no_run_is_the_nearest_and_the_newest_of_its_task_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["20260101-101010-first", "20260102-111111-second", "20260103-121212-first", "20260104-131313"]
    for name in names:
        for place in ("CartPole/ppo", "Pendulum/sac"):
            folder = Path("runs") / place / name
            (folder / "checkpoints").mkdir(parents=True)
            (folder / "config.yaml").write_text("")
    (folder / "checkpoints" / "000020.pt").touch()

    def said(path: str) -> str:
        with pytest.raises(FileNotFoundError) as caught:
            RunFolder.open(Path(path))
        return str(caught.value)

    here = "runs/CartPole/ppo"
    others = f"Others of CartPole: {here}/20260104-131313, {here}/20260103-121212-first, {here}/20260101-101010-first"
    for typed in (f"{here}/20260102-111111-secnd", "runs/Cartpole/ppo/*-secnd", f"{tmp_path}/{here}/second"):
        found = said(typed).replace(f"{tmp_path}/", "")
        assert f"did you mean '{here}/20260102-111111-second'? {others}" in found
    for typed in ("runs/CartPole/sac/20260101-101010-first", f"{here}/20260101-101010-frst"):
        assert f"did you mean '{here}/20260101-101010-first'?" in said(typed)
    assert f"did you mean '{here}/20260104-131313'?" in said(f"{here}/20260104-131314")
    assert "-121212-first'?" in said("first")  # a name alone: the newest
    assert said("nowhere").count("20260104-131313") == 2 and "did you mean" not in said("nowhere")
    searched: list[Path] = []
    plain = Path.glob
    monkeypatch.setattr(Path, "glob", lambda path, pattern: [searched.append(path), *plain(path, pattern)][1:])
    assert "the newest are runs/" in said("/nowhere/at/all") and Path("/") not in searched  # which has all files
    assert "no checkpoint '7' in" in (text := said(str(folder / "checkpoints" / "7.pt"))) and "there is 20" in text
    monkeypatch.chdir(tmp_path.parent)
    assert "give a run folder (it has a config.yaml and checkpoints/)" in said("nowhere")


def test_limits_on_costs_and_the_gate_are_told_beside_what_they_were(tmp_path: Path) -> None:
    limits = {"safety/heat_cost": 25.5, "safety/heat_limit": 6.0, "safety/heat_multiplier": 1.25}
    screen = io.StringIO()
    with RunLogger(tmp_path, total=3, log_interval=1, console=Console(file=screen)) as logger:
        logger.report(Report(1, 10, {"rollout/reward": 1.0, **limits}), {})
        waiting = {"safety/heat_limit": 6.0, "safety/heat_multiplier": 0.0}  # no episode ended
        logger.report(Report(2, 20, {"rollout/reward": 1.0, **waiting}), {})
        gate = {"safety/violations": 0.5, "safety/gate_share": 0.25}
        logger.report(Report(3, 30, {"rollout/reward": 1.0, **gate}), {})
    first, second, third = (line.split("reward 1")[1] for line in screen.getvalue().splitlines())
    assert first == "  heat cost 25.5 of 6  heat multiplier 1.25"
    assert second == "  heat multiplier 0"
    assert third == "  violations 0.5  gate acted 0.25"
