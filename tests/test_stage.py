"""Where curricula stand: kept through evaluations and resumes, shared with evaluations, and told."""

from __future__ import annotations

import io
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from rich.console import Console
from torch import Tensor

from rlcore import NetworkConfig, PPOConfig
from rlcore.checkpoint import load_checkpoint
from rlcore.envs import make_env
from rlcore.envs.isaaclab import IsaacLabEnv
from rlcore.stage import lent, reset_at, rows_of, same_stage, stage_of, stage_text
from rlcore.train import judging, training
from rlcore.train.cli import main
from rlcore.train.config import TrainConfig
from rlcore.train.continuation import resumed_config
from rlcore.train.evaluate import undisturbed

LEVELS, LENGTH = 10, 40


class Walkers(gymnasium.Env[Any, Any]):
    """Points that walk on terrain of levels, by the rules of Isaac Lab's env: a reset promotes those that went far.

    The curriculum comes first, then the scene is reset, then robots are placed at the origin of their level.
    """

    def __init__(self, num_envs: int, types: int = 1) -> None:
        n = num_envs
        self.num_envs, self.device, self.max_episode_length, self.step_dt = n, "cpu", LENGTH, 0.02
        self.cfg = SimpleNamespace(scene=SimpleNamespace(num_envs=n), sim=SimpleNamespace(device="cpu"))
        self.single_observation_space = spaces.Dict({"policy": spaces.Box(-9, 9, (2,))})
        self.single_action_space = spaces.Box(-1, 1, (1,))
        self.episode_length_buf = torch.zeros(n, dtype=torch.long)
        self.common_step_counter = 0
        self.extras: dict[str, Any] = {}
        origins = torch.arange(float(LEVELS * types)).view(LEVELS, types, 1).repeat(1, 1, 3)
        terrain = SimpleNamespace(
            terrain_levels=torch.randint(0, 6, (n,), generator=torch.Generator().manual_seed(3)),
            terrain_types=torch.arange(n) * types // n,
            terrain_origins=origins,
        )
        terrain.env_origins = origins[terrain.terrain_levels, terrain.terrain_types].clone()
        self.scene = SimpleNamespace(terrain=terrain, reset=lambda ids: None)
        # What a curriculum by performance changes: it has no counter to go by.
        self.ranges = SimpleNamespace(speed=(0.0, 1.0))
        self.term = SimpleNamespace(cfg=SimpleNamespace(ranges=self.ranges))
        self.command_manager = SimpleNamespace(
            active_terms=["speed"], get_term=lambda name: self.term, get_command=lambda name: self.command[:, None]
        )
        self.position, self.command = torch.zeros(n, 3), torch.zeros(n)

    @property
    def levels(self) -> Tensor:
        levels: Tensor = self.scene.terrain.terrain_levels
        return levels

    def distance(self) -> Tensor:
        return (self.position - self.scene.terrain.env_origins)[:, 0].abs()

    def _get_observations(self) -> dict[str, Tensor]:
        return {"policy": torch.stack([self.command, self.distance()], 1)}

    def _reset_idx(self, ids: Any) -> None:
        ids, terrain = torch.as_tensor(ids), self.scene.terrain
        if self.common_step_counter:
            gone = self.distance()[ids]
            up = gone > 0.3
            new = self.levels[ids] + up.long() - (~up).long()
            terrain.terrain_levels[ids] = new.clamp(0, LEVELS - 1)
            terrain.env_origins[ids] = terrain.terrain_origins[terrain.terrain_levels[ids], terrain.terrain_types[ids]]
            low, high = self.ranges.speed
            self.ranges.speed = (low - 0.1, high)
        self.scene.reset(ids)
        self.extras["log"] = {"Curriculum/levels": self.levels.float().mean()}
        self.episode_length_buf[ids] = 0
        self.position[ids] = terrain.env_origins[ids]
        self.command[ids] = torch.rand(len(ids))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
        self._reset_idx(torch.arange(self.num_envs))
        return self._get_observations(), self.extras

    def step(self, action: Any) -> Any:
        self.common_step_counter += 1
        self.episode_length_buf += 1
        self.position[:, 0] += self.command * 0.02
        cut = self.episode_length_buf >= LENGTH
        if cut.any():
            self._reset_idx(cut.nonzero().squeeze(-1))
        return self._get_observations(), torch.ones(self.num_envs), torch.zeros_like(cut), cut, self.extras

    def close(self) -> None:
        pass


