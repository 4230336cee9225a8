from __future__ import annotations

import copy
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import rlcore.export.runner
from rlcore import PPO, PPOConfig
from rlcore.agent import Policy
from rlcore.env import EnvSpec, spec_of
from rlcore.envs import make_env
from rlcore.export import ExportError, OnnxPolicy, ParityReport, config_hash, export_onnx, read_metadata, verify
from rlcore.export.onnx import _check_graph
from rlcore.export.parity import _decided
from rlcore.gate import Gated
from rlcore.train.run import RunFolder
from rlcore.types import Obs, State

SIZES = {"policy": 7, "goal": 3}
TOLERANCE = 1e-5


class Controller(Policy):
    """Normalizer, MLP and action limits over two observation groups."""

    def __init__(self, actions: int = 4, discrete: bool = False) -> None:
        super().__init__()
        self.observation_sizes = dict(SIZES)
        self.discrete = discrete
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.register_buffer("mean", torch.randn(10))
            self.register_buffer("std", 0.1 + torch.rand(10))
            self.net = nn.Sequential(
                nn.Linear(10, 64), nn.ELU(), nn.Linear(64, 64), nn.ELU(), nn.LayerNorm(64), nn.Linear(64, actions)
            )
        self.register_buffer("count", torch.tensor(1e6, dtype=torch.float64))
        self.register_buffer("low", -torch.linspace(0.5, 2.0, actions))

    def forward(self, obs: Obs, state: State = ()) -> tuple[Tensor, State]:
        x = torch.cat([obs["policy"], obs["goal"]], dim=-1)
        y = self.net(((x - self.mean) / (self.std + 1e-2)).clamp(-10, 10))
        return (y.argmax(dim=-1) if self.discrete else torch.clamp(y, self.low, -self.low)), state


class Recurrent(Policy):
    """An LSTM of two layers, or a GRU of one."""

    def __init__(self, cell: str) -> None:
        super().__init__()
        self.observation_sizes = dict(SIZES)
        self.net = nn.LSTM(10, 8, num_layers=2) if cell == "lstm" else nn.GRU(10, 8)
        self.head = nn.Linear(8, 4)

    def initial_state(self, num_envs: int) -> State:
        shape = (self.net.num_layers, num_envs, 8)
        return tuple(torch.zeros(shape) for _ in range(2 if isinstance(self.net, nn.LSTM) else 1))

    def forward(self, obs: Obs, state: State = ()) -> tuple[Tensor, State]:
        x = torch.cat([obs["policy"], obs["goal"]], dim=-1).unsqueeze(0)  # [1, N, O]
        y, after = self.net(x, tuple(state) if len(state) == 2 else state[0])
        return torch.tanh(self.head(y[0])), (tuple(after) if len(state) == 2 else (after,))


class Broken(Controller):
    """Adds something that only the traced graph has."""

    offset = 3e-4

    def forward(self, obs: Obs, state: State = ()) -> tuple[Tensor, State]:
        action, state = super().forward(obs, state)
        if torch.onnx.is_in_onnx_export():
            action = action + self.offset * torch.tensor([0.0, 0.0, 1.0, 0.0])
        return action, state


class BrokenChoice(Controller):
    """Chooses another index in the traced graph where one feature is large."""

    def __init__(self) -> None:
        super().__init__(discrete=True)

    def forward(self, obs: Obs, state: State = ()) -> tuple[Tensor, State]:
        action, state = super().forward(obs, state)
        if torch.onnx.is_in_onnx_export():
            action = torch.where(obs["goal"][:, 0] > 1.5, (action + 1) % 4, action)
        return action, state


class AlmostTied(Controller):
    """The traced graph prefers index 1 by less than float32 can tell, the policy index 0."""

    def __init__(self, gap: float) -> None:
        super().__init__(discrete=True)
        self.gap = gap

    def forward(self, obs: Obs, state: State = ()) -> tuple[Tensor, State]:
        x = obs["policy"][:, 0]
        first = x + self.gap if torch.onnx.is_in_onnx_export() else x
        return (first > 0).long(), state


