"""A healthy env, and one with a single fault for each thing that ``rlcore doctor`` is to find."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import torch
from gymnasium import spaces
from torch import Tensor

from rlcore import Step
from rlcore.env import Parameter


class Healthy:
    """Push points about, so that they stay near zero; cut after 50 steps."""

    deployment: ClassVar[dict[str, Any]] = {
        "observation_terms": {
            "policy": [{"name": "position", "size": 2}, {"name": "velocity", "size": 2}, {"name": "extra", "size": 1}]
        }
    }
    max_episode_length = 50
    high = 1.0

    def __init__(self, num_envs: int, seed: int | None = None) -> None:
        self.num_envs, self.device = num_envs, torch.device("cpu")
        self.observation_spaces = {"policy": spaces.Box(-float("inf"), float("inf"), (5,))}
        self.action_space = spaces.Box(-self.high, self.high, (2,))
        self.generator = torch.Generator().manual_seed(0 if seed is None else seed)
        self.length = self.max_episode_length

    def reset(self, seed: int | None = None) -> dict[str, Tensor]:
        if seed is not None:
            self.generator.manual_seed(seed)
        n = self.num_envs
        self.x, self.v, self.t = self.noise(n, 2), torch.zeros(n, 2), torch.zeros(n, dtype=torch.long)
        return self.observe()

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def observe(self) -> dict[str, Tensor]:
        return {"policy": torch.cat([self.x, self.v, self.extra()], 1)}

    def extra(self) -> Tensor:
        return self.x.norm(dim=1, keepdim=True)

    def reward(self, action: Tensor) -> Tensor:
        return -self.x.norm(dim=1)

    def ends(self) -> tuple[Tensor, Tensor]:
        return self.x.norm(dim=1) > 20, self.t >= self.length

    def move(self, action: Tensor) -> None:
        self.v = 0.9 * self.v + 0.1 * action + 0.01 * self.noise(self.num_envs, 2)
        self.x = self.x + 0.1 * self.v

    def step(self, action: Tensor) -> Step:
        before = self.observe()
        self.move(action)
        self.t = self.t + 1
        reward, (terminated, truncated), reached = self.reward(action), self.ends(), self.observe()
        done, fresh = (terminated | truncated).unsqueeze(1), self.noise(self.num_envs, 2)
        self.x, self.v = torch.where(done, fresh, self.x), torch.where(done, torch.zeros_like(self.v), self.v)
        self.t = torch.where(done.squeeze(1), torch.zeros_like(self.t), self.t)
        obs = self.observe()
        return Step(obs, reward, terminated, truncated, self.final(before, reached, obs), {})

    def final(self, before: Any, reached: Any, after: Any) -> Any:
        return reached

    def close(self) -> None:
        pass


SCALED: dict[str, Any] = Healthy.deployment | {"action_terms": [{"name": "push", "size": 2, "scale": 1.0}]}


class Dead(Healthy):
    def extra(self) -> Tensor:
        return torch.zeros(self.num_envs, 1)


class ConstantTerm(Healthy):
    def extra(self) -> Tensor:
        return torch.full((self.num_envs, 1), 5000.0)


class Unscaled(Healthy):
    def extra(self) -> Tensor:
        return 1e4 * super().extra()


class Tiny(Healthy):
    def extra(self) -> Tensor:
        return 1e-4 * super().extra()


class FarObservation(Healthy):
    def extra(self) -> Tensor:
        rare = torch.rand(self.num_envs, 1, generator=self.generator) < 1e-3
        return torch.where(rare, 1e5, super().extra())


class Twice(Healthy):
    def extra(self) -> Tensor:
        return self.x[:, :1]


class NotANumber(Healthy):
    def extra(self) -> Tensor:
        rare = torch.rand(self.num_envs, 1, generator=self.generator) < 1e-3
        return torch.where(rare, float("nan"), super().extra())


class FrozenRow(Healthy):
    def observe(self) -> dict[str, Tensor]:
        obs = super().observe()["policy"]
        obs[3] = 0.5
        return {"policy": obs}


class NextRow(Healthy):
    def extra(self) -> Tensor:
        return self.x[:, :1].roll(-1, 0)


class TwinRows(Healthy):
    def observe(self) -> dict[str, Tensor]:
        obs = super().observe()["policy"]
        return {"policy": obs[torch.arange(self.num_envs) // 2 * 2]}


class NaNReward(Healthy):
    def reward(self, action: Tensor) -> Tensor:
        rare = torch.rand(self.num_envs, generator=self.generator) < 1e-3
        return torch.where(rare, float("nan"), super().reward(action))


class ConstantReward(Healthy):
    def reward(self, action: Tensor) -> Tensor:
        return torch.ones(self.num_envs)


class IgnoredAction(Healthy):
    def reward(self, action: Tensor) -> Tensor:
        return self.noise(self.num_envs)


class NoEffect(IgnoredAction):
    def move(self, action: Tensor) -> None:
        super().move(torch.zeros_like(action))


class Unmoved(ConstantReward):
    def move(self, action: Tensor) -> None:
        super().move(torch.zeros_like(action))


class FarReward(Healthy):
    def reward(self, action: Tensor) -> Tensor:
        rare = torch.rand(self.num_envs, generator=self.generator) < 1e-3
        return torch.where(rare, -1e5, super().reward(action))


class LargeReward(Healthy):
    def reward(self, action: Tensor) -> Tensor:
        return 1000 * super().reward(action)


class LateReward(Healthy):
    max_episode_length = 60

    def reward(self, action: Tensor) -> Tensor:
        return torch.where(self.t >= self.length, super().reward(action), torch.zeros(self.num_envs))


class LimitTerminates(Healthy):
    def ends(self) -> tuple[Tensor, Tensor]:
        terminated, truncated = super().ends()
        return terminated | truncated, torch.zeros_like(truncated)


class OneStep(Healthy):
    def ends(self) -> tuple[Tensor, Tensor]:
        return self.x.norm(dim=1) > 0, self.t >= self.length


class Endless(Healthy):
    def ends(self) -> tuple[Tensor, Tensor]:
        none = torch.zeros(self.num_envs, dtype=torch.bool)
        return none, none


class WrongLimit(Healthy):
    max_episode_length = 400

    def __init__(self, num_envs: int, seed: int | None = None) -> None:
        super().__init__(num_envs, seed)
        self.length = 50


class FinalIsFirst(Healthy):
    def final(self, before: Any, reached: Any, after: Any) -> Any:
        return after


class FinalIsOld(Healthy):
    def final(self, before: Any, reached: Any, after: Any) -> Any:
        return before


class Unseeded(Healthy):
    def noise(self, *shape: int) -> Tensor:
        return torch.randn(*shape)


class WrongTerms(Healthy):
    deployment: ClassVar[dict[str, Any]] = Healthy.deployment | {"action_terms": [{"name": "push", "size": 3}]}


class NarrowBounds(Healthy):
    high = 0.1
    deployment = SCALED


class WideBounds(Healthy):
    high = 1000.0
    deployment = SCALED

    def move(self, action: Tensor) -> None:
        super().move(action / self.high)


class Slow(Healthy):
    def move(self, action: Tensor) -> None:
        time.sleep(0.04)
        super().move(action)


class Crash(Healthy):
    def move(self, action: Tensor) -> None:
        super().move(action)
        if int(self.t.max()) == 30:
            raise RuntimeError("the gripper diverged")


class WrongShape(Healthy):
    def reward(self, action: Tensor) -> Tensor:
        return super().reward(action).unsqueeze(1)


class Weighed(Healthy):
    """Healthy, with a parameter."""

    parameters: ClassVar[dict[str, Parameter]] = {"mass": Parameter(nominal=1.0, low=0.5, high=4.0, positive=True)}

    def __init__(self, num_envs: int, seed: int | None = None) -> None:
        super().__init__(num_envs, seed)
        self.mass = torch.ones(num_envs)

    def move(self, action: Tensor) -> None:
        super().move(action / self.mass.unsqueeze(1))

    def set_parameters(self, values: dict[str, Tensor], where: Tensor) -> None:
        self.mass.copy_(values["mass"].where(where, self.mass))


class SetNowhere(Weighed):
    def set_parameters(self, values: dict[str, Tensor], where: Tensor) -> None:
        pass


class SetEverywhere(Weighed):
    def set_parameters(self, values: dict[str, Tensor], where: Tensor) -> None:
        self.mass.copy_(values["mass"])
