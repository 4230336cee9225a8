"""Checkpoints that are never half written, and never execute anything when read."""

from __future__ import annotations

import contextlib
import pickle
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from rlcore._version import __version__
from rlcore.config import ConfigError, shown
from rlcore.env import EnvFailed
from rlcore.files import whole_file

SCHEMA = 1
"""Number of a checkpoint's layout; a layout that older code could not read gets the next one."""

OF_A_RUN = ("config", "spec")
"""What the checkpoints of a run folder have beside ``rlcore.learn.snapshot``'s result: plain settings and env."""

_KEYS = ("agent", "progress", "env", "recording", "rng")

_PASSING = (
    "replay", "trace", "critic_state", "held", "safety.running", "costs.tensors.safety.running", "costs.tensors.latest",
)  # fmt: skip
"""Parts of an agent's state that hold what was met, which may be broken or nothing yet, and what an episode clears."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one line that names the file and what to do."""


def save_checkpoint(path: str | Path, content: dict[str, Any]) -> None:
    """Write ``content`` (tensors and plain values) so that a crash leaves the old file or the new one, never a part.

    Raises:
        OSError: it cannot be written, as on a full disk.
    """
    with whole_file(path, "wb") as file:
        watched = _Watched(file)
        try:
            torch.save({"schema": SCHEMA, "rlcore": __version__, **content}, watched)  # type: ignore[arg-type]
        except Exception as error:
            if watched.error is None:
                raise
            raise watched.error from error  # PyTorch makes a RuntimeError of a full disk


class _Watched:
    """A file that remembers why it could not be written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()


def load_checkpoint(
    path: str | Path, device: torch.device | str = "cpu", needed: Collection[str] = ()
) -> dict[str, Any]:
    """Read a checkpoint with ``rlcore.learn.snapshot``'s result in it; only tensors and plain values are accepted.

    A replay memory may be larger than the GPU's memory and half of the host's: wherever the rest goes, its tensors stay
    in the file, which is read as they are.

    Args:
        path: the file.
        device: where tensors go.
        needed: what else has to be in it, such as ``OF_A_RUN``.

    Raises:
        CheckpointError: the file is missing, cut short, not a checkpoint of this library, of another schema, lacks
            something, or holds code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint '{path}' does not exist; check the path")
    try:
        content = _read(path)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "Weights only load failed" in str(error):
            raise CheckpointError(
                f"checkpoint '{path}' holds objects other than tensors and plain values, or is damaged; nothing of it "
                "was run; use a checkpoint that rlcore wrote"
            ) from None
        raise CheckpointError(f"checkpoint '{path}' is damaged; use an earlier one from its folder") from None
    except Exception as error:  # what reading a damaged file ends in depends on the byte
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "weights_only" in reason:  # torch's advice is to read the file with what may execute it
            reason = "its layout is none of rlcore's"
        raise CheckpointError(
            f"checkpoint '{path}' is damaged or cut short ({reason}); use an earlier one from its folder"
        ) from None
    if not isinstance(content, dict) or "schema" not in content:
        raise CheckpointError(f"'{path}' is not an rlcore checkpoint; use a file that rlcore wrote")
    if not isinstance(content["schema"], int) or content["schema"] != SCHEMA:
        by = shown(content.get("rlcore"))
        raise CheckpointError(
            f"checkpoint '{path}' has schema {shown(content['schema'])} (written by rlcore {by}) and this is rlcore"
            f" {__version__}, which reads schema {SCHEMA}; install the version that wrote it"
        )
    missing = [key for key in (*needed, *_KEYS) if key not in content]
    if missing:
        raise CheckpointError(f"checkpoint '{path}' lacks {', '.join(missing)}; use one that a run wrote")
    for key in (*needed, *_KEYS):
        if not isinstance(content[key], dict) and (key, content[key]) != ("env", None):
            raise CheckpointError(f"checkpoint '{path}': '{key}' is {shown(content[key])}; use one that a run wrote")
    for key, kind in (("iteration", int), ("env_steps", int), ("seconds", (int, float))):
        value = content["progress"].get(key, 0)  # one that is missing is told where it is needed
        if not isinstance(value, kind) or isinstance(value, bool) or not 0 <= value < 2**63:
            raise CheckpointError(f"checkpoint '{path}': progress.{key} is {shown(value)}; use one that a run wrote")
    there = torch.device(device)
    for key, value in content["agent"].items():
        if key != "replay":
            content["agent"][key] = _moved(value, there)
    return {key: value if key in ("agent", "ranks") else _moved(value, there) for key, value in content.items()}


