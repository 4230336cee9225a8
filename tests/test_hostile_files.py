"""Files that were damaged or made to do harm: one short line each, no hang, nothing executed."""

from __future__ import annotations

import copy
import errno
import json
import math
import os
import random
import signal
import string
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import onnx
import pytest
import torch
import yaml
from onnx import TensorProto, helper, numpy_helper

from rlcore import PPO, PPOConfig
from rlcore.checkpoint import broken_values, load_checkpoint, save_checkpoint
from rlcore.config import ConfigError, from_dict, load_yaml, shown, to_dict
from rlcore.env import spec_of
from rlcore.envs import make_env
from rlcore.export import OnnxPolicy, export_onnx
from rlcore.train import conclude
from rlcore.train.arguments import UsageError, free_value
from rlcore.train.cli import main
from rlcore.train.config import TrainConfig
from rlcore.train.importers.source import read_yaml

MUTATIONS = int(os.environ.get("MUTATIONS", "40"))
"""Random changes of a configuration that are tried; 500 take about three minutes."""

_WORDS = """
    --num-envs 4 --num-iterations 1 --eval-envs 2 --agent.num-steps 8 --agent.num-epochs 1 --agent.num-minibatches 2
    --agent.actor.hidden-dims 8 --agent.critic.hidden-dims 8 --env.max_episode_length 20
"""
SMALL = _WORDS.split()


class Hung(BaseException):
    """A command took too long."""


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder, and an end to what hangs."""
    monkeypatch.chdir(tmp_path)

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert len(error) < 1100
    assert "Traceback" not in error
    for advice in ("weights_only", "set_int_max_str_digits", "UnsafeLoader", "unsafe_load"):
        assert advice not in error
    return error


def bomb(first: str, link: Callable[[str], str], levels: int = 9) -> str:
    """Each line stands for ten of the one before."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{i}: &a{i} {link(', '.join([f'*a{i - 1}'] * 10))}" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


YAML = {
    "a mapping in itself": ("env: &a {b: *a}", "an alias of what it is in"),
    "a list in itself": ("agent: &a [*a]", "an alias of what it is in"),
    "deep lists that end": ("env: " + "[" * 20_000 + "]" * 20_000, "nested more than 50 deep"),
    "deep blocks": ("- " * 20_000, "nested more than 50 deep"),
    "a billion laughs": (bomb("[x]", lambda all_: f"[{all_}]"), "more than 100,000 values, aliases included"),
    "a billion merges": (bomb("{x: 1}", lambda all_: f"{{<<: [{all_}]}}"), "more than 100,000 values"),
    "a key twice": ("seed: 1\nseed: 2", "line 2, column 1: the key 'seed' is there already, in line 1"),
    "a key twice in a group": ("agent: {gamma: 0.9, gamma: 0.8}", "the key 'gamma' is there already, in line 1"),
    "zeros": ("\0" * 1000, "the character #x0000 at position 0"),
    "a day that is none": ("seed: 2001-13-45", "a value cannot be read (ValueError)"),
    "a time that is none": ("seed: !!timestamp x", "a value cannot be read (AttributeError)"),
    "a truth that is none": ("seed: !!bool x", "a value cannot be read (KeyError)"),
    "a number that is none": ("seed: !!int ''", "a value cannot be read (IndexError)"),
    "a number of 100,000 digits": ("seed: " + "9" * 100_000, "a value cannot be read (ValueError)"),
    "code": ("seed: !!python/object/apply:os.system ['touch harm']", "could not determine a constructor"),
    "a tag of 100,000 characters": ("seed: !" + "x" * 100_000 + " 1", "could not determine a constructor"),
}