class Env(IsaacLabEnv):
    def __init__(self, num_envs: int, types: int = 1, randomize_start: bool = False) -> None:
        super().__init__(Walkers(num_envs, types), task="Walkers", randomize_start=randomize_start)


NETWORK = NetworkConfig(hidden_dims=(8,))
SMALL = PPOConfig(num_steps=8, num_epochs=1, num_minibatches=1, actor=NETWORK, critic=NETWORK)


def walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, bodies: bool) -> training.Training:
    """A run whose evaluations borrow the training env."""
    monkeypatch.setattr(training, "simulator_of", lambda task: "isaaclab")
    config = TrainConfig(
        task=f"python:{__name__}:Env",
        num_envs=32,
        num_iterations=30,
        eval_interval=every,
        export=False,
        device="cpu",
        agent=SMALL,
        env={"randomize_start": True},
        runs_dir=str(tmp_path),
    )
    run = training.Training(config, Console(file=io.StringIO()))
    if not bodies:  # a simulator that does not say where its bodies are
        run.env.core.sim = SimpleNamespace()  # type: ignore[attr-defined]
    monkeypatch.setattr(training, "conclude", lambda *_: 0)
    run.start()
    return run


def test_evaluations_on_the_training_env_leave_no_trace_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without, often = (walked(tmp_path, monkeypatch, every, bodies=True) for every in (0, 5))
    one, two = without.env.core, often.env.core  # type: ignore[attr-defined]
    assert one.common_step_counter == two.common_step_counter == 30 * 8
    assert one.levels.float().mean() > 3.0
    for name in ("position", "command", "episode_length_buf"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert torch.equal(one.levels, two.levels) and one.ranges.speed == two.ranges.speed
    weights = zip(without.agent.policy.parameters(), often.agent.policy.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)


def test_where_bodies_cannot_be_put_back_new_episodes_begin_at_the_same_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    evaluate, whole = judging.run_episodes, judging.evaluated

    def spy(env: Any, *args: Any, **kwargs: Any) -> Any:
        before = env.core.levels.clone(), env.core.common_step_counter, env.core.ranges.speed
        result = evaluate(env, *args, **kwargs)
        seen.append((before, env.core.levels.clone()))
        return result

    def checked(run: training.Training, progress: Any) -> Any:
        core: Any = run.env.core  # type: ignore[attr-defined]
        count = len(seen)
        figures = whole(run, progress)
        if len(seen) > count:
            (levels, counter, speed), moved = seen[count]
            assert not torch.equal(levels, moved)  # the evaluation itself promotes, which must be undone
            assert torch.equal(core.levels, levels)
            assert (core.common_step_counter, core.ranges.speed) == (counter, speed)
            assert core.distance().eq(0).all()  # robots stand at the origins of their levels
        return figures

    monkeypatch.setattr(judging, "run_episodes", spy)
    monkeypatch.setattr(training, "evaluated", checked)
    run = walked(tmp_path, monkeypatch, 5, bodies=False)
    assert len(seen) > 6 and run.env.core.common_step_counter == 30 * 8  # type: ignore[attr-defined]


@pytest.mark.parametrize("bodies", [True, False])
def test_an_evaluation_that_fails_leaves_training_where_it_stood(bodies: bool) -> None:
    env = Env(8)
    env.core.sim = None if bodies else SimpleNamespace()
    env.reset(1)
    for _ in range(50):
        env.step(torch.zeros(8, 1))
    levels, counter = env.core.levels.clone(), env.core.common_step_counter
    with pytest.raises(RuntimeError, match="physics"), lent(env, lambda obs: None):
        reset_at(env, stage_of(env), 7)
        for _ in range(60):
            env.step(torch.zeros(8, 1))
        assert not torch.equal(env.core.levels, levels)
        raise RuntimeError("physics exploded")
    assert torch.equal(env.core.levels, levels) and env.core.common_step_counter == counter


def test_evaluations_leave_the_random_numbers_of_python_and_numpy_alone() -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with undisturbed(torch.device("cpu")):
        Env(2).reset(5)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


def test_a_reset_at_a_stage_promotes_nobody_and_places_robots_where_they_belong() -> None:
    env = Env(8)
    env.core.common_step_counter = 120
    levels = torch.tensor([6, 6, 5, 5, 4, 4, 3, 3])
    old = {"common_step_counter": 120, "terrain_levels": levels}  # as checkpoints of before have it
    env.core.position += 7.0
    reset_at(env, {"num_envs": 8, "clocks": [], "state": old})
    assert env.core.levels.tolist() == levels.tolist() and env.core.common_step_counter == 120
    assert env.core.distance().eq(0).all()
    assert "reset" in vars(env.core.scene) and env.core.scene.reset(0) is None  # as it was
    env.core.ranges.speed = (-2.0, 3.0)
    other, kept = Env(8), io.BytesIO()
    env.core.ranges.speed = (np.float64(-2.0), 3.0)
    torch.save(stage_of(env), kept)
    kept.seek(0)
    reset_at(other, torch.load(kept, weights_only=True))
    assert other.core.ranges.speed == (-2.0, 3.0) and torch.equal(other.core.levels, levels)
    assert "speed" in stage_text(stage_of(env), env) and "terrain_levels 4.5 (3 to 6)" in stage_text(stage_of(env), env)


def test_a_resumed_run_stands_at_the_levels_that_were_saved(tmp_path: Path) -> None:
    words = f"train --task python:{__name__}:Env --num-envs 8 --eval-envs 4 --no-export --runs-dir {tmp_path}"
    words += " --agent.num-steps 8 --agent.num-minibatches 1 --agent.actor.hidden-dims 8 --agent.critic.hidden-dims 8"
    assert main(f"{words} --num-iterations 12".split()) == 0
    (run,) = tmp_path.glob("*/ppo/*")
    saved = load_checkpoint(run / "checkpoints" / "000012.pt")["env"]["terrain_levels"]
    config, checkpoint = resumed_config(run)
    resumed = training.Training(config, Console(file=io.StringIO()), checkpoint)
    core: Any = resumed.env.core  # type: ignore[attr-defined]
    assert torch.equal(core.levels, saved) and core.common_step_counter == 12 * 8
    assert core.distance().eq(0).all()


def test_an_env_that_tells_its_stage_and_takes_none_is_refused_in_one_line() -> None:
    def never(state: Any) -> None:
        raise AssertionError("a stage is no state")

    env: Any = SimpleNamespace(task="Own", num_envs=2, reset=lambda seed: {}, stage_dict=lambda: {"level": 1})
    for more in ({}, {"state_dict": dict, "load_state_dict": never}):
        vars(env).update(more)
        with pytest.raises(ValueError, match="Own tells its stage and takes none; give it load_stage_dict"):
            reset_at(env, stage_of(env))
    taken: list[Any] = []
    env.load_stage_dict = taken.append
    reset_at(env, stage_of(env))
    assert taken == [{"level": 1}] * 2


def test_fewer_envs_take_the_places_of_all_on_their_terrain() -> None:
    env = Env(400, types=4)
    core = env.core
    for kind in range(4):
        mine = core.scene.terrain.terrain_types == kind
        core.levels[mine] = torch.arange(100) % 3 + 2 * kind  # a third at each of three levels
    few = Env(24, types=4)
    reset_at(few, stage_of(env))
    terrain = few.core.scene.terrain
    for kind in range(4):
        levels = few.core.levels[terrain.terrain_types == kind]
        assert levels.bincount(minlength=2 * kind + 3)[-3:].tolist() == [2, 2, 2]
    assert few.core.distance().eq(0).all()
    again = Env(24, types=4)
    reset_at(again, stage_of(env))
    assert torch.equal(again.core.levels, few.core.levels)
    one = Env(1, types=4)
    reset_at(one, stage_of(env))
    assert int(one.core.levels) == 1  # the middle of its type's
    assert rows_of(5, 12).bincount().tolist() == [2, 3, 2, 3, 2] and rows_of(100, 3).tolist() == [16, 50, 83]


def test_stages_are_compared_without_what_only_counts_time() -> None:
    def stage(**state: Any) -> Any:
        return {"num_envs": 2, "clocks": ["steps"], "state": state}

    one = stage(steps=1, levels=torch.tensor([1, 2]), ranges={"x": (0.0, 1.0)})
    assert same_stage(one, stage(steps=9, levels=torch.tensor([1, 2]), ranges={"x": (0.0, 1.0)}))
    assert not same_stage(one, stage(steps=1, levels=torch.tensor([1, 3]), ranges={"x": (0.0, 1.0)}))
    assert not same_stage(one, stage(steps=1, levels=torch.tensor([1, 2]), ranges={"x": (0.0, 2.0)}))
    assert same_stage(None, None) and not same_stage(one, None)
    several = stage(A=one, B=stage(steps=5, levels=torch.tensor([0, 0])))  # of two tasks
    assert same_stage(several, stage(A=stage(**{**one["state"], "steps": 9}), B=several["state"]["B"]))
    assert not same_stage(several, stage(A=one, B=stage(steps=5, levels=torch.tensor([0, 1]))))


def test_running_statistics_of_gymnasium_wrappers_go_on_and_are_shared_with_evaluations() -> None:
    options: dict[str, Any] = {"wrappers": (gymnasium.wrappers.NormalizeObservation,)}
    env = make_env("gym:Pendulum-v1", 3, seed=1, **options)
    env.reset()
    for _ in range(30):
        env.step(torch.ones(3, 1))
    stage = stage_of(env)
    assert stage is not None and "NormalizeObservation.obs_rms/count" in stage_text(stage, env)
    other = make_env("gym:Pendulum-v1", 5, seed=2, **options)
    reset_at(other, stage, 7)
    told = stage_of(other)
    assert told is not None
    assert same_stage({**told, "state": told["state"]["envs"][4]}, {**stage, "state": stage["state"]["envs"][2]})
    assert stage_of(make_env("gym:Pendulum-v1", 1)) is None


# An env of one's own that gets harder. ------------------------------------------------------------------------------

HARDER = '''
import os
import torch
from gymnasium import spaces
from rlcore import Step

STOOD = []

class Harder:
    """Hold a point at zero; what an error costs grows with the steps of training, and each env has a level."""

    exact_state = False

    def __init__(self, num_envs, per_env: bool = False):
        self.num_envs, self.device, self.max_episode_length = num_envs, torch.device("cpu"), 10
        self.observation_spaces = {"policy": spaces.Box(-9, 9, (1,))}
        self.action_space = spaces.Box(-1, 1, (1,))
        self.steps, self.levels = 0, torch.zeros(num_envs)

    def state_dict(self):
        return {"steps": self.steps, "levels": self.levels}

    def load_state_dict(self, state):
        if state["levels"].shape != self.levels.shape:
            raise RuntimeError("shapes")
        self.steps, self.levels = state["steps"], state["levels"]

    def start(self):
        self.x, self.t = torch.randn(self.num_envs, 1), 0
        return {"policy": self.x}

    def reset(self, seed=None):
        STOOD.append((self.num_envs, self.steps, float(self.levels.mean())))
        if seed is not None:
            torch.manual_seed(seed)
        return self.start()

    def step(self, action):
        self.steps, self.t = self.steps + 1, self.t + 1
        self.levels += torch.arange(self.num_envs) * 0.01
        self.x = self.x + 0.1 * action
        sign = float(os.environ.get("SIGN", "1"))
        reward = -(1 + self.steps / 100) * self.x.abs().squeeze(1) * sign - float(os.environ.get("COST", "0"))
        over, last = self.t == 10, {"policy": self.x}
        truncated = torch.full((self.num_envs,), over)
        return Step(self.start() if over else last, reward, torch.zeros_like(truncated), truncated, last, {})

    def render(self):
        import numpy as np
        return np.zeros((4, 4, 3), dtype=np.uint8)

    def close(self):
        pass

class Other(Harder):
    def __init__(self, num_envs):
        super().__init__(num_envs)

class Refusing(Harder):
    def state_dict(self):
        return {"levels": self.levels.tolist()}

    def load_state_dict(self, state):
        if len(state["levels"]) != self.num_envs:
            raise RuntimeError("shapes")

class Wider(Harder):
    def __init__(self, num_envs):
        super().__init__(num_envs)
        self.observation_spaces = {"policy": spaces.Box(-9, 9, (3,))}

class Choices(Harder):
    def __init__(self, num_envs):
        super().__init__(num_envs)
        self.action_space = spaces.Discrete(4)
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "gets_harder.py").write_text(HARDER, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    yield tmp_path
    sys.modules.pop("gets_harder", None)


def trained(folder: Path, *words: str, task: str = "Harder", code: int = 0) -> Path:
    small = "--num-envs 8 --eval-envs 4 --agent.num-steps 20 --agent.num-minibatches 1 --eval-interval 2"
    small += " --agent.actor.hidden-dims 8 --agent.critic.hidden-dims 8 --device cpu"
    assert main(["train", "--task", f"python:gets_harder:{task}", *small.split(), *words]) == code
    runs = sorted(folder.glob("runs/*/*/*"))
    return runs[-1] if runs else folder


def test_evaluations_happen_where_training_stands_and_say_so(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(folder, "--num-iterations", "6")
    stood: list[Any] = sys.modules["gets_harder"].STOOD
    evaluated = [steps for envs, steps, _ in stood if envs == 4]
    assert set(evaluated) == {0, 40, 80, 120}  # zero: whether it takes the stage of another number of envs
    assert evaluated[-2:] == [120, 120]
    # Of eight envs with levels 0 to 7 times 0.01 a step, every second one.
    assert [level for envs, _, level in stood if envs == 4][-1] == pytest.approx(120 * 0.01 * (1 + 3 + 5 + 7) / 4)
    assert "stage        trained: steps 120" in capsys.readouterr().out
    figures = json.loads((run / "eval.json").read_text())
    assert (figures["stage"]["which"], figures["stage"]["steps"]) == ("trained", 120)

    file = run / "export" / "policy.onnx"
    alone = folder / "alone.onnx"
    alone.write_bytes(file.read_bytes())
    for words, which, steps in [
        (f"eval --run {run}", "trained", 120),
        (f"eval --run {run} --stage start", "start", 0),
        (f"eval --onnx {file}", "trained", 120),
        (f"eval --onnx {file} --stage start", "start", 0),
        (f"eval --onnx {alone}", "start", 0),
    ]:
        stood.clear()
        assert main([*words.split(), "--num-envs", "3", "--output", str(folder / "e.json"), "--device", "cpu"]) == 0
        figures = json.loads((folder / "e.json").read_text())
        assert (figures["stage"]["which"], figures["stage"]["steps"]) == (which, steps), words
        assert [steps for _, steps, _ in stood] == [steps], words
        assert f"stage        {which}" in capsys.readouterr().out
    assert main(["eval", "--onnx", str(alone), "--stage", "trained"]) == 2
    assert "--stage is 'trained', but the file is in no run folder" in capsys.readouterr().err

    for words, steps in [(f"--run {run}", 120), (f"--run {run} --stage start", 0), (f"--onnx {file}", 120)]:
        stood.clear()
        assert main(["play", *words.split(), "--output", str(folder / "x.gif"), "--steps", "2"]) == 0
        assert [at for _, at, _ in stood] == [steps]
        assert "stage        " in capsys.readouterr().out


def test_evaluations_happen_where_the_env_begins_on_request(folder: Path) -> None:
    run = trained(folder, "--num-iterations", "4", "--eval-stage", "start", "--no-export")
    stood: list[Any] = sys.modules["gets_harder"].STOOD
    assert {steps for envs, steps, _ in stood if envs == 4} == {0}
    assert json.loads((run / "eval.json").read_text())["stage"]["which"] == "start"


def test_an_env_that_does_not_take_the_stage_is_refused_at_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(folder, "--num-iterations", "4", task="Refusing", code=2)
    told = capsys.readouterr().err
    assert "the stage of 8 envs does not fit these 4 (shapes)" in told and "--eval-stage start" in told
    assert len(told.strip().splitlines()) == 1
    trained(folder, "--num-iterations", "2", "--eval-stage", "start", "--no-export", task="Refusing")


def test_the_best_of_an_env_that_gets_harder_is_not_an_early_one(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COST", "1.0")
    words = "--num-iterations 30 --eval-interval 5 --no-export --agent.learning-rate 3e-3"
    run = trained(folder, *words.split())
    out = capsys.readouterr().out
    best = load_checkpoint(run / "checkpoints" / "best.pt")
    assert best["progress"]["iteration"] >= 20
    assert f"best         iteration {best['progress']['iteration']}: return " in out
    assert "the highest of 6 policies evaluated; the best before was measured anew at the stage of each" in out
    assert json.loads((run / "eval.json").read_text())["best"] in out


def test_a_run_whose_reward_was_changed_does_not_keep_the_policy_of_before(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = ["--eval-stage", "start", "--no-export", "--agent.learning-rate", "1e-2"]
    run = trained(folder, "--num-iterations", "10", *fixed)
    first = load_checkpoint(run / "checkpoints" / "best.pt")
    monkeypatch.setenv("SIGN", "-1")  # now the point is to be pushed away, and it costs
    monkeypatch.setenv("COST", "5")
    capsys.readouterr()
    assert main(["train", "--resume", str(run), "--num-iterations", "30"]) == 0
    out = capsys.readouterr().out
    second = load_checkpoint(run / "checkpoints" / "best.pt")
    assert second["score"] < first["score"]  # of another reward, and so no reason to keep the old one
    before = first["progress"]["iteration"]
    assert second["progress"]["iteration"] > before
    assert f"best.pt, of iteration {before}, scored {first['score']:.4g} when it was chosen" in out
    assert "that of before the run was continued" in out


def test_an_unchanged_run_compares_with_the_score_that_it_had(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(folder, "--num-iterations", "4", "--eval-stage", "start", "--no-export")
    score = load_checkpoint(run / "checkpoints" / "best.pt")["score"]
    capsys.readouterr()
    assert main(["train", "--resume", str(run), "--num-iterations", "6"]) == 0
    assert "when it was chosen" not in capsys.readouterr().out
    assert load_checkpoint(run / "checkpoints" / "best.pt")["score"] >= score


# Another task, and tasks that a module registers. --------------------------------------------------------------------


def test_a_run_is_measured_on_another_task_with_the_same_spaces(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(folder, "--num-iterations", "2", "--env.per_env", "False")
    capsys.readouterr()
    other = "python:gets_harder:Other"
    words = ["--num-envs", "3", "--output", str(folder / "e.json"), "--device", "cpu"]
    assert main(["eval", "--run", str(run), "--task", other, *words]) == 0
    out = capsys.readouterr().out
    assert f"{other}, another than python:gets_harder:Harder, which it was trained on" in out
    assert "without the options of the training per_env" in out and "stage        start (it is another task" in out
    assert json.loads((folder / "e.json").read_text())["task"] == other
    file = str(run / "export" / "policy.onnx")
    for source in (["--run", str(run)], ["--onnx", file]):
        assert main(["eval", *source, "--task", "python:gets_harder:Wider", *words]) == 2
        told = capsys.readouterr().err
        assert "takes 1 numbers (policy) as observation 'policy' and python:gets_harder:Wider gives 3 numbers" in told
        assert main(["eval", *source, "--task", "python:gets_harder:Choices", *words]) == 2
        assert "gives 1 number as action and python:gets_harder:Choices takes 4 choices" in capsys.readouterr().err
