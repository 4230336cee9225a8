"""SAC's parts against references written out here, exact resumption, and that it learns."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import check_that_nothing_waits, leaves
from gymnasium import spaces
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlcore import DDPG, SAC, ConfigError, DDPGConfig, NetworkConfig, SACConfig, spec_of
from rlcore.checkpoint import load_checkpoint, save_checkpoint
from rlcore.config import to_dict
from rlcore.distributions import sample_tanh_gaussian
from rlcore.envs import make_env
from rlcore.envs.null import Null
from rlcore.learn import learn, resume, snapshot
from rlcore.replay import Batch
from rlcore.sac import build_policy
from rlcore.train.algorithms import CONFIGS
from rlcore.train.cli import main
from rlcore.train.config import TrainConfig, config_class, read_config
from rlcore.train.defaults import default_config
from rlcore.train.evaluate import evaluate

SMALL = NetworkConfig(hidden_dims=(16, 16), activation="tanh", init="default")
SIZES: dict[str, Any] = {"learning_starts": 40, "buffer_size": 2000, "batch_size": 32, "actor": SMALL, "critic": SMALL}


def config(**changes: Any) -> SACConfig:
    return replace(SACConfig(**SIZES), **changes)


def agent_on(task: str = "Pendulum", seed: int | None = 3, **changes: Any) -> SAC:
    return SAC(make_env(task, 4, seed=seed), config(**changes), seed=seed)


def null(limit: float | list[float] = 1.0, **sizes: int) -> Null:
    env = Null(4, action_size=2, **sizes)
    high = np.broadcast_to(np.float32(limit), (2,))
    env.action_space = spaces.Box(-high, high)
    return env


def sample(mean: Tensor, log_std: Tensor, center: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    return sample_tanh_gaussian(torch.cat([mean, log_std], -1), (-20.0, 2.0), half, center)


def test_log_density_is_that_of_the_action_in_the_units_of_the_env() -> None:
    """Against the distribution of torch, and integrated over the action box."""
    center, reach = torch.tensor([0.5, -1.0], dtype=torch.float64), torch.tensor([2.0, 0.3], dtype=torch.float64)
    mean, log_std = torch.tensor([[0.3, -0.8]]).double(), torch.tensor([[-0.5, 0.2]]).double()
    action, log_prob = sample(mean.expand(1000, 2), log_std.expand(1000, 2), center, reach)
    normal = torch.distributions.Normal(mean, log_std.exp())
    transforms = [torch.distributions.TanhTransform(), torch.distributions.AffineTransform(center, reach)]
    reference = torch.distributions.TransformedDistribution(normal, transforms)
    torch.testing.assert_close(log_prob, reference.log_prob(action).sum(-1), rtol=1e-6, atol=1e-6)
    assert ((action - center).abs() <= reach).all()
    # Its own estimate of the entropy against the integral of -p log p over the box.
    grid = torch.linspace(-1 + 1e-7, 1 - 1e-7, 200_001, dtype=torch.float64).unsqueeze(1) * reach + center
    density = reference.log_prob(grid)
    integral = -(density.exp() * density).mean(0) * 2 * reach
    many, log_probs = sample(mean.expand(200_000, 2), log_std.expand(200_000, 2), center, reach)
    assert float(-log_probs.mean()) == pytest.approx(float(integral.sum()), abs=0.01)
    assert many.shape == (200_000, 2)


def test_a_box_twice_as_wide_has_log_2_more_entropy() -> None:
    mean, log_std, one = torch.zeros(1, 3), torch.zeros(1, 3), torch.ones(3)
    torch.manual_seed(1)
    _, narrow = sample(mean, log_std, 0 * one, one)
    torch.manual_seed(1)
    _, wide = sample(mean, log_std, 0 * one, 2 * one)
    torch.testing.assert_close(narrow - wide, torch.tensor([3 * math.log(2)]))


def test_the_entropy_that_is_aimed_at_is_as_far_from_a_uniform_policys_in_any_box() -> None:
    def below_uniform(low: list[float], high: list[float]) -> float:
        agent = SAC(null(10.0), config(action_low=low, action_high=high))
        uniform = torch.distributions.Uniform(torch.tensor(low), torch.tensor(high)).entropy().sum()
        return float(uniform) - float(agent.target_entropy)

    # Minus one for each of two actions, as in the paper.
    assert below_uniform([-1.0, -1.0], [1.0, 1.0]) == pytest.approx(2 + 2 * math.log(2), rel=1e-5)
    assert below_uniform([-0.1, 2.0], [0.1, 9.0]) == pytest.approx(2 + 2 * math.log(2), rel=1e-5)


def test_entropy_that_no_policy_within_the_bounds_has_is_refused() -> None:
    narrow = {"action_low": [-0.1], "action_high": [0.1]}
    assert agent_on(target_entropy=-1.62, **narrow).target_entropy == -1.62
    message = "target_entropy: -1.6 is not possible; actions within their bounds have less than -1.609"
    with pytest.raises(ConfigError, match=message):
        agent_on(target_entropy=-1.6, **narrow)


def test_log_density_and_its_gradient_stay_finite_far_out() -> None:
    mean = torch.tensor([[-300.0], [0.0], [300.0]], requires_grad=True)
    _, log_prob = sample(mean, torch.full((3, 1), -20.0), torch.zeros(1), torch.ones(1))
    (gradient,) = torch.autograd.grad(log_prob.sum(), mean)
    assert torch.isfinite(log_prob).all()
    assert torch.isfinite(gradient).all()


def batch_for(agent: SAC | DDPG, number: int = 24) -> Batch:
    actions = agent.policy.action_bias + agent.policy.action_scale * (2 * torch.rand(number, agent.policy.actions) - 1)
    obs, next_obs = torch.randn(2, number, 3)
    return Batch(
        actor_obs=obs,
        critic_obs=obs,
        next_actor_obs=next_obs,
        next_critic_obs=next_obs,
        action=actions,
        reward=torch.randn(number),
        discount=torch.rand(number).round() * 0.99,
        weight=torch.cat([torch.full((number // 2,), 2.0), torch.zeros(number - number // 2)]),
    )


@torch.no_grad()
def test_losses_and_temperature_equal_the_formulas_written_out() -> None:
    agent = agent_on(init_temperature=0.3, tau=0.25)
    batch = batch_for(agent)
    for parameter in agent.target_critics.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))  # at first they are as what they follow
    critics, targets = ([p.clone() for p in m.parameters()] for m in (agent.critics, agent.target_critics))
    torch.manual_seed(7)
    action, log_prob = agent._sample(batch.next_actor_obs)
    total = 0.0
    for i in range(12):  # the others have no weight
        obs, draw = batch.next_critic_obs[i : i + 1], action[i : i + 1]
        lower = min(float(q) for q in agent.target_critics(obs, draw))
        soft = lower - 0.3 * float(log_prob[i])
        target = float(batch.reward[i]) + float(batch.discount[i]) * soft
        values = agent.critics(batch.critic_obs[i : i + 1], batch.action[i : i + 1])
        total += sum((float(q) - target) ** 2 for q in values)
    torch.manual_seed(7)
    with torch.enable_grad():
        metrics = agent._gradient_step(batch, with_actor=True)
    assert float(metrics["loss/value"]) == pytest.approx(total / 12, rel=1e-5)
    # Entropy above its target lowers the temperature; Adam's first step has the size of the learning rate.
    target = math.log(2) - 1  # actions reach to 2
    assert float(agent.log_temperature.grad) == pytest.approx(float(metrics["policy/entropy"]) - target, rel=1e-5)
    assert float(metrics["policy/entropy"]) > target
    assert float(agent.log_temperature) == pytest.approx(math.log(0.3) - 3e-4, rel=1e-5)
    # A quarter of the way from the old target to the new critic.
    after = zip(critics, targets, agent.critics.parameters(), agent.target_critics.parameters(), strict=True)
    for before, old, new, target_now in after:
        assert not torch.equal(before, new)
        torch.testing.assert_close(target_now, 0.75 * old + 0.25 * new)


@pytest.mark.parametrize("reduce", ["min", "mean", "own"])
def test_the_actor_climbs_what_q_reduce_says_and_leaves_the_critics_alone(reduce: Any) -> None:
    agent = agent_on(init_temperature=0.2, num_critics=3, q_reduce=reduce)
    batch = batch_for(agent)._replace(critic_obs=torch.randn(24, 3))  # as of another group
    agent._critic_step = lambda *args: {}  # type: ignore[method-assign]
    with torch.no_grad():
        for parameter in agent.target_critics.parameters():
            parameter.add_(0.1)
    torch.manual_seed(3)
    agent._sample(batch.next_actor_obs)  # drawn first, for the critics
    action, log_prob = agent._sample(batch.actor_obs)
    values = agent.critics(batch.critic_obs, action)
    value = values.amin(0) if reduce == "min" else values.mean(0)
    loss = (batch.weight * (0.2 * log_prob - value)).mean()
    expected = torch.autograd.grad(loss, list(agent.policy.parameters()))
    before = [p.detach().clone() for p in agent.critics.parameters()]
    torch.manual_seed(3)
    metrics = agent._gradient_step(batch, with_actor=True)
    assert float(metrics["loss/policy"]) == pytest.approx(float(loss.detach()), rel=1e-5)
    assert float(metrics["policy/entropy"]) == pytest.approx(
        -float((batch.weight * log_prob.detach()).mean()), rel=1e-5
    )
    for parameter, gradient in zip(agent.policy.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, agent.critics.parameters(), strict=True))


def test_target_critics_follow_every_step_and_actor_and_temperature_only_their_own() -> None:
    agent = agent_on(policy_delay=2, tau=0.25)
    batch = batch_for(agent)
    still = [*agent.policy.parameters(), agent.log_temperature]
    before, old = ([p.detach().clone() for p in group] for group in (still, agent.target_critics.parameters()))
    agent._gradient_step(batch, with_actor=False)
    assert all(torch.equal(a, b) for a, b in zip(before, still, strict=True))
    for start, new, now in zip(old, agent.critics.parameters(), agent.target_critics.parameters(), strict=True):
        torch.testing.assert_close(now, 0.75 * start + 0.25 * new.detach())
    agent._gradient_step(batch, with_actor=True)
    assert not any(torch.equal(a, b) for a, b in zip(before, still, strict=True))


@pytest.mark.parametrize(
    ("changes", "step"),
    [({}, 3e-4), ({"temperature_learning_rate": 1e-2}, 1e-2), ({"learn_temperature": False}, 0.0)],
)
def test_temperature_has_a_rate_of_its_own_or_stays(changes: dict[str, Any], step: float) -> None:
    agent = agent_on(target_entropy=-50.0, **changes)
    agent._gradient_step(batch_for(agent), with_actor=True)
    # It begins at 0; Adam's first step has the size of the rate, downward since there is more entropy than wanted.
    assert float(agent.log_temperature.detach()) == pytest.approx(-step, rel=1e-4)


VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "n steps": {"n_step": 3},
    "delayed actor": {"policy_delay": 3, "num_steps": 2},
    "fixed temperature": {"learn_temperature": False},
    "own temperature rate": {"temperature_learning_rate": 1e-2, "target_entropy": -3.0},
    "normalized observations": {"normalize_obs": True, "store_obs": "bf16"},
    "time-outs worth the value before": {"timeout_bootstrap": "value"},
    "time-outs worth nothing": {"timeout_bootstrap": "none", "max_grad_norm": 0.5, "reward_scale": 0.1},
    "half as many gradient steps": {"update_ratio": 0.5},
    "categorical critics of normalized rewards": {"value_loss": "categorical", "normalize_reward": True},
    "three critics, each by itself": {"num_critics": 3, "q_reduce": "own"},
    "mean of categorical critics": {"num_critics": 3, "q_reduce": "mean", "value_loss": "categorical"},
    "held noise, falling rate": {"noise_hold": 16, "lr_schedule": "cosine", "lr_end": 1e-4, "num_updates": 3},
    "falling deviation": {"target_std": 0.3, "target_std_end": 0.05, "num_updates": 2},
    "entropy from its target on": {"target_std": 0.15, "center_entropy": True, "init_std": 0.2},
    "layers normalized": {"actor": replace(SMALL, layer_norm=True), "critic": replace(SMALL, layer_norm=True)},
    "residual": {"actor": replace(SMALL, kind="residual"), "critic": replace(SMALL, kind="residual", expansion=2)},
    "rows of unit length": {name: replace(SMALL, kind="residual", unit_norm="hidden") for name in ("actor", "critic")},
}


class NoHostRead(TorchDispatchMode):
    """On CUDA a host read would stall the device and cannot be captured; here every such read is an error."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
            torch.ops.aten.masked_select.default,
        ), f"{func} reads from the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_learns_without_reading_a_tensor_on_the_host(name: str) -> None:
    env = null(obs_size=5, episode_length=7)
    agent = SAC(env, config(**VARIANTS[name]), seed=0)
    agent.learn(20)  # allocates
    before = [p.detach().clone() for p in agent.policy.parameters()]
    obs = env.reset()
    metrics: dict[str, Tensor] = {}
    with NoHostRead():
        for i in range(12):
            for _ in range(agent.num_steps):
                action, _ = agent.act(obs, ())
                step = env.step(action)
                if i == 5:  # what is not finite spoils nothing, and is not looked at either
                    spoiled, last = step.obs["policy"] * torch.tensor([1.0, 1.0, 1.0, torch.inf]).unsqueeze(1), step.obs
                    step = step._replace(obs={"policy": spoiled}, reward=step.reward / 0, final_obs=last)
                agent.record(obs, action, (), step)
                obs = step.obs
            metrics |= agent.update()
    assert metrics
    assert all(torch.isfinite(value) for value in metrics.values()), metrics
    assert not all(torch.equal(a, b) for a, b in zip(before, agent.policy.parameters(), strict=True))
    assert ("policy/temperature" in metrics) and agent.log_temperature.isfinite()


