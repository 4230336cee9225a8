"""Networks of one's own in the place of hidden layers; ``examples/own_network.py`` is the example."""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from rlcore import DDPG, PPO, SAC, ConfigError, DDPGConfig, NetworkConfig, PPOConfig, SACConfig, spec_of, user_code
from rlcore.checkpoint import load_checkpoint
from rlcore.config import from_dict, to_dict
from rlcore.envs import make_env
from rlcore.export import ExportError, export_onnx
from rlcore.networks import Network
from rlcore.recurrent import RNNConfig
from rlcore.train.cli import main

EXAMPLE = Path(__file__).parent.parent / "examples" / "own_network.py"
BRANCHES, UNIT = f"{EXAMPLE}:Branches", f"{EXAMPLE}:MinimalGatedUnit"
FEW = ["--num-envs", "4", "--eval-envs", "4", "--agent.num-steps", "8", "--agent.num-minibatches", "2"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The present folder, with the network's file."""
    shutil.copy(EXAMPLE, tmp_path / "nets.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    yield tmp_path
    sys.modules.pop("nets", None)
    user_code._files.clear()


@pytest.mark.parametrize(
    ("task", "kind"), [("Pendulum", "nets.py:Branches"), ("Memory", "python:nets:MinimalGatedUnit")]
)
def test_every_command_takes_it(
    task: str, kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--task", task, *FEW, "--agent.actor.hidden-dims", "8"]
    for net in ("actor", "critic"):
        words += [f"--agent.{net}.kind", kind, f"--agent.{net}.rnn.type", "none"]
    if task == "Pendulum":
        words += ["--agent.actor.options.branches", "2", "--env.max-episode-length", "40"]
    assert main([*words, "--num-iterations", "2"]) == 0
    said = capsys.readouterr().out
    assert "parity" in said and "nan" not in said
    (run,) = folder.glob("runs/*/ppo/*")
    written = yaml.safe_load((run / "config.yaml").read_text())["agent"]["actor"]
    assert written["kind"] == (f"{folder}/nets.py:Branches" if task == "Pendulum" else "nets:MinimalGatedUnit")
    assert written["options"] == ({"branches": 2} if task == "Pendulum" else {})
    if task == "Pendulum":  # from another folder, as its configuration names the file
        (elsewhere := folder / "elsewhere").mkdir()
        monkeypatch.chdir(elsewhere)
        user_code._files.clear()
    assert main(["train", "--resume", str(run), "--num-iterations", "3"]) == 0
    assert main(["eval", "--run", str(run), "--num-envs", "4"]) == 0
    assert main(["export", "--run", str(run)]) == 0
    assert main(["eval", "--onnx", str(run / "export" / "policy.onnx"), "--num-envs", "4"]) == 0
    assert main(["train", "--config", str(run / "config.yaml"), "--num-iterations", "1", "--no-export"]) == 0
    assert main(["train", "--resume", str(run), "--agent.actor.kind", "nets:Other"]) == 2
    assert (
        f"agent.actor.kind is '{written['kind']}' in the run that is resumed and 'nets:Other' here"
        in capsys.readouterr().err
    )


def test_it_goes_on_as_if_it_had_not_been_interrupted(folder: Path) -> None:
    for name, lengths in (("whole", [4]), ("halves", [2, 4])):
        words = ["train", "--task", "Pendulum", *FEW, "--name", name, "--no-export", "--agent.lr-schedule", "constant"]
        assert main([*words, "--num-iterations", str(lengths[0]), "--agent.actor.kind", "nets.py:Branches"]) == 0
        for more in lengths[1:]:
            (run,) = folder.glob(f"runs/*/*/*-{name}")
            assert main(["train", "--resume", str(run), "--num-iterations", str(more)]) == 0
    states = [load_checkpoint(path)["agent"] for path in sorted(folder.glob("runs/*/*/*/checkpoints/000004.pt"))]
    assert len(states) == 2
    assert any("experts" in name for name in states[0]["policy"])
    for part in ("policy", "critic"):
        assert all(torch.equal(states[0][part][name], value) for name, value in states[1][part].items())


@pytest.mark.parametrize("algo", ["sac", "ddpg", "ppo"])
def test_actor_and_critics_learn_with_it_and_export(algo: str, tmp_path: Path) -> None:
    net = NetworkConfig(kind=BRANCHES, hidden_dims=(8,), options={"branches": 2})
    env = make_env("Pendulum", 4, seed=1)
    few = {"learning_starts": 16, "batch_size": 8, "buffer_size": 256, "num_updates": 1}
    agent = {
        "ppo": lambda: PPO(env, PPOConfig(actor=net, critic=net, num_steps=8, num_minibatches=2), seed=1),
        "sac": lambda: SAC(env, SACConfig(actor=net, critic=net, **few), seed=1),
        "ddpg": lambda: DDPG(env, DDPGConfig(actor=net, critic=net, **few), seed=1),
    }[algo]()
    before = copy.deepcopy(agent.policy.trunk.state_dict())
    agent.learn(30)
    after = agent.policy.trunk.state_dict()
    assert all(not torch.equal(value, after[name]) for name, value in before.items())
    report = export_onnx(agent.policy, spec_of(env), tmp_path / "policy.onnx", recording=agent.recording())
    assert report.parity.passed


def test_a_recurrent_one_unrolls_and_forgets_as_it_says_and_off_policy_algorithms_refuse_it() -> None:
    network = Network(3, NetworkConfig(kind=UNIT, hidden_dims=(8,)))
    head, x, keep = nn.Linear(8, 2), torch.randn(6, 4, 3), torch.ones(6, 4, 1)
    keep[3, 1] = 0
    state = network.initial_state(4)
    whole, last = network(x, head, state, keep)
    rows, now = [], state
    for t in range(6):
        now = tuple(part * keep[t] for part in now)
        row, now = network(x[t : t + 1], head, now)
        rows.append(row)
    torch.testing.assert_close(torch.cat(rows), whole)
    torch.testing.assert_close(now[0], last[0])
    env = make_env("Pendulum", 4)
    for agent, config in ((SAC, SACConfig), (DDPG, DDPGConfig)):
        for net in ("actor", "critic"):
            with pytest.raises(
                ConfigError, match=r"MinimalGatedUnit': it has a state \(initial_state\), which needs ppo"
            ):
                agent(env, config(**{net: NetworkConfig(kind=UNIT)}))
    with pytest.raises(ConfigError, match=r"it has a state itself; set its rnn.type \(gru\) to none"):
        Network(3, NetworkConfig(kind=UNIT, rnn=RNNConfig(type="gru")))


def test_it_goes_beside_our_recurrent_layers_and_reads_images_and_vectors_as_one() -> None:
    shape = (3, 20, 20)
    network = Network(3, NetworkConfig(kind=BRANCHES, rnn=RNNConfig(type="gru", hidden_size=5)), {"camera": shape})
    x, raw = torch.randn(2, 4, 3), {"camera": torch.rand(2, 4, *shape)}
    out, state = network(x, nn.Linear(64, 2), network.initial_state(4), None, raw)
    assert out.shape == (2, 4, 2) and state[0].shape == (1, 4, 5)


def test_what_is_frozen_stays_and_the_rest_learns() -> None:
    env = make_env("Pendulum", 4, seed=1)
    few = {"learning_starts": 16, "batch_size": 8, "buffer_size": 256, "num_updates": 1}
    net = NetworkConfig(kind=f"{__file__}:Frozen")
    for agent in (
        SAC(env, SACConfig(actor=net, critic=net, **few), seed=1),
        DDPG(env, DDPGConfig(actor=net, critic=net, **few), seed=1),
        PPO(env, PPOConfig(actor=net, critic=net, num_steps=8, num_minibatches=2), seed=1),
    ):
        network = agent.policy.trunk.mlp.network
        before = copy.deepcopy(network.state_dict())
        agent.learn(30)
        assert torch.equal(network.backbone.weight, before["backbone.weight"])
        assert not torch.equal(network.top.weight, before["top.weight"])
        critics = [agent.critic.trunk] if isinstance(agent, PPO) else list(agent.critics.trunks)
        assert all(not trunk.mlp.network.backbone.weight.requires_grad for trunk in critics)


def test_an_lstm_of_pytorch_is_learned_after_its_parameters_were_replaced() -> None:
    """It keeps lists of its parameters, which have to be those that the optimizer moves."""
    env = make_env("Pendulum", 4, seed=1)
    net = NetworkConfig(kind=f"{__file__}:Torch")
    agent = PPO(env, PPOConfig(actor=net, critic=net, num_steps=8, num_minibatches=2), seed=1)
    progress = agent.learn(2)
    agent.policy.load_state_dict(copy.deepcopy(agent.policy.state_dict()), assign=True)
    agent.learn(3, progress=progress)
    lstm = agent.policy.trunk.mlp.network.lstm
    assert all(one is other for one, other in zip(lstm._flat_weights, lstm.parameters(), strict=True))


def test_an_operator_without_a_form_in_the_opset_is_named(tmp_path: Path) -> None:
    env = make_env("Pendulum", 4, seed=1)
    agent = PPO(env, PPOConfig(actor=NetworkConfig(kind=f"{__file__}:Attention")), seed=1)
    with pytest.raises(ExportError, match=r"cannot be written in opset 11: .*scaled_dot_product_attention"):
        export_onnx(agent.policy, spec_of(env), tmp_path / "policy.onnx", recording=None)


def test_settings_come_back_as_they_were_and_typing_errors_are_named(folder: Path) -> None:
    net = NetworkConfig(kind="nets.py:Branches", options={"branches": 2})
    assert net.kind == f"{folder}/nets.py:Branches"
    assert from_dict(NetworkConfig, to_dict(net)) == net
    with pytest.raises(ConfigError, match=r"kind: 'residul' is not possible; did you mean 'residual'\?"):
        NetworkConfig(kind="residul")
    with pytest.raises(ConfigError, match=r"options: .* they are for a network of your own"):
        NetworkConfig(options={"branches": 2})


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("no.py:Net", {}, "there is no file '.*no.py'; put it there, or run in the folder that has it"),
        ("no_module:Net", {}, "there is no module 'no_module'; install it"),
        (
            f"{EXAMPLE}:Branch",
            {},
            r"'Branch' in it is no class of torch.nn.Module; there is Branches, MinimalGatedUnit",
        ),
        (str(EXAMPLE), {}, "it has 2 classes of nn.Module; there is Branches"),
        ("json:dumps", {}, "'dumps' in it is no class of torch.nn.Module; give it one"),
        (BRANCHES, {"brances": 3}, r"it is called with \(inputs, config, brances=3\): got an unexpected .*'brances'"),
        (f"{__file__}:NoConfig", {}, r"it is called with \(inputs, config\): too many positional arguments"),
        (f"{__file__}:Raises", {}, r"it cannot be built: KeyError: 'width'; correct line \d+ of .*test_own_network.py"),
        (f"{__file__}:NoSize", {}, "it has no attribute size; set self.size to the number of features"),
        (f"{__file__}:WrongSize", {}, r"forward returns float32 \[2, 3\] for x \[2, 3\]; return float32 \[2, 4\]"),
        (f"{__file__}:Double", {}, r"forward returns float64 \[2, 3\]"),
        (f"{__file__}:Pair", {}, r"forward returns tuple; return a tensor \[2, 3\]"),
        (f"{__file__}:OneRow", {}, r"forward cannot take x \[2, 3\]: RuntimeError: .*; correct line \d+ of"),
        (f"{__file__}:ByValue", {}, r"forward returns float32 \[\d, 3\] for x \[\d, 3\]; return float32"),
        (f"{__file__}:Centered", {}, "a row's features depend on the rows beside it; map each row by itself"),
        (f"{__file__}:Chance", {}, "it gives other features each time, in eval.. as well; leave chance to the policy"),
        (f"{__file__}:Doubles", {}, "forward changes its input in place, which others read, too; change a copy"),
        (f"{__file__}:Half", {}, "its parameter layer.weight is float16, and optimizers hold float32; keep it as that"),
        (f"{__file__}:Root", {}, "numbers that are not finite for x of zeros; look for a division by zero"),
        (f"{__file__}:PlainList", {}, "layers is not registered, so that it would neither be learned nor saved"),
        (f"{__file__}:PlainTensor", {}, "scale is not registered"),
        (f"{__file__}:Outside", {}, "forward uses parameters that are not registered"),
        (f"{__file__}:Idle", {}, "forward does not use its parameter spare.weight; use it, leave it out"),
        (f"{__file__}:Flat", {}, r"initial_state\(2\) gives \[2, 3\]; give one or two tensors of float32 zeros"),
        (f"{__file__}:Keeps", {}, "the state goes on where keep is 0; multiply it by"),
        (f"{__file__}:Stuck", {}, "a sequence gives other features than its steps one by one; return the state"),
        (f"{__file__}:NoState", {}, "forward returns no such state as it was given; return"),
    ],
)
def test_what_breaks_the_contract_is_refused_in_one_line(kind: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Network(3, NetworkConfig(kind=kind, options=options))
    assert str(caught.value).startswith("network '") and "\n" not in str(caught.value)


class NoConfig(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()


class Base(nn.Module):
    def __init__(self, inputs: int, config: NetworkConfig) -> None:
        super().__init__()
        self.size = inputs
        self.layer = nn.Linear(inputs, inputs)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x)
        return result


class Raises(Base):
    def __init__(self, inputs: int, config: NetworkConfig) -> None:
        super().__init__(inputs, config)
        self.size = config.options["width"]


class NoSize(Base):
    def __init__(self, inputs: int, config: NetworkConfig) -> None:
        super().__init__(inputs, config)
        del self.size


class WrongSize(Base):
    def __init__(self, inputs: int, config: NetworkConfig) -> None:
        super().__init__(inputs, config)
        self.size = inputs + 1


class Double(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).double()


class Pair(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x), x  # type: ignore[return-value]


class OneRow(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(1, 3))


class ByValue(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[x[:, 0] > 0])


class Chance(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.randn(x.shape[0], 1)


class Doubles(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2))


class Half(Base):
    def __init__(self, inputs: int, config: NetworkConfig) -> None:
        super().__init__(inputs, config)
        self.half()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.half()).float()


class Centered(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


class Root(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x / x.norm(dim=-1, keepdim=True))


class PlainList(Base):
    def __init__(self, inputs: int, config: NetworkConfig) -> None:
        super().__init__(inputs, config)
        self.layers = [nn.Linear(inputs, inputs)]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.layers[0](x))


class PlainTensor(Base):
    def __init__(self, inputs: int, config: NetworkConfig) -> None:
        super().__init__(inputs, config)
        self.scale = torch.ones(inputs)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.scale * x)