class MissingOperation(Controller):
    """Uses an operation that opset 11 cannot express."""

    def forward(self, obs: Obs, state: State = ()) -> tuple[Tensor, State]:
        action, state = super().forward(obs, state)
        return action + torch.linalg.matrix_exp(torch.eye(4)[None] * action[:, :1, None])[:, 0], state


def make_spec(discrete: bool = False) -> EnvSpec:
    return EnvSpec(
        task="Arm-Test",
        observation_sizes={"critic": 99, **SIZES},
        discrete=discrete,
        action_size=4,
        action_low=[] if discrete else [-1.0, -1.0, -1.0, -float("inf")],
        action_high=[] if discrete else [1.0, 1.0, 1.0, float("inf")],
        deployment={
            "control_dt": 0.02,
            "joint_names": ["a", "b", "c", "d"],
            "observation_terms": {
                "goal": [{"name": "position", "size": 3, "unit": "m"}],
                "policy": [{"name": "joint_pos", "size": 4}, {"name": "last_action", "size": 3}],
                "critic": [{"name": "secret", "size": 99}],
            },
            "action_terms": []
            if discrete
            else [{"name": "arm", "size": 4, "scale": 0.5, "offset": [0.0, 0.1, 0.2, 0.3]}],
        },
    )


def make_recording(steps: int = 20, envs: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    recording = {group: 1 + 2 * torch.randn(steps, envs, size, generator=generator) for group, size in SIZES.items()}
    return {**recording, "done": torch.rand(steps, envs, generator=generator) < 0.2}


def flat_obs(obs: Obs) -> np.ndarray:
    return torch.cat([obs[group] for group in SIZES], dim=-1).numpy()


def test_file_is_alone_passes_checker_and_is_opset_11(tmp_path: Path) -> None:
    path = tmp_path / "run" / "export" / "policy.onnx"
    export_onnx(Controller(), make_spec(), path, recording=make_recording())
    assert [p.name for p in path.parent.iterdir()] == ["policy.onnx"]
    model = onnx.load(str(path), load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 11)]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [(i.name, i.shape, i.type) for i in session.get_inputs()] == [("obs", [1, 10], "tensor(float)")]
    assert [(o.name, o.shape, o.type) for o in session.get_outputs()] == [("actions", [1, 4], "tensor(float)")]


def test_file_names_no_path_of_the_machine(tmp_path: Path) -> None:
    export_onnx(Controller(), make_spec(), tmp_path / "policy.onnx", recording=None)
    content = (tmp_path / "policy.onnx").read_bytes()
    assert str(tmp_path).encode() not in content
    assert str(Path(__file__).parent).encode() not in content
    assert b".py" not in content


def test_parity_is_within_tolerance_and_recorded(tmp_path: Path) -> None:
    recording = make_recording()
    report = export_onnx(Controller(), make_spec(), tmp_path / "policy.onnx", recording=recording)
    assert report.parity.recorded_samples == 120
    assert report.parity.samples > 120 + 1000
    metadata = read_metadata(tmp_path / "policy.onnx")
    assert metadata["parity_max_abs_error"] == report.parity.max_abs_error <= TOLERANCE
    assert metadata["parity_samples"] == report.parity.samples
    assert metadata["parity_source"] == "recorded and random observations"

    # The figure against a replay of our own, without the runner.
    session = onnxruntime.InferenceSession(str(tmp_path / "policy.onnx"), providers=["CPUExecutionProvider"])
    rows = flat_obs(recording).reshape(-1, 1, 10)
    got = np.concatenate([session.run(None, {"obs": row})[0] for row in rows])
    with torch.no_grad():
        expected = Controller().eval()({g: recording[g].reshape(-1, s) for g, s in SIZES.items()})[0].numpy()
    assert np.abs(expected).max() > 0.4  # the comparison is about something
    assert np.abs(got - expected).max() <= max(report.parity.max_abs_error, 1e-7)


def test_without_recording_the_metadata_says_random_only(tmp_path: Path) -> None:
    report = export_onnx(Controller(), make_spec(), tmp_path / "policy.onnx", recording=None)
    assert report.parity.recorded_samples == 0 < report.parity.samples
    assert read_metadata(tmp_path / "policy.onnx")["parity_source"] == "random observations only"


