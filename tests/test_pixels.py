"""Images as observations, and CartPole from pixels: what is drawn and stacked, and that all else is CartPole."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlcore.capture import Captured
from rlcore.env import VecEnv, spec_of
from rlcore.env_check import StepCheck, check_obs
from rlcore.envs import make_env, pixels
from rlcore.envs.classic import CartPole
from rlcore.envs.null import Null
from rlcore.envs.pixels import CartPolePixels
from rlcore.envs.wrappers import Delayed
from rlcore.types import Obs, Step


def drawn_slowly(x: float, angle: float, size: int) -> list[list[int]]:
    """Pixel by pixel: the cart by overlapping areas, the pole by the distance to a line."""
    pixel = pixels.VIEW / size

    def overlap(middle: float, low: float, high: float) -> float:
        return max(0.0, min(middle + pixel / 2, high) - max(middle - pixel / 2, low)) / pixel

    tip = (x + pixels.POLE_LENGTH * math.sin(angle), pixels.RAIL + pixels.POLE_LENGTH * math.cos(angle))
    rows = []
    for i in range(size):
        row = []
        for j in range(size):
            px, py = -pixels.VIEW / 2 + (j + 0.5) * pixel, pixels.VIEW - (i + 0.5) * pixel
            cart = overlap(px, x - pixels.CART_WIDTH / 2, x + pixels.CART_WIDTH / 2)
            cart *= overlap(py, pixels.RAIL - pixels.CART_HEIGHT / 2, pixels.RAIL + pixels.CART_HEIGHT / 2)
            vx, vy = tip[0] - x, tip[1] - pixels.RAIL
            share = min(1.0, max(0.0, ((px - x) * vx + (py - pixels.RAIL) * vy) / (vx * vx + vy * vy)))
            away = math.dist((px, py), (x + share * vx, pixels.RAIL + share * vy))
            pole = min(1.0, max(0.0, (pixels.POLE_RADIUS - away) / pixel + 0.5))
            row.append(round(255 * max(pixels.CART_GRAY * cart, pole)))
        rows.append(row)
    return rows


@pytest.mark.parametrize("size", [16, 64])
def test_pictures_are_those_of_a_plain_drawing(size: int) -> None:
    env = CartPolePixels(num_envs=2, seed=0, size=size)
    for x, angle in ((0.0, 0.0), (-2.4, 0.2), (2.4, -0.2), (0.37, 0.05), (-1.01, -0.13)):
        picture = env.draw(torch.tensor([[x, 9.0, angle, 9.0]]))
        assert picture.shape == (1, size, size) and picture.dtype == torch.uint8
        off = (picture[0].int() - torch.tensor(drawn_slowly(x, angle, size))).abs()
        assert off.max() <= 1 and (off > 0).float().mean() < 0.01  # where float32 rounds to the other side
        assert picture.max() > 100 and (picture == 0).float().mean() > 0.7


def test_motion_of_part_of_a_pixel_can_be_seen() -> None:
    env = CartPolePixels(num_envs=1, seed=0)
    still, cart, pole = env.draw(torch.tensor([[0.0, 0, 0, 0], [0.01, 0, 0, 0], [0, 0, math.radians(0.5), 0]]))
    assert (still != cart).sum() > 10 and (still != pole).sum() > 10  # 0.01 m are an eighth of a pixel


def both(max_episode_length: int, **options: Any) -> tuple[CartPole, CartPolePixels]:
    sizes = {"num_envs": 8, "seed": 3, "max_episode_length": max_episode_length}
    return CartPole(**sizes), CartPolePixels(**sizes, **options)


@pytest.mark.parametrize("num_frames", [1, 2, 4])
def test_all_but_the_view_is_cart_pole(num_frames: int) -> None:
    plain, env = both(30, num_frames=num_frames)
    state, obs = plain.reset()["policy"], env.reset()["policy"]
    shown = [env.draw(state)] * num_frames  # the pictures of the episodes in flight, oldest first
    assert torch.equal(obs, torch.stack(shown, 1))
    generator = torch.Generator().manual_seed(0)
    ends = torch.zeros(2)
    for _ in range(70):
        action = torch.randint(2, (8,), generator=generator)
        theirs, ours = plain.step(action), env.step(action)
        for name in ("reward", "terminated", "truncated"):
            assert torch.equal(getattr(theirs, name), getattr(ours, name))
        assert theirs.final_obs is not None and ours.final_obs is not None
        shown = [*shown[1:], env.draw(theirs.final_obs["policy"])]
        assert torch.equal(ours.final_obs["policy"], torch.stack(shown, 1))
        done = (theirs.terminated | theirs.truncated)[:, None, None]
        first = env.draw(theirs.obs["policy"])
        shown = [torch.where(done, first, picture) for picture in shown]
        assert torch.equal(ours.obs["policy"], torch.stack(shown, 1))
        ends += torch.stack((theirs.terminated.sum(), theirs.truncated.sum()))
    assert ends.min() > 0  # both kinds of end were seen


def test_frames_belong_to_the_state_and_to_nobody_else() -> None:
    env, other = CartPolePixels(num_envs=4, seed=0), CartPolePixels(num_envs=4, seed=9)
    obs = env.reset()["policy"]
    kept = obs.clone()
    action = torch.ones(4, dtype=torch.int64)
    env.step(action)
    assert torch.equal(obs, kept)
    other.load_state_dict(env.state_dict())
    assert torch.equal(env.step(action).obs["policy"], other.step(action).obs["policy"])


@pytest.mark.parametrize(("option", "value"), [("num_frames", 0), ("num_frames", 9), ("size", 8), ("size", 64.0)])
def test_impossible_pictures_are_refused(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"CartPole-Pixels: {option} is {value}; it must be a whole number"):
        make_env("CartPole-Pixels", 2, **{option: value})


def test_images_fit_the_contract() -> None:
    env = make_env("CartPole-Pixels", 4, seed=0)
    assert isinstance(env, VecEnv)
    spec = spec_of(env)
    assert spec.observation_sizes == {} and spec.image_shapes == {"policy": [2, 64, 64]}
    assert spec.image_types == {"policy": "uint8"} and spec.observation_text == "policy 2×64×64"
    check_obs(env, env.reset(), "reset")
    step = env.step(torch.zeros(4, dtype=torch.int64))
    StepCheck(env)(step)
    wrong: dict[str, Tensor] = {"policy": step.obs["policy"].float() / 255}
    with pytest.raises(
        ValueError, match=r"'policy' is torch.float32 of shape .*return torch.uint8 of shape \(4, 2, 64"
    ):
        StepCheck(env)(step._replace(obs=wrong))
    with pytest.raises(ValueError, match=r"'policy' is torch.uint8 of shape \(4, 64, 64\).*\(4, 2, 64, 64\)"):
        check_obs(env, {"policy": step.obs["policy"][:, 0]}, "reset")


def test_step_reads_nothing_on_the_host_and_keeps_its_buffers() -> None:
    class Recorder(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: set[str] = set()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    env = CartPolePixels(num_envs=2, seed=0, max_episode_length=2)
    env.reset()
    places = [getattr(env, name).data_ptr() for name in env._buffers]
    with Recorder() as recorder:
        for _ in range(3):
            env.step(torch.zeros(2, dtype=torch.int64))
    assert "hypot" in recorder.seen and not recorder.seen & {"_local_scalar_dense", "nonzero", "item"}
    assert env.capturable and places == [getattr(env, name).data_ptr() for name in env._buffers]


class Camera(Null):
    """A picture beside the numbers of Null."""

    task = "Camera"

    def __init__(self, num_envs: int, group: str = "camera", **options: Any) -> None:
        super().__init__(num_envs, obs_size=3, action_size=2, **options)
        self.group = group
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,), dtype=np.float32)
        image = gymnasium.spaces.Box(0, 1, (3, 8, 8), dtype=np.float32)
        self.observation_spaces = {"state": self.observation_spaces["policy"], group: image}

    def reset(self, seed: int | None = None) -> Obs:
        return self._seen(super().reset(seed))

    def step(self, action: Tensor) -> Step:
        step = super().step(action)
        assert step.final_obs is not None
        return step._replace(obs=self._seen(step.obs), final_obs=self._seen(step.final_obs))

    def _seen(self, obs: Obs) -> Obs:
        return {"state": obs["policy"], self.group: torch.rand(self.num_envs, 3, 8, 8)}


def test_images_arrive_late_too() -> None:
    plain, env = (
        CartPolePixels(4, seed=0, max_episode_length=5),
        Delayed(CartPolePixels(4, seed=0, max_episode_length=5)),
    )
    seen = [plain.reset()["policy"]] * 4
    assert torch.equal(env.reset()["policy"], seen[0])
    for i in range(7):
        action = torch.full((4,), i % 2)
        seen.append(plain.step(action).obs["policy"])
        step = env.step(action)
        check_obs(env, step.obs, "step")
        if i == 4:  # a new episode
            seen = [seen[-1]] * 4
        assert torch.equal(step.obs["policy"], seen[-4])


@pytest.mark.parametrize("shape", [(8, 8), (1, 3, 8, 8)])
def test_a_group_that_is_neither_vector_nor_image_is_refused(shape: tuple[int, ...]) -> None:
    env = Camera(4)
    env.observation_spaces = {"camera": gymnasium.spaces.Box(0, 255, shape, dtype=np.uint8)}
    with pytest.raises(ValueError, match=r"'camera' is uint8 of shape .*vectors \[O\] and images \[C, H, W\]"):
        spec_of(env)
    for empty in (0,), (0, 8, 8), (3, 0, 8):
        env.observation_spaces = {"camera": gymnasium.spaces.Box(0, 255, empty, dtype=np.uint8)}
        with pytest.raises(ValueError, match=r"'camera' of shape .* is empty; leave it out"):
            spec_of(env)


@pytest.mark.gpu
def test_pictures_of_the_gpu_are_those_of_the_cpu() -> None:
    states = torch.rand(256, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([4.8, 0, 0.4, 0])
    states -= torch.tensor([2.4, 0, 0.2, 0])
    here = CartPolePixels(1).draw(states)
    there = CartPolePixels(1, device="cuda").draw(states.cuda()).cpu()
    off = (here.int() - there.int()).abs()
    assert off.max() <= 1 and (off > 0).float().mean() < 0.01


@pytest.mark.gpu
def test_steps_recorded_as_a_graph_equal_those_as_written() -> None:
    envs = [CartPolePixels(64, device="cuda", seed=0, max_episode_length=15) for _ in range(2)]
    device = envs[0].device
    steps = [
        Captured(lambda action, env=env: tuple(env.step(action)[:5]), mode, device, [env.generator])
        for env, mode in zip(envs, ("graph", "eager"), strict=True)
    ]
    assert torch.equal(*(env.reset()["policy"] for env in envs))
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        action = torch.randint(2, (64,), generator=generator).cuda()
        (obs, *flags, final), (wanted, *wanted_flags, wanted_final) = (step(action) for step in steps)
        assert torch.equal(obs["policy"], wanted["policy"]) and torch.equal(final["policy"], wanted_final["policy"])
        assert all(torch.equal(a, b) for a, b in zip(flags, wanted_flags, strict=True))
    assert steps[0].graph is not None
