"""Check environments: their kind, their actions and their observations."""

import warnings
from typing import Any

import numpy as np
from gymnasium import Env, spaces
from gymnasium.envs.registration import registry
from gymnasium.vector import VectorEnv
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.patch_gym import _patch_env

#: Width of an action space from which a warning says what it may do to exploration: that of Isaac Lab's bounds of ±100.
WIDE_BOUNDS = 200.0

#: Packages whose environments have another interface, and how to train in them.
_OTHER_PACKAGES = {
    "envpool": (
        "is a batch of EnvPool's environments. Wrap it: sb3_flowrl.envs.vector.GymnasiumVecEnv("
        "sb3_flowrl.envs.envpool.EnvPoolVectorEnv(pool))."
    ),
    "mujoco_playground": (
        "is an environment of MuJoCo Playground, whose reset and step are functions of a state. Import sb3_flowrl.envs, and "
        'make it as sb3_flowrl.envs.vector.GymnasiumVecEnv(gymnasium.make_vec("playground/CheetahRun", num_envs=16)).'
    ),
}


class UnsupportedActionSpaceError(ValueError, AssertionError):
    """
    The environment's action space is not a bounded Box.

    It is also an ``AssertionError``, which SB3's own algorithms raise.
    """


class UnsupportedObservationSpaceError(ValueError, AssertionError):
    """
    The policy does not support the observation space.

    It is also an ``AssertionError``, which SB3's own policies raise.
    """


def check_action_space(action_space: spaces.Space[Any]) -> None:
    """
    Check that an action space is supported.

    :param action_space: the environment's action space
    :raises UnsupportedActionSpaceError: if it is not a ``Box`` of floating-point numbers with finite bounds, low below high
    """
    if not isinstance(action_space, spaces.Box):
        raise UnsupportedActionSpaceError(
            f"FlowRL only supports continuous actions (a gymnasium Box), but the environment's action space is "
            f"{action_space}. For discrete actions use an algorithm such as stable_baselines3.DQN or sb3_contrib.QRDQN."
        )
    low, high = np.asarray(action_space.low), np.asarray(action_space.high)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise UnsupportedActionSpaceError(
            f"The environment's continuous action space must have finite bounds, but it is {action_space} with "
            f"low={low} and high={high}. Give it others: "
            "gymnasium.wrappers.TransformAction(env, lambda action: action, Box(-1.0, 1.0, env.action_space.shape))."
        )
    if action_space.dtype not in (np.float16, np.float32, np.float64):
        raise UnsupportedActionSpaceError(
            f"The environment's action space {action_space} does not hold floating-point numbers, so actions scaled to "
            "[-1, 1] can't be stored. Give it dtype=np.float32, and round in the environment."
        )
    if action_space.shape is not None and 0 in action_space.shape:
        raise UnsupportedActionSpaceError(
            f"The environment's action space {action_space} is empty: it has a dimension of size 0."
        )
    with np.errstate(over="ignore"):
        if not np.isfinite(high - low).all():
            raise UnsupportedActionSpaceError(
                f"The bounds of the environment's action space {action_space} are so far apart that high - low is infinite. "
                "Wrap the environment in gymnasium.wrappers.RescaleAction."
            )
    if not (low < high).all():
        raise UnsupportedActionSpaceError(
            f"Every dimension of the action space must have low < high, but low={low} and high={high}. "
            "Remove the dimensions that allow no choice."
        )


def warn_of_wide_bounds(action_space: spaces.Box) -> None:
    """
    Warn about actions whose bounds are so wide that they seem to stand for none.

    :param action_space: the environment's action space, which is supported
    """
    low, high = np.asarray(action_space.low, np.float64), np.asarray(action_space.high, np.float64)
    widest = np.argmax(high - low)
    if (high - low).flat[widest] >= WIDE_BOUNDS:
        warnings.warn(
            f"The bounds of the environment's actions are as wide as {low.flat[widest]:g} to {high.flat[widest]:g}, and "
            "FlowRL's actions spread over all of this range. If the environment needs only a small part of it, learning may "
            "fail. Narrow the bounds: gymnasium.wrappers.TransformAction(env, lambda action: action, "
            "gymnasium.spaces.Box(-1.0, 1.0, env.action_space.shape)). If it needs the whole range, "
            "gymnasium.wrappers.RescaleAction(env, -1.0, 1.0) ends this warning."
        )


def as_env(env: Any, verbose: int) -> GymEnv:
    """
    Make an environment from the argument ``env``, and check its actions.

    :param env: as given to ``FlowRL``
    :param verbose: as given to ``FlowRL``
    :return: the environment; an environment of OpenAI's gym is wrapped with shimmy, as in SB3
    :raises ValueError: if it is not an environment
    :raises UnsupportedActionSpaceError: if its action space is not supported
    """
    if isinstance(env, str):
        _check_not_a_vector(env)
    env = maybe_make_env(env, verbose)
    if not isinstance(env, VecEnv):
        env = _as_gymnasium_env(env)
    check_action_space(env.action_space)
    warn_of_wide_bounds(env.action_space)
    return env


def _check_not_a_vector(env_id: str) -> None:
    spec = registry.get(env_id)
    if spec is not None and spec.entry_point is None:
        raise ValueError(
            f"env={env_id!r} exists only as a vector environment. Make it with gymnasium.make_vec, and wrap it in "
            "sb3_flowrl.envs.vector.GymnasiumVecEnv."
        )


def _as_gymnasium_env(env: Any) -> Env:
    for package, advice in _OTHER_PACKAGES.items():
        if any(each.__module__.partition(".")[0] == package for each in type(env).__mro__):
            raise ValueError(f"env={env!r} {advice}")
    if isinstance(env, VectorEnv):
        raise ValueError(
            f"env={env!r} is a vector environment of gymnasium. Wrap it in sb3_flowrl.envs.vector.GymnasiumVecEnv, or make "
            "the environments with stable_baselines3.common.env_util.make_vec_env."
        )
    try:
        return _patch_env(env)
    except ValueError as error:
        raise ValueError(
            f"env={env!r} must be an environment of gymnasium (or of OpenAI's gym, with shimmy installed), a VecEnv, or the "
            'id of a registered environment, such as "Pendulum-v1".'
        ) from error