def test_failed_parity_is_refused_and_the_previous_file_survives(tmp_path: Path) -> None:
    path = tmp_path / "policy.onnx"
    export_onnx(Controller(), make_spec(), path, recording=make_recording())
    before = path.read_bytes()
    with pytest.raises(
        ExportError, match=r"largest difference 0\.\d+ in output 'actions\[2\]', above the tolerance 1e-05"
    ):
        export_onnx(Broken(), make_spec(), path, recording=make_recording())
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["policy.onnx"]
    # The same difference passes where it is allowed.
    report = export_onnx(Broken(), make_spec(), path, recording=make_recording(), tolerance=1e-3)
    assert report.parity.max_abs_error == pytest.approx(3e-4, rel=0.01)


def test_a_link_stays_one_and_points_to_the_new_file(tmp_path: Path) -> None:
    (tmp_path / "releases").mkdir()
    (tmp_path / "releases" / "1.onnx").write_text("before")
    (tmp_path / "current.onnx").symlink_to("releases/1.onnx")
    report = export_onnx(Controller(), make_spec(), tmp_path / "current.onnx", recording=None)
    assert (tmp_path / "current.onnx").is_symlink() and report.path == tmp_path / "current.onnx"
    assert OnnxPolicy(tmp_path / "releases" / "1.onnx").metadata["task"] == "Arm-Test"
    assert [path.name for path in (tmp_path / "releases").iterdir()] == ["1.onnx"]


KILLED = """
import os, signal, sys, torch
sys.path.insert(0, sys.argv[2])
from test_export import Controller, make_spec
from rlcore.export import export_onnx
torch.onnx.export = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
export_onnx(Controller(), make_spec(), sys.argv[1], recording=None)
"""


