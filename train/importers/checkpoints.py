"""Whose checkpoint a file is, and what is read of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlcore.config import ConfigError, shown
from rlcore.train.importers import weights_rl_games, weights_rsl_rl, weights_sb3, weights_skrl
from rlcore.train.importers.pickles import read_torch
from rlcore.train.importers.weights import Weights

_OF_TORCH: dict[str, Any] = {"rsl_rl": weights_rsl_rl, "rl_games": weights_rl_games, "skrl": weights_skrl}
"""Libraries whose checkpoints are files of ``torch.save``; those of SB3 are archives of some."""

_EXPECTED = "rsl_rl (model_*.pt), rl_games (*.pth), skrl (agent_*.pt) and Stable-Baselines3 (*.zip)"


def read_weights(path: Path, normalizer: Path | None = None) -> Weights:
    """Read a checkpoint; nothing in it is executed.

    Args:
        path: the file.
        normalizer: the pickle of SB3's VecNormalize; None: the one beside the file, if there is one.

    Raises:
        ConfigError: it cannot be read, is nobody's that is known, or holds what rlcore's networks have no place for.
    """
    if not path.is_file():
        what = "is a folder; name a file in it" if path.is_dir() else "does not exist; check the path"
        if (archive := Path(f"{path}.zip")).is_file():  # as Stable-Baselines3's load() takes it
            what = f"does not exist; did you mean '{archive}'?"
        raise ConfigError(f"'{path}' {what}")
    if weights_sb3.known(path):
        weights = Weights("sb3", str(path))
        with _damaged(weights):
            weights_sb3.read(path, weights, normalizer)
        return weights
    content = read_torch(path, str(path))
    library = _library(content)
    if library is None:
        if isinstance(content, Mapping) and "rlcore" in content:
            raise ConfigError(f"'{path}' is a checkpoint of rlcore itself; go on from it with rlcore train --resume")
        keys = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise ConfigError(f"'{path}' is a checkpoint of none of {_EXPECTED}; it holds {shown(keys)}")
    if normalizer is not None:
        raise ConfigError(
            f"--normalizer is '{normalizer}', and {library} keeps its statistics in the checkpoint; leave it out"
        )
    weights = Weights(library, str(path))
    with _damaged(weights):
        _OF_TORCH[library].read(content, weights)
    return weights


@contextlib.contextmanager
def _damaged(weights: Weights) -> Iterator[None]:
    """Name the file of a part that is of another kind than its library writes, wherever that comes to light."""
    try:
        yield
    except ConfigError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"'{weights.file}' is no checkpoint as {weights.library} writes it, or a damaged one "
            f"({shown(' '.join(str(error).split()))}); check the file"
        ) from error


def library_of(path: Path) -> str | None:
    """Whose checkpoint a file is; None if it is none of another library's that is known."""
    if weights_sb3.known(path):
        return "sb3"
    with contextlib.suppress(ConfigError):
        return _library(read_torch(path, str(path)))
    return None


def _library(content: Any) -> str | None:
    if not isinstance(content, Mapping) or "schema" in content:
        return None
    return next((name for name, module in _OF_TORCH.items() if module.known(content)), None)
