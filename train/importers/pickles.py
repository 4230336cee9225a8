"""Files of tensors and pickles as plain values: nothing that they name is imported, built or called."""

from __future__ import annotations

import base64
import io
import math
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlcore.config import ConfigError, shown

MOST_BYTES = 2**30
"""Of a part of a ZIP archive, and of a pickle; a network of a robot has some millions."""

_KNOWN = ("numpy", "gymnasium", "gym", "stable_baselines3", "collections")
"""Packages whose objects may stand in a pickle, as stand-ins that keep what they are given."""


class StandIn:
    """What a pickle wants to build, as what it was to be built from: ``args``, ``state``, ``items``."""

    args: tuple[Any, ...]
    state: Any
    items: dict[Any, Any]

    def __new__(cls, *args: Any, **_: Any) -> StandIn:
        """Keep what it is given; pickles of tuples by name call this alone."""
        self = super().__new__(cls)
        self.args, self.state, self.items = args, None, {}
        return self

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        """Keep it."""
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Keep it."""
        self.items[key] = value

    def append(self, item: Any) -> None:
        """Keep it."""
        self.items[len(self.items)] = item

    def extend(self, items: Any) -> None:
        """Keep them."""
        for item in items:
            self.append(item)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return type(name, (StandIn,), {})

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects elsewhere")


def read_pickle(path: Path) -> Any:
    """A pickle of objects of Stable-Baselines3, gymnasium and NumPy, each as a stand-in; see ``array``.

    Raises:
        ConfigError: it holds anything else, is damaged, or is no pickle; nothing of it was run.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise pickle.UnpicklingError("it is larger than statistics of observations can be")
        with path.open("rb") as file:
            return _Unpickler(file).load()
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be read: {error.strerror}; check the path") from error
    except Exception as error:  # what reading a damaged pickle ends in depends on the byte
        raise ConfigError(
            f"'{path}' is no pickle of Stable-Baselines3's VecNormalize, or a damaged one ({shown(str(error))}); "
            "nothing of it was run"
        ) from None


def read_call(text: str) -> tuple[Any, ...]:
    """What an object was built from, whose pickle is given in base64, each part that is an object a stand-in.

    Returns:
        Nothing where it is damaged or names anything that ``read_pickle`` refuses; nothing of it was run.
    """
    try:
        value = _Unpickler(io.BytesIO(base64.b64decode(text))).load()
    except Exception:  # as above
        return ()
    return value.args if isinstance(value, StandIn) else ()


def fields(value: Any) -> Mapping[str, Any]:
    """The attributes of a stand-in; none where it has none."""
    state = value.state if isinstance(value, StandIn) else None
    return state if isinstance(state, dict) else {}


def array(value: Any) -> NDArray[np.float64]:
    """The array of floats that a pickle of NumPy describes; a plain number is one without dimensions.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, (int, float)):
        return np.asarray(float(value))
    if isinstance(value, StandIn) and type(value).__name__ == "scalar" and len(value.args) == 2:
        kind, content = value.args
        return _numbers(kind, content, ())
    if isinstance(value, StandIn) and isinstance(value.state, tuple) and len(value.state) == 5:
        _, shape, kind, _, content = value.state
        return _numbers(kind, content, shape)
    raise ValueError("it is no array")


def _numbers(kind: Any, content: Any, shape: Any) -> NDArray[np.float64]:
    code = kind.args[0] if isinstance(kind, StandIn) and kind.args else None
    order = kind.state[1] if isinstance(kind, StandIn) and isinstance(kind.state, tuple) and kind.state[1:] else "<"
    whole = isinstance(shape, tuple) and all(isinstance(n, int) and n >= 0 for n in shape)
    if code not in ("f4", "f8", "i4", "i8") or order not in ("<", ">", "=") or not whole:
        raise ValueError("it is no array of numbers")
    if isinstance(content, str):  # protocols before 3 have bytes as text
        content = content.encode("latin-1")
    numbers = np.frombuffer(content, np.dtype(f"{order}{code}"))
    if math.prod(shape) != numbers.size or len(shape) > 1:
        raise ValueError("its shape is not that of a vector")
    return np.array(numbers.reshape(shape), dtype=np.float64)


def read_torch(file: Path | io.BytesIO, name: str) -> Any:
    """A file of ``torch.save`` with tensors and plain values in it; scalars of NumPy become stand-ins.

    Raises:
        ConfigError: it holds anything else, or is damaged; nothing of it was run.
    """
    harmless: list[Any] = [
        (StandIn, f"{module}.{member}")
        for module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.dtypes")
        for member in ("scalar", "dtype", "Float32DType", "Float64DType", "Int64DType")
    ]
    harmless.append((_encoded, "_codecs.encode"))
    try:
        with torch.serialization.safe_globals(harmless), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of protocols, which is nothing to the user
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConfigError(f"'{name}' cannot be read: {error.strerror or error}; check the path") from error
    except Exception as error:  # what reading a damaged file ends in depends on the byte
        if "Unsupported" in str(error) or "Weights only load failed" in str(error):
            raise ConfigError(
                f"'{name}' holds objects other than tensors and plain values, or is damaged; nothing of it was run; "
                "give a checkpoint as its library writes it"
            ) from None
        raise ConfigError(f"'{name}' is no checkpoint, or a damaged one; check the path") from None


def _encoded(text: Any, *_: Any) -> Any:
    """The bytes of a scalar, in older protocols."""
    return text.encode("latin-1") if isinstance(text, str) else b""


def read_member(archive: zipfile.ZipFile, member: str, name: str) -> bytes:
    """A part of a ZIP archive.

    Raises:
        ConfigError: it is missing, damaged or too large.
    """
    try:
        if archive.getinfo(member).file_size > MOST_BYTES:
            raise ConfigError(f"'{name}': {member} in it is larger than {MOST_BYTES:,} bytes; check the file")
        return archive.read(member)
    except KeyError:
        raise ConfigError(f"'{name}' lacks {member}; give a file as Stable-Baselines3 saves it") from None
    except ConfigError:
        raise
    except Exception as error:  # as above
        raise ConfigError(f"'{name}' is a damaged archive ({shown(str(error))}); check the file") from None
