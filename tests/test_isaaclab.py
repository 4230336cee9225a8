from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import types
import zipfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from rlcore.env import VecEnv, spec_of
from rlcore.envs import launch, make_env
from rlcore.envs.arrays import as_tensor
from rlcore.envs.isaaclab import IsaacLabEnv
from rlcore.envs.manager import apply_overrides
from rlcore.envs.rewind import Rewind

STANDINS = Path(__file__).parent / "isaaclab_standins"
RELEASE = "2.3.2.post1"


class FakeDirect(gymnasium.Env[Any, Any]):
    """Isaac Lab's contract in small: env i ends after i + 2 steps, its observation counts its steps and its resets.

    Rewards, flags and observations are the same tensors at every step; the log is replaced when something resets and
    shown on until then. Looking at it has effects, as in some tasks: it counts looks in three ways.
    """

    def __init__(self, cfg: Any, render_mode: str | None = None) -> None:
        self.cfg, self.num_envs, self.device = cfg, cfg.scene.num_envs, cfg.sim.device
        self.max_episode_length, self.step_dt = 100, 0.02
        self.single_observation_space = spaces.Dict({"policy": spaces.Box(-9, 9, (2,))})
        self.single_action_space: Any = spaces.Box(-float("inf"), float("inf"), (3,))
        self.observation_space = spaces.Box(-9, 9, (self.num_envs, 2))  # of policy alone, as in Isaac Lab
        n = self.num_envs
        self.episode_length_buf = torch.zeros(n, dtype=torch.long)
        self.resets, self.buffer = torch.zeros(n), torch.zeros(n, 2)
        self.looks, self.looks_in_place, self.looks_anew = 0, torch.zeros(n), torch.zeros(n)
        self.looks_listed: deque[int] = deque(maxlen=100)
        self.calls: tuple[list[Tensor]] = ([],)
        self.common_step_counter = 0
        self.reward, self.terminated, self.truncated = torch.zeros(n), torch.zeros(n).bool(), torch.zeros(n).bool()
        self.extras: dict[str, Any] = {}
        self.actions: list[Tensor] = []
        self.closed = False

    def _get_observations(self) -> dict[str, Any]:
        self.calls[0].append(self.episode_length_buf.clone())  # deeper than what is put back
        self.looks += 1
        self.looks_listed.append(self.looks)
        self.looks_in_place += 1
        self.looks_anew = self.looks_anew + 1
        torch.rand(1)
        self.buffer.copy_(torch.stack([self.episode_length_buf.float(), self.resets], 1))
        return {"policy": self.buffer}

    def _reset_idx(self, ids: Tensor) -> None:
        self.extras["log"] = {
            "Episode_Reward/alive": torch.tensor(len(ids) / 10),
            "Episode_Termination/fell": 0.25,
            "Curriculum/level": 3,
        }
        self.episode_length_buf[ids] = 0
        self.resets[ids] += 1

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            torch.manual_seed(seed)
        self._reset_idx(torch.arange(self.num_envs))
        return self._get_observations(), self.extras

    def step(self, action: Any) -> Any:
        self.actions.append(action)
        self.common_step_counter += 1
        self.episode_length_buf += 1
        over = self.episode_length_buf >= torch.arange(self.num_envs) + 2
        self.terminated[:] = over & (torch.arange(self.num_envs) % 2 == 0)
        self.truncated[:] = over
        self.reward[:] = self.episode_length_buf.float()
        self.extras.pop("final_obs", None)
        if over.any():
            if getattr(self.cfg, "compute_final_obs", False):
                self.extras["final_obs"] = {"policy": self._get_observations()["policy"] + 0.5}
            self._reset_idx(over.nonzero().squeeze(-1))
        return self._get_observations(), self.reward, self.terminated, self.truncated, self.extras

    def close(self) -> None:
        self.closed = True


def fake_cfg(**values: Any) -> SimpleNamespace:
    cfg = SimpleNamespace(
        scene=SimpleNamespace(num_envs=4, env_spacing=2.5), sim=SimpleNamespace(device="cpu", dt=0.01), seed=None
    )
    vars(cfg).update(values)
    return cfg


