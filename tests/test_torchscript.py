"""Policies as TorchScript: the file does what the policy does, and remembers its state."""

from __future__ import annotations

import contextlib
import copy
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_cpp import KINDS
from test_export import Broken, make_recording, make_spec
from test_export_images import build

from rlcore import NetworkConfig, PPOConfig
from rlcore.env import EnvSpec
from rlcore.export import ExportError, TorchScriptPolicy, export_onnx, export_torchscript, read_metadata
from rlcore.export.golden import decoded
from rlcore.policies import build_policy
from rlcore.train.cli import main


def loaded(path: Path, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript itself
        return torch.jit.load(str(path), **options)


def exported(kind: str, path: Path, **options: Any) -> Any:
    torch.manual_seed(0)
    policy, spec = KINDS[kind]()
    return policy, export_torchscript(policy, spec, path, recording=None, **options)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("kind", ["mlp", "lstm", "gru", "sac", "several", "gate candidates", "lstm operator"])
def test_the_file_does_what_the_policy_does(kind: str, dynamic: bool, tmp_path: Path) -> None:
    policy, report = exported(kind, tmp_path / "policy.pt", dynamic_batch=dynamic)
    assert report.parity.passed
    assert report.parity.error <= 1e-6
    module, rows = loaded(report.path), 5 if dynamic else 1
    assert "cpu" not in str(module.policy.inlined_graph).replace("device=cpu", "")  # it goes where it is loaded to
    generator = torch.Generator().manual_seed(1)
    sizes = {**policy.observation_sizes, **{group: shape[0] for group, shape in policy.raw_shapes.items()}}
    state = policy.initial_state(rows)
    for step in range(6):
        if step == 3:
            module.reset()
            state = policy.initial_state(rows)
        obs = {group: torch.randn(rows, size, generator=generator) for group, size in sizes.items()}
        vectors = torch.cat([obs[group] for group in policy.observation_sizes], -1)
        with torch.no_grad():
            wanted, state = policy(obs, state)
            got = module(vectors, *(obs[group] for group in policy.raw_shapes))
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-6)
        for name, part in zip(("hidden_state", "cell_state"), state, strict=False):
            torch.testing.assert_close(getattr(module, name), part, atol=1e-6, rtol=1e-6)
        if policy.gate is not None:
            assert module.risk.shape == (rows,)


def test_another_number_of_rows_begins_anew(tmp_path: Path) -> None:
    _, report = exported("lstm", tmp_path / "policy.pt", dynamic_batch=True)
    module, x = loaded(report.path), torch.ones(3, 14)
    first = module(x)
    assert not torch.equal(module(x), first)  # it remembers
    assert module(x[:2]).shape == (2, 4)
    torch.testing.assert_close(module(x), first)


def test_images_are_inputs_of_their_own(tmp_path: Path) -> None:
    policy, spec = build("images and vectors")
    report = export_torchscript(policy, spec, tmp_path / "policy.pt", recording=None)
    assert list(report.metadata["inputs"]) == ["obs", "depth", "camera"]
    file = TorchScriptPolicy(report.path)
    assert file.groups["camera"].uint8


@pytest.mark.parametrize("name", ["global", "self", "class", "nan", "Tensor", "a camera"])
def test_a_group_may_have_a_name_that_no_argument_can(name: str, tmp_path: Path) -> None:
    spec = EnvSpec(
        task="T", observation_sizes={"policy": 4}, image_shapes={name: [1, 8, 8]}, image_types={name: "uint8"},
        discrete=False, action_size=2, action_low=[-1.0] * 2, action_high=[1.0] * 2,
    )  # fmt: skip
    policy = build_policy(spec, PPOConfig(actor=NetworkConfig(hidden_dims=(8,)), actor_obs=("policy", name)))
    report = export_torchscript(policy, spec, tmp_path / "policy.pt", recording=None)
    assert report.parity.passed and list(TorchScriptPolicy(report.path).groups) == [name]


FULL = """
import resource, signal, sys
sys.path.insert(0, sys.argv[2])
from test_export import Controller, make_spec
from rlcore.export import export_torchscript
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
try:
    export_torchscript(Controller(), make_spec(), sys.argv[1], recording=None)
except OSError as error:
    print(error.strerror)
"""


def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(tmp_path: Path) -> None:
    path = tmp_path / "policy.pt"
    path.write_text("before")
    command = [sys.executable, "-c", FULL, str(path), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == "File too large\n", done.stderr[-2000:]
    assert path.read_text() == "before" and [file.name for file in tmp_path.iterdir()] == ["policy.pt"]


def test_metadata_are_those_of_onnx_but_for_the_format(tmp_path: Path) -> None:
    torch.manual_seed(0)
    policy, spec = KINDS["gru"]()
    export_torchscript(policy, spec, tmp_path / "policy.pt", recording=None, extra_metadata={"algorithm": "ppo"})
    export_onnx(policy, spec, tmp_path / "policy.onnx", recording=None, extra_metadata={"algorithm": "ppo"})
    ours, theirs = read_metadata(tmp_path / "policy.pt"), read_metadata(tmp_path / "policy.onnx")
    assert set(ours) - {"format", "state"} == set(theirs) - {"opset"}
    assert ours["state"] == {"hidden_state": [1, 1, 20]}
    figures = [name for name in ours if name.startswith("parity_")]
    same = set(theirs) - {"opset", "inputs", "outputs", "types", "golden_trace", *figures}
    assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}
    trace = decoded(ours["golden_trace"])
    assert trace is not None
    file = TorchScriptPolicy(tmp_path / "policy.pt")
    for t, obs in enumerate(trace["obs"]):
        if t in trace["resets"]:
            file.reset()
        np.testing.assert_allclose(file(obs), trace["actions"][t], atol=1e-6)
    extra = {"metadata.json": ""}
    loaded(tmp_path / "policy.pt", _extra_files=extra)
    assert b'"algorithm": "ppo"' in extra["metadata.json"]  # type: ignore[comparison-overlap]


