"""What the tasks that run on torch alone share: sizes, random numbers, saving, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rlcore.env import Parameter
from rlcore.envs.parameters import ParameterRows, PushDraws
from rlcore.types import Obs

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_PREFIX = "parameter/"


class TorchEnv:
    """Base of tasks whose state is tensors; with ``_begin`` and ``step`` of its own a task is a ``rlcore.env.VecEnv``.

    A task changes the tensors that ``_buffers`` names in place and draws all its random numbers from ``generator``, so
    that a CUDA graph may capture ``step``. One that cannot be captured says ``capturable = False``.

    Args:
        num_envs: N.
        device: where everything lives.
        seed: of the random generator; random when not given.
        max_episode_length: steps after which an episode is cut.

    Raises:
        ValueError: a number below 1.
    """

    task: str
    observation_spaces: Mapping[str, spaces.Box]
    action_space: spaces.Space[Any]
    capturable = True
    _buffers: ClassVar[tuple[str, ...]]
    """Names of the tensors ``[N, ...]`` that hold everything that the future depends on beside the generator."""

    def __init__(self, num_envs: int, device: str | torch.device, seed: int | None, max_episode_length: int) -> None:
        check_whole(self.task, num_envs=num_envs, max_episode_length=max_episode_length)
        self.num_envs = num_envs
        self.max_episode_length = max_episode_length
        self.steps = torch.zeros(num_envs, dtype=torch.int64, device=device)  # [N], since the episode began
        self.device = self.steps.device
        self.generator = torch.Generator(self.device)
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)

    def reset(self, seed: int | None = None) -> Obs:
        """Start a new episode in every env. Without a seed the env's own random numbers go on."""
        if seed is not None:
            self.generator.manual_seed(seed)
        return self._begin()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the future depends on, random generator included."""
        state: dict[str, Any] = {name: getattr(self, name).clone() for name in self._buffers}
        state["generator"] = self.generator.get_state()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where ``state_dict`` was taken, on the same kind of device.

        Raises:
            ValueError: an entry is missing, or it was taken with another number of envs.
        """
        self._check_saved(state, (*self._buffers, "generator"))
        for name in self._buffers:
            getattr(self, name).copy_(state[name])
        self.generator.set_state(state["generator"].cpu())

    def close(self) -> None:
        """Nothing to release."""

    def _begin(self) -> Obs:
        """First observations of new episodes in every env."""
        raise NotImplementedError

    def _check_action(self, action: Tensor) -> None:
        discrete = isinstance(self.action_space, spaces.Discrete)
        shape = (self.num_envs, *(self.action_space.shape or ()))
        if action.shape != shape or action.dtype.is_floating_point == discrete:
            raise ValueError(
                f"{self.task}: action is {action.dtype} of shape {tuple(action.shape)}; "
                f"expected {'torch.int64' if discrete else 'torch.float32'} of shape {shape}"
            )

    def _check_saved(self, state: Mapping[str, Any], names: tuple[str, ...]) -> None:
        for name in names:
            if name not in state:
                raise ValueError(f"{self.task}: the saved state has no '{name}'; it belongs to another task")
            now, saved = getattr(self, name, None), state[name]
            if isinstance(now, Tensor) and saved.shape != now.shape:
                raise ValueError(
                    f"{self.task}: the saved state has {len(saved)} envs, this env has {self.num_envs}; "
                    f"use num_envs={len(saved)}"
                    if len(saved) != self.num_envs
                    else f"{self.task}: saved '{name}' has shape {tuple(saved.shape)}, this env needs "
                    f"{tuple(now.shape)}; use the options of the saved run"
                )


class PhysicalEnv(TorchEnv):
    """Base of tasks with physical parameters; see ``rlcore.env.Randomizable`` and ``rlcore.env.Pushable``.

    ``reset`` leaves parameters as they are.
    """

    parameters: Mapping[str, Parameter]
    """Of the class, or of the instance before it is initialized."""

    def __init__(self, num_envs: int, device: str | torch.device, seed: int | None, max_episode_length: int) -> None:
        super().__init__(num_envs, device, seed, max_episode_length)
        self._values = ParameterRows(self.task, self.parameters, num_envs, self.device)
        self._draw_push = PushDraws(num_envs, self.device, seed)
        self._constants = self._derived()

    def reset(self, seed: int | None = None) -> Obs:
        """Start a new episode in every env. Without a seed the env's own random numbers go on."""
        if seed is not None:
            self._draw_push.seed(seed)
        return super().reset(seed)

    @torch.no_grad()
    def set_parameters(self, values: Mapping[str, Tensor], where: Tensor) -> None:
        """Give envs other parameters; see ``rlcore.env.Randomizable.set_parameters``.

        Raises:
            ValueError: there is no parameter of a name, or something is not ``[N]``.
        """
        self._values.set(values, where)
        self._derive()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the future depends on, random generator included."""
        parameters = {_PREFIX + name: row for name, row in self._values.state().items()}
        return super().state_dict() | parameters | {"pushes": self._draw_push.state.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where ``state_dict`` was taken; a state from before there were parameters has nominal ones.

        Raises:
            ValueError: an entry is missing, or it was taken with another number of envs.
        """
        super().load_state_dict(state)
        parameters = {key.removeprefix(_PREFIX): row for key, row in state.items() if key.startswith(_PREFIX)}
        self._values.load(parameters)
        if "pushes" in state:
            self._draw_push.state.copy_(state["pushes"])
        self._derive()

    def _derived(self) -> tuple[Tensor, ...]:
        """What ``step`` finds in ``_constants``: worked out from ``_values`` when these change, not in each step."""
        return ()

    def _derive(self) -> None:
        for constant, now in zip(self._constants, self._derived(), strict=True):
            constant.copy_(now)


def check_whole(task: str, **numbers: Any) -> None:
    """Refuse numbers of a task that are to be whole and at least 1.

    Raises:
        ValueError: one is not; the message names it.
    """
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{task}: {name} is {value!r}; it must be a whole number of at least 1")


def drawn(paint: Callable[[Figure], None]) -> NDArray[np.uint8]:
    """A picture ``[300, 400, 3]`` of what a function puts on an empty figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 3), dpi=100)
    canvas = FigureCanvasAgg(figure)
    paint(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    picture: NDArray[np.uint8] = np.array(canvas.buffer_rgba(), dtype=np.uint8)  # type: ignore[no-untyped-call]
    return np.ascontiguousarray(picture[..., :3])
