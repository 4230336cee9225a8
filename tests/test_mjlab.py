from __future__ import annotations

import dataclasses
import os
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rlcore.env import VecEnv, spec_of, want_final_obs
from rlcore.env_check import check_step
from rlcore.envs import make_env
from rlcore.envs.mjlab import MjlabEnv, quiet_warp
from rlcore.stage import reset_at, stage_of

TASK = "Mjlab-Cartpole-Balance"
N = 16


@dataclasses.dataclass
class Box:
    """mjlab's own spaces: plain bounds, no gymnasium."""

    shape: tuple[int, ...] = ()
    low: float | tuple[float, ...] = -float("inf")
    high: float | tuple[float, ...] = float("inf")


@dataclasses.dataclass
class Dict:
    spaces: dict[str, Any]


class FakeEnv:
    """mjlab's contract in small: env i ends after i + 2 steps, its observation counts its steps and its resets.

    The tensors of reward and flags are the same at every step, the log is emptied at every step, and with
    ``auto_reset`` off an env that ended must be reset before the next step.
    """

    def __init__(self, cfg: Any, device: str = "cpu", render_mode: str | None = None) -> None:
        self.cfg, self.device, self.render_mode = cfg, device, render_mode
        self.num_envs = n = cfg.scene.num_envs
        self.max_episode_length, self.step_dt = 100, 0.02
        self.single_observation_space = Dict({"actor": Box((2,)), "camera": Box((1, 2, 2))})
        self.single_action_space = Box((3,))
        self.episode_length_buf = torch.zeros(n, dtype=torch.long)
        self.resets = torch.zeros(n)
        self.common_step_counter = self._sim_step_counter = 0
        self.reward, self.terminated, self.truncated = torch.zeros(n), torch.zeros(n).bool(), torch.zeros(n).bool()
        self.pending = torch.zeros(n, dtype=torch.bool)
        self.extras: dict[str, Any] = {}
        self.actions: list[Tensor] = []
        self.seeds: list[Any] = []
        self.noise = 0.0
        self.closed = False

    @property
    def unwrapped(self) -> FakeEnv:
        return self

    def observe(self) -> dict[str, Tensor]:
        self.noise += 0.001  # every call draws anew
        actor = torch.stack([self.episode_length_buf.float(), self.resets + self.noise], 1)
        return {"actor": actor, "camera": actor.repeat(1, 2).view(-1, 1, 2, 2)}

    def restart(self, ids: Tensor) -> None:
        self.extras["log"] |= {
            "Episode_Reward/alive": torch.tensor(len(ids) / 10),
            "Episode_Termination/fell_over": len(ids),
            "Curriculum/level": 0.5,
        }
        self.episode_length_buf[ids] = 0
        self.resets[ids] += 1
        self.pending[ids] = False

    def reset(self, *, seed: int | None = None, env_ids: Tensor | None = None, options: Any = None) -> Any:
        self.seeds.append(seed)
        self.extras["log"] = {}
        self.restart(torch.arange(self.num_envs) if env_ids is None else env_ids)
        return self.observe(), self.extras

    def step(self, action: Tensor) -> Any:
        assert not self.pending.any(), "an env that ended was not reset"
        self.extras["log"] = {"Metrics/speed": torch.tensor(2.0)}
        self.actions.append(action)
        self.common_step_counter += 1
        self._sim_step_counter += 4
        self.episode_length_buf += 1
        over = self.episode_length_buf >= torch.arange(self.num_envs) + 2
        self.terminated[:] = over & (torch.arange(self.num_envs) % 2 == 0)
        self.truncated[:] = over
        self.reward[:] = self.episode_length_buf.float()
        ids = over.nonzero().squeeze(-1)
        if self.cfg.auto_reset:
            if len(ids):
                self.restart(ids)
        else:
            self.pending[ids] = True
        return self.observe(), self.reward, self.terminated, self.truncated, self.extras

    def render(self) -> Any:
        return None if self.render_mode is None else [[[1, 2, 3]]]

    def close(self) -> None:
        self.closed = True


def fake_cfg(**values: Any) -> SimpleNamespace:
    cfg = SimpleNamespace(scene=SimpleNamespace(num_envs=4), auto_reset=True, is_finite_horizon=False, seed=None)
    vars(cfg).update(values)
    return cfg