def made(cfg: Any = None, **options: Any) -> IsaacLabEnv:
    return IsaacLabEnv(FakeDirect(cfg or fake_cfg()), task="Fake", **options)


def steps_of(env: IsaacLabEnv, count: int) -> list[Any]:
    env.reset(1)
    return [env.step(torch.zeros(env.num_envs, 3)) for _ in range(count)]


# The contract, on the fake. -----------------------------------------------------------------------------------------


def test_adapter_is_a_vec_env() -> None:
    env = made()
    assert isinstance(env, VecEnv)
    spec = spec_of(env)
    assert (spec.task, spec.observation_sizes, spec.action_size) == ("Fake", {"policy": 2}, 3)
    assert spec.action_high == [float("inf")] * 3
    assert spec.deployment["control_dt"] == 0.02


def test_final_observation_is_the_one_before_the_reset() -> None:
    env = made()
    assert env.final_obs_source == "hook"
    first, second = steps_of(env, 2)
    assert first.final_obs is first.obs
    assert second.truncated.tolist() == [True, False, False, False]
    assert second.final_obs["policy"].tolist() == [[2, 1], [2, 1], [2, 1], [2, 1]]
    assert second.obs["policy"].tolist() == [[0, 2], [2, 1], [2, 1], [2, 1]]
    env.close()
    assert env.core.closed and "_reset_idx" not in vars(env.core)


def test_only_steps_that_reset_something_look_twice() -> None:
    env = made()
    env.reset()
    assert len(env.core.calls[0]) == 1
    env.step(torch.zeros(4, 3))
    assert len(env.core.calls[0]) == 2
    env.step(torch.zeros(4, 3))
    assert len(env.core.calls[0]) == 4


def test_looking_before_a_reset_leaves_no_trace() -> None:
    hooked, plain = made(), made(final_obs="off")
    steps_of(hooked, 20)
    random = torch.rand(3)
    steps_of(plain, 20)
    assert torch.equal(random, torch.rand(3))
    assert hooked.core.looks == plain.core.looks == 21
    assert hooked.core.looks_listed == plain.core.looks_listed
    assert torch.equal(hooked.core.looks_in_place, plain.core.looks_in_place)
    assert torch.equal(hooked.core.looks_anew, plain.core.looks_anew)


def test_arrays_that_leave_no_version_and_odd_layouts_are_put_back_too() -> None:
    class ProxyArray:
        """As of Isaac Lab 3, around memory that kernels of warp write."""

        def __init__(self, memory: Tensor) -> None:
            self.memory = memory

        @property
        def torch(self) -> Tensor:
            return self.memory

    core = SimpleNamespace(
        array=ProxyArray(torch.zeros(2)), expanded=torch.zeros(1).expand(4), sparse=torch.eye(3).to_sparse(), scene=None
    )
    rewind = Rewind(core, torch.device("cpu"))
    for _ in range(3):
        with rewind():
            core.array.torch.data.add_(1)  # the version stays
            core.array = ProxyArray(torch.ones(1))
        assert core.array.torch.tolist() == [0, 0]
    assert len(rewind._views) == 1  # of arrays that are gone nothing is kept


def test_own_final_observations_of_the_env_come_after_the_hook() -> None:
    cfg = fake_cfg(compute_final_obs=True)
    env = made(cfg)
    assert env.final_obs_source == "hook" and cfg.compute_final_obs is False  # once is enough
    env = made(fake_cfg(compute_final_obs=False), final_obs="extras")
    first, second = steps_of(env, 2)
    assert first.final_obs is first.obs
    assert second.final_obs["policy"].tolist() == [[2.5, 1.5]] * 4


def test_pictures_of_isaac_lab_3_are_refused_in_words() -> None:
    env = made()
    env.core.video_recorders = []
    with pytest.raises(ValueError, match="it writes videos while the env steps"):
        env.render()


def test_env_that_resets_by_a_mask_is_not_hooked() -> None:
    class ByMask(FakeDirect):
        def _reset_envs_from_buffer(self) -> None:
            pass

    env = IsaacLabEnv(ByMask(fake_cfg(compute_final_obs=False)), task="Fake")
    assert env.final_obs_source == "extras" and env.core.cfg.compute_final_obs
    with pytest.raises(ValueError, match="final_obs='hook' is not possible"):
        IsaacLabEnv(ByMask(fake_cfg()), final_obs="hook")


