"""Parameters and buffers stay where optimizers and recorded graphs know them, whatever is done to the modules.

An optimizer steps a flat buffer that the parameters are views of, and a CUDA graph reads and writes addresses. Ordinary
calls of PyTorch leave both behind without a word: ``module.double().float()`` and ``module.to(...)`` move what
parameters hold, ``load_state_dict(..., assign=True)`` brings parameters of its own, and so does a module in another's
place. From then on the optimizer would move numbers that no network reads, and a graph would act by the former ones.

Both are found before an update, and before a graph acts. Only where a whole rollout is one graph, as with envs that
PyTorch computes, a rollout that begins before the next update still acts by the former parameters.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_log = logging.getLogger(__name__)


class _Slot(NamedTuple):
    """Where a module keeps a tensor."""

    module: nn.Module
    table: dict[str, Any]
    name: str
    tensor: Tensor
    home: Tensor  # the memory that it has to have, whatever becomes of ``tensor.data``
    address: int  # of home
    learned: bool


class Anchors:
    """What an agent's modules hold, to be found again where it was.

    Args:
        agent: whose attributes the modules are; all that it has by now.
    """

    def __init__(self, agent: object) -> None:
        # Not the agent itself: it would keep itself, and its graphs' memory, until Python searches for cycles.
        self._agent = weakref.ref(agent)
        self._modules = {name: value for name, value in vars(agent).items() if isinstance(value, nn.Module)}
        walk = [pair for name, module in self._modules.items() for pair in module.named_modules(prefix=name)]
        self._children = [
            (f"{path}.{name}", module._modules, name, child)
            for path, module in walk
            for name, child in module.named_children()
        ]
        self._slots = {path: slot for prefix, module in walk for path, slot in _slots(prefix, module)}
        # What acting reads, as tuples, which are quick to go through.
        acting = [slot for path, slot in self._slots.items() if path.startswith("policy.")]
        self._parameters = [
            (s.table, s.name, s.tensor, s.address) for s in acting if isinstance(s.tensor, nn.Parameter)
        ]
        self._layers = [child[1:] for child in self._children if child[0].startswith("policy.")]

    def check_policy(self) -> None:
        """Do what ``check`` does, if ``policy``, one of its layers or a parameter is not in its place.

        Made to be called before each replay of a graph that acts: it takes 3 to 6 microseconds on the host.
        """
        if (
            getattr(self._agent(), "policy", None) is not self._modules.get("policy")
            or any(table.get(name) is not layer for table, name, layer in self._layers)
            or any(table.get(name) is not x or x.data_ptr() != at for table, name, x, at in self._parameters)
        ):
            self.check()

    def check(self) -> None:
        """Take values that were moved or replaced into the tensors that are learned, and put those into the modules.

        Does nothing, within some microseconds and without asking a device, while all is in its place. Values are
        converted to type and device of before; the optimizer's moments stay.

        Raises:
            RuntimeError: a module has been replaced, so that optimizers, and graphs, would go on with the former one,
                or a parameter was frozen or thawed, which they do not notice.
        """
        agent = self._agent()
        found = [name for name, module in self._modules.items() if getattr(agent, name) is not module]
        found += [path for path, table, name, child in self._children if table.get(name) is not child]
        if found:
            raise RuntimeError(
                f"{found[0]} has been replaced by another module, which the optimizer does not know; load its "
                "parameters into the present one (load_state_dict), or build the agent anew"
            )
        slots = self._slots.items()
        left = [p for p, (_, table, key, x, _, at, _) in slots if table.get(key) is not x or x.data_ptr() != at]
        if left:
            self._put_back(left)
        turned = [path for path, slot in slots if slot.tensor.requires_grad is not slot.learned]
        if turned:
            now, before = ("frozen", "learned") if self._slots[turned[0]].learned else ("learned", "frozen")
            raise RuntimeError(
                f"{turned[0]} is {now} (requires_grad) and was {before} when the agent was built, and its optimizer "
                "goes on with it as that; set requires_grad back, or have a network of your own begin with it so"
            )

    @torch.no_grad()
    def _put_back(self, paths: list[str]) -> None:
        for path in paths:
            module, table, name, tensor, home, _, _ = self._slots[path]
            present = table.get(name)
            if present is None or present.shape != home.shape:
                shape = "gone" if present is None else f"of shape {tuple(present.shape)}"
                raise RuntimeError(f"{path} is {shape} and was of shape {tuple(home.shape)}; build the agent anew")
            home.copy_(present)
            tensor.data = home
            setattr(module, name, tensor)  # not into the table: a torch.nn.LSTM keeps lists of its own
        text = "parameters or buffers (%d, first %s) were moved or replaced; their values are learned from here on"
        _log.warning(text, len(paths), paths[0])


def _slots(prefix: str, module: nn.Module) -> Iterator[tuple[str, _Slot]]:
    tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
    for table in tables:
        for name, tensor in table.items():
            if tensor is not None:
                yield (
                    f"{prefix}.{name}",
                    _Slot(module, table, name, tensor, tensor.detach(), tensor.data_ptr(), tensor.requires_grad),
                )
