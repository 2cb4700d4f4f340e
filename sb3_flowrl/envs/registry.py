"""
Ids of environments that the suites also register when they are imported.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

PACKAGE = "sb3_flowrl.envs"
# What the suites registered under our ids
suites_own: dict[str, EnvSpec] = {}


def register_env(env_id: str, entry_point: str, max_episode_steps: int | None = None, **kwargs: Any) -> None:
    """
    Register an environment, replacing a suite's own environment of that id.

    :param env_id: the id
    :param entry_point: module in this package and the callable in it that makes the environment, such as
        "dm_control:DmControlEnv"
    :param max_episode_steps: steps after which episodes are truncated
    :param kwargs: arguments for that callable
    """
    present = gym.registry.pop(env_id, None)
    if present is not None and not _is_ours(present):
        suites_own[env_id] = present
    gym.register(env_id, entry_point=f"{PACKAGE}.{entry_point}", max_episode_steps=max_episode_steps, kwargs=kwargs)


def register_vector_env(env_id: str, entry_point: str, **kwargs: Any) -> None:
    """
    Register environments that exist only side by side, for ``gymnasium.make_vec``.

    :param env_id: the id
    :param entry_point: as in :func:`register_env`
    :param kwargs: arguments for that callable
    """
    gym.registry.pop(env_id, None)
    gym.register(env_id, vector_entry_point=f"{PACKAGE}.{entry_point}", kwargs=kwargs)


@contextmanager
def ids_kept() -> Iterator[None]:
    """Keep our ids while a suite is imported, without gymnasium's warnings that the suite overrides them."""
    ours = {env_id: spec for env_id, spec in gym.registry.items() if _is_ours(spec)}
    for env_id in ours:
        del gym.registry[env_id]
    try:
        yield
    finally:
        suites_own.update({env_id: gym.registry[env_id] for env_id in ours if env_id in gym.registry})
        gym.registry.update(ours)


def _is_ours(spec: EnvSpec) -> bool:
    return str(spec.entry_point).startswith(PACKAGE)