def test_what_an_export_that_was_killed_has_left_goes_as_the_run_goes_on(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    command = [sys.executable, "-c", KILLED, str(run.exported), str(Path(__file__).parent)]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    (left,) = run.exported.parent.iterdir()
    notes = run.take_over()
    run.unlock()
    assert not list(run.exported.parent.iterdir())
    assert f"removed what a process that was killed had not written to its end: {left}" in notes


def test_a_difference_that_may_be_rounding_is_refused_with_what_to_do(tmp_path: Path) -> None:
    options = {"recording": make_recording(), "tolerance": 1e-12}
    with pytest.raises(ExportError, match="may be rounding, of long sums most of all: 'rlcore export --tolerance'"):
        export_onnx(Controller(), make_spec(), tmp_path / "policy.onnx", **options)  # type: ignore[arg-type]
    with pytest.raises(ExportError) as error:
        export_onnx(Broken(), make_spec(), tmp_path / "policy.onnx", **options)  # type: ignore[arg-type]
    assert "rounding" not in str(error.value)


def test_what_an_exporter_writes_beside_the_file_or_in_another_opset_is_refused(tmp_path: Path) -> None:
    export_onnx(Controller(), make_spec(), tmp_path / "policy.onnx", recording=None)
    model = onnx.load(str(tmp_path / "policy.onnx"))
    _check_graph(model)
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    with pytest.raises(ExportError, match=rf"put weights \['{model.graph.initializer[0].name}'\] into another file"):
        _check_graph(model)
    model.opset_import[0].version = 18
    with pytest.raises(ExportError, match=r"wrote opsets \{'': 18\}; only the standard opset 11 is allowed"):
        _check_graph(model)


class BrokenAt(Controller):
    """The traced graph is another where the first number of ``goal`` is above a limit: there all actions differ."""

    def __init__(self, limit: float, by: float) -> None:
        super().__init__()
        self.limit, self.by = limit, by

    def forward(self, obs: Obs, state: State = ()) -> tuple[Tensor, State]:
        action, state = super().forward(obs, state)
        if torch.onnx.is_in_onnx_export():
            action = torch.where(obs["goal"][:, :1] > self.limit, action + self.by, action)
        return action, state


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize(("limit", "by"), [(15.0, 0.5), (1.5, float("nan"))], ids=["far out", "no number"])
def test_a_file_that_differs_far_out_or_gives_no_number_is_refused(
    limit: float, by: float, recorded: bool, tmp_path: Path
) -> None:
    """Random observations as far as 15 are ten times as far out as usual: those of a fault, or of a fall."""
    recording = make_recording() if recorded else None
    assert recording is None or recording["goal"].max() < 15
    size = r"0\.0\d+" if by == 0.5 else "inf"  # of ten times the usual, a tenth
    with pytest.raises(ExportError, match=rf"largest difference {size} in output 'actions\[\d\]', above the tolerance"):
        export_onnx(BrokenAt(limit, by), make_spec(), tmp_path / "policy.onnx", recording=recording)
    assert list(tmp_path.iterdir()) == []


def test_difference_on_recorded_observations_alone_is_found(tmp_path: Path) -> None:
    class BrokenFarOut(Controller):
        def forward(self, obs: Obs, state: State = ()) -> tuple[Tensor, State]:
            action, state = super().forward(obs, state)
            wrong = torch.where(obs["goal"][:, :1] == 123.0, 1.0, 0.0) if torch.onnx.is_in_onnx_export() else 0.0
            return action + wrong, state

    recording = make_recording()
    export_onnx(BrokenFarOut(), make_spec(), tmp_path / "policy.onnx", recording=recording)
    recording["goal"][7, 3, 0] = 123.0
    with pytest.raises(ExportError, match="above the tolerance"):
        export_onnx(BrokenFarOut(), make_spec(), tmp_path / "policy.onnx", recording=recording)


def test_large_actions_are_judged_by_their_size(tmp_path: Path) -> None:
    class Torque(Controller):
        def forward(self, obs: Obs, state: State = ()) -> tuple[Tensor, State]:
            action, state = super().forward(obs, state)
            error = 1.0 + self.relative if torch.onnx.is_in_onnx_export() else 1.0
            return 300 * error * action, state

        relative = 0.0

    policy = Torque()
    report = export_onnx(policy, make_spec(), tmp_path / "policy.onnx", recording=make_recording())
    assert TOLERANCE < report.parity.max_abs_error < 1e-3  # float32 cannot do better at 300
    policy.relative = 3e-5
    with pytest.raises(ExportError, match="largest difference"):
        export_onnx(policy, make_spec(), tmp_path / "policy.onnx", recording=make_recording())


def test_metadata_tells_terms_and_slices(tmp_path: Path) -> None:
    extra = {"algorithm": "ppo", "iteration": 200, "env_steps": 4_915_200, "config_hash": config_hash({"a": (1, 2)})}
    extra["note"] = "[draft] in brackets"  # as a list would begin
    export_onnx(Controller(), make_spec(), tmp_path / "policy.onnx", recording=None, extra_metadata=extra)
    properties = onnx.load(str(tmp_path / "policy.onnx")).metadata_props
    assert {p.key: p.value for p in properties}["normalizer_inside"] == "true"
    metadata = read_metadata(tmp_path / "policy.onnx")
    assert metadata["observation_groups"] == [
        {"name": "policy", "size": 7, "slice": [0, 7]},
        {"name": "goal", "size": 3, "slice": [7, 10]},
    ]
    assert metadata["observation_terms"] == [
        {"group": "policy", "name": "joint_pos", "size": 4, "slice": [0, 4]},
        {"group": "policy", "name": "last_action", "size": 3, "slice": [4, 7]},
        {"group": "goal", "name": "position", "size": 3, "unit": "m", "slice": [7, 10]},
    ]
    assert metadata["action_terms"] == [
        {"name": "arm", "size": 4, "scale": 0.5, "offset": [0.0, 0.1, 0.2, 0.3], "slice": [0, 4]}
    ]
    assert metadata["action_low"] == [-1.0, -1.0, -1.0, None]
    expected = {
        "note": "[draft] in brackets",
        "task": "Arm-Test",
        "action_kind": "continuous",
        "control_dt": 0.02,
        "joint_names": ["a", "b", "c", "d"],
        "normalizer_inside": True,
        "opset": 11,
        "inputs": {"obs": [1, 10]},
        "outputs": {"actions": [1, 4]},
        "torch_version": torch.__version__,
        **extra,
    }
    assert {key: metadata[key] for key in expected} == expected
    assert metadata["rlcore_version"]
    assert OnnxPolicy(tmp_path / "policy.onnx").metadata == metadata


def test_metadata_is_read_with_onnxruntime_where_onnx_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_onnx(Controller(), make_spec(), tmp_path / "policy.onnx", recording=None)
    expected = read_metadata(tmp_path / "policy.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert read_metadata(tmp_path / "policy.onnx") == expected


def test_unknown_facts_are_left_out(tmp_path: Path) -> None:
    spec = EnvSpec(task="Bare", observation_sizes=SIZES, discrete=False, action_size=4)
    export_onnx(Controller(), spec, tmp_path / "policy.onnx", recording=None)
    metadata = read_metadata(tmp_path / "policy.onnx")
    assert not {"control_dt", "joint_names", "algorithm", "iteration", "config_hash"} & set(metadata)
    assert [term["name"] for term in metadata["observation_terms"]] == ["policy", "goal"]
    assert metadata["action_terms"] == [{"name": "action", "size": 4, "slice": [0, 4]}]


def test_config_hash_does_not_depend_on_key_order() -> None:
    assert config_hash({"a": 1, "b": {"c": 2, "d": 3}}) == config_hash({"b": {"d": 3, "c": 2}, "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2})


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_runner_matches_policy_for_one_row_and_many(tmp_path: Path, dynamic: bool, discrete: bool) -> None:
    policy = Controller(discrete=discrete)
    path = tmp_path / "policy.onnx"
    export_onnx(policy, make_spec(discrete), path, recording=make_recording(), dynamic_batch=dynamic)
    runner = OnnxPolicy(path)
    assert runner.dynamic == dynamic
    assert runner.metadata["inputs"] == {"obs": ["batch" if dynamic else 1, 10]}
    assert runner.metadata["action_kind"] == ("discrete" if discrete else "continuous")
    obs = {group: torch.randn(5, size) for group, size in SIZES.items()}
    with torch.no_grad():
        expected = policy(obs)[0].numpy()
    rows = flat_obs(obs)
    for got in (runner(rows), runner({g: x.numpy() for g, x in obs.items()}), np.stack([runner(row) for row in rows])):
        assert got.shape == expected.shape
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, rtol=0, atol=0 if discrete else TOLERANCE)


def test_discrete_policy_with_another_choice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"\d+ of \d+ observations .* lead to another discrete action"):
        export_onnx(BrokenChoice(), make_spec(True), tmp_path / "policy.onnx", recording=make_recording())
    assert list(tmp_path.iterdir()) == []


def test_discrete_ties_are_counted_and_not_held_against_the_file(tmp_path: Path) -> None:
    recording = make_recording()
    recording["policy"][:4, 0, 0] = -1e-7  # rounding error away from the other choice
    report = export_onnx(AlmostTied(2e-7), make_spec(True), tmp_path / "policy.onnx", recording=recording)
    assert report.parity.ties == 4
    assert read_metadata(tmp_path / "policy.onnx")["parity_ties"] == 4
    recording["policy"][:4, 0, 0] = -1e-3
    with pytest.raises(ExportError, match="4 of"):
        export_onnx(AlmostTied(2e-3), make_spec(True), tmp_path / "policy.onnx", recording=recording)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_recurrent_policy_carries_its_state_and_resets(tmp_path: Path, cell: str, dynamic: bool) -> None:
    torch.manual_seed(0)
    policy, path = Recurrent(cell), tmp_path / "policy.onnx"
    report = export_onnx(policy, make_spec(), path, recording=make_recording(), dynamic_batch=dynamic)
    assert report.parity.max_abs_error <= TOLERANCE
    batch = "batch" if dynamic else 1
    state_in = {"h_in": [2, batch, 8], "c_in": [2, batch, 8]} if cell == "lstm" else {"h_in": [1, batch, 8]}
    assert report.metadata["inputs"] == {"obs": [batch, 10], **state_in}
    assert [*report.metadata["outputs"]] == ["actions", *(name.replace("in", "out") for name in state_in)]

    runner, state = OnnxPolicy(path), policy.initial_state(3)
    with torch.no_grad():
        for step in range(6):
            obs = {group: torch.randn(3, size) for group, size in SIZES.items()}
            expected, state = policy(obs, state)
            np.testing.assert_allclose(runner(flat_obs(obs)), expected.numpy(), rtol=0, atol=TOLERANCE)
            if step == 3:  # env 1 starts a new episode
                runner.reset(np.array([False, True, False]))
                state = tuple(s * torch.tensor([1.0, 0.0, 1.0])[None, :, None] for s in state)
    with pytest.raises(ValueError, match=r"1 observations .* state is of 3; call reset"):
        runner(np.zeros(10))
    runner.reset()
    first, second = runner(np.ones(10)), runner(np.ones(10))
    runner.reset()
    np.testing.assert_array_equal(runner(np.ones(10)), first)
    assert np.abs(first - second).max() > 1e-3


def test_recurrent_parity_sees_a_state_that_the_file_forgets(tmp_path: Path) -> None:
    class Forgets(Recurrent):
        def forward(self, obs: Obs, state: State = ()) -> tuple[Tensor, State]:
            action, (h, c) = super().forward(obs, state)
            return action, (h, c * 0.99 if torch.onnx.is_in_onnx_export() else c)

    with pytest.raises(ExportError, match="above the tolerance"):
        export_onnx(Forgets("lstm"), make_spec(), tmp_path / "policy.onnx", recording=make_recording())


def test_recurrent_parity_starts_anew_where_an_episode_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_onnx(Recurrent("lstm"), make_spec(), tmp_path / "policy.onnx", recording=None)
    recording = make_recording()
    recording["done"] = torch.arange(120).view(20, 6) % 7 == 0
    cleared: list[np.ndarray] = []
    reset = OnnxPolicy.reset

    def watched(self: OnnxPolicy, mask: np.ndarray | None = None) -> None:
        reset(self, mask)
        if mask is not None:
            assert all((part[:, mask] == 0).all() and (part[:, ~mask] != 0).any() for part in self.state)
            cleared.append(mask)

    monkeypatch.setattr(OnnxPolicy, "reset", watched)
    verify(tmp_path / "policy.onnx", Recurrent("lstm"), recording)
    assert np.array_equal(np.stack(cleared[:20]), recording["done"].numpy())


def test_verify_alone_tells_a_matching_file_from_another(tmp_path: Path) -> None:
    policy, recording = Controller(), make_recording()
    export_onnx(policy, make_spec(), tmp_path / "policy.onnx", recording=recording)
    assert verify(tmp_path / "policy.onnx", policy, recording).passed
    other = copy.deepcopy(policy)
    other.net[0].bias.data[0] += 0.5
    report = verify(tmp_path / "policy.onnx", other, recording)
    assert not report.passed
    assert report.error > 1e-3
    assert report.worst_output.startswith("actions[")
    with pytest.raises(ExportError, match="not the file of this policy"):
        verify(tmp_path / "policy.onnx", Recurrent("lstm"), recording)


def test_export_leaves_the_policy_and_the_random_generator_alone(tmp_path: Path) -> None:
    policy = Controller().train()
    policy.net[0].eval()
    policy(dict(policy=torch.ones(2, 7), goal=torch.ones(2, 3)))[0].sum().backward()
    before = copy.deepcopy(policy.state_dict())
    grads = [p.grad.clone() for p in policy.parameters() if p.grad is not None]
    modes = [m.training for m in policy.modules()]
    random_state, threads = torch.get_rng_state(), torch.get_num_threads()
    export_onnx(policy, make_spec(), tmp_path / "policy.onnx", recording=make_recording())
    assert all(torch.equal(value, before[key]) for key, value in policy.state_dict().items())
    assert all(value.dtype == before[key].dtype for key, value in policy.state_dict().items())
    assert [m.training for m in policy.modules()] == modes
    assert all(p.requires_grad for p in policy.parameters())
    assert all(torch.equal(p.grad, g) for p, g in zip((p for p in policy.parameters()), grads, strict=True))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.get_num_threads() == threads


def test_export_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_onnx(Controller(), make_spec(), tmp_path / "policy.onnx", recording=None)
        export_onnx(Recurrent("lstm"), make_spec(), tmp_path / "lstm.onnx", recording=None, dynamic_batch=True)
    assert capfd.readouterr() == ("", "")


def test_exporting_twice_gives_the_same_file_but_for_the_time(tmp_path: Path) -> None:
    models = []
    for name in ("a.onnx", "b.onnx"):
        export_onnx(Controller(), make_spec(), tmp_path / name, recording=None)
        models.append(onnx.load(str(tmp_path / name)).graph.SerializeToString())
    assert models[0] == models[1]


def test_operation_that_opset_11_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"opset 11.*matrix_exp"):
        export_onnx(MissingOperation(), make_spec(), tmp_path / "policy.onnx", recording=None)
    assert list(tmp_path.iterdir()) == []


def test_policy_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    policy = Controller()
    policy.net[0].weight.data[0, 0] = float("nan")
    with pytest.raises(ExportError, match=r"not finite in net\.0\.weight"):
        export_onnx(policy, make_spec(), tmp_path / "policy.onnx", recording=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.observation_sizes.update(goal=4), "group 'goal' of size 3"),
        (lambda s: s.deployment["observation_terms"].update(goal=[{"name": "x", "size": 2}]), "'goal' has size 3.*x 2"),
        (lambda s: s.deployment.update(action_terms=[{"name": "arm", "size": 6}]), "action has size 4.*arm 6"),
        (lambda s: s.deployment.update(action_terms=[{"name": "arm"}]), "each needs a 'name' and a 'size'"),
        (lambda s: s.deployment.update(model=nn.Linear), "metadata 'model' cannot be written"),
    ],
)
def test_spec_that_does_not_fit_is_refused(tmp_path: Path, change: object, message: str) -> None:
    spec = make_spec()
    change(spec)  # type: ignore[operator]
    with pytest.raises(ExportError, match=message):
        export_onnx(Controller(), spec, tmp_path / "policy.onnx", recording=None)
    assert list(tmp_path.iterdir()) == []