def test_promised_final_observation_that_is_missing_is_an_error() -> None:
    env = made(fake_cfg(compute_final_obs=True), final_obs="extras")
    env.reset()
    env.core.cfg.compute_final_obs = False
    env.step(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="without extras\\['final_obs'\\]; set final_obs='hook'"):
        env.step(torch.zeros(4, 3))


def test_without_final_observations_the_env_is_left_alone() -> None:
    env = made(final_obs="off")
    first, second = steps_of(env, 2)
    assert env.final_obs_source == "off" and "_reset_idx" not in vars(env.core)
    assert first.final_obs is None and second.final_obs is None
    assert not first.log and second.log


@pytest.mark.parametrize("final_obs", ["hook", "off"])
def test_log_is_taken_once_although_it_is_shown_on(final_obs: Any) -> None:
    env = made(final_obs=final_obs)
    steps = steps_of(env, 20)
    for step in steps:
        assert bool(step.log) == bool((step.terminated | step.truncated).any())
    assert not all(step.log for step in steps) and env.core.extras["log"]
    assert all(isinstance(value, Tensor) and value.shape == () for value in steps[1].log.values())
    values = {name: float(value) for name, value in steps[1].log.items()}
    expected = {"Episode_Reward/alive": 0.1, "Episode_Termination/fell": 0.25, "Curriculum/level": 3.0}
    assert values == pytest.approx(expected)


def test_log_takes_what_is_a_number_and_names_what_is_not() -> None:
    env = made()
    log = {"a": 1, "b": True, "c": torch.tensor([2.0]), "d": torch.arange(4), "e": torch.ones(2, 3), "f": "text"}
    with pytest.warns(UserWarning, match="log entry 'f' is str"):
        read = env.read_log(log)
    assert {name: torch.as_tensor(value).tolist() for name, value in read.items()} == {
        **{"a": 1.0, "b": 1.0, "c": 2.0, "e": 1.0},
        "d": [0.0, 1.0, 2.0, 3.0],
    }
    env.read_log(log)  # once is enough: a second warning would be an error here


def test_what_a_step_returned_is_not_written_over() -> None:
    env = made()
    first, second = steps_of(env, 2)
    assert first.reward.tolist() == [1] * 4 and not first.truncated.any()
    assert first.obs["policy"][:, 0].tolist() == [1] * 4
    assert second.terminated.tolist() == [True, False, False, False]
    assert first.reward.data_ptr() != second.reward.data_ptr()


def test_both_flags_may_be_set_and_a_finite_horizon_ends_for_good() -> None:
    endless, finite = steps_of(made(), 3), steps_of(made(fake_cfg(is_finite_horizon=True)), 3)
    assert endless[1].terminated[0] and endless[1].truncated[0]
    assert endless[2].truncated[1] and not endless[2].terminated[1]
    assert finite[2].truncated[1] and finite[2].terminated[1]


def test_action_is_a_clipped_copy_without_gradient() -> None:
    env = made(clip_actions=0.5)
    assert spec_of(env).action_low == [-0.5] * 3 and spec_of(env).action_high == [0.5] * 3
    env.reset()
    action = torch.full((4, 3), 2.0, requires_grad=True)
    env.step(action)
    (sent,) = env.core.actions
    assert torch.equal(sent, torch.full((4, 3), 0.5)) and not sent.requires_grad
    plain = made()
    plain.reset()
    action = torch.full((4, 3), 2.0)
    plain.step(action)
    action.zero_()
    assert plain.core.actions[0].eq(2.0).all()
    with pytest.raises(ValueError, match=r"action has shape \(4, 2\); expected \(4, 3\)"):
        plain.step(torch.zeros(4, 2))


def test_discrete_actions_go_as_a_column() -> None:
    raw = FakeDirect(fake_cfg())
    raw.single_action_space = spaces.Discrete(3)
    env = IsaacLabEnv(raw)
    assert spec_of(env).discrete
    env.reset()
    env.step(torch.tensor([0, 1, 2, 0]))
    assert env.core.actions[0].tolist() == [[0], [1], [2], [0]] and env.core.actions[0].dtype == torch.int64
    with pytest.raises(ValueError, match="actions are discrete; leave it out"):
        IsaacLabEnv(raw, clip_actions=1.0)