def test_learning_waits_and_the_first_actions_are_uniform() -> None:
    agent = agent_on(learning_starts=800, buffer_size=1000)
    before = [p.detach().clone() for p in agent.policy.parameters()]
    seen: list[set[str]] = []
    agent.learn(201, on_report=lambda report: seen.append(set(report.metrics)))
    assert ["loss/value" in metrics for metrics in seen] == [False] * 199 + [True] * 2
    assert not all(torch.equal(a, b) for a, b in zip(before, agent.policy.parameters(), strict=True))
    actions = agent.replay.action[:200].flatten().sort().values / 4 + 0.5  # bounds are +-2
    ranks = (torch.arange(800) + 0.5) / 800
    assert (actions - ranks).abs().max() < 1.63 / math.sqrt(800)  # Kolmogorov-Smirnov, 1 %
    assert agent.replay.size == 201


def test_actor_waits_for_its_turn_across_updates() -> None:
    agent = agent_on(policy_delay=3, update_ratio=0.5)  # 2 gradient steps an iteration
    turns: list[bool] = []
    step = agent._gradient_step

    def noted(batch: Batch, with_actor: bool) -> dict[str, Tensor]:
        turns.append(with_actor)
        return step(batch, with_actor)

    agent._gradient_step = noted  # type: ignore[method-assign]
    agent.learn(20)
    gaps = [i for i, turn in enumerate(turns) if turn]
    assert len(gaps) == 7
    assert {b - a for a, b in itertools.pairwise(gaps)} == {3}