def made(cfg: Any = None, **options: Any) -> MjlabEnv:
    return MjlabEnv(FakeEnv(cfg or fake_cfg()), task="Fake", **options)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Modules of mjlab with two tasks; what was asked of them."""
    asked: dict[str, Any] = {}
    cfg = fake_cfg(sim=SimpleNamespace(mujoco=SimpleNamespace(timestep=0.002)))

    def load_env_cfg(name: str, play: bool) -> Any:
        asked.update(name=name, play=play, cfg=cfg)
        return cfg

    modules = {
        "mjlab": {},
        "mjlab.envs": {"ManagerBasedRlEnv": FakeEnv},
        "mjlab.tasks": {},
        "mjlab.tasks.registry": {"list_tasks": lambda: ["Mjlab-Walk", "Other"], "load_env_cfg": load_env_cfg},
    }
    for name, members in modules.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return asked


def test_adapter_is_a_vec_env_with_flat_groups() -> None:
    env = made()
    assert isinstance(env, VecEnv)
    assert spec_of(env).observation_sizes == {"actor": 2, "camera": 4}
    assert env.notes == ["observation 'camera' of shape (1, 2, 2) is flattened to 4 numbers"]
    assert env.reset(7)["camera"].shape == (4, 4)
    assert env.core.seeds == [7]
    assert env.action_space.shape == (3,) and not env.action_space.is_bounded()  # type: ignore[attr-defined]
    assert MjlabEnv(FakeEnv(fake_cfg()), groups=["actor"]).observation_spaces.keys() == {"actor"}


@pytest.mark.parametrize(("words", "groups"), [("actor", ["actor"]), ("camera actor", ["camera", "actor"])])
def test_groups_may_be_written_as_on_a_command_line(words: str, groups: list[str]) -> None:
    for text in (words, words.replace(" ", ","), f"[{words.replace(' ', ', ')}]"):
        assert list(MjlabEnv(FakeEnv(fake_cfg()), groups=text).observation_spaces) == groups
    with pytest.raises(ValueError, match="did you mean groups=actor"):
        MjlabEnv(FakeEnv(fake_cfg()), groups="acter")


def test_final_observation_is_the_one_before_the_reset() -> None:
    env = made()
    assert env.final_obs_source == "manual" and env.core.cfg.auto_reset is False
    env.reset()
    first, second = env.step(torch.zeros(4, 3)), env.step(torch.zeros(4, 3))
    assert first.final_obs is first.obs
    assert second.truncated.tolist() == [True, False, False, False]
    assert second.final_obs is not None
    assert second.final_obs["actor"][:, 0].tolist() == [2, 2, 2, 2]
    assert second.obs["actor"][:, 0].tolist() == [0, 2, 2, 2]
    # Where nothing was reset, the observation is that of the step and not a newly drawn one.
    assert torch.equal(second.obs["actor"][1:], second.final_obs["actor"][1:])
    for _ in range(20):
        env.step(torch.zeros(4, 3))  # the fake refuses if an env was left unreset


def test_flags_may_both_be_set() -> None:
    env = made()
    env.reset()
    env.step(torch.zeros(4, 3))
    step = env.step(torch.zeros(4, 3))
    assert step.terminated[0] and step.truncated[0]


@pytest.mark.parametrize("finite", [False, True])
def test_end_of_a_finite_horizon_is_terminal(finite: bool) -> None:
    env = made(fake_cfg(is_finite_horizon=finite))
    env.reset()
    steps = [env.step(torch.zeros(4, 3)) for _ in range(3)]
    assert steps[2].truncated[1]
    assert bool(steps[2].terminated[1]) == finite


def test_log_is_that_of_step_and_reset_in_steps_that_reset() -> None:
    env = made()
    env.reset()
    first, second = env.step(torch.zeros(4, 3)), env.step(torch.zeros(4, 3))
    assert first.log == {}
    assert {name: float(value) for name, value in second.log.items()} == pytest.approx(
        {
            "Metrics/speed": 2.0,
            "Episode_Reward/alive": 0.1,
            "Episode_Termination/fell_over": 1.0,
            "Curriculum/level": 0.5,
        }
    )


def test_values_stay_when_the_env_writes_into_its_buffers() -> None:
    env = made()
    env.reset()
    first = env.step(torch.zeros(4, 3))
    env.step(torch.zeros(4, 3))
    assert first.reward.tolist() == [1, 1, 1, 1]
    assert not first.truncated.any()


def test_without_final_observations_the_env_resets_itself() -> None:
    env = made(final_obs="off")
    env.reset()
    steps = [env.step(torch.zeros(4, 3)) for _ in range(2)]
    assert env.final_obs_source == "off" and env.core.cfg.auto_reset
    assert steps[1].final_obs is None and steps[1].obs["actor"][0, 0] == 0
    assert not steps[0].log and "Episode_Termination/fell_over" in steps[1].log


def test_version_that_cannot_leave_resets_to_others_falls_back() -> None:
    cfg = fake_cfg()
    del cfg.auto_reset
    assert MjlabEnv(FakeEnv(cfg), groups=["actor"]).final_obs_source == "off"
    with pytest.raises(ValueError, match=r"needs mjlab 1\.3"):
        MjlabEnv(FakeEnv(cfg), groups=["actor"], final_obs="manual")


class HookedEnv(FakeEnv):
    """The same with mjlab's manager of observations, and the method that resets."""

    def __init__(self, cfg: Any, **state: Any) -> None:
        super().__init__(cfg)
        self.sensed = 0.0
        self.sim = SimpleNamespace(sense=self.sense)
        empty: dict[str, Any] = {"actor": {}, "camera": {}}
        self.observation_manager = SimpleNamespace(
            compute_group=lambda group: self.observe()[group],
            _group_obs_term_delay_buffer=empty,
            _group_obs_term_history_buffer=empty,
            _group_obs_class_term_cfgs={"actor": [], "camera": []},
            _group_obs_class_instances=empty,
        )
        vars(self.observation_manager).update(state)

    def sense(self) -> None:
        self.sensed = float(self.episode_length_buf[0])

    def observe(self) -> dict[str, Tensor]:
        return super().observe() | {"camera": torch.full((self.num_envs, 1, 2, 2), self.sensed)}

    def restart(self, ids: Tensor) -> None:
        self._reset_idx(ids)

    def _reset_idx(self, ids: Tensor) -> None:
        super().restart(ids)