def test_bounds_come_from_joint_limits_or_one() -> None:
    class JointPositionAction:
        action_dim = 2
        _scale = 0.5
        _offset = torch.tensor([[1.0, 0.0]] * 4)
        _joint_ids = (0, 2)
        _joint_names = ("hip", "knee")
        _asset = SimpleNamespace(data=SimpleNamespace())

    limits = [[-1.0, 2.0], [0.0, 0.0], [-1e9, 1e9]]
    JointPositionAction._asset.data.soft_joint_pos_limits = torch.tensor(limits).repeat(4, 1, 1)
    JointPositionAction._joint_ids = torch.tensor([0, 2])
    gripper = SimpleNamespace(action_dim=1)
    raw: Any = FakeDirect(fake_cfg())
    terms = {"arm": JointPositionAction(), "gripper": gripper}
    raw.action_manager = SimpleNamespace(active_terms=list(terms), get_term=terms.__getitem__)
    env = IsaacLabEnv(raw, clip_actions="auto")
    assert spec_of(env).action_low == [-4.0, -1.0, -1.0] and spec_of(env).action_high == [2.0, 1.0, 1.0]
    assert env.notes == [
        "actions are limited to soft joint limits, ±1 × scale where there is none (arm); ±1 × scale (gripper)"
    ]
    arm = env.deployment["action_terms"][0]
    assert (arm["name"], arm["size"], arm["scale"], arm["offset"]) == ("arm", 2, 0.5, [1.0, 0.0])
    assert (arm["joints"], arm["kind"]) == (["hip", "knee"], "position")
    assert "kind" not in env.deployment["action_terms"][1]

    limits = [[0.95, 2.0], [0.0, 0.0], [20.0, 30.0]]  # with a small scale, the second far from its default pose
    JointPositionAction._scale = 0.05
    JointPositionAction._asset.data.soft_joint_pos_limits = torch.tensor(limits).repeat(4, 1, 1)
    raw = FakeDirect(fake_cfg())
    raw.action_manager = SimpleNamespace(active_terms=list(terms), get_term=terms.__getitem__)
    env = IsaacLabEnv(raw, clip_actions="auto")
    assert spec_of(env).action_low == [pytest.approx(-1.0), -1.0, -1.0]
    assert spec_of(env).action_high == [10.0, 1.0, 1.0]
    assert "soft joint limits, at most ±10, ±1 × scale where there is none (arm)" in env.notes[0]


def test_random_start_spreads_episodes() -> None:
    env = made(fake_cfg(scene=SimpleNamespace(num_envs=64)), randomize_start=True)
    env.reset()
    assert len(env.core.episode_length_buf.unique()) > 20 and env.core.episode_length_buf.max() < 100


def test_counters_are_saved_and_restored() -> None:
    env, other = made(), made()
    steps_of(env, 3)
    assert env.state_dict() == {"common_step_counter": 3} and not env.exact_state
    other.load_state_dict({"common_step_counter": 3, "_sim_step_counter": 9})
    assert other.core.common_step_counter == 3 and not hasattr(other.core, "_sim_step_counter")


@pytest.mark.gpu
def test_simulator_and_learner_on_different_devices() -> None:
    env = made(device="cuda", clip_actions=1.0)
    obs = env.reset()["policy"]
    assert obs.device == env.device and env.device.type == "cuda"
    for step in steps_of(env, 3):
        flags = (step.reward, step.terminated, step.truncated, *step.log.values(), *step.final_obs.values())
        assert all(torch.as_tensor(x).device == env.device for x in flags)
    env.step(torch.zeros(4, 3, device="cuda"))
    assert env.core.actions[-1].device.type == "cpu"


def test_devices_may_differ_without_a_gpu_too() -> None:
    env = made(device="meta")  # knows shapes and devices, not values
    env.simulator_device = torch.device("cpu")
    assert env.read_obs(env.core._get_observations())["policy"].device.type == "meta"
    assert env.read_vector(env.core.reward, torch.float32).device.type == "meta"
    assert all(torch.as_tensor(x).device.type == "meta" for x in env.read_log({"a": 1.0, "b": torch.ones(())}).values())


