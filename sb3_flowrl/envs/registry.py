"""
Ids of environments that the suites register too, when they are imported.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

PACKAGE = "sb3_flowrl.envs"
# What the suites registered under ids that are ours
suites_own: dict[str, EnvSpec] = {}


def register_env(env_id: str, entry_point: str, max_episode_steps: int | None = None, **kwargs: Any) -> None:
    """
    Register an environment, in the place of a suite's of that id.

    :param env_id: the id
    :param entry_point: module in this package and what makes the environment, such as "dm_control:DmControlEnv"
    :param max_episode_steps: steps after which episodes are truncated
    :param kwargs: arguments for what makes the environment
    """
    present = gym.registry.pop(env_id, None)
    if present is not None and not _is_ours(present):
        suites_own[env_id] = present
    gym.register(env_id, entry_point=f"{PACKAGE}.{entry_point}", max_episode_steps=max_episode_steps, kwargs=kwargs)


@contextmanager
def ids_kept() -> Iterator[None]:
    """Let a suite be imported without gymnasium's warnings that it takes ids of ours, and have ours again afterwards."""
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
