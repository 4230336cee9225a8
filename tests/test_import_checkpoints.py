"""Checkpoints of other libraries: what their own policies compute, from runs that ``rlcore import`` makes.

The files in ``data/peers`` were written by each library itself, see ``make_checkpoints.py`` there.
"""

from __future__ import annotations

import base64
import io
import json
import math
import pickle
import random
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlcore.checkpoint import load_checkpoint, save_checkpoint
from rlcore.config import ConfigError
from rlcore.policies import ActorPolicy
from rlcore.train.cli import main
from rlcore.train.conclude import restore_policy
from rlcore.train.importers.checkpoints import library_of, read_weights
from rlcore.train.importers.pickles import read_pickle
from rlcore.train.importing import import_checkpoint
from rlcore.types import State

PEERS = Path(__file__).parent / "data" / "peers"
ACTIVATION = {"rl_games": "elu", "rsl_rl": "elu", "skrl": "elu"}
FILES = sorted(p.name for p in PEERS.iterdir() if p.suffix in (".pth", ".zip", ".pt") and ".expected." not in p.name)
RECURRENT = ("lstm", "gru")


def task_of(file: str) -> str:
    return "CartPole" if "cartpole" in file else "Pendulum"


def expected(file: str) -> dict[str, Tensor]:
    return torch.load(PEERS / f"{Path(file).stem}.expected.pt", weights_only=True)  # type: ignore[no-any-return]


@pytest.fixture(scope="module", params=FILES)
def imported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A file, and the checkpoint of the run that was made of it."""
    folder = tmp_path_factory.mktemp("imported")
    _, checkpoint, _ = import_checkpoint(
        PEERS / request.param, task_of(request.param), num_envs=8, runs_dir=str(folder), device="cpu"
    )
    return request.param, checkpoint


def outputs(policy: Any, obs: Tensor, recurrent: bool) -> tuple[Tensor, Tensor]:
    """Means (or logits) and deviations ``[256, A]``; step by step of one episode where the policy is recurrent."""
    if not recurrent:
        normalized = policy.normalizer(obs)
        if isinstance(policy, ActorPolicy):
            (first, *rest) = policy.output_of(normalized)
            return first, rest[0].expand_as(first) if rest else torch.zeros(1)
        output = policy.output(normalized)
        mean, log_std = output.chunk(2, -1)
        return policy.squash(mean), log_std.clamp(*policy.log_std_range).exp()
    state: State = policy.initial_state(1)
    rows = []
    for row in policy.normalizer(obs):
        distribution, state = policy.distribution(row.view(1, 1, -1), state)
        rows.append((distribution.mean.view(-1), distribution.std.view(-1)))
    means, deviations = zip(*rows, strict=True)
    return torch.stack(means), torch.stack(deviations)


@torch.no_grad()
def test_actions_and_deviations_are_those_of_the_peer(imported: tuple[str, Path]) -> None:
    file, checkpoint = imported
    policy, _, _ = restore_policy(checkpoint)
    peer = expected(file)
    actions, deviations = outputs(
        policy, peer["obs"], file.endswith(tuple(f"{k}{s}" for k in RECURRENT for s in (".pt", ".pth")))
    )
    if "cartpole" not in file:
        assert float(peer["actions"].std()) > 0.03  # not a policy that says the same of everything
        torch.testing.assert_close(deviations, peer["std"].expand_as(deviations), rtol=1e-6, atol=0)
    print(file, float((actions - peer["actions"]).abs().max()))
    torch.testing.assert_close(actions, peer["actions"], rtol=0, atol=1e-6)


@torch.no_grad()
def test_values_are_those_of_the_file(imported: tuple[str, Path]) -> None:
    """What the critic says, computed from the file's tensors one by one, in the units of returns."""
    file, checkpoint = imported
    if file.startswith("sb3_sac") or file.endswith(("lstm.pt", "gru.pt", "lstm.pth")):
        pytest.skip("state values of perceptrons")
    content = load_checkpoint(checkpoint)["agent"]
    own = {name: value.double() for name, value in content["critic"].items()}
    obs = expected(file)["obs"].double()
    slow = peer_value(file, obs)
    policy, _, _ = restore_policy(checkpoint)
    x = policy.normalizer(obs.float()).double()
    for name in (name for name in own if name.startswith("trunk.") and name.endswith("weight")):
        x = x @ own[name].T + own[name.replace("weight", "bias")]
        x = x.tanh() if file.startswith("sb3") else torch.nn.functional.elu(x)
    y = (x @ own["value.weight"].T + own["value.bias"]).squeeze(-1)
    if content.get("value_normalizer") is not None:
        scale = content["value_normalizer"]
        y = y * (scale["var"].double().sqrt() + 1e-2) + scale["mean"].double()
    torch.testing.assert_close(y, slow, rtol=1e-5, atol=1e-5)


