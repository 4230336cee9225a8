"""Networks of one's own in the place of hidden layers: ``agent.actor.kind`` and ``agent.critic.kind`` name their class.

The class is a ``torch.nn.Module``, called with the size of the vectors that it reads, the ``NetworkConfig``, and that
one's ``options`` by keyword. It has

- ``size``: the number of features that it gives, which a linear layer of ours turns into actions or values;
- ``forward(x)``: from float32 ``[B, inputs]`` to float32 ``[B, size]``, each row by itself.

With a recurrent state, which PPO alone can learn, it has instead

- ``initial_state(num_envs)``: one or two tensors of zeros ``[layers, N, hidden]``, in a tuple;
- ``forward(x, state, keep)``: from ``[T, N, inputs]`` and the state before the first step to ``[T, N, size]`` and the
  state after the last. ``keep`` is ``[T, N, 1]``, 0 where the state is to be zero before that step, or None.

``x`` is normalized; the features of images come first in it. Shapes must not depend on data and nothing may be read by
the host, so that the update can be a CUDA graph, and operators need a form in ONNX's opset 11. What it learns is in
parameters; it keeps the initial weights that it gives itself. Agents hold it in training mode, evaluations and exports
in that of ``eval()``.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rlcore.config import ConfigError, shown
from rlcore.types import State
from rlcore.user_code import imported, theirs

if TYPE_CHECKING:
    from rlcore.networks import NetworkConfig

_ROWS = (2, 5)  # of the batches that it is tried with
_RELATIVE, _ABSOLUTE = 1e-3, 1e-4  # sums over another number of rows are rounded otherwise


class OwnNetwork(nn.Module):
    """A network of one's own, with the members of ``MLP``.

    Args:
        inputs: size of the input.
        config: whose ``kind`` names its class.

    Raises:
        ConfigError: it is not there, or breaks the contract; it is tried with batches of two sizes.
    """

    def __init__(self, inputs: int, config: NetworkConfig) -> None:
        super().__init__()
        self.where = f"network '{config.kind}'"
        """It, for messages."""
        self.network = network = _built(inputs, config, self.where)
        _check_members(network, self.where)
        self.recurrent = hasattr(network, "initial_state")
        self.size: int = network.size
        """Size of the output."""
        self.precision = "fp32"
        """As for ``MLP``; with bf16 CUDA runs it under autocast."""
        self.fused = False
        """Not used: there are no kernels of our own for it."""
        _try(self, inputs)

    def initial_state(self, num_envs: int) -> State:
        """Zero state for ``num_envs`` envs; ``()`` without one."""
        if not self.recurrent:
            return ()
        like = next(self.parameters(), torch.empty(0))
        return tuple(part.to(like) for part in self.network.initial_state(num_envs))

    def forward(self, x: Tensor, head: nn.Linear | None = None) -> Tensor:
        """Map ``[..., inputs]`` to ``[..., size]``, or to a linear head's output."""
        with self._autocast(x):
            features: Tensor = self.network(self._input(x).reshape(-1, x.shape[-1]))
        features = self._input(features).reshape(*x.shape[:-1], self.size)
        return features if head is None else head(features)

    def unroll(self, x: Tensor, state: State, keep: Tensor | None) -> tuple[Tensor, State]:
        """Run over a sequence ``[T, N, inputs]``, or one step ``[N, inputs]``; see ``RNN.forward``."""
        if x.dim() == 2:
            features, state = self.unroll(x.unsqueeze(0), state, keep)
            return features.squeeze(0), state
        with self._autocast(x):
            features, after = self.network(self._input(x), state, keep)
        return self._input(features), tuple(part.to(before) for part, before in zip(after, state, strict=True))

    def _autocast(self, x: Tensor) -> Any:
        return torch.autocast("cuda", torch.bfloat16, enabled=x.is_cuda and self.precision == "bf16")

    def _input(self, x: Tensor) -> Tensor:
        """In the type of its parameters, which is float64 where somebody compares."""
        return x.to(next(self.parameters(), x.new_empty(0, dtype=torch.float32)).dtype)