@pytest.mark.parametrize("algorithm", [SAC, DDPG])
@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("classic", {}),
        ("classic", {"n_step": 3, "normalize_obs": True, "policy_delay": 2, "buffer_size": 48}),
        ("gpu", {"save_buffer": True, "num_updates": 3, "critic": replace(SMALL, kind="residual")}),
    ],
)
def test_twenty_iterations_equal_ten_and_resume_and_ten_bitwise(
    tmp_path: Path, algorithm: Any, preset: str, changes: dict[str, Any]
) -> None:
    kind = SACConfig if algorithm is SAC else DDPGConfig
    own = {**SIZES, "learning_starts": 16, **changes}
    if algorithm is DDPG:
        own |= {"noise": "ou"} if preset == "classic" else {"noise_spread": "episodes"}

    def build(seed: int | None = 3) -> Any:
        env = make_env("Pendulum", 4, seed=seed, max_episode_length=9)
        return algorithm(env, kind.preset(preset, **own), seed=seed, num_iterations=20)

    whole = build()
    straight = whole.learn(20)
    first = build()
    content = snapshot(first.env, first, learn(first.env, first, 10, seed=3))
    facts = {"config": to_dict(first.config), "spec": asdict(spec_of(first.env))}
    save_checkpoint(tmp_path / "10.pt", {**facts, **content})

    second = build(seed=None)
    torch.manual_seed(999)  # the checkpoint's generators count, not what happens to be set
    progress, exact = resume(second.env, second, load_checkpoint(tmp_path / "10.pt"))
    assert exact
    halves = learn(second.env, second, 20, progress=progress)
    assert (halves.iteration, halves.env_steps) == (straight.iteration, straight.env_steps) == (20, 80)
    one, two = leaves(whole.state_dict()), leaves(second.state_dict())
    assert len(one) == len(two) > 40
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