def peer_value(file: str, obs: Tensor) -> Tensor:
    """Its critic in plain matrix products, float64."""
    tensors: dict[str, Any] = {}
    std, mean, scale, shift, limit = torch.ones(()), torch.zeros(()), torch.ones(()), torch.zeros(()), torch.inf
    if file.endswith(".zip"):
        with zipfile.ZipFile(PEERS / file) as archive, archive.open("policy.pth") as member:
            tensors = torch.load(member, weights_only=True)
        layers, head = ["mlp_extractor.value_net.0", "mlp_extractor.value_net.2"], "value_net"
        normalizer = PEERS / f"{Path(file).stem}_vecnormalize.pkl"
        if normalizer.is_file():
            from rlcore.train.importers.pickles import array, fields

            rms, own = (fields(fields(read_pickle(normalizer))[key]) for key in ("obs_rms", "ret_rms"))
            mean, std = torch.tensor(array(rms["mean"])), torch.tensor(array(rms["var"]) + 1e-8).sqrt()
            scale, limit = torch.tensor(array(own["var"]) + 1e-8).sqrt(), 10.0
    else:
        content = torch.load(PEERS / file, weights_only=not file.startswith("rl_games"))
        if file.startswith("rsl_rl"):
            old = "model_state_dict" in content
            tensors = content["model_state_dict"] if old else content["critic_state_dict"]
            layers, head = (["critic.0", "critic.2"], "critic.4") if old else (["mlp.0", "mlp.2"], "mlp.4")
            own = "critic_obs_normalizer" if old else "obs_normalizer"
            mean, std = tensors[f"{own}._mean"], tensors[f"{own}._var"].double().sqrt() + 0.01
        elif file.startswith("skrl"):
            tensors, limit = content["value"], 5.0
            names = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]
            head = "value_layer" if "value_layer" in names else names[-1]
            layers = [name for name in names if name not in (head, "policy_layer")]
            own = content["observation_preprocessor"]
            mean, std = own["running_mean"], own["running_variance"].sqrt() + 1e-8
            scale = content["value_preprocessor"]["running_variance"].sqrt()
            shift = content["value_preprocessor"]["running_mean"]
        else:
            tensors, limit = content["model"], 5.0
            mlp = "critic_mlp" if "separate" in file else "actor_mlp"
            layers, head = [f"a2c_network.{mlp}.{i}" for i in (0, 2)], "a2c_network.value"
            mean, std = (
                tensors["running_mean_std.running_mean"],
                (tensors["running_mean_std.running_var"] + 1e-5).sqrt(),
            )
            scale = (tensors["value_mean_std.running_var"] + 1e-5).sqrt()
            shift = tensors["value_mean_std.running_mean"]
    x = ((obs - mean.double()) / std.double()).clamp(-limit, limit)
    for layer in layers:
        x = x @ tensors[f"{layer}.weight"].double().T + tensors[f"{layer}.bias"].double()
        x = x.tanh() if file.startswith("sb3") else torch.nn.functional.elu(x)
    x = (x @ tensors[f"{head}.weight"].double().T + tensors[f"{head}.bias"].double()).squeeze(-1)
    return x * scale.double() + shift.double()


