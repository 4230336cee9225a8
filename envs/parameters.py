"""Physical parameters with a value for each env: what tasks and adapters that have some share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlcore.config import nearest
from rlcore.env import Parameter


class ParameterRows:
    """The present values of an env's parameters; see ``rlcore.env.Randomizable``.

    Args:
        task: name for messages.
        parameters: by name.
        num_envs: N.
        device: where the values are.
    """

    def __init__(self, task: str, parameters: Mapping[str, Parameter], num_envs: int, device: torch.device) -> None:
        self.task = task
        self.parameters = dict(parameters)
        nominal = torch.tensor([p.nominal for p in self.parameters.values()], dtype=torch.float32, device=device)
        self._nominal = nominal[:, None]  # [P, 1]
        self.values = self._nominal.repeat(1, num_envs)
        """``[P, N]``, in the order of the parameters; changed in place."""
        self._rows: dict[str, Tensor] = dict(zip(self.parameters, self.values.unbind(), strict=True))

    def __getitem__(self, name: str) -> Tensor:
        """``[N]`` of a parameter, which goes on showing the present values."""
        return self._rows[name]

    def set(self, values: Mapping[str, Tensor], where: Tensor) -> None:
        """Change what ``values`` names in the envs ``where``; nothing is asked of the host.

        Raises:
            ValueError: there is no parameter of a name, or something is not ``[N]``.
        """
        shape = self.values.shape[1:]
        for name, value in values.items():
            if name not in self.parameters:
                raise ValueError(f"{self.task}: there is no parameter '{name}'; {nearest(name, self.parameters)}")
            if value.shape != shape:
                raise ValueError(f"{self.task}: values of '{name}' have shape {tuple(value.shape)}, not {tuple(shape)}")
        if where.shape != shape or where.dtype != torch.bool:
            raise ValueError(
                f"{self.task}: where is {where.dtype} of shape {tuple(where.shape)}; give bool of shape {tuple(shape)}"
            )
        rows = torch.stack([values.get(name, now).to(self.values) for name, now in self._rows.items()])
        torch.where(where, rows, self.values, out=self.values)

    def state(self) -> dict[str, Tensor]:
        """Copies ``[N]`` by name."""
        return {name: row.clone() for name, row in self._rows.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state`` gave; parameters that it does not have become nominal."""
        self.values.copy_(self._nominal.expand_as(self.values))
        for name, row in self._rows.items():
            if name in state:
                row.copy_(state[name])
