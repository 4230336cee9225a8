"""Run an exported policy with numpy and ONNX Runtime alone.

This file imports nothing else of rlcore: copy it into a robot controller as it is.

    policy = OnnxPolicy("policy.onnx")
    action = policy(observation)  # once every policy.metadata["control_dt"] seconds
    policy.reset()                # before a new episode

Of a policy that infers its task ``policy.task_probability`` is then that of each of ``policy.inferred_tasks``.

In a policy with a gate ``policy.risk`` is then the chance that what it wanted ends in a violation soon, and
``policy.acted`` whether the action is the gate's instead.

A policy that reads images or a mask of choices beside its vectors takes a dict, with the vectors as "obs" or by group:

    action = policy({"obs": observation, "camera": picture})  # [O] and [C, H, W], or a batch of each
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Properties that are one number or truth value. Lists and tables are recognized by their bracket; the rest is text.
_SCALARS = {
    "action_size",
    "control_dt",
    "decimation",
    "env_steps",
    "iteration",
    "normalizer_inside",
    "observation_epsilon",
    "observation_size",
    "opset",
    "observation_range_samples",
    "parity_close_calls",
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
    "physics_dt",
    "schema_version",
    "trial_episodes",
}

NAME_LISTS = ("command_names", "joint_names", "observation_names")
"""Properties that are names with commas between them, as mjlab writes them."""


def decode_metadata(properties: Mapping[str, str]) -> dict[str, Any]:
    """Turn the text properties of an ONNX file into numbers, lists and tables where they hold these."""
    facts = {k: _decoded(v) if k in _SCALARS or v[:1] in ("{", "[") else v for k, v in properties.items()}
    return facts | {k: facts[k].split(",") if facts[k] else [] for k in NAME_LISTS if isinstance(facts.get(k), str)}


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # a text may begin with a bracket, too


def _first(error: Exception) -> str:
    """What an error says, without line breaks and not at length."""
    return " ".join(str(error).split())[:300]


class Group(NamedTuple):
    """An observation group with an input of its own."""

    input: str
    """Name of the input."""
    shape: tuple[int, ...]
    """Of one observation: ``[C, H, W]`` of an image, ``[K]`` of a mask of choices."""
    uint8: bool
    """Whether it is uint8, and not float32."""

    def __str__(self) -> str:
        """Shape and type for people."""
        return f"[{', '.join(map(str, self.shape))}] {'uint8' if self.uint8 else 'float32'}"


class _Row:
    """A file of one row run on many: inputs and outputs are in memory of their own, which ONNX Runtime knows.

    Args:
        session: of the file.
        outputs: to be found.
        feed: inputs of one row.
    """

    def __init__(self, session: Any, outputs: list[str], feed: dict[str, NDArray[Any]]) -> None:
        self._run, self._binding, self._order = session.run_with_iobinding, session.io_binding(), outputs
        self._inputs = {name: np.array(x, order="C") for name, x in feed.items()}
        found = zip(outputs, session.run(outputs, self._inputs))  # noqa: B905 - Python 3.9
        self._outputs = {name: np.array(x, order="C") for name, x in found}
        for bind, table in ((self._binding.bind_input, self._inputs), (self._binding.bind_output, self._outputs)):
            for name, memory in table.items():
                bind(name, "cpu", 0, memory.dtype.type, memory.shape, memory.ctypes.data)

    def __call__(self, feed: dict[str, NDArray[Any]], num_rows: int) -> list[NDArray[Any]]:
        """Outputs of rows, which are the second axis of states and the first of all else."""
        rows_first = {name: x.swapaxes(0, 1) if name in ("h_in", "c_in") else x for name, x in feed.items()}
        given = [(memory, rows_first[name]) for name, memory in self._inputs.items()]
        found = [np.empty((num_rows, *self._outputs[name].shape), self._outputs[name].dtype) for name in self._order]
        taken = [(self._outputs[name], rows) for name, rows in zip(self._order, found)]  # noqa: B905 - Python 3.9
        for i in range(num_rows):
            for memory, rows in given:
                memory[...] = rows[i].reshape(memory.shape)
            self._run(self._binding)
            for memory, rows in taken:
                rows[i] = memory
        # [N, layers, 1, hidden] of a state, [N, 1, ...] of all else
        return [
            rows[:, :, 0].swapaxes(0, 1) if name.endswith("_out") else rows[:, 0]
            for name, rows in zip(self._order, found)  # noqa: B905
        ]


class OnnxPolicy:
    """A policy file as a function from observations to actions, with its recurrent state kept inside.

    Args:
        path: the ONNX file.
        num_threads: CPU threads of one inference; a small network is fastest on one.

    Raises:
        ValueError: there is no such file, ONNX Runtime cannot load it, or it is no policy: it has neither ``obs`` nor
            an image as input, no output ``actions``, or inputs of other shapes or types.
    """

    metadata: dict[str, Any]
    """What the file says about itself: observation and action terms, ``control_dt``, parity figures and so on."""
    observation_size: int
    """O, the length of the flat observation; 0 where there is none."""
    groups: dict[str, Group]
    """The groups that it reads beside that, by name: images and the mask of choices."""
    dynamic: bool
    """Whether the file takes any batch; otherwise a batch is run one row after the other."""
    risk: NDArray[np.float32] | None
    """Of the latest call, where the file has a gate: risk of what the policy wanted, 0 to 1, a number or ``[N]``."""
    threshold: float | None
    """Risk above which the gate of the file replaces an action; None where it has none, or one that only tells."""
    task_probability: NDArray[np.float32] | None
    """Of the latest call, where the file infers its task: ``[K]`` or ``[N, K]``."""
    state: list[NDArray[np.float32]]
    """Recurrent state, each ``[layers, N, hidden]``; empty before the first call and for a feed-forward policy."""

    def __init__(self, path: str | os.PathLike[str], num_threads: int = 1) -> None:
        if not os.path.isfile(path):
            raise ValueError(f"there is no ONNX file '{os.fspath(path)}'; check the path")
        self._session = self._open(path, num_threads)
        inputs = {i.name: i.shape for i in self._session.get_inputs()}
        types = {i.name: i.type for i in self._session.get_inputs()}
        outputs = [o.name for o in self._session.get_outputs()]
        raw = [name for name in inputs if name not in ("obs", "h_in", "c_in")]
        if "actions" not in outputs or not ("obs" in inputs or any(len(inputs[name]) == 4 for name in raw)):
            raise ValueError(
                f"'{os.fspath(path)}' has inputs {sorted(inputs)} and outputs {outputs}; "
                "a policy has at least the input 'obs' or an image, and the output 'actions'"
            )
        self.metadata = decode_metadata(self._session.get_modelmeta().custom_metadata_map)
        shape = inputs.get("obs", [inputs[raw[0]][0], 0] if raw else [])
        wrong = [name for name in ("h", "c") if len(inputs.get(f"{name}_in", (1, 1, 1))) != 3]
        wrong += [name for name in ("h", "c") if f"{name}_in" in inputs and f"{name}_out" not in outputs]
        wrong += [
            name
            for name in raw
            if (len(inputs[name]), types[name])
            not in ((4, "tensor(uint8)"), (4, "tensor(float)"), (2, "tensor(float)"))
            or not all(isinstance(size, int) for size in inputs[name][1:])
            or isinstance(inputs[name][0], int) != isinstance(shape[0], int)
        ]
        if len(shape) != 2 or not isinstance(shape[1], int) or wrong:
            raise ValueError(
                f"'{os.fspath(path)}' has inputs {inputs} and outputs {outputs}; a policy takes 'obs' [N, O] with "
                "a fixed O, images [N, C, H, W] uint8 or float32, a mask of choices [N, K] float32, and states "
                "[layers, N, hidden] that it gives back"
            )
        self.observation_size = shape[1]
        self.dynamic = not isinstance(shape[0], int)
        called = self._called()
        self.groups = {
            called.get(name, name): Group(name, tuple(inputs[name][1:]), types[name] == "tensor(uint8)") for name in raw
        }
        names = [name for name in ("h", "c") if f"{name}_in" in inputs]
        self._state_in = [f"{name}_in" for name in names]
        self._state_shapes = [inputs[name] for name in self._state_in]
        told = [name for name in ("risk", "task_probability") if name in outputs]
        self._outputs = ["actions", *told, *(f"{name}_out" for name in names)]
        self.state = []
        self._row: _Row | None = None
        self.risk, self.threshold, self.task_probability = None, self._limit(), None
        self._vectors, self._terms = self._described()

    def _open(self, path: str | os.PathLike[str], num_threads: int) -> Any:
        """What runs the file."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.inter_op_num_threads = 1
        try:
            return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no common base below Exception
            if zipfile.is_zipfile(path):
                told = f"'{os.fspath(path)}' is a checkpoint or a TorchScript file of PyTorch's; name an ONNX file"
                raise ValueError(told) from error
            raise ValueError(
                f"ONNX Runtime cannot load '{os.fspath(path)}', which is no ONNX file or a damaged one: {_first(error)}"
            ) from error

    def __call__(self, obs: ArrayLike | Mapping[str, ArrayLike]) -> NDArray[Any]:
        """Choose actions and advance the recurrent state.

        Args:
            obs: ``[O]`` or ``[N, O]``, the observation groups of ``metadata["observation_groups"]`` side by side;
                or the groups by name, of which these are then joined in that order. Where the file reads ``groups``
                besides, all by name: images ``[C, H, W]`` or ``[N, C, H, W]`` in the file's type, a mask ``[K]`` or
                ``[N, K]``, and the vectors also joined, as ``obs``. A single image needs no name.

        Returns:
            ``[A]`` or ``[N, A]`` float32; an int64 or ``[N]`` int64 when actions are discrete, ``[D]`` or ``[N, D]``
            int64 where several choices are made at once.

        Raises:
            ValueError: an observation is missing, or has the wrong shape or type (the message lists the terms), or N is
                not that of the others or of the recurrent state.
        """
        arrays = self._by_input(obs)
        shapes = {"obs": 1, **{group.input: len(group.shape) for group in self.groups.values()}}
        single = all(x.ndim == shapes[name] for name, x in arrays.items())
        if single:
            arrays = {name: x[None] for name, x in arrays.items()}
        counts = {name: len(x) if x.ndim > shapes[name] else None for name, x in arrays.items()}
        num_rows = next(iter(counts.values()))
        if num_rows is None or any(count != num_rows for count in counts.values()):
            listed = ", ".join(f"{name} {list(x.shape)}" for name, x in arrays.items())
            raise ValueError(f"observations come in different numbers: {listed}; give one of each, or N of each")
        self._prepare_state(num_rows)
        if self.dynamic or num_rows == 1:
            found = self._run(arrays, self.state)
        else:
            found = self._run_rows({**arrays, **dict(zip(self._state_in, self.state))}, num_rows)  # noqa: B905 - see _run
        actions = found.pop(0)  # [N, A] or [N]
        if "risk" in self._outputs:
            risk = found.pop(0)  # [N]
            self.risk = risk[0] if single else risk
        if "task_probability" in self._outputs:
            probability = found.pop(0)  # [N, K]
            self.task_probability = probability[0] if single else probability
        self.state = found
        return actions[0] if single else actions

    @property
    def inferred_tasks(self) -> tuple[str, ...]:
        """Names of the tasks of ``task_probability``; empty where the file infers none, or does not name them."""
        tasks = self.metadata.get("tasks") if "task_probability" in self._outputs else None
        named = isinstance(tasks, list) and all(isinstance(task, dict) and "name" in task for task in tasks)
        return tuple(str(task["name"]) for task in tasks) if named and isinstance(tasks, list) else ()

    @property
    def acted(self) -> NDArray[np.bool_]:
        """Whether the latest action is the gate's and not the policy's, or ``[N]``; false without a gate."""
        if self.risk is None or self.threshold is None:
            return np.zeros(np.shape(self.risk) if self.risk is not None else (), np.bool_)
        return np.asarray(self.risk > np.float32(self.threshold))

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

    def _by_input(self, obs: ArrayLike | Mapping[str, ArrayLike]) -> dict[str, NDArray[Any]]:
        """Each input's observations, one or N of them, in its type; refuses those of other shapes or types."""
        arrays: dict[str, NDArray[Any]] = {}
        if not isinstance(obs, Mapping):
            if len(self.groups) + (self.observation_size > 0) > 1:
                raise ValueError(f"one array came by itself; the file expects a dict: {self._expected()}")
            obs = {next(iter(self.groups), "obs"): obs}
            joined = self.observation_size > 0
        else:
            by_name = bool(self._vectors) and all(name in obs for name in self._vectors)
            joined = "obs" in obs and "obs" not in (*self._vectors, *self.groups) and not by_name
        missing = [name for name in (*(() if joined else self._vectors), *self.groups) if name not in obs]
        if missing:
            raise ValueError(f"observation groups {sorted(obs)} lack {missing}; the file expects {self._expected()}")
        if self.observation_size:
            flat = np.ascontiguousarray(obs["obs"] if joined else self._join(obs), dtype=np.float32)
            if flat.ndim not in (1, 2) or flat.shape[-1] != self.observation_size or flat.size == 0:
                raise ValueError(f"observation has shape {flat.shape}; the file expects {self._expected()}")
            arrays["obs"] = flat
        for name, group in self.groups.items():
            x = np.asarray(obs[name])
            fits = x.dtype == np.uint8 if group.uint8 else x.dtype.kind in ("f" if len(group.shape) > 1 else "fiub")
            if not fits or x.shape[-len(group.shape) :] != group.shape or x.ndim > len(group.shape) + 1 or x.size == 0:
                raise ValueError(
                    f"observation '{name}' is {x.dtype} of shape {list(x.shape)}; the file expects {group}, or N of "
                    "such, as the env gave it in training"
                )
            arrays[group.input] = np.ascontiguousarray(x, np.uint8 if group.uint8 else np.float32)
        return arrays

    def _run(self, arrays: dict[str, NDArray[Any]], state: list[NDArray[np.float32]]) -> list[NDArray[Any]]:
        feed = {**arrays, **dict(zip(self._state_in, state))}  # noqa: B905 - controllers may run Python 3.9
        try:
            return list(self._session.run(self._outputs, feed))
        except Exception as error:  # as when the file's inputs are of another type than float32
            raise ValueError(f"ONNX Runtime cannot run the file: {_first(error)}") from error

    def _run_rows(self, feed: dict[str, NDArray[Any]], num_rows: int) -> list[NDArray[Any]]:
        """One row after the other, through memory that is bound once: handing arrays over takes longer than running."""
        try:
            if self._row is None:
                first = {name: x[:, :1] if name in self._state_in else x[:1] for name, x in feed.items()}
                self._row = _Row(self._session, self._outputs, first)
            return self._row(feed, num_rows)
        except Exception as error:
            raise ValueError(f"ONNX Runtime cannot run the file row by row: {_first(error)}") from error

    def _prepare_state(self, num_rows: int) -> None:
        if not self.state:
            self.state = [np.zeros((layers, num_rows, size), np.float32) for layers, _, size in self._state_shapes]
        elif self.state[0].shape[1] != num_rows:
            raise ValueError(
                f"{num_rows} observations came where the recurrent state is of {self.state[0].shape[1]}; "
                "call reset() before changing their number"
            )

    def _join(self, obs: Mapping[str, ArrayLike]) -> NDArray[np.float32]:
        names = self._vectors
        if not names:
            raise ValueError(
                f"the file does not say which observation groups it reads, and {sorted(obs)} came by name; hand over "
                f"one array {self._expected()}, or export anew with rlcore, which writes them into the file"
            )
        parts = [np.asarray(obs[name], dtype=np.float32) for name in names]
        listed = ", ".join(f"{name} {list(np.shape(obs[name]))}" for name in names)
        if any(part.shape[-1:] != (size,) for part, size in zip(parts, names.values())):  # noqa: B905 - as above
            raise ValueError(f"observations have the shapes {listed}; the file expects {self._expected()}")
        if len({part.shape[:-1] for part in parts}) > 1:
            raise ValueError(f"observations come in different numbers: {listed}; give one of each, or N of each")
        return np.concatenate(parts, axis=-1)

    def _called(self) -> dict[str, str]:
        """The group of each input that the file names one for; none where it says something else there."""
        try:
            entries = [*self.metadata.get("image_groups", []), *filter(None, [self.metadata.get("action_mask")])]
            called = {str(entry["input"]): str(entry["name"]) for entry in entries}
        except (KeyError, TypeError, AttributeError):
            return {}
        return called if len(set(called.values())) == len(called) else {}

    def _limit(self) -> float | None:
        """Risk above which the gate acts, as the file has it; none where it says something else there."""
        gate = self.metadata.get("gate")
        acts = isinstance(gate, dict) and gate.get("acts") is True and isinstance(gate.get("threshold"), float)
        return gate["threshold"] if acts and isinstance(gate, dict) else None

    def _described(self) -> tuple[dict[str, int], list[str]]:
        """Sizes of groups and names of terms, as the file has them; none where it says something else there."""
        try:
            groups = {str(group["name"]): int(group["size"]) for group in self.metadata.get("observation_groups", [])}
            terms = [
                "{group}/{name}[{first}:{last}]".format(**term, first=term["slice"][0], last=term["slice"][1])
                for term in self.metadata.get("observation_terms", [])
            ]
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            return {}, []
        return groups, terms

    def _expected(self) -> str:
        terms = f": {', '.join(self._terms)}" if self._terms else ""
        flat = f"[{self.observation_size}] or [N, {self.observation_size}]{terms}"
        if not self.groups:
            return flat
        others = ", ".join(f"'{name}' {group}" for name, group in self.groups.items())
        return f"{f'obs {flat}; ' if self.observation_size else ''}{others}, or N of such"