def test_without_its_memory_a_resumed_run_fills_a_new_one_with_the_policy_first() -> None:
    agent = agent_on(save_buffer=False)
    content = snapshot(agent.env, agent, agent.learn(15))
    assert content["agent"]["replay"] is None
    other = agent_on(save_buffer=False, seed=None)
    progress, _ = resume(other.env, other, content)
    (note,) = (note for note in other.notes if "gradient steps" in note or "save_buffer" in note)
    expected = "4 gradient steps an iteration, after 40 new steps: the replay memory was not saved (save_buffer)"
    assert note == expected  # one, and not also from which step on a run that begins anew learns
    seen: list[bool] = []
    learn(other.env, other, 26, progress=progress, on_report=lambda r: seen.append("loss/value" in r.metrics))
    assert seen == [False] * 9 + [True] * 2
    assert other.steps * 4 > other.config.learning_starts  # no uniform actions again
    torch.testing.assert_close(other.log_temperature, agent.log_temperature, rtol=0, atol=1e-2)


def test_policy_is_deterministic_within_the_bounds_and_needs_no_env() -> None:
    agent = agent_on()
    agent.learn(14)
    obs = {"policy": 1e3 * torch.randn(64, 3)}
    action, state = agent.policy(obs)
    assert state == ()
    assert action.abs().max() <= 2.0
    assert torch.equal(agent.policy(obs)[0], action)
    other = build_policy(spec_of(agent.env), agent.config)
    other.load_state_dict(agent.state_dict()["policy"])
    assert torch.equal(other(obs)[0], action)