def refuse_state(*modules: nn.Module) -> None:
    """Refuse networks of one's own with a recurrent state among modules.

    Raises:
        ConfigError: there is one.
    """
    for part in (part for module in modules for part in module.modules()):
        if isinstance(part, OwnNetwork) and part.recurrent:
            raise ConfigError(f"{part.where}: it has a state (initial_state), which needs ppo; take one without")


def _built(inputs: int, config: NetworkConfig, where: str) -> Any:
    module, name = theirs(lambda: imported(config.kind, where), f"{where}: it cannot be imported")
    cls = _class(module, name, where)
    try:
        inspect.signature(cls).bind(inputs, config, **config.options)
    except TypeError as error:
        given = ", ".join(["inputs", "config", *(f"{key}={shown(value, 20)}" for key, value in config.options.items())])
        raise ConfigError(f"{where}: it is called with ({given}): {error}; let __init__ take these") from None
    return theirs(lambda: cls(inputs, config, **config.options), f"{where}: it cannot be built")


def _class(module: ModuleType, name: str, where: str) -> type[nn.Module]:
    there = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == module.__name__
    }
    found = getattr(module, name or next(iter(there), ""), None)
    if isinstance(found, type) and issubclass(found, nn.Module) and (name or len(there) == 1):
        return found
    what = f"'{name}' in it is no class of torch.nn.Module" if name else f"it has {len(there)} classes of nn.Module"
    remedy = f"there is {', '.join(there)}: write FILE.py:CLASS or module:CLASS" if there else "give it one"
    raise ConfigError(f"{where}: {what}; {remedy}")


def _check_members(network: nn.Module, where: str) -> None:
    size = getattr(network, "size", None)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        has = "it has no attribute size" if size is None else f"size is {shown(size)}"
        raise ConfigError(f"{where}: {has}; set self.size to the number of features that forward gives")
    other = [(name, p.dtype) for name, p in network.named_parameters() if p.dtype != torch.float32]
    if other:
        kind = str(other[0][1]).removeprefix("torch.")
        raise ConfigError(
            f"{where}: its parameter {other[0][0]} is {kind}, and optimizers hold float32; keep it as that, and "
            "convert inside forward"
        )
    known = {id(x) for xs in (network.modules(), network.parameters(), network.buffers()) for x in xs}
    for path, part in network.named_modules():
        for key, value in vars(part).items():
            if key in ("_parameters", "_buffers", "_modules"):
                continue
            if any(isinstance(x, (Tensor, nn.Module)) and id(x) not in known for x in _inside(value)):
                raise ConfigError(
                    f"{where}: {'.'.join(filter(None, (path, key)))} is not registered, so that it would neither be "
                    "learned nor saved; keep tensors as nn.Parameter or by register_buffer, layers in nn.ModuleList"
                )


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _inside(item)
    else:
        yield value


def _try(own: OwnNetwork, inputs: int) -> None:
    """Run it on batches of two sizes, and refuse what breaks the contract."""
    modes = [(module, module.training) for module in own.modules()]
    own.eval()
    generator = torch.Generator().manual_seed(0)
    try:
        x = torch.randn(3, max(_ROWS), inputs, generator=generator)  # [T, N, inputs]
        (_try_recurrent if own.recurrent else _try_rows)(own, x)
    finally:
        for module, mode in modes:
            module.training = mode


def _try_rows(own: OwnNetwork, x: Tensor) -> None:
    one = x[0]
    few, many = (_features(own, one[:rows], (rows,)) for rows in _ROWS)
    _finite(own, _features(own, torch.zeros_like(one), (len(one),)))
    again = _features(own, one[: len(few)], (len(few),))
    _same(own, few, again, "it gives other features each time, in eval() as well; leave chance to the policy")
    _same(own, many[: len(few)], few, "a row's features depend on the rows beside it; map each row by itself")
    _check_gradients(own, many)


