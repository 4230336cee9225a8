"""Trials: several episodes in one task, of which a policy sees what came of its actions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from rlcore import PPO, NetworkConfig, PPOConfig
from rlcore.config import ConfigError
from rlcore.env import generators_of, is_capturable, is_randomizable, is_stateful, spec_of
from rlcore.env_check import StepCheck, check_obs
from rlcore.envs import make_env
from rlcore.envs.torch_env import TorchEnv
from rlcore.envs.trials import Trials
from rlcore.export import OnnxPolicy, read_metadata
from rlcore.learn import learn, resume, snapshot
from rlcore.recurrent import RNNConfig
from rlcore.train.ahead import told_of_trials
from rlcore.train.cli import main
from rlcore.train.evaluate import evaluate
from rlcore.types import Obs, Step

GRU = NetworkConfig(hidden_dims=(16,), rnn=RNNConfig(type="gru", hidden_size=8))
CONFIG = PPOConfig(num_steps=8, num_epochs=2, num_minibatches=2, actor=GRU, critic=GRU)


class Countdown(TorchEnv):
    """Episodes that end as their own clock says: each env terminates after as many steps as its row, or is cut at 4."""

    task = "Countdown"
    _buffers = ("steps",)

    def __init__(self, num_envs: int, device: Any = "cpu", seed: int | None = None, choices: Any = None) -> None:
        super().__init__(num_envs, device, seed, 4)
        self.observation_spaces = {"policy": gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)}
        box = gymnasium.spaces.Box(-2.0, 2.0, (2,), np.float32)
        self.action_space = box if choices is None else gymnasium.spaces.MultiDiscrete(choices)
        self.lengths = torch.arange(1, num_envs + 1, device=self.device)

    def step(self, action: Tensor) -> Step:
        now = self.steps + 1
        terminated = now == self.lengths
        truncated = (now >= 4) & ~terminated
        done = terminated | truncated
        final = {"policy": now.float().unsqueeze(1)}
        self.steps.copy_(now.masked_fill(done, 0))
        log: dict[str, Tensor | float] = {
            "success": terminated.float(),
            "num_goals": torch.full_like(self.reward(), 2.0),
        }
        return Step(self._seen(), self.reward() * now, terminated, truncated, final, log)

    def reward(self) -> Tensor:
        return torch.arange(1.0, self.num_envs + 1, device=self.device)

    def _begin(self) -> Obs:
        self.steps.zero_()
        return self._seen()

    def _seen(self) -> Obs:
        return {"policy": self.steps.float().unsqueeze(1)}


def test_a_reward_that_is_no_number_is_of_its_own_episode_alone() -> None:
    class Torn(Countdown):
        def step(self, action: Tensor) -> Step:
            step = super().step(action)
            step.reward[step.terminated & (torch.arange(self.num_envs) == 1)] = torch.nan if self.torn else 0.0
            self.torn = False
            return step

    env: Any = Trials(Torn(3), 2)
    env.reset(1)
    for t in range(4):  # of row 1 two episodes of two steps
        env.env.torn = t == 1
        step = env.step(torch.zeros(3, 2))
    first, second = (step.log[f"episode_return_{k}"] for k in (1, 2))
    assert step.terminated[1] and first[1].isnan() and second[1] == 2.0


@pytest.mark.parametrize("episodes", [1, 2, 3])
def test_a_trial_is_so_many_episodes_with_what_came_of_each_action(episodes: int) -> None:
    n = 6
    env, alone = Trials(Countdown(n), episodes), Countdown(n)
    obs, own, check = env.reset(1), alone.reset(1), StepCheck(env)
    check_obs(env, obs, "reset")
    width = 3 + (episodes > 1)
    assert torch.equal(obs["policy"], torch.cat([own["policy"], torch.zeros(n, width)], 1))
    assert env.max_episode_length == 4 * episodes
    numbers = torch.zeros(n, dtype=torch.int64)
    returns, successes = torch.zeros(n, episodes), torch.zeros(n)
    trials = 0
    for _ in range(40):
        action = torch.randn(n, 2)
        step, answer = env.step(action), alone.step(action)
        check(step)
        ended = answer.terminated | answer.truncated
        over = ended & (numbers == episodes - 1)
        assert torch.equal(step.reward, answer.reward)
        assert torch.equal(step.terminated, answer.terminated & over)
        assert torch.equal(step.truncated, answer.truncated & over)
        assert step.final_obs is not None
        assert answer.final_obs is not None
        for row in range(n):
            returns[row, numbers[row]] += answer.reward[row]
            successes[row] += 2.0 * float(answer.terminated[row])
            came = [*action[row].tolist(), float(answer.reward[row])]
            seen = [0.0] * width if over[row] else [*came, float(ended[row])][:width]
            assert step.obs["policy"][row].tolist() == pytest.approx([float(answer.obs["policy"][row]), *seen])
            final = [float(answer.final_obs["policy"][row]), *came, 0.0][: width + 1]
            assert step.final_obs["policy"][row].tolist() == pytest.approx(final)
            if over[row]:
                trials += 1
                for k in range(episodes):
                    told = step.log.get(f"episode_return_{k + 1}")
                    assert (told is None) == (episodes == 1)
                    assert told is None or float(torch.as_tensor(told)[row]) == float(returns[row, k])
                assert float(torch.as_tensor(step.log["success"])[row]) == pytest.approx(
                    float(successes[row]) / (2.0 * episodes)
                )
                assert float(torch.as_tensor(step.log["num_goals"])[row]) == 2.0 * episodes
                returns[row], successes[row], numbers[row] = 0.0, 0.0, 0
            else:
                numbers[row] += int(ended[row])
    assert trials > 10


def test_choices_are_seen_as_one_hot_vectors() -> None:
    env = Trials(Countdown(2, choices=[3, 2]), 2)
    env.reset(1)
    step = env.step(torch.tensor([[2, 0], [1, 1]]))
    assert step.obs["policy"][1, 1:6].tolist() == [0.0, 1.0, 0.0, 0.0, 1.0]
    assert spec_of(env).deployment["observation_terms"]["policy"] == [
        {"name": "policy", "size": 1},
        {"name": "previous_action", "size": 5},
        {"name": "previous_reward", "size": 1},
        {"name": "previous_end", "size": 1},
    ]
    cart = make_env("CartPole", 2, seed=1, trial_episodes=1)
    cart.reset()
    assert cart.step(torch.tensor([1, 0])).obs["policy"][:, 4:].tolist() == [[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]]


def test_parameters_hold_for_a_trial_and_are_drawn_for_the_next() -> None:
    options = {
        "trial_episodes": 2,
        "max_episode_length": 5,
        "randomize.mass": [0.5, 2.0],
        "randomize.noise": [0.0, 0.1],
    }
    env = make_env("Pendulum", 4, seed=1, **options)
    assert is_randomizable(env)
    assert is_capturable(env)
    assert len(generators_of(env)) >= 3
    before, drawn = env.reset(3)["dynamics"], []
    for step in range(30):
        now = env.step(torch.zeros(4, 1)).obs["dynamics"]
        assert torch.equal(now, before) != (step % 10 == 9)
        drawn += [now] if step % 10 == 9 else []
        before = now
    assert len({tuple(x.flatten().tolist()) for x in drawn}) == 3


def test_what_is_saved_goes_on_in_the_middle_of_a_trial() -> None:
    env = make_env("Pendulum", 3, seed=1, trial_episodes=3, max_episode_length=4)
    assert is_stateful(env)
    env.reset(2)
    actions = torch.randn(20, 3, 1)
    for action in actions[:6]:
        env.step(action)
    state = env.state_dict()
    one = [env.step(action) for action in actions]
    env.load_state_dict(state)
    for first, action in zip(one, actions, strict=True):
        again = env.step(action)
        assert torch.equal(first.obs["policy"], again.obs["policy"])
        assert torch.equal(first.truncated, again.truncated)
        for name, value in first.log.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(again.log[name]))


def agent_on(device: str = "cpu", mode: str = "eager", num_envs: int = 8, **settings: Any) -> PPO:
    options = {"trial_episodes": 2, "max_episode_length": 5, "randomize.mass": [0.5, 2.0]}
    env = make_env("Pendulum", num_envs, device, seed=3, **options)
    return PPO(env, replace(CONFIG, mode=mode, **settings), seed=3)  # type: ignore[arg-type]


def test_a_policy_remembers_across_episodes_and_forgets_across_trials() -> None:
    agent = agent_on(num_steps=20)
    seen: list[Tensor] = []
    act = agent.act
    agent.act = lambda obs, state: (seen.append(state[0].clone()), act(obs, state))[1]  # type: ignore[func-returns-value,method-assign]
    agent.learn(1)
    zero = [bool((state == 0).all()) for state in seen]
    assert zero == [t % 10 == 0 for t in range(20)]
    data = agent.rollout.data
    done = data["terminated"] | data["truncated"]
    assert done.all(1).tolist() == [t % 10 == 9 for t in range(20)]  # where advantages end, too


def test_advantages_go_on_across_episodes_of_a_trial() -> None:
    """With lambda 1 and no values an advantage is the discounted sum of all rewards to the trial's end."""
    agent = agent_on(num_steps=20, gamma=0.9, gae_lambda=1.0, normalize_advantage="none", timeout_bootstrap="none")
    with torch.no_grad():
        for parameter in agent.critic.parameters():
            parameter.zero_()
    found: list[Tensor] = []
    targets = agent._targets
    agent._targets = lambda obs: (found.append(targets(obs)), found[-1])[1]  # type: ignore[assignment,func-returns-value,method-assign,return-value]
    rewards: list[Tensor] = []
    step = agent.env.step
    agent.env.step = lambda action: (rewards.append((answer := step(action)).reward), answer)[1]  # type: ignore[func-returns-value,method-assign]
    agent.learn(1)
    samples = found[0][0]
    expected, tail = torch.stack(rewards), torch.zeros(8)
    for t in reversed(range(20)):
        tail = expected[t] + (0.0 if t % 10 == 9 else 0.9) * tail
        expected[t] = tail
    torch.testing.assert_close(samples.returns, expected)