@pytest.mark.parametrize("algorithm", [SAC, DDPG])
@pytest.mark.parametrize(
    ("env", "changes", "message"),
    [
        ({"task": "CartPole"}, {}, "CartPole has discrete actions.*use ppo"),
        ({"limit": math.inf}, {}, "have no bounds.*agent.action_low and agent.action_high"),
        ({"limit": 100.0}, {}, r"reach to -100, and beyond \+-10 .*agent.action_low"),
        ({"limit": 1.0}, {"action_low": (-2.0,)}, "leaves the env's"),
        ({"limit": 1.0}, {"action_low": (0.5,), "action_high": (-0.5,)}, "less than action_high"),
        ({"limit": 1.0}, {"action_low": (-0.5, 0.5), "action_high": (0.5, -0.5)}, "less than action_high"),
        ({"limit": [1.0, math.inf]}, {}, "have no bounds.*agent.action_low and agent.action_high"),
        ({"limit": [1.0, 100.0]}, {}, r"reach to -100, and beyond \+-10 .*agent.action_low"),
        ({"limit": 1.0}, {"action_high": (0.5, 0.5, 0.5)}, "give 1 or 2 numbers"),
        ({"limit": 1.0}, {"update_ratio": 0.1}, "update_ratio: 0.1 is not possible; with 4 envs"),
    ],
)
def test_what_does_not_fit_the_env_is_refused(
    algorithm: Any, env: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    kind = SACConfig if algorithm is SAC else DDPGConfig
    made = make_env("CartPole", 4) if "task" in env else null(env["limit"], obs_size=3)
    with pytest.raises(ConfigError, match=message):
        algorithm(made, kind(**{**SIZES, **changes}))


def test_wide_or_missing_bounds_can_be_given_in_the_settings() -> None:
    for limit, given in ((math.inf, 1.5), (100.0, 100.0), (1.0, 0.5)):
        env = null(limit, obs_size=3)
        agent = SAC(env, config(action_low=(-given,), action_high=(given, given)), seed=0)
        assert agent.policy.action_scale.tolist() == [given, given]
        assert f"actions within {-given:g} to {given:g}, from the settings" in agent.notes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": 1.5}, "gamma"),
        ({"tau": 0.0}, "tau"),
        ({"learning_starts": 5000}, "learning_starts: 5000 is not possible; set 0 to buffer_size"),
        ({"log_std_range": (1.0, 0.0)}, "log_std_range"),
        ({"init_temperature": 0.0}, "init_temperature"),
        ({"target_std": 0.1, "target_entropy": -1.0}, "target_std: 0.1 is not possible; leave either"),
        ({"target_std": 0.49}, "target_std: 0.49 is not possible; no policy explores more than with 0.48"),
        ({"target_std_end": 0.1}, "target_std_end: 0.1 is not possible; set target_std"),
        ({"target_std": 0.1, "target_std_end": 0.2}, "target_std_end: 0.2 is not possible; set at most target_std"),
        ({"init_std": 0.0}, "init_std"),
        ({"num_critics": 0}, "num_critics"),
        ({"num_updates": 0}, "num_updates"),
        ({"num_atoms": 1}, "num_atoms"),
        ({"noise_hold": 0}, "noise_hold"),
        ({"value_range": (1.0, 1.0)}, "value_range"),
        ({"value_range": (-1.0, 0.0), "normalize_reward": True}, "value_range: .* its upper end must be positive"),
        ({"lr_end": -1.0}, "lr_end"),
        ({"init_head_scale": 0.0}, "init_head_scale"),
        ({"learning_rate": math.inf}, "learning_rate: inf is not possible; set a positive number"),
        ({"value_range": (-5.0, math.inf)}, "value_range"),
        ({"target_entropy": math.nan}, "target_entropy: nan is not possible; set a number or none"),
        ({"mode": "compile"}, "mode: 'compile' is not possible; networks have kernels of their own"),
    ],
)
def test_impossible_settings_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)


