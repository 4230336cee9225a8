"""Disturbances of any env: delays against a slow reference, distributions of noise, and nothing where all is off."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from rlcore import PPO, PPOConfig
from rlcore.env import Parameter, VecEnv, generators_of, is_randomizable, is_stateful
from rlcore.envs import make_env
from rlcore.envs.disturb import Disturbed, disturbances
from rlcore.networks import NetworkConfig
from rlcore.types import Step

N = 6


class Echo:
    """Shows a number of each step and episode, and the last action; episodes of random length."""

    task = "Echo"
    capturable = False
    max_episode_length = 50
    push_unit = "m/s"
    parameters = {"mass": Parameter(nominal=1.0, low=0.5, high=2.0)}  # noqa: RUF012
    deployment: dict[str, Any] = {  # noqa: RUF012
        "control_dt": 0.1,
        "observation_terms": {"policy": [{"name": "clock", "size": 1}, {"name": "pair", "size": 2}]},
    }

    def __init__(self, action: spaces.Space[Any] | None = None, hide_final: bool = False) -> None:
        self.num_envs, self.device, self.hide_final = N, torch.device("cpu"), hide_final
        box = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.observation_spaces = {"policy": box, "camera": spaces.Box(0, 255, (1, 2, 2), np.uint8)}
        self.action_space = action or spaces.Box(-1, 1, (2,), np.float32)
        self.rng = np.random.default_rng(0)
        self.mass = torch.ones(N)
        self.taken: list[Tensor] = []
        self.pushes: list[Tensor] = []
        self.t, self.episode = torch.zeros(2, N)

    def reset(self, seed: int | None = None) -> dict[str, Tensor]:
        self.t, self.episode = torch.zeros(2, N)
        self.left = torch.from_numpy(self.rng.integers(2, 9, N))
        return self._obs()

    def step(self, action: Tensor) -> Step:
        self.taken.append(action.clone())
        self.t = self.t + 1
        self.left = self.left - 1
        done = self.left == 0
        final = self._obs()
        self.t = torch.where(done, 0.0, self.t)
        self.episode = self.episode + done
        self.left = torch.where(done, torch.from_numpy(self.rng.integers(2, 9, N)), self.left)
        over = torch.zeros(N, dtype=torch.bool)
        return Step(self._obs(), self.t, over, done, None if self.hide_final else final, {})

    def _obs(self) -> dict[str, Tensor]:
        clock = (self.t**2 + 100 * self.episode)[:, None]
        camera = (self.t + 10 * self.episode).to(torch.uint8)[:, None, None, None]
        return {"policy": torch.cat((clock, -clock, clock + 7), 1), "camera": camera.repeat(1, 1, 2, 2)}

    def set_parameters(self, values: Any, where: Tensor) -> None:
        self.mass = torch.where(where, values["mass"], self.mass)

    def push(self, speed: Tensor) -> None:
        self.pushes.append(speed.clone())

    def close(self) -> None:
        pass


def setting(env: Any, **values: Any) -> None:
    """Set parameters by number or row, with ``_`` for ``/``."""
    everywhere = torch.ones(env.num_envs, dtype=torch.bool)
    rows = {k.replace("__", "/"): torch.as_tensor(v).float().expand(env.num_envs) for k, v in values.items()}
    env.set_parameters(rows, everywhere)


def same(one: Step, other: Step) -> bool:
    assert one.final_obs is not None and other.final_obs is not None
    pairs = [(one.obs[g], other.obs[g]) for g in one.obs] + [(one.final_obs[g], other.final_obs[g]) for g in one.obs]
    pairs += [(one.reward, other.reward), (one.terminated, other.terminated), (one.truncated, other.truncated)]
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("task", ["Reach-UR5e-JointPos", "CartPole"])
def test_with_everything_on_and_nothing_set_it_is_the_bare_env_bitwise(task: str) -> None:
    bare, inner = (make_env(task, 5, seed=3) for _ in range(2))
    env = Disturbed(inner, list(disturbances(inner)), seed=1)
    assert all(torch.equal(bare.reset(7)[g], env.reset(7)[g]) for g in bare.observation_spaces)
    for t in range(370):  # the arms' episodes have 360 steps
        action = torch.randint(2, (5,)) if task == "CartPole" else torch.randn(5, 6)
        assert same(bare.step(action), env.step(action)), t
    assert env.task == task


def reference(shown: list[np.ndarray], begins: list[int], delay: float, whole: bool) -> np.ndarray:
    """The last of the numbers ``[T]`` that were shown in an episode, late by a delay."""
    last = len(shown) - 1
    if whole:
        return shown[max(last - int(np.floor(delay + 0.5)), begins[-1])]
    near, far = (max(last - int(f(delay)), begins[-1]) for f in (np.floor, np.ceil))
    fraction = delay - np.floor(delay)
    return (1 - fraction) * shown[near].astype(np.float64) + fraction * shown[far]


DELAYS = [0.0, 0.01, 0.5, 1.99, 3.0, 3.37]


@pytest.mark.parametrize("hide_final", [False, True])
def test_observation_delay_to_hundredths_of_a_step(hide_final: bool) -> None:
    inner, twin = Echo(hide_final=hide_final), Echo()
    env = Disturbed(inner, ["observation_delay"], max_delay=4)
    setting(env, observation_delay=DELAYS)
    first, twins = env.reset(), twin.reset()
    seen = {g: [[twins[g][i].numpy()] for i in range(N)] for g in twins}
    begins = [[0] for _ in range(N)]
    assert all(torch.equal(first[g], twins[g]) for g in twins)
    for _ in range(60):
        step, true = env.step(torch.zeros(N, 2)), twin.step(torch.zeros(N, 2))
        assert true.final_obs is not None
        for g in twins:
            for i in range(N):
                seen[g][i].append(true.final_obs[g][i].numpy())
                late = reference(seen[g][i], begins[i], DELAYS[i], g == "camera")
                if step.final_obs is not None:
                    np.testing.assert_allclose(step.final_obs[g][i], late, rtol=1e-6)
                if true.truncated[i]:
                    assert torch.equal(step.obs[g][i], true.obs[g][i])
                else:
                    np.testing.assert_allclose(step.obs[g][i], late, rtol=1e-6)
        for i in np.flatnonzero(true.truncated):
            for g in twins:
                seen[g][i].append(true.obs[g][i].numpy())
            begins[i].append(len(seen["policy"][i]) - 1)
    assert (step.final_obs is None) == hide_final


@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (2,)), spaces.Discrete(9), spaces.MultiDiscrete([9, 9])])
def test_action_delay_to_hundredths_of_a_step(space: spaces.Space[Any]) -> None:
    inner = Echo(space)
    env = Disturbed(inner, ["action_delay"], max_delay=4)
    setting(env, action_delay=DELAYS)
    env.reset()
    discrete = not isinstance(space, spaces.Box)
    sent: list[list[np.ndarray]] = [[] for _ in range(N)]
    begins = [[0] for _ in range(N)]
    for _ in range(60):
        shape = (N, *(space.shape or ()))
        action = torch.randint(9, shape) if discrete else torch.randn(shape)
        step = env.step(action)
        for i in range(N):
            sent[i].append(action[i].numpy())
            late = reference(sent[i], begins[i], DELAYS[i], discrete)
            np.testing.assert_allclose(inner.taken[-1][i], late, rtol=1e-6, atol=1e-6)
            if step.truncated[i]:
                begins[i].append(len(sent[i]))
    assert inner.taken[-1].dtype == action.dtype


def test_delays_may_change_from_env_to_env_and_end_at_the_longest() -> None:
    env = Disturbed(Echo(), ["observation_delay"], max_delay=2)
    env.reset()
    env.set_parameters({"observation_delay": torch.full((N,), 9.0)}, torch.arange(N) == 1)
    for _ in range(2):
        env.env.left = torch.full((N,), 9)  # type: ignore[attr-defined]
        step = env.step(torch.zeros(N, 2))
    assert step.obs["policy"][:3, 0].tolist() == [4, 0, 4]


def test_noise_and_bias_have_their_sizes_and_places() -> None:
    class Long(Echo):
        def _obs(self) -> dict[str, Tensor]:
            return {"policy": torch.zeros(N, 3), "camera": torch.zeros(N, 1, 2, 2, dtype=torch.uint8)}

    names = ["noise", "noise/pair", "bias/clock"]
    env = Disturbed(Long(), names, scales={"policy": torch.tensor([2.0, 3.0, 4.0])}, seed=0)
    setting(env, noise=[0.0, 0.5, 0.0, 0.0, 0.0, 0.0], noise__pair=[0.0, 0.0, 0.2, 0, 0, 0], bias__clock=0.0)
    env.reset()
    rows = torch.stack([env.step(torch.zeros(N, 2)).obs["policy"] for _ in range(2000)])  # [T, N, 3]
    assert (rows[:, [0, 3, 4, 5]] == 0).all()
    torch.testing.assert_close(rows[:, 1].std(0), torch.tensor([1.0, 1.5, 2.0]), rtol=0.05, atol=0)
    torch.testing.assert_close(rows[:, 2].std(0), torch.tensor([0.0, 0.2, 0.2]), rtol=0.05, atol=1e-9)
    assert rows.mean(0).abs().max() < 0.1
    flat = rows[:, 1] / rows[:, 1].std(0)
    assert (flat.T @ flat / len(flat) - torch.eye(3)).abs().max() < 0.06  # white across numbers
    assert (flat[1:] * flat[:-1]).mean(0).abs().max() < 0.06  # and in time


def test_bias_is_constant_within_an_episode_and_uniform_over_episodes() -> None:
    inner = Echo()
    env = Disturbed(inner, ["bias", "bias/clock"], seed=0)
    setting(env, bias=0.5, bias__clock=1.5)
    twin = Echo()
    now = env.reset()["policy"] - twin.reset()["policy"]  # [N, 3]
    found = [now]
    for _ in range(500):
        step, true = env.step(torch.zeros(N, 2)), twin.step(torch.zeros(N, 2))
        assert step.final_obs is not None and true.final_obs is not None
        torch.testing.assert_close(step.final_obs["policy"] - true.final_obs["policy"], now, atol=2e-2, rtol=0)
        after = step.obs["policy"] - true.obs["policy"]
        done = step.truncated
        torch.testing.assert_close(after[~done], now[~done], atol=2e-2, rtol=0)
        now = torch.where(done[:, None], after, now)
        found.append(after[done])
    drawn = torch.cat(found)  # [E, 3]
    for column, bound in zip(drawn.T, (2.0, 0.5, 0.5), strict=True):
        assert column.abs().max() <= bound * 1.02
        torch.testing.assert_close(column.std(), torch.tensor(bound / 3**0.5), rtol=0.1, atol=0)


def test_what_is_set_as_an_episode_begins_holds_for_its_first_observation() -> None:
    for names in (["noise", "bias"], ["noise", "bias", "dropout"]):
        env, twin = Disturbed(Echo(), names, seed=0), Echo()
        env.reset(), twin.reset()
        for _ in range(12):
            step, true = env.step(torch.zeros(N, 2)), twin.step(torch.zeros(N, 2))
            assert torch.equal(step.obs["policy"], true.obs["policy"])  # off
            setting(env, noise=0.3, bias=0.3)
            changed = (step.obs["policy"] != true.obs["policy"]).any(1)
            assert torch.equal(changed, step.truncated)
            setting(env, noise=0.0, bias=0.0)
            assert torch.equal(step.obs["policy"], true.obs["policy"])


def test_dropout_shows_what_was_shown_before_and_never_of_another_episode() -> None:
    env, twin = Disturbed(Echo(), ["dropout", "noise"], seed=0), Echo()
    setting(env, dropout=[0.0, 0.3, 0.3, 0.3, 1.0, 0.3], noise=0.1)
    before, _ = env.reset(), twin.reset()
    lost = steps = 0
    for _ in range(400):
        step, true = env.step(torch.zeros(N, 2)), twin.step(torch.zeros(N, 2))
        assert step.final_obs is not None
        for g in before:
            held = (step.obs[g] == before[g]).flatten(1).all(1)
            assert not held[step.truncated].any()
            held_last = (step.final_obs[g] == before[g]).flatten(1).all(1)
            assert torch.equal(held[~step.truncated], held_last[~step.truncated])
            assert not held_last[0] and held_last[4]
        fresh = (step.obs["policy"] - true.obs["policy"]).abs().amax(1) < 2
        assert (fresh | held | step.truncated)[[0, 1, 2, 3, 5]].all()
        lost += int(held_last[[1, 2, 3, 5]].sum())
        steps += 4
        before = {g: x.clone() for g, x in step.obs.items()}
    assert abs(lost / steps - 0.3) < 4 * (0.3 * 0.7 / steps) ** 0.5


@pytest.mark.parametrize("delay", [False, True])
def test_lost_actions_are_those_before_within_an_episode(delay: bool) -> None:
    inner = Echo()
    env = Disturbed(inner, ["action_drop", "action_gain"] + ["action_delay"] * delay, seed=0)
    setting(env, action_drop=[0.0, 0.25, 1.0, 0.25, 0.25, 0.25], action_gain=2.0)
    env.reset()
    fresh, last = torch.ones(N, dtype=torch.bool), torch.zeros(N, 2)
    lost = steps = 0
    for _ in range(400):
        action = torch.randn(N, 2)
        step = env.step(action)
        taken = inner.taken[-1] / 2
        is_new, is_old = (taken == action).all(1), (taken == last).all(1)
        assert (is_new | is_old).all() and is_new[fresh].all() and is_new[0] and is_old[2] | fresh[2]
        lost += int((is_old & ~fresh)[[1, 3, 4, 5]].sum())
        steps += int((~fresh)[[1, 3, 4, 5]].sum())
        fresh, last = step.truncated, taken
    assert abs(lost / steps - 0.25) < 4 * (0.25 * 0.75 / steps) ** 0.5


def test_pushes_come_at_their_interval_from_a_random_time_of_the_episode() -> None:
    class Endless(Echo):
        def step(self, action: Tensor) -> Step:
            self.left = torch.full((N,), 9)
            return super().step(action)

    inner = Endless()
    env = Disturbed(inner, ["push"], push_interval=1.0, seed=0)  # 10 steps
    setting(env, push=[0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    env.reset()
    for _ in range(100):
        env.step(torch.zeros(N, 2))
    pushes = torch.stack(inner.pushes)  # [T, N]
    assert (pushes[:, 0] == 0).all()
    firsts = set()
    for i in range(1, N):
        times = pushes[:, i].nonzero()[:, 0]
        assert len(times) in (9, 10) and (times.diff() == 10).all() and (pushes[times, i] == i).all()
        firsts.add(int(times[0]))
    assert len(firsts) > 2


def test_it_is_randomizable_around_what_is_randomizable() -> None:
    inner = Echo()
    env = Disturbed(inner, ["noise"])
    assert is_randomizable(env) and list(env.parameters) == ["noise", "mass"]
    assert isinstance(env, VecEnv)
    setting(env, noise=0.1, mass=2.0)
    assert (inner.mass == 2).all()
    with pytest.raises(ValueError, match=r"Echo: there is no parameter 'masss'; did you mean 'mass'"):
        setting(env, masss=1.0)
    pendulum = Disturbed(make_env("Pendulum", 2), ["dropout"])
    with pytest.raises(ValueError, match=r"no parameter 'dropuot'; did you mean 'dropout'"):
        setting(pendulum, dropuot=1.0)


def test_what_it_cannot_do_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"Memory: .*'push': its robots cannot be pushed"):
        Disturbed(make_env("Memory", 2), ["push"])
    cart = make_env("CartPole", 2)
    for name, message in (
        ("action_gain", "'action_gain': its actions are choices"),
        ("noise/pole_angel", r"no disturbance 'noise/pole_angel'; did you mean 'noise/pole_angle'"),
    ):
        with pytest.raises(ValueError, match=f"CartPole: .*{message}"):
            Disturbed(cart, [name])
    for wrong in (
        {"max_delay": 0},
        {"max_delay": True},
        {"push_interval": 0.0},
        {"push_interval": float("nan")},
        {"scales": {"policy": torch.ones(3)}},
    ):
        with pytest.raises(ValueError, match=rf"CartPole: {next(iter(wrong))}"):
            Disturbed(cart, ["noise"], **wrong)


EVERYTHING = ["noise", "bias", "dropout", "action_delay", "observation_delay", "action_drop", "action_gain"]


def test_saved_and_put_back_it_goes_on_bitwise() -> None:
    def made() -> Any:
        env = Disturbed(make_env("Reach-UR5e-IK", 4, seed=0), EVERYTHING)
        setting(env, **dict.fromkeys(EVERYTHING, 0.3) | {"action_delay": 1.4})
        return env

    env, other = made(), made()
    env.reset(5)
    other.reset(6)
    setting(other, action_delay=0.0, noise=2.0)
    for t in range(380):
        if t == 357:  # episodes end in between
            other.load_state_dict(env.state_dict())
        action = torch.randn(4, 6)
        step = env.step(action)
        if t >= 357:
            assert same(step, other.step(action))
    assert not is_stateful(Disturbed(Echo(), ["noise"]))
    less = Disturbed(make_env("Reach-UR5e-IK", 4), ["noise"])
    with pytest.raises(ValueError, match="the saved state has 'queue/policy' of Disturbed; use the options"):
        less.load_state_dict(env.state_dict())
    with pytest.raises(ValueError, match="the saved state lacks 'fresh' of Disturbed"):
        less.load_state_dict(less.env.state_dict())  # type: ignore[attr-defined]
    fewer = Disturbed(make_env("Reach-UR5e-IK", 3), ["noise"])
    with pytest.raises(ValueError, match=r"'values' of Disturbed has shape \(1, 4\) .* and \(1, 3\) here"):
        fewer.load_state_dict(Disturbed(make_env("Reach-UR5e-IK", 4), ["noise"]).state_dict())  # type: ignore[attr-defined]


def test_a_seed_repeats_everything_and_its_numbers_are_not_those_of_the_env() -> None:
    rows = []
    for _ in range(2):
        env = Disturbed(make_env("Pendulum", 3), ["noise"])
        setting(env, noise=0.1)
        rows.append([env.reset(4)["policy"], *(env.step(torch.zeros(3, 1)).obs["policy"] for _ in range(3))])
    assert all(map(torch.equal, *rows))
    generators = generators_of(env)  # type: ignore[arg-type]
    assert len(generators) == 2 and not torch.equal(*(g.get_state() for g in generators))


def test_what_is_held_is_put_back() -> None:
    class Holding(Echo):
        def hold(self) -> Any:
            saved, left, episode = self.t.clone(), self.left.clone(), self.episode.clone()

            def back() -> bool:
                self.t, self.left, self.episode = saved, left, episode
                return True

            return back

    env = Disturbed(Holding(), EVERYTHING, seed=0)
    setting(env, **dict.fromkeys(EVERYTHING, 0.5))
    env.reset()
    env.step(torch.ones(N, 2))
    back = env.hold()
    env.env.left.fill_(50)  # type: ignore[attr-defined]
    actions = torch.randn(6, N, 2)
    one = [env.step(a).obs["policy"] for a in actions]
    env.reset(3)
    assert back()
    env.env.left = torch.full((N,), 50)  # type: ignore[attr-defined]
    assert all(map(torch.equal, one, [env.step(a).obs["policy"] for a in actions]))
    assert not hasattr(Disturbed(Echo(), ["noise"]), "hold")


@pytest.mark.gpu
def test_recorded_training_equals_eager_and_waits_for_nothing() -> None:
    flat = []
    net = NetworkConfig(hidden_dims=(32,))
    config = PPOConfig(num_steps=8, num_epochs=1, num_minibatches=2, actor=net, critic=net, precision="fp32")
    for capture in (True, False):
        env: Any = Disturbed(make_env("Reach-UR5e-IK", 64, "cuda", seed=0), EVERYTHING, seed=0)
        everywhere = torch.ones(64, dtype=torch.bool, device="cuda")
        env.set_parameters({name: torch.full((64,), 0.4, device="cuda") for name in EVERYTHING}, everywhere)
        agent = PPO(env, config, seed=0)
        agent.learn(60, capture_env=capture)
        flat.append(torch.cat([optimizer.value for optimizer in agent.optimizers]))
    assert torch.equal(*flat)
    action = torch.zeros(64, 6, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            env.step(action)
            env.set_parameters({name: torch.full((64,), 0.2, device="cuda") for name in EVERYTHING}, everywhere)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_noise_leaves_out_which_of_several_tasks_it_is() -> None:
    env = make_env("tasks:Pendulum+Corner-NE", 4, seed=1, **{"randomize.noise": [1, 1], "randomize.bias": [1, 1]})
    obs = env.reset()
    assert torch.equal(obs["task"], torch.eye(2).repeat_interleave(2, 0))
    assert obs["policy"][:2, :2].square().sum(1).sub(1).abs().min() > 1e-3  # of the pendulum's angle cosine and sine
    with pytest.raises(
        ValueError, match=r"no such parameter; write env\.Pendulum\.randomize\.mass for what a task has"
    ):
        make_env("tasks:Pendulum+Corner-NE", 4, **{"randomize.mass": [1, 2]})