def test_a_run_of_it_is_measured_exported_and_trained_on(
    imported: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, checkpoint = imported
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    shutil.copytree(checkpoint.parent.parent, run)
    words = ["--num-envs", "4", "--device", "cpu", "--env.max_episode_length", "20"]
    assert main(["eval", "--run", str(run), *words]) == 0
    assert "95% interval" in capsys.readouterr().out
    assert main(["export", "--run", str(run)]) == 0
    assert "parity" in capsys.readouterr().out
    if "sb3_sac" in file or "sb3_ppo" in file:
        return  # iterations of other lengths; the others tell that it goes on
    before = load_checkpoint(checkpoint)["agent"]
    goes_on = ["--num-iterations", "1", "--eval-envs", "2", "--no-export", "--env.max_episode_length", "20"]
    assert main(["train", "--resume", str(run), *goes_on]) == 0
    after = load_checkpoint(run / "checkpoints" / "000001.pt")["agent"]
    name = "trunk.mlp.layers.0.weight"
    assert 0 < float((after["policy"][name] - before["policy"][name]).abs().max()) < 0.1
    assert float(after["optimizers"][0]["count"]) > float(before["optimizers"][0]["count"])


def test_adam_goes_on_as_it_stood() -> None:
    """Moments of a parameter that is the same here are those of the file, and so is the number of steps."""
    content = torch.load(PEERS / "rsl_rl_5_mlp.pt", weights_only=True)
    weights = read_weights(PEERS / "rsl_rl_5_mlp.pt")
    moments = weights.pieces["policy.trunk.mlp.layers.2.weight"].moments
    state = content["optimizer_state_dict"]["state"]
    (index,) = (i for i in state if moments is not None and torch.equal(state[i]["exp_avg"], moments[0]))
    assert moments is not None and torch.equal(state[index]["exp_avg_sq"], moments[1])
    assert state[index]["exp_avg"].shape == (16, 16)
    assert set(weights.steps.values()) == {int(state[index]["step"])}
    assert weights.learning_rate == content["optimizer_state_dict"]["param_groups"][0]["lr"]


# Training on


def serialized(value: Any) -> dict[str, str]:
    """An object as archives of Stable-Baselines3 have it."""
    return {":serialized:": base64.b64encode(pickle.dumps(value)).decode()}


def archive_with(target: Path, source: str, **data: Any) -> Path:
    """A copy of an archive whose settings are others."""
    with zipfile.ZipFile(PEERS / source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, json.dumps(json.loads(content) | data) if name == "data" else content)
    return target


def test_envs_and_the_ratio_of_updates_are_those_of_the_archive(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    frequency = b"\x80\x02cstable_baselines3.common.type_aliases\nTrainFreq\nK\x08"
    # TrainFreq(8, TrainFrequencyUnit("step"))
    frequency += b"cstable_baselines3.common.type_aliases\nTrainFrequencyUnit\nX\x04\x00\x00\x00step\x85R\x86R."
    text = {":serialized:": base64.b64encode(frequency).decode()}
    file = archive_with(tmp_path / "a.zip", "sb3_sac.zip", n_envs=1, train_freq=text, gradient_steps=4)
    run, _, _ = import_checkpoint(file, "Pendulum", device="cpu")
    config = run.read_config()
    assert (config.num_envs, config.agent.num_steps, config.agent.update_ratio) == (1, 8, 0.5)
    run, _, _ = import_checkpoint(file, "Pendulum", num_envs=2, device="cpu")
    assert run.read_config().num_envs == 2 and run.read_config().agent.update_ratio == 0.25
    target = tmp_path / "touched"
    file = archive_with(tmp_path / "b.zip", "sb3_sac.zip", train_freq=serialized(Hostile(target)))
    assert "train_freq" not in read_weights(file).source and not target.exists()
    assert read_weights(PEERS / "sb3_sac.zip").source["train_freq"] == [1, "step"]


def test_an_imported_policy_is_kept_where_training_on_does_worse(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    run, _, _ = import_checkpoint(PEERS / "sb3_cartpole.zip", "CartPole", device="cpu")
    content = load_checkpoint(run.checkpoint("last"))
    content["agent"]["learning_rate"].fill_(0.1)  # which loses all that was learned
    save_checkpoint(run.checkpoint("last"), content)
    words = ["train", "--resume", str(run.path), "--num-iterations", "2", "--eval-envs", "10"]
    assert main(words) == 0
    assert load_checkpoint(run.best)["progress"]["iteration"] == 0
    assert "iteration 0: " in capsys.readouterr().out


# What does not fit


def changed(source: str, target: Path, change: Any) -> Path:
    """A copy of a file with something else in it."""
    content = torch.load(PEERS / source, weights_only=not source.startswith("rl_games"))
    change(content)
    torch.save(content, target)
    return target


def refused(path: Path, task: str = "Pendulum") -> str:
    """The one line that an import ends in."""
    with pytest.raises(ConfigError) as found:
        import_checkpoint(path, task, num_envs=2, device="cpu")
    assert "\n" not in str(found.value) and len(str(found.value)) < 1000
    return str(found.value)


def test_the_first_tensor_that_does_not_fit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    error = refused(PEERS / "rsl_rl_5_mlp.pt", "Reach-UR5e-JointPos")
    assert "_mean is [3], and [" in error or "mlp.0.weight is [16, 3], and [16, " in error

    def extra(content: Any) -> None:
        content["actor_state_dict"]["cnns.camera.0.weight"] = torch.zeros(8, 3, 3, 3)

    error = refused(changed("rsl_rl_5_mlp.pt", tmp_path / "a.pt", extra))
    assert "actor.cnns.camera.0.weight [8, 3, 3, 3] does not fit" in error

    def less(content: Any) -> None:
        del content["critic_state_dict"]["mlp.4.bias"]

    assert "has no tensor critic.mlp.4.bias" in refused(changed("rsl_rl_5_mlp.pt", tmp_path / "b.pt", less))

    def broken(content: Any) -> None:
        content["actor_state_dict"]["mlp.2.bias"][3] = torch.nan

    assert "actor.mlp.2.bias has values that are not finite" in refused(
        changed("rsl_rl_5_mlp.pt", tmp_path / "c.pt", broken)
    )
    config = tmp_path / "agent.yaml"
    config.write_text("num_steps_per_env: 24\nactor: {hidden_dims: [32, 16]}\ncritic: {hidden_dims: [16, 16]}\n")
    with pytest.raises(ConfigError, match=r"actor.mlp.0.weight is \[16, 3\], and \[32, 3\] was expected"):
        import_checkpoint(PEERS / "rsl_rl_5_mlp.pt", "Pendulum", config=config, num_envs=2, device="cpu")
    assert not (tmp_path / "runs").exists()


def test_statistics_of_the_actor_alone_are_taken_in_by_the_critic(tmp_path: Path, monkeypatch: Any) -> None:
    """Where they differ from the critic's, its first layer is another, and its values are not."""
    monkeypatch.chdir(tmp_path)

    def move(content: Any) -> None:
        content["critic_state_dict"]["obs_normalizer._mean"] += 0.3
        content["critic_state_dict"]["obs_normalizer._var"] *= 1.7

    file = changed("rsl_rl_5_mlp.pt", tmp_path / "model.pt", move)
    _, checkpoint, notes = import_checkpoint(file, "Pendulum", num_envs=2, device="cpu")
    assert any("Adam begins anew" in note for note in notes)
    own = load_checkpoint(checkpoint)["agent"]["critic"]
    policy, _, _ = restore_policy(checkpoint)
    theirs = torch.load(file, weights_only=True)["critic_state_dict"]
    obs = expected("rsl_rl_5_mlp.pt")["obs"]
    seen = (obs - theirs["obs_normalizer._mean"]) / (theirs["obs_normalizer._var"].sqrt() + 0.01)
    first = seen @ theirs["mlp.0.weight"].T + theirs["mlp.0.bias"]
    here = policy.normalizer(obs) @ own["trunk.mlp.layers.0.weight"].T + own["trunk.mlp.layers.0.bias"]
    torch.testing.assert_close(here, first, rtol=1e-5, atol=1e-5)


def test_an_archive_without_its_ending_is_named() -> None:
    with pytest.raises(ConfigError, match=r"sb3_ppo' does not exist; did you mean '.*sb3_ppo\.zip'\?"):
        read_weights(PEERS / "sb3_ppo")


def test_commands_say_what_makes_a_run_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    for file in FILES:
        library = library_of(PEERS / file)
        assert library is not None and file.startswith(library)
    path = str(PEERS / FILES[0])
    for words in (
        ["train", "--resume", path],
        ["eval", "--run", path],
        ["export", "--run", path],
        ["play", "--run", path],
    ):
        assert main(words) == 2
        assert f"rlcore import {path} --task TASK" in capsys.readouterr().err


# Files that were made to do harm


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (open, (str(self.target), "w"))


@pytest.mark.parametrize("source", [file for file in FILES if not file.endswith(".zip")])
def test_hostile_checkpoints_are_refused_unread(source: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "touched"
    path = changed(source, tmp_path / "hostile.pt", lambda content: content.update(infos=Hostile(target)))
    assert "nothing of it was run" in refused(path)
    assert library_of(path) is None
    assert not target.exists()
    plain = tmp_path / "plain.pt"
    plain.write_bytes(pickle.dumps({"actor_state_dict": Hostile(target), "model": Hostile(target)}))
    refused(plain)
    assert not target.exists()


def test_a_hostile_archive_is_refused_unread(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "touched"
    source = next(file for file in FILES if file.endswith(".zip"))
    for member in ("policy.pth", "data"):
        path = tmp_path / f"{member}.zip"
        with zipfile.ZipFile(PEERS / source) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                new.writestr(name, pickle.dumps(Hostile(target)) if name == member else old.read(name))
        refused(path, task_of(source))
        assert not target.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_hostile_normalizer_is_refused_unread(protocol: int, tmp_path: Path) -> None:
    target, path = tmp_path / "touched", tmp_path / "vecnormalize.pkl"
    path.write_bytes(pickle.dumps({"obs_rms": Hostile(target)}, protocol))
    with pytest.raises(ConfigError, match="nothing of it was run"):
        read_pickle(path)
    assert not target.exists()


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"PK\3\4" + b"\0" * 5000, b"\x80\x02}q\0." + b"x" * 99])
def test_files_that_are_none_are_refused(content: bytes, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    assert "model.pt" in refused(path)
    with pytest.raises(ConfigError, match=r"model\.pt"):
        read_pickle(path) if content[:1] != b"\x80" else read_weights(path)


OTHERS: dict[str, Any] = {"none": None, "list": [1], "text": "x", "number": 3, "tensor": torch.zeros(2), "dict": {}}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("source", [file for file in FILES if not file.endswith(".zip")])
def test_parts_that_hold_something_else_are_refused_in_a_line(source: str, kind: str, tmp_path: Path) -> None:
    content = torch.load(PEERS / source, weights_only=not source.startswith("rl_games"))
    for part in content:
        path = tmp_path / "model.pt"
        torch.save({**content, part: OTHERS[kind]}, path)
        try:
            read_weights(path)  # of what says nothing, such as infos, anything may be there
        except ConfigError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000


ODD = {**OTHERS, "number that is none": math.nan, "tensors": torch.zeros(1, 2, 3), "no tensor": torch.tensor(math.nan)}


def parts_of(content: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something is inside of tables and lists."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*at, key)
        yield from parts_of(value, (*at, key))


def replaced(content: Any, at: tuple[Any, ...], value: Any) -> Any:
    if not at:
        return value
    copied = dict(content) if isinstance(content, dict) else list(content)
    copied[at[0]] = replaced(content[at[0]], at[1:], value)
    return copied


def attempted(path: Path) -> None:
    """What is read has numbers in all of its parts, or is refused in a line that names the file."""
    try:
        weights = read_weights(path)
    except ConfigError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000 and path.name in str(error)
        return
    for piece in weights.pieces.values():
        assert all(bool(part.isfinite().all()) for part in (piece.value, *(piece.moments or ())))


@pytest.mark.parametrize("source", FILES)
def test_whatever_stands_deep_inside_is_refused_in_a_line(source: str, tmp_path: Path) -> None:
    path, rng, members = tmp_path / f"model{Path(source).suffix}", random.Random(source), {}
    if source.endswith(".zip"):
        with zipfile.ZipFile(PEERS / source) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    files = [name for name in members if name.endswith(".pth")] or [source]
    for name in files:
        held = io.BytesIO(members[name]) if members else PEERS / source
        content = torch.load(held, weights_only=not source.startswith("rl_games"))
        places = [at for at in parts_of(content) if len(at) > 1 or members]
        for at in rng.sample(places, min(30, len(places))):
            changed = io.BytesIO()
            torch.save(replaced(content, at, ODD[rng.choice(list(ODD))]), changed)
            path.write_bytes(changed.getvalue())
            if members:
                with zipfile.ZipFile(path, "w") as archive:
                    for other, data in members.items():
                        archive.writestr(other, changed.getvalue() if other == name else data)
            attempted(path)


def test_moments_and_variances_that_are_none_are_not_taken(tmp_path: Path) -> None:
    def moments(content: Any) -> None:
        content["optimizer_state_dict"]["state"][0]["exp_avg_sq"].view(-1)[0] = torch.nan

    weights = read_weights(changed("rsl_rl_5_mlp.pt", tmp_path / "a.pt", moments))
    assert any("Adam begins anew" in note for note in weights.notes) and not weights.steps

    def variance(content: Any) -> None:
        content["value_preprocessor"]["running_variance"].fill_(-1.0)

    with pytest.raises(ConfigError, match="running_variance is no variance of returns above 0"):
        read_weights(changed("skrl_separate.pt", tmp_path / "b.pt", variance))

    def deviation(content: Any) -> None:
        content["model"]["a2c_network.sigma"].fill_(1000.0)  # its logarithm

    assert "a2c_network.sigma comes to numbers that are not finite" in refused(
        changed("rl_games_separate.pth", tmp_path / "c.pth", deviation)
    )


def test_a_pickle_of_rewards_alone_is_not_said_to_normalize_observations(tmp_path: Path, monkeypatch: Any) -> None:
    file = PEERS / "sb3_ppo.zip"
    own = {"epsilon": 1e-8, "clip_obs": 10.0, "norm_obs": False, "norm_reward": False}
    found = read_pickle(PEERS / "sb3_ppo_vecnormalize.pkl")
    monkeypatch.setattr("rlcore.train.importers.weights_sb3.read_pickle", lambda path: found)
    assert any("observations are normalized by" in note for note in read_weights(file).notes)
    monkeypatch.setattr(found, "state", {**found.state, **own})
    weights = read_weights(file)
    assert not any("observations are normalized by" in note for note in weights.notes)
    for change, message in (
        ({"epsilon": -1e-8}, "its epsilon is -1e-08 and its clip_obs 10"),
        ({"clip_obs": float("nan")}, "its epsilon is 1e-08 and its clip_obs nan"),
    ):
        monkeypatch.setattr(found, "state", {**found.state, **own, **change, "norm_obs": True})
        with pytest.raises(ConfigError, match=message):
            read_weights(file)