def test_arrays_of_isaac_lab_3_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    class ProxyArray:
        torch = torch.ones(2)

    assert as_tensor(ProxyArray()) is ProxyArray.torch
    array = type("array", (), {"__module__": "warp._src.types"})()
    module = types.ModuleType("warp")
    vars(module)["to_torch"] = lambda value: torch.full((3,), 2.0)
    monkeypatch.setitem(sys.modules, "warp", module)
    assert as_tensor(array).tolist() == [2.0, 2.0, 2.0]


def test_multi_agent_env_is_refused_and_its_conversion_taken() -> None:
    raw: Any = FakeDirect(fake_cfg())
    raw.possible_agents = ["cart", "pendulum"]
    with pytest.raises(ValueError, match=r"isaaclab\.envs\.multi_agent_to_single_agent"):
        IsaacLabEnv(raw)
    converted: Any = FakeDirect(fake_cfg())
    converted.env = raw  # as the converter keeps it; counters are those of the env inside
    raw.common_step_counter = 12
    env = IsaacLabEnv(converted)
    assert env.final_obs_source == "off" and env.state_dict() == {"common_step_counter": 12}
    with pytest.raises(ValueError, match="it does not reset within its own step; use 'auto'"):
        IsaacLabEnv(converted, final_obs="hook")


def test_unusable_spaces_are_refused() -> None:
    raw: Any = FakeDirect(fake_cfg())
    raw.single_observation_space = spaces.Dict({"policy": spaces.Discrete(3)})
    with pytest.raises(ValueError, match=r"observation 'policy' is Discrete\(3\); rlcore takes boxes"):
        IsaacLabEnv(raw)
    raw = FakeDirect(fake_cfg())
    raw.single_action_space = spaces.MultiDiscrete([2, 2])
    with pytest.raises(ValueError, match="is not supported; rlcore takes a Box or Discrete"):
        IsaacLabEnv(raw)


