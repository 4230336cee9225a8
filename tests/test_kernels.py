"""Fused kernels against plain formulas in float64; the plain functions the same way, on the CPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import Operators, error
from torch import Tensor, nn

from rlcore import PPO, NetworkConfig, PPOConfig
from rlcore.dispatch import kernels_off, plain
from rlcore.distributions import Gaussian
from rlcore.envs.null import Null
from rlcore.losses import METRICS, ppo_loss
from rlcore.networks import mlp
from rlcore.optimizer import NO_LIMIT, FlatAdam, clipped_adam
from rlcore.rollout import Samples, gather

CUDA = torch.device("cuda")
LIMITS = {"tf32": 2e-3, "bf16": 2e-2}
SHAPES = [
    (4096, (48, 512, 256, 128), 12),
    (1000, (235, 100, 33), 1),
    (129, (7, 130, 50), 0),
    (1, (64, 20), 3),
    (300, (65, 24, 200, 40), 33),
    (777, (17, 130, 96, 20), 70),
    (260, (17, 70, 50), 0),
    (128, (64, 33, 65), 0),
]
SMOOTH, KINKED = ("elu", "tanh"), ("relu", "leaky_relu", "selu")


def network(sizes: tuple[int, ...], head: int, activation: str, device: torch.device) -> list[Tensor]:
    """Random weights and biases. Kinked activations are kept off their kink, which no rounding may then cross."""
    parameters = []
    for k, n in zip(sizes, (*sizes[1:], head), strict=True):
        bias = torch.randn(n)
        if activation in KINKED:
            bias = torch.where(bias > 0, 4.0, -4.0)
        scale = 0.3 / max(1.0, 4.0 * len(parameters)) if activation in KINKED else 1.0
        parameters += [scale * torch.randn(n, k) / k**0.5, bias]
    return [p.to(device) for p in (parameters if head else parameters[:-2])]


def run_mlp(
    fn: Callable[..., Tensor], x: Tensor, parameters: list[Tensor], head: int, activation: str, gradient: Tensor
) -> list[Tensor]:
    """Output and gradients."""
    leaves = [p.clone().requires_grad_() for p in parameters]
    layers = leaves[:-2] if head else leaves
    y = fn(x, layers[::2], layers[1::2], activation, head=(leaves[-2], leaves[-1]) if head else None)
    y.backward(gradient)
    return [y.detach(), *(p.grad for p in leaves if p.grad is not None), *([x.grad] if x.grad is not None else [])]


def fused(precision: str) -> Callable[..., Tensor]:
    return lambda x, w, b, activation, head: mlp(x, w, b, activation, precision, head)


@pytest.mark.parametrize("activation", [*SMOOTH, *KINKED])
def test_mlp_is_a_stack_of_linear_layers_and_activations(activation: str) -> None:
    modules = {"elu": nn.ELU, "tanh": nn.Tanh, "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "selu": nn.SELU}
    layers = nn.Sequential(nn.Linear(5, 7), modules[activation](), nn.Linear(7, 4), modules[activation]())
    head = nn.Linear(4, 2)
    x, g = torch.randn(3, 2, 5), torch.randn(3, 2, 2)
    expected = head(layers(x))
    expected.backward(g)
    parameters = [*layers.parameters(), *head.parameters()]
    got = run_mlp(fused("tf32"), x, [p.detach() for p in parameters], 2, activation, g)
    for a, b in zip(got, [expected.detach(), *(p.grad for p in parameters)], strict=True):
        torch.testing.assert_close(a, b)


def test_importing_rlcore_imports_neither_triton_nor_kernels() -> None:
    code = (
        "import sys, rlcore.ppo, rlcore.sac, rlcore.ddpg; "
        "sys.exit('triton' in sys.modules and 'torch._inductor' not in sys.modules or 'rlcore.kernels' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.gpu
@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("activation", [*SMOOTH, *KINKED])
@pytest.mark.parametrize(("rows", "sizes", "head"), SHAPES)
def test_mlp_and_its_gradients_are_right_to_its_precision(
    rows: int, sizes: tuple[int, ...], head: int, activation: str, precision: str
) -> None:
    parameters = network(sizes, head, activation, CUDA)
    x, g = torch.randn(rows, sizes[0], device=CUDA), torch.randn(rows, head or sizes[-1], device=CUDA)
    got = run_mlp(fused(precision), x, parameters, head, activation, g)
    expected = run_mlp(plain(mlp), x.double(), [p.double() for p in parameters], head, activation, g.double())
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == torch.float32
        assert error(a, b) < LIMITS[precision]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize(("rows", "sizes", "head"), [(20_000, *SHAPES[0][1:]), *SHAPES[1:3], *SHAPES[4:6]])
def test_mlp_is_as_right_with_the_launches_meant_for_many_rows(
    rows: int, sizes: tuple[int, ...], head: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlcore.kernels.mlp._LARGE", 0)
    test_mlp_and_its_gradients_are_right_to_its_precision(rows, sizes, head, "elu", precision)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize(("rows", "sizes", "head"), SHAPES)
def test_mlp_is_as_right_on_gpus_that_copy_no_tiles_by_themselves(
    rows: int, sizes: tuple[int, ...], head: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlcore.kernels.mlp.copies_tiles", lambda device: False)
    test_mlp_and_its_gradients_are_right_to_its_precision(rows, sizes, head, "elu", precision)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("inputs", [48, 67])
def test_mlp_differentiates_its_input_where_asked(inputs: int, precision: str) -> None:
    parameters = network((inputs, 40, 24), 0, "elu", CUDA)
    x, g = torch.randn(5, 60, inputs, device=CUDA), torch.randn(5, 60, 24, device=CUDA)
    got = run_mlp(fused(precision), x.clone().requires_grad_(), parameters, 0, "elu", g)
    x = x.double().requires_grad_()
    expected = run_mlp(plain(mlp), x, [p.double() for p in parameters], 0, "elu", g.double())
    for a, b in zip(got, expected, strict=True):
        assert error(a, b) < LIMITS[precision]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", LIMITS)
def test_mlp_gives_equal_bits_for_equal_inputs_whatever_memory_held_before(precision: str) -> None:
    parameters = network((48, 512, 256, 128), 12, "elu", CUDA)
    x, g = torch.randn(1000, 48, device=CUDA), torch.randn(1000, 12, device=CUDA)
    first = run_mlp(fused(precision), x, parameters, 12, "elu", g)
    poison = [torch.full((size,), torch.nan, device=CUDA) for size in (1 << 22, 1 << 20, 1 << 18, 1 << 16) * 4]
    del poison  # back to the allocator, which hands it out below
    second = run_mlp(fused(precision), x, parameters, 12, "elu", g)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.isfinite(a).all() for a in second)


@pytest.mark.gpu
@pytest.mark.parametrize("activation", [*SMOOTH, *KINKED])
def test_mlp_passes_nan_on(activation: str) -> None:
    parameters = network((8, 16), 0, activation, CUDA)
    x = torch.full((4, 8), torch.nan, device=CUDA)
    assert mlp(x, parameters[:1], parameters[1:], activation, "tf32").isnan().all()
    assert mlp(x, parameters[:1], parameters[1:], activation, "bf16").isnan().all()


@pytest.mark.gpu
@pytest.mark.slow
def test_mlp_reaches_rows_beyond_two_to_the_31_numbers() -> None:
    rows, parameters = (1 << 31) // 512 + 200, network((16, 512, 32), 0, "elu", CUDA)
    x = torch.randn(rows, 16, device=CUDA)
    leaves = [p.requires_grad_() for p in parameters]
    y = mlp(x, leaves[::2], leaves[1::2], "elu", "tf32")
    y[-100:].sum().backward()
    tail = [p.detach().double().requires_grad_() for p in leaves]
    expected = plain(mlp)(x[-100:].double(), tail[::2], tail[1::2], "elu")
    expected.sum().backward()
    assert error(y[-100:].detach(), expected.detach()) < LIMITS["tf32"]
    for p, q in zip(leaves, tail, strict=True):
        assert p.grad is not None and q.grad is not None
        assert error(p.grad, q.grad) < LIMITS["tf32"]


def loss_inputs(rows: int, actions: int, std: str) -> list[Tensor]:
    """Mean, std, value and the eight fixed inputs, such that clipping happens and does not, for both signs."""
    mean, value = torch.randn(rows, actions), torch.randn(rows)
    deviation = torch.randn(rows, actions).mul(0.3).exp() if std == "dense" else torch.rand(actions) + 0.5
    old_mean = mean + 0.1 * torch.randn(rows, actions)
    old_std = deviation * (1 + 0.05 * torch.randn(actions))
    action = old_mean + old_std * torch.randn(rows, actions)
    log_prob = Gaussian(old_mean, old_std.expand_as(mean)).log_prob(action) + 0.1 * torch.randn(rows)
    old_value = value + 0.3 * torch.randn(rows)
    weight = (torch.rand(rows) < 0.8) / 0.8
    return [mean, deviation, value, action, log_prob, old_mean, old_std, old_value, *torch.randn(2, rows), weight]


def loss_of(mean: Tensor, std: Tensor, value: Tensor, rows: list[Tensor], **options: Any) -> tuple[Tensor, Tensor]:
    """The loss of rows as sequences of one step, and its metrics in a row."""
    names = ("action", "log_prob", "old_mean", "old_std", "value", "advantage", "returns", "weight")
    fixed = [row.expand_as(mean) if name == "old_std" else row for name, row in zip(names, rows, strict=True)]
    column = {name: row.unsqueeze(0) for name, row in zip(names, fixed, strict=True)}
    policy = Gaussian(mean.unsqueeze(0), std if std.dim() == 1 else std.unsqueeze(0))
    old = Gaussian(column.pop("old_mean"), column.pop("old_std"))
    loss, metrics = ppo_loss(policy, value.unsqueeze(0), Samples(old=old, actor_obs=policy.mean, **column), **options)
    return loss, torch.stack([metrics[name].detach() for name in METRICS])


def run_loss(inputs: list[Tensor], expand: bool, clip_value_loss: bool, scale: float = 1.5) -> list[Tensor]:
    """Loss, metrics and the three gradients."""
    mean, std, value = leaves = [t.clone().requires_grad_() for t in inputs[:3]]
    rows = list(inputs[3:])
    if expand:
        std, rows[3] = std.expand_as(mean), rows[3].expand_as(mean)
    options: dict[str, Any] = {"clip_range": 0.2, "value_coef": 0.7, "entropy_coef": 0.01}
    loss, metrics = loss_of(mean, std, value, rows, **options, clip_value_loss=clip_value_loss)
    (scale * loss).backward()
    return [loss.detach(), metrics, *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def slow_loss(inputs: list[Tensor], clip_value_loss: bool) -> list[Tensor]:
    """Loss, metrics and gradients by a loop over samples, of a policy with one deviation for all or one for each."""
    mean, std, value = leaves = [t.double().requires_grad_() for t in inputs[:3]]
    rows = [t.double().tolist() for t in inputs[3:]]
    totals = dict.fromkeys(METRICS, torch.zeros((), dtype=torch.float64))
    for i, row in enumerate(zip(*(rows[k] for k in (0, 1, 2, 4, 5, 6, 7)), strict=True)):
        action, old_log_prob, old_mean, old_value, advantage, returns, weight = row
        deviation = std if std.dim() == 1 else std[i]
        old_std = torch.tensor(rows[3] if std.dim() == 1 else rows[3][i]).double()
        policy = torch.distributions.Normal(mean[i], deviation)
        old = torch.distributions.Normal(torch.tensor(old_mean).double(), old_std)
        ratio = (policy.log_prob(torch.tensor(action).double()).sum() - old_log_prob).exp()
        terms = [(value[i] - returns) ** 2]
        if clip_value_loss:
            terms.append((old_value + min(max(value[i] - old_value, -0.2), 0.2) - returns) ** 2)
        found = {
            "loss/policy": -weight * min(ratio * advantage, min(max(float(ratio.detach()), 0.8), 1.2) * advantage),
            "loss/value": weight * max(terms),
            "policy/entropy": (1 if std.dim() == 1 else weight) * policy.entropy().sum(),
            "policy/kl": weight * torch.distributions.kl_divergence(old, policy).sum(),
            "policy/clip_fraction": torch.tensor(weight if abs(float(ratio.detach()) - 1) > 0.2 else 0.0).double(),
            "policy/std": old_std.mean(),
        }
        totals = {name: total + found[name] / len(mean) for name, total in totals.items()}
    loss = totals["loss/policy"] + 0.7 * totals["loss/value"] - 0.01 * totals["policy/entropy"]
    return [loss.detach(), *(totals[name].detach() for name in METRICS), *torch.autograd.grad(1.5 * loss, leaves)]


@pytest.mark.parametrize("clip_value_loss", [True, False])
@pytest.mark.parametrize("std", ["vector", "dense"])
def test_the_loss_of_ppo_is_a_loop_over_samples(std: str, clip_value_loss: bool) -> None:
    inputs = loss_inputs(60, 3, std)
    loss, metrics, *gradients = run_loss([t.double() for t in inputs], False, clip_value_loss)
    for got, expected in zip([loss, *metrics, *gradients], slow_loss(inputs, clip_value_loss), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("change", [{}, {"clip_value_loss": False}, {"state_dependent_std": True}])
def test_ppo_evaluates_its_networks_by_that_loss(change: dict[str, Any]) -> None:
    net = NetworkConfig(hidden_dims=(16,))
    config = replace(PPOConfig(num_steps=4, num_minibatches=1, actor=net, critic=net, value_coef=0.7), **change)
    agent = PPO(Null(8), config, seed=0)
    obs = torch.randn(1, 50, sum(agent.policy.observation_sizes.values()))
    with torch.no_grad():
        old, _ = agent.policy.distribution(obs)
        assert isinstance(old, Gaussian)
        old = Gaussian(old.mean + 0.3 * torch.randn_like(old.mean), (old.std * 1.2).expand_as(old.mean))
        action, (value, _) = old.sample(), agent.critic(obs)
    samples = Samples(
        action,
        old,
        old.log_prob(action),
        value + 0.3 * torch.randn_like(value),
        *torch.randn(2, *value.shape),
        (torch.rand_like(value) < 0.8) / 0.8,
        actor_obs=obs,
    )
    expected, named = agent._evaluate(samples)
    assert list(named) == list(METRICS)
    policy, _ = agent.policy.distribution(obs)
    options: dict[str, Any] = {"value_coef": 0.7, "entropy_coef": config.entropy_coef}
    loss, metrics = ppo_loss(
        policy, agent.critic(obs)[0], samples, clip_range=config.clip_range,
        clip_value_loss=config.clip_value_loss, **options,
    )  # fmt: skip
    torch.testing.assert_close(loss, expected)
    for name in METRICS:
        torch.testing.assert_close(metrics[name], named[name])
    parameters = [*agent.policy.parameters(), *agent.critic.parameters()]
    both = [torch.autograd.grad(total, parameters) for total in (loss, expected)]
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("clip_value_loss", [True, False])
@pytest.mark.parametrize("std", ["vector", "expanded", "dense"])
@pytest.mark.parametrize(("rows", "actions"), [(24576, 12), (333, 7), (64, 1), (5, 33)])
def test_loss_and_its_gradients_are_right(
    rows: int, actions: int, std: str, clip_value_loss: bool, kernel_device: torch.device
) -> None:
    if rows > 1000 and kernel_device.type == "cpu":
        pytest.skip("the interpreter is slow")
    inputs = loss_inputs(rows, actions, std)
    got = run_loss([t.to(kernel_device) for t in inputs], std == "expanded", clip_value_loss)
    with kernels_off():
        expected = run_loss([t.double() for t in inputs], False, clip_value_loss)
    for a, b in zip([got[0], *got[1], *got[2:]], [expected[0], *expected[1], *expected[2:]], strict=True):
        assert error(a, b) < 1e-5
    again = run_loss([t.to(kernel_device) for t in inputs], std == "expanded", clip_value_loss)
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@pytest.mark.parametrize("rows", [24576, 333])
@pytest.mark.parametrize("std", ["vector", "dense"])
def test_the_loss_reads_what_is_scheduled_from_the_device(rows: int, std: str, kernel_device: torch.device) -> None:
    if rows > 1000 and kernel_device.type == "cpu":
        pytest.skip("the interpreter is slow")
    inputs = [t.to(kernel_device) for t in loss_inputs(rows, 5, std)]
    numbers = {"clip_range": 0.25, "entropy_coef": 0.03125}
    tensors = {name: torch.tensor(x, device=kernel_device) for name, x in numbers.items()}
    found = []
    for options in (numbers, tensors, numbers | {"clip_range": tensors["clip_range"]}):
        leaves = [t.clone().requires_grad_() for t in inputs[:3]]
        loss, metrics = loss_of(*leaves, list(inputs[3:]), **options, value_coef=0.7, clip_value_loss=True)  # type: ignore[arg-type]
        found.append([loss.detach(), metrics, *torch.autograd.grad(loss, leaves)])
    for other in found[1:]:
        for got, expected in zip(other, found[0], strict=True):
            assert error(got, expected) < 1e-6


@pytest.mark.parametrize("place", range(11))
def test_loss_is_not_finite_where_an_input_is_not(place: int, kernel_device: torch.device) -> None:
    inputs = [t.to(kernel_device) for t in loss_inputs(100, 3, "vector")]
    inputs[place].view(-1)[0] = torch.nan
    loss, metrics = run_loss(inputs, False, True)[:2]
    assert not (torch.isfinite(loss) and torch.isfinite(metrics).all())


ADAM = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}


def adam_inputs(device: torch.device) -> dict[str, Tensor]:
    p = torch.randn(5000, device=device)
    zero = torch.zeros((), device=device)
    return {
        "parameter": p, "gradient": torch.randn_like(p), "moment": torch.zeros_like(p), "square": torch.zeros_like(p),
        "step": zero.clone(), "rate": zero + 1e-3, "allowed": zero == 0,
    }  # fmt: skip


@pytest.mark.parametrize("scale", [0.001, 3.0])
def test_clipped_adam_is_clip_grad_norm_and_adam(device: torch.device, scale: float) -> None:
    state = adam_inputs(device)
    parameter = nn.Parameter(state["parameter"].clone())
    optimizer = torch.optim.Adam([parameter], lr=1e-3)
    for _ in range(5):
        state["gradient"] = scale * torch.randn(5000, device=device)
        parameter.grad = state["gradient"].clone()
        norm, taken = clipped_adam(*state.values(), max_norm=1.0)
        torch.testing.assert_close(norm, nn.utils.clip_grad_norm_([parameter], 1.0))
        optimizer.step()
        assert taken == 1
    torch.testing.assert_close(state["parameter"], parameter.detach(), rtol=1e-5, atol=1e-6)
    assert state["step"] == 5


@pytest.mark.parametrize("reason", ["gradient", "allowed", "loss"])
def test_clipped_adam_leaves_all_alone_when_the_step_is_not_allowed(device: torch.device, reason: str) -> None:
    state = adam_inputs(device)
    if reason == "loss":
        state["allowed"] = torch.tensor(torch.inf, device=device)
    else:
        state[reason].view(-1)[-1] = float("inf") if reason == "gradient" else False
    before = {name: value.clone() for name, value in state.items()}
    _, taken = clipped_adam(*state.values(), max_norm=1.0)
    assert taken == 0
    assert all(torch.equal(value, before[name]) for name, value in state.items())


def test_clipped_adam_steps_down_a_loss_of_zero(device: torch.device) -> None:
    state = adam_inputs(device) | {"allowed": torch.zeros((), device=device)}
    assert clipped_adam(*state.values(), max_norm=1.0)[1] == 1


@pytest.mark.parametrize("max_norm", [0.5, NO_LIMIT])
def test_clipped_adam_on_a_cpu_is_its_plain_text_over_many_steps(max_norm: float) -> None:
    runs = []
    for take in (clipped_adam, plain(clipped_adam)):
        torch.manual_seed(0)
        state = adam_inputs(torch.device("cpu"))
        for i in range(50):
            state["gradient"] = torch.randn(5000)
            state["allowed"] = torch.tensor(torch.nan if i == 7 else 0.0)
            state["gradient"][3] *= torch.inf if i == 11 else 1.0
            norm, taken = take(*state.values(), **ADAM, max_norm=max_norm)
            assert taken == (i not in (7, 11))
        runs.append([state["parameter"], state["moment"], state["square"], state["step"], norm])
    for fused_step, expected in zip(*runs, strict=True):
        torch.testing.assert_close(fused_step, expected, rtol=1e-5, atol=1e-6)


def test_adam_on_a_cpu_goes_over_its_buffers_few_times() -> None:
    model = nn.Sequential(nn.Linear(40, 50), nn.ReLU(), nn.Linear(50, 2))
    optimizer = FlatAdam(list(model.parameters()), torch.tensor(1e-3), 1.0)
    loss = model(torch.randn(3, 40)).sum()
    loss.backward()
    operators = Operators()
    with operators:
        optimizer.step(loss.detach())
    whole = [name for name, numbers in operators.seen if numbers >= optimizer.value.numel()]
    # The gradient's norm, its product with the clip's factor, and the step; gathering them is one operator as well.
    assert len(whole) <= 4, whole


def test_gather_picks_rows_and_shares_what_was_shared(device: torch.device) -> None:
    fields = {"a": torch.randn(300, 48), "b": torch.randn(300), "c": torch.randn(3)}
    fields |= {"d": torch.randn(300, 7, 2), "e": torch.arange(300), "f": torch.randn(300, 4).bfloat16()}
    fields = {name: value.to(device) for name, value in fields.items()}
    fields["c"] = fields["c"].expand(300, 3)
    index = torch.randperm(300, device=device)[:205]
    got = {name: gather(value, index) for name, value in fields.items()}
    assert all(torch.equal(got[name], fields[name][index]) for name in fields)
    assert got["c"].stride(0) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("precision", LIMITS)
def test_a_recorded_step_computes_what_a_plain_one_does(precision: str) -> None:
    parameters = [p.requires_grad_() for p in network((48, 64, 32), 12, "elu", CUDA)]
    inputs, adam = [t.to(CUDA) for t in loss_inputs(512, 12, "vector")], adam_inputs(CUDA)
    adam["parameter"] = torch.cat([p.detach().flatten() for p in parameters])
    adam["moment"], adam["square"] = torch.zeros_like(adam["parameter"]), torch.zeros_like(adam["parameter"])
    fields = {"x": torch.randn(1000, 48, device=CUDA)}
    index = torch.randperm(1000, device=CUDA)[:512]

    def step() -> list[Tensor]:
        x = gather(fields["x"], index)
        layers = parameters[:-2]
        mean = mlp(x, layers[::2], layers[1::2], "elu", precision, (parameters[-2], parameters[-1]))
        loss, metrics = loss_of(
            mean, *inputs[1:3], inputs[3:], clip_range=0.2, value_coef=1.0, entropy_coef=0.01, clip_value_loss=True
        )
        adam["gradient"] = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
        norm, _ = clipped_adam(*adam.values(), max_norm=1.0)
        return [loss.detach(), metrics, norm, adam["parameter"]]

    saved = {name: value.clone() for name, value in adam.items()}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        plain = [t.clone() for t in step()]
    torch.cuda.current_stream().wait_stream(side)
    for name in ("parameter", "moment", "square", "step"):
        adam[name].copy_(saved[name])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = step()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(plain, recorded, strict=True))
