"""What a learning algorithm is to the loop, the runs, the checkpoints and the command line."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor, nn

from rlcore.config import ConfigError, check
from rlcore.env import EnvSpec, VecEnv
from rlcore.gate import Gate, Gated
from rlcore.types import Metrics, Mode, Obs, State, Step, Timeout


class Policy(nn.Module):
    """A deterministic controller: normalization, network, squashing and action limits in one module.

    Evaluation, play and export all run this module, so they cannot disagree.
    """

    observation_sizes: dict[str, int]
    """Size of each observation group that it reads as a vector, in the order in which they are concatenated."""
    raw_shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    """Shape of each group that it reads without normalization: images ``[C, H, W]``, and action masks ``[K]``."""

    def __init__(self) -> None:
        super().__init__()
        self.gate: Gate | None = None
        """What judges its actions and replaces those that are too risky; None where nothing does."""
        self.inferred_tasks: tuple[str, ...] = ()
        """Names of the tasks of which it infers the one at hand; empty where there is nothing to infer."""

    @property
    def notes(self) -> Sequence[str]:
        """Lines that a run prints of it when it begins."""
        return ()

    def initial_state(self, num_envs: int) -> State:
        """Zero recurrent state for ``num_envs`` envs; ``()`` when there is none."""
        return ()

    def forward(self, obs: Obs, state: State = ()) -> tuple[Tensor, State]:
        """Map observations to actions ``[N, A]`` float32 (``[N]`` int64 when discrete) and the next state."""
        raise NotImplementedError

    def inferring(self, obs: Obs, state: State = ()) -> tuple[Tensor, Tensor, State]:
        """Actions as ``forward`` has them, the probability of each of ``inferred_tasks`` ``[N, K]``, the next state."""
        raise NotImplementedError

    def judged(self, obs: Obs, state: State = ()) -> tuple[Gated, State]:
        """What its gate makes of the action, which ``forward`` returns alone, and the next state."""
        raise NotImplementedError

    def output_of(self, vectors: Tensor) -> Any:
        """What it draws actions from, by normalized observations ``[N, O]``; only without memory and images."""
        raise NotImplementedError

    def drawn(self, output: Any, noise: Tensor) -> Tensor:
        """Actions ``[K, N, A]`` from what ``output_of`` returns and standard normal noise ``[K, N, A]``."""
        raise NotImplementedError


class Agent(Protocol):
    """A learning algorithm at work: all that the loop, a run, its checkpoints and its evaluations use of one.

    Nothing need be inherited. ``act`` and ``record`` take turns, ``num_steps`` times, then ``update``.
    """

    @property
    def num_steps(self) -> int:
        """Vector steps between two updates."""
        ...

    @property
    def mode(self) -> Mode:
        """How it runs on CUDA."""
        ...

    @property
    def timeout_bootstrap(self) -> Timeout:
        """How a time-out bootstraps; ``final_obs`` becomes ``value`` where the env turns out to hide these.

        One that has no bootstrap says ``none`` in its class, where ``rlcore doctor`` reads it, too.
        """
        ...

    @property
    def policy(self) -> Policy:
        """The deterministic policy as learned so far; always the same module."""
        ...

    @property
    def fault_groups(self) -> Mapping[str, Sequence[str]]:
        """In which observation groups the columns of each source of faults are counted, see ``faults.fault_groups``.

        Empty where ``update`` reports none.
        """
        ...

    @property
    def notes(self) -> Sequence[str]:
        """Lines that a run prints when it begins."""
        ...

    def warnings(self, num_iterations: int) -> Sequence[str]:
        """What makes a run of so many further iterations slow or useless, and the remedy, a line each."""
        ...

    def initial_state(self) -> State:
        """Recurrent state at the start of an episode, for every env; what is kept of unfinished rollouts is dropped."""
        ...

    def act(self, obs: Obs, state: State) -> tuple[Tensor, State]:
        """Choose exploring actions ``[N, A]`` (``[N]`` when discrete), and the next state."""
        ...

    def record(self, obs: Obs, action: Tensor, state: State, step: Step) -> None:
        """Store one vector step: what ``act`` was given and chose, and what came of it."""
        ...

    def moved(self) -> list[Tensor]:
        """What of ``state_dict`` acting and recording change, and ``initial_state`` does not set anew.

        Put back as it was, and ``initial_state`` called, a rollout that was broken off is as if it had not been.
        """
        ...

    def update(self) -> Metrics:
        """Learn from what has been recorded."""
        ...

    def recording(self) -> dict[str, Tensor]:
        """Recent observations ``[T, M, O]`` by group and ``done`` ``[T, M]``, for checking an export."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that learning depends on, as tensors and plain values; the policy's as ``policy``."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, in place."""
        ...


class AgentConfig(Protocol):
    """Settings of an algorithm: a frozen dataclass with a default and a docstring for each field.

    The docstrings are what ``--help`` says; impossible values are refused with ``rlcore.config.ConfigError``.
    """

    def samples_at_once(self, num_envs: int) -> int:
        """Samples of a gradient step, by which a run on a CPU chooses its threads."""
        ...

    def scheduled(self) -> str:
        """What changes over the planned length of the run, such as ``learning rate``; empty where nothing does."""
        ...


def check_agent(agent: object, name: str) -> None:
    """Refuse what lacks a member of ``Agent``, before anything is trained with it.

    Raises:
        ConfigError: it lacks one, or its policy is none.
    """
    what = f"algorithm '{name}': its {type(agent).__name__}"
    missing = [member for member in vars(Agent) if not member.startswith("_") and not hasattr(agent, member)]
    if missing:
        raise ConfigError(f"{what} lacks {', '.join(missing)}; rlcore.agent.Agent says what they are")
    policy = agent.policy  # type: ignore[attr-defined]
    if not isinstance(policy, Policy):
        raise ConfigError(f"{what} has a {type(policy).__name__} as policy; give an rlcore.agent.Policy")


C = TypeVar("C", bound=AgentConfig)
C_contra = TypeVar("C_contra", bound=AgentConfig, contravariant=True)


class Build(Protocol[C_contra]):
    """What makes an agent, such as its class."""

    def __call__(self, env: VecEnv, config: C_contra, *, seed: int | None, num_iterations: int | None) -> Agent:
        """Build an untrained agent.

        Args:
            env: what to learn on.
            config: settings.
            seed: for weights and exploration; None leaves PyTorch's generator as it is.
            num_iterations: planned length of the run, for settings that change over it.

        Raises:
            ConfigError: the settings do not fit the env.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings of an algorithm that were chosen together."""

    about: str
    """What it is for, such as ``for one or a few envs``."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the defaults of the configuration."""
    shipped: Path | None = None
    """Folder of settings by task, ``default.yaml`` for all others; see ``rlcore.train.defaults.shipped_config``."""
    cuda: bool = False
    """Whether it is made for CUDA and many envs, as simulators have them, and slow on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Algorithm(Generic[C]):
    """What the command line, runs and checkpoints have to know of an algorithm.

    Raises:
        ConfigError: nothing could be built or named with it.
    """

    name: str
    """As ``--algo`` has it."""
    agent: Build[C]
    """What learns."""
    config: type[C]
    """Its settings, with which it can be built as they are."""
    policy: Callable[[EnvSpec, C], Policy]
    """Builds the untrained policy, into which ``Agent.state_dict()["policy"]`` loads; it needs no env."""
    on_policy: bool = True
    """Whether it learns from its latest rollout alone, for which there are to be many envs."""
    bounded_actions: bool = False
    """Whether actions need finite bounds, which the adapters of simulators then take from joint limits."""
    num_envs: int = 1024
    """Copies of the task, where nobody says how many."""
    num_iterations: int = 300
    """Planned length of a run, where nobody says how long."""
    shipped: Path | None = None
    """As ``Preset.shipped``, of an algorithm without presets."""
    presets: Mapping[str, Preset] = field(default_factory=dict)
    """By name; the first is taken where nothing says otherwise."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of it, and the presets that they mean: TD3 is DDPG with the preset ``td3``."""
    unnamed_entries: bool = False
    """Whether configurations that a simulator's task is registered with and that name no algorithm are its own, as
    ``skrl_cfg_entry_point`` beside ``skrl_sac_cfg_entry_point``."""

    def __post_init__(self) -> None:
        """Refuse what would fail in the middle of a run."""
        name = isinstance(self.name, str) and re.fullmatch(r"\w[\w-]*", self.name)
        check(bool(name), "Algorithm.name", self.name, "it is that of a folder, too: set letters, digits, - and _")
        settings = isinstance(self.config, type) and is_dataclass(self.config)
        check(settings, "Algorithm.config", self.config, "give a dataclass")
        bare = [f.name for f in fields(self.config) if f.init and f.default is f.default_factory is MISSING]  # type: ignore[arg-type]
        check(not bare, "Algorithm.config", self.config.__name__, f"give {', '.join(bare)} a default")
        ahead = {"seed": None, "num_iterations": None}
        for key, build, given in (("agent", self.agent, ahead), ("policy", self.policy, {})):
            check(callable(build), f"Algorithm.{key}", build, "give what builds it, such as a class")
            call = "env, config, seed=..., num_iterations=..." if given else "spec, config"
            try:
                inspect.signature(build).bind(None, None, **given)
            except TypeError as error:
                raise ConfigError(f"Algorithm.{key}: it is called with ({call}): {error}; let it take these") from None

    def folder(self, preset: str | None) -> Path | None:
        """Where the settings that are shipped by task lie; ``preset`` None stands for the default one."""
        return self.shipped if self.default_preset is None else self.presets[preset or self.default_preset].shipped

    @property
    def default_preset(self) -> str | None:
        """Of the presets the first; None where there are none."""
        return next(iter(self.presets), None)