def test_hook_sees_the_observation_before_the_reset() -> None:
    env = MjlabEnv(HookedEnv(fake_cfg()))
    assert env.final_obs_source == "hook" and env.core.cfg.auto_reset
    env.reset()
    first, second = env.step(torch.zeros(4, 3)), env.step(torch.zeros(4, 3))
    assert first.final_obs == first.obs and not first.log
    assert second.final_obs is not None
    assert second.final_obs["actor"][:, 0].tolist() == [2, 2, 2, 2]
    assert second.final_obs["camera"].eq(2).all()  # what is sensed is sensed anew
    assert second.obs["actor"][:, 0].tolist() == [0, 2, 2, 2]
    assert "Episode_Termination/fell_over" in second.log
    env.close()
    assert "_reset_idx" not in vars(env.core)  # as it was


@pytest.mark.parametrize("wanted", [("camera",), ("actor", "camera"), ()])
def test_hook_computes_the_groups_that_are_read(wanted: tuple[str, ...]) -> None:
    env = MjlabEnv(HookedEnv(fake_cfg()))
    env.reset()
    want_final_obs(env, wanted)
    computed: list[str] = []
    compute = env.core.observation_manager.compute_group
    env.core.observation_manager.compute_group = lambda group: computed.append(group) or compute(group)
    for resets in (False, True):
        step = env.step(torch.zeros(4, 3))
        check_step(env, step)
        assert step.final_obs is not None and tuple(step.final_obs) == wanted
        assert tuple(computed) == (wanted if resets else ())
    assert "camera" not in wanted or step.final_obs["camera"].eq(2).all()


