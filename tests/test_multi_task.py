"""Several tasks as one env: each does what it does alone, and what is wrong is refused."""

from __future__ import annotations

import glob
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from rlcore.checkpoint import load_checkpoint, save_checkpoint
from rlcore.config import ConfigError, save_yaml
from rlcore.env import generators_of, is_capturable, is_stateful, spec_of, want_final_obs
from rlcore.env_check import StepCheck, check_obs
from rlcore.envs import make_env
from rlcore.envs.corner import CORNERS
from rlcore.envs.multi_task import MultiTask, divided
from rlcore.envs.torch_env import TorchEnv
from rlcore.export import OnnxPolicy, read_metadata
from rlcore.stage import reset_at, stage_of, stage_where
from rlcore.train.best import score, wider
from rlcore.train.cli import main
from rlcore.train.commands.train import settings_in
from rlcore.train.evaluate import Evaluation, evaluate, evaluation_options
from rlcore.train.many import joined, run_settings
from rlcore.types import Obs, Step

NAMES = ("CartPole", "Pendulum", "Reach-UR5e-JointVel", "Memory")
TASK = "tasks:" + "+".join(NAMES)
SEED = 5


def test_each_task_does_what_it_does_alone() -> None:
    env = make_env(TASK, 12, seed=1)
    assert isinstance(env, MultiTask)
    alone = {name: make_env(name, 3, seed=1 + 1009 * k) for k, name in enumerate(NAMES)}
    rows = {name: slice(3 * k, 3 * k + 3) for k, name in enumerate(NAMES)}
    numbers = {"CartPole": 1, "Pendulum": 1, "Reach-UR5e-JointVel": 6, "Memory": 4}
    check = StepCheck(env)

    def compare(joint: Obs, name: str, own: Obs) -> None:
        part, size = joint["policy"][rows[name]], own["policy"].shape[1]
        assert torch.equal(part[:, :size], own["policy"])
        assert (part[:, size:] == 0).all()
        assert (joint["task"][rows[name]].argmax(1) == NAMES.index(name)).all()

    for seed in (SEED, None):
        obs = env.reset(seed)
        check_obs(env, obs, "reset")
        for k, (name, single) in enumerate(alone.items()):
            compare(obs, name, single.reset(None if seed is None else seed + 1009 * k))
        ended = 0
        for _ in range(60):
            action = torch.randn(12, 6)
            step = env.step(action)
            check(step)
            assert step.final_obs is not None
            for name, single in alone.items():
                own = action[rows[name], : numbers[name]]
                if name == "CartPole":
                    own = (own[:, 0] > 0).long()
                elif name == "Memory":
                    own = own.argmax(1)
                answer = single.step(own)
                compare(step.obs, name, answer.obs)
                assert answer.final_obs is not None
                compare(step.final_obs, name, answer.final_obs)
                for field in ("reward", "terminated", "truncated"):
                    assert torch.equal(getattr(step, field)[rows[name]], getattr(answer, field))
                told = name == "Memory"
                assert isinstance(step.log["num_goals"], Tensor)
                assert (step.log["num_goals"][rows[name]] == float(told)).all()
                ended += int((answer.terminated | answer.truncated).sum())
        assert ended > 5


def test_a_state_is_put_back_and_tasks_are_capturable_if_all_are() -> None:
    env = make_env(TASK, 8, seed=1)
    assert is_capturable(env)
    assert len(generators_of(env)) == 4
    assert is_stateful(env)
    env.reset()
    state, actions = env.state_dict(), torch.randn(30, 8, 6)
    before = [env.step(action) for action in actions]
    env.load_state_dict(state)
    for one, action in zip(before, actions, strict=True):
        again = env.step(action)
        assert torch.equal(one.obs["policy"], again.obs["policy"])
        assert torch.equal(one.reward, again.reward)
    with pytest.raises(ValueError, match="has no task 'CartPole'"):
        env.load_state_dict({"Pendulum": {}})