OUTSIDE = nn.Linear(3, 3)


class Outside(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(OUTSIDE(x))


class Idle(Base):
    def __init__(self, inputs: int, config: NetworkConfig) -> None:
        super().__init__(inputs, config)
        self.spare = nn.Linear(inputs, inputs)


class Frozen(Base):
    def __init__(self, inputs: int, config: NetworkConfig) -> None:
        super().__init__(inputs, config)
        self.top, self.backbone = self.layer, nn.Linear(inputs, inputs).requires_grad_(False)
        del self.layer

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.top(self.backbone(x).tanh())
        return result


class Attention(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x).unsqueeze(-2)
        return nn.functional.scaled_dot_product_attention(x, x, x).squeeze(-2)


class Recurrent(Base):
    def initial_state(self, num_envs: int) -> tuple[Tensor, ...]:
        return (torch.zeros(1, num_envs, self.size),)

    def forward(self, x: Tensor, state: tuple[Tensor, ...], keep: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:  # type: ignore[override]
        h, features = state[0][0], []
        for t, step in enumerate(self.layer(x).unbind()):
            h = step.tanh() + (h if keep is None else h * keep[t]) / 2
            features.append(h)
        return torch.stack(features), (h.unsqueeze(0),)


class Flat(Recurrent):
    def initial_state(self, num_envs: int) -> tuple[Tensor, ...]:
        return (torch.zeros(num_envs, self.size),)


class Keeps(Recurrent):
    def forward(self, x: Tensor, state: tuple[Tensor, ...], keep: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:  # type: ignore[override]
        return super().forward(x, state, None)


class Stuck(Recurrent):
    def forward(self, x: Tensor, state: tuple[Tensor, ...], keep: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:  # type: ignore[override]
        return super().forward(x, state, keep)[0], state


class NoState(Recurrent):
    def forward(self, x: Tensor, state: tuple[Tensor, ...], keep: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:  # type: ignore[override]
        return super().forward(x, state, keep)[0], ()


class Torch(nn.Module):
    """PyTorch's own LSTM, a step at a time."""

    def __init__(self, inputs: int, config: NetworkConfig) -> None:
        super().__init__()
        self.size = 8
        self.lstm = nn.LSTM(inputs, 8)

    def initial_state(self, num_envs: int) -> tuple[Tensor, ...]:
        return torch.zeros(1, num_envs, 8), torch.zeros(1, num_envs, 8)

    def forward(self, x: Tensor, state: tuple[Tensor, ...], keep: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        features = []
        for t, step in enumerate(x.unsqueeze(1)):
            state = state if keep is None else tuple(part * keep[t] for part in state)
            feature, state = self.lstm(step, state)
            features.append(feature)
        return torch.cat(features), state
