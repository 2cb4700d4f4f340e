"""
Where a checkpoint can be taken: between two episodes.

A simulator's inner state can't be saved. But the start of an episode can be made again: put the environment's random
generator back into its state before the reset, and reset again. So checkpoints are saved between episodes. Both the run
that is saved and the run that is resumed from the checkpoint start the next episodes in the same way:

- "replayed": The reset that ended the last episodes is made again. It starts from the environments' generators as they were
  before the last step. If it leads to the present generators and observations, it was the same reset, and the checkpoint
  leaves no trace in the run.
- "restarted": Otherwise, the environments are reset once more, and unfinished episodes are truncated, as a time limit would
  do. This happens if episodes are unfinished, or if the environments run in other processes, use their generators in their
  steps, or have a wrapper that is not SB3's.
"""

import contextlib
import copy
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv
from stable_baselines3.her import HerReplayBuffer

from sb3_flowrl.checkpoint.files import CheckpointError
from sb3_flowrl.checkpoint.random_states import (
    GeneratorStates,
    generator_states,
    random_states,
    restore_generator_states,
    restore_random_states,
)
from sb3_flowrl.checkpoint.wrappers import WRAPPER_STATE, restore_wrapper_states, warn_of_lost_states, wrapper_states, wrappers


def is_between_episodes(model: OffPolicyAlgorithm) -> bool:
    """
    Tell whether all environments have just ended an episode.

    :param model: a model that has collected transitions
    :return: whether the last stored transition of every environment ended its episode
    """
    buffer = model.replay_buffer
    assert buffer is not None
    return bool((buffer.full or buffer.pos > 0) and buffer.dones[buffer.pos - 1].all())


def save_episode_start(model: OffPolicyAlgorithm, before_step: GeneratorStates | None) -> dict[str, Any]:
    """
    Start the next episodes of a run that is being saved, as the resumed run will start them.

    :param model: the model
    :param before_step: states of the environments' generators before the last step, if they are known
    :return: what :func:`restore_episode_start` needs to do the same
    """
    assert model.env is not None
    warn_of_lost_states(model.env)
    state: dict[str, Any] = dict(n_envs=model.n_envs, generators=generator_states(model.env), random=random_states(model))
    if model._last_obs is None:  # the run has not started
        return dict(state, wrappers=copy.deepcopy(wrapper_states(model.env)), start="fresh")

    first_obs = replay_reset(model, before_step, state["generators"])
    if first_obs is not None:
        observations = dict(last_obs=model._last_obs, last_original_obs=model._last_original_obs, first_obs=first_obs)
        state.update(observations, start="replayed", generators=before_step)
        return dict(state, wrappers=copy.deepcopy(wrapper_states(model.env)))

    if state["generators"] is not None:
        restore_generator_states(model.env, state["generators"])
    restore_random_states(model, state["random"])
    state["wrappers"] = copy.deepcopy(wrapper_states(model.env))
    return dict(state, start="restarted", first_obs=copy.deepcopy(reset_and_truncate(model)))


def restore_episode_start(model: OffPolicyAlgorithm, state: dict[str, Any]) -> None:
    """
    Start the next episodes as the saved run did, or warn that this is not possible.

    :param model: the model that has just been loaded
    :param state: what :func:`save_episode_start` returned
    :raises ValueError: if the environments are not wrapped as they were
    """
    assert model.env is not None
    has_same_options = restore_wrapper_states(model.env, state["wrappers"])
    if state["generators"] is not None:
        restore_generator_states(model.env, state["generators"])
    restore_random_states(model, state["random"])
    if state["start"] == "fresh":
        return
    if not has_same_options:  # observations differ
        reset_and_truncate(model)
        return
    if state["start"] == "replayed":
        base = model.env.unwrapped
        base._reset_seeds()
        first_obs = reset_environments(base)
        model._last_obs, model._last_original_obs = state["last_obs"], state["last_original_obs"]
    if state["start"] == "restarted" or not _equal(first_obs, state["first_obs"]):
        first_obs = reset_and_truncate(model)
    if not _equal(first_obs, state["first_obs"]):
        warnings.warn(
            "The environment does not start its episodes as in the saved run. Training continues, but not bit for bit as it "
            "would have. Is it another environment? Or does it draw random numbers from a source other than `np_random` and "
            "the global generators? Such numbers can't be restored."
        )


