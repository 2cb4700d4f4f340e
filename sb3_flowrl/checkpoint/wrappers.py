"""The states of SB3's wrappers around the environments, such as the statistics of ``VecNormalize``."""

import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

#: Attributes of SB3's wrappers that are restored.
WRAPPER_STATE: dict[type[VecEnvWrapper], tuple[str, ...]] = {
    VecNormalize: ("obs_rms", "ret_rms", "returns", "old_obs", "old_reward"),
    VecFrameStack: ("stacked_obs",),
    VecMonitor: ("episode_returns", "episode_lengths", "episode_count"),
    VecTransposeImage: (),
    VecCheckNan: (),
    VecExtractDictObs: (),
}
#: Options of SB3's wrappers. The user's options are kept, with a warning if they differ from the run's.
WRAPPER_OPTIONS: dict[type[VecEnvWrapper], tuple[str, ...]] = {
    VecNormalize: ("training", "norm_obs", "norm_reward", "norm_obs_keys", "clip_obs", "clip_reward", "gamma", "epsilon"),
}


def wrappers(env: VecEnv) -> Iterator[VecEnvWrapper]:
    """
    Yield the wrappers of the environments, outermost first.

    :param env: the environments
    :return: their wrappers
    """
    while isinstance(env, VecEnvWrapper):
        yield env
        env = env.venv


def wrapper_states(env: VecEnv) -> list[tuple[str, dict[str, Any]]]:
    """
    Return the states and options of the environments' wrappers.

    :param env: the environments
    :return: for each wrapper, outermost first, its name and its state and options
    """
    return [
        (
            type(wrapper).__name__,
            {
                name: vars(wrapper)[name]
                for names in (WRAPPER_OPTIONS, WRAPPER_STATE)
                for name in names.get(type(wrapper), ())
                if name in vars(wrapper)
            },
        )
        for wrapper in wrappers(env)
    ]


def warn_of_lost_states(env: VecEnv) -> None:
    """
    Warn about wrappers whose state a checkpoint does not hold.

    :param env: the environments
    """
    unknown = [type(wrapper).__name__ for wrapper in wrappers(env) if type(wrapper) not in WRAPPER_STATE]
    if isinstance(base := env.unwrapped, DummyVecEnv):
        each = base.envs[0]
        while isinstance(each, gym.Wrapper):
            if isinstance(each, (gym.wrappers.NormalizeObservation, gym.wrappers.NormalizeReward)):
                unknown.append(type(each).__name__)
            each = each.env
    if unknown:
        warnings.warn(
            f"The checkpoint does not hold the state of {', '.join(unknown)}, so a run that is resumed from it may differ "
            "from this one. To normalize observations or rewards, use stable_baselines3's VecNormalize. The checkpoint holds "
            "its state."
        )


def restore_wrapper_states(env: VecEnv, states: list[tuple[str, dict[str, Any]]]) -> bool:
    """
    Restore statistics and other states of the wrappers, but not their options.

    A warning names the options that differ from the run's.

    :param env: the environments
    :param states: what :func:`wrapper_states` returned
    :return: whether all options are the run's
    :raises ValueError: if the environments are not wrapped as they were
    """
    here, there = [type(wrapper).__name__ for wrapper in wrappers(env)], [name for name, _ in states]
    if here != there:
        raise ValueError(
            f"The checkpoint's environment has the wrappers {there or 'none'} (outermost first), but the one given has "
            f"{here or 'none'}. Wrap it in the same way. The statistics of VecNormalize come from the checkpoint."
        )
    others: list[str] = []
    for wrapper, (class_name, state) in zip(wrappers(env), states, strict=True):
        for name, value in state.items():
            if name not in WRAPPER_OPTIONS.get(type(wrapper), ()):
                setattr(wrapper, name, _merge_statistics(vars(wrapper).get(name), value) if name == "obs_rms" else value)
            elif getattr(wrapper, name) != value:
                others.append(f"{class_name}({name}={getattr(wrapper, name)!r}), which was {value!r} in the run")
    if others:
        warnings.warn(
            f"The environment given has other options than the checkpoint's: {'; '.join(others)}. The options given are kept, "
            "with the checkpoint's statistics, so training does not continue as it would have."
        )
    return not others


def _merge_statistics(given: Any, saved: Any) -> Any:
    """Return the saved statistics, and the given ones for the keys of a Dict observation that the run did not normalize."""
    if isinstance(given, dict) and isinstance(saved, dict):
        return {key: saved.get(key, statistics) for key, statistics in given.items()}
    return saved