@pytest.mark.parametrize(
    "state", ["_group_obs_term_delay_buffer", "_group_obs_term_history_buffer", "_group_obs_class_term_cfgs", "gone"]
)
def test_observations_with_a_memory_are_not_computed_twice(state: str) -> None:
    core = HookedEnv(fake_cfg(), **{state: {"actor": {"joints": object()}}})
    if state == "gone":  # a version that keeps them elsewhere
        del core.observation_manager._group_obs_term_delay_buffer
    assert MjlabEnv(core).final_obs_source == "manual"
    with pytest.raises(ValueError, match="'hook' is not possible, observations have a memory"):
        MjlabEnv(core, final_obs="hook")


def test_final_observations_that_nobody_reads_cost_no_rays() -> None:
    sensed: list[int] = []
    for wanted in ((), ("actor",)):
        env = MjlabEnv(HookedEnv(fake_cfg()))
        env.core.sim.sense = lambda: sensed.append(1)
        env.reset()
        want_final_obs(env, wanted)
        for _ in range(2):
            step = env.step(torch.zeros(4, 3))
        assert step.final_obs is not None and tuple(step.final_obs) == wanted
        assert len(sensed) == len(wanted)


def test_agents_on_one_env_get_all_that_they_read() -> None:
    env = MjlabEnv(HookedEnv(fake_cfg()))
    for wanted in (("camera",), (), ("actor",)):
        want_final_obs(env, wanted)
    env.reset()
    for _ in range(2):
        step = env.step(torch.zeros(4, 3))
    assert step.final_obs is not None and set(step.final_obs) == {"actor", "camera"}


def test_unknown_way_to_final_observations_is_refused() -> None:
    with pytest.raises(ValueError, match="final_obs is 'exact'; use 'auto', 'hook', 'manual' or 'off'"):
        made(final_obs="exact")


def test_action_is_a_clipped_copy_without_gradient() -> None:
    env = made(clip_actions=0.5)
    env.reset()
    action = torch.full((4, 3), 2.0, requires_grad=True)
    env.step(action)
    assert spec_of(env).action_low == [-0.5] * 3
    assert torch.equal(env.core.actions[0], torch.full((4, 3), 0.5))
    assert not env.core.actions[0].requires_grad
    unclipped = made()
    unclipped.reset()
    action = torch.full((4, 3), 2.0)
    unclipped.step(action)
    action.zero_()
    assert unclipped.core.actions[0].eq(2.0).all()


def test_random_start_spreads_episodes() -> None:
    env = made(fake_cfg(scene=SimpleNamespace(num_envs=64)), randomize_start=True)
    env.reset()
    assert len(env.core.episode_length_buf.unique()) > 20
    assert env.core.episode_length_buf.max() < 100


def test_counters_are_saved_and_restored() -> None:
    env = made()
    env.reset()
    env.step(torch.zeros(4, 3))
    state = env.state_dict()
    assert state == {"common_step_counter": 1, "_sim_step_counter": 4}
    other = made()
    other.load_state_dict(state)
    assert other.core.common_step_counter == 1 and other.core._sim_step_counter == 4
    assert not env.exact_state


def test_terrain_levels_are_restored_with_their_origins() -> None:
    def with_terrain() -> MjlabEnv:
        cfg = fake_cfg()
        env = MjlabEnv(FakeEnv(cfg), groups=["actor"])
        origins = torch.arange(24.0).view(4, 2, 3)
        levels, kinds = torch.zeros(4, dtype=torch.long), torch.tensor([0, 1, 0, 1])
        env.core.scene = SimpleNamespace(
            terrain=SimpleNamespace(
                terrain_levels=levels, terrain_types=kinds, terrain_origins=origins, env_origins=origins[levels, kinds]
            )
        )
        return env

    env, other = with_terrain(), with_terrain()
    env.core.scene.terrain.terrain_levels[:] = torch.tensor([3, 0, 2, 1])
    other.load_state_dict(env.state_dict())
    terrain = other.core.scene.terrain
    assert terrain.terrain_levels.tolist() == [3, 0, 2, 1]
    assert torch.equal(terrain.env_origins, terrain.terrain_origins[[3, 0, 2, 1], [0, 1, 0, 1]])


def test_render_needs_the_mode() -> None:
    env = made()
    with pytest.raises(ValueError, match="render_mode='rgb_array'"):
        env.render()
    env.core.render_mode = "rgb_array"
    assert env.render().shape == (1, 1, 3)