def replay_reset(model: OffPolicyAlgorithm, generators: GeneratorStates | None, expected: GeneratorStates | None) -> Any:
    """
    Make the environments' last reset again, without the wrappers noticing.

    :param model: the model
    :param generators: the environments' generators before the last step
    :param expected: the environments' generators now
    :return: the environments' first observations, or None if it was not the same reset
    """
    assert model.env is not None
    has_other_wrappers = any(type(wrapper) not in WRAPPER_STATE for wrapper in wrappers(model.env))
    if generators is None or has_other_wrappers or not is_between_episodes(model):
        return None
    base = model.env.unwrapped
    assert isinstance(base, DummyVecEnv)  # generators before a step are kept for this class only
    current_obs = base._obs_from_buf()
    base._reset_seeds()  # a seed that waits for the next reset would override the generators
    restore_generator_states(base, generators)
    try:
        first_obs = reset_environments(base)
    except CheckpointError:
        return None
    return first_obs if _equal(generator_states(base), expected) and _equal(first_obs, current_obs) else None


def reset_and_truncate(model: OffPolicyAlgorithm) -> Any:
    """
    Reset the environments, and truncate unfinished episodes as a time limit would do.

    :param model: the model
    :return: the new episodes' first observations, as the model gets them
    """
    assert model.env is not None
    model.env.unwrapped._reset_seeds()
    model._last_obs = reset_environments(model.env)
    truncate_episodes(model.replay_buffer)
    if model.action_noise is not None:
        model.action_noise.reset()
    if model._vec_normalize_env is not None:
        model._last_original_obs = model._vec_normalize_env.get_original_obs()
    return model._last_obs


def truncate_episodes(buffer: ReplayBuffer | None) -> None:
    """
    Mark the newest transition of every environment as the last of its episode.

    Episodes that were unfinished count as ended by a time limit.

    :param buffer: the replay buffer
    """
    if buffer is None or not (buffer.full or buffer.pos > 0):
        return
    if isinstance(buffer, HerReplayBuffer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the warning suggests an argument that does not exist here
            buffer.truncate_last_trajectory()
        return
    last = buffer.pos - 1
    if buffer.handle_timeout_termination:
        buffer.timeouts[last] = np.where(buffer.dones[last], buffer.timeouts[last], True)
    buffer.dones[last] = True


def reset_environments(env: VecEnv) -> Any:
    """
    Reset the environments, even in the middle of their episodes.

    :param env: the environments, with or without wrappers
    :return: the first observations
    :raises CheckpointError: if they can't be reset now, and none of them was
    """
    base = env.unwrapped
    infos = list(base.reset_infos)
    try:
        with early_resets_allowed(env):
            return env.reset()
    except Exception as error:
        if isinstance(base, DummyVecEnv) and all(now is then for now, then in zip(base.reset_infos, infos, strict=True)):
            raise CheckpointError(
                f"A checkpoint must reset the environment before its episode has ended, but that fails: {error!r}."
            ) from error
        raise  # training can't continue if only some of them were reset


@contextlib.contextmanager
def early_resets_allowed(env: VecEnv) -> Iterator[None]:
    """
    Allow resets in the middle of an episode, even if a ``Monitor`` forbids them.

    :param env: the environments
    """
    base = env.unwrapped
    if isinstance(base, DummyVecEnv):
        monitors = []
        for each in base.envs:
            while isinstance(each, gym.Wrapper):
                if isinstance(each, Monitor):
                    monitors.append((each, each.allow_early_resets, each.rewards))
                    each.allow_early_resets = True
                each = each.env
        try:
            yield
        except Exception:
            for monitor, _, rewards in monitors:
                monitor.rewards = rewards  # the episode continues
            raise
        finally:
            for monitor, is_allowed, _ in monitors:
                monitor.allow_early_resets = is_allowed
    elif isinstance(base, SubprocVecEnv) and base.has_attr("allow_early_resets") and base.has_attr("set_wrapper_attr"):
        were_allowed = base.get_attr("allow_early_resets")
        base.env_method("set_wrapper_attr", "allow_early_resets", True)
        yield
        for index, was_allowed in enumerate(were_allowed):
            base.env_method("set_wrapper_attr", "allow_early_resets", was_allowed, indices=index)
    else:
        yield


def _equal(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(_equal(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list) and isinstance(theirs, list):  # the states of some generators hold arrays
        return len(ours) == len(theirs) and all(map(_equal, ours, theirs))
    return np.array_equal(ours, theirs)
