"""A policy under disturbances, measured row by row of one batch."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import pytest
import torch
from torch import Tensor

from rlcore import spec_of
from rlcore.agent import Policy
from rlcore.config import from_dict
from rlcore.env import Parameter, VecEnv
from rlcore.envs import make_env
from rlcore.envs.disturb import Disturbed, disturbances
from rlcore.envs.torch_env import TorchEnv
from rlcore.train.algorithms import find
from rlcore.train.cli import main
from rlcore.train.evaluate import evaluate
from rlcore.train.robustness import Measured, measure
from rlcore.train.robustness_plan import MODEL, PUSH, Plan, planned
from rlcore.train.robustness_report import Scale, breakdown_text, figures_of, unmoved_lines
from rlcore.train.shared_draws import SharedDraws
from rlcore.types import Obs, State, Step

STEPS = 60


class Slope(TorchEnv):
    """An episode is a success if its own number, uniform in 0..1, is above ``load``; the more load, the less return.

    A push tilts it, and the tilt halves in each step; the reward is 1 - load - tilt.
    """

    task = "Slope"
    parameters: ClassVar[Mapping[str, Parameter]] = {
        "load": Parameter(nominal=0.0, low=0.0, high=1.0, unit="kg"),
        "wind": Parameter(nominal=0.5, low=0.25, high=0.75),
    }
    observation_spaces: Mapping[str, gymnasium.spaces.Box] = {"policy": gymnasium.spaces.Box(-9, 9, (2,))}
    action_space = gymnasium.spaces.Box(-1, 1, (1,))
    push_unit = "m/s"
    _buffers = ("luck", "load", "wind", "tilt", "steps")

    def __init__(self, num_envs: int, seed: int | None = None) -> None:
        super().__init__(num_envs, "cpu", seed, STEPS)
        self.luck, self.load, self.tilt = torch.zeros(3, num_envs)
        self.wind = torch.full((num_envs,), 0.5)

    def _begin(self) -> Obs:
        self.luck.copy_(torch.rand(self.num_envs, generator=self.generator))
        self.steps.zero_()
        self.tilt.zero_()
        return self._observe()

    def _observe(self) -> Obs:
        return {"policy": torch.stack((self.luck, self.load + torch.randn(self.num_envs, generator=self.generator)), 1)}

    def set_parameters(self, values: Mapping[str, Tensor], where: Tensor) -> None:
        for name, value in values.items():
            getattr(self, name).copy_(torch.where(where, value, getattr(self, name)))

    def push(self, speed: Tensor) -> None:
        self.tilt.add_(speed)

    def step(self, action: Tensor) -> Step:
        reward = 1.0 - self.load - self.tilt + 0.001 * self.luck
        self.tilt.mul_(0.5)
        self.steps.add_(1)
        over = self.steps >= STEPS
        log: dict[str, Tensor | float] = {"success": (self.luck > self.load).float()}
        fresh = torch.rand(self.num_envs, generator=self.generator)
        self.luck.copy_(torch.where(over, fresh, self.luck))
        self.steps.masked_fill_(over, 0)
        return Step(self._observe(), reward, torch.zeros_like(over), over, None, log)


class Zero(Policy):
    """Does nothing."""

    def __init__(self, size: int = 1) -> None:
        super().__init__()
        self.size = size

    def forward(self, obs: Obs, state: State = ()) -> tuple[Tensor, State]:
        return obs["policy"].new_zeros(len(obs["policy"]), self.size), state


def measured(env: VecEnv, policy: Any, plan: Plan, seed: int = 3, **options: Any) -> Measured:
    task = getattr(env, "task", "")

    def made(rows: int | None, scales: dict[str, Tensor]) -> VecEnv:
        own = getattr(env, "parameters", {})
        names = {name for sweep in plan.by_name.values() for name in sweep.parameters} - set(own)
        inner = env if rows is None else (Slope(rows) if task == "Slope" else make_env(task, rows, env.device))
        return Disturbed(inner, names, scales=scales, seed=seed) if names else inner

    return measure(env, made, policy, plan, seed, **options)


def plan_of(env: VecEnv, *types: str, grid: tuple[str, ...] = (), magnitudes: list[float] | None = None) -> Plan:
    return planned(env, disturbances(env), types, grid, magnitudes)[0]


def figures(result: Measured, plan: Plan, success: bool = True) -> dict[str, Any]:
    scale = Scale(reference=result.nominal, success=success, least=0.5, paired=result.paired, seed=0)
    return figures_of("it", result, plan, scale)


def test_what_is_known_of_an_env_comes_out() -> None:
    env = Slope(400)
    plan = plan_of(env, "load", PUSH)
    result = measured(env, Zero(), plan)
    assert (result.batch, result.paired, result.nominal_differs) == ("one", True, 0.0)
    load, push = figures(result, plan)["types"]
    luck = make_luck(400)
    for cell, magnitude in zip(load["cells"], (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), strict=True):
        assert cell["magnitude"] == magnitude
        assert cell["success"] == pytest.approx(float((luck > magnitude).double().mean()))
        low, high = cell["success_ci95"]
        assert low <= cell["success"] <= high + 1e-9
        assert cell["return_share"] == pytest.approx(1 - magnitude, abs=1e-3)
    assert load["breakdown"] == {"above": pytest.approx(float(luck.median()), abs=0.02)}  # half of them are below
    assert load["area"] == pytest.approx(0.5, abs=0.03)
    assert load["monotone"] and load["unit"] == "kg"
    assert push["breakdown"] == {"above": None} and push["unit"] == "m/s"
    # The nominal rewards spread by 0.001: a tilt is back in the band when it is below about that.
    for cell in push["cells"]:
        speed = cell["magnitude"]
        low, high = (float(luck.quantile(q)) for q in (0.05, 0.95))
        lost = [speed * 0.5**k for k in range(STEPS // 2)]  # less than the twin, in each step
        steps = []
        for u in luck.tolist():
            out = [0.001 * u - tilt < 0.001 * (min(u, low) - 0.05 * (high - low)) for tilt in lost]
            steps.append(float(out.index(False)))
        assert cell["recovery"]["steps_median"] == sorted(steps)[199]
        assert cell["recovery"]["recovered"] == cell["recovery"]["pushed"] == 400
    assert result.push_step == STEPS // 2


def make_luck(episodes: int) -> Tensor:
    return torch.rand(episodes, generator=torch.Generator().manual_seed(3))


def test_both_sides_of_a_nominal_value_have_a_breakdown_of_their_own() -> None:
    env = Slope(64)
    plan = plan_of(env, "wind=-1:2:4")
    assert plan.sweeps[0].magnitudes == (-1.0, 0.0, 0.5, 1.0, 2.0)
    entry = figures(measured(env, Zero(), plan), plan)["types"][0]
    assert entry["breakdown"] == {"below": None, "above": None} and entry["area"] == pytest.approx(1.0)


@pytest.mark.parametrize("task", ["Pendulum", "CartPole", "Reach-UR5e-JointPos", "Pendulum-Delayed", "Memory"])
@pytest.mark.parametrize("rows", [64, 7])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_every_block_of_a_batch_sees_what_a_batch_of_its_size_would(task: str, rows: int, device: str) -> None:
    small, large = make_env(task, rows, device, seed=0), make_env(task, 3 * rows, device, seed=0)
    draws, generator = SharedDraws(3, rows), torch.Generator(device).manual_seed(1)
    first = small.reset(5)
    with draws:
        second = large.reset(5)
    steps = small.max_episode_length + 2 if task in ("Memory", "Pendulum") else 130
    for _ in range(steps):
        for group, values in first.items():
            assert torch.equal(values.repeat(3, 1), second[group])
        if isinstance(small.action_space, gymnasium.spaces.Box):
            action = torch.randn(rows, *small.action_space.shape, generator=generator, device=device)
        else:
            action = torch.randint(int(small.action_space.n), (rows,), generator=generator, device=device)
        first = small.step(action).obs
        with draws:
            second = large.step(action.repeat(3, *[1] * (action.dim() - 1))).obs
    assert not draws.unshared


def test_what_is_drawn_for_a_batch_is_repeated_and_what_cannot_be_is_named() -> None:
    def drawn(n: int) -> list[Tensor]:
        g = torch.Generator().manual_seed(1)
        return [
            torch.rand(n, 3, generator=g),
            torch.rand((4, n), generator=g),
            torch.randn(size=(n,), generator=g),
            torch.randint(9, (n, 2), generator=g),
            torch.randint(2, 9, (n,), generator=g),
            torch.empty(2, n).uniform_(-1, 1, generator=g),
            torch.empty(n).normal_(1.0, 2.0, generator=g),
            torch.rand(5, generator=g),  # not of the batch
        ]

    with SharedDraws(3, 20) as draws:
        together = drawn(60)
        assert not draws.unshared
        torch.rand(120)
        torch.bernoulli(torch.full((60,), 0.5))
        torch.randperm(60)
        torch.randn(60, 60)
    assert draws.unshared == {"rand", "bernoulli", "randperm", "randn"}
    for one, three in zip(drawn(20), together, strict=True):
        times = [b // a for a, b in zip(one.shape, three.shape, strict=True)]
        assert torch.equal(one.repeat(times), three)


def trained(
    task: str, algo: str = "ppo", scale: float = 0.3, device: str = "cpu", **settings: Any
) -> tuple[VecEnv, Policy]:
    """A policy with weights of chance, large enough that what it sees matters."""
    env = make_env(task, 16, device, seed=1)
    algorithm = find(algo)
    torch.manual_seed(1)
    policy = algorithm.policy(spec_of(env), from_dict(algorithm.config, settings, "test"))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return env, policy.to(device).eval()


@pytest.mark.parametrize(
    ("task", "algo", "settings"),
    [
        ("Pendulum", "ppo", {}),
        ("Reach-UR5e-JointPos", "ppo", {}),
        ("CartPole", "ppo", {"actor": {"rnn": {"type": "lstm"}}}),
        ("Pendulum", "sac", {}),
        ("Pendulum", "ddpg", {}),
        ("Detour", "ppo", {"safety": {"gate": {"threshold": 0.5, "costs": ["cost"]}}}),
    ],
    ids=["ppo", "reach", "recurrent and discrete", "sac", "ddpg", "gate"],
)
def test_nothing_disturbed_is_the_evaluation_and_one_batch_is_cell_by_cell(
    task: str, algo: str, settings: dict[str, Any]
) -> None:
    env, policy = trained(task, algo, scale=0.05 if task == "Detour" else 0.3, **settings)
    plan = plan_of(env, "sensor_noise", "actuator_delay", magnitudes=[0, 2])
    one = measured(env, policy, plan)
    assert torch.equal(one.nominal.returns, evaluate(env, policy, 3).returns)
    cells = measured(env, policy, plan, batch="cells")
    assert torch.equal(one.nominal.returns, cells.nominal.returns)
    assert one.paired and cells.paired and one.batch == "one" and cells.batch == "cells"
    for a, b in zip(one.outcomes, cells.outcomes, strict=True):
        # A product of matrices rounds differently in a batch of another size; Disturbed draws for a batch of its own.
        assert a.cell == b.cell
        assert float((a.returns - b.returns).abs().median()) <= 1e-3 * float(a.returns.abs().median())
        assert not torch.equal(a.returns, one.nominal.returns)


@pytest.mark.gpu
def test_on_a_gpu_all_cells_are_one_batch_and_the_nominal_figures_are_those_of_an_evaluation() -> None:
    env, policy = trained("Pendulum", device="cuda")
    plan = plan_of(env, PUSH, "sensor_noise", "action_delay=0:4:3", MODEL)
    result = measured(env, policy, plan, scales=None)
    assert result.batch == "one" and result.paired
    assert torch.equal(result.nominal.returns, evaluate(env, policy, 3).returns)
    # Products of matrices may be rounded in another way in a larger batch.
    assert result.nominal_differs is not None
    assert result.nominal_differs <= 1e-2 * float(result.nominal.returns.abs().mean())


def test_what_is_nominal_in_a_batch_is_the_nominal_env() -> None:
    env, policy = trained("Pendulum")
    plan = plan_of(env, "noise=-1:1:2", "action_gain=0.5:2:2", "dropout=0.5:0.9:2")
    assert measured(env, policy, plan).nominal_differs == 0.0


def test_an_episode_that_is_broken_everywhere_is_no_difference_and_no_scale() -> None:
    class Torn(Slope):
        def step(self, action: Tensor) -> Step:
            broken = self.luck > 0.9
            step = super().step(action)
            obs = step.obs["policy"].masked_fill(broken[:, None], math.nan)
            return step._replace(obs={"policy": obs}, reward=step.reward.masked_fill(broken, math.nan))

    env = Torn(40)
    plan = plan_of(env, "load=0:1:2", "sensor_noise=0:1:2")
    seen: list[dict[str, Tensor]] = []

    def made(rows: int | None, scales: dict[str, Tensor]) -> VecEnv:
        seen.append(scales)
        assert rows is not None
        return Disturbed(Torn(rows), ["noise"], scales=scales, seed=3)

    result = measure(env, made, Zero(), plan, 3)
    broken = int((~result.nominal.finished).sum())
    assert 0 < broken < 20
    assert (result.batch, result.nominal_differs) == ("one", 0.0)
    assert seen[0]["policy"].isfinite().all() and (seen[0]["policy"] > 0).all()
    assert all(int((~outcome.finished).sum()) == broken for outcome in result.outcomes)


def test_all_physical_parameters_are_drawn_within_their_ranges_and_alike_at_every_magnitude() -> None:
    env = Slope(500)
    plan = plan_of(env, MODEL)
    draws = 2 * torch.rand(2, 500, generator=torch.Generator().manual_seed(0)) - 1
    (sweep,) = plan.sweeps
    assert sweep.parameters == ("load", "wind")
    half, whole = (sweep.values(m, env.parameters, draws) for m in (0.5, 1.0))
    for name, p in env.parameters.items():
        assert torch.allclose(half[name] - p.nominal, 0.5 * (whole[name] - p.nominal), atol=1e-6)
        assert p.low <= float(whole[name].min()) and float(whole[name].max()) <= p.high
        assert float(half[name].max()) <= p.nominal + 0.5 * (p.high - p.nominal) + 1e-6
    assert float(whole["load"].max()) > 0.98 and float(whole["wind"].min()) < 0.26
    assert torch.equal(sweep.values(0.0, env.parameters, draws)["wind"], torch.full((500,), 0.5))


def test_a_grid_tries_all_combinations_once() -> None:
    env = Slope(50)
    plan = plan_of(env, "load=0:1:3", grid=("load=0:1:3", "wind=0.5:1:2"))
    assert len(plan.cells) == 2 + 5 - 0 and len(plan.grid_cells) == 6
    result = figures(measured(env, Zero(), plan), plan)
    luck = make_luck(50)
    by_place = {(c["at"]["load"], c["at"]["wind"]): c["success"] for c in result["grid"]["cells"]}
    for (load, _), success in by_place.items():
        assert success == pytest.approx(float((luck > load).double().mean()))
    assert result["grid"]["worst"]["at"]["load"] == 1.0
    mean = sum(by_place.values()) / 6
    assert result["grid"]["score_mean"] == pytest.approx(mean)
    assert result["grid"]["score_mean_of_nominal"] == pytest.approx(mean / by_place[(0.0, 0.5)])


def test_gymnasium_is_measured_cell_by_cell_and_what_it_cannot_do_is_left_out() -> None:
    env = make_env("gym:Pendulum-v1", 3, seed=1)
    plan, notes = planned(env, disturbances(env), None, magnitudes=[0, 1])
    assert [s.name for s in plan.sweeps] == ["sensor_noise", "actuator_delay"]
    assert [re.match(r"left out +(\w+): ", note)[1] for note in notes] == [PUSH, MODEL]  # type: ignore[index]
    result = measured(env, Zero(), plan, scales=None)
    assert result.batch == "cells" and result.nominal_differs is None
    assert torch.equal(result.nominal.returns, evaluate(env, Zero(), 3).returns)
    assert torch.equal(result.outcomes[0].returns, result.nominal.returns)  # a policy that looks at nothing
    env.close()


@pytest.mark.parametrize(
    ("types", "words"),
    [
        (["external_force"], "push"),
        (["model_uncertainty"], "no physical parameters"),
        (["sensor_nois"], "did you mean 'sensor_noise'"),
        (["noise=1"], "write noise=LOW:HIGH"),
        (["noise=1:0"], "LOW below HIGH"),
        (["noise=0:1:1"], "LOW below HIGH"),
        (["noise=0:1:two"], "LOW below HIGH"),
        (["noise", "noise=0:2"], "given twice"),
        (["sensor_noise=-1:1"], "0 or more"),
    ],
)
def test_what_was_asked_for_and_cannot_be_done_is_refused(types: list[str], words: str) -> None:
    env = make_env("Null", 2)
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        planned(env, disturbances(env), types)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("types", "words"),
    [
        (["mass=-1:1"], "mass: mass would be -1, which is not possible; keep it above 0"),
        (["model_uncertainty=0:5"], "would be -0.5, which is not possible; keep it above 0"),  # 1 - 5 * 0.3
        (["dropout=0:2"], "dropout: magnitude 1.2 is not one; give 0 to 1"),
        (["action_delay=-1:1"], "action_delay: magnitude -1 is not one; give 0 or more"),
    ],
)
def test_values_that_mean_nothing_are_refused(types: list[str], words: str) -> None:
    env = make_env("Pendulum", 2)
    with pytest.raises(ValueError, match=re.escape(words)):
        planned(env, disturbances(env), types)
    planned(env, disturbances(env), ["damping=-1:1", "model_uncertainty=0:3", "external_force"])


def test_several_tasks_are_measured_cell_by_cell() -> None:
    env = make_env("tasks:CartPole+Pendulum", 8)
    plan, _ = planned(env, disturbances(env), ["action_delay=0:1:2"])

    def disturbed(rows: int | None, scales: dict[str, Tensor]) -> VecEnv:
        assert rows is None, "rows of a larger batch are those of the first task before those of the second"
        return Disturbed(env, ["action_delay"], scales=scales, seed=1)

    result = measure(env, disturbed, Zero(), plan, seed=3)
    assert result.batch == "cells"
    assert torch.equal(result.outcomes[0].returns, result.nominal.returns)  # no delay is nominal, task by task
    with pytest.raises(ValueError, match="several tasks are measured cell by cell"):
        measure(env, disturbed, Zero(), plan, seed=3, batch="one")
    env.close()


def test_a_term_has_no_range_of_its_own() -> None:
    env = make_env("Pendulum", 2)
    with pytest.raises(ValueError, match="noise/cos_angle has no range of its own; write noise/cos_angle=LOW:HIGH"):
        planned(env, disturbances(env), ["noise/cos_angle"])
    assert plan_of(env, "noise/cos_angle=0:0.1:2").sweeps[0].magnitudes == (0.0, 0.1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of Pendulum that has learned next to nothing."""
    runs = tmp_path_factory.mktemp("runs")
    words = ["--task", "Pendulum", "--num-envs", "16", "--num-iterations", "1", "--eval-envs", "2", "--name", "small"]
    assert main(["train", *words, "--runs-dir", str(runs), "--agent.num-steps", "32"]) == 0
    (folder,) = runs.glob("Pendulum/ppo/*")
    return folder