def test_six_iterations_equal_three_and_three_bitwise() -> None:
    whole = agent_on()
    whole.learn(6)
    first = agent_on()
    content = snapshot(first.env, first, first.learn(3))
    second = agent_on()
    torch.manual_seed(999)
    progress, exact = resume(second.env, second, content)
    assert exact
    learn(second.env, second, 6, progress=progress)
    for one, other in zip(whole.policy.parameters(), second.policy.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_evaluation_tells_the_return_of_each_episode() -> None:
    def nothing(obs: dict[str, Any]) -> Any:
        return np.zeros((len(obs["policy"]), 1), np.float32)

    options = {"max_episode_length": 7}
    result = evaluate(make_env("Pendulum", 5, seed=1, trial_episodes=3, **options), nothing, 9, rounds=2)
    assert result.trial is not None
    assert result.trial.shape == (10, 3)
    torch.testing.assert_close(result.trial.sum(1), result.returns, rtol=1e-5, atol=1e-4)
    alone = evaluate(make_env("Pendulum", 5, seed=1, **options), nothing, 9, rounds=2)
    torch.testing.assert_close(result.trial[:, 0], alone.returns, rtol=1e-5, atol=1e-4)
    assert alone.trial is None
    assert [figures["mean"] for figures in result.as_dict()["trial_returns"]] == result.trial.mean(0).tolist()
    assert [line.partition(":")[0] for line in result.lines()[1:]] == [f"episode {k} of a trial" for k in (1, 2, 3)]


def test_each_of_several_tasks_has_trials() -> None:
    env = make_env("tasks:CartPole+Corner-NE", 4, seed=1, trial_episodes=2, **{"CartPole.trial_episodes": 1})
    assert spec_of(env).tasks["CartPole"].observation_sizes == {"policy": 4 + 2 + 1}
    assert spec_of(env).tasks["Corner-NE"].observation_sizes == {"policy": 4 + 2 + 2}
    result = evaluate(env, lambda obs: np.ones((4, 2), np.float32), 3)
    assert result.tasks["Corner-NE"].lengths.tolist() == [100, 100]
    trial = result.tasks["Corner-NE"].trial
    assert trial is not None
    torch.testing.assert_close(trial.sum(1), result.tasks["Corner-NE"].returns, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("Pendulum", {"trial_episodes": 0}, "env.trial_episodes: 0 is not possible; give a whole number"),
        ("Pendulum", {"trial_episodes": 2.5}, "env.trial_episodes: 2.5"),
        ("Pendulum", {"trial_episodes": True}, "env.trial_episodes: True"),
        (
            "Reach-UR5e-JointPos",
            {"trial_episodes": 2, "curriculum.parameters.command_range": [0.1, 1.0], "curriculum.success_return": 0.0},
            "which is of the same trial; leave env.trial_episodes out",
        ),
        ("CartPole-Pixels", {"trial_episodes": 2}, "no vector among its observations"),
    ],
)
def test_what_cannot_be_is_refused(task: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_env(task, 2, seed=1, **options)


def test_none_is_no_trials() -> None:
    env = make_env("Pendulum", 2, seed=1, trial_episodes=None)
    assert not isinstance(env, Trials)
    assert spec_of(env).observation_sizes == {"policy": 3}


def test_an_env_that_begins_episodes_in_steps_of_their_own_is_refused() -> None:
    class Late(Countdown):
        def step(self, action: Tensor) -> Step:
            step = super().step(action)
            return step._replace(valid=torch.ones_like(step.truncated))

    env = Trials(Late(2), 2)
    env.reset()
    with pytest.raises(ConfigError, match="begins an episode in a step that takes no action"):
        env.step(torch.zeros(2, 2))


def test_a_run_with_trials_is_trained_measured_and_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--task Pendulum --num-envs 4 --num-iterations 2 --eval-envs 4 --agent.num-steps 10 --log-interval 1"
    words += " --env.trial_episodes 2 --env.max_episode_length 5 --env.randomize.mass [0.5,2]"
    words += " --agent.num-minibatches 1 --agent.actor.rnn.type gru --agent.actor.rnn.hidden-size 8"
    words += " --agent.actor.hidden-dims 8 --agent.critic.hidden-dims 8"
    assert main(["train", *words.split(), "--runs-dir", str(tmp_path)]) == 0
    (run,) = tmp_path.glob("*/ppo/*")
    header = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"env/episode_return_1", "env/episode_return_2"} <= set(header)
    facts = read_metadata(run / "export" / "policy.onnx")
    assert facts["inputs"] == {"obs": [1, 6], "h_in": [1, 1, 8]}
    assert facts["trial_episodes"] == 2
    names = [term["name"] for term in facts["observation_terms"]]
    assert names[-3:] == ["previous_action", "previous_reward", "previous_end"]
    figures = json.loads((run / "eval.json").read_text())
    assert len(figures["trial_returns"]) == len(figures["onnx"]["trial_returns"]) == 2
    assert figures["trial_returns"][1]["mean"] == pytest.approx(figures["onnx"]["trial_returns"][1]["mean"], rel=1e-3)
    capsys.readouterr()
    file = run / "export" / "policy.onnx"
    assert main(["eval", "--onnx", str(file), "--num-envs", "3", "--output", str(tmp_path / "e.json")]) == 0
    assert "episode 2 of a trial: return " in capsys.readouterr().out
    assert OnnxPolicy(file)(np.zeros(6, np.float32)).shape == (1,)