def test_overrides_are_typed_and_strict() -> None:
    class Cfg(SimpleNamespace):
        __annotations__ = {"length_s": "float", "decimation": "int"}

    def cfg() -> Any:
        scene = SimpleNamespace(size=(1, 2), names=["a", "b"], terms={"x": 1.0})
        return Cfg(length_s=5, decimation=4, on=True, name="n", event=SimpleNamespace(), free=None, scene=scene)

    made = cfg()
    new = {"length_s": 7.5, "decimation": 2, "on": False, "event": None, "free": [1], "scene.size": [3, 4]}
    apply_overrides("T", made, {**new, "scene.names.1": "c", "scene.terms.x": 2})
    assert (made.length_s, made.decimation, made.on, made.event, made.free) == (7.5, 2, False, None, [1])
    assert (made.scene.size, made.scene.names, made.scene.terms) == ((3, 4), ["a", "c"], {"x": 2.0})
    for key, value, message in [
        ("decimation", 2.5, "T: decimation is 2.5; it must be int, as in 4"),
        ("decimation", True, "it must be int"),
        ("on", 1, "it must be bool, as in True"),
        ("event", 3, "set its fields, or None for none"),
        ("scene.nams", 1, "unknown option 'scene.nams': did you mean scene.names?"),
        ("scene.names.7", "x", "valid options are scene.names.0, scene.names.1"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            apply_overrides("T", cfg(), {key: value})


# Building by name. --------------------------------------------------------------------------------------------------


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """A task registered as Isaac Lab does it, and a stand-in for isaaclab_tasks."""
    gymnasium.register(
        "Isaac-Fake-v0", FakeDirect, disable_env_checker=True, kwargs={"env_cfg_entry_point": fake_cfg, "other": 1}
    )
    utils = types.ModuleType("isaaclab_tasks.utils")
    vars(utils)["load_cfg_from_registry"] = lambda name, key: gymnasium.spec(name).kwargs[key]()
    monkeypatch.setitem(sys.modules, "isaaclab_tasks", types.ModuleType("isaaclab_tasks"))
    monkeypatch.setitem(sys.modules, "isaaclab_tasks.utils", utils)
    monkeypatch.setattr(FakeDirect, "__init__", _without_registration(FakeDirect.__init__))
    yield utils
    del gymnasium.registry["Isaac-Fake-v0"]


def _without_registration(init: Any) -> Any:
    def call(self: Any, cfg: Any, render_mode: str | None = None, **kwargs: Any) -> None:
        init(self, cfg, render_mode)

    return call


@pytest.mark.parametrize("task", ["Isaac-Fake-v0", "isaaclab:Isaac-Fake-v0", "isaaclab:json:Isaac-Fake-v0"])
def test_registered_task_is_built_from_its_configuration(registered: Any, task: str) -> None:
    env: Any = make_env(task, 6, seed=3, **{"scene.env_spacing": 4, "sim.dt": 0.02})
    cfg = env.core.cfg
    assert (env.task, env.num_envs, cfg.seed, cfg.scene.env_spacing, cfg.sim.dt) == ("Isaac-Fake-v0", 6, 3, 4.0, 0.02)
    env.reset()
    assert env.step(torch.zeros(6, 3)).reward.tolist() == [1.0] * 6
    env.close()
    assert env.core.closed


def test_isaac_lab_3_is_started_when_the_task_is_made(registered: Any) -> None:
    events: list[Any] = []

    class Launched:
        def __init__(self, cfg: Any, args: dict[str, Any]) -> None:
            events.append(("launch", cfg.scene.num_envs, args))

        def __enter__(self) -> None:
            events.append("enter")

        def __exit__(self, *error: Any) -> None:
            events.append("exit")

    registered.launch_simulation = Launched
    registered.resolve_presets = lambda cfg, names: (events.append(names), cfg)[1]
    launch.launcher_args.update(headless=True)
    try:
        env: Any = make_env("Isaac-Fake-v0", 2, presets="newton")
    finally:
        launch.launcher_args.clear()
    assert events == [{"newton"}, ("launch", 2, {"headless": True}), "enter"]
    env.close()
    assert events[-1] == "exit" and env.core.closed


def test_final_observations_are_asked_of_envs_that_offer_them(registered: Any) -> None:
    registered.load_cfg_from_registry = lambda name, key: fake_cfg(compute_final_obs=False)
    offered: Any = make_env("Isaac-Fake-v0", 2, final_obs="extras")
    assert offered.final_obs_source == "extras" and offered.core.cfg.compute_final_obs
    assert make_env("Isaac-Fake-v0", 2, final_obs="off").core.cfg.compute_final_obs is False  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("Isaac-Fak-v0", {}, "did you mean Isaac-Fake-v0?"),
        ("isaaclab:unheard_of:Isaac-Fake-v0", {}, "cannot import module 'unheard_of'"),
        ("Isaac-Fake-v0", {"scene.num_env": 3}, "did you mean scene.num_envs?"),
        ("Isaac-Fake-v0", {"final_obs": "on"}, "final_obs is 'on'; use 'auto', 'extras', 'hook' or 'off'"),
        ("Isaac-Fake-v0", {"presets": ["x"]}, "presets came with Isaac Lab 3"),
    ],
)
def test_refusal_names_the_remedy(registered: Any, task: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        make_env(task, 2, **options)
    assert "\n" not in str(raised.value)


def test_multi_agent_task_is_refused_before_it_is_built(registered: Any) -> None:
    registered.load_cfg_from_registry = lambda name, key: fake_cfg(possible_agents=["a"])
    with pytest.raises(ValueError, match=r"isaaclab\.envs\.multi_agent_to_single_agent"):
        make_env("Isaac-Fake-v0", 2)


def test_missing_isaac_lab_says_where_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "isaaclab_tasks", None)
    with pytest.raises(ValueError, match="enough for tasks with Newton's physics"):
        make_env("Isaac-Cartpole-v0", 2)