def test_a_file_that_does_something_else_is_refused_and_the_one_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "policy.pt"
    export_torchscript(Broken(), make_spec(), path, recording=make_recording())
    before = path.read_bytes()
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", torch.jit.is_tracing)
    with pytest.raises(ExportError, match=r"largest difference 0\.0002\d* in output 'actions\[2\]'"):
        export_torchscript(Broken(), make_spec(), path, recording=make_recording())
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["policy.pt"]


def test_export_is_silent_and_leaves_the_policy_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    policy, spec = KINDS["lstm"]()
    state = copy.deepcopy(policy.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_torchscript(policy, spec, tmp_path / "policy.pt", recording=None)
    assert capfd.readouterr() == ("", "")
    assert all(torch.equal(value, state[name]) for name, value in policy.state_dict().items())


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    with pytest.raises(ValueError, match=r"has no metadata\.json; it is no TorchScript file of rlcore"):
        TorchScriptPolicy(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/extra/metadata.json", '{"inputs": "x"}')
    with pytest.raises(ValueError, match="is no TorchScript file of rlcore or damaged"):
        TorchScriptPolicy(path)
    content = bytearray(path.read_bytes())
    for place in range(len(content)):  # one byte after the other
        damaged = content.copy()
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        with contextlib.suppress(ValueError):
            read_metadata(path)
    with pytest.raises(ValueError, match=r"there is no ONNX file|there is no"):
        TorchScriptPolicy(tmp_path / "none.pt")


def test_the_command_writes_either_and_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "train --task Memory --device cpu --num-envs 4 --num-iterations 1 --eval-interval 0 --eval-envs 2 --no-export"
    )
    words += " --agent.actor.rnn.type gru --agent.actor.rnn.hidden-size 8"
    assert main([*words.split(), "--runs-dir", str(tmp_path)]) == 0
    (run,) = tmp_path.glob("*/*/*")
    assert main(["export", "--run", str(run), "--format", "torchscript", "onnx", "--cells", "decomposed"]) == 0
    assert sorted(path.name for path in (run / "export").iterdir()) == ["policy.onnx", "policy.pt"]
    assert capsys.readouterr().out.count("parity    ") == 2
    assert main(["export", "--run", str(run), "--format", "torchscript", "--output", str(tmp_path / "a.pt")]) == 0
    assert loaded(tmp_path / "a.pt").hidden_state.shape == (1, 1, 8)
    assert main(["export", "--run", str(run), "--format", "torchscript", "--cpp", str(tmp_path / "cpp")]) == 2
    assert "--cpp writes what an ONNX file does; add onnx to --format" in capsys.readouterr().err
    both = ["export", "--run", str(run), "--format", "onnx", "torchscript", "--output"]
    assert main([*both, str(tmp_path / "b.pt")]) == 2  # where the first would be written over by the second
    assert "b.pt', which both formats would be written to; give another ending" in capsys.readouterr().err
    assert main([*both, str(tmp_path / "b")]) == 0
    assert read_metadata(tmp_path / "b")["opset"] == 11 and read_metadata(tmp_path / "b.pt")["format"] == "torchscript"
    file, checkpoint = str(run / "export" / "policy.onnx"), str(run / "checkpoints" / "000001.pt")
    for words, message in (  # which would have no effect
        (f"export --run {run} --format torchscript --cells decomposed", "which is for ONNX; leave it out"),
        (f"export --run {run} --no-gate", "has a policy without a gate; leave it out"),
        (f"export --run {checkpoint} --checkpoint last", "is one itself; leave --checkpoint out"),
        (f"eval --onnx {file} --checkpoint last", "--checkpoint is 'last', and --onnx names a file; leave one out"),
        (f"eval --onnx {file} --given-task", "infers no task; leave it out: --given-task"),
    ):
        assert main(words.split()) == 2
        assert message in capsys.readouterr().err


@pytest.mark.gpu
def test_the_file_runs_on_the_device_it_is_loaded_to(tmp_path: Path) -> None:
    _, report = exported("lstm", tmp_path / "policy.pt", dynamic_batch=True)
    module, x = loaded(report.path, map_location="cuda"), torch.ones(3, 14)
    for _ in range(2):
        got = module(x.cuda())
        assert got.is_cuda
    reference = loaded(report.path)
    for _ in range(2):
        wanted = reference(x)
    torch.testing.assert_close(got.cpu(), wanted, atol=1e-3, rtol=1e-3)
