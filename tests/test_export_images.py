"""Files of policies that read images and masks, or make several choices at once."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from rlcore import NetworkConfig, PPOConfig
from rlcore.config import from_dict
from rlcore.encoders import CNNConfig, scaled
from rlcore.env import EnvSpec, spec_of
from rlcore.env_check import check_obs
from rlcore.envs import make_env
from rlcore.export import ExportError, OnnxPolicy, export_onnx, read_metadata, verify
from rlcore.export.metadata import input_names
from rlcore.export.observations import finite_part, group_shapes, record
from rlcore.faults import column_name
from rlcore.policies import ActorPolicy
from rlcore.recurrent import RNNConfig
from rlcore.train.cli import main
from rlcore.types import Obs

IMAGES: dict[str, Any] = {"camera": [3, 12, 10], "depth": [1, 8, 8]}
SPEC: dict[str, Any] = {
    "task": "Looks",
    "observation_sizes": {"policy": 3, "goal": 2, "allowed": 5},
    "image_shapes": IMAGES,
    "image_types": {"camera": "uint8", "depth": "float32"},
}
BOX = EnvSpec(**SPEC, discrete=False, action_size=2, action_low=[-1.0] * 2, action_high=[1.0] * 2)
CHOICES = EnvSpec(**SPEC, discrete=True, action_size=5)
PARTS = EnvSpec(**SPEC, discrete=True, action_size=5, action_parts=[3, 2])

# What the policy reads, its memory, its env, and the file's inputs but for the states.
KINDS: dict[str, tuple[tuple[str, ...], Any, EnvSpec, list[str]]] = {
    "an image": (("camera",), "none", BOX, ["camera"]),
    "images and vectors": (("goal", "depth", "policy", "camera"), "none", BOX, ["obs", "depth", "camera"]),
    "a vector and a mask": (("policy",), "none", CHOICES, ["obs", "allowed"]),
    "a mask that is read, too": (("policy", "allowed"), "none", CHOICES, ["obs", "allowed"]),
    "several choices": (("policy", "camera"), "none", PARTS, ["obs", "camera", "allowed"]),
    "an image and memory": (("camera",), "gru", CHOICES, ["camera", "allowed"]),
    "all and memory": (("policy", "camera", "depth"), "lstm", BOX, ["obs", "camera", "depth"]),
}
DYNAMIC = [kind for kind in KINDS if kind != "all and memory"]  # which takes as long as all others together


def build(kind: str = "several choices") -> tuple[ActorPolicy, EnvSpec]:
    groups, rnn, spec, _ = KINDS[kind]
    net = NetworkConfig(
        hidden_dims=(16,),
        cnn=CNNConfig(channels=(4,), kernel_sizes=(3,), strides=(2,)),
        rnn=RNNConfig(type=rnn, hidden_size=6),
    )
    mask = "allowed" if spec.discrete else None
    with torch.random.fork_rng():
        torch.manual_seed(3)
        policy = ActorPolicy(spec, PPOConfig(actor=net, actor_obs=groups, action_mask=mask)).eval()
        for part in policy.parameters():  # a head as it begins gives about the same whatever it sees
            nn.init.normal_(part, std=0.4)
    return policy, spec


def observations(policy: ActorPolicy, *rows: int, seed: int = 0) -> Obs:
    generator = torch.Generator().manual_seed(seed)
    obs: Obs = {}
    for group, shape in group_shapes(policy).items():
        if group == "camera":
            obs[group] = torch.randint(256, (*rows, *shape), generator=generator, dtype=torch.uint8)
        elif group == "allowed":
            obs[group] = torch.randint(2, (*rows, *shape), generator=generator).float()
            obs[group][..., 1] = obs[group][..., -1] = 1
        else:
            obs[group] = torch.randn(*rows, *shape, generator=generator)
    return obs


def recorded(policy: ActorPolicy, steps: int = 6, envs: int = 3) -> dict[str, Tensor]:
    return {**observations(policy, steps, envs), "done": torch.arange(steps * envs).view(steps, envs) % 5 == 4}


def arrays(obs: Obs) -> dict[str, np.ndarray[Any, Any]]:
    return {group: values.numpy() for group, values in obs.items()}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a policy that reads a vector, an image and a mask, and makes two choices."""
    path = tmp_path_factory.mktemp("file") / "policy.onnx"
    policy, spec = build()
    export_onnx(policy, spec, path, recording=None)
    return path