def test_isaac_lab_without_the_running_app_says_how_to_start_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "isaaclab_tasks").mkdir()
    (tmp_path / "isaaclab_tasks" / "__init__.py").write_text("import pxr_that_is_not_there as pxr\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="No module named 'pxr_that_is_not_there'"):
        make_env("Isaac-Cartpole-v0", 2)
    (tmp_path / "isaaclab_tasks" / "__init__.py").write_text("import omni.kit\n")
    with pytest.raises(ValueError, match=r"needs Isaac Sim running .*start_isaac_sim"):
        make_env("Isaac-Cartpole-v0", 2)


# Launching. ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "simulator"),
    [
        ("Isaac-Velocity-Flat-Anymal-C-v0", "isaaclab"),
        ("IsaacContrib-Velocity-Flat-UnitreeA1", "isaaclab"),
        ("isaaclab:my_project.tasks:Walk-v0", "isaaclab"),
        ("Mjlab-Velocity-Flat-Unitree-G1", "mjlab"),
        ("mjlab:Walk", "mjlab"),
        ("gym:Isaac-Like-v0", "gymnasium"),
        ("Reach-UR5e-IK", "builtin"),
        ("CartPole-v1", "builtin"),
    ],
)
def test_task_tells_its_simulator(task: str, simulator: str) -> None:
    assert launch.simulator_of(task) == simulator


def test_id_registered_with_an_env_configuration_is_isaac_labs() -> None:
    gymnasium.register("Template-Walk-v0", FakeDirect, kwargs={"env_cfg_entry_point": fake_cfg})
    try:
        assert launch.simulator_of("Template-Walk-v0") == "isaaclab"
    finally:
        del gymnasium.registry["Template-Walk-v0"]


