"""Tasks whose steps cost something beside the reward, as the signal ``cost``; any torch device, no simulator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rlcore.env import Parameter
from rlcore.envs.torch_env import PhysicalEnv, TorchEnv, drawn
from rlcore.types import Obs, Step

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Budget(TorchEnv):
    """Spend effort where all of it pays: the best return under a limit on the cost is known in closed form.

    With effort u, the action cut to 0..1, a step pays u and costs u², as the signal ``cost`` ``[N]``. An episode is cut
    after T = ``max_episode_length`` steps. Since the cost is convex, the best way to stay within a cost of d for an
    episode is an equal effort of ``sqrt(d / T)``, which returns ``sqrt(d T)``: 50 at a cost of 25, with T = 100.
    Without a limit it is full effort, which returns T at a cost of T.

    Observation group ``policy`` ``[N, 1]``: the share of the episode that is over.
    """

    task = "Budget"
    signal_names: ClassVar[tuple[str, ...]] = ("cost",)
    _buffers = ("steps",)
    deployment: ClassVar[dict[str, Any]] = {
        "control_dt": 0.1,  # nothing moves; this is the pace of the animation
        "observation_terms": {"policy": [{"name": "time", "size": 1}]},
        "action_terms": [{"name": "effort", "size": 1, "scale": 1.0, "offset": 0.0}],
    }
    action_space: spaces.Space[Any] = spaces.Box(-1.0, 1.0, (1,), dtype=np.float32)

    def __init__(
        self,
        num_envs: int,
        device: str | torch.device = "cpu",
        seed: int | None = None,
        max_episode_length: int = 100,
    ) -> None:
        """Build the envs; call ``reset`` before ``step``.

        Args:
            num_envs: N.
            device: where everything lives.
            seed: of the random generator, from which nothing is drawn.
            max_episode_length: T, steps after which an episode is cut.

        Raises:
            ValueError: a number below 1.
        """
        super().__init__(num_envs, device, seed, max_episode_length)
        self.observation_spaces = {"policy": spaces.Box(0.0, 1.0, (1,), dtype=np.float32)}
        self.effort = torch.zeros(num_envs, device=self.device)  # [N], of the last step, for the picture

    @torch.no_grad()
    def step(self, action: Tensor) -> Step:
        """Spend an effort; see ``VecEnv.step``.

        Raises:
            ValueError: the action has the wrong shape or kind of number.
        """
        self._check_action(action)
        effort = action.squeeze(1).clamp(0.0, 1.0)  # [N]
        self.effort.copy_(effort)
        self.steps.add_(1)
        done = self.steps >= self.max_episode_length  # [N]
        final_obs = self._observe()
        self.steps.masked_fill_(done, 0)
        signals = {"cost": effort.square()}
        return Step(self._observe(), effort, torch.zeros_like(done), done, final_obs, {}, None, signals)

    def render(self) -> NDArray[np.uint8]:
        """Picture of env 0, ``[300, 400, 3]``: its effort and how much of the episode is over."""
        return drawn(self._paint)

    def _begin(self) -> Obs:
        self.steps.zero_()
        return self._observe()

    def _observe(self) -> Obs:
        return {"policy": (self.steps / self.max_episode_length).unsqueeze(1)}  # [N, 1]

    def _paint(self, figure: Figure) -> None:
        axes = figure.subplots()
        axes.bar(["effort", "time"], [float(self.effort[0]), int(self.steps[0]) / self.max_episode_length])
        axes.set(ylim=(0.0, 1.0))


class Detour(PhysicalEnv):
    """Move a point to a goal behind a disc that it must not enter.

    State: position (m). The point starts 1 m left of the disc's middle, up to 0.3 m above or below it; the goal is 1 m
    to the right. Observation group ``policy`` ``[N, 2]``: the position. Action: the velocity in m/s, cut to ±1 in each
    direction. Reward: minus the distance to the goal, so that the straight way, through the disc, pays most. A step
    that ends inside the disc costs 1, as the signal ``cost`` ``[N]``. An episode is cut after ``max_episode_length``
    steps of 0.05 s; ``Step.log["success"]`` ``[N]`` is whether it ends within 0.1 m of the goal.
    """

    task = "Detour"
    signal_names: ClassVar[tuple[str, ...]] = ("cost",)
    _buffers = ("position", "steps")
    deployment: ClassVar[dict[str, Any]] = {
        "control_dt": 0.05,
        "observation_terms": {"policy": [{"name": "position", "size": 2}]},
        "action_terms": [{"name": "velocity", "size": 2, "scale": 1.0, "offset": 0.0}],
    }
    action_space: spaces.Space[Any] = spaces.Box(-1.0, 1.0, (2,), dtype=np.float32)

    parameters: Mapping[str, Parameter] = {
        "speed": Parameter(nominal=1.0, low=0.5, high=1.5),  # factor on the velocity that is commanded
        "radius": Parameter(nominal=0.4, low=0.2, high=0.6, unit="m"),  # of the disc, whose middle is the origin
    }
    dt = 0.05  # s
    goal = (1.0, 0.0)  # m
    reach = 0.1  # m from the goal count as success
    size = 1.5  # m, positions are cut to +- this

    def __init__(
        self,
        num_envs: int,
        device: str | torch.device = "cpu",
        seed: int | None = None,
        max_episode_length: int = 80,
    ) -> None:
        """Build the envs; call ``reset`` before ``step``.

        Args:
            num_envs: N.
            device: where everything lives.
            seed: of the random generator; random when not given.
            max_episode_length: steps after which an episode is cut.

        Raises:
            ValueError: a number below 1.
        """
        super().__init__(num_envs, device, seed, max_episode_length)
        self.observation_spaces = {"policy": spaces.Box(-self.size, self.size, (2,), dtype=np.float32)}
        self.position = torch.zeros(num_envs, 2, device=self.device)  # [N, 2]
        self._goal = torch.tensor(self.goal, device=self.device)  # [2]

    @torch.no_grad()
    def step(self, action: Tensor) -> Step:
        """Move for 0.05 s; see ``VecEnv.step``.

        Raises:
            ValueError: the action has the wrong shape or kind of number.
        """
        self._check_action(action)
        (way,) = self._constants  # [N, 1] m, of a step at full speed
        reached = (self.position + way * action.clamp(-1.0, 1.0)).clamp(-self.size, self.size)  # [N, 2]
        distance = (reached - self._goal).norm(dim=1)  # [N]
        signals = {"cost": (reached.norm(dim=1) < self._values["radius"]).float()}
        self.steps.add_(1)
        done = self.steps >= self.max_episode_length  # [N]
        self.steps.masked_fill_(done, 0)
        self.position.copy_(torch.where(done[:, None], self._start(), reached))
        log: dict[str, Tensor | float] = {"success": (distance < self.reach).float()}
        obs = {"policy": self.position.clone()}
        return Step(obs, -distance, torch.zeros_like(done), done, {"policy": reached}, log, None, signals)

    def render(self) -> NDArray[np.uint8]:
        """Picture of env 0, ``[300, 400, 3]``: the disc, the goal and the point."""
        return drawn(self._paint)

    def _begin(self) -> Obs:
        self.steps.zero_()
        self.position.copy_(self._start())
        return {"policy": self.position.clone()}

    def _derived(self) -> tuple[Tensor, ...]:
        return (self.dt * self._values["speed"][:, None],)

    def _start(self) -> Tensor:
        """Where new episodes begin, ``[N, 2]``."""
        y = torch.empty_like(self.position[:, 0]).uniform_(-0.3, 0.3, generator=self.generator)
        return torch.stack((torch.full_like(y, -1.0), y), dim=1)

    def _paint(self, figure: Figure) -> None:
        axes = figure.subplots()
        axes.set(xlim=(-self.size, self.size), ylim=(-self.size, self.size), aspect="equal")
        disc = float(self._values["radius"][0])
        for (x, y), radius, color in (((0.0, 0.0), disc, "tab:red"), (self.goal, self.reach, "tab:green")):
            angle = np.linspace(0.0, 2.0 * np.pi, 60)
            axes.fill(x + radius * np.cos(angle), y + radius * np.sin(angle), color=color)
        axes.plot(*self.position[0].tolist(), marker="o", color="black")