def test_registered_task_is_built_from_its_configuration(registry: dict[str, Any]) -> None:
    env: Any = make_env("Mjlab-Walk", 6, seed=3, groups=["actor"], **{"sim.mujoco.timestep": 0.005})
    assert (env.num_envs, env.task, env.core.device) == (6, "Mjlab-Walk", "cpu")
    cfg = registry["cfg"]
    assert (cfg.seed, cfg.scene.num_envs, cfg.sim.mujoco.timestep, registry["play"]) == (3, 6, 0.005, False)
    other = make_env("mjlab:Other", 2, play=True, groups=["actor"])
    assert other.num_envs == 2
    # An exported file says where a new process finds the task.
    for task in ("Mjlab-Walk", "mjlab:Other", "mjlab:json:Other", "mjlab:json:Mjlab-Walk"):
        assert spec_of(make_env(task, 2, groups=["actor"])).task == task
    make_env("mjlab:Other", 2, play=True, groups=["actor"])
    assert (registry["name"], registry["play"]) == ("Other", True)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("Mjlab-Wlak", {}, "did you mean Mjlab-Walk"),
        ("Mjlab-Walk", {"sim.mujoco.timestp": 0.1}, "did you mean sim.mujoco.timestep"),
        ("Mjlab-Walk", {"sim.mujoco.timestep": "fast"}, "it must be float, as in 0.002"),
        ("Mjlab-Walk", {"groups": ["acter"]}, "did you mean groups=actor"),
        ("Mjlab-Walk", {"clip_actions": -1}, "use a number above 0, 'auto' or None"),
        ("mjlab:unheard_of_module:Task", {}, "no module 'unheard_of_module'"),
    ],
)
def test_refusal_names_the_remedy(registry: dict[str, Any], task: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        make_env(task, 2, **options)
    assert "\n" not in str(raised.value)


def test_task_that_tracks_names_the_setting_of_its_motion(registry: dict[str, Any], tmp_path: Path) -> None:
    make_env("Mjlab-Walk", 2)
    motion = SimpleNamespace(motion_file="")
    registry["cfg"].commands = {"twist": SimpleNamespace(), "motion": motion}
    text, array, good = tmp_path / "text.npz", tmp_path / "array.npy", tmp_path / "good.npz"
    text.write_text("no archive")
    np.save(array, np.zeros(3))
    np.savez(good, joint_pos=np.zeros(3))
    for file, message in (
        ("", "tracks a motion, and none is given; add --env.commands.motion.motion_file FILE.npz"),
        (str(tmp_path / "none.npz"), "--env.commands.motion.motion_file is '.*none.npz', which is no file"),
        (str(text), "text.npz', which is no .npz file; give that of a motion$"),
        (str(array), "array.npy', which is no .npz file; give that of a motion$"),
    ):
        motion.motion_file = file
        with pytest.raises(ValueError, match=message):
            make_env("Mjlab-Walk", 2)
    make_env("Mjlab-Walk", 2, **{"commands.motion.motion_file": str(good)}).close()


def test_warp_is_quiet_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    warp: Any = types.ModuleType("warp")
    warp.LOG_WARNING, warp.config = 30, SimpleNamespace(log_level=20)
    monkeypatch.setitem(sys.modules, "warp", warp)
    monkeypatch.setenv("MJLAB_WARP_QUIET", "0")
    quiet_warp()
    assert warp.config.log_level == 20
    monkeypatch.delenv("MJLAB_WARP_QUIET")
    quiet_warp()
    assert warp.config.log_level == 30 and os.environ["MJLAB_WARP_QUIET"] == "1"  # which mjlab reads


def test_missing_mjlab_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mjlab", None)
    monkeypatch.delitem(sys.modules, "mjlab.tasks", raising=False)
    with pytest.raises(ValueError, match=r"Mjlab-Walk: mjlab is not installed; run: pip install mjlab"):
        make_env("Mjlab-Walk", 2)


# With the real package, which is large. -----------------------------------------------------------------------------


@pytest.fixture
def mjlab() -> Any:
    pytest.importorskip("mjlab", reason="mjlab is not installed")
    return __import__("importlib").import_module("mjlab.tasks.registry")


def raw_env(registry: Any, **values: Any) -> Any:
    from mjlab.envs import ManagerBasedRlEnv

    cfg = registry.load_env_cfg(TASK)
    cfg.scene.num_envs, cfg.seed, cfg.auto_reset = N, 1, False
    for name, value in values.items():
        setattr(cfg, name, value)
    return ManagerBasedRlEnv(cfg, device="cpu")


@pytest.mark.slow
@pytest.mark.cpu_seconds(600)
def test_real_cartpole_gives_the_observation_that_an_env_without_resets_sees(mjlab: Any) -> None:
    actions = torch.randn(60, N, 1, generator=torch.Generator().manual_seed(2))
    endless, by_hand = raw_env(mjlab, episode_length_s=100.0), raw_env(mjlab, episode_length_s=1.0)
    env: Any = make_env(TASK, N, seed=1, episode_length_s=1, final_obs="manual")
    hooked: Any = make_env(TASK, N, seed=1, episode_length_s=1)
    assert env.final_obs_source == "manual" and env.max_episode_length == 20
    assert hooked.final_obs_source == "hook"
    assert spec_of(env).observation_sizes == {"actor": 5, "critic": 5}

    endless.reset(seed=4)
    unended = [endless.step(action)[0]["critic"].clone() for action in actions[:20]]

    expected: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    by_hand.reset(seed=4)
    for action in actions:
        observation, reward, terminated, truncated, _ = by_hand.step(action)
        final, done = observation["critic"].clone(), (terminated | truncated).clone()
        reward = reward.clone()
        after = by_hand.reset(env_ids=done.nonzero().squeeze(-1))[0]["critic"] if done.any() else final
        expected.append((final, after.clone(), reward, done))

    hooked.reset(4)
    for action, (final, _, reward, done) in zip(actions[:20], expected, strict=False):
        other = hooked.step(action)
        assert other.final_obs is not None
        assert torch.equal(other.final_obs["critic"], final) and bool(other.log) == bool(done.any())
        assert torch.equal(other.reward, reward) and torch.equal(other.truncated, done)

    env.reset(4)
    ended = 0
    for i, action in enumerate(actions):
        step = env.step(action)
        final, after, reward, done = expected[i]
        assert step.final_obs is not None
        assert torch.equal(step.final_obs["critic"], final) and torch.equal(step.obs["critic"], after)
        assert torch.equal(step.reward, reward) and torch.equal(step.truncated, done)
        assert bool(step.log) == bool(done.any())
        if i < 20:
            assert torch.equal(step.final_obs["critic"], unended[i])
        ended += int(done.sum())
    assert ended == 3 * N
    assert set(step.log) >= {"Episode_Termination/time_out"}
    # Contract: buffers in place, a log that is emptied, both flags and no final observation of its own.
    first, second = by_hand.step(actions[0]), by_hand.step(actions[1])
    assert first[1].data_ptr() == second[1].data_ptr() and first[4] is second[4]
    assert second[4]["log"] == {} and set(second[4]) == {"log"}


@pytest.mark.slow
@pytest.mark.cpu_seconds(900)
def test_real_go1_resumes_at_its_levels_on_their_terrain(mjlab: Any) -> None:
    generator = "scene.terrain.terrain_generator"
    small = {f"{generator}.num_rows": 8, f"{generator}.num_cols": 4, "sim.nconmax": 200, "sim.njmax": 800}
    env: Any = make_env("Mjlab-Velocity-Rough-Unitree-Go1", 8, seed=2, **small)
    terrain, levels = env.core.scene.terrain, [6, 6, 5, 5, 4, 4, 3, 3]
    ranges = env.core.command_manager.get_term("twist").cfg.ranges

    def distance() -> float:
        away = env.core.scene["robot"].data.root_link_pos_w - terrain.env_origins
        return float(away[:, :2].norm(dim=1).max())

    # As a checkpoint of before has it; the ranges follow from the counter.
    old = {"common_step_counter": 480_000, "_sim_step_counter": 1_920_000, "terrain_levels": torch.tensor(levels)}
    reset_at(env, {"num_envs": 8, "clocks": [], "state": old})
    assert terrain.terrain_levels.tolist() == levels and ranges.lin_vel_x == (-2.0, 3.0)
    assert distance() < 1.0  # the task itself places robots within half a metre in x and y
    stage = stage_of(env)
    assert stage is not None and stage["state"]["changed"]["command/twist/ranges/lin_vel_x"] == (-2.0, 3.0)
    for _ in range(3):
        env.step(torch.zeros(8, 12))
    ranges.lin_vel_x = (0.0, 0.1)
    reset_at(env, stage)
    assert terrain.terrain_levels.tolist() == levels and ranges.lin_vel_x == (-2.0, 3.0)
    assert env.core.common_step_counter == 480_000 and distance() < 1.0
    env.close()


@pytest.mark.slow
@pytest.mark.cpu_seconds(600)
def test_real_cartpole_trains_evaluates_and_resumes(mjlab: Any) -> None:
    from rlcore.learn import learn, resume, snapshot
    from rlcore.ppo import PPO, PPOConfig
    from rlcore.train.evaluate import evaluate

    options: dict[str, Any] = {"episode_length_s": 1, "randomize_start": True}
    env: Any = make_env(TASK, 64, seed=1, **options)
    facts = env.deployment
    assert facts["control_dt"] == pytest.approx(0.05) and facts["action_terms"][0]["joints"] == ["slider"]
    names = [term["name"] for term in facts["observation_terms"]["actor"]]
    assert names == ["cart_pos", "pole_angle", "cart_vel", "pole_vel"]
    assert facts["action_terms"][0]["scale"] == 1.0
    config = PPOConfig(num_steps=16)
    agent = PPO(env, config)
    reports: list[Any] = []
    progress = learn(env, agent, 3, seed=1, on_report=reports.append)
    assert {"env/Episode_Termination/time_out", "rollout/episode_return"} <= reports[-1].metrics.keys()
    assert agent.timeout_bootstrap == "final_obs"
    content = snapshot(env, agent, progress)
    assert content["env"]["common_step_counter"] == 48

    again: Any = make_env(TASK, 64, seed=2, **options)
    other = PPO(again, config)
    resumed, _ = resume(again, other, content)
    assert resumed.iteration == 3 and again.core.common_step_counter == 48
    assert learn(again, other, 4, progress=resumed).iteration == 4
    assert again.core.common_step_counter == 64

    judge: Any = make_env(TASK, N, seed=3, episode_length_s=1)
    result = evaluate(judge, agent.policy, 5)
    assert result.episodes == N and result.lengths.tolist() == [20] * N
    assert 0 < result.mean_return <= 1.0


@pytest.mark.slow
@pytest.mark.cpu_seconds(900)
@pytest.mark.parametrize(("name", "channels"), [("Rgb", 3), ("Depth", 1)])
def test_real_cameras_train_from_the_configuration_that_they_ship(mjlab: Any, name: str, channels: int) -> None:
    from rlcore.config import from_dict
    from rlcore.learn import learn
    from rlcore.ppo import PPO
    from rlcore.train.config import TrainConfig
    from rlcore.train.importers.registered import registered_config

    task = f"Mjlab-Lift-Cube-Yam-{name}"
    settings, _ = registered_config(task, num_envs=2)
    config: Any = from_dict(TrainConfig, {**settings, "task": task}, source=task)
    agent_config = dataclasses.replace(config.agent, num_steps=4, num_minibatches=1, num_epochs=1)
    assert agent_config.actor_obs == ("actor", "camera") and agent_config.actor.cnn.global_pooling == "softmax"
    env: Any = make_env(task, 2, seed=1, episode_length_s=0.04, **config.env)
    assert env.final_obs_source == "hook" and spec_of(env).image_shapes == {"camera": [channels, 32, 32]}
    agent = PPO(env, agent_config, seed=1)
    encoders: Any = agent.policy.trunk.encoders
    before = [value.clone() for value in encoders.parameters()]
    learn(env, agent, 1, seed=1)
    assert not any(torch.equal(*pair) for pair in zip(before, encoders.parameters(), strict=True))
    seen = agent.rollout.data["raw_camera"]
    assert seen.shape[2:] == (channels, 32, 32) and 0 <= seen.min() < seen.max() <= 1 and seen.std() > 0.01
    env.close()