@pytest.mark.parametrize(("kind", "dynamic"), [*((kind, False) for kind in KINDS), *((kind, True) for kind in DYNAMIC)])
def test_the_file_does_what_the_policy_does(kind: str, dynamic: bool, tmp_path: Path) -> None:
    policy, spec = build(kind)
    path = tmp_path / "policy.onnx"
    recording = recorded(policy)
    report = export_onnx(policy, spec, path, recording=recording, dynamic_batch=dynamic)
    assert report.parity.recorded_samples == 18 and report.parity.ties == 0
    model = onnx.load(str(path))
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 11)]
    states = [f"{name}_in" for name, _ in zip("hc", policy.initial_state(1), strict=False)]
    assert [value.name for value in model.graph.input] == KINDS[kind][3] + states
    runner, state = OnnxPolicy(path), policy.initial_state(3)
    assert runner.dynamic is dynamic
    for t in range(6):
        now = {group: values[t] for group, values in recording.items() if group != "done"}
        with torch.no_grad():
            action, state = policy(now, state)
        got = runner({**arrays(now), "unread": np.zeros(7)})
        assert got.dtype == action.numpy().dtype
        np.testing.assert_allclose(got, action, rtol=0, atol=1e-5)
        if t == 0:
            alone = OnnxPolicy(path)({group: values[1] for group, values in arrays(now).items()})
            np.testing.assert_allclose(alone, action[1], rtol=0, atol=1e-5)
    if spec.discrete:
        assert len(torch.unique(action)) > 1  # what is compared depends on what is seen


@pytest.mark.parametrize(
    "settings",
    [
        {"pooling": "max", "global_pooling": "max", "padding": (1,)},
        {"pooling": "average", "global_pooling": "average", "activation": "elu"},
        {"global_pooling": "softmax", "layer_norm": True},
        {"output_size": 6, "layer_norm": True, "activation": "tanh"},
    ],
)
def test_all_that_encoders_do_is_in_opset_11(settings: dict[str, Any], tmp_path: Path) -> None:
    cnn = CNNConfig(**{"channels": (4,), "kernel_sizes": (3,), **settings})
    policy = ActorPolicy(BOX, PPOConfig(actor=NetworkConfig(hidden_dims=(8,), cnn=cnn), actor_obs=("camera",)))
    for part in policy.parameters():
        nn.init.normal_(part, std=0.4)
    report = export_onnx(policy.eval(), BOX, tmp_path / "policy.onnx", recording=None, dynamic_batch=True)
    assert 0 < report.parity.max_abs_error <= 1e-5


def test_metadata_tells_of_images_masks_and_parts(file: Path) -> None:
    facts = read_metadata(file)
    assert facts["image_groups"] == [
        {"name": "camera", "input": "camera", "shape": [3, 12, 10], "type": "uint8", "scale": 1 / 255}
    ]
    assert facts["action_mask"] == {"name": "allowed", "input": "allowed", "size": 5}
    assert (facts["action_kind"], facts["action_size"], facts["action_parts"]) == ("discrete", 5, [3, 2])
    assert facts["action_terms"] == [{"name": "action", "size": 2, "slice": [0, 2]}]
    assert facts["observation_groups"] == [{"name": "policy", "size": 3, "slice": [0, 3]}]
    assert facts["inputs"] == {"obs": [1, 3], "camera": [1, 3, 12, 10], "allowed": [1, 5]}
    assert facts["outputs"] == {"actions": [1, 2]}
    assert facts["types"] == {"obs": "float32", "camera": "uint8", "allowed": "float32", "actions": "int64"}


def test_ranges_and_still_inputs_are_those_of_the_vectors(tmp_path: Path) -> None:
    policy, spec = build("images and vectors")
    policy.normalizer.update(torch.cat([torch.zeros(4, 2), torch.randn(4, 3)], -1))  # goal, policy
    recording = recorded(policy)
    report = export_onnx(policy, spec, tmp_path / "policy.onnx", recording=recording)
    flat = torch.cat([recording["goal"], recording["policy"]], -1).flatten(0, 1)
    assert torch.equal(torch.as_tensor(report.metadata["observation_min"]), flat.amin(0))
    assert report.metadata["observation_range_samples"] == 18
    assert "hardly moved in training: goal/goal;" in report.notes[0]
    alone, spec = build("an image")
    facts = export_onnx(alone, spec, tmp_path / "alone.onnx", recording=recorded(alone)).metadata
    assert facts["observation_size"] == 0 and "observation_min" not in facts