def _try_recurrent(own: OwnNetwork, x: Tensor) -> None:
    rows, where = x.shape[1], own.where
    for number in _ROWS:
        state = theirs(lambda number=number: own.network.initial_state(number), f"{where}: initial_state({number})")  # type: ignore[misc]
        fits = isinstance(state, tuple) and len(state) in (1, 2) and all(_is_state(part, number) for part in state)
        if not fits:
            given = ", ".join(str(list(part.shape)) for part in state if isinstance(part, Tensor)) or shown(state, 40)
            raise ConfigError(
                f"{where}: initial_state({number}) gives {given}; give one or two tensors of float32 zeros "
                f"[layers, {number}, hidden], in a tuple"
            )
        _features(own, x[:, :number], (len(x), number), state)
    _finite(own, _features(own, torch.zeros_like(x), (len(x), rows), state))
    whole = _features(own, x, (len(x), rows), state)
    now, steps = state, []
    for step in x.unsqueeze(1):
        features, now = own.network(step, now, None)
        steps.append(features)
    _same(own, torch.cat(steps), whole, "a sequence gives other features than its steps one by one; return the state")
    few = _features(own, x[:, : _ROWS[0]], (len(x), _ROWS[0]), own.network.initial_state(_ROWS[0]))
    _same(own, whole[:, : _ROWS[0]], few, "an env's features depend on the envs beside it; map each by itself")
    keep = torch.ones(len(x), rows, 1)
    keep[1] = 0
    anew = own.network(x, state, keep)[0][1:]
    again = own.network(x[1:], state, None)[0]
    _same(own, anew, again, "the state goes on where keep is 0; multiply it by keep[t] before step t")
    _check_gradients(own, whole)


def _is_state(part: object, number: int) -> bool:
    fits = isinstance(part, Tensor) and part.dim() == 3 and part.shape[1] == number and part.dtype == torch.float32
    return fits and not bool(part.any())  # type: ignore[attr-defined]


def _features(own: OwnNetwork, x: Tensor, rows: tuple[int, ...], state: State | None = None) -> Tensor:
    """What forward gives, once it is what it has to be."""
    shape, wanted, before = list(x.shape), [*rows, own.size], x.clone()
    given = (x,) if state is None else (x, state, torch.ones(*rows, 1))
    result = theirs(lambda: own.network(*given), f"{own.where}: forward cannot take x {shape}")
    if state is not None:
        pair = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], tuple)
        if not pair or [getattr(part, "shape", None) for part in result[1]] != [part.shape for part in state]:
            remedy = "return (features, state), with a state of the shapes of initial_state"
            raise ConfigError(f"{own.where}: forward returns no such state as it was given; {remedy}")
        result = result[0]
    if not isinstance(result, Tensor):
        raise ConfigError(f"{own.where}: forward returns {type(result).__name__}; return a tensor {wanted}")
    if list(result.shape) != wanted or result.dtype != torch.float32:
        kind = str(result.dtype).removeprefix("torch.")
        raise ConfigError(
            f"{own.where}: forward returns {kind} {list(result.shape)} for x {shape}; return float32 {wanted}, whose "
            f"last number is size"
        )
    if not torch.equal(x, before):
        raise ConfigError(f"{own.where}: forward changes its input in place, which others read, too; change a copy")
    return result


def _finite(own: OwnNetwork, features: Tensor) -> None:
    if not bool(features.isfinite().all()):
        raise ConfigError(
            f"{own.where}: forward returns numbers that are not finite for x of zeros; look for a division by zero, a "
            "logarithm or a root"
        )


def _same(own: OwnNetwork, one: Tensor, other: Tensor, what: str) -> None:
    if not torch.allclose(one, other, _RELATIVE, _ABSOLUTE):
        raise ConfigError(f"{own.where}: {what}")


def _check_gradients(own: OwnNetwork, features: Tensor) -> None:
    """Refuse parameters that features come from and that are not its own, and the other way round."""
    reached, seen, rest = set(), set(), [features.grad_fn]
    while rest:
        node = rest.pop()
        if node is not None and node not in seen:
            seen.add(node)
            reached.add(id(getattr(node, "variable", None)))
            rest += [after for after, _ in node.next_functions]
    own_ones = {id(parameter) for parameter in own.parameters()}
    if reached - own_ones - {id(None)}:
        raise ConfigError(
            f"{own.where}: forward uses parameters that are not registered, so that they would never be learned; keep "
            "them as nn.Parameter or in layers that are attributes or in nn.ModuleList"
        )
    idle = [name for name, p in own.network.named_parameters() if p.requires_grad and id(p) not in reached]
    if idle:
        raise ConfigError(
            f"{own.where}: forward does not use its parameter {idle[0]}; use it, leave it out, or let it have "
            "requires_grad_(False)"
        )