@pytest.mark.gpu
def test_graph_equals_eager() -> None:
    def train(mode: str) -> PPO:
        agent = agent_on("cuda", mode, 64, precision="fp32")
        agent.learn(30)
        return agent

    graph, eager = train("graph"), train("eager")
    for one, other in zip(graph.policy.parameters(), eager.policy.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
@pytest.mark.parametrize("capture_env", [None, False])
def test_iterations_do_not_synchronize_with_the_host(capture_env: bool | None) -> None:
    agent = agent_on("cuda", "graph", 64)
    progress = agent.learn(5, capture_env=capture_env)
    torch.cuda.set_sync_debug_mode("error")
    try:
        agent.learn(15, progress=progress, on_report=lambda report: None, capture_env=capture_env)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_trials_stay_those_of_each_task_where_all_are_disturbed() -> None:
    env = make_env("tasks:Pendulum+Corner-NE", 4, seed=1, trial_episodes=2, **{"randomize.noise": [0, 0.1]})
    sizes = [spec.observation_sizes["policy"] for spec in env.tasks.values()]  # type: ignore[attr-defined]
    assert sizes == [3 + 1 + 2, 4 + 2 + 2] and env.observation_spaces["task"].shape == (2,)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (PPOConfig(num_steps=400), "remembers nothing"),
        (replace(CONFIG, num_steps=399), "--agent.num-steps 400 is for whole ones"),
        (replace(CONFIG, num_steps=400), None),
    ],
)
def test_trials_without_a_memory_and_rollouts_without_a_whole_one_are_told_of(
    settings: PPOConfig, told: str | None
) -> None:
    for task, episodes in (("Pendulum", 2), ("tasks:Pendulum+Corner-NE", 2), ("Pendulum", 1), ("Pendulum", None)):
        env = make_env(task, 2, seed=1, trial_episodes=episodes)
        lines = told_of_trials(PPO(env, settings, seed=1), spec_of(env), env.max_episode_length)
        assert (told in lines[0]) if told and episodes == 2 else (lines == [])