def test_gymnasium_mixes_with_what_is_built_in_and_hides_what_it_cannot_do() -> None:
    env = make_env("tasks:gym:Pendulum-v1+CartPole", 6, seed=1, **{"gym:Pendulum-v1": {"share": 2}})
    assert not is_capturable(env)
    assert not is_stateful(env)
    spec = spec_of(env)
    assert list(spec.tasks) == ["gym:Pendulum-v1", "CartPole"]
    assert spec.observation_sizes == {"policy": 4, "task": 2}
    obs = env.reset(3)
    assert obs["task"].sum(0).tolist() == [4.0, 2.0]
    check = StepCheck(env)
    for _ in range(5):
        check(env.step(torch.randn(6, 1)))
    env.close()


def test_tasks_of_choices_alone_stay_choices() -> None:
    env = make_env("tasks:CartPole+Memory", 4, seed=1)
    assert env.action_space == gymnasium.spaces.Discrete(4)
    env.reset()
    step = env.step(torch.tensor([3, 1, 3, 2]))  # 3 is none of CartPole's, which takes its last
    alone = make_env("CartPole", 2, seed=1)
    alone.reset()
    assert torch.equal(step.obs["policy"][:2, :4], alone.step(torch.tensor([1, 1])).obs["policy"])


class Told(TorchEnv):
    """An env with a group for the critic, a signal, a log and a stage."""

    task = "Told"
    _buffers = ("steps",)

    def __init__(self, num_envs: int, device: Any = "cpu", seed: int | None = None, level: int = 0) -> None:
        super().__init__(num_envs, device, seed, 10)
        box = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        wide = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.observation_spaces = {"policy": box, "critic": wide}
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.level = level

    def stage_dict(self) -> dict[str, Any]:
        return {"level": self.level}

    def stage_where(self, which: str) -> dict[str, Any]:
        return {"level": {"end": 9, "all": 5}[which]}

    def load_stage_dict(self, state: dict[str, Any]) -> None:
        self.level = state["level"]

    def adapt(self) -> dict[str, Tensor]:
        return {"curriculum/level": torch.tensor(float(self.level))}

    def _begin(self) -> Obs:
        return {"policy": torch.full((self.num_envs, 2), 1.0), "critic": torch.full((self.num_envs, 3), 2.0)}

    def step(self, action: Tensor) -> Step:
        no = torch.zeros(self.num_envs, dtype=torch.bool)
        log: dict[str, Tensor | float] = {"height": 3.0}
        signals = {"cost": torch.ones(self.num_envs)}
        return Step(self._begin(), action[:, 0].clone(), no, ~no, None, log, None, signals)


def test_groups_logs_signals_and_stages_of_tasks_come_together() -> None:
    env = MultiTask({"told": Told(2, level=4), "Pendulum": make_env("Pendulum", 3, seed=1)})
    assert {group: space.shape for group, space in env.observation_spaces.items()} == {
        "policy": (3,),
        "critic": (3,),
        "task": (2,),
    }
    obs = env.reset(1)
    assert obs["policy"][:2].tolist() == [[1.0, 1.0, 0.0]] * 2
    assert obs["critic"][:2].tolist() == [[2.0, 2.0, 2.0]] * 2
    assert torch.equal(obs["critic"][2:], obs["policy"][2:])  # of a task that has no group of the critic
    step = env.step(torch.zeros(5, 1))
    assert step.final_obs is None  # since one of them hides it
    assert step.signals is not None
    assert step.signals["cost"].tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert list(step.log) == ["told/height"]
    height = step.log["told/height"]
    assert isinstance(height, Tensor)
    assert height[:2].tolist() == [3.0, 3.0]
    assert height[2:].isnan().all()
    assert {name: float(x) for name, x in env.adapt().items()} == {"curriculum/level_told": 4.0}
    stage = stage_of(env)
    other = MultiTask({"told": Told(3), "Pendulum": make_env("Pendulum", 3, seed=1)})
    reset_at(other, stage)
    assert other.envs["told"].level == 4  # type: ignore[attr-defined]
    reset_at(other, stage_where(env, "end"))
    assert other.envs["told"].level == 9  # type: ignore[attr-defined]
    assert stage_of(make_env("tasks:CartPole+Pendulum", 2)) is None
    want_final_obs(env, ("critic",))
    assert env.final_groups == ("critic",)