def test_a_group_that_is_not_normalized_is_so_in_the_file(tmp_path: Path) -> None:
    net = NetworkConfig(hidden_dims=(16,))
    policy = ActorPolicy(BOX, PPOConfig(actor=net, actor_obs=("goal", "policy"), normalize_obs=("policy",)))
    policy.normalizer.update(torch.cat([torch.zeros(4, 2), 9 * torch.randn(4, 3) + 5], -1))  # goal stood still
    for part in policy.parameters():
        nn.init.normal_(part, std=0.4)
    report = export_onnx(policy.eval(), BOX, tmp_path / "policy.onnx", recording=recorded(policy))
    assert report.parity.passed and report.notes == ()
    obs = torch.tensor([[2.0, -3.0, 1.0, 0.0, 1.0]])
    seen = (obs - policy.normalizer.mean) / (policy.normalizer.var.sqrt() + 0.01)
    seen = torch.cat([obs[:, :2], seen[:, 2:]], -1).unsqueeze(0)  # [1, 1, O]
    expected = policy.limit(policy.distribution(seen)[0].mode.squeeze(0)).detach().numpy()
    np.testing.assert_allclose(OnnxPolicy(tmp_path / "policy.onnx")(obs[0].numpy()), expected[0], atol=1e-5)


class Dark(ActorPolicy):
    """Its traced graph sees images a little darker."""

    def forward(self, obs: Obs, state: Any = ()) -> Any:
        if torch.onnx.is_in_onnx_export():
            obs = obs | {"camera": obs["camera"] // 2}
        return super().forward(obs, state)


class Lawless(ActorPolicy):
    """Its traced graph allows everything."""

    def forward(self, obs: Obs, state: Any = ()) -> Any:
        if torch.onnx.is_in_onnx_export():
            obs = obs | {"allowed": obs["allowed"].abs() + 1}
        return super().forward(obs, state)


@pytest.mark.parametrize(
    ("kind", "other", "told"),
    [
        ("an image", Dark, "largest difference"),
        ("several choices", Dark, "lead to another discrete action"),
        ("several choices", Lawless, "lead to another discrete action"),
    ],
)
def test_a_file_that_sees_something_else_is_refused(kind: str, other: Any, told: str, tmp_path: Path) -> None:
    policy, spec = build(kind)
    policy.__class__ = other
    with pytest.raises(ExportError, match=told):
        export_onnx(policy, spec, tmp_path / "policy.onnx", recording=None)
    assert not (tmp_path / "policy.onnx").exists()


@pytest.mark.parametrize(("gap", "tied"), [(1e-7, True), (1e-2, False)])
def test_choices_that_a_thousandth_of_a_pixel_changes_are_ties(gap: float, tied: bool, tmp_path: Path) -> None:
    class Edge(ActorPolicy):
        """Chooses by whether a pixel is brighter than 128, and its traced graph by a little less."""

        def forward(self, obs: Obs, state: Any = ()) -> Any:
            bright = scaled(obs["camera"])[:, 0, 0, 0] - 128 / 255
            bright = bright + gap if torch.onnx.is_in_onnx_export() else bright
            return torch.stack([(bright > 0).long(), obs["allowed"][:, 0].long()], -1), state

    policy, spec = build()
    policy.__class__ = Edge
    recording = recorded(policy)
    recording["camera"][:] = 128
    if tied:
        report = export_onnx(policy, spec, tmp_path / "policy.onnx", recording=recording)
        assert report.parity.ties >= 18 and report.parity.passed
        return
    with pytest.raises(ExportError, match="lead to another discrete action"):
        export_onnx(policy, spec, tmp_path / "policy.onnx", recording=recording)


def test_names_that_are_taken_get_another() -> None:
    assert input_names(["obs", "camera", "h_in", "3", "obs_input", ""]) == {
        "obs": "obs_input_input",
        "camera": "camera",
        "h_in": "h_in_input",
        "3": "3_input",
        "obs_input": "obs_input",
        "": "_input",
    }


def test_a_group_whose_name_is_taken_is_given_by_its_own(tmp_path: Path) -> None:
    spec = EnvSpec(
        task="Taken",
        observation_sizes={"policy": 3},
        image_shapes={"obs": [1, 8, 8], "actions": [2, 8, 8]},
        image_types={"obs": "uint8", "actions": "float32"},
        discrete=True,
        action_size=3,
    )
    groups = ("policy", "obs", "actions")
    net = NetworkConfig(hidden_dims=(8,), cnn=CNNConfig(channels=(2,)))
    policy = ActorPolicy(spec, PPOConfig(actor=net, actor_obs=groups)).eval()
    path = tmp_path / "policy.onnx"
    report = export_onnx(policy, spec, path, recording=None, dynamic_batch=True)
    assert report.metadata["inputs"] == {
        "obs": ["batch", 3],
        "obs_input": ["batch", 1, 8, 8],
        "actions_input": ["batch", 2, 8, 8],
    }
    runner = OnnxPolicy(path)
    assert runner.groups.keys() == {"obs", "actions"}
    obs = {"policy": torch.ones(2, 3), "obs": torch.ones(2, 1, 8, 8).byte(), "actions": torch.ones(2, 2, 8, 8)}
    assert runner(arrays(obs)).shape == (2,)
    with pytest.raises(ValueError, match=r"lack \['policy'\]"):  # the image is not taken for the joined vectors
        runner({"obs": np.ones((1, 8, 8), np.uint8), "actions": np.ones((2, 8, 8), np.float32)})


def test_vectors_come_by_group_or_joined_and_a_single_image_by_itself(file: Path, tmp_path: Path) -> None:
    obs = arrays(observations(build()[0], 2))
    joined = {"obs": obs["policy"], "camera": obs["camera"], "allowed": obs["allowed"].astype(bool)}
    runner = OnnxPolicy(file)
    assert np.array_equal(runner(obs), runner(joined))
    # A group that the policy does not read may be called obs.
    assert np.array_equal(runner(obs), runner({**obs, "obs": np.zeros((2, 1, 4, 4), np.uint8)}))
    policy, spec = build("an image")
    export_onnx(policy, spec, tmp_path / "alone.onnx", recording=None)
    alone, camera = OnnxPolicy(tmp_path / "alone.onnx"), obs["camera"]
    assert np.array_equal(alone(camera), alone({"camera": camera})) and alone(camera[0]).shape == (2,)


WRONG: dict[str, tuple[Any, str]] = {
    "an array": (np.zeros((1, 3)), r"one array came by itself; the file expects a dict: obs \[3\] or \[N, 3\]: policy"),
    "no image": ({"camera": None}, r"lack \['camera'\].*'camera' \[3, 12, 10\] uint8, 'allowed' \[5\] float32"),
    "no mask": ({"allowed": None}, r"lack \['allowed'\]"),
    "no vector": ({"policy": None}, r"lack \['policy'\]"),
    "floats": ({"camera": np.zeros((2, 3, 12, 10))}, r"'camera' is float64 .*expects \[3, 12, 10\] uint8"),
    "whole numbers": ({"camera": np.zeros((2, 3, 12, 10), int)}, "'camera' is int64"),
    "channels last": ({"camera": np.zeros((2, 12, 10, 3), np.uint8)}, r"of shape \[2, 12, 10, 3\]"),
    "one axis more": ({"camera": np.zeros((1, 2, 3, 12, 10), np.uint8)}, r"of shape \[1, 2, 3, 12, 10\]"),
    "none at all": ({"camera": np.zeros((0, 3, 12, 10), np.uint8)}, r"of shape \[0, 3, 12, 10\]"),
    "a text": ({"camera": "left"}, "'camera' is <U4"),
    "a short mask": ({"allowed": np.ones((2, 4))}, r"'allowed' is float64 of shape \[2, 4\].*expects \[5\] float32"),
    "a short vector": ({"policy": np.ones((2, 2))}, r"the shapes policy \[2, 2\]; the file expects obs \[3\]"),
    "one of them": ({"camera": np.zeros((3, 12, 10), np.uint8)}, r"different numbers: obs \[2, 3\], camera \[3, 12"),
    "fewer": ({"allowed": np.ones((1, 5))}, r"different numbers: .*allowed \[1, 5\]; give one of each, or N of each"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_observations_are_refused(case: str, file: Path) -> None:
    change, told = WRONG[case]
    obs: Any = change
    if isinstance(change, dict):
        obs = {g: x for g, x in {**arrays(observations(build()[0], 2)), **change}.items() if x is not None}
    with pytest.raises(ValueError, match=told):
        OnnxPolicy(file)(obs)


def test_images_of_floats_are_no_whole_numbers(tmp_path: Path) -> None:
    policy, spec = build("images and vectors")
    export_onnx(policy, spec, tmp_path / "policy.onnx", recording=None)
    obs = arrays(observations(policy, 2))
    with pytest.raises(ValueError, match=r"'depth' is uint8 of shape .*; the file expects \[1, 8, 8\] float32"):
        OnnxPolicy(tmp_path / "policy.onnx")(obs | {"depth": np.zeros((2, 1, 8, 8), np.uint8)})
    with pytest.raises(ValueError, match=r"different numbers: goal \[2, 2\], policy \[3\]"):
        OnnxPolicy(tmp_path / "policy.onnx")(obs | {"policy": np.zeros(3)})


@pytest.mark.parametrize(
    ("name", "kind", "shape"),
    [
        ("camera", TensorProto.INT64, [1, 3, 4, 4]),
        ("camera", TensorProto.UINT8, [1, 3, "h", "w"]),
        ("camera", TensorProto.UINT8, ["n", 3, 4, 4]),
        ("camera", TensorProto.FLOAT, [1, 4, 4]),
        ("allowed", TensorProto.UINT8, [1, 4]),
    ],
)
def test_files_with_inputs_of_another_kind_are_refused(name: str, kind: int, shape: list[Any], tmp_path: Path) -> None:
    inputs = [helper.make_tensor_value_info("obs", TensorProto.FLOAT, [1, 4])]
    inputs.append(helper.make_tensor_value_info(name, kind, shape))
    outputs = [helper.make_tensor_value_info("actions", TensorProto.FLOAT, [1, 4])]
    nodes = [helper.make_node("Identity", ["obs"], ["actions"])]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8)
    onnx.save(model, str(tmp_path / "x.onnx"))
    with pytest.raises(ValueError, match=r"a policy takes 'obs' .* images \[N, C, H, W\] uint8 or float32, a mask"):
        OnnxPolicy(tmp_path / "x.onnx")


@pytest.mark.parametrize("value", ["[1]", "3", '{"a": 1}', "[" * 50_000, "[null]", '[{"name": "x"}]'])
@pytest.mark.parametrize("key", ["image_groups", "action_mask"])
def test_names_of_groups_that_are_none_leave_those_of_the_inputs(
    key: str, value: str, file: Path, tmp_path: Path
) -> None:
    model = onnx.load(str(file))
    facts = {entry.key: entry.value for entry in model.metadata_props}
    del model.metadata_props[:]
    helper.set_model_props(model, facts | {key: value})
    onnx.save(model, str(tmp_path / "x.onnx"))
    assert OnnxPolicy(tmp_path / "x.onnx").groups == OnnxPolicy(file).groups


def test_a_spec_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    policy, spec = build()
    for change, told in (
        ({"image_shapes": {"camera": [3, 12, 12]}}, r"group 'camera' of shape \[3, 12, 10\]; the env has .*3×12×12"),
        ({"image_shapes": {}}, "group 'camera' of shape"),
        ({"observation_sizes": {"policy": 3, "allowed": 4}}, r"group 'allowed' of shape \[5\]"),
        ({"action_parts": []}, r"the policy returns actions \[1, 2\] torch.int64"),
        ({"action_parts": [3, 1, 1]}, r"the policy returns actions \[1, 2\] torch.int64"),
    ):
        changed = copy.copy(spec.__dict__) | change
        with pytest.raises(ExportError, match=told):
            export_onnx(policy, EnvSpec(**changed), tmp_path / "policy.onnx", recording=None)


def test_recordings_that_do_not_fit_are_refused(file: Path) -> None:
    policy, _ = build()
    good = recorded(policy)
    for change, told in (
        ({"camera": good["camera"][..., :9]}, r"'camera' has shape .*; the policy needs \[T, M, 3, 12, 10\]"),
        ({"allowed": good["allowed"][:2]}, r"'allowed' has shape \(2, 3, 5\)"),
    ):
        with pytest.raises(ExportError, match=told):
            verify(file, policy, good | change)
    with pytest.raises(ValueError, match="'camera' is float32"):
        verify(file, policy, good | {"camera": good["camera"].float()})


def test_pixels_that_are_not_finite_are_zero_in_policy_and_file_as_in_training(tmp_path: Path) -> None:
    """As of a depth camera that meets nothing; a vector that is not finite is left out of what is compared."""
    policy, spec = build("images and vectors")
    recording, path = recorded(policy), tmp_path / "policy.onnx"
    dark, recording["depth"][:, :, 0, 3, 3] = recording["depth"].clone(), torch.inf
    dark[:, :, 0, 3, 3] = 0
    recording["depth"][2, 1, 0, 3, 3] = torch.nan
    recording["goal"][3, 2, 0] = torch.nan
    obs, _, left_out = finite_part(recording, group_shapes(policy))
    assert left_out == 1
    assert obs["camera"].dtype == torch.uint8 and obs["camera"].shape == (17, 1, 3, 12, 10)
    assert obs["depth"].isfinite().all() and not obs["depth"][..., 3, 3].any()
    recording["goal"][3, 2, 0] = 0
    assert export_onnx(policy, spec, path, recording=recording).parity.left_out == 0
    now = {group: values[2] for group, values in recording.items() if group != "done"}
    expected = policy({**now, "depth": dark[2]})[0].detach()
    assert torch.equal(policy(now)[0], expected)
    np.testing.assert_allclose(OnnxPolicy(path)(arrays(now)), expected, rtol=0, atol=1e-5)


_WORDS = """
    --task CartPole-Pixels --num-envs 2 --num-iterations 1 --eval-envs 2 --agent.num-steps 8 --agent.num-epochs 1
    --agent.num-minibatches 2 --agent.actor.hidden-dims 8 --agent.critic.hidden-dims 8 --agent.actor.cnn.channels 4
    --agent.actor.cnn.kernel-sizes 3 --agent.actor.cnn.strides 2 --agent.critic.cnn.channels 4
    --agent.critic.cnn.kernel-sizes 3 --agent.critic.cnn.strides 2 --env.max_episode_length 20 --env.size 16
"""


def test_a_run_from_pixels_trains_exports_plays_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *_WORDS.split()]) == 0
    run = next(Path("runs").glob("*/*/*"))
    file = run / "export" / "policy.onnx"
    figures = json.loads((run / "eval.json").read_text())
    assert figures["return_mean"] == figures["onnx"]["return_mean"]
    for source in (["--run", str(run)], ["--onnx", str(file)]):
        assert main(["eval", *source, "--num-envs", "2", "--output", "figures.json"]) == 0
        assert main(["play", *source, "--steps", "4", "--output", f"{source[0][2:]}.gif"]) == 0
        capsys.readouterr()
        for other, told in (
            (["--task", "CartPole"], "takes an image 2×16×16 uint8 as observation 'policy' and CartPole gives none"),
            (["--env.size", "20"], "and CartPole-Pixels gives 2×20×20 uint8"),
        ):
            assert main(["eval", *source, "--num-envs", "2", *other]) == 2
            assert told in capsys.readouterr().err
    assert main(["train", "--resume", str(run), "--num-iterations", "2", "--env.size", "20"]) == 2
    assert "image_shapes of the env is {'policy': [2, 20, 20]} with it and" in capsys.readouterr().err
    assert main(["train", "--resume", str(run), "--num-iterations", "2"]) == 0


def test_an_env_described_before_there_were_images_is_read() -> None:
    before = {"task": "Old", "observation_sizes": {"policy": 4}, "discrete": True, "action_size": 2}
    spec = from_dict(EnvSpec, before, "a checkpoint: spec")
    assert spec == EnvSpec(**before) and not spec.image_shapes and not spec.action_parts


def test_a_recording_made_anew_has_the_groups_as_they_come() -> None:
    env = make_env("CartPole-Pixels", 2, seed=1, size=16)
    net = NetworkConfig(hidden_dims=(8,), cnn=CNNConfig(channels=(2,)))
    policy = ActorPolicy(spec_of(env), PPOConfig(actor=net))
    recording = record(env, policy, seed=1, steps=3)
    assert recording["policy"].dtype == torch.uint8 and recording["policy"].shape == (3, 2, 2, 16, 16)
    check_obs(env, {"policy": recording["policy"][0]}, "record")


def test_columns_are_counted_in_vectors_alone() -> None:
    class Mixed:
        observation_spaces = make_env("CartPole-Pixels", 1, size=16).observation_spaces | {
            "state": make_env("CartPole", 1).observation_spaces["policy"]
        }

    assert column_name(("policy", "state"), 2, Mixed()) == "'state'[2]"