@pytest.mark.parametrize("algo", ["sac", "ddpg"])
def test_shipped_configurations_are_read_by_their_own_dataclass(algo: str) -> None:
    for preset, folder in (("classic", CONFIGS / algo), ("gpu", CONFIGS / f"{algo}-gpu")):
        files = sorted(folder.glob("*.yaml"))
        assert files
        for path in files:
            task = path.stem.replace("gym_", "gym:")
            config, sources = default_config(task, algo=algo, preset=preset)
            assert sources == [path]
            assert (config.algo, type(config), config.preset) == (algo, config_class(algo), preset)  # type: ignore[attr-defined]
            assert read_config(to_dict(config)) == config
    with pytest.raises(ConfigError, match=f"algo: '{algo}' is not possible; the other settings are those of ppo"):
        TrainConfig(task="Pendulum", algo=algo)  # type: ignore[arg-type]


def test_command_line_trains_resumes_and_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for algo in ("sac", "ddpg"):
        words = ["train", "--task", "Pendulum", "--algo", algo, "--num-envs", "2", "--num-iterations", "30"]
        words += ["--agent.learning-starts", "40", "--eval-envs", "3", "--runs-dir", str(tmp_path)]
        words += ["--env.max-episode-length", "40"]
        assert main([*words, "--agent.batch-size", "16"]) == 0
        (run,) = (tmp_path / "Pendulum" / algo).iterdir()
        assert main(["train", "--resume", str(run), "--num-iterations", "40"]) == 0
        record = json.loads((run / "eval.json").read_text())
        assert record["episodes"] == 3
        assert record["onnx"]["parity"] <= 1e-5
        assert main(["eval", "--run", str(run), "--episodes", "2"]) == 0
        assert main(["train", "--resume", str(run), "--agent.gamma", "0.5"]) == 2
    assert main(["train", "--task", "Pendulum", "--algo", "sca"]) == 2
    assert main(["train", "--task", "Pendulum", "--algo", "sac", "--agent.gae-lambda", "0.9"]) == 2
    assert main(["train", "--task", "Pendulum", "--algo", "sac", "--from", "skrl"]) == 2
    error = capsys.readouterr().err
    assert "--from is 'skrl', but Pendulum ships no configuration" in error
    assert "'sca' is no algorithm; did you mean 'sac'?" in error
    assert "unknown setting --agent.gae-lambda" in error


