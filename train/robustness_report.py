"""What a policy's episodes under disturbances come to, as plain figures, a table and a line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from rlcore.train.degradation import (
    RESAMPLES,
    area,
    crossing,
    falling_fit,
    ratio_bootstrap,
    return_ratio,
    value_at_risk,
)
from rlcore.train.intervals import t_interval, wilson_interval
from rlcore.train.robustness import Measured, Outcome
from rlcore.train.robustness_plan import PUSH, Plan, Sweep

MOST = 2.0
"""What a share of the nominal return counts as at most in areas and fits."""

Figures = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What cells of all policies are measured by."""

    reference: Outcome
    """The nominal episodes whose mean return is 1."""
    success: bool
    """Whether the score is success, which the task reports; else it is the share of the nominal return."""
    least: float
    """A score below this is a breakdown."""
    paired: bool
    seed: int


def figures_of(label: str, measured: Measured, plan: Plan, scale: Scale) -> Figures:
    """Everything that robustness.json says of a policy."""
    cells = {_key(o): _cell(o, scale, measured.paired) for o in (measured.nominal, *measured.outcomes)}

    def found(cell: Mapping[str, float]) -> Figures:
        return cells[_sorted(cell)] if plan.is_disturbed(cell) else cells[()]

    types = []
    for sweep in plan.sweeps:
        places = [{"magnitude": m} | found({sweep.name: m}) for m in sweep.magnitudes]
        types.append(_type(sweep, places, scale))
    result: Figures = {
        "label": label,
        "nominal": cells[()],
        "types": types,
        "worst": _worst(types),
        "batch": measured.batch,
        "paired": measured.paired,
        "push_step": measured.push_step,
    }
    if types:
        result["area_mean"] = sum(entry["area"] for entry in types) / len(types)
    if plan.grid:
        result["grid"] = _grid(plan, [{"at": dict(cell)} | found(cell) for cell in plan.grid_cells], cells[()])
    if measured.nominal_differs is not None:
        result["nominal_in_batch_differs"] = measured.nominal_differs
    return result


def _key(outcome: Outcome) -> tuple[tuple[str, float], ...]:
    return _sorted(outcome.cell)


def _sorted(cell: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(cell.items()))


def _cell(outcome: Outcome, scale: Scale, paired: bool) -> Figures:
    returns = outcome.returns[outcome.finished]
    nominal = scale.reference.returns
    result: Figures = {"episodes": len(returns), "unfinished": int((~outcome.finished).sum())}
    mean, share, low, high = math.nan, math.nan, -math.inf, math.inf
    if len(returns):
        mean = float(returns.mean())
        share = float(return_ratio(returns.mean(), nominal[nominal.isfinite()].mean()))
        low, high = ratio_bootstrap(outcome.returns, nominal, paired=paired and scale.paired, seed=scale.seed)
        result |= {"length_mean": float(outcome.lengths[outcome.finished].double().mean())}
    if outcome is scale.reference:
        low = high = share  # of itself
    result |= {
        "return_mean": mean,
        "return_ci95": list(t_interval(returns)),
        "return_cvar10": value_at_risk(returns),
        "return_share": share,
        "return_share_ci95": [low, high],
    }
    if outcome.successes is not None and outcome.goals is not None:
        goals = round(float(outcome.goals.sum()))
        success = float(outcome.successes.sum()) / goals if goals else math.nan
        result |= {"success": success, "goals": goals}
        result["success_ci95"] = list(wilson_interval(success, goals)) if goals else [0.0, 1.0]
    if outcome.recovery is not None:
        result["recovery"] = _recovery(outcome)
    name = "success" if scale.success else "return_share"
    result |= {"score": result.get(name, math.nan), "score_ci95": result.get(f"{name}_ci95", [-math.inf, math.inf])}
    return result