def read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "robustness.json").read_text())
    return content


def test_the_command_writes_figures_and_pictures_and_the_file_has_the_same_table(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--types", "sensor_noise", "actuator_delay=0:3:3", "--magnitudes", "0", "0.5", "--episodes", "8"]
    words += ["--grid", "action_delay=0:2:2", "action_gain=0.5:1:2"]
    file = str(run / "export" / "policy.onnx")
    assert main(["robustness", "--run", str(run), *words]) == 0
    live, said = read(run), capsys.readouterr().out
    assert main(["robustness", "--onnx", file, *words, "--output", str(tmp_path)]) == 0
    exported = read(tmp_path)
    assert live["score"] == "return_share" and live["episodes"] == 8
    for a, b in zip(live["policies"][0]["types"], exported["policies"][0]["types"], strict=True):
        assert a["name"] == b["name"] and a["breakdown"] == b["breakdown"] == {"above": None}
        for one, other in zip(a["cells"], b["cells"], strict=True):
            assert one["return_mean"] == pytest.approx(other["return_mean"], rel=1e-4)
    assert main(["eval", "--run", str(run), "--num-envs", "8", "--output", str(tmp_path / "eval.json")]) == 0
    nominal = json.loads((tmp_path / "eval.json").read_text())
    assert live["policies"][0]["nominal"]["return_mean"] == nominal["return_mean"]
    for name in ("heatmap", "curves", "grid"):
        with (run / f"robustness-{name}.png").open("rb") as picture:
            assert picture.read(8) == b"\x89PNG\r\n\x1a\n"
    assert "small: Robustness on Pendulum, 8 episodes a cell" in said
    assert "differs by 0 in a return" in said


def test_policies_are_compared_in_one_table(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(run / "export" / "policy.onnx")
    words = ["--types", "action_gain=0.5:1.5:2", "--episodes", "4", "--output", str(tmp_path)]
    assert main(["robustness", "--run", str(run), "--compare", file, str(run), *words]) == 0
    policies = read(tmp_path)["policies"]
    assert [p["label"] for p in policies] == ["small", "small (ONNX)", "small #2"]
    assert policies[0]["types"] == policies[2]["types"]
    assert policies[0]["area_mean"] == policies[0]["types"][0]["area"] == policies[2]["area_mean"]
    said = capsys.readouterr().out
    assert "small (ONNX)" in said
    assert "small #2:" in said and "1.000 times that of small, with 100 % of its nominal return" in " ".join(
        said.split()
    )


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--types", "payload"], "Pendulum has no 'payload'"),
        (["--least", "2"], "--least is 2.0; give a share"),
        (["--grid", "noise"], "give two or three"),
        (["--env.randomize.mass", "[1, 2]"], "leave it out"),
        (["--episodes", "0"], "--episodes is 0"),
        (["--compare", "nowhere"], "no run at 'nowhere'"),
    ],
)
def test_faults_of_the_command_line_are_told_in_a_line(
    run: Path, words: list[str], fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["robustness", "--run", str(run), *words]) == 2
    said = capsys.readouterr().err.strip()
    assert fault in said and "\n" not in said


