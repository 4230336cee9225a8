"""Weights of unit length against slow loops over rows, and that they change nothing where they are not asked for."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import INTERPRETED, check_that_nothing_waits
from torch import Tensor, nn

from rlcore import DDPG, SAC, ConfigError, DDPGConfig, NetworkConfig, PPOConfig, SACConfig, dispatch, spec_of
from rlcore.ddpg import build_policy as ddpg_policy
from rlcore.envs import make_env
from rlcore.export import OnnxPolicy, export_onnx
from rlcore.learn import learn, resume, snapshot
from rlcore.optimizer import FlatAdam, UnitRows, flat
from rlcore.sac import build_policy as sac_policy

UNITS: Any = ("hidden", "all")
KINDS: Any = {SAC: SACConfig, DDPG: DDPGConfig}


def network(unit: Any, width: int = 16) -> NetworkConfig:
    return NetworkConfig(kind="residual", hidden_dims=(width, width), activation="relu", unit_norm=unit)


def agent(kind: Any, unit: Any, seed: int | None = 3, device: str = "cpu", **changes: Any) -> Any:
    sizes = {"learning_starts": 16, "buffer_size": 2000, "batch_size": 32, "num_updates": 3, "save_buffer": True}
    sizes |= {"actor": network(unit), "critic": network(unit), "learning_rate": 1e-2, "init_head_scale": 1.0}
    env = make_env("Pendulum", 4, device, seed=seed, max_episode_length=9)
    return kind(env, KINDS[kind].preset("gpu", **{**sizes, **changes}), seed=seed, num_iterations=20)


def layers(module: nn.Module) -> Iterator[tuple[bool, nn.Linear]]:
    """Whether a linear layer is a last one, and the layer."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            yield "head" in name, layer


def norms(weight: Tensor) -> Tensor:
    """Length of each row, added up number by number."""
    rows = weight.detach().double().cpu().tolist()
    return torch.tensor([math.sqrt(sum(value * value for value in row)) for row in rows])


def by_hand(weight: Tensor) -> Tensor:
    """Each row divided by its length, in float64."""
    return (weight.detach().cpu().double() / norms(weight).double().unsqueeze(1)).float()


# --- Projection ------------------------------------------------------------------------------------------------------


def weights_on(device: torch.device) -> tuple[Tensor, list[nn.Parameter], list[nn.Parameter]]:
    """A buffer, what lies in it, and what of that is to have unit rows; one row is longer than a kernel's block."""
    shapes = [(5, 3), (5,), (7, 64), (1, 1), (3, 2500), (4,), (130, 17)]
    parameters = [nn.Parameter(10 ** (2 * torch.randn(shape[0])).view(-1, *[1] * (len(shape) - 1)) * torch.randn(shape))
                  for shape in shapes]  # fmt: skip
    parameters = [nn.Parameter(p.detach().to(device)) for p in parameters]
    return flat(parameters), parameters, [parameters[i] for i in (0, 2, 3, 6, 4)]


def check_projection(device: torch.device) -> None:
    whole, parameters, chosen = weights_on(device)
    with torch.no_grad():
        chosen[1][2] = 0.0  # has no direction
    before = [p.detach().clone() for p in parameters]
    project = UnitRows(whole, chosen).project
    project(torch.zeros((), device=device))
    assert all(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))
    project(torch.ones((), device=device))
    for parameter, old in zip(parameters, before, strict=True):
        if any(parameter is weight for weight in chosen):
            expected = by_hand(old).nan_to_num(0.0)
            torch.testing.assert_close(parameter.detach().cpu(), expected, rtol=2e-6, atol=1e-12)
        else:
            assert torch.equal(parameter, old)
    gaps = whole.clone()
    for parameter in parameters:
        gaps[parameter.storage_offset() :][: parameter.numel()] = 0.0
    assert not gaps.any()


def test_rows_are_divided_by_their_length_and_nothing_else_is_touched(device: torch.device) -> None:
    check_projection(device)


@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
def test_the_kernel_does_so_too_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_interpreted", True)
    check_projection(torch.device("cpu"))


def test_the_scale_of_a_row_is_lost() -> None:
    """A network whose rows were multiplied by any positive numbers is the same one once they have unit length."""
    learner = agent(SAC, "all")
    obs, action = torch.randn(50, 3), torch.randn(50, 1)
    for module, inputs in ((learner.policy, (obs,)), (learner.critics, (obs, action))):
        scaled = copy.deepcopy(module)
        with torch.no_grad():
            for _, layer in layers(scaled):
                layer.weight.mul_(10 ** (4 * torch.rand(len(layer.weight), 1) - 2))
        expected = module.output(*inputs)
        assert not torch.allclose(scaled.output(*inputs), expected, rtol=0.1)
        FlatAdam(list(scaled.parameters()), torch.tensor(0.1), 1.0, [layer.weight for _, layer in layers(scaled)])
        torch.testing.assert_close(scaled.output(*inputs), expected, rtol=1e-4, atol=1e-5)