def _recovery(outcome: Outcome) -> Figures:
    assert outcome.recovery is not None
    steps = outcome.recovery[~outcome.recovery.isnan()]  # of those that were still going when they were pushed
    back = int(steps.isfinite().sum())
    median = float(steps.sort().values[(len(steps) - 1) // 2]) if len(steps) else math.nan
    return {
        "pushed": len(steps),
        "recovered": back,
        "recovered_ci95": list(wilson_interval(back / len(steps), len(steps))) if len(steps) else [0.0, 1.0],
        "steps_median": median,
    }


def _type(sweep: Sweep, places: Sequence[Figures], scale: Scale) -> Figures:
    scores = [_counted(place["score"]) for place in places]
    weights = [float(place.get("goals", 0) if scale.success else place["episodes"]) for place in places]
    middle = sweep.magnitudes.index(sweep.nominal)
    breakdown: dict[str, float | None] = {}
    monotone = True
    for side, order in (("below", range(middle, -1, -1)), ("above", range(middle, len(places)))):
        if len(order) < 2:
            continue
        fit = falling_fit([scores[i] for i in order], [max(weights[i], 1e-9) for i in order])
        distances = [abs(sweep.magnitudes[i] - sweep.nominal) for i in order]
        distance = crossing(distances, fit, scale.least)
        sign = -1 if side == "below" else 1
        breakdown[side] = None if distance is None else sweep.nominal + sign * distance
        bounds = [places[i]["score_ci95"] for i in order]
        # Not where one interval is above that of a smaller disturbance.
        monotone &= all(low <= high + 1e-9 for i, (_, high) in enumerate(bounds) for low, _ in bounds[i + 1 :])
    return {
        "name": sweep.name,
        "unit": sweep.unit,
        "nominal": sweep.nominal,
        "area": area(sweep.magnitudes, scores),
        "breakdown": breakdown,
        "monotone": monotone,
        "cells": list(places),
    }


def _counted(score: float) -> float:
    """A score for areas and fits: finite, and nothing where there is none."""
    return 0.0 if math.isnan(score) else min(score, MOST)


def _grid(plan: Plan, places: Sequence[Figures], nominal: Figures) -> Figures:
    mean = sum(_counted(place["score"]) for place in places) / len(places)
    return {
        "types": [
            {"name": s.name, "unit": s.unit, "nominal": s.nominal, "magnitudes": list(s.magnitudes)} for s in plan.grid
        ],
        "cells": list(places),
        "score_mean": mean,
        "score_mean_of_nominal": mean / nominal["score"] if nominal["score"] else math.nan,
        "worst": min(places, key=lambda place: _counted(place["score"])),
    }


def _worst(types: Sequence[Figures]) -> Figures | None:
    places = [
        {"type": t["name"], "unit": t["unit"], **cell}
        for t in types
        for cell in t["cells"]
        if cell["magnitude"] != t["nominal"]
    ]
    return min(places, key=lambda place: _counted(place["score"])) if places else None


def percent(score: float) -> str:
    """A score for people."""
    return "none" if math.isnan(score) else f"{100 * min(score, 9.99):.0f} %"


def magnitude_text(magnitude: float, unit: str) -> str:
    """A magnitude with its unit."""
    return f"{magnitude:.3g} {unit}".strip()


def breakdown_text(entry: Mapping[str, Any]) -> str:
    """Where a type breaks a policy, in words."""
    if entry["nominal"] in entry["breakdown"].values():
        return "undisturbed already"
    parts = []
    for side, value in entry["breakdown"].items():
        last = entry["cells"][0 if side == "below" else -1]["magnitude"]
        parts.append(f"none to {last:.3g}" if value is None else f"{value:.3g}")
    return f"{' and '.join(parts)} {entry['unit']}".strip()


def score_text(success: bool) -> str:
    """What the scores are, in words."""
    return "success" if success else "share of the nominal return"


def cells_table(figures: Figures, success: bool) -> Table:
    """A row for each cell."""
    table = Table(title=f"{figures['label']}: {score_text(success)}", title_justify="left")
    for name in ("type", "magnitude", score_text(success), "95% interval", "return", "worst 10%", "back after a push"):
        table.add_column(name, justify="left" if name == "type" else "right")
    for entry in figures["types"]:
        for i, cell in enumerate(entry["cells"]):
            table.add_row(
                entry["name"] if i == 0 else "",
                magnitude_text(cell["magnitude"], entry["unit"]),
                percent(cell["score"]),
                interval_text(cell["score_ci95"]),
                f"{cell['return_mean']:.4g}",
                f"{cell['return_cvar10']:.4g}",
                recovery_text(cell) if entry["name"] == PUSH else "",
            )
        table.add_section()
    return table


def types_table(all_figures: Sequence[Figures], success: bool) -> Table:
    """A row for each type and policy: area and breakdown."""
    table = Table(title=f"over all magnitudes: {score_text(success)}", title_justify="left")
    for name in ("type", "policy", "mean over magnitudes", "worst", "breaks down at", "falls within intervals"):
        table.add_column(name, justify="left" if name in ("type", "policy") else "right")
    for i, entry in enumerate(all_figures[0]["types"]):
        for figures in all_figures:
            own = figures["types"][i]
            worst = min(own["cells"], key=lambda cell: _counted(cell["score"]))
            table.add_row(
                entry["name"] if figures is all_figures[0] else "",
                figures["label"],
                percent(own["area"]),
                f"{percent(worst['score'])} at {magnitude_text(worst['magnitude'], own['unit'])}",
                breakdown_text(own),
                "yes" if own["monotone"] else "no",
            )
        table.add_section()
    return table


def area_lines(all_figures: Sequence[Figures], success: bool) -> list[str]:
    """Areas over all types of each policy, beside those of the first; nothing where no types were tried."""
    first, *_ = all_figures
    lines = []
    for figures in all_figures if first["types"] else ():
        area, nominal = figures["area_mean"], figures["nominal"]
        text = f"area         {figures['label']}: {percent(area)} {score_text(success)}, mean over magnitudes and types"
        if figures is not first:
            least = first["area_mean"]
            times = f"{area / least:.3f} times" if least else "not to be compared with"
            text += f"; {times} that of {first['label']}, with {percent(nominal['return_share'])} of its nominal return"
        lines.append(text)
    return lines


def unmoved_lines(all_figures: Sequence[Figures]) -> list[str]:
    """Policies that return the same whatever was tried: they may be robust, and may as well do nothing that counts."""
    return [
        f"note         {figures['label']}: all cells return the nominal {nominal:.4g} and nothing else, which says "
        "little of a policy that does not solve the task"
        for figures in all_figures
        for nominal in [figures["nominal"]["return_mean"]]
        if figures["types"] and all(c["return_mean"] == nominal for t in figures["types"] for c in t["cells"])
    ]


def grid_lines(figures: Figures) -> list[str]:
    """The grid of a policy, where there is one."""
    grid = figures.get("grid")
    if grid is None:
        return []
    names = " × ".join(t["name"] for t in grid["types"])
    units = {t["name"]: t["unit"] for t in grid["types"]}
    worst = grid["worst"]
    at = ", ".join(f"{name} {magnitude_text(m, units[name])}" for name, m in worst["at"].items())
    return [
        f"grid         {figures['label']}: {names}, {len(grid['cells'])} cells: {percent(grid['score_mean'])} in the "
        f"mean, {percent(grid['score_mean_of_nominal'])} of nominal; worst {percent(worst['score'])} "
        f"(return {worst['return_mean']:.4g}) at {at}"
    ]


def interval_text(bounds: Sequence[float]) -> str:
    """An interval of scores; nothing for what all are measured by."""
    low, high = bounds
    if low == high:
        return ""
    return f"{percent(low)} to {percent(high)}" if math.isfinite(low) and math.isfinite(high) else "unknown"


def recovery_text(cell: Mapping[str, Any]) -> str:
    """What came of a push, in words."""
    recovery = cell.get("recovery")
    if not recovery or not recovery["pushed"]:
        return ""
    share = recovery["recovered"] / recovery["pushed"]
    median = recovery["steps_median"]
    after = f", median {median:.0f} steps" if math.isfinite(median) else ""
    return f"{percent(share)}{after}"


def policy_line(figures: Figures, success: bool, task: str, episodes: int) -> str:
    """One line for the README of a policy."""
    nominal, worst, grid = figures["nominal"], figures["worst"], figures.get("grid")
    of_success = f"success {percent(nominal['score'])}"
    parts = ["nominal " + (of_success if success else f"return {nominal['return_mean']:.4g}")]
    if figures["types"]:
        limits = "; ".join(f"{entry['name']} {breakdown_text(entry)}" for entry in figures["types"])
        parts.append(f"breaks down at: {limits}")
    if worst is not None:
        at = f"{worst['type']} {magnitude_text(worst['magnitude'], worst['unit'])}"
        parts.append(f"worst cell {at}, {score_text(success)} {percent(worst['score'])}")
    if grid is not None:
        names = " x ".join(entry["name"] for entry in grid["types"])
        parts.append(f"over {names} {percent(grid['score_mean'])}, at worst {percent(grid['worst']['score'])}")
    return f"Robustness on {task}, {episodes} episode{'s' * (episodes != 1)} a cell: {'; '.join(parts)}."


ABOUT = (
    "95% intervals: Wilson's score of success, Student's t of mean returns, the bootstrap percentiles "
    f"({RESAMPLES} samples) of shares of the nominal return"
)


def how_text(measured: Measured) -> str:
    """How the cells were measured, in a line."""
    nominal = "nominal: an evaluation by itself"
    if measured.batch == "cells":
        return f"cells: one after the other, from the same seed; {nominal}"
    if not measured.paired:
        draws = ", ".join(measured.unshared)
        why = f" ({draws} draws in a way that cannot be shared)" if draws else ""
        return f"cells: all in one batch, with random numbers of their own{why}; {nominal}"
    differs = f"from which the nominal cell of the batch differs by {measured.nominal_differs:.2g} in a return at most"
    return f"cells: all in one batch, with the same random numbers; {nominal}, {differs}"