@pytest.mark.parametrize("case", YAML)
def test_yaml_that_is_none_is_refused_by_every_reader(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    text, message = YAML[case]
    Path("my.yaml").write_text(text, encoding="utf-8")
    began = time.process_time()
    for reader in (load_yaml, read_yaml):
        with pytest.raises(ConfigError) as found:
            reader("my.yaml")
        assert message in str(found.value)
        assert len(str(found.value)) < 500
    with pytest.raises(UsageError, match=r"--env.x: cannot read .*; write a number"):
        free_value("env.x", [text])
    assert message in refused(["train", "--task", "CartPole", "--config", "my.yaml"], capsys)
    assert message in refused(["config", "--file", "my.yaml"], capsys)
    assert time.process_time() - began < 20
    assert not Path("harm").exists()


def test_aliases_and_merges_that_mean_well_are_read() -> None:
    Path("my.yaml").write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: [*a, *a]\n", encoding="utf-8")
    a = {"x": 1, "y": 2}
    assert load_yaml("my.yaml") == {"a": a, "b": {"x": 3, "y": 2}, "c": [a, a]}


def test_a_file_that_is_too_large_to_be_settings_is_not_read() -> None:
    Path("my.yaml").write_text("x: 1\n" * 300_000, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"has 1,500,000 bytes, which is no configuration"):
        load_yaml("my.yaml")


def test_text_in_another_coding_is_said() -> None:
    Path("my.yaml").write_bytes("seed: 1".encode("utf-16"))
    with pytest.raises(ConfigError, match="it is not text in UTF-8"):
        load_yaml("my.yaml")


HUGE = "1" + "0" * 59


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"num_envs: {HUGE}", "num_envs: 1000"),
        (f"eval_envs: {HUGE}", "eval_envs: 1000"),
        (f"num_iterations: {HUGE}", "num_iterations: 1000"),
        (f"agent: {{num_steps: {HUGE}}}", "agent.num_steps: 1000"),
        (f"agent: {{num_epochs: {HUGE}}}", "agent.num_epochs: 1000"),
        (f"agent: {{actor: {{hidden_dims: [{HUGE}]}}}}", "agent.actor.hidden_dims: 1000"),
        (f"agent: {{learning_rate: {HUGE}}}", "agent.learning_rate: 1e+59"),
        ("agent: {learning_rate: 1" + "0" * 400 + "}", "agent.learning_rate: 1000"),
        (f"env: {{max_episode_length: {HUGE}}}", "option max_episode_length is 1000"),
        ("name: " + "x" * 100_000, "name: 'xxx"),
        ("device: " + "x" * 100_000, "device: 'xxx"),
        ("seed: 0x" + "f" * 100_000, "seed: a int that is too large to show"),
        ("x" * 1000 + ": 1", "unknown key 'xxx"),
        ("agent: " + "x" * 100_000, "agent: 'xxx"),
        ("runs_dir: " + "x/" * 50_000, "File name too long"),
        ("1: 2", "the key 1 is not a text"),
    ],
)
def test_values_that_nothing_can_take_are_named(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("my.yaml").write_text(text, encoding="utf-8")
    assert message in refused(["train", "--task", "CartPole", "--config", "my.yaml"], capsys)
    if text.startswith(("num", "eval", "name", "device")):
        key, value = text.split(": ")
        assert message in refused(["train", "--task", "CartPole", f"--{key}", value], capsys)


def test_a_task_of_any_length_is_refused_in_a_short_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown task 'xxx" in refused(["train", "--task", "x" * 100_000], capsys)


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({"agent": {"actor": {"hidden_dims": [0]}}}, "agent.actor.hidden_dims: (0,)"),
        ({"agent": {"critic": {"hidden_dims": [0]}}}, "agent.critic.hidden_dims: (0,)"),
        ({"agent": {"critic": {"rnn": {"type": "lstm", "hidden_size": 0}}}}, "agent.critic.rnn.hidden_size: 0"),
        ({"agent": {"gamma": 2}}, "agent.gamma: 2.0"),
        ({"agent": {"critic": {"activation": "x"}}}, "agent.critic.activation: 'x'"),
        ({"agent": {"critic": 3}}, "agent.critic: 3 is not a group"),
    ],
)
def test_errors_name_the_whole_path_of_a_setting(data: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as found:
        from_dict(TrainConfig, {"task": "CartPole", **data}, "my.yaml")
    assert str(found.value).startswith(f"my.yaml: {path} ")
    own = {key.removeprefix("agent."): value for key, value in data["agent"].items()}
    with pytest.raises(ConfigError, match=path.removeprefix("agent.").partition(":")[0]):
        from_dict(PPOConfig, own)


def test_a_value_is_shown_as_far_as_it_helps() -> None:
    assert shown("near") == "'near'"
    assert shown("x" * 500) == "'" + "x" * 39 + "... (502 characters)"
    assert shown(10**5000) == "a int that is too large to show"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run."""
    folder = tmp_path_factory.mktemp("trained")
    assert main(["train", "--task", "CartPole", *SMALL, "--runs-dir", str(folder), "--no-export"]) == 0
    (run,) = folder.glob("*/*/*")
    return run


OTHERS: dict[str, Any] = {"none": None, "list": [1], "text": "x", "number": 3, "tensor": torch.zeros(2), "dict": {}}


RESUMED = """agent progress env rng config agent.policy agent.critic agent.optimizers agent.timeout_bootstrap
    progress.iteration progress.env_steps progress.obs progress.returns rng.cpu config.agent config.task"""
EXPORTED = "agent spec recording agent.policy spec.observation_sizes spec.action_size recording.policy recording.done"


@pytest.mark.parametrize("kind", OTHERS)
def test_checkpoints_that_hold_something_else_are_refused(
    kind: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = trained / "checkpoints" / "000009.pt"
    sound = load_checkpoint(trained / "checkpoints" / "best.pt")
    words = {"resume": ["train", "--resume", str(path), "--num-iterations", "1"]}
    words["export"] = ["export", "--run", str(path), "--output", "x.onnx"]
    parts = [("resume", part) for part in RESUMED.split()] + [("export", part) for part in EXPORTED.split()]
    sane = [
        ("env", "none"),
        ("progress.iteration", "number"),
        ("progress.env_steps", "number"),
        ("config.task", "text"),
    ]
    sane += [("progress.obs", "none")]  # of a rollout that was broken off
    sane += [("progress.returns", "number"), ("recording", "dict"), ("agent.policy", "dict")]
    try:
        for use, part in parts:
            if (part, kind) in sane:
                continue
            content = copy.deepcopy(sound)
            *path_to, last = part.split(".")
            place: Any = content
            for key in path_to:
                place = place[key]
            place[last] = OTHERS[kind]
            torch.save(content, path)
            capsys.readouterr()
            assert main(words[use]) in ((2,) if use == "resume" else (1, 2)), (use, part)
            error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rlcore")]
            assert len(error) == 1, (use, part)
            assert len(error[0]) < 1100, (use, part)
    finally:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"PK\3\4" + b"\0" * 5000, b"\x80\x02}q\0." + b"x" * 99])
def test_checkpoints_that_are_none_are_refused(
    content: bytes, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = trained / "checkpoints" / "000009.pt"
    path.write_bytes(content)
    try:
        for words in (["eval", "--run", str(path)], ["train", "--resume", str(path)], ["export", "--run", str(path)]):
            assert "000009.pt" in refused(words, capsys)
    finally:
        path.unlink()


def test_weights_that_are_not_a_number_are_said(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = load_checkpoint(trained / "checkpoints" / "best.pt")
    name = next(name for name in content["agent"]["policy"] if name.endswith("weight"))
    content["agent"]["policy"][name].view(-1)[0] = math.nan
    path = trained / "checkpoints" / "000009.pt"
    save_checkpoint(path, content)
    try:
        for words in (["eval"], ["play"], ["train", "--num-iterations", "99"]):
            option = "--resume" if words[0] == "train" else "--run"
            error = refused([*words, option, str(path)], capsys)
            assert f"not finite in policy.{name}" in error
            assert "earlier" in error
        assert main(["export", "--run", str(path), "--output", "x.onnx"]) == 1
        assert f"not finite in {name}" in capsys.readouterr().err
    finally:
        path.unlink()


def test_a_memory_with_broken_observations_is_not_held_against_a_checkpoint() -> None:
    nan = torch.tensor([math.nan])
    state = {"policy": {"w": torch.ones(2)}, "trace": {"policy": nan}, "replay": {"obs": nan}, "critic_state": [nan]}
    assert broken_values(state) == []
    state |= {"optimizers": [{"v": nan}], "critic": {"w": torch.tensor([math.inf])}, "scale": torch.tensor(math.inf)}
    assert broken_values(state) == ["optimizers.0.v", "critic.w"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """A file of a policy for CartPole."""
    path = tmp_path_factory.mktemp("exported") / "policy.onnx"
    env = make_env("CartPole", 4)
    agent = PPO(env, PPOConfig(num_steps=8, num_minibatches=1), seed=1)
    agent.learn(1)
    export_onnx(agent.policy, spec_of(env), path, recording=agent.recording())
    return onnx.load(str(path))


def simple(obs: list[int | str], kind: int = TensorProto.FLOAT, state: bool = False) -> bytes:
    """A file that gives back what it gets."""
    inputs = [helper.make_tensor_value_info("obs", kind, obs)]
    if state:
        inputs.append(helper.make_tensor_value_info("h_in", TensorProto.FLOAT, [1, 1, 4]))
    outputs = [helper.make_tensor_value_info("actions", kind, obs)]
    graph = helper.make_graph([helper.make_node("Identity", ["obs"], ["actions"])], "g", inputs, outputs)
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8)
    groups = json.dumps([{"name": "policy", "size": 4, "slice": [0, 4]}])
    helper.set_model_props(file, {"task": "CartPole", "observation_groups": groups})
    return bytes(file.SerializeToString())


ONNX: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "is no ONNX file or a damaged one"),
    "zeros": (b"\0" * 5000, "is no ONNX file or a damaged one"),
    "a vector": (simple([4]), "a policy takes 'obs' [N, O] with a fixed O"),
    "any size": (simple([1, "o"]), "a policy takes 'obs' [N, O] with a fixed O"),
    "a state that is not given back": (simple([1, 4], state=True), "states [layers, N, hidden] that it gives back"),
    "another type": (simple([1, 4], TensorProto.DOUBLE), "ONNX Runtime cannot run the file"),
    "other actions": (simple([1, 4]), "gives actions float32 of shape (2, 4) for 2 envs"),
}


@pytest.mark.parametrize("case", ONNX)
def test_onnx_files_that_are_no_policy_are_refused(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    content, message = ONNX[case]
    Path("x.onnx").write_bytes(content)
    assert message in refused(["eval", "--onnx", "x.onnx", "--num-envs", "2"], capsys)
    assert "error: " in refused(["play", "--onnx", "x.onnx"], capsys)


@pytest.mark.parametrize("key", ["task", "env_options", "observation_terms", "observation_groups"])
@pytest.mark.parametrize("value", ["[1]", "3", '{"a": 1}', "[" * 50_000, "[null]"])
def test_metadata_that_says_something_else_is_refused(
    key: str, value: str, exported: onnx.ModelProto, capsys: pytest.CaptureFixture[str]
) -> None:
    model = copy.deepcopy(exported)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    del model.metadata_props[:]
    helper.set_model_props(model, facts | {key: value})
    onnx.save(model, "x.onnx")
    assert "error: " in refused(["eval", "--onnx", "x.onnx", "--num-envs", "2"], capsys)
    OnnxPolicy("x.onnx")


def test_a_file_that_says_nothing_of_itself_is_refused_with_a_remedy(
    exported: onnx.ModelProto, capsys: pytest.CaptureFixture[str]
) -> None:
    model = copy.deepcopy(exported)
    task = next(entry.value for entry in model.metadata_props if entry.key == "task")
    del model.metadata_props[:]
    onnx.save(model, "x.onnx")
    error = refused(["eval", "--onnx", "x.onnx", "--num-envs", "2", "--task", task], capsys)
    assert "does not say which observation groups it reads" in error and "export anew with rlcore" in error


def test_weights_of_a_file_that_are_not_a_number_are_said(
    exported: onnx.ModelProto, capsys: pytest.CaptureFixture[str]
) -> None:
    model = copy.deepcopy(exported)
    weight = next(w for w in model.graph.initializer if len(w.dims) == 2)
    values = numpy_helper.to_array(weight).copy()
    values[0, 0] = math.nan
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, "x.onnx")
    for command in ("eval", "play"):
        assert f"not a number (NaN) in {weight.name}" in refused([command, "--onnx", "x.onnx"], capsys)


def test_figures_that_are_not_finite_leave_json_valid() -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    record = {"return": math.nan, "interval": (-math.inf, 1.0), "count": torch.tensor(3)}
    conclude.write_json(Path("eval.json"), record)
    read = json.loads(Path("eval.json").read_text(), parse_constant=refuse)
    assert read == {"return": None, "interval": [None, 1.0], "count": 3}


def test_a_run_that_cannot_be_written_is_measured_all_the_same(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read_only(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "eval.json")

    monkeypatch.setattr(conclude, "whole_file", read_only)
    words = ["eval", "--run", str(trained), "--num-envs", "2"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "95% interval" in out
    assert f"not written: {trained / 'eval.json'}: Read-only file system" in out.replace("\n", " ")
    assert main([*words, "--output", "x.json"]) != 0  # what was asked for
    assert "95% interval" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    [
        "iteration\n1,2,3\n",
        "iteration,env_steps\n" + "9" * 200_000 + "\n",
        "\0\0\0",
        "a,b\n1,2\n",
        "iteration,env_steps\nx,y\n",
        "",
    ],
)
def test_a_table_of_metrics_that_is_damaged_does_not_stop_a_run(text: str, tmp_path: Path) -> None:
    assert main(["train", "--task", "CartPole", *SMALL, "--no-export"]) == 0
    (run,) = tmp_path.glob("runs/*/*/*")
    (run / "metrics.csv").write_text(text)
    assert main(["train", "--resume", str(run), "--num-iterations", "2"]) == 0
    assert "rollout/reward" in (run / "metrics.csv").read_text()


VALUES = [
    "", "null", "true", "[]", "{}", "-1", "0", "1.5", ".nan", ".inf", "-.inf", "1e59", HUGE, "-" + HUGE, "1e-320", "x",
    "'1'", "[1, [2]]", "{a: 1}", "[null]", "x" * 100_000, "'\\0'", '"\\0"', "!!binary aGk=", "2001-01-01", "&a [*a]",
    "*b", "1:30", "0x1f", "~", "? x", "[", "'", "!!python/name:os.system", "9" * 5000, "\u2028", "\U0001f600",
]  # fmt: skip


def mutated(text: str, rng: random.Random) -> str:
    """One to three changes: another value, a line or a key that is lost, moved or doubled, letters that are others."""
    lines = text.splitlines()
    for _ in range(rng.randint(1, 3)):
        i = rng.randrange(len(lines))
        change = rng.randrange(8)
        if change <= 2:
            lines[i] = f"{lines[i].partition(':')[0]}: {rng.choice(VALUES)}"
        elif change == 3:
            lines.insert(rng.randrange(len(lines)), lines[i])
        elif change == 4 and len(lines) > 1:
            del lines[i]
        elif change == 5:
            lines[i] = " " * rng.randint(1, 9) + lines[i]
        elif change == 6:
            at = rng.randrange(len(lines[i]) + 1)
            lines[i] = lines[i][:at] + rng.choice(string.printable + "\0\u00e9\u2028") + lines[i][at + 1 :]
        else:
            at = rng.randrange(len(lines[i]) + 1)
            lines[i] = lines[i][:at]
    return "\n".join(lines) + "\n"


def test_random_changes_of_a_configuration_are_refused_in_one_line_or_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(5)
    text = yaml.safe_dump(to_dict(TrainConfig(task="CartPole", env={"max_episode_length": 20})), sort_keys=False)
    ends = {0: 0, 2: 0}
    for number in range(MUTATIONS):
        file = tmp_path / f"{number}.yaml"
        file.write_text(mutated(text, rng), encoding="utf-8")
        signal.alarm(60)
        capsys.readouterr()
        code = main(["train", "--config", str(file), *SMALL, "--no-export"])
        error = capsys.readouterr().err
        assert code in ends, f"{file}: {error}"
        ends[code] += 1
        assert code == 0 or (error.count("\n") == 1 and len(error) < 1100), f"{file}: {error}"
    assert ends[2] > MUTATIONS // 2
    print(ends)