def test_a_policy_that_was_trained_with_randomisation_is_measured_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--task", "Pendulum", "--num-envs", "8", "--num-iterations", "1", "--eval-envs", "2"]
    words += ["--runs-dir", str(tmp_path), "--agent.num-steps", "16", "--env.randomize.mass", "[0.7, 1.5]"]
    assert main(["train", *words, "--env.randomize.action_delay", "[0, 2]"]) == 0
    (run,) = tmp_path.glob("Pendulum/ppo/*")
    assert main(["robustness", "--run", str(run), "--episodes", "4", "--types", "mass=0.5:1:2"]) == 0
    said = capsys.readouterr().out
    assert "without the training's randomize.mass, randomize.action_delay" in said
    policy = read(run)["policies"][0]
    assert policy["env"] == {} and policy["nominal_in_batch_differs"] == 0.0
    file = run / "export" / "policy.onnx"
    assert main(["robustness", "--onnx", str(file), "--episodes", "4", "--types", "mass=0.5:1:2"]) == 0
    exported = read(file.parent)["policies"][0]
    assert exported["env"] == {}
    assert exported["nominal"]["return_mean"] == pytest.approx(policy["nominal"]["return_mean"], rel=1e-4)


def test_where_nothing_is_kept_to_begin_with_or_nothing_changes_it_is_said() -> None:
    cell = {"return_mean": -200.0, "magnitude": 0.0}
    entry = {"name": "push", "unit": "m/s", "nominal": 0.0, "breakdown": {"above": 0.0}, "cells": [cell]}
    assert breakdown_text(entry) == "undisturbed already"
    assert breakdown_text(entry | {"breakdown": {"above": None}}) == "none to 0 m/s"
    policy: dict[str, Any] = {"label": "a", "nominal": {"return_mean": -200.0}, "types": [entry]}
    (line,) = unmoved_lines([policy])
    assert "a: all cells return the nominal -200" in line
    assert unmoved_lines([policy | {"nominal": {"return_mean": -201.0}}]) == []


def test_a_folder_that_cannot_be_written_is_found_before_anything_is_measured(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlcore.train.robustness.measure", None)  # nobody comes to it
    assert main(["robustness", "--run", str(run), "--device", "cpu", "--output", "/dev/null/x"]) == 2
    assert "--output '/dev/null/x' cannot be made: Not a directory; name another folder" in capsys.readouterr().err


def test_a_policy_can_go_on_with_randomisation(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The group of what was drawn, which comes with it, is nothing that the policy reads."""
    copy = tmp_path / run.name
    shutil.copytree(run, copy)
    words = ["--num-iterations", "2", "--env.randomize.mass", "[0.7, 1.5]"]
    assert main(["train", "--resume", str(copy), *words]) == 0
    assert "env.randomize.mass is [0.7, 1.5] from here on" in capsys.readouterr().out
    assert "randomize.mass" in (copy / "config.yaml").read_text()