# --- Learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_have_unit_length_from_the_start_on_and_after_every_update(
    kind: Any, unit: Any, device: torch.device
) -> None:
    learner = agent(kind, unit, device=str(device))
    targets = [learner.target_critics, *([learner.target_policy] if kind is DDPG else [])]

    def check(learned: bool) -> None:
        for module in (learner.policy, learner.critics):
            for last, layer in layers(module):
                lengths = norms(layer.weight)
                if unit == "all" or not last:
                    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-6)
                elif learned:
                    assert (lengths - 1).abs().min() > 1e-4
        for target in targets:  # averages of rows of length 1
            for last, layer in layers(target):
                if unit == "all" or not last:
                    assert norms(layer.weight).max() < 1 + 1e-6
                    assert (norms(layer.weight).min() < 1 - 1e-6) == learned

    check(learned=False)
    before = [p.detach().clone() for p in learner.policy.parameters()]
    learner.learn(20, on_iteration=lambda *_: check(learned=False) if learner.iteration < 4 else check(learned=True))
    assert not any(torch.equal(a, b) for a, b in zip(before, learner.policy.parameters(), strict=True))


@pytest.mark.parametrize("unit", UNITS)
def test_a_step_is_one_of_adam_and_then_a_loop_over_rows(unit: Any) -> None:
    learner = agent(SAC, unit)
    optimizer = learner.critic_optimizer
    parameters = [nn.Parameter(p.detach().clone()) for p in optimizer.parameters]
    plain = torch.optim.Adam(parameters, lr=1e-2)
    chosen = {id(layer.weight) for last, layer in layers(learner.critics) if unit == "all" or not last}
    learner.learning_rate.fill_(1e-2)
    for _ in range(5):
        for ours, theirs in zip(optimizer.parameters, parameters, strict=True):
            ours.grad = torch.randn_like(ours)
            theirs.grad = ours.grad.clone()
        optimizer.step(torch.tensor(0.0))
        plain.step()
        for ours, theirs in zip(optimizer.parameters, parameters, strict=True):
            if id(ours) in chosen:
                theirs.data.copy_(by_hand(theirs))
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_step_that_is_not_taken_changes_nothing() -> None:
    learner = agent(SAC, "all")
    learner.learn(8)
    optimizer = learner.critic_optimizer
    before = optimizer.value.clone()
    for parameter in optimizer.parameters:
        parameter.grad = torch.randn_like(parameter)
    _, taken = optimizer.step(torch.tensor(torch.nan))
    assert taken == 0
    assert torch.equal(optimizer.value, before)
    optimizer.step(torch.tensor(0.0))
    assert not torch.equal(optimizer.value, before)


@pytest.mark.parametrize("kind", KINDS)
def test_without_it_a_run_never_comes_near_it(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("weights are brought to unit length")

    monkeypatch.setattr(UnitRows, "__init__", refuse)
    learner = agent(kind, "none")
    learner.learn(8)
    assert learner.actor_optimizer.unit is None and learner.critic_optimizer.unit is None
    with pytest.raises(AssertionError, match="unit length"):
        agent(kind, "hidden")


@pytest.mark.parametrize("kind", KINDS)
def test_twenty_iterations_equal_ten_and_resume_and_ten_bitwise(kind: Any) -> None:
    whole = agent(kind, "all")
    whole.learn(20)
    first = agent(kind, "all")
    content = snapshot(first.env, first, learn(first.env, first, 10, seed=3))
    second = agent(kind, "all", seed=None)
    progress, exact = resume(second.env, second, content)
    assert exact
    learn(second.env, second, 20, progress=progress)
    names = ["policy", "critics", "target_critics", *(["target_policy"] if kind is DDPG else [])]
    for name in names:
        one, two = getattr(whole, name).state_dict(), getattr(second, name).state_dict()
        assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_exported_is_what_was_trained(kind: Any, tmp_path: Path) -> None:
    learner = agent(kind, "all")
    learner.learn(10)
    built = (sac_policy if kind is SAC else ddpg_policy)(spec_of(learner.env), learner.config)
    built.load_state_dict(learner.state_dict()["policy"])
    obs = torch.randn(1, 3)
    expected = learner.policy({"policy": obs})[0]
    assert torch.equal(built({"policy": obs})[0], expected)
    export_onnx(built, spec_of(learner.env), tmp_path / "policy.onnx", recording=learner.recording())
    given = torch.from_numpy(OnnxPolicy(tmp_path / "policy.onnx")(obs.numpy()))
    torch.testing.assert_close(given.view(-1), expected.detach().view(-1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NetworkConfig(unit_norm="hidden"), "unit_norm: .*a perceptron needs .*set kind to residual"),
        (lambda: NetworkConfig(unit_norm="all", layer_norm=True), "unit_norm: .*set kind to residual"),
        (lambda: PPOConfig(critic=network("hidden")), "critic.unit_norm: .*need sac or ddpg"),
        (lambda: SACConfig(actor=network("all"), init_head_scale=0.01), "init_head_scale: .*actor.unit_norm to hidden"),
        (lambda: DDPGConfig(critic=network("all")), "critic.unit_norm: .*with value_loss mse .*set hidden"),
    ],
)
def test_what_does_not_go_together_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_updates_as_graphs_equal_a_hundred_as_written(kind: Any, precision: str) -> None:
    results = []
    for mode in ("graph", "eager"):
        learner = agent(kind, "all", device="cuda", mode=mode, num_updates=1, precision=precision)
        learner.learn(120)
        if mode == "graph":
            assert all(captured.graph is not None for captured in learner._updates)
        results.append([learner.actor_optimizer.value, learner.critic_optimizer.value])
        results[-1].append(flat(list(learner.target_critics.parameters())))
    for graph, eager in zip(*results, strict=True):
        assert torch.equal(graph, eager)


@pytest.mark.gpu
def test_nothing_waits_for_the_device() -> None:
    learner = agent(SAC, "all", device="cuda", mode="eager")
    obs = learner.learn(20).obs
    check_that_nothing_waits(learner, obs, 4)
