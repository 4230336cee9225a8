"""Envs of envpool: pools of its own, stepped by threads of C++, as gymnasium vector envs."""

from __future__ import annotations

import importlib
import random
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import NDArray

from rlcore.envs import unknown_option
from rlcore.names import nearest_names

if TYPE_CHECKING:
    from rlcore.envs.gymnasium import GymnasiumEnv

ENVPOOL_PREFIX = "envpool:"

SEEDS = 2**31
"""How many there are: envpool has them in int32."""

NO_LIMIT = np.iinfo(np.int32).max
"""``max_episode_steps`` of a pool whose episodes are not cut."""

_OURS = ("num_envs", "seed", "env_seed", "batch_size", "max_num_players", "base_path", "gym_reset_return_info")
"""Settings of a pool that are no options of a task."""


def is_pool(env: Any) -> bool:
    """Whether something is a pool of envpool's, of whatever ``env_type``."""
    return all(hasattr(env, name) for name in ("config", "all_env_ids", "send", "recv"))


def with_reset_seed(env: Any, same_step: bool = False) -> Any:
    """A pool, or vector wrappers around one, as a ``SeededPool``; everything else, and such a one, as it is.

    Raises:
        ValueError: the pool is none of gymnasium's, or does not step all its envs together.
    """
    pool = getattr(env, "unwrapped", env)
    if not is_pool(pool) or isinstance(env, SeededPool):
        return env
    name, config = type(pool).__name__, pool.config
    if not isinstance(env, VectorEnv):
        raise ValueError(
            f"{name} is no gymnasium VectorEnv; make it by envpool.make(id, env_type='gymnasium', num_envs=N), with an "
            "envpool whose pools are such (1.2.5, say)"
        )
    if config["batch_size"] != config["num_envs"]:
        raise ValueError(
            f"{name}: batch_size is {config['batch_size']} of {config['num_envs']} envs; leave it out, since all are "
            "stepped together"
        )
    if config.get("max_num_players", 1) != 1:
        raise ValueError(f"{name}: max_num_players is {config['max_num_players']}; give a task of one player")
    return SeededPool(env, same_step)


class SeededPool(VectorWrapper[Any, Any, Any]):
    """A pool whose ``reset`` takes a seed: as envpool fixes seeds when a pool is made, it is made anew for one.

    Args:
        env: a pool, or vector wrappers around one.
        same_step: whoever steps it begins episodes in the step that ended others, by ``reset`` with a mask.
    """

    spec = None
    """A pool's is none of gymnasium's."""

    def __init__(self, env: Any, same_step: bool = False) -> None:
        super().__init__(env)
        self._latest: Any = None
        if same_step:
            self.metadata = {**env.metadata, "autoreset_mode": AutoresetMode.DISABLED}

    @property
    def max_episode_steps(self) -> int | None:
        """The pool's time limit, None where it has none."""
        limit = int(self.unwrapped.config.get("max_episode_steps", NO_LIMIT))  # type: ignore[attr-defined]
        return limit if limit < NO_LIMIT else None

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step every env."""
        answer = self.env.step(actions)
        self._latest = answer[0]
        return answer

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start a new episode in every env, or where ``options["reset_mask"]`` is; env i is seeded with ``seed + i``.

        Observations are those of all envs, where a pool gives those of the envs that begin.
        """
        if options and "reset_mask" in options:
            begun, info = self.env.reset(options=options)
            return _put(self._latest, options["reset_mask"], begun), info
        if seed is not None:
            inner: Any = self
            while isinstance(inner.env, VectorWrapper):
                inner = inner.env
            old, kind = inner.env, type(inner.env.spec)
            settings = {**old.config, "env_seed": [], "seed": seed % SEEDS}
            inner.env = type(old)(kind(kind.gen_config(**settings)))
            # envpool.make sets these on a pool that it has made.
            vars(inner.env).update({name: x for name, x in vars(old).items() if name.startswith("_render")})
            old.close()
        return self.env.reset(options=options)


def _put(whole: Any, where: NDArray[np.bool_], rows: Any) -> Any:
    """Observations of all envs with those of some in their place."""
    if isinstance(whole, Mapping):
        return {name: _put(part, where, rows[name]) for name, part in whole.items()}
    if isinstance(whole, tuple):
        return tuple(_put(part, where, own) for part, own in zip(whole, rows, strict=True))
    whole = np.array(whole)
    whole[where] = rows
    return whole


def make_envpool(
    env_id: str,
    num_envs: int,
    device: str | torch.device = "cpu",
    seed: int | None = None,
    *,
    autoreset: str = "next_step",
    **options: Any,
) -> GymnasiumEnv:
    """Build a pool from an id of envpool's.

    Args:
        env_id: as for ``envpool.make``.
        num_envs: N.
        device: where observations and rewards go.
        seed: of the pool; ``None`` draws one, where envpool itself would take 42.
        autoreset: ``next_step``, as pools do: the step after an episode's last begins the next one, and is none of
            either; ``same_step``: the last step does so, which trials need, and where episodes end at different times
            the others wait for it.
        **options: for ``envpool.make``, such as ``max_episode_steps``, ``num_threads`` and ``render_mode``, and the
            task's own.

    Raises:
        ValueError: envpool is not installed, an unknown id or option, or what ``GymnasiumEnv`` refuses.
    """
    from rlcore.envs.gymnasium import GymnasiumEnv

    task = f"{ENVPOOL_PREFIX}{env_id}"
    if autoreset not in ("next_step", "same_step"):
        raise ValueError(f"{task}: autoreset is {autoreset!r:.80}; use 'next_step' or 'same_step'")
    try:
        envpool: Any = importlib.import_module("envpool")
    except ModuleNotFoundError as error:
        raise ValueError(f"{task}: envpool is not installed; run: pip install envpool") from error
    ids = envpool.list_all_envs()
    if env_id not in ids:
        nearest = nearest_names(env_id, ids)
        hint = f"did you mean {', '.join(nearest)}?" if nearest else "envpool.list_all_envs() tells what it has"
        raise ValueError(f"{task}: envpool has no '{env_id}'; {hint}")
    seed = random.SystemRandom().randrange(SEEDS) if seed is None else seed % SEEDS
    try:
        pool = envpool.make(env_id, env_type="gymnasium", num_envs=num_envs, seed=seed, **options)
    except Exception as error:
        refused = re.search(r"argument '(\w+)'", str(error)) if isinstance(error, TypeError) else None
        if refused is not None and refused[1] in options:
            valid = [*envpool.make_spec(env_id).config._fields, "render_mode", "autoreset"]
            raise ValueError(unknown_option(task, refused[1], [x for x in valid if x not in _OURS])) from error
        given = ", ".join(f"{name}={value!r:.80}" for name, value in options.items()) or "no options"
        reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
        raise ValueError(f"{task}: cannot be made with {given}: {reason}; check the options") from error
    try:
        return GymnasiumEnv(with_reset_seed(pool, autoreset == "same_step"), device, task=task)
    except ValueError:
        pool.close()
        raise
