"""Physical parameters with a value for each env: what tasks and adapters that have some share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rlcore.config import nearest
from rlcore.env import Parameter
from rlcore.stage import rows_of

STAGE_ENTRY = "_parameters"
"""Of a stage; two stages that differ in it alone are the same, as values are mostly those that were drawn last."""

_MULTIPLIER, _INCREMENT = 6364136223846793005, 1442695040888963407
_APART = -7046029254386353131  # 2^64 / golden ratio: neighbors begin far from each other


def unit_of(parameter: Parameter) -> str:
    """What its values are told in; of a factor ``times``, of a share nothing."""
    return parameter.unit or ("times" if parameter.nominal == 1 else "")


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
        self.named: set[str] = set()
        """What was ever set."""
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
        self.named |= values.keys()
        rows = torch.stack([values.get(name, now).to(self.values) for name, now in self._rows.items()])
        torch.where(where, rows, self.values, out=self.values)

    def state(self) -> dict[str, Tensor]:
        """Copies ``[N]`` by name of what was ever set."""
        return {name: row.clone() for name, row in self._rows.items() if name in self.named}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put back what ``state`` gave, here or of another number of envs; what it does not have becomes nominal."""
        self.named |= state.keys() & self.parameters.keys()
        self.values.copy_(self._nominal.expand_as(self.values))
        for name, row in self._rows.items():
            if name in state:
                saved = state[name]
                row.copy_(saved if len(saved) == len(row) else saved[rows_of(len(saved), len(row)).to(saved.device)])


class PushDraws:
    """Numbers that directions of pushes are drawn from: apart from all others, so that these are the same with pushes.

    The upper bits of a congruential generator (Knuth's MMIX) for each env, which a CUDA graph may record.

    Args:
        num_envs: N.
        device: where they are drawn.
        seed: as of a random generator; None is 0.
    """

    def __init__(self, num_envs: int, device: torch.device, seed: int | None) -> None:
        self._first = torch.arange(num_envs, device=device)  # [N]
        self.state = torch.zeros_like(self._first)  # [N]
        self.seed(seed or 0)

    def seed(self, seed: int) -> None:
        """Begin anew."""
        torch.mul(self._first + (seed * 0x9E3779B1) % 2**31, _APART, out=self.state)

    def __call__(self) -> Tensor:
        """Uniform in -1..1, ``[N]``."""
        self.state.mul_(_MULTIPLIER).add_(_INCREMENT)  # modulo 2^64
        return (self.state >> 33).float() * 2.0**-30
