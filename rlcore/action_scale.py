"""How a policy's -1..1 is brought to the action bounds of an env."""

from __future__ import annotations

import math

from rlcore.env import EnvSpec

_NO_BOUND = 1e6
"""Action bounds this far out are a way to write that there are none; servo and motor commands stay below."""


def action_scaling(spec: EnvSpec, choice: str) -> tuple[list[float], list[float]] | None:
    """Scale and bias ``[A]`` that bring the policy's -1..1 to the env's action bounds.

    Args:
        spec: of the env.
        choice: ``action_scale`` of the settings.

    Returns:
        Half the width and the middle of each dimension's bounds, 1 and 0 where there are not two; None where actions
        are to be left as they are.
    """
    both = bounded(spec, _NO_BOUND if choice == "auto" else math.inf)
    own = any("scale" in term for term in spec.deployment.get("action_terms", ()))
    if choice == "none" or (choice == "auto" and (own or all(about_one(*pair) for pair in both.values()))):
        return None
    scale, bias = [1.0] * len(spec.action_low), [0.0] * len(spec.action_low)
    for i, (low, high) in both.items():
        scale[i], bias[i] = high / 2 - low / 2, high / 2 + low / 2
    return None if set(scale) <= {1.0} and set(bias) <= {0.0} else (scale, bias)


def bounded(spec: EnvSpec, limit: float = math.inf) -> dict[int, tuple[float, float]]:
    """Bounds of the action dimensions that have two, apart and less than ``limit`` from zero."""
    pairs = enumerate(zip(spec.action_low, spec.action_high, strict=True))
    return {i: pair for i, pair in pairs if pair[0] < pair[1] and max(map(abs, pair)) < limit}


def about_one(low: float, high: float) -> bool:
    """Whether bounds differ from -1..1 by no more than a quarter either way, for which a scale would change little.

    In the bounds of a Pendulum, -2..2, it does: scaled to them PPO needs half as many steps.
    """
    return 0.8 <= -low <= 1.25 and 0.8 <= high <= 1.25
