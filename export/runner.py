"""Run an exported policy with numpy and ONNX Runtime alone.

This file imports nothing else of rlcore: copy it into a robot controller as it is.

    policy = OnnxPolicy("policy.onnx")
    action = policy(observation)  # once every policy.metadata["control_dt"] seconds
    policy.reset()                # before a new episode
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Properties that are one number or truth value. Lists and tables are recognized by their bracket; the rest is text.
_SCALARS = {
    "action_size",
    "control_dt",
    "env_steps",
    "iteration",
    "normalizer_inside",
    "observation_size",
    "opset",
    "observation_range_samples",
    "parity_error",
    "parity_left_out",
    "parity_max_abs_error",
    "parity_mismatches",
    "parity_outlier_max_abs_error",
    "parity_samples",
    "parity_state_drift",
    "parity_steps",
    "parity_ties",
    "parity_tolerance",
}


def decode_metadata(properties: Mapping[str, str]) -> dict[str, Any]:
    """Turn the text properties of an ONNX file into numbers, lists and tables where they hold these."""
    return {k: _decoded(v) if k in _SCALARS or v[:1] in ("{", "[") else v for k, v in properties.items()}


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # a text may begin with a bracket, too


def _first(error: Exception) -> str:
    """What an error says, without line breaks and not at length."""
    return " ".join(str(error).split())[:300]


class OnnxPolicy:
    """A policy file as a function from observations to actions, with its recurrent state kept inside.

    Args:
        path: the ONNX file.
        num_threads: CPU threads of one inference; a small network is fastest on one.

    Raises:
        ValueError: there is no such file, ONNX Runtime cannot load it, or it has no ``obs`` and ``actions``.
    """

    metadata: dict[str, Any]
    """What the file says about itself: observation and action terms, ``control_dt``, parity figures and so on."""
    observation_size: int
    """O, the length of the flat observation."""
    dynamic: bool
    """Whether the file takes any batch; otherwise a batch is run one row after the other."""
    state: list[NDArray[np.float32]]
    """Recurrent state, each ``[layers, N, hidden]``; empty before the first call and for a feed-forward policy."""

    def __init__(self, path: str | os.PathLike[str], num_threads: int = 1) -> None:
        import onnxruntime

        if not os.path.isfile(path):
            raise ValueError(f"there is no ONNX file '{os.fspath(path)}'; check the path")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no common base below Exception
            raise ValueError(
                f"ONNX Runtime cannot load '{os.fspath(path)}', which is no ONNX file or a damaged one: {_first(error)}"
            ) from error
        inputs = {i.name: i.shape for i in self._session.get_inputs()}
        outputs = [o.name for o in self._session.get_outputs()]
        if "obs" not in inputs or "actions" not in outputs:
            raise ValueError(
                f"'{os.fspath(path)}' has inputs {sorted(inputs)} and outputs {outputs}; "
                "a policy has at least the input 'obs' and the output 'actions'"
            )
        self.metadata = decode_metadata(self._session.get_modelmeta().custom_metadata_map)
        shape = inputs["obs"]
        wrong = [name for name in ("h", "c") if len(inputs.get(f"{name}_in", (1, 1, 1))) != 3]
        wrong += [name for name in ("h", "c") if f"{name}_in" in inputs and f"{name}_out" not in outputs]
        if len(shape) != 2 or not isinstance(shape[1], int) or wrong:
            raise ValueError(
                f"'{os.fspath(path)}' has inputs {inputs} and outputs {outputs}; a policy takes 'obs' [N, O] with "
                "a fixed O, and states [layers, N, hidden] that it gives back"
            )
        self.observation_size = shape[1]
        self.dynamic = not isinstance(inputs["obs"][0], int)
        names = [name for name in ("h", "c") if f"{name}_in" in inputs]
        self._state_in = [f"{name}_in" for name in names]
        self._state_shapes = [inputs[name] for name in self._state_in]
        self._outputs = ["actions", *(f"{name}_out" for name in names)]
        self.state = []
        self._groups, self._terms = self._described()

    def __call__(self, obs: ArrayLike | Mapping[str, ArrayLike]) -> NDArray[Any]:
        """Choose actions and advance the recurrent state.

        Args:
            obs: ``[O]`` or ``[N, O]``, the observation groups of ``metadata["observation_groups"]`` side by side;
                or the groups by name, which are then joined in that order.

        Returns:
            ``[A]`` or ``[N, A]`` float32; an int64 or ``[N]`` int64 when actions are discrete.

        Raises:
            ValueError: the observation has the wrong size (the message lists the terms), or N is not that of the
                recurrent state.
        """
        flat = np.ascontiguousarray(self._join(obs) if isinstance(obs, Mapping) else obs, dtype=np.float32)
        if flat.ndim not in (1, 2) or flat.shape[-1] != self.observation_size or flat.size == 0:
            raise ValueError(f"observation has shape {flat.shape}; the file expects {self._expected()}")
        rows = flat.reshape(-1, self.observation_size)  # [N, O]
        self._prepare_state(len(rows))
        if self.dynamic or len(rows) == 1:
            actions, *self.state = self._run(rows, self.state)
        else:
            parts = [self._run(rows[i : i + 1], [s[:, i : i + 1] for s in self.state]) for i in range(len(rows))]
            actions = np.concatenate([part[0] for part in parts])  # [N, A] or [N]
            self.state = [np.concatenate([part[1 + k] for part in parts], axis=1) for k in range(len(self.state))]
        return actions[0] if flat.ndim == 1 else actions

    def reset(self, mask: ArrayLike | None = None) -> None:
        """Forget the recurrent state: all of it, or that of the rows where ``mask [N]`` is true.

        Raises:
            ValueError: the mask is not of length N.
        """
        if mask is None:
            self.state = []
        elif self.state:
            rows = np.asarray(mask, dtype=bool)  # [N]
            if rows.shape != self.state[0].shape[1:2]:
                raise ValueError(f"reset mask has shape {rows.shape}; the state is of {self.state[0].shape[1]} rows")
            self.state = [np.where(rows[None, :, None], np.float32(0), s) for s in self.state]

    def _run(self, rows: NDArray[np.float32], state: list[NDArray[np.float32]]) -> list[NDArray[Any]]:
        feed = {"obs": rows, **dict(zip(self._state_in, state))}  # noqa: B905 - controllers may run Python 3.9
        try:
            return list(self._session.run(self._outputs, feed))
        except Exception as error:  # as when the file's inputs are of another type than float32
            raise ValueError(f"ONNX Runtime cannot run the file: {_first(error)}") from error

    def _prepare_state(self, num_rows: int) -> None:
        if not self.state:
            self.state = [np.zeros((layers, num_rows, size), np.float32) for layers, _, size in self._state_shapes]
        elif self.state[0].shape[1] != num_rows:
            raise ValueError(
                f"{num_rows} observations came where the recurrent state is of {self.state[0].shape[1]}; "
                "call reset() before changing their number"
            )

    def _join(self, obs: Mapping[str, ArrayLike]) -> NDArray[np.float32]:
        names = self._groups
        missing = [name for name in names if name not in obs]
        if not names:
            raise ValueError(
                f"the file does not say which observation groups it reads, and {sorted(obs)} came by name; hand over "
                f"one array {self._expected()}, or export anew with rlcore, which writes them into the file"
            )
        if missing:
            raise ValueError(f"observation groups {sorted(obs)} lack {missing}; the file expects {self._expected()}")
        return np.concatenate([np.asarray(obs[name], dtype=np.float32) for name in names], axis=-1)

    def _described(self) -> tuple[list[str], list[str]]:
        """Names of groups and of terms, as the file has them; none where it says something else there."""
        try:
            groups = [str(group["name"]) for group in self.metadata.get("observation_groups", [])]
            terms = [
                "{group}/{name}[{first}:{last}]".format(**term, first=term["slice"][0], last=term["slice"][1])
                for term in self.metadata.get("observation_terms", [])
            ]
        except (KeyError, TypeError, IndexError, AttributeError):
            return [], []
        return groups, terms

    def _expected(self) -> str:
        terms = f": {', '.join(self._terms)}" if self._terms else ""
        return f"[{self.observation_size}] or [N, {self.observation_size}]{terms}"