def test_nothing_of_a_simulator_is_imported_unless_asked_for() -> None:
    code = (
        "import sys, rlcore.envs.launch, rlcore.envs.isaaclab, rlcore.envs.mjlab, rlcore.envs as e;"
        "rlcore.envs.launch.simulator_of('Isaac-X-v0'); e.make_env('CartPole', 2);"
        "names = ('isaaclab', 'isaaclab_tasks', 'isaacsim', 'mjlab', 'warp');"
        "print([m for m in sys.modules if m.split('.')[0] in names])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


class FakeLauncher:
    """``AppLauncher`` of Isaac Lab 2.3: what it was given and what the command line was when it started."""

    given: argparse.Namespace
    command_line: list[str]
    app = object()

    def __init__(self, args: argparse.Namespace) -> None:
        type(self).given, type(self).command_line = args, list(sys.argv)

    @staticmethod
    def add_app_launcher_args(parser: argparse.ArgumentParser) -> None:
        parser.parse_known_args()  # the real one does, with the command line of the process
        for flag in ("--headless", "--enable_cameras", "--verbose"):
            parser.add_argument(flag, action="store_true")
        parser.add_argument("--device", default="cuda:0")
        parser.add_argument("--livestream", type=int, default=-1)


@pytest.fixture
def app_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("isaaclab.app")
    vars(module)["AppLauncher"] = FakeLauncher
    simulator = types.ModuleType("isaacsim")
    vars(simulator)["__spec__"] = object()
    monkeypatch.setitem(sys.modules, "isaacsim", simulator)
    monkeypatch.setitem(sys.modules, "isaaclab", types.ModuleType("isaaclab"))
    monkeypatch.setitem(sys.modules, "isaaclab.app", module)
    monkeypatch.setattr(sys, "argv", ["rlcore", "train", "--headless", "x", "--help"])
    monkeypatch.setattr(launch, "launcher_args", {})
    return module


def test_simulator_gets_its_flags_and_the_rest_comes_back(app_module: Any) -> None:
    words = "--task Isaac-X-v0 --headless --agent.gamma 0.9 --device cuda:1 --video --verbose --/log/level=error"
    app, rest = launch.launch("Isaac-X-v0", words.split())
    assert app is FakeLauncher.app
    assert rest == ["--task", "Isaac-X-v0", "--agent.gamma", "0.9", "--device", "cuda:1"]
    given = vars(FakeLauncher.given)
    assert (given["headless"], given["enable_cameras"], given["device"]) == (True, True, "cuda:1")
    assert "video" not in given
    assert FakeLauncher.command_line == ["rlcore", "--/log/level=error", "--verbose"]
    assert sys.argv == ["rlcore", "train", "--headless", "x", "--help"]


def test_device_auto_is_left_to_the_simulator(app_module: Any) -> None:
    _, rest = launch.start_isaac_sim(["--device=auto"])
    assert rest == ["--device", "auto"] and FakeLauncher.given.device == "cuda:0"
    assert not FakeLauncher.given.enable_cameras


def test_isaac_lab_3_is_not_started_before_the_task(app_module: Any) -> None:
    app_module.launch_simulation = lambda cfg, args: None
    FakeLauncher.given = argparse.Namespace()
    app, rest = launch.start_isaac_sim(["--headless", "--device", "cpu", "--name", "n"])
    assert app is None and rest == ["--name", "n", "--device", "cpu"]
    assert FakeLauncher.given == argparse.Namespace()
    assert launch.launcher_args == {"headless": True, "device": "cpu"}


def test_isaac_lab_3_takes_its_own_flags_and_words(app_module: Any) -> None:
    def add_launcher_args(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--visualizer", "--viz")
        parser.add_argument("--device", default="cuda:0")
        parser.add_argument("--livestream", type=int, default=-1)

    app_module.launch_simulation, app_module.add_launcher_args = lambda cfg, args: None, add_launcher_args
    words = "--viz none presets=newton_mjwarp,rgb --presets=hold physics=newton_mjwarp env.decimation=4 --name n"
    _, rest = launch.start_isaac_sim(words.split())
    assert launch.launcher_args == {"visualizer": "none"}  # its defaults are not the user's
    assert rest[:3] == ["env.decimation=4", "--name", "n"]
    assert rest[3:] == ["--env.presets=newton_mjwarp,rgb,hold", "--env.physics=newton_mjwarp"]


def test_missing_dependency_of_isaac_lab_is_not_taken_for_isaac_sim(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = ["isaacsim", "warp"]

    def fail(module: str) -> None:
        raise ModuleNotFoundError("No module named", name=missing.pop())

    monkeypatch.setattr(launch.importlib, "import_module", fail)
    with pytest.raises(ValueError, match=r"but not what it needs \(no module 'warp'\)"):
        launch.start_isaac_sim([])
    with pytest.raises(ValueError, match=r"Isaac Sim is not \(no module 'isaacsim'\)"):
        launch.start_isaac_sim([])


def test_other_tasks_start_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "isaaclab", None)
    assert launch.launch("CartPole", ["--headless"]) == (None, ["--headless"])
    with pytest.raises(ValueError, match="Isaac Lab is not installed"):
        launch.launch("Isaac-X-v0", [])


# The real package, over stand-ins for the simulator. ----------------------------------------------------------------


@pytest.fixture(scope="session")
def wheel() -> Path:
    """Folder of the unpacked wheel, fetched once; 3 MB."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip(f"isaaclab {RELEASE} is for Python 3.11")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlcore-tests" / f"isaaclab-{RELEASE}"
    if not (cache / "isaaclab" / "source").is_dir():
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", f"isaaclab=={RELEASE}", "-d", cache]
        result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        files = list(cache.glob("isaaclab-*.whl"))
        if result.returncode or not files:
            last = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
            pytest.skip(f"cannot download isaaclab {RELEASE}: {last}")
        # Another worker may do the same at this moment: unpack beside, then move.
        beside = cache / f"unpacked-{os.getpid()}"
        with zipfile.ZipFile(files[0]) as archive:
            archive.extractall(beside)
        if not (cache / "isaaclab").exists():
            (beside / "isaaclab").rename(cache / "isaaclab")
    return cache


@pytest.fixture(scope="session")
def results(wheel: Path) -> dict[str, str | None]:
    """All checks in one process: stand-in modules must not meet other tests, and its functions are not scripted."""
    path = os.pathsep.join([str(STANDINS.parent.parent), str(STANDINS.parent), os.environ.get("PYTHONPATH", "")])
    variables = {**os.environ, "ISAACLAB_WHEEL": str(wheel), "PYTORCH_JIT": "0", "PYTHONPATH": path}
    command = [sys.executable, str(STANDINS / "checks.py")]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    checked: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    return checked


CHECKS = re.findall(r"^def (check_\w+)", (STANDINS / "checks.py").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", CHECKS)
def test_real_isaac_lab(results: dict[str, str | None], name: str) -> None:
    assert results[name] is None, results[name]
