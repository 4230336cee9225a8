"""CartPole as a camera sees it: the smallest task of images, drawn on the device by tensor arithmetic."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn.functional import pad

from rlcore.envs.classic import CartPole
from rlcore.types import Obs

VIEW = 5.0
"""Width and height of what is seen, m; the middle of the track is in the middle."""
RAIL = 1.5
"""Height of the cart's middle above the lower edge, m."""
CART_WIDTH, CART_HEIGHT, CART_GRAY = 0.8, 0.4, 0.5
POLE_LENGTH, POLE_RADIUS = 2.5, 0.1
"""The pole is drawn longer than it is, so that a small angle moves its end by part of a pixel that can be seen."""


class CartPolePixels(CartPole):
    """``CartPole`` from pixels: the same physics, rewards and ends, and not a number of the state.

    Observation group ``policy`` ``[N, S, H, W]`` uint8: the last S pictures, the newest last, gray on black. Two show
    how fast cart and pole move; edges are smooth, so that motion of less than a pixel shows too. A new episode begins
    with S times its first picture, and ``final_obs`` ends with the last picture of the old one.
    """

    task = "CartPole-Pixels"
    signal_names: ClassVar[tuple[str, ...]] = ()
    _buffers = ("state", "steps", "frames")
    deployment: ClassVar[dict[str, Any]] = {
        key: value for key, value in CartPole.deployment.items() if key != "observation_terms"
    }

    def __init__(
        self,
        num_envs: int,
        device: str | torch.device = "cpu",
        seed: int | None = None,
        max_episode_length: int = 500,
        num_frames: int = 2,
        size: int = 64,
    ) -> None:
        """Build the envs; call ``reset`` before ``step``.

        Args:
            num_envs: N.
            device: where everything lives.
            seed: of the random generator; random when not given.
            max_episode_length: steps after which an episode is cut.
            num_frames: S, 1 to 8; with 1 speeds cannot be seen, which takes a recurrent policy.
            size: H and W, 16 to 256.

        Raises:
            ValueError: a number out of range.
        """
        super().__init__(num_envs, device, seed, max_episode_length)
        for name, value, low, high in (("num_frames", num_frames, 1, 8), ("size", size, 16, 256)):
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"{self.task}: {name} is {value!r}; it must be a whole number of {low} to {high}")
        self.observation_spaces = {"policy": spaces.Box(0, 255, (num_frames, size, size), dtype=np.uint8)}
        self.frames = torch.zeros(num_envs, num_frames, size, size, dtype=torch.uint8, device=self.device)
        middles = (torch.arange(size, device=self.device) + 0.5) * (VIEW / size)  # m, of pixels
        self._pixel = VIEW / size  # m
        self._x = middles - VIEW / 2  # [W]
        up = VIEW - RAIL - middles  # [H], above the rail, from the upper edge down
        # Above and below what can be drawn, however the pole stands while an episode lasts, all is black.
        reach = 2.0 * self._pixel
        self._above = int((up > POLE_LENGTH + POLE_RADIUS + reach).sum())
        self._below = int((up < -0.5 * CART_HEIGHT - reach).sum())
        self._y = up[self._above : size - self._below]

    def draw(self, state: Tensor) -> Tensor:
        """Pictures ``[M, H, W]`` uint8 of states ``[M, 4]``.

        What covers part of a pixel gives it as much of its brightness: of the cart exactly, of the pole, which has
        round ends, by the distance of the pixel's middle from its edge.
        """
        x, sin, cos = (part[:, None, None] for part in (state[:, 0], state[:, 2].sin(), state[:, 2].cos()))
        right, up = self._x - x, self._y[:, None]  # [M, 1, W] and [R, 1], m from the middle of the cart
        cart = self._covered(right, CART_WIDTH) * self._covered(up, CART_HEIGHT)  # [M, R, W]
        along = right * sin + up * cos
        away = torch.hypot(along - along.clamp(0.0, POLE_LENGTH), right * cos - up * sin)  # m, from its middle line
        pole = ((POLE_RADIUS - away) / self._pixel + 0.5).clamp(0.0, 1.0)
        rows = (255.0 * torch.maximum(CART_GRAY * cart, pole)).round().to(torch.uint8)
        return pad(rows, (0, 0, self._above, self._below))

    def _covered(self, middle: Tensor, width: float) -> Tensor:
        """Fraction of a pixel within ``width / 2`` of zero, by where its middle is."""
        return ((0.5 * width - middle.abs()) / self._pixel + 0.5).clamp(0.0, 1.0)

    def _begin(self) -> Obs:
        super()._begin()
        self.frames.copy_(self.draw(self.state)[:, None].expand_as(self.frames))
        return {"policy": self.frames.clone()}

    def _observations(self, reached: Tensor, done: Tensor) -> tuple[Obs, Obs]:
        first, last = self.draw(torch.cat((self.state, reached)))[:, None].chunk(2)  # [N, 1, H, W]
        final = torch.cat((self.frames[:, 1:], last), dim=1)  # [N, S, H, W]
        self.frames.copy_(torch.where(done[:, None, None, None], first, final))
        return {"policy": self.frames.clone()}, {"policy": final}