def test_wrong_action_size_folder_and_reserved_metadata_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"returns actions \[1, 5\].*the env needs \[1, 4\]"):
        export_onnx(Controller(actions=5), make_spec(), tmp_path / "policy.onnx", recording=None)
    with pytest.raises(ExportError, match=r"the env needs \[1\] torch.int64"):
        export_onnx(Controller(), make_spec(discrete=True), tmp_path / "policy.onnx", recording=None)
    with pytest.raises(ExportError, match="is a folder"):
        export_onnx(Controller(), make_spec(), tmp_path, recording=None)
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=r"cannot be written: '.*file' is a file; name another place"):
        export_onnx(Controller(), make_spec(), tmp_path / "file" / "below" / "policy.onnx", recording=None)
    for name in ("opset", "parity_error", "observation_mean", "observation_min", "policy_scale"):
        with pytest.raises(ExportError, match=f"'{name}' is written by the exporter"):
            export_onnx(Controller(), make_spec(), tmp_path / "policy.onnx", recording=None, extra_metadata={name: 18})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("goal"), "lacks observation group 'goal'"),
        (lambda r: r.update(goal=r["goal"][..., :2]), r"'goal' has shape \(20, 6, 2\).*\[T, M, 3\]"),
        (lambda r: r["goal"].fill_(float("nan")), "only 0 of the 120 recorded observations are finite"),
        (lambda r: r.update(goal=[1.0]), "'goal' is list; give a tensor"),
        (lambda r: r.update(done=None), "'done' has type NoneType"),
        (lambda r: r.update(done=r["done"][:3]), r"'done' has shape \(3, 6\)"),
    ],
)
def test_recording_that_does_not_fit_is_refused(tmp_path: Path, change: object, message: str) -> None:
    recording = make_recording()
    change(recording)  # type: ignore[operator]
    with pytest.raises(ExportError, match=message):
        export_onnx(Controller(), make_spec(), tmp_path / "policy.onnx", recording=recording)


