"""The Memory task, and the wrappers that hide velocities or show observations late."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from rlcore import PPO, NetworkConfig, PPOConfig, Step, spec_of
from rlcore.env import VecEnv, want_final_obs
from rlcore.envs import make_env
from rlcore.envs.classic import Pendulum
from rlcore.envs.memory import Memory
from rlcore.envs.null import Null
from rlcore.envs.wrappers import Delayed, HiddenVelocity
from rlcore.recurrent import RNNConfig
from rlcore.stage import lent, stage_of

K = 4


def play(env: Memory, num_steps: int, answer: Any = None) -> tuple[Tensor, list[Step]]:
    """Observations before each step ``[T, N, K + 2]``, and the steps; ``answer`` maps observations to actions."""
    obs, rows, steps = env.reset()["policy"], [], []
    for _ in range(num_steps):
        rows.append(obs)
        steps.append(env.step(torch.zeros(env.num_envs, dtype=torch.int64) if answer is None else answer(obs)))
        obs = steps[-1].obs["policy"]
    return torch.stack(rows), steps


# Memory


def test_the_cue_is_shown_first_and_the_question_last() -> None:
    rows, steps = play(Memory(64, seed=0, max_episode_length=12, cue_steps=3), 36)
    for t in range(36):
        age = t % 12
        assert (rows[t, :, K] == (age < 3)).all()
        assert (rows[t, :, K + 1] == (age == 11)).all()
        assert (rows[t, :, :K].sum(1) <= 1).all()
        assert bool(steps[t].terminated.all()) == (age == 11)
        assert not steps[t].truncated.any()
    for start in (0, 12, 24):
        assert (rows[start, :, :K].sum(1) == 1).all()
        assert (rows[start : start + 3, :, :K] == rows[start, :, :K]).all()


def test_the_last_observation_is_the_same_for_every_cue() -> None:
    rows, _ = play(Memory(256, seed=0, max_episode_length=6), 6)
    question = torch.zeros(K + 2)
    question[K + 1] = 1
    assert (rows[5] == question).all()
    assert len(rows[0].unique(dim=0)) == K  # though all cues were there


def test_what_is_shown_in_between_says_nothing_about_the_cue() -> None:
    rows, _ = play(Memory(20_000, seed=0, max_episode_length=4, cue_steps=1, distractors=0.6), 3)
    cue, shown = rows[0, :, :K].argmax(1), torch.cat([rows[2, :, :K], 1 - rows[2, :, :K].sum(1, keepdim=True)], 1)
    for symbol in range(K):
        # Standard error of these frequencies: 0.007 at most.
        expected = torch.tensor([0.15] * K + [0.4])
        torch.testing.assert_close(shown[cue == symbol].mean(0), expected, rtol=0, atol=0.03)
    torch.testing.assert_close(torch.bincount(cue) / len(cue), torch.full((K,), 1 / K), rtol=0, atol=0.015)


def test_whoever_remembers_is_always_right_and_paid_once() -> None:
    env = Memory(32, seed=0, max_episode_length=9)
    cue = torch.zeros(32, dtype=torch.int64)

    def remember(obs: Tensor) -> Tensor:
        nonlocal cue
        cue = torch.where(obs[:, K] == 1, obs[:, :K].argmax(1), cue)
        return cue

    _, steps = play(env, 27, remember)
    for t, step in enumerate(steps):
        assert (step.reward == float(t % 9 == 8)).all()
        if t % 9 == 8:
            assert (step.log["success"] == 1).all()


def test_no_rule_that_sees_the_present_observation_alone_beats_chance() -> None:
    """A memoryless rule sees one observation at the question: whatever it makes of it, it is one distribution."""
    env = Memory(20_000, seed=1, max_episode_length=3)
    for rule in (lambda obs: torch.full((len(obs),), 2), lambda obs: torch.randint(K, (len(obs),))):
        _, steps = play(env, 3, rule)
        assert float(steps[-1].reward.mean()) == pytest.approx(1 / K, abs=0.015)


def test_a_wrong_answer_and_a_right_one_too_early_pay_nothing() -> None:
    env = Memory(8, seed=0, max_episode_length=5)
    env.reset()
    for t in range(5):
        step = env.step(env.cue if t < 4 else (env.cue + 1) % K)
        assert (step.reward == 0).all()


def test_lengths_are_random_within_their_limits() -> None:
    env = Memory(1000, seed=0, min_episode_length=4, max_episode_length=7)
    env.reset()
    lengths, age = [], torch.zeros(1000)
    for _ in range(21):
        step = env.step(torch.zeros(1000, dtype=torch.int64))
        age += 1
        lengths.append(age[step.terminated])
        age = torch.where(step.terminated, 0.0, age)
    counts = torch.bincount(torch.cat(lengths).long())
    assert counts[:4].sum() == 0 and len(counts) == 8 and (counts[4:] > 500).all()


def test_the_state_changes_in_place() -> None:
    env = Memory(4, seed=0, max_episode_length=3)
    env.reset()
    before = {name: getattr(env, name).data_ptr() for name in ("cue", "shown", "steps", "lengths")}
    for _ in range(4):
        env.step(torch.zeros(4, dtype=torch.int64))
    env.reset()
    assert before == {name: getattr(env, name).data_ptr() for name in before}


def test_memory_can_be_shown() -> None:
    env = Memory(2, seed=0, max_episode_length=4)
    env.reset()
    pictures = []
    for _ in range(4):
        pictures.append(env.render())
        env.step(torch.zeros(2, dtype=torch.int64))
    assert all(picture.shape == (300, 400, 3) for picture in pictures)
    assert any((a != b).any() for a, b in pairwise(pictures))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_symbols": 1}, "num_symbols is 1"),
        ({"cue_steps": 0}, "cue_steps is 0"),
        ({"max_episode_length": 2}, r"episode_length is 2; use more than cue_steps \(2\)"),
        ({"min_episode_length": 30}, "max_episode_length is 20; use at least 30"),
        ({"distractors": 1.5}, "distractors is 1.5"),
    ],
)
def test_memory_refuses_impossible_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_env("Memory", 2, **options)


def test_memory_refuses_actions_and_states_of_another_shape() -> None:
    env = Memory(4, seed=0)
    env.reset()
    with pytest.raises(ValueError, match=r"expected torch.int64 of shape \(4,\)"):
        env.step(torch.zeros(4, 1))
    with pytest.raises(ValueError, match="saved state has 3 envs, this env has 4"):
        env.load_state_dict(Memory(3, seed=0).state_dict())


# Wrappers


def twins(task: str, wrapped: str, **options: Any) -> tuple[VecEnv, VecEnv]:
    """A task and its wrapped variant with the same random numbers."""
    return make_env(task, 3, seed=0), make_env(wrapped, 3, seed=0, **options)


def test_hidden_velocity_leaves_out_the_velocity_and_nothing_else() -> None:
    plain, hidden = twins("Pendulum", "Pendulum-HiddenVelocity")
    assert torch.equal(plain.reset(5)["policy"][:, :2], hidden.reset(5)["policy"])
    action = torch.ones(3, 1)
    for _ in range(201):
        a, b = plain.step(action), hidden.step(action)
        assert a.final_obs is not None and b.final_obs is not None
        assert torch.equal(a.obs["policy"][:, :2], b.obs["policy"])
        assert torch.equal(a.final_obs["policy"][:, :2], b.final_obs["policy"])
        assert torch.equal(a.reward, b.reward) and torch.equal(a.truncated, b.truncated)


def test_final_observations_that_the_inner_env_leaves_out_are_not_missed() -> None:
    inner: Any = make_env("Pendulum", 2)
    hidden = HiddenVelocity(inner)
    want_final_obs(hidden, ())
    assert not hasattr(hidden, "final_groups")
    inner.final_groups = None
    want_final_obs(hidden, ())
    assert inner.final_groups == ()
    hidden.reset()
    step = inner.step
    inner.step = lambda action: step(action)._replace(final_obs={})
    assert hidden.step(torch.zeros(2, 1)).final_obs == {}


def test_hidden_velocity_of_reach_keeps_space_and_terms_in_step() -> None:
    plain, hidden = twins("Reach-UR5e-IK", "Reach-UR5e-IK-HiddenVelocity")
    spec = spec_of(hidden)
    assert spec.observation_sizes == {"policy": 32 - 6}
    terms = spec.deployment["observation_terms"]["policy"]
    assert [term["name"] for term in terms] == [
        "joint_pos_rel",
        "ee_position",
        "ee_orientation",
        "pose_command",
        "last_action",
    ]
    kept = torch.cat([torch.arange(20), torch.arange(26, 32)])
    assert torch.equal(plain.reset(1)["policy"][:, kept], hidden.reset(1)["policy"])
    assert "joint_vel_rel" in str(spec_of(plain).deployment)  # the inner env's own facts are left alone


def test_terms_to_hide_can_be_chosen() -> None:
    env = make_env("Reach-UR5e-JointPos-HiddenVelocity", 2, hidden=["joint_vel", "ee_"])
    assert spec_of(env).observation_sizes == {"policy": 32 - 6 - 7}
    assert spec_of(make_env("Pendulum-HiddenVelocity", 2, hidden="sin")).observation_sizes == {"policy": 2}


@pytest.mark.parametrize(
    ("env", "hidden", "message"),
    [
        (Null(2), ("vel",), "does not name the terms of observation group 'policy'"),
        (Pendulum(2), ("mass",), "no observation term has any of .*mass.*cos_angle, sin_angle, angular_velocity"),
        (Pendulum(2), ("ang",), "leaves nothing of observation group 'policy'"),
    ],
)
def test_hidden_velocity_refuses_what_it_cannot_hide(env: VecEnv, hidden: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HiddenVelocity(env, hidden)


@pytest.mark.parametrize("delay", [1, 3])
def test_observations_come_late_by_the_delay_and_never_from_another_episode(delay: int) -> None:
    plain = make_env("Pendulum", 3, seed=0, max_episode_length=7)
    late = make_env("Pendulum-Delayed", 3, seed=0, max_episode_length=7, delay=delay)
    first = plain.reset(5)["policy"]
    assert torch.equal(late.reset(5)["policy"], first)
    seen = [first] * (delay + 1)  # of this episode, what a sensor showed, latest last
    for _ in range(22):
        action = torch.randn(3, 1)
        a, b = plain.step(action), late.step(action)
        assert a.final_obs is not None and b.final_obs is not None
        seen.append(a.final_obs["policy"])
        assert torch.equal(b.final_obs["policy"], seen[-1 - delay])
        if a.truncated.all():
            seen = [a.obs["policy"]] * (delay + 1)
        assert torch.equal(b.obs["policy"], seen[-1 - delay])
        assert torch.equal(a.reward, b.reward) and torch.equal(a.truncated, b.truncated)


def test_delay_resets_the_envs_that_ended_and_no_other() -> None:
    env = make_env("Memory", 64, seed=0, min_episode_length=5, max_episode_length=9)
    late = Delayed(env, delay=4)
    late.reset()
    for _ in range(20):
        step = late.step(torch.zeros(64, dtype=torch.int64))
        # An episode's first observation shows the cue; four steps late it still does within the first six.
        assert (step.obs["policy"][step.terminated][:, K] == 1).all()
        assert step.final_obs is not None
        assert (step.final_obs["policy"][:, K + 1] == 0).all()  # the question itself comes too late


def test_wrappers_have_what_the_env_has_and_no_more() -> None:
    inner: Any = Pendulum(2, seed=0)
    for wrapper in (Delayed, HiddenVelocity):
        env: Any = wrapper(inner)
        assert isinstance(env, VecEnv)
        assert env.capturable and env.generator is inner.generator
        assert env.render().shape == (300, 400, 3)
        assert env.task == f"Pendulum-{wrapper.__name__}"
    assert spec_of(Delayed(inner, 5)).deployment["observation_delay_steps"] == 5

    class Bare:
        """No task, no deployment, nothing to save."""

        num_envs, device, max_episode_length = 2, torch.device("cpu"), 5
        observation_spaces = {"policy": spaces.Box(-1, 1, (3,))}  # noqa: RUF012
        action_space = spaces.Discrete(2)

        def reset(self, seed: int | None = None) -> dict[str, Tensor]:
            return {"policy": torch.zeros(2, 3)}

        def step(self, action: Tensor) -> Step:
            over = torch.zeros(2, dtype=torch.bool)
            return Step(self.reset(), torch.zeros(2), over, over, None, {})

        def close(self) -> None:
            self.closed = True

    bare = Bare()
    late = Delayed(bare)
    for name in ("state_dict", "load_state_dict", "render", "generator"):
        assert not hasattr(late, name)
    assert not late.capturable
    late.reset()
    assert late.step(torch.zeros(2)).final_obs is not None  # late enough to be known
    late.close()
    assert bare.closed


def test_a_delayed_env_refuses_a_state_of_another_delay() -> None:
    one, two = make_env("Pendulum-Delayed", 2, delay=2), make_env("Pendulum-Delayed", 2, delay=3)
    with pytest.raises(
        ValueError, match=r"'queue/policy' of Delayed has shape \(2, 2, 3\) in the saved state and \(3, 2"
    ):
        two.load_state_dict(one.state_dict())  # type: ignore[attr-defined]


def test_what_is_on_its_way_is_held_saved_and_no_part_of_a_simulators_stage() -> None:
    inner: Any = make_env("Pendulum", 2, seed=0)

    def hold() -> Any:
        state = inner.state_dict()
        return lambda: inner.load_state_dict(state) is None

    inner.hold = hold
    env: Any = Delayed(inner, delay=2)
    action = torch.ones(2, 1)
    env.reset(1)
    env.step(action)
    state = env.state_dict()
    with lent(env, lambda obs: pytest.fail("episodes go on")):
        env.reset(9)
        env.step(-action)
    rest = [env.step(action).obs["policy"] for _ in range(4)]
    before = {"env": state["env"], "queue": {"policy": state["kept"]["queue/policy"]}}  # as 0.2.0 wrote it
    for saved in (state, before):
        env.reset(5)
        env.load_state_dict(saved)
        assert all(torch.equal(env.step(action).obs["policy"], one) for one in rest)
    inner.exact_state = False  # as of a simulator, whose state is its stage
    told = stage_of(Delayed(inner))
    assert told is not None and told["state"].keys() == inner.state_dict().keys()


def test_options_reach_the_wrapper_and_the_task_and_others_are_refused() -> None:
    env: Any = make_env("Pendulum-Delayed", 2, delay=2, max_episode_length=9)
    assert env.max_episode_length == 9 and env._queue["policy"].shape == (2, 2, 3)
    with pytest.raises(ValueError, match=r"did you mean delay.* valid options are max_episode_length, delay"):
        make_env("Pendulum-Delayed", 2, dely=2)
    with pytest.raises(ValueError, match="unknown option 'delay'"):
        make_env("Pendulum", 2, delay=2)
    with pytest.raises(ValueError, match="delay is 0"):
        make_env("Pendulum-Delayed", 2, delay=0)


@pytest.mark.gpu
@pytest.mark.parametrize("task", ["Memory", "Pendulum-HiddenVelocity", "Pendulum-Delayed"])
def test_recurrent_training_in_graphs_equals_eager(task: str) -> None:
    net = NetworkConfig(hidden_dims=(32,), rnn=RNNConfig(type="lstm", hidden_size=16))
    base = PPOConfig(num_steps=8, num_epochs=2, num_minibatches=4, actor=net, critic=net, precision="fp32")
    flat = []
    for mode in ("graph", "eager"):
        agent = PPO(make_env(task, 64, "cuda", seed=0), replace(base, mode=mode), seed=0)
        agent.learn(30)
        flat.append(torch.cat([optimizer.value for optimizer in agent.optimizers]))
    assert torch.equal(*flat)
