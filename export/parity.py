"""Does the exported file do what the policy does? Both are driven with the same observations and compared.

Three kinds of observation are replayed:

- recorded: what the policy met in training or evaluation; steps with an observation that is not finite are left out,
  as is said, and a recurrent policy begins anew after them;
- random: normal, with the recording's mean and deviation per feature (0 and 1 without a recording); images of uint8
  with every value as likely as any, and masks with one choice allowed at least;
- outliers: the same with all that is float32 ten times as far out, as a bad sensor would send.

The absolute difference is held against the tolerance as it is where an output stays within -1..1. Where it goes further
the difference is divided by the output's largest magnitude, because float32 carries 7 digits and a torque of up to 100
cannot be repeated to 1e-5; and for outliers by ten times that, because rounding grows with the input.

A recurrent policy is compared in two ways. On all observations the file starts every step from the policy's state, and
actions and next states are held against the tolerance. On the recording each then keeps its own state, reset where an
episode ended, for 256 steps and more (a shorter recording is gone through again and again), and the actions are held
against the tolerance. How far the states drift apart meanwhile is only reported: a network may let rounding grow where
its actions do not depend on it, and then differs as much from itself in double precision.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlcore.agent import Policy
from rlcore.encoders import scaled
from rlcore.export.metadata import ExportError
from rlcore.export.observations import finite_part, group_shapes, too_few
from rlcore.export.runner import OnnxPolicy
from rlcore.gate import Gated
from rlcore.types import Obs, State

RANDOM_SHAPE = (32, 32)  # steps, envs
IMAGE_STEPS = 8  # random steps where there are images, each of which is hundreds of times the work
END_RATE = 0.1  # chance of a random step to end its episode
SEQUENCE_STEPS = 256  # through which a recurrent policy and its file keep their own states, at least
ROUNDING = 1e-4  # at most, of sums of many thousand numbers in float32
CLOSE = 1e-4  # of a gate's logit, over the larger of 1 and that: float32 rounds to about 1e-6 of it
OUTLIER = 10.0  # how many times further out than random observations


@dataclass
class ParityReport:
    """How closely a file follows a policy."""

    tolerance: float
    """Largest ``error`` that passes."""
    discrete: bool = False
    """Whether actions are indices, which are counted in ``mismatches`` and ``ties``."""
    recorded_samples: int = 0
    """Observations replayed from the recording."""
    left_out: int = 0
    """Observations of the recording that were not finite."""
    samples: int = 0
    """All observations replayed: recorded (recurrent: more than once), random and outliers."""
    error: float = 0.0
    """Largest difference as judged (see the module's text); what is held against the tolerance."""
    worst_output: str = ""
    """Where: an output and its last index."""
    max_abs_error: float = 0.0
    """Largest absolute difference of any output on recorded and random observations."""
    outlier_max_abs_error: float = 0.0
    """The same on outliers."""
    mismatches: int = 0
    """Discrete: observations for which the file chooses another index."""
    ties: int = 0
    """Discrete: other indices that are not held against the file, because the policy itself chooses the file's index
    for an observation that differs by no more than the tolerance (relative; pixels of uint8 count as 0..1)."""
    source: str = "random observations only"
    """What was replayed, in words."""
    close_calls: int = 0
    """With a gate: actions that are not held against the file, because rounding decides which one the gate takes (its
    choice hangs on less than ``CLOSE`` of a logit, see ``Gated.margin``), and that differ."""
    steps: int = 0
    """Recurrent: consecutive steps over which policy and file kept their own states, reset where episodes ended."""
    state_drift: float = 0.0
    """Recurrent: largest absolute difference of these states."""

    @property
    def passed(self) -> bool:
        """Whether the file does what the policy does."""
        return self.mismatches == 0 and self.error <= self.tolerance

    @property
    def remedy(self) -> str:
        """What to do where the file does the same to a few roundings; nothing where it does something else."""
        if self.mismatches or not self.tolerance < self.error <= ROUNDING:
            return ""
        return "; so little may be rounding, of long sums most of all: 'rlcore export --tolerance' allows more"

    def __str__(self) -> str:
        """One line for people."""
        left_out = f", {self.left_out} more were not finite and left out" if self.left_out else ""
        size = f"{self.samples} observations ({self.recorded_samples} recorded{left_out})"
        if self.mismatches:
            return f"{self.mismatches} of {size} lead to another discrete action than the policy's (output 'actions')"
        ties = f", {self.ties} ties" if self.ties else ""
        ties += f", {self.close_calls} close calls of the gate left out" if self.close_calls else ""
        if not self.error:
            return f"no difference over {size}{ties}"
        verdict = "within" if self.passed else "above"
        figure = f"largest difference {self.error:.3g} in output '{self.worst_output}'"
        return f"{figure}, {verdict} the tolerance {self.tolerance:g}, over {size}{ties}"

    def metadata(self) -> dict[str, Any]:
        """The figures as the file's ``parity_…`` properties."""
        facts: dict[str, Any] = {
            "parity_error": self.error,
            "parity_max_abs_error": self.max_abs_error,
            "parity_outlier_max_abs_error": self.outlier_max_abs_error,
            "parity_samples": self.samples,
            "parity_source": self.source,
            "parity_tolerance": self.tolerance,
        }
        if self.left_out:
            facts["parity_left_out"] = self.left_out
        if self.close_calls:
            facts["parity_close_calls"] = self.close_calls
        if self.steps:
            facts |= {"parity_steps": self.steps, "parity_state_drift": self.state_drift}
        return {**facts, "parity_mismatches": self.mismatches, "parity_ties": self.ties} if self.discrete else facts


def verify(
    file: str | os.PathLike[str] | OnnxPolicy,
    policy: Policy,
    recording: Mapping[str, Tensor] | None = None,
    *,
    tolerance: float = 1e-5,
) -> ParityReport:
    """Compare an exported file, run by ``OnnxPolicy``, with the policy.

    The policy is run as a copy on the CPU, in evaluation mode: a GPU may multiply in TF32, with 3 digits, which would
    say nothing about the file. The policy itself is left as it is.

    Args:
        file: the ONNX file, or what runs another.
        policy: what it should do.
        recording: observation groups ``[T, M, ...]`` and ``done [T, M]`` (the episode ended after that step), as
            ``Agent.recording`` returns them. Without it only random observations are replayed.
        tolerance: largest difference allowed; the report tells whether it was kept, and nothing is raised for it.

    Raises:
        ExportError: recording or file do not fit the policy, too few recorded observations are finite, or the policy's
            own output is not finite.
        ValueError: the file cannot be loaded, or reads observations of another size.
    """
    runner = file if isinstance(file, OnnxPolicy) else OnnxPolicy(file)
    reference = cpu_copy(policy)
    report = ParityReport(tolerance=tolerance)
    generator = np.random.default_rng(0)
    shapes = group_shapes(policy)
    mean = {group: np.zeros(shape) for group, shape in shapes.items()}
    std = {group: np.ones(shape) for group, shape in shapes.items()}
    replays: list[tuple[Obs, NDArray[np.bool_], float, bool]] = []
    if recording is not None:
        obs, done, report.left_out = finite_part(recording, shapes)
        if too_few(done.size, report.left_out):
            raise ExportError(
                f"only {done.size} of the {done.size + report.left_out} recorded observations are finite, which is too "
                "few to check the file with; record anew with an env, or export another checkpoint"
            )
        for group, values in obs.items():
            if values.is_floating_point():
                flat = values.flatten(0, 1).double().numpy()  # [T * M, ...]
                mean[group], std[group] = flat.mean(axis=0), flat.std(axis=0)
        replays.append((obs, done, 1.0, True))
        if reference.initial_state(1):
            replays.append((*_prolonged(obs, done), 1.0, False))
            report.steps = len(replays[-1][1])
        report.recorded_samples = done.size
        report.source = "recorded and random observations"
    numbers = [group for group, shape in shapes.items() if not _bounded(runner, group, shape)]
    rows = (IMAGE_STEPS if any(len(shape) > 1 for shape in shapes.values()) else RANDOM_SHAPE[0], RANDOM_SHAPE[1])
    for far in (1.0, OUTLIER) if numbers else (1.0,):
        obs = {}
        for group, shape in shapes.items():
            if group in numbers:
                normal = generator.standard_normal((*rows, *shape))
                obs[group] = torch.from_numpy(mean[group] + far * std[group] * normal).float()  # [T, M, ...]
            elif len(shape) == 1:
                obs[group] = _random_mask(generator, rows, shape[0], runner.metadata.get("action_parts"))
            else:
                obs[group] = torch.from_numpy(generator.integers(0, 256, (*rows, *shape), dtype=np.uint8))
        replays.append((obs, generator.random(rows) < END_RATE, far, True))
    for obs, done, far, follow in replays:
        _replay(runner, reference, obs, done, far, std, report, follow)
        if runner.dynamic:  # one row is what a robot will send
            _replay(runner, reference, {g: x[:, :1] for g, x in obs.items()}, done[:, :1], far, std, report, follow)
    return report


def cpu_copy(policy: Policy) -> Policy:
    """Copy a policy to the CPU in evaluation mode, leaving the original's device, mode and gradients alone."""
    return copy.deepcopy(policy).to("cpu").eval().requires_grad_(False)


def _bounded(runner: OnnxPolicy, group: str, shape: tuple[int, ...]) -> bool:
    """Whether a group holds what cannot be far out: pixels of uint8, or which choices there are."""
    return group in runner.groups and (len(shape) == 1 or runner.groups[group].uint8)


def _random_mask(generator: np.random.Generator, rows: tuple[int, int], size: int, parts: Any) -> Tensor:
    """Masks ``[T, M, K]`` that allow one choice at least of each part."""
    mask = generator.integers(0, 2, (*rows, size)).astype(np.float32)
    start = 0
    for choices in parts or [size]:
        allowed = start + generator.integers(0, choices, (*rows, 1))  # [T, M, 1]
        np.put_along_axis(mask, allowed, 1.0, -1)
        start += choices
    return torch.from_numpy(mask)


def _prolonged(obs: Obs, done: NDArray[np.bool_]) -> tuple[Obs, NDArray[np.bool_]]:
    """Repeat a sequence until it is long enough."""
    times = -(-SEQUENCE_STEPS // len(done))
    return {group: torch.cat([x] * times) for group, x in obs.items()}, np.tile(done, (times, 1))


@torch.no_grad()
def _replay(
    runner: OnnxPolicy,
    reference: Policy,
    obs: Obs,
    done: NDArray[np.bool_],
    far: float,
    std: Mapping[str, NDArray[Any]],
    report: ParityReport,
    follow: bool,
) -> None:
    """Drive file and policy through ``[T, M]`` observations and enter the differences into the report.

    With ``follow`` the file is given the policy's state before every step; without, only actions are compared.
    """
    num_steps, num_rows = done.shape
    state: State = tuple(s.cpu() for s in reference.initial_state(num_rows))
    runner.reset()
    pairs: dict[str, list[tuple[NDArray[Any], NDArray[Any]]]] = {}
    for t in range(num_steps):
        now = {group: x[t] for group, x in obs.items()}
        before = state
        gated, probability = None, None
        if reference.inferred_tasks:
            action, probability, state = reference.inferring(now, before)
        elif reference.gate is None:
            action, state = reference(now, before)
        else:
            gated, state = reference.judged(now, before)
            action = gated.action
        if follow and t > 0:
            runner.state = [s.numpy() for s in before]
        arrays = {group: x.numpy() for group, x in now.items()}
        got = runner(arrays if runner.groups else np.concatenate(list(arrays.values()), axis=-1))
        if got.shape != tuple(action.shape) or len(runner.state) != len(state):
            raise ExportError(
                f"the file gives actions {got.shape} and {len(runner.state)} state outputs, "
                f"the policy {tuple(action.shape)} and {len(state)}; it is not the file of this policy"
            )
        if gated is not None and runner.risk is None:
            raise ExportError("the file has no output 'risk', and the policy a gate; it is not the file of this policy")
        if gated is not None:
            got = _decided(gated, got, report)
            pairs.setdefault("risk", []).append((gated.risk.unsqueeze(-1).numpy(), np.asarray(runner.risk)[:, None]))
        if probability is not None:
            if runner.task_probability is None:
                raise ExportError("the file has no output 'task_probability'; it is not the file of this policy")
            pairs.setdefault("task_probability", []).append((probability.numpy(), runner.task_probability))
        if action.is_floating_point():
            pairs.setdefault("actions", []).append((action.numpy(), got))
        else:
            report.discrete = True
            _compare_choices(reference, now, before, action, got, std, report)
        for name, expected, actual in zip(("h_out", "c_out"), state, runner.state, strict=False):
            pairs.setdefault(name, []).append((expected.numpy(), actual))
        keep = torch.from_numpy(~done[t])  # [M]
        state = tuple(s * keep[None, :, None] for s in state)
        runner.reset(done[t])
    report.samples += num_steps * num_rows
    for name, steps in pairs.items():
        wanted, actual = (np.stack([pair[i] for pair in steps]) for i in range(2))
        if follow or name in ("actions", "risk", "task_probability"):
            _compare(name, wanted, actual, far, report)
        else:
            report.state_drift = max(report.state_drift, float(np.abs(actual - wanted).max()))


def _decided(gated: Gated, got: NDArray[Any], report: ParityReport) -> NDArray[Any]:
    """The file's actions ``[M, A]``, with the policy's where a close call of the gate went the other way."""
    wanted = gated.action.numpy()
    size = np.maximum(1.0, np.abs(wanted).max(-1))  # [M]
    other = np.abs(got - wanted).max(-1) > report.tolerance * size  # false for NaN
    close = other & np.isfinite(got).all(-1) & (gated.margin.numpy() < CLOSE)
    report.close_calls += int(close.sum())
    return np.where(close[:, None], wanted, got)


def _compare(name: str, expected: NDArray[Any], actual: NDArray[Any], far: float, report: ParityReport) -> None:
    if not np.isfinite(expected).all():
        raise ExportError(f"the policy's own output '{name}' is not finite; train anew or export an earlier checkpoint")
    size = expected.shape[-1]
    difference = np.abs(actual.astype(np.float64) - expected).reshape(-1, size)
    largest = np.where(np.isfinite(difference), difference, np.inf).max(axis=0)  # [size]
    judged = largest / (far * np.maximum(1.0, np.abs(expected).reshape(-1, size).max(axis=0)))  # [size]
    if far == 1.0:
        report.max_abs_error = max(report.max_abs_error, float(largest.max()))
    else:
        report.outlier_max_abs_error = max(report.outlier_max_abs_error, float(largest.max()))
    worst = int(judged.argmax())
    if judged[worst] > report.error:
        report.error = float(judged[worst])
        report.worst_output = f"{name}[{worst}]"


def _compare_choices(
    reference: Policy,
    obs: Obs,
    state: State,
    action: Tensor,
    got: NDArray[Any],
    std: Mapping[str, NDArray[Any]],
    report: ParityReport,
) -> None:
    """Count rows with another index; a row is a tie if nudging its observation makes the policy choose that index."""
    generator = torch.Generator().manual_seed(0)
    masks = [group for group, shape in reference.raw_shapes.items() if len(shape) == 1]
    for row in np.flatnonzero((got != action.numpy()).reshape(len(got), -1).any(axis=1)):
        nudged = {}
        for group, values in obs.items():
            x = scaled(values[row])  # [...]
            reach = report.tolerance * torch.maximum(x.abs(), torch.from_numpy(std[group]).float())
            nudge = 2 * torch.rand(256, *x.shape, generator=generator) - 1  # [256, ...]
            nudged[group] = x.expand_as(nudge) if group in masks else x + reach * nudge
        choices, _ = reference(nudged, tuple(s[:, row : row + 1].expand(-1, 256, -1).contiguous() for s in state))
        if bool((choices == torch.from_numpy(np.asarray(got[row]))).any(0).all()):  # [256] or [256, D]
            report.ties += 1
        else:
            report.mismatches += 1