def test_wrong_observation_is_refused_with_the_expected_terms(tmp_path: Path) -> None:
    export_onnx(Controller(), make_spec(), tmp_path / "policy.onnx", recording=None)
    runner = OnnxPolicy(tmp_path / "policy.onnx")
    expected = r"expects \[10\] or \[N, 10\]: policy/joint_pos\[0:4\], policy/last_action\[4:7\], goal/position\[7:10\]"
    with pytest.raises(ValueError, match=r"shape \(9,\); the file " + expected):
        runner(np.zeros(9))
    for shape in ((2, 3, 10), (0, 10), ()):
        with pytest.raises(ValueError, match=r"observation has shape"):
            runner(np.zeros(shape))
    with pytest.raises(ValueError, match=r"lack \['goal'\]; the file " + expected):
        runner({"policy": np.zeros(7)})
    # Ten numbers in all, but not those that belong together.
    with pytest.raises(ValueError, match=r"shapes policy \[3\], goal \[7\]; the file " + expected):
        runner({"policy": np.zeros(3), "goal": np.zeros(7)})
    with pytest.raises(ValueError, match=r"shapes policy \[2, 3\], goal \[2, 7\]"):
        runner({"policy": np.zeros((2, 3)), "goal": np.zeros((2, 7))})


def test_files_that_are_missing_cut_short_or_foreign_are_refused(tmp_path: Path) -> None:
    good, cut = tmp_path / "policy.onnx", tmp_path / "cut.onnx"
    export_onnx(Controller(), make_spec(), good, recording=None)
    cut.write_bytes(good.read_bytes()[:1000])
    for load in (OnnxPolicy, read_metadata):
        with pytest.raises(ValueError, match="there is no ONNX file"):
            load(tmp_path / "none.onnx")
        with pytest.raises(ValueError, match=r"cut\.onnx"):
            load(cut)
    model = onnx.load(str(good))
    model.graph.output[0].name = model.graph.node[-1].output[0] = "logits"
    onnx.save(model, str(cut))
    with pytest.raises(ValueError, match=r"outputs \['logits'\]; a policy has"):
        OnnxPolicy(cut)