@pytest.mark.slow
def test_sac_solves_pendulum_in_six_thousand_steps() -> None:
    """A random policy has about -1200; eight envs, and networks for one core."""
    net = NetworkConfig(hidden_dims=(64, 64), activation="relu", init="default")
    sizes = SACConfig(
        learning_starts=1000, buffer_size=20_000, batch_size=128, learning_rate=1e-3, tau=0.01, actor=net, critic=net
    )
    agent = SAC(make_env("gym:Pendulum-v1", 8, seed=1), sizes, seed=1)
    agent.learn(750)
    result = evaluate(make_env("gym:Pendulum-v1", 50, seed=1), agent.policy, seed=100)
    assert result.episodes == 50
    assert result.mean_return >= -180


@pytest.mark.gpu
@pytest.mark.parametrize("preset", ["classic", "gpu", "fused"])
@pytest.mark.parametrize("algorithm", [SAC, DDPG])
def test_a_hundred_updates_as_graphs_equal_a_hundred_as_written(algorithm: Any, preset: str) -> None:
    """Two patterns of actor steps, so two graphs; the env's part is recorded too."""
    results = []
    for mode in ("graph", "eager"):
        learner = on_gpu(algorithm, preset, mode=mode, num_updates=1)
        learner.learn(120)
        if mode == "graph":
            assert all(captured.graph is not None for captured in learner._updates)
        results.append(leaves(learner.state_dict()))
    for graph, eager in zip(*results, strict=True):
        assert torch.equal(graph, eager) if isinstance(graph, Tensor) else graph == eager


@pytest.mark.gpu
@pytest.mark.parametrize("preset", ["classic", "gpu"])
@pytest.mark.parametrize("algorithm", [SAC, DDPG])
def test_nothing_waits_for_the_device(algorithm: Any, preset: str) -> None:
    learner = on_gpu(algorithm, preset, num_updates=2)
    obs = learner.learn(30).obs
    check_that_nothing_waits(learner, obs, 20)


def on_gpu(algorithm: Any, preset: str, **changes: Any) -> Any:
    kind = SACConfig if algorithm is SAC else DDPGConfig
    sizes = {"learning_starts": 40, "buffer_size": 2000, "batch_size": 64, "policy_delay": 2, "n_step": 3, **changes}
    if preset != "gpu":
        sizes |= {"actor": SMALL, "critic": SMALL}
    if preset == "fused":  # our own kernels for the layers, and for the loss
        preset, sizes = "gpu", sizes | {"precision": "bf16"}
    env = make_env("Pendulum", 4, "cuda", seed=0, max_episode_length=20)
    return algorithm(env, kind.preset(preset, **sizes), seed=0)
