"""Settings that change over a run: their values, what becomes of them in each algorithm, and exact resume."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rlcore import DDPG, PPO, SAC, DDPGConfig, NetworkConfig, PPOConfig, SACConfig
from rlcore.config import ConfigError, from_dict, to_dict
from rlcore.envs import make_env
from rlcore.learn import begin, learn, resume, snapshot
from rlcore.schedules import ScheduleConfig, Schedules
from rlcore.train.beginning import act_by_policy
from rlcore.train.cli import main
from rlcore.train.commands.train import settings_in

NET = NetworkConfig(hidden_dims=(8,))
SMALL: dict[str, Any] = {"num_steps": 4, "num_minibatches": 2, "num_epochs": 2, "actor": NET, "critic": NET}
OFF: dict[str, Any] = {"learning_starts": 8, "buffer_size": 200, "batch_size": 8, "actor": NET, "critic": NET}


def ppo(num_iterations: int | None = None, task: str = "CartPole", **changes: Any) -> PPO:
    config = PPOConfig(**({"lr_schedule": "constant"} | SMALL | changes))
    return PPO(make_env(task, 4, seed=1), config, seed=1, num_iterations=num_iterations)


def off_policy(kind: Any, num_iterations: int | None = None, **changes: Any) -> Any:
    env = make_env("Pendulum", 4, seed=1)
    config = (SACConfig if kind is SAC else DDPGConfig)(**(OFF | changes))
    return kind(env, config, seed=0, num_iterations=num_iterations)


def curve(schedule: ScheduleConfig, own: float = 1.0, num_iterations: int | None = 10) -> list[float]:
    return [schedule.value(own, iteration, num_iterations) for iteration in range(11)]


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (ScheduleConfig(end=0.0), [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]),
        (ScheduleConfig(start=2.0, end=4.0, begin=0.2, until=0.6), [2.0, 2, 2, 2.5, 3, 3.5, 4, 4, 4, 4, 4]),
        (ScheduleConfig(end=0.0, begin=4, until=8), [1.0, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0, 0]),
        (ScheduleConfig(end=0.0, begin=0.5, until=7), [1.0, 1, 1, 1, 1, 1, 0.5, 0, 0, 0, 0]),
        (ScheduleConfig(end=1 / 1024, shape="exponential"), [2.0**-i for i in range(11)]),
        (ScheduleConfig(end=0.0, shape="cosine"), [(1 + math.cos(math.pi * i / 10)) / 2 for i in range(11)]),
        (ScheduleConfig(end=5.0, shape="steps", levels=5), [1.0, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5]),
        (ScheduleConfig(end=3.0, shape="steps", levels=2), [1.0] * 5 + [3.0] * 6),
    ],
)
def test_a_schedule_is_its_closed_form(schedule: ScheduleConfig, values: list[float]) -> None:
    assert curve(schedule) == pytest.approx(values, abs=1e-12)


def test_what_counts_iterations_needs_no_length() -> None:
    schedule = ScheduleConfig(end=0.0, until=5)
    assert curve(schedule, num_iterations=None)[:6] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.0])
    assert not schedule.by_share and ScheduleConfig(end=0.0).by_share
    with pytest.raises(ConfigError, match="needs its length"):
        curve(ScheduleConfig(end=0.0), num_iterations=None)
    with pytest.raises(ConfigError, match="schedule of a: it begins in iteration 9 and ends in 5"):
        Schedules({"a": ScheduleConfig(end=0.0, begin=9, until=0.5)}, Holder(), torch.device("cpu")).follow(0, 10)


class Holder:
    a = 1.0


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"entropy": {"end": 0}}, "schedules.entropy: 'entropy' has no schedule here; did you mean 'entropy_coef'"),
        ({"gamma": {"end": 0}}, "schedules.gamma: 'gamma' has no schedule here; valid: clip_range, entropy_coef"),
        ({"clip_range": {"end": 0}}, "schedules.clip_range.end: 0.0 is not possible; set more than 0"),
        ({"entropy_coef": {"end": -1}}, "schedules.entropy_coef.end: -1.0 is not possible; set 0 or more"),
        ({"entropy_coef": {"end": 0, "shape": "exponential"}}, "schedules.entropy_coef.end: 0.0 .* more than 0"),
        ({"entropy_coef": {"start": 1}}, "schedules.entropy_coef.end' is missing"),
        ({"entropy_coef": {"end": 0, "begin": 0.5, "until": 0.5}}, "until: 0.5 is not possible; set more than begin"),
        ({"entropy_coef": {"end": 0, "levels": 1}}, "levels: 1 is not possible; set at least 2"),
        ({"entropy_coef": {"end": 0, "shape": "square"}}, "schedules.entropy_coef.shape.* one of 'linear'"),
        ({"learning_rate": {"end": 0}}, "lr_schedule: 'adaptive' is not possible; it moves the learning rate, too"),
    ],
)
def test_nonsense_is_refused_by_name(changes: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        from_dict(PPOConfig, {"schedules": changes})


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("clip_range.end=0.1 clip_range.until=0.5", None),
        ("learning_rate.end=1e-5", "agent.lr_schedule: 'linear' is not possible; it moves the learning rate, too"),
        ("learning_rate.end=1e-5 agent.lr_schedule=constant", None),
        ("clip_range.end=0", "agent.schedules.clip_range.end: 0.0 is not possible; set more than 0"),
        ("clip_range.begin=0.8 clip_range.until=0.2 clip_range.end=1", "until: 0.2 is not possible; set more"),
        ("entropy_coeff.end=0", "agent.schedules.entropy_coeff: 'entropy_coeff' has no schedule here; did you mean"),
        ("entropy_coef.start=0.1", "--agent.schedules.entropy-coef.end is missing"),
    ],
)
def test_a_schedule_of_the_command_line_is_checked_when_all_of_it_is_there(words: str, error: str | None) -> None:
    given = [word if word.startswith("agent.") else f"agent.schedules.{word}" for word in words.split()]
    if error is not None:
        with pytest.raises(ValueError, match=error):
            settings_in(["--task", "CartPole", *given])
        return
    read = settings_in(["--task", "CartPole", *given])
    assert read is not None and len(read[1].agent.schedules) == 1


def test_settings_go_to_a_file_and_back() -> None:
    config = PPOConfig(schedules={"entropy_coef": ScheduleConfig(end=0.001, shape="cosine", until=300)})
    assert from_dict(PPOConfig, to_dict(config)) == config


def told(agent: Any, iterations: int, *names: str, **options: Any) -> list[tuple[float, ...]]:
    found: list[tuple[float, ...]] = []
    agent.learn(iterations, on_report=lambda r: found.append(tuple(r.metrics.get(n, -1.0) for n in names)), **options)
    return found


def test_ppo_learns_by_the_values_of_each_iteration_and_logs_them() -> None:
    schedules = {
        "learning_rate": ScheduleConfig(start=1e-3, end=0.0),
        "entropy_coef": ScheduleConfig(start=0.1, end=0.02, shape="steps", levels=2),
        "clip_range": ScheduleConfig(end=0.1),
    }
    found = told(ppo(schedules=schedules), 4, *(f"policy/{name}" for name in schedules))
    expected = [(1e-3, 0.1, 0.2), (7.5e-4, 0.1, 0.175), (5e-4, 0.02, 0.15), (2.5e-4, 0.02, 0.125)]
    for got, wanted in zip(found, expected, strict=True):
        assert got == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("written_out", [True, False])
@pytest.mark.parametrize("task", ["CartPole", "Pendulum"])
def test_constant_schedules_learn_what_the_settings_learn(task: str, written_out: bool) -> None:
    """Bit for bit: a tensor of a number is that number."""
    flat = {name: ScheduleConfig(start=x, end=x) for name, x in (("entropy_coef", 0.0625), ("clip_range", 0.25))}
    agents = []
    for own in ({}, flat):
        agent = ppo(task=task, entropy_coef=0.0625, clip_range=0.25, schedules=own)
        if not written_out:
            agent._gradient = None
        agent.learn(3)
        agents.append(agent)
    for one, other in zip(*(agent.policy.parameters() for agent in agents), strict=True):
        assert torch.equal(one, other)


def test_scheduled_values_are_learned_from_whoever_computes_the_gradient() -> None:
    schedules = {"entropy_coef": ScheduleConfig(start=0.3, end=0.0), "clip_range": ScheduleConfig(end=0.05)}
    by_hand = ppo(task="Pendulum", schedules=schedules)
    assert by_hand._gradient is not None
    by_hand.learn(4)
    by_autograd = ppo(task="Pendulum", schedules=schedules)
    by_autograd._gradient = None
    by_autograd.learn(4)
    unscheduled = ppo(task="Pendulum", entropy_coef=0.3)
    unscheduled.learn(4)
    for one, other in zip(by_hand.policy.parameters(), by_autograd.policy.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not all(map(torch.equal, by_hand.policy.parameters(), unscheduled.policy.parameters()))


def test_a_mean_of_entropies_is_weighed_by_its_share_and_told_as_it_was_set() -> None:
    schedules = {"entropy_coef": ScheduleConfig(start=0.5, end=0.1)}
    agent = ppo(task="Reach-UR5e-JointPos", entropy_reduction="mean", schedules=schedules)
    assert told(agent, 2, "policy/entropy_coef") == [pytest.approx((0.5,)), pytest.approx((0.3,))]
    assert float(agent.loss_settings["entropy_coef"]) == pytest.approx(0.3 / 6)


def test_the_linear_schedule_is_the_same_as_ever() -> None:
    rates: dict[str, list[tuple[float, ...]]] = {}
    both: dict[str, dict[str, Any]] = {
        "old": {"lr_schedule": "linear"},
        "new": {"schedules": {"learning_rate": ScheduleConfig(end=0.0)}},
    }
    for name, changes in both.items():
        rates[name] = told(ppo(learning_rate=3e-4, **changes), 7, "policy/learning_rate")
    assert rates["old"] == rates["new"]
    assert rates["old"] == [(float(torch.tensor(3e-4 * max(0.0, 1 - i / 7))),) for i in range(7)]


@pytest.mark.parametrize("kind", [SAC, DDPG])
def test_algorithms_with_a_replay_memory_follow_and_begin_anew_with_a_new_run(kind: Any) -> None:
    agent = off_policy(kind, learning_rate=1e-3, schedules={"learning_rate": ScheduleConfig(end=0.0)})
    first = [rate for (rate,) in told(agent, 8, "policy/learning_rate") if rate >= 0]
    assert first == pytest.approx([1e-3 * (1 - i / 8) for i in range(8)][-len(first) :])
    again = [rate for (rate,) in told(agent, 4, "policy/learning_rate")]
    assert again == pytest.approx([1e-3 * (1 - i / 4) for i in range(4)])


def test_noise_of_ddpg_falls_with_its_schedule() -> None:
    agent = off_policy(DDPG, noise_std=0.5, schedules={"noise_std": ScheduleConfig(end=0.0, shape="steps", levels=2)})
    obs, drawn = agent.env.reset(0), list[float]()
    agent.num_iterations = 12
    for _ in range(12):
        action = agent.act(obs, ())[0].clone()
        drawn.append(float((action - agent.policy(obs)[0]).abs().max().detach()))
        step = agent.env.step(action)
        agent.record(obs, action, (), step)
        agent.update()
        obs = step.obs
    assert min(drawn[3:6]) > 1e-3 and max(drawn[6:]) == 0.0  # the first ones are uniform: learning has not begun


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"noise_range": (0.1, 0.2), "schedules": {"noise_std": ScheduleConfig(end=0.0)}}, "noise_range: .* either"),
        ({"lr_schedule": "cosine", "schedules": {"learning_rate": ScheduleConfig(end=0.0)}}, "lr_schedule: 'cosine'"),
        ({"schedules": {"entropy_coef": ScheduleConfig(end=0.0)}}, "valid: learning_rate, noise_std"),
    ],
)
def test_what_cannot_be_with_a_replay_memory_is_refused(changes: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        DDPGConfig(**changes)
    if "noise_range" not in changes and "lr_schedule" not in changes:
        with pytest.raises(ConfigError, match="valid: learning_rate"):
            SACConfig(schedules={"noise_std": ScheduleConfig(end=0.0)})


@pytest.mark.parametrize("build", [ppo, lambda n: off_policy(DDPG, n)])
def test_a_length_that_nobody_gave_is_asked_for(build: Any) -> None:
    agent = build(None)
    schedules = {"learning_rate": ScheduleConfig(end=0.0)}
    agent.schedules = Schedules(schedules, agent.config, torch.device("cpu"), learning_rate=agent.learning_rate)
    with pytest.raises(ConfigError, match=r"learning_rate.* needs (its|the) length"):
        agent.update()


SCHEDULED: dict[str, Any] = {
    "ppo": lambda n: ppo(
        n,
        schedules={
            "learning_rate": ScheduleConfig(end=0.0),
            "entropy_coef": ScheduleConfig(end=0.0, shape="cosine"),
            "clip_range": ScheduleConfig(end=0.1, shape="exponential"),
        },
    ),
    "ddpg": lambda n: off_policy(
        DDPG, n, schedules={"learning_rate": ScheduleConfig(end=0.0), "noise_std": ScheduleConfig(end=0.01)}
    ),
    "sac": lambda n: off_policy(SAC, n, schedules={"learning_rate": ScheduleConfig(end=0.0, until=5)}),
}


@pytest.mark.parametrize("name", SCHEDULED)
def test_two_halves_are_one_whole_to_the_bit(name: str) -> None:
    build = SCHEDULED[name]
    whole = build(8)
    whole.learn(8)
    half = build(8)  # which seeds the generator anew
    progress = half.learn(8, should_stop=lambda: half.iteration == 4)
    content = snapshot(half.env, half, progress)
    other = build(8)
    progress, _ = resume(other.env, other, content)
    for key, value in half.schedules.values.items():
        if name != "ppo":  # which sets them as an update begins
            assert torch.equal(value, other.schedules.values[key])
    other.learn(8, progress=progress)
    assert other.iteration == 8
    assert all(map(torch.equal, whole.policy.parameters(), other.policy.parameters()))


@pytest.mark.parametrize("name", ["ddpg", "sac"])
def test_a_second_run_of_an_agent_is_resumed_where_its_schedules_were(name: str) -> None:
    half = SCHEDULED[name](8)
    half.learn(8)
    progress = half.learn(8, should_stop=lambda: half.iteration == 12)  # half of its own eight
    other = SCHEDULED[name](8)
    resume(other.env, other, snapshot(half.env, half, progress))
    assert other.schedules.values.keys() == half.schedules.values.keys() != set()
    for key, value in half.schedules.values.items():
        assert torch.equal(value, other.schedules.values[key]), key
        assert value > half.config.schedules[key].end


def test_a_run_whose_actor_was_taken_from_elsewhere_goes_on_where_its_schedules_were() -> None:
    def build() -> Any:
        return off_policy(DDPG, 8, schedules={"noise_std": ScheduleConfig(end=0.01)})

    half = build()
    act_by_policy(half)  # as if so many random steps had been taken before
    assert int(half.began) > 0
    progress = learn(half.env, half, 8, progress=begin(half.env, half, 0), should_stop=lambda: half.iteration == 4)
    other = build()
    resume(other.env, other, snapshot(half.env, half, progress))
    for key, value in half.schedules.values.items():
        assert torch.equal(value, other.schedules.values[key]), key


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "train --task CartPole --num-envs 4 --num-iterations 2 --agent.num-steps 16 --eval-envs 2 --log-interval 1"
    words += f" --runs-dir {tmp_path} --threads 1 --no-export --no-report --agent.schedules.entropy_coef.end 0.001"
    assert main(words.split()) == 0
    (run,) = tmp_path.glob("CartPole/ppo/*")
    header, *rows = (run / "metrics.csv").read_text().splitlines()
    place = header.split(",").index("policy/entropy_coef")
    first, second = (float(row.split(",")[place]) for row in rows)
    assert second == pytest.approx((first + 0.001) / 2, rel=1e-5)
    capsys.readouterr()
    assert main(["train", "--resume", str(run), "--num-iterations", "3"]) == 0
    assert "falls over 3 iterations now" in capsys.readouterr().out  # CartPole's learning rate does
    assert main([*words.split(), "--agent.schedules.entropy_coef.until", "none"]) == 2
    assert main([*words.split(), "--agent.schedules.entropy.end", "0"]) == 2
    assert "did you mean 'entropy_coef'" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("name", SCHEDULED)
def test_graphs_follow_schedules_on_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The captured update reads what the host has set; by the plain text and by the kernel alike."""
    found: dict[str, list[dict[str, float]]] = {}
    for mode in ("graph", "eager"):
        if name == "ppo":
            env = make_env("Pendulum", 64, "cuda", seed=1)
            schedules = {
                "learning_rate": ScheduleConfig(end=0.0),
                "entropy_coef": ScheduleConfig(start=0.1, end=0.0),
                "clip_range": ScheduleConfig(end=0.1),
            }
            config: Any = PPOConfig(**SMALL, mode=mode, lr_schedule="constant", schedules=schedules)
            agent: Any = PPO(env, config, seed=1)
        else:
            kind: Any = SAC if name == "sac" else DDPG
            env = make_env("Pendulum", 64, "cuda", seed=1)
            names = ["learning_rate"] + ["noise_std"] * (kind is DDPG)
            schedules = {own: ScheduleConfig(end=0.0) for own in names}
            off: dict[str, Any] = {**OFF, "learning_starts": 64, "buffer_size": 20_000, "num_updates": 2}
            agent = kind(env, (SACConfig if kind is SAC else DDPGConfig)(**off, mode=mode, schedules=schedules), seed=1)
        rows: list[dict[str, float]] = []
        agent.learn(20, on_report=lambda report, rows=rows: rows.append(report.metrics))
        found[mode] = rows
    for key in (key for key in found["graph"][-1] if key.removeprefix("policy/") in schedules):
        values = [[row[key] for row in rows if key in row] for rows in found.values()]
        assert values[0] == values[1] and len(set(values[0])) > 10