def test_envs_are_divided_by_shares() -> None:
    assert divided(10, [1, 1, 1]) == [4, 3, 3]
    assert divided(10, [8, 1, 1]) == [8, 1, 1]
    assert divided(10, [1000, 1, 1]) == [8, 1, 1]
    assert divided(4096, [2048, 1024, 1024]) == [2048, 1024, 1024]
    for total in range(3, 60):
        assert sum(divided(total, [0.3, 7.0, 2.0])) == total


@pytest.mark.parametrize(
    ("task", "num_envs", "options", "message"),
    [
        ("tasks:CartPole", 4, {}, "there is one task"),
        ("tasks:CartPole+CartPole", 4, {}, "names a task twice"),
        ("tasks:CartPole+", 4, {}, "names a task twice or none"),
        ("tasks:CartPole,Pendulum", 4, {}, "has a comma"),
        ("tasks:CartPole+Pendulum", 1, {}, "num_envs is 1, and there are 2 tasks"),
        ("tasks:CartPole+Pendulam", 4, {}, "unknown task 'Pendulam': did you mean Pendulum"),
        ("tasks:CartPole+Pendulum", 4, {"share": 2}, "option 'share' names no task; write env.CartPole.share"),
        ("tasks:Corner-NE+Corner-NW", 4, {"Corner_NEE.share": 2}, "names no task; did you mean 'Corner-NE'"),
        ("tasks:CartPole+Pendulum", 4, {"CartPol.share": 2}, "did you mean 'CartPole'"),
        ("tasks:CartPole+Pendulum", 4, {"CartPole.share": 0}, "CartPole: share is 0; give a number above 0"),
        ("tasks:CartPole+Pendulum", 4, {"CartPole.num_envs": 2}, "write CartPole.share"),
        ("tasks:CartPole+Pendulum", 4, {"CartPole": 2}, "its options are 2"),
        ("tasks:CartPole+Pendulum", 4, {"CartPole.gravity": 2}, "CartPole: unknown option 'gravity'"),
        ("tasks:CartPole+Isaac-Reach", 4, {}, "one scene a process"),
        ("tasks:CartPole+CartPole-Pixels", 4, {}, "CartPole-Pixels has images"),
        ("tasks:Corner-NE+Corner-SW", 4, {"Corner-NE.reward_scale": -1}, "reward_scale is -1"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(task: str, num_envs: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as found:
        make_env(task, num_envs, seed=1, **options)
    assert "\n" not in str(found.value)


def test_evaluations_have_as_many_of_each_task_and_whole_episodes() -> None:
    given = {"A": {"share": 3, "x": 1, "randomize_start": True}, "B.share": 2, "B.randomize_start": True, "B.y": 2}
    assert evaluation_options(given) == {"A": {"x": 1, "randomize_start": False}, "B.randomize_start": False, "B.y": 2}
    assert evaluation_options({"share": 2, "costs": {"a": {"share": 1}}}) == {"share": 2, "costs": {"a": {"share": 1}}}


def test_an_evaluation_of_tasks_is_made_of_those_of_each() -> None:
    env = make_env("tasks:CartPole+Memory", 20, seed=1)

    def act(obs: dict[str, Any]) -> Any:
        return obs["policy"][:, 2] > 0 if "task" not in obs else (obs["policy"][:, 2] > 0).astype(np.int64)

    result = evaluate(env, act, 9, rounds=2)
    assert list(result.tasks) == ["CartPole", "Memory"]
    cart, memory = result.tasks.values()
    single = make_env("CartPole", 10, seed=1)
    # Rounds are as far apart as all envs are many.
    alone = [evaluate(single, lambda obs: (obs["policy"][:, 2] > 0).astype(np.int64), seed) for seed in (9, 9 + 20)]
    assert torch.equal(cart.returns, torch.cat([result.returns for result in alone]))
    assert cart.success is None
    assert memory.success == result.success
    assert memory.goals == 20
    assert result.episodes == cart.episodes + memory.episodes == 40
    assert [line.partition(":")[0] for line in result.lines()[1:]] == ["CartPole", "Memory"]
    assert result.as_dict()["tasks"]["Memory"]["success"] == memory.success


def test_the_score_of_tasks_is_the_mean_of_success_or_of_the_place_among_returns() -> None:
    def part(value: float, success: float | None = None) -> Evaluation:
        goals = None if success is None else 10
        return Evaluation(
            returns=torch.tensor([value]).double(),
            lengths=torch.tensor([1]),
            successes=None if success is None else 10 * success,
            goals=goals,
        )

    def joint(a: float, b: float) -> Evaluation:
        return Evaluation(
            returns=torch.tensor([a]).double(), lengths=torch.tensor([1]), tasks={"a": part(a), "b": part(0.0, b)}
        )

    first, second, third = joint(-100.0, 0.2), joint(300.0, 0.4), joint(0.0, 1.0)
    ranges = wider({}, first)
    assert score(first, ranges) == pytest.approx((1.0 + 0.2) / 2)
    for later in (second, third):
        ranges = wider(ranges, later)
    assert ranges["a"] == (-100.0, 300.0)
    assert score(first, ranges) == pytest.approx((0.0 + 0.2) / 2)
    assert score(second, ranges) == pytest.approx((1.0 + 0.4) / 2)
    assert score(third, ranges) == pytest.approx((0.25 + 1.0) / 2)


# Corner


@pytest.mark.parametrize("corner", CORNERS)
def test_a_corner_is_reached_by_pushing_towards_it_and_no_other_is(corner: str) -> None:
    env = make_env(f"Corner-{corner}", 20, seed=1, reward_scale=10.0)
    goal = torch.tensor(CORNERS[corner])

    def towards(target: Tensor) -> Evaluation:
        def act(obs: dict[str, Any]) -> Any:
            state = torch.as_tensor(obs["policy"])
            return (4 * (target - state[:, :2]) - 2 * state[:, 2:]).clamp(-1, 1).numpy()

        return evaluate(env, act, 3)

    there, away = towards(goal), towards(-goal)
    assert there.success == 1.0
    assert there.mean_return > 10 * 35
    assert away.success == 0.0
    assert away.mean_return < -10 * 30


def test_a_corner_moves_as_its_equations_say() -> None:
    env = make_env("Corner-NE", 1, seed=1, max_episode_length=3)
    position, velocity = env.reset()["policy"][0].double().chunk(2)
    for t in range(3):
        step = env.step(torch.tensor([[0.5, -3.0]]))
        velocity = velocity + 0.1 * (4 * torch.tensor([0.5, -1.0]).double() - 2 * velocity)
        position = position + 0.1 * velocity
        assert step.final_obs is not None
        torch.testing.assert_close(
            step.final_obs["policy"][0].double(), torch.cat([position, velocity]), atol=1e-6, rtol=0
        )
        reward = 1 - float((position - torch.ones(2)).norm()) / 2**0.5
        assert float(step.reward) == pytest.approx(reward, abs=1e-6)
        assert bool(step.truncated) == (t == 2)
    assert float(step.obs["policy"].norm()) < 0.5


# Command line


def test_tasks_named_one_after_the_other_are_one() -> None:
    assert joined(["--task", "A", "--x", "1", "task=B"]) == ["--task", "tasks:A+B", "--x", "1"]
    assert joined(["--x", "1", "--task=A", "--y", "--task", "B", "z"]) == [
        "--x",
        "1",
        "--task",
        "tasks:A+B",
        "--y",
        "z",
    ]
    assert joined(["--task", "A", "--x"]) == ["--task", "A", "--x"]
    assert joined(["--task"]) == ["--task"]


def test_a_file_names_tasks_with_their_options(tmp_path: Path) -> None:
    file = tmp_path / "many.yaml"
    file.write_text("tasks:\n  CartPole: {num_envs: 48, max_episode_length: 30}\n  Pendulum: {num_envs: 16}\n")
    assert run_settings(file) == {
        "task": "tasks:CartPole+Pendulum",
        "num_envs": 64,
        "env": {"CartPole": {"share": 48, "max_episode_length": 30}, "Pendulum": {"share": 16}},
    }
    file.write_text("tasks: [CartPole, Pendulum]\nnum_envs: 8\nenv: {CartPole.max_episode_length: 20}\n")
    assert run_settings(file)["env"] == {"CartPole.max_episode_length": 20}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: [A]", "list two or more"),
        ("tasks: 3", "list two or more"),
        ("tasks: {A: 1, B: {}}", "list two or more"),
        ("tasks: [A, B]\ntask: C", "leave one out"),
        ("tasks: {A: {num_envs: 3}, B: {}}", "tasks.B has no num_envs"),
        ("tasks: {A: {num_envs: 3, share: 1}, B: {num_envs: 3}}", "has num_envs and share"),
        ("tasks: {A: {num_envs: 0}, B: {num_envs: 3}}", "tasks.A.num_envs: 0"),
        ("tasks: {A: {num_envs: 1}, B: {num_envs: 3}}\nnum_envs: 4", "the sum of those"),
    ],
)
def test_a_file_that_names_tasks_wrongly_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "many.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        run_settings(tmp_path / "many.yaml")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on two tasks, evaluated twice."""
    folder = tmp_path_factory.mktemp("runs")
    words = "--num-envs 12 --num-iterations 4 --eval-interval 2 --save-interval 2 --eval-envs 6 --log-interval 1"
    net = "--agent.actor.hidden-dims 8 --agent.critic.hidden-dims 8 --agent.num-steps 8"
    env = "--env.CartPole.max_episode_length 20 --env.Pendulum.max_episode_length 15 --env.Pendulum.share 2"
    assert (
        main(["train", "--task", "CartPole", *f"{words} {net} {env} --runs-dir {folder}".split(), "--task", "Pendulum"])
        == 0
    )
    (found,) = folder.glob("*/ppo/*")
    return found


def test_a_run_tells_each_task_and_one_score(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.parent.parent.name == "tasks_CartPole_Pendulum"
    header = (run / "metrics.csv").read_text().splitlines()[0]
    for name in ("eval/score", "eval/return_CartPole", "rollout/episode_return_Pendulum", "balance/std_CartPole"):
        assert name in header
    assert main(["eval", "--run", str(run), "--num-envs", "4"]) == 0
    said = capsys.readouterr().out
    assert "\nCartPole: return" in said
    assert "\nPendulum: return" in said


def test_a_run_goes_on_and_is_repeated_from_its_file(run: Path, tmp_path: Path) -> None:
    assert (
        main(["train", "--config", str(run / "config.yaml"), "--runs-dir", str(tmp_path), "--num-iterations", "2"]) == 0
    )
    (again,) = tmp_path.glob("*/ppo/*")
    assert main(["train", "--resume", str(again), "--num-iterations", "4"]) == 0
    one, two = ((path / "metrics.csv").read_text().splitlines()[-1].split(",")[:8] for path in (run, again))
    assert len(one) == 8
    names = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    column = names.index("loss/value")
    assert column > 0
    last = [(path / "metrics.csv").read_text().splitlines()[-1].split(",")[column] for path in (run, again)]
    assert last[0] == last[1]
    assert two[0] == "4"


def test_a_run_goes_on_with_other_options_of_its_tasks_but_not_with_other_sizes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    words = ["train", "--resume", str(copy), "--num-iterations", "6", "--no-export"]
    assert main([*words, "--env.Pendulum.max_episode_length", "12"]) == 0
    assert "env.Pendulum.max_episode_length is 12 from here on, and was 15" in capsys.readouterr().out
    assert main([*words, "--env.Pendulum.action_history", "2"]) == 2
    assert "cannot change here: observation_sizes of the env is" in capsys.readouterr().err


def test_one_of_the_tasks_of_a_file_is_trained_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "two.yaml"
    file.write_text(
        "tasks: {CartPole: {num_envs: 4}, Pendulum: {num_envs: 2, max_episode_length: 9}}\n"
        "env: {Pendulum.action_history: 2, trial_episodes: 2, CartPole: {noise: 1}}\n"
        "agent: {balance: advantage, gamma: 0.9}\n"
    )
    read = settings_in(["--config", str(file), "--task", "Pendulum", "--agent.num-epochs", "3"])
    assert read is not None
    config = read[1]
    assert (config.task, config.num_envs) == ("Pendulum", 2)
    assert config.env == {"trial_episodes": 2, "action_history": 2, "max_episode_length": 9}
    assert (config.agent.gamma, config.agent.num_epochs, config.agent.balance) == (0.9, 3, "none")
    dotted = tmp_path / "dotted.yaml"
    dotted.write_text('tasks: ["python:a.b:One", Pendulum]\nenv: {"python:a.b:One.size": 3}\n')
    assert run_settings(dotted, "Pendulum")["env"] == {}
    assert run_settings(dotted, "python:a.b:One")["env"] == {"size": 3}
    assert main(["train", "--config", str(file), "--task", "Reach-UR5e-JointPos"]) == 2
    assert f"{file} is of CartPole, Pendulum; name one of these, or leave --task out" in capsys.readouterr().err


def test_what_a_file_says_of_a_task_is_said_otherwise_again_and_again(tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    file.write_text("tasks: {CartPole: {share: 1}, Pendulum: {share: 2, max_episode_length: 9}}\n")
    for length in (10, 11, 12):
        read = settings_in(["--config", str(file), "--env.Pendulum.max_episode_length", str(length)])
        assert read is not None
        assert read[1].env == {"CartPole": {"share": 1}, "Pendulum": {"share": 2, "max_episode_length": length}}
        save_yaml(file, read[1])


def test_the_range_of_returns_goes_on_where_a_run_is_resumed(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    last, best = (copy / "checkpoints" / name for name in ("000004.pt", "best.pt"))
    content = load_checkpoint(last)
    content["ranges"] = {"CartPole": (-7.0, 1000.0), "Pendulum": (-9000.0, 0.0)}  # wider than when the best was found
    save_checkpoint(last, content)
    assert load_checkpoint(best)["ranges"] != content["ranges"]
    assert main(["train", "--resume", str(copy), "--num-iterations", "6", "--no-export"]) == 0
    assert load_checkpoint(copy / "checkpoints" / "000006.pt")["ranges"] == content["ranges"]


def test_a_file_takes_the_task_as_an_input_and_tells_of_all(run: Path) -> None:
    facts = read_metadata(run / "export" / "policy.onnx")
    assert facts["inputs"] == {"obs": [1, 6]}
    assert [group["name"] for group in facts["observation_groups"]] == ["policy", "task"]
    assert facts["tasks"] == [
        {"name": "CartPole", "observation_sizes": {"policy": 4}, "action_size": 1, "choices": [2]},
        {
            "name": "Pendulum",
            "observation_sizes": {"policy": 3},
            "action_size": 1,
            "action_low": [-2.0],
            "action_high": [2.0],
        },
    ]


@pytest.mark.parametrize("name", ["CartPole", "Pendulum"])
def test_a_file_for_one_task_has_its_size_and_does_what_the_policy_does(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "one.onnx"
    assert main(["export", "--run", str(run), "--for-task", name, "--output", str(path)]) == 0
    facts = read_metadata(path)
    assert facts["task"] == name
    assert facts["env_options"] == {"max_episode_length": 20 if name == "CartPole" else 15}
    assert facts["inputs"] == {"obs": [1, 4 if name == "CartPole" else 3]}
    assert len(facts["observation_mean"]) == facts["observation_size"]
    one, joint = OnnxPolicy(path), OnnxPolicy(run / "export" / "policy.onnx")
    rng = np.random.default_rng(1)
    for _ in range(20):
        obs = rng.normal(size=(1, facts["observation_size"])).astype(np.float32)
        padded = np.concatenate([obs, np.zeros((1, 4 - obs.shape[1]), np.float32)], 1)
        task = np.array([[name == "CartPole", name == "Pendulum"]], np.float32)
        numbers = np.asarray(joint({"policy": padded, "task": task}))
        expected = (numbers[:, 0] > 0).astype(np.int64) if name == "CartPole" else numbers
        np.testing.assert_allclose(np.asarray(one({"policy": obs})), expected, atol=1e-6)
    assert main(["eval", "--onnx", str(path), "--num-envs", "4", "--output", str(tmp_path / "e.json")]) == 0
    assert f"{name}, " in capsys.readouterr().out


def test_a_task_that_is_not_there_is_not_exported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--run", str(run), "--for-task", "CartPol"]) == 1
    assert "the policy has no task 'CartPol'; did you mean 'CartPole'" in capsys.readouterr().err


def test_ddpg_says_that_it_does_not_learn_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--task Pendulum --task Corner-NE --algo td3 --num-envs 4"
    assert main(["train", *words.split()]) != 0
    assert "several tasks" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["CartPole", "Pendulum"])
def test_one_of_the_tasks_is_measured_and_shown_by_itself(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", "--run", str(run), "--task", name, "--num-envs", "4", "--output", str(tmp_path / "e.json")]
    assert main(words) == 0
    assert f"{name}, " in capsys.readouterr().out
    length = 20 if name == "CartPole" else 15
    assert f'"length_mean": {length}' in (tmp_path / "e.json").read_text() or name == "CartPole"
    picture = tmp_path / "one.gif"
    assert main(["play", "--run", str(run), "--task", name, "--output", str(picture)]) == 0
    assert picture.stat().st_size > 1000


def test_the_configuration_of_tasks_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def talkative(*args: Any, **options: Any) -> Any:
        print("as simulators are when an env is made")
        return make_env(*args, **options)

    monkeypatch.setattr("rlcore.train.show_config.make_env", talkative)
    assert main(["config", "--task", "CartPole", "--task", "Pendulum", "--env.CartPole.share", "3"]) == 0
    said = capsys.readouterr()
    assert "as simulators are" in said.err
    settings = yaml.safe_load(said.out)
    assert settings["task"] == "tasks:CartPole+Pendulum"
    assert settings["agent"]["balance"] == "advantage"


def test_which_task_to_show_has_to_be_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["play", "--run", str(run)]) != 0
    assert "say which to show: --task CartPole or Pendulum" in capsys.readouterr().err


def test_the_commands_of_the_page_on_tasks_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "docs" / "tasks.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL) for line in block.splitlines()]
    assert len(lines) == 3
    for line in lines:
        words = shlex.split(line.replace("--num-iterations 100", "--num-iterations 1"))[1:]
        assert main([found for word in words for found in glob.glob(word) or [word]]) == 0
