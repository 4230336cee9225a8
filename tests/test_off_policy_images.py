"""Learning from images out of a replay memory: what it keeps of them, and SAC and DDPG."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import Place
from gymnasium import spaces
from torch import Tensor

from rlcore import DDPG, SAC, ConfigError, DDPGConfig, NetworkConfig, SACConfig, Step, spec_of
from rlcore.critics import encoded
from rlcore.encoders import CNNConfig
from rlcore.envs import make_env
from rlcore.learn import resume, snapshot
from rlcore.optimizer import FlatAdam, flat
from rlcore.recurrent import RNNConfig
from rlcore.replay import Replay, minibatches
from rlcore.train.evaluate import evaluate

CPU = torch.device("cpu")
AGENTS: dict[Any, Any] = {SAC: SACConfig, DDPG: DDPGConfig}
SHAPES = {"camera": (2, 3, 5), "depth": (1, 2, 2)}


class Bright:
    """Each step shows a bright column in one of four places, in the dark of noise; the action is to point at it.

    ``wide`` adds a vector that says whether to point at the mirror image instead, and a second image of floats, in
    which nothing is; some of its numbers are none.
    """

    num_envs, device, max_episode_length = 16, CPU, 8

    def __init__(self, wide: bool = False, seed: int = 0) -> None:
        self.wide = wide
        self.generator = torch.Generator().manual_seed(seed)
        self.observation_spaces: dict[str, Any] = {"policy": spaces.Box(0, 255, (1, 8, 16), np.uint8)}
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)
        if wide:
            self.observation_spaces["mirror"] = spaces.Box(-1, 1, (1,), np.float32)
            self.observation_spaces["depth"] = spaces.Box(-np.inf, np.inf, (2, 8, 8), np.float32)
        self.age = torch.zeros(self.num_envs, dtype=torch.int64)

    def _obs(self) -> dict[str, Tensor]:
        n, g = self.num_envs, self.generator
        place = torch.randint(4, (n, 1), generator=g)
        image = torch.randint(0, 60, (n, 1, 8, 16), generator=g, dtype=torch.uint8)
        image[(torch.arange(16) // 4 == place).view(n, 1, 1, 16).expand_as(image)] = 200
        self.aim = (place[:, 0] - 1.5) / 2  # where it is, of -1..1
        obs = {"policy": image}
        if self.wide:
            obs["mirror"] = torch.randint(2, (n, 1), generator=g) * 2.0 - 1
            self.aim = self.aim * obs["mirror"][:, 0]
            obs["depth"] = torch.randn(n, 2, 8, 8, generator=g)
            obs["depth"][0] = torch.inf
        return obs

    def reset(self, seed: int | None = None) -> dict[str, Tensor]:
        if seed is not None:
            self.generator.manual_seed(seed)
        self.age.zero_()
        return self._obs()

    def step(self, action: Tensor) -> Step:
        reward = 1 - (action[:, 0] - self.aim).abs()
        self.age += 1
        truncated = self.age >= self.max_episode_length
        final, obs = self._obs(), self._obs()
        self.age[truncated] = 0
        return Step(obs, reward, torch.zeros_like(truncated), truncated, final, {})

    def state_dict(self) -> dict[str, Any]:
        return {"age": self.age, "aim": self.aim, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.age.copy_(state["age"])
        self.aim = state["aim"].clone()
        self.generator.set_state(state["generator"].clone())

    def close(self) -> None:
        pass


def build(kind: Any, env: Any = None, seed: int = 1, **changes: Any) -> Any:
    net = NetworkConfig(
        hidden_dims=(32,), activation="relu", cnn=CNNConfig(channels=(8,), kernel_sizes=(4,), strides=(4,))
    )
    common: dict[str, Any] = {
        "actor": net, "critic": net, "learning_starts": 64, "buffer_size": 2048, "batch_size": 32, "num_updates": 2,
        "learning_rate": 3e-3, "gamma": 0.5, "random_shift": 1,
    }  # fmt: skip
    return kind(Bright() if env is None else env, AGENTS[kind](**{**common, **changes}), seed=seed)


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("count", [6, 9, 30])  # not full, full, and many times over
def test_images_come_back_as_they_were_written(place: Place, count: int, n_step: int) -> None:
    """Against steps kept in a list: windows that end with episodes, final images, and never over the seam."""
    envs, rows, timed_out = 3, 9, 0
    types = {"camera": "uint8", "depth": "float32"}
    replay = Replay(rows * envs, envs, {"a": 2}, 1, 5, place.device, home=place.home, images=SHAPES, image_types=types)
    assert replay.obs["camera"].dtype == torch.uint8 and replay.obs["camera"].nbytes == rows * envs * 30
    history: list[dict[str, Any]] = []

    def observations() -> dict[str, Tensor]:
        camera = torch.randint(256, (envs, *SHAPES["camera"]), dtype=torch.uint8)
        return {"a": torch.randn(envs, 2), "camera": camera, "depth": torch.randn(envs, *SHAPES["depth"])}

    for _ in range(count):
        over = torch.rand(2, envs) < 0.2
        row = {"obs": observations(), "action": torch.randn(envs, 1), "reward": torch.randn(envs)}
        row |= {"terminated": over[0], "truncated": over[1], "final_obs": observations()}
        history.append(row)
        there = {key: {g: x.to(place.device) for g, x in v.items()} if isinstance(v, dict) else v.to(place.device)
                 for key, v in row.items()}  # fmt: skip
        replay.write(**there)
    for t in range(max(0, count - rows), count - n_step):
        for n in range(envs):
            start, env = (torch.tensor([i], device=place.device) for i in (t % rows, n))
            found = replay.window(start, env, 0.9, n_step)
            last = next(
                (i for i in range(t, t + n_step) if (history[i]["terminated"] | history[i]["truncated"])[n]), None
            )
            follows = history[t + n_step]["obs"] if last is None else history[last]["final_obs"]
            assert float(found.weight) == 1
            for group in ("a", "camera", "depth"):
                value = history[t]["obs"][group][n]
                assert found.obs[group].dtype == value.dtype and torch.equal(found.obs[group][0].cpu(), value)
                if last is None or not history[last]["terminated"][n]:
                    assert torch.equal(found.next_obs[group][0].cpu(), follows[group][n])
                    timed_out += last is not None
    assert timed_out > 0


def test_large_images_come_back_whole(place: Place) -> None:
    """Wider than what one program of the kernel reads, and no multiple of it."""
    types = {"camera": "uint8"}
    replay = Replay(8, 2, {}, 1, 5, place.device, home=place.home, images={"camera": (3, 45, 61)}, image_types=types)
    written = torch.randint(256, (4, 2, 3, 45, 61), dtype=torch.uint8).to(place.device)
    last, zeros = 255 - written, torch.zeros(2, device=place.device)
    for t in range(4):
        over = (zeros == 0) & (t == 1)
        replay.write({"camera": written[t]}, zeros.unsqueeze(1), zeros, zeros > 0, over, {"camera": last[t]})
    found = replay.window(*(torch.tensor(x, device=place.device) for x in ([0, 1], [1, 0])), 0.9)
    assert torch.equal(found.obs["camera"], torch.stack([written[0, 1], written[1, 0]]))
    assert torch.equal(found.next_obs["camera"], torch.stack([written[1, 1], last[1, 0]]))


def test_the_memory_is_estimated_to_the_byte_and_bf16_is_for_floats() -> None:
    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
        replay = Replay(900, 9, {"a": 2}, 3, 50, CPU, dtype, images=SHAPES, image_types={"camera": "uint8"})
        own = [replay.action, replay.reward, replay.end, *replay.obs.values(), *replay.final_obs.values()]
        assert replay.num_bytes == sum(tensor.nbytes for tensor in own)
        assert [ring.element_size() for ring in replay.obs.values()] == [size, 1, size]


def test_what_does_not_fit_is_refused_with_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlcore.device_memory.free_memory", lambda device: 2**20)
    with pytest.raises(
        ConfigError, match=r"buffer_size: 2000 transitions take .* MiB .*; set buffer_size to \d+ or less$"
    ):
        Replay(2000, 4, {}, 1, 100, CPU, images={"camera": (1, 64, 64)}, image_types={"camera": "uint8"})
    with pytest.raises(ConfigError, match="or store_obs to bf16"):
        Replay(2000, 4, {}, 1, 100, CPU, images={"camera": (1, 10, 14)})


@pytest.mark.parametrize("kind", AGENTS)
def test_an_image_task_is_learned(kind: Any) -> None:
    """By chance, or pointing at the middle, a step earns half; the noise of the image and the shift blur the aim."""
    agent = build(kind)
    agent.learn(150)
    result = evaluate(Bright(seed=3), agent.policy, seed=5)
    assert result.mean_return / Bright.max_episode_length > 0.85


def test_images_are_read_beside_vectors_and_other_images() -> None:
    """Without the vector pointing at the middle is best, half off; images of floats that are not finite count as 0."""
    groups = ("policy", "mirror", "depth")
    agent = build(SAC, Bright(wide=True), actor_obs=groups, critic_obs=groups, num_updates=4)
    assert agent.policy.groups == ("mirror",) and list(agent.policy.raw_shapes) == ["policy", "depth"]
    agent.learn(200)
    assert agent.replay.obs["depth"].dtype == torch.float32 and int(agent.replay.broken(100).sum()) == 0
    env = Bright(wide=True, seed=3)
    obs = env.reset(4)
    obs["depth"][0] = 0
    with torch.no_grad():
        assert float((agent.policy(obs)[0][:, 0] - env.aim).abs().mean()) < 0.3


@pytest.mark.parametrize("kind", AGENTS)
def test_the_critics_loss_alone_learns_the_encoder_and_targets_follow_it(kind: Any) -> None:
    agent = build(kind, tau=0.25)
    agent.learn(8)
    policy, critics = agent.policy, agent.critics
    (shared,) = policy.encoders.cnns
    assert shared is critics.encoders.cnns[0]
    weights = list(shared.parameters())
    assert not any(p is q for p in weights for q in agent.actor_optimizer.parameters)
    (target,) = agent.target_critics.encoders.cnns
    if kind is DDPG:
        assert agent.target_policy.encoders.cnns[0] is target
    before, old = ([p.detach().clone() for p in module.parameters()] for module in (shared, target))
    (batch,) = minibatches(agent._batch(agent.replay.sample(32, 0.5)), 1)
    agent._critic_step, step = lambda *args: {}, agent._critic_step  # the actor's step alone
    agent._gradient_step(batch, with_actor=True)
    assert all(torch.equal(a, b) for a, b in zip(before, weights, strict=True))
    agent._critic_step = step
    old = [p.detach().clone() for p in target.parameters()]
    agent._gradient_step(batch, with_actor=True)
    assert not any(torch.equal(a, b) for a, b in zip(before, weights, strict=True))
    for was, now, new in zip(old, target.parameters(), weights, strict=True):
        torch.testing.assert_close(now, 0.75 * was + 0.25 * new.detach())


@pytest.mark.parametrize("kind", AGENTS)
def test_networks_are_given_the_features_of_their_own_encoders(kind: Any) -> None:
    """Recomputed group by group; the depth is read by the actor alone, which learns its encoder itself."""
    groups = ("policy", "mirror", "depth")
    agent = build(kind, Bright(wide=True), actor_obs=groups, critic_obs=("policy", "mirror"))
    agent.learn(8)
    drawn = agent._batch(agent.replay.sample(32, 0.5))
    following = agent.target_policy if kind is DDPG else agent.policy
    batch = encoded(drawn, agent.policy, agent.critics, following, agent.target_critics)
    for name, network, raw in (
        ("actor_obs", agent.policy, drawn.raw),
        ("critic_obs", agent.critics, drawn.raw),
        ("next_actor_obs", following, drawn.next_raw),
        ("next_critic_obs", agent.target_critics, drawn.next_raw),
    ):
        read = [group for group in ("policy", "depth") if group in network.raw_shapes]
        parts = [cnn(raw[group]) for group, cnn in zip(read, network.encoders.cnns, strict=True)]
        torch.testing.assert_close(getattr(batch, name), torch.cat([*parts, getattr(drawn, name)], -1))
    depth = list(agent.policy.encoders.cnns[1].parameters())
    assert {id(p) for p in depth} <= {id(p) for p in agent.actor_optimizer.parameters}
    before = [p.detach().clone() for p in depth]
    agent._gradient_step(drawn, with_actor=True)
    assert not any(torch.equal(a, b) for a, b in zip(before, depth, strict=True))


def test_images_are_shifted_when_they_are_drawn_and_stored_as_they_came() -> None:
    agent, still = build(SAC, random_shift=3), build(SAC, random_shift=0)
    for learner in (agent, still):
        learner.learn(6)
    raw = agent.replay.sample(32, 0.5)
    for learner, moved in ((agent, True), (still, False)):
        batch = learner._batch(raw)
        for drawn, stored in ((batch.raw, raw.obs), (batch.next_raw, raw.next_obs)):
            assert drawn["policy"].dtype == torch.uint8
            assert torch.equal(drawn["policy"], stored["policy"]) != moved
    assert torch.equal(agent.replay.obs["policy"][:4], still.replay.obs["policy"][:4])  # before learning begins


@pytest.mark.parametrize("kind", AGENTS)
def test_a_resumed_run_goes_on_bitwise(kind: Any) -> None:
    groups = ("policy", "mirror", "depth")
    changes = {"actor_obs": groups, "critic_obs": groups, "policy_delay": 2}
    whole = build(kind, Bright(wide=True), **changes)
    whole.learn(12)
    env = Bright(wide=True)
    half = build(kind, env, **changes)
    content = snapshot(env, half, half.learn(7))
    env = Bright(wide=True, seed=9)
    other = build(kind, env, seed=5, **changes)
    progress, exact = resume(env, other, content)
    assert exact
    other.learn(12, progress=progress)
    for name in ("policy", "critics", "target_critics"):
        pairs = zip(getattr(whole, name).parameters(), getattr(other, name).parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    recording = other.recording()
    assert recording["policy"].dtype == torch.uint8 and recording["policy"].shape[2:] == (1, 8, 16)


def test_layers_stay_the_first_part_of_the_optimizers_buffer_where_encoders_follow() -> None:
    """Kernels for small networks ask for them in one buffer; one of its own would part them from the optimizer."""
    agent = build(SAC)
    parts: list[tuple[list[Any], FlatAdam]] = [
        (list(agent.critics.trunks.parameters()) + list(agent.critics.heads.parameters()), agent.critic_optimizer),
        (list(agent.policy.trunk.parameters()) + list(agent.policy.head.parameters()), agent.actor_optimizer),
    ]
    for layers, optimizer in parts:
        assert flat(layers).data_ptr() == optimizer.value.data_ptr()
        assert all(a is b for a, b in zip(layers, optimizer.parameters, strict=False))
    assert len(flat(parts[0][0])) < len(agent.critic_optimizer.value)


def test_groups_that_nobody_reads_are_named_and_the_shared_encoder_has_one_form() -> None:
    agent = build(SAC, Bright(wide=True))
    assert agent.notes[0].startswith("observation groups that nobody reads: mirror, depth")
    with pytest.raises(ConfigError, match=r"critic\.cnn: actor and critics share the encoder of 'policy'"):
        build(SAC, critic=NetworkConfig(cnn=CNNConfig(channels=(4,))))
    with pytest.raises(ConfigError, match="random_shift: -1 is not possible; set 0 or more"):
        build(SAC, random_shift=-1)
    build(SAC, Bright(wide=True), critic_obs=("mirror",), critic=NetworkConfig(hidden_dims=(8,)))


@pytest.mark.parametrize("kind", AGENTS)
def test_recurrent_networks_and_choices_are_refused(kind: Any) -> None:
    with pytest.raises(ConfigError, match=r"actor\.rnn\.type: 'gru' is not possible; recurrent layers need ppo"):
        build(kind, actor=NetworkConfig(rnn=RNNConfig(type="gru")))
    with pytest.raises(ConfigError, match="CartPole-Pixels has discrete actions, which SAC and DDPG cannot choose"):
        build(kind, make_env("CartPole-Pixels", 4))

    class Several(Bright):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = spaces.MultiDiscrete([4, 2])  # type: ignore[assignment]

    assert spec_of(Several()).action_parts == [4, 2]
    with pytest.raises(ConfigError, match="discrete actions, which SAC and DDPG cannot choose"):
        build(kind, Several())
