"""Memory: a cue shown at the start of an episode must be named at its end; any torch device, no simulator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rlcore.envs.torch_env import TorchEnv, drawn
from rlcore.types import Obs, Step

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Memory(TorchEnv):
    """Remember one of K symbols; implements ``rlcore.env.VecEnv``.

    Observation group ``policy`` ``[N, K + 2]``: the symbol shown (one-hot, zeros for none), whether it is the cue,
    whether it is time to answer. The cue stays for ``cue_steps`` steps; then every step shows nothing or, with
    probability ``distractors``, a random symbol. The last observation shows no symbol and asks for the answer.

    The action is a symbol and counts at the last step only: reward 1 for the cue, else 0, the same as
    ``Step.log["success"]`` ``[N]``. Nothing else pays, and no action changes what is shown. The last observation is the
    same whatever the cue was, so a policy without memory is right in 1 of K episodes, however it is trained.

    Episodes last ``max_episode_length`` steps or, if ``min_episode_length`` is given, a random number between the two.
    Where that is more than a rollout, the cue is out of the rollout in which the answer is given, and a policy has to
    carry its state from one rollout to the next. The answer ends the episode: it is terminated, never truncated.
    """

    task = "Memory"
    signal_names: ClassVar[tuple[str, ...]] = ()
    _buffers = ("cue", "shown", "steps", "lengths")

    def __init__(
        self,
        num_envs: int = 1,
        device: str | torch.device = "cpu",
        seed: int | None = None,
        num_symbols: int = 4,
        max_episode_length: int = 20,
        min_episode_length: int | None = None,
        cue_steps: int = 2,
        distractors: float = 0.5,
    ) -> None:
        """Build the envs; call ``reset`` before ``step``.

        Args:
            num_envs: N.
            device: where everything lives.
            seed: of the random generator; random when not given.
            num_symbols: K.
            max_episode_length: steps of the longest episode.
            min_episode_length: steps of the shortest one; as the longest when not given.
            cue_steps: steps for which the cue is shown.
            distractors: chance in 0..1 that a step between cue and answer shows a random symbol.

        Raises:
            ValueError: a number out of range.
        """
        shortest = max_episode_length if min_episode_length is None else min_episode_length
        whole = {"num_envs": num_envs, "num_symbols": num_symbols, "cue_steps": cue_steps}
        whole |= {"min_episode_length": shortest, "max_episode_length": max_episode_length}
        for name, number in whole.items():
            if isinstance(number, bool) or not isinstance(number, int):
                raise ValueError(f"Memory: {name} is {number!r}; use a whole number")
        if not isinstance(distractors, (int, float)):
            raise ValueError(f"Memory: distractors is {distractors!r}; use 0 to 1")
        for name, value, good, remedy in (
            ("num_envs", num_envs, num_envs >= 1, "use at least 1"),
            ("num_symbols", num_symbols, num_symbols >= 2, "use at least 2"),
            ("cue_steps", cue_steps, cue_steps >= 1, "use at least 1"),
            ("min_episode_length", shortest, shortest > cue_steps, f"use more than cue_steps ({cue_steps})"),
            ("max_episode_length", max_episode_length, max_episode_length >= shortest, f"use at least {shortest}"),
            ("distractors", distractors, 0 <= distractors <= 1, "use 0 to 1"),
        ):
            if not good:
                raise ValueError(f"Memory: {name} is {value}; {remedy}")
        super().__init__(num_envs, device, seed, max_episode_length)
        self.num_symbols = num_symbols
        self.cue_steps = cue_steps
        self.distractors = distractors
        self._shortest = shortest
        self.observation_spaces = {"policy": spaces.Box(0.0, 1.0, (num_symbols + 2,), dtype=np.float32)}
        self.action_space = spaces.Discrete(num_symbols)
        terms = (("symbol", num_symbols), ("is_cue", 1), ("is_question", 1))
        self.deployment: dict[str, Any] = {
            "control_dt": 0.1,  # nothing moves; this is the pace of the animation
            "observation_terms": {"policy": [{"name": name, "size": size} for name, size in terms]},
            "action_terms": [{"name": "answer", "size": 1}],
        }
        self.cue = torch.zeros_like(self.steps)  # [N]
        self.shown = torch.zeros_like(self.steps)  # [N], num_symbols for nothing
        self.lengths = torch.zeros_like(self.steps)  # [N], of the episode in flight
        self._symbols = torch.arange(num_symbols, device=self.device)  # [K]

    @torch.no_grad()
    def step(self, action: Tensor) -> Step:
        """Take an answer, which counts where the question is asked, and show what comes next; see ``VecEnv.step``.

        Raises:
            ValueError: the action has the wrong shape or kind of number.
        """
        self._check_action(action)
        self.steps.add_(1)
        done = self.steps >= self.lengths  # [N]
        right = (done & (action == self.cue)).float()  # [N]
        draws = self._draw()
        self.cue.copy_(torch.where(done, self._new_cue(draws), self.cue))
        self.lengths.copy_(torch.where(done, self._new_length(draws), self.lengths))
        self.steps.masked_fill_(done, 0)
        obs = self._show(draws)
        # Nothing is left to see after the answer.
        final_obs = {"policy": obs["policy"].masked_fill(done[:, None], 0.0)}
        return Step(obs, right, done, torch.zeros_like(done), final_obs, {"success": right.clone()})

    def render(self) -> NDArray[np.uint8]:
        """Picture of env 0, ``[300, 400, 3]``: the symbol shown, framed while it is the cue."""
        return drawn(self._paint)

    def _begin(self) -> Obs:
        draws = self._draw()
        self.cue.copy_(self._new_cue(draws))
        self.lengths.copy_(self._new_length(draws))
        self.steps.zero_()
        return self._show(draws)

    def _paint(self, figure: Figure) -> None:
        step, symbol = int(self.steps[0]), int(self.shown[0])
        asked = step == int(self.lengths[0]) - 1
        color = f"C{symbol}"
        text = "?" if asked else str(symbol) if symbol < self.num_symbols else ""
        frame = {"edgecolor": color, "facecolor": "none", "linewidth": 6} if step < self.cue_steps else None
        figure.text(0.5, 0.5, text, size=80, ha="center", va="center", color="black" if asked else color, bbox=frame)
        figure.text(0.02, 0.02, f"step {step + 1} of {int(self.lengths[0])}, cue {int(self.cue[0])}", size=10)

    def _draw(self) -> Tensor:
        """All random numbers of one step, uniform in 0..1, ``[4, N]``."""
        return torch.rand(4, self.num_envs, generator=self.generator, device=self.device)

    def _new_cue(self, draws: Tensor) -> Tensor:
        return self._integer(draws[0], self.num_symbols)

    def _new_length(self, draws: Tensor) -> Tensor:
        return self._shortest + self._integer(draws[1], self.max_episode_length - self._shortest + 1)

    def _show(self, draws: Tensor) -> Obs:
        """The observation of the present step."""
        is_cue = self.steps < self.cue_steps  # [N]
        is_question = self.steps == self.lengths - 1  # [N]
        distractor = torch.where(
            (draws[2] < self.distractors) & ~is_question, self._integer(draws[3], self.num_symbols), self.num_symbols
        )
        self.shown.copy_(torch.where(is_cue, self.cue, distractor))
        symbol = self.shown[:, None] == self._symbols  # [N, K]
        return {"policy": torch.cat((symbol, is_cue[:, None], is_question[:, None]), dim=1).float()}

    def _integer(self, uniform: Tensor, count: int) -> Tensor:
        """Whole numbers 0..count-1 from uniform ones in 0..1."""
        # clamp: in float32 the product with a number just below 1 may round up to count.
        return (uniform * count).long().clamp(max=count - 1)