def test_runner_file_runs_alone_without_torch_and_rlcore(tmp_path: Path) -> None:
    policy, path = Controller(), tmp_path / "policy.onnx"
    export_onnx(policy, make_spec(), path, recording=None)
    code = """
import runpy, sys
for name in ("torch", "rlcore", "onnx", "gymnasium"):
    sys.modules[name] = None
OnnxPolicy = runpy.run_path(sys.argv[1])["OnnxPolicy"]
policy = OnnxPolicy(sys.argv[2])
print(policy.metadata["task"], *policy([0.5] * 10))
"""
    command = [sys.executable, "-c", code, str(rlcore.export.runner.__file__), str(path)]
    task, *action = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.split()
    assert task == "Arm-Test"
    with torch.no_grad():
        expected = policy({g: torch.full((1, s), 0.5) for g, s in SIZES.items()})[0][0].numpy()
    np.testing.assert_allclose(np.array(action, dtype=float), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_policy_on_the_gpu_is_exported_and_stays_there(tmp_path: Path) -> None:
    policy = Controller().cuda()
    recording = {key: value.cuda() for key, value in make_recording().items()}
    report = export_onnx(policy, make_spec(), tmp_path / "policy.onnx", recording=recording)
    assert report.parity.max_abs_error <= TOLERANCE
    assert all(value.is_cuda for value in policy.state_dict().values())


def test_a_policy_with_values_that_are_not_finite_is_refused(tmp_path: Path) -> None:
    """With discrete actions the largest of NaNs is some index, in the file and in the policy alike."""
    agent = PPO(make_env("CartPole", 4), PPOConfig(num_steps=8, num_minibatches=1), seed=0)
    agent.learn(1)
    for parameter in agent.policy.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(ExportError, match="not finite"):
        export_onnx(agent.policy, spec_of(agent.env), tmp_path / "policy.onnx", recording=agent.recording())
    assert not any(tmp_path.iterdir())


def test_what_is_not_finite_is_no_close_call_of_a_gate() -> None:
    wanted, margin = torch.zeros(3, 2), torch.tensor([0.0, 0.0, 1.0])
    gated = Gated(wanted, torch.zeros(3), torch.zeros(3, dtype=torch.bool), margin)
    report = ParityReport(tolerance=1e-5)
    got = np.array([[1.0, 0.0], [np.inf, 0.0], [1.0, 0.0]], np.float32)
    np.testing.assert_array_equal(_decided(gated, got, report), [[0.0, 0.0], [np.inf, 0.0], [1.0, 0.0]])
    assert report.close_calls == 1