@contextlib.contextmanager
def fitting(path: str | Path | None, remedy: str = "use one that this version of rlcore wrote") -> Iterator[None]:
    """Turn whatever follows from a checkpoint that does not hold what it should into an error that names the file.

    Args:
        path: the checkpoint; None where what is known is only that it does not fit the agent.
        remedy: what to do, if it is something else.

    Raises:
        CheckpointError: something within was missing, of another type or of another shape.
    """
    file = f"checkpoint '{path}'"
    try:
        yield
    except (torch.OutOfMemoryError, CheckpointError, ConfigError, EnvFailed):
        raise
    except KeyError as error:
        lacking = f"lacks {shown(error.args[0])}" if error.args else "lacks something"
        what = f"the checkpoint does not fit the agent (it {lacking});" if path is None else f"{file} {lacking}:"
        raise CheckpointError(f"{what} {remedy}") from error
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
        lines = [line.strip() for line in str(error).splitlines()] or [""]
        reason = lines[1] if lines[0].endswith(":") and len(lines) > 1 else lines[0]  # a title comes before
        what = (
            "the checkpoint does not fit the agent" if path is None else f"{file} holds something else than it should"
        )
        raise CheckpointError(f"{what} ({reason[:200]}); {remedy}") from error


def broken_values(state: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted names of an agent's tensors with NaN in them; of its networks, infinite ones too.

    Args:
        state: of an agent, as ``Agent.state_dict`` returns it, or a part of it.
        prefix: before each name.
    """
    found: list[str] = []
    for key, value in state.items():
        name = f"{prefix}{key}"
        if name in _PASSING:
            continue
        if isinstance(value, Tensor):
            network = name.startswith(("policy.", "critic.", "critics."))
            if value.is_floating_point() and not (value.isfinite() if network else ~value.isnan()).all():
                found.append(name)
        elif isinstance(value, (list, tuple)):
            found += broken_values({str(i): item for i, item in enumerate(value)}, f"{name}.")
        elif isinstance(value, Mapping):
            found += broken_values(value, f"{name}.")
    return found


def refuse_broken_state(state: Mapping[str, Any], path: str | Path | None) -> None:
    """Refuse an agent's state that no training recovers from.

    Raises:
        CheckpointError: see ``broken_values``; the message names the file and what is broken.
    """
    broken = broken_values(state)
    if broken:
        raise CheckpointError(
            f"checkpoint '{path}' has values that are not finite in {', '.join(broken[:3])}, from which no training "
            "recovers; give an earlier one, --resume RUN/checkpoints/000500.pt"
        )


def _read(path: Path) -> Any:
    if not zipfile.is_zipfile(path):
        return torch.load(path, map_location="cpu", weights_only=True)
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()  # what is mapped is not checked otherwise
    if damaged is not None:
        raise ValueError(f"wrong checksum of {damaged}")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _moved(value: Any, device: torch.device) -> Any:
    """Everything on a device and out of the file; dicts and lists stay the same ones."""
    if isinstance(value, Tensor):
        return value.to(device, copy=True)
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            value[key] = _moved(value[key], device)
        return value
    return tuple(_moved(item, device) for item in value) if isinstance(value, tuple) else value
